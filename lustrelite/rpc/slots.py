"""Reply slots of an import: how many modifying requests may be in flight, and under which tag each of them.

A tag is used again only after its reply has been received: that is how the server knows that it may forget the reply.
Source: obd_get_mod_rpc_slot(), obdclass/genops.c; protocol-facts 3.4
"""

from __future__ import annotations

import asyncio

from lustrelite.tunables import limits

CLOSE, PROMPT = 1, 2  # whose spare tag: a prompt request waits for nobody


class ModSlots:
    """Tags 1..granted, and spare ones for requests on which those that have the others may wait."""

    def __init__(self) -> None:
        self.granted = limits.mod_rpcs_max
        self._free = list(range(limits.mod_rpcs_max, 0, -1))
        self._taken: dict[int, None] = {}
        self._waiters: dict[asyncio.Future[int], int] = {}  # with the spare tag that each may have
        self._spare_taken: dict[int, None] = {}

    def try_take(self, spare: int = 0) -> int:
        """A tag, or 0 if all are in use. `spare`: a CLOSE, or what is PROMPT, has one more."""
        if self._free:
            tag = self._free.pop()
            self._taken[tag] = None
            return tag
        # Else 32 blocked opens could keep the close away that unblocks them (b=3462).
        tag = limits.mod_rpcs_max + spare
        if spare and tag not in self._spare_taken:
            self._spare_taken[tag] = None
            return tag
        return 0

    async def wait(self, spare: int = 0) -> int:
        """A tag, when it is our turn: whoever comes later gets none before; 0: look again."""
        waiter: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = spare
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.free(waiter.result())  # it was our turn: somebody else's now
            raise
        finally:
            self._waiters.pop(waiter, None)

    def free(self, tag: int) -> None:
        """The reply under `tag` was received."""
        if tag > limits.mod_rpcs_max:
            if tag in self._spare_taken:
                waiter = self._first(tag - limits.mod_rpcs_max)  # all others could not take it
                if waiter is None:
                    del self._spare_taken[tag]
                else:
                    waiter.set_result(tag)
        elif tag in self._taken:
            del self._taken[tag]
            if tag <= self.granted:
                self._free.append(tag)
            self._hand_out()

    def _hand_out(self) -> None:
        while self._free and (waiter := self._first()) is not None:
            waiter.set_result(self.try_take())

    def _first(self, spare: int = 0) -> asyncio.Future[int] | None:
        """The first of all who wait, or of those who may have this spare tag."""
        for waiter, may_have in self._waiters.items():
            if not waiter.done() and (not spare or may_have == spare):
                return waiter
        return None

    def wake_all(self) -> None:
        """Whoever waits must look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(0)

    def resize(self, granted: int) -> None:
        """The server allows `granted` of them (connect reply). Tags above it are not given out again."""
        granted = max(1, min(granted, limits.mod_rpcs_max))
        if granted > self.granted:
            self._free[:0] = [tag for tag in range(granted, self.granted, -1) if tag not in self._taken]
        elif granted < self.granted:
            self._free = [tag for tag in self._free if tag <= granted]
        self.granted = granted
        self._hand_out()
