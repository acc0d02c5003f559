"""A mounted file system for Python programs, POSIX in manners: paths and open files.

Paths are str or bytes, absolute in the file system, any bytes. They are resolved component by component, symlinks
followed as Linux does; what a path has led to is then done by FID (by_fid.FidOperations, whose methods are here too).
`as_user` gives another view of the same mount that acts with another credential.

A mount belongs to the event loop that made it: other threads use asyncio.run_coroutine_threadsafe.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from lustrelite.client import tree
from lustrelite.client.attr_cache import STAT, AttrCache
from lustrelite.client.attributes import DirEntry, Stat
from lustrelite.client.by_fid import NOW, FidOperations
from lustrelite.client.connections import Connections
from lustrelite.client.file import File
from lustrelite.client.paths import SYMLINKS_MAX, AnyPath, Path, encode, like, split, split_absolute
from lustrelite.errors import OpError
from lustrelite.ids import Fid, Nid, parse_fid, parse_nid
from lustrelite.rpc.node import Node
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import LOOKUP
from lustrelite.wire.mdt import Attr, Layout, StripeHint
from lustrelite.wire.message import ROOT_CRED, Cred

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NEW = os.O_CREAT | os.O_EXCL


class FileSystem(FidOperations):
    """A view of a mounted file system with one credential. Make the first with `mount`."""

    @classmethod
    async def mount(
        cls, node: Node, mgs_nids: Sequence[Nid], fsname: str = "lustre", cred: Cred = ROOT_CRED, *, patient: bool = False
    ) -> FileSystem:
        """Connect to the file system `fsname` that the MGS knows; waits for the MGS and the MDT.  ENOENT, ValueError: no NID

        `patient`: also until one of that name is made.
        """
        mgs_nids = [parse_nid(nid) for nid in mgs_nids]
        connections = Connections(node, fsname)
        try:
            await connections.connect(mgs_nids, patient=patient)
        except BaseException:
            connections.stop()
            raise
        return cls(connections, check_cred(cred))

    async def unmount(self) -> None:
        """Close what is open and leave in good order. Ends the mount for all its views."""
        await self.connections.disconnect()

    async def give_up(self) -> None:
        """Leave as `unmount` does, but wait for nobody who does not answer: what he has not got is lost."""
        await self.connections.give_up()

    def stop(self) -> None:
        """End the mount as if this process had been killed: nothing is closed, nobody is told."""
        self.connections.stop()

    def as_user(self, uid: int, gid: int, groups: Sequence[int] = ()) -> FileSystem:
        """The same mount seen by another user.  ValueError for more than 64 groups."""
        return type(self)(self.connections, check_cred((uid, gid, *groups)))

    # attributes -------------------------------------------------------------------------------------------------

    async def stat(self, path: Path, follow: bool = True) -> Stat:
        """Attributes of `path`; of a symlink itself unless `follow`.  ENOENT, ENOTDIR, EACCES, ELOOP"""
        cache = self.connections.names
        if cache is not None and (found := self._stat_known(cache, path, follow)) is not None:
            return found
        return await self._stat_of(lambda: self._find(path, follow, STAT))

    def _stat_known(self, cache: AttrCache, path: Path, follow: bool) -> Stat | None:
        """`stat` of what is known to the last bit; None: ask."""
        names, directory = split_absolute(path)
        known = cache.walk(names, self.cred)
        if known is None or STAT & ~known.fresh:
            return None
        kind = stat.S_IFMT(known.attr.mode)
        if (kind == stat.S_IFLNK and (follow or directory)) or (directory and kind != stat.S_IFDIR):
            return None
        return self._whole(known)

    async def lstat(self, path: Path) -> Stat:
        """`stat` without following a symlink."""
        return await self.stat(path, follow=False)

    async def exists(self, path: Path) -> bool:
        """Is there something at `path`? A dangling symlink is nothing."""
        try:
            await self._find(path)
        except OpError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    async def chmod(self, path: Path, mode: int, *, follow: bool = True) -> None:
        """Set the permission bits.  EPERM"""
        await self.change_fid((await self._find(path, follow)).fid, mode=mode)

    async def chown(self, path: Path, uid: int = -1, gid: int = -1, *, follow: bool = True) -> None:
        """Set owner and group; -1 leaves one alone.  EPERM"""
        fid = (await self._find(path, follow)).fid
        await self.change_fid(fid, uid=None if uid == -1 else uid, gid=None if gid == -1 else gid)

    async def chproj(self, path: Path, projid: int, *, follow: bool = True) -> None:
        """Set the project that the file, or what is made in a directory that passes it on, is counted for.  EPERM"""
        await self.change_fid((await self._find(path, follow)).fid, projid=projid)

    async def utimes(
        self, path: Path, atime: int | None = NOW, mtime: int | None = NOW, *, follow: bool = True
    ) -> None:
        """Set the times, in nanoseconds since the epoch; NOW is now, None leaves one alone.  EPERM, EACCES"""
        await self.change_fid((await self._find(path, follow)).fid, atime=atime, mtime=mtime)

    async def truncate(self, path: Path, size: int) -> None:
        """Make the file exactly `size` bytes long.  EISDIR, EINVAL, EACCES, EFBIG"""
        await self.change_fid((await self._find(path)).fid, size=size)

    # making and removing names ----------------------------------------------------------------------------------

    async def create(
        self, path: Path, mode: int = 0o666, hint: StripeHint | None = None, *, umask: int = 0
    ) -> Stat:
        """Make an empty regular file without opening it, in one request.  EEXIST, ENOENT, EACCES, ENOSPC"""
        return await self.create_at(*await self._new_name(path), mode, hint, umask=umask)

    async def mknod(self, path: Path, mode: int, rdev: int = 0, *, umask: int = 0) -> Stat:
        """Make a file of any type but directory and symlink, by S_IFMT of `mode` (none means regular).  EINVAL"""
        return await self.mknod_at(*await self._new_name(path), mode, rdev, umask=umask)

    async def mkdir(self, path: Path, mode: int = 0o777, hint: StripeHint | None = None, *, umask: int = 0) -> Stat:
        """Make a directory; `hint` is its default striping.  EEXIST, ENOENT, EACCES"""
        return await self.mkdir_at(*await self._new_name(path, directory=True), mode, hint, umask=umask)

    async def makedirs(self, path: Path, mode: int = 0o777, exist_ok: bool = True) -> None:
        """Make a directory and whatever is missing above it.  EEXIST unless `exist_ok`, ENOTDIR"""
        await tree.makedirs(self, encode(path), mode, exist_ok)

    async def symlink(self, target: Path, path: Path) -> Stat:
        """Make a symlink to `target` at `path`.  EEXIST, ENAMETOOLONG"""
        return await self.symlink_at(encode(target, "a symlink's target"), *await self._new_name(path))

    async def link(self, source: Path, path: Path) -> None:
        """Make `path` another name of `source` (a symlink is not followed).  EEXIST, EMLINK, EPERM"""
        fid = (await self._find(source, follow=False)).fid
        await self.link_at(fid, *await self._new_name(path))

    async def unlink(self, path: Path) -> None:
        """Remove a name that is no directory.  ENOENT, EISDIR, EACCES, EPERM"""
        walk = _Walk(self, path)
        name = await walk.to_last()
        if name in (b"", b".", b".."):
            raise OpError(errno.EISDIR)
        if walk.directory:
            attr = await self._lookup(walk.here, name)
            raise OpError(errno.EISDIR if stat.S_ISDIR(attr.mode) else errno.ENOTDIR)
        await self.unlink_at(walk.here, name)

    async def rmdir(self, path: Path) -> None:
        """Remove an empty directory.  ENOENT, ENOTDIR, ENOTEMPTY, EACCES, EPERM, EBUSY for the root"""
        walk = _Walk(self, path)
        name = await walk.to_last()
        if name in (b"", b".", b".."):
            raise OpError({b"": errno.EBUSY, b".": errno.EINVAL, b"..": errno.ENOTEMPTY}[name])
        await self.rmdir_at(walk.here, name)

    async def rename(self, source: Path, target: Path, flags: int = 0) -> None:
        """Move `source` to `target`, replacing what is there as POSIX says. Flags are RENAME_NOREPLACE, RENAME_EXCHANGE.

        ENOENT, EEXIST, ENOTEMPTY, EISDIR, ENOTDIR, EINVAL into its own subtree, EACCES, EPERM, EBUSY
        """
        here, there = _Walk(self, source), _Walk(self, target)
        name, new_name = await here.to_last(), await there.to_last()
        if name in (b"", b".", b"..") or new_name in (b"", b".", b".."):
            raise OpError(errno.EBUSY)
        if here.directory or there.directory:
            attr = await self._lookup(here.here, name)
            if not stat.S_ISDIR(attr.mode):
                raise OpError(errno.ENOTDIR)
        await self.rename_at(here.here, name, there.here, new_name, flags)

    async def readlink(self, path: AnyPath) -> AnyPath:
        """Target of the symlink `path`, as the type of `path`.  EINVAL: it is none"""
        return like(await self.readlink_fid((await self._find(path, follow=False)).fid), path)

    # directories ------------------------------------------------------------------------------------------------

    async def readdir(self, path: AnyPath) -> list[AnyPath]:
        """The names in a directory, without "." and "..", in the order of their cookies, as the type of `path`."""
        fid = (await self._find(path)).fid
        return [like(entry.name, path) async for entry in self.scandir_fid(fid, plus=False)]

    async def scandir(self, path: Path, *, sizes: bool = True) -> AsyncIterator[DirEntry]:
        """The entries of a directory with their attributes, page by page.

        Without `sizes` the objects are not asked: size, blocks and times of regular files are then the MDT's idea.
        """
        async for entry in self.scandir_fid((await self._find(path)).fid, sizes=sizes):
            yield entry

    # open files -------------------------------------------------------------------------------------------------

    async def open(
        self, path: Path, flags: int = os.O_RDONLY, mode: int = 0o666, hint: StripeHint | None = None, *, umask: int = 0
    ) -> File:
        """Open `path`; `flags` are os.O_*, `mode`, `hint` and `umask` are for a file that this makes.

        With O_TMPFILE `path` is the directory of a file without a name.
        ENOENT, EEXIST, EISDIR, ENOTDIR, EACCES, ELOOP, ENOSPC
        """
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            return await self.open_tmpfile((await self._find(path)).fid, flags, mode, hint, umask=umask)
        walk = _Walk(self, path)
        while True:
            name = await walk.to_last()
            if name in (b"", b".", b".."):
                if flags & os.O_CREAT:
                    raise OpError(errno.EEXIST if flags & os.O_EXCL else errno.EISDIR)
                attr = await self._lookup(walk.here, name) if name else None
                return await self.open_fid(attr.fid if attr else walk.here, flags)
            if walk.directory:
                if flags & os.O_CREAT:
                    raise OpError(errno.EISDIR)
                flags |= os.O_DIRECTORY
            try:
                return await self.open_at(walk.here, name, flags, mode, hint, umask=umask)
            except OpError as error:
                # The MDT does not open symlinks; following them is ours, except with O_EXCL, when one is in the way.
                if error.errno == errno.ELOOP and flags & _NEW == _NEW:
                    raise OpError(errno.EEXIST) from None
                if flags & os.O_NOFOLLOW and not walk.directory:
                    raise
                if error.errno != errno.ELOOP and not (error.errno == errno.ENOTDIR and flags & os.O_DIRECTORY):
                    raise
                attr = await self._lookup(walk.here, name)
                if not stat.S_ISLNK(attr.mode):
                    if error.errno == errno.ENOTDIR:
                        raise
                    walk.again(name)  # it was one a moment ago
                else:
                    await walk.follow(attr)

    # extended attributes ----------------------------------------------------------------------------------------

    async def getxattr(self, path: Path, name: Path, *, follow: bool = True) -> bytes:
        """Value of an extended attribute.  ENODATA, ENOTSUP"""
        return await self.getxattr_fid((await self._find(path, follow)).fid, _xattr_name(name))

    async def setxattr(self, path: Path, name: Path, value: bytes, flags: int = 0, *, follow: bool = True) -> None:
        """Set an extended attribute. Flags are os.XATTR_*.  EEXIST, ENODATA, ENOTSUP, E2BIG, EPERM"""
        await self.setxattr_fid((await self._find(path, follow)).fid, _xattr_name(name), value, flags)

    async def removexattr(self, path: Path, name: Path, *, follow: bool = True) -> None:
        """Remove an extended attribute.  ENODATA, EPERM"""
        await self.setxattr_fid((await self._find(path, follow)).fid, _xattr_name(name), None)

    async def listxattr(self, path: AnyPath, *, follow: bool = True) -> list[AnyPath]:
        """Names of the extended attributes, as the type of `path`."""
        return [like(name, path) for name in await self.listxattr_fid((await self._find(path, follow)).fid)]

    # striping, identity, space ----------------------------------------------------------------------------------

    async def setstripe(self, path: Path, count: int = 0, size: int = 0, offset: int = -1) -> None:
        """Set a directory's default striping, or make a new file with this one. 0 is the default, count -1 all OSTs.

        `size` in bytes, a multiple of 64 KiB; `offset` is the index of the first OST, -1 any.  EINVAL; EEXIST: the file
        is there
        """
        if size < 0 or size % limits.stripe_bytes_min or size >= 1 << 32:
            raise OpError(errno.EINVAL, f"stripe size {size}: a multiple of {limits.stripe_bytes_min} below 4 GiB")
        if not -1 <= count <= limits.stripes_max or offset < -1:
            raise OpError(errno.EINVAL, f"stripe count {count}, offset {offset}")
        hint = StripeHint(count, size, offset)
        try:
            attr = await self._find(path)
        except OpError as error:
            if error.errno != errno.ENOENT:
                raise
            await self.create(path, 0o644, hint)
            return
        if not stat.S_ISDIR(attr.mode):
            raise OpError(errno.EEXIST, "the striping of a file is fixed when it is made")
        await self.set_dir_stripe(attr.fid, hint)

    async def getstripe(self, path: Path) -> Layout | StripeHint | None:
        """A file's layout, or a directory's default striping; None where there is none."""
        attr = await self._find(path, need=STAT)
        if stat.S_ISDIR(attr.mode):
            return (await self.connections.mdc.get_dir_stripe(attr.fid, cred=self.cred)).hint
        return attr.layout

    async def striping_in(self, path: Path) -> StripeHint:
        """How files that are made in the directory `path` are striped, with nothing left to defaults.  ENOTDIR"""
        fid = (await self._find(path)).fid
        hint, default = await self.connections.mdc.get_dir_stripe(fid, cred=self.cred)
        if hint is None:
            return default
        return StripeHint(hint.stripe_count or default.stripe_count, hint.stripe_size or default.stripe_size, hint.stripe_offset)

    async def path2fid(self, path: Path) -> Fid:
        """The FID of `path` (a symlink is not followed)."""
        return (await self._find(path, follow=False)).fid

    async def fid2path(self, fid: Fid | str) -> list[bytes]:
        """All paths of a FID, given as such or as `[0x200000401:0x1:0x0]`.  ENOENT"""
        if isinstance(fid, str):
            fid = parse_fid(fid)
        return list(await self.connections.mdc.fid_to_path(fid, cred=self.cred))

    # whole files and trees --------------------------------------------------------------------------------------

    async def read_file(self, path: Path) -> bytes:
        """The whole content of a file."""
        async with await self.open(path) as file:
            return await file.read()

    async def write_file(self, path: Path, data: Buffer, mode: int = 0o644) -> None:
        """Make a file with this content, replacing what it had."""
        async with await self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as file:
            await file.pwrite(data, 0)

    async def copy(self, source: Path, target: Path) -> None:
        """Copy a file's content, mode and times within the file system.  EINVAL: onto itself"""
        await tree.copy(self, source, target)

    async def copy_in(self, local: Path, path: Path) -> None:
        """Copy a file of this machine, or a symlink itself, with mode and times to `path`."""
        await tree.copy_in(self, local, path)

    async def copy_out(self, path: Path, local: Path) -> None:
        """Copy a file, or a symlink itself, with mode and times to `local` on this machine."""
        await tree.copy_out(self, path, local)

    async def walk(self, top: AnyPath) -> AsyncIterator[tuple[AnyPath, list[AnyPath], list[AnyPath]]]:
        """(directory, names of directories, names of everything else) below `top`, from the top; as os.walk()."""
        async for found in tree.walk(self, top):
            yield found

    async def rmtree(self, path: Path) -> None:
        """Remove a directory with everything in it, or a file."""
        await tree.rmtree(self, encode(path))

    # resolution -------------------------------------------------------------------------------------------------

    async def _find(self, path: Path, follow: bool = True, need: int = LOOKUP) -> Attr:
        """What is at `path`; of its attributes `need` is what is looked at."""
        walk = _Walk(self, path)
        while True:
            name = await walk.to_last()
            if not name:
                return await self.attributes(walk.here, need)
            attr = await self._lookup(walk.here, name, need)
            if stat.S_ISLNK(attr.mode) and (follow or walk.directory):
                await walk.follow(attr)
                continue
            if walk.directory and not stat.S_ISDIR(attr.mode):
                raise OpError(errno.ENOTDIR)
            return attr

    async def _new_name(self, path: Path, *, directory: bool = False) -> tuple[Fid, bytes]:
        """(parent, name) for something that shall be made at `path`."""
        walk = _Walk(self, path)
        name = await walk.to_last()
        if name in (b"", b".", b".."):
            raise OpError(errno.EEXIST)
        if walk.directory and not directory:
            raise OpError(errno.ENOENT, "a path that ends in a slash means a directory")
        return walk.here, name


