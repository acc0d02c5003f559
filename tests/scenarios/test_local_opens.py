"""Files that are open to be read without the MDT's knowledge: it hears of them before it matters."""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import Asked, Mount, mounts
from steps import EVICTION, refused, soon

from lustrelite.wire.mdt import Closes, Reopen

DATA = b"what was there when it was opened"


@asynccontextmanager
async def opened_by_a(cluster: Any, clients: int = 2) -> Any:
    """(the cluster, mounts a and b, a's open file /u/f): a has asked for no handle."""
    async with cluster(caching=1, clients=clients) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        await b.write_file("/u/f", DATA)
        await a.stat("/u/f")
        with Asked(c.a) as asked:
            file = await a.open("/u/f", os.O_RDONLY)
        assert asked == {} and opens_of(c, c.a) == 0
        yield c, a, b, file
        if not file.what.closed:
            await file.close()
        await c.settle()
        assert opens_of(c, c.a) == 0
        await a.rmtree("/u")


def opens_of(c: Any, client: Any) -> int:
    """How many handles the MDT knows of."""
    export = c.mds.target().exports.get(client.uuid)
    return len(export.opens) if export is not None else 0


async def remove(mount: Mount, how: str) -> None:
    """/u/f loses its last name."""
    if how == "unlink":
        await mount.unlink("/u/f")
    else:
        await mount.write_file("/u/other", b"another one")
        await mount.rename("/u/other", "/u/f")


async def test_what_is_known_is_opened_read_and_closed_without_a_request(cluster: Any) -> None:
    async with opened_by_a(cluster) as (c, a, _, file):
        assert await file.pread(-1, 0) == DATA
        with Asked(c.a) as asked:
            assert await a.content("/u/f", os.O_RDONLY | os.O_NOATIME) == DATA
            assert await a.content("/u/f", os.O_RDONLY | os.O_NOATIME) == DATA
        assert asked == {}


@pytest.mark.parametrize("how", ["unlink", "rename"])
@pytest.mark.parametrize("who", ["a", "b"])
async def test_it_outlives_the_last_name_of_its_file(cluster: Any, who: str, how: str) -> None:
    """Also if the client removes it itself: its own lock is in the way, and the MDT asks it like any other."""
    async with opened_by_a(cluster) as (c, a, b, file):
        await remove({"a": a, "b": b}[who], how)
        assert opens_of(c, c.a) == 1
        await asyncio.sleep(60)
        assert await file.pread(-1, 0) == DATA
        assert (await file.fstat()).nlink == 0


@pytest.mark.parametrize("when", ["before", "between", "after"])
async def test_it_outlives_the_mds_and_then_its_name(cluster: Any, when: str) -> None:
    """The MDS dies before it is told of the open, or afterwards: the lock is replayed, or the Reopen."""
    async with opened_by_a(cluster) as (c, _, b, file):
        await c.replay_barrier(c.mds)
        if when == "before":
            await c.fail(c.mds)
        await b.unlink("/u/f")
        if when == "between":
            await c.fail(c.mds)
        assert await file.pread(-1, 0) == DATA
        if when == "after":
            await file.close()
            await c.fail(c.mds)
        else:
            await asyncio.sleep(60)
            assert await file.pread(-1, 0) == DATA
        c.never_saw("import.evicted")


async def test_it_outlives_an_orderly_stop_of_the_mds(cluster: Any) -> None:
    """Which asks for all locks, and waits for them."""
    async with opened_by_a(cluster) as (c, _, b, file):
        before = c.loop.time()
        await c.mds.stop()
        assert c.loop.time() - before < 1.0
        await c.mds.start()
        await b.unlink("/u/f")
        await asyncio.sleep(60)
        assert await file.pread(-1, 0) == DATA
        c.never_saw("client.evicted")
        c.never_saw("import.evicted")


@pytest.mark.parametrize("part", ["request", "reply"])
async def test_a_reopen_that_is_lost_is_sent_again(cluster: Any, part: str) -> None:
    async with opened_by_a(cluster) as (c, _, b, file):
        lost = c.net.drop(Reopen, reply=part == "reply")
        await b.unlink("/u/f")
        await lost.caught()
        assert await file.pread(-1, 0) == DATA
        assert opens_of(c, c.a) == 1
        c.never_saw("import.evicted")


