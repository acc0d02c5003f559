"""How long a server waits for whom after a crash."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from steps import EVICTION, soon

from lustrelite.faults import Fault
from lustrelite.wire.mdt import Create
from lustrelite.wire.session import Ping


@pytest.mark.lustre("RS 0c")
async def test_what_is_behind_the_barrier_is_lost_with_its_client(world: Any) -> None:
    """The barrier throws work away: all other scenarios stand on it.  Source: lustre/tests/replay-single.sh test_0c"""
    async with world(clients=1) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        await c.a.kill()
        await c.mds.kill()
        await c.mds.start()
        await c.a.start()
        assert not await c.a.exists("/f")


@pytest.mark.lustre("RS 0d")
async def test_recovery_does_not_wait_for_ever_for_a_client_that_never_comes(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_0d"""
    async with world(clients=1) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        await c.a.kill()
        await c.mds.kill()
        await c.mds.start()
        mounted = await c.add_client()
        await mounted.write("/f", b"new")
        c.saw("recovery.denied", target=c.mds)
        c.saw("recovery.over", target=c.mds, completed=0, evicted=1)


@pytest.mark.lustre("RS 72")
async def test_slow_replays_meet_the_end_of_recovery(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_72 of b1_8"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        for i in range(20):
            await c.clients["ab"[i % 2]].create(f"/{i}")
        await c.mds.kill()
        c.faults.arm("target.replay", "delay", on=c.mds, keep=True, times=-1, delay_s=0.3)
        await c.mds.start()
        await c.settle()
        assert len(await c.a.listdir("/")) == 20
        c.never_saw("import.evicted")


@pytest.mark.lustre("RS 93b")
async def test_clients_stay_while_the_last_stage_of_recovery_is_held(world: Any) -> None:
    """For 80 s.  Source: lustre/tests/replay-single.sh test_93b"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/a")
        await c.b.create("/b")
        await c.mds.kill()
        c.faults.arm("target.recovery_end", "delay", on=c.mds, keep=True, delay_s=80.0)
        c.expect("client.evicted")  # of the MGS: the MDS that was killed
        await c.mds.start()
        await c.settle()
        assert await c.a.listdir("/") == ["a", "b"]
        c.never_saw("import.evicted")


@pytest.mark.lustre("RD 0a")
async def test_a_client_that_does_not_say_that_it_is_done_is_thrown_out_and_comes_back(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_0a"""
    async with world(clients=2) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        await c.b.create("/b")
        for i in range(50):
            await c.a.create(f"/a{i}")
        c.faults.arm("client.replay_done", "delay", on=c.b, delay_s=30.0)
        await c.fail(c.mds)
        c.saw("import.evicted", client=c.b)
        c.never_saw("import.evicted", client=c.a)
        for i in range(50):
            await c.a.unlink(f"/a{i}")
        await c.b.create("/back")


@pytest.mark.lustre("RD 0a")
@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
async def test_a_lost_word_that_replay_is_done_is_said_again(world: Any, reply: bool) -> None:
    """Source: signal_completed_replay(), ptlrpc/recover.c"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/a")
        await c.mds.kill()
        lost = c.net.drop(Ping, reply=reply, **{"to" if reply else "source": c.b})
        await c.mds.start()
        await lost.caught()
        await c.settle()
        assert await c.b.exists("/a")
        c.never_saw("import.evicted")


@pytest.mark.lustre("RD 0b")
async def test_both_clients_are_gone_and_new_mounts_work(world: Any) -> None:
    """One left before the crash, one in recovery.  Source: lustre/tests/replay-dual.sh test_0b"""
    async with world(clients=2) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        await c.a.create("/a")
        await c.b.create("/b")
        await c.b.kill()
        await c.mds.kill()
        await c.mds.start()
        await asyncio.sleep(2.0)
        await c.a.kill()
        await c.a.start()
        await c.b.start()
        assert not await c.a.exists("/b")
        await c.b.create("/new")


@pytest.mark.lustre("RD 16")
@pytest.mark.parametrize("after_s", [0.0, 0.1, 1.0, 5.0, 9.0, 11.0])
async def test_the_mds_fails_again_in_recovery(world: Any, after_s: float) -> None:
    """Source: lustre/tests/replay-dual.sh test_16"""
    async with world(clients=2) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        for i in range(12):
            await c.a.create(f"/a{i}")
        await c.b.create("/b")
        for i in range(12, 25):
            await c.a.create(f"/a{i}")
        await c.b.kill()
        await c.mds.kill()
        await c.mds.start()
        await asyncio.sleep(after_s)
        await c.fail(c.mds)
        assert sorted(await c.a.listdir("/")) == sorted(f"a{i}" for i in range(25))
        c.never_saw("import.evicted")


@pytest.mark.lustre("RD 20")
async def test_a_second_recovery_with_a_lost_client_takes_no_longer(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_20"""
    async with world(clients=3) as c:
        c.expect(*EVICTION)
        took = []
        for name in ("b", "c"):
            await c.a.create(f"/{name}")
            await c.clients[name].kill()
            await c.fail(c.mds)
            took.append(c.saw("recovery.over", target=c.mds)[-1].fields["duration_s"])
        assert took[1] < 1.5 * took[0]


async def test_a_client_that_comes_late_but_in_time_is_waited_for(world: Any) -> None:
    """Source: chapter 30.2.5"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/a")
        await c.b.create("/b")
        await c.b.pause()
        await c.mds.kill()
        await c.mds.start()
        settled = soon(c.settle())
        await asyncio.sleep(5.0)
        await c.b.resume()
        await settled
        assert await c.b.listdir("/") == ["a", "b"]
        c.never_saw("import.evicted")


async def test_a_replay_that_the_server_is_too_busy_for_comes_again(world: Any) -> None:
    """EBUSY is "not executed" for a replay, too: it was answered once and may not get lost."""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        await c.mds.kill()
        starting = soon(c.mds.start())
        while not c.mds.alive:
            await asyncio.sleep(0)
        c.mds.node.faults.on_message("request", "Create", Fault("error", errno=errno.EBUSY))
        await starting
        await c.settle()
        c.never_saw("import.evicted")
        assert await c.a.exists("/f")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_an_unmount_waits_for_a_server_that_lost_what_it_had_answered(world: Any, when: str) -> None:
    """Nobody else can replay it."""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        if when == "before":
            await c.mds.kill()
        leaving = soon(c.a.unmount())
        await asyncio.sleep(0.5)
        await c.mds.kill()
        await asyncio.sleep(0.5)
        await c.mds.start()
        await leaving
        await c.settle()
        assert await c.b.exists("/f")


async def test_a_long_outage_and_a_dead_client_cost_the_others_nothing_but_time(cluster: Any) -> None:
    """How long a server was away says nothing of how long its clients need to come back (30.2.5).

    Source: `lustrelite demo`, where recovery waited up to the hard limit, and then threw everybody out.
    """
    async with cluster(clients=3) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        await c.mds.kill()
        creating = soon(c.b.create("/g"))
        await c.c.kill()
        await asyncio.sleep(120)
        await c.mds.start()
        await creating
        over = c.saw("recovery.over", target=c.mds, completed=2, evicted=1)
        assert over[0].fields["duration_s"] < c.tunables.recovery_time_soft_s + 1
        assert await c.b.exists("/f")


async def test_a_client_tells_how_long_it_took_to_notice(cluster: Any) -> None:
    """That a server is silent. Source: chapter 30.2.5"""
    async with cluster(clients=2) as c:
        imp = next(imp for imp in c.a.imports if "MDT" in imp.target)
        c.net.cut(c.a, c.mds)
        creating = soon(c.a.create("/f"))
        await c.until(lambda: imp.down_since is not None)
        c.net.heal()
        await creating
        assert c.tunables.rpc_timeout_s < imp.waited_s < 4 * c.tunables.rpc_timeout_s


async def test_evictions_in_recovery_take_no_numbers_of_replays(cluster: Any) -> None:
    """They are durable at once, the replays are not: a must not take these for durable, too, and the MDS dies again."""
    async with cluster(clients=6) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        for number in range(5):
            await c.a.mkdir(f"/{number}")
        for client in list(c.clients.values())[1:]:
            await client.kill()
        await c.mds.kill()
        c.faults.arm("target.recovery_end", "delay", on=c.mds, keep=True, delay_s=60.0)
        await c.mds.start()
        await c.until(lambda: c.mds.target().recovery.window.replayed == 5)
        await asyncio.sleep(0.5)
        await c.fail(c.mds)
        assert await c.a.listdir("/") == [str(number) for number in range(5)]


async def test_who_replays_is_given_time_for_a_replay_that_is_lost(cluster: Any) -> None:
    """It comes again after a timeout, which is longer here than recovery waits for who has nothing to say."""
    async with cluster(clients=1, rpc_timeout_s=5.0, recovery_time_soft_s=3.0, recovery_time_hard_s=60.0) as c:
        await c.replay_barrier(c.mds)
        for number in range(4):
            await c.a.mkdir(f"/{number}")
        await c.mds.kill()
        lost = c.net.drop(Create, source=c.a, to=c.mds, skip=1)
        await c.fail(c.mds)
        await lost.caught()
        assert await c.a.listdir("/") == [str(number) for number in range(4)]
