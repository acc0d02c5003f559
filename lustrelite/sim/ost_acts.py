"""What goes wrong in a run of the OST swarm: OSTs die, lose power, and lose sight of the MDT; disks are slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lustrelite.mdt.mdt import Mdt
from lustrelite.ost.ost import Ost
from lustrelite.sim import nemesis
from lustrelite.sim.nemesis import Act, Nemesis
from lustrelite.sim.processes import SimServer

OST_MESSAGES = ("Write", "WriteMany", "Punch", "OstCreate", "OstCreate", "Destroy", "Destroy", "ObjectSetattr", "Connect")


def _kill_oss(n: Nemesis, oss: SimServer) -> None:
    """With its memory or with its power."""
    if n.random.random() < 0.5:
        oss.power_cut()
    else:
        oss.kill(silent=n.random.random() < 0.2)
    n.later(n.pause_s(), lambda: n.restart(oss))


async def _kill_an_oss(n: Nemesis) -> None:
    oss = n.random.choice(n.cluster.oss)
    if n.random.random() < 0.5:
        _kill_oss(n, oss)
        return
    oss.hold_commits()  # so that there is something to lose

    async def kill() -> None:
        _kill_oss(n, oss)

    n.later(n.random.choice((0.01, 0.1, 1.0, 4.0)) * n.random.random(), kill)


async def _kill_all_oss(n: Nemesis) -> None:
    for oss in n.cluster.oss:
        _kill_oss(n, oss)


async def _kill_oss_and_mds(n: Nemesis) -> None:
    """Both are gone at the same time, one of them with less than the other."""
    oss, mds = n.random.choice(n.cluster.oss), n.cluster.mds
    for server in n.random.choice(([], [oss], [mds], [oss, mds])):
        server.hold_commits()

    async def kill() -> None:
        for server in n.random.sample([oss, mds], 2):
            if server is oss:
                _kill_oss(n, oss)
            else:
                mds.kill()
                n.later(n.pause_s(), lambda: n.restart(mds))
            await asyncio.sleep(n.random.choice((0.0, 0.0, 0.05, 1.0)))

    n.later(n.random.uniform(0.0, 1.0), kill)


async def _kill_oss_twice(n: Nemesis) -> None:
    """The second time in the middle of recovery."""
    oss = n.random.choice(n.cluster.oss)
    oss.power_cut()

    async def again() -> None:
        await n.restart(oss)
        await asyncio.sleep(n.random.uniform(0.0, 0.5))
        _kill_oss(n, oss)

    n.later(n.random.uniform(0.0, 1.0), again)


async def _part_mds_and_oss(n: Nemesis) -> None:
    """They do not hear of each other, or one does not; and then, perhaps, one of them dies, too."""
    oss, mds = n.random.choice(n.cluster.oss), n.cluster.mds
    x, y = n.random.choice(((oss, mds), (mds, oss)))
    n.cluster.net.cut(x, y, one_way=n.random.random() < 0.5)
    n.later(n.random.choice((0.3, 3.0, 9.0, 25.0)) * n.random.uniform(0.8, 1.2), n.cluster.net.heal)
    if n.random.random() < 0.6:

        async def kill() -> None:
            if n.random.random() < 0.5:
                _kill_oss(n, oss)
            else:
                mds.kill()
                await asyncio.sleep(n.pause_s())
                await n.restart(mds)

        n.later(n.random.uniform(0.0, 8.0), kill)


async def _slow_disk(n: Nemesis) -> None:
    server = n.random.choice([n.cluster.mds, n.cluster.mds, n.random.choice(n.cluster.oss)])
    server.slow_disk(n.random.choice((0.05, 0.5, 3.0, 3.0)))
    n.later(n.random.uniform(5.0, 60.0), lambda: server.slow_disk(0.0))


async def _kill_who_is_told(n: Nemesis, told: Callable[[list[Any]], list[str]], kill: Callable[[], None]) -> None:
    """A client of those that `told` finds in what happens from now on dies, and at the same time what `kill` kills."""
    ops = n.cluster.history.ops  # type: ignore[attr-defined]
    begun = len(ops)

    async def wait() -> None:
        names: list[str] = []
        for _ in range(4000):
            names = told([op for op in ops[begun:] if op.ok])
            if names:
                break
            await asyncio.sleep(0.005)
        await asyncio.sleep(n.random.choice((0.0, 0.02, 0.1)))
        victim = next((c for c in n.cluster.clients.values() if c.alive and c.life in names), None)
        if victim is not None and not n.client_killed:
            n.client_killed = True
            victim.kill()
        kill()

    n.later(0.0, wait)


async def _kill_who_removed(n: Nemesis) -> None:
    """What was removed is there again, as nobody can replay the removal: it must still have its objects."""
    mds = n.cluster.mds
    mds.hold_commits()

    def kill() -> None:
        mds.kill()
        n.later(n.pause_s(), lambda: n.restart(mds))

    await _kill_who_is_told(n, lambda ops: [op.client for op in ops if op.kind in ("unlink", "rename")], kill)


async def _kill_who_synced(n: Nemesis) -> None:
    """What fsync has promised must be there without its author, however slow the disks are."""
    for oss in n.cluster.oss:
        oss.slow_disk(1.0)

    def synced(ops: list[Any]) -> list[str]:
        written = {(op.client, op.target) for op in ops if op.kind in ("write", "append")}
        return [op.client for op in ops if op.kind == "fsync" and (op.client, op.target) in written]

    def kill() -> None:
        for oss in n.cluster.oss:
            oss.power_cut()
            n.later(n.pause_s(), lambda oss=oss: n.restart(oss))  # type: ignore[misc]

    await _kill_who_is_told(n, synced, kill)


async def _kill_oss_that_destroys(n: Nemesis) -> None:
    """Between the commit that takes an object's record and the removal of its file, or before, or after; or before the
    commit together with the MDS, which is the other one that knows of it."""
    mds, both = n.cluster.mds, n.random.random() < 0.5
    for oss in n.cluster.oss:
        if both:
            oss.hold_commits()
        else:
            oss.slow_disk(1.0)

    def destroying() -> list[SimServer]:
        return [oss for oss in n.cluster.oss for t in oss.running if isinstance(t, Ost) and t._doomed]

    async def kill() -> None:
        for _ in range(4000):
            if destroying():
                break
            await asyncio.sleep(0.005)
        await asyncio.sleep(n.random.uniform(0.0, 2.0))
        for oss in destroying() or [n.random.choice(n.cluster.oss)]:
            _kill_oss(n, oss)
        if both:
            mds.kill()
            n.later(n.pause_s(), lambda: n.restart(mds))
        for oss in n.cluster.oss:
            oss.slow_disk(0.0)
            oss.release_commits()

    n.later(0.0, kill)


async def _kill_oss_that_granted(n: Nemesis) -> None:
    """New files are on objects of which the OST loses all memory; perhaps the MDS, which could tell it, is away for a while,
    or for so long that the OST has recovered alone."""
    oss, mds = n.random.choice(n.cluster.oss), n.cluster.mds
    granted = {t.index: t.last_id for t in oss.running if isinstance(t, Ost)}
    oss.hold_commits()
    written = n.random.random() < 0.7

    def lost() -> bool:
        """Is there something that was granted since, and used, or even written to?"""
        if written:
            changed = [(t.index, int.from_bytes(key, "big")) for t in oss.running if isinstance(t, Ost) for key in t.unsynced]
        else:
            changed = [at for t in mds.running if isinstance(t, Mdt) for at in t.allocator.last_used.items()]
        return any(oid > granted.get(index, oid) for index, oid in changed)

    async def kill() -> None:
        for _ in range(4000):
            if lost():
                break
            await asyncio.sleep(0.005)
        await asyncio.sleep(n.random.choice((0.0, 0.1, 2.0)) * n.random.random())
        away_s = n.random.choice((0.0, n.pause_s(), 40.0))
        if away_s and n.random.random() < 0.5:
            mds.release_commits()
            await asyncio.sleep(n.random.choice((0.0, 1.0)))
        if away_s:
            mds.kill()
        _kill_oss(n, oss)
        if away_s:
            n.later(away_s, lambda: n.restart(mds))

    n.later(0.0, kill)


async def _disturb_objects(n: Nemesis) -> None:
    """Messages that change objects are lost, late, or come twice."""
    for _ in range(n.random.choice((1, 3))):
        what, act = n.random.choice(OST_MESSAGES), n.random.randrange(3)
        if act == 0:
            n.cluster.net.drop(what, reply=n.random.random() < 0.6, times=n.random.choice((1, 2)))
        elif act == 1:
            delay_s = n.random.choice((0.01, 0.5, 5.0, 7.0))
            n.cluster.net.slow(what, reply=n.random.random() < 0.5, times=n.random.choice((1, 3)), delay_s=delay_s)
        else:
            n.cluster.net.double(what, times=n.random.choice((1, 3)), delay_s=n.random.choice((0.0, 0.01, 0.5, 7.0)))


OST_ACTS = (
    Act("kill OSS", 9, _kill_an_oss),
    Act("kill all OSS", 4, _kill_all_oss),
    Act("kill OSS and MDS", 8, _kill_oss_and_mds),
    Act("kill OSS twice", 4, _kill_oss_twice),
    Act("part MDS and OSS", 8, _part_mds_and_oss),
    Act("slow disk", 12, _slow_disk),
    Act("kill client who removed", 16, _kill_who_removed),
    Act("kill client who synced", 12, _kill_who_synced),
    Act("kill OSS that destroys", 16, _kill_oss_that_destroys),
    Act("kill OSS that granted", 16, _kill_oss_that_granted),
    Act("disturb objects", 6, _disturb_objects),
    Act("kill server", 3, nemesis.kill_server),
    Act("kill everything", 2, nemesis.kill_everything),
    Act("restart in order", 2, nemesis.restart_in_order),
    Act("kill client", 2, nemesis.kill_client),
    Act("kill client and server", 5, nemesis.kill_client_and_server),
    Act("lose reply and kill", 3, nemesis.lose_reply_and_kill),
    Act("cut client", 2, nemesis.cut_client),
    Act("freeze server", 5, nemesis.freeze_server),
    Act("cut server", 5, nemesis.cut_server),
    Act("break links", 2, nemesis.break_links),
    Act("evict", 2, nemesis.evict_everywhere),
    Act("abort recovery", 2, nemesis.abort_recovery),
)
