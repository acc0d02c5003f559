"""One resource: what is granted on it, what waits, and what follows from a change of either.

    enqueue   granted if it conflicts with nothing granted and nobody who waits already; else it waits (or is denied)
    cancel, convert, downgrade   a lock goes or gets weaker, and whoever can be is granted, in order of arrival

Conflicting locks never overtake each other; others may. A blocking callback goes to each granted lock that conflicts
with a waiter, once: a lock that is granted while somebody who came later waits for it already hears so in its
completion. Two exceptions, both Lustre's:
- a GROUP lock joins a granted group past all waiters: the members of a group wait for each other outside our sight;
- a PW or EX lock downgraded to COS stays beside CR locks that were granted beside it: COS is against requests to come.

Parking. A waiter knows one lock it cannot be granted beside (the latest to arrive, if there is a choice) and is looked
at only when that one goes or gets weaker; it then finds another, or none and is granted. That misses nothing: until
that lock changes, the waiter cannot be granted. So a queue of n writers costs n looks, not n * n. Lustre goes through
its queue from the head instead (ldlm_reprocess_queue(), ldlm/ldlm_lock.c); the order of grants is the same.

A frozen resource (lock replay, see table.py) takes locks at their word and grants nobody until it is thawed.
Source: ldlm_lock.c:1783, ldlm_inodebits.c, ldlm_extent.c; protocol-facts 5.2, 5.5, 5.6.
"""

from __future__ import annotations

import errno
import heapq

from lustrelite.ldlm.lock import (
    Blocking,
    Completion,
    Deny,
    Effect,
    Glimpse,
    Grant,
    Lock,
    LockState,
    Wait,
)
from lustrelite.ldlm.lock_set import FEW_MAX, Few, LockSet, indexed
from lustrelite.ldlm.policy import DOWNGRADES, EOF, TYPE_MODES, Surroundings, grown
from lustrelite.wire.ldlm import (
    BITS_ALL,
    EXTENT,
    GROUP,
    IBITS,
    NL,
    NO_EXPANSION,
    PLAIN,
)


