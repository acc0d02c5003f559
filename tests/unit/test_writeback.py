"""The client's data cache over OSTs in memory: what is read and written when, what a revoke, a crash and a full disk do."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from caching_world import CUT_XID, CachingWorld
from file_model import FileModel
from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.client import striping
from lustrelite.client.file import File
from lustrelite.client.page_cache import PAGE_BYTES
from lustrelite.errors import OpError
from lustrelite.tunables import limits
from lustrelite.wire import ost
from lustrelite.wire.ldlm import DISCARD_DATA, PR, PW, Lvb
from lustrelite.wire.mdt import StripeHint

pytestmark = pytest.mark.simulated

RW = os.O_RDWR | os.O_CREAT
MIB = 1 << 20


async def opened(world: CachingWorld, flags: int = RW, path: str = "/f", stripes: int = 0) -> File:
    return await world.fs.open(path, flags, 0o644, StripeHint(stripes, 0, -1) if stripes else None)


async def fails(number: int, awaitable: Any) -> None:
    with pytest.raises(OpError) as caught:
        await awaitable
    assert caught.value.errno == number, caught.value


# ---------------------------------------------------------------------------------------------------- as a bytearray

OFFSET = st.integers(0, 60)
MODES = st.sampled_from(
    [0, ost.FALLOC_KEEP_SIZE, ost.FALLOC_PUNCH_HOLE | ost.FALLOC_KEEP_SIZE, ost.FALLOC_ZERO_RANGE,
     ost.FALLOC_ZERO_RANGE | ost.FALLOC_KEEP_SIZE]
)  # fmt: skip
OPERATION = st.one_of(
    st.tuples(st.sampled_from(["write", "through", "append"]), OFFSET, st.binary(max_size=40)),
    st.tuples(st.sampled_from(["read", "direct"]), OFFSET, st.integers(0, 80)),
    st.tuples(st.just("truncate"), OFFSET, st.none()),
    st.tuples(st.just("fallocate"), OFFSET, st.tuples(MODES, st.integers(1, 40))),
    st.tuples(st.just("find"), OFFSET, st.booleans()),
    st.tuples(st.sampled_from(["revoke", "fsync", "back", "stat"]), st.none(), st.none()),
)


@settings(max_examples=120, deadline=None)
@given(
    operations=st.lists(OPERATION, max_size=16),
    stripe_size=st.integers(1, 9),
    count=st.integers(1, 4),
    osts=st.integers(1, 3),
    bytes_max=st.sampled_from([3, 12, 1000]),
    read_max=st.sampled_from([3, 1000]),
    seed=st.integers(0, 3),
    grow=st.booleans(),
    tell=st.booleans(),
    grant=st.sampled_from([0, 1, 3, 8 << 20]),
    lease=st.sampled_from([True, True, True, False]),
    past=st.sampled_from([1, 20, 1 << 20]),
)
def test_a_cached_file_behaves_like_a_bytearray(
    operations: list[tuple[str, int, Any]], stripe_size: int, count: int, osts: int, bytes_max: int, read_max: int,
    seed: int, grow: bool, tell: bool, grant: int, lease: bool, past: int,
) -> None:  # fmt: skip
    """Whatever the striping, the locks, the grant, the size of an RPC, and the order in which OSTs execute.

    RPCs consist of whole blocks: here of a byte.
    """

    async def run() -> None:
        async with CachingWorld(osts, stripe_size=stripe_size, bytes_max=bytes_max, seed=seed, grant=grant) as world:
            world.node.tunables.read_past_cache_bytes = past
            for server in world.osts:
                server.read_max, server.gives = read_max, grant or 1 << 40
                server.locks.grow, server.locks.tell, server.locks.lease_valid = grow, tell, lease
            file = await opened(world, stripes=count)
            through = await opened(world, os.O_RDWR | os.O_DSYNC)
            direct = await opened(world, os.O_RDWR | os.O_DIRECT)
            append = await opened(world, os.O_WRONLY | os.O_APPEND)
            model = FileModel()
            for kind, offset, argument in operations:
                if kind in ("write", "through", "append"):
                    offset = len(model) if kind == "append" else offset
                    await {"write": file, "through": through, "append": append}[kind].pwrite(argument, offset)
                    model.write(offset, argument)
                elif kind in ("read", "direct"):
                    handle = file if kind == "read" else direct
                    assert await handle.pread(argument, offset) == model[offset : offset + argument]
                elif kind == "truncate":
                    await file.truncate(offset)
                    model.truncate(offset)
                elif kind == "fallocate":
                    mode, length = argument
                    await file.fallocate(mode, offset, length)
                    model.fallocate(mode, offset, offset + length)
                elif kind == "find":
                    expected = model.find(offset, data=argument)
                    seeking = file.find(offset, os.SEEK_DATA if argument else os.SEEK_HOLE)
                    if expected < 0:
                        await fails(errno.ENXIO, seeking)
                    else:
                        assert await seeking == expected
                elif kind == "revoke":
                    for server in world.osts:
                        await server.locks.revoke()
                elif kind == "fsync":
                    await file.fsync()
                elif kind == "back":
                    for index in range(osts):
                        world.data(index).writeback.write_back_soon()
                else:
                    assert (await file.fstat()).size == len(model)
            assert await file.pread(200, 0) == model
            for server in world.osts:
                server.locks.lease_valid = True
                await server.locks.revoke()
            assert await direct.pread(200, 0) == model, "and so it is on the OSTs"
            for handle in (file, through, direct, append):
                await handle.close()

    with mock.patch.object(ost, "GRANT_BLOCK_BYTES", 1):
        asyncio.run(run())


@pytest.mark.parametrize("seed", range(40))
async def test_tasks_on_one_file_see_whole_blocks_and_their_own_last_write(seed: int) -> None:
    """Several tasks read, write, revoke and flush at once; each block is written by one task only.

    A block lies on one object: a write over several of them is atomic to other clients, not to other tasks here.
    """
    rng = random.Random(seed)
    block, tasks_count = 4096, 4
    async with CachingWorld(
        2, stripe_size=1 << 14, bytes_max=rng.choice((4096, 1 << 16)), seed=seed, grant=rng.choice((0, 1 << 16, 1 << 20))
    ) as world:
        world.node.tunables.max_cached_bytes = rng.choice((4 * PAGE_BYTES, 1 << 20))
        world.node.tunables.max_dirty_bytes = rng.choice((1 << 15, 1 << 18))
        world.node.tunables.read_past_cache_bytes = rng.choice((1, 3 * block, 1 << 20))
        file = await opened(world, stripes=2)
        last: dict[int, int] = {}
        done = False

        async def work(number: int) -> None:
            for step in range(40):
                place = number + tasks_count * rng.randrange(6)
                if rng.random() < 0.5:
                    value = 1 + (step + 40 * number) % 250
                    await file.pwrite(bytes([value]) * block, place * block)
                    last[place] = value
                else:
                    data = await file.pread(block, place * block)
                    if place in last:
                        assert data == bytes([last[place]]) * block, "what it wrote itself"
                    other = rng.randrange(6 * tasks_count)
                    data = await file.pread(block, other * block)
                    assert len(set(data)) <= 1, "a block as a whole"

        async def disturb() -> None:
            while not done:
                kind = rng.randrange(4)
                server = rng.choice(world.osts)
                if kind == 0:
                    await server.locks.revoke()
                elif kind == 1:
                    await file.fsync()
                elif kind == 2:
                    world.data(rng.randrange(2)).writeback.write_back_soon()
                for _ in range(rng.randrange(20)):
                    await asyncio.sleep(0)

        disturber = asyncio.create_task(disturb())
        await asyncio.gather(*(work(number) for number in range(tasks_count)))
        done = True
        await disturber
        for place, value in last.items():
            assert await file.pread(block, place * block) == bytes([value]) * block
        await file.close()


@pytest.mark.parametrize("seed", range(40))
async def test_what_is_written_back_takes_no_more_than_was_reserved_for_it(seed: int) -> None:
    """However dirty data grows, shrinks and is asked for while it is on its way, and however little of a block that is.

    The OST here knows no leeway: what is not within the grant may find no room on a full disk, and would be lost.
    """
    rng = random.Random(seed)
    grant = rng.choice((1, 2, 3, 10)) * 4096
    async with CachingWorld(1, bytes_max=rng.choice((4096, 3 * 4096, 1 << 20)), seed=seed, grant=grant) as world:
        server = world.osts[0]
        server.gives, server.locks.grow = rng.choice((0, 4096)), rng.random() < 0.5
        file, direct = await opened(world), await opened(world, os.O_RDWR | os.O_DIRECT)
        done = False

        async def work() -> None:
            for _ in range(150):
                if rng.random() < 0.8:
                    start = rng.randrange(3) * 4096 + rng.randrange(-300, 300)
                    await file.pwrite(rng.randbytes(rng.choice((1, 50, 200, 1000))), max(start, 0))
                else:
                    await asyncio.sleep(0)
                assert world.data().grant.available >= 0

        async def disturb() -> None:
            while not done:
                kind = rng.randrange(6)
                if kind == 0:
                    await server.locks.revoke()
                elif kind == 1:
                    await file.fsync()
                elif kind == 2:
                    await direct.pread(rng.randrange(1, 300), rng.randrange(9000))
                elif kind == 3 and rng.random() < 0.3:
                    await file.truncate(rng.randrange(10_000))
                elif kind == 4:
                    await file.fallocate(ost.FALLOC_PUNCH_HOLE | ost.FALLOC_KEEP_SIZE, rng.randrange(9000), rng.randrange(1, 300))
                else:
                    world.data().writeback.write_back_soon()
                await asyncio.sleep(0.01)
                for _ in range(rng.randrange(20)):
                    await asyncio.sleep(0)

        disturber = asyncio.create_task(disturb())
        await asyncio.gather(work(), work())
        done = True
        await disturber
        await file.close()
        await direct.close()


@pytest.mark.parametrize("seed", range(20))
async def test_many_files_at_once_reach_the_osts_as_they_were_written(seed: int) -> None:
    """They share their requests, of which some fail, while others write to them, cut them, and take their locks."""
    rng = random.Random(seed)
    async with CachingWorld(2, bytes_max=rng.choice((4096, 1 << 20)), seed=seed, grant=rng.choice((1 << 16, 8 << 20))) as world:
        world.node.tunables.max_dirty_bytes = rng.choice((1 << 14, 1 << 20))
        paths = [f"/f{number}" for number in range(30)]
        files = {path: await opened(world, path=path, stripes=1) for path in paths}
        models = {path: FileModel() for path in paths}
        for _ in range(300):
            path = rng.choice(paths)
            model = models[path]
            kind = rng.choice(("write",) * 12 + ("cut", "fsync", "revoke", "back", "refuse"))
            if kind == "write":
                data, offset = rng.randbytes(rng.choice((1, 100, 5000))), rng.choice((0, len(model)))
                await files[path].pwrite(data, offset)
                model.write(offset, data)
            elif kind == "cut":
                size = rng.randrange(len(model) + 10)
                await files[path].truncate(size)
                model.truncate(size)
            elif kind == "fsync":
                await files[path].fsync()
            elif kind == "revoke":
                await rng.choice(world.osts).locks.revoke()
            elif kind == "back":
                world.data(rng.randrange(2)).writeback.write_back_soon()
            else:
                rng.choice(world.osts).refuses += 1
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
        assert sum(name == "WriteMany" for index in range(2) for name in world.osts[index].names())
        for path, file in files.items():
            assert await file.pread(1 << 20, 0) == models[path]
            await file.fsync()
            assert world.content(file) == models[path]
            await file.close()


# ---------------------------------------------------------------------------------------------------- reading


async def test_what_was_read_once_is_read_again_without_the_ost() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(b"0123456789" * 1000)
        assert await file.pread(100, 50) == (b"0123456789" * 11)[:100]
        assert world.names() == ["Read"]
        assert await file.pread(4096, 0) == (b"0123456789" * 410)[:4096]
        assert await file.read(-1) == b"0123456789" * 1000
        assert await file.pread(10, 9995) == b"56789"
        assert await file.pread(10, 10_000) == b""
        assert world.names() == [], "the end of the file is known, too"
        assert world.osts[0].locks.enqueues == [(1, 50, 149, PR)]
        await world.osts[0].locks.revoke()
        world.osts[0].objects[1][:] = b"other"
        assert await file.pread(4096, 0) == b"other"
        assert world.names() == ["Read"]
        await file.close()


async def test_concurrent_readers_share_one_request() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(b"x" * 8000)
        found = await asyncio.gather(*(file.pread(100, 100 * number) for number in range(50)))
        assert b"".join(found) == b"x" * 5000
        assert world.names() == ["Read"]
        await file.close()


async def test_who_reads_ahead_himself_gets_the_data_directly_and_the_second_time_it_is_cached() -> None:
    async with CachingWorld(2, bytes_max=1 << 16) as world:
        world.node.tunables.read_past_cache_bytes = 1 << 18
        file = await opened(world, stripes=2)
        data = os.urandom(2 * MIB)
        await file.pwrite(data, 0)
        await file.fsync()
        for server in world.osts:
            await server.locks.revoke()
        pages = world.data().shared.pages
        assert not pages.count

        async def read_all() -> None:
            world.names(0), world.names(1)
            found = await asyncio.gather(*(file.pread(1 << 16, offset) for offset in range(0, 2 * MIB, 1 << 16)))
            assert b"".join(found) == data

        await read_all()
        assert pages.bytes <= 1 << 18, "what the first few have brought, when it was not clear yet"
        assert len(world.names(0)) == 16 and len(world.names(1)) == 16, "everything once"
        await read_all()
        assert pages.bytes == 2 * MIB
        await read_all()
        assert world.names(0) == world.names(1) == []
        assert await file.pread(MIB, 2 * MIB - 100) == data[-100:]
        await file.close()


async def test_what_would_not_fit_is_not_cached_the_second_time_either() -> None:
    async with CachingWorld(bytes_max=1 << 16) as world:
        world.node.tunables.read_past_cache_bytes = 1
        world.node.tunables.max_cached_bytes = 1 << 18
        file = await opened(world)
        world.osts[0].objects[1] = data = bytearray(os.urandom(MIB))
        for _ in range(3):
            assert await file.pread(MIB, 0) == data
            assert not world.data().shared.pages.count
        await file.close()


async def test_a_large_read_sees_holes_ends_and_what_is_dirty() -> None:
    async with CachingWorld(2, stripe_size=1 << 16, bytes_max=1 << 15) as world:
        world.node.tunables.read_past_cache_bytes = 1
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 100, 5 << 16)  # a hole before it, on both objects
        expected = bytes(5 << 16) + b"x" * 100
        assert await file.pread(MIB, 0) == expected, "dirty"
        await file.fsync()
        for server in world.osts:
            await server.locks.revoke()
        assert await file.pread(MIB, 0) == expected, "on the OSTs"
        await file.pwrite(b"y", 10)
        expected = expected[:10] + b"y" + expected[11:]
        assert await file.pread(MIB, 0) == expected, "both"
        await file.truncate(1 << 16)
        assert await file.pread(MIB, 0) == expected[: 1 << 16]
        await file.close()


@pytest.mark.parametrize("seed", range(8))
async def test_what_is_seen_without_a_copy_is_what_is_read(seed: int) -> None:
    """Holes, ends of objects, dirty bytes, and what comes from the OSTs, over short stripe units."""
    rng = random.Random(seed)
    async with CachingWorld(2, stripe_size=1 << 16, bytes_max=1 << 15) as world:
        file = await opened(world, stripes=2)
        for step in range(60):
            offset, size = rng.randrange(1 << 19), rng.choice((1, 5000, 1 << 17, 1 << 19))
            if step % 3 == 0:
                await file.pwrite(rng.randbytes(rng.choice((1, 1000, 1 << 17))), offset)
            if step % 10 == 0:
                await file.fsync()
                for server in world.osts:
                    await server.locks.revoke()
            if rng.randrange(2):
                seen = b"".join(await file.pread_views(size, offset))
                assert seen == await file.pread(size, offset)
            else:
                read = await file.pread(size, offset)
                assert read == b"".join(await file.pread_views(size, offset))
        await file.close()


async def test_what_is_seen_without_a_copy_is_believed_under_the_lease_only() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(b"old")
        assert b"".join(await file.pread_views(10, 0)) == b"old"
        world.osts[0].locks.lease_valid = False
        world.osts[0].objects[1][:] = b"new"
        assert b"".join(await file.pread_views(10, 0)) == b"new", "past the cache"
        world.osts[0].locks.lease_valid = True
        await file.close()


async def test_whole_blocks_that_the_reader_keeps_do_not_stay() -> None:
    async with CachingWorld(bytes_max=MIB) as world:
        world.node.tunables.max_cached_bytes = 64 * MIB
        file = await opened(world)
        data = random.Random(1).randbytes(4 * MIB)
        world.osts[0].objects[1] = bytearray(data)
        await file.pwrite(b"x", 3 * MIB)
        assert b"".join(await file.pread_views(4 * MIB, 0)) == data[: 3 * MIB] + b"x" + data[3 * MIB + 1 :]
        pages = world.data().objects[1].pages
        file.pass_on(MIB // 2, 4 * MIB)
        assert list(pages.valid) == [(0, MIB), (3 * MIB, 4 * MIB)], "whole ones, and none that is dirty"
        assert await file.pread(4 * MIB, 0) == data[: 3 * MIB] + b"x" + data[3 * MIB + 1 :]
        await file.close()


@pytest.mark.parametrize("change", ["write", "through", "truncate", "punch", "revoke"])
async def test_what_changes_during_a_large_read_is_seen_as_a_whole_or_not_at_all(change: str) -> None:
    """One object is read already, the other not yet, when both are changed."""
    async with CachingWorld(2, stripe_size=1 << 16, bytes_max=1 << 16) as world:
        world.node.tunables.read_past_cache_bytes = 1
        file = await opened(world, stripes=2)
        through = await opened(world, os.O_RDWR | os.O_DSYNC)
        size = 1 << 17
        await file.pwrite(b"a" * size, 0)
        await file.fsync()
        for server in world.osts:
            await server.locks.revoke()
        await file.pwrite(b"c" * size, size)  # brings locks under which all may be written
        slow = world.osts[1]
        slow.reads = asyncio.Event()
        reading = asyncio.create_task(file.pread(size, 0))
        for _ in range(50):
            await asyncio.sleep(0)
        assert world.osts[0].names()[-1] == "Read" and not reading.done()
        expected = {b"a" * size}
        if change == "write":
            await file.pwrite(b"b" * size, 0)
            await file.fsync()
            expected.add(b"b" * size)
        elif change == "through":
            await through.pwrite(b"b" * size, 0)
            expected.add(b"b" * size)
        elif change == "truncate":
            await file.truncate(0)
            await file.truncate(size)
            expected.add(bytes(size))
        elif change == "punch":
            await file.punch(0, size)
            expected.add(bytes(size))
        else:
            revoking = [asyncio.create_task(server.locks.revoke()) for server in world.osts]
        slow.reads.set()
        assert await reading in expected
        if change == "revoke":
            await asyncio.gather(*revoking)
        assert not any(cached.pages.watches for n in (0, 1) for cached in world.data(n).objects.values())
        for handle in (file, through):
            await handle.close()


async def test_a_sequential_reader_finds_what_was_read_ahead_and_a_random_one_gets_only_pages() -> None:
    async with CachingWorld(bytes_max=1 << 16) as world:
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(os.urandom(2 * MIB))
        for number in range(512):
            assert await file.pread(4096, 4096 * number) == world.osts[0].objects[1][4096 * number : 4096 * (number + 1)]
        reads = [call for call in world.osts[0].calls if isinstance(call, ost.Read)]
        assert len(reads) < 60 and sum(call.length for call in reads) == 2 * MIB, "everything once"
        await world.osts[0].locks.revoke()
        world.names()
        rng = random.Random(1)
        places = [rng.randrange(1, 2 * MIB // PAGE_BYTES) * PAGE_BYTES for _ in range(20)]
        for place in places:
            await file.pread(4096, place)
        lengths = [call.length for call in world.osts[0].calls]
        assert lengths == [PAGE_BYTES] * len(set(places))
        await file.close()


async def test_strided_reads_are_read_ahead() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(os.urandom(8 * MIB))
        waited = 0
        for number in range(64):
            offset = MIB + number * 100_000
            before = sum(isinstance(call, ost.Read) and call.offset <= offset < call.offset + call.length
                         for call in world.osts[0].calls)  # fmt: skip
            assert await file.pread(2000, offset) == world.osts[0].objects[1][offset : offset + 2000]
            waited += not before
        assert waited < 10
        await file.close()


async def test_read_ahead_stays_within_its_bound_and_within_the_locks() -> None:
    async with CachingWorld(bytes_max=1 << 16) as world:
        world.node.tunables.max_read_ahead_bytes = 1 << 18
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(4 * MIB)
        most = 0
        for number in range(1024):
            await file.pread(4096, 4096 * number)
            most = max(most, world.data().shared.ahead)
        assert 0 < most <= 1 << 18
        await world.osts[0].locks.revoke()
        world.osts[0].locks.grow = False
        for number in range(10):
            await file.pread(4096, 4096 * number)  # FakeOst asserts that reads lie within their locks
        assert not world.data().shared.ahead
        await file.close()


async def test_memory_is_bounded_and_reads_larger_than_it_work() -> None:
    async with CachingWorld() as world:
        world.node.tunables.max_cached_bytes = 8 * PAGE_BYTES
        file = await opened(world)
        data = os.urandom(MIB)
        world.osts[0].objects[1] = bytearray(data)
        assert await file.pread(MIB, 0) == data
        for number in range(0, MIB, 50_000):
            assert await file.pread(1000, number) == data[number : number + 1000]
            assert world.data().shared.pages.bytes <= 8 * PAGE_BYTES
        await file.close()


async def test_the_length_of_a_file_is_asked_for_only_if_others_may_write_beyond() -> None:
    async with CachingWorld() as world:
        locks = world.osts[0].locks
        locks.grow = False
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(b"x" * 100)
        locks.known[1] = Lvb(5000, 8, 0, 7, 7)  # somebody else has written that, and keeps it
        assert await file.pread(1000, 0) == b"x" * 100 + bytes(900)
        assert locks.glimpses == [[1]]
        assert await file.pread(100, 0) == b"x" * 100
        assert len(locks.glimpses) == 1, "within what is known to be there"
        await file.close()


async def test_when_the_lease_ends_during_a_read_what_was_cached_is_not_believed() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(b"old")
        assert await file.pread(3, 0) == b"old"
        world.osts[0].locks.lease_valid = False
        world.osts[0].objects[1][:] = b"new"
        assert await file.pread(3, 0) == b"new", "past the cache"
        world.osts[0].locks.lease_valid = True
        await file.close()


async def test_when_the_lease_ends_while_a_read_waits_it_is_read_again() -> None:
    async with CachingWorld() as world:
        server = world.osts[0]
        file = await opened(world)
        server.objects[1] = bytearray(b"old")
        server.read_replies = asyncio.Event()
        reading = asyncio.create_task(file.pread(3, 0))
        while not server.calls:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        server.locks.lease_valid = False
        server.objects[1][:] = b"new"  # somebody else may write by now
        server.read_replies.set()
        assert await reading == b"new"
        server.locks.lease_valid = True
        await file.close()


async def test_an_answer_from_before_a_truncation_does_not_bring_the_size_back() -> None:
    async with CachingWorld() as world:
        server = world.osts[0]
        file = await opened(world)
        server.objects[1] = bytearray(100_000)
        await file.pwrite(b"x", 0)
        await file.fsync()
        server.read_replies = asyncio.Event()
        reading = asyncio.create_task(file.pread(100, 10))
        while not world.data().objects[1].pages.fetches:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        await file.truncate(20_000)
        server.read_replies.set()
        assert await reading == bytes(100)
        assert (await file.fstat()).size == 20_000
        await file.close()


# ---------------------------------------------------------------------------------------------------- writing back


async def test_written_data_stays_here_until_it_is_wanted() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"hello", 0)
        await file.pwrite(b"world", 5)
        assert await file.pread(100, 0) == b"helloworld" and await file.pread(3, 4) == b"owo"
        stat = await file.fstat()
        assert (stat.size, stat.mtime) == (10, file.mtime) and stat.blocks
        await file.close()
        assert world.names() == [], "a close does not write back"
        await world.osts[0].locks.revoke()
        assert world.osts[0].objects[1] == b"helloworld"
        assert world.names() == ["Write"], "joined"
        assert world.osts[0].times[1] == stat.mtime


async def test_the_lock_goes_with_the_only_write_that_it_takes() -> None:
    async with CachingWorld(bytes_max=4096) as world:
        locks = world.osts[0].locks
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        await locks.revoke()
        assert [call.release for call in world.osts[0].calls] == [True] and locks.released == [1]
        for size, offset in ((5000, 0), (10, 4090)):  # two writes
            await file.pwrite(b"y" * size, offset)
            await locks.revoke()
        await file.pwrite(b"y", 0)
        await file.pwrite(b"y", 50)
        await locks.revoke()
        await file.pwrite(b"z", 0)
        world.data().writeback.write_back_soon()
        await asyncio.sleep(0)
        await locks.revoke()  # it is on its way already
        assert locks.released == [1]
        await file.pwrite(b"z", 7)
        world.osts[0].errors.append(OpError(errno.EIO))
        await locks.revoke()
        assert locks.released == [1], "it was not executed: a Cancel must follow"
        await fails(errno.EIO, file.close())


async def test_what_left_with_its_lock_is_not_believed_when_the_answer_is_late() -> None:
    """The OST has executed the write, the lock went to somebody else and came back, and we have not heard of it yet."""
    async with CachingWorld() as world:
        server = world.osts[0]
        file = await opened(world)
        await file.pwrite(b"x" * 8000, 0)
        server.replies = asyncio.Event()
        (lock,) = server.locks.held.values()
        leaving = asyncio.create_task(server.locks.revoke())
        while not server.locks.released:
            await asyncio.sleep(0)
        assert server.locks.glimpse_of is not None
        known = server.locks.glimpse_of(lock)
        assert known is not None and known.lvb.size == 8000, "asked for, until it is gone"
        server.objects[1][:] = b"somebody else's"
        assert await file.pread(8000, 0) == b"somebody else's" and (await file.fstat()).size == 15
        syncing = asyncio.create_task(file.fsync())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not syncing.done(), "what was written is not known to be there"
        await server.locks.revoke()  # the new lock: nothing of ours is lost with it
        server.replies.set()
        server.replies = None
        await syncing
        await leaving
        assert await file.pread(8000, 0) == b"somebody else's"
        await file.close()


async def test_fsync_writes_back_and_makes_durable() -> None:
    async with CachingWorld(2, stripe_size=4) as world:
        file = await opened(world)
        await file.pwrite(b"abcdefghij", 0)
        await file.fsync()
        for index in range(2):
            assert syncs(world, index) == [True], "what is left is one write, answered when it is durable"
            assert world.names(index) == ["Write"]
        await file.fsync(data_only=True)
        assert world.names(0) == ["OstSync"]
        await file.pwrite(b"A", 0)
        await file.pwrite(b"C", 2)
        await file.fsync(data_only=True)
        assert world.names(0) == ["WriteMany", "OstSync"]
        await file.close()


def syncs(world: CachingWorld, index: int) -> list[bool]:
    """Of every write that came: is it answered when it is durable?"""
    return [call.sync for call in world.osts[index].calls if isinstance(call, ost.Write)]


async def test_old_data_is_written_back_by_and_by() -> None:
    async with CachingWorld() as world:
        world.node.tunables.write_back_after_s = 0.05
        file = await opened(world)
        for number in range(12):
            await file.pwrite(b"x", number)
            await asyncio.sleep(0.01)
        assert world.writes(), "also while it is being written to"
        await asyncio.sleep(0.15)
        assert world.osts[0].objects[1] == b"x" * 12
        await file.close()


async def test_a_stream_is_written_in_full_rpcs_while_it_goes_on() -> None:
    async with CachingWorld(bytes_max=1 << 16) as world:
        file = await opened(world)
        for number in range(64):
            await file.pwrite(bytes([number]) * 4096, 4096 * number)
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.writes() == [(0, True), (1 << 16, True), (2 << 16, True), (3 << 16, True)]
        assert not world.data().grant.reserved
        await file.close()


async def test_a_writer_waits_when_too_much_is_dirty() -> None:
    async with CachingWorld(bytes_max=1 << 16) as world:
        world.node.tunables.max_dirty_bytes = 1 << 16
        file = await opened(world)
        rng = random.Random(1)
        model = bytearray(MIB)
        for _ in range(300):
            place = rng.randrange(MIB // 4096) * 4096
            data = rng.randbytes(4096)
            await file.pwrite(data, place)
            model[place : place + 4096] = data
            assert world.data().grant.reserved <= 1 << 16
        await file.fsync()
        assert all(granted for _, granted in world.writes()), "never through"
        assert world.content(file) == model[: len(world.content(file))]
        await file.close()


async def test_all_osts_write_back_when_the_mount_has_too_much_dirty() -> None:
    async with CachingWorld(2, bytes_max=1 << 16) as world:
        world.node.tunables.max_cached_bytes = 1 << 17
        files = [await opened(world, path=f"/{n}", stripes=1) for n in range(2)]
        await files[0].pwrite(bytes(60_000), 10)
        assert world.data(0).grant.reserved and not world.writes(0)
        second = world.data(0) if files[1].layout.stripes[0][0] == 0 else world.data(1)  # type: ignore[union-attr]
        await files[1].pwrite(bytes(50_000), 10)
        assert second.shared.dirty <= 1 << 16 and world.writes(0)
        for file in files:
            await file.close()


async def test_data_rpcs_in_flight_are_bounded() -> None:
    async with CachingWorld(bytes_max=4096) as world:
        world.node.tunables.max_rpcs_in_flight = 3
        file = await opened(world)
        await file.pwrite(os.urandom(200_000), 0)
        await asyncio.gather(file.fsync(), file.pread(200_000, 0), world.osts[0].locks.revoke())
        await file.pread(200_000, 0)
        assert world.osts[0].in_flight_max == 3
        await file.close()


async def test_what_is_not_dirty_any_more_when_its_turn_comes_is_left_out() -> None:
    async with CachingWorld() as world:
        world.node.tunables.max_rpcs_in_flight = 1
        world.osts[0].replies = asyncio.Event()
        file = await opened(world)
        for number in range(200):
            await file.pwrite(b"%03d" % number, number * 10)
        syncing = asyncio.create_task(file.fsync())
        while not world.osts[0].calls:
            await asyncio.sleep(0)
        world.data().writeback.discard(world.data().objects[1], 1000, 1500)
        world.osts[0].replies.set()
        await syncing
        assert world.names(0) == ["WriteMany", "WriteMany", "WriteMany", "OstSync"]
        assert world.content(file) == b"".join(
            bytes(10) if 100 <= number < 150 else b"%03d" % number + bytes(7) for number in range(200)
        )[:1993]
        await file.close()


async def test_what_is_rewritten_while_it_is_written_back_is_written_again_and_later() -> None:
    async with CachingWorld(seed=3) as world:
        file = await opened(world)
        for number in range(50):
            await file.pwrite(bytes([number]) * 100, 0)
            world.data().writeback.write_back_soon()
            if number % 3 == 0:
                await asyncio.sleep(0)
        await file.fsync()
        assert world.content(file) == bytes([49]) * 100
        await file.close()


async def test_the_data_of_a_removed_file_is_not_written() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        await file.close()
        await world.osts[0].locks.revoke(flags=DISCARD_DATA)
        assert world.names() == []


async def test_a_reader_wants_the_lock_weaker_and_finds_the_data_here() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        assert await file.pread(100, 0) == b"x" * 100
        assert world.osts[0].locks.modes() == [PW]
        await file.close()


# ---------------------------------------------------------------------------------------------------- grants


async def test_without_a_grant_everything_is_written_through_and_asks_for_one() -> None:
    async with CachingWorld(grant=0) as world:
        world.osts[0].gives = 0
        file = await opened(world)
        await file.pwrite(b"x" * 10, 0)
        await file.pwrite(b"y" * 10, 10)
        assert world.writes() == [(0, False), (10, False)]
        assert await file.pread(20, 0) == b"x" * 10 + b"y" * 10
        assert "Read" not in world.osts[0].names(), "it is cached all the same"
        assert all(call.sync and call.undirty for call in world.osts[0].calls)
        world.osts[0].gives = 1 << 20
        await file.pwrite(b"z", 20)
        await file.pwrite(b"z", 21)
        assert len(world.writes()) == 3 and world.data().grant.total == 1 << 20
        await file.close()


async def test_a_full_disk_is_said_at_the_write_and_never_after() -> None:
    """What was accepted is on the disk in the end; what was refused was refused to its writer."""
    async with CachingWorld(bytes_max=1 << 16, grant=1 << 18) as world:
        server = world.osts[0]
        server.room = 3 * MIB
        file = await opened(world)
        accepted = 0
        with pytest.raises(OpError) as caught:
            for number in range(2000):
                await file.pwrite(bytes([number % 250 + 1]) * 4096, 4096 * number)
                accepted = number + 1
        assert caught.value.errno == errno.ENOSPC
        assert 600 < accepted <= 3 * 256
        await file.fsync()
        content = world.content(file)
        assert [content[4096 * n] for n in range(accepted)] == [n % 250 + 1 for n in range(accepted)]
        await file.close()


async def test_grants_come_back_when_dirty_data_is_cut_off() -> None:
    async with CachingWorld(grant=1 << 20) as world:
        file = await opened(world)
        await file.pwrite(bytes(100_000), 0)
        assert world.data().grant.reserved == 25 * 4096
        await file.truncate(5000)
        assert world.data().grant.reserved == 2 * 4096
        await file.truncate(0)
        assert (world.data().grant.reserved, world.data().grant.available) == (0, 1 << 20)
        assert world.writes() == []
        await file.close()


async def test_a_large_write_goes_through_in_full_rpcs() -> None:
    async with CachingWorld(bytes_max=1 << 18) as world:
        world.node.tunables.max_dirty_bytes = MIB
        file = await opened(world)
        data = os.urandom(3 * MIB)
        await file.pwrite(data, 100)
        assert world.content(file)[100:] == data
        assert not any(granted for _, granted in world.writes()) and len(world.writes()) == 13
        assert await file.pread(3 * MIB, 100) == data
        await file.close()


# ---------------------------------------------------------------------------------------------------- errors


async def test_a_failed_write_back_is_reported_once_to_each_open_file() -> None:
    async with CachingWorld() as world:
        writers = [await opened(world) for _ in range(3)]
        idle = await opened(world)
        for number, file in enumerate(writers):
            await file.pwrite(bytes([number]) * 10, 10 * number)
        world.osts[0].errors.append(OpError(errno.EIO))
        await fails(errno.EIO, writers[0].fsync())
        await writers[0].fsync()
        await fails(errno.EIO, writers[1].pwrite(b"x", 100))
        await writers[1].pwrite(b"x", 0)
        await fails(errno.EIO, writers[2].close())
        await idle.pwrite(b"x", 0)
        await fails(errno.EIO, idle.fsync())
        await idle.fsync()
        assert await idle.pread(100, 0) == b"x", "what was lost is not shown any more"
        for file in (*writers, idle):
            await file.close()


async def test_evicted_dirty_data_is_lost_and_clean_data_is_forgotten() -> None:
    async with CachingWorld() as world:
        file, reader = await opened(world), await opened(world, path="/g")
        world.osts[0].objects[2] = bytearray(b"clean")
        assert await reader.pread(10, 0) == b"clean"
        await file.pwrite(b"dirty", 0)
        world.osts[0].locks.lose_all()
        assert not world.data().objects and not world.data().grant.reserved
        world.osts[0].objects[2][:] = b"other"
        assert await reader.pread(10, 0) == b"other"
        await reader.fsync()
        await fails(errno.EIO, file.fsync())
        assert await file.pread(10, 0) == b"" and world.writes() == [], "nothing is written under a dead lock"
        await file.pwrite(b"again", 0)
        await file.fsync()
        assert world.content(file) == b"again"
        await file.close()
        await reader.close()


async def test_what_is_on_its_way_when_we_are_evicted_is_reported_once() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"x" * 10, 0)
        world.osts[0].errors.append(OpError(errno.EIO))
        syncing = asyncio.create_task(file.fsync())
        await asyncio.sleep(0)
        assert world.data().objects[1].pages.flights
        world.osts[0].locks.lose_all()
        await fails(errno.EIO, syncing)
        await file.fsync()
        await file.close()


@pytest.mark.parametrize("what", ["write", "truncation", "hole"])
async def test_what_was_answered_but_not_durable_when_we_are_evicted_is_reported(what: str) -> None:
    async with CachingWorld() as world:
        durable, file, clean = [await opened(world, path=path) for path in ("/d", "/f", "/c")]
        await durable.pwrite(b"x", 0)
        await durable.fsync()
        await file.pwrite(b"x" * 100, 0)
        if what != "write":
            await file.fsync()
        if what == "truncation":
            await file.truncate(50)
        elif what == "hole":
            await file.fallocate(ost.FALLOC_PUNCH_HOLE | ost.FALLOC_KEEP_SIZE, 0, 50)
        await world.osts[0].locks.revoke()
        world.osts[0].locks.lose_all()
        world.data().writeback.evicted()
        await fails(errno.EIO, file.fsync())
        await durable.fsync()
        await clean.fsync()
        for handle in (durable, file, clean):
            await handle.close()


async def test_a_write_whose_object_is_gone_is_dropped_quietly() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"x", 0)
        world.osts[0].destroyed.add(1)
        await file.fsync()
        await fails(errno.ESTALE, file.pread(10, 5))
        await file.close()


async def test_an_error_of_a_write_through_is_the_writers_own() -> None:
    async with CachingWorld() as world:
        file = await opened(world, RW | os.O_DSYNC)
        world.osts[0].errors.append(OpError(errno.EIO))
        await fails(errno.EIO, file.pwrite(b"x" * 10, 0))
        await file.fsync()
        assert await file.pread(10, 0) == b""
        await file.close()


async def test_a_cancelled_write_through_keeps_its_place_until_it_is_over() -> None:
    """What comes after it must not be overtaken by it."""
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"base", 0)
        await file.fsync()
        direct = await opened(world, os.O_RDWR | os.O_DIRECT)
        task = asyncio.create_task(direct.pwrite(b"late", 0))
        while not world.data().objects[1].pages.flights:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await file.pwrite(b"last", 0)
        await file.fsync()
        assert world.content(file) == b"last"
        await file.close()
        await direct.close()


async def test_a_cancelled_reader_leaves_nothing_behind() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(b"x" * 100)
        world.osts[0].silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await file.pread(100, 0)
        assert not any(cached.pages.pins for cached in world.data().objects.values())
        assert not any(lock.users for lock in world.osts[0].locks.held.values())
        world.connections.lov.locked.shared.tasks.stop()  # type: ignore[union-attr]
        await asyncio.sleep(0)
        world.osts[0].silent = False
        await file.close()


async def test_an_ost_that_does_not_know_the_lock_is_believed() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        world.osts[0].objects[1] = bytearray(b"x" * 100)
        await file.pread(10, 0)
        locks = world.osts[0].locks
        (lock,) = locks.held.values()
        cached = world.data().objects[1]
        cached.pages.cut(0, 1 << 30)
        del locks.held[lock.handle]
        hidden = locks.match_extent
        locks.match_extent = lambda *args: lock if lock.ready else None  # type: ignore[method-assign,assignment]
        cancelled: list[Any] = []
        locks.cancel = cancelled.append  # type: ignore[method-assign]
        await fails(errno.EIO, file.pread(10, 0))
        assert cancelled == [lock], "it goes, and the next reader takes another one"
        locks.match_extent = hidden  # type: ignore[method-assign]
        assert world.data().locks.drop is not None
        world.data().locks.drop(lock, False)
        await file.close()


# ---------------------------------------------------------------------------------------------------- other ways to write


@pytest.mark.parametrize("flag", [os.O_DSYNC, os.O_SYNC, os.O_DIRECT])
async def test_synchronous_writes_are_durable_when_they_return(flag: int) -> None:
    async with CachingWorld() as world:
        file, cached = await opened(world, RW | flag), await opened(world)
        await cached.pwrite(b"below", 0)
        await file.pwrite(b"ABC", 1)
        assert world.content(file) == b"bABCw", "after what was dirty in its blocks"
        assert world.osts[0].last_committed == world.osts[0].transno
        await cached.fsync()
        world.names()
        assert await cached.pread(10, 0) == b"bABCw"
        assert world.names() == ([] if flag != os.O_DIRECT else ["Read"]), "cached but for O_DIRECT"
        if flag == os.O_DIRECT:
            await cached.pwrite(b"Z", 0)
            assert await file.pread(10, 0) == b"ZABCw"
            assert world.names() == ["Write", "Read"], "written back, and read from the OST"
        await file.close()
        await cached.close()


async def test_appends_take_the_whole_file_and_never_overlap() -> None:
    async with CachingWorld(2, stripe_size=7) as world:
        files = [await opened(world, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(3)]
        await asyncio.gather(*(file.pwrite(bytes([65 + n]) * 11, 0) for n, file in enumerate(files) for _ in range(4)))
        reader = await opened(world)
        data = await reader.read()
        assert len(data) == 12 * 11 and {data[n : n + 11] for n in range(0, 132, 11)} == {b"A" * 11, b"B" * 11, b"C" * 11}
        for server in world.osts:
            assert server.locks.enqueues == [(server.locks.enqueues[0][0], 0, (1 << 63) - 1, PW)]
        for file in (*files, reader):
            await file.close()


async def test_locks_are_taken_in_stripe_order_and_held_together() -> None:
    async with CachingWorld(3, stripe_size=4) as world:
        order: list[int] = []
        for index, server in enumerate(world.osts):
            server.locks.grow = False

            def note(resource: bytes, start: int, end: int, mode: int, take: Any = server.locks.take_extent, index: int = index) -> Any:  # fmt: skip
                order.append(index)
                assert all(any(lock.users for lock in world.osts[i].locks.held.values()) for i in order[:-1][-2:])
                return take(resource, start, end, mode)

            server.locks.take_extent = note  # type: ignore[method-assign,assignment]
        file = await opened(world)
        assert file.layout is not None
        first = [index for index, _ in file.layout.stripes]
        await file.pwrite(b"abcdefghijkl", 6)  # begins in stripe 1
        assert order == first
        await file.close()


async def test_a_truncation_waits_for_what_is_on_its_way() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100_000, 0)
        world.data().writeback.write_back_soon()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert world.data().objects[1].pages.flights
        await file.truncate(10)
        assert world.names() == ["Write", "Punch"]
        assert (await file.fstat()).size == 10 and await file.pread(100, 0) == b"x" * 10
        await file.pwrite(b"y", 20)
        assert await file.pread(100, 0) == b"x" * 10 + bytes(10) + b"y"
        await file.fsync()
        assert world.content(file) == b"x" * 10 + bytes(10) + b"y"
        await file.close()


async def test_a_write_during_a_truncation_comes_after_it() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        server = world.osts[0]
        await file.pwrite(b"x" * 100, 0)
        await file.fsync()
        server.replies = asyncio.Event()
        cutting = asyncio.create_task(file.truncate(0))
        while "Punch" not in server.names():
            await asyncio.sleep(0)
        writing = asyncio.create_task(file.pwrite(b"new", 50))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not writing.done() and server.objects[1] == b""
        known = server.locks.glimpse_of(next(iter(server.locks.held.values())))  # type: ignore[misc]
        assert known is not None and known.lvb.size == 100 and known.cut == CUT_XID, "the OST knows whether that is done"
        looking = asyncio.create_task(file.pread(200, 0)), asyncio.create_task(file.fstat())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(look.done() for look in looking), "somebody else may have seen that it is done"
        answered: list[object] = []
        server.on_answer = lambda: answered.append(server.locks.glimpse_of(next(iter(server.locks.held.values()))))  # type: ignore[misc]
        server.replies.set()
        await cutting
        assert answered == [None], "the OST knows more than we, although nobody here has heard of it yet"
        await writing
        assert await looking[0] in (b"", bytes(50) + b"new") and (await looking[1]).size in (0, 53)
        await file.fsync()
        assert world.content(file) == bytes(50) + b"new"
        assert await file.pread(100, 0) == bytes(50) + b"new"
        await file.close()


async def test_a_truncated_file_is_cut_on_all_objects_at_once() -> None:
    async with CachingWorld(2, stripe_size=10) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 100, 0)
        late = world.osts[1]
        late.replies = asyncio.Event()
        cutting = asyncio.create_task(file.truncate(15))
        while not (set(world.osts[0].names()) & {"Punch"} and set(late.names()) & {"Punch"}):
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        looking = asyncio.create_task(file.fstat())
        cutting.cancel()  # it goes on all the same
        with pytest.raises(asyncio.CancelledError):
            await cutting
        assert not looking.done()
        late.replies.set()
        assert (await looking).size == 15 and await file.pread(200, 0) == b"x" * 15
        await file.close()


async def test_appends_and_truncations_do_not_mix() -> None:
    """An append that has seen the end does not write there after a truncation: that would leave a hole."""
    async with CachingWorld(grant=0) as world:
        world.osts[0].gives = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        file = await opened(world, flags)
        for number in range(20):
            await asyncio.gather(file.pwrite(b"abc", 0), file.truncate(0), file.pwrite(b"abc", 0))
            assert await file.read() in (b"", b"abc", b"abcabc"), number
            await file.seek(0)
        await file.close()


async def test_nobody_reads_half_of_what_is_written_through() -> None:
    async with CachingWorld(bytes_max=1 << 16) as world:
        server = world.osts[0]
        file = await opened(world)
        await file.pwrite(b"o" * 10_000, 0)
        await file.fsync()
        through = await opened(world, os.O_RDWR | os.O_DSYNC)
        server.replies = asyncio.Event()
        writing = asyncio.create_task(through.pwrite(b"n" * 10_000, 5000))
        while not world.data().objects[1].pages.flights:
            await asyncio.sleep(0)
        reading = asyncio.create_task(file.pread(20_000, 0))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not reading.done() and (await file.fstat()).size == 15_000, "the OST may tell it already"
        assert await file.pread(100, 4000) == b"o" * 100
        server.replies.set()
        await writing
        assert await reading == b"o" * 5000 + b"n" * 10_000
        await file.close()
        await through.close()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_write_through_of_many_rpcs_has_its_whole_size_at_once(cancelled: bool) -> None:
    """Also while most of it waits for its turn; and it is all written then, whatever becomes of who wrote it."""
    async with CachingWorld(bytes_max=1 << 14) as world:
        world.node.tunables.max_rpcs_in_flight = 2
        server = world.osts[0]
        file = await opened(world, os.O_RDWR | os.O_CREAT | os.O_DSYNC)
        data = os.urandom(300_000)
        server.replies = asyncio.Event()
        writing = asyncio.create_task(file.pwrite(data, 1000))
        sizes = set()
        while len(world.writes()) < 2:
            await asyncio.sleep(0)
            sizes.add((await file.fstat()).size)
        assert len(world.writes()) == 2, "nothing was answered"
        if cancelled:
            writing.cancel()
        server.replies.set()
        await asyncio.gather(writing, return_exceptions=True)
        assert await file.pread(len(data), 1000) == data
        sizes.add((await file.fstat()).size)
        assert sizes == {301_000}
        await file.fsync()
        assert world.content(file)[1000:] == data
        await file.close()


async def test_sizes_of_many_files_are_one_request_to_each_ost() -> None:
    async with CachingWorld(2) as world:
        files = [await opened(world, path=f"/{n}", stripes=2) for n in range(5)]
        await files[0].pwrite(b"x" * 10, 0)
        layouts = [file.layout for file in files if file.layout is not None]
        world.osts[1].destroyed.add(layouts[4].stripes[1][1])
        found = await world.connections.lov.getattr_many(layouts, cred=(0, 0))
        assert [attr.size for attr in found[:4] if not isinstance(attr, OpError)] == [10, 0, 0, 0]
        assert isinstance(found[4], OpError) and found[4].errno == errno.ESTALE
        assert [len(server.locks.glimpses) for server in world.osts] == [1, 1]
        assert world.connections.lov.cached_attr(layouts[0]) is None, "only one of its objects is locked"
        world.osts[1].destroyed.clear()
        await files[0].pwrite(b"x" * 70_000, 0)
        known = world.connections.lov.cached_attr(layouts[0])
        assert known is not None and known.size == 70_000 and known.mtime == files[0].mtime
        for file in files:
            await file.close()


async def test_a_size_that_is_older_than_what_is_known_here_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the coherence swarm, seed 1300424.

    The answer is from before somebody made the object longer; what is known of it since is only that it reaches to the
    end of a lock. Neither is its size.
    """
    async with CachingWorld() as world:
        file = await opened(world)
        server, locks = world.osts[0], world.osts[0].locks
        locks.grow = False
        ask = locks.glimpse

        async def glimpse(resources: Sequence[bytes]) -> list[Lvb | OpError]:
            (answer,) = await ask(resources)
            if len(locks.glimpses) == 1:
                server.objects[1] = bytearray(4096)
                assert await file.pread(64, 64) == bytes(64)
            return [answer]

        monkeypatch.setattr(locks, "glimpse", glimpse)
        assert (await file.fstat()).size == 4096 and len(locks.glimpses) == 2
        await file.close()


