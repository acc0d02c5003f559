"""The OST's handlers, through the real service and target, on real stores and files."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ost_harness import FILE, Client, Rig, running

from lustrelite import fsck
from lustrelite.errors import OpError
from lustrelite.faults import Fault
from lustrelite.ids import NO_FID, make_fid
from lustrelite.ost import object_ids
from lustrelite.ost.handlers import HANDLERS, INLINE_BYTES_MAX
from lustrelite.recovery.versions import ABSENT
from lustrelite.store import schema
from lustrelite.store.schema import OBJECTS
from lustrelite.tunables import limits
from lustrelite.wire import ost as wire
from lustrelite.wire.message import BY_CLASS, REPLAY, RESENT
from lustrelite.wire.ost import (
    CREATE_DELORPHAN,
    OBJECT_EOF,
    Destroy,
    Fallocate,
    ObjectGetattr,
    ObjectSeek,
    ObjectSetattr,
    OstCreate,
    OstStatfs,
    OstSync,
    Punch,
    Read,
    SeekReply,
    SetOwners,
    Write,
)
from lustrelite.wire.session import Disconnect, IndexRead

BIG = 1 << 20
S = 1_000_000_000


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        yield made
    assert not len(made.ost.ranges)
    assert not made.ost.prepared


def write_of(oid: int, offset: int = 0, *, time: int = S, stripe: int = 0, owner: Any = FILE) -> Write:
    return Write(oid, offset, owner, stripe, time, sync=True)


async def fails(number: int, awaitable: Any) -> None:
    with pytest.raises(OpError) as caught:
        await awaitable
    assert caught.value.errno == number, caught.value


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((i * 7 + seed) % 251 for i in range(min(length, 4096))) * (length // 4096) or bytes([seed]) * length


def test_every_message_has_a_handler() -> None:
    for cls, spec in BY_CLASS.items():
        if cls.__module__ == wire.__name__:
            assert cls in HANDLERS, spec.name
            assert (HANDLERS[cls].kind == "mutating") == spec.mutates, spec.name


# ---------------------------------------------------------------- ids


def ids_of(rig: Rig) -> list[int]:
    return [schema.split_object_key(key) for key, _ in rig.ost.store.scan(OBJECTS)]


async def test_a_grant_is_answered_before_it_is_durable_and_its_replay_makes_the_same(rig: Rig) -> None:
    await rig.grant(5)  # the first one waits: what may be granted at all is durable before it is
    await rig.commit()
    rig.ost.committer.hold()
    grants = [(await rig.mdt.ask(OstCreate(upto, 0), xid=7000 + upto), upto) for upto in (8, 10)]
    assert [answer.body[0] for answer, _ in grants] == [8, 10]
    assert all(answer.transno > answer.last_committed for answer, _ in grants)
    written = await rig.client.ask(write_of(9)._replace(sync=False), b"data")
    assert rig.files() == [9]
    await rig.kill()
    await rig.start()
    assert ids_of(rig) == [1, 2, 3, 4, 5]
    await rig.reconnect(grants[0][0].transno, of_mdt=grants[0][0].transno)
    replays = [rig.mdt.replay(OstCreate(upto, 0), None, answer, 7000 + upto) for answer, upto in grants]
    assert [(await replay).body[0] for replay in replays] == [8, 10]
    assert (await rig.client.replay(write_of(9), b"data", written, 7020)).status == 0
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    assert ids_of(rig) == [*range(1, 11)]
    assert rig.ost.last_id == 10


async def test_a_resent_grant_is_not_made_twice(rig: Rig) -> None:
    await rig.grant(5)
    first = await rig.mdt.ask(OstCreate(8, 0), xid=7001, tag=3)
    await rig.mdt.call(OstCreate(20, 0), tag=4)
    again = await rig.mdt.ask(OstCreate(8, 0), xid=7001, tag=3, flags=RESENT)
    assert (again.body[0], again.transno) == (8, first.transno)
    assert ids_of(rig) == [*range(1, 21)]


async def test_a_grant_beyond_what_may_be_granted_waits_for_the_commit(rig: Rig) -> None:
    """Else a crash could make us grant an id twice."""
    await rig.grant(10)
    rig.ost.committer.hold()
    far = rig.mdt.start(OstCreate(1000, 0))
    await asyncio.sleep(0.01)
    assert not far.done()
    await rig.kill()
    await rig.start()
    assert rig.ost.last_id == 10


async def test_an_id_that_a_crash_took_is_not_granted_again(rig: Rig) -> None:
    """Nor is the file of its object seen again: nobody uses it.

    Contrast: Lustre, which writes LAST_ID asynchronously
    """
    await rig.grant(10)
    rig.ost.committer.hold()
    await rig.grant(20)
    await rig.client.ask(write_of(15)._replace(sync=False), b"of a client that dies, too")
    await rig.kill()
    await rig.start()
    assert (rig.ost.last_id, rig.files()) == (10, [15])
    rig.mdt.link_to(rig.service)
    await rig.mdt.connect(rig.ost.uuid)
    rig.ost.evict(rig.ost.exports[rig.client.uuid], "dead")
    await rig.mdt.replay_done()
    go_on = (await rig.mdt.call(OstCreate(12, CREATE_DELORPHAN))).last_id
    assert go_on >= 20
    assert ids_of(rig) == [*range(1, 13)]
    await rig.settle()
    assert rig.files() == []
    await rig.kill()
    await rig.start()
    assert rig.ost.last_id == go_on  # answered when durable
    rig.mdt.link_to(rig.service)
    await rig.mdt.connect(rig.ost.uuid)
    await rig.mdt.replay_done()
    assert (await rig.mdt.call(OstCreate(go_on + 1, 0))).last_id == go_on + 1
    assert ids_of(rig) == [*range(1, 13), go_on + 1]


async def test_asking_for_what_is_there_creates_nothing(rig: Rig) -> None:
    await rig.grant(50)
    assert (await rig.mdt.call(OstCreate(50, 0))).last_id == 50
    assert (await rig.mdt.call(OstCreate(20, 0))).last_id == 50
    assert rig.ost.store.count(OBJECTS) == 50


async def test_ids_are_granted_by_the_thousand(rig: Rig) -> None:
    began = rig.node.now()
    await rig.grant(20_000)
    assert rig.node.now() - began < 2.0  # 10,000 creates a second
    assert rig.ost.store.count(OBJECTS) == 20_000


async def test_only_servers_grant_and_destroy(rig: Rig) -> None:
    await rig.grant(3)
    await fails(errno.EPERM, rig.client.call(OstCreate(10, 0)))
    await fails(errno.EPERM, rig.client.call(OstCreate(0, CREATE_DELORPHAN)))
    await fails(errno.EPERM, rig.client.call(Destroy((1,))))
    assert rig.ost.store.count(OBJECTS) == 3


@pytest.mark.parametrize("upto", [-1, 1 << 63, object_ids.GRANT_JUMP_MAX + 1])
async def test_ids_that_cannot_be_are_refused(rig: Rig, upto: int) -> None:
    await fails(errno.EINVAL, rig.mdt.call(OstCreate(upto, 0)))
    assert rig.ost.last_id == 0


async def test_an_orphan_pass_destroys_what_was_not_used_and_uses_no_id_again(rig: Rig) -> None:
    await rig.grant(10)
    for oid in (4, 8):
        await rig.client.call(write_of(oid), b"data")
    assert (await rig.mdt.call(OstCreate(5, CREATE_DELORPHAN))).last_id == 10
    assert [schema.split_object_key(key) for key, _ in rig.ost.store.scan(OBJECTS)] == [1, 2, 3, 4, 5]
    await rig.settle()
    assert rig.files() == [4]
    await fails(errno.ENOENT, rig.client.call(write_of(8), b"late"))
    assert (await rig.mdt.call(OstCreate(5, CREATE_DELORPHAN))).last_id == 10
    assert (await rig.mdt.call(OstCreate(12, 0))).last_id == 12
    assert [schema.split_object_key(key) for key, _ in rig.ost.store.scan(OBJECTS)][-2:] == [11, 12]


async def test_a_late_second_copy_of_an_orphan_pass_destroys_nothing(rig: Rig) -> None:
    """Ids that it would call orphans have been granted and used meanwhile.  Source: a swarm run with doubled frames"""
    await rig.grant(5)
    first = rig.mdt.start(OstCreate(5, CREATE_DELORPHAN))
    xid = rig.mdt.xid
    assert (await first).body[0] == 5
    await rig.grant(10)
    await rig.client.call(write_of(8), b"in use")
    late = rig.mdt.start(OstCreate(5, CREATE_DELORPHAN), xid=xid)  # older than the grant: it gets no answer at all
    await rig.settle()
    assert not late.done()
    assert rig.ost.exists(8) and rig.files() == [8]



async def test_an_ost_that_lost_objects_makes_the_newest_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_ids, "RECREATE_MAX", 20)
    await rig.grant(5)
    far = 5 + object_ids.GRANT_JUMP_MAX * 3
    assert (await rig.mdt.call(OstCreate(far, CREATE_DELORPHAN))).last_id == far
    assert rig.ost.store.count(OBJECTS) == 25
    assert rig.ost.exists(far)
    assert not rig.ost.exists(far - 20)
    assert rig.node.events.counts["ost.objects_recreated"] == 1


async def test_data_that_is_newer_than_the_database_keeps_its_objects(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database comes from an old backup, the files are those of today: they are no strays."""
    monkeypatch.setattr(object_ids, "GRANT_JUMP_MAX", 50)
    monkeypatch.setattr(object_ids, "RECREATE_MAX", 20)
    await rig.grant(3)
    rig.ost.files.write(40, 0, b"of today")
    rig.ost.files.write(90, 0, b"of today")
    assert (await rig.mdt.call(OstCreate(100, CREATE_DELORPHAN))).last_id == 100
    await rig.settle()
    assert rig.files() == [40, 90]
    assert ids_of(rig) == [1, 2, 3, 40, *range(81, 101)]
    assert (await rig.client.ask(Read(40, 0, 10))).bulk == b"of today"


