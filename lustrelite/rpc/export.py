"""The server's end of one (client, target) connection, and one request being served.

Source: struct obd_export, include/lustre_export.h; struct ptlrpc_request, include/lustre_net.h
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lustrelite.rpc.node import Link
from lustrelite.wire import frame
from lustrelite.wire.ldlm import Granted
from lustrelite.wire.message import RequestHeader, Spec, pack

if TYPE_CHECKING:
    from lustrelite.rpc.callbacks import Callbacks
    from lustrelite.rpc.service import Service
    from lustrelite.target.target import Target


_NONE: Mapping[int, Any] = MappingProxyType({})
HANDLE_BITS = 29  # an int of 28 bytes; a request of another connection is told by its link and conn_cnt as well


class Export:
    """What a target knows of one client. Made at its first connect, or from its record when the target starts."""

    __slots__ = (
        "_flock_answers", "_in_progress", "_opens", "_replies", "callbacks", "client_index", "conn_cnt", "failed", "features", "generation", "handle", "in_recovery",
        "incarnation", "last_callback", "last_request", "last_xid", "link", "nid", "record_durable", "replay_done",
        "target", "uuid", "vbr_failed",
    )  # fmt: skip

    def __init__(self, target: Target, uuid: str, client_index: int, incarnation: int, generation: int, now: float):
        self.target = target
        self.uuid = uuid
        self.nid = ""
        self.client_index = client_index  # its place in last_rcvd
        self.incarnation = incarnation
        self.generation = generation  # ties reply records to this use of the place
        self.handle = target.node.random.getrandbits(HANDLE_BITS) | 1
        self.conn_cnt = 0
        self.link: ServerLink | None = None
        self.features = 0
        self.failed = False  # evicted or gone
        self.in_recovery = False  # connected in this recovery
        self.replay_done = False
        self.vbr_failed = False
        self.last_request = now
        self.last_xid = 0  # everything up to it has been answered and received
        # Most clients have none of these most of the time, and an empty dict is 64 bytes.
        self._replies: dict[int, Any] | None = None
        self._opens: dict[int, Any] | None = None
        self._in_progress: dict[int, Call] | None = None
        self._flock_answers: dict[int, Any] | None = None
        self.record_durable = False
        self.callbacks: Callbacks | None = None  # made when there is a first one
        self.last_callback = 0  # number of the last callback sent to it

    @property
    def connected(self) -> bool:
        """Has a living link."""
        return self.link is not None

    @property
    def replies(self) -> Mapping[int, Any]:
        """Tag -> ReplyRecord."""
        return _NONE if self._replies is None else self._replies

    def keep_reply(self, tag: int, record: Any) -> None:
        """`record` is the newest answer in slot `tag`."""
        if self._replies is None:
            self._replies = {}
        self._replies[tag] = record

    def forget_replies(self) -> None:
        """The client begins anew."""
        self._replies = None

    def flock_answer(self, xid: int) -> Any:
        """What the request for record locks with this xid was answered with, if the client may not know that yet."""
        return self._flock_answers.get(xid) if self._flock_answers is not None else None

    def keep_flock_answer(self, xid: int, reply: Any) -> None:
        """Another copy of the request shall get the same answer: by then the lock may be gone, or free after all."""
        if self._flock_answers is None:
            self._flock_answers = {}
        self._flock_answers[xid] = reply

    def received(self, last_xid: int) -> None:
        """The client has the answers to everything up to `last_xid`."""
        self.last_xid = last_xid
        if self._flock_answers is not None:
            self._flock_answers = {xid: reply for xid, reply in self._flock_answers.items() if xid > last_xid} or None

    @property
    def opens(self) -> Mapping[int, Any]:
        """Open handle (the xid of the open) -> what the target keeps of an open file."""
        return _NONE if self._opens is None else self._opens

    def keep_open(self, handle: int, file: Any) -> None:
        """The client has `file` open as `handle`."""
        if self._opens is None:
            self._opens = {}
        self._opens[handle] = file

    def drop_open(self, handle: int) -> Any:
        """It is closed; returns what was kept of it.  KeyError"""
        if self._opens is None:
            raise KeyError(handle)
        file = self._opens.pop(handle)
        if not self._opens:
            self._opens = None
        return file

    def forget_opens(self) -> None:
        """All are closed."""
        self._opens = None

    def in_progress(self, xid: int) -> Call | None:
        """The call with this xid that waits for something."""
        return self._in_progress.get(xid) if self._in_progress is not None else None

    def calls_in_progress(self) -> list[Call]:
        """All calls that wait for something."""
        return list(self._in_progress.values()) if self._in_progress is not None else []

    def enter(self, call: Call) -> None:
        """`call` waits for something: a second copy of it will find it."""
        if self._in_progress is None:
            self._in_progress = {}
        self._in_progress[call.xid] = call

    def leave(self, call: Call) -> None:
        """`call` is answered or given up (if it is still the one: a later copy may have taken its place)."""
        calls = self._in_progress
        if calls is not None and calls.get(call.xid) is call:
            del calls[call.xid]
            if not calls:
                self._in_progress = None

    def forget_calls(self) -> None:
        """Nothing is in progress any more."""
        self._in_progress = None

    def find_reply(self, xid: int) -> Any:
        """The reply record of `xid`, or None. There are few: one per slot."""
        for record in self.replies.values():
            if record.xid == xid:
                return record
        return None

    def __repr__(self) -> str:
        return f"Export({self.target.name}, {self.uuid}, #{self.client_index})"


class ServerLink:
    """A link from a client process, with the exports on it: the Receiver of what comes over it."""

    __slots__ = ("exports", "link", "lost", "service")

    def __init__(self, service: Service, link: Link) -> None:
        self.service = service
        self.link = link
        self.exports: tuple[Export, ...] = ()  # one or two
        self.lost = False

    @property
    def peer(self) -> str:
        """The client process, for messages."""
        return self.link.peer

    def find(self, handle: int) -> Export | None:
        """The export that is connected over this link under `handle`: a request comes over its export's link."""
        for export in self.exports:
            if export.handle == handle:
                return export
        return None

    def bulk_buffer(self, link: Link, kind: int, header: Any, length: int) -> memoryview:
        """See node.Receiver."""
        return self.service.bulk_buffer(length)

    def frame_received(self, link: Link, kind: int, header: Any, bulk: memoryview | None) -> None:
        """See node.Receiver."""
        if not self.lost:
            self.service.frame_received(self, kind, header, bulk)

    def link_lost(self, link: Link, why: str) -> None:
        """See node.Receiver."""
        if not self.lost:
            self.service.link_lost(self)


