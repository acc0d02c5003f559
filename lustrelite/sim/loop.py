"""The event loop of the simulator: asyncio with virtual time, and nothing that differs between two runs of one seed.

Time stands still while callbacks run and jumps to the next timer when none is ready, so an hour of pings costs only its
callbacks. `run_in_executor` runs the function on the loop's own thread at a seeded moment between call and completion:
that is where a worker thread could have run it. Callbacks keep asyncio's order (first in, first out); what is shuffled
is what the real world shuffles, the arrival of frames and the end of blocking calls.

Callbacks know whose they are: a SimNode runs everything in a context of its own, so the loop can stop the callbacks of
a paused node (SIGSTOP) and drop the timers of a dead one. Callbacks without a node are the test's own.

A run ends with an error when nothing can happen any more (SimDeadlock), when it passes its bound of virtual time or of
callbacks (SimBound), or when a callback raised something that nobody waited for (SimCrash).
Not simulated: real sockets, subprocesses, signals, threads.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import sys
import threading
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, TypeVarTuple

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

START_S = 1000.0  # the loop's clock at the start: never 0, which code may take for "no deadline"
TIME_S_MAX = 7200.0
CALLBACKS_MAX = 20_000_000
BLOCKING_S_MIN, BLOCKING_S_MAX = 20e-6, 400e-6  # how long a blocking call takes


class Owner(Protocol):
    """Who a callback belongs to (a SimNode)."""

    name: str
    dead: bool
    paused: bool


OWNER: ContextVar[Owner | None] = ContextVar("owner", default=None)


class SimError(Exception):
    """The simulated program went wrong; the text says how."""


class SimDeadlock(SimError):
    """Nothing is ready, no timer runs, and the main task is not done."""


class SimBound(SimError):
    """The run passed its bound of virtual time or of callbacks."""


class SimCrash(SimError):
    """A callback or a task nobody waited for raised; the cause is attached."""


class NodeKilled(BaseException):
    """Unwinds the callback in which a node ended itself; means nothing to anybody else."""


class _Handle(asyncio.Handle):
    """asyncio's without its look at the debug mode: handles are a fifth of a run's cost."""

    __slots__ = ()

    def __init__(self, callback: Any, args: Any, loop: Any, context: Context | None) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._cancelled = False
        self._callback = callback
        self._args = args
        self._repr = None
        self._source_traceback = None


class _Timer(asyncio.TimerHandle):
    """The same for timers."""

    __slots__ = ()

    def __init__(self, when: float, callback: Any, args: Any, loop: Any, context: Context | None) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._cancelled = False
        self._callback = callback
        self._args = args
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = True


class SimLoop(asyncio.BaseEventLoop):
    """One virtual world's loop. `random` is the root of all chance in it."""

    if TYPE_CHECKING:  # what typeshed does not tell of BaseEventLoop
        _ready: deque[Any]
        _stopping: bool
        _thread_id: int | None
        _check_closed: Callable[[], None]
        _check_running: Callable[[], None]
        _asyncgen_firstiter_hook: Any
        _asyncgen_finalizer_hook: Any

    def __init__(self, seed: int = 0, *, time_s_max: float = TIME_S_MAX, callbacks_max: int = CALLBACKS_MAX) -> None:
        super().__init__()
        self.seed = seed
        self.random = random.Random(seed)
        self.callbacks = 0  # that were run
        self.errors: list[dict[str, Any]] = []  # contexts of unhandled exceptions
        self.stuck: Callable[[], str] | None = None  # more to say when the run hangs
        self.fail_fast = True  # an unhandled exception ends the run before time moves on
        self.watching = False  # a node has died or was paused: look at the owner of every timer
        self.paused = 0  # nodes that are: look at the owner of every callback
        self._now = START_S
        self._time_max = START_S + time_s_max
        self._callbacks_max = callbacks_max
        self._timers: list[tuple[float, int, Any]] = []
        self._timers_made = 0
        self._timers_cancelled = 0
        self._parked: dict[str, list[Any]] = {}  # callbacks of paused nodes
        self.set_exception_handler(SimLoop._on_exception)

    # -- asyncio's side

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As asyncio's."""
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio's; timers of one moment fire in the order in which they were made."""
        timer = _Timer(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers_cancelled += 1
        if self._timers_cancelled > 64 and self._timers_cancelled * 2 > len(self._timers):
            self._timers[:] = [entry for entry in self._timers if not entry[2]._cancelled]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def run_in_executor(self, executor: Any, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """Run `func` on this thread: at once or a moment later, as the seed will have it, and say so later still."""
        return self.run_for(self.random.uniform(BLOCKING_S_MIN, BLOCKING_S_MAX), func, *args)

    def run_for(self, took: float, func: Callable[[*_Ts], _T], *args: *_Ts) -> asyncio.Future[_T]:
        """The same for a call that takes so many seconds."""
        future: asyncio.Future[_T] = self.create_future()
        if self.random.random() < 0.5:
            self._run_blocking(future, took, func, args)
        else:
            self.call_later(took / 2, self._run_blocking, future, took / 2, func, args)
        return future

    def _run_blocking(
        self, future: asyncio.Future[_T], took: float, func: Callable[..., _T], args: tuple[Any, ...]
    ) -> None:
        try:
            result = func(*args)
        except Exception as error:
            self.call_later(took, _set_exception, future, error)
        else:
            self.call_later(took, _set_result, future, result)

    def run_forever(self) -> None:
        """Run until stop(); SimDeadlock or SimBound when that can not happen."""
        self._check_closed()
        self._check_running()
        hooks = sys.get_asyncgen_hooks()
        self._thread_id = threading.get_ident()
        sys.set_asyncgen_hooks(firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook)
        events._set_running_loop(self)
        try:
            self._turn()
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _turn(self) -> None:
        ready, timers = self._ready, self._timers
        pop = ready.popleft
        while True:
            while ready:
                # As in asyncio: what is ready now runs before anything it makes ready, and before stop() counts.
                for _ in range(len(ready)):
                    handle = pop()
                    if handle._cancelled or (self.paused and self._is_stopped(handle)):
                        continue
                    self.callbacks += 1
                    try:
                        handle._context.run(handle._callback, *handle._args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        self.call_exception_handler(
                            {"message": f"in {handle._callback!r}", "exception": error, "handle": handle}
                        )
                    handle = None
                if self._stopping:
                    return
                if self.callbacks > self._callbacks_max:
                    raise SimBound(self._hung(f"more than {self._callbacks_max} callbacks"))
            if self._stopping:
                return
            self._next_timers(timers)

    def _next_timers(self, timers: list[tuple[float, int, Any]]) -> None:
        """Advance to the next timer and make ready all that are due then."""
        if self.errors and self.fail_fast:
            self.check()
        while timers:
            when = timers[0][0]
            if when > self._now:
                if timers[0][2]._cancelled:
                    heapq.heappop(timers)
                    self._timers_cancelled -= 1
                    continue
                if when > self._time_max:
                    raise SimBound(self._hung(f"virtual time passed {self._time_max - START_S:.0f} s"))
                self._now = when
            while timers and timers[0][0] <= self._now:
                timer = heapq.heappop(timers)[2]
                timer._scheduled = False
                if timer._cancelled:
                    self._timers_cancelled -= 1
                elif not (self.watching and _is_dead(timer)):
                    self._ready.append(timer)
            if self._ready:
                return
        raise SimDeadlock(self._hung("deadlock: nothing is ready and no timer runs"))

    # -- nodes

    def _is_stopped(self, handle: Any) -> bool:
        """Park the callback of a paused node; True if it was."""
        owner = handle._context.get(OWNER)
        if owner is None or not owner.paused:
            return False
        self._parked.setdefault(owner.name, []).append(handle)
        return True

    def stopped(self) -> None:
        """A node was paused (its `paused` is set)."""
        self.watching = True
        self.paused += 1

    def resumed(self, name: str) -> None:
        """Make ready what waited while the node `name` was paused."""
        self.paused -= 1
        self._ready.extend(self._parked.pop(name, ()))

    # -- errors

    @staticmethod
    def _on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        assert isinstance(loop, SimLoop)
        if isinstance(context.get("exception"), NodeKilled):
            return
        handle = context.get("handle")
        if handle is not None and _is_dead(handle):
            return  # the dead may stumble while they are cleared away
        if "was destroyed but it is pending" in str(context.get("message")):
            return  # found by the leak check of the cluster, which names the node
        loop.errors.append(context)

    def check(self) -> None:
        """SimCrash if a callback or a forgotten task raised."""
        if self.errors:
            first = self.errors[0]
            error = first.get("exception")
            text = f"{first.get('message')}: {error!r}" + (f" and {len(self.errors) - 1} more" if self.errors[1:] else "")
            raise SimCrash(text) from error

    def _hung(self, why: str) -> str:
        lines = [f"seed {self.seed}: {why} at {self._now - START_S:.3f} s after {self.callbacks} callbacks"]
        tasks = [t for t in asyncio.all_tasks(self) if not t.done()]
        for task in sorted(tasks, key=lambda t: t.get_name()):
            lines.append(f"  task {task.get_name()} at {where(task)}")
        if self.stuck is not None:
            lines.append(self.stuck())
        return "\n".join(lines)


def where(task: asyncio.Task[Any]) -> str:
    """The innermost line at which `task` waits, and its callers."""
    places = []
    coro: Any = task.get_coro()
    while coro is not None:
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None)
        if frame is not None:
            code = frame.f_code
            places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno} {code.co_name}")
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None)
    return " < ".join(reversed(places)) or "its end"


def _is_dead(handle: Any) -> bool:
    owner = handle._context.get(OWNER)
    return owner is not None and owner.dead


def _set_result(future: asyncio.Future[_T], result: _T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def run(
    main: Callable[[], Coroutine[Any, Any, _T]],
    seed: int = 0,
    *,
    time_s_max: float = TIME_S_MAX,
    callbacks_max: int = CALLBACKS_MAX,
) -> _T:
    """Run `main()` on a new SimLoop to its end and return its result."""
    loop = SimLoop(seed, time_s_max=time_s_max, callbacks_max=callbacks_max)
    try:
        result = loop.run_until_complete(main())
        loop.check()
        return result
    finally:
        _clear(loop)
        loop.close()


def _clear(loop: SimLoop) -> None:
    """Cancel what is left, so that no coroutine is closed by the garbage collector at a time of its choosing."""
    loop.fail_fast = False
    for _ in range(3):
        tasks = sorted((t for t in asyncio.all_tasks(loop) if not t.done()), key=lambda t: t.get_name())
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        loop.call_later(0.0, loop.stop)
        try:
            loop.run_forever()
        except SimError:
            return
