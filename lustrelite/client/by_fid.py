"""POSIX operations on FIDs: by (parent, name), called `..._at`, and by FID, called `..._fid`. What FUSE stands on.

No paths and no symlinks are followed here; see fs.FileSystem for those. What a client that caches knows already
(attr_cache.py, and the sizes that client/lov.py knows) is answered at once, without giving up the turn.

Every operation acts with the view's credential. A `umask` takes bits from a new file's mode, unless its directory has a
default access control list; there is none but that which is given. Errors are OpError with an errno; arguments of a
wrong type are TypeError or ValueError. An operation whose caller is cancelled may still happen, but leaves no open
handle behind.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial

from lustrelite import acl
from lustrelite.client.attr_cache import STAT, AttrCache
from lustrelite.client.attributes import DirEntry, ObjectsAttr, Stat, Statfs, merge
from lustrelite.client.connections import Connections
from lustrelite.client.file import File
from lustrelite.client.known import TOO_MANY, Known, touch
from lustrelite.client.paths import check_length, check_name
from lustrelite.client.scattered import EARNED
from lustrelite.errors import OpError
from lustrelite.ids import NO_FID, Fid
from lustrelite.permission import require_xattr, sees_xattr
from lustrelite.tunables import limits
from lustrelite.wire import mdt
from lustrelite.wire.ldlm import LOOKUP, PERM, XATTR
from lustrelite.wire.mdt import Attr, Dirent, DirPage, OpenReply, StatfsReply, StripeHint
from lustrelite.wire.message import ROOT_CRED, Cred

NOW = 1 << 64  # as a time, and never one: the client's clock, when the request is made
READDIR_COUNT = 1000  # names asked for at once
FEW = 16  # attributes that are asked for one by one rather than with their page
_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1  # nanoseconds
_RENAME_FLAGS = mdt.RENAME_NOREPLACE | mdt.RENAME_EXCHANGE


class FidOperations:
    """A view of a mounted file system with one credential."""

    def __init__(self, connections: Connections, cred: Cred = ROOT_CRED) -> None:
        self.connections = connections
        self.cred = cred

    @property
    def root(self) -> Fid:
        """FID of the root directory."""
        return self.connections.root

    # attributes -------------------------------------------------------------------------------------------------

    async def stat_at(self, parent: Fid, name: bytes) -> Stat:
        """Attributes of `name` in `parent`."""
        found = self.stat_at_now(parent, name)
        return found if found is not None else await self._stat_of(lambda: self._lookup(parent, name, STAT))

    def stat_at_now(self, parent: Fid, name: bytes) -> Stat | None:
        """`stat_at` if locks that are held say all of it.  ENOENT, EACCES, ENAMETOOLONG"""
        check_length(name)  # before a listing that is known says that it is not there
        cache = self.connections.names
        known = cache.look(parent, name, self.cred, STAT) if cache is not None else None
        if known is None or cache is None:
            return None
        return self._whole(known)

    async def _stat_of(self, find: Callable[[], Awaitable[Attr]]) -> Stat:
        """`_full` of what a name leads to.

        If that has just lost its last name, another file may have been renamed over it.
        """
        gone = NO_FID
        while True:
            attr = await find()
            try:
                return await self._full(attr)
            except OpError as error:
                if error.errno != errno.ENOENT or attr.fid == gone:
                    raise
            gone = attr.fid

    async def stat_fid(self, fid: Fid) -> Stat:
        """Attributes of `fid`.  ENOENT"""
        cache = self.connections.names
        if cache is not None and (known := cache.find(fid, STAT)) is not None:
            return self._whole(known) or await self._full(known.attr)
        return await self._full(await self.connections.mdc.getattr(fid, cred=self.cred))

    async def attributes(self, fid: Fid, need: int) -> Attr:
        """What the MDT says of `fid`, of which `need` is looked at."""
        cache = self.connections.names
        if cache is not None and (known := cache.find(fid, need)) is not None:
            return known.attr
        return await self.connections.mdc.getattr(fid, cred=self.cred, need=need)

    def known_stat(self, fid: Fid) -> Stat | None:
        """`stat_fid` if locks that are held say all of it."""
        cache = self.connections.names
        known = cache.find(fid, STAT) if cache is not None else None
        return self._whole(known) if known is not None else None

    def _whole(self, known: Known) -> Stat | None:
        """What stat() shows of a file of which the MDT's part is known; None if its objects must be asked."""
        attr = known.attr
        connections = self.connections
        objects: ObjectsAttr | None = None
        if attr.layout is not None:
            objects = connections.lov.cached_attr(attr.layout)
            if objects is None:
                return None
        mtime, atime = connections.open_files.pending_times(attr.fid)
        touch(known)
        merged = known.merged
        if merged is None and known.places and (cache := connections.names) is not None and cache.scattered.walks:
            cache.scattered.used(known.places[0][0].fid)
        if merged is not None and merged[0] == objects and merged[1] == mtime and merged[2] == atime:
            return merged[3]  # type: ignore[no-any-return]
        result = merge(attr, objects, mtime=mtime, atime=atime)
        known.merged = (objects, mtime, atime, result)
        return result

    async def setattr_fid(
        self, fid: Fid, *, mode: int | None = None, uid: int | None = None, gid: int | None = None,
        atime: int | None = None, mtime: int | None = None, size: int | None = None, flags: int | None = None,
        projid: int | None = None, handle: int = 0,
    ) -> Stat:  # fmt: skip
        """Change what is not None, in one request to the MDT, and return the attributes. EPERM, EACCES, EINVAL

        `handle` is an open file whose mode vouches for the right to truncate. Times as in `utimes`.
        """
        return await self._full(
            await self.change_fid(
                fid, mode=mode, uid=uid, gid=gid, atime=atime, mtime=mtime, size=size, flags=flags, projid=projid,
                handle=handle,
            )
        )

    async def change_fid(
        self, fid: Fid, *, mode: int | None = None, uid: int | None = None, gid: int | None = None,
        atime: int | None = None, mtime: int | None = None, size: int | None = None, flags: int | None = None,
        projid: int | None = None, handle: int = 0,
    ) -> Attr:  # fmt: skip
        """`setattr_fid` for those who do not want to know: the objects are not asked for size and times."""
        connections = self.connections
        if size is not None and not 0 <= size <= limits.file_bytes_max:
            raise OpError(errno.EINVAL if size < 0 else errno.EFBIG, f"size {size}")
        now = connections.time()
        atime, mtime = _storable(atime), _storable(mtime)
        valid = 0
        for bit, value in (
            (mdt.SET_MODE, mode), (mdt.SET_UID, uid), (mdt.SET_GID, gid), (mdt.SET_FLAGS, flags),
            (mdt.SET_ATIME, atime), (mdt.SET_MTIME, mtime), (mdt.SET_SIZE, size), (mdt.SET_PROJID, projid),
        ):  # fmt: skip
            if value is not None:
                valid |= bit
        if (atime, mtime) not in ((None, None), (NOW, NOW)):
            valid |= mdt.SET_TIMES_EXPLICIT
        times_set = valid & (mdt.SET_ATIME | mdt.SET_MTIME)
        if size is not None and not valid & mdt.SET_MTIME:
            valid, mtime = valid | mdt.SET_MTIME, now
        if not valid:
            return await self.attributes(fid, STAT)
        attr = await connections.mdc.setattr(
            fid, valid, now, cred=self.cred, mode=mode or 0, uid=uid or 0, gid=gid or 0, flags=flags or 0,
            atime=now if atime in (None, NOW) else atime or 0, mtime=now if mtime in (None, NOW) else mtime or 0,
            projid=projid or 0, handle=handle,
        )  # fmt: skip
        connections.open_files.forget_times(
            fid, mtime=bool(times_set & mdt.SET_MTIME) or size is not None, atime=bool(times_set & mdt.SET_ATIME)
        )
        if size is not None:
            await self._truncate_objects(attr, size, now)
        return attr

    async def _truncate_objects(self, attr: Attr, size: int, time: int) -> None:
        # `time` is that of the MDT's change: an equal ctime leaves the mtime to the MDT, who may have been given one
        layout = attr.layout
        if layout is None:
            if not size:
                return
            file = await self.open_fid(attr.fid, os.O_WRONLY)  # gives it objects
            layout = file.layout
            await file.close()
            if layout is None:
                raise OpError(errno.EIO, "the file has no objects")
        await self.connections.lov.truncate(layout, attr.fid, size, time=time, cred=self.cred)

    async def _full(self, attr: Attr) -> Stat:
        """`attr` with what the objects know."""
        objects: ObjectsAttr | None = None
        if attr.layout is not None and stat.S_ISREG(attr.mode):
            try:
                objects = await self.connections.lov.getattr(attr.layout, cred=self.cred)
            except OpError as error:
                await self._expect_gone(attr.fid, error)
                raise OpError(errno.ENOENT) from None
        mtime, atime = self.connections.open_files.pending_times(attr.fid)
        return merge(attr, objects, mtime=mtime, atime=atime)

    # making and removing names ----------------------------------------------------------------------------------

    async def create_at(
        self, parent: Fid, name: bytes, mode: int = 0o666, hint: StripeHint | None = None, *, umask: int = 0
    ) -> Stat:
        """`create` in a directory."""
        return await self._make(parent, name, stat.S_IFREG | mode & 0o7777, hint=hint, umask=umask)

    async def mknod_at(self, parent: Fid, name: bytes, mode: int, rdev: int = 0, *, umask: int = 0) -> Stat:
        """`mknod` in a directory."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise OpError(errno.EINVAL, f"mode {mode:#o}")
        return await self._make(parent, name, kind | mode & 0o7777, rdev=rdev, umask=umask)

    async def mkdir_at(
        self, parent: Fid, name: bytes, mode: int = 0o777, hint: StripeHint | None = None, *, umask: int = 0
    ) -> Stat:
        """`mkdir` in a directory; `hint` is its default striping."""
        return await self._make(parent, name, stat.S_IFDIR | mode & 0o7777, hint=hint, umask=umask)

    async def symlink_at(self, target: bytes, parent: Fid, name: bytes) -> Stat:
        """`symlink` in a directory."""
        if not target:
            raise OpError(errno.ENOENT, "the target of a symlink is empty")
        if len(target) > limits.symlink_bytes_max:
            raise OpError(errno.ENAMETOOLONG, f"a symlink's target of {len(target)} bytes")
        return await self._make(parent, name, stat.S_IFLNK | 0o777, target=target)

    async def _make(
        self, parent: Fid, name: bytes, mode: int, *, rdev: int = 0, target: bytes = b"", hint: StripeHint | None = None,
        umask: int = 0,
    ) -> Stat:  # fmt: skip
        attr = await self.connections.mdc.create(
            parent, check_name(name), mode, self.connections.time(), cred=self.cred, rdev=rdev, target=target, hint=hint,
            umask=umask,
        )  # fmt: skip
        return merge(attr, None)  # new, so empty: its objects need not be asked

    async def link_at(self, fid: Fid, parent: Fid, name: bytes) -> None:
        """`link` a FID into a directory."""
        connections = self.connections
        await connections.mdc.link(fid, parent, check_name(name), connections.time(), cred=self.cred)

    async def unlink_at(self, parent: Fid, name: bytes) -> None:
        """`unlink` in a directory."""
        check_length(name)
        await self.connections.mdc.unlink(parent, name, self.connections.time(), cred=self.cred)

    async def rmdir_at(self, parent: Fid, name: bytes) -> None:
        """`rmdir` in a directory."""
        check_length(name)
        await self.connections.mdc.unlink(parent, name, self.connections.time(), cred=self.cred, directory=True)

    async def rename_at(self, source: Fid, name: bytes, target: Fid, new_name: bytes, flags: int = 0) -> None:
        """`rename` between directories."""
        if flags & ~_RENAME_FLAGS or flags == _RENAME_FLAGS:
            raise OpError(errno.EINVAL, f"rename flags {flags:#x}")
        check_length(name)
        time = self.connections.time()
        await self.connections.mdc.rename(source, name, target, check_name(new_name), flags, time, cred=self.cred)

    async def readlink_fid(self, fid: Fid) -> bytes:
        """Target of a symlink.  EINVAL"""
        cache = self.connections.names
        if cache is not None and (target := cache.target_of(fid)) is not None:
            return target
        return await self.connections.mdc.readlink(fid, cred=self.cred)

    # directories ------------------------------------------------------------------------------------------------

    async def scandir_fid(
        self, fid: Fid, cookie: int = 0, *, plus: bool = True, sizes: bool = True
    ) -> AsyncIterator[DirEntry]:
        """`scandir` of a FID from after `cookie` on. What is there all the time comes exactly once."""
        while True:
            entries, end = await self.readdir_page(fid, cookie, plus=plus, sizes=sizes)
            for entry in entries:
                yield entry
            if end:
                return
            cookie = entries[-1].cookie

    async def readdir_page(
        self, fid: Fid, cookie: int, count: int = READDIR_COUNT, *, plus: bool = True, sizes: bool = True, ask: bool = False,
        patient: bool = True,
    ) -> tuple[list[DirEntry], bool]:  # fmt: skip
        """About `count` entries after `cookie`, and whether they are the last. See `names_page`, `with_stats`."""
        page = await self.names_page(fid, cookie, count, plus=plus, ask=ask)
        return await self.with_stats(page, sizes=sizes, patient=patient), page.end or not page.entries

    async def names_page(
        self, fid: Fid, cookie: int, count: int = READDIR_COUNT, *, plus: bool = True, ask: bool = False
    ) -> DirPage:
        """About `count` names after `cookie`, `plus` what the MDT knows of them. `ask`: whatever is known here."""
        page = await self._known_page(fid, cookie, count, plus) if not ask else None
        if page is None:
            page = await self.connections.mdc.readdir(fid, cookie, count, cred=self.cred, plus=plus)
            lacking = [place for place, entry in enumerate(page.entries) if entry.attr is None] if plus else []
            if lacking:
                page = page._replace(entries=await self._completed(page.entries, lacking))
        return page

    async def with_stats(self, page: DirPage, *, sizes: bool, patient: bool) -> list[DirEntry]:
        """Its entries, with what the OSTs know of them if `sizes`.

        Unless `patient` an OST that is away costs its files their attributes and nobody any time, and one file's error nothing.
        """
        attrs = [entry.attr for entry in page.entries]
        stats: list[Stat | None]
        if sizes:
            stats = await self._full_many(attrs, patient)
        else:
            stats = [None if attr is None else merge(attr, None) for attr in attrs]
        return [DirEntry(e.name, e.fid, e.type, e.cookie, found) for e, found in zip(page.entries, stats, strict=True)]

    async def _known_page(self, fid: Fid, cookie: int, count: int, plus: bool) -> DirPage | None:
        """The page from the cache; the few attributes that it lacks are asked for. None: all must be asked for."""
        cache = self.connections.names
        page = cache.page(fid, cookie, count, self.cred) if cache is not None else None
        if page is None or not plus:
            return page
        assert cache is not None
        entries: list[Dirent] = []
        lacking: list[int] = []
        for entry in page.entries:
            known = cache.find(entry.fid, STAT)
            if known is None:
                lacking.append(len(entries))
                if len(lacking) > FEW:
                    return None
                entries.append(entry)
            else:
                entries.append(entry._replace(attr=known.attr))
        return DirPage(await self._completed(entries, lacking), page.end)

    async def _completed(self, page: Iterable[Dirent], lacking: list[int]) -> tuple[Dirent, ...]:
        """The entries, those at `lacking` with attributes; without them stays what was removed meanwhile."""
        entries, mdc = list(page), self.connections.mdc
        questions = [mdc.getattr(entries[place].fid, cred=self.cred) for place in lacking]
        for place, attr in zip(lacking, await self.connections.tasks.outcomes(questions, "getattr"), strict=True):
            if not isinstance(attr, OpError):
                entries[place] = entries[place]._replace(attr=attr)
            elif attr.errno != errno.ENOENT:
                raise attr
        return tuple(entries)

    async def _full_many(self, attrs: Sequence[Attr | None], patient: bool) -> list[Stat | None]:
        """`_full` for many, in few requests; None where there is nothing (any more), or unless `patient` nothing to be learnt."""
        connections = self.connections
        if not patient:
            reachable = connections.lov.reachable
            attrs = [attr if attr is None or attr.layout is None or reachable(attr.layout) else None for attr in attrs]
        striped = [attr for attr in attrs if attr is not None and attr.layout is not None]
        layouts = [attr.layout for attr in striped if attr.layout is not None]
        found = await connections.lov.getattr_many(layouts, cred=self.cred) if layouts else []
        objects_of = {attr.fid: objects for attr, objects in zip(striped, found, strict=True)}
        result: list[Stat | None] = []
        for attr in attrs:
            objects = objects_of.get(attr.fid) if attr is not None else None
            if attr is None:
                result.append(None)
            elif isinstance(objects, OpError):
                if patient:
                    await self._expect_gone(attr.fid, objects)
                result.append(None)
            else:
                mtime, atime = connections.open_files.pending_times(attr.fid)
                result.append(merge(attr, objects, mtime=mtime, atime=atime))
        return result

    async def _expect_gone(self, fid: Fid, error: OpError) -> None:
        """Objects that are not there: either their file was removed since we asked the MDT, or they are lost (EIO)."""
        if error.errno != errno.ESTALE:
            raise error
        try:
            await self.connections.mdc.getattr(fid, cred=self.cred)
        except OpError as gone:
            if gone.errno == errno.ENOENT:
                return
            raise
        raise OpError(errno.EIO, error.what) from None

    # open files -------------------------------------------------------------------------------------------------

    async def open_at(
        self, parent: Fid, name: bytes, flags: int = os.O_RDONLY, mode: int = 0o666, hint: StripeHint | None = None, *,
        umask: int = 0,
    ) -> File:  # fmt: skip
        """`open` in a directory.  ELOOP: it is a symlink"""
        if flags & os.O_CREAT:
            check_name(name)
        check_length(name)
        wire = open_flags(flags)
        cache = self.connections.names
        if wire == mdt.OPEN_READ and cache is not None:
            file = self._open_here(cache.look(parent, name, self.cred, STAT), flags)
            if file is not None:
                return file
        return await self._open(parent, name, NO_FID, wire, flags, mode, hint, umask)

    async def open_tmpfile(
        self, parent: Fid, flags: int = os.O_RDWR, mode: int = 0o600, hint: StripeHint | None = None, *, umask: int = 0
    ) -> File:
        """A new file without a name, as of O_TMPFILE in the directory `parent`; without O_EXCL `link_at` may give it one.

        EINVAL unless for writing, EACCES, ENOTDIR, ENOENT
        """
        wire = open_flags(flags & ~(os.O_CREAT | os.O_TMPFILE | os.O_TRUNC))
        if not wire & mdt.OPEN_WRITE:
            raise OpError(errno.EINVAL, "a file without a name is opened for writing")
        wire |= mdt.OPEN_CREATE | mdt.OPEN_TMPFILE | (mdt.OPEN_EXCL if flags & os.O_EXCL else 0)
        make = partial(self._open, parent, b"", NO_FID, wire, flags & ~os.O_TRUNC, mode, hint, umask)
        try:
            return await make()
        except OpError as error:
            if error.errno != errno.ESTALE:
                raise
        return await make()  # it was made, but the answer was lost with the MDT, which then did not know that it was open

    async def open_fid(self, fid: Fid, flags: int = os.O_RDONLY) -> File:
        """Open `fid`."""
        wire = open_flags(flags) & ~(mdt.OPEN_CREATE | mdt.OPEN_EXCL)
        cache = self.connections.names
        if wire == mdt.OPEN_READ and cache is not None:
            file = self._open_here(cache.find(fid, STAT), flags)
            if file is not None:
                return file
        return await self._open(NO_FID, b"", fid, wire | mdt.OPEN_BY_FID, flags, 0, None)

    def _open_here(self, known: Known | None, flags: int) -> File | None:
        """Open a file to be read without asking the MDT, if that is possible."""
        local_opens = self.connections.local_opens
        if known is None or local_opens is None:
            return None
        local = local_opens.open(known, self.cred)
        return File(self, local.number, known.attr, flags, local=local) if local is not None else None

    async def _open(
        self, parent: Fid, name: bytes, fid: Fid, wire: int, flags: int, mode: int, hint: StripeHint | None, umask: int = 0
    ) -> File:
        connections = self.connections
        time = connections.time()
        # If our caller goes away while the MDT opens the file, nobody would know the handle: it is closed again.
        handle, reply = await connections.mdc.open(
            parent, name, fid, wire, stat.S_IFREG | mode & 0o7777, time, cred=self.cred, hint=hint, umask=umask,
            unclaimed=self._give_back,
        )  # fmt: skip
        created = bool(reply.disposition & mdt.DISP_OPEN_CREATE)
        file = File(self, handle, reply.attr, flags, created)
        if flags & os.O_TRUNC and not created:
            connections.open_files.forget_times(file.fid, mtime=True, atime=False)
            try:
                await self._truncate_objects(reply.attr, 0, time)
            except BaseException:
                file.abandon()
                raise
        return file

    def _give_back(self, handle: int, reply: OpenReply) -> None:
        self.connections.close_later(handle, reply.attr.fid)

    # extended attributes ----------------------------------------------------------------------------------------

    async def getxattr_fid(self, fid: Fid, name: bytes) -> bytes:
        """`getxattr` of a FID. What is known, or known not to be there, costs no request.

        ENODATA, ENOTSUP, EACCES, ERANGE a name that is too long
        """
        mdc = self.connections.mdc
        xattrs = await self._xattrs(fid)
        if xattrs is None:
            return await mdc.getxattr(fid, name, cred=self.cred)
        known, rows = xattrs
        require_xattr(known, name, self.cred, write=False)
        value = (known.acl or None) if name == acl.ACCESS else rows.get(name)
        if value is None:
            raise OpError(errno.ENODATA)
        return value

    def has_no_xattr(self, fid: Fid, name: bytes | None = None) -> bool:
        """Do locks that are held say that `getxattr` (without a name: `listxattr`) would find none?"""
        cache = self.connections.names
        known = cache.find(fid, PERM | XATTR) if cache is not None else None
        if known is None or known.attr.xattrs:
            return False
        touch(known)
        if name is not None:
            require_xattr(known.attr, name, self.cred, write=False)
        return not (known.attr.acl and name in (None, acl.ACCESS))

    async def _xattrs(self, fid: Fid) -> tuple[Attr, dict[bytes, bytes]] | None:
        """Attributes of `fid` and its extended attributes, if both are known now; None: the MDT must answer."""
        cache = self.connections.names
        if cache is None:
            return None
        known = cache.find(fid, PERM | XATTR)
        if known is None:
            await self.connections.mdc.getattr(fid, cred=self.cred, need=PERM | XATTR)
            known = cache.find(fid, PERM | XATTR)
        if known is not None and known.attr.xattrs and known.xattrs is None:
            await self.connections.mdc.fetch_xattrs(fid, cred=self.cred)
            known = cache.find(fid, PERM | XATTR)
        if known is None or known.xattrs is TOO_MANY or (known.attr.xattrs and known.xattrs is None):
            return None
        touch(known)
        return known.attr, known.xattrs or {}

    async def setxattr_fid(self, fid: Fid, name: bytes, value: bytes | None, flags: int = 0) -> None:
        """`setxattr` of a FID; None removes."""
        if value is not None:
            if not isinstance(value, bytes):
                raise TypeError(f"an extended attribute's value is bytes, not {type(value).__name__}")
            if len(value) > limits.xattr_bytes_max:
                raise OpError(errno.E2BIG, f"a value of {len(value)} bytes")
        if flags & ~(mdt.XATTR_CREATE | mdt.XATTR_REPLACE):
            raise OpError(errno.EINVAL, f"xattr flags {flags:#x}")
        if name in (acl.ACCESS, acl.DEFAULT):
            acl.parse(value or b"")
        await self.connections.mdc.setxattr(fid, name, value, flags, self.connections.time(), cred=self.cred)

    async def listxattr_fid(self, fid: Fid) -> list[bytes]:
        """`listxattr` of a FID."""
        xattrs = await self._xattrs(fid)
        if xattrs is None:
            return list(await self.connections.mdc.listxattr(fid, cred=self.cred))
        known, rows = xattrs
        listed = [acl.ACCESS] if known.acl else []
        return listed + [name for name in rows if sees_xattr(name, self.cred)]

    # striping, identity, space ----------------------------------------------------------------------------------

    async def set_dir_stripe(self, fid: Fid, hint: StripeHint | None) -> None:
        """Set a directory's default striping; None goes back to the one it inherits."""
        await self.connections.mdc.set_dir_stripe(fid, hint, self.connections.time(), cred=self.cred)

    async def statfs(self) -> Statfs:
        """Space of all OSTs that answer, and files: of the MDT, but no more free ones than the OSTs have objects."""
        meta, osts = await self.statfs_targets()
        answers = [reply for _, reply in osts if reply is not None]
        files_free = meta.files_free
        if answers:
            files_free = min(files_free, sum(reply.files_free for reply in answers))
        return Statfs(
            sum(reply.bytes_total for reply in answers),
            sum(reply.bytes_free for reply in answers),
            sum(reply.bytes_available for reply in answers),
            meta.files_total - meta.files_free + files_free,
            files_free,
            limits.name_bytes_max,
        )

    async def statfs_targets(self) -> tuple[StatfsReply, list[tuple[int, StatfsReply | None]]]:
        """Space of the MDT, and of each OST by its index (None: it does not answer)."""
        return await self.connections.mdc.statfs(), await self.connections.lov.statfs()

    async def sync(self) -> None:
        """Return when everything done so far is durable on all servers."""
        await self.connections.lov.sync_all()
        await self.connections.mdc.sync()

    # resolution -------------------------------------------------------------------------------------------------

    async def _lookup(self, parent: Fid, name: bytes, need: int = LOOKUP) -> Attr:
        """Attributes of `name` in `parent`, of which `need` is what is looked at: the one place where names are looked up."""
        check_length(name)
        connections = self.connections
        cache = connections.names
        if cache is not None:
            known = cache.look(parent, name, self.cred, need)
            if known is None and need == STAT:
                if await self._fetch_ahead(cache, parent, name) or await self._fetch_around(cache, parent, name):
                    known = cache.look(parent, name, self.cred, need)
            if known is not None:
                return known.attr
        attr = await connections.mdc.lookup(parent, name, cred=self.cred, need=need)
        if cache is not None and need == STAT and cache.scattered.part_max:
            cache.scattered.found(parent)
        return attr

    async def _fetch_ahead(self, cache: AttrCache, parent: Fid, name: bytes) -> bool:
        """If somebody goes through a listing, asking for each file: fetch what comes next, `name` first."""
        ahead = cache.listings.ahead(cache.files.get(parent), name)
        if ahead is None:
            return False
        listing, cookie, count = ahead
        if count:
            listing.fetch = self.connections.tasks.spawn(self.readdir_page(parent, cookie, count, patient=False), "statahead")
        if listing.fetch is None or listing.fetch.done():
            return False
        await asyncio.wait([listing.fetch])
        return True

    async def _fetch_around(self, cache: AttrCache, parent: Fid, name: bytes) -> bool:
        """If files of a directory are asked for in any order: fetch a part of it that begins with `name`."""
        cookie = mdt.name_cookie(name)
        part = cache.scattered.part(parent, cookie)
        if part is None:
            return False
        walk, count = part
        walk.busy = True
        try:
            entries, end = await self.readdir_page(parent, cookie - 1, count, ask=True, patient=False)
        except OpError:
            return False  # and `busy` for good: he may not list it, or it is gone
        except asyncio.CancelledError:
            walk.busy = False
            raise
        walk.busy = False
        walk.fetched(cookie, mdt.COOKIE_MAX if end else entries[-1].cookie, len(entries))
        if entries and entries[0].name == name:
            walk.earned += EARNED
            return True
        walk.earned -= EARNED  # who asks for what is not there gains nothing
        return False


def open_flags(flags: int) -> int:
    """OPEN_* for os.O_*. Who asks for all of O_ACCMODE may do nothing, but needs the right to read and write, as on Linux."""
    both = mdt.OPEN_READ | mdt.OPEN_WRITE
    wire = (mdt.OPEN_READ, mdt.OPEN_WRITE, both, both)[flags & os.O_ACCMODE]
    for theirs, ours in _OPEN_FLAGS:
        if flags & theirs == theirs:
            wire |= ours
    return wire


_OPEN_FLAGS = (
    (os.O_CREAT, mdt.OPEN_CREATE),
    (os.O_CREAT | os.O_EXCL, mdt.OPEN_EXCL),
    (os.O_TRUNC, mdt.OPEN_TRUNC),
    (os.O_APPEND, mdt.OPEN_APPEND),
    (os.O_DIRECTORY, mdt.OPEN_DIRECTORY),
)


def _storable(time: int | None) -> int | None:
    """The nearest time that an inode can hold.  Source: timestamp_truncate(), fs/inode.c"""
    return time if time is None or time == NOW else min(max(time, _TIME_MIN), _TIME_MAX)
