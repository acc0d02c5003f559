"""A client that caches, over OSTs in memory that check what it does: locks named and held, grants kept, space left."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from fake_locks import FakeLocks
from fake_servers import FakeOst, World

from lustrelite.client.data_cache import DataCache
from lustrelite.client.file import File
from lustrelite.errors import OpError
from lustrelite.ldlm.policy import WRITERS
from lustrelite.tunables import Tunables
from lustrelite.wire import ost
from lustrelite.wire.ldlm import Lvb
from lustrelite.wire.message import ROOT_CRED, Cred
from lustrelite.wire.ost import grant_bytes, resource_of

CUT_XID = 77  # of every truncation that is under way


class CachingOst(FakeOst):
    """A FakeOst with locks, grants and a disk of a size."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.locks = FakeLocks(self.lvb)
        self.last_committed = 0
        self.transno = 0
        self.promised = 0
        self.gives = 1 << 40  # at most so much for each wish
        self.room = 1 << 50  # bytes of disk
        self.bytes_written = 0
        self.refuses = 0  # so many WriteMany
        self.replies: asyncio.Event | None = None  # changes are executed, their answers wait for this
        self.read_replies: asyncio.Event | None = None  # the same for reads
        self.reads: asyncio.Event | None = None  # reads are executed after this
        self.on_answer: Callable[[], object] = lambda: None  # called with the answer to a change

    def xid_of(self, body: Any) -> int:
        return CUT_XID

    def lvb(self, obj: int) -> Lvb | OpError:
        if obj in self.destroyed:
            return OpError(errno.ENOENT)
        attr = self._attr(obj)
        return Lvb(attr.size, attr.blocks, attr.atime, attr.mtime, attr.ctime)

    def _check_lock(self, body: Any, start: int, end: int, modes: int) -> None:
        lock = self.locks.held.get(body.lock)
        if lock is None or lock.resource != resource_of(body.object) or not lock.mode & modes:
            raise OpError(errno.ESTALE, f"{body} without its lock")
        assert lock.start <= start and end - 1 <= lock.end, (body, lock)

    async def call(
        self, body: Any, *, cred: Cred = ROOT_CRED, timeout_s: float | None = None, ended: Any = None
    ) -> Any:
        if isinstance(body, ost.Punch | ost.Fallocate):
            self._check_lock(body, body.start, body.end, WRITERS)
        elif isinstance(body, ost.ObjectSeek):
            self._check_lock(body, body.offset, ost.OBJECT_EOF, -1)
        elif isinstance(body, ost.OstSync):
            self.last_committed = self.transno
        before = self.times.get(getattr(body, "object", 0), 0)
        attr = await super().call(body, cred=cred, timeout_s=timeout_s)
        if isinstance(body, ost.Punch | ost.Fallocate):
            self.transno += 1
            self.times[body.object] = max(before, body.time)
            if self.replies is not None:
                await self.replies.wait()
            answer = self._attr(body.object)._replace(version=self.transno)
            if ended is not None:
                ended(answer, self.transno)
            self.on_answer()  # in the same turn, before the caller hears of it
            await asyncio.sleep(0)
            return answer
        return attr

    async def call_bulk(
        self, body: Any, *, bulk: Any = None, sink: memoryview | None = None, cred: Cred = ROOT_CRED
    ) -> tuple[Any, memoryview | None]:
        if isinstance(body, ost.Read):
            self._check_lock(body, body.offset, body.offset + body.length, -1)
            if self.reads is not None:
                await self.reads.wait()
            answer = await super().call_bulk(body, bulk=bulk, sink=sink, cred=cred)
            if self.read_replies is not None:
                await self.read_replies.wait()
            return answer
        if isinstance(body, ost.WriteMany):
            return await self._write_many(body, bytes(bulk)), None
        assert isinstance(body, ost.Write)
        self._check_lock(body, body.offset, body.offset + len(bulk), WRITERS)
        sent = bytes(bulk)
        before = self.times.get(body.object, 0)
        cost = grant_bytes(body.offset, body.offset + len(bulk))
        if not body.from_grant and self.room - cost < self.promised and not self.errors:
            await self._travel(body)
            raise OpError(errno.ENOSPC)
        _, data = await super().call_bulk(body, bulk=bulk, sink=sink, cred=cred)
        assert bytes(bulk) == sent, "data on its way did not change"
        self._check_lock(body, body.offset, body.offset + len(bulk), WRITERS)
        if body.release:
            self.locks.released.append(body.lock)
            del self.locks.held[body.lock]
        self.times[body.object] = max(before, body.time)
        if body.from_grant:
            assert self.promised >= cost, "within its grant"
            self.promised -= cost
        self.room -= cost
        assert self.room >= 0
        given = min(body.undirty, self.gives, max(self.room - self.promised, 0) // 4 // 4096 * 4096)
        self.promised += given
        self.transno += 1
        if body.sync:
            self.last_committed = self.transno
        self.bytes_written += len(bulk)
        attr = self._attr(body.object)._replace(version=self.transno)
        if self.replies is not None:
            await self.replies.wait()
        return ost.WriteReply(attr, given), data

    async def _write_many(self, body: ost.WriteMany, bulk: bytes) -> ost.WriteManyReply:
        assert 0 < len(bulk) <= self.max_bytes_per_rpc and 1 < len(body.parts) <= ost.WRITE_MANY_MAX
        await self._travel(body)
        if self.errors:
            raise self.errors.pop(0)
        if self.refuses:
            self.refuses -= 1
            raise OpError(errno.ESTALE)
        if any(part.object in self.destroyed for part in body.parts):
            raise OpError(errno.ENOENT)
        for part in body.parts:
            self._check_lock(part, part.offset, part.offset + part.length, WRITERS)
        self.transno += 1
        at, attrs = 0, []
        for part in body.parts:
            end = part.offset + part.length
            data = self.objects.setdefault(part.object, bytearray())
            data.extend(bytes(max(end - len(data), 0)))
            data[part.offset : end] = bulk[at : at + part.length]
            at += part.length
            self.times[part.object] = max(self.times.get(part.object, 0), part.time)
            cost = grant_bytes(part.offset, end)
            assert self.promised >= cost, "within its grant"
            self.promised -= cost
            self.room -= cost
            attrs.append(self._attr(part.object)._replace(version=self.transno))
        assert at == len(bulk) and self.room >= 0
        given = min(body.undirty, self.gives, max(self.room - self.promised, 0) // 4 // 4096 * 4096)
        self.promised += given
        self.bytes_written += len(bulk)
        if self.replies is not None:
            await self.replies.wait()
        return ost.WriteManyReply(tuple(attrs), given)


class CachingWorld(World):
    """One mounted client that caches."""

    osts: Sequence[CachingOst]

    def __init__(
        self, osts: int = 1, *, stripe_size: int = 1 << 16, bytes_max: int = 1 << 20, seed: int = 0, grant: int = 8 << 20,
    ) -> None:  # fmt: skip
        tunables = Tunables(caching=1, write_back_after_s=1000.0)  # it writes back only when a test says so
        super().__init__(
            osts, stripe_size=stripe_size, bytes_max=bytes_max, seed=seed, ost_class=CachingOst, tunables=tunables
        )
        for index, server in enumerate(self.osts):
            server.promised = grant
            self.data(index).grant.connected(grant)

    def data(self, index: int = 0) -> DataCache:
        found = self.connections.lov.oscs[index].data
        assert found is not None
        return found

    def writes(self, index: int = 0) -> list[tuple[int, bool]]:
        """(offset, within the grant) of every write that came."""
        return [(call.offset, call.from_grant) for call in self.osts[index].calls if isinstance(call, ost.Write)]

    def names(self, index: int = 0) -> list[str]:
        """The requests that came, and forget them."""
        names = self.osts[index].names()
        self.osts[index].calls.clear()
        return names

    def content(self, file: File) -> bytes:
        """What the OST has of a file with one object."""
        assert file.layout is not None
        ((index, obj),) = file.layout.stripes
        return bytes(self.osts[index].objects.get(obj, b""))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            for server in self.osts:
                server.silent = False
                await server.locks.revoke()
                assert not server.locks.held
            for data in (self.data(index) for index in range(len(self.osts))):
                assert not data.objects and not data.grant.reserved and not data.writeback.dirty
                assert data.osc.slots()._value == self.node.tunables.max_rpcs_in_flight
            pages = self.data().shared
            assert not pages.pages.count and not pages.dirty and not pages.ahead
        await super().__aexit__(kind, error, trace)
