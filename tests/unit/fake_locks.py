"""A LockCache without a server: grants what is asked for, and gives back what the test says. The hooks are called as
the real one calls them: no match, then the last user, then flush, drop, gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from lustrelite.errors import OpError
from lustrelite.ldlm.client_lock import SERVED_BY, ClientLock
from lustrelite.ldlm.lru import Holding
from lustrelite.ldlm.policy import EOF, WRITERS
from lustrelite.ldlm.promised import Promised
from lustrelite.wire.ldlm import EXTENT, PR, Lvb
from lustrelite.wire.locks import Ask, Known


class FakeLocks:
    """The locks of one client on one OST."""

    def __init__(self, lvb: Callable[[int], Lvb | OpError]) -> None:
        self.lvb = lvb  # what the OST knows of an object
        self.flush: Callable[[ClientLock, Ask | None], Awaitable[bool]] | None = None
        self.released: list[int] = []  # handles that went with a write
        self.drop: Callable[[ClientLock, bool], None] | None = None
        self.glimpse_of: Callable[[ClientLock], Known | None] | None = None
        self.stays: Callable[[ClientLock], bool] | None = None
        self.promised = Promised(self)  # type: ignore[arg-type]  # nobody makes any
        self.grow = True  # locks are granted on all of the object
        self.tell = True  # what the object is like
        self.lease_valid = True
        self.held: dict[int, ClientLock] = {}
        self.enqueues: list[tuple[int, int, int, int]] = []  # (object, start, end, mode)
        self.glimpses: list[list[int]] = []
        self.known: dict[int, Lvb] = {}  # what others know of an object: the answer to a glimpse
        self.gate: asyncio.Event | None = None
        self.order: list[str] = []
        self._last = 0

    def match_extent(self, resource: bytes, start: int, end: int, mode: int, gid: int = 0) -> ClientLock | None:
        if self.lease_valid:
            for lock in self.held.values():
                if lock.resource == resource and lock.ready and lock.covers(EXTENT, mode, 0, start, end, gid):
                    return lock
        return None

    async def take_extent(
        self, resource: bytes, start: int, end: int, mode: int, *, flags: int = 0, gid: int = 0
    ) -> ClientLock:
        assert 0 <= start <= end <= EOF
        lock = self.match_extent(resource, start, end, mode)
        if lock is not None:
            lock.users += 1
            return lock
        obj = int.from_bytes(resource, "big")
        self.enqueues.append((obj, start, end, mode))
        if self.gate is not None:
            await self.gate.wait()
        await asyncio.sleep(0)
        lvb = self.lvb(obj)
        if isinstance(lvb, OpError):
            raise lvb
        low, high = (0, EOF) if self.grow else (start, end)
        while True:
            lock = self.match_extent(resource, start, end, mode)
            if lock is not None:  # another task was faster
                lock.users += 1
                return lock
            blocking = [
                other
                for other in self.held.values()
                if other.resource == resource and other.start <= high and low <= other.end
                and (other.mode != PR or mode != PR)
            ]  # fmt: skip
            if not blocking:
                break
            await self.revoke(blocking[0])
        self._last += 1
        lock = ClientLock(self._last, EXTENT, resource, mode, start=low, end=high)
        lvb = self.lvb(obj)
        assert isinstance(lvb, Lvb)
        lock.lvb = lvb if self.tell else None
        lock.holding, lock.ready, lock.users = Holding.GRANTED, True, 1
        self.held[lock.handle] = lock
        return lock

    def use(self, lock: ClientLock) -> None:
        lock.users += 1

    def release(self, lock: ClientLock) -> None:
        assert lock.users > 0
        lock.users -= 1

    def serves(self, lock: ClientLock) -> bool:
        return self.lease_valid and lock.holding is Holding.GRANTED

    def cancel(self, lock: ClientLock) -> None:
        if lock.handle in self.held:
            lock.ready = False
            asyncio.get_running_loop().create_task(self.revoke(lock))

    async def revoke(self, lock: ClientLock | None = None, flags: int = 0) -> None:
        """Somebody else wants it (or all of them)."""
        for one in [lock] if lock is not None else list(self.held.values()):
            ask = Ask(one.handle, flags, PR, 0, one.start, one.end)
            one.ready, one.asked = False, ask
            while one.users or one.holding is Holding.CANCELLING:
                await asyncio.sleep(0)
            if one.handle not in self.held:
                continue
            one.holding = Holding.CANCELLING
            gone = False
            if one.mode & WRITERS and self.flush is not None and self.stays is not None and self.stays(one):
                gone = await self.flush(one, ask)
            assert gone == (one.handle in self.released)
            if one.holding is Holding.CANCELLING:
                self._gone(one, False)

    def lose_all(self) -> None:
        """Evicted."""
        for lock in list(self.held.values()):
            self._gone(lock, True)

    def _gone(self, lock: ClientLock, lost: bool) -> None:
        self.held.pop(lock.handle, None)  # gone already if its cancel went with a write
        lock.holding, lock.ready, lock.asked = Holding.CANCELLED, False, None
        if self.drop is not None:
            self.drop(lock, lost)

    async def glimpse(self, resources: Sequence[bytes]) -> list[Lvb | OpError]:
        objects = [int.from_bytes(resource, "big") for resource in resources]
        self.glimpses.append(objects)
        await asyncio.sleep(0)
        found: list[Lvb | OpError] = []
        for obj in objects:
            lvb = self.lvb(obj)
            found.append(self.known.get(obj, lvb) if isinstance(lvb, Lvb) else lvb)
        return found

    def modes(self) -> list[int]:
        return [lock.mode for lock in self.held.values()]

    def serving(self, mode: int) -> list[Any]:
        return [lock for lock in self.held.values() if lock.mode & SERVED_BY[mode]]
