"""object_files: where direct I/O begins to pay on this disk, which is what DIRECT_BYTES_MIN of store/objects.py rests on."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.data import drop_caches
from bench.harness import bench, result, scratch
from lustrelite.rpc.buffers import BufferPool
from lustrelite.store import objects

KIB, MIB = 1 << 10, 1 << 20
SIZES = (16 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB, 4 * MIB)
BYTES = 256 * MIB
THREADS, OBJECTS, ROUNDS = 4, 2, 2
NEVER = 1 << 60


def _rates(size: int, direct: bool) -> tuple[float, float]:
    """MiB/s of writing until it is durable, and of reading what no cache has."""
    objects.DIRECT_BYTES_MIN = 0 if direct else NEVER
    count = BYTES // size
    directory = scratch()
    try:
        files = objects.ObjectFiles(directory)
        pool = BufferPool()
        buffers = [pool.take(size) for _ in range(THREADS)]
        for buffer in buffers:
            buffer[:] = os.urandom(size)

        def work(call: Any, worker: int) -> None:
            for number in range(worker, count, THREADS):
                call(1 + number % OBJECTS, number // OBJECTS * size, buffers[worker])

        def timed(call: Any, after: Any) -> float:
            began = time.perf_counter()
            with ThreadPoolExecutor(THREADS) as threads:
                list(threads.map(work, itertools.repeat(call), range(THREADS)))
            after()
            return count * size / MIB / (time.perf_counter() - began)

        written = timed(files.write, lambda: files.sync(range(1, OBJECTS + 1)))
        drop_caches()
        read = timed(files.read_into, lambda: None)
        files.close()
    finally:
        shutil.rmtree(directory)
    return written, read


@bench
def object_files() -> dict[str, Any]:
    """1 MiB writes to object files until they are durable, direct against buffered; other sizes and cold reads beside it."""
    chosen, best = objects.DIRECT_BYTES_MIN, {}
    try:
        for _ in range(ROUNDS):
            for size in SIZES:
                for direct in (True, False):
                    rates = _rates(size, direct)
                    best[size, direct] = tuple(map(max, rates, best.get((size, direct), (0.0, 0.0))))
    finally:
        objects.DIRECT_BYTES_MIN = chosen
    table = {
        f"{size // KIB}K": {
            kind: f"{best[size, True][at]:.0f}/{best[size, False][at]:.0f}" for at, kind in enumerate(("write", "read"))
        }
        for size in SIZES
    }
    return result(
        "object_files", best[MIB, True][0], "MiB/s", "buffered and synced", best[MIB, False][0],
        direct_from=chosen, direct_over_buffered=table,
    )  # fmt: skip
