"""Reads, writes and questions for a size, in whose middle something is cancelled, lost, refused, or changed by somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from caching_world import CachingWorld

from lustrelite.client.file import File
from lustrelite.errors import OpError
from lustrelite.wire import ost
from lustrelite.wire.mdt import StripeHint

pytestmark = pytest.mark.simulated

RW = os.O_RDWR | os.O_CREAT
KIB = 1 << 10
MIB = 1 << 20

_T = TypeVar("_T")


async def begun(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """A task that has come as far as it can."""
    task = asyncio.get_running_loop().create_task(work)
    await asyncio.sleep(0.1)
    return task


async def opened(world: CachingWorld, flags: int = RW, path: str = "/f", stripes: int = 0) -> File:
    return await world.fs.open(path, flags, 0o644, StripeHint(stripes, 0, -1) if stripes else None)


async def test_who_is_cancelled_in_the_turn_in_which_a_lock_comes_does_not_keep_it() -> None:
    """One lock is here, the second is granted, and in that turn the caller is interrupted."""
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        locks = world.osts[1].locks
        take = locks.take_extent

        async def granted(*args: Any, **options: Any) -> Any:
            lock = await take(*args, **options)
            asyncio.get_running_loop().call_soon(task.cancel)
            return lock

        locks.take_extent = granted  # type: ignore[method-assign]
        task = asyncio.get_running_loop().create_task(file.pwrite(bytes(128 * KIB), 0))
        with pytest.raises(asyncio.CancelledError):
            await task
        locks.take_extent = take  # type: ignore[method-assign]
        assert [lock.users for server in world.osts for lock in server.locks.held.values()] == [0, 0]
        await file.close()


async def test_an_append_does_not_believe_in_the_size_of_an_object_whose_lock_is_lost() -> None:
    """Three objects; the first has the file's end. Its OST evicts us while we wait for the lock on the second."""
    async with CachingWorld(3) as world:
        file = await opened(world, stripes=3)
        await file.pwrite(b"x" * 10, 64 * KIB)
        await file.pwrite(b"end", 192 * KIB)
        await file.fsync()
        for server in world.osts:
            await server.locks.revoke()
        locks = world.osts[1].locks
        locks.gate = asyncio.Event()
        task = asyncio.get_running_loop().create_task(file.append(b"appended"))
        while not world.osts[0].locks.held:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        world.osts[0].locks.lose_all()
        locks.gate.set()
        locks.gate = None
        assert await task == 192 * KIB + 3  # it had not begun, so it is done under other locks
        assert (await file.fstat()).size == 192 * KIB + 11
        await file.close()


def refuse_room(world: CachingWorld) -> None:
    """No fallocate succeeds any more."""
    server = world.osts[0]

    async def full(body: Any, **options: Any) -> Any:
        if isinstance(body, ost.Fallocate):
            raise OpError(errno.ENOSPC)
        return await call(body, **options)

    call, server.call = server.call, full  # type: ignore[method-assign]


@pytest.mark.parametrize("how", ["fallocate", "through", "back"])
async def test_after_a_change_that_failed_the_size_is_that_of_the_object(how: str) -> None:
    """Others write to the same object, so the locks here are several."""
    async with CachingWorld(1, grant=0 if how == "through" else 8 << 20) as world:
        server = world.osts[0]
        server.locks.grow = False
        file = await opened(world)
        if how == "through":
            server.gives = 0  # everything is written through
        await file.pwrite(b"x" * 100, 0)
        await file.fsync()
        await file.pread(MIB, 0)  # a lock of the first MiB
        assert (await file.fstat()).size == 100
        await asyncio.sleep(1)  # what was read ahead is here
        if how == "fallocate":
            refuse_room(world)
            with pytest.raises(OpError):
                await file.fallocate(0, 2 * MIB, MIB)
        elif how == "through":
            server.errors.append(OpError(errno.ENOSPC))
            with pytest.raises(OpError):
                await file.pwrite(b"y" * 4096, 2 * MIB)
        else:
            await file.pwrite(b"y" * 4096, 2 * MIB)
            server.errors.append(OpError(errno.EIO))
            with pytest.raises(OpError):
                await file.fsync()
        for _ in range(20):
            await asyncio.sleep(0)
        assert (await file.fstat()).size == 100
        assert len(await file.pread(MIB, 0)) == 100
        await file.close()


