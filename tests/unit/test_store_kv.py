"""The batch: what a crash loses, what a full disk refuses, and what may be read when, also while a commit is under way."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lustrelite.errors import FormatRefused, OpError, StoreFailed
from lustrelite.store import disk, kv, room, schema
from lustrelite.store.kv import Store
from lustrelite.store.room import ESSENTIAL
from lustrelite.store.small_log import SmallLog

T = schema.REPLIES  # a table that every kind has
U = schema.CLIENTS


def make(directory: Path, kind: str = "MDT", **options: Any) -> Store:
    return Store.open(directory, kind, create=True, durable=False, **options)


@pytest.fixture(autouse=True)
def no_descriptor_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    assert not [path for path in paths if os.path.exists(path) and os.readlink(path).startswith(str(tmp_path))]


@pytest.fixture
def reopen(tmp_path: Path) -> Callable[[], Store]:
    return lambda: Store.open(tmp_path, "MDT", durable=False)


def rows(store: Store, table: str = T) -> dict[bytes, bytes]:
    return dict(store.scan(table))


def calls(store: Store) -> list[Callable[[], Any]]:
    """One call of everything a store does."""
    return [
        lambda: store.get(T, b"a"),
        lambda: list(store.scan(T)),
        lambda: store.last(T),
        lambda: store.count(T),
        lambda: store.apply({(T, b"b"): b""}),
        lambda: store.apply({}),
        store.seal,
        store.flush,
    ]


# ---------------------------------------------------------------- crashes


def test_every_kind_has_its_tables(tmp_path: Path) -> None:
    for kind in schema.KINDS:
        store = make(tmp_path / kind, kind)
        assert store.kind == kind
        store.apply({(table, b"a"): b"1" for table in schema.tables_of(kind)})
        store.close()


def test_abort_loses_exactly_what_was_not_committed(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1", (T, b"b"): b"1"})
    assert store.dirty == 2
    batch = store.seal()
    assert (batch.dirty, store.dirty) == (2, 0)
    store.commit(batch)
    store.apply({(T, b"a"): b"2", (T, b"b"): None, (T, b"c"): b"2"})
    assert rows(store) == {b"a": b"2", b"c": b"2"}
    store.abort()
    store = reopen()
    assert rows(store) == {b"a": b"1", b"b": b"1"}
    store.abort()


def test_a_sealed_batch_is_lost_too(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1"})
    store.seal()
    store.apply({(T, b"b"): b"1"})
    assert rows(store) == {b"a": b"1", b"b": b"1"}
    store.abort()
    store = reopen()
    assert rows(store) == {}
    store.abort()


@pytest.mark.parametrize("reopened", [False, True])
def test_only_the_sealed_batch_is_committed(tmp_path: Path, reopened: bool, reopen: Callable[[], Store]) -> None:
    """An OST's data of what came after the seal need not be durable yet."""
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1", (T, b"b"): b"1"})
    batch = store.seal()
    assert (batch.dirty, batch.size) == (2, 4)
    store.apply({(T, b"a"): b"2", (T, b"c"): b"2", (T, b"b"): None})
    store.commit(batch)
    if reopened:
        assert store.reopen()
    assert store.dirty == 3
    assert rows(store) == {b"a": b"2", b"c": b"2"}
    store.abort()
    store = reopen()
    assert rows(store) == {b"a": b"1", b"b": b"1"}
    store.abort()


def test_the_steps_of_a_commit_go_in_order(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"123"})
    store.flush()
    batch = store.seal()
    assert (batch.dirty, batch.size) == (0, 0)  # nothing of the one before
    for early in (store.seal, store.reopen):
        with pytest.raises(AssertionError):
            early()
    store.commit(batch)
    for wrong in (store.seal, lambda: store.commit(batch)):
        with pytest.raises(AssertionError):
            wrong()
    assert store.reopen() and store.reopen()
    with pytest.raises(AssertionError):
        store.commit(store.seal()._replace(number=1))
    store.abort()


