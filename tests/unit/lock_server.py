"""A lock server in memory for the tests of the client's locks: the real core (ldlm/table.py) behind a fake import.

Requests and callbacks take a few turns of the loop; what leaves together may arrive in another order, but what one side
sends to the other keeps its order, as on a link.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from typing import Any, cast

from fake_servers import FakeNode, check_wire

from lustrelite.errors import Evicted, OpError
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.lock import Blocking, Completion, Deny, Effect, Glimpse, Lock, LockState, Wait
from lustrelite.ldlm.lock_cache import LockCache
from lustrelite.ldlm.table import LockTable
from lustrelite.tunables import Tunables
from lustrelite.wire.ldlm import AST_SENT, BLOCK_GRANTED, BLOCK_NOWAIT, BLOCK_WAIT, GLIMPSE, Granted, Lvb, Ride, Want
from lustrelite.wire.locks import Ask, Cancel, Convert, Enqueue, EnqueueReply
from lustrelite.wire.session import Empty, Ping

LVB = Lvb(100, 1, 0, 0, 0)
DELAY_S = 0.001


class LockServer:
    """Grants, asks, completes."""

    def __init__(self, seed: int = 1) -> None:
        self.table = LockTable()
        self.random = random.Random(seed)
        self.imports: list[FakeImport] = []
        self.calls: list[Any] = []
        self.missing: set[bytes] = set()
        self.lvb = LVB

    def add(self, **tunables: Any) -> FakeImport:
        """One client more."""
        imp = FakeImport(self, f"client{len(self.imports)}", Tunables(**tunables))
        self.imports.append(imp)
        return imp

    def count(self, kind: type) -> int:
        """How many requests of this kind came."""
        return sum(isinstance(call, kind) for call in self.calls)

    def execute(self, imp: FakeImport, body: Any) -> Any:
        self.calls.append(body)
        if isinstance(body, Enqueue):
            return EnqueueReply(tuple(self._take(imp, want) for want in body.wants))
        if isinstance(body, Cancel):
            for handle in body.handles:
                self.run(self.table.cancel(imp, handle, 0.0))
        elif isinstance(body, Convert):
            for handle, bits in body.locks:
                self.run(self.table.convert(imp, handle, bits, 0.0))
        else:
            assert isinstance(body, Ping)
        return Empty()

    def ride(self, imp: FakeImport, ride: Ride, resource: bytes) -> tuple[Granted, ...]:
        """What the lock manager does for any operation."""
        for handle in ride.cancels:
            self.run(self.table.cancel(imp, handle, 0.0))
        for handle, bits in ride.converts:
            self.run(self.table.convert(imp, handle, bits, 0.0))
        if ride.want is None:
            return ()
        granted = self._take(imp, ride.want._replace(resource=resource, flags=BLOCK_NOWAIT))
        return () if granted.status else (granted,)

    def _take(self, imp: FakeImport, want: Want) -> Granted:
        if want.resource in self.missing:
            return Granted(want.handle, -errno.ENOENT, want.resource, 0, 0, 0, 0, 0, 0, None)
        lock = Lock(
            imp, want.handle, want.mode, bits=want.bits, try_bits=want.try_bits, start=want.start, end=want.end,
            gid=want.owner, flags=want.flags,
        )  # fmt: skip
        if want.flags & GLIMPSE:
            effects = self.table.glimpse(want.resource, lock, 0.0)
            if isinstance(effects[0], Deny):
                known = [LVB]
                for effect in effects[1:]:
                    assert isinstance(effect, Glimpse)
                    told = cast(FakeImport, effect.lock.owner).locks.glimpsed(effect.lock.handle)
                    known += [told.lvb] if told is not None else []
                lvb = Lvb(*map(max, zip(*known, strict=True)))
                return Granted(want.handle, -errno.EWOULDBLOCK, want.resource, 0, 0, 0, 0, 0, 0, lvb)
        else:
            effects = self.table.enqueue(want.resource, want.type, lock, 0.0, not want.flags & BLOCK_NOWAIT)
        first = effects[0]
        assert not isinstance(first, Blocking | Completion | Glimpse)
        if isinstance(first, Deny):
            return Granted(want.handle, -first.errno, want.resource, 0, 0, 0, 0, 0, 0, None)
        self.run(effects[1:])
        return _said(first.lock, self.lvb if not isinstance(first, Wait) else None)

    def run(self, effects: list[Effect]) -> None:
        for effect in effects:
            owner = cast(FakeImport, effect.lock.owner)
            if isinstance(effect, Blocking):
                waiter = effect.waiter
                ask = Ask(effect.lock.handle, 0, waiter.mode, waiter.bits, waiter.start, waiter.end)
                owner.tell(lambda owner=owner, ask=ask, lock=effect.lock: self._blocked(owner, ask, lock))  # type: ignore[misc]
            else:
                assert isinstance(effect, Completion)
                granted = _said(effect.lock, self.lvb)
                owner.tell(lambda owner=owner, granted=granted, lock=effect.lock: self._completed(owner, granted, lock))  # type: ignore[misc]

    def _blocked(self, owner: FakeImport, ask: Ask, lock: Lock) -> None:
        if owner.locks.blocked(ask):
            self._unknown(owner, lock)

    def _completed(self, owner: FakeImport, granted: Granted, lock: Lock) -> None:
        if owner.locks.completed(granted):
            self._unknown(owner, lock)

    def _unknown(self, owner: FakeImport, lock: Lock) -> None:
        """It says that it has no such lock."""
        if self.table.find(owner, lock.handle) is lock:
            self.run(self.table.cancel(owner, lock.handle, 0.0))

    def evict(self, imp: FakeImport) -> None:
        """All it holds goes, and it hears so."""
        self.run(self.table.owner_gone(imp, 0.0))
        imp.evicted()

    def restart(self) -> None:
        """The locks are gone; clients replay theirs."""
        self.table = LockTable(frozen=True)
        for imp in self.imports:
            imp.instance += 1

    def replay(self, imp: FakeImport) -> list[Want]:
        """One client's lock replay."""
        wants = imp.locks.wants_to_replay()
        for want in wants:
            lock = Lock(
                imp, want.handle, want.mode, bits=want.bits, try_bits=want.try_bits, start=want.start, end=want.end,
                gid=want.owner, flags=want.flags,
            )  # fmt: skip
            self.table.replay(want.resource, want.type, lock, bool(want.flags & BLOCK_GRANTED), 0.0)
        return wants

    def holds(self, imp: FakeImport) -> list[int]:
        """Handles of what it has been granted."""
        return [lock.handle for lock in self.table.locks() if lock.owner is imp and lock.state is LockState.GRANTED]


