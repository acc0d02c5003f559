"""Towards one OST the MDT is a client: it has object ids granted ahead of time, and cleans up after crashes.

Ids. Those in (last_used, granted] may be taken, before the OST has made the grant durable: a crash of the OST may take
it, and our import replays it like any change. `last_used` is durable with the layout that uses it. After every connect
the two may disagree: the MDT crashed and lost allocations or its replays, or an answer of the OST was lost. So the pool
is frozen, and OST_CREATE with DELORPHAN says: all above last_used is not in any layout, destroy it, make what you miss
below, and where shall I go on? New ids start above the answer and above last_used. While the MDT itself is in recovery
this waits, because replays still claim ids. One task does it all in turn, so an answer can never belong to another
question; an answer from before a reconnect is thrown away.

What becomes of objects that have a file, or had one, goes through the log (ost_log.py).

The pool holds about a second of creates at the present rate: a batch doubles when half of the last went in less than
COVER_S, and halves when it took more than LASTS_S. An OST that answers late, or not at all, has its pool used up, and
then gets no new files until it grants again; nobody waits for it as long as others can serve (layout.py).
Source: osp_precreate.c; protocol-facts 7.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lustrelite.errors import Deactivated, Evicted, OpError
from lustrelite.ids import Nid, mdt_client_uuid, target_name, target_uuid
from lustrelite.mdt.layout import raise_last_used
from lustrelite.mdt.ost_log import OstLog
from lustrelite.recovery.import_fsm import State
from lustrelite.rpc.client_import import ClientImport
from lustrelite.store.schema import pool_key
from lustrelite.wire.mdt import STATFS_NO_SPACE, STATFS_READ_ONLY
from lustrelite.wire.ost import CREATE_DELORPHAN, OstCreate, OstCreateReply, OstStatfs
from lustrelite.wire.session import FEATURE_SERVER

if TYPE_CHECKING:
    from lustrelite.mdt.mdt import Mdt

COVER_S = 0.5  # half a batch shall last so long: an OST may be slow to commit the next
RETRY_S = 1.0  # after the OST refused
LASTS_S = 30.0  # if half a batch lasts longer, the next is half as large
CANNOT_CREATE = STATFS_NO_SPACE | STATFS_READ_ONLY  # StatfsReply.state


class Osp:
    """The connection to OST `index`, with its pool of ids and its log."""

    def __init__(self, mdt: Mdt, index: int, nids: Sequence[Nid], *, uuid: str = "") -> None:
        self.mdt = mdt
        self.node = mdt.node
        self.index = index
        self.name = target_name(mdt.fsname, "OST", index)
        self.pool_key = pool_key(index)
        self.imp = ClientImport(
            mdt.node, mdt.links,
            target_uuid=uuid or target_uuid(self.name), nids=nids, client_uuid=mdt_client_uuid(mdt.name),
            incarnation=mdt.instance, xids=mdt.xids, features=FEATURE_SERVER,
        )  # fmt: skip
        self.imp.on_full.append(self._connected)
        self.imp.on_switched.append(self._switched)
        self.next = 1  # the next id to take
        self.granted = 0  # the last one
        self._filled_at = float("-inf")  # since the last cleanup
        self.batch = self._least
        self.synced = False  # orphans are cleaned up on this connection
        self.full = False  # says its statfs
        self.refusing = 0  # it answered ENOSPC or EROFS to the last request for ids
        self.batch_max: int | None = None  # None: that of the process; 0: it gets no new objects (max_create_count)
        self.ran_dry = 0  # times that the last id was taken before more were granted
        self.log = OstLog(self)
        self.imp.on_committed.append(self.log.cross_off)
        self._connection = 0  # counts on_full: answers of an older one are void
        self._ids_wanted = asyncio.Event()
        self._look_wanted = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Connect and keep the pool filled until `leave` or `halt`."""
        self.imp.start()
        spawn = self.node.spawn
        self._tasks = [
            spawn(self._keep_ids(), f"precreate {self.name}"),
            spawn(self.log.keep_sending(), f"log {self.name}"),
            spawn(self._keep_looking(), f"statfs {self.name}"),
        ]

    def halt(self) -> None:
        """End all work without a word, as a killed process does."""
        self._end_tasks()
        self.imp.stop()

    async def leave(self) -> None:
        """End all work and tell the OST, if it is there.

        What it may have lost our successor's first pass makes good.
        """
        self._end_tasks()
        await self.imp.disconnect(patient=False)

    def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        self.synced = False

    def wake(self) -> None:
        """Something changed (recovery is over, more space): look whether there is work."""
        self._ids_wanted.set()
        self.log.wake()

    def _connected(self) -> None:
        self._connection += 1
        self.synced = False
        self.next = self.granted + 1  # frozen
        self.log.connected()
        self.mdt.allocator.refresh()
        self.wake()

    def _switched(self) -> None:
        """The administrator has taken it out of use, or back."""
        self.mdt.allocator.refresh()
        self.wake()

    # ------------------------------------------------------------ ids

    @property
    def ready(self) -> bool:
        """Can give an id at once."""
        return (
            self.synced
            and self.next <= self.granted
            and not self.full
            and self.refusing != errno.EROFS  # ids of before it had no more (ENOSPC) are good: their files will find inodes
            and self.imp.state is State.FULL
            and not self.imp.inactive
            and self.batch_max != 0
        )

    @property
    def hopeful(self) -> bool:
        """May be ready later without anybody's help."""
        return not self.full and not self.refusing and not self.imp.inactive and self.batch_max != 0

    @property
    def available(self) -> int:
        """Ids that can be taken."""
        return self.granted - self.next + 1 if self.synced else 0

    def take(self) -> int:
        """The next id."""
        oid = self.next
        assert self.synced and oid <= self.granted, self.name
        self.next = oid + 1
        left = self.granted - oid
        if left < self._enough:
            self._ids_wanted.set()
            if not left:
                self.ran_dry += 1
                self.mdt.allocator.refresh()
        return oid

    def give_back(self, oid: int) -> None:
        """`oid`, the last one taken, was not used after all."""
        assert oid == self.next - 1, (self.name, oid, self.next)
        self.next = oid

    @property
    def _least(self) -> int:
        """The smallest batch."""
        return max(self.node.tunables.precreate_min, 1)

    @property
    def _enough(self) -> int:
        """With so many ids left no more are asked for."""
        return max(self.batch // 2, 1)

    def _low(self) -> bool:
        return self.available < self._enough and self.batch_max != 0

    def limit_batch(self, batch_max: int) -> None:
        """max_create_count; 0: no new objects from now on, what there is may still be used and destroyed."""
        self.batch_max = batch_max
        self.batch = max(min(self.batch, batch_max), 2)
        self.mdt.allocator.refresh()
        self.wake()

    async def _keep_ids(self) -> None:
        while True:
            await self._ids_wanted.wait()
            self._ids_wanted.clear()
            while not self.mdt.recovering and self.imp.state is State.FULL and (not self.synced or self._low()):
                try:
                    if not self.synced:
                        await self._clean_orphans()
                    else:
                        await self._refill()
                except (Evicted, Deactivated):
                    break  # `_connected` begins anew
                except OpError as error:
                    self._refused(error)
                    await asyncio.sleep(RETRY_S)

    def _refused(self, error: OpError) -> None:
        self.node.events.emit("osp.refused", level="warning", ost=self.name, why=str(error))
        self.refusing = error.errno if error.errno in (errno.ENOSPC, errno.EROFS) else 0
        if self.refusing == errno.ENOSPC:
            self.batch = max(self.batch // 2, self._least)  # for fewer it may have room
        if self.refusing and not self.full:
            self._look_wanted.set()  # has it no room for data, either?
        self.mdt.allocator.refresh()

    async def _clean_orphans(self) -> None:
        connection = self._connection
        last_used = self.mdt.allocator.last_used.get(self.index, 0)
        await self.mdt.fault("mdt.delorphan")
        reply: OstCreateReply = await self.imp.call(OstCreate(last_used, CREATE_DELORPHAN))
        if connection != self._connection or self.mdt.recovering:
            return
        # Nothing was allocated meanwhile: an unsynced pool gives no ids.
        assert self.mdt.allocator.last_used.get(self.index, 0) == last_used, self.name
        start = max(reply.last_id, last_used)
        if start > last_used:
            # Ids in between are destroyed: the replay of the next create shall find no gap, so they are left out durably.
            self.mdt.run(raise_last_used, self.index, start)
            self.mdt.allocator.last_used[self.index] = start
            await self.mdt.committed()
            if connection != self._connection:
                return
        self.next, self.granted = start + 1, start
        self.synced = True
        self._filled_at = float("-inf")
        self.refusing = 0
        self._look_wanted.set()
        self.log.wake()
        self.node.events.emit("osp.orphans_cleaned", ost=self.name, last_used=last_used, last_id=reply.last_id)

    async def _refill(self) -> None:
        connection = self._connection
        reply: OstCreateReply = await self.imp.call(OstCreate(self.granted + self.batch, 0))
        if connection != self._connection:
            return
        now = self.node.now()
        if now - self._filled_at < COVER_S:  # half a batch went in no time: ask for more at once
            most = self.node.tunables.precreate_max if self.batch_max is None else self.batch_max
            self.batch = max(min(self.batch * 2, most), 1)
        elif LASTS_S < now - self._filled_at < float("inf"):
            self.batch = max(self.batch // 2, self._least)
        self._filled_at = now
        if reply.last_id <= self.granted:
            self.node.events.emit("osp.nothing_granted", level="warning", ost=self.name, last_id=reply.last_id)
            await asyncio.sleep(RETRY_S)
            return
        self.granted = reply.last_id
        self.refusing = 0
        self.mdt.allocator.refresh()

    # ------------------------------------------------------------ space

    async def _keep_looking(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.node.tunables.qos_maxage_s):
                    await self._look_wanted.wait()
            self._look_wanted.clear()
            if self.imp.state is not State.FULL or not self.synced:
                continue
            try:
                space = await self.imp.call(OstStatfs())
            except OpError:
                continue
            self.mdt.allocator.qos.look(self.index, space.bytes_available)
            self.mdt.allocator.refresh()
            full = bool(space.state & CANNOT_CREATE)
            if full != self.full:
                self.full = full
                self.node.events.emit("osp.full" if full else "osp.has_space", ost=self.name)
                self.mdt.allocator.refresh()
                self.wake()

