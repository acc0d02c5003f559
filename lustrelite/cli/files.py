"""lustrelite ls, cat, cp, mv, rm, mkdir, stat: files without a mount point.

Paths are those inside the file system: `/dir/file`. Only `cp` has two sides, and there the file system's carries its
name in front, as in `lustre:/dir/file`; everything else is on this machine. (The name is accepted everywhere.)
"""

from __future__ import annotations

import errno
import os
import re
import stat as modes
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn

from lustrelite.cli import transfer
from lustrelite.cli.context import where
from lustrelite.cli.errors import Refused
from lustrelite.cli.mount import with_file_system
from lustrelite.client.attributes import DirEntry, Stat
from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError
from lustrelite.ids import fid_text
from lustrelite.wire.mdt import Layout

_REMOTE = re.compile(r"^([-_a-zA-Z0-9]{1,8}):(/.*|)$")


def remote(text: str) -> str | None:
    """The path in the file system of `FSNAME:/path` (or `lustre:/path`), None for a local one."""
    match = _REMOTE.match(text)
    if not match:
        return None
    name, fsname = match.group(1), where().mgs()[1]
    if name not in (fsname, "lustre"):
        raise Refused(f"{text}: the file system is called {fsname!r}")
    return match.group(2) or "/"


def inside(text: str) -> str:
    """An argument that can only be a path in the file system."""
    path = remote(text) or text
    if not path.startswith("/"):
        raise Refused(f"{text}: paths in the file system start with a slash")
    return path


def named(error: OpError, path: str) -> OpError:
    """The error with the path it is about."""
    return OpError(error.errno, error.what if path in error.what else f"{path}" + (f" ({error.what})" if error.what else ""))


@click.command()
@click.option("-l", "long", is_flag=True, help="mode, links, owner, size, time")
@click.option("-a", "everything", is_flag=True, help="also names that start with a dot")
@click.option("-R", "recursive", is_flag=True, help="directories below, too")
@click.argument("paths", nargs=-1)
def ls(long: bool, everything: bool, recursive: bool, paths: tuple[str, ...]) -> None:
    """List directories."""
    tops = [inside(path) for path in paths] or ["/"]

    async def work(fs: FileSystem) -> None:
        left = list(tops)
        shown = 0
        while left:
            path = left.pop(0)
            try:
                info = await fs.stat(path, follow=not long)
                if not info.is_dir:
                    click.echo(await _long(fs, path, info, path) if long else path)
                    continue
                entries = [entry async for entry in fs.scandir(path, sizes=long)]
            except OpError as error:
                raise named(error, path) from None
            if len(tops) > 1 or recursive:
                click.echo(("\n" if shown else "") + f"{path}:")
            shown += 1
            below = []
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = os.fsdecode(entry.name)
                if name.startswith(".") and not everything:
                    continue
                inner = f"{path.rstrip('/')}/{name}"
                click.echo(await _long(fs, inner, entry, name) if long else name)
                if modes.S_ISDIR(entry.type):
                    below.append(inner)
            if recursive:
                left = below + left

    with_file_system(work)


async def _long(fs: FileSystem, path: str, entry: DirEntry | Stat, name: str) -> str:
    info = entry.stat if isinstance(entry, DirEntry) else entry
    if info is None:
        return f"?????????? {name} (removed meanwhile)"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.mtime / 1e9))
    tail = f" -> {await fs.readlink(path)}" if info.is_symlink else ""
    return f"{modes.filemode(info.mode)} {info.nlink:3d} {info.uid:5d} {info.gid:5d} {info.size:12d} {when} {name}{tail}"


@click.command()
@click.argument("paths", nargs=-1, required=True)
def cat(paths: tuple[str, ...]) -> None:
    """Write files to the standard output."""

    async def work(fs: FileSystem) -> None:
        out = sys.stdout.buffer
        for path in map(inside, paths):
            try:
                async with await fs.open(path) as file:
                    while data := await file.read(4 << 20):
                        out.write(data)
            except OpError as error:
                raise named(error, path) from None
        out.flush()

    with_file_system(work)


