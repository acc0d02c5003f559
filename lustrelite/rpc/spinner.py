"""To look for what comes next for a moment, instead of sleeping: of a loop whose peers answer quickly.

Who sleeps must be woken, by another processor that interrupts this one: 30 to 60 us on a virtual machine, of which the
waker pays a part, and a request that is the only one in flight is a chain of such waits. So after something was sent or
received the loop goes round without waiting, for `spin_us`. If nothing came of that a few times it is done rarely, until
it is worth it again. While threads of ours are at work nothing is done in vain: they need the interpreter.

Whoever else wants the processor gets it (sched_yield). Peers give it back soon; a program that computes keeps it for its
whole time slice, in which whatever comes here has to wait, while who sleeps is woken before such a one. So after that it
sleeps for a while, and for longer if it was no better then. With one processor for all nobody looks: he would be in the way.
"""

from __future__ import annotations

import asyncio
import os
import time

from lustrelite.rpc.workers import Workers
from lustrelite.tunables import Tunables

LUCK_MAX = 16
UNLUCKY_MAX = 64  # chances that are let pass until it is tried once more
KEPT_S = 1e-3  # who keeps the processor for so long computes; a time slice is about 3 ms
REST = 20  # times as long nothing is looked for then
REST_MAX_S = 2.0  # if it is always so: each time twice as long, up to this


class Spinner:
    """Of one loop."""

    def __init__(self, tunables: Tunables, workers: Workers) -> None:
        self.tunables = tunables
        self.workers = workers
        self._alone = len(os.sched_getaffinity(0)) == 1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._until = 0.0
        self._spinning = False
        self._rests_until = 0.0
        self._rest_s = 0.0  # how long it rested last
        self._luck = LUCK_MAX  # how often it was worth it of late
        self._unlucky = 0

    def sent(self) -> None:
        """An answer may come soon."""
        span = self.tunables.spin_us
        now = time.perf_counter()
        if not self._spinning:
            if not span or self._alone or now < self._rests_until or not self._worth_it():
                return
            self._spinning = True
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._look)
        self._until = now + span * 1e-6

    def received(self) -> None:
        """There is something to do, and perhaps soon again."""
        if self._spinning:
            self._luck = min(self._luck + 2, LUCK_MAX)
        self.sent()

    def _worth_it(self) -> bool:
        if self._luck <= 0:
            self._unlucky += 1
            if self._unlucky < UNLUCKY_MAX:
                return False
            self._unlucky, self._luck = 0, 1  # perhaps it is by now
        return True

    def _look(self) -> None:
        now = time.perf_counter()
        if now >= self._until:
            self._spinning = False
            self._luck -= 1
        elif self.workers.busy:
            self._spinning = False
        else:
            os.sched_yield()
            back = time.perf_counter()
            if back - now > KEPT_S:
                self._spinning = False
                again = now < self._rests_until + self._rest_s
                self._rest_s = min(max(2 * self._rest_s if again else 0.0, REST * (back - now)), REST_MAX_S)
                self._rests_until = back + self._rest_s
                return
            assert self._loop is not None
            self._loop.call_soon(self._look)  # so the loop looks what there is, without waiting