class Resource:
    """The locks of one inode or object."""

    __slots__ = ("granted", "id", "type", "waiting")

    def __init__(self, resource_id: bytes, kind: int) -> None:
        assert kind in (PLAIN, IBITS, EXTENT)
        self.id = resource_id
        self.type = kind
        self.granted: LockSet | None = None
        self.waiting: LockSet | None = None

    @property
    def empty(self) -> bool:
        """Nobody holds anything or waits."""
        return self.granted is None and self.waiting is None

    # what happens -----------------------------------------------------------------------------------------------

    def enqueue(self, lock: Lock, now: float, wait: bool = True) -> list[Effect]:
        """Take `lock`, or wait for it, or EWOULDBLOCK."""
        self._admit(lock, now)
        if self.granted is None and self.waiting is None:
            if self.type == EXTENT or lock.try_bits:
                self._enlarge(lock)
            lock.state = LockState.GRANTED
            self.granted = few = Few(self.type)
            few.locks.append(lock)
            return [Grant(lock)]
        blocker = self._blocker(lock)
        if blocker is None:
            self._enlarge(lock)
            self._grant(lock, now)
            if lock.mode == GROUP:
                self._mark_wanted(lock)  # it may have joined a group that is wanted back
            return [Grant(lock)]
        if not wait:
            lock.state = LockState.GONE
            return [Deny(lock, errno.EWOULDBLOCK)]
        lock.state = LockState.WAITING
        self.waiting = _with(self.waiting, lock, self.type)
        _park(lock, blocker)
        effects: list[Effect] = [Wait(lock, blocker)]
        self._ask_for(lock, effects)
        return effects

    def glimpse(self, lock: Lock, now: float) -> list[Effect]:
        """Take `lock`, or if somebody may write ask him what he knows; then there is no lock.

        Of each owner one lock is asked: what he knows is of the whole object. Lustre asks only for a larger size than
        its own, so that it misses the time of a change below.  Source: ofd_intent_policy(), ofd/ofd_dlm.c
        """
        effects = self.enqueue(lock, now, wait=False)
        if lock.state is LockState.GRANTED:
            return effects
        if self.granted is not None:
            effects += [Glimpse(held) for held in self.granted.writers()]
        return effects

    def cancel(self, lock: Lock, now: float) -> list[Effect]:
        """`lock` is given back, or no longer wanted. No effect if it is gone already."""
        woken = self._take_out(lock)
        return self._reprocess(woken, now) if woken else []

    def cancel_all(self, locks: list[Lock], now: float) -> list[Effect]:
        """Several at once, so that nobody is granted anything between: their owner is gone."""
        woken: dict[Lock, None] = {}
        for lock in locks:
            woken.update(self._take_out(lock) or {})
        return self._reprocess(woken, now) if woken else []

    def convert(self, lock: Lock, drop_bits: int, now: float) -> list[Effect]:
        """The owner gives back some bits. He is asked again if somebody waits for the others.

        Source: ldlm_inodebits_drop(), ldlm_inodebits.c:475
        """
        if lock.state is not LockState.GRANTED:
            return []
        assert self.type == IBITS
        left = lock.bits & ~drop_bits
        if left == lock.bits:
            return []
        if not left:
            return self.cancel(lock, now)
        return self._weaken(lock, lock.mode, left, now)

    def downgrade(self, lock: Lock, mode: int, now: float) -> list[Effect]:
        """The target's own lock gets a weaker mode; most of all PW to COS.  Source: ldlm_lock_mode_downgrade()"""
        assert lock.state is LockState.GRANTED and mode & DOWNGRADES[lock.mode], f"{lock} to {mode}"
        return self._weaken(lock, mode, lock.bits, now)

    def replay(self, lock: Lock, granted: bool, now: float) -> None:
        """The owner says that `lock` was granted, or was not yet. Taken at his word; nobody is granted or asked."""
        self._admit(lock, now)
        if granted:
            lock.state = LockState.GRANTED
            self.granted = _with(self.granted, lock, self.type)
        else:
            lock.state = LockState.WAITING
            self.waiting = _with(self.waiting, lock, self.type)

    def thaw(self, now: float) -> list[Effect]:
        """Lock replay is over: grant who can be, ask for what is in the way, asked for before or not (LU-8306)."""
        return self._reprocess(dict.fromkeys(self.waiting), now) if self.waiting is not None else []

    # how --------------------------------------------------------------------------------------------------------

    def _admit(self, lock: Lock, now: float) -> None:
        assert lock.state is LockState.NEW
        assert lock.mode & TYPE_MODES[self.type] and 0 <= lock.start <= lock.end <= EOF
        if self.type == PLAIN:
            lock.bits, lock.try_bits = 1, 0
        elif self.type == IBITS:
            assert lock.bits and not (lock.bits | lock.try_bits) & ~BITS_ALL
        elif lock.mode == GROUP:
            lock.start, lock.end = 0, EOF  # a group is of the whole object
        lock.resource = self
        lock.since = now

    def _blocker(self, lock: Lock) -> Lock | None:
        """A lock beside which `lock` cannot be granted; of those who came earlier and wait, if there is a choice."""
        if self.waiting is not None:
            blocker = self.waiting.first(lock, lock.number)
            if blocker is not None and not (lock.mode == GROUP and self._group_holds(lock)):
                return blocker
        return self.granted.first(lock) if self.granted is not None else None

    def _group_holds(self, lock: Lock) -> bool:
        """Is a lock of the same group granted? (Then, but for NL, nothing else is.)"""
        return self.granted is not None and self.granted.holds_group(lock.gid)

    def _enlarge(self, lock: Lock) -> None:
        """Give more than was asked for, where nobody minds. `lock` is in neither set, and can be granted."""
        if self.type == EXTENT:
            if lock.flags & NO_EXPANSION or lock.mode in (GROUP, NL):
                return
            if self.granted is None and self.waiting is None:
                lock.start, lock.end = 0, EOF
                return
            granted = (0, -1, EOF + 1) if self.granted is None else self.granted.around(lock, False)
            waiting = (0, -1, EOF + 1) if self.waiting is None else self.waiting.around(lock, True)
            around = Surroundings(granted[0], granted[2], *waiting)
            lock.start, lock.end = grown(lock.mode, lock.start, lock.end, around)
        elif lock.try_bits:
            wanted = lock.bits
            free = 0
            tried = lock.try_bits & ~wanted
            while tried:
                lock.bits = tried & -tried
                tried &= tried - 1
                if (self.granted is None or self.granted.first(lock) is None) and (
                    self.waiting is None or self.waiting.wanting(lock) is None
                ):
                    free |= lock.bits
            lock.bits = wanted | free
            lock.try_bits = 0

    def _grant(self, lock: Lock, now: float) -> None:
        lock.state = LockState.GRANTED
        lock.since = now
        self.granted = _with(self.granted, lock, self.type)

    def _mark_wanted(self, lock: Lock) -> bool:
        """`lock` was just granted: does somebody wait for it already?"""
        if self.waiting is None or self.granted is None or self.waiting.wanting(lock) is None:
            return False
        self.granted.set_asked(lock, True)
        return True

    def _ask_for(self, waiter: Lock, effects: list[Effect]) -> None:
        """Ask for every granted lock that is in the way of `waiter` and was not asked for."""
        granted = self.granted
        if granted is not None:
            for held in granted.unasked(waiter):
                granted.set_asked(held, True)
                effects.append(Blocking(held, waiter))

    def _take_out(self, lock: Lock) -> dict[Lock, None] | None:
        """Returns who was parked on it."""
        if lock.state is LockState.GRANTED:
            assert self.granted is not None
            self.granted.remove(lock)
            if not len(self.granted):
                self.granted = None
        elif lock.state is LockState.WAITING:
            assert self.waiting is not None
            self.waiting.remove(lock)
            if not len(self.waiting):
                self.waiting = None
            _unpark(lock)
        lock.state = LockState.GONE
        lock.deadline = None
        woken, lock.parked = lock.parked, None
        return woken

    def _weaken(self, lock: Lock, mode: int, bits: int, now: float) -> list[Effect]:
        assert self.granted is not None
        look = lock.asked or mode != lock.mode  # else nobody waits for it, or the resource is frozen
        self.granted.remove(lock)
        lock.mode, lock.bits = mode, bits
        lock.asked = False
        lock.deadline = None
        self.granted = _with(self.granted, lock, self.type)
        woken, lock.parked = lock.parked, None
        effects = self._reprocess(woken, now) if woken else []
        # Those who were parked elsewhere and still want it have not been looked at.
        if look and not lock.asked and self.waiting is not None:
            waiter = self.waiting.wanting(lock)
            if waiter is not None:
                self.granted.set_asked(lock, True)
                effects.append(Blocking(lock, waiter))
        return effects

    def _reprocess(self, woken: dict[Lock, None], now: float) -> list[Effect]:
        """Look at these waiters again, in order of arrival."""
        effects: list[Effect] = []
        queue = [(lock.number, lock) for lock in woken]
        heapq.heapify(queue)
        while queue:
            _, lock = heapq.heappop(queue)
            if lock.state is not LockState.WAITING:
                continue
            _unpark(lock)
            blocker = self._blocker(lock)
            if blocker is not None:
                _park(lock, blocker)
                self._ask_for(lock, effects)
                continue
            assert self.waiting is not None
            self.waiting.remove(lock)
            if not len(self.waiting):
                self.waiting = None
            first_of_group = lock.mode == GROUP and not self._group_holds(lock)
            self._enlarge(lock)
            self._grant(lock, now)
            effects.append(Completion(lock, self._mark_wanted(lock)))
            if first_of_group and self.waiting is not None:
                for other in self.waiting:
                    if other.mode == GROUP and other.gid == lock.gid:
                        heapq.heappush(queue, (other.number, other))
        return effects


def _with(locks: LockSet | None, lock: Lock, kind: int) -> LockSet:
    if locks is None:
        locks = Few(kind)
    elif type(locks) is Few and len(locks) >= FEW_MAX:
        locks = indexed(locks, kind)
    locks.add(lock)
    return locks


def _park(waiter: Lock, blocker: Lock) -> None:
    waiter.parked_on = blocker
    if blocker.parked is None:
        blocker.parked = {waiter: None}
    else:
        blocker.parked[waiter] = None


def _unpark(waiter: Lock) -> None:
    blocker, waiter.parked_on = waiter.parked_on, None
    if blocker is not None and blocker.parked is not None:
        blocker.parked.pop(waiter, None)
