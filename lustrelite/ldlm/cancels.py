"""Locks on their way back to one server: what is given up in one turn of the loop travels together.

Ordinary requests: they wait through a recovery, and a server that has restarted meanwhile knows nothing of the locks
and says so to nobody. One that was evicted, or is closed, has nothing to give back.
Source: ldlm_cli_cancel_list(), ldlm/ldlm_request.c; protocol-facts 5.4
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from lustrelite.errors import OpError
from lustrelite.wire.locks import Cancel, Convert

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport

CANCELS_MAX = 5000  # in one message


class Cancels:
    """Of one import. The tasks of its lock cache are kept here, too, so that one can wait until all is given back."""

    def __init__(self, imp: ClientImport) -> None:
        self.imp = imp
        self._handles: list[int] = []
        self._converts: list[tuple[int, int]] = []
        self.silent = False  # send nothing: a goodbye follows, which the server takes for all
        self._scheduled = False
        self._tasks: dict[asyncio.Task[None], None] = {}

    def add(self, handles: Iterable[int]) -> None:
        """These locks go."""
        self._handles += handles
        self._send_soon()

    def convert(self, handle: int, drop_bits: int) -> None:
        """These bits of the lock go."""
        self._converts.append((handle, drop_bits))
        self._send_soon()

    def forget(self) -> None:
        """Evicted: the server has none of our locks."""
        self._handles.clear()
        self._converts.clear()

    async def idle(self) -> None:
        """Return when nothing runs and everything was sent and answered."""
        while self._tasks or self._scheduled:
            if self._tasks:
                await asyncio.wait(list(self._tasks))
            else:
                await asyncio.sleep(0)

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run something that `idle` waits for."""
        task = self.imp.node.spawn(coro, f"{name} {self.imp.target}")
        self._tasks[task] = None
        task.add_done_callback(lambda ended: self._tasks.pop(ended, None))
        return task

    def _send_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        converts, self._converts = self._converts, []
        handles, self._handles = self._handles, []
        if self.imp.node.dead or self.silent:
            return
        if converts:
            self.spawn(self._tell(Convert(tuple(converts))), "convert")
        for at in range(0, len(handles), CANCELS_MAX):
            self.spawn(self._tell(Cancel(tuple(handles[at : at + CANCELS_MAX]))), "cancel")

    async def _tell(self, body: Cancel | Convert) -> None:
        try:
            await self.imp.call(body)
        except OpError:
            pass
