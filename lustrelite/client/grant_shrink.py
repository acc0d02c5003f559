"""Who does not write gives back what space an OST has promised him, so that others may write.

A client that moved nothing for an interval keeps enough for one RPC; the rest is asked for again with the first writes.
What goes back is taken off here at once, before the OST hears of it, so that it is never used twice; if the connection
breaks on the way, the next Connect says what is left.
Source: osc_grant_work_handler(), osc_should_shrink_grant(), osc/osc_request.c; protocol-facts 7.4
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lustrelite.client.grant import Grant
from lustrelite.client.tasks import Tasks
from lustrelite.wire.ost import GrantShrink

if TYPE_CHECKING:
    from lustrelite.client.osc import Osc


class Shrinker:
    """Looks at the grant of one OST now and then."""

    def __init__(self, osc: Osc, grant: Grant, tasks: Tasks) -> None:
        self.osc = osc
        self.grant = grant
        self.tasks = tasks
        self.tunables = osc.node.tunables
        self._moves = -1  # of the grant, at the last look
        self._timer: asyncio.TimerHandle | None = None
        self.arm()

    def arm(self) -> None:
        """Look again after the interval, as it is now."""
        self.stop()
        self._moves = self.grant.moves
        self._timer = asyncio.get_running_loop().call_later(max(self.tunables.grant_shrink_interval_s, 0.1), self._look)

    def stop(self) -> None:
        """The mount ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        idle = self._moves == self.grant.moves and not self.grant.reserved
        self.arm()
        if idle and self.tunables.grant_shrink:
            self.shrink(self.osc.bytes_max)

    def shrink(self, keep: int) -> None:
        """Give back what is available beyond `keep`, if there is anybody to give it to."""
        connection = self.osc.connection
        amount = self.grant.give_back(keep) if connection else 0
        if amount:
            self.osc.node.events.emit("client.grant_shrunk", target=self.osc.name, amount=amount)
            self.tasks.spawn(self.osc.imp.call(GrantShrink(connection, amount)), "shrink grant")
