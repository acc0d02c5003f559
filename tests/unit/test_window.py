"""The server's recovery window: order, gaps, who is thrown out and when it ends."""

from __future__ import annotations

import random

import pytest

from lustrelite.recovery.window import Stage, Window

SOFT, HARD = 10.0, 60.0


def window(*clients: str, last_committed: int = 100) -> Window[str]:
    return Window(list(clients), last_committed, SOFT, HARD)


def test_it_waits_for_ever_until_somebody_tries() -> None:
    """Source: chapter 30.2.5"""
    w = window("a")
    assert w.step(1e9).wake is None and w.stage is Stage.WAITING
    w.attempt(1e9)
    assert w.step(1e9).wake == 1e9 + SOFT


def test_replays_run_strictly_by_transno_over_all_clients() -> None:
    w = window("a", "b")
    for c in "ab":
        w.connected(c, 0, 0.0)
    w.enqueue("b", 102, "b102")
    assert w.step(1.0).execute is None, "101 is still to come"
    w.enqueue("a", 101, "a101")
    assert w.step(1.0).execute == "a101"
    assert w.step(1.0).execute == "b102"


def test_nothing_is_executed_before_all_known_clients_are_back_or_given_up() -> None:
    w = window("a", "b")
    w.connected("a", 0, 0.0)
    w.enqueue("a", 101, "a101")
    assert w.step(SOFT - 1).execute is None
    decision = w.step(SOFT)
    assert decision.evict == ("b",)
    w.gone("b")
    assert w.step(SOFT).execute == "a101"


def test_a_gap_is_passed_when_every_replaying_client_has_one_queued() -> None:
    """Source: check_for_next_transno(); LU-2397"""
    w = window("a", "b")
    for c in "ab":
        w.connected(c, 0, 0.0)
    w.enqueue("a", 105, "a105")
    assert w.step(1.0).execute is None, "b may have 101"
    w.enqueue("b", 103, "b103")
    decision = w.step(1.0)
    assert decision.execute == "b103" and decision.gap == (101, 103)
    assert w.step(1.0).execute is None, "b may have 104"
    w.requests_done("b")
    assert w.step(1.0).execute == "a105"


def test_no_client_left_to_replay_is_no_gap() -> None:
    w = window("a")
    w.connected("a", 0, 0.0)
    w.locks_done("a", "ping")
    assert w.step(1.0).finish and w.gaps == 0


def test_a_client_that_comes_again_and_again_does_not_prolong_the_wait_for_a_dead_one() -> None:
    w = window("a", "dead")
    now = 0.0
    while now < SOFT:
        w.connected("a", 5.0, now)
        assert not w.step(now).evict
        now += 1.0
    assert w.step(SOFT + 10.0).evict == ("dead",)


def test_it_may_take_its_time_when_nobody_else_is_missing() -> None:
    """Source: recovery-small.sh test_147"""
    w = window("a")
    now = 0.0
    while now < HARD - 5:
        w.connected("a", 5.0, now)
        assert not w.step(now).evict
        now += 5.0


def test_the_timer_throws_out_only_those_that_contribute_nothing() -> None:
    w = window("a", "b", "c")
    for c in "abc":
        w.connected(c, 0, 0.0)
    w.enqueue("a", 105, "a105")  # waits for what b and c may have
    w.requests_done("c")
    w.step(0.0)
    decision = w.step(SOFT + 0.1)
    assert decision.evict == ("b",)
    w.gone("b")
    assert w.step(SOFT + 0.1).execute == "a105"


def test_what_a_restarted_client_had_queued_and_said_is_void() -> None:
    w = window("a", "b")
    for c in "ab":
        w.connected(c, 0, 0.0)
    w.enqueue("a", 105, "a105")
    assert w.restarted("a") == ["a105"]
    w.locks_done("a", "ping")
    assert w.restarted("a") == ["ping"] and not w.evicted
    w.enqueue("b", 103, "b103")
    assert w.step(0.0).execute is None, "a has not said yet that it has nothing before it"
    w.locks_done("a", "ping")
    assert w.step(0.0).execute == "b103"


def test_a_version_mismatch_evicts_at_the_end_of_the_stage() -> None:
    w = window("a", "b")
    for c in "ab":
        w.connected(c, 0, 0.0)
    w.enqueue("a", 101, "a101")
    w.enqueue("b", 102, "b102")
    assert w.step(0.0).execute == "a101"
    w.version_mismatch("a")
    assert w.step(0.0).execute == "b102", "the others go on"
    w.locks_done("a", "pa")
    w.locks_done("b", "pb")
    decision = w.step(0.0)
    assert decision.evict == ("a",)
    assert w.gone("a") == ["pa"]
    assert w.step(0.0).finish and list(w.final) == ["b"]


def test_the_last_barrier_holds_everybody_until_all_are_done() -> None:
    w = window("a", "b")
    for c in "ab":
        w.connected(c, 0, 0.0)
    w.locks_done("a", "pa")
    assert not w.step(1.0).finish
    w.locks_done("b", "pb")
    assert w.step(1.0).finish and w.final == {"a": "pa", "b": "pb"}


def test_a_second_final_ping_replaces_the_first() -> None:
    """Source: LU-7836"""
    w = window("a", "b")
    w.connected("a", 0, 0.0)
    assert w.locks_done("a", "first") is None
    assert w.locks_done("a", "second") == "first"
    assert w.final == {"a": "second"}


