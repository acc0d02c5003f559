"""The object storage target: numbered objects, each a record in the database and, once written, a file.

- An object exists as long as its record does. Ids are granted to the MDT by the thousand (object_ids.py), which puts
the
  records. The file is made by the first write; until then the object is empty.
- Data reaches the file at once, its record (times, version, back-pointer) the running batch. Before a batch is
  committed the files its writes named are made durable (`_commit`), so a record never promises bytes that a power
  cut could take. The other way round is harmless: bytes without their record come again with the replay.
- A destroyed object loses its record in the batch, and its file only when that batch is durable. A crash between the
  two leaves a file without record; `_sweep` looks for such files once after every start.
- Overlapping I/O goes through `ranges`, in the order of arrival (ranges.py says why).

At rest an object costs no memory. What is kept per object is kept while something is under way: its ranges, its name
in `_touched` until the next commit, its name in `_doomed` until its file is gone.
Source: ofd_dev.c ofd_create_hdl(), ofd_objects.c, ofd_io.c; protocol-facts 7.2, 4.6
"""

from __future__ import annotations

import asyncio
import errno
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from lustrelite.errors import OpError, StoreFailed
from lustrelite.ids import mdt_client_uuid, parse_target_name, target_name
from lustrelite.ldlm.lock import Lock
from lustrelite.ost.changes import Prepared
from lustrelite.ost.grant import Grants, cost_of
from lustrelite.ost.handlers import HANDLERS
from lustrelite.ost.object_ids import ObjectIds
from lustrelite.ost.promised import PromisedToOthers
from lustrelite.ost.ranges import Ranges
from lustrelite.rpc.export import Call, Export
from lustrelite.rpc.node import Node
from lustrelite.store import schema
from lustrelite.store.disk import Space
from lustrelite.store.kv import Batch, Store
from lustrelite.store.objects import Buffer, ObjectFiles
from lustrelite.store.room import DELETION
from lustrelite.store.schema import OBJECTS, ObjectRecord
from lustrelite.store.small_log import Data
from lustrelite.target.handlers import Handler
from lustrelite.target.lock_handlers import LOCK_HANDLERS
from lustrelite.target.target import Target
from lustrelite.target.transaction import Transaction
from lustrelite.wire.ldlm import EXTENT, Lvb
from lustrelite.wire.mdt import STATFS_NO_SPACE, StatfsReply
from lustrelite.wire.ost import CREATE_DELORPHAN, OBJECT_EOF, ObjectAttr, OstCreate, Write, grant_bytes, resource_of
from lustrelite.wire.session import FEATURE_SERVER, Connect

STILL_POLL_S = 0.02
SWEEP_CHUNK = 512
DESTROYED_MAX = 32  # in one transaction: a full OST has room for that
LOGGED_BYTES_MAX = 64 << 10


