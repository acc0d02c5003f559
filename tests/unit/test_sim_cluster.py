"""The simulated cluster keeps its promises to the tests: what goes wrong in it does not go unnoticed."""

from __future__ import annotations

import asyncio

import pytest

from lustrelite.errors import OpError
from lustrelite.sim.cluster import Violation
from lustrelite.sim.processes import NodeDied
from lustrelite.store import schema
from lustrelite.wire.mdt import Create


async def test_what_was_acknowledged_survives_the_death_of_every_server(cluster):
    async with cluster(mds=1, oss=2, clients=2) as c:
        await c.replay_barrier(c.mds)
        await c.a.mkdir("/d")
        await c.a.write("/d/f", b"x" * 100_000)
        await c.fail(c.mds)
        assert await c.b.read("/d/f") == b"x" * 100_000
        c.saw("import.replayed", client=c.a)
        c.never_saw("import.replayed", client=c.b)
        for oss in c.oss:
            await c.fail(oss)
        await c.fail(c.mgs)
        assert await c.b.listdir("/d") == ["f"]
        assert "replay.executed" in c.transcript("replay")


async def test_a_lost_reply_is_reconstructed(cluster):
    async with cluster(mds=1, oss=1, clients=1) as c:
        c.drop_reply(Create)
        await c.a.create("/f")
        c.saw("reply.reconstructed", times=1)


async def test_a_held_request_waits_and_others_go_on(cluster):
    async with cluster(mds=1, oss=1, clients=2) as c:
        held = c.net.hold(Create, to=c.mds, source=c.a, times=1)
        creating = asyncio.ensure_future(c.a.create("/f"))
        await held.caught()
        await c.b.create("/g")
        assert not await c.b.exists("/f")
        held.release()
        await creating
        assert await c.b.exists("/f")


