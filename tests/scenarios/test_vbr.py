"""Version-based recovery: a client is lost for good, and the others replay over the gap that it leaves.

Client b does something that is not committed and then dies with the MDS; what a replays after that succeeds only if it
does not depend on it. `evicts` says whether a must be thrown out.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from steps import EVICTION, MISMATCH, refused, touch

from lustrelite.wire.mdt import Layout

IMMUTABLE = 0x10


async def version(client: Any, path: str) -> int:
    """The version of what is at `path`."""
    return int((await client.fs.lstat(path)).version)


async def do(client: Any, script: str) -> None:
    """Steps such as `create /d/f; rename /d/f /d/g`."""
    for step in filter(None, script.split("; ")):
        what, path, *rest = step.split()
        if what == "chown":
            await client.fs.chown(path, uid=int(rest[0]))
        elif what == "chgrp":
            await client.fs.chown(path, gid=int(rest[0]))
        elif what == "chattr":
            await client.fs.change_fid((await client.fs.lstat(path)).fid, flags=int(rest[0]))
        elif what == "utimes":
            await client.utime(path, 1_000_000_000)
        elif what == "chmod":
            await client.chmod(path, int(rest[0], 8))
        elif what == "truncate":
            await client.truncate(path, int(rest[0]))
        elif what == "touch":
            await touch(client, path)
        else:
            await getattr(client, what)(path, *rest)


async def lose(c: Any, before: str, lost: str, after: str) -> None:
    """`before` by a, `lost` by b who dies, `after` by a; none of it committed when the MDS dies."""
    await c.replay_barrier(c.mds)
    await do(c.a, before)
    await do(c.b, lost)
    await do(c.a, after)
    await c.b.kill()
    await c.fail(c.mds)


# ---------------------------------------------------------------- what a version is


@pytest.mark.lustre("VBR 0a", "VBR 0b")
async def test_the_version_of_what_is_not_there_is_an_error(world: Any) -> None:
    """Source: lustre/tests/replay-vbr.sh test_0a, test_0b"""
    async with world(clients=1) as c:
        with refused(errno.ENOENT):
            await version(c.a, "/nothing")
        await c.a.create("/f")
        fid = (await c.a.fs.lstat("/f")).fid
        await c.a.unlink("/f")
        with refused(errno.ENOENT):
            await c.a.fs.stat_fid(fid)


#         id         act of a                       whose version    does it rise?
RAISES = [
    ("VBR 4a", "chown /d/f 1000",                   "/d/f",          True),
    ("VBR 4b", "chgrp /d/f 1000",                   "/d/f",          True),
    ("VBR 4e", "chmod /d/f 600",                    "/d/f",          True),
    ("VBR 4g", f"chattr /d/f {IMMUTABLE}; chattr /d/f 0", "/d/f",    True),
    ("VBR 4i", "utimes /d/f",                       "/d/f",          False),
    ("VBR 4j", "truncate /d/f 7",                   "/d/f",          False),
    ("VBR 1a", "touch /d/f",                        "/d/f",          False),
    ("VBR 2a", "mkdir /d/n",                        "/d",            False),
    ("VBR 2a", "create /d/n",                       "/d",            False),
    ("VBR 2a", "symlink /d/n /d/s",                 "/d",            False),
    ("VBR 6a", "rename /d/f /e/f",                  "/d",            False),
    ("VBR 6a", "rename /d/f /e/f",                  "/e",            False),
    ("VBR 6b", "rename /d/f /d/g",                  "/d",            False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("act", "whose", "rises"),
    [pytest.param(*row, marks=pytest.mark.lustre(name), id=f"{name} {row[0].split()[0]} {row[1]}") for name, *row in RAISES],
)
async def test_which_changes_raise_a_version(world: Any, act: str, whose: str, rises: bool) -> None:
    """Owner, group, mode and flags do; times, size and the names in a directory do not.

    Source: lustre/tests/replay-vbr.sh test_1a, test_2a, test_4a to test_4j, test_6a, test_6b
    """
    async with world(clients=1) as c:
        await do(c.a, "mkdir /d; mkdir /e; create /d/f")
        before = await version(c.a, whose)
        await do(c.a, act)
        after = await version(c.a, whose)
        assert (after > before) if rises else (after == before)


@pytest.mark.lustre("VBR 2a")
async def test_special_files_leave_the_version_of_their_directory_alone(world: Any) -> None:
    """Source: lustre/tests/replay-vbr.sh test_2a"""
    async with world(clients=1) as c:
        before = await version(c.a, "/")
        for mode in (0o010644, 0o020644):
            await c.a.fs.mknod(f"/special{mode}", mode)
            await c.a.fs.unlink(f"/special{mode}")
        assert await version(c.a, "/") == before


# ---------------------------------------------------------------- one lost change

#         id          lost change of b         a's change          evicts   there are      there are not
LOST = [
    ("VBR 1b", "chmod /d 700",                 "touch /d/new",     True,    "/d/f",        "/d/new"),
    ("VBR 3a", "utimes /d/f",                  "unlink /d/f",      False,   "/d",          "/d/f"),
    ("VBR 3b", "chmod /d 700",                 "unlink /d/f",      True,    "/d/f",        ""),
    ("VBR 4c", "chgrp /d/f 1000",              "chown /d/f 1000",  True,    "/d/f",        ""),
    ("VBR 4d", "chown /d/f 1000",              "chgrp /d/f 1000",  True,    "/d/f",        ""),
    ("VBR 4f", "chgrp /d/f 1000",              "chmod /d/f 666",   True,    "/d/f",        ""),
    ("VBR 4h", "chmod /d/f 600",               f"chattr /d/f {IMMUTABLE}", True, "/d/f",   ""),
    ("VBR 5b", "chmod /e 700",                 "link /d/f /e/l",   True,    "/d/f",        "/e/l"),
    ("VBR 5c", "chmod /d/f 600",               "link /d/f /e/l",   True,    "/d/f",        "/e/l"),
    ("VBR 6c", "chmod /d 700",                 "rename /d/f /e/g", True,    "/d/f",        "/e/g"),
    ("VBR 6d", "chmod /e 700",                 "rename /d/f /e/g", True,    "/d/f",        "/e/g"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("lost", "after", "evicts", "there", "gone"),
    [pytest.param(*row, marks=pytest.mark.lustre(name), id=name) for name, *row in LOST],
)
async def test_a_change_that_depends_on_a_lost_one_evicts(
    world: Any, lost: str, after: str, evicts: bool, there: str, gone: str
) -> None:
    """Source: lustre/tests/replay-vbr.sh test_1b to test_6d; test_3a of b1_8"""
    async with world(clients=2) as c:
        c.expect(*MISMATCH)
        await do(c.a, "mkdir /d; mkdir /e; create /d/f")
        before = await c.a.fs.lstat("/d/f")
        await lose(c, "", lost, after)
        if evicts:
            c.saw("import.evicted", client=c.a, times=1)
            c.saw("replay.version_mismatch", times=1)
            found = await c.a.fs.lstat("/d/f")
            assert (found.mode, found.uid, found.gid, found.flags) == (before.mode, before.uid, before.gid, before.flags)
        else:
            c.never_saw("import.evicted")
        assert await c.a.exists(there)
        assert not gone or not await c.a.exists(gone)


@pytest.mark.lustre("VBR 1c")
async def test_an_open_does_not_depend_on_lost_changes_of_mode(world: Any) -> None:
    """Source: lustre/tests/replay-vbr.sh test_1c"""
    async with world(clients=2) as c:
        c.expect(*EVICTION)
        await do(c.a, "mkdir /d; create /d/f")
        await c.replay_barrier(c.mds)
        await do(c.b, "chmod /d 711; chmod /d/f 666")
        file = await c.a.open("/d/f")
        await c.b.kill()
        await c.fail(c.mds)
        await file.pwrite(b"open")
        await file.close()
        c.never_saw("import.evicted")
        assert await c.a.read("/d/f") == b"open"


@pytest.mark.lustre("VBR 4k")
async def test_size_and_times_do_not_depend_on_a_lost_change_of_mode(world: Any) -> None:
    """Source: lustre/tests/replay-vbr.sh test_4k"""
    async with world(clients=2) as c:
        c.expect(*EVICTION)
        await c.a.create("/f")
        await lose(c, "", "chmod /f 600", "truncate /f 1; utimes /f")
        c.never_saw("import.evicted")
        found = await c.a.fs.lstat("/f")
        assert (found.size, found.mtime) == (1, 1_000_000_000)


# ---------------------------------------------------------------- names

#         id         first, by a        lost, by b                              last, by a              evicts
CYCLES = [
    ("VBR 7a", "create /f",          "unlink /f",                            "create /f",            True),
    ("VBR 7a", "create /f",          "unlink /f",                            "mkdir /f",             True),
    ("VBR 7a", "create /f",          "rename /f /g",                         "mkdir /f",             True),
    ("VBR 7b", "create /f",          "unlink /f; create /f",                 "unlink /f",            True),
    ("VBR 7b", "create /f; create /g", "rename /g /f",                       "unlink /f",            True),
    ("VBR 7b", "create /f",          "unlink /f; mkdir /f",                  "rmdir /f",             True),
    ("VBR 7c", "create /f",          "unlink /f; create /f",                 "rename /f /g",         True),
    ("VBR 7c", "create /f; create /g", "rename /g /f",                       "rename /f /h",         True),
    ("VBR 7c", "create /f",          "create /g",                            "rename /f /g",         True),
    ("VBR 7c", "create /f; create /g", "unlink /g",                          "rename /f /g",         True),
    ("VBR 7d", "unlink /old",        "create /old; unlink /old",             "create /old",          False),
    ("VBR 7d", "unlink /old",        "create /old; unlink /old",             "mkdir /old",           False),
    ("VBR 7d", "unlink /old",        "create /old; rename /old /away",       "touch /old",           False),
    ("VBR 7e", "unlink /old",        "create /old",                          "unlink /old",          True),
    ("VBR 7e", "unlink /old",        "mkdir /old",                           "rmdir /old",           True),
    ("VBR 7e", "unlink /old",        "symlink x /old",                       "unlink /old",          True),
    ("VBR 7e", "unlink /old",        "link /older /old",                     "unlink /old",          True),
    ("VBR 7e", "unlink /old",        "rename /older /old",                   "unlink /old",          True),
    ("VBR 7f", "unlink /old",        "create /old",                          "rename /old /new",     True),
    ("VBR 7f", "unlink /old",        "mkdir /old",                           "rename /old /new",     True),
    ("VBR 7f", "unlink /old",        "rename /older /old",                   "rename /old /new",     True),
    ("VBR 7f", "unlink /old",        "link /older /old",                     "rename /old /new",     True),
    ("VBR 7f", "unlink /old",        "create /old",                          "rename /older /old",   True),
    ("VBR 7g", "rename /old /new",   "create /old; unlink /old",             "create /old",          False),
    ("VBR 7g", "rename /old /new",   "create /old; unlink /old",             "mkdir /old",           False),
    ("VBR 7g", "rename /old /new",   "create /old; rename /old /away",       "touch /old",           False),
    ("VBR 7h", "rename /old /new",   "unlink /new; create /new",             "unlink /new",          True),
    ("VBR 7h", "rename /old /new",   "rename /older /new",                   "unlink /new",          True),
    ("VBR 7i", "rename /old /new",   "unlink /new; create /new",             "rename /new /newer",   True),
    ("VBR 7i", "rename /old /new",   "create /old",                          "rename /new /old",     True),
    ("VBR 7i", "rename /old /new",   "rename /older /new",                   "rename /new /newer",   True),
    ("VBR 7i", "rename /old /new",   "unlink /older",                        "rename /new /older",   True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "lost", "last", "evicts"),
    [
        pytest.param(*row, marks=pytest.mark.lustre(name), id=f"{name} {row[0]}, {row[1]}, {row[2]}")
        for name, *row in CYCLES
    ],
)
async def test_a_name_that_was_changed_by_a_lost_client_evicts(
    world: Any, first: str, lost: str, last: str, evicts: bool
) -> None:
    """32 cycles, 26 must evict, 6 must not.  Source: lustre/tests/replay-vbr.sh test_7a to test_7i"""
    async with world(clients=2) as c:
        c.expect(*MISMATCH)
        await do(c.a, "create /old; create /older")
        await lose(c, first, lost, last)
        if evicts:
            c.saw("import.evicted", client=c.a, times=1)
        else:
            c.never_saw("import.evicted")


# ---------------------------------------------------------------- gaps that hurt nobody


@pytest.mark.lustre("RD 15a")
async def test_many_creates_are_replayed_over_the_gap_of_one(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_15a"""
    async with world(clients=2) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        for i in range(12):
            await c.a.create(f"/a{i}")
        await c.b.create("/b")
        for i in range(12, 25):
            await c.a.create(f"/a{i}")
        await c.b.kill()
        await c.fail(c.mds)
        assert sorted(await c.a.listdir("/")) == sorted(f"a{i}" for i in range(25))
        c.never_saw("import.evicted")
        c.saw("recovery.gap", times=1)


