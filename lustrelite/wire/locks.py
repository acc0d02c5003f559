"""Messages of the lock manager: enqueue, convert, cancel, and the three callbacks. What a lock is: wire/ldlm.py.

Source: ldlm/ldlm_lockd.c; protocol-facts 5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lustrelite.errors import ProtocolError
from lustrelite.wire.ldlm import Granted, Lvb, Want
from lustrelite.wire.message import BY_OPCODE, CLASS_CALLBACK, CLASS_CLOSE, Spec, message
from lustrelite.wire.session import Empty


class EnqueueReply(NamedTuple):
    """One for each want, in their order."""

    granted: tuple[Granted, ...]


class Statuses(NamedTuple):
    """How it went, for each."""

    statuses: tuple[int, ...]


@message(op=101, reply=EnqueueReply)
class Enqueue(NamedTuple):
    """Take locks, several at once (statahead, batched glimpse, replay); each stands for itself.

    Not a mutation: nothing durable. Answered at once; a want that waits has BLOCK_WAIT and a completion follows.
    Errors: EINVAL a type or range that cannot be. In Granted: EWOULDBLOCK, EDEADLK, ENOENT no such object.
    Source: ldlm_handle_enqueue(), ldlm/ldlm_lockd.c
    """

    wants: tuple[Want, ...]
    cancels: tuple[int, ...]


@message(op=102, reply=Empty, klass=CLASS_CLOSE)
class Convert(NamedTuple):
    """Give back `drop_bits` of each IBITS lock, keep the rest.  Source: ldlm_handle_convert()"""

    locks: tuple[tuple[int, int], ...]  # (handle, drop_bits)


@message(op=103, reply=Empty, klass=CLASS_CLOSE)
class Cancel(NamedTuple):
    """Give back locks, many at once. One that is not known is no error: its cancel was sent twice.

    Sent when what was cached under them has been written back.  Source: ldlm_handle_cancel()
    """

    handles: tuple[int, ...]


def locks_of(body: Any) -> tuple[int, ...]:
    """Handles of the locks under which a request works, as its client says."""
    lock = getattr(body, "lock", None)
    if lock is None:
        under: tuple[int, ...] = getattr(body, "under", ())
        return under
    return (lock,) if lock else ()


# server -> client, in CALLBACK frames


class Ask(NamedTuple):
    """One lock that somebody waits for, and what he wants of it, so that it may be converted instead of cancelled."""

    handle: int
    flags: int  # DISCARD_DATA
    mode: int
    bits: int
    start: int
    end: int


@message(op=104, reply=Statuses, klass=CLASS_CALLBACK)
class BlockingCallback(NamedTuple):
    """Give these back. Answered at once, before anything is written back.

    Statuses: 0, or -EINVAL no such lock (given back already).  Source: ldlm_server_blocking_ast()
    """

    asks: tuple[Ask, ...]


@message(op=105, reply=Statuses, klass=CLASS_CALLBACK)
class CompletionCallback(NamedTuple):
    """Waiting locks are granted, or refused after all (EDEADLK).  Source: ldlm_server_completion_ast()"""

    granted: tuple[Granted, ...]


class Known(NamedTuple):
    """What the holder of a lock knows of the object."""

    lvb: Lvb
    # XID of a truncation that it has sent and not heard of, or of the Write with which the lock goes, or 0: once that is
    # executed, `lvb` is old (others may have had locks since, if the answer was lost with the server)
    cut: int


class GlimpseReply(NamedTuple):
    """Per lock what its holder knows; None if there is no such lock, or nothing newer than the server has."""

    known: tuple[Known | None, ...]


@message(op=106, reply=GlimpseReply, klass=CLASS_CALLBACK)
class GlimpseCallback(NamedTuple):
    """What do you know of the objects under these locks? Keep them.  Source: ldlm_server_glimpse_ast()"""

    handles: tuple[int, ...]


class CallbackHeader(NamedTuple):
    """Every callback. The client answers with (number, handle, status, body) in a CALLBACK_REPLY frame."""

    number: int  # 1, 2, 3, ... of each export; a resent callback keeps it
    opcode: int
    handle: int  # the export's, from the connect reply: several targets share a link
    conn_cnt: int
    last_committed: int
    body: Any


_CALLBACK_TYPES = (int, int, int, int, int, tuple)
_REPLY_TYPES = (int, int, int)


def decode_callback(raw: Any) -> tuple[CallbackHeader, Spec]:
    """A callback from its unpacked header; ProtocolError if anything about it is wrong."""
    if type(raw) is not tuple or tuple(map(type, raw)) != _CALLBACK_TYPES:
        raise ProtocolError("not a callback header")
    spec = BY_OPCODE.get(raw[1])
    if spec is None or spec.klass != CLASS_CALLBACK:
        raise ProtocolError(f"opcode {raw[1]} is no callback")
    number, opcode, handle, conn_cnt, last_committed, body = raw
    return CallbackHeader(number, opcode, handle, conn_cnt, last_committed, spec.check(body)), spec


def check_callback_reply(raw: Any) -> tuple[int, int, int, Any]:
    """(number, handle, status, body) of a callback's reply; the body is checked by the callback's `Spec.check_reply`."""
    if type(raw) is not tuple or len(raw) != 4 or tuple(map(type, raw[:3])) != _REPLY_TYPES:
        raise ProtocolError("not a callback's reply")
    number, handle, status, body = raw
    return number, handle, status, body
