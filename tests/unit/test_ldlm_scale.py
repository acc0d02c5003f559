"""100,000 locks on one object: what grows is counted, not timed.

`steps` counts the lines of lustrelite/ldlm that are executed, and to it is added what the containers looked at inside.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

from lustrelite.ldlm.flock import FlockRequest, FlockTable
from lustrelite.ldlm.lock import Blocking, Completion, Lock
from lustrelite.ldlm.lock_set import ExtentLocks
from lustrelite.ldlm.table import LockTable
from lustrelite.wire.ldlm import EX, EXTENT, IBITS, NL, NO_EXPANSION, PR, PW, UPDATE

MANY = 100_000
SMALL, LARGE = 500, 8_000  # sixteen times as many


def steps(work: Callable[[], Any]) -> int:
    count = 0

    def local(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: Any, event: str, arg: Any) -> Any:
        return local if "/ldlm/" in frame.f_code.co_filename else None

    old = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(old)
    return count


def grows_like_n(history: Callable[[int], Any], allowed: float = 2.0) -> None:
    """Sixteen times the locks cost sixteen times the steps, with room for what the size of the containers adds."""
    small, large = steps(lambda: history(SMALL)), steps(lambda: history(LARGE))
    assert large < small * (LARGE / SMALL) * allowed, (small, large, large / small)


def disjoint_writers(n: int) -> LockTable:
    t = LockTable()
    for i in range(n):
        place = i * 7919 % n  # in no order
        lock = Lock(f"c{i % 50}", i, PW, start=place << 12, end=(place << 12) + 4095, flags=NO_EXPANSION)
        t.enqueue(b"o", EXTENT, lock, 0.0)
    assert t.waiting_count == 0
    return t


def test_disjoint_writers() -> None:
    def history(n: int) -> None:
        t = disjoint_writers(n)
        for i in range(n):
            t.cancel(f"c{i % 50}", i, 0.0)
        assert not t.resources

    grows_like_n(history)


def test_a_hundred_thousand_disjoint_writers() -> None:
    t = LockTable()
    for i in range(MANY):
        lock = Lock(f"c{i % 50}", i, PW, start=i << 12, end=(i << 12) + 4095, flags=NO_EXPANSION)
        t.enqueue(b"o", EXTENT, lock, 0.0)
    granted = t.resources[b"o"].granted
    assert isinstance(granted, ExtentLocks) and len(granted) == MANY and t.waiting_count == 0
    before = granted.examined
    for i in range(0, MANY, 1000):
        t.cancel(f"c{i % 50}", i, 0.0)
        t.enqueue(b"o", EXTENT, Lock("z", i, PW, start=i << 12, end=(i << 12) + 4095), 0.0)
    assert granted.examined - before < 100 * 10, "a few looks each"
    assert t.waiting_count == 0


def test_a_queue_of_writers_for_one_place() -> None:
    def history(n: int) -> None:
        t = LockTable()
        for i in range(n):
            t.enqueue(b"o", EXTENT, Lock(i, 1, PW), 0.0)
        for i in range(n - 1):
            (effect,) = t.cancel(i, 1, 0.0)
            assert isinstance(effect, Completion) and effect.lock.owner == i + 1

    grows_like_n(history)


def test_a_crowd_of_readers_and_a_writer_behind_them() -> None:
    def history(n: int) -> None:
        t = LockTable()
        for i in range(n):
            t.enqueue(b"d", IBITS, Lock(i, 1, PR, bits=UPDATE), 0.0)
        effects = t.enqueue(b"d", IBITS, Lock("w", 1, EX, bits=UPDATE), 0.0)
        assert sum(isinstance(e, Blocking) for e in effects) == n
        for i in range(n):
            t.enqueue(b"d", IBITS, Lock(i, 2, PR, bits=UPDATE), 0.0)
        for i in range(n):
            t.cancel(i, 1, 0.0)
        assert t.waiting_count == n
        assert len(t.cancel("w", 1, 0.0)) == n

    grows_like_n(history)


def test_writers_behind_a_crowd_of_readers_ask_each_once() -> None:
    def history(n: int) -> None:
        t = LockTable()
        for i in range(n):
            t.enqueue(b"o", EXTENT, Lock(i, 1, PR), 0.0)
        asked = 0
        for i in range(n):
            asked += sum(isinstance(e, Blocking) for e in t.enqueue(b"o", EXTENT, Lock(("w", i), 1, PW), 0.0))
        assert asked == n

    grows_like_n(history)


def test_record_locks() -> None:
    def history(n: int) -> None:
        t = FlockTable()
        for i in range(n):
            t.request(b"f", False, FlockRequest((i % 50, 1), i, 0, PW, i * 2, i * 2), True)
        for i in range(n):  # each waits for another's record
            t.request(b"f", False, FlockRequest(("w", i), i, 0, PW, i * 2, i * 2), True)
        for i in range(n):
            assert len(t.request(b"f", False, FlockRequest((i % 50, 1), i, 0, NL, i * 2, i * 2), True)) == 2

    grows_like_n(history)


def test_memory_of_a_lock() -> None:
    """Bar of the issue: under 800 bytes, with everything that holds it."""

    def bytes_each(work: Callable[[], Any], n: int) -> float:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            keep = work()
            assert keep
            return (tracemalloc.get_traced_memory()[0] - before) / n
        finally:
            tracemalloc.stop()

    def own_inode() -> LockTable:
        t = LockTable()
        for i in range(20_000):
            fid = (i + 10**9).to_bytes(16, "big")
            t.enqueue(fid, IBITS, Lock(i % 100, i + 10**12, PR, bits=3), float(i))
        return t

    def one_object() -> LockTable:
        t = LockTable()
        for i in range(20_000):
            start = i + 10**6 << 12
            t.enqueue(b"o", EXTENT, Lock(i % 100, i + 10**12, PW, start=start, end=start + 4095), float(i))
        return t

    assert bytes_each(own_inode, 20_000) < 800
    assert bytes_each(one_object, 20_000) < 800
