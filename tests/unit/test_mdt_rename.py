"""Rename: every pair of what is moved and what is in the way, link counts, subtrees, exchange."""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from mdt_fixture import ALICE, BOB, ROOT, World

from lustrelite.ids import NO_FID, Fid
from lustrelite.recovery.versions import ABSENT
from lustrelite.tunables import limits
from lustrelite.wire import mdt as wire


@pytest.fixture
async def mdt(tmp_path: Path) -> AsyncIterator[World]:
    """An MDT on an empty store."""
    world = World(tmp_path)
    await world.start()
    yield world
    await world.stop()


def put(mdt: World, parent: Fid, name: bytes, kind: str) -> Fid | None:
    """Something of `kind` under `name`; None for "nothing"."""
    if kind == "nothing":
        return None
    if kind in ("dir", "full"):
        fid = mdt.mkdir(parent, name)
        if kind == "full":
            mdt.make(fid, b"inside")
        return fid
    return mdt.make(parent, name, stat.S_IFLNK | 0o777, target=b"x") if kind == "symlink" else mdt.make(parent, name)


KINDS = ("file", "symlink", "dir", "full", "nothing")
#   moved, in the way -> errno (0: it works)
MATRIX = {
    ("nothing", target): errno.ENOENT for target in KINDS
} | {
    (moved, target): {"dir": errno.EISDIR, "full": errno.EISDIR}.get(target, 0)
    for moved in ("file", "symlink") for target in KINDS
} | {
    (moved, target): {"file": errno.ENOTDIR, "symlink": errno.ENOTDIR, "full": errno.ENOTEMPTY}.get(target, 0)
    for moved in ("dir", "full") for target in KINDS
}  # fmt: skip


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("moved", "target"), [(m, t) for m in KINDS for t in KINDS])
async def test_what_may_replace_what(mdt: World, moved: str, target: str, across: bool) -> None:
    a = mdt.mkdir(ROOT, b"a")
    b = mdt.mkdir(ROOT, b"b") if across else a
    source, victim = put(mdt, a, b"s", moved), put(mdt, b, b"t", target)
    before = {fid: mdt.inode(fid) for fid in (a, b, source, victim) if fid is not None}
    body = wire.Rename(a, b"s", b, b"t", 0, mdt.tick())
    versions = (
        before[a].version,
        before[b].version,
        before[source].version if source else ABSENT,
        before[victim].version if victim else ABSENT,
    )
    if MATRIX[moved, target]:
        mdt.fails(MATRIX[moved, target], body)
        assert mdt.pre_versions() == versions
        return
    reply = mdt.do(body)
    assert mdt.pre_versions() == versions
    assert source is not None and mdt.last is not None
    assert reply == (victim or NO_FID, 0, False, source)
    assert mdt.find(a, b"s") is None and mdt.find(b, b"t") == source
    inode = mdt.inode(source)
    assert inode.version == mdt.last.transno and inode.ctime == mdt.now and inode.mtime == before[source].mtime
    assert (mdt.inode(a).version, mdt.inode(b).version) == versions[:2]
    assert mdt.inode(a).mtime == mdt.inode(b).ctime == mdt.now
    assert victim is None or not mdt.exists(victim)
    if stat.S_ISDIR(inode.mode):
        assert inode.parent == b


async def test_two_names_of_one_file(mdt: World) -> None:
    f = mdt.make(ROOT, b"f")
    mdt.link(f, ROOT, b"g")
    assert mdt.rename(ROOT, b"f", ROOT, b"g").fid == NO_FID
    assert mdt.find(ROOT, b"f") == mdt.find(ROOT, b"g") == f
    assert mdt.rename(ROOT, b"f", ROOT, b"f").fid == NO_FID


