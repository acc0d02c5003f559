"""How long a crash is felt: oss_restart, `kill -9` of an OSS under full write load, and its clients' replays."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from bench.harness import bench, cluster, mounted, result, run
from lustrelite.cli.cluster import Cluster
from lustrelite.client.fs import FileSystem
from lustrelite.wire.mdt import StripeHint

MIB = 1 << 20
OSS, OST = "oss1", 0
UNCOMMITTED_MIB = 256
CLIENTS, WRITERS = 2, 8
BEFORE_S = 3.0  # full load, to know its rate
WINDOW_S = 0.5
BACK = 0.8  # of the rate before
SERVED_S, BACK_S = 3.0, 5.0  # the bars
GIVE_UP_S = 60.0


class Load:
    """Writers who never pause; every block says which it is, and when it was taken."""

    def __init__(self, fs: FileSystem, number: int) -> None:
        self.fs = fs
        self.path = f"/{number}"
        self.base = os.urandom(MIB - 8)
        self.blocks = 0
        self.taken: list[float] = []
        self.on = True

    def block(self, number: int) -> bytes:
        """The content of one."""
        return number.to_bytes(8, "big") + self.base

    async def write(self) -> None:
        """Until `on` is False, then fsync."""
        file = await self.fs.open(self.path, os.O_CREAT | os.O_WRONLY, 0o644, StripeHint(1, MIB, OST))

        async def writer() -> None:
            while self.on:
                number, self.blocks = self.blocks, self.blocks + 1
                await file.pwrite(self.block(number), number * MIB)
                self.taken.append(time.perf_counter())

        await asyncio.gather(*[writer() for _ in range(WRITERS)])
        await file.fsync()
        await file.close()

    @property
    def uncommitted_mib(self) -> float:
        """What would have to be replayed."""
        lists = (imp.replays.uncommitted for imp in self.fs.connections.imports.values())
        return sum(len(request.bulk or b"") for requests in lists for request in requests) / MIB


def _rate(loads: list[Load], start: float, end: float) -> float:
    return sum(start <= at < end for load in loads for at in load.taken) / (end - start)


async def _first_answer(fs: FileSystem) -> float:
    """When the OST first answers somebody who writes past all caches and waits until it is durable."""
    async with await fs.open("/probe", os.O_WRONLY | os.O_DIRECT | os.O_SYNC) as file:
        await file.pwrite(bytes(4096), 0)
    return time.perf_counter()


async def _crash(made: Cluster, loads: list[Load], probe: FileSystem) -> dict[str, Any]:
    began = time.perf_counter()
    working = [asyncio.create_task(load.write()) for load in loads]
    await asyncio.sleep(BEFORE_S)
    before = _rate(loads, began + 0.5, began + BEFORE_S)
    await asyncio.to_thread(made.call, OSS, "hold_commits", target=made.member(OSS).targets[0])
    while sum(load.uncommitted_mib for load in loads) < UNCOMMITTED_MIB:
        await asyncio.sleep(0.01)
    uncommitted = sum(load.uncommitted_mib for load in loads)
    await asyncio.to_thread(made.kill, OSS)
    answer = asyncio.create_task(_first_answer(probe))
    restarted = time.perf_counter()
    child = made.spawn(OSS)
    await asyncio.to_thread(made.wait_ready, OSS, child)
    ready = time.perf_counter() - restarted
    served = await answer - restarted
    back = 0.0
    while not back and time.perf_counter() - restarted < GIVE_UP_S:
        await asyncio.sleep(WINDOW_S / 5)
        now = time.perf_counter()
        if now - WINDOW_S >= restarted and _rate(loads, now - WINDOW_S, now) >= BACK * before:
            back = now - restarted
    for load in loads:
        load.on = False
    await asyncio.gather(*working)
    return {
        "before_mib_s": round(before), "uncommitted_mib": round(uncommitted), "process_ready_s": round(ready, 2),
        "served_s": served, "throughput_back_s": round(back, 2),
    }  # fmt: skip


async def _check(made: Cluster, loads: list[Load]) -> None:
    """Every block is there."""
    async with mounted(made, "check") as fs:
        for load in loads:
            async with await fs.open(load.path, os.O_RDONLY) as file:
                for number in range(load.blocks):
                    assert await file.pread(MIB, number * MIB) == load.block(number), f"{load.path} block {number}"


@bench
def oss_restart() -> dict[str, Any]:
    """Seconds from the restart of a killed OSS until it serves, with 256 MiB to be replayed; against 3 s."""

    async def main() -> dict[str, Any]:
        async with mounted(made, "a") as first, mounted(made, "b") as second, mounted(made, "probe") as probe:
            async with await probe.open("/probe", os.O_CREAT | os.O_WRONLY, 0o644, StripeHint(1, MIB, OST)) as file:
                await file.pwrite(b"probe", 0)
            loads = [Load(fs, number) for number, fs in enumerate((first, second))]
            found = await _crash(made, loads, probe)
            await _check(made, loads)
            return found

    with cluster() as made:
        found: dict[str, Any] = run(main)
    served = found.pop("served_s")
    within = served <= SERVED_S and 0 < found["throughput_back_s"] <= BACK_S
    return result("oss_restart", served, "s", "the bar", SERVED_S, within=within, **found)
