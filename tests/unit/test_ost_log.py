"""The log towards an OST: what is sent when, what is crossed off when, in any order of failures."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mdt_fixture import ALICE, ROOT, make_maps_small
from one_ost import One, one_ost, settle, until

from lustrelite.errors import Evicted, OpError
from lustrelite.ids import NO_FID
from lustrelite.mdt import access, ost_log
from lustrelite.recovery.import_fsm import State
from lustrelite.store import schema
from lustrelite.store.kv import Batch
from lustrelite.wire import mdt as wire
from lustrelite.wire.ost import Destroy, SetOwners


@pytest.fixture
async def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[One]:
    """An MDT with one OST."""
    async with one_ost(tmp_path, monkeypatch) as pair:
        yield pair


async def test_only_durable_unlinks_destroy(one: One) -> None:
    one.world.make(ROOT, b"f")
    one.world.make(ROOT, b"g")
    one.world.unlink(ROOT, b"f")
    one.osp.log.wake()
    await settle()
    assert one.far.destroyed == []
    one.world.commit()
    await settle()
    assert one.far.destroyed == [1] and one.world.condemned() == []
    one.world.unlink(ROOT, b"g")
    await one.crash(recovering=False)  # the unlink is lost
    await settle()
    assert 2 not in one.far.destroyed and one.world.find(ROOT, b"g") is not None


async def test_a_destroy_is_repeated_after_a_crash_and_kept_until_answered(one: One) -> None:
    one.world.make(ROOT, b"f")
    one.world.unlink(ROOT, b"f")
    one.far.gate.clear()
    one.world.commit()
    await settle()
    assert one.far.calls[-1] == Destroy((1,)) and one.world.condemned() == [(0, 1)]
    one.far.gate = asyncio.Event()
    one.far.gate.set()
    await one.crash()
    await settle()
    assert one.far.destroyed == []  # not in recovery
    one.world.end_recovery()
    await settle()
    assert one.far.destroyed == [1]
    await one.crash(recovering=False)  # its removal from the log was not committed
    await settle()
    assert one.far.destroyed == [1, 1] and one.world.condemned() == []


async def test_a_dead_ost_leaves_its_records(one: One) -> None:
    one.world.make(ROOT, b"f")
    one.far.state = State.DISCONN
    one.world.unlink(ROOT, b"f")
    one.world.commit()
    await settle()
    assert one.far.destroyed == [] and one.world.condemned() == [(0, 1)]
    one.far.state = State.FULL
    one.osp._connected()
    await settle()
    assert one.far.destroyed == [1]


async def test_destroys_go_in_batches_and_survive_refusals(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ost_log, "RECORDS_MAX", 4)
    for i in range(10):
        one.world.make(ROOT, b"f%d" % i)
    for i in range(10):
        one.world.unlink(ROOT, b"f%d" % i)
    one.far.errors = [OpError(errno.EIO)]
    one.world.commit()
    await until(lambda: len(one.far.destroyed) == 10 and not one.world.condemned())
    assert sorted(one.far.destroyed) == list(range(1, 11))
    assert [len(c.objects) for c in one.far.calls if isinstance(c, Destroy)] == [4, 4, 4, 2]


async def test_condemned_objects_of_a_gap_are_destroyed_after_recovery(one: One) -> None:
    one.world.make(ROOT, b"lost", client="b")
    one.world.make(ROOT, b"kept")
    kept = one.world.saved
    await one.crash()
    one.world.replay(kept)
    one.world.commit()
    await settle()
    assert one.far.destroyed == []
    one.world.end_recovery()
    await settle()
    assert one.far.destroyed == [1]
    assert one.world.mdt.store.get(schema.INODES, one.world.find(ROOT, b"kept") or b"") is not None


# ---------------------------------------------------------------- durable there


async def test_a_record_stays_until_the_ost_has_committed(one: One) -> None:
    one.world.make(ROOT, b"f")
    one.world.unlink(ROOT, b"f")
    one.far.durable = False
    one.world.commit()
    await settle()
    assert one.far.destroyed == [1] and one.world.condemned() == [(0, 1)]
    one.osp.log.wake()
    await settle()
    assert one.far.destroyed == [1], "it is on its way"
    one.far.commit()
    assert one.world.condemned() == [] and not one.osp.log.sent


async def test_a_full_mdt_crosses_off_what_it_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record may take pages of the database until the next commit, also one that goes."""
    make_maps_small(monkeypatch, 16 << 20)
    async with one_ost(tmp_path, monkeypatch) as one:
        one.far.durable = False
        world, count = one.world, 600

        async def commit() -> None:
            await until(lambda: not world.mdt.committer._busy)
            world.commit()

        for i in range(count):
            await until(lambda: one.osp.available)
            world.make(ROOT, b"f%d" % i)
        await commit()
        for i in range(count):
            world.unlink(ROOT, b"f%d" % i)
        await commit()
        await until(lambda: len(one.osp.log.sent) == count)
        for _ in world.fill():
            await commit()
        one.far.commit()
        assert one.osp.log.length()
        await until(lambda: not one.osp.log.length() and not one.osp.log.sent)


