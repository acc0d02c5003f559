"""The data of objects in the client's memory: what is cached of them, what is dirty, what is on its way. No I/O.

Bytes lie in pages of 16 KiB; what of a page is there is known byte by byte, so that a write of ten bytes needs no read.
What comes a MiB at a time lies in blocks of 64 pages: then a read from the OST lands where it stays, and a write to it
is sent from there. Who still looks at a block that was sent (the import, until the write is durable) is known by the
count of references to it; before it is changed it is copied then. A caller's `bytes` never change: whole pages of them
are kept as they are, if that is a good part of them. A byte that is there is

    clean       as the OST has it
    dirty       newer than the OST
    in flight   dirty before, and now in a Flight: a copy of it is being written. Rewritten meanwhile it is dirty again
    lost        could not be written: it is forgotten, and who wrote it is told (client/writeback.py)

A flight's bytes are not collected again before it has landed, because the OST may execute two writes in any order. A
written byte that is not durable yet needs no state here: its request waits on the import's replay list with the copy.

A Fetch is a read from the OST under way, a Watch one that does not end here (client/part_read.py). What is written, cut
or dropped meanwhile in its range is taken out of what it may put in, so a late answer never brings back old bytes.

Memory is bounded over all objects of a mount, the longest unused clean page going first. Dirty ones are bounded by who
writes (writeback.py), pinned ones (a reader is about to copy them) by the size of the reads.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import chain
from operator import attrgetter
from sys import getrefcount
from typing import Any

from lustrelite.client.intervals import Intervals
from lustrelite.wire.ost import OBJECT_EOF, grant_blocks, grant_bytes

PAGE_SHIFT = 14
PAGE_BYTES = 1 << PAGE_SHIFT
BLOCK_PAGES = 64
BLOCKS_KEPT_MAX = 32  # of blocks that nobody uses any more, to be used again: fresh memory costs as much as the data
KEPT_SHARE = 4  # so much of a caller's `bytes` must one page, or block, be, to keep them: what is kept counts as no more
_MASK = PAGE_BYTES - 1
_NOTHING = bytearray()
_ZEROS = memoryview(bytes(PAGE_BYTES))
LOOKS_MAX = 256  # pages looked at when room is made once

Buffer = bytes | bytearray | memoryview


class Page:
    """Memory for one page of an object, or for a block of them."""

    __slots__ = ("buffer", "count", "number", "owner", "start", "view")

    def __init__(self, owner: ObjectPages, number: int, buffer: bytearray | memoryview, count: int = 1) -> None:
        self.owner = owner
        self.number = number  # of the first
        self.count = count
        self.start = number << PAGE_SHIFT
        self.buffer = buffer
        self.view = memoryview(buffer)

    @property
    def end(self) -> int:
        """Where it ends in the object."""
        return self.start + (self.count << PAGE_SHIFT)

    @property
    def shared(self) -> bool:
        """Does anybody but us look at its memory, or is it a caller's?"""
        return self.view.readonly or _holders(self) > _ALONE


def _holders(page: Page) -> int:
    """Who holds its memory. What this counts of itself is another number with every Python: it is only compared."""
    return getrefcount(page.buffer)


_ALONE = _holders(Page(None, 0, bytearray(1)))  # type: ignore[arg-type]  # the page and its view


class Flight:
    """A range on its way to the OST, with a copy of its bytes."""

    __slots__ = ("body", "cost", "data", "done", "durable", "end", "failed", "lock", "release", "reported", "start", "time")

    def __init__(self, start: int, end: int, data: Buffer, cost: int) -> None:
        self.start = start
        self.end = end
        self.data = data
        self.cost = cost  # bytes of grant; 0: written through, without any
        self.lock = 0
        self.time = 0
        self.done: Any = None  # of the layer above: who waits for it
        self.release = False  # the lock goes with it
        self.body: Any = None  # of the layer above: the request
        self.durable = False  # over when it is that
        self.failed = False
        self.reported = False  # that it is lost


_START, _END = attrgetter("start"), attrgetter("end")


class Fetch:
    """A range that is being read from the OST."""

    __slots__ = ("buffer", "done", "end", "length", "start", "wanted")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.wanted = Intervals([(start, end)])  # what may still be put in
        self.buffer: bytearray | None = None  # of a block
        self.length = 0  # when it is over: what it has brought
        self.done: Any = None  # of the layer above


