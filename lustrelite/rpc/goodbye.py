"""Leaving a target in good order: what is cached goes to it, it hears that we leave, and what we did is durable then.

A server to which something is owed (ClientImport.owed: what was acknowledged here, and is not known to be durable there) is
waited for as long as it takes: nobody else could bring it. It may be away, and its recovery wait for others who are dead; a
server that nobody starts is waited for until somebody does, or this process is told to end at once. One to which nothing is
owed is waited for while it answers, rpc_timeout_s at most: it evicts us in its own time.

A Disconnect is answered when all that we did is durable; until then the server says now and then that it is still working.
If the answer gets lost we are unknown at the next connect, and leave once more.
Source: umount waits for dirty pages (truncate_inode_pages); ptlrpc_disconnect_import(), which gives up on a replay
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lustrelite.errors import LinkLost, OpError
from lustrelite.recovery.import_fsm import State
from lustrelite.wire.session import Disconnect

if TYPE_CHECKING:
    from collections.abc import Collection

    from lustrelite.rpc.client_import import ClientImport
    from lustrelite.rpc.node import Node


class Patience:
    """Who waits for targets says so now and then."""

    def __init__(self, node: Node, imports: Collection[ClientImport]) -> None:
        self.imports = imports
        self._node = node
        self._said = node.now()

    def lasts(self) -> bool:
        """Is something owed to one of them?"""
        owed = [imp.target for imp in self.imports if imp.owed]
        now = self._node.now()
        if owed and now - self._said >= self._node.tunables.recovery_time_hard_s:
            self._said = now
            self._node.events.emit(
                "import.awaited", level="warning", target=", ".join(owed),
                message=f"{', '.join(owed)} has not got everything that was written or changed: waiting for it",
            )  # fmt: skip
        return bool(owed)


async def leave(imp: ClientImport, *, patient: bool) -> None:
    """Say goodbye and close the import. Not `patient`: nothing of ours is worth waiting for."""
    if imp.state is State.CLOSED:
        return
    tunables = imp.node.tunables
    began, patience = imp.node.now(), Patience(imp.node, [imp])
    goodbye = imp.node.spawn(_leave(imp, patient=patient), f"leave {imp.target}")
    try:
        while not goodbye.done():
            await asyncio.wait([goodbye], timeout=tunables.rpc_timeout_s)
            if patient and patience.lasts():
                continue
            if imp.state is not State.FULL or imp.node.now() - began >= tunables.recovery_time_hard_s:
                break
        orderly = goodbye.done() and goodbye.result()
    finally:
        goodbye.cancel()
    uncommitted = len(imp.replays.uncommitted)
    imp.stop()
    imp.node.events.emit("import.disconnected", target=imp.target, orderly=orderly)
    if patient and not orderly:
        say_left(imp, uncommitted)


def say_left(imp: ClientImport, uncommitted: int) -> None:
    """It was not waited for until that many changes were durable."""
    if uncommitted:
        imp.node.events.emit(
            "import.left_uncommitted", level="warning", target=imp.target, count=uncommitted,
            message=f"{uncommitted} changes that {imp.target} had answered are lost if it is restarted now",
        )  # fmt: skip


async def _leave(imp: ClientImport, *, patient: bool) -> bool:
    """Was it heard?"""
    if imp.locks is not None:
        await imp.locks.flush_all(cancel=False)
    imp.leaving = True
    await _recovered(imp, patient=patient)
    try:
        while not (orderly := await _say_goodbye(imp)) and patient and imp.replays.uncommitted:
            await imp.wait_full()
    except OpError:
        return False
    return orderly


async def _recovered(imp: ClientImport, *, patient: bool) -> None:
    """Who is there, or has just come back, must hear that we leave: else its recovery waits for us, and all others with it.

    Who seems to be away is tried once more. Who does not know us yet, and was asked, is about to make a record of us.
    """
    if imp.state is State.FULL or (imp.link is None if not imp.fsm.handle else not patient):
        return
    if imp.state is State.DISCONN:
        imp.lost.clear()
        imp.kick.set()
    ends = [imp.node.spawn(end.wait(), f"last recovery of {imp.target}") for end in (imp.full, imp.lost)]
    try:
        await asyncio.wait(ends, timeout=imp.node.tunables.rpc_timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ends:
            task.cancel()


async def _say_goodbye(imp: ClientImport) -> bool:
    """False if the connection is or gets broken, or is silent.  Raises OpError if the answer is an error."""
    if imp.state is not State.FULL:
        return False
    imp.said_goodbye_to = imp.instance
    try:
        await imp.exchange(Disconnect(), timeout_s=imp.node.tunables.rpc_timeout_s)
    except LinkLost:
        return False
    return True