async def test_the_victims_other_names_stay(mdt: World) -> None:
    f, g = mdt.make(ROOT, b"f"), mdt.make(ROOT, b"g")
    mdt.link(g, ROOT, b"h")
    assert mdt.rename(ROOT, b"f", ROOT, b"g")[:3] == (g, 1, False)
    assert mdt.inode(g).nlink == 1 and mdt.find(ROOT, b"g") == f


async def test_an_open_victim_becomes_an_orphan(mdt: World) -> None:
    mdt.make(ROOT, b"f")
    handle, reply = mdt.open(ROOT, b"g", wire.OPEN_CREATE | wire.OPEN_WRITE)
    g = reply.attr.fid
    assert mdt.rename(ROOT, b"f", ROOT, b"g")[:3] == (g, 0, True)
    assert mdt.orphans() == [g]
    mdt.close(handle, g)
    assert not mdt.exists(g) and mdt.orphans() == []


async def test_no_directory_goes_below_itself(mdt: World) -> None:
    a = mdt.mkdir(ROOT, b"a")
    b = mdt.mkdir(a, b"b")
    c = mdt.mkdir(b, b"c")
    mdt.make(c, b"f")
    for target in (a, b, c):
        mdt.fails(errno.EINVAL, wire.Rename(ROOT, b"a", target, b"x", 0, 1))
    mdt.fails(errno.ENOTEMPTY, wire.Rename(b, b"c", ROOT, b"a", 0, 1))  # a is above b
    mdt.fails(errno.ENOTEMPTY, wire.Rename(c, b"f", ROOT, b"a", 0, 1))
    mdt.fails(errno.EINVAL, wire.Rename(ROOT, b"a", b, b"c", wire.RENAME_EXCHANGE, 1))
    mdt.fails(errno.EINVAL, wire.Rename(b, b"c", ROOT, b"a", wire.RENAME_EXCHANGE, 1))
    mdt.rename(a, b"b", ROOT, b"b")  # upwards is fine
    assert mdt.inode(b).parent == ROOT


async def test_dots_and_bad_flags(mdt: World) -> None:
    a = mdt.mkdir(ROOT, b"a")
    for name in (b".", b".."):
        mdt.fails(errno.EINVAL, wire.Rename(a, name, ROOT, b"x", 0, 1))
        mdt.fails(errno.EINVAL, wire.Rename(ROOT, b"a", ROOT, name, 0, 1))
    for flags in (wire.RENAME_EXCHANGE | wire.RENAME_NOREPLACE, 4):
        mdt.fails(errno.EINVAL, wire.Rename(ROOT, b"a", ROOT, b"x", flags, 1))
    mdt.fails(errno.ENAMETOOLONG, wire.Rename(ROOT, b"a", ROOT, b"x" * 256, 0, 1))


async def test_noreplace(mdt: World) -> None:
    f, g = mdt.make(ROOT, b"f"), mdt.make(ROOT, b"g")
    mdt.fails(errno.EEXIST, wire.Rename(ROOT, b"f", ROOT, b"g", wire.RENAME_NOREPLACE, 1))
    mdt.rename(ROOT, b"f", ROOT, b"h", wire.RENAME_NOREPLACE)
    assert (mdt.find(ROOT, b"h"), mdt.find(ROOT, b"g")) == (f, g)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("first", ["file", "dir", "full"])
@pytest.mark.parametrize("second", ["file", "dir", "full"])
async def test_exchange(mdt: World, first: str, second: str, across: bool) -> None:
    a = mdt.mkdir(ROOT, b"a")
    b = mdt.mkdir(ROOT, b"b") if across else a
    s, t = put(mdt, a, b"s", first), put(mdt, b, b"t", second)
    assert mdt.rename(a, b"s", b, b"t", wire.RENAME_EXCHANGE).fid == NO_FID
    assert mdt.find(a, b"s") == t and mdt.find(b, b"t") == s
    assert s is not None and t is not None and mdt.last is not None
    assert mdt.inode(s).version == mdt.inode(t).version == mdt.last.transno


