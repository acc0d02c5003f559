"""All targets on one small disk, as those of `lustrelite up`: what a program was told is written is there, however full it is."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.posix.mounts import Mounted, missing
from tests.small_disk import fill, small_disk

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

MIB = 1 << 20
DISK_BYTES = 160 * MIB
FILES = 8
PIECE = 200_000


@pytest.fixture(params=["tmpfs", "ext4"])
def one_disk(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """What is made in the temporary directory is made on a small disk. On ext4 what was freed is not free at once."""
    with tempfile.TemporaryDirectory(prefix="lld") as name:  # sockets have short paths
        with small_disk(Path(name), DISK_BYTES, request.param) as place:
            monkeypatch.setattr(tempfile, "tempdir", name)
            yield place


def content(number: int, size: int) -> bytes:
    """What is written to a file, as far as there is room: no two blocks of it are equal."""
    return b"".join(struct.pack("<QQ", number, at) for at in range(-(-size // 16)))[:size]


def write_all_that_fits(top: Path) -> list[int]:
    """Write to several files in turn until there is no room; how many bytes each of them took."""
    fds = [os.open(top / f"f{number}", os.O_CREAT | os.O_WRONLY) for number in range(FILES)]
    whole = [content(number, 2 * DISK_BYTES // FILES) for number in range(FILES)]
    taken = [0] * FILES
    full = set[int]()
    while len(full) < FILES:
        for number in set(range(FILES)) - full:
            at = taken[number]
            try:
                taken[number] += os.pwrite(fds[number], whole[number][at : at + PIECE], at)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                full.add(number)
    for fd in fds:
        os.fsync(fd)  # EIO, ENOSPC: something was accepted and is lost
        os.close(fd)
    return taken


@pytest.mark.processes
async def test_nothing_that_was_accepted_is_lost_on_a_full_disk(world: Any, one_disk: Path) -> None:
    async with world(oss=2, clients=0) as w, Mounted(w) as m, Mounted(w, "m2") as n:
        assert one_disk in w.directory.parents
        await m.call((m.path / "d").mkdir)
        taken = await m.call(write_all_that_fits, m.path / "d")
        assert sum(taken) > DISK_BYTES // 4, taken
        for number, size in enumerate(taken):
            found = await n.call((n.path / "d" / f"f{number}").read_bytes)
            assert found[:size] == content(number, size), number
            assert len(found) < size + PIECE, "of what was refused there may be a part"
        await m.call(shutil.rmtree, m.path / "d")


@pytest.mark.processes
async def test_what_was_accepted_finds_room_when_other_programs_have_filled_the_disk(world: Any, one_disk: Path) -> None:
    """They take the last block while much of it is in the cache of the mount."""
    async with world(oss=2, clients=0) as w, Mounted(w) as m, Mounted(w, "m2") as n:
        files = [m.path / f"f{number}" for number in range(FILES)]
        for path in files:
            await m.call(path.write_bytes, b"")  # known to the MDT, with its objects
        fds = [await m.call(os.open, path, os.O_WRONLY) for path in files]
        sizes = [15 * PIECE + 1000 * number for number in range(FILES)]
        for number, (fd, size) in enumerate(zip(fds, sizes, strict=True)):
            assert await m.call(os.pwrite, fd, content(number, size), 0) == size
        filler = await asyncio.to_thread(fill, one_disk)
        for fd in fds:
            await m.call(os.fsync, fd)
            await m.call(os.close, fd)
        for number, size in enumerate(sizes):
            assert await n.call((n.path / f"f{number}").read_bytes) == content(number, size), number
        filler.unlink()
        await m.call(files[0].write_bytes, b"there is room again")
        for path in files:
            await m.call(path.unlink)
