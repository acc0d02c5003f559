"""The locks of one target at work: the core (table.py, flock.py) decides, this file answers, calls back and keeps time.

Every effect of the core is executed here and nowhere else:

    Grant, Wait, Deny   into the Granted of the reply
    Blocking            a callback to the holder, and a deadline: one timer for all of them, its end is the eviction
    Completion          a callback to who waited; of the target's own lock: its future
    Glimpse             a callback to the writer; the enqueue is answered when all of them have answered

The owner of a lock is the Export; what the target locks for itself has the owner LOCAL. A target needs no locks against
itself (a mutating handler runs in one turn, D4), only against what clients cache: `busy` says whether somebody caches
what an operation is about to change, and if so `wait_local` takes it back and keeps it until `release`.

A deadline runs from the first asking on, link or no link. It is put off when the client has answered, when it is asked
anew after a reconnect (LU-5520), and by work under the lock; not by repeating the question.
Source: ldlm/ldlm_lockd.c; protocol-facts 5.4, 5.6, 5.8
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lustrelite.errors import OpError
from lustrelite.ldlm.flock import FlockDenied, FlockEffect, FlockGranted, FlockRequest, FlockTable, FlockWait
from lustrelite.ldlm.lock import LOCAL, Blocking, Completion, Deny, Effect, Glimpse, Lock, LockState, Wait
from lustrelite.ldlm.lru import replayed_as_granted
from lustrelite.ldlm.policy import EOF, TYPE_MODES
from lustrelite.ldlm.table import LockTable
from lustrelite.rpc.callbacks import Callbacks
from lustrelite.wire.ldlm import (
    AST_SENT,
    BITS_ALL,
    BLOCK_GRANTED,
    BLOCK_NOWAIT,
    BLOCK_WAIT,
    EX,
    EXTENT,
    FLOCK,
    FLOCK_BSD,
    FLOCK_TEST,
    IBITS,
    LOCK_CHANGED,
    NL,
    NO_EXPANSION,
    PROMISED,
    UNTOUCHED,
    Granted,
    Lvb,
    Want,
)
from lustrelite.wire.locks import Ask, BlockingCallback, CompletionCallback, GlimpseCallback, locks_of

if TYPE_CHECKING:
    from lustrelite.rpc.export import Call, Export
    from lustrelite.rpc.node import Node

LocalLock = Lock  # one whose owner is LOCAL

RESOURCE_BYTES_MAX = 16  # a FID
STOOD_STILL_S = 1.0  # a timer that comes this late: not the clients were silent, this process did not run
DRAIN_LOOK_S = 0.02
CROWD = 64  # locks on one resource: a client that has one of them gets no more in passing
_NOT_NL = ~NL


def no_lvb(resource_id: bytes) -> Lvb | None:
    """Of a target whose resources have no value."""
    return None


class Namespace:
    """The locks of one target."""

    def __init__(
        self,
        node: Node,
        name: str,
        *,
        evict: Callable[[Export, str], None],
        frozen: bool = False,
        lvb: Callable[[bytes], Lvb | None] = no_lvb,
        types: Iterable[int] = TYPE_MODES,
    ) -> None:
        self.node = node
        self.name = name
        self.types = frozenset(types)  # of locks: the target's own are of these as well, and resources do not change
        self.lease_told_s = 0.0  # the longest lease that a client was promised
        # Called back when what was executed is durable: an eviction that a crash undoes must not have given locks away.
        self.when_durable: Callable[[Callable[[], None]], None] = _at_once
        self.all_aware: Callable[[], None] | None = None  # nobody who was evicted can believe in a lock any more
        self._promised: list[Lock] = []  # that were replayed
        self.table = LockTable(frozen)
        self.flocks = FlockTable(frozen)
        # Before a client's cancel counts, for what must be durable first: True if it will call back later.
        self.before_cancel: Callable[[Lock, bool, Callable[[], None]], bool] | None = None
        self.draining = False  # the target stops
        self._evict = evict
        self._lvb = lvb  # what is known of a resource; OpError(ENOENT) if there is no such thing
        self._local_waits: dict[Lock, asyncio.Future[None]] = {}
        self._last_local = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0  # uvloop's handle of a time that is past does not say it
        self._lingering: dict[Export, asyncio.TimerHandle | None] = {}  # evicted, and perhaps not aware of it

    # counts -----------------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """In recovery: locks are replayed, nobody is granted or asked for anything."""
        return self.table.frozen

    @property
    def lock_count(self) -> int:
        """Locks, those that wait included, record locks not."""
        return self.table.lock_count

    @property
    def resource_count(self) -> int:
        """Inodes or objects with locks."""
        return len(self.table.resources) + len(self.flocks.resources)

    @property
    def waiting_count(self) -> int:
        """Locks and record locks that wait."""
        return self.table.waiting_count + sum(len(requests) for requests in self.flocks.handles.values())

    # the target's own locks -------------------------------------------------------------------------------------

    def busy(self, fid: bytes, bits: int, by: Export | None = None, own: int = 0) -> bool:
        """Would an EX lock of the target itself have to wait for a client that caches `bits` of `fid`?

        Not for the client `by`, as far as it is about the bits `own`.
        """
        resource = self.table.resources.get(fid)
        if resource is None or resource.granted is None:
            return False
        for lock in resource.granted:
            if lock.bits & bits and lock.mode & _NOT_NL and lock.owner is not LOCAL:
                if lock.owner is not by or lock.bits & bits & ~own:
                    return True
        return False

    def take_local(self, fid: bytes, bits: int) -> LocalLock | None:
        """An EX lock of the target itself at once, or None if it would have to wait. `release` it."""
        lock = self._local(bits)
        effects = self.table.enqueue(fid, IBITS, lock, self.node.now(), wait=False)
        return None if type(effects[0]) is Deny else lock

    def extent_busy(self, resource_id: bytes, start: int, end: int, mode: int) -> bool:
        """Would an extent lock of the target itself on [start, end] have to wait?"""
        resource = self.table.resources.get(resource_id)
        if resource is None or resource.granted is None:
            return False
        return resource.granted.first(Lock(LOCAL, 0, mode, start=start, end=end)) is not None

    async def wait_local_extent(self, resource_id: bytes, start: int, end: int, mode: int) -> list[LocalLock]:
        """An extent lock of the target itself on [start, end]; who holds what is in the way gives it back.

        `release` it.
        """
        self._last_local += 1
        lock = Lock(LOCAL, self._last_local, mode, start=start, end=end, flags=NO_EXPANSION)
        return await self._wait_all([(resource_id, EXTENT, lock)])

    async def wait_local(self, wants: Sequence[tuple[bytes, int]]) -> list[LocalLock]:
        """EX locks of the target itself on each (FID, bits); holders are asked to give theirs back. `release` them.

        All queue up in this turn, in FID order, so two operations never wait for each other. Bits of one FID are
        joined.
        """
        bits_of: dict[bytes, int] = {}
        for fid, bits in sorted(wants):
            bits_of[fid] = bits_of.get(fid, 0) | bits
        return await self._wait_all([(fid, IBITS, self._local(bits)) for fid, bits in bits_of.items()])

    def revoke(self, resource_id: bytes, flags: int = 0) -> None:
        """Ask for all locks on it back and wait for nobody: who comes anew finds what has changed already.

        `flags`: DISCARD_DATA, it is gone; nothing need be written back.
        """
        resource = self.table.resources.get(resource_id)
        for lock in list(resource.granted or ()) if resource is not None else ():
            if not lock.asked:
                self._mark_asked(lock)
                self._ask(lock, lock, "nobody: it has changed", flags)

    async def _wait_all(self, wants: list[tuple[bytes, int, LocalLock]]) -> list[LocalLock]:
        now = self.node.now()
        locks: list[LocalLock] = []
        futures: list[asyncio.Future[None]] = []
        granted = False
        try:
            for resource_id, kind, lock in wants:
                effects = self.table.enqueue(resource_id, kind, lock, now)
                locks.append(lock)
                first = effects[0]
                if type(first) is Wait:
                    future = self._local_waits[lock] = asyncio.get_running_loop().create_future()
                    futures.append(future)
                    self._say_waiting(lock, first.behind)
                    self._run(effects[1:])
            for future in futures:
                await future
            granted = True
        finally:
            if not granted:
                self.release(locks)
        return locks

    def release(self, locks: Iterable[LocalLock]) -> None:
        """Give back locks of the target itself; those that wait give up."""
        now = self.node.now()
        for lock in locks:
            self._local_waits.pop(lock, None)
            effects = self.table.cancel(LOCAL, lock.handle, now)
            if effects:
                self._run(effects)

    def _local(self, bits: int) -> Lock:
        self._last_local += 1
        return Lock(LOCAL, self._last_local, EX, bits=bits)

    # clients' locks ---------------------------------------------------------------------------------------------

    def take(self, export: Export, want: Want) -> Granted:
        """Take a lock, or wait for it, or be refused: what the reply says of it."""
        try:
            self._check(want)
            if want.type == FLOCK:
                return self._take_flock(export, want)
            lvb = self._lvb(want.resource)
        except OpError as error:
            return refused(want, -error.errno)
        wait = not want.flags & BLOCK_NOWAIT
        effects = self.table.enqueue(want.resource, want.type, _lock(export, want), self.node.now(), wait)
        first = effects[0]
        if type(first) is Deny:
            return refused(want, -first.errno, lvb)
        lock = first.lock
        if type(first) is Wait:
            self._say_waiting(lock, first.behind)
            self._run(effects[1:])
        else:
            self.node.events.counts["lock.granted"] += 1
        return self._said(lock, want, lvb if type(first) is not Wait else None)

    def ride(self, call: Call, fid: bytes, want: Want) -> None:
        """A lock on what an operation has found, in the turn it has found it: in the reply's header, or not at all."""
        want = want._replace(resource=fid)
        export = call.export
        try:
            self._check(want)
        except OpError:
            return
        if want.type != IBITS or self.draining:
            return
        first = self.table.find(export, want.handle)
        if first is not None and (first.resource.id != fid or first.state is not LockState.GRANTED):
            self.cancel(export, (want.handle,))  # of an earlier copy of the request, which found something else
            return
        if first is None and self._has_enough(export, want):
            return
        effects = self.table.enqueue(fid, IBITS, _lock(export, want), self.node.now(), wait=False)
        if type(effects[0]) is Deny:
            self.node.events.counts["lock.not_ridden"] += 1
            return
        self.node.events.counts["lock.granted"] += 1
        call.granted = (*call.granted, self._said(effects[0].lock, want, None))

    def _has_enough(self, export: Export, want: Want) -> bool:
        """Does the client hold what it wants, and are there many locks? It looks at one name after another of a file."""
        resource = self.table.resources.get(want.resource)
        granted = resource.granted if resource is not None else None
        if granted is None or len(granted) < CROWD:
            return False
        return any(lock.owner is export and not want.bits & ~lock.bits and lock.mode & want.mode for lock in granted)

    def glimpse(self, export: Export, want: Want, answer: Callable[[Granted], None]) -> None:
        """Take the lock, or if somebody may know more than we do ask him; `answer` is called now or then.

        Without a lock the status is -EWOULDBLOCK and the LVB is there.
        """
        try:
            self._check(want)
            lvb = self._lvb(want.resource)
            if lvb is None or want.type != EXTENT:
                raise OpError(errno.EINVAL, "nothing to glimpse")
        except OpError as error:
            answer(refused(want, -error.errno))
            return
        first = self.table.find(export, want.handle)
        if first is not None:
            answer(self._said(first, want, lvb))
            return
        effects = self.table.glimpse(want.resource, _lock(export, want), self.node.now())
        if type(effects[0]) is not Deny:
            answer(self._said(effects[0].lock, want, lvb))
            return
        # What the target locks for itself (lockless I/O) it knows all about.
        asked = [effect.lock for effect in effects[1:] if type(effect) is Glimpse and effect.lock.owner is not LOCAL]
        if not asked:
            answer(refused(want, -errno.EWOULDBLOCK, lvb))
            return
        glimpse = _Glimpse(self, want, lvb, asked, answer)
        for lock in asked:
            self.ask_glimpse(lock, glimpse)

    def ask_glimpse(self, lock: Lock, glimpse: _Glimpse) -> None:
        """Ask the owner of `lock` what he knows."""
        self.node.events.emit("lock.glimpsed", level="debug", target=self.name, client=_name(lock.owner), handle=lock.handle)
        self._callbacks(lock.owner).add(GlimpseCallback, lock.handle, (lock, glimpse))

    def lvb(self, resource_id: bytes, *known: Lvb) -> Lvb | None:
        """What is known of a resource, `known` included; None if it is gone."""
        try:
            lvb = self._lvb(resource_id)
        except OpError:
            return None
        return lvb if lvb is None or not known else Lvb(*map(max, lvb, *known))

    def cancel(self, export: Export, handles: Iterable[int], *, with_change: bool = False) -> None:
        """The client gives back locks (`with_change`: in the request of a last change under them), or gives up waiting.

        One that it does not have is none of our business.
        """
        for handle in handles:
            lock = self.table.find(export, handle)
            if lock is None:
                self.flocks.cancel(export, handle)
            else:
                self._measure(lock)
                before = self.before_cancel
                if before is not None and before(lock, with_change, lambda lock=lock: self._cancel(lock)):  # type: ignore[misc]
                    lock.deadline = None  # it has done its part
                else:
                    self._cancel(lock)

    def _cancel(self, lock: Lock) -> None:
        owner = lock.owner
        if self.table.find(owner, lock.handle) is not lock:
            return
        if lock.asked and lock.state is LockState.GRANTED:
            self.node.events.emit(
                "lock.cancelled", level="debug", target=self.name, client=_name(owner), resource=lock.resource.id.hex(),
                handle=lock.handle,
            )  # fmt: skip
        else:
            self.node.events.counts["lock.cancelled"] += 1
        effects = self.table.cancel(owner, lock.handle, self.node.now())
        if effects:
            self._run(effects)

    def convert(self, export: Export, handle: int, drop_bits: int) -> None:
        """The client gives back some bits of a lock."""
        lock = self.table.find(export, handle)
        if lock is None or lock.state is not LockState.GRANTED or lock.resource.type != IBITS:
            return
        self._measure(lock)
        self.node.events.counts["lock.converted"] += 1
        self._run(self.table.convert(export, handle, drop_bits, self.node.now()))

    def holds(self, export: Export, handle: int, resource_id: bytes) -> Lock | None:
        """The granted lock `handle` of this client on this resource, or None."""
        lock = self.table.find(export, handle)
        if lock is None or lock.state is not LockState.GRANTED or lock.resource.id != resource_id:
            return None
        return lock

    def prolong(self, lock: Lock) -> None:
        """Its owner works under the lock."""
        if lock.deadline is not None:
            self.table.prolong(lock.owner, lock.handle, self.node.now() + self._limit(lock.owner))

    def owner_gone(self, export: Export) -> None:
        """Left, or come anew: all its locks go, and the others go on."""
        self._hears_nothing(export)
        self._run(self.flocks.owner_gone(export))
        self._gone(export)

    def owner_evicted(self, export: Export, lease_left_s: float) -> None:
        """The same when the eviction is durable: until then a crash may bring the client back, who replays what it has.

        Who does not know yet that he was evicted serves from his caches until his lease is over: so long they stay.
        """
        self._hears_nothing(export)
        held = self.table.owners.get(export, {})
        waiting = [lock for lock in held.values() if lock.state is LockState.WAITING]
        for lock in sorted(waiting, key=lambda lock: -lock.number):  # the last one first: none is granted meanwhile
            self._cancel(lock)
        if lease_left_s > 0:
            self._lingering[export] = None
        until = self.node.now() + lease_left_s

        def durable() -> None:
            self._run(self.flocks.owner_gone(export))
            if until > self.node.now():
                self._lingering[export] = asyncio.get_running_loop().call_at(until, self._gone, export)
            else:
                self._gone(export)

        self.when_durable(durable)

    def _hears_nothing(self, export: Export) -> None:
        callbacks, export.callbacks = export.callbacks, None
        if callbacks is not None:
            callbacks.close()

    def _gone(self, export: Export) -> None:
        lingered = export in self._lingering
        self._lingering.pop(export, None)
        self._run(self.table.owner_gone(export, self.node.now()))
        if lingered and not self._lingering and self.all_aware is not None:
            self.all_aware()

    async def drain(self, limit_s: float) -> None:
        """The target stops: ask for every lock; return when all are back, or when their owners have had `limit_s`.

        From now on no lock is granted that is not asked for at once, and `draining` says so to whoever wants one.
        Record locks stay: they are the applications', and are replayed to our successor.
        """
        assert not self.frozen
        self.draining = True
        locks = [lock for lock in self.table.locks() if lock.owner is not LOCAL and lock.state is LockState.GRANTED]
        if not locks:
            return
        self.node.events.emit("lock.draining", target=self.name, count=len(locks))
        for lock in locks:
            if not lock.asked:
                self._mark_asked(lock)
                self._ask(lock, lock, "nobody: the target stops")
        until = self.node.now() + limit_s
        while any(owner is not LOCAL for owner in self.table.owners) and self.node.now() < until:
            await asyncio.sleep(DRAIN_LOOK_S)

    def _mark_asked(self, lock: Lock) -> None:
        assert lock.resource.granted is not None
        lock.resource.granted.set_asked(lock, True)

    def _check(self, want: Want) -> None:
        """EINVAL: no such lock can be."""
        modes = TYPE_MODES[want.type] if want.type in self.types else 0
        if (
            not want.mode & modes
            or want.mode & (want.mode - 1)
            or want.handle <= 0
            or not 0 < len(want.resource) <= RESOURCE_BYTES_MAX
            or not 0 <= want.start <= want.end <= EOF
            or (want.type == IBITS and (want.bits <= 0 or want.try_bits < 0 or (want.bits | want.try_bits) & ~BITS_ALL))
        ):
            raise OpError(errno.EINVAL, f"no such lock: {want}")
        if want.type != FLOCK:
            resource = self.table.resources.get(want.resource)
            if resource is not None and resource.type != want.type:
                raise OpError(errno.EINVAL, "another type of lock is in use there")

    # record locks -----------------------------------------------------------------------------------------------

    def _take_flock(self, export: Export, want: Want) -> Granted:
        request = _request(export, want)
        if want.flags & FLOCK_TEST:
            found = self.flocks.test(want.resource, request)
            if found is None:
                return Granted(want.handle, 0, want.resource, NL, 0, 0, want.start, want.end, 0, None)
            record, pid = found
            return Granted(want.handle, 0, want.resource, record.mode, 0, 0, record.start, record.end, pid, None)
        effects = self.flocks.request(
            want.resource, bool(want.flags & FLOCK_BSD), request, not want.flags & BLOCK_NOWAIT
        )
        answer: Granted | None = None
        others: list[FlockEffect] = []
        for effect in effects:
            if type(effect) is FlockWait:
                answer = _of_flock(effect.request, 0, BLOCK_WAIT)
                self.node.events.emit(
                    "lock.waiting", level="debug", target=self.name, client=export.uuid, resource=want.resource.hex(),
                    handle=want.handle, behind=str(effect.behind),
                )  # fmt: skip
            elif effect.request is request:
                answer = _of_flock(request, -effect.errno if type(effect) is FlockDenied else 0, BLOCK_GRANTED)
            else:
                others.append(effect)
        self._run(others)
        assert answer is not None
        return answer

    # recovery ---------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Recovery begins: there is nothing yet, and clients will replay what they hold."""
        assert not self.table.owners and not self.flocks.handles
        self.table.frozen = self.flocks.frozen = True

    def replay(self, export: Export, want: Want) -> Granted:
        """A client says that it holds a lock, or waits for it; taken at its word."""
        try:
            self._check(want)
        except OpError as error:
            return refused(want, -error.errno)
        granted = replayed_as_granted(want.flags)
        flags = BLOCK_GRANTED if granted else BLOCK_WAIT
        if want.type == FLOCK:
            request = _request(export, want)
            self.flocks.replay(want.resource, bool(want.flags & FLOCK_BSD), request, granted)
            return _of_flock(request, 0, flags)
        lock = _lock(export, want)
        lock.try_bits = 0 if granted else lock.try_bits
        lock = self.table.replay(want.resource, want.type, lock, granted, self.node.now())
        if want.flags & PROMISED:
            self._promised.append(lock)
        return self._said(lock, want, None)

    def thaw(self) -> None:
        """Recovery is over: grant, and ask for what is in the way of those who go on waiting."""
        promised, self._promised = self._promised, []
        for lock in promised:  # of objects to which nobody else could come, as their owners believe
            if self.table.find(lock.owner, lock.handle) is lock and self._is_shared(lock):
                self.table.cancel(lock.owner, lock.handle, self.node.now())
        effects: list[Effect | FlockEffect] = [*self.table.thaw(self.node.now())]
        effects += self.flocks.thaw()
        self._run(effects)

    def _is_shared(self, lock: Lock) -> bool:
        """Has anybody else a lock on the object, or was it ever written to?"""
        granted = lock.resource.granted
        if granted is not None and any(other.owner is not lock.owner for other in granted):
            return True
        try:
            return self._lvb(lock.resource.id) not in (None, UNTOUCHED)
        except OpError:
            return True

    # effects ----------------------------------------------------------------------------------------------------

    def _run(self, effects: Iterable[Effect | FlockEffect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Blocking:
                self._ask(effect.lock, effect.waiter)  # type: ignore[union-attr]
            elif kind is Completion:
                self._complete(effect.lock)  # type: ignore[union-attr]
            elif kind is FlockGranted:
                self._complete_flock(effect.request, 0)  # type: ignore[union-attr]
            elif kind is FlockDenied:
                self._complete_flock(effect.request, -effect.errno)  # type: ignore[union-attr]
            else:
                raise AssertionError(effect)

    def _ask(self, lock: Lock, waiter: Lock, why: str = "", flags: int = 0) -> None:
        """Ask the owner of `lock` to give it back."""
        owner: Any = lock.owner
        if owner is LOCAL or owner.failed:
            return  # nothing of ours is held for long, and who was evicted hears nothing
        ask = Ask(lock.handle, flags, waiter.mode, waiter.bits, waiter.start, waiter.end)
        self._callbacks(lock.owner).add(BlockingCallback, ask, lock)
        self.node.events.emit(
            "lock.asked", level="debug", target=self.name, client=_name(lock.owner), resource=lock.resource.id.hex(),
            handle=lock.handle, wanted_by=why or _name(waiter.owner),
        )  # fmt: skip
        self._start_clock(lock)

    def _complete(self, lock: Lock) -> None:
        if lock.owner is LOCAL:
            future = self._local_waits.pop(lock, None)
            if future is not None and not future.done():
                future.set_result(None)
            return
        self.node.events.emit(
            "lock.completed", level="debug", target=self.name, client=_name(lock.owner), resource=lock.resource.id.hex(),
            handle=lock.handle, asked=lock.asked,
        )  # fmt: skip
        if self.draining and not lock.asked:
            self._mark_asked(lock)
        lvb = self.lvb(lock.resource.id) if lock.resource.type == EXTENT else None
        self._callbacks(lock.owner).add(CompletionCallback, self._said(lock, None, lvb), lock)

    def _complete_flock(self, request: FlockRequest, status: int) -> None:
        export: Any = request.owner[0]
        if export.failed:  # its eviction is about to be durable
            return
        self.node.events.emit(
            "lock.completed", level="debug", target=self.name, client=export.uuid, resource=request.resource.id.hex(),
            handle=request.handle, status=status,
        )  # fmt: skip
        self._callbacks(export).add(CompletionCallback, _of_flock(request, status, BLOCK_GRANTED), request)

    def _said(self, lock: Lock, want: Want | None, lvb: Lvb | None) -> Granted:
        """`lock` as its owner hears of it. If somebody wants it already he hears that too, and his time runs."""
        flags = BLOCK_GRANTED if lock.state is LockState.GRANTED else BLOCK_WAIT
        if want is None or (lock.mode, lock.bits, lock.start, lock.end) != (want.mode, want.bits, want.start, want.end):
            flags |= LOCK_CHANGED
        if lock.asked:
            flags |= AST_SENT
            self._start_clock(lock)
        return Granted(
            lock.handle, 0, lock.resource.id, lock.mode, flags, lock.bits, lock.start, lock.end, 0, lvb
        )

    def _say_waiting(self, lock: Lock, behind: Lock) -> None:
        self.node.events.emit(
            "lock.waiting", level="debug", target=self.name, client=_name(lock.owner), resource=lock.resource.id.hex(),
            handle=lock.handle, behind=_name(behind.owner), behind_handle=behind.handle,
        )  # fmt: skip

    # callbacks --------------------------------------------------------------------------------------------------

    def _callbacks(self, owner: Any) -> Callbacks:
        callbacks: Callbacks | None = owner.callbacks
        if callbacks is None:
            callbacks = owner.callbacks = Callbacks(owner)
        return callbacks

    def callback_repeated(self, kind: type, about: Any) -> None:
        """The client is back and is told again: a lock that was asked for has its time anew."""
        if kind is BlockingCallback or (kind is CompletionCallback and isinstance(about, Lock) and about.asked):
            self._start_clock(about)

    def callback_answered(self, export: Export, kind: type, about: Any, answer: Any) -> None:
        """What the client said of one of the things it was told; a glimpse: a Known or None."""
        if kind is GlimpseCallback:
            lock, glimpse = about
            cut = export.find_reply(answer.cut) if answer is not None and answer.cut else None
            lvb = answer.lvb if answer is not None and (cut is None or cut.status) else None
            if lvb is None or lock.state is not LockState.GRANTED:
                glimpse.ask_again(lock)
            glimpse.answered(lock, lvb)
        elif answer == 0:
            self.callback_repeated(kind, about)  # it has it now
        elif answer != -errno.EINVAL:
            self.callback_failed(export, kind, answer)
        elif isinstance(about, Lock):
            # It has no such lock: given back already, or a late copy of the enqueue made it.
            if self.table.find(export, about.handle) is about:
                self.cancel(export, (about.handle,))

    def callback_failed(self, export: Export, kind: type, status: int) -> None:
        """The client answered a callback with an error: it is beyond repair (LU-5581)."""
        self._evict(export, f"it answered a {kind.__name__} with {errno.errorcode.get(-status, status)}")

    def callback_dropped(self, kind: type, about: Any) -> None:
        """The client is gone and will not answer."""
        if kind is GlimpseCallback:
            lock, glimpse = about
            glimpse.answered(lock, None)

    # deadlines --------------------------------------------------------------------------------------------------

    def _limit(self, owner: Any) -> float:
        """How long a client may take to give back a lock: more if it usually takes long.  Source: ldlm_bl_timeout()"""
        tunables = self.node.tunables
        limit = max(tunables.lock_callback_s, self.lease_told_s + tunables.lock_lease_margin_s)
        callbacks: Callbacks | None = owner.callbacks
        return limit if callbacks is None else max(limit, min(1.5 * callbacks.measured_s, limit + tunables.at_max_s))

    def _measure(self, lock: Lock) -> None:
        """`lock` comes back: how long did it take since it was asked for, or since it was last worked under?"""
        if lock.deadline is not None:
            callbacks = self._callbacks(lock.owner)
            took = max(0.0, self._limit(lock.owner) - (lock.deadline - self.node.now()))
            callbacks.measured_s = max(took, 0.9 * callbacks.measured_s)

    def _start_clock(self, lock: Lock) -> None:
        now = self.node.now()
        self.table.asked(lock, now + self._limit(lock.owner))
        first = self.table.next_deadline()
        if first is not None and (self._timer is None or self._timer_at > first):
            self._set_timer(first)

    def _set_timer(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._expire, when)

    def _expire(self, when: float) -> None:
        self._timer = None
        now = self.node.now()
        if self.node.dead:
            return
        if now > when + STOOD_STILL_S:  # what they said meanwhile is yet to be read
            self._set_timer(now + STOOD_STILL_S / 2)
            return
        for lock in self.table.expired(now):
            if lock.state is LockState.GRANTED and lock.asked:
                owner: Any = lock.owner
                if any(lock.handle in locks_of(call.body) for call in owner.calls_in_progress()):
                    self.table.arm(lock, now + self._limit(owner))  # we are at work under it: ldlm_lock_busy()
                    continue
                self.node.events.emit(
                    "lock.expired", level="warning" if owner.target.recoverable else "info", target=self.name,
                    client=_name(owner), resource=lock.resource.id.hex(), handle=lock.handle,
                )  # fmt: skip
                self._evict(owner, f"lock callback timer expired: it did not give back {lock!r}")
                self.when_durable(lambda lock=lock: self._cancel(lock))  # type: ignore[misc]  # it serves no more from it
        first = self.table.next_deadline()
        if first is not None and self._timer is None:
            self._set_timer(first)

    def close(self) -> None:
        """The target is gone: no timer fires any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for timer in self._lingering.values():
            if timer is not None:
                timer.cancel()
        self._lingering.clear()
        for owner in self.table.owners:
            if owner is not LOCAL and owner.callbacks is not None:  # type: ignore[attr-defined]
                owner.callbacks.halt()  # type: ignore[attr-defined]

    # what one may ask -------------------------------------------------------------------------------------------

    def contended(self) -> list[bytes]:
        """The resources on which somebody waits."""
        waited = [resource.id for resource in self.table.resources.values() if resource.waiting is not None]
        waited += [resource.id for resource in self.flocks.resources.values() if resource.waiting]
        return list(dict.fromkeys(waited))

    def describe(self, resource_id: bytes) -> dict[str, Any]:
        """The queues of one resource as data: who holds what, since when, what was asked of it, who waits and why."""
        lvb = self.lvb(resource_id)
        return {
            **self.table.describe(resource_id, self.node.now()),
            "lvb": lvb._asdict() if lvb is not None else None,
            "posix": self.flocks.describe(resource_id, False),
            "bsd": self.flocks.describe(resource_id, True),
        }


class _Glimpse:
    """An enqueue that waits for what others know of an object."""

    __slots__ = ("_answer", "_asked", "_known", "_namespace", "_open", "_timer", "_want")

    def __init__(
        self, namespace: Namespace, want: Want, lvb: Lvb, asked: list[Lock], answer: Callable[[Granted], None]
    ) -> None:
        self._namespace = namespace
        self._want = want
        self._known = [lvb]
        self._open = dict.fromkeys(asked)
        self._asked = dict.fromkeys(asked)
        self._answer = answer
        self._set_timer(namespace.node.now() + namespace.node.tunables.lock_callback_s)

    def _set_timer(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._late, when)

    def ask_again(self, lock: Lock) -> None:
        """The owner has given `lock` back. He may have written under others, of which we do not know.

        Source: coherence seed 2200252
        """
        granted = lock.resource.granted
        other = granted.writer(lock.owner, self._asked) if granted is not None else None
        if other is not None and lock in self._open:
            self._open[other] = self._asked[other] = None
            self._timer.cancel()
            self._set_timer(self._namespace.node.now() + self._namespace.node.tunables.lock_callback_s)
            self._namespace.ask_glimpse(other, self)

    def answered(self, lock: Lock, lvb: Lvb | None) -> None:
        """The owner of `lock` has answered, or is gone. If its lock is gone we know ourselves what it knew under that."""
        if lock not in self._open:
            return
        del self._open[lock]
        if lvb is not None and lock.state is LockState.GRANTED:
            self._known.append(lvb)
        if self._open:
            return
        self._timer.cancel()
        known = self._namespace.lvb(self._want.resource, *self._known[1:])
        self._answer(refused(self._want, -errno.EWOULDBLOCK if known is not None else -errno.ENOENT, known))

    def _late(self, when: float) -> None:
        namespace = self._namespace
        if namespace.node.dead:
            return
        now = namespace.node.now()
        if now > when + STOOD_STILL_S:
            self._set_timer(now + STOOD_STILL_S / 2)
            return
        for lock in list(self._open):
            owner: Any = lock.owner
            if lock.state is LockState.GRANTED:
                namespace._evict(owner, f"it did not say what it knows under {lock!r}")
            else:
                self.ask_again(lock)
            self.answered(lock, None)


def _at_once(callback: Callable[[], None]) -> None:
    callback()


def refused(want: Want, status: int, lvb: Lvb | None = None) -> Granted:
    """There is no lock."""
    return Granted(want.handle, status, want.resource, 0, 0, 0, 0, 0, 0, lvb)


def _lock(export: Export, want: Want) -> Lock:
    return Lock(
        export, want.handle, want.mode, bits=want.bits, try_bits=want.try_bits, start=want.start, end=want.end,
        gid=want.owner, flags=want.flags,
    )  # fmt: skip


def _request(export: Export, want: Want) -> FlockRequest:
    return FlockRequest((export, want.owner), want.handle, want.pid, want.mode, want.start, want.end)


def _of_flock(request: FlockRequest, status: int, flags: int) -> Granted:
    return Granted(
        request.handle, status, request.resource.id, request.mode, flags if not status else 0, 0, request.start,
        request.end, request.pid, None,
    )  # fmt: skip


def _name(owner: Any) -> str:
    return owner if owner is LOCAL else owner.uuid
