"""A process of the simulated world: node.Node with a virtual clock, seeded chance, the simulated network, and a death.

Everything a node does runs in a context that names it as owner, so that the loop can stop it (pause) and forget its
timers (death). Death comes in this order, or a `finally` on its way out could say goodbye to somebody:
unplug the links -> abort the stores (`on_kill`) -> cancel the tasks.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import inspect
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from lustrelite.rpc.node import Node
from lustrelite.sim.loop import OWNER, START_S, NodeKilled, SimLoop
from lustrelite.sim.net import SimNetwork
from lustrelite.tunables import Tunables

_T = TypeVar("_T")

WALL_NS = 1_800_000_000_000_000_000  # the world's clock when a run starts


class SimNode(Node):
    """One life of one simulated process: a restart makes a new one of the same name."""

    def __init__(
        self,
        loop: SimLoop,
        net: SimNetwork,
        name: str,
        *,
        seed: int,
        boot: int = 1,
        tunables: Tunables | None = None,
        skew_ns: int = 0,
    ) -> None:
        endpoint = net.endpoint()
        digest = hashlib.sha256(f"{seed}:{name}:{boot}".encode()).digest()
        self.loop = loop
        self.net = net
        self.boot = boot
        self.skew_ns = skew_ns  # of the wall clock; the loop's clock is everybody's
        self.paused = False
        self.slow_s = 0.0  # a blocking call takes up to so long, if the disk is slow
        self.failures: list[tuple[str, str]] = []  # (why, traceback) of crashes that nobody asked for
        self.on_kill: list[Callable[[], None]] = []
        super().__init__(name, endpoint, tunables=tunables, seed=int.from_bytes(digest[:8], "big"))
        self.context = contextvars.copy_context()
        self.context.run(OWNER.set, self)
        endpoint.station = self

    def now(self) -> float:
        """Virtual seconds."""
        return self.loop.time()

    def wall_ns(self) -> int:
        """Virtual nanoseconds since the epoch, as this node's clock shows them."""
        return WALL_NS + int((self.loop.time() - START_S) * 1e9) + self.skew_ns

    def spawn(self, coro: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Run `coro` as a task of this node, in its context. A dead node starts nothing."""
        if self.dead:
            discard(coro)
            raise NodeKilled(self.name)
        task = self.loop.create_task(coro, name=f"{self.name}:{name}", context=self.context.copy())
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def run_blocking(self, function: Callable[..., _T], *args: Any) -> Awaitable[_T]:
        """Run `function` on this thread, now or a moment later; not at all if the node dies before."""

        def alive_only() -> _T:
            if self.dead:
                raise asyncio.CancelledError
            return function(*args)

        if self.slow_s:
            return self.loop.run_for(self.loop.random.uniform(0.0, self.slow_s), alive_only)
        return self.loop.run_in_executor(None, alive_only)

    def crash(self, why: str, error: BaseException | None = None) -> None:
        """End this process as `kill -9` would; unwinds the callback that asked for it."""
        if self.dead:
            return
        self.events.emit("node.crashed", level="error", why=why)
        if not why.startswith("fault at "):
            self.failures.append((why, "".join(traceback.format_exception(error)) if error is not None else ""))
        if self.on_crash is not None:
            self.on_crash(why)
        else:
            self.kill()
        raise NodeKilled(self.name)

    def kill(self, *, silent: bool = False) -> None:
        """`kill -9`; `silent` as if the whole machine had gone (its kernel closes no connection)."""
        if self.dead:
            return
        self.events.emit("node.killed")
        self.dead = self.loop.watching = True
        self.net.unplug(self, silent=silent)
        for callback in self.on_kill:
            callback()
        self.events.sinks.clear()
        for task in list(self._tasks):
            coro: Any = task.get_coro()
            if inspect.getcoroutinestate(coro) == inspect.CORO_CREATED:
                discard_arguments(coro)
            task.cancel()
        if self.paused:
            self.resume()

    def pause(self) -> None:
        """SIGSTOP."""
        if not self.paused and not self.dead:
            self.paused = True
            self.loop.stopped()

    def resume(self) -> None:
        """SIGCONT: what piled up happens now."""
        if self.paused:
            self.paused = False
            self.loop.resumed(self.name)

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """Those that have not ended."""
        return [task for task in self._tasks if not task.done()]


def discard(coro: Any) -> None:
    """Close a coroutine that never began, with those that it was given: they would complain that nobody awaited them."""
    discard_arguments(coro)
    coro.close()


def discard_arguments(coro: Any) -> None:
    """Close the coroutines that `coro`, which never began, was given."""
    frame = coro.cr_frame
    if frame is None:
        return
    for value in list(frame.f_locals.values()):
        for inner in value if isinstance(value, list | tuple) else (value,):
            if inspect.iscoroutine(inner) and inspect.getcoroutinestate(inner) == inspect.CORO_CREATED:
                discard(inner)
