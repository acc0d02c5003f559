"""By when a client has to give back a lock that it was asked for: one timer for all locks of a target.

A deadline runs from the first asking on, link or no link. It is put off when the client has answered, when it is asked
anew after a reconnect (LU-5520), and by work under the lock; not by repeating the question. Who lets it pass is evicted.
Source: waiting_locks_callback(), ldlm_bl_timeout(), ldlm/ldlm_lockd.c; protocol-facts 5.6
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lustrelite.ldlm.lock import Lock, LockState
from lustrelite.ldlm.table import LockTable
from lustrelite.wire.locks import locks_of

if TYPE_CHECKING:
    from lustrelite.rpc.callbacks import Callbacks
    from lustrelite.rpc.node import Node

STOOD_STILL_S = 1.0  # a timer that comes this late: not the clients were silent, this process did not run


class Deadlines:
    """Those of the locks in `table`; `passed` is called with each lock that is late."""

    def __init__(self, node: Node, table: LockTable, passed: Callable[[Lock], None]) -> None:
        self.lease_told_s = 0.0  # the longest lease that a client was promised
        self._node = node
        self._table = table
        self._passed = passed
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # uvloop's handle of a time that is past does not say it

    def limit(self, owner: Any) -> float:
        """How long a client may take to give back a lock: more if it usually takes long.  Source: ldlm_bl_timeout()"""
        tunables = self._node.tunables
        limit = max(tunables.lock_callback_s, self.lease_told_s + tunables.lock_lease_margin_s)
        callbacks: Callbacks | None = owner.callbacks
        return limit if callbacks is None else max(limit, min(1.5 * callbacks.measured_s, limit + tunables.at_max_s))

    def measure(self, lock: Lock) -> None:
        """`lock` comes back: how long did it take since it was asked for, or since it was last worked under?"""
        owner: Any = lock.owner
        callbacks: Callbacks | None = owner.callbacks
        if lock.deadline is not None and callbacks is not None:
            took = max(0.0, self.limit(owner) - (lock.deadline - self._node.now()))
            callbacks.measured_s = max(took, 0.9 * callbacks.measured_s)

    def start(self, lock: Lock) -> None:
        """`lock` is asked for, from now on."""
        self._table.asked(lock, self._node.now() + self.limit(lock.owner))
        first = self._table.next_deadline()
        if first is not None and (self._timer is None or self._timer_at > first):
            self._set_timer(first)

    def prolong(self, lock: Lock) -> None:
        """Its owner works under the lock."""
        if lock.deadline is not None:
            self._table.prolong(lock.owner, lock.handle, self._node.now() + self.limit(lock.owner))

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._look, when)

    def _look(self, when: float) -> None:
        self._timer = None
        now = self._node.now()
        if self._node.dead:
            return
        if now > when + STOOD_STILL_S:  # what they said meanwhile is yet to be read
            self._set_timer(now + STOOD_STILL_S / 2)
            return
        for lock in self._table.expired(now):
            if lock.state is LockState.GRANTED and lock.asked:
                owner: Any = lock.owner
                if any(lock.handle in locks_of(call.body) for call in owner.calls_in_progress()):
                    self._table.arm(lock, now + self.limit(owner))  # we are at work under it: ldlm_lock_busy()
                else:
                    self._passed(lock)
        first = self._table.next_deadline()
        if first is not None and self._timer is None:
            self._set_timer(first)

    def close(self) -> None:
        """The timer fires no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