def test_what_came_during_a_commit_is_put_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And until its turn comes it is what readers see; a newer change is never overwritten by its elder."""
    store = make(tmp_path)
    store.apply({(T, b"%04d" % number): b"old" for number in range(1000)})
    batch = store.seal()
    for number in range(0, 3 * kv.REOPEN_RECORDS, 5):
        store.apply({(T, b"%04d" % n): b"%d" % n for n in range(number, number + 5)})
    store.commit(batch)
    puts: list[int] = []
    put = store._put
    monkeypatch.setattr(store, "_put", lambda writes: (puts.append(len(writes)), put(writes)))
    model = {b"%04d" % number: b"%d" % number for number in range(3 * kv.REOPEN_RECORDS)}
    turns = 0
    while not store.reopen():
        turns += 1
        for number in (turns, 500 + turns, 1499 - turns, 2000 + turns):
            change = {b"%04d" % number: b"new", b"%04d" % (number + 300): None}
            store.apply({(T, key): value for key, value in change.items()})
            model.update({key: value for key, value in change.items() if value is not None})
            model.pop(b"%04d" % (number + 300), None)
        assert rows(store) == model and store.count(T) == len(model)
        assert store.last(T) == max(model.items())
        assert all(store.get(T, b"%04d" % n) == model.get(b"%04d" % n) for n in range(0, 2100, 7))
    assert turns == 2 and max(puts) == kv.REOPEN_RECORDS
    assert rows(store) == model
    assert store.dirty == 3 * kv.REOPEN_RECORDS + 2 * 4 * turns
    store.abort()


def test_a_seal_while_the_store_catches_up_takes_everything(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    store = make(tmp_path)
    batch = store.seal()
    store.apply({(T, b"%04d" % number): b"" for number in range(3 * kv.REOPEN_RECORDS)})
    store.commit(batch)
    assert not store.reopen()
    store.commit(store.seal())
    store.abort()
    store = reopen()
    assert store.count(T) == 3 * kv.REOPEN_RECORDS
    store.abort()


def test_a_store_that_waits_for_its_disk_refuses_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "WAITING_RECORDS_MAX", 1000)
    store = make(tmp_path)
    store.apply({(T, b"%04d" % number): b"" for number in range(1500)})  # no commit is under way
    batch = store.seal()
    with pytest.raises(OpError) as caught:
        for number in range(3000):
            store.apply({(T, b"n%04d" % number): b""})
    assert caught.value.errno == errno.EAGAIN and 1000 <= store.dirty < 1000 + room.CHECK_RECORDS
    store.apply({(T, b"replayed"): b""}, kind=ESSENTIAL)
    store.commit(batch)
    store.reopen()
    store.apply({(T, b"b"): b""})
    store.abort()


def test_close_commits(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1"})
    store.close()
    for call in calls(store):
        with pytest.raises(StoreFailed):
            call()
    store.abort()  # again: no harm
    store = reopen()
    assert rows(store) == {b"a": b"1"}
    store.close()


KILLED = """
import sys
from lustrelite.store.kv import Store
store = Store.open(sys.argv[1], "MDT", create=True)
for number in range(3000):
    store.apply({("replies", b"%08d" % number): bytes(300), ("clients", b"last"): b"%08d" % number})
    if number == 999:
        store.flush()
batch = store.seal()
print("go", flush=True)
while True:
    number += 1
    store.apply({("replies", b"%08d" % number): bytes(300), ("clients", b"last"): b"%08d" % number})
"""


def test_kill_9_in_the_middle_of_a_batch_loses_that_batch(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    with pytest.raises(OpError) as caught:
        Store.open(tmp_path, "MDT")
    assert caught.value.errno == errno.EBUSY  # it is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store.open(tmp_path, "MDT")
    assert [key for key, _ in store.scan(T)] == [b"%08d" % number for number in range(1000)]
    assert store.get(U, b"last") == b"00000999"
    store.apply({(T, b"x"): b""})  # and it works
    store.close()


KILLED_COMMITTING = """
import sys, threading
from lustrelite.store.kv import Store
store = Store.open(sys.argv[1], "MDT", create=True)
number = 0

def apply():
    global number
    number += 1
    store.apply({("replies", b"%08d" % (number * 7919 % 99991)): b"%d" % number, ("clients", b"last"): b"%d" % number})

while True:
    for _ in range(3000):
        apply()
    batch = store.seal()
    sealed = number
    print("sealed", sealed, flush=True)
    thread = threading.Thread(target=store.commit, args=(batch,))
    thread.start()
    while thread.is_alive():
        if number < sealed + 10000:
            apply()
        else:
            thread.join(0.001)
    print("durable", sealed, flush=True)
    while not store.reopen():
        apply()
