"""What the swarms share: the record of a run, its budget of operations, and its two phases.

What is drawn here for a run has a source of chance of its own: with failover pairs, other clocks or small disks it is the
same workload under the same acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lustrelite.sim.chores import draw_chores
from lustrelite.sim.cluster import Cluster, Violation
from lustrelite.sim.nemesis import Act, Nemesis
from lustrelite.sim.net import Latency
from lustrelite.sim.processes import NodeDied, SimClient

LATE = 0.5  # of the closes
LATENCIES = (
    Latency(),
    Latency(max_s=0.002, slow_permille=20, slow_s=0.05),
    Latency(max_s=0.02, slow_permille=50, slow_s=0.5),
    Latency(min_s=1e-5, max_s=5e-5, slow_permille=0),
)


@dataclass
class Run:
    """One seed's run and its end."""

    seed: int
    operations: int = 0
    faults: list[str] = field(default_factory=list)
    violation: str = ""
    digest: str = ""
    callbacks: int = 0
    events: Counter[str] = field(default_factory=Counter)
    history: str = ""


@contextlib.contextmanager
def recorded(record: Run, cluster: Cluster, operations: list[Any]) -> Iterator[None]:
    """Keep of a run what is left of it, and the history of its `operations` if it fails."""
    try:
        yield
    except BaseException:
        record.history = "\n".join(map(str, operations))
        raise
    finally:
        record.operations = len(operations)
        record.digest = cluster.digest()
        record.callbacks = cluster.loop.callbacks


class Budget:
    """The operations of a run; some of them are preceded by an act of the nemesis."""

    def __init__(self, operations: int, faults_at: list[int], contest_weight: int) -> None:
        self.contest_weight = contest_weight  # of operations on names that clients share, against some 55
        self.left = operations
        self.taken = 0
        self.faults_at = sorted(faults_at)
        self.chores_at: list[int] = []
        self.due = asyncio.Event()
        self.leaver = ""  # a client that leaves in good order, in the middle of everything: nothing of it may be lost
        self.leaves_at = 0

    def leaves(self, client: str) -> bool:
        """Is it time for this client to leave?"""
        return client == self.leaver and self.taken >= self.leaves_at

    def take(self, client: str) -> bool:
        """May another operation of this client begin?"""
        if not self.left or self.leaves(client):
            return False
        self.left -= 1
        self.taken += 1
        if any(at and self.taken >= at[0] for at in (self.faults_at, self.chores_at)):
            self.due.set()
        return True


LEAVES = 0.3  # of the runs
PAIRS = 0.25
SKEWED = 0.25
SMALL = 0.2
SMALL_DISKS_BYTES = (96 << 10, 192 << 10, 512 << 10)
SKEWS_S = (-3600.0, -7.0, -0.3, 0.0, 0.3, 2.0, 7.0, 90.0)


def draw_cluster(rng: random.Random, seed: int) -> dict[str, Any]:
    """What clusters of all swarms are made with: the speed of the network and of commits, and whether servers have standbys."""
    return {
        "seed": seed, "strict": False, "keep_events": False, "latency": rng.choice(LATENCIES), "orderly": rng.random() < 0.25,
        "commit_interval_s": rng.choice((0.005, 0.1, 1.0, 1.0)), "commit_log_s": random.Random(f"log {seed}").choice((0.0, 1.0)),
        "pairs": random.Random(f"pairs {seed}").random() < PAIRS, "roles_swap": True,
    }  # fmt: skip


def draw_budget(cluster: Cluster, rng: random.Random, seed: int, operations: int, faults: range, contest_weights: Sequence[int]) -> Budget:
    """When the nemesis acts, and who leaves."""
    count = rng.choice(faults)
    budget = Budget(operations, [rng.randrange(1, operations) for _ in range(count)], rng.choice(contest_weights))
    _draw_leaver(cluster, seed, budget)
    return budget


