"""Record locks against a map of bytes, and deadlocks against the graph of who waits for whom."""

from __future__ import annotations

import errno
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.ldlm.flock import (
    FlockDenied,
    FlockEffect,
    FlockGranted,
    FlockOwner,
    FlockRequest,
    FlockTable,
    FlockWait,
)
from lustrelite.ldlm.policy import EOF, Record
from lustrelite.wire.ldlm import NL, PR, PW

BYTES = 8
FILES = [b"f", b"g"]
A, B, C, D = ("a", 1), ("b", 1), ("c", 1), ("c", 2)
OWNERS: list[FlockOwner] = [A, B, C, D]


class Model:
    """Per file and byte who holds it how; per owner what he waits for."""

    def __init__(self) -> None:
        self.table = FlockTable()
        self.bytes: dict[bytes, list[dict[FlockOwner, int]]] = {f: [{} for _ in range(BYTES)] for f in FILES}
        self.waiting: list[tuple[bytes, FlockRequest]] = []
        self.handle = 0

    def blockers(self, file: bytes, r: FlockRequest) -> set[FlockOwner]:
        if r.mode == NL:
            return set()
        return {
            owner
            for byte in self.bytes[file][r.start : r.end + 1]
            for owner, mode in byte.items()
            if owner != r.owner and PW in (mode, r.mode)
        }

    def deadlocks(self, file: bytes, r: FlockRequest) -> bool:
        """Transitive closure of the graph with `r` waiting."""
        edges = {(w.owner, b) for f, w in self.waiting for b in self.blockers(f, w)}
        edges |= {(r.owner, b) for b in self.blockers(file, r)}
        while True:
            more = {(a, d) for a, b in edges for c, d in edges if b == c} - edges
            if not more:
                return (r.owner, r.owner) in edges
            edges |= more

    def set(self, file: bytes, r: FlockRequest) -> None:
        for byte in self.bytes[file][r.start : r.end + 1]:
            byte.pop(r.owner, None)
            if r.mode != NL:
                byte[r.owner] = r.mode

    def request(self, owner: FlockOwner, file: bytes, mode: int, start: int, end: int, wait: bool) -> None:
        self.handle += 1
        r = FlockRequest(owner, self.handle, 100 + owner[1], mode, start, end)
        blockers, deadlock = self.blockers(file, r), self.deadlocks(file, r)
        effects = self.table.request(file, False, r, wait)
        if not blockers:
            assert effects.pop(0) == FlockGranted(r, False)
            self.set(file, r)
        elif not wait:
            assert effects == [FlockDenied(r, errno.EWOULDBLOCK, False)]
            effects = []
        elif deadlock:
            assert effects == [FlockDenied(r, errno.EDEADLK, False)]
            effects = []
        else:
            first = effects.pop(0)
            assert isinstance(first, FlockWait) and first.request is r and first.behind in blockers and not effects
            self.waiting.append((file, r))
            again = FlockRequest(owner, self.handle, 0, mode, start, end)
            assert self.table.request(file, False, again, True) == [FlockWait(r, first.behind)], "resent"
        self.follow(effects)

    def follow(self, effects: list[FlockEffect]) -> None:
        for effect in effects:
            file, r = next((f, w) for f, w in self.waiting if w is effect.request)
            if isinstance(effect, FlockGranted):
                assert effect.waited and not self.blockers(file, r)
                self.waiting.remove((file, r))
                self.set(file, r)
            else:
                assert isinstance(effect, FlockDenied) and effect.waited and effect.errno == errno.EDEADLK
                assert self.deadlocks(file, r)
                self.waiting.remove((file, r))
        self.check()

    def check(self) -> None:
        for file, r in self.waiting:
            assert self.blockers(file, r), "forgotten"
            assert r.behind in self.blockers(file, r)
            assert not self.deadlocks(file, r), "a circle"
        for file in FILES:
            resource = self.table.resources.get((file, False))
            shown: list[dict[FlockOwner, int]] = [{} for _ in range(BYTES)]
            for owner, records in resource.records.items() if resource else ():
                for record in records:
                    for byte in shown[record.start : record.end + 1]:
                        assert owner not in byte
                        byte[owner] = record.mode
            assert shown == self.bytes[file]
            if resource is not None:
                assert sum(map(len, resource.indexes.values())) == sum(map(len, resource.records.values()))
                assert len(resource.waiting) == sum(f == file for f, _ in self.waiting)
        assert sum(map(len, self.table.waits.values())) == len(self.waiting)

    def owner_gone(self, export: Any) -> None:
        self.waiting = [(f, w) for f, w in self.waiting if w.owner[0] != export]
        for file in FILES:
            for byte in self.bytes[file]:
                for owner in [o for o in byte if o[0] == export]:
                    del byte[owner]
        self.follow(self.table.owner_gone(export))

    def cancel(self, file: bytes, r: FlockRequest) -> None:
        self.waiting.remove((file, r))
        assert self.table.cancel(r.owner[0], r.handle) and not self.table.cancel(r.owner[0], r.handle)
        self.check()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_records_waits_and_deadlocks_are_those_of_the_model(data: st.DataObject) -> None:
    """Owners here have threads: one may wait and go on locking."""
    model = Model()
    for _ in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.integers(0, 11))
        if what == 0:
            model.owner_gone(data.draw(st.sampled_from(OWNERS))[0])
        elif what == 1 and model.waiting:
            model.cancel(*data.draw(st.sampled_from(model.waiting)))
        else:
            a, b = data.draw(st.integers(0, BYTES - 1)), data.draw(st.integers(0, BYTES - 1))
            mode = data.draw(st.sampled_from([PW, PW, PR, NL]))
            wait = data.draw(st.integers(0, 4)) > 0
            model.request(
                data.draw(st.sampled_from(OWNERS)), data.draw(st.sampled_from(FILES)), mode, min(a, b), max(a, b), wait
            )
    for owner in OWNERS:
        model.owner_gone(owner[0])
    assert not model.waiting and not model.table.resources and not model.table.holds and not model.table.handles


