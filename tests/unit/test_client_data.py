"""Reads and writes over several objects against a bytearray; the bounds on RPCs; holes, short objects, errors."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable
from typing import Any

import pytest
from fake_servers import FakeOst, World
from file_model import FileModel
from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.errors import OpError
from lustrelite.ids import ROOT_FID, make_fid
from lustrelite.tunables import limits
from lustrelite.wire import ost
from lustrelite.wire.mdt import Layout
from lustrelite.wire.message import ROOT_CRED

pytestmark = pytest.mark.simulated

FILE = make_fid(0x200000401, 7)


def layout(stripe_size: int, count: int, osts: int) -> Layout:
    return Layout(stripe_size, 0, "", tuple((i % osts, 10 + i) for i in range(count)))


async def read(world: World, where: Layout, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xee" * length)
    done = await world.connections.lov.read_into(where, memoryview(buffer), offset, cred=ROOT_CRED)
    return bytes(buffer[:done])


async def write(world: World, where: Layout, data: bytes, offset: int) -> None:
    lov = world.connections.lov
    await lov.write(where, FILE, memoryview(data), offset, time=world.connections.time(), cred=ROOT_CRED)


async def fails(number: int, operation: Awaitable[Any]) -> None:
    with pytest.raises(OpError) as caught:
        await operation
    assert caught.value.errno == number


OFFSET = st.integers(0, 60)
MODES = st.sampled_from(
    [0, ost.FALLOC_KEEP_SIZE, ost.FALLOC_PUNCH_HOLE | ost.FALLOC_KEEP_SIZE, ost.FALLOC_ZERO_RANGE,
     ost.FALLOC_ZERO_RANGE | ost.FALLOC_KEEP_SIZE]
)  # fmt: skip
OPERATION = st.one_of(
    st.tuples(st.just("write"), OFFSET, st.binary(max_size=40)),
    st.tuples(st.just("read"), OFFSET, st.integers(0, 80)),
    st.tuples(st.just("truncate"), OFFSET, st.none()),
    st.tuples(st.just("fallocate"), OFFSET, st.tuples(MODES, st.integers(1, 40))),
    st.tuples(st.just("find"), OFFSET, st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(
    operations=st.lists(OPERATION, max_size=14),
    stripe_size=st.integers(1, 9),
    count=st.integers(1, 5),
    osts=st.integers(1, 3),
    bytes_max=st.integers(1, 12),
    read_max=st.sampled_from([1, 3, 1000]),
    seed=st.integers(0, 3),
)
def test_a_striped_file_behaves_like_a_bytearray(
    operations: list[tuple[str, int, Any]], stripe_size: int, count: int, osts: int, bytes_max: int, read_max: int, seed: int
) -> None:  # fmt: skip
    """Whatever the striping, the size of an RPC, and how little an OST answers at once."""

    async def run() -> None:
        async with World(osts, bytes_max=bytes_max, seed=seed) as world:
            for server in world.osts:
                server.read_max = read_max
            where = layout(stripe_size, count, osts)
            model = FileModel()
            lov = world.connections.lov
            for kind, offset, argument in operations:
                if kind == "write":
                    await write(world, where, argument, offset)
                    model.write(offset, argument)
                elif kind == "read":
                    assert await read(world, where, offset, argument) == model[offset : offset + argument]
                elif kind == "truncate":
                    await lov.truncate(where, FILE, offset, time=1, cred=ROOT_CRED)
                    model.truncate(offset)
                elif kind == "find":
                    whence = ost.SEEK_DATA if argument else ost.SEEK_HOLE
                    expected = model.find(offset, data=argument)
                    seeking = lov.seek(where, offset, whence, cred=ROOT_CRED)
                    if expected < 0:
                        await fails(errno.ENXIO, seeking)
                    else:
                        assert await seeking == expected
                else:
                    mode, length = argument
                    await lov.fallocate(where, FILE, offset, offset + length, mode, time=1, cred=ROOT_CRED)
                    model.fallocate(mode, offset, offset + length)
                assert (await lov.getattr(where, cred=ROOT_CRED)).size == len(model)
            assert await read(world, where, 0, 200) == model

    asyncio.run(run())


async def test_a_hole_before_data_on_another_object_reads_as_zeros() -> None:
    async with World(3) as world:
        where = layout(4, 3, 3)
        await write(world, where, b"xy", 9)  # object 2 only
        assert await read(world, where, 0, 100) == bytes(9) + b"xy"
        assert await read(world, where, 2, 4) == bytes(4)


async def test_the_other_objects_are_asked_only_when_one_is_short() -> None:
    async with World(2) as world:
        where = layout(4, 2, 2)
        await write(world, where, b"abcdefghij", 0)
        for server in world.osts:
            server.calls.clear()
        assert await read(world, where, 0, 4) == b"abcd"
        assert world.osts[0].names() == ["Read"] and world.osts[1].names() == []
        assert await read(world, where, 8, 4) == b"ij"
        assert world.osts[0].names() == ["Read", "Read"] and world.osts[1].names() == ["ObjectGetattr"]


async def test_data_rpcs_in_flight_are_bounded_on_each_ost() -> None:
    async with World(2, bytes_max=16) as world:
        world.node.tunables.max_rpcs_in_flight = 3
        where = layout(64, 2, 2)
        await write(world, where, bytes(range(256)) * 8, 0)
        assert await read(world, where, 0, 4096) == bytes(range(256)) * 8
        assert [server.in_flight_max for server in world.osts] == [3, 3]
        world.node.tunables.max_rpcs_in_flight = 1
        for server in world.osts:
            server.in_flight_max = 0
        await write(world, where, bytes(2048), 0)
        assert [server.in_flight_max for server in world.osts] == [1, 1]


async def test_an_rpc_carries_no_more_than_the_ost_takes_and_says_whose_data_it_is() -> None:
    async with World(2, bytes_max=100) as world:
        await write(world, layout(64, 2, 2), bytes(1000), 30)
        for index, server in enumerate(world.osts):
            for call in server.calls:
                assert isinstance(call, ost.Write)
                assert (call.object, call.owner, call.stripe) == (10 + index, FILE, index)


async def test_the_first_error_in_file_order_is_raised_when_all_have_ended() -> None:
    async with World(2, bytes_max=64) as world:
        world.osts[0].errors.append(OpError(errno.ENOSPC))
        world.osts[1].errors.append(OpError(errno.EIO))
        with pytest.raises(OpError) as caught:
            await write(world, layout(64, 2, 2), bytes(256), 0)
        assert caught.value.errno == errno.ENOSPC
        assert [server.in_flight for server in world.osts] == [0, 0]
        assert sum(len(server.calls) for server in world.osts) == 4


async def test_a_missing_object_is_a_stale_file() -> None:
    async with World(1) as world:
        world.osts[0].destroyed.add(10)
        for attempt in (
            read(world, layout(64, 1, 1), 0, 10),
            write(world, layout(64, 1, 1), b"x", 0),
            world.connections.lov.getattr(layout(64, 1, 1), cred=ROOT_CRED),
        ):
            with pytest.raises(OpError) as caught:
                await attempt
            assert caught.value.errno == errno.ESTALE


async def test_what_no_object_can_hold_is_refused() -> None:
    async with World(1) as world:
        where = layout(1 << 16, 1, 1)
        for attempt in (
            write(world, where, b"x", limits.object_bytes_max),
            world.connections.lov.truncate(where, FILE, limits.object_bytes_max + 1, time=1, cred=ROOT_CRED),
        ):
            with pytest.raises(OpError) as caught:
                await attempt
            assert caught.value.errno == errno.EFBIG
        assert world.osts[0].calls == []


async def test_a_cancelled_read_leaves_no_slot_taken() -> None:
    async with World(2, bytes_max=16) as world:
        world.node.tunables.max_rpcs_in_flight = 2
        where = layout(64, 2, 2)
        await write(world, where, bytes(512), 0)
        for server in world.osts:
            server.silent = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await read(world, where, 0, 512)
        await asyncio.sleep(0)
        for server in world.osts:
            server.silent = False
        assert [server.in_flight for server in world.osts] == [0, 0]
        assert await read(world, where, 0, 512) == bytes(512)


async def test_an_ost_that_the_client_has_not_heard_of_is_waited_for_a_little() -> None:
    async with World(1) as world:
        where = Layout(64, 0, "", ((0, 1), (5, 2)))
        late = FakeOst()

        async def come() -> None:
            await asyncio.sleep(0.01)
            world.connections.add_ost(5, late)

        task = asyncio.get_running_loop().create_task(come())
        await write(world, where, bytes(128), 0)
        await task
        assert late.names() == ["Write"]
        world.node.tunables.rpc_timeout_s = 0.01
        with pytest.raises(OpError) as caught:
            await write(world, Layout(64, 0, "", ((9, 1),)), b"x", 0)
        assert caught.value.errno == errno.EIO and "OST0009" in str(caught.value)


async def test_statfs_leaves_out_an_ost_that_does_not_answer() -> None:
    async with World(3) as world:
        world.osts[1].silent = True
        found = await world.fs.statfs()
        assert (found.bytes_total, found.bytes_available) == (2000, 1000)
        assert (found.files_total, found.files_free) == (180, 80)
        assert [reply is not None for _, reply in (await world.fs.statfs_targets())[1]] == [True, False, True]


async def test_fids_come_from_sequences_and_are_used_once() -> None:
    async with World() as world:
        fids = [await world.connections.mdc.new_fid() for _ in range(50)]
        assert len(set(fids)) == 50
        more = await asyncio.gather(*(world.connections.mdc.new_fid() for _ in range(100)))
        assert len({*fids, *more}) == 150
        assert world.mdt.sequences <= 150 // world.mdt.width + 2
        assert ROOT_FID not in more


async def test_a_sequence_that_was_refused_long_ago_is_asked_for_again() -> None:
    """It was asked for ahead of its time, while we were evicted: the create that needs it hours later failed."""
    async with World() as world:
        mdc, allocate, evicted = world.connections.mdc, world.mdt.on_AllocateSequence, True

        def refuse(body: Any) -> Any:
            if evicted and world.mdt.sequences:
                raise OpError(errno.EIO)
            return allocate(body)

        world.mdt.on_AllocateSequence = refuse
        await mdc.new_fid()
        while mdc._next_oid <= mdc._last_oid:
            await mdc.new_fid()
        await asyncio.sleep(1)
        evicted = False
        await mdc.new_fid()
        evicted = True
        while mdc._next_oid <= mdc._last_oid:
            await mdc.new_fid()
        with pytest.raises(OpError):
            await mdc.new_fid()
