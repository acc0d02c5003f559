"""The log of small batches: what was appended is read again, up to the first record that is not whole or not of now."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lustrelite.errors import OpError, StoreFailed
from lustrelite.store import schema, small_log
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.store.small_log import LOG_BYTES, RECORD_BYTES_MAX, SECTOR_BYTES, Change, Data, Entry, SmallLog

changes = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.binary(max_size=9), st.none() | st.binary(max_size=9)), max_size=4)
data = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1 << 40), st.binary(max_size=600)), max_size=2)


def opened(directory: Path, *, durable: bool = False) -> SmallLog:
    log = SmallLog(str(directory))
    log.open(durable=durable, readonly=False)
    return log


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.tuples(changes, data), max_size=4), min_size=1, max_size=4))
def test_what_was_appended_since_the_last_commit_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, commits: list[list[tuple[list[Change], list[Data]]]]
) -> None:
    directory = tmp_path_factory.mktemp("log")
    for number, records in enumerate(commits):
        log = opened(directory)
        assert log.entries(number) == []
        log.begin(number)
        for record in records:
            assert log.append(*record)
        log.close()
        again = opened(directory)
        assert again.entries(number) == [Entry(*record) for record in records]
        assert again.entries(number + 1) == []
        again.close()


def test_a_record_that_is_not_whole_ends_it(tmp_path: Path) -> None:
    """Whatever a torn append leaves: what came before is there, and nothing is made up."""
    log = opened(tmp_path)
    log.begin(7)
    parts = [([("t", b"k%d" % number, b"v")], [(number, 0, bytes([number]) * 700)]) for number in range(3)]
    ends = []
    for part in parts:
        assert log.append(*part)
        ends.append(log._end)
    log.close()
    whole = (tmp_path / "log").read_bytes()
    chance = random.Random(1)
    for _ in range(300):
        at = chance.randrange(len(whole))
        torn = bytearray(whole)
        if chance.random() < 0.5:
            torn[at] ^= 1 << chance.randrange(8)
        else:
            torn[at:] = bytes(len(torn) - at) if chance.random() < 0.5 else b""
        (tmp_path / "log").write_bytes(torn)
        log = opened(tmp_path)
        found = log.entries(7)
        log.close()
        assert found == [Entry(*part) for part in parts[: len(found)]]
        assert len(found) >= sum(end <= at for end in ends)


def test_records_of_another_past_do_not_count(tmp_path: Path) -> None:
    """The same commit number, written over from the start: what is left behind it is out of its place."""
    log = opened(tmp_path)
    log.begin(1)
    for number in range(5):
        log.append([("t", b"old", b"%d" % number)], [])
    log.begin(2)
    log.append([("t", b"new", b"")], [])
    assert log.entries(2) == [Entry([("t", b"new", b"")], [])]
    log.begin(2)
    log.append([("t", b"newer", b"")], [])
    assert len(log.entries(2)) == 1
    log.close()


def test_it_takes_no_more_than_it_can(tmp_path: Path) -> None:
    log = opened(tmp_path, durable=True)
    log.begin(1)
    assert os.path.getsize(tmp_path / "log") == LOG_BYTES
    assert not log.append([], [(1, 0, bytes(RECORD_BYTES_MAX))])
    count = 0
    while log.append([], [(1, 0, bytes(50_000))]):
        count += 1
    assert count == LOG_BYTES // (-(-50_000 // SECTOR_BYTES) * SECTOR_BYTES)
    assert len(log.entries(1)) == count and os.path.getsize(tmp_path / "log") == LOG_BYTES
    log.begin(2)
    assert log.append([], [(1, 0, bytes(50_000))])
    log.close()


def test_an_append_that_fails_is_the_end_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path, "MDT", create=True, durable=False)
    store.apply({(schema.META, b"a"): b"1"})

    def full(*_: object) -> int:
        raise OSError(errno.EIO, "no disk")

    monkeypatch.setattr(small_log.os, "pwritev", full)
    for _ in range(2):
        with pytest.raises(StoreFailed):
            store.log()
    with pytest.raises(StoreFailed):
        store.get(schema.META, b"a")
    store.abort()


def test_a_reader_waits_until_the_log_is_taken_up(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "MDT", create=True, durable=False)
    store.apply({(schema.META, b"a"): b"1"})
    assert store.log()
    store.abort()
    with pytest.raises(OpError) as caught:
        Store.open(tmp_path, "MDT", readonly=True)
    assert caught.value.errno == errno.EROFS
    Store.open(tmp_path, "MDT", durable=False).close()
    store = Store.open(tmp_path, "MDT", readonly=True)
    assert store.get(schema.META, b"a") == b"1"
    store.close()


def test_data_is_put_back_before_anything_is_committed(tmp_path: Path) -> None:
    """Of objects that are still there."""
    store = Store.open(tmp_path, "OST", create=True, durable=False)
    for oid in (1, 2):
        store.apply({(schema.OBJECTS, schema.object_key(oid)): b"record"})
    assert store.log([(1, 5, b"one"), (2, 0, b"two")])
    store.apply({(schema.OBJECTS, schema.object_key(2)): None})
    assert store.log([(1, 6, b"later")])
    store.abort()
    store = Store.open(tmp_path, "OST", durable=False)
    with pytest.raises(StoreFailed):
        store.seal()
    store.close()  # it gives up, and the log stays
    files = ObjectFiles(tmp_path, durable=False)
    for _ in range(2):  # killed before it commits: the next one does it again
        store = Store.open(tmp_path, "OST", durable=False)
        store.put_back(files)
        content = bytearray(11)
        assert files.read_into(1, 0, content) == 11 and bytes(content) == b"\0\0\0\0\0olater"
        assert list(files.ids()) == [1]
        store.abort()
    store = Store.open(tmp_path, "OST", durable=False)
    store.put_back(files)
    store.flush()
    store.abort()
    store = Store.open(tmp_path, "OST", durable=False)
    assert not store.logged_data and store.get(schema.OBJECTS, schema.object_key(1)) == b"record"
    store.close()
    files.close()
