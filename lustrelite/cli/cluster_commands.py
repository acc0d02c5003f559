"""lustrelite up, status, down, start, stop, kill, events: the processes of a cluster on this machine."""

from __future__ import annotations

import json
import time

import click

from lustrelite.cli import completion
from lustrelite.cli.cluster import Cluster
from lustrelite.cli.context import where
from lustrelite.cli.errors import Refused


@click.command()
@click.option("--osts", type=click.IntRange(1, 1000), help="object storage targets [2]")
@click.option("--oss", type=click.IntRange(1, 100), help="processes that serve them [2, or as many as OSTs]")
@click.option("--mds-failover", is_flag=True, help="a second MDS on the same directory, ready to take over")
@click.option("--oss-failover", is_flag=True, help="for every OSS a second one on the same directories")
@click.option("--fsname", "name", help="name of the file system [lustre]")
@click.option("--tcp", is_flag=True, help="loopback TCP ports instead of Unix sockets")
@click.option("--set", "assignments", multiple=True, metavar="PARAM=VALUE", help="a parameter of every process")
def up(
    osts: int | None, oss: int | None, mds_failover: bool, oss_failover: bool, name: str | None, tcp: bool,
    assignments: tuple[str, ...],
) -> None:  # fmt: skip
    """Start the cluster, making it first if there is none. Running processes are left alone."""
    cluster = where().cluster()
    params = dict(_assignment(a) for a in assignments)
    with cluster.locked():
        fresh = not cluster.exists
        if fresh:
            count = osts if osts is not None else max(2, oss or 0)
            cluster.create(
                fsname=name or where().fsname or "lustre", osts=count, oss=oss or min(2, count),
                mds_failover=mds_failover, oss_failover=oss_failover, tcp=tcp, params=params,
            )  # fmt: skip
        else:
            _check_same(cluster, osts, oss, name, params)
            for why in cluster.wrong_params().values():
                click.echo(f"lustrelite: left out of {cluster.plan_path}: {why}", err=True)
        try:
            started = cluster.up()
        except Refused:
            if fresh and not cluster.record("mgs"):
                cluster.forget()  # as planned it cannot run (a parameter that nobody knows): nobody is held to it
            raise
        cluster.wait_healthy()
    click.echo(f"{cluster.fsname} is up in {cluster.state_dir}" + (f" (started {', '.join(started)})" if started else ""))
    for process in cluster.status()["processes"]:
        for target in process["targets"]:
            recovery = target.get("recovery") or {}
            if target["state"] == "RECOVERING" and recovery.get("waiting"):
                click.echo(
                    f"{target['name']} waits for {recovery['max_clients']} client(s) of before; the next one that "
                    f"connects starts the clock, or `llctl --device {target['name']} abort_recovery` gives them up"
                )


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Refused(f"bad --set {text!r}: PARAM=VALUE expected")
    from lustrelite.params import check_text  # servers' code: only who sets something waits for it

    try:
        check_text(name, value)
    except ValueError as error:
        raise Refused(f"--set {text}: {error}") from None
    return name, value


def _check_same(
    cluster: Cluster, osts: int | None, oss: int | None, name: str | None, params: dict[str, str]
) -> None:
    have_oss = [m for m in cluster.members.values() if m.role == "oss" and not m.standby]
    have_osts = sum(len(m.targets) for m in have_oss)
    asked = [("OSTs", osts, have_osts), ("OSS", oss, len(have_oss)), ("fsname", name, cluster.fsname)]
    for what, want, have in asked:
        if want is not None and want != have:
            raise Refused(
                f"the cluster in {cluster.state_dir} has {what} {have}, not {want}: "
                "leave the option out, or choose another --state-dir"
            )
    for param, value in params.items():
        if cluster.params.get(param) != value:
            raise Refused(
                f"the cluster in {cluster.state_dir} was made with {param}={cluster.params.get(param, 'its default')}, "
                f"not {value}: `llctl set_param -P {param}={value}` changes it for good"
            )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
def status(as_json: bool) -> None:
    """Show every process and target. Exit status 3 if one of them is not well."""
    found = where().cluster().need().status()
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        from lustrelite.cli.status_table import print_status

        print_status(found)
    if not found["healthy"]:
        raise click.exceptions.Exit(3)


@click.command()
def down() -> None:
    """Stop the cluster. What it stored stays in the state directory."""
    cluster = where().cluster().need()
    with cluster.locked():
        stopped = cluster.down()
    click.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completion.members)
def start(names: tuple[str, ...]) -> None:
    """Start processes or targets."""
    cluster = where().cluster().need()
    found = [cluster.member_of(name) for name in names]
    with cluster.locked():
        whole = dict.fromkeys(member.name for member, target in found if target is None or not cluster.record(member.name))
        started = cluster.start(*whole)
        for name in whole:
            click.echo(f"started {name}" if name in started else f"{name} runs already")
        for member, target in found:
            if member.name not in whole:
                click.echo(cluster.call(member.name, "start_target", 60.0, target=target))


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completion.members)
def stop(names: tuple[str, ...]) -> None:
    """Stop processes or targets in good order."""
    cluster = where().cluster().need()
    found = [cluster.member_of(name) for name in names]
    with cluster.locked():
        for name, (member, target) in zip(names, found, strict=True):
            if target is not None and cluster.record(member.name):
                click.echo(cluster.call(member.name, "stop_target", 60.0, target=target))
            else:
                click.echo(f"stopped {name}" if cluster.stop(member.name) else f"{name} was not running")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=completion.processes)
def kill(names: tuple[str, ...]) -> None:
    """kill -9 processes: what they had not committed, clients replay when they are back."""
    cluster = where().cluster().need()
    for name in [cluster.member(name).name for name in names]:
        click.echo(f"killed {name}, process {cluster.kill(name)}")


@click.command()
@click.argument("name", required=False, shell_complete=completion.processes)
@click.option("--follow", "-f", is_flag=True, help="go on as they come")
@click.option("--count", "-n", default=30, show_default=True, type=click.IntRange(0))
@click.option("--prefix", default="", help="only events whose name starts so, as in `import.`")
def events(name: str | None, follow: bool, count: int, prefix: str) -> None:
    """Print what happened, as JSON lines: of the process NAME, or of all of them in order of time."""
    cluster = where().cluster().need()
    names = [cluster.member(name).name] if name else list(cluster.members)
    paths = [cluster.log_dir / f"{each}.events.jsonl" for each in names]
    lines: list[tuple[float, str]] = []
    offsets = {}
    for path in paths:
        if path.exists():
            text = path.read_bytes()
            offsets[path] = len(text)
            lines += _wanted(text, prefix)
    for _, line in sorted(lines)[max(0, len(lines) - count) :]:
        click.echo(line)
    while follow:
        time.sleep(0.2)
        fresh: list[tuple[float, str]] = []
        for path in paths:
            if not path.exists():
                continue
            if path.stat().st_size < offsets.get(path, 0):
                offsets[path] = 0  # it was rotated
            with open(path, "rb") as file:
                file.seek(offsets.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            offsets[path] = offsets.get(path, 0) + len(whole)
            fresh += _wanted(whole, prefix)
        for _, line in sorted(fresh):
            click.echo(line)


def _wanted(text: bytes, prefix: str) -> list[tuple[float, str]]:
    found = []
    for line in text.decode(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the line a kill cut off
        if str(event.get("event", "")).startswith(prefix):
            found.append((float(event.get("wall", 0)), line))
    return found
