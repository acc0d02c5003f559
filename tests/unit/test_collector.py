"""The collector leaves the old alone until there is time."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
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


def test_the_young_are_collected_and_the_old_are_not() -> None:
    collector.calm()
    young = weakref.ref(Node())
    old = aged()
    kept = [[] for _ in range(20 * collector.YOUNG * collector.MIDDLE)]
    assert young() is None and old() is not None and len(kept)
    assert gc.get_count()[2] > 3


@pytest.mark.parametrize(("busy", "long_s", "gone"), [(False, 600.0, True), (True, 600.0, False), (True, 0.0, True)])
async def test_the_old_are_collected_when_there_is_time(
    monkeypatch: pytest.MonkeyPatch, busy: bool, long_s: float, gone: bool
) -> None:
    monkeypatch.setattr(collector, "LOOK_S", 0.001)
    monkeypatch.setattr(collector, "LONG_S", long_s)
    used = iter(range(1 << 30))
    monkeypatch.setattr(time, "process_time", lambda: next(used) if busy else 0.0)
    collector.calm()
    old = aged()
    kept = [[] for _ in range(3 * collector.YOUNG * collector.MIDDLE)]
    task = asyncio.create_task(collector.collect_when_idle())
    await asyncio.sleep(0.1)
    task.cancel()
    assert (old() is None) == gone and len(kept)
