"""The client's end of one (client, target) connection: sends, resends, replays, recovers.

A request is on exactly one of three lists until it is answered: `delayed` (the import is not FULL), `sending` (sent, no
answer yet), and afterwards, if it changed something that is not committed, on the replay list. What goes wrong:

    no answer in time          resent once on the same connection with its xid; then the connection is given up
    the connection breaks      everything in `sending` waits and is resent with RESENT after recovery, in send order
    the server restarted       the replay list is replayed first, one request at a time, with the replay form
    the server forgot us       evicted: every request fails with EIO, nothing is replayed
    EBUSY, EAGAIN              not executed: sent again after a growing pause
    EINPROGRESS                not executed: sent again under a new xid (LU-2371)

A cancelled caller does not cancel what was sent: its request stays until it is answered.
Source: ptlrpc/client.c, ptlrpc/recover.c; protocol-facts 1, 2, 8.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lustrelite.errors import Deactivated, Evicted, LinkLost, OpError, ProtocolError
from lustrelite.ids import Nid, Xid
from lustrelite.recovery.import_fsm import IN_RECOVERY, ImportFsm, State
from lustrelite.recovery.replay_list import ReplayList
from lustrelite.rpc.links import ClientLink, LinkPool
from lustrelite.rpc.node import CORRUPT, Node
from lustrelite.tunables import limits
from lustrelite.wire.mdt import DISP_OPEN_OPEN, Close, Open
from lustrelite.wire.message import (
    BY_CLASS,
    LOCK_REPLAY_DONE,
    REPLAY,
    REQ_REPLAY_DONE,
    RESENT,
    ROOT_CRED,
    Cred,
    Spec,
    pack,
)
from lustrelite.wire.session import (
    CONNECT_INITIAL,
    CONNECT_TRANSNO,
    FEATURE_MULTIMOD,
    Connect,
    ConnectReply,
    Disconnect,
    Ping,
)

_NOT_EXECUTED = frozenset({-errno.EBUSY, -errno.EAGAIN})
_NOT_CONNECTED = frozenset({-errno.ENOTCONN, -errno.ENODEV})


class Xids:
    """XIDs of one client: they start from the clock and only grow.  Source: protocol-facts 2"""

    def __init__(self, node: Node) -> None:
        # Fine enough that a process restarted at once begins above its predecessor: this is its incarnation, too.
        self.last = (node.wall_ns() // 1_000) << 10

    def next(self) -> Xid:
        """A number that this client has not used."""
        self.last += 1
        return Xid(self.last)

    def raise_above(self, xid: int) -> None:
        """A server has seen `xid` under our UUID already (our clock was set back)."""
        self.last = max(self.last, xid)


class Request:
    """One request from its call to the end of its replay."""

    __slots__ = (
        "body", "bulk", "closes", "conn_cnt", "cred", "deadline", "direct", "flags", "future", "generation",
        "keeps_open", "owner", "pauses", "pre_versions", "replayed_at", "reply", "reply_bulk", "reply_raw", "sink",
        "spec", "tag", "timeout_s", "transno", "xid",
    )  # fmt: skip

    def __init__(self, owner: ClientImport, spec: Spec, body: Any, cred: Cred, timeout_s: float) -> None:
        self.owner = owner
        self.spec = spec
        self.body = body
        self.cred = cred
        self.timeout_s = timeout_s
        self.xid = 0
        self.tag = 0
        self.flags = 0
        self.transno = 0
        self.pre_versions: tuple[int, ...] = ()
        self.bulk: Any = None
        self.sink: memoryview | None = None
        self.reply: Any = None
        self.reply_bulk: memoryview | None = None
        self.reply_raw: tuple[Any, ...] = ()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.deadline = 0.0
        self.generation = 0
        self.conn_cnt = 0
        self.direct = False  # belongs to recovery itself: fails with LinkLost instead of waiting
        self.keeps_open = False
        self.closes = 0
        self.pauses = 0
        self.replayed_at = 0  # instance of the target that has executed the replay


def _fail(request: Request, error: Exception) -> None:
    """End a request with `error`, whether anybody still waits for it or not."""
    if not request.future.done():
        request.future.set_exception(error)
        request.future.exception()  # seen: a caller that was cancelled meanwhile will not look at it


class ClientImport:
    """A recoverable connection to one target. `start()` it; `call()` waits through any recovery."""

    def __init__(
        self,
        node: Node,
        links: LinkPool,
        *,
        target_uuid: str,
        nids: Sequence[Nid],
        client_uuid: str,
        incarnation: int,
        xids: Xids,
        features: int = 0,
    ) -> None:
        self.node = node
        self.links = links
        self.target = target_uuid.removesuffix("_UUID")
        self.target_uuid = target_uuid
        self.nids = list(nids)
        self.client_uuid = client_uuid
        self.incarnation = incarnation
        self.xids = xids
        self.features = features | FEATURE_MULTIMOD
        self.fsm = ImportFsm(self.target, node.now())
        self.replays: ReplayList[Request] = ReplayList()
        self.sending: dict[int, Request] = {}  # by xid, in send order
        self.delayed: dict[Request, None] = {}
        self.unreplied: dict[int, None] = {}  # xids in order: the first one bounds what the server must remember
        self.link: ClientLink | None = None
        self.current_nid: Nid | None = None
        self.inactive = False
        self.max_bytes_per_rpc = node.tunables.max_bytes_per_rpc
        self.index = 0
        self._tags = list(range(limits.mod_rpcs_max, 0, -1))  # free reply slots; resized by the connect reply
        self._tag_waiters: dict[asyncio.Future[None], None] = {}
        self._close_tag_busy = False
        self._max_mod_rpcs = limits.mod_rpcs_max
        self._full: asyncio.Event = asyncio.Event()
        self._lost: asyncio.Event = asyncio.Event()
        self._kick: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._last_reply_at = node.now()
        self._down_since: float | None = None
        self._recovery_began: float | None = None
        self.replay_locks: Callable[[], Awaitable[None]] | None = None  # the lock manager's part of recovery
        self.on_full: list[Callable[[], None]] = []
        self.on_evicted: list[Callable[[], None]] = []
        self.counts = {"replayed": 0, "resent": 0, "timeouts": 0, "evicted": 0, "requests": 0, "reconnects": 0}
        self.calls: dict[str, int] = {}

    # state ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The import's state."""
        return self.fsm.state

    @property
    def instance(self) -> int:
        """Mount count of the target we are connected to."""
        return self.fsm.instance

    @property
    def last_committed(self) -> int:
        """Highest transno known to be durable."""
        return self.replays.last_committed

    def _to(self, new: State) -> None:
        old = self.fsm.state
        self.fsm.to(new, self.node.now())
        self._state_changed(old)

    def _state_changed(self, old: State) -> None:
        new = self.fsm.state
        self.node.events.emit("import.state", target=self.target, old=str(old), new=str(new))
        if new is State.FULL:
            self._full.set()
        else:
            self._full.clear()

    def start(self) -> None:
        """Begin to connect, and stay connected until `stop` or `disconnect`."""
        assert self._task is None
        self._task = self.node.spawn(self._keep_connected(), f"import {self.target}")

    async def wait_full(self) -> None:
        """Return when the import is FULL.  Raises Deactivated if it is closed."""
        while not self._full.is_set():
            if self.state is State.CLOSED:
                raise Deactivated(self.target)
            await self._full.wait()

    def stop(self) -> None:
        """Close without a word, as if this process had died."""
        self._close()
        if self._task is not None:
            self._task.cancel()

    async def disconnect(self) -> None:
        """Leave in good order: what we did is committed, the server forgets us. Gives up after a timeout."""
        connected = self.state is State.FULL
        if connected:
            try:
                await self._direct(Disconnect(), timeout_s=self.node.tunables.rpc_timeout_s)
            except (LinkLost, OpError):
                pass  # the server will evict us in its own time
        self.stop()
        self.node.events.emit("import.disconnected", target=self.target, orderly=connected)

    def _close(self) -> None:
        if self.state is State.CLOSED:
            return
        self._to(State.CLOSED)
        self._drop_link()
        self._fail_all(Deactivated(self.target))
        self._full.set()  # whoever waits must look again
        if self._timer is not None:
            self._timer.cancel()

    def deactivate(self) -> None:
        """Administratively inactive: requests fail at once (lctl deactivate)."""
        self.inactive = True
        self._fail_all(Deactivated(self.target))

    def activate(self) -> None:
        """Undo `deactivate`."""
        self.inactive = False

    def set_nids(self, nids: Sequence[Nid], instance: int | None = None) -> None:
        """The configuration changed: where the target may be, and which incarnation runs there."""
        self.nids = list(nids)
        if instance is None or instance <= self.fsm.instance:
            return
        # Imperative recovery: a newer incarnation runs; do not wait for timeouts to notice (protocol-facts 9.1).
        if self.state is State.DISCONN:
            self._kick.set()
        elif self.fsm.instance:
            self._connection_failed(0, f"{self.target} was restarted as instance {instance}")

    # calls ------------------------------------------------------------------------------------------------------

    async def call(self, body: Any, *, cred: Cred = ROOT_CRED, timeout_s: float | None = None) -> Any:
        """Send `body` and return the reply's body, through any recovery.

        Raises OpError (the operation's own errno), Evicted, Deactivated.
        """
        return (await self._call(body, cred, timeout_s, None, None)).reply

    async def call_open(self, body: Open, *, cred: Cred = ROOT_CRED) -> tuple[int, Any]:
        """`call` for an open: also returns the handle, which is the request's xid."""
        request = await self._call(body, cred, None, None, None)
        return request.xid, request.reply

    async def call_bulk(
        self, body: Any, *, bulk: Any = None, sink: memoryview | None = None, cred: Cred = ROOT_CRED
    ) -> tuple[Any, memoryview | None]:
        """`call` with data: `bulk` is sent (and may not change until this returns), read data goes to `sink`."""
        request = await self._call(body, cred, None, bulk, sink)
        return request.reply, request.reply_bulk

    async def _call(
        self, body: Any, cred: Cred, timeout_s: float | None, bulk: Any, sink: memoryview | None
    ) -> Request:
        if self.inactive or self.fsm.state is State.CLOSED:
            raise Deactivated(self.target)
        spec = BY_CLASS[type(body)]
        request = Request(self, spec, body, cred, timeout_s or self.node.tunables.rpc_timeout_s)
        request.bulk = bulk
        request.sink = sink
        if spec.mutates:
            if isinstance(body, Close):
                request.closes = body.handle
            if not self._tags:
                await self._wait_for_tag(request)
            if not request.tag:
                request.tag = self._tags.pop()
        request.generation = self.fsm.generation
        if self.fsm.state is State.FULL:
            self._send(request)
        else:
            self.delayed[request] = None
        try:
            await request.future
        except asyncio.CancelledError:
            self._abandon(request)
            raise
        return request

    async def _wait_for_tag(self, request: Request) -> None:
        # One close may go above the limit, else 32 blocked opens could keep the close away that unblocks them (b=3462).
        if request.closes and not self._close_tag_busy:
            self._close_tag_busy = True
            request.tag = limits.mod_rpcs_max + 1
            return
        while not self._tags:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._tag_waiters[waiter] = None
            try:
                await waiter
            finally:
                self._tag_waiters.pop(waiter, None)
            if self.inactive or self.state is State.CLOSED:
                raise Deactivated(self.target)

    def _free_tag(self, request: Request) -> None:
        tag = request.tag
        if tag > limits.mod_rpcs_max:
            self._close_tag_busy = False
        elif tag and tag <= self._max_mod_rpcs:
            self._tags.append(tag)
        for waiter in self._tag_waiters:
            if not waiter.done():
                waiter.set_result(None)
                break

    def _abandon(self, request: Request) -> None:
        """The caller is gone. What was not sent never will be; a sent change runs on; a sent read is forgotten."""
        if request in self.delayed:
            del self.delayed[request]
            self._free_tag(request)
        elif request.xid in self.sending and not request.spec.mutates:
            self._forget(request)
        if self._tag_waiters and self._tags:
            for waiter in self._tag_waiters:
                if not waiter.done():
                    waiter.set_result(None)
                    break

    def _forget(self, request: Request) -> None:
        self.sending.pop(request.xid, None)
        self.unreplied.pop(request.xid, None)
        if self.link is not None:
            self.link.waiting.pop(request.xid, None)

    # sending ----------------------------------------------------------------------------------------------------

    def _send(self, request: Request) -> None:
        xid = request.xid
        if not xid:
            xid = request.xid = self.xids.next()
            self.unreplied[xid] = None
            self.counts["requests"] += 1
            name = request.spec.name
            self.calls[name] = self.calls.get(name, 0) + 1
        link = self.link
        assert link is not None
        self.sending[xid] = request
        link.waiting[xid] = request
        conn_cnt = request.conn_cnt = self.fsm.conn_cnt
        request.deadline = self.node.now() + request.timeout_s
        if self._timer is None:
            self._arm_timer()
        if self.node.faults.any and self._faulty_send(request):
            return
        link.send(
            pack(
                (
                    xid,
                    request.spec.opcode,
                    self.fsm.handle,
                    conn_cnt,
                    request.flags,
                    request.tag,
                    next(iter(self.unreplied)) - 1 if self.unreplied else xid - 1,
                    request.transno,
                    request.pre_versions,
                    int(request.timeout_s * 1000),
                    request.cred,
                    "",
                    request.body,
                )
            ),
            request.bulk,
        )

    def _faulty_send(self, request: Request) -> bool:
        fault = self.node.faults.message("send", request.spec.name, self.target)
        if fault is None:
            return False
        if fault.action == "delay":
            asyncio.get_running_loop().call_later(fault.delay_s, self._send_late, request, request.conn_cnt)
        return fault.action in ("drop", "delay")

    def _send_late(self, request: Request, conn_cnt: int) -> None:
        if request.xid in self.sending and conn_cnt == self.fsm.conn_cnt and self.link is not None:
            self._send(request)

    def _arm_timer(self) -> None:
        # One look at intervals instead of a timer per request: a request times out up to a quarter second late.
        self._timer = asyncio.get_running_loop().call_later(0.25, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        if not self.sending:
            return
        self._arm_timer()
        if self.link is None:
            return
        now = self.node.now()
        for request in list(self.sending.values()):
            if now < request.deadline or request.direct:
                continue
            if self.fsm.state is not State.FULL or request.conn_cnt != self.fsm.conn_cnt:
                continue
            self.counts["timeouts"] += 1
            self.node.events.emit(
                "request.timed_out", target=self.target, op=request.spec.name, xid=request.xid,
                resent=bool(request.flags & RESENT),
            )  # fmt: skip
            if request.flags & RESENT:
                self._timed_out(request.conn_cnt, f"{request.spec.name} timed out twice")
                return
            self._resend(request)

    def _resend(self, request: Request) -> None:
        request.flags |= RESENT
        self.counts["resent"] += 1
        self.node.events.emit("import.resent", target=self.target, op=request.spec.name, xid=request.xid)
        self._send(request)

    async def _direct(
        self,
        body: Any,
        *,
        timeout_s: float,
        flags: int = 0,
        like: Request | None = None,
        resend_s: float | None = None,
    ) -> Request:
        """A request of recovery itself: sent in any state, LinkLost if the connection breaks or time runs out.

        With `resend_s` another copy follows whenever that long has passed without an answer.
        """
        if self.link is None:
            raise LinkLost("no link")
        request = Request(self, BY_CLASS[type(body)], body, ROOT_CRED, timeout_s)
        request.direct = True
        request.flags = flags
        if like is not None:
            request.xid, request.tag, request.transno = like.xid, like.tag, like.transno
            request.pre_versions, request.cred, request.bulk = like.pre_versions, like.cred, like.bulk
        request.generation = self.fsm.generation
        self._send(request)
        give_up = self.node.now() + timeout_s
        try:
            while (left := give_up - self.node.now()) > 0:
                await asyncio.wait([request.future], timeout=left if resend_s is None else min(left, resend_s))
                if request.future.done():
                    request.future.result()
                    return request
                if self.node.now() < give_up:
                    self._resend(request)
            self._timed_out(request.conn_cnt, f"{request.spec.name} timed out")
            raise LinkLost(f"{request.spec.name} timed out")
        finally:
            self._forget(request)

    def _timed_out(self, conn_cnt: int, why: str) -> None:
        """Give the connection up, and the link under it if nothing at all came over it for that long."""
        link = self.link
        if link is not None and self.node.now() - link.heard_at >= self.node.tunables.connect_timeout_s and link.link:
            link.link.close(why)
        self._connection_failed(conn_cnt, why)

    # receiving --------------------------------------------------------------------------------------------------

    def reply_received(self, request: Request, raw: tuple[Any, ...], bulk: memoryview | None) -> None:
        """A reply to `request`; `raw` has the shape of a ReplyHeader, its body is unchecked."""
        _, status, _, transno, last_committed, pre_versions, instance, conn_cnt, _, body = raw
        if self.node.faults.any and self._faulty_receive(request, raw, bulk):
            return
        if conn_cnt != self.fsm.conn_cnt:
            return
        self._last_reply_at = self.node.now()
        if status:
            if status in _NOT_EXECUTED and not request.direct:
                self._pause_and_resend(request, new_xid=False)
                return
            if status == -errno.EINPROGRESS:
                self._pause_and_resend(request, new_xid=True)
                return
            if status in _NOT_CONNECTED and not request.direct:
                self._connection_failed(conn_cnt, f"{request.spec.name}: {errno.errorcode[-status]}")
                return
        elif bulk is CORRUPT:
            self.node.events.emit("bulk.corrupt", level="warning", target=self.target, xid=request.xid)
            self._resend(request)
            return
        else:
            request.reply = request.spec.check_reply(body)
            request.reply_bulk = bulk
        self._forget(request)
        if request.direct:
            request.reply_raw = raw
            if status:
                _fail(request, OpError(-status))
            elif not request.future.done():
                request.future.set_result(None)
            if request.spec.cls is not Connect:
                self._committed(last_committed)
            return
        if transno:
            request.transno = transno
            request.pre_versions = pre_versions
            self._keep_for_replay(request)
        elif request.closes:
            self.replays.forget_open(request.closes)
        if last_committed > self.replays.last_committed:
            self._committed(last_committed)
        if request.tag:
            self._free_tag(request)
        if status:
            _fail(request, OpError(-status, f"{request.spec.name} on {self.target}"))
        elif not request.future.done():
            request.future.set_result(None)

    def _keep_for_replay(self, request: Request) -> None:
        form = request.spec.replay_form
        if request.reply is not None:
            if form is not None:
                request.body = form(request.body, request.reply)
            if request.spec.cls is Open and request.reply.disposition & DISP_OPEN_OPEN:
                request.keeps_open = True
        request.flags = 0
        self.replays.add(request)

    def _committed(self, last_committed: int) -> None:
        self.replays.drop_committed(last_committed)

    def early_reply_received(self, request: Request, raw: tuple[Any, ...]) -> None:
        """The server is still working: more time."""
        request.deadline = self.node.now() + max(request.timeout_s, raw[8] / 1000)

    def _faulty_receive(self, request: Request, raw: tuple[Any, ...], bulk: memoryview | None) -> bool:
        fault = self.node.faults.message("receive", request.spec.name, self.target)
        if fault is None:
            return False
        if fault.action == "delay":
            loop = asyncio.get_running_loop()
            loop.call_later(fault.delay_s, self._receive_late, request, raw, bulk)
        return fault.action in ("drop", "delay")

    def _receive_late(self, request: Request, raw: tuple[Any, ...], bulk: memoryview | None) -> None:
        if self.sending.get(request.xid) is request:
            self.reply_received(request, raw, bulk)

    def _pause_and_resend(self, request: Request, *, new_xid: bool) -> None:
        """Not executed: send again later, with growing pauses."""
        self._forget(request)
        if new_xid:
            request.xid = 0
            request.flags &= ~RESENT
        else:
            self.unreplied[request.xid] = None
            self._reorder_unreplied()
            self.sending[request.xid] = request
        request.pauses += 1
        request.deadline = self.node.now() + 3600
        pause = min(0.02 * (1 << min(request.pauses, 7)), 2.0)
        asyncio.get_running_loop().call_later(pause, self._send_again, request, request.generation)

    def _reorder_unreplied(self) -> None:
        self.unreplied = dict.fromkeys(sorted(self.unreplied))

    def _send_again(self, request: Request, generation: int) -> None:
        if request.future.done() and not request.spec.mutates:
            self._forget(request)
            return
        if self.fsm.generation != generation or self.fsm.state is State.CLOSED:
            return  # failed already
        if request.direct:
            if self.link is not None and not request.future.done():
                self._send(request)
        elif self.fsm.state is State.FULL:
            self._send(request)
        elif not request.xid:
            self.delayed[request] = None
        # with an xid it is in `sending` and goes out when recovery ends

    # failure ----------------------------------------------------------------------------------------------------

    def link_lost(self, link: ClientLink, why: str) -> None:
        """The link under this import is gone."""
        link.imports.pop(self, None)
        if self.link is link:
            self._connection_failed(0, why)

    def _connection_failed(self, conn_cnt: int, why: str) -> None:
        old = self.fsm.state
        if not self.fsm.lost(conn_cnt, self.node.now()):
            return
        if old is State.FULL:
            self._down_since = self.node.now()
            self.node.events.emit(
                "import.lost", target=self.target, nid=str(self.current_nid), why=why,
                message=f"Connection to {self.target} (at {self.current_nid}) was lost; in progress operations using "
                "this service will wait for recovery to complete",
            )  # fmt: skip
        self._state_changed(old)
        self._drop_link()
        for request in list(self.sending.values()):
            if request.direct:
                _fail(request, LinkLost(why))
        self._lost.set()

    def _drop_link(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.imports.pop(self, None)
            for xid, request in list(link.waiting.items()):
                if request.owner is self:
                    del link.waiting[xid]

    def _fail_all(self, error: OpError) -> None:
        requests = [*self.sending.values(), *self.delayed]
        self.sending.clear()
        self.delayed.clear()
        self.unreplied.clear()
        for request in requests:
            if request.tag:
                self._free_tag(request)
            _fail(request, error)
        for waiter in list(self._tag_waiters):
            if not waiter.done():
                waiter.set_result(None)

    # recovery ---------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        pause = 0.0
        same_nid = False
        while self.fsm.state is not State.CLOSED:
            if pause:
                self._kick.clear()
                try:
                    async with asyncio.timeout(pause * (0.75 + 0.5 * self.node.random.random())):
                        await self._kick.wait()
                except TimeoutError:
                    pass
            try:
                self._lost.clear()
                await self._connect(same_nid)
                same_nid, pause = True, 0.0
                await self._recover()
                await self._stay()
            except LinkLost as lost:
                same_nid = same_nid and pause == 0.0  # the server we last talked to is tried first, then the others
                self._attempt_failed(str(lost))
            except ProtocolError as error:
                self.node.events.emit("import.protocol_error", level="warning", target=self.target, why=str(error))
                self._attempt_failed(str(error))
            except OpError as error:
                # a busy server is not a dead one: stay with it (conf-sanity 35b)
                same_nid = error.errno in (errno.EBUSY, errno.EAGAIN, errno.EALREADY)
                self._attempt_failed(str(error))
            tunables = self.node.tunables
            pause = min(max(pause * 2, tunables.reconnect_pause_s), tunables.reconnect_pause_max_s)

    def _attempt_failed(self, why: str) -> None:
        self._connection_failed(0, why)

    def _choose_nid(self, same: bool) -> Nid:
        if self.current_nid in self.nids:
            place = self.nids.index(self.current_nid)
            return self.nids[place if same else (place + 1) % len(self.nids)]
        return self.nids[0]

    async def _connect(self, same_nid: bool) -> None:
        old = self.fsm.state
        conn_cnt = self.fsm.connecting(self.node.now())
        self._state_changed(old)
        if not self.nids:
            raise LinkLost(f"no NID is known for {self.target}")
        nid = self.current_nid = self._choose_nid(same_nid)
        link = await self.links.get(nid)
        if self.fsm.conn_cnt != conn_cnt or self.fsm.state is not State.CONNECTING:
            raise LinkLost("overtaken")
        self.link = link
        link.imports[self] = None
        first = self.replays.first_transno()
        flags = (CONNECT_TRANSNO if first else 0) | (0 if self.fsm.handle else CONNECT_INITIAL)
        waited = 0.0 if self._down_since is None else self.node.now() - self._down_since
        body = Connect(
            self.target_uuid, self.client_uuid, self.incarnation, self.fsm.handle, flags, first,
            self.replays.uncommitted[-1].transno if self.replays.uncommitted else self.replays.last_committed,
            int(waited * 1000), self.features, self.node.name, 0,
        )  # fmt: skip
        request = await self._direct(body, timeout_s=self.node.tunables.connect_timeout_s)
        if self.fsm.conn_cnt != conn_cnt or self.fsm.state is not State.CONNECTING:
            raise LinkLost("the connection broke meanwhile")
        reply: ConnectReply = request.reply
        if self.fsm.refuses(reply):
            self.node.events.emit("import.zombie", level="warning", target=self.target, nid=str(nid), instance=reply.instance)
            raise LinkLost(f"{nid} serves an older incarnation of {self.target}")
        self.counts["reconnects"] += 1
        self.xids.raise_above(reply.last_xid)
        self.index = reply.index
        self.max_bytes_per_rpc = min(self.node.tunables.max_bytes_per_rpc, reply.max_bytes_per_rpc)
        self._set_max_mod_rpcs(reply.max_mod_rpcs)
        last_committed = request.reply_raw[4]
        if 0 < last_committed < self.replays.last_committed and reply.instance > 1:
            self.node.events.emit(
                "import.time_went_back", level="error", target=self.target, ours=self.replays.last_committed,
                theirs=last_committed,
            )  # fmt: skip
        old, old_instance = self.fsm.state, self.fsm.instance
        self.fsm.on_connect_reply(reply, self.node.now())
        self._state_changed(old)
        if old_instance and reply.instance != old_instance:
            self.node.events.emit("import.new_instance", target=self.target, instance=reply.instance)
        if self.state is not State.EVICTED:
            self._committed(last_committed)

    def _set_max_mod_rpcs(self, granted: int) -> None:
        granted = max(1, min(granted, limits.mod_rpcs_max))
        if granted > self._max_mod_rpcs:
            self._tags[:0] = range(granted, self._max_mod_rpcs, -1)
        elif granted < self._max_mod_rpcs:
            self._tags = [tag for tag in self._tags if tag <= granted]
        self._max_mod_rpcs = granted

    def _advance(self, old: State, new: State, conn_cnt: int) -> None:
        """From `old` to `new`; LinkLost if the connection broke between an answer and the turn that reads it."""
        if self.fsm.conn_cnt != conn_cnt or self.fsm.state is not old:
            raise LinkLost("the connection broke meanwhile")
        self._to(new)

    async def _recover(self) -> None:
        """From the connect reply to FULL. LinkLost wherever the connection breaks; the next connect goes on there."""
        began = self.node.now()
        conn_cnt = self.fsm.conn_cnt
        if self.state is State.FULL:
            self._flush()
            return
        if self.state is State.EVICTED:
            self._invalidate()
            self._advance(State.EVICTED, State.RECOVER, conn_cnt)
        if self.state is State.REPLAY:
            await self._replay()
            self._advance(State.REPLAY, State.REPLAY_LOCKS, conn_cnt)
        if self.state is State.REPLAY_LOCKS:
            if self.replay_locks is not None:
                await self.replay_locks()
            self._advance(State.REPLAY_LOCKS, State.REPLAY_WAIT, conn_cnt)
        if self.state is State.REPLAY_WAIT:
            await self._finish_replay()
            self._advance(State.REPLAY_WAIT, State.RECOVER, conn_cnt)
        if self.state is not State.RECOVER:
            raise LinkLost("the connection broke meanwhile")
        for request in sorted(self.sending.values(), key=lambda r: r.xid):
            self._resend(request)
        self._advance(State.RECOVER, State.FULL, conn_cnt)
        down = 0.0 if self._down_since is None else self.node.now() - self._down_since
        self._down_since = None
        self.node.events.emit(
            "import.restored", target=self.target, nid=str(self.current_nid), down_s=round(down, 3),
            recovery_s=round(self.node.now() - began, 3),
            message=f"Connection restored to {self.target} (at {self.current_nid})",
        )  # fmt: skip
        self._flush()

    def _flush(self) -> None:
        """Send what was asked for while we were not FULL."""
        delayed, self.delayed = self.delayed, {}
        for request in delayed:
            self._send(request)
        for callback in list(self.on_full):
            callback()

    async def _replay(self) -> None:
        """Replay in transno order, committed opens first, one at a time.  Source: chapter 30.2.6"""
        instance = self.fsm.instance
        tunables = self.node.tunables
        for request in self.replays.in_replay_order():
            if request.replayed_at == instance:
                continue
            if request.transno <= self.replays.last_committed and not request.keeps_open:
                continue
            if self.node.faults.any:
                await self._fault("client.replay")
            flags = REPLAY | RESENT
            try:
                answer = await self._direct(
                    request.body, timeout_s=tunables.replay_timeout_s, flags=flags, like=request,
                    resend_s=tunables.rpc_timeout_s,
                )  # fmt: skip
            except OpError as error:
                self._replay_failed(request, error)
            else:
                assert answer.reply_raw[3] in (0, request.transno), "a replay keeps its transno"
            request.replayed_at = instance
            self.counts["replayed"] += 1
            self.node.events.emit(
                "import.replayed", target=self.target, op=request.spec.name, xid=request.xid, transno=request.transno
            )

    def _replay_failed(self, request: Request, error: OpError) -> None:
        if error.errno in (errno.ENOTCONN, errno.ENODEV):
            raise LinkLost(f"replay of {request.spec.name}: {error}") from None
        if error.errno == errno.EOVERFLOW:
            self.fsm.vbr_failed = True  # go on: every transaction is offered; the server decides at the end
        # A committed open may be of a file that is gone: it was closed, and the answer to the close was lost.
        closed = error.errno == errno.ESTALE and request.keeps_open and request.transno <= self.replays.last_committed
        self.node.events.emit(
            "import.replay_failed", level="info" if closed else "warning", target=self.target, op=request.spec.name, xid=request.xid,
            transno=request.transno, error=str(error),
        )  # fmt: skip

    async def _finish_replay(self) -> None:
        """The final ping, answered when every client has sent its own.  Source: signal_completed_replay()"""
        if self.node.faults.any:
            await self._fault("client.replay_done")
        if self.fsm.vbr_failed:
            self.node.events.emit(
                "import.vbr_failed", level="warning", target=self.target,
                message=f"{self.target}: version recovery fails, reconnecting",
            )  # fmt: skip
        try:
            await self._direct(
                Ping(),
                timeout_s=self.node.tunables.recovery_time_hard_s + self.node.tunables.replay_timeout_s,
                flags=REQ_REPLAY_DONE | LOCK_REPLAY_DONE,
                resend_s=self.node.tunables.rpc_timeout_s,
            )
        except OpError as error:
            raise LinkLost(f"end of replay: {error}") from None

    async def _fault(self, point: str) -> None:
        fault = self.node.faults.hit(point, self.target)
        if fault is None:
            return
        if fault.action == "delay":
            await asyncio.sleep(fault.delay_s)
        elif fault.action in ("drop", "error"):
            raise LinkLost(f"fault at {point}")

    def _invalidate(self) -> None:
        """Evicted: nothing that was asked for under the old connection may survive.  Source: ptlrpc_invalidate_import()"""
        self.fsm.evicted()
        self.counts["evicted"] += 1
        self.node.events.emit(
            "import.evicted", level="warning", target=self.target, lost=len(self.replays.uncommitted),
            message=f"This client was evicted by {self.target}; in progress operations using this service will fail.",
        )  # fmt: skip
        self.replays.clear()
        self._fail_all(Evicted(self.target))
        for callback in list(self.on_evicted):
            callback()

    async def _stay(self) -> None:
        """FULL: ping when idle, sooner when there is something uncommitted; return by LinkLost."""
        tunables = self.node.tunables
        while True:
            uncommitted = bool(self.replays.uncommitted)
            interval = tunables.uncommitted_ping_s if uncommitted else tunables.ping_interval_s
            try:
                async with asyncio.timeout(interval):
                    await self._lost.wait()
                raise LinkLost("lost")
            except TimeoutError:
                pass
            if self.state is not State.FULL:
                raise LinkLost("lost")
            idle = self.node.now() - self._last_reply_at
            if (idle >= interval * 0.9 or uncommitted) and not any(r.spec.cls is Ping for r in self.sending.values()):
                ping = Request(self, BY_CLASS[Ping], Ping(), ROOT_CRED, tunables.rpc_timeout_s)
                ping.generation = self.fsm.generation
                ping.future.add_done_callback(lambda f: f.cancelled() or f.exception())
                self._send(ping)

    def describe(self) -> dict[str, Any]:
        """The import as data, for `osc.*.import` and friends."""
        return {
            "name": self.target,
            "target": self.target_uuid,
            "state": str(self.state),
            "history": [(t, str(s)) for t, s in self.fsm.history],
            "current_connection": str(self.current_nid),
            "failover_nids": [str(n) for n in self.nids],
            "connection_attempts": self.fsm.conn_cnt,
            "generation": self.fsm.generation,
            "instance": self.fsm.instance,
            "inflight": len(self.sending),
            "delayed": len(self.delayed),
            "peer_committed": self.replays.last_committed,
            "replay_list": len(self.replays.uncommitted),
            "open_list": len(self.replays.open),
            "in_recovery": self.state in IN_RECOVERY,
            **self.counts,
        }
