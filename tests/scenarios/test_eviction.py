"""Clients that a server has thrown out: what they lose, what they hear of it, and that they go on as if new.

Who evicts for which lock is in test_lock_callbacks.py, who for silence in test_ping.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import stat
from collections.abc import Coroutine
from typing import Any

import pytest
from steps import EVICTION, refused, soon
from test_lock_callbacks import CHANGED, EXPIRED, KINDS, agree, change, deafen, evicted_for, hold, look

from lustrelite.errors import Deactivated, Evicted, OpError
from lustrelite.server_params import evict_client, parameters
from lustrelite.store import schema
from lustrelite.wire.mdt import Create, Open
from lustrelite.wire.ost import Write
from lustrelite.wire.session import Connect

LOSS = (*EVICTION, "client.data_lost")
MIB = 1 << 20


def ost_import(client: Any, index: int = 0) -> Any:
    """The client's connection to an OST."""
    return client.fs.connections.imports[f"lustre-OST{index:04x}"]


def cached_bytes(client: Any, index: int = 0) -> int:
    """What the client has in its pages of an OST's objects."""
    objects = client.fs.connections.lov.oscs[index].data.objects.values()
    return sum(high - low for cached in objects for low, high in cached.pages.valid.within(0, 1 << 62))


async def evicted_by(c: Any, server: Any) -> None:
    """The administrator evicts a; return when it has heard of it and is back."""
    await c.evict(c.a, server)
    await c.until_saw("import.evicted", on=c.a, target=server)
    await c.settle()


# by the MDS ----------------------------------------------------------------------------------------------------------


@pytest.mark.lustre("RS 20b")
@pytest.mark.parametrize("crash", [True, False])
@pytest.mark.parametrize("caching", [0, 1])
async def test_a_file_without_a_name_goes_with_the_client_that_had_it_open(
    cluster: Any, caching: int, crash: bool
) -> None:
    """Its space too, whether the MDS crashes or not.  Source: lustre/tests/replay-single.sh test_20b"""
    async with cluster(oss=1, caching=caching) as c:
        c.expect(*LOSS)
        ost, mdt = c.oss[0].target(), c.mds.target()
        free = (await c.b.fs.statfs()).bytes_free
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"x" * 2 * MIB, 0)
        await file.fsync()
        ((_, number),) = file.file.layout.stripes
        writing = soon(write_on(file))
        await c.a.unlink("/f")
        assert ost.files.size(number) >= 2 * MIB and mdt.store.count(schema.ORPHANS) == 1
        await c.evict(c.a)
        await c.mds.commit()
        if crash:
            await c.fail(c.mds)
        await c.until(lambda: number not in list(ost.files.ids()))
        await writing
        await c.until_saw("import.evicted", on=c.a, target=c.mds)
        await file.close()
        await c.oss[0].commit()
        assert (await c.b.fs.statfs()).bytes_free == free
        assert not c.mds.target().store.count(schema.ORPHANS) and await c.b.listdir("/") == []


async def write_on(file: Any) -> None:
    """As a program that goes on writing, whatever it hears."""
    for number in range(2, 6):
        try:
            await file.client.unrecorded(file.file.pwrite(b"y" * MIB, number * MIB))
        except OpError as error:
            assert error.errno in (errno.EIO, errno.ESTALE)
            return


@pytest.mark.lustre("RS 20c")
@pytest.mark.parametrize("caching", [0, 1])
async def test_a_client_that_the_mds_has_evicted_does_not_cut_its_file_short(world: Any, caching: int) -> None:
    """Its data is the OSTs' business.  Source: lustre/tests/replay-single.sh test_20c"""
    async with world(caching=caching) as c:
        c.expect(*EVICTION)
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"x" * 100_000, 0)
        await evicted_by(c, c.mds)
        await file.close()
        for client in (c.a, c.b):
            assert (await client.stat("/f")).size == 100_000
            assert await client.read("/f") == b"x" * 100_000
        c.never_saw("import.evicted", target=c.oss[0])


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("caching", [0, 1])
async def test_a_file_that_was_removed_under_a_client_that_the_mds_has_evicted_is_stale(
    world: Any, caching: int, written: bool
) -> None:
    """Not ENOENT, which no read(2) says: also of a file that never had objects."""
    async with world(caching=caching) as c:
        c.expect(*LOSS)
        file = await c.a.open("/f", create=True)
        if written:
            await file.pwrite(b"x", 0)
            await file.fsync()
        await c.b.unlink("/f")
        await evicted_by(c, c.mds)
        with refused(errno.ESTALE):
            await file.pread()
        with contextlib.suppress(OpError):
            await file.close()


