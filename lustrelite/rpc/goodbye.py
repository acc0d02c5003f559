"""Leaving a target in good order: what is cached goes to it, it hears that we leave, and what we did is durable then.

A server that is away is waited for as long as something would be lost that was answered already, or is dirty here: nobody
else could bring it. A recovery may take its time, and waits for others who may be dead; a server that nobody starts is
waited for until somebody does, or this process is told to end at once. One that lacks nothing of ours is not waited for:
it evicts us in its own time.
Source: umount waits for dirty pages (truncate_inode_pages); ptlrpc_disconnect_import(), which gives up on a replay
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from lustrelite.errors import LinkLost, OpError
from lustrelite.recovery.import_fsm import State
from lustrelite.wire.session import Disconnect

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport


async def leave(imp: ClientImport, *, patient: bool) -> None:
    """Say goodbye and close the import. Not `patient`: nothing of ours is worth waiting for beyond a recovery's time."""
    orderly = False
    try:
        while True:
            try:
                async with asyncio.timeout(imp.node.tunables.recovery_time_hard_s):
                    orderly = await _leave(imp, patient=patient)
                break
            except TimeoutError:
                if not patient or not imp.lacks:
                    break
                imp.node.events.emit(
                    "import.awaited", level="warning", target=imp.target,
                    message=f"{imp.target} is away and has not got everything that was written: waiting for it",
                )  # fmt: skip
    except OpError:
        pass
    imp.stop()
    imp.node.events.emit("import.disconnected", target=imp.target, orderly=orderly)


async def _leave(imp: ClientImport, *, patient: bool) -> bool:
    if imp.locks is not None:
        await imp.locks.flush_all(cancel=False)
    imp.leaving = True
    await _first_connect_answered(imp)
    while not (orderly := await _say_goodbye(imp)) and patient and imp.replays.uncommitted:
        await imp.wait_full()
    return orderly


async def _first_connect_answered(imp: ClientImport) -> None:
    """A server that is about to make a record of us must hear that we leave: its next recovery would wait for us."""
    if imp.link is None or imp.fsm.handle:
        return  # it was not asked yet, or it was and we know what came of it
    ends = [imp.node.spawn(end.wait(), f"first connect to {imp.target}") for end in (imp.full, imp.lost)]
    try:
        await asyncio.wait(ends, timeout=imp.node.tunables.rpc_timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in ends:
            task.cancel()


async def _say_goodbye(imp: ClientImport) -> bool:
    """False if the connection is or gets broken.  Raises OpError if there is no answer, or it is an error."""
    if imp.state is not State.FULL:
        return False
    timeout_s = imp.node.tunables.rpc_timeout_s
    began = imp.node.now()
    try:
        await imp.exchange(Disconnect(), timeout_s=timeout_s)
    except LinkLost:
        if imp.node.now() - began >= timeout_s:
            raise OpError(errno.ETIMEDOUT) from None
        return False
    return True
