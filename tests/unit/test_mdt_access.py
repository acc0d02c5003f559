"""Who may do what: permission tables, sticky and setgid directories, chmod, chown, utimes, xattr name spaces, striping."""

from __future__ import annotations

import errno
import random
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mdt_fixture import ALICE, BOB, DIRECTORY, REGULAR, ROOT, World

from lustrelite import acl
from lustrelite.ids import SEQ_NORMAL, Fid, make_fid
from lustrelite.mdt import access
from lustrelite.mdt.access import EXECUTE, READ, WRITE
from lustrelite.recovery.versions import ABSENT
from lustrelite.store import schema
from lustrelite.store.room import LARGE_BYTES
from lustrelite.wire import mdt as wire
from lustrelite.wire.message import Cred

ADMIN: Cred = (0, 0)
FRIEND: Cred = (1002, 1002, 1000)  # in Alice's group


@pytest.fixture
async def mdt(tmp_path: Path) -> AsyncIterator[World]:
    """An MDT whose root everybody may write to."""
    world = World(tmp_path)
    await world.start()
    world.setattr(ROOT, mode=0o777)
    yield world
    await world.stop()


async def test_permits_is_exhaustively_what_the_bits_say(mdt: World) -> None:
    assert READ | WRITE | EXECUTE == 7
    for mode in range(0o1000):
        inode = mdt.inode(ROOT)._replace(mode=stat.S_IFREG | mode, uid=1000, gid=1000)
        for want in range(8):
            for who, bits in ((ALICE, mode >> 6), (FRIEND, mode >> 3), (BOB, mode)):
                assert access.permits(inode, who, want) == (bits & 7 & want == want)
            assert access.permits(inode, ADMIN, want) == (not want & EXECUTE or bool(mode & 0o111))
            assert access.permits(inode._replace(mode=stat.S_IFDIR | mode), ADMIN, want)


async def test_a_list_with_an_empty_mask_counts_only_as_a_mode(mdt: World) -> None:
    """As on ext4: who is named there is one of the others, unless he is in the group."""
    entries = (
        acl.Entry(acl.USER_OBJ, 6), acl.Entry(acl.USER, 7, BOB[0]), acl.Entry(acl.GROUP_OBJ, 4), acl.Entry(acl.MASK, 0),
        acl.Entry(acl.OTHER, 4),
    )  # fmt: skip
    inode = mdt.inode(ROOT)._replace(mode=stat.S_IFREG | 0o604, uid=1000, gid=1000, acl=acl.pack(entries))
    assert access.permits(inode, BOB, READ) and not access.permits(inode, BOB, WRITE)
    assert not access.permits(inode, (BOB[0], 1000), READ) and not access.permits(inode, FRIEND, READ)
    assert access.permits(inode, ALICE, READ | WRITE)


@pytest.mark.parametrize(("mode", "flags", "of_file", "makes", "removes"), [
    (0o777, 0x10, 0, errno.EPERM, errno.EPERM),  # immutable
    (0o775, 0x10, 0, errno.EPERM, errno.EPERM),
    (0o776, 0x10, 0, errno.EACCES, errno.EACCES),  # who may not search it learns nothing of it
    (0o777, 0x20, 0, 0, errno.EPERM),  # may only be added to
    (0o775, 0x20, 0, errno.EACCES, errno.EACCES),
    (0o777, 0, 0x30, 0, errno.EPERM),
    (0o775, 0, 0x30, errno.EACCES, errno.EACCES),
])  # fmt: skip
async def test_which_error_counts_first(
    mdt: World, mode: int, flags: int, of_file: int, makes: int, removes: int
) -> None:
    """As ext4 answers."""
    d = mdt.mkdir(ROOT, b"d", mode)
    f = mdt.make(d, b"f")
    mdt.setattr(d, flags=flags, mode=mode)
    mdt.setattr(f, flags=of_file)
    mdt.fails(removes, wire.Unlink(d, b"f", 0, 1), BOB)
    mdt.fails(removes, wire.Rename(d, b"f", ROOT, b"g", 0, 1), BOB)
    if makes:
        mdt.fails(makes, mdt.new(d, b"g"), BOB)
    else:
        mdt.make(d, b"g", cred=BOB)


