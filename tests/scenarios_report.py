"""Which of Lustre's scenarios are covered, and which pass: `python -m tests.scenarios_report` (`make scenarios`).

Runs every test that has the marker `lustre` and prints one JSON line: for the simulator and for processes, by suite,
how many ids are eligible (tests/scenarios/eligible.txt), covered by a test, and passing in all of their tests. Ids
beyond the eligible ones are counted as `beyond`. What pytest says goes to stderr. The status is 1 if a test fails.

    --missing        names the eligible ids without a test, instead
    anything else    goes to pytest (`-k`, `-n 4`, `-m "not processes"`)
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ELIGIBLE = Path(__file__).parent / "scenarios" / "eligible.txt"
WORLDS = ("simulator", "processes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the ids travel with the reports: under xdist they are made in another process."""
    for item in items:
        ids = [name for mark in item.iter_markers("lustre") for name in mark.args]
        if ids:
            world = "processes" if item.get_closest_marker("processes") else "simulator"
            item.user_properties.append(("lustre", [world, ids]))


class Recorder:
    """Collects outcomes: by world and id, whether all tests passed."""

    def __init__(self) -> None:
        self.passed: dict[str, dict[str, bool]] = {world: {} for world in WORLDS}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        for name, value in report.user_properties:
            if name != "lustre" or (report.skipped and report.when != "call"):
                continue
            world, ids = value  # type: ignore[misc]
            for scenario in ids:
                self.passed[world][scenario] = self.passed[world].get(scenario, True) and not report.failed


def eligible() -> list[str]:
    """The ids, in the order of the catalogue."""
    lines = ELIGIBLE.read_text().splitlines()
    return [" ".join(line.split()[:2]) for line in lines if line and not line.startswith("#")]


def by_suite(passed: dict[str, bool]) -> dict[str, dict[str, int]]:
    """Counts of one world."""
    wanted = eligible()
    counts: dict[str, dict[str, int]] = {}
    for scenario in [*wanted, *(extra for extra in passed if extra not in wanted)]:
        suite = counts.setdefault(scenario.split()[0], {"covered": 0, "passing": 0, "eligible": 0, "beyond": 0})
        if scenario not in wanted:
            suite["beyond"] += 1
            continue
        suite["eligible"] += 1
        suite["covered"] += scenario in passed
        suite["passing"] += passed.get(scenario, False)
    return counts


def main(arguments: list[str]) -> int:
    """Run the tests, print the line."""
    missing = "--missing" in arguments
    arguments = [a for a in arguments if a != "--missing"]
    recorder = Recorder()
    here = str(Path(__file__).parent)
    options: list[Any] = ["-q", "-p", "tests.scenarios_report", here, *(arguments or ["-m", "lustre", "-n", "auto"])]
    with contextlib.redirect_stdout(sys.stderr):
        status = int(pytest.main(options, plugins=[recorder]))
    if missing:
        covered = recorder.passed["simulator"]
        print("\n".join(scenario for scenario in eligible() if scenario not in covered))
    else:
        print(json.dumps({world: by_suite(recorder.passed[world]) for world in WORLDS}))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
