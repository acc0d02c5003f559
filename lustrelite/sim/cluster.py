"""A whole cluster in the simulator: world.World over SimNodes, in one process and one thread.

Processes are `mgs`, `mds`, `oss0`, `oss1` ... (each may serve several targets) and the clients `a`, `b` ...; their NIDs
are NAME@sim. A standby server has its own name and shares the directories of its partner.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import stat
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Self, TypeVar

from lustrelite import fsck
from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError
from lustrelite.events import Event
from lustrelite.faults import POINTS, Fault
from lustrelite.format import TargetConfig
from lustrelite.ids import target_name
from lustrelite.mdt.mdt import Mdt
from lustrelite.ost.ost import Ost
from lustrelite.recovery.import_fsm import State
from lustrelite.rpc.client_import import ClientImport
from lustrelite.sim import world
from lustrelite.sim.disk import MAP_BYTES, SimDisks
from lustrelite.sim.grants import counted_by, grant_problems, promised_by
from lustrelite.sim.loop import NodeKilled, SimLoop
from lustrelite.sim.model import Seen, Tree
from lustrelite.sim.net import Latency, Rule, SimNetwork
from lustrelite.sim.node import SimNode, discard
from lustrelite.sim.oracle import Marks, Oracle
from lustrelite.sim.processes import FSNAME, MGS_NID, NodeDied, SimClient, SimProcess, SimServer, kind_of, time_of
from lustrelite.sim.troubles import Troubles
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.target.target import Target
from lustrelite.tunables import Tunables

_T = TypeVar("_T")

SETTLE_STEP_S = 0.05
SETTLE_S_MAX = 300.0
CLIENT_NAMES = "abcdefghijklmnopqrstuvw"
# Commit on share is off as in the suites whose scenarios we run; what tests it asks for it.
TUNABLES = Tunables(precreate_min=8, precreate_max=64, commit_on_sharing=0, commit_log_s=1.0)


class Violation(AssertionError):
    """The cluster broke a promise."""


class ClusterFaults:
    """world.Faults over the nodes' own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def arm(self, point: str, action: str, *, on: Any = None, keep: bool = False, **how: Any) -> Fault:
        """See world.Faults.arm."""
        assert point in POINTS, f"no fault point {point!r}; there are: {', '.join(sorted(POINTS))}"
        fault = Fault(action, **how)
        processes: list[SimProcess] = [on] if on is not None else self.cluster.processes
        for process in processes:
            if process.node is not None and process.alive:
                process.node.faults.arm(point, fault)
            if keep or not process.alive:
                process.kept_faults.append((point, fault))
        assert self.cluster.troubles is not None
        self.cluster.troubles.anywhere = True
        return fault

    def clear(self) -> None:
        """Disarm everything."""
        for process in self.cluster.processes:
            process.kept_faults.clear()
            if process.node is not None:
                process.node.faults.clear()