async def test_after_a_change_that_failed_the_ost_is_asked_for_the_size_whatever_other_locks_are_here() -> None:
    """A lock on the file's end, and something dirty under it: of the end itself nothing is known any more."""
    async with CachingWorld(1) as world:
        world.osts[0].locks.grow = False
        file = await opened(world)
        await file.truncate(3 * MIB)  # the lock is on the end
        await file.pwrite(b"x" * 100, 4 * MIB)
        await file.fsync()
        await file.pwrite(b"y" * 100, 3 * MIB)
        refuse_room(world)
        with pytest.raises(OpError):
            await file.fallocate(0, 0, MIB)
        assert (await file.fstat()).size == 4 * MIB + 100
        await file.close()


async def test_a_write_through_whose_lock_is_lost_before_it_is_sent_is_not_sent() -> None:
    """It waits for others to the same OST. The OST would not know the lock, and call that stale."""
    async with CachingWorld(1, grant=0) as world:
        server = world.osts[0]
        server.gives = 0  # everything is written through
        file = await opened(world)
        slots = world.data().osc.slots()
        for _ in range(world.node.tunables.max_rpcs_in_flight):
            await slots.acquire()
        task = asyncio.get_running_loop().create_task(file.pwrite(b"x", 0))
        while not world.data().objects or not world.data().objects[1].pages.flights:
            await asyncio.sleep(0)
        server.locks.lose_all()
        for _ in range(world.node.tunables.max_rpcs_in_flight):
            slots.release()
        with pytest.raises(OpError) as caught:
            await task
        assert caught.value.errno == errno.EIO
        assert server.bytes_written == 0
        await file.close()


async def test_a_truncation_whose_lock_is_lost_while_it_waits_for_a_write_is_not_sent() -> None:
    async with CachingWorld(1) as world:
        server = world.osts[0]
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        server.replies = asyncio.Event()
        flushing = asyncio.get_running_loop().create_task(file.fsync())
        cutting = await begun(file.truncate(50))
        server.locks.lose_all()
        server.replies.set()
        with pytest.raises(OpError) as caught:
            await cutting
        assert caught.value.errno == errno.EIO
        await asyncio.wait([flushing])
        assert isinstance(flushing.exception(), OpError | None)
        assert len(world.content(file)) == 100
        with contextlib.suppress(OpError):
            await file.close()


@asynccontextmanager
async def waiting_truncation(world: CachingWorld) -> AsyncIterator[File]:
    """The object on the first OST is cut, that on the second is not answered meanwhile; another file, on the first."""
    file = await opened(world, stripes=2)
    other = await opened(world, path="/other", stripes=1)
    await file.pwrite(b"x" * 128 * KIB, 0)
    late = world.osts[1]
    late.replies = asyncio.Event()
    cut = await begun(file.truncate(0))
    try:
        yield other
    finally:
        late.replies.set()
        await cut
    for one in (file, other):
        await one.close()


async def test_a_truncation_that_waits_for_one_ost_does_not_stop_write_back_to_the_others() -> None:
    async with CachingWorld(2) as world:
        async with waiting_truncation(world) as other:
            await other.pwrite(b"y" * 100, 0)
            world.data(0).writeback.write_back_soon()
            await asyncio.sleep(5)
            assert world.content(other) == b"y" * 100


async def test_writers_go_on_while_a_truncation_waits_for_another_ost() -> None:
    """The same, seen by a program: it hangs."""
    async with CachingWorld(2) as world:
        world.node.tunables.max_dirty_bytes = 4 * MIB
        async with waiting_truncation(world) as other, asyncio.timeout(60):
            for number in range(64):
                await other.pwrite(b"y" * 512 * KIB, number * MIB)


@pytest.mark.parametrize("what", ["punch", "direct", "truncate"])
async def test_a_busy_writer_does_not_keep_others_away_for_ever(what: str) -> None:
    async with CachingWorld(1) as world:
        file = await opened(world)
        await file.pwrite(b"x" * 4096, 0)
        over = False

        async def write() -> None:
            number = 0
            while not over:
                number += 1
                if what == "truncate":
                    await file.pwrite(b"x" * MIB, number % 8 * MIB)
                else:
                    await file.pwrite(b"x" * 100, 0)
                await asyncio.sleep(0)

        writer = asyncio.get_running_loop().create_task(write())
        await asyncio.sleep(0)
        direct = await opened(world, os.O_RDWR | os.O_DIRECT)
        if what == "punch":
            work = file.punch(0, 4096)
        elif what == "direct":
            work = direct.pwrite(b"y" * 4096, 0)
        else:
            work = file.truncate(0)
        task = asyncio.get_running_loop().create_task(work)
        for _ in range(20000):
            await asyncio.sleep(0)
            if task.done():
                break
        done = task.done()
        over = True
        await writer
        await task
        await file.close()
        await direct.close()
        assert done


