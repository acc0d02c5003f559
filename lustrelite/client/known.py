"""What is known of one inode, and what was held when something was asked about it.

The rules are those of attr_cache.py; here is what they are about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lustrelite.ids import NO_FID, Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.wire.ldlm import Ride
from lustrelite.wire.mdt import Attr

if TYPE_CHECKING:
    from lustrelite.client.known_listings import Listing


class Known:
    """One inode of which something is known. There may be 100,000."""

    __slots__ = (
        "absent", "attr", "bits", "drops", "fid", "fresh", "listing", "locks", "merged", "names", "places", "target",
        "xattrs",
    )  # fmt: skip

    def __init__(self, fid: Fid) -> None:
        self.fid = fid
        self.attr: Attr = None  # type: ignore[assignment]  # only `fresh` parts of it are true; none at first
        self.fresh = 0
        self.bits = 0  # held now
        self.drops = 0  # how often a lock, or part of one, went
        self.locks: list[ClientLock] = []
        self.names: dict[bytes, Known] = NO_NAMES  # of a directory; each is under its file's LOOKUP
        self.places: tuple[tuple[Known, bytes], ...] = ()  # (directory, name): where it is in `names`
        self.absent: dict[bytes, None] | None = None
        self.listing: Listing | None = None
        self.target: bytes | None = None  # of a symlink: it never changes
        self.xattrs: dict[bytes, bytes] | None = None  # all but the access list, when they have been asked for
        self.merged: tuple[Any, int, int, Any] | None = None  # (objects, mtime, atime) -> the last Stat made of them


NO_NAMES: dict[bytes, Known] = {}  # never written to
TOO_MANY: dict[bytes, bytes] = {}  # stands for extended attributes that are more than are kept: they are asked for one by one


class Question:
    """What was held when something was asked, and which lock was asked for with it."""

    __slots__ = ("bits", "clock", "drops", "known", "name", "parent", "parent_bits", "parent_drops", "parent_known", "ride")

    def __init__(self, known: Known | None, ride: Ride | None, clock: int) -> None:
        self.known = known
        self.clock = clock  # of own changes
        self.bits = known.bits if known is not None else 0
        self.drops = known.drops if known is not None else 0
        self.ride = ride
        self.name = b""
        self.parent: Fid = NO_FID  # of a question by name
        self.parent_known: Known | None = None
        self.parent_bits = 0
        self.parent_drops = 0

    def by_name(self, parent: Fid, name: bytes, directory: Known | None) -> Question:
        """It is about `name` in `parent`, of which `directory` is known."""
        self.name = name
        self.parent = parent
        if directory is not None:
            self.parent_known = directory
            self.parent_bits = directory.bits
            self.parent_drops = directory.drops
        return self


def touch(known: Known) -> None:
    """It was of use: its locks stay longer."""
    for lock in known.locks:
        lock.touched = True
