"""Data rates: data_write and data_read, 1 GiB in 1 MiB RPCs over two OSTs, against dd with fsync on the same disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.harness import bench, closed_loop, cluster, mounted, result, run, scratch
from lustrelite.wire.mdt import StripeHint

MIB = 1 << 20
FILE_MIB = 1024
IN_FLIGHT = 16


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


def _measure() -> dict[str, Any]:
    block = os.urandom(MIB)
    with cluster() as made:
        directory = scratch()
        source, copy = directory / "source", directory / "copy"
        try:
            with source.open("wb") as file:
                for _ in range(FILE_MIB):
                    file.write(block)

            async def write() -> float:
                async with mounted(made, caching=1) as fs:
                    file = await fs.open("/big", os.O_CREAT | os.O_WRONLY, 0o644, StripeHint(2, MIB, 0))
                    began = time.perf_counter()
                    await closed_loop(IN_FLIGHT, FILE_MIB, lambda w, n: file.pwrite(block, n * MIB))
                    await file.fsync()
                    rate = FILE_MIB / (time.perf_counter() - began)
                    await file.close()
                    return rate

            async def read() -> float:
                buffers = [memoryview(bytearray(MIB)) for _ in range(IN_FLIGHT)]
                async with mounted(made, caching=1) as fs:
                    file = await fs.open("/big", os.O_RDONLY)

                    async def one(worker: int, number: int) -> None:
                        got = await file.pread_into(buffers[worker], number * MIB)
                        assert got == MIB and buffers[worker][:64] == block[:64]

                    began = time.perf_counter()
                    await closed_loop(IN_FLIGHT, FILE_MIB, one)
                    rate = FILE_MIB / (time.perf_counter() - began)
                    await file.close()
                    return rate

            local_write = _dd(f"if={source}", f"of={copy}", "bs=1M", "conv=fsync")
            write_rate = run(write)
            local_write = max(local_write, _dd(f"if={source}", f"of={copy}", "bs=1M", "conv=fsync,notrunc"))
            cold = drop_caches()
            local_read = _dd(f"if={copy}", "of=/dev/null", "bs=1M")
            drop_caches()
            read_rate = run(read)
        finally:
            shutil.rmtree(directory)
    return {
        "write": result("data_write", write_rate, "MiB/s", "dd bs=1M conv=fsync", local_write),
        "read": result("data_read", read_rate, "MiB/s", "dd bs=1M", local_read, cold=cold),
    }


@bench
def data_write() -> dict[str, Any]:
    """1 GiB written and fsynced."""
    line: dict[str, Any] = _measure()["write"]
    return line


@bench
def data_read() -> dict[str, Any]:
    """1 GiB read, from the disk where the page cache may be dropped."""
    line: dict[str, Any] = _measure()["read"]
    return line
