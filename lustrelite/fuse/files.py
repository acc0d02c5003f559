"""What the kernel asks about open files, on client/file.py. The handle of the protocol is that of the MDT.

The kernel keeps pages of files (inodes.py says for how long), so it opens them with KEEP_CACHE; without locks, or with
O_DIRECT or O_APPEND, everything comes here: an append of up to 1 MiB is atomic for all nodes. RELEASE is answered
before the close has gone to the MDT: nobody waits for that, and what was lost is told at FLUSH, which is close(2).
Reads change the access time as `relatime` has it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat as modes
from typing import TYPE_CHECKING, Any

from lustrelite.client.attributes import merge
from lustrelite.client.by_fid import FidOperations
from lustrelite.client.file import EOF, File
from lustrelite.errors import OpError
from lustrelite.fuse import kernel
from lustrelite.fuse.inodes import Node
from lustrelite.fuse.kernel import fopen, op
from lustrelite.fuse.session import SIGNAL_LOOK_S, Answer, Handler, Later, Request, is_exiting
from lustrelite.permission import APPEND_ONLY, CAPABILITY
from lustrelite.wire.ldlm import PERM, PR, XATTR

if TYPE_CHECKING:
    from lustrelite.fuse.mount import Mount

TRIES = 3  # to read something that is not overtaken by the loss of its lock
FMODE_EXEC = 0x20  # in the flags of OPEN: by execve(2), which needs no right to read
BLOCK_BYTES = 1 << 20  # whole ones of this the cache gives up when the kernel has them
COPY_BYTES_MAX = 16 << 20  # at once, so that it can be interrupted
RELATIME_NS = 24 * 3600 * 1_000_000_000
_OPERATIONS = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}


class Files:
    """Handlers of one mount."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.inodes = mount.inodes
        self.handles: dict[int, File] = {}
        self.handlers: dict[int, Handler] = {
            op.OPEN: self.open, op.CREATE: self.create, op.READ: self.read, op.WRITE: self.write, op.FLUSH: self.flush,
            op.RELEASE: self.release, op.FSYNC: self.fsync, op.GETLK: self.getlk, op.SETLK: self.setlk,
            op.SETLKW: self.setlk, op.TMPFILE: self.create, op.FALLOCATE: self.fallocate, op.LSEEK: self.lseek,
            op.COPY_FILE_RANGE: self.copy_file_range, op.COPY_FILE_RANGE_64: self.copy_file_range,
        }  # fmt: skip

    def file(self, handle: int) -> File:
        """An open file."""
        file = self.handles.get(handle)
        if file is None:
            raise OpError(errno.EBADF, f"handle {handle}")
        return file

    # opening ------------------------------------------------------------------------------------------------------

    async def open(self, request: Request, body: memoryview) -> Answer:
        """OPEN"""
        (flags, _), _, _ = kernel.decode(op.OPEN, body)
        node = self.mount.names.node(request.node)
        view: FidOperations = self.mount.fs if flags & FMODE_EXEC else self.mount.callers.view(request)
        with self.mount.names.gone_is_stale(node):
            file = await view.open_fid(node.fid, flags & ~(os.O_CREAT | os.O_EXCL))
        return self._opened(node, file)

    async def create(self, request: Request, body: memoryview) -> Answer:
        """CREATE, TMPFILE"""
        (flags, mode, umask, _), (name,), _ = kernel.decode(request.opcode, body)
        parent, view = self.mount.names.node(request.node), self.mount.callers.view(request)
        if request.opcode == op.TMPFILE:
            file = await view.open_tmpfile(parent.fid, flags, mode & 0o7777, umask=umask)
        else:
            opening = view.open_at(parent.fid, name, flags, mode & 0o7777, umask=umask)
            file = await self.mount.names.changing(request, parent, opening)
        try:
            stat = merge(file.opened_as, None) if file.created else await file.fstat()
        except BaseException:
            file.abandon()
            raise
        entry = self.mount.names.entry(request.pid, parent, name, stat)
        return entry + self._opened(self.inodes.of(file.fid), file)

    def _opened(self, node: Node, file: File) -> bytes:
        self.handles[file.handle] = file
        file.gives_turns = False
        node.opens += 1
        if file.layout is not None:
            self.inodes.watch(node, file.layout)
        told = not file.flags & os.O_NOATIME and self._wants_atime(file) and file.flags & os.O_ACCMODE != os.O_WRONLY
        if not told:
            file.flags |= os.O_NOATIME
        # What is appended has its place from us, and comes in one piece; through its pages the kernel would cut it at them.
        cached = self.mount.caches and not file.flags & os.O_APPEND
        flags = (0 if told else fopen.KEEP_CACHE) if cached else fopen.DIRECT_IO  # what the kernel has is not asked for
        return kernel.open_out(file.handle, flags)

    def _wants_atime(self, file: File) -> bool:
        attr, connections = file.opened_as, self.mount.fs.connections
        if self.mount.options.noatime:
            return False
        written, read = connections.open_files.pending_times(file.fid)  # of which the MDT has not heard
        atime = max(attr.atime, read)
        old = atime <= max(attr.mtime, attr.ctime, written)
        return old or self.mount.options.strictatime or atime + RELATIME_NS < connections.time()

    def flush(self, request: Request, body: memoryview) -> Answer | Later:
        """FLUSH: a descriptor is closed"""
        (handle, _, _, owner), _, _ = kernel.decode(op.FLUSH, body)
        file = self.file(handle)
        releasing = file.let_go(owner)
        if releasing is not None:
            return self._flush(request, file, releasing)
        file.say_lost()
        return None

    async def _flush(self, request: Request, file: File, releasing: asyncio.Task[Any]) -> Answer:
        while not releasing.done() and not is_exiting(request.pid):  # the kernel does not tell of that
            await asyncio.wait({releasing}, timeout=SIGNAL_LOOK_S)
        file.say_lost()
        return None

    def release(self, request: Request, body: memoryview) -> Answer:
        """RELEASE: the last descriptor of an open file was closed"""
        (handle, _, _, _), _, _ = kernel.decode(op.RELEASE, body)
        file = self.handles.pop(handle, None)
        if file is not None:
            file.close_later()
            node = self.inodes.fids.get(file.fid)
            if node is not None:
                node.opens -= 1
                self.inodes.tidy(node)
        return None

    # data ---------------------------------------------------------------------------------------------------------

    async def read(self, request: Request, body: memoryview) -> Answer:
        """READ"""
        (handle, offset, size, _, _, _, _), _, _ = kernel.decode(op.READ, body)
        file = self.file(handle)
        node = self.inodes.of(file.fid)
        tries = TRIES
        try:
            while True:
                withdrawn = node.begin(request, offset, offset + size)
                if node.mapped and file.writable:
                    await file.lock_to_write(offset, size)
                data = await file.pread_views(size, offset)
                if file.layout is not None:
                    self.inodes.watch(node, file.layout)
                if not node.overtaken(withdrawn):
                    if size >= BLOCK_BYTES and not file.flags & os.O_APPEND:  # the kernel has it when this turn is over
                        asyncio.get_running_loop().call_soon(file.pass_on, offset, size)
                    return data
                tries -= 1
                if not tries:
                    self.inodes.drop_later(node, offset, offset + size)
                    return data
        finally:
            node.end(request)

    async def write(self, request: Request, body: memoryview) -> Answer:
        """WRITE"""
        (handle, offset, size, flags, _, opened, _), _, _ = kernel.decode(op.WRITE, body)
        file, data = self.file(handle), request.data
        if data is None or len(data) != size:
            raise kernel.Malformed(f"WRITE of {size} bytes with {len(data or b'')}")
        node = self.inodes.of(file.fid)
        if flags & kernel.WRITE_KILL_SUIDGID or (file.flags & (os.O_APPEND | os.O_DIRECT) and not flags & kernel.WRITE_CACHE):
            await self._drop_privileges(request, file, keeps_set_id=not flags & kernel.WRITE_KILL_SUIDGID)
        if flags & kernel.WRITE_CACHE:
            node.mapped = True
            if file.write_mapped(data, offset, node.leaving):
                return kernel.write_out(size)
        withdrawn = node.begin(request, offset, offset + size)
        try:
            append = not flags & kernel.WRITE_CACHE and bool(
                opened & os.O_APPEND or file.opened_as.flags & APPEND_ONLY  # as it is now: F_SETFL, fcntl(2)
            )
            place = offset
            if append:
                place = await file.append(data)
            else:
                await file.pwrite(data, offset, here=True)
            await self.mount.names.until_told(file.fid)
            if file.layout is not None:
                self.inodes.watch(node, file.layout)
            if place != offset and not file.flags & os.O_APPEND:  # else it has no pages of it
                await self.inodes.drop_with_answer(node, offset, offset + size)
            elif node.overtaken(withdrawn):
                self.inodes.drop_later(node, offset, offset + size)
        finally:
            node.end(request)
        return kernel.write_out(size)

    async def _drop_privileges(self, request: Request, file: File, *, keeps_set_id: bool) -> None:
        """Somebody changes the data: the file loses its capabilities, and its set-id bits unless he may keep those (root).

        The open file knows only of those that it was opened with. The kernel sees to it itself where pages are written.
        """
        attr = await self.mount.fs.attributes(file.fid, PERM | XATTR)
        lost = not keeps_set_id and attr.mode & (modes.S_ISUID | modes.S_ISGID)
        if lost or (attr.xattrs and await self._has_capability(file)):
            await file.drop_privileges(self.mount.callers.view(request).cred)

    async def _has_capability(self, file: File) -> bool:
        try:
            await self.mount.fs.getxattr_fid(file.fid, CAPABILITY)
        except OpError as error:
            if error.errno not in (errno.ENODATA, errno.ENOENT):  # ENOENT: it has no name any more
                raise
            return False
        return True

    async def fallocate(self, request: Request, body: memoryview) -> Answer:
        """FALLOCATE"""
        (handle, offset, length, mode, _), _, _ = kernel.decode(op.FALLOCATE, body)
        file = self.file(handle)
        await self._drop_privileges(request, file, keeps_set_id=not request.uid)
        await file.fallocate(mode, offset, length)
        return None

    async def lseek(self, request: Request, body: memoryview) -> Answer:
        """LSEEK: SEEK_DATA and SEEK_HOLE"""
        (handle, offset, whence, _), _, _ = kernel.decode(op.LSEEK, body)
        return kernel.offset_out(await self.file(handle).seek(offset, whence))

    async def copy_file_range(self, request: Request, body: memoryview) -> Answer:
        """COPY_FILE_RANGE"""
        (handle, offset, _, target, target_offset, length, _), _, _ = kernel.decode(request.opcode, body)
        source, to = self.file(handle), self.file(target)
        await self._drop_privileges(request, to, keeps_set_id=not request.uid)
        length = min(length, COPY_BYTES_MAX)
        try:
            done = await source.copy_range(offset, to, target_offset, length)
        except BaseException:  # the kernel keeps its pages of what was copied before
            await self.inodes.drop_with_answer(self.inodes.of(to.fid), target_offset, target_offset + length)
            raise
        return kernel.write_out(done)  # the low half of an u64, if the kernel wants one

    async def fsync(self, request: Request, body: memoryview) -> Answer:
        """FSYNC"""
        (handle, flags, _), _, _ = kernel.decode(op.FSYNC, body)
        await self.file(handle).fsync(bool(flags & kernel.FSYNC_FDATASYNC))
        return None

    # record locks -------------------------------------------------------------------------------------------------

    async def getlk(self, request: Request, body: memoryview) -> Answer:
        """GETLK"""
        (handle, owner, start, end, kind, pid, _, _), _, _ = kernel.decode(op.GETLK, body)
        found = await self.file(handle).getlk(_operation(kind), start, _length(start, end), owner=owner, pid=pid)
        if found is None:
            return kernel.lock_out(0, 0, fcntl.F_UNLCK, 0)
        return kernel.lock_out(found.start, found.end, fcntl.F_RDLCK if found.mode == PR else fcntl.F_WRLCK, found.pid)

    async def setlk(self, request: Request, body: memoryview) -> Answer:
        """SETLK, SETLKW"""
        (handle, owner, start, end, kind, pid, flags, _), _, _ = kernel.decode(request.opcode, body)
        file, operation = self.file(handle), _operation(kind)
        if request.opcode == op.SETLK:
            operation |= fcntl.LOCK_NB
        if flags & kernel.LK_FLOCK:
            await file.flock(operation)
        else:
            await file.lockf(operation, start, _length(start, end), owner=owner, pid=pid)
        return None


def _operation(kind: int) -> int:
    operation = _OPERATIONS.get(kind)
    if operation is None:
        raise OpError(errno.EINVAL, f"lock type {kind}")
    return operation


def _length(start: int, end: int) -> int:
    return 0 if end >= EOF else end - start + 1
