"""Who may do what: owner, group and others by mode bits, with root's privileges. Pure functions, no I/O.

A caller is (uid, gid, supplementary groups...). Uid 0 has the capabilities of a Linux root: it passes every check
except executing a file that nobody may execute. The rules are those of the Linux VFS (fs/namei.c, fs/attr.c), which the
MDT of Lustre applies on its own side in mdd/mdd_permission.c: it is the only place where all clients meet. Who may
read, write and search is in permission.py, because clients decide it too, of what they have cached.

Not handled: capabilities other than root's, mandatory locks.
"""

from __future__ import annotations

import errno
from stat import S_ISDIR, S_ISGID, S_ISUID, S_ISVTX, S_IXGRP

from lustrelite.errors import OpError
from lustrelite.permission import APPEND_ONLY, EXECUTE, IMMUTABLE, READ, WRITE, in_group, owns, permits
from lustrelite.store.schema import Inode
from lustrelite.wire.mdt import (
    SET_ATIME,
    SET_FLAGS,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_PROJID,
    SET_SIZE,
    SET_TIMES_EXPLICIT,
    SET_UID,
)
from lustrelite.wire.message import Cred

__all__ = ["EXECUTE", "READ", "WRITE", "in_group", "owns", "permits"]

PERMISSION_BITS = 0o7777
PROJECT_INHERITED = 0x20000000  # FS_PROJINHERIT_FL of a directory: what is made in it belongs to its project
PRIVILEGED_FLAGS = IMMUTABLE | APPEND_ONLY  # only root changes these


def require(inode: Inode, cred: Cred, want: int) -> None:
    """OpError(EACCES) unless `permits`; EPERM, also for root, if it is to be written and is immutable (and may be searched)."""
    if want & WRITE and inode.flags & IMMUTABLE and permits(inode, cred, want & EXECUTE):
        raise OpError(errno.EPERM)
    if cred[0] != 0 or want & EXECUTE:
        if not permits(inode, cred, want):
            raise OpError(errno.EACCES)


def require_removable(directory: Inode, victim: Inode, cred: Cred) -> None:
    """May the caller take the name of `victim` out of `directory`?  EACCES; EPERM by the sticky bit.

    Source: may_delete(), fs/namei.c
    """
    require(directory, cred, WRITE | EXECUTE)
    if directory.flags & APPEND_ONLY or victim.flags & PRIVILEGED_FLAGS:
        raise OpError(errno.EPERM)
    if directory.mode & S_ISVTX and cred[0] not in (0, victim.uid, directory.uid):
        raise OpError(errno.EPERM)


def require_changeable(inode: Inode) -> None:
    """OpError(EPERM) if it is immutable or may only be appended to: links, extended attributes, opens that truncate."""
    if inode.flags & PRIVILEGED_FLAGS:
        raise OpError(errno.EPERM)


def new_owner(parent: Inode, mode: int, cred: Cred) -> tuple[int, int]:
    """(mode, gid) of a file that the caller makes in `parent`: a setgid directory gives its group, and a subdirectory the bit.

    Source: inode_init_owner() and mode_strip_sgid(), fs/inode.c
    """
    if parent.mode & S_ISGID:
        gid = parent.gid
        if S_ISDIR(mode):
            return mode | S_ISGID, gid
    else:
        gid = cred[1]
    if mode & S_ISGID and mode & S_IXGRP and not S_ISDIR(mode) and cred[0] != 0 and not in_group(cred, gid):
        mode &= ~S_ISGID
    return mode, gid


def without_set_id(inode: Inode, cred: Cred) -> int:
    """The mode after the file changed hands or content: no setuid bit, no setgid bit of an executable file.

    The setgid bit goes in any case if the caller could not set it.  Source: setattr_should_drop_sgid(), fs/attr.c
    """
    mode = inode.mode & ~S_ISUID
    if mode & S_IXGRP or (cred[0] != 0 and not in_group(cred, inode.gid)):
        mode &= ~S_ISGID
    return mode


def require_setattr(inode: Inode, valid: int, uid: int, gid: int, flags: int, cred: Cred, writable: bool) -> None:
    """May the caller change these attributes?  EPERM or EACCES. `writable`: a handle open for writing vouches for it.

    Source: notify_change(), setattr_prepare(), fs/attr.c; mdd_fix_attr(), mdd/mdd_object.c
    """
    if valid & (SET_MODE | SET_UID | SET_GID | SET_PROJID | SET_TIMES_EXPLICIT):
        require_changeable(inode)
    if inode.flags & APPEND_ONLY and valid & SET_SIZE:
        raise OpError(errno.EPERM)
    if inode.flags & IMMUTABLE and valid & (SET_ATIME | SET_MTIME | SET_SIZE) and not writable:
        raise OpError(errno.EPERM)
    if cred[0] == 0:
        return
    owner = cred[0] == inode.uid
    if valid & SET_MODE and not owner:
        raise OpError(errno.EPERM)
    if valid & SET_PROJID:  # else any owner could escape from the quota of a project
        raise OpError(errno.EPERM)
    if valid & SET_UID and not (owner and uid == inode.uid):
        raise OpError(errno.EPERM)
    if valid & SET_GID and not (owner and (gid == inode.gid or in_group(cred, gid))):
        raise OpError(errno.EPERM)
    if valid & SET_FLAGS and (not owner or (flags ^ inode.flags) & PRIVILEGED_FLAGS):
        raise OpError(errno.EPERM)
    if valid & (SET_ATIME | SET_MTIME) and not owner:
        if valid & SET_TIMES_EXPLICIT:
            raise OpError(errno.EPERM)
        if not (writable and valid & SET_SIZE) and not permits(inode, cred, WRITE):
            raise OpError(errno.EACCES)
    if valid & SET_SIZE and not writable and not permits(inode, cred, WRITE):
        raise OpError(errno.EACCES)


def changed_mode(inode: Inode, valid: int, mode: int, gid: int, cred: Cred) -> int:
    """The mode after a setattr: type kept, set-id bits dropped where the change takes their reason away.

    Source: setattr_copy() and chown_common() (a chown drops them for root, too, and of all but directories)
    """
    result = inode.mode
    if valid & SET_MODE:
        result = (result & ~PERMISSION_BITS) | (mode & PERMISSION_BITS)
        if cred[0] != 0 and not in_group(cred, gid if valid & SET_GID else inode.gid):
            result &= ~S_ISGID
    elif valid & (SET_UID | SET_GID):
        result = result if S_ISDIR(result) else without_set_id(inode, cred)
    elif valid & SET_SIZE and cred[0] != 0:
        result = without_set_id(inode, cred)
    return result
