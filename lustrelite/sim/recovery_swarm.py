"""Many small runs against the oracle: clients that make, write, move and remove files while servers and clients die.

    python -m lustrelite.sim.swarm --seed 1 --runs 2000

A run: 1 MDS, 2 OSTs, 3 clients, 60 operations, 2 to 4 faults. Each client has one or two workers. A worker does most of
its operations in a directory of its own and under its own names in a shared one, so their outcome is known; the rest on
a few contested names, where the oracle looks for an order that explains all answers. A worker whose client was killed
or evicted stops. The same seed gives the same history to the last bit.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable
from typing import Any

from lustrelite.errors import Deactivated, Evicted, OpError
from lustrelite.sim.cluster import TUNABLES, Cluster, Violation
from lustrelite.sim.model import READS
from lustrelite.sim.processes import CLOCK_NS, NodeDied, SimClient, SimFile
from lustrelite.sim.runs import (
    LATE,
    Budget,
    Run,
    contend,
    draw_budget,
    draw_caching,
    draw_clocks,
    draw_cluster,
    recorded,
)
from lustrelite.sim.world import lines
from lustrelite.wire.ost import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE

OPERATIONS = 60
CLIENTS = 3
NEEDS_NO_ROOM = ("unlink", "rmdir", "close")
COMMON = ("/shared", "/contested")
FALLOCATIONS = (0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE)
CONTESTED = tuple(f"/contested/{name}" for name in "pqr")
# After these a client that lives may be evicted. Deaths and restarts alone give no reason to.
MAY_EVICT = frozenset(
    {"cut", "pause", "evict", "abort recovery", "slow messages", "slow point", "lose messages", "lose any",
     "lose reply and kill", "double messages", "set clock"}
)  # fmt: skip


class Worker:
    """One line of operations of one client."""

    def __init__(self, client: SimClient, number: int, rng: random.Random, budget: Budget) -> None:
        self.client = client
        self.life = client.life
        self.name = f"{client.name}{number}"
        self.random = rng
        self.budget = budget
        self.home = f"/{self.name}"
        self.files: dict[str, None] = {}  # believed to be there
        self.dirs: dict[str, None] = {self.home: None}
        self.open: list[SimFile] = []
        self._count = 0

    def fresh(self, *, deep: bool = True) -> str:
        """A name that was not used yet."""
        self._count += 1
        if self.random.random() < 0.25:
            return f"/shared/{self.name}-{self._count}"
        return f"{self.random.choice(list(self.dirs)) if deep else self.home}/{self._count}"

    def file(self) -> str:
        """A file that is believed to be there, or a new name."""
        return self.random.choice(list(self.files)) if self.files else self.fresh()

    def data(self) -> bytes:
        """Something to write; now and then over the bound of inline bulk or over a stripe."""
        size = self.random.choice((0, 1, 10, 100, 5000, 70_000, 200_000))
        return bytes([self.random.randrange(1, 256)]) * size

    async def work(self) -> None:
        """Until the budget is used up or the client is no more."""
        try:
            while self.budget.take(self.client.name):
                try:
                    await self.step()
                except (Evicted, Deactivated):
                    if self.life in self.client.cluster.oracle.gone:
                        return
                except OpError as error:
                    self._check(error)
                if self.random.random() < 0.3:
                    await asyncio.sleep(self.random.choice((0.001, 0.01, 0.2, 1.5)))
            if self.budget.leaves(self.client.name) and self.random.random() < 0.5:
                return  # the end of the mount closes them
            for file in self.open:
                try:
                    await file.close()
                except (Evicted, Deactivated):
                    return
                except OpError as error:
                    self._check(error)
        except (NodeDied, Evicted, Deactivated):
            return

    def _check(self, error: OpError) -> None:
        """What was written may be lost, but only with an eviction."""
        if error.errno == errno.EIO and not self._may_lose():
            raise Violation(f"{self.name}: {error} without an eviction") from None
        if error.errno == errno.ENOSPC and not self.client.cluster.short_of_space:
            raise Violation(f"{self.name}: {error} without need") from None

    def _may_lose(self) -> bool:
        """Was it evicted by an OST?"""
        return self.life in self.client.cluster.oracle.gone_data

    def choices(self) -> list[tuple[int, Callable[[], Any]]]:
        """What it may do next, with weights."""
        return [
            (9, self.write),
            (5, self.create),
            (4, self.mkdir),
            (4, self.overwrite),
            (2, self.truncate),
            (1, self.fallocate),
            (5, self.unlink),
            (2, self.rmdir),
            (5, self.rename),
            (3, self.link),
            (1, self.symlink),
            (3, self.chmod),
            (2, self.setxattr),
            (3, self.utime),
            (4, self.read),
            (3, self.look),
            (4, self.handle),
            (self.budget.contest_weight, self.contest),
        ]

    async def step(self) -> None:
        """One operation."""
        choices = self.choices()
        await self.random.choices([c for _, c in choices], [w for w, _ in choices])[0]()

    async def write(self) -> None:
        path = self.fresh() if self.random.random() < 0.6 else self.file()
        self.files[path] = None
        await self.client.write(path, self.data())

    async def create(self) -> None:
        path = self.fresh() if self.random.random() < 0.9 else self.file()
        self.files[path] = None
        await self.client.create(path)

    async def mkdir(self) -> None:
        path = self.fresh()
        self.dirs[path] = None
        await self.client.mkdir(path)

    async def overwrite(self) -> None:
        await self.client.write_at(self.file(), self.random.choice((0, 3, 4096, 65536, 150_000)), self.data())

    async def truncate(self) -> None:
        await self.client.truncate(self.file(), self.random.choice((0, 1, 5000, 65536, 100_000)))

    async def fallocate(self) -> None:
        start, length = self.random.choice((0, 100, 65_000)), self.random.choice((1, 5000, 100_000))
        await self.client.fallocate(self.file(), self.random.choice(FALLOCATIONS), start, length)

    async def unlink(self) -> None:
        path = self.file()
        await self.client.unlink(path)
        self.files.pop(path, None)

    async def rmdir(self) -> None:
        path = self.random.choice(list(self.dirs))
        await self.client.rmdir(path)
        if path != self.home:
            del self.dirs[path]

    async def rename(self) -> None:
        old = self.file()
        new = self.file() if self.random.random() < 0.3 else self.fresh()
        if new in self.files and self.random.random() < 0.5:
            await self.client.exchange(old, new)
            return
        await self.client.rename(old, new)
        self.files.pop(old, None)
        self.files[new] = None

    async def link(self) -> None:
        new = self.fresh()
        await self.client.link(self.file(), new)
        self.files[new] = None

    async def symlink(self) -> None:
        await self.client.symlink("nowhere", self.fresh())

    async def chmod(self) -> None:
        await self.client.chmod(self.file(), self.random.choice((0o600, 0o640, 0o777)))

    async def utime(self) -> None:
        await self.client.utime(self.file(), self.random.choice((0, CLOCK_NS.stop)) + self.random.randrange(1, 1000))

    async def setxattr(self) -> None:
        await self.client.setxattr(self.file(), "user.x", self.data()[:100])

    async def read(self) -> None:
        await self.client.read(self.file())

    async def look(self) -> None:
        if self.random.random() < 0.5:
            await self.client.stat(self.file())
        else:
            await self.client.listdir(self.random.choice(list(self.dirs)))

    async def handle(self) -> None:
        """Open a file, or do something with an open one."""
        if not self.open or self.random.random() < 0.3:
            path = self.file()
            reads = self.random.random() < 0.4
            self.open.append(await self.client.open(path, create=not reads, read_only=reads))
            self.files[path] = None
            return
        file = self.random.choice(self.open)
        act = self.random.random()
        if act < 0.4 and file.file.writable:
            await file.pwrite(self.data(), self.random.choice((0, 1000)))
        elif act < 0.6:
            await file.pread()
        else:
            self.open.remove(file)
            await file.close(late=self.random.random() < LATE)

    async def contest(self) -> None:
        """An operation on names that others use too: one that is atomic (a link or a write by path is not)."""
        path, other = self.random.choice(CONTESTED), self.random.choice(CONTESTED)
        act = self.random.randrange(9)
        if act < 2:
            await self.client.create(path)
        elif act == 2:
            await self.client.mkdir(path)
        elif act == 3:
            await self.client.unlink(path)
        elif act == 4:
            await self.client.rename(path, other)
        elif act == 5:
            await self.client.rename(other, path)
        elif act == 6:
            await self.client.rmdir(path)
        elif act == 7:
            await self.client.exchange(path, other)
        else:
            await self.client.listdir("/contested")


def area_of(path: str) -> str:
    """Names of one worker, wherever they are, are one area."""
    first, _, rest = path[1:].partition("/")
    return rest.partition("-")[0] if first == "shared" and rest else first


async def simulate(record: Run, operations: int = OPERATIONS, caching: int = -1) -> None:
    """Run `record.seed` and fill `record` in. Raises what went wrong."""
    rng = random.Random(f"swarm {record.seed}")
    one_oss = rng.random() < 0.3
    cluster = Cluster(
        oss=1 if one_oss else 2, osts=2 if one_oss else 1, clients=CLIENTS, tunables=TUNABLES, area_of=area_of, common=COMMON,
        **draw_cluster(rng, record.seed), stripe_count=rng.choice((1, 1, 2)), stripe_size=65536, max_bytes_per_rpc=1 << 16,
    )  # fmt: skip
    draw_caching(cluster, record.seed, caching)
    draw_clocks(cluster, record.seed)
    with recorded(record, cluster, cluster.oracle.ops):
        async with cluster as c:
            first = c.clients["a"]
            for path in COMMON:
                await first.unrecorded(first.fs.mkdir(path, 0o755))
            await c.mds.commit()
            budget = draw_budget(c, rng, record.seed, operations, range(2, 5), (8, 8, 60))
            workers = [
                Worker(client, number, random.Random(f"worker {record.seed} {client.name}{number}"), budget)
                for client in c.clients.values()
                for number in range(rng.choice((1, 1, 2)))
            ]
            for worker in workers:
                await worker.client.mkdir(worker.home)
            await contend(record, c, workers, budget)
        judge_refusals(cluster, record.faults)


def judge_refusals(cluster: Cluster, performed: list[str]) -> None:
    """Was somebody evicted, or told that there is no space, without a reason?"""
    for op in cluster.oracle.ops:
        if op.errno == errno.ENOSPC and op.name in (*READS, *NEEDS_NO_ROOM):
            raise Violation(f"{op}: this needs no room")
    if cluster.unjust and not any(act in MAY_EVICT for act in performed):
        raise Violation(f"the living were evicted without need:\n{lines(cluster.unjust, ())}")
