"""Space that OSTs promise to clients: both sides count the same through any trouble, and what was accepted finds room.

On leaving each world, and wherever `await c.check_grants()` stands, the clients' counts are compared with the OSTs'.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest
from steps import EVICTION, refused, soon

from lustrelite.errors import OpError
from lustrelite.sim.cluster import Violation
from lustrelite.wire.ost import GrantShrink, Write

KIB = 1 << 10
MIB = 1 << 20


def grant_of(client: Any, index: int = 0) -> Any:
    """What the client counts of OST `index`."""
    return client.fs.connections.lov.oscs[index].data.grant


def with_disks_of(c: Any, size: int) -> Any:
    """The world, before anybody is there, with small OSTs."""
    for server in c.oss:
        for name in server.targets:
            c.disks.object_disk(name).capacity_bytes = size
    return c


async def fill(c: Any, client: Any, path: str, piece: int = 64 * KIB) -> int:
    """Write until there is no room; how much was accepted."""
    file = await client.open(path, create=True)
    written = 0
    while True:
        try:
            await file.pwrite(bytes([1 + written // piece % 255]) * piece, written)
        except OpError as error:
            assert error.errno == errno.ENOSPC
            break
        written += piece
    await file.close()
    return written


@pytest.mark.lustre("SM 156")
async def test_a_client_that_is_evicted_in_recovery_leaves_no_grant_behind(cluster: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_156"""
    async with cluster(oss=1, clients=2) as c:
        c.expect(*EVICTION, "client.data_lost", "commit.waiting")
        ost = c.oss[0].target()
        await c.replay_barrier(c.oss[0])
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"x" * 1300 * KIB)  # more than one RPC: the first is answered, and must be replayed
        syncing = soon(file.fsync())
        await c.until(lambda: ost.last_transno > ost.last_committed and ost.grants.held)
        await c.oss[0].kill()
        held = c.net.hold(Write, to=c.oss[0], source=c.a)
        await c.oss[0].start()
        await c.until_saw("client.evicted", target=ost.name)
        held.release()
        await asyncio.wait([syncing])
        assert syncing.exception() is not None, "what was not durable is lost, and said to be"
        await c.settle()
        await c.check_grants()
        await c.b.write("/g", b"y" * MIB)
        await c.b.fs.sync()


async def test_an_idle_client_gives_back_what_it_does_not_need(cluster: Any) -> None:
    async with cluster(oss=1, clients=2, grant_shrink_interval_s=60.0) as c:
        await c.a.write("/f", b"x" * 3 * MIB)
        await c.a.fs.sync()
        ost, grant = c.oss[0].target(), grant_of(c.a)
        before, free = grant.available, (await c.b.fs.statfs()).bytes_available
        assert before > 2 * MIB
        await asyncio.sleep(130.0)
        assert grant.available == MIB == ost.grants.held[ost.exports[c.a.uuid]]
        c.saw("client.grant_shrunk")
        assert (await c.b.fs.statfs()).bytes_available >= free + before - MIB, "statfs counts what is promised as used"
        await c.check_grants()
        await c.a.write("/g", b"y" * 3 * MIB)  # and comes by more when it needs it
        await c.a.fs.sync()
        assert grant.available > MIB


@pytest.mark.parametrize("lost", ["request", "reply", "connection", "server"])
async def test_what_is_given_back_is_counted_once(cluster: Any, lost: str) -> None:
    async with cluster(oss=1, clients=1, grant_shrink_interval_s=1e6) as c:
        await c.a.write("/f", b"x" * MIB)
        await c.a.fs.sync()
        shrinker = c.a.fs.connections.lov.oscs[0].data.shrinker
        if lost in ("request", "reply"):
            rule = c.net.drop(GrantShrink, reply=lost == "reply")
        else:
            rule = c.net.hold(GrantShrink, reply=True)
        shrinker.shrink(MIB)
        await rule.caught()
        if lost == "connection":
            c.a.imports[-1].connection_failed(0, "broken by the test")
        elif lost == "server":
            await c.oss[0].kill()
            await c.oss[0].start()
        rule.lift()
        rule.release()
        await c.settle()
        assert grant_of(c.a).available == MIB
        await c.check_grants()