@click.command()
@click.option("-r", "-R", "recursive", is_flag=True, help="directories with everything in them")
@click.option("-j", "--parallel", default=transfer.PARALLEL, show_default=True, type=click.IntRange(1, 256))
@click.option("-q", "--quiet", is_flag=True, help="no progress")
@click.argument("sources", nargs=-1, required=True)
@click.argument("target")
def cp(recursive: bool, parallel: int, quiet: bool, sources: tuple[str, ...], target: str) -> None:
    """Copy into (lustre:/path), out of, or within the file system, with modes and times."""
    into = remote(target)
    froms = [(source, remote(source)) for source in sources]
    if into is None and any(path is None for _, path in froms):
        raise Refused("one side must be in the file system: write it as lustre:/path")
    if into is not None and any(path is not None for _, path in froms) and any(path is None for _, path in froms):
        raise Refused("sources are either all local or all in the file system")

    async def work(fs: FileSystem) -> tuple[int, int]:
        items: list[transfer.Item] = []
        if into is not None:
            is_dir = await fs.exists(into) and (await fs.stat(into)).is_dir
        else:
            is_dir = os.path.isdir(target)
        if len(sources) > 1 and not is_dir:
            raise Refused(f"{target} is no directory: with several sources it must be one")
        for source, inner in froms:
            name = os.path.basename((inner or source).rstrip("/"))
            there = os.path.join(into or target, name) if is_dir and name else (into or target)
            try:
                found = list(transfer.local_items(source, there)) if inner is None else (
                    await transfer.remote_items(fs, inner, there)
                )  # fmt: skip
            except OpError as error:
                raise named(error, source) from None
            if any(item.directory for item in found) and not recursive:
                raise Refused(f"{source} is a directory: copy it with -r")
            items += found
        with _progress(quiet) as progress:
            files = progress.add_task("files", total=sum(not i.directory for i in items), unit="files")
            size = progress.add_task("bytes", total=sum(i.bytes for i in items), unit="bytes")

            def done(item: transfer.Item) -> None:
                progress.advance(files, 0 if item.directory else 1)
                progress.advance(size, item.bytes)

            if into is None:
                await transfer.get(fs, items, done, parallel)
            elif froms[0][1] is None:
                await transfer.put(fs, items, done, parallel)
            else:
                await _within(fs, items, done, parallel)
        return sum(not i.directory for i in items), sum(i.bytes for i in items)

    began = time.monotonic()
    count, size = with_file_system(work)
    if not quiet and sys.stderr.isatty():
        click.echo(f"{count} files, {size:,} bytes in {time.monotonic() - began:.1f} s", err=True)


async def _within(fs: FileSystem, items: list[transfer.Item], progress: transfer.Progress, parallel: int) -> None:
    for item in items:
        if item.directory:
            await fs.makedirs(item.target)
            progress(item)

    async def one(item: transfer.Item) -> None:
        found = await fs.stat(item.source, follow=False)
        if found.is_symlink:
            await fs.symlink(await fs.readlink(item.source), item.target)
        else:
            await fs.copy(item.source, item.target)
        progress(item)

    await transfer.in_parallel([item for item in items if not item.directory], one, parallel)


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), _Amount(), TransferSpeedOfBytes(),
        console=Console(stderr=True), disable=quiet or not sys.stderr.isatty(), transient=True,
    )  # fmt: skip


class _Amount(DownloadColumn):
    """Bytes as sizes, files as counts."""

    def __init__(self) -> None:
        super().__init__()
        self.count = MofNCompleteColumn()

    def render(self, task: Any) -> Any:
        return super().render(task) if task.fields.get("unit") == "bytes" else self.count.render(task)


class TransferSpeedOfBytes(TransferSpeedColumn):
    """The speed, of the row that counts bytes."""

    def render(self, task: Any) -> Any:
        return super().render(task) if task.fields.get("unit") == "bytes" else ""


