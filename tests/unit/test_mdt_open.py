"""Opens and closes, files that live on without a name, replays and rebuilt replies."""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from mdt_fixture import ALICE, REGULAR, ROOT, World, make_maps_small

from lustrelite.errors import OpError
from lustrelite.faults import Fault
from lustrelite.ids import NO_FID, SEQ_NORMAL, epoch_of, make_fid
from lustrelite.mdt.open import CREATED, FOUND
from lustrelite.mdt.ost_log import condemn
from lustrelite.recovery.versions import ABSENT
from lustrelite.rpc.export import Export
from lustrelite.store.room import ESSENTIAL
from lustrelite.store.schema import CLIENTS, ReplyRecord, client_key, unpack_client, unpack_pool
from lustrelite.target.clients import UNAWARE
from lustrelite.target.target import Target
from lustrelite.wire import mdt as wire
from lustrelite.wire.message import RESENT
from lustrelite.wire.session import Connect, Disconnect

RW = wire.OPEN_READ | wire.OPEN_WRITE


@pytest.fixture
async def mdt(tmp_path: Path) -> AsyncIterator[World]:
    """An MDT on an empty store."""
    world = World(tmp_path)
    await world.start()
    yield world
    await world.stop()


def record(mdt: World, data: int = 0) -> ReplyRecord:
    return ReplyRecord(1, mdt.mdt.last_transno, 0, data, (), 1)


def rebuild(mdt: World, body: Any, data: int = 0, **more: Any) -> Any:
    handler = mdt.mdt.handlers[type(body)]
    assert handler.rebuild is not None
    return handler.rebuild(mdt.call(body, flags=RESENT, **more), body, record(mdt, data))


# ---------------------------------------------------------------- open


async def test_an_open_makes_a_file_or_finds_it(mdt: World) -> None:
    handle, made = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    assert mdt.last is not None
    assert made.disposition == mdt.last.data == CREATED
    assert made.attr.layout is not None and made.attr.mode == REGULAR
    assert mdt.pre_versions() == (mdt.inode(ROOT).version, ABSENT)
    second, found = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    assert found.disposition == mdt.last.data == FOUND and found.attr.fid == made.attr.fid
    assert mdt.pre_versions() == (0, found.attr.version)
    assert mdt.last.writes == {}  # a plain open changes nothing on disk
    assert mdt.mdt.open_files.counts == {made.attr.fid: 2}
    mdt.close(handle, made.attr.fid)
    mdt.close(second, made.attr.fid)
    assert mdt.mdt.open_files.counts == {}
    mdt.fails(errno.ESTALE, wire.Close(second, made.attr.fid, 0, 0, 0, 0))


async def test_many_closes_pass_over_what_is_not_there(mdt: World) -> None:
    """A handle that is not known, one that comes twice, one whose file is another, a file that never was."""
    handle, made = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    fid, none = made.attr.fid, mdt.fid()
    mdt.do(wire.Closes(()))
    mdt.do(wire.Closes((wire.ClosedFile(handle + 1, fid, 0, 0), wire.ClosedFile(0, none, 10**6, 0))))
    assert mdt.mdt.open_files.counts == {fid: 1}
    mdt.do(wire.Closes((wire.ClosedFile(handle, none, 0, 10**6), wire.ClosedFile(handle, fid, 0, 10**7))))
    assert mdt.mdt.open_files.counts == {} and mdt.inode(fid).mtime == 10**6


