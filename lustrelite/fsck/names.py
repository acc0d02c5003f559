"""The MDT's own tables: do names, back-pointers, inodes, orphans and extended attributes agree?"""

from __future__ import annotations

import stat
from collections import Counter

import xxhash

from lustrelite.errors import StoreFailed
from lustrelite.fsck.objects import Claims
from lustrelite.fsck.readers import Cursor, Reader
from lustrelite.fsck.report import Report
from lustrelite.ids import FID_BYTES, ROOT_FID, Fid, fid_text
from lustrelite.store import schema
from lustrelite.wire.mdt import Layout

NAME_KEY_BYTES = FID_BYTES + schema.COOKIE_BYTES  # and at least one byte of name
ENTRY_BYTES = FID_BYTES + 4


def _print(child: bytes, parent: bytes, name: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(child + parent + name))


def _name_text(parent: bytes, name: bytes) -> str:
    return f"{fid_text(parent)}/{name.decode(errors='backslashreplace')}"


def _owner_text(key: bytes) -> str:
    return fid_text(key[:FID_BYTES]) if len(key) >= FID_BYTES else key.hex()


def sound_inode(data: bytes) -> schema.Inode:
    """The inode in `data`.  StoreFailed: it cannot be unpacked, or its fields are not what they should be."""
    inode = schema.unpack_inode(data)
    layout = inode.layout
    good = (
        all(isinstance(field, int) for field in (*inode[:13], inode.projid, inode.xattrs, inode.mtime_set, inode.atime_set))
        and all(isinstance(field, bytes) for field in (inode.target, inode.acl, inode.default_acl))
        and isinstance(inode.parent, bytes)
        and len(inode.parent) == FID_BYTES
        and (layout is None or all(0 <= ost <= 0xFFFF and 0 < oid <= schema.OBJECT_ID_MAX for ost, oid in _stripes(layout)))
    )
    if not good:
        raise StoreFailed(f"not an inode: {data[:64]!r}")
    return inode


def _stripes(layout: Layout) -> list[tuple[int, int]]:
    try:
        stripes = [(int(ost), int(oid)) for ost, oid in layout.stripes]
    except (TypeError, ValueError):
        return [(-1, -1)]
    return stripes if stripes and isinstance(layout.stripe_size, int) and layout.stripe_size > 0 else [(-1, -1)]