async def test_what_was_not_committed_is_sent_again_after_a_connect(one: One) -> None:
    one.world.make(ROOT, b"f")
    one.world.unlink(ROOT, b"f")
    one.far.durable = False
    one.world.commit()
    await settle()
    one.osp._connected()
    one.far.last_committed = 0
    await settle()
    assert one.far.destroyed == [1, 1] and one.world.condemned() == [(0, 1)]
    one.far.commit()
    assert one.world.condemned() == []


async def test_an_answer_from_before_a_connect_crosses_nothing_off(one: One) -> None:
    """The OST has lost what it had answered, and us; what it has done since has higher numbers, and is durable."""
    one.world.make(ROOT, b"f")
    one.world.unlink(ROOT, b"f")
    one.far.durable = False
    one.world.commit()
    await settle()
    one.osp._connected()
    one.far.gate.clear()
    one.far.transno += 100
    one.far.commit()
    assert one.far.destroyed == [1] and one.world.condemned() == [(0, 1)]
    one.far.gate.set()
    await settle()
    one.far.commit()
    assert one.far.destroyed == [1, 1] and one.world.condemned() == []


async def test_nothing_is_destroyed_before_the_orphan_pass(one: One) -> None:
    """An object that the OST has lost is made again by it: a destroy that came before would be outlived."""
    one.world.make(ROOT, b"f")
    await settle()
    one.far.gate.clear()
    one.osp._connected()
    one.world.unlink(ROOT, b"f")
    one.world.commit()
    await settle()
    assert not any(isinstance(call, Destroy) for call in one.far.calls)
    one.far.gate.set()
    await settle()
    assert one.far.destroyed == [1] and one.world.condemned() == []


async def test_what_comes_during_a_commit_is_sent_after_the_next(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"f", b"g"):
        one.world.make(ROOT, name)
    mdt, gate = one.world.mdt, asyncio.Event()
    commit_batch = mdt.commit_batch

    async def slow(batch: Batch) -> None:
        await gate.wait()
        await commit_batch(batch)

    monkeypatch.setattr(mdt, "commit_batch", slow)
    one.world.unlink(ROOT, b"f")
    mdt.committer.commit_soon()
    await settle()  # it is sealed
    one.world.unlink(ROOT, b"g")
    gate.set()
    await until(lambda: one.far.destroyed)
    assert one.far.destroyed == [1]
    mdt.committer.commit_soon()
    await until(lambda: len(one.far.destroyed) == 2)


async def test_an_eviction_in_the_middle_loses_no_record(one: One) -> None:
    one.world.make(ROOT, b"f")
    one.world.unlink(ROOT, b"f")
    one.far.errors = [Evicted("lustre-OST0000")]
    one.world.commit()
    await settle()
    assert one.far.destroyed == [] and one.world.condemned() == [(0, 1)]
    one.osp._connected()
    await settle()
    assert one.far.destroyed == [1] and one.world.condemned() == []


async def test_no_more_is_sent_than_may_be_lost(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ost_log, "RECORDS_MAX", 2)
    monkeypatch.setattr(ost_log, "IN_PROGRESS_MAX", 4)
    for i in range(10):
        one.world.make(ROOT, b"f%d" % i)
    for i in range(10):
        one.world.unlink(ROOT, b"f%d" % i)
    one.far.durable = False
    one.world.commit()
    await settle()
    assert len(one.far.destroyed) == 4
    one.far.durable = True
    one.far.commit()
    await settle()
    assert sorted(one.far.destroyed) == list(range(1, 11)) and one.world.condemned() == []


# ---------------------------------------------------------------- owners


async def test_a_chown_is_told_to_every_object_once_it_is_durable(one: One) -> None:
    fid = one.world.make(ROOT, b"f")
    one.world.setattr(fid, uid=1000, gid=100)
    one.world.setattr(fid, projid=7)
    await settle()
    assert one.far.owners == {} and one.world.owed() == {(0, 1): (1000, 100, 7)}
    one.world.commit()
    await settle()
    assert one.far.owners == {1: (1000, 100, 7)} and one.world.owed() == {}
    assert one.far.calls[-1] == SetOwners(((1, 1000, 100, 7),)), "one change of the object, the last"


