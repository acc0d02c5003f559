"""The page cache against a bytearray: whatever is written, collected, fetched, cut and evicted in whatever order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.client import page_cache
from lustrelite.client.intervals import Intervals
from lustrelite.client.page_cache import PAGE_BYTES, Fetch, Flight, ObjectPages, PageCache
from lustrelite.wire.ost import GRANT_BLOCK_BYTES, grant_blocks, grant_bytes

SPAN = 6 * PAGE_BYTES


# ---------------------------------------------------------------------------------------------------- intervals

NUMBER = st.integers(0, 40)
CHANGES = st.lists(st.tuples(st.booleans(), NUMBER, st.integers(1, 12)), max_size=40)


@settings(max_examples=400, deadline=None)
@given(changes=CHANGES, low=NUMBER, length=st.integers(0, 20))
def test_intervals_are_a_set_of_integers(changes: list[tuple[bool, int, int]], low: int, length: int) -> None:
    """`add` and `remove` against a set; every question against it, too."""
    intervals, model = Intervals(), set[int]()
    for add, start, size in changes:
        end = start + size
        if add:
            joined = intervals.add(start, end)
            model |= set(range(start, end))
            assert model.issuperset(range(*joined)) and joined[0] - 1 not in model and joined[1] not in model
        else:
            intervals.remove(start, end)
            model -= set(range(start, end))
        flat = [edge for part in intervals for edge in part]
        assert flat == sorted(set(flat)), "ordered, disjoint, and neighbours are joined"
        assert {number for part in intervals for number in range(*part)} == model
        assert intervals.total == len(model)
    high = low + length
    wanted = set(range(low, high))
    assert intervals.covers(low, high) == (wanted <= model)
    assert intervals.overlaps(low, high) == bool(wanted & model)
    assert {n for part in intervals.within(low, high) for n in range(*part)} == wanted & model
    assert {n for part in intervals.gaps(low, high) for n in range(*part)} == wanted - model
    touching = [p for p in intervals if p[0] <= high and low <= p[1]]
    assert intervals.whole(low, high) == touching


# ---------------------------------------------------------------------------------------------------- the model


class Ost:
    """What the object is, and who reads and writes it when."""

    def __init__(self, pages: ObjectPages) -> None:
        self.pages = pages
        self.disk = bytearray(SPAN)
        self.known = bytearray(SPAN)  # what the client must see
        self.flights: list[Flight] = []
        self.sent: list[tuple[Flight, bytes]] = []  # the import keeps a write long after it was answered
        self.fetches: list[tuple[Fetch, memoryview]] = []

    def check(self) -> None:
        pages = self.pages
        for low, high in pages.valid:
            view = memoryview(bytearray(high - low))
            pages.read(low, view)
            assert view == self.known[low:high], (low, high)
            assert pages.get(low, high - low) == self.known[low:high]
        for low, high in pages.dirty:
            assert pages.valid.covers(low, high), "what is dirty is there"
        cost = sum(grant_bytes(*part) for part in pages.dirty) + sum(flight.cost for flight in pages.flights)
        assert pages.cost == cost
        assert pages.cache.count == len(pages.pages) == sum(page.count for page in pages.cache.lru)
        for page in pages.cache.lru:
            assert pages.valid.overlaps(page.start, page.end), "no page for nothing"
            assert all(pages.pages[page.number + n] is page for n in range(page.count))

    def nothing_is_lost(self) -> None:
        """What the client should see is dirty, in flight, or on the disk; and what was sent has not changed."""
        assert all(flight.data == data for flight, data in self.sent)
        image = bytearray(self.disk)
        for flight in self.pages.flights:
            image[flight.start : flight.end] = flight.data
        for low, high in self.pages.dirty:
            image[low:high] = self.known[low:high]
        assert image == self.known

    def step(self, rng: random.Random) -> None:
        pages = self.pages
        start = rng.choice((rng.randrange(SPAN), rng.randrange(6) * PAGE_BYTES))
        end = min(SPAN, start + rng.choice((1, 10, 100, 4096, PAGE_BYTES, 3 * PAGE_BYTES)))
        kind = rng.choice(("write", "write", "collect", "collect", "land", "land", "fetch", "arrive", "cut", "evict", "through"))
        if kind == "write":
            data = rng.randbytes(end - start)
            cut = rng.randrange(len(data) + 1)
            expected = pages.cost + pages.write_cost(start, end)
            low, high = pages.write(start, [data[:cut], data[cut:]])
            assert pages.cost == expected
            assert low <= start and end <= high and pages.dirty.covers(low, high)
            self.known[start:end] = data
        elif kind == "collect":
            size = rng.choice((1, 3, 2 * PAGE_BYTES // GRANT_BLOCK_BYTES)) * GRANT_BLOCK_BYTES
            cost, (low, high) = pages.cost, grant_blocks(start, end)
            flight = pages.collect(start, end, size)
            assert pages.cost == cost, "a flight takes what was reserved for it"
            if flight is not None:
                assert 0 < flight.end - flight.start <= size and low <= flight.start < flight.end <= high
                assert flight.start // size == (flight.end - 1) // size
                assert flight.data == self.known[flight.start : flight.end]
                self.sent.append((flight, bytes(flight.data)))
                self.flights.append(flight)
        elif kind == "land" and self.flights:  # in any order: the OST may execute them so
            flight = self.flights.pop(rng.randrange(len(self.flights)))
            self.disk[flight.start : flight.end] = flight.data
            pages.end_flight(flight, lost=False)
            if not flight.cost and rng.random() < 0.5:
                pages.keep(flight.start, flight.data)
        elif kind == "fetch":
            for low, high in pages.missing(start, end)[:1]:
                # The OST answers with what it has at some moment between now and the arrival: say, now.
                fetch = pages.begin_fetch(low, high)
                sink = pages.sink(fetch)
                sink[:] = self.disk[low:high]
                self.fetches.append((fetch, sink))
        elif kind == "arrive" and self.fetches:
            fetch, data = self.fetches.pop(rng.randrange(len(self.fetches)))
            cut = rng.choice((len(data), rng.randrange(len(data) + 1)))
            if cut < len(data) and not any(data[cut:]):
                pages.zeros(fetch.start + cut, fetch.end, fetch)
            pages.end_fetch(fetch, data[:cut])
        elif kind == "cut" and not pages.flights_in(start, end):
            # As a truncation does it: nothing in flight there, then the OST forgets it, too.
            pages.cut(start, end)
            self.known[start:end] = self.disk[start:end] = bytes(end - start)
            pages.cut(start, end)
        elif kind == "evict":
            limit = rng.choice((0, PAGE_BYTES, SPAN))
            pages.cache.bytes_max = lambda: limit
            pages.cache.shrink()
            pages.cache.bytes_max = lambda: SPAN
        elif kind == "through" and not pages.busy(start, end):
            data = rng.randbytes(end - start)
            self.flights.append(pages.begin_flight(start, end, data))
            self.known[start:end] = data


@pytest.mark.parametrize("block", [64, 2, 1])
@pytest.mark.parametrize("seed", range(100))
def test_the_cache_behaves_like_a_bytearray(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing read is old, nothing written gets lost, whatever order fetches and flights come back in."""
    rng = random.Random(seed)
    monkeypatch.setattr(page_cache, "BLOCK_PAGES", block)
    ost = Ost(ObjectPages(PageCache(lambda: SPAN)))
    for _ in range(120):
        before = bytes(ost.known)
        ost.step(rng)
        if any(not flight.cost for flight in ost.flights):
            # Between the beginning and the end of a write through a reader may see either.
            for low, high in ost.pages.valid:
                view = memoryview(bytearray(high - low))
                ost.pages.read(low, view)
                for at in range(low, high, 512):
                    part = slice(at, min(at + 512, high))
                    seen = bytes(view[part.start - low : part.stop - low])
                    through = any(not f.cost and f.start < part.stop and part.start < f.end for f in ost.flights)
                    assert through or seen == ost.known[part], before and (low, high)
        else:
            ost.check()
            ost.nothing_is_lost()
    while ost.flights:
        flight = ost.flights.pop()
        ost.disk[flight.start : flight.end] = flight.data
        ost.pages.end_flight(flight, lost=False)
    while (last := ost.pages.collect(0, SPAN, PAGE_BYTES)) is not None:
        ost.disk[last.start : last.end] = last.data
        ost.pages.end_flight(last, lost=False)
    assert ost.disk == ost.known and not ost.pages.cost


