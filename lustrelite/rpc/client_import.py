"""The client's end of one (client, target) connection: sends, resends, replays, recovers.

A request is on exactly one of three lists until it is answered: `delayed` (the import is not FULL), `sending` (sent, no
answer yet), and afterwards, if it changed something that is not committed, on the replay list. What goes wrong:

    no answer in time          resent once on the same connection with its xid; then the connection is given up
    the connection breaks      everything in `sending` waits and is resent with RESENT after recovery, in send order
    the server restarted       the replay list is replayed first, one request at a time, with the replay form
    the server forgot us       evicted: every request fails with EIO, nothing is replayed
    EBUSY, EAGAIN              not executed: sent again after a growing pause
    EINPROGRESS                not executed: sent again under a new xid (LU-2371), unless copies of it are on their way

A cancelled caller does not cancel what was sent: its request stays until it is answered. Not executed, it is not sent again.
Source: ptlrpc/client.c, ptlrpc/recover.c; protocol-facts 1, 2, 8.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lustrelite.errors import Deactivated, LinkLost, OpError
from lustrelite.ids import Nid
from lustrelite.recovery.adaptive import timeout_for
from lustrelite.recovery.import_fsm import IN_RECOVERY, ImportFsm, State
from lustrelite.recovery.replay_list import ReplayList
from lustrelite.rpc.callbacks_received import CallbacksReceived, RecordLocks
from lustrelite.rpc.failout import Failout
from lustrelite.rpc.goodbye import leave
from lustrelite.rpc.import_recovery import ImportRecovery
from lustrelite.rpc.links import ClientLink, LinkPool
from lustrelite.rpc.node import CORRUPT, Node
from lustrelite.rpc.request import Request, Xids, end, fail, withdraw
from lustrelite.rpc.slots import CLOSE, PROMPT, ModSlots
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import Granted, Ride
from lustrelite.wire.mdt import DISP_OPEN_OPEN, Close, Closes, Open, Reopen, Setattrs
from lustrelite.wire.message import (
    BY_CLASS,
    RESENT,
    ROOT_CRED,
    Cred,
    pack,
)
from lustrelite.wire.session import FEATURE_MULTIMOD, Connect, ConnectReply

if TYPE_CHECKING:
    from lustrelite.ldlm.lock_cache import LockCache

_SPARE = {Close: CLOSE, Closes: CLOSE, Reopen: PROMPT, Setattrs: PROMPT}  # whose spare reply slot a request may take
_NOT_EXECUTED = frozenset({-errno.EBUSY, -errno.EAGAIN})
_NOT_CONNECTED = frozenset({-errno.ENOTCONN, -errno.ENODEV})


def _patient(request: Request) -> OpError | None:
    """As long as it takes."""
    return None


def _is_owed(request: Request) -> bool:
    """Does somebody wait for this change, or believe that it was made?"""
    body = request.body
    if not request.spec.mutates or request.future.done():  # who asked for it has gone, and was told nothing
        return False
    if type(body) is Close:
        return bool(body.atime or body.mtime)
    if type(body) is Closes:
        return any(row.atime or row.mtime for row in body.rows)
    return True


def _is_pointless(request: Request) -> bool:
    """Does nobody wait for it any more, and is no other copy of it on its way? Then what was not executed never need be."""
    return request.future.done() and not request.flags & RESENT and not request.closes


class Promised(Protocol):
    """What is told of grants with a connect (client/grant.py)."""

    @property
    def total(self) -> int:
        """Bytes that the OST has promised."""

    @property
    def reserved(self) -> int:
        """Those of them that are dirty here, or being written."""

    def connected(self, total: int) -> None:
        """It promises that much."""


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
        self.announced: Nid | None = None  # where the configuration says that a newer incarnation runs
        self.misfit = ""  # why the server cannot be used, if it was of another version at the last try
        self.inactive = False
        self.failout: Failout | None = None  # if its requests may fail because the target is away for too long
        self.gives_up: Callable[[Request], OpError | None] = _patient  # asked when the server says "come again"
        self._configured = ""  # what the configuration says of `inactive`
        self.leaving = False
        self.said_goodbye_to = 0  # incarnation of the target that was told that we leave
        # Data comes from OSTs only: on other servers a connection per client would be memory for nothing.
        self.bulk_connections = node.tunables.bulk_connections if "-OST" in target_uuid else 0
        self.max_bytes_per_rpc = node.tunables.max_bytes_per_rpc
        self.index = 0
        self.estimate_ms = 0  # how long the server says that requests may take it
        self.slots = ModSlots()
        self.full: asyncio.Event = asyncio.Event()
        self.lost: asyncio.Event = asyncio.Event()
        self.kick: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.last_reply_at = node.now()
        self.down_since: float | None = None
        self.waited_s = 0.0  # for answers, before it was noticed that the server is away
        self.locks: LockCache | None = None  # if this client caches
        self.grant: Promised | None = None  # the same, and the target is an OST
        self.records: RecordLocks | None = None  # record locks, if there ever was one
        self.callbacks = CallbacksReceived(self)
        self.lease_s = float("inf")  # how long an answered request lets us trust our locks
        self.lease_until = float("inf")  # past it nothing is believed (rpc/callbacks_received.py)
        self.leased_at = node.now()  # when the request was sent that renewed the lease last
        self._last_lock_handle = 0
        self.on_full: list[Callable[[], None]] = []
        self.on_committed: list[Callable[[], None]] = []
        self.on_evicted: list[Callable[[], None]] = []
        self.on_switched: list[Callable[[], None]] = []  # off or on, by the administrator
        self.counts = {"replayed": 0, "resent": 0, "timeouts": 0, "evicted": 0, "requests": 0, "reconnects": 0, "checksum_errors": 0}
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
    def connection(self) -> int:
        """The number of the present connection; 0 while there is none over which requests go at once."""
        return self.fsm.conn_cnt if self.fsm.state is State.FULL and not self.inactive else 0

    @property
    def last_committed(self) -> int:
        """Highest transno known to be durable."""
        return self.replays.last_committed

    def to_state(self, new: State) -> None:
        """Enter `new` and say so."""
        old = self.fsm.state
        self.fsm.to(new, self.node.now())
        self.state_changed(old)

    def state_changed(self, old: State) -> None:
        """The state machine went on from `old`: tell the events, and who waits for FULL."""
        new = self.fsm.state
        self.node.events.emit("import.state", target=self.target, old=str(old), new=str(new))
        if new is State.FULL:
            self.full.set()
        else:
            self.full.clear()
        if self.failout is not None:
            self.failout.state_changed(new is State.FULL)

    def start(self) -> None:
        """Begin to connect, and stay connected until `stop` or `disconnect`."""
        assert self._task is None
        self._task = self.node.spawn(ImportRecovery(self).keep_connected(), f"import {self.target}")

    async def wait_full(self) -> None:
        """Return when the import is FULL.  Raises Deactivated if it is closed."""
        while not self.full.is_set():
            if self.state is State.CLOSED:
                raise Deactivated(self.target)
            await self.full.wait()

    def stop(self) -> None:
        """Close without a word, as if this process had died."""
        self._close()
        if self._task is not None:
            self._task.cancel()

    async def disconnect(self, *, patient: bool = True) -> None:
        """Leave in good order (rpc/goodbye.py)."""
        await leave(self, patient=patient)

    @property
    def owed(self) -> bool:
        """Was something written or changed here that is not known to be durable there, and can still be brought?"""
        if self.state is State.CLOSED or self.inactive or (self.failout is not None and self.failout.refuses):
            return False
        if self.replays.uncommitted or (self.grant is not None and self.grant.reserved):
            return True
        return any(map(_is_owed, (*self.sending.values(), *self.delayed)))

    def _close(self) -> None:
        if self.state is State.CLOSED:
            return
        self.to_state(State.CLOSED)
        self._drop_link()
        self.fail_all(Deactivated(self.target))
        for lost in (self.locks, self.records):
            if lost is not None:
                lost.lost_all(Deactivated(self.target))
        self.full.set()  # whoever waits must look again
        if self._timer is not None:
            self._timer.cancel()
        if self.failout is not None:
            self.failout.stop()

    def configure(self, params: Mapping[str, str]) -> None:
        """What the configuration says of this target (`llctl conf_param`): NAME.osc.active, NAME.failover.mode."""
        active = params.get(f"{self.target}.osc.active", "")
        if active != self._configured:  # else what was set here stays
            self._configured = active
            if active == "0":
                self.deactivate()
            else:
                self.activate()
        if self.failout is not None:
            self.failout.of_target = params.get(f"{self.target}.failover.mode", "")

    def deactivate(self) -> None:
        """Administratively inactive: requests fail at once, nothing is cached (lctl deactivate).

        The connection is kept, and made anew if it breaks: what was answered is replayed all the same, and a change
        that was sent runs on and keeps its slot.
        """
        self.inactive = True
        self.node.events.emit("import.deactivated", target=self.target)
        self.give_up(Deactivated(self.target))
        if self.locks is not None:  # the server asks for them when it needs them, and hears that there are none
            self.locks.lost_all(Deactivated(self.target))
        for callback in list(self.on_switched):
            callback()

    def activate(self) -> None:
        """Undo `deactivate`; requests go as soon as the import is FULL."""
        self.inactive = False
        self.node.events.emit("import.activated", target=self.target)
        self.kick.set()
        for callback in list(self.on_switched):
            callback()

    def give_up(self, error: OpError) -> None:
        """Whoever waits for an answer gets `error` instead."""
        for request in [*self.sending.values(), *self.delayed]:
            if not request.direct:
                self._abandon(request)
                fail(request, error)
        self.slots.wake_all()

    def set_nids(self, nids: Sequence[Nid], instance: int | None = None) -> None:
        """The configuration changed: where the target may be, and which incarnation runs there."""
        self.nids = list(nids)
        if instance is None or instance <= self.fsm.instance:
            return
        # Imperative recovery: a newer incarnation runs; do not wait for timeouts to notice (protocol-facts 9.1).
        self.announced = self.nids[0] if self.nids else None
        if self.state is not State.DISCONN and self.fsm.instance:
            self.connection_failed(0, f"{self.target} was restarted as instance {instance}")
        if self.state is State.DISCONN:
            self.kick.set()

    # calls ------------------------------------------------------------------------------------------------------

    async def call(
        self, body: Any, *, cred: Cred = ROOT_CRED, timeout_s: float | None = None, ride: Ride | None = None,
        ended: Callable[[Any, int], None] | None = None,
    ) -> Any:  # fmt: skip
        """Send `body` and return the reply's body, through any recovery. `ride` is of `locks.ride`.

        `ended` is called once, in the turn in which the answer comes and after its locks have, whether the caller still
        waits or not: with the reply's body and its transno, or with None and 0 if nothing was changed.
        Raises OpError (the operation's own errno), Evicted, Deactivated.
        """
        return (await self._call(body, cred, timeout_s, None, None, ride, ended)).reply

    async def call_change(self, body: Any) -> int:
        """`call` for a change that matters only once it is durable: returns its transno (see `on_committed`)."""
        return (await self._call(body, ROOT_CRED, None, None, None, None)).transno

    async def call_open(
        self, body: Open | Reopen, *, cred: Cred = ROOT_CRED, ride: Ride | None = None,
        ended: Callable[[Any, int], None] | None = None, unclaimed: Callable[[int, Any], None] | None = None,
    ) -> tuple[int, Any]:  # fmt: skip
        """`call` for an open: also returns the handle, which is the request's xid.

        `unclaimed` gets both if the caller is gone.
        """
        request = await self._call(body, cred, None, None, None, ride, ended, unclaimed)
        return request.xid, request.reply

    async def call_bulk(
        self, body: Any, *, bulk: Any = None, sink: memoryview | None = None, cred: Cred = ROOT_CRED,
        ride: Ride | None = None,
    ) -> tuple[Any, memoryview | None]:  # fmt: skip
        """`call` with data: `bulk` is sent (and may not change until this returns), read data goes to `sink`."""
        request = await self._call(body, cred, None, bulk, sink, ride)
        return request.reply, request.reply_bulk

    async def _call(
        self, body: Any, cred: Cred, timeout_s: float | None, bulk: Any, sink: memoryview | None, ride: Ride | None,
        ended: Callable[[Any, int], None] | None = None, unclaimed: Callable[[int, Any], None] | None = None,
    ) -> Request:  # fmt: skip
        spec = BY_CLASS[type(body)]
        request = Request(self, spec, body, cred, timeout_s or timeout_for(self.node.tunables.rpc_timeout_s, self.estimate_ms))
        request.bulk = bulk
        request.sink = sink
        request.ride = ride
        request.ended = ended
        request.unclaimed = unclaimed
        try:
            self._check_open()
            if spec.mutates:
                await self._take_slot(request)
        except (OpError, asyncio.CancelledError):
            self.slots.free(request.tag)
            self._ride_over(request, sent=False)
            end(request)
            raise
        request.generation = self.fsm.generation
        if self.fsm.state is State.FULL:
            self.send(request)
        else:
            self.delayed[request] = None
        try:
            await request.future
        except asyncio.CancelledError:
            self._abandon(request)
            raise
        return request

    def _check_open(self) -> None:
        if self.inactive or self.fsm.state is State.CLOSED:
            raise Deactivated(self.target)
        if self.failout is not None and self.failout.refuses:
            raise self.failout.error()

    async def _take_slot(self, request: Request) -> None:
        """A reply slot for a change."""
        spare = _SPARE.get(type(request.body), 0)
        if spare == CLOSE:
            request.closes = request.body.handles
        request.tag = self.slots.try_take(spare)
        while not request.tag:
            request.tag = await self.slots.wait(spare)
            self._check_open()
            request.tag = request.tag or self.slots.try_take(spare)

    def _abandon(self, request: Request) -> None:
        """The caller is gone. What was not sent never will be; a sent change runs on; a sent read is forgotten."""
        if request.unclaimed is not None and request.reply is not None:  # it has come, but he was gone before he could have it
            request.unclaimed(request.xid, request.reply)
        if request.bulk is not None:
            request.bulk = bytes(request.bulk)  # another copy may have to be sent, and the caller's memory is his again
        withdraw(request)
        if request in self.delayed:
            del self.delayed[request]
            self.slots.free(request.tag)
            self._ride_over(request, sent=False)
            end(request)
        elif request.xid in self.sending and not request.spec.mutates:
            self.forget(request)
            self._ride_over(request, sent=True)

    def _ride_over(self, request: Request, *, sent: bool = True, granted: tuple[Granted, ...] | None = None) -> None:
        """Its locks have arrived (perhaps none), or there will be no answer. A replay carries none."""
        ride, request.ride = request.ride, None
        if ride is not None and self.locks is not None:
            if granted is None:
                self.locks.ride_failed(ride, sent=sent)
            else:
                self.locks.ride_answered(ride, granted, resent=bool(request.flags & RESENT))

    def lock_handles(self, count: int) -> int:
        """The first of `count` names for locks that were never used on this import."""
        first = self._last_lock_handle + 1
        self._last_lock_handle += count
        return first

    def forget(self, request: Request) -> None:
        """`request` waits for no answer any more: one that still comes finds nobody."""
        self.sending.pop(request.xid, None)
        self.unreplied.pop(request.xid, None)
        if self.link is not None:
            self.link.waiting.pop(request.xid, None)

    # sending ----------------------------------------------------------------------------------------------------

    def send(self, request: Request) -> None:
        """Send `request` over the present link, under a new XID if it has none yet, and expect the answer in time."""
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
        now = self.node.now()
        conn_cnt = self.fsm.conn_cnt
        if request.conn_cnt != conn_cnt:  # else a copy of what was sent before
            request.conn_cnt = conn_cnt
            request.sent_at = now
        request.deadline = now + request.timeout_s
        if self._timer is None:
            self._arm_timer()
        if self.node.faults.any and self._faulty_send(request):
            return
        link.send(
            pack(
                (  # a RequestHeader, field by field: making one costs more than packing it
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
                    request.ride,
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
            self.send(request)

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
            if request.flags & RESENT and now - request.working_at > 1.5 * request.timeout_s:
                self._timed_out(request, f"{request.spec.name} timed out twice")
                return
            self.resend(request)

    def resend(self, request: Request) -> None:
        """Send another copy of a request that the server may have: the same XID, with RESENT (chapter 30.3)."""
        request.flags |= RESENT
        self.counts["resent"] += 1
        self.node.events.emit("import.resent", target=self.target, op=request.spec.name, xid=request.xid)
        self.send(request)

    async def exchange(
        self,
        body: Any,
        *,
        timeout_s: float,
        flags: int = 0,
        like: Request | None = None,
        resend_s: float | None = None,
    ) -> Request:
        """A request of recovery itself: sent in any state, LinkLost if the connection breaks or time runs out.

        With `resend_s` another copy follows whenever that long has passed without an answer. `timeout_s` is how long
        the server may be silent: it answers a copy of what it has by saying that it is still working.
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
        self.send(request)
        began = self.node.now()
        try:
            while (left := max(began, request.working_at) + timeout_s - self.node.now()) > 0:
                await asyncio.wait([request.future], timeout=left if resend_s is None else min(left, resend_s))
                if request.future.done():
                    request.future.result()
                    return request
                if resend_s is not None:
                    self.resend(request)
            self._timed_out(request, f"{request.spec.name} timed out")
            raise LinkLost(f"{request.spec.name} timed out")
        finally:
            self.forget(request)

    def _timed_out(self, request: Request, why: str) -> None:
        """Give the connection up, and the link under it if nothing at all came over it for that long.

        Also if much data was to travel: its TCP connection may be dead (a router forgets one that was idle) while pings pass.
        """
        link = self.link
        if link is not None and link.link is not None:
            silent = self.node.now() - link.heard_at >= self.node.tunables.connect_timeout_s
            if silent or max(len(request.bulk or b""), len(request.sink or b"")) > limits.bulk_inline_bytes_max:
                link.link.close(why)
        self.connection_failed(request.conn_cnt, why)

    # receiving --------------------------------------------------------------------------------------------------

    def reply_received(self, request: Request, raw: tuple[Any, ...], bulk: memoryview | None) -> None:
        """A reply to `request`; `raw` has the shape of a ReplyHeader, its body is unchecked."""
        _, status, _, transno, last_committed, pre_versions, _, conn_cnt, estimate_ms, granted, callback, body = raw
        if self.node.faults.any and self._faulty_receive(request, raw, bulk):
            return
        if conn_cnt != self.fsm.conn_cnt:
            return
        self.last_reply_at = self.node.now()
        self.estimate_ms = estimate_ms
        gave_up = None
        if status:
            pointless = _is_pointless(request)
            if status in _NOT_EXECUTED and not request.direct and not pointless:
                self._pause_and_resend(request, new_xid=False)
                return
            if status == -errno.EINPROGRESS and not request.direct:
                gave_up = self.gives_up(request)
                if gave_up is None and not pointless:
                    # Of several copies another one may be executed yet, or was: that can be found under its own xid only.
                    self._pause_and_resend(request, new_xid=not request.flags & RESENT)
                    return
            if status in _NOT_CONNECTED and not request.direct:
                self.connection_failed(conn_cnt, f"{request.spec.name}: {errno.errorcode[-status]}")
                return
        elif bulk is CORRUPT:
            self.counts["checksum_errors"] += 1
            self.node.events.emit("bulk.corrupt", level="warning", target=self.target, xid=request.xid)
            self._pause_and_resend(request, new_xid=False)
            return
        else:
            request.reply = request.spec.check_reply(body)
            request.reply_bulk = bulk
        self.forget(request)
        withdraw(request)
        if request.ride is not None:
            self._ride_over(request, granted=granted)
        if request.ended is not None:
            end(request, request.reply, transno)
        if request.direct:
            request.reply_raw = raw
            if status:
                fail(request, OpError(-status))
            elif not request.future.done():
                request.future.set_result(None)
            if request.spec.cls is not Connect:
                self.committed(last_committed)
            return
        if callback <= self.callbacks.seen and request.sent_at > self.leased_at:
            self.leased_at = request.sent_at
            self.lease_until = request.sent_at + self.lease_s
        if transno:
            request.transno = transno
            request.pre_versions = pre_versions
            self._keep_for_replay(request)
        else:
            for handle in request.closes:
                self.replays.forget_open(handle)
        if last_committed > self.replays.last_committed:
            self.committed(last_committed)
        if request.tag:
            self.slots.free(request.tag)
        if status:
            fail(request, gave_up or OpError(-status, f"{request.spec.name} on {self.target}"))
        elif not request.future.done():
            request.future.set_result(None)
        elif request.unclaimed is not None:
            request.unclaimed(request.xid, request.reply)

    def _keep_for_replay(self, request: Request) -> None:
        form = request.spec.replay_form
        if request.reply is not None:
            if form is not None:
                request.body = form(request.body, request.reply)
            if request.spec.cls is Reopen or (request.spec.cls is Open and request.reply.disposition & DISP_OPEN_OPEN):
                request.keeps_open = True
        request.flags = 0
        self.replays.add(request)

    def committed(self, last_committed: int) -> None:
        """Everything up to this transno is durable on the server: forget it."""
        self.replays.drop_committed(last_committed)
        for callback in self.on_committed:
            callback()

    def early_reply_received(self, request: Request, raw: tuple[Any, ...]) -> None:
        """The server has the request and is still working: more time."""
        if raw[7] != self.fsm.conn_cnt:
            return
        request.working_at = self.node.now()
        request.deadline = request.working_at + max(request.timeout_s, raw[8] / 1000)

    def _faulty_receive(self, request: Request, raw: tuple[Any, ...], bulk: memoryview | None) -> bool:
        fault = self.node.faults.message("receive", request.spec.name, self.target)
        if fault is None:
            return False
        if fault.action == "delay":
            loop = asyncio.get_running_loop()
            loop.call_later(fault.delay_s, self._receive_late, request, raw, bulk)
        elif fault.action == "corrupt":
            self.reply_received(request, raw, CORRUPT)
            return True
        return fault.action in ("drop", "delay")

    def _receive_late(self, request: Request, raw: tuple[Any, ...], bulk: memoryview | None) -> None:
        if self.sending.get(request.xid) is request:
            self.reply_received(request, raw, bulk)

    def _pause_and_resend(self, request: Request, *, new_xid: bool) -> None:
        """Not executed: send again later, with growing pauses."""
        self.forget(request)
        if new_xid:
            request.xid = 0
            request.flags &= ~RESENT
            self.delayed[request] = None
        else:
            self.unreplied[request.xid] = None
            self._reorder_unreplied()
            self.sending[request.xid] = request
        request.pauses += 1
        request.deadline = self.node.now() + 3600  # until it is sent again, which sets it anew, it cannot time out
        pause = min(0.02 * (1 << min(request.pauses, 7)), 2.0)
        asyncio.get_running_loop().call_later(pause, self._send_again, request, request.xid, request.conn_cnt)

    def _reorder_unreplied(self) -> None:
        self.unreplied = dict.fromkeys(sorted(self.unreplied))

    def _send_again(self, request: Request, xid: int, conn_cnt: int) -> None:
        """The pause is over.

        A recovery meanwhile has sent it, and perhaps it was answered: then this copy must not go.
        """
        if self.fsm.state is not State.FULL:
            return  # it goes when recovery ends
        if not xid and request in self.delayed:
            del self.delayed[request]
            self.send(request)
        elif xid and self.sending.get(xid) is request and conn_cnt == self.fsm.conn_cnt:
            self.send(request)

    # failure ----------------------------------------------------------------------------------------------------

    def link_lost(self, link: ClientLink, why: str) -> None:
        """The link under this import is gone."""
        link.imports.pop(self, None)
        if self.link is link:
            self.connection_failed(0, why)

    def connection_failed(self, conn_cnt: int, why: str) -> None:
        """Connection `conn_cnt` (0: whichever) is given up; ImportRecovery makes the next.

        Late news of an older one is ignored.
        """
        old = self.fsm.state
        if not self.fsm.lost(conn_cnt, self.node.now()):
            return
        if old is State.FULL:
            now = self.down_since = self.node.now()
            sent_at = min((request.sent_at for request in self.sending.values()), default=now)
            self.waited_s = now - max(sent_at, self.last_reply_at)
            self.node.events.emit(
                "import.lost", target=self.target, nid=str(self.current_nid), why=why,
                message=f"Connection to {self.target} (at {self.current_nid}) was lost; in progress operations using "
                "this service will wait for recovery to complete",
            )  # fmt: skip
        self.state_changed(old)
        self._drop_link()
        for request in list(self.sending.values()):
            if request.direct:
                fail(request, LinkLost(why))
        self.lost.set()

    def xid_of(self, body: Any) -> int:
        """The XID under which `body` was sent; 0: it was not sent yet, or is answered."""
        return next((xid for xid, request in self.sending.items() if request.body is body), 0)

    def _drop_link(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.imports.pop(self, None)
            for xid, request in list(link.waiting.items()):
                if request.owner is self:
                    del link.waiting[xid]

    def fail_all(self, error: OpError) -> None:
        """End every request that was not answered, and free the slots: evicted or closed."""
        requests = [*self.sending.values(), *self.delayed]
        self.sending.clear()
        self.delayed.clear()
        self.unreplied.clear()
        for request in requests:
            withdraw(request)
            if request.tag:
                self.slots.free(request.tag)
            end(request)
            fail(request, error)
        self.slots.wake_all()

    def connected(self, reply: ConnectReply, sent_at: float, old_handle: int) -> None:
        """The connect reply was adopted: what it says of callbacks, of the lease, and of grants."""
        if self.grant is not None:
            self.grant.connected(reply.grant)
        self.lease_s = reply.lease_ms / 1000
        if reply.handle != old_handle:
            self.callbacks.restart()
            self.leased_at = sent_at
            if old_handle and self.locks is not None and self.fsm.state is State.RECOVER:
                self.locks.lost_all()  # a server without client records: it never evicts, it just has no locks of ours
        # An old lease is not renewed by this: there may be callbacks that did not reach us.
        self.lease_until = min(self.lease_until, sent_at + self.lease_s)

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