@pytest.mark.parametrize("incarnation", [1, 2])
async def test_an_mdt_at_its_first_start_destroys_no_object_that_has_data(rig: Rig, incarnation: int) -> None:
    """It was formatted anew. One that has lost all that it had ever done is owed its orphans."""
    await rig.grant(5)
    await rig.client.call(write_of(3), b"data")
    await rig.commit()
    rig.ost.exports[rig.mdt.uuid].incarnation = incarnation
    assert (await rig.mdt.call(OstCreate(0, CREATE_DELORPHAN))).last_id == 5
    await rig.commit()
    assert ids_of(rig) == ([1, 2, 3, 4, 5] if incarnation == 1 else [])


async def test_too_many_orphans_are_the_loss_of_the_mdt(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_ids, "ORPHANS_MAX", 20)
    await rig.grant(30)
    assert (await rig.mdt.call(OstCreate(0, CREATE_DELORPHAN))).last_id == 30
    assert rig.ost.store.count(OBJECTS) == 30
    assert (await rig.mdt.call(OstCreate(10, CREATE_DELORPHAN))).last_id == 30
    assert rig.ost.store.count(OBJECTS) == 10


# ---------------------------------------------------------------- write and read


@pytest.mark.parametrize("length", [1, 4096, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, BIG, limits.brw_bytes_max])
async def test_what_is_written_is_read(rig: Rig, length: int) -> None:
    await rig.grant(1)
    data = pattern(length)
    attr = (await rig.client.call(write_of(1, 8192), data)).attr
    assert (attr.size, attr.mtime, attr.ctime) == (8192 + len(data), S, S)
    answer = await rig.client.ask(Read(1, 8192, len(data)))
    assert tuple(answer.body) == (len(data), 8192 + len(data))
    assert answer.bulk == data
    assert (await rig.client.ask(Read(1, 0, 8192))).bulk == bytes(8192)


