"""The way of a request through a target: admitted, prepared, executed in one turn, answered once.

    serve -> admit (truth table) -> handler -> Transaction -> store -> reply
                    |-> QUEUE: server_recovery.py
                    |-> RECONSTRUCT: from the reply record

A mutating handler runs to its end without a suspension point (D4), so it needs no lock against other handlers: what it
has to wait for it waits for before, in `prepare`, and whatever may have changed meanwhile is looked at anew.
Source: tgt_request_handle(), target/tgt_handler.c; mdt_reconstruct(), mdt/mdt_recovery.c; 30.2, 30.3
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from lustrelite.errors import OpError, StoreFailed
from lustrelite.ldlm.local_locks import LocalLock
from lustrelite.recovery.admit import Admit, admit
from lustrelite.recovery.versions import UNCHECKED
from lustrelite.rpc.export import Call
from lustrelite.store import disk, schema
from lustrelite.store.room import DELETION, ESSENTIAL
from lustrelite.store.schema import ReplyRecord
from lustrelite.target.handlers import LATER, Dropped, Handler, NotReady
from lustrelite.target.lock_handlers import is_lock_replay
from lustrelite.target.transaction import Transaction
from lustrelite.wire.locks import Cancel, Convert, Enqueue
from lustrelite.wire.message import REPLAY, RESENT

if TYPE_CHECKING:
    from lustrelite.target.target import Target

NOT_EXECUTED = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINPROGRESS})  # "send it again": no reply record


class Serving:
    """The requests of one target."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def serve(self, call: Call) -> None:
        """What becomes of a request: it is executed, waits for its turn in recovery, was answered before, or is dropped."""
        target, export, header = self.target, call.export, call.header
        flags = header.flags
        xid = call.xid
        twin = export.in_progress(xid)
        kind = type(call.body)
        if call.spec.mutates or flags or twin is not None or target.recovering or kind is Enqueue:
            replay = bool(flags & REPLAY) or (kind is Enqueue and is_lock_replay(call.body))
            if xid <= export.last_xid and not replay:
                self._drop(call, "answered long ago")
                return
            record = None
            if call.spec.mutates:
                if replay and target.recovering and target.recovery is not None and not target.recovery.in_turn(call):
                    self._drop(call, "a later replay has come: this one was answered")
                    return
                record = export.replies.get(header.tag)
                if record is not None and record.xid != xid:
                    if xid < record.xid and not replay:
                        self._drop(call, "its slot was used again")
                        return
                    record = None  # of the slot's last request; this is a new one
                if replay and record is not None and record.transno <= target.boot_committed:
                    record = None  # of an earlier incarnation: the open must be made again
            if target.recovering and twin is None and (
                kind is Cancel or kind is Convert  # perhaps of a lock that was replayed already
                or (kind is Enqueue and replay and export.replay_done)  # its link broke: it says again what we know
            ):  # fmt: skip
                self.execute(call)
                return
            verdict = admit(
                target.recovering, replay, bool(flags & RESENT), record is not None, twin is not None, export.replay_done
            )
            if verdict is not Admit.EXECUTE:
                self._not_executed(call, verdict, record, twin)
                return
        self.execute(call)

    def _not_executed(self, call: Call, verdict: Admit, record: Any, twin: Call | None) -> None:
        target = self.target
        export = call.export
        if verdict is Admit.JOIN:
            assert twin is not None
            twin.link = call.link
            twin.conn_cnt = call.conn_cnt
            twin.arrived = call.arrived
            call.answered = True
            twin.still_working()
        elif verdict is Admit.RECONSTRUCT:
            self._reconstruct(call, record)
        elif verdict is Admit.QUEUE:
            assert target.recovery is not None
            if type(call.body) is Enqueue:
                target.recovery.queue_locks(call)
            else:
                target.recovery.queue(call)
        elif verdict is Admit.DROP:
            self._drop(call, "answered already")
        elif verdict is Admit.EVICT:
            target.evict(export, "it replayed outside recovery")
            call.reply(-errno.ENOTCONN, None)
        else:
            assert verdict is Admit.AGAIN
            target.reply(call, -errno.EAGAIN, None)

    def _drop(self, call: Call, why: str) -> None:
        call.answered = True
        self.target.node.events.emit("request.dropped", target=self.target.name, op=call.spec.name, xid=call.xid, why=why)

    def execute(self, call: Call) -> None:
        """Serve an admitted request."""
        try:
            self._execute(call)
        except StoreFailed as error:
            self.target.node.crash(f"{self.target.name}: {error}", error)

    def _execute(self, call: Call) -> None:
        target = self.target
        handler = target.handlers.get(type(call.body))
        if handler is None:
            target.reply(call, -errno.EOPNOTSUPP, None)
            return
        if target.node.faults.any and self._fault_before(call, handler):
            return
        ride = call.header.ride
        if ride is not None:
            if ride.cancels:
                target.namespace.cancel(call.export, ride.cancels)
            for handle, drop_bits in ride.converts:
                target.namespace.convert(call.export, handle, drop_bits)
        if handler.kind == "mutating":
            if handler.prepare is not None:
                try:
                    awaitable = handler.prepare(call, call.body)
                except OpError as error:
                    self._failed(call, error)
                    return
                if awaitable is not None:
                    self._wait_for(call, self._prepare(call, handler, awaitable))
                    return
            if not self._mutate(call, handler):
                self._wait_for(call, self._prepare(call, handler, None))
        elif handler.kind == "reading":
            try:
                body = handler.execute(call, call.body)
            except OpError as error:
                self._ride(call, None)
                target.reply(call, -error.errno, None)
                return
            if body is LATER:
                if not call.answered:  # it may have been at once
                    call.export.enter(call)
                return
            self._ride(call, body)
            target.reply(call, 0, body)
        else:
            self._wait_for(call, self._serve_waiting(call, handler))

    def _ride(self, call: Call, body: Any) -> None:
        """The lock that the client wants of what its operation has found (`body`; None: an error), if it is free."""
        ride = call.header.ride
        if ride is None or ride.want is None or self.target.namespace.frozen:
            return
        self.target.ride(call, body, ride.want)

    def _fault_before(self, call: Call, handler: Handler) -> bool:
        target = self.target
        fault = target.node.faults.hit("target.execute", call.export.uuid)
        if fault is None:
            return False
        if fault.action == "crash":
            target.node.crash("fault at target.execute")
        elif fault.action == "delay":

            async def later() -> None:
                await asyncio.sleep(fault.delay_s)
                if call.still_valid and not call.answered:
                    self.execute(call)

            self._wait_for(call, later())
            return True
        elif fault.action == "error":
            target.reply(call, -fault.errno, None)
            return True
        else:
            call.answered = True
        return True

    def again_after(self, call: Call, locks: Awaitable[list[LocalLock]]) -> None:
        """Serve a reading call anew in the turn in which these locks are there."""
        target = self.target

        async def again() -> None:
            held = await locks
            try:
                if call.still_valid and not call.answered:
                    self.execute(call)
                else:
                    target.abandon(call)
            finally:
                target.namespace.local.release(held)

        target.spawn(again(), call.spec.name)

    def _wait_for(self, call: Call, coroutine: Any) -> None:
        call.export.enter(call)
        self.target.spawn(coroutine, call.spec.name)

    async def _prepare(self, call: Call, handler: Handler, awaitable: Awaitable[None] | None) -> None:
        target = self.target
        assert handler.prepare is not None
        while True:
            try:
                if awaitable is None:
                    awaitable = handler.prepare(call, call.body)
                if awaitable is not None:
                    await awaitable
                else:
                    await asyncio.sleep(0)
            except OpError as error:
                if call.still_valid:  # else its slot may be another client's by now
                    self._failed(call, error)
                else:
                    target.abandon(call)
                return
            except Dropped:
                target.abandon(call)
                return
            # admission once more: export and ownership may have changed while it waited (D4)
            if call.answered or not call.still_valid or target.stopping or call.overdue(target.node.now()):
                target.abandon(call)
                return
            if self._mutate(call, handler):
                return
            awaitable = None

    async def _serve_waiting(self, call: Call, handler: Handler) -> None:
        target = self.target
        try:
            body = await handler.execute(call, call.body)
        except OpError as error:
            target.reply(call, -error.errno, None)
            return
        except Dropped:
            target.abandon(call)
            return
        if not call.still_valid:
            target.abandon(call)
            return
        target.reply(call, 0, body)

    def _mutate(self, call: Call, handler: Handler) -> bool:
        """Execute a mutating request here and now; False if it must be prepared (again)."""
        target = self.target
        flags = call.header.flags
        replay = bool(flags & REPLAY)
        transno = call.header.transno if replay else target.last_transno + 1
        txn = Transaction(target, call, transno, replay=replay, resent=bool(flags & RESENT))
        try:
            body = handler.execute(txn, call.body)
            # An open of what is there takes no room: its reply record stands in the place of an older one.
            room = handler.room if txn.writes else max(handler.room, DELETION)
            export = call.export
            tag = call.header.tag
            if tag and transno > target.boot_committed:  # the replay of a committed open must not hide a newer result
                record = ReplyRecord(call.xid, transno, 0, txn.data, txn.pre_versions, export.generation)
                txn.writes[schema.REPLIES, schema.reply_key(export.client_index, tag)] = schema.pack_reply(record)
            else:
                record = None
            if txn.writes:
                target.store.apply(txn.writes, kind=ESSENTIAL if replay else room)
        except NotReady:
            txn.failed()
            return False
        except OpError as error:
            txn.failed()
            self._failed(call, error)
            if target.store.pressed:
                target.committer.commit_soon()
            return True
        except StoreFailed as error:
            target.node.crash(f"{target.name}: {error}", error)
            return True
        if record is not None:
            export.keep_reply(tag, record)
        if transno > target.last_transno:
            target.last_transno = transno
        sync = target.answers_when_durable(handler, call.body)
        if (txn.on_unanswered or (txn.dependent and target.node.tunables.commit_on_sharing)) and not replay:
            target.sharing.commits += 1
            sync = True
        if transno > target.last_committed:
            target.sharing.changed(txn, answered=not sync)
        target.applied(txn)
        if not replay:
            self._ride(call, body)
        if sync and transno > target.last_committed:
            call.export.enter(call)
            target.committer.after(transno, lambda: target.reply(call, 0, body, transno, txn.pre_versions))
        else:
            target.reply(call, 0, body, transno, txn.pre_versions)
        return True

    def _failed(self, call: Call, error: OpError) -> None:
        """An operation's own error: it changed nothing, but a resend must get the same answer (replay-single 55)."""
        target = self.target
        tag = call.header.tag
        if tag and not call.header.flags & REPLAY and error.errno not in NOT_EXECUTED:
            export = call.export
            record = ReplyRecord(call.xid, 0, -error.errno, 0, (), export.generation)
            try:
                target.store.apply(
                    {(schema.REPLIES, schema.reply_key(export.client_index, tag)): schema.pack_reply(record)},
                    kind=ESSENTIAL,
                )
                target.committer.changed()
            except OpError:
                pass  # the disk is full to the last block: the answer stands in memory
            export.keep_reply(tag, record)
        if call.header.flags & REPLAY:
            self._replay_failed(call, error)
        target.reply(call, -error.errno, None)

    def _replay_failed(self, call: Call, error: OpError) -> None:
        """What was answered cannot be done again (rmdir: its directory is not empty without a lost unlink).

        Its client must go as after a version mismatch, or it would never hear that it lost something. A write, an open or
        a change of times depends on no version of what is there: it went with its file, unless the disk refuses it.
        """
        target = self.target
        header, export = call.header, call.export
        if header.transno <= target.boot_committed or export.vbr_failed:
            return
        if header.pre_versions[:1] in ((), (UNCHECKED,)) and error.errno not in (*disk.BROKEN, *disk.NO_ROOM):
            return
        target.out_of_step(export)
        target.node.events.emit(
            "replay.impossible", target=target.name, client=export.uuid, op=call.spec.name, transno=header.transno,
            error=str(error),
        )  # fmt: skip

    def _reconstruct(self, call: Call, record: ReplyRecord) -> None:
        """The reply of a request that was executed before.  Source: mdt_reconstruct(), mdt/mdt_recovery.c; 30.3"""
        target = self.target
        target.reconstructed += 1
        target.node.events.emit(
            "reply.reconstructed", target=target.name, client=call.export.uuid, op=call.spec.name, xid=call.xid,
            transno=record.transno, status=record.status,
        )  # fmt: skip
        if record.status:
            target.reply(call, record.status, None)
            return
        handler = target.handlers[type(call.body)]
        assert handler.rebuild is not None
        try:
            body = handler.rebuild(call, call.body, record)
        except OpError as error:
            target.reply(call, -error.errno, None)
            return
        self._ride(call, body)  # its first copy may have a lock: it is found by its handle
        target.reply(call, 0, body, record.transno, record.pre_versions)
