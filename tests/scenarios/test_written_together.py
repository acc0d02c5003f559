"""Small objects that are written back together, many in one request (client/writeback.py, the message WriteMany)."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import mounts
from steps import EVICTION, refused, soon

from lustrelite.errors import OpError
from lustrelite.tunables import limits
from lustrelite.wire.locks import Enqueue
from lustrelite.wire.ost import Part, Write, WriteMany

COUNT = 100


@asynccontextmanager
async def dirty_files(cluster: Any, count: int = COUNT, size: int = 300, **topology: Any) -> Any:
    """(the cluster, mounts a and b, {path: content}): a has just written them, and nothing of that has left it."""
    async with cluster(caching=1, clients=2, oss=1, **topology) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        await a.write_file("/u/warm", b"w")  # a has a grant, and a lease
        await a.sync()
        c.before = writes(c)
        files = {f"/u/f{number}": f"{number} ".encode() * size for number in range(count)}
        for path, data in files.items():  # as a mount does it
            file = await a.open(path, os.O_CREAT | os.O_RDWR)
            await file.pwrite(data, 0)
            file.what.close_later()
        yield c, a, b, files
        await c.settle()
        for path, data in files.items():
            assert await b.content(path) == data
        await a.rmtree("/u")


async def rewritten(mount: Any, path: str, data: bytes) -> Any:
    """The file, open, and written once more: who has it open is told what becomes of it."""
    file = await mount.open(path, os.O_RDWR)
    await file.pwrite(data, 0)
    return file


async def object_of(mount: Any, path: str) -> int:
    file = await mount.open(path)
    ((_, obj),) = file.what.layout.stripes
    await file.close()
    return obj  # type: ignore[no-any-return]


def writes(c: Any) -> tuple[int, int]:
    """How many Write and WriteMany a has sent."""
    (imp,) = [imp for imp in c.a.imports if "OST" in imp.target]
    alone, many = getattr(c, "before", (0, 0))
    return imp.calls.get("Write", 0) - alone, imp.calls.get("WriteMany", 0) - many


def is_clean(c: Any) -> bool:
    return not c.a.fs.connections.lov.locked.shared.dirty


async def written_back(c: Any) -> None:
    await c.until(lambda: is_clean(c))


async def test_a_tree_is_written_back_with_few_requests(cluster: Any) -> None:
    async with dirty_files(cluster) as (c, _, _, _):
        await written_back(c)
        alone, many = writes(c)
        assert alone <= 1 and many <= 4


async def test_large_ones_go_by_themselves(cluster: Any) -> None:
    async with dirty_files(cluster, 4, 40_000) as (c, _, _, _):
        await written_back(c)
        assert writes(c) == (4, 0)


async def test_one_is_a_write_like_any_other(cluster: Any) -> None:
    async with dirty_files(cluster, 1) as (c, _, _, _):
        await written_back(c)
        assert writes(c) == (1, 0)


async def test_a_request_is_not_larger_than_may_be(cluster: Any) -> None:
    async with dirty_files(cluster, 60, 10_000) as (c, _, _, files):
        await written_back(c)
        alone, many = writes(c)
        total = sum(map(len, files.values()))
        assert alone + many >= total / c.a.fs.connections.lov.oscs[0].bytes_max and alone <= 1 < many


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("after", ["fail", "fail twice", "power_cut", "the reply is lost"])
async def test_it_is_under_way_when_the_ost_dies(cluster: Any, held: str, after: str) -> None:
    async with dirty_files(cluster) as (c, _, _, _):
        rule = c.net.hold(WriteMany, reply=held == "reply", times=1)
        await rule.caught()
        if after == "the reply is lost":
            rule.lift()
        elif after == "power_cut":
            c.oss[0].power_cut()
            await c.oss[0].start()
        else:
            for _ in range(2 if after == "fail twice" else 1):
                await c.fail(c.oss[0])
        rule.lift()
        await written_back(c)


@pytest.mark.parametrize("how", ["fail", "power_cut"])
async def test_what_was_answered_is_replayed(cluster: Any, how: str) -> None:
    """Once, though others have written to some of the files since."""
    async with dirty_files(cluster) as (c, a, _, files):
        c.expect("commit.waiting")
        c.oss[0].hold_commits()
        await written_back(c)
        before = writes(c)
        assert before[1]
        await a.write_at("/u/f7", 0, b"newer")
        files["/u/f7"] = b"newer" + files["/u/f7"][5:]
        await written_back(c)
        await a.unlink("/u/f8")
        del files["/u/f8"]
        if how == "fail":
            await c.fail(c.oss[0])
        else:
            c.oss[0].power_cut()
            await c.oss[0].start()
        await c.settle()
        assert writes(c)[1] == before[1]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_the_client_is_evicted(cluster: Any, when: str) -> None:
    """What is lost is said at fsync, of each file."""
    async with dirty_files(cluster, 20) as (c, a, _, files):
        c.expect(*EVICTION, "client.data_lost")
        opened = {path: await rewritten(a, path, data) for path, data in files.items()}
        rule = c.net.hold(WriteMany, to=c.oss[0], times=1)
        if when == "meanwhile":
            await rule.caught()
        await c.evict(c.a, c.oss[0])
        for file in opened.values():
            with refused(errno.EIO):
                await file.fsync()
        rule.lift()
        for path, file in opened.items():
            await file.pwrite(files[path], 0)
            await file.close()
        await c.settle()


async def test_somebody_wants_one_of_them(cluster: Any) -> None:
    """Its lock goes when it is written, with the others or without them."""
    async with dirty_files(cluster) as (c, _, b, files):
        rule = c.net.hold(WriteMany, times=1)
        await rule.caught()
        reading = [soon(b.content(path)) for path in list(files)[:5]]
        await asyncio.sleep(1)
        assert not any(task.done() for task in reading)
        rule.release()
        assert [await task for task in reading] == list(files.values())[:5]


async def test_an_fsync_waits_for_it(cluster: Any) -> None:
    async with dirty_files(cluster) as (c, a, _, _):
        file = await a.open("/u/f3", os.O_RDWR)
        rule = c.net.hold(WriteMany, times=1)
        await rule.caught()
        syncing = soon(file.fsync())
        await asyncio.sleep(1)
        assert not syncing.done()
        rule.release()
        await syncing
        c.oss[0].power_cut()
        await c.oss[0].start()
        await file.close()


@pytest.mark.parametrize("already", [False, True])
async def test_a_sync_of_everything_takes_few_requests_too(cluster: Any, already: bool) -> None:
    """Some of it may be on its way, and some large."""
    async with dirty_files(cluster) as (c, a, _, files):
        files["/u/large"] = bytes(range(256)) * 10_000
        await a.write_file("/u/large", files["/u/large"])
        rule = c.net.hold(WriteMany, times=1)
        if already:
            await rule.caught()
            await a.write_at("/u/f3", 0, b"again")
            files["/u/f3"] = b"again" + files["/u/f3"][5:]
        syncing = soon(a.sync())
        await asyncio.sleep(1)
        assert not syncing.done()
        rule.release()
        await syncing
        assert is_clean(c) and writes(c)[0] <= 8 and writes(c)[1] <= 4
        c.oss[0].power_cut()
        await c.oss[0].start()


async def test_the_locks_of_all_are_gone_before_they_are_sent(cluster: Any) -> None:
    """They were promised, and the OST hears of them when there are no objects any more."""
    async with dirty_files(cluster, 20) as (c, a, b, files):
        objects = [await object_of(a, path) for path in files]
        rule = c.net.hold(Enqueue, times=1, to=c.oss[0])
        await rule.caught()
        for path in files:
            await b.unlink(path)
        files.clear()
        target = c.oss[0].target()
        await c.until(lambda: not any(map(target.exists, objects)))
        rule.release()
        await written_back(c)
        c.never_saw("client.data_lost")


async def test_what_is_written_meanwhile_follows(cluster: Any) -> None:
    async with dirty_files(cluster) as (c, a, _, files):
        rule = c.net.hold(WriteMany, times=1)
        await rule.caught()
        for path in list(files)[:5]:
            await a.write_at(path, 0, b"second")
            files[path] = b"second" + files[path][6:]
        await asyncio.sleep(10)
        rule.release()


@pytest.mark.parametrize("how", ["its object is gone", "its disk is broken", "its range is in use", "its lock is gone"])
async def test_one_that_cannot_be_written_is_nobody_elses_trouble(cluster: Any, how: str) -> None:
    async with dirty_files(cluster, 20) as (c, a, b, files):
        file = await rewritten(a, "/u/f3", files["/u/f3"])
        ((_, obj),) = file.what.layout.stripes
        target = c.oss[0].target()
        rule = c.net.hold(WriteMany, to=c.oss[0], times=1)
        await rule.caught()
        write, hold = target.files.write, None
        lost = how in ("its disk is broken", "its lock is gone")
        if lost:
            c.expect("client.data_lost", "ost.io_error")

        def fails(oid: int, offset: int, data: Any) -> None:
            if oid == obj:
                raise OpError(errno.EIO)
            write(oid, offset, data)

        if how == "its object is gone":
            await b.unlink("/u/f3")
            await file.close()
            await c.until(lambda: not target.exists(obj))
            del files["/u/f3"]
        elif how == "its disk is broken":
            target.files.write = fails
        elif how == "its range is in use":
            hold = await target.ranges.hold(obj, 0, 1)
        else:
            (lock,) = file.what.fs.connections.lov.locked.caches[0].objects[obj].locks.values()
            export = next(export for uuid, export in target.exports.items() if uuid == c.a.uuid)
            target.namespace.cancel(export, (lock.handle,))
        rule.release()
        await asyncio.sleep(1)
        if hold is not None:
            assert not is_clean(c), "it waits"
            target.ranges.release(hold)
        await written_back(c)
        c.never_saw("client.evicted")
        if how != "its object is gone":
            if lost:
                with refused(errno.EIO):
                    await file.fsync()
                target.files.__dict__.pop("write", None)
                await file.pwrite(files["/u/f3"], 0)
            await file.fsync()
            await file.close()


async def test_a_full_disk_takes_what_was_promised(cluster: Any) -> None:
    async with dirty_files(cluster) as (c, _, _, _):
        c.oss[0].target().node.tunables.reserved_permille = 1000
        await written_back(c)
        assert writes(c)[1]


async def test_grants_are_counted_alike_on_both_sides(cluster: Any) -> None:
    async with dirty_files(cluster) as (c, _, _, _):
        rule = c.net.drop(WriteMany, reply=True, times=1)
        await rule.caught()
        await c.fail(c.oss[0])
        await written_back(c)
        target = c.oss[0].target()
        target.grants.check()
        held = {export.uuid: held for export, held in target.grants.held.items()}
        assert held[c.a.uuid] == c.a.fs.connections.lov.locked.caches[0].grant.total


async def test_the_ost_refuses_what_makes_no_sense(cluster: Any) -> None:
    async with dirty_files(cluster, 1) as (c, a, _, _):
        file = await a.open("/u/f0")
        ((_, obj),) = file.what.layout.stripes
        imp = next(imp for imp in c.a.imports if "OST" in imp.target)
        fid = file.what.fid
        for parts, size, number in (
            ((), 0, errno.EINVAL),
            ((Part(obj, 0, 5, fid, 0, 1, 12345),), 4, errno.EINVAL),
            ((Part(obj, 0, 5, fid, 0, 1, 12345),), 5, errno.ESTALE),
            ((Part(obj, 0, limits.brw_bytes_max + 1, fid, 0, 1, 12345),), 5, errno.EINVAL),
        ):
            with refused(number):
                await c.a.unrecorded(imp.call_bulk(WriteMany(parts, 0), bulk=bytes(size)))
        await file.close()


async def test_a_lock_does_not_expire_while_its_owner_writes_under_it(cluster: Any) -> None:
    async with dirty_files(cluster) as (c, _, b, files):
        fault = c.faults.arm("ost.write", "delay", on=c.oss[0], delay_s=2 * c.tunables.lock_callback_s, peer=c.a.uuid)
        await c.until(lambda: not fault.times)
        assert [await b.content(path) for path in list(files)[:3]] == list(files.values())[:3]
        c.never_saw("client.evicted")


async def test_the_queue_is_never_too_full_for_it(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who fill it wait for a lock under which it writes."""
    async with dirty_files(cluster) as (c, _, _, files):
        rule = c.net.hold(WriteMany, to=c.oss[0], times=1)
        await rule.caught()
        file = await c.a.unrecorded(c.a.fs.open("/u/f3"))
        ((_, obj),), fid = file.layout.stripes, file.fid
        monkeypatch.setattr(limits, "requests_per_service_max", 12)
        monkeypatch.setattr(limits, "requests_reserved_max", 4)
        imp = next(imp for imp in c.b.imports if "OST" in imp.target)
        others = [soon(c.b.unrecorded(imp.call_bulk(Write(obj, 0, fid, 0, 1), bulk=b"new"))) for _ in range(20)]
        await asyncio.sleep(0.5)
        rule.release()
        await asyncio.gather(*others)
        c.never_saw("client.evicted")
        files["/u/f3"] = b"new" + files["/u/f3"][3:]
        await c.a.unrecorded(file.close())
