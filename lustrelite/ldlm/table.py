"""All locks of one target: by owner and handle, by resource, and by when they must be given back.

A lock is named by its owner (the export) and the owner's handle for it; that name is known before the first enqueue is
sent, so a resent enqueue finds its first lock (LU-2827) and a callback never comes too early.

After a restart the table is frozen: owners replay their locks, nobody is granted or asked for anything, and the end of
recovery thaws it. An enqueue that was never answered is replayed as one that waits: granting it before everybody has
spoken could grant what somebody else holds (Lustre runs the normal policy there).

A deadline is armed when a blocking callback was sent, put off by work under the lock (`prolong`), and its passing means
eviction of the owner: `expired`. The caller has the clock and sends.
Source: ldlm_lockd.c 120-153, 637, 887; ldlm_lib.c (lock replay); protocol-facts 5.4, 5.8.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from lustrelite.ldlm.lock import Completion, Effect, Grant, Lock, LockState, Owner, Wait
from lustrelite.ldlm.policy import bits_text, mode_text
from lustrelite.ldlm.resource import Resource
from lustrelite.wire.ldlm import EXTENT, GROUP, IBITS

GROUPS_FIRST = 1 << 63


class LockTable:
    """The locks of one target. FLOCK locks are in flock.py."""

    def __init__(self, frozen: bool = False) -> None:
        self.resources: dict[bytes, Resource] = {}
        self.owners: dict[Owner, dict[int, Lock]] = {}
        self.frozen = frozen
        self.lock_count = 0
        self.waiting_count = 0
        self._number = 0
        self._deadlines: list[tuple[float, int, Lock]] = []  # lower bounds: a lock's own deadline may be later

    # what happens -----------------------------------------------------------------------------------------------

    def find(self, owner: Owner, handle: int) -> Lock | None:
        """The lock that `owner` calls `handle`, or None."""
        locks = self.owners.get(owner)
        return locks.get(handle) if locks is not None else None

    def resource(self, resource_id: bytes, kind: int) -> Resource:
        """The resource, made if need be."""
        resource = self.resources.get(resource_id)
        if resource is None:
            resource = self.resources[resource_id] = Resource(resource_id, kind)
        assert resource.type == kind, f"{resource_id.hex()} has another type"
        return resource

    def enqueue(self, resource_id: bytes, kind: int, lock: Lock, now: float, wait: bool = True) -> list[Effect]:
        """Take `lock`. A second enqueue of one handle answers with the first lock, as it is now."""
        assert not self.frozen, "no new locks during recovery (LU-8979)"
        first = self.find(lock.owner, lock.handle)
        if first is not None:
            return [Grant(first)] if first.state is LockState.GRANTED else [Wait(first, first.parked_on or first)]
        lock.number = self._next_number(lock)
        resource = self.resource(resource_id, kind)
        effects = resource.enqueue(lock, now, wait)
        if lock.state is LockState.GONE:
            return effects
        self._register(lock)
        return effects

    def glimpse(self, resource_id: bytes, lock: Lock, now: float) -> list[Effect]:
        """Take `lock`, or say whom to ask (Deny, then Glimpses)."""
        assert not self.frozen
        first = self.find(lock.owner, lock.handle)
        if first is not None:
            return [Grant(first)]
        lock.number = self._next_number(lock)
        effects = self.resource(resource_id, EXTENT).glimpse(lock, now)
        if lock.state is LockState.GRANTED:
            self._register(lock)
        return effects

    def replay(self, resource_id: bytes, kind: int, lock: Lock, granted: bool, now: float) -> Lock:
        """The owner replays a lock that was granted, or was not (or he does not know). Returns the one that counts."""
        assert self.frozen, "lock replay outside recovery"
        first = self.find(lock.owner, lock.handle)
        if first is not None:
            return first
        lock.number = self._next_number(lock)
        self.resource(resource_id, kind).replay(lock, granted, now)
        self._register(lock)
        return lock

    def _next_number(self, lock: Lock) -> int:
        """Its place in the order of arrival.

        Groups come before all that are in none.
        Source: ldlm_extent_compat_queue()
        """
        self._number += 1
        return self._number - GROUPS_FIRST if lock.mode == GROUP else self._number

    def thaw(self, now: float) -> list[Effect]:
        """Recovery is over: grant, and ask for what is in the way of those who go on waiting."""
        assert self.frozen
        self.frozen = False
        effects: list[Effect] = []
        for resource in self.resources.values():
            effects += resource.thaw(now)
        return self._counted(effects)

    def cancel(self, owner: Owner, handle: int, now: float) -> list[Effect]:
        """`owner` gives back a lock, or gives up waiting for it. Nothing if he has none of that name."""
        locks = self.owners.get(owner)
        lock = locks.pop(handle, None) if locks is not None else None
        if lock is None:
            return []
        if not locks:
            del self.owners[owner]
        self.lock_count -= 1
        if lock.state is LockState.WAITING:
            self.waiting_count -= 1
        resource = lock.resource
        effects = resource.cancel(lock, now)
        if resource.granted is None and resource.waiting is None:
            del self.resources[resource.id]
        return self._counted(effects) if effects else effects

    def convert(self, owner: Owner, handle: int, drop_bits: int, now: float) -> list[Effect]:
        """`owner` gives back some bits of a lock."""
        lock = self.find(owner, handle)
        if lock is None or lock.state is not LockState.GRANTED:
            return []
        if not lock.bits & ~drop_bits:
            return self.cancel(owner, handle, now)
        return self._counted(lock.resource.convert(lock, drop_bits, now))

    def downgrade(self, lock: Lock, mode: int, now: float) -> list[Effect]:
        """A lock of the target itself gets a weaker mode."""
        return self._counted(lock.resource.downgrade(lock, mode, now))

    def owner_gone(self, owner: Owner, now: float) -> list[Effect]:
        """Evicted or left: all he held and waited for goes, and the others go on."""
        locks = self.owners.pop(owner, None)
        if not locks:
            return []
        by_resource: dict[Resource, list[Lock]] = {}
        for lock in locks.values():
            by_resource.setdefault(lock.resource, []).append(lock)
            if lock.state is LockState.WAITING:
                self.waiting_count -= 1
        self.lock_count -= len(locks)
        effects: list[Effect] = []
        for resource, gone in by_resource.items():
            effects += resource.cancel_all(gone, now)
            if resource.empty:
                del self.resources[resource.id]
        return self._counted(effects)

    def _register(self, lock: Lock) -> None:
        locks = self.owners.get(lock.owner)
        if locks is None:
            self.owners[lock.owner] = {lock.handle: lock}
        else:
            locks[lock.handle] = lock
        self.lock_count += 1
        if lock.state is LockState.WAITING:
            self.waiting_count += 1

    def _counted(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            if type(effect) is Completion:
                self.waiting_count -= 1
        return effects

    # deadlines --------------------------------------------------------------------------------------------------

    def asked(self, lock: Lock, deadline: float) -> None:
        """A blocking callback for `lock` was sent (perhaps again): it is to be given back by `deadline`.

        A sending that came through puts the deadline off (LU-5520).
        """
        if lock.state is LockState.GRANTED and lock.asked and lock.timed:
            self.arm(lock, deadline)

    def prolong(self, owner: Owner, handle: int, deadline: float) -> None:
        """`owner` works under the lock: not before `deadline` then, if it was asked for at all.

        Source: ldlm_lock_prolong_one(), ldlm_lock_busy()
        """
        lock = self.find(owner, handle)
        if lock is not None and lock.deadline is not None:
            self.arm(lock, deadline)

    def arm(self, lock: Lock, deadline: float) -> None:
        """The lock's owner has until `deadline`, or longer if he had."""
        if lock.deadline is None:
            heapq.heappush(self._deadlines, (deadline, lock.number, lock))
            lock.deadline = deadline
        elif deadline > lock.deadline:
            lock.deadline = deadline  # its entry moves when its turn comes

    def next_deadline(self) -> float | None:
        """When to ask `expired` again, at the latest."""
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, now: float) -> list[Lock]:
        """Locks whose owners had their time: evict them."""
        late: list[Lock] = []
        heap = self._deadlines
        while heap and heap[0][0] <= now:
            _, _, lock = heapq.heappop(heap)
            if lock.deadline is None:
                continue  # given back, or converted
            if lock.deadline > now:
                heapq.heappush(heap, (lock.deadline, lock.number, lock))
            else:
                lock.deadline = None
                late.append(lock)
        return late

    # what one may ask -------------------------------------------------------------------------------------------

    def locks(self) -> Iterator[Lock]:
        """Every lock."""
        for locks in self.owners.values():
            yield from locks.values()

    def describe(self, resource_id: bytes, now: float) -> dict[str, Any]:
        """The queues of one resource as data: who holds what, since when, what was asked of it, who waits and why."""
        resource = self.resources.get(resource_id)
        if resource is None:
            return {"resource": resource_id.hex(), "granted": [], "waiting": []}
        return {
            "resource": resource_id.hex(),
            "granted": [_row(lock, now) for lock in resource.granted or ()],
            "waiting": [_row(lock, now) for lock in sorted(resource.waiting or (), key=lambda lock: lock.number)],
        }


def _row(lock: Lock, now: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "owner": str(lock.owner),
        "handle": lock.handle,
        "mode": mode_text(lock.mode),
        "age_s": round(now - lock.since, 3),
    }
    if lock.resource.type == IBITS:
        row["bits"] = bits_text(lock.bits)
    elif lock.resource.type == EXTENT:
        row["extent"] = [lock.start, lock.end]
    if lock.asked:
        row["asked"] = True
        row["time_left_s"] = None if lock.deadline is None else round(lock.deadline - now, 3)
    if lock.parked_on is not None:
        row["behind"] = {"owner": str(lock.parked_on.owner), "handle": lock.parked_on.handle}
    return row
