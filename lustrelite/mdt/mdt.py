"""The metadata target: a Target with a name space, open files and a connection to every OST."""

from __future__ import annotations

import errno
from itertools import starmap
from typing import Any

from lustrelite.errors import OpError
from lustrelite.ids import ROOT_FID, Fid, Nid, parse_target_name
from lustrelite.mdt import namespace
from lustrelite.mdt.handlers import HANDLERS
from lustrelite.mdt.layout import Allocator
from lustrelite.mdt.locks import Contention, ride
from lustrelite.mdt.open import OpenFiles, close_handles, destroy_orphan
from lustrelite.mdt.osp import Osp
from lustrelite.mdt.reading import Sequences
from lustrelite.rpc.export import Call, Export
from lustrelite.rpc.links import LinkPool
from lustrelite.rpc.node import Node
from lustrelite.rpc.request import Xids
from lustrelite.store.kv import Store
from lustrelite.store.room import ESSENTIAL, OWED
from lustrelite.store.schema import INODES, ORPHANS
from lustrelite.target.addresses import KNOWN_OSTS
from lustrelite.target.lock_handlers import LOCK_HANDLERS
from lustrelite.target.target import Target
from lustrelite.target.transaction import Transaction
from lustrelite.wire.ldlm import FLOCK, IBITS, Want
from lustrelite.wire.mgs import TargetInfo


