"""Many small runs against the oracle, most of whose operations are on extended attributes, access lists and times.

    python -m lustrelite.sim.swarm --attributes --seed 1 --runs 2000

A run is one of recovery_swarm.py with other operations. Half of them set (also XATTR_CREATE and XATTR_REPLACE), remove, list
and read attributes, access lists and default lists of the worker's own files and directories, change their modes and times,
and read; the rest makes and moves what they are on, also below directories with a default list. In /contested all workers
do so to two files and a directory, which are there from the start and stay: there only one of two can create an attribute,
and a utimes() ends what others have read before. The oracle compares every answer, and attributes, modes and times at the end. Answers to these changes get lost more often
than others, for nothing may be executed twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from lustrelite.sim import access_lists, recovery_swarm
from lustrelite.sim.access_lists import ACCESS, DEFAULT
from lustrelite.sim.cluster import TUNABLES, Cluster
from lustrelite.sim.nemesis import ACTS, Act, Nemesis, kill_after
from lustrelite.sim.processes import CLOCK_NS
from lustrelite.sim.recovery_swarm import COMMON, Worker, judge_refusals
from lustrelite.sim.runs import (
    LATE,
    Run,
    contend,
    draw_budget,
    draw_caching,
    draw_clocks,
    draw_cluster,
    recorded,
)
from lustrelite.wire.mdt import XATTR_CREATE, XATTR_REPLACE

OPERATIONS = 80
CLIENTS = 3
FILES, DIRECTORY = ("/contested/0", "/contested/1"), "/contested/d"
NAMES = ("user.a", "user.b", "trusted.c")
SIZES = (0, 1, 10, 100, 3999, 4000, 9000)  # a row of the store has 4000
FLAGS = (0, 0, XATTR_CREATE, XATTR_CREATE, XATTR_REPLACE)
LISTS = tuple(
    access_lists.pack(text)
    for text in (
        "u::rw-,g::r--,o::r--", "u::rwx,u:7:rw-,g::r-x,m::rwx,o::---", "u::rw-,g::r--,g:9:rw-,m::r--,o::r--",
        "u::rwx,u:7:r--,u:8:rw-,g::rwx,m::rw-,o::r-x",
    )
)  # fmt: skip
MODES = (0o600, 0o640, 0o751, 0o777)


class AttributeWorker(Worker):
    """One line of operations, most of them on attributes."""

    def choices(self) -> list[tuple[int, Callable[[], Any]]]:
        """See Worker."""
        return [
            (6, self.create),
            (6, self.write),
            (4, self.mkdir),
            (2, self.unlink),
            (1, self.rmdir),
            (4, self.rename),
            (2, self.link),
            (2, self.look),
            (8, self.handle),
            (5, self.make),
            (14, lambda: self.set_attribute(self.own())),
            (5, lambda: self.remove_attribute(self.own())),
            (8, lambda: self.look_at_attributes(self.own())),
            (8, lambda: self.set_list(self.own())),
            (4, lambda: self.change_mode(self.own())),
            (5, lambda: self.set_times(self.file())),
            (6, self.read),
            (self.budget.contest_weight, self.contest),
        ]

    def _may_lose(self) -> bool:
        """Or by the MDT, who has not heard of all attributes yet?"""
        return super()._may_lose() or self.life in self.client.cluster.oracle.gone

    def own(self) -> str:
        """Something that nobody else changes."""
        return self.random.choice(list(self.dirs)) if self.random.random() < 0.3 else self.file()

    async def make(self) -> None:
        """As who unpacks an archive, who need not hear at once: a file, its attributes, and mostly its end."""
        path = self.fresh()
        self.files[path] = None
        file = await self.client.open(path, create=True)
        self.open.append(file)
        await file.pwrite(self.data())
        for change in self.random.sample((self.change_mode, self.set_list, self.set_times), self.random.choice((1, 2))):
            await change(path)
        if self.random.random() < 0.7:
            self.open.remove(file)
            await file.close(late=self.random.random() < LATE)

    async def set_attribute(self, path: str) -> None:
        value = bytes([self.random.randrange(1, 256)]) * self.random.choice(SIZES)
        await self.client.setxattr(path, self.random.choice(NAMES), value, self.random.choice(FLAGS))

    async def remove_attribute(self, path: str) -> None:
        await self.client.removexattr(path, self.random.choice((*NAMES, *NAMES, ACCESS, DEFAULT)))

    async def look_at_attributes(self, path: str) -> None:
        act = self.random.random()
        if act < 0.5:
            await self.client.getxattr(path, self.random.choice((*NAMES, ACCESS, DEFAULT)))
        elif act < 0.8:
            await self.client.listxattr(path)
        else:
            await self.client.stat(path)

    async def set_list(self, path: str) -> None:
        name = DEFAULT if path in (*self.dirs, DIRECTORY) and self.random.random() < 0.7 else ACCESS
        await self.client.setxattr(path, name, self.random.choice(LISTS))

    async def change_mode(self, path: str) -> None:
        await self.client.chmod(path, self.random.choice(MODES))

    async def set_times(self, path: str) -> None:
        mtime, atime = (self.random.choice((0, 0, CLOCK_NS.stop)) + self.random.randrange(1, 1000) for _ in range(2))
        await self.client.utime(path, mtime, atime=atime)

    async def read_or_set_times(self, path: str) -> None:
        act = self.random.random()
        if act < 0.4:
            await self.set_times(path)
        elif act < 0.7:
            await self.client.read(path)
        else:
            self.open.append(await self.client.open(path, read_only=True))

    async def contest(self) -> None:
        """To what others do it to, too; or make something where lists are inherited."""
        if self.random.random() < 0.4:
            await self.read_or_set_times(self.random.choice(FILES))
            return
        path = self.random.choice((*FILES, DIRECTORY))
        act = self.random.randrange(10)
        if act < 4:
            await self.set_attribute(path)
        elif act < 5:
            await self.remove_attribute(path)
        elif act < 7:
            await self.look_at_attributes(path)
        elif act < 8:
            await self.set_list(path)
        elif act < 9:
            await self.change_mode(path)
        else:
            self._count += 1
            make = self.random.choice((self.client.create, self.client.mkdir))
            await make(f"{DIRECTORY}/{self.name}-{self._count}")


def area_of(path: str) -> str:
    """What is contested has nothing to do with each other, either."""
    return "/".join(path.split("/", 3)[1:3]) if path.startswith("/contested/") else recovery_swarm.area_of(path)


async def _lose_answer(n: Nemesis) -> None:
    """A change of attributes is made, and its client does not know; perhaps the MDS dies then."""
    lost = n.cluster.net.drop(
        n.random.choice(("Setxattr", "Setxattr", "Setxattr", "Setattr", "Setattrs")), reply=True, times=n.random.choice((1, 2, 3))
    )
    if n.random.random() < 0.7:
        kill_after(n, n.cluster.mds, lost)


ATTRIBUTE_ACTS = (*(act for act in ACTS if act.name != "corrupt"), Act("lose reply and kill", 12, _lose_answer))


async def simulate(record: Run, operations: int = OPERATIONS, caching: int = -1) -> None:
    """Run `record.seed` and fill `record` in. Raises what went wrong."""
    rng = random.Random(f"attributes {record.seed}")
    cluster = Cluster(
        clients=CLIENTS, tunables=TUNABLES, area_of=area_of, common=COMMON, **draw_cluster(rng, record.seed),
    )  # fmt: skip
    draw_caching(cluster, record.seed, caching, (0, 1, 1, 2))
    draw_clocks(cluster, record.seed)
    with recorded(record, cluster, cluster.oracle.ops):
        async with cluster as c:
            first = c.clients["a"]
            for path in COMMON:
                await first.unrecorded(first.fs.mkdir(path, 0o755))
            for path in FILES:
                await first.write(path, b"contested")
            await first.mkdir(DIRECTORY)
            await first.unrecorded(first.fs.sync())
            await c.mds.commit()
            budget = draw_budget(c, rng, record.seed, operations, range(2, 5), (8, 8, 60))
            workers = [
                AttributeWorker(client, number, random.Random(f"worker {record.seed} {client.name}{number}"), budget)
                for client in c.clients.values()
                for number in range(rng.choice((1, 1, 2)))
            ]
            for worker in workers:
                await worker.client.mkdir(worker.home)
            await contend(record, c, workers, budget, ATTRIBUTE_ACTS)
        judge_refusals(cluster, record.faults)