@pytest.mark.lustre("RS 32")
@pytest.mark.parametrize("caching", [0, 1])
async def test_closes_of_files_that_the_mds_has_closed_succeed(world: Any, caching: int) -> None:
    """Source: lustre/tests/replay-single.sh test_32"""
    async with world(caching=caching) as c:
        c.expect(*EVICTION)
        await c.a.write("/f", b"x")
        files = [await c.a.open("/f"), await c.a.open("/f")]
        await evicted_by(c, c.mds)
        for file in files:
            await file.close()
        assert await c.a.read("/f") == b"x"


@pytest.mark.lustre("SM 28")
async def test_a_client_whose_new_record_cannot_be_written_gets_in_at_the_next_try(cluster: Any) -> None:
    """And the records can be read after a crash.  Source: lustre/tests/recovery-small.sh test_28"""
    async with cluster(oss=1, caching=1) as c:
        c.expect(*EXPIRED)
        await hold(c, "names")
        deafen(c, c.mds, times=-1)
        refuse = c.faults.arm("target.client_new", "error", on=c.mds, errno=errno.EOVERFLOW, peer=c.a.uuid)
        await change(c, "names")
        await c.until_saw("import.evicted", on=c.a, target=c.mds)
        await c.settle()
        assert not refuse.times
        evicted_for(c, "lock callback timer expired", c.mds)
        c.faults.clear()
        await c.a.create("/g")
        await c.fail(c.mds)
        (row,) = (await c.mds.status()).values()
        assert sorted(row["clients"]) == sorted([c.a.uuid, c.b.uuid])
        await agree(c, "names")
        assert await c.b.exists("/g")
        c.saw("import.evicted", times=1)


@pytest.mark.lustre("SM 58")
@pytest.mark.parametrize("heard", [False, True])
async def test_a_client_is_evicted_while_the_answer_to_its_open_is_on_the_way(cluster: Any, heard: bool) -> None:
    """If it has heard of the eviction the open fails, else the handle is void. Source: recovery-small.sh test_58"""
    async with cluster(oss=1, caching=1) as c:
        c.expect(*EXPIRED)
        await c.a.write("/g", b"x")
        await hold(c, "names")
        deafen(c, c.mds, times=-1)
        changing = soon(change(c, "names"))
        await c.until_saw("lock.asked", client=c.a, on=c.mds)
        await asyncio.sleep(c.tunables.lock_callback_s - 0.5)
        late = c.net.hold(Open, reply=True, to=c.a)
        opening = soon(c.a.open("/g"))
        await late.caught()
        await c.until_saw("client.evicted", client=c.a, on=c.mds)
        c.faults.clear()
        if heard:
            c.net.break_links(c.a, c.mds)
            with pytest.raises(Evicted):
                await opening
            late.release()
        else:
            late.release()
            file = await opening
            assert not list(c.mds.target().open_handles())
            await c.until_saw("import.evicted", on=c.a, target=c.mds)
            await file.close()
        await c.a.fs.statfs()
        await changing
        evicted_for(c, "lock callback timer expired", c.mds)
        await c.settle()
        file = await c.a.open("/g")
        assert await file.pread() == b"x"
        await file.close()
        await agree(c, "names")


