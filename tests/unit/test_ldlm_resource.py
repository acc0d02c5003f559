"""One resource against a brute-force model: a list of granted and a list of waiting locks, every pair compared.

The model knows when a lock may be granted, not how far it grows: it takes the extent that was granted and checks it.
Small limits make the index take over after two locks, so that both forms of a lock set are met.
"""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lustrelite.ldlm import extents, resource
from lustrelite.ldlm.lock import LOCAL, Blocking, Completion, Deny, Effect, Glimpse, Grant, Lock, LockState, Wait
from lustrelite.ldlm.policy import DOWNGRADES, EOF, bits_conflict, extents_conflict
from lustrelite.ldlm.resource import Resource
from lustrelite.ldlm.table import GROUPS_FIRST
from lustrelite.wire.ldlm import (
    BITS_ALL,
    COS,
    CR,
    CW,
    EX,
    EXTENT,
    GROUP,
    IBITS,
    LOOKUP,
    NL,
    NO_EXPANSION,
    PLAIN,
    PR,
    PW,
    TXN,
    UPDATE,
)


@pytest.fixture(params=[2, 16], ids=["indexed", "few"])
def limits(request: Any) -> Any:
    old = resource.FEW_MAX, extents.BUCKET_MAX
    resource.FEW_MAX, extents.BUCKET_MAX = request.param, 4
    yield
    resource.FEW_MAX, extents.BUCKET_MAX = old


class Model:
    """The rules, with no thought for speed."""

    def __init__(self, kind: int) -> None:
        self.r = Resource(b"r", kind)
        self.conflict = extents_conflict if kind == EXTENT else bits_conflict
        self.granted: list[Lock] = []  # in order of grant
        self.waiting: list[Lock] = []  # in order of arrival
        self.asked: dict[Lock, int] = {}  # times, since it was granted or weakened
        self.downgraded: list[Lock] = []
        self.number = 0
        self.frozen = False

    def may_be_granted(self, lock: Lock) -> bool:
        if any(self.conflict(held, lock) for held in self.granted):
            return False
        if lock.mode == GROUP and any(g.mode == GROUP and g.gid == lock.gid for g in self.granted):
            return True
        return not any(self.conflict(w, lock) for w in self.waiting if w.number < lock.number)

    def enqueue(self, lock: Lock, wait: bool) -> None:
        self.number += 1
        lock.number = self.number - GROUPS_FIRST if lock.mode == GROUP else self.number
        wanted = (lock.start, lock.end, lock.bits)
        if self.r.type == PLAIN:
            lock.bits = 1
        if lock.mode == GROUP:
            lock.start, lock.end = 0, EOF
        free = self.may_be_granted(lock)
        effects = self.r.enqueue(lock, 0.0, wait)
        first = effects.pop(0)
        if free:
            assert first == Grant(lock) and not effects
            self.was_granted(lock, wanted)
        elif wait:
            assert isinstance(first, Wait) and first.lock is lock
            assert self.conflict(first.behind, lock) and first.behind in self.granted + self.waiting
            self.waiting.append(lock)
        else:
            assert first == Deny(lock, errno.EWOULDBLOCK) and not effects and lock.state is LockState.GONE
        self.apply(effects)

    def was_granted(self, lock: Lock, wanted: tuple[int, int, int]) -> None:
        assert lock.state is LockState.GRANTED
        assert lock.start <= wanted[0] and lock.end >= wanted[1] and not wanted[2] & ~lock.bits
        assert not any(self.conflict(held, lock) for held in self.granted), "grown into a granted lock"
        if lock.mode != GROUP:
            for waiter in self.waiting:
                was = Lock("was", 0, lock.mode, bits=wanted[2], start=wanted[0], end=wanted[1], client=lock.client)
                if self.conflict(lock, waiter):
                    assert self.conflict(was, waiter), "grown into a waiting lock"
        self.granted.append(lock)
        self.asked[lock] = int(lock.asked)

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Completion):
                lock = effect.lock
                assert lock in self.waiting
                self.waiting.remove(lock)
                wanted = self.wanted.pop(lock)
                now = (lock.start, lock.end, lock.bits)
                lock.start, lock.end, lock.bits = wanted
                assert self.may_be_granted(lock)
                lock.start, lock.end, lock.bits = now
                self.was_granted(lock, wanted)
                self.asked[lock] = int(effect.asked)
            elif isinstance(effect, Blocking):
                assert effect.lock in self.granted and self.conflict(effect.lock, effect.waiter)
                assert self.asked[effect.lock] == 0, "asked twice"
                self.asked[effect.lock] = 1
            else:
                raise AssertionError(effect)
        self.wanted = {w: (w.start, w.end, w.bits) for w in self.waiting}
        self.check()

    def check(self) -> None:
        assert list(self.r.granted or ()) == self.granted or set(self.r.granted or ()) == set(self.granted)
        assert set(self.r.waiting or ()) == set(self.waiting)
        for i, held in enumerate(self.granted):
            assert held.state is LockState.GRANTED and held.asked == bool(self.asked[held])
            for later in self.granted[i + 1 :]:
                if self.conflict(held, later):
                    assert {held.mode, later.mode} == {CR, COS} and {held, later} & set(self.downgraded)
        if self.frozen:
            return
        for waiter in self.waiting:
            assert not self.may_be_granted(waiter), "forgotten"
            for held in self.granted:
                if self.conflict(held, waiter):
                    assert held.asked, "in the way, and nobody told its owner"
        for waiter in self.waiting:
            blocker = waiter.parked_on
            assert blocker is not None and blocker.parked is not None and waiter in blocker.parked
            assert blocker in self.granted or blocker in self.waiting

    def cancel(self, lock: Lock) -> None:
        for locks in (self.granted, self.waiting):
            if lock in locks:
                locks.remove(lock)
        self.apply(self.r.cancel(lock, 0.0))
        assert lock.state is LockState.GONE and not self.r.cancel(lock, 0.0)

    def owner_gone(self, owner: Any) -> None:
        gone = [lock for lock in self.granted + self.waiting if lock.owner == owner]
        self.granted = [lock for lock in self.granted if lock.owner != owner]
        self.waiting = [lock for lock in self.waiting if lock.owner != owner]
        self.apply(self.r.cancel_all(gone, 0.0))

    def convert(self, lock: Lock, drop: int) -> None:
        if not lock.bits & ~drop:
            self.granted.remove(lock)
        elif lock.bits & drop:
            self.asked[lock] = 0
        self.apply(self.r.convert(lock, drop, 0.0))

    def downgrade(self, lock: Lock, mode: int) -> None:
        self.asked[lock] = 0
        self.downgraded.append(lock)
        self.apply(self.r.downgrade(lock, mode, 0.0))

    def replay(self, lock: Lock, granted: bool) -> None:
        self.number += 1
        lock.number = self.number - GROUPS_FIRST if lock.mode == GROUP else self.number
        self.r.replay(lock, granted, 0.0)
        (self.granted if granted else self.waiting).append(lock)
        self.asked[lock] = 0
        self.apply([])

    def thaw(self) -> None:
        self.frozen = False
        self.apply(self.r.thaw(0.0))


