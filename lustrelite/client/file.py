"""An open file: reads and writes by offset or at a position, until its close has told the MDT what was done.

The handle is the xid of the open request, known to both sides whatever happened to the reply. Data goes straight to
the OSTs by the layout that came with the open; the MDT hears mtime and atime at close. Cancelling a caller never leaves
a handle behind: close runs to its end.

If the mount caches, a write is answered when the data is in the cache, under a lock (locked_io.py), and written back
later, at the latest by `fsync`; close does not wait for that. If it could not be written back after all, the next
write, fsync or close of every file that wrote it says so, once. O_SYNC, O_DSYNC and O_DIRECT write through; O_DIRECT
reads past the cache, too. Without caching a write is answered when the OST has committed it, and nothing is atomic
towards other clients.

What is cached is read and written without a suspension; every now and then the loop gets a turn all the same, or this
client would not hear who else wants its locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections.abc import Container, Iterator, Sequence
from stat import S_ISDIR, S_ISGID, S_ISREG, S_ISUID, S_IXGRP
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lustrelite.client.attributes import Stat
from lustrelite.client.flocks import FileLock
from lustrelite.client.read_ahead import ReadAhead
from lustrelite.client.tasks import results
from lustrelite.errors import Evicted, OpError
from lustrelite.ids import Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.permission import APPEND_ONLY, IMMUTABLE, in_group
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import NL, PR, PW, UPDATE
from lustrelite.wire.mdt import SET_MTIME, SET_SIZE, Attr, Layout
from lustrelite.wire.message import Cred
from lustrelite.wire.ost import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from lustrelite.client.by_fid import FidOperations
    from lustrelite.client.local_opens import LocalOpen
    from lustrelite.client.locked_io import LockedIo

EOF = limits.file_bytes_max
_READ_AT_ONCE_MAX = 64 << 20  # a read of more first asks how much there is
_TURN_BYTES = 1 << 20  # moved in one turn of the loop, more or less
_CALL_BYTES = 8192  # what a call takes, in the time of bytes that are moved
_DURABLE = os.O_DSYNC | os.O_SYNC
_FALLOC_MODES = frozenset(
    (0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE)
)
_COPY_BYTES = 4 << 20  # in one step


class File:
    """An open file or directory; an async context manager that closes it."""

    def __init__(
        self, fs: FidOperations, handle: int, attr: Attr, flags: int, created: bool = False, *, local: LocalOpen | None = None
    ) -> None:
        self.fs = fs
        self.handle = handle  # its name here, for ever; the MDT's, unless `_local`
        self._local = local
        self.fid: Fid = attr.fid
        self.flags = flags  # os.O_*
        self.layout: Layout | None = attr.layout
        self.position = 0
        self.closed = False
        self.mtime = 0  # time of the last write here, 0 if the MDT need not hear of it
        self.atime = 0
        self.opened_as = attr
        self.created = created  # by this open
        self._size = 0  # highest end of a write here: a hint for the MDT
        self._position_lock = asyncio.Lock()
        self.lock_owner = 0  # of lockf(): who this is, among those who share the mount
        self._lock_owners: dict[int, None] = {}  # who has locked records through this open file
        self._lock_number = 0  # of flock(): this open file
        access = flags & os.O_ACCMODE
        self.readable = access in (os.O_RDONLY, os.O_RDWR)
        self.writable = access in (os.O_WRONLY, os.O_RDWR)
        set_id = attr.mode & S_ISUID or (
            attr.mode & S_ISGID and (attr.mode & S_IXGRP or not in_group(fs.cred, attr.gid))
        )
        self._drop_set_id = bool(S_ISREG(attr.mode) and set_id and fs.cred[0])
        self._wrote = False
        self._lost = 0  # errno: what was written could not be written back, and who has this open was not told yet
        self._lost_here = False  # what was written here: a write or close says so, too
        self._inode = fs.connections.open_files.add(self)
        self._locked = fs.connections.lov.locked  # None: the mount does not cache
        self._direct = bool(flags & os.O_DIRECT)
        self._through = bool(flags & _DURABLE) or self._direct
        self._cached = self._locked if self.readable and not self._direct and S_ISREG(attr.mode) else None  # to read
        self._ahead = ReadAhead()
        self._reading = 0  # bytes
        self._turn = 0  # bytes moved since the loop last had a turn
        self.gives_turns = True  # False: the loop calls us for each of a few requests, and has its turns
        self._durable_name = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # reading ----------------------------------------------------------------------------------------------------

    async def pread_into(self, buffer: Buffer, offset: int) -> int:
        """Read into `buffer` from `offset`; returns how many bytes, fewer than it holds only at the end of the file.

        Data lands in `buffer` without a copy. It may not be used before this returns.  EBADF, EISDIR, EINVAL, EIO
        """
        try:
            view = memoryview(buffer).cast("B")
        except TypeError:
            raise TypeError(f"a writable contiguous buffer is needed, not {type(buffer).__name__}") from None
        if view.readonly:
            raise TypeError("the buffer to read into is read-only")
        self._check(self.readable, offset)
        layout = await self._current_layout()
        if offset + len(view) > limits.file_bytes_max:
            view = view[: max(limits.file_bytes_max - offset, 0)]
        if layout is None or not len(view):
            return 0
        self._reading += len(view)  # until the caller can ask for more
        try:
            return await self._read_into(layout, view, offset)
        finally:
            self._reading -= len(view)

    async def _read_into(self, layout: Layout, view: memoryview, offset: int) -> int:
        done: int | None = None
        connections = self.fs.connections
        if self._cached is not None:
            done = self._cached.read_now(layout, view, offset)
            if not offset:
                self._began(found=done is not None)
        if done is None:
            done = await connections.lov.read_into(
                layout, view, offset, cred=self.fs.cred, direct=self._direct, past=self._reads_ahead_himself
            )
        if self._cached is not None and done:
            if not self._reads_ahead_himself():
                self._cached.read_ahead(layout, self._ahead, offset, done, self.fs.cred)
            if self._moved(done):
                await asyncio.sleep(0)
        if not self.flags & os.O_NOATIME:
            self.atime = connections.time()
        return done

    def _began(self, *, found: bool) -> None:
        """The file's beginning is read: other files, too?"""
        ahead = self.fs.connections.files_ahead
        if found:
            ahead.found(self.fid)
        else:
            ahead.missed(self.fid, self.fs.cred)

    def _reads_ahead_himself(self) -> bool:
        """Does the caller have so much under way that he needs neither read-ahead nor cache?"""
        return self._reading >= self.fs.connections.node.tunables.read_past_cache_bytes

    def _moved(self, size: int) -> bool:
        """So much was moved without a suspension: does the loop need a turn?"""
        self._turn += size + _CALL_BYTES
        if self._turn < _TURN_BYTES or not self.gives_turns:
            return False
        self._turn = 0
        return True

    async def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file.

        A negative `size` is all that is left.
        """
        if not isinstance(size, int):
            raise TypeError(f"a size is an int, not {type(size).__name__}")
        if self._cached is not None and size > 0 and type(offset) is int and offset >= 0:
            data = self._pread_now(self._cached, size, offset)
            if data is not None:
                if self._moved(size):
                    await asyncio.sleep(0)
                return data
        self._check(self.readable, offset)
        if size < 0 or size > _READ_AT_ONCE_MAX:
            left = max(await self._size_to_read() - offset, 0)
            size = left if size < 0 else min(size, left)
        buffer = bytearray(size)
        done = await self.pread_into(buffer, offset)
        return bytes(memoryview(buffer)[:done])

    async def pread_views(self, size: int, offset: int) -> Sequence[memoryview]:
        """The same without a copy: where the bytes lie. That is good until the loop's next turn.

        For callers whom the loop calls: what is cached is there without a suspension, however much it is.
        """
        self._check(self.readable, offset)
        layout = await self._current_layout()
        if self._cached is None or layout is None or size <= 0 or offset + size > limits.file_bytes_max:
            return (memoryview(await self.pread(size, offset)),)
        cached, cred = self._cached, self.fs.cred
        may = cached.may_read(layout, offset, size)
        views = cached.views_now(layout, offset, size) if may else None
        if may:  # what comes next is on its way together with this
            cached.read_ahead(layout, self._ahead, offset, size, cred)
        if not offset:
            self._began(found=views is not None)
        if views is None:
            views = await cached.read_views(layout, offset, size, cred)
        if not may:
            cached.read_ahead(layout, self._ahead, offset, size, cred)
        if not self.flags & os.O_NOATIME:
            self.atime = self.fs.connections.time()
        return views

    def pass_on(self, offset: int, size: int) -> None:
        """Who has read this keeps it: it need not stay here."""
        if self._cached is not None and self.layout is not None:
            self._cached.pass_on(self.layout, offset, size)

    async def _size_to_read(self) -> int:
        if self._locked is None:
            return (await self.fstat()).size
        layout = await self._current_layout()
        return await self._locked.size_to_read(layout) if layout is not None else 0

    def _pread_now(self, cached: LockedIo, size: int, offset: int) -> bytes | None:
        """All of it from the cache, and nothing to be read ahead; else None."""
        layout, ahead = self.layout, self._ahead
        end = offset + size
        if layout is None or self.closed or ahead.strided or (offset == ahead.expected and end >= ahead.trigger):
            return None
        data = cached.read_bytes(layout, offset, size)
        if data is not None:
            ahead.expected = end
            if not self.flags & os.O_NOATIME:
                self.atime = self.fs.connections.time()
        return data

    async def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes from the position, which moves on; all that is left without `size`."""
        async with self._position_lock:
            data = await self.pread(size, self.position)
            self.position += len(data)
            return data

    # writing ----------------------------------------------------------------------------------------------------

    async def pwrite(self, data: Buffer, offset: int, *, here: bool = False) -> int:
        """Write all of `data` at `offset` (as on Linux at the end of the file if opened with O_APPEND, unless `here`).

        `data` may not change until this returns, and never again if the caller is cancelled: it may still be sent.
        EBADF, EFBIG, ENOSPC, EINVAL, EIO
        """
        return (await self._write(data, offset, append=not here and self._appends))[0]

    async def append(self, data: Buffer) -> int:
        """Write all of `data` at the end of the file; returns where that was. As pwrite in all else."""
        return (await self._write(data, 0, append=True))[1] - memoryview(data).nbytes

    def write_mapped(self, data: memoryview, offset: int, leaving: Container[ClientLock]) -> bool:
        """Pages of a mapping that are written back because their lock goes: under that lock, if it is in `leaving`."""
        if self._locked is None or self.layout is None or not self.writable:
            return False
        time = self.fs.connections.time()
        if not self._locked.write_under(leaving, self.layout, self.fid, data, offset, time):
            return False
        self.mtime, self._wrote = time, True
        self._size = max(self._size, offset + len(data))
        return True

    async def lock_to_write(self, offset: int, length: int) -> None:
        """Have the locks under which the range may be written."""
        layout = await self._current_layout()
        if self._locked is not None and layout is not None:
            await self._locked.lock_to_write(layout, offset, length)

    @property
    def _appends(self) -> bool:
        return bool(self.flags & os.O_APPEND)

    async def _write(self, data: Buffer, offset: int, *, append: bool) -> tuple[int, int]:
        if isinstance(data, str):
            raise TypeError("data is bytes, not str: encode it first")
        try:
            view = memoryview(data).cast("B")
        except TypeError:
            raise TypeError(f"data is contiguous bytes, not {type(data).__name__}") from None
        self._check(self.writable, offset)
        self.say_lost()
        if not len(view):
            return 0, offset
        layout = await self._current_layout()
        if layout is None:
            raise OpError(errno.EIO, "the file has no objects to write to")
        if self._drop_set_id:
            # A file that others than root change must not lend them its owner's rights any longer.
            await self.drop_privileges()
        if append:
            async with self._inode.append_lock:
                offset = await self._put(layout, view, -1)
        else:
            await self._put(layout, view, offset)
        return len(view), offset + len(view)

    async def _put(self, layout: Layout, view: memoryview, offset: int) -> int:
        """Write at `offset`, -1 is the file's end; returns where."""
        connections = self.fs.connections
        time = connections.time()
        self.mtime = time  # also if it fails: part of it may be written
        self._wrote = True
        through, keep = self._through, not self._direct
        locked = None if through else self._locked
        if offset < 0:
            offset = await connections.lov.append(
                layout, self.fid, view, time=time, cred=self.fs.cred, through=through, keep=keep
            )
        elif (
            locked is None
            or offset + len(view) > limits.object_bytes_max
            or not locked.write_now(layout, self.fid, view, offset, time)
        ):
            await connections.lov.write(
                layout, self.fid, view, offset, time=time, cred=self.fs.cred, through=through, keep=keep
            )
        if self._locked is not None and self.flags & _DURABLE and not self._durable_name:
            await connections.mdc.sync()  # data of a file that a crash could take is not durable
            self._durable_name = True
        if self._locked is not None and self._moved(len(view)):
            await asyncio.sleep(0)
        self._size = max(self._size, offset + len(view))
        return offset

    def write_failed(self, number: int) -> bool:
        """What was written is lost: the next fsync says so. Does the next write or close, too? They do if it was written here."""
        self._lost = self._lost or number
        self._lost_here = self._lost_here or self._wrote
        return self._wrote

    def attrs_lost(self, number: int) -> None:
        """What was changed of the file's attributes is lost: fsync, write or close say so, whoever has changed them."""
        self._lost, self._lost_here = self._lost or number, True

    def say_lost(self, *, asked: bool = False) -> None:
        """Raise, once, what became of data, or attributes, that were written here before; `asked`: or elsewhere.  EIO"""
        number = self._lost
        if number and (asked or self._lost_here):
            self._told()
            raise OpError(number, "what was written before is lost: it could not be written back")

    def _told(self) -> None:
        self._lost, self._lost_here = 0, False
        self.fs.connections.open_files.untold.pop(self.fid, None)

    async def write(self, data: Buffer) -> int:
        """Write all of `data` at the position, which moves on (with O_APPEND: to the end of what was written)."""
        async with self._position_lock:
            written, end = await self._write(data, self.position, append=self._appends)
            if written:
                self.position = end
            return written

    async def truncate(self, size: int) -> None:
        """Make the file exactly `size` bytes long.  EBADF unless open for writing, EINVAL, EFBIG"""
        self._check(self.writable, size)
        layout = await self._current_layout()
        time = await self._setattr_size(SET_MTIME)
        if layout is not None:
            await self.fs.connections.lov.truncate(layout, self.fid, size, time=time, cred=self.fs.cred)
        self._size = size

    async def punch(self, start: int, end: int) -> None:
        """Make a hole in [start, end); the size stays.  EBADF unless open for writing, EINVAL"""
        if start != end:
            await self.fallocate(FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, start, end - start)

    async def fallocate(self, mode: int, offset: int, length: int) -> None:
        """Find room for `length` bytes at `offset`, as fallocate(2): later writes there do not fail for want of it.

        `mode` is FALLOC_KEEP_SIZE, or with it FALLOC_PUNCH_HOLE, or FALLOC_ZERO_RANGE, or none of these.
        EBADF, EINVAL, ENODEV, EFBIG, ENOSPC; EOPNOTSUPP another mode, or the OSTs' disks cannot
        """
        if mode not in _FALLOC_MODES:
            raise OpError(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
        if not S_ISREG(self.opened_as.mode) and not S_ISDIR(self.opened_as.mode):
            raise OpError(errno.ENODEV)
        self._check(self.writable, offset)
        if length <= 0:
            raise OpError(errno.EINVAL, f"{length} bytes")
        if (await self.fs.attributes(self.fid, UPDATE)).flags & (IMMUTABLE | APPEND_ONLY if mode & ~FALLOC_KEEP_SIZE else IMMUTABLE):
            raise OpError(errno.EPERM, "nothing may be taken from the file")
        if offset + length > EOF:
            raise OpError(errno.EFBIG)
        self.say_lost()
        layout = await self._current_layout()
        if layout is None:
            raise OpError(errno.EIO, "the file has no objects")
        if self._drop_set_id:
            await self.drop_privileges()
        connections = self.fs.connections
        self.mtime = time = connections.time()
        self._wrote = True
        await connections.lov.fallocate(
            layout, self.fid, offset, offset + length, mode, time=time, cred=self.fs.cred
        )
        if not mode & FALLOC_KEEP_SIZE:
            self._size = max(self._size, offset + length)

    async def copy_range(self, offset: int, target: File, target_offset: int, length: int) -> int:
        """Copy up to `length` bytes from `offset` to `target`, as copy_file_range(2); returns how many there were.

        Never to the end of a file: whoever has it open to append is refused by the kernel.
        EBADF, EINVAL they overlap, and the errors of reading and writing
        """
        self._check(self.readable, offset)
        target._check(target.writable, target_offset)
        if length < 0 or (self.fid == target.fid and abs(offset - target_offset) < length):
            raise OpError(errno.EINVAL, "the ranges overlap")
        done = 0
        while done < length:
            data = await self.pread(min(_COPY_BYTES, length - done), offset + done)
            if not data:
                break
            await target.pwrite(data, target_offset + done, here=True)
            done += len(data)
        return done

    async def drop_privileges(self, cred: Cred | None = None) -> None:
        """Somebody (None: who opened it) writes to the file: it loses its capabilities, and its set-id bits unless that is root."""
        await self._setattr_size(0, cred)
        self._drop_set_id = False

    async def _setattr_size(self, also: int, cred: Cred | None = None) -> int:
        connections = self.fs.connections
        time = connections.time()
        await connections.mdc.setattr(
            self.fid, SET_SIZE | also, time, mtime=time, handle=self.mdt_handle, cred=cred or self.fs.cred
        )
        if also & SET_MTIME:
            connections.open_files.forget_times(self.fid, mtime=True, atime=False)
        return time

    # the rest ---------------------------------------------------------------------------------------------------

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position and return it. SEEK_SET, SEEK_CUR, SEEK_END, and of `find`.  EINVAL, ENXIO"""
        async with self._position_lock:
            if whence in (os.SEEK_DATA, os.SEEK_HOLE):
                offset = await self.find(offset, whence)
            elif whence == os.SEEK_CUR:
                offset += self.position
            elif whence == os.SEEK_END:
                offset += (await self.fstat()).size
            elif whence != os.SEEK_SET:
                raise OpError(errno.EINVAL, f"whence {whence}")
            if not 0 <= offset <= limits.file_bytes_max:
                raise OpError(errno.EINVAL, f"position {offset}")
            self.position = offset
            return offset

    async def find(self, offset: int, whence: int) -> int:
        """Where from `offset` on is the next data (SEEK_DATA), or hole (SEEK_HOLE)? A file ends in a hole.

        What is dirty here or elsewhere is written back first.  ENXIO: `offset` is behind the end, or there is no more
        data
        """
        self._check_open()
        if not S_ISREG(self.opened_as.mode) or whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OpError(errno.EINVAL, f"whence {whence}")
        layout = await self._current_layout()
        if layout is None or not 0 <= offset <= EOF:
            raise OpError(errno.ENXIO)
        return await self.fs.connections.lov.seek(layout, offset, whence, cred=self.fs.cred)

    def tell(self) -> int:
        """The position."""
        return self.position

    async def fstat(self) -> Stat:
        """Attributes of the file, also when it has no name any more.  ESTALE"""
        self._check_open()
        with _gone_is_stale():
            return await self.fs.stat_fid(self.fid)

    async def fsync(self, data_only: bool = False) -> None:
        """Return when the file's data is durable, and its name, layout and attributes too unless `data_only`.

        EIO: something that was written to it through this or another open file is lost; each hears of it once.
        """
        self._check_open()
        connections = self.fs.connections
        works = [connections.lov.sync(self.layout)] if self.layout is not None else []
        if not data_only and not (self._durable_name and connections.mdc.settled):
            works.append(connections.mdc.sync())
        outcomes = await connections.tasks.outcomes(works, "fsync")
        if self.layout is not None and isinstance(outcomes[0], OpError):
            self._told()  # this error says so, too
            raise outcomes[0]
        self.say_lost(asked=True)
        results(outcomes)
        if not data_only:
            self._durable_name = True

    # record locks -----------------------------------------------------------------------------------------------

    async def flock(self, operation: int) -> None:
        """Lock the whole file for this open file: fcntl.LOCK_SH, LOCK_EX, LOCK_UN, and LOCK_NB not to wait.

        EWOULDBLOCK, EINVAL. A change of the mode is no atomic one, as flock(2) says.
        """
        self._check_open()
        mode = _lock_mode(operation)
        if not self._lock_number:
            self._lock_number = self.fs.connections.flocks.new_owner()
        await self.fs.connections.flocks.lock(
            self.fid, self._lock_number, mode, 0, EOF, bsd=True, wait=not operation & fcntl.LOCK_NB
        )

    async def lockf(
        self, operation: int, start: int = 0, length: int = 0, *, owner: int | None = None, pid: int = 0
    ) -> None:
        """Lock `length` bytes from `start` (0: to the end of all files) for `owner`: fcntl(2)'s record locks.

        `operation` as in flock(); LOCK_SH needs a readable file, LOCK_EX a writable one. Without `owner` it is
        `lock_owner`, for which any close of the file releases everything.  EAGAIN, EDEADLK, EBADF, EINVAL
        """
        self._check_open()
        mode = _lock_mode(operation)
        if (mode == PR and not self.readable) or (mode == PW and not self.writable):
            raise OpError(errno.EBADF, "not opened for this")
        end = _lock_end(start, length)
        owner = self.lock_owner if owner is None else owner
        if mode != NL:
            self._lock_owners[owner] = None
        await self.fs.connections.flocks.lock(
            self.fid, owner, mode, start, end, bsd=False,
            wait=not operation & fcntl.LOCK_NB, pid=pid,
        )  # fmt: skip

    async def getlk(
        self, operation: int, start: int = 0, length: int = 0, *, owner: int | None = None, pid: int = 0
    ) -> FileLock | None:
        """A record lock of somebody else that is in the way of such a lockf(), or None."""
        self._check_open()
        mode = _lock_mode(operation)
        end = _lock_end(start, length)
        if mode == NL:
            raise OpError(errno.EINVAL, "what to lock?")
        return await self.fs.connections.flocks.test(
            self.fid, self.lock_owner if owner is None else owner, mode, start, end, pid=pid
        )

    def let_go(self, owner: int) -> asyncio.Task[Any] | None:
        """`owner` has closed a descriptor of it: the release of all records that he has locked, None if there are none."""
        self._lock_owners.pop(owner, None)
        flocks = self.fs.connections.flocks
        return flocks.release(self.fid, owner, bsd=False) if flocks.holds(self.fid, owner, bsd=False) else None

    async def close(self) -> None:
        """Give the handle back.

        Twice is harmless. Runs to its end even if the caller is cancelled. EIO: as of `fsync`
        """
        if not self._shut():
            return
        if not self._closed_here():
            await self.fs.connections.tasks.finish(self._close(self._unlock()), "close")
        elif self.atime:
            await self.fs.connections.late_closes.tell()
        self.say_lost()

    def close_later(self) -> None:
        """`close` in the background, a little later. What was lost nobody hears of any more."""
        if not self._shut() or self._closed_here():
            return
        connections = self.fs.connections
        if self._local is not None or self._locks_records() or connections.closed:
            connections.tasks.spawn(self._close(self._unlock()), "close")
        else:
            connections.late_closes.closed(self.handle, self.fid, self.mtime, self.atime)

    def _locks_records(self) -> bool:
        return bool(self._lock_number or self._lock_owners) or self.fs.connections.flocks.holds(self.fid, self.lock_owner, bsd=False)

    def _unlock(self) -> list[asyncio.Task[Any]]:
        """Release what is locked through it: a process's records went with its descriptor, an open file's did not (F_OFD_SETLK)."""
        if not self._locks_records():
            return []
        release = self.fs.connections.flocks.release
        tasks = [release(self.fid, owner, bsd=False) for owner in {self.lock_owner: None, **self._lock_owners}]
        if self._lock_number:
            tasks.append(release(self.fid, self._lock_number, bsd=True))
        return tasks

    def _closed_here(self) -> bool:
        """Close it now, if nobody need hear of it at once."""
        local = self._local
        if local is None or self._locks_records() or not local.opens.close_now(local):
            return False
        self._was_read(self.atime)
        return True

    def _was_read(self, atime: int) -> None:
        connections = self.fs.connections
        if atime and not connections.closed:
            connections.late_closes.read(self.fid, atime)

    def abandon(self) -> None:
        """Close in the background: nobody will have this file."""
        if self._shut() and not self.fs.connections.closed:
            self.fs.connections.tasks.spawn(self._give_back(0, 0, 0), "close")

    @property
    def mdt_handle(self) -> int:
        """What the MDT calls this open file; 0: it has not heard of it."""
        return self._local.handle if self._local is not None else self.handle

    def _shut(self) -> bool:
        """Let nothing come after this; False: it was closed before."""
        if self.closed:
            return False
        self.closed = True
        self.fs.connections.open_files.remove(self)
        return True

    async def _close(self, releases: list[asyncio.Task[Any]]) -> None:
        try:
            await self._give_back(self.atime, self.mtime, self._size)
            results([await release for release in releases])
        except OpError as error:
            # The MDT does not know the handle (any more): it is as good as closed. Data that is lost is told of by its OST.
            if error.errno != errno.ESTALE and not isinstance(error, Evicted):
                raise

    async def _give_back(self, atime: int, mtime: int, size: int) -> None:
        mdc, local = self.fs.connections.mdc, self._local
        if local is None:
            await mdc.close(self.handle, self.fid, atime, mtime, size, cred=self.fs.cred)
            return
        handle = await local.opens.close(local)
        if handle:
            await mdc.close(handle, self.fid, atime, 0, 0, cred=self.fs.cred)
        else:
            self._was_read(atime)

    async def _current_layout(self) -> Layout | None:
        if self.layout is None:
            # another opener may have given it its objects since
            with _gone_is_stale():
                attr = await self.fs.connections.mdc.getattr(self.fid, cred=self.fs.cred)
            self.layout = attr.layout
        return self.layout

    def _check_open(self) -> None:
        if self.closed:
            raise OpError(errno.EBADF, "the file is closed")

    def _check(self, allowed: bool, offset: int) -> None:
        if not isinstance(offset, int):
            raise TypeError(f"an offset is an int, not {type(offset).__name__}")
        self._check_open()
        if S_ISDIR(self.opened_as.mode):
            raise OpError(errno.EISDIR)
        if not allowed:
            raise OpError(errno.EBADF, "not opened for this")
        if not S_ISREG(self.opened_as.mode):
            raise OpError(errno.EINVAL, "not a regular file")
        if offset < 0:
            raise OpError(errno.EINVAL, f"offset {offset}")


@contextlib.contextmanager
def _gone_is_stale() -> Iterator[None]:
    """An open file that the MDT does not know: it has no name, and our open was lost with an eviction."""
    try:
        yield
    except OpError as error:
        if error.errno != errno.ENOENT:
            raise
        raise OpError(errno.ESTALE, "it was removed, and that we had it open was lost by an eviction") from None


_LOCK_MODES = {fcntl.LOCK_SH: PR, fcntl.LOCK_EX: PW, fcntl.LOCK_UN: NL}


def _lock_mode(operation: int) -> int:
    mode = _LOCK_MODES.get(operation & ~fcntl.LOCK_NB)
    if mode is None:
        raise OpError(errno.EINVAL, f"lock operation {operation}")
    return mode


def _lock_end(start: int, length: int) -> int:
    if start < 0 or length < 0 or start + length > EOF + 1:
        raise OpError(errno.EINVAL, f"{length} bytes from {start}")
    return start + length - 1 if length else EOF
