"""Objects of files: which OSTs, which ids, never twice; the pools and orphan cleanup of one OST."""

from __future__ import annotations

import asyncio
import errno
import stat
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mdt_fixture import ROOT, World
from one_ost import One, one_ost, settle, until

from lustrelite.errors import Evicted, OpError
from lustrelite.ids import make_fid
from lustrelite.mdt import layout
from lustrelite.mdt.layout import wish_of
from lustrelite.mdt.osp import COVER_S, LASTS_S, Osp
from lustrelite.recovery.import_fsm import State
from lustrelite.target.handlers import NotReady
from lustrelite.wire import mdt as wire
from lustrelite.wire.ost import CREATE_DELORPHAN, OstCreate


@pytest.fixture
async def mdt(tmp_path: Path) -> AsyncIterator[World]:
    """An MDT with four OSTs on an empty store."""
    world = World(tmp_path, osts=4)
    await world.start()
    yield world
    await world.stop()


def on(mdt: World, *hint: int, name: bytes = b"") -> list[int]:
    """OSTs of a new file made with this hint."""
    mdt.last_name = getattr(mdt, "last_name", 0) + 1  # type: ignore[attr-defined]
    name = name or b"f%d" % mdt.last_name  # type: ignore[attr-defined]
    return [ost for ost, _ in mdt.objects(mdt.make(ROOT, name, hint=wire.StripeHint(*hint) if hint else None))]


def ost(mdt: World, index: int) -> Osp:
    return mdt.mdt.allocator.osps[index]


def down(mdt: World, *indices: int) -> None:
    for index in indices:
        ost(mdt, index).imp.state = State.DISCONN  # type: ignore[misc]


# ---------------------------------------------------------------- choosing


async def test_files_go_round(mdt: World) -> None:
    assert sorted(on(mdt)[0] for _ in range(8)) == [0, 0, 1, 1, 2, 2, 3, 3]
    first = Counter(on(mdt, -1, 0, -1)[0] for _ in range(8))
    assert first == {0: 2, 1: 2, 2: 2, 3: 2}
    two = [on(mdt, 2, 0, -1) for _ in range(4)]
    assert Counter(i for pair in two for i in pair) == {0: 2, 1: 2, 2: 2, 3: 2}


async def test_offset_and_count(mdt: World) -> None:
    assert on(mdt, 1, 0, 2) == [2]
    assert on(mdt, 3, 0, 3) == [3, 0, 1]
    assert on(mdt, -1, 0, 1) == [1, 2, 3, 0]
    assert len(on(mdt, 100, 0, -1)) == 4  # as many as there are
    mdt.fails(errno.EINVAL, mdt.new(ROOT, b"x")._replace(hint=wire.StripeHint(1, 0, 9)))
    mdt.node.tunables.stripe_count = 3
    mdt.node.tunables.stripe_size = 1 << 17
    fid = mdt.make(ROOT, b"default")
    assert len(mdt.objects(fid)) == 3 and mdt.inode(fid).layout[0] == 1 << 17  # type: ignore[index]


async def test_osts_that_are_down_or_full_are_passed_over(mdt: World) -> None:
    down(mdt, 1)
    ost(mdt, 2).full = True
    mdt.mdt.allocator.refresh()
    assert {on(mdt)[0] for _ in range(8)} == {0, 3}
    assert on(mdt, 1, 0, 1) == [3]
    assert sorted(on(mdt, -1, 0, -1)) == [0, 3]


async def test_as_many_stripes_as_there_are_osts_that_can_serve(mdt: World) -> None:
    """And ENOSPC only if there is none.  Source: lod_ost_alloc_rr(): at least one stripe"""
    for index, left in ((1, [0, 2, 3]), (2, [0, 3]), (0, [3])):
        ost(mdt, index).full = True
        mdt.mdt.allocator.refresh()
        assert sorted(on(mdt, 4, 0, -1)) == left and sorted(on(mdt, -1, 0, -1)) == left
    ost(mdt, 3).full = True
    mdt.mdt.allocator.refresh()
    mdt.fails(errno.ENOSPC, mdt.new(ROOT, b"x"))
    mdt.mkdir(ROOT, b"d")  # which needs no objects


