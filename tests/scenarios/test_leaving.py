"""Leaving while servers are away: what a mount was told is done is there afterwards, however long that takes."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import Mount, mounts
from steps import EVICTION, soon

DATA = b"data" * 5000
AWAY_S = [1.0, 30.0, 200.0]  # 200: more than a recovery may take


@asynccontextmanager
async def unsaid(cluster: Any, **topology: Any) -> Any:
    """a has written 20 files and set their times; hardly any of that is on servers. It is when the scenario ends."""
    async with cluster(caching=1, clients=3, oss=1, write_back_after_s=1000.0, **topology) as c:
        a, b = mounts(c)
        await b.mkdir("/u")
        await c.settle()
        for number in range(20):
            file = await a.open(path(number), os.O_CREAT | os.O_EXCL | os.O_RDWR)
            await file.pwrite(DATA, 0)
            await a.utimes(path(number), 5, 6 + number)
            file.what.close_later()
        yield c, a, b
        await c.settle()
        for number in range(20):
            assert (await b.stat(path(number))).mtime == 6 + number
            assert await b.content(path(number)) == DATA
        c.never_saw("client.data_lost")
        await b.rmtree("/u")


def path(number: int) -> str:
    return f"/u/f{number}"


@pytest.mark.parametrize("away_s", AWAY_S)
@pytest.mark.parametrize("who", ["oss", "mds", "both"])
async def test_an_unmount_waits_for_who_is_away(cluster: Any, who: str, away_s: float) -> None:
    async with unsaid(cluster) as (c, _, _):
        c.expect("import.awaited", "client.evicted")  # the MDS, by the OSS
        servers = [*([c.oss[0]] if who != "mds" else []), *([c.mds] if who != "oss" else [])]
        await asyncio.gather(*(server.kill() for server in servers))
        leaving = soon(c.a.unmount())
        await asyncio.sleep(away_s)
        assert not leaving.done()
        await asyncio.gather(*(server.start() for server in servers))
        await leaving
        await c.a.start()


async def test_an_unmount_waits_for_a_recovery_that_waits_for_the_dead(cluster: Any) -> None:
    """Source: `lustrelite demo`, where a client dies while an OSS is away"""
    async with unsaid(cluster) as (c, _, _):
        c.expect("import.awaited", *EVICTION)
        assert not await Mount(c.c).exists("/nothing")
        await c.oss[0].kill()
        await c.c.kill()
        leaving = soon(c.a.unmount())
        await asyncio.sleep(80)
        await c.oss[0].start()
        await leaving
        await c.a.start()
        await c.c.start()
