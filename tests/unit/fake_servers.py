"""An MDT and OSTs in memory behind the interface of ClientImport: what the client's unit tests talk to."""

from __future__ import annotations

import asyncio
import errno
import random
import stat
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, cast

from lustrelite.client.connections import Connections
from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError
from lustrelite.ids import NO_FID, ROOT_FID, Fid
from lustrelite.rpc.node import Network, Node
from lustrelite.tunables import Tunables
from lustrelite.wire import mdt, ost
from lustrelite.wire.message import BY_CLASS, ROOT_CRED, Cred
from lustrelite.wire.session import Empty


class FakeNode(Node):
    """A node without network, whose wall clock is set by hand."""

    def __init__(self, tunables: Tunables | None = None) -> None:
        super().__init__("client", cast(Network, None), tunables=tunables, seed=1)
        self.wall = 1_000_000

    def wall_ns(self) -> int:
        return self.wall


def check_wire(body: Any) -> None:
    """A request must be what the wire accepts."""
    spec = BY_CLASS[type(body)]
    spec.check(_as_wire(body))


def _as_wire(value: Any) -> Any:
    return tuple(_as_wire(item) for item in value) if isinstance(value, tuple) else value


class FakeOst:
    """Objects in memory. Any object number exists until it is destroyed."""

    def __init__(self, *, bytes_max: int = 1 << 20, seed: int = 0) -> None:
        self.max_bytes_per_rpc = bytes_max
        self.objects: dict[int, bytearray] = {}
        self.times: dict[int, int] = {}
        self.destroyed: set[int] = set()
        self.calls: list[Any] = []
        self.errors: list[OpError] = []  # the next data RPCs fail with these
        self.read_max = 1 << 30  # an OST that answers less than asked
        self.in_flight = self.in_flight_max = 0
        self.silent = False
        self._random = random.Random(seed)

    def names(self) -> list[str]:
        return [type(call).__name__ for call in self.calls]

    async def _travel(self, body: Any) -> None:
        check_wire(body)
        self.calls.append(body)
        if self.silent:
            await asyncio.get_running_loop().create_future()
        for _ in range(self._random.randrange(3)):
            await asyncio.sleep(0)

    def _attr(self, obj: int) -> ost.ObjectAttr:
        size = len(self.objects.get(obj, b""))
        time = self.times.get(obj, 0)
        return ost.ObjectAttr(size, (size + 511) // 512, 0, time, time, 0)

    async def call(
        self, body: Any, *, cred: Cred = ROOT_CRED, timeout_s: float | None = None, ended: Any = None
    ) -> Any:
        await self._travel(body)
        if isinstance(body, ost.OstSync):
            return Empty()
        if isinstance(body, ost.OstStatfs):
            return mdt.StatfsReply(1000, 600, 500, 50, 40, 0)
        if body.object in self.destroyed:
            raise OpError(errno.ENOENT)
        if isinstance(body, ost.ObjectGetattr):
            return self._attr(body.object)
        data = self.objects.setdefault(body.object, bytearray())
        if isinstance(body, ost.ObjectSeek):  # every byte that is zero is a hole
            wanted = body.whence == ost.SEEK_DATA
            found = (at for at in range(body.offset, len(data)) if bool(data[at]) == wanted)
            return ost.SeekReply(next(found, -1 if wanted else max(body.offset, len(data))), len(data))
        assert isinstance(body, ost.Punch | ost.Fallocate)
        if isinstance(body, ost.Fallocate):
            if body.mode & ost.FALLOC_ZERO_RANGE:
                end = min(body.end, len(data))
                data[body.start : end] = bytes(max(end - body.start, 0))
            if not body.mode & ost.FALLOC_KEEP_SIZE:
                data.extend(bytes(max(body.end - len(data), 0)))
        elif body.end == ost.OBJECT_EOF:
            del data[body.start :]
            data.extend(bytes(body.start - len(data)))
        else:
            end = min(body.end, len(data))
            if body.start < end:
                data[body.start : end] = bytes(end - body.start)
        self.times[body.object] = body.time
        return self._attr(body.object)

    async def call_bulk(
        self, body: Any, *, bulk: Any = None, sink: memoryview | None = None, cred: Cred = ROOT_CRED
    ) -> tuple[Any, memoryview | None]:
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await self._travel(body)
            await asyncio.sleep(0)
            if self.errors:
                raise self.errors.pop(0)
            if body.object in self.destroyed:
                raise OpError(errno.ENOENT)
            if isinstance(body, ost.Read):
                assert sink is not None and body.length <= self.max_bytes_per_rpc
                data = self.objects.get(body.object, bytearray())
                part = data[body.offset : body.offset + min(body.length, self.read_max)]
                sink[: len(part)] = part
                return ost.ReadReply(len(part), len(data)), sink[: len(part)] if part else None
            assert isinstance(body, ost.Write) and 0 < len(bulk) <= self.max_bytes_per_rpc
            data = self.objects.setdefault(body.object, bytearray())
            data.extend(bytes(max(body.offset + len(bulk) - len(data), 0)))
            data[body.offset : body.offset + len(bulk)] = bulk
            self.times[body.object] = body.time
            return ost.WriteReply(self._attr(body.object), 0), None
        finally:
            self.in_flight -= 1


class FakeMdt:
    """A tree in memory with just enough manners for the client's tests: no permissions, no recovery."""

    def __init__(self, osts: int = 2, stripe_size: int = 1 << 16, width: int = 8) -> None:
        self.osts = osts
        self.stripe_size = stripe_size
        self.width = width
        self.inodes: dict[Fid, dict[str, Any]] = {}
        self.names: dict[Fid, dict[bytes, Fid]] = {}
        self.xattrs: dict[tuple[Fid, bytes], bytes] = {}
        self.hints: dict[Fid, mdt.StripeHint | None] = {}
        self.opens: dict[int, Fid] = {}
        self.calls: list[Any] = []
        self.creds: list[Cred] = []
        self.sequences = 0
        self.next_object = 1
        self.page = 1000
        self.gate: asyncio.Event | None = None  # requests wait here
        self._xid = 100
        self._add(ROOT_FID, stat.S_IFDIR | 0o755, 1, b"", ROOT_FID, None)

    def count(self, kind: type) -> int:
        return sum(isinstance(call, kind) for call in self.calls)

    def _add(self, fid: Fid, mode: int, time: int, target: bytes, parent: Fid, hint: mdt.StripeHint | None) -> None:
        layout = None
        if stat.S_ISREG(mode) and self.osts:
            count = hint.stripe_count if hint and hint.stripe_count > 0 else self.osts
            size = hint.stripe_size if hint and hint.stripe_size else self.stripe_size
            layout = mdt.Layout(size, 0, "", tuple((i % self.osts, self.next_object + i) for i in range(count)))
            self.next_object += count
        self.inodes[fid] = {
            "mode": mode, "nlink": 2 if stat.S_ISDIR(mode) else 1, "uid": 0, "gid": 0, "rdev": 0, "size": len(target),
            "blocks": 0, "atime": time, "mtime": time, "ctime": time, "btime": time, "version": 0, "flags": 0,
            "layout": layout, "parent": parent if stat.S_ISDIR(mode) else NO_FID, "target": target, "mtime_set": 0,
        }  # fmt: skip
        if stat.S_ISDIR(mode):
            self.names[fid] = {}

    def _attr(self, fid: Fid) -> mdt.Attr:
        if fid not in self.inodes:
            raise OpError(errno.ENOENT)
        inode = {key: value for key, value in self.inodes[fid].items() if key != "target"}
        return mdt.Attr(fid=fid, **inode)

    def _names(self, fid: Fid) -> dict[bytes, Fid]:
        if fid not in self.inodes:
            raise OpError(errno.ENOENT)
        if fid not in self.names:
            raise OpError(errno.ENOTDIR)
        return self.names[fid]

    def _child(self, parent: Fid, name: bytes) -> Fid:
        if name == b".":
            return parent
        if name == b"..":
            return cast(Fid, self.inodes[parent]["parent"])
        if name not in self._names(parent):
            raise OpError(errno.ENOENT)
        return self.names[parent][name]

    async def call(self, body: Any, *, cred: Cred = ROOT_CRED, timeout_s: float | None = None) -> Any:
        check_wire(body)
        self.calls.append(body)
        self.creds.append(cred)
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        return getattr(self, "on_" + type(body).__name__)(body)

    async def call_open(self, body: mdt.Open, *, cred: Cred = ROOT_CRED, unclaimed: Any = None) -> tuple[int, Any]:
        opening = asyncio.ensure_future(self._open(body, cred))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda done: unclaimed(*done.result()))
            raise

    async def _open(self, body: mdt.Open, cred: Cred) -> tuple[int, Any]:
        reply = await self.call(body, cred=cred)
        self._xid += 1
        self.opens[self._xid] = reply.attr.fid
        return self._xid, reply

    def on_GetRoot(self, body: Any) -> Any:
        return mdt.RootReply(self._attr(ROOT_FID), "lustre")

    def on_AllocateSequence(self, body: Any) -> Any:
        self.sequences += 1
        return mdt.SequenceReply(0x200000400 + self.sequences, self.width)

    def on_Getattr(self, body: mdt.Getattr) -> Any:
        return self._attr(body.fid)

    def on_Lookup(self, body: mdt.Lookup) -> Any:
        return self._attr(self._child(body.parent, body.name))

    def on_Create(self, body: mdt.Create) -> Any:
        names = self._names(body.parent)
        if body.name in names:
            raise OpError(errno.EEXIST)
        assert body.fid not in self.inodes, "a FID is used once"
        self._add(body.fid, body.mode, body.time, body.target, body.parent, body.hint)
        names[body.name] = body.fid
        return self._attr(body.fid)

    def on_Open(self, body: mdt.Open) -> Any:
        disposition = mdt.DISP_OPEN_OPEN
        if body.flags & mdt.OPEN_BY_FID:
            fid = body.fid
        else:
            names = self._names(body.parent)
            if body.name not in names:
                if not body.flags & mdt.OPEN_CREATE:
                    raise OpError(errno.ENOENT)
                self._add(body.fid, body.mode, body.time, b"", body.parent, body.hint)
                names[body.name] = body.fid
                disposition |= mdt.DISP_OPEN_CREATE
            elif body.flags & mdt.OPEN_EXCL:
                raise OpError(errno.EEXIST)
            fid = names[body.name]
        attr = self._attr(fid)
        if stat.S_ISLNK(attr.mode):
            raise OpError(errno.ENOTDIR if body.flags & mdt.OPEN_DIRECTORY else errno.ELOOP)
        if body.flags & mdt.OPEN_DIRECTORY and not stat.S_ISDIR(attr.mode):
            raise OpError(errno.ENOTDIR)
        if stat.S_ISDIR(attr.mode) and body.flags & mdt.OPEN_WRITE:
            raise OpError(errno.EISDIR)
        return mdt.OpenReply(disposition, attr)

    def on_Close(self, body: mdt.Close) -> Any:
        if self.opens.pop(body.handle, None) is None:
            raise OpError(errno.ESTALE)
        inode = self.inodes.get(body.fid)
        if inode is not None and body.mtime > inode["ctime"]:
            inode["mtime"], inode["ctime"], inode["mtime_set"] = body.mtime, body.mtime, 0
        if inode is not None and body.atime:
            inode["atime"] = body.atime
        return Empty()

    def on_Setattr(self, body: mdt.Setattr) -> Any:
        inode = self.inodes[body.fid]
        if body.valid & mdt.SET_MODE:
            inode["mode"] = stat.S_IFMT(inode["mode"]) | body.mode
        for bit, name in (
            (mdt.SET_UID, "uid"), (mdt.SET_GID, "gid"), (mdt.SET_ATIME, "atime"), (mdt.SET_MTIME, "mtime"),
            (mdt.SET_FLAGS, "flags"),
        ):  # fmt: skip
            if body.valid & bit:
                inode[name] = getattr(body, name)
        if body.valid & mdt.SET_MTIME:
            inode["mtime_set"] = body.time if body.valid & mdt.SET_TIMES_EXPLICIT else 0
        inode["ctime"] = body.time
        return self._attr(body.fid)

    def on_Link(self, body: mdt.Link) -> Any:
        names = self._names(body.parent)
        if body.name in names:
            raise OpError(errno.EEXIST)
        names[body.name] = body.fid
        self.inodes[body.fid]["nlink"] += 1
        return Empty()

    def on_Unlink(self, body: mdt.Unlink) -> Any:
        fid = self._child(body.parent, body.name)
        directory = fid in self.names
        if directory != bool(body.flags & mdt.UNLINK_RMDIR):
            raise OpError(errno.EISDIR if directory else errno.ENOTDIR)
        if directory and self.names[fid]:
            raise OpError(errno.ENOTEMPTY)
        del self.names[body.parent][body.name]
        inode = self.inodes[fid]
        inode["nlink"] -= 1
        if directory or not inode["nlink"]:
            if fid not in self.opens.values():
                del self.inodes[fid]
            self.names.pop(fid, None)
        return mdt.UnlinkReply(fid, inode["nlink"], False)

    def on_Rename(self, body: mdt.Rename) -> Any:
        fid = self._child(body.source, body.source_name)
        names = self._names(body.target)
        if body.flags & mdt.RENAME_NOREPLACE and body.target_name in names:
            raise OpError(errno.EEXIST)
        victim = names.get(body.target_name, NO_FID)
        del self.names[body.source][body.source_name]
        names[body.target_name] = fid
        return mdt.RenameReply(victim, 0, False, fid)

    def on_Readdir(self, body: mdt.Readdir) -> Any:
        names = sorted((_cookie(name), name, fid) for name, fid in self._names(body.fid).items())
        left = [item for item in names if item[0] > body.cookie]
        count = min(body.count, self.page)
        entries = tuple(
            mdt.Dirent(cookie, name, fid, stat.S_IFMT(self._attr(fid).mode), self._attr(fid) if body.plus else None)
            for cookie, name, fid in left[:count]
        )
        return mdt.DirPage(entries, len(left) <= count)

    def on_Readlink(self, body: mdt.Readlink) -> Any:
        if not stat.S_ISLNK(self._attr(body.fid).mode):
            raise OpError(errno.EINVAL)
        return mdt.Bytes(self.inodes[body.fid]["target"])

    def on_FidToPath(self, body: mdt.FidToPath) -> Any:
        return mdt.Names(tuple(b"/" + n for n, f in self.names[ROOT_FID].items() if f == body.fid))

    def on_Getxattr(self, body: mdt.Getxattr) -> Any:
        if (body.fid, body.name) not in self.xattrs:
            raise OpError(errno.ENODATA)
        return mdt.Bytes(self.xattrs[body.fid, body.name])

    def on_Setxattr(self, body: mdt.Setxattr) -> Any:
        if body.value is None:
            if self.xattrs.pop((body.fid, body.name), None) is None:
                raise OpError(errno.ENODATA)
        else:
            self.xattrs[body.fid, body.name] = body.value
        return Empty()

    def on_Listxattr(self, body: mdt.Listxattr) -> Any:
        return mdt.Names(tuple(name for fid, name in self.xattrs if fid == body.fid))

    def on_SetDirStripe(self, body: mdt.SetDirStripe) -> Any:
        self.hints[body.fid] = body.hint
        return Empty()

    def on_GetDirStripe(self, body: mdt.GetDirStripe) -> Any:
        return mdt.DirStripeReply(self.hints.get(body.fid), mdt.StripeHint(1, 1 << 20, -1))

    def on_Statfs(self, body: mdt.Statfs) -> Any:
        return mdt.StatfsReply(10, 9, 8, 1000, 900, 0)

    def on_Sync(self, body: mdt.Sync) -> Any:
        return Empty()


def _cookie(name: bytes) -> int:
    return int.from_bytes(name[:7].ljust(7, b"\0"), "big") + 1


class World:
    """One mounted client with its servers."""

    osts: Sequence[FakeOst]

    def __init__(
        self, osts: int = 2, *, stripe_size: int = 1 << 16, bytes_max: int = 1 << 20, seed: int = 0,
        ost_class: type[FakeOst] = FakeOst, tunables: Tunables | None = None,
    ) -> None:  # fmt: skip
        self.node = FakeNode(tunables)
        self.mdt = FakeMdt(osts, stripe_size)
        self.osts = [ost_class(bytes_max=bytes_max, seed=seed + i) for i in range(osts)]
        self.connections = Connections(self.node, "lustre")
        self.connections.add_mdt(self.mdt)
        for index, server in enumerate(self.osts):
            self.connections.add_ost(index, server)
        self.fs = FileSystem(self.connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.fs.unmount()
            assert not self.mdt.opens, "no handle is left open"
        await self.node.stop_tasks()
