"""lustrelite df: space and files of every target, in the form of `lfs df`, and which of them cannot be asked."""

from __future__ import annotations

import click

from lustrelite.cli.mount import with_file_system
from lustrelite.client.fs import FileSystem
from lustrelite.ids import target_name
from lustrelite.wire.mdt import STATFS_NO_SPACE, STATFS_READ_ONLY, StatfsReply

_STATES = ((STATFS_READ_ONLY, "R"), (STATFS_NO_SPACE, "S"))  # letters behind the mount point, as lfs has them


@click.command()
@click.option("-h", "human", is_flag=True, help="sizes in units that fit")
@click.option("-i", "inodes", is_flag=True, help="files instead of space")
def df(human: bool, inodes: bool) -> None:
    """Show space (or files) of every target and of the whole file system."""

    async def work(fs: FileSystem) -> list[str]:
        return await report(fs, human=human, inodes=inodes)

    for line in with_file_system(work):
        click.echo(line)


async def report(fs: FileSystem, *, human: bool = False, inodes: bool = False, mounted_on: str = "") -> list[str]:
    """The lines of `lfs df`. A target that is switched off, or does not answer soon, has a line that says so."""
    fsname = fs.connections.fsname
    where = mounted_on or f"{fsname}:/"
    meta, osts = await fs.statfs_targets()
    unit = "Inodes" if inodes else "bytes" if human else "1K-blocks"
    used, free = ("IUsed", "IFree") if inodes else ("Used", "Available")
    lines = [_line("UUID", unit, used, free, ("IUse%" if inodes else "Use%"), "Mounted on")]
    answers: list[StatfsReply] = []
    for kind, index, reply in (("MDT", 0, meta), *(("OST", index, reply) for index, reply in osts)):
        name = target_name(fsname, kind, index)
        if reply is None:
            osc = fs.connections.lov.oscs[index]
            lines.append(f"{name}_UUID: {'inactive device' if osc.inactive else f'no answer ({osc.state})'}")
            continue
        if kind == "OST":
            answers.append(reply)
        letters = "".join(letter for bit, letter in _STATES if reply.state & bit)
        lines.append(_row(f"{name}_UUID", reply, f"{where}[{kind}:{index}]{letters and ' ' + letters}", human, inodes))
    total = StatfsReply(*(sum(values) for values in zip(*answers, strict=True))) if answers else StatfsReply(0, 0, 0, 0, 0, 0)
    if inodes:  # files are the MDT's, but no more free ones than the OSTs have objects
        left = min(meta.files_free, total.files_free)
        total = total._replace(files_total=meta.files_total - meta.files_free + left, files_free=left)
    return [*lines, "", _row("filesystem_summary:", total, where, human, inodes), ""]


def _row(name: str, reply: StatfsReply, where: str, human: bool, inodes: bool) -> str:
    if inodes:
        total, free = reply.files_total, reply.files_free
        used, available = total - free, free
    else:
        total, available = reply.bytes_total, reply.bytes_available
        used = total - reply.bytes_free
    percent = f"{round(100 * used / (used + available)) if used + available else 0}%"
    text = _human if human else str if inodes else _kib
    return _line(name, text(total), text(used), text(available), percent, where)


def _line(name: str, total: str, used: str, free: str, percent: str, where: str) -> str:
    return f"{name:<20s} {total:>11s} {used:>11s} {free:>11s} {percent:>4s} {where}"


def _kib(value: int) -> str:
    return str(value >> 10)


def _human(value: int) -> str:
    power = min(max(value.bit_length() - 1, 0) // 10, 5)
    return f"{value / (1 << 10 * power):.1f}{' KMGTP'[power]}" if power else str(value)