async def test_a_read_is_short_at_the_end(rig: Rig) -> None:
    await rig.grant(2)
    await rig.client.call(write_of(1), b"0123456789")
    for offset, length, expected in ((5, 100, b"56789"), (10, 5, b""), (100, 5, b""), (0, 0, b"")):
        answer = await rig.client.ask(Read(1, offset, length))
        assert (tuple(answer.body), answer.bulk or b"") == ((len(expected), 10), expected)
    big = pattern(BIG)
    await rig.client.call(write_of(1), big)
    answer = await rig.client.ask(Read(1, 4096, 4 * BIG))
    assert answer.bulk == big[4096:]
    answer = await rig.client.ask(Read(2, 0, 100))  # never written
    assert (tuple(answer.body), answer.bulk or b"") == ((0, 0), b"")


@pytest.mark.parametrize("oid", [0, -5, 2, 1 << 62, (1 << 64) - 1])
async def test_an_object_without_record_is_not_there(rig: Rig, oid: int) -> None:
    await rig.grant(1)
    await rig.mdt.call(OstCreate(1, CREATE_DELORPHAN))
    for body, bulk in (
        (write_of(oid), b"x"), (write_of(oid), pattern(BIG)), (Read(oid, 0, 10), None), (Read(oid, 0, BIG), None),
        (ObjectGetattr(oid), None), (Punch(oid, 0, OBJECT_EOF, FILE, 0, S), None),
        (ObjectSetattr(oid, wire.OBJECT_MTIME, 0, 0, 0, 5, S), None),
    ):  # fmt: skip
        await fails(errno.ENOENT, rig.client.call(body, bulk))
    assert rig.files() == []


@pytest.mark.parametrize(
    ("body", "bulk", "number"),
    [
        (write_of(1, -1), b"x", errno.EINVAL),
        (write_of(1, stripe=-1), b"x", errno.EINVAL),
        (write_of(1), b"", errno.EINVAL),
        (write_of(1), None, errno.EINVAL),
        (write_of(1), bytes(limits.brw_bytes_max + 1), errno.EINVAL),
        (write_of(1, limits.object_bytes_max), b"x", errno.EFBIG),
        (write_of(1, limits.object_bytes_max - BIG + 1), bytes(BIG), errno.EFBIG),
        (Read(1, -1, 5), None, errno.EINVAL),
        (Read(1, 0, limits.brw_bytes_max + 1), None, errno.EINVAL),
        (Read(1, 0, -1), None, errno.EINVAL),
        (Punch(1, -1, 5, FILE, 0, S), None, errno.EINVAL),
        (Punch(1, 6, 5, FILE, 0, S), None, errno.EINVAL),
        (Punch(1, limits.object_bytes_max + 1, OBJECT_EOF, FILE, 0, S), None, errno.EFBIG),
    ],
)
async def test_what_makes_no_sense_is_refused(rig: Rig, body: Any, bulk: bytes | None, number: int) -> None:
    await rig.grant(1)
    await fails(number, rig.client.call(body, bulk))
    assert rig.files() == []


async def test_a_write_is_durable_before_its_answer(rig: Rig) -> None:
    """Without the log; with it: test_ost_small_log.py"""
    rig.node.tunables.commit_log_s = 0
    await rig.grant(2)
    synced: list[int] = []
    sync = rig.ost.files.sync

    def watch(oids: Any) -> None:
        synced.extend(oids)
        assert rig.ost.store._frozen is not None  # before the batch is committed
        sync(oids)

    rig.ost.files.sync = watch  # type: ignore[method-assign]
    answer = await rig.client.ask(write_of(1), b"data")
    assert synced == [1]
    assert answer.transno <= rig.ost.last_committed
    await rig.client.call(write_of(2), pattern(BIG))
    assert synced == [1, 2]
    await rig.kill()
    await rig.start()
    record = rig.ost.record(1)
    assert (record.version, record.owner, record.mtime) == (answer.transno, FILE, S)
    assert rig.ost.files.size(1) == 4


async def test_writes_of_one_turn_share_a_commit(rig: Rig) -> None:
    await rig.grant(40)
    commits = rig.ost.committer.commits
    answers = await asyncio.gather(*[rig.client.start(write_of(oid), b"x", tag=1 + oid % 30) for oid in range(1, 41)])
    assert all(answer.status == 0 for answer in answers)
    assert rig.ost.committer.commits - commits <= 3


async def test_the_first_write_says_whose_object_it_is(rig: Rig) -> None:
    await rig.grant(1)
    assert rig.ost.record(1).owner == NO_FID
    await rig.client.call(write_of(1, stripe=3), b"x")
    await rig.client.call(write_of(1, owner=make_fid(0x200000401, 99), stripe=1), b"y")
    record = rig.ost.record(1)
    assert (record.owner, record.stripe) == (FILE, 3)


