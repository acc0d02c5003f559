"""What every daemon has around its protocol part: loop, node, signals, pid file, log, control socket, metrics.

    run/NAME.pid          number of the process, while it runs; whoever has it locked has the name
    run/NAME.json         its record: role, NIDs, metrics port, control socket, targets (written when it listens); it stays
                          behind if the process dies, or has lost what nobody was told of (`lost`); those of dead mounts are
                          removed by later ones (cli/mounts.py)
    run/NAME.sock         control socket
    log/NAME.log          for people (also stdout and stderr)
    log/NAME.events.jsonl one event a line; both may be moved, removed or cut (event_file.py)

SIGTERM, SIGINT and SIGHUP stop it in good order: targets commit and are given up, clients hear nothing (they reconnect).
A third one, `kill -9`, a failed commit or an unhandled exception end it at once; its successor recovers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from lustrelite import collector
from lustrelite.alive import start_ticks
from lustrelite.claim import claim
from lustrelite.control_server import Command, ControlServer
from lustrelite.errors import FormatRefused, LinkLost, OpError, StoreFailed
from lustrelite.event_file import EventFile, RotatingFile, log_line
from lustrelite.events import Event
from lustrelite.ids import Nid, parse_nid
from lustrelite.metrics import Metrics, MetricsServer
from lustrelite.params import ParamTree, add_node_params
from lustrelite.real_node import loop_factory, socket_node
from lustrelite.rpc.config import ConfigFollower
from lustrelite.rpc.workers import Workers

EXIT_REFUSED = 2  # the arguments or the directories are wrong: starting again does not help
EXIT_CRASHED = 70  # a commit failed or a bug: starting again recovers
STOP_WAIT_S = 20.0
WORKERS = 8
THREADS_END_S = 5.0


def process_name(text: str) -> str:
    """A name that can stand in file names (an argparse type)."""
    if not text or "/" in text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"bad name {text!r}: it stands in file names")
    return text


def nids(text: str) -> list[Nid]:
    """Comma-separated NIDs (an argparse type)."""
    try:
        return [parse_nid(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def arguments(program: str, about: str) -> argparse.ArgumentParser:
    """The options that every daemon has."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--name", type=process_name, required=True, help="name of this process in messages and file names")
    parser.add_argument("--run-dir", type=Path, default=None, help="pid file, record and control socket go here")
    parser.add_argument("--log-dir", type=Path, default=None, help="log and events go here (default: stderr only)")
    parser.add_argument("--metrics-port", type=int, default=0, help="0 chooses one, -1 is none")
    parser.add_argument("--metrics-host", default="127.0.0.1")
    parser.add_argument("--allow-remote", action="store_true", help="listen on other than loopback addresses: "
                        "callers are not authenticated, so only on a network you trust")
    parser.add_argument("--set", action="append", default=[], metavar="PARAM=VALUE", help="set a parameter at the start")
    return parser


