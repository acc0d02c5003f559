"""fsx on two mounts: every step on one of them by chance, against a copy in memory; the other one must see it at once.

Steps are what fsx does (reads, writes, mappings, truncations, holes, zeros, room, copies, closes), one after the other:
what is looked for is what a kernel or a client has kept although it is no longer true. Files have one stripe or two.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import random
from pathlib import Path
from typing import Any

import pytest

from lustrelite.wire.mdt import StripeHint
from lustrelite.wire.ost import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from tests.file_model import FileModel
from tests.posix.mounts import Mounted, missing
from tests.torture.fire import FULL, KILL_EVERY_S, Fire, size

CASES = [(True, 1), (False, 2), *([(False, 1), (True, 2)] if FULL else [])]
STEPS = size(1000, 200_000)
LONGEST_S = size(100, 3 * 3600)
FILE_BYTES_MAX = 300_000
STRIPE_SIZE = 65536
MODES = (0, FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE)
ACTS = {
    "read": 20, "write": 20, "map_read": 8, "map_write": 8, "truncate": 6, "fallocate": 8, "append": 5, "copy": 4, "size": 8,
    "reopen": 4, "fsync": 2, "direct": 3, "names": 4,
}  # fmt: skip

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(LONGEST_S + 60), pytest.mark.skipif(bool(missing()), reason=missing()),
]  # fmt: skip


class Exerciser:
    """One file, by its name on each mount."""

    def __init__(self, paths: list[Path], rng: random.Random) -> None:
        self.paths = paths
        self.random = rng
        self.model = FileModel()
        self.fds = [os.open(path, os.O_RDWR) for path in paths]
        self.trail: list[str] = []

    def run(self, steps: int) -> None:
        """So many steps; on a difference it says what led there."""
        for number in range(steps):
            side = self.random.randrange(len(self.paths))
            act = self.random.choices(list(ACTS), list(ACTS.values()))[0]
            start = self.random.randrange(FILE_BYTES_MAX)
            end = min(start + self.random.choice((1, 100, 4096, 5000, 66_000, 150_000)), FILE_BYTES_MAX)
            self.trail.append(f"{number} m{side + 1} {act} {start} {end}")
            try:
                getattr(self, act)(side, start, end)
            except Exception as error:
                raise AssertionError("\n".join(self.trail[-30:])) from error
        for side in range(len(self.paths)):
            self.read(side, 0, FILE_BYTES_MAX)
            os.close(self.fds[side])

    def same(self, found: bytes, start: int, end: int) -> None:
        wanted = bytes(self.model[start:end])
        if found != wanted:
            at = next((at for at, (x, y) in enumerate(zip(found, wanted, strict=False)) if x != y), min(len(found), len(wanted)))
            raise AssertionError(
                f"at {start + at}: {found[at : at + 8]!r} instead of {wanted[at : at + 8]!r}; {len(found)} bytes, wanted {len(wanted)}"
            )

    def data(self, start: int, end: int) -> bytes:
        return self.random.randbytes(end - start)

    def read(self, side: int, start: int, end: int) -> None:
        self.same(os.pread(self.fds[side], end - start, start), start, end)

    def write(self, side: int, start: int, end: int) -> None:
        data = self.data(start, end)
        assert os.pwrite(self.fds[side], data, start) == len(data)
        self.model.write(start, data)

    def map_read(self, side: int, start: int, end: int) -> None:
        if end <= len(self.model):
            with mmap.mmap(self.fds[side], len(self.model), prot=mmap.PROT_READ) as view:
                self.same(view[start:end], start, end)

    def map_write(self, side: int, start: int, end: int) -> None:
        if end <= len(self.model):
            data = self.data(start, end)
            with mmap.mmap(self.fds[side], len(self.model)) as view:
                view[start:end] = data
                view.flush()
            self.model.write(start, data)

    def truncate(self, side: int, start: int, end: int) -> None:
        if self.random.random() < 0.5:
            os.ftruncate(self.fds[side], start)
        else:
            os.truncate(self.paths[side], start)
        self.model.truncate(start)

    def fallocate(self, side: int, start: int, end: int) -> None:
        mode = self.random.choice(MODES)
        self.trail[-1] += f" mode {mode:#x}"
        assert not libc.fallocate(self.fds[side], mode, start, end - start), os.strerror(ctypes.get_errno())
        self.model.fallocate(mode, start, end)

    def append(self, side: int, start: int, end: int) -> None:
        if len(self.model) + end - start <= FILE_BYTES_MAX:
            fd = os.open(self.paths[side], os.O_WRONLY | os.O_APPEND)
            data = self.data(start, end)
            assert os.write(fd, data) == len(data)
            os.close(fd)
            self.model.write(len(self.model), data)

    def copy(self, side: int, start: int, end: int) -> None:
        """Within the file, ranges that do not overlap.

        (Linux goes by the size that it last heard of, so it is asked first.)
        """
        os.fstat(self.fds[side])
        to = self.random.randrange(FILE_BYTES_MAX)
        end = min(end, len(self.model))
        if start < end and abs(to - start) >= end - start and to + end - start <= FILE_BYTES_MAX:
            self.trail[-1] += f" to {to}"
            fd, done = self.fds[side], 0
            while done < end - start:
                moved = os.copy_file_range(fd, fd, end - start - done, start + done, to + done)
                assert moved > 0
                done += moved
            self.model.write(to, bytes(self.model[start:end]))

    def size(self, side: int, start: int, end: int) -> None:
        assert os.fstat(self.fds[side]).st_size == os.stat(self.paths[side]).st_size == len(self.model)

    def reopen(self, side: int, start: int, end: int) -> None:
        os.close(self.fds[side])
        self.fds[side] = os.open(self.paths[side], os.O_RDWR)

    def fsync(self, side: int, start: int, end: int) -> None:
        os.fsync(self.fds[side])

    def direct(self, side: int, start: int, end: int) -> None:
        """Past the kernel's pages, at whole ones."""
        start, length = start // 4096 * 4096, 8192
        fd = os.open(self.paths[side], os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, length) as buffer:
            if self.random.random() < 0.5:
                done = os.preadv(fd, [buffer], start)
                self.same(buffer[:done], start, start + length)
            else:
                data = self.data(0, length)
                buffer[:] = data
                assert os.pwritev(fd, [buffer], start) == length
                self.model.write(start, data)
        os.close(fd)

    def names(self, side: int, start: int, end: int) -> None:
        """Another name, and the first one again."""
        path = self.paths[side]
        os.rename(path, path.with_name("other"))
        assert not os.path.exists(self.paths[1 - side])
        os.rename(self.paths[1 - side].with_name("other"), self.paths[1 - side])


@pytest.mark.processes
@pytest.mark.parametrize(("kills", "stripes"), CASES)
async def test_two_mounts_exercise_one_file(world: Any, kills: bool, stripes: int, seed: int) -> None:
    async with world(oss=2, clients=1) as w, Mounted(w) as m1, Mounted(w, "m2") as m2:
        await w.a.unrecorded(w.a.fs.create("/f", 0o644, StripeHint(stripes, STRIPE_SIZE, 0)))
        await w.a.unmount()  # a page fault holds this interpreter: nobody may wait for a client that lives in it
        exerciser = Exerciser([m1.path / "f", m2.path / "f"], random.Random(f"exercise {seed} {kills} {stripes}"))
        work = asyncio.to_thread(exerciser.run, STEPS)
        async with asyncio.timeout(LONGEST_S):
            if kills:
                async with Fire(w, KILL_EVERY_S):
                    await work
            else:
                await work
        await w.settle()
        await m1.call(os.unlink, m1.path / "f")