class _Walk:
    """One path on its way: the directory it has reached, and the names that are left."""

    def __init__(self, fs: FileSystem, path: Path) -> None:
        names, self.directory = split_absolute(path)  # does the path have to mean a directory?
        self.here = fs.root
        self._fs = fs
        self._left = names[::-1]
        self._links = 0

    async def to_last(self) -> bytes:
        """Walk until one name is left and return it; b"" means `here` itself.  ENOENT, ENOTDIR, EACCES, ELOOP"""
        while len(self._left) > 1:
            name = self._left.pop()
            if name == b".":
                continue
            attr = await self._fs._lookup(self.here, name)
            if stat.S_ISLNK(attr.mode):
                await self.follow(attr)
            elif stat.S_ISDIR(attr.mode):
                self.here = attr.fid
            else:
                raise OpError(errno.ENOTDIR)
        return self._left.pop() if self._left else b""

    async def follow(self, attr: Attr) -> None:
        """Put the target of a symlink in its place.  ELOOP"""
        self._count()
        target = await self._fs.readlink_fid(attr.fid)
        names, directory = split(target)
        if not self._left:
            self.directory = self.directory or directory
        if target.startswith(b"/"):
            self.here = self._fs.root
        self._left.extend(reversed(names))

    def again(self, name: bytes) -> None:
        """Look at `name` once more: it changed while we looked."""
        self._count()
        self._left.append(name)

    def _count(self) -> None:
        self._links += 1
        if self._links > SYMLINKS_MAX:
            raise OpError(errno.ELOOP)


def check_cred(cred: Sequence[int]) -> Cred:
    """`cred` as (uid, gid, groups...).  ValueError, TypeError"""
    if len(cred) < 2 or len(cred) - 2 > limits.groups_max:
        raise ValueError(f"a credential is uid, gid and up to {limits.groups_max} groups")
    for number in cred:
        if not isinstance(number, int):
            raise TypeError(f"a user or group is a number, not {type(number).__name__}")
        if not 0 <= number < 1 << 32:
            raise ValueError(f"no user or group can have the number {number}")
    return tuple(cred)


def _xattr_name(name: Path) -> bytes:
    raw = encode(name, "the name of an extended attribute")
    if not 0 < len(raw) <= limits.name_bytes_max:
        raise OpError(errno.ERANGE, f"the name of an extended attribute has 1 to {limits.name_bytes_max} bytes")
    return raw
