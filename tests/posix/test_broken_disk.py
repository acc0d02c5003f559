"""Disks that break, and lose their power: a file system on a loop device is shut down under the targets, as a power cut would.

Unlike kill -9 that takes what the kernel had not written back. Servers end by themselves where a disk takes nothing any
more, and with a disk that works their successors get from clients what is missing: no program hears of it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lustrelite.cli.errors import Refused
from lustrelite.control import ControlFailed
from tests.posix.mounts import Mounted, missing, when
from tests.small_disk import make_ext4

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MIB = 1 << 20
IMAGE_BYTES = 512 * MIB
SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN, _IOR('X', 125, u32)
AT_ONCE = 2  # its journal is not written first
ROUNDS = 3
FILES = 12


class LoopDisk:
    """Directories moved to a file system of their own."""

    def __init__(self, top: Path) -> None:
        self.image, self.place = top / "image", top / "disk"
        self.directories: list[Path] = []

    def _run(self, *command: str | Path) -> None:
        subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)

    def make(self) -> None:
        """Skip the test where that cannot be done."""
        with open(self.image, "wb") as image:
            image.truncate(IMAGE_BYTES)
        self.place.mkdir()
        make_ext4(self.image)
        try:
            self._run("mount", "-o", "loop", self.image, self.place)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no loop device here: {error.stderr}")

    def take(self, directory: Path) -> None:
        """Move `directory` there."""
        shutil.copytree(directory, self.place / directory.name)
        shutil.rmtree(directory)
        directory.mkdir()
        self.directories.append(directory)
        self._run("mount", "--bind", self.place / directory.name, directory)
        self._run("sync", "--file-system", self.place)

    def cut(self) -> None:
        """From now on everything fails, and what was not durable is lost."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", AT_ONCE))
        finally:
            os.close(fd)

    def back(self) -> None:
        """The same disk, and a new start of the machine. Nobody may be using it."""
        for directory in [*self.directories, self.place]:
            self._run("umount", directory)
        self._run("mount", "-o", "loop", self.image, self.place)
        while not self._works():  # somebody else's mount namespace has a copy of the old mount, for as long as it lives
            self._run("umount", self.place)
            time.sleep(0.1)
            self._run("mount", "-o", "loop", self.image, self.place)
        for directory in self.directories:
            self._run("mount", "--bind", self.place / directory.name, directory)

    def _works(self) -> bool:
        try:
            (self.place / "probe").touch()
        except OSError:
            return False
        (self.place / "probe").unlink()
        return True

    def remove(self) -> None:
        """Unmount everything."""
        for directory in [*self.directories, self.place]:
            subprocess.run(["umount", "--lazy", str(directory)], check=False, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    """An empty one. A world that uses it has ended when it goes."""
    found = LoopDisk(tmp_path)
    found.make()
    yield found
    found.remove()


def content(number: int, turn: int) -> bytes:
    """What a file has after so many turns: some are small, some have several RPCs."""
    return b"%d %d " % (number, turn) * (20 if number % 3 else 60_000)


def work(top: Path, over: threading.Event) -> dict[int, int]:
    """Write, sync, read and rename until it is over; which turn each file was in at last."""
    turns: dict[int, int] = {}
    turn = 0
    while not over.is_set():
        turn += 1
        number = turn % FILES
        path = top / f"f{number}"
        with open(top / f"new{number}", "wb", buffering=0) as file:
            file.write(content(number, turn))
            if turn % 2:
                os.fsync(file.fileno())
        os.rename(top / f"new{number}", path)
        turns[number] = turn
        other = (turn * 5) % FILES
        if other in turns:
            assert (top / f"f{other}").read_bytes() == content(other, turns[other]), other
        assert len(os.listdir(top)) == len(turns)
    return turns


@pytest.mark.processes
@pytest.mark.parametrize("what", ["one OST's disk", "all disks"])
async def test_no_program_hears_of_a_disk_that_was_shut_down(world: Any, disk: LoopDisk, what: str) -> None:
    async with world(oss=2, clients=0) as w, Mounted(w) as m, Mounted(w, "m2") as n:
        victims = [w.oss[0]] if what == "one OST's disk" else [w.mds, *w.oss]
        for server in victims:
            await server.stop()
            for target in server.targets:
                disk.take(w.cluster.target_dir(target))
        await asyncio.gather(*[server.start() for server in victims])
        await m.call((m.path / "d").mkdir)
        over = threading.Event()
        working = asyncio.create_task(m.call(work, m.path / "d", over))
        try:
            for round_ in range(ROUNDS):
                await asyncio.sleep(0.5 + round_ / 4)  # whatever is under way then
                disk.cut()
                if what == "one OST's disk":  # it finds out by itself; the others go on
                    await w.eventually(when(lambda: not any(server.alive for server in victims)), "the server ends")
                for server in victims:
                    with suppress(Refused, ControlFailed):  # it has ended by itself in this moment
                        await server.kill()
                w.gather()
                assert {event.name for event in w.errors} <= {"node.crashed"}, w.errors
                w.errors.clear()
                w.failures.clear()
                disk.back()
                await asyncio.gather(*[server.start() for server in victims])
        except BaseException:
            working.cancel()
            raise
        over.set()
        turns = await working
        assert max(turns.values()) > ROUNDS
        for number, turn in turns.items():
            assert await n.call((n.path / "d" / f"f{number}").read_bytes) == content(number, turn), number
        await m.call(shutil.rmtree, m.path / "d")
