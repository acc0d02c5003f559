"""RPC and metadata rates: rpc_echo, create, create_serial, create_latency."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import struct
import subprocess
import sys
import time
from array import array
from typing import Any

from bench import bare_echo
from bench.harness import bench, closed_loop, cluster, cpu_seconds, mounted, percentile, result, run, scratch
from lustrelite.client.fs import FileSystem
from lustrelite.wire.session import Ping

ECHOES = 100_000
CREATES = 40_000
SERIAL_CREATES = 8_000
LATENCY_S = 10.0
TICK_S = 0.001


@bench
def rpc_echo() -> dict[str, Any]:
    """Pings to the MDT through the whole stack, 32 in flight on one connection, against a bare echo of 100 bytes."""
    with cluster() as made:
        directory = scratch()
        path = str(directory / "echo")
        child = subprocess.Popen([sys.executable, "-m", "bench.bare_echo", path])

        async def main() -> tuple[float, float]:
            async with mounted(made) as fs:
                imp = fs.connections.imports[f"{made.fsname}-MDT0000"]
                while not os.path.exists(path):
                    await asyncio.sleep(0.01)
                rates = []
                bare = []
                for _ in range(3):  # in turn: the machine's speed drifts
                    rates.append(await closed_loop(32, ECHOES // 3, lambda w, n: imp.call(Ping())))
                    bare.append(await bare_echo.rate(path, 32, ECHOES // 3))
                return max(rates), max(bare)

        try:
            ours, bare = run(main)
        finally:
            child.kill()
            child.wait()
            shutil.rmtree(directory)
    return result("rpc_echo", ours, "1/s", "bare echo", bare, in_flight=32)


def local_creates(count: int) -> float:
    """Files made per second by open(2) in one directory of the same disk."""
    directory = scratch()
    began = time.perf_counter()
    for number in range(count):
        os.close(os.open(directory / f"f{number}", os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
    seconds = time.perf_counter() - began
    shutil.rmtree(directory)
    return count / seconds


async def creates(fs: FileSystem, directory: str, in_flight: int, count: int) -> float:
    """Striped files made per second in `directory`, whose FID is looked up once (as an open directory has it)."""
    parent = (await fs.mkdir(directory)).fid

    async def one(worker: int, number: int) -> None:
        await fs.create_at(parent, b"f%d" % number, 0o644)

    return await closed_loop(in_flight, count, one)


def _create(name: str, in_flight: int, count: int) -> dict[str, Any]:
    with cluster() as made:
        mds = int(made.record("mds1")["pid"])

        def waits() -> int:
            """Creates so far that found no OST with an object id."""
            return sum(int(value) for value in made.call("mds1", "get_param", pattern="mdt.*.create_waits").values())

        async def main() -> tuple[float, float, float, int]:
            async with mounted(made) as fs:
                await creates(fs, "/warm", 32, 4000)  # the pools of object ids grow with demand
                waited = await asyncio.to_thread(waits)
                cpu, own = cpu_seconds(mds), time.process_time()
                rate = await creates(fs, "/d", in_flight, count)
                seconds = (cpu_seconds(mds) - cpu) / count, (time.process_time() - own) / count
                return rate, *seconds, await asyncio.to_thread(waits) - waited

        rate, server, client, waited = run(main)
    return result(
        name, rate, "1/s", "open(O_CREAT) on the local disk", local_creates(count), in_flight=in_flight,
        mds_us=round(server * 1e6, 1), client_us=round(client * 1e6, 1),
        waits_for_objects=waited,
    )  # fmt: skip


@bench
def create() -> dict[str, Any]:
    """Creates of striped files through the library, 32 in flight."""
    return _create("create", 32, CREATES)


@bench
def create_serial() -> dict[str, Any]:
    """Creates of striped files through the library, one after the other."""
    return _create("create_serial", 1, SERIAL_CREATES)


async def paced_creates(fs: FileSystem, directory: str, pace: float, seconds: float) -> tuple[list[float], list[float]]:
    """Open loop: every millisecond the creates that are due begin, whatever became of those before.

    Returns, sorted, what each took since it was due, and how late the generator was at each tick: that is in the
    former too, but not the servers' doing.
    """
    parent = (await fs.mkdir(directory)).fid
    loop = asyncio.get_running_loop()
    clock = time.perf_counter
    count = int(pace * seconds)
    taken, late = array("d"), array("d")  # nothing that the garbage collector would have to look at
    over = loop.create_future()
    made = 0

    async def one(number: int, due: float) -> None:
        await fs.create_at(parent, b"f%d" % number, 0o644)
        taken.append(clock() - due)
        if len(taken) == count:
            over.set_result(None)

    def tick() -> None:
        nonlocal made
        for _ in range(int.from_bytes(os.read(timer, 8), sys.byteorder)):
            due = began + (len(late) + 1) * TICK_S
            late.append(clock() - due)
            upto = min(count, int(len(late) * TICK_S * pace))
            for number in range(made, upto):
                loop.create_task(one(number, due))
            made = upto

    timer = periodic_timer(TICK_S)
    began = clock()
    loop.add_reader(timer, tick)
    await over
    loop.remove_reader(timer)
    os.close(timer)
    return sorted(taken), sorted(late)


def periodic_timer(interval_s: float) -> int:
    """A timerfd: the loop's own timers count milliseconds, and to spin until it is time would take a core."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    nanoseconds = int(interval_s * 1e9)
    if timer < 0 or libc.timerfd_settime(timer, 0, struct.pack("qqqq", 0, nanoseconds, 0, nanoseconds), None):
        raise OSError(ctypes.get_errno(), "timerfd")
    return timer


@bench
def create_latency() -> dict[str, Any]:
    """Open-loop creates at half of the capacity measured just before: each is due at its time, waits count."""
    with cluster() as made:

        async def main() -> tuple[float, list[float], list[float]]:
            async with mounted(made) as fs:
                await creates(fs, "/warm", 32, 4000)
                pace = await creates(fs, "/full", 32, 20_000) / 2
                return pace, *await paced_creates(fs, "/half", pace, LATENCY_S)

        pace, taken, late = run(main)
    ms = {f"p{p:g}_ms": round(percentile(taken, p) * 1e3, 2) for p in (50, 99, 99.9)}
    return result(
        "create_latency", percentile(taken, 99) * 1e3, "ms", "median", percentile(taken, 50) * 1e3,
        rate=round(pace), longest_ms=round(taken[-1] * 1e3, 1), **ms,
        generator_late_p99_ms=round(percentile(late, 99) * 1e3, 2),
    )  # fmt: skip
