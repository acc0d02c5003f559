"""What programs ask for beyond everyday: access lists, files without names, room and holes; llfs; pjdfstest.

pjdfstest runs if PJDFSTEST names a directory with its built program and `tests/` (github.com/pjd/pjdfstest).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lustrelite import acl
from tests.posix.mounts import WAIT_S, Mounted, llfs, missing, when

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
PJDFSTEST = os.environ.get("PJDFSTEST", "")
BOB = 1001
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_*
IMMUTABLE, APPEND = 0x10, 0x20  # FS_*_FL
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def listed(user: int, mask: int = 7) -> bytes:
    """A list that lets BOB do `user`."""
    entries = ((acl.USER_OBJ, 7), (acl.USER, user, BOB), (acl.GROUP_OBJ, 0), (acl.MASK, mask), (acl.OTHER, 0))
    return acl.pack(tuple(acl.Entry(*entry) for entry in entries))


def as_bob(path: Path, flags: int) -> int:
    """errno of an open by BOB, who is in no group."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(BOB)
            os.setuid(BOB)
            os.open(path, flags)
        except OSError as error:
            os._exit(error.errno or 255)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.processes
async def test_access_lists_through_two_mounts(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:

        def work() -> None:
            os.chmod(w.directory, 0o755)
            for top in (m1.path, m2.path):
                os.chmod(top, 0o755)
            (m1.path / "f").touch(0o600)
            other = m2.path / "f"
            assert as_bob(other, os.O_RDONLY) == errno.EACCES
            os.setxattr(m1.path / "f", acl.ACCESS, listed(4))
            assert (as_bob(other, os.O_RDONLY), as_bob(other, os.O_WRONLY)) == (0, errno.EACCES)
            assert os.getxattr(other, acl.ACCESS) == listed(4) and stat.S_IMODE(other.stat().st_mode) == 0o770
            os.chmod(m1.path / "f", 0o700)
            assert as_bob(other, os.O_RDONLY) == errno.EACCES
            os.removexattr(m1.path / "f", acl.ACCESS)
            assert os.listxattr(other) == []
            (m1.path / "d").mkdir()
            os.setxattr(m1.path / "d", acl.DEFAULT, listed(6))
            before = os.umask(0o077)
            try:
                (m2.path / "d/made").touch(0o666)
                (m2.path / "plain").touch(0o666)
            finally:
                os.umask(before)
            made = (m1.path / "d/made").stat()
            assert stat.S_IMODE(made.st_mode) == 0o660 and stat.S_IMODE((m1.path / "plain").stat().st_mode) == 0o600
            with pytest.raises(OSError) as failed:
                os.setxattr(m1.path / "f", acl.ACCESS, listed(4) + bytes(8))
            assert failed.value.errno == errno.EINVAL
            shutil.rmtree(m1.path / "d")
            for name in ("f", "plain"):
                (m2.path / name).unlink()

        await m1.call(work)


@pytest.mark.processes
async def test_files_without_names_and_ranges_of_files(world: Any) -> None:
    async with world(oss=2, clients=0) as w, Mounted(w) as m:

        def work() -> None:
            top = m.path
            fd = os.open(top, os.O_TMPFILE | os.O_RDWR, 0o640)
            os.write(fd, b"data")
            assert os.fstat(fd).st_nlink == 0 and os.listdir(top) == []
            # AT_SYMLINK_FOLLOW, which os.link() cannot say
            assert libc.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, os.fsencode(top / "named"), 0x400) == 0
            os.close(fd)
            assert (top / "named").read_bytes() == b"data" and (top / "named").stat().st_nlink == 1
            fd = os.open(top / "sparse", os.O_CREAT | os.O_RDWR)
            end = (16 << 40) - 4096
            os.pwrite(fd, b"end", end - 3)
            assert os.fstat(fd).st_size == end and os.lseek(fd, 0, os.SEEK_HOLE) == 0
            assert end - 4096 <= os.lseek(fd, 0, os.SEEK_DATA) <= end - 3
            assert os.pread(fd, 5, end - 5) == b"\0\0end"
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"x" * (3 << 20), 0)
            assert libc.fallocate(fd, 0x3, 1 << 20, 1 << 20) == 0  # a hole
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 1 << 20 and os.lseek(fd, 1 << 20, os.SEEK_DATA) == 2 << 20
            assert libc.fallocate(fd, 0x10, (3 << 20) - 5, 10) == 0  # zeros
            assert os.pread(fd, 100, (3 << 20) - 7) == b"xx" + bytes(10)
            os.posix_fallocate(fd, 0, 5 << 20)
            assert os.fstat(fd).st_size == 5 << 20 and os.fstat(fd).st_blocks >= (5 << 20) // 512
            assert libc.fallocate(fd, 0x8, 0, 4096) == -1 and ctypes.get_errno() == errno.EOPNOTSUPP
            target = os.open(top / "copy", os.O_CREAT | os.O_RDWR)
            assert os.copy_file_range(fd, target, 1 << 20, 0, 0) > 0
            assert os.pread(target, 10, 0) == b"x" * 10
            os.close(fd)
            os.close(target)
            for name in os.listdir(top):
                os.unlink(top / name)

        await m.call(work)


