"""The server's recovery: whom to wait for, whose replay is next, when to stop waiting.

    WAITING   nobody has tried to connect: wait for ever
    GATHER    until every known client is back, or the timer throws out those that are not
    REQUESTS  replays strictly by transno over all clients; a gap is passed when every client that still replays has
              one queued (one in flight per client), so nobody can fill it: version checks decide then
    LOCKS     lock replays, first come first served
    FINAL     everybody said so: answer all final pings
    COMPLETE

The timer starts with the first attempt, known client or not. When it expires, only those are evicted that contribute
nothing in this stage, and the wait goes on; at the hard limit everybody unfinished goes. GATHER is drawn out no further than
leaves soft_s for each of REQUESTS and LOCKS, or the dead would take those along who wait for them; so hard_s should be three
times soft_s or more.
Counts are sizes of the sets below, never counters of their own (LU-1166, LU-2397).
Source: target_recovery_thread(), ldlm/ldlm_lib.c; protocol-facts 3.5, 3.6; chapter 30.2.5 to 30.2.7.
"""

from __future__ import annotations

import bisect
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

I = TypeVar("I")  # noqa: E741  an item: the server's call object


class Stage(StrEnum):
    """Where recovery is."""

    WAITING = "WAITING_FOR_CLIENTS"
    GATHER = "GATHER"
    REQUESTS = "REQUESTS"
    LOCKS = "LOCKS"
    FINAL = "FINAL"
    COMPLETE = "COMPLETE"


class Queued(NamedTuple, Generic[I]):
    """A replay in the queue."""

    transno: int
    client: str
    item: I


class Decision(NamedTuple, Generic[I]):
    """What to do next: one of execute, evict, finish; or wait until `wake` (None: for an event)."""

    execute: I | None = None
    evict: tuple[str, ...] = ()
    why: str = ""
    gap: tuple[int, int] | None = None  # (expected, found): passed on the way to `execute`
    finish: bool = False
    wake: float | None = None