"""


@pytest.mark.parametrize("commits", [1, 2, 4])
def test_kill_9_in_the_middle_of_a_commit_leaves_it_whole_or_not_at_all(tmp_path: Path, commits: int) -> None:
    for place in range(4):
        directory = tmp_path / str(place)
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED_COMMITTING, str(directory)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(2 * commits + 1)]  # the last word is "sealed"
        time.sleep(place * 0.002)
        process.send_signal(signal.SIGKILL)
        said += [line.split() for line in process.stdout]
        process.wait()
        process.stdout.close()
        sealed = [int(number) for word, number in said if word == "sealed"]
        durable = [int(number) for word, number in said if word == "durable"]
        assert said[0][0] == "sealed" and len(durable) >= commits
        store = Store.open(directory, "MDT")
        last = int(store.get(U, b"last") or b"0")
        assert last in sealed and last >= durable[-1]
        model = {b"%08d" % (number * 7919 % 99991): b"%d" % number for number in range(1, last + 1)}
        assert rows(store) == model
        store.apply({(T, b"x"): b""})
        store.close()


def test_abort_waits_for_a_commit_in_another_thread(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    """In a killed process everything stops at once; here the thread must not find its environment closed."""
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1"})
    batch = store.seal()
    store.apply({(T, b"b"): b"1"})
    began, go_on = threading.Event(), threading.Event()
    sealed = store._sealed

    class Slow:
        def commit(self) -> None:
            began.set()
            assert go_on.wait(10)
            sealed.commit()

    store._sealed = Slow()
    thread = threading.Thread(target=store.commit, args=(batch,))
    thread.start()
    assert began.wait(10)
    killer = threading.Thread(target=store.abort)
    killer.start()
    assert rows(store) == {b"a": b"1", b"b": b"1"}
    go_on.set()
    for one in (thread, killer):
        one.join(10)
        assert not one.is_alive()
    with pytest.raises(StoreFailed):
        store.reopen()
    store = reopen()
    assert rows(store) == {b"a": b"1"}
    store.abort()


def test_a_commit_that_comes_after_an_abort_is_refused(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1"})
    batch = store.seal()
    store.abort()
    with pytest.raises(StoreFailed):
        store.commit(batch)
    store = reopen()
    assert rows(store) == {}
    store.abort()


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_failed_commit_fails_everything_after_it(
    tmp_path: Path, meanwhile: bool, reopen: Callable[[], Store]
) -> None:
    """State that a commit took back must never be seen: not the old, not the new."""
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1"})
    store.flush()
    store.apply({(T, b"a"): b"2", (T, b"b"): b"2"})
    batch = store.seal()
    if meanwhile:
        store.apply({(T, b"c"): b"3"})
    sealed = store._sealed

    class Broken:
        def commit(self) -> None:
            sealed.abort()
            raise lmdb.DiskError("mdb_txn_commit: Input/output error")

    store._sealed = Broken()
    with pytest.raises(StoreFailed):
        store.commit(batch)
    for call in [*calls(store), lambda: store.commit(batch), store.reopen, store.flush, store.close]:
        with pytest.raises(StoreFailed):
            call()
    store.abort()
    store = reopen()
    assert rows(store) == {b"a": b"1"}
    store.abort()


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("key", [b"k" * 600, b""])
def test_a_change_that_lmdb_refuses_half_way_fails_the_store(
    tmp_path: Path, key: bytes, meanwhile: bool, reopen: Callable[[], Store]
) -> None:
    """The first half is in the transaction and cannot be taken out: nothing of it may be served."""
    store = make(tmp_path)
    with pytest.raises(StoreFailed):
        if meanwhile:
            batch = store.seal()
            store.apply({(T, b"a"): b"1", (T, key): b"1"})
            store.commit(batch)
            store.reopen()
        store.apply({(T, b"a"): b"1", (T, key): b"1"})
    for call in calls(store):
        with pytest.raises(StoreFailed):
            call()
    store.abort()
    store = reopen()
    assert rows(store) == {}
    store.abort()


def test_a_full_map_fails_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the reckoning were wrong: MapFullError is no ENOSPC, it has broken the batch."""
    store = make(tmp_path, map_bytes=1 << 20)
    monkeypatch.setattr(store, "_make_room", lambda *_: None)
    with pytest.raises(StoreFailed) as caught:
        for number in range(10000):
            store.apply({(T, b"%d" % number): bytes(1000)})
    assert "MapFull" in str(caught.value)
    with pytest.raises(StoreFailed):
        store.get(T, b"1")
    store.abort()


def test_a_new_database_is_overwritten_in_place_from_its_first_byte_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(disk, "overwrite_in_place", lambda directory: said.append((directory, os.listdir(directory))))
    make(tmp_path).close()
    assert said == [(str(tmp_path / "lmdb"), [])], "it counts for files that are made afterwards"
    Store.open(tmp_path, "MDT", durable=False).close()
    assert len(said) == 1


IN_LITTLE_SPACE = """
import errno, resource, sys
from lustrelite.errors import OpError
from lustrelite.store import schema
from lustrelite.store.kv import Store
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
store = Store.open(sys.argv[1], "MDT", durable=False)
others = [Store.open(name, "OST", create=True, durable=False) for name in sys.argv[2:]]
number = 0
while number < 200_000:
    try:
        store.apply({(schema.REPLIES, b"new%d" % number): bytes(1000)})
        number += 1
    except OpError as error:
        store.flush()
        if error.errno == errno.ENOSPC:
            break
print(number)
store.close()
"""