@pytest.mark.lustre("SM 67")
@pytest.mark.parametrize("when", ["connect", "reply", "invalidate"])
@pytest.mark.parametrize("caching", [0, 1])
async def test_a_client_that_is_evicted_while_it_connects_comes_back(cluster: Any, when: str, caching: int) -> None:
    """While the request, or the answer, is on its way, or while it cleans up. Source: recovery-small.sh test_67"""
    async with cluster(oss=1, caching=caching) as c:
        c.expect(*LOSS)
        await c.a.write("/f", b"x")
        await c.a.fs.sync()
        (server,) = c.oss
        if when == "invalidate":
            imp = ost_import(c.a)
            imp.on_evicted.insert(0, lambda: imp.connection_failed(0, "broken while it cleans up"))
            await c.evict(c.a, server)
        else:
            if when == "connect":
                held = c.net.hold(Connect, to=server, times=1)
            else:
                held = c.net.hold(Connect, source=server, reply=True, times=1)
            c.net.break_links(c.a, server)
            await held.caught()
            await c.evict(c.a, server)
            held.release()
        await c.until_saw("import.evicted", on=c.a, target=server)
        await c.settle()
        assert await c.a.read("/f") == b"x"
        await c.a.write("/f", b"new")
        assert await c.b.read("/f") == b"new"
        assert list(server.target().exports).count(c.a.uuid) == 1
        c.saw("client.evicted", client=c.a, times=1)


# by an OST -----------------------------------------------------------------------------------------------------------


async def one_on_each(c: Any) -> list[str]:
    """Files of a, one on each OST, cached and clean."""
    paths: dict[int, str] = {}
    for number in range(20):
        path = f"/f{number}"
        file = await c.a.open(path, create=True)
        ((index, _),) = file.file.layout.stripes if file.file.layout is not None else ((-1, 0),)
        await file.pwrite(b"x" * 50_000)
        await file.fsync()
        await file.close()
        ((index, _),) = file.file.layout.stripes
        paths.setdefault(index, path)
        if len(paths) == len(c.oss):
            break
    return [paths[index] for index in range(len(c.oss))]


@pytest.mark.lustre("SM 18a")
async def test_a_connection_that_is_switched_off_takes_its_pages_along(cluster: Any) -> None:
    """At once, and no others.  Source: lustre/tests/recovery-small.sh test_18a"""
    async with cluster(oss=2, caching=1) as c:
        first, second = await one_on_each(c)
        other = cached_bytes(c.a, 1)
        assert cached_bytes(c.a, 0) and other
        imp = ost_import(c.a)
        imp.deactivate()
        assert cached_bytes(c.a, 0) == 0 and cached_bytes(c.a, 1) == other
        with pytest.raises(Deactivated):
            await c.a.read(first)
        with refused(errno.EIO):
            await c.a.unrecorded(c.a.fs.write_file(first, b"lost"))
        assert await c.a.read(second) == b"x" * 50_000
        imp.activate()
        assert await c.a.read(first) == b"x" * 50_000
        assert cached_bytes(c.a, 0)
        await c.b.write(first, b"new")
        assert await c.a.read(first) == b"new"
        c.never_saw("client.evicted")


@pytest.mark.lustre("SM 18b", "SM 18c")
@pytest.mark.parametrize("lost", [0, 1], ids=["", "the answer to the connect is lost"])
async def test_a_client_that_an_ost_has_evicted_forgets_its_pages(cluster: Any, lost: int) -> None:
    """Those of this OST.  Source: lustre/tests/recovery-small.sh test_18b, test_18c"""
    async with cluster(oss=2, caching=1) as c:
        c.expect(*EVICTION)
        first, second = await one_on_each(c)
        other = cached_bytes(c.a, 1)
        assert cached_bytes(c.a, 0) and other
        dropped = c.net.drop(Connect, reply=True, source=c.oss[0], to=c.a, times=lost)
        await evicted_by(c, c.oss[0])
        assert dropped.matched == lost
        assert cached_bytes(c.a, 0) == 0 and cached_bytes(c.a, 1) == other
        reads = [ost_import(c.a, index).calls.get("Read", 0) for index in (0, 1)]
        for path in (first, second):
            assert await c.a.read(path) == b"x" * 50_000
        assert [ost_import(c.a, index).calls.get("Read", 0) for index in (0, 1)] == [reads[0] + 1, reads[1]]
        await c.b.write(first, b"new")
        assert await c.a.read(first) == b"new"


