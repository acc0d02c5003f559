"""What one mount holds towards the servers: its identity, an import for each target, and its open files.

A mount is one client: one UUID, new for each mount, and one line of XIDs. Targets come from the MGS and may move or
be added at any time; the MDT must be there before the mount is, OSTs may come later.
Leaving in good order closes what is open, then disconnects from the OSTs and at last from the MDT; `stop` just goes
away, as a killed process would, and the servers find out.
"""

from __future__ import annotations

import asyncio
import errno
import uuid
from collections.abc import Sequence

from lustrelite.client.attr_cache import AttrCache
from lustrelite.client.files_ahead import FilesAhead
from lustrelite.client.flocks import Flocks
from lustrelite.client.late_closes import LateCloses
from lustrelite.client.local_opens import LocalOpens
from lustrelite.client.lov import Lov
from lustrelite.client.mdc import Mdc, MetadataImport
from lustrelite.client.open_files import OpenFiles
from lustrelite.client.osc import DataImport, Osc
from lustrelite.client.tasks import Tasks
from lustrelite.errors import OpError
from lustrelite.ids import ROOT_FID, Fid, Nid
from lustrelite.ldlm.lock_cache import LockCache
from lustrelite.recovery.import_fsm import State
from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.config import ConfigFollower
from lustrelite.rpc.failout import Failout
from lustrelite.rpc.goodbye import Patience, say_left
from lustrelite.rpc.links import LinkPool
from lustrelite.rpc.node import Node
from lustrelite.rpc.request import Request, Xids
from lustrelite.wire.mdt import Create, Open
from lustrelite.wire.message import ROOT_CRED
from lustrelite.wire.mgs import TargetInfo
from lustrelite.wire.session import FEATURE_GRANT

GIVE_UP_S = 2.0  # for the goodbye of servers that seem to be there