@pytest.mark.parametrize("records", [0, 100_000], ids=["new", "larger than a share"])
def test_databases_share_what_address_space_there_is(tmp_path: Path, reopen: Callable[[], Store], records: int) -> None:
    """`ulimit -v`: the map of a TiB was refused. A database that is larger than its share of it grows somewhat, too."""
    store = make(tmp_path)
    for number in range(records):
        store.apply({(T, b"old%d" % number): bytes(1000)})
        if number % 1000 == 0:
            store.flush()
    store.close()
    others = [tmp_path / f"other{number}" for number in range(4)]
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_SPACE, tmp_path, *others], capture_output=True, text=True, check=False, timeout=60
    )
    assert 2000 < int(done.stdout or 0) < 200_000, done.stderr
    store = reopen()
    assert store.count(T) == records + int(done.stdout)
    store.close()


# ---------------------------------------------------------------- no space


def fill(store: Store, value: int, commit_every: int, random_keys: bool, meanwhile: int) -> int:
    """Apply until ENOSPC, with commits that last while `meanwhile` requests are applied; how many went in."""
    number = 0
    batch: kv.Batch | None = None
    sealed_at = 0
    while number < 200_000:
        key = schema.name_cookie(b"%d" % number).to_bytes(8, "big") if random_keys else b"%08d" % number
        wait = False
        try:
            store.apply({(T, key): bytes(value), (U, b"%08d" % number): b"x"})
            number += 1
        except OpError as error:
            if error.errno == errno.ENOSPC:
                if batch is not None:
                    store.commit(batch)
                    store.reopen()
                return number
            assert error.errno == errno.EAGAIN and (store.dirty or batch is not None)
            wait = True
        if batch is not None and (wait or number >= sealed_at + meanwhile):
            store.commit(batch)
            while not store.reopen():
                pass
            batch = None
        elif batch is None and (wait or number % commit_every == 0 or store.pressed):
            batch, sealed_at = store.seal(), number
    raise AssertionError("it is never full")


@pytest.mark.parametrize("value", [30, 300, 5000])
@pytest.mark.parametrize(("commit_every", "meanwhile"), [(1, 0), (50, 0), (100_000, 0), (50, 20), (500, 500), (1000, 300)])
@pytest.mark.parametrize("random_keys", [True, False])
def test_a_small_map_refuses_while_the_batch_still_fits(
    tmp_path: Path, value: int, commit_every: int, meanwhile: int, random_keys: bool
) -> None:
    store = make(tmp_path, map_bytes=2 << 20)
    number = fill(store, value, commit_every, random_keys, meanwhile)
    assert number * value < 2 << 20 and number > 100
    assert store.count(T) == store.count(U) == number
    store.flush()  # not in danger
    for _ in range(2):  # pages of the last commit can be used after the next
        with pytest.raises(OpError) as caught:
            for more in range(500):
                store.apply({(T, b"the next %d" % more): bytes(value), (U, b"the next"): b"x"})
        assert store.get(T, b"the next %d" % more) is None
        store.flush()
    assert caught.value.errno in (errno.ENOSPC, errno.EAGAIN)
    assert not store.pressed
    store.apply({(T, b"replayed"): bytes(value)}, kind=ESSENTIAL)
    for key, _ in list(store.scan(T)):  # a full target can be emptied
        store.apply({(T, key): None})
        if store.dirty >= 100 or store.pressed:
            store.flush()
    store.flush()
    store.flush()
    store.apply({(T, b"the next"): bytes(value)})
    store.close()


