"""Reply slots: no tag is out twice."""

from __future__ import annotations

import asyncio

from lustrelite.rpc.slots import CLOSE, PROMPT, ModSlots


def take_all(slots: ModSlots) -> list[int]:
    """Every tag that is left."""
    tags = []
    while tag := slots.try_take():
        tags.append(tag)
    return tags


def test_a_limit_that_goes_down_and_up_again_gives_no_taken_tag() -> None:
    slots = ModSlots()
    taken = [slots.try_take() for _ in range(20)]
    slots.resize(8)
    slots.resize(32)
    assert sorted(taken + take_all(slots)) == list(range(1, 33))
    for tag in taken:
        slots.free(tag)
    assert sorted(take_all(slots)) == sorted(taken)


def test_a_tag_that_is_given_back_twice_is_there_once() -> None:
    slots = ModSlots()
    tag = slots.try_take()
    slots.free(tag)
    slots.free(tag)
    assert sorted(take_all(slots)) == list(range(1, 33))


def test_a_close_and_a_reopen_have_a_tag_each_when_all_others_are_taken() -> None:
    slots = ModSlots()
    taken = take_all(slots)
    spare = [slots.try_take(kind) for kind in (CLOSE, PROMPT)]
    assert len({*taken, *spare}) == len(taken) + 2 and all(spare)
    assert not slots.try_take(CLOSE) and not slots.try_take(PROMPT)
    slots.free(spare[1])
    assert not slots.try_take(CLOSE) and slots.try_take(PROMPT) == spare[1]


async def test_a_spare_tag_that_is_free_again_goes_to_who_may_have_it() -> None:
    """Not to the first of all who wait: he could not take it, and who could would not hear of it."""
    slots = ModSlots()
    take_all(slots)
    spare = slots.try_take(CLOSE)
    waiting = {kind: asyncio.create_task(slots.wait(kind)) for kind in (0, PROMPT, CLOSE)}
    await asyncio.sleep(0)
    slots.free(spare)
    done, _ = await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED)
    assert done == {waiting[CLOSE]}
    slots.free(1)
    done, _ = await asyncio.wait([waiting[0], waiting[PROMPT]], return_when=asyncio.FIRST_COMPLETED)
    assert done == {waiting[0]}
    waiting[PROMPT].cancel()


async def test_more_slots_are_given_to_those_who_wait_for_one() -> None:
    """The server has become generous at a reconnect, and whoever has the slots that there were waits for a lock."""
    slots = ModSlots()
    slots.resize(1)
    assert slots.try_take() == 1
    waiting = [asyncio.create_task(slots.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    slots.resize(4)
    assert sorted(await asyncio.wait_for(asyncio.gather(*waiting), 1)) == [2, 3, 4]


async def test_who_waits_for_a_slot_is_not_overtaken() -> None:
    """Others come in the turn in which one is free, before those who wait have heard of it."""
    slots = ModSlots()
    slots.resize(1)
    tag = slots.try_take()
    waiting = asyncio.create_task(slots.wait())
    await asyncio.sleep(0)
    slots.free(tag)
    assert not slots.try_take()
    assert await waiting == tag


async def test_a_slot_whose_new_owner_is_gone_goes_to_the_next() -> None:
    slots = ModSlots()
    taken = take_all(slots)
    spare = slots.try_take(CLOSE)
    first, second = (asyncio.create_task(slots.wait(CLOSE)) for _ in range(2))
    await asyncio.sleep(0)
    slots.free(spare)
    first.cancel()
    assert await second == spare
    waiting = asyncio.create_task(slots.wait())
    await asyncio.sleep(0)
    slots.free(taken[0])
    waiting.cancel()
    await asyncio.wait([waiting])
    assert slots.try_take() == taken[0] and not slots.try_take(CLOSE)
    slots.free(spare)
    assert slots.try_take(CLOSE) == spare
