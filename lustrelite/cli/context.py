"""Which cluster or file system a command is about: the state directory, or an MGS somewhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from lustrelite.cli.cluster import Cluster
from lustrelite.cli.errors import Refused
from lustrelite.ids import Nid, parse_nid

if TYPE_CHECKING:
    from lustrelite.client.fs import FileSystem

DEFAULT_STATE_DIR = ".lustrelite"
_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


class Where(NamedTuple):
    """What the options of `lustrelite` said."""

    state_dir: Path
    mgsnode: str  # "" means that of the cluster in state_dir
    fsname: str

    def cluster(self) -> Cluster:
        """The cluster, which may not exist yet.  Refused: --mgsnode means another one"""
        if self.mgsnode:
            raise Refused(
                f"`{click.get_current_context().info_name}` is about the cluster of a state directory: leave --mgsnode (or "
                "LUSTRELITE_MGSNODE) out; servers started by hand are looked after with llctl and their processes' signals"
            )
        return Cluster(self.state_dir)

    def mgs(self) -> tuple[list[Nid], str]:
        """(NIDs of the MGS, file system name)."""
        if self.mgsnode:
            return [parse_nid(part) for part in self.mgsnode.split(",")], self.fsname or "lustre"
        cluster = self.cluster().need()
        if self.fsname and self.fsname != cluster.fsname:
            raise Refused(f"the cluster in {cluster.state_dir} serves {cluster.fsname!r}, not {self.fsname!r}")
        return [Nid(nid) for nid in cluster.mgs_nids], cluster.fsname


def state_dir_option(function: _F) -> _F:
    """--state-dir, also from the environment."""
    return click.option(
        "--state-dir", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STATE_DIR, show_default=True,
        envvar="LUSTRELITE_STATE_DIR", help="where the cluster lives",
    )(function)  # fmt: skip


def where() -> Where:
    """The Where of the running command."""
    found = click.get_current_context().find_object(Where)
    assert found is not None
    return found


def with_file_system(work: Callable[[FileSystem], Awaitable[_T]]) -> _T:
    """Mount what the command is about, and run `work` on it."""
    from lustrelite.cli.mount import on_file_system  # a client: who asks none does not wait for its import

    return on_file_system(*where().mgs(), work)
