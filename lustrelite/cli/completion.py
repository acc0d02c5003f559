"""What a shell completes arguments with: files, mounts, and a cluster's processes, targets, devices and parameters.

Nobody is waited for: who does not answer at once is left out, and what cannot be read is nothing. Paths in the file system
are not completed: that would take a client.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from lustrelite import control
from lustrelite.cli.cluster import Cluster
from lustrelite.cli.context import DEFAULT_STATE_DIR
from lustrelite.control import ControlFailed

ANSWER_S = 1.0
Items = list[CompletionItem]


def files(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Files of this machine; the shell knows them."""
    return [CompletionItem(incomplete, type="file")]


def directories(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Directories of this machine."""
    return [CompletionItem(incomplete, type="dir")]


def mount_points(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """Where our file systems are mounted, if it is about them."""
    from lustrelite.cli.mounts import mounts

    return _starting(incomplete, (mount.point for mount in mounts())) or directories(context, parameter, incomplete)


def processes(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The processes of the cluster."""
    return _starting(incomplete, _cluster(context).members)


def targets(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The targets of the cluster, or of the processes that answer."""
    answered = (device["name"] for device in _devices(context) if device["type"] in ("mgs", "mdt", "ost"))
    return _starting(incomplete, _cluster(context).targets() or answered)


def members(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The processes and targets of the cluster."""
    return processes(context, parameter, incomplete) + targets(context, parameter, incomplete)


def nodes(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The processes that have a control socket."""
    return _starting(incomplete, (path.stem for path in _sockets(context)))


def devices(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The devices of the processes that answer."""
    return _starting(incomplete, (device["name"] for device in _devices(context)))


def parameters(context: click.Context, parameter: click.Parameter, incomplete: str) -> Items:
    """The parameters of the processes that answer."""
    return _starting(incomplete, sorted({name for name, _ in _asked(context, "list_param", pattern="*", recursive=True)}))


def _starting(incomplete: str, names: Iterable[str]) -> Items:
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _cluster(context: click.Context) -> Cluster:
    """Without members if there is none, or its plan is damaged."""
    state_dir = context.find_root().params.get("state_dir") or DEFAULT_STATE_DIR
    with contextlib.suppress(click.ClickException, OSError, ValueError):
        return Cluster(state_dir)
    return Cluster(os.devnull)


def _sockets(context: click.Context) -> list[Path]:
    run_dir = context.find_root().params.get("run_dir") or _cluster(context).run_dir
    return sorted(Path(run_dir).glob("*.sock"))


def _devices(context: click.Context) -> list[dict[str, Any]]:
    return _asked(context, "devices")


def _asked(context: click.Context, cmd: str, **fields: Any) -> list[Any]:
    found: list[Any] = []
    for path in _sockets(context):
        with contextlib.suppress(ControlFailed):
            found += control.call(path, cmd, ANSWER_S, **fields)
    return found
