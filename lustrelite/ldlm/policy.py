"""When do two locks conflict, how far may an extent grow, and what is left of a record lock.

All types share the modes and their matrix; what a lock is of differs: bits of an inode (IBITS), bytes of an object
(EXTENT, FLOCK), or nothing (PLAIN). Two locks conflict if their modes do and they are of the same thing.

A COS or TXN lock is a server's own, kept after an operation until its transaction is durable. It is for others: the
client whose operation it was does not conflict with it (commit on share).
Source: lck_compat_array, ldlm/ldlm_lock.c; ldlm/ldlm_extent.c 137-351; protocol-facts 5.1, 5.5, 5.10.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple, Protocol

from lustrelite.wire.ldlm import COS, CR, CW, EX, EXTENT, FLOCK, GROUP, IBITS, NL, PLAIN, PR, PW, TXN
from lustrelite.wire.ost import OBJECT_EOF

EOF = OBJECT_EOF
MODES = (EX, PW, PR, CW, CR, NL, GROUP, COS, TXN)
MODE_NAMES = {EX: "EX", PW: "PW", PR: "PR", CW: "CW", CR: "CR", NL: "NL", GROUP: "GROUP", COS: "COS", TXN: "TXN"}
BIT_NAMES = ("LOOKUP", "UPDATE", "OPEN", "LAYOUT", "PERM", "XATTR", "SOLE")

# The modes that may be held beside a mode. GROUP beside GROUP needs the same group id as well.
COMPATIBLE: dict[int, int] = {
    EX: NL,
    PW: NL | CR,
    PR: NL | CR | PR | TXN,
    CW: NL | CR | CW,
    CR: NL | CR | CW | PR | PW | TXN,
    NL: EX | PW | PR | CW | CR | NL | GROUP | COS | TXN,
    GROUP: NL | GROUP,
    COS: NL | COS,
    TXN: NL | CR | PR | TXN,
}
WRITERS = EX | PW | CW | GROUP  # who holds one of these may know a larger size than the server
FOR_OTHERS = COS | TXN
TYPE_MODES = {  # what may be asked for; COS and TXN come of a downgrade only
    PLAIN: EX | PW | PR | CW | CR | NL,
    IBITS: EX | PW | PR | CW | CR | NL,
    EXTENT: EX | PW | PR | CW | CR | NL | GROUP,
    FLOCK: PR | PW | NL,
}
DOWNGRADES = {EX: PW | PR | CW | CR | NL | COS | TXN, PW: PR | CR | NL | COS | TXN, PR: CR | NL, CW: CR | NL, CR: NL,
              COS: NL, TXN: NL}  # fmt: skip


class Held(Protocol):
    """What must be known of a lock."""

    mode: int
    bits: int
    start: int
    end: int
    gid: int
    client: object


def modes_conflict(held: Held, wanted: Held) -> bool:
    """Do the modes of two locks of the same thing conflict?"""
    if held.mode & COMPATIBLE[wanted.mode]:
        return held.mode == GROUP and wanted.mode == GROUP and held.gid != wanted.gid
    return not (held.mode & FOR_OTHERS and held.client == wanted.client)


def bits_conflict(held: Held, wanted: Held) -> bool:
    """Do two IBITS locks of one inode conflict?"""
    return bool(held.bits & wanted.bits) and modes_conflict(held, wanted)


def extents_conflict(held: Held, wanted: Held) -> bool:
    """Do two EXTENT locks of one object conflict?"""
    return held.start <= wanted.end and wanted.start <= held.end and modes_conflict(held, wanted)


# growth of extents ----------------------------------------------------------------------------------------------

CROWD = 32  # conflicting locks; with more of them a writer grows no further than
CROWDED_BYTES = 32 << 20  # from where it starts
WAITERS_FEW = 4  # with more of them nothing grows downwards
PAGE = 4096


class Surroundings(NamedTuple):
    """What is around a lock that is about to be granted."""

    granted: int  # locks of a conflicting mode that others hold anywhere on the object
    granted_above: int  # lowest start of one beyond the wanted end; EOF + 1 if there is none
    waiting: int  # waiting locks that must not be grown into
    waiting_below: int  # highest end of one below the wanted start; -1 if there is none
    waiting_above: int  # lowest start of one beyond the wanted end; EOF + 1 if there is none


def grown(mode: int, start: int, end: int, around: Surroundings) -> tuple[int, int]:
    """The extent to grant for [start, end]: as large as nobody minds, so that the next request needs no lock.

    Source: ldlm_extent_policy(), ldlm_extent_internal_policy_fixup(), ldlm/ldlm_extent.c
    """
    assert 0 <= start <= end <= EOF
    low, high = 0, EOF
    if around.granted:
        low = start
        high = around.granted_above - 1
    if around.waiting:
        low = start if around.waiting > WAITERS_FEW else max(low, around.waiting_below + 1)
        high = min(high, around.waiting_above - 1)
    if around.granted + around.waiting > CROWD and mode in (PW, CW):
        high = min(high, max(end, start + CROWDED_BYTES - 1))
    if (low, high) != (0, EOF):
        # No larger unit than the request has: else two writers would share a page, or a stripe.
        unit = PAGE
        aligned = start | (end + 1)
        while aligned and not aligned & (2 * unit - 1):
            unit *= 2
        low = min(start, -(-low // unit) * unit)
        high = max(end, (high + 1) // unit * unit - 1)
    assert low <= start and end <= high
    return low, high


class Ended(Protocol):
    """What has a last byte."""

    end: int


def size_known_after(size: int, gone: Ended, kept_ends: Iterable[int]) -> int:
    """The known minimum size when a client gives back `gone` and keeps locks that end at `kept_ends`.

    Beyond its locks it knows nothing: others may truncate there.  Source: ldlm_extent_shift_kms()
    """
    if gone.end + 1 < size:
        return size
    below = -1
    for end in kept_ends:
        if end + 1 >= size:
            return size
        below = max(below, end)
    return below + 1


# record locks ---------------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """Part of a file that an owner has locked, PR or PW."""

    start: int
    end: int  # last byte
    mode: int


_by_end = itemgetter(1)


def set_range(records: list[Record], start: int, end: int, mode: int) -> tuple[list[Record], list[Record]]:
    """An owner sets [start, end] to `mode` (NL unlocks). His `records` are ordered and disjoint, and are changed.

    Equal neighbours merge, others are cut. Returns (what went, what came).  Source: POSIX fcntl(); ldlm_flock.c:312
    """
    assert 0 <= start <= end <= EOF
    first = bisect_left(records, start - 1, key=_by_end)
    last = first
    low, high = start, end
    came: list[Record] = []
    right: list[Record] = []
    while last < len(records) and records[last].start <= end + 1:
        old = records[last]
        last += 1
        if old.mode == mode:
            low, high = min(low, old.start), max(high, old.end)
            continue
        if old.start < start:
            came.append(old._replace(end=min(old.end, start - 1)))
        if old.end > end:
            right.append(old._replace(start=max(old.start, end + 1)))
    if mode != NL:
        came.append(Record(low, high, mode))
    came += right
    went = records[first:last]
    records[first:last] = came
    return went, came


def mode_text(mode: int) -> str:
    """`PW`, or a number."""
    return MODE_NAMES.get(mode, str(mode))


def bits_text(bits: int) -> str:
    """`LOOKUP|UPDATE`."""
    return "|".join(name for place, name in enumerate(BIT_NAMES) if bits >> place & 1) or "0"
