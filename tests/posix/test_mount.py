"""The file system mounted in the kernel: system calls on real processes, two mounts, killed servers, every way to leave."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import pwd
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lustrelite import acl
from lustrelite.alive import runs
from lustrelite.cli.cluster import child_environment
from lustrelite.fuse import attach
from tests.posix.mounts import KERNELS, WAIT_S, Mounted, missing, when

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

ACCESS_LIST = acl.pack(
    (
        acl.Entry(acl.USER_OBJ, 6), acl.Entry(acl.USER, 6, 7), acl.Entry(acl.GROUP_OBJ, 4), acl.Entry(acl.MASK, 6),
        acl.Entry(acl.OTHER, 4),
    )
)  # fmt: skip
NOBODY = pwd.getpwnam("nobody")  # fusermount3 wants a name


def call(path: Path | str, work: Callable[[Path], Any]) -> Any:
    return work(Path(path))


@pytest.mark.processes
@KERNELS
async def test_what_a_file_system_can_do(world: Any, mounted: type[Mounted]) -> None:
    async with world(oss=2, clients=0) as w, mounted(w) as m:
        await m.call(everyday, m.path)
        counts = m.tell("fuse")
        assert counts["pending"] == 0 and counts["open"] == 0


def everyday(top: Path) -> None:
    """Names, attributes, data, links, extended attributes, by plain system calls."""
    directory = top / "d"
    directory.mkdir(0o750)
    file = directory / "f"
    file.write_bytes(b"one")
    with open(file, "ab") as out:
        out.write(b" two")
        out.flush()
        assert os.fstat(out.fileno()).st_size == 7
    assert file.read_bytes() == b"one two"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    os.link(file, top / "g")
    assert file.stat().st_nlink == 2 and os.path.samefile(file, top / "g")
    os.rename(top / "g", top / "h")
    assert not (top / "g").exists() and (top / "h").read_bytes() == b"one two"
    os.symlink("d/f", top / "l")
    assert os.readlink(top / "l") == "d/f" and (top / "l").read_bytes() == b"one two"
    os.truncate(file, 3)
    assert (top / "h").read_bytes() == b"one"
    os.truncate(file, 100_000)
    assert file.read_bytes() == b"one" + bytes(99_997)
    for times in ((10**9 + 7, -5), (-1, -1)):
        os.utime(file, ns=times)
        assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == times
    os.setxattr(file, "user.k", b"v" * 1000)
    assert os.getxattr(top / "h", "user.k") == b"v" * 1000 and os.listxattr(file) == ["user.k"]
    os.removexattr(file, "user.k")
    assert os.listxattr(file) == []
    os.setxattr(file, "system.posix_acl_access", ACCESS_LIST)
    assert os.listxattr(file) == ["system.posix_acl_access"] == os.listxattr(top / "h")
    assert os.getxattr(file, "system.posix_acl_access") == ACCESS_LIST
    os.removexattr(file, "system.posix_acl_access")
    assert os.listxattr(file) == []
    os.mkfifo(top / "p")
    assert stat.S_ISFIFO((top / "p").stat().st_mode)
    os.mknod(top / "n", 0o600 | stat.S_IFBLK, os.makedev(259, 70000))
    assert (top / "n").stat().st_rdev == os.makedev(259, 70000)
    names = [f"{'x' * number}-\udcff" for number in range(1, 200)]
    for name in names:
        (directory / name).touch()
    assert sorted(os.listdir(directory)) == sorted([*names, "f"])
    assert {entry.name: entry.stat().st_size for entry in os.scandir(directory)} == {**dict.fromkeys(names, 0), "f": 100_000}
    with pytest.raises(OSError) as failed:
        (top / ("y" * 256)).touch()
    assert failed.value.errno == errno.ENAMETOOLONG
    fd = os.open(top / "h", os.O_RDWR)
    os.unlink(top / "h")
    os.unlink(file)
    assert os.fstat(fd).st_nlink == 0 and os.pread(fd, 3, 0) == b"one"
    os.ftruncate(fd, 1)
    os.fchmod(fd, 0o604)
    assert (os.fstat(fd).st_size, stat.S_IMODE(os.fstat(fd).st_mode)) == (1, 0o604)
    os.close(fd)
    with pytest.raises(OSError) as failed:
        directory.rmdir()
    assert failed.value.errno == errno.ENOTEMPTY
    assert os.statvfs(top).f_namemax == 255
    for entry in os.listdir(top):
        shutil.rmtree(top / entry) if entry == "d" else os.unlink(top / entry)
    assert os.listdir(top) == []


@pytest.mark.processes
async def test_who_begins_a_listing_sees_what_is_there_now(world: Any) -> None:
    """Somebody else has read a little of the directory, of which more is on its way to him."""
    async with world(oss=1, clients=1) as w, Mounted(w) as m:
        fs = w.a.fs
        await w.a.unrecorded(fs.mkdir("/d"))
        names = [f"name-{number:04}" for number in range(1100)]
        for name in names:
            await w.a.unrecorded(fs.mknod(f"/d/{name}", stat.S_IFIFO | 0o600))

        def listed(fd: int) -> list[str]:
            os.lseek(fd, 0, os.SEEK_SET)
            found: list[str] = []
            while more := getdents(fd):
                found += more
            return found

        def look() -> tuple[int, int, list[str]]:
            first, second = (os.open(m.path / "d", os.O_RDONLY | os.O_DIRECTORY) for _ in range(2))
            return first, second, [name for name in getdents(first) if name not in (".", "..")]

        first, second, some = await m.call(look)
        assert 10 < len(some) < 100
        for name in some[:10]:
            await w.a.unrecorded(fs.unlink(f"/d/{name}"))
        await w.a.unrecorded(fs.mknod("/d/new", stat.S_IFIFO | 0o600))
        expected = sorted({".", "..", "new", *names} - set(some[:10]))
        for fd in (second, first):
            assert sorted(await m.call(listed, fd)) == expected
            await m.call(os.close, fd)
        await m.call(shutil.rmtree, m.path / "d")


def getdents(fd: int) -> list[str]:
    """A few names of an open directory, as of a program that reads it in small pieces."""
    buffer = ctypes.create_string_buffer(4096)
    size = ctypes.CDLL(None, use_errno=True).getdents64(fd, buffer, len(buffer))
    assert size >= 0, os.strerror(ctypes.get_errno())
    names, at = [], 0
    while at < size:
        (length,) = struct.unpack_from("=H", buffer, at + 16)
        names.append(os.fsdecode(buffer.raw[at + 19 : at + length].split(b"\0")[0]))
        at += length
    return names


@pytest.mark.processes
async def test_data_of_every_size_comes_back(world: Any) -> None:
    async with world(oss=2, clients=0) as w, Mounted(w) as m:

        def work() -> None:
            rng = random.Random(7)
            path, model = m.path / "f", bytearray()
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            for _ in range(150):
                offset = rng.randrange(6 << 20)
                size = rng.choice((1, 100, 4096, 5000, 130_000, 1 << 20, 3 << 20))
                kind = rng.random()
                if kind < 0.5:
                    data = rng.randbytes(size)
                    assert os.pwrite(fd, data, offset) == size
                    model.extend(bytes(max(offset + size - len(model), 0)))
                    model[offset : offset + size] = data
                elif kind < 0.6:
                    os.ftruncate(fd, offset)
                    model[offset:] = b""
                    model.extend(bytes(offset - len(model)))
                else:
                    assert os.pread(fd, size, offset) == bytes(model[offset : offset + size])
            os.close(fd)
            assert path.read_bytes() == bytes(model)
            direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
            buffer = mmap.mmap(-1, 1 << 20)
            done = os.preadv(direct, [buffer], 1 << 20)
            assert buffer[:done] == bytes(model[1 << 20 : 2 << 20])
            os.close(direct)
            path.unlink()

        await m.call(work)


@pytest.mark.processes
async def test_two_mounts_see_one_file_system(world: Any) -> None:
    """What one has changed the other one sees, whatever its kernel has kept: names, attributes, listings, data."""
    async with world(oss=2, clients=0) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:

        def work() -> None:
            a, b = m1.path, m2.path
            (a / "d").mkdir()
            file = os.open(a / "d/f", os.O_RDWR | os.O_CREAT)
            other = os.open(b / "d/f", os.O_RDWR)
            for turn in range(30):
                data = b"%08d" % turn
                os.pwrite(file, data, turn * 8)
                assert os.pread(other, 8, turn * 8) == data
                assert (b / "d/f").stat().st_size == os.fstat(file).st_size == turn * 8 + 8
                os.pwrite(other, data[::-1], turn * 8)
                assert os.pread(file, 8, turn * 8) == data[::-1]
                (b / f"d/{turn}").mkdir()
                assert sorted(os.listdir(a / "d")) == sorted(["f", str(turn)])
                os.rename(a / f"d/{turn}", a / "d/x")
                assert (b / "d/x").is_dir() and not (b / f"d/{turn}").exists()
                os.chmod(b / "d/x", 0o700 + turn % 8)
                assert stat.S_IMODE((a / "d/x").stat().st_mode) == 0o700 + turn % 8
                (a / "d/x").rmdir()
                assert not (b / "d/x").exists()
            os.ftruncate(other, 4)
            assert os.pread(file, 100, 0) == b"0000"[::-1][:4] and os.fstat(file).st_size == 4
            os.close(file)
            os.close(other)
            shutil.rmtree(b / "d")
            assert os.listdir(a) == []

        await m1.call(work)


@pytest.mark.processes
async def test_mapped_pages_are_coherent_when_they_are_synced(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:

        def work() -> None:
            (m1.path / "f").write_bytes(bytes(16384))
            a, b = (os.open(m.path / "f", os.O_RDWR) for m in (m1, m2))
            at, bt = mmap.mmap(a, 16384), mmap.mmap(b, 16384)
            for turn in range(20):
                at[5000:5004] = b"%04d" % turn
                at.flush()
                assert bt[5000:5004] == b"%04d" % turn
                bt[9000:9004] = b"%04d" % turn
                bt.flush()
                assert at[9000:9004] == b"%04d" % turn
                os.pwrite(a, b"%04d" % turn, 100)
                assert bt[100:104] == b"%04d" % turn
                at[12000:12004] = b"%04d" % turn  # not synced: whoever wants to see it makes the lock go
                assert os.pread(b, 4, 12000) == b"%04d" % turn
            at.close()
            bt.close()
            os.close(a)
            os.close(b)
            (m1.path / "f").unlink()

        await m1.call(work)


@pytest.mark.processes
async def test_a_mkdir_may_wait_while_the_lock_of_its_directory_is_revoked(world: Any) -> None:
    """The kernel holds the directory for the mkdir; what it is told to forget of it must not wait for that."""
    async with world(oss=1, clients=1) as w, Mounted(w) as m:
        fs = w.a.fs
        await w.a.unrecorded(fs.mkdir("/d"))
        await w.a.unrecorded(fs.mkdir("/d/old"))

        def warm() -> None:
            assert [entry.name for entry in os.scandir(m.path / "d")] == ["old"]
            (m.path / "d/old").stat()
            (m.path / "d").stat()

        await m.call(warm)
        w.mds.arm("request Create delay delay_s=1.5")
        making = asyncio.ensure_future(m.call(os.mkdir, m.path / "d/new"))
        await asyncio.sleep(0.3)
        assert not making.done()
        await asyncio.wait_for(w.a.unrecorded(fs.rename("/d/old", "/d/older")), 5)
        assert not making.done(), "the rename had to wait for the mkdir"
        looked = await m.call(os.path.exists, m.path / "d/older")
        assert looked
        await making
        w.faults.clear()
        assert await m.call(lambda: sorted(os.listdir(m.path / "d"))) == ["new", "older"]
        await m.call(shutil.rmtree, m.path / "d")


@pytest.mark.processes
async def test_locks_of_files_are_those_of_all_mounts(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:

        def work() -> None:
            a = os.open(m1.path / "f", os.O_RDWR | os.O_CREAT)
            b = os.open(m2.path / "f", os.O_RDWR)
            fcntl.flock(a, fcntl.LOCK_EX)
            with pytest.raises(BlockingIOError):
                fcntl.flock(b, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(a, fcntl.LOCK_UN)
            fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(a, fcntl.LOCK_EX, 100, 50)
            with pytest.raises(BlockingIOError):
                fcntl.lockf(b, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 149)
            fcntl.lockf(b, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 150)
            os.close(os.open(m1.path / "f", os.O_RDONLY))  # any close of the file gives up all record locks
            fcntl.lockf(b, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 149)
            os.close(a)
            os.close(b)
            (m1.path / "f").unlink()

        await m1.call(work)


LOCKER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("asks", flush=True)
fcntl.flock(fd, fcntl.LOCK_EX)
print("has", flush=True)
"""


