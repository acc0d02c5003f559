"""Trouble that passes, and trouble of a disk: tried again where that helps, said clearly where it does not.

Source: chapter 30.1.5; recoverable errors of osc_brw_redo_request(), osc/osc_request.c; protocol-facts 4.6, 8.4
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest
from mounts import Mount
from steps import EVICTION, refused, soon

from lustrelite.errors import StoreFailed
from lustrelite.faults import Fault

MIB = 1 << 20
CORRUPT = ("bulk.corrupt",)


def data(size: int, salt: int = 0) -> bytes:
    """Bytes that say where they are."""
    return b"".join((at + salt).to_bytes(8, "big") for at in range(0, size, 8))[:size]


def disk(c: Any) -> Any:
    """The data disk of OST 0."""
    return c.disks.object_disk("lustre-OST0000")


# -------------------------------------------------------------------------------------------------------- not executed


@pytest.mark.lustre("OST 8b")
@pytest.mark.parametrize("number", ["EINPROGRESS", "EAGAIN", "EBUSY"])
@pytest.mark.parametrize("op", ["Write", "Read", "Punch", "Enqueue", "ObjectGetattr", "OstSync", "OstStatfs", "OstCreate"])
@pytest.mark.parametrize("caching", [1, 0], ids=["cached", "uncached"])
async def test_what_a_server_cannot_do_now_is_asked_again_after_a_pause(
    cluster: Any, caching: int, op: str, number: str
) -> None:
    """The caller waits and hears nothing of it; pauses grow."""
    async with cluster(oss=1, caching=caching, precreate_min=2, precreate_max=2) as c:
        fault = Fault("error", errno=getattr(errno, number), times=6)
        c.oss[0].node.faults.on_message("request", op, fault)
        await c.a.write("/f", data(300_000))
        for place in range(4):  # more than there are objects
            await c.a.create(f"/{place}")
        await c.a.unrecorded(c.a.fs.sync())
        await c.a.truncate("/f", 200_000)
        assert await c.b.read("/f") == data(200_000)
        assert (await c.b.stat("/f")).size == 200_000
        _, space = await c.a.unrecorded(c.a.fs.statfs_targets())
        assert all(answer is not None for _, answer in space)
        await c.settle()
        happens = {("Enqueue", 0), ("ObjectGetattr", 1)}  # not with (without) a cache
        assert fault.times == 0 or (op, caching) in happens
        c.never_saw("import.evicted")
        c.never_saw("import.lost")


# ------------------------------------------------------------------------------------------------------------ checksums


@pytest.mark.parametrize("size", [3000, MIB], ids=["small", "large"])
@pytest.mark.parametrize("caching", [1, 0], ids=["cached", "uncached"])
async def test_garbled_data_is_never_stored_and_sent_again(cluster: Any, caching: int, size: int) -> None:
    async with cluster(oss=1, caching=caching) as c:
        c.expect(*CORRUPT)
        rule = c.net.corrupt("Write", times=3)
        await c.a.write("/f", data(size))
        await c.a.unrecorded(c.a.fs.sync())
        await c.settle()
        assert rule.matched == 3
        assert bytes(next(iter(disk(c).files.values()))) == data(size)
        assert c.oss[0].target().checksum_errors == 3
        assert await c.b.read("/f") == data(size)
        c.never_saw("import.lost")


@pytest.mark.parametrize("size", [3000, MIB], ids=["small", "large"])
@pytest.mark.parametrize("caching", [1, 0], ids=["cached", "uncached"])
async def test_garbled_data_is_never_shown_and_asked_for_again(cluster: Any, caching: int, size: int) -> None:
    async with cluster(oss=1, caching=caching) as c:
        c.expect(*CORRUPT)
        await c.a.write("/f", data(size))
        await c.a.unrecorded(c.a.fs.sync())
        rule = c.net.corrupt("Read", reply=True, times=3)
        assert await c.b.read("/f") == data(size)
        assert rule.matched == 3
        assert c.b.fs.connections.imports["lustre-OST0000"].counts["checksum_errors"] == 3
        c.never_saw("import.lost")


async def test_a_garbled_replay_keeps_its_place(cluster: Any) -> None:
    """Newer writes of others to the same bytes must not be passed by it."""
    async with cluster(oss=1, clients=3, sync_lock_cancel="never") as c:
        c.expect(*CORRUPT)
        await c.a.write("/f", bytes(100_000))
        await c.a.unrecorded(c.a.fs.sync())
        await c.replay_barrier(c.oss[0])
        for number, name in enumerate("abcabc"):
            client = c.clients[name]
            await client.write_at("/f", 0, data(100_000, number))
            await client.unrecorded(client.fs.connections.lov.locked.flush_all())
        await c.oss[0].kill()
        rule = c.net.corrupt("Write", source=c.a, times=2)
        await c.oss[0].start()
        await c.settle()
        assert rule.matched == 2
        assert await c.b.read("/f") == data(100_000, 5)
        c.never_saw("import.evicted")


async def test_garbled_data_on_processes_too(world: Any) -> None:
    """The same by a fault of the processes themselves."""
    async with world(clients=2, oss=1) as c:
        c.expect(*CORRUPT)
        garbled = c.net.corrupt("Write", to=c.oss[0], times=2)
        await c.a.write("/f", data(MIB))
        await c.a.unrecorded(c.a.fs.sync())
        await garbled.caught(2)
        c.saw("bulk.corrupt", target=c.oss[0])
        assert await c.b.read("/f") == data(MIB)
        c.never_saw("import.lost")


# ------------------------------------------------------------------------------------------------------------------ disk


@pytest.mark.parametrize("caching", [1, 0], ids=["cached", "uncached"])
async def test_a_disk_that_cannot_be_read_is_eio_at_once_and_costs_nothing_else(cluster: Any, caching: int) -> None:
    async with cluster(oss=1, caching=caching) as c:
        await c.a.write("/f", data(MIB))
        await c.a.unrecorded(c.a.fs.sync())
        disk(c).unreadable = errno.EIO
        for _ in range(2):
            began = c.loop.time()
            with refused(errno.EIO):
                await c.b.unrecorded(c.b.fs.read_file("/f"))
            assert c.loop.time() - began < 1
        await c.b.write("/g", b"x" * 100)  # it can be written
        await c.b.unrecorded(c.b.fs.sync())
        disk(c).unreadable = 0
        assert await c.b.read("/f") == data(MIB)
        c.never_saw("import.evicted")


@pytest.mark.parametrize("caching", [1, 0], ids=["cached", "uncached"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC], ids=["EIO", "EROFS", "ENOSPC"])
async def test_a_write_that_the_disk_refuses_says_so_to_who_waits_for_it(cluster: Any, caching: int, number: int) -> None:
    """With the disk's own error, before anything of it is recorded: it is of one place on the disk, or the disk is full."""
    async with cluster(oss=1, caching=caching) as c:
        await c.a.write("/f", data(100_000))
        await c.a.unrecorded(c.a.fs.sync())
        user = Mount(c.a)
        file = await user.open("/f", os.O_RDWR | os.O_DSYNC)
        before = c.oss[0].target().last_transno
        disk(c).unwritable = number
        with refused(number):
            await file.pwrite(b"y" * 80_000, 0)
        assert c.oss[0].target().last_transno == before
        disk(c).unwritable = 0
        await file.close()
        assert await c.b.read("/f") == data(100_000)
        await c.b.write("/f", b"new")
        c.never_saw("import.evicted")