async def test_a_glimpse_from_others_tells_what_is_dirty_here() -> None:
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"x" * 5000, 0)
        locks = world.osts[0].locks
        (lock,) = locks.held.values()
        assert locks.glimpse_of is not None
        known = locks.glimpse_of(lock)
        assert known is not None and not known.cut
        lvb = known.lvb
        assert (lvb.size, lvb.blocks, lvb.mtime, lvb.ctime) == (5000, 16, file.mtime, file.mtime)
        assert locks.stays is not None and locks.stays(lock)
        await file.fsync()
        assert not locks.stays(lock)
        await file.close()


async def test_a_loop_of_cached_reads_lets_others_have_their_turn() -> None:
    """A client that never suspends would never hear that somebody wants its locks."""
    async with CachingWorld() as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(1000):
            await file.pread(50, 3)
            await file.pwrite(b"y", 0)
        task.cancel()
        assert turns > 5
        await file.close()


async def test_no_object_of_several_is_written_beyond_what_an_ost_takes() -> None:
    """The last byte is one that its object may have, but the object before it becomes too long."""
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        unit = world.mdt.stripe_size
        offset = striping.to_file(0, limits.object_bytes_max // unit * unit, unit, 2)
        await fails(errno.EFBIG, file.pwrite(bytes(unit + 100), offset))
        await fails(errno.EFBIG, file.fallocate(0, offset, unit + 100))
        assert not any(world.data(index).writeback.dirty for index in range(2))
        await file.close()


@pytest.mark.parametrize("stripes", [1, 2])
async def test_at_the_last_place_of_all_files_there_is_nothing(stripes: int) -> None:
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=stripes)
        await file.punch(limits.file_bytes_max - 1, limits.file_bytes_max)
        assert await file.pread(10, limits.file_bytes_max) == b""
        assert (await file.fstat()).size == 0
        await file.close()
