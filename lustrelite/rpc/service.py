"""The server's front door: frames in, calls to targets out. One per process, for all targets it serves.

A request is served inline, in the turn of the loop in which it arrived, unless it has to wait for something. How many
may wait is bounded, with a reserve for what others wait on: connects, pings, closes, cancels, resends and replays
(the lack of it was a livelock in Lustre: b=7034). Above the bound the answer is EBUSY, which means: not executed, send
again later.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any, NamedTuple, Protocol

from lustrelite.errors import OpError, ProtocolError
from lustrelite.ids import Nid
from lustrelite.recovery.adaptive import ServiceEstimate
from lustrelite.rpc.buffers import BufferPool
from lustrelite.rpc.export import Call, Export, ServerLink
from lustrelite.rpc.node import CORRUPT, Link, Listener, Node
from lustrelite.tunables import limits
from lustrelite.wire import frame
from lustrelite.wire.locks import check_callback_reply, locks_of
from lustrelite.wire.message import CLASS_NORMAL, REPLAY, RESENT, decode_request
from lustrelite.wire.session import Connect

NOTICE_TICK_S = 0.25
NOTICE_PART = 0.6  # of the time that the client waits before it asks again
ABSENT_PINGS = 1.5  # without a word from anybody for so many ping intervals: it is not they who are away


class Endpoint(Protocol):
    """A target as the service sees it."""

    name: str
    uuid: str
    service: Any  # the Service, once it serves the target
    exports: dict[str, Export]  # by client uuid
    recovering: bool

    def connect(self, call: Call) -> None:
        """A Connect arrived."""

    def handle(self, call: Call) -> None:
        """A request of a known export arrived."""

    def link_lost(self, export: Export) -> None:
        """The client's link broke; the export lives on."""


class Absence(NamedTuple):
    """For a while nobody was heard: this process stood still, or the network did."""

    since: float  # when somebody was heard last
    over: float  # by then everybody has connected anew
    cut_off: frozenset[Export]  # who had not been heard for as long before it began


