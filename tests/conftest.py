"""Fixtures of all tests, and the loop that they run on.

A coroutine test that asks for `cluster` or `sim` runs on the simulator's loop; with `world`, on the simulator or, marked
`processes`, on a real loop over real daemons. All other coroutine tests are pytest-asyncio's.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from lustrelite.sim import loop as sim_loop

SIMULATED = {"cluster", "sim", "world"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of the simulator (default 1)")
    parser.addoption("--swarm-runs", type=int, default=None, help="runs of each swarm test")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> Any:
    """Wrap the coroutine tests of the simulator, so that they run on a SimLoop."""
    if not isinstance(collector, pytest.Module | pytest.Class) or not collector.funcnamefilter(name):
        return None
    if not inspect.iscoroutinefunction(obj) or not SIMULATED & set(inspect.signature(obj).parameters):
        return None
    marks = getattr(obj, "pytestmark", [])
    if any(mark.name == "processes" for mark in marks) and "world" in inspect.signature(obj).parameters:
        return None
    wrapped = _simulated(obj)
    setattr(collector.obj, name, wrapped)  # a test item looks its function up by name
    return list(collector._genfunctions(name, wrapped))


def _simulated(test: Any) -> Any:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        seed = next((value.seed for value in kwargs.values() if hasattr(value, "seed")), 1)
        sim_loop.run(lambda: test(*args, **kwargs), seed)

    return run


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test's world: 1, or what --seed says."""
    given = request.config.getoption("--seed")
    return 1 if given is None else int(given)


class Sim:
    """What a test of the simulator itself asks for."""

    def __init__(self, seed: int) -> None:
        self.seed = seed


@pytest.fixture
def sim(seed: int) -> Iterator[Sim]:
    """Run the test on a SimLoop."""
    yield Sim(seed)
