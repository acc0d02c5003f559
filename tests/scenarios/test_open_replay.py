"""Open files through a crash of the MDS: which opens are replayed, and when the replay itself goes wrong."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest
from steps import refused, soon, touch

from lustrelite.errors import Deactivated
from lustrelite.wire.mdt import Close, Open

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


@pytest.mark.lustre("RS 2a")
async def test_a_touched_file_survives(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_2a"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await touch(c.a, "/f")
        await c.fail(c.mds)
        assert await c.a.exists("/f")
        c.saw("import.replayed", op="Open", times=1)
        c.saw("import.replayed", op="Close", times=1)


@pytest.mark.lustre("RS 2e")
async def test_an_exclusive_create_whose_close_was_not_answered_is_replayed_once(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_2e"""
    async with world(clients=1) as c:

        async def create_and_close() -> None:
            await (await c.a.fs.open("/f", NEW)).close()

        await c.replay_barrier(c.mds)
        lost = c.drop_reply(Close)
        creating = soon(create_and_close())
        await lost.caught()
        await c.fail(c.mds)
        await creating
        c.saw("import.replayed", op="Open", times=1)
        c.never_saw("import.replay_failed")
        await c.a.fs.unlink("/f")


@pytest.mark.lustre("RS 3a")
async def test_a_failed_open_is_not_replayed(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_3a"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        with refused(errno.ENOTDIR):
            await c.a.fs.open("/f", os.O_RDONLY | os.O_DIRECTORY)
        await c.fail(c.mds)
        assert await c.a.exists("/f")
        c.never_saw("import.replayed", op="Open")


@pytest.mark.lustre("RS 3b", "RS 3c", "SM 15")
@pytest.mark.parametrize("point", ["mdt.open", "mdt.layout", "mdt.create"])
async def test_an_open_that_fails_in_the_server_makes_no_file(world: Any, point: str) -> None:
    """The error reaches the caller; after a crash, too, there is no file.

    Source: lustre/tests/replay-single.sh test_3b, test_3c; recovery-small.sh test_15
    """
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        c.faults.arm(point, "error", on=c.mds, errno=errno.ENOMEM)
        with refused(errno.ENOMEM):
            await c.a.fs.open("/f", NEW)
        assert not await c.a.exists("/f")
        await c.fail(c.mds)
        assert not await c.a.exists("/f")
        c.never_saw("import.replayed", op="Open")


@pytest.mark.lustre("RS 8")
async def test_a_file_stays_open_over_a_crash(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_8"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        file = await c.a.open("/f")
        await c.fail(c.mds)
        await file.pwrite(b"still mine")
        await file.close()
        assert await c.a.read("/f") == b"still mine"


@pytest.mark.lustre("RS 13")
async def test_an_open_is_replayed_although_the_mode_forbids_it_now(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_13"""
    async with world(clients=1) as c:
        user = c.a.fs.as_user(1000, 1000)
        await c.a.mkdir("/d", 0o777)
        await c.a.fs.chown("/d", 1000, 1000)
        file = await user.open("/d/f", os.O_CREAT | os.O_WRONLY, 0o644)
        await user.chmod("/d/f", 0)
        await c.replay_barrier(c.mds)
        await c.fail(c.mds)
        await file.pwrite(b"x", 0)
        await file.close()
        c.saw("import.replayed", op="Open", times=1)
        assert (await user.stat("/d/f")).size == 1
        await c.a.fs.unlink("/d/f")


@pytest.mark.lustre("RS 45")
async def test_a_close_on_a_switched_off_import_fails_and_hurts_nobody(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_45"""
    async with world(clients=2) as c:
        file = await c.a.open("/f", create=True)
        mdt = next(imp for name, imp in c.a.fs.connections.imports.items() if "MDT" in name)
        mdt.deactivate()
        with pytest.raises(Deactivated):
            await file.close()
        mdt.activate()
        await c.a.write("/f", b"on again")
        assert await c.b.read("/f") == b"on again"


@pytest.mark.lustre("RS 56")
async def test_the_open_of_a_symlink_is_not_replayed(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_56"""
    async with world(clients=1) as c:
        await c.a.symlink("nowhere", "/s")
        with refused(errno.ELOOP):
            await c.a.fs.open("/s", os.O_RDONLY | os.O_NOFOLLOW)
        await c.replay_barrier(c.mds)
        await c.fail(c.mds)
        assert await c.a.readlink("/s") == "nowhere"
        c.never_saw("import.replayed", op="Open")


@pytest.mark.lustre("RS 73a", "RS 73b", "RS 73c")
@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
async def test_a_lost_open_replay_is_sent_again(world: Any, reply: bool) -> None:
    """The last replay is also the only one.  Source: lustre/tests/replay-single.sh test_73a, test_73b; b2_4 test_73c"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"nameless")
        await c.a.unlink("/f")
        await c.replay_barrier(c.mds)
        await c.mds.kill()
        lost = c.net.drop(Open, reply=reply)
        await c.mds.start()
        await lost.caught()
        await c.settle()
        assert await file.pread() == b"nameless"
        await file.close()
        assert not await c.a.exists("/f")
        c.never_saw("import.evicted")


@pytest.mark.lustre("RD 12")
async def test_the_lost_replay_of_an_open_that_made_a_file(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_12"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        file = await c.a.open("/f", create=True)
        await c.mds.kill()
        lost = c.drop_request(Open)
        await c.mds.start()
        await lost.caught()
        await c.settle()
        await file.close()
        assert await c.b.exists("/f")
        c.never_saw("import.evicted")


@pytest.mark.lustre("RD 13")
async def test_the_lost_replay_of_a_close(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_13"""
    async with world(clients=2) as c:
        file = await c.a.open("/f", create=True)
        await c.replay_barrier(c.mds)
        await file.close()
        await c.mds.kill()
        lost = c.drop_request(Close)
        await c.mds.start()
        await lost.caught()
        await c.settle()
        assert await c.b.exists("/f")
        c.never_saw("import.evicted")


@pytest.mark.lustre("RS 82", "RD 22")
@pytest.mark.parametrize("other", ["a", "b"])
async def test_a_second_open_create_finds_the_orphan_after_replay(world: Any, other: str) -> None:
    """Source: lustre/tests/replay-single.sh test_82, replay-dual.sh test_22 of b1_8"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        first = await c.a.open("/f", create=True)
        second = await c.clients[other].open("/f", create=True)
        await second.pwrite(b"shared")
        await c.a.unlink("/f")
        await c.fail(c.mds)
        assert await first.pread() == b"shared"
        await first.close()
        assert await second.pread() == b"shared"
        await second.close()
        assert not await c.a.exists("/f")


@pytest.mark.lustre("RS 83")
async def test_the_barrier_falls_between_an_open_and_its_close(world: Any) -> None:
    """An open is one transaction here, so it cannot fall within one.  Source: replay-single.sh test_83 of b1_8"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        await c.replay_barrier(c.mds)
        await file.close()
        await c.fail(c.mds)
        c.saw("import.replayed", op="Open", times=1)
        c.saw("import.replayed", op="Close", times=1)
        c.never_saw("import.replay_failed")


@pytest.mark.lustre("RS 40")
async def test_an_open_file_can_be_written_while_the_mds_is_away(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_40 of b1_6"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"before ")
        await c.mds.kill()
        await file.pwrite(b"while it was away", 7)
        c.faults.arm("target.connect", "error", on=c.mds, keep=True, errno=errno.EBUSY)
        await c.mds.start()
        await c.settle()
        await file.close()
        assert await c.a.read("/f") == b"before while it was away"


@pytest.mark.lustre("RS 49a", "RS 49c")
@pytest.mark.parametrize("made", [True, False], ids=["open-create", "open"])
@pytest.mark.parametrize("committed", [False, True], ids=["lost", "committed"])
async def test_a_nameless_file_is_gone_although_the_reply_to_its_close_was_lost(
    world: Any, made: bool, committed: bool
) -> None:
    """Source: lustre/tests/replay-single.sh test_49a, test_49c of b1_6"""
    async with world(clients=1) as c:
        if not made:
            await c.a.create("/f")
        file = await c.a.open("/f", create=made)
        await c.a.unlink("/f")
        await c.mds.commit()
        lost = c.drop_reply(Close)
        closing = soon(file.close())
        await lost.caught()
        if committed:
            await c.mds.commit()
        await c.fail(c.mds)
        await closing
        assert not await c.a.exists("/f")
        assert not list(c.mds.target().open_handles())


async def test_the_late_copy_of_an_open_that_is_replayed_leaves_nothing_open(cluster: Any) -> None:
    """It comes when the close has been replayed, and the open's reply slot is another operation's by then.

    Seed 70001
    """
    async with cluster(clients=1) as c:
        await c.replay_barrier(c.mds)
        for number in range(60):
            await touch(c.a, f"/f{number}")
        c.net.double(Open, times=100)
        await c.fail(c.mds)
        assert await c.a.exists("/f59")
        c.saw("request.dropped", op="Open", why="a later replay has come: this one was answered")


async def test_what_the_mdt_does_not_know_to_be_open_is_not_opened_at_the_next_one(cluster: Any) -> None:
    """Its close changes nothing. Opened again it would stay so as long as the client lives, and its objects with it."""
    async with cluster(clients=1) as c:
        file = await c.a.fs.open("/f", NEW)
        await asyncio.sleep(2)  # it is durable, and on the replay list because it is open
        mdt = c.mds.target()
        mdt.open_files.remove(mdt.exports[c.a.uuid], file.handle)
        await file.close()
        await c.fail(c.mds)
        await c.settle()
        assert not c.mds.target().exports[c.a.uuid].opens
        await c.a.fs.unlink("/f")
