"""Holes that a reader of the lock manager found: hostile requests, servers that forget, answers that are lost.

Each says what went wrong, and where.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from typing import Any

import pytest
from mounts import Mount, drop_locks, two_mounts
from steps import EVICTION, refused, soon
from test_lock_replay import held, locks_of, objects, take
from test_two_mounts_locks import striped

from lustrelite.errors import OpError
from lustrelite.ldlm.policy import EOF
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import EX, EXTENT, GLIMPSE, IBITS, NO_EXPANSION, PLAIN, PR, PW, Want
from lustrelite.wire.locks import Enqueue
from lustrelite.wire.mgs import SetParam
from lustrelite.wire.ost import OBJECT_EOF, OstStatfs, Read, Write

UNIT = 65536
OST = "OST0000"


def import_of(client: Any, target: str = OST) -> Any:
    """A client's connection."""
    return client.fs.connections.imports[f"lustre-{target}"]


async def ask(client: Any, target: str, body: Any) -> Any:
    """Send a message as it is."""
    return await client.unrecorded(import_of(client, target).call(body))


async def open_at_both(a: Mount, b: Mount) -> tuple[Any, Any]:
    """A new file that begins on the first OST."""
    file, _ = await striped(a)
    return file, await b.open("/u/f", os.O_RDWR)


# what no client of ours would send ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [IBITS, PLAIN])
async def test_a_lock_of_a_wrong_type_on_an_object_crashes_nobody(cluster: Any, kind: int) -> None:
    """Lockless I/O asserted that the resource is of extents (LockTable.resource)."""
    async with cluster(clients=1, caching=1) as c:
        (resource,) = await objects(c)
        oid = int.from_bytes(resource, "big")
        want = Want(10**6, kind, resource, EX, 0, 1, 0, 0, EOF, 0, 0)
        reply = await ask(c.a, OST, Enqueue((want,), ()))
        assert reply.granted[0].status == -errno.EINVAL
        await ask(c.a, OST, Read(oid, 0, 10))
        assert c.oss[0].alive


@pytest.mark.parametrize("kind", [EXTENT, PLAIN])
async def test_a_lock_of_a_wrong_type_on_an_inode_crashes_nobody(cluster: Any, kind: int) -> None:
    """The same where the MDT takes its own locks (LocalLocks.wait)."""
    async with cluster(caching=1) as c:
        root = c.a.fs.connections.root
        want = Want(10**6, kind, root, EX, 0, 63, 0, 0, EOF, 0, 0)
        reply = await ask(c.a, "MDT0000", Enqueue((want,), ()))
        assert reply.granted[0].status == -errno.EINVAL
        await c.b.mkdir("/d")
        assert c.mds.alive


@pytest.mark.parametrize("offset", [OBJECT_EOF, OBJECT_EOF + 1, (1 << 64) - 1])
async def test_a_read_beyond_the_end_of_all_objects_crashes_nobody(cluster: Any, offset: int) -> None:
    """The lock for a lockless read began behind its end (Resource._admit)."""
    async with cluster(clients=1, caching=0) as c:
        (resource,) = await objects(c)
        oid = int.from_bytes(resource, "big")
        if offset <= OBJECT_EOF:
            assert (await ask(c.a, OST, Read(oid, offset, 10))).length == 0
        else:
            with refused(errno.EINVAL):
                await ask(c.a, OST, Read(oid, offset, 10))
        assert c.oss[0].alive


async def test_a_glimpse_under_a_used_handle_leaves_nothing_behind(cluster: Any) -> None:
    """The resource was made before the handle was looked up (Namespace.glimpse)."""
    async with cluster(clients=1, caching=1) as c:
        first, second = await objects(c, 2)
        lock = await take(c.a, first, PR)
        namespace = c.oss[0].target("lustre-OST0000").namespace
        before = namespace.resource_count
        want = Want(lock.handle, EXTENT, second, PR, GLIMPSE, 0, 0, 0, EOF, 0, 0)
        await ask(c.a, OST, Enqueue((want,), ()))
        assert namespace.resource_count == before
        locks_of(c.a, OST).release(lock)


