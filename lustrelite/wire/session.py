"""Messages that every target understands: connect, disconnect, ping, hello, index read."""

from __future__ import annotations

from typing import NamedTuple

from lustrelite.wire.message import CLASS_CONNECT, message

# Connect.flags / ConnectReply.flags (MSG_CONNECT_*)
CONNECT_RECOVERING = 0x1  # reply: the target is in recovery and you take part
CONNECT_RECONNECT = 0x2  # reply: your export is alive
CONNECT_REPLAYABLE = 0x4  # reply: the target supports replay
CONNECT_INITIAL = 0x20  # request: I have no server handle
CONNECT_TRANSNO = 0x100  # request: first_transno is valid

# features (OBD_CONNECT_*), negotiated: the reply is a subset of the request
FEATURE_SERVER = 0x1  # the client is a server (an MDT at an OST): admitted during recovery
FEATURE_MULTIMOD = 0x2  # several modifying RPCs in flight
FEATURE_SOM = 0x4
FEATURE_GRANT = 0x8  # the client keeps dirty data within a grant, and wants one
FEATURES_KNOWN = FEATURE_SERVER | FEATURE_MULTIMOD | FEATURE_GRANT


class Hello(NamedTuple):
    """First frame on every TCP connection, both ways: which link it belongs to. Index 0 is the control connection."""

    link: int  # random, chosen by the connecting side
    index: int  # type: ignore[assignment]  # tuple has a method of that name
    peer: str  # name of the sending process, for messages only
    bulk_connections: int  # from the server: how many bulk connections it accepts


class ConnectReply(NamedTuple):
    """The server's half of a connection (obd_connect_data)."""

    handle: int  # of the export; new for every incarnation of server or export
    flags: int
    features: int
    instance: int  # mount count of the target
    max_mod_rpcs: int
    max_bytes_per_rpc: int
    last_xid: int  # highest xid the server has on record for this UUID: number new requests above it
    index: int  # type: ignore[assignment]
    recovery_left_ms: int
    lease_ms: int = 0  # how long after a request the client may trust its locks if it was answered
    grant: int = 0  # OST: bytes the client may cache dirty, all in all


@message(op=8, reply=ConnectReply, klass=CLASS_CONNECT)
class Connect(NamedTuple):
    """Connect or reconnect `client` to the target `target`.

    Errors: ENODEV no such target here (try another NID), EBUSY in recovery and you are new (same NID, later),
    EALREADY an older or a racing attempt, EAGAIN not ready.  Source: target_handle_connect(), ldlm/ldlm_lib.c
    """

    target: str  # its UUID
    client: str  # UUID, new for each mount; stable for a server
    incarnation: int  # grows with each start of the client: the same UUID with a new one is a restarted client
    handle: int  # the export handle held from before, 0 if none
    flags: int
    first_transno: int  # lowest transno to replay, with CONNECT_TRANSNO
    last_transno: int  # highest seen
    waited_ms: int  # how long requests had waited when the client noticed that the server is away (30.2.5)
    features: int
    nid: str  # where the client says it is: for messages and `evict_client nid:`
    grant: int  # OST: bytes of grant the client has, dirty data included


class Empty(NamedTuple):
    """A reply that says nothing but its header."""


@message(op=9, reply=Empty, klass=CLASS_CONNECT)
class Disconnect(NamedTuple):
    """The client leaves in good order: its record is removed."""


@message(op=400, reply=Empty, klass=CLASS_CONNECT)
class Ping(NamedTuple):
    """Are you there; and, with REQ_REPLAY_DONE | LOCK_REPLAY_DONE in the header, the end of replay."""


class IndexPage(NamedTuple):
    """Rows of one table in key order."""

    rows: tuple[tuple[bytes, bytes], ...]
    more: bool


@message(op=403, reply=IndexPage)
class IndexRead(NamedTuple):
    """Raw rows of table `table` after key `after` (b"" from the start), at most `count`: fsck of a running system.

    Errors: EPERM unless root, ENOENT no such table.  Source: OBD_IDX_READ
    """

    table: str
    after: bytes
    count: int  # type: ignore[assignment]
