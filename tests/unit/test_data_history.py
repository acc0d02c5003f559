"""Random reads, writes and changes of one file, by tasks of one mount: some order of them explains what each has seen.

Buffered, through and direct readers and writers share a file of one object or of two; answers come late, locks are wanted
elsewhere, and grants are short. The model is bytes; the search is that of Wing and Gong, as in sim/oracle.py.
Sizes that are asked for while somebody writes are judged for one object only, as no disk's file system promises more,
and while nobody else wants the locks, because these servers then ask nobody for a size.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from typing import Any

import pytest
from caching_world import CachingWorld

from lustrelite.client.file import File
from lustrelite.wire import ost
from lustrelite.wire.mdt import StripeHint

pytestmark = pytest.mark.simulated

KINDS = (
    "write", "write", "sync", "direct", "append", "truncate", "punch", "zero", "read", "read", "read", "past", "past", "fsync",
)  # fmt: skip
WRITES = ("write", "sync", "direct")
READS = ("read", "past")
STRIPE_BYTES = 64 << 10
SEEDS = 800


@dataclass
class Op:
    """One operation of one task; `begun` and `ended` count everything that happens."""

    kind: str
    start: int
    end: int
    byte: int  # what is written
    begun: int
    ended: int = 0
    result: Any = None


def model(data: bytes, op: Op) -> tuple[bytes, Any]:
    """The file after `op`, and the answer."""
    length = op.end - op.start
    if op.kind in WRITES:
        grown = data.ljust(op.end, b"\0")
        return grown[: op.start] + bytes([op.byte]) * length + grown[op.end :], None
    if op.kind == "append":
        return data + bytes([op.byte]) * length, len(data)
    if op.kind == "truncate":
        return data[: op.start].ljust(op.start, b"\0"), None
    if op.kind in ("punch", "zero"):
        end = op.end if op.kind == "zero" else min(op.end, len(data))
        grown = data.ljust(end, b"\0")
        return grown[: op.start] + bytes(max(end - op.start, 0)) + grown[max(end, op.start) :], None
    if op.kind in READS:
        return data, data[op.start : op.end]
    return data, len(data) if op.kind == "stat" else None


def explained(ops: list[Op], data: bytes) -> bool:
    """Is there an order of them, each between its begin and its end, in which all answers are right?"""
    failed: set[tuple[frozenset[int], bytes]] = set()

    def search(left: frozenset[int], data: bytes) -> bool:
        if not left:
            return True
        if (left, data) in failed:
            return False
        horizon = min(ops[number].ended for number in left)
        for number in left:
            if ops[number].begun < horizon:
                after, answer = model(data, ops[number])
                if answer == ops[number].result and search(left - {number}, after):
                    return True
        failed.add((left, data))
        return False

    return search(frozenset(range(len(ops))), data)


async def perform(op: Op, files: dict[str, File], random: random.Random, world: CachingWorld) -> Any:
    """Do it; the answer."""
    file, length = files.get(op.kind, files["write"]), op.end - op.start
    if op.kind in WRITES:
        await file.pwrite(bytes([op.byte]) * length, op.start)
    elif op.kind == "append":
        return await files[random.choice(WRITES)].append(bytes([op.byte]) * length)
    elif op.kind == "truncate":
        await file.truncate(op.start)
    elif op.kind == "punch":
        await file.punch(op.start, op.end)
    elif op.kind == "zero":
        await file.fallocate(ost.FALLOC_ZERO_RANGE, op.start, length)
    elif op.kind in READS:
        return await file.pread(length, op.start)
    elif op.kind == "stat":
        return (await file.fstat()).size
    elif op.kind == "fsync":
        await file.fsync()
    else:
        await random.choice(world.osts).locks.revoke()
    return None


async def history(seed: int, stripes: int) -> tuple[list[Op], bytes]:
    """What three tasks did to a file, and what was in it before."""
    drawn = random.Random(seed)
    ops: list[Op] = []
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return count

    grant = drawn.choice([0, 64 << 10, 8 << 20])
    async with CachingWorld(stripes, stripe_size=STRIPE_BYTES, grant=grant, seed=seed) as world:
        for server in world.osts:

            async def slowly(body: Any, travel: Any = server._travel) -> None:
                await travel(body)
                for _ in range(drawn.choice([0, 3, 10, 40])):
                    await asyncio.sleep(0)

            server._travel = slowly  # type: ignore[method-assign]
            if drawn.random() < 0.3:
                server.gives = drawn.choice([0, 1 << 17])
        if drawn.random() < 0.3:
            world.data().shared.pages.bytes_max = lambda: 1 << 15  # type: ignore[method-assign]
        flags = {"write": os.O_CREAT, "sync": os.O_SYNC, "direct": os.O_DIRECT}
        hint = StripeHint(stripes, 0, -1)
        files = {kind: await world.fs.open("/f", os.O_RDWR | flag, 0o644, hint) for kind, flag in flags.items()}
        files["past"] = files["direct"]
        unit = drawn.choice([100, 7000, 32768])
        before = b"\xff" * (drawn.randrange(7) * unit)
        await files["write"].pwrite(before, 0)

        async def work() -> None:
            for _ in range(drawn.choice([2, 3, 4])):
                start = drawn.randrange(7) * unit
                kind = drawn.choice((*KINDS, "stat" if stripes == 1 else "revoke"))
                op = Op(kind, start, start + drawn.randrange(1, 6) * unit, len(ops) + 1, tick())
                ops.append(op)
                op.result = await perform(op, files, drawn, world)
                op.ended = tick()
                for _ in range(drawn.choice([0, 0, 5, 30])):
                    await asyncio.sleep(0)

        await asyncio.gather(*(work() for _ in range(3)))
        for kind in ("read", "stat"):
            op = Op(kind, 0, 1 << 20, 0, tick())
            op.result = await perform(op, files, drawn, world)
            op.ended = tick()
            ops.append(op)
        for file in set(files.values()):
            await file.close()
        await asyncio.sleep(0.02)  # nobody waits for some answers
    return ops, before


@pytest.mark.parametrize("stripes", [1, 2])
async def test_some_order_explains_what_all_have_seen(stripes: int) -> None:
    for seed in range(SEEDS):
        ops, before = await history(seed, stripes)
        assert explained(ops, before), f"seed {seed}, {len(before)} bytes before: " + "\n".join(map(str, ops))


@pytest.mark.parametrize(
    ("answers", "right"), [((1, b"aa"), True), ((1, b"a"), True), ((2, b"aa"), False), ((1, b"aaa"), False)]
)
def test_the_judge_finds_what_no_order_explains(answers: tuple[int, bytes], right: bool) -> None:
    append, read = Op("append", 0, 1, ord("a"), 1, 4, answers[0]), Op("read", 0, 9, 0, 2, 3, answers[1])
    assert explained([append, read], b"a") is right