async def test_what_was_a_hole_when_a_read_began_is_not_one_when_it_was_written_directly() -> None:
    """A read of several RPCs: the first finds the object's end. Before the second is answered somebody writes there."""
    async with CachingWorld(1, bytes_max=64 * KIB) as world:
        server = world.osts[0]
        server.locks.grow = False
        file = await opened(world)
        direct = await opened(world, os.O_RDWR | os.O_DIRECT)
        await file.pwrite(b"x" * 10, 0)
        await file.fsync()
        await file.fallocate(ost.FALLOC_KEEP_SIZE, 0, 128 * KIB)  # a lock to write, of that
        call, late = server.call_bulk, asyncio.Event()

        async def call_bulk(body: Any, **options: Any) -> Any:
            answer = await call(body, **options)
            if isinstance(body, ost.Read) and body.offset:
                await late.wait()
            return answer

        server.call_bulk = call_bulk  # type: ignore[method-assign]
        reader = asyncio.get_running_loop().create_task(file.pread(128 * KIB, 0))
        for _ in range(30):
            await asyncio.sleep(0)
        await direct.pwrite(b"y" * 80, 20)
        late.set()
        found = await reader
        assert (len(found), found.count(b"y")) in ((10, 0), (100, 80))
        await file.close()
        await direct.close()


async def test_memory_of_callers_that_is_kept_is_counted() -> None:
    """A program writes large `bytes`, and reads a little of each of them again and again."""
    async with CachingWorld(1) as world:
        bound = world.node.tunables.max_cached_bytes = 64 * MIB
        world.data().grant.connected(1 << 30)
        world.osts[0].promised = 1 << 30
        file = await opened(world)
        for number in range(12):
            await file.pwrite(bytes(16 * MIB), number * 16 * MIB)
            await file.fsync()
            for one in range(number + 1):
                await file.pread(1, one * 16 * MIB)
        cache = world.data().shared.pages
        held = {id(page.view.obj): len(page.view.obj) for page in cache.lru}
        assert cache.bytes <= bound
        assert sum(held.values()) <= 2 * bound, (len(held), sum(held.values()) // MIB)
        await file.close()


async def late_glimpse(world: CachingWorld, index: int, *, asked: bool) -> asyncio.Event:
    """Glimpses of that OST are answered when the event is set; `asked`: and not even looked at before."""
    locks, late = world.osts[index].locks, asyncio.Event()
    glimpse = locks.glimpse

    async def answer(resources: Any) -> Any:
        if asked:
            await late.wait()
        found = await glimpse(resources)
        await late.wait()
        return found

    locks.glimpse = answer  # type: ignore[method-assign]
    return late


async def test_a_read_that_asks_for_the_size_does_not_mix_it_with_what_a_truncation_left() -> None:
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 100, 0)
        late = await late_glimpse(world, 1, asked=False)
        reading = await begun(file.pread(200, 0))
        await file.truncate(5)
        await world.osts[1].locks.revoke()
        late.set()
        assert await reading in (b"x" * 100, b"x" * 5)
        await file.close()


async def test_a_size_is_not_put_together_from_before_and_after_a_truncation() -> None:
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 64 * KIB + b"y" * 100, 0)
        await file.fsync()
        await world.osts[1].locks.revoke()
        late = await late_glimpse(world, 1, asked=True)
        asking = await begun(file.fstat())
        await file.truncate(5)
        late.set()
        assert (await asking).size in (64 * KIB + 100, 5)
        await file.close()