MODES = {IBITS: [EX, PW, PW, PR, PR, CW, CR, NL], EXTENT: [EX, PW, PW, PR, PR, CW, CR, NL, GROUP], PLAIN: [EX, PR, CR]}
OWNERS = ["a", "b", "c", LOCAL]


def a_lock(data: st.DataObject, kind: int, handle: int) -> Lock:
    mode = data.draw(st.sampled_from(MODES[kind]))
    owner = data.draw(st.sampled_from(OWNERS))
    if kind == IBITS:
        bits = data.draw(st.sampled_from([LOOKUP, UPDATE, LOOKUP | UPDATE, 0x10, 0x13, BITS_ALL]))
        try_bits = data.draw(st.sampled_from([0, 0, UPDATE, BITS_ALL]))
        client = data.draw(st.sampled_from(OWNERS)) if owner == LOCAL else None
        return Lock(owner, handle, mode, bits=bits, try_bits=try_bits, client=client)
    if kind == EXTENT:
        unit = data.draw(st.sampled_from([1, 4096]))
        start = data.draw(st.integers(0, 24)) * unit
        length = data.draw(st.sampled_from([1, 2, 5, 0]))
        end = start + length * unit - 1 if length else EOF
        flags = data.draw(st.sampled_from([0, NO_EXPANSION, NO_EXPANSION]))
        gid = data.draw(st.integers(1, 2)) if mode == GROUP else 0
        return Lock(owner, handle, mode, start=start, end=end, flags=flags, gid=gid)
    return Lock(owner, handle, mode)


