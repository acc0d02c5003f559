"""lustrelite: clusters on this machine, and files in them."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from lustrelite import __version__
from lustrelite.cli import cluster_commands, files, mount_commands, whole_commands
from lustrelite.cli.context import Where, state_dir_option
from lustrelite.cli.errors import run
from lustrelite.cli.examples import add_examples


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@state_dir_option
@click.option("--mgsnode", default="", envvar="LUSTRELITE_MGSNODE", metavar="NID[,NID]",
              help="a file system elsewhere: its MGS")
@click.option("--fsname", default="", envvar="LUSTRELITE_FSNAME", help="the file system's name [that of the cluster]")
@click.version_option(__version__, prog_name="lustrelite")
@click.pass_context
def lustrelite(context: click.Context, state_dir: Path, mgsnode: str, fsname: str) -> None:
    """A user-space parallel file system with Lustre's roles, words and recovery protocol."""
    context.obj = Where(state_dir, mgsnode, fsname)


for command in (
    cluster_commands.up, cluster_commands.status, cluster_commands.down, cluster_commands.start, cluster_commands.stop,
    cluster_commands.kill, cluster_commands.events, files.ls, files.cat, files.cp, files.mv, files.rm, files.mkdir,
    files.stat, mount_commands.mount, mount_commands.umount, whole_commands.fsck, whole_commands.backup,
    whole_commands.restore, whole_commands.demo, whole_commands.sim,
):  # fmt: skip
    lustrelite.add_command(command)


@lustrelite.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """What makes SHELL complete the commands and options of lustrelite, llctl and llfs.

    \b
    lustrelite completion bash >/etc/bash_completion.d/lustrelite
    source <(lustrelite completion bash)           only this shell
    """
    from lustrelite.cli.llctl import llctl
    from lustrelite.cli.llfs import llfs

    kind = get_completion_class(shell)
    assert kind is not None
    for program, command in (("lustrelite", lustrelite), ("llctl", llctl), ("llfs", llfs)):
        click.echo(kind(command, {}, program, f"_{program.upper()}_COMPLETE").source())


add_examples(lustrelite, "lustrelite")


def main() -> None:
    """Entry point of lustrelite."""
    run(lustrelite, "lustrelite")


if __name__ == "__main__":
    main()
