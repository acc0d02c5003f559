"""The locks of one target at work: the core (table.py, flock.py) decides, this file answers and calls back.

Every effect of the core is executed here and nowhere else:

    Grant, Wait, Deny   into the Granted of the reply
    Blocking            a callback to the holder, and a deadline (deadlines.py), whose end is the eviction
    Completion          a callback to who waited; of the target's own lock: its future (local_locks.py)
    Glimpse             a callback to the writer; the enqueue is answered when all of them have answered (glimpsed.py)

The owner of a lock is the Export; what the target locks for itself has the owner LOCAL.
Source: ldlm/ldlm_lockd.c; protocol-facts 5.4, 5.6, 5.8
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from lustrelite.errors import OpError
from lustrelite.ldlm.deadlines import Deadlines
from lustrelite.ldlm.flock import FlockDenied, FlockEffect, FlockGranted, FlockRequest, FlockTable, FlockWait
from lustrelite.ldlm.glimpsed import Glimpsed
from lustrelite.ldlm.local_locks import LocalLocks
from lustrelite.ldlm.lock import LOCAL, Blocking, Completion, Deny, Effect, Glimpse, Lock, LockState, Wait
from lustrelite.ldlm.lru import replayed_as_granted
from lustrelite.ldlm.policy import EOF, TYPE_MODES
from lustrelite.ldlm.table import LockTable
from lustrelite.ldlm.wants import flock_of, lock_of, owner_name, refused, said_of_flock
from lustrelite.rpc.callbacks import Callbacks
from lustrelite.wire.ldlm import (
    AST_SENT,
    BITS_ALL,
    BLOCK_GRANTED,
    BLOCK_NOWAIT,
    BLOCK_WAIT,
    EXTENT,
    FLOCK,
    FLOCK_BSD,
    FLOCK_TEST,
    IBITS,
    LOCK_CHANGED,
    NL,
    PROMISED,
    UNTOUCHED,
    Granted,
    Lvb,
    Want,
)
from lustrelite.wire.locks import Ask, BlockingCallback, CompletionCallback, GlimpseCallback

if TYPE_CHECKING:
    from lustrelite.rpc.export import Call, Export
    from lustrelite.rpc.node import Node

RESOURCE_BYTES_MAX = 16  # a FID
DRAIN_LOOK_S = 0.02
CROWD = 64  # locks on one resource: a client that has one of them gets no more in passing


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
        self.evict = evict
        # Called back when what was executed is durable: an eviction that a crash undoes must not have given locks away.
        self.when_durable: Callable[[Callable[[], None]], None] = _at_once
        self.all_aware: Callable[[], None] | None = None  # nobody who was evicted can believe in a lock any more
        self.table = LockTable(frozen)
        self.flocks = FlockTable(frozen)
        self.local = LocalLocks(self.table, node.now, self._run, self._say_waiting)
        self.deadlines = Deadlines(node, self.table, self._let_pass)
        # Before a client's cancel counts, for what must be durable first: True if it will call back later.
        self.before_cancel: Callable[[Lock, bool, Callable[[], None]], bool] | None = None
        self.draining = False  # the target stops
        self._lvb = lvb  # what is known of a resource; OpError(ENOENT) if there is no such thing
        self._promised: list[Lock] = []  # that were replayed
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
        effects = self.table.enqueue(want.resource, want.type, lock_of(export, want), self.node.now(), wait)
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
        effects = self.table.enqueue(fid, IBITS, lock_of(export, want), self.node.now(), wait=False)
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
        effects = self.table.glimpse(want.resource, lock_of(export, want), self.node.now())
        if type(effects[0]) is not Deny:
            answer(self._said(effects[0].lock, want, lvb))
            return
        # What the target locks for itself (lockless I/O) it knows all about.
        asked = [effect.lock for effect in effects[1:] if type(effect) is Glimpse and effect.lock.owner is not LOCAL]
        if not asked:
            answer(refused(want, -errno.EWOULDBLOCK, lvb))
            return
        glimpse = Glimpsed(self, want, lvb, asked, answer)
        for lock in asked:
            self.ask_glimpse(lock, glimpse)

    def ask_glimpse(self, lock: Lock, glimpse: Glimpsed) -> None:
        """Ask the owner of `lock` what he knows."""
        self.node.events.emit("lock.glimpsed", level="debug", target=self.name, client=owner_name(lock.owner), handle=lock.handle)
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
                self.deadlines.measure(lock)
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
                "lock.cancelled", level="debug", target=self.name, client=owner_name(owner), resource=lock.resource.id.hex(),
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
        self.deadlines.measure(lock)
        self.node.events.counts["lock.converted"] += 1
        self._run(self.table.convert(export, handle, drop_bits, self.node.now()))

    def holds(self, export: Export, handle: int, resource_id: bytes) -> Lock | None:
        """The granted lock `handle` of this client on this resource, or None."""
        lock = self.table.find(export, handle)
        if lock is None or lock.state is not LockState.GRANTED or lock.resource.id != resource_id:
            return None
        return lock

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

    def revoke(self, resource_id: bytes, flags: int = 0) -> None:
        """Ask for all locks on it back and wait for nobody: who comes anew finds what has changed already.

        `flags`: DISCARD_DATA, it is gone; nothing need be written back.
        """
        resource = self.table.resources.get(resource_id)
        for lock in list(resource.granted or ()) if resource is not None else ():
            if not lock.asked:
                self._mark_asked(lock)
                self._ask(lock, lock, "nobody: it has changed", flags)

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
        request = flock_of(export, want)
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
                answer = said_of_flock(effect.request, 0, BLOCK_WAIT)
                self.node.events.emit(
                    "lock.waiting", level="debug", target=self.name, client=export.uuid, resource=want.resource.hex(),
                    handle=want.handle, behind=str(effect.behind),
                )  # fmt: skip
            elif effect.request is request:
                answer = said_of_flock(request, -effect.errno if type(effect) is FlockDenied else 0, BLOCK_GRANTED)
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
            request = flock_of(export, want)
            self.flocks.replay(want.resource, bool(want.flags & FLOCK_BSD), request, granted)
            return said_of_flock(request, 0, flags)
        lock = lock_of(export, want)
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
            "lock.asked", level="debug", target=self.name, client=owner_name(lock.owner), resource=lock.resource.id.hex(),
            handle=lock.handle, wanted_by=why or owner_name(waiter.owner),
        )  # fmt: skip
        self.deadlines.start(lock)

    def _complete(self, lock: Lock) -> None:
        if lock.owner is LOCAL:
            self.local.completed(lock)
            return
        self.node.events.emit(
            "lock.completed", level="debug", target=self.name, client=owner_name(lock.owner), resource=lock.resource.id.hex(),
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
        self._callbacks(export).add(CompletionCallback, said_of_flock(request, status, BLOCK_GRANTED), request)

    def _said(self, lock: Lock, want: Want | None, lvb: Lvb | None) -> Granted:
        """`lock` as its owner hears of it. If somebody wants it already he hears that too, and his time runs."""
        flags = BLOCK_GRANTED if lock.state is LockState.GRANTED else BLOCK_WAIT
        if want is None or (lock.mode, lock.bits, lock.start, lock.end) != (want.mode, want.bits, want.start, want.end):
            flags |= LOCK_CHANGED
        if lock.asked:
            flags |= AST_SENT
            self.deadlines.start(lock)
        return Granted(
            lock.handle, 0, lock.resource.id, lock.mode, flags, lock.bits, lock.start, lock.end, 0, lvb
        )

    def _say_waiting(self, lock: Lock, behind: Lock) -> None:
        self.node.events.emit(
            "lock.waiting", level="debug", target=self.name, client=owner_name(lock.owner), resource=lock.resource.id.hex(),
            handle=lock.handle, behind=owner_name(behind.owner), behind_handle=behind.handle,
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
            self.deadlines.start(about)

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

    def _let_pass(self, lock: Lock) -> None:
        """A lock was not given back in time."""
        owner: Any = lock.owner
        self.node.events.emit(
            "lock.expired", level="warning" if owner.target.recoverable else "info", target=self.name,
            client=owner_name(owner), resource=lock.resource.id.hex(), handle=lock.handle,
        )  # fmt: skip
        self.evict(owner, f"lock callback timer expired: it did not give back {lock!r}")
        self.when_durable(lambda: self._cancel(lock))  # it serves no more from it

    def callback_failed(self, export: Export, kind: type, status: int) -> None:
        """The client answered a callback with an error: it is beyond repair (LU-5581)."""
        self.evict(export, f"it answered a {kind.__name__} with {errno.errorcode.get(-status, status)}")

    def callback_dropped(self, kind: type, about: Any) -> None:
        """The client is gone and will not answer."""
        if kind is GlimpseCallback:
            lock, glimpse = about
            glimpse.answered(lock, None)

    def close(self) -> None:
        """The target is gone: no timer fires any more."""
        self.deadlines.close()
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


def _at_once(callback: Callable[[], None]) -> None:
    callback()