class Namespace:
    """The MDT's own tables: names, links, inodes, orphans, xattrs. Leaves the claims of the layouts."""

    def __init__(self, mdt: Reader, report: Report) -> None:
        self.mdt = mdt
        self.report = report
        self.claims: dict[int, Claims] = {}
        self.unmatched: set[int] = set()  # prints of names whose back-pointer was not seen (never iterated)
        self.homes: dict[Fid, Fid] = {}  # directory -> the directory that names it
        self.subdirectories: Counter[Fid] = Counter()
        self.types: dict[Fid, int] = {}  # types that names claim, of anything but plain files and directories
        self.parents: dict[Fid, bytes] = {}  # directory that holds names -> one of them
        self.extra: Counter[Fid] = Counter()  # names an inode has besides its links (negative: links without name)
        self.unlinked: dict[Fid, tuple[Fid, bytes]] = {}  # inode of a name without link -> that name
        self.dangling: set[bytes] = set()  # keys of links without name (never iterated)
        self.directories: dict[Fid, Fid] = {}  # inode of a directory -> its parent pointer

    async def examine(self) -> None:
        """Read all tables once (names twice if a back-pointer is missing)."""
        await self._read_names()
        await self._read_links()
        if self.unmatched:
            await self._report_names_without_link()
        await self._read_inodes()
        self._check_directories()

    async def _read_names(self) -> None:
        report, count = self.report, 0
        async for key, value in self.mdt.rows(schema.NAMES):
            count += 1
            if len(key) <= NAME_KEY_BYTES or len(value) != ENTRY_BYTES:
                self._unreadable(schema.NAMES, key)
                continue
            parent, cookie, name = schema.split_name_key(key)
            child, kind = schema.unpack_entry(value)
            if child == ROOT_FID:
                report.add("root-named", _name_text(parent, name), where=(key,))
                continue
            self.unmatched.add(_print(child, parent, name))
            if parent not in self.parents:
                self.parents[parent] = name
            if cookie != schema.name_cookie(name):
                report.add("name-cookie", _name_text(parent, name), where=(key,))
            if stat.S_ISDIR(kind):
                self.subdirectories[parent] += 1
                if child in self.homes:
                    detail = f"{_name_text(parent, name)} is one more name"
                    report.add("directory-names", fid_text(child), detail, (child,))
                self.homes[child] = parent
            elif not stat.S_ISREG(kind):
                self.types[child] = kind
        report.counts["names"] = count

    async def _read_links(self) -> None:
        count = 0
        async for key, _ in self.mdt.rows(schema.LINKS):
            count += 1
            if len(key) <= 2 * FID_BYTES:
                self._unreadable(schema.LINKS, key)
                self.dangling.add(key)
                self.extra[Fid(key[:FID_BYTES])] -= 1
                continue
            child, parent, name = schema.split_link_key(key)
            mark = _print(child, parent, name)
            if mark in self.unmatched:
                self.unmatched.discard(mark)
            else:
                self.extra[child] -= 1
                self.dangling.add(key)
                self.report.add("link-without-name", fid_text(child), f"it names {_name_text(parent, name)}", (key,))
        self.report.counts["links"] = count

    def _unreadable(self, table: str, key: bytes) -> None:
        self.report.add("record-unreadable", f"{table}:{key.hex()}", "no key, or no value, of this table", (None, table, key))

    async def _report_names_without_link(self) -> None:
        async for key, value in self.mdt.rows(schema.NAMES):
            if len(key) <= NAME_KEY_BYTES or len(value) != ENTRY_BYTES:
                continue
            parent, _, name = schema.split_name_key(key)
            child, _ = schema.unpack_entry(value)
            if _print(child, parent, name) in self.unmatched:
                self.extra[child] += 1
                self.unlinked[child] = (parent, name)
                where = (parent, name, child)
                self.report.add("name-without-link", _name_text(parent, name), f"inode {fid_text(child)}", where)

    async def _read_inodes(self) -> None:
        report, count = self.report, 0
        links = await Cursor(self.mdt.rows(schema.LINKS)).start()
        xattrs = await Cursor(self.mdt.rows(schema.XATTRS)).start()
        orphans = await Cursor(self.mdt.rows(schema.ORPHANS)).start()
        async for key, value in self.mdt.rows(schema.INODES):
            fid = Fid(key)
            count += 1
            if len(key) != FID_BYTES:
                self._unreadable(schema.INODES, key)
                continue
            if links.behind(fid) or xattrs.behind(fid) or orphans.behind(fid):
                await self._no_inode_for(links, xattrs, orphans, fid)
            names = await links.count(fid) + self.extra[fid]
            listed = sum([len(schema.split_xattr_key(key)[1]) + 1 for key, _ in await xattrs.of(fid) if not key[-1]])
            orphan = bool(await orphans.count(fid))
            self.unlinked.pop(fid, None)
            try:
                inode = sound_inode(value)
            except StoreFailed as error:
                report.add("record-unreadable", fid_text(fid), f"inode: {error}", (None, schema.INODES, key))
                continue
            if inode.xattrs != listed:
                detail = f"the inode says {inode.xattrs}, there are {listed}"
                report.add("xattr-bytes", fid_text(fid), detail, (fid, listed))
            self._check_inode(fid, inode, names, orphan)
        await self._no_inode_for(links, xattrs, orphans, None)
        for fid, (parent, name) in self.unlinked.items():
            report.add("name-without-inode", _name_text(parent, name), f"inode {fid_text(fid)}", (parent, name, fid))
        report.counts["inodes"] = count

    async def _no_inode_for(self, links: Cursor, xattrs: Cursor, orphans: Cursor, fid: Fid | None) -> None:
        """The rows up to `fid` belong to no inode (None: all that are left)."""
        async for key, _ in links.before(fid):
            if key not in self.dangling:
                child, parent, name = schema.split_link_key(key)
                self.unlinked.pop(child, None)
                where = (parent, name, child)
                self.report.add("name-without-inode", _name_text(parent, name), f"inode {fid_text(child)}", where)
        async for key, _ in xattrs.before(fid):
            self.report.add("xattr-without-inode", _owner_text(key), where=(key,))
        async for key, _ in orphans.before(fid):
            self.report.add("orphan-without-inode", _owner_text(key), where=(key,))

    def _check_inode(self, fid: Fid, inode: schema.Inode, names: int, orphan: bool) -> None:
        report = self.report
        directory = stat.S_ISDIR(inode.mode)
        if directory:
            self.directories[fid] = inode.parent
        if orphan:
            report.counts["orphans"] = report.counts.get("orphans", 0) + 1
            if names or inode.nlink:
                report.add("orphan-linked", fid_text(fid), f"{names} names, nlink {inode.nlink}", (fid, names))
        elif fid != ROOT_FID and not names:
            report.add("inode-without-name", fid_text(fid), where=(fid,))
        if names and not self._type_fits(fid, inode.mode):
            report.add("name-type", fid_text(fid), f"the inode is {stat.filemode(inode.mode)}", (fid,))
        expected = 2 + self.subdirectories[fid] if directory else names
        if not orphan and (names or fid == ROOT_FID) and inode.nlink != expected:
            report.add("link-count", fid_text(fid), f"nlink {inode.nlink}, should be {expected}", (fid, expected))
        if inode.layout is not None:
            for stripe, (index, oid) in enumerate(inode.layout.stripes):
                self.claims.setdefault(index, Claims()).add(oid, fid, stripe, (inode.uid, inode.gid, inode.projid))

    def _type_fits(self, fid: Fid, mode: int) -> bool:
        if fid in self.homes:
            return stat.S_ISDIR(mode)
        return stat.S_IFMT(mode) == stat.S_IFMT(self.types.get(fid, stat.S_IFREG))

    def _check_directories(self) -> None:
        report = self.report
        report.counts["directories"] = len(self.directories)
        if ROOT_FID not in self.directories:
            report.add("root-missing", fid_text(ROOT_FID))
        for parent, name in self.parents.items():
            if parent not in self.directories:
                report.add("name-in-no-directory", _name_text(parent, name), where=(parent,))
        for fid, pointer in self.directories.items():
            home = self.homes.get(fid)
            if home is not None and home != pointer:
                detail = f"points to {fid_text(pointer)}, is in {fid_text(home)}"
                report.add("directory-parent", fid_text(fid), detail, (fid, home))
        reached = {ROOT_FID}
        for fid in self.homes:
            path: list[Fid] = []
            seen: set[Fid] = set()
            at: Fid | None = fid
            while at is not None and at not in reached and at not in seen:
                path.append(at)
                seen.add(at)
                at = self.homes.get(at) if at in self.directories else None
            if at in reached:
                reached.update(path)
            elif fid in self.directories:
                report.add("directory-unreachable", fid_text(fid), where=(fid, self.homes[fid]))


