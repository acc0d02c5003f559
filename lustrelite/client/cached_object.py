"""What a client knows of one object: its pages, its size and times, and the locks that make it true.

**Size.** `size` is a lower bound that nobody else can break: what the OST said when a lock was granted, but of what
lies beyond the lock no more than that it begins there; what was written here; what a truncation here left. Under a lock
[a, EOF] nobody else can write beyond a, so a size of at least a is exact then. When a lock goes, the bound may go down
(policy.size_known_after).

**Times** are those of the newest change that is known, written back or not. So are the blocks, with what dirty data
will take at most, so that nobody takes a file that is still dirty for a hole.
Source: loi_kms, osc_lock_lvb_update(), osc/osc_lock.c; ll_merge_attr(), llite
"""

from __future__ import annotations

from lustrelite.client.page_cache import ObjectPages, PageCache
from lustrelite.ids import NO_FID, Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.policy import size_known_after
from lustrelite.wire.ldlm import Lvb
from lustrelite.wire.message import ROOT_CRED, Cred
from lustrelite.wire.ost import OBJECT_EOF, ObjectAttr, Punch, resource_of

_BLOCK_BYTES = 512
_DISK_BLOCK_BYTES = 4096


class CachedObject:
    """One object under at least one lock."""

    def __init__(self, obj: int, cache: PageCache) -> None:
        self.obj = obj
        self.resource = resource_of(obj)
        self.pages = ObjectPages(cache)
        self.locks: dict[int, ClientLock] = {}  # by handle, in the order they were first used
        self.unsized: dict[int, None] = {}  # of them, those that came without a word about the object
        self.size = 0
        self.cut: Punch | None = None  # a truncation that the OST was asked for and has not answered
        self.resized = 0  # counts beginnings and ends of truncations: a size that is older than the last one is none
        self.blocks = 0
        self.atime = self.mtime = self.ctime = 0
        self.owner: Fid = NO_FID  # whose object it is: known to who writes
        self.stripe = 0
        self.cred: Cred = ROOT_CRED
        self.charged = 0  # of pages.cost, what the grant knows of
        self._last = Lvb(0, 0, 0, 0, 0)  # what `lvb` said last

    def adopt(self, lock: ClientLock) -> None:
        """The lock was granted, and is used for the first time."""
        assert lock.data is None and lock.resource == self.resource
        lock.data = self
        self.locks[lock.handle] = lock
        lvb = lock.lvb
        if lvb is None:
            self.unsized[lock.handle] = None
            return
        self.grow(min(lvb.size, lock.end + 1))
        self.blocks = max(self.blocks, lvb.blocks)
        self.atime = max(self.atime, lvb.atime)
        if lvb.ctime >= self.ctime:
            self.mtime, self.ctime = lvb.mtime, lvb.ctime

    def abandon(self, lock: ClientLock) -> list[tuple[int, int]]:
        """The lock goes; returns the ranges that no other one covers: nothing may be kept of them."""
        assert lock.data is self
        lock.data = None
        del self.locks[lock.handle]
        self.unsized.pop(lock.handle, None)
        self.size = size_known_after(self.size, lock, [other.end for other in self.locks.values()])
        if not self.locks:
            self.size = self.blocks = self.atime = self.mtime = self.ctime = 0
        left = [(lock.start, lock.end + 1)]
        for other in self.locks.values():
            low, high = other.start, other.end + 1
            left = [
                part
                for start, end in left
                for part in ((start, min(end, low)), (max(start, high), end))
                if part[0] < part[1]
            ]
        return left

    def lock_at(self, offset: int, modes: int) -> ClientLock | None:
        """A lock of one of `modes` that covers the byte at `offset`, asked for or not (if there is a choice, not)."""
        found = None
        for lock in self.locks.values():
            if lock.start <= offset <= lock.end and lock.mode & modes:
                if lock.ready:
                    return lock
                found = lock
        return found

    @property
    def exact(self) -> bool:
        """Is `size` the object's size, and stays so as long as nobody here changes it?"""
        for lock in self.locks.values():
            if lock.end >= OBJECT_EOF and lock.start <= self.size and lock.handle not in self.unsized:
                return True
        return False

    def lvb(self) -> Lvb:
        """What is known of it."""
        if not self.pages.cost:
            last = self._last
            now = (self.size, self.blocks, self.atime, self.mtime, self.ctime)
            if last != now:
                last = self._last = Lvb._make(now)
            return last
        dirty = self.pages.cost // _BLOCK_BYTES
        whole = -(-self.size // _DISK_BLOCK_BYTES) * (_DISK_BLOCK_BYTES // _BLOCK_BYTES)
        blocks = max(self.blocks, min(self.blocks + dirty, whole))
        return Lvb(self.size, blocks, self.atime, self.mtime, self.ctime)

    def grow(self, size: int) -> None:
        """It has at least `size` bytes."""
        if size > self.size:
            self.size = size

    @property
    def resizing(self) -> bool:
        """Is a truncation under way?"""
        return bool(self.resized % 2)

    def seen(self, size: int, lock: ClientLock, since: int) -> bool:
        """The OST said that it has `size` bytes, in answer to what was asked under `lock` when `resized` was `since`.

        False: it may be so no more.
        """
        if lock.data is not self or self.resized != since or self.resizing:
            return False
        self.grow(min(size, lock.end + 1))
        return True

    def doubt(self) -> None:
        """A change failed: how long it is now only the OST can say, beside what is dirty here."""
        ends = [flight.end for flight in self.pages.flights if flight.cost] + self.pages.dirty.ends[-1:]
        self.size = min(self.size, max(ends, default=0))
        self.unsized.update(dict.fromkeys(self.locks))

    def changed(self, time: int) -> None:
        """It was changed here at `time`."""
        if time >= self.ctime:
            self.mtime = self.ctime = time

    def told(self, attr: ObjectAttr) -> None:
        """What the OST said after a change of ours: its size may lag behind what is dirty here."""
        self.blocks = attr.blocks
        if attr.ctime > self.ctime:
            self.mtime, self.ctime = attr.mtime, attr.ctime