def ask(table: FlockTable, owner: FlockOwner, mode: int, start: int = 0, end: int = EOF, *, file: bytes = b"f",
        bsd: bool = False, wait: bool = True, handle: int = 0) -> list[FlockEffect]:  # fmt: skip
    request = FlockRequest(owner, handle or id(object()) + start, owner[1], mode, start, end)
    return table.request(file, bsd, request, wait)


def kinds(effects: list[FlockEffect]) -> list[Any]:
    return [
        (type(e).__name__[5:], e.request.owner, *((e.errno,) if isinstance(e, FlockDenied) else ())) for e in effects
    ]


def test_two_files_two_clients_one_deadlock() -> None:
    """Source: sanityn test_74"""
    t = FlockTable()
    ask(t, A, PW, file=b"f")
    ask(t, B, PW, file=b"g")
    assert kinds(ask(t, A, PW, file=b"g", handle=1)) == [("Wait", A)]
    assert kinds(ask(t, B, PW, file=b"f", handle=2)) == [("Denied", B, errno.EDEADLK)]
    assert kinds(ask(t, B, NL, file=b"g")) == [("Granted", B), ("Granted", A)]


def test_raising_an_own_lock_does_not_wait_for_those_who_wait() -> None:
    t = FlockTable()
    ask(t, A, PR)
    assert kinds(ask(t, B, PW)) == [("Wait", B)]
    assert kinds(ask(t, A, PW)) == [("Granted", A)]


def test_two_readers_that_both_want_to_write_deadlock() -> None:
    t = FlockTable()
    ask(t, A, PR)
    ask(t, B, PR)
    assert kinds(ask(t, A, PW)) == [("Wait", A)]
    assert kinds(ask(t, B, PW)) == [("Denied", B, errno.EDEADLK)]


def test_lowering_a_lock_lets_readers_in() -> None:
    t = FlockTable()
    ask(t, A, PW)
    ask(t, B, PR, 5, 5)
    assert kinds(ask(t, A, PR)) == [("Granted", A), ("Granted", B)]


