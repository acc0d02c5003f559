"""Threads for calls that block: Node.run_blocking on a real machine.

A call is a future of the loop, an entry in a queue and one in a list of results; of results that come together the loop
is woken once. concurrent.futures makes two futures for a call, with a lock and a condition each, and wakes the loop for
every one: a call costs it 12 us at eight in flight and 60 us until a lone one is answered, here 3 and 20.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")
_Job = tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]


class Workers:
    """Up to `count` threads, made as they are needed. All methods are for the loop's thread, and for one loop."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._results: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._threads: list[threading.Thread] = []
        self._under_way = 0
        self._woken = False  # the loop will look at the results
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def busy(self) -> bool:
        """Is anything under way?"""
        return self._under_way > 0

    def run(self, function: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:
        """What `function(*args)` returns or raises. Cancelled before a thread has begun with it, it is not called."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = self._loop.create_future()
        if self._under_way >= len(self._threads) < self.count:
            # A daemon: who wants to wait for a call awaits it; a process that ends for another reason does not wait.
            thread = threading.Thread(target=self._work, args=(self._loop,), name=f"io-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._under_way += 1
        self._jobs.put((future, function, args))
        return future

    def stop(self, wait_s: float = 0.0) -> None:
        """Let the threads end when they have done what was asked of them, and wait for that; nothing more may be asked."""
        self.count = 0
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(wait_s)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """A thread's life."""
        while (job := self._jobs.get()) is not None:
            future, function, args = job
            result, error = None, None
            if not future.cancelled():
                try:
                    result = function(*args)
                except BaseException as raised:  # noqa: BLE001  it is for who waits
                    error = raised
            self._results.append((future, result, error))
            del job, future, function, args, result, error  # buffers are free when nobody looks at them
            if not self._woken:
                self._woken = True
                try:
                    loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return

    def _deliver(self) -> None:
        self._woken = False  # first: what comes from now on wakes the loop again
        results = self._results
        while results:
            future, result, error = results.popleft()
            self._under_way -= 1
            if future.done():  # cancelled
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
