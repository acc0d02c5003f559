"""A loop that does not sleep when something may come soon, and does when that was in vain."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import pytest

from lustrelite.rpc.spinner import KEPT_S, LUCK_MAX, REST, REST_MAX_S, UNLUCKY_MAX, Spinner
from lustrelite.rpc.workers import Workers
from lustrelite.tunables import Tunables


class Spin:
    """A spinner, its clock, and how often it has looked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processors: int = 2) -> None:
        self.now = 0.0
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
        self.workers = Workers(1)
        self.tunables = Tunables(spin_us=100)
        self.spinner = Spinner(self.tunables, self.workers)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    async def looks(self, turns: int = 10) -> bool:
        """Does the loop go round, now and for as long as the clock stands?"""
        loop = asyncio.get_running_loop()
        for _ in range(turns):
            await asyncio.sleep(0)
        return any(getattr(handle, "_callback", None) == self.spinner._look for handle in loop._ready)  # type: ignore[attr-defined]

    async def in_vain(self) -> bool:
        """Something comes, and nothing after it. Was it waited for?"""
        self.spinner.received()
        looked = await self.looks()
        self.now += 1.0
        assert not await self.looks()
        return looked


@pytest.fixture
async def spin(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Spin]:
    one = Spin(monkeypatch)
    yield one
    one.workers.stop(1.0)


async def test_it_looks_for_a_while_after_something_came_or_went(spin: Spin) -> None:
    for begin in (spin.spinner.received, spin.spinner.sent):
        assert not await spin.looks()
        begin()
        assert await spin.looks()
        spin.now += 60e-6
        spin.spinner.sent()
        spin.now += 60e-6
        assert await spin.looks(), "the time begins anew"
        spin.now += 60e-6
        assert not await spin.looks()


async def test_with_one_processor_it_never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    spin = Spin(monkeypatch, processors=1)
    assert not await spin.in_vain()
    spin.workers.stop(1.0)


async def test_after_looking_in_vain_it_looks_rarely_until_that_is_worth_it(spin: Spin) -> None:
    assert [await spin.in_vain() for _ in range(LUCK_MAX)] == [True] * LUCK_MAX
    assert [await spin.in_vain() for _ in range(2 * UNLUCKY_MAX)] == ([False] * (UNLUCKY_MAX - 1) + [True]) * 2
    for _ in range(UNLUCKY_MAX):
        spin.spinner.received()
    for _ in range(2):
        assert await spin.looks()
        spin.spinner.received()  # in time
    spin.now += 1.0
    assert not await spin.looks()
    assert [await spin.in_vain() for _ in range(4)] == [True] * 4


async def test_it_leaves_the_interpreter_to_threads_at_work(spin: Spin) -> None:
    spin.spinner.received()
    assert await spin.looks()
    done = spin.workers.run(lambda: 7)
    for _ in range(2):
        await asyncio.sleep(0)
    assert not spin.spinner._spinning and await done == 7


async def test_it_sleeps_while_others_compute(spin: Spin, monkeypatch: pytest.MonkeyPatch) -> None:
    spin.tunables.spin_us = 10_000
    kept = [KEPT_S / 2, 2 * KEPT_S]

    def give_way() -> None:
        spin.now += kept.pop(0)

    monkeypatch.setattr(os, "sched_yield", give_way)
    spin.spinner.received()
    assert not await spin.looks(), "somebody kept the processor"
    assert not kept, "who gives it back soon is no reason to sleep"
    monkeypatch.setattr(os, "sched_yield", lambda: None)
    spin.now += (REST - 1) * 2 * KEPT_S
    assert not await spin.in_vain()
    spin.now += 1.0
    assert await spin.in_vain()


async def test_it_sleeps_longer_while_others_always_compute(spin: Spin, monkeypatch: pytest.MonkeyPatch) -> None:
    spin.tunables.spin_us = 10_000
    kept = 2 * KEPT_S

    def give_way() -> None:
        spin.now += kept

    async def rest() -> float:
        """Meet somebody who computes; how long does it rest then?"""
        monkeypatch.setattr(os, "sched_yield", give_way)
        spin.spinner.received()
        assert not await spin.looks()
        monkeypatch.setattr(os, "sched_yield", lambda: None)
        since = spin.now
        while True:
            spin.now += kept
            spin.spinner.received()
            if spin.spinner._spinning:
                return spin.now - since

    def about(seconds: float) -> object:
        return pytest.approx(seconds, abs=1.5 * kept)

    rests = [await rest() for _ in range(8)]
    assert rests[:3] == [about(REST * kept * times) for times in (1, 2, 4)]
    assert rests[-1] == about(REST_MAX_S) and max(rests) < REST_MAX_S + 2 * kept
    spin.now += 2 * REST_MAX_S
    assert await rest() == about(REST * kept), "it was better for a while"


async def test_it_can_be_switched_off(spin: Spin) -> None:
    spin.tunables.spin_us = 0
    assert not await spin.in_vain()
