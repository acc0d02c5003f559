"""What a scenario holds of a cluster of processes: servers, clients, the network, faults (sim/world.py, in part).

Servers are daemons, reached through their control sockets; clients live in the test's own loop, over real sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lustrelite.cli.mount import new_node
from lustrelite.client.fs import FileSystem
from lustrelite.control import ControlFailed
from lustrelite.faults import POINTS, Fault
from lustrelite.ids import Nid
from lustrelite.rpc.node import Node
from lustrelite.sim.grants import Counted, counted_by
from lustrelite.sim.net import message_name
from lustrelite.sim.processes import DONE, SimClient
from lustrelite.store import undo
from lustrelite.tunables import Tunables
from tests.processes.client_main import Marks, marks_of, unsettled

if TYPE_CHECKING:
    from tests.processes.world import ProcessWorld

CALL_S = 20.0  # for one control command: a busy disk makes commits slow
MOUNT_S = 30.0
LEAVE_S = 5.0  # for the tasks of a client that has unmounted
POLL_S = 0.02


class ProcessServer:
    """A daemon."""

    def __init__(self, world: ProcessWorld, name: str, targets: Sequence[str]) -> None:
        self.world = world
        self.name = name
        self.targets = list(targets)
        self.wanted = False  # started, and neither killed nor stopped since
        self.kept_faults: list[str] = []
        self.partner: ProcessServer | None = None  # the other one of a failover pair
        self._lives: dict[str, int] = {}  # by target: the instance that was started last

    @property
    def alive(self) -> bool:
        """Is it running?"""
        return bool(self.world.cluster.record(self.name))

    # -- its control socket

    def call_now(self, cmd: str, **fields: Any) -> Any:
        """A control command that is answered at once."""
        return self.world.cluster.call(self.name, cmd, CALL_S, **fields)

    async def call(self, cmd: str, **fields: Any) -> Any:
        """A control command that may take time."""
        return await asyncio.to_thread(self.call_now, cmd, **fields)

    async def params(self, pattern: str) -> dict[str, str]:
        """The parameters that match; none is an answer too."""
        try:
            found: dict[str, str] = await self.call("get_param", pattern=pattern)
        except ControlFailed as error:
            if "no parameter matches" not in str(error):
                raise
            return {}
        return found

    async def rows(self) -> list[dict[str, Any]]:
        """Its targets as `lustrelite status` shows them; none if it does not answer."""
        found = await asyncio.to_thread(self.world.cluster.state_of, self.name)
        return [row for row in found.get("targets", []) if "instance" in row]

    async def _each(self, cmd: str, target: str = "") -> None:
        for name in [target] if target else [row["name"] for row in await self.rows()]:
            await self.call(cmd, target=name)

    # -- coming and going

    async def start(self, *, abort_recovery: bool = False) -> None:
        """Start the process and wait until it serves; with `abort_recovery` it gives up its clients first."""
        assert not self.alive, f"{self.name} is running"
        if self.wanted:
            self._tell_death([])  # it ended itself
        # A daemon is told to abort only once it runs: until then it hears no client that would recover.
        armed = [*self.kept_faults, *(["request Connect drop times=-1"] if abort_recovery else [])]
        with self._set_at_start(armed):
            child = self.world.cluster.spawn(self.name)
        self.wanted = True
        await asyncio.to_thread(self.world.cluster.wait_ready, self.name, child)
        if abort_recovery:
            await self.abort_recovery()
            await self.world.eventually(self.recovered, f"{self.name} aborts its recovery")
            self.rearm()
        self._lives = {row["name"]: int(row["instance"]) for row in await self.rows()}

    @contextlib.contextmanager
    def _set_at_start(self, faults: list[str]) -> Iterator[None]:
        """Have `--set fault=...` for each: the plan has one value for a name, but these patterns all match it."""
        params = self.world.cluster.params
        self.world.cluster.params = {
            **params, **{"{" * depth + "fault" + "}" * depth: text for depth, text in enumerate(faults)}
        }  # fmt: skip
        try:
            yield
        finally:
            self.world.cluster.params = params

    async def recovered(self) -> bool:
        """Does it serve, and recovers no more?"""
        rows = await self.rows()
        return bool(rows) and not any(row["state"] == "RECOVERING" for row in rows)

    async def stop(self) -> None:
        """Stop in good order."""
        if not self.alive:
            return
        self.wanted = False
        await asyncio.to_thread(self.world.cluster.stop, self.name)

    async def kill(self) -> None:
        """`kill -9`."""
        if not self.alive:
            return
        rows = await self.rows()
        self.wanted = False
        await asyncio.to_thread(self.world.cluster.kill, self.name)
        self._tell_death(rows)

    async def prepare_power_cuts(self) -> None:
        """Have its targets keep what they overwrite until it is durable (store/undo.py)."""
        await self.stop()
        for target in self.targets:
            (self.world.cluster.target_dir(target) / undo.UNDO).mkdir()
        await self.start()

    async def power_cut(self) -> None:
        """`kill -9`, and the objects are put back to what was durable."""
        await self.kill()
        for target in self.targets:
            lost = await asyncio.to_thread(undo.power_cut, self.world.cluster.target_dir(target))
            self.world.note("power.cut", target=target, lost=lost)

    def _tell_death(self, rows: list[dict[str, Any]]) -> None:
        """Tell the oracle what was durable at least; if nobody knows, nothing."""
        known = {row["name"]: row for row in rows}
        lives = {**self._lives, **{row["name"]: int(row["instance"]) for row in rows}}  # also of what it took over
        for name, life in lives.items():
            row = known.get(name, {"last_transno": 0, "last_committed": 0})
            committed = int(row["last_committed"])
            last = max(int(row["last_transno"]), committed + 1)  # it went on until the signal came
            self.world.oracle.target_died(name, life, last, committed)

    async def pause(self) -> None:
        """SIGSTOP."""
        self._signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        record = self.world.cluster.record(self.name)
        if record:
            os.kill(int(record["pid"]), number)

    # -- what it can be told

    async def hold_commits(self, target: str = "") -> None:
        """Commit nothing from now on (replay_barrier)."""
        await self._each("hold_commits", target)

    async def release_commits(self, target: str = "") -> None:
        """Commit again."""
        await self._each("release_commits", target)

    async def commit(self, target: str = "") -> None:
        """Everything executed so far is durable when this returns."""
        await self._each("commit", target)

    async def abort_recovery(self) -> None:
        """As `llctl abort_recovery`, on all its targets."""
        await self._each("abort_recovery")

    async def evict(self, uuid: str) -> None:
        """Evict the client `uuid` from every target that knows it."""
        for name in [row["name"] for row in await self.rows()]:
            for param, uuids in (await self.params(f"*.{name}.exports.*.uuid")).items():
                if uuid in uuids.split():
                    await self.call("set_param", pattern=f"{param.split('.')[0]}.{name}.evict_client", value=uuid)

    async def status(self) -> Mapping[str, Mapping[str, Any]]:
        """See world.Server."""
        return {
            row["name"]: {
                "instance": row["instance"],
                "last_transno": row["last_transno"],
                "last_committed": row["last_committed"],
                "recovering": row["state"] == "RECOVERING",
                "clients": " ".join((await self.params(f"*.{row['name']}.exports.*.uuid")).values()).split(),
                "recovery": row["recovery"],
            }
            for row in await self.rows()
        }

    # -- faults

    def arm(self, text: str) -> None:
        """`llctl set_param fault=TEXT`."""
        self.call_now("set_param", pattern="fault", value=text)

    def rearm(self) -> None:
        """Disarm everything but what is kept, and the rules of the network."""
        self.call_now("clear_faults")
        for text in self.kept_faults:
            self.arm(text)
        for rule in self.world.net.rules:
            if self in rule.servers and rule.remaining:
                self.arm(rule.text(rule.remaining))

    def fault_log(self) -> list[str]:
        """What faults did in its present life, one `ACTION PLACE` each."""
        return str(self.call_now("get_param", pattern="fault")["fault"]).splitlines() if self.alive else []


class ProcessClient(SimClient):
    """A mount in the test's own loop; its operations are recorded as in the simulator."""

    cluster: ProcessWorld
    node: Any  # a Node, None before the first mount

    async def start(self) -> None:
        """Mount."""
        assert not self.alive, f"{self.name} is mounted"
        world = self.cluster
        self.boots += 1
        self.life = self.name if self.boots == 1 else f"{self.name}{self.boots}"
        node: Any = new_node(self.name)
        self.node = node
        node.tunables = replace(world.tunables)
        node.events.sinks.append(lambda event: world.record(event._replace(time=time.time())))
        node.on_crash = self._ended
        for point, fault in self.kept_faults:
            node.faults.arm(point, fault)
        if node.tunables.caching:
            world.oracle.caching[self.life] = None
        nids = [Nid(nid) for nid in world.cluster.mgs_nids]
        async with asyncio.timeout(MOUNT_S):
            self.fs = await world.finish(node, FileSystem.mount(node, nids, world.cluster.fsname), "mount")
        self.uuids[self.uuid] = None
        self.files.clear()

    def _ended(self, why: str) -> None:
        """A crash: the process would be gone at once."""
        if not why.startswith("fault at "):
            self.cluster.failures.append((self.name, why, ""))
        self._unplug()

    def _unplug(self) -> None:
        assert self.node is not None
        self.cluster.oracle.client_gone(self.life, "killed")
        self.node.dead = True
        if hasattr(self, "fs"):
            self.fs.stop()

    async def kill(self, *, silent: bool = False) -> None:
        """Go without goodbye, as its process would by `kill -9`."""
        if silent:
            raise NotImplementedError("a machine cannot lose its power here: its sockets always close; use the simulator")
        if self.alive:
            self._unplug()
        await self._bury_node()

    async def unmount(self) -> None:
        """Leave in good order, and leave no task behind."""
        node = self.node
        assert node is not None
        await self.cluster.finish(node, self.fs.unmount(), "unmount")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while tasks_of(node):
                    await asyncio.sleep(POLL_S)
        self.cluster.leaked += tasks_of(node)
        await self._bury_node()

    async def _bury_node(self) -> None:
        node = self.node
        if node is None:
            return
        await node.stop_tasks()
        node.events.sinks.clear()
        node.workers.stop()

    def pause(self) -> Any:
        """Not here."""
        raise NotImplementedError("a client shares the test's process: use one that is apart, or the simulator")

    def resume(self) -> Any:
        """It is never paused."""
        return DONE

    @property
    def marks(self) -> Marks:
        """What it has been told of each target, for the oracle."""
        return marks_of(self.imports)

    async def unsettled(self, instances: dict[str, int]) -> list[str]:
        """What of its connections is not at rest, given which life each target is in."""
        return unsettled(self.name, self.imports, instances)

    async def grants(self) -> list[Counted]:
        """What it counts of its grants."""
        return counted_by(self.fs)

    def arm(self, point: str, fault: Fault) -> None:
        """Arm a fault point of its own."""
        self.node.faults.arm(point, replace(fault))

    def disarm(self) -> None:
        """Disarm everything."""
        if self.node is not None:
            self.node.faults.clear()

    def set_clock(self, skew_s: float) -> None:
        """Not here."""
        raise NotImplementedError("the clock of real processes is the machine's: use the simulator")


