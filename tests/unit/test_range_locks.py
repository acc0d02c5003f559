"""Who waits for whom among the operations of one client on one file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from lustrelite.client.range_locks import RangeLocks
from lustrelite.wire.mdt import Layout

pytestmark = pytest.mark.simulated

LAYOUT = Layout(0, 1 << 20, "", ((0, 1), (1, 7)))
OTHER = Layout(0, 1 << 20, "", ((0, 2), (1, 8)))


class Crowd:
    """Operations by name, each of which goes on until it is told to end."""

    def __init__(self) -> None:
        self.ranges = RangeLocks()
        self.running: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def comes(self, name: str, start: int, end: int, *, alone: bool = True, layout: Layout = LAYOUT) -> None:
        """It wants its range, and has it if it need not wait."""
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.get_running_loop().create_task(self._work(name, start, end, alone, layout))
        await asyncio.sleep(0.01)

    async def _work(self, name: str, start: int, end: int, alone: bool, layout: Layout) -> None:
        async with self.ranges.hold(layout, start, end, alone=alone) as lock:
            lock.torn = name.startswith("torn")
            self.running.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)

    async def ends(self, *names: str) -> None:
        """They are done."""
        for name in names:
            self._ends[name].set()
            await self.tasks[name]
        await asyncio.sleep(0.01)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    crowd = Crowd()
    yield crowd
    assert not crowd.ranges._files, "nothing is left of files that nobody uses"


async def test_what_does_not_overlap_and_who_only_look_do_not_wait(crowd: Crowd) -> None:
    await crowd.comes("a", 0, 10)
    await crowd.comes("b", 10, 20)
    await crowd.comes("elsewhere", 0, 20, layout=OTHER)
    await crowd.comes("looks", 20, 40, alone=False)
    await crowd.comes("looks, too", 30, 50, alone=False)
    assert len(crowd.running) == 5
    await crowd.ends(*crowd.running)


async def test_what_overlaps_goes_in_the_order_in_which_it_came(crowd: Crowd) -> None:
    await crowd.comes("looks", 0, 10, alone=False)
    await crowd.comes("changes", 5, 15)
    await crowd.comes("looks behind it", 0, 10, alone=False)
    await crowd.comes("far away", 20, 30)
    assert crowd.running == ["looks", "far away"]
    await crowd.ends("looks", "far away")
    assert crowd.running == ["changes"]
    await crowd.ends("changes")
    assert crowd.running == ["looks behind it"]
    await crowd.ends("looks behind it")


@pytest.mark.parametrize("which", ["waits", "has it"])
async def test_who_gives_up_is_in_nobodys_way(crowd: Crowd, which: str) -> None:
    await crowd.comes("has it", 0, 10)
    await crowd.comes("waits", 5, 15)
    await crowd.comes("last", 12, 20)
    assert crowd.running == ["has it"]
    crowd.tasks[which].cancel()
    await asyncio.wait([crowd.tasks[which]])
    await asyncio.sleep(0.01)
    assert crowd.running == (["has it", "last"] if which == "waits" else ["waits"])
    await crowd.ends(*({"waits": ["has it"], "has it": ["waits"]}[which]), "last")


async def test_what_is_done_in_a_turn_minds_who_has_a_range_and_not_who_waits_for_it(crowd: Crowd) -> None:
    assert crowd.ranges.free(LAYOUT, 0, 100) and crowd.ranges.whole(LAYOUT, 0, 100)
    await crowd.comes("looks", 0, 10, alone=False)
    await crowd.comes("waits", 5, 15)
    assert not crowd.ranges.free(LAYOUT, 9, 10)
    assert crowd.ranges.free(LAYOUT, 10, 15) and crowd.ranges.free(OTHER, 0, 100)
    await crowd.ends("looks")
    assert not crowd.ranges.free(LAYOUT, 10, 15)
    assert crowd.ranges.whole(LAYOUT, 0, 100), "half of it is not done"
    await crowd.ends("waits")


async def test_a_reader_waits_for_what_is_half_done_where_he_reads(crowd: Crowd) -> None:
    await crowd.comes("torn", 0, 10)
    await crowd.comes("torn, too", 10, 20)
    assert not crowd.ranges.whole(LAYOUT, 9, 30) and crowd.ranges.whole(LAYOUT, 20, 30) and crowd.ranges.whole(OTHER, 0, 100)
    reading = asyncio.get_running_loop().create_task(crowd.ranges.until_whole(LAYOUT, 5, 15))
    await crowd.ends("torn")
    assert not reading.done()
    await crowd.ends("torn, too")
    assert reading.done()