# evicted, and the server forgets ---------------------------------------------------------------------------------


async def test_an_eviction_that_is_not_durable_gives_no_lock_away(cluster: Any) -> None:
    """A crash would bring the client back, who would replay a lock that another one has been granted since."""
    async with two_mounts(cluster, orderly=False) as (c, a, b):
        c.expect(*EVICTION, "lock.expired", "client.data_lost", "commit.waiting")
        file, resource = await striped(a)
        await file.pwrite(b"a" * UNIT, 0)
        await file.fsync()
        other = await b.open("/u/f", os.O_RDWR)
        await file.pwrite(b"A" * UNIT, 0)
        c.oss[0].hold_commits()
        c.net.cut(c.a, c.oss[0])
        writing = soon(other.pwrite(b"b" * UNIT, 0))
        await c.until_saw("client.evicted")
        await asyncio.sleep(1)
        c.net.heal()
        await c.fail(c.oss[0])
        await c.until(lambda: import_of(c.a).full.is_set())
        rows = [row for row in held(c.oss[0], "lustre-OST0000", resource) if row[0] == "GRANTED" and row[1] == PW]
        c.oss[0].release_commits()
        await writing
        assert len(rows) <= 1, rows
        assert await b.content("/u/f") == b"b" * UNIT
        assert await a.content("/u/f") == b"b" * UNIT
        with contextlib.suppress(OpError):
            await file.close()
        await other.close()


async def test_a_restart_does_not_shorten_the_lease_of_who_was_evicted_before(cluster: Any) -> None:
    """The new incarnation knows nothing of him, and lets others change what he still believes in."""
    async with two_mounts(cluster, orderly=False) as (c, a, b):
        c.expect(*EVICTION)
        file, _ = await striped(a)
        await file.pwrite(b"old", 0)
        await file.fsync()
        assert await file.pread(3, 0) == b"old"
        other = await b.open("/u/f", os.O_RDWR)
        await ask(c.a, OST, OstStatfs())
        c.net.cut(c.a, c.oss[0])
        await c.evict(c.a, c.oss[0])
        await asyncio.sleep(0.3)
        c.oss[0].kill()
        await c.oss[0].start()
        await other.pwrite(b"new", 0)
        await other.fsync()
        believed = import_of(c.a).locks.lease_valid
        c.net.heal()
        assert not believed
        await c.until_saw("import.evicted", on=c.a)
        with contextlib.suppress(OpError):
            await file.close()
        assert await a.content("/u/f") == b"new"
        await other.close()


async def test_a_record_lock_is_not_given_away_by_an_eviction_that_is_not_durable(cluster: Any) -> None:
    """The same of record locks: both had it after the restart."""
    async with two_mounts(cluster, orderly=False) as (c, a, b):
        c.expect(*EVICTION, "commit.waiting")
        file, other = await open_at_both(a, b)
        await c.mds.commit()
        await file.flock(fcntl.LOCK_EX)
        c.mds.hold_commits()
        c.net.cut(c.a, c.mds)
        wish = soon(other.flock(fcntl.LOCK_EX))
        await asyncio.sleep(0.5)
        await c.evict(c.a, c.mds)
        await asyncio.sleep(0.5)
        c.net.heal()
        assert not wish.done()
        await c.fail(c.mds)
        assert not wish.done()
        await file.flock(fcntl.LOCK_UN)
        await wish
        await file.close()
        await other.close()


async def test_a_caller_that_is_cancelled_as_he_is_granted_a_record_lock_has_none(cluster: Any) -> None:
    """The grant was in the mirror already, so the MDT was told again that he has it (Flocks.lock)."""
    async with two_mounts(cluster) as (c, a, b):
        file, other = await open_at_both(a, b)
        await file.flock(fcntl.LOCK_EX)
        wish = soon(c.b.fs.connections.flocks.lock(other.what.fid, 77, PW, 0, EOF, bsd=True, wait=True))
        flocks = c.b.fs.connections.flocks
        completed = flocks.completed

        def granted(what: Any) -> int:
            status = completed(what)
            wish.cancel()
            return status

        flocks.completed = granted
        await asyncio.sleep(0.5)
        await file.flock(fcntl.LOCK_UN)
        await asyncio.wait([wish])
        assert wish.cancelled()
        await asyncio.sleep(1)
        await asyncio.wait_for(file.flock(fcntl.LOCK_EX | fcntl.LOCK_NB), 5)
        await file.close()
        await other.close()


