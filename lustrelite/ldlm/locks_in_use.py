"""The client's locks on their way from use to the server: who uses them, who asks for them, which are too many.

A lock goes in this order: it is no longer matched; its last user lets go; `flush` (written data only); `drop`; Cancel.
An inode's lock that is wanted in part loses that part only (Convert). Reasons to go: a blocking callback, AST_SENT in a
grant, the LRU, `cancels_for`, `flush_all`. Evicted: all are lost at once, nothing is flushed.
Source: ldlm_cli_cancel(), ldlm_prepare_lru_list(), ldlm/ldlm_request.c; protocol-facts 5.4, 5.7
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from lustrelite.errors import Evicted, OpError
from lustrelite.ldlm.cancels import Cancels
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.held_locks import HeldLocks
from lustrelite.ldlm.lru import Holding
from lustrelite.ldlm.policy import WRITERS
from lustrelite.wire.ldlm import EX, IBITS
from lustrelite.wire.locks import Ask, Known

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport

HOUSEKEEPING_S_MAX = 60.0
GLIMPSED_IDLE_S = 10.0  # a write lock that is asked about and was not used for so long is given back


class LocksInUse(HeldLocks):
    """The half of LockCache that takes care of what is granted. The hooks belong to the cache above."""

    def __init__(self, imp: ClientImport) -> None:
        super().__init__(imp)
        self.flush: Callable[[ClientLock, Ask | None], Awaitable[bool]] | None = None
        """Write back what is dirty under the lock (all of it: the lock goes whole). With DISCARD_DATA: forget it.

        True: with the last write went the cancel."""
        self.write_back: Callable[[], Awaitable[None]] | None = None
        """Write back what is dirty under any lock: many small things need fewer requests together."""
        self.glimpse_of: Callable[[ClientLock], Known | None] | None = None
        """What we know of the object."""
        self.withdraw: Callable[[ClientLock], Awaitable[None] | None] | None = None
        """The lock is about to go: tell whoever believes in what is under it. Awaited before it is flushed."""
        self.wanted: Callable[[ClientLock], None] | None = None
        """Somebody asks for a lock that is in use: who uses it for long may let go of it soon."""
        self._cancels = Cancels(imp)
        self._timer: asyncio.TimerHandle | None = None
        self._trimming = False

    # using ------------------------------------------------------------------------------------------------------

    def use(self, lock: ClientLock) -> None:
        """One user more of a lock that was just matched, or is in use already."""
        assert lock.ready or lock.users, lock
        if not lock.users:
            self.lru.used(lock)
        lock.users += 1

    def release(self, lock: ClientLock) -> None:
        """One user less. The last one of a lock that is wanted sees it off."""
        assert lock.users > 0, lock
        lock.users -= 1
        if lock.users:
            return
        if lock.holding is Holding.GRANTED:
            self._unused(lock)
        elif lock.holding is Holding.WAITING:
            self._give_up(lock)

    def _refused(self, lock: ClientLock, error: OpError) -> None:
        """There is no lock."""
        if lock.resolved:
            return
        self._remove(lock)
        lock.fail(error)

    def _give_up(self, lock: ClientLock) -> None:
        """Nobody waits for the waiting lock any more."""
        self._refused(lock, OpError(errno.EINTR))
        self._cancels.add((lock.handle,))

    def _unused(self, lock: ClientLock) -> None:
        if lock.holding is not Holding.GRANTED:
            return
        if lock.asked is not None:
            self._give_back(lock)
            return
        lock.unused_since = now = self._now()
        self.lru.unused(lock, now)
        if len(self.lru) > self.lru.max_count:
            self._trim_soon()
        if self._timer is None:
            self._arm_timer()

    # going ------------------------------------------------------------------------------------------------------

    def cancel(self, lock: ClientLock) -> None:
        """Give it back as soon as it has no user."""
        self._ask(lock, Ask(lock.handle, 0, EX, lock.bits, lock.start, lock.end))
        self._asked(lock)

    def _asked(self, lock: ClientLock) -> None:
        if lock.holding is not Holding.GRANTED:
            return
        if not lock.users:
            self._give_back(lock)
        elif self.wanted is not None:
            self.wanted(lock)

    def _ask(self, lock: ClientLock, ask: Ask) -> None:
        # Nobody else is granted it before the deadline, which is later than what the lease was when we were asked.
        lock.ask(ask, min(self._now() + self.imp.lease_s, self.imp.lease_until))

    def _give_back(self, lock: ClientLock) -> None:
        """Nobody uses it: write back, drop, cancel."""
        assert lock.holding is Holding.GRANTED and not lock.users, lock
        self.lru.used(lock)
        withdrawn = self.withdraw(lock) if self.withdraw is not None else None
        if withdrawn is None and not self._dirty(lock):
            self._let_go(lock)
            return
        lock.holding = Holding.CANCELLING
        lock.ready = False
        self._cancels.spawn(self._flush_and_let_go(lock, withdrawn, lock.going_bits), "flush")

    def _dirty(self, lock: ClientLock) -> bool:
        """May there be something to be written back under it?"""
        return self.flush is not None and bool(lock.mode & WRITERS) and (self.stays is None or self.stays(lock))

    async def _flush_and_let_go(self, lock: ClientLock, withdrawn: Awaitable[None] | None, going: int) -> None:
        cancelled = False
        try:
            while withdrawn is not None:
                await withdrawn
                withdrawn = None
                if lock.holding is Holding.CANCELLING and lock.going_bits != going and self.withdraw is not None:
                    going = lock.going_bits  # more of it was asked for meanwhile
                    withdrawn = self.withdraw(lock)
            if self._dirty(lock):
                assert self.flush is not None
                cancelled = await self.flush(lock, lock.asked)
        except OpError as error:
            self.node.events.emit(
                "lock.flush_failed", level="warning", target=self.imp.target, handle=lock.handle, error=str(error)
            )
        if lock.holding is Holding.CANCELLING:
            self._let_go(lock, cancelled)

    def _let_go(self, lock: ClientLock, cancelled: bool = False) -> None:
        going = lock.going_bits
        # Also what went already: the operation with which it travels may have to wait for somebody who waits for this.
        drop_bits = lock.asked.bits if lock.asked is not None else 0
        if self.drop is not None:
            self.drop(lock, False)
        if lock.type == IBITS and going != lock.bits:
            lock.bits &= ~going
            lock.holding = Holding.GRANTED
            lock.forget_ask()
            if drop_bits:
                self._cancels.convert(lock.handle, drop_bits)
            self._unused(lock)
            return
        self._remove(lock)
        if not cancelled:
            self._cancels.add((lock.handle,))

    def cancels_for(self, fid: bytes, bits: int) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """Own locks that an operation will need gone, or a part of them: that is dropped here and now.

        (handles, (handle, drop_bits)): the cancels and converts of its Ride.
        """
        cancels: list[int] = []
        converts: list[tuple[int, int]] = []
        for lock in self.locks_of(fid):
            going = lock.bits & bits
            if not going or lock.holding is not Holding.GRANTED or lock.users:
                continue
            lock.ask(Ask(lock.handle, 0, EX, going, lock.start, lock.end), self._now())
            if self.drop is not None:
                self.drop(lock, False)
            lock.forget_ask()
            if going == lock.bits:
                self._remove(lock)
                cancels.append(lock.handle)
            else:
                lock.bits &= ~going
                converts.append((lock.handle, going))
        return tuple(cancels), tuple(converts)

    def give_up_bits(self, fid: bytes, bits: int) -> None:
        """What nobody uses of these bits of own locks goes, and nobody waits for that."""
        cancels, converts = self.cancels_for(fid, bits)
        if cancels:
            self._cancels.add(cancels)
        for handle, drop_bits in converts:
            self._cancels.convert(handle, drop_bits)

    def give_back_handle(self, handle: int) -> None:
        """The server may think that we have such a lock."""
        self._cancels.add((handle,))

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run something for which an orderly end waits."""
        return self._cancels.spawn(coro, name)

    def clear_unused(self) -> None:
        """Give back every lock that nobody uses (lru_size=clear)."""
        for lock in self.lru.drop_before_replay(lambda _: False):
            self.cancel(lock)

    def resize(self, max_count: int) -> None:
        """Keep so many unused locks from now on."""
        if max_count < 0:
            raise ValueError(f"{max_count} locks")
        self.lru.max_count = max_count
        self._trim_soon()

    async def flush_all(self, *, cancel: bool = True) -> None:
        """Write back everything, and give all locks back; return when that is done. Those in use go when released.

        Without `cancel` they are forgotten here: a goodbye follows, which the server takes for all of them.
        """
        if self.write_back is not None:
            await self.write_back()
        for lock in list(self._locks.values()):
            if lock.resolved:
                self.cancel(lock)
        if not cancel:
            self._cancels.silent = True
        await self._cancels.idle()

    def lost_all(self, error: OpError | None = None) -> None:
        """Evicted (or closed): every lock is gone, and so is what was cached under it; who waits for one fails."""
        failure = error or Evicted(self.imp.target)
        locks = list(self._locks.values())
        if locks:
            self.node.events.emit("lock.lost", target=self.imp.target, count=len(locks))
        self._cancels.forget()
        for lock in locks:
            self.lose(lock, failure)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lose(self, lock: ClientLock, error: OpError) -> None:
        """It is gone, and so is what was cached under it; who waits for it fails."""
        held = lock.resolved
        self._remove(lock)
        if held and self.drop is not None:
            lock.asked = None
            self.drop(lock, True)
        lock.fail(error)

    def fail_waiting(self, error: OpError) -> None:
        """Who waits for a lock gets `error` instead. What the server grants after all is given back."""
        for lock in list(self._locks.values()):
            if lock.holding is Holding.WAITING:
                self._refused(lock, error)
                self._cancels.add((lock.handle,))

    def glimpsed(self, handle: int) -> Known | None:
        """What do we know of the object under the lock? A write lock that is only lying about goes after the answer."""
        lock = self._locks.get(handle)
        if lock is None or self.glimpse_of is None:
            return None
        if lock.ready and not lock.users and self._now() - lock.unused_since > GLIMPSED_IDLE_S:
            asyncio.get_running_loop().call_soon(self._give_back_if_idle, lock)
        return self.glimpse_of(lock)

    def _give_back_if_idle(self, lock: ClientLock) -> None:
        if lock.ready and not lock.users:
            self._give_back(lock)

    # LRU -------------------------------------------------------------------------------------------------------------

    def _arm_timer(self) -> None:
        pause = min(self.lru.max_age_s / 4 + 1, HOUSEKEEPING_S_MAX)
        self._timer = asyncio.get_running_loop().call_later(pause, self._housekeep)

    def _housekeep(self) -> None:
        self._timer = None
        if self.node.dead:
            return
        self._trim()
        if len(self.lru):
            self._arm_timer()

    def _trim_soon(self) -> None:
        if not self._trimming:
            self._trimming = True
            asyncio.get_running_loop().call_soon(self._trim)

    def _trim(self) -> None:
        """Give back what is too old, or too much; a bounded number in one turn of the loop."""
        self._trimming = False
        given_back = self.lru.surplus(self._now(), self._stays)
        for lock in given_back:
            self.cancel(lock)
        if given_back and len(self.lru) > self.lru.max_count:
            self._trim_soon()

    def _stays(self, lock: ClientLock) -> bool:
        if lock.touched:
            lock.touched = False
            return True
        return self.stays is not None and self.stays(lock)
