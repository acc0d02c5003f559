"""The simulator's loop: virtual time, no deadlock unnoticed, nothing forgotten, every run the same."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import time

import pytest

from lustrelite.sim.loop import OWNER, START_S, SimBound, SimCrash, SimDeadlock, SimLoop, run


def test_an_hour_of_timers_takes_no_time():
    async def main() -> float:
        for _ in range(3600):
            await asyncio.sleep(1)
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run(main) == pytest.approx(START_S + 3600)
    assert time.perf_counter() - began < 2


def test_waiting_for_nothing_is_a_deadlock_that_names_the_tasks():
    async def nobody_sets_it() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await asyncio.create_task(nobody_sets_it(), name="the-stuck-one")

    with pytest.raises(SimDeadlock, match=r"the-stuck-one at .*nobody_sets_it"):
        run(main)


def test_time_and_callbacks_are_bounded():
    async def main() -> None:
        while True:
            await asyncio.sleep(1)

    with pytest.raises(SimBound, match="virtual time passed 60 s"):
        run(main, time_s_max=60)

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(SimBound, match="more than 1000 callbacks"):
        run(spin, callbacks_max=1000)


def test_an_exception_that_nobody_waits_for_ends_the_run():
    async def main() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(10)

    with pytest.raises(SimCrash, match="ZeroDivisionError"):
        run(main)


def test_timers_of_one_moment_fire_in_order_and_cancelled_ones_do_not():
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        fired: list[int] = []
        handles = [loop.call_later(1.0, fired.append, i) for i in range(300)]
        for handle in handles[::3]:
            handle.cancel()
        await asyncio.sleep(2)
        return fired

    assert run(main) == [i for i in range(300) if i % 3]


def test_blocking_calls_end_in_seeded_order():
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        ended: list[int] = []

        async def one(i: int) -> None:
            assert await loop.run_in_executor(None, int, str(i)) == i
            ended.append(i)

        await asyncio.gather(*(one(i) for i in range(8)))
        with pytest.raises(ValueError):
            await loop.run_in_executor(None, int, "x")
        return ended

    assert run(main, 1) == run(main, 1)
    assert run(main, 1) != run(main, 2)
    assert sorted(run(main, 2)) == list(range(8))


def test_a_paused_owner_stands_still_and_goes_on():
    class Owner:
        name, dead, paused = "n", False, False

    async def main() -> list[tuple[str, int]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        owner, seen = Owner(), []
        context = contextvars.copy_context()
        context.run(OWNER.set, owner)

        async def tick(who: str) -> None:
            for _ in range(4):
                await asyncio.sleep(1)
                seen.append((who, round(loop.time() - START_S)))

        loop.create_task(tick("paused"), context=context)
        other = loop.create_task(tick("other"))
        await asyncio.sleep(1.5)
        owner.paused = True
        loop.stopped()
        await other
        owner.paused = False
        loop.resumed("n")
        await asyncio.sleep(10)
        return seen

    seen = run(main)
    assert [t for who, t in seen if who == "other"] == [1, 2, 3, 4]
    assert [t for who, t in seen if who == "paused"] == [1, 4, 5, 6]


PROGRAM = """
import asyncio, hashlib, random
from lustrelite.sim.loop import run
from lustrelite.sim.net import SimNetwork
import sys; sys.path.insert(0, {here!r})
from test_sim_net import chatter
print(run(lambda: chatter({seed}), {seed}))
"""


@pytest.mark.parametrize("seed", [1, 8411])
def test_a_seed_is_one_history_in_every_process(seed):
    """Across hash seeds and address spaces: sets and ids must not matter."""
    here = os.path.dirname(__file__)
    outputs = []
    for hash_seed in ("0", "1", "random"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        program = PROGRAM.format(here=here, seed=seed)
        outputs.append(subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout)
    assert outputs[0] and len(set(outputs)) == 1