HOLDER = """
import fcntl, os, sys, time
fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX)
print("has", flush=True)
time.sleep(1000)
"""


@pytest.mark.processes
async def test_who_waits_can_be_killed(world: Any) -> None:
    """A flock that waits, and calls to a server that is away: SIGKILL gets the caller out, and others go on."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        file = await m.call(open, m.path / "f", "w")
        await m.call(fcntl.flock, file, fcntl.LOCK_EX)
        waiter = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LOCKER, str(m.path / "f"), stdout=subprocess.PIPE
        )
        assert waiter.stdout is not None
        assert await waiter.stdout.readline() == b"asks\n"
        await asyncio.sleep(0.2)
        waiter.kill()
        assert await asyncio.wait_for(waiter.wait(), 10) == -signal.SIGKILL
        await m.call(fcntl.flock, file, fcntl.LOCK_UN)
        await m.call(fcntl.flock, file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await m.call(file.close)
        holder = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLDER, str(m.path / "f"), stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"has\n"
        await w.mds.kill()
        stuck = await asyncio.create_subprocess_exec("mkdir", str(m.path / "d"))
        await asyncio.sleep(0.5)
        holder.kill()  # its record lock goes when the MDS is back
        assert await asyncio.wait_for(holder.wait(), 10) == -signal.SIGKILL
        assert stuck.returncode is None, "a hard mount waits"
        stuck.kill()
        assert await asyncio.wait_for(stuck.wait(), 10) == -signal.SIGKILL
        await w.mds.start()
        await w.settle()
        with await m.call(open, m.path / "f", "w") as file:
            await m.call(fcntl.lockf, file, fcntl.LOCK_EX)
        await m.call(shutil.rmtree, m.path / "d", True)
        await m.call(os.unlink, m.path / "f")


@pytest.mark.processes
async def test_what_two_mounts_append_is_whole_and_whole_in_its_place(world: Any) -> None:
    """Records of odd sizes, which the kernel would cut at its pages; those who read through other descriptors see them."""
    async with world(oss=2, clients=0) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:
        names = (b"a", b"b", b"c")

        def append(top: Path, name: bytes) -> None:
            fd = os.open(top / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for number in range(40):
                record = name * (1000 + 97 * number) + b"\n"
                assert os.write(fd, record) == len(record)
            os.close(fd)

        def watch() -> None:
            with open(m2.path / "log", "rb") as file:
                for _ in range(30):
                    file.seek(0)
                    check(file.read())

        def check(data: bytes) -> list[bytes]:
            records = data[: data.rfind(b"\n") + 1].splitlines()  # who looks while somebody writes may see half of it
            assert all(len(set(record)) == 1 for record in records)
            return records

        await m1.call((m1.path / "log").touch)
        await asyncio.gather(*[
            m.call(append, m.path, name) for m, name in zip((m1, m2, m1), names, strict=True)
        ], m2.call(watch))
        for m in (m1, m2):
            records = check(await m.call((m.path / "log").read_bytes))
            for name in names:
                assert [len(record) for record in records if record[:1] == name] == [1000 + 97 * n for n in range(40)]

        def mapped() -> None:
            with open(m1.path / "log", "ab+") as file, mmap.mmap(file.fileno(), 0) as view:
                view[:4] = b"zzzz"
                view.flush()
            with open(m2.path / "log", "rb") as file:
                assert file.read(4) == b"zzzz"
            os.unlink(m1.path / "log")

        await m1.call(mapped)


BEATEN = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for number in range(100):
    assert libc.write(fd, b"x" * 1000, 1000) == 1000, os.strerror(ctypes.get_errno())
    assert libc.fdatasync(fd) == 0, os.strerror(ctypes.get_errno())
    assert libc.chmod(os.fsencode(sys.argv[1]), 0o600 + number % 8) == 0, os.strerror(ctypes.get_errno())
signal.setitimer(signal.ITIMER_REAL, 0)
"""


