"""failover.mode=failout: requests to a target that is away for too long fail, instead of waiting until it is back.

Chosen for a target (`mkfs --param failover.mode=failout`, `llctl conf_param NAME.failover.mode=`) or for a mount
(tunable failover_mode, which has the last word). What was answered is replayed all the same when the target is back;
what was sent and not answered may still be executed then; dirty data that was to be written back meanwhile is lost, and
its writers are told. Source: chapter 30.1.4; "failover.mode" in mkfs.lustre(8)
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from lustrelite.errors import OpError

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport

LOOK_S = 1.0  # how soon a mode that is changed while the target is away counts


class Failout:
    """The clock of one import."""

    def __init__(self, imp: ClientImport) -> None:
        self.imp = imp
        self.of_target = ""  # what the configuration says
        self._over = False
        self._since = imp.node.now()
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    @property
    def wanted(self) -> bool:
        """Is it failout that was chosen?"""
        return (self.imp.node.tunables.failover_mode or self.of_target) == "failout"

    @property
    def refuses(self) -> bool:
        """Is the target away for so long that requests fail?"""
        return self._over and self.wanted

    def error(self) -> OpError:
        """What they fail with."""
        return OpError(errno.EIO, f"{self.imp.target} is away (failover.mode=failout)")

    def state_changed(self, full: bool) -> None:
        """The import is FULL, or is not."""
        if full:
            self.stop()
            self._over = False
        elif self._timer is None:
            self._since = self.imp.node.now()
            self._arm()

    def stop(self) -> None:
        """The clock stands still."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        left = self._since + self.imp.node.tunables.failout_after_s - self.imp.node.now()
        self._timer = asyncio.get_running_loop().call_later(max(left, LOOK_S), self._look)

    def _look(self) -> None:
        imp = self.imp
        if not self._over and self.wanted and imp.node.now() - self._since >= imp.node.tunables.failout_after_s:
            self._over = True
            imp.node.events.emit(
                "import.failed_out", level="warning", target=imp.target,
                message=f"{imp.target} is away for {imp.node.now() - self._since:.0f} s; operations using this service "
                "fail until it is back",
            )  # fmt: skip
            imp.give_up(self.error())
            if imp.locks is not None:
                imp.locks.fail_waiting(self.error())
        self._over = self._over and self.wanted
        self._arm()
