"""Requests and replies that get lost on a living connection, or that take too long: sent again, done once."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from mounts import two_mounts
from steps import EVICTION, refused, soon, touch

from lustrelite.errors import Evicted
from lustrelite.faults import Fault
from lustrelite.mdt.locks import RESTLESS_S
from lustrelite.wire.mdt import Close, Create, Getattr, Lookup, Open, Readdir, Setattr, Unlink


@pytest.mark.lustre("RS 46")
async def test_an_open_whose_reply_was_lost_leaves_no_handle_behind(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_46"""
    async with world(clients=1) as c:
        await c.a.create("/f")
        lost = c.drop_reply(Open)
        opening = soon(c.a.open("/f"))
        await lost.caught()
        await c.fail(c.mds)
        file = await opening
        assert len(list(c.mds.target().open_handles())) == 1
        await file.close()
        assert not list(c.mds.target().open_handles())


@pytest.mark.lustre("SM 12")
async def test_a_close_that_is_lost_for_two_timeouts_still_ends(world: Any) -> None:
    """The second timeout gives up the connection.  Source: lustre/tests/recovery-small.sh test_12"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        c.drop_request(Close, times=2)
        await file.close()
        c.saw("request.timed_out", op="Close", times=2)
        c.saw("import.lost", client=c.a)
        c.never_saw("import.evicted")


@pytest.mark.lustre("SM 13", "SM 14")
@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
async def test_a_listing_is_read_in_spite_of_a_lost_page(world: Any, reply: bool) -> None:
    """Source: lustre/tests/recovery-small.sh test_13, test_14"""
    async with world(clients=1) as c:
        names = sorted(f"f{i}" for i in range(30))
        for name in names:
            await c.a.create(f"/{name}")
        lost = c.net.drop(Readdir, reply=reply)
        assert await c.a.listdir("/") == names
        await lost.caught()


@pytest.mark.lustre("SM 22")
async def test_a_lost_close_does_not_stand_in_the_way_of_others(world: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_22"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        lost = c.drop_request(Close)
        closing = soon(file.close())
        await lost.caught()
        await c.a.create("/g")
        await c.a.stat("/g")
        await c.a.unlink("/g")
        assert not closing.done()
        await closing


@pytest.mark.lustre("SM 23")
async def test_a_close_lost_before_an_mds_crash_does_not_hang(world: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_23"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        lost = c.drop_request(Close)
        closing = soon(file.close())
        await lost.caught()
        await c.fail(c.mds)
        await closing
        c.saw("import.resent", op="Close")
        assert await c.a.exists("/f")


@pytest.mark.lustre("SM 56")
async def test_a_lookup_that_takes_two_timeouts_in_the_server_succeeds(world: Any) -> None:
    """The server says in time that it is at it, so nothing is resent.

    Source: lustre/tests/recovery-small.sh test_56
    """
    async with world(clients=1) as c:
        await c.a.create("/f")
        c.faults.arm("target.execute", "delay", on=c.mds, delay_s=13.0)
        assert await c.a.exists("/f")
        c.never_saw("import.resent", op="Lookup")
        c.never_saw("import.lost")
        c.never_saw("import.evicted")


@pytest.mark.lustre("SM 130a", "SM 130b")
@pytest.mark.parametrize("by_fid", [False, True], ids=["name", "inode"])
async def test_attributes_asked_for_again_after_the_file_has_gone(world: Any, by_fid: bool) -> None:
    """By name, or by an inode number that has become stale.

    Source: lustre/tests/recovery-small.sh test_130a, test_130b
    """
    async with world(clients=2, caching=0) as c:
        await c.a.create("/f")
        fid = (await c.a.fs.lstat("/f")).fid
        lost = c.drop_reply(Getattr if by_fid else Lookup)
        looking = soon(c.a.fs.stat_fid(fid) if by_fid else c.a.stat("/f"))
        await lost.caught()
        await c.b.unlink("/f")
        with refused(errno.ENOENT):
            await looking


async def test_a_lock_that_came_with_a_lost_reply_and_not_with_the_next_is_given_back(cluster: Any) -> None:
    """Others wanted the file meanwhile, so the MDT gave no lock with the second answer; the first one stood. Attribute swarm, 10530154"""
    async with two_mounts(cluster) as (c, a, b):
        await b.write_file("/u/f", b"x")
        await a.stat("/u/f")
        await b.utimes("/u/f", 1, 2)  # of what a knows that is true no more
        await asyncio.sleep(2 * RESTLESS_S)
        lost = c.drop_reply(Setattr)
        changing = soon(a.utimes("/u/f", 5, 6))
        await lost.caught()
        other = soon(b.utimes("/u/f", 3, 4))
        await asyncio.sleep(0.1)
        next(imp for imp in c.a.imports if "MDT" in imp.target).connection_failed(0, "broken by the test")
        await asyncio.gather(changing, other)
        assert (await b.stat("/u/f")).mtime == 4
        assert (await a.stat("/u/f")).mtime == 4
        await c.settle()


@pytest.mark.lustre("OST 8d")
async def test_creates_wait_while_the_mds_says_in_progress(world: Any) -> None:
    """Source: lustre/tests/replay-ost-single.sh test_8d"""
    async with world(clients=1) as c:
        c.faults.arm("mdt.create", "error", on=c.mds, errno=errno.EINPROGRESS, times=5)
        await c.a.create("/f")
        c.faults.arm("mdt.create", "error", on=c.mds, errno=errno.EINPROGRESS, times=5)
        await touch(c.a, "/g")
        assert await c.a.listdir("/") == ["f", "g"]


@pytest.mark.lustre("OST 8e")
async def test_statfs_waits_while_an_ost_says_in_progress(world: Any) -> None:
    """Source: lustre/tests/replay-ost-single.sh test_8e"""
    async with world(clients=1) as c:
        c.faults.arm("ost.statfs", "error", on=c.oss[0], errno=errno.EINPROGRESS, times=5)
        _, targets = await c.a.fs.statfs_targets()
        assert all(answer is not None for _, answer in targets)


@pytest.mark.lustre("RD 9", "RD 10")
@pytest.mark.parametrize("first", [Create, Unlink], ids=["create", "unlink"])
@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
async def test_a_replay_that_is_sent_again_is_done_once(world: Any, first: type, reply: bool) -> None:
    """Source: lustre/tests/replay-dual.sh test_9, test_10"""
    async with world(clients=2) as c:
        await c.a.create("/old")
        await c.replay_barrier(c.mds)
        await (c.a.create("/a") if first is Create else c.a.unlink("/old"))
        await c.b.create("/b")
        await c.mds.kill()
        lost = c.net.drop(first, reply=reply)
        await c.mds.start()
        await lost.caught()
        await c.settle()
        assert await c.b.listdir("/") == (["a", "b", "old"] if first is Create else ["b"])
        c.never_saw("import.evicted")
        if reply:
            c.saw("reply.reconstructed", op=first.__name__, times=1)


@pytest.mark.lustre("RD 11")
async def test_recovery_ends_although_every_first_reply_in_it_is_lost(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_11"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        for i in range(5):
            await c.clients["ab"[i % 2]].create(f"/{i}")
        await c.mds.kill()
        lost = c.drop_reply(Create, times=5)
        await c.mds.start()
        await c.settle()
        await lost.caught(5)
        assert await c.a.listdir("/") == ["0", "1", "2", "3", "4"]
        c.never_saw("import.evicted")


@pytest.mark.lustre("RD 19")
async def test_an_open_that_was_resent_and_then_lost_makes_one_file(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_19"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        lost = c.drop_reply(Open)
        file = await c.a.open("/f", create=True)
        await lost.caught()
        c.saw("reply.reconstructed", op="Open", times=1)
        await c.fail(c.mds)
        await file.close()
        assert await c.b.listdir("/") == ["f"]


@pytest.mark.lustre("SM 134")
@pytest.mark.parametrize("orderly", [True, False], ids=["stop", "kill"])
async def test_removals_in_flight_meet_the_stop_of_the_mds(world: Any, orderly: bool) -> None:
    """Source: lustre/tests/recovery-small.sh test_134"""
    async with world(clients=2) as c:
        await c.a.create("/f")
        await c.b.create("/g")
        c.faults.arm("target.execute", "delay", on=c.mds, delay_s=2.0, times=4)
        both = asyncio.gather(soon(c.a.unlink("/f")), soon(c.b.rename("/g", "/h")))
        await asyncio.sleep(1.0)
        await (c.mds.stop() if orderly else c.mds.kill())
        await c.mds.start()
        await both
        assert await c.a.listdir("/") == ["h"]


PAUSES_S = 1.5  # of a request that is refused six times; the next pause is longer than a second


async def test_a_refused_change_that_recovery_has_sent_is_not_sent_again(world: Any) -> None:
    """The connection breaks in the pause after EBUSY, and the answer comes before its end."""
    async with world(clients=1) as c:
        mdt = c.a.fs.connections.imports["lustre-MDT0000"]
        c.mds.node.faults.on_message("request", "Create", Fault("error", times=6, errno=errno.EBUSY))
        creating = soon(c.a.create("/f"))
        await asyncio.sleep(PAUSES_S)
        mdt.link.link.close("test")
        await creating
        await asyncio.sleep(30)
        assert not mdt.sending
        assert mdt.counts["timeouts"] == 0
        c.saw("import.lost", target="lustre-MDT0000", times=1)


async def test_a_client_is_evicted_while_its_create_is_in_progress(world: Any) -> None:
    """The request waits for its next turn, under no xid: it must fail like all others."""
    async with world(clients=1) as c:
        c.expect(*EVICTION)
        c.faults.arm("mdt.create", "error", on=c.mds, errno=errno.EINPROGRESS, times=6)
        creating = soon(c.a.create("/f"))
        await asyncio.sleep(PAUSES_S)
        await c.evict(c.a)
        c.a.fs.connections.imports["lustre-MDT0000"].link.link.close("test")
        with pytest.raises(Evicted):
            await creating


async def test_an_answer_to_one_copy_says_nothing_of_another(cluster: Any) -> None:
    """"Come again" is late; the copy that was sent meanwhile makes the file. Under a new xid it would be there already. Seed 7326"""
    async with cluster(clients=1, rpc_timeout_s=5.0) as c:
        c.faults.arm("mdt.create", "error", on=c.mds, errno=errno.EINPROGRESS, times=1)
        late = c.net.hold(Create, to=c.a, source=c.mds, reply=True, times=1)
        creating = soon(c.a.create("/f"))
        await late.caught()
        again = c.net.hold(Create, to=c.a, source=c.mds, reply=True, times=1)
        await again.caught()  # the second copy was executed
        late.release()
        await asyncio.sleep(0.5)
        again.release()
        await creating
        c.never_saw("import.lost", target="lustre-MDT0000")


@pytest.mark.parametrize("number", [errno.EINPROGRESS, errno.EAGAIN], ids=errno.errorcode.__getitem__)
async def test_what_was_given_up_and_not_executed_is_not_sent_again(world: Any, number: int) -> None:
    """Its caller went while it was on its way. It kept a reply slot for ever, and was done when nobody expected it any more."""
    async with world(clients=1) as c:
        await c.a.create("/first")
        mdt = c.a.fs.connections.imports["lustre-MDT0000"]
        c.faults.arm("mdt.create", "error", on=c.mds, errno=number, times=3)
        answer = c.net.hold(Create, to=c.a, source=c.mds, reply=True, times=1)
        creating = soon(c.a.create("/given up"))
        await answer.caught()
        creating.cancel()
        await asyncio.sleep(0.1)
        answer.release()
        await asyncio.sleep(0.5)
        assert not mdt.delayed and not mdt.sending and not mdt.slots._taken
        assert mdt.calls["Create"] == 2 and await c.a.listdir("/") == ["first"]
        await c.a.create("/second")
        assert await c.a.listdir("/") == ["first", "second"]
