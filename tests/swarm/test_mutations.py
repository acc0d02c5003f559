"""Each planted bug is found: within 400 runs of the swarm or the OST swarm, one in the locks within 300 of the coherence swarm."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lustrelite.sim import loop as sim_loop
from lustrelite.sim import swarm

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent / "scenarios")]

import test_cache
import test_lost_grants
from attribute_mutations import ATTRIBUTE_MUTATIONS
from chore_mutations import CHORE_MUTATIONS
from lock_mutations import LOCK_MUTATIONS
from mutations import MUTATIONS, RARE_MUTATIONS, Mutation, planted
from ost_mutations import OST_MUTATIONS

RUNS_MAX = 400
LOCK_RUNS_MAX = 300
BROKEN = re.compile("(Attribute|Type|Name|Import)Error|NodeDied")
FIRST_SEED = 1000
NEAR = {  # where to begin with those that take long from there; only a hint, for a seed is another history whenever the swarm changes
    "a truncation is durable by its record": 1436,
    "data in the log is not put back": 1084,
    "destroys are sent before they are durable": 1043,
    "eviction leaves the files of the client open": 1037,
    "files of destroyed objects are forgotten in a crash": 1058,
    "fsync does not wait for the commit": 1165,
    "lost objects are not made again": 1019,
    "opens are forgotten when they are committed": 1535,
    "reply records are not saved": 1072,
    "reply records are saved in a later batch": 1066,
    "unlink destroys a file that is open": 1063,
    "versions are not compared on replay": 1069,
    "what may be lost is said to be missing": 1115,
}


def each_of(mutations: list[Mutation]) -> Any:
    return pytest.mark.parametrize("mutation", mutations, ids=lambda mutation: mutation.name.replace(" ", "-"))


@pytest.mark.slow
@pytest.mark.timeout(300)
@each_of([*MUTATIONS, *LOCK_MUTATIONS, *OST_MUTATIONS, *CHORE_MUTATIONS, *ATTRIBUTE_MUTATIONS])
def test_a_planted_bug_is_found(mutation: Mutation):
    runs_max = LOCK_RUNS_MAX if mutation in LOCK_MUTATIONS else RUNS_MAX
    with planted(mutation):
        result = swarm.swarm(NEAR.get(mutation.name, FIRST_SEED), runs_max, mutation.plan, stop_at=1)
    assert result["violations"], f"{mutation.name}: not found in {runs_max} runs"
    assert not BROKEN.search(result["reasons"][0]), "the planted bug itself is broken"


FOUND_BY = {
    "a lock goes before its data is durable": (
        test_cache.test_a_lock_goes_to_the_next_when_what_was_written_under_it_is_durable, {}),
    "a replay makes no lost object again": (
        test_lost_grants.test_without_the_mds_replays_make_lost_objects_again_and_everything_else_waits, {"power": False}),
    "an id that a crash took is granted again": (
        test_lost_grants.test_a_lost_id_is_not_granted_again_while_somebody_has_data_for_it, {"power": False}),
    "grants of ids are not replayed": (
        test_lost_grants.test_an_object_is_destroyed_for_good_whose_grant_is_lost_later, {"power": False, "mds_restarts": False}),
    "destroys are sent before the orphan pass": (
        test_lost_grants.test_an_object_is_destroyed_for_good_whose_grant_is_lost_later, {"power": False, "mds_restarts": True}),
}  # fmt: skip


@each_of(RARE_MUTATIONS)
def test_a_rare_bug_is_found_by_its_scenario(mutation: Mutation, cluster: Any):
    scenario, args = FOUND_BY[mutation.name]
    with planted(mutation), pytest.raises(AssertionError):
        sim_loop.run(lambda: inspect.unwrap(scenario)(cluster, **args), cluster.seed)


def test_hints_are_about_planted_bugs():
    assert NEAR.keys() <= {mutation.name for mutation in (*MUTATIONS, *OST_MUTATIONS, *CHORE_MUTATIONS, *ATTRIBUTE_MUTATIONS)}


@pytest.mark.parametrize("plan", swarm.PLANS, ids=lambda plan: plan.kind)
def test_without_a_bug_nothing_is_found(plan: swarm.Plan):
    """Else the tests above would prove nothing."""
    result = swarm.swarm(FIRST_SEED, 20, plan)
    assert not result["violations"], result["reasons"]