def tasks_of(node: Node) -> list[str]:
    """Names of the node's tasks that have not ended."""
    return [task.get_name() for task in node._tasks if not task.done()]


def fault_text(point: str, fault: Fault) -> str:
    """As `llctl set_param fault=` takes it."""
    options = {key: value for key, value in asdict(fault).items() if key != "action" and value != ""}
    return " ".join([point, fault.action, *(f"{key}={value}" for key, value in options.items())])


class ProcessFaults:
    """world.Faults: at servers by their control sockets, at clients directly."""

    def __init__(self, world: ProcessWorld) -> None:
        self.world = world

    def arm(self, point: str, action: str, *, on: Any = None, keep: bool = False, **how: Any) -> None:
        """See world.Faults.arm. `times` counts in every process by itself, and anew after a restart if kept."""
        assert point in POINTS, f"no fault point {point!r}; there are: {', '.join(sorted(POINTS))}"
        fault = Fault(action, **how)
        text = fault_text(point, fault)
        for process in [on] if on is not None else [*self.world.servers, *self.world.clients.values()]:
            if isinstance(process, ProcessServer):
                if process.alive:
                    process.arm(text)
                if keep or not process.alive:
                    process.kept_faults.append(text)
                continue
            if process.alive:
                process.arm(point, fault)
            if keep or not process.alive:
                process.kept_faults.append((point, fault))

    def clear(self) -> None:
        """Disarm everything at the points; the network's rules stay."""
        for client in self.world.clients.values():
            client.kept_faults.clear()
            client.disarm()
        for server in self.world.servers:
            server.kept_faults.clear()
            if server.alive:
                server.rearm()