async def test_an_older_write_does_not_bring_back_older_times(rig: Rig) -> None:
    await rig.grant(1)
    await rig.client.call(write_of(1, time=10 * S), b"x")
    await rig.client.call(ObjectSetattr(1, wire.OBJECT_MTIME, 0, 0, 0, 5 * S, 20 * S))
    attr = (await rig.client.call(write_of(1, time=15 * S), b"y")).attr  # sent before the setattr, arrives after it
    assert (attr.mtime, attr.ctime) == (5 * S, 20 * S)
    attr = (await rig.client.call(write_of(1, time=25 * S), b"z")).attr
    assert (attr.mtime, attr.ctime) == (25 * S, 25 * S)


async def test_overlapping_writes_reach_the_file_in_the_order_of_their_transnos(rig: Rig) -> None:
    """Large ones go through threads, small ones do not: still the highest transno is what is read."""
    await rig.grant(1)
    sizes = [BIG, 100, 300_000, 4096, BIG, INLINE_BYTES_MAX, 200_000, 1]
    futures = [
        rig.client.start(write_of(1, 50 * number), bytes([number + 1]) * size, tag=number + 1)
        for number, size in enumerate(sizes)
    ]
    answers = [await future for future in futures]
    expected = bytearray(BIG + 1000)
    for number in sorted(range(len(sizes)), key=lambda n: answers[n].transno):
        expected[50 * number : 50 * number + sizes[number]] = bytes([number + 1]) * sizes[number]
    size = max(50 * number + length for number, length in enumerate(sizes))
    assert (await rig.client.ask(Read(1, 0, limits.brw_bytes_max))).bulk == bytes(expected[:size])


async def test_a_full_disk_is_said_and_overwriting_goes_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.grant(2)
    await rig.client.call(write_of(1), pattern(BIG))
    monkeypatch.setattr(rig.node.tunables, "reserved_permille", 1000)
    rig.ost.grants._budget = 0
    await fails(errno.ENOSPC, rig.client.call(write_of(2), pattern(BIG)))
    await fails(errno.ENOSPC, rig.client.call(write_of(2), b"x"))
    await fails(errno.ENOSPC, rig.mdt.call(OstCreate(10, 0)))
    await rig.client.call(write_of(1), pattern(BIG, 2))
    assert (await rig.client.call(OstStatfs())).state == 4
    await rig.mdt.call(Destroy((1,)))
    await rig.ost.committed()
    await rig.settle()
    assert rig.files() == []
    monkeypatch.setattr(rig.node.tunables, "reserved_permille", 0)
    await rig.client.call(write_of(2), pattern(BIG))


async def test_a_write_without_a_grant_takes_the_blocks_that_it_touches(rig: Rig) -> None:
    """Seed 8820103 of the OST swarm: bytes were counted, and the blocks came out of what others had been promised."""
    await rig.grant(2)
    await rig.client.call(write_of(1), b"x")
    before = rig.ost.grants._budget
    await rig.client.call(write_of(1, offset=8190), b"1234")
    assert before - rig.ost.grants._budget == 2 * 4096
    before = rig.ost.grants._budget
    await rig.client.call(Fallocate(1, 100_000, 100_001, 0, FILE, 0, S))
    assert before - rig.ost.grants._budget == 4096


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("length", [10, BIG])
async def test_errors_of_the_disk_are_the_answer(rig: Rig, number: int, length: int) -> None:
    await rig.grant(1)

    def broken(*args: Any, **how: Any) -> None:
        raise OpError(number)

    write, rig.ost.files.write = rig.ost.files.write, broken  # type: ignore[method-assign]
    await fails(number, rig.client.call(write_of(1), bytes(length)))
    assert rig.ost.record(1).owner == NO_FID
    rig.ost.files.write = write  # type: ignore[method-assign]
    await rig.client.call(write_of(1), bytes(length))


# ---------------------------------------------------------------- eviction and destruction while I/O is in a thread


class Gate:
    """Holds back the blocking calls of one method of ObjectFiles until it is opened."""

    def __init__(self, rig: Rig, method: str) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        self.calls = 0
        original = getattr(rig.ost.files, method)

        def gated(*args: Any, **how: Any) -> Any:
            self.calls += 1
            self.entered.set()
            assert self.open.wait(10)
            return original(*args, **how)

        setattr(rig.ost.files, method, gated)

    async def reached(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.entered.wait, 10)


async def test_a_write_of_an_evicted_client_changes_no_record_and_nobody_after_it(rig: Rig) -> None:
    """Its data may be in the file if it was in a thread; the next client's write still comes after it."""
    await rig.grant(1)
    gate = Gate(rig, "write")
    before = rig.ost.store.get(OBJECTS, schema.object_key(1))
    rig.client.start(write_of(1), b"E" * BIG)
    await gate.reached()
    waiting = rig.client.start(write_of(1, 100), b"W" * BIG)  # not yet in a thread: must never get there
    rig.ost.evict(rig.ost.exports["client_UUID"], "test")
    other = Client(rig.service, "other_UUID")
    await other.connect(rig.ost.uuid)
    after = other.start(write_of(1, time=2 * S), b"O" * BIG)
    await asyncio.sleep(0.01)
    assert not after.done()
    assert rig.ost.store.get(OBJECTS, schema.object_key(1)) == before
    gate.open.set()
    assert (await after).status == 0
    assert gate.calls == 2
    assert (await other.ask(Read(1, 0, BIG))).bulk == b"O" * BIG
    assert rig.ost.files.size(1) == BIG
    assert not waiting.done() or (await waiting).status


