"""What a file's attributes are, put together from the MDT's inode and the objects on the OSTs.

Names, owner, mode, links and atime are the MDT's. Size and blocks are the objects'. Writes do not tell the MDT, so the
ctime is the latest that anybody knows of, and so is the mtime, unless utimes() has set it: then what was written before
that does not count (`mtime_set`). This relies on clients' clocks as Lustre does.
Source: ll_merge_attr(), lustre/llite/file.c, where utimes() tells the OSTs instead
"""

from __future__ import annotations

from stat import S_ISDIR, S_ISLNK, S_ISREG
from typing import NamedTuple

from lustrelite.ids import NO_FID, Fid, fid_inode
from lustrelite.wire.mdt import Attr, Layout


class ObjectsAttr(NamedTuple):
    """The merged attributes of all objects of one file: times are those of the object changed last."""

    size: int  # of the file, bytes
    blocks: int  # of 512 bytes
    mtime: int
    ctime: int


class Stat(NamedTuple):
    """Attributes of a file. Times are nanoseconds since the epoch."""

    fid: Fid
    mode: int  # S_IFMT | permissions
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int  # bytes
    blocks: int  # of 512 bytes
    atime: int
    mtime: int
    ctime: int
    btime: int
    flags: int
    version: int  # transno of the inode's last version-relevant change
    layout: Layout | None
    parent: Fid = NO_FID  # of a directory
    projid: int = 0

    @property
    def ino(self) -> int:
        """A 64-bit inode number."""
        return fid_inode(self.fid)

    @property
    def is_dir(self) -> bool:
        """Is it a directory?"""
        return S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Is it a regular file?"""
        return S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Is it a symbolic link?"""
        return S_ISLNK(self.mode)


class Statfs(NamedTuple):
    """Space and files of the whole file system."""

    bytes_total: int
    bytes_free: int
    bytes_available: int  # to users other than root
    files_total: int
    files_free: int
    name_bytes_max: int


class DirEntry(NamedTuple):
    """One name of a directory. `cookie` continues a listing after it."""

    name: bytes
    fid: Fid
    type: int  # S_IFMT bits
    cookie: int
    stat: Stat | None


def merge(attr: Attr, objects: ObjectsAttr | None, *, mtime: int = 0, atime: int = 0) -> Stat:
    """The file's attributes.

    `mtime` and `atime` are what this client's open handles have not told the MDT yet, or 0.
    """
    size, blocks, ctime = attr.size, attr.blocks, attr.ctime
    if objects is not None:
        size, blocks = objects.size, objects.blocks
        mtime, ctime = max(mtime, objects.mtime), max(ctime, objects.ctime)
    return Stat(
        attr.fid, attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, size, blocks,
        max(attr.atime, atime) if atime else attr.atime,
        mtime if mtime > (attr.mtime_set or attr.mtime) else attr.mtime, max(ctime, mtime), attr.btime, attr.flags, attr.version, attr.layout, attr.parent,
        attr.projid,
    )  # fmt: skip