async def test_nobody_waits_for_an_ost_that_is_slow_to_grant(mdt: World) -> None:
    slow = ost(mdt, 2)
    slow.granted = slow.next + 1
    seen = [on(mdt) for _ in range(20)] + [on(mdt, 4, 0, -1) for _ in range(3)]
    assert sum(stripes.count(2) for stripes in seen) == 2 and slow.ran_dry == 1
    assert [len(stripes) for stripes in seen[-3:]] == [3, 3, 3]
    assert mdt.mdt.allocator.waits == 0


@pytest.mark.parametrize("why", ["down", "inactive", "max_create_count"])
async def test_an_ost_that_shall_not_or_cannot_get_objects_gets_none(mdt: World, why: str) -> None:
    away = ost(mdt, 2)
    if why == "down":
        down(mdt, 2)
    elif why == "inactive":
        away.imp.inactive = True
        away._switched()
    else:
        away.limit_batch(0)
    assert {on(mdt)[0] for _ in range(20)} == {0, 1, 3}
    assert away.hopeful == (why == "down")
    if why == "max_create_count":
        away.limit_batch(100)
        assert 2 in {on(mdt)[0] for _ in range(20)}


async def test_who_waits_for_many_stripes_gives_the_second_ost_a_moment(mdt: World) -> None:
    down(mdt, 0, 1, 2, 3)
    mdt.mdt.allocator.refresh()
    body = mdt.new(ROOT, b"x")._replace(hint=wire.StripeHint(4, 0, -1))
    waiting = asyncio.ensure_future(mdt.mdt.handlers[wire.Create].prepare(mdt.call(body), body))  # type: ignore
    await asyncio.sleep(0.01)
    for index in range(4):
        ost(mdt, index).imp.state = State.FULL  # type: ignore[misc]
        mdt.mdt.allocator.refresh()
        await asyncio.sleep(0.01)
    await waiting
    mdt.do(body)
    assert len(mdt.objects(body.fid)) == 4 and mdt.mdt.allocator.waits == 1


async def test_files_go_round_from_server_to_server(mdt: World) -> None:
    for index in range(4):
        ost(mdt, index).imp.current_nid = "a" if index < 2 else "b"  # type: ignore[misc,assignment]
    mdt.mdt.allocator.refresh()
    places = [on(mdt)[0] for _ in range(8)]
    assert all((one < 2) != (other < 2) for one, other in pairwise(places)) and set(places) == {0, 1, 2, 3}


async def test_an_ost_that_just_died_is_noticed(mdt: World) -> None:
    """The pool looks ready until somebody looks at the import."""
    down(mdt, 0, 1, 2)
    assert {on(mdt)[0] for _ in range(4)} == {3}
    down(mdt, 3)
    with pytest.raises(NotReady):
        on(mdt)
    body = mdt.new(ROOT, b"x")
    awaitable = mdt.mdt.handlers[wire.Create].prepare(mdt.call(body), body)  # type: ignore[misc]
    assert awaitable is not None
    waiting = asyncio.ensure_future(awaitable)
    await asyncio.sleep(0)
    assert not waiting.done()
    ost(mdt, 2).imp.state = State.FULL  # type: ignore[misc]
    mdt.mdt.allocator.refresh()
    await waiting
    assert on(mdt) == [2]


async def test_a_create_waits_for_objects_only_if_it_needs_some(mdt: World) -> None:
    down(mdt, 0, 1, 2, 3)
    mdt.mdt.allocator.refresh()
    mdt.mkdir(ROOT, b"d")
    mdt.make(ROOT, b"p", stat.S_IFIFO | 0o600)
    mdt.fails(errno.EEXIST, mdt.new(ROOT, b"d"))
    mdt.fails(errno.ENOENT, mdt.new(make_fid(5, 5), b"d"))
    mdt.fails(errno.EINVAL, mdt.new(ROOT, b"x")._replace(hint=wire.StripeHint(-5, 0, -1)))
    with pytest.raises(NotReady):
        mdt.make(ROOT, b"f")
    with pytest.raises(NotReady):
        mdt.open(ROOT, b"f", wire.OPEN_CREATE)
    mdt.fails(errno.ENOENT, mdt.opening(ROOT, b"f", wire.OPEN_READ))