@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
@pytest.mark.parametrize("trouble", ["lost", "reconnect", "kill", "kill, committed"])
async def test_a_write_takes_its_grant_once(cluster: Any, trouble: str, reply: bool) -> None:
    """However often it is sent or answered.  Source: LU-2679"""
    async with cluster(oss=1, clients=2, write_back_after_s=1e6) as c:
        await c.a.write("/f", b"x" * 600 * KIB)
        rule = c.net.hold(Write, reply=reply) if trouble != "lost" else c.net.drop(Write, reply=reply, times=2)
        syncing = soon(c.a.fs.sync())
        await rule.caught()
        for turn in range(0 if trouble == "lost" else 2):
            if trouble == "reconnect":
                for imp in c.a.imports:
                    imp.connection_failed(0, "broken by the test")
                await asyncio.sleep(0.5)
            else:
                if trouble == "kill, committed":
                    await c.oss[0].commit()
                await c.oss[0].kill()
                await c.oss[0].start()
            if turn:
                rule.lift()
                rule.release()
        await syncing
        await c.settle()
        await c.check_grants()
        assert not grant_of(c.a).reserved
        assert await c.b.read("/f") == b"x" * 600 * KIB


@pytest.mark.parametrize("trouble", ["none", "kill", "power cut", "reconnect", "partition"])
async def test_a_full_ost_loses_nothing_that_was_accepted(cluster: Any, trouble: str) -> None:
    """Two clients fill the OSTs to the last promise while these fail; who is told ENOSPC is told before, never after."""
    async with with_disks_of(cluster(oss=2, clients=2), 12 * MIB) as c:
        c.expect("osp.full", "osp.refused")
        filling = [soon(fill(c, client, f"/{client.name}{i}")) for client in (c.a, c.b) for i in range(2)]
        for turn in range(4):
            await asyncio.sleep(0.05 * (turn + 1))
            server = c.oss[turn % 2]
            if trouble == "kill":
                await c.fail(server)
            elif trouble == "power cut":
                await server.power_cut()
                await server.start()
            elif trouble == "reconnect":
                for imp in [*c.a.imports, *c.b.imports]:
                    imp.connection_failed(0, "broken by the test")
            elif trouble == "partition":
                c.net.cut(c.a, server)
                await asyncio.sleep(1.0)
                c.net.heal()
        written = await asyncio.gather(*filling)
        await asyncio.gather(c.a.fs.sync(), c.b.fs.sync())
        await c.settle()
        await c.check_grants()
        assert sum(written) > 12 * MIB
        c.never_saw("client.data_lost")
        for server in c.oss:
            assert server.target().statfs().bytes_available >= 0


async def test_a_difference_between_what_both_sides_count_is_found(world: Any) -> None:
    """The check on leaving each world has eyes: a client that believes in a block more, or less, or has dirty data beyond."""
    async with world(oss=2, clients=2) as c:
        await c.a.write("/f", b"x" * 300 * KIB)
        await c.b.write("/g", b"y" * 300 * KIB)
        await c.settle()
        await c.check_grants()
        for index in (0, 1):
            grant = grant_of(c.b, index)
            for count, wrong in (("available", 4096), ("available", -4096), ("reserved", 4096)):
                setattr(grant, count, getattr(grant, count) + wrong)
                with pytest.raises(Violation, match="grants do not add up"):
                    await c.check_grants(timeout_s=0.3)
                setattr(grant, count, getattr(grant, count) - wrong)
                await c.check_grants()


async def test_what_was_accepted_finds_room_though_others_fill_holes(cluster: Any) -> None:
    """Rewriting what is there is allowed on a full OST. A hole is not there: written without a promise, it took what others
    had been promised, and their data was lost."""
    async with with_disks_of(cluster(oss=1, clients=2, write_back_after_s=1000.0), 12 * MIB) as c:
        c.disks.object_disk("lustre-OST0000").sparse = True
        sparse = await c.b.unrecorded(c.b.fs.open("/sparse", os.O_CREAT | os.O_RDWR | os.O_DSYNC, 0o644))
        await c.b.unrecorded(sparse.pwrite(b"y" * 64 * KIB, 0))
        await c.b.unrecorded(sparse.truncate(16 * MIB))
        file = await c.a.open("/f", create=True)
        accepted = 0
        while (accepted < 2 * MIB and grant_of(c.a).available > 128 * KIB) or not accepted:
            await file.pwrite(b"x" * 64 * KIB, accepted)
            accepted += 64 * KIB
        with refused(errno.ENOSPC):
            for at in range(0, 16 * MIB, 64 * KIB):
                await c.b.unrecorded(sparse.pwrite(b"z" * 64 * KIB, at))
        await c.b.unrecorded(sparse.pwrite(b"y" * 64 * KIB, 0))
        await file.fsync()
        c.never_saw("client.data_lost")
        await c.b.unrecorded(sparse.close())
        await c.b.unrecorded(c.b.fs.unlink("/sparse"))