@pytest.mark.lustre("VBR 11a")
async def test_clients_share_a_directory_and_one_is_lost(world: Any) -> None:
    """Source: lustre/tests/replay-vbr.sh test_11a"""
    async with world(clients=2, area_of=lambda path: path[:4], common=("/d",)) as c:
        c.expect(*EVICTION)
        await c.a.fs.mkdir("/d", 0o755)
        await c.replay_barrier(c.mds)

        async def creates(client: Any) -> None:
            for i in range(100):
                await client.create(f"/d/{client.name}{i}")

        await asyncio.gather(creates(c.a), creates(c.b))
        await c.b.kill()
        await c.fail(c.mds)
        assert sorted(await c.a.fs.readdir("/d")) == sorted(f"a{i}" for i in range(100))
        c.never_saw("import.evicted")


@pytest.mark.lustre("VBR 12a")
async def test_having_looked_at_a_lost_file_does_not_matter(world: Any) -> None:
    """Source: lustre/tests/replay-vbr.sh test_12a"""
    async with world(clients=2) as c:
        c.expect(*EVICTION)
        await c.a.mkdir("/d")
        await c.replay_barrier(c.mds)
        await c.b.create("/d/lost")
        for i in range(50):
            await c.a.create(f"/d/a{i}")
            await c.a.fs.lstat("/d/lost")
        await c.b.kill()
        await c.fail(c.mds)
        assert await c.a.listdir("/d") == sorted(f"a{i}" for i in range(50))
        c.never_saw("import.evicted")


