"""Many small runs against object servers: clients that write much, while OSTs die, lose power, and lose sight of the MDS.

    python -m lustrelite.sim.swarm --ost --seed 1 --runs 5000

A run: 1 MDS, 2 or 3 OSTs, 2 to 4 clients of which all, none or some cache, about 90 operations, 2 to 5 faults. Most
operations are on the data of three striped files that everybody shares (written, cut, appended to, read, synced); the
rest makes, fills, renames and removes files, so that objects come and go. In every other run each client has a file for
itself, more or less. The judge is the coherence checker's: no
acknowledged byte of a client that lives is lost, what fsync has promised outlives its client, nothing old comes back.

At the end, within a bounded time after all is healed, there are exactly the objects that layouts name, besides those
that the MDT has not used yet: no leak, no file without its objects. The same seed gives the same history to the last
bit.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import ClassVar

from lustrelite.ost.ost import Ost
from lustrelite.sim.cluster import TUNABLES, Violation
from lustrelite.sim.coherence_swarm import (
    FILES,
    LENGTHS,
    LOG,
    NAMES,
    OFFSETS,
    STRIPE_SIZE,
    CoherenceCluster,
    Theme,
    Worker,
)
from lustrelite.sim.ost_acts import OST_ACTS
from lustrelite.sim.runs import (
    Run,
    contend,
    draw_budget,
    draw_clocks,
    draw_cluster,
    draw_disks,
    recorded,
)
from lustrelite.store import schema

OPERATIONS = 90
SMALL_POOLS = replace(TUNABLES, precreate_min=2, precreate_max=2)  # so that new files are on grants that are not durable
SMALL_RPCS = replace(TUNABLES, max_bytes_per_rpc=16384)  # so that one operation is several
SETTINGS = (TUNABLES, SMALL_POOLS, SMALL_POOLS, SMALL_RPCS)
DATA = Theme((*FILES, LOG), NAMES[:4], OFFSETS, (*LENGTHS, STRIPE_SIZE + 4096), 1)


class OstCluster(CoherenceCluster):
    """A cluster whose objects are counted at the end."""

    async def check_disks(self) -> None:
        """See Cluster.check_disks; then compare the objects that are there with those that layouts name."""
        await super().check_disks()
        mdt = self.mds.target()
        named: dict[int, int] = {}
        for _, value in mdt.store.scan(schema.INODES):
            layout = schema.unpack_inode(value).layout
            for ost, _ in layout.stripes if layout is not None else ():
                named[ost] = named.get(ost, 0) + 1
        for server in self.servers:
            for target in server.running:
                if not isinstance(target, Ost):
                    continue
                used = mdt.allocator.last_used.get(target.index, 0)
                there = [oid for key, _ in target.store.scan(schema.OBJECTS) if (oid := schema.split_object_key(key)) <= used]
                files = sum(1 for oid in target.files.ids() if oid > used or not target.exists(oid))
                if len(there) != named.get(target.index, 0) or files:
                    raise Violation(
                        f"seed {self.seed}: {target.name} has {len(there)} objects in use, layouts name "
                        f"{named.get(target.index, 0)}; {files} data files are nobody's"
                    )


class DataWorker(Worker):
    """One line of operations, most of them changes of data."""

    DATA_ACTS: ClassVar[dict[str, int]] = {
        "read": 14, "read all": 8, "size": 6, "fsync": 12, "lock": 0, "write": 42, "truncate": 12, "append": 10,
    }  # fmt: skip
    NAME_ACTS: ClassVar[dict[str, int]] = {
        "stat": 4, "list": 1, "create": 12, "mkdir": 0, "unlink": 26, "rmdir": 0, "rename": 12, "link": 3,
        "open": 40, "chmod": 6,
    }  # fmt: skip
    CHMODS = 0
    READS_ONLY = 0.1

    async def open_name(self, name: str) -> None:
        """Open it, perhaps make it, and mostly write to it, so that its objects have files."""
        before = dict(self.handles)
        await super().open_name(name)
        opened = [handle for key, handle in self.handles.items() if before.get(key) is not handle]
        if opened and opened[-1].writable and self.random.random() < 0.7:
            handle = opened[-1]
            if await self.pwrite(handle, *self.extent()) is None:
                await self.drop(handle)


async def simulate(record: Run, operations: int = OPERATIONS, caching: int = -1) -> None:
    """Run `record.seed` and fill `record` in.

    Raises what went wrong. `caching`: 0 nobody, 1 all, 2 some, -1 by chance.
    """
    rng = random.Random(f"ost {record.seed}")
    one_oss = rng.random() < 0.25
    cluster = OstCluster(
        oss=1 if one_oss else rng.choice((2, 2, 3)), osts=2 if one_oss else 1, clients=rng.choice((2, 2, 3, 4)),
        tunables=rng.choice(SETTINGS), **draw_cluster(rng, record.seed), stripe_count=rng.choice((1, 2, -1)),
        stripe_size=STRIPE_SIZE, commit_on_sharing=1,
    )  # fmt: skip
    cluster.draw_caching(record.seed, caching, (0, 1, 1, 2))
    draw_clocks(cluster, record.seed)
    draw_disks(cluster, record.seed)
    with recorded(record, cluster, cluster.history.ops):
        async with cluster as c:
            await c.prepare([rng.choice((1, 2, -1)) for _ in range(3)])
            budget = draw_budget(c, rng, record.seed, operations, range(2, 6), (10, 35, 60))
            theme = DATA._replace(pace=rng.choice((1, 1, 4)))
            apart = rng.random() < 0.5  # else what is lost with a client is mostly overwritten by others
            workers = [
                DataWorker(
                    c, client, number, random.Random(f"worker {record.seed} {client.name}{number}"), budget,
                    theme._replace(files=(DATA.files[place % len(DATA.files)],)) if apart else theme,
                )
                for place, client in enumerate(c.clients.values())
                for number in range(rng.choice((1, 1, 2)))
            ]
            await contend(record, c, workers, budget, OST_ACTS)
