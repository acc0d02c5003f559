"""What one OST has promised this client: how many bytes may be dirty here and are sure to find room there.

    available   promised, and free for new dirty data
    reserved    taken by what is dirty or being written

A byte that becomes dirty moves its block from available to reserved; a written block is used up; what is truncated
before it was written comes back. Every reply to a write may bring more. After a reconnect the OST says what it promises
in all, and it takes our word for what we had (LU-2679): what is dirty here stays promised through its restart.
Source: osc_enter_cache(), osc_announce_cached(), osc/osc_cache.c, osc_request.c
"""

from __future__ import annotations


class Grant:
    """Counts, nothing else."""

    def __init__(self) -> None:
        self.available = 0
        self.reserved = 0
        self.moves = 0  # grows with whatever uses it

    @property
    def total(self) -> int:
        """What a Connect says that we have."""
        return max(self.available + self.reserved, 0)

    def reserve(self, cost: int) -> bool:
        """Take `cost` bytes for new dirty data; False, and nothing is taken, if there is not so much."""
        if cost > self.available and cost > 0:
            return False
        self.change(cost)
        return True

    def change(self, cost: int) -> None:
        """Dirty data takes `cost` more, less if negative."""
        self.moves += 1
        self.available -= cost
        self.reserved += cost
        assert self.reserved >= 0

    def used(self, cost: int, given: int) -> None:
        """A write that had reserved `cost` is done; the OST gives `given` more."""
        self.moves += 1
        self.reserved -= cost
        self.available += given
        assert self.reserved >= 0

    def connected(self, total: int) -> None:
        """A connection stands: the OST promises `total` in all."""
        self.available = total - self.reserved

    def give_back(self, keep: int) -> int:
        """Part with what is available beyond `keep`, and return how much that is: the OST must be told."""
        amount = max(self.available - keep, 0)
        self.available -= amount
        return amount

    def wish(self, wanted: int) -> int:
        """What to ask for, so as to have `wanted` in all."""
        return max(wanted - self.total, 0)
