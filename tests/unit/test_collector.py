"""The collector leaves the old alone until there is time."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections import deque
from collections.abc import Iterator

import pytest

from lustrelite import collector


class Node:
    """Part of a cycle."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def aged() -> weakref.ref[Node]:
    """A cycle that the collections of the young have passed over, and that nobody needs any more."""
    node = Node()
    gc.collect(1)
    gc.collect(1)
    return weakref.ref(node)


def test_the_young_are_collected_and_the_old_are_not_when_the_loop_does_not_get_round_to_it() -> None:
    collector.calm()
    young = weakref.ref(Node())
    old = aged()
    kept = [[] for _ in range(5 * collector.GUARD * collector.MIDDLE)]
    assert young() is None and old() is not None and len(kept)


async def test_the_young_stay_few_although_as_many_are_dropped_as_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "PAUSE_MIN_S", 0.0)
    monkeypatch.setattr(collector, "PAUSE_MAX_S", 0.005)
    full: deque[Node] = deque((Node() for _ in range(20_000)), maxlen=20_000)
    collector.calm()
    task = asyncio.create_task(collector.collect())
    most = 0
    for turn in range(4000):
        for _ in range(10):
            full.append(Node())
            full[0].me = None
        await asyncio.sleep(0 if turn % 50 else 0.005)
        most = max(most, len(gc.get_objects(generation=0)))
    task.cancel()
    assert most < 4 * collector.YOUNG < 20_000, "those that are kept are young until they are looked through"


@pytest.mark.parametrize(("busy", "long_s", "gone"), [(False, 600.0, True), (True, 600.0, False), (True, 0.0, True)])
async def test_the_old_are_collected_when_there_is_time(
    monkeypatch: pytest.MonkeyPatch, busy: bool, long_s: float, gone: bool
) -> None:
    monkeypatch.setattr(collector, "LOOK_S", 0.001)
    monkeypatch.setattr(collector, "PAUSE_MAX_S", 0.001)
    monkeypatch.setattr(collector, "LONG_S", long_s)
    used = iter(range(1 << 30))
    monkeypatch.setattr(time, "process_time", lambda: next(used) if busy else 0.0)
    collector.calm()
    old = aged()
    kept = [[] for _ in range(2 * collector.YOUNG)]
    task = asyncio.create_task(collector.collect())
    await asyncio.sleep(0.1)
    task.cancel()
    assert (old() is None) == gone and len(kept)
