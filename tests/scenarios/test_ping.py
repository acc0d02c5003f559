"""Pings: an idle client stays known by them, and one that is not heard any more is thrown out in time."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from steps import EVICTION, refused, soon

from lustrelite.faults import Fault
from lustrelite.wire.session import Ping


def in_time_s(c: Any) -> float:
    """How long a silent client may stay at most: the limit, and a quarter of it between two looks."""
    return float(c.tunables.evict_silent_s * 1.25 + c.tunables.ping_interval_s)


async def clients_of(c: Any) -> list[str]:
    """UUIDs of the clients that any server knows, once for each target."""
    rows = [row for server in (c.mds, *c.oss) for row in (await server.status()).values()]
    return [uuid for row in rows for uuid in row["clients"]]


@pytest.mark.lustre("RS 200")
@pytest.mark.parametrize("caching", [0, 1])
@pytest.mark.parametrize("late", [False, True], ids=["lost", "late"])
async def test_a_ping_that_does_not_arrive_in_time_is_sent_again_over_the_same_connection(
    world: Any, late: bool, caching: int
) -> None:
    """Source: lustre/tests/replay-single.sh test_200"""
    async with world(clients=1, caching=caching) as c:
        await c.a.write("/f", b"x")
        await c.a.read("/f")
        await c.settle()
        for server in (c.mds, *c.oss):
            if late:
                caught = c.net.slow(Ping, delay_s=1.5 * c.tunables.rpc_timeout_s, source=c.a, to=server)
            else:
                caught = c.net.drop(Ping, source=c.a, to=server)
            await caught.caught()
            await c.until_saw("import.resent", on=c.a, op="Ping", target=server)
        await asyncio.sleep(2 * c.tunables.rpc_timeout_s)
        c.saw("import.resent", on=c.a, times=1 + len(c.oss))
        c.never_saw("import.lost")
        c.never_saw("client.evicted")


@pytest.mark.lustre("SM 26a")
@pytest.mark.parametrize("caching", [0, 1])
async def test_a_client_that_sends_nothing_is_evicted_by_all_and_comes_back(world: Any, caching: int) -> None:
    """Its connections live, the others are heard.  Source: lustre/tests/recovery-small.sh test_26a"""
    async with world(caching=caching) as c:
        c.expect(*EVICTION)
        await c.a.write("/f", b"old")
        await c.a.fs.sync()
        before = sorted(await clients_of(c))
        began = c.loop.time()
        c.a.node.faults.on_message("send", "*", Fault("drop", times=-1))
        for server in (c.mds, *c.oss):
            await c.until_saw("client.evicted", client=c.a, on=server)
        assert c.tunables.evict_silent_s <= c.loop.time() - began <= in_time_s(c)
        assert all(e.fields["why"].startswith("silent for") for e in c.saw("client.evicted", client=c.a))
        await c.b.write("/f", b"new")
        reading = soon(c.a.read("/f"))  # it does not know yet
        await asyncio.sleep(c.tunables.rpc_timeout_s)
        assert not reading.done()
        c.a.node.faults.clear()
        with refused(errno.EIO):
            await reading
        await c.settle()
        for server in (c.mds, *c.oss):
            c.saw("import.evicted", on=c.a, target=server, times=1)
        assert await c.a.read("/f") == b"new"
        assert sorted(await clients_of(c)) == before


@pytest.mark.lustre("SM 26b")
@pytest.mark.parametrize("silent", [False, True], ids=["kill -9", "power cut"])
async def test_a_client_that_ended_without_a_goodbye_is_forgotten_in_time(cluster: Any, silent: bool) -> None:
    """Also with locks: nobody wants them.  Source: lustre/tests/recovery-small.sh test_26b"""
    async with cluster(caching=1) as c:
        c.expect(*EVICTION)
        await c.a.write("/f", b"x" * 100_000)
        await c.a.open("/f")
        uuid = c.a.uuid
        assert (await clients_of(c)).count(uuid) == 3
        began = c.loop.time()
        await c.a.kill(silent=silent)
        for server in (c.mds, *c.oss):
            await c.until_saw("client.evicted", client=uuid, on=server)
        assert c.tunables.evict_silent_s <= c.loop.time() - began <= in_time_s(c)
        assert uuid not in await clients_of(c)
        for server in (c.mds, *c.oss):  # as soon as that is durable
            await server.commit()
            assert not [lock for lock in server.target().namespace.table.locks() if lock.owner.uuid == uuid]
        assert not list(c.mds.target().open_handles())
        await c.b.write("/f", b"new")


@pytest.mark.parametrize("caching", [0, 1])
async def test_an_idle_client_pings_every_interval_and_servers_do_not_take_peace_for_an_absence(
    cluster: Any, caching: int
) -> None:
    """Source: ptlrpc_pinger_main()"""
    async with cluster(clients=1, caching=caching) as c:
        await c.a.listdir("/")
        await c.settle()
        before = {imp.target: imp.calls.get("Ping", 0) for imp in c.a.imports}
        intervals = 10
        await asyncio.sleep(intervals * c.tunables.ping_interval_s)
        for imp in c.a.imports:
            assert intervals - 1 <= imp.calls["Ping"] - before[imp.target] <= 1.2 * intervals, imp.target
        await c.a.unmount()
        await asyncio.sleep(intervals * c.tunables.ping_interval_s)
        b = await c.add_client()
        await b.listdir("/")
        c.never_saw("service.absent")


async def test_nobody_is_evicted_while_nobody_is_heard(cluster: Any) -> None:
    """It is the network then, not they.  Source: ping_evictor_main()"""
    async with cluster(clients=2) as c:
        for client in (c.a, c.b):
            c.net.cut(client, c.mds)
        await asyncio.sleep(3 * c.tunables.evict_silent_s)
        c.net.heal()
        await c.settle()
        c.never_saw("client.evicted")
