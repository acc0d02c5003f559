"""Connects that meet, hang, get lost or are answered wrongly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from steps import EVICTION, soon

from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.request import Request
from lustrelite.wire.mgs import SetParam
from lustrelite.wire.session import Connect


async def break_connection(c: Any, client: Any, server: Any) -> None:
    """The link between them breaks, silently, for long enough that both give it up."""
    c.net.cut(client, server)
    await asyncio.sleep(20.0)
    c.net.heal()


@pytest.mark.lustre("RS 44a")
async def test_two_connects_that_meet_in_the_server_do_no_harm(world: Any) -> None:
    """Ten times.  Source: lustre/tests/replay-single.sh test_44a"""
    async with world(clients=1) as c:
        for i in range(10):
            await break_connection(c, c.a, c.mds)
            doubled = c.net.double(Connect, source=c.a, to=c.mds)
            await c.a.create(f"/f{i}")
            await doubled.caught()
            await c.settle()
            await c.a.fs.statfs()
        c.never_saw("import.evicted")


async def test_a_connect_that_is_late_does_not_undo_the_next_one(cluster: Any) -> None:
    """The client has given it up and has come again: its requests would be of a connection that the server knows no more."""
    async with cluster(clients=1) as c:
        mdt = next(imp for imp in c.a.imports if "MDT" in imp.target)
        late = c.net.hold(Connect, source=c.a, to=c.mds, times=1)
        mdt.connection_failed(0, "broken by the test")
        await late.caught()
        mdt.connection_failed(0, "broken by the test")
        await c.a.create("/f")
        late.release()
        await asyncio.sleep(1.0)
        await c.a.create("/g")
        c.saw("import.restored", client=c.a, times=1)


@pytest.mark.lustre("RS 44b")
async def test_a_server_that_sits_on_a_reconnect_is_asked_again(world: Any) -> None:
    """For two timeouts, ten times.  Source: lustre/tests/replay-single.sh test_44b"""
    async with world(clients=1) as c:
        for i in range(10):
            c.net.cut(c.a, c.mds)
            await asyncio.sleep(20.0)
            c.faults.arm("target.connect", "delay", on=c.mds, delay_s=7.0, peer=c.a.uuid)
            c.net.heal()
            await c.a.create(f"/f{i}")
            await c.settle()
            await c.a.fs.statfs()
        c.never_saw("import.evicted")


@pytest.mark.lustre("RS 50")
async def test_the_mds_recovers_its_link_to_an_ost_twice_at_once(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_50"""
    async with world(oss=1, clients=1) as c:
        for i in range(5):
            doubled = c.net.double(Connect, source=c.mds, to=c.oss[0])
            await c.oss[0].kill()
            await c.oss[0].start()
            await doubled.caught()
            await c.a.write(f"/f{i}", b"x")
        await c.settle()
        c.never_saw("import.evicted")


@pytest.mark.lustre("OST 0a")
async def test_a_mount_comes_up_although_the_first_reply_of_an_ost_is_lost(world: Any) -> None:
    """Source: lustre/tests/replay-ost-single.sh test_0a"""
    async with world(oss=1, clients=1) as c:
        lost = c.net.drop(reply=True, source=c.oss[0])
        mounting = soon(c.add_client())
        await lost.caught()
        client = await mounting
        await client.fs.statfs()
        await client.write("/f", b"x")


@pytest.mark.lustre("SM 147")
async def test_a_client_keeps_trying_while_its_connects_are_not_answered(world: Any) -> None:
    """At least six attempts in 150 s.  Source: lustre/tests/recovery-small.sh test_147"""
    async with world(oss=1, clients=1) as c:
        await c.a.write("/f", b"x")
        lost = c.net.drop(Connect, reply=True, source=c.oss[0], to=c.a, times=-1)
        await c.oss[0].kill()
        await c.oss[0].start()
        c.expect(*EVICTION, "client.data_lost")  # it cannot know what the OST had made durable
        reading = soon(c.a.read("/f"))
        async with asyncio.timeout(150.0):
            await lost.caught(6)
        lost.lift()
        assert await reading == b"x"


async def test_a_clock_that_was_set_back_does_not_bring_old_request_numbers(world: Any) -> None:
    """The first XID comes from the clock; the server knows better.  Source: protocol-facts 2"""
    async with world(clients=2) as c:
        await c.a.create("/f")
        c.b.set_clock(-3600.0)
        c.expect(*EVICTION)
        await c.b.kill()
        await c.b.start()
        await c.b.create("/g")
        await c.fail(c.mds)
        assert await c.b.listdir("/") == ["f", "g"]


async def test_a_server_that_stood_still_does_not_call_its_clients_silent(world: Any) -> None:
    """The first that is heard again is no proof that the others had nothing to say."""
    async with world(clients=4, oss=1) as c:
        c.expect(*EVICTION)  # of the MDS, at the OST
        await c.mds.pause()
        await asyncio.sleep(100)
        await c.mds.resume()
        await asyncio.sleep(30)
        c.never_saw("client.evicted", on=c.mds)


async def test_no_ping_follows_a_goodbye(world: Any) -> None:
    """A ping behind a Disconnect found no export; the client took itself for evicted. Source: a run on processes"""
    async with world(clients=1, oss=1) as c:
        await c.replay_barrier(c.mds)  # something uncommitted: the client asks often whether it is committed by now
        await c.a.create("/f")
        await asyncio.sleep(5)
        leaving = soon(c.a.unmount())
        await asyncio.sleep(3)
        assert not leaving.done()
        await c.mds.release_commits()
        await leaving
        c.never_saw("import.lost")
        c.never_saw("import.evicted")


async def test_who_leaves_before_a_server_has_let_him_in_leaves_no_record(cluster: Any) -> None:
    """The next recovery would wait for him."""
    async with cluster(clients=1, oss=1) as c:
        c.net.slow(Connect, source=c.oss[0], reply=True, delay_s=1.0)
        await c.add_client("b")
        await c.b.unmount()
        await asyncio.sleep(5.0)
        assert list(c.oss[0].target().exports) == ["lustre-MDT0000-mdtlov_UUID", c.a.uuid]


async def test_who_leaves_while_he_is_let_in_leaves_no_record(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is here, and who waits for it has not had his turn. Source: `lustrelite stat` on a busy machine"""
    received = ClientImport.reply_received
    left = []

    def leave_at_once(imp: ClientImport, request: Request, *answer: Any) -> None:
        received(imp, request, *answer)
        if type(request.body) is Connect and "OST" in imp.target:
            left.append(soon(imp.disconnect()))

    async with cluster(clients=1, oss=1) as c:
        monkeypatch.setattr(ClientImport, "reply_received", leave_at_once)
        await c.add_client("b")
        await asyncio.gather(*left)
        await c.b.unmount()
        assert left
        assert c.b.uuid not in c.oss[0].target().exports


async def test_the_mgs_hears_of_it_when_a_client_leaves(cluster: Any) -> None:
    """Else it would ask for the lock of somebody who is not there, and evict him."""
    async with cluster(clients=2, oss=1) as c:
        await c.b.unmount()
        c.saw("client.disconnected", target="MGS", client=c.b.uuid)
        await c.a.unrecorded(c.a.fs.connections.config.mgs.call(SetParam("lustre", "lustre-OST0000.osc.active", "1")))
        await asyncio.sleep(20)
        c.never_saw("lock.expired")