class Call:
    """One request being served, from its arrival to its reply."""

    __slots__ = (
        "answered",
        "arrived",
        "body",
        "bulk",
        "conn_cnt",
        "cred",
        "export",
        "granted",
        "header",
        "link",
        "noticed",
        "on_reply",
        "reply_bulk",
        "spec",
        "target",
        "xid",
    )  # fmt: skip

    def __init__(self, link: ServerLink, header: RequestHeader, spec: Spec, bulk: memoryview | None, now: float):
        self.link = link
        self.header = header
        self.spec = spec
        self.body = header.body
        self.xid = header.xid
        self.cred = header.cred
        self.conn_cnt = header.conn_cnt
        self.bulk = bulk
        self.reply_bulk: bytes | bytearray | memoryview | None = None
        self.target: Any = None
        self.export: Export = None  # type: ignore[assignment]  # set by the service for all but connects
        self.answered = False
        self.arrived = now
        self.noticed = now  # when the client last heard that we are at it
        self.on_reply: Any = None
        self.granted: tuple[Granted, ...] = ()  # locks that travel in the reply's header

    def reply(
        self, status: int, body: Any, *, transno: int = 0, pre_versions: tuple[int, ...] = (), last_committed: int = 0,
        instance: int = 0,
    ) -> None:  # fmt: skip
        """Send the reply, once. Where it goes: the link of the newest copy of the request."""
        if self.answered:
            return
        self.answered = True
        if self.on_reply is not None:
            self.on_reply(self)
        target, service = self.target, self.link.service
        header = (  # a ReplyHeader, field by field
            self.xid, status, self.header.flags, transno, last_committed, pre_versions, instance,
            self.conn_cnt, service.estimate.value_ms, self.granted, self.export.last_callback if self.export is not None else 0,
            body if not status else None,
        )  # fmt: skip
        if target is not None and target.node.faults.any and self._faulty(header):
            return
        self._send(header)

    def _send(self, header: tuple[Any, ...]) -> None:
        self.link.link.send(frame.REPLY, pack(header), self.reply_bulk if not header[1] else None)

    def _faulty(self, header: tuple[Any, ...]) -> bool:
        fault = self.target.node.faults.message("reply", self.spec.name, self.export.uuid if self.export else "")
        if fault is None:
            return False
        if fault.action == "delay":
            asyncio.get_running_loop().call_later(fault.delay_s, self._send, header)
        return fault.action in ("drop", "delay")

    def still_working(self) -> None:
        """The client asked again: tell it that it will be answered, so that it keeps the connection."""
        header = (
            self.xid, 0, self.header.flags, 0, 0, (), 0, self.conn_cnt, self.link.service.estimate.value_ms, (), 0, None,
        )  # fmt: skip
        self.link.link.send(frame.EARLY_REPLY, pack(header))

    def overdue(self, now: float) -> bool:
        """Has the client given up waiting?

        As long as it wants the answer it asks again, or is told that it need not.
        """
        return now > max(self.arrived, self.noticed) + 2 * self.header.timeout_ms / 1000

    @property
    def still_valid(self) -> bool:
        """False if the client was evicted while the call waited: then nothing may be changed for it."""
        return not self.export.failed