COPIER = """
import os, sys
try:
    os.copy_file_range(int(sys.argv[1]), int(sys.argv[2]), 8 << 20, 0, 0)
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.processes
@pytest.mark.parametrize("how", ["refused", "killed"])
async def test_what_a_copy_has_copied_that_ends_half_way_is_seen(world: Any, how: str) -> None:
    """The second half of the source is on an OST that is away; the kernel has the pages that were there before."""
    options = ("-o", "failout,param=tunables.failout_after_s:1") if how == "refused" else ()
    async with world(oss=2, clients=0) as w, Mounted(w, "m1", *options) as m, Mounted(w, "m2") as other:
        half = 4 << 20

        def prepare() -> tuple[int, int]:
            (m.path / "d").mkdir()
            llfs(m, "setstripe", "-c", 2, "-S", half, "-i", 0, m.path / "d")
            (other.path / "d/source").write_bytes(b"n" * 2 * half)
            (m.path / "d/target").write_bytes(b"o" * half)
            return os.open(m.path / "d/source", os.O_RDONLY), os.open(m.path / "d/target", os.O_RDWR)

        fds = await m.call(prepare)
        for _ in range(3):
            assert await m.call(os.pread, fds[1], half, 0) == b"o" * half
        await w.oss[1].kill()
        copier = await asyncio.create_subprocess_exec(sys.executable, "-c", COPIER, *map(str, fds), pass_fds=fds)
        if how == "refused":
            w.expect("import.failed_out")
            assert await asyncio.wait_for(copier.wait(), WAIT_S) == errno.EIO
        else:
            await w.eventually(when(lambda: m.tell("fuse")["pending"] == 1), "it copies")
            await asyncio.sleep(0.5)  # the first half
            copier.kill()
            assert await asyncio.wait_for(copier.wait(), WAIT_S) == -signal.SIGKILL
        assert await m.call(os.pread, fds[1], half, 0) == b"n" * half
        await w.oss[1].start()
        await m.call(lambda: [os.close(fd) for fd in fds])
        await m.call(shutil.rmtree, m.path / "d")


def inode_flags(path: Path, new: int | None = None) -> int:
    """FS_IOC_GETFLAGS, or FS_IOC_SETFLAGS if `new` is given; unknown ones are ENOTTY."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as failed:
            fcntl.ioctl(fd, 0x80087777, bytearray(8))
        assert failed.value.errno == errno.ENOTTY
        if new is not None:
            fcntl.ioctl(fd, SETFLAGS, new.to_bytes(8, "little"))
        return int.from_bytes(fcntl.ioctl(fd, GETFLAGS, bytes(8))[:4], "little")
    finally:
        os.close(fd)


