"""Files under extent locks: what several objects must do together, through the data caches of their OSTs.

An operation takes the locks of all the objects it touches first, one on each, in stripe order, and gives them back when
it is done with all of them (grip.py); so it is atomic towards other clients. Once the locks are there, data comes out
of the cache and goes into it in one turn of the loop. Where that cannot be, because there is no room, or it goes past the
cache, others of this client wait (range_locks.py).

The commonest cases need no lock but one that is there, and no wait: `read_now` and `write_now` either do everything in
this turn, or nothing.

Between taking a lock and believing what is cached under it there may be a wait, and the lease may run out in it. So
before the last step `serves` is asked, and if it does not, all begins anew; a client whose server lets it believe
nothing (lock_callback_s as short as the margin) works under its locks, but past the cache.

A file's length is the largest reach of its objects. What is known of these is a lower bound (cached_object.py); only if
a read reaches beyond that, and somebody else may be writing there, it is asked for (glimpse).
Source: cl_io, lov/lov_io.c; vvp_io_read_start(), vvp_prep_size(), llite/vvp_io.c; docs/locks.md
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING

from lustrelite.client import striping
from lustrelite.client.attributes import ObjectsAttr
from lustrelite.client.cached_object import CachedObject
from lustrelite.client.data_cache import DataCache, copy_out, views_of
from lustrelite.client.grip import GaveWay, Grip, Held
from lustrelite.client.part_read import PartRead, pieces_of, read_past
from lustrelite.client.range_locks import RangeLock, RangeLocks
from lustrelite.client.read_ahead import ReadAhead
from lustrelite.client.striping import Extent
from lustrelite.client.tasks import results
from lustrelite.client.through import Cut
from lustrelite.client.writeback import Shared
from lustrelite.errors import OpError
from lustrelite.ids import Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.tunables import limits
from lustrelite.wire import ost
from lustrelite.wire.ldlm import PR, PW, Lvb
from lustrelite.wire.mdt import Layout
from lustrelite.wire.message import Cred
from lustrelite.wire.ost import OBJECT_EOF, ObjectAttr, resource_of

if TYPE_CHECKING:
    from lustrelite.client.lov import Lov

WHOLE = 1 << 62  # one extent for each object
TRIES = 3  # to find locks that may be believed in when the work is done
ASKS_MAX = 5  # about a size that changes from here meanwhile
_SIZE = limits.file_bytes_max, limits.file_bytes_max + 1  # behind all data: who changes the size from here has this, too


class LockedIo:
    """Reads, writes and sizes of files whose OSTs' data is cached."""

    def __init__(self, lov: Lov, shared: Shared) -> None:
        self.lov = lov
        self.shared = shared
        self.caches: dict[int, DataCache] = {}  # by OST index
        self.ranges = RangeLocks()

    # locks ------------------------------------------------------------------------------------------------------

    def _grip(self, layout: Layout) -> Grip:
        return Grip(self.lov, self.shared, layout)

    def _match(self, layout: Layout, extents: Sequence[Extent], mode: int) -> list[Held] | None:
        """The same in this turn only, with locks that are there."""
        held = []
        for extent in extents:
            index, obj = layout.stripes[extent.stripe]
            data = self.caches.get(index)
            found = data.match(obj, extent.offset, extent.offset + extent.length, mode) if data is not None else None
            if data is None or found is None:
                return None
            held.append(Held(data, *found, extent))
        return held

    # reading ----------------------------------------------------------------------------------------------------

    def read_bytes(self, layout: Layout, offset: int, size: int) -> bytes | None:
        """`size` bytes at `offset` if all of them are cached, in one object: the fast path."""
        if not self.ranges.whole(layout, offset, offset + size):
            return None
        stripes = layout.stripes
        if len(stripes) == 1:
            index, obj = stripes[0]
        else:
            unit = layout.stripe_size
            if offset % unit + size > unit:
                return None
            stripe, offset = striping.to_object(offset, unit, len(stripes))
            index, obj = stripes[stripe]
        data = self.caches.get(index)
        if data is None:
            return None
        cached = data.objects.get(obj)
        if cached is None:
            return None
        lock = data.locks.match_extent(cached.resource, offset, offset + size - 1, PR)
        return cached.pages.get(offset, size) if lock is not None and lock.data is cached else None

    def read_now(self, layout: Layout, buffer: memoryview, offset: int) -> int | None:
        """Read what is cached, if all of it is and the file's end is known: how much of it is file, or None."""
        found = self._cached(layout, offset, len(buffer))
        if found is None:
            return None
        held, length = found
        _copy_all(held, buffer, length)
        return length

    def views_now(self, layout: Layout, offset: int, size: int) -> list[memoryview] | None:
        """The same without a copy: where it lies, in this turn of the loop."""
        found = self._cached(layout, offset, size)
        return _views(*found) if found is not None else None

    def may_read(self, layout: Layout, offset: int, size: int) -> bool:
        """Are the locks there to read [offset, offset + size) under?"""
        return self._match(layout, _whole(layout, offset, size), PR) is not None

    def _cached(self, layout: Layout, offset: int, size: int) -> tuple[list[Held], int] | None:
        """The objects of [offset, offset + size), and how much of it is file, if all of it is cached."""
        held = self._match(layout, _whole(layout, offset, size), PR)
        if held is None or not self.ranges.whole(layout, offset, offset + size):
            return None
        for one in held:
            end = one.extent.offset + one.extent.length
            if one.cached.exact:
                end = min(end, one.cached.size)
            if not one.cached.pages.valid.covers(one.extent.offset, end):
                return None
        length = self._length(layout, held, offset, size, None)
        return (held, length) if length is not None else None

    async def read(
        self, layout: Layout, buffer: memoryview, offset: int, cred: Cred, *, direct: bool = False,
        past: Callable[[], bool] = lambda: False,
    ) -> int:  # fmt: skip
        """Fill `buffer` from `offset`; returns how much of it is file. `direct`: past the cache, which is written back.

        `past`, asked when the locks are there: need what is not in the cache not come into it?
        Beyond the returned length the buffer is undefined.
        """
        return await self._read_whole(layout, offset, len(buffer), buffer, None, cred, direct, past)

    async def read_views(self, layout: Layout, offset: int, size: int, cred: Cred) -> list[memoryview]:
        """The same through the cache and without a copy: where it lies, in the turn of the loop that it is answered in."""
        views: list[memoryview] = []
        await self._read_whole(layout, offset, size, None, views, cred, False, lambda: False)
        return views

    async def _read_whole(
        self, layout: Layout, offset: int, size: int, buffer: memoryview | None, views: list[memoryview] | None, cred: Cred,
        direct: bool, past: Callable[[], bool],
    ) -> int:  # fmt: skip
        """Into `buffer`, or, without one, to be seen by `views`."""
        length = await self._read_cached(layout, offset, size, buffer, views, cred, past) if not direct else None
        if length is None:
            if buffer is None:
                buffer = memoryview(bytearray(size))
            async with self.ranges.hold(layout, offset, offset + size, alone=False):
                length = await self._read_past(layout, buffer, offset, cred)
            if views is not None:
                views.append(buffer[:length])
        return length

    async def _read_cached(
        self, layout: Layout, offset: int, size: int, buffer: memoryview | None, views: list[memoryview] | None, cred: Cred,
        past: Callable[[], bool],
    ) -> int | None:  # fmt: skip
        """None: it could not be believed in."""
        extents = _whole(layout, offset, size)
        left, changed = TRIES, False
        while left:
            await self.ranges.until_whole(layout, offset, offset + size)
            try:
                with self._grip(layout) as grip:
                    await grip.take(extents, PR)
                    if not grip.believable:
                        return None
                    go_past = not changed and past()
                    length = await self._read(grip, offset, size, buffer, views, cred, past=go_past)
                    if length is not None:
                        return length
                    left -= not go_past
                    changed = True
            except GaveWay:
                continue
        return None

    async def _read(
        self, grip: Grip, offset: int, size: int, buffer: memoryview | None, views: list[memoryview] | None, cred: Cred, *,
        past: bool,
    ) -> int | None:  # fmt: skip
        """Through the cache; None if what was read cannot be believed in."""
        held = list(grip.held)
        reads = [PartRead(one, buffer, cred, past=past) for one in held]
        try:
            results(await grip.each([(read.one, read.bring()) for read in reads], grip.give_way))
            reach: int | None = None
            while (length := self._length(grip.layout, held, offset, size, reach)) is None:
                reach = await self._size_asked(grip)
            if not grip.believable or any(read.changed for read in reads):
                return None
            if not self.ranges.whole(grip.layout, offset, offset + size):
                return None
            if views is not None:
                views += _views(held, length)
            else:
                for read in reads:
                    read.copy(length)
            return length
        finally:
            for read in reads:
                read.end()
            self.shared.pages.shrink()

    async def _size_asked(self, grip: Grip) -> int:
        (found,) = await grip.wait([self.getattr(grip.layout)], grip.give_way)
        if isinstance(found, OpError):
            raise found
        return found.size

    async def _read_past(self, layout: Layout, buffer: memoryview, offset: int, cred: Cred) -> int:
        """Past the cache, under the locks: what the OSTs have when everything dirty is written back."""
        extents = _whole(layout, offset, len(buffer))
        while True:
            try:
                with self._grip(layout) as grip:
                    await grip.take(extents, PR)
                    held, believable = list(grip.held), grip.believable
                    results(await grip.each([(one, read_past(one, buffer, cred)) for one in held], grip.give_way))
                    believable = believable and grip.believable
                    length = self._length(layout, held, offset, len(buffer), None) if believable else None
                    if length is None:
                        length = min(max(await self._size_asked(grip) - offset, 0), len(buffer))
                    return length
            except GaveWay:
                continue

    def _length(self, layout: Layout, held: list[Held], offset: int, size: int, reach: int | None) -> int | None:
        """How much of [offset, offset + size) is file; None if the sizes of objects must be asked for.

        `reach` is what asking has brought.
        """
        count, unit = len(layout.stripes), layout.stripe_size
        end = offset + size
        least = max(striping.reach(one.extent.stripe, one.cached.size, unit, count) for one in held)
        if least >= end:
            return size
        exact = True
        of = {one.extent.stripe: one.cached for one in held}
        for stripe, (index, obj) in enumerate(layout.stripes):
            cached = of.get(stripe)
            if cached is None:
                data = self.caches.get(index)
                found = data.match(obj, OBJECT_EOF, OBJECT_EOF + 1, PR) if data is not None else None
                if found is None:
                    exact = False
                    continue
                cached = found[0]
                least = max(least, striping.reach(stripe, cached.size, unit, count))
            exact = exact and cached.exact
        if least >= end:
            return size
        if exact:
            return max(least - offset, 0)
        return None if reach is None else min(max(least, reach) - offset, size) if max(least, reach) > offset else 0

    def pass_on(self, layout: Layout, offset: int, size: int) -> None:
        """[offset, offset + size) was read by somebody who keeps it."""
        for extent in _whole(layout, offset, size):
            index, obj = layout.stripes[extent.stripe]
            data = self.caches.get(index)
            cached = data.objects.get(obj) if data is not None else None
            if cached is not None:
                cached.pages.pass_on(extent.offset, extent.offset + extent.length)

    def read_ahead(self, layout: Layout, ahead: ReadAhead, offset: int, size: int, cred: Cred) -> None:
        """[offset, offset + size) was read: begin to read what will be asked for next."""
        tunables = self.shared.node.tunables
        bytes_max = min(tunables.max_read_ahead_bytes, tunables.max_cached_bytes // 4) // 2
        for start, end in ahead.observe(offset, size, bytes_max):
            end = min(end, limits.file_bytes_max)
            for extent in _whole(layout, start, end - start) if start < end else ():
                index, obj = layout.stripes[extent.stripe]
                data = self.caches.get(index)
                if data is not None:
                    data.read_ahead(obj, extent.offset, extent.offset + extent.length, cred)

    # sizes ------------------------------------------------------------------------------------------------------

    def known_attr(self, layout: Layout) -> ObjectsAttr | None:
        """Size, blocks and times of the file, if our locks say all of them."""
        found = []
        for index, obj in layout.stripes:
            data = self.caches.get(index)
            lvb = data.known(obj) if data is not None else None
            if lvb is None:
                return None
            found.append(lvb)
        return objects_attr(layout, found)

    async def getattr(self, layout: Layout) -> ObjectsAttr:
        """Size, blocks and times of the file, from whoever knows most of each object.  ESTALE"""
        known = self.known_attr(layout)
        if known is not None:
            return known
        (found,) = await self.getattr_many([layout])
        if isinstance(found, OpError):
            raise found
        return found

    async def getattr_many(self, layouts: Sequence[Layout]) -> list[ObjectsAttr | OpError]:
        """The same of many files, in one request to each OST."""
        for layout in layouts:
            await self.ranges.until_whole(layout, *_SIZE)
        lvbs: dict[tuple[int, int], Lvb | OpError] = {}  # by OST index and object
        asked: dict[int, list[int]] = {}  # by OST index: objects
        for layout in layouts:
            for index, obj in layout.stripes:
                data = self.caches.get(index) or await self.lov.data(index)
                lvb = data.known(obj)
                if lvb is None:
                    asked.setdefault(index, []).append(obj)
                else:
                    lvbs[index, obj] = lvb

        async def ask(index: int, objects: list[int]) -> None:
            data = self.caches[index]
            for _ in range(ASKS_MAX):
                answers = await data.locks.glimpse([resource_of(obj) for obj in objects])
                late = []
                for obj, answer in zip(objects, answers, strict=True):
                    cached = data.objects.get(obj)
                    if not isinstance(answer, OpError):
                        if _outdated(answer, cached):
                            late.append(obj)
                        answer = _newer(answer, cached)
                    lvbs[index, obj] = answer
                objects = late
                if not objects:
                    break

        await self.shared.tasks.gather([ask(index, objects) for index, objects in asked.items()], "glimpse")
        return [self._attr_of(layout, lvbs) for layout in layouts]

    def _attr_of(self, layout: Layout, lvbs: dict[tuple[int, int], Lvb | OpError]) -> ObjectsAttr | OpError:
        found = []
        for index, obj in layout.stripes:
            lvb = self.caches[index].known(obj) or lvbs[index, obj]  # it may have changed while others were asked
            if isinstance(lvb, OpError):
                return self.lov.stale(index, obj) if lvb.errno == errno.ENOENT else lvb
            found.append(lvb)
        return objects_attr(layout, found)

    async def size_to_read(self, layout: Layout) -> int:
        """The file's size for somebody who is about to read to its end: with it come the locks to read under."""
        known = self.known_attr(layout)
        if known is not None:
            return known.size
        await self.ranges.until_whole(layout, *_SIZE)
        with self._grip(layout) as grip:
            await grip.take(_everything(layout), PR)
            if grip.believable and all(one.lock.handle not in one.cached.unsized for one in grip.held):
                return striping.file_size([one.cached.size for one in grip.held], layout.stripe_size)
        return (await self.getattr(layout)).size

    # writing ----------------------------------------------------------------------------------------------------

    def write_now(self, layout: Layout, owner: Fid, buffer: memoryview, offset: int, time: int) -> bool:
        """Write into the cache in this turn, or not at all."""
        if not self.ranges.free(layout, offset, offset + len(buffer)):
            return False
        held = self._match(layout, _whole(layout, offset, len(buffer)), PW)
        return held is not None and len(held) == 1 and _accept(held[0], buffer, time, owner)

    async def write(
        self, layout: Layout, owner: Fid, buffer: memoryview, offset: int, time: int, cred: Cred, *,
        through: bool = False, keep: bool = True,
    ) -> None:  # fmt: skip
        """Write `buffer` at `offset`. `through`: durable when this returns; without `keep` it is not cached either.

        Errors: ENOSPC, EIO, EFBIG; any part may be written
        """
        async with self.ranges.hold(layout, offset, offset + len(buffer)) as range_lock:
            with self._grip(layout) as grip:
                await grip.take(_whole(layout, offset, len(buffer)), PW)
                await self._write(grip, range_lock, owner, list(grip.held), buffer, time, cred, through, keep)

    def write_under(
        self, leaving: Container[ClientLock], layout: Layout, owner: Fid, buffer: memoryview, offset: int, time: int
    ) -> bool:
        """`write_now` under locks of `leaving`: they are asked for, and what is dirty under them is not written back yet."""
        held = []
        for extent in _whole(layout, offset, len(buffer)):
            index, obj = layout.stripes[extent.stripe]
            data = self.caches.get(index)
            cached = data.objects.get(obj) if data is not None else None
            if data is None or cached is None:
                return False
            start, end = extent.offset, extent.offset + extent.length - 1
            for lock in cached.locks.values():
                if lock in leaving and lock.mode & PW and lock.start <= start and end <= lock.end:
                    held.append(Held(data, cached, lock, extent))
                    break
        return len(held) == 1 and _accept(held[0], buffer, time, owner)

    async def lock_to_write(self, layout: Layout, offset: int, length: int) -> None:
        """Have locks of the range under which it may be written: somebody may do so without telling us (a mapping)."""
        with self._grip(layout) as grip:
            await grip.take(_whole(layout, offset, length), PW)

    async def append(
        self, layout: Layout, owner: Fid, buffer: memoryview, time: int, cred: Cred, *, through: bool = False,
        keep: bool = True,
    ) -> int:  # fmt: skip
        """Write `buffer` at the end of the file and return where that was: nobody else writes there meanwhile."""
        while True:
            start = striping.file_size([self._size_here(*place) for place in layout.stripes], layout.stripe_size)
            async with self.ranges.hold(layout, start, limits.file_bytes_max) as range_lock:
                offset = await self._append(range_lock, layout, owner, buffer, time, cred, through, keep)
            if offset is not None:
                return offset

    def _size_here(self, index: int, obj: int) -> int:
        data = self.caches.get(index)
        cached = data.objects.get(obj) if data is not None else None
        return cached.size if cached is not None else 0

    async def _append(
        self, range_lock: RangeLock, layout: Layout, owner: Fid, buffer: memoryview, time: int, cred: Cred, through: bool,
        keep: bool,
    ) -> int | None:  # fmt: skip
        """None: the file ends before what we hold of it; somebody else has made it shorter."""
        while True:
            try:
                with self._grip(layout) as grip:
                    await grip.take(_everything(layout), PW)
                    results(await grip.each([(one, self._have_size(one, cred)) for one in grip.held], grip.give_way))
                    asked = await self._size_asked(grip) if not grip.believable else None
                    if any(one.lock.data is not one.cached for one in grip.held):
                        continue  # lost meanwhile: others may have written there
                    if any(one.lock.handle in one.cached.unsized for one in grip.held):
                        continue  # a write from here has failed meanwhile
                    sizes = [one.cached.size for one in grip.held]
                    offset = striping.file_size(sizes, layout.stripe_size) if asked is None else asked
                    if offset < range_lock.start:
                        return None
                    self.lov.check_range(layout, offset, len(buffer))
                    extents = {extent.stripe: extent for extent in _whole(layout, offset, len(buffer))}
                    parts = [one._replace(extent=extents[s]) for s, one in enumerate(grip.held) if s in extents]
                    await self._write(grip, range_lock, owner, parts, buffer, time, cred, through, keep)
                    return offset
            except GaveWay:
                continue

    async def _have_size(self, one: Held, cred: Cred) -> None:
        """Know the size of an object under a lock on all of it."""
        cached = one.cached
        while one.lock.handle in cached.unsized:  # the lock came without a word about it
            resized = cached.resized
            attr = await one.data.osc.getattr(cached.obj, cred=cred)
            if cached.seen(attr.size, one.lock, resized):
                cached.unsized.pop(one.lock.handle, None)

    async def _write(
        self, grip: Grip, range_lock: RangeLock, owner: Fid, parts: list[Held], buffer: memoryview, time: int, cred: Cred,
        through: bool, keep: bool,
    ) -> None:  # fmt: skip
        if not grip.believable:
            through, keep = True, False
        count = len(parts)
        if not through:  # in one turn, as far as there is room
            parts = [one for one in parts if not _accept(one, buffer, time, owner)]
        if not parts:
            return
        if len(parts) < count:
            range_lock.tear()
        busy = {one.extent.stripe: None for one in parts}

        async def write(one: Held) -> None:
            one.cached.cred = cred
            extent, writeback = one.extent, one.data.writeback
            pieces = [buffer[start : start + length] for start, length in extent.pieces]
            if through:
                await writeback.through.write(
                    one.cached, one.lock, extent.offset, pieces, time, owner, extent.stripe, range_lock.tear, keep=keep
                )
            else:
                await writeback.write(
                    one.cached, one.lock, extent.offset, pieces, time, owner, extent.stripe, range_lock.tear
                )
            del busy[one.extent.stripe]

        results(await grip.each([(one, write(one)) for one in parts], lambda: grip.let_go_asked(busy)))

    async def truncate(self, layout: Layout, owner: Fid, ends: Sequence[int], time: int, cred: Cred) -> None:
        """Make each object as long as `ends` says. Runs to its end even if the caller is cancelled."""
        await self.shared.tasks.finish(self._truncate(layout, owner, ends, time, cred), "truncate")

    async def _truncate(self, layout: Layout, owner: Fid, ends: Sequence[int], time: int, cred: Cred) -> None:
        extents = [Extent(stripe, end, OBJECT_EOF + 1 - end, ()) for stripe, end in enumerate(ends)]
        async with self.ranges.hold(layout, 0, _SIZE[1]) as range_lock:
            with self._grip(layout) as grip:
                cuts: dict[int, Cut] = {}  # by stripe: what is cut there and not yet here

                async def cut_off(one: Held) -> None:
                    stripe = one.extent.stripe
                    one.cached.cred = cred
                    body = ost.Punch(one.cached.obj, one.extent.offset, OBJECT_EOF, owner, stripe, time)
                    cuts[stripe] = await one.data.writeback.through.cut_off(one.cached, one.lock, body, range_lock.tear)

                def asked() -> None:
                    for one in list(grip.held):
                        cut = cuts.pop(one.extent.stripe, None) if one.lock.asked is not None else None
                        if cut is not None:
                            one.data.writeback.through.finish(cut)
                            grip.let_go(one)

                await grip.take(extents, PW)
                outcomes = await grip.each([(one, cut_off(one)) for one in grip.held], asked)
                for one in grip.held:  # in one turn
                    if one.extent.stripe in cuts:
                        one.data.writeback.through.finish(cuts[one.extent.stripe])
                results(outcomes)

    async def change(
        self, layout: Layout, start: int, end: int, bodies: Mapping[int, ost.Punch | ost.Fallocate], cred: Cred
    ) -> None:
        """Make holes or find room in [start, end) of the file, by stripe.  ENOSPC, EIO, EOPNOTSUPP; any part may be done"""
        extents = [Extent(stripe, body.start, body.end - body.start, ()) for stripe, body in bodies.items()]
        busy = dict(bodies)

        async def change(one: Held) -> None:
            one.cached.cred = cred
            stripe = one.extent.stripe
            await one.data.writeback.through.change(one.cached, one.lock, bodies[stripe], range_lock.tear)
            del busy[stripe]

        async with self.ranges.hold(layout, start, end) as range_lock:
            with self._grip(layout) as grip:
                await grip.take(extents, PW)
                results(await grip.each([(one, change(one)) for one in grip.held], lambda: grip.let_go_asked(busy)))

    async def seek(self, layout: Layout, offset: int, whence: int, cred: Cred) -> list[ost.SeekReply]:
        """What the OST of each object says when everything dirty from `offset` on is written back."""
        count, unit = len(layout.stripes), layout.stripe_size
        starts = [striping.object_bytes(stripe, offset, unit, count) for stripe in range(count)]

        async def ask(one: Held) -> ost.SeekReply:
            start = one.extent.offset
            await one.data.writeback.flush(one.cached, start, OBJECT_EOF)
            await one.data.osc.redeem(one.lock.handle)
            return await one.data.osc.seek(one.cached.obj, start, whence, cred=cred, lock=one.lock.handle)

        async with self.ranges.hold(layout, offset, limits.file_bytes_max, alone=False):
            while True:
                try:
                    with self._grip(layout) as grip:
                        await grip.take([Extent(s, start, OBJECT_EOF + 1 - start, ()) for s, start in enumerate(starts)], PR)
                        return results(await grip.each([(one, ask(one)) for one in grip.held], grip.give_way))
                except GaveWay:
                    continue

    # durability -------------------------------------------------------------------------------------------------

    async def flush(self, layout: Layout) -> set[int]:
        """Write back what is dirty of the file now; what cannot be written is reported as lost.

        Returns the stripes of which everything is durable already.
        """
        works = []
        stripes = []
        for stripe, (index, obj) in enumerate(layout.stripes):
            data = self.caches.get(index)
            cached = data.objects.get(obj) if data is not None else None
            if data is not None and cached is not None and cached.pages.busy(0, OBJECT_EOF):
                stripes.append(stripe)
                works.append(data.writeback.flush_durably(cached))
        durable = await self.shared.tasks.gather(works, "flush")
        return {stripe for stripe, done in zip(stripes, durable, strict=True) if done}

    async def flush_all(self) -> None:
        """Return when everything that is dirty now, or on its way, was written back."""
        await self.shared.tasks.gather([data.write_back() for data in self.caches.values()], "flush")

    def stop(self) -> None:
        """The mount ends: nothing more is written back."""
        for data in self.caches.values():
            data.writeback.stop()
            data.shrinker.stop()
        self.shared.tasks.stop()


def _whole(layout: Layout, offset: int, length: int) -> list[Extent]:
    """The range as one extent of each object that it touches."""
    stripes = layout.stripes
    if len(stripes) == 1:
        return [Extent(0, offset, length, ((0, length),))]
    return striping.split(offset, length, layout.stripe_size, len(stripes), WHOLE)


def _everything(layout: Layout) -> list[Extent]:
    """All of all objects."""
    return [Extent(stripe, 0, OBJECT_EOF + 1, ()) for stripe in range(len(layout.stripes))]


def _copy_all(held: Sequence[Held], buffer: memoryview, length: int) -> None:
    for one in held:
        copy_out(one.cached, one.extent.offset, pieces_of(one.extent, buffer, length))


def _views(held: Sequence[Held], length: int) -> list[memoryview]:
    """Where the first `length` bytes of an operation lie in the cache."""
    if len(held) == 1 and len(held[0].extent.pieces) == 1:
        start = held[0].extent.offset
        return views_of(held[0].cached, start, start + length)
    pieces = []
    for one in held:
        at = one.extent.offset
        for start, size in one.extent.pieces:
            pieces.append((start, at, size, one.cached))
            at += size
    pieces.sort(key=lambda piece: piece[0])
    return [view for start, at, size, cached in pieces for view in views_of(cached, at, at + max(min(size, length - start), 0))]


def _accept(one: Held, buffer: memoryview, time: int, owner: Fid) -> bool:
    """Write one object's part into the cache, now; False: there is no room."""
    extent = one.extent
    if len(extent.pieces) == 1:
        start, length = extent.pieces[0]
        pieces = [buffer[start : start + length]]
    else:
        pieces = [buffer[start : start + length] for start, length in extent.pieces]
    return one.data.writeback.accept(
        one.cached, extent.offset, extent.offset + extent.length, pieces, time, owner, extent.stripe
    )


def _outdated(lvb: Lvb, cached: CachedObject | None) -> bool:
    """Is less told of the object than was written from here?

    The OST asks all who hold locks to write, us, too. So the lock was granted after that, and has perhaps gone again with
    its last write: all we know still is that the object is not as short as we were told.
    """
    return cached is not None and not cached.exact and lvb.size < cached.size


def _newer(lvb: Lvb, cached: CachedObject | None) -> Lvb:
    """What the OST says, and what is known here that it does not know."""
    if cached is None:
        return lvb
    ours = cached.lvb()
    newest = ours if ours.ctime > lvb.ctime else lvb
    size = ours.size if cached.exact else max(ours.size, lvb.size)
    return newest._replace(size=size, atime=max(ours.atime, lvb.atime))


def objects_attr(layout: Layout, attrs: Sequence[Lvb | ObjectAttr]) -> ObjectsAttr:
    """Size, blocks and times of a file from those of all its objects."""
    if len(attrs) == 1:
        (only,) = attrs
        return ObjectsAttr(only.size, only.blocks, only.mtime, only.ctime)
    size = striping.file_size([attr.size for attr in attrs], layout.stripe_size)
    newest = max(attrs, key=lambda attr: (attr.ctime, attr.mtime))
    return ObjectsAttr(size, sum(attr.blocks for attr in attrs), newest.mtime, newest.ctime)
