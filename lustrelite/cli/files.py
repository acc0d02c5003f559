"""lustrelite ls, cat, cp, mv, rm, mkdir, stat: files without a mount point.

Paths are those inside the file system: `/dir/file`. Only `cp` has two sides, and there the file system's carries its
name in front, as in `lustre:/dir/file`; everything else is on this machine. (The name is accepted everywhere.)
"""

from __future__ import annotations

import errno
import os
import stat as modes
import sys
import time
from typing import TYPE_CHECKING

import click

from lustrelite.cli import completion
from lustrelite.cli.context import with_file_system
from lustrelite.cli.errors import Refused, named
from lustrelite.cli.mounts import inside, remote
from lustrelite.errors import OpError
from lustrelite.ids import fid_text
from lustrelite.tunables import PARALLEL

if TYPE_CHECKING:
    from lustrelite.client.attributes import DirEntry, Stat
    from lustrelite.client.fs import FileSystem
    from lustrelite.wire.mdt import Layout


@click.command()
@click.option("-l", "long", is_flag=True, help="mode, links, owner, size, time")
@click.option("-a", "everything", is_flag=True, help="also names that start with a dot")
@click.option("-R", "recursive", is_flag=True, help="directories below, too")
@click.argument("paths", nargs=-1)
def ls(long: bool, everything: bool, recursive: bool, paths: tuple[str, ...]) -> None:
    """List directories. Exit status 1 if the attributes of a file are not to be had."""
    tops = [inside(path) for path in paths] or ["/"]

    async def work(fs: FileSystem) -> int:
        status = 0
        left = list(tops)
        shown = 0
        while left:
            path = left.pop(0)
            try:
                info = await fs.stat(path, follow=not long)
                if not info.is_dir:
                    click.echo(await _long(fs, path, info, path) if long else path)
                    continue
                try:
                    entries = [entry async for entry in fs.scandir(path, sizes=long)]
                except OpError as error:
                    if not long or error.errno != errno.EIO:
                        raise
                    entries = [await _alone(fs, path, entry) async for entry in fs.scandir(path, sizes=False)]
                    status = 1
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
                click.echo(await _long(fs, inner, entry.stat, name) if long else name)
                if modes.S_ISDIR(entry.type):
                    below.append(inner)
            if recursive:
                left = below + left
        return status

    if with_file_system(work):
        raise click.exceptions.Exit(1)


async def _alone(fs: FileSystem, path: str, entry: DirEntry) -> DirEntry:
    """The entry with its attributes, or without them if an OST does not say what it knows."""
    try:
        return entry._replace(stat=await fs.stat(f"{path.rstrip('/')}/{os.fsdecode(entry.name)}", follow=False))
    except OpError:
        return entry._replace(stat=None)


async def _long(fs: FileSystem, path: str, info: Stat | None, name: str) -> str:
    if info is None:
        return f"?????????? {name} (removed meanwhile, or an OST cannot be asked)"
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
@click.option("-j", "--parallel", default=PARALLEL, show_default=True, type=click.IntRange(1, 256))
@click.option("-q", "--quiet", is_flag=True, help="no progress")
@click.argument("sources", nargs=-1, required=True, shell_complete=completion.files)
@click.argument("target", shell_complete=completion.files)
def cp(recursive: bool, parallel: int, quiet: bool, sources: tuple[str, ...], target: str) -> None:
    """Copy into (lustre:/path), out of, or within the file system, with modes and times."""
    into = remote(target)
    froms = [(source, remote(source)) for source in sources]
    if into is None and any(path is None for _, path in froms):
        raise Refused("one side must be in the file system: write it as lustre:/path")
    if into is not None and any(path is not None for _, path in froms) and any(path is None for _, path in froms):
        raise Refused("sources are either all local or all in the file system")

    from lustrelite.cli.copying import copy

    copy(froms, target, into, recursive=recursive, parallel=parallel, quiet=quiet)


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
                    if os.path.basename(path.rstrip("/")) in ("", ".", ".."):
                        raise Refused(f"{path} cannot be removed, so nothing in it is; name what is to go")
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
        if not 0 <= bits <= 0o7777:
            raise ValueError
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
