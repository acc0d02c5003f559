"""The judge of coherence: it accepts what a coherent file system can show, and finds each way of not being one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.sim.coherence_search import NEVER, Call, search, zones

# ------------------------------------------------------------------------------------------- is there an order?


def step(state: Any, effect: tuple[str, Any]) -> Sequence[Any]:
    """A register."""
    kind, value = effect
    if kind == "write":
        return (value,)
    return (state,) if state == value else ()


def brute(calls: Sequence[Call], initial: Any) -> bool:
    """Every choice and every order."""
    needed = [call for call in calls if not call.optional]
    chosen = [call for call in calls if call.optional]
    for count in range(len(chosen) + 1):
        for some in itertools.combinations(chosen, count):
            for order in itertools.permutations([*needed, *some]):
                if any(b.done < a.invoked for i, a in enumerate(order) for b in order[i + 1 :]):
                    continue
                state = initial
                for call in order:
                    after = step(state, call.effect)
                    if not after:
                        break
                    state = after[0]
                else:
                    return True
    return False


@st.composite
def histories(draw: Any, values: int, unique: bool) -> list[Call]:
    """Up to six calls with all kinds of overlap."""
    count = draw(st.integers(1, 6))
    points = draw(st.permutations(range(2 * count)))
    calls = []
    for number in range(count):
        start, end = sorted(points[2 * number : 2 * number + 2])
        reads = draw(st.booleans())
        value = number + 1 if unique and not reads else draw(st.integers(0, values))
        optional = not reads and draw(st.integers(0, 3)) == 0
        if optional and draw(st.booleans()):
            end = NEVER
        calls.append(Call(start, end, ("read" if reads else "write", value), reads, optional))
    return calls


@settings(max_examples=600, deadline=None)
@given(histories(2, False))
def test_the_search_agrees_with_brute_force(calls: list[Call]):
    assert (search(calls, 0, step) == "") == brute(calls, 0)


@settings(max_examples=600, deadline=None)
@given(histories(6, True))
def test_zones_agree_with_brute_force(calls: list[Call]):
    seen = {call.effect[1] for call in calls if call.reads}
    kept = []
    for call in calls:
        if call.optional and call.effect[1] not in seen:
            continue  # it never happened
        kept.append(call._replace(optional=False, done=NEVER) if call.optional else call)
    writes = {0: Call(-2, -1, ("write", 0))} | {c.effect[1]: c for c in kept if not c.reads}
    reads = [(c.effect[1], c) for c in kept if c.reads]
    assert (zones(writes, reads) == "") == brute(kept, 0) == (search(kept, 0, step) == "")


def test_both_methods_say_what_is_wrong():
    old, new = Call(0, 1, ("write", 1), op="w1"), Call(2, 3, ("write", 2), op="w2")
    stale = Call(4, 5, ("read", 1), True, op="r1")
    assert "r1" in search([old, new, stale], 0, step)
    assert "w2" in zones({1: old, 2: new}, [(1, stale)])
    assert "before it was written" in zones({1: old}, [(2, stale)])


def test_the_search_is_quick_where_calls_follow_each_other():
    calls = []
    for number in range(300):
        calls.append(Call(4 * number, 4 * number + 3, ("write", number + 1)))
        calls.append(Call(4 * number + 1, 4 * number + 2, ("read", number + number % 2), True))
    assert search(calls, 0, step) == ""


