"""What a review of the client's data path found, with real servers."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

from steps import EVICTION

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
