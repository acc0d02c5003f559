"""Commit on share: no client has a change to replay that depends on an uncommitted one of another client (30.5)."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from mounts import mounts
from steps import EVICTION, soon

from lustrelite.wire.mdt import Create


async def test_b_is_spared_when_a_never_returns(world: Any) -> None:
    """Source: chapter 30.5.1; replay-dual.sh test_21a"""
    async with world(clients=2, commit_on_sharing=1) as c:
        await c.a.mkdir("/d")
        await c.b.create("/d/f")  # answered when a's mkdir is durable
        await c.replay_barrier(c.mds)
        await c.a.create("/lost")
        await c.b.create("/mine")
        await c.a.kill()
        c.expect(*EVICTION)
        await c.fail(c.mds)
        assert await c.b.exists("/d/f") and await c.b.exists("/mine")
        c.never_saw("import.evicted", client=c.b)


async def test_without_it_the_loss_of_a_takes_b_along(world: Any) -> None:
    """The cascade that commit on share is for.  Source: chapter 30.5.1"""
    async with world(clients=2, commit_on_sharing=0, strict=False, area_of=lambda path: path[:1]) as c:
        await c.replay_barrier(c.mds)
        await c.a.mkdir("/d")
        await c.b.create("/d/f")
        await c.a.kill()
        await c.fail(c.mds)
        c.saw("client.evicted", client=c.b)


@pytest.mark.lustre("RD 21a")
async def test_renames_of_two_clients_survive_the_loss_of_one(world: Any) -> None:
    """Source: replay-dual.sh test_21a"""
    async with world(clients=2, commit_on_sharing=1, area_of=lambda path: path[:1]) as c:
        await c.a.create("/f1")
        await c.b.rename("/f1", "/f2")
        await c.a.rename("/f2", "/f3")
        await c.replay_barrier(c.mds)
        await c.b.kill()
        c.expect(*EVICTION)
        await c.fail(c.mds)
        assert await c.a.exists("/f3") and not await c.a.exists("/f1")
        c.never_saw("import.evicted", client=c.a)


async def test_a_reply_waits_for_what_it_depends_on(world: Any) -> None:
    async with world(clients=2, commit_on_sharing=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.mkdir("/d")
        dependent = soon(c.b.create("/d/f"))
        alone = soon(c.b.create("/g"))
        await alone
        assert not dependent.done()
        await c.mds.release_commits()
        await dependent


async def test_a_name_that_another_client_has_removed_is_shared(world: Any) -> None:
    async with world(clients=2, commit_on_sharing=1, area_of=lambda path: path[:1]) as c:
        await c.a.create("/f")
        await c.mds.commit()
        await c.replay_barrier(c.mds)
        await c.a.unlink("/f")
        again = soon(c.b.create("/f"))
        await c.b.create("/other")
        assert not again.done()
        await c.mds.release_commits()
        await again


async def test_an_emptied_directory_is_shared(world: Any) -> None:
    async with world(clients=2, commit_on_sharing=1, area_of=lambda path: path[:1]) as c:
        await c.a.mkdir("/d")
        await c.a.create("/d/f")
        await c.mds.commit()
        await c.replay_barrier(c.mds)
        await c.a.unlink("/d/f")
        gone = soon(c.b.rmdir("/d"))
        await c.b.create("/other")
        assert not gone.done()
        await c.mds.release_commits()
        await gone


async def test_different_names_in_one_directory_force_no_commit(world: Any) -> None:
    """Source: the 2.x version rule; replay-vbr.sh test_11a"""
    async with world(clients=2, commit_on_sharing=1) as c:
        await c.a.mkdir("/d")
        await c.mds.commit()
        await c.replay_barrier(c.mds)
        for number in range(10):
            await c.a.create(f"/d/a{number}")
            await c.b.create(f"/d/b{number}")
        await c.a.unlink("/d/a3")
        await c.b.create("/d/b10")


async def test_a_client_does_not_wait_for_itself(world: Any) -> None:
    async with world(clients=1, commit_on_sharing=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.mkdir("/d")
        await c.a.create("/d/f")
        await c.a.rename("/d/f", "/d/g")
        await c.a.unlink("/d/g")
        await c.a.rmdir("/d")


async def test_what_depends_on_an_unanswered_change_is_not_evicted(world: Any) -> None:
    """a's mkdir is executed, its reply lost; b makes something in it; both survive a crash."""
    async with world(clients=2, commit_on_sharing=1, strict=False, area_of=lambda path: path[:1]) as c:
        lost = c.drop_reply(Create)
        making = soon(c.a.mkdir("/d"))
        await lost.caught()
        await c.b.mkdir("/d/x")
        await c.fail(c.mds)
        await making
        c.never_saw("import.evicted")


@pytest.mark.parametrize("cos", [0, 1])
async def test_a_truncate_after_an_unanswered_write_is_not_evicted(world: Any, cos: int) -> None:
    """An object's version is set by a write that nobody was told of; commit on share or not."""
    async with world(clients=2, oss=1, commit_on_sharing=cos, strict=False, area_of=lambda path: path[:1]) as c:
        await c.a.write("/f", b"x" * 100)
        await c.replay_barrier(c.oss[0])
        writing = soon(c.a.write_at("/f", 0, b"y" * 10))
        cutting = soon(c.b.truncate("/f", 50))
        own = soon(c.a.truncate("/f", 40))
        await c.a.create("/other")
        await c.fail(c.oss[0])
        await writing
        await cutting
        await own
        c.never_saw("import.evicted")


async def test_a_directory_above_the_target_that_another_client_has_moved_is_shared(world: Any) -> None:
    """Without a's rename b would move a directory below itself: no version of what b names shows that."""
    async with world(clients=2, commit_on_sharing=1, area_of=lambda path: path[:1]) as c:
        for path in ("/x", "/x/y", "/x/y/z"):
            await c.a.mkdir(path)
        await c.mds.commit()
        await c.replay_barrier(c.mds)
        await c.a.rename("/x/y", "/y")
        below = soon(c.b.rename("/x", "/y/z/x"))
        await asyncio.sleep(1)
        assert not below.done()
        await c.mds.release_commits()
        await below


@pytest.mark.parametrize("change", ["utime", "truncate"])
async def test_times_and_sizes_of_what_another_client_has_made_are_shared(world: Any, change: str) -> None:
    """Their replay is checked for no version, but without the file it has nothing to change."""
    async with world(clients=2, commit_on_sharing=1, area_of=lambda path: path[:1]) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        changing = soon(c.b.utime("/f", 1_000_000_000) if change == "utime" else c.b.truncate("/f", 5))
        await asyncio.sleep(2)
        assert not changing.done()
        await c.mds.release_commits()
        await changing


async def test_an_open_file_that_another_client_has_made_is_shared(cluster: Any) -> None:
    """Its reader tells of it when its last name goes: whoever dies, he has it open then."""
    async with cluster(caching=1, clients=2, commit_on_sharing=1, commit_interval_s=1000) as c:
        c.expect(*EVICTION)
        a, b = mounts(c)
        await a.mkdir("/u")
        await c.mds.commit()
        await b.write_file("/u/f", b"data")
        await a.stat("/u/f")
        file = await a.open("/u/f", os.O_RDONLY)
        assert await file.pread(-1, 0) == b"data"
        await b.unlink("/u/f")
        await c.b.kill()
        await c.fail(c.mds)
        assert await file.pread(-1, 0) == b"data"
        await file.close()
        await a.rmtree("/u")
