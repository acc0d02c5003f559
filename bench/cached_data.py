"""What caching data is worth: cached_read, cached_write."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from bench.harness import bench, cluster, mounted, result, run, scratch

FILE_BYTES = 64 << 20
SIZE = 4096
PASS = 10_000  # calls in one pass; the best pass counts: the machine's speed drifts
PASSES = 40


def _places(number: int) -> list[int]:
    """Offsets in no order, all of the file in turn."""
    pages = FILE_BYTES // SIZE
    return [(number * PASS + step) * 7919 % pages * SIZE for step in range(PASS)]


def _local(write: bool) -> float:
    """pread(2) or pwrite(2) of a cached file on the local disk."""
    directory = scratch()
    fd = os.open(directory / "f", os.O_CREAT | os.O_RDWR, 0o644)
    block = os.urandom(1 << 20)
    for number in range(FILE_BYTES >> 20):
        os.pwrite(fd, block, number << 20)
    best = 0.0
    for number in range(PASSES):
        places = _places(number)
        began = time.perf_counter()
        if write:
            for place in places:
                os.pwrite(fd, block[:SIZE], place)
        else:
            for place in places:
                os.pread(fd, SIZE, place)
        best = max(best, PASS / (time.perf_counter() - began))
    os.close(fd)
    shutil.rmtree(directory)
    return best


@bench
def cached_read() -> dict[str, Any]:
    """4 KiB reads through the library, at random, of a file that is cached, against pread on the local disk."""
    with cluster() as made:

        async def main() -> tuple[float, int]:
            block = os.urandom(1 << 20)
            async with mounted(made, caching=1) as fs:
                file = await fs.open("/f", os.O_CREAT | os.O_RDWR)
                for number in range(FILE_BYTES >> 20):
                    await file.pwrite(block, number << 20)
                await file.fsync()
                imports = fs.connections.imports.values()
                await file.pread(SIZE, 0)
                asked = sum(imp.calls.get("Read", 0) for imp in imports)
                best = 0.0
                for number in range(PASSES):
                    places = _places(number)
                    began = time.perf_counter()
                    for place in places:
                        data = await file.pread(SIZE, place)
                    best = max(best, PASS / (time.perf_counter() - began))
                assert len(data) == SIZE
                asked = sum(imp.calls.get("Read", 0) for imp in imports) - asked
                await file.close()
                return best, asked

        rate, asked = run(main)
    return result("cached_read", rate, "1/s", "pread on the local disk", _local(False), requests=asked)


@bench
def cached_write() -> dict[str, Any]:
    """4 KiB writes through the library, at random, into a cache that is written back meanwhile, against pwrite."""
    with cluster() as made:

        async def main() -> tuple[float, float]:
            block = os.urandom(SIZE)
            async with mounted(made, caching=1) as fs:
                file = await fs.open("/f", os.O_CREAT | os.O_RDWR)
                best = 0.0
                began = time.perf_counter()
                for number in range(PASSES // 4):
                    places = _places(number)
                    start = time.perf_counter()
                    for place in places:
                        await file.pwrite(block, place)
                    best = max(best, PASS / (time.perf_counter() - start))
                await file.fsync()
                durable = PASSES // 4 * PASS / (time.perf_counter() - began)
                await file.close()
                return best, durable

        rate, durable = run(main)
    return result("cached_write", rate, "1/s", "pwrite on the local disk", _local(True), with_fsync=round(durable, 1))
