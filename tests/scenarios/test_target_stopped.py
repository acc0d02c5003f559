"""One target of a process is stopped (`lustrelite stop TARGET`) and the process goes on: nothing of it is still at work.

Whatever met its closed store would end the process, and with it all its other targets.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from steps import EVICTION

from lustrelite.wire.mgs import SetParam


async def stop_target(server: Any, name: str) -> None:
    """As `lustrelite stop NAME`."""
    await server.cluster.finish(server.node, server.daemon.stop_target(name), "stop target")


async def start_target(server: Any, name: str) -> None:
    """As `lustrelite start NAME`."""
    directory = str(server.cluster.disks.directory(name))
    await server.cluster.finish(server.node, server.daemon.start_target(directory), "start target")


@pytest.mark.parametrize("when", ["in recovery", "at the end of recovery", "later"])
async def test_an_oss_outlives_one_of_its_osts(cluster: Any, when: str) -> None:
    """Its recovery, the end of that, or the search for silent clients went on, and found the store closed."""
    async with cluster(oss=1, osts=2, clients=2) as c:
        c.expect(*EVICTION)
        oss, silent = c.oss[0], c.b
        stopped, other = oss.targets
        await c.a.write("/f", b"x")
        await c.settle()
        if when == "at the end of recovery":
            c.faults.arm("target.recovery_end", "delay", delay_s=5.0, on=oss, keep=True)
        else:
            await silent.pause()
        if when == "later":
            await asyncio.sleep(0.8 * c.tunables.evict_silent_s)
        else:
            await oss.kill()
            await oss.start()
            await asyncio.sleep(1.0)
        process = oss.node
        await stop_target(oss, stopped)
        await asyncio.sleep(c.tunables.recovery_time_hard_s)
        assert oss.alive and oss.node is process and [target.name for target in oss.running] == [other]
        assert not oss.daemon.service.waiting, "they took the place of requests to the others, and were said to be worked on"
        await silent.resume()
        await start_target(oss, stopped)
        await c.settle()
        assert await c.a.read("/f") == b"x"


async def test_an_mds_outlives_its_mdt(cluster: Any) -> None:
    """It heard of new parameters, and wanted to remember them."""
    async with cluster(oss=1, clients=1) as c:
        process = c.mds.node
        await stop_target(c.mds, c.mds.targets[0])
        set_param = c.a.fs.connections.config.mgs.call
        await c.a.unrecorded(set_param(SetParam("lustre", "lustre-OST0000.osc.active", "0")))
        await asyncio.sleep(5.0)
        assert c.mds.alive and c.mds.node is process
        await c.a.unrecorded(set_param(SetParam("lustre", "lustre-OST0000.osc.active", "")))
        await start_target(c.mds, c.mds.targets[0])
        await c.settle()
        await c.a.write("/f", b"x")


@pytest.mark.parametrize("mgs", ["is there", "is away"])
async def test_a_server_forgets_the_targets_it_has_stopped(cluster: Any, mgs: str) -> None:
    """Whoever was registered heard of the configuration for ever; who waited for the MGS still told it where he is."""
    async with cluster(oss=1, clients=1) as c:
        if mgs == "is away":
            await c.mgs.kill()
            await asyncio.sleep(2 * c.tunables.connect_timeout_s)
        started = []
        for server in (c.mds, c.oss[0]):
            for _ in range(3):
                await stop_target(server, server.targets[0])
                await start_target(server, server.targets[0])
                await c.until(lambda server=server: not server.target().recovering)
                await asyncio.sleep(2 * c.tunables.connect_timeout_s)
                started.append(weakref.ref(server.target()))
        gc.collect()
        assert [target() is None for target in started] == [True, True, False] * 2
        if mgs == "is away":
            await c.mgs.start()
        await c.settle()
        await c.a.write("/f", b"x")


async def test_a_target_that_was_stopped_is_not_registered_when_the_mgs_is_back(cluster: Any) -> None:
    """It came after its successor had, and was said to be an old copy."""
    async with cluster(oss=1, clients=1) as c:
        await c.mgs.kill()
        oss, name = c.oss[0], c.oss[0].targets[0]
        for _ in range(3):
            await oss.kill()
            await oss.start()
            await c.until(lambda: not oss.target().recovering)
            await stop_target(oss, name)
        await c.mgs.start()
        await asyncio.sleep(10.0)
        instance = c.mgs.target().entries[name].info.instance
        await start_target(oss, name)
        await c.settle()
        assert c.mgs.target().entries[name].info.instance == oss.target().instance == instance + 4


async def test_a_target_that_starts_while_the_mgc_is_inactive_is_registered_later(cluster: Any) -> None:
    async with cluster(oss=1, clients=1) as c:
        c.expect("target.not_registered")
        oss, name = c.oss[0], c.oss[0].targets[0]
        await stop_target(oss, name)
        mgc = oss.daemon.followers["lustre"].mgs
        mgc.deactivate()
        await start_target(oss, name)
        await asyncio.sleep(c.tunables.connect_timeout_s)
        mgc.activate()
        await c.until(lambda: c.mgs.target().entries[name].info.instance == oss.target().instance)
