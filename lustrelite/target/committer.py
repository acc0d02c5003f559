"""When the running batch becomes durable: at an interval, above a bound, or because somebody waits.

Only the commit itself runs in a worker thread (store/kv.py): the batch is sealed before it, requests go on meanwhile,
and after it the store takes a few turns of the loop until it has caught up. Little that somebody waits for goes to the
store's log instead (small_log.py), here and at once, if the disk is quick; the database follows at the interval. One
commit is under way at a time; demands that come meanwhile are served by the next one, demands of one turn of the loop
by one commit. While commits are held (`hold`, Lustre's replay_barrier) the waiters stay and say so after a while.
`last_committed` moves only after the disk said yes (LU-8348); a disk that says no ends the process: its successor gets
the clients' replays.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING

from lustrelite.errors import StoreFailed

if TYPE_CHECKING:
    from lustrelite.target.target import Target


class Committer:
    """Commits of one target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.node = target.node
        self.held = False
        self.commits = 0
        self.last_seconds = 0.0
        self._waiters: list[tuple[int, int, Callable[[], None]]] = []  # heap by transno
        self._counter = 0
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self.logged = 0  # of the commits those that only went to the log
        self._busy = False
        self._whole = False  # the next one is to be a commit of the database
        self._log_s = 0.0  # how long the log takes
        self._again = False
        self._closed = False
        self._forced = False
        self._warned: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Something was applied: see that it gets committed in time."""
        if self._timer is None and self._soon is None:
            interval = self.node.tunables.commit_interval_s
            self._timer = asyncio.get_running_loop().call_later(interval, self._interval_over)
        if self.target.store.running >= self.node.tunables.commit_dirty_max or self.target.store.pressed:
            self.commit_soon()

    def after(self, transno: int, callback: Callable[[], None]) -> None:
        """Call back when `transno` is durable, which is asked for now."""
        if transno <= self.target.last_committed and not self.target.store.dirty and not self._busy:
            callback()
            return
        self.call_when(transno, callback)
        self.demand()

    def call_when(self, transno: int, callback: Callable[[], None]) -> None:
        """Call back when `transno` is durable, whenever that will be."""
        self._counter += 1
        heapq.heappush(self._waiters, (transno, self._counter, callback))

    async def wait(self, transno: int | None = None, *, forced: bool = False) -> None:
        """Return when `transno` (default: everything so far) is durable; `forced` even while commits are held."""
        self._forced = self._forced or forced
        if transno is None:
            transno = self.target.last_transno
            if not self.target.store.dirty and not self._busy:
                return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._counter += 1
        # a wait for "everything" must see a commit that begins after now, whatever the transno

        def durable() -> None:
            if not future.done():
                future.set_result(None)

        heapq.heappush(self._waiters, (transno, self._counter, durable))
        self.demand()
        await future

    def demand(self) -> None:
        """Somebody waits: commit as soon as this turn of the loop is over."""
        self._start_soon()

    def commit_soon(self) -> None:
        """Let the database have all that there is, also what is in the log."""
        self._whole = True
        self._start_soon()

    def hold(self) -> None:
        """Commit nothing from now on (replay_barrier)."""
        self.held = True
        self.node.events.emit("commit.held", target=self.target.name)

    def release(self) -> None:
        """Commit again."""
        if self.held:
            self.held = False
            self.node.events.emit("commit.released", target=self.target.name)
            self._start_soon()

    def close(self) -> None:
        """No more commits; waiters are left alone (their clients resend to the next incarnation)."""
        self._closed = True
        for handle in (self._timer, self._soon, self._warned):
            if handle is not None:
                handle.cancel()

    async def finish(self) -> None:
        """Commit everything, held or not, and begin no commit from now on."""
        self.held = False
        while self._busy or self.target.store.dirty:
            await self.wait()
            await asyncio.sleep(0)  # the commit that served us may have to catch up
        self.close()

    def commit_now(self) -> None:
        """Commit on this thread: at the start, before anybody is served."""
        assert not self._busy, "a commit is under way"
        began = self.node.now()
        upto = self.target.last_transno
        self.target.store_commit(self.target.seal())
        self.target.store.reopen()
        self._done(upto, began, self._counter)

    def _interval_over(self) -> None:
        self._timer = None
        self.commit_soon()

    def _start_soon(self) -> None:
        if self._soon is None and not self._closed:
            self._soon = asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._soon = None
        if self._closed:
            return
        if self.held and not self._forced:
            if self._waiters and self._warned is None:
                warn_s = self.node.tunables.commit_wait_warn_s
                self._warned = asyncio.get_running_loop().call_later(warn_s, self._say_held)
            return
        if self._busy:
            self._again = True
            return
        if not self.target.store.running and not self._waiters and not self.target.store.pressed:
            self._whole = False
            return
        self._forced = False
        if self._waiters and not self._whole and self._log_s < self.node.tunables.commit_log_s and self._log():
            return
        self._whole = False
        self._log_s *= 7 / 8  # the disk may have become quicker
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._busy = True
        self.node.spawn(self._commit(), f"commit {self.target.name}")

    def _log(self) -> bool:
        """Serve the waiters from the log, on this thread. The database follows at the interval."""
        began = self.node.now()
        try:
            if not self.target.log():
                return False
        except StoreFailed as error:
            self._failed(error)
            return True
        self.logged += 1
        self._log_s += (self.node.now() - began - self._log_s) / 8
        self._done(self.target.last_transno, began, self._counter)
        self.changed()
        return True

    async def _commit(self) -> None:
        target = self.target
        began = self.node.now()
        upto = target.last_transno
        counter = self._counter
        try:
            await target.commit_batch(target.seal())
            if not self._closed:
                caught_up = target.store.reopen()
                self._done(upto, began, counter)
                while not caught_up and not self._closed:
                    await asyncio.sleep(0)
                    caught_up = target.store.reopen()
        except StoreFailed as error:
            if not self._closed:
                self._failed(error)
            return
        self._busy = False
        if self._closed:
            return
        again, self._again = self._again, False
        if again or self._waiters:
            self._start_soon()
        elif target.store.running:
            self.changed()

    def _failed(self, error: StoreFailed) -> None:
        self.close()
        self.node.crash(f"commit of {self.target.name}: {error}", error)

    def _done(self, upto: int, began: float, counter: int) -> None:
        self.commits += 1
        self.last_seconds = self.node.now() - began
        target = self.target
        assert upto >= target.last_committed
        target.last_committed = upto
        target.sharing.committed(upto)
        ready: list[tuple[int, int, Callable[[], None]]] = []
        later: list[tuple[int, int, Callable[[], None]]] = []
        waiters = self._waiters
        while waiters and waiters[0][0] <= upto:
            entry = heapq.heappop(waiters)
            (later if entry[1] > counter else ready).append(entry)
        for entry in later:  # came while the batch was sealed: their change may be in the next one
            heapq.heappush(waiters, entry)
        for _, _, callback in ready:
            callback()
        target.after_commit()

    def _say_held(self) -> None:
        self._warned = None
        if self.held and self._waiters:
            self.node.events.emit(
                "commit.waiting", level="warning", target=self.target.name, waiters=len(self._waiters),
                why="commits are held (hold_commits)",
            )  # fmt: skip
