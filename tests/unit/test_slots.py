"""Reply slots: no tag is out twice."""

from __future__ import annotations

from lustrelite.rpc.slots import ModSlots


def take_all(slots: ModSlots) -> list[int]:
    """Every tag that is left."""
    tags = []
    while tag := slots.try_take(close=False):
        tags.append(tag)
    return tags


def test_a_limit_that_goes_down_and_up_again_gives_no_taken_tag() -> None:
    slots = ModSlots()
    taken = [slots.try_take(close=False) for _ in range(20)]
    slots.resize(8)
    slots.resize(32)
    assert sorted(taken + take_all(slots)) == list(range(1, 33))
    for tag in taken:
        slots.free(tag)
    assert sorted(take_all(slots)) == sorted(taken)


def test_a_tag_that_is_given_back_twice_is_there_once() -> None:
    slots = ModSlots()
    tag = slots.try_take(close=False)
    slots.free(tag)
    slots.free(tag)
    assert sorted(take_all(slots)) == list(range(1, 33))
