"""Each planted bug is found within 200 runs of the swarm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lustrelite.sim import swarm

sys.path.insert(0, str(Path(__file__).parent))

from mutations import MUTATIONS, Mutation, planted

RUNS_MAX = 200
FIRST_SEED = 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name.replace(" ", "-"))
def test_a_planted_bug_is_found(mutation: Mutation):
    with planted(mutation):
        result = swarm.swarm(FIRST_SEED, RUNS_MAX, stop_at=1)
    assert result["violations"], f"{mutation.name}: not found in {RUNS_MAX} runs"


def test_without_a_bug_nothing_is_found():
    """Else the tests above would prove nothing."""
    result = swarm.swarm(FIRST_SEED, 20)
    assert not result["violations"], result["reasons"]
