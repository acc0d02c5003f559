"""mkfs.lustrelite makes a target in a directory, tunefs.lustrelite changes what is written there about it."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

import click

from lustrelite import format as target_format
from lustrelite.cli.errors import Refused, run
from lustrelite.ids import parse_nid
from lustrelite.params import check_text


def _nids(groups: tuple[str, ...]) -> tuple[str, ...]:
    """NIDs of a repeated option, each perhaps a comma-separated list."""
    return tuple(parse_nid(part) for group in groups for part in group.split(",") if part)


def _params(assignments: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise Refused(f"bad --param {assignment!r}: NAME=VALUE expected")
        try:
            check_text(f"tunables.{name.rpartition('.')[2]}", value)  # as it will be set (daemon.py)
            check_text(name, value)
        except ValueError as error:
            raise Refused(f"--param {assignment}: {error}") from None
        found[name] = value
    return found


def _print(config: target_format.TargetConfig, directory: str, quiet: bool) -> None:
    if quiet:
        return
    click.echo(f"   Permanent disk data of {directory}:")
    rows = [
        ("Target", config.name),
        ("Index", str(config.index)),
        ("Lustre FS", config.fsname or "-"),
        ("Kind", config.kind),
        ("Format", str(config.format)),
        ("MGS", ",".join(config.mgsnodes) or "-"),
        ("Failover", ",".join(config.failnodes) or "-"),
        ("Parameters", " ".join(f"{k}={v}" for k, v in config.params) or "-"),
    ]
    for name, value in rows:
        click.echo(f"{name + ':':<12}{value}")


_NIDS = (
    click.option("--mgsnode", multiple=True, metavar="NID[,NID]", help="where the MGS is"),
    click.option("--failnode", multiple=True, metavar="NID[,NID]", help="another server that may run this target"),
    click.option("--servicenode", multiple=True, metavar="NID[,NID]", help="every server that may run this target"),
    click.option("--param", "assignments", multiple=True, metavar="NAME=VALUE", help="a parameter set at every start"),
    click.option("--dryrun", "-n", is_flag=True, help="say what would be done, change nothing"),
    click.option("--quiet", "-q", is_flag=True),
    click.option("--verbose", "-v", is_flag=True),
)


def _shared_options(command: Any) -> Any:
    for option in reversed(_NIDS):
        command = option(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--mgs", is_flag=True, help="the management server's target")
@click.option("--mdt", is_flag=True, help="a metadata target")
@click.option("--ost", is_flag=True, help="an object storage target")
@click.option("--fsname", default="lustre", show_default=True, help="name of the file system, 1 to 8 characters")
@click.option("--index", type=click.IntRange(0, target_format.INDEX_MAX), help="number of the target in the file system")
@click.option("--reformat", is_flag=True, help="destroy the target that is there")
@click.option("--replace", is_flag=True, help="an OST in the place of one that is lost for good, with its --index; what lay there is lost")
@click.option("--backfstype", "--mkfsoptions", "--mountfsoptions", "--device-size", "--comment", "ignored", multiple=True,
              hidden=True, help="accepted for old recipes, without effect: a target is a directory")
@_shared_options
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
def mkfs_command(
    mgs: bool, mdt: bool, ost: bool, fsname: str, index: int | None, reformat: bool, replace: bool, ignored: tuple[str, ...],
    mgsnode: tuple[str, ...], failnode: tuple[str, ...], servicenode: tuple[str, ...], assignments: tuple[str, ...],
    dryrun: bool, quiet: bool, verbose: bool, directory: str,
) -> None:
    """Make a target in DIR, which must be empty or not exist."""
    kinds = [kind for kind, meant in (("MGS", mgs), ("MDT", mdt), ("OST", ost)) if meant]
    if not kinds:
        raise Refused("say which kind of target: --mgs, --mdt or --ost")
    if len(kinds) > 1:
        raise click.UsageError("a directory holds one target of one kind: --mgs, --mdt or --ost")
    kind = kinds[0]
    if index is None and kind == "OST":
        raise Refused("an OST needs --index: its number in the file system, from 0")
    if replace and kind != "OST":
        raise Refused(f"--replace is for an OST: restore a lost {kind} from a backup")
    config = target_format.check_config(
        target_format.TargetConfig(
            kind,
            "" if kind == "MGS" else fsname,
            index or 0,
            secrets.token_hex(8),
            _nids(mgsnode),
            _nids(failnode) + _nids(servicenode),
            tuple(sorted(_params(assignments).items())),
        )
    )
    if dryrun:
        _print(config, directory, quiet)
        click.echo("dry run: nothing was written")
        return
    target_format.format_target(directory, config, reformat=reformat, replace=replace)
    _print(config, directory, quiet)
    if not quiet:
        click.echo(f"formatted {config.name} in {directory}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--erase-param", "erased", multiple=True, metavar="NAME", help="remove one parameter")
@click.option("--erase-params", "erase_all", is_flag=True, help="remove all parameters and failover NIDs first")
@click.option("--writeconf", is_flag=True, help="an MGS or MDT forgets where other targets are, until it hears of them again")
@_shared_options
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
def tunefs_command(
    erased: tuple[str, ...], erase_all: bool, writeconf: bool, mgsnode: tuple[str, ...], failnode: tuple[str, ...],
    servicenode: tuple[str, ...], assignments: tuple[str, ...], dryrun: bool, quiet: bool, verbose: bool, directory: str,
) -> None:
    """Show what the target in DIR is, and change it; it must be stopped."""
    config = target_format.read_target(directory)
    params = {} if erase_all else dict(config.params)
    for name in erased:
        if name not in params:
            raise Refused(f"{config.name} has no parameter {name!r}; it has: {', '.join(params) or 'none'}")
        del params[name]
    params.update(_params(assignments))
    others = _nids(servicenode) or (() if erase_all else config.failnodes)
    changed = target_format.check_config(
        config._replace(
            mgsnodes=_nids(mgsnode) or config.mgsnodes,
            failnodes=tuple(dict.fromkeys(others + _nids(failnode))),
            params=tuple(sorted(params.items())),
        )
    )
    forget = writeconf and config.kind != "OST"
    if dryrun or (changed == config and not forget):
        _print(changed, directory, quiet)
        if dryrun:
            click.echo("dry run: nothing was written")
        return
    with contextlib.ExitStack() as stack:
        stack.callback(target_format.claim(directory).release)
        _print(changed, directory, quiet)
        target_format.write_target(directory, changed)
        if forget:
            from lustrelite.store.kv import Store
            from lustrelite.target.addresses import set_addresses

            store = stack.enter_context(contextlib.closing(Store.open(directory, config.kind)))
            set_addresses(store, config.kind, {})
    if not quiet:
        click.echo(f"changed {changed.name}: it counts from the next start")


def mkfs() -> None:
    """Entry point of mkfs.lustrelite."""
    run(mkfs_command, "mkfs.lustrelite")


def tunefs() -> None:
    """Entry point of tunefs.lustrelite."""
    run(tunefs_command, "tunefs.lustrelite")


