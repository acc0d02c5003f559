"""Which byte ranges of objects have I/O in flight, and who must wait for whom.

A large write runs in a worker thread and cannot be called back once it is there. So that the order in which requests
were admitted is the order in which they reach the file *and* the order of their transnos, a request holds its range
from before its I/O until its record is staged, and a later one that overlaps waits for it. What would break without:

- a replay repeats writes in transno order: two overlapping writes whose data and transnos are in different order would
  swap at the replay;
- a client is evicted while its write is in a thread: whoever is served next must not be overwritten by it afterwards;
- a destroyed object's file must not be made again by a write that was in a thread while it was unlinked;
- a read would see half of a write.

Waiting is only ever for earlier arrivals, so there is no deadlock. Not handled here: locks of clients (ldlm), which
make such overlaps rare.
Source of the rule: protocol-facts 4.6 (5), LU-11444; server-side extent locks of lockless I/O, ofd_io.c
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


class Hold:
    """One request's ranges [start, end) of object `oid`, in order."""

    __slots__ = ("blockers", "end", "followers", "gone", "oid", "parts", "ready", "shared", "start")

    def __init__(self, oid: int, parts: Sequence[tuple[int, int]], shared: bool) -> None:
        self.oid = oid
        self.parts = parts
        self.start = parts[0][0]
        self.end = parts[-1][1]
        self.shared = shared  # with other readers
        self.blockers = 0  # earlier holds that still stand in the way
        self.followers: list[Hold] = []
        self.ready: asyncio.Future[None] | None = None
        self.gone = False

    def conflicts(self, other: Hold) -> bool:
        """Whether the two may not be in flight together."""
        if (self.shared and other.shared) or self.start >= other.end or other.start >= self.end:
            return False
        return any(low < end and start < high for low, high in self.parts for start, end in other.parts)


class Ranges:
    """The holds of one OST, by object in order of arrival. Nothing is kept for an object without I/O in flight."""

    def __init__(self) -> None:
        self._queues: dict[int, list[Hold]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def busy(self, oid: int) -> bool:
        """Whether the object has any I/O in flight or waiting."""
        return oid in self._queues

    def free(self, oid: int, *parts: tuple[int, int]) -> bool:
        """Whether nothing at all is in flight in the ranges."""
        queue = self._queues.get(oid)
        if queue is None:
            return True
        wanted = Hold(oid, parts, shared=False)
        return not any(other.conflicts(wanted) for other in queue)

    async def hold(self, oid: int, *parts: tuple[int, int], shared: bool = False) -> Hold:
        """Hold the ranges once nothing earlier conflicts; `release` them in every case. Does not suspend if they are free."""
        hold = Hold(oid, parts, shared)
        queue = self._queues.setdefault(oid, [])
        for other in queue:
            if other.conflicts(hold):
                other.followers.append(hold)
                hold.blockers += 1
        queue.append(hold)
        if hold.blockers:
            hold.ready = asyncio.get_running_loop().create_future()
            granted = False
            try:
                await hold.ready
                granted = True
            finally:
                if not granted:  # cancelled while it waited
                    self.release(hold)
        return hold

    def release(self, hold: Hold) -> None:
        """Give the range back and let those waiting for it go on; a second release does nothing."""
        if hold.gone:
            return
        hold.gone = True
        queue = self._queues[hold.oid]
        queue.remove(hold)
        if not queue:
            del self._queues[hold.oid]
        for follower in hold.followers:
            follower.blockers -= 1
            assert follower.blockers >= 0
            if not follower.blockers and follower.ready is not None and not follower.ready.done():
                follower.ready.set_result(None)
