"""Copying trees between this machine and the file system, several files at a time."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import NamedTuple

from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError
from lustrelite.ids import Fid
from lustrelite.tunables import PARALLEL

PIECE_BYTES = 8 << 20


class Item(NamedTuple):
    """One thing to copy. Directories come before what is in them."""

    source: str
    target: str
    directory: bool
    bytes: int


Progress = Callable[[Item], None]


def local_items(source: str, target: str) -> Iterator[Item]:
    """The tree at `source` on this machine, to be copied to `target`. Sockets, pipes and devices are left out."""
    info = os.lstat(source)
    if not stat.S_ISDIR(info.st_mode):
        if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            yield Item(source, target, False, info.st_size)
        return
    yield Item(source, target, True, 0)
    with os.scandir(source) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        yield from local_items(os.path.join(source, name), f"{target.rstrip('/')}/{name}")


async def remote_items(fs: FileSystem, source: str, target: str) -> list[Item]:
    """The tree at `source` in the file system, to be copied to `target`."""
    info = await fs.stat(source, follow=False)
    if not info.is_dir:
        return [Item(source, target, False, info.size)]
    items = [Item(source, target, True, 0)]
    below = []
    async for entry in fs.scandir(source):
        if entry.stat is None:
            continue  # removed meanwhile
        name = os.fsdecode(entry.name)
        here, there = f"{source.rstrip('/')}/{name}", os.path.join(target, name)
        if stat.S_ISDIR(entry.type):
            below.append((here, there))
        elif stat.S_ISREG(entry.type) or stat.S_ISLNK(entry.type):
            items.append(Item(here, there, False, entry.stat.size))
    for here, there in below:
        items += await remote_items(fs, here, there)
    return items


async def in_parallel(items: Iterable[Item], work: Callable[[Item], Awaitable[None]], parallel: int) -> None:
    """Run `work` on every item, `parallel` at a time; the first error stops it all."""
    queue = iter(items)

    async def worker() -> None:
        for item in queue:
            await work(item)

    workers = [asyncio.ensure_future(worker()) for _ in range(parallel)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()


class Putter:
    """Copies local files and symlinks in. It knows the FIDs of the directories it has met: no path is walked twice."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self._parents: dict[str, Fid] = {}

    async def put(self, item: Item) -> None:
        """Copy one file or symlink, with mode and times; OpError names its path."""
        try:
            await self._put(item)
        except OpError as error:
            raise OpError(error.errno, f"{item.target}" + (f" ({error.what})" if error.what else "")) from None

    async def _put(self, item: Item) -> None:
        path, name = os.path.split(item.target)
        parent = self._parents.get(path)
        if parent is None:
            parent = self._parents[path] = (await self.fs.stat(path or "/")).fid
        raw = os.fsencode(name)
        run_blocking = self.fs.connections.node.run_blocking
        info = os.lstat(item.source)
        if stat.S_ISLNK(info.st_mode):
            await self.fs.symlink_at(os.fsencode(os.readlink(item.source)), parent, raw)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            file = await self.fs.open_at(parent, raw, flags, stat.S_IMODE(info.st_mode) & 0o777)
        except OpError as error:
            if error.errno != errno.ELOOP:
                raise
            file = await self.fs.open(item.target, flags)  # a symlink is in the way: it is followed
        async with file:
            offset = 0
            with open(item.source, "rb", buffering=0) as local:
                while data := await run_blocking(local.read, PIECE_BYTES):
                    await file.pwrite(data, offset)
                    offset += len(data)
            await self.fs.change_fid(
                file.fid, mode=stat.S_IMODE(info.st_mode), atime=info.st_atime_ns, mtime=info.st_mtime_ns
            )


async def put(fs: FileSystem, items: list[Item], progress: Progress, parallel: int = PARALLEL) -> None:
    """Copy local items in, with modes and times; directories get theirs when they are full."""
    directories = [item for item in items if item.directory]
    for item in directories:
        await fs.makedirs(item.target, 0o777)
        progress(item)

    putter = Putter(fs)

    async def one(item: Item) -> None:
        await putter.put(item)
        progress(item)

    await in_parallel([item for item in items if not item.directory], one, parallel)
    for item in reversed(directories):
        await put_attributes(fs, item)


async def put_attributes(fs: FileSystem, item: Item) -> None:
    """Mode and times of a local directory."""
    info = os.stat(item.source)
    await fs.chmod(item.target, stat.S_IMODE(info.st_mode))
    await fs.utimes(item.target, info.st_atime_ns, info.st_mtime_ns)


async def get(fs: FileSystem, items: list[Item], progress: Progress, parallel: int = PARALLEL) -> None:
    """Copy items out to this machine, with modes and times."""
    for item in items:
        if item.directory:
            os.makedirs(item.target, exist_ok=True)
            progress(item)

    async def one(item: Item) -> None:
        await fs.copy_out(item.source, item.target)
        progress(item)

    await in_parallel([item for item in items if not item.directory], one, parallel)
    for item in reversed(items):
        if item.directory:
            found = await fs.stat(item.source)
            os.chmod(item.target, stat.S_IMODE(found.mode))
            os.utime(item.target, ns=(found.atime, found.mtime))


async def within(fs: FileSystem, items: list[Item], progress: Progress, parallel: int = PARALLEL) -> None:
    """Copy items within the file system, files with modes and times."""
    for item in items:
        if item.directory:
            await fs.makedirs(item.target)
            progress(item)

    async def one(item: Item) -> None:
        found = await fs.stat(item.source, follow=False)
        if found.is_symlink:
            await fs.symlink(await fs.readlink(item.source), item.target)
        else:
            await fs.copy(item.source, item.target)
        progress(item)

    await in_parallel([item for item in items if not item.directory], one, parallel)
