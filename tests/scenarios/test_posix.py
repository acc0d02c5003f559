"""What POSIX asks of several clients and of a recovery: access lists, extended attributes, files without names.

Source: lustre/tests/sanity.sh and sanityn.sh, in so far as a test names one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from typing import Any

import pytest
from file_model import FileModel
from mounts import Asked, Mount, drop_locks, two_mounts, who_caches
from steps import refused

from lustrelite import acl
from lustrelite.wire.ost import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, Fallocate

ALICE, BOB = 1000, 1001


def listed(user: int, mask: int = 7) -> bytes:
    """A list that lets BOB do `user`."""
    entries = ((acl.USER_OBJ, 7), (acl.USER, user, BOB), (acl.GROUP_OBJ, 0), (acl.MASK, mask), (acl.OTHER, 0))
    return acl.pack(tuple(acl.Entry(*entry) for entry in entries))


def as_user(mount: Mount, uid: int) -> Mount:
    """The same mount seen by another user."""
    return Mount(mount.client, mount.client.fs.as_user(uid, uid))


# access control lists -------------------------------------------------------------------------------------------


@who_caches
async def test_a_list_given_on_one_mount_counts_on_the_other(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.mkdir("/u/d", 0o700)
        await a.write_file("/u/d/f", b"data", 0o600)
        bob = as_user(b, BOB)
        await a.chmod("/u", 0o755)
        for _ in range(2):
            with refused(errno.EACCES):
                await bob.stat("/u/d/f")
            await a.setxattr("/u/d", acl.ACCESS, listed(1))
            await a.setxattr("/u/d/f", acl.ACCESS, listed(4))
            assert stat.S_IMODE((await bob.stat("/u/d/f")).mode) == 0o770
            assert await bob.read_file("/u/d/f") == b"data"
            with refused(errno.EACCES):
                await bob.open("/u/d/f", os.O_WRONLY)
            assert await bob.getxattr("/u/d/f", acl.ACCESS) == listed(4)
            await a.chmod("/u/d/f", 0o700)  # the mask
            with refused(errno.EACCES):
                await bob.read_file("/u/d/f")
            await a.removexattr("/u/d", acl.ACCESS)
            with refused(errno.EACCES):
                await bob.stat("/u/d/f")


async def test_lists_survive_an_mds_crash(cluster: Any) -> None:
    """A chmod, and a create under a default list, are replayed with what was there."""
    async with two_mounts(cluster, "ab") as (c, a, b):
        c.mds.hold_commits()
        await a.mkdir("/u/d", 0o777)
        await a.setxattr("/u/d", acl.DEFAULT, listed(7))
        await a.create("/u/d/f", 0o666, umask=0o777)
        await a.setxattr("/u/d", acl.ACCESS, listed(5))
        await a.chmod("/u/d", 0o710)
        await c.mds.kill()
        await c.mds.start()
        await c.settle()
        assert await b.getxattr("/u/d", acl.ACCESS) == acl.with_mode(listed(5), 0o710)
        assert await b.getxattr("/u/d", acl.DEFAULT) == listed(7)
        found = await b.stat("/u/d/f")
        assert stat.S_IMODE(found.mode) == 0o660
        mode, access, _ = acl.inherited(listed(7), stat.S_IFREG | 0o666)
        assert mode == found.mode and await b.getxattr("/u/d/f", acl.ACCESS) == access
        c.saw("import.replayed")


# extended attributes --------------------------------------------------------------------------------------------


@who_caches
async def test_extended_attributes_of_two_mounts(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.create("/u/f")
        for mount, other in ((a, b), (b, a)):
            with refused(errno.ENODATA):
                await other.getxattr("/u/f", "user.x")
            await mount.setxattr("/u/f", "user.x", b"1")
            await mount.setxattr("/u/f", "user.y", b"2")
            assert await other.getxattr("/u/f", "user.x") == await mount.getxattr("/u/f", "user.x") == b"1"
            assert await other.listxattr("/u/f") == ["user.x", "user.y"]
            await mount.setxattr("/u/f", "user.x", b"3", os.XATTR_REPLACE)
            assert await other.getxattr("/u/f", "user.x") == b"3"
            await other.removexattr("/u/f", "user.x")
            with refused(errno.ENODATA):
                await mount.getxattr("/u/f", "user.x")
            await other.removexattr("/u/f", "user.y")
            assert await mount.listxattr("/u/f") == []


async def test_extended_attributes_are_asked_for_once(cluster: Any) -> None:
    """Kernels ask for security.capability before every write, and `ls -l` for a list of every file."""
    async with two_mounts(cluster, "ab") as (c, a, b):
        await a.create("/u/f")
        await drop_locks(c, c.a)
        await a.lstat("/u/f")
        with Asked(c.a) as asked:
            for name in ("security.capability", "system.posix_acl_access", "user.x", "security.capability"):
                with refused(errno.ENODATA):
                    await a.getxattr("/u/f", name)
            assert await a.listxattr("/u/f") == []
            with refused(errno.ENOTSUP):
                await a.getxattr("/u/f", "strange.x")
        assert asked == {}  # their absence came with the attributes
        await a.setxattr("/u/f", "trusted.t", b"1")
        await a.setxattr("/u/f", "user.x", b"2")
        await a.chmod("/u", 0o755)
        await a.chmod("/u/f", 0o600)
        alice = as_user(a, ALICE)
        await alice.lstat("/u/f")
        with Asked(c.a) as asked:
            for _ in range(3):
                assert await a.getxattr("/u/f", "user.x") == b"2"
                assert await a.listxattr("/u/f") == ["trusted.t", "user.x"]
                with refused(errno.ENODATA):
                    await a.getxattr("/u/f", "security.capability")
                assert await alice.listxattr("/u/f") == ["user.x"]
                with refused(errno.EACCES):
                    await alice.getxattr("/u/f", "user.x")
                with refused(errno.ENODATA):
                    await alice.getxattr("/u/f", "trusted.t")
        assert asked == {"Getxattrs": 1}
        await b.setxattr("/u/f", "user.x", b"3")
        assert await a.getxattr("/u/f", "user.x") == b"3"
        await b.setxattr("/u/f", "user.large", bytes(65_536))  # more than are kept
        with Asked(c.a) as asked:
            assert await a.getxattr("/u/f", "user.x") == b"3"
            assert await a.getxattr("/u/f", "user.large") == bytes(65_536)
        assert asked["Getxattr"] == 2 and asked["Getxattrs"] == 1


async def test_a_file_that_is_made_and_written_is_not_asked_for_its_capabilities(cluster: Any) -> None:
    async with two_mounts(cluster, "ab") as (c, a, _):
        await a.lstat("/u")
        with Asked(c.a) as asked:
            file = await a.open("/u/f", os.O_CREAT | os.O_WRONLY)
            with refused(errno.ENODATA):
                await c.a.unrecorded(c.a.fs.getxattr_fid(file.what.fid, b"security.capability"))
            await file.close()
        assert asked == {"Open": 1, "Close": 1}


# names --------------------------------------------------------------------------------------------------------


async def test_a_name_that_is_too_long_is_so_in_a_directory_that_is_known_whole(cluster: Any) -> None:
    """pjdfstest link/02 through a mount."""
    async with two_mounts(cluster, "ab") as (c, a, _):
        fs = c.a.fs
        directory = (await a.stat("/u")).fid
        await asyncio.sleep(2)  # at rest
        for known in (False, True):
            for name, number in ((b"n" * 255, errno.ENOENT), (b"n" * 256, errno.ENAMETOOLONG)):
                with refused(number):
                    await c.a.unrecorded(fs.stat_at(directory, name))
            if not known:
                assert await a.names("/u") == []


# files without names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [False, True])
async def test_a_file_without_a_name_survives_an_mds_crash(cluster: Any, committed: bool) -> None:
    async with two_mounts(cluster, "ab") as (c, a, b):
        c.mds.hold_commits()
        file = await a.open("/u", os.O_TMPFILE | os.O_RDWR, 0o600)
        await file.pwrite(b"data", 0)
        if committed:
            c.mds.release_commits()
            await c.mds.commit()
            c.mds.hold_commits()
        await c.mds.kill()
        await c.mds.start()
        await c.settle()
        assert await file.pread(9, 0) == b"data" and (await file.fstat()).nlink == 0
        root = c.a.fs
        await c.a.unrecorded(root.link_at(file.what.fid, (await root.stat("/u")).fid, b"named"))
        await c.mds.kill()
        await c.mds.start()
        await c.settle()
        assert (await file.fstat()).nlink == 1
        await file.close()
        assert await b.read_file("/u/named") == b"data"
        file = await a.open("/u", os.O_TMPFILE | os.O_WRONLY)  # and one that goes with its mount
        await file.pwrite(b"data", 0)
        await file.close()
        assert await b.names("/u") == ["named"]


# set-id bits ----------------------------------------------------------------------------------------------------


@who_caches
async def test_a_write_by_others_takes_set_id_bits(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.chmod("/u", 0o755)
        alice = as_user(b, ALICE)
        for mode, after in ((0o6777, 0o777), (0o2767, 0o767)):
            await a.write_file("/u/f", b"data")
            await a.chmod("/u/f", mode)
            assert stat.S_IMODE((await b.stat("/u/f")).mode) == mode
            await alice.write_at("/u/f", 0, b"D")
            assert stat.S_IMODE((await a.stat("/u/f")).mode) == after
            await a.unlink("/u/f")


# room and holes -------------------------------------------------------------------------------------------------

ZERO, PUNCH, KEEP = FALLOC_ZERO_RANGE, FALLOC_PUNCH_HOLE, FALLOC_KEEP_SIZE
UNIT = 65536


@who_caches
async def test_fallocate_under_the_eyes_of_another_mount(cluster: Any, mix: str) -> None:
    """Over two stripes, where either mount has dirty or cached pages."""
    async with two_mounts(cluster, mix, stripe_count=2, stripe_size=UNIT) as (_, a, b):
        expected = FileModel()
        file, other = await a.open("/u/f", os.O_CREAT | os.O_RDWR), await b.open("/u/f", os.O_RDWR)
        for turn, (mode, start, length) in enumerate((
            (0, 10, 3 * UNIT), (ZERO, UNIT - 5, 10), (PUNCH | KEEP, 100, 2 * UNIT), (KEEP, 4 * UNIT, UNIT),
            (ZERO, 5 * UNIT, 7), (ZERO | KEEP, 0, 9 * UNIT), (0, 0, 1),
        )):  # fmt: skip
            for mount in (file, other):
                data = bytes([turn + 1]) * (UNIT + 77)
                await mount.pwrite(data, turn * 1000)
                expected.write(turn * 1000, data)
            await (file, other)[turn % 2].fallocate(mode, start, length)
            expected.fallocate(mode, start, start + length)
            for mount in (file, other):
                assert (await mount.fstat()).size == len(expected)
                assert await mount.pread(-1, 0) == expected
        for number, mode, start, length in (
            (errno.EOPNOTSUPP, 0x8, 0, 10), (errno.EOPNOTSUPP, PUNCH, 0, 10), (errno.EINVAL, 0, 0, 0),
            (errno.EINVAL, 0, -1, 10), (errno.EFBIG, 0, 1 << 60, 10), (errno.EFBIG, 0, 1 << 62, 1 << 62),
        ):  # fmt: skip
            with refused(number):
                await file.fallocate(mode, start, length)
        for mount in (file, other):
            await mount.close()


@who_caches
async def test_data_and_holes_with_dirty_pages_of_two_mounts(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix, stripe_count=2, stripe_size=UNIT) as (_, a, b):
        file, other = await a.open("/u/f", os.O_CREAT | os.O_RDWR), await b.open("/u/f", os.O_RDWR)
        for mount in (file, other):
            with refused(errno.ENXIO):
                await mount.find(0, os.SEEK_HOLE)
        await file.pwrite(b"x" * 4096, 3 * UNIT)
        await other.pwrite(b"y" * 4096, 5 * UNIT + 4096)
        for mount in (file, other):
            found = []
            at = 0
            while at < 5 * UNIT + 8192:
                data = await mount.find(at, os.SEEK_DATA)
                at = await mount.find(data, os.SEEK_HOLE)
                found.append((data, at))
            assert found == [(3 * UNIT, 3 * UNIT + 4096), (5 * UNIT + 4096, 5 * UNIT + 8192)]
            assert await mount.find(0, os.SEEK_HOLE) == 0
            assert await mount.seek(10, os.SEEK_DATA) == mount.what.position == 3 * UNIT
            with refused(errno.ENXIO):
                await mount.find(5 * UNIT + 8192, os.SEEK_DATA)
        await file.truncate(7 * UNIT)
        assert await other.find(5 * UNIT + 8192, os.SEEK_HOLE) == 5 * UNIT + 8192
        with refused(errno.ENXIO):
            await other.find(5 * UNIT + 8192, os.SEEK_DATA)
        for mount in (file, other):
            await mount.close()


@pytest.mark.parametrize("kill", ["oss", "reply"])
async def test_fallocate_is_replayed(cluster: Any, kill: str) -> None:
    """In its order among the writes of a file, when its OST dies or its answer is lost."""
    async with two_mounts(cluster, "ab", stripe_count=2, stripe_size=UNIT) as (c, a, b):
        for oss in c.oss:
            oss.hold_commits()
        expected = FileModel()
        file = await a.open("/u/f", os.O_CREAT | os.O_RDWR)
        if kill == "reply":
            c.net.drop(Fallocate, reply=True, times=2)
        for mode, data in ((0, b"1"), (ZERO, b"2"), (PUNCH | KEEP, b"3"), (ZERO | KEEP, b"4")):
            await file.pwrite(data * 3 * UNIT, 5)
            expected.write(5, data * 3 * UNIT)
            await file.fallocate(mode, UNIT - 9, 3 * UNIT)
            expected.fallocate(mode, UNIT - 9, 4 * UNIT - 9)
            await file.pwrite(b"end", UNIT + 1)
            expected.write(UNIT + 1, b"end")
        for oss in c.oss:
            if kill == "oss":
                oss.power_cut()
                await oss.start()
            else:
                oss.release_commits()
        await c.settle()
        assert await b.read_file("/u/f") == await file.pread(-1, 0) == expected
        await file.close()


async def test_a_full_ost_says_so_at_once(cluster: Any) -> None:
    async with two_mounts(cluster, "ab", disk_bytes=4 << 20, stripe_count=1) as (_, a, _):
        file = await a.open("/u/f", os.O_CREAT | os.O_RDWR)
        with refused(errno.ENOSPC):
            await file.fallocate(0, 0, 16 << 20)
        await file.pwrite(b"small", 0)
        assert (await file.fstat()).size == 5 and await file.pread(-1, 0) == b"small"
        await file.close()


async def test_a_copied_range(cluster: Any) -> None:
    async with two_mounts(cluster, "a") as (_, a, b):
        await a.write_file("/u/f", bytes(range(256)) * 40)
        source, target = await a.open("/u/f", os.O_RDWR), await a.open("/u/g", os.O_CREAT | os.O_RDWR)
        assert await source.copy_range(100, target.what, 7, 1 << 20) == 256 * 40 - 100
        assert await b.read_file("/u/g") == bytes(7) + (bytes(range(256)) * 40)[100:]
        assert await source.copy_range(0, source.what, 5000, 10) == 10
        with refused(errno.EINVAL):
            await source.copy_range(0, source.what, 5, 10)
        for file in (source, target):
            await file.close()
