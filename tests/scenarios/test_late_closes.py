"""Closes for which nobody waits: the MDT hears of many in one message, and of each once."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import Asked, Mount, mounts

from lustrelite.client.by_fid import NOW
from lustrelite.errors import OpError
from lustrelite.store.room import ESSENTIAL, ORDINARY, OWED
from lustrelite.wire.mdt import Closes

COUNT = 100
FUTURE = 4 * 10**18
WRITE = os.O_CREAT | os.O_RDWR


@asynccontextmanager
async def closed_by_a(cluster: Any, count: int = COUNT) -> Any:
    """(the cluster, mounts a and b, the names of files that a has made and written): a has closed them, the MDT has not heard."""
    async with cluster(caching=1, clients=2) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        await c.settle()
        names = [f"/u/f{number}" for number in range(count)]
        files = [await a.open(name, WRITE) for name in names]
        for name, file in zip(names, files, strict=True):
            await file.pwrite(name.encode(), 0)
        assert opens_of(c) == count
        for file in files:
            file.what.close_later()
        yield c, a, b, names
        await c.settle()
        assert opens_of(c) == 0
        await c.mds.commit()
        await asyncio.sleep(5)
        assert kept_by_a(c) == 0
        await b.rmtree("/u")


def opens_of(c: Any) -> int:
    """How many handles of a the MDT knows of."""
    export = c.mds.target().exports.get(c.a.uuid)
    return len(export.opens) if export is not None else 0


def kept_by_a(c: Any) -> int:
    """How many opens a would replay."""
    return sum(len(imp.replays.open) for imp in c.a.imports)


async def times(mount: Mount, names: list[str]) -> dict[str, tuple[int, int]]:
    """{name: (mtime, atime)}"""
    found = {}
    for name in names:
        st = await mount.stat(name)
        found[name] = (st.mtime, st.atime)
    return found


async def test_many_are_told_together_and_what_is_known_stays_known(cluster: Any) -> None:
    async with closed_by_a(cluster) as (c, a, b, names):
        assert opens_of(c) == COUNT
        before = await times(a, names)
        with Asked(c.a) as asked:
            await asyncio.sleep(1.5)
            assert opens_of(c) == 0
            assert await times(a, names) == before
        assert asked == {"Closes": 1}
        assert await times(b, names) == before


async def test_more_than_fit_in_a_message_do_not_wait(cluster: Any) -> None:
    async with closed_by_a(cluster, count=300) as (c, _, _, _):
        await asyncio.sleep(0.1)
        assert opens_of(c) == 0


@pytest.mark.parametrize("how", ["request", "reply", "mds", "mds, committed"])
async def test_they_are_closed_in_spite_of_losses(cluster: Any, how: str) -> None:
    async with closed_by_a(cluster, count=5) as (c, a, b, names):
        lost = c.net.drop(Closes, reply=how != "request")
        await lost.caught()
        if how == "mds, committed":
            await c.mds.commit()
        if how.startswith("mds"):
            await c.fail(c.mds)
        await c.settle()
        assert opens_of(c) == 0
        assert await times(a, names) == await times(b, names)
        for name in names:
            assert await b.content(name, os.O_RDONLY) == name.encode()
        c.never_saw("import.evicted")


async def test_they_are_told_to_the_mds_that_comes_up(cluster: Any) -> None:
    """It dies before it hears of them: the opens are replayed, and the closes follow."""
    async with closed_by_a(cluster, count=5) as (c, _, _, _):
        await c.replay_barrier(c.mds)
        await c.fail(c.mds)
        c.saw("import.replayed", op="Open", times=5)


@pytest.mark.parametrize("handles", [1, 2])
@pytest.mark.parametrize("who", ["a", "b"])
async def test_the_last_close_of_an_orphan_destroys_it(cluster: Any, who: str, handles: int) -> None:
    async with cluster(caching=1, clients=2) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        files = [await a.open("/u/f", WRITE) for _ in range(handles)]
        await files[0].pwrite(b"x" * 100, 0)
        await b.stat("/u/f")
        reader = await b.open("/u/f", os.O_RDONLY)
        await {"a": a, "b": b}[who].unlink("/u/f")
        assert await reader.pread(-1, 0) == b"x" * 100
        await reader.close()
        for file in files:
            file.what.close_later()
        await asyncio.sleep(2)
        assert opens_of(c) == 0
        c.never_saw("client.evicted")
        await c.settle()
        await b.rmtree("/u")


@pytest.mark.parametrize("when", ["waiting", "under way"])
@pytest.mark.parametrize("who", ["a", "b"])
async def test_times_that_are_set_afterwards_count(cluster: Any, who: str, when: str) -> None:
    async with closed_by_a(cluster, count=1) as (c, a, b, names):
        held = c.net.hold(Closes, to=c.mds)
        if when == "under way":
            await held.caught()
        await {"a": a, "b": b}[who].utimes(names[0], 5, 6)
        wanted = await times(b, names)
        assert wanted == {names[0]: (6, 5)}
        seen = await times(a, names)
        assert seen == wanted or who == "b", "its own it sees at once"
        await asyncio.sleep(2)
        held.release()
        await asyncio.sleep(1)
        assert await times(b, names) == await times(a, names) == wanted


@pytest.mark.parametrize("when", ["waiting", "under way"])
@pytest.mark.parametrize("who", ["a", "b"])
async def test_times_that_are_set_afterwards_count_for_the_next_mds_too(cluster: Any, who: str, when: str) -> None:
    """They are durable, and what it knew of when they were set is not."""
    async with closed_by_a(cluster, count=1) as (c, a, b, names):
        held = c.net.hold(Closes, to=c.mds)
        if when == "under way":
            await held.caught()
        await {"a": a, "b": b}[who].utimes(names[0], 5, 6)
        await c.a.unrecorded(c.a.fs.connections.mdc.sync())
        await c.mds.kill()
        held.release()
        await c.mds.start()
        await c.settle()
        assert await times(b, names) == await times(a, names) == {names[0]: (6, 5)}


@pytest.mark.parametrize("writes", ["before", "after"])
async def test_times_that_were_set_while_it_was_open_count_for_the_next_mds_too(cluster: Any, writes: str) -> None:
    async with closed_by_a(cluster, count=0) as (c, a, b, _):
        file = await a.open("/u/g", WRITE)
        await file.pwrite(b"x", 0)
        await b.utimes("/u/g", 5, 6)
        await c.mds.commit()
        await c.mds.kill()
        await c.mds.start()
        await c.settle()
        if writes == "after":
            await file.pwrite(b"y", 0)
            await file.close()
            assert (await times(b, ["/u/g"]))["/u/g"][0] > 6
            await b.chmod("/u/g", 0o600)
            await c.mds.commit()
            await c.fail(c.mds)
            assert (await times(b, ["/u/g"]))["/u/g"][0] > 6
        else:
            await file.close()
            assert await times(a, ["/u/g"]) == await times(b, ["/u/g"]) == {"/u/g": (6, 5)}


async def test_a_write_counts_for_the_next_mds_although_the_file_was_changed_otherwise(cluster: Any) -> None:
    async with closed_by_a(cluster, count=0) as (c, a, b, _):
        file = await a.open("/u/g", WRITE)
        before = (await times(b, ["/u/g"]))["/u/g"][0]
        await asyncio.sleep(1)
        await file.pwrite(b"x", 0)
        written = (await times(a, ["/u/g"]))["/u/g"][0]
        assert written > before
        await asyncio.sleep(1)
        await b.chmod("/u/g", 0o600)
        await c.mds.commit()
        await c.mds.kill()
        await c.mds.start()
        await c.settle()
        await file.close()
        assert (await times(b, ["/u/g"]))["/u/g"][0] == written
        await asyncio.sleep(10)


@pytest.mark.parametrize("set_times", [False, True])
async def test_a_read_counts_for_the_next_mds_although_the_file_was_changed_otherwise(cluster: Any, set_times: bool) -> None:
    """Unless its times were set after it: the inode says so. Attribute swarm seed 275."""
    async with closed_by_a(cluster, count=0) as (c, a, b, _):
        await b.write_at("/u/g", 0, b"x", WRITE)
        await b.utimes("/u/g", 5, 6)
        file = await a.open("/u/g", os.O_RDONLY)
        await file.pread(1, 0)
        if set_times:
            await b.utimes("/u/g", 7, 8)
        await b.setxattr("/u/g", "user.x", b"1")
        await c.mds.commit()
        await c.mds.kill()
        await c.mds.start()
        await c.settle()
        await file.close()
        mtime, atime = (await times(b, ["/u/g"]))["/u/g"]
        assert (mtime, atime) == (8, 7) if set_times else (mtime == 6 and atime > 7)


async def test_times_that_were_set_while_it_was_open_are_not_believed_to_be_older(cluster: Any) -> None:
    """a has learned of them before it closes what it wrote earlier."""
    async with closed_by_a(cluster, count=0) as (_, a, b, _):
        file = await a.open("/u/g", WRITE)
        await file.pwrite(b"x", 0)
        await file.pread(1, 0)
        await b.utimes("/u/g", 5, 6)
        await asyncio.sleep(1.5)  # so long a has no UPDATE in passing
        await a.stat("/u/g")
        file.what.close_later()
        await asyncio.sleep(2)
        assert await times(a, ["/u/g"]) == await times(b, ["/u/g"]) == {"/u/g": (6, 5)}


@pytest.mark.parametrize("who", ["a", "b"])
async def test_a_mode_that_is_set_afterwards_hides_no_write(cluster: Any, who: str) -> None:
    async with closed_by_a(cluster, count=1) as (_, a, b, names):
        wrote = await times(a, names)
        await {"a": a, "b": b}[who].chmod(names[0], 0o600)
        for _ in range(2):
            assert await times(a, names) == wrote
            await asyncio.sleep(2)
        assert await times(b, names) == await times(a, names) == wrote


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("atime", [5, NOW])
async def test_an_access_time_that_is_set_afterwards_hides_no_write(cluster: Any, who: str, atime: int) -> None:
    """touch -a: the mtime is that of the write, and stays so when the file is closed."""
    async with closed_by_a(cluster, count=0) as (_, a, b, _):
        file = await a.open("/u/g", WRITE)
        await asyncio.sleep(1)
        await file.pwrite(b"x", 0)
        written = (await a.stat("/u/g")).mtime
        await asyncio.sleep(1)
        await {"a": a, "b": b}[who].utimes("/u/g", atime, None)
        if who == "a":
            assert (await a.stat("/u/g")).mtime == written
        file.what.close_later()
        await asyncio.sleep(2)
        for mount in (a, b):
            st = await mount.stat("/u/g")
            assert st.mtime == written and (st.atime == 5 or atime == NOW)


async def test_a_write_after_times_were_set_counts_for_the_next_mds_although_the_file_was_changed_after_it(
    cluster: Any
) -> None:
    async with closed_by_a(cluster, count=0) as (c, a, b, _):
        file = await a.open("/u/g", WRITE)
        await b.utimes("/u/g", 5, 6)
        await asyncio.sleep(1)
        await file.pwrite(b"x", 0)
        await asyncio.sleep(1)
        await b.chmod("/u/g", 0o600)
        await c.settle()
        await c.mds.commit()
        await c.mds.kill()
        await c.mds.start()
        file.what.close_later()
        await c.settle()
        await asyncio.sleep(2)
        assert (await b.stat("/u/g")).mtime > 6


@pytest.mark.parametrize("open_before", [True, False])
@pytest.mark.parametrize("how", ["write", "truncate", "O_TRUNC"])
async def test_a_time_in_the_future_is_that_of_the_file_until_somebody_changes_it(
    cluster: Any, how: str, open_before: bool
) -> None:
    """As of an archive from a machine whose clock is ahead: whatever is done afterwards is later."""
    async with closed_by_a(cluster, count=0) as (c, a, b, _):
        file = await a.open("/u/g", WRITE)
        if not open_before:
            file.what.close_later()
        await b.utimes("/u/g", FUTURE, FUTURE)
        assert (await a.stat("/u/g")).mtime == FUTURE
        await asyncio.sleep(1)
        if how == "truncate":
            await a.truncate("/u/g", 10)
        elif how == "O_TRUNC" or not open_before:
            other = await a.open("/u/g", WRITE | (os.O_TRUNC if how == "O_TRUNC" else 0))
            await other.pwrite(b"x", 0)
            other.what.close_later()
        else:
            await file.pwrite(b"x", 0)
        changed = (await a.stat("/u/g")).mtime
        assert changed < FUTURE
        await asyncio.sleep(1)
        await a.chmod("/u/g", 0o600)
        assert (await a.stat("/u/g")).mtime == changed
        if open_before:
            file.what.close_later()
        await asyncio.sleep(2)
        await c.fail(c.mds)
        assert (await b.stat("/u/g")).mtime == (await a.stat("/u/g")).mtime == changed
        async for entry in b.scandir("/u", sizes=False):
            assert entry.stat.mtime == changed, "so says the MDT, too"


async def test_a_directory_with_a_time_in_the_future_that_is_changed(cluster: Any) -> None:
    async with closed_by_a(cluster, count=0) as (_, a, b, _):
        await a.mkdir("/u/d")
        for number, mount in enumerate((a, b)):
            await mount.utimes("/u/d", FUTURE, FUTURE)
            assert (await a.stat("/u/d")).mtime == FUTURE
            await a.create(f"/u/d/{number}")
            assert (await a.stat("/u/d")).mtime == (await b.stat("/u/d")).mtime < FUTURE


@pytest.mark.parametrize("late", [True, False])
async def test_an_mdt_that_is_full_for_a_while_loses_no_close(
    cluster: Any, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the times, nor the end of an orphan: they come again until there is room."""
    async with closed_by_a(cluster, count=0) as (c, a, b, _):
        file = await a.open("/u/g", WRITE)
        await asyncio.sleep(1)
        await file.pwrite(b"x", 0)
        written = (await a.stat("/u/g")).mtime
        store, refused = c.mds.target().store, []
        apply = store.apply

        def full(writes: Any, *, kind: int = ORDINARY, **how: Any) -> None:
            if kind != ESSENTIAL:
                refused.append(kind)
                raise OpError(errno.EAGAIN if kind == OWED else errno.ENOSPC)
            apply(writes, kind=kind, **how)

        monkeypatch.setattr(store, "apply", full)
        if late:
            file.what.close_later()
        closing = asyncio.create_task(asyncio.sleep(0) if late else file.close())
        await asyncio.sleep(10)
        assert refused and set(refused) == {OWED}
        monkeypatch.undo()
        await closing
        await asyncio.sleep(5)
        assert opens_of(c) == 0
        assert (await b.stat("/u/g")).mtime == written