async def test_opens_that_are_refused(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d")
    mdt.make(ROOT, b"l", stat.S_IFLNK | 0o777, target=b"f")
    mdt.make(ROOT, b"f")
    for number, name, flags in (
        (errno.ENOENT, b"x", RW),
        (errno.EEXIST, b"f", RW | wire.OPEN_CREATE | wire.OPEN_EXCL),
        (errno.EISDIR, b"d", RW),
        (errno.EISDIR, b"d", wire.OPEN_READ | wire.OPEN_CREATE),
        (errno.EISDIR, b".", wire.OPEN_READ | wire.OPEN_TRUNC),
        (errno.ENOTDIR, b"f", wire.OPEN_READ | wire.OPEN_DIRECTORY),
        (errno.ELOOP, b"l", RW),
        (errno.EACCES, b"d", wire.OPEN_EXEC),
        (errno.EINVAL, b"x", wire.OPEN_CREATE | wire.OPEN_DIRECTORY),
        (errno.ENAMETOOLONG, b"x" * 256, RW | wire.OPEN_CREATE),
    ):
        mdt.fails(number, mdt.opening(ROOT, name, flags))
    mdt.fails(errno.ENOENT, mdt.opening(ROOT, b"", RW | wire.OPEN_BY_FID))
    assert mdt.mdt.open_files.counts == {}
    for name, fid in ((b"..", ROOT), (b".", d)):
        handle, reply = mdt.open(d, name, wire.OPEN_READ | wire.OPEN_DIRECTORY)
        assert reply.attr.fid == fid
        mdt.close(handle, fid)


async def test_a_resent_exclusive_open_finds_its_own_file_and_no_other(mdt: World) -> None:
    """Source: LU-15107"""
    exclusive = wire.OPEN_CREATE | wire.OPEN_EXCL | wire.OPEN_WRITE
    own = mdt.opening(ROOT, b"f", exclusive)
    mdt.do(own)
    assert mdt.do(own, flags=RESENT).disposition == CREATED
    mdt.fails(errno.EEXIST, own)
    mdt.fails(errno.EEXIST, mdt.opening(ROOT, b"f", exclusive), flags=RESENT)


async def test_truncation_takes_set_id_bits(mdt: World) -> None:
    f = mdt.make(ROOT, b"f", stat.S_IFREG | 0o6777)
    version = mdt.inode(f).version
    handle, reply = mdt.open(ROOT, b"f", wire.OPEN_WRITE | wire.OPEN_TRUNC, ALICE)
    assert reply.attr.mode == stat.S_IFREG | 0o777
    assert mdt.inode(f).mtime == mdt.inode(f).ctime == mdt.now and mdt.inode(f).version == version
    mdt.close(handle, f)


async def test_a_close_brings_times_but_not_over_later_changes(mdt: World) -> None:
    f = mdt.make(ROOT, b"f")
    handle, _ = mdt.open(ROOT, b"f")
    mdt.close(handle, f, mtime=5000, atime=6000)
    inode = mdt.inode(f)
    assert (inode.mtime, inode.ctime, inode.atime) == (5000, 5000, 6000)
    handle, _ = mdt.open(ROOT, b"f")
    mdt.now = 8000
    mdt.setattr(f, mtime=10, atime=11, explicit=True)  # after the write
    mdt.close(handle, f, mtime=7000, atime=7000)
    inode = mdt.inode(f)
    assert (inode.mtime, inode.atime) == (10, 11)
    handle, _ = mdt.open(ROOT, b"f", wire.OPEN_READ)
    mdt.close(handle, f, mtime=9999)  # it could not write
    assert mdt.inode(f).mtime == 10


# ---------------------------------------------------------------- without a name


NAMELESS = wire.OPEN_WRITE | wire.OPEN_CREATE | wire.OPEN_TMPFILE


async def test_a_file_without_a_name_gets_one_or_goes(mdt: World) -> None:
    """O_TMPFILE."""
    d = mdt.mkdir(ROOT, b"d", 0o755)
    mdt.setattr(d, uid=ALICE[0])
    mdt.fails(errno.EACCES, mdt.opening(d, b"", NAMELESS), (7, 7))
    mdt.fails(errno.EINVAL, mdt.opening(d, b"", wire.OPEN_CREATE | wire.OPEN_TMPFILE | wire.OPEN_READ))
    before = mdt.inode(d)
    handle, reply = mdt.open(d, b"", NAMELESS, ALICE)
    f = reply.attr.fid
    assert reply.disposition == CREATED and reply.attr.nlink == 0 and reply.attr.layout is not None
    assert mdt.orphans() == [f] and mdt.inode(d) == before
    mdt.fails(errno.ENOENT, wire.Link(f, d, b"f", 1), client="b")  # only its maker gives it a name
    mdt.link(f, d, b"f")
    assert mdt.orphans() == [] and mdt.inode(f).nlink == 1
    mdt.close(handle, f)
    assert mdt.find(d, b"f") == f
    mdt.unlink(d, b"f")
    handle, reply = mdt.open(d, b"", NAMELESS)
    mdt.close(handle, reply.attr.fid)
    assert not mdt.exists(reply.attr.fid)
    handle, reply = mdt.open(d, b"", NAMELESS | wire.OPEN_EXCL)
    mdt.fails(errno.ENOENT, wire.Link(reply.attr.fid, d, b"f", 1))
    mdt.close(handle, reply.attr.fid)


@pytest.mark.parametrize("committed", [0, 1, 2])
async def test_a_file_without_a_name_is_replayed(mdt: World, committed: int) -> None:
    saved = []
    handle, reply = mdt.open(ROOT, b"", NAMELESS)
    saved.append(mdt.saved)
    if committed == 1:
        mdt.commit()
    mdt.link(reply.attr.fid, ROOT, b"f")
    saved.append(mdt.saved)
    if committed == 2:
        mdt.commit()
    other, _ = mdt.open(ROOT, b"", NAMELESS)
    saved.append(mdt.saved)
    await mdt.crash()
    for each in saved[:1] if committed else ():
        mdt.replay(each)  # an open of what is there
    for each in saved[committed:]:
        mdt.replay(each)
    mdt.end_recovery()
    inode = mdt.inode(reply.attr.fid)
    assert inode.nlink == 1 and inode.layout == reply.attr.layout
    assert len(mdt.orphans()) == 1 and len(mdt.export("a").opens) == 2
    mdt.close(handle, reply.attr.fid)
    mdt.close(other, mdt.orphans()[0])
    assert mdt.find(ROOT, b"f") == reply.attr.fid and mdt.orphans() == []


# ---------------------------------------------------------------- orphans


async def test_an_open_file_outlives_its_name(mdt: World) -> None:
    handle, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    f = reply.attr.fid
    other, _ = mdt.open(ROOT, b"f", client="b")
    mdt.do(wire.Setxattr(f, b"user.a", b"1", 0, 1))
    objects = list(mdt.objects(f))
    assert mdt.unlink(ROOT, b"f") == (f, 0, True)
    assert mdt.orphans() == [f] and mdt.condemned() == [] and mdt.inode(f).nlink == 0
    mdt.fails(errno.ENOENT, wire.Link(f, ROOT, b"again", 1))
    mdt.do(mdt.setting(f, mode=0o600))
    mdt.close(handle, f)
    assert mdt.exists(f)
    mdt.close(other, f, client="b", mtime=99999)
    assert mdt.last is not None
    assert not mdt.exists(f) and mdt.orphans() == [] and mdt.condemned() == objects


async def test_an_evicted_client_closes_its_files(mdt: World) -> None:
    for name in (b"f", b"g"):
        mdt.open(ROOT, name, RW | wire.OPEN_CREATE)
        mdt.open(ROOT, name, RW)
    handle, reply = mdt.open(ROOT, b"g", RW, client="b")
    g = reply.attr.fid
    mdt.unlink(ROOT, b"f")
    mdt.unlink(ROOT, b"g")
    mdt.mdt.export_gone(mdt.export("a"))
    assert mdt.orphans() == [g] and mdt.mdt.open_files.counts == {g: 1}
    mdt.close(handle, g, client="b")
    assert len(mdt.condemned()) == 2


@pytest.fixture
def small_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases of 8 MiB."""
    make_maps_small(monkeypatch, 8 << 20)


def fill(mdt: World) -> None:
    """Leave the MDT no room."""
    for _ in mdt.fill():
        mdt.commit()


def make_orphans(mdt: World, count: int) -> None:
    """Files that client "a" has open and that have no name any more."""
    for i in range(count):
        mdt.make(ROOT, b"f%d" % i)
        mdt.open(ROOT, b"f%d" % i)
        mdt.unlink(ROOT, b"f%d" % i)
        if i % 50 == 49:
            mdt.commit()


async def test_a_full_mdt_starts_with_many_orphans(tmp_path: Path, small_map: None) -> None:
    """It has no room to destroy all of them at once: the others follow with the next commits."""
    mdt = World(tmp_path)
    await mdt.start()
    make_orphans(mdt, 200)
    fill(mdt)
    await mdt.crash(recovering=False)
    assert 0 < len(mdt.orphans()) < 200
    while left := len(mdt.orphans()):
        mdt.commit()
        assert len(mdt.orphans()) < left
    await mdt.stop()


async def test_a_full_mdt_destroys_orphans_of_many_stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a record for every stripe: together they had no room, however often it committed."""
    make_maps_small(monkeypatch, 32 << 20)
    mdt = World(tmp_path, osts=64)
    await mdt.start()
    for _ in range(20):
        mdt.make(ROOT, b"f", hint=wire.StripeHint(-1, 0, -1))
        mdt.open(ROOT, b"f")
        mdt.unlink(ROOT, b"f")
    fill(mdt)
    await mdt.crash(recovering=False)
    while left := len(mdt.orphans()):
        mdt.commit()
        assert len(mdt.orphans()) < left
    await mdt.stop()


@pytest.mark.parametrize("how", ["unlink", "rename", "close", "closes"])
async def test_a_full_mdt_destroys_a_file_of_very_many_stripes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It goes piece by piece; what is left is an orphan meanwhile, also for a successor."""
    make_maps_small(monkeypatch, 32 << 20)
    mdt = World(tmp_path, osts=400)
    await mdt.start()
    fid = mdt.make(ROOT, b"f", hint=wire.StripeHint(-1, 0, -1))
    mdt.make(ROOT, b"g")
    body: Any = wire.Unlink(ROOT, b"f", 0, mdt.tick())
    if how == "rename":
        body = wire.Rename(ROOT, b"g", ROOT, b"f", 0, mdt.tick())
    elif how != "unlink":
        handle, _ = mdt.open(ROOT, b"f")
        mdt.unlink(ROOT, b"f")
        body = wire.Close(handle, fid, 0, 0, 0, 0) if how == "close" else wire.Closes((wire.ClosedFile(handle, fid, 0, 0),))
    fill(mdt)
    assert answer(mdt, monkeypatch, lambda: mdt.mdt.serving.execute(mdt.call(body))) == 0
    assert mdt.orphans() == [fid]
    left = len(mdt.objects(fid))
    assert 0 < left < 400
    monkeypatch.setattr(mdt.mdt, "after_commit", lambda: None)
    mdt.commit()
    await mdt.crash(recovering=False)
    for _ in range(10):
        mdt.commit()
    assert not mdt.exists(fid) and not mdt.orphans()
    assert len(mdt.condemned()) == 400
    await mdt.stop()


def restarted(client: str) -> Connect:
    """The second incarnation of a client connects."""
    return Connect("", client, 2, 0, 0, 0, 0, 0, 0, "", 0)


@pytest.mark.parametrize("how", ["evicted", "left", "restarted"])
async def test_a_full_mdt_loses_a_client_with_many_orphans(tmp_path: Path, small_map: None, how: str) -> None:
    """It has no room to destroy all of them at once: the others follow with the next commits."""
    mdt = World(tmp_path)
    await mdt.start()
    export, clients = mdt.export("a"), mdt.mdt.clients
    mdt.mdt.exports["a"] = export
    make_orphans(mdt, 200)
    fill(mdt)
    if how == "evicted":
        mdt.mdt.evict(export, "a test")
    elif how == "left":
        clients._remove(export)
    else:
        clients._renew(export, restarted("a"))
    assert not export.opens and not mdt.mdt.open_files.counts
    assert how == "restarted" or (export.failed and not mdt.mdt.exports)
    assert 0 < len(mdt.orphans()) < 200
    while left := len(mdt.orphans()):
        mdt.commit()
        assert len(mdt.orphans()) < left
    await mdt.stop()


def answer(mdt: World, monkeypatch: pytest.MonkeyPatch, serve: Callable[[], None]) -> int:
    """The status of the only answer that is given in `serve`."""
    answers: list[int] = []
    monkeypatch.setattr(mdt.mdt, "reply", lambda call, status, *_: answers.append(status))
    serve()
    (status,) = answers
    return status


async def test_a_full_mdt_closes_many_orphans_at_once(
    tmp_path: Path, small_map: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mdt = World(tmp_path)
    await mdt.start()
    make_orphans(mdt, 128)
    fill(mdt)
    call = mdt.call(wire.Closes(tuple([wire.ClosedFile(handle, file.fid, 0, 0) for handle, file in mdt.export("a").opens.items()])))
    assert answer(mdt, monkeypatch, lambda: mdt.mdt.serving.execute(call)) == 0
    while left := len(mdt.orphans()):
        mdt.commit()
        assert len(mdt.orphans()) < left
    await mdt.stop()


async def test_a_full_mdt_closes_what_was_closed_before(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file goes when there is room."""
    handle, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    mdt.unlink(ROOT, b"f")
    close = mdt.call(wire.Close(handle, reply.attr.fid, 0, 0, 0, 0))
    with monkeypatch.context() as patch:
        patch.setattr(mdt.mdt.store, "apply", full)
        assert answer(mdt, monkeypatch, lambda: mdt.mdt.serving._reconstruct(close, record(mdt))) == 0
    assert not mdt.export("a").opens and mdt.orphans()
    mdt.commit()
    assert not mdt.orphans() and not mdt.exists(reply.attr.fid)


def new_client(mdt: World, name: str) -> Export:
    return mdt.mdt.clients._new_client(Connect("", name, 1, 0, 0, 0, 0, 0, 0, "", 0), mdt.call(wire.GetRoot()))


async def full_of_clients(tmp_path: Path) -> World:
    """It has a hundred, c0 to c99, and no room."""
    mdt = World(tmp_path)
    await mdt.start()
    for name in (f"c{number}" for number in range(100)):
        mdt.mdt.exports[name] = new_client(mdt, name)
    fill(mdt)
    return mdt


async def test_a_full_mdt_evicts_many_clients_at_once(tmp_path: Path, small_map: None) -> None:
    """Their records go as there is room: until then nobody gets their place, nor may they come again."""
    mdt = await full_of_clients(tmp_path)
    target, clients = mdt.mdt, mdt.mdt.clients
    for export in list(target.exports.values()):
        target.evict(export, "a test")
    assert not target.exports
    left = list(target.store.scan(CLIENTS))
    assert left
    late = new_client(mdt, "late")
    assert client_key(late.client_index) not in dict(left)
    while clients.going:
        assert len(list(target.store.scan(CLIENTS))) == len(clients.going) + 1
        await asyncio.sleep(0.01)
    await mdt.stop()


async def test_a_full_mdt_lets_many_clients_leave_at_once(
    tmp_path: Path, small_map: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The goodbye of some was refused: they went all the same, and what they had done might be lost; the next recovery waited for them."""
    mdt = await full_of_clients(tmp_path)
    target = mdt.mdt
    answers: dict[str, int] = {}
    left_behind: list[str] = []

    def reply(call: Any, status: int, *_: Any) -> None:
        answers[call.export.uuid] = status
        with target.store._env.begin() as txn:
            if txn.get(client_key(call.export.client_index), db=target.store._dbs[CLIENTS]) is not None:
                left_behind.append(call.export.uuid)

    monkeypatch.setattr(target, "reply", reply)
    for export in list(target.exports.values()):
        call = mdt.call(Disconnect(), timeout_ms=60_000)
        call.export = export
        target.handle(call)
    assert not target.exports
    while len(answers) < 100:
        await asyncio.sleep(0.01)
    assert set(answers.values()) == {0} and not left_behind and not list(target.store.scan(CLIENTS))
    await mdt.stop()


@pytest.mark.parametrize("sealed", [False, True])
async def test_recovery_ends_when_replays_have_used_up_the_room(tmp_path: Path, small_map: None, sealed: bool) -> None:
    """The server ended there, and its successors at the same place."""
    mdt = World(tmp_path)
    await mdt.start()
    fill(mdt)
    await mdt.crash()
    target = mdt.mdt
    target.store.apply(target.meta_write(UNAWARE, True), kind=ESSENTIAL)
    target.started_at = float("-inf")  # no lease is left
    with pytest.raises(OpError, match="ENOSPC"):
        for oid in range(100_000):
            target.run(condemn, 0, oid)
    if sealed:
        target.committer.commit_soon()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    before = epoch_of(target.last_transno)
    await Target.finish_recovery(target)
    assert not target.recovering and epoch_of(target.last_transno) == before + 1
    target._all_aware()
    await mdt.stop()


def full(*_: Any, **__: Any) -> None:
    """A store that has no room."""
    raise OpError(errno.ENOSPC)


async def test_a_client_that_was_restarted_is_put_on_record_or_refused(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the record would be its former incarnation's, and its replays void after the next crash."""
    export, clients = mdt.export("a"), mdt.mdt.clients
    mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)

    with monkeypatch.context() as patch:
        patch.setattr(mdt.mdt.store, "apply", full)
        with pytest.raises(OpError):
            clients._renew(export, restarted("a"))
    assert export.incarnation == 1 and export.opens
    clients._renew(export, restarted("a"))
    (record,) = [unpack_client(value) for _, value in mdt.mdt.store.scan(CLIENTS)]
    assert (record.incarnation, record.generation) == (export.incarnation, export.generation) == (2, export.generation)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("reopened", [True, False])
async def test_an_orphan_waits_for_the_end_of_recovery(mdt: World, committed: bool, reopened: bool) -> None:
    """Source: replay-single.sh test_20a, 24, 30"""
    handle, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    opened, f = mdt.saved, reply.attr.fid
    mdt.commit()
    mdt.unlink(ROOT, b"f")
    unlinked = mdt.saved
    if committed:
        mdt.commit()
    await mdt.crash()
    if reopened:
        assert mdt.replay(opened).attr.fid == f
    if not committed:
        assert mdt.replay(unlinked) == (f, 0, True)  # whoever has it open may still come
    assert mdt.orphans() == [f] and mdt.exists(f)
    mdt.end_recovery()
    assert mdt.exists(f) == reopened
    if reopened:
        mdt.close(handle, f)
    assert not mdt.exists(f) and len(mdt.condemned()) == 1


async def test_a_close_in_recovery_keeps_the_orphan_for_others(mdt: World) -> None:
    """Source: replay-dual.sh test_6"""
    _handle, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    first, f = mdt.saved, reply.attr.fid
    other, _ = mdt.open(ROOT, b"f", RW, client="b")
    second = mdt.saved
    mdt.commit()
    mdt.unlink(ROOT, b"f")
    unlinked = mdt.saved
    mdt.close(_handle, f)
    closed = mdt.saved
    await mdt.crash()
    for saved in (first, unlinked, closed):
        mdt.replay(saved)
    assert mdt.exists(f)
    mdt.replay(second)
    mdt.end_recovery()
    assert mdt.exists(f)
    mdt.close(other, f, client="b")
    assert not mdt.exists(f)


async def test_an_eviction_in_recovery_keeps_the_orphan_for_others(mdt: World) -> None:
    """One client has opened it again and goes; the other has yet to come."""
    _, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    first, f = mdt.saved, reply.attr.fid
    mdt.open(ROOT, b"f", RW, client="b")
    second = mdt.saved
    mdt.unlink(ROOT, b"f")
    mdt.commit()
    await mdt.crash()
    mdt.replay(first)
    mdt.mdt.export_gone(mdt.export("a"))
    assert mdt.exists(f)
    mdt.replay(second)
    mdt.end_recovery()
    assert mdt.exists(f)


# ---------------------------------------------------------------- replay


async def test_an_open_create_is_replayed_with_fid_handle_and_objects(mdt: World) -> None:
    handle, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    opened, f, objects = mdt.saved, reply.attr.fid, mdt.objects(reply.attr.fid)
    await mdt.crash()
    again = mdt.replay(opened)
    assert again.attr == reply.attr and again.disposition == reply.disposition
    assert mdt.objects(f) == objects
    assert mdt.export("a").opens.keys() == {handle}
    mdt.replay(opened)  # the reply was lost: opened by FID, counted once
    assert mdt.mdt.open_files.counts == {f: 1}
    mdt.end_recovery()


async def test_the_open_of_another_clients_file_needs_that_file(mdt: World) -> None:
    mdt.make(ROOT, b"f", client="b")
    created = mdt.saved
    mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    opened = mdt.saved
    await mdt.crash()
    with pytest.raises(OpError) as error:
        mdt.replay(opened)
    assert error.value.errno == errno.ESTALE
    mdt.replay(created)
    assert mdt.replay(opened).disposition == FOUND


async def test_an_open_create_over_anothers_file_is_a_version_mismatch(mdt: World) -> None:
    mdt.make(ROOT, b"f", client="b")
    mdt.commit()
    mdt.unlink(ROOT, b"f", client="b")
    mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    opened = mdt.saved
    await mdt.crash()
    with pytest.raises(OpError) as error:
        mdt.replay(opened)
    assert error.value.errno == errno.EOVERFLOW
    assert mdt.export("a").vbr_failed


async def test_the_replay_of_a_committed_open_does_not_touch_times_again(mdt: World) -> None:
    f = mdt.make(ROOT, b"f")
    mdt.open(ROOT, b"f", wire.OPEN_WRITE | wire.OPEN_TRUNC)
    opened = mdt.saved
    mdt.setattr(f, mtime=7, explicit=True)
    mdt.commit()
    await mdt.crash()
    mdt.replay(opened)
    assert mdt.inode(f).mtime == 7
    mdt.end_recovery()


#   what is done before and after the commit, what a missing client did between: which slot does not fit
async def test_replays_after_a_gap_are_checked(mdt: World) -> None:
    """Source: replay-vbr.sh; the table of protocol-facts 3.7"""
    d = mdt.mkdir(ROOT, b"d")
    e = mdt.mkdir(ROOT, b"e")
    f, g = mdt.make(d, b"f"), mdt.make(d, b"g")
    mdt.commit()
    for fid in (d, f):
        mdt.setattr(fid, mode=0o700)  # the missing client's
    saved = {}

    def done(name: str, body: Any) -> None:
        mdt.do(body)
        saved[name] = mdt.saved

    done("create in d", mdt.new(d, b"new"))
    done("mode of f", mdt.setting(f, mode=0o711))
    done("times of f", mdt.setting(f, mtime=1))
    done("xattr of f", wire.Setxattr(f, b"user.a", b"1", 0, 1))
    done("create in e", mdt.new(e, b"new"))
    done("link f", wire.Link(f, e, b"link", 1))
    done("mode of g", mdt.setting(g, mode=0o711))
    done("rename g", wire.Rename(d, b"g", e, b"g", 0, 1))
    done("unlink f", wire.Unlink(d, b"f", 0, 1))
    await mdt.crash()
    failed = []
    for name, request in saved.items():
        try:
            mdt.replay(request)
        except OpError as error:
            assert error.errno == errno.EOVERFLOW, name
            failed.append(name)
    assert failed == ["create in d", "mode of f", "xattr of f", "link f", "rename g", "unlink f"]
    mdt.end_recovery()


async def test_everything_is_replayed_to_the_same_state(mdt: World) -> None:
    mdt.setattr(ROOT, mode=0o777)
    mdt.commit()
    saved: list[Any] = []

    def done(body: Any, **more: Any) -> Any:
        reply = mdt.do(body, **more)
        saved.append(mdt.saved)
        return reply

    a = done(mdt.new(ROOT, b"a", stat.S_IFDIR | 0o2775), cred=ALICE).fid
    f = done(mdt.new(a, b"f"), client="b").fid
    done(wire.Link(f, ROOT, b"g", mdt.tick()), client="b")
    done(mdt.setting(f, mode=0o600, uid=5, mtime=3))
    done(wire.Setxattr(f, b"user.a", b"1", 0, mdt.tick()))
    done(wire.SetDirStripe(a, wire.StripeHint(2, 0, -1), mdt.tick()))
    h = done(mdt.opening(a, b"h", RW | wire.OPEN_CREATE)).attr.fid
    assert len(mdt.objects(h)) == 2
    done(wire.Close(saved[-1][1]["xid"], h, 0, 999999, 0, 0))
    done(mdt.new(a, b"gone"))
    done(wire.Unlink(a, b"gone", 0, mdt.tick()))
    done(wire.Rename(a, b"h", ROOT, b"g", 0, mdt.tick()))
    before = mdt.rows()
    await mdt.crash()
    assert mdt.find(ROOT, b"a") is None
    for request in saved:
        mdt.replay(request)
    mdt.end_recovery()
    after = mdt.rows()
    condemned = {key for key, _ in after["ost_log"]}
    assert condemned == {key for key, _ in before["ost_log"]}  # only the transno differs: destroyed after recovery
    for table in ("inodes", "names", "links", "xattrs", "orphans"):
        assert after[table] == before[table], table
    for state in (before, after):
        state["pools"] = [(key, unpack_pool(value).last_used) for key, value in state["pools"]]
    assert after["pools"] == before["pools"]


# ---------------------------------------------------------------- rebuilt replies


async def test_a_lost_open_reply_is_rebuilt_with_its_handle(mdt: World) -> None:
    handle, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    body = wire.Open(ROOT, b"f", reply.attr.fid, RW | wire.OPEN_CREATE, 0o644, 1, None, None)
    mdt.setattr(reply.attr.fid, mode=0o600)
    again = rebuild(mdt, body, CREATED, xid=handle)
    assert again.disposition == CREATED and again.attr == mdt.do(wire.Getattr(reply.attr.fid))
    assert mdt.mdt.open_files.counts == {reply.attr.fid: 1}
    mdt.close(handle, reply.attr.fid)


@pytest.mark.parametrize("how", ["created", "by name", "by fid"])
async def test_after_a_failover_the_file_is_opened_anew(mdt: World, how: str) -> None:
    f = mdt.make(ROOT, b"f")
    body = wire.Open(ROOT, b"f", mdt.fid(), RW, 0o644, 1, None, None)
    if how == "created":
        body = body._replace(fid=f, flags=RW | wire.OPEN_CREATE)
    elif how == "by fid":
        body = body._replace(fid=f, name=b"", flags=RW | wire.OPEN_BY_FID)
    mdt.commit()
    await mdt.crash(recovering=False)
    reply = rebuild(mdt, body, CREATED if how == "created" else FOUND, xid=77)
    assert reply.attr.fid == f and mdt.export("a").opens[77].fid == f
    mdt.close(77, f)
    mdt.unlink(ROOT, b"f")
    with pytest.raises(OpError) as error:
        rebuild(mdt, body, CREATED if how == "created" else FOUND, xid=78)
    assert error.value.errno == errno.ESTALE
    assert mdt.mdt.open_files.counts == {}


async def test_other_lost_replies(mdt: World) -> None:
    f = mdt.make(ROOT, b"f")
    create = wire.Create(ROOT, b"f", f, REGULAR, 0, b"", 1, None, None)
    change = mdt.setting(f, mode=0o600)
    attr = mdt.do(change)
    assert rebuild(mdt, create) == rebuild(mdt, change) == attr
    mdt.link(f, ROOT, b"g")
    removal = wire.Unlink(ROOT, b"g", 0, 1)
    mdt.do(removal)
    assert mdt.last is not None
    assert rebuild(mdt, removal, mdt.last.data) == (NO_FID, 1, False)
    mdt.unlink(ROOT, b"f")
    for body in (create, change):
        gone = rebuild(mdt, body)
        assert gone.fid == f and gone.nlink == 0
    for empty in (wire.Link(f, ROOT, b"x", 1), wire.Close(1, f, 0, 0, 0, 0), wire.Setxattr(f, b"", None, 0, 1)):
        assert rebuild(mdt, empty) == ()


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("point", ["mdt.open", "mdt.open_result", "mdt.create", "mdt.layout"])
async def test_a_fault_leaves_no_trace(mdt: World, point: str) -> None:
    mdt.node.faults.arm(point, Fault("error", errno=errno.EIO))
    mdt.fails(errno.EIO, mdt.opening(ROOT, b"f", RW | wire.OPEN_CREATE)) if point != "mdt.open_result" else None
    mdt.node.faults.clear()
    assert mdt.mdt.open_files.counts == {}
    handle, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    mdt.close(handle, reply.attr.fid)
    mdt.fails(errno.ENOENT, wire.Getattr(make_fid(SEQ_NORMAL, 9999)))


async def test_times_that_could_not_be_set_count_for_nothing(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk refuses utimes(); what was written before that is still the last write. So is what it refuses of a close."""

    def full(*_: Any, **__: Any) -> None:
        raise OpError(errno.ENOSPC)

    def refused(body: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(mdt.mdt.store, "apply", full)
            patch.setattr(mdt.mdt, "reply", lambda *_: None)
            assert mdt.mdt.serving._mutate(mdt.call(body), mdt.mdt.handlers[type(body)])

    handle, reply = mdt.open(ROOT, b"f", RW | wire.OPEN_CREATE)
    fid, opens = reply.attr.fid, mdt.mdt.open_files
    refused(mdt.setting(fid, mtime=5, atime=5, explicit=True))
    assert not opens.mtimes_set and not opens.atimes_set
    mdt.setattr(fid, mtime=5, atime=5, explicit=True)
    known = dict(opens.mtimes_set), dict(opens.atimes_set)
    assert all(known)
    refused(mdt.setting(fid, mtime=6, atime=6, explicit=True))
    refused(wire.Close(handle, fid, 0, mdt.tick(), 0, 0))
    assert (opens.mtimes_set, opens.atimes_set) == known and opens.is_open(fid)
    mdt.close(handle, fid, mtime=mdt.tick())
    assert mdt.inode(fid).mtime == mdt.now
