"""Leaving while servers are away: what a mount was told is done is there afterwards, however long that takes.

Source of most: `lustrelite demo`, where a client dies while an OSS is away; a review of what was mended for that.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import Mount, mounts
from steps import EVICTION, soon

from lustrelite.client.fs import FileSystem
from lustrelite.ids import Nid
from lustrelite.sim.processes import FSNAME, MGS_NID
from lustrelite.wire.ost import OstCreate
from lustrelite.wire.session import Disconnect

DATA = b"data" * 5000
AWAY_S = [1.0, 30.0, 200.0]  # 200: more than a recovery may take
LATE = ("client.left_open", "import.awaited", "commit.waiting", *EVICTION)


@asynccontextmanager
async def unsaid(cluster: Any) -> AsyncIterator[Any]:
    """a has written 20 files and set their times; hardly any of that is on servers. It is when the scenario ends."""
    async with cluster(caching=1, clients=3, oss=1, write_back_after_s=1000.0) as c:
        a, b = mounts(c)
        await b.mkdir("/u")
        await c.settle()
        for number in range(20):
            file = await a.open(path(number), os.O_CREAT | os.O_EXCL | os.O_RDWR)
            await file.pwrite(DATA, 0)
            await a.utimes(path(number), 5, 6 + number)
            file.what.close_later()
        yield c
        await c.settle()
        for number in range(20):
            assert (await b.stat(path(number))).mtime == 6 + number
            assert await b.content(path(number)) == DATA
        c.never_saw("client.data_lost")
        await b.rmtree("/u")


@asynccontextmanager
async def dirty(cluster: Any, count: int) -> AsyncIterator[Any]:
    """a has so many MiB of dirty data. It is written when the scenario ends."""
    data = os.urandom(1 << 20)
    async with cluster(caching=1, clients=2, oss=1, write_back_after_s=1000.0) as c:
        c.expect("import.awaited")
        a, b = mounts(c)
        await b.mkdir("/u")
        for number in range(count):
            await a.write_file(path(number), data)
        yield c
        await c.settle()
        for number in range(count):
            assert await b.content(path(number)) == data
        await b.rmtree("/u")


@asynccontextmanager
async def old_file(cluster: Any) -> AsyncIterator[Any]:
    """(the cluster, mounts a and b): /u/f has a time that will be told when somebody has read it."""
    async with cluster(caching=1, clients=2, oss=1) as c:
        c.expect(*LATE)
        a, b = mounts(c)
        await b.mkdir("/u")
        await b.write_file("/u/f", DATA)
        await b.utimes("/u/f", 5, 6)
        await c.settle()
        await asyncio.sleep(70)
        yield c, a, b
        await b.rmtree("/u")


@asynccontextmanager
async def uncommitted(cluster: Any) -> AsyncIterator[Any]:
    """a has made /f, and the MDT commits nothing. It is there when the scenario ends."""
    async with cluster(clients=2, oss=1) as c:
        c.expect(*LATE)
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        yield c
        await c.settle()
        assert await c.b.exists("/f")


def path(number: int) -> str:
    return f"/u/f{number}"


@pytest.mark.parametrize("away_s", AWAY_S)
@pytest.mark.parametrize("who", ["oss", "mds", "both"])
async def test_an_unmount_waits_for_who_is_away(cluster: Any, who: str, away_s: float) -> None:
    async with unsaid(cluster) as c:
        c.expect("import.awaited", "client.evicted")  # the MDS, by the OSS
        servers = [*([c.oss[0]] if who != "mds" else []), *([c.mds] if who != "oss" else [])]
        await asyncio.gather(*(server.kill() for server in servers))
        leaving = soon(c.a.unmount())
        await asyncio.sleep(away_s)
        assert not leaving.done()
        if away_s > c.tunables.recovery_time_hard_s:
            c.saw("import.awaited", on=c.a)
        await asyncio.gather(*(server.start() for server in servers))
        await leaving
        await c.a.start()


async def test_an_unmount_waits_for_a_recovery_that_waits_for_the_dead(cluster: Any) -> None:
    async with unsaid(cluster) as c:
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


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("who", ["oss", "mds"])
async def test_a_recovery_is_told_who_leaves_within_it(cluster: Any, who: str, after_s: float) -> None:
    """Who owes nothing went without a word: the recovery waited for him to its end, all others with it, and he was evicted.

    Found by a disk that broke shortly before two mounts were unmounted (tests/posix/test_broken_disk.py).
    """
    async with cluster(clients=3, oss=1, reconnect_pause_s=0.5, reconnect_pause_max_s=2.0) as c:
        await c.b.write("/f", DATA)
        await c.settle()
        server = c.oss[0] if who == "oss" else c.mds
        await server.kill()
        await asyncio.sleep(5)
        c.faults.arm("client.replay_done", "delay", on=c.c, delay_s=2.0)  # all wait for this one
        await server.start()
        await asyncio.sleep(after_s)
        began = c.loop.time()
        await asyncio.gather(c.a.unmount(), c.b.unmount())
        assert c.loop.time() - began < 4


@pytest.mark.parametrize("who", ["oss", "mds"])
async def test_an_unmount_finds_a_server_that_comes_back_elsewhere(cluster: Any, who: str) -> None:
    async with unsaid(cluster) as c:
        server = c.oss[0] if who == "oss" else c.mds
        await server.kill()
        leaving = soon(c.a.unmount())
        await asyncio.sleep(5)
        server.nid = Nid("elsewhere@sim")
        await server.start()
        await leaving
        await c.a.start()
        c.never_saw("import.awaited")


@pytest.mark.parametrize("how", ["power", "partition", "slow commit"])
async def test_an_mds_goes_silent_as_a_client_says_goodbye(cluster: Any, how: str) -> None:
    async with uncommitted(cluster) as c:
        if how == "power":
            await c.mds.kill(silent=True)
        elif how == "partition":
            c.net.cut(c.a, c.mds)
        leaving = soon(c.a.unmount())
        await asyncio.sleep(6)  # longer than a timeout
        await c.mds.kill()
        await c.mds.start()
        c.net.heal()
        await leaving


async def test_an_oss_loses_its_power_before_an_unmount(cluster: Any) -> None:
    async with cluster(caching=1, clients=2, oss=1) as c:
        c.expect(*LATE)
        a, b = mounts(c)
        await b.mkdir("/u")
        file = await a.open("/u/f", os.O_CREAT | os.O_RDWR)
        await c.settle()
        c.oss[0].hold_commits()
        await file.pwrite(DATA, 0)
        await asyncio.sleep(6)  # written back and answered, not committed
        await file.close()
        await c.oss[0].power_cut()
        leaving = soon(c.a.unmount())
        await asyncio.sleep(30)
        await c.oss[0].start()
        await leaving
        await c.settle()
        assert await b.content("/u/f") == DATA
        await b.rmtree("/u")


@pytest.mark.parametrize("who", ["oss", "mds"])
async def test_a_goodbye_whose_answer_is_lost_is_no_eviction(cluster: Any, who: str) -> None:
    async with unsaid(cluster) as c:
        lost = c.net.drop(Disconnect, reply=True, source=c.oss[0] if who == "oss" else c.mds, to=c.a)
        await c.a.unmount()
        await lost.caught()
        c.never_saw("import.evicted")
        await c.a.start()


async def test_a_goodbye_waits_for_slow_commits(cluster: Any) -> None:
    """The server says that it is working; who comes again meanwhile is not let in."""
    async with uncommitted(cluster) as c:
        leaving = soon(c.a.unmount())
        await asyncio.sleep(40)
        assert not leaving.done()
        c.never_saw("import.lost", on=c.a)
        await c.mds.release_commits()
        await leaving


async def test_who_lost_the_answer_to_his_goodbye_is_not_let_in_before_it_is_durable(cluster: Any) -> None:
    async with uncommitted(cluster) as c:
        leaving = soon(c.a.unmount())
        await asyncio.sleep(1)
        c.net.cut(c.a, c.mds)
        await asyncio.sleep(10)
        c.net.heal()
        await asyncio.sleep(10)
        await c.mds.kill()  # what it had done before it heard the goodbye was not durable
        await c.mds.start()
        await leaving


async def test_an_ost_is_back_a_moment_before_90_s_are_over(cluster: Any) -> None:
    async with dirty(cluster, 30) as c:
        await c.oss[0].kill()
        leaving = soon(c.a.unmount())
        await asyncio.sleep(88)
        await c.oss[0].start()
        c.oss[0].slow_disk(1.0)
        await leaving
        c.oss[0].slow_disk(0.0)


async def test_an_ost_that_is_slow_is_not_dead(cluster: Any) -> None:
    async with dirty(cluster, 30) as c:
        c.oss[0].slow_disk(60.0)
        await c.a.unmount()
        c.oss[0].slow_disk(0.0)


# told to end, or nothing to wait for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["oss", "mds"])
async def test_an_unmount_that_was_cancelled_can_be_asked_for_again(cluster: Any, who: str) -> None:
    async with unsaid(cluster) as c:
        server = c.oss[0] if who == "oss" else c.mds
        await server.kill()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(6):
                await c.a.fs.unmount()
        await server.start()
        await c.a.unmount()
        await c.a.start()


async def test_stop_after_a_cancelled_unmount_leaves_nothing(cluster: Any) -> None:
    """What `umount -f` does."""
    async with cluster(caching=1, clients=2, oss=1, write_back_after_s=1000.0) as c:
        c.expect("client.data_lost", "lock.expired", *EVICTION)
        a, b = mounts(c)
        await b.mkdir("/u")
        await a.write_file("/u/f", DATA)
        await c.oss[0].kill()

        async def leave() -> None:
            try:
                async with asyncio.timeout(3):
                    await c.a.fs.unmount()
            except TimeoutError:
                c.a.fs.stop()

        await c.a.unrecorded(leave())
        await asyncio.sleep(5)
        assert not c.a.node.tasks
        c.saw("client.data_lost", on=c.a)
        await c.a.kill()
        await c.oss[0].start()
        await c.settle()
        await b.rmtree("/u")


@pytest.mark.parametrize("caching", [0, 1])
async def test_a_reader_waits_for_no_dead_mds(cluster: Any, caching: int) -> None:
    async with cluster(caching=caching, clients=2, oss=1) as c:
        c.expect(*LATE)
        await c.b.write("/f", b"x")
        await asyncio.sleep(100)
        await c.a.open("/f", read_only=True)  # and reads nothing: there is no time to tell
        await asyncio.sleep(10)
        await c.mds.kill()
        began = c.loop.time()
        await c.a.unmount()
        assert c.loop.time() - began < 30
        await c.mds.start()


async def test_who_was_interrupted_waits_for_no_dead_mds(cluster: Any) -> None:
    """He was told nothing; locks on their way back are nothing, either."""
    async with cluster(caching=1, clients=2, oss=1) as c:
        c.expect(*LATE)
        a, b = mounts(c)
        await c.a.mkdir("/d")
        await b.stat("/d")
        await a.stat("/d")
        await asyncio.sleep(30)
        await c.mds.pause()
        making = c.a.node.spawn(c.a.fs.mkdir("/new"), "mkdir")
        await asyncio.sleep(1)
        making.cancel()
        for imp in c.a.imports:
            imp.locks.clear_unused()  # as the LRU does
        await asyncio.sleep(0.1)
        await c.mds.kill()
        began = c.loop.time()
        await c.a.unmount()
        assert c.loop.time() - began < 30
        await c.mds.start()
        await c.settle()
        if await b.exists("/new"):
            await b.rmdir("/new")


async def test_a_deactivated_ost_is_not_waited_for(cluster: Any) -> None:
    """And it is said what that costs."""
    async with cluster(caching=1, clients=2, oss=1, write_back_after_s=1000.0) as c:
        c.expect("client.data_lost", "lock.expired", "lock.flush_failed", "import.left_uncommitted", *EVICTION)
        a, b = mounts(c)
        await b.mkdir("/u")
        await a.write_file("/u/f", DATA)
        await c.oss[0].kill()
        leaving = soon(c.a.unmount())
        await asyncio.sleep(10)
        assert not leaving.done()
        next(imp for imp in c.a.imports if "OST" in imp.target).deactivate()
        began = c.loop.time()
        await leaving
        assert c.loop.time() - began < 30
        c.saw("client.data_lost", on=c.a)
        await c.oss[0].start()
        await c.settle()
        await b.rmtree("/u")


# times that are told late ------------------------------------------------------------------------------------------------


async def test_when_a_file_was_read_is_told_to_an_mds_that_lost_its_power(cluster: Any) -> None:
    """It is silent for two timeouts before it is known to be away."""
    async with old_file(cluster) as (c, a, b):
        file = await a.open("/u/f", os.O_RDONLY)
        await file.pread(100, 0)
        atime = file.what.atime
        await c.mds.kill(silent=True)
        file.what.close_later()
        leaving = soon(c.a.unmount())
        await asyncio.sleep(20)
        await c.mds.start()
        await leaving
        await c.settle()
        assert (await b.stat("/u/f")).atime == atime


@pytest.mark.parametrize("silent", [False, True])
async def test_when_a_locked_file_was_read_is_told(cluster: Any, silent: bool) -> None:
    """Its close does not wait until its record locks are gone."""
    async with old_file(cluster) as (c, a, b):
        file = await a.open("/u/f", os.O_RDWR)
        await file.flock(fcntl.LOCK_EX)
        await file.pread(100, 0)
        atime = file.what.atime
        await file.pwrite(DATA, 0)
        await file.fsync()
        await asyncio.sleep(3)
        await c.mds.kill(silent=silent)
        file.what.close_later()
        leaving = soon(c.a.unmount())
        await asyncio.sleep(20)
        await c.mds.start()
        await leaving
        await c.settle()
        assert (await b.stat("/u/f")).atime == atime


async def test_what_waits_for_objects_when_its_client_leaves_is_not_made(cluster: Any) -> None:
    """Who asked for it was interrupted, so the goodbye does not wait for it."""
    async with cluster(clients=2, oss=1, caching=0) as c:
        more = c.net.hold(OstCreate, to=c.oss[0])
        exports = c.mds.target().exports
        files = soon(asyncio.gather(*(c.b.create(f"/{number}") for number in range(100))))
        await c.until(lambda: any(export.calls_in_progress() for export in exports.values()))
        making = c.a.node.spawn(c.a.fs.create("/f"), "create")
        await asyncio.sleep(0.1)
        making.cancel()
        await c.a.unmount()
        more.release()
        await files
        assert "f" not in await c.b.listdir("/")


async def test_who_gives_up_mounting_has_left(cluster: Any) -> None:
    """A command that waited for a dead MDS, and was interrupted or lost its patience, had been taken in by every OST: the next
    recovery of each waited for it, and with that everybody else, until its time was over."""
    async with cluster(clients=1, oss=2) as c:
        known = [list(oss.target().exports) for oss in c.oss]
        await c.mds.kill()
        mounting = c.a.node.spawn(FileSystem.mount(c.a.node, [MGS_NID], FSNAME), "mount")
        await c.until(lambda: all(len(oss.target().exports) > len(before) for oss, before in zip(c.oss, known, strict=True)))
        await asyncio.sleep(1.0)
        mounting.cancel()
        await asyncio.wait([mounting])
        assert [list(oss.target().exports) for oss in c.oss] == known
        await c.mds.start()
