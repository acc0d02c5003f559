"""ioctl(2) on files of the mount: the flags of inodes, as lsattr(1) and chattr(1) see and set them; nothing else.

The kernel asks both for FS_IOC_GETFLAGS and FS_IOC_FSGETXATTR, whose structures travel as they are; files are opened
for it. IMMUTABLE and APPEND are kept by the MDT and enforced there, for all nodes (mdt/access.py). What sets striping
goes by extended attributes and RPCs, not by ioctl.  Source: fuse_fileattr_get(), fs/fuse/ioctl.c;
include/uapi/linux/fs.h
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING

from lustrelite.errors import OpError
from lustrelite.fuse import kernel
from lustrelite.fuse.kernel import op
from lustrelite.fuse.session import Answer, Request

if TYPE_CHECKING:
    from lustrelite.fuse.mount import Mount

GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
IMMUTABLE, APPEND, NODUMP, PROJECT_INHERITED = 0x10, 0x20, 0x40, 0x20000000  # FS_*_FL
SETTABLE = IMMUTABLE | APPEND | NODUMP | PROJECT_INHERITED
XFLAGS = ((IMMUTABLE, 0x8), (APPEND, 0x10), (NODUMP, 0x80), (PROJECT_INHERITED, 0x200))  # FS_XFLAG_* of each

_FLAGS = Struct("<I")
_FSXATTR = Struct("<5I8x")  # xflags, extent size, extents, project, copy-on-write extent size
_OUT = Struct("<iIII")  # result, 0, 0, 0


class Flags:
    """The handler of one mount."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.handlers = {op.IOCTL: self.ioctl}

    async def ioctl(self, request: Request, body: memoryview) -> Answer:
        """IOCTL.  ENOTTY: not one of these; EOPNOTSUPP: a flag that means nothing here"""
        (_, _, command, _, _, _), _, data = kernel.decode(op.IOCTL, body)
        fid = self.mount.names.node(request.node).fid
        if command in (GETFLAGS, FSGETXATTR):
            stat = await self.mount.fs.stat_fid(fid)
            if command == GETFLAGS:
                return _OUT.pack(0, 0, 0, 0) + _FLAGS.pack(stat.flags)
            xflags = sum(theirs for ours, theirs in XFLAGS if stat.flags & ours)
            return _OUT.pack(0, 0, 0, 0) + _FSXATTR.pack(xflags, 0, 0, stat.projid, 0)
        shape = {SETFLAGS: _FLAGS, FSSETXATTR: _FSXATTR}.get(command)
        if shape is None:
            raise OpError(errno.ENOTTY, f"ioctl {command:#x}")
        if len(data) < shape.size:
            raise kernel.Malformed(f"ioctl {command:#x} with {len(data)} bytes")
        view = self.mount.callers.view(request)
        if command == SETFLAGS:
            (flags,) = shape.unpack_from(data)
            project = None
        else:
            xflags, extent, _, project, cow = shape.unpack_from(data)
            flags = sum(ours for ours, theirs in XFLAGS if xflags & theirs)
            if xflags & ~sum(theirs for _, theirs in XFLAGS) or extent or cow:
                raise OpError(errno.EOPNOTSUPP, f"flags {xflags:#x}")
            if project == (await self.mount.fs.stat_fid(fid)).projid:
                project = None
        if flags & ~SETTABLE:
            raise OpError(errno.EOPNOTSUPP, f"flags {flags:#x}")
        await view.setattr_fid(fid, flags=flags, projid=project)
        return _OUT.pack(0, 0, 0, 0)
