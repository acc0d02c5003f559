"""A target: exports, transactions, reply records and the way of a request through them.

    Service -> handle -> admit (truth table) -> handler -> Transaction -> store -> reply
                                                   |-> QUEUE: target/server_recovery.py
                                                   |-> RECONSTRUCT: from the reply record

Everything here runs on the loop's thread; a mutating handler runs to its end without a suspension point (D4), so it
needs no lock against other handlers. Subclasses (Mdt, Ost, Mgs) bring a handler table and a few hooks.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lustrelite.errors import OpError, StoreFailed
from lustrelite.ids import epoch_of, first_transno, target_uuid
from lustrelite.ldlm.local_locks import LocalLock
from lustrelite.ldlm.namespace import Namespace
from lustrelite.ldlm.policy import TYPE_MODES
from lustrelite.recovery.admit import Admit, admit
from lustrelite.recovery.versions import UNCHECKED
from lustrelite.rpc.export import Call, Export
from lustrelite.rpc.node import CORRUPT, Node
from lustrelite.store import schema
from lustrelite.store.kv import Batch, Store
from lustrelite.store.room import DELETION, ESSENTIAL
from lustrelite.store.schema import ReplyRecord
from lustrelite.store.small_log import Data
from lustrelite.target.clients import UNAWARE, Clients
from lustrelite.target.committer import Committer
from lustrelite.target.handlers import EMPTY, LATER, Dropped, Handler, NotReady, reading
from lustrelite.target.lock_handlers import is_lock_replay
from lustrelite.target.server_recovery import ServerRecovery
from lustrelite.target.sharing import Sharing
from lustrelite.target.transaction import Transaction
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import Lvb, Want
from lustrelite.wire.locks import Cancel, Convert, Enqueue
from lustrelite.wire.message import LOCK_REPLAY_DONE, REPLAY, REQ_REPLAY_DONE, RESENT
from lustrelite.wire.session import (
    Connect,
    Disconnect,
    IndexPage,
    IndexRead,
    Ping,
)

_T = TypeVar("_T")

INDEX_READ_MAX = 4096  # rows
STOP_GRACE_S = 0.5  # past the deadlines of the locks that were asked for
NOT_EXECUTED = frozenset({errno.EBUSY, errno.EAGAIN, errno.EINPROGRESS})  # "send it again": no reply record


def index_read(call: Call, body: IndexRead) -> IndexPage:
    """Raw rows of a table, for fsck of a running system; root only."""
    if call.cred[0] != 0:
        raise OpError(errno.EPERM, "only root reads tables")
    store: Store = call.target.store
    if body.table not in schema.tables_of(call.target.kind):
        raise OpError(errno.ENOENT, f"no table {body.table}")
    rows = []
    size = 0
    for row in store.scan(body.table, body.after):
        rows.append(row)
        size += len(row[0]) + len(row[1])
        if len(rows) >= min(max(body.count, 1), INDEX_READ_MAX) or size > limits.header_bytes_max // 2:
            return IndexPage(tuple(rows), True)
    return IndexPage(tuple(rows), False)


class Target:
    """One target of a server process."""

    recoverable = True  # keeps client records and replays; the MGS does not
    kind = ""
    lock_types: Iterable[int] = TYPE_MODES

    def __init__(
        self, node: Node, store: Store, *, name: str, index: int = 0, handlers: Mapping[type, Handler] | None = None
    ) -> None:
        self.node = node
        self.store = store
        self.name = name
        self.uuid = target_uuid(name)
        self.index = index
        self.service: Any = None
        self.handlers: dict[type, Handler] = {IndexRead: reading(index_read), **(handlers or {})}
        self.exports: dict[str, Export] = {}  # by client uuid
        self.instance = 0
        self.last_transno = 0
        self.last_committed = 0
        self.boot_committed = 0  # last_committed when this incarnation started
        self.committer = Committer(self)
        self.clients = Clients(self)
        self.recovery: ServerRecovery | None = None
        self.recovering = False
        self.stopping = False
        self.evictions = 0
        self.reconstructed = 0
        self.checksum_errors = 0  # data that was not what its sender had sent
        self.sharing = Sharing()
        self.namespace = Namespace(node, name, evict=self.evict, lvb=self.lvb, types=self.lock_types)
        if self.recoverable:
            self.namespace.when_durable = lambda callback: self.committer.after(self.last_transno, callback)
            self.namespace.all_aware = self._all_aware
        self.started_at = 0.0

    @property
    def lease_s(self) -> float:
        """How long after a request a client may trust its locks: less than it has to give back one of them."""
        tunables = self.node.tunables
        return max(0.0, tunables.lock_callback_s - tunables.lock_lease_margin_s)

    # hooks ------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """The store is open and the client records are read: read what else is kept in memory."""

    def recovery_over(self) -> None:
        """Recovery ended, or there was none: normal work begins."""

    def export_gone(self, txn: Transaction, export: Export) -> None:
        """A client was evicted or left: drop what it had (open files), in this transaction."""

    def check_client(self, body: Connect) -> None:
        """Somebody connects.  Errors: whatever speaks against it"""

    def grant_on_connect(self, export: Export, body: Connect, known: bool) -> int:
        """How much a client that connects may cache dirty; a `known` one says what it had (OST)."""
        return 0

    def after_commit(self) -> None:
        """`last_committed` moved."""

    def lvb(self, resource_id: bytes) -> Lvb | None:
        """What is known of what a lock is about.  OpError(ENOENT): there is no such thing, so no lock either"""
        return None

    def unsettled(self, export: Export, resource_id: bytes) -> int:
        """The transno that must be durable before `export` is shown an LVB of a resource; 0: none."""
        return 0

    def may_turn_up(self, resource_id: bytes) -> bool:
        """Is it too early to say that there is no such thing?"""
        return False

    def is_promised(self, resource_id: bytes) -> bool:
        """Is it too early to say that nobody has a lock on it?"""
        return False

    def promises_count(self, export: Export) -> bool:
        """Does a lock that `export` has promised itself count, although it could not tell?"""
        return False

    def ride(self, call: Call, body: Any, want: Want) -> None:
        """Take the lock that rides with `call` on what it has found, if it is free (`Namespace.ride`).

        `body` is the answer, None if that is an error: a name that is not there is a fact about its directory.
        """

    def log(self) -> bool:
        """Make what is not durable so in the store's log, if it is little.  StoreFailed"""
        return self.log_with([])

    def log_with(self, data: Sequence[Data]) -> bool:
        """See log and Store.log: with object data."""
        self.store.apply(self.meta_write("last_transno", self.last_transno), reckoned=True)
        return self.store.log(data)

    def store_commit(self, batch: Batch) -> None:
        """Make a sealed batch durable on this thread, after the data that it counts on."""
        self.store.commit(batch)

    async def commit_batch(self, batch: Batch) -> None:
        """The same in a worker thread."""
        await self.node.run_blocking(self.store_commit, batch)

    # life -------------------------------------------------------------------------------------------------------

    async def start(self, *, abort_recovery: bool = False) -> None:
        """Read the store and begin to serve: with recovery if clients are on record."""
        self.started_at = self.node.now()
        self.store.reserved_permille = self.node.tunables.reserved_permille
        self.instance = self.get_meta("instance", 0) + 1
        self.last_transno = self.last_committed = self.boot_committed = self.get_meta("last_transno", first_transno(1))
        self.clients.load()
        self.load()
        self.store.apply(self.meta_write("instance", self.instance), kind=ESSENTIAL)
        self.committer.commit_now()
        self.node.events.emit(
            "target.started", target=self.name, instance=self.instance, last_committed=self.last_committed,
            clients=len(self.exports),
        )  # fmt: skip
        if self.exports and not abort_recovery:
            self.recovering = True
            self.namespace.freeze()
            self.recovery = ServerRecovery(self, list(self.exports))
        else:
            for export in list(self.exports.values()):
                self.evict(export, "recovery aborted at start")
            await self.finish_recovery()
        self.node.spawn(self.clients.evict_the_silent(), f"evictor {self.name}")

    async def stop(self) -> None:
        """Orderly stop: everything is committed; client records stay, so a restart recovers (30.1.4)."""
        await self.take_back_locks()
        self.stopping = True
        if self.service is not None:
            self.service.remove_target(self)
        await self.committer.finish()
        self.close()
        self.node.events.emit("target.stopped", target=self.name)

    async def give_up(self) -> None:
        """Stop, and let the next start be this incarnation once more: the MGS has not taken it."""
        self.stopping = True
        if self.service is not None:
            self.service.remove_target(self)
        self.store.apply(self.meta_write("instance", self.instance - 1), kind=ESSENTIAL)
        await self.committer.finish()
        self.kill()

    async def take_back_locks(self) -> None:
        """Clients write back and give up what they cache while we still serve them; who is silent is evicted."""
        if not self.stopping and not self.recovering and self.service is not None and self.recoverable:
            await self.namespace.drain(self.node.tunables.lock_callback_s + STOP_GRACE_S)

    def close(self) -> None:
        """Close the store; `stop` has committed everything."""
        self.namespace.close()
        self.store.close()

    def kill(self) -> None:
        """What `kill -9` does to a target: the running batch is lost."""
        self.committer.close()
        self.clients.close()
        self.namespace.close()
        self.store.abort()

    def get_meta(self, name: str, default: Any) -> Any:
        """One of the target's own facts."""
        value = self.store.get(schema.META, schema.meta_key(name))
        return default if value is None else schema.unpack_meta(value)

    def meta_write(self, name: str, value: Any) -> dict[tuple[str, bytes], bytes | None]:
        """The write that sets one of the target's own facts."""
        return {(schema.META, schema.meta_key(name)): schema.pack_meta(value)}

    def seal(self) -> Batch:
        """Freeze the running batch, with the counters that belong to it."""
        self.store.apply(self.meta_write("last_transno", self.last_transno), reckoned=True)
        return self.store.seal()

    async def committed(self, transno: int | None = None) -> None:
        """Return when `transno` (default: everything executed so far) is durable."""
        await self.committer.wait(transno)

    # transactions -----------------------------------------------------------------------------------------------

    def run(self, change: Callable[..., _T], *args: Any) -> _T:
        """Execute `change(txn, *args)` as a transaction of the target's own.

        In recovery it takes no new transno: that number may belong to a replay which is still to come, and a commit
        would declare it durable.
        """
        transno = self.last_transno if self.recovering else self.last_transno + 1
        txn = Transaction(self, None, transno)
        result = change(txn, *args)
        if txn.writes:
            self.store.apply(txn.writes, kind=ESSENTIAL)
            self.last_transno = max(self.last_transno, transno)
            self._applied(txn)
        return result

    def _applied(self, txn: Transaction) -> None:
        if txn.then is not None:
            txn.then()
        for callback in txn.when_committed_list:
            self.committer.call_when(txn.transno, callback)
        self.committer.changed()

    def version_mismatch(self, txn: Transaction, slot: int, expected: tuple[int, ...], found: int) -> None:
        """A replay depends on a change that is not there (or missed one): the client will be evicted."""
        export = txn.export
        assert export is not None and txn.call is not None
        self._out_of_step(export)
        self.node.events.emit(
            "replay.version_mismatch", level="warning", target=self.name, client=export.uuid, op=txn.call.spec.name,
            transno=txn.transno, slot=slot, expected=list(expected), found=found,
            message="Version mismatch during replay",
        )  # fmt: skip

    def _out_of_step(self, export: Export) -> None:
        export.vbr_failed = True
        if self.recovery is not None:
            self.recovery.window.version_mismatch(export.uuid)

    # requests ---------------------------------------------------------------------------------------------------

    def handle(self, call: Call) -> None:
        """Serve one request of a known export."""
        export, header = call.export, call.header
        if self.stopping:
            raise OpError(errno.ENODEV, f"{self.name} is stopping")
        if header.last_xid > export.last_xid:
            export.received(header.last_xid)
        if type(call.body) is Ping:
            self._ping(call)
            return
        if type(call.body) is Disconnect:
            self.clients.disconnect(call)
            return
        if call.bulk is CORRUPT:  # before it has its turn in recovery: other replays would pass it by
            self.checksum_errors += 1
            self.node.events.emit("bulk.corrupt", level="warning", target=self.name, client=export.uuid)
            self.reply(call, -errno.EAGAIN, None)
            return
        flags = header.flags
        xid = call.xid
        twin = export.in_progress(xid)
        kind = type(call.body)
        if call.spec.mutates or flags or twin is not None or self.recovering or kind is Enqueue:
            replay = bool(flags & REPLAY) or (kind is Enqueue and is_lock_replay(call.body))
            if xid <= export.last_xid and not replay:
                self._drop(call, "answered long ago")
                return
            record = None
            if call.spec.mutates:
                if replay and self.recovering and self.recovery is not None and not self.recovery.in_turn(call):
                    self._drop(call, "a later replay has come: this one was answered")
                    return
                record = export.replies.get(header.tag)
                if record is not None and record.xid != xid:
                    if xid < record.xid and not replay:
                        self._drop(call, "its slot was used again")
                        return
                    record = export.find_reply(xid) if flags else None
                if replay and record is not None and record.transno <= self.boot_committed:
                    record = None  # of an earlier incarnation: the open must be made again
            if self.recovering and twin is None and (
                kind is Cancel or kind is Convert  # perhaps of a lock that was replayed already
                or (kind is Enqueue and replay and export.replay_done)  # its link broke: it says again what we know
            ):  # fmt: skip
                self.execute(call)
                return
            verdict = admit(
                self.recovering, replay, bool(flags & RESENT), record is not None, twin is not None, export.replay_done
            )
            if verdict is not Admit.EXECUTE:
                self._not_executed(call, verdict, record, twin)
                return
        self.execute(call)

    def _not_executed(self, call: Call, verdict: Admit, record: Any, twin: Call | None) -> None:
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
            assert self.recovery is not None
            if type(call.body) is Enqueue:
                self.recovery.queue_locks(call)
            else:
                self.recovery.queue(call)
        elif verdict is Admit.DROP:
            self._drop(call, "answered already")
        elif verdict is Admit.EVICT:
            self.evict(export, "it replayed outside recovery")
            call.reply(-errno.ENOTCONN, None)
        else:
            assert verdict is Admit.AGAIN
            self.reply(call, -errno.EAGAIN, None)

    def _drop(self, call: Call, why: str) -> None:
        call.answered = True
        self.node.events.emit("request.dropped", target=self.name, op=call.spec.name, xid=call.xid, why=why)

    def execute(self, call: Call) -> None:
        """Serve an admitted request."""
        handler = self.handlers.get(type(call.body))
        if handler is None:
            self.reply(call, -errno.EOPNOTSUPP, None)
            return
        if self.node.faults.any and self._fault_before(call, handler):
            return
        ride = call.header.ride
        if ride is not None:
            if ride.cancels:
                self.namespace.cancel(call.export, ride.cancels)
            for handle, drop_bits in ride.converts:
                self.namespace.convert(call.export, handle, drop_bits)
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
                self.reply(call, -error.errno, None)
                return
            if body is LATER:
                if not call.answered:  # it may have been at once
                    call.export.enter(call)
                return
            self._ride(call, body)
            self.reply(call, 0, body)
        else:
            self._wait_for(call, self._serve_waiting(call, handler))

    def _ride(self, call: Call, body: Any) -> None:
        """The lock that the client wants of what its operation has found (`body`; None: an error), if it is free."""
        ride = call.header.ride
        if ride is None or ride.want is None or self.namespace.frozen:
            return
        self.ride(call, body, ride.want)

    def _fault_before(self, call: Call, handler: Handler) -> bool:
        fault = self.node.faults.hit("target.execute", call.export.uuid)
        if fault is None:
            return False
        if fault.action == "crash":
            self.node.crash("fault at target.execute")
        elif fault.action == "delay":

            async def later() -> None:
                await asyncio.sleep(fault.delay_s)
                if call.still_valid and not call.answered:
                    self.execute(call)

            self._wait_for(call, later())
            return True
        elif fault.action == "error":
            self.reply(call, -fault.errno, None)
            return True
        else:
            call.answered = True
        return True

    async def fault(self, point: str, call: Call | None = None) -> None:
        """Let a fault armed at `point` happen here: a delay is waited for, an error raised, a crash is one."""
        if not self.node.faults.any:
            return
        fault = self.node.faults.hit(point, call.export.uuid if call is not None and call.export else "")
        if fault is None:
            return
        if fault.action == "delay":
            await asyncio.sleep(fault.delay_s)
        elif fault.action == "error":
            raise OpError(fault.errno, f"fault at {point}")
        elif fault.action == "drop" and call is not None:
            raise Dropped(point)
        elif fault.action == "crash":
            self.node.crash(f"fault at {point}")

    def fault_sync(self, point: str, call: Call | None = None) -> None:
        """`fault` where nothing can wait: error and crash only."""
        if not self.node.faults.any:
            return
        fault = self.node.faults.hit(point, call.export.uuid if call is not None and call.export else "")
        if fault is not None and fault.action == "error":
            raise OpError(fault.errno, f"fault at {point}")
        if fault is not None and fault.action == "crash":
            self.node.crash(f"fault at {point}")

    def again_after(self, call: Call, locks: Awaitable[list[LocalLock]]) -> None:
        """Serve a reading call anew in the turn in which these locks are there."""

        async def again() -> None:
            held = await locks
            try:
                if call.still_valid and not call.answered:
                    self.execute(call)
                else:
                    self.abandon(call)
            finally:
                self.namespace.local.release(held)

        self.node.spawn(again(), call.spec.name)

    def _wait_for(self, call: Call, coroutine: Any) -> None:
        call.export.enter(call)
        self.node.spawn(coroutine, call.spec.name)

    async def _prepare(self, call: Call, handler: Handler, awaitable: Awaitable[None] | None) -> None:
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
                    self.abandon(call)
                return
            except Dropped:
                self.abandon(call)
                return
            # admission once more: export and ownership may have changed while it waited (D4)
            if call.answered or not call.still_valid or self.stopping or call.overdue(self.node.now()):
                self.abandon(call)
                return
            if self._mutate(call, handler):
                return
            awaitable = None

    async def _serve_waiting(self, call: Call, handler: Handler) -> None:
        try:
            body = await handler.execute(call, call.body)
        except OpError as error:
            self.reply(call, -error.errno, None)
            return
        except Dropped:
            self.abandon(call)
            return
        if not call.still_valid:
            self.abandon(call)
            return
        self.reply(call, 0, body)

    def _mutate(self, call: Call, handler: Handler) -> bool:
        """Execute a mutating request here and now; False if it must be prepared (again)."""
        flags = call.header.flags
        replay = bool(flags & REPLAY)
        transno = call.header.transno if replay else self.last_transno + 1
        txn = Transaction(self, call, transno, replay=replay, resent=bool(flags & RESENT))
        try:
            body = handler.execute(txn, call.body)
            # An open of what is there takes no room: its reply record stands in the place of an older one.
            room = handler.room if txn.writes else max(handler.room, DELETION)
            export = call.export
            tag = call.header.tag
            if tag and transno > self.boot_committed:  # the replay of a committed open must not hide a newer result
                record = ReplyRecord(call.xid, transno, 0, txn.data, txn.pre_versions, export.generation)
                previous = export.replies.get(tag)
                if previous is None or previous.transno <= transno:
                    txn.writes[schema.REPLIES, schema.reply_key(export.client_index, tag)] = schema.pack_reply(record)
                else:
                    record = previous
            else:
                record = None
            if txn.writes:
                self.store.apply(txn.writes, kind=ESSENTIAL if replay else room)
        except NotReady:
            txn.failed()
            return False
        except OpError as error:
            txn.failed()
            self._failed(call, error)
            if self.store.pressed:
                self.committer.commit_soon()
            return True
        except StoreFailed as error:
            self.node.crash(f"{self.name}: {error}", error)
            return True
        if record is not None:
            export.keep_reply(tag, record)
        if transno > self.last_transno:
            self.last_transno = transno
        sync = self.answers_when_durable(handler, call.body)
        if (txn.on_unanswered or (txn.dependent and self.node.tunables.commit_on_sharing)) and not replay:
            self.sharing.commits += 1
            sync = True
        if transno > self.last_committed:
            self.sharing.changed(txn, answered=not sync)
        self._applied(txn)
        if not replay:
            self._ride(call, body)
        if sync and transno > self.last_committed:
            call.export.enter(call)
            self.committer.after(transno, lambda: self.reply(call, 0, body, transno, txn.pre_versions))
        else:
            self.reply(call, 0, body, transno, txn.pre_versions)
        return True

    def answers_when_durable(self, handler: Handler, body: Any) -> bool:
        """Is a change answered when it is durable, or at once, as most are?"""
        return handler.sync is not None and handler.sync(body)

    def _failed(self, call: Call, error: OpError) -> None:
        """An operation's own error: it changed nothing, but a resend must get the same answer (replay-single 55)."""
        tag = call.header.tag
        if tag and not call.header.flags & REPLAY and error.errno not in NOT_EXECUTED:
            export = call.export
            record = ReplyRecord(call.xid, 0, -error.errno, 0, (), export.generation)
            try:
                self.store.apply(
                    {(schema.REPLIES, schema.reply_key(export.client_index, tag)): schema.pack_reply(record)},
                    kind=ESSENTIAL,
                )
                self.committer.changed()
            except OpError:
                pass  # the disk is full to the last block: the answer stands in memory
            export.keep_reply(tag, record)
        if call.header.flags & REPLAY:
            self._replay_failed(call, error)
        self.reply(call, -error.errno, None)

    def _replay_failed(self, call: Call, error: OpError) -> None:
        """What was answered cannot be done again (rmdir: its directory is not empty without a lost unlink).

        Its client must go as after a version mismatch, or it would never hear that it lost something. An open or a
        change of times depends on no version of what is there: it went with its file.
        """
        header, export = call.header, call.export
        if header.transno <= self.boot_committed or header.pre_versions[:1] in ((), (UNCHECKED,)) or export.vbr_failed:
            return
        self._out_of_step(export)
        self.node.events.emit(
            "replay.impossible", target=self.name, client=export.uuid, op=call.spec.name, transno=header.transno,
            error=str(error),
        )  # fmt: skip

    def reply(
        self, call: Call, status: int, body: Any, transno: int = 0, pre_versions: tuple[int, ...] = ()
    ) -> None:
        """Answer `call`."""
        if call.export is not None:
            call.export.leave(call)
        call.reply(
            status, body, transno=transno, pre_versions=pre_versions, last_committed=self.last_committed,
            instance=self.instance,
        )  # fmt: skip

    def abandon(self, call: Call) -> None:
        """Answer nothing: the client is gone."""
        call.export.leave(call)
        if self.service is not None:
            self.service.dropped(call)

    def _reconstruct(self, call: Call, record: ReplyRecord) -> None:
        """The reply of a request that was executed before.  Source: mdt_reconstruct(), mdt/mdt_recovery.c; 30.3"""
        self.reconstructed += 1
        self.node.events.emit(
            "reply.reconstructed", target=self.name, client=call.export.uuid, op=call.spec.name, xid=call.xid,
            transno=record.transno, status=record.status,
        )  # fmt: skip
        if record.status:
            self.reply(call, record.status, None)
            return
        handler = self.handlers[type(call.body)]
        assert handler.rebuild is not None
        try:
            body = handler.rebuild(call, call.body, record)
        except OpError as error:
            self.reply(call, -error.errno, None)
            return
        self._ride(call, body)  # its first copy may have a lock: it is found by its handle
        if self.answers_when_durable(handler, call.body) and record.transno > self.last_committed:
            call.export.enter(call)
            self.committer.after(
                record.transno, lambda: self.reply(call, 0, body, record.transno, record.pre_versions)
            )
        else:
            self.reply(call, 0, body, record.transno, record.pre_versions)

    # clients ------------------------------------------------------------------------------------------------------

    def connect(self, call: Call) -> None:
        """A client connects or reconnects."""
        self.clients.connect(call)

    def link_lost(self, export: Export) -> None:
        """A client's link broke."""
        self.clients.link_lost(export)

    def evict(self, export: Export, why: str) -> None:
        """Throw a client out."""
        self.clients.evict(export, why)

    def _ping(self, call: Call) -> None:
        final = call.header.flags & (REQ_REPLAY_DONE | LOCK_REPLAY_DONE)
        if final and self.recovering and call.export.in_recovery:
            assert self.recovery is not None
            self.recovery.final_ping(call)
        else:
            self.reply(call, 0, EMPTY)

    # recovery ---------------------------------------------------------------------------------------------------

    def abort_recovery(self) -> None:
        """`llctl abort_recovery`."""
        if self.recovery is not None and self.recovering:
            self.recovery.abort()

    async def finish_recovery(self) -> None:
        """A new epoch begins: no transno of the last incarnation, committed or lost, can come again.

        Who was thrown out, by us or just before, may not know it, and serve from his caches under the lease that the
        last incarnation gave.
        """
        if self.evictions or self.get_meta(UNAWARE, False):
            await asyncio.sleep(max(0.0, self.started_at + self.lease_s - self.node.now()))
            self.store.apply(self.meta_write(UNAWARE, False), kind=ESSENTIAL)
        epoch = epoch_of(self.last_transno) + 1
        self.last_transno = first_transno(epoch)
        self.store.apply(self.meta_write("epoch", epoch), kind=ESSENTIAL)
        await self.committer.wait(forced=True)
        self.recovering = False
        if self.namespace.frozen:
            self.namespace.thaw()
        now = self.node.now()
        for export in self.exports.values():
            export.last_request = now  # silent because we were: LU-5312
        self.recovery_over()

    def _all_aware(self) -> None:
        """No lease is left of anybody who was evicted."""
        self.store.apply(self.meta_write(UNAWARE, False), kind=ESSENTIAL)
        self.committer.changed()

    def uncommitted(self) -> int:
        """How many transactions would be lost by a crash now."""
        return max(0, self.last_transno - max(self.last_committed, first_transno(epoch_of(self.last_transno))))

    def open_handles(self) -> Iterator[tuple[Export, int]]:
        """All open files of all clients."""
        for export in self.exports.values():
            for handle in export.opens:
                yield export, handle
