"""The clients of a target: who is on record, who may connect, who is thrown out.

A client is on record (last_rcvd, table `clients`) before it may change anything: a crash would lose it otherwise, and
its replays with it. Its record goes when it leaves, or is evicted, in one transaction with its reply records, then its
open files are closed; what it did is committed then, because nobody is left to replay it (LU-3455).
Source: target_handle_connect(), ldlm/ldlm_lib.c; tgt_client_new(), target/tgt_lastrcvd.c; protocol-facts 1.5, 1.7, 6.4
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from lustrelite.errors import OpError
from lustrelite.ids import epoch_of
from lustrelite.rpc.export import HANDLE_BITS, Call, Export
from lustrelite.store import schema
from lustrelite.store.room import OWED
from lustrelite.store.schema import ClientRecord
from lustrelite.target.handlers import EMPTY
from lustrelite.target.transaction import Transaction
from lustrelite.tunables import limits
from lustrelite.wire.session import (
    CONNECT_RECONNECT,
    CONNECT_RECOVERING,
    CONNECT_REPLAYABLE,
    FEATURE_SERVER,
    FEATURES_KNOWN,
    Connect,
    ConnectReply,
)

if TYPE_CHECKING:
    from lustrelite.target.target import Target

AGAIN_S = 0.1  # after a full disk had no room for the end of a client's record
UNAWARE = "unaware"  # meta: somebody was evicted, and his lease may not be over


class Clients:
    """Connects, disconnects, evictions and the records of them. The exports themselves are `target.exports`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._client_generation = 0
        self.going: dict[str, int] = {}  # clients that have left or were evicted, whose records a full disk has no room to remove yet: their indices
        self._leaving: dict[str, asyncio.TimerHandle] = {}  # clients that have left, and wait until that is durable

    def load(self) -> None:
        """Read the client records and their reply records."""
        self._client_generation = self.target.get_meta("client_generation", 0)
        by_index: dict[int, Export] = {}
        for key, value in self.target.store.scan(schema.CLIENTS):
            record = schema.unpack_client(value)
            index = schema.split_client_key(key)
            export = Export(self.target, record.uuid, index, record.incarnation, record.generation, self.target.node.now())
            export.nid = record.nid
            export.record_durable = True
            self.target.exports[record.uuid] = by_index[index] = export
        for key, value in self.target.store.scan(schema.REPLIES):
            index, tag = schema.split_reply_key(key)
            reply = schema.unpack_reply(value)
            owner = by_index.get(index)
            if owner is not None and owner.generation == reply.generation:
                owner.keep_reply(tag, reply)
                assert reply.transno <= self.target.last_transno, f"{self.target.name}: reply record from the future"

    def connect(self, call: Call) -> None:
        """Connect or reconnect.  Source: target_handle_connect(), ldlm/ldlm_lib.c; protocol-facts 1.5"""
        body: Connect = call.body
        fault = self.target.node.faults.hit("target.connect", body.client)
        if fault is not None and fault.action == "delay":
            asyncio.get_running_loop().call_later(fault.delay_s, self._connect_or_refuse, call)
        elif fault is not None and fault.action == "error":
            self.target.reply(call, -fault.errno, None)
        elif fault is None:
            self._connect_or_refuse(call)

    def _connect_or_refuse(self, call: Call) -> None:
        try:
            self._connect(call)
        except OpError as error:
            self.target.reply(call, -error.errno, None)

    def _connect(self, call: Call) -> None:
        body: Connect = call.body
        if self.target.stopping:
            raise OpError(errno.ENODEV, f"{self.target.name} is stopping")
        recovery = self.target.recovery if self.target.recovering else None
        if recovery is not None:
            recovery.window.attempt(self.target.node.now())
            recovery.step_soon()
        self.target.check_client(body)
        if body.client in self._leaving:
            raise OpError(errno.EBUSY, "what it did before it left is not durable yet")
        export = self.target.exports.get(body.client)
        last_xid = 0
        known = False
        flags = CONNECT_REPLAYABLE if self.target.recoverable else 0
        if export is not None:
            if body.incarnation < export.incarnation:
                raise OpError(errno.EALREADY, "a newer incarnation of this client is connected")
            if body.incarnation == export.incarnation and call.conn_cnt <= export.conn_cnt:
                raise OpError(errno.EALREADY, "a delayed connect")
            last_xid = max([export.last_xid, *(r.xid for r in export.replies.values())])
            known = body.handle != 0 and body.incarnation == export.incarnation
            if body.incarnation > export.incarnation:
                self._renew(export, body)
            elif body.handle and body.handle == export.handle:
                flags |= CONNECT_RECONNECT
            elif body.handle and export.conn_cnt and recovery is None:
                # it missed our recovery, or an eviction and all that followed
                self.evict(export, "it reconnected with an old handle")
                export = None
        if export is None:
            if recovery is not None and (not body.features & FEATURE_SERVER or body.client in recovery.known):
                recovery.deny(body.client)
                raise OpError(errno.EBUSY, "in recovery")
            if body.client in self.going:
                raise OpError(errno.EBUSY, "it was evicted, or left, and the disk is too full to write that down")
            export, known = self._new_client(body, call), False
        export.conn_cnt = call.conn_cnt
        export.last_request = self.target.node.now()
        export.last_xid = 0
        peer = call.link.peer
        export.nid = peer if body.nid == peer else body.nid  # one string, not two
        export.features = body.features & FEATURES_KNOWN
        if recovery is not None and export.uuid in recovery.known:
            export.in_recovery = True
            recovery.client_connected(export, body)
            flags |= CONNECT_RECOVERING
        if self.target.node.faults.hit("target.connect_flags", export.uuid) is not None:
            flags |= CONNECT_RECOVERING
        self.target.service.admit_export(export, call.link)
        call.export = export
        self.target.node.events.emit(
            "client.connected", target=self.target.name, client=export.uuid, nid=export.nid, conn_cnt=export.conn_cnt,
            reconnect=bool(flags & CONNECT_RECONNECT), recovering=bool(flags & CONNECT_RECOVERING),
        )  # fmt: skip
        tunables = self.target.node.tunables
        self.target.namespace.deadlines.lease_told_s = max(self.target.namespace.deadlines.lease_told_s, self.target.lease_s)
        reply = ConnectReply(
            export.handle, flags, export.features, self.target.instance, min(tunables.max_mod_rpcs, limits.mod_rpcs_max),
            min(tunables.max_bytes_per_rpc, limits.brw_bytes_max) if tunables.max_bytes_per_rpc else 0, last_xid,
            self.target.index, 0, int(self.target.lease_s * 1000), self.target.grant_on_connect(export, body, known),
        )  # fmt: skip
        if export.record_durable or not self.target.recoverable:
            self.target.reply(call, 0, reply)
            if export.callbacks is not None:
                export.callbacks.reconnected()
            return
        final_export = export

        def durable() -> None:
            final_export.record_durable = True
            self.target.reply(call, 0, reply)

        # A client that may change something must be on record first: a crash would lose it, and its replays with it.
        self.target.committer.after(self.target.last_transno, durable)

    def _new_client(self, body: Connect, call: Call) -> Export:
        fault = self.target.node.faults.hit("target.client_new", body.client)
        if fault is not None and fault.action == "error":
            raise OpError(fault.errno, "fault at target.client_new")
        used = {e.client_index for e in self.target.exports.values()} | set(self.going.values())
        index = next(i for i in range(len(used) + 1) if i not in used)
        self._client_generation += 1
        export = Export(self.target, body.client, index, body.incarnation, self._client_generation, self.target.node.now())
        if self.target.recoverable:
            self._write_client(export, body.incarnation)
        self.target.exports[body.client] = export  # it has its record now: a full disk may have refused it
        return export

    def _write_client(self, export: Export, incarnation: int) -> None:
        """Errors: ENOSPC"""
        record = ClientRecord(
            export.uuid, incarnation, self._client_generation, epoch_of(self.target.last_transno), export.nid
        )

        def write(txn: Transaction) -> None:
            txn.put(schema.CLIENTS, schema.client_key(export.client_index), schema.pack_client(record))
            txn.writes.update(self.target.meta_write("client_generation", self._client_generation))

        self.target.run(write)

    def _renew(self, export: Export, body: Connect) -> None:
        """The client process behind `export` was restarted under its stable UUID: it has nothing to replay.

        Errors: ENOSPC, and nothing was changed: it will come again
        """
        self._client_generation += 1
        if self.target.recoverable:
            self._write_client(export, body.incarnation)
        self.target.export_gone(export)
        if self.target.recovery is not None and self.target.recovering:
            self.target.recovery.client_restarted(export)
        self._drop_calls(export)
        self.target.namespace.owner_gone(export)
        export.last_callback = 0
        if self.target.service is not None:
            self.target.service.forget(export)
        export.handle = self.target.node.random.getrandbits(HANDLE_BITS) | 1
        export.incarnation = body.incarnation
        export.forget_replies()
        export.forget_opens()
        export.conn_cnt = 0
        export.vbr_failed = False
        export.generation = self._client_generation
        export.record_durable = False

    def link_lost(self, export: Export) -> None:
        """The client's link broke. It stays a client until it is silent for too long."""
        self.target.node.events.emit("client.link_lost", target=self.target.name, client=export.uuid)

    def disconnect(self, call: Call) -> None:
        """The client leaves; the answer comes when everything it did is durable."""
        export = call.export
        self._remove(export)
        self.target.namespace.owner_gone(export)
        self.target.node.events.emit("client.disconnected", target=self.target.name, client=export.uuid)
        if self.target.recovery is not None and self.target.recovering:
            self.target.recovery.client_gone(export)
        loop = asyncio.get_running_loop()
        pause = max(0.1, min(call.header.timeout_ms / 3000, self.target.node.tunables.rpc_timeout_s))

        def still_working() -> None:
            call.still_working()
            self._leaving[export.uuid] = loop.call_later(pause, still_working)

        def durable() -> None:
            self._leaving.pop(export.uuid).cancel()
            self.target.reply(call, 0, EMPTY)

        self._leaving[export.uuid] = loop.call_later(pause, still_working)
        if export.uuid in self.going:
            self.target.spawn(self._when_removed(export.uuid, durable), f"goodbye of {export.uuid}")
        else:
            self.target.committer.after(self.target.last_transno, durable)

    async def _when_removed(self, client: str, durable: Callable[[], None]) -> None:
        while client in self.going:
            await asyncio.sleep(AGAIN_S)
        self.target.committer.after(self.target.last_transno, durable)

    def close(self) -> None:
        """The target is given up: who waits for the answer to his goodbye comes again."""
        for timer in self._leaving.values():
            timer.cancel()

    def _remove(self, export: Export, *, unaware: bool = False) -> None:
        """Forget a client: its record and reply records, in one transaction, then what it had open.

        If the disk is too full for that the records go later.
        """
        index, tags = export.client_index, list(export.replies)

        def remove(txn: Transaction) -> None:
            if unaware:
                txn.writes.update(self.target.meta_write(UNAWARE, True))
            if self.target.recoverable:
                txn.delete(schema.CLIENTS, schema.client_key(index))
                for tag in tags:
                    txn.delete(schema.REPLIES, schema.reply_key(index, tag))

        try:
            self.target.run(remove, room=OWED)
        except OpError:
            self.going[export.uuid] = index
            self.target.spawn(self._remove_later(export.uuid, remove), f"remove {export.uuid}")
        export.failed = True
        self.target.export_gone(export)
        export.forget_opens()
        self.target.exports.pop(export.uuid, None)
        if self.target.service is not None:
            self.target.service.forget(export)

    async def _remove_later(self, client: str, remove: Callable[[Transaction], None]) -> None:
        """Many are evicted, or leave, at once. Should we die before, our successor waits for this one as if we had died sooner."""
        while client in self.going:
            await self.target.committed()
            try:
                self.target.run(remove, room=OWED)
                del self.going[client]
            except OpError:
                await asyncio.sleep(AGAIN_S)

    def _drop_calls(self, export: Export, status: int = 0) -> None:
        for waiting in export.calls_in_progress():
            if status:
                self.target.reply(waiting, status, None)
            else:
                self.target.abandon(waiting)
        export.forget_calls()

    def evict(self, export: Export, why: str) -> None:
        """Throw a client out: its handles and slots go, what it did is committed (LU-3455), waiters go on.

        Its requests in progress will change nothing any more; it learns of it at its next request (ENOTCONN). Until
        then it may serve from its caches: those of its locks that nobody has asked for stay as long as its lease.
        """
        if export.failed:
            return
        self.target.evictions += 1
        self.target.node.events.emit(
            "client.evicted", level="warning" if self.target.recoverable else "info", target=self.target.name, client=export.uuid, nid=export.nid, why=why,
            recovering=self.target.recovering,
        )  # fmt: skip
        lease_left_s = export.last_request + self.target.namespace.deadlines.lease_told_s - self.target.node.now()
        self._remove(export, unaware=lease_left_s > 0 and self.target.recoverable)
        self.target.namespace.owner_evicted(export, lease_left_s)
        self._drop_calls(export, -errno.ENOTCONN)
        if self.target.recovery is not None and self.target.recovering:
            self.target.recovery.client_gone(export)
        self.target.committer.demand()

    def evict_matching(self, pattern: str) -> int:
        """`evict_client`: "UUID", "uuid:UUID" or "nid:NID"; returns how many went."""
        kind, _, value = pattern.partition(":") if pattern.startswith(("uuid:", "nid:")) else ("uuid", "", pattern)
        chosen = [
            e for e in self.target.exports.values() if (e.nid == value if kind == "nid" else e.uuid == value)
        ]
        for export in chosen:
            self.evict(export, "by the administrator")
        return len(chosen)

    async def evict_the_silent(self) -> None:
        """Evict who is silent while others talk.  Source: ping_evictor_main(); protocol-facts 6.4"""
        target = self.target
        while True:
            limit = target.node.tunables.evict_silent_s
            slept_at = target.node.now()
            await asyncio.sleep(limit / 4)
            if target.recovering or not target.exports:
                continue
            now = target.node.now()
            if now - slept_at > limit / 2:  # it was us who stood still: what they said meanwhile is yet to be read
                for export in target.exports.values():
                    export.last_request = now
                continue
            newest = max(e.last_request for e in target.exports.values())
            if now - newest > limit / 2:
                continue  # nobody talks: it is the network
            for export in list(target.exports.values()):
                if now - export.last_request > limit:
                    self.evict(export, f"silent for {now - export.last_request:.0f} s while others talk")
