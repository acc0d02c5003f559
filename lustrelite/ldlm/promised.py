"""Locks that a client takes without a word, because nobody else can want them; the server hears of them later, many at once.

Nobody but who has made a file can reach its objects as long as he holds SOLE of the file (docs/locks.md). So he may act
as if he had a lock on such an object: `make`. It is a ClientLock like any other, under its own handle, and whatever
would name it to the server waits for `redeem`: an Enqueue, which takes the oldest other promises along.

A promise holds as long as its `ground` does (the lease of who granted SOLE). If somebody is in the way when it is redeemed,
or was there, the ground had gone before we heard of it: the lock is lost, as after an eviction. If SOLE had to be given back
while the server did not answer, the promise is `forsaken`: it is kept if the server says that nobody could reach it meanwhile
(PROMISED, ost/promised.py), or by a replay. After a restart of the server all are replayed as if they had been granted
(PROMISED: the server drops those whose object was written to, or locked by somebody else), and what it has kept an Enqueue
tells. Who is evicted by the granter of SOLE has as long as his lease to `salvage` what he promised himself: so long nobody
else gets it.
Source: no such thing in Lustre; the idea is that of delegations (RFC 8881, 10.4)
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from lustrelite.errors import Evicted, OpError
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.lru import Holding
from lustrelite.wire.ldlm import AST_SENT, BLOCK_WAIT, EX, EXTENT, PROMISED, PW, UNTOUCHED, Granted
from lustrelite.wire.locks import Ask, Enqueue

if TYPE_CHECKING:
    from lustrelite.ldlm.lock_cache import LockCache

TOGETHER_MAX = 64  # in an Enqueue, if not more are wanted at once


class Promised:
    """Those of one import. The hooks belong to the cache above."""

    def __init__(self, locks: LockCache) -> None:
        self.unheard: dict[int, ClientLock] = {}  # by handle, the oldest first
        self.ground: Callable[[], bool] = bool
        """May promises be believed in now?"""
        self.heard: Callable[[ClientLock], None] | None = None
        """The server knows of it from now on."""
        self.pointless: Callable[[ClientLock], None] | None = None
        """Its object is gone: what is cached under it will be missed by nobody."""
        self._locks = locks
        self._forsaken: dict[int, None] = {}
        self._replayed: dict[int, None] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}  # who waits for an answer, by handle
        self._to_ask: dict[int, None] = {}
        self._asking = False  # in this turn

    def make(self, resource: bytes) -> ClientLock:
        """A lock of an object, with one user."""
        locks = self._locks
        lock = ClientLock(locks.imp.lock_handles(1), EXTENT, resource, PW)
        lock.holding = Holding.GRANTED
        lock.ready = True
        lock.lvb = UNTOUCHED
        lock.users = 1
        locks.add(lock)
        self.unheard[lock.handle] = lock
        return lock

    def believed(self, lock: ClientLock) -> bool:
        """Is it either heard of, or a promise that holds?"""
        return lock.handle not in self.unheard or (lock.handle not in self._forsaken and self.ground())

    def of(self, resource: bytes) -> ClientLock | None:
        """The promised lock of an object, if there is one."""
        if self.unheard:
            for lock in self._locks.locks_of(resource):
                if lock.handle in self.unheard:
                    return lock
        return None

    # keeping them -------------------------------------------------------------------------------------------------

    async def redeem(self, handle: int) -> None:
        """Return when the server knows of the lock.  Errors: ENOENT, Evicted: there is none (any more)"""
        if handle in self.unheard:
            self.redeem_soon((handle,))
            await asyncio.shield(self._waiting[handle])

    def redeem_soon(self, handles: Iterable[int]) -> None:
        """The same, and nobody waits."""
        for handle in handles:
            if handle in self.unheard and handle not in self._waiting:
                self._expect(handle)
                self._to_ask[handle] = None
        if self._to_ask and not self._asking:
            self._asking = True
            asyncio.get_running_loop().call_soon(self._ask)

    def _expect(self, handle: int) -> None:
        self._waiting[handle] = asyncio.get_running_loop().create_future()

    def _ask(self) -> None:
        self._asking = False
        handles, self._to_ask = list(self._to_ask), {}
        for handle in self.unheard:
            if len(handles) >= TOGETHER_MAX:
                break
            if handle not in self._waiting:
                self._expect(handle)
                handles.append(handle)
        locks = [self.unheard[handle] for handle in handles if handle in self.unheard]
        for at in range(0, len(locks), TOGETHER_MAX):
            self._locks.spawn(self._enqueue(locks[at : at + TOGETHER_MAX]), "redeem")

    async def _enqueue(self, locks: list[ClientLock]) -> None:
        try:
            reply = await self._locks.imp.call(Enqueue(tuple([lock.want(PROMISED) for lock in locks]), ()))
        except OpError as error:
            for lock in locks:
                self._answer(lock.handle, error)
            return
        answers = {granted.handle: granted for granted in reply.granted}
        for lock in locks:
            self._answered(lock, answers.get(lock.handle))

    def _answered(self, lock: ClientLock, granted: Granted | None) -> None:
        locks, handle = self._locks, lock.handle
        if handle not in self.unheard:  # gone meanwhile
            if lock.holding is Holding.CANCELLED:
                locks.give_back_handle(handle)
        elif granted is None or granted.status:
            self._refused(lock, OpError(-granted.status if granted is not None else errno.EPROTO))
        elif self._is_broken(granted):
            locks.give_back_handle(handle)
            self._refused(lock, Evicted(locks.imp.target))
        else:
            self._hear(lock)
            if granted.flags & AST_SENT:
                locks.blocked(Ask(handle, 0, EX, 0, lock.start, lock.end))

    def _is_broken(self, granted: Granted) -> bool:
        """Is somebody else there, was he, or may he have been?"""
        kept = granted.flags & PROMISED or granted.handle in self._replayed
        forsaken = granted.handle in self._forsaken and not kept
        return forsaken or bool(granted.flags & BLOCK_WAIT) or granted.lvb != UNTOUCHED

    def _hear(self, lock: ClientLock) -> None:
        del self.unheard[lock.handle]
        self._replayed.pop(lock.handle, None)
        if lock.handle in self._forsaken:
            del self._forsaken[lock.handle]
            self._say("lock.forsaken_kept", lock)
        self._answer(lock.handle, None)
        if self.heard is not None:
            self.heard(lock)

    def _answer(self, handle: int, error: OpError | None) -> None:
        self._to_ask.pop(handle, None)
        future = self._waiting.pop(handle, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
            future.exception()  # seen: perhaps nobody waits

    def replayed(self, handles: Iterable[int]) -> None:
        """The server was told of these locks in its recovery; afterwards it says which of the promised ones it has kept."""
        promised = [handle for handle in handles if handle in self.unheard]
        self._replayed.update(dict.fromkeys(promised))
        self.redeem_soon(promised)

    # breaking them ------------------------------------------------------------------------------------------------

    def forsake(self, lock: ClientLock) -> asyncio.Task[None] | None:
        """SOLE goes, and the server did not answer. When the task is done nobody else believes in it any more."""
        if lock.handle not in self.unheard or lock.handle in self._forsaken:
            return None
        self._forsaken[lock.handle] = None
        self._say("lock.forsaken", lock)
        withdrawn = self._locks.withdraw(lock) if self._locks.withdraw is not None else None
        return self._locks.spawn(_awaited(withdrawn), "withdraw") if withdrawn is not None else None

    def salvage(self, lock: ClientLock, until: float) -> None:
        """SOLE is lost, and until then nobody else is told of the object: then the promise is forsaken."""
        self.redeem_soon((lock.handle,))
        loop = asyncio.get_running_loop()
        if until <= loop.time():
            self.forsake(lock)
        else:
            loop.call_at(until, self.forsake, lock)

    def _refused(self, lock: ClientLock, error: OpError) -> None:
        if error.errno == errno.ENOENT and self.pointless is not None:
            self.pointless(lock)
        self._answer(lock.handle, error)
        self._locks.lose(lock, error)

    def _say(self, event: str, lock: ClientLock) -> None:
        imp = self._locks.imp
        imp.node.events.emit(event, target=imp.target, handle=lock.handle, resource=lock.resource.hex())

    def gone(self, lock: ClientLock) -> None:
        """There is no such lock any more."""
        if self.unheard.pop(lock.handle, None) is not None:
            self._replayed.pop(lock.handle, None)
            if lock.handle in self._forsaken:
                del self._forsaken[lock.handle]
                self._say("lock.forsaken_lost", lock)
            self._answer(lock.handle, Evicted(self._locks.imp.target))


async def _awaited(what: Awaitable[None]) -> None:
    await what
