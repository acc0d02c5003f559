"""The objects of one OST that are cached here, under extent locks: found, read, kept, and given up with their locks.

Whatever is here is under a lock of the import's LockCache, which calls back when one goes: `flush` writes back what is
dirty under it, `drop` forgets what no other lock covers. A lock is `adopt`ed when it is first used: then its value
block says how large the object was when it was granted.

A read brings in whole pages within its lock; the caller then copies out of the pages, in one turn, so that no write of
another task comes in between. Pages are pinned as long as somebody is about to copy them.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lustrelite.client.cached_object import CachedObject
from lustrelite.client.grant import Grant
from lustrelite.client.grant_shrink import Shrinker
from lustrelite.client.intervals import Intervals
from lustrelite.client.page_cache import PAGE_BYTES, Fetch
from lustrelite.client.writeback import Shared, WriteBack, over
from lustrelite.errors import Evicted, OpError
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.lru import Holding
from lustrelite.wire.ldlm import DISCARD_DATA, PR, PW, UNTOUCHED, Lvb
from lustrelite.wire.locks import Ask, Known
from lustrelite.wire.message import Cred
from lustrelite.wire.ost import OBJECT_EOF, resource_of

if TYPE_CHECKING:
    from lustrelite.client.osc import Osc
    from lustrelite.ldlm.lock_cache import LockCache

_ALIVE = (Holding.GRANTED, Holding.CANCELLING)


class DataCache:
    """The cached objects of one OST."""

    def __init__(self, osc: Osc, locks: LockCache, shared: Shared) -> None:
        self.osc = osc
        self.locks = locks
        self.shared = shared
        self.objects: dict[int, CachedObject] = {}
        self.unwritten: dict[int, None] = {}  # new objects, which only we could have written to; no lock is needed to know them
        self.sole: dict[int, int] = {}  # new objects of which nobody else has been told, by which instance of the MDT
        self.grant = Grant()
        self.writeback = WriteBack(osc, shared, self.grant)
        self.on_lost: Callable[[int, int], None] | None = None  # (OST index, object): a lock on it was lost
        self.shrinker = Shrinker(osc, self.grant, shared.tasks)
        self._reading_many = 0  # requests
        locks.flush = self._flush
        locks.drop = self._drop
        locks.glimpse_of = self._glimpse_of
        locks.stays = self._stays
        locks.write_back = self.write_back
        locks.promised.ground = lambda: shared.metadata_leased()
        locks.promised.heard = self._heard
        locks.promised.pointless = self._pointless

    async def write_back(self) -> None:
        """Return when everything that is dirty now, or on its way, was written back."""
        await self.writeback.flush_all([cached for cached in self.objects.values() if cached.pages.dirty or cached.pages.flights])

    # locks ------------------------------------------------------------------------------------------------------

    def match(self, obj: int, start: int, end: int, mode: int) -> tuple[CachedObject, ClientLock] | None:
        """The object and a lock under which [start, end) may be read (PR) or written (PW), in this turn."""
        cached = self.objects.get(obj)
        resource = cached.resource if cached is not None else resource_of(obj)
        lock = self.locks.match_extent(resource, start, end - 1, mode)
        if lock is None:
            return None
        return self._adopted(obj, lock), lock

    async def take(self, obj: int, start: int, end: int, mode: int) -> tuple[CachedObject, ClientLock]:
        """The same for as long as it takes; `locks.release` it.  Errors: ENOENT, Evicted"""
        resource = resource_of(obj)
        if mode == PW and obj in self.sole and obj in self.unwritten and self._may_promise(resource):  # once
            lock = self.locks.promised.make(resource)
            return self._adopted(obj, lock), lock
        lock = await self.locks.take_extent(resource, start, end - 1, mode)
        if lock.holding not in _ALIVE:  # lost before this task came to run
            self.locks.release(lock)
            raise Evicted(self.osc.name)
        return self._adopted(obj, lock), lock

    def _may_promise(self, resource: bytes) -> bool:
        return self.locks.lease_valid and self.shared.metadata_leased() and not self.locks.locks_of(resource)

    def _heard(self, lock: ClientLock) -> None:
        if self.shared.on_heard is not None and isinstance(lock.data, CachedObject):
            self.shared.on_heard(lock.data.owner)

    def _pointless(self, lock: ClientLock) -> None:
        if isinstance(lock.data, CachedObject):
            self.writeback.discard(lock.data, 0, OBJECT_EOF)

    def _adopted(self, obj: int, lock: ClientLock) -> CachedObject:
        cached: CachedObject | None = lock.data
        if cached is None:
            cached = self.objects.get(obj)
            if cached is None:
                cached = self.objects[obj] = CachedObject(obj, self.shared.pages)
            cached.adopt(lock)
            if lock.mode != PR:
                self.unwritten.pop(obj, None)
        return cached

    def known(self, obj: int) -> Lvb | None:
        """All that can be known of the object: somebody who asks the OST would learn no more."""
        if obj in self.unwritten and self.shared.metadata_leased():
            return UNTOUCHED
        cached = self.objects.get(obj)
        if cached is not None and cached.resizing:
            return None
        lock = self.locks.match_extent(cached.resource if cached is not None else resource_of(obj), 0, OBJECT_EOF, PR)
        if lock is None:
            return None
        if cached is None and lock.lvb is not None:
            return lock.lvb  # who only looks needs no pages
        if cached is None or lock.data is not cached:
            cached = self._adopted(obj, lock)
        return cached.lvb() if lock.handle not in cached.unsized else None

    # `lock.data` is None before `adopt` and after `drop`, an Lvb while the lock leaves with its last write, and else the
    # object. There is nothing more to be written or forgotten in the first two cases.

    async def _flush(self, lock: ClientLock, ask: Ask | None) -> bool:
        cached = lock.data
        if not isinstance(cached, CachedObject):
            return False
        if ask is not None and ask.flags & DISCARD_DATA:
            self.writeback.discard(cached, lock.start, lock.end + 1)
        try:
            return await self.writeback.flush_last(cached, lock, self._leave)
        finally:
            self._forget(cached)

    def _leave(self, cached: CachedObject, lock: ClientLock) -> None:
        """With its last write the lock goes to somebody else; until then we may be asked for the size."""
        lvb = cached.lvb()
        for start, end in cached.abandon(lock):
            cached.pages.cut(start, end)
        lock.data = lvb

    def _drop(self, lock: ClientLock, lost: bool) -> None:
        cached = lock.data
        if isinstance(cached, CachedObject):
            # After a flush there is nothing dirty; if there is, it cannot be written any more.
            self.writeback.lose(cached, lock, cached.abandon(lock))
            self._forget(cached, lost)
        lock.data = None
        if lost and self.on_lost is not None:
            self.on_lost(self.osc.index, int.from_bytes(lock.resource, "big"))

    def _forget(self, cached: CachedObject, lost: bool = False) -> None:
        """Forget an object that has neither locks nor anything on its way, or, `lost`, nothing that will arrive."""
        idle = not cached.locks and (lost or not cached.pages.flights)
        if idle and self.objects.get(cached.obj) is cached:
            del self.objects[cached.obj]

    def _glimpse_of(self, lock: ClientLock) -> Known | None:
        if not lock.mode & PW:
            return None
        data: CachedObject | Lvb | None = lock.data
        # One that was not used yet counts as well: the OST asks under one lock only for what we know under all of them.
        cached = data if isinstance(data, CachedObject) else self.objects.get(int.from_bytes(lock.resource, "big"))
        if isinstance(data, Lvb):
            write = cached.pages.last_write(lock.handle) if cached is not None else None
            return Known(data, self.osc.imp.xid_of(write) if write is not None else 0)
        if cached is None or (cached.resizing and cached.cut is None):  # the OST has answered, and it is not done here yet
            return None
        return Known(cached.lvb(), self.osc.imp.xid_of(cached.cut) if cached.resizing else 0)

    def _stays(self, lock: ClientLock) -> bool:
        cached = lock.data
        return isinstance(cached, CachedObject) and cached.pages.busy(lock.start, lock.end + 1)

    # reading ----------------------------------------------------------------------------------------------------

    async def fill(
        self, cached: CachedObject, lock: ClientLock, start: int, end: int, cred: Cred
    ) -> None:
        """Bring in what there is of [start, end); what is not there afterwards was never written.  Errors: EIO, ENOENT

        The caller holds the lock, and a pin on the range.
        """
        pages = cached.pages
        awaited: list[Fetch] = []
        arrived: list[Fetch] = []
        try:
            while True:
                if lock.data is not cached:
                    raise Evicted(self.osc.name)
                if cached.exact:
                    end = min(end, cached.size)
                changing = pages.changing(start, end)
                if changing is not None and not pages.valid.covers(start, end):
                    await over(changing)
                    continue
                absent = Intervals()
                for fetch in arrived:
                    for low, high in fetch.wanted.within(fetch.start + fetch.length, fetch.end):
                        absent.add(low, high)
                for low, high in pages.missing(start, end):
                    for first, stop in absent.gaps(low, high):
                        self._fetch(cached, lock, first, stop, cred, whole_pages=True)
                coming = pages.fetching(start, end)
                if not coming:
                    return
                awaited += coming
                pages.awaited += coming
                for fetch in coming:
                    if await self._arrival(fetch):
                        arrived.append(fetch)
        finally:
            for fetch in awaited:
                pages.awaited.remove(fetch)

    async def _arrival(self, fetch: Fetch) -> bool:
        """Wait for it; False if it was begun under another lock, which has gone since: it must be read again.

        EIO, ENOENT
        """
        outcome = await asyncio.shield(fetch.done)
        if isinstance(outcome, OpError) and not isinstance(outcome, LockGone):
            raise outcome
        return outcome is None

    def _fetch(
        self, cached: CachedObject, lock: ClientLock, start: int, end: int, cred: Cred, *, whole_pages: bool = False
    ) -> list[Fetch]:
        """Start reading [start, end); with `whole_pages` what of its pages is missing."""
        pages = cached.pages
        ranges = [(start, end)]
        if whole_pages:
            low = max(start // PAGE_BYTES * PAGE_BYTES, lock.start)
            high = min(-(-end // PAGE_BYTES) * PAGE_BYTES, lock.end + 1)
            if cached.exact:
                high = max(min(high, cached.size), end)
            ranges = pages.missing(low, high)
        size = self.osc.bytes_max
        begun = []
        for low, high in ranges:
            while low < high:
                stop = min(high, (low // size + 1) * size)
                fetch = pages.begin_fetch(low, stop)
                fetch.done = self.shared.tasks.spawn(self._read(cached, lock, fetch, cred), "read")
                begun.append(fetch)
                low = stop
        return begun

    async def _read(self, cached: CachedObject, lock: ClientLock, fetch: Fetch, cred: Cred) -> None:
        data = cached.pages.sink(fetch)
        try:
            done = await self.read(cached, lock, fetch.start, [data], cred)
        except BaseException:
            cached.pages.end_fetch(fetch, b"")
            raise
        self._arrived(cached, lock, fetch, data[:done])

    @staticmethod
    def _arrived(cached: CachedObject, lock: ClientLock, fetch: Fetch, data: memoryview) -> None:
        """This is all that the OST has; the rest of the object is a hole."""
        end = fetch.start + len(data)
        if lock.data is cached and end < min(fetch.end, cached.size):
            cached.pages.zeros(end, min(fetch.end, cached.size), fetch)
        fetch.length = len(data)
        cached.pages.end_fetch(fetch, data)

    async def read(
        self, cached: CachedObject, lock: ClientLock, start: int, pieces: list[memoryview], cred: Cred
    ) -> int:
        """Read into `pieces` from `start` what the OST has; how much that was, less only at the object's end.

        EIO, ENOENT
        """
        await self.osc.redeem(lock.handle)
        resized = cached.resized
        try:
            done, size = await self.osc.read(cached.obj, start, pieces, cred=cred, lock=lock.handle)
        except OpError as error:
            if error.errno == errno.ESTALE:  # the OST does not know the lock: whatever we believe under it is wrong
                if lock.data is not cached:
                    raise LockGone(errno.EIO, error.what) from None
                self.osc.forget(lock)
                raise OpError(errno.EIO, error.what) from None
            raise
        cached.seen(size, lock, resized)
        return done

    def read_ahead(self, obj: int, start: int, end: int, cred: Cred) -> None:
        """Begin to read [start, end) of the object, as far as a lock allows it, and as it is not there."""
        found = self.match(obj, start, start + 1, PR)
        if found is None:
            return
        cached, lock = found
        end = min(end, lock.end + 1)
        if cached.exact:
            end = min(end, cached.size)
        room = self.osc.node.tunables.max_read_ahead_bytes - self.shared.ahead
        for low, high in cached.pages.missing(start, end):
            high = min(high, low + room)
            if low >= high:
                break
            room -= high - low
            for fetch in self._fetch(cached, lock, low, high, cred):
                length = fetch.end - fetch.start
                self.shared.ahead += length
                fetch.done.add_done_callback(lambda _, length=length: self._arrived_ahead(length))

    def _arrived_ahead(self, length: int) -> None:
        self.shared.ahead -= length

    def whole_to_read(self, obj: int, bytes_max: int) -> int:
        """How many bytes a small object has of which a lock is here, and nothing else; 0: it is not one of these."""
        cached = self.objects.get(obj)
        if obj in self.unwritten or (cached is not None and (cached.pages.valid or cached.pages.fetches or cached.pages.flights)):
            return 0
        resource = cached.resource if cached is not None else resource_of(obj)
        lock = self.locks.match_extent(resource, 0, OBJECT_EOF, PR, touch=False)
        if lock is None or lock.handle in self.locks.promised.unheard:
            return 0
        if cached is None or lock.data is not cached:
            cached = self._adopted(obj, lock)
        return cached.size if cached.exact and not cached.resizing and 0 < cached.size <= bytes_max else 0

    def may_read_many(self) -> bool:
        """Are there slots left for those who wait for what they read?"""
        return self._reading_many < self.osc.node.tunables.max_rpcs_in_flight // 2

    def read_many(self, objects: dict[int, int], cred: Cred) -> None:
        """Begin to read these objects {object: size}, of `whole_to_read`, with one request."""
        rows = []
        for obj, size in objects.items():
            found = self.match(obj, 0, size, PR)
            if found is not None:
                cached, lock = found
                fetch = cached.pages.begin_fetch(0, size)
                fetch.done = asyncio.get_running_loop().create_future()
                rows.append((cached, lock, fetch, cached.resized))
        if not rows:
            return
        total = sum(fetch.end for _, _, fetch, _ in rows)
        self.shared.ahead += total
        self._reading_many += 1

        def ended(_: object) -> None:
            self.shared.ahead -= total
            self._reading_many -= 1
            for cached, _, fetch, _ in rows:
                if not fetch.done.done():  # who wants it reads it himself
                    cached.pages.end_fetch(fetch, b"")
                    fetch.done.set_result(LockGone(errno.EIO, "not read with others"))

        self.shared.tasks.spawn(self._read_many(rows, cred), "read many").add_done_callback(ended)

    async def _read_many(self, rows: list[tuple[CachedObject, ClientLock, Fetch, int]], cred: Cred) -> None:
        wanted = [(cached.obj, fetch.end, lock.handle) for cached, lock, fetch, _ in rows]
        answers, data = await self.osc.read_many(wanted, cred=cred)
        at = 0
        for (cached, lock, fetch, resized), (length, size) in zip(rows, answers, strict=True):
            if length < 0:
                continue
            cached.seen(size, lock, resized)
            self._arrived(cached, lock, fetch, data[at : at + length])
            fetch.done.set_result(None)
            at += length


class LockGone(OpError):
    """It was not read: its lock had been given back before (the OST refuses it), or it was left out of many."""


def copy_out(cached: CachedObject, start: int, pieces: Sequence[memoryview]) -> None:
    """Fill `pieces` in turn from `start` of the object; what is not there is zeros."""
    pages = cached.pages
    for piece in pieces:
        end = start + len(piece)
        for low, high in pages.valid.within(start, end):
            pages.read(low, piece[low - start : high - start])
        for low, high in pages.valid.gaps(start, end):
            zero(piece[low - start : high - start])
        start = end


def views_of(cached: CachedObject, start: int, end: int) -> list[memoryview]:
    """Where the bytes of [start, end) of the object lie, in this turn of the loop; what is not there is zeros."""
    pages = cached.pages
    views: list[memoryview] = []
    at = start
    for low, high in pages.valid.within(start, end):
        _zeros(views, low - at)
        views += pages.views(low, high)
        at = high
    _zeros(views, end - at)
    return views


def _zeros(views: list[memoryview], count: int) -> None:
    while count:
        views.append(_ZEROS_VIEW[:count])
        count -= len(views[-1])


_ZEROS = bytes(1 << 16)
_ZEROS_VIEW = memoryview(_ZEROS)


def zero(view: memoryview) -> None:
    """Fill `view` with zeros."""
    for start in range(0, len(view), len(_ZEROS)):
        part = view[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
