"""What a client keeps for replay: nothing too short, nothing too long."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from lustrelite.recovery.replay_list import ReplayList


@dataclass
class R:
    xid: int
    transno: int
    keeps_open: bool = False
    closes: tuple[int, ...] = ()
    bulk: bytes | None = None


def transnos(replays: ReplayList[R]) -> list[int]:
    return [r.transno for r in replays.in_replay_order()]


def test_pruning_forgets_exactly_what_is_committed() -> None:
    replays: ReplayList[R] = ReplayList()
    for n in (1, 2, 3, 4):
        replays.add(R(n, n * 10))
    assert replays.drop_committed(20) == 2
    assert transnos(replays) == [30, 40]
    assert replays.first_transno() == 30


def test_the_committed_mark_never_goes_back() -> None:
    """Replies may pass each other on the way (LU-7079)."""
    replays: ReplayList[R] = ReplayList()
    replays.add(R(1, 10))
    replays.drop_committed(10)
    assert replays.drop_committed(5) == 0
    assert replays.last_committed == 10


def test_an_open_stays_until_its_close_commits() -> None:
    """Source: chapter 30.2.4"""
    replays: ReplayList[R] = ReplayList()
    replays.add(R(1, 10, keeps_open=True))
    replays.drop_committed(10)
    assert transnos(replays) == [10], "committed, but the file is open"
    replays.add(R(2, 20, closes=(1,)))
    assert transnos(replays) == [10, 20], "the close may be lost"
    replays.drop_committed(20)
    assert transnos(replays) == []


def test_committed_opens_are_replayed_before_everything_else() -> None:
    replays: ReplayList[R] = ReplayList()
    replays.add(R(1, 10, keeps_open=True))
    replays.add(R(5, 50))
    replays.add(R(2, 20, keeps_open=True))
    replays.drop_committed(20)
    assert transnos(replays) == [10, 20, 50]


def test_an_open_whose_handle_the_server_does_not_know_is_forgotten() -> None:
    replays: ReplayList[R] = ReplayList()
    replays.add(R(1, 10, keeps_open=True))
    replays.drop_committed(10)
    replays.forget_open(1)
    assert len(replays) == 0
    replays.add(R(3, 30, keeps_open=True))
    replays.forget_open(3)
    replays.drop_committed(30)
    assert len(replays) == 0


def test_a_close_that_was_committed_when_its_reply_came_takes_the_open_along() -> None:
    replays: ReplayList[R] = ReplayList()
    replays.add(R(1, 10, keeps_open=True))
    replays.drop_committed(30)
    replays.add(R(2, 20, closes=(1,)))
    assert len(replays) == 0


@given(st.permutations(list(range(1, 30))), st.lists(st.integers(0, 40)))
def test_any_order_of_replies_gives_transno_order(order: list[int], marks: list[int]) -> None:
    replays: ReplayList[R] = ReplayList()
    last = 0
    for n, transno in enumerate(order):
        replays.add(R(n, transno))
        if n < len(marks):
            replays.drop_committed(marks[n])
            last = max(last, marks[n])
    left = [t for t in sorted(order) if t > last]
    assert transnos(replays) == left


def test_thousands_that_were_committed_together_are_forgotten_a_few_at_a_time() -> None:
    """Nobody sees them any more, and no turn of the loop frees them all."""
    replays: ReplayList[R] = ReplayList()
    for n in range(1, 1001):
        replays.add(R(n, n, keeps_open=n == 500))
    assert replays.drop_committed(900) < 100
    replays.add(R(1001, 1001))
    assert replays.first_transno() == 901
    assert transnos(replays) == [500, *range(901, 1002)]


def test_a_close_finds_an_open_that_was_committed_with_thousands_and_is_not_forgotten_yet() -> None:
    """The answer to the close comes late, when all is durable: the open stayed for ever."""
    replays: ReplayList[R] = ReplayList()
    for number in range(1, 1001):
        replays.add(R(number, number, keeps_open=True))
    replays.drop_committed(2000)
    replays.add(R(1001, 1001, closes=tuple(range(1, 1001))))
    assert len(replays) == 0


def test_data_that_is_durable_is_let_go_of_at_once() -> None:
    replays: ReplayList[R] = ReplayList()
    for n in range(1, 1001):
        replays.add(R(n, n, bulk=b"data" if n > 10 else None))
    assert replays.drop_committed(900) == 900
    assert transnos(replays) == list(range(901, 1001))