def test_a_sealed_batch_has_its_room_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next batch is refused what only the freed pages of this one would make room for."""
    store = make(tmp_path, map_bytes=4 << 20)
    while not store.pressed:
        try:
            store.apply({(T, b"%08d" % store.dirty): bytes(300)})
        except OpError as error:
            assert error.errno == errno.EAGAIN
    records = store.dirty
    assert records > 50
    batch = store.seal()
    assert not store.pressed
    with pytest.raises(OpError) as caught:
        store.apply({(T, b"a"): bytes(300)})
    assert caught.value.errno == errno.EAGAIN and store.dirty == 0
    for number in range(10):
        store.apply({(T, b"e%d" % number): bytes(300)}, kind=ESSENTIAL)
    store.commit(batch)
    assert store.reopen()
    store.apply({(T, b"a"): bytes(300)})
    store.close()


def test_a_full_target_can_be_emptied_record_by_record(tmp_path: Path) -> None:
    """Who deletes and is told to come again after a commit can go on then; what comes with a commit is never refused."""
    store = make(tmp_path, map_bytes=4 << 20)
    number = 0
    for _ in range(20):
        with pytest.raises(OpError):
            while True:
                store.apply({(T, b"%08d" % number): bytes(60_000), (U, b"%08d" % number): b"x"})
                number += 1
        store.flush()
    while number:
        number -= 1
        row = {(T, b"%08d" % number): None, (U, b"%08d" % number): None, (U, b"log %d" % number): bytes(100)}
        for commits in range(3):
            try:
                store.apply(row)
                break
            except OpError as error:
                assert error.errno == errno.EAGAIN and store.pressed and commits < 2
            store.apply({(U, b"with a commit"): b"%d" % commits}, reckoned=True)
            store.flush()
    assert store.count(T) == 0
    store.close()


@pytest.mark.parametrize("keep", [2, 3])
def test_large_values_do_not_count_on_free_pages_that_are_scattered(tmp_path: Path, keep: int) -> None:
    """In a full map of which every second page is free, large values are refused, and never break a batch."""
    store = make(tmp_path, map_bytes=32 << 20)
    count = refused = 0
    while refused < 5:
        try:
            store.apply({(T, b"%08d" % count): bytes(3000)})
            count, refused = count + 1, 0
        except OpError:
            refused += 1
            store.flush()
    for number in range(count):
        if number % keep:
            row = {(T, b"%08d" % number): None}
            try:
                store.apply(row)
            except OpError:
                store.flush()
                store.apply(row)
    for _ in range(3):
        store.flush()
    with pytest.raises(OpError):
        for number in range(400):
            store.apply({(T, b"large %d" % number): bytes(60_000)})
    for number in range(200):  # those that need one page each go in
        store.apply({(T, b"piece %d" % number): bytes(room.LARGE_BYTES)})
    store.flush()
    store.close()


def test_what_is_owed_is_told_to_come_again(tmp_path: Path) -> None:
    """However full it is: a close or a time that a program was told of must not be lost."""
    store = make(tmp_path, map_bytes=2 << 20)
    for kind in (room.ORDINARY, room.OWED):
        with pytest.raises(OpError) as caught:
            for number in range(100_000):
                store.apply({(T, b"%d %08d" % (kind, number)): bytes(100)}, kind=kind)
                if store.pressed:
                    store.flush()
        assert kind == room.ORDINARY or caught.value.errno == errno.EAGAIN
    store.apply({(T, b"replayed"): bytes(100)}, kind=ESSENTIAL)
    store.flush()
    store.close()


def test_a_full_disk_refuses_what_is_not_essential(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reopen: Callable[[], Store]
) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1"})
    store.flush()
    real = disk.space(str(tmp_path))
    available = room.KEPT_BYTES + (4 << 20)
    monkeypatch.setattr(disk, "space", lambda path: real._replace(total=1 << 30, available=available))
    store.reserved_permille = 0
    store.apply({(T, b"b"): b"1"})
    store.flush()
    store.reserved_permille = 5  # 5 MiB of this disk
    with pytest.raises(OpError) as caught:
        store.apply({(T, b"c"): b"1", (T, b"b"): b"2"})
    assert caught.value.errno == errno.ENOSPC
    assert rows(store) == {b"a": b"1", b"b": b"1"} and store.dirty == 0
    store.apply({(T, b"a"): None})
    store.apply({(T, b"d"): b"1"}, kind=ESSENTIAL)
    available = 0
    with pytest.raises(OpError):
        store.apply({(T, b"e"): bytes(1 << 20)}, kind=ESSENTIAL)
    store.close()
    monkeypatch.undo()
    store = reopen()
    assert rows(store) == {b"b": b"1", b"d": b"1"}
    store.close()


def test_the_disk_is_looked_at_again_in_a_long_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1"})
    real = disk.space(str(tmp_path))
    monkeypatch.setattr(disk, "space", lambda path: real._replace(available=0))
    with pytest.raises(OpError):
        for number in range(room.CHECK_RECORDS + 1):
            store.apply({(T, b"%d" % number): b"1"})
    store.abort()


def test_blocks_are_ours_before_the_batch_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Object data may fill the disk meanwhile: what was reckoned with is allocated, and a failure of that is ENOSPC."""
    store = Store.open(tmp_path, "MDT", create=True)
    store.apply({(T, b"a"): b"1"})
    assert os.stat(tmp_path / "lmdb" / "data.mdb").st_blocks * 512 >= room.KEPT_BYTES
    assert os.stat(tmp_path / "lmdb" / "data.mdb").st_size < 1 << 20
    store.flush()

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, "fallocate", full)
    with pytest.raises(OpError) as caught:
        store.apply({(T, b"b"): bytes(40 << 20)})
    assert caught.value.errno == errno.ENOSPC
    store.apply({(T, b"c"): bytes(100)}, kind=ESSENTIAL)  # there are blocks for this
    store.close()


def test_a_disk_that_cannot_allocate_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(disk, "fallocate", cannot)
    store = Store.open(tmp_path, "MDT", create=True)
    store.apply({(T, b"a"): b"1"})
    store.close()


