"""Data through the mount: mount_data, against the same on the local file system in the same run.

Per phase: MiB/s, calls/s or the median latency, beside it the local file system's, and what an operation (1 MiB, or one
call of 4 KiB) took: requests of the kernel, RPCs, microseconds of CPU by process. The last two hardly depend on who else
uses the machine; the times do.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.data import drop_caches
from bench.harness import bench, cluster, result, scratch
from bench.mount import Mounted, kernel_mount, measured

MIB = 1 << 20
FILE_MIB = 512
SYNCS = 300
SCATTERED = 5000
SMALL = os.urandom(4096)


def _write(path: Path) -> None:
    block = os.urandom(MIB)
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for _ in range(FILE_MIB):
        os.write(fd, block)
    os.fsync(fd)
    os.close(fd)


def _read(path: Path) -> None:
    fd, buffer, done = os.open(path, os.O_RDONLY), bytearray(MIB), 0
    while got := os.readv(fd, [buffer]):
        done += got
    os.close(fd)
    assert done == FILE_MIB * MIB


def _sync(path: Path, *, extend: bool, times: list[float]) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    for number in range(SYNCS):
        began = time.perf_counter()
        os.pwrite(fd, SMALL, number * len(SMALL) if extend else 0)
        os.fsync(fd)
        times.append(time.perf_counter() - began)
    os.close(fd)


def _scattered_writes(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    for place in random.Random(1).choices(range(FILE_MIB * MIB // len(SMALL)), k=SCATTERED):
        os.pwrite(fd, SMALL, place * len(SMALL))
    os.fsync(fd)
    os.close(fd)


def _scattered_reads(path: Path, times: list[float]) -> None:
    fd = os.open(path, os.O_RDONLY)
    for place in random.Random(2).choices(range(FILE_MIB * MIB // len(SMALL)), k=SCATTERED):
        began = time.perf_counter()
        os.pread(fd, len(SMALL), place * len(SMALL))
        times.append(time.perf_counter() - began)
    os.close(fd)


COLD = ("read_cold", "scattered_reads_cold")


def _phases(top: Path) -> Iterator[tuple[str, int, Callable[[list[float]], None]]]:
    """(name, operations, work); a cold cache is the caller's affair."""
    big, small = top / "big", top / "small"
    yield "write_fsync", FILE_MIB, lambda _: _write(big)
    yield "read_after_write", FILE_MIB, lambda _: _read(big)
    yield "read_cached", FILE_MIB, lambda _: _read(big)
    yield "read_cold", FILE_MIB, lambda _: _read(big)
    yield "scattered_writes", SCATTERED, lambda _: _scattered_writes(big)
    yield "scattered_reads_cold", SCATTERED, lambda times: _scattered_reads(big, times)
    yield "fsync_4k_extend", SYNCS, lambda times: _sync(small, extend=True, times=times)
    yield "fsync_4k_overwrite", SYNCS, lambda times: _sync(small, extend=False, times=times)


def _local() -> dict[str, float]:
    found, top = {}, scratch()
    try:
        for name, count, work in _phases(top):
            if name in COLD:
                drop_caches()
            times: list[float] = []
            began = time.perf_counter()
            work(times)
            found[name] = statistics.median(times) * 1e6 if times else count / (time.perf_counter() - began)
    finally:
        shutil.rmtree(top)
    return found


def _mounted(mounted: Mounted) -> dict[str, dict[str, Any]]:
    found = {}
    for name, count, work in _phases(mounted.point):
        if name in COLD:
            mounted.again()
            drop_caches()
        times: list[float] = []
        line = measured(mounted, count, lambda work=work, times=times: work(times))  # type: ignore[misc]
        if times:
            line["rate"] = round(statistics.median(times) * 1e6)
        found[name] = line
    return found


@bench
def mount_data() -> dict[str, Any]:
    """512 MiB written and read in 1 MiB calls, 4 KiB here and there, and with an fsync each (median, us), through a mount."""
    with cluster() as made, kernel_mount(made) as mounted:
        ours = _mounted(mounted)
    local = _local()
    for name, line in ours.items():
        line["local"], line["ratio"] = round(local[name]), round(line["rate"] / local[name], 2)
    return result(
        "mount_data", ours["read_cold"]["rate"], "MiB/s", "local, cold", local["read_cold"], phases=ours
    )
