"""Object ids that an OST granted and then lost in a crash, together with the objects: every order of failures.

Grants are answered before they are durable (ost/object_ids.py). Whoever comes first after the crash, the MDT's replays,
those of the clients, writes that had no answer yet, or the MDT's next orphan pass: files have their objects and their
data, nobody gets another file's, and nothing is left over, which fsck says on leaving each world.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from itertools import permutations
from typing import Any

import pytest
from steps import EVICTION, contents, soon

from lustrelite.errors import OpError
from lustrelite.wire.ost import Destroy, OstCreate, Write

COUNT = 12  # files: more than a pool has at first, and fewer than an OST grants without a commit
AWAY_S = 60.0  # longer than a recovery waits for somebody


def content(path: str) -> bytes:
    return path.encode() * 50


async def flush(client: Any) -> None:
    """Everything is written back, and not durable for that."""
    await client.unrecorded(client.fs.connections.lov.locked.flush_all())


async def stripe(client: Any, path: str) -> int:
    """The object of a file on the only OST."""
    ((_, oid),) = (await client.fs.getstripe(path)).stripes
    return int(oid)


async def made_on_grants_to_be_lost(c: Any, *, mds: bool) -> list[str]:
    """Files with data, written back; the OST commits nothing from here on, nor the MDS, if so told."""
    await c.replay_barrier(c.oss[0])
    if mds:
        await c.replay_barrier(c.mds)
    durable = c.oss[0].target().last_id
    paths = [f"/f{i}" for i in range(COUNT)]
    for path in paths:
        await c.a.write(path, content(path))
    await flush(c.a)
    assert await stripe(c.a, paths[-2]) > durable, "its grant is not durable"
    return paths


async def kill_oss(c: Any, power: bool) -> None:
    await (c.oss[0].power_cut() if power else c.oss[0].kill())


KILL_OR_POWER = pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
ORDERS = list(permutations(("mds", "oss")))


# ---------------------------------------------------------------- nothing is lost that anybody knows of


@pytest.mark.parametrize("mds_lost", [False, True], ids=["mds-durable", "mds-lost"])
@KILL_OR_POWER
@pytest.mark.parametrize("up", ORDERS, ids="-".join)
@pytest.mark.parametrize("down", [*ORDERS, ("oss",)], ids="-".join)
async def test_files_on_lost_grants_come_back_with_their_data(
    cluster: Any, down: tuple[str, ...], up: tuple[str, ...], power: bool, mds_lost: bool
) -> None:
    """Writes and a truncation are replayed, a write without an answer comes again, whoever of MDS and OSS is back first."""
    async with cluster(oss=1, clients=2) as c:
        paths = await made_on_grants_to_be_lost(c, mds=mds_lost)
        await c.a.truncate(paths[0], 7)
        await c.a.truncate(paths[-2], 7)
        file = await c.b.open("/late", create=True)
        held = c.net.hold(Write, to=c.oss[0])
        await file.pwrite(b"without an answer")
        late = soon(flush(c.b))
        await held.caught()
        for name in down:
            await (c.mds.kill() if name == "mds" else kill_oss(c, power))
        held.lift()
        for name in up:
            if name in down:
                await (c.mds if name == "mds" else c.oss[0]).start()
                await asyncio.sleep(2.0)
        await late
        await file.close()
        await c.settle()
        for client in (c.a, c.b):
            c.never_saw("import.evicted", client=client)
        for path in paths:
            assert await c.b.read(path) == (content(path)[:7] if path in (paths[0], paths[-2]) else content(path))
        assert await c.a.read("/late") == b"without an answer"
        assert len({await stripe(c.a, path) for path in (*paths, "/late")}) == COUNT + 1


@pytest.mark.parametrize("up", ORDERS, ids="-".join)
async def test_mds_and_oss_both_die_with_grants_that_are_not_durable(world: Any, up: tuple[str, ...]) -> None:
    """Nobody can replay the grants: the clients' writes make the objects again, or the orphan pass does."""
    async with world(oss=1, clients=2, precreate_min=4, precreate_max=4) as c:
        await c.replay_barrier(c.oss[0])
        paths = [f"/f{i}" for i in range(10)]
        for path in paths:
            await c.a.write(path, content(path))
        await flush(c.a)
        await c.mds.kill()
        await c.oss[0].kill()
        for name in up:
            await (c.mds if name == "mds" else c.oss[0]).start()
        await c.settle()
        c.saw("ost.objects_recreated", on=c.oss[0])
        c.never_saw("import.evicted")
        assert await contents(c.b, paths) == [content(path) for path in paths]