def server_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that every server has."""
    parser.add_argument("--listen", type=nids, required=True, metavar="NID[,NID]", help="where to listen; port 0 chooses")
    parser.add_argument("--target", action="append", default=[], metavar="DIR", help="a formatted target; may be repeated")
    parser.add_argument("--wait", action="store_true", help="a standby: wait until the owner of a target is dead")
    return parser


class Process:
    """One daemon process. `serve` is its life: it returns after `stopping` is set.  NameTaken"""

    def __init__(self, role: str, options: argparse.Namespace) -> None:
        for limit in resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_FSIZE:  # meant for programs, not for file systems
            _, hard = resource.getrlimit(limit)
            resource.setrlimit(limit, (hard, hard))
        self.role = role
        self.options = options
        self.name: str = options.name
        self.run_dir: Path | None = options.run_dir
        if self.run_dir is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            claim(self._path(".pid"))  # until we end
        self.tree = ParamTree()
        self.stopping = asyncio.Event()
        self.stop_by = math.inf  # of the loop's clock: then we are gone
        self.record: dict[str, Any] = {
            "name": self.name, "role": role, "pid": os.getpid(), "start_ticks": start_ticks(os.getpid()),
            "run_dir": str(self.run_dir), "state": "starting",
        }  # fmt: skip
        self.status: Callable[[], dict[str, Any]] = dict  # what the control command "status" adds
        self._permanent: dict[str, dict[str, str]] = {}  # parameters, by file system
        self._settable: frozenset[str] = frozenset()  # parameters that were there when devices came or went last
        self._looking = False  # for new ones, at the end of this turn
        self._of_devices: list[str] = []  # assignments to parameters of devices that are yet to come
        self._stops = 0
        self.node = socket_node(self.name, workers=Workers(WORKERS), allow_remote=options.allow_remote)
        self.node.on_crash = self._crashed
        self._open_logs()
        add_node_params(self.tree, self.node)
        self.metrics = Metrics(self.node)
        self.metrics_server = MetricsServer(self.metrics)
        self.control: ControlServer | None = None
        self.commands: dict[str, Command] = {
            "ping": lambda _: "pong",
            "status": lambda _: {**self.record, **self.status()},
            "stop": lambda _: self.stop("control socket"),
            "get_param": lambda request: self.tree.get(request["pattern"]),
            "set_param": lambda request: self.tree.set(request["pattern"], str(request["value"])),
            "list_param": self._list_params,
            "events": self._events,
            "counts": lambda _: dict(self.node.events.counts),
            "clear_faults": lambda _: self.node.faults.clear(),
        }

    # files --------------------------------------------------------------------------------------------------------

    def _open_logs(self) -> None:
        directory: Path | None = self.options.log_dir
        events = self.node.events
        if directory is None:
            events.sinks.append(lambda event: print(log_line(event), file=sys.stderr, flush=True))  # noqa: T201
            return
        directory.mkdir(parents=True, exist_ok=True)
        answers = bool(getattr(self.options, "stdin", False))  # then stdout is for them
        log = RotatingFile(directory / f"{self.name}.log", std=(2,) if answers else (1, 2))
        lines = EventFile(directory / f"{self.name}.events.jsonl")

        def write(event: Event) -> None:
            if event.level != "debug" or self.node.tunables.debug:
                log.write(log_line(event))
                lines(event)

        events.sinks.append(write)

    def _path(self, suffix: str) -> Path:
        assert self.run_dir is not None
        return self.run_dir / f"{self.name}{suffix}"

    def write_record(self, **fields: Any) -> None:
        """Say who we are to the command line, in one step."""
        self.record.update(fields)
        if self.run_dir is not None:
            fresh = self._path(".json.new")
            fresh.write_text(json.dumps(self.record, indent=2) + "\n")
            fresh.replace(self._path(".json"))

    # life ---------------------------------------------------------------------------------------------------------

    async def live(self, serve: Callable[[Process], Awaitable[None]]) -> None:
        """Start what is beside the protocol, serve, and take it down again."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1)
                loop.add_signal_handler(number, self.stop, signal.Signals(number).name)
        try:
            await self._open()
            await serve(self)
        finally:
            await self.metrics_server.close()
            if self.control is not None:
                await self.control.close()
            await self.node.stop_tasks()
            self.node.workers.stop(THREADS_END_S)  # else the process is not quite gone when it seems to be
            if self.run_dir is not None:
                for suffix in (".pid",) if "lost" in self.record else (".json", ".pid"):
                    self._path(suffix).unlink(missing_ok=True)
        self.node.events.emit("process.stopped")

    async def _open(self) -> None:
        if self.run_dir is not None:
            self.write_record(control=str(self._path(".sock")))
            self.control = ControlServer(self._path(".sock"), self.commands)
            await self.control.start()
        if self.options.metrics_port >= 0:
            await self.metrics_server.start(self.options.metrics_host, self.options.metrics_port)
            self.record["metrics_port"] = self.metrics_server.port
        for assignment in self.options.set:
            if self.role == "client" and not self.tree.find(assignment.partition("=")[0]):
                self._of_devices.append(assignment)
            else:
                await self._assign(assignment)
        self.write_record()
        self.node.events.emit("process.started", role=self.role, pid=os.getpid())
        collector.calm()
        self.node.spawn(collector.collect(), "collector")

    async def devices_are_there(self) -> None:
        """A client is connected: set what was asked for at the start and is a parameter of devices.  ValueError"""
        for assignment in self._of_devices:
            await self._assign(assignment)

    async def _assign(self, assignment: str) -> None:
        name, equals, value = assignment.partition("=")
        try:
            if not equals:
                raise ValueError("which value shall it have?")
            await self.tree.set(name, value)
        except (KeyError, ValueError) as error:
            raise ValueError(f"parameter {assignment!r}: {error.args[0]}") from None

    def ready(self, **fields: Any) -> None:
        """We serve: the record has everything now."""
        self.write_record(state="ready", **fields)
        self.node.events.emit("process.ready", **{key: str(value) for key, value in fields.items()})

    def stop(self, why: str) -> str:
        """Stop in good order; asked a third time, at once."""
        self._stops += 1
        if self._stops > 2:
            os._exit(EXIT_CRASHED)
        self.node.events.emit("process.stopping", why=why)
        self.record["state"] = "stopping"
        self.stopping.set()
        loop = asyncio.get_running_loop()
        self.stop_by = min(self.stop_by, loop.time() + STOP_WAIT_S)
        loop.call_at(self.stop_by, self._stop_took_too_long)
        return "stopping"

    def _stop_took_too_long(self) -> None:
        self._crashed(f"stopping took more than {STOP_WAIT_S:g} s")

    def _crashed(self, why: str) -> None:
        # As kill -9 would: nothing is committed, nobody is told. The successor gets the clients' replays.
        try:
            print(f"{self.name}: crashed: {why}", file=sys.stderr, flush=True)  # noqa: T201
        finally:
            os._exit(EXIT_CRASHED)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        try:
            loop.default_exception_handler(context)
        finally:
            if error is not None and not isinstance(error, (ConnectionError, TimeoutError)):
                self.node.crash(f"{context.get('message')}: {error!r}", error)

    def follow_params(self, follower: ConfigFollower) -> None:
        """Apply the permanent parameters of the MGS (`llctl set_param -P`): now, whenever they change, and to devices that come."""
        follower.on_params(partial(self._permanent_changed, follower.fsname))
        follower.on_change(lambda _: self.devices_changed())
        self._permanent_changed(follower.fsname, follower.params)
        self.commands["mgs"] = lambda _: {"fsname": follower.fsname, "state": str(follower.mgs.state)}
        self.commands["set_permanent"] = lambda request: follower.set_param(str(request["pattern"]), str(request["value"]))

    def _permanent_changed(self, fsname: str, params: dict[str, str]) -> None:
        self._permanent[fsname] = params
        self._apply(params)
        self.devices_changed()

    def devices_changed(self) -> None:
        """Devices came or went: those that are new get the permanent parameters, what was set of others stays."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look_for_new)

    def _look_for_new(self) -> None:
        self._looking = False
        settable = self.tree.settable()
        new, self._settable = settable - self._settable, settable
        if new:
            for params in self._permanent.values():
                self._apply(params, new)

    def _apply(self, params: dict[str, str], among: frozenset[str] | None = None) -> None:
        if params:
            self.node.spawn(self._apply_all(dict(params), among), "permanent parameters")

    async def _apply_all(self, params: dict[str, str], among: frozenset[str] | None) -> None:
        for complaint in await self.tree.apply(params, among):
            self.node.events.emit("param.refused", level="warning", why=complaint)

    # commands -----------------------------------------------------------------------------------------------------

    def _list_params(self, request: dict[str, Any]) -> list[tuple[str, str]]:
        return list(self.tree.level(str(request.get("pattern") or "*"), below=bool(request.get("recursive"))).items())

    def _events(self, request: dict[str, Any]) -> list[str]:
        """The newest `count` events whose name starts with `prefix`, as JSON lines."""
        prefix, count = str(request.get("prefix") or ""), int(request.get("count", 100))
        ring = [event for event in self.node.events.ring if event.name.startswith(prefix)]
        return [event.line() for event in ring[max(0, len(ring) - count) :]]


def run(role: str, options: argparse.Namespace, serve: Callable[[Process], Awaitable[None]]) -> int:
    """Run a daemon until it is stopped; returns the exit status."""
    if not __debug__:
        print("refusing to run without assertions (python -O, PYTHONOPTIMIZE): they guard the data", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED

    async def main() -> None:
        await Process(role, options).live(serve)

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(main())
    except (FormatRefused, StoreFailed, OpError, ValueError, LinkLost, OSError) as error:
        print(f"{options.name}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return EXIT_REFUSED
    return 0
