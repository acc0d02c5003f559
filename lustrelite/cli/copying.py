"""lustrelite cp: what is to be copied where to, and how far it is."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TransferSpeedColumn

from lustrelite.cli import transfer
from lustrelite.cli.context import with_file_system
from lustrelite.cli.errors import Refused, named
from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError


def copy(
    froms: list[tuple[str, str | None]], target: str, into: str | None, *, recursive: bool, parallel: int, quiet: bool
) -> None:
    """Copy `froms` to `target`. Beside each source, and as `into`, its path in the file system; None: it is local.  Refused"""

    async def work(fs: FileSystem) -> tuple[int, int]:
        items: list[transfer.Item] = []
        if into is not None:
            is_there = await fs.exists(into)
            is_dir = is_there and (await fs.stat(into)).is_dir
        else:
            is_there, is_dir = os.path.lexists(target), os.path.isdir(target)
        if len(froms) > 1 and not is_dir:
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
            if not found:
                raise Refused(f"{source} is neither a file nor a directory nor a symlink: it is not copied")
            if any(item.directory for item in found) and not recursive:
                raise Refused(f"{source} is a directory: copy it with -r")
            if any(item.directory for item in found) and is_there and not is_dir:
                raise Refused(f"{target} is no directory: {source}, which is one, cannot become it")
            items += found
        _check_different(items)
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
                await transfer.within(fs, items, done, parallel)
        return sum(not i.directory for i in items), sum(i.bytes for i in items)

    began = time.monotonic()
    count, size = with_file_system(work)
    if not quiet and sys.stderr.isatty():
        click.echo(f"{count} files, {size:,} bytes in {time.monotonic() - began:.1f} s", err=True)


def _check_different(items: list[transfer.Item]) -> None:
    """Several files may not become one, and none a directory: they are copied at the same time.  Refused"""
    becomes: dict[str, transfer.Item] = {}
    for item in items:
        other = becomes.setdefault(os.path.normpath(item.target), item)
        if other is not item and not (other.directory and item.directory):
            raise Refused(f"{other.source} and {item.source} would both become {item.target}: copy them one after the other")


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