async def test_cached_data_that_the_disk_refuses_is_told_to_every_writer_once(cluster: Any) -> None:
    async with cluster(oss=1, clients=2, write_back_after_s=1000.0) as c:
        c.expect("client.data_lost")
        await c.a.write("/f", b"old")
        await c.a.unrecorded(c.a.fs.sync())
        user = Mount(c.a)
        files = [await user.open("/f", os.O_RDWR) for _ in range(2)]
        for file in files:
            await file.pwrite(b"y" * 1000, 0)
        disk(c).unwritable = errno.EIO
        for file in files:
            with refused(errno.EIO):
                await file.fsync()
        disk(c).unwritable = 0
        for file in files:
            await file.fsync()
            await file.close()
        assert await c.b.read("/f") == b"old"


@pytest.mark.parametrize("act", ["write", "fsync", "truncate", "read", "unlink"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS], ids=["EIO", "EROFS"])
async def test_a_broken_disk_ends_the_server_and_no_program_hears_of_it(cluster: Any, number: int, act: str) -> None:
    """Its successor, on a disk that works, is sent again what was not answered."""
    async with cluster(oss=1, clients=2, write_back_after_s=1000.0) as c:
        await c.a.write("/f", data(MIB))
        await c.a.write("/g", data(MIB))
        await c.a.unrecorded(c.a.fs.sync())
        await c.settle()
        file = await c.a.open("/g")
        await file.pwrite(b"y" * 1000, 0)
        disk(c).broken = disk(c).unreadable = number
        acts = {
            "write": lambda: c.b.write("/f", b"x" * MIB), "fsync": file.file.fsync, "truncate": lambda: c.b.truncate("/f", 9),
            "read": lambda: c.b.read("/f"), "unlink": lambda: c.b.unlink("/f"),
        }  # fmt: skip
        acting = soon(acts[act]())
        await c.until(lambda: not c.oss[0].alive)
        c.saw("node.crashed", on=c.oss[0])
        c.failures.clear()
        c.errors.clear()
        disk(c).broken = disk(c).unreadable = 0
        await c.oss[0].start()
        await acting
        await file.close()
        assert (await c.b.read("/g"))[:1001] == b"y" * 1000 + data(MIB)[1000:1001]
        c.never_saw("import.evicted")


