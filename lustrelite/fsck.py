"""fsck: does what the MDT says agree with itself and with the OSTs?

The same examination reads the stores of a stopped cluster (StoreReader) and those of a running one through IndexRead
(RpcReader). It streams every table once, in key order, and joins them by merging: what stays in memory is a 64-bit
print of every name (about 70 bytes in a set), 28 bytes for every object in a layout, and the directories: some 20 us
and 100 to 150 bytes a file, a million files in under half a minute.

A running system changes while it is read, so `check_running` reads again what looked wrong: a problem counts only if
it is found in every one of three readings with a pause between them. A stopped one must be clean at once.

Not checked here: the bytes of the files (nobody else knows them), locks, and what only a client knows.
Source of the idea: e2fsck, LFSCK (namespace and layout); the kinds below are its inconsistency types in our words.
"""

from __future__ import annotations

import stat
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import xxhash

from lustrelite.errors import StoreFailed
from lustrelite.ids import FID_BYTES, NO_FID, ROOT_FID, Fid, fid_text
from lustrelite.ost.handlers import FILES
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.wire.session import IndexPage, IndexRead

PROBLEMS_MAX = 1000  # listed; more are only counted
PASSES = 3  # readings of a running system
PAGE_ROWS = 2000

ERROR = "error"  # something a user can lose or see wrongly
WARNING = "warning"  # space or a record too much; harmless, and mostly mended by the next start

KINDS: dict[str, tuple[str, str]] = {
    "root-missing": (ERROR, "there is no root directory"),
    "record-unreadable": (ERROR, "a row does not decode"),
    "name-without-inode": (ERROR, "a name points to an inode that does not exist"),
    "name-in-no-directory": (ERROR, "a name's parent is not a directory"),
    "name-without-link": (ERROR, "a name has no back-pointer at its inode"),
    "link-without-name": (ERROR, "a back-pointer names a name that is not there"),
    "name-type": (ERROR, "the type beside the name is not the inode's"),
    "name-cookie": (ERROR, "the name is filed under another name's hash"),
    "inode-without-name": (ERROR, "an inode that is no orphan has no name"),
    "link-count": (ERROR, "nlink is not the number of names (directories: 2 + subdirectories)"),
    "directory-parent": (ERROR, "a directory's parent pointer is not the directory that names it"),
    "directory-names": (ERROR, "a directory has more than one name"),
    "directory-unreachable": (ERROR, "no path from the root leads to a directory"),
    "orphan-linked": (ERROR, "an entry of the orphans table has names or nlink above 0"),
    "orphan-without-inode": (WARNING, "an entry of the orphans table has no inode"),
    "xattr-without-inode": (WARNING, "an extended attribute of an inode that does not exist"),
    "xattr-bytes": (ERROR, "an inode does not know which extended attributes it has"),
    "ost-unknown": (ERROR, "a layout names an OST that is not there"),
    "object-missing": (ERROR, "a layout names an object that the OST does not have"),
    "object-shared": (ERROR, "two layouts name one object"),
    "object-owner": (ERROR, "an object's back-pointer is not the layout that names it"),
    "object-user": (WARNING, "an object is counted for another user, group or project than its file's"),
    "object-condemned": (ERROR, "an object of a layout stands in the destroy log"),
    "object-orphan": (WARNING, "an object that no layout names, below last_used and not in the destroy log"),
    "data-missing": (ERROR, "an object was written but its data file is not there"),
    "data-orphan": (WARNING, "a data file without a record"),
    "last-id": (ERROR, "an object's id is above the OST's last_id"),
    "last-used": (ERROR, "last_used of the MDT is below an object in use or above the OST's last_id"),
}


@dataclass(frozen=True)
class Problem:
    """One finding. `kind` is a key of KINDS; `subject` is what it is about and, with the kind, its identity."""

    kind: str
    subject: str
    detail: str
    severity: str


@dataclass
class Report:
    """What was read and what was found. The list is cut at PROBLEMS_MAX, `found` counts all of them by kind."""

    counts: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    passes: int = 1

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not self.found

    @property
    def errors(self) -> list[Problem]:
        """The problems that are more than wasted space."""
        return [problem for problem in self.problems if problem.severity == ERROR]

    def add(self, kind: str, subject: str, detail: str = "") -> None:
        """Note a problem of `kind` about `subject`."""
        severity, meaning = KINDS[kind]
        self.found[kind] = self.found.get(kind, 0) + 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(kind, subject, detail or meaning, severity))

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {**asdict(self), "clean": self.clean}


