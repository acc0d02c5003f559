"""A node: what a process is to the code that runs in it, on a real machine and in the simulator alike.

The seams of the system (docs/architecture.md, D1) meet here. Nothing else in lustrelite reads a clock, draws a random
number, opens a socket or starts a thread:

- time is the loop's (`now`, and `wall_ns` for timestamps),
- randomness is `node.random`,
- frames go through `node.network` (rpc/transport.py, or sim/net.py),
- blocking calls go through `run_blocking`, to the threads of rpc/workers.py,
- tasks belong to the node (`spawn`), so that stopping it leaves none behind.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from lustrelite.errors import StoreFailed
from lustrelite.events import EventLog
from lustrelite.faults import Faults
from lustrelite.ids import Nid
from lustrelite.rpc.spinner import Spinner
from lustrelite.rpc.workers import Workers
from lustrelite.tunables import Tunables

_T = TypeVar("_T")
WORKERS = 4

# In place of a bulk that did not match its checksum: compare with `is`. What bulk_buffer() gave holds garbage.
CORRUPT = memoryview(b"")


class Receiver(Protocol):
    """The owner of a link's incoming side. All three are called on the loop, never after `link_lost`."""

    def frame_received(self, link: Link, kind: int, header: Any, bulk: memoryview | None) -> None:
        """A whole frame: `header` is unpacked msgpack, not yet checked; `bulk` passed its checksum or is CORRUPT."""

    def bulk_buffer(self, link: Link, kind: int, header: Any, length: int) -> memoryview:
        """Where `length` bytes of bulk shall go: so much memory."""

    def link_lost(self, link: Link, why: str) -> None:
        """The link is gone, once."""


class Link(Protocol):
    """A connection between two processes: one control connection and its bulk connections, living and dying as one."""

    peer: str
    nid: Nid  # the other side's address as we dialled it, or as it called from
    closed: bool

    def send(self, kind: int, header: bytes, bulk: bytes | bytearray | memoryview | None = None) -> None:
        """Send a frame; nothing happens if the link is closed. Frames of one loop turn leave in one write.

        Order is kept among frames without bulk; a frame with much bulk travels on a bulk connection.
        `bulk` must not change until the frame was answered (or the link closed).
        """

    def withdraw(self, memory: memoryview) -> None:
        """`memory`, which `bulk_buffer` gave, is wanted back: what has not landed in it goes elsewhere."""

    def close(self, why: str = "") -> None:
        """Drop the link; the receiver hears `link_lost`."""


class Listener(Protocol):
    """An open port."""

    nid: Nid

    def close(self) -> None:
        """Accept no more links (those that exist live on)."""


class Network(Protocol):
    """Makes links."""

    async def connect(self, nid: Nid, receiver: Receiver, *, bulk_connections: int = 1) -> Link:
        """A link to whoever listens at `nid`; LinkLost if nobody does."""

    async def listen(self, nid: Nid, accept: Callable[[Link], Receiver]) -> Listener:
        """Listen at `nid` (port 0 chooses one: see Listener.nid)."""


class Node:
    """One process. The simulator's SimNode replaces clock, randomness and network."""

    def __init__(
        self,
        name: str,
        network: Network,
        *,
        tunables: Tunables | None = None,
        workers: Workers | None = None,
        seed: int | None = None,
    ) -> None:
        self.name = name
        self.network = network
        self.tunables = tunables or Tunables()
        self.random = random.Random(seed)
        self.events = EventLog(name, self.now)
        self.faults = Faults()
        self.workers = workers or Workers(WORKERS)
        self.spinner: Spinner | None = None  # looks for what comes next, if this is a process of its own
        self.dead = False
        self._tasks: dict[asyncio.Task[Any], None] = {}  # a dict keeps order: cancellation must be repeatable
        self.on_crash: Callable[[str], None] | None = None  # a StoreFailed or a "crash" fault ends the process

    def now(self) -> float:
        """Seconds on the loop's clock."""
        return asyncio.get_running_loop().time()

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch, for timestamps."""
        return time.time_ns()

    def spawn(self, coro: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Run `coro` as a task of this node. An exception it does not handle is a crash."""
        task = asyncio.get_running_loop().create_task(coro, name=f"{self.name}:{name}")
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.dead:
            self.crash(str(error) if isinstance(error, StoreFailed) else f"task {task.get_name()}: {error!r}", error)

    def run_blocking(self, function: Callable[..., _T], *args: Any) -> Awaitable[_T]:
        """Run `function` in a worker thread (in the simulator: now, with a delay)."""
        return self.workers.run(function, *args)

    def crash(self, why: str, error: BaseException | None = None) -> None:
        """End this process as `kill -9` would: nothing is committed, nobody is told."""
        if self.dead:
            return
        try:
            self.events.emit("node.crashed", level="error", why=why)
        finally:
            if self.on_crash is not None:
                self.on_crash(why)
        if self.on_crash is None and error is not None:
            raise error

    async def stop_tasks(self) -> None:
        """Cancel every task of this node and wait for them."""
        self.dead = True
        current = asyncio.current_task()
        for task in list(self._tasks):
            if task is not current:
                task.cancel()
        for task in list(self._tasks):
            if task is not current:
                await asyncio.gather(task, return_exceptions=True)
