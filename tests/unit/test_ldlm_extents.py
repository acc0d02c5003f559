"""The ordered container of extents against a plain list, with buckets so small that they split all the time."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.ldlm import extents
from lustrelite.ldlm.extents import NEVER, Extents

MAX = 60


class Item(NamedTuple):
    start: int
    end: int
    number: int


@pytest.fixture(autouse=True, scope="module")
def small_buckets():  # type: ignore[no-untyped-def]
    old, extents.BUCKET_MAX = extents.BUCKET_MAX, 4
    yield
    extents.BUCKET_MAX = old


def check(e: Extents[Item], model: list[Item]) -> None:
    model = sorted(model, key=lambda i: (i.start, i.number))
    assert list(e) == model and len(e) == len(model)
    model.reverse()
    lowest = [i.number for i in model][:1]
    for start in range(0, MAX, 11):
        for length in (1, 5, MAX):
            end = start + length - 1
            for before in [NEVER, *lowest, 20, 0]:
                want = [i for i in model if i.start <= end and i.end >= start and i.number < before]
                got = list(e.overlapping(start, end, before))
                assert got == want, "highest start first"
        assert e.next_start(start, 999) == min((i.start for i in model if i.start > start), default=999)
    for b, a in pairwise(model):
        assert not e.disjoint or a.end < b.start


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_it_answers_as_a_list_would(data: st.DataObject) -> None:
    e: Extents[Item] = Extents()
    model: list[Item] = []
    disjoint = data.draw(st.booleans())
    for number in range(data.draw(st.integers(0, 40))):
        start = data.draw(st.integers(0, MAX))
        end = start + (0 if disjoint else data.draw(st.integers(0, 20)))
        if disjoint and any(i.start == start for i in model):
            continue
        if model and data.draw(st.integers(0, 3)) == 0:
            gone = model.pop(data.draw(st.integers(0, len(model) - 1)))
            e.remove(gone)
        item = Item(start, end, number)
        model.append(item)
        e.add(item)
    if disjoint:
        assert e.disjoint
    check(e, model)
    for item in data.draw(st.permutations(model)):
        e.remove(item)
        model.remove(item)
        if len(model) % 8 == 0:
            check(e, model)
    assert e.disjoint and not len(e)


def test_many_of_one_start_over_many_buckets() -> None:
    e: Extents[Item] = Extents()
    items = [Item(5, 9, n) for n in range(50)]
    for item in items[::2] + items[1::2]:
        e.add(item)
    check(e, items)
    for n in (25, 0, 49, 13):
        e.remove(items[n])
    assert [i.number for i in e] == [n for n in range(50) if n not in (25, 0, 49, 13)]


def test_removing_what_is_not_there_is_a_bug() -> None:
    e: Extents[Item] = Extents()
    e.add(Item(1, 2, 3))
    with pytest.raises((AssertionError, IndexError)):
        e.remove(Item(1, 2, 4))