@pytest.mark.processes
async def test_a_timers_signals_break_nothing(world: Any) -> None:
    """A signal that a program survives is not told by EINTR of an fsync or a write: no disk does that."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        beaten = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BEATEN, str(m.path / "f"), stderr=subprocess.PIPE
        )
        _, said = await asyncio.wait_for(beaten.communicate(), WAIT_S)
        assert not beaten.returncode, said.decode()
        counts = m.tell("fuse")
        assert counts["requests"]["INTERRUPT"] and not counts["pending"]
        assert (m.path / "f").stat().st_size == 100_000
        await m.call(os.unlink, m.path / "f")


@pytest.mark.processes
async def test_a_copy_survives_killed_servers(world: Any) -> None:
    """kill -9 of the MDS and of an OSS in the middle of a copy: no error reaches it, and everything is there."""
    async with world(oss=2, clients=0) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:
        rng = random.Random(3)
        source = w.directory / "source"
        for number in range(120):
            path = source / f"{number % 7}" / f"f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(rng.choice((0, 10, 5000, 300_000))))
        copying = asyncio.ensure_future(m1.call(shutil.copytree, source, m1.path / "copy"))
        for server in (w.mds, w.oss[0], w.mds, w.oss[1]):
            await asyncio.sleep(0.15)
            await server.kill()
            await server.start()
        await copying
        await w.settle()

        def compare() -> None:
            for path in source.rglob("*"):
                there = m2.path / "copy" / path.relative_to(source)
                assert there.is_dir() if path.is_dir() else digest(there) == digest(path), path

        await m2.call(compare)
        await m1.call(shutil.rmtree, m1.path / "copy")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.processes
async def test_an_unmount_writes_back_and_says_goodbye(world: Any) -> None:
    async with world(oss=1, clients=1) as w:
        async with Mounted(w) as m:
            data = bytes(range(256)) * 40_000
            await m.call((m.path / "f").write_bytes, data)
            uuid = m.record["client"]
            assert uuid in (await w.mds.status())[w.mds.targets[0]]["clients"]
        assert not m.alive
        assert uuid not in (await w.mds.status())[w.mds.targets[0]]["clients"], "it is told at the unmount"
        assert await w.a.unrecorded(w.a.fs.read_file("/f")) == data
        await w.a.unrecorded(w.a.fs.unlink("/f"))


@pytest.mark.processes
async def test_an_unmount_waits_for_servers_that_are_dead(world: Any) -> None:
    """Nobody else has what was written, and with which times."""
    async with world(oss=1, clients=0) as w:
        servers = [w.mds, *w.oss]
        async with Mounted(w) as m:
            files = [m.path / f"f{number}" for number in range(20)]
            for number, file in enumerate(files):
                await m.call(file.write_bytes, b"data" * 1000)
                await m.call(os.utime, file, (5, 6 + number))
            await asyncio.gather(*(server.kill() for server in servers))
            leaving = asyncio.ensure_future(m.umount())
            await asyncio.sleep(6)  # longer than two timeouts
            assert not leaving.done() and m.alive and not os.path.ismount(m.path)
            await asyncio.gather(*(server.start() for server in servers))
            await leaving
        async with Mounted(w, "again") as again:
            for number, file in enumerate(files):
                there = again.path / file.name
                assert (await again.call(os.stat, there)).st_mtime == 6 + number
                assert await again.call(there.read_bytes) == b"data" * 1000
                await again.call(there.unlink)


@pytest.mark.processes
async def test_a_forced_unmount_leaves_nobody_behind(world: Any) -> None:
    """The servers are dead and somebody waits: `umount -f` fails him at once, and the process ends."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        await m.call((m.path / "f").write_bytes, b"x")
        await m.call(synced, m.path / "f")
        await w.mds.kill()
        stuck = await asyncio.create_subprocess_exec("mkdir", str(m.path / "d"), stderr=subprocess.PIPE)
        await asyncio.sleep(0.3)
        assert stuck.returncode is None
        await m.umount("-f")
        assert await asyncio.wait_for(stuck.wait(), 10) == 1, "it is told of an error, not killed"
        assert not m.alive and not os.path.ismount(m.path)
        w.expected.update(("client.left_open", "client.evicted", "recovery.evicting", "recovery.aborted"))
        await w.mds.start(abort_recovery=True)
        async with Mounted(w, "again") as again:
            await again.call(shutil.rmtree, again.path / "d", True)
            await again.call(os.unlink, again.path / "f")


