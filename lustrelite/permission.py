"""May a caller read, write or search? Mode bits with root's privileges: what MDT and clients both decide by.

A caller is (uid, gid, supplementary groups...). The MDT asks for every request; a client asks for what it has cached
under a PERM lock, so that a path it knows costs no request. Both must say the same, hence one place.
Source: generic_permission(), fs/namei.c; ll_inode_permission(), llite/namei.c. Not handled: access control lists.
"""

from __future__ import annotations

from stat import S_ISDIR
from typing import Protocol

from lustrelite.wire.message import Cred

READ = 4
WRITE = 2
EXECUTE = 1  # search, on a directory


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
    elif in_group(cred, file.gid):
        mode >>= 3
    return mode & want == want
