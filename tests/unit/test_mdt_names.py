"""Making, linking, removing, listing."""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mdt_fixture import ALICE, DIRECTORY, REGULAR, ROOT, World

from lustrelite.ids import NO_FID, SEQ_NORMAL, SEQ_WIDTH, make_fid
from lustrelite.mdt import namespace, reading
from lustrelite.recovery.versions import ABSENT
from lustrelite.store import schema
from lustrelite.tunables import limits
from lustrelite.wire import mdt as wire
from lustrelite.wire.message import RESENT


@pytest.fixture
async def mdt(tmp_path: Path) -> AsyncIterator[World]:
    """An MDT on an empty store."""
    world = World(tmp_path)
    await world.start()
    yield world
    await world.stop()


async def test_a_created_file_has_name_link_objects_and_times(mdt: World) -> None:
    fid = mdt.make(ROOT, b"f")
    inode = mdt.inode(fid)
    assert (inode.mode, inode.nlink, inode.parent) == (REGULAR, 1, NO_FID)
    assert inode.atime == inode.mtime == inode.ctime == inode.btime == mdt.now
    assert mdt.find(ROOT, b"f") == fid
    assert len(mdt.objects(fid)) == 1
    root = mdt.inode(ROOT)
    assert root.mtime >= mdt.now  # made with the wall clock: it never goes back
    assert mdt.last is not None and inode.version == mdt.last.transno
    assert mdt.pre_versions() == (root.version, ABSENT, ABSENT)


