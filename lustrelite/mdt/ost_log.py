"""What the MDT owes to the objects of one OST, until it is durable there: the log towards that OST, and its worker.

    destroy    the file is gone, or a recovery has jumped over the object's id
    owner      user, group and project of the file have changed: the object is counted for them

A record is written in the transaction of the change that it follows from, so a crash takes both or neither. It says
what the object shall be, not what is to be done, and there is one per object: a later change takes the place of an
earlier one, a destroy that of any. So a record may be carried out any number of times, and no order of failures can
leave the object in an older state than the log does.

Only records that are durable here are sent (a crash may still take the change back), only outside recovery (a replay
may still claim an object that is to be destroyed), only after the orphan pass of the connection (before, the object may
be one that the OST has lost and will make again: it would outlive its destroy), one request at a time, so that two
changes of one object reach the OST in their order. The OST answers at once. A record is crossed off when the OST has
committed the answer's transno; until then the import replays the request if the OST restarts. After every connect
everything that is left is sent again: the OST may have forgotten us, and with us what it had not committed. A record
that was replaced meanwhile is not crossed off for the sake of the older one.

Source: osp_sync.c, osp_sync_process_committed(); protocol-facts 7.3.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from lustrelite.errors import Deactivated, Evicted, OpError
from lustrelite.recovery.import_fsm import State
from lustrelite.store.schema import (
    OST_LOG,
    OstLogRecord,
    Owner,
    log_key,
    pack_log,
    pool_key,
    split_log_key,
    unpack_log,
)
from lustrelite.wire.ost import Destroy, SetOwners

if TYPE_CHECKING:
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.mdt.osp import Osp
    from lustrelite.target.transaction import Transaction
    from lustrelite.wire.mdt import Layout

RECORDS_MAX = 1000  # in one request
FORGOTTEN_MAX = 64  # at once: a full MDT has room for that
IN_PROGRESS_MAX = 16_384  # sent and perhaps not durable: with so many the worker waits for the OST's commit
RETRY_S = 1.0  # after the OST refused

NOBODY = Owner(0, 0, 0)  # whose an object is from the start


def condemn(txn: Transaction, ost: int, oid: int) -> None:
    """The object shall be destroyed."""
    _put(txn, ost, oid, pack_log(OstLogRecord(txn.transno, None)))


def pardon(txn: Transaction, ost: int, oid: int) -> None:
    """It shall not: a replay has claimed it."""
    key = log_key(ost, oid)
    record = txn.get(OST_LOG, key)
    if record is not None and unpack_log(record).owner is None:
        txn.delete(OST_LOG, key)


def own(txn: Transaction, layout: Layout | None, owner: Owner) -> None:
    """The objects of `layout` belong to `owner` from now on."""
    if layout is not None:
        record = pack_log(OstLogRecord(txn.transno, owner))
        for ost, oid in layout.stripes:
            _put(txn, ost, oid, record)


def _put(txn: Transaction, ost: int, oid: int, record: bytes) -> None:
    txn.put(OST_LOG, log_key(ost, oid), record)
    osp = cast("Mdt", txn.target).allocator.osps.get(ost)
    if osp is not None:
        osp.log.written = txn.transno


class OstLog:
    """The worker of one OST's log."""

    def __init__(self, osp: Osp) -> None:
        self.osp = osp
        self.mdt = osp.mdt
        self.node = osp.node
        self.written = 1  # the last transno that wrote a record, 0 if that is durable; perhaps before this OST was known
        self.sent: dict[int, int] = {}  # object -> transno of its record, for what is not known to be durable there
        self.answered: deque[tuple[int, list[tuple[int, int]]]] = deque()  # (the OST's transno, [(object, record's)])
        self.destroyed = 0
        self._wanted = asyncio.Event()
        self._held_back = False  # too much is in progress

    def wake(self) -> None:
        """There may be work: records became durable, recovery is over, more space."""
        self._wanted.set()

    def length(self) -> int:
        """How many records there are."""
        return sum(1 for _ in self.mdt.store.scan(OST_LOG, prefix=pool_key(self.osp.index)))

    def connected(self) -> None:
        """The OST may have forgotten what it had answered."""
        self.sent.clear()
        self.answered.clear()

    async def keep_sending(self) -> None:
        """Work the log off, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._sweep()
            except (Evicted, Deactivated):
                pass  # it begins anew when the connection stands
            except OpError as error:
                self.node.events.emit("osp.log_refused", level="warning", ost=self.osp.name, why=str(error))
                await asyncio.sleep(RETRY_S)
                self._wanted.set()

    async def _sweep(self) -> None:
        """Send everything that is due and not on its way, in the order of the objects.

        An OST that is too full to note owners hears of the destroys behind them all the same: these make room.
        """
        self._cross_off()
        after = b""
        refused: OpError | None = None
        while self.osp.synced and not self.mdt.recovering and self.osp.imp.state is State.FULL:
            self._held_back = len(self.sent) >= IN_PROGRESS_MAX
            if self._held_back:
                break
            destroys, owners, after = self._due(after)
            if destroys:
                await self._send(Destroy(tuple([oid for oid, _ in destroys])), destroys)
                self.destroyed += len(destroys)
            if owners:
                body = SetOwners(tuple([(oid, *owner) for oid, _, owner in owners]))
                try:
                    await self._send(body, [(oid, transno) for oid, transno, _ in owners])
                except (Evicted, Deactivated):
                    raise
                except OpError as error:
                    refused = error
            if len(destroys) + len(owners) < RECORDS_MAX:
                break
        if refused is not None:
            raise refused

    def _due(self, after: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int, Owner]], bytes]:
        """What is durable here and not on its way, after `after`: destroys, owners, and where to go on."""
        destroys: list[tuple[int, int]] = []
        owners: list[tuple[int, int, Owner]] = []
        last_committed = self.mdt.last_committed
        for key, value in self.mdt.store.scan(OST_LOG, after, prefix=pool_key(self.osp.index)):
            after = key
            transno, owner = unpack_log(value)
            oid = split_log_key(key)[1]
            if transno > last_committed or self.sent.get(oid) == transno:
                continue
            if owner is None:
                destroys.append((oid, transno))
            else:
                owners.append((oid, transno, owner))
            if len(destroys) + len(owners) == RECORDS_MAX:
                break
        return destroys, owners, after

    async def _send(self, body: Any, records: list[tuple[int, int]]) -> None:
        transno = await self.osp.imp.call_change(body)
        self.sent.update(records)
        self.answered.append((transno, records.copy()))
        self.cross_off()

    def cross_off(self) -> None:
        """The OST has committed: forget the records of what is durable there."""
        try:
            self._cross_off()
        except OpError:
            self.wake()  # the worker says so, and tries again

    def _cross_off(self) -> None:
        """Errors: ENOSPC, this MDT is so full that there is no room for more of it before the next commit"""
        last_committed = self.osp.imp.last_committed
        done = False
        while self.answered and self.answered[0][0] <= last_committed:
            records = self.answered[0][1]
            while records:
                some = records[-FORGOTTEN_MAX:]
                self.mdt.run(_forget, self.osp.index, some)
                del records[-FORGOTTEN_MAX:]
                for oid, transno in some:
                    if self.sent.get(oid) == transno:
                        del self.sent[oid]
            self.answered.popleft()
            done = True
        if done and self._held_back:
            self.wake()


def _forget(txn: Transaction, ost: int, records: list[tuple[int, int]]) -> None:
    """The objects are as these records say, for good; a newer record stays."""
    for oid, transno in records:
        key = log_key(ost, oid)
        value = txn.get(OST_LOG, key)
        if value is not None and unpack_log(value).transno == transno:
            txn.delete(OST_LOG, key)