async def test_the_mds_dies_with_the_answer_to_a_reopen(cluster: Any) -> None:
    """It was executed and is lost, or committed and must be made again: in both cases one handle is there afterwards."""
    async with opened_by_a(cluster) as (c, _, b, file):
        lost = c.net.drop(Reopen, reply=True)
        removing = soon(b.unlink("/u/f"))
        await lost.caught()
        await c.mds.commit()
        await c.fail(c.mds)
        await removing
        assert opens_of(c, c.a) == 1
        assert await file.pread(-1, 0) == DATA
        c.never_saw("import.evicted")


async def test_many_that_are_removed_at_once_by_their_own_client_do_not_wait_for_each_other(cluster: Any) -> None:
    """All reply slots of a client hold requests that wait for its own locks: the Reopens need no slot of these."""
    async with opened_by_a(cluster) as (c, a, b, _):
        names = [f"/u/g{number}" for number in range(100)]
        for name in names:
            await b.write_file(name, name.encode())
            await a.stat(name)
        files = [await a.open(name, os.O_RDONLY) for name in names]
        assert opens_of(c, c.a) == 0
        before = c.loop.time()
        await asyncio.gather(*[a.unlink(name) for name in names])
        assert c.loop.time() - before < 1.0
        assert opens_of(c, c.a) == 100
        for name, file in zip(names, files, strict=True):
            assert await file.pread(-1, 0) == name.encode()
            await file.close()
        c.never_saw("client.evicted")


async def test_it_is_closed_while_the_mdt_is_told_of_it(cluster: Any) -> None:
    async with opened_by_a(cluster) as (c, _, b, file):
        held = c.net.hold(Reopen, to=c.mds)
        removing = soon(b.unlink("/u/f"))
        await held.caught()
        closing = soon(file.close())
        await asyncio.sleep(0.1)
        held.release()
        await asyncio.gather(removing, closing)
        await c.settle()
        assert opens_of(c, c.a) == 0


async def test_who_is_evicted_has_no_open_file_any_more_and_can_close_it(cluster: Any) -> None:
    async with opened_by_a(cluster) as (c, a, b, file):
        c.expect(*EVICTION)
        await c.evict(c.a)
        await b.unlink("/u/f")
        await c.settle()
        assert opens_of(c, c.a) == 0
        await file.close()
        assert await a.names("/u") == []


async def test_an_access_time_is_told_at_close(cluster: Any) -> None:
    async with opened_by_a(cluster) as (_, a, b, file):
        before = (await b.stat("/u/f")).atime
        await file.pread(-1, 0)
        seen = (await a.stat("/u/f")).atime
        assert seen > before
        await file.close()
        assert (await b.stat("/u/f")).atime == seen
        await b.utimes("/u/f", 1, 1)
        assert (await a.stat("/u/f")).atime == 1


async def test_times_that_are_set_while_it_is_open_count(cluster: Any) -> None:
    async with opened_by_a(cluster) as (_, a, b, file):
        await file.pread(-1, 0)
        await b.utimes("/u/f", 1, 1)
        await file.close()
        assert (await b.stat("/u/f")).atime == (await a.stat("/u/f")).atime == 1


@pytest.mark.parametrize("when", ["waiting", "under way"])
@pytest.mark.parametrize("who", ["a", "b"])
async def test_times_that_are_set_after_its_close_count(cluster: Any, who: str, when: str) -> None:
    """The kernel does not wait for its RELEASE: the MDT hears of the read later, or slowly."""
    async with opened_by_a(cluster) as (c, a, b, file):
        await file.pread(-1, 0)
        held = c.net.hold(Closes, to=c.mds)
        file.what.close_later()
        if when == "under way":
            await held.caught()
        await {"a": a, "b": b}[who].utimes("/u/f", 1, 1)
        await asyncio.sleep(2)
        held.release()
        await asyncio.sleep(1)
        assert (await b.stat("/u/f")).atime == (await a.stat("/u/f")).atime == 1


