"""How a mount ends when nobody is there to unmount it in peace: by signals, elsewhere, in use, with data that is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lustrelite import control
from lustrelite.alive import runs
from lustrelite.cli.cluster import child_environment
from lustrelite.fuse import attach
from tests.posix.mounts import Mounted, llfs, missing, when

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

WRITER = """
import os, sys, time
os.chdir(sys.argv[1])
number = 0
while True:
    try:
        with open(f"f{number}", "xb") as file:
            file.write(b"x" * 1000)
    except OSError:
        break
    number += 1
    time.sleep(0.02)
print(number)
"""


READER = """
import os, sys
try:
    os.pread(int(sys.argv[1]), 4096, 7 << 20)
except OSError:
    sys.exit(1)
"""


@pytest.mark.processes
async def test_a_signal_to_a_mount_in_use_loses_nothing_that_was_closed(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        command = [sys.executable, "-c", WRITER, str(m.path)]
        writer = await m.call(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
        await w.eventually(when(lambda: (m.path / "f9").exists()), "it writes")
        m.signal(signal.SIGTERM)
        await w.eventually(when(lambda: not m.alive), "the process ends, although it is in use")
        said, _ = await m.call(writer.communicate)
        assert not os.path.ismount(m.path) and not list(m.run_dir.glob("*.json"))
        async with Mounted(w, "again") as again:

            def look() -> None:
                for number in range(int(said)):
                    path = again.path / f"f{number}"
                    assert path.read_bytes() == b"x" * 1000
                for path in again.path.iterdir():  # one more may have been begun
                    path.unlink()

            await again.call(look)


@pytest.mark.processes
async def test_a_signal_unmounts_no_other_mount(world: Any) -> None:
    """One process has been taken out of the tree and is in use; at its place is the mount of another by now."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        held = await m.call(os.open, m.path, os.O_RDONLY)
        first = m.record
        await m.umount("-l")
        async with Mounted(w) as again:
            assert again.record["pid"] != first["pid"]
            os.kill(first["pid"], signal.SIGTERM)
            await w.eventually(when(lambda: not runs(first)), "it ends")
            assert again.alive and os.path.ismount(again.path)
            await again.call((again.path / "f").touch)
            await again.call(os.unlink, again.path / "f")
        os.close(held)


@pytest.mark.processes
async def test_a_mount_that_was_moved_is_found(world: Any) -> None:
    async with world(oss=1, clients=0) as w:
        (w.directory / "above").mkdir()
        async with Mounted(w, "above/m") as m:
            (w.directory / "above").rename(w.directory / "moved")
            m.signal(signal.SIGTERM)
            await w.eventually(when(lambda: not m.alive), "it ends")
            assert not os.path.ismount(w.directory / "moved" / "m")