@pytest.mark.lustre("SM 24a")
@pytest.mark.parametrize("how", ["fsync", "close", "write"])
async def test_dirty_data_of_an_evicted_client_is_lost_and_it_is_told_once(world: Any, how: str) -> None:
    """Source: lustre/tests/recovery-small.sh test_24a"""
    async with world(oss=1, caching=1) as c:
        c.expect(*LOSS)
        await c.a.write("/f", b"old")
        await c.a.fs.sync()
        file, other = await c.a.open("/f"), await c.a.open("/f")
        await file.pwrite(b"new")
        await c.evict(c.a, c.oss[0])
        if how == "fsync":
            with refused(errno.EIO):
                await file.fsync()
        else:
            await c.until_saw("import.evicted", on=c.a, target=c.oss[0])
        if how == "write":
            with refused(errno.EIO):
                await file.pwrite(b"too", 3)
        if how == "close":
            with refused(errno.EIO):
                await file.close()
        else:
            await file.pwrite(b"er", 3)
            await file.fsync()
            await file.close()
        await other.close()  # nothing was written through it
        c.saw("client.data_lost", on=c.a, times=1)
        for client in (c.b, c.a):
            assert await client.read("/f") == (b"old" if how == "close" else b"older")


@pytest.mark.lustre("SM 108")
@pytest.mark.parametrize("caching", [0, 1])
async def test_a_client_is_evicted_in_the_middle_of_a_long_write(world: Any, caching: int) -> None:
    """Source: lustre/tests/recovery-small.sh test_108"""
    async with world(oss=1, caching=caching, max_bytes_per_rpc=MIB // 4, max_dirty_bytes=4 * MIB) as c:
        c.expect(*LOSS)
        file = await c.a.open("/f", create=True)
        slow = c.net.slow(Write, delay_s=0.2, source=c.a, to=c.oss[0], times=-1)

        async def write_it_all() -> None:
            for number in range(16):
                await file.pwrite(bytes([number]) * MIB, number * MIB)
            await file.fsync()

        writing = soon(write_it_all())
        await slow.caught(20)
        await c.evict(c.a, c.oss[0])
        with refused(errno.EIO):
            await writing
        slow.lift()
        await c.until_saw("import.evicted", on=c.a, target=c.oss[0])
        await c.settle()
        await c.a.unrecorded(close_anyhow(file))
        await c.a.write("/f", b"again" * MIB)
        assert await c.b.read("/f") == b"again" * MIB


async def close_anyhow(file: Any) -> None:
    """Close it; whether something was lost is known already."""
    with contextlib.suppress(OpError):
        await file.close()


@pytest.mark.lustre("SM 131")
@pytest.mark.parametrize("where", ["network", "server"])
@pytest.mark.parametrize("caching", [0, 1])
async def test_a_write_that_is_late_changes_nothing_for_a_client_that_was_evicted(
    cluster: Any, where: str, caching: int
) -> None:
    """It is held back on its way, or in the server. Source: lustre/tests/recovery-small.sh test_131"""
    async with cluster(oss=1, caching=caching) as c:
        c.expect(*LOSS)
        await c.a.write("/f", b"older")
        await c.a.fs.sync()
        file = await c.a.open("/f")
        if where == "network":
            late = c.net.hold(Write, to=c.oss[0], times=1)
        else:
            c.faults.arm("ost.write", "delay", on=c.oss[0], delay_s=20.0, peer=c.a.uuid)

        async def write() -> None:
            await file.pwrite(b"a's")
            await file.fsync()

        writing = soon(write())
        await asyncio.sleep(1.0)
        await c.evict(c.a, c.oss[0])
        await c.b.write("/f", b"b's")
        if where == "network":
            late.release()
        with refused(errno.EIO):
            await writing
        await asyncio.sleep(30.0)
        await c.settle()
        await c.oss[0].commit()
        for client in (c.b, c.a, await c.add_client()):
            assert await client.read("/f") == b"b's"
        await file.close()


@pytest.mark.lustre("SM 146")
async def test_evictions_are_counted(cluster: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_146"""
    async with cluster(oss=1, caching=1) as c:
        c.expect(*EXPIRED)

        def counts() -> dict[str, int]:
            found = [p for s in (c.mds, *c.oss) for p in parameters(s.daemon) if p.dotted.endswith(".eviction_count")]
            return {param.dotted.split(".")[0]: int(param.get()) for param in found}

        assert counts() == {"mdt": 0, "obdfilter": 0}
        await evicted_by(c, c.mds)
        assert counts() == {"mdt": 1, "obdfilter": 0}
        await evicted_by(c, c.oss[0])
        assert counts() == {"mdt": 1, "obdfilter": 1}
        await hold(c, "data")
        deafen(c, c.oss[0], times=-1)
        await change(c, "data")
        assert counts() == {"mdt": 1, "obdfilter": 2}


@pytest.mark.parametrize("name", ["c", "nid:c"])
async def test_a_client_is_evicted_by_its_uuid_or_by_where_it_is(cluster: Any, name: str) -> None:
    """And nobody else is; a name that means nobody is refused."""
    async with cluster(clients=3, oss=1, caching=1) as c:
        c.expect(*EVICTION)
        target = c.mds.target()
        with pytest.raises(ValueError, match="no client"):
            evict_client(target, "nid:nobody")
        evict_client(target, c.c.uuid if name == "c" else name)
        await c.until_saw("import.evicted", on=c.c, target=c.mds)
        evicted_for(c, "by the administrator", c.mds, c.c)
        await c.settle()
        await c.c.create("/f")
        assert await c.a.exists("/f")


# who is dead, or stands still ----------------------------------------------------------------------------------------


async def waits_for_the_silent(c: Any, work: Coroutine[Any, Any, None]) -> list[str]:
    """Do `work`, for which a, who does not answer, is waited for; the servers that did, one after the other."""
    began = c.loop.time()
    await work
    events = c.saw("client.evicted")
    assert all(e.fields["client"] in c.a.uuids for e in events)
    assert all(e.fields["why"].startswith("lock callback timer expired") for e in events)
    limit = c.tunables.lock_callback_s
    assert limit <= c.loop.time() - began < (len(events) + 1) * limit
    return [event.node for event in events]


async def look_when_back(client: Any, file: Any) -> list[tuple[int, bytes]]:
    """What a client that was thrown out sees, from its very next look on, until it has looked twice; EIO is no look."""
    seen: list[tuple[int, bytes]] = []
    while len(seen) < 2:
        with contextlib.suppress(Evicted):
            mode = stat.S_IMODE((await client.stat("/f")).mode)
            seen.append((mode, await file.pread(3, 0)))
    return seen


@pytest.mark.parametrize("kind", KINDS)
async def test_an_evicted_client_that_has_not_heard_of_it_shows_nothing_old_either(world: Any, kind: str) -> None:
    """So the others wait until it cannot believe in its locks any more."""
    async with world(oss=1, caching=1) as c:
        c.expect(*EVICTION)
        server = await hold(c, kind)
        file = await c.a.open("/f")
        assert [await file.pread(3, 0), *await look(c.a)] == [b"old", 0o644, b"old"]
        await c.evict(c.a, server)
        began = c.loop.time()
        await change(c, kind)
        assert c.loop.time() - began < 1.5 * c.tunables.lock_callback_s
        assert await look_when_back(c.a, file) == [CHANGED[kind]] * 2
        await c.until_saw("import.evicted", on=c.a, target=server)
        await agree(c, kind)
        await file.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_locks_of_a_dead_client_are_waited_for_no_longer_than_a_living_one_may_take(
    world: Any, kind: str
) -> None:
    """What it had written back is there, what it had not is lost."""
    async with world(oss=1, caching=1, write_back_after_s=60.0) as c:
        c.expect(*EXPIRED)
        server = await hold(c, kind)
        file = await c.a.open("/f")
        await file.pwrite(b"lost", 10)
        await c.a.kill()
        assert server.name in await waits_for_the_silent(c, change(c, kind))
        assert await c.b.read("/f") == (b"old" if kind == "names" else b"new")
        await c.a.start()
        await agree(c, kind)


@pytest.mark.lustre("SM 10a")
@pytest.mark.parametrize("asked", ["asked", "not asked"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_stood_still_is_evicted_believes_in_nothing_and_goes_on(
    world: Any, kind: str, asked: str
) -> None:
    """SIGSTOP. What it had under way fails with EIO, what was never written back is lost, nothing old is shown.

    Also if no callback is waiting for it when it goes on.
    """
    async with world(oss=1, caching=1) as c:
        c.expect(*EXPIRED, "client.data_lost")
        server = await hold(c, kind)
        file = await c.a.open("/f")
        assert [await file.pread(3, 0), *await look(c.a)] == [b"old", 0o644, b"old"]
        late_s = 3 * c.tunables.lock_callback_s
        slow = c.net.slow(Write if kind == "data" else Create, source=c.a, to=server, delay_s=late_s)
        if kind == "data":
            await file.pwrite(b"lost", 10)
            under_way = soon(file.fsync())
        else:
            under_way = soon(c.a.create("/g"))
        await slow.caught()
        await c.a.pause()
        for each in (c.mds, *c.oss) if asked == "not asked" else ():
            deafen(c, each, times=-1)
        assert server.name in await waits_for_the_silent(c, change(c, kind))
        seen = soon(look_when_back(c.a, file))
        await c.a.resume()
        with refused(errno.EIO):
            await under_way
        assert await seen == [CHANGED[kind]] * 2
        await c.until_saw("import.evicted", on=c.a, target=server)
        c.faults.clear()
        await c.settle()
        await agree(c, kind)
        assert await c.b.listdir("/") == ["f"]
        await file.close()
        await c.a.write("/f", b"again")
        assert await c.b.read("/f") == b"again"


@pytest.mark.lustre("SM 26a")
async def test_a_client_that_stood_still_for_long_is_evicted_by_all_and_goes_on(world: Any) -> None:
    """SIGSTOP, and nobody wants its locks."""
    async with world(oss=2, caching=1, evict_silent_s=6.0, ping_interval_s=1.0) as c:
        c.expect(*EVICTION)
        await hold(c, "data")
        file = await c.a.open("/f")
        began = c.loop.time()
        await c.a.pause()
        for server in (c.mds, *c.oss):
            await c.until_saw("client.evicted", client=c.a, on=server)
        assert c.loop.time() - began >= c.tunables.evict_silent_s - c.tunables.ping_interval_s
        assert all(e.fields["why"].startswith("silent for") for e in c.saw("client.evicted", client=c.a))
        await c.b.write("/f", b"new")
        await c.a.resume()
        assert await look_when_back(c.a, file) == [CHANGED["data"]] * 2
        for server in (c.mds, *c.oss):
            await c.until_saw("import.evicted", on=c.a, target=server)
        await c.settle()
        await file.close()
        await c.a.write("/f", b"again")
        assert await c.b.read("/f") == b"again"
        c.never_saw("import.evicted", on=c.b)


@pytest.mark.parametrize("what", ["create", "write"])
async def test_what_is_in_progress_when_its_client_is_evicted_fails_and_changes_nothing(world: Any, what: str) -> None:
    async with world(oss=1, caching=1) as c:
        c.expect(*LOSS)
        await hold(c, "data")
        server = c.mds if what == "create" else c.oss[0]
        file = await c.a.open("/f")
        await c.a.fs.sync()
        c.faults.arm("target.execute", "delay", on=server, delay_s=2 * c.tunables.rpc_timeout_s, peer=c.a.uuid)

        async def write() -> None:
            await file.pwrite(b"lost", 10)
            await file.fsync()

        under_way = soon(c.a.create("/g") if what == "create" else write())
        await asyncio.sleep(c.tunables.rpc_timeout_s / 2)
        await c.evict(c.a, server)
        with refused(errno.EIO):
            await under_way
        await asyncio.sleep(2 * c.tunables.rpc_timeout_s)
        await c.settle()
        assert await c.b.listdir("/") == ["f"] and await c.b.read("/f") == b"old"
        await file.close()
        await c.a.create("/h")
        assert await c.b.exists("/h")


async def test_the_links_of_clients_that_are_gone_without_a_word_are_closed(cluster: Any) -> None:
    """Nobody sends anything over them: each would take descriptors of the server for ever, until it takes no more links."""
    async with cluster(oss=1, clients=2) as c:
        c.expect(*EVICTION)
        await c.a.create("/f")
        await c.b.pause()
        servers = [c.mgs, c.mds, c.oss[0]]
        for server in servers:
            await c.until(lambda server=server: bool(server.daemon.service.idle), 3 * c.tunables.evict_silent_s)
        await asyncio.sleep(1.1 * c.tunables.evict_silent_s)
        assert [len(server.daemon.service.idle) for server in servers] == [0, 0, 0]
        await c.b.resume()
        await c.until_saw("import.evicted", on=c.b)
        await c.settle()
        assert await c.b.exists("/f")
