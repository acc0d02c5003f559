"""A throw-away cluster of real processes for a benchmark, and how results are printed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from lustrelite import collector
from lustrelite.cli.cluster import Cluster
from lustrelite.cli.mount import new_node
from lustrelite.client.fs import FileSystem
from lustrelite.ids import Nid
from lustrelite.real_node import loop_factory

Bench = Callable[[], dict[str, Any]]
BENCHES: dict[str, Bench] = {}


def bench(function: Bench) -> Bench:
    """Register a benchmark under its function's name."""
    BENCHES[function.__name__] = function
    return function


def result(name: str, value: float, unit: str, against: str, other: float, **more: Any) -> dict[str, Any]:
    """One line of output: `ratio` is value / other, both measured in this run."""
    ratio = value / other if other else 0.0
    return {
        "name": name, "value": round(value, 1), "unit": unit, "against": against, "other": round(other, 1),
        "ratio": round(ratio, 3), **more,
    }  # fmt: skip


def scratch() -> Path:
    """A directory on the disk to be measured: $BENCH_DIR or the temporary directory."""
    return Path(tempfile.mkdtemp(prefix="llb", dir=os.environ.get("BENCH_DIR")))


@contextlib.contextmanager
def cluster(**options: Any) -> Iterator[Cluster]:
    """A running cluster in a fresh directory, gone afterwards."""
    directory = scratch()
    made = Cluster(directory / "c")
    try:
        made.create(**options)
        made.up()
        made.wait_healthy()
        yield made
    finally:
        with contextlib.suppress(Exception):
            made.down()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def mounted(made: Cluster, name: str = "bench", **tunables: int) -> AsyncIterator[FileSystem]:
    """A client in this process."""
    node = new_node(name)
    for tunable, value in tunables.items():
        setattr(node.tunables, tunable, value)
    fs = await FileSystem.mount(node, [Nid(nid) for nid in made.mgs_nids], made.fsname)
    try:
        yield fs
    finally:
        await fs.unmount()


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine on the loop that the product uses, with the collector as in the product's processes."""
    async def beside() -> Any:
        task = asyncio.create_task(collector.collect())
        try:
            return await main()
        finally:
            task.cancel()

    collector.calm()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(beside())


async def closed_loop(workers: int, count: int, work: Callable[[int, int], Awaitable[Any]]) -> float:
    """`count` calls of `work(worker, number)` in order, `workers` at a time; returns calls per second."""
    numbers = iter(range(count))

    async def worker(which: int) -> None:
        for number in numbers:  # shared: nobody idles at the end because his servers were the quicker ones
            await work(which, number)

    began = time.perf_counter()
    await asyncio.gather(*[worker(which) for which in range(workers)])
    return count / (time.perf_counter() - began)


def memory_bytes(pid: int) -> int:
    """Anonymous memory of a process: what it allocated, without the pages of mapped files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], percent: float) -> float:
    """The value below which `percent` of the sorted `values` lie."""
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def show(line: dict[str, Any]) -> None:
    """Print a result."""
    print(json.dumps(line), flush=True)  # noqa: T201
