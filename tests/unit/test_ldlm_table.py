"""The locks of a target: names, resent enqueues, deadlines, owners that go, replay; and the client's LRU."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.errors import ProtocolError
from lustrelite.ldlm.lock import LOCAL, Blocking, Completion, Deny, Grant, Lock, LockState, Wait
from lustrelite.ldlm.lru import REPLAY_FLAGS, Holding, LockLru, replayed_as_granted
from lustrelite.ldlm.table import LockTable
from lustrelite.wire import ldlm as wire
from lustrelite.wire import locks
from lustrelite.wire.ldlm import EX, EXTENT, GROUP, IBITS, LOOKUP, NO_TIMEOUT, PR, PW, UPDATE

FID = bytes(16)


def test_a_resent_enqueue_finds_its_first_lock() -> None:
    """LU-2827: a second lock of the same client would wait for the first."""
    t = LockTable()
    a = Lock("a", 7, EX, bits=UPDATE)
    t.enqueue(FID, IBITS, a, 0.0)
    assert t.enqueue(FID, IBITS, Lock("a", 7, EX, bits=UPDATE), 1.0) == [Grant(a)]
    b = Lock("b", 7, EX, bits=UPDATE)
    assert t.enqueue(FID, IBITS, b, 0.0)[0] == Wait(b, a)
    assert t.enqueue(FID, IBITS, Lock("b", 7, EX, bits=UPDATE), 1.0) == [Wait(b, a)]
    assert t.lock_count == 2 and t.waiting_count == 1 and list(t.locks()) == [a, b]
    assert t.find("b", 7) is b and t.find("b", 8) is None and t.find("c", 7) is None


def test_a_cancel_of_an_unknown_lock_is_nothing() -> None:
    t = LockTable()
    assert t.cancel("a", 7, 0.0) == []
    t.enqueue(FID, IBITS, Lock("a", 7, EX, bits=UPDATE), 0.0)
    assert t.cancel("b", 7, 0.0) == [], "another's handle"
    assert t.lock_count == 1
    assert t.cancel("a", 7, 0.0) == [] and not t.resources and not t.owners and t.lock_count == 0


def test_a_refused_lock_leaves_nothing() -> None:
    t = LockTable()
    t.enqueue(FID, IBITS, Lock("a", 7, EX, bits=UPDATE), 0.0)
    b = Lock("b", 7, EX, bits=UPDATE)
    assert t.enqueue(FID, IBITS, b, 0.0, wait=False) == [Deny(b, errno.EWOULDBLOCK)]
    assert t.find("b", 7) is None and t.lock_count == 1


def test_convert_to_nothing_is_a_cancel() -> None:
    t = LockTable()
    a, b = Lock("a", 1, PR, bits=UPDATE | LOOKUP), Lock("b", 1, EX, bits=UPDATE)
    t.enqueue(FID, IBITS, a, 0.0)
    t.enqueue(FID, IBITS, b, 0.0)
    assert t.convert("b", 1, UPDATE, 0.0) == [], "it waits still"
    assert t.convert("a", 1, UPDATE, 0.0) == [Completion(b, False)] and t.waiting_count == 0
    assert t.convert("a", 1, LOOKUP, 0.0) == [] and a.state is LockState.GONE and t.find("a", 1) is None
    assert t.convert("a", 1, LOOKUP, 0.0) == []


def test_who_does_not_answer_in_time_is_late() -> None:
    t = LockTable()
    a, b = Lock("a", 1, PW), Lock("b", 1, PW)
    t.enqueue(FID, EXTENT, a, 0.0)
    t.asked(a, 5.0)
    assert a.deadline is None and t.next_deadline() is None, "nobody wants it yet"
    assert t.enqueue(FID, EXTENT, b, 0.0) == [Wait(b, a), Blocking(a, b)]
    t.asked(a, 10.0)
    t.asked(a, 8.0)
    assert t.next_deadline() == 10.0 and t.expired(9.9) == []
    t.prolong("a", 1, 15.0)  # it writes back
    t.prolong("b", 1, 15.0)
    t.prolong("c", 1, 15.0)
    assert t.expired(10.0) == [] and t.next_deadline() == 15.0
    assert t.expired(15.0) == [a] and t.next_deadline() is None
    assert t.owner_gone("a", 15.0) == [Completion(b, False)]
    assert t.owner_gone("a", 15.0) == [] and t.lock_count == 1


def test_who_gives_back_is_not_late() -> None:
    t = LockTable()
    a, b, c = Lock("a", 1, PR, bits=3), Lock("b", 1, EX, bits=UPDATE), Lock("c", 1, EX, bits=LOOKUP)
    t.enqueue(FID, IBITS, a, 0.0)
    t.enqueue(FID, IBITS, b, 0.0)
    t.asked(a, 5.0)
    t.convert("a", 1, UPDATE, 1.0)
    assert a.deadline is None
    t.enqueue(FID, IBITS, c, 2.0)
    t.asked(a, 7.0)
    assert t.expired(6.0) == [] and t.next_deadline() == 7.0
    t.cancel("a", 1, 6.5)
    assert t.expired(100.0) == []


@pytest.mark.parametrize("lock", [Lock(LOCAL, 1, PW), Lock("a", 1, GROUP, gid=1), Lock("a", 1, PW, flags=NO_TIMEOUT)])
def test_some_may_take_their_time(lock: Lock) -> None:
    t = LockTable()
    t.enqueue(FID, EXTENT, lock, 0.0)
    t.enqueue(FID, EXTENT, Lock("b", 1, PW), 0.0)
    t.asked(lock, 5.0)
    assert lock.asked and t.expired(1e9) == []
    t.owner_gone("b", 0.0)
    t.cancel(lock.owner, 1, 0.0)
    lock.__init__(lock.owner, 1, lock.mode, gid=lock.gid, flags=lock.flags)  # type: ignore[misc]


def test_a_group_waits_before_those_who_are_in_none() -> None:
    """Source: sanityn test_107b; ldlm_extent_compat_queue()"""
    t = LockTable()
    one, reader, other = Lock("a", 1, GROUP, gid=7), Lock("b", 1, PR), Lock("c", 1, GROUP, gid=8)
    third, writer = Lock("d", 1, GROUP, gid=9), Lock("e", 1, PW)
    for lock in (one, reader, other, third, writer):
        t.enqueue(FID, EXTENT, lock, 0.0)
    assert t.waiting_count == 4
    assert t.cancel("a", 1, 1.0) == [Completion(other, True)]
    assert t.cancel("c", 1, 1.0) == [Completion(third, True)], "groups in the order they came in"
    assert t.cancel("d", 1, 1.0) == [Completion(reader, True)]
    assert t.cancel("b", 1, 1.0) == [Completion(writer, False)]


def test_an_owner_that_goes_while_he_waits_grants_nothing_to_himself() -> None:
    """Scenario recovery-small 18: a waiting lock is not granted to a dead export."""
    t = LockTable()
    a, b1, b2, c = Lock("a", 1, PW), Lock("b", 1, PW), Lock("b", 2, PW), Lock("c", 1, PW)
    for lock in (b1, a, b2, c):
        t.enqueue(FID, EXTENT, lock, 0.0)
    assert t.waiting_count == 3
    assert t.owner_gone("b", 1.0) == [Completion(a, True)]
    assert t.waiting_count == 1 and t.lock_count == 2


def test_recovery_freezes_replays_and_thaws() -> None:
    t = LockTable(frozen=True)
    a, b, c = Lock("a", 1, PW), Lock("b", 1, PR), Lock("c", 1, PW, start=0, end=9)
    assert t.replay(FID, EXTENT, b, False, 0.0) is b
    assert t.replay(FID, EXTENT, c, False, 0.0) is c
    assert t.replay(FID, EXTENT, a, True, 0.0) is a
    assert t.replay(FID, EXTENT, Lock("a", 1, PW), True, 0.0) is a
    with pytest.raises(AssertionError):
        t.enqueue(FID, EXTENT, Lock("d", 1, PW), 0.0)
    assert t.owner_gone("d", 0.0) == []
    assert t.thaw(1.0) == [Blocking(a, b)]
    with pytest.raises(AssertionError):
        t.replay(FID, EXTENT, Lock("d", 1, PW), True, 0.0)
    assert t.waiting_count == 2
    assert t.cancel("a", 1, 2.0) == [Completion(b, True)]


def test_an_owner_that_goes_during_recovery_starts_nothing() -> None:
    t = LockTable(frozen=True)
    a, b = Lock("a", 1, PW), Lock("b", 1, PW)
    t.replay(FID, EXTENT, a, True, 0.0)
    t.replay(FID, EXTENT, b, False, 0.0)
    assert t.owner_gone("a", 0.0) == [] and b.state is LockState.WAITING
    assert t.thaw(1.0) == [Completion(b, False)] and t.waiting_count == 0


def test_a_dump_says_who_waits_and_why() -> None:
    t = LockTable()
    assert t.describe(FID, 0.0)["granted"] == []
    a, b = Lock("a", 1, PR, bits=3), Lock("b", 2, EX, bits=UPDATE)
    t.enqueue(FID, IBITS, a, 1.0)
    t.enqueue(FID, IBITS, b, 2.0)
    t.asked(a, 10.0)
    shown = t.describe(FID, 4.0)
    assert shown["granted"] == [
        {"owner": "a", "handle": 1, "mode": "PR", "age_s": 3.0, "bits": "LOOKUP|UPDATE", "asked": True, "time_left_s": 6.0}
    ]
    assert shown["waiting"][0]["behind"] == {"owner": "a", "handle": 1}
    t.enqueue(b"o", EXTENT, Lock("a", 3, PW), 4.0)
    assert t.describe(b"o", 4.0)["granted"][0]["extent"][0] == 0
    assert repr(a) == "Lock(a:0x1 PR LOOKUP|UPDATE GRANTED asked)"


def test_a_glimpse_through_the_table() -> None:
    t = LockTable()
    a = Lock("a", 1, PW)
    t.enqueue(b"o", EXTENT, a, 0.0)
    assert len(t.glimpse(b"o", Lock("b", 1, PR), 0.0)) == 2 and t.lock_count == 1
    b = Lock("b", 2, PR)
    assert t.glimpse(b"p", b, 0.0) == [Grant(b)] == t.glimpse(b"p", Lock("b", 2, PR), 0.0)
    assert t.lock_count == 2


def test_downgrade_through_the_table() -> None:
    t = LockTable()
    own, a = Lock(LOCAL, 1, PW, bits=UPDATE, client="a"), Lock("a", 1, PR, bits=UPDATE)
    t.enqueue(FID, IBITS, own, 0.0)
    t.enqueue(FID, IBITS, a, 0.0)
    assert t.downgrade(own, wire.COS, 1.0) == [Completion(a, False)] and t.waiting_count == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), max_size=60))
def test_counts_and_deadlines_never_drift(steps: list[tuple[int, int]]) -> None:
    t = LockTable()
    for now, (what, who) in enumerate(steps):
        owner = "abcd"[who]
        if what < 4:
            t.enqueue(bytes([what % 2]), EXTENT, Lock(owner, now, PW, start=what, end=what + 1), now)
        elif what < 6 and (mine := t.owners.get(owner)):
            t.cancel(owner, next(iter(mine)), now)
        elif what == 6:
            t.owner_gone(owner, now)
        for lock in list(t.locks()):
            if lock.asked:
                t.asked(lock, now + 3)
        assert t.lock_count == len(list(t.locks()))
        assert t.waiting_count == sum(lock.state is LockState.WAITING for lock in t.locks())
        held = [lock for r in t.resources.values() for lock in [*(r.granted or ()), *(r.waiting or ())]]
        assert {id(x) for x in held} == {id(x) for x in t.locks()}
        for lock in t.expired(now):
            t.owner_gone(lock.owner, now)


# the client's side


def test_old_and_surplus_locks_go_the_longest_unused_first() -> None:
    lru: LockLru[str] = LockLru(max_count=3, max_age_s=100.0)
    for now, lock in enumerate("abcd"):
        lru.unused(lock, float(now))
    assert lru.surplus(4.0, lambda lock: False) == ["a"]
    lru.used("b")
    lru.unused("b", 5.0)
    assert lru.surplus(6.0, lambda lock: False, room=1) == ["c"]
    assert lru.surplus(104.0, lambda lock: False) == ["d"] and len(lru) == 1
    assert lru.surplus(105.0, lambda lock: False) == ["b"]


def test_dirty_locks_stay_and_are_not_looked_at_over_and_over() -> None:
    lru: LockLru[int] = LockLru(max_count=0, max_age_s=100.0)
    looks = []
    for lock in range(10):
        lru.unused(lock, 0.0)

    def dirty(lock: int) -> bool:
        looks.append(lock)
        return lock < 5

    assert lru.surplus(1.0, dirty) == [5, 6, 7, 8, 9]
    assert len(looks) == 10
    assert lru.drop_before_replay(lambda lock: lock == 3) == [0, 1, 2, 4] and len(lru) == 1


def test_what_is_said_of_a_lock_after_a_restart() -> None:
    assert set(REPLAY_FLAGS) == set(Holding)
    said = {h: None if f is None else replayed_as_granted(f) for h, f in REPLAY_FLAGS.items()}
    assert said == {
        Holding.ENQUEUED: False, Holding.WAITING: False, Holding.GRANTED: True, Holding.CANCELLING: True,
        Holding.CANCELLED: None,
    }  # fmt: skip


# callbacks on the wire


def test_a_callback_travels_and_a_bad_one_is_refused() -> None:
    body = locks.BlockingCallback((locks.Ask(7, 0, EX, 0, 0, 9),))
    header = locks.CallbackHeader(1, 104, 99, 2, 1000, body)
    raw = wire_unpacked(header)
    decoded, spec = locks.decode_callback(raw)
    assert decoded == header and spec.cls is locks.BlockingCallback and type(decoded.body.asks[0]) is locks.Ask
    for bad in (None, raw[:5], (*raw[:1], 101, *raw[2:]), (*raw[:1], 9999, *raw[2:]), (*raw[:5], ((7, 0),))):
        with pytest.raises(ProtocolError):
            locks.decode_callback(bad)
    assert locks.check_callback_reply((1, 99, 0, ((0,),))) == (1, 99, 0, ((0,),))
    for bad in (None, (1, 2), (1, 0, None), ("1", 2, 0, None)):
        with pytest.raises(ProtocolError):
            locks.check_callback_reply(bad)


def wire_unpacked(value: object) -> tuple[object, ...]:
    from lustrelite.wire.message import pack, unpack

    return unpack(pack(value))  # type: ignore[no-any-return]