class Service:
    """Links, exports and targets of one server process."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.targets: dict[str, Endpoint] = {}  # by uuid
        self.idle: dict[ServerLink, float] = {}  # links without an export, and since when; the others are known by their exports
        self._idle_timer: asyncio.TimerHandle | None = None
        self.listeners: list[Listener] = []
        self.buffers = BufferPool()
        self.waiting: dict[Call, None] = {}  # calls that were not answered in the turn they came in
        self.estimate = ServiceEstimate(node.tunables.at_history_s, node.tunables.at_max_s)
        self._notices: asyncio.TimerHandle | None = None
        self.counts: dict[str, int] = {}
        self.refused = 0
        self.absence: Absence | None = None  # the last one
        self._heard_at = node.now()

    async def listen(self, nid: Nid) -> Nid:
        """Accept links at `nid`; returns the address with its real port."""
        listener = await self.node.network.listen(nid, self._accept)
        self.listeners.append(listener)
        return listener.nid

    def close(self) -> None:
        """Stop listening and drop every link."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for listener in self.listeners:
            listener.close()
        for server_link in dict.fromkeys([*self.idle, *(e.link for t in self.targets.values() for e in t.exports.values() if e.link)]):
            server_link.link.close("server stops")
        self.listeners.clear()

    def add_target(self, target: Endpoint) -> None:
        """Serve `target` from now on."""
        assert target.uuid not in self.targets
        self.targets[target.uuid] = target
        target.service = self

    def remove_target(self, target: Endpoint) -> None:
        """Serve it no longer: its clients get ENODEV and look elsewhere."""
        self.targets.pop(target.uuid, None)
        for export in target.exports.values():
            self.forget(export)

    def admit_export(self, export: Export, link: ServerLink) -> None:
        """`export` is connected over `link` from now on."""
        self.forget(export)
        export.link = link
        if not link.exports:
            self.idle.pop(link, None)
        link.exports += (export,)

    def forget(self, export: Export) -> None:
        """The export has no link any more: its handle is answered ENOTCONN."""
        link, export.link = export.link, None
        if link is not None:
            link.exports = tuple(other for other in link.exports if other is not export)
            if not link.exports and not link.lost:
                self._without_export(link)

    def _without_export(self, link: ServerLink) -> None:
        """Nothing is sent over this link now, so nobody would notice if its other end had gone: it is not kept for ever."""
        self.idle[link] = self.node.now()
        if self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(self.node.tunables.evict_silent_s, self._close_idle)

    def _close_idle(self) -> None:
        self._idle_timer, now = None, self.node.now()
        until = {link: since + self.node.tunables.evict_silent_s for link, since in self.idle.items()}
        for link, end in until.items():
            if end <= now:
                link.link.close("nobody has connected to a target over it")
        left = [end for end in until.values() if end > now]
        if left and not self.node.dead:
            self._idle_timer = asyncio.get_running_loop().call_at(min(left), self._close_idle)

    # receiver ---------------------------------------------------------------------------------------------------

    def _accept(self, link: Link) -> ServerLink:
        server_link = ServerLink(self, link)
        self._without_export(server_link)
        return server_link

    def bulk_buffer(self, length: int) -> memoryview:
        """Write data: much of it goes to memory that direct I/O can take."""
        return self.buffers.take(length) if length > limits.bulk_inline_bytes_max else memoryview(bytearray(length))

    def link_lost(self, server_link: ServerLink) -> None:
        """Every export on the link loses its connection; each client then recovers for itself."""
        server_link.lost = True
        self.idle.pop(server_link, None)
        exports, server_link.exports = server_link.exports, ()
        for export in exports:
            export.link = None
            export.target.link_lost(export)

    def frame_received(self, server_link: ServerLink, kind: int, raw: Any, bulk: memoryview | None) -> None:
        """A request arrived. What breaks the protocol costs its sender the link and nobody else anything."""
        if kind == frame.CALLBACK_REPLY:
            self._callback_answered(server_link, raw)
            return
        try:
            if kind != frame.REQUEST:
                raise ProtocolError(f"frame kind {kind} from a client")
            header, spec = decode_request(raw)
            if bulk is not None and not spec.bulk_in:
                raise ProtocolError(f"{spec.name} carries no bulk")
        except ProtocolError as error:
            self._protocol_error(server_link, error)
            return
        call = Call(server_link, header, spec, bulk, self.node.now())
        self._heard(call.arrived)
        if self.node.faults.any and self._faulty(call):
            return
        self._dispatch(call)

    def _heard(self, now: float) -> None:
        since, self._heard_at = self._heard_at, now
        tunables = self.node.tunables
        limit = ABSENT_PINGS * tunables.ping_interval_s
        if now - since <= limit:
            return
        exports = [export for target in self.targets.values() for export in target.exports.values()]
        cut_off = frozenset(export for export in exports if export.last_request < since - limit)
        last = self.absence
        if last is not None and since < last.over:  # not everybody had come back from that: it goes on
            since, cut_off = last.since, last.cut_off
        elif all(export in cut_off for export in exports):
            return  # there was nobody to hear
        self.absence = Absence(since, now + tunables.connect_timeout_s + tunables.reconnect_pause_max_s, cut_off)
        self.node.events.emit("service.absent", took_s=now - since)

    def _callback_answered(self, server_link: ServerLink, raw: Any) -> None:
        try:
            number, handle, status, body = check_callback_reply(raw)
            self._heard(self.node.now())
            export = server_link.find(handle)
            if export is not None and export.callbacks is not None:  # else it was evicted meanwhile
                export.last_request = self.node.now()
                export.callbacks.answered(number, status, body)
        except ProtocolError as error:
            self._protocol_error(server_link, error)
        except Exception as error:  # noqa: BLE001  as in _dispatch
            self.node.crash(f"answer to a callback: {error!r}", error)

    def _protocol_error(self, server_link: ServerLink, error: ProtocolError) -> None:
        self.node.events.emit("link.protocol_error", level="warning", peer=server_link.peer, why=str(error))
        server_link.link.close(str(error))

    def _faulty(self, call: Call) -> bool:
        export = call.link.find(call.header.handle)
        who = export.uuid if export else call.body.client if isinstance(call.body, Connect) else ""
        fault = self.node.faults.message("request", call.spec.name, who)
        if fault is None:
            return False
        if fault.action == "delay":
            asyncio.get_running_loop().call_later(fault.delay_s, self._dispatch, call)
            return True
        if fault.action == "duplicate":
            copy = Call(call.link, call.header, call.spec, call.bulk, call.arrived)
            asyncio.get_running_loop().call_later(fault.delay_s, self._dispatch, copy)
            return False
        if fault.action == "error":
            call.reply(-fault.errno, None)
            return True
        if fault.action == "corrupt":
            call.bulk = CORRUPT
            return False
        return fault.action == "drop"

    def _dispatch(self, call: Call) -> None:
        try:
            self._serve(call)
        except OpError as error:
            call.reply(-error.errno, None)
        except Exception as error:  # noqa: BLE001  a bug in a handler: the process must not go on with half a change
            self.node.crash(f"{call.spec.name}: {error!r}", error)

    def _serve(self, call: Call) -> None:
        name = call.spec.name
        self.counts[name] = self.counts.get(name, 0) + 1
        if type(call.body) is Connect:
            if call.link in self.idle:
                self.idle[call.link] = call.arrived
            target = self.targets.get(call.body.target)
            if target is None:
                raise OpError(errno.ENODEV, call.body.target)
            call.target = target
            target.connect(call)
            return
        header = call.header
        export = call.link.find(header.handle)
        if export is None:
            raise OpError(errno.ENOTCONN)
        if header.conn_cnt != export.conn_cnt:
            if header.conn_cnt < export.conn_cnt:
                return  # of an earlier connection: its client has given it up
            raise OpError(errno.ENOTCONN)
        call.export = export
        call.target = export.target
        export.last_request = call.arrived
        self._check_capacity(call)
        call.target.handle(call)
        if not call.answered:
            self.waiting[call] = None
            call.on_reply = self._answered
            if self._notices is None:
                self._notices = asyncio.get_running_loop().call_later(NOTICE_TICK_S, self._say_still_working)

    def _answered(self, call: Call) -> None:
        del self.waiting[call]
        if call.spec.klass == CLASS_NORMAL and not call.header.flags & REPLAY and not call.target.recovering:
            now = self.node.now()
            self.estimate.add(now - call.arrived, now)

    def _say_still_working(self) -> None:
        """Tell who waits that we are at it, well before they would ask again: an early reply.

        Source: ptlrpc_at_send_early_reply(), ptlrpc/service.c
        """
        self._notices = None
        if not self.waiting or self.node.dead:
            return
        now = self.node.now()
        self.estimate.forget(now)
        for call in self.waiting:
            if now >= call.noticed + NOTICE_PART * call.header.timeout_ms / 1000:
                call.noticed = now
                call.still_working()
        self._notices = asyncio.get_running_loop().call_later(NOTICE_TICK_S, self._say_still_working)

    def dropped(self, call: Call) -> None:
        """The call will never be answered (its client is gone, or another copy is served)."""
        if call.on_reply is not None and not call.answered:
            del self.waiting[call]
        call.answered = True

    def drop_calls(self, target: Endpoint) -> None:
        """The target is gone, and with it who would answer."""
        for call in list(self.waiting):
            if call.target is target:
                self.dropped(call)

    def _check_capacity(self, call: Call) -> None:
        room = limits.requests_per_service_max
        under_lock = locks_of(call.body)  # all that are here may wait for it
        if call.spec.klass == CLASS_NORMAL and not under_lock and not call.header.flags & (RESENT | REPLAY):
            room -= limits.requests_reserved_max
        if len(self.waiting) >= room:
            self.refused += 1
            raise OpError(errno.EBUSY, "the server's queue is full")
