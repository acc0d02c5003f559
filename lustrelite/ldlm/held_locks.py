"""The locks that a client holds on one target, by handle and by resource, and the question that is asked 200,000 times
a second: is there one that serves?

A resource has few locks of one client, mostly one; they are looked through in the order in which they came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lustrelite.ldlm.client_lock import SERVED_BY, ClientLock
from lustrelite.ldlm.lru import REPLAY_FLAGS, Holding, LockLru
from lustrelite.wire.ldlm import BLOCK_NOWAIT, GLIMPSE, GROUP, PR, PROMISED, Want

if TYPE_CHECKING:
    from lustrelite.ldlm.promised import Promised
    from lustrelite.rpc.client_import import ClientImport


class HeldLocks:
    """What LockCache is built on."""

    promised: Promised

    def __init__(self, imp: ClientImport) -> None:
        self.imp = imp
        self.node = imp.node
        self.drop: Callable[[ClientLock, bool], None] | None = None
        """The lock goes now (IBITS: `going_bits` of it); True: it is lost, what is dirty under it cannot be saved."""
        self.stays: Callable[[ClientLock], bool] | None = None
        """Is anything dirty or busy under this unused lock? Then the LRU leaves it alone."""
        self.replayed: Callable[[ClientLock], None] | None = None
        """A lock in use is told to a server that has restarted: what others have changed, and we have seen, it may have lost."""
        self.believed: Callable[[ClientLock], bool] | None = None
        """Does anybody beside us believe in what is under it? Then it is not given up without a word to him."""
        tunables = imp.node.tunables
        self.lru: LockLru[ClientLock] = LockLru(tunables.lru_size, tunables.lru_max_age_s)
        self._now = asyncio.get_running_loop().time  # node.now() without its way there: this is asked most of all
        self._unheard: dict[int, ClientLock] = {}  # of `promised`, by handle
        self._locks: dict[int, ClientLock] = {}  # by handle
        self._resources: dict[bytes, list[ClientLock]] = {}
        self._replayed_to = 0  # instance of the target to which locks were replayed last

    @property
    def lease_valid(self) -> bool:
        """May locks be believed in? (ClientImport.lease_until)"""
        return self._now() < self.imp.lease_until

    @property
    def lock_count(self) -> int:
        """Locks held or waited for."""
        return len(self._locks)

    def match_bits(self, fid: bytes, bits: int, mode: int = PR) -> ClientLock | None:
        """A lock under which `bits` of the inode are known, now: it may be gone at the next await."""
        locks = self._resources.get(fid)
        if locks is not None:
            serving = SERVED_BY[mode]
            for lock in locks:
                if lock.ready and lock.bits & bits == bits and lock.mode & serving:
                    if self._now() >= self.imp.lease_until:
                        return None
                    lock.touched = True
                    return lock
        return None

    def match_extent(
        self, resource: bytes, start: int, end: int, mode: int, gid: int = 0, *, touch: bool = True
    ) -> ClientLock | None:
        """A lock under which [start, end] may be read (PR) or written (PW), now: it may be gone at the next await.

        Without `touch` that is no use of it.
        """
        locks = self._resources.get(resource)
        if locks is not None:
            serving = SERVED_BY[mode]
            for lock in locks:
                if lock.ready and lock.start <= start and end <= lock.end and lock.mode & serving:
                    if mode == GROUP and lock.gid != gid:
                        continue
                    if self._now() >= self.imp.lease_until:
                        return None
                    if self._unheard and not self.promised.believed(lock):
                        return None
                    if touch:
                        lock.touched = True
                    return lock
        return None

    def serves(self, lock: ClientLock) -> bool:
        """Is what is cached under a lock in use still true?

        Asked for, it is so for a while, whatever the lease says.
        """
        if lock.holding is not Holding.GRANTED and lock.holding is not Holding.CANCELLING:
            return False
        if self._unheard and not self.promised.believed(lock):
            return False
        return self._now() < (self.imp.lease_until if lock.asked is None else lock.served_until)

    def locks_of(self, resource: bytes) -> list[ClientLock]:
        """Every lock of the resource, whatever its state."""
        return list(self._resources.get(resource, ()))

    def add(self, lock: ClientLock) -> None:
        """A lock more, in whatever state."""
        self._locks[lock.handle] = lock
        locks = self._resources.get(lock.resource)
        if locks is None:
            self._resources[lock.resource] = [lock]
        else:
            locks.append(lock)

    def _remove(self, lock: ClientLock) -> None:
        lock.holding = Holding.CANCELLED
        lock.ready = False
        if self._locks.pop(lock.handle, None) is None:
            return
        if lock.handle in self._unheard:
            self.promised.gone(lock)
        self.lru.used(lock)
        locks = self._resources[lock.resource]
        if len(locks) == 1:
            del self._resources[lock.resource]
        else:
            locks.remove(lock)

    def wants_to_replay(self) -> list[Want]:
        """Every lock, to be told to a server that has restarted. The unused ones are forgotten instead: it has them not.

        What the old server asked for is forgotten, too: the new one asks again.
        """
        if self._replayed_to != self.imp.instance:  # else it may have some of them already
            self._replayed_to = self.imp.instance
            for lock in self.lru.drop_before_replay(self._is_replayed):
                if self.drop is not None:
                    lock.asked = None
                    self.drop(lock, False)
                self._remove(lock)
            for lock in list(self._locks.values()):
                if lock.holding is not Holding.CANCELLING:
                    lock.forget_ask()
                if self.replayed is not None and lock.ready and lock.users:
                    self.replayed(lock)
        wants = []
        for lock in self._locks.values():
            flags = REPLAY_FLAGS[lock.holding]
            if flags is not None and not lock.flags & (GLIMPSE | BLOCK_NOWAIT):
                wants.append(lock.want(flags | PROMISED if lock.handle in self._unheard else flags))
        return wants

    def _is_replayed(self, lock: ClientLock) -> bool:
        """An unused lock: is it worth it?"""
        dirty = self.stays is not None and self.stays(lock)
        return dirty or (self.believed is not None and self.believed(lock))

    def describe(self) -> list[dict[str, Any]]:
        """Every lock as data."""
        return [lock.describe() for lock in self._locks.values()]