async def test_search_and_write_permission_of_directories(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d", 0o755, ALICE)
    f = mdt.make(d, b"f", cred=ALICE)
    mdt.fails(errno.EACCES, mdt.new(d, b"x"), BOB)
    mdt.fails(errno.EEXIST, mdt.new(d, b"f"), BOB)
    mdt.fails(errno.EACCES, wire.Unlink(d, b"f", 0, 1), BOB)
    mdt.fails(errno.EACCES, wire.Link(f, d, b"g", 1), BOB)
    mdt.fails(errno.EACCES, mdt.opening(d, b"x", wire.OPEN_CREATE), BOB)
    assert mdt.do(wire.Lookup(d, b"f"), BOB).fid == f
    assert mdt.do(wire.Readdir(d, 0, 10, False), BOB).entries
    mdt.setattr(d, mode=0o744)
    mdt.fails(errno.EACCES, wire.Lookup(d, b"f"), BOB)
    mdt.fails(errno.EACCES, mdt.new(d, b"f"), BOB)
    mdt.fails(errno.EACCES, mdt.opening(d, b"f", wire.OPEN_READ), BOB)
    mdt.setattr(d, mode=0o711)
    mdt.fails(errno.EACCES, wire.Readdir(d, 0, 10, False), BOB)
    mdt.setattr(d, mode=0)
    assert mdt.do(wire.Lookup(d, b"f")).fid == f  # root


async def test_a_listing_goes_on_after_a_chmod(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d", 0o755, ALICE)
    mdt.make(d, b"f", cred=ALICE)
    handle, _ = mdt.open(ROOT, b"d", wire.OPEN_READ | wire.OPEN_DIRECTORY, BOB, client="b")
    mdt.setattr(d, mode=0o700)
    assert mdt.do(wire.Readdir(d, 0, 10, False), BOB, client="b").entries
    mdt.close(handle, d, client="b")
    mdt.fails(errno.EACCES, wire.Readdir(d, 0, 10, False), BOB, client="b")


#   flags, mode, who -> errno
OPENS = [
    (wire.OPEN_READ, 0o600, ALICE, 0),
    (wire.OPEN_READ, 0o600, BOB, errno.EACCES),
    (wire.OPEN_READ, 0o640, FRIEND, 0),
    (wire.OPEN_WRITE, 0o640, FRIEND, errno.EACCES),
    (wire.OPEN_READ | wire.OPEN_WRITE, 0o644, BOB, errno.EACCES),
    (wire.OPEN_READ | wire.OPEN_TRUNC, 0o644, BOB, errno.EACCES),
    (wire.OPEN_WRITE, 0o000, ADMIN, 0),
    (wire.OPEN_EXEC, 0o644, ADMIN, errno.EACCES),
    (wire.OPEN_EXEC, 0o744, ADMIN, 0),
    (wire.OPEN_EXEC, 0o744, BOB, errno.EACCES),
    (wire.OPEN_EXEC, 0o755, BOB, 0),
    (wire.OPEN_READ, 0o044, ALICE, errno.EACCES),  # the owner's bits count, and no others
]


@pytest.mark.parametrize(("flags", "mode", "who", "number"), OPENS)
@pytest.mark.parametrize("by_fid", [False, True])
async def test_opens(mdt: World, flags: int, mode: int, who: Cred, number: int, by_fid: bool) -> None:
    f = mdt.make(ROOT, b"f", stat.S_IFREG | mode, ALICE)
    body = mdt.opening(ROOT, b"f", flags)
    if by_fid:
        body = body._replace(fid=f, flags=flags | wire.OPEN_BY_FID)
    if number:
        mdt.fails(number, body, who)
    else:
        assert mdt.do(body, who).attr.fid == f


async def test_a_sticky_directory(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"tmp", 0o1777, ALICE)
    for name in (b"a", b"b", b"c"):
        mdt.make(d, name, cred=BOB)
    mdt.fails(errno.EPERM, wire.Unlink(d, b"a", 0, 1), FRIEND)
    mdt.unlink(d, b"a", BOB)  # the file's owner
    mdt.unlink(d, b"b", ALICE)  # the directory's
    mdt.unlink(d, b"c")  # root


async def test_a_setgid_directory_gives_its_group(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d", 0o777)
    mdt.setattr(d, gid=2000)
    mdt.setattr(d, mode=0o2777)
    assert mdt.inode(mdt.make(d, b"f", cred=ALICE)).gid == 2000
    sub = mdt.inode(mdt.mkdir(d, b"s", 0o755, ALICE))
    assert sub.gid == 2000 and sub.mode & stat.S_ISGID
    assert not mdt.inode(mdt.make(d, b"g", stat.S_IFREG | 0o2755, ALICE)).mode & stat.S_ISGID  # not her group
    assert mdt.inode(mdt.make(d, b"h", stat.S_IFREG | 0o2755, BOB)).mode & stat.S_ISGID
    assert mdt.inode(mdt.make(ROOT, b"f", cred=ALICE)).gid == 1000


#   who, old mode, values -> errno or what becomes of the mode
CHANGES: list[tuple[Cred, int, dict[str, int], int, int]] = [
    (ALICE, 0o644, {"mode": 0o600}, 0, 0o600),
    (BOB, 0o644, {"mode": 0o600}, errno.EPERM, 0),
    (ADMIN, 0o644, {"mode": 0o4755}, 0, 0o4755),
    (ALICE, 0o755, {"mode": 0o2755}, 0, 0o2755),
    (ALICE, 0o755, {"mode": 0o1755}, 0, 0o1755),
    (ALICE, 0o644, {"uid": 1001}, errno.EPERM, 0),
    (ALICE, 0o6755, {"uid": 1000}, 0, 0o755),  # no change, but a chown
    (BOB, 0o644, {"uid": 1001}, errno.EPERM, 0),
    (ADMIN, 0o6755, {"uid": 1001}, 0, 0o755),
    (ADMIN, 0o2644, {"uid": 1001}, 0, 0o2644),  # without group execution it is no set-id bit
    (ALICE, 0o644, {"gid": 2000}, errno.EPERM, 0),
    (ALICE, 0o6755, {"gid": 1000}, 0, 0o755),
    (ADMIN, 0o644, {"gid": 2000, "uid": 7}, 0, 0o644),
    (BOB, 0o644, {"gid": 2000}, errno.EPERM, 0),
    (ALICE, 0o4777, {"size": 0}, 0, 0o777),
    (BOB, 0o6777, {"size": 0}, 0, 0o777),
    (BOB, 0o644, {"size": 0}, errno.EACCES, 0),
    (ADMIN, 0o4755, {"size": 0}, 0, 0o4755),
    (ALICE, 0o644, {"flags": 0x80}, 0, 0o644),
    (ALICE, 0o644, {"flags": 0x10}, errno.EPERM, 0),  # immutable
    (BOB, 0o666, {"flags": 0x80}, errno.EPERM, 0),
    (ADMIN, 0o644, {"flags": 0x30}, 0, 0o644),
]


@pytest.mark.parametrize(("who", "old", "values", "number", "mode"), CHANGES)
async def test_setattr(mdt: World, who: Cred, old: int, values: dict[str, int], number: int, mode: int) -> None:
    f = mdt.make(ROOT, b"f", REGULAR, ALICE)
    mdt.setattr(f, mode=old)
    version = mdt.inode(f).version
    body = mdt.setting(f, **values)
    if number:
        mdt.fails(number, body, who)
        return
    attr = mdt.do(body, who)
    assert stat.S_IMODE(attr.mode) == mode and attr.ctime == body.time
    for name in ("uid", "gid", "flags"):
        assert name not in values or getattr(attr, name) == values[name]
    if "size" in values:  # no version change
        assert mdt.pre_versions() == () and attr.version == version and attr.mtime == body.time
    else:
        assert mdt.last is not None
        assert mdt.pre_versions() == (version,) and attr.version == mdt.last.transno


async def test_the_owner_gives_to_a_group_of_hers(mdt: World) -> None:
    f = mdt.make(ROOT, b"f", cred=BOB)
    assert mdt.setattr(f, BOB, gid=2000).gid == 2000
    mdt.setattr(f, gid=3000)
    assert mdt.setattr(f, BOB, mode=0o2755).mode & 0o7777 == 0o755  # not in the file's group


@pytest.mark.parametrize(("who", "mode", "explicit", "number"), [
    (ALICE, 0o444, True, 0), (ALICE, 0o444, False, 0), (BOB, 0o666, True, errno.EPERM), (BOB, 0o666, False, 0),
    (BOB, 0o644, False, errno.EACCES), (ADMIN, 0o000, True, 0),
])  # fmt: skip
async def test_utimes(mdt: World, who: Cred, mode: int, explicit: bool, number: int) -> None:
    f = mdt.make(ROOT, b"f", stat.S_IFREG | mode, ALICE)
    version = mdt.inode(f).version
    body = mdt.setting(f, explicit=explicit, atime=5, mtime=6)
    if number:
        mdt.fails(number, body, who)
        return
    attr = mdt.do(body, who)
    assert (attr.atime, attr.mtime, attr.ctime, attr.version) == (5, 6, body.time, version)
    assert mdt.pre_versions() == ()


async def test_an_open_handle_vouches_for_a_truncation(mdt: World) -> None:
    f = mdt.make(ROOT, b"f", REGULAR, ALICE)
    handle, _ = mdt.open(ROOT, b"f", wire.OPEN_WRITE, ALICE)
    read, _ = mdt.open(ROOT, b"f", wire.OPEN_READ, ALICE)
    mdt.setattr(f, mode=0)
    mdt.fails(errno.EACCES, mdt.setting(f, size=0), BOB)
    mdt.fails(errno.EACCES, mdt.setting(f, size=0, handle=read), BOB)
    mdt.fails(errno.EACCES, mdt.setting(f, size=0, handle=handle), BOB, client="b")
    mdt.do(mdt.setting(f, size=0, handle=handle), BOB)
    mdt.close(handle, f)
    mdt.close(read, f)


async def test_setattr_of_odd_things(mdt: World) -> None:
    mdt.fails(errno.EISDIR, mdt.setting(ROOT, size=0))
    fifo = mdt.make(ROOT, b"p", stat.S_IFIFO | 0o600)
    mdt.fails(errno.EINVAL, mdt.setting(fifo, size=0))
    mdt.fails(errno.EINVAL, mdt.setting(fifo, uid=-1))
    mdt.fails(errno.EINVAL, mdt.setting(fifo)._replace(valid=0x1000))
    mdt.fails(errno.ENOENT, mdt.setting(make_fid(SEQ_NORMAL, 999), mode=0))
    assert mdt.pre_versions() == (ABSENT,)
    assert mdt.setattr(fifo) == mdt.do(wire.Getattr(fifo))


# ---------------------------------------------------------------- extended attributes


def setting(mdt: World, fid: Fid, name: bytes, value: bytes | None, flags: int = 0) -> wire.Setxattr:
    return wire.Setxattr(fid, name, value, flags, mdt.tick())


async def test_xattrs_come_and_go(mdt: World) -> None:
    f = mdt.make(ROOT, b"f")
    version = mdt.inode(f).version
    mdt.do(setting(mdt, f, b"user.a", b"1", wire.XATTR_CREATE))
    assert mdt.last is not None
    assert mdt.pre_versions() == (version,) and mdt.inode(f).version == mdt.last.transno
    assert mdt.do(wire.Getxattr(f, b"user.a")).value == b"1"
    mdt.fails(errno.EEXIST, setting(mdt, f, b"user.a", b"2", wire.XATTR_CREATE))
    mdt.fails(errno.ENODATA, setting(mdt, f, b"user.b", b"2", wire.XATTR_REPLACE))
    mdt.fails(errno.EINVAL, setting(mdt, f, b"user.b", b"2", 8))
    mdt.do(setting(mdt, f, b"user.a", b"2", wire.XATTR_REPLACE))
    mdt.do(setting(mdt, f, b"user.empty", b""))
    assert mdt.do(wire.Getxattr(f, b"user.a")).value == b"2"
    assert mdt.do(wire.Listxattr(f)).names == (b"user.a", b"user.empty")
    mdt.do(setting(mdt, f, b"user.a", None))
    mdt.fails(errno.ENODATA, setting(mdt, f, b"user.a", None))
    mdt.fails(errno.ENODATA, wire.Getxattr(f, b"user.a"))
    mdt.fails(errno.E2BIG, setting(mdt, f, b"user.a", b"x" * 65537))
    mdt.do(setting(mdt, f, b"user.a", b"x" * 65536))
    mdt.fails(errno.ENOENT, wire.Listxattr(make_fid(SEQ_NORMAL, 999)))
    mdt.unlink(ROOT, b"f")  # and its attributes: see World.check


async def test_large_values_are_kept_in_pieces(mdt: World) -> None:
    f, other = mdt.make(ROOT, b"f"), mdt.make(ROOT, b"g")
    mdt.do(setting(mdt, f, b"user.ab", b"neighbour"))
    mdt.do(setting(mdt, other, b"user.a", b"y" * 9000))
    for size in (0, 3999, 4000, 4001, 8000, 65536, 12_000, 11_999, 1, 4000):
        value = random.Random(size).randbytes(size)
        mdt.do(setting(mdt, f, b"user.a", value))
        assert mdt.do(wire.Getxattr(f, b"user.a")).value == value
        assert mdt.do(wire.Listxattr(f)).names == (b"user.a", b"user.ab")
        every = mdt.do(wire.Getxattrs(f))
        assert every.complete == (size <= 4000)
        rows = {row.name: row.value for row in every.rows}
        assert rows == ({b"user.a": value, b"user.ab": b"neighbour"} if every.complete else {})
        assert max(len(value) for _, value in mdt.mdt.store.scan(schema.XATTRS)) <= LARGE_BYTES
    mdt.do(setting(mdt, f, b"user.a", b"x" * 65536))
    mdt.do(setting(mdt, f, b"user.a", None))
    assert mdt.do(wire.Listxattr(f)).names == (b"user.ab",)
    assert mdt.do(wire.Getxattr(other, b"user.a")).value == b"y" * 9000
    mdt.do(setting(mdt, f, b"user.a", b"x" * 65536))
    mdt.unlink(ROOT, b"f")
    assert {fid for fid, _, _ in map(schema.split_xattr_key, dict(mdt.mdt.store.scan(schema.XATTRS)))} == {other}


async def test_a_file_has_no_more_names_than_a_list_can_hold(mdt: World) -> None:
    f = mdt.make(ROOT, b"f")
    for i in range(258):
        mdt.do(setting(mdt, f, b"user.%03d" % i + b"x" * 245, b""))
    mdt.fails(errno.ENOSPC, setting(mdt, f, b"user.zzz" + b"x" * 245, b""))
    mdt.do(setting(mdt, f, b"user.000" + b"x" * 245, b"new value"))


#   name, who, what it is on, write -> errno
XATTRS: list[tuple[bytes, Cred, str, bool, int]] = [
    (b"user.x", ALICE, "file", True, 0),
    (b"user.x", BOB, "file", True, errno.EACCES),
    (b"user.x", BOB, "file", False, 0),
    (b"user.x", ALICE, "fifo", True, errno.EPERM),
    (b"user.x", ALICE, "fifo", False, errno.ENODATA),
    (b"user.x", BOB, "sticky", True, errno.EPERM),
    (b"user.x", ALICE, "sticky", True, 0),
    (b"trusted.x", ALICE, "file", True, errno.EPERM),
    (b"trusted.x", ALICE, "file", False, errno.ENODATA),
    (b"trusted.x", ADMIN, "file", True, 0),
    (b"security.x", ALICE, "file", True, errno.EPERM),
    (b"security.x", ALICE, "file", False, 0),
    (b"security.x", ADMIN, "fifo", True, 0),
    (b"system.posix_acl_access", ADMIN, "file", True, errno.EINVAL),
    (b"system.posix_acl_access", BOB, "file", True, errno.EINVAL),
    (b"system.other", ADMIN, "file", True, errno.ENOTSUP),
    (b"other.x", ADMIN, "file", True, errno.ENOTSUP),
    (b"user.", ADMIN, "file", True, errno.EINVAL),
    (b"", ADMIN, "file", True, errno.ERANGE),
    (b"user." + b"x" * 251, ADMIN, "file", True, errno.ERANGE),
]


@pytest.mark.parametrize(("name", "who", "what", "write", "number"), XATTRS)
async def test_xattr_permissions(mdt: World, name: bytes, who: Cred, what: str, write: bool, number: int) -> None:
    modes = {"file": REGULAR, "fifo": stat.S_IFIFO | 0o644, "sticky": stat.S_IFDIR | 0o1777}
    f = mdt.make(ROOT, b"f", modes[what], ALICE)
    body: Any = setting(mdt, f, name, b"v")
    if not write:
        if number in (0, errno.ENODATA) and not (name.startswith(b"user") and what == "fifo"):
            mdt.do(body)
        body = wire.Getxattr(f, name)
    if number:
        mdt.fails(number, body, who)
    else:
        mdt.do(body, who)


async def test_trusted_names_are_for_root_only(mdt: World) -> None:
    f = mdt.make(ROOT, b"f", cred=ALICE)
    for name in (b"trusted.t", b"user.u", b"security.s"):
        mdt.do(setting(mdt, f, name, b"v"))
    assert mdt.do(wire.Listxattr(f), ALICE).names == (b"security.s", b"user.u")
    assert len(mdt.do(wire.Listxattr(f)).names) == 3


# ---------------------------------------------------------------- striping


async def test_default_striping_is_inherited(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d", 0o777, ALICE)
    hint = wire.StripeHint(-1, 1 << 16, -1)
    mdt.fails(errno.EPERM, wire.SetDirStripe(d, hint, 1), BOB)
    version = mdt.inode(d).version
    mdt.do(wire.SetDirStripe(d, hint, mdt.tick()), ALICE)
    assert mdt.pre_versions() == (version,)
    sub = mdt.mkdir(d, b"sub")
    assert mdt.do(wire.GetDirStripe(sub)).hint == hint
    f = mdt.make(sub, b"f")
    assert len(mdt.objects(f)) == 2
    layout = mdt.inode(f).layout
    assert layout is not None and layout.stripe_size == 1 << 16
    g = mdt.make(sub, b"g", hint=wire.StripeHint(1, 0, 1))
    assert [ost for ost, _ in mdt.objects(g)] == [1]
    mdt.do(wire.SetDirStripe(d, None, mdt.tick()))
    assert mdt.do(wire.GetDirStripe(d)).hint is None
    assert mdt.do(wire.GetDirStripe(sub)).hint == hint
    mdt.do(wire.SetDirStripe(sub, wire.StripeHint(0, 0, -1), mdt.tick()))
    assert mdt.do(wire.GetDirStripe(sub)).hint is None
    mdt.setattr(d, flags=0x10)
    mdt.fails(errno.EPERM, wire.SetDirStripe(d, hint, 1))  # immutable: it is an extended attribute
    mdt.fails(errno.ENOTDIR, wire.SetDirStripe(f, hint, 1))
    mdt.fails(errno.ENOTDIR, wire.GetDirStripe(f))


@pytest.mark.parametrize("hint", [(-2, 0, -1), (2001, 0, -1), (1, 1000, -1), (1, -65536, -1), (1, 1 << 32, -1), (1, 0, -2)])
async def test_impossible_striping_is_refused(mdt: World, hint: tuple[int, int, int]) -> None:
    mdt.fails(errno.EINVAL, wire.SetDirStripe(ROOT, wire.StripeHint(*hint), 1))
    mdt.fails(errno.EINVAL, mdt.new(ROOT, b"f")._replace(hint=wire.StripeHint(*hint)))
    mdt.fails(errno.EINVAL, mdt.new(ROOT, b"d", stat.S_IFDIR | 0o755)._replace(hint=wire.StripeHint(*hint)))


# ---------------------------------------------------------------- access control lists

CAROL: Cred = (1002, 1002)


def listed(user: int = 6, mask: int = 6, other: int = 0) -> bytes:
    """A list that lets BOB do `user`."""
    entries = ((acl.USER_OBJ, 7), (acl.USER, user, BOB[0]), (acl.GROUP_OBJ, 0), (acl.MASK, mask), (acl.OTHER, other))
    return acl.pack(tuple(acl.Entry(*entry) for entry in entries))


async def test_a_list_decides_who_may_open(mdt: World) -> None:
    f = mdt.make(ROOT, b"f", stat.S_IFREG | 0o600, ALICE)
    mdt.fails(errno.EACCES, mdt.opening(ROOT, b"f", wire.OPEN_READ), BOB)
    mdt.fails(errno.EPERM, setting(mdt, f, acl.ACCESS, listed()), BOB)
    version = mdt.inode(f).version
    mdt.do(setting(mdt, f, acl.ACCESS, listed()), ALICE)
    assert mdt.pre_versions() == (version,)
    assert mdt.inode(f).mode == stat.S_IFREG | 0o760  # the group bits are the mask
    assert mdt.do(wire.Getattr(f)).acl == mdt.do(wire.Getxattr(f, acl.ACCESS)).value == listed()
    handle, _ = mdt.open(ROOT, b"f", wire.OPEN_READ | wire.OPEN_WRITE, BOB)
    mdt.close(handle, f)
    mdt.fails(errno.EACCES, mdt.opening(ROOT, b"f", wire.OPEN_READ), CAROL)
    mdt.setattr(f, ALICE, mode=0o640)
    assert mdt.inode(f).acl == acl.with_mode(listed(), 0o640)
    mdt.fails(errno.EACCES, mdt.opening(ROOT, b"f", wire.OPEN_WRITE), BOB)
    assert mdt.do(wire.Listxattr(f)).names == (acl.ACCESS,)
    mdt.do(setting(mdt, f, acl.ACCESS, None), ALICE)
    mdt.fails(errno.ENODATA, wire.Getxattr(f, acl.ACCESS))
    assert mdt.inode(f).mode == stat.S_IFREG | 0o640


async def test_a_list_that_says_no_more_than_the_mode_is_the_mode(mdt: World) -> None:
    f = mdt.make(ROOT, b"f", stat.S_IFREG | 0o2755, ALICE)
    mdt.setattr(f, gid=7)
    mdt.setattr(f, mode=0o2755)
    plain = acl.pack((acl.Entry(acl.USER_OBJ, 6), acl.Entry(acl.GROUP_OBJ, 4), acl.Entry(acl.OTHER, 1)))
    mdt.do(setting(mdt, f, acl.ACCESS, plain), ALICE)
    assert mdt.inode(f).mode == stat.S_IFREG | 0o641 and not mdt.inode(f).acl  # and no setgid bit of a foreign group


async def test_lists_that_are_refused(mdt: World) -> None:
    f, d = mdt.make(ROOT, b"f"), mdt.mkdir(ROOT, b"d")
    link = mdt.make(ROOT, b"l", stat.S_IFLNK | 0o777, target=b"f")
    mdt.fails(errno.EINVAL, setting(mdt, f, acl.ACCESS, b"\2\0\0\0x"))
    mdt.fails(errno.EACCES, setting(mdt, f, acl.DEFAULT, listed()))
    mdt.do(setting(mdt, f, acl.DEFAULT, None))
    for body in (setting(mdt, link, acl.ACCESS, listed()), wire.Getxattr(link, acl.ACCESS)):
        mdt.fails(errno.ENOTSUP, body)
    mdt.fails(errno.ENODATA, wire.Getxattr(d, acl.DEFAULT))
    mdt.fails(errno.EPERM, setting(mdt, d, acl.DEFAULT, listed()), BOB)


async def test_what_is_made_in_a_directory_with_a_default_list(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d", 0o777, ALICE)
    mdt.do(setting(mdt, d, acl.DEFAULT, listed(user=7, mask=7, other=5)), ALICE)
    assert mdt.do(wire.Getattr(d)).xattrs and mdt.inode(d).mode == DIRECTORY | 0o777
    made = wire.Create(d, b"f", mdt.fid(), stat.S_IFREG | 0o666, 0, b"", mdt.tick(), None, None, 0o777)
    assert mdt.do(made, ALICE).mode == stat.S_IFREG | 0o664  # no umask
    assert mdt.inode(made.fid).acl == listed(user=7, mask=6, other=4).replace(b"\1\0\7", b"\1\0\6")
    below = mdt.mkdir(d, b"below", 0o700)
    assert mdt.inode(below).default_acl == mdt.inode(d).default_acl and mdt.inode(below).mode == DIRECTORY & ~0o777 | 0o700
    handle, reply = mdt.open(d, b"g", wire.OPEN_WRITE | wire.OPEN_CREATE, ALICE)
    assert reply.attr.acl and reply.attr.mode == stat.S_IFREG | 0o644
    mdt.close(handle, reply.attr.fid)
    link = mdt.make(d, b"l", stat.S_IFLNK | 0o777, target=b"f")
    assert mdt.inode(link).mode == stat.S_IFLNK | 0o777 and not mdt.inode(link).acl
    again = mdt.fid()
    mdt.do(wire.Create(ROOT, b"h", again, stat.S_IFREG | 0o666, 0, b"", mdt.tick(), None, None, 0o27))
    assert mdt.inode(again).mode == stat.S_IFREG | 0o640


async def test_all_extended_attributes_at_once(mdt: World) -> None:
    d = mdt.mkdir(ROOT, b"d")
    assert mdt.do(wire.Getxattrs(d)) == wire.Xattrs((), True) and not mdt.do(wire.Getattr(d)).xattrs
    mdt.do(setting(mdt, d, b"user.a", b"1"))
    mdt.do(setting(mdt, d, acl.ACCESS, listed()))
    mdt.do(setting(mdt, d, acl.DEFAULT, listed()))
    assert mdt.do(wire.Getxattrs(d)) == wire.Xattrs(((acl.DEFAULT, listed()), (b"user.a", b"1")), True)
    mdt.do(setting(mdt, d, b"user.b", b"x" * 65500))
    assert mdt.do(wire.Getxattrs(d)) == wire.Xattrs((), False)


async def test_a_capability_goes_with_the_content_and_with_the_owner(mdt: World) -> None:
    changes: list[Any] = [
        lambda f: mdt.setting(f, uid=7),
        lambda f: mdt.setting(f, size=0),
        lambda f: mdt.opening(ROOT, b"f", wire.OPEN_WRITE | wire.OPEN_TRUNC),
    ]
    for change in changes:
        f = mdt.make(ROOT, b"f")
        mdt.do(setting(mdt, f, b"security.capability", b"c"))
        mdt.do(setting(mdt, f, b"user.a", b"1"))
        mdt.setattr(f, mode=0o755)
        assert mdt.do(wire.Getxattr(f, b"security.capability")).value == b"c"
        mdt.do(change(f))
        assert mdt.do(wire.Listxattr(f)).names == (b"user.a",)
        mdt.unlink(ROOT, b"f")


@pytest.mark.parametrize(
    ("kind", "mode", "who", "after"),
    [
        (stat.S_IFREG, 0o6755, ADMIN, 0o755),
        (stat.S_IFREG, 0o2745, ADMIN, 0o2745),  # mandatory locking, as it once was
        (stat.S_IFIFO, 0o6755, ADMIN, 0o755),
        (stat.S_IFDIR, 0o6755, ADMIN, 0o6755),
        (stat.S_IFREG, 0o6755, ALICE, 0o755),
        (stat.S_IFREG, 0o2745, ALICE, 0o745),  # of a group that is not hers
    ],
)
async def test_a_chown_takes_set_id_bits_of_all_but_directories(mdt: World, kind: int, mode: int, who: Cred, after: int) -> None:
    f = mdt.make(ROOT, b"f", kind | 0o644, ALICE)
    mdt.setattr(f, gid=7)
    mdt.setattr(f, mode=mode)
    mdt.setattr(f, who, uid=ALICE[0])
    assert mdt.inode(f).mode == kind | after


async def test_an_open_file_is_no_right_to_touch_its_times(mdt: World) -> None:
    f = mdt.make(ROOT, b"f", stat.S_IFREG | 0o666, ALICE)
    handle, _ = mdt.open(ROOT, b"f", wire.OPEN_WRITE, BOB)
    mdt.setattr(f, ALICE, mode=0o600)
    mdt.fails(errno.EACCES, mdt.setting(f, mtime=5, handle=handle), BOB)
    mdt.do(mdt.setting(f, mtime=5, size=0, handle=handle), BOB)  # but to truncate it
    mdt.close(handle, f)
