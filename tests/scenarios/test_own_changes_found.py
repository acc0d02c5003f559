"""Holes that a reader of the client's names and attributes found. Each says what went wrong, and where."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from mounts import Asked, two_mounts
from steps import EVICTION, refused, soon

# an answer that waits for a commit, while a lock goes and comes back -----------------------------------------------------


async def late(c: Any, theirs: Any, know: Any, ours: Any, then: Any, look: Any) -> None:
    """`ours` depends on `theirs`, so its answer waits for the commit; `then` they change it again, and we `look`."""
    await c.mds.commit()
    c.mds.hold_commits()
    await theirs()
    await know()
    changing = soon(ours())
    await asyncio.sleep(0.1)
    again = soon(then())
    await asyncio.sleep(0.1)
    await look()
    assert not changing.done(), "else nothing is tested"
    c.mds.release_commits()
    await asyncio.gather(changing, again)


async def test_a_late_answer_to_a_chmod_gives_back_no_right_that_was_taken(cluster: Any) -> None:
    """What the answer says was believed under a lock that had gone and come back meanwhile (AttrCache.changed)."""
    async with two_mounts(cluster, commit_on_sharing=1) as (c, a, b):
        await late(
            c, lambda: b.create("/u/f", 0o644), lambda: a.stat("/u/f"), lambda: a.chmod("/u/f", 0o664),
            lambda: b.chmod("/u/f", 0o600), lambda: a.stat("/u/f"),
        )  # fmt: skip
        await asyncio.sleep(2)  # then UPDATE is given again
        for mount in (b, a, a):
            assert (await mount.stat("/u/f")).mode & 0o777 == 0o600
        with refused(errno.EACCES):
            await a.client.unrecorded(a.as_user(1000, 1000).open("/u/f"))


async def test_a_late_answer_to_an_unlink_hides_no_new_file(cluster: Any) -> None:
    """The name was said to be missing under a lock of the directory that is younger (OwnChanges._went)."""
    async with two_mounts(cluster, commit_on_sharing=1) as (c, a, b):
        await a.mkdir("/u/d")
        await late(
            c, lambda: b.create("/u/d/f"), lambda: a.readdir("/u/d"), lambda: a.unlink("/u/d/f"),
            lambda: b.create("/u/d/f"), lambda: a.readdir("/u/d"),
        )  # fmt: skip
        assert (await a.stat("/u/d/f")).is_file


@pytest.mark.parametrize("make", ["create", "mkdir"])
async def test_a_late_answer_to_a_rename_brings_no_old_name_back(cluster: Any, make: str) -> None:
    """The name was entered again, and an old parent, under a lock that is younger (OwnChanges._moved)."""
    async with two_mounts(cluster, commit_on_sharing=1) as (c, a, b):
        await a.mkdir("/u/d")
        await a.mkdir("/u/e")
        await late(
            c, lambda: getattr(b, make)("/u/d/f"), lambda: a.stat("/u/d/f"), lambda: a.rename("/u/d/f", "/u/d/g"),
            lambda: b.rename("/u/d/g", "/u/e/h"), lambda: a.stat("/u/e/h"),
        )  # fmt: skip
        for mount in (b, a):
            assert not await mount.exists("/u/d/g") and await mount.exists("/u/e/h")
        if make == "mkdir":
            assert await a.path2fid("/u/e/h/..") == await b.path2fid("/u/e")


# a lock that is replayed --------------------------------------------------------------------------------------------------


async def test_a_change_that_its_maker_lost_is_unknown_to_who_has_the_file_open(cluster: Any) -> None:
    """The open uses the lock, so it was replayed, and what was known under it stayed (HeldLocks.wants_to_replay)."""
    async with cluster(mds=1, oss=1, clients=2, caching=1) as c:
        c.expect(*EVICTION, "recovery.evicting")
        await c.b.write("/f", b"x")
        await c.mds.commit()
        c.mds.hold_commits()
        await c.b.chmod("/f", 0o666)
        await asyncio.sleep(2)
        fs, do = c.a.fs, c.a.unrecorded
        assert (await do(fs.stat("/f"))).mode & 0o777 == 0o666
        with Asked(c.a) as asked:
            file = await do(fs.open("/f"))
        assert asked == {}
        c.b.kill()
        await c.mds.kill()
        await c.mds.start()
        await c.settle()
        for _ in range(2):  # the first one renews the lease
            assert (await do(fs.stat("/f"))).mode & 0o777 == 0o644
        await do(file.close())