# an answer is lost ------------------------------------------------------------------------------------------------


async def test_a_lock_that_went_with_its_last_write_does_not_come_back(cluster: Any) -> None:
    """Nobody had asked for it, so it went before that write was durable, and a crash made the client write it again."""
    async with two_mounts(cluster) as (c, a, b):
        file, other = await open_at_both(a, b)
        c.oss[0].hold_commits()
        await file.pwrite(b"a" * UNIT, 0)
        rule = c.net.hold(Write, reply=True, to=c.a)
        locks_of(c.a, OST).clear_unused()
        await rule.caught()
        writing = soon(other.pwrite(b"b" * UNIT, 0))
        await asyncio.sleep(c.tunables.write_back_after_s + 1)
        rule.times = rule.matched
        await c.fail(c.oss[0])
        await writing
        await other.fsync()
        await c.settle()
        assert await b.content("/u/f") == b"b" * UNIT
        await drop_locks(c, c.a, c.b, kind="OST")
        assert await a.content("/u/f") == b"b" * UNIT
        await file.close()
        await other.close()


async def test_who_gave_a_lock_back_with_his_last_write_is_not_evicted_for_it(cluster: Any) -> None:
    """The answer was lost in a crash: the lock was replayed, and the write, found done, did not take it along again."""
    async with two_mounts(cluster, "abc", clients=3) as (c, a, b):
        file, resource = await striped(a)
        other = await b.open("/u/f", os.O_RDWR)
        await file.pwrite(b"a" * UNIT, 0)
        rule = c.net.hold(Write, reply=True, to=c.a)
        await other.pwrite(b"b" * UNIT, 0)  # asks for a's lock, which comes with its write
        assert rule.matched
        rule.times = rule.matched
        third = soon(take(c.c, resource, PR))
        await c.fail(c.oss[0])
        lock = await third
        await asyncio.sleep(3 * c.tunables.lock_callback_s)
        c.never_saw("client.evicted")
        locks_of(c.c, OST).release(lock)
        await file.close()
        await other.close()


# in each other's way ----------------------------------------------------------------------------------------------


async def test_who_waits_for_a_dead_ost_holds_no_lock_of_another_one(cluster: Any) -> None:
    """He is asked for it, cannot give it back, and is evicted by a server that has no trouble (LockedIo._take)."""
    async with two_mounts(cluster) as (c, a, b):
        await a.setstripe("/u/f", 2, UNIT, 0)
        file = await a.open("/u/f", os.O_RDWR)
        other = await b.open("/u/f", os.O_RDWR)
        c.oss[1].kill()
        await asyncio.sleep(1)
        writing = soon(file.pwrite(b"x" * 2 * UNIT, 0))
        await asyncio.sleep(0.5)
        reading = soon(other.pwrite(b"y", 0))
        await asyncio.sleep(2 * c.tunables.lock_callback_s)
        c.never_saw("client.evicted")
        await c.oss[1].start()
        await writing
        await reading
        await file.close()
        await other.close()