@pytest.mark.parametrize("done", ["before", "after"])
@pytest.mark.parametrize("what", ["fallocate", "sync", "direct"])
async def test_what_is_changed_past_the_cache_is_no_hole_for_who_is_reading(what: str, done: str) -> None:
    """He has found it in the cache, and waits for an object of another OST, which is answered before or after the change.

    Source: seed 10560255 of the OST swarm
    """
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 128 * KIB, 0)
        await file.fsync()
        async with await opened(world, os.O_RDWR | {"direct": os.O_DIRECT, "sync": os.O_SYNC}.get(what, 0)) as other:
            world.data(1).shared.pages.bytes_max = lambda: 0  # type: ignore[method-assign]
            world.data(1).shared.pages.shrink()
            await file.pread(64 * KIB, 0)
            world.osts[0].replies, world.osts[1].read_replies = asyncio.Event(), asyncio.Event()
            reading = await begun(file.pread(128 * KIB, 0))
            work = other.fallocate(0, 0, 4096) if what == "fallocate" else other.pwrite(b"y" * 4096, 0)
            changing = await begun(work)
            first, second = (world.osts[0].replies, world.osts[1].read_replies)[:: 1 if done == "before" else -1]
            first.set()
            await asyncio.sleep(0.1)
            second.set()
            found = await reading
            await changing
            old, new = b"x" * 128 * KIB, b"y" * 4096 + b"x" * 124 * KIB
            assert found == old or (what != "fallocate" and found == new), {byte: found.count(byte) for byte in set(found)}
        await file.close()


@pytest.mark.parametrize("what", ["cached", "sync", "direct"])
async def test_a_direct_read_of_a_file_that_grows_meanwhile_finds_no_zeros(what: str) -> None:
    """The OST has read the object, and somebody here writes behind its end before the answer comes."""
    async with CachingWorld(1) as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        await file.fsync()
        flags = {"direct": os.O_DIRECT, "sync": os.O_SYNC}.get(what, 0)
        async with await opened(world, os.O_RDONLY | os.O_DIRECT) as direct, await opened(world, os.O_RDWR | flags) as other:
            world.osts[0].read_replies = asyncio.Event()
            reading = await begun(direct.pread(4096, 0))
            writing = await begun(other.pwrite(b"y" * 100, 100))
            world.osts[0].read_replies.set()
            assert await reading in (b"x" * 100, b"x" * 100 + b"y" * 100)
            await writing
        await file.close()


async def test_a_direct_read_finds_a_file_as_it_was_before_a_truncation_or_after_it() -> None:
    """Of two objects; the OST of the second cuts it before it reads it, that of the first has not heard of either."""
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 128 * KIB, 0)
        await file.fsync()
        async with await opened(world, os.O_RDONLY | os.O_DIRECT) as direct:
            world.osts[1].reads, world.osts[0].replies = asyncio.Event(), asyncio.Event()
            reading = await begun(direct.pread(128 * KIB, 0))
            cutting = await begun(file.truncate(10))
            world.osts[1].reads.set()
            await asyncio.sleep(0.1)
            world.osts[0].replies.set()
            found = await reading
            await cutting
            assert found in (b"x" * 128 * KIB, b"x" * 10), (len(found), found.count(0))
        await file.close()


async def test_a_direct_read_of_two_objects_that_grow_meanwhile_finds_no_zeros() -> None:
    """The first is read before somebody writes on across its end, the second after that."""
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 128 * KIB, 0)
        await file.truncate(100)  # with the locks of both
        async with await opened(world, os.O_RDONLY | os.O_DIRECT) as direct:
            world.osts[0].read_replies, world.osts[1].reads = asyncio.Event(), asyncio.Event()
            reading = await begun(direct.pread(128 * KIB, 0))
            writing = await begun(file.pwrite(b"y" * 128 * KIB, 100))
            await file.fsync()
            world.osts[1].reads.set()
            world.osts[0].read_replies.set()
            found = await reading
            assert found in (b"x" * 100, b"x" * 100 + b"y" * (128 * KIB - 100)), (len(found), found.count(0))
            await writing
        await file.close()


async def test_a_direct_read_finds_no_zeros_where_a_file_grows_while_its_dirty_data_is_written_back() -> None:
    async with CachingWorld(1) as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        async with await opened(world, os.O_RDONLY | os.O_DIRECT) as direct:
            world.osts[0].replies = asyncio.Event()
            reading = await begun(direct.pread(4096, 0))
            writing = await begun(file.pwrite(b"y" * 100, 100))
            world.osts[0].replies.set()
            assert await reading in (b"x" * 100, b"x" * 100 + b"y" * 100)
            await writing
        await file.close()