async def test_a_replayed_file_keeps_its_objects_over_a_gap(world: Any) -> None:
    """Their ids come with the replay.  Source: osp_declare_create() with an explicit fid; protocol-facts 7.2"""
    async with world(oss=2, clients=2) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        before: list[Layout] = []
        for i in range(10):
            await c.b.create(f"/b{i}")
            await c.a.create(f"/a{i}")
            before.append(await c.a.fs.getstripe(f"/a{i}"))
        await c.b.kill()
        await c.fail(c.mds)
        assert [await c.a.fs.getstripe(f"/a{i}") for i in range(10)] == before


@pytest.mark.parametrize(
    ("lost", "after"),
    [
        ("mkdir /new", "create /new/x"),
        ("mkdir /new", "mkdir /new/x"),
        ("mkdir /new", "symlink x /new/x"),
        ("mkdir /new", "touch /new/x"),
        ("mkdir /new", "link /d/f /new/x"),
        ("mkdir /new", "rename /d/f /new/x"),
        ("unlink /d/f", "rmdir /d"),
        ("unlink /d/f", "rename /e /d"),
    ],
)
async def test_a_change_that_cannot_be_done_again_evicts(world: Any, lost: str, after: str) -> None:
    """No version says so, but what was answered is lost: its client must hear of it."""
    async with world(clients=2, area_of=lambda path: path[:1]) as c:
        c.expect(*MISMATCH)
        await do(c.a, "mkdir /d; mkdir /e; create /d/f")
        await lose(c, "", lost, after)
        c.saw("import.evicted", client=c.a, times=1)