@pytest.mark.parametrize("kind", [IBITS, EXTENT, PLAIN])
@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_resource_does_what_the_model_does(limits: Any, kind: int, data: st.DataObject) -> None:
    model = Model(kind)
    model.wanted = {}
    if data.draw(st.booleans()):
        model.frozen = True
        for handle in range(data.draw(st.integers(0, 8))):
            lock = a_lock(data, kind, 1000 + handle)
            if kind == EXTENT and lock.mode == GROUP:
                lock.start, lock.end = 0, EOF
            lock.bits |= kind == PLAIN
            lock.try_bits = 0
            model.replay(lock, not any(model.conflict(g, lock) for g in model.granted) and data.draw(st.booleans()))
            if data.draw(st.integers(0, 5)) == 0:
                model.cancel(data.draw(st.sampled_from(model.granted + model.waiting)))
        model.thaw()
    for handle in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.integers(0, 9))
        if what < 6 or not model.granted:
            model.enqueue(a_lock(data, kind, handle), data.draw(st.integers(0, 5)) > 0)
        elif what == 6:
            model.cancel(data.draw(st.sampled_from(model.granted + model.waiting)))
        elif what == 7:
            model.cancel(data.draw(st.sampled_from(model.granted)))
        elif what == 8 and kind == IBITS:
            lock = data.draw(st.sampled_from(model.granted))
            weaker = [mode for mode in (COS, COS, TXN, PR, CR, NL) if mode & DOWNGRADES.get(lock.mode, 0)]
            if weaker and data.draw(st.booleans()):
                model.downgrade(lock, data.draw(st.sampled_from(weaker)))
            else:
                model.convert(lock, data.draw(st.sampled_from([LOOKUP, UPDATE, BITS_ALL])))
        else:
            model.owner_gone(data.draw(st.sampled_from(OWNERS)))
    while model.granted:
        model.cancel(model.granted[0])
    assert not model.waiting and model.r.empty


# by name ----------------------------------------------------------------------------------------------------------


def bits(owner: str, mode: int, of: int, number: int, **more: Any) -> Lock:
    lock = Lock(owner, number, mode, bits=of, **more)
    lock.number = number
    return lock


def extent(owner: str, mode: int, start: int, end: int, number: int, **more: Any) -> Lock:
    lock = Lock(owner, number, mode, start=start, end=end, **more)
    lock.number = number
    return lock


def test_a_reader_does_not_overtake_a_waiting_writer(limits: Any) -> None:
    r = Resource(b"d", IBITS)
    a, b, c = bits("a", PR, UPDATE, 1), bits("b", EX, UPDATE, 2), bits("c", PR, UPDATE, 3)
    assert r.enqueue(a, 0.0) == [Grant(a)]
    assert r.enqueue(b, 0.0) == [Wait(b, a), Blocking(a, b)]
    assert r.enqueue(c, 0.0) == [Wait(c, b)]
    assert r.cancel(a, 1.0) == [Completion(b, True)], "c waits: b hears so at once"
    assert r.cancel(b, 2.0) == [Completion(c, False)]


def test_others_may_overtake(limits: Any) -> None:
    r = Resource(b"d", IBITS)
    r.enqueue(bits("a", PR, UPDATE, 1), 0.0)
    r.enqueue(bits("b", EX, UPDATE, 2), 0.0)
    c = bits("c", EX, LOOKUP, 3)
    assert r.enqueue(c, 0.0) == [Grant(c)]


def test_a_converted_lock_is_asked_for_again_when_the_rest_is_wanted_too(limits: Any) -> None:
    r = Resource(b"d", IBITS)
    a, b, c = bits("a", PR, LOOKUP | UPDATE, 1), bits("b", EX, UPDATE, 2), bits("c", EX, LOOKUP, 3)
    r.enqueue(a, 0.0)
    assert r.enqueue(b, 0.0)[1:] == [Blocking(a, b)]
    assert r.enqueue(c, 0.0) == [Wait(c, a)], "once"
    assert r.convert(a, UPDATE, 1.0) == [Completion(b, False), Blocking(a, c)] and a.bits == LOOKUP
    assert r.convert(a, LOOKUP, 2.0) == [Completion(c, False)]


def test_also_when_he_who_wants_the_rest_is_parked_behind_another(limits: Any) -> None:
    r = Resource(b"d", IBITS)
    a, d, c = bits("a", PR, LOOKUP | UPDATE, 1), bits("d", PR, LOOKUP, 2), bits("c", EX, LOOKUP, 3)
    r.enqueue(a, 0.0)
    r.enqueue(d, 0.0)
    assert len(r.enqueue(c, 0.0)) == 3
    assert c.parked_on is d
    assert r.convert(a, UPDATE, 1.0) == [Blocking(a, c)]
    assert r.cancel(d, 1.0) == [] and r.cancel(a, 1.0) == [Completion(c, False)]


