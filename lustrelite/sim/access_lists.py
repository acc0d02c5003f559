"""Access control lists as the oracle's model has them: what chmod makes of one, and what is inherited.

They are bytes, as in the attributes (ACCESS, DEFAULT). None of it is the product's code (lustrelite/acl.py), so that both
can be wrong only independently. Source: acl(5)
"""

from __future__ import annotations

from struct import Struct

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_VERSION, _ENTRY = b"\2\0\0\0", Struct("<HHI")
_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHERS = 1, 2, 4, 8, 16, 32
_NOBODY = 0xFFFFFFFF

Entries = list[tuple[int, int, int]]  # (tag, permissions, id)


def pack(text: str) -> bytes:
    """The list that `text` describes as setfacl does: "u::rwx,u:7:r--,g::r-x,m::r-x,o::---"."""
    tags = {"u": (_OWNER, _USER), "g": (_GROUP, _NAMED_GROUP), "m": (_MASK, _MASK), "o": (_OTHERS, _OTHERS)}
    entries = []
    for entry in text.split(","):
        letter, name, rights = entry.split(":")
        perm = sum(bit for bit, right in zip((4, 2, 1), rights, strict=True) if right != "-")
        entries.append((tags[letter][bool(name)], perm, int(name) if name else _NOBODY))
    return _packed(entries)


def _packed(entries: Entries) -> bytes:
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _entries(value: bytes) -> Entries:
    return list(_ENTRY.iter_unpack(value[len(_VERSION) :]))


def _classes(entries: Entries) -> dict[int, int]:
    """By how much to shift the mode for the bits that an entry shares with it."""
    has_mask = any(tag == _MASK for tag, _, _ in entries)
    return {_OWNER: 6, _MASK if has_mask else _GROUP: 3, _OTHERS: 0}


def permissions(value: bytes) -> int:
    """The mode bits of a file with this access list."""
    entries = _entries(value)
    shifts = _classes(entries)
    return sum(perm << shifts[tag] for tag, perm, _ in entries if tag in shifts)


def says_more(value: bytes) -> bool:
    """Does it say more than mode bits can?"""
    return any(tag in (_USER, _NAMED_GROUP, _MASK) for tag, _, _ in _entries(value))


def changed(value: bytes, mode: int) -> bytes:
    """The access list after a chmod."""
    entries = _entries(value)
    shifts = _classes(entries)
    return _packed([(tag, mode >> shifts[tag] & 7 if tag in shifts else perm, who) for tag, perm, who in entries])


def inherited(default: bytes, mode: int) -> tuple[int, bytes]:
    """(mode, access list or b"") of what is made with `mode` where `default` is inherited."""
    entries = _entries(default)
    shifts = _classes(entries)
    begun = _packed([(tag, perm & mode >> shifts[tag] & 7 if tag in shifts else perm, who) for tag, perm, who in entries])
    return permissions(begun), begun if says_more(begun) else b""
