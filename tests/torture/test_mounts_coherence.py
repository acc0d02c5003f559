"""Two mounts on one host, judged by the coherence checker: what threads did and saw by plain system calls.

A round has files and a directory of its own and a history of its own. Threads of both mounts read, write, append to,
truncate and lock the files, and make, remove, rename and link names; all is looked at once more at the end, also by a
mount that is new. Record locks are those of open file descriptions. What one system call sees by several looks at
different moments (that a rename goes from a file to a directory) is not evidence, and left out. So is that a read met
the end of the file: Linux throws the answer to its GETATTR away when we have it drop pages meanwhile, and goes by the
size it knew before (fuse_change_attributes()); fstat(2) is not affected, and is evidence. A write that begins within a
page does not go beyond it: the kernel would make two of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import random
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lustrelite.fuse.kernel import PAGE_BYTES
from lustrelite.ids import fid_inode, target_name
from lustrelite.sim import coherence
from lustrelite.sim.coherence_history import Data, File, History, Op, fill, parse
from lustrelite.tunables import Tunables
from lustrelite.wire.mdt import StripeHint
from tests.posix.mounts import Mounted, missing
from tests.torture.fire import KILL_EVERY_S, Fire, size

FSNAME = "lustre"
MDT = target_name(FSNAME, "MDT", 0)
STRIPE_SIZE = 65536
FILES, LOG = ("0", "1"), "log"
NAMES = tuple("abcde")
OFFSETS = (0, 64, 4032, 4096, 8192, 20032, STRIPE_SIZE - 128, STRIPE_SIZE, 2 * STRIPE_SIZE - 64)
LENGTHS = (64, 64, 128, 4096, 4096, 8192, 20032)
READ_BYTES = 4 * STRIPE_SIZE
ROUNDS = size(2, 60)
ROUND_OPERATIONS = 260  # of all threads together
WAIT_S = 100
FLOCK = struct.Struct("hhqqi4x")  # of fcntl(2)

libc = ctypes.CDLL(None, use_errno=True)
pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(size(180, 3600)), pytest.mark.skipif(bool(missing()), reason=missing()),
]  # fmt: skip


class Evidence(History):
    """A history that threads write."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.mutex = threading.Lock()
        self.composite: set[Op] = set()  # not one moment
        self.left = ROUND_OPERATIONS
        self.crowded = True
        self.turns: dict[tuple[str, str], threading.Lock] = {}  # (mount, file): the kernel tears what it copies at once

    def take(self) -> bool:
        """Is there an operation left to do?"""
        with self.mutex:
            self.left -= 1
            return self.left >= 0

    def turn(self, client: str, file: str) -> threading.Lock:
        with self.mutex:
            return self.turns.setdefault((client, file), threading.Lock())


