"""Many extents in order of their start: which overlap a range, and what lies next to it.

A list of buckets of up to BUCKET_MAX items, each with its lowest start, highest end and lowest number, so that a query
looks at the bounds of every bucket (n / BUCKET_MAX of them) and into those few that can hold an answer. While the
items are disjoint, as granted PW locks are, starts and ends have the same order and bisection alone finds the place.
Nothing is rebuilt as a whole. Bounds are exact, except after the removal of what set them: then they may be too wide
until a query comes by, which costs a look and no answer.

`examined` counts buckets and items that queries looked at; tests read it in place of a clock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

BUCKET_MAX = 512


class Spanning(Protocol):
    """An item. Its start and end do not change while it is here."""

    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def number(self) -> int: ...


_key = attrgetter("start", "number")
_start = attrgetter("start")
_end = attrgetter("end")
_number = attrgetter("number")

T = TypeVar("T", bound=Spanning)

NEVER = 1 << 64  # a number above all


class Extents(Generic[T]):
    """Items ordered by (start, number)."""

    __slots__ = ("_buckets", "_firsts", "_highs", "_lows", "_size", "_stale", "disjoint", "examined")

    def __init__(self) -> None:
        self._buckets: list[list[T]] = []
        self._lows: list[tuple[int, int]] = []  # start and number of the first item of each bucket
        self._highs: list[int] = []  # highest end
        self._firsts: list[int] = []  # lowest number
        self._stale: list[bool] = []  # the last two may be too wide
        self._size = 0
        self.disjoint = True  # until two overlap; again when empty
        self.examined = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        for bucket in self._buckets:
            yield from bucket

    def add(self, item: T) -> None:
        """Insert `item`."""
        start, end, number = item.start, item.end, item.number
        self._size += 1
        if not self._buckets:
            self._buckets.append([item])
            self._lows.append((start, number))
            self._highs.append(end)
            self._firsts.append(number)
            self._stale.append(False)
            return
        place = max(bisect_right(self._lows, (start, number)) - 1, 0)
        bucket = self._buckets[place]
        inner = bisect_right(bucket, (start, number), key=_key)
        if self.disjoint:
            before = bucket[inner - 1] if inner else None
            if inner < len(bucket):
                after: T | None = bucket[inner]
            else:
                after = self._buckets[place + 1][0] if place + 1 < len(self._buckets) else None
            if (before is not None and before.end >= start) or (after is not None and after.start <= end):
                self.disjoint = False
        bucket.insert(inner, item)
        if not inner:
            self._lows[place] = (start, number)
        if end > self._highs[place]:
            self._highs[place] = end
        if number < self._firsts[place]:
            self._firsts[place] = number
        if len(bucket) > BUCKET_MAX:
            self._split(place)

    def _split(self, place: int) -> None:
        bucket = self._buckets[place]
        half = bucket[BUCKET_MAX // 2 :]
        del bucket[BUCKET_MAX // 2 :]
        self._buckets.insert(place + 1, half)
        self._lows.insert(place + 1, (half[0].start, half[0].number))
        self._highs.insert(place + 1, 0)
        self._firsts.insert(place + 1, 0)
        self._stale.insert(place + 1, False)
        self._refresh(place)
        self._refresh(place + 1)

    def remove(self, item: T) -> None:
        """Take out `item`, which is here."""
        key = (item.start, item.number)
        place = bisect_right(self._lows, key) - 1
        inner = bisect_left(self._buckets[place], key, key=_key)
        assert self._buckets[place][inner] is item, "not here, or changed while it was"
        self._remove_at(place, inner, item)

    def _remove_at(self, place: int, inner: int, item: T) -> None:
        bucket = self._buckets[place]
        del bucket[inner]
        self._size -= 1
        if not bucket:
            del self._buckets[place], self._lows[place], self._highs[place], self._firsts[place], self._stale[place]
            if not self._size:
                self.disjoint = True
            return
        if not inner:
            self._lows[place] = (bucket[0].start, bucket[0].number)
        if item.end == self._highs[place]:
            if self.disjoint:
                self._highs[place] = bucket[-1].end
            else:
                self._stale[place] = True
        if item.number == self._firsts[place]:
            self._stale[place] = True

    def _refresh(self, place: int) -> None:
        bucket = self._buckets[place]
        self._highs[place] = max(map(_end, bucket))
        self._firsts[place] = min(map(_number, bucket))
        self._stale[place] = False
        self.examined += 1

    # queries ----------------------------------------------------------------------------------------------------

    def overlapping(self, start: int, end: int, before: int = NEVER) -> Iterator[T]:
        """Those that share a byte with [start, end] and have a number below `before`, the highest start first.

        Nothing may change until the iterator is done with.
        """
        buckets = self._buckets
        last = bisect_right(self._lows, (end, NEVER)) - 1
        if last < 0:
            return
        if self.disjoint:
            place = last
            inner = bisect_right(buckets[place], end, key=_start) - 1
            while True:
                item = buckets[place][inner]
                self.examined += 1
                if item.end < start:
                    return
                if item.number < before:
                    yield item
                inner -= 1
                if inner < 0:
                    place -= 1
                    if place < 0:
                        return
                    inner = len(buckets[place]) - 1
        highs, firsts = self._highs, self._firsts
        self.examined += last + 1
        for place in range(last, -1, -1):
            if highs[place] < start or firsts[place] >= before:
                continue
            if self._stale[place]:
                self._refresh(place)
                if highs[place] < start or firsts[place] >= before:
                    continue
            bucket = buckets[place]
            inner = bisect_right(bucket, end, key=_start) if place == last else len(bucket)
            while inner:
                inner -= 1
                item = bucket[inner]
                self.examined += 1
                if item.end >= start and item.number < before:
                    yield item

    def next_start(self, after: int, default: int) -> int:
        """The lowest start above `after`."""
        place = bisect_right(self._lows, (after, NEVER))
        self.examined += 1
        if place:
            bucket = self._buckets[place - 1]
            inner = bisect_right(bucket, after, key=_start)
            if inner < len(bucket):
                return bucket[inner].start
        return self._lows[place][0] if place < len(self._lows) else default