async def test_a_direct_read_does_not_take_a_part_of_what_is_written_for_the_end_of_the_file() -> None:
    """Of a write of two MiB the first is on the OST when the object is read."""
    async with CachingWorld(1) as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        async with await opened(world, os.O_RDONLY | os.O_DIRECT) as direct:
            world.osts[0].reads = asyncio.Event()
            reading = await begun(direct.pread(2 * MIB, 0))
            writing = await begun(file.pwrite(b"y" * MIB, 100))
            await world.data().writeback.flush(next(iter(world.data().objects.values())), 0, 4096)
            world.osts[0].reads.set()
            assert len(await reading) in (100, MIB + 100)
            await writing
        await file.close()


@pytest.mark.parametrize("stripes", [1, 2])
async def test_an_append_that_waits_for_who_writes_the_end_anew_comes_behind_him(stripes: int) -> None:
    """He writes through, and waits himself for what is on its way there; when the append goes on the file is longer."""
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=stripes)
        await file.pwrite(b"x" * 4096, 0)
        async with await opened(world, os.O_RDWR | os.O_SYNC) as sync:
            world.osts[0].replies = asyncio.Event()
            writing = await begun(sync.pwrite(b"y" * 8192, 0))
            appending = await begun(file.append(b"z" * 100))
            world.osts[0].replies.set()
            await writing
            where = await appending
            assert (where, await file.pread(MIB, 0)) == (8192, b"y" * 8192 + b"z" * 100)
        await file.close()


async def test_an_append_that_waits_for_room_does_not_overwrite_what_comes_behind_the_end_meanwhile() -> None:
    async with CachingWorld(1, grant=8192) as world:
        world.osts[0].gives = 8192
        file = await opened(world)
        await file.pwrite(b"x" * 4096, 0)
        world.osts[0].replies = asyncio.Event()
        appending = await begun(file.append(b"z" * 8192))
        writing = await begun(file.pwrite(b"y" * 4096, 4096))
        world.osts[0].replies.set()
        where = await appending
        await writing
        assert (where, await file.pread(MIB, 0)) == (4096, b"x" * 4096 + b"y" * 4096 + b"z" * 4096)
        await file.close()


@pytest.mark.parametrize("start", [100, 64 * KIB - 5])
@pytest.mark.parametrize("flags", [0, os.O_SYNC])
async def test_an_append_to_several_objects_comes_behind_what_is_written_while_it_waits_for_them(flags: int, start: int) -> None:
    async with CachingWorld(2) as world:
        file = await opened(world, RW | flags, stripes=2)
        other = await opened(world)
        await file.pwrite(b"x" * 128 * KIB, 0)  # with the locks of both
        await file.truncate(start)
        for turns in range(8):
            end = (await file.fstat()).size
            appending = asyncio.get_running_loop().create_task(file.append(b"z" * 10))
            for _ in range(turns):
                await asyncio.sleep(0)
            await other.pwrite(b"y" * 100, end)
            where = await appending
            assert where in (end, end + 100)
            found = await file.pread(MIB, end)
            assert found == (b"y" * 100 if where == end else b"y" * 100 + b"z" * 10), (turns, where)
            await file.truncate(start)
        await file.close()
        await other.close()


async def test_an_append_that_waits_for_its_turn_comes_behind_who_had_his_before() -> None:
    """Both write through, and wait for a hole that is made where they write; the other one makes the file longer."""
    async with CachingWorld(1) as world:
        file = await opened(world)
        async with await opened(world, RW | os.O_SYNC) as other:
            await file.pwrite(b"x" * 100, 0)
            await file.fsync()
            world.osts[0].replies = asyncio.Event()
            works = [file.punch(10, 1000), other.pwrite(b"y" * 200, 50), other.append(b"z" * 10)]
            tasks = []
            for work in works:
                tasks.append(await begun(work))  # type: ignore[arg-type]
            world.osts[0].replies.set()
            _, _, where = await asyncio.gather(*tasks)
            assert (where, await file.pread(MIB, 0)) == (250, b"x" * 10 + bytes(40) + b"y" * 200 + b"z" * 10)
        await file.close()


