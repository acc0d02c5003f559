"""Some of the same scenarios, word for word, on real daemons with real sockets and `kill -9`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import test_abort
import test_open_replay
import test_orphans
import test_reconstruct
import test_replay
import test_resend
import test_vbr

Scenario = Callable[..., Coroutine[Any, Any, None]]


def same(test: Any, *args: Any, ids: tuple[str, ...] = ()) -> Any:
    """The coroutine of a simulated test (with these parameters), under its own name and ids."""
    scenario = inspect.unwrap(test)
    ids = ids or next(mark.args for mark in test.pytestmark if mark.name == "lustre")
    return pytest.param(scenario, args, marks=pytest.mark.lustre(*ids), id=f"{test.__name__[5:]} {' '.join(ids)}")


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
    same(test_vbr.test_many_creates_are_replayed_over_the_gap_of_one),
    same(test_vbr.test_a_name_that_was_changed_by_a_lost_client_evicts, *row(test_vbr.CYCLES, "VBR 7a"), ids=("VBR 7a",)),
]  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize(("scenario", "args"), SCENARIOS)
async def test_the_same_on_processes(world: Any, scenario: Scenario, args: tuple[Any, ...]) -> None:
    """See the test of that name."""
    await scenario(world, *args)
