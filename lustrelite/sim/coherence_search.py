"""Is there an order? Whether the calls on one object can have happened one after the other, each between its ends.

Two methods. `zones` is that of Gibbons and Korach (Testing shared memories, SIAM J. Comput. 26, 1997) for a register in
which no value is written twice: every read names its write, the calls of one value make a zone of time, and a history
is linearizable exactly if no read ends before its write begins, no two forward zones overlap and no backward zone lies
within a forward one. It sorts and looks once: n log n. `search` is that of Wing and Gong with Lowe's memory of (calls
left, state), for everything else: values that are written more than once (zeros, after a truncation), sizes, names. It
is exponential in the number of calls that are open at one time, not in their total; a call that changes nothing is
done as soon as it fits, which costs no choice.

A call may be optional: it happened once or never (its client died while it waited). Source for the search: Lowe,
Testing for linearizability, Concurrency and Computation 29, 2017; Porcupine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

NEVER = 1 << 62
STEPS_MAX = 300_000  # of one search


class Call(NamedTuple):
    """One operation as one object sees it. `invoked` and `done` are points in one order of everything that happened."""

    invoked: int
    done: int  # NEVER: no answer came
    effect: Any
    reads: bool = False  # it changes nothing, whatever the state
    optional: bool = False
    op: Any = None  # what to show of it


Step = Callable[[Any, Any], Sequence[Any]]  # (state, effect) -> what the state may be then; none: it cannot be


def search(calls: Iterable[Call], initial: Any, step: Step) -> str:
    """Why no order explains these calls, "" if one does. States are hashable."""
    return _Search(calls, step).run(initial)


class _Search:
    """`left` is what has not been done, one bit a call in the order of invocations; `latest` the last invocation done."""

    def __init__(self, calls: Iterable[Call], step: Step) -> None:
        self.calls = sorted(calls, key=lambda call: call.invoked)
        self.step = step
        self.needed = sorted(
            (index for index, call in enumerate(self.calls) if not call.optional), key=lambda i: self.calls[i].done
        )
        self.late = [(call.done, 1 << i) for i, call in enumerate(self.calls) if call.optional and call.done != NEVER]
        self.steps = 0

    def run(self, state: Any) -> str:
        needed_bits = sum(1 << index for index in self.needed)
        fewest, stuck = len(self.calls) + 1, ""
        stack = [((1 << len(self.calls)) - 1, state, -1, 0)]
        seen: set[tuple[int, Any]] = set()
        while stack:
            left, state, latest, ended = stack.pop()
            ways: list[tuple[int, Sequence[Any]]] | None = None
            while ways is None:
                while ended < len(self.needed) and not left >> self.needed[ended] & 1:
                    ended += 1
                if ended == len(self.needed):
                    return ""
                harmless, ways = self._ways(left, state, latest, self.calls[self.needed[ended]].done)
                if ways is None:
                    left ^= 1 << harmless
                    latest = max(latest, self.calls[harmless].invoked)
            for done, bit in self.late:  # who did not happen in time and who did make no difference any more
                if done < latest:
                    left &= ~bit
            if (left, state) in seen:
                continue
            seen.add((left, state))
            if (left & needed_bits).bit_count() < fewest:
                fewest = (left & needed_bits).bit_count()
                call = self.calls[self.needed[ended]]
                stuck = f"nothing explains {call.op or call.effect} (state {state!r})"
            if self.steps > STEPS_MAX:
                return f"gave up after {self.steps} steps with {len(self.calls)} calls"
            # What was answered first most probably happened first: that comes last on the stack.
            for index, states in sorted(ways, key=lambda way: -self.calls[way[0]].done):
                then = max(latest, self.calls[index].invoked)
                stack.extend((left ^ 1 << index, after, then, ended) for after in reversed(states))
        return stuck

    def _ways(
        self, left: int, state: Any, latest: int, horizon: int
    ) -> tuple[int, list[tuple[int, Sequence[Any]]] | None]:
        """What may come next, and the states after it.

        Or None, and a call that changes nothing and may as well be now.
        """
        ways: list[tuple[int, Sequence[Any]]] = []
        for index in range((left & -left).bit_length() - 1, len(self.calls)):
            call = self.calls[index]
            if call.invoked > horizon:
                break
            if not left >> index & 1 or call.done < latest:
                continue  # done, or optional and too late for it
            self.steps += 1
            after = self.step(state, call.effect)
            if call.reads and after and after[0] == state and not any(
                latest < end < call.invoked and left & bit for end, bit in self.late
            ):
                return index, None
            if after:
                ways.append((index, after))
        return -1, ways


def zones(writes: dict[Any, Call], reads: Iterable[tuple[Any, Call]]) -> str:
    """Why a register with these writes, by value, and reads of values is not linearizable, "" if it is."""
    first = {value: write.done for value, write in writes.items()}  # the end that comes first, of the calls of a value
    last = {value: write.invoked for value, write in writes.items()}  # the beginning that comes last
    for value, read in reads:
        write = writes.get(value)
        if write is None or read.done < write.invoked:
            return f"{read.op or value} came before it was written"
        first[value] = min(first[value], read.done)
        last[value] = max(last[value], read.invoked)
    forward = sorted((first[value], last[value], value) for value in writes if first[value] < last[value])
    for (_, end, one), (start, _, other) in itertools.pairwise(forward):
        if start < end:
            return f"{_name(writes, one)} and {_name(writes, other)} are both seen before and after each other"
    starts = [start for start, _, _ in forward]
    for value in writes:
        low, high = last[value], first[value]
        if low > high:
            continue
        zone = _last_before(starts, low)
        if zone >= 0 and high < forward[zone][1]:
            return f"{_name(writes, value)} happened while {_name(writes, forward[zone][2])} was still there afterwards"
    return ""


def _name(writes: dict[Any, Call], value: Any) -> str:
    return str(writes[value].op or f"the write of {value}")


def _last_before(starts: list[int], point: int) -> int:
    """Index of the last start before `point`, -1 if there is none."""
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if starts[middle] < point:
            low = middle + 1
        else:
            high = middle
    return low - 1