def test_bits_that_are_only_tried_are_given_when_free(limits: Any) -> None:
    r = Resource(b"f", IBITS)
    r.enqueue(bits("a", EX, UPDATE, 1), 0.0)
    b = bits("b", PR, LOOKUP, 2, try_bits=BITS_ALL)
    assert r.enqueue(b, 0.0) == [Grant(b)] and b.bits == BITS_ALL & ~UPDATE


def test_commit_on_share_holds_up_others_only(limits: Any) -> None:
    r = Resource(b"d", IBITS)
    own = bits(LOCAL, PW, UPDATE, 1, client="a")
    r.enqueue(own, 0.0)
    assert r.downgrade(own, COS, 0.0) == []
    a, b = bits("a", PR, UPDATE, 2), bits("b", PR, UPDATE, 3)
    assert r.enqueue(a, 0.0) == [Grant(a)]
    assert r.enqueue(b, 0.0) == [Wait(b, own), Blocking(own, b)], "the target hears it and commits"
    assert r.cancel(own, 1.0) == [Completion(b, False)]


def test_a_group_is_joined_past_those_who_wait(limits: Any) -> None:
    """Source: sanityn test_107; ldlm_extent_compat_queue()"""
    r = Resource(b"o", EXTENT)
    one, writer = extent("a", GROUP, 0, 0, 1, gid=7), extent("b", PW, 0, 4095, 2)
    two, three = extent("c", GROUP, 0, 0, 3, gid=7), extent("d", GROUP, 0, 0, 4, gid=8)
    r.enqueue(one, 0.0)
    r.enqueue(writer, 0.0)
    assert r.enqueue(two, 0.0) == [Grant(two)] and two.asked
    assert isinstance(r.enqueue(three, 0.0)[0], Wait)
    r.cancel(one, 0.0)
    assert r.cancel(two, 0.0) == [Completion(writer, True)]
    four, five = extent("e", PW, 9, 9, 5), extent("f", GROUP, 0, 0, 6, gid=8)
    r.enqueue(four, 0.0)
    r.enqueue(five, 0.0)
    done = r.cancel(writer, 0.0)
    assert [e.lock for e in done if isinstance(e, Completion)] == [three, five], "the group together, past the writer"


def test_a_large_group_keeps_another_group_out(limits: Any) -> None:
    r = Resource(b"o", EXTENT)
    group = [extent(f"c{n}", GROUP, 0, 0, n + 1, gid=7) for n in range(20)]
    for lock in group:
        assert r.enqueue(lock, 0.0) == [Grant(lock)]
    other = extent("z", GROUP, 0, 0, 99, gid=8)
    assert len(r.enqueue(other, 0.0)) == 1 + 20
    for lock in group[:-1]:
        assert r.cancel(lock, 0.0) == []
    assert r.cancel(group[-1], 0.0) == [Completion(other, False)]


def test_a_writer_alone_gets_the_object_and_loses_it_in_parts(limits: Any) -> None:
    r = Resource(b"o", EXTENT)
    a = extent("a", PW, 4096, 8191, 1)
    r.enqueue(a, 0.0)
    assert (a.start, a.end) == (0, EOF)
    b, c = extent("b", PW, 1 << 20, (1 << 20) + 4095, 2), extent("c", PW, 1 << 30, (1 << 30) + 4095, 3)
    r.enqueue(b, 0.0)
    assert r.enqueue(c, 0.0) == [Wait(c, a)]
    assert r.cancel(a, 0.0) == [Completion(b, False), Completion(c, False)]
    assert (b.start, b.end) == (0, (1 << 30) - 1) and (c.start, c.end) == (1 << 30, EOF)


def test_a_client_does_not_grow_over_its_own_waiting_lock() -> None:
    r = Resource(b"o", EXTENT)
    r.enqueue(extent("x", EX, 0, 4095, 1, flags=NO_EXPANSION), 0.0)
    r.enqueue(extent("x", EX, 1 << 20, (1 << 20) + 4095, 2, flags=NO_EXPANSION), 0.0)
    r.enqueue(extent("a", PR, 1 << 20, (1 << 20) + 4095, 3), 0.0)
    a = extent("a", PR, 8192, 12287, 4)
    r.enqueue(a, 0.0)
    assert (a.start, a.end) == (8192, (1 << 20) - 1)


def test_a_trylock_that_fails_asks_nobody(limits: Any) -> None:
    r = Resource(b"o", EXTENT)
    a, b = extent("a", PW, 0, 10, 1), extent("b", PR, 0, 10, 2)
    r.enqueue(a, 0.0)
    assert r.enqueue(b, 0.0, wait=False) == [Deny(b, errno.EWOULDBLOCK)]
    assert not a.asked and r.waiting is None


