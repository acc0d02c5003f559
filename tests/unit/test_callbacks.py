"""Callbacks to clients, and locks through the real service and OST: enqueue, write under a lock, evict, recover."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lock_harness import RES, Bench, turn
from ost_harness import FILE, Answer, Client, Rig

from lustrelite.errors import OpError, ProtocolError
from lustrelite.faults import Fault
from lustrelite.rpc import callbacks
from lustrelite.server_params import dump_locks
from lustrelite.wire import frame
from lustrelite.wire.ldlm import (
    AST_SENT,
    BLOCK_GRANTED,
    BLOCK_WAIT,
    DISCARD_DATA,
    EXTENT,
    GLIMPSE,
    NO_EXPANSION,
    PR,
    PW,
    REPLAYED,
    Granted,
    Lvb,
    Ride,
    Want,
)
from lustrelite.wire.locks import BlockingCallback, Cancel, CompletionCallback, Enqueue, GlimpseCallback, Known
from lustrelite.wire.message import LOCK_REPLAY_DONE, REQ_REPLAY_DONE, RESENT
from lustrelite.wire.ost import (
    CREATE_DELORPHAN,
    OBJECT_EOF,
    Destroy,
    ObjectGetattr,
    OstCreate,
    Punch,
    Read,
    Write,
    resource_of,
)
from lustrelite.wire.session import Disconnect, Ping


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


# frames


async def test_what_comes_up_in_one_turn_leaves_in_one_frame_of_each_kind(sim: Any) -> None:
    bench = Bench()
    for handle in range(1, 4):
        bench.locks.take(bench.a.export, Want(handle, EXTENT, bytes(7) + bytes([handle]), PW, 0, 0, 0, 0, 9, 0, 0))
        bench.locks.take(bench.b.export, Want(handle, EXTENT, bytes(7) + bytes([handle]), PW, 0, 0, 0, 0, 9, 0, 0))
    await turn()
    (callback,) = bench.a.heard
    assert [ask.handle for ask in callback.body.asks] == [1, 2, 3]
    assert (callback.number, callback.handle, callback.last_committed) == (1, bench.a.export.handle, 7)
    bench.a.cancel(1, 2, 3)
    await turn()
    (completion,) = bench.b.heard
    assert [granted.handle for granted in completion.body.granted] == [1, 2, 3]
    assert bench.a.export.callbacks.unanswered == bench.b.export.callbacks.unanswered == 0  # type: ignore[union-attr]


async def test_many_items_are_several_frames(sim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "ITEMS_MAX", 2)
    bench = Bench()
    for handle in range(1, 6):
        for peer in (bench.a, bench.b):
            bench.locks.take(peer.export, Want(handle, EXTENT, bytes(7) + bytes([handle]), PW, 0, 0, 0, 0, 9, 0, 0))
    await turn()
    assert [(c.number, len(c.body.asks)) for c in bench.a.heard] == [(1, 2), (2, 2), (3, 1)]


async def test_a_lock_is_granted_before_it_is_asked_for(sim: Any) -> None:
    bench = Bench.disputed()
    await turn()
    bench.a.cancel(1)
    bench.c.take(3)  # in the same turn
    await turn()
    assert [type(callback.body) for callback in bench.b.heard] == [CompletionCallback, BlockingCallback]


async def test_an_unanswered_callback_comes_again_under_its_number(sim: Any) -> None:
    bench = Bench.disputed(rpc_timeout_s=2.0)
    bench.a.says = None
    await asyncio.sleep(2.1)
    assert [callback.number for callback in bench.a.heard] == [1, 1] and bench.saw("callback.resent") == 1
    bench.a.answer(bench.a.heard[0], 0, ((0,),))
    bench.a.answer(bench.a.heard[1], 0, ((0,),))
    await asyncio.sleep(5)
    assert len(bench.a.heard) == 2


async def test_a_lost_callback_comes_again(sim: Any) -> None:
    """Source: recovery-small 10e, OBD_FAIL_LDLM_BL_CALLBACK_NET"""
    bench = Bench.disputed(rpc_timeout_s=2.0)
    bench.node.faults.arm("ldlm.bl_callback", Fault("drop"))
    await asyncio.sleep(1)
    assert not bench.a.heard and bench.a.export.last_callback == 1
    await asyncio.sleep(1.5)
    assert [callback.number for callback in bench.a.heard] == [1]


async def test_faults_of_callbacks(sim: Any) -> None:
    bench = Bench.disputed()
    bench.node.faults.arm("ldlm.cp_callback", Fault("delay", delay_s=1.0))
    bench.a.cancel(1)
    await asyncio.sleep(0.5)
    assert not bench.b.heard
    await asyncio.sleep(0.6)
    assert bench.b.items(CompletionCallback)
    bench.node.faults.arm("ldlm.bl_callback", Fault("error", errno=5))
    bench.c.take(3)
    await turn()
    assert bench.target.evicted == [("b", "it answered a BlockingCallback with EIO")]


async def test_a_bad_answer_costs_the_link(sim: Any) -> None:
    bench = Bench.disputed()
    bench.a.says = None
    await turn()
    sender = bench.a.export.callbacks
    assert sender is not None
    for body in (None, (), ((),), ((0, 0),), ((b"x",),)):
        with pytest.raises(ProtocolError):
            sender.answered(1, 0, body)
    sender.answered(2, 0, None)  # of another life: ignored
    assert sender.unanswered == 1


# through the service


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    tunables = made.node.tunables
    tunables.lock_callback_s, tunables.lock_lease_margin_s, tunables.rpc_timeout_s = 0.4, 0.1, 0.15
    await made.start(create=True)
    await made.connect()
    await made.grant(20)
    yield made
    assert not made.crashes
    await made.kill()


def want(handle: int, mode: int = PW, start: int = 0, end: int = OBJECT_EOF, *, oid: int = 1, flags: int = 0) -> Want:
    return Want(handle, EXTENT, resource_of(oid), mode, flags, 0, 0, start, end, 0, 0)


async def second(rig: Rig, name: str = "second_UUID") -> Client:
    client = Client(rig.service, name)
    await client.connect(rig.ost.uuid)
    return client


async def take(client: Client, *wants: Want, cancels: tuple[int, ...] = ()) -> tuple[Granted, ...]:
    return (await client.call(Enqueue(wants, cancels))).granted  # type: ignore[no-any-return]


def write(oid: int, offset: int, lock: int, *, sync: bool = False, time: int = 5) -> Write:
    return Write(oid, offset, FILE, 0, time, lock, sync=sync)


async def refused(client: Client, body: Any, bulk: bytes | None = None) -> int:
    with pytest.raises(OpError) as caught:
        await client.call(body, bulk)
    return caught.value.errno


async def test_the_lease_is_shorter_than_the_time_to_give_back(rig: Rig) -> None:
    reply = await rig.client.connect(rig.ost.uuid)
    assert reply.lease_ms == 300


async def test_a_handover_with_what_was_written(rig: Rig) -> None:
    other = await second(rig)
    (granted,) = await take(rig.client, want(1, PW, 0, 4095))
    assert granted.flags & BLOCK_GRANTED and granted.lvb == Lvb(0, 0, 0, 0, 0)
    (waits,) = await take(other, want(1, PR, 0, 99))
    assert waits.flags & BLOCK_WAIT
    await until(lambda: rig.client.heard(BlockingCallback))
    await rig.client.call(write(1, 0, 1, sync=True), b"x" * 1000)
    await rig.client.call(Cancel((1,)))
    await until(lambda: other.heard(CompletionCallback))
    (told,) = other.heard(CompletionCallback)
    assert told.handle == 1 and told.lvb.size == 1000 and told.lvb.mtime == 5
    answer = await other.ask(Read(1, 0, 2000, 1))
    assert answer.bulk == b"x" * 1000
    assert answer.callback == other.callbacks[-1].number == 1


async def test_no_such_object(rig: Rig) -> None:
    answer = await rig.client.ask(Enqueue((want(1, oid=99),), ()))
    assert answer.status == -errno.EINPROGRESS, "the MDT has not said which ids it uses"
    await rig.mdt.call(OstCreate(rig.ost.last_id, CREATE_DELORPHAN))
    refusals = await take(rig.client, want(1, oid=99), want(2, oid=99, flags=GLIMPSE), want(3)._replace(resource=b"?"))
    assert [granted.status for granted in refusals] == [-errno.ENOENT, -errno.ENOENT, -errno.EINVAL]
    assert not rig.ost.namespace.resource_count


async def test_nothing_is_written_without_the_lock_that_is_named(rig: Rig) -> None:
    await take(rig.client, want(1, PW, 0, 4095, flags=NO_EXPANSION), want(2, PR, oid=2))
    other = await second(rig)
    await take(other, want(5, PW, 8192, 9000))
    assert await refused(rig.client, write(1, 0, 99), b"x") == errno.ESTALE
    assert await refused(rig.client, write(2, 0, 1), b"x") == errno.ESTALE  # of another object
    assert await refused(rig.client, write(2, 0, 2), b"x") == errno.ESTALE  # to read only
    assert await refused(other, write(1, 8191, 5), b"x") == errno.ESTALE
    assert await refused(rig.client, Punch(1, 0, OBJECT_EOF, FILE, 0, 5, 99)) == errno.ESTALE
    assert await refused(rig.client, Read(1, 0, 10, 99)) == errno.ESTALE
    assert (await rig.client.call(ObjectGetattr(1))).size == 0
    await other.call(write(1, 8192, 5), b"x")
    await rig.client.call(Read(2, 0, 10, 2))
    await rig.client.call(Cancel((1,)))
    assert await refused(rig.client, write(1, 0, 1), b"x" * 200_000) == errno.ESTALE
    await other.call(Punch(1, 8200, 8300, FILE, 0, 5, 5))


async def test_a_resent_write_that_was_executed_is_answered_although_its_lock_went(rig: Rig) -> None:
    await take(rig.client, want(1))
    body = write(1, 0, 1)
    answer = await rig.client.ask(body, b"x" * 10)
    xid = rig.client.xid
    await rig.client.call(Cancel((1,)))
    again = await rig.client.ask(body, b"x" * 10, xid=xid, flags=RESENT)
    assert again.status == 0 and again.transno == answer.transno


async def test_a_written_lock_goes_on_when_the_data_is_durable(rig: Rig) -> None:
    """sync_lock_cancel=blocking: who reads it must not lose it with its author."""
    other = await second(rig)
    rig.ost.committer.hold()
    await take(rig.client, want(1))
    answer = await rig.client.ask(write(1, 0, 1), b"x" * 10)
    assert answer.transno > rig.ost.last_committed
    await take(other, want(1, PR))
    await until(lambda: rig.client.heard(BlockingCallback))
    await rig.client.call(Cancel((1,)))
    await asyncio.sleep(0.6)  # longer than it has: it has done its part
    assert not other.heard(CompletionCallback) and not rig.ost.evictions
    rig.ost.committer.release()
    await until(lambda: other.heard(CompletionCallback))
    assert rig.ost.last_committed >= answer.transno and not rig.ost.unsynced


@pytest.mark.parametrize(("when", "asked", "waits"), [("never", True, False), ("always", False, True), ("blocking", False, False)])
async def test_sync_lock_cancel(rig: Rig, when: str, asked: bool, waits: bool) -> None:
    rig.node.tunables.sync_lock_cancel = when
    other = await second(rig)
    rig.ost.committer.hold()
    await take(rig.client, want(1))
    await rig.client.call(write(1, 0, 1), b"x")
    if asked:
        await take(other, want(1, PR))
    await rig.client.call(Cancel((1,)))
    assert (rig.ost.namespace.table.find(rig.ost.exports["client_UUID"], 1) is not None) == waits
    rig.ost.committer.release()
    await until(lambda: rig.ost.namespace.lock_count == asked)


async def test_a_glimpse_asks_the_writer(rig: Rig) -> None:
    other = await second(rig)
    rig.client.says = lambda item, number: Known(Lvb(777, 0, 0, 9, 0), 0)
    await take(rig.client, want(1), want(2, oid=2))
    answer = await take(other, want(1, PR, flags=GLIMPSE), want(2, PR, oid=2, flags=GLIMPSE), want(3, PR, oid=3, flags=GLIMPSE))
    assert [(g.status, g.lvb.size) for g in answer if g.lvb] == [(-errno.EWOULDBLOCK, 777)] * 2 + [(0, 0)]
    assert len([c for c in rig.client.callbacks if type(c.body) is GlimpseCallback]) == 1


async def test_a_resent_glimpse_waits_for_the_same_answer(rig: Rig) -> None:
    other = await second(rig)
    rig.client.says = None
    await take(rig.client, want(1))
    body = Enqueue((want(1, PR, flags=GLIMPSE),), ())
    first = other.start(body)
    again = other.start(body, flags=RESENT, xid=other.xid)
    await until(lambda: rig.client.callbacks)
    rig.client.reply_to(rig.client.callbacks[0], 0, ((None,),))
    answer = await asyncio.wait_for(again, 5)
    assert answer.status == 0 and len(rig.client.callbacks) == 1 and not first.done()


async def test_a_silent_client_is_evicted_and_the_next_one_goes_on(rig: Rig) -> None:
    other = await second(rig)
    rig.client.says = None
    await take(rig.client, want(1))
    await take(other, want(1))
    await until(lambda: other.heard(CompletionCallback))
    assert rig.ost.evictions == 1
    (event,) = rig.node.events.select("client.evicted")
    assert "lock callback timer expired" in event.fields["why"]
    assert await refused(rig.client, Ping()) == errno.ENOTCONN


async def test_a_client_that_leaves_takes_its_locks_along(rig: Rig) -> None:
    other = await second(rig)
    await take(rig.client, want(1))
    await take(other, want(1))
    await rig.client.call(Disconnect())
    await until(lambda: other.heard(CompletionCallback))
    assert rig.ost.namespace.lock_count == 1


async def test_a_reconnected_client_hears_what_it_missed(rig: Rig) -> None:
    other = await second(rig)
    rig.client.says = None
    await take(rig.client, want(1))
    await take(other, want(1))
    await until(lambda: rig.client.callbacks)
    rig.client.close()
    handle = rig.client.handle
    rig.client.link_to(rig.service)
    rig.client.handle = handle
    rig.client.callbacks.clear()
    await rig.client.connect(rig.ost.uuid)
    assert [callback.number for callback in rig.client.callbacks] == [1]
    assert rig.client.callbacks[0].conn_cnt == rig.client.conn_cnt


async def test_a_callbacks_bad_answer_closes_the_link(rig: Rig) -> None:
    await take(rig.client, want(1))
    rig.client.receiver.frame_received(rig.client, frame.CALLBACK_REPLY, ("no",), None)
    assert rig.client.closed


async def test_a_ride_gives_back_first(rig: Rig) -> None:
    await take(rig.client, want(1))
    answer = await rig.client.ask(ObjectGetattr(1), ride=Ride((1,), None))
    assert answer.status == 0 and answer.granted == () and rig.ost.namespace.lock_count == 0


async def test_an_enqueue_gives_back_first_and_takes_many(rig: Rig) -> None:
    await take(rig.client, want(1))
    granted = await take(rig.client, want(2, PR), want(3, PR, oid=2), cancels=(1,))
    assert [g.status for g in granted] == [0, 0] and rig.ost.namespace.lock_count == 2


async def test_a_late_copy_of_an_enqueue_takes_nothing(rig: Rig) -> None:
    body = Enqueue((want(1),), ())
    await rig.client.call(body)
    xid = rig.client.xid
    await rig.client.call(Cancel((1,)))
    rig.ost.exports["client_UUID"].last_xid = xid  # it was answered, the client has said
    rig.client.start(body, xid=xid)
    assert rig.ost.namespace.lock_count == 0


# orderly stop


async def test_a_target_that_stops_takes_back_all_locks_first(rig: Rig) -> None:
    """What is cached is written back and durable; locks that are wanted meanwhile wait for the successor."""
    other = await second(rig)
    await take(rig.client, want(1), want(2, PR, oid=2))
    await take(other, want(5, PR, oid=2), want(6))
    stopping = asyncio.ensure_future(rig.ost.stop())
    await until(lambda: len(rig.client.heard(BlockingCallback)) == 2)
    assert [ask.handle for ask in other.heard(BlockingCallback)] == [5]
    assert await refused(other, Enqueue((want(7, oid=3),), ())) == errno.EAGAIN
    answer = await rig.client.ask(write(1, 0, 1), b"x" * 10)
    await rig.client.call(Cancel((1, 2)))
    await until(lambda: other.heard(CompletionCallback))
    assert other.heard(CompletionCallback)[0].flags & AST_SENT
    assert not stopping.done()
    await other.call(Cancel((5, 6)))
    await asyncio.wait_for(stopping, 5)
    assert rig.ost.last_committed >= answer.transno and not rig.ost.evictions
    await rig.start()
    assert len(rig.ost.exports) == 3


async def test_who_is_silent_while_a_target_stops_is_evicted(rig: Rig) -> None:
    rig.client.says = None
    await take(rig.client, want(1))
    await asyncio.wait_for(rig.ost.stop(), 5)
    assert rig.ost.evictions == 1
    await rig.start()
    assert list(rig.ost.exports) == ["test-MDT0000-mdtlov_UUID"]


async def test_the_queues_of_an_object_can_be_read(rig: Rig) -> None:
    other = await second(rig)
    await take(rig.client, want(1))
    await take(other, want(1, PR))
    (told,) = dump_locks(rig.ost, "0x1")
    assert [lock["handle"] for lock in told["granted"]] == [1] and [found["resource"] for found in dump_locks(rig.ost, "")] == [told["resource"]]
    assert dump_locks(rig.ost, "7")[0]["granted"] == []
    with pytest.raises(ValueError, match="invalid literal"):
        dump_locks(rig.ost, "[0x1:0x2:0x0]")


# recovery


async def done(client: Client) -> asyncio.Future[Answer]:
    return client.start(Ping(), flags=REQ_REPLAY_DONE | LOCK_REPLAY_DONE)


async def test_locks_are_replayed_after_a_restart(rig: Rig) -> None:
    """Granted and waiting ones; nobody is granted anything before everybody has spoken; then callbacks are sent again."""
    other = await second(rig)
    await take(rig.client, want(1, PW, 0, 4095))
    await take(other, want(1, PW, 0, 99))
    await until(lambda: rig.client.callbacks)
    await rig.commit()
    await rig.kill()
    await rig.start()
    everybody = (rig.mdt, rig.client, other)
    for client in everybody:
        client.link_to(rig.service)
        client.callbacks.clear()
        await client.connect(rig.ost.uuid)
    assert rig.ost.recovering and rig.ost.namespace.frozen
    assert await refused(rig.client, Enqueue((want(7),), ())) == errno.EAGAIN
    first = rig.client.start(Enqueue((want(1, PW, flags=REPLAYED | BLOCK_GRANTED),), ()))
    xid = rig.client.xid
    second_one = other.start(Enqueue((want(1, PW, 0, 99, flags=REPLAYED | BLOCK_WAIT),), ()))
    await asyncio.sleep(0.01)
    assert not first.done() and rig.ost.recovery.window.stage == "REQUESTS"  # type: ignore[union-attr]
    assert (await rig.client.ask(Cancel((99,)))).status == 0
    again = rig.client.start(Enqueue((want(1, PW, flags=REPLAYED | BLOCK_GRANTED),), ()), xid=xid, flags=RESENT)
    pings = [await done(rig.mdt)]
    assert (await asyncio.wait_for(again, 5)).body[0][0][4] == BLOCK_GRANTED
    assert (await asyncio.wait_for(second_one, 5)).body[0][0][4] & BLOCK_WAIT
    assert rig.ost.namespace.lock_count == 2 and not rig.client.callbacks
    pings += [await done(rig.client), await done(other)]
    await asyncio.gather(*pings)
    assert not rig.ost.recovering and not rig.ost.namespace.frozen
    await until(lambda: rig.client.heard(BlockingCallback))
    await rig.client.call(Cancel((1,)))
    await until(lambda: other.heard(CompletionCallback))
    (event,) = rig.node.events.select("lock.replayed", client="client_UUID")
    assert event.fields["count"] == 1


async def test_replayed_writes_need_no_lock(rig: Rig) -> None:
    rig.ost.committer.hold()
    await take(rig.client, want(1))
    answer = await rig.client.ask(write(1, 0, 1), b"x" * 10)
    xid = rig.client.xid
    await rig.kill()
    rig.node.dead = False
    await rig.start()
    await rig.reconnect(answer.transno)
    replay = await rig.client.replay(write(1, 0, 1), b"x" * 10, answer, xid)
    assert replay.status == 0


async def test_a_lock_replay_outside_recovery_is_not_believed(rig: Rig) -> None:
    assert await refused(rig.client, Enqueue((want(1, flags=REPLAYED | BLOCK_GRANTED),), ())) == errno.ENOTCONN
    assert rig.ost.evictions == 1 and rig.ost.namespace.lock_count == 0


async def test_a_mixture_of_replayed_and_new_is_refused(rig: Rig) -> None:
    assert await refused(rig.client, Enqueue((want(1), want(2, flags=REPLAYED)), ())) == errno.EINVAL
    assert RES


async def test_a_cancel_travels_with_the_flush(rig: Rig) -> None:
    """The data first: who waits for the lock reads it."""
    other = await second(rig)
    await take(rig.client, want(1))
    await take(other, want(1, PR))
    await until(lambda: rig.client.heard(BlockingCallback))
    await rig.client.call(write(1, 0, 1)._replace(release=True), b"data")
    await until(lambda: other.heard(CompletionCallback))
    assert rig.ost.last_committed == rig.ost.last_transno  # sync_lock_cancel=blocking
    assert (await other.ask(Read(1, 0, 10, 1))).bulk == b"data"
    assert rig.ost.namespace.holds(rig.ost.exports["client_UUID"], 1, resource_of(1)) is None


async def test_a_refused_flush_gives_nothing_back(rig: Rig) -> None:
    await take(rig.client, want(1, PW, 0, 99, flags=NO_EXPANSION))
    assert await refused(rig.client, write(1, 90, 1)._replace(release=True), b"x" * 20) == errno.ESTALE
    assert rig.ost.namespace.lock_count == 1


async def test_who_caches_a_destroyed_object_need_not_write_it(rig: Rig) -> None:
    await take(rig.client, want(1), want(2, PW, oid=2))
    await rig.mdt.call(Destroy((1, 3)))
    await until(lambda: rig.client.heard(BlockingCallback))
    assert [(ask.handle, ask.flags) for ask in rig.client.heard(BlockingCallback)] == [(1, DISCARD_DATA)]


# clients without locks


@pytest.mark.parametrize("length", [10, 1 << 20])
async def test_io_without_a_lock_takes_the_locks_in_the_way_first(rig: Rig, length: int) -> None:
    """The holder's data comes first; a lock that is asked for meanwhile waits for the end of the I/O."""
    other = await second(rig)
    await take(rig.client, want(1))
    pending = other.start(Write(1, 5, FILE, 0, 2), b"n" * length, tag=1)
    await until(lambda: rig.client.heard(BlockingCallback))
    assert not pending.done()
    await rig.client.call(write(1, 0, 1), b"o" * 10)
    await rig.client.call(Cancel((1,)))
    assert (await asyncio.wait_for(pending, 5)).status == 0
    answer = await other.ask(Read(1, 0, 20))
    assert answer.bulk is not None and answer.bulk[:10] == b"ooooonnnnn"
    assert rig.ost.namespace.lock_count == 0 and not rig.ost.prepared