async def test_a_disk_that_cannot_commit_ends_the_server_and_nothing_acknowledged_is_lost(cluster: Any) -> None:
    """Its successor, on a disk that works, gets the replays; even after a power cut."""
    async with cluster(oss=1, clients=2) as c:
        await c.a.write("/before", data(MIB))
        await c.a.unrecorded(c.a.fs.sync())
        disk(c).unsyncable = errno.EIO
        await c.a.write("/f", data(2 * MIB))
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        syncing = soon(c.a.unrecorded(c.a.fs.sync()))
        await c.until(lambda: not c.oss[0].alive)
        c.saw("node.crashed", on=c.oss[0])
        c.failures.clear()
        c.errors.clear()
        assert not syncing.done()
        disk(c).power_cut()
        disk(c).unsyncable = 0
        await c.oss[0].start()
        await syncing
        assert await c.b.read("/f") == data(2 * MIB)
        assert await c.b.read("/before") == data(MIB)
        c.never_saw("import.evicted")


async def test_an_ost_does_not_start_on_a_disk_that_does_not_sync(cluster: Any) -> None:
    """What a killed predecessor left in the kernel cannot be made durable: nobody may see it. Nothing is written there."""
    async with cluster(mds=1, oss=1, clients=2, caching=1, commit_interval_s=1000.0) as c:
        await c.a.write("/f", data(MIB))
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        c.oss[0].kill()
        disk(c).unsyncable = errno.EIO
        with pytest.raises(StoreFailed, match="cannot sync"):
            await c.oss[0].start()
        assert len(c.failures) == 1 and not c.oss[0].alive
        c.failures.clear()
        c.errors.clear()
        disk(c).unsyncable = 0
        await c.oss[0].start()
        assert await c.b.read("/f") == data(MIB)


@pytest.mark.parametrize("again", [0, 1], ids=["", "and it is restarted"])
async def test_what_was_accepted_under_a_grant_finds_room_on_a_full_ost(cluster: Any, again: int) -> None:
    """Who writes past it hears ENOSPC at the write; what was accepted before is written, however late."""
    world = cluster(oss=1, clients=2, write_back_after_s=1000.0)
    disk_of = world.disks.object_disk("lustre-OST0000")
    disk_of.capacity_bytes = 40 * MIB
    async with world as c:
        user, other = Mount(c.a), Mount(c.b)
        await user.mkdir("/u")
        file = await user.open("/u/f", os.O_CREAT | os.O_RDWR, 0o644)
        accepted = 0
        while (accepted < 4 * MIB and c.a.fs.connections.lov.oscs[0].data.grant.available > 2 * MIB) or not accepted:
            await file.pwrite(data(64 << 10, accepted), accepted)
            accepted += 64 << 10
        filler = await other.open("/u/filler", os.O_CREAT | os.O_RDWR | os.O_DSYNC, 0o644)
        at = 0
        with refused(errno.ENOSPC):
            while True:
                await filler.pwrite(bytes(MIB), at)
                at += MIB
        if again:
            await c.fail(c.oss[0])
            with refused(errno.ENOSPC):
                for place in range(at, at + 64 * MIB, MIB):
                    await filler.pwrite(bytes(MIB), place)
        await file.fsync()
        assert [await other.content("/u/f")] == [b"".join(data(64 << 10, at) for at in range(0, accepted, 64 << 10))]
        await file.close()
        await filler.close()
        await c.settle()
        await user.rmtree("/u")
        c.never_saw("client.data_lost")


