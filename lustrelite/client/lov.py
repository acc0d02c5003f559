"""Files on several OSTs: one range, size or truncation of a file as operations on its objects, in parallel.

A short or missing part of an object is a hole if the file reaches beyond it, and the end of the file if not. Nobody
but all the objects together knows the file's size, so a read that finds an object short asks those objects that it has
not seen, and only then. Without locks a range is not atomic against other clients. If the mount caches, all of this is
done by `locked` (locked_io.py) instead, under locks and through the cache.

An operation on several objects waits for all of them and raises the first error in file order. An object that does not
exist (any more) is ESTALE: its file was removed.
"""

from __future__ import annotations

import asyncio
import errno
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from lustrelite.client import striping
from lustrelite.client.attributes import ObjectsAttr
from lustrelite.client.data_cache import DataCache, zero
from lustrelite.client.grip import PATIENCE
from lustrelite.client.locked_io import LockedIo, objects_attr
from lustrelite.client.osc import Osc
from lustrelite.client.tasks import Tasks
from lustrelite.client.writeback import Shared
from lustrelite.errors import OpError
from lustrelite.ids import Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.promised import Promised
from lustrelite.tunables import limits
from lustrelite.wire.mdt import Layout, StatfsReply
from lustrelite.wire.message import Cred
from lustrelite.wire.ost import (
    FALLOC_PUNCH_HOLE,
    OBJECT_EOF,
    SEEK_DATA,
    Fallocate,
    ObjectAttr,
    Punch,
    SeekReply,
    resource_of,
)

_T = TypeVar("_T")

WITHDRAWN_S = 1.0  # for the kernel to forget pages under a promise that is forsaken


