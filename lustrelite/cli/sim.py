"""lustrelite sim: the simulator's swarm. The only place in the product that imports the simulator."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run `lustrelite.sim.swarm` with these arguments; returns its exit status."""
    from lustrelite.sim import swarm

    return swarm.main(list(arguments))
