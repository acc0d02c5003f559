"""How long a client believes in its locks: as long as it would have been told, and never when somebody else has them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from steps import EVICTION, soon
from test_lock_replay import held, locks_of, objects, take

from lustrelite.wire.ldlm import LOOKUP, PR, PW, UPDATE
from lustrelite.wire.ost import OstStatfs

OST = "OST0000"


async def watch(c: Any, true: Callable[[], bool], for_s: float) -> bool:
    """Is something true all the time?"""
    end = c.loop.time() + for_s
    while c.loop.time() < end:
        if not true():
            return False
        await asyncio.sleep(0.05)
    return True


def believes(client: Any, resource: bytes, mode: int = PW) -> bool:
    """Would the client read or write the object without asking anybody?"""
    return locks_of(client, OST).match_extent(resource, 0, 0, mode) is not None


@pytest.mark.parametrize("ping_interval_s", [4.0, 20.0])
async def test_an_idle_client_keeps_its_lease_and_one_that_is_cut_off_loses_it(
    cluster: Any, ping_interval_s: float
) -> None:
    async with cluster(caching=1, ping_interval_s=ping_interval_s) as c:
        (resource,) = await objects(c)
        locks_of(c.a, OST).release(await take(c.a, resource, PW))
        imp = c.a.fs.connections.imports["lustre-OST0000"]
        assert imp.lease_s == c.tunables.lock_callback_s - c.tunables.lock_lease_margin_s
        assert await watch(c, lambda: believes(c.a, resource), 60)
        heard = imp.leased_at
        c.net.cut(c.a, c.oss[0])
        await c.until(lambda: not believes(c.a, resource), 20)
        assert heard + imp.lease_s <= c.loop.time() < heard + 2 * imp.lease_s
        c.net.heal()
        lock = await take(c.a, resource, PW)  # the same one, after the lease is renewed
        assert lock.handle == 1 and believes(c.a, resource)
        locks_of(c.a, OST).release(lock)


@pytest.mark.parametrize("holds", [True, False], ids=["in use", "unused"])
async def test_a_client_that_misses_every_callback_stops_to_believe_before_others_are_granted(
    cluster: Any, holds: bool
) -> None:
    """It talks to the server all the time and gets good answers, but they say that there was a callback."""
    async with cluster(caching=1) as c:
        c.expect(*EVICTION, "lock.expired")
        (resource,) = await objects(c)
        lock = await take(c.a, resource, PW)
        if not holds:
            locks_of(c.a, OST).release(lock)
        c.faults.arm("ldlm.bl_callback", "drop", on=c.oss[0], times=-1)
        wish = soon(take(c.b, resource, PW))
        while not wish.done():
            believed = believes(c.a, resource) or locks_of(c.a, OST).serves(lock)
            await c.a.unrecorded(c.a.fs.connections.lov.statfs())
            granted = [row for row in held(c.oss[0], "lustre-OST0000", resource) if row[0] == "GRANTED"]
            assert not (believed and lock.holding.name == "GRANTED" and len(granted) > 1)
        assert not believes(c.a, resource)
        c.saw("lock.expired", times=1)
        c.faults.clear()
        locks_of(c.b, OST).release(await wish)
        if holds:
            locks_of(c.a, OST).release(lock)


async def deaf_once(c: Any) -> tuple[bytes, Any]:
    """a has an unused lock of an object, whose next callback gets lost: the resource, and a's locks."""
    (resource,) = await objects(c)
    locks = locks_of(c.a, OST)
    locks.release(await take(c.a, resource, PW))
    c.faults.arm("ldlm.bl_callback", "drop", on=c.oss[0])
    return resource, locks


async def test_a_callback_that_is_lost_once_costs_no_more_than_time(cluster: Any) -> None:
    async with cluster(caching=1) as c:
        resource, locks = await deaf_once(c)
        locks_of(c.b, OST).release(await take(c.b, resource, PW))
        assert locks.lock_count == 0
        locks.release(await take(c.a, resource, PR))
        c.saw("callback.resent", times=1)
        assert believes(c.a, resource, PR)
        c.never_saw("client.evicted")


