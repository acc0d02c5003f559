"""What a server tells a client unasked: numbered CALLBACK frames over the link of the client's export.

What comes up in one turn of the loop leaves in one frame of each kind, completions first: a lock is granted before it
is asked for. Every frame has the next number and is kept until the client has answered it: it is sent again when
rpc_timeout_s passes, and at once when the client comes back over a new link, under its old number. How long a client
may leave something unanswered is not decided here but by the deadline of what was asked for (ldlm/namespace.py).

Numbers are 1, 2, 3, ... of each export. `Export.last_callback` is the highest; every reply carries it, and a client
that has not seen all up to it does not count the reply as a renewal of its lease.
Source: ldlm_server_blocking_ast(), ldlm_server_completion_ast(), ldlm/ldlm_lockd.c; protocol-facts 5.4
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from lustrelite.errors import ProtocolError
from lustrelite.wire import frame
from lustrelite.wire.locks import BlockingCallback, CompletionCallback, GlimpseCallback
from lustrelite.wire.message import BY_CLASS, Spec, pack

if TYPE_CHECKING:
    from lustrelite.rpc.export import Export

KINDS = (CompletionCallback, BlockingCallback, GlimpseCallback)  # in the order they leave in
POINTS = {
    CompletionCallback: "ldlm.cp_callback",
    BlockingCallback: "ldlm.bl_callback",
    GlimpseCallback: "ldlm.gl_callback",
}
ITEMS_MAX = 1000  # in one frame


class _Sent(NamedTuple):
    """A frame that was not answered yet."""

    spec: Spec
    body: tuple[Any, ...]
    about: tuple[Any, ...]  # what each item is about, for who is told of the answer
    at: float  # when it was last sent


class Callbacks:
    """The callbacks of one export. Made when there is a first one: most clients never see any."""

    __slots__ = ("_export", "_new", "_sent", "_soon", "_timer", "measured_s")

    def __init__(self, export: Export) -> None:
        self._export = export
        self.measured_s = 0.0  # how long this client takes to give back a lock
        self._new: dict[type, list[tuple[Any, Any]]] = {}
        self._sent: dict[int, _Sent] = {}
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None

    def add(self, kind: type, item: Any, about: Any) -> None:
        """Tell the client `item` at the end of this turn; `about` comes back with the answer."""
        self._new.setdefault(kind, []).append((item, about))
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what has come up, now."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        new, self._new = self._new, {}
        for kind in KINDS:
            rows = new.get(kind, ())
            for start in range(0, len(rows), ITEMS_MAX):
                chunk = rows[start : start + ITEMS_MAX]
                self._export.last_callback += 1
                body = (tuple(item for item, _ in chunk),)
                self._sent[self._export.last_callback] = _Sent(
                    BY_CLASS[kind], body, tuple(about for _, about in chunk), 0.0
                )
                self._send(self._export.last_callback)

    def _send(self, number: int) -> None:
        export = self._export
        node = export.target.node
        sent = self._sent[number] = self._sent[number]._replace(at=node.now())
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(node.tunables.rpc_timeout_s, self._look_at_clock)
        if export.link is None:
            return
        if node.faults.any:
            point = POINTS[sent.spec.cls]
            fault = node.faults.hit(point, export.uuid)
            if fault is not None:
                if fault.action == "crash":
                    node.crash(f"fault at {point}")
                elif fault.action == "delay":
                    asyncio.get_running_loop().call_later(fault.delay_s, self._put, number)
                elif fault.action == "error":
                    asyncio.get_running_loop().call_soon(self.answered, number, -fault.errno, None)
                return
        self._put(number)

    def _put(self, number: int) -> None:
        sent, export = self._sent.get(number), self._export
        if sent is None or export.link is None:
            return
        export.link.link.send(
            frame.CALLBACK,
            pack(
                (number, sent.spec.opcode, export.handle, export.conn_cnt, export.target.last_committed, sent.body)
            ),
        )

    def _look_at_clock(self) -> None:
        self._timer = None
        node = self._export.target.node
        if not self._sent or node.dead or self._export.link is None:  # `reconnected` goes on
            return
        timeout_s = node.tunables.rpc_timeout_s
        now = node.now()
        for number, sent in list(self._sent.items()):
            if now >= sent.at + timeout_s:
                node.events.emit(
                    "callback.resent", target=self._export.target.name, client=self._export.uuid, number=number,
                    kind=sent.spec.name,
                )  # fmt: skip
                self._send(number)
        if self._timer is None:
            oldest = min(sent.at for sent in self._sent.values())
            delay = max(oldest + timeout_s - now, timeout_s / 4)
            self._timer = asyncio.get_running_loop().call_later(delay, self._look_at_clock)

    def reconnected(self) -> None:
        """The client is back over a new link: tell it again what it has not answered."""
        namespace = self._export.target.namespace
        for number, sent in list(self._sent.items()):
            for about in sent.about:
                namespace.callback_repeated(sent.spec.cls, about)
            self._send(number)

    def answered(self, number: int, status: int, body: Any) -> None:
        """The client's answer; a second one is ignored.  ProtocolError if it does not fit the question."""
        sent = self._sent.get(number)
        if sent is None:
            return
        answers: tuple[Any, ...] = ()
        if not status:
            (answers,) = sent.spec.check_reply(body)
            if len(answers) != len(sent.about):
                raise ProtocolError(f"{len(answers)} answers to {len(sent.about)} questions")
        del self._sent[number]
        if not self._sent and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        export = self._export
        namespace = export.target.namespace
        if status:
            for about in sent.about:
                namespace.callback_dropped(sent.spec.cls, about)
            namespace.callback_failed(export, sent.spec.cls, status)
            return
        for about, answer in zip(sent.about, answers, strict=True):
            if export.failed:
                namespace.callback_dropped(sent.spec.cls, about)
            else:
                namespace.callback_answered(export, sent.spec.cls, about, answer)

    def halt(self) -> None:
        """Nothing is sent any more."""
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = None

    def close(self) -> None:
        """The client is gone: nothing is sent any more, who waits for an answer gets none."""
        self.halt()
        namespace = self._export.target.namespace
        sent, self._sent = self._sent, {}
        new, self._new = self._new, {}
        for frame_sent in sent.values():
            for about in frame_sent.about:
                namespace.callback_dropped(frame_sent.spec.cls, about)
        for kind, rows in new.items():
            for _, about in rows:
                namespace.callback_dropped(kind, about)

    @property
    def unanswered(self) -> int:
        """Frames that wait for an answer."""
        return len(self._sent)
