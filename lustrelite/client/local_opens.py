"""Files that are open to be read, of which the MDT need not hear.

Who holds a lock of a file knows that it has a name: before the last one goes the MDT asks for every lock of it. So as
long as a lock is held, an open to be read needs nobody's leave but what PERM says, and costs no request; nor does its
close. It uses the lock, which therefore stays. When the lock is wanted, by whomever and for whatever, the MDT is told
of each open first (Reopen) and the lock goes when it has answered; from then on this is an open like any other. A
Reopen waits for nothing but the MDT itself, and has a reply slot and a place in the MDT of its own: all others may be
waiting for the lock.

If the MDT evicts us it forgets these opens with the others. What was read is told after the close (late_closes.py).
Source: the idea is that of NFSv4's read delegations (RFC 7530 section 10.4); Lustre keeps opens in a similar way under
MDS_INODELOCK_OPEN (ll_och_fill(), llite/file.c)
"""

from __future__ import annotations

import asyncio
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from lustrelite.client.attr_cache import Locks
from lustrelite.client.known import Known
from lustrelite.errors import OpError
from lustrelite.ids import Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.permission import READ, permits
from lustrelite.wire.message import Cred

if TYPE_CHECKING:
    from lustrelite.client.mdc import Mdc
    from lustrelite.client.tasks import Tasks


class LocalOpen:
    """One of them."""

    __slots__ = ("fid", "handle", "lock", "number", "opens", "telling")

    def __init__(self, opens: LocalOpens, number: int, fid: Fid, lock: ClientLock) -> None:
        self.opens = opens
        self.number = number  # here; no handle of the MDT is so small
        self.fid = fid
        self.lock = lock
        self.handle = 0  # at the MDT, once it was told
        self.telling: asyncio.Task[Any] | None = None


class LocalOpens:
    """All of them. It has the lock cache's `wanted` hook."""

    def __init__(self, mdc: Mdc, locks: Locks, tasks: Tasks) -> None:
        self._last = 0
        self._mdc = mdc
        self._locks = locks
        self._tasks = tasks
        self._under: dict[ClientLock, dict[LocalOpen, None]] = {}
        locks.wanted = self._wanted

    def open(self, known: Known, cred: Cred) -> LocalOpen | None:
        """Open a file of which STAT is known now; None: the MDT must be asked."""
        attr = known.attr
        if attr.layout is None or not S_ISREG(attr.mode) or not permits(attr, cred, READ):
            return None
        for lock in known.locks:
            if lock.ready:
                break
        else:
            return None
        self._last += 1
        local = LocalOpen(self, self._last, known.fid, lock)
        self._locks.use(lock)
        self._under.setdefault(lock, {})[local] = None
        return local

    async def close(self, local: LocalOpen) -> int:
        """It is open no more here. Returns its handle, to be closed; 0: the MDT has never heard of it."""
        if not self.close_now(local):
            assert local.telling is not None
            await asyncio.wait([local.telling])
        return local.handle

    def close_now(self, local: LocalOpen) -> bool:
        """`close`, if the MDT neither knows of it nor is being told."""
        if local.telling is not None:
            return False
        users = self._under[local.lock]
        del users[local]
        if not users:
            del self._under[local.lock]
        self._locks.release(local.lock)
        return True

    def _wanted(self, lock: ClientLock) -> None:
        for local in self._under.pop(lock, ()):
            local.telling = self._tasks.spawn(self._tell(local), "reopen")

    async def _tell(self, local: LocalOpen) -> None:
        try:
            local.handle = await self._mdc.reopen(local.fid)
        except OpError:
            pass  # evicted, which is said elsewhere: there is no open file any more, nor a lock
        finally:
            self._locks.release(local.lock)
