"""llctl: parameters, devices and recovery of running processes, over their side sockets (lctl's words).

Without --node it speaks to every process of the cluster; where several answer under one name, the process stands in
front: `mds1: version=...`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from lustrelite import control
from lustrelite.cli import completion
from lustrelite.cli.cluster import Cluster
from lustrelite.cli.context import DEFAULT_STATE_DIR
from lustrelite.cli.errors import Refused, run
from lustrelite.cli.examples import add_examples
from lustrelite.control import NO_MATCH, ControlFailed, NoAnswer, NotThere
from lustrelite.errors import LinkLost
from lustrelite.ids import parse_nid, parse_target_name
from lustrelite.tunables import FAILOVER_MODE

TARGETS = ("mgs", "mdt", "obdfilter")  # types of devices that are served
LOOK_S = 1.0  # for a process to say whether it is connected to an MGS


class Processes:
    """The control sockets that a command speaks to, by process name."""

    def __init__(self, run_dir: Path, nodes: tuple[str, ...]) -> None:
        found = {path.stem: path for path in sorted(run_dir.glob("*.sock"))}
        for node in nodes:
            if node not in found:
                raise Refused(f"no process {node!r} in {run_dir}; there are: {', '.join(found) or 'none'}")
        self.sockets = {name: path for name, path in found.items() if not nodes or name in nodes}
        self.run_dir = run_dir

    def call(self, cmd: str, **fields: Any) -> dict[str, Any]:
        """Results by process; one that refuses is left out, unless all do: then Refused, as by one that knows more.

        Who runs and does not answer is named on stderr.
        """
        results: dict[str, Any] = {}
        refusals: list[ControlFailed] = []
        silent: list[str] = []
        for name, path in self.sockets.items():
            try:
                results[name] = control.call(path, cmd, **fields)
            except NoAnswer as error:
                silent.append(str(error))
            except ControlFailed as error:
                refusals.append(error)
        if not results:  # who has the parameter knows why not; who was killed left a socket, and knows nothing
            refusals.sort(key=lambda error: (isinstance(error, NotThere), str(error).startswith(NO_MATCH)))
            raise Refused("; ".join([*silent, *map(str, refusals[:1])]) or f"no process runs in {self.run_dir}: see `lustrelite up`")
        for why in silent:
            click.echo(f"llctl: {why}", err=True)
        return results

    def set_permanent(self, name: str, value: str) -> None:
        """Have the MGS keep a parameter: one process asks it, if possible one that is connected to it.  Refused"""
        followers: dict[str, Path] = {}  # state of the connection -> control socket
        for path in self.sockets.values():
            with contextlib.suppress(ControlFailed):  # an MGS, or nobody
                followers.setdefault(control.call(path, "mgs", LOOK_S)["state"], path)
            if "FULL" in followers:
                break
        if not followers:
            raise Refused(f"no process that knows an MGS runs in {self.run_dir}: an MDS, an OSS or a client does")
        try:
            control.call(followers.get("FULL") or next(iter(followers.values())), "set_permanent", pattern=name, value=value)
        except ControlFailed as error:
            raise Refused(f"{name}={value}: {error}") from None

    def call_on(self, name: str, cmd: str, **fields: Any) -> Any:
        """The result of one process."""
        return control.call(self.sockets[name], cmd, **fields)

    def device(self, wanted: str) -> tuple[str, str]:
        """(process, device) of a device's name, or of its number in `dl`."""
        node, device = self._device(wanted)
        return node, device["name"]

    def target(self, wanted: str) -> tuple[str, str]:
        """`device` of one that a server serves."""
        node, device = self._device(wanted)
        if device["type"] not in TARGETS:
            raise Refused(f"{device['name']} of {node} is a connection ({device['type']}), no target: see `llctl dl`")
        return node, device["name"]

    def _device(self, wanted: str) -> tuple[str, dict[str, Any]]:
        for number, (node, device) in enumerate(self.devices()):
            if wanted in (str(number), device["name"]):
                return node, device
        raise Refused(f"no device {wanted!r}: see `llctl dl`")

    def devices(self) -> list[tuple[str, dict[str, Any]]]:
        """Every device in the order of `dl`."""
        return [(node, device) for node, devices in self.call("devices").items() for device in devices]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--state-dir", type=click.Path(path_type=Path), default=DEFAULT_STATE_DIR, show_default=True,
              envvar="LUSTRELITE_STATE_DIR", help="the cluster's state directory")
@click.option("--run-dir", type=click.Path(path_type=Path), envvar="LUSTRELITE_RUN_DIR",
              help="where the control sockets are [STATE_DIR/run]")
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="only this process; may be repeated",
              shell_complete=completion.nodes)
@click.option("--device", "device", metavar="N|NAME", help="the device for abort_recovery, deactivate, activate",
              shell_complete=completion.devices)
