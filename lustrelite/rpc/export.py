"""The server's end of one (client, target) connection, and one request being served.

Source: struct obd_export, include/lustre_export.h; struct ptlrpc_request, include/lustre_net.h
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lustrelite.rpc.node import Link
from lustrelite.wire import frame
from lustrelite.wire.ldlm import Granted
from lustrelite.wire.message import RequestHeader, Spec, pack

if TYPE_CHECKING:
    from lustrelite.target.target import Target


class Export:
    """What a target knows of one client. Made at its first connect, or from its record when the target starts."""

    __slots__ = (
        "client_index", "conn_cnt", "failed", "features", "generation", "handle", "in_progress", "in_recovery",
        "incarnation", "last_callback", "last_request", "last_xid", "link", "nid", "opens", "record_durable", "replay_done", "replies",
        "target", "uuid", "vbr_failed",
    )  # fmt: skip

    def __init__(self, target: Target, uuid: str, client_index: int, incarnation: int, generation: int, now: float):
        self.target = target
        self.uuid = uuid
        self.nid = ""
        self.client_index = client_index  # its place in last_rcvd
        self.incarnation = incarnation
        self.generation = generation  # ties reply records to this use of the place
        self.handle = target.node.random.getrandbits(63) | 1
        self.conn_cnt = 0
        self.link: ServerLink | None = None
        self.features = 0
        self.failed = False  # evicted or gone
        self.in_recovery = False  # connected in this recovery
        self.replay_done = False
        self.vbr_failed = False
        self.last_request = now
        self.last_xid = 0  # everything up to it has been answered and received
        self.replies: dict[int, Any] = {}  # tag -> ReplyRecord
        self.opens: dict[int, Any] = {}  # open handle (xid of the open) -> what the target keeps of an open file
        self.in_progress: dict[int, Call] = {}  # xid -> call that is waiting for something
        self.record_durable = False
        self.last_callback = 0  # number of the last callback sent to it

    @property
    def connected(self) -> bool:
        """Has a living link."""
        return self.link is not None

    def find_reply(self, xid: int) -> Any:
        """The reply record of `xid`, or None. There are few: one per slot."""
        for record in self.replies.values():
            if record.xid == xid:
                return record
        return None

    def __repr__(self) -> str:
        return f"Export({self.target.name}, {self.uuid}, #{self.client_index})"


class ServerLink:
    """A link from a client process, with the exports on it."""

    __slots__ = ("exports", "link", "peer")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.peer = link.peer
        self.exports: list[Export] = []  # one or two: a dict would be three times the size


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
        self.on_reply: Any = None
        self.granted: tuple[Granted, ...] = ()  # locks that travel in the reply's header

    def reply(
        self, status: int, body: Any, *, transno: int = 0, pre_versions: tuple[int, ...] = (), last_committed: int = 0,
        instance: int = 0, estimate_ms: int = 0,
    ) -> None:  # fmt: skip
        """Send the reply, once. Where it goes: the link of the newest copy of the request."""
        if self.answered:
            return
        self.answered = True
        if self.on_reply is not None:
            self.on_reply(self)
        target = self.target
        if target is not None and target.node.faults.any and self._faulty(
            status, body, transno, pre_versions, last_committed, instance
        ):
            return
        self.link.link.send(
            frame.REPLY,
            pack(
                (  # a ReplyHeader, field by field
                    self.xid, status, self.header.flags, transno, last_committed, pre_versions, instance,
                    self.conn_cnt, estimate_ms, self.granted, self.export.last_callback if self.export is not None else 0,
                    body if not status else None,
                )
            ),
            self.reply_bulk if not status else None,
        )

    def _faulty(self, *reply: Any) -> bool:
        fault = self.target.node.faults.message("reply", self.spec.name, self.export.uuid if self.export else "")
        if fault is None:
            return False
        if fault.action == "delay":
            asyncio.get_running_loop().call_later(fault.delay_s, self._reply_late, *reply)
        return fault.action in ("drop", "delay")

    def _reply_late(self, status: int, body: Any, transno: int, pre: tuple[int, ...], last: int, instance: int) -> None:
        header = (self.xid, status, self.header.flags, transno, last, pre, instance, self.conn_cnt, 0, (), 0, body)
        self.link.link.send(frame.REPLY, pack(header), self.reply_bulk if not status else None)

    def still_working(self) -> None:
        """The client asked again: tell it that it will be answered, so that it keeps the connection."""
        header = (self.xid, 0, self.header.flags, 0, 0, (), 0, self.conn_cnt, 0, (), 0, None)
        self.link.link.send(frame.EARLY_REPLY, pack(header))

    def overdue(self, now: float) -> bool:
        """Has the client given up waiting? It asks again long before, as long as it wants the answer."""
        return now > self.arrived + 2 * self.header.timeout_ms / 1000

    @property
    def still_valid(self) -> bool:
        """False if the client was evicted while the call waited: then nothing may be changed for it."""
        return not self.export.failed