class ProcessRule:
    """world.Rule: a message rule of servers (lustrelite/faults.py). It ends with their lives, and counts in each."""

    def __init__(
        self, world: ProcessWorld, action: str, what: Any, servers: Sequence[ProcessServer], *, peer: str, reply: bool,
        times: int, delay_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.world = world
        self.where = f"{'reply' if reply else 'request'} {message_name(what) or '*'}"
        self.action = action
        self.servers = list(servers)
        self.peer = peer
        self.times = times
        self.delay_s = delay_s
        self._before = {server.name: self._matches(server) for server in self.servers}
        for server in self.servers:
            server.arm(self.text(times))

    def text(self, times: int) -> str:
        """As `llctl set_param fault=` takes it."""
        return f"{self.where} {self.action} times={times}" + (f" peer={self.peer}" if self.peer else "") + (
            f" delay_s={self.delay_s}" if self.delay_s else ""
        )

    def _matches(self, server: ProcessServer) -> int:
        return sum(line.startswith(f"{self.action} {self.where.removesuffix('*')}") for line in server.fault_log())

    @property
    def matched(self) -> int:
        """How many messages so far."""
        return sum(max(0, self._matches(server) - self._before[server.name]) for server in self.servers)

    @property
    def remaining(self) -> int:
        """How often it still applies; -1 is for ever."""
        return -1 if self.times < 0 else max(0, self.times - self.matched)

    def lift(self) -> None:
        """No more."""
        self.times = 0
        for server in self.servers:
            if server.alive:
                server.rearm()

    def release(self) -> None:
        """Nothing is held here."""
        self.lift()

    async def caught(self, count: int = 1) -> None:
        """Wait until that many were matched."""

        async def enough() -> bool:
            return self.matched >= count

        await self.world.eventually(enough, f"{count} times: {self.action} {self.where}")


class ProcessNet:
    """world.Net, as far as one of the two ends can do it."""

    def __init__(self, world: ProcessWorld) -> None:
        self.world = world
        self.rules: list[ProcessRule] = []

    def _rule(
        self, action: str, what: Any, to: Any, source: Any, reply: bool, times: int, delay_s: float = 0.0
    ) -> ProcessRule:
        server, caller = (source, to) if reply else (to, source)  # a reply goes the other way
        if server is not None and not isinstance(server, ProcessServer):
            raise NotImplementedError("rules are armed at servers: for messages that a client serves use the simulator")
        if isinstance(caller, ProcessServer):
            peer = f"{caller.name}-mgc" if server is self.world.mgs else caller.targets[0]
        else:
            peer = "" if caller is None else caller.uuid
        servers = [server] if server is not None else [server for server in self.world.servers if server.alive]
        rule = ProcessRule(self.world, action, what, servers, peer=peer, reply=reply, times=times, delay_s=delay_s)
        self.rules.append(rule)
        return rule

    def drop(self, what: Any = None, *, to: Any = None, source: Any = None, reply: bool = False, times: int = 1) -> ProcessRule:
        """See world.Net."""
        return self._rule("drop", what, to, source, reply, times)

    def slow(
        self, what: Any = None, *, delay_s: float, to: Any = None, source: Any = None, reply: bool = False, times: int = 1
    ) -> ProcessRule:
        """See world.Net."""
        return self._rule("delay", what, to, source, reply, times, delay_s)

    def double(self, what: Any = None, *, to: Any = None, source: Any = None, reply: bool = False, times: int = 1) -> ProcessRule:
        """See world.Net."""
        if reply:
            raise NotImplementedError("a process sends a reply once: double replies on the simulator")
        return self._rule("duplicate", what, to, source, reply, times)

    def corrupt(self, what: Any = None, *, to: Any = None, source: Any = None, reply: bool = False, times: int = 1) -> ProcessRule:
        """See world.Net: what a server receives does not match its checksum."""
        if reply:
            raise NotImplementedError("what a client receives is garbled on the simulator only")
        return self._rule("corrupt", what, to, source, reply, times)

    def hold(self, what: Any = None, **where: Any) -> ProcessRule:
        """Not here."""
        raise NotImplementedError("a message between processes cannot be held: drop or slow it, or use the simulator")

    def cut(self, x: Any, y: Any, *, one_way: bool = False) -> None:
        """Not here."""
        raise NotImplementedError("Unix sockets cannot be cut: pause a server instead, or use the simulator")

    def heal(self) -> None:
        """Lift all rules."""
        rules, self.rules = self.rules, []
        for rule in rules:
            rule.times = 0
        for server in self.world.servers:
            if server.alive and any(server in rule.servers for rule in rules):
                server.rearm()


# Short, so that what waits for a timeout does not take long; a dead client costs recovery_time_soft_s at most, or
# lock_callback_s on each server if it has locks that others want.
TUNABLES = Tunables(
    rpc_timeout_s=2.0, connect_timeout_s=2.0, reconnect_pause_s=0.05, reconnect_pause_max_s=0.3, ping_interval_s=1.0,
    uncommitted_ping_s=0.5, recovery_time_soft_s=8.0, recovery_time_hard_s=30.0, replay_timeout_s=4.0,
    commit_interval_s=0.2, precreate_min=8, precreate_max=64, commit_on_sharing=0, lock_callback_s=4.0,
    lock_lease_margin_s=1.0,
)  # fmt: skip

