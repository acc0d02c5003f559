"""What a server tells this client unasked, and how long the client may believe that it would have been told.

Callbacks are numbered 1, 2, 3, ... by the server, per export. Each is answered at once and takes effect once; a second
copy is answered again. One that is not for the present connection is ignored: the server sends it again over that one.

The lease. A client that hears nothing cannot tell silence from eviction, so it believes in its locks only until
`ClientImport.lease_until`: when a request was sent that was answered, plus what the server allows
(ConnectReply.lease_ms, less than a lock's deadline). The answer counts only if every callback up to its `callback` has
been seen: whoever was asked for a lock at T has a deadline after T, and until he sees the callback no request sent
after T renews his lease. The requests of recovery do not count: at its end a client may be evicted without a deadline.
Source: ldlm_callback_handler(), ldlm/ldlm_lockd.c; docs/locks.md. The lease is ours: Lustre trusts its timeouts.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, Protocol

from lustrelite.errors import OpError
from lustrelite.wire import frame
from lustrelite.wire.ldlm import Granted, Want
from lustrelite.wire.locks import (
    BlockingCallback,
    CallbackHeader,
    CompletionCallback,
    GlimpseCallback,
    GlimpseReply,
    Statuses,
)
from lustrelite.wire.message import Spec, pack

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport
    from lustrelite.rpc.links import ClientLink

NO_LOCK = -errno.EINVAL


class RecordLocks(Protocol):
    """Record locks (client/flocks.py): no cache, but they wait and are replayed like locks."""

    def completed(self, granted: Granted) -> int:
        """A waiting request was granted, or refused. 0, or -EINVAL."""

    def wants_to_replay(self) -> list[Want]:
        """What is held and waited for."""

    def lost_all(self, error: OpError | None = None) -> None:
        """Evicted, or closed."""


class CallbacksReceived:
    """Of one import."""

    def __init__(self, imp: ClientImport) -> None:
        self.imp = imp
        self.seen = 0  # every number up to it was received
        self._beyond: dict[int, None] = {}  # received above it

    def restart(self) -> None:
        """Another export: its numbers begin anew."""
        self.seen = 0
        self._beyond.clear()

    def received(self, link: ClientLink, header: CallbackHeader, spec: Spec) -> None:
        """A callback to this import's export, over its present connection."""
        faults = self.imp.node.faults
        if faults.any:
            fault = faults.message("receive", spec.name, self.imp.target)
            if fault is not None:
                if fault.action == "delay":
                    asyncio.get_running_loop().call_later(fault.delay_s, self._received, link, header)
                return
        self._received(link, header)

    def _received(self, link: ClientLink, header: CallbackHeader) -> None:
        if self.imp.link is not link or header.conn_cnt != self.imp.fsm.conn_cnt:
            return
        number = header.number
        again = number <= self.seen or number in self._beyond
        if not again:
            self._beyond[number] = None
            while self.seen + 1 in self._beyond:
                self.seen += 1
                del self._beyond[self.seen]
        answer = self._execute(header.body, again)
        if link.link is not None:
            link.link.send(frame.CALLBACK_REPLY, pack((number, header.handle, 0, answer)))

    def _execute(self, body: Any, again: bool) -> Any:
        locks, records = self.imp.locks, self.imp.records
        if isinstance(body, BlockingCallback):
            return Statuses(tuple(NO_LOCK if locks is None else locks.blocked(ask, again) for ask in body.asks))
        if isinstance(body, GlimpseCallback):
            return GlimpseReply(tuple(None if locks is None else locks.glimpsed(handle) for handle in body.handles))
        assert isinstance(body, CompletionCallback)
        statuses = []
        for granted in body.granted:
            status = 0 if again else NO_LOCK
            if not again and locks is not None:
                status = locks.completed(granted)
            if not again and status and records is not None:
                status = records.completed(granted)
            statuses.append(status)
        return Statuses(tuple(statuses))
