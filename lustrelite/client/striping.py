"""Where a byte of a file is: RAID 0 over objects, as pure arithmetic.

A file is cut into units of `stripe_size` bytes, dealt out to `count` objects in turn. Unit u is in object u % count,
at object offset (u // count) * stripe_size. So any range of the file is at most one contiguous range of each object,
and the length of an object says how far the file reaches at least: the file's size is the largest such reach.

Everything the client does with several OSTs (reads, writes, sizes, truncation, holes) is one of the functions here.
Offsets and lengths are bytes, ends are exclusive. Source: lov_stripe_offset(), lov_stripe_size(),
lustre/lov/lov_offset.c
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Extent(NamedTuple):
    """One RPC's worth of one object.

    `pieces` are (start, length) in the range that was split, in the object's order; their lengths add up to `length`.
    There is more than one only where stripe units are shorter than an RPC.
    """

    stripe: int
    offset: int  # in the object
    length: int
    pieces: tuple[tuple[int, int], ...]


class Hole(NamedTuple):
    """A range of one object: [start, end)."""

    stripe: int
    start: int
    end: int


def to_object(offset: int, stripe_size: int, count: int) -> tuple[int, int]:
    """(stripe, offset in the object) of the file's byte at `offset`."""
    assert offset >= 0 and stripe_size > 0 and count > 0
    unit, within = divmod(offset, stripe_size)
    return unit % count, unit // count * stripe_size + within


def to_file(stripe: int, offset: int, stripe_size: int, count: int) -> int:
    """Offset in the file of the byte at `offset` of object `stripe`; the inverse of `to_object`."""
    assert 0 <= stripe < count and offset >= 0 and stripe_size > 0
    unit, within = divmod(offset, stripe_size)
    return (unit * count + stripe) * stripe_size + within


def object_bytes(stripe: int, end: int, stripe_size: int, count: int) -> int:
    """How many bytes of the file's [0, end) are in object `stripe`: where the object ends in a file of `end` bytes."""
    assert 0 <= stripe < count and end >= 0 and stripe_size > 0
    rounds, rest = divmod(end, stripe_size * count)
    return rounds * stripe_size + min(max(rest - stripe * stripe_size, 0), stripe_size)


def reach(stripe: int, size: int, stripe_size: int, count: int) -> int:
    """The least size of a file whose object `stripe` has `size` bytes; 0 if the object is empty."""
    return to_file(stripe, size - 1, stripe_size, count) + 1 if size else 0


def file_size(sizes: Sequence[int], stripe_size: int) -> int:
    """The file's size from the sizes of all its objects, in stripe order."""
    count = len(sizes)
    return max((reach(stripe, size, stripe_size, count) for stripe, size in enumerate(sizes)), default=0)


def split(offset: int, length: int, stripe_size: int, count: int, bytes_max: int) -> list[Extent]:
    """The file's [offset, offset + length) as extents of at most `bytes_max` bytes, in file order of their first bytes.

    Extents are cut at multiples of `bytes_max` in the object, so that equal ranges make equal RPCs, and so that each
    extent is one piece when `stripe_size` is a multiple of `bytes_max`.
    """
    assert offset >= 0 and length >= 0 and stripe_size > 0 and count > 0 and bytes_max > 0
    if not length:
        return []
    end = offset + length
    first, last = offset // stripe_size, (end - 1) // stripe_size
    extents: list[Extent] = []
    for unit in range(first, min(last, first + count - 1) + 1):
        stripe = unit % count
        start = object_bytes(stripe, offset, stripe_size, count)
        stop = object_bytes(stripe, end, stripe_size, count)
        while start < stop:
            cut = min(stop, (start // bytes_max + 1) * bytes_max)
            pieces = _pieces(stripe, start, cut, stripe_size, count, offset)
            extents.append(Extent(stripe, start, cut - start, pieces))
            start = cut
    extents.sort(key=_first_byte)
    assert sum(extent.length for extent in extents) == length
    return extents


def parts(extent: Extent, bytes_max: int) -> list[Extent]:
    """`extent` cut at multiples of `bytes_max` in the object."""
    found: list[Extent] = []
    pieces: list[tuple[int, int]] = []
    at = first = extent.offset
    for start, length in extent.pieces:
        while length:
            part = min(length, bytes_max - at % bytes_max)
            pieces.append((start, part))
            start, length, at = start + part, length - part, at + part
            if not at % bytes_max:
                found.append(Extent(extent.stripe, first, at - first, tuple(pieces)))
                pieces, first = [], at
    if pieces:
        found.append(Extent(extent.stripe, first, at - first, tuple(pieces)))
    return found


def _first_byte(extent: Extent) -> int:
    return extent.pieces[0][0]


def _pieces(
    stripe: int, start: int, stop: int, stripe_size: int, count: int, base: int
) -> tuple[tuple[int, int], ...]:
    if count == 1:
        return ((start - base, stop - start),)
    pieces = []
    while start < stop:
        cut = min(stop, (start // stripe_size + 1) * stripe_size)
        pieces.append((to_file(stripe, start, stripe_size, count) - base, cut - start))
        start = cut
    return tuple(pieces)


def truncation(size: int, stripe_size: int, count: int) -> list[int]:
    """The size each object has to get, in stripe order, so that the file has exactly `size` bytes."""
    return [object_bytes(stripe, size, stripe_size, count) for stripe in range(count)]


def sought(answers: Sequence[tuple[int, int]], offset: int, stripe_size: int, *, data: bool) -> int | None:
    """The first data, or hole, of a file from `offset` on; None: there is none, or the file ends before.

    `answers` are (where it is in the object from the first byte at or behind `offset` on, or -1; the object's size) of
    all objects. An object's bytes are in the order of the file's, so the first of the file is the first of one of them.
    """
    count = len(answers)
    size = file_size([each for _, each in answers], stripe_size)
    if offset >= size:
        return None
    found = min((to_file(s, at, stripe_size, count) for s, (at, _) in enumerate(answers) if at >= 0), default=size)
    if found >= size:
        return None if data else size
    return found


def holes(start: int, end: int, stripe_size: int, count: int) -> list[Hole]:
    """The object ranges to free for a hole in the file's [start, end); objects outside it are left out."""
    assert 0 <= start <= end
    ranges = []
    for stripe in range(count):
        low = object_bytes(stripe, start, stripe_size, count)
        high = object_bytes(stripe, end, stripe_size, count)
        if low < high:
            ranges.append(Hole(stripe, low, high))
    return ranges