class Worker:
    """One thread on one mount."""

    def __init__(self, history: Evidence, client: str, number: int, top: Path, rng: random.Random) -> None:
        self.history = history
        self.client = client
        self.number = number
        self.top = top
        self.random = rng
        self.fds: dict[tuple[str, int], int] = {}
        self.inodes: dict[int, str] = {}
        self.locked: int | None = None

    # recording ----------------------------------------------------------------------------------------------------

    def do(
        self, kind: str, target: str, *args: Any, call: Callable[[], Any], result: Callable[[Any], Any] = lambda _: None,
        refusals: Sequence[int] = (), composite: Sequence[int] = (), handle: int = 0,
        met_end: bool = False,
    ) -> Any:  # fmt: skip
        """One operation and what it came to; None if it was refused. Any other error is the test's failure."""
        history = self.history
        with history.mutex:
            op = history.begin(self.client, kind, target, *args, handle=handle)
        try:
            found = call()
        except OSError as error:
            with history.mutex:
                history.refused(op, error.errno or 0)
                if error.errno in composite:
                    history.composite.add(op)
            if error.errno in (*refusals, *composite):
                return None
            raise AssertionError(f"{op}: {error}") from error
        with history.mutex:
            history.succeeded(op, result(found))
            if met_end:
                op.args = (args[0], len(found))
        return found

    def seen(self, name: str, call: Callable[[], os.stat_result]) -> os.stat_result | None:
        """A stat by name: looks at the name, the links, the permissions and the size, that begin and end together."""
        history = self.history
        with history.mutex:
            op = history.begin(self.client, "lookup", name)
        try:
            found = call()
        except FileNotFoundError:
            with history.mutex:
                history.refused(op, errno.ENOENT)
            return None
        fid = str(found.st_ino)
        with history.mutex:
            if stat.S_ISDIR(found.st_mode):
                history.directories[fid] = None
            looks = [("links", found.st_nlink), ("mode", stat.S_IMODE(found.st_mode))]
            if fid in history.files:
                looks.append(("size", found.st_size))
            for kind, value in looks:
                history.succeeded(history.also(op, kind, fid), value)
            history.succeeded(op, fid)
        return found

    # data ---------------------------------------------------------------------------------------------------------

    def fd(self, name: str, flags: int = os.O_RDWR) -> int:
        if (name, flags) not in self.fds:
            fd = self.fds[name, flags] = os.open(self.top / name, flags)
            self.inodes[fd] = str(os.fstat(fd).st_ino)
        return self.fds[name, flags]

    @contextlib.contextmanager
    def alone(self, fd: int) -> Iterator[str]:
        with self.history.turn(self.client, self.inodes[fd]):
            yield self.inodes[fd]

    def read(self, fd: int, offset: int, length: int) -> None:
        with self.alone(fd) as file:
            self.do("read", file, offset, length, handle=fd, call=lambda: os.pread(fd, length, offset),
                    result=lambda data: Data(len(data), parse(data, offset)), met_end=self.history.crowded)  # fmt: skip

    def write(self, fd: int, offset: int, length: int, *, append: bool = False) -> None:
        if not append and offset % PAGE_BYTES:
            length = min(length, PAGE_BYTES - offset % PAGE_BYTES)
        with self.history.mutex:
            tag = self.history.new_tag()
        data = fill(tag, length)

        def call() -> None:
            assert (os.write(fd, data) if append else os.pwrite(fd, data, offset)) == length

        with self.alone(fd) as file:
            if append:
                self.do("append", file, length, tag, call=call, handle=fd)
            else:
                self.do("write", file, offset, length, tag, call=call, handle=fd)

    def size(self, fd: int) -> None:
        self.do("size", self.inodes[fd], call=lambda: os.fstat(fd).st_size, result=int, handle=fd)

    def do_data(self) -> None:
        """Something with a file."""
        rng = self.random
        name = rng.choice((FILES[0], *FILES, LOG))
        fd = self.fd(name)
        act = rng.choices(("read", "all", "size", "fsync", "lock", "write", "truncate", "append"), (30, 10, 12, 5, 6, 30, 7, 8))[0]
        if name == LOG and act in ("write", "truncate"):
            act = "append"
        offset, length = rng.choice(OFFSETS), rng.choice(LENGTHS)
        if act == "read":
            self.read(fd, offset, length)
        elif act == "all":
            self.read(fd, 0, READ_BYTES)
        elif act == "size":
            self.size(fd)
        elif act == "fsync":
            self.do("fsync", self.inodes[fd], call=lambda: os.fsync(fd), handle=fd)
        elif act == "write":
            self.write(fd, offset, length)
        elif act == "append":
            self.write(self.fd(name, os.O_RDWR | os.O_APPEND), 0, min(length, 8192), append=True)
        elif act == "truncate":
            with self.alone(fd) as file:
                self.do("truncate", file, offset, call=lambda: os.ftruncate(fd, offset), handle=fd)
        elif self.locked is None:
            self.lock(fd)
        else:
            self.unlock()

    def lock(self, fd: int) -> None:
        """A lock of this open file description."""
        exclusive, waits = self.random.random() < 0.6, self.random.random() < 0.5
        start, length = self.random.choice((0, 0, 10)), self.random.choice((10, 20))
        how = FLOCK.pack(fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, os.SEEK_SET, start, length, 0)
        command = fcntl.F_OFD_SETLKW if waits else fcntl.F_OFD_SETLK
        owner = f"{self.client}{self.number}"
        held = self.do("flock", self.inodes[fd], owner, exclusive, start, start + length - 1, waits, handle=fd,
                       call=lambda: fcntl.fcntl(fd, command, how), result=lambda _: None, refusals=(errno.EAGAIN,))  # fmt: skip
        if held is not None:
            self.locked = fd

    def unlock(self) -> None:
        fd, self.locked = self.locked, None
        if fd is not None:
            how = FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
            self.do("flock", self.inodes[fd], f"{self.client}{self.number}", None, 0, (1 << 63) - 1, False, handle=fd,
                    call=lambda: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, how))  # fmt: skip

    # names --------------------------------------------------------------------------------------------------------

    def do_names(self) -> None:
        """Something in the directory n."""
        name, other = self.random.choices(NAMES, k=2)
        path, weights = self.top / "n" / name, {
            "stat": 24, "list": 8, "create": 18, "mkdir": 4, "unlink": 12, "rmdir": 4, "rename": 14, "link": 6, "open": 12,
            "chmod": 6,
        }  # fmt: skip
        act = self.random.choices(list(weights), list(weights.values()))[0]
        if act == "stat":
            self.seen(name, lambda: os.lstat(path))
        elif act == "list":
            self.do("list", "n", call=lambda: list(os.scandir(path.parent)), result=self.listed)
        elif act == "create":
            self.opened("create", name, os.O_CREAT | os.O_EXCL)
        elif act == "mkdir":
            self.mkdir(name, path)
        elif act == "unlink":
            self.do(act, name, call=lambda: os.unlink(path), refusals=(errno.ENOENT, errno.EISDIR))
        elif act == "rmdir":
            self.do(act, name, call=lambda: os.rmdir(path), refusals=(errno.ENOENT, errno.ENOTDIR))
        elif act == "rename":
            self.do(act, name, other, call=lambda: os.rename(path, path.with_name(other)), refusals=(errno.ENOENT,),
                    composite=(errno.EISDIR, errno.ENOTDIR))  # fmt: skip
        elif act == "open":
            self.opened("open", name, self.random.choice((0, os.O_CREAT)))
        else:
            self.with_inode(act, path, other)

    def listed(self, entries: list[os.DirEntry[str]]) -> dict[str, str]:
        """What a listing shows."""
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                self.history.directories[str(entry.inode())] = None
        return {entry.name: str(entry.inode()) for entry in entries}

    def mkdir(self, name: str, path: Path) -> None:
        """Whose inode it has is asked by another call: if it is gone by then, nobody knows."""
        history = self.history
        with history.mutex:
            op = history.begin(self.client, "mkdir", name)
        try:
            os.mkdir(path)
        except FileExistsError:
            with history.mutex:
                history.refused(op, errno.EEXIST)
            return
        with history.mutex:
            history.failed(op)  # it happened, and was seen by some or by nobody

    def opened(self, kind: str, name: str, flags: int) -> None:
        """Open or make a file."""
        args = () if kind == "create" else (bool(flags & os.O_CREAT),)

        def call() -> str:
            fd = os.open(self.top / "n" / name, os.O_RDWR | flags, 0o644)
            try:
                return str(os.fstat(fd).st_ino)
            finally:
                os.close(fd)

        refusals = (errno.EEXIST,) if kind == "create" else (errno.ENOENT, errno.EISDIR)
        self.do(kind, name, *args, call=call, result=str, refusals=refusals)

    def with_inode(self, act: str, path: Path, other: str) -> None:
        """A link to, or a chmod of, what a name leads to: that is seen first."""
        try:
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            try:
                st = os.fstat(fd)
            except OSError as error:
                assert error.errno == errno.ESTALE, error  # O_PATH opens nothing: another node has removed it
                return
            if not stat.S_ISREG(st.st_mode):
                return
            fid, at = str(st.st_ino), f"/proc/self/fd/{fd}"
            if act == "chmod":
                with self.history.mutex:
                    mode = self.history.new_mode()
                self.do(act, fid, mode, call=lambda: os.chmod(at, mode), refusals=(errno.ENOENT, errno.ESTALE))
                return

            def link() -> None:
                if libc.linkat(-100, at.encode(), -100, os.fsencode(path.with_name(other)), 0x400):
                    raise OSError(ctypes.get_errno(), "linkat")

            self.do(act, other, fid, call=link, refusals=(errno.EEXIST,), composite=(errno.ENOENT, errno.ESTALE))
        finally:
            os.close(fd)

    # the whole ----------------------------------------------------------------------------------------------------

    def work(self, names: float) -> None:
        """Until the round is over; `names` is how much of it is about names."""
        while self.history.take():
            if self.random.random() < names:
                self.do_names()
            else:
                self.do_data()
            if self.random.random() < 0.4:
                time.sleep(self.random.choice((0.001, 0.01, 0.1)))
        self.unlock()

    def look(self) -> None:
        """At everything."""
        for name in (*FILES, LOG):
            fd = self.fd(name)
            self.read(fd, 0, READ_BYTES)
            self.size(fd)
        for name in NAMES:
            self.seen(name, functools.partial(os.lstat, self.top / "n" / name))

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)