# ---------------------------------------------------------------- against a model

keys = st.binary(min_size=1, max_size=3).map(lambda key: bytes(byte & 0x83 | (byte & 0x40) >> 6 for byte in key))
some_keys = st.one_of(keys, st.sampled_from([b"\xff", b"\xff\xff", b"a\xff", b"b"]))
some_writes = st.dictionaries(some_keys, st.one_of(st.none(), st.binary(max_size=2)), max_size=6)
steps = st.one_of(
    st.tuples(st.just("apply"), some_writes),
    st.tuples(st.just("step"), st.none()),  # of a commit: seal, commit, reopen, and again
    st.tuples(st.just("apply"), some_writes),
    st.tuples(st.just("step"), st.none()),
    st.tuples(st.just("seal"), st.none()),
    st.tuples(st.just("log"), st.none()),
    st.tuples(st.just("kill"), st.none()),
)
some_ranges = st.lists(st.tuples(some_keys | st.just(b""), some_keys | st.just(b"")), max_size=4)


class Model:
    """A store, and what must be in it: now, and after a kill."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = make(directory)
        self.now: dict[bytes, bytes] = {}
        self.sealed: dict[bytes, bytes] = {}
        self.durable: dict[bytes, bytes] = {}
        self.batch: kv.Batch | None = None  # sealed, not committed
        self.closed = False  # committed, not reopened

    def act(self, what: str, writes: dict[bytes, bytes | None] | None) -> None:
        if what == "apply" and writes is not None:
            self.store.apply({(T, key): value for key, value in writes.items()})
            for key, value in writes.items():
                if value is None:
                    self.now.pop(key, None)
                else:
                    self.now[key] = value
        elif what == "kill":
            self.store.abort()
            self.store = Store.open(self.directory, "MDT", durable=False)
            self.now, self.batch, self.closed = dict(self.durable), None, False
        elif what == "log":
            if self.store.log():
                self.durable = dict(self.now)
        elif self.batch is not None:
            self.store.commit(self.batch)
            self.durable, self.batch, self.closed = self.sealed, None, True
        elif self.closed and (what == "step" or self.store._frozen is not None):
            self.closed = not self.store.reopen()
        else:  # "seal": even if it has not caught up
            self.batch, self.sealed, self.closed = self.store.seal(), dict(self.now), False


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(st.lists(steps, max_size=30), some_ranges)
def test_reads_see_running_over_frozen_over_committed(
    tmp_path_factory: pytest.TempPathFactory, some: list[tuple[str, Any]], ranges: list[tuple[bytes, bytes]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv, "SCAN_ROWS_MIN", 2)  # many chunks
        patch.setattr(kv, "SCAN_ROWS_MAX", 3)
        patch.setattr(kv, "REOPEN_RECORDS", 2)
        model = Model(tmp_path_factory.mktemp("s"))
        try:
            for what, writes in some:
                model.act(what, writes)
                check(model.store, model.now, ranges)
            model.act("kill", None)
            check(model.store, model.now, ranges)
        finally:
            model.store.abort()


def delta_is_dropped_after_the_commit(patch: pytest.MonkeyPatch) -> None:
    reopen = Store.reopen
    patch.setattr(Store, "reopen", lambda self: (self._behind.clear(), reopen(self))[1])


def chunks_overwrite_what_is_newer(patch: pytest.MonkeyPatch) -> None:
    class Stubborn(dict):  # type: ignore[type-arg]
        def pop(self, *_: Any) -> Any:
            return None

    init = Store.__init__

    def stubborn(self: Any, *args: Any) -> None:
        init(self, *args)
        self._behind = Stubborn()

    patch.setattr(Store, "__init__", stubborn)


def the_frozen_batch_is_not_read(patch: pytest.MonkeyPatch) -> None:
    seal = Store.seal

    def forgetful(self: Any) -> Any:
        batch = seal(self)
        self._over = (self._running,)
        return batch

    patch.setattr(Store, "seal", forgetful)


def the_sealed_batch_takes_more(patch: pytest.MonkeyPatch) -> None:
    apply = Store.apply

    def greedy(self: Any, writes: Any, **options: Any) -> None:
        apply(self, writes, **options)
        if self._sealed is not None:
            self._open = self._sealed
            self._put(writes)
            self._open = None

    patch.setattr(Store, "apply", greedy)


def what_is_not_put_yet_is_not_read(patch: pytest.MonkeyPatch) -> None:
    reopen = Store.reopen

    def hasty(self: Any) -> Any:
        caught_up = reopen(self)
        self._over = ()
        return caught_up

    patch.setattr(Store, "reopen", hasty)


def keys_are_sorted_once(patch: pytest.MonkeyPatch) -> None:
    def once(self: Any, table: str) -> list[bytes]:
        return self._sorted.setdefault(table, sorted(self.tables[table]))  # type: ignore[no-any-return]

    patch.setattr(kv.Delta, "sorted_keys", once)


def the_log_is_not_voided_by_a_commit(patch: pytest.MonkeyPatch) -> None:
    begin = SmallLog.begin
    patch.setattr(SmallLog, "begin", lambda self, commit: begin(self, commit) if not self._after else None)


def what_was_logged_is_not_logged_on(patch: pytest.MonkeyPatch) -> None:
    """The successor's first log says that everything is durable, and only has what came since."""
    take_up = Store._take_up

    def forgetful(self: Any) -> None:
        take_up(self)
        self._fresh = []

    patch.setattr(Store, "_take_up", forgetful)