async def test_exchange_needs_both(mdt: World) -> None:
    mdt.make(ROOT, b"f")
    mdt.fails(errno.ENOENT, wire.Rename(ROOT, b"f", ROOT, b"g", wire.RENAME_EXCHANGE, 1))


async def test_too_many_subdirectories(mdt: World, monkeypatch: pytest.MonkeyPatch) -> None:
    full = mdt.mkdir(ROOT, b"full")
    mdt.mkdir(full, b"x")
    mdt.mkdir(full, b"y")
    mdt.mkdir(ROOT, b"d")
    mdt.make(ROOT, b"f")
    mdt.make(full, b"g")
    monkeypatch.setattr(limits, "links_max", 4)
    mdt.fails(errno.EMLINK, wire.Rename(ROOT, b"d", full, b"z", 0, 1))
    mdt.fails(errno.EMLINK, wire.Rename(ROOT, b"d", full, b"g", wire.RENAME_EXCHANGE, 1))
    mdt.rename(full, b"x", full, b"z")
    mdt.rename(ROOT, b"d", full, b"z")  # replaces one
    mdt.rename(ROOT, b"f", full, b"f")


#   parent modes of source and target, sticky?, who, what -> errno
ACCESS = [
    (0o777, 0o777, BOB, 0),
    (0o1777, 0o777, BOB, errno.EPERM),  # the file is Alice's
    (0o1777, 0o777, ALICE, 0),
    (0o777, 0o1777, BOB, errno.EPERM),  # so is the victim
    (0o555, 0o777, ALICE, errno.EACCES),
    (0o777, 0o555, ALICE, errno.EACCES),
    (0o777, 0o666, ALICE, errno.EACCES),
    (0o700, 0o777, ALICE, errno.EACCES),
    (0o555, 0o555, (0, 0), 0),
]


@pytest.mark.parametrize(("source", "target", "who", "number"), ACCESS)
async def test_permissions(mdt: World, source: int, target: int, who: tuple[int, ...], number: int) -> None:
    a, b = mdt.mkdir(ROOT, b"a", 0o777), mdt.mkdir(ROOT, b"b", 0o777)
    mdt.make(a, b"f", cred=ALICE)
    mdt.make(b, b"g", cred=ALICE)
    mdt.setattr(a, mode=source)
    mdt.setattr(b, mode=target)
    body = wire.Rename(a, b"f", b, b"g", 0, mdt.tick())
    if number:
        mdt.fails(number, body, who)
    else:
        mdt.do(body, who)


async def test_a_directory_that_moves_must_be_writable(mdt: World) -> None:
    """Its ".." changes. Source: vfs_rename()"""
    a, b = mdt.mkdir(ROOT, b"a", 0o777), mdt.mkdir(ROOT, b"b", 0o777)
    mdt.mkdir(a, b"d", 0o555, ALICE)
    mdt.do(wire.Rename(a, b"d", a, b"e", 0, 1), ALICE)
    mdt.fails(errno.EACCES, wire.Rename(a, b"e", b, b"e", 0, 1), ALICE)


async def test_nothing_moves_into_a_removed_directory(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d")
    mdt.make(ROOT, b"f")
    handle, _ = mdt.open(ROOT, b"d", wire.OPEN_READ | wire.OPEN_DIRECTORY)
    mdt.rmdir(ROOT, b"d")
    mdt.fails(errno.ENOENT, wire.Rename(ROOT, b"f", d, b"f", 0, 1))
    mdt.close(handle, d)


async def test_a_directory_may_be_moved_deeper_than_a_path_can_name(mdt: World) -> None:
    """Who goes down step by step (mkdirat(2)) gets there, and a local file system lets him."""
    parent = ROOT
    for _ in range(limits.path_bytes_max // 2 + 1):
        parent = mdt.mkdir(parent, b"d")
    mdt.mkdir(ROOT, b"moved")
    mdt.rename(ROOT, b"moved", parent, b"moved")
    assert mdt.find(parent, b"moved") is not None
