"""Names that another mount removes or replaces while somebody here uses them by path."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.mounts import Mounted, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SECONDS = 0.6


def attempts() -> dict[str, Callable[[Path], Any]]:
    """What goes by path, and asks the servers for the inode that the path led to."""

    def opened(flags: int) -> Callable[[Path], None]:
        return lambda path: os.close(os.open(path, flags))

    return {
        "truncate": lambda path: os.truncate(path, 3),
        "chmod": lambda path: os.chmod(path, 0o640),
        "chown": lambda path: os.chown(path, 7, 7),
        "utime": lambda path: os.utime(path, (1, 2)),
        "setxattr": lambda path: os.setxattr(path, "user.k", b"v"),
        "listxattr": lambda path: os.listxattr(path),
        "open": opened(os.O_RDONLY),
        "O_TRUNC": opened(os.O_WRONLY | os.O_TRUNC),
        "stat": lambda path: path.stat(),
    }


def race(change: Callable[[], None], path: Path) -> dict[str, Counter[str]]:
    """What each attempt ends with while another thread repeats `change`."""
    seen: dict[str, Counter[str]] = {}
    ending = threading.Event()

    def go_on() -> None:
        while not ending.is_set():
            change()

    with_changes = threading.Thread(target=go_on)
    with_changes.start()
    try:
        for name, attempt in attempts().items():
            counts = seen[name] = Counter()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:
                try:
                    attempt(path)
                    counts["done"] += 1
                except OSError as error:
                    counts[errno.errorcode[error.errno or 0]] += 1
    finally:
        ending.set()
        with_changes.join()
    return seen


@pytest.mark.processes
async def test_a_name_that_is_replaced_elsewhere_all_the_time_is_always_there(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m, Mounted(w, "m2") as n:

        def replace() -> None:
            (n.path / "new").write_bytes(b"new")
            os.rename(n.path / "new", n.path / "f")

        await m.call(replace)
        seen = await m.call(race, replace, m.path / "f")
        os.unlink(n.path / "f")
        assert all(set(counts) == {"done"} for counts in seen.values()), seen


@pytest.mark.processes
async def test_a_name_that_is_removed_elsewhere_is_there_or_not(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m, Mounted(w, "m2") as n:

        def make_and_remove() -> None:
            (n.path / "f").write_bytes(b"new")
            os.unlink(n.path / "f")

        seen = await m.call(race, make_and_remove, m.path / "f")
        assert all(set(counts) <= {"done", "ENOENT"} for counts in seen.values()), seen


@pytest.mark.processes
async def test_who_is_in_a_directory_that_is_removed_elsewhere_is_in_an_empty_one(world: Any) -> None:
    async with world(oss=1, clients=0) as w, Mounted(w) as m, Mounted(w, "m2") as n:
        await m.call(in_a_removed_directory, m.path, n.path)


def in_a_removed_directory(here: Path, elsewhere: Path) -> None:
    for looked in (False, True):
        (here / "d" / "e").mkdir(parents=True)
        fd = os.open(here / "d" / "e", os.O_RDONLY | os.O_DIRECTORY)
        if looked:
            os.stat(".", dir_fd=fd)
        os.rmdir(elsewhere / "d" / "e")
        assert os.fstat(fd).st_nlink == 0 and os.listdir(fd) == []
        for work in (os.stat, os.unlink, os.rmdir, os.mkdir, os.readlink):
            with pytest.raises(FileNotFoundError):
                work("f", dir_fd=fd)
        with pytest.raises(FileNotFoundError):
            os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
        assert os.fstat(fd).st_nlink == 0
        with pytest.raises(FileNotFoundError):
            (here / "d" / "e").stat()
        os.close(fd)
        os.rmdir(here / "d")


@pytest.mark.processes
async def test_two_may_remove_one_tree(world: Any) -> None:
    """rm -r of each takes what the other has left, and neither has a complaint, as on a local disk."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m, Mounted(w, "m2") as n:
        for _ in range(3):
            await m.call(make_tree, m.path / "t")
            removing = [n.call(subprocess.run, ["rm", "-rf", top / "t"], capture_output=True, text=True) for top in (m.path, n.path)]
            for done in await asyncio.gather(*removing):
                assert (done.returncode, done.stderr) == (0, "")


def make_tree(top: Path) -> None:
    for number in range(12):
        directory = top / str(number) / "x" / "y"
        directory.mkdir(parents=True)
        for name in range(10):
            (directory / f"f{name}").touch()