async def test_destroying_waits_for_io_in_a_thread_and_leaves_no_file(rig: Rig) -> None:
    await rig.grant(2)
    gate = Gate(rig, "write")
    write = rig.client.start(write_of(1), bytes(BIG))
    await gate.reached()
    await rig.mdt.call(Destroy((1, 2, 77)))
    assert not rig.ost.exists(1)
    await rig.ost.committed()  # from now on its file could be unlinked, and the thread would make it again
    await asyncio.sleep(0.05)
    gate.open.set()
    assert (await write).status == -errno.ENOENT
    await rig.settle()
    assert rig.files() == []
    await fails(errno.ENOENT, rig.client.call(ObjectGetattr(1)))


async def test_a_destroy_may_be_repeated_and_unlinks_only_when_durable(rig: Rig) -> None:
    await rig.grant(3)
    await rig.client.call(write_of(1), b"data")
    rig.ost.committer.hold()
    destroyed = await rig.mdt.ask(Destroy((1, 1, 3, 3, 99, 0, -4)))
    assert destroyed.status == 0 and destroyed.transno > rig.ost.last_committed
    assert not rig.ost.exists(1)
    assert rig.files() == [1]  # a crash now brings the object back
    rig.ost.committer.release()
    await rig.ost.committed()
    await rig.settle()
    assert rig.files() == []
    assert (await rig.mdt.ask(Destroy((1, 3)))).status == 0
    assert not rig.ost._doomed


async def test_owners_are_recorded_and_nothing_else_of_an_object_changes(rig: Rig) -> None:
    await rig.grant(3)
    await rig.client.call(write_of(1), b"data")
    before = rig.ost.record(1)
    answer = await rig.mdt.ask(SetOwners(((1, 1000, 100, 7), (99, 1, 1, 1), (0, 1, 1, 1), (-4, 1, 1, 1))))
    assert answer.status == 0 and answer.pre_versions == ()
    assert rig.ost.record(1) == before._replace(uid=1000, gid=100, projid=7)
    await fails(errno.EPERM, rig.client.call(SetOwners(((1, 0, 0, 0),))))
    await rig.ost.committed()
    rig.ost.committer.hold()
    await rig.mdt.call(SetOwners(((1, 5, 5, 5),)))
    await rig.kill()
    await rig.start()
    assert rig.ost.record(1).uid == 1000


async def test_a_destroy_lost_in_a_crash_leaves_the_object_whole(rig: Rig) -> None:
    await rig.grant(1)
    await rig.client.call(write_of(1), b"data")
    rig.ost.committer.hold()
    rig.mdt.start(Destroy((1,)))
    await asyncio.sleep(0.01)
    await rig.kill()
    await rig.start()
    assert rig.ost.exists(1)
    assert rig.files() == [1]


async def test_files_left_by_a_crash_after_a_destroy_are_swept_up_at_the_next_start(rig: Rig) -> None:
    await rig.grant(5)
    for oid in (1, 2):
        await rig.client.call(write_of(oid), b"data")
    rig.ost.files.remove = lambda oid: False  # type: ignore[method-assign]  # as if it never came so far
    await rig.mdt.call(Destroy((1,)))
    rig.ost.files.write(99, 0, b"above last_id: the database is older than the data")
    await rig.mdt.call(Disconnect())
    await rig.client.call(Disconnect())
    await rig.kill()
    await rig.start()
    await rig.connect()
    await rig.settle()
    assert rig.files() == [1, 2, 99]
    await rig.mdt.call(OstCreate(5, CREATE_DELORPHAN))
    await rig.settle()
    assert rig.files() == [2, 99]


# ---------------------------------------------------------------- punch, setattr, getattr


async def test_punch_truncates_extends_and_frees(rig: Rig) -> None:
    await rig.grant(2)
    await rig.client.call(write_of(1), b"0123456789")
    attr = await rig.client.call(Punch(1, 6, OBJECT_EOF, FILE, 0, 2 * S))
    assert (attr.size, attr.mtime, attr.ctime) == (6, 2 * S, 2 * S)
    attr = await rig.client.call(Punch(1, 8, OBJECT_EOF, FILE, 0, 3 * S))
    assert attr.size == 8
    attr = await rig.client.call(Punch(1, 1, 3, FILE, 0, 3 * S))
    assert attr.size == 8
    assert (await rig.client.ask(Read(1, 0, 20))).bulk == b"0" + bytes(2) + b"345" + bytes(2)
    attr = await rig.client.call(Punch(2, 0, OBJECT_EOF, FILE, 0, S))  # nothing there, nothing made
    assert attr.size == 0
    assert rig.files() == [1]
    assert rig.ost.record(2).owner == NO_FID
    attr = await rig.client.call(Punch(2, 1 << 40, OBJECT_EOF, FILE, 1, S))
    assert attr.size == 1 << 40
    assert (rig.ost.record(2).owner, rig.ost.record(2).stripe) == (FILE, 1)
    gate = Gate(rig, "punch")
    gate.open.set()
    attr = await rig.client.call(Punch(2, 5, OBJECT_EOF, FILE, 1, S))  # long: in a thread, once
    assert (attr.size, gate.calls) == (5, 1)


