"""Two failures at once: a server and a server, a server and clients, clients and clients.

Source of all: lustre/tests/insanity.sh, with more asked of the end: everything that was acknowledged is there.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from steps import EVICTION, soon, touch

SIZE = 200_000
DEATH = (*EVICTION, "lock.expired", "client.data_lost")  # of a client whose locks others want, and of its cache


def data(name: str) -> bytes:
    """What is in the file of that name."""
    return random.Random(name).randbytes(SIZE)


async def prepare(c: Any) -> None:
    """Every client has a directory with files, durable, and some more, which may not be."""
    for client in living(c):
        await client.mkdir(f"/{client.name}")
        await client.write(f"/{client.name}/old", data(f"/{client.name}/old"))
        await client.unrecorded(client.fs.sync())
        await client.write(f"/{client.name}/new", data(f"/{client.name}/new"))


def living(c: Any) -> list[Any]:
    """The clients that are mounted."""
    return [client for client in c.clients.values() if client.alive]


async def works(c: Any, *lost: Any) -> None:
    """df, touch, ls and rm work, and all have what they had; of clients that died only what they had synced."""
    await c.settle()
    for client in living(c):
        _, space = await client.fs.statfs_targets()
        assert all(answer is not None for _, answer in space), "df knows every OST"
        await touch(client, f"/{client.name}.here")
        assert f"{client.name}.here" in await client.listdir("/")
        await client.unlink(f"/{client.name}.here")
        for path in (f"/{client.name}/old", f"/{client.name}/new"):
            if client not in lost:
                assert await client.read(path) == data(path), path
    for client in lost:
        assert await living(c)[0].read(f"/{client.name}/old") == data(f"/{client.name}/old")


async def die(*clients: Any) -> None:
    """Clients go without a word."""
    for client in clients:
        await client.kill()


async def both(c: Any, first: Any, second: Any) -> None:
    """Two servers go at the same time; files are written and created all the while."""
    working = [soon(client.write(f"/{client.name}/meanwhile", data(client.name))) for client in living(c)]
    await first.kill()
    await second.kill()
    await asyncio.sleep(1.0)
    await first.start()
    await asyncio.sleep(1.0)
    await second.start()
    await asyncio.gather(*working)


@pytest.mark.lustre("INS 0")
async def test_every_server_fails_one_after_the_other(world: Any) -> None:
    async with world(clients=2) as c:
        await prepare(c)
        for server in (c.mds, *c.oss):
            await c.fail(server)
            await works(c)
        c.never_saw("import.evicted")


@pytest.mark.lustre("INS 2")
async def test_the_mds_is_away_while_an_ost_fails_and_comes_back(world: Any) -> None:
    async with world(clients=2) as c:
        await prepare(c)
        await c.mds.kill()
        await c.oss[0].kill()
        creating = [soon(client.write(f"/{client.name}/meanwhile", b"x")) for client in living(c)]
        await asyncio.sleep(2.0)
        await c.oss[0].start()
        await asyncio.sleep(2.0)
        await c.mds.start()
        await asyncio.gather(*creating)
        await works(c)
        c.never_saw("import.evicted")


@pytest.mark.lustre("INS 3")
async def test_the_mds_fails_over_and_then_two_clients_die_and_return(world: Any) -> None:
    async with world(clients=4) as c:
        c.expect(*DEATH)
        await prepare(c)
        await c.replay_barrier(c.mds)
        for client in living(c):
            await touch(client, f"/{client.name}/behind")
        await c.mds.kill()
        await c.mds.start()
        await die(c.c, c.d)
        await works(c, c.c, c.d)
        for client in (c.c, c.d):
            await client.start()
        await works(c, c.c, c.d)
        c.never_saw("import.evicted", client=c.a)
        c.never_saw("import.evicted", client=c.b)


@pytest.mark.lustre("INS 4")
async def test_an_ost_fails_and_then_the_mds(world: Any) -> None:
    async with world(clients=2) as c:
        await prepare(c)
        await both(c, c.oss[0], c.mds)
        await works(c)
        c.never_saw("import.evicted")


@pytest.mark.lustre("INS 5")
@pytest.mark.parametrize("barrier", [0, 1], ids=["", "with a barrier"])
async def test_both_osts_fail_together(world: Any, barrier: int) -> None:
    async with world(clients=2) as c:
        if barrier:
            for oss in c.oss:
                await c.replay_barrier(oss)
        for client in living(c):
            await client.mkdir(f"/{client.name}")
            for name in ("old", "new"):
                await client.write(f"/{client.name}/{name}", data(f"/{client.name}/{name}"))
        await both(c, *c.oss)
        await works(c)
        c.never_saw("import.evicted")


@pytest.mark.lustre("INS 6")
async def test_an_ost_fails_and_two_clients_die(world: Any) -> None:
    async with world(clients=4) as c:
        c.expect(*DEATH)
        await prepare(c)
        await c.oss[0].kill()
        await die(c.c, c.d)
        writing = soon(c.a.write("/a/meanwhile", data("a")))
        await asyncio.sleep(1.0)
        await c.oss[0].start()
        await writing
        await works(c, c.c, c.d)
        for client in (c.c, c.d):
            await client.start()
        await works(c, c.c, c.d)
        c.never_saw("import.evicted", client=c.a)


@pytest.mark.lustre("INS 7")
async def test_the_files_of_dead_clients_are_removed_and_the_mds_fails_over(world: Any) -> None:
    async with world(clients=4) as c:
        c.expect(*DEATH)
        await prepare(c)
        await die(c.c, c.d)
        for name in "cd":
            for entry in await c.a.listdir(f"/{name}"):
                await c.a.unlink(f"/{name}/{entry}")
            await c.a.rmdir(f"/{name}")
        await c.mds.kill()
        await c.mds.start()
        for client in (c.c, c.d):
            await client.start()
        await c.settle()
        assert sorted(await c.c.listdir("/")) == ["a", "b"]
        for client in (c.c, c.d):
            await client.mkdir(f"/{client.name}")
            for name in ("old", "new"):
                await client.write(f"/{client.name}/{name}", data(f"/{client.name}/{name}"))
        await works(c)
        c.never_saw("import.evicted", client=c.a)


@pytest.mark.lustre("INS 8")
async def test_clients_die_then_an_ost_and_all_return(world: Any) -> None:
    async with world(clients=4) as c:
        c.expect(*DEATH)
        await prepare(c)
        await die(c.c, c.d)
        await c.a.write("/a/meanwhile", data("a"))
        await c.oss[0].kill()
        writing = soon(c.b.write("/b/meanwhile", data("b")))
        await asyncio.sleep(1.0)
        await c.oss[0].start()
        starting = [soon(client.start()) for client in (c.c, c.d)]
        await asyncio.gather(writing, *starting)
        await works(c, c.c, c.d)
        c.never_saw("import.evicted", client=c.a)


@pytest.mark.lustre("INS 9")
async def test_clients_die_and_others_die_and_all_return(world: Any) -> None:
    async with world(clients=5) as c:
        c.expect(*DEATH)
        await prepare(c)
        await die(c.b, c.c)
        await c.a.write("/a/one", data("a"))
        await die(c.d, c.e)
        await c.a.write("/a/two", data("a"))
        for client in (c.b, c.c, c.d, c.e):
            await client.start()
        await works(c, c.b, c.c, c.d, c.e)
        c.never_saw("import.evicted", client=c.a)


@pytest.mark.parametrize("seed_of_order", range(4))
async def test_everything_goes_in_some_order_and_comes_back_in_another(world: Any, seed_of_order: int) -> None:
    """MDS, both OSS and a client, within seconds of each other, with what they had answered and not committed."""
    chance = random.Random(seed_of_order)
    async with world(clients=3) as c:
        c.expect(*DEATH)
        for server in (c.mds, *c.oss):
            await c.replay_barrier(server)
        for client in (c.a, c.b):
            await client.mkdir(f"/{client.name}")
            for name in ("old", "new"):
                await client.write(f"/{client.name}/{name}", data(f"/{client.name}/{name}"))
        servers = [c.mds, *c.oss]
        chance.shuffle(servers)
        for server in servers:
            await server.kill()
            await asyncio.sleep(chance.random())
        await c.c.kill()
        chance.shuffle(servers)
        for server in servers:
            await server.start()
            await asyncio.sleep(2 * chance.random())
        await c.settle()
        for client in (c.a, c.b):
            for name in ("old", "new"):
                assert await client.read(f"/{client.name}/{name}") == data(f"/{client.name}/{name}")
        c.never_saw("import.evicted", client=c.a)
        c.never_saw("import.evicted", client=c.b)
