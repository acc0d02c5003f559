"""What administrators do in a run while clients work: an OST is added, the MGS is away, tunables are set, disks run full.

In some runs one or two of these come beside the nemesis's acts, mostly at the same time as one of them. Nobody is evicted
for it, nothing is lost, and the only error it may lead to is ENOSPC, from what needs room, while a disk is full.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from lustrelite.mdt.mdt import Mdt
from lustrelite.ost.ost import Ost
from lustrelite.sim.cluster import Cluster
from lustrelite.sim.disk import BLOCK_BYTES
from lustrelite.sim.nemesis import Act, Nemesis
from lustrelite.sim.processes import SimClient, SimProcess

if TYPE_CHECKING:
    from lustrelite.sim.runs import Budget

CHORES = 0.4  # of the runs have some
OSTS_MAX = 4
CLIENT_TUNABLES: dict[str, tuple[Any, ...]] = {
    "lru_size": (0, 2), "lru_max_age_s": (0.0, 1.0), "max_dirty_bytes": (0, 8192, 1 << 20), "max_cached_bytes": (0, 8192, 1 << 20),
    "write_back_after_s": (0.0, 0.05, 30.0), "max_rpcs_in_flight": (1, 2), "max_mod_rpcs": (1, 3), "read_past_cache_bytes": (0, 1),
    "max_read_ahead_bytes": (0, 4096), "grant_shrink_interval_s": (0.5,), "statahead_max": (0, 2),
}  # fmt: skip
MDS_TUNABLES: dict[str, tuple[Any, ...]] = {
    "stripe_count": (-1, 1, 2, 3), "precreate_min": (1, 2, 64), "precreate_max": (1, 2, 64), "qos_threshold_rr": (0, 100),
}  # fmt: skip
SERVER_TUNABLES: dict[str, tuple[Any, ...]] = {
    "commit_interval_s": (0.005, 3.0), "commit_dirty_max": (1, 3), "commit_bytes_max": (1, 1 << 16), "commit_log_s": (0.0, 1.0),
    "sync_journal": (0, 1), "sync_lock_cancel": ("always", "blocking"), "commit_on_sharing": (1,),
}  # fmt: skip


async def _add_oss(n: Nemesis) -> None:
    """A server more, with an OST that is new; perhaps the MGS dies when some have heard of it, and others not yet."""
    cluster, mgs = n.cluster, n.cluster.mgs
    index = max(config.index for oss in cluster.oss for config in oss.configs) + 1
    if index >= OSTS_MAX:
        return
    await cluster.add_oss(index)
    if n.random.random() < 0.6:
        for _ in range(1000):
            if mgs.running and len(mgs.target().entries) == len(cluster.targets) - 1:
                break
            await asyncio.sleep(0.002)
        await asyncio.sleep(n.random.choice((0.0, 0.001, 0.005, 0.02, 0.05)))
        mgs.kill()
        n.later(n.random.choice((1.0, 8.0, 20.0)), lambda: n.restart(mgs))


async def _without_mgs(n: Nemesis) -> None:
    """The MGS dies, and other servers with it, that mostly are back before it is; perhaps there is an OST more than it knew."""
    cluster = n.cluster
    cluster.mgs.kill()
    dead = n.random.sample([cluster.mds, *cluster.oss], n.random.choice((1, 2, len(cluster.oss) + 1)))
    for server in dead:
        await asyncio.sleep(n.random.choice((0.0, 0.0, 0.1, 2.0)))
        server.kill(silent=n.random.random() < 0.2)
        n.later(n.pause_s(), lambda server=server: n.restart(server))  # type: ignore[misc]
    if n.random.random() < 0.3:
        n.later(n.pause_s(), lambda: _add_oss(n))
    n.later(n.pause_s() + n.random.choice((0.0, 1.0, 5.0)), lambda: n.restart(cluster.mgs))


async def _set_tunables(n: Nemesis) -> None:
    """As `llctl set_param` does."""
    for _ in range(n.random.choice((1, 1, 3))):
        choices: list[tuple[SimProcess, dict[str, tuple[Any, ...]]]] = [
            (n.cluster.mds, {**MDS_TUNABLES, **SERVER_TUNABLES}), *[(oss, SERVER_TUNABLES) for oss in n.cluster.oss],
            *[(client, CLIENT_TUNABLES) for client in n.cluster.clients.values() if client.alive],
        ]  # fmt: skip
        process, of = n.random.choice(choices)
        name = n.random.choice(list(of))
        value = n.random.choice(of[name])
        process.tunables[name] = value
        if process.node is not None:
            setattr(process.node.tunables, name, value)
        for imp in process.imports if isinstance(process, SimClient) else ():
            if imp.locks is not None and name == "lru_size":
                imp.locks.resize(value)
            elif imp.locks is not None and name == "lru_max_age_s":
                imp.locks.lru.max_age_s = value
        n.cluster.note("tunable.set", on=process.name, tunable=name, value=value)


async def _make_no_files_on(n: Nemesis) -> None:
    """An OST gets no new files for a while: it is inactive for the MDT, or may grant it none."""
    index = n.random.choice([config.index for oss in n.cluster.oss for config in oss.configs])
    switches = n.random.random() < 0.5

    def switch(on: bool) -> None:
        for mdt in n.cluster.mds.running:
            assert isinstance(mdt, Mdt)
            osp = mdt.allocator.osps.get(index)
            if osp is None:
                continue
            if not switches:
                osp.batch_max = None if on else 0
                osp.wake()
            elif on:
                osp.imp.activate()
            else:
                osp.imp.deactivate()

    n.cluster.short_of_space = True  # if no other can be expected to have any
    switch(False)
    n.later(n.pause_s(), lambda: switch(True))


async def _fill_disks(n: Nemesis) -> None:
    """OSTs have room for what they have promised, and little more, for a while."""
    filled = []
    for oss in n.random.sample(n.cluster.oss, n.random.choice((1, len(n.cluster.oss)))):
        for target in oss.running:
            if not isinstance(target, Ost) or target.recovering:
                continue
            disk = n.cluster.disks.object_disk(target.name)
            filled.append(disk)
            left = target.grants.promised + n.random.choice((0, BLOCK_BYTES, 1 << 17))
            disk.fill(left, reserved_permille=n.cluster.tunables.reserved_permille)
            target.grants.look_again()
            n.cluster.note("disk.filled", target=target.name, bytes=disk.capacity_bytes)
    n.cluster.short_of_space = True

    def empty() -> None:
        for disk in filled:
            disk.emptied()

    n.later(n.random.choice((0.1, 3.0, 20.0)) * n.random.uniform(0.5, 1.5), empty)


async def _fill_mdt(n: Nemesis) -> None:
    """The MDT has no room but for what removes, and what was acknowledged, for a while."""
    mds = n.cluster.mds
    n.cluster.short_of_space = True

    def reserve(permille: int) -> None:
        mds.tunables["reserved_permille"] = permille
        for server in (mds, mds.partner):
            if server is not None and server.node is not None:
                server.node.tunables.reserved_permille = permille
                for target in server.running:
                    target.store.reserved_permille = permille

    reserve(1000)
    n.later(n.random.choice((0.1, 3.0, 20.0)) * n.random.uniform(0.5, 1.5), lambda: reserve(n.cluster.tunables.reserved_permille))


CHORE_ACTS = (
    Act("add OSS", 6, _add_oss),
    Act("without MGS", 6, _without_mgs),
    Act("set tunables", 6, _set_tunables),
    Act("make no files on", 3, _make_no_files_on),
    Act("fill disks", 6, _fill_disks),
    Act("fill MDT", 2, _fill_mdt),
)


def draw_chores(cluster: Cluster, seed: int, budget: Budget, performed: list[str]) -> Nemesis:
    """Who does them; when is said in `budget`."""
    rng = random.Random(f"chores {seed}")
    if rng.random() < CHORES:
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.choice((*budget.faults_at, rng.randrange(1, budget.left)))
            budget.chores_at.append(max(1, at + rng.choice((-2, 0, 0, 1, 3))))
        budget.chores_at.sort()
    keeper = Nemesis(cluster, random.Random(f"keeper {seed}"), CHORE_ACTS)
    keeper.performed = performed
    return keeper