async def prepare(w: Any, top: str, history: Evidence, rng: random.Random) -> None:
    """The files and the directory of a round."""
    client = w.a
    await client.unrecorded(client.fs.mkdir(top, 0o755))
    await client.unrecorded(client.fs.mkdir(f"{top}/n", 0o755))
    for number, name in enumerate((*FILES, LOG)):
        path = f"{top}/{name}"
        await client.unrecorded(client.fs.create(path, 0o644, StripeHint(rng.choice((1, 1, 2)), STRIPE_SIZE, number % 2)))
        layout = (await client.unrecorded(client.fs.stat(path))).layout
        fid = (await client.unrecorded(client.fs.stat(path))).fid
        stripes = tuple(target_name(FSNAME, "OST", index) for index, _ in layout.stripes)
        history.files[str(fid_inode(fid))] = File(layout.stripe_size, stripes)


async def in_threads(calls: Sequence[Callable[[], None]]) -> None:
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*[asyncio.to_thread(call) for call in calls])


class RecordedFire(Fire):
    """The history knows of every death, and when the target has recovered."""

    history: Evidence | None = None

    def died(self, targets: Sequence[str]) -> None:
        if self.history is not None:
            with self.history.mutex:
                for target in targets:
                    self.history.died(target, self.deaths, 1, 0)  # something may not have been durable

    def is_back(self, targets: Sequence[str]) -> None:
        if self.history is not None:
            with self.history.mutex:
                for target in targets:
                    self.history.is_back(target)


