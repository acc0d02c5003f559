"""Locks through restarts of a server and broken connections: replayed, resent, dropped, never granted twice.

The locks are taken from the clients' lock caches directly; what is cached under them has scenarios of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from steps import soon

from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.lock_cache import LockCache
from lustrelite.ldlm.policy import EOF
from lustrelite.wire.ldlm import LOOKUP, NO_EXPANSION, PR, PW
from lustrelite.wire.locks import Cancel, Enqueue
from lustrelite.wire.mdt import Getattr
from lustrelite.wire.ost import Write


def locks_of(client: Any, target: str) -> LockCache:
    """The lock cache of a client's import."""
    locks = client.fs.connections.imports[f"lustre-{target}"].locks
    assert isinstance(locks, LockCache)
    return locks


async def objects(c: Any, count: int = 1, ost: int = 0) -> list[bytes]:
    """Resource ids of new objects of an OST."""
    found: list[bytes] = []
    while len(found) < count:
        path = f"/object{c.a._handles}"
        file = await c.a.open(path, create=True)
        found += [number.to_bytes(8, "big") for index, number in file.file.layout.stripes if index == ost]
        await file.close()
    return found


async def take(client: Any, resource: bytes, mode: int, start: int = 0, end: int = EOF, **how: Any) -> ClientLock:
    """A lock of an object of OST 0."""
    return await client.unrecorded(locks_of(client, "OST0000").take_extent(resource, start, end, mode, **how))


def held(server: Any, target: str, resource: bytes) -> list[tuple[str, int, int]]:
    """(state, mode, handle) of every lock that the server has on the resource."""
    table = server.target(target).namespace.table
    return sorted((lock.state.name, lock.mode, lock.handle) for lock in table.locks() if lock.resource.id == resource)


