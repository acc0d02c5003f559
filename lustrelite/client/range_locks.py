"""Operations on one file that take more than a turn of the loop: what of them may overlap among those of this client.

Extent locks are the client's: they order nothing between its own tasks. So what changes a file, or must know that it stays
as it is (direct reads, seeks), and may have to wait for a lock, an answer, or room, holds its range of the file meanwhile:
alone to change it, else shared. What conflicts goes in the order in which it came. A change that needs no wait
asks whether the range is `free`, and is done in one turn.

Reads through the cache hold nothing: they take what is there, in one turn at their end. But they wait while a range is
`torn`: from when the first object of the file is changed until all of them are.

Nothing else is held while somebody waits here: the locks of OSTs are taken afterwards, so there is no circle.
Source: range_lock(), lustre/llite/range_lock.c; ll_file_io_generic()
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lustrelite.wire.mdt import Layout

FileKey = tuple[int, int]  # a file's first object: OST index, number


class RangeLock:
    """The range of one operation."""

    __slots__ = ("alone", "end", "held", "over", "start", "torn")

    def __init__(self, start: int, end: int, alone: bool) -> None:
        self.start = start
        self.end = end
        self.alone = alone
        self.held = False
        self.torn = False  # it is being done
        self.over: asyncio.Future[None] | None = None  # if anybody waits for it

    def tear(self) -> None:
        """From this turn of the loop on some of it is done."""
        self.torn = True

    def overlaps(self, start: int, end: int) -> bool:
        """Is any of [start, end) its?"""
        return self.start < end and start < self.end


class RangeLocks:
    """Those of all files."""

    def __init__(self) -> None:
        self._files: dict[FileKey, list[RangeLock]] = {}  # in the order in which they came

    def free(self, layout: Layout, start: int, end: int) -> bool:
        """May [start, end) be changed in this turn of the loop?"""
        locks = self._files.get(layout.stripes[0]) if self._files else None  # mostly there are none
        return locks is None or not any(lock.held and lock.overlaps(start, end) for lock in locks)

    def whole(self, layout: Layout, start: int, end: int) -> bool:
        """May [start, end) be read in this turn of the loop?"""
        return not self._files or self._torn(layout, start, end) is None

    async def until_whole(self, layout: Layout, start: int, end: int) -> None:
        """Return when it may."""
        while (lock := self._torn(layout, start, end)) is not None:
            await _over(lock)

    def _torn(self, layout: Layout, start: int, end: int) -> RangeLock | None:
        locks = self._files.get(layout.stripes[0], ())
        return next((lock for lock in locks if lock.torn and lock.overlaps(start, end)), None)

    @asynccontextmanager
    async def hold(self, layout: Layout, start: int, end: int, *, alone: bool = True) -> AsyncIterator[RangeLock]:
        """Have [start, end) for as long as it takes."""
        key = layout.stripes[0]
        locks = self._files.setdefault(key, [])
        lock = RangeLock(start, end, alone)
        locks.append(lock)
        try:
            while (before := _first_in_the_way(locks, lock)) is not None:
                await _over(before)
            lock.held = True
            yield lock
        finally:
            locks.remove(lock)
            if not locks:
                del self._files[key]
            if lock.over is not None:
                lock.over.set_result(None)


def _first_in_the_way(locks: list[RangeLock], lock: RangeLock) -> RangeLock | None:
    for one in locks:
        if one is lock:
            break
        if (one.alone or lock.alone) and one.overlaps(lock.start, lock.end):
            return one
    return None


async def _over(lock: RangeLock) -> None:
    if lock.over is None:
        lock.over = asyncio.get_running_loop().create_future()
    await asyncio.wait([lock.over])