async def test_a_create_makes_no_version_of_the_parent(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d")
    version = mdt.inode(d).version
    mdt.make(d, b"f")
    mdt.unlink(d, b"f")
    assert mdt.inode(d).version == version
    assert mdt.inode(d).mtime == mdt.inode(d).ctime == mdt.now


async def test_a_create_writes_five_rows(mdt: World) -> None:
    mdt.make(ROOT, b"f")
    assert mdt.last is not None
    assert sorted(table for table, _ in mdt.last.writes) == ["inodes", "inodes", "links", "names", "pools"]


@pytest.mark.parametrize(
    ("name", "number"),
    [(b".", errno.EEXIST), (b"..", errno.EEXIST), (b"", errno.EINVAL), (b"a/b", errno.EINVAL), (b"a\0", errno.EINVAL),
     (b"x" * 256, errno.ENAMETOOLONG)],
)  # fmt: skip
async def test_bad_names_are_refused(mdt: World, name: bytes, number: int) -> None:
    mdt.fails(number, mdt.new(ROOT, name))
    if name:
        f = mdt.make(ROOT, b"f")
        mdt.fails(number, wire.Link(f, ROOT, name, 1))
    mdt.fails(errno.EINVAL if number == errno.EEXIST else number, wire.Unlink(ROOT, name, 0, 1))


async def test_a_name_of_255_bytes_is_fine(mdt: World) -> None:
    assert mdt.exists(mdt.make(ROOT, b"x" * limits.name_bytes_max))


async def test_what_exists_is_not_made_again(mdt: World) -> None:
    f = mdt.make(ROOT, b"f")
    mdt.fails(errno.EEXIST, mdt.new(ROOT, b"f"))
    mdt.fails(errno.EEXIST, mdt.new(ROOT, b"f", DIRECTORY))
    again = wire.Create(ROOT, b"other", f, REGULAR, 0, b"", 1, None, None)
    mdt.fails(errno.EEXIST, again)  # the FID is taken


async def test_a_resent_create_of_its_own_file_succeeds(mdt: World) -> None:
    """Source: LU-15107"""
    body = mdt.new(ROOT, b"f")
    first = mdt.do(body)
    assert mdt.do(body, flags=RESENT) == first
    mdt.fails(errno.EEXIST, body)


async def test_parents_must_be_living_directories(mdt: World) -> None:
    f = mdt.make(ROOT, b"f")
    mdt.fails(errno.ENOTDIR, mdt.new(f, b"x"))
    mdt.fails(errno.ENOENT, mdt.new(make_fid(SEQ_NORMAL, 999), b"x"))
    d = mdt.mkdir(ROOT, b"d")
    handle, _ = mdt.open(ROOT, b"d", wire.OPEN_READ | wire.OPEN_DIRECTORY)
    assert mdt.rmdir(ROOT, b"d").orphan
    mdt.fails(errno.ENOENT, mdt.new(d, b"x"))
    mdt.close(handle, d)
    assert not mdt.exists(d)


async def test_kinds_of_files(mdt: World) -> None:
    link = mdt.make(ROOT, b"l", stat.S_IFLNK | 0o777, target=b"/somewhere")
    assert mdt.do(wire.Readlink(link)).value == b"/somewhere"
    assert mdt.inode(link).size == 10
    null = mdt.make(ROOT, b"null", stat.S_IFCHR | 0o666, rdev=0x103)
    assert mdt.inode(null).rdev == 0x103
    for kind in (stat.S_IFIFO, stat.S_IFSOCK):
        assert mdt.inode(mdt.make(ROOT, b"%d" % kind, kind | 0o600)).layout is None
    f = mdt.make(ROOT, b"f")
    mdt.fails(errno.EINVAL, wire.Readlink(f))
    mdt.fails(errno.EINVAL, mdt.new(ROOT, b"x", 0o170000 | 0o644))
    mdt.fails(errno.ENOENT, mdt.new(ROOT, b"x", stat.S_IFLNK | 0o777))
    long = wire.Create(ROOT, b"x", mdt.fid(), stat.S_IFLNK | 0o777, 0, b"x" * 4096, 1, None, None)
    mdt.fails(errno.ENAMETOOLONG, long)
    mdt.setattr(ROOT, mode=0o777)
    mdt.fails(errno.EPERM, mdt.new(ROOT, b"x", stat.S_IFBLK | 0o600), ALICE)
    mdt.fails(errno.EPERM, wire.Create(ROOT, b"x", mdt.fid(), stat.S_IFCHR, 1, b"", 1, None, None), ALICE)
    assert mdt.exists(mdt.make(ROOT, b"whiteout", stat.S_IFCHR, ALICE)), "fuse-overlayfs of users makes these"
    assert mdt.exists(mdt.make(ROOT, b"fifo", stat.S_IFIFO | 0o600, ALICE))


async def test_fids_of_clients_only(mdt: World) -> None:
    for fid in (ROOT, NO_FID, make_fid(SEQ_NORMAL - 1, 5), make_fid(SEQ_NORMAL, 5, 1)):
        body = wire.Create(ROOT, b"x", fid, REGULAR, 0, b"", 1, None, None)
        mdt.fails(errno.EEXIST if fid == ROOT else errno.EINVAL, body)


async def test_directories_count_their_subdirectories(mdt: World) -> None:
    a = mdt.mkdir(ROOT, b"a")
    mdt.mkdir(a, b"b")
    mdt.mkdir(a, b"c")
    mdt.make(a, b"f")
    assert (mdt.inode(ROOT).nlink, mdt.inode(a).nlink) == (3, 4)
    mdt.rmdir(a, b"b")
    assert mdt.inode(a).nlink == 3
    mdt.fails(errno.ENOTEMPTY, wire.Unlink(ROOT, b"a", wire.UNLINK_RMDIR, 1))
    mdt.fails(errno.EISDIR, wire.Unlink(a, b"c", 0, 1))
    mdt.fails(errno.ENOTDIR, wire.Unlink(a, b"f", wire.UNLINK_RMDIR, 1))
    mdt.fails(errno.ENOTEMPTY, wire.Unlink(a, b"..", wire.UNLINK_RMDIR, 1))
    mdt.fails(errno.ENOENT, wire.Unlink(a, b"nothing", 0, 1))


async def test_too_many_links(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "links_max", 4)
    mdt.mkdir(ROOT, b"a")
    mdt.mkdir(ROOT, b"b")
    mdt.fails(errno.EMLINK, mdt.new(ROOT, b"c", DIRECTORY))
    f = mdt.make(ROOT, b"f")
    for name in (b"g", b"h", b"i"):
        mdt.link(f, ROOT, name)
    mdt.fails(errno.EMLINK, wire.Link(f, ROOT, b"j", 1))


async def test_hard_links(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d")
    f = mdt.make(ROOT, b"f")
    created = mdt.inode(f).version
    parent = mdt.inode(d).version
    mdt.link(f, d, b"g")
    assert mdt.pre_versions() == (parent, created, ABSENT)
    assert mdt.inode(f).nlink == 2 and mdt.inode(f).version > created and mdt.inode(f).ctime == mdt.now
    assert sorted(mdt.do(wire.FidToPath(f)).names) == [b"/d/g", b"/f"]
    mdt.fails(errno.EEXIST, wire.Link(f, ROOT, b"f", 1))
    mdt.fails(errno.EPERM, wire.Link(d, ROOT, b"dd", 1))
    mdt.fails(errno.ENOENT, wire.Link(make_fid(SEQ_NORMAL, 999), ROOT, b"x", 1))
    version = mdt.inode(f).version
    reply = mdt.unlink(ROOT, b"f")
    assert reply == (f, 1, False)
    assert mdt.pre_versions() == (mdt.inode(ROOT).version, version)
    assert mdt.inode(f).version == version  # an unlink sets none
    assert mdt.condemned() == []
    objects = mdt.objects(f)
    assert mdt.unlink(d, b"g") == (f, 0, False)
    assert mdt.condemned() == list(objects)
    assert not mdt.exists(f)


async def test_an_unlink_of_nothing_declares_that_it_found_nothing(mdt: World) -> None:
    mdt.fails(errno.ENOENT, wire.Unlink(ROOT, b"x", 0, 1))
    assert mdt.pre_versions() == (mdt.inode(ROOT).version, ABSENT)


async def test_lookup(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d")
    e = mdt.mkdir(d, b"e")
    assert mdt.do(wire.Lookup(d, b"e")).fid == e
    assert mdt.do(wire.Lookup(d, b".")).fid == d
    assert mdt.do(wire.Lookup(e, b"..")).fid == d
    assert mdt.do(wire.Lookup(ROOT, b"..")).fid == ROOT
    assert mdt.do(wire.Getattr(e)).parent == d
    assert mdt.do(wire.GetRoot()).fsname == "lustre"
    mdt.fails(errno.ENOENT, wire.Lookup(d, b"x"))
    mdt.fails(errno.ENAMETOOLONG, wire.Lookup(d, b"x" * 256))
    mdt.fails(errno.ENOENT, wire.Getattr(make_fid(SEQ_NORMAL, 999)))
    mdt.fails(errno.ENOTDIR, wire.Lookup(mdt.make(d, b"f"), b"x"))


async def test_paths(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d")
    e = mdt.mkdir(d, b"e")
    f = mdt.make(e, b"f")
    assert mdt.do(wire.FidToPath(f)).names == (b"/d/e/f",)
    assert mdt.do(wire.FidToPath(ROOT)).names == (b"/",)
    handle, _ = mdt.open(e, b"f")
    mdt.unlink(e, b"f")
    mdt.fails(errno.ENOENT, wire.FidToPath(f))
    mdt.close(handle, f)


async def test_a_listing_by_pages_is_complete_and_in_cookie_order(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d")
    made = {b"f%d" % i: mdt.make(d, b"f%d" % i) for i in range(50)}
    mdt.make(ROOT, b"elsewhere")
    seen: dict[bytes, object] = {}
    cookie, pages = 0, 0
    while True:
        page = mdt.do(wire.Readdir(d, cookie, 7, pages % 2 == 1))
        for entry in page.entries:
            assert entry.cookie > cookie
            cookie = entry.cookie
            seen[entry.name] = entry.fid
            assert entry.type == stat.S_IFREG
            assert (entry.attr is not None) == (pages % 2 == 1)
            assert entry.attr is None or (entry.attr.fid == entry.fid and entry.attr.layout is not None)
        pages += 1
        if page.end:
            break
        assert len(page.entries) == 7
    assert seen == made
    mdt.fails(errno.EINVAL, wire.Readdir(d, -1, 7, False))
    mdt.fails(errno.ENOTDIR, wire.Readdir(made[b"f0"], 0, 7, False))


async def test_names_of_equal_hash_are_never_parted(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def clash(parent: bytes, name: bytes) -> bytes:
        return parent + (5 if name < b"m" else 6).to_bytes(8, "big") + name

    for module in (schema, namespace):
        monkeypatch.setattr(module, "name_key", clash)
    monkeypatch.setattr("lustrelite.mdt.create.name_key", clash)
    d = mdt.mkdir(ROOT, b"d")
    for name in (b"a", b"b", b"c", b"x", b"y"):
        mdt.make(d, name)
    first = mdt.do(wire.Readdir(d, 0, 1, False))
    assert [e.name for e in first.entries] == [b"a", b"b", b"c"] and not first.end
    rest = mdt.do(wire.Readdir(d, first.entries[-1].cookie, 1, False))
    assert [e.name for e in rest.entries] == [b"x", b"y"] and rest.end
    mdt.unlink(d, b"b")
    assert mdt.find(d, b"b") is None and mdt.find(d, b"a") is not None


async def test_sequences_are_durable_before_they_are_given(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SEQUENCES_AHEAD", 2)
    await mdt.crash(recovering=False)
    body = wire.AllocateSequence()

    async def take() -> int:
        reply = await mdt.mdt.handlers[wire.AllocateSequence].execute(mdt.call(body), body)
        assert reply.width == SEQ_WIDTH
        return int(reply.seq)

    given = [await take() for _ in range(5)]
    await mdt.crash(recovering=False)
    given += [await take() for _ in range(3)]
    assert given[0] >= SEQ_NORMAL and given == sorted(set(given))


async def test_statfs_and_sync(mdt: World) -> None:
    space = mdt.do(wire.Statfs())
    assert 0 < space.bytes_available <= space.bytes_free <= space.bytes_total
    mdt.make(ROOT, b"f")
    body = wire.Sync()
    await mdt.mdt.handlers[wire.Sync].execute(mdt.call(body), body)
    assert mdt.mdt.last_committed == mdt.mdt.last_transno


async def test_the_root_survives_a_crash_unchanged(mdt: World) -> None:
    """Its version must stay, or replays of what was made in it would not fit."""
    before = mdt.inode(ROOT)
    await mdt.crash(recovering=False)
    assert mdt.inode(ROOT) == before
