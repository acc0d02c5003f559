"""After a restart of the server: the client says which locks it has, which it waits for, and which record locks.

Many to a message, several messages on their way; order does not matter, and what is said twice counts once (record
locks: come to the same). One that is refused means that the two ends do not agree any more: connect again, begin again.
Source: ldlm_replay_locks(), ldlm/ldlm_request.c:2982; protocol-facts 5.8
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

from lustrelite.errors import LinkLost, OpError
from lustrelite.wire.ldlm import PROMISED, Want
from lustrelite.wire.locks import Enqueue

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport

WANTS_MAX = 500  # in a message
IN_FLIGHT_MAX = 8


async def replay_locks(imp: ClientImport) -> None:
    """Stage REPLAY_LOCKS of the import.  LinkLost if it has to be begun again."""
    wants = imp.locks.wants_to_replay() if imp.locks is not None else []
    if imp.records is not None:
        wants += imp.records.wants_to_replay()
    if not wants:
        return
    messages = [wants[at : at + WANTS_MAX] for at in range(0, len(wants), WANTS_MAX)]
    failures: list[LinkLost] = []

    async def send() -> None:
        while messages and not failures:
            try:
                await _replay(imp, messages.pop())
            except LinkLost as lost:
                failures.append(lost)

    messages.reverse()
    tasks = [imp.node.spawn(send(), f"lock replay {imp.target}") for _ in messages[:IN_FLIGHT_MAX]]
    try:
        for task in tasks:
            await task
            if failures:
                raise failures[0]
    finally:
        for task in tasks:
            task.cancel()
    if imp.locks is not None:
        imp.locks.promised.replayed([want.handle for want in wants if want.flags & PROMISED])
    imp.node.events.emit("import.locks_replayed", target=imp.target, count=len(wants))


async def _replay(imp: ClientImport, wants: list[Want]) -> None:
    fault = imp.node.faults.hit("client.lock_replay", imp.target)
    if fault is not None:
        if fault.action != "delay":
            raise LinkLost("fault at client.lock_replay")
        await asyncio.sleep(fault.delay_s)
    tunables = imp.node.tunables
    try:
        answer = await imp.exchange(
            Enqueue(tuple(wants), ()), timeout_s=tunables.replay_timeout_s, resend_s=tunables.rpc_timeout_s
        )
    except OpError as error:
        raise LinkLost(f"replay of locks: {error}") from None
    statuses = [granted.status for granted in answer.reply.granted if granted.status]
    if statuses or len(answer.reply.granted) != len(wants):
        code = errno.errorcode.get(-statuses[0], str(statuses[0])) if statuses else "not all answered"
        raise LinkLost(f"replay of locks: {code}")
