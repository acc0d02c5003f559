"""The locks that one operation holds on the objects of a file, while it waits for the next lock, or for an answer.

They are taken in stripe order, so two operations never wait for each other in a circle. But a lock that is held while
another server does not answer is a lock that cannot be given back when somebody asks for it, and its server, who has no
trouble, would evict us for that. So who waits long looks now and then whether anybody has asked; then an operation that
can begin anew gives everything back and does so (`GaveWay`), and one that cannot gives back what it is done with: then
it is not atomic any more towards others, for this once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from lustrelite.client.cached_object import CachedObject
from lustrelite.client.data_cache import DataCache
from lustrelite.client.striping import Extent
from lustrelite.client.tasks import give_back
from lustrelite.client.writeback import Shared
from lustrelite.errors import OpError
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.wire.mdt import Layout

if TYPE_CHECKING:
    from lustrelite.client.lov import Lov

_T = TypeVar("_T")

PATIENCE = 4  # one in so many of the time that a server leaves us to give a lock back


class GaveWay(Exception):
    """Somebody waits for a lock of this operation, which waits for another server: begin anew."""


class Held(NamedTuple):
    """One object of an operation, under its lock."""

    data: DataCache
    cached: CachedObject
    lock: ClientLock
    extent: Extent

    @property
    def believable(self) -> bool:
        """Is what is cached under the lock true now?"""
        return self.lock.data is self.cached and self.data.locks.serves(self.lock)


class Grip:
    """The locks of one operation; a context manager that gives them back."""

    def __init__(self, lov: Lov, shared: Shared, layout: Layout) -> None:
        self.lov = lov
        self.layout = layout
        self.held: list[Held] = []
        self._tasks = shared.tasks
        self._patience_s = shared.node.tunables.lock_callback_s / PATIENCE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def believable(self) -> bool:
        """Is what is cached under all of them true now?"""
        return all(one.believable for one in self.held)

    def release(self) -> None:
        """Give back all of them."""
        held, self.held = self.held, []
        for one in held:
            one.data.locks.release(one.lock)

    def let_go(self, one: Held) -> None:
        """Give back one."""
        self.held.remove(one)
        one.data.locks.release(one.lock)

    def let_go_asked(self, busy: Container[int]) -> None:
        """Give back those that somebody waits for, but not of the stripes that are `busy`."""
        for one in list(self.held):
            if one.extent.stripe not in busy and one.lock.asked is not None:
                self.let_go(one)

    @property
    def asked(self) -> bool:
        """Does anybody wait for one of them?"""
        return any(one.lock.asked is not None for one in self.held)

    def give_way(self) -> None:
        """Raises GaveWay."""
        raise GaveWay

    async def take(self, extents: Sequence[Extent], mode: int) -> None:
        """A lock on the extent of each object.  Errors: ESTALE, EIO"""
        assert not self.held
        wanted = sorted(extents)
        while len(self.held) < len(wanted):
            extent = wanted[len(self.held)]
            index, obj = self.layout.stripes[extent.stripe]
            data = await self.lov.data(index)
            end = extent.offset + extent.length
            found = data.match(obj, extent.offset, end, mode)
            if found is not None:
                data.locks.use(found[1])
            else:
                taking = self.lov.on(self.layout, extent.stripe, data.take(obj, extent.offset, end, mode))
                found = await (self._take_next(data, taking) if self.held else taking)
            if found is not None:
                self.held.append(Held(data, *found, extent))

    async def _take_next(
        self, data: DataCache, taking: Coroutine[Any, Any, tuple[CachedObject, ClientLock]]
    ) -> tuple[CachedObject, ClientLock] | None:
        """One lock more; None, and all are given back, if somebody has asked for one of them meanwhile."""
        task = self._tasks.spawn(taking, "lock")
        try:
            while not task.done():
                await asyncio.wait([task], timeout=self._patience_s)
                if not task.done() and self.asked:
                    self.release()
        except BaseException:
            task.cancel()
            give_back(task, lambda found: data.locks.release(found[1]))  # it may have come in this turn
            raise
        found = task.result()
        if isinstance(found, OpError):
            raise found
        if self.held:
            return found
        data.locks.release(found[1])  # it is there when its turn comes, unless it is wanted, too
        return None

    async def each(
        self, works: Sequence[tuple[Held, Coroutine[Any, Any, _T]]], asked: Callable[[], None]
    ) -> list[_T | OpError]:
        """Do the work of each object, all at once; an object that is gone is a stale file (ESTALE).

        `asked` is called when somebody waits for a lock while some are not done.
        """
        coros = [self.lov.on(self.layout, one.extent.stripe, work) for one, work in works]
        if len(self.held) < 2:  # who keeps us waiting is the one who would have to ask
            return await self._tasks.outcomes(coros, "objects")
        return await self.wait(coros, asked)

    async def wait(self, coros: Sequence[Coroutine[Any, Any, _T]], asked: Callable[[], None]) -> list[_T | OpError]:
        """What each came to, in order. `asked` as in `each`; if it raises, they are cancelled."""
        tasks = [self._tasks.spawn(coro, "objects") for coro in coros]
        try:
            while pending := [task for task in tasks if not task.done()]:
                await asyncio.wait(pending, timeout=self._patience_s)
                if self.asked and not all(task.done() for task in tasks):
                    asked()
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        return [task.result() for task in tasks]
