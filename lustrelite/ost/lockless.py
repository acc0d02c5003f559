"""I/O without a lock of the client: the OST takes one of its own for as long as it lasts.

A mount that does not cache asks for no locks, and others may cache what it reads and writes. So the target holds a lock
of its own on the range meanwhile: writers give theirs back first, with their data, and nobody gets a new one before the
I/O is over. What is done in one turn needs no lock, only that nobody holds one.
Source: OBD_BRW_SRVLOCK, tgt_brw_lock(), target/tgt_handler.c
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lustrelite.ldlm.local_locks import LocalLock
from lustrelite.ldlm.policy import EOF
from lustrelite.wire.ldlm import EXTENT, GLIMPSE, PR, Granted, Want
from lustrelite.wire.ost import resource_of

if TYPE_CHECKING:
    from lustrelite.ost.ost import Ost
    from lustrelite.rpc.export import Call


def in_the_way(ost: Ost, oid: int, start: int, end: int, mode: int) -> bool:
    """Does a client hold a lock that [start, end) must not be read (PR) or changed (PW) beside?

    EINPROGRESS: or may it say so in a moment?
    """
    ost.promised.give_way(oid)
    return start < end and ost.namespace.local.extent_busy(resource_of(oid), start, end - 1, mode)


async def take(ost: Ost, oid: int, start: int, end: int, mode: int) -> list[LocalLock]:
    """A lock of the target itself on [start, end), when everybody has given back what is in the way. Release it.

    EINPROGRESS: as for `in_the_way`
    """
    ost.promised.give_way(oid)
    if start >= end:
        return []
    return await ost.namespace.local.wait_extent(resource_of(oid), start, min(end - 1, EOF), mode)


def glimpse(ost: Ost, call: Call, oid: int, answer: Callable[[Granted], None]) -> None:
    """Ask those who write to an object what they know; `answer` is called with an LVB (or without: it is gone)."""
    ost.last_glimpse += 1
    handle = ost.last_glimpse

    def answered(granted: Granted) -> None:
        ost.namespace.cancel(call.export, (handle,))
        answer(granted)

    want = Want(handle, EXTENT, resource_of(oid), PR, GLIMPSE, 0, 0, 0, EOF, 0, 0)
    ost.namespace.glimpse(call.export, want, answered)