async def test_an_older_reading_is_told_after_a_newer_one(cluster: Any) -> None:
    """Two opens of a file: who has read it first is closed while the MDT is being told of the other."""
    async with opened_by_a(cluster) as (c, a, b, file):
        await file.pread(-1, 0)
        await asyncio.sleep(0.1)
        other = await a.open("/u/f", os.O_RDONLY)
        await other.pread(-1, 0)
        held = c.net.hold(Closes, to=c.mds)
        other.what.close_later()
        await held.caught()
        read = (await a.stat("/u/f")).atime
        file.what.close_later()
        held.release()
        await asyncio.sleep(3)
        assert (await b.stat("/u/f")).atime == read == (await a.stat("/u/f")).atime


@pytest.mark.parametrize("who", ["a", "b"])
async def test_a_modification_time_that_is_set_after_its_close_leaves_the_access_time(cluster: Any, who: str) -> None:
    async with opened_by_a(cluster) as (c, a, b, file):
        await file.pread(-1, 0)
        read = (await a.stat("/u/f")).atime
        file.what.close_later()
        client = {"a": c.a, "b": c.b}[who]
        await client.unrecorded(client.fs.utimes("/u/f", None, 1))
        await asyncio.sleep(2)
        seen = await b.stat("/u/f")
        assert (seen.atime, seen.mtime) == (read, 1) == ((await a.stat("/u/f")).atime, (await a.stat("/u/f")).mtime)


async def read_many(a: Mount, b: Mount, count: int) -> dict[str, int]:
    """{name: access time} of so many files that a has read; the MDT has not heard of it."""
    names = [f"/u/g{number}" for number in range(count)]
    for name in names:
        await b.write_file(name, name.encode())
        await a.stat(name)
    files = [await a.open(name, os.O_RDONLY) for name in names]
    for file in files:
        await file.pread(-1, 0)
        file.what.close_later()
    return {name: (await a.stat(name)).atime for name in names}


async def test_access_times_are_told_together_and_what_is_known_stays_known(cluster: Any) -> None:
    async with opened_by_a(cluster) as (c, a, b, _):
        with Asked(c.a) as asked:
            read = await read_many(a, b, 100)
        assert "Closes" not in asked and "Close" not in asked
        with Asked(c.a) as asked:
            await asyncio.sleep(2)
            assert {name: (await a.stat(name)).atime for name in read} == read
        assert asked == {"Closes": 1}
        assert {name: (await b.stat(name)).atime for name in read} == read
        plain = await c.add_client()
        assert {name: (await plain.unrecorded(plain.fs.stat(name))).atime for name in read} == read
        await b.chmod("/u/g1", 0o600)
        assert (await a.stat("/u/g1")).mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["request", "reply", "mds"])
async def test_access_times_are_told_in_spite_of_losses(cluster: Any, how: str) -> None:
    async with opened_by_a(cluster) as (c, a, b, _):
        read = await read_many(a, b, 3)
        lost = c.net.drop(Closes, reply=how != "request")
        await lost.caught()
        if how == "mds":
            await c.fail(c.mds)
        await b.unlink("/u/g0")
        await c.settle()
        del read["/u/g0"]
        assert {name: (await a.stat(name)).atime for name in read} == read
        assert {name: (await b.stat(name)).atime for name in read} == read
        c.never_saw("import.evicted")


async def test_times_that_are_set_count_also_after_a_failover(cluster: Any) -> None:
    """The MDT that comes up does not know that it has set them, and hears of the reading only now."""
    async with opened_by_a(cluster) as (c, a, b, _):
        read = await read_many(a, b, 2)
        lost = c.net.drop(Closes)
        await lost.caught()
        await b.utimes("/u/g0", 1, 1)
        await c.mds.commit()
        await c.fail(c.mds)
        for mount in (a, b):
            assert ((await mount.stat("/u/g0")).atime, (await mount.stat("/u/g1")).atime) == (1, read["/u/g1"])


