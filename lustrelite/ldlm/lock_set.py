"""The granted, or the waiting, locks of one resource, and the three questions that are asked of them:

    first(wanted)     any one that conflicts with a lock that is wanted?
    unasked(wanted)   all that conflict and were not yet asked for (a callback goes to each once)
    wanting(held)     any one that conflicts with a lock that is held, were that here before? (of waiting locks)

Almost every resource has a lock or two: `Few` is a list and looks at each. Beyond FEW_MAX it becomes an index:
`BitLocks` by mode and bits (PLAIN, IBITS), `ExtentLocks` by mode and extent. An index keeps the asked apart from the
unasked, so that n waiters behind m holders cost n + m looks and not n times m.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Iterator

from lustrelite.ldlm.extents import NEVER, Extents
from lustrelite.ldlm.lock import Lock, Owner
from lustrelite.ldlm.policy import (
    COMPATIBLE,
    EOF,
    FOR_OTHERS,
    WRITERS,
    bits_conflict,
    extents_conflict,
    modes_conflict,
)
from lustrelite.wire.ldlm import EXTENT, GROUP

FEW_MAX = 16


class Few:
    """Up to FEW_MAX locks in order of arrival here."""

    __slots__ = ("_conflict", "_extents", "locks")

    def __init__(self, kind: int) -> None:
        self._extents = kind == EXTENT
        self._conflict = extents_conflict if kind == EXTENT else bits_conflict
        self.locks: list[Lock] = []

    def __len__(self) -> int:
        return len(self.locks)

    def __iter__(self) -> Iterator[Lock]:
        return iter(self.locks)

    def add(self, lock: Lock) -> None:
        """Put in `lock`."""
        self.locks.append(lock)

    def remove(self, lock: Lock) -> None:
        """Take out `lock`."""
        self.locks.remove(lock)

    def set_asked(self, lock: Lock, asked: bool) -> None:
        """`lock`, which is here, was asked for or is no longer."""
        lock.asked = asked

    def first(self, wanted: Lock, before: int = NEVER) -> Lock | None:
        """One with a number below `before` that conflicts with `wanted`; a late one if it can choose."""
        conflict = self._conflict
        for lock in reversed(self.locks):
            if lock.number < before and conflict(lock, wanted):
                return lock
        return None

    def unasked(self, wanted: Lock) -> list[Lock]:
        """All that conflict with `wanted` and were not asked for."""
        conflict = self._conflict
        return [lock for lock in self.locks if not lock.asked and conflict(lock, wanted)]

    def wanting(self, held: Lock) -> Lock | None:
        """The first that conflicts with the granted `held`."""
        conflict = self._conflict
        for lock in self.locks:
            if conflict(held, lock):
                return lock
        return None

    # extents

    def around(self, wanted: Lock, same_owner: bool) -> tuple[int, int, int]:
        """(count, highest end below, lowest start above) of those whose mode conflicts, or whose owner is the same."""
        count, below, above = 0, -1, EOF + 1
        for lock in self.locks:
            if lock is not wanted and (modes_conflict(lock, wanted) or (same_owner and lock.owner == wanted.owner)):
                count += 1
                if lock.start > wanted.end:
                    above = min(above, lock.start)
                elif lock.end < wanted.start:
                    below = max(below, lock.end)
        return count, below, above

    def writer(self, owner: Owner, but: Container[Lock]) -> Lock | None:
        """A lock under which `owner` may write, but none of these."""
        locks = (lock for lock in reversed(self.locks) if lock.owner is owner and lock.mode & WRITERS)
        return next((lock for lock in locks if lock not in but), None)

    def writers(self) -> list[Lock]:
        """One lock of everybody who may write."""
        return list({lock.owner: lock for lock in self.locks if lock.mode & WRITERS}.values())

    def holds_group(self, gid: int) -> bool:
        """Is there a GROUP lock of this id?"""
        return any(lock.mode == GROUP and lock.gid == gid for lock in self.locks)


class BitLocks:
    """Groups of equal mode and bits (and, of locks that are for others, of equal client), each in order of arrival.

    OrderedDict, because the first key of a dict from whose front many were deleted is found by walking over the gap.
    """

    __slots__ = ("_asked", "_size", "_unasked")

    def __init__(self) -> None:
        self._unasked: dict[object, OrderedDict[Lock, None]] = {}
        self._asked: dict[object, OrderedDict[Lock, None]] = {}
        self._size = 0

    @staticmethod
    def _key(lock: Lock) -> object:
        if lock.mode & FOR_OTHERS:
            return lock.mode, lock.bits, lock.client
        return lock.mode << 16 | lock.bits

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Lock]:
        for groups in (self._unasked, self._asked):
            for group in groups.values():
                yield from group

    def add(self, lock: Lock) -> None:
        """Put in `lock`."""
        groups = self._asked if lock.asked else self._unasked
        key = self._key(lock)
        group = groups.get(key)
        if group is None:
            groups[key] = OrderedDict.fromkeys((lock,))
        else:
            group[lock] = None
        self._size += 1

    def remove(self, lock: Lock) -> None:
        """Take out `lock`."""
        groups = self._asked if lock.asked else self._unasked
        key = self._key(lock)
        group = groups[key]
        del group[lock]
        if not group:
            del groups[key]
        self._size -= 1

    def set_asked(self, lock: Lock, asked: bool) -> None:
        """`lock`, which is here, was asked for or is no longer."""
        self.remove(lock)
        lock.asked = asked
        self.add(lock)

    def first(self, wanted: Lock, before: int = NEVER) -> Lock | None:
        """One with a number below `before` that conflicts with `wanted`; a late one if it can choose."""
        for groups in (self._unasked, self._asked):
            for group in groups.values():
                last = next(reversed(group))
                if bits_conflict(last, wanted):
                    if last.number < before:
                        return last
                    lowest = next(iter(group))
                    if lowest.number < before:
                        return lowest
        return None

    def unasked(self, wanted: Lock) -> list[Lock]:
        """All that conflict with `wanted` and were not asked for."""
        found: list[Lock] = []
        for group in self._unasked.values():
            if bits_conflict(next(iter(group)), wanted):
                found.extend(group)
        return found

    def wanting(self, held: Lock) -> Lock | None:
        """One that conflicts with the granted `held`."""
        for groups in (self._unasked, self._asked):
            for group in groups.values():
                if next(iter(group)).bits & held.bits:
                    for lock in group:
                        if bits_conflict(held, lock):
                            return lock
                        if not held.mode & FOR_OTHERS:
                            break  # all of the group are alike to it
        return None

    def around(self, wanted: Lock, same_owner: bool) -> tuple[int, int, int]:
        """Bits do not grow."""
        raise AssertionError("bits do not grow")

    def writer(self, owner: Owner, but: Container[Lock]) -> Lock | None:
        """Bits have no data."""
        raise AssertionError("bits have no data")

    def writers(self) -> list[Lock]:
        """Bits have no data."""
        raise AssertionError("bits have no data")

    def holds_group(self, gid: int) -> bool:
        """Bits have no groups."""
        return False


class ExtentLocks:
    """By mode (and group id), each in order of the extents."""

    __slots__ = ("_asked", "_size", "_unasked", "_writers")

    def __init__(self) -> None:
        self._unasked: dict[tuple[int, int], Extents[Lock]] = {}
        self._asked: dict[tuple[int, int], Extents[Lock]] = {}
        self._writers: dict[Owner, dict[Lock, None]] = {}  # locks to write under
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Lock]:
        for groups in (self._unasked, self._asked):
            for extents in groups.values():
                yield from extents

    @property
    def examined(self) -> int:
        """What queries have looked at, for tests."""
        return sum(e.examined for groups in (self._unasked, self._asked) for e in groups.values())

    def add(self, lock: Lock) -> None:
        """Put in `lock`."""
        groups = self._asked if lock.asked else self._unasked
        key = (lock.mode, lock.gid)
        extents = groups.get(key)
        if extents is None:
            extents = groups[key] = Extents()
        extents.add(lock)
        self._size += 1
        if lock.mode & WRITERS:
            self._writers.setdefault(lock.owner, {})[lock] = None

    def remove(self, lock: Lock) -> None:
        """Take out `lock`."""
        (self._asked if lock.asked else self._unasked)[lock.mode, lock.gid].remove(lock)
        self._size -= 1
        if lock.mode & WRITERS:
            locks = self._writers[lock.owner]
            del locks[lock]
            if not locks:
                del self._writers[lock.owner]

    def set_asked(self, lock: Lock, asked: bool) -> None:
        """`lock`, which is here, was asked for or is no longer."""
        self.remove(lock)
        lock.asked = asked
        self.add(lock)

    @staticmethod
    def _conflicting(groups: dict[tuple[int, int], Extents[Lock]], wanted: Lock) -> Iterator[Extents[Lock]]:
        compatible = COMPATIBLE[wanted.mode]
        for (mode, gid), extents in groups.items():
            if not mode & compatible or (mode == GROUP and wanted.mode == GROUP and gid != wanted.gid):
                yield extents

    def first(self, wanted: Lock, before: int = NEVER) -> Lock | None:
        """One with a number below `before` that conflicts with `wanted`; a late one if it can choose."""
        for groups in (self._unasked, self._asked):
            for extents in self._conflicting(groups, wanted):
                for lock in extents.overlapping(wanted.start, wanted.end, before):
                    return lock
        return None

    def unasked(self, wanted: Lock) -> list[Lock]:
        """All that conflict with `wanted` and were not asked for."""
        found: list[Lock] = []
        for extents in self._conflicting(self._unasked, wanted):
            found.extend(extents.overlapping(wanted.start, wanted.end))
        return found

    def wanting(self, held: Lock) -> Lock | None:
        """One that conflicts with the granted `held` (without COS and TXN, conflict is mutual)."""
        return self.first(held)

    def around(self, wanted: Lock, same_owner: bool) -> tuple[int, int, int]:
        """As of Few; but `same_owner` stands for everybody, and nothing grows down: to grow less is always right."""
        count, above = 0, EOF + 1
        for groups in (self._unasked, self._asked):
            for extents in groups.values() if same_owner else self._conflicting(groups, wanted):
                count += len(extents)
                above = min(above, extents.next_start(wanted.end, above))
        return count, wanted.start - 1, above

    def writer(self, owner: Owner, but: Container[Lock]) -> Lock | None:
        """A lock under which `owner` may write, but none of these."""
        return next((lock for lock in reversed(self._writers.get(owner, {})) if lock not in but), None)

    def writers(self) -> list[Lock]:
        """One lock of everybody who may write."""
        return [next(reversed(locks)) for locks in self._writers.values()]

    def holds_group(self, gid: int) -> bool:
        """Is there a GROUP lock of this id?"""
        return any((GROUP, gid) in groups and len(groups[GROUP, gid]) for groups in (self._unasked, self._asked))


LockSet = Few | BitLocks | ExtentLocks


def indexed(few: Few, kind: int) -> LockSet:
    """The same locks in an index."""
    index: LockSet = ExtentLocks() if kind == EXTENT else BitLocks()
    for lock in few:
        index.add(lock)
    return index
