"""An MDT on an empty store, whose handlers tests call directly. No network: its OSTs are pools filled by hand."""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lustrelite.errors import OpError
from lustrelite.ids import NO_FID, ROOT_FID, SEQ_NORMAL, Fid, make_fid
from lustrelite.mdt.mdt import Mdt
from lustrelite.mdt.osp import Osp
from lustrelite.recovery.adaptive import ServiceEstimate
from lustrelite.recovery.import_fsm import State
from lustrelite.rpc.export import Call, Export, ServerLink
from lustrelite.rpc.links import LinkPool
from lustrelite.rpc.node import Node
from lustrelite.rpc.request import Xids
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.schema import Inode
from lustrelite.target.handlers import NotReady
from lustrelite.target.transaction import Transaction
from lustrelite.wire import mdt as wire
from lustrelite.wire.message import BY_CLASS, REPLAY, RESENT, ROOT_CRED, Cred, RequestHeader

DIRECTORY = stat.S_IFDIR | 0o755
REGULAR = stat.S_IFREG | 0o644
ALICE: Cred = (1000, 1000)
BOB: Cred = (1001, 1001, 2000)


def make_maps_small(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Databases of `size` bytes."""
    whole = Store.open
    monkeypatch.setattr(Store, "open", lambda *args, **options: whole(*args, map_bytes=size, **options))


class FakeImport:
    """An import that is whatever the test says."""

    def __init__(self) -> None:
        self.state = State.FULL
        self.inactive = False
        self.current_nid: object = None

    def stop(self) -> None:
        """Nothing to stop."""


class FakeService:
    """What a link needs of its service."""

    estimate = ServiceEstimate(1.0, 1.0)


class FakeLink:
    """Where no reply is sent to."""

    peer = "test"


class HeldMdt(Mdt):
    """An MDT that stays in recovery until the test ends it."""

    held = False

    async def finish_recovery(self) -> None:
        """See Target.finish_recovery."""
        if self.held:
            self.recovering = True
        else:
            await super().finish_recovery()


class World:
    """One MDT, its clients (exports), and short names for its operations. Times count up by themselves."""

    def __init__(self, directory: Path, osts: int = 2) -> None:
        self.directory = directory
        self.node = Node("mds", None)  # type: ignore[arg-type]
        self.mdt: HeldMdt
        self.osts = osts
        self.exports: dict[str, Export] = {}
        self.now = 1000
        self.last_fid = 0
        self.last_xid = 100
        self.last: Transaction | None = None
        self.create = True

    async def start(self, *, recovering: bool = False) -> None:
        store = Store.open(self.directory, "MDT", create=self.create, durable=False)
        self.create = False
        self.mdt = HeldMdt(self.node, store, name="lustre-MDT0000", links=LinkPool(self.node), xids=Xids(self.node))
        self.mdt.held = recovering
        await self.mdt.start()
        self.exports.clear()
        for index in range(self.osts):
            self.add_ost(index)

    def add_ost(self, index: int, granted: int = 1000) -> Osp:
        osp = Osp(self.mdt, index, [])
        osp.imp = FakeImport()  # type: ignore[assignment]
        used = self.mdt.allocator.last_used.get(index, 0)
        osp.next, osp.granted, osp.synced = used + 1, used + granted, True
        self.mdt.allocator.add(osp)
        return osp

    async def crash(self, *, recovering: bool = True) -> None:
        """`kill -9` of the MDS, and a start in recovery."""
        self.mdt.kill()
        await self.start(recovering=recovering)

    def commit(self) -> None:
        self.mdt.committer.commit_now()

    def end_recovery(self) -> None:
        self.mdt.recovering = False
        self.mdt.recovery_over()

    def export(self, name: str) -> Export:
        if name not in self.exports:
            index = 50 + len(self.exports)
            self.exports[name] = Export(self.mdt, name, index, 1, 1, 0.0)
        return self.exports[name]

    def fid(self) -> Fid:
        self.last_fid += 1
        return make_fid(SEQ_NORMAL, self.last_fid)

    def call(self, body: Any, cred: Cred = ROOT_CRED, client: str = "a", **header: Any) -> Call:
        if not header.get("xid"):
            self.last_xid += 1
            header["xid"] = self.last_xid
        spec = BY_CLASS[type(body)]
        fields = dict(
            opcode=spec.opcode, handle=1, conn_cnt=1, flags=0, tag=1, last_xid=0, transno=0, pre_versions=(),
            timeout_ms=1000, cred=cred, jobid="", ride=None, body=body,
        )  # fmt: skip
        call = Call(ServerLink(FakeService(), FakeLink()), RequestHeader(**{**fields, **header}), spec, None, 0.0)  # type: ignore[arg-type]
        call.target, call.export = self.mdt, self.export(client)
        return call

    def do(self, body: Any, cred: Cred = ROOT_CRED, client: str = "a", **header: Any) -> Any:
        """Execute `body` as Target does. `self.last` is its transaction."""
        call = self.call(body, cred, client, **header)
        handler = self.mdt.handlers[type(body)]
        if handler.kind == "reading":
            return handler.execute(call, body)
        assert handler.kind == "mutating"
        if handler.prepare is not None and (waiting := handler.prepare(call, body)) is not None:
            waiting.close()  # type: ignore[attr-defined]
            raise NotReady
        replay = bool(call.header.flags & REPLAY)
        transno = call.header.transno if replay else self.mdt.last_transno + 1
        txn = Transaction(self.mdt, call, transno, replay=replay, resent=bool(call.header.flags & RESENT))
        before = dict(self.mdt.allocator.last_used)
        self.last = txn
        try:
            reply = handler.execute(txn, body)
        except OpError:
            assert before == self.mdt.allocator.last_used  # a refused request took nothing
            raise
        self.mdt.store.apply(txn.writes)
        self.mdt.last_transno = max(self.mdt.last_transno, transno)
        self.mdt.applied(txn)
        form = call.spec.replay_form
        self.saved = (form(body, reply) if form else body, dict(
            xid=call.xid, transno=transno, pre_versions=txn.pre_versions, flags=REPLAY), cred, client)  # fmt: skip
        return reply

    def replay(self, saved: Any) -> Any:
        body, header, cred, client = saved
        return self.do(body, cred, client, **header)

    def fails(self, number: int, body: Any, cred: Cred = ROOT_CRED, **more: Any) -> None:
        """`body` is refused with errno `number` and leaves no trace."""
        before = self.rows()
        try:
            self.do(body, cred, **more)
        except OpError as error:
            assert error.errno == number, f"{error} instead of {number}"
        else:
            raise AssertionError(f"{body} was not refused")
        assert self.rows() == before

    def rows(self) -> dict[str, list[Any]]:
        tables = (schema.INODES, schema.NAMES, schema.LINKS, schema.XATTRS, schema.ORPHANS, schema.POOLS, schema.OST_LOG)
        return {table: list(self.mdt.store.scan(table)) for table in tables}

    def tick(self) -> int:
        self.now += 1
        return self.now

    # operations, by name

    def make(
        self, parent: Fid, name: bytes, mode: int = REGULAR, cred: Cred = ROOT_CRED, *, hint: Any = None,
        target: bytes = b"", rdev: int = 0, **more: Any,
    ) -> Fid:  # fmt: skip
        fid = self.fid()
        self.do(wire.Create(parent, name, fid, mode, rdev, target, self.tick(), hint, None), cred, **more)
        return fid

    def mkdir(self, parent: Fid, name: bytes, mode: int = 0o755, cred: Cred = ROOT_CRED, **more: Any) -> Fid:
        return self.make(parent, name, stat.S_IFDIR | mode, cred, **more)

    def new(self, parent: Fid, name: bytes, mode: int = REGULAR) -> wire.Create:
        return wire.Create(parent, name, self.fid(), mode, 0, b"", self.tick(), None, None)

    def open(
        self, parent: Fid, name: bytes, flags: int = wire.OPEN_READ | wire.OPEN_WRITE, cred: Cred = ROOT_CRED, **more: Any
    ) -> tuple[int, wire.OpenReply]:
        """(handle, reply)."""
        reply = self.do(self.opening(parent, name, flags), cred, **more)
        assert self.last is not None
        return self.last.xid, reply

    def opening(self, parent: Fid, name: bytes, flags: int) -> wire.Open:
        return wire.Open(parent, name, self.fid(), flags, 0o644, self.tick(), None, None)

    def close(self, handle: int, fid: Fid, *, mtime: int = 0, atime: int = 0, client: str = "a") -> None:
        self.do(wire.Close(handle, fid, atime, mtime, 0, 0), client=client)

    def unlink(self, parent: Fid, name: bytes, cred: Cred = ROOT_CRED, **more: Any) -> wire.UnlinkReply:
        return self.do(wire.Unlink(parent, name, 0, self.tick()), cred, **more)  # type: ignore[no-any-return]

    def rmdir(self, parent: Fid, name: bytes, cred: Cred = ROOT_CRED) -> wire.UnlinkReply:
        return self.do(wire.Unlink(parent, name, wire.UNLINK_RMDIR, self.tick()), cred)  # type: ignore[no-any-return]

    def link(self, fid: Fid, parent: Fid, name: bytes) -> None:
        self.do(wire.Link(fid, parent, name, self.tick()))

    def rename(self, source: Fid, name: bytes, target: Fid, new: bytes, flags: int = 0) -> wire.RenameReply:
        return self.do(wire.Rename(source, name, target, new, flags, self.tick()))  # type: ignore[no-any-return]

    def setting(self, fid: Fid, *, handle: int = 0, explicit: bool = False, **values: int) -> wire.Setattr:
        bits = {
            "mode": wire.SET_MODE, "uid": wire.SET_UID, "gid": wire.SET_GID, "atime": wire.SET_ATIME,
            "mtime": wire.SET_MTIME, "size": wire.SET_SIZE, "flags": wire.SET_FLAGS,
            "projid": wire.SET_PROJID,
        }  # fmt: skip
        valid = wire.SET_TIMES_EXPLICIT if explicit else 0
        for name in values:
            valid |= bits[name]
        get = values.get
        return wire.Setattr(
            fid, valid, get("mode", 0), get("uid", 0), get("gid", 0), get("atime", 0), get("mtime", 0), self.tick(),
            get("flags", 0), handle, get("projid", 0),
        )  # fmt: skip

    def setattr(self, fid: Fid, cred: Cred = ROOT_CRED, **values: Any) -> wire.Attr:
        return self.do(self.setting(fid, **values), cred)  # type: ignore[no-any-return]

    def fill(self) -> Iterator[None]:
        """Make symlinks until the MDT has no room for more. Who iterates commits whenever one is refused."""
        full = 0
        while full < 50:
            try:
                self.make(ROOT, b"l%d" % self.last_fid, stat.S_IFLNK | 0o777, target=bytes(3000))
            except OpError as error:
                full += error.errno == errno.ENOSPC
                yield

    def find(self, parent: Fid, name: bytes) -> Fid | None:
        entry = self.mdt.store.get(schema.NAMES, schema.name_key(parent, name))
        return None if entry is None else schema.unpack_entry(entry)[0]

    def inode(self, fid: Fid) -> Inode:
        data = self.mdt.store.get(schema.INODES, fid)
        assert data is not None, fid
        return schema.unpack_inode(data)

    def exists(self, fid: Fid) -> bool:
        return self.mdt.store.get(schema.INODES, fid) is not None

    def objects(self, fid: Fid) -> tuple[tuple[int, int], ...]:
        layout = self.inode(fid).layout
        assert layout is not None
        return layout.stripes

    def condemned(self) -> list[tuple[int, int]]:
        rows = self.mdt.store.scan(schema.OST_LOG)
        return [schema.split_log_key(key) for key, value in rows if schema.unpack_log(value).owner is None]

    def owed(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """Owners in the logs towards OSTs, by (OST, object)."""
        rows = [(schema.split_log_key(key), schema.unpack_log(value)) for key, value in self.mdt.store.scan(schema.OST_LOG)]
        return {key: tuple(record.owner) for key, record in rows if record.owner is not None}

    def orphans(self) -> list[Fid]:
        return [Fid(key) for key, _ in self.mdt.store.scan(schema.ORPHANS)]

    def pre_versions(self) -> tuple[int, ...]:
        assert self.last is not None
        return self.last.pre_versions

    async def check(self) -> None:
        """The tree is consistent: names, back-pointers, types, link counts, parents, orphans, condemned objects."""
        store = self.mdt.store
        inodes = {Fid(key): schema.unpack_inode(value) for key, value in store.scan(schema.INODES)}
        names = {schema.split_name_key(key)[::2]: schema.unpack_entry(value) for key, value in store.scan(schema.NAMES)}
        links = {schema.split_link_key(key) for key, _ in store.scan(schema.LINKS)}
        assert links == {(fid, parent, name) for (parent, name), (fid, _) in names.items()}
        counts: dict[Fid, int] = {}
        for (parent, _), (fid, kind) in names.items():
            assert kind == stat.S_IFMT(inodes[fid].mode)
            if stat.S_ISDIR(kind):
                assert inodes[fid].parent == parent
                counts[parent] = counts.get(parent, 0) + 1
                counts[fid] = counts.get(fid, 0) + 2
            else:
                counts[fid] = counts.get(fid, 0) + 1
        counts[ROOT_FID] = counts.get(ROOT_FID, 0) + 2
        orphans = set(self.orphans())
        used: set[tuple[int, int]] = set()
        for fid, inode in inodes.items():
            assert inode.nlink == counts.get(fid, 0), (fid, inode)
            assert (inode.nlink == 0) == (fid in orphans)
            if inode.layout is not None:
                assert not used & set(inode.layout.stripes), "one object in two files"
                used |= set(inode.layout.stripes)
        assert orphans <= set(inodes)
        assert not used & set(self.condemned())
        listed: dict[Fid, int] = {}
        last = (NO_FID, b"", 0)
        for key, _ in store.scan(schema.XATTRS):
            fid, name, piece = schema.split_xattr_key(key)
            assert fid in inodes
            assert not piece or last == (fid, name, piece - 1)
            last = fid, name, piece
            listed[fid] = listed.get(fid, 0) + (0 if piece else len(name) + 1)
        assert listed == {fid: inode.xattrs for fid, inode in inodes.items() if inode.xattrs}

    async def stop(self) -> None:
        await self.check()
        self.mdt.kill()
        await self.node.stop_tasks()
        await asyncio.sleep(0)


ROOT = ROOT_FID
