"""Failover pairs: a standby on the same directories takes over when the owner is dead, and clients go on there.

Source: chapter 30.1.3, 30.1.4; the standby's lock on the directory is target/ownership.py.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from steps import contents, soon

from lustrelite.wire.ost import Write

MIB = 1 << 20


def data(name: str, size: int = MIB) -> bytes:
    """What is in the file of that name."""
    return random.Random(name).randbytes(size)


def server_of(c: Any, kind: str) -> Any:
    """The first of a pair."""
    return c.mds if kind == "mds" else c.oss[0]


@pytest.mark.parametrize("kind", ["oss", "mds"])
async def test_the_standby_takes_over_and_clients_resume(world: Any, kind: str) -> None:
    """With what was answered and not committed, and with what was under way."""
    async with world(clients=2, oss=1, pairs=True) as c:
        server = server_of(c, kind)
        await c.replay_barrier(server)
        await c.a.write("/before", data("before"))
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        writing = soon(c.b.write("/meanwhile", data("meanwhile")))
        await server.kill()
        await writing
        await c.settle()
        c.saw("target.standby", on=server.partner)
        c.saw("recovery.over", on=server.partner, target=server, evicted=0)
        assert await contents(c.b, ["/before", "/meanwhile"]) == [data("before"), data("meanwhile")]
        assert not server.alive
        c.never_saw("import.evicted")


async def test_takeover_goes_to_and_fro(world: Any) -> None:
    """Who was dead comes back as the standby of the other."""
    async with world(clients=2, oss=1, pairs=True) as c:
        owner, standby = c.oss[0], c.oss[0].partner
        for number in range(4):
            await c.a.write(f"/{number}", data(str(number)))
            await owner.kill()
            assert await c.b.read(f"/{number}") == data(str(number))
            await owner.start()  # waits
            await c.settle()
            owner, standby = standby, owner
        c.never_saw("import.evicted")


async def test_nobody_takes_over_from_an_owner_that_is_only_silent(world: Any) -> None:
    """It has to be killed first (STONITH): two writers on one disk are never safe."""
    async with world(clients=2, oss=1, pairs=True) as c:
        owner = c.oss[0]
        await c.a.write("/f", data("f"))
        await c.a.unrecorded(c.a.fs.sync())
        await owner.pause()
        reading = soon(c.b.read("/f"))
        await asyncio.sleep(3 * c.tunables.rpc_timeout_s)
        assert not reading.done()
        c.never_saw("recovery.started", on=owner.partner)
        await owner.kill()
        assert await reading == data("f")
        c.saw("recovery.over", on=owner.partner)


@pytest.mark.parametrize("kind", ["oss", "mds"])
async def test_an_owner_that_is_stopped_hands_over(world: Any, kind: str) -> None:
    """The administrator's way: a plain stop keeps the clients' records, and the other one recovers with them."""
    async with world(clients=2, oss=1, pairs=True) as c:
        server = server_of(c, kind)
        await c.a.write("/f", data("f"))
        await server.stop()
        assert await c.b.read("/f") == data("f")
        await c.a.write("/g", data("g"))
        await c.settle()
        c.saw("recovery.over", on=server.partner, evicted=0)
        c.never_saw("import.evicted")


async def test_an_mds_and_an_oss_are_taken_over_at_once(world: Any) -> None:
    async with world(clients=2, oss=2, pairs=True) as c:
        for server in (c.mds, c.oss[0]):
            await c.replay_barrier(server)
        for number in range(4):
            await c.a.write(f"/{number}", data(str(number)))
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        await c.mds.kill()
        await c.oss[0].kill()
        await c.b.write("/new", b"new")
        assert await contents(c.b, [f"/{number}" for number in range(4)]) == [data(str(n)) for n in range(4)]
        await c.settle()
        c.never_saw("import.evicted")


async def test_clients_find_the_standby_without_the_mgs(world: Any) -> None:
    """They know both addresses since they have mounted."""
    async with world(clients=2, oss=1, pairs=True) as c:
        await c.a.write("/f", data("f"))
        await c.a.unrecorded(c.a.fs.sync())
        await c.mgs.kill()
        await c.oss[0].kill()
        assert await c.b.read("/f") == data("f")
        await c.mgs.start()
        await c.settle()
        c.never_saw("import.evicted", target=c.oss[0])


@pytest.mark.parametrize("pairs", [True, False])
async def test_an_mds_that_comes_up_without_the_mgs_goes_to_the_osts_where_they_were(world: Any, pairs: bool) -> None:
    """Source: the copy of its configuration log that a Lustre server keeps"""
    async with world(clients=2, oss=2, pairs=pairs) as c:
        await c.a.write("/f", data("f"))
        await c.settle()
        await c.mgs.kill()
        await c.mds.kill()
        if not pairs:
            await c.mds.start()
        await c.b.write("/new", data("new"))
        assert await c.a.read("/new") == data("new")
        await c.b.unlink("/f")
        await c.mgs.start()
        await c.settle()
        c.never_saw("import.evicted")


async def test_a_standby_dies_in_the_recovery_and_the_first_is_back(world: Any) -> None:
    async with world(clients=2, oss=1, pairs=True) as c:
        await c.replay_barrier(c.oss[0])
        await c.a.write("/f", data("f", 3 * MIB))
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        owner, standby = c.oss[0], c.oss[0].partner
        c.faults.arm("target.replay", "delay", on=standby, delay_s=2.0, times=-1)
        await owner.kill()
        await c.until_saw("recovery.started", on=standby)
        await asyncio.sleep(1.0)
        await standby.kill()
        await owner.start()
        await c.settle()
        assert await c.b.read("/f") == data("f", 3 * MIB)
        c.never_saw("import.evicted")


async def test_writers_bear_with_a_pair_that_fails_over_again_and_again(world: Any) -> None:
    async with world(clients=2, oss=1, pairs=True) as c:
        stop = False
        written: dict[str, int] = {}

        async def work(client: Any) -> None:
            number = 0
            while not stop or number < 3:
                await client.write(f"/{client.name}{number % 3}", data(f"{number}", 300_000))
                assert await client.read(f"/{client.name}{number % 3}") == data(f"{number}", 300_000)
                number += 1
                await asyncio.sleep(0.1)
            written[client.name] = number

        working = [soon(work(client)) for client in (c.a, c.b)]
        owner, standby = c.oss[0], c.oss[0].partner
        for _ in range(4):
            await asyncio.sleep(0.4)
            await owner.kill()
            await asyncio.sleep(0.8)
            await owner.start()
            owner, standby = standby, owner
        stop = True
        await asyncio.gather(*working)
        c.never_saw("import.evicted")
        assert min(written.values()) >= 3


async def test_data_under_way_to_a_dead_owner_arrives_once_at_the_standby(world: Any) -> None:
    async with world(clients=2, oss=1, pairs=True) as c:
        slow = c.net.slow(Write, to=c.oss[0], delay_s=0.5, times=-1)
        writing = soon(c.a.write("/f", data("f", 2 * MIB)))
        await slow.caught(1)
        await c.oss[0].kill()
        await writing
        await c.a.write_at("/f", 1000, b"later" * 1000)
        assert await c.b.read("/f") == data("f", 2 * MIB)[:1000] + b"later" * 1000 + data("f", 2 * MIB)[6000:]
        c.never_saw("import.evicted")


async def test_clients_leave_a_machine_that_is_gone_for_the_one_that_the_mgs_names(cluster: Any) -> None:
    """Nobody closes their connections; a request that is under way is sent again there at once."""
    async with cluster(clients=2, oss=1, pairs=True, rpc_timeout_s=20.0, connect_timeout_s=15.0) as c:
        await c.a.write("/f", data("f"))
        await c.a.unrecorded(c.a.fs.sync())
        began = c.loop.time()
        await c.oss[0].kill(silent=True)
        assert await c.b.read("/f") == data("f")
        assert c.loop.time() - began < 5
        c.never_saw("import.evicted", target=c.oss[0])


@pytest.mark.parametrize("run", range(8))
async def test_pairs_under_random_fire(cluster: Any, run: int) -> None:
    """Any server of any pair is killed, silently or not, stopped, stood still or cut from the MGS while files are changed."""
    chance = random.Random(run)
    async with cluster(clients=2, oss=2, pairs=True, caching=run % 2) as c:
        stop = False

        async def work(client: Any) -> None:
            number = 0
            await client.mkdir(f"/{client.name}")
            while not stop or number < 5:
                path = f"/{client.name}/{number % 4}"
                size = chance.choice((10, 70_000, 300_000))
                await client.write(path, data(f"{number}", size))
                await client.write_at(path, size // 2, b"again" * 3)
                if chance.random() < 0.3:
                    await client.rename(path, f"/{client.name}/moved{number % 3}")
                elif chance.random() < 0.3:
                    await client.unlink(path)
                elif chance.random() < 0.5:
                    await client.read(path)
                number += 1
                await asyncio.sleep(chance.uniform(0, 0.2))

        working = [soon(work(client)) for client in (c.a, c.b)]
        pairs = [(server, server.partner) for server in (c.mds, *c.oss)]
        for _ in range(6):
            await asyncio.sleep(chance.uniform(0, 2))
            pair = chance.choice(pairs)
            server = chance.choice(pair)
            act = chance.choice(("kill", "kill", "power", "stop", "pause", "barrier"))
            if not server.alive:
                await server.start()
            elif act == "kill" or (act == "power" and not server.running):
                await server.kill(silent=chance.random() < 0.3)
            elif act == "power":
                await server.power_cut()
            elif act == "stop":
                await server.stop()
            elif act == "barrier":
                await server.hold_commits()
                await asyncio.sleep(chance.uniform(0, 0.3))
                await server.kill()
            else:
                await server.pause()
                await asyncio.sleep(chance.uniform(0, 6))
                await server.resume()
            if not any(one.alive for one in pair):
                await asyncio.sleep(chance.uniform(0, 3))
                await chance.choice(pair).start()
        stop = True
        for pair in pairs:
            if not any(one.alive for one in pair):
                await pair[0].start()
        await asyncio.gather(*working)
        await c.settle()
        c.never_saw("import.evicted")
