"""Locks on new objects of which the OSTs have not heard: they do before anybody else can reach these (ldlm/promised.py)."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import Mount, clear_unused, drop_locks, mounts
from steps import EVICTION, refused, soon

from lustrelite.sim.cluster import Cluster
from lustrelite.wire.ldlm import SOLE
from lustrelite.wire.locks import Enqueue
from lustrelite.wire.mdt import Getattr, Lookup, Open

DATA = b"what was written before the OST had heard of a lock"
WRITE = os.O_CREAT | os.O_RDWR


@asynccontextmanager
async def written_by_a(cluster: Any, count: int = 1, **topology: Any) -> Any:
    """(the cluster, mounts a and b, a's open files /u/f0, /u/f1, ...): no OST has heard of a lock of them."""
    async with cluster(caching=1, clients=2, write_back_after_s=1000.0, **topology) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        await warm(c, a)
        before = asked(c)
        files = [await a.open(f"/u/f{number}", WRITE) for number in range(count)]
        for file in files:
            await file.pwrite(DATA, 0)
        assert unheard(c) == count and asked(c) == before
        yield c, a, b, files
        for file in files:
            if not file.what.closed:
                await file.close()
        await c.settle()
        await asyncio.sleep(10)
        assert unheard(c) == 0 and soles(c) == 0
        await b.rmtree("/u")


async def warm(c: Cluster, a: Mount) -> None:
    """a has a grant of every OST, and a lease."""
    await c.settle()
    for number in range(2 * len(c.oss)):
        await a.write_file(f"/u/warm{number}", b"w")
    await a.client.unrecorded(a.client.fs.connections.lov.locked.flush_all())


def osts_of(c: Any) -> list[Any]:
    return [imp for imp in c.a.imports if "OST" in imp.target]


def unheard(c: Any) -> int:
    """How many promised locks a has."""
    return sum(len(imp.locks.promised.unheard) for imp in osts_of(c))


def asked(c: Any) -> int:
    """How many requests for locks a has sent to OSTs."""
    return sum(imp.calls.get("Enqueue", 0) for imp in osts_of(c))


def soles(c: Any) -> int:
    """Of how many files a holds SOLE, by the MDT's book."""
    export = c.mds.target().exports.get(c.a.uuid)
    locks = c.mds.target().namespace.table.owners.get(export, {}) if export is not None else {}
    return sum(bool(lock.bits & SOLE) for lock in locks.values())


async def test_the_osts_hear_of_many_at_once(cluster: Any) -> None:
    async with written_by_a(cluster, 200) as (c, _, _, files):
        before = asked(c)
        for file in files:
            file.what.close_later()
        await asyncio.sleep(10)
        assert unheard(c) == 0 and asked(c) - before <= 10
        c.never_saw("lock.asked", client="a")


@pytest.mark.parametrize("how", ["stat", "read", "list", "open to write", "setattr", "append"])
async def test_who_comes_finds_what_was_written(cluster: Any, how: str) -> None:
    async with written_by_a(cluster) as (c, _, b, files):
        if how == "stat":
            assert (await b.stat("/u/f0")).size == len(DATA)
        elif how == "read":
            assert await b.content("/u/f0") == DATA
        elif how == "list":
            assert (await listed(b, "/u"))["f0"].size == len(DATA)
        elif how == "open to write":
            await b.write_at("/u/f0", 2, b"XX")
            assert await files[0].pread(-1, 0) == DATA[:2] + b"XX" + DATA[4:]
        elif how == "setattr":
            await b.chmod("/u/f0", 0o600)
            assert (await b.stat("/u/f0")).size == len(DATA)
        else:
            await b.write_at("/u/f0", 0, b"more", os.O_WRONLY | os.O_APPEND)
            assert await files[0].pread(-1, 0) == DATA + b"more"
        assert unheard(c) == 0
        c.never_saw("client.data_lost")


async def listed(mount: Mount, path: str) -> dict[str, Any]:
    """{name: stat} of a listing with attributes."""

    async def walk() -> dict[str, Any]:
        return {os.fsdecode(entry.name): entry.stat async for entry in mount.client.fs.scandir(path)}

    found: dict[str, Any] = await mount.client.unrecorded(walk())
    return found


async def test_a_listing_of_many_asks_for_all_at_once(cluster: Any) -> None:
    async with written_by_a(cluster, 150) as (c, _, b, _):
        before = asked(c)
        found = await listed(b, "/u")
        assert sum(stat.size == len(DATA) for stat in found.values()) == 150
        assert unheard(c) == 0 and asked(c) - before <= 30


async def test_it_is_read_written_and_cut_by_its_author_as_under_any_lock(cluster: Any) -> None:
    async with written_by_a(cluster) as (c, a, b, files):
        file = files[0]
        assert await file.pread(-1, 0) == DATA
        await file.pwrite(b"end", 100_000)
        assert (await a.stat("/u/f0")).size == 100_003
        assert unheard(c) == 1
        await file.truncate(4)
        assert unheard(c) == 0
        assert await b.content("/u/f0") == DATA[:4]


async def test_a_hole_is_asked_for(cluster: Any) -> None:
    """Nothing of it is cached: the OST is asked, and must know the lock."""
    async with written_by_a(cluster) as (_, _, _, files):
        await files[0].pwrite(b"end", 3_000_000)
        assert await files[0].pread(10, 1_500_000) == bytes(10)


async def test_it_is_durable_after_fsync(cluster: Any) -> None:
    async with written_by_a(cluster) as (c, _, b, files):
        await files[0].fsync()
        for server in (c.mds, *c.oss):
            await server.kill()
            await server.start()
        assert await b.content("/u/f0") == DATA


@pytest.mark.parametrize("who", ["a", "b"])
async def test_the_last_name_goes_and_its_author_goes_on(cluster: Any, who: str) -> None:
    async with written_by_a(cluster) as (c, a, b, files):
        await {"a": a, "b": b}[who].unlink("/u/f0")
        await asyncio.sleep(10)
        assert await files[0].pread(-1, 0) == DATA
        await files[0].pwrite(b"more", len(DATA))
        await files[0].fsync()
        c.never_saw("client.data_lost")


async def test_it_is_removed_before_the_ost_has_heard(cluster: Any) -> None:
    """Nobody misses its data."""
    async with written_by_a(cluster, 20) as (c, a, _, files):
        for number, file in enumerate(files):
            await file.close()
            await a.unlink(f"/u/f{number}")
        await asyncio.sleep(60)
        c.never_saw("client.data_lost")


async def test_its_author_removes_one_of_two_names(cluster: Any) -> None:
    """Then the other leads to it, for everybody."""
    async with written_by_a(cluster) as (c, a, b, _):
        await a.link("/u/f0", "/u/other")
        await a.unlink("/u/f0")
        assert await b.content("/u/other") == DATA
        assert unheard(c) == 0


@pytest.mark.parametrize("when", ["nobody asks", "it is asked for", "it is being told"])
async def test_the_ost_dies_before_it_has_heard(cluster: Any, when: str) -> None:
    """The promise is replayed as a lock: nobody is served before."""
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        held = c.net.hold(Enqueue, to=c.oss[0], source=c.a) if when == "it is being told" else None
        syncing = soon(files[0].fsync()) if held is not None else None
        if held is not None:
            await held.caught()
        await c.oss[0].kill()
        looking = soon(b.stat("/u/f0")) if when != "nobody asks" else None
        await asyncio.sleep(12)
        if held is not None:
            held.lift()
        await c.oss[0].start()
        if looking is not None:
            assert (await looking).size == len(DATA)
        if syncing is not None:
            await syncing
        assert await b.content("/u/f0") == DATA
        c.never_saw("client.data_lost")
        c.never_saw("import.evicted")


@pytest.mark.parametrize("committed", [False, True])
async def test_the_mds_dies_and_sole_is_replayed(cluster: Any, committed: bool) -> None:
    async with written_by_a(cluster, 3) as (c, _, b, files):
        if committed:
            await c.mds.commit()
        await files[1].close()
        await c.fail(c.mds)
        for number in range(3):
            assert await b.content(f"/u/f{number}") == DATA
        c.never_saw("client.data_lost")
        c.never_saw("import.evicted")


async def test_the_mds_stops_in_order(cluster: Any) -> None:
    """It asks for SOLE, and the OSTs hear of the locks."""
    async with written_by_a(cluster, 3) as (c, _, b, _):
        await c.mds.stop()
        assert unheard(c) == 0
        await c.mds.start()
        assert await b.content("/u/f0") == DATA


async def test_who_is_evicted_by_the_mdt_tells_the_ost_as_long_as_his_lease_lasts(cluster: Any) -> None:
    """The MDT tells nobody of the objects before that."""
    async with written_by_a(cluster) as (c, a, b, files):
        c.expect(*EVICTION)
        await c.mds.commit()
        await c.evict(c.a, c.mds)
        assert await b.content("/u/f0") == DATA == await a.content("/u/f0")
        await files[0].close()
        c.never_saw("client.data_lost")


async def test_who_is_evicted_by_the_mdt_and_cannot_reach_the_ost_loses_what_was_only_promised(cluster: Any) -> None:
    """Others may have had the object since: what is not written back is lost, and said once."""
    async with written_by_a(cluster, oss=1) as (c, a, b, files):
        c.expect(*EVICTION, "client.data_lost")
        await c.mds.commit()
        held = c.net.hold(Enqueue, to=c.oss[0], source=c.a)
        await c.evict(c.a, c.mds)
        await c.until_saw("lock.forsaken")
        held.release()
        await c.until(lambda: unheard(c) == 0)
        with refused(errno.EIO):
            await files[0].fsync()
        assert await b.content("/u/f0") == b"" == await a.content("/u/f0")
        c.saw("client.data_lost", times=1)


@pytest.mark.parametrize("reader", ["there", "gone", ""])
async def test_who_cannot_reach_the_ost_gives_sole_back_and_loses_what_was_only_promised(cluster: Any, reader: str) -> None:
    """The MDT, who has no trouble, must not evict him for that. Nobody sees what comes too late, whoever is there still."""
    async with written_by_a(cluster, oss=1) as (c, a, b, files):
        c.expect(*EVICTION, "client.data_lost", "lock.flush_failed")
        c.net.cut(c.a, c.oss[0])
        assert not reader or (await b.stat("/u/f0")).size == 0
        await asyncio.sleep(3)
        if reader == "gone":
            await drop_locks(c, c.b, kind="OST")
        c.net.heal()
        if reader:
            with refused(errno.EIO):
                await files[0].fsync()
            assert await b.content("/u/f0") == b"" == await a.content("/u/f0")
        else:
            await files[0].fsync()
            assert await b.content("/u/f0") == DATA
        c.never_saw("import.evicted", target="lustre-MDT0000")


@pytest.mark.parametrize("how", ["stat", "read", "write", "append"])
@pytest.mark.parametrize("caching", [1, 0])
async def test_an_ost_that_nobody_could_reach_hears_first_of_what_was_promised(cluster: Any, how: str, caching: int) -> None:
    """It stood still, or the network did, longer than the MDT waits for SOLE: nobody has been served, nothing is lost."""
    async with written_by_a(cluster, 10, oss=1) as (c, _, b, files):
        if not caching:
            c.tunables.caching = 0
            b = Mount(await c.add_client("plain"))
        c.net.cut(c.oss[0], [*c.clients.values(), c.mds])
        comes = asyncio.create_task(come(b, how))
        await c.until_saw("lock.forsaken")
        await asyncio.sleep(5)
        assert not comes.done()
        c.net.heal()
        await comes
        for number, file in enumerate(files):
            await file.fsync()
            expected = {"write": NEW, "append": DATA + NEW}.get(how, DATA) if number == 0 else DATA
            assert await b.content(f"/u/f{number}") == expected
        c.never_saw("client.data_lost")
        c.never_saw("import.evicted")


@pytest.mark.parametrize("again", ["cut", "answer"])
async def test_what_happens_to_those_who_come_back_does_not_break_their_promises(cluster: Any, again: str) -> None:
    """The OST is cut off once more before the author has come, or its answer to him is lost: still nobody was served."""
    async with written_by_a(cluster, 3, oss=1) as (c, _, b, files):
        everybody = [*c.clients.values(), c.mds]
        c.net.cut(c.oss[0], everybody)
        comes = asyncio.create_task(come(b, "read"))
        await c.until_saw("lock.forsaken")
        await asyncio.sleep(5)
        c.net.heal(broken_permille=0)
        if again == "cut":
            c.net.cut(c.oss[0], [c.a])
            await c.until_saw("service.absent")
            c.net.cut(c.oss[0], everybody)
            await asyncio.sleep(10)
            c.net.heal(broken_permille=0)
        else:
            await c.net.drop(Enqueue, reply=True, to=c.a).caught()
        await comes
        for number, file in enumerate(files):
            await file.fsync()
            assert await b.content(f"/u/f{number}") == DATA
        c.never_saw("client.data_lost")


async def test_who_was_cut_off_before_the_others_comes_too_late(cluster: Any) -> None:
    """Somebody was served meanwhile."""
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        c.expect(*EVICTION, "client.data_lost", "lock.flush_failed")
        c.net.cut(c.a, c.oss[0])
        assert (await b.stat("/u/f0")).size == 0
        await asyncio.sleep(3)
        await drop_locks(c, c.b, kind="OST")
        c.net.cut(c.oss[0], [c.a, c.b, c.mds])
        await asyncio.sleep(10)
        c.net.heal()
        with refused(errno.EIO):
            await files[0].fsync()
        assert await b.content("/u/f0") == b""


async def come(mount: Mount, how: str) -> None:
    """Somebody else wants the first file."""
    if how == "stat":
        assert (await mount.stat("/u/f0")).size == len(DATA)
    elif how == "read":
        assert await mount.content("/u/f0") == DATA
    else:
        await mount.write_at("/u/f0", 0, NEW, os.O_WRONLY | (os.O_APPEND if how == "append" else 0))


async def test_without_the_lease_of_the_mdt_a_lock_is_asked_for(cluster: Any) -> None:
    """Nobody knows then whether SOLE is still held: what was promised is told to the OST before it is used again."""
    async with written_by_a(cluster, 2) as (c, _, b, files):
        await c.mds.kill()
        await asyncio.sleep(8)
        assert await files[0].pread(-1, 0) == DATA
        await files[1].pwrite(b"more", len(DATA))
        assert unheard(c) == 0
        await c.mds.start()
        assert await b.content("/u/f1") == DATA + b"more"


@pytest.mark.parametrize("kind", [Lookup, Getattr])
async def test_who_waits_for_sole_and_goes_away_is_forgotten(cluster: Any, kind: type) -> None:
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        fid = files[0].what.fid
        held = c.net.hold(Enqueue, to=c.oss[0], source=c.a)
        looking = soon(b.stat("/u/f0") if kind is Lookup else b.client.unrecorded(b.client.fs.stat_fid(fid)))
        await held.caught()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        held.release()
        assert (await b.stat("/u/f0")).size == len(DATA)


# somebody else was there, and has gone again ---------------------------------------------------------------------------


NEW = b"N" * len(DATA)


async def changed_by_b(b: Mount, c: Any) -> None:
    """b writes the file, makes that durable and gives back every lock, and with it what it knows."""
    file = await b.open("/u/f0", os.O_RDWR)
    await file.pwrite(NEW, 0)
    await file.fsync()
    await file.close()
    await drop_locks(c, c.b, kind="OST")


async def lost_by_a(c: Any, b: Mount, file: Mount) -> None:
    """a is told that its data is lost, and both see b's."""
    with refused(errno.EIO):
        await file.fsync()
    assert await b.content("/u/f0") == NEW == await file.pread(-1, 0)
    c.saw("client.data_lost")


@pytest.mark.parametrize("heals", ["the OST first", "0", "1", "2", "3"])
async def test_who_was_cut_off_writes_over_nobody(cluster: Any, heals: str) -> None:
    """The OST hears of the lock before its client hears that the MDT has evicted it. Nobody is in the way any more."""
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        c.expect(*EVICTION, "client.data_lost", "lock.flush_failed", "lock.expired")
        await c.mds.commit()
        c.net.cut(c.a, c.mds)
        c.net.cut(c.a, c.oss[0])
        await changed_by_b(b, c)
        if heals == "the OST first":
            c.net.heal()
            c.net.cut(c.a, c.mds)
            await asyncio.wait([soon(c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all()))], timeout=30)
        else:
            await asyncio.sleep(int(heals) * 0.37)
        c.net.heal()
        await asyncio.sleep(20)
        await lost_by_a(c, b, files[0])