async def test_callbacks_are_told_again_after_a_reconnect(cluster: Any) -> None:
    async with cluster(caching=1) as c:
        resource, locks = await deaf_once(c)
        wish = soon(take(c.b, resource, PW))
        await c.until(lambda: len(held(c.oss[0], "lustre-OST0000", resource)) == 2)
        imp = c.a.fs.connections.imports["lustre-OST0000"]
        assert imp.callbacks.seen == 0 and c.oss[0].target("lustre-OST0000").namespace.waiting_count == 1
        imp.connection_failed(0, "broken by the test")
        began = c.loop.time()
        locks_of(c.b, OST).release(await wish)
        assert locks.lock_count == 0 and c.loop.time() - began < c.tunables.rpc_timeout_s
        c.saw("lock.asked", client=c.a)
        c.never_saw("client.evicted")
        locks.release(await take(c.a, resource, PW))
        assert believes(c.a, resource)


async def test_a_client_that_stood_still_believes_in_nothing_when_it_goes_on(cluster: Any) -> None:
    async with cluster(caching=1) as c:
        c.expect(*EVICTION, "lock.expired")
        (resource,) = await objects(c)
        locks = locks_of(c.a, OST)
        lock = await take(c.a, resource, PW)
        await c.a.pause()
        of_b = await take(c.b, resource, PW)
        await c.a.resume()
        assert not believes(c.a, resource) and not locks.serves(lock)
        await c.until(lambda: locks.lock_count == 0)
        locks.release(lock)
        locks_of(c.b, OST).release(of_b)


async def test_after_a_restart_of_the_server_the_lease_is_renewed_as_before(cluster: Any) -> None:
    """The numbers of callbacks begin anew."""
    async with cluster(caching=1) as c:
        root = c.a.fs.connections.root
        locks = locks_of(c.a, "MDT0000")
        for n in range(3):
            await c.a.unrecorded(_take_and_release(locks, root))
            await c.b.mkdir(f"/d{n}")
        imp = c.a.fs.connections.mdc.imp
        assert imp.callbacks.seen > 0
        used = await c.a.unrecorded(locks.take_bits(root, LOOKUP))
        await c.fail(c.mds)
        await c.settle()
        assert imp.callbacks.seen == 0
        assert await watch(c, lambda: locks.match_bits(root, LOOKUP) is used, 20)
        locks.release(used)
        await c.a.unrecorded(_take_and_release(locks, root))
        await c.b.mkdir("/e")
        assert imp.callbacks.seen == 1
        assert await watch(c, lambda: locks.lease_valid, 20)


async def _take_and_release(locks: Any, fid: bytes) -> None:
    locks.release(await locks.take_bits(fid, UPDATE))


async def test_an_answer_to_a_second_copy_counts_from_the_first(cluster: Any) -> None:
    """Nobody knows which of the two was answered, and when."""
    async with cluster(caching=1, ping_interval_s=60.0) as c:
        imp = c.a.fs.connections.imports["lustre-OST0000"]
        await c.settle()
        began = c.loop.time()
        lost = c.drop_reply(OstStatfs)
        await c.a.unrecorded(imp.call(OstStatfs()))
        assert lost.matched and c.loop.time() > began + c.tunables.rpc_timeout_s
        assert imp.leased_at == began and imp.lease_until == began + imp.lease_s


async def test_a_switched_off_connection_keeps_no_locks(cluster: Any) -> None:
    """The server does not know; asked for one, the client says that it has none, and nobody is evicted."""
    async with cluster(caching=1) as c:
        (resource,) = await objects(c)
        locks = locks_of(c.a, OST)
        locks.release(await take(c.a, resource, PW))
        imp = c.a.fs.connections.imports["lustre-OST0000"]
        imp.deactivate()
        assert locks.lock_count == 0 and len(held(c.oss[0], "lustre-OST0000", resource)) == 1
        began = c.loop.time()
        locks_of(c.b, OST).release(await take(c.b, resource, PW))
        assert c.loop.time() - began < 1
        imp.activate()
        locks.release(await take(c.a, resource, PW))
        c.never_saw("client.evicted")


async def test_a_client_that_leaves_in_good_order_leaves_no_lock_behind(cluster: Any) -> None:
    async with cluster(caching=1) as c:
        (resource,) = await objects(c)
        locks_of(c.a, OST).release(await take(c.a, resource, PW))
        await c.a.stat("/")
        uuid = c.a.uuid
        await c.a.unmount()
        for server, name in ((c.mds, ""), (c.oss[0], "lustre-OST0000")):
            assert not [lock for lock in server.target(name).namespace.table.locks() if lock.owner.uuid == uuid]
        began = c.loop.time()
        locks_of(c.b, OST).release(await take(c.b, resource, PW))
        assert c.loop.time() - began < 1
