"""Some of the same scenarios, word for word, on real daemons with real sockets and `kill -9`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import test_abort
import test_eviction
import test_failover
import test_grants
import test_insanity
import test_lock_callbacks
import test_lost_grants
import test_open_replay
import test_orphans
import test_ost_recovery
import test_power_cut
import test_reconstruct
import test_replay
import test_resend
import test_transient
import test_vbr

Scenario = Callable[..., Coroutine[Any, Any, None]]
KINDS = test_lock_callbacks.KINDS
WORD_MAX = 10  # of a parameter that goes into the name


def same(test: Any, *args: Any, ids: tuple[str, ...] = ()) -> Any:
    """The coroutine of a simulated test (with these parameters), under its own name and ids."""
    scenario = inspect.unwrap(test)
    ids = ids or next((mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "lustre"), ())
    words = [str(arg) for arg in args if len(str(arg)) <= WORD_MAX]
    name = " ".join([test.__name__[5:], *ids, *words])
    return pytest.param(scenario, args, marks=[pytest.mark.lustre(*ids)] if ids else [], id=name)


def row(table: list[Any], name: str) -> tuple[Any, ...]:
    """The first row of that id."""
    return tuple(next(found[1:] for found in table if found[0] == name))


SCENARIOS = [
    same(test_replay.test_created_names_survive_an_mds_crash_before_commit),
    same(test_replay.test_ten_written_files_survive_a_crash),
    same(test_replay.test_removed_files_stay_removed),
    same(test_replay.test_a_new_file_under_the_old_name_of_a_renamed_one),
    same(test_replay.test_a_written_and_renamed_file_has_its_data_under_the_new_name),
    same(test_replay.test_replays_of_two_clients_keep_their_order),
    same(test_open_replay.test_a_touched_file_survives),
    same(test_open_replay.test_a_file_stays_open_over_a_crash),
    same(test_orphans.test_an_open_file_without_a_name_lives_until_its_last_close, *row(test_orphans.NAMELESS, "RS 25"), ids=("RS 25",)),
    same(test_orphans.test_an_open_file_without_a_name_lives_until_its_last_close, *row(test_orphans.NAMELESS, "RD 6"), ids=("RD 6",)),
    same(test_orphans.test_precreation_survives_a_restart_of_the_ost),
    same(test_resend.test_a_close_lost_before_an_mds_crash_does_not_hang),
    same(test_reconstruct.test_a_create_that_was_resent_and_then_lost_makes_one_file),
    same(test_abort.test_objects_of_lost_files_are_not_handed_out_again),
    *[same(test, kind) for kind in KINDS for test in (
        test_lock_callbacks.test_a_client_that_answers_no_callback_is_evicted_and_the_other_goes_on,
        test_lock_callbacks.test_a_callback_that_was_lost_once_is_sent_again,
        test_lock_callbacks.test_a_client_that_answers_a_callback_with_an_error_is_evicted,
        test_lock_callbacks.test_a_client_whose_cancels_get_lost_is_evicted_when_its_time_is_over,
    )],
    same(test_lock_callbacks.test_a_question_about_a_size_that_was_lost_is_asked_again),
    same(test_lock_callbacks.test_a_listing_while_an_ost_recovers_finds_the_objects_of_all_names),
    *[same(test_eviction.test_an_evicted_client_that_has_not_heard_of_it_shows_nothing_old_either, kind) for kind in KINDS],
    same(test_eviction.test_a_client_that_the_mds_has_evicted_does_not_cut_its_file_short, 1),
    same(test_eviction.test_closes_of_files_that_the_mds_has_closed_succeed, 1),
    same(test_eviction.test_dirty_data_of_an_evicted_client_is_lost_and_it_is_told_once, "fsync"),
    same(test_eviction.test_dirty_data_of_an_evicted_client_is_lost_and_it_is_told_once, "close"),
    same(test_eviction.test_a_client_is_evicted_in_the_middle_of_a_long_write, 1),
    same(test_power_cut.test_whatever_was_answered_is_there_after_the_power_has_failed, 1),
    same(test_power_cut.test_what_was_durable_outlives_its_author_and_the_rest_does_not),
    same(test_power_cut.test_the_power_fails_again_while_writes_are_replayed),
    same(test_power_cut.test_what_a_kill_left_and_somebody_has_read_outlives_a_power_cut),
    same(test_vbr.test_many_creates_are_replayed_over_the_gap_of_one),
    same(test_ost_recovery.test_an_ost_restarts_with_nothing_to_replay),
    same(test_ost_recovery.test_an_ost_fails_in_the_middle_of_a_long_write),
    same(test_ost_recovery.test_an_ost_fails_in_the_middle_of_a_long_read),
    same(test_ost_recovery.test_an_ost_fails_again_and_again_under_writes_rewrites_and_reads),
    same(test_ost_recovery.test_clients_check_each_others_files_while_an_ost_restarts, 0),
    same(test_ost_recovery.test_clients_check_each_others_files_while_an_ost_restarts, 1),
    same(test_ost_recovery.test_data_that_was_written_twice_is_replayed_as_it_was_last),
    same(test_ost_recovery.test_many_removals_behind_a_barrier_of_an_ost_that_restarts_twice),
    same(test_ost_recovery.test_an_ost_that_was_down_while_the_mds_failed_over_returns),
    same(test_ost_recovery.test_a_write_waits_while_the_ost_says_in_progress_and_through_its_failure),
    same(test_ost_recovery.test_a_write_that_takes_so_long_that_it_is_sent_again_is_done_once),
    same(test_ost_recovery.test_a_plain_stop_of_an_ost_is_recovered_from),
    same(test_ost_recovery.test_an_ost_that_everybody_has_left_starts_without_recovery),
    same(test_ost_recovery.test_new_clients_are_refused_while_an_ost_recovers_and_get_in_afterwards),
    same(test_ost_recovery.test_the_recovery_of_an_ost_is_aborted_by_hand),
    same(test_ost_recovery.test_who_does_not_come_back_in_time_loses_and_the_others_do_not),
    same(test_transient.test_garbled_data_on_processes_too),
    same(test_insanity.test_every_server_fails_one_after_the_other),
    same(test_insanity.test_the_mds_is_away_while_an_ost_fails_and_comes_back),
    same(test_insanity.test_the_mds_fails_over_and_then_two_clients_die_and_return),
    same(test_insanity.test_both_osts_fail_together, 1),
    same(test_insanity.test_the_files_of_dead_clients_are_removed_and_the_mds_fails_over),
    same(test_insanity.test_clients_die_then_an_ost_and_all_return),
    same(test_insanity.test_clients_die_and_others_die_and_all_return),
    same(test_failover.test_the_standby_takes_over_and_clients_resume, "oss"),
    same(test_failover.test_the_standby_takes_over_and_clients_resume, "mds"),
    same(test_failover.test_takeover_goes_to_and_fro),
    same(test_failover.test_nobody_takes_over_from_an_owner_that_is_only_silent),
    same(test_failover.test_an_owner_that_is_stopped_hands_over, "oss"),
    same(test_failover.test_an_mds_and_an_oss_are_taken_over_at_once),
    same(test_failover.test_clients_find_the_standby_without_the_mgs),
    same(test_failover.test_writers_bear_with_a_pair_that_fails_over_again_and_again),
    same(test_lost_grants.test_mds_and_oss_both_die_with_grants_that_are_not_durable, ("mds", "oss")),
    same(test_lost_grants.test_mds_and_oss_both_die_with_grants_that_are_not_durable, ("oss", "mds")),
    same(test_grants.test_a_difference_between_what_both_sides_count_is_found),
    same(test_vbr.test_a_name_that_was_changed_by_a_lost_client_evicts, *row(test_vbr.CYCLES, "VBR 7a"), ids=("VBR 7a",)),
]  # fmt: skip


# with clients that are processes, too: they can be stopped, and die as processes do
APART = [
    same(test_eviction.test_the_locks_of_a_dead_client_are_waited_for_no_longer_than_a_living_one_may_take, "names"),
    same(test_eviction.test_the_locks_of_a_dead_client_are_waited_for_no_longer_than_a_living_one_may_take, "data"),
    same(test_eviction.test_a_client_that_stood_still_is_evicted_believes_in_nothing_and_goes_on, "names", "asked"),
    same(test_eviction.test_a_client_that_stood_still_is_evicted_believes_in_nothing_and_goes_on, "data", "asked"),
    same(test_eviction.test_a_client_that_stood_still_is_evicted_believes_in_nothing_and_goes_on, "data", "not asked"),
    same(test_eviction.test_a_client_that_stood_still_for_long_is_evicted_by_all_and_goes_on),
    same(test_eviction.test_what_is_in_progress_when_its_client_is_evicted_fails_and_changes_nothing, "create"),
    same(test_eviction.test_what_is_in_progress_when_its_client_is_evicted_fails_and_changes_nothing, "write"),
]


@pytest.mark.processes
@pytest.mark.parametrize(("scenario", "args"), SCENARIOS)
async def test_the_same_on_processes(world: Any, scenario: Scenario, args: tuple[Any, ...]) -> None:
    """See the test of that name."""
    await scenario(world, *args)


@pytest.mark.processes
@pytest.mark.parametrize(("scenario", "args"), APART)
async def test_the_same_with_clients_apart(world: Any, scenario: Scenario, args: tuple[Any, ...]) -> None:
    """See the test of that name."""
    await scenario(functools.partial(world, apart=True), *args)
