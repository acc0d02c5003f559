"""What caching names and attributes is worth: cached_stat, listing, shared_dir."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from contextlib import AsyncExitStack
from typing import Any

from bench.harness import bench, closed_loop, cluster, cpu_seconds, mounted, result, run, scratch

STAT_FILES = 1000
FILES = 5000
STATS = 400_000
CLIENTS = 32
SHARED_CREATES = 12_000


async def make_files(made: Any, directory: str, count: int) -> None:
    """Empty files, made by a client that is gone afterwards."""
    async with mounted(made, "maker") as fs:
        parent = (await fs.mkdir(directory)).fid
        await closed_loop(32, count, lambda w, n: fs.create_at(parent, b"f%d" % n))


def local_stats() -> float:
    """os.stat(2) per second on the local disk, in the best of as many passes."""
    directory = scratch()
    paths = [str(directory / f"f{number}") for number in range(STAT_FILES)]
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
    best = 0.0
    for _ in range(STATS // STAT_FILES):
        began = time.perf_counter()
        for path in paths:
            os.stat(path)
        best = max(best, STAT_FILES / (time.perf_counter() - began))
    shutil.rmtree(directory)
    return best


@bench
def cached_stat() -> dict[str, Any]:
    """stat("/dir/file") with size through the library, of what the client knows, against os.stat on the local disk."""
    with cluster() as made:

        async def main() -> tuple[float, int]:
            await make_files(made, "/dir", STAT_FILES)
            async with mounted(made, caching=1) as fs:
                paths = [f"/dir/f{number}" for number in range(STAT_FILES)]
                imp = fs.connections.imports[f"{made.fsname}-MDT0000"]
                async for _ in fs.scandir("/dir"):
                    pass
                for path in paths:
                    await fs.stat(path)
                asked = imp.counts["requests"]
                best = 0.0
                for _ in range(STATS // STAT_FILES):  # the best pass: the machine's speed drifts
                    began = time.perf_counter()
                    for path in paths:
                        await fs.stat(path)
                    best = max(best, STAT_FILES / (time.perf_counter() - began))
                    await asyncio.sleep(0)  # what is known costs no turn of the loop, but leases are renewed in one
                return best, imp.counts["requests"] - asked

        rate, asked = run(main)
    return result("cached_stat", rate, "1/s", "os.stat on the local disk", local_stats(), files=STAT_FILES, requests=asked)


@bench
def listing() -> dict[str, Any]:
    """Entries per second of a directory listed with attributes and sizes, against asking for each by itself."""
    with cluster() as made:

        async def list_all(caching: int) -> tuple[float, float]:
            async with mounted(made, caching=caching) as fs:
                rates = []
                for _ in range(2):
                    began = time.perf_counter()
                    assert len([entry async for entry in fs.scandir("/dir")]) == FILES
                    rates.append(FILES / (time.perf_counter() - began))
                return rates[0], rates[1]

        async def ask_each() -> float:
            async with mounted(made) as fs:
                names = await fs.readdir("/dir")
                began = time.perf_counter()
                for name in names:
                    await fs.stat(f"/dir/{name}")
                return FILES / (time.perf_counter() - began)

        async def main() -> tuple[float, float, float, float]:
            await make_files(made, "/dir", FILES)
            uncached, _ = await list_all(0)
            first, again = await list_all(1)
            return first, again, uncached, await ask_each()

        first, again, uncached, each = run(main)
    return result("listing", first, "1/s", "one stat after the other", each, again=round(again), uncached=round(uncached))


@bench
def shared_dir() -> dict[str, Any]:
    """Creates by 32 caching clients in one directory, against the same in a directory for each."""
    with cluster() as made:
        mds = int(made.record("mds1")["pid"])

        async def main() -> tuple[float, ...]:
            await make_files(made, "/warm", 4000)
            async with AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(mounted(made, f"c{number}", caching=1)) for number in range(CLIENTS)
                ]

                async def creates(paths: list[str]) -> tuple[float, float]:
                    for path in sorted(set(paths)):
                        await clients[0].mkdir(path)
                    await asyncio.gather(*[fs.stat(path) for fs, path in zip(clients, paths, strict=True)])
                    cpu = cpu_seconds(mds)

                    async def one(worker: int, number: int) -> None:
                        await clients[worker].create(f"{paths[worker]}/{worker}.{number}")

                    rate = await closed_loop(CLIENTS, SHARED_CREATES, one)
                    return rate, (cpu_seconds(mds) - cpu) / SHARED_CREATES

                apart, shared = [], []
                for turn in range(3):  # in turn: the machine's speed drifts
                    apart.append(await creates([f"/own{turn}.{number}" for number in range(CLIENTS)]))
                    shared.append(await creates([f"/shared{turn}"] * CLIENTS))
                return (*max(shared), *max(apart))

        shared, shared_us, apart, apart_us = run(main)
    return result(
        "shared_dir", shared, "1/s", "a directory for each", apart, clients=CLIENTS, mds_us=round(shared_us * 1e6, 1),
        apart_us=round(apart_us * 1e6, 1),
    )  # fmt: skip