# ---------------------------------------------------------------------------------------------------- one by one


def pages_of(bytes_max: int = 1 << 30) -> ObjectPages:
    return ObjectPages(PageCache(lambda: bytes_max))


def contents(pages: ObjectPages, start: int, end: int) -> bytes:
    view = memoryview(bytearray(end - start))
    pages.read(start, view)
    return bytes(view)


def test_a_page_rewritten_in_flight_stays_dirty_and_waits_for_it() -> None:
    pages = pages_of()
    pages.write(0, [b"old" * 1000])
    flight = pages.collect(0, 3000, 1 << 20)
    assert flight is not None and not pages.dirty
    pages.write(10, [b"new"])
    assert list(pages.dirty) == [(10, 13)]
    assert pages.collect(0, 3000, 1 << 20) is None, "the OST could execute the two the other way round"
    assert flight.data == b"old" * 1000, "what is on its way does not change"
    pages.end_flight(flight, lost=False)
    again = pages.collect(0, 3000, 1 << 20)
    assert again is not None and (again.start, again.data) == (10, b"new")


def test_what_could_not_be_written_is_forgotten_except_what_was_written_anew() -> None:
    pages = pages_of()
    pages.write(0, [bytes(100)])
    flight = pages.collect(0, 100, 1 << 20)
    assert flight is not None
    pages.write(50, [b"x" * 10])
    pages.end_flight(flight, lost=True)
    assert list(pages.valid) == list(pages.dirty) == [(50, 60)]
    assert pages.cost == GRANT_BLOCK_BYTES


