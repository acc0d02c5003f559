"""The swarms on fixed seeds, some twice: nothing is lost or stale, and one seed is one history.

More with --swarm-runs N.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lustrelite.sim import swarm

FIRST_SEED = 1


PLANS = pytest.mark.parametrize("plan", swarm.PLANS, ids=lambda plan: plan.kind)


@PLANS
def test_no_run_breaks_a_promise(request, plan):
    coherence = plan is swarm.COHERENCE
    runs = request.config.getoption("--swarm-runs") or (90 if coherence else 60)
    result = swarm.swarm_in_parallel(FIRST_SEED, runs, os.cpu_count() or 1, plan)
    failed = [swarm.rerun_command(seed, plan) for seed in result["seeds_failed"]]
    assert not failed, "\n".join(f"{why}\n  rerun: {how}" for why, how in zip(result["reasons"], failed, strict=True))
    operations, faults = (100, 1) if coherence else (50, 2)
    assert result["runs"] == runs and result["operations"] >= operations * runs and result["faults"] >= faults * runs


@PLANS
def test_a_seed_is_one_history_in_every_process(plan):
    hashes = []
    for hash_seed in ("1", "2"):
        path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        command = [sys.executable, "-m", "lustrelite.sim.swarm", "--seed", "8411", "--runs", "8"]
        command += plan.arguments().split()
        hashes.append(subprocess.run(command, env=environment, capture_output=True, check=False).stdout)
    assert hashes[0] == hashes[1] and b'"hash"' in hashes[0]


@pytest.mark.parametrize("runs", [7])
def test_the_result_does_not_depend_on_the_number_of_processes(runs):
    alone = swarm.swarm_in_parallel(FIRST_SEED, runs, 1, swarm.Plan(operations=10), block=2)
    together = swarm.swarm_in_parallel(FIRST_SEED, runs, 2, swarm.Plan(operations=10), block=2)
    assert alone == together and alone["runs"] == runs


def test_a_violation_names_its_seed_and_how_to_run_it_again(monkeypatch, capsys):
    monkeypatch.setattr("lustrelite.sim.oracle.Oracle.check", lambda self, tree: ["planted"])
    monkeypatch.setattr("lustrelite.sim.coherence.check", lambda history, **known: ["planted"])
    for how in ("--seed 5 --operations 5", "--seed 5 --coherence --operations 5 --caching 0", "--seed 5 --ost --operations 5",
                "--seed 5 --attributes --operations 5"):  # fmt: skip
        assert swarm.main(how.split()) == 1
        output = capsys.readouterr()
        assert "planted" in output.err and f"python -m lustrelite.sim.swarm {how}" in output.err
        assert '"seeds_failed": [5]' in output.out
