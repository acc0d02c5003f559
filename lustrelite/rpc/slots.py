"""Reply slots of an import: how many modifying requests may be in flight, and under which tag each of them.

A tag is used again only after its reply has been received: that is how the server knows that it may forget the reply.
Source: obd_get_mod_rpc_slot(), obdclass/genops.c; protocol-facts 3.4
"""

from __future__ import annotations

import asyncio

from lustrelite.tunables import limits


class ModSlots:
    """Tags 1..granted, and one more for a close."""

    def __init__(self) -> None:
        self.granted = limits.mod_rpcs_max
        self._free = list(range(limits.mod_rpcs_max, 0, -1))
        self._taken: dict[int, None] = {}
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._close_tag_busy = False

    def try_take(self, *, close: bool) -> int:
        """A tag, or 0 if all are in use."""
        if self._free:
            tag = self._free.pop()
            self._taken[tag] = None
            return tag
        # One close may go above the limit, else 32 blocked opens could keep the close away that unblocks them (b=3462).
        if close and not self._close_tag_busy:
            self._close_tag_busy = True
            return limits.mod_rpcs_max + 1
        return 0

    async def wait(self) -> None:
        """Return when a tag may be free."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._wake_one()  # it was our turn: somebody else's now
            raise
        finally:
            self._waiters.pop(waiter, None)

    def free(self, tag: int) -> None:
        """The reply under `tag` was received."""
        if tag > limits.mod_rpcs_max:
            self._close_tag_busy = False
        elif tag in self._taken:
            del self._taken[tag]
            if tag <= self.granted:
                self._free.append(tag)
        self._wake_one()

    def _wake_one(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                break

    def wake_all(self) -> None:
        """Whoever waits must look again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def resize(self, granted: int) -> None:
        """The server allows `granted` of them (connect reply). Tags above it are not given out again."""
        granted = max(1, min(granted, limits.mod_rpcs_max))
        if granted > self.granted:
            self._free[:0] = [tag for tag in range(granted, self.granted, -1) if tag not in self._taken]
        elif granted < self.granted:
            self._free = [tag for tag in self._free if tag <= granted]
        self.granted = granted
