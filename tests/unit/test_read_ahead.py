"""Read-ahead as a pure function of what was read before."""

from __future__ import annotations

import random

from lustrelite.client.intervals import Intervals
from lustrelite.client.read_ahead import START_BYTES, ReadAhead

MAX = 4 << 20


def test_a_sequential_reader_never_meets_what_was_not_asked_for() -> None:
    ahead, asked, times = ReadAhead(), Intervals(), 0
    for number in range(5000):
        offset = number * 4096
        if number:
            assert asked.covers(offset, offset + 4096)
        ranges = ahead.observe(offset, 4096, MAX)
        times += bool(ranges)
        for start, end in ranges:
            assert not asked.overlaps(start, end), "nothing twice"
            asked.add(start, end)
        assert asked.ends[-1] <= offset + 4096 + MAX + (1 << 20)
    assert times < 30, "by and by in large parts"


def test_the_window_doubles_up_to_its_bound() -> None:
    ahead, windows = ReadAhead(), []
    for number in range(2000):
        ahead.observe(number * 4096, 4096, 1 << 20)
        windows.append(ahead.window)
    assert windows[0] == START_BYTES and max(windows) == 1 << 20
    assert windows == sorted(windows)


def test_reads_that_need_not_be_told_would_have_asked_for_nothing() -> None:
    """`expected` and `trigger` are what File's fast path looks at."""
    ahead, offset = ReadAhead(), 0
    for _ in range(3000):
        quiet = offset == ahead.expected and offset + 4096 < ahead.trigger
        before = ahead.window
        ranges = ahead.observe(offset, 4096, MAX)
        assert not (quiet and (ranges or ahead.window != before))
        offset += 4096


def test_a_random_reader_gets_nothing_ahead() -> None:
    rng, ahead = random.Random(1), ReadAhead()
    for _ in range(500):
        assert ahead.observe(4096 * rng.randrange(1, 1 << 30), 4096, MAX) == []


def test_a_reader_in_the_middle_is_believed_at_the_second_read() -> None:
    ahead = ReadAhead()
    assert ahead.observe(1 << 30, 4096, MAX) == []
    assert ahead.observe((1 << 30) + 4096, 4096, MAX) == [((1 << 30) + 8192, (1 << 30) + 8192 + START_BYTES)]
    assert ahead.observe(0, 4096, MAX) == [], "away"


def test_strides_are_asked_for_once_and_only_they() -> None:
    ahead, asked = ReadAhead(), set[int]()
    hits = 0
    for number in range(200):
        offset = (1 << 20) + number * 100_000
        hits += offset in asked
        for start, end in ahead.observe(offset, 4096, MAX):
            assert end - start == 4096 and (start - (1 << 20)) % 100_000 == 0 and start > offset
            assert start not in asked
            asked.add(start)
    assert hits > 190
    assert len(asked) < 200 + 64


def test_backward_strides_stop_at_the_beginning() -> None:
    ahead, asked = ReadAhead(), list[int]()
    for number in range(9, -1, -1):
        asked += [start for start, _ in ahead.observe(number * 10_000, 100, MAX)]
    assert asked and min(asked) >= 0 and len(asked) == len(set(asked))


def test_no_room_no_read_ahead() -> None:
    ahead = ReadAhead()
    for number in range(10):
        assert ahead.observe(number * 4096, 4096, 0) == []