@click.pass_context
def llctl(context: click.Context, state_dir: Path, run_dir: Path | None, nodes: tuple[str, ...], device: str | None) -> None:
    """Look into running servers and clients, and set what can be set."""
    directory = run_dir or Cluster(state_dir).run_dir
    context.obj = (Processes(directory, nodes), device)


def _processes() -> Processes:
    found: Processes = click.get_current_context().obj[0]
    return found


@llctl.command("dl")
def device_list() -> None:
    """List devices: number, status, type, name, uuid, references."""
    for number, (_, d) in enumerate(_processes().devices()):
        click.echo(f"{number:3d} {d['status']} {d['type']} {d['name']} {d['uuid']} {d['refs']}")


@llctl.command("get_param")
@click.option("-n", "values_only", is_flag=True, help="values only")
@click.option("-N", "names_only", is_flag=True, help="names only")
@click.argument("patterns", nargs=-1, required=True, shell_complete=completion.parameters)
def get_param(values_only: bool, names_only: bool, patterns: tuple[str, ...]) -> None:
    """Print parameters, as in `llctl get_param mdt.*.recovery_status`."""
    for pattern in patterns:
        results = _processes().call("get_param", pattern=pattern)
        names = [name for values in results.values() for name in values]
        for node, values in results.items():
            for name, value in values.items():
                shown = f"{node}: {name}" if names.count(name) > 1 else name
                if names_only:
                    click.echo(shown)
                elif values_only:
                    click.echo(value)
                else:
                    click.echo(f"{shown}={value}" if "\n" not in value else f"{shown}=\n{value}")


@llctl.command("set_param")
@click.option("-n", "quiet", is_flag=True, help="do not print what was set")
@click.option("-P", "permanent", is_flag=True, help="for all servers and clients, also after a restart (kept by the MGS)")
@click.option("-d", "delete", is_flag=True, help="with -P: forget the permanent value")
@click.argument("assignments", nargs=-1, required=True, metavar="NAME=VALUE...")
def set_param(quiet: bool, permanent: bool, delete: bool, assignments: tuple[str, ...]) -> None:
    """Set parameters, as in `llctl set_param mdt.*.commit_on_sharing=0`.

    What -P sets is applied by servers and clients, now and at their starts, not by the MGS itself, which may keep several
    file systems; `llctl get_param 'mgs.MGS.live.*'` shows what it keeps.
    """
    parts = [assignment.partition("=") for assignment in assignments]
    for assignment, (name, equals, value) in zip(assignments, parts, strict=True):
        if not equals and not delete:
            raise Refused(f"bad argument {assignment!r}: NAME=VALUE expected")
        if permanent and not delete:
            from lustrelite.params import check_permanent  # servers' code: others do not wait for it

            with _refused_as(name, value):
                check_permanent(name, value)
    for name, _, value in parts:
        if permanent:
            _processes().set_permanent(name, "" if delete else value)
            continue
        with _refused_as(name, value):
            changed = _processes().call("set_param", pattern=name, value=value)
        for node, names in changed.items():
            for each in names if not quiet else ():
                click.echo(f"{node}: {each}={value}")


@contextlib.contextmanager
def _refused_as(name: str, value: str) -> Iterator[None]:
    """A refusal names the parameter and its value."""
    try:
        yield
    except (Refused, ValueError) as error:
        why = str(error)
        raise Refused(why if repr(name) in why or why.startswith(name) else f"{name}={value}: {why}") from None


@llctl.command("list_param")
@click.option("-R", "recursive", is_flag=True, help="everything below, too")
@click.option("-F", "suffix", is_flag=True, help="a dot behind what goes on, = behind what can be set")
@click.argument("patterns", nargs=-1, required=True, shell_complete=completion.parameters)
def list_param(recursive: bool, suffix: bool, patterns: tuple[str, ...]) -> None:
    """List the names of parameters that match, level by level: what is below one of them needs -R, or a `.*` more."""
    names: dict[str, None] = {}
    unknown = []
    for pattern in patterns:
        rows = [row for rows in _processes().call("list_param", pattern=pattern, recursive=recursive).values() for row in rows]
        for name, access in rows:
            names[name + ("=" if "w" in access else "") if suffix else name.rstrip(".")] = None
        if not rows:
            unknown.append(pattern)
    for name in sorted(names):
        click.echo(name)
    if unknown:
        raise Refused(f"{NO_MATCH} {unknown[0]!r}; `llctl list_param '*'` names the first level")


@llctl.command("abort_recovery")
def abort_recovery() -> None:
    """End the recovery of the device named by --device: clients that are not back are evicted."""
    wanted: str | None = click.get_current_context().obj[1]
    if wanted is None:
        raise Refused("name the device: llctl --device lustre-MDT0000 abort_recovery")
    node, device = _processes().target(wanted)
    click.echo(_processes().call_on(node, "abort_recovery", target=device))


