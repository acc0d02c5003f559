"""Small files of a directory are read with each other, many in one request (client/files_ahead.py)."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import Mount, drop_locks, mounts
from steps import EVICTION, refused, soon

from lustrelite.client.known import Known
from lustrelite.errors import OpError
from lustrelite.tunables import limits
from lustrelite.wire.ost import Read, ReadMany, Write

COUNT = 60


@asynccontextmanager
async def written_by_a(cluster: Any, count: int = COUNT, size: int = 300, **topology: Any) -> Any:
    """(the cluster, mounts a and b, {path: content}): b has listed the files, and nothing of their data is anywhere cached."""
    async with cluster(caching=1, clients=2, **topology) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        files = {f"/u/f{number}": f"{number} ".encode() * size for number in range(count)}
        for path, data in files.items():
            await a.write_file(path, data)
        await drop_locks(c, c.a)
        await listed(b)
        yield c, a, b, files
        await c.settle()
        await a.rmtree("/u")


async def listed(mount: Mount) -> list[str]:
    """The names in the order of the listing; with them come attributes and locks."""

    async def walk() -> list[str]:
        return [f"/u/{os.fsdecode(entry.name)}" async for entry in mount.client.fs.scandir("/u")]

    found: list[str] = await mount.client.unrecorded(walk())
    return found


def reads(c: Any) -> tuple[int, int]:
    """How many Read and ReadMany b has sent."""
    osts = [imp for imp in c.b.imports if "OST" in imp.target]
    return tuple(sum(imp.calls.get(name, 0) for imp in osts) for name in ("Read", "ReadMany"))  # type: ignore[return-value]


@pytest.mark.parametrize("order", ["of the listing", "any"])
async def test_a_directory_is_read_with_few_requests(cluster: Any, order: str) -> None:
    async with written_by_a(cluster) as (c, _, b, files):
        paths = await listed(b)
        if order == "any":
            random.Random(c.seed).shuffle(paths)
        for path in paths:
            assert await b.content(path) == files[path]
        alone, many = reads(c)
        assert alone <= (6 if order == "of the listing" else 12) and many <= 2 * alone


async def test_the_next_directory_begins_where_this_one_ended(cluster: Any) -> None:
    async with written_by_a(cluster, 20, oss=1) as (c, a, b, files):
        await a.mkdir("/u/next")
        for number in range(20):
            await a.write_file(f"/u/next/f{number}", b"next")
        await drop_locks(c, c.a)
        for path in await listed(b):
            if path in files:
                await b.content(path)
        before = reads(c)[0]
        assert [entry.name async for entry in b.client.fs.scandir("/u/next")]
        for number in range(20):
            assert await b.content(f"/u/next/f{number}") == b"next"
        assert reads(c)[0] - before <= 2


async def test_who_reads_a_few_reads_nothing_else(cluster: Any) -> None:
    async with written_by_a(cluster) as (c, _, b, files):
        for path in list(files)[:2]:
            assert await b.content(path) == files[path]
        assert reads(c) == (2, 0)


async def test_large_files_are_read_by_themselves(cluster: Any) -> None:
    async with written_by_a(cluster, 10, 40_000) as (c, _, b, files):
        for path, data in files.items():
            assert await b.content(path) == data
        assert reads(c)[1] == 0


@pytest.mark.parametrize("parameter", ["statahead_max", "max_read_ahead_bytes"])
async def test_it_can_be_switched_off(cluster: Any, parameter: str) -> None:
    world = cluster(caching=1, clients=2)
    world.clients["b"].tunables[parameter] = 0
    async with world as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        for number in range(20):
            await a.write_file(f"/u/f{number}", b"data")
        await drop_locks(c, c.a)
        for path in await listed(b):
            assert await b.content(path) == b"data"
        assert reads(c) == (20, 0)
        await a.rmtree("/u")


async def test_what_was_read_along_is_dropped_when_somebody_writes(cluster: Any) -> None:
    async with written_by_a(cluster) as (c, a, b, _):
        paths = await listed(b)
        for path in paths[:5]:
            await b.content(path)
        assert reads(c)[1]
        for path in paths:
            await a.write_at(path, 0, b"new", os.O_WRONLY | os.O_TRUNC)
        for path in paths:
            assert await b.content(path) == b"new"


@pytest.mark.parametrize("held", ["request", "reply"])
async def test_somebody_writes_while_it_is_under_way(cluster: Any, held: str) -> None:
    """The lock goes, and what comes under it counts no more."""
    async with written_by_a(cluster, oss=1) as (c, a, b, _):
        paths = await listed(b)
        rule = c.net.hold(ReadMany, reply=held == "reply")
        for path in paths[:3]:
            await b.content(path)
        await rule.caught()
        for path in paths:
            await a.write_at(path, 0, b"new", os.O_WRONLY | os.O_TRUNC)
        reading = [soon(b.content(path)) for path in paths[3:]]
        await asyncio.sleep(1)
        rule.release()
        assert [await each for each in reading] == [b"new"] * len(reading)
        assert await b.content(paths[0]) == b"new"


async def test_who_wants_what_is_under_way_waits_for_it(cluster: Any) -> None:
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        paths = await listed(b)
        rule = c.net.hold(ReadMany, times=1)
        for path in paths[:3]:
            await b.content(path)
        await rule.caught()
        before = reads(c)[0]
        reading = soon(b.content(paths[3]))
        await asyncio.sleep(1)
        assert not reading.done()
        rule.release()
        assert await reading == files[paths[3]] and reads(c)[0] == before


@pytest.mark.parametrize("how", ["the OST dies", "the client is evicted"])
async def test_it_is_under_way_when(cluster: Any, how: str) -> None:
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        paths = await listed(b)
        rule = c.net.hold(ReadMany, to=c.oss[0], times=1)
        for path in paths[:3]:
            await b.content(path)
        await rule.caught()
        reading = soon(b.content(paths[3]))
        if how == "the OST dies":
            await c.fail(c.oss[0])
        else:
            c.expect(*EVICTION)
            await c.evict(c.b, c.oss[0])
            with refused(errno.EIO):
                await reading
        rule.lift()
        if how == "the OST dies":
            assert await reading == files[paths[3]]
        for path in paths:
            assert await b.content(path) == files[path]


async def test_one_that_cannot_be_read_is_nobody_elses_trouble(cluster: Any) -> None:
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        paths = await listed(b)
        c.expect("ost.io_error")
        bad = (await b.open(paths[4])).what
        ((_, obj),) = bad.layout.stripes
        target = c.oss[0].target()
        read_into = target.files.read_into

        def fails(oid: int, offset: int, buffer: Any) -> int:
            if oid == obj:
                raise OpError(errno.EIO)
            return read_into(oid, offset, buffer)

        target.files.read_into = fails
        for path in paths:
            if path == paths[4]:
                with refused(errno.EIO):
                    await b.content(path)
            else:
                assert await b.content(path) == files[path]
        del target.files.read_into
        assert reads(c)[1]
        assert await b.content(paths[4]) == files[paths[4]]
        await bad.close()


async def test_what_is_being_written_is_left_out(cluster: Any) -> None:
    """The OST answers for the others, and does not wait; who waits for that one reads it by himself."""
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        paths = await listed(b)
        file = await b.open(paths[4])
        ((_, obj),) = file.what.layout.stripes
        await file.close()
        ranges = c.oss[0].target().ranges
        hold = await ranges.hold(obj, (0, 10))
        rule = c.net.hold(ReadMany, times=1)
        for path in paths[:3]:
            assert await b.content(path) == files[path]
        await rule.caught()
        readings = [soon(b.content(path)) for path in paths[3:5]]
        await asyncio.sleep(1)
        rule.release()
        assert await readings[0] == files[paths[3]]
        await asyncio.sleep(1)
        assert not readings[1].done()
        ranges.release(hold)
        assert await readings[1] == files[paths[4]]
        for path in paths:
            assert await b.content(path) == files[path]


async def test_the_ost_refuses_too_much(cluster: Any) -> None:
    async with written_by_a(cluster, 1, oss=1) as (c, _, _, _):
        imp = next(imp for imp in c.b.imports if "OST" in imp.target)
        for rows in (((1, 1, 1),) * 65, ((1, 1 << 30, 1),), ((1, 0, 1),), ((1, -5, 1), (1, 5, 1))):
            with refused(errno.EINVAL):
                await c.b.unrecorded(imp.call_bulk(ReadMany(rows), sink=memoryview(bytearray(100))))
        reply, _ = await c.b.unrecorded(imp.call_bulk(ReadMany(((1, 10, 12345),)), sink=memoryview(bytearray(10))))
        assert reply.rows == ((-1, 0),)


# what a review found ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [True, False])
async def test_a_lock_does_not_expire_while_its_owner_reads_along_under_it(cluster: Any, many: bool) -> None:
    async with written_by_a(cluster, oss=1) as (c, a, b, files):
        paths = await listed(b)
        for path in paths[: 2 if many else 0]:
            assert await b.content(path) == files[path]
        delay_s = 2 * c.tunables.lock_callback_s
        if many:
            held = c.net.hold(ReadMany, times=1)
            assert await b.content(paths[2]) == files[paths[2]]
            await held.caught()
            fault = c.faults.arm("ost.read", "delay", on=c.oss[0], delay_s=delay_s, peer=c.b.uuid)
            held.release()
            await c.until(lambda: not fault.times)
        else:
            c.faults.arm("ost.read", "delay", on=c.oss[0], delay_s=delay_s, peer=c.b.uuid)
        reading = soon(b.content(paths[3]))
        await asyncio.sleep(0.5)
        assert not reading.done()
        await a.write_at(paths[3], 0, b"new")
        await reading
        c.never_saw("client.evicted")


@pytest.mark.parametrize("many", [True, False])
async def test_the_queue_is_never_too_full_for_it(cluster: Any, monkeypatch: Any, many: bool) -> None:
    """Those who fill it wait for a lock under which it reads."""
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        paths = await listed(b)
        file = await b.open(paths[3])
        ((_, obj),) = file.what.layout.stripes
        rule = c.net.hold(ReadMany if many else Read, to=c.oss[0], times=1)
        for path in paths[: 3 if many else 0]:
            assert await b.content(path) == files[path]
        reading = soon(file.pread(10_000, 0))
        await rule.caught()
        await asyncio.sleep(0.1)
        monkeypatch.setattr(limits, "requests_per_service_max", 12)
        monkeypatch.setattr(limits, "requests_reserved_max", 4)
        imp = next(imp for imp in c.a.imports if "OST" in imp.target)
        fid = file.what.fid
        writes = [soon(c.a.unrecorded(imp.call_bulk(Write(obj, 0, fid, 0, 1), bulk=b"new"))) for _ in range(20)]
        await asyncio.sleep(0.5)
        rule.release()
        await asyncio.gather(*writes)
        await reading
        c.never_saw("client.evicted")
        await file.close()


@pytest.mark.parametrize("slots", [1, 2])
async def test_a_read_does_not_wait_for_what_is_read_along(cluster: Any, slots: int) -> None:
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        c.b.node.tunables.max_rpcs_in_flight = slots
        paths = await listed(b)
        rule = c.net.hold(ReadMany)
        for path in (*paths[:3], *reversed(paths)):
            if slots == 1 or path not in paths[3:6]:
                assert await b.content(path) == files[path]
        rule.release()


async def test_who_waits_for_one_that_is_given_up_reads_it_himself(cluster: Any) -> None:
    async with written_by_a(cluster, oss=1) as (c, _, b, files):
        path = (await listed(b))[0]
        file = await b.open(path)
        ((index, obj),) = file.what.layout.stripes
        locked = c.b.fs.connections.lov.locked

        async def give_up() -> None:
            data = locked.caches[index]
            tasks = data.shared.tasks
            before = dict(tasks._running)
            data.read_many({obj: data.whole_to_read(obj, 1 << 20)}, (0, 0))
            (task,) = tasks._running.keys() - before
            task.cancel()

        await c.b.unrecorded(give_up())
        assert await file.pread(100_000, 0) == files[path]
        assert locked.shared.ahead == 0
        await file.close()


async def test_no_more_is_read_along_than_may_be(cluster: Any) -> None:
    async with written_by_a(cluster) as (c, _, b, files):
        c.b.node.tunables.max_read_ahead_bytes = 4000
        shared = c.b.fs.connections.lov.locked.shared
        paths = await listed(b)
        for path in paths[:2]:
            await b.content(path)
        readings = [soon(b.content(path)) for path in paths[2:30:3]]
        most = 0
        while not all(reading.done() for reading in readings):
            most = max(most, shared.ahead)
            await asyncio.sleep(0.0001)
        assert [await reading for reading in readings] == [files[path] for path in paths[2:30:3]]
        assert 0 < most <= 4000 and shared.ahead == 0


async def test_a_large_directory_is_not_kept(cluster: Any) -> None:
    """What is remembered of it are numbers, and not all of them."""
    async with written_by_a(cluster) as (c, _, b, _):
        for path in (await listed(b))[:5]:
            await b.content(path)
        await drop_locks(c, c.b)
        gc.collect()
        assert len(c.b.fs.connections.names.files) <= 2
        mine = c.b.fs.connections.names
        strays = [each for each in gc.get_objects() if type(each) is Known and each.attr is not None and each.locks]
        assert all(each.fid in mine.files or each.fid in c.a.fs.connections.names.files for each in strays)
        ahead = c.b.fs.connections.files_ahead
        assert not any(type(each) is Known for walk in ahead._walks.values() for each in walk.rest)
