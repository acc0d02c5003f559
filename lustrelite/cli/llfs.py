"""llfs: striping, space, identities and the state of a file system, in lfs's words (lfs(1) and its pages).

Paths are those of a mounted file system on this machine, or FSNAME:/path of a cluster. Nothing here goes through the
mount: a command that is to say what is wrong must not hang with it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from lustrelite import control
from lustrelite.cli import completion
from lustrelite.cli.context import Where, state_dir_option, where
from lustrelite.cli.errors import Refused, named, run
from lustrelite.cli.mounts import Place, control_socket, mount_of, mounts, on_mount, place_of
from lustrelite.control import ControlFailed
from lustrelite.errors import OpError
from lustrelite.ids import Fid, fid_text, parse_fid, target_name, target_uuid
from lustrelite.tunables import limits

if TYPE_CHECKING:
    from lustrelite.client.attributes import Stat
    from lustrelite.client.fs import FileSystem
    from lustrelite.wire.mdt import Layout, StatfsReply, StripeHint

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_CHOSEN = f"{__name__}.chosen"  # did the options say which cluster?
MAGIC_V1 = 0x0BD10BD0  # LOV_USER_MAGIC_V1


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of bytes, with a unit or without: 64K, 1M, 1048576."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click.ParamType."""
        match = re.fullmatch(r"(\d+)([kmgKMG]?)[bB]?", str(value))
        if match is None:
            self.fail(f"{value!r} is no size: 64K, 1M or 4194304 expected", param, ctx)
        return int(match.group(1)) * UNITS[match.group(2).lower()]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@state_dir_option
@click.option("--mgsnode", default="", envvar="LUSTRELITE_MGSNODE", metavar="NID[,NID]",
              help="of FSNAME:/path: the MGS of a file system elsewhere")
@click.option("--fsname", default="", envvar="LUSTRELITE_FSNAME", help="the file system's name [that of the cluster]")
@click.pass_context
def llfs(context: click.Context, state_dir: Path, mgsnode: str, fsname: str) -> None:
    """Striping, space, identities and the state of a file system.

    PATH is a path on a mounted file system, or FSNAME:/path of the cluster in the state directory.

    \b
    llfs setstripe -c 4 -S 4M /mnt/lustre/big      files made there lie on four OSTs
    llfs getstripe /mnt/lustre/big/file            where a file's data is
    llfs df -h                                     space of every target
    llfs check all                                 does every server answer?
    llfs path2fid lustre:/dir/file                 without a mount
    """
    context.obj = Where(state_dir, mgsnode, fsname)
    context.meta[_CHOSEN] = bool(mgsnode) or context.get_parameter_source("state_dir") is not ParameterSource.DEFAULT


def _on(place: Place, work: Callable[[FileSystem], Any]) -> Any:
    from lustrelite.cli.mount import on_file_system  # a client: what asks none does not wait for its import

    return on_file_system(place.nids, place.fsname, work)


# striping ---------------------------------------------------------------------------------------------------------------


@llfs.command("setstripe")
@click.option("-c", "--stripe-count", "count", type=click.IntRange(-1, limits.stripes_max), default=0,
              help="on so many OSTs; -1: all; 0: the default")
@click.option("-S", "--stripe-size", "size", type=Size(), default=0, help="bytes on one OST before the next; 0: the default")
@click.option("-i", "--stripe-index", "index", type=click.IntRange(-1), default=-1, help="the first OST; -1: any")
@click.option("-d", "--delete", is_flag=True, help="of directories: forget what was set")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=completion.files)
def setstripe(count: int, size: int, index: int, delete: bool, paths: tuple[str, ...]) -> None:
    """Make an empty file with a striping, or set that of files made in a directory from now on.

    \b
    llfs setstripe -c -1 /mnt/lustre/wide          a directory: new files lie on all OSTs
    llfs setstripe -c 2 -S 16M /mnt/lustre/file    a new file
    llfs setstripe -d /mnt/lustre/wide             back to what is above
    """
    if delete and (count or size or index != -1):
        raise Refused("-d goes without other options")
    if size % limits.stripe_bytes_min:
        raise Refused(f"stripe size {size}: a multiple of {limits.stripe_bytes_min >> 10}K expected")
    for text in paths:
        place = place_of(text)

        async def work(fs: FileSystem, place: Place = place, text: str = text) -> None:
            try:
                if delete:
                    await fs.setstripe(place.path)
                else:
                    await fs.setstripe(place.path, count, size, index)
            except OpError as error:
                if error.errno == errno.EEXIST:
                    raise Refused(f"{text} is there: the striping of a file is fixed when it is made") from None
                raise named(error, text) from None

        _on(place, work)


