"""Objects, their files and the logs about them. Found by seeds of the OST swarm, and kept."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from lustrelite.errors import OpError


async def test_an_unlink_during_a_commit_is_carried_out_by_the_next_one(cluster):
    """The destroy log gets a record while the batch before is on its way to a slow disk. That commit is over soon and
    makes the destroyer look, too early; nobody made it look again. That the log is empty is checked on leaving.

    Source: seeds 128, 145
    """
    async with cluster(clients=1, caching=0, commit_interval_s=0.05) as c:
        await c.a.write("/f", b"data")
        await c.a.write("/g", b"data")
        await c.mds.commit()
        c.mds.slow_disk(2.0)
        await c.a.chmod("/g", 0o600)
        await asyncio.sleep(0.1)  # its commit is under way
        await c.a.unlink("/f")


async def test_a_file_that_is_removed_before_its_open_came_again_is_stale_and_leaves_nothing(cluster):
    """The open made the file, its answer is lost, somebody removes the file, and the MDS dies: recovery does not know that
    anybody has it open, and destroys it. Nobody is evicted, and no object is left.

    Source: mdt_reconstruct_open(), mdt/mdt_open.c; seeds 2014, 3814
    """
    async with cluster(clients=2, caching=0) as c:
        lost = c.drop_reply("Open")
        opened = asyncio.get_running_loop().create_task(
            c.a.unrecorded(c.a.fs.open("/f", os.O_RDWR | os.O_CREAT, 0o644))
        )
        await lost.caught()
        await c.b.unrecorded(c.b.fs.unlink("/f"))
        await c.mds.commit()
        await c.fail(c.mds)
        with pytest.raises(OpError) as caught:
            await opened
        assert caught.value.errno == errno.ESTALE
        c.never_saw("client.evicted")
        assert await c.b.listdir("/") == []


async def test_a_durable_write_does_not_come_back_over_a_truncation_that_is_lost(cluster):
    """It was in the log of the database. The file is cut or as it was, nothing in between.  Source: seed 4239"""
    async with cluster(clients=2, caching=1, stripe_count=1, commit_log_s=1.0, commit_interval_s=1000.0) as c:
        c.expect("recovery.evicting", "client.evicted", "lock.expired")
        await c.a.write("/f", b"x" * 20_000)
        await c.a.unrecorded(c.a.fs.sync())
        (index, _), *_ = (await c.a.unrecorded(c.a.fs.getstripe("/f"))).stripes
        oss = c.oss[index]
        await oss.commit()
        file = await c.a.unrecorded(c.a.fs.open("/f", os.O_RDWR))
        await c.a.unrecorded(file.pwrite(b"y" * 5000, 0))
        await c.a.unrecorded(file.fsync())
        await c.b.truncate("/f", 0)
        await c.b.kill()
        await oss.kill()
        await oss.start()
        assert (await c.a.unrecorded(file.fstat())).size in (0, 20_000)
        await c.a.unrecorded(file.close())
        await c.a.unlink("/f")