@pytest.mark.lustre("RS 85a")
async def test_unused_locks_of_the_mdt_are_not_replayed(cluster: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_85a"""
    async with cluster(clients=1, caching=1) as c:
        paths = [f"/f{n}" for n in range(100)]
        for path in paths:
            await c.a.create(path)
        for path in paths:
            await c.a.stat(path)
        locks = locks_of(c.a, "MDT0000")
        before = locks.lock_count
        used = await c.a.unrecorded(locks.take_bits(c.a.fs.connections.root, LOOKUP))
        await c.fail(c.mds)
        await c.settle()
        assert before >= 100
        assert locks.lock_count == 1 and locks.match_bits(c.a.fs.connections.root, LOOKUP) is used
        assert c.mds.target().namespace.lock_count == 1
        for path in paths:
            await c.a.stat(path)
        locks.release(used)


@pytest.mark.lustre("RS 85b")
async def test_unused_locks_of_an_ost_are_not_replayed(cluster: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_85b"""
    async with cluster(clients=1, caching=1) as c:
        locks = locks_of(c.a, "OST0000")
        taken = [await take(c.a, resource, PR) for resource in await objects(c, 100)]
        for lock in taken[1:]:
            locks.release(lock)
        await c.fail(c.oss[0])
        await c.settle()
        assert locks.lock_count == 1 and c.oss[0].target("lustre-OST0000").namespace.lock_count == 1
        locks.release(taken[0])


async def test_hundreds_of_locks_are_replayed_in_several_messages(cluster: Any) -> None:
    async with cluster(caching=1) as c:
        (resource,) = await objects(c)

        async def take_some(client: Any, count: int, mode: int, first: int) -> list[ClientLock]:
            locks = locks_of(client, "OST0000")
            places = [(first + n) * 4096 for n in range(count)]
            return [await locks.take_extent(resource, at, at + 4095, mode, flags=NO_EXPANSION) for at in places]

        of_a = await c.a.unrecorded(take_some(c.a, 1200, PW, 0))
        of_b = await c.b.unrecorded(take_some(c.b, 20, PR, 1200))
        before = held(c.oss[0], "lustre-OST0000", resource)
        await c.fail(c.oss[0])
        await c.settle()
        c.saw("lock.replayed", times=4)
        assert held(c.oss[0], "lustre-OST0000", resource) == before
        assert len(before) == 1220 and all(lock.ready for lock in [*of_a, *of_b])
        for client, taken in ((c.a, of_a), (c.b, of_b)):
            for lock in taken:
                locks_of(client, "OST0000").release(lock)


@pytest.mark.lustre("RS 36")
async def test_cancels_of_locks_that_a_restart_has_taken_bother_nobody(cluster: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_36"""
    async with cluster(clients=1, caching=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        await c.a.stat("/f")
        locks = locks_of(c.a, "MDT0000")
        used = await c.a.unrecorded(locks.take_bits(c.a.fs.connections.root, LOOKUP))
        lost = c.drop_request(Cancel)
        locks.clear_unused()
        await lost.caught()
        await c.fail(c.mds)
        locks.release(used)
        locks.clear_unused()
        assert locks.lock_count == 0
        await c.until(lambda: c.mds.target().namespace.lock_count == 0)


async def one_waits(c: Any) -> tuple[bytes, Any, asyncio.Task[Any]]:
    """An object whose lock a has and is asked for, since b waits for it."""
    (resource,) = await objects(c)
    of_a = await take(c.a, resource, PW)
    wish = soon(take(c.b, resource, PW))
    await c.until(lambda: of_a.asked is not None)
    return resource, of_a, wish


@pytest.mark.lustre("RD 25")
async def test_a_waiting_lock_whose_grant_was_lost_is_replayed_as_waiting(cluster: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_25"""
    async with cluster(caching=1) as c:
        resource, of_a, wish = await one_waits(c)
        c.faults.arm("ldlm.cp_callback", "drop", on=c.oss[0])
        locks_of(c.a, "OST0000").release(of_a)
        await c.until(lambda: held(c.oss[0], "lustre-OST0000", resource) == [("GRANTED", PW, 1)])
        assert not wish.done()
        await c.fail(c.oss[0])
        of_b = await wish
        locks_of(c.b, "OST0000").release(of_b)
        again = await take(c.a, resource, PW)
        locks_of(c.a, "OST0000").release(again)


@pytest.mark.lustre("RD 28")
async def test_a_granted_lock_is_replayed_beside_one_that_waits_for_it(cluster: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_28"""
    async with cluster(clients=3, caching=1) as c:
        (resource,) = await objects(c)
        of_a = await take(c.a, resource, PW)
        granted: list[str] = []

        async def take_and_release(client: Any) -> None:
            lock = await take(client, resource, PW)
            granted.append(client.name)
            locks_of(client, "OST0000").release(lock)

        wishes = [soon(take_and_release(client)) for client in (c.b, c.c)]
        await c.until(lambda: len(held(c.oss[0], "lustre-OST0000", resource)) == 3)
        before = held(c.oss[0], "lustre-OST0000", resource)
        await c.fail(c.oss[0])
        await c.settle()
        assert held(c.oss[0], "lustre-OST0000", resource) == before
        await c.until(lambda: of_a.asked is not None)  # by the new server
        assert not granted
        locks_of(c.a, "OST0000").release(of_a)
        await asyncio.gather(*wishes)
        assert sorted(granted) == ["b", "c"]


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize("how", ["restart", "reconnect", "resend"])
async def test_an_enqueue_without_an_answer_makes_one_lock(cluster: Any, lost: str, how: str) -> None:
    """Replayed as waiting, found by its handle, or executed late: the client has one lock, and the server the same."""
    async with cluster(caching=1) as c:
        (resource,) = await objects(c)
        rule = c.drop_request(Enqueue) if lost == "request" else c.drop_reply(Enqueue)
        taking = soon(take(c.a, resource, PW))
        await rule.caught()
        if how == "restart":
            await c.fail(c.oss[0])
        elif how == "reconnect":
            c.net.cut(c.a, c.oss[0])
            await asyncio.sleep(30)
            c.net.heal()
        lock = await taking
        await c.settle()
        assert held(c.oss[0], "lustre-OST0000", resource) == [("GRANTED", PW, lock.handle)]
        wish = soon(take(c.b, resource, PR))
        await c.until(lambda: lock.asked is not None)
        assert not wish.done()
        locks_of(c.a, "OST0000").release(lock)
        locks_of(c.b, "OST0000").release(await wish)


async def without_locks(c: Any) -> tuple[Any, Any]:
    """The FID of /f, and a's locks at the MDT: it is giving back what it has of /f."""
    fid = (await c.a.unrecorded(c.a.fs.lstat("/f"))).fid
    locks = locks_of(c.a, "MDT0000")
    for lock in locks.locks_of(fid):
        locks.cancel(lock)
    return fid, locks


@pytest.mark.lustre("SM 113")
async def test_an_operation_whose_reply_was_lost_brings_one_lock(cluster: Any) -> None:
    """Its resend finds the lock by its handle; who wants it asks once.

    Source: lustre/tests/recovery-small.sh test_113
    """
    async with cluster(caching=1) as c:
        await c.a.create("/f")
        await c.b.stat("/f")
        fid, locks = await without_locks(c)
        await c.settle()
        lost = c.drop_reply(Getattr)
        ride = locks.ride(b"", LOOKUP)
        imp = c.a.fs.connections.mdc.imp
        reading = soon(c.a.unrecorded(imp.call(Getattr(fid), ride=ride)))
        await lost.caught()
        await reading
        lock = locks.ridden(ride)
        assert lock is not None
        mine = [row for row in held(c.mds, "lustre-MDT0000", fid) if row[2] == lock.handle]
        assert len(mine) == 1 and locks.locks_of(fid) == [lock]
        await c.b.rename("/f", "/g")
        assert locks.match_bits(fid, LOOKUP) is None
        c.never_saw("client.evicted")


@pytest.mark.parametrize("how", ["restart", "reconnect"])
async def test_a_riding_lock_whose_answer_was_lost_is_not_believed_in_twice(cluster: Any, how: str) -> None:
    async with cluster(caching=1) as c:
        await c.a.create("/f")
        fid, locks = await without_locks(c)
        await c.settle()
        lost = c.drop_reply(Getattr)
        ride = locks.ride(b"", LOOKUP)
        reading = soon(c.a.unrecorded(c.a.fs.connections.mdc.imp.call(Getattr(fid), ride=ride)))
        await lost.caught()
        if how == "restart":
            await c.fail(c.mds)
        else:
            c.net.cut(c.a, c.mds)
            await asyncio.sleep(30)
            c.net.heal()
        await reading
        await c.settle()
        lock = locks.ridden(ride)
        mine = [] if lock is None else [("GRANTED", PR, lock.handle)]
        assert [row for row in held(c.mds, "lustre-MDT0000", fid) if row[2] == ride.want.handle] == mine
        await c.b.rename("/f", "/g")
        assert locks.match_bits(fid, LOOKUP) is None


async def test_a_riding_lock_that_nobody_waits_for_any_more_goes_back(cluster: Any) -> None:
    """The caller was cancelled: before the request was sent, and after it was executed."""
    async with cluster(clients=1, caching=1) as c:
        await c.a.create("/f")
        fid, locks = await without_locks(c)
        imp = c.a.fs.connections.mdc.imp
        await c.until(lambda: not held(c.mds, "lustre-MDT0000", fid))

        late = c.net.hold(Getattr, reply=True)
        ride = locks.ride(b"", LOOKUP)
        reading = soon(c.a.unrecorded(imp.call(Getattr(fid), ride=ride)))
        await late.caught()
        assert held(c.mds, "lustre-MDT0000", fid) == [("GRANTED", PR, ride.want.handle)]
        reading.cancel()
        await c.until(lambda: not held(c.mds, "lustre-MDT0000", fid))
        late.release()
        assert locks.ridden(ride) is None

        lock = await c.a.unrecorded(locks.take_bits(fid, LOOKUP))
        locks.release(lock)
        imp.connection_failed(0, "broken by the test")
        cancels, _ = locks.cancels_for(fid, LOOKUP)
        ride = locks.ride(b"", LOOKUP, cancels=cancels)
        reading = soon(c.a.unrecorded(imp.call(Getattr(fid), ride=ride)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(imp.delayed) == 1 and cancels == (lock.handle,)
        reading.cancel()
        await c.until(lambda: not held(c.mds, "lustre-MDT0000", fid))
        assert locks.ridden(ride) is None and not locks.locks_of(fid)


@pytest.mark.lustre("RS 121")
async def test_lock_replay_that_meets_the_end_of_request_replay_ends(cluster: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_121"""
    async with cluster(caching=1) as c:
        file = await c.a.open("/f", create=True)
        root = c.a.fs.connections.root
        used = await c.a.unrecorded(locks_of(c.a, "MDT0000").take_bits(root, LOOKUP))
        await c.replay_barrier(c.mds)
        await c.b.create("/g")
        c.faults.arm("target.replay", "delay", on=c.mds, delay_s=3.0, keep=True)
        await c.fail(c.mds)
        await c.settle()
        c.saw("lock.replayed", times=1)
        await file.pwrite(b"x", 0)
        await file.close()
        assert await c.a.exists("/g")
        locks_of(c.a, "MDT0000").release(used)


@pytest.mark.lustre("RS 135", "SM 170")
@pytest.mark.parametrize("point", ["client.lock_replay", "ldlm.replay"])
async def test_a_lock_replay_that_fails_is_begun_again(cluster: Any, point: str) -> None:
    """Source: lustre/tests/replay-single.sh test_135, recovery-small.sh test_170"""
    async with cluster(caching=1) as c:
        (resource,) = await objects(c)
        of_a = await take(c.a, resource, PW, 0, 4095, flags=NO_EXPANSION)
        of_b = await take(c.b, resource, PW, 8192, 12287, flags=NO_EXPANSION)
        on, keep = (c.a, False) if point.startswith("client") else (c.oss[0], True)
        c.faults.arm(point, "drop", on=on, keep=keep, times=1)
        await c.fail(c.oss[0])
        await c.settle()
        c.never_saw("client.evicted")
        assert held(c.oss[0], "lustre-OST0000", resource) == [("GRANTED", PW, 1)] * 2
        assert locks_of(c.a, "OST0000").locks_of(resource) == [of_a] and of_a.ready and of_b.ready
        for client, lock in ((c.a, of_a), (c.b, of_b)):
            locks_of(client, "OST0000").release(lock)
        await c.a.write("/after", b"x" * 10000)
        assert await c.b.read("/after") == b"x" * 10000


async def test_a_server_that_dies_in_its_recovery_gets_all_locks_again(cluster: Any) -> None:
    async with cluster(caching=1) as c:
        resource, of_a, wish = await one_waits(c)
        c.faults.arm("ldlm.replay", "crash", on=c.oss[0], keep=True)
        await c.oss[0].kill()
        await c.oss[0].start()
        await c.until(lambda: not c.oss[0].alive)
        await c.oss[0].start()
        await c.settle()
        assert [row[0] for row in held(c.oss[0], "lustre-OST0000", resource)] == ["GRANTED", "WAITING"]
        await c.until(lambda: of_a.asked is not None)
        locks_of(c.a, "OST0000").release(of_a)
        locks_of(c.b, "OST0000").release(await wish)


async def test_a_client_that_is_evicted_in_recovery_believes_in_nothing(cluster: Any) -> None:
    """It was away when the others finished: its locks went to who waited."""
    async with cluster(caching=1, clients=2) as c:
        c.expect("client.evicted", "recovery.evicting", "import.evicted")
        resource, of_a, wish = await one_waits(c)
        await c.oss[0].kill()
        c.net.cut(c.a, c.oss[0])
        await c.oss[0].start()
        of_b = await wish
        locks = locks_of(c.a, "OST0000")
        assert not locks.serves(of_a) and locks.match_extent(resource, 0, 0, PW) is None
        c.net.heal()
        await c.settle()
        assert locks.lock_count == 0
        locks.release(of_a)
        locks_of(c.b, "OST0000").release(of_b)


@pytest.mark.lustre("OST 10")
async def test_dirty_data_under_a_replayed_lock_and_a_new_reader_get_on(cluster: Any) -> None:
    """Source: lustre/tests/replay-ost-single.sh test_10"""
    async with cluster(caching=1) as c:
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"x" * 100_000, 0)
        held_back = c.net.hold(Write, to=c.oss[0])
        also = c.net.hold(Write, to=c.oss[1])
        syncing = soon(file.fsync())
        await c.until(lambda: bool(held_back.held or also.held))
        server = c.oss[0] if held_back.held else c.oss[1]
        reading = soon(c.b.read("/f"))
        await asyncio.sleep(0.5)
        await server.kill()
        held_back.lift()
        also.lift()
        await server.start()
        assert (await c.a.stat("/f")).size == 100_000
        await syncing
        assert await reading == b"x" * 100_000
        c.never_saw("client.evicted")
        await file.close()