async def test_fallocate_grows_zeroes_and_keeps(rig: Rig) -> None:
    await rig.grant(3)
    await rig.mdt.call(OstCreate(3, CREATE_DELORPHAN))
    await rig.client.call(write_of(1), b"0123456789")
    for mode, end, size, content in (
        (0, 20, 20, b"0123456789" + bytes(10)),
        (wire.FALLOC_KEEP_SIZE, 30, 20, b"0123456789" + bytes(10)),
        (wire.FALLOC_ZERO_RANGE, 25, 25, b"0123" + bytes(21)),
        (wire.FALLOC_ZERO_RANGE | wire.FALLOC_KEEP_SIZE, 40, 25, b"0123" + bytes(21)),
    ):
        attr = await rig.client.call(Fallocate(1, 4, end, mode, FILE, 0, 2 * S))
        assert (attr.size, attr.mtime) == (size, 2 * S)
        assert (await rig.client.ask(Read(1, 0, 50))).bulk == content
    attr = await rig.client.call(Fallocate(2, 0, 1 << 20, wire.FALLOC_KEEP_SIZE, FILE, 1, S))
    assert attr.size == 0 and attr.blocks >= (1 << 20) // 512 and rig.files() == [1, 2]
    for number, body in (
        (errno.EOPNOTSUPP, Fallocate(1, 0, 5, 0x8, FILE, 0, S)),
        (errno.EINVAL, Fallocate(1, 5, 5, 0, FILE, 0, S)),
        (errno.EFBIG, Fallocate(1, 5, 1 << 60, 0, FILE, 0, S)),
        (errno.ENOENT, Fallocate(9, 0, 5, 0, FILE, 0, S)),
    ):
        assert (await rig.client.ask(body)).status == -number
    gate = Gate(rig, "allocate")
    gate.open.set()
    await rig.client.call(Fallocate(3, 0, 32 << 20, wire.FALLOC_KEEP_SIZE, FILE, 0, S))  # long: in a thread, once
    assert gate.calls == 1
    rig.ost.grants.take = lambda length: False  # type: ignore[method-assign]
    for end in (5, 32 << 20):
        assert (await rig.client.ask(Fallocate(3, 0, end, 0, FILE, 0, S))).status == -errno.ENOSPC
    assert rig.ost.files.size(3) == 0


async def test_data_and_holes_are_found(rig: Rig) -> None:
    await rig.grant(2)
    await rig.mdt.call(OstCreate(2, CREATE_DELORPHAN))
    await rig.client.call(write_of(1, 1 << 20), b"x" * 5000)
    for offset, whence, found in (
        (0, wire.SEEK_DATA, 1 << 20),
        (0, wire.SEEK_HOLE, 0),
        ((1 << 20) + 7, wire.SEEK_DATA, (1 << 20) + 7),
        ((1 << 20) + 7, wire.SEEK_HOLE, (1 << 20) + 5000),
        (1 << 30, wire.SEEK_DATA, -1),
        (1 << 30, wire.SEEK_HOLE, 1 << 30),
    ):
        assert await rig.client.call(ObjectSeek(1, offset, whence)) == SeekReply(found, (1 << 20) + 5000)
    assert await rig.client.call(ObjectSeek(2, 5, wire.SEEK_DATA)) == SeekReply(-1, 0)
    for number, body in (
        (errno.EINVAL, ObjectSeek(1, 0, os.SEEK_SET)),
        (errno.EINVAL, ObjectSeek(1, -1, wire.SEEK_DATA)),
        (errno.ENOENT, ObjectSeek(9, 0, wire.SEEK_DATA)),
        (errno.ESTALE, ObjectSeek(1, 0, wire.SEEK_DATA, 77)),
    ):
        assert (await rig.client.ask(body)).status == -number


async def test_setattr_changes_what_is_valid(rig: Rig) -> None:
    await rig.grant(1)
    attr = await rig.client.call(ObjectSetattr(1, wire.OBJECT_ATIME | wire.OBJECT_MTIME, 1, 2, 7, 8, 9))
    assert (attr.atime, attr.mtime, attr.ctime, attr.size) == (7, 8, 9, 0)
    assert (rig.ost.record(1).uid, rig.ost.record(1).gid) == (0, 0)
    await rig.client.call(ObjectSetattr(1, wire.OBJECT_UID | wire.OBJECT_GID, 1000, 100, 0, 0, 5))
    record = rig.ost.record(1)
    assert (record.uid, record.gid, record.atime, record.mtime, record.ctime) == (1000, 100, 7, 8, 9)
    assert await rig.client.call(ObjectGetattr(1)) == rig.ost.attr(1, record)


async def test_setattr_and_punch_declare_the_version_and_a_write_does_not(rig: Rig) -> None:
    await rig.grant(1)
    fresh = rig.ost.record(1).version
    written = await rig.client.ask(write_of(1), b"x")
    assert (written.pre_versions, rig.ost.record(1).version) == ((), written.transno)
    changed = await rig.client.ask(ObjectSetattr(1, wire.OBJECT_MTIME, 0, 0, 0, 1, S))
    assert (changed.pre_versions, rig.ost.record(1).version) == ((written.transno,), changed.transno)
    punched = await rig.client.ask(Punch(1, 0, OBJECT_EOF, FILE, 0, S))
    assert punched.pre_versions == (changed.transno,)
    assert fresh == ABSENT


