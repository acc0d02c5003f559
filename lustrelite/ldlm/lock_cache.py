"""The client's locks of one target: taken, matched, used, asked for, given back, replayed.

    match_bits, match_extent    a lock that serves, now; sync: most operations end here and send nothing
    take_bits, take_extent      match, or enqueue and wait: the lock has a user more, who must `release` it
    ride ... ridden             the lock travels with an operation (wire/ldlm.py)

How they go: ldlm/locks_in_use.py. A callback for a lock whose enqueue is not answered yet is remembered, and a
completion counts, whichever is faster.

Who takes a lock must not take another one of the same resource while he uses it: if the first was asked for meanwhile,
the second waits for somebody who waits for the first.

Trust: see `ClientImport.lease_until`. Past it nothing matches; `take` renews it first. Whoever keeps a lock for long
asks `serves` before he believes what is cached under it.

Not here: record locks (client/flocks.py), and what is cached under the locks.
Source: ldlm/ldlm_request.c, ldlm_lockd.c; protocol-facts 5.4, 5.7, 5.8; docs/locks.md
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lustrelite.errors import Evicted, OpError
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.locks_in_use import LocksInUse
from lustrelite.ldlm.lru import Holding
from lustrelite.ldlm.policy import EOF
from lustrelite.ldlm.promised import Promised
from lustrelite.wire.ldlm import (
    AST_SENT,
    BLOCK_GRANTED,
    BLOCK_NOWAIT,
    BLOCK_WAIT,
    EX,
    EXTENT,
    GLIMPSE,
    IBITS,
    PLAIN,
    PR,
    Granted,
    Lvb,
    Ride,
    Want,
)
from lustrelite.wire.locks import Ask, Enqueue
from lustrelite.wire.session import Ping

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport

WANTS_MAX = 500  # in an Enqueue
RENEW_PAUSE_S = 0.05  # until a callback that was lost comes again
RENEW_PAUSE_S_MAX = 1.0


class _Riding:
    """A lock, or several with handles in a row, that an operation may bring."""

    __slots__ = ("asked", "count", "want")

    def __init__(self, want: Want, count: int) -> None:
        self.want = want
        self.count = count
        self.asked: dict[int, Ask] = {}  # callbacks that were faster than the reply


class LockCache(LocksInUse):
    """One per import. The hooks belong to the cache above."""

    def __init__(self, imp: ClientImport) -> None:
        super().__init__(imp)
        self.promised = Promised(self)
        self._unheard = self.promised.unheard
        self._rides: dict[int, _Riding] = {}  # by the first handle
        self._renewing: asyncio.Future[None] | None = None

    # taking -----------------------------------------------------------------------------------------------------

    async def take_bits(self, fid: bytes, bits: int, mode: int = PR, try_bits: int = 0) -> ClientLock:
        """A lock of an inode, with a user more; `try_bits` come along if they are free.  Errors: ENOENT, Evicted"""
        lock = self.match_bits(fid, bits, mode)
        if lock is not None:
            self.use(lock)
            return lock
        return await self._take(IBITS, fid, mode, bits, try_bits, 0, EOF, 0, 0)

    async def take_plain(self, resource: bytes, mode: int) -> ClientLock:
        """A lock of a thing without parts, with a user more.  Errors: Evicted"""
        return await self._take(PLAIN, resource, mode, 0, 0, 0, EOF, 0, 0)

    async def take_extent(
        self, resource: bytes, start: int, end: int, mode: int, *, flags: int = 0, gid: int = 0
    ) -> ClientLock:
        """A lock of an object, with a user more. `flags`: BLOCK_NOWAIT, NO_EXPANSION, NO_TIMEOUT.

        Errors: EWOULDBLOCK, ENOENT no such object, Evicted
        """
        lock = self.match_extent(resource, start, end, mode, gid)
        if lock is not None:
            self.use(lock)
            return lock
        return await self._take(EXTENT, resource, mode, 0, 0, start, end, gid, flags)

    async def _take(
        self, kind: int, resource: bytes, mode: int, bits: int, try_bits: int, start: int, end: int, gid: int, flags: int
    ) -> ClientLock:
        while True:
            if self._unheard:
                await self._keep_promise(resource)
            for lock in self._resources.get(resource, ()):
                if not lock.covers(kind, mode, bits, start, end, gid):
                    continue
                if lock.ready:
                    if not self.lease_valid:
                        break
                    self.use(lock)
                    return lock
                waits = not lock.resolved and lock.asked is None and not flags & BLOCK_NOWAIT
                if waits and not lock.flags & (BLOCK_NOWAIT | GLIMPSE):
                    lock.users += 1
                    await self._granted_to_user(lock)
                    return lock
            else:
                break
            if not self.imp.lease_s:  # the server lets nobody believe anything
                break
            await self._renew_lease()
        lock = ClientLock(
            self.imp.lock_handles(1), kind, resource, mode, bits=bits, try_bits=try_bits, start=start, end=end, gid=gid,
            flags=flags,
        )  # fmt: skip
        self.add(lock)
        lock.users = 1
        lock.future = asyncio.get_running_loop().create_future()
        try:
            await self._enqueue(lock)
        except asyncio.CancelledError:
            if lock.resolved:
                self.release(lock)
                raise
            lock.users -= 1
            if lock.users:  # others wait for it
                self._cancels.spawn(self._enqueue(lock), "enqueue")
            else:
                self._give_up(lock)
            raise
        await self._granted_to_user(lock)
        return lock

    async def _keep_promise(self, resource: bytes) -> None:
        """Let the server hear of a lock of the object that does not serve as it is.  Errors: ENOENT"""
        promise = self.promised.of(resource)
        if promise is not None:
            try:
                await self.promised.redeem(promise.handle)
            except Evicted:
                pass  # then there is none that could be in the way

    async def _enqueue(self, lock: ClientLock) -> None:
        """Ask for it. What came of it is in `lock.future`."""
        try:
            reply = await self.imp.call(Enqueue((lock.want(),), ()))
        except OpError as error:
            self._refused(lock, error)
            return
        for granted in reply.granted:
            if granted.handle == lock.handle:
                self._answered(lock, granted)
                return
        self._refused(lock, OpError(errno.EPROTO, f"{self.imp.target} does not say what became of a lock"))

    async def _granted_to_user(self, lock: ClientLock) -> None:
        """Wait for a lock of which the caller is a user already. Cancelled, or refused, he is one no more."""
        future = lock.future
        assert future is not None
        if future.done():
            future.result()
            return
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError:
            self.release(lock)
            raise

    def _answered(self, lock: ClientLock, granted: Granted) -> None:
        """The reply to its enqueue. A completion may have been faster, or an eviction."""
        if lock.resolved:
            return
        if granted.status:
            self._refused(lock, OpError(-granted.status))
        elif not granted.flags & BLOCK_WAIT:
            self._granted(lock, granted)
        else:
            lock.holding = Holding.WAITING
            self.node.events.emit("lock.waiting", level="debug", target=self.imp.target, handle=lock.handle, resource=lock.resource.hex())
            if not lock.users:
                self._give_up(lock)

    def _granted(self, lock: ClientLock, granted: Granted) -> None:
        lock.take_over(granted)
        if granted.flags & AST_SENT:
            self._ask(lock, Ask(lock.handle, 0, EX, lock.bits, lock.start, lock.end))
        if lock.future is not None and not lock.future.done():
            lock.future.set_result(None)
        if not lock.users:
            self._unused(lock)

    async def _renew_lease(self) -> None:
        """Return when locks may be believed in again, or never will be; one ping for all who wait."""
        if self._renewing is None:
            self._renewing = asyncio.get_running_loop().create_future()
            self._cancels.spawn(self._renew(self._renewing), "renew lease")
        await asyncio.shield(self._renewing)

    async def _renew(self, renewed: asyncio.Future[None]) -> None:
        pause = RENEW_PAUSE_S
        error: OpError | None = None
        try:
            while not self.lease_valid and self.imp.lease_s:
                await self.imp.call(Ping())
                if not self.lease_valid:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, RENEW_PAUSE_S_MAX)
        except OpError as failed:
            error = failed
        self._renewing = None
        if error is None:
            renewed.set_result(None)
        else:
            renewed.set_exception(error)
            renewed.exception()

    def lost_all(self, error: OpError | None = None) -> None:
        """Evicted (or closed): every lock is gone, and so is what was cached under it; who waits for one fails."""
        self._rides.clear()
        super().lost_all(error)

    # what the server says ---------------------------------------------------------------------------------------

    def blocked(self, ask: Ask, again: bool = False) -> int:
        """A blocking callback.

        0, or -EINVAL: there is no such lock (any more). `again`: a copy, only to be answered.
        """
        lock = self._locks.get(ask.handle)
        if lock is None:
            riding = self._riding(ask.handle)
            if riding is None:
                return -errno.EINVAL
            riding.asked[ask.handle] = ask
            return 0
        if again:
            return 0
        self.node.events.emit("lock.asked", level="debug", target=self.imp.target, handle=lock.handle, users=lock.users)
        self._ask(lock, ask)
        self._asked(lock)
        return 0

    def completed(self, granted: Granted) -> int:
        """A waiting lock is granted, or refused after all. 0, or -EINVAL: we do not wait for it (any more)."""
        lock = self._locks.get(granted.handle)
        if lock is None:
            return -errno.EINVAL
        if not lock.resolved:
            if granted.status:
                self._refused(lock, OpError(-granted.status))
            else:
                self._granted(lock, granted)
        return 0

    # locks that travel with operations --------------------------------------------------------------------------

    def ride(
        self, fid: bytes, bits: int, mode: int = PR, try_bits: int = 0, cancels: tuple[int, ...] = (), *, flags: int = 0,
        count: int = 1, converts: tuple[tuple[int, int], ...] = (),
    ) -> Ride:  # fmt: skip
        """For `ClientImport.call(..., ride=)`: what goes before the operation, and the lock that is wanted of its find.

        `fid` is b"" if only the reply says which inode that is; without `bits` no lock is wanted. With REPLACE_EACH
        in `flags` there may be `count` locks.
        """
        if not bits:
            return Ride(cancels, None, converts)
        want = Want(self.imp.lock_handles(count), IBITS, fid, mode, flags, bits, try_bits, 0, 0, 0, 0)
        self._rides[want.handle] = _Riding(want, count)
        return Ride(cancels, want, converts)

    def ridden(self, ride: Ride) -> ClientLock | None:
        """After the call, answered or failed: the lock, if it was granted and is not asked for again."""
        lock = self._locks.get(ride.want.handle) if ride.want is not None else None
        return lock if lock is not None and lock.ready else None

    def ridden_each(self, ride: Ride, count: int) -> list[ClientLock]:
        """After a call with REPLACE_EACH: those of the `count` locks that were granted."""
        assert ride.want is not None
        locks = (self._locks.get(ride.want.handle + place) for place in range(count))
        return [lock for lock in locks if lock is not None and lock.ready]

    def ride_answered(self, ride: Ride, answers: Sequence[Granted], *, resent: bool = False) -> None:
        """The reply to the operation; the import calls this before its caller goes on.

        What an earlier copy of the request may have been granted, and this answer does not name, is given back.
        """
        riding = self._rides.pop(ride.want.handle, None) if ride.want is not None else None
        if riding is None:
            return
        want = riding.want
        for granted in answers:
            if granted.status or not want.handle <= granted.handle < want.handle + riding.count:
                continue
            lock = ClientLock(granted.handle, IBITS, granted.resource, granted.mode, bits=granted.bits)
            lock.asked = riding.asked.get(granted.handle)
            self.add(lock)
            self._granted(lock, granted)
        if resent:
            named = {granted.handle for granted in answers if not granted.status}
            if unnamed := [handle for handle in range(want.handle, want.handle + riding.count) if handle not in named]:
                self._cancels.add(unnamed)

    def ride_failed(self, ride: Ride, *, sent: bool) -> None:
        """There will be no answer. What the server may have granted is given back, what was to go goes by itself."""
        riding = self._rides.pop(ride.want.handle, None) if ride.want is not None else None
        handles = list(ride.cancels)
        if sent and riding is not None:
            handles += range(riding.want.handle, riding.want.handle + riding.count)
        if handles:
            self._cancels.add(handles)
        for handle, drop_bits in ride.converts:
            self._cancels.convert(handle, drop_bits)

    def _riding(self, handle: int) -> _Riding | None:
        for first, riding in self._rides.items():
            if first <= handle < first + riding.count:
                return riding
        return None

    # glimpse ----------------------------------------------------------------------------------------------------

    async def glimpse(self, resources: Sequence[bytes]) -> list[Lvb | OpError]:
        """What is known of each object, by whoever knows most. Where nobody writes, a PR lock comes along.

        Errors (each for itself): ENOENT no such object.  (of all): Evicted
        """
        found: list[Lvb | OpError] = []
        if self._unheard:
            for resource in resources:
                try:
                    await self._keep_promise(resource)
                except OpError:
                    pass  # the answer will say the same
        for at in range(0, len(resources), WANTS_MAX):
            found += await self._glimpse(resources[at : at + WANTS_MAX])
        return found

    async def _glimpse(self, resources: Sequence[bytes]) -> list[Lvb | OpError]:
        first = self.imp.lock_handles(len(resources))
        locks = [ClientLock(first + i, EXTENT, resource, PR, flags=GLIMPSE) for i, resource in enumerate(resources)]
        for lock in locks:
            self.add(lock)
        try:
            reply = await self.imp.call(Enqueue(tuple(lock.want() for lock in locks), ()))
        except (OpError, asyncio.CancelledError):
            for lock in locks:
                if not lock.resolved:
                    self._remove(lock)
            self._cancels.add([lock.handle for lock in locks])
            raise
        answers = {granted.handle: granted for granted in reply.granted}
        found: list[Lvb | OpError] = []
        for lock in locks:
            granted = answers.get(lock.handle)
            if granted is not None and not granted.status and granted.flags & BLOCK_GRANTED and not lock.resolved:
                self._granted(lock, granted)
            else:
                self._refused(lock, OpError(errno.EAGAIN))
            if granted is None:
                found.append(OpError(errno.EPROTO))
            else:
                found.append(granted.lvb if granted.lvb is not None else OpError(-granted.status or errno.EPROTO))
        return found
