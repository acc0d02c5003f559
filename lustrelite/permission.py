"""May a caller read, write or search? Mode bits and lists with root's privileges: what MDT and clients both decide by.

A caller is (uid, gid, supplementary groups...). The MDT asks for every request; a client asks for what it has cached
under a PERM lock, so that a path it knows costs no request. Both must say the same, hence one place.
Source: generic_permission(), fs/namei.c; ll_inode_permission(), llite/namei.c; xattr_permission(), fs/xattr.c
"""

from __future__ import annotations

import errno
from stat import S_IRWXG, S_ISDIR, S_ISLNK, S_ISREG, S_ISVTX
from typing import Protocol

from lustrelite import acl
from lustrelite.errors import OpError
from lustrelite.wire.message import Cred

READ = 4
WRITE = 2
EXECUTE = 1  # search, on a directory

IMMUTABLE, APPEND_ONLY = 0x10, 0x20  # FS_IMMUTABLE_FL, FS_APPEND_FL


class Owned(Protocol):
    """What must be known of a file: an inode of the MDT, or attributes that a client got."""

    @property
    def mode(self) -> int:
        """S_IFMT | permissions."""

    @property
    def uid(self) -> int:
        """Its owner."""

    @property
    def gid(self) -> int:
        """Its group."""

    @property
    def acl(self) -> bytes:
        """Its access control list, b"" if it has none."""


def in_group(cred: Cred, gid: int) -> bool:
    """Does the caller belong to group `gid`?"""
    return gid == cred[1] or (len(cred) > 2 and gid in cred[2:])


def owns(file: Owned, cred: Cred) -> bool:
    """Is the caller the owner, or root?"""
    return cred[0] == file.uid or cred[0] == 0


def permits(file: Owned, cred: Cred, want: int) -> bool:
    """May the caller do all of `want` (READ | WRITE | EXECUTE) with `file`?"""
    mode = file.mode
    if cred[0] == 0:
        return not (want & EXECUTE and not mode & 0o111 and not S_ISDIR(mode))
    if cred[0] == file.uid:
        mode >>= 6
    elif file.acl and mode & S_IRWXG:  # with an empty mask Linux does not look at the list (acl_permission_check())
        return acl.permits(file.acl, file.uid, file.gid, cred, want)
    elif in_group(cred, file.gid):
        mode >>= 3
    return mode & want == want


# extended attributes ------------------------------------------------------------------------------------------------

USER, TRUSTED, SECURITY = b"user.", b"trusted.", b"security."
CAPABILITY = b"security.capability"  # goes when the file is written, or changes hands


def require_xattr(file: Owned, name: bytes, cred: Cred, *, write: bool, remove: bool = False) -> None:
    """May the caller read, write or `remove` the extended attribute `name`?  ENOTSUP for a namespace that we do not keep.

    Whoever may write to a file, or give it away, takes its capabilities by doing so: the kernel removes them in his name.

    Who may write an access control list is said where that is done.
    """
    if not name or len(name) > 255:
        raise OpError(errno.ERANGE)
    if name in (acl.ACCESS, acl.DEFAULT):
        if S_ISLNK(file.mode):
            raise OpError(errno.ENOTSUP)
        return
    for namespace in (USER, TRUSTED, SECURITY):
        if name.startswith(namespace):
            break
    else:
        raise OpError(errno.ENOTSUP)
    if len(name) == len(namespace) or b"\0" in name:
        raise OpError(errno.EINVAL)
    if namespace == TRUSTED and cred[0] != 0:
        raise OpError(errno.EPERM if write else errno.ENODATA)
    if namespace == SECURITY and write and cred[0] != 0:
        if not (remove and name == CAPABILITY and (owns(file, cred) or permits(file, cred, WRITE))):
            raise OpError(errno.EPERM)
    if namespace == USER:
        if not S_ISREG(file.mode) and not S_ISDIR(file.mode):
            raise OpError(errno.EPERM if write else errno.ENODATA)
        if write and S_ISDIR(file.mode) and file.mode & S_ISVTX and not owns(file, cred):
            raise OpError(errno.EPERM)
        if not permits(file, cred, WRITE if write else READ):
            raise OpError(errno.EACCES)


def sees_xattr(name: bytes, cred: Cred) -> bool:
    """Does a listing show `name` to the caller? trusted.* is root's alone."""
    return cred[0] == 0 or not name.startswith(TRUSTED)
