"""The locks of a target at work: what is answered, who is asked, when a client's time is up."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from lock_harness import FID, RES, Bench, extent, inode, turn

from lustrelite.ldlm.lock import LockState
from lustrelite.ldlm.namespace import CROWD
from lustrelite.status_text import lock_lines
from lustrelite.store import schema
from lustrelite.wire.ldlm import (
    AST_SENT,
    BLOCK_GRANTED,
    BLOCK_NOWAIT,
    BLOCK_WAIT,
    FLOCK,
    FLOCK_BSD,
    FLOCK_TEST,
    GLIMPSE,
    LAYOUT,
    LOCK_CHANGED,
    LOOKUP,
    NL,
    NO_EXPANSION,
    PERM,
    PR,
    PW,
    REPLAYED,
    UPDATE,
    XATTR,
    Granted,
    Lvb,
    Want,
)
from lustrelite.wire.locks import BlockingCallback, CompletionCallback, GlimpseCallback, Known
from lustrelite.wire.ost import OBJECT_EOF

pytestmark = pytest.mark.simulated

# enqueue, cancel


async def test_a_free_lock_is_granted_in_the_reply_with_what_is_known(sim: Any) -> None:
    bench = Bench()
    granted = bench.a.take(1, PW, 0, 4095)
    assert granted.status == 0 and granted.flags == BLOCK_GRANTED | LOCK_CHANGED
    assert (granted.start, granted.end) == (0, OBJECT_EOF) and granted.lvb == Lvb(100, 8, 1, 2, 3)
    assert bench.locks.lock_count == 1 and bench.locks.waiting_count == 0 and bench.locks.resource_count == 1
    bench.a.cancel(1, 99)
    assert bench.locks.lock_count == bench.locks.resource_count == 0


async def test_a_second_copy_of_an_enqueue_finds_the_first_ones_lock(sim: Any) -> None:
    bench = Bench()
    assert bench.a.take(1) == bench.a.take(1) and bench.locks.lock_count == 1
    assert bench.b.take(5).flags & BLOCK_WAIT and bench.b.take(5).flags & BLOCK_WAIT
    assert bench.locks.lock_count == 2


async def test_who_waits_is_granted_when_the_holder_gives_back(sim: Any) -> None:
    bench = Bench()
    bench.a.take(1)
    waits = bench.b.take(2, PR, 0, 9)
    assert waits.flags == BLOCK_WAIT and waits.lvb is None
    await turn()
    (ask,) = bench.a.items(BlockingCallback)
    assert (ask.handle, ask.mode, ask.start, ask.end) == (1, PR, 0, 9)
    bench.target.values[RES] = Lvb(200, 8, 1, 2, 3)  # it was written back
    bench.a.cancel(1)
    await turn()
    (granted,) = bench.b.items(CompletionCallback)
    assert granted.handle == 2 and granted.flags & BLOCK_GRANTED and not granted.flags & AST_SENT
    assert granted.lvb is not None and granted.lvb.size == 200
    for name in ("lock.waiting", "lock.asked", "lock.cancelled", "lock.completed"):
        assert bench.saw(name) == 1, name


async def test_a_completion_tells_if_somebody_waits_already(sim: Any) -> None:
    bench = Bench.disputed()
    bench.c.take(3)
    bench.a.cancel(1)
    await turn()
    (granted,) = bench.b.items(CompletionCallback)
    assert granted.flags & AST_SENT and not bench.b.items(BlockingCallback)
    await asyncio.sleep(8.1)
    assert [who for who, _ in bench.target.evicted] == ["b"]  # the clock ran from the completion on
    await turn()
    assert [g.handle for g in bench.c.items(CompletionCallback)] == [3]


async def test_a_lock_without_waiting(sim: Any) -> None:
    bench = Bench()
    bench.a.take(1)
    refused = bench.b.take(2, flags=BLOCK_NOWAIT)
    assert refused.status == -errno.EWOULDBLOCK and bench.locks.lock_count == 1
    await turn()
    assert not bench.a.heard


@pytest.mark.parametrize(
    "want",
    [
        extent(0, PW),
        extent(1, 0),
        extent(1, PR | PW),
        extent(1, 128),
        extent(1, PW, 5, 4),
        extent(1, PW, -1, 4),
        extent(1, PW)._replace(type=99),
        extent(1, PW)._replace(resource=b""),
        extent(1, PW)._replace(resource=b"x" * 17),
        inode(1, 0),
        inode(1, 128),
        inode(1, LOOKUP, try_bits=-1),
    ],
)
async def test_a_lock_that_cannot_be_is_refused(sim: Any, want: Any) -> None:
    bench = Bench()
    assert bench.locks.take(bench.a.export, want).status == -errno.EINVAL
    assert bench.locks.lock_count == 0


async def test_two_types_never_meet_on_one_resource(sim: Any) -> None:
    bench = Bench()
    bench.a.take(1)
    assert bench.b.take_bits(2, LOOKUP, fid=RES).status == -errno.EINVAL


async def test_bits_that_are_wanted_go_and_the_rest_stays(sim: Any) -> None:
    bench = Bench()
    bench.a.take_bits(1, LOOKUP | UPDATE)
    assert bench.b.take_bits(2, UPDATE, PW).flags & BLOCK_WAIT
    await turn()
    (ask,) = bench.a.items(BlockingCallback)
    assert ask.bits == UPDATE
    bench.locks.convert(bench.a.export, 1, UPDATE)
    await turn()
    assert [g.handle for g in bench.b.items(CompletionCallback)] == [2]
    assert bench.locks.holds(bench.a.export, 1, FID).bits == LOOKUP  # type: ignore[union-attr]
    await asyncio.sleep(20)
    assert not bench.target.evicted


# deadlines


async def test_who_does_not_give_back_in_time_is_evicted_and_the_others_go_on(sim: Any) -> None:
    bench = Bench.disputed()
    await asyncio.sleep(7.9)
    assert not bench.target.evicted
    await asyncio.sleep(0.3)
    ((who, why),) = bench.target.evicted
    assert who == "a" and "lock callback timer expired" in why and "PW" in why
    await turn()
    assert [g.handle for g in bench.b.items(CompletionCallback)] == [2] and bench.saw("lock.expired") == 1


async def test_repeating_the_question_gives_no_more_time(sim: Any) -> None:
    """A client that was stopped (SIGSTOP) keeps its link: it is asked again and again, and evicted in time."""
    bench = Bench.disputed(rpc_timeout_s=1.0)
    bench.a.says = None
    await asyncio.sleep(8.1)
    assert {callback.number for callback in bench.a.heard} == {1} and len(bench.a.heard) >= 4
    assert bench.target.evicted


async def test_work_under_the_lock_gives_more_time(sim: Any) -> None:
    bench = Bench.disputed()
    for _ in range(4):
        await asyncio.sleep(5)
        bench.locks.deadlines.prolong(bench.locks.holds(bench.a.export, 1, RES))  # type: ignore[arg-type]
    assert not bench.target.evicted
    await asyncio.sleep(8.1)
    assert bench.target.evicted


async def test_a_client_that_comes_back_is_asked_again_and_has_its_time_anew(sim: Any) -> None:
    bench = Bench()
    bench.a.take(1)
    bench.a.cut()
    bench.b.take(2)
    await asyncio.sleep(5)
    assert not bench.a.heard and bench.a.export.last_callback == 1
    bench.a.connect()
    bench.a.export.callbacks.reconnected()  # type: ignore[union-attr]
    await turn()
    assert [callback.number for callback in bench.a.heard] == [1]
    await asyncio.sleep(7)
    assert not bench.target.evicted
    await asyncio.sleep(1.1)
    assert bench.target.evicted


async def test_a_client_that_stays_away_is_evicted_in_time(sim: Any) -> None:
    bench = Bench()
    bench.a.take(1)
    bench.a.cut()
    bench.b.take(2)
    await asyncio.sleep(8.1)
    assert [who for who, _ in bench.target.evicted] == ["a"]


async def test_a_slow_client_gets_half_as_much_again_the_next_time(sim: Any) -> None:
    bench = Bench.disputed()
    for _ in range(2):
        await asyncio.sleep(7)
        bench.locks.deadlines.prolong(bench.locks.holds(bench.a.export, 1, RES))  # type: ignore[arg-type]
    await asyncio.sleep(7)
    bench.a.cancel(1)
    bench.b.cancel(2)
    bench.a.take(3)
    bench.b.take(4)
    await asyncio.sleep(10.4)
    assert not bench.target.evicted
    await asyncio.sleep(0.2)
    assert bench.target.evicted


async def test_a_server_that_stood_still_blames_nobody(sim: Any) -> None:
    bench = Bench.disputed()
    await turn()
    timer = bench.locks.deadlines._timer
    assert timer is not None
    timer.cancel()
    when = timer.when()
    await asyncio.sleep(20)
    bench.locks.deadlines._look(when)  # late, as after a SIGSTOP; the cancel is in the socket
    assert not bench.target.evicted
    bench.a.cancel(1)
    await asyncio.sleep(2)
    assert not bench.target.evicted


async def test_an_evicted_clients_locks_stay_while_it_may_serve_from_them(sim: Any) -> None:
    """It was evicted for another reason than the lock that somebody waits for, and does not know yet."""
    bench = Bench()
    bench.a.take(1)
    bench.target.lease_left_s = 6.0
    bench.target.evict(bench.a.export, "by the administrator")
    assert bench.b.take(2).flags & BLOCK_WAIT
    await asyncio.sleep(5.9)
    assert not bench.b.items(CompletionCallback)
    await asyncio.sleep(0.2)
    assert [g.handle for g in bench.b.items(CompletionCallback)] == [2]
    assert bench.locks.lock_count == 1


async def test_only_the_lock_whose_time_was_up_goes_at_once(sim: Any) -> None:
    bench = Bench()
    bench.target.lease_left_s = 6.0
    bench.target.values[FID[:8]] = Lvb(0, 0, 0, 0, 0)
    bench.a.take(1)
    other = extent(3, PW)._replace(resource=FID[:8])
    bench.locks.take(bench.a.export, other)
    bench.b.take(2)
    await asyncio.sleep(8.1)
    assert bench.target.evicted and [g.handle for g in bench.b.items(CompletionCallback)] == [2]
    assert bench.locks.take(bench.c.export, other._replace(handle=4)).flags & BLOCK_WAIT
    await asyncio.sleep(6.1)
    assert [g.handle for g in bench.c.items(CompletionCallback)] == [4]


# glimpse


def glimpse(bench: Bench, peer: Any, handle: int = 9) -> list[Granted]:
    answers: list[Granted] = []
    bench.locks.glimpse(peer.export, extent(handle, PR, flags=GLIMPSE), answers.append)
    return answers


async def test_a_glimpse_of_what_nobody_writes_is_a_lock(sim: Any) -> None:
    bench = Bench()
    (answer,) = glimpse(bench, bench.b)
    assert answer.status == 0 and answer.flags & BLOCK_GRANTED and answer.lvb == Lvb(100, 8, 1, 2, 3)


async def test_a_glimpse_asks_the_writer_and_leaves_him_his_lock(sim: Any) -> None:
    bench = Bench()
    bench.a.says = lambda item: Known(Lvb(5000, 0, 0, 77, 0), 0)
    bench.a.take(1)
    answers = glimpse(bench, bench.b)
    assert not answers
    await turn()
    assert bench.a.items(GlimpseCallback) == [1] and bench.saw("lock.glimpsed") == 1
    assert [(a.status, a.lvb) for a in answers] == [(-errno.EWOULDBLOCK, Lvb(5000, 8, 1, 77, 3))]
    assert bench.locks.lock_count == 1
    # What he told is not kept: he may die without having written it.
    bench.target.evict(bench.a.export, "test")
    assert glimpse(bench, bench.b)[0].lvb == Lvb(100, 8, 1, 2, 3)


@pytest.mark.parametrize(("executed", "size"), [(False, 5000), (True, 100)])
async def test_what_a_holder_knew_before_its_truncation_counts_until_that_is_done(sim: Any, executed: bool, size: int) -> None:
    """The answer to the truncation is on its way.  Source: coherence seed 803500"""
    bench = Bench()
    bench.a.says = lambda item: Known(Lvb(5000, 8, 1, 2, 3), 17)
    bench.a.take(1)
    if executed:
        bench.a.export.keep_reply(1, schema.ReplyRecord(17, 5, 0, 0, (), 1))
    answers = glimpse(bench, bench.b)
    await turn()
    assert answers[0].lvb is not None and answers[0].lvb.size == size


async def test_a_glimpse_does_not_ask_the_target_itself(sim: Any) -> None:
    """Its locks are those of I/O without a lock of the client.  Source: coherence swarm, seeds 1153, 1182, 1247"""
    bench = Bench()
    held = await bench.locks.local.wait_extent(RES, 0, OBJECT_EOF, PW)
    (answer,) = glimpse(bench, bench.b)
    assert answer.status == -errno.EWOULDBLOCK and answer.lvb == Lvb(100, 8, 1, 2, 3)
    bench.locks.local.release(held)


async def test_a_glimpse_is_answered_when_the_holder_is_gone(sim: Any) -> None:
    bench = Bench()
    bench.a.says = None
    bench.a.take(1)
    answers = glimpse(bench, bench.b)
    await turn()
    bench.target.evict(bench.a.export, "test")
    assert [a.lvb for a in answers] == [Lvb(100, 8, 1, 2, 3)]


async def test_a_holder_that_does_not_answer_a_glimpse_is_evicted(sim: Any) -> None:
    bench = Bench()
    bench.a.says = None
    bench.a.take(1)
    answers = glimpse(bench, bench.b)
    await asyncio.sleep(8.1)
    assert [who for who, _ in bench.target.evicted] == ["a"] and len(answers) == 1


@pytest.mark.parametrize("said", [None, Known(Lvb(900, 8, 1, 2, 3), 0)])
@pytest.mark.parametrize("cancelled", [True, False])
@pytest.mark.parametrize("locks", [2, 40])
async def test_a_glimpse_asks_again_who_gave_back_one_of_several_locks(
    sim: Any, said: Known | None, cancelled: bool, locks: int
) -> None:
    """Its cancel is here, or still on its way; what he wrote under the others nobody else knows.  Source: coherence seed 2200252"""
    bench = Bench()
    bench.a.says = None
    for handle in range(1, locks + 1):
        bench.a.take(handle, PW, 100 * handle, 100 * handle + 99, flags=NO_EXPANSION)
    answers = glimpse(bench, bench.b)
    await turn()
    bench.target.values[RES] = Lvb(500, 8, 1, 2, 3)
    if cancelled:
        bench.a.cancel(locks)
    bench.a.answer(bench.a.heard[0], 0, ((said,),))
    await turn()
    if not cancelled and said is not None:
        assert answers[0].lvb == said.lvb
        return
    assert not answers and bench.a.items(GlimpseCallback) == [locks, locks - 1]
    bench.a.answer(bench.a.heard[1], 0, ((Known(Lvb(5000, 8, 1, 2, 3), 0),),))
    await turn()
    assert answers[0].lvb is not None and answers[0].lvb.size == 5000


async def test_a_glimpse_whose_holder_gave_back_meanwhile_sees_what_he_wrote(sim: Any) -> None:
    bench = Bench()
    bench.a.says = None
    bench.a.take(1)
    answers = glimpse(bench, bench.b)
    await turn()
    bench.target.values[RES] = Lvb(900, 8, 1, 2, 3)
    bench.a.cancel(1)
    bench.a.answer(bench.a.heard[0], 0, ((None,),))
    await turn()
    assert answers[0].lvb is not None and answers[0].lvb.size == 900


# answers to callbacks


async def test_einval_means_that_the_client_has_no_such_lock(sim: Any) -> None:
    bench = Bench.disputed()
    bench.a.says = lambda ask: -errno.EINVAL
    await turn()
    await turn()
    assert [g.handle for g in bench.b.items(CompletionCallback)] == [2] and not bench.target.evicted


async def test_another_error_costs_the_client_its_place(sim: Any) -> None:
    """LU-5581"""
    bench = Bench.disputed()
    bench.a.says = lambda ask: -errno.EIO
    await turn()
    assert bench.target.evicted == [("a", "it answered a BlockingCallback with EIO")]


# the target's own locks


async def test_nobody_in_the_way(sim: Any) -> None:
    bench = Bench()
    assert not bench.locks.local.busy(FID, UPDATE)
    bench.a.take_bits(1, LOOKUP)
    assert not bench.locks.local.busy(FID, UPDATE) and bench.locks.local.busy(FID, LOOKUP | UPDATE)
    assert not bench.locks.local.busy(FID, LOOKUP, bench.a.export, LOOKUP)
    assert bench.locks.local.busy(FID, LOOKUP, bench.a.export, UPDATE)
    bench.b.take_bits(2, LOOKUP)
    assert bench.locks.local.busy(FID, LOOKUP, bench.a.export)


async def test_a_local_lock_holds_clients_up_and_not_the_target(sim: Any) -> None:
    bench = Bench()
    held = await bench.locks.local.wait([(FID, UPDATE)])
    assert bench.a.take_bits(1, UPDATE).flags & BLOCK_WAIT
    assert not bench.locks.local.busy(FID, UPDATE)  # the target is never in its own way
    bench.locks.local.release(held)
    await turn()
    assert [g.handle for g in bench.a.items(CompletionCallback)] == [1]


async def test_waiting_for_local_locks_takes_them_from_the_clients(sim: Any) -> None:
    bench = Bench()
    other = b"e" * 16
    bench.a.take_bits(1, UPDATE)
    bench.b.take_bits(2, UPDATE | LOOKUP, fid=other)
    waiting = asyncio.ensure_future(bench.locks.local.wait([(FID, UPDATE), (other, LOOKUP), (FID, PERM)]))
    await turn()
    assert bench.a.items(BlockingCallback)[0].bits == UPDATE | PERM
    assert bench.b.items(BlockingCallback)[0].bits == LOOKUP
    bench.a.cancel(1)
    await turn()
    assert not waiting.done()
    assert bench.c.take_bits(3, UPDATE).flags & BLOCK_WAIT  # it stands behind
    bench.b.cancel(2)
    locks = await waiting
    assert [lock.state for lock in locks] == [LockState.GRANTED] * 2
    bench.locks.local.release(locks)
    await turn()
    assert [g.handle for g in bench.c.items(CompletionCallback)] == [3]
    assert bench.locks.lock_count == 1 and not bench.locks.local._waits


async def test_a_wait_for_local_locks_that_is_given_up_leaves_nothing(sim: Any) -> None:
    bench = Bench()
    bench.a.take_bits(1, UPDATE)
    waiting = asyncio.ensure_future(bench.locks.local.wait([(b"a" * 16, UPDATE), (FID, UPDATE)]))
    await turn()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert bench.locks.lock_count == 1 and not bench.locks.local._waits


async def test_two_operations_that_want_the_same_never_wait_for_each_other(sim: Any) -> None:
    bench = Bench()
    other = b"e" * 16
    bench.a.take_bits(1, UPDATE)

    async def operate(*fids: bytes) -> None:
        bench.locks.local.release(await bench.locks.local.wait([(fid, UPDATE) for fid in fids]))

    both = asyncio.gather(operate(FID, other), operate(other, FID))
    await turn()
    bench.a.cancel(1)
    await asyncio.wait_for(both, 1)
    assert bench.locks.lock_count == 0


# rides


async def test_a_ride_takes_a_free_lock_with_the_bits_that_are_free(sim: Any) -> None:
    bench = Bench()
    bench.b.take_bits(2, XATTR, PW)
    call = bench.a.call()
    bench.locks.ride(call, FID, inode(1, LOOKUP, fid=b"", try_bits=UPDATE | XATTR | LAYOUT))
    (granted,) = call.granted
    assert granted.resource == FID and granted.bits == LOOKUP | UPDATE | LAYOUT and granted.flags & BLOCK_GRANTED


async def test_a_ride_waits_for_nobody_and_asks_nobody(sim: Any) -> None:
    bench = Bench()
    bench.b.take_bits(2, LOOKUP, PW)
    call = bench.a.call()
    bench.locks.ride(call, FID, inode(1, LOOKUP, fid=b""))
    await turn()
    assert call.granted == () and not bench.b.heard and bench.locks.lock_count == 1


async def test_a_resent_ride_finds_its_lock_unless_it_found_something_else(sim: Any) -> None:
    bench = Bench()
    want = inode(1, LOOKUP, fid=b"")
    for expected in (FID, FID, None):
        call = bench.a.call()
        bench.locks.ride(call, expected or b"e" * 16, want)
        assert [g.resource for g in call.granted] == ([expected] if expected else [])
    assert bench.locks.lock_count == 0


async def test_who_has_one_of_many_locks_gets_no_more_in_passing(sim: Any) -> None:
    """It looks at one name after another of a file with many."""
    bench = Bench()
    for handle in range(1, 3 * CROWD):
        call = bench.a.call()
        bench.locks.ride(call, FID, inode(handle, LOOKUP, fid=b""))
        assert bool(call.granted) == (handle <= CROWD)
    for bits, rides in ((LOOKUP, False), (LOOKUP | UPDATE, True)):
        call = bench.a.call()
        bench.locks.ride(call, FID, inode(1000 + bits, bits, fid=b""))
        assert bool(call.granted) == rides
    call = bench.b.call()
    bench.locks.ride(call, FID, inode(1, LOOKUP, fid=b""))
    assert call.granted and bench.locks.lock_count == CROWD + 2


# record locks


async def test_record_locks_wait_and_are_granted(sim: Any) -> None:
    bench = Bench()
    assert bench.a.flock(1, PW, 0, 9).flags == BLOCK_GRANTED
    assert bench.b.flock(2, PR, 5, 5, flags=BLOCK_NOWAIT).status == -errno.EWOULDBLOCK
    assert bench.b.flock(3, PR, 5, 5).flags == BLOCK_WAIT and bench.locks.waiting_count == 1
    found = bench.b.flock(4, PW, flags=FLOCK_TEST)
    assert (found.mode, found.start, found.end, found.pid) == (PW, 0, 9, 101)
    assert bench.b.flock(5, PW, 10, 20, flags=FLOCK_TEST).mode == NL
    assert bench.a.flock(6, NL, 0, 9).status == 0
    await turn()
    assert [(g.handle, g.status) for g in bench.b.items(CompletionCallback)] == [(3, 0)]
    assert bench.b.flock(7, PW, flags=FLOCK_BSD).flags == BLOCK_GRANTED  # another world


async def test_a_deadlock_of_record_locks_is_refused(sim: Any) -> None:
    bench = Bench()
    bench.a.flock(1, PW, 0, 0)
    bench.b.flock(2, PW, 1, 1)
    assert bench.a.flock(3, PW, 1, 1).flags == BLOCK_WAIT
    assert bench.b.flock(4, PW, 0, 0).status == -errno.EDEADLK


async def test_a_waiting_record_lock_is_given_up_and_owners_go_with_their_client(sim: Any) -> None:
    bench = Bench()
    bench.a.flock(1, PW)
    bench.b.flock(2, PW)
    bench.c.flock(3, PW)
    bench.b.cancel(2)
    assert bench.locks.waiting_count == 1
    bench.target.evict(bench.a.export, "test")
    await turn()
    assert [g.handle for g in bench.c.items(CompletionCallback)] == [3] and not bench.b.heard
    assert not bench.target.evicted[1:]


# recovery


def frozen(bench: Bench) -> None:
    bench.locks.freeze()


async def test_after_a_restart_locks_are_taken_at_their_owners_word(sim: Any) -> None:
    """LU-8306: who waits is granted, or the holder is asked (again), only at the end."""
    bench = Bench()
    frozen(bench)
    want = extent(1, PW, 0, 99, flags=REPLAYED | BLOCK_GRANTED)
    for _ in range(2):
        granted = bench.locks.replay(bench.a.export, want)
        assert granted.flags == BLOCK_GRANTED and (granted.start, granted.end) == (0, 99) and granted.lvb is None
    waits = bench.locks.replay(bench.b.export, extent(2, PW, 50, 60, flags=REPLAYED | BLOCK_WAIT))
    never_answered = bench.locks.replay(bench.c.export, extent(3, PW, 200, 300, flags=REPLAYED))
    assert waits.flags & BLOCK_WAIT and never_answered.flags & BLOCK_WAIT
    bench.locks.replay(bench.a.export, inode(7, LOOKUP, flags=REPLAYED | BLOCK_GRANTED))
    await turn()
    assert not bench.a.heard and not bench.c.heard and bench.locks.lock_count == 4
    bench.locks.thaw()
    await turn()
    assert [ask.handle for ask in bench.a.items(BlockingCallback)] == [1]
    assert [g.handle for g in bench.c.items(CompletionCallback)] == [3]
    bench.a.cancel(1)
    await turn()
    assert [g.handle for g in bench.b.items(CompletionCallback)] == [2]


async def test_record_locks_are_replayed_too(sim: Any) -> None:
    bench = Bench()
    frozen(bench)
    held = Want(1, FLOCK, FID, PW, REPLAYED | BLOCK_GRANTED, 0, 0, 0, 9, 1, 101)
    assert bench.locks.replay(bench.a.export, held).flags == BLOCK_GRANTED
    wanted = held._replace(handle=2, flags=REPLAYED | BLOCK_WAIT)
    assert bench.locks.replay(bench.b.export, wanted).flags == BLOCK_WAIT
    bench.locks.thaw()
    assert bench.a.flock(3, NL, 0, 9).status == 0
    await turn()
    assert [g.handle for g in bench.b.items(CompletionCallback)] == [2]


async def test_eviction_in_recovery_grants_nobody_until_the_end(sim: Any) -> None:
    bench = Bench()
    frozen(bench)
    bench.locks.replay(bench.a.export, extent(1, PW, flags=REPLAYED | BLOCK_GRANTED))
    bench.locks.replay(bench.b.export, extent(2, PW, flags=REPLAYED | BLOCK_WAIT))
    bench.target.evict(bench.a.export, "test")
    await turn()
    assert not bench.b.heard
    bench.locks.thaw()
    await turn()
    assert [g.handle for g in bench.b.items(CompletionCallback)] == [2]


# what one may ask


async def test_the_reason_of_a_wait_is_told(sim: Any) -> None:
    bench = Bench()
    bench.a.take(1)
    await asyncio.sleep(1)
    bench.b.take(2, PR, 0, 9)
    await asyncio.sleep(2)
    told = bench.locks.describe(RES)
    (held,), (waits,) = told["granted"], told["waiting"]
    assert held["handle"] == 1 and held["asked"] and held["age_s"] == 3 and held["time_left_s"] == pytest.approx(6, abs=0.1)
    assert waits["behind"]["handle"] == 1 and "a" in waits["behind"]["owner"] and waits["age_s"] == 2
    assert told["resource"] == RES.hex() and told["posix"] == {"granted": [], "waiting": []}
    first, second, third = lock_lines(told)
    assert first == "resource 0000000000000001 size=100 mtime=2"
    assert "granted PW [0, EOF]" in second and "asked for, 6.0 s left" in second
    assert "waiting PR [0, 9]" in third and "for 2.0 s, behind Export(test-OST0000, a, #0) handle 0x1" in third
    assert bench.locks.contended() == [RES]


async def test_record_locks_are_told_too(sim: Any) -> None:
    bench = Bench()
    bench.a.flock(1, PW, 0, 9)
    bench.b.flock(2, PR, flags=0)
    lines = lock_lines(bench.locks.describe(FID))
    assert "posix granted PW [0, 9]" in lines[1] and "posix waiting PR [0, EOF]" in lines[2] and "behind" in lines[2]
    assert bench.locks.contended() == [FID]