@llfs.command("getstripe")
@click.option("-c", "--stripe-count", "field", flag_value="count", help="only the number of stripes")
@click.option("-S", "--stripe-size", "field", flag_value="size", help="only the stripe size")
@click.option("-i", "--stripe-index", "field", flag_value="index", help="only the OST of the first stripe")
@click.option("-F", "--fid", "field", flag_value="fid", help="only the FID")
@click.option("-L", "--layout", "field", flag_value="layout", help="only the layout's kind")
@click.option("-g", "--generation", "field", flag_value="generation", help="only the layout's generation")
@click.option("-d", "--directory", "self_only", is_flag=True, help="a directory itself, not what is in it")
@click.option("-r", "--recursive", is_flag=True, help="directories with everything below")
@click.option("-q", "--quiet", is_flag=True, help="only the objects")
@click.option("-v", "--verbose", is_flag=True, help="also magic and FID")
@click.option("-y", "--yaml", "yaml", is_flag=True, help="as YAML")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=completion.files)
def getstripe(
    field: str | None, self_only: bool, recursive: bool, quiet: bool, verbose: bool, yaml: bool, paths: tuple[str, ...]
) -> None:
    """Where the data of files is, and how new files of a directory will be striped.

    \b
    llfs getstripe /mnt/lustre/file
    llfs getstripe -c /mnt/lustre/file             only the stripe count
    llfs getstripe -d /mnt/lustre/dir              what new files get
    llfs getstripe -r lustre:/dir
    """
    for text in paths:
        place = place_of(text)

        async def work(fs: FileSystem, place: Place = place, text: str = text) -> None:
            try:
                left = [place.path]
                while left:
                    path = left.pop(0)
                    info = await fs.stat(path, follow=False)
                    shown = _beneath(text, place, path)
                    if info.is_dir:
                        click.echo(_directory_text(shown, await fs.striping_in(path), field), nl=False)
                        if not self_only:
                            inner = [f"{path.rstrip('/')}/{name}" for name in sorted(await fs.readdir(path))]
                            if not recursive:
                                inner = [each for each in inner if (await fs.lstat(each)).is_file]
                            left[:0] = inner
                    elif info.layout is not None:
                        click.echo(file_text(shown, info, info.layout, field, quiet=quiet, verbose=verbose, yaml=yaml), nl=False)
            except OpError as error:
                raise named(error, text) from None

        _on(place, work)


def _beneath(text: str, place: Place, path: str) -> str:
    """`path`, which is `place` or below it, as whoever wrote `text` for that place would write it."""
    if path == place.path:
        return text
    return text.rstrip("/") + path[len(place.path.rstrip("/")) :] if place.prefix else place.shown(path)


def _directory_text(path: str, hint: StripeHint, field: str | None) -> str:
    values: dict[str, object] = {"count": hint.stripe_count, "size": hint.stripe_size, "index": hint.stripe_offset, "layout": "raid0"}
    if field is not None:
        return f"{values[field]}\n" if field in values else ""
    return (
        f"{path}\nstripe_count:  {hint.stripe_count} stripe_size:   {hint.stripe_size} pattern:       raid0 "
        f"stripe_offset: {hint.stripe_offset}\n\n"
    )


def file_text(
    path: str, info: Stat, layout: Layout, field: str | None = None, *, quiet: bool = False, verbose: bool = False,
    yaml: bool = False,
) -> str:  # fmt: skip
    """A file's layout as lfs getstripe prints it."""
    first = layout.stripes[0][0] if layout.stripes else -1
    values: dict[str, object] = {
        "count": len(layout.stripes), "size": layout.stripe_size, "index": first, "fid": fid_text(info.fid),
        "layout": "raid0", "generation": layout.generation,
    }  # fmt: skip
    if field is not None:
        return f"{values[field]}\n"
    lines = [] if yaml else [path]
    if verbose:
        seq, number = fid_text(info.fid).strip("[]").split(":")[:2]
        lines += [f"lmm_magic:         0x{MAGIC_V1:08X}", f"lmm_seq:           {seq}", f"lmm_object_id:     {number}",
                  f"lmm_fid:           {fid_text(info.fid).strip('[]') if yaml else fid_text(info.fid)}"]  # fmt: skip
    if not quiet:
        lines += [
            f"lmm_stripe_count:  {len(layout.stripes)}", f"lmm_stripe_size:   {layout.stripe_size}",
            "lmm_pattern:       raid0", f"lmm_layout_gen:    {layout.generation}", f"lmm_stripe_offset: {first}",
        ]  # fmt: skip
        if layout.pool:
            lines.append(f"lmm_pool:          {layout.pool}")
    if yaml:
        lines.append("lmm_objects:")
        for ost, oid in layout.stripes:
            lines += [f"      - l_ost_idx: {ost}", f"        l_object_id: {oid}"]
        return "\n".join(lines) + "\n"
    lines.append("\tobdidx\t\t objid\t\t objid\t\t group")
    lines += [f"\t{ost:6d}\t{oid:14d}\t{oid:#13x}\t{0:14d}" for ost, oid in layout.stripes]
    return "\n".join(lines) + "\n\n"


