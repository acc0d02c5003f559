"""Sets of integers as ordered, disjoint intervals [start, end): which bytes of an object are cached, which are dirty.

Two lists and bisect: sequential work is one interval, whatever its length, and even ten thousand scattered ones are
inserted into by one short memmove.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Intervals:
    """A set of integers."""

    __slots__ = ("ends", "starts")

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        for start, end in intervals:
            self.add(start, end)

    def __bool__(self) -> bool:
        return bool(self.starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts, self.ends, strict=True)

    def __repr__(self) -> str:
        return f"Intervals({list(self)})"

    @property
    def total(self) -> int:
        """How many integers there are."""
        return sum(self.ends) - sum(self.starts)

    def add(self, start: int, end: int) -> tuple[int, int]:
        """Put [start, end) in; returns the interval that it is now part of: neighbours have become one."""
        assert start < end
        starts, ends = self.starts, self.ends
        first = bisect_left(ends, start)
        after = bisect_right(starts, end)
        if first < after:
            start = min(start, starts[first])
            end = max(end, ends[after - 1])
        starts[first:after] = (start,)
        ends[first:after] = (end,)
        return start, end

    def remove(self, start: int, end: int) -> None:
        """Take [start, end) out, as far as it is in."""
        starts, ends = self.starts, self.ends
        first = bisect_right(ends, start)
        after = bisect_left(starts, end)
        if first >= after:
            return
        kept_starts, kept_ends = [], []
        if starts[first] < start:
            kept_starts.append(starts[first])
            kept_ends.append(start)
        if ends[after - 1] > end:
            kept_starts.append(end)
            kept_ends.append(ends[after - 1])
        starts[first:after] = kept_starts
        ends[first:after] = kept_ends

    def covers(self, start: int, end: int) -> bool:
        """Is all of [start, end) in?"""
        at = bisect_right(self.starts, start) - 1
        return (at >= 0 and self.ends[at] >= end) or start >= end

    def overlaps(self, start: int, end: int) -> bool:
        """Is anything of [start, end) in?"""
        at = bisect_right(self.ends, start)
        return at < len(self.starts) and self.starts[at] < end and start < end

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is in, in order."""
        first = bisect_right(self.ends, start)
        after = bisect_left(self.starts, end)
        return [(max(self.starts[at], start), min(self.ends[at], end)) for at in range(first, after)]

    def whole(self, start: int, end: int) -> list[tuple[int, int]]:
        """The intervals that overlap or touch [start, end), uncut: what `add` would join."""
        first = bisect_left(self.ends, start)
        after = bisect_right(self.starts, end)
        return [(self.starts[at], self.ends[at]) for at in range(first, after)]

    def gaps(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is not in, in order."""
        found = []
        for low, high in self.within(start, end):
            if start < low:
                found.append((start, low))
            start = high
        if start < end:
            found.append((start, end))
        return found
