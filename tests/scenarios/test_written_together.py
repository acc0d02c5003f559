"""What is little is written back together, many in one request (client/writeback.py, the message WriteMany)."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import drop_locks, mounts
from steps import EVICTION, refused, soon
from test_lost_grants import AWAY_S
from test_promised_locks import written_by_a

from lustrelite.errors import OpError
from lustrelite.tunables import limits
from lustrelite.wire.locks import Enqueue
from lustrelite.wire.ost import WRITE_MANY_MAX, Part, Write, WriteMany

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


@asynccontextmanager
async def scattered_in_one(cluster: Any, count: int = 200, **topology: Any) -> Any:
    """(the cluster, mounts a and b, the file as a has it open, its content): a has written it here and there."""
    async with cluster(caching=1, clients=2, oss=1, **topology) as c:
        a, b = mounts(c)
        rng = random.Random(5)
        content = bytearray(os.urandom(1 << 20) * 4)
        await a.mkdir("/u")
        await a.write_file("/u/s", bytes(content))
        await a.sync()
        file = await a.open("/u/s", os.O_RDWR)
        c.before = writes(c)
        for place in rng.sample(range(len(content) >> 12), count):
            data = rng.randbytes(rng.choice((1, 100, 4096)))
            await file.pwrite(data, place << 12)
            content[place << 12 : (place << 12) + len(data)] = data
        yield c, a, b, file, content
        await file.close()
        await c.settle()
        assert await b.content("/u/s") == bytes(content)
        await a.rmtree("/u")


async def test_a_file_that_was_written_here_and_there_takes_few_requests(cluster: Any) -> None:
    async with scattered_in_one(cluster) as (c, _, _, file, _):
        await file.fsync()
        alone, many = writes(c)
        assert alone <= 1 and alone + many == -(-200 // WRITE_MANY_MAX)


async def test_it_is_read_elsewhere(cluster: Any) -> None:
    """Whoever asks for the lock waits until all of it is there."""
    async with scattered_in_one(cluster) as (_, _, b, _, content):
        assert await b.content("/u/s") == bytes(content)


@pytest.mark.parametrize("held", ["request", "reply"])
@pytest.mark.parametrize("after", ["fail", "power_cut", "the reply is lost"])
async def test_it_is_written_again_while_the_ost_dies(cluster: Any, held: str, after: str) -> None:
    async with scattered_in_one(cluster) as (c, _, _, file, content):
        rule = c.net.hold(WriteMany, reply=held == "reply", times=1)
        syncing = soon(file.fsync())
        await rule.caught()
        for place in range(0, len(content), 5 << 12):
            await file.pwrite(b"anew", place)
            content[place : place + 4] = b"anew"
        if after == "the reply is lost":
            rule.lift()
        else:
            if after == "fail":
                await c.fail(c.oss[0])
            else:
                c.oss[0].power_cut()
                await c.oss[0].start()
            rule.lift()
        await syncing


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

        def fails(oid: int, offset: int, data: Any, **how: Any) -> None:
            if oid == obj:
                raise OpError(errno.EIO)
            write(oid, offset, data, **how)

        if how == "its object is gone":
            await b.unlink("/u/f3")
            await file.close()
            await c.until(lambda: not target.exists(obj))
            del files["/u/f3"]
        elif how == "its disk is broken":
            target.files.write = fails
        elif how == "its range is in use":
            hold = await target.ranges.hold(obj, (0, 1))
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


# what a review found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
async def test_a_promise_is_broken_while_its_data_waits_with_others(cluster: Any, count: int) -> None:
    """As test_who_was_cut_off_writes_over_nobody (test_promised_locks.py), but the data is on its way already."""
    async with written_by_a(cluster, count, oss=1) as (c, _, b, files):
        c.expect(*EVICTION, "client.data_lost", "lock.flush_failed", "lock.expired", "request.timed_out")
        await c.mds.commit()
        c.net.cut(c.a, [c.mds, c.oss[0]])
        (data,) = c.a.fs.connections.lov.locked.caches.values()
        data.writeback.write_back_soon()
        path, file = f"/u/f{count - 1}", files[-1]
        await b.write_at(path, 0, b"what b has written much later, when a was cut off")
        expected = await b.content(path)
        await drop_locks(c, c.b, kind="OST")
        c.net.heal()
        c.net.cut(c.a, c.mds)
        await asyncio.sleep(30)
        c.net.heal()
        await asyncio.sleep(20)
        with refused(errno.EIO):
            await file.fsync()
        assert await b.content(path) == expected


@pytest.mark.parametrize("order", [1, -1])
async def test_lost_objects_are_made_again_whatever_their_order(cluster: Any, order: int) -> None:
    """The OST has lost them, and is up before the MDT. What it knows of them is what was replayed."""
    async with cluster(oss=1, clients=2, caching=1) as c:
        a, b = mounts(c)
        c.expect(*EVICTION)  # of the MDT, which is away
        await a.mkdir("/u")
        await a.write_file("/u/warm", b"w")
        await a.sync()
        await c.mds.commit()
        await c.replay_barrier(c.oss[0])
        durable = c.oss[0].target().last_id
        paths = [f"/u/f{number}" for number in range(12)]
        opened = [await a.open(path, os.O_CREAT | os.O_RDWR) for path in paths]
        for file in opened[::order]:
            await file.pwrite(b"data", 0)
        objects = [file.what.layout.stripes[0][1] for file in opened]
        assert objects[-2] > durable
        for file in opened:
            file.what.close_later()
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        await asyncio.sleep(2)
        await c.mds.commit()
        before = [await a.stat(path) for path in paths]
        await c.mds.kill()
        c.oss[0].power_cut()
        await c.oss[0].start()
        await asyncio.sleep(AWAY_S)
        await c.mds.start()
        await c.settle()
        await drop_locks(c, c.a, kind="OST")
        for path, obj, old in zip(paths, objects, before, strict=True):
            assert await b.content(path) == b"data" and (await b.stat(path)).mtime == old.mtime
            assert c.oss[0].target().record(obj).owner == old.fid
        await a.rmtree("/u")


@pytest.mark.parametrize("heard", [False, True])
async def test_one_is_lost_and_the_mdt_is_away(cluster: Any, heard: bool) -> None:
    """The others are there, and who wants one of them does not wait for the MDT."""
    async with cluster(oss=1, clients=2, caching=1, write_back_after_s=1000.0) as c:
        a, b = mounts(c)
        c.expect(*EVICTION)  # of the MDT
        await a.mkdir("/u")
        await a.write_file("/u/warm", b"w")
        old = [f"/u/old{number}" for number in range(5)]
        for path in old:
            await a.write_file(path, b"old")
        await a.sync()
        await c.mds.commit()
        await c.oss[0].commit()
        looking = [await b.open(path) for path in old]
        writing = [await a.open(path, os.O_RDWR) for path in old]
        await c.replay_barrier(c.oss[0])
        durable = c.oss[0].target().last_id
        new = [await a.open(f"/u/f{number}", os.O_CREAT | os.O_RDWR) for number in range(12)]
        lost = next(file for file in reversed(new) if file.what.layout.stripes[0][1] > durable)
        for file in (*writing, lost):
            await file.pwrite(b"newer", 0)
        (data,) = c.a.fs.connections.lov.locked.caches.values()
        if heard:
            ((_, obj),) = lost.what.layout.stripes
            (lock,) = data.objects[obj].locks.values()
            await data.osc.redeem(lock.handle)
        await c.mds.commit()
        await c.mds.kill()
        c.oss[0].power_cut()
        await c.oss[0].start()
        await c.until(lambda: not c.oss[0].target().recovering)
        data.writeback.write_back_soon()
        await asyncio.sleep(5)
        for file in looking:
            async with asyncio.timeout(5):
                assert await file.pread(10, 0) == b"newer"
        c.never_saw("client.evicted", client=c.a.uuid)
        await c.mds.start()
        await c.settle()
        assert await b.content("/u/f" + str(new.index(lost))) == b"newer"
        for file in (*looking, *writing, *new):
            await file.close()
        await a.rmtree("/u")


async def test_after_a_refusal_none_waits_for_another(cluster: Any) -> None:
    """One cannot be written for long. Another is wanted by somebody, and of a third there is an fsync."""
    async with dirty_files(cluster, 20) as (c, a, b, files):
        file = await a.open("/u/f1", os.O_RDWR)
        rule = c.net.hold(WriteMany, to=c.oss[0], times=1)
        await rule.caught()
        ranges = c.oss[0].target().ranges
        hold = await ranges.hold(await object_of(a, "/u/f3"), (0, 1))
        reading, syncing = soon(b.content("/u/f10")), soon(file.fsync())
        await asyncio.sleep(0.5)
        rule.release()
        async with asyncio.timeout(2):
            assert await reading == files["/u/f10"]
            await syncing
        assert not is_clean(c)
        await asyncio.sleep(3 * c.tunables.lock_callback_s)
        ranges.release(hold)
        await file.close()
        c.never_saw("client.evicted")


async def test_after_a_refusal_messages_are_lost(cluster: Any) -> None:
    """Each is sent again in time, and somebody waits for the last one."""
    async with dirty_files(cluster, 20) as (c, a, b, files):
        c.expect("request.timed_out")
        target, obj = c.oss[0].target(), await object_of(a, "/u/f19")
        rule = c.net.hold(WriteMany, to=c.oss[0], times=1)
        await rule.caught()
        await b.unlink("/u/f19")
        del files["/u/f19"]
        await c.until(lambda: not target.exists(obj))
        reading = soon(b.content("/u/f18"))
        await asyncio.sleep(0.5)
        for skip in range(3):
            c.net.drop(Write, to=c.oss[0], times=1, skip=skip)
        rule.release()
        await written_back(c)
        assert await reading == files["/u/f18"]
        c.never_saw("client.evicted")


@pytest.mark.parametrize("number", range(12))
async def test_random_work_on_many_files_while_messages_are_lost_and_the_ost_dies(cluster: Any, number: int) -> None:
    rng = random.Random(number)
    async with cluster(caching=1, clients=2, oss=1, sync_lock_cancel=rng.choice(("blocking", "always"))) as c:
        a, b = mounts(c)
        c.expect("request.timed_out", "bulk.corrupt", "client.evicted")  # the OST by the MGS, when it was dead for long
        await a.mkdir("/u")
        await a.write_file("/u/warm", b"w")
        await a.sync()
        files: dict[str, bytes] = {}
        for place in range(60):
            path, data = f"/u/f{place}", rng.randbytes(rng.choice((1, 4096, 20_000)))
            file = await a.open(path, os.O_CREAT | os.O_RDWR)
            await file.pwrite(data, 0)
            file.what.close_later()
            files[path] = data
        for _ in range(25):
            await _disturb(c, rng)
            for path in rng.sample(sorted(files), min(len(files), rng.randrange(30))):
                await _work(rng, a, b, files, path)
            await asyncio.sleep(rng.choice((0, 0.5, 3)))
            if rng.random() < 0.2:
                await a.sync()
                c.oss[0].power_cut()
                await c.oss[0].start()
        c.net.rules.clear()
        await c.settle()
        for mount in (a, b):
            await mount.sync()
        grants = c.oss[0].target().grants
        grants.check()
        held = {export.uuid: held for export, held in grants.held.items()}
        for client in (c.a, c.b):
            assert held.get(client.uuid, 0) == client.fs.connections.lov.locked.caches[0].grant.total
        for mount in (b, a):
            for path, data in files.items():
                assert await mount.content(path) == data
            await drop_locks(c, c.a, kind="OST")
        c.never_saw("client.evicted", target="lustre-OST0000")
        c.never_saw("client.data_lost")
        await a.rmtree("/u")


async def _disturb(c: Any, rng: random.Random) -> None:
    c.net.rules.clear()
    kind = rng.choice(("drop", "reply", "double", "corrupt", "slow", "die", "die"))
    if kind in ("drop", "reply"):
        c.net.drop(WriteMany, reply=kind == "reply", times=1)
    elif kind == "double":
        c.net.double(WriteMany, times=2, delay_s=rng.choice((0.0, 0.5, 3.0)))
    elif kind == "corrupt":
        c.net.corrupt(WriteMany, times=1)
    elif kind == "slow":
        c.net.slow(WriteMany, reply=rng.random() < 0.5, times=2, delay_s=rng.choice((0.1, 2.0)))
    elif rng.random() < 0.5:
        if rng.random() < 0.5:
            c.oss[0].power_cut()
        else:
            await c.oss[0].kill()
        await asyncio.sleep(rng.random())
        await c.oss[0].start()


async def _work(rng: random.Random, a: Any, b: Any, files: dict[str, bytes], path: str) -> None:
    old = files[path]
    what = rng.choice(("write", "write", "write", "cut", "unlink", "look", "other", "append"))
    if what == "write":
        data, offset = rng.randbytes(rng.choice((1, 5000))), rng.choice((0, 100, 8192))
        await a.write_at(path, offset, data)
        old = old.ljust(offset, b"\0")
        files[path] = old[:offset] + data + old[offset + len(data) :]
    elif what == "cut":
        size = rng.randrange(6000)
        await a.truncate(path, size)
        files[path] = old[:size].ljust(size, b"\0")
    elif what == "unlink" and len(files) > 20:
        await rng.choice((a, b)).unlink(path)
        del files[path]
    elif what == "look":
        assert await b.content(path) == old
    elif what == "other":
        await b.write_at(path, 0, b"B")
        files[path] = b"B" + old[1:]
    elif what == "append":
        await a.write_at(path, 0, b"xyz", os.O_WRONLY | os.O_APPEND)
        files[path] = old + b"xyz"
