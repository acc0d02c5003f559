"""A WriteMany on the OST: all of it or none, one transno, under locks, within the grant, and again after a crash."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ost_harness import FILE, Client, Rig

from lustrelite.errors import OpError
from lustrelite.faults import Fault
from lustrelite.ids import NO_FID
from lustrelite.ost import object_ids
from lustrelite.ost.changes import INLINE_BYTES_MAX
from lustrelite.store.room import ORDINARY, OWED
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import BLOCK_GRANTED, EXTENT, PR, PW, Want
from lustrelite.wire.locks import Enqueue
from lustrelite.wire.message import RESENT
from lustrelite.wire.ost import (
    CREATE_DELORPHAN,
    OBJECT_EOF,
    OBJECT_UID,
    WRITE_MANY_MAX,
    Destroy,
    GrantShrink,
    ObjectSetattr,
    OstCreate,
    Part,
    Write,
    WriteMany,
    resource_of,
)
from lustrelite.wire.session import FEATURE_GRANT, FEATURE_SERVER

S = 1_000_000_000
OBJECTS = 8
SIZES = [10, INLINE_BYTES_MAX]  # of each part: together in the loop, and in a thread


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    await made.start(create=True)
    made.mdt = Client(made.service, "test-MDT0000-mdtlov_UUID", FEATURE_SERVER)
    made.client = Client(made.service, "writer_UUID", FEATURE_GRANT)
    await made.mdt.connect(made.ost.uuid)
    await made.client.connect(made.ost.uuid)
    await made.grant(OBJECTS)
    await take(made.client, *range(1, OBJECTS + 1))
    yield made
    await made.kill()
    assert made.crashes == []
    assert not len(made.ost.ranges)
    assert not made.ost.prepared


async def take(client: Client, *oids: int, mode: int = PW) -> None:
    """A lock of each, whose handle is 100 and its number."""
    wants = [Want(100 + oid, EXTENT, resource_of(oid), mode, 0, 0, 0, 0, OBJECT_EOF, 0, 0) for oid in oids]
    for granted in (await client.call(Enqueue(tuple(wants), ()))).granted:
        assert not granted.status and granted.flags == BLOCK_GRANTED


def part(oid: int, length: int, offset: int = 0, *, lock: int = -1, time: int = S, stripe: int = 0) -> Part:
    return Part(oid, offset, length, FILE, stripe, time, lock if lock >= 0 else 100 + oid)


def many(*parts: Part, undirty: int = 0) -> WriteMany:
    return WriteMany(parts, undirty)


async def fails(number: int, awaitable: Any) -> None:
    with pytest.raises(OpError) as caught:
        await awaitable
    assert caught.value.errno == number, caught.value


def content(rig: Rig, oid: int) -> bytes:
    buffer = bytearray(rig.ost.files.size(oid))
    rig.ost.files.read_into(oid, 0, buffer)
    return bytes(buffer)


@pytest.mark.parametrize("size", SIZES)
async def test_each_object_gets_its_part_in_one_change(rig: Rig, size: int) -> None:
    body = many(part(3, size), part(1, size + 1, 5, stripe=2), part(2, 1, time=7 * S))
    answer = await rig.client.ask(body, b"3" * size + b"1" * (size + 1) + b"2")
    assert answer.status == 0 and answer.transno and answer.pre_versions == ()
    assert content(rig, 3) == b"3" * size
    assert content(rig, 1) == bytes(5) + b"1" * (size + 1)
    assert content(rig, 2) == b"2"
    for oid in (1, 2, 3):
        record = rig.ost.record(oid)
        assert (record.version, record.owner, record.stripe) == (answer.transno, FILE, 2 if oid == 1 else 0)
    assert rig.ost.record(2).mtime == 7 * S
    assert [tuple(row) for row in answer.body[0]] == [tuple(rig.ost.attr(oid, rig.ost.record(oid))) for oid in (3, 1, 2)]
    await rig.commit()
    await rig.kill()
    await rig.start()
    assert rig.ost.files.size(1) == size + 6


@pytest.mark.parametrize("size", SIZES)
async def test_parts_of_one_object(rig: Rig, size: int) -> None:
    """As they were written, and as a replay writes them."""
    rig.ost.committer.hold()
    parts = part(1, size), part(2, 1), part(1, size, size, time=9 * S), part(1, 3, 3 * size, time=5 * S)
    bulk = b"a" * size + b"2" + b"b" * size + b"end"
    first = await rig.client.ask(many(*parts), bulk, xid=7001)
    lost = rig.ost.record(1)
    assert (lost.version, lost.mtime, rig.ost.files.size(1)) == (first.transno, 9 * S, 3 * size + 3)
    attr = tuple(rig.ost.attr(1, lost))
    assert [tuple(row) == attr for row in first.body[0]] == [True, False, True, True]
    await rig.kill()
    await rig.start()
    assert rig.ost.record(1).owner == NO_FID
    await rig.reconnect(first.transno)
    assert (await rig.client.replay(many(*parts), bulk, first, 7001)).status == 0
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    assert rig.ost.record(1) == lost
    assert content(rig, 1) == b"a" * size + b"b" * size + bytes(size) + b"end"


@pytest.mark.parametrize(
    ("parts", "length"),
    [
        ([], 0),
        ([part(1, 5)], 4),
        ([part(1, 5)], 6),
        ([part(1, 0), part(2, 5)], 5),
        ([part(1, -5), part(2, 10)], 5),
        ([part(1, 5), part(1, 5, 4)], 10),
        ([part(1, 5, 5), part(2, 1), part(1, 5)], 11),
        ([part(1, 5, -1)], 5),
        ([part(1, 5, stripe=-1)], 5),
        ([part(1, 5, lock=0)], 5),
        ([part(oid, 1) for oid in range(1, WRITE_MANY_MAX + 2)], WRITE_MANY_MAX + 1),
    ],
)
async def test_what_makes_no_sense_is_refused(rig: Rig, parts: list[Part], length: int) -> None:
    await fails(errno.EINVAL, rig.client.call(many(*parts), bytes(length)))
    await fails(errno.EFBIG, rig.client.call(many(part(2, 5, limits.object_bytes_max)), bytes(5)))
    assert rig.files() == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("why", ["no lock", "another's lock", "a lock to read", "in use", "no object"])
async def test_all_of_it_or_nothing(rig: Rig, size: int, why: str) -> None:
    wrong = part(2, size)
    hold = None
    if why == "no lock":
        wrong = part(2, size, lock=77)
    elif why == "another's lock":
        wrong = part(2, size, lock=103)
    elif why == "a lock to read":
        await rig.grant(OBJECTS + 1)
        await take(rig.client, OBJECTS + 1, mode=PR)
        wrong = part(OBJECTS + 1, size)
    elif why == "in use":
        hold = await rig.ost.ranges.hold(2, (1, 2))
    else:
        await rig.mdt.call(Destroy((2,)))
        assert not rig.ost.exists(2)
    number = errno.ENOENT if why == "no object" else errno.ESTALE
    await fails(number, rig.client.call(many(part(1, size), wrong, part(3, size)), bytes(3 * size)))
    assert rig.files() == [] and rig.ost.record(1).owner == NO_FID
    if hold is not None:
        rig.ost.ranges.release(hold)
    await rig.client.call(many(part(1, size), part(3, size)), bytes(2 * size))
    assert rig.files() == [1, 3]


@pytest.mark.parametrize("size", SIZES)
async def test_an_error_of_the_disk_leaves_no_record(rig: Rig, size: int) -> None:
    write = rig.ost.files.write

    def broken(oid: int, offset: int, data: Any, **how: Any) -> None:
        if oid == 2:
            raise OpError(errno.EIO)
        write(oid, offset, data, **how)

    rig.ost.files.write = broken  # type: ignore[method-assign]
    held = dict(rig.ost.grants.held)
    await fails(errno.EIO, rig.client.call(many(part(1, size), part(2, size)), bytes(2 * size)))
    assert rig.ost.record(1).owner == rig.ost.record(2).owner == NO_FID and rig.ost.grants.held == held
    rig.ost.files.write = write  # type: ignore[method-assign]
    await rig.client.call(many(part(1, size), part(2, size)), bytes(2 * size))


async def test_a_large_one_waits_for_nobody_and_others_for_it(rig: Rig) -> None:
    size = INLINE_BYTES_MAX
    first = rig.client.start(many(part(1, size), part(2, size)), b"a" * 2 * size, tag=1)
    await asyncio.sleep(0)  # it is in its thread
    refused = rig.client.start(many(part(2, size), part(3, size)), b"b" * 2 * size, tag=2)
    after = rig.client.start(Write(2, 0, FILE, 0, S, 102), b"c" * size, tag=3)
    assert ((await first).status, (await refused).status, (await after).status) == (0, -errno.ESTALE, 0)
    assert content(rig, 1) == b"a" * size and content(rig, 2) == b"c" * size
    assert (await after).transno > (await first).transno


async def test_the_grant_is_used_up_once_however_often_it_is_answered(rig: Rig) -> None:
    grants = rig.ost.grants
    export = rig.ost.exports["writer_UUID"]
    before = grants.held[export]
    body, bulk = many(part(1, 5000), part(2, 1), undirty=1 << 20), bytes(5001)
    first = await rig.client.ask(body, bulk, xid=5000, tag=3)
    assert first.body[1] == 1 << 20
    assert grants.held[export] == before - 3 * 4096 + (1 << 20)
    again = await rig.client.ask(body, bulk, xid=5000, tag=3, flags=RESENT)
    assert (again.transno, again.body) == (first.transno, first.body)
    assert rig.ost.reconstructed == 1 and grants.held[export] == before - 3 * 4096 + (1 << 20)
    await rig.mdt.call(Destroy((2,)))
    again = await rig.client.ask(body, bulk, xid=5000, tag=3, flags=RESENT)
    assert (again.status, again.transno, again.body[0][1][0]) == (0, first.transno, 0)


async def test_what_the_database_has_no_room_for_is_not_taken_of_the_grant(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does anybody wait until it is durable."""
    grants, export = rig.ost.grants, rig.ost.exports["writer_UUID"]
    before = grants.held[export]

    def full(*_: object, **__: object) -> None:
        raise OpError(errno.ENOSPC)

    monkeypatch.setattr(rig.ost.store, "apply", full)
    await fails(errno.ENOSPC, rig.client.call(many(part(1, 5000), part(2, 1), undirty=1 << 20), bytes(5001)))
    monkeypatch.undo()
    assert grants.held[export] == before and not rig.ost.unsynced
    grants.check()