def _said(lock: Lock, lvb: Lvb | None) -> Granted:
    flags = BLOCK_GRANTED if lock.state is LockState.GRANTED else BLOCK_WAIT
    if lock.asked:
        flags |= AST_SENT
    return Granted(
        lock.handle, 0, lock.resource.id, lock.mode, flags, lock.bits, lock.start, lock.end, 0, lvb
    )


class FakeImport:
    """What a LockCache needs of a ClientImport."""

    def __init__(self, server: LockServer, name: str, tunables: Tunables) -> None:
        self.server = server
        self.node = FakeNode(tunables)
        self.target = name
        self.instance = 1
        self.lease_s = 6.0
        self.lease_until = float("inf")
        self.renews_lease = False
        self.held: list[asyncio.Event] = []  # requests wait for the first of them
        self.late: Callable[[], None] | None = None  # happens between execution and the reply
        self._handle = 0
        self._sent = self._answered = self._told = 0.0  # when the last one arrives
        self._calls: dict[asyncio.Future[None], None] = {}
        self.locks = LockCache(cast(Any, self))

    def lock_handles(self, count: int) -> int:
        first = self._handle + 1
        self._handle += count
        return first

    def _arrival(self, last: float) -> float:
        """Later than what was sent before."""
        now = asyncio.get_running_loop().time()
        return max(last + 1e-6, now + DELAY_S * (0.5 + self.server.random.random()))

    async def call(self, body: Any, *, ride: Ride | None = None, resource: bytes = b"") -> Any:
        """A request and its answer; `resource` is what an operation with a ride finds."""
        loop = asyncio.get_running_loop()
        if body is not None:
            check_wire(body)
        over: asyncio.Future[None] = loop.create_future()  # an eviction ends it
        self._calls[over] = None
        try:
            while self.held:
                await self._or_over(over, self.held[0].wait())
            self._sent = self._arrival(self._sent)
            sent_at = loop.time()
            arrived: asyncio.Future[Any] = loop.create_future()
            loop.call_at(self._sent, self._serve, arrived, body, ride, resource)
            answer = await self._or_over(over, arrived)
            if self.renews_lease:
                self.lease_until = sent_at + self.lease_s
            return answer
        except asyncio.CancelledError:
            if ride is not None:
                self.locks.ride_failed(ride, sent=True)
            raise
        finally:
            del self._calls[over]

    def _serve(self, arrived: asyncio.Future[Any], body: Any, ride: Ride | None, resource: bytes) -> None:
        granted = self.server.ride(self, ride, resource) if ride is not None else ()
        answer = self.server.execute(self, body) if body is not None else None
        self._answered = self._arrival(max(self._answered, self._told))
        asyncio.get_running_loop().call_at(self._answered, self._receive, arrived, answer, ride, granted)

    def _receive(
        self, arrived: asyncio.Future[Any], answer: Any, ride: Ride | None, granted: tuple[Granted, ...]
    ) -> None:
        if arrived.done():
            return
        if ride is not None:
            self.locks.ride_answered(ride, granted)
        arrived.set_result(answer)

    @staticmethod
    async def _or_over(over: asyncio.Future[None], waiting: Any) -> Any:
        task = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({over, task}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                over.result()
            return task.result()
        finally:
            task.cancel()

    def tell(self, what: Callable[[], None]) -> None:
        """A callback, behind every reply that left before it."""
        self._told = self._arrival(max(self._answered, self._told))
        asyncio.get_running_loop().call_at(self._told, what)

    def evicted(self) -> None:
        for over in list(self._calls):
            if not over.done():
                over.set_exception(Evicted(self.target))
                over.exception()
        self.locks.lost_all()

    def block(self) -> asyncio.Event:
        """Requests are held back from now on, until the event is set."""
        event = asyncio.Event()
        self.held.append(event)
        return event

    def unblock(self) -> None:
        for event in self.held:
            event.set()
        self.held.clear()


def ready(imp: FakeImport, resource: bytes) -> list[ClientLock]:
    """Its locks on the resource that serve."""
    return [lock for lock in imp.locks.locks_of(resource) if lock.ready]


__all__ = ["DELAY_S", "LVB", "FakeImport", "LockServer", "OpError", "ready"]
