"""The import's way back: connect, replay, say so, resend; again and again until it is FULL.

One task per import runs this. Every await here may end with LinkLost: the connection broke, and the next connect goes
on at the stage that was reached (recovery/import_fsm.py decides). Source: ptlrpc/import.c, ptlrpc/recover.c; 30.2.6,
30.2.9
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from lustrelite.errors import Evicted, LinkLost, OpError, OtherVersion, ProtocolError
from lustrelite.ids import Nid
from lustrelite.recovery.import_fsm import State
from lustrelite.rpc.lock_replay import replay_locks
from lustrelite.rpc.request import Request
from lustrelite.wire.message import BY_CLASS, LOCK_REPLAY_DONE, REPLAY, REQ_REPLAY_DONE, RESENT, ROOT_CRED
from lustrelite.wire.session import CONNECT_INITIAL, CONNECT_REPLAYABLE, CONNECT_TRANSNO, Connect, ConnectReply, Ping

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport

LEASE_RENEWED_AT = 0.6  # of its time

_NOT_DONE = frozenset((errno.ENOTCONN, errno.ENODEV, errno.EBUSY, errno.EAGAIN, errno.EINPROGRESS))
SILENT_S = 3.0  # who was never connected is told after so long for whom he waits


class ImportRecovery:
    """Keeps one import connected."""

    def __init__(self, imp: ClientImport) -> None:
        self.imp = imp
        self._misfits: dict[str, None] = {}  # what was said of servers of another version
        self._began: float | None = None  # until the first connection, or until it was said that there is none

    async def keep_connected(self) -> None:
        """Connect, recover and stay, over and over with growing pauses, until the import is CLOSED. Runs as a task."""
        pause = 0.0
        same_nid = False
        self._began = self.imp.node.now()
        while self.imp.fsm.state is not State.CLOSED:
            if pause:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause * (0.75 + 0.5 * self.imp.node.random.random())):
                        await self.imp.kick.wait()
            self.imp.kick.clear()
            try:
                self.imp.lost.clear()
                await self._connect(same_nid)
                same_nid, pause = True, 0.0
                self._began = None
                self._misfits.clear()
                self.imp.misfit = ""
                await self._recover()
                await self._stay()
            except OtherVersion as error:
                same_nid, pause = False, self.imp.node.tunables.reconnect_pause_max_s
                self._complain(str(error))
                self._attempt_failed(str(error))
            except LinkLost as lost:
                same_nid = same_nid and pause == 0.0  # the server we last talked to is tried first, then the others
                self._attempt_failed(str(lost))
            except ProtocolError as error:
                self.imp.node.events.emit("import.protocol_error", level="warning", target=self.imp.target, why=str(error))
                self._attempt_failed(str(error))
            except OpError as error:
                # a busy server is not a dead one: stay with it (conf-sanity 35b)
                same_nid = error.errno in (errno.EBUSY, errno.EAGAIN, errno.EALREADY)
                self._attempt_failed(str(error))
            tunables = self.imp.node.tunables
            pause = min(max(pause * 2, tunables.reconnect_pause_s), tunables.reconnect_pause_max_s)

    def _complain(self, why: str) -> None:
        """Once: it stays so until somebody puts other programs there."""
        self.imp.misfit = why
        if why not in self._misfits:
            self._misfits[why] = None
            self.imp.node.events.emit(
                "import.other_version", level="error", target=self.imp.target, why=why,
                message=f"{self.imp.target} cannot be used: {why}",
            )  # fmt: skip

    def _attempt_failed(self, why: str) -> None:
        self.imp.connection_failed(0, why)
        if self._began is not None and self.imp.node.now() - self._began >= SILENT_S and not self.imp.misfit:
            self._began = None
            target, nids = self.imp.target, " or ".join(map(str, self.imp.nids))
            self.imp.node.events.emit(
                "import.silent", target=target, why=why, message=f"{target} (at {nids}) cannot be used yet: waiting for it"
            )

    def _choose_nid(self, same: bool) -> Nid:
        announced, self.imp.announced = self.imp.announced, None
        if announced is not None:
            return announced
        if self.imp.current_nid in self.imp.nids:
            place = self.imp.nids.index(self.imp.current_nid)
            return self.imp.nids[place if same else (place + 1) % len(self.imp.nids)]
        return self.imp.nids[0]

    async def _connect(self, same_nid: bool) -> None:
        old = self.imp.fsm.state
        conn_cnt = self.imp.fsm.connecting(self.imp.node.now())
        self.imp.state_changed(old)
        if not self.imp.nids:
            raise LinkLost(f"no NID is known for {self.imp.target}")
        nid = self.imp.current_nid = self._choose_nid(same_nid)
        link = await self.imp.links.get(nid, self.imp.bulk_connections)
        if self.imp.fsm.conn_cnt != conn_cnt or self.imp.fsm.state is not State.CONNECTING:
            raise LinkLost("overtaken")
        self.imp.link = link
        link.imports[self.imp] = None
        first = self.imp.replays.first_transno()
        flags = (CONNECT_TRANSNO if first else 0) | (0 if self.imp.fsm.handle else CONNECT_INITIAL)
        body = Connect(
            self.imp.target_uuid, self.imp.client_uuid, self.imp.incarnation, self.imp.fsm.handle, flags, first,
            self.imp.replays.uncommitted[-1].transno if self.imp.replays.uncommitted else self.imp.replays.last_committed,
            int(self.imp.waited_s * 1000), self.imp.features, self.imp.node.name,
            self.imp.grant.total if self.imp.grant is not None else 0,
        )  # fmt: skip
        request = await self.imp.exchange(body, timeout_s=self.imp.node.tunables.connect_timeout_s)
        if self.imp.fsm.conn_cnt != conn_cnt or self.imp.fsm.state is not State.CONNECTING:
            raise LinkLost("the connection broke meanwhile")
        reply: ConnectReply = request.reply
        if self.imp.fsm.refuses(reply):
            self.imp.node.events.emit("import.zombie", level="warning", target=self.imp.target, nid=str(nid), instance=reply.instance)
            raise LinkLost(f"{nid} serves an older incarnation of {self.imp.target}")
        self.imp.counts["reconnects"] += 1
        self.imp.xids.raise_above(reply.last_xid)
        self.imp.index = reply.index
        self.imp.max_bytes_per_rpc = min(self.imp.node.tunables.max_bytes_per_rpc, reply.max_bytes_per_rpc)
        self.imp.slots.resize(reply.max_mod_rpcs)
        last_committed = request.reply_raw[4]
        replayable = bool(reply.flags & CONNECT_REPLAYABLE)  # an MGS from a backup has lost nothing of ours
        if replayable and 0 < last_committed < self.imp.replays.last_committed and reply.instance > 1:
            self.imp.node.events.emit(
                "import.time_went_back", level="error", target=self.imp.target, ours=self.imp.replays.last_committed,
                theirs=last_committed,
            )  # fmt: skip
        old, old_instance, old_handle = self.imp.fsm.state, self.imp.fsm.instance, self.imp.fsm.handle
        self.imp.fsm.on_connect_reply(reply, self.imp.node.now())
        self.imp.connected(reply, request.sent_at, old_handle)
        self.imp.state_changed(old)
        if old_instance and reply.instance != old_instance:
            self.imp.node.events.emit("import.new_instance", target=self.imp.target, instance=reply.instance)
        if self.imp.state is not State.EVICTED:
            self.imp.committed(last_committed)

    def _advance(self, old: State, new: State, conn_cnt: int) -> None:
        """From `old` to `new`; LinkLost if the connection broke between an answer and the turn that reads it."""
        if self.imp.fsm.conn_cnt != conn_cnt or self.imp.fsm.state is not old:
            raise LinkLost("the connection broke meanwhile")
        self.imp.to_state(new)

    async def _recover(self) -> None:
        """From the connect reply to FULL. LinkLost wherever the connection breaks; the next connect goes on there."""
        began = self.imp.node.now()
        conn_cnt = self.imp.fsm.conn_cnt
        if self.imp.state is State.FULL:
            self._flush()
            return
        if self.imp.state is State.EVICTED:
            self._invalidate()
            self._advance(State.EVICTED, State.RECOVER, conn_cnt)
        if self.imp.state is State.REPLAY:
            await self._replay()
            self._advance(State.REPLAY, State.REPLAY_LOCKS, conn_cnt)
        if self.imp.state is State.REPLAY_LOCKS:
            await replay_locks(self.imp)
            self._advance(State.REPLAY_LOCKS, State.REPLAY_WAIT, conn_cnt)
        if self.imp.state is State.REPLAY_WAIT:
            await self._finish_replay()
            self._advance(State.REPLAY_WAIT, State.RECOVER, conn_cnt)
        if self.imp.state is not State.RECOVER:
            raise LinkLost("the connection broke meanwhile")
        for request in sorted(self.imp.sending.values(), key=lambda r: r.xid):
            self.imp.resend(request)
        self._advance(State.RECOVER, State.FULL, conn_cnt)
        down = 0.0 if self.imp.down_since is None else self.imp.node.now() - self.imp.down_since
        self.imp.down_since = None
        self.imp.node.events.emit(
            "import.restored", target=self.imp.target, nid=str(self.imp.current_nid), down_s=round(down, 3),
            recovery_s=round(self.imp.node.now() - began, 3),
            message=f"Connection restored to {self.imp.target} (at {self.imp.current_nid})",
        )  # fmt: skip
        self._flush()

    def _flush(self) -> None:
        """Send what was asked for while we were not FULL."""
        delayed, self.imp.delayed = self.imp.delayed, {}
        for request in delayed:
            self.imp.send(request)
        for callback in list(self.imp.on_full):
            callback()

    async def _replay(self) -> None:
        """Replay in transno order, committed opens first, one at a time.  Source: chapter 30.2.6"""
        instance = self.imp.fsm.instance
        tunables = self.imp.node.tunables
        for request in self.imp.replays.in_replay_order():
            if request.replayed_at == instance:
                continue
            if request.transno <= self.imp.replays.last_committed and not request.keeps_open:
                continue
            if self.imp.node.faults.any:
                await self._fault("client.replay")
            flags = REPLAY | RESENT
            try:
                answer = await self.imp.exchange(
                    request.body, timeout_s=tunables.replay_timeout_s, flags=flags, like=request,
                    resend_s=tunables.rpc_timeout_s,
                )  # fmt: skip
            except OpError as error:
                self._replay_failed(request, error)
            else:
                assert answer.reply_raw[3] in (0, request.transno), "a replay keeps its transno"
            request.replayed_at = instance
            self.imp.counts["replayed"] += 1
            self.imp.node.events.emit(
                "import.replayed", target=self.imp.target, op=request.spec.name, xid=request.xid, transno=request.transno
            )

    def _replay_failed(self, request: Request, error: OpError) -> None:
        if error.errno in _NOT_DONE:  # and must be: it was answered once
            raise LinkLost(f"replay of {request.spec.name}: {error}") from None
        if error.errno == errno.EOVERFLOW:
            self.imp.fsm.vbr_failed = True  # go on: every transaction is offered; the server decides at the end
        # A committed open may be of a file that is gone: it was closed, and the answer to the close was lost.
        closed = error.errno == errno.ESTALE and request.keeps_open and request.transno <= self.imp.replays.last_committed
        self.imp.node.events.emit(
            "import.replay_failed", level="info" if closed else "warning", target=self.imp.target, op=request.spec.name, xid=request.xid,
            transno=request.transno, error=str(error),
        )  # fmt: skip

    async def _finish_replay(self) -> None:
        """The final ping, answered when every client has sent its own.  Source: signal_completed_replay()"""
        if self.imp.node.faults.any:
            await self._fault("client.replay_done")
        if self.imp.fsm.vbr_failed:
            self.imp.node.events.emit(
                "import.vbr_failed", level="warning", target=self.imp.target,
                message=f"{self.imp.target}: version recovery fails, reconnecting",
            )  # fmt: skip
        try:
            await self.imp.exchange(
                Ping(),
                timeout_s=self.imp.node.tunables.replay_timeout_s,
                flags=REQ_REPLAY_DONE | LOCK_REPLAY_DONE,
                resend_s=self.imp.node.tunables.rpc_timeout_s,
            )
        except OpError as error:
            raise LinkLost(f"end of replay: {error}") from None

    async def _fault(self, point: str) -> None:
        fault = self.imp.node.faults.hit(point, self.imp.target)
        if fault is None:
            return
        if fault.action == "delay":
            await asyncio.sleep(fault.delay_s)
        elif fault.action in ("drop", "error"):
            raise LinkLost(f"fault at {point}")

    def _invalidate(self) -> None:
        """Evicted: nothing that was asked for under the old connection may survive.

        Source: ptlrpc_invalidate_import()
        """
        self.imp.fsm.evicted()
        if self.imp.said_goodbye_to != self.imp.instance:  # else it has heard that, and done all that it had answered
            self.imp.counts["evicted"] += 1
            self.imp.node.events.emit(
                "import.evicted", level="warning", target=self.imp.target, lost=len(self.imp.replays.uncommitted),
                said_goodbye=bool(self.imp.said_goodbye_to),  # then it may have heard that, and is not told apart from who was late
                message=f"This client was evicted by {self.imp.target}; in progress operations using this service will fail.",
            )  # fmt: skip
        self.imp.replays.clear()
        self.imp.fail_all(Evicted(self.imp.target))
        for callback in list(self.imp.on_evicted):
            callback()

    async def _stay(self) -> None:
        """FULL: ping when idle, sooner when something is uncommitted or locks need their lease; return by LinkLost."""
        tunables = self.imp.node.tunables
        while True:
            uncommitted = bool(self.imp.replays.uncommitted)
            interval = tunables.uncommitted_ping_s if uncommitted else tunables.ping_interval_s
            rest = max(self.imp.last_reply_at + interval - self.imp.node.now(), interval / 8)
            lease_pause = self._lease_pause()
            try:
                async with asyncio.timeout(min(rest, lease_pause)):
                    await self.imp.lost.wait()
                raise LinkLost("lost")
            except TimeoutError:
                pass
            if self.imp.state is not State.FULL:
                raise LinkLost("lost")
            if self.imp.leaving:
                continue  # behind a Disconnect a ping would find no export and look like an eviction
            idle = self.imp.node.now() - self.imp.last_reply_at
            due = idle >= interval * 0.9 or self._lease_due() or (uncommitted and rest <= lease_pause)
            if due and not any(r.spec.cls is Ping for r in self.imp.sending.values()):
                ping = Request(self.imp, BY_CLASS[Ping], Ping(), ROOT_CRED, tunables.rpc_timeout_s)
                ping.generation = self.imp.fsm.generation
                ping.future.add_done_callback(lambda f: f.cancelled() or f.exception())
                self.imp.send(ping)

    def _lease_pause(self) -> float:
        """How long the lease need not be looked at, whatever locks come meanwhile."""
        imp = self.imp
        if imp.locks is None or imp.lease_s <= 0:
            return float("inf")
        pause = LEASE_RENEWED_AT * imp.lease_s
        return max(imp.leased_at + pause - imp.node.now(), imp.lease_s / 8) if imp.locks.lock_count else pause

    def _lease_due(self) -> bool:
        """Are there locks whose lease wants to be renewed?"""
        imp = self.imp
        if imp.locks is None or not imp.locks.lock_count:
            return False
        return imp.node.now() >= imp.leased_at + LEASE_RENEWED_AT * imp.lease_s