class Window(Generic[I]):
    """The recovery of one target. `clients` are the UUIDs on record at boot."""

    def __init__(self, clients: list[str], last_committed: int, soft_s: float, hard_s: float) -> None:
        assert clients, "no clients, no recovery"
        self.max_clients = len(clients)
        self.stage = Stage.WAITING
        self.soft_s = soft_s
        self.hard_s = hard_s
        self.next_transno = last_committed + 1
        self.missing: dict[str, None] = dict.fromkeys(clients)  # not connected yet
        self.replaying: dict[str, None] = {}  # connected, has not said that its requests are done
        self.locking: dict[str, None] = {}  # connected, has not said that its locks are done
        self.final: dict[str, I] = {}  # the final ping of each
        self.evicted: dict[str, None] = {}
        self.vbr_failed: dict[str, None] = {}
        self.queue: list[Queued[I]] = []  # by transno
        self.lock_queue: list[tuple[str, I]] = []
        self.started_at: float | None = None  # of the timer
        self.deadline = 0.0
        self.aborted = False
        self.replayed = 0
        self.gaps = 0

    # what happens -----------------------------------------------------------------------------------------------

    def attempt(self, now: float) -> None:
        """Somebody tries to connect: the timer starts.  Source: check_and_start_recovery_timer()"""
        if self.started_at is None:
            self.started_at = now
            self.deadline = now + self.soft_s
            self.stage = Stage.GATHER

    def connected(self, client: str, waited_s: float, now: float) -> None:
        """A known client is back (perhaps again) and may replay; it took `waited_s` to notice that we were away (30.2.5)."""
        self.attempt(now)
        # A client that comes again and again must not keep the others waiting for one that is dead.
        if client in self.missing or not self.missing:
            self.extend(now, 2 * waited_s)
        if client in self.missing:
            del self.missing[client]
            self.replaying[client] = None
            self.locking[client] = None

    def extend(self, now: float, by_s: float) -> None:
        """Somebody needs `by_s` more from now; never past the limit of the stage."""
        if self.started_at is not None:
            most_s = max(self.soft_s, self.hard_s - 2 * self.soft_s) if self.missing else self.hard_s
            self.deadline = max(self.deadline, min(now + by_s, self.started_at + most_s))

    def enqueue(self, client: str, transno: int, item: I) -> I | None:
        """Queue a replay. A second copy of one replaces the first, which is returned."""
        place = bisect.bisect_left(self.queue, transno, key=lambda q: q.transno)
        if place < len(self.queue) and self.queue[place].transno == transno:
            old = self.queue[place]
            if old.client != client:
                return item  # two clients, one transno: the later is dropped
            self.queue[place] = Queued(transno, client, item)
            return old.item
        self.queue.insert(place, Queued(transno, client, item))
        return None

    def enqueue_locks(self, client: str, item: I) -> None:
        """Queue a lock replay: the client has no more requests to replay."""
        self.requests_done(client)
        self.lock_queue.append((client, item))

    def requests_done(self, client: str) -> None:
        """The client has no more requests to replay."""
        self.replaying.pop(client, None)

    def locks_done(self, client: str, item: I) -> I | None:
        """The client's final ping, whose answer waits for everybody's; an earlier one is returned (LU-7836)."""
        self.requests_done(client)
        self.locking.pop(client, None)
        old = self.final.get(client)
        self.final[client] = item
        return old

    def gone(self, client: str) -> list[I]:
        """The client was evicted or left: returns its queued items, which nobody will answer."""
        known = client in self.missing or client in self.replaying or client in self.locking or client in self.final
        for group in (self.missing, self.replaying, self.locking):
            group.pop(client, None)
        if known:
            self.evicted[client] = None
        return self._take_back(client)

    def restarted(self, client: str) -> list[I]:
        """The client is another process now: what the former one has queued and said, which is returned, is void."""
        if client not in self.missing:
            self.replaying[client] = None
            self.locking[client] = None
        return self._take_back(client)

    def _take_back(self, client: str) -> list[I]:
        self.vbr_failed.pop(client, None)
        items = [q.item for q in self.queue if q.client == client]
        self.queue = [q for q in self.queue if q.client != client]
        items += [item for name, item in self.lock_queue if name == client]
        self.lock_queue = [entry for entry in self.lock_queue if entry[0] != client]
        if client in self.final:
            items.append(self.final.pop(client))
        return items

    def version_mismatch(self, client: str) -> None:
        """A replay of this client did not find what it should: it goes at the end of the stage."""
        self.vbr_failed[client] = None

    def abort(self) -> None:
        """The administrator, or the hard limit: everybody unfinished goes."""
        self.aborted = True

    # what to do -------------------------------------------------------------------------------------------------

    def step(self, now: float) -> Decision[I]:
        """The next decision; call again until it only waits. The caller reports evictions back with `gone`."""
        if self.stage is Stage.COMPLETE:
            return Decision()
        if self.started_at is not None and now >= self.started_at + self.hard_s:
            self.aborted = True
        if self.aborted:
            unfinished = tuple({**self.missing, **self.replaying, **self.locking, **self.vbr_failed})
            self.vbr_failed.clear()  # they may have finished, but what was answered them is not there
            if unfinished:
                return Decision(evict=unfinished, why="recovery aborted")
            self.stage = Stage.FINAL
        if self.stage is Stage.WAITING:
            if self.missing:
                return Decision()
            self.stage = Stage.GATHER
        if self.stage is Stage.GATHER:
            if self.missing:
                return self._wait_or_evict(now, tuple(self.missing), "did not reconnect in time")
            self.stage = Stage.REQUESTS
            self.deadline = max(self.deadline, now + self.soft_s)
        if self.stage is Stage.REQUESTS:
            if self.queue:
                head = self.queue[0]
                if head.transno <= self.next_transno:
                    return self._execute()
                if len(self.queue) >= len(self.replaying):
                    gap = (self.next_transno, head.transno)
                    self.gaps += 1
                    return self._execute(gap)
            if self.replaying:
                queued = {q.client for q in self.queue}
                idle = tuple(c for c in self.replaying if c not in queued)
                return self._wait_or_evict(now, idle, "did not replay in time")
            if self.vbr_failed:
                failed = tuple(self.vbr_failed)
                self.vbr_failed.clear()
                return Decision(evict=failed, why="version mismatch during replay")
            self.stage = Stage.LOCKS
            self.deadline = max(self.deadline, now + self.soft_s)
        if self.stage is Stage.LOCKS:
            if self.lock_queue:
                return Decision(execute=self.lock_queue.pop(0)[1])
            if self.locking:
                return self._wait_or_evict(now, tuple(self.locking), "did not replay its locks in time")
            self.stage = Stage.FINAL
        assert self.stage is Stage.FINAL
        self.stage = Stage.COMPLETE
        return Decision(finish=True)

    def _execute(self, gap: tuple[int, int] | None = None) -> Decision[I]:
        head = self.queue.pop(0)
        self.next_transno = max(self.next_transno, head.transno + 1)
        self.replayed += 1
        return Decision(execute=head.item, gap=gap)

    def _wait_or_evict(self, now: float, clients: tuple[str, ...], why: str) -> Decision[I]:
        assert self.started_at is not None
        end = self.started_at + self.hard_s
        if now < self.deadline:
            return Decision(wake=min(self.deadline, end))
        self.deadline = min(now + self.soft_s, end)
        if not clients:
            return Decision(wake=max(self.deadline, now + 0.001))
        return Decision(evict=clients, why=why)
