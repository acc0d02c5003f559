"""lustrelite mount, umount: the cluster of this machine in its tree; the words of mount.lustrelite, without the source."""

from __future__ import annotations

from pathlib import Path

import click

from lustrelite.cli import completion, mount_helper
from lustrelite.cli.context import where
from lustrelite.cli.mounts import default_run_dir
from lustrelite.fuse import attach


def _directories() -> tuple[Path, Path]:
    """(records and control sockets, logs). Mounts of a cluster are among its processes, so that llctl finds them."""
    found = where()
    if found.mgsnode:
        run_dir = mount_helper.own_run_dir()
        return run_dir, run_dir / "log"
    cluster = found.cluster().need()
    return cluster.run_dir, cluster.log_dir


@click.command()
@click.argument("directory", shell_complete=completion.directories)
@click.option("-o", "texts", multiple=True, metavar="OPTION[,OPTION]", help="as of mount.lustrelite")
@click.option("-f", "--foreground", is_flag=True, help="stay, and log to the terminal")
@click.option("--set", "settings", multiple=True, metavar="PARAM=VALUE", help="set a parameter of this client")
def mount(directory: str, texts: tuple[str, ...], foreground: bool, settings: tuple[str, ...]) -> None:
    """Mount the file system on DIRECTORY."""
    nids, fsname = where().mgs()
    run_dir, log_dir = _directories()
    options = mount_helper.options_of(
        f"{','.join(nids)}:/{fsname}", nids, fsname, attach.resolved(directory), ",".join(texts), run_dir,
        None if foreground else log_dir, settings,
    )  # fmt: skip
    raise click.exceptions.Exit(mount_helper.mount(options, foreground=foreground))


@click.command()
@click.argument("directory", shell_complete=completion.mount_points)
@click.option("-f", "--force", is_flag=True, help="at once: whatever waits for it fails, what was not written back is lost")
@click.option("-l", "--lazy", is_flag=True, help="take it out of the tree now; it ends when nobody uses it any more")
def umount(directory: str, force: bool, lazy: bool) -> None:
    """Unmount DIRECTORY, and return when everything is written back and the servers are told."""
    found = where()
    run_dirs = [default_run_dir()]
    if not found.mgsnode and found.cluster().exists:
        run_dirs.insert(0, found.cluster().run_dir)
    mount_helper.unmount(attach.resolved(directory), run_dirs, force=force, lazy=lazy)
