"""Locks of two mounts in awkward moments: asked for while they are given back, granted to who has gone, in use.

Source: lustre/tests/sanityn.sh; the numbers are its tests.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from typing import Any

import pytest
from mounts import Mount, drop_locks, some_cache, two_mounts, who_caches
from steps import EVICTION, refused, soon
from test_lock_replay import locks_of, take

from lustrelite.wire.ldlm import GROUP, NO_EXPANSION, PW
from lustrelite.wire.locks import BlockingCallback, Cancel, CompletionCallback, Enqueue
from lustrelite.wire.ost import Write, resource_of

UNIT = 65536
OST = "OST0000"
asker_caches = pytest.mark.parametrize("mix", ["ab", "a"])  # a has the locks, b wants them, or the OST for b


async def striped(mount: Mount, path: str = "/u/f", count: int = 1) -> tuple[Any, bytes]:
    """A new file that begins on the first OST, open, and the resource of its first object."""
    await mount.setstripe(path, count, UNIT, 0)
    file = await mount.open(path, os.O_RDWR)
    return file, resource_of(file.layout.stripes[0][1])


async def nobody_is_evicted(c: Any) -> None:
    """Not even later."""
    await asyncio.sleep(3 * c.tunables.lock_callback_s)
    c.never_saw("client.evicted")
    c.never_saw("lock.expired")


def waits(c: Any, ost: int = 0) -> bool:
    """Does somebody wait for a lock of an OST?"""
    return bool(c.oss[ost].target().namespace.waiting_count)


# given back, and asked for --------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 31a")
@pytest.mark.parametrize("late", [Cancel, Write, BlockingCallback])
@asker_caches
async def test_a_lock_is_asked_for_while_it_is_given_back(cluster: Any, mix: str, late: type) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        file, _ = await striped(a)
        data = random.Random(c.seed).randbytes(3 * UNIT)
        await file.pwrite(data, 0)
        if late is Cancel:
            await file.fsync()  # else it goes with the last write
        held = c.net.hold(late, source=c.oss[0], to=c.a) if late is BlockingCallback else c.net.hold(late, source=c.a)
        if late is BlockingCallback:
            reading = soon(b.content("/u/f"))
            await held.caught()
        locks_of(c.a, OST).clear_unused()
        if late is not BlockingCallback:
            await held.caught()
            reading = soon(b.content("/u/f"))
        await asyncio.sleep(1)
        # a callback for a lock that is gone gives it back as well as its cancel
        assert reading.done() == (late is not Write)
        held.release()
        assert await reading == data
        await file.close()
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 31b")
@pytest.mark.parametrize("how", ["restart", "reconnect", "callback lost"])
@pytest.mark.parametrize("message", [Cancel, Write])
@asker_caches
async def test_a_lock_is_given_back_while_the_server_goes(cluster: Any, mix: str, message: type, how: str) -> None:
    """Its cancel is lost, or the last write under it that takes it along, and whatever else."""
    async with two_mounts(cluster, mix) as (c, a, b):
        file, _ = await striped(a)
        data = random.Random(c.seed).randbytes(UNIT)
        await file.pwrite(data, 0)
        if message is Cancel:
            await file.fsync()
        lost = c.net.drop(message, source=c.a, times=1)
        if how == "callback lost":
            c.faults.arm("ldlm.bl_callback", "drop", on=c.oss[0], times=2)
        locks_of(c.a, OST).clear_unused()
        await lost.caught()
        reading = soon(b.content("/u/f"))
        if how == "restart":
            await c.fail(c.oss[0])
        elif how == "reconnect":
            c.net.break_links(c.a, c.oss[0])
        assert await reading == data
        await file.close()
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 105")
@pytest.mark.parametrize("point", ["ost.write", "ost.write_done"])
@asker_caches
async def test_the_size_is_right_while_the_writers_lock_goes(cluster: Any, mix: str, point: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        file, _ = await striped(a)
        await file.pwrite(b"test\n", 0)
        for server in c.oss:
            c.faults.arm(point, "delay", on=server, delay_s=2.0)
        locks_of(c.a, OST).clear_unused()
        for _ in range(6):
            assert (await b.stat("/u/f")).size == 5
            await asyncio.sleep(0.5)
        await c.until(lambda: not locks_of(c.a, OST).lock_count or "b" in mix)
        assert (await b.stat("/u/f")).size == 5
        await file.close()
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 103")
@pytest.mark.parametrize("where", ["dirty", "on its way", "in the file"])
@asker_caches
async def test_the_size_is_right_when_the_writer_has_several_locks(cluster: Any, mix: str, where: str) -> None:
    """Some of them taken in advance and never used, beyond the end of the file."""
    async with two_mounts(cluster, mix) as (c, a, b):
        file, resource = await striped(a)
        for at in (0, 10 * UNIT, 20 * UNIT):
            lock = await take(c.a, resource, PW, at, at + UNIT - 1, flags=NO_EXPANSION)
            locks_of(c.a, OST).release(lock)
        await file.pwrite(b"x" * UNIT, 0)
        syncing = None
        if where != "dirty":
            point = "ost.write" if where == "on its way" else "ost.write_done"
            c.faults.arm(point, "delay", on=c.oss[0], delay_s=2.0)
            syncing = soon(file.fsync())
        for _ in range(6):
            assert (await b.stat("/u/f")).size == UNIT
            await asyncio.sleep(0.5)
        if syncing is not None:
            await syncing
        assert (await b.stat("/u/f")).size == (await a.stat("/u/f")).size == UNIT
        await b.write_at("/u/f", 10 * UNIT, b"y")
        assert (await a.stat("/u/f")).size == (await b.stat("/u/f")).size == 10 * UNIT + 1
        await file.close()
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 103")
@pytest.mark.parametrize("size", [UNIT // 2, 3 * UNIT, 10 * UNIT, 12 * UNIT])
@asker_caches
async def test_who_keeps_a_lock_of_the_beginning_hears_of_a_truncation(cluster: Any, mix: str, size: int) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        file, resource = await striped(a)
        for at in (0, 10 * UNIT):
            locks_of(c.a, OST).release(await take(c.a, resource, PW, at, at + UNIT - 1, flags=NO_EXPANSION))
            await file.pwrite(b"x" * UNIT, at)
        expected = bytearray(max(size, 11 * UNIT))
        expected[:UNIT] = expected[10 * UNIT : 11 * UNIT] = b"x" * UNIT
        assert (await b.stat("/u/f")).size == (await a.stat("/u/f")).size == 11 * UNIT
        await b.truncate("/u/f", size)
        assert (await a.stat("/u/f")).size == (await file.fstat()).size == (await b.stat("/u/f")).size == size
        for mount in (a, b):
            assert await mount.content("/u/f") == expected[:size]
        await a.write_at("/u/f", 0, b"end", os.O_WRONLY | os.O_APPEND)
        assert await b.content("/u/f") == expected[:size] + b"end"
        await file.close()
        await nobody_is_evicted(c)


# enqueue, completion, glimpse -----------------------------------------------------------------------------------


@pytest.mark.lustre("SN 50")
@asker_caches
async def test_a_truncation_whose_lock_is_granted_before_it_is_answered_leaves_the_right_size(
    cluster: Any, mix: str
) -> None:
    async with two_mounts(cluster, mix + "c", clients=3) as (c, a, b):
        other = b if "b" in mix else Mount(c.c)
        file, _ = await striped(a)
        await file.pwrite(bytes(10 * 1024), 0)
        held = c.net.hold(Enqueue, reply=True, to=other.client)
        cutting = soon(other.truncate("/u/f", 4096))
        await held.caught()
        await asyncio.sleep(1)  # the lock was taken from a, and the completion is there
        held.release()
        await cutting
        for mount in (other, a, b):
            assert (await mount.stat("/u/f")).size == 4096
            assert await mount.content("/u/f") == bytes(4096)
        await file.close()
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 17")
@who_caches
async def test_two_first_looks_at_an_object_say_the_same(cluster: Any, mix: str) -> None:
    """The OST is slow with the first of them, which makes the resource."""
    async with two_mounts(cluster, mix) as (c, a, b):
        file, _ = await striped(a)
        await file.pwrite(bytes(1 << 20), 0)
        await file.fsync()
        await file.close()
        for slow in range(3):
            await drop_locks(c, c.a, c.b)
            c.faults.arm("target.execute", "delay", on=c.oss[0], delay_s=2.0, skip=slow)
            one, other = await asyncio.gather(a.stat("/u/f"), b.stat("/u/f"))
            assert (one.size, one.blocks, one.mtime) == (other.size, other.blocks, other.mtime)
            assert (one.size, one.blocks) == (1 << 20, (1 << 20) // 512)
            c.faults.clear()


@pytest.mark.lustre("SN 106b")
async def test_a_stat_costs_one_glimpse_and_only_if_the_size_is_wanted(cluster: Any) -> None:
    async with two_mounts(cluster) as (c, a, b):
        file, _ = await striped(b)
        await file.pwrite(bytes(1024), 0)
        await file.close()
        calls = c.a.fs.connections.imports[f"lustre-{OST}"].calls

        async def glimpses(looking: Any) -> int:
            await drop_locks(c, c.a)
            before = calls.get("Enqueue", 0)
            await looking
            return calls.get("Enqueue", 0) - before

        async def names_only() -> None:
            entries = [entry async for entry in c.a.fs.scandir("/u", sizes=False)]
            assert [(entry.name, entry.stat.nlink) for entry in entries] == [(b"f", 1)]

        for _ in range(2):  # while b may be writing, and when its lock is gone
            assert await glimpses(a.stat("/u/f")) == 1
            assert await glimpses(names_only()) == 0
            assert await glimpses(a.exists("/u/f")) == 0
            assert await glimpses(a.chmod("/u/f", 0o600)) == 0
            await drop_locks(c, c.b, kind="OST")
        before = calls["Enqueue"]
        for _ in range(3):
            assert (await a.stat("/u/f")).size == 1024
        assert calls["Enqueue"] <= before + 1, "nobody writes: the lock comes along"


# who waits, and goes --------------------------------------------------------------------------------------------


INTERRUPTED = [  # without a cache nobody keeps others from the end of the file, or from a write that nobody waits for
    pytest.param(what, mix, marks=pytest.mark.lustre(name), id=f"{what}-{mix}")
    for name, what, mixes in (("SN 35", "read", "ab a b"), ("SN 94", "append", "ab"), ("SN 75", "stat", "ab a b"))
    for mix in mixes.split()
]


@pytest.mark.parametrize("granted", ["not yet", "on its way"])
@pytest.mark.parametrize(("what", "mix"), INTERRUPTED)
async def test_who_is_interrupted_while_he_waits_for_a_lock_is_not_evicted(
    cluster: Any, mix: str, what: str, granted: str
) -> None:
    """And keeps no lock that nobody knows of."""
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.setstripe("/u/f", 1, UNIT, 0)
        append = os.O_WRONLY | os.O_APPEND
        work = {
            "read": lambda mount: mount.content("/u/f"),
            "append": lambda mount: mount.write_at("/u/f", 0, b"b" * 4096, append),
            "stat": lambda mount: mount.stat("/u/f"),
        }[what]
        for _ in range(3):
            await a.write_at("/u/f", 0, b"a" * 8192, append)
            if what == "stat":
                held = c.net.hold(Enqueue, reply=True, to=c.b) if granted == "on its way" else c.net.hold(Enqueue)
            elif granted == "on its way":
                held = c.net.hold(CompletionCallback, to=c.b)
            else:
                held = c.net.hold(BlockingCallback, to=c.a)
            waiting = soon(work(b))
            await asyncio.sleep(1)
            waiting.cancel()
            await asyncio.wait([waiting])
            held.release()
            began = c.loop.time()
            await a.write_at("/u/f", 0, b"c" * 4096, append)
            await work(b)
            assert c.loop.time() - began < 1.0
        data = await a.content("/u/f")
        pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
        assert set(pieces) <= {letter * 4096 for letter in (b"a", b"b", b"c")}
        assert pieces.count(b"a" * 4096) == 6 and pieces.count(b"c" * 4096) == 3
        assert 3 <= pieces.count(b"b" * 4096) <= 6 if what == "append" else b"b" not in data
        assert await b.content("/u/f") == data
        await nobody_is_evicted(c)
        assert not waits(c)


@pytest.mark.lustre("SN 35")
@pytest.mark.parametrize("granted", ["not yet", "on its way"])
@some_cache
async def test_who_is_interrupted_while_the_mds_waits_for_locks_is_not_evicted(
    cluster: Any, mix: str, granted: str
) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await b.mkdir("/u/d")
        for number in range(5):
            await a.names("/u/d")
            if granted == "not yet":
                held = c.net.hold(BlockingCallback, to=c.a)
            else:
                held = c.net.hold("Create", reply=True, to=c.b)
            making = soon(b.create(f"/u/d/f{number}"))
            await asyncio.sleep(1)
            making.cancel()
            await asyncio.wait([making])
            held.release()
            names = [f"f{n}" for n in range(number + 1)]
            assert await asyncio.wait_for(a.names("/u/d"), 1) in (names, names[:-1])
            await c.settle()
            assert await a.names("/u/d") == await b.names("/u/d") == names
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 34")
@asker_caches
async def test_a_lock_does_not_expire_while_its_owner_writes_under_it(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix, max_bytes_per_rpc=UNIT, max_rpcs_in_flight=1) as (c, a, b):
        file, _ = await striped(a)
        data = random.Random(c.seed).randbytes(8 * UNIT)
        await file.pwrite(data, 0)
        c.faults.arm("ost.write", "delay", on=c.oss[0], delay_s=c.tunables.lock_callback_s / 2, times=-1)
        began = c.loop.time()
        assert await b.content("/u/f") == data
        assert c.loop.time() > began + 2 * c.tunables.lock_callback_s
        c.faults.clear()
        await file.close()
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 34")
@asker_caches
async def test_a_lock_expires_when_its_owner_gets_nothing_done_under_it(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        c.expect(*EVICTION, "lock.expired", "client.data_lost")
        file, _ = await striped(a)
        await file.pwrite(b"old", 0)
        await file.fsync()
        await file.pwrite(b"new", 0)
        lost = c.net.drop(Write, source=c.a, times=-1)
        began = c.loop.time()
        assert await b.content("/u/f") == b"old"
        assert c.loop.time() < began + 2 * c.tunables.lock_callback_s
        c.saw("lock.expired", times=1)
        lost.lift()
        await c.settle()
        with refused(errno.EIO):
            await file.fsync()
        assert await file.pread(3, 0) == b"old"
        await file.pwrite(b"now", 0)
        assert await b.content("/u/f") == b"now"
        await file.close()


# extents and groups ---------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 27")
@who_caches
async def test_writes_that_do_not_overlap_wait_for_each_other_only_shortly(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.setstripe("/u/f", -1, UNIT)
        chance = random.Random(c.seed)
        near, far, first = [chance.randbytes(size) for size in ((4096 + 4) * 64, (16384 - 1024) * 64, 512)]

        async def four() -> None:
            file = await b.open("/u/f", os.O_WRONLY)
            for number in range(3, 7):
                await file.pwrite(near, number * len(near))
            await file.close()

        began = c.loop.time()
        await asyncio.gather(four(), a.write_at("/u/f", 4 * len(far), far), a.write_at("/u/f", 0, first))
        assert c.loop.time() < began + 2.0
        expected = bytearray(5 * len(far))
        expected[:512] = first
        expected[3 * len(near) : 7 * len(near)] = near * 4
        expected[4 * len(far) :] = far
        for mount in (b, a):
            assert await mount.content("/u/f") == expected
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 107a")
async def test_a_group_lock_waits_for_another_group(cluster: Any) -> None:
    async with two_mounts(cluster) as (c, a, b):
        file, resource = await striped(a)
        await file.pwrite(b"x" * UNIT, 0)
        one = await take(c.a, resource, GROUP, gid=14091995)
        same = await take(c.a, resource, GROUP, gid=14091995)
        wish = soon(take(c.b, resource, GROUP, gid=16022000))
        await asyncio.sleep(2)
        assert not wish.done()
        locks_of(c.a, OST).release(same)
        await asyncio.sleep(2)
        assert not wish.done()
        locks_of(c.a, OST).release(one)
        other = await asyncio.wait_for(wish, 1)
        locks_of(c.b, OST).release(other)
        assert await b.content("/u/f") == b"x" * UNIT
        await file.close()
        await nobody_is_evicted(c)


@pytest.mark.lustre("SN 107b")
@pytest.mark.parametrize("mix", ["abc", "ac"])
async def test_a_group_lock_goes_before_reads_that_wait(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix, clients=3) as (c, a, b):
        file, resource = await striped(a)
        await file.pwrite(b"x" * UNIT, 0)
        one = await take(c.a, resource, GROUP, gid=14091995)
        reading = soon(b.content("/u/f"))
        await c.until(lambda: waits(c))
        wish = soon(take(c.c, resource, GROUP, gid=16022000))
        await asyncio.sleep(2)
        assert not reading.done() and not wish.done()
        locks_of(c.a, OST).release(one)
        other = await asyncio.wait_for(wish, 1)
        await asyncio.sleep(2)
        assert not reading.done()
        locks_of(c.c, OST).release(other)
        assert await asyncio.wait_for(reading, 1) == b"x" * UNIT
        await file.close()
        await nobody_is_evicted(c)
