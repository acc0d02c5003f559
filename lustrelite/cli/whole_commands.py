"""lustrelite fsck, backup, restore, demo, sim: the long ones, on a whole cluster. What does it is imported to do it.

So the help of these commands, and every other command, do not wait for servers' code, the simulator and what they need.
"""

from __future__ import annotations

from pathlib import Path

import click

from lustrelite.tunables import DESTROY, KEEP


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@click.option("--repair", is_flag=True, help="put right what is wrong; the cluster must be stopped")
@click.option("-n", "--dry-run", is_flag=True, help="say what --repair would do, and change nothing")
@click.option(
    "--orphans", type=click.Choice((KEEP, DESTROY)), default=KEEP, show_default=True,
    help="what becomes of files without a name and of data without a file: kept in /lost+found, or destroyed",
)
@click.option("--replace-lost-osts", is_flag=True, help="objects on OSTs that are no more: new, empty ones instead")
@click.option("--target", "targets", multiple=True, type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="a stopped target of servers that were started by hand; repeated for all of the file system")
def fsck(
    as_json: bool, repair: bool, dry_run: bool, orphans: str, replace_lost_osts: bool, targets: tuple[Path, ...]
) -> None:
    """Check names, link counts, layouts, objects; with --repair also put them right.

    Exit status, a sum as e2fsck's: 0 clean, 1 corrected, 4 something is (still) wrong, 8 it could not be done.
    """
    from lustrelite.cli import check
    from lustrelite.fsck.changes import Options

    status = check.fsck(Options(orphans, replace_lost_osts), targets, as_json=as_json, repair=repair, dry_run=dry_run)
    if status:
        raise click.exceptions.Exit(status)


@click.command()
@click.argument("destination", type=click.Path(path_type=Path))
def backup(destination: Path) -> None:
    """Save the cluster to DESTINATION: a new directory, or an archive if it ends in .tar or .tar.gz.

    A running cluster is stopped for the time of the copy and started again; clients wait meanwhile.
    """
    from lustrelite.cli import archive

    archive.backup(destination)


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
def restore(source: Path) -> None:
    """Make the cluster of a backup in --state-dir, which must hold none; it is left stopped."""
    from lustrelite.cli import archive

    archive.restore(source)


@click.command()
@click.option("--clients", default=4, show_default=True, type=click.IntRange(2, 64), help="client processes")
@click.option("--source", type=click.Path(exists=True, file_okay=False), help="the tree to copy [Python's library]")
@click.option("--osts", default=2, show_default=True, type=click.IntRange(1, 64))
@click.option("--keep", is_flag=True, help="leave the cluster's directory")
@click.option("--json", "as_json", is_flag=True, help="the report as one JSON object")
def demo(clients: int, source: str | None, osts: int, keep: bool, as_json: bool) -> None:
    """The main job: a real tree through kill -9 of MDS, OSS and a client; every byte compared afterwards."""
    from lustrelite.cli import demo as main_job

    main_job.demo(clients, source, osts, keep=keep, as_json=as_json)


@click.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sim(arguments: tuple[str, ...]) -> None:
    """Random runs of the simulator: every seed a cluster, a workload and its faults (see `sim --help`)."""
    from lustrelite.cli.sim import main

    raise click.exceptions.Exit(main(list(arguments)))
