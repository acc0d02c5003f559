"""Locks: lock_pingpong (handovers between two clients), lock_memory (bytes of a lock on the server)."""

from __future__ import annotations

import os
import time
from typing import Any

from bench.harness import bench, cluster, memory_bytes, mounted, result, run
from lustrelite.client.file import File
from lustrelite.wire.ldlm import EXTENT, IBITS, LOOKUP, NO_EXPANSION, PERM, PR, PW, UPDATE, Want
from lustrelite.wire.locks import Enqueue
from lustrelite.wire.mdt import StripeHint
from lustrelite.wire.ost import resource_of

HANDOVERS = 3000
FILES = 20_000
LOCKS_AT_ONCE = 1000
LOCKS_OF_ONE_OBJECT = 40_000
LIMIT_BYTES = 800
BLOCK_BYTES = 4096


async def _handovers(first: File, second: File) -> float:
    """Alternating writes of one block; handovers per second."""
    blocks = [os.urandom(BLOCK_BYTES), os.urandom(BLOCK_BYTES)]
    for number in range(200):
        await (first, second)[number % 2].pwrite(blocks[number % 2], 0)
    began = time.perf_counter()
    for number in range(HANDOVERS):
        await (first, second)[number % 2].pwrite(blocks[number % 2], 0)
    return HANDOVERS / (time.perf_counter() - began)


@bench
def lock_pingpong() -> dict[str, Any]:
    """Two clients write one 4 KiB block in turn: a handover of its lock a write; `other`: durable before each handover."""

    def rate(when: str) -> float:
        with cluster(params={"tunables.sync_lock_cancel": when}) as made:

            async def main() -> float:
                async with mounted(made, "one", caching=1) as one, mounted(made, "two", caching=1) as two:
                    hint = StripeHint(1, 1 << 20, 0)
                    async with await one.open("/block", os.O_CREAT | os.O_RDWR, 0o644, hint) as first:
                        async with await two.open("/block", os.O_RDWR) as second:
                            return await _handovers(first, second)

            return run(main)  # type: ignore[no-any-return]

    return result("lock_pingpong", rate("never"), "1/s", "with sync_lock_cancel=always", rate("always"))


@bench
def lock_memory() -> dict[str, Any]:
    """Bytes of server memory per lock: an inode each (MDT), an object each, and many on one object (OST)."""
    with cluster(params={"tunables.commit_interval_s": "600"}) as made:
        mds = int(made.record("mds1")["pid"])
        oss_name = next(n for n, m in made.members.items() if any("OST0000" in t for t in m.targets))
        oss = int(made.record(oss_name)["pid"])

        async def main() -> dict[str, float]:
            found: dict[str, float] = {}
            async with mounted(made, caching=1) as fs:
                directory = (await fs.mkdir("/locks")).fid
                hint = StripeHint(1, 1 << 20, 0)
                stats = [await fs.create_at(directory, b"f%d" % n, 0o644, hint) for n in range(FILES)]
                mdt = fs.connections.imports[f"{made.fsname}-MDT0000"]
                ost = fs.connections.imports[f"{made.fsname}-OST0000"]

                async def fill(imp: Any, pid: int, wants: list[Want]) -> float:
                    await imp.call(Enqueue(tuple(wants[:LOCKS_AT_ONCE]), ()))
                    before = memory_bytes(pid)
                    for at in range(LOCKS_AT_ONCE, len(wants), LOCKS_AT_ONCE):
                        reply = await imp.call(Enqueue(tuple(wants[at : at + LOCKS_AT_ONCE]), ()))
                        assert not any(granted.status for granted in reply.granted), reply.granted[0]
                    return (memory_bytes(pid) - before) / (len(wants) - LOCKS_AT_ONCE)

                found["inode"] = await fill(
                    mdt, mds,
                    [Want(mdt.lock_handles(1), IBITS, s.fid, PR, 0, LOOKUP | UPDATE | PERM, 0, 0, 0, 0, 0) for s in stats],
                )  # fmt: skip
                attrs = [await fs.connections.mdc.getattr(s.fid, cred=fs.cred) for s in stats]
                objects = sorted(obj for a in attrs if a.layout for index, obj in a.layout.stripes if index == 0)
                found["object"] = await fill(
                    ost, oss,
                    [Want(ost.lock_handles(1), EXTENT, resource_of(o), PR, 0, 0, 0, 0, 4095, 0, 0) for o in objects],
                )  # fmt: skip
                one = resource_of(objects[0])
                extents = [
                    Want(ost.lock_handles(1), EXTENT, one, PW, NO_EXPANSION, 0, 0, 8192 + n * 4096, 8192 + n * 4096 + 4095, 0, 0)
                    for n in range(LOCKS_OF_ONE_OBJECT)
                ]
                found["extent"] = await fill(ost, oss, extents)
            return found

        found = run(main)
    per = {key: round(value, 1) for key, value in found.items()}
    return result("lock_memory", max(found.values()), "bytes", "limit", LIMIT_BYTES, **per)