async def test_a_read_without_a_lock_sees_what_a_writer_had_cached(rig: Rig) -> None:
    other = await second(rig)
    await take(rig.client, want(1))
    pending = other.start(Read(1, 0, 20))
    await until(lambda: rig.client.heard(BlockingCallback))
    await rig.client.call(write(1, 0, 1), b"cached")
    await rig.client.call(Cancel((1,)))
    assert (await asyncio.wait_for(pending, 5)).bulk == b"cached"
    assert rig.ost.namespace.lock_count == 0


async def test_attributes_without_a_lock_come_from_the_writer(rig: Rig) -> None:
    other = await second(rig)
    rig.client.says = lambda item, number: Known(Lvb(777, 0, 0, 9, 0), 0)
    await take(rig.client, want(1))
    assert (await other.call(ObjectGetattr(1))).size == 777
    assert rig.ost.namespace.lock_count == 1


async def test_a_punch_without_a_lock_waits_for_a_reader(rig: Rig) -> None:
    other = await second(rig)
    await rig.client.call(Write(1, 0, FILE, 0, 1), b"x" * 100)
    await take(rig.client, want(1, PR))
    pending = other.start(Punch(1, 10, OBJECT_EOF, FILE, 0, 2))
    await until(lambda: rig.client.heard(BlockingCallback))
    assert not pending.done() and rig.ost.files.size(1) == 100
    await rig.client.call(Cancel((1,)))
    await asyncio.wait_for(pending, 5)
    assert rig.ost.files.size(1) == 10 and rig.ost.namespace.lock_count == 0