async def test_a_full_disk_takes_what_was_promised(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Client(rig.service, "poor_UUID")
    await other.connect(rig.ost.uuid)
    await rig.grant(20)
    await take(other, 11, 12)
    monkeypatch.setattr(rig.node.tunables, "reserved_permille", 1000)
    rig.ost.grants._budget = 0
    await rig.client.call(many(part(1, 10_000), part(2, 10_000)), bytes(20_000))
    await fails(errno.ENOSPC, other.call(many(part(11, 10), part(12, 10)), bytes(20)))
    assert rig.files() == [1, 2]


@pytest.mark.parametrize("size", SIZES)
async def test_what_a_crash_took_is_replayed(rig: Rig, size: int) -> None:
    """Without a lock."""
    rig.ost.committer.hold()
    body, bulk = many(part(1, size), part(2, size), part(3, size)), b"1" * size + b"2" * size + b"3" * size
    first = await rig.client.ask(body, bulk, xid=7001)
    await rig.kill()
    await rig.start()
    assert rig.ost.record(1).owner == NO_FID
    await rig.reconnect(first.transno)
    assert (await rig.client.replay(body, bulk, first, 7001)).status == 0
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    for oid in (1, 2, 3):
        assert content(rig, oid) == str(oid).encode() * size
        assert rig.ost.record(oid).version == first.transno


async def test_a_replay_leaves_out_what_is_gone_for_good(rig: Rig) -> None:
    first = await rig.client.ask(many(part(1, 3)), b"old")
    await rig.commit()
    await rig.kill()
    await rig.start()
    await rig.reconnect(first.transno + 1)
    first.transno += 1
    far = OBJECTS + object_ids.GRANT_JUMP_MAX + 1
    answer = await rig.client.replay(many(part(1, 3), part(far, 3), part(OBJECTS + 1, 3)), b"newfarnxt", first, 7001)
    assert answer.status == 0 and answer.body[0][1][0] == 0
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    assert [content(rig, oid) for oid in (1, OBJECTS + 1)] == [b"new", b"nxt"]
    assert rig.files() == [1, OBJECTS + 1] and not rig.ost.exists(far)


@pytest.mark.parametrize("order", [1, -1])
async def test_lost_objects_are_made_again_in_any_order(rig: Rig, order: int) -> None:
    """And what was replayed of them stays when the MDT says which it has used."""
    first = await rig.client.ask(many(part(1, 3)), b"old")
    await rig.commit()
    await rig.kill()
    await rig.start()
    await rig.reconnect(first.transno + 1)
    first.transno += 1
    lost = [OBJECTS + 2, OBJECTS + 4][::order]
    body = many(*[part(oid, 3, time=7 * S) for oid in lost])
    assert (await rig.client.replay(body, b"aaabbb", first, 7001)).status == 0
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    assert rig.ost.last_id == OBJECTS + 4 and rig.ost.exists(OBJECTS + 3)
    await rig.mdt.call(OstCreate(OBJECTS + 4, CREATE_DELORPHAN))
    for oid in lost:
        record = rig.ost.record(oid)
        assert (record.mtime, record.owner, record.version) == (7 * S, FILE, first.transno)


async def test_all_parts_together_are_within_the_grant(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, a block at each end is let pass; of the parts one by one as many as are within it."""
    grants, export = rig.ost.grants, rig.ost.exports["writer_UUID"]
    grants.given_back(export, grants.held[export] - (56 << 10))
    monkeypatch.setattr(rig.node.tunables, "reserved_permille", 1000)
    grants._budget = 0
    await fails(errno.ENOSPC, rig.client.call(many(part(1, 1 << 16), part(2, 1 << 16)), bytes(2 << 16)))
    assert rig.files() == []
    await rig.client.call(Write(1, 0, FILE, 0, S, 101, from_grant=True), bytes(1 << 16))
    await fails(errno.ENOSPC, rig.client.call(Write(2, 0, FILE, 0, S, 102, from_grant=True), bytes(1 << 16)))


@pytest.mark.parametrize("point", ["ost.write", "ost.write_done"])
async def test_fault_points(rig: Rig, point: str) -> None:
    rig.node.faults.arm(point, Fault("error", errno=errno.EINPROGRESS))
    await fails(errno.EINPROGRESS, rig.client.call(many(part(1, 1), part(2, 1)), b"xy"))
    assert rig.ost.record(1).owner == NO_FID
    rig.node.faults.arm(point, Fault("delay", delay_s=0.5))
    future = rig.client.start(many(part(1, 1), part(2, 1)), b"xy")
    await asyncio.sleep(0.02)
    assert not future.done()
    assert (await future).status == 0
    assert content(rig, 2) == b"y"


def evicted(rig: Rig) -> None:
    rig.ost.evict(rig.ost.exports["writer_UUID"], "test")


def cancelled(rig: Rig) -> None:
    rig.ost.namespace.cancel(rig.ost.exports["writer_UUID"], (102,))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("what", "number"), [(evicted, errno.ENOTCONN), (cancelled, errno.ESTALE)])
async def test_the_lock_is_gone_before_it_begins(rig: Rig, what: Callable[[Rig], None], number: int, alone: bool) -> None:
    """Of many writes together, and of one alone."""
    rig.node.faults.arm("ost.write", Fault("delay", delay_s=0.5))
    if alone:
        future = rig.client.start(Write(2, 0, FILE, 0, S, 102, from_grant=True), b"y")
    else:
        future = rig.client.start(many(part(1, 1), part(2, 1)), b"xy")
    await asyncio.sleep(0.02)
    what(rig)
    assert (await future).status == -number
    await asyncio.sleep(0.6)  # an evicted client hears of it before it would have begun
    assert rig.files() == [] and rig.ost.record(1).owner == rig.ost.record(2).owner == NO_FID


async def test_a_lock_that_goes_with_its_last_write_stays_until_that_is_durable(rig: Rig) -> None:
    """Without an answer it is written again after a crash: what others have written under the next lock would be under it."""
    export, table = rig.ost.exports["writer_UUID"], rig.ost.namespace.table
    rig.ost.committer.hold()
    await rig.client.call(Write(1, 0, FILE, 0, S, 101, from_grant=True, release=True), b"last")
    assert table.find(export, 101) is not None
    rig.ost.committer.release()
    await rig.ost.committed()
    assert table.find(export, 101) is None


async def test_what_two_have_changed_is_shown_to_neither_before_it_is_durable(rig: Rig) -> None:
    """The loss of the other one could take it back."""
    other = Client(rig.service, "other_UUID")
    await other.connect(rig.ost.uuid)
    await rig.ost.committed()
    rig.ost.committer.hold()
    mine, others = (rig.ost.exports[name] for name in ("writer_UUID", "other_UUID"))
    first = await rig.client.ask(Write(1, 0, FILE, 0, S, 101, from_grant=True), b"x")
    assert [rig.ost.unsettled(export, resource_of(1)) for export in (mine, others)] == [0, first.transno]
    changing = other.start(ObjectSetattr(1, OBJECT_UID, 7, 0, 0, 0, S))
    await rig.settle()
    both = rig.ost.last_transno
    assert both > first.transno
    assert [rig.ost.unsettled(export, resource_of(1)) for export in (mine, others)] == [both, both]
    rig.ost.committer.release()
    await changing
    await rig.ost.committed()
    assert [rig.ost.unsettled(export, resource_of(1)) for export in (mine, others)] == [0, 0]


@pytest.mark.parametrize("why", [errno.EAGAIN, errno.ENOSPC])
async def test_grant_that_a_full_ost_was_given_back_is_counted_once(rig: Rig, monkeypatch: pytest.MonkeyPatch, why: int) -> None:
    """Who was told to come again gave it back twice; what he wrote by what he thought he had could be refused."""
    grants, export = rig.ost.grants, rig.ost.exports["writer_UUID"]
    before = grants.held[export]
    shrink = GrantShrink(rig.client.conn_cnt, 1 << 20)

    def full(writes: Any, *, kind: int = ORDINARY, **_: Any) -> None:
        raise OpError(errno.EAGAIN if kind == OWED else why)

    with monkeypatch.context() as patch:
        patch.setattr(rig.ost.store, "apply", full)
        await fails(errno.EAGAIN, rig.client.call(shrink))
    await rig.client.call(shrink)
    assert grants.held[export] == before - (1 << 20)
    grants.check()
