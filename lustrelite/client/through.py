"""What changes an object on its OST while the caller waits: writes past the cache, holes, room, truncations.

Each is a flight of its range, so that nothing overlaps it on its way, and it runs to its end whatever happens to its
caller. Meanwhile readers here, and whoever is told a size by us, must not see half of it:

    a write     what was cached in its range is forgotten, and who wants to read there waits. The size grows at once,
                to the end of it, however many RPCs it takes: the OST may tell it to others from now on, and they may
                ask us.
    a hole      the same, and the size stays. So is room that is allocated, but that the size may grow.
    truncation  everything stays as it was, and nobody writes, until all objects of the file are cut; then all is cut
                here in one turn. Others are told the larger size until then, and that it is being cut: the OST,
                which may have cut the object, then knows who is behind (wire.locks.Known). Who wants to read beyond
                the cut, and has it not here, waits.

If one fails nobody knows what the object is like: its lock is given back, and the next one says; until then the OST is
asked for the size, whatever other locks are here.

Nobody here writes there anew while somebody waits until nothing of his range is dirty or on its way (range_locks.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from lustrelite.client.cached_object import CachedObject
from lustrelite.client.page_cache import Flight
from lustrelite.client.tasks import results
from lustrelite.errors import Evicted, OpError
from lustrelite.ids import Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.wire import ost
from lustrelite.wire.ost import OBJECT_EOF, ObjectAttr

if TYPE_CHECKING:
    from lustrelite.client.writeback import WriteBack


class Cut(NamedTuple):
    """An object that the OST has cut, and we have not."""

    cached: CachedObject
    lock: ClientLock
    flight: Flight
    body: ost.Punch
    attr: ObjectAttr


class Through:
    """Changes past the cache of one OST's objects."""

    def __init__(self, writeback: WriteBack) -> None:
        self.back = writeback
        self.osc = writeback.osc
        self.shared = writeback.shared

    async def write(
        self, cached: CachedObject, lock: ClientLock, start: int, pieces: list[memoryview], time: int, owner: Fid,
        stripe: int, begins: Callable[[], None], *, keep: bool = True,
    ) -> None:  # fmt: skip
        """Write `pieces` at `start` and return when they are durable; with `keep` they are cached then.

        `begins` is called in the turn from which on the OST may have some of it.
        Errors: ENOSPC, EIO, ENOENT, EFBIG; any part may be written
        """
        cached.owner, cached.stripe = owner, stripe
        size = self.osc.bytes_max
        data = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        end = start + len(data)
        await self._quiet(cached, start, end)
        begins()
        cuts = [start, *range((start // size + 1) * size, end, size), end]
        flights = []
        for low, high in pairwise(cuts):  # all in this turn, however long they wait for their RPCs
            flight = self._begin(cached, lock, low, high)
            flight.data, flight.time = data[low - start : high - start], time
            flights.append(flight)
            self._launch(cached, lock, flight, self._write(cached, lock, flight, keep))
        cached.grow(end)
        cached.changed(time)
        results([await asyncio.shield(flight.done) for flight in flights])

    async def _write(self, cached: CachedObject, lock: ClientLock, flight: Flight, keep: bool) -> None:
        await self.osc.redeem(lock.handle)
        async with self.osc.slots():
            if lock.data is not cached:  # lost meanwhile
                raise Evicted(self.osc.name)
            body = self.back.body(cached, flight, from_grant=False)
            reply, _ = await self.osc.imp.call_bulk(body, bulk=flight.data, cred=cached.cred)
        self.back.grant.used(0, reply.grant)
        cached.pages.end_flight(flight, lost=False)
        if lock.data is cached:
            cached.told(reply.attr)
            if keep:
                cached.pages.keep(flight.start, flight.data)

    async def change(
        self, cached: CachedObject, lock: ClientLock, body: ost.Punch | ost.Fallocate, begins: Callable[[], None]
    ) -> None:
        """Make a hole (the size stays), or find room. `begins` as in `write`.  Errors: EIO, ENOENT, ENOSPC, EOPNOTSUPP"""
        await self._quiet(cached, body.start, body.end)
        begins()
        cached.owner, cached.stripe = body.owner, body.stripe
        flight = self._begin(cached, lock, body.start, body.end)
        cached.changed(body.time)
        if isinstance(body, ost.Fallocate) and not body.mode & ost.FALLOC_KEEP_SIZE:
            cached.grow(body.end)

        async def change() -> None:
            await self.osc.redeem(lock.handle)
            attr = await self.osc.imp.call(body._replace(lock=lock.handle), cred=cached.cred)
            cached.pages.end_flight(flight, lost=False)
            if lock.data is cached:
                cached.told(attr)
            self.back.remember(attr.version, cached.owner)

        self._launch(cached, lock, flight, change())
        results([await asyncio.shield(flight.done)])

    async def _quiet(self, cached: CachedObject, start: int, end: int) -> None:
        """Return when nothing of the range is dirty or on its way, in that turn of the loop."""
        while cached.pages.busy(start, end):
            await self.back.flush(cached, start, end)

    def _begin(self, cached: CachedObject, lock: ClientLock, start: int, end: int) -> Flight:
        if lock.data is not cached:
            raise Evicted(self.osc.name)
        flight: Flight = cached.pages.begin_flight(start, end)
        flight.lock = lock.handle
        return flight

    def _launch(
        self, cached: CachedObject, lock: ClientLock, flight: Flight, work: Coroutine[Any, Any, None]
    ) -> None:
        """Begin `work`, which goes on to its end without us."""

        async def run() -> None:
            try:
                await work
            except OpError:
                self._failed(cached, lock, flight)
                raise
            finally:
                self.shared.landed()

        flight.done = self.shared.tasks.spawn(run(), "write through")

    def _failed(self, cached: CachedObject, lock: ClientLock, flight: Flight) -> None:
        cached.pages.end_flight(flight, lost=True)
        cached.doubt()
        if lock.data is cached:
            self.osc.forget(lock)

    # truncation -------------------------------------------------------------------------------------------------

    async def cut_off(self, cached: CachedObject, lock: ClientLock, body: ost.Punch, begins: Callable[[], None]) -> Cut:
        """Have the OST make the object `body.start` bytes long. `finish` it, whatever comes.

        `begins` as in `write`.  Errors: EIO, ENOENT
        """
        pages = cached.pages
        await self.osc.redeem(lock.handle)
        while flights := pages.flights_in(body.start, OBJECT_EOF):
            await asyncio.wait([flights[0].done])
        if lock.data is not cached:
            raise Evicted(self.osc.name)
        cached.owner, cached.stripe = body.owner, body.stripe
        flight = pages.hold(body.start, OBJECT_EOF)
        flight.done = asyncio.get_running_loop().create_future()
        begins()
        cached.resized += 1
        cached.cut = body._replace(lock=lock.handle)

        def answered(attr: ObjectAttr | None, transno: int) -> None:
            if attr is not None:  # a glimpse may come right behind
                cached.cut = None

        try:
            attr: ObjectAttr = await self.osc.imp.call(cached.cut, cred=cached.cred, ended=answered)
        except OpError:
            self._failed(cached, lock, flight)
            self._over(cached, flight)
            raise
        finally:
            cached.cut = None
        self.back.remember(attr.version, body.owner)
        return Cut(cached, lock, flight, body, attr)

    def finish(self, cut: Cut) -> None:
        """Cut it here, too."""
        cached, start = cut.cached, cut.body.start
        cached.pages.cut(start, OBJECT_EOF)
        self.back.settle(cached)
        cached.pages.end_flight(cut.flight, lost=False)
        if cut.lock.data is cached:
            cached.size = start
            cached.unsized.pop(cut.lock.handle, None)
            cached.changed(cut.body.time)
            cached.told(cut.attr)
        self._over(cached, cut.flight)

    def _over(self, cached: CachedObject, flight: Flight) -> None:
        cached.resized += 1
        flight.done.set_result(None)
        self.shared.landed()
