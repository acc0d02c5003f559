"""What travels of locks: in the messages of wire/locks.py and in the header of every other (names and values are Lustre's).

One handle names a lock, on both sides and for ever: the client's own, chosen before the enqueue is sent and never used
again, as the handle of an open is its xid. So a lock is known as (export, handle) from the first moment: a callback
that overtakes the enqueue's reply finds it, a resent enqueue finds its first lock, a cancel needs no answer first, and
a lock replay has nothing to tell the client anew (in Lustre it must learn the server's new handle).

Intents turn around: not an enqueue that carries an operation, but an operation that carries a lock. `Ride` travels in
the header of any request: what is cancelled before the operation runs and which lock is wanted of what it finds; the
reply's header carries the grants. Open, Lookup, Getattr, Readdir keep their one meaning, transaction, reply record and
replay form; a replay or a reconstructed reply carries no Ride, which is what Lustre's INTENT_ONLY is for.

Source: lustre_idl.h (LDLM_*, LCK_*, MDS_INODELOCK_*), lustre_dlm_flags.h; protocol-facts 5.
"""

from __future__ import annotations

from typing import NamedTuple

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
SOLE = 0x40  # nobody else has been told which objects it has
BITS_ALL = 0x7F

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
PROMISED = 1 << 12  # the server has not heard of it yet; with REPLAYED: it goes if anybody else has been there since;
# reply: it counts from when it was promised, nobody was served since
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


UNTOUCHED = Lvb(0, 0, 0, 0, 0)  # of an object to which nobody has ever written


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
    """In the header of any request. Cancels and converts are executed first, whether the operation succeeds or not.

    The want is for what the operation finds (its reply's FID), taken in the same turn of the server's loop; it is a
    try: if it would have to wait, the operation is answered without a lock, because what it has found may change.
    """

    cancels: tuple[int, ...]
    want: Want | None
    converts: tuple[tuple[int, int], ...] = ()  # (handle, drop_bits): of these a part goes
