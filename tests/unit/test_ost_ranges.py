"""Ranges of objects with I/O in flight: who waits for whom."""

from __future__ import annotations

import asyncio
import random

import pytest

from lustrelite.ost.ranges import Hold, Ranges


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_what_does_not_overlap_or_only_reads_does_not_wait() -> None:
    ranges = Ranges()
    holds = [
        await ranges.hold(1, (0, 10)),
        await ranges.hold(1, (10, 20)),
        await ranges.hold(2, (0, 10)),
        await ranges.hold(1, (30, 40), shared=True),
        await ranges.hold(1, (35, 45), shared=True),
    ]
    assert not ranges.free(1, (5, 6))
    assert not ranges.free(1, (44, 50))
    assert ranges.free(1, (20, 30))
    assert ranges.free(3, (0, 100))
    assert ranges.free(1, (20, 25), (26, 30), (45, 60)) and not ranges.free(1, (20, 25), (29, 31))
    for hold in holds:
        ranges.release(hold)
        ranges.release(hold)  # twice does nothing
    assert len(ranges) == 0
    assert not ranges.busy(1)


async def test_overlapping_ones_go_in_order_of_arrival() -> None:
    ranges = Ranges()
    order: list[str] = []
    first = await ranges.hold(1, (0, 10))

    async def later(name: str, start: int, end: int, shared: bool) -> Hold:
        hold = await ranges.hold(1, (start, end), shared=shared)
        order.append(name)
        return hold

    tasks = [
        asyncio.ensure_future(later("read", 0, 5, True)),
        asyncio.ensure_future(later("write over the read", 4, 8, False)),
        asyncio.ensure_future(later("read behind the write", 6, 7, True)),
    ]
    await turn()
    assert order == []
    ranges.release(first)
    await turn()
    assert order == ["read"]  # a reader does not overtake a writer that came first
    ranges.release(await tasks[0])
    await turn()
    assert order == ["read", "write over the read"]
    ranges.release(await tasks[1])
    ranges.release(await tasks[2])
    assert len(ranges) == 0


async def test_a_waiter_that_is_cancelled_leaves_no_trace() -> None:
    ranges = Ranges()
    first = await ranges.hold(1, (0, 10))
    waiter = asyncio.ensure_future(ranges.hold(1, (0, 10)))
    behind = asyncio.ensure_future(ranges.hold(1, (5, 6)))
    await turn()
    waiter.cancel()
    await turn()
    assert len(ranges) == 2
    ranges.release(first)
    ranges.release(await behind)
    assert len(ranges) == 0


@pytest.mark.parametrize("seed", range(5))
async def test_random_holds_never_conflict_and_all_end(seed: int) -> None:
    rng = random.Random(seed)
    ranges = Ranges()
    active: list[Hold] = []

    def places(hold: Hold) -> set[int]:
        return {place for start, end in hold.parts for place in range(start, end)}

    async def one() -> None:
        cuts = sorted(rng.sample(range(70), 2 * rng.choice((1, 1, 2, 5))))
        parts = list(zip(cuts[::2], cuts[1::2], strict=True))
        hold = await ranges.hold(rng.randrange(3), *parts, shared=rng.random() < 0.4)
        for other in active:
            if other.oid == hold.oid and not (other.shared and hold.shared):
                assert not places(other) & places(hold)
        active.append(hold)
        try:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
        finally:
            active.remove(hold)
            ranges.release(hold)

    tasks = [asyncio.ensure_future(one()) for _ in range(200)]
    for task in rng.sample(tasks, 20):
        asyncio.get_running_loop().call_soon(task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() or task.exception() is None for task in tasks)
    assert len(ranges) == 0