@pytest.mark.processes
async def test_a_lazy_unmount_serves_until_the_last_is_gone(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        file = await m.call(open, m.path / "f", "wb")
        await m.umount("-l")
        assert not os.path.ismount(m.path)
        await m.call(file.write, b"still")
        await m.call(file.flush)
        await m.call(file.close)
        await w.eventually(when(lambda: not m.alive), "the process ends")
        async with Mounted(w, "again") as again:
            assert await again.call((again.path / "f").read_bytes) == b"still"
            await again.call(os.unlink, again.path / "f")


def synced(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)


@pytest.mark.processes
async def test_a_mount_where_another_one_is_still_leaving(world: Any) -> None:
    """Each has a record of its own, and its unmount waits for it."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        await m.call((m.path / "old").write_bytes, b"1" * 5000)
        old = m.record
        await w.oss[0].kill()
        await m.umount("-l")
        await m.start()
        new = m.record
        assert new["pid"] != old["pid"] and runs(old), "it has data to write back"
        await w.oss[0].start()
        await w.eventually(when(lambda: not runs(old)), "the old process ends")
        assert m.record == new and m.tell("ping") == "pong"
        await m.call((m.path / "new").write_bytes, b"2" * 5000)
        await m.umount()
        assert not runs(new)
        await m.start()
        for name, data in (("old", b"1" * 5000), ("new", b"2" * 5000)):
            assert await m.call((m.path / name).read_bytes) == data
            await m.call(os.unlink, m.path / name)


@pytest.mark.processes
async def test_an_unmount_that_does_not_know_the_process_says_so(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        record = m.record
        m.run_dir = w.directory / "elsewhere"
        done = await m.run("umount", str(m.path))
        assert not done.returncode and "nobody waits for its process" in done.stderr
        await w.eventually(when(lambda: not runs(record)), "it ends all the same")


@pytest.mark.processes
async def test_an_unmount_whose_process_dies_says_so(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        await m.call((m.path / "f").write_bytes, b"x")
        w.expect("lock.expired", "client.evicted", "recovery.evicting")  # of the one that dies
        await w.oss[0].kill()
        leaving = asyncio.ensure_future(m.run("umount", str(m.path)))
        await w.eventually(when(lambda: not os.path.ismount(m.path)), "it is out of the tree")
        done = await m.run("umount", str(m.path))
        assert done.returncode == 1 and "had it mounted and is still leaving" in done.stderr
        m.signal(signal.SIGKILL)
        done = await leaving
        assert done.returncode == 1 and "died before everything was written back" in done.stderr
        await w.oss[0].start()
        async with Mounted(w, "again") as again:
            await again.call(os.unlink, again.path / "f")


@pytest.mark.processes
async def test_a_mount_that_is_given_up_leaves_nothing_behind(world: Any) -> None:
    async with world(oss=1, clients=0) as w:
        await w.mds.kill()
        m = Mounted(w)
        m.path.mkdir()
        mounting = await asyncio.create_subprocess_exec(
            *m.command("mount", m.source, str(m.path)), env=child_environment(), stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        await w.eventually(when(lambda: bool(list(m.run_dir.glob("*.json")))), "it waits for the MDS")
        done = await m.run("umount", str(m.path))
        assert done.returncode == 1 and "is still mounting it" in done.stderr
        mounting.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(mounting.communicate(), WAIT_S)
        assert b"interrupted" in said
        assert not list(m.run_dir.glob("*.json")) and not os.path.ismount(m.path)
        await w.mds.start()


@pytest.mark.processes
@pytest.mark.parametrize("parts", [2, 5])
async def test_a_mount_point_with_a_long_path(world: Any, parts: int) -> None:
    """A socket is called by it, and the kernel knows no long names of sockets."""
    async with world(oss=1, clients=0) as w:
        name = "/".join(["d" * 30] * parts)
        (w.directory / name).mkdir(parents=True)
        async with Mounted(w, name) as m:
            await m.call((m.path / "f").write_bytes, b"x")
            assert m.tell("ping") == "pong"
            await m.call(os.unlink, m.path / "f")


@pytest.mark.processes
async def test_a_mount_point_behind_a_symlink(world: Any) -> None:
    async with world(oss=1, clients=0) as w:
        real, link = w.directory / "real", w.directory / "link"
        real.mkdir()
        link.symlink_to(real)
        m = Mounted(w, "link")
        done = await m.run("mount", m.source, str(link))
        assert not done.returncode, done.stderr
        done = await m.run("mount", m.source, str(link))
        assert done.returncode and "mounted there already" in done.stderr
        await m.call((link / "f").write_bytes, b"x")
        await m.call(os.unlink, real / "f")
        done = await m.run("umount", str(link))
        assert not done.returncode and not done.stderr and not os.path.ismount(real) and not list(m.run_dir.glob("*.json"))


@pytest.mark.processes
async def test_a_remount_changes_what_it_names(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w, "m1", "-o", "nosuid,nodev,noexec,noatime") as m:
        flags = attach.flags_of(str(m.path))
        assert flags == attach.MS_NOSUID | attach.MS_NODEV | attach.MS_NOEXEC | attach.MS_NOATIME
        done = await m.run("mount", m.source, str(m.path), "-o", "remount,ro,exec")
        assert not done.returncode, done.stderr
        assert attach.flags_of(str(m.path)) == flags & ~attach.MS_NOEXEC | attach.MS_RDONLY


@pytest.mark.processes
async def test_a_remount_changes_parameters_or_says_that_it_cannot(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        flags = attach.flags_of(str(m.path))

        async def remount(options: str, source: str = m.source) -> subprocess.CompletedProcess[str]:
            return await m.run("mount", source, str(m.path), "-o", f"remount,{options}")

        def values() -> list[str]:
            return [m.tell("get_param", pattern=f"tunables.{name}")[f"tunables.{name}"] for name in ("failover_mode", "spin_us")]

        done = await remount("failout,param=tunables.spin_us:7,allow_other")
        assert not done.returncode and values() == ["failout", "7"], done.stderr
        other = m.source.replace(f"/{w.cluster.fsname}", "/other")
        for options, source, said in (
            ("ro,failover,nocache", m.source, "nocache: a remount cannot change that; unmount it"),
            ("ro,failover,noallow_other", m.source, "noallow_other: a remount cannot change that"),
            ("ro,failover,allow_remote", m.source, "allow_remote: a remount cannot change that"),
            ("ro,failover", other, f"{m.source} is mounted there, not {other}"),
            ("ro,failover,param=nothing:1", m.source, "no parameter matches 'nothing'"),
            ("ro,failover,param=tunables.spin_us:x", m.source, "a whole number expected"),
            ("ro,failover,param=tunables.spin_us", m.source, "which value"),
        ):
            refused = await remount(options, source)
            assert refused.returncode and said in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
            assert attach.flags_of(str(m.path)) == flags and values() == ["failout", "7"], options
        assert not (await remount("failover")).returncode and values() == ["failover", "7"]
    async with world(oss=1, clients=0) as w, Mounted(w, "m1", "-o", "nocache") as m:
        done = await m.run("mount", m.source, str(m.path), "-o", "remount,nocache,ro")  # as mount(8) takes it from fstab(5)
        assert not done.returncode and attach.flags_of(str(m.path)) & attach.MS_RDONLY, done.stderr


@pytest.mark.processes
async def test_check_reports_the_mgs(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        command = [sys.executable, "-m", "lustrelite.cli.llfs", "check"]
        environment = {**child_environment(), "LUSTRELITE_RUN_DIR": str(m.run_dir)}

        async def check(kind: str) -> tuple[int, list[tuple[str, str]]]:
            done = await m.call(
                subprocess.run, [*command, kind, str(m.path)], env=environment, capture_output=True, text=True, check=False
            )
            return done.returncode, [(re.sub(r"-...-\w{8}$", "", name), state) for name, state in map(str.split, done.stdout.splitlines())]

        mgc = f"MGC{w.cluster.mgs_nids[0]}"
        others = [("lustre-MDT0000", "active."), ("lustre-OST0000", "active.")]
        assert await check("mgts") == (0, [(mgc, "active.")]) and await check("all") == (0, [(mgc, "active."), *others])
        await w.mgs.kill()
        await w.eventually(when(lambda: m.tell("devices")[0]["state"] != "FULL"), "the MGS is missed")
        assert await check("mgts") == (1, [(mgc, "inactive.")]) and await check("all") == (1, [(mgc, "inactive."), *others])
        assert await check("osts") == (0, others[1:])
        await w.mgs.start()


@pytest.mark.processes
async def test_parameters_of_devices_can_be_given_to_mount(world: Any) -> None:
    async with world(oss=1, clients=0) as w:
        async with Mounted(w, "m1", "-o", "param=osc.*.max_dirty_mb:8,param=tunables.spin_us:7") as m:
            assert list(m.tell("get_param", pattern="osc.*.max_dirty_mb").values()) == ["8"]
            assert m.tell("get_param", pattern="tunables.spin_us") == {"tunables.spin_us": "7"}
            assert await m.call(os.listdir, m.path) == []
        for wrong, said in (("osc.*.nothing:8", "no parameter matches 'osc.*.nothing'"), ("osc.*.max_dirty_mb:x", "a whole number expected")):
            refused = await m.run("mount", m.source, str(m.path), "-o", f"param={wrong}")
            assert refused.returncode and said in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
            assert not attach.device_of(str(m.path)) and not m.record


@pytest.mark.processes
@pytest.mark.parametrize("name", ["x" * 250, os.fsdecode(b"\xff of no text"), "two\nlines"], ids=["long", "not_utf8", "newline"])
async def test_a_mount_point_with_a_strange_name(world: Any, name: str) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w, name) as m:
        assert m.tell("ping") == "pong"


@pytest.mark.processes
async def test_mount_points_whose_names_look_alike(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w, "d-e") as one:
        (w.directory / "d").mkdir()
        async with Mounted(w, "d/e") as other:
            assert one.record["pid"] != other.record["pid"]
            await one.call((one.path / "f").write_bytes, b"x")
            assert await other.call((other.path / "f").read_bytes) == b"x"
        assert one.tell("ping") == "pong"
        await one.call(os.unlink, one.path / "f")


@pytest.mark.processes
async def test_mount_says_in_one_line_what_is_wrong(world: Any) -> None:
    async with world(oss=1, clients=0) as w:
        m = Mounted(w)
        m.path.mkdir()
        for arguments, said in (
            (("nonsense", str(m.path)), "MGSNID:/FSNAME"),
            ((m.source, str(m.path / "no")), "is no directory"),
            ((m.source, str(m.path), "-o", "colour=blue"), "unknown mount option 'colour=blue'"),
            ((m.source, str(m.path), "-o", "localflock"), "unknown mount option 'localflock'"),
            ((m.source, str(m.path), "-o", "wait=long"), "wait=long: for how many seconds?"),
            ((m.source, str(m.path), "-o", "param=nosuch:1"), "parameter 'nosuch=1': no parameter matches 'nosuch'"),
            ((m.source, str(m.path), "-o", "param=tunables.spin_us"), "'tunables.spin_us': which value shall it have?"),
            ((m.source, str(m.path), "-o", "param=tunables.spin_us:x"), "'tunables.spin_us=x': a whole number expected"),
            ((f"{w.directory}/nobody@unix:/lustre", str(m.path), "-o", "wait=1"), "does not answer"),
            ((m.source.replace(":/lustre", ":/other"), str(m.path), "-o", "wait=2"), "'other'"),
        ):
            done = await m.run("mount", *arguments)
            assert done.returncode and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
        assert not os.path.ismount(m.path)


@pytest.mark.processes
async def test_a_mount_says_for_whom_it_waits(world: Any) -> None:
    """It was silent for as long as the MGS was away, and then it had either worked or not."""
    async with world(oss=1, clients=0) as w:
        m = Mounted(w)
        m.path.mkdir()
        await w.mgs.kill()
        mounting = asyncio.ensure_future(m.run("mount", m.source, str(m.path)))
        await asyncio.wait([mounting], timeout=5.0)
        await w.mgs.start()
        done = await mounting
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"mount.lustrelite: MGS \(at \S+\) cannot be used yet: waiting for it\n", done.stderr)
        await m.umount()


@pytest.mark.processes
async def test_a_second_mount_on_the_same_point_is_refused(world: Any) -> None:
    """It would hide the first. The point is not looked at: with its servers gone that would wait."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        await w.mds.kill()
        done = await m.run("mount", m.source, str(m.path))
        assert done.returncode and "mounted there already" in done.stderr
        await w.mds.start()
        await m.call((m.path / "f").write_bytes, b"x")
        await m.call(os.unlink, m.path / "f")


@pytest.mark.processes
async def test_a_read_only_mount_changes_nothing(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m, Mounted(w, "m2", "-o", "ro,flock,acl,user_xattr,checksum,always_ping") as ro:
        await m.call((m.path / "f").write_bytes, b"x")
        assert await ro.call((ro.path / "f").read_bytes) == b"x"
        with pytest.raises(OSError) as failed:
            await ro.call((ro.path / "g").touch)
        assert failed.value.errno == errno.EROFS
        await m.call(os.unlink, m.path / "f")


@pytest.mark.processes
async def test_a_remount_changes_what_may_be_done(world: Any) -> None:
    """With all the options that mount(8) repeats: read-only and back, and whether access times are told."""
    repeated = "relatime,user_id=0,group_id=0,default_permissions,allow_other"
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        path = m.path / "f"

        async def remount(*options: str) -> subprocess.CompletedProcess[str]:
            return await m.run("mount", m.source, str(m.path), "-o", ",".join((*options, repeated, "remount", *options)))

        def seen(days: int) -> bool:
            os.utime(path, ns=(old := path.stat().st_mtime_ns - days * 86_400 * 10**9, old))
            assert path.read_bytes() == b"x"
            return path.stat().st_atime_ns != old

        await m.call(path.write_bytes, b"x")
        with await m.call(open, path, "ab"):
            refused = await remount("ro")
            assert refused.returncode and "files on it are open for writing" in refused.stderr
        await w.settle()
        assert not (await remount("ro")).returncode
        with pytest.raises(OSError) as failed:
            await m.call((m.path / "g").touch)
        assert failed.value.errno == errno.EROFS and await m.call(path.read_bytes) == b"x"
        assert not (await remount("rw", "noatime")).returncode
        assert not await m.call(seen, 3)
        assert not (await remount("rw", "strictatime")).returncode

        async def told() -> bool:
            stat = await m.call(path.stat)
            return bool(stat.st_atime_ns != stat.st_mtime_ns)

        for _ in range(5):  # whatever the kernel has of the file
            if not await m.call(seen, 0):
                await w.eventually(told, "the access time is told")
        await m.call(path.unlink)
        await m.umount()
        assert "nothing of ours is mounted" in (await remount("ro")).stderr


@pytest.mark.processes
async def test_a_signal_unmounts(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        m.signal(signal.SIGTERM)
        await w.eventually(when(lambda: not m.alive), "the process ends")
        assert not os.path.ismount(m.path)


@pytest.mark.processes
async def test_others_than_root_have_their_own_rights(world: Any) -> None:
    """The kernel decides who may search, and the MDT who may change; groups count."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:

        def as_user(uid: int, gid: int, groups: list[int], code: str) -> str:
            become = f"import os; os.setgroups({groups}); os.setgid({gid}); os.setuid({uid})\n"  # who may not see this Python
            done = subprocess.run(
                [sys.executable, "-c", become + code, str(m.path)], check=False, capture_output=True, text=True
            )
            return done.stderr.strip().splitlines()[-1] if done.returncode else done.stdout.strip()

        def work() -> None:
            os.chmod(w.directory, 0o755)
            os.chmod(m.path, 0o755)
            (m.path / "d").mkdir(0o770)
            os.chmod(m.path / "d", 0o770)
            os.chown(m.path / "d", 1000, 2000)
            (m.path / "d/f").write_text("x")
            make = "import os, sys; os.close(os.open(sys.argv[1] + '/d/' + str(os.getuid()), os.O_CREAT | os.O_WRONLY)); print('done')"
            look = "import os, sys; print(os.stat(sys.argv[1] + '/d/f').st_size)"
            assert as_user(1000, 1000, [], make) == "done"
            assert as_user(1001, 1001, [5, 2000], make) == "done"
            assert "Permission denied" in as_user(1002, 1002, [5], make)
            assert as_user(1001, 1001, [2000], look) == "1"
            assert "Permission denied" in as_user(1002, 1002, [], look)
            assert (m.path / "d/1001").stat().st_uid == 1001
            shutil.rmtree(m.path / "d")

        await m.call(work)


@pytest.mark.processes
async def test_a_stopped_mount_shows_nothing_old(world: Any) -> None:
    """Its process does not run, so it cannot be asked for its locks: what its kernel has kept ends with the lease."""
    async with world(oss=1, clients=1) as w, Mounted(w) as m:
        path = m.path / "f"
        await m.call(path.write_bytes, b"old!")
        file = await m.call(open, path, "rb")
        assert await m.call(os.pread, file.fileno(), 4, 0) == b"old!"
        await m.call(path.stat)
        m.signal(signal.SIGSTOP)
        w.expected.update(("lock.expired", "client.evicted", "import.evicted", "lock.lost", "client.left_open", "client.data_lost"))
        await w.a.unrecorded(w.a.fs.write_file("/f", b"newer"))  # waits for the eviction
        looks = [
            asyncio.ensure_future(m.call(os.pread, file.fileno(), 5, 0)),
            asyncio.ensure_future(m.call(lambda: path.stat().st_size)),
        ]
        await asyncio.sleep(0.5)
        assert not any(look.done() and not look.exception() for look in looks)
        m.signal(signal.SIGCONT)
        found = await asyncio.gather(*looks, return_exceptions=True)
        assert all(one in (b"newer", 5) or isinstance(one, OSError) for one in found), found
        await m.call(file.close)
        assert await m.call(path.read_bytes) == b"newer"
        await m.call(path.unlink)
        done = await m.run("umount", str(m.path))  # the first data was closed, and not written back
        assert done.returncode == 1 and "of what was written to 1 file(s) something is lost" in done.stderr


@pytest.mark.processes
async def test_an_evicted_mount_says_so_and_goes_on(world: Any) -> None:
    """What was not written back is lost, and EIO tells so; new calls work."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        path = m.path / "f"
        await m.call(path.write_bytes, b"safe")
        await m.call(synced, path)
        fd = await m.call(os.open, path, os.O_RDWR)
        await m.call(os.pwrite, fd, b"lost", 0)
        w.expected.update(("client.evicted", "import.evicted", "lock.lost", "client.data_lost"))
        for server in (w.oss[0], w.mds):
            await server.evict(m.record["client"])
        await m.call(os.path.exists, m.path / "hears of it")
        with pytest.raises(OSError) as failed:
            await m.call(os.fsync, fd)
        assert failed.value.errno in (errno.EIO, errno.ESHUTDOWN, errno.ESTALE)
        await m.call(close_anyway, fd)
        await w.eventually(lambda: m.call(reads, path, b"safe"), "the file can be read again")
        await m.call(path.write_bytes, b"again")
        assert await m.call(path.read_bytes) == b"again"
        await m.call(path.unlink)


def close_anyway(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # of what was lost it may tell once more


def reads(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


@pytest.mark.processes
async def test_without_caching_everything_comes_here(world: Any) -> None:
    async with world(oss=2, clients=0) as w, Mounted(w, "m1", "-o", "nocache") as m:
        await m.call(everyday, m.path)


@pytest.mark.processes
async def test_a_mount_says_whether_it_waits_for_osts(world: Any) -> None:
    """-o failout: a write to an OST that is away fails; another mount, without it, waits until the OST is back."""

    def write(path: Path) -> int:
        fd = os.open(path, os.O_WRONLY | os.O_DSYNC)
        try:
            return os.write(fd, b"x" * 100)
        finally:
            os.close(fd)

    async with (
        world(oss=1, clients=0) as w,
        Mounted(w, "m1", "-o", "failout,param=tunables.failout_after_s:1") as fails,
        Mounted(w, "m2", "-o", "failover,param=tunables.failout_after_s:1") as waits,
    ):
        for name in ("waits", "fails"):
            await waits.call((waits.path / name).touch)
        await w.oss[0].kill()
        w.expect("import.failed_out")
        waiting = asyncio.create_task(waits.call(write, waits.path / "waits"))
        with pytest.raises(OSError) as caught:
            await fails.call(write, fails.path / "fails")
        assert caught.value.errno == errno.EIO
        assert not waiting.done()
        await w.oss[0].start()
        assert await waiting == 100
        for name in ("waits", "fails"):
            await waits.call((waits.path / name).unlink)


@pytest.mark.processes
@pytest.mark.skipif(not shutil.which("fusermount3"), reason="fusermount3 is not installed (package fuse3)")
async def test_a_user_mounts_through_fusermount(world: Any) -> None:
    """Only for himself: not even root may look (without allow_other)."""
    async with world(oss=1, clients=0) as w:
        os.chmod(w.directory, 0o755)
        for path in (w.cluster.state_dir, w.cluster.run_dir):
            os.chmod(path, 0o755)
        for path in w.cluster.run_dir.glob("*.nid"):
            os.chmod(path, 0o777)
        m = Mounted(w)
        m.path.mkdir()
        m.run_dir.mkdir()
        for path in (m.path, m.run_dir):
            os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
        become = "; import os, encodings.idna, uvloop; "  # who may not see this Python
        become += f"os.setgroups([]); os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid}); "
        code = m.command("mount")[2].replace("; ", "; import lustrelite.fuse.process" + become, 1)
        mounting = [sys.executable, "-c", code, m.source, str(m.path), "--run-dir", str(m.run_dir)]
        device = os.stat(attach.DEVICE).st_mode
        os.chmod(attach.DEVICE, 0o666)  # as udev has it
        try:
            done = await m.call(
                subprocess.run, mounting, env=child_environment(), capture_output=True, text=True, check=False
            )
            assert not done.returncode, done.stderr
            with pytest.raises(PermissionError):
                await m.call(os.listdir, m.path)
            look = "import sys" + become + "print(os.listdir(sys.argv[1]))"
            done = await m.call(
                subprocess.run, [sys.executable, "-c", look, str(m.path)], capture_output=True, text=True, check=False
            )
            assert done.stdout == "[]\n", done.stderr
            await m.umount()
            assert not m.alive
        finally:
            os.chmod(attach.DEVICE, stat.S_IMODE(device))
            m.destroy()