@click.command()
@click.argument("source")
@click.argument("target")
def mv(source: str, target: str) -> None:
    """Rename SOURCE to TARGET (into it, if it is a directory)."""
    here, there = inside(source), inside(target)

    async def work(fs: FileSystem) -> None:
        try:
            if await fs.exists(there) and (await fs.stat(there)).is_dir:
                await fs.rename(here, f"{there.rstrip('/')}/{os.path.basename(here.rstrip('/'))}")
            else:
                await fs.rename(here, there)
        except OpError as error:
            raise named(error, f"{here} to {there}") from None

    with_file_system(work)


@click.command()
@click.option("-r", "-R", "recursive", is_flag=True, help="directories with everything in them")
@click.option("-f", "force", is_flag=True, help="what is not there is no error")
@click.argument("paths", nargs=-1, required=True)
def rm(recursive: bool, force: bool, paths: tuple[str, ...]) -> None:
    """Remove files."""

    async def work(fs: FileSystem) -> None:
        for path in map(inside, paths):
            try:
                if (await fs.stat(path, follow=False)).is_dir:
                    if not recursive:
                        raise Refused(f"{path} is a directory: remove it with -r")
                    await fs.rmtree(path)
                else:
                    await fs.unlink(path)
            except OpError as error:
                if not force or error.errno != errno.ENOENT:
                    raise named(error, path) from None

    with_file_system(work)


@click.command()
@click.option("-p", "parents", is_flag=True, help="also what is missing above; existing ones are no error")
@click.option("-m", "--mode", default="755", show_default=True, help="permissions, octal")
@click.argument("paths", nargs=-1, required=True)
def mkdir(parents: bool, mode: str, paths: tuple[str, ...]) -> None:
    """Make directories."""
    try:
        bits = int(mode, 8)
    except ValueError:
        raise Refused(f"bad mode {mode!r}: octal digits expected, as in 755") from None

    async def work(fs: FileSystem) -> None:
        for path in map(inside, paths):
            try:
                if parents:
                    await fs.makedirs(path, bits)
                else:
                    await fs.mkdir(path, bits)
            except OpError as error:
                raise named(error, path) from None

    with_file_system(work)


@click.command("stat")
@click.argument("paths", nargs=-1, required=True)
def stat(paths: tuple[str, ...]) -> None:
    """Show everything about files: attributes, FID, layout."""

    async def work(fs: FileSystem) -> None:
        for path in map(inside, paths):
            try:
                info = await fs.stat(path, follow=False)
            except OpError as error:
                raise named(error, path) from None
            click.echo(f"  File: {path}" + (f" -> {await fs.readlink(path)}" if info.is_symlink else ""))
            click.echo(f"  Size: {info.size:<15d} Blocks: {info.blocks:<10d} Links: {info.nlink}")
            click.echo(f"Access: ({modes.S_IMODE(info.mode):04o}/{modes.filemode(info.mode)})  Uid: {info.uid}  Gid: {info.gid}")
            for name, value in (("Access", info.atime), ("Modify", info.mtime), ("Change", info.ctime), ("Birth", info.btime)):
                seconds, rest = divmod(value, 1_000_000_000)
                stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
                click.echo(f"{name:>6}: {stamp}.{rest:09d} {time.strftime('%z', time.localtime(seconds))}")
            click.echo(f"   FID: {fid_text(info.fid)}")
            if info.layout is not None:
                click.echo(f"Layout: {layout_text(info.layout)}")

    with_file_system(work)


def layout_text(layout: Layout) -> str:
    """A layout in one line: `2 stripes of 1048576 bytes: OST0000:12 OST0001:7`."""
    objects = " ".join(f"OST{ost:04x}:{oid}" for ost, oid in layout.stripes)
    count = len(layout.stripes)
    return f"{count} stripe{'s' if count != 1 else ''} of {layout.stripe_size} bytes: {objects}"
