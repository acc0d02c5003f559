"""Every request is admitted by exactly one row, and the rows say what the facts say."""

from __future__ import annotations

from itertools import product

import pytest

from lustrelite.recovery.admit import ADMIT, Admit, admit


def rows_matching(case: tuple[bool, ...]) -> list[Admit]:
    return [
        verdict
        for row, verdict in ADMIT
        if all(want is None or want == have for want, have in zip(row, case, strict=True))
    ]


@pytest.mark.parametrize("case", list(product((False, True), repeat=6)))
def test_every_request_is_admitted_by_exactly_one_row(case: tuple[bool, ...]) -> None:
    assert len(rows_matching(case)) == 1, case


@pytest.mark.parametrize("resent", [False, True])
def test_a_replay_after_recovery_evicts_its_client_unless_it_was_in_it(resent: bool) -> None:
    assert admit(False, True, resent, False, False, False) is Admit.EVICT
    assert admit(False, True, resent, False, False, True) is Admit.DROP


def test_a_change_is_never_executed_twice() -> None:
    for recovering, replay, resent, done in product((False, True), repeat=4):
        verdict = admit(recovering, replay, resent, True, False, done)
        assert verdict is not Admit.EXECUTE and verdict is not Admit.QUEUE
        assert admit(recovering, replay, resent, True, True, done) is Admit.JOIN


def test_in_recovery_only_replays_are_executed() -> None:
    for resent, saved in product((False, True), repeat=2):
        assert admit(True, False, resent, saved, False, False) is Admit.AGAIN
    assert admit(True, True, False, False, False, False) is Admit.QUEUE
