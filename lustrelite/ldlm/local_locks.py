"""Locks that a target takes for itself, against what clients cache; their owner is LOCAL.

A target needs none against itself: a mutating handler runs in one turn (D4). `busy` and `extent_busy` say whether somebody
caches what an operation is about to change, and if so `wait` and `wait_extent` take it back and keep it until `release`.
Source: mdt_object_lock(), mdt/mdt_handler.c; ofd_preprw_write() with OBD_FL_SRVLOCK, ofd/ofd_io.c
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from lustrelite.ldlm.lock import LOCAL, Effect, Lock, Wait
from lustrelite.ldlm.table import LockTable
from lustrelite.wire.ldlm import EX, EXTENT, IBITS, NL, NO_EXPANSION

if TYPE_CHECKING:
    from lustrelite.rpc.export import Export

LocalLock = Lock  # one whose owner is LOCAL

_NOT_NL = ~NL


class LocalLocks:
    """Those of one target."""

    def __init__(
        self,
        table: LockTable,
        now: Callable[[], float],
        run: Callable[[Iterable[Effect]], None],
        say_waiting: Callable[[Lock, Lock], None],
    ) -> None:
        self._table = table
        self._now = now
        self._run = run
        self._say_waiting = say_waiting
        self._waits: dict[LocalLock, asyncio.Future[None]] = {}
        self._last_handle = 0

    def busy(self, fid: bytes, bits: int, by: Export | None = None, own: int = 0) -> bool:
        """Would an EX lock of the target have to wait for a client that caches `bits` of `fid`?

        Not for the client `by`, as far as it is about the bits `own`.
        """
        resource = self._table.resources.get(fid)
        if resource is None or resource.granted is None:
            return False
        for lock in resource.granted:
            if lock.bits & bits and lock.mode & _NOT_NL and lock.owner is not LOCAL:
                if lock.owner is not by or lock.bits & bits & ~own:
                    return True
        return False

    def extent_busy(self, resource_id: bytes, start: int, end: int, mode: int) -> bool:
        """Would an extent lock of the target on [start, end] have to wait?"""
        resource = self._table.resources.get(resource_id)
        if resource is None or resource.granted is None:
            return False
        return resource.granted.first(Lock(LOCAL, 0, mode, start=start, end=end)) is not None

    async def wait(self, wants: Sequence[tuple[bytes, int]]) -> list[LocalLock]:
        """EX locks on each (FID, bits); holders are asked to give theirs back. `release` them.

        All queue up in this turn, in FID order, so two operations never wait for each other. Bits of one FID are
        joined.
        """
        bits_of: dict[bytes, int] = {}
        for fid, bits in sorted(wants):
            bits_of[fid] = bits_of.get(fid, 0) | bits
        return await self._wait_all(
            [(fid, IBITS, Lock(LOCAL, self._next_handle(), EX, bits=bits)) for fid, bits in bits_of.items()]
        )

    async def wait_extent(self, resource_id: bytes, start: int, end: int, mode: int) -> list[LocalLock]:
        """An extent lock on [start, end]; who holds what is in the way gives it back. `release` it."""
        lock = Lock(LOCAL, self._next_handle(), mode, start=start, end=end, flags=NO_EXPANSION)
        return await self._wait_all([(resource_id, EXTENT, lock)])

    def _next_handle(self) -> int:
        self._last_handle += 1
        return self._last_handle

    async def _wait_all(self, wants: list[tuple[bytes, int, LocalLock]]) -> list[LocalLock]:
        now = self._now()
        locks: list[LocalLock] = []
        futures: list[asyncio.Future[None]] = []
        granted = False
        try:
            for resource_id, kind, lock in wants:
                effects = self._table.enqueue(resource_id, kind, lock, now)
                locks.append(lock)
                first = effects[0]
                if type(first) is Wait:
                    future = self._waits[lock] = asyncio.get_running_loop().create_future()
                    futures.append(future)
                    self._say_waiting(lock, first.behind)
                    self._run(effects[1:])
            for future in futures:
                await future
            granted = True
        finally:
            if not granted:
                self.release(locks)
        return locks

    def completed(self, lock: LocalLock) -> None:
        """One that waited is granted."""
        future = self._waits.pop(lock, None)
        if future is not None and not future.done():
            future.set_result(None)

    def release(self, locks: Iterable[LocalLock]) -> None:
        """Give them back; those that wait give up."""
        now = self._now()
        for lock in locks:
            self._waits.pop(lock, None)
            effects = self._table.cancel(LOCAL, lock.handle, now)
            if effects:
                self._run(effects)