async def test_the_wait_for_objects_ends_and_the_client_comes_again(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    down(mdt, 0, 1, 2, 3)
    mdt.mdt.allocator.refresh()
    monkeypatch.setattr(layout, "HOLD_S", 0.01)
    with pytest.raises(OpError) as error:
        await mdt.mdt.allocator.wait_for(wish_of(mdt.node, None, None))
    assert error.value.errno == errno.EINPROGRESS


async def test_an_empty_pool_is_not_ready(mdt: World) -> None:
    for index in (0, 1, 2, 3):
        ost(mdt, index).granted = ost(mdt, index).next + 1  # two ids
    seen = [mdt.objects(mdt.make(ROOT, b"%d" % i))[0] for i in range(8)]
    assert len(set(seen)) == 8
    with pytest.raises(NotReady):
        mdt.make(ROOT, b"x")


# ---------------------------------------------------------------- replay


async def test_last_used_goes_with_the_layout(mdt: World) -> None:
    fid = mdt.make(ROOT, b"f", hint=wire.StripeHint(-1, 0, 0))
    assert mdt.objects(fid) == ((0, 1), (1, 1), (2, 1), (3, 1))
    mdt.commit()
    mdt.make(ROOT, b"g", hint=wire.StripeHint(-1, 0, 0))
    await mdt.crash(recovering=False)
    assert mdt.mdt.allocator.last_used == {0: 1, 1: 1, 2: 1, 3: 1}


def gap(mdt: World) -> tuple[Any, Any, Any]:
    """Three files on OST 0, by clients a, b and a."""
    saved = []
    for name, client in ((b"1", "a"), (b"2", "b"), (b"3", "a")):
        mdt.make(ROOT, name, hint=wire.StripeHint(1, 0, 0), client=client)
        saved.append(mdt.saved)
    return saved[0], saved[1], saved[2]


async def test_the_objects_of_a_missing_client_are_condemned(mdt: World) -> None:
    """Source: replay-dual.sh test_14b"""
    first, _, third = gap(mdt)
    await mdt.crash()
    mdt.replay(first)
    assert mdt.condemned() == []
    mdt.replay(third)
    assert mdt.condemned() == [(0, 2)]
    assert mdt.mdt.allocator.last_used[0] == 3
    mdt.end_recovery()


async def test_a_late_replay_is_pardoned(mdt: World) -> None:
    first, second, third = gap(mdt)
    await mdt.crash()
    mdt.replay(first)
    mdt.replay(third)
    mdt.replay(second)
    assert mdt.condemned() == []
    fids = [mdt.find(ROOT, name) for name in (b"1", b"2", b"3")]
    assert [mdt.objects(fid) for fid in fids if fid] == [((0, 1),), ((0, 2),), ((0, 3),)]
    mdt.end_recovery()
    assert mdt.mdt.allocator.last_used[0] == 3


async def test_a_second_crash_in_recovery_condemns_again(mdt: World) -> None:
    first, second, third = gap(mdt)
    await mdt.crash()
    mdt.replay(first)
    mdt.replay(third)
    await mdt.crash()
    assert mdt.condemned() == []
    for saved in (first, second, third):
        mdt.replay(saved)
    assert mdt.condemned() == []
    mdt.end_recovery()


@pytest.mark.parametrize("bad", [
    wire.Layout(0, 0, "", ((0, 1),)), wire.Layout(1 << 20, 0, "", ()), wire.Layout(1 << 20, 0, "", ((0, 1), (0, 2))),
    wire.Layout(1 << 20, 0, "", ((0, 0),)), wire.Layout(1 << 20, 0, "", ((-1, 1),)), wire.Layout(1 << 20, 0, "p", ((0, 1),)),
])  # fmt: skip
async def test_a_replay_with_a_nonsense_layout_is_refused(mdt: World, bad: wire.Layout) -> None:
    body = mdt.new(ROOT, b"f")
    mdt.do(body)
    body, header, cred, client = mdt.saved
    await mdt.crash()
    mdt.fails(errno.EINVAL, body._replace(layout=bad), cred, client=client, **header)


async def test_a_layout_of_a_client_counts_only_in_a_replay(mdt: World) -> None:
    stolen = wire.Layout(1 << 20, 0, "", ((0, 1),))
    mdt.make(ROOT, b"f", hint=wire.StripeHint(1, 0, 0))
    body = mdt.new(ROOT, b"g")._replace(layout=stolen)
    assert mdt.do(body).layout != stolen


# ---------------------------------------------------------------- one OST


@pytest.fixture
async def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[One]:
    """An MDT with one OST."""
    async with one_ost(tmp_path, monkeypatch) as pair:
        yield pair


async def test_a_connect_cleans_up_and_fills_the_pool(one: One) -> None:
    assert one.far.calls == [OstCreate(0, CREATE_DELORPHAN), OstCreate(64, 0)]
    assert one.osp.ready and one.osp.available == 64
    fid = one.world.make(ROOT, b"f")
    assert one.world.objects(fid) == ((0, 1),)


async def test_refills_come_early_and_grow_with_demand(one: One) -> None:
    for i in range(32):
        one.world.make(ROOT, b"f%d" % i)
    await settle()
    assert len(one.far.calls) == 2
    one.world.make(ROOT, b"one more")
    await settle()
    assert one.far.calls[2:] == [OstCreate(128, 0)]
    assert one.osp.batch == 128, "half a batch went at once"
    one.far.gate.clear()
    for i in range(95):
        one.world.make(ROOT, b"g%d" % i)
    with pytest.raises(NotReady):
        one.world.make(ROOT, b"x")
    one.far.gate.set()
    await settle()
    assert one.osp.batch == 256 and one.osp.ready
    one.world.make(ROOT, b"x")


async def test_a_batch_that_lasts_long_does_not_grow(one: One) -> None:
    one.osp._filled_at -= COVER_S
    for i in range(33):
        one.world.make(ROOT, b"f%d" % i)
    await settle()
    assert one.far.calls[2:] == [OstCreate(128, 0)] and one.osp.batch == 64


async def test_a_pool_that_is_hardly_used_shrinks(one: One) -> None:
    one.osp.batch = 1024
    one.osp._filled_at -= LASTS_S + 1
    for i in range(64):
        one.world.make(ROOT, b"f%d" % i)
    await settle()
    assert one.osp.batch == 512


async def test_a_reconnect_freezes_the_pool_until_orphans_are_cleaned(one: One) -> None:
    for name in (b"a", b"b"):
        one.world.make(ROOT, name)
    one.far.gate.clear()
    one.osp._connected()
    assert not one.osp.ready
    with pytest.raises(NotReady):
        one.world.make(ROOT, b"c")
    one.far.gate.set()
    await settle()
    assert one.far.calls[2] == OstCreate(2, CREATE_DELORPHAN)
    assert one.world.objects(one.world.make(ROOT, b"c")) == ((0, 65),)  # ids up to 64 are destroyed
    assert one.world.mdt.allocator.last_used == {0: 65}


async def test_an_answer_from_before_a_reconnect_is_void(one: One) -> None:
    one.far.gate.clear()
    for i in range(40):
        one.world.make(ROOT, b"f%d" % i)
    await settle()
    assert one.far.calls[-1] == OstCreate(128, 0)
    one.osp._connected()  # the refill is still to be answered
    await settle()
    assert not one.osp.ready and one.osp.available == 0
    one.far.gate.set()
    await settle()
    assert one.far.calls[3:] == [OstCreate(40, CREATE_DELORPHAN), OstCreate(192, 0)]
    assert one.world.objects(one.world.make(ROOT, b"new")) == ((0, 129),)


@pytest.mark.parametrize("committed", [0, 1, 5])
async def test_no_id_is_used_twice_after_a_crash(one: One, committed: int) -> None:
    """Source: replay-single.sh test_101, insanity: lost creates must not share objects with new files."""
    for i in range(5):
        one.world.make(ROOT, b"f%d" % i)
        if i + 1 == committed:
            one.world.commit()
    await one.crash(recovering=False)
    await settle()
    assert one.far.calls[0] == OstCreate(committed, CREATE_DELORPHAN)
    assert one.world.objects(one.world.make(ROOT, b"new")) == ((0, 65),)


async def test_orphan_cleanup_waits_for_the_end_of_recovery(one: One) -> None:
    saved = []
    for i in range(3):
        one.world.make(ROOT, b"f%d" % i)
        saved.append(one.world.saved)
    await one.crash()
    await settle()
    assert one.far.calls == []
    for request in saved:
        one.world.replay(request)
    one.world.end_recovery()
    await settle()
    assert one.far.calls[0] == OstCreate(3, CREATE_DELORPHAN)


async def test_replays_after_a_cleanup_find_no_gap(one: One) -> None:
    """The ids between were destroyed: last_used jumped over them, durably or not."""
    one.world.make(ROOT, b"a")
    one.osp._connected()
    await settle()
    one.world.commit()
    one.world.make(ROOT, b"b")
    saved = one.world.saved
    await one.crash()
    one.world.replay(saved)
    assert one.world.condemned() == []
    one.world.end_recovery()
    await settle()
    assert one.far.calls[0] == OstCreate(65, CREATE_DELORPHAN)


async def test_an_ost_that_lost_ids_is_told_what_is_used(one: One) -> None:
    for i in range(10):
        one.world.make(ROOT, b"f%d" % i)
    one.far.last_id = 3  # restored from an old backup
    one.osp._connected()
    await settle()
    assert one.world.objects(one.world.make(ROOT, b"new")) == ((0, 11),)


async def test_ids_at_hand_are_used_when_an_ost_has_inodes_for_no_more(one: One) -> None:
    """Creates failed with ENOSPC while a thousand objects were waiting for their files."""
    one.far.errors = [OpError(errno.ENOSPC)] * 1000
    left = one.osp.available
    assert left > 5
    for number in range(left):
        one.world.make(ROOT, b"f%d" % number)
        await settle()
    assert one.osp.refusing and not one.osp.available
    one.world.fails(errno.ENOSPC, one.world.new(ROOT, b"x"))


async def test_a_refusing_ost_is_asked_again(one: One) -> None:
    """Source: replay-single.sh test_48"""
    one.far.errors = [OpError(errno.EROFS), OpError(errno.EIO)]
    one.osp._connected()
    await settle()
    assert one.osp.refusing
    one.world.fails(errno.ENOSPC, one.world.new(ROOT, b"x"))
    await until(lambda: one.osp.ready)
    assert not one.osp.refusing
    one.far.errors = [Evicted("lustre-OST0000")]
    one.osp._connected()
    await settle()
    assert not one.osp.ready
    one.osp._connected()  # as the import does after an eviction
    await settle()
    assert one.osp.ready


async def test_a_full_ost_is_left_alone_until_statfs_says_otherwise(one: One) -> None:
    one.world.node.tunables.qos_maxage_s = 0.01
    one.osp._tasks.append(one.world.node.spawn(one.osp._keep_looking(), "statfs"))
    one.osp.full = True
    one.world.mdt.allocator.refresh()
    one.world.fails(errno.ENOSPC, one.world.new(ROOT, b"x"))
    await until(lambda: one.osp.ready)
    one.world.make(ROOT, b"x")


async def test_a_replay_that_fails_claims_no_objects(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The orphan pass says which are in use; the OST would keep those for ever."""
    mdt.make(ROOT, b"f")
    made = mdt.saved
    await mdt.crash()
    assert not mdt.mdt.allocator.last_used
    body, header, cred, client = made

    def full(*args: Any, **options: Any) -> None:
        raise OpError(errno.ENOSPC)

    call = mdt.call(body, cred, client, **header)
    with monkeypatch.context() as patch:
        patch.setattr(mdt.mdt.store, "apply", full)
        patch.setattr(mdt.mdt, "reply", lambda *args, **options: None)
        mdt.mdt.serving._mutate(call, mdt.mdt.handlers[type(body)])
    assert not any(mdt.mdt.allocator.last_used.values())


async def test_a_replay_jumps_over_no_ids_that_an_orphan_pass_has_skipped(one: One) -> None:
    """After a restart of an OST these may be very many: a full MDT had no room to condemn them, and threw the client out."""
    one.far.last_id = 50_000
    one.osp._connected()
    await settle()
    await until(lambda: one.osp.ready)
    one.world.make(ROOT, b"f")
    saved = one.world.saved
    await one.crash()
    one.world.replay(saved)
    assert one.world.condemned() == []


async def test_an_ost_that_has_no_room_for_so_many_ids_is_asked_for_fewer(one: One, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes room in its database: it was asked for the same again and again, and no file was made there any more."""
    call, one.osp.batch = one.far.call, 8192

    async def nearly_full(body: Any) -> Any:
        if isinstance(body, OstCreate) and body.upto > one.far.last_id + 100:
            await asyncio.sleep(0)
            raise OpError(errno.ENOSPC)
        return await call(body)

    monkeypatch.setattr(one.far, "call", nearly_full)
    last, one.osp.next = one.osp.granted, one.osp.granted + 1  # all are used
    one.osp.wake()
    await until(lambda: one.osp.granted > last and not one.osp.refusing)
