"""What a review found that local ext4 does otherwise: each is one function of system calls, on one mount or on two."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.posix.mounts import KERNELS, Mounted, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

USER = 1001
FS_IOC_SETFLAGS = 0x40086602
WRITE_LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
CAPABILITY = struct.pack("<5I", 0x02000000 | 1, 1 << 21, 0, 0, 0)  # cap_sys_admin+ep


def as_user(work: Callable[[], Any], uid: int = USER) -> Any:
    """`work` in a thread that the file system takes for another user's."""
    libc = ctypes.CDLL(None)

    def run() -> Any:
        libc.setfsgid(uid)
        libc.setfsuid(uid)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


@contextlib.contextmanager
def reached(path: Path) -> Iterator[Path]:
    """The directory under a path that other users may walk."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.processes
@KERNELS
async def test_on_one_mount(world: Any, mounted: type[Mounted]) -> None:
    async with world(oss=1, clients=0) as w, mounted(w) as m:
        with reached(m.path) as top:
            for work in (
                locks_of_open_files, flock_ends_with_close, times_of_writes, removed_directory, capabilities, append_that_is_cleared,
                append_only, opened_for_nothing, chown_to_nobody,
            ):
                await m.call(work, top)


def chown_to_nobody(top: Path) -> None:
    file = top / "f"
    file.touch()
    os.chown(file, USER, USER)
    for uid in (0, USER):
        file.chmod(0o6775)
        os.setxattr(file, "security.capability", CAPABILITY)
        as_user(lambda: os.chown(file, -1, -1), uid)
        assert mode(file) == 0o775 and os.listxattr(file) == []
    file.chmod(0o6775)
    with contextlib.suppress(PermissionError):
        as_user(lambda: os.chown(file, -1, -1), USER + 1)
    assert mode(file) == 0o6775
    file.chmod(0o6777)
    with open(file, "r+b") as opened:
        as_user(lambda: os.write(opened.fileno(), b"x"), USER + 1)
    assert mode(file) == 0o777
    os.chown(top, -1, -1)
    file.unlink()


def locks_of_open_files(top: Path) -> None:
    first = os.open(top / "f", os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(first, fcntl.F_OFD_SETLK, WRITE_LOCK)
    second = os.open(top / "f", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.fcntl(second, fcntl.F_OFD_SETLK, WRITE_LOCK)
    copy = os.dup(first)
    os.close(first)
    with pytest.raises(BlockingIOError):
        fcntl.fcntl(second, fcntl.F_OFD_SETLK, WRITE_LOCK)
    os.close(copy)
    fcntl.fcntl(second, fcntl.F_OFD_SETLK, WRITE_LOCK)
    os.close(second)
    third, fourth = (os.open(top / "f", os.O_RDWR) for _ in range(2))
    fcntl.lockf(third, fcntl.LOCK_EX)  # a process's: any descriptor that it closes takes it
    os.close(fourth)
    fcntl.lockf(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(third)
    os.unlink(top / "f")


def flock_ends_with_close(top: Path) -> None:
    for _ in range(5):
        first, second = (os.open(top / "f", os.O_RDWR | os.O_CREAT) for _ in range(2))
        fcntl.flock(first, fcntl.LOCK_EX)
        os.close(first)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(second)
    os.unlink(top / "f")


def times_of_writes(top: Path) -> None:
    path = top / "f"
    path.write_bytes(b"x")
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    truncated = path.stat().st_mtime_ns
    path.chmod(0o600)
    assert path.stat().st_mtime_ns == truncated
    path.unlink()


def removed_directory(top: Path) -> None:
    for name in ("d", "e"):
        (top / name).mkdir()
    (top / "l").symlink_to("d")
    there, link = os.open(top / "d", os.O_RDONLY), os.open(top / "l", os.O_PATH | os.O_NOFOLLOW)
    os.rename(top / "e", top / "d")  # over it
    os.rmdir(top / "d")
    os.unlink(top / "l")
    assert stat.S_ISDIR(os.fstat(there).st_mode) and os.fstat(there).st_nlink == 0 and os.listdir(there) == []
    assert os.path.samestat(os.stat("..", dir_fd=there), top.stat())
    with pytest.raises(FileNotFoundError):
        os.mkdir("new", dir_fd=there)
    assert stat.S_ISLNK(os.fstat(link).st_mode)
    os.close(there)
    os.close(link)


def capabilities(top: Path) -> None:
    path = top / "f"

    def new() -> None:
        path.write_bytes(b"12345")
        os.chown(path, USER, USER)
        os.setxattr(path, "security.capability", CAPABILITY)

    def write(flags: int) -> None:
        fd = os.open(path, os.O_WRONLY | flags)
        os.write(fd, b"x")
        os.close(fd)

    def fallocate() -> None:
        fd = os.open(path, os.O_WRONLY)
        os.posix_fallocate(fd, 0, 100)
        os.close(fd)

    changes: list[Callable[[], Any]] = [
        lambda: write(0), lambda: write(os.O_APPEND), lambda: os.truncate(path, 2), fallocate,
        lambda: os.chown(path, USER, USER),
    ]  # fmt: skip
    for change in changes:
        new()
        as_user(change)
        assert "security.capability" not in os.listxattr(path)
    new()
    write(os.O_APPEND)  # root
    assert "security.capability" not in os.listxattr(path)
    path.unlink()


def append_that_is_cleared(top: Path) -> None:
    """fcntl(F_SETFL): what counts is how the descriptor is now."""
    fd = os.open(top / "f", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"0123456789")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"ABC", 2)
    os.lseek(fd, 0, 0)
    os.write(fd, b"xy")
    source = os.open(top / "f", os.O_RDONLY)
    assert os.copy_file_range(source, fd, 2, 0, 8) == 2
    assert os.pread(fd, 100, 0) == (top / "f").read_bytes() == b"xyABC567xy"
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"end")
    assert os.pread(fd, 100, 0) == b"xyABC567xyend"
    os.close(source)
    os.close(fd)
    os.unlink(top / "f")


def opened_for_nothing(top: Path) -> None:
    """O_ACCMODE: for ioctl(2) alone, by who may read and write."""
    (top / "f").write_bytes(b"x")
    fd = os.open(top / "f", os.O_ACCMODE)
    for use in (lambda: os.read(fd, 1), lambda: os.write(fd, b"y")):
        with pytest.raises(OSError) as caught:
            use()
        assert caught.value.errno == errno.EBADF
    os.close(fd)
    (top / "f").chmod(0o644)
    with pytest.raises(PermissionError):
        as_user(lambda: os.open(top / "f", os.O_ACCMODE))
    os.unlink(top / "f")


def append_only(top: Path) -> None:
    """What an append-only file has stays."""
    fd = os.open(top / "f", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, b"x" * 8192)
    flags = fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", 0x20))
    assert len(flags) == 8
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in (3, 0x10, 0x11):
        assert libc.fallocate(fd, kind, ctypes.c_long(0), ctypes.c_long(8192)) == -1
        assert ctypes.get_errno() == errno.EPERM
    assert libc.fallocate(fd, 1, ctypes.c_long(0), ctypes.c_long(16384)) == 0
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", 0))
    assert (top / "f").read_bytes() == b"x" * 8192
    os.close(fd)
    os.unlink(top / "f")


@pytest.mark.processes
async def test_on_two_mounts(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:
        with reached(m1.path) as a, reached(m2.path) as b:
            for work in (
                same_time_of_a_directory, times_set_elsewhere, times_of_what_is_open_elsewhere, set_id_bits_from_elsewhere,
                rights_taken_elsewhere, append_that_is_set,
            ):
                await m1.call(work, a, b)


def same_time_of_a_directory(a: Path, b: Path) -> None:
    (a / "d").mkdir()
    (a / "d" / "old").touch()
    os.utime(a / "d", (1000, 1000))
    for _ in range(3):
        assert os.listdir(a / "d") == ["old"]
    (b / "d" / "new").touch()
    os.utime(b / "d", (1000, 1000))
    for _ in range(2):
        assert sorted(os.listdir(a / "d")) == ["new", "old"]
    shutil.rmtree(a / "d")


def times_set_elsewhere(a: Path, b: Path) -> None:
    fd = os.open(a / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x")
    os.utime(b / "f", (1000, 1000))
    os.chmod(a / "f", 0o600)
    assert (b / "f").stat().st_mtime == 1000
    os.write(fd, b"y")
    os.chmod(b / "f", 0o640)
    with open(b / "f", "ab") as out:
        out.write(b"z")
    last = (b / "f").stat().st_mtime_ns
    os.chmod(a / "f", 0o600)
    assert (b / "f").stat().st_mtime_ns == last
    os.close(fd)
    os.unlink(a / "f")


def times_of_what_is_open_elsewhere(a: Path, b: Path) -> None:
    """Its writer tells the MDT when he wrote at the close; what others change meanwhile hides no write, and is hidden by none."""

    def seen(name: str) -> int:
        times = [(mount / name).stat().st_mtime_ns for mount in (b, a, b)] + [os.fstat(fd).st_mtime_ns]
        assert len(set(times)) == 1, times
        return times[0]

    fd = os.open(a / "f", os.O_CREAT | os.O_RDWR)
    made = seen("f")
    os.write(fd, b"x")
    written = os.fstat(fd).st_mtime_ns
    (b / "f").chmod(0o600)
    assert made < written == seen("f")
    os.setxattr(b / "f", "user.a", b"1")
    os.link(a / "f", a / "g")
    os.rename(b / "f", b / "h")
    assert seen("h") == written
    os.utime(b / "h", ns=(1000, 1000))
    assert seen("h") == 1000
    os.write(fd, b"y")
    again = seen("h")
    assert again > written
    os.utime(b / "h", ns=(2000, 2000))
    os.close(fd)
    for mount in (a, b):
        assert (mount / "h").stat().st_mtime_ns == 2000
    for name in "gh":
        os.unlink(a / name)


def set_id_bits_from_elsewhere(a: Path, b: Path) -> None:
    path = a / "f"
    path.write_bytes(b"12345")
    path.chmod(0o777)
    other = os.open(a / "g", os.O_CREAT | os.O_RDWR)
    os.write(other, b"more")

    def writing(flags: int, write: Callable[[int], Any]) -> None:
        fd = as_user(lambda: os.open(path, os.O_RDWR | flags))
        os.chmod(b / "f", 0o6777)
        as_user(lambda: write(fd))
        os.close(fd)
        assert mode(a / "f") == mode(b / "f") == 0o777

    writing(os.O_APPEND, lambda fd: os.write(fd, b"x"))
    writing(0, lambda fd: os.write(fd, b"x"))
    writing(0, lambda fd: os.posix_fallocate(fd, 0, 100))
    writing(0, lambda fd: os.copy_file_range(other, fd, 3, 0, 0))
    for flags in (os.O_APPEND, 0):
        fd = os.open(path, os.O_WRONLY | flags)
        os.chmod(b / "f", 0o6777)
        os.write(fd, b"x")  # root
        assert mode(a / "f") == mode(b / "f") == 0o6777
        as_user(functools.partial(os.write, fd, b"y"))  # it counts who writes, not who has opened it
        assert mode(a / "f") == mode(b / "f") == 0o777
        os.close(fd)
    os.close(other)
    os.unlink(a / "f")
    os.unlink(a / "g")


def rights_taken_elsewhere(a: Path, b: Path) -> None:
    """Also of a directory of which the kernel has a listing."""
    (a / "d" / "e").mkdir(parents=True)
    for mine, other in ((a, b), (b, a)):
        (mine / "d").chmod(0o755)
        for _ in range(2):
            assert as_user(lambda d=other / "d": os.listdir(d)) == ["e"]
        (mine / "d").chmod(0o700)
        for look in (os.listdir, lambda d: os.stat(d / "e")):
            with pytest.raises(PermissionError):
                as_user(functools.partial(look, other / "d"))
        (mine / "d").chmod(0o755)
        assert as_user(lambda d=other / "d": os.stat(d / "e").st_nlink) == 2
    shutil.rmtree(a / "d")


def append_that_is_set(a: Path, b: Path) -> None:
    """As fdopen(3) with "a" does."""
    files = [os.open(mount / "f", os.O_RDWR | os.O_CREAT) for mount in (a, b)]
    for fd in files:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    lines = [b"%c%02d\n" % (who, number) for number in range(40) for who in b"ab"]
    for number, line in enumerate(lines):
        os.write(files[number % 2], line)
        assert os.pread(files[number % 2], 1000, 0) == b"".join(lines[: number + 1])
    for mount in (a, b):
        assert (mount / "f").read_bytes() == b"".join(lines)
    for fd in files:
        os.close(fd)
    os.unlink(a / "f")