class Cluster:
    """The simulated world."""

    troubles: Troubles | None = None  # where all that goes wrong is known

    def __init__(
        self,
        *,
        seed: int = 1,
        mds: int = 1,
        oss: int = 2,
        osts: int = 1,
        clients: int = 2,
        tunables: Tunables | None = None,
        latency: Latency | None = None,
        area_of: Callable[[str], str] | None = None,
        common: tuple[str, ...] = (),
        strict: bool = True,
        keep_events: bool = True,
        orderly: bool = True,
        pairs: bool = False,
        roles_swap: bool = False,
        **params: Any,
    ) -> None:
        """`oss` servers with `osts` targets each; `params` change tunables; `strict`: an unexpected warning fails.

        `pairs`: the MDS and every OSS has a standby, its `partner`; `roles_swap`: `mds` and `oss` are whoever serves.
        """
        assert mds == 1, "one MDT so far"
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop), "a Cluster lives on a SimLoop"
        self.loop = loop
        self.seed = seed
        self.roles_swap = roles_swap
        self.random = random.Random(f"world {seed}")
        self.tunables = replace(tunables or TUNABLES, **params)
        self.net = SimNetwork(loop, random.Random(f"net {seed}"), latency)
        self.disks = SimDisks()
        self.directory = self.disks.root  # where all of it is
        self.configs: dict[str, TargetConfig] = {}  # by directory
        self._begin(Oracle(area_of, common), strict=strict, keep_events=keep_events, orderly=orderly)
        self.troubles = Troubles(self)
        self.faults = ClusterFaults(self)
        self.dead_nodes: list[SimNode] = []
        self._running: dict[str, Target] = {}

        def config(kind: str, index: int, server: str) -> TargetConfig:
            name = target_name(FSNAME, kind, index)
            nodes = () if kind == "MGS" else (str(MGS_NID),)
            failnodes = (f"{server}@sim", f"{server}b@sim") if pairs and kind != "MGS" else ()
            return TargetConfig(kind, "" if kind == "MGS" else FSNAME, index, f"stamp-{name}", nodes, failnodes)

        self.mgs = SimServer(self, "mgs", [config("MGS", 0, "mgs")])
        self.mds = SimServer(self, "mds", [config("MDT", 0, "mds")])
        self.oss = [
            SimServer(self, f"oss{i}", [config("OST", i * osts + j, f"oss{i}") for j in range(osts)]) for i in range(oss)
        ]
        self.standbys: list[SimServer] = []
        for server in [self.mds, *self.oss] if pairs else ():
            server.partner = SimServer(self, f"{server.name}b", server.configs)
            server.partner.partner = server
            self.standbys.append(server.partner)
        self.clients = {name: SimClient(self, name) for name in CLIENT_NAMES[:clients]}

    def __getattr__(self, name: str) -> SimClient:
        clients = self.__dict__.get("clients", {})
        if name in clients:
            return clients[name]  # type: ignore[no-any-return]
        raise AttributeError(name)

    @property
    def servers(self) -> list[SimServer]:
        """All servers, in the order in which they start."""
        return [self.mgs, self.mds, *self.oss, *self.standbys]

    @property
    def targets(self) -> list[TargetConfig]:
        """What all targets are, the MGS's first."""
        return [config for server in (self.mgs, self.mds, *self.oss) for config in server.configs]

    @property
    def processes(self) -> list[SimProcess]:
        """Servers and clients."""
        return [*self.servers, *self.clients.values()]

    def _begin(self, oracle: Oracle, *, strict: bool, keep_events: bool, orderly: bool) -> None:
        """What is known of a run: nothing yet."""
        self.oracle = oracle
        self.oracle.mark = self._mark
        self.failures: list[tuple[str, str, str]] = []  # crashes: (node, why, traceback)
        self.events: list[Event] = []
        self.errors: list[Event] = []
        self.warnings: list[Event] = []
        self.evictions: list[Event] = []
        self.left: dict[tuple[str, str], float] = {}  # when which mount was through with which target
        self.expected: set[str] = set()
        self.unjust: list[Event] = []
        self.short_of_space = False  # now or before: ENOSPC is an answer to what needs room
        self.strict = strict
        self.keep_events = keep_events
        self.orderly = orderly
        self.events_seen = 0
        self._hash = hashlib.sha256()
        self._handles = 0

    # -- coming and going

    async def __aenter__(self) -> Self:
        try:
            for config in self.targets:
                self.format(config)
            for server in self.servers:
                await server.start()
            await self.until(lambda: len(self.mgs.target().entries) == len(self.targets) - 1)
            for client in self.clients.values():
                await client.start()
            await self.settle()
        except BaseException:
            self.destroy()
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                await self.conclude()
        finally:
            self.destroy()

    def format(self, config: TargetConfig) -> None:
        """Make a target."""
        directory = self.disks.directory(config.name)
        Store.open(directory, config.kind, create=True, durable=False, map_bytes=MAP_BYTES).close()
        self.configs[str(directory)] = config

    def destroy(self) -> None:
        """Kill everything and remove the disks."""
        for process in self.processes:
            if process.node is not None:
                process.node.kill()
        self.disks.remove()

    async def conclude(self) -> None:
        """Heal everything, then hold the cluster to its promises. Raises Violation."""
        await self.recover()
        await self.settle()
        await self.check_grants()
        await self.bury()
        self.check_crashes()
        problems = self.oracle.check(await self.read_tree())
        if problems:
            raise Violation(f"seed {self.seed}: the oracle says:\n  " + "\n  ".join(problems))
        await self.check_disks()
        if self.orderly:
            await self.leave()
        self.check_crashes()
        if self.strict:
            unexpected = [e for e in self.warnings if e.name not in self.expected]
            if unexpected:
                raise Violation(f"unexpected warnings:\n{world.lines(unexpected, ())}")

    async def recover(self) -> None:
        """Start what is dead (clients excepted), wake what sleeps, heal the network, commit again."""
        self.faults.clear()
        for process in self.processes:
            process.resume()
        self.net.heal()
        for server in self.servers:
            if not server.alive:
                try:
                    await server.start()
                except NodeDied:
                    self.check_crashes()
                    raise
            server.release_commits()
            server.slow_disk(0.0)

    def _lived(self, eviction: Event, living: Mapping[str, str]) -> bool:
        """Did the client live that was thrown out, and had not left?"""
        uuid, target = eviction.fields.get("client", ""), eviction.fields["target"]
        return uuid in living or eviction.time < self.left.get((uuid, target), 0.0)

    async def bury(self) -> None:
        """Evict the clients that are dead: nobody has to wait for it to happen by itself.

        `unjust` remembers evictions of the living until now that no change of theirs can explain. Who has left, and may
        have had nothing to say to a server that was away, is forgotten by it in its own time. Whom nobody knows any more
        after he has said goodbye, and had no answer, was heard.
        """
        living = {client.uuid: client.name for client in self.clients.values() if client.alive}
        names = {uuid: client.name for client in self.clients.values() for uuid in client.uuids}
        told = {(names.get(e.fields.get("client", "")), e.fields["target"]) for e in self.evictions}
        self.unjust = [
            event for event in self.evictions
            if (event.node in living.values() and (event.node, event.fields["target"]) not in told and not event.fields["said_goodbye"])
            or (self._lived(event, living) and not str(event.fields["why"]).startswith("version mismatch"))
        ]  # fmt: skip
        warnings = list(self.warnings)
        for client in self.clients.values():
            for server in self.servers:
                for target in server.running:
                    for uuid in client.uuids:
                        if not client.alive or uuid != client.uuid:
                            target.clients.evict_matching(uuid)
        self.warnings = warnings  # these were no surprise

    async def leave(self) -> None:
        """Unmount and stop everything in good order; nobody may leave a task behind."""
        for client in self.clients.values():
            if client.alive:
                await client.unmount()
        waits = [server for server in self.servers if server.waits]  # else they would take over
        for server in (*waits, *reversed(self.servers)):
            await server.stop()
        await asyncio.sleep(1.0)
        leaked = [task.get_name() for node in self.dead_nodes for task in node.tasks]
        if leaked:
            raise Violation(f"seed {self.seed}: tasks are left: {', '.join(leaked)}")

    def check_crashes(self) -> None:
        """Violation if a process ended itself without being asked to, or a client gave up a promise without need."""
        if self.troubles is not None and self.troubles.unjust:
            raise Violation(f"seed {self.seed}: forsaken without need:\n{world.lines(self.troubles.unjust, ())}")
        if self.failures:
            text = "\n".join(f"{node} crashed: {why}\n{trace}" for node, why, trace in self.failures)
            raise Violation(f"seed {self.seed}: {text}")
        if self.errors:
            raise Violation(f"seed {self.seed}: errors:\n{world.lines(self.errors, ())}")

    async def add_client(self, name: str = "") -> SimClient:
        """Mount once more."""
        name = name or next(n for n in CLIENT_NAMES if n not in self.clients)
        client = self.clients[name] = SimClient(self, name)
        await client.start()
        return client

    async def add_oss(self, index: int) -> SimServer:
        """A new server with a new OST, whether the MGS is there to hear of it or not."""
        name = target_name(FSNAME, "OST", index)
        config = TargetConfig("OST", FSNAME, index, f"stamp-{name}", (str(MGS_NID),))
        self.format(config)
        server = SimServer(self, f"oss{index}new", [config])
        self.oss.append(server)
        await server.start()
        return server

    # -- help for the processes

    async def finish(self, node: SimNode, coro: Coroutine[Any, Any, _T], name: str) -> _T:
        """Run `coro` as a task of `node` and wait for it; its OpError is ours. CancelledError if the node dies."""

        if node.dead:
            discard(coro)
            raise NodeDied(node.name)

        async def outcome() -> tuple[bool, Any]:
            try:
                return True, await coro
            except OpError as error:
                return False, error

        try:
            good, value = await node.spawn(outcome(), name)
        except (asyncio.CancelledError, NodeKilled):
            if node.dead:
                raise NodeDied(node.name) from None
            raise
        if good:
            return value  # type: ignore[no-any-return]
        raise value

    def note_trouble(self, process: str) -> None:
        """It has just come out of one."""
        if self.troubles is not None:
            self.troubles.note(process)

    def new_handle(self) -> int:
        """A number for an open file in the oracle's history."""
        self._handles += 1
        return self._handles

    def started(self, target: Target) -> None:
        """A target runs."""
        self._running[target.name] = target
        self._swap_pairs()

    def _swap_pairs(self) -> None:
        """If the partners' roles go with the targets: `mds` and `oss` are who serves, `standbys` who waits."""
        for place, standby in enumerate(self.standbys if self.roles_swap else ()):
            other = standby.partner
            assert other is not None
            if standby.running and not other.running:
                self.standbys[place] = other
                if other is self.mds:
                    self.mds = standby
                else:
                    self.oss[self.oss.index(other)] = standby

    def died(self, server: SimServer) -> None:
        """A server runs no more."""
        for target in list(self._running.values()):
            if target.node is server.node:
                del self._running[target.name]
                self.oracle.target_died(target.name, target.instance, target.last_transno, target.last_committed)

    def _mark(self) -> Marks:
        return {target.name: (target.instance, target.last_transno) for target in self._running.values()}

    # -- events

    def record(self, event: Event) -> None:
        """Sink of every node's events."""
        self.events_seen += 1
        if self.troubles is not None:
            self.troubles.record(event)
        if event.name in ("client.evicted", "import.evicted"):
            self.evictions.append(event)
            for client in self.clients.values():
                if event.fields.get("client") in client.uuids:
                    self.oracle.client_doubted(client.life, event.fields["target"])
        if event.name == "import.disconnected" and event.node in self.clients:
            self.left[self.clients[event.node].uuid, event.fields["target"]] = event.time
        elif event.name == "import.evicted" and event.node in self.clients:
            life = self.clients[event.node].life
            self.oracle.client_gone(life, "evicted", event.fields["target"])
            self.oracle.client_noticed(life)
        elif event.name == "lock.forsaken" and event.node in self.clients:  # what is written under it may be lost
            self.oracle.client_gone(self.clients[event.node].life, "forsaken", event.fields["target"])
        elif event.name == "recovery.over" or (event.name == "target.started" and not event.fields["clients"]):
            self.oracle.target_back(event.fields["target"])
        told = f"{event.time!r}{event.node}{event.name}{event.fields}"
        self._hash.update(told.replace(str(self.directory), "").encode())  # which is another one in every run
        if self.keep_events:
            self.events.append(event)
        if event.level == "error" and not str(event.fields.get("why", "")).startswith("fault at "):
            self.errors.append(event)
        elif event.level == "warning":
            self.warnings.append(event)

    def note(self, name: str, **fields: Any) -> None:
        """An event of the world itself."""
        self.record(Event(self.loop.time(), "world", name, "info", fields))

    def digest(self) -> str:
        """A hash of everything that happened: all events, all frames, all time."""
        whole = self._hash.copy()
        whole.update(f"{self.net.digest} {self.net.frames} {self.loop.time()!r} {self.loop.callbacks}".encode())
        return whole.hexdigest()

    def saw(self, event: str, *, times: int | None = None, **fields: Any) -> list[Event]:
        """See world.World.saw."""
        self.expected.add(event)
        found = [e for e in self.events if e.name == event and world.match(e, fields)]
        if (times is None and not found) or (times is not None and len(found) != times):
            raise AssertionError(
                f"{event} {fields or ''} was seen {len(found)} times, not {times or 'at all'}:\n"
                + world.lines([e for e in self.events if e.name.split(".")[0] == event.split(".")[0]], ())
            )
        return found

    def never_saw(self, event: str, **fields: Any) -> None:
        """See world.World.never_saw."""
        found = [e for e in self.events if e.name == event and world.match(e, fields)]
        assert not found, f"{event} was seen:\n{world.lines(found, ())}"

    async def until_saw(self, event: str, *, timeout_s: float = SETTLE_S_MAX, **fields: Any) -> None:
        """See world.World.until_saw."""
        self.expected.add(event)
        looked_at = 0

        def happened() -> bool:
            nonlocal looked_at
            new, looked_at = self.events[looked_at:], len(self.events)
            return any(e.name == event and world.match(e, fields) for e in new)

        await self.until(happened, timeout_s)

    def expect(self, *events: str) -> None:
        """See world.World.expect."""
        self.expected.update(events)

    def transcript(self, *areas: str) -> str:
        """See world.World.transcript."""
        return world.lines(self.events, areas)

    # -- waiting

    def unsettled(self) -> list[str]:
        """What is not at rest."""
        busy = []
        instances = {target.name: target.instance for server in self.servers for target in server.running}

        def look(who: str, imp: ClientImport) -> None:
            if why := import_busy(imp):
                busy.append(f"{who}: {why}")
            elif imp.instance != instances.get(imp.target, imp.instance):
                busy.append(f"{who}: the import of {imp.target} has not noticed its restart")

        for client in self.clients.values():
            for imp in client.imports:
                look(client.name, imp)
            if client.imports and client.fs.connections.late_closes.waiting:
                busy.append(f"{client.name} has closes to tell")
        for server in self.servers:
            if not server.alive:
                continue
            if not set(server.targets) <= set(instances):
                busy.append(f"{server.name} is starting")
            for target in server.running:
                if target.recovering:
                    busy.append(f"{target.name} is recovering")
                if isinstance(target, Mdt):
                    if len(target.allocator.osps) < sum(config.kind == "OST" for config in self.targets):
                        busy.append(f"{target.name} does not know all OSTs")
                    for osp in target.allocator.osps.values():
                        look(target.name, osp.imp)
        return busy

    async def until(self, true: Callable[[], bool], timeout_s: float = SETTLE_S_MAX) -> None:
        """Wait until something is true of the world."""
        deadline = self.loop.time() + timeout_s
        while not true():
            assert self.loop.time() < deadline, f"not true after {timeout_s:.0f} s"
            await asyncio.sleep(0.002)

    async def settle(self, timeout_s: float = SETTLE_S_MAX) -> None:
        """Wait until every import is FULL and idle. Those of paused or cut-off processes never will be."""
        deadline = self.loop.time() + timeout_s
        while busy := self.unsettled():
            if self.loop.time() > deadline:
                raise Violation(f"seed {self.seed}: not settled after {timeout_s:.0f} s: {'; '.join(busy)}")
            await asyncio.sleep(SETTLE_STEP_S)

    # -- judging

    async def read_tree(self) -> Tree:
        """The whole tree as a client sees it that has just been mounted."""
        reader = SimClient(self, "reader")
        await reader.start()
        tree: Tree = {}
        try:
            assert reader.node is not None
            await self.finish(reader.node, read_tree(reader.fs, tree), "read tree")
            await reader.unmount()
        except OpError as error:
            raise Violation(f"seed {self.seed}: the tree cannot be read: {error}") from error
        finally:
            if reader.node is not None:
                reader.node.kill()
        return tree

    async def check_grants(self, timeout_s: float = 0.0) -> None:
        """Violation unless clients and OSTs agree on what was promised, and nothing is dirty without a promise.

        Here they do so at once, or never.
        """
        osts = [promised_by(target) for server in self.servers for target in server.running if isinstance(target, Ost)]
        mounts = [client.fs for client in self.clients.values() if client.alive and hasattr(client, "fs")]
        problems = grant_problems(osts, [row for fs in mounts for row in counted_by(fs)])
        if problems:
            raise Violation(f"seed {self.seed}: grants do not add up:\n  " + "\n  ".join(problems))

    async def check_disks(self) -> None:
        """fsck of everything, as soon as destroys have gone through. Violation if it finds anything."""
        running = [target for server in self.servers for target in server.running]
        mdt: Any = next(target for target in running if isinstance(target, Mdt))
        osts = [target for target in running if isinstance(target, Ost)]
        for _ in range(200):
            for server in self.servers:
                await server.commit()
            left = mdt.store.count(schema.OST_LOG)
            if not left and not any(ost._doomed for ost in osts):
                break
            await asyncio.sleep(0.25)
        else:
            raise Violation(f"seed {self.seed}: {left} objects stay in the log towards their OST, or their files stay")
        if not any(client.files for client in self.clients.values() if client.alive):
            opens = [f"{export.uuid} {handle:#x}" for export, handle in mdt.open_handles()]
            if opens:
                raise Violation(f"seed {self.seed}: handles are left open: {', '.join(opens)}")
            if mdt.store.count(schema.ORPHANS):
                raise Violation(f"seed {self.seed}: files without name are left, though nobody has them open")
        readers = {ost.index: fsck.StoreReader(ost.store, ost.files) for ost in osts}
        report = await fsck.examine(fsck.StoreReader(mdt.store), readers)
        if report.found:
            text = "\n  ".join(map(str, report.problems))
            raise Violation(f"seed {self.seed}: fsck says:\n  {text}")

    # -- the words of Lustre's own test framework

    async def replay_barrier(self, server: SimServer) -> None:
        """From here on `server` commits nothing."""
        await server.commit()
        server.hold_commits()

    async def fail(self, server: SimServer) -> None:
        """Kill it, start it, and wait until everybody has recovered."""
        server.kill()
        await server.start()
        await self.settle()

    async def fail_abort(self, server: SimServer) -> None:
        """Kill it and start it without recovery."""
        server.kill()
        await server.start(abort_recovery=True)
        await self.settle()

    def drop_request(self, what: Any, times: int = 1) -> Rule:
        """Lose the next requests of this class."""
        return self.net.drop(what, times=times)

    def drop_reply(self, what: Any, times: int = 1) -> Rule:
        """Lose the next replies to this class."""
        return self.net.drop(what, reply=True, times=times)

    async def evict(self, client: SimClient, server: SimServer | None = None) -> None:
        """By the administrator."""
        for target in (server or self.mds).running:
            target.clients.evict_matching(client.uuid)