def test_collecting_cuts_at_multiples_and_around_what_is_in_flight() -> None:
    pages = pages_of()
    pages.write(1000, [bytes(10_000)])
    found: list[Any] = []
    while (flight := pages.collect(0, 1 << 30, 4096)) is not None:
        found.append((flight.start, flight.end))
    assert found == [(1000, 4096), (4096, 8192), (8192, 11000)]
    pages.write(4000, [bytes(6000)])
    pages.end_flight(pages.flights[1], lost=False)
    middle = pages.collect(0, 1 << 30, 1 << 20)
    assert middle is not None and (middle.start, middle.end) == (4096, 8192)
    assert list(pages.dirty) == [(4000, 4096), (8192, 10000)]


def test_a_late_answer_brings_back_no_old_bytes() -> None:
    pages = pages_of()
    fetch = pages.begin_fetch(0, 100)
    pages.write(20, [b"n" * 20])
    pages.cut(60, 70)
    pages.end_fetch(fetch, b"o" * 100)
    assert contents(pages, 0, 60) == b"o" * 20 + b"n" * 20 + b"o" * 20
    assert pages.valid.gaps(0, 100) == [(60, 70)]


def test_a_late_answer_brings_back_no_old_bytes_even_where_the_new_ones_are_gone() -> None:
    pages = pages_of()
    fetch = pages.begin_fetch(0, 100)
    pages.write(20, [b"n" * 20])
    flight = pages.collect(0, 100, 1 << 20)
    assert flight is not None
    pages.end_flight(flight, lost=False)
    pages.evict(pages.pages[0])
    pages.end_fetch(fetch, b"o" * 100)
    assert pages.valid.gaps(0, 100) == [(20, 40)]