# identities -------------------------------------------------------------------------------------------------------------


@llfs.command("path2fid")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=completion.files)
def path2fid(paths: tuple[str, ...]) -> None:
    """The FIDs of files (a symlink is not followed).

    \b
    llfs path2fid /mnt/lustre/file                 [0x200000401:0x1:0x0]
    """
    for text in paths:
        place = place_of(text)

        async def work(fs: FileSystem, place: Place = place, text: str = text) -> Fid:
            try:
                return await fs.path2fid(place.path)
            except OpError as error:
                raise named(error, text) from None

        found = fid_text(_on(place, work))
        click.echo(found if len(paths) == 1 else f"{text}: {found}")


@llfs.command("fid2path")
@click.option("-f", "--print-fid", is_flag=True, help="the FID before each path")
@click.option("-0", "--print0", "zero", is_flag=True, help="a NUL byte behind each path, for xargs -0")
@click.argument("where_", metavar="FSNAME|MOUNTPOINT", shell_complete=completion.mount_points)
@click.argument("fids", nargs=-1, required=True, metavar="FID...")
def fid2path(print_fid: bool, zero: bool, where_: str, fids: tuple[str, ...]) -> None:
    """All paths of files.

    \b
    llfs fid2path /mnt/lustre [0x200000401:0x1:0x0]
    llfs fid2path lustre 0x200000401:0x1:0x0       of the cluster in the state directory
    """
    place = _file_system(where_)
    wanted = [parse_fid(fid) for fid in fids]

    async def work(fs: FileSystem) -> None:
        for fid in wanted:
            try:
                paths = await fs.fid2path(fid)
            except OpError as error:
                raise named(error, fid_text(fid)) from None
            for path in paths:
                shown = os.fsencode(place.shown(os.fsdecode(path)))
                before = fid_text(fid).encode() + b" " if print_fid else b""
                click.echo(before + shown + (b"\0" if zero else b"\n"), nl=False)

    _on(place, work)


def _file_system(text: str) -> Place:
    """All of the file system that a name, a mount point, or a path in either, means."""
    if "/" not in text and not on_mount(text):
        mount = next((each for each in reversed(mounts()) if each.fsname == text), None)
        if mount is None or _chosen():
            text = f"{text}:/"
        else:
            return Place(mount.nids, mount.fsname, "/", mount.point.rstrip("/"), mount.root)
    return place_of(text)


def _chosen() -> bool:
    return bool(click.get_current_context().meta[_CHOSEN])


# space and servers ------------------------------------------------------------------------------------------------------


def _about(path: str | None) -> list[Place]:
    """What a command without a path is about: every mount, or a cluster if the options name one, or there is no mount."""
    if path is not None:
        return [_file_system(path)]
    found = {(mount.fsname, mount.nids): Place(mount.nids, mount.fsname, "/", mount.point) for mount in mounts()}
    if found and not _chosen():
        return list(found.values())
    nids, fsname = where().mgs()
    return [Place(tuple(nids), fsname, "/", "")]


@llfs.command("df", context_settings={"help_option_names": ["--help"]})
@click.option("-h", "--human-readable", "human", is_flag=True, help="sizes with units")
@click.option("-i", "--inodes", is_flag=True, help="inodes instead of space")
@click.argument("path", required=False, shell_complete=completion.files)
def df(human: bool, inodes: bool, path: str | None) -> None:
    """Space and inodes of every target.

    \b
    llfs df -h                                     of all mounted file systems
    llfs df -i /mnt/lustre
    llfs df lustre:/
    """
    failed = False
    for place in _about(path):
        point = place.prefix or f"{place.fsname}:/"
        try:
            meta, osts = _on(place, lambda fs: fs.statfs_targets())
        except Refused as error:  # its servers are away: the others are shown nevertheless
            click.echo(f"llfs: {point}: {error.message}", err=True)
            failed = True
            continue
        rows = [(target_uuid(target_name(place.fsname, "MDT", 0)), meta, f"{point}[MDT:0]")]
        rows += [
            (target_uuid(target_name(place.fsname, "OST", index)), reply, f"{point}[OST:{index}]") for index, reply in osts
        ]
        click.echo(df_text(rows, point, human=human, inodes=inodes), nl=False)
    if failed:
        raise click.exceptions.Exit(1)


