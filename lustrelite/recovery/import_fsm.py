"""The client's half of a connection as a state machine: which state follows, and why.

    NEW -> CONNECTING -> FULL                                  first connect
    FULL -> DISCONN -> CONNECTING -> RECOVER -> FULL           the server still knows us: resend only
                       CONNECTING -> REPLAY -> REPLAY_LOCKS -> REPLAY_WAIT -> RECOVER -> FULL    it restarted
                       CONNECTING -> EVICTED -> RECOVER -> FULL                                  it forgot us
    any stage -> DISCONN -> CONNECTING -> the stage reached    the connection broke again, same server instance
    any -> CLOSED                                              unmount; sticky

Source: ptlrpc/import.c; protocol-facts 1.3, 1.4. The states are Lustre's, so is their spelling (DISCONN).
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from lustrelite.tunables import limits
from lustrelite.wire.session import CONNECT_RECONNECT, CONNECT_RECOVERING, CONNECT_REPLAYABLE, ConnectReply


class State(StrEnum):
    """Import states with Lustre's names."""

    CLOSED = "CLOSED"
    NEW = "NEW"
    DISCONN = "DISCONN"
    CONNECTING = "CONNECTING"
    REPLAY = "REPLAY"
    REPLAY_LOCKS = "REPLAY_LOCKS"
    REPLAY_WAIT = "REPLAY_WAIT"
    RECOVER = "RECOVER"
    FULL = "FULL"
    EVICTED = "EVICTED"
    IDLE = "IDLE"


_S = State
_BROKEN = frozenset({_S.DISCONN, _S.CLOSED})
LEGAL: dict[State, frozenset[State]] = {
    _S.CLOSED: frozenset(),
    _S.NEW: frozenset({_S.CONNECTING, _S.CLOSED}),
    _S.DISCONN: frozenset({_S.CONNECTING, _S.CLOSED}),
    _S.CONNECTING: frozenset({_S.FULL, _S.REPLAY, _S.REPLAY_LOCKS, _S.REPLAY_WAIT, _S.RECOVER, _S.EVICTED}) | _BROKEN,
    _S.REPLAY: frozenset({_S.REPLAY_LOCKS}) | _BROKEN,
    _S.REPLAY_LOCKS: frozenset({_S.REPLAY_WAIT}) | _BROKEN,
    _S.REPLAY_WAIT: frozenset({_S.RECOVER}) | _BROKEN,
    _S.RECOVER: frozenset({_S.FULL}) | _BROKEN,
    _S.FULL: frozenset({_S.IDLE}) | _BROKEN,
    _S.EVICTED: frozenset({_S.RECOVER}) | _BROKEN,
    _S.IDLE: frozenset({_S.CONNECTING, _S.CLOSED}),
}

IN_RECOVERY = frozenset({_S.REPLAY, _S.REPLAY_LOCKS, _S.REPLAY_WAIT, _S.RECOVER, _S.EVICTED})


class ImportFsm:
    """State, connection count, generation and handle of one import. Time comes in as an argument."""

    def __init__(self, peer: str, now: float) -> None:
        self.peer = peer
        self.state = _S.NEW
        self.replay_state = _S.REPLAY  # where to go on if the connection breaks during recovery
        self.history: deque[tuple[float, State]] = deque([(now, _S.NEW)], maxlen=limits.state_history_max)
        self.conn_cnt = 0  # of connection attempts, in every request
        self.generation = 1  # requests of an older one must fail, never be resent
        self.handle = 0  # the server's, 0 before the first connect
        self.instance = 0
        self.vbr_failed = False

    def to(self, new: State, now: float) -> None:
        """The one door between states."""
        assert new in LEGAL[self.state], f"{self.peer}: {self.state} -> {new}, was {list(self.history)}"
        self.state = new
        self.history.append((now, new))
        if new is _S.REPLAY_WAIT:
            self.replay_state = _S.REPLAY_LOCKS  # LU-5651
        elif new in (_S.REPLAY, _S.RECOVER, _S.FULL, _S.EVICTED):
            self.replay_state = _S.REPLAY

    def connecting(self, now: float) -> int:
        """A connection attempt begins; returns its number."""
        self.to(_S.CONNECTING, now)
        self.conn_cnt += 1
        return self.conn_cnt

    def lost(self, conn_cnt: int, now: float) -> bool:
        """The connection `conn_cnt` failed (0: whichever).

        False if it is an older one's late news, or already known.
        """
        if self.state in (_S.CLOSED, _S.NEW, _S.DISCONN, _S.IDLE):
            return False
        # A late timeout of the previous connection must not tear this one down, so it names its count.
        if conn_cnt not in (0, self.conn_cnt):
            return False
        self.to(_S.DISCONN, now)
        return True

    def refuses(self, reply: ConnectReply) -> bool:
        """Is this the reply of an older incarnation of the target than one we have talked to (a zombie)?

        A server without client records (MGS) may have been formatted anew, or come from a backup.
        """
        return reply.instance < self.instance and bool(reply.flags & CONNECT_REPLAYABLE)

    def on_connect_reply(self, reply: ConnectReply, now: float) -> State:
        """Adopt what the server says and enter the next state.  Source: ptlrpc_connect_interpret()"""
        assert self.state is _S.CONNECTING and not self.refuses(reply)
        initial = self.handle == 0
        recovering = bool(reply.flags & CONNECT_RECOVERING)
        known = bool(reply.flags & CONNECT_RECONNECT)
        same_handle = reply.handle == self.handle
        new_instance = reply.instance != self.instance
        self.handle = reply.handle
        self.instance = reply.instance
        if initial:
            new = _S.REPLAY if recovering else _S.FULL
        elif known and recovering:
            new = self.replay_state if same_handle and not new_instance else _S.REPLAY
        elif known:
            new = _S.RECOVER if same_handle else _S.EVICTED
        elif recovering:
            new = _S.REPLAY
        elif not reply.flags & CONNECT_REPLAYABLE:
            new = _S.RECOVER  # a server without client records (MGS): there is nothing to lose, resend
        else:
            new = _S.EVICTED
        self.to(new, now)
        return new

    def evicted(self) -> None:
        """What was requested before is void."""
        self.generation += 1
        self.vbr_failed = False