def test_what_is_being_fetched_is_not_missing() -> None:
    pages = pages_of()
    pages.write(10, [b"x" * 10])
    fetch = pages.begin_fetch(30, 50)
    assert pages.missing(0, 60) == [(0, 10), (20, 30), (50, 60)]
    assert pages.fetching(40, 41) == [fetch] and pages.fetching(10, 20) == []
    pages.cut(30, 35)
    assert pages.missing(20, 50) == [(20, 35)], "it will not bring that"


def test_the_longest_unused_page_goes_first_and_dirty_and_pinned_ones_stay() -> None:
    cache = PageCache(lambda: 4 * PAGE_BYTES)
    first, second = ObjectPages(cache), ObjectPages(cache)
    first.write(0, [bytes(PAGE_BYTES)])
    for number in range(1, 4):
        first.end_fetch(first.begin_fetch(number * PAGE_BYTES, (number + 1) * PAGE_BYTES), bytes(PAGE_BYTES))
    first.get(PAGE_BYTES, 10)
    first.pin(2 * PAGE_BYTES, 2 * PAGE_BYTES + 1)
    second.write(0, [bytes(PAGE_BYTES + 1)])
    assert sorted(first.pages) == [0, 2], "page 3 and then page 1 are the longest unused that can go"
    assert cache.bytes == 4 * PAGE_BYTES and cache.evicted == 2
    assert first.get(PAGE_BYTES, 10) is None


def test_more_than_the_bound_is_kept_only_if_nothing_can_go() -> None:
    pages = pages_of(PAGE_BYTES)
    pages.write(0, [bytearray(3 * PAGE_BYTES)])
    assert pages.cache.bytes == 3 * PAGE_BYTES
    flight = pages.collect(0, 1 << 30, 1 << 20)
    assert flight is not None
    pages.cache.shrink()
    assert pages.cache.bytes == 3 * PAGE_BYTES
    pages.end_flight(flight, lost=False)
    pages.cache.shrink()
    assert pages.cache.bytes == PAGE_BYTES


def test_grant_is_taken_by_the_block_and_shared_by_what_joins() -> None:
    pages = pages_of()
    pages.write(0, [b"x"])
    pages.write(100, [b"x"])
    assert pages.cost == 2 * GRANT_BLOCK_BYTES, "two writes to come, each of a block"
    assert pages.write_cost(1, 100) == -GRANT_BLOCK_BYTES
    pages.write(1, [bytes(99)])
    assert pages.cost == GRANT_BLOCK_BYTES
    assert pages.write_cost(50, 60) == 0
    assert pages.write_cost(101, 5000) == GRANT_BLOCK_BYTES
    pages.cut(50, 60)
    assert pages.cost == 2 * GRANT_BLOCK_BYTES
    pages.cut(0, 1 << 40)
    assert pages.cost == 0 and not pages.pages


def test_cutting_a_huge_range_looks_only_at_the_pages_there_are() -> None:
    pages = pages_of()
    pages.write(5 * PAGE_BYTES, [b"abc"])
    pages.cut(0, PAGE_BYTES << 40)
    assert not pages.pages and not pages.valid


@pytest.mark.parametrize(("start", "end", "blocks"), [(0, 1, 1), (0, 4096, 1), (4095, 4097, 2), (4096, 8192, 1), (1, 8193, 3)])
def test_grant_bytes_counts_blocks(start: int, end: int, blocks: int) -> None:
    assert grant_bytes(start, end) == blocks * GRANT_BLOCK_BYTES