def deletions_are_not_logged(patch: pytest.MonkeyPatch) -> None:
    append = SmallLog.append
    patch.setattr(SmallLog, "append", lambda self, changes, data: append(self, [c for c in changes if c[2]], data))


@pytest.mark.parametrize(
    "plant",
    [
        delta_is_dropped_after_the_commit,
        chunks_overwrite_what_is_newer,
        the_frozen_batch_is_not_read,
        the_sealed_batch_takes_more,
        what_is_not_put_yet_is_not_read,
        keys_are_sorted_once,
        the_log_is_not_voided_by_a_commit,
        what_was_logged_is_not_logged_on,
        deletions_are_not_logged,
    ],
)
def test_planted_bugs_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The test above, with luck instead of hypothesis: it need not be explained what fails."""
    monkeypatch.setattr(kv, "SCAN_ROWS_MIN", 2)
    monkeypatch.setattr(kv, "SCAN_ROWS_MAX", 3)
    monkeypatch.setattr(kv, "REOPEN_RECORDS", 2)
    runs_until_found = []
    for plants in ((), (plant,)):
        for one in plants:
            one(monkeypatch)
        runs_until_found.append(next((n for n in range(200) if fails(tmp_path / f"{len(plants)}-{n}", n)), None))
    assert runs_until_found[0] is None and runs_until_found[1] is not None, runs_until_found


def fails(directory: Path, seed: int) -> bool:
    chance = random.Random(seed)
    model = Model(directory)
    try:
        for _ in range(30):
            what = chance.choices(["apply", "step", "seal", "log", "kill"], [9, 7, 1, 4, 2])[0]
            writes = {b"%c" % chance.choice(b"abcdefgh"): chance.choice([None, b"1", b"2"]) for _ in range(4)}
            model.act(what, writes)
            check(model.store, model.now, [])
        return False
    except AssertionError:
        return True
    finally:
        model.store.abort()


def check(store: Store, model: dict[bytes, bytes], ranges: list[tuple[bytes, bytes]]) -> None:
    ordered = sorted(model.items())
    assert list(store.scan(T)) == ordered
    assert store.count(T) == len(model)
    assert store.last(T) == (ordered[-1] if ordered else None)
    for after, prefix in ranges:
        assert store.get(T, after) == model.get(after) if after else True
        expected = [row for row in ordered if row[0] > after and row[0].startswith(prefix)]
        assert list(store.scan(T, after, prefix=prefix)) == expected
        expected = [row for row in ordered if row[0].startswith(prefix)]
        assert store.last(T, prefix) == (expected[-1] if expected else None)


def test_a_scan_goes_on_over_changes_and_commits(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.apply({(T, b"%04d" % number): b"" for number in range(0, 1000, 2)})
    seen = []
    for key, _ in store.scan(T):
        seen.append(key)
        number = int(key)
        if number % 2 == 0:
            store.apply({(T, key): None, (T, b"%04d" % (number + 501)): b""})
        if number % 100 == 0:
            store.flush()
    assert seen == sorted(set(seen))
    assert set(seen) >= {b"%04d" % number for number in range(0, 1000, 2)}
    store.abort()


def test_a_scan_takes_no_more_of_a_delta_than_it_needs(tmp_path: Path) -> None:
    """A listing goes on page by page; with 50,000 names in the batch each page must not look at all of them."""
    store = make(tmp_path)
    store.apply({(T, b"%04d" % number): b"" for number in range(0, 3000, 2)})
    store.seal()
    store.apply({(T, b"%04d" % number): b"" for number in range(1, 3000, 2)})
    store.apply({(T, b"%04d" % number): None for number in range(0, 3000, 4)})
    some, more = store._rows(T, b"0100", b"", 64)
    assert 40 <= len(some) <= 128 and more is not None and some[-1][0] <= more <= b"0300"
    assert [key for key, _ in store.scan(T)] == [b"%04d" % number for number in range(3000) if number % 4]
    store.abort()


def test_reads_stay_right_while_a_thread_commits(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    store = make(tmp_path)
    model: dict[bytes, bytes] = {}

    def change(turn: int, count: int) -> None:
        writes = {b"%04d" % ((turn * 37 + number) % 700): b"%d" % turn for number in range(count)}
        store.apply({(T, key): value for key, value in writes.items()})
        model.update(writes)

    def check_all() -> None:
        for number in range(0, 700, 7):
            key = b"%04d" % number
            assert store.get(T, key) == model.get(key)
        assert store.count(T) == len(model)
        assert list(store.scan(T)) == sorted(model.items())

    for turn in range(30):
        change(turn, 300)
        thread = threading.Thread(target=store.commit, args=(store.seal(),))
        thread.start()
        change(turn + 1000, 100)
        check_all()
        thread.join()
        check_all()
        while not store.reopen():
            check_all()
    store.flush()
    store.abort()
    store = reopen()
    assert rows(store) == model
    store.abort()


# ---------------------------------------------------------------- formats and openings


def set_format(directory: Path, value: Any) -> None:
    store = Store.open(directory, "MDT")
    store.apply({(schema.META, schema.FORMAT_KEY): schema.pack_meta(value)})
    store.close()


@pytest.mark.parametrize(
    ("version", "word"), [(schema.FORMAT_VERSION + 1, "newer"), (schema.FORMAT_VERSION - 1, "older")]
)
@pytest.mark.parametrize("readonly", [False, True])
def test_another_format_is_refused_with_a_sentence(tmp_path: Path, version: int, word: str, readonly: bool) -> None:
    make(tmp_path).close()
    set_format(tmp_path, (version, "MDT"))
    with pytest.raises(FormatRefused) as caught:
        Store.open(tmp_path, "MDT", readonly=readonly)
    assert word in str(caught.value) and str(version) in str(caught.value) and str(tmp_path) in str(caught.value)
    with pytest.raises(FormatRefused):  # and nothing was left open
        Store.open(tmp_path, "MDT", readonly=readonly)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path).close()
    with pytest.raises(FormatRefused, match="holds a LustreLite MDT, not an OST"):
        Store.open(tmp_path, "OST")
    with pytest.raises(FormatRefused, match="already holds a LustreLite MDT"):
        Store.open(tmp_path, "OST", create=True)
    Store.open(tmp_path, "MDT").close()


@pytest.mark.parametrize("readonly", [False, True])
def test_what_is_no_target_is_refused_and_left_alone(tmp_path: Path, readonly: bool) -> None:
    with pytest.raises(FormatRefused, match="no LustreLite target"):
        Store.open(tmp_path, "MDT", readonly=readonly)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(FormatRefused):
        Store.open(tmp_path, "MDT", readonly=readonly)


@pytest.mark.parametrize("readonly", [False, True])
def test_a_format_that_was_cut_short_is_refused_and_can_be_repeated(tmp_path: Path, readonly: bool) -> None:
    make(tmp_path).close()
    store = Store.open(tmp_path, "MDT")
    store.apply({(schema.META, schema.FORMAT_KEY): None})
    store.close()
    with pytest.raises(FormatRefused, match="not finished"):
        Store.open(tmp_path, "MDT", readonly=readonly)
    make(tmp_path).close()
    Store.open(tmp_path, "MDT").close()


def test_one_writer_or_many_readers(tmp_path: Path) -> None:
    writer = make(tmp_path)
    writer.apply({(T, b"a"): b"1"})
    for readonly in (False, True):
        with pytest.raises(OpError) as caught:
            Store.open(tmp_path, "MDT", readonly=readonly)
        assert caught.value.errno == errno.EBUSY
    writer.close()
    with reader(tmp_path) as one:
        assert rows(one) == {b"a": b"1"} and one.get(T, b"a") == b"1" and one.count(T) == 1
        with pytest.raises(OpError) as caught:
            one.apply({(T, b"b"): b"1"})
        assert caught.value.errno == errno.EROFS
        with pytest.raises(OpError):
            Store.open(tmp_path, "MDT")
    Store.open(tmp_path, "MDT").close()


class reader:
    """A store opened for reading only."""

    def __init__(self, directory: Path) -> None:
        self.store = Store.open(directory, "MDT", readonly=True)

    def __enter__(self) -> Store:
        return self.store

    def __exit__(self, *_: object) -> None:
        self.store.close()


def test_opening_and_closing_leaves_no_descriptor(tmp_path: Path) -> None:
    make(tmp_path).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Store.open(tmp_path, "MDT").close()
        Store.open(tmp_path, "MDT").abort()
        with pytest.raises(FormatRefused):
            Store.open(tmp_path, "OST")
    assert len(os.listdir("/proc/self/fd")) == before
