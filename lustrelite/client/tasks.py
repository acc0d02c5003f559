"""The tasks of one mount: several RPCs at once, and requests that outlive their caller.

A caller may be cancelled at any await (a FUSE interrupt, a timeout). What it had asked for and cannot be taken back,
an open or a close, must then still come to its end, and what an open brought must be given back. And an OpError inside
a task of the node would be a crash of the node, so it travels as a value here and is raised where it is waited for.

Order matters for repeatable runs: tasks start in the order of their list, and the first error is that of the list.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from lustrelite.errors import OpError
from lustrelite.rpc.node import Node

_T = TypeVar("_T")


async def _outcome(coro: Coroutine[Any, Any, _T]) -> _T | OpError:
    try:
        return await coro
    except OpError as error:
        return error


def results(outcomes: Sequence[_T | OpError]) -> list[_T]:
    """What each came to, in order; the first OpError is raised."""
    found: list[_T] = []
    for outcome in outcomes:
        if isinstance(outcome, OpError):
            raise outcome
        found.append(outcome)
    return found


def give_back(task: asyncio.Task[_T | OpError], unclaimed: Callable[[_T], None]) -> None:
    """Nobody waits for `task` any more: what it comes to, or has, goes to `unclaimed`."""

    def ended(task: asyncio.Task[_T | OpError]) -> None:
        if not task.cancelled() and task.exception() is None:
            late = task.result()
            if not isinstance(late, OpError):
                unclaimed(late)

    task.add_done_callback(ended)


class Tasks:
    """What runs for one mount."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._running: dict[asyncio.Task[Any], Coroutine[Any, Any, Any]] = {}

    def spawn(self, coro: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T | OpError]:
        """Run `coro` in the background; its OpError is the task's result."""
        task = self.node.spawn(_outcome(coro), name)
        self._running[task] = coro
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.pop(task).close()  # one that was cancelled before its first step has not run at all

    async def outcomes(self, coros: Sequence[Coroutine[Any, Any, _T]], name: str) -> list[_T | OpError]:
        """Run all of them at once and return what each came to, in order. Cancelled together."""
        if not coros:
            return []
        others = [self.spawn(coro, name) for coro in coros[1:]]
        try:
            found = [await _outcome(coros[0])]
            for task in others:
                found.append(await task)
        except BaseException:
            for task in others:
                task.cancel()
            raise
        return found

    async def gather(self, coros: Sequence[Coroutine[Any, Any, _T]], name: str) -> list[_T]:
        """Run all of them at once and return their results in order; then raise the first OpError, if any."""
        return results(await self.outcomes(coros, name))

    async def claim(self, coro: Coroutine[Any, Any, _T], name: str, unclaimed: Callable[[_T], None]) -> _T:
        """Run `coro` to its end, whatever happens to the caller: a result it can no longer take goes to `unclaimed`."""
        task = self.spawn(coro, name)
        try:
            result = await asyncio.shield(task)
        except asyncio.CancelledError:
            give_back(task, unclaimed)
            raise
        if isinstance(result, OpError):
            raise result
        return result

    async def finish(self, coro: Coroutine[Any, Any, _T], name: str) -> _T:
        """Run `coro` to its end, whatever happens to the caller."""
        return await self.claim(coro, name, lambda _: None)

    async def idle(self) -> None:
        """Return when nothing runs any more."""
        while self._running:
            await asyncio.wait(list(self._running))

    def stop(self) -> None:
        """Cancel everything."""
        for task in list(self._running):
            task.cancel()


class Later:
    """Work that is done a while after it was first wanted, or when that is hurried. From its beginning on it may be wanted anew."""

    def __init__(self, tasks: Tasks, after_s: float, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self.task: asyncio.Task[Any] | None = None  # what was begun last
        self._tasks = tasks
        self._after_s = after_s
        self._work = work
        self._name = name
        self._due: asyncio.Event | None = None  # of the work that is wanted and not begun

    def want(self) -> bool:
        """Was it not wanted already?"""
        if self._due is not None:
            return False
        self._due = asyncio.Event()
        self.task = self._tasks.spawn(self._run(self._due), self._name)
        return True

    def hurry(self) -> None:
        """What is wanted is done now."""
        if self._due is not None:
            self._due.set()

    async def _run(self, due: asyncio.Event) -> None:
        try:
            await asyncio.wait_for(due.wait(), self._after_s)
        except TimeoutError:
            pass
        self._due = None
        await self._work()
