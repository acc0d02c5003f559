"""Data rates: data_write and data_read, 1 GiB in 1 MiB RPCs over two OSTs, against dd on the same disk; async_write.

A round measures everything once, one after the other, so that they meet the same machine; of several rounds the best
rate of each counts, `rounds` shows the ratio in each of them, and `median` is theirs. `cpu_s` is what client and servers
took for the GiB: it hardly depends on who else uses the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from bench.harness import bench, closed_loop, cluster, cpu_seconds, mounted, result, run, scratch
from lustrelite.cli.cluster import Cluster
from lustrelite.wire.mdt import StripeHint

MIB = 1 << 20
FILE_MIB = 1024
IN_FLIGHT = 16
ROUNDS = 5
SMALL_BYTES = 64 << 10
SMALL_COUNT = 2048


def drop_caches() -> bool:
    """Empty the page cache, where we may."""
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return True
    return False


def _dd(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run(["dd", *arguments], check=True, stderr=subprocess.DEVNULL)
    return FILE_MIB / (time.perf_counter() - began)


def _cpu(made: Cluster) -> float:
    """Seconds that this process and the object servers have used."""
    servers = [int(path.read_text()) for path in sorted(made.run_dir.glob("oss*.pid"))]
    return time.process_time() + sum(map(cpu_seconds, servers))


async def _timed(made: Cluster, work: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """(MiB/s, CPU seconds) of moving a file."""
    cpu, began = _cpu(made), time.perf_counter()
    await work()
    return FILE_MIB / (time.perf_counter() - began), _cpu(made) - cpu


class Rounds:
    """What was measured in each round, by name."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}
        self.cold = True

    def add(self, name: str, rate: float, cpu: float = 0.0) -> None:
        """One measurement."""
        self.rates.setdefault(name, []).append(rate)
        self.cpu.setdefault(name, []).append(cpu)

    def against(self, name: str, other: str) -> list[float]:
        """The ratios of the rounds."""
        return [round(a / b, 2) for a, b in zip(self.rates[name], self.rates[other], strict=True)]

    def line(self, name: str, ours: str, other: str, also: str) -> dict[str, Any]:
        """A result: `ours` against `other`, and its ratio to `also`."""
        best = {key: max(rates) for key, rates in self.rates.items()}
        rounds = self.against(ours, other)
        return result(
            name, best[ours], "MiB/s", other, best[other], rounds=rounds, median=round(median(rounds), 2),
            **{f"ratio_to_{also.replace(' ', '_')}": round(best[ours] / best[also], 3)},
            cpu_s=round(min(self.cpu[ours]), 2), cold=self.cold,
        )  # fmt: skip


@cache
def _measure() -> Rounds:
    block, rounds = os.urandom(MIB), Rounds()
    with cluster() as made:
        directory = scratch()
        source, copy = directory / "source", directory / "copy"
        try:
            with source.open("wb") as file:
                for _ in range(FILE_MIB):
                    file.write(block)

            async def write() -> tuple[float, float]:
                async with mounted(made, caching=1) as fs:
                    file = await fs.open("/big", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644, StripeHint(2, MIB, 0))

                    async def all_of_it() -> None:
                        await closed_loop(IN_FLIGHT, FILE_MIB, lambda w, n: file.pwrite(block, n * MIB))
                        await file.fsync()

                    measured = await _timed(made, all_of_it)
                    await file.close()
                    return measured

            async def read() -> tuple[float, float]:
                buffers = [memoryview(bytearray(block)) for _ in range(IN_FLIGHT)]
                async with mounted(made, caching=1) as fs:
                    file = await fs.open("/big", os.O_RDONLY)

                    async def one(worker: int, number: int) -> None:
                        buffers[worker][:64] = bytes(64)
                        got = await file.pread_into(buffers[worker], number * MIB)
                        assert got == MIB and buffers[worker][:64] == block[:64]

                    measured = await _timed(made, lambda: closed_loop(IN_FLIGHT, FILE_MIB, one))
                    await file.close()
                    await fs.unlink("/big")
                    return measured

            for _ in range(ROUNDS):
                copy.unlink(missing_ok=True)
                rounds.add("dd oflag=direct", _dd(f"if={source}", f"of={copy}", "bs=1M", "oflag=direct", "conv=fsync"))
                copy.unlink()
                rounds.add("dd conv=fsync", _dd(f"if={source}", f"of={copy}", "bs=1M", "conv=fsync"))
                rounds.add("write", *run(write))
                for name, size in (("dd bs=1M", "1M"), ("dd bs=4M", "4M")):
                    rounds.cold = drop_caches() and rounds.cold
                    rounds.add(name, _dd(f"if={copy}", "of=/dev/null", f"bs={size}"))
                drop_caches()
                rounds.add("read", *run(read))
        finally:
            shutil.rmtree(directory)
    return rounds


@bench
def data_write() -> dict[str, Any]:
    """1 GiB written and fsynced."""
    return _measure().line("data_write", "write", "dd conv=fsync", "dd oflag=direct")


@bench
def data_read() -> dict[str, Any]:
    """1 GiB read, from the disk where the page cache may be dropped."""
    return _measure().line("data_read", "read", "dd bs=1M", "dd bs=4M")


@bench
def async_write() -> dict[str, Any]:
    """64 KiB writes, each an RPC, until an fsync has returned: answered at once, against O_DSYNC and sync_journal=1."""
    block = os.urandom(SMALL_BYTES)
    ways = {"at once": (0, 0), "sync_journal=1": (0, 1), "O_DSYNC": (os.O_DSYNC, 0)}
    best = dict.fromkeys(ways, 0.0)
    with cluster() as made:

        async def write(flags: int) -> float:
            async with mounted(made, caching=1, max_bytes_per_rpc=SMALL_BYTES) as fs:
                file = await fs.open("/f", os.O_CREAT | os.O_WRONLY | flags, 0o644, StripeHint(2, MIB, 0))
                began = time.perf_counter()
                for number in range(SMALL_COUNT):
                    await file.pwrite(block, number * SMALL_BYTES)
                await file.fsync()
                rate = SMALL_COUNT / (time.perf_counter() - began)
                await file.close()
                await fs.unlink("/f")
                return rate

        for _ in range(ROUNDS):
            for way, (flags, sync_journal) in ways.items():
                for member in made.members.values():
                    if member.role == "oss":
                        made.call(member.name, "set_param", pattern="tunables.sync_journal", value=str(sync_journal))
                best[way] = max(best[way], run(lambda flags=flags: write(flags)))
    return result(
        "async_write", best["at once"], "1/s", "with O_DSYNC", best["O_DSYNC"],
        ratio_to_sync_journal=round(best["at once"] / best["sync_journal=1"], 2),
    )  # fmt: skip