class Watch:
    """A range that somebody reads from the OST into memory of his own: is what he gets true, when he has it all?"""

    __slots__ = ("changed", "end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.changed = False  # what was known of it has changed meanwhile, or is not known any more


class Pin:
    """A range that somebody has found here, or waits for, and is about to copy out: is it still all there then?"""

    __slots__ = ("broken", "end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.broken = False  # some of it was forgotten meanwhile, or was never here and has changed: no gap is a hole


class PageCache:
    """The pages of all objects of one mount."""

    def __init__(self, bytes_max: Callable[[], int]) -> None:
        self.bytes_max = bytes_max
        self.count = 0
        self.lru: OrderedDict[Page, None] = OrderedDict()
        self.evicted = 0
        self._blocks: list[bytearray] = []  # that nobody uses

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return self.count * PAGE_BYTES

    def shrink(self) -> None:
        """Forget clean pages until the bound is kept, or none of those looked at can go."""
        looks = 0
        while self.bytes > self.bytes_max() and looks < LOOKS_MAX and self.lru:
            page = next(iter(self.lru))
            if page.owner.busy(page.start, page.end, pinned=True):
                self.lru.move_to_end(page)
                looks += 1
                continue
            page.owner.evict(page)
            self.evicted += 1

    def take_block(self) -> bytearray:
        """Memory for a block, with whatever is in it."""
        return self._blocks.pop() if self._blocks else bytearray(BLOCK_PAGES << PAGE_SHIFT)

    def give_block(self, page: Page) -> None:
        """A page is no more: its memory is used again if it is a block and nobody looks at it."""
        page.view = memoryview(_NOTHING)
        unseen = _holders(page) < _ALONE  # its view is gone
        buffer, page.buffer = page.buffer, _NOTHING
        if unseen and isinstance(buffer, bytearray) and page.count == BLOCK_PAGES:
            if len(self._blocks) < BLOCKS_KEPT_MAX:
                self._blocks.append(buffer)


class ObjectPages:
    """The pages of one object."""

    def __init__(self, cache: PageCache) -> None:
        self.cache = cache
        self.pages: dict[int, Page] = {}
        self.valid = Intervals()
        self.dirty = Intervals()
        self.flights: list[Flight] = []  # in the order of their ranges, which do not overlap
        self.fetches: list[Fetch] = []
        self.awaited: list[Fetch] = []  # those of whom somebody has yet to hear what they found, over or not
        self.watches: list[Watch] = []
        self.passed = Intervals()  # what was read past the pages: who reads it again would rather have it here
        self.pins: list[Pin] = []
        self.cost = 0  # bytes of grant that what is dirty or in flight takes

    # reading ----------------------------------------------------------------------------------------------------

    def get(self, start: int, size: int) -> bytes | None:
        """`size` bytes from `start`, or None if not all of them are there: the fast path of reads."""
        valid = self.valid
        at = bisect_right(valid.starts, start) - 1
        if at < 0 or valid.ends[at] < start + size:
            return None
        page = self.pages[start >> PAGE_SHIFT]
        low = start - page.start
        high = low + size
        if high <= page.count << PAGE_SHIFT:
            self.cache.lru.move_to_end(page)
            return bytes(page.view[low:high])
        return b"".join(self.views(start, start + size))

    def read(self, start: int, view: memoryview) -> None:
        """Fill `view` from `start`; all of it must be there."""
        assert self.valid.covers(start, start + len(view))
        done = 0
        for part in self.views(start, start + len(view)):
            view[done : done + len(part)] = part
            done += len(part)

    def views(self, start: int, end: int) -> list[memoryview]:
        """Where the bytes of [start, end) lie, all of which must be there. Good until the next change."""
        views = []
        touch = self.cache.lru.move_to_end
        while start < end:
            page = self.pages[start >> PAGE_SHIFT]
            touch(page)
            stop = min(end, page.end)
            views.append(page.view[start - page.start : stop - page.start])
            start = stop
        return views

    def busy(self, start: int, end: int, *, pinned: bool = False) -> bool:
        """Is anything in the range dirty or in flight (or pinned)?"""
        if self.dirty and self.dirty.overlaps(start, end):
            return True
        if self.flights and self.flights_in(start, end):
            return True
        return pinned and any(pin.start < end and start < pin.end for pin in self.pins)

    def last_write(self, lock: int) -> Any:
        """The request with which that lock goes, None if it is not on its way."""
        return next((flight.body for flight in self.flights if flight.release and flight.lock == lock), None)

    def flights_in(self, start: int, end: int) -> list[Flight]:
        """The flights that overlap the range, in order."""
        flights = self.flights
        first = bisect_right(flights, start, key=_END)
        return flights[first : bisect_left(flights, end, first, key=_START)]

    # fetches ----------------------------------------------------------------------------------------------------

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of the range is neither there nor being fetched, nor being changed by the OST."""
        gaps = self.valid.gaps(start, end)
        if gaps and self.fetches:
            coming = Intervals()
            for fetch in self.fetches:
                for low, high in fetch.wanted.within(start, end):
                    coming.add(low, high)
            gaps = [gap for low, high in gaps for gap in coming.gaps(low, high)]
        while gaps and (changing := next((c for low, high in gaps if (c := self.changing(low, high))), None)):
            gaps = [gap for low, high in gaps for gap in Intervals([(changing.start, changing.end)]).gaps(low, high)]
        return gaps

    def changing(self, start: int, end: int) -> Flight | None:
        """What the OST is about to change in the range without our pages."""
        return next((flight for flight in self.flights_in(start, end) if not flight.cost), None)

    def fetching(self, start: int, end: int) -> list[Fetch]:
        """The fetches that may bring something of the range."""
        return [fetch for fetch in self.fetches if fetch.wanted.overlaps(start, end)]

    def watch(self, start: int, end: int) -> Watch | None:
        """Somebody wants to read the range past the pages; None: he should not, for the sake of truth or of speed."""
        if self.valid.overlaps(start, end) or self.flights_in(start, end):
            return None
        if any(fetch.wanted.overlaps(start, end) for fetch in self.fetches):
            return None
        if self.passed.overlaps(start, end) and self.passed.total <= self.cache.bytes_max():
            self.passed.remove(start, end)
            return None
        watch = Watch(start, end)
        self.watches.append(watch)
        return watch

    def end_watch(self, watch: Watch) -> None:
        """He has read it, or given up."""
        self.watches.remove(watch)
        self.passed.add(watch.start, watch.end)

    def pin(self, start: int, end: int) -> Pin:
        """Somebody is about to copy [start, end): no page of it is taken for want of memory."""
        pin = Pin(start, end)
        self.pins.append(pin)
        return pin

    def unpin(self, pin: Pin) -> None:
        """He has, or has given up."""
        self.pins.remove(pin)

    def begin_fetch(self, start: int, end: int) -> Fetch:
        """[start, end) is being read."""
        fetch = Fetch(start, end)
        self.fetches.append(fetch)
        return fetch

    def sink(self, fetch: Fetch) -> memoryview:
        """Where its data shall go."""
        if fetch.end - fetch.start == BLOCK_PAGES << PAGE_SHIFT and self._room_for_block(fetch.start):
            fetch.buffer = self.cache.take_block()
            return memoryview(fetch.buffer)
        return memoryview(bytearray(fetch.end - fetch.start))

    def end_fetch(self, fetch: Fetch, data: Buffer) -> None:
        """It has brought `data`, which is shorter at the object's end: keep what is not known better."""
        self.fetches.remove(fetch)
        view = memoryview(data)
        end = fetch.start + len(view)
        buffer, fetch.buffer = fetch.buffer, None
        if buffer is not None and fetch.wanted.covers(fetch.start, fetch.end) and end == fetch.end:
            if self._room_for_block(fetch.start):
                self._add(Page(self, fetch.start >> PAGE_SHIFT, buffer, BLOCK_PAGES))
                self.valid.add(fetch.start, end)
                self.cache.shrink()
                return
        for low, high in fetch.wanted.within(fetch.start, end):
            for start, stop in self.valid.gaps(low, high):
                self._put(start, view[start - fetch.start : stop - fetch.start])
                self.valid.add(start, stop)
        self.cache.shrink()

    def zeros(self, start: int, end: int, fetch: Fetch) -> None:
        """A hole: [start, end) of what `fetch` asked for is there and was never written. Call before `end_fetch`."""
        for low, high in fetch.wanted.within(start, end):
            for first, stop in self.valid.gaps(low, high):
                at = first
                while at < stop:
                    part = min(stop - at, PAGE_BYTES - (at & _MASK))
                    self._put(at, _ZEROS[:part])
                    at += part
                self.valid.add(first, stop)

    # writing ----------------------------------------------------------------------------------------------------

    def write_cost(self, start: int, end: int) -> int:
        """How much more grant `write` of [start, end) would take; less than nothing if it fills gaps."""
        old = self.dirty.whole(start, end)
        if not old:
            return grant_bytes(start, end)
        return grant_bytes(min(start, old[0][0]), max(end, old[-1][1])) - sum(grant_bytes(*part) for part in old)

    def write(self, start: int, pieces: Sequence[Buffer]) -> tuple[int, int]:
        """Put the bytes of `pieces` in at `start`, dirty; returns the dirty interval that they are part of."""
        end = start + sum(map(len, pieces))
        assert start < end
        self.cost += self.write_cost(start, end)
        self._untake(start, end)
        at = start
        for piece in pieces:
            self._put(at, memoryview(piece))
            at += len(piece)
        self.valid.add(start, end)
        merged = self.dirty.add(start, end)
        if self.cache.bytes > self.cache.bytes_max():
            self.cache.shrink()
        return merged

    def _put(self, start: int, data: memoryview) -> None:
        """Copy `data` into pages."""
        pages, lru = self.pages, self.cache.lru
        done, length = 0, len(data)
        while done < length:
            at = start + done
            number = at >> PAGE_SHIFT
            page = pages.get(number)
            if page is None:
                if type(data.obj) is bytes and not at & _MASK:  # it never changes: it is the page, or many of them
                    count = self._room(number, (length - done) >> PAGE_SHIFT)
                    if count and count << PAGE_SHIFT >= len(data.obj) // KEPT_SHARE:
                        block = data[done : done + (count << PAGE_SHIFT)]
                        self._add(Page(self, number, block, count))
                        done += len(block)
                        continue
                if length - done >= BLOCK_PAGES << PAGE_SHIFT and self._room_for_block(at):
                    page = Page(self, number, self.cache.take_block(), BLOCK_PAGES)
                else:
                    page = Page(self, number, bytearray(PAGE_BYTES))
                self._add(page)
            else:
                lru.move_to_end(page)
                if page.view.readonly or (page.count > 1 and page.shared):
                    self._make_own(page)
            low = at - page.start
            part = min(length - done, (page.count << PAGE_SHIFT) - low)
            page.view[low : low + part] = data[done : done + part]
            done += part

    def _room_for_block(self, start: int) -> bool:
        """May a block begin there? (Where nothing is valid there are no pages.)"""
        size = BLOCK_PAGES << PAGE_SHIFT
        return not start % size and not self.valid.overlaps(start, start + size)

    def _room(self, number: int, most: int) -> int:
        """How many pages are there not from `number` on, within one block?"""
        end = min(number + most, (number // BLOCK_PAGES + 1) * BLOCK_PAGES)
        return next((at for at in range(number, end) if at in self.pages), end) - number

    def _add(self, page: Page) -> None:
        for number in range(page.number, page.number + page.count):
            self.pages[number] = page
        self.cache.lru[page] = None
        self.cache.count += page.count

    def _make_own(self, page: Page) -> None:
        """Somebody still looks at the block's memory, and we are about to change it."""
        buffer = self.cache.take_block() if page.count == BLOCK_PAGES else bytearray(page.count << PAGE_SHIFT)
        buffer[:] = page.view
        page.buffer, page.view = buffer, memoryview(buffer)

    # write-back -------------------------------------------------------------------------------------------------

    def with_neighbours(self, start: int, end: int) -> tuple[int, int]:
        """What is dirty from start to end, with what is beside it in the same blocks: their grant was reserved once."""
        ((first, last),) = self.dirty.whole(start, end)
        low, high = grant_blocks(start, end)
        return max(low, first), min(high, last)

    def in_the_way(self, at: int) -> list[Flight]:
        """The flights that the dirty byte at `at` has to wait for."""
        return self.flights_in(*self.with_neighbours(at, at + 1))

    def collect(self, start: int, end: int, bytes_max: int, *, within: tuple[int, int] = (0, OBJECT_EOF)) -> Flight | None:
        """The first dirty bytes of [start, end) that may be written now, as a flight; None if there are none.

        At most `bytes_max`, cut at its multiples, so that equal ranges make equal RPCs. Neighbours in their blocks go with
        them, if they are `within` this, and what shares a block with a flight waits for it: else the block would be taken
        twice of a grant from which it was reserved once.
        """
        for part in self.dirty.within(start, end):
            low, high = self.with_neighbours(*part)
            for first, stop in self._outside_flights(max(low, within[0]), min(high, within[1])):
                stop = min(stop, (first // bytes_max + 1) * bytes_max)
                flight = Flight(first, stop, self._copy(first, stop), grant_bytes(first, stop))
                self._clean(first, stop)
                self.cost += flight.cost
                self._take_off(flight)
                return flight
        return None

    def _copy(self, start: int, end: int) -> Buffer:
        """The bytes of the range, which will not change: of a block, and of a caller's, they are only looked at."""
        page = self.pages[start >> PAGE_SHIFT]
        if (page.count > 1 or page.view.readonly) and end <= page.end:
            return memoryview(page.buffer)[start - page.start : end - page.start]
        return b"".join(self.views(start, end))

    def _outside_flights(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of the range has no block in a flight."""
        flights = self.flights_in(start, end)
        if not flights:
            return [(start, end)]
        return Intervals(grant_blocks(max(f.start, start), min(f.end, end)) for f in flights).gaps(start, end)

    def begin_flight(self, start: int, end: int, data: Buffer = b"") -> Flight:
        """The OST is about to change the range itself: nothing there may be dirty or in flight, and what is there goes."""
        assert not self.busy(start, end)
        self.cut(start, end)
        flight = Flight(start, end, data, 0)
        self._take_off(flight)
        return flight

    def _take_off(self, flight: Flight) -> None:
        insort(self.flights, flight, key=_START)

    def hold(self, start: int, end: int) -> Flight:
        """The same, but what is there, dirty or not, stays until that is done. Nothing there may be in flight."""
        assert not self.flights_in(start, end)
        self._untake(start, end)
        flight = Flight(start, end, b"", 0)
        self._take_off(flight)
        return flight

    def end_flight(self, flight: Flight, *, lost: bool) -> None:
        """It was written, or, `lost`, could not be: then its bytes are forgotten where they were not written anew.

        Those of a write through are, too: they may have been read while it was on its way. See `keep`.
        """
        del self.flights[self.flights.index(flight, bisect_left(self.flights, flight.start, key=_START))]
        self.cost -= flight.cost
        if lost or not flight.cost:
            for low, high in self.dirty.gaps(flight.start, flight.end):
                self.cut(low, high)

    def keep(self, start: int, data: Buffer) -> None:
        """`data` is what the OST has at `start`, since just now."""
        end = start + len(data)
        self._untake(start, end)
        view = memoryview(data)
        for low, high in self.valid.gaps(start, end):
            self._put(low, view[low - start : high - start])
            self.valid.add(low, high)
        self.cache.shrink()

    # forgetting -------------------------------------------------------------------------------------------------

    def _clean(self, start: int, end: int) -> None:
        """Nothing in the range is dirty any more."""
        parts = [part for part in self.dirty.whole(start, end) if part[0] < end and start < part[1]]
        if parts:
            low, high = parts[0][0], parts[-1][1]
            self.dirty.remove(start, end)
            self.cost += sum(grant_bytes(*part) for part in self.dirty.within(low, high))
            self.cost -= sum(grant_bytes(*part) for part in parts)

    def _untake(self, start: int, end: int) -> None:
        for fetch in chain(self.fetches, self.awaited):
            fetch.wanted.remove(start, end)
        for watch in self.watches:
            if watch.start < end and start < watch.end:
                watch.changed = True

    def cut(self, start: int, end: int) -> int:
        """Forget the range; returns how many dirty bytes that were."""
        assert start <= end
        if start == end:
            return 0
        dirty = sum(high - low for low, high in self.dirty.within(start, end))
        if dirty:
            self._clean(start, end)
        self._untake(start, end)
        for pin in self.pins:
            if pin.start < end and start < pin.end:
                pin.broken = True
        if not self.valid.overlaps(start, end):
            return dirty
        self.valid.remove(start, end)
        first, last = start >> PAGE_SHIFT, (end - 1) >> PAGE_SHIFT
        if last - first < len(self.pages):
            numbers = [number for number in range(first, last + 1) if number in self.pages]
        else:
            numbers = [number for number in self.pages if first <= number <= last]
        for number in numbers:
            page = self.pages.get(number)
            if page is not None and not self.valid.overlaps(page.start, page.end):
                self._free_page(page)
        return dirty

    def pass_on(self, start: int, end: int) -> None:
        """Somebody else keeps [start, end) from now on: whole blocks of it need not be here, too."""
        while start < end:
            page = self.pages.get(start >> PAGE_SHIFT)
            if page is not None and page.count > 1 and start <= page.start and page.end <= end:
                if not self.busy(page.start, page.end, pinned=True):
                    self.evict(page)
            start = page.end if page is not None else (start // PAGE_BYTES + 1) * PAGE_BYTES

    def evict(self, page: Page) -> None:
        """Forget a page that is not busy."""
        self.valid.remove(page.start, page.end)
        self._free_page(page)

    def _free_page(self, page: Page) -> None:
        for number in range(page.number, page.number + page.count):
            del self.pages[number]
        del self.cache.lru[page]
        self.cache.count -= page.count
        if page.count > 1:
            self.cache.give_block(page)