async def test_who_has_locked_records_does_not_close_late(cluster: Any) -> None:
    async with cluster(caching=1, clients=2) as c:
        a, b = mounts(c)
        one = await a.open("/f", WRITE)
        await c.a.unrecorded(one.what.flock(fcntl.LOCK_EX))
        one.what.close_later()
        other = await b.open("/f", WRITE)
        before = c.loop.time()
        await c.b.unrecorded(other.what.flock(fcntl.LOCK_EX))
        assert c.loop.time() - before < 0.5
        await other.close()
        await b.unlink("/f")


async def test_a_mount_that_goes_closes_what_it_has_closed(cluster: Any) -> None:
    async with closed_by_a(cluster, count=3) as (c, _, b, names):
        await c.a.unmount()
        for name in names:
            assert await b.content(name, os.O_RDONLY) == name.encode()
        c.never_saw("client.evicted")
        await c.a.start()


async def test_closes_whose_answer_comes_when_all_is_durable_leave_nothing_open(cluster: Any) -> None:
    """The opens were durable, and more than are forgotten at once: those left over would have been replayed for ever."""
    async with closed_by_a(cluster) as (c, _, _, names):
        await c.settle()
        c.mds.hold_commits()
        files = [await c.a.unrecorded(c.a.fs.open(name, os.O_RDWR)) for name in names]
        for file in files:
            file.close_later()
        answer = c.net.hold(Closes, reply=True)
        await c.until(lambda: opens_of(c) == 0)
        c.mds.release_commits()
        await c.mds.commit()
        await c.a.unrecorded(c.a.fs.statfs())  # its answer tells of that
        answer.release()
