"""Data that arrives late, and appends, when the OST evicts their client in the middle."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

import pytest
from steps import EVICTION
from test_cache import caching

from lustrelite.errors import OpError

MIB = 1 << 20


async def test_nothing_lands_in_a_readers_buffer_after_his_read_has_failed(cluster: Any) -> None:
    """He is evicted while data is on its way: he hears of it, and his memory is his again."""
    async with cluster(oss=1, caching=1) as c:
        c.expect(*EVICTION)
        await c.a.write("/f", b"d" * MIB)
        await c.a.fs.sync()
        async with await c.a.fs.open("/f", os.O_RDONLY | os.O_DIRECT) as file:
            imp = c.a.fs.connections.imports["lustre-OST0000"]
            buffer = bytearray(MIB)
            fast = c.net.latency
            c.net.latency = replace(c.net.latency, bytes_per_s=MIB / 30)
            reading = asyncio.get_running_loop().create_task(file.pread_into(buffer, 0))
            await c.until(lambda: any(request.landing for request in imp.sending.values()))
            await c.evict(c.a, c.oss[0])
            try:
                await reading
            except OpError as error:
                seen = repr(error)
            else:
                raise AssertionError("it was not evicted")
            buffer[:] = b"m" * MIB
            await asyncio.sleep(100)
            c.net.latency = fast
            assert buffer == b"m" * MIB, seen


async def test_an_append_never_lands_before_the_end_of_the_file(cluster: Any) -> None:
    """The OST with the end of the file evicts him while he waits for a lock of another one."""
    async with caching(cluster, oss=3, write_back_after_s=1000.0) as c:
        c.expect(*EVICTION, "lock.expired")
        unit = 64 << 10
        await c.a.unrecorded(c.a.fs.setstripe("/f", 3, unit, 0))

        async def prepare() -> None:
            async with await c.b.fs.open("/f", os.O_RDWR) as file:
                await file.pwrite(b"e", 3 * unit)
                await file.fsync()
                await file.pwrite(b"m" * 10, unit)  # a lock on the second object
                await file.fsync()

        await c.b.unrecorded(prepare())
        end = 3 * unit + 1
        file = await c.a.unrecorded(c.a.fs.open("/f", os.O_RDWR))
        await c.a.unrecorded(file.pread(1, 3 * unit))  # now b has no lock on the first
        rule = c.net.drop("BlockingCallback", to=c.b, times=-1)
        appending = asyncio.get_running_loop().create_task(c.a.unrecorded(file.append(b"appended")))
        await asyncio.sleep(0.3)
        first = file.layout.stripes[0][0]
        await c.evict(c.a, c.oss[first])
        await c.until_saw("import.evicted", on=c.a)
        rule.lift()
        try:
            where = await appending
        except OpError:
            where = end  # that would be right, too
        assert where == end
        await c.a.unrecorded(file.close())


@pytest.mark.parametrize("what", ["write", "read"])
async def test_data_finds_another_way_when_only_its_own_connection_is_dead(cluster: Any, what: str) -> None:
    """A router had forgotten the bulk connection, which was idle; pings passed, so the link was kept, and data sent into it for ever."""
    async with cluster(oss=1, clients=1, caching=0) as c:
        c.expect("import.lost")
        await c.a.write("/f", b"old" * MIB)
        link = c.a.fs.connections.imports["lustre-OST0000"].link.link
        transmit = c.net.transmit

        def forget(side: Any, frame: Any, delay_s: float = 0.0) -> None:
            if side not in (link, link.other) or not side.channel(frame.data):
                transmit(side, frame, delay_s)

        c.net.transmit = forget
        async with asyncio.timeout(4 * c.tunables.rpc_timeout_s):
            if what == "write":
                await c.a.write("/f", b"new" * MIB)
            else:
                assert await c.a.read("/f") == b"old" * MIB
        assert link.closed
        c.net.transmit = transmit