@pytest.mark.processes
async def test_immutable_and_append_only_hold_for_root_on_every_mount(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:

        def denied(*calls: Callable[[], object]) -> None:
            for number, call in enumerate(calls):
                with pytest.raises(OSError) as failed:
                    call()
                assert failed.value.errno == errno.EPERM, number

        def work() -> None:
            file, other = m1.path / "f", m2.path / "f"
            file.write_bytes(b"one")
            assert inode_flags(file) == 0 and inode_flags(file, IMMUTABLE) == inode_flags(other) == IMMUTABLE
            denied(
                lambda: other.write_bytes(b"x"), lambda: open(other, "ab").close(), other.unlink, lambda: other.chmod(0o600),
                lambda: other.rename(m2.path / "g"), lambda: os.link(other, m2.path / "g"), lambda: os.utime(other),
                lambda: os.truncate(other, 0), lambda: os.setxattr(other, "user.k", b"v"), lambda: os.chown(other, 1, 1),
                lambda: (m2.path / "h").write_bytes(b"x") and (m2.path / "h").rename(other),
            )  # fmt: skip
            assert other.read_bytes() == b"one"
            inode_flags(other, APPEND)
            with open(other, "ab") as out:
                out.write(b" two")
                denied(lambda: os.ftruncate(out.fileno(), 1))
            denied(lambda: file.write_bytes(b"x"), lambda: os.close(os.open(file, os.O_RDWR)), file.unlink)
            denied(lambda: os.close(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_TRUNC)))
            assert file.read_bytes() == b"one two"
            with pytest.raises(OSError) as failed:
                inode_flags(file, 0x4)  # compressed
            assert failed.value.errno == errno.EOPNOTSUPP
            inode_flags(file, 0)
            (m1.path / "d").mkdir()
            inode_flags(m1.path / "d", IMMUTABLE)
            denied((m2.path / "d/x").touch, (m2.path / "d/x").mkdir, (m2.path / "d").rmdir, lambda: other.rename(m2.path / "d/f"))
            inode_flags(m2.path / "d", 0)
            (m1.path / "d").rmdir()
            for name in ("f", "h"):
                (m1.path / name).unlink()

        await m1.call(work)


@pytest.mark.processes
async def test_llfs_on_a_mounted_path(world: Any) -> None:
    async with world(oss=2, clients=0) as w, Mounted(w) as m:

        def work() -> None:
            (m.path / "wide").mkdir()
            llfs(m, "setstripe", "-c", -1, "-S", "64K", m.path / "wide")
            (m.path / "wide/f").write_bytes(bytes(200_000))
            assert llfs(m, "getstripe", "-c", m.path / "wide/f") == "2\n"
            assert f"{m.path}/wide/f\nlmm_stripe_count:  2\n" in llfs(m, "getstripe", m.path / "wide")
            fid = llfs(m, "path2fid", m.path / "wide/f").strip()
            assert llfs(m, "fid2path", m.path, fid) == f"{m.path}/wide/f\n"
            assert f"{m.path}[OST:1]\n" in llfs(m, "df", m.path)
            assert llfs(m, "check", "all", m.path).count(" active.\n") == 4
            m.signal(signal.SIGSTOP)  # the mount hangs, and nothing is asked through it: nor of it, which would evict it
            try:
                assert llfs(m, "path2fid", m.path) == "[0x200000007:0x1:0x0]\n"
                assert "filesystem_summary:" in llfs(m, "df", "-i", m.path)
            finally:
                m.signal(signal.SIGCONT)
            shutil.rmtree(m.path / "wide")

        await m.call(work)


@pytest.mark.processes
@pytest.mark.skipif(not PJDFSTEST, reason="PJDFSTEST names no pjdfstest")
@pytest.mark.timeout(1800)
async def test_pjdfstest(world: Any) -> None:
    async with world(oss=2, clients=0) as w, Mounted(w) as m:
        os.chmod(w.directory, 0o755)
        done = await m.run_long(["prove", "-r", str(Path(PJDFSTEST) / "tests")])
        assert "Result: PASS" in done, done[-4000:]
