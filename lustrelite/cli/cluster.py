"""A cluster of processes under one state directory: what it consists of, and starting, stopping, killing, asking it.

    STATE/cluster.json    the plan: file system name, processes, their NIDs and targets (never changes by itself)
    STATE/targets/NAME/   one directory per target, made as mkfs.lustrelite makes it
    STATE/run, STATE/log  what the processes write (lustrelite/process.py)

Daemons are detached: sessions of their own, no terminal, nothing inherited. A process is known by its pid and the
time the kernel says it started, so a reused pid is never taken for it, nor killed. Commands that change the cluster
hold a lock, so two `up` at once are as harmless as two in a row.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lustrelite import __file__ as package_file
from lustrelite import control
from lustrelite.alive import runs, start_ticks
from lustrelite.cli.errors import Refused
from lustrelite.control import ControlFailed
from lustrelite.ids import check_fsname, parse_nid, target_name
from lustrelite.tunables import limits

PLAN_VERSION = 1
START_WAIT_S = 30.0
STOP_WAIT_S = 25.0
KILL_WAIT_S = 10.0
POLL_S = 0.02


class Detached(subprocess.Popen[bytes]):
    """A process that is meant to outlive us: no complaint when we forget it."""

    def __del__(self, _warn: object = None) -> None:
        pass


class Member(NamedTuple):
    """One process of the plan."""

    name: str
    role: str  # mgs, mds, oss
    nids: tuple[str, ...]
    targets: tuple[str, ...]  # names
    standby: bool = False


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens at now, all different."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in socks]


def module_command(role: str) -> list[str]:
    """How to start a daemon with this Python: installed, or from the source tree."""
    if importlib.util.find_spec("lustrelite.services") is not None:
        return [sys.executable, "-m", f"lustrelite.services.{role}"]
    return [sys.executable, str(source_root() / "services" / f"{role}.py")]


def source_root() -> Path:
    """The directory that holds the package `lustrelite`."""
    return Path(package_file).resolve().parent.parent


def child_environment() -> dict[str, str]:
    """Our environment, with import paths that do not depend on the working directory."""
    env = dict(os.environ)
    paths = [os.path.abspath(p) for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
    if importlib.util.find_spec("lustrelite.services") is None and str(source_root()) not in paths:
        paths.append(str(source_root()))
    if paths:
        env["PYTHONPATH"] = os.pathsep.join(paths)
    env.pop("PYTHONOPTIMIZE", None)
    return env


class Cluster:
    """The cluster in `state_dir`."""

    def __init__(self, state_dir: str | Path) -> None:
        self.state_dir = Path(os.path.realpath(state_dir))  # Path.resolve() raises RuntimeError for a loop of symlinks
        self.plan_path = self.state_dir / "cluster.json"
        self.run_dir = self.state_dir / "run"
        self.log_dir = self.state_dir / "log"
        self.fsname = ""
        self.members: dict[str, Member] = {}
        self.params: dict[str, str] = {}  # set in every process at its start
        self._children: dict[int, Detached] = {}
        if self.exists:
            self._load()

    @property
    def exists(self) -> bool:
        """Is there a cluster?"""
        return self.plan_path.exists()

    @property
    def mgs_nids(self) -> tuple[str, ...]:
        """Where the MGS is."""
        return tuple(nid for member in self.members.values() if member.role == "mgs" for nid in member.nids)

    def need(self) -> Cluster:
        """Self; Refused if there is no cluster."""
        if not self.exists:
            raise Refused(f"no cluster in {self.state_dir}: start one with `lustrelite up`, or name its --state-dir")
        return self

    # the plan -----------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        try:
            plan = json.loads(self.plan_path.read_text())
            if plan["version"] != PLAN_VERSION:
                raise Refused(f"{self.plan_path} has version {plan['version']}, this program knows {PLAN_VERSION}")
            self.fsname = check_fsname(plan["fsname"])
            self.params = {str(name): str(value) for name, value in plan["params"].items()}
            self.members = {
                str(m["name"]): Member(str(m["name"]), str(m["role"]), tuple(map(parse_nid, m["nids"])),
                                       tuple(map(str, m["targets"])), bool(m["standby"]))
                for m in plan["processes"]
            }  # fmt: skip
        except KeyError as error:
            raise Refused(f"{self.plan_path} is damaged ({error} is missing): restore it from a backup") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise Refused(f"{self.plan_path} is damaged ({error}): restore it from a backup") from None

    def _save(self) -> None:
        plan = {
            "version": PLAN_VERSION,
            "fsname": self.fsname,
            "params": self.params,
            "processes": [member._asdict() for member in self.members.values()],
        }
        fresh = self.plan_path.with_suffix(".new")
        fresh.write_text(json.dumps(plan, indent=2) + "\n")
        fresh.replace(self.plan_path)

    def create(
        self, *, fsname: str = "lustre", osts: int = 2, oss: int = 2, mds_failover: bool = False,
        oss_failover: bool = False, tcp: bool = False, params: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Plan a cluster and format its targets. The standby of oss1 is oss1b."""
        from lustrelite import format as target_format

        check_fsname(fsname)
        if not 1 <= oss <= osts:
            raise Refused(f"{oss} OSS for {osts} OSTs: every OSS needs at least one")
        self._make_directories()
        ost_names = [target_name(fsname, "OST", index) for index in range(osts)]
        rows: list[tuple[str, str, list[str], bool]] = [
            ("mgs", "mgs", ["MGS"], False),
            ("mds1", "mds", [target_name(fsname, "MDT", 0)], False),
        ]
        if mds_failover:
            rows.append(("mds2", "mds", [target_name(fsname, "MDT", 0)], True))
        rows += [(f"oss{i + 1}", "oss", ost_names[i::oss], False) for i in range(oss)]
        if oss_failover:
            rows += [(f"oss{i + 1}b", "oss", ost_names[i::oss], True) for i in range(oss)]
        self.fsname = fsname
        self.params = dict(params or {})
        self._place(rows, tcp)
        for target, servers in self._servers().items():
            kind, index = ("MGS", 0) if target == "MGS" else (target[-7:-4], int(target[-4:], 16))
            config = target_format.TargetConfig(
                kind, "" if kind == "MGS" else fsname, index, os.urandom(8).hex(), *self._nids_for(kind, servers)
            )
            directory = self.target_dir(target)
            if directory.exists():
                shutil.rmtree(directory)  # an `up` that was interrupted before it wrote the plan
            target_format.format_target(directory, config)
        self._save()

    def adopt(self, plan: dict[str, Any], place_target: Callable[[str, Path], None]) -> None:
        """Take over the plan of a backup: every target is put here by `place_target` and told the NIDs of this place."""
        if plan["version"] != PLAN_VERSION:
            raise Refused(f"the plan has version {plan['version']}, this program knows {PLAN_VERSION}")
        self._make_directories()
        self.fsname, self.params = plan["fsname"], plan["params"]
        tcp = all(nid.endswith("@tcp") for process in plan["processes"] for nid in process["nids"])
        self._place([(p["name"], p["role"], p["targets"], p["standby"]) for p in plan["processes"]], tcp)
        for target in self._servers():
            place_target(target, self.target_dir(target))
        self._tell_targets()
        self._save()

    def forget(self) -> None:
        """Give up the plan; the next `create` makes everything anew."""
        self.plan_path.unlink()
        self.members = {}

    @property
    def _elsewhere(self) -> bool:
        """Is this directory not where the plan was made: was it moved or copied?"""
        nids = [nid for member in self.members.values() for nid in member.nids if nid.endswith("@unix")]
        return not all(self._is_run_dir(Path(nid.removesuffix("@unix")).parent) for nid in nids)

    def _is_run_dir(self, path: Path) -> bool:
        return path == self.run_dir or (path.exists() and self.run_dir.exists() and path.samefile(self.run_dir))

    def _settle_here(self) -> None:
        """The sockets of everybody are in this directory from now on, and every target is told."""
        self._place([(m.name, m.role, list(m.targets), m.standby) for m in self.members.values()], tcp=False)
        self._tell_targets()
        self._save()

    def _tell_targets(self) -> None:
        """Write the NIDs of this place into every target, and into what MGS and MDT know of the others.

        Errors: OpError(EBUSY), one of them is running
        """
        from lustrelite import format as target_format
        from lustrelite.store.kv import Store
        from lustrelite.target.addresses import set_addresses

        nids = {target: tuple(nid for m in servers for nid in m.nids) for target, servers in self._servers().items()}
        for target, servers in self._servers().items():
            directory = self.target_dir(target)
            with contextlib.ExitStack() as stack:
                stack.callback(target_format.claim(directory).release)
                config = target_format.read_target(directory)
                mgsnodes, failnodes = self._nids_for(config.kind, servers)
                target_format.write_target(directory, config._replace(mgsnodes=mgsnodes, failnodes=failnodes))
                if config.kind != "OST":
                    store = stack.enter_context(contextlib.closing(Store.open(directory, config.kind)))
                    set_addresses(store, config.kind, nids)

    def _make_directories(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        os.chmod(self.state_dir, 0o700)  # who may open the sockets may do everything
        self.run_dir.mkdir(exist_ok=True)
        self.log_dir.mkdir(exist_ok=True)

    def _place(self, rows: list[tuple[str, str, list[str], bool]], tcp: bool) -> None:
        """Choose the NIDs of all processes: Unix sockets, unless their paths are too long, or have commas as lists do."""
        if not str(self.state_dir).isprintable():  # it stands in NIDs, and they in messages
            raise Refused(f"{str(self.state_dir)!r}: a state directory needs a path that is text; choose another --state-dir")
        longest = max(len(os.fsencode(self.run_dir / f"{name}.nid")) for name, *_ in rows)
        tcp = tcp or longest > limits.unix_path_bytes_max or "," in str(self.run_dir)
        ports = free_ports(len(rows)) if tcp else []
        self.members = {}
        for number, (name, role, targets, standby) in enumerate(rows):
            nid = f"127.0.0.1:{ports[number]}@tcp" if tcp else f"{self.run_dir / name}.nid@unix"
            self.members[name] = Member(name, role, (nid,), tuple(targets), standby)

    def _servers(self) -> dict[str, list[Member]]:
        names = dict.fromkeys(target for member in self.members.values() for target in member.targets)
        return {target: [m for m in self.members.values() if target in m.targets] for target in names}

    def _nids_for(self, kind: str, servers: list[Member]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(mgsnodes, failnodes) of a target that these processes may run."""
        failnodes = tuple(nid for member in servers for nid in member.nids) if len(servers) > 1 else ()
        return () if kind == "MGS" else self.mgs_nids, failnodes

    def target_dir(self, target: str) -> Path:
        """Where the target `target` lives."""
        return self.state_dir / "targets" / target

    def targets(self) -> dict[str, Path]:
        """Where each target lives."""
        return {name: self.target_dir(name) for name in self._servers()}

    def member(self, name: str) -> Member:
        """The process called `name`; Refused if there is none."""
        if name not in self.members:
            names = [*self.members, *self._servers()]
            raise Refused(f"no process or target {name!r} in this cluster; there are: {', '.join(names)}")
        return self.members[name]

    def member_of(self, name: str) -> tuple[Member, str | None]:
        """The process called `name`, or (process, target) for a target's name: the process that runs it now."""
        if name in self.members:
            return self.members[name], None
        servers = [m for m in self.members.values() if name in m.targets]
        if not servers:
            self.member(name)
        for server in servers:
            if any(t["name"] == name and t["state"] != "STANDBY" for t in self.state_of(server.name).get("targets", [])):
                return server, name
        return servers[0], name

    def unserved(self) -> list[str]:
        """The targets none of whose processes runs."""
        return [target for target, servers in self._servers().items() if not any(self.record(m.name) for m in servers)]

    @contextlib.contextmanager
    def locked(self, wait_s: float = 120.0) -> Iterator[None]:
        """Exclude other commands that change the cluster."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        with open(self.state_dir / "lock", "w") as file:
            deadline = time.monotonic() + wait_s
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Refused(f"another command has been busy with {self.state_dir} for {wait_s:g} s") from None
                    time.sleep(POLL_S)
            if self.exists:
                self._load()  # somebody else may just have made it
            yield

    # processes ----------------------------------------------------------------------------------------------------

    def record(self, name: str) -> dict[str, Any]:
        """What the living process `name` wrote of itself; empty if it does not run."""
        try:
            record: dict[str, Any] = json.loads((self.run_dir / f"{name}.json").read_text())
        except (OSError, ValueError):
            return {}
        if "run_dir" in record and not self._is_run_dir(Path(record["run_dir"])):
            return {}  # this directory is a copy of the one in which it runs
        pid = int(record["pid"])
        child = self._children.get(pid)
        if child is not None and child.poll() is not None:
            return {}
        return record if runs(record) else {}

    def socket_of(self, name: str) -> Path:
        """The control socket of the process `name`."""
        return self.run_dir / f"{name}.sock"

    def call(self, name: str, cmd: str, timeout_s: float = 10.0, **fields: Any) -> Any:
        """One control command."""
        return control.call(self.socket_of(name), cmd, timeout_s, **fields)

    def state_of(self, name: str) -> dict[str, Any]:
        """Record and live state of a process: `state` is stopped, starting, ready, stopping or silent.

        What its targets do is UNKNOWN if it does not say so.
        """
        record = self.record(name)
        if not record:
            return {"name": name, "state": "stopped"}
        try:
            return {**record, **self.call(name, "status", timeout_s=3.0)}
        except ControlFailed:
            state = "silent" if record.get("state") == "ready" else record.get("state", "starting")
            targets = [{**target, "state": "UNKNOWN"} for target in record.get("targets", [])]
            return {**record, "state": state, "targets": targets}

    def spawn(self, name: str) -> Detached | None:
        """Start the process `name` without waiting; None if it runs already."""
        member = self.member(name)
        if self.record(name):
            return None
        for path in (self.run_dir, self.log_dir):
            path.mkdir(exist_ok=True)
        command = [
            *module_command(member.role), "--name", name, "--run-dir", str(self.run_dir), "--log-dir", str(self.log_dir),
            "--listen", ",".join(member.nids),
        ]  # fmt: skip
        for target in member.targets:
            command += ["--target", str(self.target_dir(target))]
        if member.standby or any(m.standby and set(m.targets) & set(member.targets) for m in self.members.values()):
            command.append("--wait")  # of a pair, whoever comes second waits
        wrong = self.wrong_params()
        for param, value in self.params.items():
            if param not in wrong:
                command += ["--set", f"{param}={value}"]
        with open(self.log_dir / f"{name}.log", "ab") as log:
            child = Detached(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.state_dir, env=child_environment(),
                start_new_session=True, close_fds=True,
            )  # fmt: skip
        self._children[child.pid] = child
        return child

    def wrong_params(self) -> dict[str, str]:
        """Why not, of every parameter of the plan that cannot be as an older program put it there: it is left out."""
        if not self.params:
            return {}
        from lustrelite.params import check_text  # servers' code

        wrong = {}
        for param, value in self.params.items():
            try:
                check_text(param, value)
            except ValueError as error:
                wrong[param] = str(error)
        return wrong

    def wait_ready(self, name: str, child: Detached | None, wait_s: float = START_WAIT_S) -> dict[str, Any]:
        """Wait until the process serves, or is a standby; Refused with the last words of its log if it does not."""
        deadline = time.monotonic() + wait_s
        while True:
            record = self.record(name)
            if record.get("state") in ("ready", "standby"):
                return record
            ended = child is not None and child.poll() is not None
            if ended or time.monotonic() > deadline:
                what = "ended at once" if ended else f"is not ready after {wait_s:g} s"
                raise Refused(f"{name} {what}: {self.last_words(name)} (see {self.log_dir / name}.log)")
            time.sleep(POLL_S)

    def last_words(self, name: str) -> str:
        """The last line of the log."""
        try:
            with open(self.log_dir / f"{name}.log", "rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return "no log"
        return lines[-1] if lines else "nothing in the log"

    def start(self, *names: str, wait_s: float = START_WAIT_S) -> list[str]:
        """Start these processes together and wait until they serve; returns those that were not running."""
        if self._elsewhere:
            self._settle_here()
        children = {name: self.spawn(name) for name in names}
        for name, child in children.items():
            self.wait_ready(name, child, wait_s)
            for target in self.state_of(name).get("targets", []) if child is not None else ():
                if "refused" in target:
                    raise Refused(f"{name} runs without {target['name']}: {target['refused']}")
        return [name for name, child in children.items() if child is not None]

    def stop(self, *names: str) -> list[str]:
        """Stop these processes in good order (those that do not obey are killed); returns those that ran."""
        pids = {}
        for name in names:
            record = self.record(name)
            if record:
                pids[name] = (int(record["pid"]), int(record["start_ticks"]))
                self._signal(*pids[name], signal.SIGTERM)
        deadline = time.monotonic() + STOP_WAIT_S
        for pid, ticks in pids.values():
            if not self._wait_gone(pid, ticks, max(0.1, deadline - time.monotonic())):
                self._signal(pid, ticks, signal.SIGKILL)
                self._wait_gone(pid, ticks, KILL_WAIT_S)
        return list(pids)

    def kill(self, name: str) -> int:
        """`kill -9`; returns the pid.  Refused if it does not run."""
        record = self.record(self.member(name).name)
        if not record:
            raise Refused(f"{name} is not running")
        pid, ticks = int(record["pid"]), int(record["start_ticks"])
        self._signal(pid, ticks, signal.SIGKILL)
        self._wait_gone(pid, ticks, KILL_WAIT_S)
        return pid

    def _signal(self, pid: int, ticks: int, number: int) -> None:
        if start_ticks(pid) == ticks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _wait_gone(self, pid: int, ticks: int, wait_s: float) -> bool:
        deadline = time.monotonic() + wait_s
        while True:
            child = self._children.get(pid)
            if child is not None:
                child.poll()  # reap it, if it is ours
            if start_ticks(pid) != ticks:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)

    # the whole ----------------------------------------------------------------------------------------------------

    def up(self) -> list[str]:
        """Start what does not run; returns what was started. The MGS first, so that nobody waits for it."""
        started = []
        for roles in (("mgs",), ("mds", "oss")):
            names = [m.name for m in self.members.values() if m.role in roles and not m.standby]
            started += self.start(*names)
        started += self.start(*[m.name for m in self.members.values() if m.standby])
        return started

    def wait_healthy(self, wait_s: float = START_WAIT_S) -> None:
        """Wait until every process is healthy (targets up, recovery over, servers connected to each other)."""
        deadline = time.monotonic() + wait_s
        for name, member in self.members.items():
            while not member.standby:
                try:
                    health = self.call(name, "get_param", pattern="health_check")["health_check"]
                except ControlFailed as error:
                    health = str(error)
                if health.strip() == "healthy":
                    break
                if time.monotonic() > deadline:
                    raise Refused(f"{name} is not healthy after {wait_s:g} s: {health}; see `lustrelite status`")
                time.sleep(POLL_S)

    def down(self) -> list[str]:
        """Stop everything, clients' servers first and the MGS last; returns what ran."""
        # Who waits goes first: it would take over from who is stopped. It need not be who was planned to wait.
        stopped = self.stop(*[name for name in self.members if self.record(name).get("state") == "standby"])
        for role in ("mds", "oss", "mgs"):
            stopped += self.stop(*[m.name for m in self.members.values() if m.role == role])
        return stopped

    def status(self) -> dict[str, Any]:
        """One object with everything."""
        processes = []
        for name, member in self.members.items():
            live = self.state_of(name)
            processes.append(
                {
                    "name": name,
                    "role": member.role,
                    "pid": live.get("pid"),
                    "state": live["state"],
                    "standby": member.standby,
                    "nid": member.nids[0],
                    "nids": list(member.nids),
                    "metrics_port": live.get("metrics_port"),
                    "control": str(self.socket_of(name)),
                    "log": str(self.log_dir / f"{name}.log"),
                    "targets": live.get("targets")
                    or [{"name": t, "state": "DOWN", "directory": str(self.target_dir(t))} for t in member.targets],
                }
            )
        return {
            "state_dir": str(self.state_dir),
            "fsname": self.fsname,
            "mgs": list(self.mgs_nids),
            "healthy": all(
                p["state"] in ("ready", "standby") and all(t["state"] in ("UP", "STANDBY") for t in p["targets"])
                for p in processes
            ),
            "processes": processes,
        }
