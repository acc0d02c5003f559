"""Dirty data on its way to one OST: when it is written back, in which portions, and what becomes of errors.

Written back is what

    fills an RPC                      at once, so that a stream never waits
    is older than write_back_after_s  by and by, and with it what is half as old: small objects share their requests
    lies under a lock that is asked for, or that an fsync, O_DIRECT or a hole wants clean    before these go on
    stands in the way of new data     max_dirty_bytes of this OST, half of max_cached_bytes of the mount, the grant

Data is accepted only within the grant (grant.py), or it is written through while its writer waits: only he can be told
ENOSPC. So a write-back can fail in one way only: the disk is broken, or we were evicted. Then the bytes are lost,
forgotten here, and every open file that wrote to them says EIO once (`Shared.on_lost`).

What is little travels with others of its kind (WriteMany): small objects, and what is scattered in one. None of them
waits for another for longer than a request takes: if one cannot be written at once the OST refuses all, and they go on one
by one. Objects under promised locks (ldlm/promised.py) keep to themselves, for their first request is an Enqueue, which
may wait.

A write is answered before it is durable; its copy stays on the import's replay list until it is. If we are evicted
before that, it may be lost, too: `_unstable` remembers whose. A write through is answered when it is durable, because
its data is the caller's.

Order. Nothing that overlaps a flight is sent until the flight is over, whoever waits for it: the OST executes what it
has in any order. What goes past the cache (through.py) is a flight of its range, too.
Source: osc/osc_cache.c: osc_extent_*, osc_io_unplug(); LU-2139 (what is answered is not yet durable)
"""

from __future__ import annotations

import asyncio
import errno
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from lustrelite.client.cached_object import CachedObject
from lustrelite.client.grant import Grant
from lustrelite.client.intervals import Intervals
from lustrelite.client.page_cache import Buffer, Flight, PageCache
from lustrelite.client.tasks import Tasks
from lustrelite.client.through import Through
from lustrelite.errors import Evicted, OpError
from lustrelite.ids import Fid, fid_text
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.policy import WRITERS
from lustrelite.rpc.node import Node
from lustrelite.wire import ost
from lustrelite.wire.ost import OBJECT_EOF

if TYPE_CHECKING:
    from lustrelite.client.osc import Osc


LITTLE_BYTES = 64 << 10  # of an object: it is written back with others
TOGETHER_AGE = 0.5  # what is so little, and so much of its time old, goes with what is due