async def test_a_resent_write_is_answered_from_its_record(rig: Rig) -> None:
    await rig.grant(1)
    first = await rig.client.ask(write_of(1), b"data", xid=5000, tag=3)
    again = await rig.client.ask(write_of(1), b"data", xid=5000, tag=3, flags=RESENT)
    assert (again.transno, again.body) == (first.transno, first.body)
    assert rig.ost.reconstructed == 1
    await rig.mdt.call(Destroy((1,)))
    again = await rig.client.ask(write_of(1), b"data", xid=5000, tag=3, flags=RESENT)
    assert (again.status, again.transno) == (0, first.transno)


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("how", ["stop", "give_up"])
async def test_nothing_is_written_by_an_ost_that_has_stopped(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A thread wrote on when the directory belonged to the other server of a pair: over what was newer."""
    monkeypatch.setattr(rig.node.tunables, "lock_callback_s", 0.2)
    await rig.grant(1)
    slow, begun, written = threading.Event(), threading.Event(), threading.Event()
    write_at = os.pwritev

    def pwritev(*args: Any) -> int:
        if threading.current_thread() is threading.main_thread():  # the log of the database
            return write_at(*args)
        begun.set()
        slow.wait()
        count = write_at(*args)
        written.set()
        return count

    monkeypatch.setattr(os, "pwritev", pwritev)
    rig.client.start(write_of(1), pattern(BIG))
    assert await asyncio.to_thread(begun.wait, 10)
    stopping = asyncio.ensure_future(getattr(rig.ost, how)())
    await asyncio.wait([stopping], timeout=2.0)
    too_early = stopping.done()  # whoever waits for the directory could have it
    slow.set()
    await stopping
    assert written.is_set() and not too_early
    monkeypatch.undo()
    await rig.start()


# ---------------------------------------------------------------- replay


async def test_what_a_crash_took_is_replayed(rig: Rig) -> None:
    await rig.grant(2)
    await rig.client.call(write_of(1), b"0123456789")
    rig.ost.committer.hold()
    setattr_ = ObjectSetattr(1, wire.OBJECT_MTIME, 0, 0, 0, 5 * S, 20 * S)
    punch = Punch(1, 4, OBJECT_EOF, FILE, 0, 30 * S)
    room = Fallocate(1, 3, 6, wire.FALLOC_ZERO_RANGE, FILE, 0, 40 * S)
    first = await rig.client.ask(setattr_, xid=7001)
    second = await rig.client.ask(punch, xid=7002)
    third = await rig.client.ask(room, xid=7003)
    attr = rig.ost.attr(1, rig.ost.record(1))
    await rig.kill()
    await rig.start()
    await rig.reconnect(first.transno)
    assert (await rig.client.replay(setattr_, None, first, 7001)).status == 0
    assert (await rig.client.replay(punch, None, second, 7002)).status == 0
    assert (await rig.client.replay(room, None, third, 7003)).status == 0
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    assert rig.ost.attr(1, rig.ost.record(1)) == attr
    assert (await rig.client.ask(Read(1, 0, 20))).bulk == b"012" + bytes(3)


async def test_a_replay_on_another_version_is_refused_before_it_touches_the_file(rig: Rig) -> None:
    await rig.grant(1)
    await rig.client.call(write_of(1), b"0123456789")
    rig.ost.committer.hold()
    punch = Punch(1, 4, OBJECT_EOF, FILE, 0, 30 * S)
    answer = await rig.client.ask(ObjectSetattr(1, wire.OBJECT_MTIME, 0, 0, 0, 5, S), xid=7001)
    answer.pre_versions = (12345,)
    await rig.kill()
    await rig.start()
    await rig.reconnect(answer.transno)
    assert (await rig.client.replay(punch, None, answer, 7001)).status == -errno.EOVERFLOW
    assert rig.ost.files.size(1) == 10


async def test_nobody_replays_a_number_after_which_there_is_none(rig: Rig) -> None:
    """It became the last transno, and the next epoch was more than the database can keep: the server died, and so did its successors."""
    await rig.grant(1)
    await rig.commit()
    await rig.kill()
    await rig.start()
    await rig.reconnect(0)
    rig.client.start(write_of(1), b"x", flags=REPLAY, transno=(1 << 64) - 1)
    assert rig.client.closed, "it broke the rules"
    rig.client.link_to(rig.service)
    await rig.client.connect(rig.ost.uuid)
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    await rig.grant(2)


async def test_what_a_client_had_to_replay_before_it_was_restarted_is_nobody_s(rig: Rig) -> None:
    """It stayed in the queue: later changes were executed, and then durable, before others had replayed earlier ones. Of a client
    whose connection broke then, what it had yet to replay was lost: it heard that it was durable."""
    await rig.grant(4)
    await rig.commit()
    rig.ost.committer.hold()
    written = await rig.client.ask(write_of(3)._replace(sync=False), b"data", xid=7001)
    destroyed = await rig.mdt.ask(Destroy((1,)), xid=7002)
    await rig.kill()
    await rig.start()
    await rig.reconnect(written.transno, of_mdt=destroyed.transno)
    rig.mdt.start(Destroy((1,)), flags=REPLAY, transno=destroyed.transno, pre_versions=destroyed.pre_versions, xid=7002)
    rig.mdt.link_to(rig.service)
    rig.mdt.incarnation += 1
    await rig.mdt.connect(rig.ost.uuid)
    done = asyncio.ensure_future(rig.mdt.replay_done())
    await asyncio.sleep(0.01)
    assert rig.ost.last_transno < written.transno, "the client has still to replay its write"
    assert (await rig.client.replay(write_of(3), b"data", written, 7001)).status == 0
    await asyncio.gather(rig.client.replay_done(), done)
    assert (await rig.client.ask(Read(3, 0, 10))).bulk == b"data"


async def test_a_replayed_write_makes_an_object_again_that_the_ost_lost(rig: Rig) -> None:
    """The OST's disk is an older copy. Source: ofd_preprw_write(), ofd/ofd_io.c; protocol-facts 7.2"""
    await rig.grant(3)
    answer = await rig.client.ask(write_of(3), b"first")
    await rig.commit()
    await rig.kill()
    await rig.start()
    await rig.reconnect(answer.transno + 1)
    answer.transno += 1
    data = pattern(BIG)
    assert (await rig.client.replay(write_of(6), data, answer, 7001)).status == 0
    answer.transno += 1
    far = 6 + object_ids.GRANT_JUMP_MAX + 1
    assert (await rig.client.replay(write_of(far), b"x", answer, 7002)).status == -errno.ENOENT
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    assert rig.ost.last_id == 6
    assert [rig.ost.exists(oid) for oid in range(1, 8)] == [True] * 6 + [False]
    assert (await rig.client.ask(Read(6, 0, BIG))).bulk == data
    await fails(errno.EINPROGRESS, rig.client.call(write_of(7), b"not a replay, and who knows whether we lost it"))
    await rig.mdt.call(OstCreate(6, CREATE_DELORPHAN))
    await fails(errno.ENOENT, rig.client.call(write_of(7), b"the MDT does"))


# ---------------------------------------------------------------- statfs, sync, fsck's listing, faults


async def test_statfs_and_sync(rig: Rig) -> None:
    space = await rig.client.call(OstStatfs())
    assert 0 < space.bytes_available <= space.bytes_free <= space.bytes_total
    assert space.state == 0
    await rig.grant(1)
    answer = await rig.client.ask(ObjectSetattr(1, wire.OBJECT_MTIME, 0, 0, 0, 5, S))
    assert answer.transno > rig.ost.last_committed
    await rig.client.call(OstSync(1))
    assert answer.transno <= rig.ost.last_committed
    await rig.client.call(OstSync(0))


@pytest.mark.parametrize("count", [1, 3, 100])
async def test_data_files_are_listed_for_fsck(rig: Rig, count: int) -> None:
    await rig.grant(40)
    sizes = {oid: oid for oid in (1, 2, 31, 33, 34)}
    for oid, size in sizes.items():
        await rig.client.call(write_of(oid), bytes(size))
    reader = fsck.RpcReader(rig.client, count)
    rows = [row async for row in reader.rows("files")]
    assert rows == [(schema.object_key(oid), schema.pack_u64(size)) for oid, size in sizes.items()]
    assert len([row async for row in reader.rows("objects")]) == 40
    await fails(errno.ENOENT, rig.client.call(IndexRead("nonsense", b"", 10)))
    for table in ("files", "objects"):
        await fails(errno.EPERM, rig.client.call(IndexRead(table, b"", 10), cred=(1000, 1000)))


FAULTS: list[tuple[str, Any, bytes | None]] = [
    ("ost.write", write_of(1), b"x"),
    ("ost.write", write_of(1), bytes(BIG)),
    ("ost.write_done", write_of(1), b"x"),
    ("ost.read", Read(1, 0, 10), None),
    ("ost.create", OstCreate(10, 0), None),
    ("ost.destroy", Destroy((1,)), None),
    ("ost.statfs", OstStatfs(), None),
]


@pytest.mark.parametrize(("point", "body", "bulk"), FAULTS, ids=[f"{p}-{len(b or b'')}" for p, _, b in FAULTS])
async def test_fault_points(rig: Rig, point: str, body: Any, bulk: bytes | None) -> None:
    await rig.grant(2)
    who = rig.mdt if isinstance(body, OstCreate | Destroy) else rig.client
    rig.node.faults.arm(point, Fault("error", errno=errno.EINPROGRESS))
    await fails(errno.EINPROGRESS, who.call(body, bulk))
    assert rig.ost.record(1).owner == NO_FID
    rig.node.faults.arm(point, Fault("delay", delay_s=0.5))
    future = who.start(body, bulk)
    await asyncio.sleep(0.02)
    assert not future.done()
    assert (await future).status == 0


async def test_nothing_is_kept_of_objects_at_rest(rig: Rig) -> None:
    rig.node.tunables.commit_log_s = 0
    await rig.grant(3000)
    for oid in range(1, 50):
        await rig.client.call(write_of(oid), b"x")
    await rig.mdt.call(Destroy(tuple(range(1, 20))))
    await rig.commit()
    await rig.settle()
    ost = rig.ost
    assert not (ost._touched or ost._doomed or ost.prepared or len(ost.ranges))


async def test_no_more_objects_are_granted_than_can_have_files(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client answers a write to a new object before the OST has made its file."""
    await rig.grant(10)
    files = rig.ost.files
    real = files.statfs()
    left = 25
    monkeypatch.setattr(files, "statfs", lambda: real._replace(files_free=left))
    assert (await rig.mdt.call(OstCreate(15, 0))).last_id == 15
    for oid in range(1, 6):
        await rig.client.call(write_of(oid), b"x")
    left -= 5
    assert (await rig.mdt.call(OstCreate(100, 0))).last_id == 25, "20 files can be made, 10 objects have none"
    await fails(errno.ENOSPC, rig.mdt.call(OstCreate(26, 0)))
    await rig.mdt.call(Destroy((25, 24)))
    assert (await rig.mdt.call(OstCreate(30, 0))).last_id == 27
    left = object_ids.INODES_AMPLE * 2
    assert (await rig.mdt.call(OstCreate(50, 0))).last_id == 50


async def test_in_recovery_room_is_kept_for_those_who_are_not_back_yet(rig: Rig) -> None:
    ost, room = rig.ost, rig.ost.files._kept_room
    if ost._keep(64 << 20) and not room.size:
        pytest.skip("this file system cannot allocate")
    ost.recovering = True
    assert ost._keep(1 << 20) == 1 << 20 and room.size >= 64 << 20
    ost.recovering = False
    ost.recovery_over()
    assert room.size < 64 << 20, "nobody has said that he was promised any"


@pytest.mark.parametrize("recovering", [False, True])
async def test_who_stops_in_recovery_leaves_what_is_kept_to_his_successor(rig: Rig, recovering: bool) -> None:
    ost, room = rig.ost, rig.ost.files._kept_room
    if ost._keep(1 << 20) and not room.size:
        pytest.skip("this file system cannot allocate")
    ost.recovering = recovering
    ost.close()
    assert os.path.exists(room._path) == recovering