def _switch(active: int) -> None:
    wanted: str | None = click.get_current_context().obj[1]
    if wanted is None:
        raise Refused("name the device: llctl --device lustre-OST0000-osc-1a2b3c4d deactivate (see `llctl dl`)")
    node, device = _processes().device(wanted)
    try:
        _processes().call_on(node, "set_param", pattern="{osc,mdc,osp}." + device + ".active", value=str(active))
    except ControlFailed:
        raise Refused(f"{device} of {node} is no connection that can be switched off: an osc, mdc or osp is") from None
    click.echo(f"{node}: {device} is {'active' if active else 'inactive'}")


@llctl.command("deactivate")
def deactivate() -> None:
    """Take the connection named by --device out of use: what needs it fails with EIO at once, the MDS puts nothing there."""
    _switch(0)


@llctl.command("activate")
def activate() -> None:
    """Take the connection named by --device into use again."""
    _switch(1)


@llctl.command("conf_param")
@click.argument("assignment", metavar="TARGET.NAME=VALUE")
def conf_param(assignment: str) -> None:
    """Set TARGET.osc.active or TARGET.failover.mode for all clients and servers, for good (set_param -P -d forgets it)."""
    name, equals, value = assignment.partition("=")
    allowed = {"osc.active": ("0", "1"), FAILOVER_MODE: ("failover", "failout")}
    target, _, param = name.partition(".")
    if not equals or param not in allowed or value not in allowed[param]:
        known = " or ".join(f"TARGET.{each}={'|'.join(values)}" for each, values in allowed.items())
        raise Refused(f"bad argument {assignment!r}: {known} expected (others: llctl set_param -P)")
    if parse_target_name(target)[1] != "OST":
        raise Refused(f"{target} is no OST")
    osts = _known_osts()
    if osts and target not in osts:
        raise Refused(f"no OST {target!r} is known here; there are: {', '.join(osts)}")
    _processes().set_permanent(name, value)


def _known_osts() -> list[str]:
    """The OSTs that the running processes serve or have connections to; empty if nobody has any: an OSS knows only its own."""
    names = [device["name"] for _, device in _processes().devices()]
    if not any("-osc-" in name for name in names):
        return []
    return sorted({name.split("-osc-")[0] for name in names if "-OST" in name})


@llctl.command("list_nids")
def list_nids() -> None:
    """Print where the processes listen."""
    for record in _processes().call("status").values():
        for nid in record.get("nids", ()):
            click.echo(nid)


@llctl.command("ping")
@click.argument("nid")
def ping(nid: str) -> None:
    """Open a link to NID and close it again."""
    from lustrelite.cli.dial import dial

    try:
        click.echo(f"{nid}: {dial(parse_nid(nid))} is there")
    except LinkLost as error:
        raise Refused(str(error)) from None


@llctl.command("hold_commits")
@click.argument("target", shell_complete=completion.targets)
def hold_commits(target: str) -> None:
    """Let TARGET commit nothing until release_commits (for tests: what a crash loses is what was held)."""
    _command_on(target, "hold_commits")


@llctl.command("release_commits")
@click.argument("target", shell_complete=completion.targets)
def release_commits(target: str) -> None:
    """Let TARGET commit again."""
    _command_on(target, "release_commits")


@llctl.command("commit")
@click.argument("target", shell_complete=completion.targets)
def commit(target: str) -> None:
    """Return when everything TARGET has executed is durable."""
    _command_on(target, "commit")


@llctl.command("dump_locks")
@click.argument("target", shell_complete=completion.targets)
@click.argument("resource", default="")
def dump_locks(target: str, resource: str) -> None:
    """Print who holds what and who waits for whom on RESOURCE: a FID at an MDT, an object's number at an OST.

    Without RESOURCE: everything that somebody waits for.
    """
    from lustrelite.status_text import lock_lines

    node, device = _processes().target(target)
    for found in _processes().call_on(node, "dump_locks", target=device, resource=resource):
        for line in found.get("lines") or lock_lines(found):
            click.echo(line)


def _command_on(target: str, cmd: str) -> None:
    node, device = _processes().target(target)
    click.echo(_processes().call_on(node, cmd, target=device))


@llctl.command("clear")
def clear() -> None:
    """Disarm all faults."""
    _processes().call("clear_faults")


@llctl.command("events")
@click.option("--prefix", default="")
@click.option("--count", "-n", default=50, show_default=True, type=click.IntRange(0))
def events(prefix: str, count: int) -> None:
    """Print the newest events that the processes remember (lctl dk)."""
    for lines in _processes().call("events", prefix=prefix, count=count).values():
        for line in lines:
            click.echo(line)


add_examples(llctl, "llctl")


def main() -> None:
    """Entry point of llctl."""
    run(llctl, "llctl")


if __name__ == "__main__":
    main()
