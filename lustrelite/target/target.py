"""A target: its exports, its transactions, its life from mounting to stopping.

Everything here runs on the loop's thread. What becomes of a request is in serving.py, of clients in clients.py, of a
recovery in server_recovery.py, of locks in ldlm/namespace.py. Subclasses (Mdt, Ost, Mgs) bring a handler table and a few hooks.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lustrelite.errors import OpError
from lustrelite.ids import epoch_of, first_transno, target_uuid
from lustrelite.ldlm.namespace import Namespace
from lustrelite.ldlm.policy import TYPE_MODES
from lustrelite.rpc.export import Call, Export
from lustrelite.rpc.node import CORRUPT, Node
from lustrelite.store import schema
from lustrelite.store.kv import Batch, Store
from lustrelite.store.room import ESSENTIAL
from lustrelite.store.small_log import Data
from lustrelite.target.clients import UNAWARE, Clients
from lustrelite.target.committer import Committer
from lustrelite.target.handlers import EMPTY, Dropped, Handler, reading
from lustrelite.target.server_recovery import ServerRecovery
from lustrelite.target.serving import Serving
from lustrelite.target.sharing import Sharing
from lustrelite.target.transaction import Transaction
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import Lvb, Want
from lustrelite.wire.message import LOCK_REPLAY_DONE, REQ_REPLAY_DONE
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
        self.serving = Serving(self)
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
        self._at_work: dict[asyncio.Task[Any], None] = {}  # what ends when the store is closed

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

    def export_gone(self, export: Export) -> None:
        """A client was evicted or left: drop what it had (open files)."""

    def check_client(self, body: Connect) -> None:
        """Somebody connects.  Errors: whatever speaks against it"""

    def grant_on_connect(self, export: Export, body: Connect, known: bool) -> int:
        """How much a client that connects may cache dirty; a `known` one says what it had (OST)."""
        return 0

    async def still(self) -> None:
        """Return when no thread is at work in the target's directory: somebody else may have it then."""

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
        self.spawn(self.clients.evict_the_silent(), f"evictor {self.name}")

    async def stop(self) -> None:
        """Orderly stop: everything is committed; client records stay, so a restart recovers (30.1.4)."""
        await self.take_back_locks()
        self.stopping = True
        if self.service is not None:
            self.service.remove_target(self)
        await self.committer.finish()
        self._halt()
        await self.still()
        self.close()
        self.node.events.emit("target.stopped", target=self.name)

    async def give_up(self) -> None:
        """Stop, and let the next start be this incarnation once more: the MGS has not taken it."""
        self.stopping = True
        if self.service is not None:
            self.service.remove_target(self)
        self.store.apply(self.meta_write("instance", self.instance - 1), kind=ESSENTIAL)
        await self.committer.finish()
        self._halt()
        await self.still()
        self.kill()

    async def take_back_locks(self) -> None:
        """Clients write back and give up what they cache while we still serve them; who is silent is evicted."""
        if not self.stopping and not self.recovering and self.service is not None and self.recoverable:
            await self.namespace.drain(self.node.tunables.lock_callback_s + STOP_GRACE_S)

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Run `work` as a task that ends with this target, not with the process, which may have others."""
        task = self.node.spawn(work, what)
        self._at_work[task] = None
        task.add_done_callback(lambda done: self._at_work.pop(done, None))
        return task

    def _halt(self) -> None:
        """Nothing of this target happens by itself any more: its store is about to be closed."""
        if self.recovery is not None:
            self.recovery.halt()
        for task in list(self._at_work):
            task.cancel()
        if self.service is not None:
            self.service.drop_calls(self)

    def close(self) -> None:
        """Close the store; `stop` has committed everything."""
        self._halt()
        self.namespace.close()
        self.store.close()

    def kill(self) -> None:
        """What `kill -9` does to a target: the running batch is lost."""
        self._halt()
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

    def run(self, change: Callable[..., _T], *args: Any, room: int = ESSENTIAL) -> _T:
        """Execute `change(txn, *args)` as a transaction of the target's own.

        In recovery it takes no new transno: that number may belong to a replay which is still to come, and a commit
        would declare it durable.  Errors: OpError(ENOSPC or EAGAIN), the disk is full; what was changed in memory stays so
        """
        transno = self.last_transno if self.recovering else self.last_transno + 1
        txn = Transaction(self, None, transno)
        result = change(txn, *args)
        if txn.writes:
            self.store.apply(txn.writes, kind=room)
            self.last_transno = max(self.last_transno, transno)
            self.applied(txn)
        return result

    def applied(self, txn: Transaction) -> None:
        if txn.then is not None:
            txn.then()
        for callback in txn.when_committed_list:
            self.committer.call_when(txn.transno, callback)
        self.committer.changed()

    def version_mismatch(self, txn: Transaction, slot: int, expected: tuple[int, ...], found: int) -> None:
        """A replay depends on a change that is not there (or missed one): the client will be evicted."""
        export = txn.export
        assert export is not None and txn.call is not None
        self.out_of_step(export)
        self.node.events.emit(
            "replay.version_mismatch", level="warning", target=self.name, client=export.uuid, op=txn.call.spec.name,
            transno=txn.transno, slot=slot, expected=list(expected), found=found,
            message="Version mismatch during replay",
        )  # fmt: skip

    def out_of_step(self, export: Export) -> None:
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
        elif type(call.body) is Disconnect:
            self.clients.disconnect(call)
        elif call.bulk is CORRUPT:  # before it has its turn in recovery: other replays would pass it by
            self.checksum_errors += 1
            self.node.events.emit("bulk.corrupt", level="warning", target=self.name, client=export.uuid)
            self.reply(call, -errno.EAGAIN, None)
        else:
            self.serving.serve(call)

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

    def answers_when_durable(self, handler: Handler, body: Any) -> bool:
        """Is a change answered when it is durable, or at once, as most are?"""
        return handler.sync is not None and handler.sync(body)

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
            self.store.apply(self.meta_write(UNAWARE, False), reckoned=True)
        epoch = epoch_of(self.last_transno) + 1
        self.last_transno = first_transno(epoch)
        self.store.apply(self.meta_write("epoch", epoch), reckoned=True)
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
        self.store.apply(self.meta_write(UNAWARE, False), reckoned=True)
        self.committer.changed()

    def uncommitted(self) -> int:
        """How many transactions would be lost by a crash now."""
        return max(0, self.last_transno - max(self.last_committed, first_transno(epoch_of(self.last_transno))))

    def open_handles(self) -> Iterator[tuple[Export, int]]:
        """All open files of all clients."""
        for export in self.exports.values():
            for handle in export.opens:
                yield export, handle