async def test_a_newer_owner_is_not_crossed_off_for_the_older(one: One) -> None:
    fid = one.world.make(ROOT, b"f")
    one.world.setattr(fid, uid=1)
    one.far.durable = False
    one.world.commit()
    await settle()
    one.world.setattr(fid, uid=2)
    one.far.commit()
    assert one.world.owed() == {(0, 1): (2, 0, 0)}
    one.far.durable = True
    one.world.commit()
    await settle()
    assert one.far.owners == {1: (2, 0, 0)} and one.world.owed() == {}


async def test_an_owner_that_a_crash_took_back_is_never_told(one: One) -> None:
    fid = one.world.make(ROOT, b"f")
    one.world.setattr(fid, uid=1)
    one.world.commit()
    one.far.state = State.DISCONN
    one.world.setattr(fid, uid=2)
    one.far.state = State.FULL
    await one.crash(recovering=False)
    await settle()
    assert one.far.owners == {1: (1, 0, 0)}


async def test_a_destroy_takes_the_place_of_an_owner(one: One) -> None:
    fid = one.world.make(ROOT, b"f")
    one.world.setattr(fid, uid=1)
    one.world.unlink(ROOT, b"f")
    one.world.commit()
    await settle()
    assert one.far.owners == {} and one.far.destroyed == [1]


async def test_objects_of_a_new_file_belong_to_whom_it_does(one: One) -> None:
    one.world.setattr(ROOT, mode=0o777)
    one.world.make(ROOT, b"root's")
    one.world.make(ROOT, b"alice's", cred=ALICE)
    project = one.world.mkdir(ROOT, b"project")
    one.world.setattr(project, projid=7, flags=access.PROJECT_INHERITED)
    below = one.world.mkdir(project, b"below")
    one.world.make(below, b"f")
    assert one.world.owed() == {(0, 2): (1000, 1000, 0), (0, 3): (0, 0, 7)}
    one.world.commit()
    await settle()
    assert one.far.owners == {2: (1000, 1000, 0), 3: (0, 0, 7)}


async def test_a_replayed_create_tells_the_owner_again(one: One) -> None:
    one.world.setattr(ROOT, mode=0o777)
    one.world.commit()
    one.world.make(ROOT, b"f", cred=ALICE)
    saved = one.world.saved
    await one.crash()
    one.world.replay(saved)
    one.world.commit()
    one.world.end_recovery()
    await settle()
    assert one.far.owners == {1: (1000, 1000, 0)}


async def test_a_project_keeps_strangers_out(one: One) -> None:
    """Source: mdd_rename_sanity_check(), mdd_link_sanity_check(): EXDEV, so that mv copies"""
    world = one.world
    project = world.mkdir(ROOT, b"project")
    world.setattr(project, projid=7, flags=access.PROJECT_INHERITED)
    fid = world.make(ROOT, b"f")
    world.fails(errno.EXDEV, wire.Rename(ROOT, b"f", project, b"f", 0, world.tick()))
    world.fails(errno.EXDEV, wire.Link(fid, project, b"f", world.tick()))
    world.setattr(fid, projid=7)
    world.rename(ROOT, b"f", project, b"f")
    world.fails(errno.EPERM, world.setting(fid, projid=0), ALICE)
    world.rename(project, b"f", ROOT, b"f")
    world.setattr(fid, projid=8)
    other = world.make(project, b"g")
    assert world.inode(other).projid == 7
    world.fails(errno.EXDEV, wire.Rename(project, b"g", ROOT, b"f", wire.RENAME_EXCHANGE, world.tick()))


async def test_destroys_go_on_while_an_ost_is_too_full_to_note_owners(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else can make room there."""
    monkeypatch.setattr(ost_log, "RECORDS_MAX", 4)
    for i in range(10):
        one.world.make(ROOT, b"f%d" % i)
    for i in range(5):
        one.world.setattr(one.world.find(ROOT, b"f%d" % i) or NO_FID, uid=7)
    for i in range(5, 10):
        one.world.unlink(ROOT, b"f%d" % i)
    change = one.far.call_change

    async def full(body: Any) -> int:
        if isinstance(body, SetOwners):
            await asyncio.sleep(0)
            raise OpError(errno.ENOSPC)
        return await change(body)

    monkeypatch.setattr(one.far, "call_change", full)
    one.world.commit()
    await until(lambda: len(one.far.destroyed) == 5)
    assert not one.far.owners and one.osp.log.length() == 5
    monkeypatch.setattr(one.far, "call_change", change)
    await until(lambda: len(one.far.owners) == 5 and not one.osp.log.length())
