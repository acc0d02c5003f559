"""Fixtures of all tests, and the loop that they run on.

A coroutine test that is marked `simulated`, or asks for `cluster` or `sim`, runs on the simulator's loop; with `world`,
on the simulator or, marked `processes`, on a real loop over real daemons. All other coroutine tests are pytest-asyncio's.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lustrelite.sim import loop as sim_loop
from lustrelite.sim.cluster import Cluster

SIMULATED = {"cluster", "sim", "world"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="seed of the simulator (default 1)")
    parser.addoption("--swarm-runs", type=int, default=None, help="runs of each swarm test")


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C is tested, also in the background, where a shell has it ignored. Daemons start by the hundred: where Python may not
    write compiled modules, let them share some that go when the tests end."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        compiled = os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="llpyc")
        config.add_cleanup(lambda: shutil.rmtree(compiled, ignore_errors=True))


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> Any:
    """Wrap the coroutine tests of the simulator, so that they run on a SimLoop."""
    if not isinstance(collector, pytest.Module | pytest.Class) or not collector.funcnamefilter(name):
        return None
    if not inspect.iscoroutinefunction(obj):
        return None
    asked = set(inspect.signature(obj).parameters)
    marks = {mark.name for of in (obj, collector.obj) for mark in _marks(of)}
    if "simulated" not in marks and not SIMULATED & asked:
        return None
    if "processes" in marks and "world" in asked:
        return None
    wrapped = _simulated(obj)
    setattr(collector.obj, name, wrapped)  # a test item looks its function up by name
    return list(collector._genfunctions(name, wrapped))


def _marks(of: object) -> list[Any]:
    marks = getattr(of, "pytestmark", [])
    return marks if isinstance(marks, list) else [marks]


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


class Worlds:
    """What `cluster` and `world` are: call it with the topology and enter the result."""

    def __init__(self, seed: int, make: Callable[..., Any]) -> None:
        self.seed = seed
        self.make = make

    def __call__(self, **topology: Any) -> Any:
        return self.make(seed=self.seed, **topology)


@pytest.fixture
def cluster(seed: int) -> Worlds:
    """`async with cluster(mds=1, oss=2, clients=2) as c`: a simulated cluster (sim/cluster.py)."""
    return Worlds(seed, Cluster)


@pytest.fixture
def world(request: pytest.FixtureRequest, seed: int) -> Worlds:
    """The same on the simulator or, marked `processes`, on real daemons: only what sim/world.py promises."""
    if request.node.get_closest_marker("processes") is None:
        return Worlds(seed, Cluster)
    from tests.processes.world import ProcessWorld

    return Worlds(seed, ProcessWorld)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A failed simulation says how to run it again."""
    report = yield
    if report.when == "call" and report.failed and SIMULATED & set(getattr(item, "fixturenames", ())):
        number = item.funcargs.get("seed", 1) if hasattr(item, "funcargs") else 1
        report.sections.append(("run it again", f'pytest "{item.nodeid}" --seed {number}'))
    return report
