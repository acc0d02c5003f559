"""What the kernel asks about the data of open files, and what is done when a lock goes in the middle."""

from __future__ import annotations

import errno
import os
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from lustrelite.errors import OpError
from lustrelite.fuse import kernel
from lustrelite.fuse.files import TRIES, Files
from lustrelite.fuse.inodes import Inodes
from lustrelite.fuse.kernel import OUT_HEADER, op
from lustrelite.fuse.session import Request
from lustrelite.ids import ROOT_FID

pytestmark = pytest.mark.simulated
SIZE = 4096


class Opened:
    """A mount with one open file, under whose reads and writes a lock goes so many times."""

    def __init__(self, *, lost: int = 0) -> None:
        self.lost = lost
        self.done: list[str] = []
        self.dropped: list[tuple[int, int]] = []
        view: Any = SimpleNamespace(root=ROOT_FID, open_at=self.open_at)
        session: Any = SimpleNamespace(invalidate=self.invalidate, notify=lambda _: True, alive=True)
        self.inodes = Inodes(view, session)
        self.file: Any = SimpleNamespace(
            fid=ROOT_FID, handle=5, flags=os.O_RDWR, layout=None, writable=True, created=False, opened_as=SimpleNamespace(flags=0),
            pread_views=self.pread_views, pwrite=self.pwrite, lock_to_write=self.lock_to_write, fstat=self.fstat,
            abandon=lambda: self.done.append("abandon"),
        )  # fmt: skip
        names = SimpleNamespace(until_told=self.until_told, node=lambda _: self.inodes.root, changing=self.changing)
        callers = SimpleNamespace(view=lambda _: view)
        self.files = Files(SimpleNamespace(inodes=self.inodes, names=names, callers=callers))  # type: ignore[arg-type]
        self.files.handles[5] = self.file

    def invalidate(self, messages: Any) -> Any:
        self.dropped += [struct.unpack_from("<qq", message, OUT_HEADER.size + 8) for message in messages]

    def lose(self) -> None:
        if self.lost:
            self.lost -= 1
            self.inodes.root.withdrawn += 1
            self.inodes.root.started = self.inodes.root.withdrawn

    async def pread_views(self, size: int, offset: int) -> list[memoryview]:
        self.done.append("read")
        self.lose()
        return [memoryview(bytes(size))]

    async def pwrite(self, data: Any, offset: int, *, here: bool) -> None:
        self.lose()

    async def lock_to_write(self, offset: int, size: int) -> None:
        self.done.append("lock")

    async def until_told(self, _: Any) -> None:
        """Nobody waits."""

    async def changing(self, request: Request, parent: Any, change: Any) -> Any:
        return await change

    async def open_at(self, *_: Any, **__: Any) -> Any:
        return self.file

    async def fstat(self) -> Any:
        raise OpError(errno.EIO)

    async def read(self) -> None:
        body = kernel.SHAPES[op.READ].fields.pack(5, 0, SIZE, 0, 0, 0, 0)
        await self.files.read(Request(op.READ, 1, kernel.ROOT_ID, 0, 0, 1), memoryview(body))

    async def write(self) -> None:
        request = Request(op.WRITE, 1, kernel.ROOT_ID, 0, 0, 1)
        request.data = memoryview(bytes(SIZE))
        await self.files.write(request, memoryview(kernel.SHAPES[op.WRITE].fields.pack(5, 0, SIZE, 0, 0, 0, 0)))


@pytest.mark.parametrize(("lost", "reads", "dropped"), [(0, 1, []), (1, 2, []), (TRIES, TRIES, [(0, SIZE)])])
async def test_what_was_read_under_a_lock_that_went_is_read_again(lost: int, reads: int, dropped: Any) -> None:
    """The pages were dropped before it was answered. If that goes on, they are dropped after it."""
    mount = Opened(lost=lost)
    await mount.read()
    assert (mount.done, mount.dropped) == (["read"] * reads, dropped)
    assert not mount.inodes.root.busy


@pytest.mark.parametrize(("lost", "dropped"), [(0, []), (1, [(0, SIZE)])])
async def test_pages_that_were_written_under_a_lock_that_went_are_dropped(lost: int, dropped: Any) -> None:
    mount = Opened(lost=lost)
    await mount.write()
    assert mount.dropped == dropped and not mount.inodes.root.busy


@pytest.mark.parametrize(("mapped", "writable", "done"), [(True, True, ["lock", "read"]), (True, False, ["read"]), (False, True, ["read"])])
async def test_pages_that_may_be_written_without_a_word_are_read_under_locks_to_write(mapped: bool, writable: bool, done: Any) -> None:
    mount = Opened()
    mount.inodes.root.mapped, mount.file.writable = mapped, writable
    await mount.read()
    assert mount.done == done


async def test_a_file_that_was_opened_and_cannot_be_told_of_does_not_stay_open() -> None:
    mount = Opened()
    body = kernel.SHAPES[op.CREATE].fields.pack(os.O_RDWR | os.O_CREAT, 0o644, 0, 0) + b"f\0"
    with pytest.raises(OpError):
        await mount.files.create(Request(op.CREATE, 1, kernel.ROOT_ID, 0, 0, 1), memoryview(body))
    assert mount.done == ["abandon"]


async def test_a_node_is_in_use_from_open_to_release() -> None:
    mount = Opened()
    mount.files.mount.caches = True
    mount.files._wants_atime = lambda _: False  # type: ignore[method-assign]
    mount.file.close_later = lambda: mount.done.append("close")
    mount.files._opened(mount.inodes.root, mount.file)
    assert mount.inodes.root.opens == 1
    body = kernel.SHAPES[op.RELEASE].fields.pack(5, 0, 0, 0)
    mount.files.release(Request(op.RELEASE, 1, kernel.ROOT_ID, 0, 0, 1), memoryview(body))
    assert mount.inodes.root.opens == 0 and mount.done == ["close"] and not mount.files.handles