async def test_nobody_sees_half_of_a_write_to_two_objects_that_waits_for_room() -> None:
    """There is room for the first part; a reader waits for the other one, and so does who writes into the range."""
    async with CachingWorld(2, grant=1 << 20) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 128 * KIB, 0)
        await file.fsync()
        world.data(1).writeback.grant.available = world.osts[1].gives = 0
        world.osts[1].replies = asyncio.Event()
        loop = asyncio.get_running_loop()
        writing = await begun(file.pwrite(b"y" * 128 * KIB, 0))
        reading = loop.create_task(file.pread(128 * KIB, 0))
        little = loop.create_task(file.pread(5, 10))
        other = await begun(file.pwrite(b"z" * 10, 5))
        assert not writing.done() and not reading.done() and not little.done() and not other.done()
        world.osts[1].replies.set()
        await writing
        assert await little in (b"y" * 5, b"z" * 5)
        await other
        assert await reading in (b"y" * 128 * KIB, b"y" * 5 + b"z" * 10 + b"y" * (128 * KIB - 15))
        assert await file.pread(20, 0) == b"y" * 5 + b"z" * 10 + b"y" * 5
        await file.close()


async def test_who_waits_holds_up_nobody_who_need_not_wait_for_him() -> None:
    """An append waits for room, and a reader for what is not in the cache: others read and write what is there."""
    async with CachingWorld(1) as world:
        file = await opened(world)
        await file.pwrite(b"x" * 128 * KIB, 0)
        await file.fsync()
        data = world.data()
        data.shared.pages.bytes_max = lambda: 0  # type: ignore[method-assign]
        data.shared.pages.shrink()
        data.shared.pages.bytes_max = lambda: 1 << 30  # type: ignore[method-assign]
        assert await file.pread(64 * KIB, 64 * KIB) == b"x" * 64 * KIB
        data.writeback.grant.available, world.osts[0].gives = 8192, 0
        world.osts[0].replies = world.osts[0].read_replies = asyncio.Event()
        await file.pwrite(b"d" * 100, 5000)  # on its way, so that there will be room
        loop = asyncio.get_running_loop()
        appending = loop.create_task(file.append(b"z" * MIB))
        reading = await begun(file.pread(64 * KIB, 0))
        assert not appending.done() and not reading.done()
        assert await file.pread(MIB, 64 * KIB) == b"x" * 64 * KIB
        await file.pwrite(b"y" * 100, 1000)
        assert await file.pread(100, 1000) == b"y" * 100
        world.osts[0].replies.set()
        assert (await reading)[1000:1100] in (b"x" * 100, b"y" * 100)
        assert await appending == 128 * KIB
        await file.close()


async def test_a_write_of_two_objects_that_has_to_wait_for_room_and_has_not_begun_holds_up_no_reader() -> None:
    """What is dirty elsewhere, on a server that is away, is all that the mount may have."""
    async with CachingWorld(3) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 128 * KIB, 0)
        await file.fsync()
        elsewhere = await world.fs.open("/g", RW, 0o644, StripeHint(1, 0, 2))
        await elsewhere.pwrite(bytes(4096), 0)
        for index in range(2):  # they have room
            await file.pwrite(b"x", index * 64 * KIB)
        world.data().shared.full = lambda cost: cost > 0  # type: ignore[method-assign]
        for server in world.osts:
            server.replies = asyncio.Event()
        writing = await begun(file.pwrite(b"y" * 128 * KIB, 0))
        assert not writing.done()
        async with asyncio.timeout(1):
            assert await file.pread(128 * KIB, 0) == b"x" * 128 * KIB
        writeback = world.data(1).writeback
        writeback.accept = lambda *args: False  # type: ignore[method-assign]
        del world.data().shared.full  # type: ignore[misc]
        assert world.osts[0].replies is not None
        world.osts[0].replies.set()
        await asyncio.sleep(writeback.node.tunables.lock_callback_s)
        reading = await begun(file.pread(128 * KIB, 0))
        assert not writing.done() and not reading.done(), "half of it is there"
        del writeback.accept  # type: ignore[misc]
        for server in world.osts:
            assert server.replies is not None
            server.replies.set()
        await writing
        assert await reading == b"y" * 128 * KIB
        for one in (file, elsewhere):
            await one.close()


