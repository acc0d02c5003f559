"""The World over real processes: daemons with Unix sockets and LMDB on disk, `kill -9`, clients in the test's own loop.

What a scenario does with it, how operations are recorded and how the end is judged are the simulator's
(sim/cluster.py); here is what differs. Events come from the files that the daemons write line by line, which survive a
kill, and from the clients directly; their time is the calendar's. Clients that are `apart` are processes, too
(apart_client.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from lustrelite import fsck
from lustrelite.cli import cluster as processes
from lustrelite.cli.check import check_stopped
from lustrelite.cli.errors import Refused
from lustrelite.control import ControlFailed
from lustrelite.errors import OpError
from lustrelite.events import Event
from lustrelite.ids import parse_target_name
from lustrelite.params import number_text
from lustrelite.sim import cluster as simulated
from lustrelite.sim.cluster import CLIENT_NAMES, Violation
from lustrelite.sim.grants import Promised, grant_problems
from lustrelite.sim.loop import SimLoop
from lustrelite.sim.model import Tree
from lustrelite.sim.oracle import Marks, Oracle
from lustrelite.sim.world import match
from lustrelite.store import schema
from lustrelite.tunables import Tunables
from tests.processes.apart_client import ApartClient
from tests.processes.handles import POLL_S, TUNABLES, ProcessClient, ProcessFaults, ProcessNet, ProcessServer

WAIT_S = 60.0  # for anything; the machine may be busy
SHOWN_LINES = 400  # of the transcript, when a scenario fails


class ProcessWorld(simulated.Cluster):
    """world.World on processes."""

    def __init__(
        self, *, seed: int = 1, mds: int = 1, oss: int = 2, osts: int = 1, clients: int = 2,
        tunables: Tunables | None = None, area_of: Callable[[str], str] | None = None, common: tuple[str, ...] = (),
        strict: bool = True, orderly: bool = True, apart: bool = False, pairs: bool = False, **params: Any,
    ) -> None:  # fmt: skip
        """`oss` servers with `osts` targets each; `params` change tunables; `strict`: an unexpected warning fails.

        `apart`: the clients are processes, too. `pairs`: the MDS and every OSS has a standby, its `partner`.
        """
        # Not the simulator's __init__: that needs its loop, network and disks.
        assert mds == 1, "one MDT so far"
        self.loop: Any = asyncio.get_running_loop()
        assert not isinstance(self.loop, SimLoop), "mark the test function itself `processes`, not its module"
        self.seed = seed
        self.tunables = replace(tunables or TUNABLES, **params)
        self._begin(Oracle(area_of, common), strict=strict, keep_events=True, orderly=orderly)
        self.net: Any = ProcessNet(self)
        self.faults: Any = ProcessFaults(self)
        self.leaked: list[str] = []  # names of tasks that outlived an unmount
        self._read: dict[Path, int] = {}  # how far the event files have been read
        self.directory = Path(tempfile.mkdtemp(prefix="llw"))
        self.cluster = processes.Cluster(self.directory / "c")
        self._shape = (oss, oss * osts)
        self.mgs: Any = None
        self.mds: Any = None
        self.oss: Any = []
        self.standbys: Any = []
        self._pairs = pairs
        self.client_class = ApartClient if apart else ProcessClient
        self.clients: Any = {name: self.client_class(self, name) for name in CLIENT_NAMES[:clients]}

    @property
    def servers(self) -> list[Any]:
        """All servers, in the order in which they start."""
        return [self.mgs, self.mds, *self.oss, *self.standbys]

    # -- coming and going

    async def __aenter__(self) -> Self:
        try:
            params = {f"tunables.{name}": number_text(value) for name, value in asdict(self.tunables).items()}
            oss, osts = self._shape
            await asyncio.to_thread(
                self.cluster.create, oss=oss, osts=osts, params=params, mds_failover=self._pairs, oss_failover=self._pairs
            )
            members = self.cluster.members.values()
            self.mgs, self.mds, *self.oss = [ProcessServer(self, m.name, m.targets) for m in members if not m.standby]
            self.standbys = [ProcessServer(self, m.name, m.targets) for m in members if m.standby]
            for standby in self.standbys:
                standby.partner = next(server for server in (self.mds, *self.oss) if server.targets == standby.targets)
                standby.partner.partner = standby
            await self.mgs.start()
            await asyncio.gather(*[server.start() for server in (self.mds, *self.oss)])
            await asyncio.gather(*[server.start() for server in self.standbys])
            for client in self.clients.values():
                await client.start()
            await self.settle()
        except BaseException:
            self._show()
            await self._destroy()
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                await self.conclude()
        except BaseException:
            error = error or Violation()
            raise
        finally:
            if error is not None:
                self._show()
            await self._destroy()

    def _show(self) -> None:
        print("\n".join(self.transcript().splitlines()[-SHOWN_LINES:]))

    async def _destroy(self) -> None:
        """Kill everything and remove the disks."""
        for client in self.clients.values():
            await client.kill()
        for name in self.cluster.members:
            with contextlib.suppress(Refused):
                await asyncio.to_thread(self.cluster.kill, name)
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    async def recover(self) -> None:
        """Start what is dead (clients excepted), wake what sleeps, disarm what is armed, commit again."""
        for client in self.clients.values():
            await client.resume()
        for server in self.servers:
            await server.resume()
            if server.wanted and not server.alive and "crashed: fault at" not in (why := self.cluster.last_words(server.name)):
                self.failures.append((server.name, why, ""))
        self.faults.clear()
        self.net.heal()
        for server in self.servers:
            if not server.alive:
                await server.start()
            await server.release_commits()

    async def bury(self) -> None:
        """Evict the clients that are dead: nobody has to wait for it to happen by itself."""
        self.gather()
        warnings = list(self.warnings)
        for client in self.clients.values():
            for uuid in client.uuids:
                if not client.alive or uuid != client.uuid:
                    for server in self.servers[1:]:
                        await server.evict(uuid)
        self.gather()
        self.warnings = warnings  # these were no surprise

    async def leave(self) -> None:
        """Unmount and stop everything in good order; nothing may be left running, and the disks must be well."""
        for client in self.clients.values():
            if client.alive:
                await client.unmount()
        if self.leaked:
            raise Violation(f"tasks are left: {', '.join(self.leaked)}")
        records = {server.name: self.cluster.record(server.name) for server in self.servers}
        waits = [server for server in self.servers if self.cluster.record(server.name).get("state") == "standby"]
        for server in (*waits, *reversed(self.servers)):
            await server.stop()
        for name, record in records.items():
            child = self.cluster._children[record["pid"]] if record else None
            status = await asyncio.to_thread(child.wait, WAIT_S) if child is not None else "before it was stopped"
            if status != 0:
                raise Violation(f"{name} ended badly ({status}): {self.cluster.last_words(name)}")
        report = await asyncio.to_thread(check_stopped, self.cluster.targets())
        if report.found:
            raise Violation("fsck of the stopped cluster says:\n  " + "\n  ".join(map(str, report.problems)))

    def check_crashes(self) -> None:
        """Violation if a process ended itself without being asked to."""
        self.gather()
        super().check_crashes()

    async def add_client(self, name: str = "") -> Any:
        """Mount once more."""
        name = name or next(n for n in CLIENT_NAMES if n not in self.clients)
        client = self.clients[name] = self.client_class(self, name)
        await client.start()
        return client

    def _mark(self) -> Marks:
        """What the living clients have been told: of an operation that is over, one of them knows the transno."""
        marks: Marks = {}
        for client in self.clients.values():
            for target, mark in client.marks.items() if client.alive else ():
                marks[target] = max(marks.get(target, (0, 0)), mark)
        return marks

    # -- events

    def gather(self) -> None:
        """Record what the daemons have written since."""
        for path in sorted(self.cluster.log_dir.glob("*.events.jsonl")):
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                with contextlib.suppress(ValueError):  # cut short by a kill
                    fields = json.loads(line)
                    fields.pop("t")
                    time, node, name = fields.pop("wall"), fields.pop("node"), fields.pop("event")
                    self.record(Event(time, node, name, fields.pop("level", "info"), fields))
        self.events.sort(key=lambda event: event.time)

    def saw(self, event: str, *, times: int | None = None, **fields: Any) -> list[Event]:
        """See world.World.saw."""
        self.gather()
        return super().saw(event, times=times, **fields)

    def never_saw(self, event: str, **fields: Any) -> None:
        """See world.World.never_saw."""
        self.gather()
        super().never_saw(event, **fields)

    def transcript(self, *areas: str) -> str:
        """See world.World.transcript."""
        self.gather()
        return super().transcript(*areas)

    # -- waiting

    async def until_saw(self, event: str, *, timeout_s: float = WAIT_S, **fields: Any) -> None:
        """See world.World.until_saw."""
        self.expected.add(event)

        async def happened() -> bool:
            self.gather()
            return any(e.name == event and match(e, fields) for e in self.events)

        await self.eventually(happened, f"{event} {fields}", timeout_s)

    async def eventually(self, true: Callable[[], Awaitable[bool]], what: str, timeout_s: float = WAIT_S) -> None:
        """Wait until something is true of the processes."""
        deadline = self.loop.time() + timeout_s
        while not await true():
            if self.loop.time() > deadline:
                raise Violation(f"not after {timeout_s:.0f} s: {what}")
            await asyncio.sleep(POLL_S)

    async def settle(self, timeout_s: float = WAIT_S) -> None:
        """Wait until every import is FULL and idle."""
        deadline = self.loop.time() + timeout_s
        while busy := await self._busy():
            if self.loop.time() > deadline:
                raise Violation(f"not settled after {timeout_s:.0f} s: {'; '.join(busy)}")
            await asyncio.sleep(POLL_S)

    async def _busy(self) -> list[str]:
        """What is not at rest."""
        living = [server for server in self.servers if server.alive]
        rows = [row for found in await asyncio.gather(*[server.rows() for server in living]) for row in found]
        instances = {row["name"]: row["instance"] for row in rows}
        busy = [f"{row['name']} is {row['state']}" for row in rows if row["state"] != "UP"]
        busy += [f"{server.name} is starting" for server in living if not set(server.targets) <= set(instances)]
        mds = self.mds if self.mds in living else self.mds.partner
        for client in self.clients.values():
            if client.alive:
                busy += await client.unsettled(instances)
        if mds in living:
            imports = await self._mds_imports()
            for name in [target for oss in self.oss for target in oss.targets]:
                state, instance = imports.get(name, ("missing", 0))
                if name in instances and (state, instance) != ("FULL", instances[name]):
                    busy.append(f"{self.mds.name}: the import of {name} is {state} at instance {instance}")
        return busy

    def _mds_pair(self) -> list[Any]:
        """The MDS and its standby, those that are alive."""
        return [server for server in (self.mds, self.mds.partner) if server is not None and server.alive]

    async def _mds_imports(self) -> dict[str, tuple[str, int]]:
        """(state, instance) of the MDS's connections to the OSTs."""
        try:
            texts = {name: text for mds in self._mds_pair() for name, text in (await mds.params("osp.*.import")).items()}
        except ControlFailed:
            return {}
        found = {}
        for text in texts.values():
            values = dict(re.findall(r"^ +(target|state|instance): (\S+)$", text, re.MULTILINE))
            found[values["target"].removesuffix("_UUID")] = values["state"], int(values["instance"])
        return found

    # -- judging

    @asynccontextmanager
    async def _visitor(self, name: str) -> AsyncIterator[ProcessClient]:
        """A fresh client that only looks."""
        visitor = ProcessClient(self, name)
        try:
            await visitor.start()
            yield visitor
            await visitor.unmount()
        finally:
            await visitor.kill()

    async def read_tree(self) -> Tree:
        """The whole tree as a client sees it that has just been mounted."""
        tree: Tree = {}
        try:
            async with self._visitor("reader") as reader:
                await reader.unrecorded(simulated.read_tree(reader.fs, tree))
        except OpError as error:
            raise Violation(f"the tree cannot be read: {error}") from error
        return tree

    async def check_grants(self, timeout_s: float = WAIT_S) -> None:
        """See sim/cluster.py. Each process is asked for itself: what has moved in between agrees the next time."""
        deadline = self.loop.time() + timeout_s
        while problems := await self._grant_problems():
            if self.loop.time() > deadline:
                raise Violation("grants do not add up:\n  " + "\n  ".join(problems))
            await asyncio.sleep(POLL_S)

    async def _grant_problems(self) -> list[str]:
        osts = []
        for server in (*self.oss, *self.standbys):
            if server.alive:
                totals = await server.params("obdfilter.*.tot_granted")
                shares = await server.params("obdfilter.*.exports.*.grant")
                for name, total in totals.items():
                    ost = name.split(".")[1]
                    of_ost = "\n".join(text for param, text in shares.items() if param.split(".")[1] == ost)
                    found = re.findall(r"(\S+): (\d+)", of_ost)
                    osts.append(Promised(ost, int(total), {uuid: int(held) for uuid, held in found}))
        clients = [row for client in self.clients.values() if client.alive for row in await client.grants()]
        return grant_problems(osts, clients)

    async def check_disks(self) -> None:
        """fsck of the running cluster, as soon as destroys have gone through. Violation if it finds anything."""
        async with self._visitor("fsck") as visitor:
            readers = {name: fsck.RpcReader(imp) for name, imp in visitor.fs.connections.imports.items()}
            deadline = self.loop.time() + WAIT_S
            while problems := await self._disk_problems(readers):
                if self.loop.time() > deadline:
                    raise Violation("the running cluster is not well:\n  " + "\n  ".join(problems))
                await asyncio.sleep(POLL_S)

    async def _disk_problems(self, readers: dict[str, fsck.RpcReader]) -> list[str]:
        for server in self.servers[1:]:
            await server.commit()
        mdt = readers[self.mds.targets[0]]
        problems = [f"an object is owed something: {row}" async for row in mdt.rows(schema.OST_LOG)]
        if not any(client.files for client in self.clients.values() if client.alive):
            problems += [f"without a name: {row}" async for row in mdt.rows(schema.ORPHANS)]
            found = [text for mds in self._mds_pair() for text in (await mds.params("mdt.*.exports.*.open_files")).values()]
            opens = " ".join(found)
            problems += [f"left open: {uuid}" for uuid, count in re.findall(r"(\S+): (\d+)", opens) if count != "0"]
        osts = {parse_target_name(name)[2]: reader for name, reader in readers.items() if "-OST" in name}
        report = await fsck.examine(mdt, osts)
        return problems + [str(problem) for problem in report.problems]

    # -- the words of Lustre's own test framework

    async def replay_barrier(self, server: Any) -> None:
        """From here on `server` commits nothing."""
        await server.commit()
        await server.hold_commits()

    async def fail(self, server: Any) -> None:
        """Kill it, start it, and wait until everybody has recovered."""
        await server.kill()
        await server.start()
        await self.settle()

    async def fail_abort(self, server: Any) -> None:
        """Kill it and start it without recovery."""
        await server.kill()
        await server.start(abort_recovery=True)
        await self.settle()

    async def evict(self, client: Any, server: Any = None) -> None:
        """By the administrator."""
        await (server or self.mds).evict(client.uuid)
