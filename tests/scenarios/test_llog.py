"""The log towards OSTs: written with the unlink or chown, worked off in the background, in spite of any order of failures.

That every object of a removed file is gone, and every other is counted for whom its file is, is checked by fsck on
leaving each world.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from steps import ABORT, EVICTION, contents, soon

from lustrelite.store.schema import OST_LOG
from lustrelite.wire.mdt import Unlink
from lustrelite.wire.mgs import ConfigRead
from lustrelite.wire.ost import Destroy


async def objects_gone(c: Any) -> None:
    """Wait until no OST has a file for an object."""
    async with asyncio.timeout(60.0):
        while any(list(server.target().files.ids()) for server in c.oss):
            await asyncio.sleep(0.1)


@pytest.mark.lustre("RS 35")
async def test_an_unlink_whose_reply_was_lost_destroys_the_object_after_an_abort(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_35"""
    async with world(clients=1) as c:
        c.expect(*ABORT)
        await c.a.write("/f", b"x")
        lost = c.drop_reply(Unlink)
        removing = soon(c.a.unlink("/f"))
        await lost.caught()
        await c.mds.commit()
        await c.fail_abort(c.mds)
        await asyncio.wait([removing])
        assert removing.exception() is not None, "its client was evicted"
        assert not await c.a.exists("/f")
        await objects_gone(c)