def _draw_leaver(cluster: Cluster, seed: int, budget: Budget) -> None:
    """Does a client leave, and when? Mostly with a fault."""
    rng = random.Random(f"leaver {seed}")
    if rng.random() < LEAVES:
        budget.leaver = rng.choice(list(cluster.clients))
        budget.leaves_at = rng.choice((rng.choice(budget.faults_at), rng.choice(budget.faults_at), rng.randrange(1, budget.left)))


READ_PAST_BYTES = (1, 8192, 8 << 20, 8 << 20)


def draw_caching(cluster: Cluster, seed: int, caching: int, drawn: Sequence[int] = (0, 0, 1, 2)) -> None:
    """Which clients cache: 0 none, 1 all, 2 some, -1 one of `drawn`; and which reads of theirs go past the cache."""
    rng = random.Random(f"caching {seed}")
    caching = rng.choice(drawn) if caching < 0 else caching
    for client in cluster.clients.values():
        client.tunables["caching"] = int(caching == 1 or (caching == 2 and rng.random() < 0.5))
    for client in cluster.clients.values():
        client.tunables["read_past_cache_bytes"] = rng.choice(READ_PAST_BYTES)


def draw_clocks(cluster: Cluster, seed: int) -> None:
    """Which clocks differ, before anybody starts."""
    rng = random.Random(f"clocks {seed}")
    if rng.random() < SKEWED:
        for process in cluster.processes:
            process.set_clock(rng.choice(SKEWS_S))


def draw_disks(cluster: Cluster, seed: int) -> None:
    """Are the OSTs' disks so small that they are full soon?"""
    rng = random.Random(f"disks {seed}")
    if rng.random() < SMALL:
        cluster.short_of_space = True
        for config in cluster.targets:
            if config.kind == "OST":
                disk = cluster.disks.object_disk(config.name)
                disk.sparse, disk.capacity_bytes = True, rng.choice(SMALL_DISKS_BYTES)


class Worker(Protocol):
    """Who works until the budget is used up."""

    name: str
    client: SimClient

    async def work(self) -> None: ...


async def contend(record: Run, c: Cluster, workers: Sequence[Worker], budget: Budget, acts: Sequence[Act] = ()) -> None:
    """Safety phase with faults, then a liveness phase in which everything that can come to its end must."""
    nemesis = Nemesis(c, random.Random(f"nemesis {record.seed}"), acts)
    record.faults = nemesis.performed
    keeper = draw_chores(c, record.seed, budget, record.faults)
    tasks = [c.loop.create_task(worker.work(), name=f"worker {worker.name}") for worker in workers]

    async def violence() -> None:
        while budget.faults_at or budget.chores_at:
            await budget.due.wait()
            budget.due.clear()
            for at, who in ((budget.chores_at, keeper), (budget.faults_at, nemesis)):
                while at and budget.taken >= at[0]:
                    at.pop(0)
                    await who.act()

    fury = c.loop.create_task(violence(), name="nemesis")
    if budget.leaver:
        its = [task for worker, task in zip(workers, tasks, strict=True) if worker.client.name == budget.leaver]
        tasks.append(c.loop.create_task(_leave(c.clients[budget.leaver], its), name=f"{budget.leaver} leaves"))
    working = asyncio.gather(*tasks)
    try:
        # The workload may hang on a fault that nobody puts right but we.
        await asyncio.wait({working}, timeout=200.0)
        fury.cancel()
        await nemesis.finish()
        await keeper.finish()
        await c.recover()
        await asyncio.wait({working}, timeout=600.0)
        stuck = [task.get_name() for task in tasks if not task.done()]
        if stuck and not working.done():
            raise Violation(f"after all was healed, {', '.join(stuck)} did not end: {c.unsettled()}")
        await working
    finally:
        fury.cancel()
        for task in tasks:
            task.cancel()


async def _leave(client: SimClient, workers: Sequence[asyncio.Task[None]]) -> None:
    """Unmount it when its workers have come to their end, and mount again: somebody must come, or no recovery ends."""
    await asyncio.wait(workers)
    if client.alive:
        with contextlib.suppress(NodeDied):
            await client.unmount()
            await client.start()
