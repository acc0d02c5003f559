"""Whole files and trees: copying in, out and within, walking, making and removing directories.

Everything here is written with the public methods of FileSystem. Local files are read and written in worker threads;
what is read, here or there, is one piece ahead of what is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING

from lustrelite.client.paths import AnyPath, Path, encode, like
from lustrelite.errors import OpError
from lustrelite.ids import NO_FID, Fid

if TYPE_CHECKING:
    from lustrelite.client.file import File
    from lustrelite.client.fs import FileSystem

COPY_BYTES = 8 << 20  # in one step


async def makedirs(fs: FileSystem, path: bytes, mode: int, exist_ok: bool) -> None:
    """Make a directory and what is missing above it; see FileSystem.makedirs."""
    try:
        await fs.mkdir(path, mode)
    except OpError as error:
        parent = os.path.dirname(path.rstrip(b"/"))
        if error.errno == errno.ENOENT and parent not in (b"", b"/"):
            await makedirs(fs, parent, mode, True)
            await makedirs(fs, path, mode, exist_ok)
        elif error.errno != errno.EEXIST or not exist_ok or not (await fs.stat(path)).is_dir:
            raise


async def walk(fs: FileSystem, top: AnyPath) -> AsyncIterator[tuple[AnyPath, list[AnyPath], list[AnyPath]]]:
    """See FileSystem.walk. Symlinks are not followed; a directory that vanishes meanwhile is left out."""
    left = [encode(top)]
    while left:
        here = left.pop()
        directories: list[bytes] = []
        others: list[bytes] = []
        try:
            fid = (await fs.stat(here)).fid
            async for entry in fs.scandir_fid(fid, plus=False):
                (directories if stat.S_ISDIR(entry.type) else others).append(entry.name)
        except OpError as error:
            if error.errno != errno.ENOENT or here == encode(top):
                raise
            continue
        yield like(here, top), [like(name, top) for name in directories], [like(name, top) for name in others]
        left.extend(os.path.join(here, name) for name in reversed(directories))


async def rmtree(fs: FileSystem, path: bytes) -> None:
    """See FileSystem.rmtree. What others remove meanwhile is no error.

    From the top on it goes by FID: nothing is removed through a symlink that somebody puts in the place of a directory.
    """
    top = await fs.stat(path, follow=False)
    if not top.is_dir:
        await fs.unlink(path)
        return
    found: list[tuple[Fid, bytes, Fid, list[bytes]]] = []  # directories, each behind the one it is in: (that, name, FID, others)
    left = [(NO_FID, b"", top.fid)]
    while left:
        parent, name, fid = left.pop()
        directories: list[bytes] = []
        others: list[bytes] = []
        found.append((parent, name, fid, others))
        try:
            async for entry in fs.scandir_fid(fid, plus=False):
                (directories if stat.S_ISDIR(entry.type) else others).append(entry.name)
        except OpError as error:
            if error.errno != errno.ENOENT or not name:
                raise
        for each in reversed(directories):
            try:
                left.append((fid, each, (await fs.stat_at(fid, each)).fid))  # which asks whether he may search here
            except OpError as error:
                if error.errno != errno.ENOENT:
                    raise
    for parent, name, fid, others in reversed(found):
        for other in others:
            await _unless_gone(fs.unlink_at(fid, other))
        await _unless_gone(fs.rmdir_at(parent, name) if name else fs.rmdir(path))


async def _unless_gone(removal: object) -> None:
    assert asyncio.iscoroutine(removal)
    try:
        await removal
    except OpError as error:
        if error.errno != errno.ENOENT:
            raise


async def copy(fs: FileSystem, source: Path, target: Path) -> None:
    """See FileSystem.copy."""
    async with await fs.open(source) as reader:
        attributes = await reader.fstat()
        if not attributes.is_file:
            raise OpError(errno.EISDIR if attributes.is_dir else errno.EINVAL, "not a regular file")
        if await fs.exists(target) and (await fs.stat(target)).fid == attributes.fid:
            raise OpError(errno.EINVAL, f"{os.fsdecode(source)} and {os.fsdecode(target)} are the same file")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        async with await fs.open(target, flags, attributes.mode & 0o777) as writer:
            async with contextlib.aclosing(_contents(reader, attributes.size)) as contents:
                async for offset, data in contents:
                    await writer.pwrite(data, offset)
            await _set(writer, attributes.mode, attributes.atime, attributes.mtime)


async def copy_in(fs: FileSystem, local: Path, path: Path) -> None:
    """See FileSystem.copy_in.  OSError from the local side"""
    node = fs.connections.node
    info = await node.run_blocking(os.lstat, local)
    if stat.S_ISLNK(info.st_mode):
        await fs.symlink(os.fsencode(await node.run_blocking(os.readlink, local)), path)
        return
    if not stat.S_ISREG(info.st_mode):
        raise OpError(errno.EINVAL, f"{os.fsdecode(local)} is neither a file nor a symlink")
    descriptor = await node.run_blocking(os.open, local, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        async with await fs.open(path, flags, stat.S_IMODE(info.st_mode) & 0o777) as file:
            offset = 0
            data = await node.run_blocking(os.pread, descriptor, COPY_BYTES, 0)
            while data:
                after = offset + len(data)
                following = asyncio.ensure_future(node.run_blocking(os.pread, descriptor, COPY_BYTES, after))
                try:
                    await file.pwrite(data, offset)
                finally:
                    data = await following  # the descriptor may not be closed before
                offset = after
            await _set(file, info.st_mode, info.st_atime_ns, info.st_mtime_ns)
    finally:
        os.close(descriptor)


async def _set(file: File, mode: int, atime: int, mtime: int) -> None:
    await file.fs.change_fid(file.fid, mode=stat.S_IMODE(mode), atime=atime, mtime=mtime)


async def copy_out(fs: FileSystem, path: Path, local: Path) -> None:
    """See FileSystem.copy_out.  OSError from the local side"""
    node = fs.connections.node
    attributes = await fs.stat(path, follow=False)
    if attributes.is_symlink:
        await node.run_blocking(os.symlink, await fs.readlink_fid(attributes.fid), os.fsencode(local))
        return
    if not attributes.is_file:
        raise OpError(errno.EISDIR if attributes.is_dir else errno.EINVAL, "neither a file nor a symlink")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    async with await fs.open(path) as file:
        descriptor = await node.run_blocking(os.open, local, flags, stat.S_IMODE(attributes.mode) & 0o777)
        try:
            async with contextlib.aclosing(_contents(file, attributes.size)) as contents:
                async for offset, data in contents:
                    await node.run_blocking(_write_all, descriptor, data, offset)
            await node.run_blocking(os.fchmod, descriptor, stat.S_IMODE(attributes.mode))
            await node.run_blocking(_set_times, descriptor, attributes.atime, attributes.mtime)
        finally:
            os.close(descriptor)


async def _contents(file: File, size: int) -> AsyncGenerator[tuple[int, bytes], None]:
    """(offset, data) to the end of a file of about `size` bytes; what comes next is read meanwhile."""
    tasks = file.fs.connections.tasks
    step = min(COPY_BYTES, size + 1)  # so that the first read of a small file finds its end
    offset, data = 0, await file.pread(step, 0)
    while data:
        after = offset + len(data)
        following = tasks.spawn(file.pread(step, after), "read ahead") if len(data) == step else None
        try:
            yield offset, data
        except BaseException:
            if following is not None:
                following.cancel()
            raise
        found: bytes | OpError = await following if following is not None else b""
        if isinstance(found, OpError):
            raise found
        offset, data = after, found


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def _set_times(descriptor: int, atime: int, mtime: int) -> None:
    os.utime(descriptor, ns=(atime, mtime))
