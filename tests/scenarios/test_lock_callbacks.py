"""Locks that others want: callbacks, answers, cancels and enqueues that get lost or fail, and who is thrown out for it.

`names` is about the MDT's locks (a has looked at a file, b changes its mode), `data` about an OST's (a has written, b
writes the same place). Nobody is evicted for one message that was lost; who cannot be reached in `lock_callback_s` is,
so that nobody else waits longer; and afterwards everybody sees the same.
"""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import Coroutine
from typing import Any

import pytest
from steps import EVICTION, refused, soon
from test_lock_replay import held, locks_of, objects, take

from lustrelite.errors import Evicted
from lustrelite.faults import Fault
from lustrelite.wire.ldlm import PR, PW, XATTR
from lustrelite.wire.locks import Cancel, Convert, Enqueue
from lustrelite.wire.ost import OstStatfs

KINDS = ["names", "data"]
EXPIRED = (*EVICTION, "lock.expired")
OST = "lustre-OST0000"


async def hold(c: Any, kind: str) -> Any:
    """Let a cache what b is going to change; returns the server that has granted the lock."""
    await c.a.write("/f", b"old")
    await c.a.fs.sync()
    await c.a.stat("/f")
    return c.mds if kind == "names" else c.oss[0]


def change(c: Any, kind: str) -> Coroutine[Any, Any, None]:
    """What b does."""
    change: Coroutine[Any, Any, None] = c.b.chmod("/f", 0o600) if kind == "names" else c.b.write_at("/f", 0, b"new")
    return change


async def look(client: Any) -> tuple[int, bytes]:
    """(mode, content) of the file."""
    return stat.S_IMODE((await client.stat("/f")).mode), await client.read("/f")


CHANGED = {"names": (0o600, b"old"), "data": (0o644, b"new")}  # how it looks when b has changed it


async def agree(c: Any, kind: str) -> None:
    """Everybody sees what b did."""
    for client in (c.b, c.a, await c.add_client()):
        assert await look(client) == CHANGED[kind]


async def back_in_agreement(c: Any, kind: str, server: Any) -> None:
    """a learns that `server` has evicted it, comes back, and sees what b did as everybody does."""
    await c.until_saw("import.evicted", on=c.a, target=server)
    await c.settle()
    await agree(c, kind)


def deafen(c: Any, server: Any, action: str = "drop", **how: Any) -> None:
    """What `server` asks a to give back does not arrive."""
    c.faults.arm("ldlm.bl_callback", action, on=server, peer=c.a.uuid, **how)


def evicted_for(c: Any, why: str, server: Any, client: Any = None) -> None:
    """`server` has evicted a (or `client`), once, for this; nobody else did, and nobody else was."""
    (event,) = c.saw("client.evicted", times=1)
    assert event.node == server.name and event.fields["client"] == next(iter((client or c.a).uuids))
    assert event.fields["why"].startswith(why), event.fields["why"]


# the callback --------------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SM 10a")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_answers_no_callback_is_evicted_and_the_other_goes_on(world: Any, kind: str) -> None:
    """Source: lustre/tests/recovery-small.sh test_10a"""
    async with world(oss=1, caching=1) as c:
        c.expect(*EXPIRED)
        server = await hold(c, kind)
        deafen(c, server, times=-1)
        began = c.loop.time()
        await change(c, kind)
        limit = c.tunables.lock_callback_s
        assert limit <= c.loop.time() - began < limit + c.tunables.lock_callback_s
        evicted_for(c, "lock callback timer expired", server)
        c.saw("lock.expired", client=c.a, on=server)
        await back_in_agreement(c, kind, server)


@pytest.mark.lustre("SM 10b")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_callback_that_was_lost_once_is_sent_again(world: Any, kind: str) -> None:
    """Source: lustre/tests/recovery-small.sh test_10b"""
    async with world(oss=1, caching=1) as c:
        server = await hold(c, kind)
        deafen(c, server)
        began = c.loop.time()
        await change(c, kind)
        assert c.loop.time() - began < c.tunables.lock_callback_s
        c.saw("callback.resent", client=c.a, on=server, times=1)
        await agree(c, kind)
        c.never_saw("client.evicted")


@pytest.mark.lustre("SM 10c")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_lost_callback_is_sent_again_as_soon_as_the_client_has_reconnected(cluster: Any, kind: str) -> None:
    """Source: lustre/tests/recovery-small.sh test_10c"""
    async with cluster(oss=1, caching=1) as c:
        server = await hold(c, kind)
        deafen(c, server)
        changing = soon(change(c, kind))
        await c.until_saw("lock.asked", client=c.a, on=server)
        began = c.loop.time()
        assert c.net.break_links(c.a, server) == 1
        await changing
        assert c.loop.time() - began < c.tunables.rpc_timeout_s
        c.saw("import.lost", on=c.a, target=server, times=1)
        await agree(c, kind)
        c.never_saw("callback.resent")
        c.never_saw("client.evicted")


