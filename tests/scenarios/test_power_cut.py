"""The power of an OSS fails: what was written and not durable is not only forgotten, it is gone from the disk."""

from __future__ import annotations

import random
from typing import Any

import pytest
from steps import EVICTION, contents

KIB = 1024
LENGTHS = (1, 500, 4 * KIB, 20 * KIB, 64 * KIB, 200 * KIB, 1024 * KIB)
PLACES = (0, 100, 4 * KIB, 70_000, 300 * KIB, 1024 * KIB)


async def flush(client: Any) -> None:
    """Have everything dirty written back: answered, not durable."""
    await client.unrecorded(client.fs.connections.lov.locked.flush_all())


async def write_over_and_die(c: Any) -> None:
    """/f is there, durable; a writes over all of it and beyond, is answered, and is gone before that is durable."""
    await c.oss[0].prepare_power_cuts()
    await c.a.write("/f", b"1" * 300_000)
    await c.a.unrecorded(c.a.fs.sync())
    await c.mds.commit()
    await c.a.write_at("/f", 0, b"2" * 500_000)
    await flush(c.a)
    await c.a.kill()


async def lose_power(c: Any, times: int = 1) -> int:
    """Cut the power of the OSS for the `times`th time and start it again; how many changes of its objects were lost."""
    await c.oss[0].power_cut()
    lost = c.saw("power.cut", target=c.oss[0], times=times)[-1].fields["lost"]
    await c.oss[0].start()
    return int(lost)


@pytest.mark.parametrize("number", range(3))
async def test_whatever_was_answered_is_there_after_the_power_has_failed(world: Any, number: int) -> None:
    """Writes over writes and truncations in files of their own and in one that is shared; the oracle has them all.

    Here nothing becomes durable by itself: only because somebody else wants the lock under which it was written.
    """
    rng = random.Random(number)
    async with world(clients=2, oss=1, commit_interval_s=1000.0) as c:
        await c.oss[0].prepare_power_cuts()
        clients = list(c.clients.values())
        for path in ("/a", "/b", "/shared"):
            await c.a.create(path)
        lost = 0
        for times in (1, 2, 3):
            for _ in range(12):
                client = rng.choice(clients)
                path = rng.choice((f"/{client.name}", f"/{client.name}", "/shared"))
                if rng.random() < 0.2:
                    await client.truncate(path, rng.choice(PLACES))
                else:
                    await client.write_at(path, rng.choice(PLACES), rng.randbytes(rng.choice(LENGTHS)))
                if rng.random() < 0.4:
                    await flush(client)
            for client in clients:
                await flush(client)
            lost += await lose_power(c, times)
        assert lost > 5, "this was not for nothing"
        both = [await contents(client, ["/a", "/b", "/shared"]) for client in clients]
        assert both[0] == both[1]


async def test_what_was_durable_outlives_its_author_and_the_rest_does_not(world: Any) -> None:
    """The disk is told what to keep before the batch that says so, and keeps nothing else for sure."""
    async with world(clients=2, oss=1, commit_interval_s=1000.0) as c:
        c.expect(*EVICTION, "lock.expired")
        await write_over_and_die(c)
        assert await lose_power(c) > 0
        found = await c.b.read("/f")
        assert found[300_000:] in (b"", b"2" * 200_000) and set(found[:300_000]) <= set(b"12")
        assert len(found) >= 300_000


async def test_with_sync_journal_what_is_answered_is_durable(world: Any) -> None:
    """Nobody is needed for a replay.  Source: sync_journal, obdfilter.*"""
    async with world(clients=2, oss=1, commit_interval_s=1000.0, sync_journal=1) as c:
        c.expect(*EVICTION, "lock.expired")
        await c.oss[0].prepare_power_cuts()
        await c.a.write("/f", b"1" * 300_000)
        await flush(c.a)
        await c.a.write_at("/f", 100_000, b"2" * 500_000)
        await c.a.truncate("/f", 550_000)
        await flush(c.a)
        await c.mds.commit()
        await c.a.kill()
        assert not await lose_power(c)
        assert await c.b.read("/f") == b"1" * 100_000 + b"2" * 450_000


async def test_the_power_fails_again_while_writes_are_replayed(world: Any) -> None:
    async with world(clients=2, oss=1, commit_interval_s=1000.0) as c:
        await c.oss[0].prepare_power_cuts()
        for client in c.clients.values():
            for at in range(6):
                await client.write(f"/{client.name}{at}", bytes([at]) * 700_000)
            await client.write_at(f"/{client.name}0", 350_000, b"later" * 1000)
            await flush(client)
        await c.oss[0].power_cut()
        await c.oss[0].start()
        await c.oss[0].power_cut()
        await c.oss[0].start()
        expected = b"\0" * 350_000 + b"later" * 1000 + b"\0" * 345_000
        assert await contents(c.a, ["/b0", "/b5"]) == [expected, b"\5" * 700_000]
        assert await contents(c.b, ["/a0", "/a5"]) == [expected, b"\5" * 700_000]


async def test_what_a_kill_left_and_somebody_has_read_outlives_a_power_cut(world: Any) -> None:
    """Only the process dies: its successor finds what was written and not durable, its author is gone, and others read it.

    Found by the coherence swarm, seed 1101245.
    """
    async with world(clients=3, oss=1, commit_interval_s=1000.0) as c:
        c.expect(*EVICTION, "lock.expired")
        await write_over_and_die(c)
        await c.oss[0].kill()
        await c.oss[0].start()
        assert await c.b.read("/f") == b"2" * 500_000
        await lose_power(c)
        assert await c.c.read("/f") == b"2" * 500_000