@KILL_OR_POWER
async def test_without_the_mds_replays_make_lost_objects_again_and_everything_else_waits(cluster: Any, power: bool) -> None:
    """The OST recovers alone. Who replays is believed; who has written nothing yet to an object that the OST does not know
    waits, until the MDS has said which ids it has used.  Source: ofd_preprw_write(), ofd_io.c; LU-11765
    """
    async with cluster(oss=1, clients=2) as c:
        c.expect(*EVICTION)
        paths = await made_on_grants_to_be_lost(c, mds=False)
        await c.a.truncate(paths[-1], 9)
        file = await c.b.open("/last", create=True)
        written_last, never_written = await stripe(c.a, paths[-1]), await stripe(c.b, "/last")
        assert never_written > written_last
        await c.mds.commit()
        await c.mds.kill()
        await kill_oss(c, power)
        await c.oss[0].start()
        await asyncio.sleep(AWAY_S)
        ost = c.oss[0].target()
        assert not ost.recovering and not ost.ids.known
        assert ost.last_id == written_last
        written = soon(file.pwrite(b"to an object that is not there"))
        await asyncio.sleep(5.0)
        assert not written.done()
        await c.mds.start()
        await written
        await file.close()
        for path in paths:
            assert await c.b.read(path) == (content(path)[:9] if path == paths[-1] else content(path))


@pytest.mark.parametrize("mds_restarts", [False, True])
@KILL_OR_POWER
async def test_an_object_is_destroyed_for_good_whose_grant_is_lost_later(cluster: Any, power: bool, mds_restarts: bool) -> None:
    """The destroy comes again after the crash, and finds the object: an orphan pass before it has made it again. The other way
    round the destroy would find nothing and be crossed off, and the object be made again for nobody.
    """
    async with cluster(oss=1, clients=1) as c:
        paths = await made_on_grants_to_be_lost(c, mds=False)
        await c.a.create("/empty")  # of which no replay speaks
        sent = c.net.slow(Destroy, to=c.oss[0], delay_s=0.01, times=-1)
        for path in (paths[3], paths[-2], "/empty"):
            await c.a.unlink(path)
        await c.mds.commit()
        await sent.caught()
        await asyncio.sleep(1.0)
        await kill_oss(c, power)
        if mds_restarts:
            await c.mds.kill()
            await c.mds.start()
        c.faults.arm("mdt.delorphan", "delay", on=c.mds, delay_s=5.0)
        await c.oss[0].start()
        await c.settle()
        assert len(await c.a.listdir("/")) == COUNT - 2


@KILL_OR_POWER
async def test_a_lost_id_is_not_granted_again_while_somebody_has_data_for_it(cluster: Any, power: bool) -> None:
    """A client makes a file and caches data. MDS and OST crash and forget both, and the client, cut off from the MDS, is
    evicted there; not by the OST, whose locks it has. What it writes back then goes nowhere: above all not into the
    file of somebody else. Contrast: Lustre may grant the id again.
    """
    async with cluster(oss=1, clients=2, write_back_after_s=1e6) as c:
        c.expect(*EVICTION, "client.write_lost", "import.replay_failed")
        await made_on_grants_to_be_lost(c, mds=True)
        file = await c.b.unrecorded(c.b.fs.open("/lost", os.O_RDWR | os.O_CREAT, 0o644))
        lost = await stripe(c.b, "/lost")
        await c.b.unrecorded(file.pwrite(b"of a file that is gone", 0))
        c.net.cut(c.b, c.mds)
        await c.mds.kill()
        await kill_oss(c, power)
        await c.oss[0].start()
        await c.mds.start()
        await c.until_saw("recovery.over", target=c.mds)
        for i in range(40):
            await c.a.write(f"/new{i}", content(f"/new{i}"))
        await flush(c.a)
        assert lost not in [await stripe(c.a, f"/new{i}") for i in range(40)]
        c.net.heal()
        with pytest.raises(OpError):
            await c.b.unrecorded(file.fsync())
        with contextlib.suppress(OpError):
            await c.b.unrecorded(file.close())
        for i in range(40):
            assert await c.b.read(f"/new{i}") == content(f"/new{i}")
        assert lost not in list(c.oss[0].target().files.ids())


async def test_a_late_copy_of_a_grant_or_an_orphan_pass_changes_nothing(cluster: Any) -> None:
    async with cluster(oss=1, clients=1) as c:
        for connection in range(3):
            c.net.double(OstCreate, to=c.oss[0], delay_s=5.0, times=2)
            c.mds.target().allocator.osps[0].imp.connection_failed(0, "broken by the test")
            for i in range(30):
                await c.a.write(f"/{connection}-{i}", b"x" * 100)
            await asyncio.sleep(10.0)
        paths = [f"/{connection}-{i}" for connection in range(3) for i in range(30)]
        assert await contents(c.a, paths) == [b"x" * 100] * 90
