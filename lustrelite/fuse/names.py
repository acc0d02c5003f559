"""What the kernel asks about names and attributes, on FidOperations.

What only looks (LOOKUP, GETATTR, READDIR) acts as root: the kernel has checked search and read permission itself
(default_permissions), by attributes that it believes no longer than we may, and remembers who had opened a directory.
What changes anything acts as the caller, and the MDT decides.

A file that is asked for by its inode and has lost its last name is ESTALE: the kernel then walks the path once more
(walks.py). Unless it was removed from here: somebody may have it open (of regular files the MDT knows that) or be in it. A
directory keeps its attributes for who is in it, whoever has removed it: there is nothing in it, and no more links to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import stat as modes
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lustrelite.client.attributes import DirEntry, Stat, merge
from lustrelite.client.by_fid import NOW, FidOperations
from lustrelite.errors import OpError
from lustrelite.fuse import kernel
from lustrelite.fuse.inodes import Node, attributes
from lustrelite.fuse.kernel import Attributes, fattr, init, op
from lustrelite.fuse.listings import Listings
from lustrelite.fuse.session import Answer, Handler, Later, Request
from lustrelite.fuse.walks import Walks
from lustrelite.ids import Fid, fid_inode
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import PERM, XATTR

_T = TypeVar("_T")

if TYPE_CHECKING:
    from lustrelite.client.known import Known
    from lustrelite.fuse.mount import Mount
    from lustrelite.wire.mdt import Attr

DOT, DOTDOT = 1, 2  # cookies of "." and ".."; a name's is a hash of 63 bits
TOLD_S = 0.1  # the answer to a write waits so long for that to who asks for attributes
STATX_BTIME_AND_BASIC = 0xFFF
SET_ID = modes.S_ISUID | modes.S_ISGID
LABEL = b"security.selinux"
SELINUX = Path("/sys/fs/selinux")  # it is there if the kernel has labels
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_NS = 1_000_000_000


class _Question:
    """Somebody asks the servers for attributes."""

    __slots__ = ("after", "waiting")

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Stat | None]] = []  # for the answer, too
        self.after: list[asyncio.Future[None]] = []  # until all of them have it


class Names:
    """Handlers of one mount."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.inodes = mount.inodes
        self.fs = mount.fs
        self._asking: dict[Fid, _Question] = {}
        self._labels = SELINUX.is_dir()
        self._listings = Listings(mount.fs)
        self._walks = Walks(mount.fs)
        mount.session.on_stale = self._walks.stale
        self.handlers: dict[int, Handler] = {
            op.LOOKUP: self.lookup, op.GETATTR: self.getattr, op.STATX: self.statx, op.SETATTR: self.setattr,
            op.READLINK: self.readlink, op.SYMLINK: self.symlink, op.MKNOD: self.mknod, op.MKDIR: self.mkdir,
            op.UNLINK: self.unlink, op.RMDIR: self.rmdir, op.RENAME: self.rename, op.RENAME2: self.rename,
            op.LINK: self.link, op.READDIR: self.readdir, op.READDIRPLUS: self.readdirplus, op.STATFS: self.statfs,
            op.SETXATTR: self.setxattr, op.GETXATTR: self.getxattr, op.LISTXATTR: self.listxattr,
            op.REMOVEXATTR: self.removexattr, op.FSYNCDIR: self.fsyncdir,
        }  # fmt: skip

    def node(self, number: int) -> Node:
        """The inode that a request is about."""
        node = self.inodes.numbers.get(number)
        if node is None:
            raise OpError(errno.ESTALE, f"node {number}")
        return node

    @contextlib.contextmanager
    def gone_is_stale(self, node: Node) -> Iterator[None]:
        """What is done to an inode, not a name: ENOENT is that it is gone."""
        try:
            yield
        except OpError as error:
            if error.errno != errno.ENOENT or node.gone is not None:
                raise
            raise OpError(errno.ESTALE) from None

    # looking ------------------------------------------------------------------------------------------------------

    def entry(self, pid: int, parent: Node, name: bytes, stat: Stat, *, known: bool = False) -> bytes:
        """`name` was found, or made: the kernel knows the inode once more.

        `pid`: the thread that asks; `known`: locks say so in this turn.
        """
        _require_there(stat)
        inodes = self.inodes
        node = inodes.of(stat.fid)
        node.lookups += 1
        attr_s, stat = inodes.newest(node, stat, pid, known=known)
        return kernel.entry_out(node.number, inodes.name_s(node, parent.fid, name), attr_s, attributes(stat))

    def lookup(self, request: Request, body: memoryview) -> Answer | Later:
        """LOOKUP"""
        name, parent = kernel.name_of(body), self.node(request.node)
        stat = self.fs.stat_at_now(parent.fid, name)
        if stat is not None and not self._walks.again(request.pid):
            return self.entry(request.pid, parent, name, stat, known=True)
        return self._lookup(request.pid, parent, name)

    async def _lookup(self, pid: int, parent: Node, name: bytes) -> Answer:
        try:
            if self._walks.again(pid):
                stat = await self._walks.find(pid, parent.fid, name)
            else:
                stat = await self.fs.stat_at(parent.fid, name)
        except OpError as error:
            if error.errno == errno.ENOENT and name in (b".", b".."):
                raise OpError(errno.ESTALE) from None
            raise
        if stat.fid in self._asking:
            stat = await self._stat_together(self.inodes.of(stat.fid))
        return self.entry(pid, parent, name, stat)

    async def _stat_together(self, node: Node) -> Stat:
        """Attributes as they are after the last of all who wait for those of this node has asked; so all are answered at once.

        Of several answers that are on their way Linux takes the first, and throws away what was asked before it came.
        Source: fuse_change_attributes(), fs/fuse of Linux
        """
        while (question := self._asking.get(node.fid)) is not None:
            waiter: asyncio.Future[Stat | None] = asyncio.get_running_loop().create_future()
            question.waiting.append(waiter)
            if (found := await waiter) is not None:
                return found
        question = self._asking[node.fid] = _Question()
        waiting = question.waiting
        answer: Stat | None = None
        try:
            while answer is None:
                asked = len(waiting)
                stat = await self._stat(node)
                self.mount.session.receive()
                if asked == len(waiting):
                    answer = stat
            return answer
        finally:
            del self._asking[node.fid]
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(answer)  # None: ask yourselves
            for last in question.after:
                if not last.done():
                    last.set_result(None)

    async def until_told(self, fid: Fid) -> None:
        """Return when who waits for attributes of `fid` has them, or has to wait for long.

        Linux throws them away if it has the answer to a write first.  Source: fuse_write_update_attr(), fs/fuse of Linux
        """
        question = self._asking.get(fid)
        if question is not None:
            told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            question.after.append(told)
            await asyncio.wait([told], timeout=TOLD_S)

    async def _stat(self, node: Node) -> Stat:
        try:
            return await self.fs.stat_fid(node.fid)
        except OpError as error:
            if error.errno != errno.ENOENT:
                raise
            if node.gone is not None:
                return merge(node.gone._replace(nlink=0), None)
            if node.latest is not None:
                return node.latest._replace(nlink=0)
            raise OpError(errno.ESTALE) from None

    def getattr(self, request: Request, body: memoryview) -> Answer | Later:
        """GETATTR"""
        node = self.node(request.node)
        stat = self.fs.known_stat(node.fid)
        if stat is None or node.misplaced is not None:
            return self._getattr(node, request.pid)
        attr_s, stat = self.inodes.newest(node, stat, request.pid, known=True)
        return kernel.attr_out(attr_s, attributes(stat))

    async def _getattr(self, node: Node, pid: int) -> Answer:
        node.asked += 1
        try:
            while node.misplaced is not None:
                await asyncio.wait([node.misplaced])
            attr_s, stat = self.inodes.newest(node, await self._stat_together(node), pid)
            return kernel.attr_out(attr_s, attributes(stat))
        finally:
            node.asked -= 1

    async def statx(self, request: Request, body: memoryview) -> Answer:
        """STATX: with the time of birth"""
        node = self.node(request.node)
        stat = self.fs.known_stat(node.fid) or await self._stat_together(node)
        attr_s, stat = self.inodes.newest(node, stat, request.pid)
        return kernel.statx_out(attr_s, STATX_BTIME_AND_BASIC, attributes(stat), stat.btime)

    async def readlink(self, request: Request, body: memoryview) -> Answer:
        """READLINK"""
        node = self.node(request.node)
        with self.gone_is_stale(node):
            return await self.fs.readlink_fid(node.fid)

    async def statfs(self, request: Request, body: memoryview) -> Answer:
        """STATFS"""
        return kernel.statfs_out(*await self.fs.statfs())

    # changing -----------------------------------------------------------------------------------------------------

    async def setattr(self, request: Request, body: memoryview) -> Answer:
        """SETATTR"""
        fields, _, _ = kernel.decode(op.SETATTR, body)
        (valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = fields
        node = self.node(request.node)
        view = self.mount.callers.view(request)
        opened = self.mount.files.handles.get(handle) if valid & fattr.FH else None
        with self.gone_is_stale(node):
            if not valid:
                await self._drop_privileges(node, view)
            elif self._kernel_drops and valid & ~fattr.FH == fattr.MODE and await self._is_drop(node, mode):
                view = self.mount.fs
            stat = await view.setattr_fid(
                node.fid,
                mode=mode & 0o7777 if valid & fattr.MODE else None,
                uid=uid if valid & fattr.UID else None,
                gid=gid if valid & fattr.GID else None,
                size=size if valid & fattr.SIZE else None,
                atime=_time(valid, fattr.ATIME, fattr.ATIME_NOW, atime, atime_ns),
                mtime=_time(valid, fattr.MTIME, fattr.MTIME_NOW, mtime, mtime_ns),
                handle=opened.mdt_handle if opened is not None else 0,
            )
        _require_there(stat)
        if node.fid in self._asking:
            stat = await self._stat_together(node)
        attr_s, stat = self.inodes.newest(node, stat, request.pid)
        return kernel.attr_out(attr_s, attributes(stat))

    async def _drop_privileges(self, node: Node, view: FidOperations) -> None:
        """SETATTR of nothing is chown(2) to nobody (-1, -1), which an owner may do; or comes before a WRITE, which says so, too.

        Source: chown_common(), fs/open.c; fuse_setattr(), fs/fuse of Linux
        """
        attr = await self.fs.attributes(node.fid, PERM | XATTR)
        if modes.S_ISDIR(attr.mode) or not (attr.mode & SET_ID or attr.xattrs):
            return
        try:
            await view.change_fid(node.fid, uid=attr.uid)
        except OpError as error:
            if error.errno != errno.EPERM:
                raise

    @property
    def _kernel_drops(self) -> bool:
        """Before Linux 5.12 the kernel itself takes set-id bits of what is written to, as whoever writes."""
        return not self.mount.session.flags & init.HANDLE_KILLPRIV_V2

    async def _is_drop(self, node: Node, mode: int) -> bool:
        """Does `mode` take set-id bits of a file, and nothing else? Who may not chmod(2) it did not get here with that."""
        now = (await self.fs.attributes(node.fid, PERM)).mode
        changes = (now ^ mode) & 0o7777
        return modes.S_ISREG(now) and bool(changes) and not changes & ~(now & SET_ID)

    async def mknod(self, request: Request, body: memoryview) -> Answer:
        """MKNOD"""
        (mode, rdev, umask, _), (name,), _ = kernel.decode(op.MKNOD, body)
        parent, view = self.node(request.node), self.mount.callers.view(request)
        kind = modes.S_IFMT(mode)
        device = kernel.device_in(rdev) if kind in (modes.S_IFBLK, modes.S_IFCHR) else 0
        stat = await self.changing(request, parent, view.mknod_at(parent.fid, name, mode, device, umask=umask))
        return self.entry(request.pid, parent, name, stat)

    async def mkdir(self, request: Request, body: memoryview) -> Answer:
        """MKDIR"""
        (mode, umask), (name,), _ = kernel.decode(op.MKDIR, body)
        parent, view = self.node(request.node), self.mount.callers.view(request)
        stat = await self.changing(request, parent, view.mkdir_at(parent.fid, name, mode, umask=umask))
        return self.entry(request.pid, parent, name, stat)

    async def symlink(self, request: Request, body: memoryview) -> Answer:
        """SYMLINK"""
        _, (name, target), _ = kernel.decode(op.SYMLINK, body)
        parent, view = self.node(request.node), self.mount.callers.view(request)
        stat = await self.changing(request, parent, view.symlink_at(target, parent.fid, name))
        return self.entry(request.pid, parent, name, stat)

    async def link(self, request: Request, body: memoryview) -> Answer:
        """LINK"""
        (number,), (name,), _ = kernel.decode(op.LINK, body)
        parent, node = self.node(request.node), self.node(number)
        await self.mount.callers.view(request).link_at(node.fid, parent.fid, name)
        return self.entry(request.pid, parent, name, await self._stat(node))

    async def unlink(self, request: Request, body: memoryview) -> Answer:
        """UNLINK"""
        return await self._remove(request, kernel.name_of(body), directory=False)

    async def rmdir(self, request: Request, body: memoryview) -> Answer:
        """RMDIR"""
        return await self._remove(request, kernel.name_of(body), directory=True)

    async def _remove(self, request: Request, name: bytes, *, directory: bool) -> Answer:
        parent, view = self.node(request.node), self.mount.callers.view(request)
        await self._removing(request, parent, name, (view.rmdir_at if directory else view.unlink_at)(parent.fid, name))
        return None

    async def _removing(self, request: Request, parent: Node, name: bytes, change: Coroutine[Any, Any, None]) -> None:
        """A change that takes `name`, if there is one, from what has it now."""
        known = self._known(parent, name)
        attr = known.attr if known is not None else None
        trusted = attr is not None and self._trust_removed(attr)
        try:
            await self.changing(request, parent, change)
        except BaseException:
            if trusted:
                self.inodes.forget_names()
            raise
        if attr is not None and not modes.S_ISREG(attr.mode) and (node := self.inodes.fids.get(attr.fid)) is not None:
            node.gone = attr

    async def changing(self, request: Request, directory: Node, change: Coroutine[Any, Any, _T]) -> _T:
        """A change that the kernel knows to be one of its directory."""
        done = False
        self.inodes.change_begins(directory, request.pid)
        try:
            result = await change
            done = True
            return result
        finally:
            self.inodes.change_ends(directory, done)

    def _known(self, parent: Node, name: bytes) -> Known | None:
        """What has the name, if that is known."""
        names = self.mount.fs.connections.names
        directory = names.files.get(parent.fid) if names is not None else None
        return directory.names.get(name) if directory is not None else None

    def _trust_removed(self, attr: Attr) -> bool:
        """The kernel drops the name itself; if it is the only one, no other needs to be doubted."""
        if attr.nlink != 1 and not modes.S_ISDIR(attr.mode):
            return False
        node = self.inodes.fids.get(attr.fid)
        return node is not None and self.inodes.trust(node)

    async def rename(self, request: Request, body: memoryview) -> Answer:
        """RENAME, RENAME2"""
        fields, (name, new_name), _ = kernel.decode(request.opcode, body)
        flags = fields[1] if request.opcode == op.RENAME2 else 0
        parent, target = self.node(request.node), self.node(fields[0])
        moving = self.mount.callers.view(request).rename_at(parent.fid, name, target.fid, new_name, flags)
        moving = self.changing(request, parent, moving)
        await (self.changing(request, target, moving) if flags else self._removing(request, target, new_name, moving))
        return None

    # directories --------------------------------------------------------------------------------------------------

    async def readdir(self, request: Request, body: memoryview) -> Answer:
        """READDIR"""
        return await self._list(request, body, plus=False)

    async def readdirplus(self, request: Request, body: memoryview) -> Answer:
        """READDIRPLUS"""
        return await self._list(request, body, plus=True)

    async def _list(self, request: Request, body: memoryview, *, plus: bool) -> Answer:
        (_, offset, room, _, _, _, _), _, _ = kernel.decode(request.opcode, body)
        node = self.node(request.node)
        node.listed = True
        made: list[bytes] = []
        left = room
        if offset < DOTDOT:
            stat = await self._stat(node)
            for cookie, name, ino in ((DOT, b".", stat.ino), (DOTDOT, b"..", _inode(stat))):
                if offset < cookie:
                    raw = (_NO_ENTRY if plus else b"") + kernel.dirent(ino, cookie, name, modes.S_IFDIR)
                    made.append(raw)
                    left -= len(raw)
        told: list[Node] = []
        try:
            return await self._list_names(request, node, offset, left, plus, made, told)
        except BaseException:  # the kernel does not hear of them, so it will not forget them
            for each in told:
                self.inodes.forget(each.number, 1)
            raise

    async def _list_names(
        self, request: Request, node: Node, offset: int, left: int, plus: bool, made: list[bytes], told: list[Node]
    ) -> Answer:
        """What is in a directory, behind what is `made`. `told`: the kernel will know these once more."""
        cookie = offset if offset > DOTDOT else 0
        while True:
            entries, end = await self._entries(node, cookie, plus)
            for entry in entries:
                raw = kernel.dirent(fid_inode(entry.fid), entry.cookie, entry.name, entry.type)
                size = len(raw) + (len(_NO_ENTRY) if plus else 0)
                if size > left:
                    return b"".join(made)
                if plus and entry.stat is not None and entry.fid not in self._asking:
                    made.append(self.entry(request.pid, node, entry.name, entry.stat))
                    told.append(self.inodes.fids[entry.fid])
                elif plus:
                    made.append(_NO_ENTRY)
                made.append(raw)
                left -= size
            if end:
                return b"".join(made)
            cookie = entries[-1].cookie

    async def _entries(self, node: Node, cookie: int, plus: bool) -> tuple[list[DirEntry], bool]:
        try:
            return await self._listings.after(node, cookie, plus=plus)
        except OpError as error:
            if error.errno == errno.ENOENT:  # it was removed, and is open
                return [], True
            raise

    async def fsyncdir(self, request: Request, body: memoryview) -> Answer:
        """FSYNCDIR"""
        await self.fs.connections.mdc.sync()
        return None

    # extended attributes ------------------------------------------------------------------------------------------

    def getxattr(self, request: Request, body: memoryview) -> Answer | Later:
        """GETXATTR"""
        (size, _), (name,), _ = kernel.decode(op.GETXATTR, body)
        _check_xattr(name)
        view, node = self.mount.callers.view(request), self.node(request.node)
        if view.has_no_xattr(node.fid, name):
            raise OpError(self._absent(name))
        return self._getxattr(view, node, name, size)

    async def _getxattr(self, view: FidOperations, node: Node, name: bytes, size: int) -> Answer:
        try:
            with self.gone_is_stale(node):
                return _sized(await view.getxattr_fid(node.fid, name), size)
        except OpError as error:
            if error.errno == errno.ENODATA:
                raise OpError(self._absent(name)) from None
            raise

    def _absent(self, name: bytes) -> int:
        """The errno. `ls -l` asks for the label of each file, unless one file system says that it has none.

        Source: ll_xattr_get_common(), llite/xattr.c (LU-549)
        """
        return errno.EOPNOTSUPP if name == LABEL and not self._labels else errno.ENODATA

    def listxattr(self, request: Request, body: memoryview) -> Answer | Later:
        """LISTXATTR"""
        (size, _), _, _ = kernel.decode(op.LISTXATTR, body)
        view, node = self.mount.callers.view(request), self.node(request.node)
        if view.has_no_xattr(node.fid):
            return _sized(b"", size)
        return self._listxattr(view, node, size)

    async def _listxattr(self, view: FidOperations, node: Node, size: int) -> Answer:
        with self.gone_is_stale(node):
            names = await view.listxattr_fid(node.fid)
        return _sized(b"".join(name + b"\0" for name in names), size)

    async def setxattr(self, request: Request, body: memoryview) -> Answer:
        """SETXATTR"""
        shape = None if self.mount.session.flags & init.SETXATTR_EXT else kernel.SETXATTR_SHORT
        (size, flags, *_), (name,), rest = kernel.decode(op.SETXATTR, body, shape)
        _check_xattr(name)
        if len(rest) < size:
            raise kernel.Malformed(f"SETXATTR of {size} bytes with {len(rest)}")
        return await self._setxattr(request, name, bytes(rest[:size]), flags)

    async def removexattr(self, request: Request, body: memoryview) -> Answer:
        """REMOVEXATTR"""
        name = kernel.name_of(body)
        _check_xattr(name)
        return await self._setxattr(request, name, None)

    async def _setxattr(self, request: Request, name: bytes, value: bytes | None, flags: int = 0) -> Answer:
        node = self.node(request.node)
        with self.gone_is_stale(node):
            await self.mount.callers.view(request).setxattr_fid(node.fid, name, value, flags)
        return None


_NO_ENTRY = kernel.entry_out(0, 0, 0, Attributes(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0))  # "no attributes come along"


def _inode(stat: Stat) -> int:
    """The parent's number."""
    return fid_inode(stat.parent) or stat.ino


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if not valid & given:
        return None
    return NOW if valid & now else seconds * _NS + nanoseconds


def _require_there(stat: Stat) -> None:
    """ESTALE for what was changed, or made, and is gone already: the first answer was lost (vanished_attr, mdt/namespace.py).

    For an inode of no type Linux says EIO, and to whoever has it as well.  Source: fuse_make_bad(), fs/fuse of Linux
    """
    if not stat.mode:
        raise OpError(errno.ESTALE)


def _check_xattr(name: bytes) -> None:
    if not 0 < len(name) <= limits.name_bytes_max:
        raise OpError(errno.ERANGE)


def _sized(value: bytes, size: int) -> bytes:
    if not size:
        return kernel.xattr_size_out(len(value))
    if len(value) > size:
        raise OpError(errno.ERANGE)
    return value