@pytest.mark.parametrize("other", ["has written nothing back", "is there still", "has gone"])
async def test_an_ost_that_dies_after_it_has_served_others_drops_what_was_forsaken(cluster: Any, other: str) -> None:
    """It was cut off from the author only: others have been served, whatever he replays."""
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        c.expect(*EVICTION, "client.data_lost", "lock.flush_failed", "lock.expired")
        await c.mds.commit()
        c.net.cut(c.a, c.oss[0])
        file = await b.open("/u/f0", os.O_RDWR)
        await file.pwrite(NEW, 0)
        c.saw("lock.forsaken")
        if other != "has written nothing back":
            await file.fsync()
        if other == "has gone":
            await drop_locks(c, c.b, kind="OST")
        await c.oss[0].kill()
        c.net.heal()
        await c.oss[0].start()
        await asyncio.sleep(5)
        assert await file.pread(-1, 0) == NEW
        await lost_by_a(c, b, files[0])
        await file.close()


@pytest.mark.parametrize("how", ["append", "write", "stat"])
async def test_there_is_one_promise_for_an_object(cluster: Any, how: str) -> None:
    """A second one would not know what was written under the first."""
    async with written_by_a(cluster, oss=1) as (c, a, b, files):
        await drop_locks(c, c.a, kind="OST")
        if how == "append":
            await a.write_at("/u/f0", 0, b"more", os.O_WRONLY | os.O_APPEND)
            assert await b.content("/u/f0") == DATA + b"more"
        elif how == "write":
            await files[0].pwrite(b"x", 3)
            assert await files[0].pread(-1, 0) == DATA[:3] + b"x" + DATA[4:]
        else:
            await files[0].pwrite(b"x", 3)
            assert (await a.stat("/u/f0")).size == len(DATA)
        assert unheard(c) == 0