@pytest.mark.lustre("SM 10d")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_answers_a_callback_with_an_error_is_evicted(world: Any, kind: str) -> None:
    """And all read the same afterwards.  Source: lustre/tests/recovery-small.sh test_10d"""
    async with world(oss=1, caching=1) as c:
        c.expect(*EVICTION)
        server = await hold(c, kind)
        deafen(c, server, "error", errno=errno.EPROTO)
        began = c.loop.time()
        await change(c, kind)
        assert c.loop.time() - began < 1.5 * c.tunables.lock_callback_s  # as long as it may serve from its cache
        evicted_for(c, "it answered a BlockingCallback with EPROTO", server)
        await back_in_agreement(c, kind, server)


@pytest.mark.lustre("SM 10e")
async def test_a_lost_callback_and_a_refused_enqueue_make_one_reconnect(cluster: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_10e"""
    async with cluster(oss=1, caching=1) as c:
        (server,) = c.oss
        await hold(c, "data")
        (resource,) = await objects(c)
        deafen(c, server)
        changing = soon(change(c, "data"))
        await c.until_saw("lock.asked", client=c.a, on=server)
        refuse = Fault("error", errno=errno.ENOTCONN, peer=c.a.uuid)
        server.node.faults.on_message("request", "Enqueue", refuse)
        began = c.loop.time()
        lock = await take(c.a, resource, PR)
        await changing
        assert not refuse.times and c.loop.time() - began < c.tunables.rpc_timeout_s
        assert held(server, OST, resource) == [("GRANTED", PR, lock.handle)]
        locks_of(c.a, "OST0000").release(lock)
        c.saw("import.lost", on=c.a, times=1)
        await agree(c, "data")
        c.never_saw("callback.resent")
        c.never_saw("client.evicted")


@pytest.mark.lustre("SM 11")
async def test_who_waits_for_a_lock_is_woken_when_its_client_is_evicted(cluster: Any) -> None:
    """For another lock, which it did not give back.  Source: lustre/tests/recovery-small.sh test_11"""
    async with cluster(oss=1, caching=1, clients=3) as c:
        c.expect(*EXPIRED)
        wanted, kept = await objects(c, 2)
        of_a = await take(c.a, wanted, PW)
        of_b = await take(c.b, kept, PW)
        deafen(c, c.oss[0], times=-1)
        wish = soon(take(c.c, wanted, PW))
        await c.until_saw("lock.asked", client=c.a, on=c.oss[0])
        await asyncio.sleep(c.tunables.lock_callback_s / 2)
        waiting = soon(take(c.a, kept, PW))
        await c.until_saw("lock.asked", client=c.b, on=c.oss[0])
        locks_of(c.c, "OST0000").release(await wish)
        evicted_for(c, "lock callback timer expired", c.oss[0])
        with pytest.raises(Evicted):
            await waiting
        assert held(c.oss[0], OST, kept) == [("GRANTED", PW, of_b.handle)]
        locks_of(c.a, "OST0000").release(of_a)
        locks_of(c.b, "OST0000").release(of_b)
        c.faults.clear()
        await c.a.unlink("/object0")
        assert await c.a.listdir("/") == await c.b.listdir("/") == ["object1"]


@pytest.mark.lustre("RD 18")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_lock_is_not_granted_to_a_client_that_was_evicted_meanwhile(cluster: Any, kind: str) -> None:
    """Its enqueue is held in the server for longer than that takes.  Source: lustre/tests/replay-dual.sh test_18"""
    async with cluster(oss=1, caching=1) as c:
        c.expect(*EXPIRED)
        server = await hold(c, kind)
        if kind == "names":
            enqueue = c.a.unrecorded(locks_of(c.a, "MDT0000").take_bits(c.a.fs.connections.root, XATTR))
        else:
            enqueue = take(c.a, (await objects(c))[0], PR)
        deafen(c, server, times=-1)
        changing = soon(change(c, kind))
        await c.until_saw("lock.asked", client=c.a, on=server)
        late_s = 1.5 * c.tunables.lock_callback_s
        delay = c.faults.arm("target.execute", "delay", on=server, delay_s=late_s, peer=c.a.uuid)
        enqueuing = soon(enqueue)
        await changing
        assert not delay.times
        evicted_for(c, "lock callback timer expired", server)
        with pytest.raises(Evicted):
            await enqueuing
        await asyncio.sleep(late_s)  # only now the server comes to it
        assert not [lock for lock in server.target().namespace.table.locks() if lock.owner.failed]
        c.faults.clear()
        await c.settle()
        await agree(c, kind)


# the cancel ----------------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SM 19a", "SM 19b")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_whose_cancels_get_lost_is_evicted_when_its_time_is_over(world: Any, kind: str) -> None:
    """It has answered the callback.  Source: lustre/tests/recovery-small.sh test_19a, test_19b"""
    async with world(oss=1, caching=1) as c:
        c.expect(*EXPIRED)
        server = await hold(c, kind)
        rules = [c.net.drop(what, source=c.a, to=server, times=-1) for what in (Cancel, Convert)]
        began = c.loop.time()
        await change(c, kind)
        limit = c.tunables.lock_callback_s
        assert limit <= c.loop.time() - began < 2 * limit
        evicted_for(c, "lock callback timer expired", server)
        for rule in rules:
            rule.lift()
        await back_in_agreement(c, kind, server)


@pytest.mark.lustre("SM 19c")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["resent", "reconnect"])
async def test_a_cancel_that_was_lost_is_sent_again_in_time(cluster: Any, kind: str, how: str) -> None:
    """Source: lustre/tests/recovery-small.sh test_19c"""
    async with cluster(oss=1, caching=1) as c:
        server = await hold(c, kind)
        op = Convert if kind == "names" else Cancel
        lost = c.net.drop(op, source=c.a, to=server)
        changing = soon(change(c, kind))
        await lost.caught()
        if how == "reconnect":
            assert c.net.break_links(c.a, server) == 1
        await changing
        c.saw("import.resent", on=c.a, op=op.__name__, times=1)
        await agree(c, kind)
        c.never_saw("client.evicted")


# the enqueue ---------------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SM 20a")
async def test_a_lock_that_cannot_be_had_fails_the_write(cluster: Any) -> None:
    """Once; and nothing was written.  Source: lustre/tests/recovery-small.sh test_20a"""
    async with cluster(oss=1, caching=1) as c:
        await c.b.write("/f", b"old")
        file = await c.a.open("/f")
        fault = Fault("error", errno=errno.ENOMEM, peer=c.a.uuid)
        c.oss[0].node.faults.on_message("request", "Enqueue", fault)
        with refused(errno.ENOMEM):
            await c.a.unrecorded(file.file.pwrite(b"lost", 0))
        assert not fault.times
        await file.fsync()
        assert await c.b.read("/f") == await file.pread() == b"old"
        await file.pwrite(b"new")
        await file.close()
        assert await c.b.read("/f") == b"new"


@pytest.mark.lustre("SM 20b")
async def test_a_lock_that_cannot_be_had_fails_an_open_that_truncates(cluster: Any) -> None:
    """As dd does it: open with O_TRUNC, write, close.  Source: lustre/tests/recovery-small.sh test_20b"""
    async with cluster(oss=1, caching=1) as c:
        await c.b.write("/f", b"old")
        await c.b.fs.sync()
        fault = Fault("error", errno=errno.ENOMEM, peer=c.a.uuid)
        c.oss[0].node.faults.on_message("request", "Enqueue", fault)
        with refused(errno.ENOMEM):
            await c.a.unrecorded(c.a.fs.write_file("/f", b"lost"))
        assert not fault.times
        await c.settle()
        assert await c.b.read("/f") == await c.a.read("/f") == b"old"
        assert not list(c.mds.target().open_handles())
        await c.a.write("/f", b"new")
        assert await c.b.read("/f") == b"new"


@pytest.mark.lustre("SM 20c")
@pytest.mark.parametrize("executed", ["before its cancel", "after its cancel", "never"])
async def test_a_lock_that_its_client_has_given_up_stands_in_nobodys_way(cluster: Any, executed: str) -> None:
    """Also if a late enqueue makes it.  Source: recovery-small.sh test_20c of the branch b1_8"""
    async with cluster(oss=1, caching=1) as c:
        (resource,) = await objects(c)
        locks = locks_of(c.a, "OST0000")
        older = c.net.hold(OstStatfs, source=c.oss[0], reply=True)
        if executed == "after its cancel":  # something older is under way: the server cannot know that it is too late
            asking = soon(c.a.unrecorded(locks.imp.call(OstStatfs())))
            await older.caught()
        late = c.net.hold(Enqueue, reply=executed == "before its cancel")
        taking = soon(take(c.a, resource, PW))
        await late.caught()
        taking.cancel()
        await c.until(lambda: locks.imp.calls.get("Cancel") == 1)
        await c.until(lambda: not any(request.spec.cls is Cancel for request in locks.imp.sending.values()))
        assert not held(c.oss[0], OST, resource)
        late.release()
        if executed == "after its cancel":
            await c.until(lambda: [row[:2] for row in held(c.oss[0], OST, resource)] == [("GRANTED", PW)])
            older.release()
            await asking
        elif executed == "never":
            await c.until_saw("request.dropped", on=c.oss[0], op="Enqueue", why="answered long ago")
        began = c.loop.time()
        lock = await take(c.b, resource, PW)
        assert c.loop.time() - began < 1.0
        assert held(c.oss[0], OST, resource) == [("GRANTED", PW, lock.handle)]
        locks_of(c.b, "OST0000").release(lock)
        c.never_saw("client.evicted")


@pytest.mark.lustre("SM 55")
@pytest.mark.parametrize("caching", [0, 1])
async def test_a_write_that_an_ost_throws_away_hangs_until_it_does_so_no_more(world: Any, caching: int) -> None:
    """Source: lustre/tests/recovery-small.sh test_55"""
    async with world(oss=1, caching=caching) as c:
        file = await c.a.open("/f", create=True)
        c.faults.arm("ost.write", "drop", on=c.oss[0], times=-1)

        async def write() -> None:
            await file.pwrite(b"x" * 100_000)
            await file.fsync()

        writing = soon(write())
        await asyncio.sleep(5 * c.tunables.rpc_timeout_s)
        assert not writing.done()
        c.saw("request.timed_out", on=c.a, op="Write")
        c.faults.clear()
        await writing
        await file.close()
        assert await c.b.read("/f") == b"x" * 100_000
        c.never_saw("client.evicted")


# the glimpse ---------------------------------------------------------------------------------------------------------


async def test_a_question_about_a_size_that_was_lost_is_asked_again(world: Any) -> None:
    async with world(oss=1, caching=1) as c:
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"x" * 1000)
        c.faults.arm("ldlm.gl_callback", "drop", on=c.oss[0], peer=c.a.uuid)
        assert (await c.b.stat("/f")).size == 1000
        c.saw("callback.resent", client=c.a, on=c.oss[0], times=1)
        await file.close()
        c.never_saw("client.evicted")


async def test_a_writer_that_says_no_size_is_evicted_and_what_it_kept_is_lost(world: Any) -> None:
    """Who asks hears what is on the disk; the writer hears of its loss."""
    async with world(oss=1, caching=1, write_back_after_s=60.0) as c:
        c.expect(*EVICTION, "client.data_lost")
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"old")
        await file.fsync()
        await file.pwrite(b"x" * 1000)
        c.faults.arm("ldlm.gl_callback", "drop", on=c.oss[0], peer=c.a.uuid, times=-1)
        began = c.loop.time()
        assert (await c.b.stat("/f")).size == 3
        assert c.loop.time() - began < 1.5 * c.tunables.lock_callback_s
        evicted_for(c, "it did not say what it knows", c.oss[0])
        with refused(errno.EIO):
            await file.fsync()
        await file.fsync()
        await file.close()
        for client in (c.a, c.b):
            assert await client.read("/f") == b"old"


@pytest.mark.lustre("OST 12a")
async def test_a_listing_while_an_ost_recovers_finds_the_objects_of_all_names(world: Any) -> None:
    """They were written, or given out, behind its last commit.  Source: lustre/tests/replay-ost-single.sh test_12a"""
    lengths = {str(number): number * 100 * (number % 2) for number in range(150)}

    async def sizes(client: Any) -> dict[str, int]:
        return {entry.name.decode(): entry.stat.size async for entry in client.fs.scandir("/d")}

    async with world(oss=1, caching=1, precreate_min=256, precreate_max=512) as c:
        await c.a.mkdir("/d")
        await c.replay_barrier(c.oss[0])
        for name, length in lengths.items():
            await (c.a.write(f"/d/{name}", b"x" * length) if length else c.a.create(f"/d/{name}"))
        await c.oss[0].kill()
        listing = soon(c.b.unrecorded(sizes(c.b)))
        await asyncio.sleep(1.0)
        assert not listing.done()
        await c.oss[0].start()
        assert await listing == lengths
        for name, length in lengths.items():
            assert await c.b.read(f"/d/{name}") == b"x" * length
        c.never_saw("client.evicted")