@pytest.mark.parametrize("how", ["truncate", "punch", "sync"])
async def test_a_change_that_waits_for_what_is_being_written_back_holds_up_no_reader(how: str) -> None:
    """The server is away; what is in the cache can be read, as long as nothing has been changed."""
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        through = await opened(world, os.O_RDWR | os.O_SYNC)
        await file.pwrite(b"x" * 256 * KIB, 0)
        for server in world.osts:
            server.replies = asyncio.Event()
        loop = asyncio.get_running_loop()
        syncing = await begun(file.fsync())
        work = {"truncate": file.truncate(100), "punch": file.punch(0, 256 * KIB), "sync": through.pwrite(b"y" * 128 * KIB, 0)}
        changing = loop.create_task(work.pop(how))
        for coro in work.values():
            coro.close()
        await asyncio.sleep(0.1)
        assert not changing.done()
        async with asyncio.timeout(1):
            assert await file.pread(256 * KIB, 0) == b"x" * 256 * KIB
            assert (await file.fstat()).size == 256 * KIB
        for server in world.osts:
            assert server.replies is not None
            server.replies.set()
        await changing
        await syncing
        assert await file.pread(3, 0) == {"truncate": b"xxx", "punch": bytes(3), "sync": b"yyy"}[how]
        for one in (file, through):
            await one.close()


async def test_a_read_that_waits_for_the_ost_is_not_overtaken_by_half_a_write() -> None:
    """The write finds room for its first part when the read has begun, and none for its second when that is answered."""
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 256 * KIB, 0)
        await file.fsync()
        data = world.data(1)
        data.shared.pages.bytes_max = lambda: 0  # type: ignore[method-assign]
        data.shared.pages.shrink()
        data.shared.pages.bytes_max = lambda: 1 << 30  # type: ignore[method-assign]
        await file.pwrite(b"d" * 100, 200 * KIB)  # on its way to the second OST, so that there will be room
        world.osts[1].replies, world.osts[1].read_replies = asyncio.Event(), asyncio.Event()
        data.writeback.grant.available = 0
        reading = await begun(file.pread(128 * KIB, 0))
        writing = await begun(file.pwrite(b"y" * 128 * KIB, 0))
        world.osts[1].read_replies.set()
        await asyncio.sleep(0.1)
        assert not reading.done() and not writing.done()
        world.osts[1].replies.set()
        await writing
        assert await reading == b"y" * 128 * KIB
        await file.close()


async def test_a_seek_looks_at_no_file_in_the_middle_of_a_change() -> None:
    """It asks the first OST after a hole was made, and the second one before that."""
    async with CachingWorld(2) as world:
        file = await opened(world, stripes=2)
        await file.pwrite(b"x" * 128 * KIB, 0)
        await file.fsync()
        late, travel = asyncio.Event(), world.osts[0]._travel

        async def slowly(body: Any) -> None:
            if isinstance(body, ost.ObjectSeek):
                await late.wait()
            await travel(body)

        world.osts[0]._travel = slowly  # type: ignore[method-assign]
        seeking = await begun(file.find(0, os.SEEK_DATA))
        punching = await begun(file.punch(0, 128 * KIB))
        late.set()
        assert await seeking == 0
        await punching
        with pytest.raises(OpError) as caught:
            await file.find(0, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO
        await file.close()


async def test_a_read_to_the_end_knows_what_others_may_know_of_a_file_that_is_made_longer() -> None:
    async with CachingWorld(1) as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        await file.fsync()
        world.osts[0].replies = asyncio.Event()
        growing = await begun(file.truncate(200))
        reading = await begun(file.pread(-1, 0))
        world.osts[0].replies.set()
        assert await reading == b"x" * 100 + bytes(100)
        await growing
        await file.close()


async def test_what_is_written_through_a_mapping_while_the_file_is_cut_waits_for_that() -> None:
    async with CachingWorld(1) as world:
        file = await opened(world)
        await file.pwrite(b"x" * 100, 0)
        await file.fsync()
        world.osts[0].replies = asyncio.Event()
        cutting = await begun(file.truncate(50))
        (cached,) = world.data().objects.values()
        leaving = set(cached.locks.values())
        assert not file.write_mapped(memoryview(b"y" * 10), 0, leaving)
        world.osts[0].replies.set()
        await cutting
        assert file.write_mapped(memoryview(b"y" * 10), 0, leaving)
        assert await file.pread(MIB, 0) == b"y" * 10 + b"x" * 40
        await file.close()
