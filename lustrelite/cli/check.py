"""lustrelite fsck: examine a stopped cluster's stores, or a running one through its servers."""

from __future__ import annotations

import asyncio
import contextlib
import json

import click

from lustrelite import format as target_format
from lustrelite import fsck as checker
from lustrelite.cli.cluster import Cluster
from lustrelite.cli.context import where
from lustrelite.cli.errors import Refused
from lustrelite.cli.mount import with_file_system
from lustrelite.client.fs import FileSystem
from lustrelite.fsck import Report
from lustrelite.ids import parse_target_name
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles

PAUSE_S = 2.0  # between two readings of a running system: what is under way settles meanwhile
SHOWN_MAX = 50


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
def fsck(as_json: bool) -> None:
    """Check names, link counts, layouts, objects. Exit status 4 if something is wrong; nothing is changed."""
    here = where()
    if here.mgsnode:
        report = with_file_system(check_mounted)
    else:
        cluster = here.cluster().need()
        if not any(cluster.record(name) for name in cluster.members):
            report = check_stopped(cluster)
        elif not cluster.unserved():
            report = with_file_system(check_mounted)
        else:
            raise Refused("part of the cluster is down: start it (`lustrelite up`) or stop all of it first")
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        for problem in report.problems[:SHOWN_MAX]:
            click.echo(f"{problem.severity}: {problem.kind}: {problem.subject}: {problem.detail}")
        click.echo(summary(report))
    if report.errors:
        raise click.exceptions.Exit(4)


def summary(report: Report) -> str:
    """The report in one line."""
    counts = ", ".join(f"{count} {name}" for name, count in report.counts.items() if count)
    if report.clean:
        return f"clean: {counts}"
    found = ", ".join(f"{count} {kind}" for kind, count in report.found.items())
    return f"NOT CLEAN: {found} (of {counts})"


def check_stopped(cluster: Cluster) -> Report:
    """Examine the stores of a cluster that is not running."""
    with contextlib.ExitStack() as stack:
        stores: dict[str, Store] = {}
        files: dict[str, ObjectFiles] = {}
        for name in dict.fromkeys(t for m in cluster.members.values() for t in m.targets if t != "MGS"):
            directory = cluster.target_dir(name)
            stack.callback(target_format.claim(directory).release)
            kind = parse_target_name(name)[1]
            stores[name] = Store.open(directory, kind, readonly=True)
            stack.callback(stores[name].close)
            if kind == "OST":
                files[name] = ObjectFiles(directory)
                stack.callback(files[name].close)
        osts = {parse_target_name(name)[2]: (stores[name], files[name]) for name in files}
        (mdt,) = (store for name, store in stores.items() if name not in files)
        return checker.check(mdt, osts)


async def check_mounted(fs: FileSystem) -> Report:
    """Examine a running cluster through the mount's connections; root only."""
    imports = fs.connections.imports
    osts = {parse_target_name(n)[2]: checker.RpcReader(imp) for n, imp in imports.items() if "-OST" in n}
    (mdt,) = (checker.RpcReader(imp) for name, imp in imports.items() if "-MDT" in name)
    return await checker.check_running(mdt, osts, lambda: asyncio.sleep(PAUSE_S))
