"""POSIX access control lists: what they are, whom they let in, and how they and the mode bits say the same.

A list travels and is kept as the bytes of the attributes `system.posix_acl_access` and `system.posix_acl_default`,
which are those of Linux: a version, then (tag, permissions, id) for each entry, in the order owner, named users, group,
named groups, mask, others. b"" is no list. With an access list the group bits of the mode are its mask; one that says
no more than the mode is not kept. A directory's default list is what is made in it begins with, instead of the umask.
Pure. Source: acl(5); fs/posix_acl.c, include/uapi/linux/posix_acl_xattr.h
"""

from __future__ import annotations

import errno
from functools import lru_cache
from stat import S_ISDIR
from struct import Struct
from typing import NamedTuple

from lustrelite.errors import OpError
from lustrelite.tunables import limits
from lustrelite.wire.message import Cred

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = (1 << 32) - 1  # of the entries that name nobody
_NAMED = USER | GROUP
_NEXT = {  # which tags may follow which
    0: USER_OBJ,
    USER_OBJ: USER | GROUP_OBJ,
    USER: USER | GROUP_OBJ,
    GROUP_OBJ: GROUP | MASK | OTHER,
    GROUP: GROUP | MASK,
    MASK: OTHER,
    OTHER: 0,
}
_VERSION = (2).to_bytes(4, "little")
_ENTRY = Struct("<HHI")


class Entry(NamedTuple):
    """What one of the tags may do."""

    tag: int
    perm: int  # READ | WRITE | EXECUTE of permission.py
    id: int = NO_ID  # of a named user or group


Acl = tuple[Entry, ...]


@lru_cache(1024)
def parse(data: bytes) -> Acl:
    """The list in `data`, () if it says that there is none.  EINVAL, ENOTSUP another version, ENOSPC too long"""
    if not data:
        return ()
    if len(data) < len(_VERSION) or (len(data) - len(_VERSION)) % _ENTRY.size:
        raise OpError(errno.EINVAL, "not an access control list")
    if data[:4] != _VERSION:
        raise OpError(errno.ENOTSUP, "an access control list of another version")
    if len(data) > len(_VERSION) + limits.acl_entries_max * _ENTRY.size:
        raise OpError(errno.ENOSPC, f"more than {limits.acl_entries_max} entries")
    entries = []
    before, tags = 0, 0
    for tag, perm, number in _ENTRY.iter_unpack(data[len(_VERSION) :]):
        if tag not in _NEXT or not tag & _NEXT[before] or perm & ~7 or (tag & _NAMED and number == NO_ID):
            raise OpError(errno.EINVAL, "not an access control list")
        if tag == OTHER and tags & _NAMED and not tags & MASK:
            raise OpError(errno.EINVAL, "an access control list without a mask")
        entries.append(Entry(tag, perm, number if tag & _NAMED else NO_ID))
        before, tags = tag, tags | tag
    if entries and before != OTHER:
        raise OpError(errno.EINVAL, "an access control list without an end")
    return tuple(entries)


def pack(entries: Acl) -> bytes:
    """The bytes of a list; b"" if there is none."""
    return _VERSION + b"".join([_ENTRY.pack(*entry) for entry in entries]) if entries else b""


def permits(data: bytes, uid: int, gid: int, cred: Cred, want: int) -> bool:
    """Does the list of a file of `uid` and `gid` let the caller do all of `want`? He is not root."""
    groups = cred[1:]
    found: int | None = None  # what the mask has to allow as well
    mask = 7
    for tag, perm, number in parse(data):
        if tag == USER_OBJ:
            if cred[0] == uid:
                return perm & want == want
        elif tag == USER:
            if found is None and number == cred[0]:
                found = perm
                groups = ()
        elif tag == MASK:
            mask = perm
        elif tag == OTHER:
            if found is None:
                return perm & want == want
        elif (gid if tag == GROUP_OBJ else number) in groups and (found is None or found & want != want):
            found = perm
    return found is not None and found & mask & want == want


def mode_of(entries: Acl, mode: int) -> tuple[int, bool]:
    """(`mode` with the permissions of an access list, whether that says all of it)."""
    perms = {tag: perm for tag, perm, _ in entries}
    group = perms.get(MASK, perms[GROUP_OBJ])
    minimal = len(entries) == len((USER_OBJ, GROUP_OBJ, OTHER))
    return mode & ~0o777 | perms[USER_OBJ] << 6 | group << 3 | perms[OTHER], minimal


def with_mode(data: bytes, mode: int) -> bytes:
    """The access list after a chmod: owner, others, and the mask (or the group) follow the mode."""
    entries = parse(data)
    group = MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ
    perms = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    return pack(tuple([entry._replace(perm=perms.get(entry.tag, entry.perm)) for entry in entries]))


def inherited(default: bytes, mode: int) -> tuple[int, bytes, bytes]:
    """(mode, access list, default list) of what is made with `mode` in a directory with the default list `default`.

    Source: posix_acl_create_masq()
    """
    entries = parse(default)
    group = MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ
    perms = {USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, OTHER: mode & 7}
    begun = tuple([entry._replace(perm=entry.perm & perms.get(entry.tag, 7)) for entry in entries])
    mode, minimal = mode_of(begun, mode)
    return mode, b"" if minimal else pack(begun), default if S_ISDIR(mode) else b""