TROUBLES = {
    "none": lambda c: None,
    "another client is away": lambda c: c.b.pause(),
    "another OST is away": lambda c: c.oss[1].pause(),
    "they are cut off": lambda c: c.net.cut(c.a, c.oss[0]),
    "its OST stands still": lambda c: c.oss[0].pause(),
    "its OST is dead": lambda c: c.oss[0].kill(),
    "a link broke": lambda c: c.net.break_links(c.oss[0]),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("after_s", [0.0, 7.0, 9.0])
async def test_a_promise_is_forsaken_only_for_a_trouble(cluster, trouble, after_s):
    """Which may be over; but no longer than a lock may be asked for."""
    async with cluster(clients=2) as c:
        TROUBLES[trouble](c)
        await asyncio.sleep(1)
        if after_s:
            await c.recover()
            await asyncio.sleep(after_s)
        c.a.node.events.emit("lock.forsaken", target=c.oss[0].targets[0], handle=1, resource="")
        excused = not c.troubles.unjust
        c.troubles.unjust.clear()
        at_fault = trouble in ("they are cut off", "its OST stands still", "its OST is dead", "a link broke")
        assert excused == (at_fault and after_s < 8)
        await c.recover()


async def test_a_server_may_be_killed_while_it_starts(cluster):
    """Seed 7720468 of the OST swarm."""
    async with cluster(mds=1, oss=1, clients=1) as c:
        await c.a.write("/f", b"kept")
        c.oss[0].kill()
        killed = 0
        for step in range(1, 100):
            start = asyncio.ensure_future(c.oss[0].start())
            await asyncio.sleep(step * 5e-6)
            if start.done():
                break
            c.oss[0].kill()
            with pytest.raises(NodeDied):
                await start
            killed += 1
        assert start.done() and killed > 5
        await start
        await c.recover()
        assert await c.a.read("/f") == b"kept"


async def test_who_is_dead_cannot_be_paused(cluster):
    """What is left of it ends, instead of waiting for a SIGCONT that another process gets."""
    async with cluster() as c:
        node = c.oss[0].node
        c.oss[0].kill()
        node.pause()
        await c.oss[0].start()
        await asyncio.sleep(1)
        assert not list(node.tasks)
        await c.settle()


async def test_a_paused_server_answers_when_it_goes_on(cluster):
    async with cluster(mds=1, oss=1, clients=1) as c:
        await c.mds.pause()
        creating = asyncio.ensure_future(c.a.create("/f"))
        await asyncio.sleep(3)
        assert not creating.done()
        await c.mds.resume()
        await creating


async def test_a_dead_client_does_nothing_any_more(cluster):
    async with cluster(mds=1, oss=1, clients=2) as c:
        await c.mds.pause()
        creating = asyncio.ensure_future(c.a.create("/f"))
        await asyncio.sleep(0.1)
        await c.a.kill()
        with pytest.raises(NodeDied):
            await creating
        await c.mds.resume()
        with pytest.raises(NodeDied):
            await c.a.create("/g")
        assert not await c.b.exists("/g")


async def test_an_eviction_is_noticed(cluster):
    async with cluster(mds=1, oss=1, clients=2) as c:
        await c.evict(c.a)
        c.saw("client.evicted", client=c.a, target=c.mds)
        with pytest.raises(OpError):
            for _ in range(3):
                await c.a.create("/f")
                await asyncio.sleep(10)
        c.saw("import.evicted", on=c.a)
        await c.b.create("/g")


async def test_a_client_that_stays_away_loses_what_was_not_durable_and_nobody_else(cluster):
    async with cluster(mds=1, oss=1, clients=2) as c:
        await c.replay_barrier(c.mds)
        await c.a.mkdir("/a")
        await c.b.mkdir("/b")
        await c.a.kill()
        await c.fail(c.mds)
        assert not await c.b.exists("/a")
        assert await c.b.exists("/b")
        c.expect("recovery.evicting", "client.evicted")


async def test_a_power_cut_spares_what_was_answered(cluster):
    async with cluster(mds=1, oss=2, clients=1) as c:
        await c.a.write("/f", b"x" * 300_000)
        for oss in c.oss:
            await oss.power_cut()
            await oss.start()
        assert await c.a.read("/f") == b"x" * 300_000


async def refuse(cluster, match, harm, *, expect=()):
    with pytest.raises(Violation, match=match):
        async with cluster(mds=1, oss=1, clients=1) as c:
            await c.a.write("/f", b"x" * 10)
            await c.a.mkdir("/d")
            await harm(c)
            c.expect(*expect)


async def test_a_lost_name_is_a_violation(cluster):
    async def harm(c):
        store = c.mds.target().store
        key = next(key for key, _ in store.scan(schema.NAMES))
        store.apply({(schema.NAMES, key): None})

    await refuse(cluster, "the oracle says", harm)


async def test_changed_data_is_a_violation(cluster):
    async def harm(c):
        await c.a.fs.sync()
        disk = c.disks.object_disk("lustre-OST0000")
        next(iter(disk.files.values()))[3] ^= 1

    await refuse(cluster, "content is", harm)


async def test_a_forgotten_object_is_a_violation(cluster):
    async def harm(c):
        c.net.cut(c.mds, c.oss[0])
        await c.a.unlink("/f")
        store = c.mds.target().store
        store.apply({(schema.OST_LOG, key): None for key, _ in store.scan(schema.OST_LOG)})

    await refuse(cluster, "fsck says", harm)


async def test_a_file_that_cannot_be_read_is_a_violation(cluster):
    async def harm(c):
        store = c.oss[0].target().store
        store.apply({(schema.OBJECTS, schema.object_key(1)): None})

    await refuse(cluster, "cannot be read", harm)


async def test_a_crash_is_a_violation(cluster):
    async def harm(c):
        async def bug():
            raise ZeroDivisionError

        c.mds.node.spawn(bug(), "bug")
        await asyncio.sleep(1)

    await refuse(cluster, "mds crashed.*ZeroDivisionError", harm)


async def test_a_task_that_does_not_end_is_a_violation(cluster):
    async def harm(c):
        async def stubborn():
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    pass

        c.mds.node.spawn(stubborn(), "stubborn")
        await asyncio.sleep(1)

    await refuse(cluster, "tasks are left: mds:stubborn", harm)


async def test_an_unexpected_warning_is_a_violation(cluster):
    async def harm(c):
        c.mds.node.events.emit("test.warned", level="warning")

    await refuse(cluster, "unexpected warnings:\n.*test.warned", harm)
    async with cluster(mds=1, oss=1, clients=1) as c:
        await harm(c)
        c.expect("test.warned")


async def test_names_of_messages_are_checked_by_the_faults(cluster):
    async with cluster(mds=1, oss=1, clients=1) as c:
        with pytest.raises(AssertionError, match="no fault point"):
            c.faults.arm("mdt.nonsense", "drop")
        await c.a.mkdir("/d")
        c.faults.arm("target.execute", "crash", on=c.mds)
        creating = asyncio.ensure_future(c.a.create("/d/f"))
        await asyncio.sleep(1)
        assert not c.mds.alive
        await c.mds.start()
        await creating


async def test_a_server_whose_start_is_given_up_is_dead(cluster):
    """The nemesis was stopped while it started one: it was for ever about to run (seed 10600048)."""
    async with cluster(oss=1, clients=1) as c:
        starting = asyncio.get_running_loop().create_task(c.add_oss(1))
        for _ in range(3):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled() and not c.oss[1].alive
        await c.recover()
        await c.settle()
        assert c.oss[1].running