class Ost(Target):
    """One OST. `files` holds the data; all its calls that may take long go through the node's worker threads."""

    kind = "OST"
    lock_types = (EXTENT,)

    def __init__(self, node: Node, store: Store, files: ObjectFiles, *, name: str, index: int = 0) -> None:
        super().__init__(node, store, name=name, index=index)
        self.handlers.update({**LOCK_HANDLERS, **HANDLERS})
        self.files = files
        self.ranges = Ranges()
        self.ids = ObjectIds(self)
        self.promised = PromisedToOthers(self)
        self._mdt_uuid = mdt_client_uuid(target_name(parse_target_name(name)[0], "MDT", 0))
        self.prepared: dict[Call, Prepared] = {}  # between the two halves of a write or punch, for one turn
        self._touched: dict[int, None] = {}  # data in the file, not yet durable, record staged
        self._doomed: dict[int, None] = {}  # record deleted, file not yet unlinked
        self.grants = Grants(self._space, self._keep)
        self._uncommitted_bytes = 0
        self._fresh: list[Data] | None = []  # written since the last commit or log; None: more than the log takes
        self._fresh_bytes = 0
        self.logged: dict[int, int] = {}  # objects with data in the log, since the last commit: which append was the last
        # The last change of an object that is not durable: whose (None: of several clients), and its transno.
        self.unsynced: dict[bytes, tuple[Export | None, int]] = {}
        self.last_glimpse = 1 << 62  # handles that no client chooses
        self.namespace.before_cancel = self._cancel_waits
        self._listing: array[int] | None = None  # of a `files` table that is being read

    # ------------------------------------------------------------ life

    async def start(self, *, abort_recovery: bool = False) -> None:
        """See Target. What a killed predecessor wrote is in the files, durable or not: first it is made so.

        Clients read it (nobody knows which of it had been answered), and a power cut must not take back what they saw.
        """
        await self.node.run_blocking(self._sync, None)
        await super().start(abort_recovery=abort_recovery)

    def load(self) -> None:
        """See Target. Data that a predecessor had in its log goes to the files."""
        self.store.put_back(self.files)
        self.ids.load()

    def export_gone(self, export: Export) -> None:
        """A client is gone, or was restarted under its old name."""
        self.grants.gone(export)

    def recovery_over(self) -> None:
        """See Target. Whoever was promised anything has said so."""
        self.grants.keep_promised()

    def sweep(self) -> None:
        """The MDT has said which objects there should be: files of others, left by a crash, may go."""
        self.spawn(self._sweep(), f"sweep {self.name}")

    async def still(self) -> None:
        """See Target. A thread that writes cannot be called back; one may just be about to begin."""
        await asyncio.sleep(STILL_POLL_S)
        while self.files.in_use:
            await asyncio.sleep(STILL_POLL_S)

    def close(self) -> None:
        """Make the data durable, then the records, and close."""
        self._sync(self._take_touched())
        super().close()
        if not self.recovering:  # else there are clients that have not said what they were promised
            self.files.keep_nothing()
        self.files.close()

    def kill(self) -> None:
        """The running batch is lost, the data files are as they are."""
        super().kill()
        self.files.close()

    def say(self, what: str, level: str = "info", **fields: Any) -> None:
        """Emit an event of this target."""
        self.node.events.emit(what, level=level, target=self.name, **fields)

    # ------------------------------------------------------------ space

    def check_client(self, body: Connect) -> None:
        """See Target. EPERM: an MDT, which is not that of our file system, and would destroy the objects that it does not know"""
        if body.features & FEATURE_SERVER and body.client != self._mdt_uuid:
            raise OpError(errno.EPERM, f"{self.name} is no OST of {body.client}")

    def grant_on_connect(self, export: Export, body: Connect, known: bool) -> int:
        """See Grants.connected."""
        return self.grants.connected(export, body, self.last_transno, known=known)

    def make_room(self, export: Export, *parts: tuple[Write, Buffer]) -> bool:
        """Before these writes: is there room kept for them?  Errors: ENOSPC, what is left of the disk is reserved, or promised to others

        The reserve is for the database, which needs room to destroy things. Rewriting what is there is always allowed; a hole
        is not there.
        """
        cost = sum([cost_of(body, len(data)) for body, data in parts])
        if self.grants.covers(export, cost) or self.grants.take(
            sum([grant_bytes(body.offset, body.offset + len(data)) for body, data in parts])
        ):
            return True
        if any(self._takes_room(body.object, body.offset, body.offset + len(data)) for body, data in parts):
            raise OpError(errno.ENOSPC, f"{self.name} is full")
        return False

    def _takes_room(self, oid: int, start: int, end: int) -> bool:
        """Does the file lack blocks for [start, end)?

        In a file with holes also what was allocated for it and never written counts as one: the file system calls it so.
        """
        size, blocks = self.files.stat(oid)
        return end > size or (blocks * 512 < size and self.files.seek(oid, start, os.SEEK_HOLE) < end)

    def _keep(self, size: int) -> int:
        """Keep room for what is promised; in recovery also what others may say that they were promised."""
        return self.files.keep(size, at_least=self.recovering)

    @property
    def has_space(self) -> bool:
        """Is there any beyond the reserve?"""
        return self._space() > 0

    def _space(self) -> int:
        """Bytes that the disk has beyond the reserve."""
        return self._beyond_reserve(self.files.statfs())

    def _beyond_reserve(self, space: Space) -> int:
        return space.available - space.total * self.node.tunables.reserved_permille // 1000

    # ------------------------------------------------------------ locks

    def lvb(self, resource_id: bytes) -> Lvb | None:
        """Size, blocks and times of an object, as they are in its file and record now.  OpError(ENOENT)"""
        oid = int.from_bytes(resource_id, "big")
        if len(resource_id) != 8:
            raise OpError(errno.EINVAL, "not the name of an object")
        return Lvb(*self.attr(oid, self.record(oid))[:5])

    def prolong(self, export: Export, handle: int) -> None:
        """`export` has worked under its lock `handle` (0: none)."""
        lock = self.namespace.table.find(export, handle) if handle else None
        if lock is not None:
            self.namespace.deadlines.prolong(lock)

    def release(self, export: Export, handle: int) -> None:
        """The lock has gone with the write that was just executed, or was found to be done."""
        self.namespace.cancel(export, (handle,), with_change=True)

    def _cancel_waits(self, lock: Lock, with_change: bool, cancel: Callable[[], None]) -> bool:
        """Before a lock goes to who asked for it, what was written under it must be durable, or a crash could take it.

        Its author would replay it, but not if it is lost as well. A lock that goes with its last write must wait in any
        case: without an answer the write would be sent again, after what others have written since. True: `cancel` is
        called when that is so.
        Source: sync_lock_cancel, ofd_slc_set(); protocol-facts 5.11
        """
        _, transno = self.unsynced.get(lock.resource.id, (None, 0))
        when = self.node.tunables.sync_lock_cancel
        waits = when == "always" or (when == "blocking" and (lock.asked or with_change))
        if transno <= self.last_committed or not waits:
            return False
        self.committer.after(transno, cancel)
        return True

    def after_commit(self) -> None:
        """Changes are durable."""
        committed = self.last_committed
        if self.unsynced:
            self.unsynced = {oid: last for oid, last in self.unsynced.items() if last[1] > committed}

    def unsettled(self, export: Export, resource_id: bytes) -> int:
        """The transno of the last change of an object, if it is not durable and not only `export` made it; else 0.

        Nobody is shown, under a lock or by a read without one, what the loss of another client could take back. A lock
        that conflicts sees to it when it goes (`_cancel_waits`); its author may have given it back before, unasked. The
        answer waits instead. (Who only glimpses is told of what stands in caches, too.)
        """
        author, transno = self.unsynced.get(resource_id, (None, 0))
        if transno <= self.last_committed or author is export or self.node.tunables.sync_lock_cancel == "never":
            return 0
        return transno

    # ------------------------------------------------------------ commit

    def answers_when_durable(self, handler: Handler, body: Any) -> bool:
        """See Target. With sync_journal nobody ever has to replay.  Source: sync_journal, lproc_ofd.c"""
        if type(body) is OstCreate and (body.flags & CREATE_DELORPHAN or self.ids.beyond_limit(body.upto)):
            return True
        return bool(self.node.tunables.sync_journal) or super().answers_when_durable(handler, body)

    def log(self) -> bool:
        """See Target: with the data."""
        if self._fresh is None or self.recovering:  # replays change files without looking at the log
            return False
        if not self.log_with(self._fresh):
            return False
        for oid, _, _ in self._fresh:
            self.logged[oid] = self.committer.logged
        self._fresh, self._fresh_bytes = [], 0
        return True

    async def cut(self, oid: int) -> None:
        """Before a file is cut: what the log has of its data would come back over that, if the cut itself is lost.

        EINPROGRESS: the log has no room to say so
        """
        while (last := self.logged.get(oid)) is not None:
            await self.node.run_blocking(self._sync, [oid])
            if self.logged.get(oid) == last:
                if not self.store.unlog(oid):
                    self.committer.commit_soon()
                    raise OpError(errno.EINPROGRESS, f"object {oid}")
                del self.logged[oid]
        self._fresh = None

    def store_commit(self, batch: Batch) -> None:
        """Make the data that `batch` names durable, then the batch. StoreFailed: the process must end."""
        self._commit(batch, self._take_touched())
        self.logged.clear()

    async def commit_batch(self, batch: Batch) -> None:
        """The same in a worker thread.

        Objects touched after the batch was sealed may be among them: that is early, never late, because an object
        is entered only after its data is in the file.
        """
        await self.node.run_blocking(self._commit, batch, self._take_touched())
        self.logged.clear()

    def _take_touched(self) -> list[int]:
        touched, self._touched = self._touched, {}
        self._uncommitted_bytes = self._fresh_bytes = 0
        self._fresh = []
        return list(touched)

    def _commit(self, batch: Batch, touched: list[int]) -> None:
        self._sync(touched)
        self.store.commit(batch)

    def _sync(self, oids: list[int] | None) -> None:
        if oids or oids is None:
            try:
                self.files.sync(oids)
            except OpError as error:
                raise StoreFailed(f"data of {self.name}: {error}") from error

    # ------------------------------------------------------------ objects

    @property
    def last_id(self) -> int:
        """See ObjectIds."""
        return self.ids.last_id

    def record(self, oid: int) -> ObjectRecord:
        """The record of object `oid`.

        Errors: ENOENT, it was destroyed or never granted; EINPROGRESS, perhaps we have lost it, and the MDT, which
        would know, has not been here yet (LU-11765)
        """
        value = self.store.get(OBJECTS, schema.object_key(oid)) if oid > 0 else None
        if value is None:
            if self.ids.may_be_lost(oid):
                raise OpError(errno.EINPROGRESS, f"object {oid}")
            raise OpError(errno.ENOENT, f"object {oid}")
        return schema.unpack_object(value)

    def may_turn_up(self, resource_id: bytes) -> bool:
        """See Target.may_turn_up: an object that we may have lost, and that the MDT will have us make again."""
        oid = int.from_bytes(resource_id, "big")
        return self.ids.may_be_lost(oid) and len(resource_id) == 8 and not self.exists(oid)

    def is_promised(self, resource_id: bytes) -> bool:
        """See PromisedToOthers.awaited."""
        return self.promised.awaited(resource_id)

    def promises_count(self, export: Export) -> bool:
        """See PromisedToOthers.count."""
        return self.promised.count(export)

    def record_for(self, txn: Transaction, oid: int) -> ObjectRecord:
        """The record of object `oid` for a change; a replay makes it again if we have lost it.  Errors: as `record`"""
        if txn.replay and oid > self.ids.last_id:
            return self.ids.recreate(txn, oid)
        return self.record(oid)

    def exists(self, oid: int) -> bool:
        """Whether object `oid` has a record."""
        return oid > 0 and self.store.get(OBJECTS, schema.object_key(oid)) is not None

    def attr(self, oid: int, record: ObjectRecord) -> ObjectAttr:
        """The attributes of an object: its record and its file's size."""
        size, blocks = self.files.stat(oid)
        return ObjectAttr(size, blocks, record.atime, record.mtime, record.ctime, record.version)

    def stage(self, txn: Transaction, oid: int, record: ObjectRecord, *, data: bool) -> ObjectAttr:
        """Put the record into the batch, its version being this transaction; with `data` its file was changed (else `written`)."""
        assert record.version == txn.transno
        resource = resource_of(oid)
        before = author, transno = self.unsynced.get(resource, (txn.export, 0))
        txn.undo(lambda: self._unstage(resource, before))
        if transno <= self.last_committed:
            author = txn.export
        self.unsynced[resource] = (author if author is txn.export else None, max(transno, txn.transno))
        txn.put(OBJECTS, schema.object_key(oid), schema.pack_object(record))
        if data:
            self._touched[oid] = None
            self._fresh = None
        return self.attr(oid, record)

    def _unstage(self, resource: bytes, before: tuple[Export | None, int]) -> None:
        """The change failed: nobody shall wait until it is durable."""
        if before[1]:
            self.unsynced[resource] = before
        else:
            del self.unsynced[resource]

    def written(self, oid: int, offset: int, data: Buffer) -> None:
        """`data` is in a file and not durable: clients keep it, so there is a bound to that."""
        self._touched[oid] = None
        self._uncommitted_bytes += len(data)
        if self._fresh is not None:
            self._fresh_bytes += len(data)
            if self._fresh_bytes <= LOGGED_BYTES_MAX:
                self._fresh.append((oid, offset, bytes(data)))
            else:
                self._fresh = None
        if self._uncommitted_bytes >= self.node.tunables.commit_bytes_max:
            self.committer.commit_soon()

    def statfs(self) -> StatfsReply:
        """Space of the disk; available is what is beyond the reserve and promised to no client."""
        space = self.files.statfs()
        beyond = self._beyond_reserve(space)
        available = max(0, beyond - self.grants.promised)
        state = 0 if beyond > 0 else STATFS_NO_SPACE
        return StatfsReply(space.total, space.free, available, space.files_total, space.files_free, state)

    # ------------------------------------------------------------ destroying

    def destroy(self, txn: Transaction, oids: Sequence[int]) -> int:
        """Delete the records of those that have one, and when that is durable their files; how many there were."""
        gone = []
        for oid in dict.fromkeys(oids):
            key = schema.object_key(oid) if oid > 0 else b""
            if key and txn.get(OBJECTS, key) is not None:
                txn.delete(OBJECTS, key)
                gone.append(oid)
        if gone:
            for oid in gone:
                self._doomed[oid] = None
            txn.when_committed(lambda: self._unlink_later(gone))
        return len(gone)

    def destroy_most(self, oids: Sequence[int]) -> None:
        """Destroy all but the last few of many, some at a time: a full OST has no room for all of them in one batch.

        Errors: EAGAIN, ENOSPC; then there is room for more after a commit, which comes at once
        """
        for start in range(0, len(oids) - DESTROYED_MAX, DESTROYED_MAX):
            try:
                self.run(self.destroy, oids[start : start + DESTROYED_MAX], room=DELETION)
            except OpError:
                self.committer.commit_soon()
                raise

    def own(self, txn: Transaction, owners: Iterable[tuple[int, int, int, int]]) -> None:
        """(object, uid, gid, project id) of each: record it, if the object is there."""
        for oid, uid, gid, projid in owners:
            key = schema.object_key(oid) if oid > 0 else b""
            value = txn.get(OBJECTS, key) if key else None
            if value is not None:
                record = schema.unpack_object(value)._replace(uid=uid, gid=gid, projid=projid)
                txn.put(OBJECTS, key, schema.pack_object(record))

    def _unlink_later(self, oids: list[int]) -> None:
        self.spawn(self._unlink(oids), f"unlink {self.name}")

    async def _unlink(self, oids: list[int]) -> None:
        """Unlink files whose objects are durably gone, after the I/O that still has them in a thread.

        Nobody starts new I/O: that looks for the record first. One that cannot be unlinked is left to the next sweep.
        """
        for oid in oids:
            if self.ranges.busy(oid):
                self.ranges.release(await self.ranges.hold(oid, (0, OBJECT_EOF)))
        try:
            await self.node.run_blocking(self._unlink_all, oids)
        except OpError as error:
            self.say("ost.unlink_failed", "warning", error=str(error))
        for oid in oids:
            self._doomed.pop(oid, None)

    def _unlink_all(self, oids: list[int]) -> None:
        """As many of them as it can.  Errors: the last that failed"""
        failed: OpError | None = None
        for oid in oids:
            try:
                self.files.remove(oid)
            except OpError as error:
                failed = error
        if failed is not None:
            raise failed

    async def _sweep(self) -> None:
        """Unlink data files without a record: a crash came between a destroy's commit and the unlink, or has taken the
        record of an object that nobody uses.

        Only ids that were granted: files above last_id mean that the database is older than they are. What cannot be
        listed is left to the next start.
        """
        ids = self.files.ids()
        try:
            while chunk := await self.node.run_blocking(_some, ids):
                stray = [oid for oid in chunk if self._is_stray(oid)]
                if stray:
                    self.say("ost.strays_unlinked", count=len(stray))
                    await self._unlink(stray)
        except OpError as error:
            self.say("ost.sweep_failed", "warning", error=str(error))

    def _is_stray(self, oid: int) -> bool:
        return 0 < oid <= self.last_id and oid not in self._doomed and not self.exists(oid)

    # ------------------------------------------------------------ fsck

    def list_files(self, after: int, count: int) -> tuple[list[tuple[bytes, bytes]], bool]:
        """(rows of at most `count` data files with ids above `after`, whether there are more). Runs in a worker thread.

        The ids are listed when somebody begins and kept until somebody is through: a page may miss what is new.
        """
        listing = self._listing
        if after == 0 or listing is None:
            listing = self._listing = array("Q", sorted(self.files.ids()))
        start = bisect_right(listing, after)
        rows = [(schema.object_key(oid), schema.pack_u64(self.files.size(oid))) for oid in listing[start : start + count]]
        more = start + count < len(listing)
        if not more:
            self._listing = None
        return rows, more


def _some(ids: Iterator[int]) -> list[int]:
    """The next few, in a worker thread."""
    return list(islice(ids, SWEEP_CHUNK))