@pytest.mark.processes
async def test_the_end_of_a_terminal_is_an_unmount(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        await m.call((m.path / "f").write_bytes, b"written")
        m.signal(signal.SIGHUP)
        await w.eventually(when(lambda: not m.alive), "it ends")
        assert not os.path.ismount(m.path)
        async with Mounted(w, "again") as again:
            assert await again.call((again.path / "f").read_bytes) == b"written"
            await again.call(os.unlink, again.path / "f")


@pytest.mark.processes
async def test_an_unmount_tells_of_what_is_lost_and_nobody_has_heard_of(world: Any) -> None:
    async with world(oss=1, clients=0, write_back_after_s=60.0) as w, Mounted(w) as m:
        for name in ("a", "b"):
            await m.call((m.path / name).write_bytes, b"lost")
        w.expected.update(("client.evicted", "import.evicted", "lock.lost", "client.data_lost"))
        await w.oss[0].evict(m.record["client"])
        await m.call(os.path.exists, m.path / "c")
        await w.eventually(when(lambda: "lost" in str(m.tell("counts"))), "it hears of it")
        done = await m.run("umount", str(m.path))
        assert done.returncode == 1 and "of what was written to 2 file(s) something is lost" in done.stderr
        assert not list(m.run_dir.glob("*.json")) and not os.path.ismount(m.path)
        async with Mounted(w, "again") as again:
            for name in ("a", "b"):
                await again.call(os.unlink, again.path / name)


@pytest.mark.processes
async def test_who_is_told_to_stop_leaves_a_dead_oss_and_says_what_that_costs(world: Any) -> None:
    """The servers that are there have got everything, and hear that it leaves."""
    async with world(oss=2, clients=0, write_back_after_s=60.0) as w, Mounted(w) as m:
        w.expect("client.data_lost", "lock.lost", "recovery.evicting", "client.evicted", "recovery.incomplete")
        for number in range(6):
            await m.call((m.path / f"f{number}").write_bytes, b"x" * 1000)
        await w.oss[0].kill()
        leaving = asyncio.create_task(m.run("umount", str(m.path)))
        await w.eventually(when(lambda: not os.path.ismount(m.path)), "it leaves")
        m.signal(signal.SIGTERM)
        done = await leaving
        assert done.returncode == 1 and "of what was written to 3 file(s) something is lost" in done.stderr
        w.saw("client.data_lost", target=w.oss[0], times=3)
        w.saw("import.disconnected", target=w.oss[1], orderly=True)
        w.saw("import.disconnected", target=w.mds, orderly=True)
        await w.oss[0].start()
        async with Mounted(w, "again") as again:
            sizes = [await again.call(os.path.getsize, again.path / f"f{number}") for number in range(6)]
            assert sorted(sizes) == [0, 0, 0, 1000, 1000, 1000]
            for number in range(6):
                await again.call(os.unlink, again.path / f"f{number}")


@pytest.mark.processes
@pytest.mark.parametrize("stopped", [False, True])
async def test_a_forced_unmount_ends_who_is_still_leaving(world: Any, stopped: bool) -> None:
    """Its OSS is dead and it waits to write back; or it does not even hear that it is not to wait."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        await m.call((m.path / "f").write_bytes, b"lost")
        record = m.record
        w.expect("lock.expired", "client.evicted", "recovery.evicting")  # of the one that is killed
        await w.oss[0].kill()
        await m.umount("-l")
        if stopped:
            os.kill(record["pid"], signal.SIGSTOP)
        done = await m.run("umount", str(m.path))
        assert done.returncode == 1 and "is still leaving" in done.stderr and runs(record)
        done = await m.run("umount", "-f", str(m.path))
        assert not done.returncode and not runs(record) and not list(m.run_dir.glob("*.json"))
        assert f"process {record['pid']}, which was still leaving {m.path}, is ended: what it had not written back is lost" in done.stderr
        done = await m.run("umount", "-f", str(m.path))
        assert done.returncode == 1 and "nothing of ours is mounted there" in done.stderr
        await w.oss[0].start()
        async with Mounted(w, "again") as again:
            await again.call(os.unlink, again.path / "f")


@pytest.mark.processes
async def test_a_forced_unmount_leaves_alone_who_serves_another_namespace(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        record = m.record
        done = await m.call(
            subprocess.run,
            ["unshare", "-m", "--propagation", "private", "sh", "-c", 'umount "$0" && exec "$@"', str(m.path),
             *m.command("umount", "-f", str(m.path))],
            env=child_environment(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1 and f"in another mount namespace, that of process {record['pid']}" in done.stderr, done.stderr
        assert m.record == record and os.path.ismount(m.path) and m.tell("ping") == "pong"


@pytest.mark.processes
async def test_a_mount_that_is_mounted_twice(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        other = w.directory / "other"
        other.mkdir()
        await m.call(subprocess.run, ["mount", "--bind", str(m.path), str(other)], check=True)
        record, device = m.record, attach.device_of(str(m.path))
        began = time.monotonic()
        done = await m.run("umount", str(m.path))
        assert not done.returncode and f"is still mounted on {other}" in done.stderr and time.monotonic() - began < 20
        await m.call((other / "f").write_bytes, b"x")
        await m.call(os.unlink, other / "f")
        assert attach.points_of(device) == [str(other)]
        done = await m.run("umount", str(other))
        await w.eventually(when(lambda: not runs(record)), "its process ends")


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nobody_hangs_who_was_reading_from_a_dead_server_when_the_mount_was_killed(world: Any, number: signal.Signals) -> None:
    """Another server evicts the mount meanwhile: whoever then drops the pages of the file must not wait for that reader."""
    async with world(oss=2, clients=0) as w, Mounted(w) as other:
        w.expected.update(("client.evicted", "import.evicted", "lock.lost", "lock.expired", "recovery.evicting"))
        m = Mounted(w, "m2")
        await m.start()
        reader, record = None, m.record

        def prepare() -> int:
            (other.path / "d").mkdir()
            llfs(other, "setstripe", "-c", "2", "-S", "4M", "-i", "0", str(other.path / "d"))
            (other.path / "d/f").write_bytes(b"o" * (8 << 20))
            file = os.open(m.path / "d/f", os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            for offset in 1 << 20, 4 << 20:  # locks, and pages of both objects
                os.pread(file, 4096, offset)
            os.fstat(file)
            return file

        file = await m.call(prepare)
        try:
            await w.oss[1].kill()
            reader = await asyncio.create_subprocess_exec(sys.executable, "-c", READER, str(file), pass_fds=[file])
            await w.eventually(when(lambda: m.tell("fuse")["pending"]), "it reads what is not there yet")
            notified = m.tell("fuse")["notified"]
            await w.oss[0].evict(record["client"])
            await w.eventually(when(lambda: m.tell("fuse")["notified"] > notified), "pages are dropped")
            await asyncio.sleep(0.5)
            m.signal(number)
            await asyncio.wait_for(reader.wait(), 30)
            assert reader.returncode == 1
        finally:
            if attach.device_of(str(m.path)):
                attach.detach(str(m.path), attach.MNT_FORCE | attach.MNT_DETACH)  # else who hangs would for ever
            with contextlib.suppress(OSError):
                os.close(file)
            if reader is not None:
                await reader.wait()
        await w.oss[1].start()
        await w.eventually(when(lambda: not m.alive), "the process ends")
        await other.call(shutil.rmtree, other.path / "d")


@pytest.mark.processes
async def test_a_mount_without_fusectl_can_be_aborted(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        held = await m.call(os.open, m.path / "f", os.O_CREAT | os.O_RDWR)
        record = m.record
        await m.umount("-l")
        control.call(Path(record["control"]), "abort")
        await w.eventually(when(lambda: not m.alive), "it ends, although it is in use")
        with pytest.raises(OSError):
            os.fsync(held)
        with pytest.raises(OSError):
            os.close(held)
        async with Mounted(w, "again") as again:
            await again.call(os.unlink, again.path / "f")


@pytest.mark.processes
async def test_what_a_killed_mount_has_left_goes_with_its_unmount_or_with_a_later_mount(world: Any) -> None:
    """It stayed for ever, if nobody mounted there again."""
    async with world(oss=1, clients=0) as w:
        first, second, third = Mounted(w), Mounted(w, "m2"), Mounted(w, "m3")
        for m in (first, second):
            await m.start()
            m.signal(signal.SIGKILL)

        def names() -> set[str]:
            return {path.name for path in first.run_dir.iterdir() if path.is_file() or path.is_socket()}

        async with third:
            here = {f"{third.record['name']}{suffix}" for suffix in (".pid", ".json", ".sock")}
            await first.run("umount", str(first.path))
            assert len(names() - here) == 4  # of the second, which was seen dead: perhaps somebody waits for its end
            assert not [name for name in names() - here if "m1" in name]
            attach.detach(str(second.path))
            (mark,) = first.run_dir.glob("*.dead")
            for path in (mark, mark.with_suffix(".pid")):
                os.utime(path, (1, 1))
            await first.start()
            here |= {f"{first.record['name']}{suffix}" for suffix in (".pid", ".json", ".sock")}
            assert names() == here
            await first.umount()
