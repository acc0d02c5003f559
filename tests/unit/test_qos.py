"""Which OSTs get new objects when their free space differs."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from lustrelite.mdt.qos import Qos, interleaved
from lustrelite.rpc.node import Node

GIB = 1 << 30


def qos(*spaces: int) -> Qos:
    """With OSTs 0, 1 ... that have so many GiB."""
    node = Node("mds", None)  # type: ignore[arg-type]
    node.random = random.Random(1)
    made = Qos(node)
    for index, space in enumerate(spaces):
        made.look(index, space * GIB)
    return made


@pytest.mark.parametrize(
    ("spaces", "uneven"),
    [((100, 100), False), ((100, 84), False), ((100, 83), True), ((100, 0), True), ((50,), False), ((), False), ((0, 0), False)],
)
def test_it_counts_beyond_the_threshold(spaces: tuple[int, ...], uneven: bool) -> None:
    """17 percent of the largest (qos_threshold_rr)."""
    assert qos(*spaces).uneven(range(len(spaces))) == uneven


def test_nothing_counts_before_all_is_known() -> None:
    assert not qos(100, 1).uneven([0, 1, 2])


def test_the_threshold_can_be_set() -> None:
    made = qos(100, 60)
    made.tunables.qos_threshold_rr = 50
    assert not made.uneven([0, 1])
    made.tunables.qos_threshold_rr = 100
    assert not made.uneven([0, 1])


def test_who_has_more_room_gets_more() -> None:
    made = qos(10, 30, 60)
    counts = Counter(made.draw([0, 1, 2], 1)[0] for _ in range(3000))
    assert 150 < counts[0] < counts[1] < counts[2] < 2100


def test_a_full_one_gets_next_to_nothing() -> None:
    made = qos(0, 100)
    assert Counter(made.draw([0, 1], 1)[0] for _ in range(1000))[0] < 5


def test_stripes_are_on_different_osts() -> None:
    made = qos(10, 30, 60, 90)
    for _ in range(100):
        assert len(set(made.draw([0, 1, 2, 3], 3))) == 3


def test_what_was_just_chosen_weighs_less_for_a_while() -> None:
    made = qos(100, 50)
    made.tunables.qos_prio_free = 0  # all for spreading
    first = made.draw([0, 1], 1)[0]
    penalty = made.penalties[first]
    assert penalty == made.available[first] / 2
    made.look(first, made.available[first])
    assert made.penalties[first] == penalty / 2
    made.tunables.qos_prio_free = 100
    made.draw([0, 1], 2)
    assert made.penalties[first] == 0, "only free space counts"


def test_the_round_alternates_between_servers() -> None:
    assert interleaved([[0, 1], [2, 3]]) == [0, 2, 1, 3]
    assert interleaved([[0, 1, 2, 3], [4, 5]]) == [0, 4, 1, 2, 5, 3]
    assert interleaved([[0, 1, 2]]) == [0, 1, 2] and interleaved([]) == []