def test_bsd_locks_know_nothing_of_posix_locks_nor_of_deadlocks() -> None:
    t = FlockTable()
    ask(t, A, PW)
    assert kinds(ask(t, B, PW, bsd=True)) == [("Granted", B)]
    ask(t, C, PW, bsd=True, file=b"g")
    assert kinds(ask(t, B, PW, bsd=True, file=b"g", handle=1)) == [("Wait", B)]
    assert kinds(ask(t, C, PW, bsd=True, handle=2)) == [("Wait", C)]


def test_changing_a_bsd_lock_drops_it_first() -> None:
    """flock(2): the conversion is not atomic, and a LOCK_NB that fails has lost the lock."""
    t = FlockTable()
    ask(t, A, PR, bsd=True)
    ask(t, B, PR, bsd=True)
    assert kinds(ask(t, A, PW, bsd=True, wait=False)) == [("Denied", A, errno.EWOULDBLOCK)]
    assert kinds(ask(t, B, PW, bsd=True)) == [("Granted", B)]
    assert kinds(ask(t, B, PW, bsd=True)) == [("Granted", B)]
    ask(t, A, PW, bsd=True, handle=5)
    assert kinds(ask(t, B, PR, bsd=True)) == [("Granted", B)]


def test_getlk_names_the_range_and_its_owner() -> None:
    t = FlockTable()
    assert t.test(b"f", FlockRequest(B, 1, 0, PW, 0, 9)) is None
    ask(t, D, PR, 5, 7)
    assert t.test(b"f", FlockRequest(B, 1, 0, PW, 0, 9)) == (Record(5, 7, PR), 2)
    assert t.test(b"f", FlockRequest(B, 1, 0, PR, 0, 9)) is None
    assert t.test(b"f", FlockRequest(D, 1, 0, PW, 0, 9)) is None
    ask(t, D, PW, 5, 7)
    assert t.test(b"f", FlockRequest(B, 1, 0, PR, 0, 9)) == (Record(5, 7, PW), 2)


def test_getlk_names_the_first_of_several() -> None:
    t = FlockTable()
    for mode, start, end in ((PW, 100, EOF), (PR, 20, 49), (PW, 10, 19)):
        ask(t, D, mode, start, end)
    for mode, start, found in ((PW, 0, Record(10, 19, PW)), (PW, 20, Record(20, 49, PR)), (PR, 20, Record(100, EOF, PW))):
        assert t.test(b"f", FlockRequest(B, 1, 0, mode, start, EOF)) == (found, 2)


def test_after_a_restart_held_and_waiting_come_back() -> None:
    t = FlockTable(frozen=True)
    waiting = FlockRequest(B, 7, 0, PW, 0, 9)
    t.replay(b"f", False, waiting, granted=False)
    t.replay(b"f", False, FlockRequest(B, 7, 0, PW, 0, 9), granted=False)
    t.replay(b"f", False, FlockRequest(A, 0, 3, PW, 5, 5), granted=True)
    free = FlockRequest(C, 8, 0, PW, 20, 29)
    t.replay(b"f", False, free, granted=False)
    t.replay(b"g", False, FlockRequest(D, 0, 3, PW, 5, 5), granted=True)
    assert t.owner_gone("c") == []
    assert t.thaw() == []
    assert t.describe(b"f", False)["waiting"][0]["behind"] == str(A)
    assert kinds(ask(t, A, NL)) == [("Granted", A), ("Granted", B)]
    assert t.describe(b"g", False) == {"granted": [], "waiting": []}


def test_a_grant_can_close_a_circle() -> None:
    """An owner with two threads: one waits while the other is granted what somebody then waits for."""
    t = FlockTable()
    ask(t, A, PW, 0, 0)
    ask(t, B, PW, 1, 1)
    assert kinds(ask(t, B, PW, 2, 2, file=b"g")) == [("Granted", B)]
    assert kinds(ask(t, C, PW, 3, 3)) == [("Granted", C)]
    assert kinds(ask(t, C, PW, 0, 0, handle=1)) == [("Wait", C)]  # c waits for a
    assert kinds(ask(t, A, PW, 2, 2, file=b"g", handle=2)) == [("Wait", A)]  # a waits for b
    assert kinds(ask(t, B, PW, 5, 5)) == [("Granted", B)]
    assert kinds(ask(t, B, PW, 3, 3, handle=3)) == [("Denied", B, errno.EDEADLK)]  # b for c for a for b
