"""Which OSTs new objects go to when some have much more room than others (QOS), and in which order when none has.

As long as the free space of all differs little (`qos_threshold_rr` percent of the largest) files go round: that gives
the best throughput. Beyond it an OST is drawn by chance, the likelier the more room it has. What was just placed has no
data yet and does not show in statfs, so an OST that is chosen weighs less for a while: it has a penalty, which wears
off as others are chosen, and by half with every look at its space. How much that counts beside the free space is what
`qos_prio_free` leaves of 100 percent.

Not handled: a penalty for the server that an OST is on (LQ_SVR); the round goes from server to server instead.
Source: ltd_qos_is_usable(), ltd_qos_penalties_calc(), ltd_qos_update(), lod_qos_calc_rr(); protocol-facts 7.5
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lustrelite.rpc.node import Node

T = TypeVar("T")


class Qos:
    """Free space and penalties by OST index."""

    def __init__(self, node: Node) -> None:
        self.tunables = node.tunables
        self.random = node.random
        self.available: dict[int, int] = {}  # bytes, by the last statfs
        self.penalties: dict[int, float] = {}  # bytes

    def look(self, index: int, available: int) -> None:
        """OST `index` has `available` bytes now."""
        self.available[index] = available
        if index in self.penalties:
            self.penalties[index] /= 2

    def uneven(self, indices: Sequence[int]) -> bool:
        """Do these OSTs differ so much in free space that it counts? Not before all of it is known."""
        if len(indices) < 2 or any(index not in self.available for index in indices):
            return False
        spaces = [self.available[index] for index in indices]
        threshold = self.tunables.qos_threshold_rr
        return threshold < 100 and min(spaces) * 100 <= max(spaces) * (100 - threshold) and max(spaces) > 0

    def draw(self, indices: Sequence[int], count: int) -> list[int]:
        """`count` different ones of `indices`, at random by their weights; they are penalized for it."""
        left = list(indices)
        drawn: list[int] = []
        while len(drawn) < count:
            weights = [max(self.available[index] - self.penalties.get(index, 0.0), 1.0) for index in left]
            index = self.random.choices(left, weights)[0]
            left.remove(index)
            drawn.append(index)
        for index in drawn:
            self._chosen(index, indices)
        return drawn

    def _chosen(self, chosen: int, indices: Sequence[int]) -> None:
        share = (100 - self.tunables.qos_prio_free) / 100 / max(len(indices) - 1, 1) / 2
        for index in indices:
            step = self.available[index] * share
            penalty = step * len(indices) if index == chosen else self.penalties.get(index, 0.0)
            self.penalties[index] = max(penalty - step, 0.0)


def interleaved(groups: Sequence[Sequence[T]]) -> list[T]:
    """All members, from group to group, so that neighbours are of different groups while there are any."""
    order: list[tuple[float, int, T]] = []
    for number, group in enumerate(groups):
        order += [((place + 0.5) / len(group), number, member) for place, member in enumerate(group)]
    order.sort(key=lambda entry: entry[:2])
    return [member for _, _, member in order]