async def test_a_slow_disk_is_told_from_a_dead_one(cluster: Any) -> None:
    """An OST that is at work for long says so; nobody reconnects, and each write is done once."""
    async with cluster(oss=1, clients=2) as c:
        c.faults.arm("ost.write", "delay", on=c.oss[0], delay_s=6 * c.tunables.rpc_timeout_s, times=2)
        writing = soon(c.a.write("/f", data(2 * MIB)))
        await asyncio.sleep(0.1)
        await c.b.write("/g", b"x")
        await writing
        for client in (c.a, c.b):
            await client.unrecorded(client.fs.sync())
        c.never_saw("import.lost")
        c.never_saw("client.evicted")
        assert await c.b.read("/f") == data(2 * MIB)


@pytest.mark.lustre("SM 132")
async def test_a_truncation_that_takes_two_minutes_keeps_its_lock(cluster: Any) -> None:
    """While another mount wants to write there.  Source: lustre/tests/recovery-small.sh test_132"""
    async with cluster(oss=1, clients=2) as c:
        await c.a.write("/f", data(MIB))
        await c.a.unrecorded(c.a.fs.sync())
        c.faults.arm("ost.punch", "delay", on=c.oss[0], delay_s=120.0)
        cutting = soon(c.a.truncate("/f", 1000))
        await asyncio.sleep(1.0)
        await c.b.write_at("/f", 500, b"y" * 100)
        await cutting
        assert await c.a.read("/f") == data(1000)[:500] + b"y" * 100 + data(1000)[600:]
        c.never_saw("client.evicted")


@pytest.mark.parametrize("seconds", [5.0, 70.0])
async def test_a_partition_heals_and_dirty_data_arrives(cluster: Any, seconds: float) -> None:
    """Shorter and longer than the OST waits for a silent client (then it evicts, and the client says what is lost)."""
    async with cluster(oss=1, clients=2, write_back_after_s=1000.0, evict_silent_s=30.0) as c:
        c.expect(*EVICTION, "client.data_lost", "lock.flush_failed")
        user = Mount(c.a)
        await user.mkdir("/u")
        file = await user.open("/u/f", os.O_CREAT | os.O_RDWR, 0o644)
        await file.pwrite(data(MIB), 0)
        c.net.cut(c.a, c.oss[0])
        for _ in range(int(seconds)):
            await Mount(c.b).statfs()
            await asyncio.sleep(1.0)
        c.net.heal()
        if seconds > 30:
            with refused(errno.EIO):
                await file.fsync()
        else:
            await file.fsync()
            assert await Mount(c.b).content("/u/f") == data(MIB)
        await file.close()
        await c.settle()
        await user.rmtree("/u")


async def test_what_is_there_can_be_opened_while_the_mdt_is_full(cluster: Any) -> None:
    """An open changes nothing on disk but the record of its answer. It was refused with ENOSPC: nothing could be read, or
    written in place, until somebody had removed something.  Source: seed 50000 of all swarms"""
    async with cluster(clients=2, caching=0) as c:
        user = Mount(c.a)
        await c.a.write("/f", b"here" * 1000)
        c.mds.target().store.reserved_permille = 1000
        await user.mkdir("/u")
        with refused(errno.ENOSPC):
            for number in range(1000):  # what was reckoned with before goes in
                await user.mkdir(f"/u/{number}")
        for _ in range(600):  # more than is reckoned with at once
            async with await c.b.unrecorded(c.b.fs.open("/f")) as file:
                assert await file.pread(4, 0) == b"here"
        await c.a.write_at("/f", 0, b"more")
        assert await c.b.read("/f") == b"more" + b"here" * 999
        await user.rmtree("/u")


async def test_what_an_mdt_had_answered_is_replayed_although_it_is_full_by_then(cluster: Any) -> None:
    """There was room for it; others on the disk have taken that since. Nothing else finds any."""
    async with cluster(clients=1) as c:
        await c.replay_barrier(c.mds)
        for number in range(300):  # more than is reckoned with at once
            await c.a.mkdir(f"/{number}")
        c.mds.tunables["reserved_permille"] = 1000
        await c.fail(c.mds)
        assert len(await c.a.listdir("/")) == 300
        with refused(errno.ENOSPC):
            for number in range(1000):
                await Mount(c.a).mkdir(f"/more{number}")


async def test_an_open_that_finds_no_room_leaves_nothing_open(cluster: Any) -> None:
    async with cluster(clients=1, caching=0) as c:
        c.mds.target().store.reserved_permille = 1000
        user = Mount(c.a)
        with refused(errno.ENOSPC):
            for number in range(1000):  # what was reckoned with before goes in
                await user.write_file(f"/{number}", b"")
        assert not list(c.mds.target().open_handles())