async def test_who_waits_for_room_in_the_cache_holds_no_lock_that_is_asked_for(cluster: Any) -> None:
    """The room is taken by what cannot be written back to a dead OST; evicted was he by a living one (WriteBack.write)."""
    async with two_mounts(cluster, max_cached_bytes=8 * UNIT) as (c, a, b):
        await a.setstripe("/u/f", 1, UNIT, 0)
        await a.setstripe("/u/g", 1, UNIT, 1)
        file, full = await a.open("/u/f", os.O_RDWR), await a.open("/u/g", os.O_RDWR)
        other = await b.open("/u/f", os.O_RDWR)
        await full.pwrite(b"g" * UNIT, 0)
        await full.fsync()
        c.oss[1].kill()
        for number in range(4):
            await full.pwrite(b"g" * UNIT, number * UNIT)
        writing = soon(file.pwrite(b"x" * UNIT, 0))
        await asyncio.sleep(0.5)
        assert not writing.done()
        changing = soon(other.pwrite(b"y", 0))
        await asyncio.sleep(2 * c.tunables.lock_callback_s)
        c.never_saw("client.evicted")
        await c.oss[1].start()
        await writing
        await changing
        for each in (file, full, other):
            await each.close()


async def test_the_servers_queue_is_never_too_full_for_what_all_in_it_wait_for(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes under a lock that is asked for were refused like all others (Service._check_capacity)."""
    async with two_mounts(cluster, "a") as (c, a, _):
        file, resource = await striped(a)
        await file.pwrite(b"x" * UNIT, 0)
        monkeypatch.setattr(limits, "requests_per_service_max", 12)
        monkeypatch.setattr(limits, "requests_reserved_max", 4)
        oid = int.from_bytes(resource, "big")
        reads = [soon(ask(c.b, OST, Read(oid, 0, 10))) for _ in range(20)]
        for answer in await asyncio.gather(*reads):
            assert answer.length == 10
        c.never_saw("client.evicted")
        await file.close()


async def test_who_waits_long_for_a_lock_goes_on_when_it_is_free(cluster: Any) -> None:
    """After 8 s the server took him for one that has given up, though it had told him itself not to ask again
    (Call.overdue): the operation began anew when he asked, seconds later, and found the lock taken if it was busy."""
    async with cluster(caching=1, lock_callback_s=11.0) as c:
        c.expect(*EVICTION, "lock.expired")
        await c.a.create("/f")
        await c.a.stat("/f")
        c.net.cut(c.a, c.mds)
        began = c.loop.time()
        await c.b.chmod("/f", 0o600)
        assert c.loop.time() - began < c.tunables.lock_callback_s + 0.5
        c.net.heal()


async def test_a_shorter_time_for_callbacks_does_not_end_leases_that_were_promised(cluster: Any) -> None:
    """`lock_callback_s` may be set while the server runs; clients count on what they were told (Deadlines.limit)."""
    async with cluster(caching=1) as c:
        c.expect(*EVICTION, "lock.expired")
        (resource,) = await objects(c)
        locks = locks_of(c.a, OST)
        locks.release(await take(c.a, resource, PW))
        c.oss[0].node.tunables.lock_callback_s = 2.5
        c.net.cut(c.a, c.oss[0])
        wish = soon(take(c.b, resource, PW))
        while not wish.done():
            believed = locks.match_extent(resource, 0, 0, PW) is not None
            await asyncio.sleep(0.05)
        assert not believed
        locks_of(c.b, OST).release(await wish)
        c.net.heal()


async def test_a_client_is_not_given_more_and_more_time(cluster: Any) -> None:
    """Who uses all of his time gets half as much again the next time, without an end (Deadlines.limit)."""
    async with cluster(caching=1) as c:
        target = c.oss[0].target("lustre-OST0000")
        (resource,) = await objects(c)
        locks = locks_of(c.a, OST)
        export = next(e for e in target.exports.values() if e.uuid == c.a.uuid)
        for _ in range(12):
            lock = await take(c.a, resource, PW)
            wish = soon(take(c.b, resource, PW))
            await asyncio.sleep(0.95 * target.namespace.deadlines.limit(export))
            locks.release(lock)
            locks_of(c.b, OST).release(await wish)
        assert target.namespace.deadlines.limit(export) <= c.tunables.lock_callback_s + c.tunables.at_max_s


async def test_nothing_is_granted_to_a_dead_client(cluster: Any) -> None:
    """Evicted while two of its locks wait, the second one was granted when the first went (Namespace.owner_gone)."""
    async with cluster(clients=3, caching=1) as c:
        c.expect(*EVICTION)
        (resource,) = await objects(c)
        of_b = await take(c.b, resource, PR)
        wishes = [soon(take(c.a, resource, mode)) for mode in (PW,)]
        await asyncio.sleep(0.5)
        wishes.append(soon(take(c.a, resource, PR, flags=NO_EXPANSION)))
        await asyncio.sleep(0.5)
        wishes.append(soon(take(c.c, resource, PW)))
        await asyncio.sleep(0.5)
        c.net.cut(c.a, c.oss[0])
        await c.evict(c.a, c.oss[0])
        rows = held(c.oss[0], "lustre-OST0000", resource)
        assert len(rows) == 2, rows
        locks_of(c.b, OST).release(of_b)
        locks_of(c.c, OST).release(await wishes[2])
        c.net.heal()
        await asyncio.gather(*wishes[:2], return_exceptions=True)


async def test_times_of_a_writer_below_the_end(cluster: Any) -> None:
    """Only who might know of a larger size was asked by a glimpse, so a change below it showed no new time."""
    async with two_mounts(cluster, clients=3) as (c, a, b):
        file, resource = await striped(a)
        await file.pwrite(b"x" * UNIT * 4, 0)
        await file.fsync()
        other = await b.open("/u/f", os.O_RDWR)
        await drop_locks(c, c.a, c.b, kind="OST")
        low = await take(c.a, resource, PW, 0, UNIT - 1, flags=NO_EXPANSION)
        high = await take(c.b, resource, PW, 3 * UNIT, 4 * UNIT - 1, flags=NO_EXPANSION)
        locks_of(c.a, OST).release(low)
        locks_of(c.b, OST).release(high)
        before = (await b.stat("/u/f")).mtime
        await asyncio.sleep(1)
        await file.pwrite(b"y", 0)
        mine = (await a.stat("/u/f")).mtime
        after = (await b.stat("/u/f")).mtime
        assert mine > before
        assert after == mine
        await file.close()
        await other.close()


async def test_a_link_that_breaks_at_the_end_of_recovery_costs_no_time(cluster: Any) -> None:
    """Replayed again after the final ping, locks were dropped as late, and the client gave the connection up."""
    async with cluster(caching=1) as c:
        (resource,) = await objects(c)
        lock = await take(c.a, resource, PW, 0, UNIT - 1, flags=NO_EXPANSION)
        of_b = await take(c.b, resource, PW, UNIT, 2 * UNIT, flags=NO_EXPANSION)
        c.faults.arm("client.replay_done", "delay", on=c.b, delay_s=5.0)
        failing = soon(c.fail(c.oss[0]))
        await c.until(lambda: str(import_of(c.a).state) == "REPLAY_WAIT", 60)
        await asyncio.sleep(0.2)
        c.net.break_links(c.a, c.oss[0])
        began = c.loop.time()
        await failing
        await c.until(lambda: import_of(c.a).full.is_set(), 60)
        assert c.loop.time() - began < 8
        assert len(held(c.oss[0], "lustre-OST0000", resource)) == 2
        locks_of(c.a, OST).release(lock)
        locks_of(c.b, OST).release(of_b)


@pytest.mark.parametrize("how", ["restart", "eviction"])
async def test_a_change_of_the_configuration_is_heard_of_after_the_mgs_forgot_us(cluster: Any, how: str) -> None:
    """It keeps no records, so it never says "evicted": the client went on to believe in a lock that was gone, and was
    told of nothing any more (ClientImport.connected)."""
    async with cluster(clients=1) as c:
        follower = c.a.fs.connections.config
        await c.until(lambda: follower.locks.lock_count == 1)
        if how == "restart":
            await c.fail(c.mgs)
        else:
            c.net.break_links(c.a, c.mgs)
            c.mgs.target().clients.evict_matching(c.a.uuid)
            await c.settle()
        await asyncio.sleep(5)
        await c.a.unrecorded(follower.mgs.call(SetParam("lustre", "osc.max_dirty_mb", "7")))
        await c.until(lambda: follower.params.get("osc.max_dirty_mb") == "7", 10)
