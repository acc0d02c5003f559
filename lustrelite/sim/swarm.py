"""Many small runs, each of its own seed: a cluster, a workload and a nemesis; then heal, settle, judge.

    python -m lustrelite.sim.swarm --seed 1 --runs 2000      one JSON line: runs, operations, faults, violations, hash
    python -m lustrelite.sim.swarm --seed 8411               one run, told in full if it fails

Which runs: recovery_swarm.py's, with --attributes attribute_swarm.py's, with --coherence coherence_swarm.py's, with --ost
ost_swarm.py's. `hash` sums up all histories.

Some runs have failover pairs (an MDS or OSS that dies is taken over), or clocks that differ, or one or two of an
administrator's acts beside the faults (chores.py); in the coherence and OST swarms also disks that are full soon.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from lustrelite.sim import attribute_swarm, coherence_swarm, ost_swarm, recovery_swarm
from lustrelite.sim.cluster import Violation
from lustrelite.sim.loop import SimError, run
from lustrelite.sim.runs import Run

TIME_S_MAX = 4000.0
CALLBACKS_MAX = 2_000_000
KINDS: dict[str, Any] = {"recovery": recovery_swarm, "attributes": attribute_swarm, "coherence": coherence_swarm, "ost": ost_swarm}


class Plan(NamedTuple):
    """What kind of runs."""

    kind: str = "recovery"
    operations: int = 0  # of a run; 0: as many as is usual for these
    caching: int = -1  # 0 no client, 1 all, 2 some; -1: the seed says

    @property
    def operations_each(self) -> int:
        """Of a run."""
        return self.operations or int(KINDS[self.kind].OPERATIONS)

    def arguments(self) -> str:
        """How to say it on the command line."""
        return (
            (f" --{self.kind}" if self.kind != "recovery" else "")
            + (f" --operations {self.operations}" if self.operations else "")
            + (f" --caching {self.caching}" if self.caching >= 0 else "")
        )


PLANS = RECOVERY, ATTRIBUTES, COHERENCE, OST = tuple(Plan(kind) for kind in KINDS)


def run_seed(seed: int, plan: Plan = RECOVERY) -> Run:
    """One run."""
    simulated = KINDS[plan.kind].simulate
    record = Run(seed)
    try:
        run(lambda: simulated(record, plan.operations_each, plan.caching), seed, time_s_max=TIME_S_MAX, callbacks_max=CALLBACKS_MAX)
    except (Violation, SimError, AssertionError) as error:
        record.violation = f"{type(error).__name__}: {error}"
    except Exception as error:
        record.violation = f"{error!r}\n{traceback.format_exc()}"
    return record


def swarm(first: int, runs: int, plan: Plan = RECOVERY, *, stop_at: int = 0) -> dict[str, Any]:
    """Runs of the seeds from `first` on; `stop_at` violations end it early. Returns the JSON line's fields."""
    total = {"first_seed": first, "runs": 0, "operations": 0, "faults": 0, "violations": 0, "callbacks": 0}
    digest = hashlib.sha256()
    failed: list[int] = []
    reasons: list[str] = []
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for seed in range(first, first + runs):
            record = run_seed(seed, plan)
            total["runs"] += 1
            total["operations"] += record.operations
            total["faults"] += len(record.faults)
            total["callbacks"] += record.callbacks
            digest.update(f"{seed} {record.digest} {record.violation}".encode())
            if record.violation:
                total["violations"] += 1
                failed.append(seed)
                reasons.append(" ".join(record.violation.split("\n    ")[0].split())[:400])
                if stop_at and len(failed) >= stop_at:
                    break
            if seed % 20 == 0:
                gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return {**total, "hash": digest.hexdigest(), "seeds_failed": failed, "reasons": reasons}


def _block(job: tuple[int, int, Plan, int]) -> dict[str, Any]:
    first, runs, plan, stop_at = job
    return swarm(first, runs, plan, stop_at=stop_at)


def swarm_in_parallel(
    first: int, runs: int, processes: int, plan: Plan = RECOVERY, *, stop_at: int = 0, block: int = 50
) -> dict[str, Any]:
    """`swarm` on several cores. The result does not depend on how many: seeds go in blocks of a fixed size."""
    jobs = [(at, min(block, first + runs - at), plan, stop_at) for at in range(first, first + runs, block)]
    if processes > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(processes) as pool:
            parts = list(pool.map(_block, jobs))
    else:
        parts = [_block(job) for job in jobs]
    whole: dict[str, Any] = {"first_seed": first}
    for key in ("runs", "operations", "faults", "violations", "callbacks", "seeds_failed", "reasons"):
        whole[key] = sum((part[key] for part in parts[1:]), parts[0][key])
    whole["hash"] = hashlib.sha256("".join(part["hash"] for part in parts).encode()).hexdigest()
    return whole


def rerun_command(seed: int, plan: Plan = RECOVERY) -> str:
    """What to type to see this run again."""
    return f"python -m lustrelite.sim.swarm --seed {seed}{plan.arguments()}"


def tell(record: Run, plan: Plan = RECOVERY) -> str:
    """A failed run in full."""
    return "\n".join(
        [
            f"seed {record.seed}: {record.violation}",
            f"faults: {', '.join(record.faults)}",
            "history:",
            record.history,
            f"rerun: {rerun_command(record.seed, plan)}",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lustrelite.sim.swarm", description="simulated clusters under fire")
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--runs", type=int, default=1)
    kind = parser.add_mutually_exclusive_group()
    for name, what in (
        ("attributes", "extended attributes, access lists and access times (attribute_swarm.py)"),
        ("coherence", "clients that share and cache (coherence_swarm.py)"),
        ("ost", "object servers under fire (ost_swarm.py)"),
    ):
        kind.add_argument(f"--{name}", dest="kind", action="store_const", const=name, default="recovery", help=what)
    parser.add_argument("--caching", type=int, default=-1, choices=(0, 1, 2), help="no client, all, some (the seed says)")
    parser.add_argument("--operations", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--stop-at", type=int, default=0, help="end after so many violations")
    options = parser.parse_args(arguments)
    plan = Plan(options.kind, options.operations, options.caching)
    if options.runs == 1:
        record = run_seed(options.seed, plan)
        if record.violation:
            sys.stderr.write(tell(record, plan) + "\n")
        result: dict[str, Any] = {
            "first_seed": record.seed, "runs": 1, "operations": record.operations, "faults": len(record.faults),
            "violations": int(bool(record.violation)), "callbacks": record.callbacks, "hash": record.digest,
            "seeds_failed": [record.seed] if record.violation else [],
        }  # fmt: skip
    else:
        result = swarm_in_parallel(options.seed, options.runs, options.processes, plan, stop_at=options.stop_at)
        for seed, reason in zip(result["seeds_failed"], result.pop("reasons"), strict=True):
            sys.stderr.write(f"{reason}\n  rerun: {rerun_command(seed, plan)}\n")
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