class Lov:
    """All the OSTs of a file system."""

    def __init__(self, tasks: Tasks) -> None:
        self.oscs: dict[int, Osc] = {}  # by OST index, in the order they became known
        self.locked: LockedIo | None = None  # if the mount caches
        self.on_withdraw: Callable[[int, ClientLock], Awaitable[None] | None] | None = None
        """A lock on an object of OST `index` goes; it is given back when what this returns is done."""
        self.believed: Callable[[int, ClientLock], bool] | None = None
        """Does anybody beside us believe in what is under such a lock?"""
        self.on_lost: Callable[[int, int], None] | None = None
        """A lock on an object of an OST (index, number) was lost."""
        self.read_configuration: Callable[[], Coroutine[Any, Any, None]] = _nothing_new
        """Ask the MGS which targets there are, however long it is away."""
        self._tasks = tasks
        self._added = asyncio.Event()

    def add(self, osc: Osc) -> None:
        """An OST became known."""
        assert osc.index not in self.oscs
        self.oscs[osc.index] = osc
        if osc.locks is not None:
            if self.locked is None:
                self.locked = LockedIo(self, Shared(self._tasks.node))
            osc.data = self.locked.caches[osc.index] = DataCache(osc, osc.locks, self.locked.shared)
            osc.data.on_lost = self._lost
            osc.locks.withdraw = functools.partial(self._withdraw, osc.index)
            osc.locks.believed = functools.partial(self._believed, osc.index)
        self._added.set()
        self._added = asyncio.Event()

    def _withdraw(self, index: int, lock: ClientLock) -> Awaitable[None] | None:
        return self.on_withdraw(index, lock) if self.on_withdraw is not None else None

    def _believed(self, index: int, lock: ClientLock) -> bool:
        return self.believed is not None and self.believed(index, lock)

    def _lost(self, index: int, obj: int) -> None:
        if self.on_lost is not None:
            self.on_lost(index, obj)

    def _cached(self, layout: Layout) -> Iterator[tuple[DataCache, int]]:
        """The caches of the OSTs of these objects, as far as they are known."""
        for index, obj in layout.stripes:
            osc = self.oscs.get(index)
            if osc is not None and osc.data is not None:
                yield osc.data, obj

    def unwritten(self, layout: Layout, so: bool) -> None:
        """Has nobody written to these objects, and can nobody but us? If not, it is not known any more."""
        for data, obj in self._cached(layout):
            if so:
                data.unwritten[obj] = None
            else:
                data.unwritten.pop(obj, None)

    def sole(self, layout: Layout, so: bool, lost: bool = False) -> None:
        """Can nobody but us reach these objects? If not, locks of them are not promised any more.

        `lost`: others can when the lease is over.
        """
        for data, obj in self._cached(layout):
            shared = data.shared
            if so:
                data.sole[obj] = shared.metadata_instance()
                continue
            instance = data.sole.pop(obj, 0)
            promise = data.locks.promised.of(resource_of(obj)) if lost else None
            if promise is not None:  # an MDT that has restarted does not know that we may believe in it still
                until = shared.metadata_until() if instance == shared.metadata_instance() else 0.0
                data.locks.promised.salvage(promise, until)

    def promises(self, layout: Layout) -> list[tuple[Promised, ClientLock]]:
        """Locks of these objects of which their OSTs have not heard."""
        found = []
        for data, obj in self._cached(layout):
            promised = data.locks.promised
            promise = promised.of(resource_of(obj))
            if promise is not None:
                found.append((promised, promise))
        return found

    def redeem_soon(self, layout: Layout) -> None:
        """Let the OSTs hear of these."""
        for promised, promise in self.promises(layout):
            promised.redeem_soon((promise.handle,))

    async def redeem(self, layout: Layout, until: float) -> None:
        """Return when the OSTs have heard of these, or at `until` (of the loop): then somebody may come before.

        A server that answers has some time in any case.
        """
        promises = self.promises(layout)
        now, patience = asyncio.get_running_loop().time(), self._tasks.node.tunables.lock_callback_s / PATIENCE
        tasks = [self._tasks.spawn(promised.redeem(promise.handle), "redeem") for promised, promise in promises]
        if tasks:
            await asyncio.wait(tasks, timeout=max(until - now, patience))
        withdrawn = [task for promised, promise in promises if (task := promised.forsake(promise)) is not None]
        if withdrawn:
            await asyncio.wait(withdrawn, timeout=WITHDRAWN_S)

    async def osc(self, index: int) -> Osc:
        """The OST with `index`.  EIO: the MGS does not know it

        A new one may be in a layout before we have heard of it: wait a little, and for the MGS, however long that is away.
        """
        found = self.oscs.get(index)
        if found is not None:
            return found
        known = self._tasks.spawn(self._known(index), "unknown OST")
        asked = self._tasks.spawn(self.read_configuration(), "unknown OST")
        try:
            await asyncio.wait([known], timeout=self._tasks.node.tunables.rpc_timeout_s)
            await asyncio.wait([known, asked], return_when=asyncio.FIRST_COMPLETED)
        finally:
            known.cancel()
            asked.cancel()
        if index not in self.oscs:
            raise OpError(errno.EIO, f"OST{index:04x} is not in the configuration")
        return self.oscs[index]

    async def _known(self, index: int) -> None:
        while index not in self.oscs:
            await self._added.wait()

    async def data(self, index: int) -> DataCache:
        """What is cached of the OST with `index`, if the mount caches.  EIO"""
        data = (self.oscs.get(index) or await self.osc(index)).data
        assert data is not None, "the OSTs of a mount are cached, or none is"
        return data

    async def _bytes_max(self, layout: Layout) -> int:
        result = limits.brw_bytes_max
        for index, _ in layout.stripes:
            result = min(result, (self.oscs.get(index) or await self.osc(index)).bytes_max)
        return result

    def check_range(self, layout: Layout, offset: int, length: int) -> None:
        """May [offset, offset + length) of the file be written?  EFBIG"""
        end = offset + length
        if end <= limits.object_bytes_max:  # as most are
            return
        ranges = striping.holes(offset, end, layout.stripe_size, len(layout.stripes))
        if end > limits.file_bytes_max or any(part.end > limits.object_bytes_max for part in ranges):
            raise OpError(errno.EFBIG)

    async def on(self, layout: Layout, stripe: int, operation: Coroutine[Any, Any, _T]) -> _T:
        """Do `operation` on an object of the file.  ESTALE: it does not exist (any more)"""
        try:
            return await operation
        except OpError as error:
            if error.errno == errno.ENOENT:
                raise self.stale(*layout.stripes[stripe]) from None
            raise

    @staticmethod
    def stale(index: int, obj: int) -> OpError:
        """An object of a layout does not exist (any more)."""
        return OpError(errno.ESTALE, f"object {obj} on OST{index:04x} does not exist")

    async def read_into(
        self, layout: Layout, buffer: memoryview, offset: int, *, cred: Cred, direct: bool = False,
        past: Callable[[], bool] = lambda: False,
    ) -> int:  # fmt: skip
        """Fill `buffer` from `offset` of the file; returns how much of it is file, less than asked at its end only.

        Holes are filled with zeros. Beyond the returned length the buffer is undefined. `direct`: past the cache.
        `past`, asked when the locks are there: need what is not in the cache not come into it?
        """
        if self.locked is not None:
            return await self.locked.read(layout, buffer, offset, cred, direct=direct, past=past)
        count, unit = len(layout.stripes), layout.stripe_size
        extents = striping.split(offset, len(buffer), unit, count, await self._bytes_max(layout))
        results = await self._tasks.gather([self._read(layout, extent, buffer, cred) for extent in extents], "read")
        if all(done == extent.length for (done, _), extent in zip(results, extents, strict=True)):
            return len(buffer)
        sizes: dict[int, int] = {}
        for extent, (_, size) in zip(extents, results, strict=True):
            sizes[extent.stripe] = max(size, sizes.get(extent.stripe, 0))
        end = offset + len(buffer)
        reach = max(striping.reach(stripe, size, unit, count) for stripe, size in sizes.items())
        short = {extent.stripe for extent, (done, _) in zip(extents, results, strict=True) if done < extent.length}
        if reach < end and len(short) < count:
            # Also of an object that was read to the last byte: of what is behind it the OST knows only what is written back.
            others = [stripe for stripe in range(count) if stripe not in short]
            attrs = await self._tasks.gather([self._getattr(layout, stripe, cred) for stripe in others], "getattr")
            reach = max(
                reach, *(striping.reach(s, a.size, unit, count) for s, a in zip(others, attrs, strict=True))
            )
        length = min(max(reach - offset, 0), len(buffer))
        for extent, (done, _) in zip(extents, results, strict=True):
            _zero(buffer, extent, done, length)
        return length

    async def _read(self, layout: Layout, extent: striping.Extent, buffer: memoryview, cred: Cred) -> tuple[int, int]:
        index, obj = layout.stripes[extent.stripe]
        osc = self.oscs[index]
        pieces = [buffer[start : start + length] for start, length in extent.pieces]
        return await self.on(layout, extent.stripe, osc.read(obj, extent.offset, pieces, cred=cred))

    async def write(
        self, layout: Layout, owner: Fid, data: memoryview, offset: int, *, time: int, cred: Cred,
        through: bool = False, keep: bool = True,
    ) -> None:  # fmt: skip
        """Write `data` at `offset` of the file `owner`.  ENOSPC, EFBIG, EIO; after an error any part may be written.

        Without caching, or `through` the cache, it is durable when this returns. Without `keep` it is not cached.
        """
        if not len(data):
            return
        self.check_range(layout, offset, len(data))
        if self.locked is not None:
            await self.locked.write(layout, owner, data, offset, time, cred, through=through, keep=keep)
            return
        count, unit = len(layout.stripes), layout.stripe_size
        extents = striping.split(offset, len(data), unit, count, await self._bytes_max(layout))
        await self._tasks.gather(
            [self._write(layout, owner, extent, data, time, cred) for extent in extents], "write"
        )

    async def _write(
        self, layout: Layout, owner: Fid, extent: striping.Extent, data: memoryview, time: int, cred: Cred
    ) -> None:
        index, obj = layout.stripes[extent.stripe]
        osc = self.oscs[index]
        pieces = [data[start : start + length] for start, length in extent.pieces]
        stripe = extent.stripe
        await self.on(
            layout, stripe, osc.write(obj, extent.offset, pieces, owner=owner, stripe=stripe, time=time, cred=cred)
        )

    async def append(
        self, layout: Layout, owner: Fid, data: memoryview, *, time: int, cred: Cred, through: bool = False,
        keep: bool = True,
    ) -> int:  # fmt: skip
        """`write` at the end of the file; returns where that was.

        Without caching other clients may append there, too.
        """
        if self.locked is not None:
            return await self.locked.append(layout, owner, data, time, cred, through=through, keep=keep)
        offset = (await self.getattr(layout, cred=cred)).size
        await self.write(layout, owner, data, offset, time=time, cred=cred)
        return offset

    def cached_attr(self, layout: Layout) -> ObjectsAttr | None:
        """`getattr` if locks that are held say all of it."""
        return self.locked.known_attr(layout) if self.locked is not None else None

    async def getattr(self, layout: Layout, *, cred: Cred) -> ObjectsAttr:
        """Size, blocks and times of a file from all its objects, or from whoever is writing them."""
        if self.locked is not None:
            return await self.locked.getattr(layout)
        stripes = range(len(layout.stripes))
        attrs = await self._tasks.gather([self._getattr(layout, stripe, cred) for stripe in stripes], "getattr")
        return objects_attr(layout, attrs)

    def reachable(self, layout: Layout) -> bool:
        """Are all OSTs with its objects connected?"""
        oscs = self.oscs
        for index, _ in layout.stripes:
            osc = oscs.get(index)
            if osc is None or not osc.reachable:
                return False
        return True

    async def getattr_many(self, layouts: Sequence[Layout], *, cred: Cred) -> list[ObjectsAttr | OpError]:
        """The same for many files at once; each fails for itself."""
        if self.locked is not None:
            return await self.locked.getattr_many(layouts)
        return await self._tasks.outcomes([self.getattr(layout, cred=cred) for layout in layouts], "getattr")

    async def _getattr(self, layout: Layout, stripe: int, cred: Cred) -> ObjectAttr:
        index, obj = layout.stripes[stripe]
        osc = self.oscs.get(index) or await self.osc(index)
        return await self.on(layout, stripe, osc.getattr(obj, cred=cred))

    async def truncate(self, layout: Layout, owner: Fid, size: int, *, time: int, cred: Cred) -> None:
        """Make the file exactly `size` bytes long.  EFBIG"""
        count, unit = len(layout.stripes), layout.stripe_size
        ends = striping.truncation(size, unit, count)
        if size > limits.file_bytes_max or max(ends) > limits.object_bytes_max:
            raise OpError(errno.EFBIG)
        if self.locked is not None:
            await self.locked.truncate(layout, owner, ends, time, cred)
            return
        await self._tasks.gather(
            [
                self._change(layout, stripe, Punch(layout.stripes[stripe][1], end, OBJECT_EOF, owner, stripe, time), cred)
                for stripe, end in enumerate(ends)
            ],
            "truncate",
        )

    async def fallocate(
        self, layout: Layout, owner: Fid, start: int, end: int, mode: int, *, time: int, cred: Cred
    ) -> None:
        """Find room for [start, end), zero it, or make a hole of it, by FALLOC_* in `mode`.  ENOSPC, EFBIG, EOPNOTSUPP

        Only without FALLOC_KEEP_SIZE does the file grow. After an error any part may be done.
        """
        hole = mode & FALLOC_PUNCH_HOLE
        if not hole:
            self.check_range(layout, start, end - start)
        bodies: dict[int, Punch | Fallocate] = {}  # by stripe
        for stripe, low, high in striping.holes(start, end, layout.stripe_size, len(layout.stripes)):
            obj = layout.stripes[stripe][1]
            if hole:
                high = min(high, OBJECT_EOF - 1)  # else it were a truncation
                if low < high:
                    bodies[stripe] = Punch(obj, low, high, owner, stripe, time)
            else:
                bodies[stripe] = Fallocate(obj, low, high, mode, owner, stripe, time)
        if self.locked is not None:
            await self.locked.change(layout, start, end, bodies, cred)
            return
        works = [self._change(layout, stripe, body, cred) for stripe, body in bodies.items()]
        await self._tasks.gather(works, "fallocate")

    async def _change(self, layout: Layout, stripe: int, body: Punch | Fallocate, cred: Cred) -> ObjectAttr:
        index = layout.stripes[stripe][0]
        osc = self.oscs.get(index) or await self.osc(index)
        return await self.on(layout, stripe, osc.change(body, cred=cred))

    async def seek(self, layout: Layout, offset: int, whence: int, *, cred: Cred) -> int:
        """Where from `offset` of the file on is the next data (SEEK_DATA), or hole (SEEK_HOLE)?  ENXIO: behind the end

        The end of the file is a hole.  Source: lov_io_lseek_end(), lov/lov_io.c
        """
        if self.locked is not None:
            answers = await self.locked.seek(layout, offset, whence, cred)
        else:
            answers = await self._tasks.gather(
                [self._seek(layout, stripe, offset, whence, cred) for stripe in range(len(layout.stripes))], "seek"
            )
        found = striping.sought(answers, offset, layout.stripe_size, data=whence == SEEK_DATA)
        if found is None:
            raise OpError(errno.ENXIO)
        return found

    async def _seek(self, layout: Layout, stripe: int, offset: int, whence: int, cred: Cred) -> SeekReply:
        index, obj = layout.stripes[stripe]
        osc = self.oscs.get(index) or await self.osc(index)
        start = striping.object_bytes(stripe, offset, layout.stripe_size, len(layout.stripes))
        return await self.on(layout, stripe, osc.seek(obj, start, whence, cred=cred))

    async def sync(self, layout: Layout) -> None:
        """Return when the file's data is durable: what is dirty is written back before."""
        durable = await self.locked.flush(layout) if self.locked is not None else ()
        rest = [place for stripe, place in enumerate(layout.stripes) if stripe not in durable]
        oscs = [(self.oscs.get(index) or await self.osc(index), obj) for index, obj in rest]
        await self._tasks.gather([osc.sync(obj) for osc, obj in oscs], "sync")

    async def sync_all(self) -> None:
        """Return when everything that was written so far is durable on every OST that is not switched off."""
        if self.locked is not None:
            await self.locked.flush_all()
        await self._tasks.gather([osc.sync() for osc in self.oscs.values() if not osc.inactive], "sync")

    def stop(self) -> None:
        """The mount ends."""
        if self.locked is not None:
            self.locked.stop()

    async def statfs(self) -> list[tuple[int, StatfsReply | None]]:
        """(index, space) of every OST, None for one that does not answer soon (lazystatfs)."""
        oscs = [self.oscs[index] for index in sorted(self.oscs)]
        replies = await self._tasks.outcomes([self._statfs(osc) for osc in oscs], "statfs")
        return [(osc.index, None if isinstance(r, OpError) else r) for osc, r in zip(oscs, replies, strict=True)]

    async def _statfs(self, osc: Osc) -> StatfsReply | None:
        try:
            async with asyncio.timeout(self._tasks.node.tunables.connect_timeout_s):
                return await osc.statfs()
        except TimeoutError:
            return None


async def _nothing_new() -> None:
    """There is no MGS."""


def _zero(buffer: memoryview, extent: striping.Extent, done: int, length: int) -> None:
    """Zero what of `extent` was not read, up to `length` of the buffer."""
    for start, size in extent.pieces:
        zero(buffer[start + min(done, size) : min(start + size, length)])
        done = max(done - size, 0)
