"""Dirty data on its way to one OST: when it is written back, in which portions, and what becomes of errors.

Written back is what

    fills an RPC                      at once, so that a stream never waits
    is older than write_back_after_s  by and by
    lies under a lock that is asked for, or that an fsync, O_DIRECT or a hole wants clean    before these go on
    stands in the way of new data     max_dirty_bytes of this OST, half of max_cached_bytes of the mount, the grant

Data is accepted only within the grant (grant.py), or it is written through while its writer waits: only he can be told
ENOSPC. So a write-back can fail in one way only: the disk is broken, or we were evicted. Then the bytes are lost,
forgotten here, and every open file that wrote to them says EIO once (`Shared.on_lost`).

A write is answered before it is durable; its copy stays on the import's replay list until it is. If we are evicted
before that, it may be lost, too: `_unstable` remembers whose. A write through is answered when it is durable, because
its data is the caller's.

Order. Nothing that overlaps a flight is sent until the flight is over, whoever waits for it: the OST executes what it
has in any order. A truncation or a hole is a flight of its range, too.
Source: osc/osc_cache.c: osc_extent_*, osc_io_unplug(); LU-2139 (what is answered is not yet durable)
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from lustrelite.client.cached_object import CachedObject
from lustrelite.client.grant import Grant
from lustrelite.client.intervals import Intervals
from lustrelite.client.page_cache import Buffer, Flight, PageCache
from lustrelite.client.tasks import Tasks
from lustrelite.errors import Evicted, OpError
from lustrelite.ids import Fid, fid_text
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.policy import WRITERS
from lustrelite.rpc.node import Node
from lustrelite.wire import ost
from lustrelite.wire.ost import OBJECT_EOF, ObjectAttr

if TYPE_CHECKING:
    from lustrelite.client.osc import Osc


class Shared:
    """What the caches of all OSTs of a mount share."""

    def __init__(self, node: Node) -> None:
        tunables = node.tunables
        self.node = node
        self.tasks = Tasks(node)
        self.pages = PageCache(lambda: tunables.max_cached_bytes)
        self.dirty = 0  # bytes of grant taken, on all OSTs
        self.ahead = 0  # bytes that are being read ahead
        self.on_lost: Callable[[Fid, int], None] = _nobody
        self.writebacks: list[WriteBack] = []
        self._waiters: list[asyncio.Future[None]] = []

    async def landing(self) -> None:
        """Return when anything was written back, or given up."""
        future = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await future

    def landed(self) -> None:
        """Something was."""
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)


def _nobody(owner: Fid, number: int) -> None:
    """Nobody is to be told."""


class WriteBack:
    """The dirty data of one OST."""

    def __init__(self, osc: Osc, shared: Shared, grant: Grant) -> None:
        self.osc = osc
        self.node = osc.node
        self.shared = shared
        self.grant = grant
        self.dirty: dict[CachedObject, float] = {}  # since when, the longest first
        self.written_bytes = 0
        self._full: dict[tuple[CachedObject, int], None] = {}  # RPCs' worth of dirty data, to be written at once
        self._due: dict[CachedObject, None] = {}
        self._worker = False
        self._timer: asyncio.TimerHandle | None = None
        self._unstable: deque[tuple[int, Fid]] = deque()  # (transno, whose) of what is perhaps not durable yet
        shared.writebacks.append(self)

    # accepting --------------------------------------------------------------------------------------------------

    def accept(
        self, cached: CachedObject, start: int, end: int, pieces: Sequence[Buffer], time: int, owner: Fid, stripe: int
    ) -> bool:
        """Take `pieces` into the cache, now; False if there is no room for so much dirty data. A PW lock must be held."""
        pages, shared = cached.pages, self.shared
        cost = pages.write_cost(start, end)
        tunables = self.node.tunables
        if cost > 0 and (
            self.grant.reserved + cost > tunables.max_dirty_bytes or shared.dirty + cost > tunables.max_cached_bytes // 2
        ):
            return False
        if not self.grant.reserve(cost):
            return False
        shared.dirty += cost
        cached.charged += cost
        cached.owner, cached.stripe = owner, stripe
        low, high = pages.write(start, pieces)
        assert cached.charged == pages.cost
        cached.grow(end)
        cached.changed(time)
        if cached not in self.dirty:
            self.dirty[cached] = self.node.now()
            if self._timer is None:
                self._arm_timer(tunables.write_back_after_s)
        size = self.osc.bytes_max
        if high - low >= size:
            self._mark_full(cached, start, end, size)
        return True

    def _mark_full(self, cached: CachedObject, start: int, end: int, size: int) -> None:
        covers = cached.pages.dirty.covers
        for number in range(start // size, (end - 1) // size + 1):
            if covers(number * size, (number + 1) * size):
                self._full[cached, number] = None
        if self._full:
            self._work_soon()

    async def write(
        self, cached: CachedObject, lock: ClientLock, start: int, pieces: list[memoryview], time: int, owner: Fid,
        stripe: int,
    ) -> None:  # fmt: skip
        """Write `pieces` at `start` under `lock`: into the cache if there is room, soon if there will be, else through.

        Errors: of `through`; EIO, the lock was lost meanwhile
        """
        end = start + sum(map(len, pieces))
        while True:
            if lock.data is not cached:
                raise Evicted(self.osc.name)
            if self.accept(cached, start, end, pieces, time, owner, stripe):
                return
            cost = cached.pages.write_cost(start, end)
            tunables = self.node.tunables
            too_much = cost > min(tunables.max_dirty_bytes, tunables.max_cached_bytes // 2)
            if too_much or (not self.grant.reserved and cost > self.grant.available):
                await self.through(cached, lock, start, pieces, time, owner, stripe)
                return
            for writeback in self.shared.writebacks if shared_is_full(self.shared, cost) else [self]:
                writeback.write_back_soon()
            await self.shared.landing()

    # writing back -----------------------------------------------------------------------------------------------

    def write_back_soon(self) -> None:
        """Write back whatever is dirty, in the background."""
        self._due.update(dict.fromkeys(self.dirty))
        if self._due:
            self._work_soon()

    def _work_soon(self) -> None:
        if not self._worker:
            self._worker = True
            self.shared.tasks.spawn(self._work(), f"write back {self.osc.name}")

    async def _work(self) -> None:
        try:
            while True:
                if self._full:
                    cached, number = next(iter(self._full))
                    del self._full[cached, number]
                    size = self.osc.bytes_max
                    await self._send(cached, number * size, (number + 1) * size)
                elif self._due:
                    cached = next(iter(self._due))
                    del self._due[cached]
                    await self._send(cached, 0, OBJECT_EOF)
                else:
                    return
        finally:
            self._worker = False

    def _arm_timer(self, pause: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(pause, 0.01), self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        now, age = self.node.now(), self.node.tunables.write_back_after_s
        for cached, since in list(self.dirty.items()):
            if since + age > now:
                break
            self._due[cached] = None
            del self.dirty[cached]
            self.dirty[cached] = now  # what is dirtied from now on has its own time
        if self.dirty:
            self._arm_timer(next(iter(self.dirty.values())) + age - now)
        if self._due:
            self._work_soon()

    def stop(self) -> None:
        """The mount ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def flush(self, cached: CachedObject, start: int = 0, end: int = OBJECT_EOF) -> None:
        """Return when what is dirty in the range now was written, or is lost."""
        await self._send(cached, start, end)
        for flight in cached.pages.flights_in(start, end):
            await _over(flight)

    async def _send(self, cached: CachedObject, start: int, end: int) -> None:
        """Send off what is dirty in the range now; of what is sent by others meanwhile there are flights."""
        pages = cached.pages
        todo = Intervals(pages.dirty.within(start, end))
        while todo:
            low, high = todo.starts[0], todo.ends[0]
            still = pages.dirty.within(low, high)
            if not still:
                todo.remove(low, high)
                continue
            at = still[0][0]
            todo.remove(low, at)
            in_the_way = pages.flights_in(at, at + 1)
            if in_the_way:
                await _over(in_the_way[0])
                continue
            lock = cached.lock_at(at, WRITERS)
            if lock is None:  # cannot be: it was written under one, and goes with it
                self.lose(cached, [(at, still[0][1])])
                continue
            slots = self.osc.slots()
            await slots.acquire()
            flight = None
            if lock.data is cached:  # all may have changed meanwhile
                flight = pages.collect(at, min(still[0][1], lock.end + 1), self.osc.bytes_max)
            if flight is None:
                slots.release()
                continue
            self._launch(cached, flight, lock, slots)

    def _launch(self, cached: CachedObject, flight: Flight, lock: ClientLock, slots: asyncio.Semaphore) -> None:
        self.settle(cached)
        flight.lock = lock.handle
        flight.time = cached.mtime
        flight.done = self.shared.tasks.spawn(self._fly(cached, flight, slots), "write")

    async def _fly(self, cached: CachedObject, flight: Flight, slots: asyncio.Semaphore) -> None:
        body = self._body(cached, flight, from_grant=True)
        ended = False
        try:
            reply, _ = await self.osc.imp.call_bulk(body, bulk=flight.data, cred=cached.cred)
            ended = True
        except OpError as error:
            ended = True
            self._crashed(cached, flight, error)
        else:
            self._landed(cached, flight, reply)
        finally:
            slots.release()
            if ended:
                self.shared.landed()

    def _body(self, cached: CachedObject, flight: Flight, *, from_grant: bool) -> ost.Write:
        tunables = self.node.tunables
        wanted = tunables.max_dirty_bytes + tunables.max_rpcs_in_flight * self.osc.bytes_max
        return ost.Write(
            cached.obj, flight.start, cached.owner, cached.stripe, flight.time, flight.lock, from_grant,
            self.grant.wish(wanted), sync=not from_grant,
        )  # fmt: skip

    def _landed(self, cached: CachedObject, flight: Flight, reply: ost.WriteReply) -> None:
        cached.pages.end_flight(flight, lost=False)
        cached.charged -= flight.cost
        self.shared.dirty -= flight.cost
        self.grant.used(flight.cost, reply.grant)
        self.written_bytes += flight.end - flight.start
        cached.told(reply.attr)
        self._remember(reply.attr.version, cached.owner)

    def _crashed(self, cached: CachedObject, flight: Flight, error: OpError) -> None:
        cached.pages.end_flight(flight, lost=True)
        self.settle(cached)
        lock = cached.locks.get(flight.lock)
        if lock is not None:
            self.osc.forget(lock)  # the object may be shorter than we thought
        if not flight.reported:
            self._report(cached.owner, flight.end - flight.start, error)

    def settle(self, cached: CachedObject) -> None:
        """What is dirty has changed without `accept`: tell the grant."""
        change = cached.pages.cost - cached.charged
        if change:
            cached.charged += change
            self.shared.dirty += change
            self.grant.change(change)
            if change < 0:
                self.shared.landed()
        if not cached.pages.dirty:
            self.dirty.pop(cached, None)

    # losing -----------------------------------------------------------------------------------------------------

    def lose(self, cached: CachedObject, ranges: Sequence[tuple[int, int]]) -> None:
        """A lock is lost, and with it what is dirty in `ranges`, and what is on its way."""
        lost = 0
        for start, end in ranges:
            lost += cached.pages.cut(start, end)
            for flight in cached.pages.flights_in(start, end):
                if flight.cost and not flight.reported:
                    flight.reported = True
                    lost += flight.end - flight.start
        self.settle(cached)
        if lost:
            self._report(cached.owner, lost, Evicted(self.osc.name))

    def discard(self, cached: CachedObject, start: int, end: int) -> None:
        """Forget what is dirty in the range: its file is gone."""
        cached.pages.cut(start, end)
        self.settle(cached)

    def _report(self, owner: Fid, lost: int, error: OpError) -> None:
        if error.errno == errno.ENOENT:  # the object was destroyed: nobody will miss it
            return
        self.node.events.emit(
            "client.data_lost", level="warning", target=self.osc.name, fid=fid_text(owner), bytes=lost, error=str(error),
            message=f"{lost} bytes that were written to {fid_text(owner)} are lost: {error}",
        )  # fmt: skip
        self.shared.on_lost(owner, error.errno if error.errno in (errno.ENOSPC, errno.EDQUOT) else errno.EIO)

    def _remember(self, transno: int, owner: Fid) -> None:
        """A write was executed as `transno`, and may not be durable."""
        unstable, committed = self._unstable, self.osc.last_committed
        while unstable and unstable[0][0] <= committed:
            unstable.popleft()
        if transno > committed:
            unstable.append((transno, owner))

    def evicted(self) -> None:
        """The OST has forgotten us: what it had answered and not committed may be lost."""
        committed = self.osc.last_committed
        owners = dict.fromkeys(owner for transno, owner in self._unstable if transno > committed)
        self._unstable.clear()
        for owner in owners:
            self.shared.on_lost(owner, errno.EIO)

    # past the cache ---------------------------------------------------------------------------------------------

    async def through(
        self, cached: CachedObject, lock: ClientLock, start: int, pieces: list[memoryview], time: int, owner: Fid,
        stripe: int, *, keep: bool = True,
    ) -> None:  # fmt: skip
        """Write `pieces` at `start` and return when they are durable; with `keep` they are cached then.

        Errors: ENOSPC, EIO, ENOENT, EFBIG; any part may be written
        """
        cached.owner, cached.stripe = owner, stripe
        size = self.osc.bytes_max
        data = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        end = start + len(data)
        cuts = [start, *range((start // size + 1) * size, end, size), end]
        await self.shared.tasks.gather(
            [
                self._through(cached, lock, low, data[low - start : high - start], time, keep)
                for low, high in pairwise(cuts)
            ],
            "write through",
        )

    async def _through(
        self, cached: CachedObject, lock: ClientLock, start: int, data: memoryview, time: int, keep: bool
    ) -> None:
        end = start + len(data)
        slots = self.osc.slots()
        await slots.acquire()
        try:
            while cached.pages.busy(start, end):
                slots.release()
                try:
                    await self.flush(cached, start, end)
                finally:
                    slots = self.osc.slots()
                    await slots.acquire()
            if lock.data is not cached:
                raise Evicted(self.osc.name)
            flight = cached.pages.begin_flight(start, end, data)
            flight.lock, flight.time = lock.handle, time
        except BaseException:
            slots.release()
            raise

        async def write() -> None:
            try:
                reply, _ = await self.osc.imp.call_bulk(
                    self._body(cached, flight, from_grant=False), bulk=data, cred=cached.cred
                )
                self.grant.used(0, reply.grant)
                self._done(cached, lock, flight, reply.attr)
                if keep and lock.data is cached:
                    cached.pages.keep(start, data)
                    cached.grow(end)
            finally:
                slots.release()

        await self._fly_through(cached, lock, flight, write())

    async def punch(self, cached: CachedObject, lock: ClientLock, start: int, end: int, body: ost.Punch) -> None:
        """Free [start, end) of the object; up to OBJECT_EOF makes it `start` bytes long.  Errors: EIO, ENOENT"""
        pages = cached.pages
        if end < OBJECT_EOF:
            while pages.busy(start, end):
                await self.flush(cached, start, end)
        else:
            pages.cut(start, end)
            while flights := pages.flights_in(start, end):
                await _over(flights[0])
                pages.cut(start, end)
            self.settle(cached)
        if lock.data is not cached:
            raise Evicted(self.osc.name)
        cached.owner, cached.stripe = body.owner, body.stripe
        flight = pages.begin_flight(start, end)
        whole = end >= OBJECT_EOF
        if whole:
            cached.size = start
            cached.resized += 1
            cached.unsized.pop(lock.handle, None)
        cached.changed(body.time)

        async def punch() -> None:
            try:
                await send()
            finally:
                cached.resized += whole

        async def send() -> None:
            attr: ObjectAttr = await self.osc.imp.call(body._replace(lock=lock.handle), cred=cached.cred)
            self._done(cached, lock, flight, attr)
            self._remember(attr.version, cached.owner)

        await self._fly_through(cached, lock, flight, punch())

    def _done(self, cached: CachedObject, lock: ClientLock, flight: Flight, attr: ObjectAttr) -> None:
        cached.pages.end_flight(flight, lost=False)
        if lock.data is cached:
            cached.told(attr)
            cached.grow(min(attr.size, flight.end))

    async def _fly_through(
        self, cached: CachedObject, lock: ClientLock, flight: Flight, work: Coroutine[Any, Any, None]
    ) -> None:
        """Run `work` to its end, whatever happens to the caller: until then nobody else may write there."""

        async def run() -> None:
            try:
                await work
            except OpError:
                cached.pages.end_flight(flight, lost=True)
                if lock.data is cached:
                    self.osc.forget(lock)  # what the object is like now nobody knows
                raise
            finally:
                self.shared.landed()

        flight.done = self.shared.tasks.spawn(run(), "write through")
        outcome = await asyncio.shield(flight.done)
        if isinstance(outcome, OpError):
            raise outcome


def shared_is_full(shared: Shared, cost: int) -> bool:
    """Is it the mount's bound that `cost` more dirty bytes would break?"""
    return shared.dirty + cost > shared.node.tunables.max_cached_bytes // 2


async def _over(flight: Flight) -> None:
    """Return when the flight is over."""
    await asyncio.wait([flight.done])
