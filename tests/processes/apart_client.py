"""A client that is a process of its own (client_main.py), as a scenario holds it: it can be stopped, and really killed.

What it does is recorded here, as of the others; its events come from its file, as the servers' do. `fs` has the
FileSystem's methods, as far as their arguments and results can be pickled; `open` returns a file of the same kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from lustrelite import control
from lustrelite.cli.cluster import child_environment
from lustrelite.faults import Fault
from lustrelite.sim.grants import Counted
from lustrelite.sim.loop import NodeKilled
from tests.processes.client_main import FAILED, FILE, FS, PROCESS, Marks, error_of, packed, received
from tests.processes.handles import CALL_S, MOUNT_S, ProcessClient, fault_text

_T = TypeVar("_T")

PROGRAM = Path(__file__).with_name("client_main.py")


class Remote:
    """The FileSystem of the process, or an open file of it: a coroutine for every method."""

    def __init__(self, life: Life, what: str | int) -> None:
        self.life = life
        self.what = what

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self.life.call(self.what, name, *args, **kwargs)

        return call

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Life:
    """One life of the process. It takes the place of a Node: tasks end with it, and `dead` says that it is over."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.uuid = ""
        self.pid = 0
        self.marks: Marks = {}
        self.child: asyncio.subprocess.Process
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._listener: asyncio.Task[None] | None = None

    def spawn(self, coro: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """See node.Node.spawn."""
        return asyncio.ensure_future(coro)

    async def start(self, command: list[str], log: Path) -> None:
        """Start the process; return when it has mounted."""
        with open(log, "ab") as file:
            self.child = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=file,
                env=child_environment(), start_new_session=True,
            )  # fmt: skip
        assert self.child.stdout is not None
        ready = await received(self.child.stdout)
        assert ready is not None, f"{self.name} did not mount: {log.read_text()[-2000:]}"
        self.uuid, self.pid = ready[2]
        self._listener = asyncio.ensure_future(self._listen(self.child.stdout))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while (answer := await received(reader)) is not None:
            number, outcome, value, self.marks = answer
            future = self._answers.pop(number)
            if future.done():
                continue
            if outcome == FAILED:
                future.set_exception(error_of(*value))
            else:
                future.set_result(Remote(self, value) if outcome == FILE else value)
        self.dead = True
        for future in self._answers.values():
            if not future.done():
                future.set_exception(NodeKilled(self.name))

    async def call(self, what: str | int, method: str, *args: Any, **kwargs: Any) -> Any:
        """Let the process do something."""
        if self.dead:
            raise NodeKilled(self.name)
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        assert self.child.stdin is not None
        self.child.stdin.write(packed((number, what, method, args, kwargs)))
        return await future

    async def end(self, kill: bool) -> int:
        """Kill it, or let it leave; returns its exit status."""
        assert self.child.stdin is not None and self._listener is not None
        if kill:
            self.dead = True
            with contextlib.suppress(ProcessLookupError):
                self.child.kill()
        self.child.stdin.close()
        status = await self.child.wait()
        await self._listener
        return status

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if not self.dead:
            os.kill(self.pid, number)


class ApartClient(ProcessClient):
    """A mount in a process of its own."""

    node: Life | None
    fs: Any

    @property
    def uuid(self) -> str:
        """The mount's UUID."""
        assert self.node is not None
        return self.node.uuid

    @property
    def imports(self) -> list[Any]:
        """They are not here."""
        return []

    @property
    def marks(self) -> Marks:
        """As of its last answer."""
        return self.node.marks if self.node is not None else {}

    async def unsettled(self, instances: dict[str, int]) -> list[str]:
        """What of its connections is not at rest, given which life each target is in."""
        assert self.node is not None
        return list(await self.node.call(PROCESS, "unsettled", instances))

    async def grants(self) -> list[Counted]:
        """What it counts of its grants."""
        assert self.node is not None
        return list(await self.node.call(PROCESS, "grants"))

    async def start(self) -> None:
        """Start the process, and mount."""
        assert not self.alive, f"{self.name} is mounted"
        world = self.cluster
        self.boots += 1
        self.life = self.name if self.boots == 1 else f"{self.name}{self.boots}"
        if world.tunables.caching:
            world.oracle.caching[self.life] = None
        cluster = world.cluster
        command = [
            sys.executable, str(PROGRAM), "--name", self.name, "--run-dir", str(cluster.run_dir), "--log-dir",
            str(cluster.log_dir), "--mgsnode", ",".join(cluster.mgs_nids), "--fsname", cluster.fsname,
            "--metrics-port", "-1",
        ]  # fmt: skip
        for name, value in cluster.params.items():
            command += ["--set", f"{name}={value}"]
        for point, fault in self.kept_faults:
            command += ["--set", f"fault={fault_text(point, fault)}"]
        node = self.node = Life(self.name)
        async with asyncio.timeout(MOUNT_S):
            await node.start(command, cluster.log_dir / f"{self.name}.stderr")
        self.fs = Remote(node, FS)
        self.uuids[self.uuid] = None
        self.files.clear()

    async def kill(self, *, silent: bool = False) -> None:
        """`kill -9`."""
        assert not silent, "a machine cannot lose its power here: use the simulator"
        if self.alive:
            assert self.node is not None
            self.cluster.oracle.client_gone(self.life, "killed")
            await self.node.end(kill=True)

    async def unmount(self) -> None:
        """Leave in good order."""
        node = self.node
        assert node is not None
        async with asyncio.timeout(MOUNT_S):
            status = await node.end(kill=False)
        if status:
            self.cluster.leaked.append(f"{self.name} ended with {status}")

    async def pause(self) -> None:
        """SIGSTOP."""
        assert self.node is not None
        self.node.signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """SIGCONT."""
        if self.node is not None:
            self.node.signal(signal.SIGCONT)

    def arm(self, point: str, fault: Fault) -> None:
        """Arm a fault point of its own."""
        self._tell("set_param", pattern="fault", value=fault_text(point, fault))

    def disarm(self) -> None:
        """Disarm everything."""
        if self.alive:
            self._tell("clear_faults")

    def _tell(self, cmd: str, **fields: Any) -> None:
        control.call(self.cluster.cluster.socket_of(self.name), cmd, CALL_S, **fields)