def test_a_block_is_used_where_it_came_and_copied_only_if_somebody_looks_at_it() -> None:
    pages = pages_of()
    size = page_cache.BLOCK_PAGES * PAGE_BYTES
    fetch = pages.begin_fetch(size, 2 * size)
    sink = pages.sink(fetch)
    sink[:] = b"f" * size
    pages.end_fetch(fetch, sink)
    (page,) = pages.cache.lru
    assert page.view.obj is sink.obj and pages.cache.bytes == size
    pages.write(0, [bytearray(b"w" * size)])
    flight = pages.collect(0, size, size)
    assert flight is not None and isinstance(flight.data, memoryview)
    first = pages.pages[0]
    assert flight.data.obj is first.buffer and first.shared
    pages.end_flight(flight, lost=False)
    pages.write(10, [b"new"])
    assert flight.data == b"w" * size, "the import may send it again"
    assert pages.get(9, 5) == b"wneww" and not first.shared
    buffer = id(first.buffer)
    pages.write(20, [b"newer"])
    assert id(first.buffer) == buffer, "nobody else looks at it now"
    pages.cut(0, 2 * size)
    assert not pages.pages and not pages.cache.count


def test_bytes_never_change_so_they_are_not_copied() -> None:
    pages = pages_of()
    size = page_cache.BLOCK_PAGES * PAGE_BYTES
    data = b"w" * (2 * size)
    pages.write(0, [memoryview(data)])
    flight = pages.collect(size, 2 * size, size)
    assert flight is not None and isinstance(flight.data, memoryview) and flight.data.obj is data
    pages.end_flight(flight, lost=False)
    pages.write(size + 10, [b"new"])
    assert data == b"w" * (2 * size) and pages.get(size + 9, 5) == b"wneww" and flight.data == data[:size]
    pages.cut(0, 2 * size)
    assert not pages.pages and not pages.cache.count


def test_whole_pages_of_bytes_are_kept_as_they_are() -> None:
    pages = pages_of()
    data = bytes(random.Random(1).randbytes(5 * PAGE_BYTES + 100))
    pages.write(3 * PAGE_BYTES, [b"old"])
    pages.write(2 * PAGE_BYTES - 50, [memoryview(data)])  # page 3 is there already, and none begins where the data does
    model = bytearray(2 * PAGE_BYTES - 50) + data
    flight = pages.collect(0, 1 << 30, 1 << 20)
    assert flight is not None and bytes(flight.data) == data
    pages.end_flight(flight, lost=False)
    more = bytes(random.Random(2).randbytes(4 * PAGE_BYTES))
    pages.write(16 * PAGE_BYTES, [memoryview(more)])
    flight = pages.collect(16 * PAGE_BYTES, 20 * PAGE_BYTES, 1 << 20)
    assert flight is not None and isinstance(flight.data, memoryview) and flight.data.obj is more, "it is sent from there"
    pages.write(17 * PAGE_BYTES + 1, [b"new"])
    assert flight.data == more, "what is on its way does not change"
    assert pages.get(17 * PAGE_BYTES, 5) == more[PAGE_BYTES : PAGE_BYTES + 1] + b"new" + more[PAGE_BYTES + 4 : PAGE_BYTES + 5]
    assert pages.get(2 * PAGE_BYTES - 50, len(data)) == bytes(model[2 * PAGE_BYTES - 50 :])
    pages.end_flight(flight, lost=False)
    pages.cut(0, 1 << 30)
    assert not pages.pages and not pages.cache.count


def test_blocks_that_nobody_uses_are_used_again() -> None:
    cache = PageCache(lambda: 1 << 40)
    pages = ObjectPages(cache)
    size = page_cache.BLOCK_PAGES * PAGE_BYTES
    pages.write(0, [bytearray(b"w" * size)])
    flight = pages.collect(0, size, size)
    assert flight is not None
    kept = id(pages.pages[0].buffer)
    pages.end_flight(flight, lost=False)
    pages.cut(0, size)
    assert id(cache.take_block()) != kept, "it may be sent again"
    pages.write(0, [bytearray(b"x" * size)])
    free = id(pages.pages[0].buffer)
    pages.cut(0, size)
    assert id(cache.take_block()) == free
    assert flight.data == b"w" * size