@pytest.mark.lustre("RS 39")
async def test_half_of_many_files_are_removed_before_a_crash_and_half_after(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_39"""
    async with world(oss=2, clients=1) as c:
        for i in range(200):
            await c.a.write(f"/f{i}", b"x")
        await c.replay_barrier(c.mds)
        for i in range(100):
            await c.a.unlink(f"/f{i}")
        await c.fail(c.mds)
        for i in range(100, 200):
            await c.a.unlink(f"/f{i}")
        assert await c.a.listdir("/") == []
        await objects_gone(c)


@pytest.mark.lustre("RS 57", "RS 58a")
@pytest.mark.parametrize("count", [1, 250])
async def test_changed_attributes_of_many_files_survive_a_crash(world: Any, count: int) -> None:
    """Source: lustre/tests/replay-single.sh test_57, test_58a (their hook is dead)"""
    async with world(oss=2, clients=1) as c:
        for i in range(count):
            await c.a.write(f"/f{i}", b"x")
        await c.replay_barrier(c.mds)
        for i in range(count):
            await c.a.chmod(f"/f{i}", 0o600)
            await c.a.fs.utimes(f"/f{i}", 1, 2)
            await c.a.fs.chown(f"/f{i}", 1000 + i, 100)
        await c.fail(c.mds)
        for i in range(count):
            found = await c.a.fs.lstat(f"/f{i}")
            assert (found.mode & 0o7777, found.mtime, found.uid, found.gid) == (0o600, 2, 1000 + i, 100)
        await c.settle()
        for i in range(count):
            await c.a.unlink(f"/f{i}")
        await objects_gone(c)


@pytest.mark.lustre("RS 59")
async def test_destroys_wait_for_an_ost_that_takes_long_to_connect(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_59"""
    async with world(oss=2, clients=1) as c:
        for i in range(100):
            await c.a.write(f"/f{i}", b"x")
        await c.oss[0].kill()
        for i in range(100):
            await c.a.unlink(f"/f{i}")
        c.faults.arm("target.connect", "delay", on=c.oss[0], keep=True, times=6, delay_s=5.0)
        await c.oss[0].start()
        await asyncio.sleep(2.0)
        await c.fail(c.mds)
        await objects_gone(c)


@pytest.mark.lustre("RS 61a")
async def test_an_ost_restarts_twice_before_many_destroys_are_durable(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_61a"""
    async with world(oss=1, clients=1) as c:
        for i in range(150):
            await c.a.write(f"/f{i}", b"x")
        await c.replay_barrier(c.oss[0])
        for i in range(150):
            await c.a.unlink(f"/f{i}")
        await c.mds.commit()
        for _ in range(2):
            await c.fail(c.oss[0])
        assert await c.a.listdir("/") == []
        await objects_gone(c)


@pytest.mark.lustre("RS 61b")
async def test_the_mds_restarts_twice_while_destroys_are_under_way(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_61b"""
    async with world(oss=2, clients=1) as c:
        for i in range(20):
            await c.a.write(f"/f{i}", b"x")
        for i in range(20):
            await c.a.unlink(f"/f{i}")
        held = c.net.hold(Destroy)
        await c.mds.commit()
        for _ in range(2):
            await c.mds.kill()
            await c.mds.start()
            await asyncio.sleep(3.0)
        held.release()
        await c.a.write("/new", b"works")
        assert await c.a.read("/new") == b"works"
        await c.a.unlink("/new")
        await objects_gone(c)


@pytest.mark.lustre("RS 61c")
@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
async def test_an_ost_restarts_when_a_destroy_is_crossed_off(world: Any, reply: bool) -> None:
    """Source: lustre/tests/replay-single.sh test_61c"""
    async with world(oss=1, clients=1) as c:
        await c.a.write("/f", b"x")
        lost = c.net.drop(Destroy, reply=reply)
        await c.a.unlink("/f")
        await lost.caught()
        await c.fail(c.oss[0])
        await objects_gone(c)


@pytest.mark.lustre("RS 89")
@pytest.mark.parametrize("replayed", [False, True], ids=["committed", "replayed"])
async def test_an_object_is_destroyed_late_when_its_ost_was_away(world: Any, replayed: bool) -> None:
    """Source: lustre/tests/replay-single.sh test_89"""
    async with world(oss=1, clients=1) as c:
        await c.a.write("/f", b"x" * (4 << 20))
        await c.oss[0].kill()
        if replayed:
            await c.replay_barrier(c.mds)
        await c.a.unlink("/f")
        await c.mds.kill()
        await c.mds.start()
        await asyncio.sleep(3.0)
        await c.oss[0].start()
        await c.settle()
        await objects_gone(c)


@pytest.mark.lustre("RS 83a", "RS 83b")
@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
async def test_a_crash_in_the_replay_of_an_unlink_loses_neither_name_nor_log(world: Any, again: bool) -> None:
    """Here log record and unlink are one transaction, so the append fails only with all of it.

    Source: lustre/tests/replay-single.sh test_83a, test_83b of b2_1
    """
    async with world(oss=1, clients=1) as c:
        c.expect("node.crashed")
        await c.a.write("/f", b"x")
        await c.a.write("/g", b"y")
        await c.replay_barrier(c.mds)
        await c.a.unlink("/f")
        await c.a.unlink("/g")
        await c.mds.kill()
        for _ in range(1 + again):
            c.faults.arm("target.replay", "crash", on=c.mds, keep=True)
            await c.mds.start()
            async with asyncio.timeout(30.0):
                while c.mds.alive:
                    await asyncio.sleep(0.1)
        await c.mds.start()
        await c.settle()
        assert await c.a.listdir("/") == []
        await objects_gone(c)


async def test_a_removed_file_stays_readable_until_its_unlink_is_durable(world: Any) -> None:
    """An unlink that a crash takes back finds the data where it was.  Source: osp_sync.c; protocol-facts 7.3"""
    async with world(oss=1, clients=2) as c:
        c.expect(*ABORT)
        await c.a.write("/f", b"still there")
        await c.replay_barrier(c.mds)
        await c.a.unlink("/f")
        await asyncio.sleep(5.0)
        await c.fail_abort(c.mds)
        assert await contents(c.b, ["/f"]) == [b"still there"]


async def test_an_ost_that_is_known_only_after_recovery_gets_its_destroys(world: Any) -> None:
    """They were logged before there was a connection to wake.  Found by a seed of the crash in replay above"""
    async with world(oss=1, clients=1) as c:
        await c.a.write("/f", b"x")
        await c.replay_barrier(c.mds)
        await c.a.unlink("/f")
        await c.mds.kill()
        c.net.slow(ConfigRead, reply=True, to=c.mds, delay_s=0.5)
        await c.mds.start()
        await objects_gone(c)


# Every order in which two servers can fail around a change that OSTs are to hear of. A step is a server that is killed and
# started, or only killed (-) or started (+), until the other has been; `commit` makes durable what was executed.
ORDERS = [
    "mds", "oss", "mds oss", "oss mds", "mds oss mds", "oss mds oss", "mds mds", "oss oss",
    "-mds oss +mds", "-oss mds +oss", "-mds -oss +mds +oss", "-mds -oss +oss +mds", "-oss -mds +mds +oss",
    "-oss mds mds +oss", "-mds oss oss +mds",
]  # fmt: skip
STAGES = ["executed", "durable", "sent", "answered", "committed there", "crossed off"]


async def fail_in_order(c: Any, order: str) -> None:
    """The steps of one of ORDERS."""
    for step in order.split():
        server = c.mds if step.endswith("mds") else c.oss[0]
        if step[0] != "+":
            await server.kill()
        if step[0] != "-":
            await server.start()
        await asyncio.sleep(2.0)
    c.oss[0].release_commits()
    await c.settle()


async def up_to(c: Any, stage: str) -> None:
    """Let the log get as far as that."""
    if stage == "executed":
        return
    if stage == "sent":
        lost = c.net.drop(Destroy, times=100)
    elif stage == "answered":
        c.oss[0].hold_commits()
        c.expect("commit.waiting")
    await c.mds.commit()
    if stage == "durable":
        return
    if stage == "sent":
        await lost.caught()
    else:
        await asyncio.sleep(3.0)
    if stage in ("committed there", "crossed off"):
        await c.oss[0].commit()
    if stage == "crossed off":
        await asyncio.sleep(5.0)
        assert not c.mds.target().store.count(OST_LOG)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stage", STAGES)
async def test_objects_become_what_their_files_are_in_any_order_of_failures(cluster: Any, stage: str, order: str) -> None:
    """Destroy, owner and project. Requirement: issue 4 item 3; protocol-facts 7.3"""
    async with cluster(oss=1, osts=2, clients=1) as c:
        for name in ("kept", "gone", "both"):
            for i in range(3):
                await c.a.write(f"/{name}{i}", b"x" * 5000)
        await c.mds.commit()
        c.mds.hold_commits()
        for i in range(3):
            await c.a.fs.chown(f"/kept{i}", 1000 + i, 100)
            await c.a.fs.chproj(f"/kept{i}", 7)
            await c.a.fs.chown(f"/both{i}", 5, 5)
            await c.a.unlink(f"/gone{i}")
            await c.a.unlink(f"/both{i}")
        c.mds.release_commits()
        await up_to(c, stage)
        c.net.heal()
        await fail_in_order(c, order)
        for i in range(3):
            stat = await c.a.fs.lstat(f"/kept{i}")
            assert (stat.uid, stat.gid, stat.projid) == (1000 + i, 100, 7)
        async with asyncio.timeout(60.0):
            while sum(len(list(target.files.ids())) for target in c.oss[0].running) > 3:
                await asyncio.sleep(0.1)
        c.never_saw("import.evicted")


async def test_a_client_that_is_lost_takes_its_chown_along(cluster: Any) -> None:
    """The record went with the change: the object stays what the file is."""
    async with cluster(oss=1, clients=2) as c:
        c.expect(*EVICTION)
        await c.a.write("/f", b"x")
        await c.replay_barrier(c.mds)
        await c.a.fs.chown("/f", 1000, 100)
        await asyncio.sleep(3.0)
        await c.a.kill()
        await c.fail(c.mds)
        assert (await c.b.fs.lstat("/f")).uid == 0