Load = tuple[CachedObject, Flight]


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
        self.metadata_leased: Callable[[], bool] = bool  # may locks of the MDT be believed in?
        self.metadata_until: Callable[[], float] = float  # until when they could be, or can
        self.metadata_instance: Callable[[], int] = int  # of the MDT
        self.on_heard: Callable[[Fid], None] | None = None  # an OST knows of a lock on an object of this file that was promised
        self.writebacks: list[WriteBack] = []
        self._waiters: list[asyncio.Future[None]] = []

    def full(self, cost: int) -> bool:
        """Is it the mount's bound that `cost` more dirty bytes would break?"""
        return self.dirty + cost > self.node.tunables.max_cached_bytes // 2

    async def landing(self, timeout_s: float) -> None:
        """Return when anything was written back, or given up, or after `timeout_s`."""
        future = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await asyncio.wait([future], timeout=timeout_s)

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
        self._full: dict[tuple[CachedObject, int], None] = {}  # RPCs' worth of dirty data, to be written at once
        self._due: dict[CachedObject, None] = {}
        self._worker = False
        self._timer: asyncio.TimerHandle | None = None
        self._unstable: deque[tuple[int, Fid]] = deque()  # (transno, whose) of what is perhaps not durable yet
        self.through = Through(self)
        shared.writebacks.append(self)

    # accepting --------------------------------------------------------------------------------------------------

    def accept(
        self, cached: CachedObject, start: int, end: int, pieces: Sequence[Buffer], time: int, owner: Fid, stripe: int
    ) -> bool:
        """Take `pieces` into the cache, now; False if there is no room for so much dirty data.

        A PW lock must be held.
        """
        if cached.resizing:  # what is written through a mapping now must come after that
            return False
        pages, shared = cached.pages, self.shared
        cost = pages.write_cost(start, end)
        tunables = self.node.tunables
        if cost > 0 and (self.grant.reserved + cost > tunables.max_dirty_bytes or shared.full(cost)):
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
        stripe: int, begins: Callable[[], None],
    ) -> None:  # fmt: skip
        """Write `pieces` at `start` under `lock`: into the cache if there is room, soon if there will be, else through.

        `begins` is called in the turn from which on somebody may see some of it.
        Errors: of `Through.write`; EIO, the lock was lost meanwhile
        """
        end = start + sum(map(len, pieces))
        while True:
            if lock.data is not cached:
                raise Evicted(self.osc.name)
            if self.accept(cached, start, end, pieces, time, owner, stripe):
                begins()
                return
            cost = cached.pages.write_cost(start, end)
            tunables = self.node.tunables
            too_much = cost > min(tunables.max_dirty_bytes, tunables.max_cached_bytes // 2)
            wanted = lock.asked is not None  # what we wait for may be another server
            if too_much or wanted or (not self.grant.reserved and cost > self.grant.available):
                await self.through.write(cached, lock, start, pieces, time, owner, stripe, begins)
                return
            for writeback in self.shared.writebacks if self.shared.full(cost) else [self]:
                writeback.write_back_soon()
            await self.shared.landing(tunables.lock_callback_s / 4)

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
                    await self._send(cached, number * size, (number + 1) * size, patient=False)
                elif self._due:
                    await self._send_first(self._due, patient=False)
                else:
                    return
        finally:
            self._worker = False

    async def _send_first(self, due: dict[CachedObject, None], *, patient: bool = True) -> None:
        """Send off the first of what is due; if that is little, with more of its kind. `patient` as in `_send`."""
        first = next(iter(due))
        if self._little(first) is None:
            del due[first]
            await self._send(first, 0, OBJECT_EOF, patient=patient)
            return
        slots = self.osc.slots()
        await slots.acquire()
        loads = self._collect_little(due)
        if loads:
            self._fly_off(loads, slots)
        else:  # all has changed meanwhile
            slots.release()

    def _fly_off(self, loads: list[Load], slots: asyncio.Semaphore) -> None:
        if len(loads) > 1:
            self.shared.tasks.spawn(self._fly_together(loads, slots), "write many")
        else:
            self.shared.tasks.spawn(self._fly(*loads[0], slots), "write")

    def _little(self, cached: CachedObject) -> tuple[int, int, ClientLock] | None:
        """The one range of a few bytes that is dirty, and its lock; None: there is more to it."""
        dirty = cached.pages.dirty
        if len(dirty.starts) != 1 or cached.pages.flights:
            return None
        low, high, size = dirty.starts[0], dirty.ends[0], self.osc.bytes_max
        lock = _lock_of_little(cached, low, high) if low // size == (high - 1) // size else None
        return (low, high, lock) if lock is not None else None

    def _collect_little(self, due: dict[CachedObject, None]) -> list[Load]:
        """Flights of what is due, as far as one request carries them, and they wait for nothing that others do not."""
        loads: list[Load] = []
        room, kind = self.osc.bytes_max, None
        for cached in list(islice(due, 4 * ost.WRITE_MANY_MAX)):
            found = self._little(cached)
            if found is None or found[1] - found[0] > room:
                continue
            low, high, lock = found
            own_kind = (cached.cred, self.osc.is_promised(lock.handle))
            if kind is None:
                kind = own_kind
            elif kind != own_kind:
                continue
            del due[cached]
            flight = self._flight(cached, low, high, lock)
            assert flight is not None
            loads.append((cached, flight))
            room -= high - low
            if len(loads) == ost.WRITE_MANY_MAX:
                break
        return loads

    def _arm_timer(self, pause: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(max(pause, 0.01), self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        now, age = self.node.now(), self.node.tunables.write_back_after_s
        for cached, since in list(self.dirty.items()):
            if since + age * TOGETHER_AGE > now:
                break
            if since + age > now and self._little(cached) is None:
                continue
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
            await over(flight)

    async def flush_all(self, objects: Iterable[CachedObject]) -> None:
        """`flush` them, little ones together."""
        due = dict.fromkeys(objects)
        flying = list(due)
        while due:
            await self._send_first(due)
        for cached in flying:
            for flight in list(cached.pages.flights):
                await over(flight)

    async def flush_durably(self, cached: CachedObject) -> bool:
        """`flush` all of it; True if it is durable, too, because one write was left to do, answered when that was so."""
        pages, size, slots = cached.pages, self.osc.bytes_max, self.osc.slots()
        dirty = pages.dirty.within(0, OBJECT_EOF)
        one = len(dirty) == 1 and dirty[0][0] // size == (dirty[0][1] - 1) // size and not pages.flights
        lock = cached.lock_at(dirty[0][0], WRITERS) if one else None
        if lock is None or lock.end + 1 < dirty[0][1] or slots.locked():
            await self.flush(cached)
            return False
        await slots.acquire()  # at once
        flight = self._flight(cached, *dirty[0], lock)
        assert flight is not None
        flight.durable = True
        self.shared.tasks.spawn(self._fly(cached, flight, slots), "write")
        await over(flight)
        return not flight.failed

    async def flush_last(
        self, cached: CachedObject, lock: ClientLock, leave: Callable[[CachedObject, ClientLock], None]
    ) -> bool:
        """`flush` what is under a lock that nobody uses any more; True if the lock went with the only write it took.

        Then others may have it as soon as that is executed, long before we hear of it: `leave` is called before.
        """
        pages, start, end = cached.pages, lock.start, lock.end + 1
        dirty, size, slots = pages.dirty.within(start, end), self.osc.bytes_max, self.osc.slots()
        one = len(dirty) == 1 and dirty[0][0] // size == (dirty[0][1] - 1) // size and not pages.flights_in(start, end)
        if not one or slots.locked():
            await self.flush(cached, start, end)
            return False
        await slots.acquire()  # at once
        flight = self._flight(cached, start, end, lock)
        assert flight is not None
        leave(cached, lock)
        flight.release = True
        await self._fly(cached, flight, slots)
        return not flight.failed

    async def _send(self, cached: CachedObject, start: int, end: int, *, patient: bool = True) -> None:
        """Send off what is dirty in the range now; of what is sent by others meanwhile there are flights.

        Without `patient` what has to wait for a change past the cache stays dirty: a truncation may wait for another OST.
        """
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
            if in_the_way := pages.in_the_way(at):
                if not patient and any(not flight.cost for flight in in_the_way):
                    todo.remove(*still[0])
                    continue
                await over(in_the_way[0])
                continue
            lock = cached.lock_at(at, WRITERS)
            if lock is None:  # cannot be: it was written under one, and goes with it
                self.lose(cached, None, [(at, still[0][1])])
                continue
            slots = self.osc.slots()
            await slots.acquire()
            flight = None
            if lock.data is cached:  # all may have changed meanwhile
                flight = self._flight(cached, at, min(still[0][1], lock.end + 1), lock)
            if flight is None:
                slots.release()
                continue
            self._fly_off([(cached, flight), *self._collect_next(cached, flight, todo)], slots)

    def _collect_next(self, cached: CachedObject, first: Flight, todo: Intervals) -> list[Load]:
        """Flights of what follows, as long as it is little, as the first is, and may be written now."""
        loads: list[Load] = []
        if first.end - first.start > LITTLE_BYTES:
            return loads
        pages, room = cached.pages, self.osc.bytes_max - (first.end - first.start)
        behind = bisect_right(todo.starts, first.start)
        following = slice(behind, behind + ost.WRITE_MANY_MAX - 1)
        for low, high in zip(todo.starts[following], todo.ends[following], strict=True):
            if not pages.dirty.covers(low, high):
                break
            low, high = pages.with_neighbours(low, high)
            lock = _lock_of_little(cached, low, high)
            room -= high - low
            if lock is None or room < 0 or pages.flights_in(low, high):
                break
            flight = self._flight(cached, low, high, lock)
            assert flight is not None
            loads.append((cached, flight))
        return loads

    def _flight(self, cached: CachedObject, start: int, end: int, lock: ClientLock) -> Flight | None:
        """The first of what is dirty in the range, about to be written; None: there is nothing."""
        flight = cached.pages.collect(start, end, self.osc.bytes_max, within=(lock.start, lock.end + 1))
        if flight is None:
            return None
        self.settle(cached)
        flight.lock = lock.handle
        flight.time = cached.mtime
        flight.done = asyncio.get_running_loop().create_future()
        return flight

    async def _fly(self, cached: CachedObject, flight: Flight, slots: asyncio.Semaphore) -> None:
        try:
            if await self._redeem(cached, flight):
                await self._write(cached, flight)
        finally:
            slots.release()
            flight.done.set_result(None)

    async def _fly_together(self, loads: list[Load], slots: asyncio.Semaphore) -> None:
        """If they are refused, each flies on alone: from then on none waits for another."""
        alone: list[Load] = []
        try:
            self.osc.redeem_soon([flight.lock for _, flight in loads])
            redeemed = [load for load in loads if await self._redeem(*load)]
            ready = [load for load in redeemed if self._is_held(*load)]
            if len(ready) < 2 or not await self._write_many(ready):
                alone = ready
        finally:
            slots.release()
            for load in loads:
                if load not in alone:
                    load[1].done.set_result(None)
        for load in alone:
            self.shared.tasks.spawn(self._fly_alone(*load), "write")

    async def _fly_alone(self, cached: CachedObject, flight: Flight) -> None:
        slots = self.osc.slots()
        await slots.acquire()
        if self._is_held(cached, flight):
            await self._fly(cached, flight, slots)
        else:
            slots.release()
            flight.done.set_result(None)

    def _is_held(self, cached: CachedObject, flight: Flight) -> bool:
        """Was its lock lost while it waited for others? The OST may not have heard of that yet."""
        if flight.lock in cached.locks:
            return True
        self._crashed(cached, flight, Evicted(self.osc.name))
        return False

    async def _redeem(self, cached: CachedObject, flight: Flight) -> bool:
        try:
            await self.osc.redeem(flight.lock)
        except OpError as error:
            self._crashed(cached, flight, error)
            return False
        return True

    async def _write(self, cached: CachedObject, flight: Flight) -> None:
        body = self.body(cached, flight, from_grant=True)
        try:
            reply, _ = await self.osc.imp.call_bulk(body, bulk=flight.data, cred=cached.cred)
        except OpError as error:
            self._crashed(cached, flight, error)
            return
        self.grant.used(flight.cost, reply.grant)
        self._landed(cached, flight, reply.attr)

    async def _write_many(self, loads: list[Load]) -> bool:
        """False: the OST would not do it; none of them has landed."""
        parts = tuple([
            ost.Part(cached.obj, flight.start, flight.end - flight.start, cached.owner, cached.stripe, flight.time, flight.lock)
            for cached, flight in loads
        ])  # fmt: skip
        data = b"".join([flight.data for _, flight in loads])
        try:
            reply, _ = await self.osc.imp.call_bulk(ost.WriteMany(parts, self._wish()), bulk=data, cred=loads[0][0].cred)
        except OpError:
            return False
        assert len(reply.attrs) == len(loads), "the OST speaks of all parts"
        self.grant.used(sum([flight.cost for _, flight in loads]), reply.grant)
        for (cached, flight), attr in zip(loads, reply.attrs, strict=True):
            self._landed(cached, flight, attr)
        return True

    def body(self, cached: CachedObject, flight: Flight, *, from_grant: bool) -> ost.Write:
        """The request for a flight. Without a grant it is answered when it is durable."""
        flight.body = body = ost.Write(
            cached.obj, flight.start, cached.owner, cached.stripe, flight.time, flight.lock, from_grant,
            self._wish(), flight.release, flight.durable or not from_grant,
        )  # fmt: skip
        return body

    def _wish(self) -> int:
        tunables = self.node.tunables
        return self.grant.wish(tunables.max_dirty_bytes + tunables.max_rpcs_in_flight * self.osc.bytes_max)

    def _landed(self, cached: CachedObject, flight: Flight, attr: ost.ObjectAttr) -> None:
        cached.pages.end_flight(flight, lost=False)
        cached.charged -= flight.cost
        self.shared.dirty -= flight.cost
        if flight.lock in cached.locks:  # else what it says may be old
            cached.told(attr)
        self.remember(attr.version, cached.owner)
        self.shared.landed()

    def _crashed(self, cached: CachedObject, flight: Flight, error: OpError) -> None:
        flight.failed = True
        cached.pages.end_flight(flight, lost=True)
        cached.doubt()
        self.settle(cached)
        lock = cached.locks.get(flight.lock)
        if lock is not None:
            self.osc.forget(lock)  # the object may be shorter than we thought
        if not flight.reported:
            self._report(cached.owner, flight.end - flight.start, error)
        self.shared.landed()

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

    def lose(self, cached: CachedObject, lock: ClientLock | None, ranges: Sequence[tuple[int, int]]) -> None:
        """A lock goes, and with it what is still dirty in `ranges`, and what is on its way under it."""
        lost = 0
        for start, end in ranges:
            lost += cached.pages.cut(start, end)
        for flight in cached.pages.flights:
            if lock is not None and flight.lock == lock.handle and flight.cost and not flight.reported:
                flight.reported = True
                lost += flight.end - flight.start
        self.settle(cached)
        if lost:
            self._report(cached.owner, lost, OpError(errno.EIO, f"{self.osc.name} has evicted us, or was away when we left"))

    def discard(self, cached: CachedObject, start: int, end: int) -> None:
        """Forget what is dirty in the range: its file is gone."""
        for flight in cached.pages.flights_in(start, end):
            flight.reported = True
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

    def remember(self, transno: int, owner: Fid) -> None:
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


def _lock_of_little(cached: CachedObject, low: int, high: int) -> ClientLock | None:
    """The lock under which all of the range may be written; None: there is none, or it is more than a few bytes."""
    lock = cached.lock_at(low, WRITERS) if high - low <= LITTLE_BYTES else None
    return lock if lock is not None and high <= lock.end + 1 else None


async def over(flight: Flight) -> None:
    """Return when the flight is over."""
    await asyncio.wait([flight.done])