class Connections:
    """One mounted client. `fs.FileSystem` objects are views of it, each with its own credential."""

    def __init__(self, node: Node, fsname: str) -> None:
        self.node = node
        self.fsname = fsname
        self.uuid = str(uuid.UUID(int=node.random.getrandbits(128), version=4))
        self.links = LinkPool(node)
        self.xids = Xids(node)
        self.tasks = Tasks(node)
        self.imports: dict[str, ClientImport] = {}  # by target name
        self.config: ConfigFollower | None = None
        self.lov = Lov(self.tasks)
        self.late_closes = LateCloses(self)
        self.open_files = OpenFiles(self.late_closes)
        self.files_ahead = FilesAhead(self)
        self.flocks = Flocks(self)
        self.caching = bool(node.tunables.caching)  # at mount
        self.root: Fid = ROOT_FID
        self.closed = False  # nothing begins any more
        self._gone = False
        self.names: AttrCache | None = None  # what is known of the MDT's files, if this client caches
        self.local_opens: LocalOpens | None = None
        self._mdc: Mdc | None = None
        self._mdt_known = asyncio.Event()
        self._last_time = 0

    @property
    def mdc(self) -> Mdc:
        """The MDT."""
        assert self._mdc is not None, "mounted"
        return self._mdc

    def time(self) -> int:
        """Now, for timestamps: no two are equal, so that a client's later change has the later time."""
        self._last_time = max(self.node.wall_ns(), self._last_time + 1)
        return self._last_time

    # coming -----------------------------------------------------------------------------------------------------

    async def connect(self, mgs_nids: Sequence[Nid], *, patient: bool = False) -> None:
        """Learn the configuration, connect, and return once the MDT has answered.  ENOENT: no such file system

        Who is `patient` waits until there is one. Who fails or is cancelled has left: a server that took him in would wait
        for him in its next recovery.
        """
        assert self.config is None, "connect() once"
        try:
            await self._connect(mgs_nids, patient=patient)
        except (Exception, asyncio.CancelledError):
            if not self.node.dead:
                await self.give_up()
            raise

    async def _connect(self, mgs_nids: Sequence[Nid], *, patient: bool) -> None:
        self.config = ConfigFollower(
            self.node, self.links, mgs_nids, self.fsname, client_uuid=self.uuid, xids=self.xids
        )
        self.lov.read_configuration = self.config.read_again
        self.config.on_change(self._target_changed)
        self.config.on_params(self._params_changed)
        self.config.start()
        await (self.config.load_when_known() if patient else self.config.load())
        await self._mdt_known.wait()
        reply = await self.mdc.get_root()
        if reply.fsname != self.fsname:
            raise OpError(errno.ENOENT, f"the MDT serves {reply.fsname!r}, not {self.fsname!r}")
        self.root = reply.attr.fid
        self.node.events.emit("client.mounted", fsname=self.fsname, client=self.uuid)

    def add_mdt(self, imp: MetadataImport) -> None:
        """The MDT is reached through `imp`."""
        assert self._mdc is None, "one MDT serves the whole tree so far"
        self._mdc = Mdc(self.tasks, imp)
        self.names = self._mdc.cache
        if self.names is not None:
            self.names.objects = self.lov
            self.names.on_attrs_lost = self.open_files.attrs_lost
            self.local_opens = LocalOpens(self._mdc, self.names.locks, self.tasks)
        self._mdt_known.set()

    def add_ost(self, index: int, imp: DataImport) -> None:
        """The OST with `index` is reached through `imp`."""
        self.lov.add(Osc(self.node, imp, index))
        if self.lov.locked is not None:
            self.lov.locked.shared.on_lost = self.open_files.write_failed
            self.lov.locked.shared.metadata_leased = self._metadata_leased
            self.lov.locked.shared.metadata_until = self._metadata_until
            self.lov.locked.shared.metadata_instance = lambda: self.mdc.imp.instance  # type: ignore[attr-defined]
            self.lov.locked.shared.on_heard = self._heard

    def _metadata_leased(self) -> bool:
        return self.names is not None and self.names.locks.lease_valid

    def _metadata_until(self) -> float:
        until: float = self.mdc.imp.lease_until  # type: ignore[attr-defined]
        return until

    def _heard(self, fid: Fid) -> None:
        if self.names is not None:
            self.names.not_sole(fid)

    def _target_changed(self, info: TargetInfo) -> None:
        nids = [Nid(nid) for nid in info.nids]
        known = self.imports.get(info.name)
        if known is not None:
            known.set_nids(nids, info.instance)  # also while we leave: we may be waiting for it
            return
        if self.closed or info.kind not in ("MDT", "OST") or (info.kind == "MDT" and info.index != 0):
            return
        imp = ClientImport(
            self.node, self.links, target_uuid=info.uuid, nids=nids, client_uuid=self.uuid,
            incarnation=self.xids.last, xids=self.xids,
            features=FEATURE_GRANT if self.caching and info.kind == "OST" else 0,
        )  # fmt: skip
        self.imports[info.name] = imp
        if self.caching:
            imp.locks = LockCache(imp)
            imp.on_evicted.append(imp.locks.lost_all)
        if info.kind == "OST":
            imp.failout = Failout(imp)
        imp.start()
        if info.kind == "OST":
            self.add_ost(info.index, imp)
            data = self.lov.oscs[info.index].data
            if data is not None:
                imp.grant = data.grant
                imp.on_evicted.append(data.writeback.evicted)
        else:
            imp.gives_up = self._no_ost
            self.add_mdt(imp)
        if self.config is not None:
            imp.configure(self.config.params)

    def _no_ost(self, request: Request) -> OpError | None:
        """A file cannot be made now: no OST can serve. In failout mode who asked for it is not kept waiting.

        The MDT has no such mode: it holds a request for a moment and says "come again".
        """
        if type(request.body) not in (Open, Create):
            return None
        away = [imp for imp in self.imports.values() if imp.failout is not None and not imp.inactive]
        if not away or not all(imp.failout.refuses for imp in away if imp.failout):
            return None
        return OpError(errno.EIO, f"no file can be made: {', '.join(imp.target for imp in away)} away (failover.mode=failout)")

    def _params_changed(self, params: dict[str, str]) -> None:
        for imp in self.imports.values():
            imp.configure(params)

    # going ------------------------------------------------------------------------------------------------------

    def close_later(self, handle: int, fid: Fid) -> None:
        """Give back an open handle that nobody took."""
        if not self.closed:
            self.tasks.spawn(self.mdc.close(handle, fid, 0, 0, 0, cred=ROOT_CRED), "close")

    async def disconnect(self) -> None:
        """Leave in good order. Servers that have not got all that was acknowledged here are waited for (rpc/goodbye.py).

        Cancelled, it can be asked for again, or `stop` for good.
        """
        if self._gone:
            return
        if not self.closed:
            await self._close_all()
        self.closed = True
        for kind in ("OST", "MDT"):
            leaving = [imp.disconnect() for name, imp in self.imports.items() if f"-{kind}" in name]
            await self.tasks.outcomes(leaving, "disconnect")
        if self.config is not None:  # last: it tells where those are that we wait for
            await self.config.disconnect()
        self._gone = True
        self.lov.stop()
        self.tasks.stop()
        self.links.close()
        self.node.events.emit("client.unmounted", fsname=self.fsname, client=self.uuid)

    async def _close_all(self) -> None:
        """Close what is open, and tell the MDT what it has not heard; gives up if that takes time and nothing is owed."""
        closing = self.node.spawn(self._closed_and_told(), "close all")
        patience = Patience(self.node, self.imports.values())
        try:
            while not closing.done():
                await asyncio.wait([closing], timeout=self.node.tunables.rpc_timeout_s)
                if not closing.done() and not patience.lasts():
                    self.node.events.emit("client.left_open", level="warning", client=self.uuid)
                    return
        finally:
            closing.cancel()

    async def _closed_and_told(self) -> None:
        await self.tasks.outcomes([file.close() for file in self.open_files.all()], "close")
        self.late_closes.hurry()
        if self.names is not None:
            self.names.kept.hurry()
        await self.tasks.idle()

    async def give_up(self) -> None:
        """Leave without the servers that do not answer, and say what that costs; the others hear that we leave."""
        if self._gone:
            return
        self.closed = True
        for imp in self.imports.values():
            if imp.state is not State.FULL:  # first: locks of the MDT go when what hangs on them has gone
                say_left(imp, len(imp.replays.uncommitted))
                imp.stop()
        leaving = [imp.disconnect(patient=False) for imp in self.imports.values()]
        if self.config is not None and self.config.mgs.state is State.FULL:
            leaving.append(self.config.disconnect())
        goodbye = self.node.spawn(self.tasks.outcomes(leaving, "disconnect"), "goodbye")
        try:
            await asyncio.wait([goodbye], timeout=GIVE_UP_S)
        finally:
            goodbye.cancel()
            self.stop()

    def stop(self) -> None:
        """Go without a word: nothing is closed, nobody is told."""
        if self._gone:
            return
        self.closed = self._gone = True
        self.links.close()  # unplugged first, so that nothing that ends below can say goodbye
        if self.config is not None:
            self.config.stop()
        for imp in self.imports.values():
            imp.stop()
        self.lov.stop()
        self.tasks.stop()
