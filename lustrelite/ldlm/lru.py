"""Which unused locks a client gives back of its own accord, and what it says of the others when a server restarts.

Unused locks stand in order of their last use. They go when they are older than max_age or more than max_count; a lock
with dirty or busy pages under it stays and is looked at again a full round later. Lustre's server lock volume is not
here: a fixed size and an age serve systems of this size (protocol-facts 5.7, 5.9).

Before lock replay the unused clean ones are dropped without a word: the server has lost them anyway (5.8).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Generic, TypeVar

from lustrelite.wire.ldlm import BLOCK_GRANTED, BLOCK_WAIT, REPLAYED

K = TypeVar("K", bound=Hashable)

LOOKS_MAX = 1024  # locks looked at in one round, so that a round is short


class LockLru(Generic[K]):
    """The locks that nobody uses right now, the longest unused first."""

    def __init__(self, max_count: int, max_age_s: float) -> None:
        self.max_count = max_count
        self.max_age_s = max_age_s
        self._unused: OrderedDict[K, float] = OrderedDict()  # since when

    def __len__(self) -> int:
        return len(self._unused)

    def unused(self, lock: K, now: float) -> None:
        """Its last user has let go of `lock`."""
        self._unused[lock] = now
        self._unused.move_to_end(lock)

    def used(self, lock: K) -> None:
        """Somebody uses `lock` (again), or it is gone."""
        self._unused.pop(lock, None)

    def surplus(self, now: float, stays: Callable[[K], bool], room: int = 0) -> list[K]:
        """Locks to give back now, at most LOOKS_MAX; they are no longer here. `room`: about to come.

        `stays` says of a lock that its pages are dirty or busy: it is kept, as if used just now.
        """
        surplus: list[K] = []
        excess = len(self._unused) + room - self.max_count
        for _ in range(min(len(self._unused), LOOKS_MAX)):
            lock, since = next(iter(self._unused.items()))
            if len(surplus) >= excess and now - since < self.max_age_s:
                break
            if stays(lock):
                self._unused[lock] = now
                self._unused.move_to_end(lock)
                continue
            del self._unused[lock]
            surplus.append(lock)
        return surplus

    def drop_before_replay(self, stays: Callable[[K], bool]) -> list[K]:
        """All that need not be replayed; they are no longer here. Nobody is told."""
        dropped = [lock for lock in self._unused if not stays(lock)]
        for lock in dropped:
            del self._unused[lock]
        return dropped


class Holding(Enum):
    """What a client knows of a lock of its own."""

    ENQUEUED = "sent, not answered"
    WAITING = "the server said it waits"
    GRANTED = "granted"
    CANCELLING = "asked for, what is cached under it is being written back"
    CANCELLED = "its cancel was sent"


# What a client says of a lock after a restart of the server; None: nothing, it is given back.
REPLAY_FLAGS: dict[Holding, int | None] = {
    Holding.ENQUEUED: REPLAYED,
    Holding.WAITING: REPLAYED | BLOCK_WAIT,
    Holding.GRANTED: REPLAYED | BLOCK_GRANTED,
    Holding.CANCELLING: REPLAYED | BLOCK_GRANTED,  # there is dirty data under it
    Holding.CANCELLED: None,
}


def replayed_as_granted(flags: int) -> bool:
    """Is a replayed lock to be put among the granted? Of the others the end of recovery decides."""
    assert flags & REPLAYED
    return bool(flags & BLOCK_GRANTED)
