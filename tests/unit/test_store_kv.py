"""The batch: what a crash loses, what a full disk refuses, and what may be read when, also while a commit is under way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lustrelite.errors import FormatRefused, OpError, StoreFailed
from lustrelite.store import disk, kv, room, schema
from lustrelite.store.kv import Store

T = schema.REPLIES  # a table that every kind has
U = schema.CLIENTS


def make(directory: Path = "MDT", **options: Any) -> Store:
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
        lambda: store.flush(),
    ]


# ---------------------------------------------------------------- crashes


def test_the_kind_chooses_the_store(tmp_path: Path) -> None:
    for kind, cls in (("MDT", OpenTxnStore), ("MGS", OpenTxnStore), ("OST", StagedStore)):
        store = make(tmp_path / kind, kind)
        assert type(store) is cls and store.kind == kind
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


def test_only_the_sealed_batch_is_committed(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1", (T, b"b"): b"1"})
    batch = store.seal()
    assert batch.keys(T) == [b"a", b"b"] and batch.keys(U) == []
    store.apply({(T, b"a"): b"2", (T, b"c"): b"2", (T, b"b"): None})
    store.commit(batch)
    assert rows(store) == {b"a": b"2", b"c": b"2"}
    store.abort()
    store = reopen()
    assert rows(store) == {b"a": b"1", b"b": b"1"}
    store.abort()


def test_one_batch_is_frozen_at_a_time(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.apply({(T, b"a"): b"123"})
    store.flush()
    batch = store.seal()
    assert (batch.dirty, batch.size) == (0, 0)  # the one before is settled
    with pytest.raises(AssertionError):
        store.seal()
    store.commit(batch)
    with pytest.raises(AssertionError):
        store.commit(batch)
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
store = Store.open(sys.argv[1], sys.argv[2], create=True)
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
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    with pytest.raises(OpError) as caught:
        Store.open(tmp_path, kind)
    assert caught.value.errno == errno.EBUSY  # it is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store = Store.open(tmp_path, kind)
    assert [key for key, _ in store.scan(T)] == [b"%08d" % number for number in range(1000)]
    assert store.get(U, b"last") == b"00000999"
    store.apply({(T, b"x"): b""})  # and it works
    store.close()


# ---------------------------------------------------------------- failures


def test_a_failed_commit_fails_everything_after_it(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    """State that a commit took back must never be seen: not the old, not the new."""
    store = make(tmp_path)
    store.apply({(T, b"a"): b"1"})
    store.flush()
    store.apply({(T, b"a"): b"2", (T, b"b"): b"2"})
    batch = store.seal()
    break_commits(store)
    with pytest.raises(StoreFailed):
        store.commit(batch)
    for call in [*calls(store), lambda: store.commit(batch), store.close]:
        with pytest.raises(StoreFailed):
            call()
    store.abort()
    store = reopen()
    assert rows(store) == {b"a": b"1"}
    store.abort()


def break_commits(store: Store) -> None:
    """Let the next LMDB commit fail as with an I/O error."""

    class Broken:
        def __init__(self, txn: Any) -> None:
            self.txn = txn

        def __getattr__(self, name: str) -> Any:
            return getattr(self.txn, name)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.commit()

        def commit(self) -> None:
            self.txn.abort()
            raise lmdb.DiskError("mdb_txn_commit: Input/output error")

    class Environment:
        def __init__(self, env: lmdb.Environment) -> None:
            self.env = env

        def __getattr__(self, name: str) -> Any:
            return getattr(self.env, name)

        def begin(self, **options: Any) -> Any:
            txn = self.env.begin(**options)
            return Broken(txn) if options.get("write") else txn

    if isinstance(store, OpenTxnStore):
        store._txn = Broken(store._txn)
    else:
        store._env = Environment(store._env)  # type: ignore[assignment]


@pytest.mark.parametrize("key", [b"k" * 600, b""])
def test_a_change_that_lmdb_refuses_half_way_fails_the_store(
    tmp_path: Path, key: bytes, reopen: Callable[[], Store]
) -> None:
    """The first half is in the transaction and cannot be taken out: nothing of it may be served."""
    store = make(tmp_path)
    with pytest.raises(StoreFailed):
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


# ---------------------------------------------------------------- no space


def fill(store: Store, value: int, commit_every: int, random_keys: bool = True) -> int:
    """Apply until ENOSPC; how many went in."""
    number = 0
    with pytest.raises(OpError) as caught:
        while number < 200_000:
            key = schema.name_cookie(b"%d" % number).to_bytes(8, "big") if random_keys else b"%08d" % number
            store.apply({(T, key): bytes(value), (U, b"%08d" % number): b"x"})
            number += 1
            if number % commit_every == 0:
                store.flush()
    assert caught.value.errno == errno.ENOSPC
    return number


@pytest.mark.parametrize("value", [10, 300, 5000])
@pytest.mark.parametrize("commit_every", [1, 50, 100_000])
@pytest.mark.parametrize("random_keys", [True, False])
def test_a_small_map_refuses_while_the_batch_still_fits(
    tmp_path: Path, value: int, commit_every: int, random_keys: bool
) -> None:
    store = make(tmp_path, map_bytes=4 << 20)
    number = fill(store, value, commit_every, random_keys)
    assert number * value < 4 << 20 and number > 100
    assert store.count(T) == store.count(U) == number
    with pytest.raises(OpError):
        store.apply({(T, b"the next"): bytes(value), (U, b"the next"): b"x"})
    assert store.get(T, b"the next") is None and store.get(U, b"the next") is None
    assert store.pressed or commit_every == 1
    store.flush()  # not in danger
    pressed = store.pressed
    assert not pressed
    store.apply({(T, b"replayed"): bytes(value)}, essential=True)
    for key, _ in list(store.scan(T)):  # a full target can be emptied
        store.apply({(T, key): None})
        if store.dirty >= 100 or store.pressed:
            store.flush()
    store.flush()
    store.flush()  # pages of the last commit can be used after the next
    store.apply({(T, b"the next"): bytes(value)})
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
    store.apply({(T, b"d"): b"1"}, essential=True)
    available = 0
    with pytest.raises(OpError):
        store.apply({(T, b"e"): bytes(1 << 20)}, essential=True)
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
    store = Store.open(tmp_path, kind, create=True)
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
    store.apply({(T, b"c"): bytes(100)}, essential=True)  # there are blocks for this
    store.close()


def test_a_disk_that_cannot_allocate_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(disk, "fallocate", cannot)
    store = Store.open(tmp_path, kind, create=True)
    store.apply({(T, b"a"): b"1"})
    store.close()


# ---------------------------------------------------------------- against a model

keys = st.binary(min_size=1, max_size=3).map(lambda key: bytes(byte & 0x83 | (byte & 0x40) >> 6 for byte in key))
some_keys = st.one_of(keys, st.sampled_from([b"\xff", b"\xff\xff", b"a\xff", b"b"]))
steps = st.one_of(
    st.tuples(st.just("apply"), st.dictionaries(some_keys, st.one_of(st.none(), st.binary(max_size=2)), max_size=6)),
    st.tuples(st.just("seal"), st.none()),
    st.tuples(st.just("commit"), st.none()),
    st.tuples(st.just("kill"), st.none()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    st.lists(steps, max_size=25), st.lists(st.tuples(some_keys | st.just(b""), some_keys | st.just(b"")), max_size=4)
)
def test_reads_see_staged_over_frozen_over_committed(
    tmp_path_factory: pytest.TempPathFactory, some: list[tuple[str, Any]], ranges: list[tuple[bytes, bytes]]
) -> None:
    directory = tmp_path_factory.mktemp("s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv, "SCAN_ROWS_MIN", 2)  # many chunks
        patch.setattr(kv, "SCAN_ROWS_MAX", 3)
        store = make(directory)
        durable: dict[bytes, bytes] = {}
        model: dict[bytes, bytes] = {}
        sealed: dict[bytes, bytes] | None = None
        batch: kv.Batch | None = None
        for act, writes in some:
            if act == "apply":
                store.apply({(T, key): value for key, value in writes.items()})
                for key, value in writes.items():
                    if value is None:
                        model.pop(key, None)
                    else:
                        model[key] = value
            elif act == "seal" and batch is None:
                batch, sealed = store.seal(), dict(model)
            elif act == "commit" and batch is not None:
                store.commit(batch)
                assert sealed is not None
                durable = sealed if kind == "OST" else dict(model)  # an open transaction takes all there is
                batch = sealed = None
            elif act == "kill":
                store.abort()
                store = Store.open(directory, kind, durable=False)
                model, batch, sealed = dict(durable), None, None
            check(store, model, ranges)
        store.abort()


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


def test_reads_stay_right_while_a_thread_commits(tmp_path: Path, reopen: Callable[[], Store]) -> None:
    """The moment at which a frozen batch moves into LMDB must not be visible."""
    store = make(tmp_path)
    model: dict[bytes, bytes] = {}
    for turn in range(30):
        writes = {b"%04d" % ((turn * 37 + number) % 700): b"%d" % turn for number in range(300)}
        store.apply({(T, key): value for key, value in writes.items()})
        model.update(writes)
        thread = threading.Thread(target=store.commit, args=(store.seal(),))
        thread.start()
        for number in range(0, 700, 7):
            key = b"%04d" % number
            assert store.get(T, key) == model.get(key)
        assert store.count(T) == len(model)
        assert list(store.scan(T)) == sorted(model.items())
        thread.join()
    store.abort()
    store = reopen()
    assert rows(store) == model
    store.abort()


# ---------------------------------------------------------------- formats and openings


def set_format(directory: Path, value: Any) -> None:
    store = Store.open(directory, kind)
    store.apply({(schema.META, schema.FORMAT_KEY): schema.pack_meta(value)})
    store.close()


@pytest.mark.parametrize(
    ("version", "word"), [(schema.FORMAT_VERSION + 1, "newer"), (schema.FORMAT_VERSION - 1, "older")]
)
@pytest.mark.parametrize("readonly", [False, True])
def test_another_format_is_refused_with_a_sentence(tmp_path: Path, version: int, word: str, readonly: bool) -> None:
    make(tmp_path).close()
    set_format(tmp_path, "MDT", (version, "MDT"))
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
            Store.open(tmp_path, kind, readonly=readonly)
        assert caught.value.errno == errno.EBUSY
    writer.close()
    with reader(tmp_path, kind) as one:
        assert rows(one) == {b"a": b"1"} and one.get(T, b"a") == b"1" and one.count(T) == 1
        with pytest.raises(OpError) as caught:
            one.apply({(T, b"b"): b"1"})
        assert caught.value.errno == errno.EROFS
        with pytest.raises(OpError):
            Store.open(tmp_path, kind)
    Store.open(tmp_path, kind).close()


class reader:
    """A store opened for reading only."""

    def __init__(self, directory: Path) -> None:
        self.store = Store.open(directory, kind, readonly=True)

    def __enter__(self) -> Store:
        return self.store

    def __exit__(self, *_: object) -> None:
        self.store.close()


def test_opening_and_closing_leaves_no_descriptor(tmp_path: Path) -> None:
    make(tmp_path).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Store.open(tmp_path, "OST").close()
        Store.open(tmp_path, "OST").abort()
        with pytest.raises(FormatRefused):
            Store.open(tmp_path, "MDT")
    assert len(os.listdir("/proc/self/fd")) == before
