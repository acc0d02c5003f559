"""Striping against a model that deals out bytes one by one."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lustrelite.client import striping

SMALL = list(product((1, 2, 3, 4), (1, 2, 3, 4)))  # (stripe size, count)
BYTES = 27


def deal(stripe_size: int, count: int, length: int = BYTES) -> list[tuple[int, int]]:
    """Where each byte of a file goes: units of `stripe_size` bytes to the objects in turn, each appended."""
    ends = [0] * count
    places = []
    for offset in range(length):
        stripe = offset // stripe_size % count
        places.append((stripe, ends[stripe]))
        ends[stripe] += 1
    return places


@pytest.mark.parametrize(("stripe_size", "count"), SMALL)
def test_every_byte_has_its_place_and_comes_back(stripe_size: int, count: int) -> None:
    for offset, place in enumerate(deal(stripe_size, count)):
        assert striping.to_object(offset, stripe_size, count) == place
        assert striping.to_file(*place, stripe_size, count) == offset


@pytest.mark.parametrize(("stripe_size", "count"), SMALL)
def test_an_object_ends_where_the_model_has_put_its_last_byte(stripe_size: int, count: int) -> None:
    for size in range(BYTES):
        places = deal(stripe_size, count, size)
        ends = [sum(1 for stripe, _ in places if stripe == index) for index in range(count)]
        assert striping.truncation(size, stripe_size, count) == ends
        assert [striping.object_bytes(i, size, stripe_size, count) for i in range(count)] == ends
        assert striping.file_size(ends, stripe_size) == size


@pytest.mark.parametrize(("stripe_size", "count"), SMALL)
def test_the_file_reaches_as_far_as_its_farthest_object(stripe_size: int, count: int) -> None:
    places = deal(stripe_size, count, BYTES * 8)
    for sizes in product(range(0, 7, 2 if count > 2 else 1), repeat=count):
        last = max((o for o, (stripe, at) in enumerate(places) if at < sizes[stripe]), default=-1)
        assert striping.file_size(sizes, stripe_size) == last + 1
        assert max(striping.reach(i, s, stripe_size, count) for i, s in enumerate(sizes)) == last + 1


def check_split(offset: int, length: int, stripe_size: int, count: int, bytes_max: int) -> list[striping.Extent]:
    extents = striping.split(offset, length, stripe_size, count, bytes_max)
    found = {}
    for extent in extents:
        assert 0 < extent.length <= bytes_max
        assert sum(size for _, size in extent.pieces) == extent.length
        assert extent.offset // bytes_max == (extent.offset + extent.length - 1) // bytes_max, "cut at multiples"
        at = extent.offset
        for start, size in extent.pieces:
            for byte in range(start, start + size):
                assert byte not in found
                found[byte] = (extent.stripe, at)
                at += 1
    assert sorted(found) == list(range(length))
    for byte, place in found.items():
        assert striping.to_object(offset + byte, stripe_size, count) == place
    firsts = [extent.pieces[0][0] for extent in extents]
    assert firsts == sorted(firsts), "in file order"
    return extents


@pytest.mark.parametrize(("stripe_size", "count"), SMALL)
def test_a_range_is_split_into_extents_that_cover_it_exactly_once(stripe_size: int, count: int) -> None:
    for offset, length, bytes_max in product(range(14), range(14), range(1, 6)):
        check_split(offset, length, stripe_size, count, bytes_max)


@given(
    st.integers(0, 5000), st.integers(0, 3000), st.integers(1, 700), st.integers(1, 9), st.integers(1, 900)
)  # fmt: skip
def test_split_of_any_range(offset: int, length: int, stripe_size: int, count: int, bytes_max: int) -> None:
    check_split(offset, length, stripe_size, count, bytes_max)


@given(st.integers(0, 1 << 60), st.integers(1, 64 << 20), st.integers(1, 64), st.integers(1, 2000), st.integers(1, 4))
def test_split_of_large_ranges_stays_in_bounds(offset: int, length: int, units: int, count: int, mib: int) -> None:
    extents = striping.split(offset, length, units << 16, count, mib << 20)
    assert sum(extent.length for extent in extents) == length
    for extent in extents:
        assert extent.length <= mib << 20
        assert striping.to_file(extent.stripe, extent.offset, units << 16, count) == offset + extent.pieces[0][0]


def test_an_extent_is_one_piece_when_the_stripe_size_is_a_multiple_of_the_rpc() -> None:
    mib = 1 << 20
    extents = striping.split(12345, 9 * mib, 4 * mib, 3, mib)
    assert all(len(extent.pieces) == 1 for extent in extents)
    assert len(striping.split(0, 8 * mib, mib, 2, mib)) == 8


def test_short_units_are_gathered_into_whole_rpcs() -> None:
    extents = striping.split(0, 4 << 20, 64 << 10, 2, 1 << 20)
    assert [extent.length for extent in extents] == [1 << 20] * 4
    assert all(len(extent.pieces) == 16 for extent in extents)


def test_one_stripe_is_one_piece_whatever_the_stripe_size() -> None:
    assert striping.split(5, 100, 7, 1, 1000) == [striping.Extent(0, 5, 100, ((0, 100),))]


@pytest.mark.parametrize(("stripe_size", "count"), SMALL)
def test_a_hole_frees_exactly_its_bytes(stripe_size: int, count: int) -> None:
    places = deal(stripe_size, count)
    for start in range(BYTES):
        for end in range(start, BYTES):
            freed = {
                (hole.stripe, at)
                for hole in striping.holes(start, end, stripe_size, count)
                for at in range(hole.start, hole.end)
            }
            assert freed == set(places[start:end])
