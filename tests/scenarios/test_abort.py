"""Recovery is given up: what was not committed is gone, its numbers are not used again, and work goes on."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from steps import ABORT, contents, soon

from lustrelite.errors import OpError
from lustrelite.mdt import reading
from lustrelite.store import schema


@pytest.mark.lustre("RS 33a")
async def test_creates_work_after_an_aborted_recovery(world: Any) -> None:
    """No FID is used again.  Source: lustre/tests/replay-single.sh test_33a"""
    async with world(clients=1) as c:
        c.expect(*ABORT)
        for i in range(10):
            await c.a.create(f"/old{i}")
        await c.replay_barrier(c.mds)
        await c.fail_abort(c.mds)
        for i in range(10):
            await c.a.create(f"/new{i}")
        numbers = {(await c.a.stat(f"/{kind}{i}")).ino for kind in ("old", "new") for i in range(10)}
        assert len(numbers) == 20


@pytest.mark.lustre("RS 33b")
async def test_no_fid_comes_again_when_every_range_runs_out(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every FID is from a range of its own, given while commits are held.

    Source: lustre/tests/replay-single.sh test_33b
    """
    monkeypatch.setattr(reading, "SEQ_WIDTH", 1)
    async with world(clients=2) as c:
        c.expect(*ABORT)
        await c.replay_barrier(c.mds)
        lost = []
        for i in range(10):
            await c.a.create(f"/old{i}")
            lost.append((await c.a.fs.lstat(f"/old{i}")).fid)
        await c.fail_abort(c.mds)
        for i in range(10):
            await c.b.create(f"/new{i}")
        found = [(await c.b.fs.lstat(f"/new{i}")).fid for i in range(10)]
        assert len({*lost, *found}) == 20


@pytest.mark.lustre("RS 44c")
async def test_what_an_aborted_recovery_lost_does_not_come_back(world: Any) -> None:
    """Although an OST tells the MDS wrongly that recovery goes on.  Source: lustre/tests/replay-single.sh test_44c"""
    async with world(clients=1) as c:
        c.expect(*ABORT)
        await c.replay_barrier(c.mds)
        for i in range(100):
            await c.a.create(f"/f{i}")
        c.faults.arm("target.connect_flags", "error", on=c.oss[0], keep=True)
        await c.fail_abort(c.mds)
        assert await c.a.listdir("/") == []
        await c.fail(c.mds)
        assert await c.a.listdir("/") == []
        await c.a.create("/f0")


@pytest.mark.lustre("RS 101")
async def test_objects_of_lost_files_are_not_handed_out_again(world: Any) -> None:
    """New files are empty.  Source: lustre/tests/replay-single.sh test_101"""
    async with world(oss=2, clients=1) as c:
        c.expect(*ABORT)
        await c.replay_barrier(c.mds)
        for i in range(100):
            await c.a.write(f"/f{i}", b"of a lost file")
        await c.fail_abort(c.mds)
        paths = [f"/f{i}" for i in range(100)]
        for path in paths:
            await c.a.create(path)
        assert await contents(c.a, paths) == [b""] * 100


@pytest.mark.lustre("SM 61")
async def test_a_new_object_id_is_beyond_those_that_were_lost(world: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_61"""
    async with world(oss=1, clients=1) as c:
        c.expect(*ABORT)
        await c.replay_barrier(c.mds)
        lost = []
        for i in range(10):
            await c.a.create(f"/f{i}")
            lost += (await c.a.fs.getstripe(f"/f{i}")).stripes
        await c.fail_abort(c.mds)
        await c.a.create("/new")
        assert (await c.a.fs.getstripe("/new")).stripes[0] > max(lost)


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("mds", marks=pytest.mark.lustre("SM 29a"), id="SM 29a"),
        pytest.param("oss", marks=pytest.mark.lustre("SM 29b"), id="SM 29b"),
    ],
)
async def test_a_client_gets_in_although_its_record_could_not_be_written_once(world: Any, where: str) -> None:
    """Source: lustre/tests/recovery-small.sh test_29a, test_29b"""
    async with world(oss=1, clients=1, caching=0) as c:
        c.expect(*ABORT)
        await c.a.write("/f", b"kept")
        server = c.mds if where == "mds" else c.oss[0]
        await server.commit()
        c.faults.arm("target.client_new", "error", on=server, keep=True, errno=errno.ENOSPC, peer=c.a.uuid)
        await c.fail_abort(server)
        assert await c.a.read("/f") == b"kept"
        await c.fail(server)
        assert await c.a.read("/f") == b"kept"


async def test_a_running_recovery_is_aborted_by_the_administrator(world: Any) -> None:
    """The client that is there is kept, if it is through; the one that never comes is not waited for.

    Source: chapter 30.2.5; lctl abort_recovery
    """
    async with world(clients=2) as c:
        c.expect(*ABORT)
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        await c.b.kill()
        await c.mds.kill()
        await c.mds.start()
        settled = soon(c.settle())
        await c.mds.abort_recovery()
        await settled
        c.saw("recovery.aborted")
        await c.a.create("/g")


async def test_a_client_whose_record_a_full_disk_refused_is_on_record_when_it_gets_in(world: Any) -> None:
    """A crash must not make a stranger of it."""
    async with world(clients=1) as c:
        store = c.mds.target().store
        apply, full = store.apply, [True]

        def refusing(writes: Any, **how: Any) -> None:
            if full and any(table == schema.CLIENTS for table, _ in writes):
                full.pop()
                raise OpError(errno.ENOSPC)
            apply(writes, **how)

        store.apply = refusing
        b = await c.add_client("b")
        assert not full
        await b.create("/f")
        await c.fail(c.mds)
        c.never_saw("import.evicted")