@pytest.mark.processes
@pytest.mark.parametrize("kills", [False, True], ids=["peace", "kills"])
async def test_two_mounts_are_coherent(world: Any, kills: bool, seed: int) -> None:
    async with (
        world(oss=2, clients=1, tunables=Tunables()) as w, Mounted(w) as m1, Mounted(w, "m2") as m2,
        contextlib.AsyncExitStack() as stack,
    ):  # fmt: skip
        fire = await stack.enter_async_context(RecordedFire(w, KILL_EVERY_S)) if kills else None
        mounts = {"m1": m1, "m2": m2}
        for number in range(ROUNDS):
            history, rng = Evidence(), random.Random(f"{seed} {number} {kills}")
            history.caching.update(dict.fromkeys((*mounts, "m3")))
            await prepare(w, f"/{number}", history, rng)
            workers = [
                Worker(history, name, n, m.path / str(number), random.Random(f"{seed} {number} {name} {n}"))
                for name, m in mounts.items()
                for n in range(3)
            ]
            if fire is not None:
                fire.history = history
            await in_threads([functools.partial(worker.work, rng.choice((0.1, 0.35, 0.8))) for worker in workers])
            history.crowded = False
            for worker in workers[::3]:
                await in_threads([worker.look])
            await in_threads([worker.close for worker in workers])
            if number == ROUNDS - 1:
                async with Mounted(w, "m3") as m3:
                    last = Worker(history, "m3", 0, m3.path / str(number), rng)
                    await in_threads([last.look])
                    await in_threads([last.close])
            if fire is not None:
                fire.history = None
            history.ops = [op for op in history.ops if op not in history.composite]
            problems = coherence.check(history, mdt=MDT, names=NAMES)
            assert not problems, f"round {number}:\n" + "\n".join(problems)
            assert len(history.ops) > ROUND_OPERATIONS
            await w.a.unrecorded(w.a.fs.rmtree(f"/{number}"))
        await stack.aclose()
        await w.settle()