async def test_the_answer_comes_after_another_client_has_set_the_times(cluster: Any) -> None:
    async with opened_by_a(cluster) as (c, a, b, _):
        await read_many(a, b, 1)
        held = c.net.hold(Closes, reply=True)
        await held.caught()
        await b.utimes("/u/g0", 1, 1)
        await asyncio.sleep(1.5)  # so long a has no UPDATE in passing
        await a.stat("/u/g0")
        held.release()
        await asyncio.sleep(1)
        assert (await a.stat("/u/g0")).atime == 1


async def test_a_mount_that_goes_tells_what_it_has_read(cluster: Any) -> None:
    async with opened_by_a(cluster) as (c, a, b, file):
        read = await read_many(a, b, 3)
        await c.a.unmount()
        assert {name: (await b.stat(name)).atime for name in read} == read
        file.what.closed = True
        await c.a.start()


async def test_others_who_know_the_file_hear_of_it(cluster: Any) -> None:
    """Two clients that read the same files tell of it at the same time, each in the other's way."""
    async with opened_by_a(cluster) as (c, a, b, _):
        await read_many(a, b, 20)
        before = c.loop.time()
        for name in [f"/u/g{number}" for number in range(20)]:
            await b.stat(name)
            file = await b.open(name, os.O_RDONLY)
            await file.pread(-1, 0)
            file.what.close_later()
        await asyncio.sleep(3)
        assert c.loop.time() - before < 4.0
        for number in range(20):
            assert (await a.stat(f"/u/g{number}")).atime == (await b.stat(f"/u/g{number}")).atime
        c.never_saw("lock.expired")


async def test_nobody_opens_what_he_may_not_read(cluster: Any) -> None:
    async with opened_by_a(cluster) as (c, a, b, file):
        bob = c.a.fs.as_user(1001, 1001)
        assert await c.a.unrecorded(bob.read_file("/u/f")) == DATA
        await b.chmod("/u/f", 0o600)
        await a.stat("/u/f")
        with refused(errno.EACCES):
            await c.a.unrecorded(bob.read_file("/u/f"))
        assert await file.pread(-1, 0) == DATA
        await a.chmod("/u/f", 0o000)
        assert await file.pread(-1, 0) == DATA
        await b.unlink("/u/f")
        assert await file.pread(-1, 0) == DATA


async def test_clean_locks_that_go_leave_it_alone(cluster: Any) -> None:
    """lru_size=clear and the LRU take locks that nobody uses; a lock under which a file is open is used."""
    async with opened_by_a(cluster) as (c, _, b, file):
        for imp in c.a.imports:
            if imp.locks is not None:
                imp.locks.clear_unused()
        await asyncio.sleep(5)
        assert opens_of(c, c.a) == 0
        await b.unlink("/u/f")
        assert opens_of(c, c.a) == 1 and await file.pread(-1, 0) == DATA


async def test_a_mount_goes_with_a_file_open(cluster: Any) -> None:
    async with opened_by_a(cluster) as (c, _, b, _):
        await c.a.unmount()
        await b.unlink("/u/f")
        c.never_saw("client.evicted")
        await c.a.start()


async def test_a_file_that_is_lost_with_its_author_is_forgotten_although_it_is_open(cluster: Any) -> None:
    """Its lock is in use, so it is replayed; the MDT asks for it, or its name would lead nowhere for ever. OST seed 63048"""
    async with cluster(caching=1, clients=2) as c:
        c.expect(*EVICTION)
        a, b = mounts(c)
        await a.mkdir("/u")
        await c.mds.commit()
        await c.replay_barrier(c.mds)
        await b.write_file("/u/f", DATA)
        await a.stat("/u/f")
        file = await a.open("/u/f", os.O_RDONLY)
        assert opens_of(c, c.a) == 0
        await c.b.kill()
        await c.fail(c.mds)
        await a.write_file("/u/f", b"another one")
        assert (await a.stat("/u/f")).size == len(b"another one")
        assert await a.content("/u/f") == b"another one"
        await file.close()
        await a.rmtree("/u")