class Reader(Protocol):
    """The rows of one target."""

    def rows(self, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """Every row of `table` in key order. `files` on an OST is the list of data files: object id -> size u64."""


class StoreReader:
    """Reads an open store (and the data files of an OST) directly. Never suspends."""

    def __init__(self, store: Store, files: ObjectFiles | None = None) -> None:
        self.store = store
        self.files = files

    async def rows(self, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """See Reader."""
        if table != FILES:
            for row in self.store.scan(table):
                yield row
        elif self.files is not None:
            for oid in array("Q", sorted(self.files.ids())):
                yield schema.object_key(oid), schema.pack_u64(self.files.size(oid))


class Caller(Protocol):
    """What an RpcReader needs of an import."""

    async def call(self, body: Any) -> Any:
        """The reply to `body`; raises OpError."""


class RpcReader:
    """Reads a running target through IndexRead."""

    def __init__(self, target: Caller, page_rows: int = PAGE_ROWS) -> None:
        self.target = target
        self.page_rows = page_rows

    async def rows(self, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """See Reader."""
        after = b""
        while True:
            page: IndexPage = await self.target.call(IndexRead(table, after, self.page_rows))
            for row in page.rows:
                yield row
            if not page.more:
                return
            after = page.rows[-1][0]


def check(mdt: Store, osts: Mapping[int, tuple[Store, ObjectFiles]]) -> Report:
    """Examine the stores of a stopped cluster (or of one that stands still). Changes nothing."""
    readers = {index: StoreReader(store, files) for index, (store, files) in osts.items()}
    work = examine(StoreReader(mdt), readers)
    try:
        work.send(None)
    except StopIteration as done:
        report: Report = done.value
        return report
    raise AssertionError("a StoreReader suspended")


async def check_running(
    mdt: Reader, osts: Mapping[int, Reader], pause: Callable[[], Awaitable[None]], passes: int = PASSES
) -> Report:
    """Examine a running cluster: what is found in each of `passes` readings, with a `pause()` before every new one."""
    report = await examine(mdt, osts)
    while report.found and report.passes < passes:
        await pause()
        again = await examine(mdt, osts)
        before = {(problem.kind, problem.subject) for problem in report.problems}
        settled = Report(again.counts, passes=report.passes + 1)
        for problem in again.problems:
            if (problem.kind, problem.subject) in before:
                settled.add(problem.kind, problem.subject, problem.detail)
        report = settled
    return report


async def examine(mdt: Reader, osts: Mapping[int, Reader]) -> Report:
    """One reading of everything."""
    namespace = _Namespace(mdt)
    await namespace.examine()
    for index in sorted(osts.keys() | namespace.claims.keys()):
        claims = namespace.claims.get(index) or _Claims()
        if index in osts:
            await _examine_ost(namespace.report, mdt, index, osts[index], claims)
        else:
            for oid, fid, stripe, _ in claims.in_order():
                namespace.report.add("ost-unknown", f"OST{index:04x}:{oid}", f"stripe {stripe} of {fid_text(fid)}")
    return namespace.report


class _Cursor:
    """A sorted table beside another: hands out what belongs to the keys that the other one has reached."""

    def __init__(self, rows: AsyncIterator[tuple[bytes, bytes]]) -> None:
        self.rows = rows
        self.row: tuple[bytes, bytes] | None = None

    async def start(self) -> _Cursor:
        """Stand at the first row."""
        await self.step()
        return self

    async def step(self) -> None:
        """Go on by one row; `row` is None at the end."""
        self.row = await anext(self.rows, None)

    def behind(self, prefix: bytes) -> bool:
        """Whether there are rows before those of `prefix`."""
        return self.row is not None and self.row[0] < prefix and not self.row[0].startswith(prefix)

    async def count(self, prefix: bytes) -> int:
        """How many rows of `prefix` there are at which the cursor stands, stepping over them."""
        found = 0
        while self.row is not None and self.row[0].startswith(prefix):
            found += 1
            self.row = await anext(self.rows, None)
        return found

    async def before(self, prefix: bytes | None) -> AsyncIterator[tuple[bytes, bytes]]:
        """The rows before those of `prefix`, or all that are left, stepping over them."""
        width = len(prefix or b"")
        while self.row is not None and (prefix is None or self.row[0][:width] < prefix):
            row = self.row
            await self.step()
            yield row

    async def of(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """The rows of `prefix` at which the cursor stands, stepping over them."""
        taken = []
        while self.row is not None and self.row[0].startswith(prefix):
            taken.append(self.row)
            await self.step()
        return taken


class _Claims:
    """Which object of one OST belongs to which stripe of which file, by what the layouts say."""

    def __init__(self) -> None:
        self._oids = array("Q")
        self._stripes = array("I")
        self._fids = bytearray()
        self._owners = array("I")  # numbers of `owners`
        self.owners: dict[tuple[int, int, int], int] = {}  # (user, group, project), of which there are few

    def add(self, oid: int, fid: Fid, stripe: int, owner: tuple[int, int, int]) -> None:
        """The layout of `fid`, which is of `owner`, names `oid` as its stripe."""
        self._oids.append(oid)
        self._stripes.append(stripe)
        self._owners.append(self.owners.setdefault(owner, len(self.owners)))
        self._fids += fid

    def in_order(self) -> Iterator[tuple[int, Fid, int, tuple[int, int, int]]]:
        """(object id, file, stripe, the file's owner) by object id."""
        owners = list(self.owners)
        for at in sorted(range(len(self._oids)), key=self._oids.__getitem__):
            fid = Fid(bytes(self._fids[at * FID_BYTES : (at + 1) * FID_BYTES]))
            yield self._oids[at], fid, self._stripes[at], owners[self._owners[at]]


def _print(child: bytes, parent: bytes, name: bytes) -> int:
    return int(xxhash.xxh3_64_intdigest(child + parent + name))


def _name_text(parent: bytes, name: bytes) -> str:
    return f"{fid_text(parent)}/{name.decode(errors='backslashreplace')}"


class _Namespace:
    """The MDT's own tables: names, links, inodes, orphans, xattrs. Leaves the claims of the layouts."""

    def __init__(self, mdt: Reader) -> None:
        self.mdt = mdt
        self.report = Report()
        self.claims: dict[int, _Claims] = {}
        self.unmatched: set[int] = set()  # prints of names whose back-pointer was not seen (never iterated)
        self.homes: dict[Fid, Fid] = {}  # directory -> the directory that names it
        self.subdirectories: Counter[Fid] = Counter()
        self.types: dict[Fid, int] = {}  # types that names claim, of anything but plain files and directories
        self.parents: dict[Fid, bytes] = {}  # directory that holds names -> one of them
        self.extra: Counter[Fid] = Counter()  # names an inode has besides its links (negative: links without name)
        self.unlinked: dict[Fid, str] = {}  # inode of a name without link -> that name
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
            parent, cookie, name = schema.split_name_key(key)
            child, kind = schema.unpack_entry(value)
            count += 1
            self.unmatched.add(_print(child, parent, name))
            if parent not in self.parents:
                self.parents[parent] = name
            if cookie != schema.name_cookie(name):
                report.add("name-cookie", _name_text(parent, name))
            if stat.S_ISDIR(kind):
                self.subdirectories[parent] += 1
                if child in self.homes:
                    report.add("directory-names", fid_text(child), f"{_name_text(parent, name)} is one more name")
                self.homes[child] = parent
            elif not stat.S_ISREG(kind):
                self.types[child] = kind
        report.counts["names"] = count

    async def _read_links(self) -> None:
        count = 0
        async for key, _ in self.mdt.rows(schema.LINKS):
            child, parent, name = schema.split_link_key(key)
            count += 1
            mark = _print(child, parent, name)
            if mark in self.unmatched:
                self.unmatched.discard(mark)
            else:
                self.extra[child] -= 1
                self.dangling.add(key)
                self.report.add("link-without-name", fid_text(child), f"it names {_name_text(parent, name)}")
        self.report.counts["links"] = count

    async def _report_names_without_link(self) -> None:
        async for key, value in self.mdt.rows(schema.NAMES):
            parent, _, name = schema.split_name_key(key)
            child, _ = schema.unpack_entry(value)
            if _print(child, parent, name) in self.unmatched:
                self.extra[child] += 1
                self.unlinked[child] = _name_text(parent, name)
                self.report.add("name-without-link", _name_text(parent, name), f"inode {fid_text(child)}")

    async def _read_inodes(self) -> None:
        report, count = self.report, 0
        links = await _Cursor(self.mdt.rows(schema.LINKS)).start()
        xattrs = await _Cursor(self.mdt.rows(schema.XATTRS)).start()
        orphans = await _Cursor(self.mdt.rows(schema.ORPHANS)).start()
        async for key, value in self.mdt.rows(schema.INODES):
            fid = Fid(key)
            count += 1
            if links.behind(fid) or xattrs.behind(fid) or orphans.behind(fid):
                await self._no_inode_for(links, xattrs, orphans, fid)
            names = await links.count(fid) + self.extra[fid]
            listed = sum([len(key) - FID_BYTES + 1 for key, _ in await xattrs.of(fid)])
            orphan = bool(await orphans.count(fid))
            self.unlinked.pop(fid, None)
            try:
                inode = schema.unpack_inode(value)
            except StoreFailed as error:
                report.add("record-unreadable", fid_text(fid), f"inode: {error}")
                continue
            if inode.xattrs != listed:
                report.add("xattr-bytes", fid_text(fid), f"the inode says {inode.xattrs}, there are {listed}")
            self._check_inode(fid, inode, names, orphan)
        await self._no_inode_for(links, xattrs, orphans, None)
        for fid, name in self.unlinked.items():
            report.add("name-without-inode", name, f"inode {fid_text(fid)}")
        report.counts["inodes"] = count

    async def _no_inode_for(self, links: _Cursor, xattrs: _Cursor, orphans: _Cursor, fid: Fid | None) -> None:
        """The rows up to `fid` belong to no inode (None: all that are left)."""
        async for key, _ in links.before(fid):
            if key not in self.dangling:
                child, parent, name = schema.split_link_key(key)
                self.unlinked.pop(child, None)
                self.report.add("name-without-inode", _name_text(parent, name), f"inode {fid_text(child)}")
        async for key, _ in xattrs.before(fid):
            self.report.add("xattr-without-inode", fid_text(key[:FID_BYTES]))
        async for key, _ in orphans.before(fid):
            self.report.add("orphan-without-inode", fid_text(key))

    def _check_inode(self, fid: Fid, inode: schema.Inode, names: int, orphan: bool) -> None:
        report = self.report
        directory = stat.S_ISDIR(inode.mode)
        if directory:
            self.directories[fid] = inode.parent
        if orphan:
            report.counts["orphans"] = report.counts.get("orphans", 0) + 1
            if names or inode.nlink:
                report.add("orphan-linked", fid_text(fid), f"{names} names, nlink {inode.nlink}")
        elif fid != ROOT_FID and not names:
            report.add("inode-without-name", fid_text(fid))
        if names and not self._type_fits(fid, inode.mode):
            report.add("name-type", fid_text(fid), f"the inode is {stat.filemode(inode.mode)}")
        expected = 2 + self.subdirectories[fid] if directory else names
        if not orphan and (names or fid == ROOT_FID) and inode.nlink != expected:
            report.add("link-count", fid_text(fid), f"nlink {inode.nlink}, should be {expected}")
        if inode.layout is not None:
            for stripe, (index, oid) in enumerate(inode.layout.stripes):
                self.claims.setdefault(index, _Claims()).add(
                    oid, fid, stripe, (inode.uid, inode.gid, inode.projid)
                )

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
                report.add("name-in-no-directory", _name_text(parent, name))
        for fid, pointer in self.directories.items():
            home = self.homes.get(fid)
            if home is not None and home != pointer:
                report.add("directory-parent", fid_text(fid), f"points to {fid_text(pointer)}, is in {fid_text(home)}")
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
                report.add("directory-unreachable", fid_text(fid))


async def _examine_ost(report: Report, mdt: Reader, index: int, ost: Reader, claims: _Claims) -> None:
    """Layouts against the objects of one OST, in both directions, and the counters of both sides."""
    name = f"OST{index:04x}"
    last_id = await _last_id(ost)
    last_used = await _last_used(mdt, index)
    condemned, changing = await _log(mdt, index)
    objects = await _Cursor(ost.rows(schema.OBJECTS)).start()
    files = await _Cursor(ost.rows(FILES)).start()
    totals: Counter[str] = Counter()

    def text(oid: int) -> str:
        return f"{name}:{oid}"

    async def look(
        row: tuple[bytes, bytes], owner: Fid | None, stripe: int, user: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        """One object record; `owner` is None if no layout names it, and else of `user`."""
        key = row[0]
        oid = schema.split_object_key(key)
        totals["objects"] += 1
        if files.behind(key):
            await no_record(key)
        data = await files.of(key)
        size = schema.unpack_u64(data[0][1]) if data else 0
        totals["data files"] += len(data)
        totals["bytes"] += size
        if oid > last_id:
            report.add("last-id", text(oid), f"last_id is {last_id}")
        try:
            record = schema.unpack_object(row[1])
        except StoreFailed as error:
            report.add("record-unreadable", text(oid), f"object: {error}")
            return
        if record.owner != NO_FID and not data:
            report.add("data-missing", text(oid), f"written for {fid_text(record.owner)}")
        if owner is None:
            if oid <= last_used and oid not in condemned:
                report.add("object-orphan", text(oid), f"{size} bytes, last owner {fid_text(record.owner)}")
        elif record.owner != NO_FID and (record.owner, record.stripe) != (owner, stripe):
            detail = f"says stripe {record.stripe} of {fid_text(record.owner)}, is stripe {stripe} of {fid_text(owner)}"
            report.add("object-owner", text(oid), detail)
        if owner is not None and oid not in changing and (record.uid, record.gid, record.projid) != user:
            of = (record.uid, record.gid, record.projid)
            report.add("object-user", text(oid), f"is counted for {of}, {_what(owner, stripe)} is of {user}")

    async def no_record(key: bytes | None) -> None:
        async for stray, size in files.before(key):
            report.add("data-orphan", f"{name}:{schema.split_object_key(stray)}", f"{schema.unpack_u64(size)} bytes")

    previous: tuple[int, Fid, int] | None = None
    for oid, fid, stripe, user in claims.in_order():
        if previous is not None and previous[0] == oid:
            report.add("object-shared", text(oid), f"{_what(fid, stripe)} and {_what(previous[1], previous[2])}")
            continue
        previous = (oid, fid, stripe)
        if oid > last_used:
            report.add("last-used", text(oid), f"{_what(fid, stripe)}, last_used is {last_used}")
        if oid in condemned:
            report.add("object-condemned", text(oid), _what(fid, stripe))
        key = schema.object_key(oid)
        if objects.behind(key):
            async for row in objects.before(key):
                await look(row, None, 0)
        claimed = await objects.of(key)
        for row in claimed:
            await look(row, fid, stripe, user)
        if not claimed:
            report.add("object-missing", text(oid), _what(fid, stripe))
    async for row in objects.before(None):
        await look(row, None, 0)
    await no_record(None)
    if last_used > last_id:
        report.add("last-used", name, f"last_used is {last_used}, the OST's last_id {last_id}")
    for what, total in totals.items():
        report.counts[what] = report.counts.get(what, 0) + total
    report.counts["destroy log"] = report.counts.get("destroy log", 0) + len(condemned)


def _what(fid: Fid, stripe: int) -> str:
    return f"stripe {stripe} of {fid_text(fid)}"


async def _last_id(ost: Reader) -> int:
    async for key, value in ost.rows(schema.META):
        if key == schema.meta_key("last_id"):
            return int(schema.unpack_meta(value))
    return 0


async def _last_used(mdt: Reader, index: int) -> int:
    async for key, value in mdt.rows(schema.POOLS):
        if schema.split_pool_key(key) == index:
            return schema.unpack_pool(value).last_used
    return 0


async def _log(mdt: Reader, index: int) -> tuple[set[int], set[int]]:
    """Objects of one OST that the MDT's log says shall be destroyed, and that shall change owners (never iterated)."""
    destroys: set[int] = set()
    owners: set[int] = set()
    async for key, value in mdt.rows(schema.OST_LOG):
        of, oid = schema.split_log_key(key)
        if of == index:
            (destroys if schema.unpack_log(value).owner is None else owners).add(oid)
    return destroys, owners
