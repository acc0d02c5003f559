"""Messages of the lock manager, and the numbers that travel in them (names and values are Lustre's where it has them).

One handle names a lock, on both sides and for ever: the client's own, chosen before the enqueue is sent and never used
again, as the handle of an open is its xid. So a lock is known as (export, handle) from the first moment: a callback that
overtakes the enqueue's reply finds it, a resent enqueue finds its first lock, a cancel needs no answer first, and a lock
replay has nothing to tell the client anew (in Lustre it must learn the server's new handle).

Intents turn around: not an enqueue that carries an operation, but an operation that carries a lock. `Ride` travels in
the header of any request: what is cancelled before the operation runs and which lock is wanted of what it finds; the
reply's header carries the grants. Open, Lookup, Getattr, Readdir keep their one meaning, transaction, reply record and
replay form; a replay or a reconstructed reply carries no Ride, which is what Lustre's INTENT_ONLY is for.

Source: lustre_idl.h (LDLM_*, LCK_*, MDS_INODELOCK_*), lustre_dlm_flags.h; protocol-facts 5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lustrelite.errors import ProtocolError
from lustrelite.wire.message import BY_OPCODE, CLASS_CALLBACK, CLASS_CLOSE, Spec, message
from lustrelite.wire.session import Empty

# types
PLAIN = 10
EXTENT = 11
FLOCK = 12
IBITS = 13

# modes
EX = 1
PW = 2
PR = 4
CW = 8
CR = 16
NL = 32
GROUP = 64
COS = 128
TXN = 256

# bits of an IBITS lock
LOOKUP = 0x01  # the name leads to this inode
UPDATE = 0x02  # size, times, links; a directory's content
OPEN = 0x04
LAYOUT = 0x08
PERM = 0x10  # mode, owner
XATTR = 0x20
BITS_ALL = 0x3F

# flags, both ways
LOCK_CHANGED = 1 << 0  # reply: mode, extent or resource are not what was asked for
BLOCK_GRANTED = 1 << 1  # reply: it is granted; with REPLAYED: it was
BLOCK_WAIT = 1 << 3  # reply: it waits, a completion will follow; with REPLAYED: it did
AST_SENT = 1 << 5  # reply, completion: somebody waits for it already, give it back when you have used it
REPLAYED = 1 << 8  # with neither BLOCK_GRANTED nor BLOCK_WAIT: the enqueue was never answered
GLIMPSE = 1 << 9  # the lock, or if somebody writes the attributes from him and no lock
REPLACE_EACH = 1 << 10  # readdir-plus: one lock for each entry, with the handles `handle`, `handle` + 1, ...
FLOCK_BSD = 1 << 11  # flock(2), not fcntl(2): the two know nothing of each other
FLOCK_TEST = 1 << 19  # F_GETLK: who would be in the way? (LDLM_FL_TEST_LOCK)
DISCARD_DATA = 1 << 16  # the file is gone: do not write back
NO_TIMEOUT = 1 << 17  # may be held as long as the user likes
BLOCK_NOWAIT = 1 << 18  # EWOULDBLOCK instead of waiting
NO_EXPANSION = 1 << 29  # exactly this extent


class Lvb(NamedTuple):
    """What a lock knows of its object (lock value block)."""

    size: int  # bytes
    blocks: int  # of 512 bytes
    atime: int
    mtime: int
    ctime: int


class Want(NamedTuple):
    """A lock that is asked for, or held (replay)."""

    handle: int  # the client's, never used twice
    type: int
    resource: bytes  # a FID at the MDT, 8 bytes of object id at an OST; b"": what the operation finds
    mode: int  # FLOCK: PR, PW, or NL to unlock
    flags: int
    bits: int  # IBITS
    try_bits: int  # IBITS: also these if they are free
    start: int  # EXTENT, FLOCK: first byte
    end: int  # last byte, OBJECT_EOF for all
    owner: int  # FLOCK: who, on that client; EXTENT with GROUP: the group id
    pid: int  # FLOCK: for F_GETLK


class Granted(NamedTuple):
    """What became of a Want, in a reply or a completion."""

    handle: int
    status: int  # 0, or a negative errno: EWOULDBLOCK, EDEADLK, ...; then there is no lock
    resource: bytes
    mode: int
    flags: int
    bits: int
    start: int
    end: int
    pid: int  # FLOCK_TEST: whose record is in the way
    lvb: Lvb | None


class Ride(NamedTuple):
    """In the header of any request. Cancels are executed first, whether the operation succeeds or not.

    The want is for what the operation finds (its reply's FID), taken in the same turn of the server's loop; it is a
    try: if it would have to wait, the operation is answered without a lock, because what it has found may change.
    """

    cancels: tuple[int, ...]
    want: Want | None


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


class GlimpseReply(NamedTuple):
    """Per lock what its holder knows; None if there is no such lock, or nothing newer than the server has."""

    lvbs: tuple[Lvb | None, ...]


@message(op=106, reply=GlimpseReply, klass=CLASS_CALLBACK)
class GlimpseCallback(NamedTuple):
    """What do you know of the objects under these locks? Keep them.  Source: ldlm_server_glimpse_ast()"""

    handles: tuple[int, ...]


class CallbackHeader(NamedTuple):
    """Every callback. The client answers with (number, status, body) in a CALLBACK_REPLY frame."""

    number: int  # the server's, grows; a resent callback keeps it
    opcode: int
    handle: int  # the export's, from the connect reply: several targets share a link
    conn_cnt: int
    last_committed: int
    body: Any


_CALLBACK_TYPES = (int, int, int, int, int, tuple)
_REPLY_TYPES = (int, int)


def decode_callback(raw: Any) -> tuple[CallbackHeader, Spec]:
    """A callback from its unpacked header; ProtocolError if anything about it is wrong."""
    if type(raw) is not tuple or tuple(map(type, raw)) != _CALLBACK_TYPES:
        raise ProtocolError("not a callback header")
    spec = BY_OPCODE.get(raw[1])
    if spec is None or spec.klass != CLASS_CALLBACK:
        raise ProtocolError(f"opcode {raw[1]} is no callback")
    number, opcode, handle, conn_cnt, last_committed, body = raw
    return CallbackHeader(number, opcode, handle, conn_cnt, last_committed, spec.check(body)), spec


def check_callback_reply(raw: Any) -> tuple[int, int, Any]:
    """(number, status, body) of a callback's reply; the body is checked by the callback's `Spec.check_reply`."""
    if type(raw) is not tuple or len(raw) != 3 or tuple(map(type, raw[:2])) != _REPLY_TYPES:
        raise ProtocolError("not a callback's reply")
    number, status, body = raw
    return number, status, body