def df_text(rows: list[tuple[str, StatfsReply | None, str]], point: str, *, human: bool = False, inodes: bool = False) -> str:
    """The table of lfs df: (uuid, space or None for a target that does not answer, where) of each target."""
    form = "{:<20} {:>11} {:>11} {:>11} {:>4} {:<}"
    if inodes:
        lines = [form.format("UUID", "Inodes", "IUsed", "IFree", "IUse%", "Mounted on")]
    else:
        lines = [form.format("UUID", "bytes" if human else "1K-blocks", "Used", "Available", "Use%", "Mounted on")]

    def row(uuid: str, total: int, used: int, free: int, at: str) -> str:
        share = f"{-(-100 * used // (used + free)) if used + free else 0}%"
        return form.format(uuid, *(_amount(value, human, inodes) for value in (total, used, free)), share, at)

    totals = [0, 0, 0]
    for uuid, reply, at in rows:
        if reply is None:
            lines.append(f"{uuid}: inactive device")
            continue
        if inodes:
            numbers = (reply.files_total, reply.files_total - reply.files_free, reply.files_free)
        else:
            numbers = (reply.bytes_total, reply.bytes_total - reply.bytes_free, reply.bytes_available)
        lines.append(row(uuid, *numbers, at))
        if inodes == ("[MDT:" in at):  # inodes are the MDT's, space the OSTs'
            totals = [total + number for total, number in zip(totals, numbers, strict=True)]
    lines += ["", row("filesystem_summary: ", totals[0], totals[1], totals[2], point), ""]
    return "\n".join(lines) + "\n"


def _amount(value: int, human: bool, inodes: bool) -> str:
    if not human:
        return str(value if inodes else value >> 10)
    size = float(value)
    for unit in ("", "K", "M", "G", "T", "P"):
        if size < 1024 or unit == "P":
            return f"{size:.1f}{unit}" if unit else f"{int(size)}"
        size /= 1024
    raise AssertionError


@llfs.command("check")
@click.argument("kind", type=click.Choice(["osts", "mdts", "mgts", "all", "servers"]))
@click.argument("path", required=False, shell_complete=completion.files)
def check(kind: str, path: str | None) -> None:
    """Does the client have its connection to every server? The exit status is 1 if one is missing.

    Asks the process behind a mount; without one, or if it belongs to somebody else, connects itself and looks.

    \b
    llfs check osts
    llfs check all /mnt/lustre
    """
    bad = False
    for place in _about(path):
        for connection, device, well in _connections(place):
            if kind in ("all", "servers", {"mgc": "mgts", "mdc": "mdts"}.get(connection, "osts")):
                click.echo(f"{device} {'active' if well else 'inactive'}.")
                bad |= not well
    if bad:
        raise click.exceptions.Exit(1)


def _connections(place: Place) -> list[tuple[str, str, bool]]:
    """(mgc, mdc or osc, device, does it work) of the connections of a mount, or of one made for this."""
    mount = mount_of(place.prefix) if place.prefix else None
    socket = control_socket(mount.point) if mount is not None else None
    if socket is not None:
        try:
            devices = sorted(control.call(socket, "devices"), key=lambda device: (device["type"] != "mgc", device["name"]))
        except (ControlFailed, OSError) as error:
            raise Refused(f"the process behind {place.prefix} does not answer at {socket}: {error}") from None
        return [
            (device["type"], device["name"], device["state"] in ("FULL", "IDLE") and device["status"] == "UP") for device in devices
        ]

    async def look(fs: FileSystem) -> list[tuple[str, str, bool]]:
        await fs.statfs_targets()  # gives those that are alive the time to answer
        config, suffix = fs.connections.config, fs.connections.uuid[:8]
        assert config is not None, "connected"
        found = [("mgc", f"MGC{place.nids[0]}", str(config.mgs.state) == "FULL")]
        for name, imp in sorted(fs.connections.imports.items()):
            kind = "osc" if "-OST" in name else "mdc"
            found.append((kind, f"{name}-{kind}-{suffix}", str(imp.state) == "FULL"))
        return found

    found: list[tuple[str, str, bool]] = _on(place, look)
    return found


def main() -> None:
    """Entry point of llfs."""
    run(llfs, "llfs")


if __name__ == "__main__":
    main()