@pytest.mark.parametrize("many", [False, True])
def test_a_glimpse_asks_each_writer_once(limits: Any, many: bool) -> None:
    """Wherever he writes: he may know a later time.  Source: ofd_intent_cb(), ofd/ofd_dlm.c"""
    r = Resource(b"o", EXTENT)
    locks = [
        extent("a", PW, i * 4096, i * 4096 + 4095, i + 1, flags=NO_EXPANSION) for i in range(4)
    ] + [extent("b", PW, 4 * 4096, 5 * 4096 - 1, 5, flags=NO_EXPANSION)]  # fmt: skip
    if many:
        locks += [extent("c", CR, 1 << 40, EOF, n + 6, flags=NO_EXPANSION) for n in range(20)]
    for lock in locks:
        assert r.enqueue(lock, 0.0) == [Grant(lock)]
    want = extent("z", PR, 0, EOF, 99, flags=NO_EXPANSION)
    assert r.glimpse(want, 0.0) == [Deny(want, errno.EWOULDBLOCK), Glimpse(locks[3]), Glimpse(locks[4])]
    for lock in locks[:4]:
        r.cancel(lock, 0.0)
    assert r.glimpse(extent("z", PR, 0, EOF, 100), 0.0)[1:] == [Glimpse(locks[4])]


def test_a_glimpse_of_an_idle_object_is_a_lock() -> None:
    r = Resource(b"o", EXTENT)
    want = extent("z", PR, 0, EOF, 1)
    assert r.glimpse(want, 0.0) == [Grant(want)]


def test_after_lock_replay_the_one_in_the_way_is_asked_again() -> None:
    """LU-8306: the callback was lost with the server; nobody else would ever send one."""
    r = Resource(b"o", EXTENT)
    a, b = extent("a", PW, 0, EOF, 1), extent("b", PW, 0, 4095, 2)
    r.replay(b, False, 0.0)
    r.replay(a, True, 0.0)
    assert not a.asked
    assert r.thaw(1.0) == [Blocking(a, b)]
    assert r.cancel(a, 2.0) == [Completion(b, False)]


def test_replayed_locks_that_cannot_be_do_not_break_the_queues() -> None:
    """A client may lie; whoever comes after waits for all of them."""
    r = Resource(b"o", EXTENT)
    liars = [extent("a", PW, 0, 100 + n, n + 1) for n in range(20)]
    for lock in liars:
        r.replay(lock, True, 0.0)
    r.thaw(0.0)
    b = extent("b", PW, 50, 60, 50)
    assert len(r.enqueue(b, 0.0)) == 21
    for lock in liars[:-1]:
        assert r.cancel(lock, 0.0) == []
    assert r.cancel(liars[-1], 0.0) == [Completion(b, False)]


@pytest.mark.parametrize("kind", [IBITS, EXTENT])
@pytest.mark.parametrize("seed", range(12))
def test_long_histories(kind: int, seed: int) -> None:
    """More locks on one resource than hypothesis draws one by one."""
    rng = random.Random(seed)
    old = resource.FEW_MAX, extents.BUCKET_MAX
    resource.FEW_MAX, extents.BUCKET_MAX = rng.choice([2, 4, 16]), 8
    try:
        model = Model(kind)
        model.wanted = {}
        for handle in range(200):
            chance = rng.random()
            if chance < 0.6 or not model.granted:
                mode = rng.choice([PW, PW, PR, PR, CW, EX, GROUP if kind == EXTENT else CR])
                owner = rng.choice("abcdef")
                if kind == IBITS:
                    tried = rng.choice([0, BITS_ALL])
                    lock = Lock(owner, handle, mode, bits=rng.choice([1, 2, 3, 3, 18]), try_bits=tried)
                else:
                    start = rng.randrange(100) * 4096
                    end = start + rng.randrange(1, 5) * 4096 - 1
                    flags = rng.choice([0, NO_EXPANSION])
                    gid = rng.choice([1, 2]) if mode == GROUP else 0
                    lock = Lock(owner, handle, mode, start=start, end=end, flags=flags, gid=gid)
                model.enqueue(lock, rng.random() < 0.9)
            elif chance < 0.62:
                model.owner_gone(rng.choice("abcdef"))
            elif chance < 0.8 and kind == IBITS:
                model.convert(rng.choice(model.granted), rng.choice([LOOKUP, UPDATE]))
            else:
                model.cancel(rng.choice(model.granted + model.waiting))
    finally:
        resource.FEW_MAX, extents.BUCKET_MAX = old