async def test_an_open_that_is_answered_again_brings_no_sole(cluster: Any) -> None:
    """Since it was executed others have been told of the file that it has made."""
    async with cluster(caching=1, clients=2, oss=1) as c:
        c.expect(*EVICTION)
        a, b = mounts(c)
        await a.mkdir("/u")
        await warm(c, a)
        c.net.cut(c.mds, c.a, one_way=True)
        opening = soon(a.open("/u/f", WRITE))
        await asyncio.sleep(0.3)
        await c.mds.commit()
        await c.mds.kill()
        c.net.heal()
        held = c.net.hold(Open, to=c.mds, source=c.a)
        await c.mds.start()
        await b.write_at("/u/f", 0, DATA)
        held.release()
        file = await opening
        assert soles(c) == 0 and (await file.fstat()).size == len(DATA)
        await file.pwrite(b"more", len(DATA))
        assert unheard(c) == 0
        await file.close()
        assert await b.content("/u/f") == DATA + b"more"
        await b.rmtree("/u")


async def test_sole_is_given_up_while_the_mds_is_away(cluster: Any) -> None:
    """Nobody has asked for it: the OST hears of the lock, however long the lease is over."""
    async with written_by_a(cluster, oss=1) as (c, _, b, _):
        await c.mds.kill()
        await asyncio.sleep(8)
        clear_unused(c.a, kind="MDT")
        await asyncio.sleep(2)
        await c.mds.start()
        assert await b.content("/u/f0") == DATA
        c.never_saw("client.data_lost")