def test_a_duplicate_replay_replaces_the_queued_one() -> None:
    w = window("a")
    w.connected("a", 0, 0.0)
    assert w.enqueue("a", 103, "old") is None
    assert w.enqueue("a", 103, "new") == "old"
    assert w.enqueue("b", 103, "other") == "other", "two clients cannot have one transno"
    assert [q.item for q in w.queue] == ["new"]


def test_who_has_lost_something_goes_also_if_recovery_is_aborted() -> None:
    """It has sent its final ping, and nobody else would tell it: the administrator, or the hard limit, ends what another holds up."""
    w = window("a", "b")
    for c in "ab":
        w.connected(c, 0, 0.0)
    w.version_mismatch("a")
    w.locks_done("a", "final of a")
    w.abort()
    decision = w.step(1.0)
    assert set(decision.evict) == {"a", "b"}
    for c in decision.evict:
        w.gone(c)
    assert w.step(1.0).finish


def test_abort_evicts_everybody_unfinished_and_ends() -> None:
    w = window("a", "b", "c")
    w.connected("a", 0, 0.0)
    w.connected("b", 0, 0.0)
    w.locks_done("b", "pb")
    w.enqueue("a", 101, "a101")
    w.abort()
    decision = w.step(0.0)
    assert set(decision.evict) == {"a", "c"}
    assert w.gone("a") == ["a101"]
    w.gone("c")
    assert w.step(0.0).finish and list(w.final) == ["b"]


def test_the_hard_limit_ends_it_however_slow_the_replays() -> None:
    """Source: conf-sanity 84"""
    w = window("a", "b")
    w.connected("a", 0, 0.0)
    now, transno = 0.0, 101
    while True:
        w.extend(now, 5.0)
        decision = w.step(now)
        if decision.finish:
            break
        for c in decision.evict:
            w.gone(c)
        if "a" in w.replaying:
            w.enqueue("a", transno, f"a{transno}")
            transno += 1
        now += 2.0
        assert now < HARD + 10
    assert now >= SOFT


def test_who_is_back_is_not_thrown_out_with_who_is_not() -> None:
    """However long they had waited: whoever is here by the hard limit has time for his replays and locks."""
    w = window("a", "dead")
    w.connected("a", 10 * HARD, 0.0)
    w.enqueue("a", 101, "a101")
    wake = w.step(0.0).wake
    assert wake is not None and SOFT < wake <= HARD - 2 * SOFT
    assert w.step(wake).evict == ("dead",)
    w.gone("dead")
    assert w.step(wake).execute == "a101"
    w.enqueue_locks("a", "locks")
    now = wake + SOFT - 1
    assert w.step(now).execute == "locks"
    now += SOFT - 1
    assert not w.step(now).evict
    w.locks_done("a", "pa")
    assert w.step(now).finish and list(w.final) == ["a"]


def test_the_hard_limit_is_not_slept_through() -> None:
    """A stage that begins shortly before it ends with it."""
    w = window("a", "b")
    for c in "ab":
        w.connected(c, 0, 0.0)
    now = 0.0
    while now < HARD - 2:
        w.extend(now, 5.0)
        assert not w.step(now).evict
        now += 2.0
    for c in "ab":
        w.requests_done(c)
    assert w.step(HARD - 1).wake == HARD and w.stage is Stage.LOCKS
    assert w.step(HARD).evict == ("a", "b")


def test_eviction_before_any_attempt_ends_it() -> None:
    w = window("a")
    w.gone("a")
    assert w.step(0.0).finish


@pytest.mark.parametrize("seed", range(200))
def test_recovery_ends_in_bounded_time_and_replays_in_order(seed: int) -> None:
    """Random clients, gaps, losses, duplicates: transnos only grow, nothing is executed twice, it ends."""
    rng = random.Random(seed)
    clients = [f"c{i}" for i in range(rng.randint(1, 6))]
    w: Window[tuple[str, int]] = Window(clients, 100, SOFT, HARD)
    mine: dict[str, list[int]] = {c: [] for c in clients}
    for transno in range(101, 101 + rng.randint(0, 30)):
        if rng.random() < 0.8:
            mine[rng.choice(clients)].append(transno)
    silent = {c for c in clients if rng.random() < 0.3}
    executed: list[int] = []
    waiting_for_answer: dict[str, bool] = dict.fromkeys(clients, False)
    now = 0.0
    w.attempt(now)
    gone: set[str] = set()
    for _ in range(5000):
        now += rng.random()
        active = [c for c in clients if c not in silent and c not in gone]
        if active:
            c = rng.choice(active)
            if c in w.missing:
                w.connected(c, rng.random(), now)
            elif mine[c]:
                if not waiting_for_answer[c] or rng.random() < 0.1:
                    w.enqueue(c, mine[c][0], (c, mine[c][0]))
                    waiting_for_answer[c] = True
            else:
                w.locks_done(c, (c, 0))
            if rng.random() < 0.01:
                silent.add(c)
        while True:
            decision = w.step(now)
            if decision.execute is not None:
                c, transno = decision.execute
                executed.append(transno)
                if mine[c] and mine[c][0] == transno:
                    mine[c].pop(0)
                    waiting_for_answer[c] = False
            elif decision.evict:
                for c in decision.evict:
                    w.gone(c)
                    gone.add(c)
            else:
                break
        if decision.finish:
            break
    assert w.stage is Stage.COMPLETE and now <= HARD + 2
    assert executed == sorted(set(executed))
    for c in clients:
        assert c in w.final or c in w.evicted
        if c in w.final:
            assert not mine[c]
