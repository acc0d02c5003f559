"""The estimate of a server's service time: rises at once, forgets in a while, is never more than its bound."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from lustrelite.recovery.adaptive import BINS, ServiceEstimate, timeout_for


def test_a_rise_counts_at_once_and_is_forgotten_after_the_history() -> None:
    estimate = ServiceEstimate(100.0, 60.0)
    estimate.add(3.0, 10.0)
    estimate.add(1.0, 40.0)
    assert estimate.value_ms == 3000
    estimate.forget(99.0)
    assert estimate.value_ms == 3000
    estimate.forget(110.0)
    assert estimate.value_ms == 1000
    estimate.forget(130.0)
    assert estimate.value_ms == 0


def test_the_bound_counts() -> None:
    estimate = ServiceEstimate(100.0, 2.0)
    estimate.add(50.0, 0.0)
    assert estimate.value_ms == 2000
    assert timeout_for(4.0, 2000) == 6.5


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 60))))
@example([(0.0, 1.0), (13.0, 0.0), (19.0, 0.0), (19.0, 0.0)])
def test_it_is_the_worst_of_the_recent_past_to_a_bin(steps: list[tuple[float, float]]) -> None:
    estimate, now, seen = ServiceEstimate(40.0, 1000.0), 0.0, []
    for pause, seconds in steps:
        now += pause
        estimate.add(seconds, now)
        seen.append((now, seconds))
        surely = max((s for t, s in seen if now - t < 40.0 - 40.0 / BINS), default=0.0)
        perhaps = max((s for t, s in seen if now - t <= 40.0), default=0.0)
        assert int(surely * 1000) <= estimate.value_ms <= int(perhaps * 1000)