def import_busy(imp: ClientImport) -> str:
    """Why the import is not at rest, "" if it is."""
    if imp.state is not State.FULL:
        return f"the import of {imp.target} is {imp.state}"
    pending = [r.spec.name for r in imp.sending.values() if r.spec.name not in ("ConfigRead", "Ping")]
    if pending or imp.delayed:
        return f"{imp.target} has not answered {', '.join(pending) or 'what is delayed'}"
    return ""


async def read_tree(fs: FileSystem, tree: Tree, path: str = "") -> None:
    """Read everything below `path` into `tree`."""
    async for entry in _entries(fs, path or "/"):
        child = f"{path}/{os.fsdecode(entry.name)}"
        st = entry.stat
        assert st is not None, child
        kind = kind_of(st.mode)
        content: bytes | None = None
        if kind == "file":
            async with await fs.open_fid(st.fid, os.O_RDONLY | os.O_NOATIME) as file:
                content = await file.pread(-1, 0) if st.size else b""
                assert len(content) == st.size, f"{child}: size {st.size}, {len(content)} bytes can be read"
        elif kind == "symlink":
            content = await fs.readlink_fid(st.fid)
        names = await fs.listxattr_fid(st.fid)
        xattrs = [(os.fsdecode(name), await fs.getxattr_fid(st.fid, name)) for name in sorted(names)]
        times = time_of(st, st.mtime), time_of(st, st.atime)
        tree[child] = Seen(kind, stat.S_IMODE(st.mode), st.nlink, content, tuple(xattrs), *times)
        if kind == "dir":
            await read_tree(fs, tree, child)


async def _entries(fs: FileSystem, path: str) -> AsyncIterator[Any]:
    async for entry in fs.scandir(path):
        yield entry