class Mdt(Target):
    """An MDT. `set_ost` tells it of OSTs, before or after `start`."""

    kind = "MDT"
    lock_types = (IBITS, FLOCK)

    def __init__(
        self, node: Node, store: Store, *, name: str, links: LinkPool, xids: Xids, index: int = 0,
        root_owner: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        super().__init__(node, store, name=name, index=index)
        self.root_owner = root_owner  # (user, group) of a new file system's root directory
        self.fsname = parse_target_name(name)[0]
        self.handlers.update({**LOCK_HANDLERS, **HANDLERS})
        self.links = links
        self.xids = xids  # one counter for all imports that share links
        self.allocator = Allocator(node)
        self.open_files = OpenFiles(self.node.wall_ns())
        self.contention = Contention(node)
        self.sequences = Sequences(self)
        self._unused: dict[Fid, None] = {}  # orphans that nobody has open, and for whose end there was no room yet
        self._infos: dict[int, TargetInfo] = {}
        self._params: dict[str, str] | None = None  # that are permanent; None: nobody has said
        self._started = False

    # OSTs ---------------------------------------------------------------------------------------------------------

    def set_ost(self, info: TargetInfo) -> None:
        """The configuration knows OST `info`: connect to it, or follow it to its new addresses."""
        assert info.kind == "OST", info
        self._infos[info.index] = info
        if self._started:
            self._connect_ost(info)
            self._remember()

    def configure(self, params: dict[str, str]) -> None:
        """The configuration's permanent parameters are `params`: which OSTs are out of use."""
        self._params = dict(params)
        for osp in self.allocator.osps.values():
            osp.imp.configure(params)
        self._remember()

    def _remember(self) -> None:
        """For a start without the MGS."""
        rows, params = memory = self.get_meta(KNOWN_OSTS, ((), {}))
        infos = {info.index: info for info in (*starmap(TargetInfo, rows), *self._infos.values())}
        known = tuple(map(tuple, infos.values())), params if self._params is None else self._params
        if known != memory:
            try:
                self.store.apply(self.meta_write(KNOWN_OSTS, known), kind=ESSENTIAL)
            except OpError as error:
                self.node.events.emit("mdt.config_not_kept", level="warning", target=self.name, why=str(error))
            self.committer.demand()

    def go_by_memory(self) -> None:
        """The MGS does not answer: what it has not said since the start is as it was."""
        rows, params = self.get_meta(KNOWN_OSTS, ((), {}))
        if self._params is None:
            self.configure(params)
        for info in starmap(TargetInfo, rows):
            if info.index not in self._infos:
                self.set_ost(info)

    def _connect_ost(self, info: TargetInfo) -> None:
        nids = [Nid(nid) for nid in info.nids]
        osp = self.allocator.osps.get(info.index)
        if osp is not None:
            osp.imp.set_nids(nids, info.instance)
            return
        osp = Osp(self, info.index, nids, uuid=info.uuid)
        self.allocator.add(osp)
        osp.imp.configure(self._params or {})
        osp.start()

    # life ---------------------------------------------------------------------------------------------------------

    async def start(self, *, abort_recovery: bool = False) -> None:
        """See Target.start; then connect to the OSTs."""
        await super().start(abort_recovery=abort_recovery)
        self._started = True
        for info in list(self._infos.values()):
            self.set_ost(info)

    async def stop(self) -> None:
        """See Target.stop. Orphans stay: their clients may reopen them elsewhere (LU-184)."""
        await self.take_back_locks()
        self.stopping = True
        self._started = False
        for osp in self.allocator.osps.values():
            await osp.leave()
        await super().stop()

    def kill(self) -> None:
        """See Target.kill."""
        self._started = False
        for osp in self.allocator.osps.values():
            osp.halt()
        super().kill()

    # hooks --------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the pools; a new file system gets its root, durable with the mount count."""
        self.allocator.load(self.store)
        self.sequences.load()
        if self.store.get(INODES, ROOT_FID) is None:
            txn = Transaction(self, None, self.last_transno)
            namespace.make_root(txn, self.root_owner, self.node.wall_ns())
            self.store.apply(txn.writes, kind=ESSENTIAL)

    def recovery_over(self) -> None:
        """Whoever wanted to reopen a file without a name has done so; the OSTs may be told what is not in use."""
        orphans = [fid for key, _ in self.store.scan(ORPHANS) if not self.open_files.is_open(fid := Fid(key))]
        if destroyed := self.destroy_unused(orphans):
            self.node.events.emit("mdt.orphans_destroyed", target=self.name, count=destroyed)
        for locked in list(self.namespace.table.resources):
            if self.store.get(INODES, locked) is None:  # made by who is gone, and lost: nobody may go on believing in it
                self.namespace.revoke(locked)
        for osp in self.allocator.osps.values():
            osp.wake()

    def close_files(self, export: Export, handles: list[int]) -> None:
        """These handles of a client are closed. In recovery others may still reopen what has no name."""
        orphans = close_handles(self, export, handles)
        if not self.recovering:
            self.destroy_unused(orphans)

    def destroy_unused(self, orphans: list[Fid]) -> int:
        """Destroy files that have no name and that nobody has open. Each for itself: a full MDT has no room for many; the rest after a commit.

        Returns how many went now. Some room is left to those who cannot wait. Until it is done they are orphans, which a successor destroys.
        """
        self._unused.update(dict.fromkeys(orphans))
        destroyed = 0
        try:
            for fid in list(self._unused):
                while self.run(destroy_orphan, fid, room=OWED):
                    pass
                del self._unused[fid]
                destroyed += 1
        except OpError as error:
            self.node.events.emit("mdt.orphans_kept", target=self.name, count=len(self._unused), why=str(error))
        return destroyed

    def ride(self, call: Call, body: Any, want: Want) -> None:
        """See Target.ride."""
        ride(call, body, want)

    def lvb(self, resource_id: bytes) -> None:
        """An inode has no value that its locks carry.  Errors: ENOENT, there is none"""
        if self.store.get(INODES, resource_id) is None:
            raise OpError(errno.ENOENT, "no inode to lock")

    def export_gone(self, export: Export) -> None:
        """A client is gone: close its files."""
        self.close_files(export, list(export.opens))

    def after_commit(self) -> None:
        """What is owed to objects and became durable may be sent; there may be room for what had none."""
        if self._unused:
            self.destroy_unused([])
        for osp in self.allocator.osps.values():
            if osp.log.written:
                if osp.log.written <= self.last_committed:  # else it came while the batch was sealed: next time
                    osp.log.written = 0
                osp.log.wake()
