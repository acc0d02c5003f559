"""Names, attributes and open files of two mounts: what one changes the other sees at once, whoever caches.

Source: lustre/tests/sanityn.sh; the numbers are its tests.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from typing import Any

import pytest
from mounts import Mount, drop_locks, some_cache, two_mounts, who_caches
from steps import refused, soon

from lustrelite.errors import OpError
from lustrelite.fuse.walks import KEPT_S, Walks
from lustrelite.wire.locks import BlockingCallback
from lustrelite.wire.mdt import Lookup, Open, Rename, Setattr, Unlink

YEAR_NS = 365 * 86_400 * 10**9


async def mode_of(mount: Mount, path: str) -> int:
    return stat.S_IMODE((await mount.stat(path)).mode)


# attributes -----------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 1")
@who_caches
async def test_a_file_and_its_attributes_are_there_on_the_other_mount(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.create("/u/f")
        assert await b.exists("/u/f")
        await b.chmod("/u/f", 0o777)
        assert await mode_of(a, "/u/f") == 0o777
        await b.chmod("/u/f", 0o666)
        for client in (c.a, c.b):  # also after a remount
            await client.unmount()
            await client.start()
        assert await mode_of(a, "/u/f") == await mode_of(b, "/u/f") == 0o666
        await b.unlink("/u/f")
        assert not await a.exists("/u/f") and not await b.exists("/u/f")


@pytest.mark.lustre("SN 2a", "SN 2b")
@who_caches
async def test_cached_attributes_follow_a_change_of_either_mount(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        for changer in (a, b):
            await a.create("/u/f", 0o644)
            for mount in (a, b):
                assert await mode_of(mount, "/u/f") == 0o644
            await changer.chmod("/u/f", 0o777)
            for mount in (a, b):
                assert await mode_of(mount, "/u/f") == 0o777
            await changer.chown("/u/f", 500, 501)
            for mount in (a, b):
                found = await mount.stat("/u/f")
                assert (found.uid, found.gid) == (500, 501)
            await a.unlink("/u/f")


@pytest.mark.lustre("SN 2c", "SN 2d")
@who_caches
async def test_the_mode_of_the_root_is_the_same_on_both_mounts(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        for mode in (0o777, 0o755):
            await b.stat("/")
            await a.chmod("/", mode)
            assert await mode_of(b, "/") == await mode_of(a, "/") == mode


@pytest.mark.lustre("SN 2e")
@who_caches
async def test_a_right_given_on_one_mount_counts_on_the_other(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        alice = Mount(c.b, c.b.fs.as_user(1000, 1000))
        await a.chmod("/u", 0o755)
        assert await a.names("/u") == await alice.names("/u") == []
        with refused(errno.EACCES):
            await alice.write_file("/u/f", b"data")
        await a.chmod("/u", 0o777)
        await alice.write_file("/u/f", b"data")
        await a.chmod("/u", 0o700)
        with refused(errno.EACCES):
            await alice.stat("/u/f")
        assert await b.content("/u/f") == b"data"


@pytest.mark.lustre("SN 3")
@who_caches
async def test_a_symlink_of_one_mount_is_read_on_the_other(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        assert not await b.exists("/u/link")
        await a.symlink("this/is/good", "/u/link")
        assert await b.readlink("/u/link") == await a.readlink("/u/link") == "this/is/good"
        await b.unlink("/u/link")
        await b.symlink("that/is/better", "/u/link")
        assert await a.readlink("/u/link") == "that/is/better"


@pytest.mark.lustre("SN 72")
@who_caches
async def test_extended_attributes_are_the_same_on_both_mounts(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.create("/u/f")
        await a.setxattr("/u/f", "user.attr1", b"value1")
        assert await b.getxattr("/u/f", "user.attr1") == b"value1"
        await b.setxattr("/u/f", "user.attr1", b"value2")
        assert await a.getxattr("/u/f", "user.attr1") == b"value2"
        await a.setxattr("/u/f", "user.attr2", b"")
        assert sorted(await b.listxattr("/u/f")) == ["user.attr1", "user.attr2"]
        await b.removexattr("/u/f", "user.attr1")
        with refused(errno.ENODATA):
            await a.getxattr("/u/f", "user.attr1")
        fid = await a.path2fid("/u/f")
        await b.link("/u/f", "/u/second")  # Lustre has the names in an attribute, too
        assert sorted(await a.fid2path(fid)) == [b"/u/f", b"/u/second"]


@pytest.mark.lustre("SN 73")
@some_cache
async def test_who_only_reads_extended_attributes_takes_no_lock_from_anybody(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.create("/u/f")
        await a.setxattr("/u/f", "user.attr1", b"value1")
        for mount in (b, a):
            await mount.stat("/u/f")
            assert await mount.getxattr("/u/f", "user.attr1") == b"value1"
        before = c.mds.target().namespace.lock_count
        asked = c.mds.target().node.events.counts["lock.asked"]
        for _ in range(3):
            for mount in (a, b):
                assert await mount.getxattr("/u/f", "user.attr1") == b"value1"
                assert await mount.listxattr("/u/f") == ["user.attr1"]
        assert c.mds.target().namespace.lock_count == before
        assert c.mds.target().node.events.counts["lock.asked"] == asked


@pytest.mark.lustre("SN 37")
@who_caches
async def test_the_close_of_a_directory_changes_nothing_of_it(cluster: Any, mix: str) -> None:
    """It was opened before the other mount filled it and set its times."""
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.mkdir("/u/d")
        directory = await a.open("/u/d", os.O_DIRECTORY)
        for number in range(300):
            await b.create(f"/u/d/f{number}")
        await b.utimes("/u/d", 1, 2)
        await directory.close()
        assert len(await a.names("/u/d")) == len(await b.names("/u/d")) == 300
        for mount in (a, b):
            found = await mount.stat("/u/d")
            assert (found.atime, found.mtime) == (1, 2)


# names ----------------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 13")
@who_caches
async def test_a_listing_is_forgotten_when_the_other_mount_removes_a_name(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.mkdir("/u/d")
        assert await a.names("/u/d") == []
        for _ in range(2):
            await a.create("/u/d/f")
            assert await a.names("/u/d") == ["f"]
            await b.unlink("/u/d/f")
            assert await a.names("/u/d") == []
            assert [entry async for entry in c.a.fs.scandir("/u/d")] == []


@pytest.mark.lustre("SN 12")
@who_caches
async def test_links_stats_and_unlinks_of_two_mounts_never_wait_in_a_circle(cluster: Any, mix: str) -> None:
    """link locks the file and its directory, stat the directory and the file, unlink all of them."""
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.mkdir("/u/d")
        await a.create("/u/d/file")
        done = {"link": 0, "stat": 0, "unlink": 0}

        async def link() -> None:
            for number in range(150):
                await a.link("/u/d/file", f"/u/d/file{number}")
                done["link"] += 1

        async def look() -> None:
            while done["unlink"] < 147:
                try:
                    assert (await b.lstat(f"/u/d/file{done['unlink'] + 1}")).nlink >= 2
                    done["stat"] += 1
                except OpError as error:
                    assert error.errno == errno.ENOENT  # not there yet, or no longer
                await asyncio.sleep(0.0002)

        async def unlink() -> None:
            while done["unlink"] < 147:
                if done["link"] > done["unlink"] + 2:
                    await b.unlink(f"/u/d/file{done['unlink']}")
                    done["unlink"] += 1
                await asyncio.sleep(0.0005)

        await asyncio.wait_for(asyncio.gather(link(), look(), unlink()), 60)
        assert done["stat"] > 20
        assert (await a.stat("/u/d/file")).nlink == 1 + done["link"] - done["unlink"] == len(await b.names("/u/d"))
        c.never_saw("client.evicted")


@pytest.mark.lustre("SN 31r")
@who_caches
async def test_an_open_outlives_a_rename_over_its_file(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await b.write_file("/u/target", b"old")
        await b.write_file("/u/source", b"new")
        held = c.net.hold(Open, to=c.mds, source=c.a)  # it knows nothing of the file, so it must ask
        reading = soon(a.content("/u/target"))
        await held.caught()
        await b.rename("/u/source", "/u/target")
        held.release()
        assert await reading == b"new"
        assert await a.names("/u") == ["target"]


@pytest.mark.lustre("SN 31s")
@who_caches
async def test_a_name_that_was_given_to_another_directory_leads_there(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.mkdir("/u/d")
        await a.create("/u/d/f")
        await a.stat("/u/d/f")
        file = await a.open("/u/d/f")
        directory = await a.open("/u/d", os.O_DIRECTORY)
        await b.rename("/u/d", "/u/d.old")
        await b.mkdir("/u/d")
        await b.rename("/u/d.old", "/u/d/d.old")
        assert await a.names("/u/d") == await b.names("/u/d") == ["d.old"]
        assert await a.names("/u/d/d.old") == ["f"]
        inside = [entry.name async for entry in c.a.fs.scandir_fid(directory.fid)]
        assert inside == [b"f"]
        assert (await file.fstat()).fid == (await b.stat("/u/d/d.old/f")).fid
        await file.close()
        await directory.close()


@pytest.mark.lustre("SN 31t")
@who_caches
async def test_attributes_of_an_open_file_do_not_bring_back_its_old_name(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.create("/u/f")
        await a.stat("/u/f")
        file = await a.open("/u/f")
        await b.rename("/u/f", "/u/f.old")
        await b.create("/u/f")
        new = (await b.stat("/u/f")).fid
        old = (await file.fstat()).fid
        assert old != new == (await a.stat("/u/f")).fid
        assert (await a.stat("/u/f.old")).fid == old
        await file.close()


# open and removed -----------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 6")
@who_caches
async def test_an_open_file_that_the_other_mount_removes_lives_on_without_a_name(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.write_file("/u/f", b"data")
        of_a, of_b = [await mount.open("/u/f", os.O_RDWR) for mount in (a, b)]
        await b.unlink("/u/f")
        for mount in (a, b):
            assert not await mount.exists("/u/f")
        for file in (of_a, of_b):
            assert (await file.fstat()).nlink == 0 and await file.pread(-1, 0) == b"data"
        await of_a.pwrite(b" and more", 4)
        assert await of_b.pread(-1, 0) == b"data and more" and (await of_b.fstat()).size == 13
        await of_b.truncate(2)
        assert await of_a.pread(-1, 0) == b"da"
        fid = of_a.fid
        await of_a.close()
        assert await of_b.pread(-1, 0) == b"da"
        await of_b.close()
        for mount in (a, b):
            with refused(errno.ENOENT):
                await mount.stat_fid(fid)


@pytest.mark.lustre("SN 7", "SN 8")
@who_caches
@pytest.mark.parametrize("kind", ["directory", "fifo"])
async def test_an_open_directory_or_special_file_that_the_other_mount_removes_can_still_be_changed(
    cluster: Any, mix: str, kind: str
) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        if kind == "directory":
            await a.mkdir("/u/x", 0o744)
        else:
            await a.mknod("/u/x", stat.S_IFIFO | 0o744)
        flags = os.O_DIRECTORY if kind == "directory" else os.O_RDONLY | os.O_NONBLOCK
        of_a, of_b = [await mount.open("/u/x", flags) for mount in (a, b)]
        await (a.rmdir if kind == "directory" else a.unlink)("/u/x")
        for mount in (b, a):
            assert not await mount.exists("/u/x")
        await a.setattr_fid(of_a.fid, mode=0o777)
        seen = [await file.fstat() for file in (of_a, of_b)]
        assert stat.S_IMODE(seen[0].mode) == 0o777 and seen[0] == seen[1] and seen[0].nlink == 0
        await of_a.close()
        await of_b.close()
        with refused(errno.ENOENT):
            await b.stat_fid(of_b.fid)


@pytest.mark.lustre("SN 70a", "SN 92")
@who_caches
async def test_who_is_in_a_directory_that_the_other_mount_removes_finds_nothing_there(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.makedirs("/u/d/here/below")
        await a.write_file("/u/d/here/below/f", b"data")
        directory = await b.open("/u/d/here", os.O_DIRECTORY)
        assert await b.names("/u/d/here") == ["below"] and await b.exists("/u/d/here/below/f")
        here = directory.fid
        await a.rmtree("/u/d/here")
        for mount in (a, b):  # also who makes something in it by its FID, as a process whose cwd it is
            for make in (mount.mkdir_at, mount.create_at):
                with refused(errno.ENOENT):
                    await make(here, b"new")
            with refused(errno.ENOENT):
                await mount.stat_at(here, b"below")
        assert [entry async for entry in c.b.fs.scandir_fid(here)] == []
        assert not await b.exists("/u/d/here") and await b.names("/u/d") == []
        await directory.close()


@pytest.mark.lustre("SN 82")
@who_caches
async def test_extended_attributes_of_a_file_without_a_name(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        of_a = await a.open("/u/f", os.O_RDWR | os.O_CREAT)
        of_b = await b.open("/u/f")
        await a.unlink("/u/f")
        await b.setxattr_fid(of_b.fid, b"user.multiop", b"value")
        assert await a.getxattr_fid(of_a.fid, b"user.multiop") == b"value"
        assert await a.listxattr_fid(of_a.fid) == [b"user.multiop"]
        await of_b.close()
        await of_a.close()


@pytest.mark.lustre("SN 84")
@who_caches
async def test_times_are_set_while_the_other_mount_removes_the_file(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix + "c", clients=3) as (c, a, b):
        # held up on its way: the file is gone when it arrives
        await a.create("/u/f")
        held = c.net.hold(Setattr, to=c.mds, source=c.a)
        touching = soon(a.utimes("/u/f", None, YEAR_NS))
        await held.caught()
        await b.unlink("/u/f")
        held.release()
        with refused(errno.ENOENT):
            await touching
        # held up in the MDS: the unlink comes second
        await a.create("/u/f")
        await Mount(c.c).stat("/u/f")
        held = c.net.hold(BlockingCallback, to=c.c)
        touching = soon(a.utimes("/u/f", None, YEAR_NS))
        await held.caught()
        removing = soon(b.unlink("/u/f"))
        await asyncio.sleep(1)
        assert not touching.done() and not removing.done()
        held.release()
        await touching
        await removing
        assert not await a.exists("/u/f")
        c.never_saw("client.evicted")


@pytest.mark.lustre("SN 102")
@who_caches
async def test_a_file_is_opened_by_its_fid_on_the_other_mount_with_and_without_a_name(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.write_file("/u/f", b"by handle")
        of_a = await a.open("/u/f")
        first = await of_a.fstat()
        for named in (True, False):
            if not named:
                await a.unlink("/u/f")
            of_b = await b.open_fid(of_a.fid)
            seen = await of_b.fstat()
            assert (seen.ino, seen.mode, seen.mtime, seen.size) == (first.ino, first.mode, first.mtime, first.size)
            assert await of_b.pread(-1, 0) == b"by handle"
            await of_b.close()
        await of_a.close()
        with refused(errno.ENOENT):
            await b.open_fid(of_a.fid)


# rename ---------------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 54")
@pytest.mark.parametrize("where", ["on its way", "in the MDS"])
@some_cache
async def test_a_rename_that_is_held_up_hangs_nobody(cluster: Any, mix: str, where: str) -> None:
    async with two_mounts(cluster, mix + "c", clients=3) as (c, a, b):
        for part in range(2):
            await a.makedirs("/u/d1/d2/d3")
            for mount in (a, b, Mount(c.c)):
                await mount.stat("/u/d1/d2/d3")
            if where == "on its way":
                held = c.net.hold(Rename, to=c.mds)
            else:
                await Mount(c.c).names("/u/d1/d2")
                held = c.net.hold(BlockingCallback, to=c.c)
            moving = soon(a.rename("/u/d1/d2/d3", "/u/d1/d3"))
            await held.caught()
            looking = soon(a.stat("/u/d1/d2"))
            await asyncio.sleep(0.1)
            if part == 0:
                await b.setxattr("/u/d1", "user.attr1", b"value1")
            else:
                with refused(errno.EISDIR):
                    await b.open("/u/d1/d2", os.O_RDWR)
                await a.stat("/u/d1")
            assert not moving.done()
            held.release()
            await moving
            assert (await looking).is_dir
            assert await b.names("/u/d1") == await a.names("/u/d1") == ["d2", "d3"]
            assert await b.names("/u/d1/d2") == []
            await b.rmtree("/u/d1")
        c.never_saw("client.evicted")


@pytest.mark.parametrize("where", ["on its way", "in the MDS"])
@pytest.mark.parametrize(
    "gone",
    [
        pytest.param("target", marks=pytest.mark.lustre("SN 55a")),
        pytest.param("source", marks=pytest.mark.lustre("SN 55b")),
        pytest.param("open target", marks=pytest.mark.lustre("SN 55c")),
    ],
)
@some_cache
async def test_a_rename_whose_directory_is_removed_comes_before_or_fails(
    cluster: Any, mix: str, gone: str, where: str
) -> None:
    async with two_mounts(cluster, mix + "c", clients=3) as (c, a, b):
        await a.makedirs("/u/d1/d2")
        await a.mkdir("/u/d3")
        await a.names("/u/d1")
        if where == "on its way":
            held = c.net.hold(Rename, to=c.mds)
        else:
            await Mount(c.c).stat("/u/d1/d2")
            held = c.net.hold(BlockingCallback, to=c.c)
        moving = soon(a.rename("/u/d1/d2", "/u/d3/d2"))
        await held.caught()
        directory = await b.open("/u/d3", os.O_DIRECTORY) if gone == "open target" else None
        removing = soon(b.rmtree("/u/d1" if gone == "source" else "/u/d3"))
        await asyncio.sleep(0.5)
        first = "removal" if removing.done() else "rename"
        assert not moving.done() and (first == "removal" or where == "in the MDS")
        held.release()
        results = await asyncio.gather(moving, removing, return_exceptions=True)
        if first == "removal":
            assert isinstance(results[0], OpError) and results[0].errno == errno.ENOENT and results[1] is None
            left = ["d3"] if gone == "source" else ["d1"]
            for mount in (a, b):
                assert await mount.names(f"/u/{left[0]}") == ([] if gone == "source" else ["d2"])
        else:
            assert results[0] is None
            assert results[1] is None if gone == "source" else results[1].errno == errno.ENOTEMPTY
            left = ["d3"] if gone == "source" else ["d1", "d3"]
            assert await a.names("/u/d3") == await b.names("/u/d3") == ["d2"]
        assert await a.names("/u") == await b.names("/u") == left
        if directory is not None:
            await directory.close()
        c.never_saw("client.evicted")


@pytest.mark.lustre("SN 55d")
@some_cache
async def test_a_rename_whose_target_becomes_a_directory_meanwhile_fails(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.create("/u/f1")
        held = c.net.hold(Rename, to=c.mds)
        moving = soon(a.rename("/u/f1", "/u/t"))
        await held.caught()
        await b.mkdir("/u/t")
        await b.link("/u/f1", "/u/t/f1")
        held.release()
        with refused(errno.EISDIR):
            await moving
        for mount in (a, b):
            assert await mount.names("/u") == ["f1", "t"] and (await mount.stat("/u/f1")).nlink == 2


@pytest.mark.parametrize(
    ("tree", "one", "other", "both"),
    [
        pytest.param(("A", "B"), ("A", "B"), ("B", "A"), True, marks=pytest.mark.lustre("SN 55e"), id="AB BA"),
        pytest.param(
            ("P1/A", "P2/B"), ("P1/A", "P2/B"), ("P2/B", "P1/A"), True, marks=pytest.mark.lustre("SN 55f"),
            id="P1/A P2/B",
        ),
        pytest.param(
            ("a1/a2/a3/a4", "b1/b2/b3/b4"), ("a1/a2", "b1/b2/b3/b4/a2"), ("b1/b2", "a1/a2/a3/a4/b2"), False,
            marks=pytest.mark.lustre("SN 55g"), id="each below the other",
        ),
    ],
)  # fmt: skip
@some_cache
async def test_two_renames_against_each_other(
    cluster: Any, mix: str, tree: tuple[str, ...], one: tuple[str, str], other: tuple[str, str], both: bool
) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        for number in range(8):
            await a.mkdir("/u/d")
            for path in tree:
                await a.makedirs(f"/u/d/{path}")
                await b.stat(f"/u/d/{path}")
            delayed = c.net.slow(Rename, delay_s=0.0005 * (number % 3), to=c.mds)
            results = await asyncio.gather(
                *[m.rename(f"/u/d/{old}", f"/u/d/{new}") for m, (old, new) in ((a, one), (b, other))],
                return_exceptions=True,
            )
            delayed.lift()
            done = results.count(None)
            assert done >= 1 and (both or done == 1), results
            assert all(isinstance(result, OpError) for result in results if result is not None)
            if not both:
                left = {path for path in (one[1], other[1]) if await a.exists(f"/u/d/{path}")}
                assert left == {(one, other)[results.index(None)][1]}
            trees = [[found async for found in mount.client.fs.walk("/u/d")] for mount in (a, b)]
            assert sorted(map(str, trees[0])) == sorted(map(str, trees[1]))
            await b.rmtree("/u/d")
        c.never_saw("client.evicted")


# mounts ---------------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 109")
@who_caches
async def test_mounts_and_unmounts_race(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.write_file("/u/f", b"data")
        for _ in range(20):
            await asyncio.gather(c.a.unmount(), c.b.unmount())
            await asyncio.gather(c.a.start(), c.b.start())
            assert await asyncio.gather(a.content("/u/f"), b.content("/u/f")) == [b"data", b"data"]
        assert len(c.mds.target().exports) == 2


@pytest.mark.lustre("SN 33a", "SN 33b")
@pytest.mark.parametrize("commit_on_sharing", [0, 1])
@pytest.mark.parametrize("directories", ["each its own", "one for both"])
@who_caches
async def test_each_removes_what_the_other_has_just_made(
    cluster: Any, mix: str, directories: str, commit_on_sharing: int
) -> None:
    """With commit on share each removal waits for the commit of what it depends on; without it nothing does."""
    async with two_mounts(cluster, mix, commit_on_sharing=commit_on_sharing) as (c, a, b):
        paths = {mount: "/u/d" if directories == "one for both" else f"/u/{mount.client.name}" for mount in (a, b)}
        for path in dict.fromkeys(paths.values()):
            await a.mkdir(path)
        await c.mds.commit()
        before = c.mds.target().committer.commits

        async def make_and_remove(maker: Mount, remover: Mount) -> None:
            for number in range(30):
                path = f"{paths[maker]}/{maker.client.name}-{number}"
                await maker.create(path)
                await remover.unlink(path)
                assert not await maker.exists(path)

        await asyncio.gather(make_and_remove(a, b), make_and_remove(b, a))
        commits = c.mds.target().committer.commits - before
        assert commits >= 30 if commit_on_sharing else commits <= 2
        for path in dict.fromkeys(paths.values()):
            assert await a.names(path) == await b.names(path) == []


# locks of the MDT -----------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 110")
@pytest.mark.parametrize("message", [Lookup, Open])
async def test_a_late_copy_of_an_operation_brings_no_second_lock(cluster: Any, message: type) -> None:
    """The first copy comes when the answer to the second is there, and its lock was given back already."""
    async with two_mounts(cluster) as (c, a, b):
        await a.write_file("/u/f", b"data")
        await drop_locks(c, c.a, c.b, kind="MDT")
        late = c.net.hold(message, to=c.mds, source=c.a, times=1)
        looking = soon(a.stat("/u/f") if message is Lookup else a.content("/u/f"))
        await late.caught()
        await looking  # it was sent again
        await b.chmod("/u/f", 0o600)
        await drop_locks(c, c.a, kind="MDT")
        late.release()
        await asyncio.sleep(0.5)
        mine = [lock for lock in c.mds.target().namespace.table.locks() if lock.owner.uuid == c.a.uuid]
        began = c.loop.time()
        await b.chmod("/u/f", 0o640)
        await b.rename("/u/f", "/u/g")
        assert c.loop.time() - began < 0.5 and not mine, mine
        assert await mode_of(a, "/u/g") == 0o640 and not await a.exists("/u/f")
        await asyncio.sleep(2 * c.tunables.lock_callback_s)
        c.never_saw("client.evicted")


@who_caches
@pytest.mark.parametrize("replaced", [False, True])
async def test_what_is_found_by_a_second_walk_stays_until_it_was_used(cluster: Any, mix: str, replaced: bool) -> None:
    """The kernel walks a path twice, and then the program would hear ESTALE of a name that was there all the time."""
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.create("/u/f")
        await a.create("/u/g")
        place = (await a.stat("/u")).fid
        walks = Walks(c.a.fs)
        assert not walks.again(7)
        walks.stale(7)
        assert walks.again(7) and not walks.again(8)
        stat = await walks.find(7, place, b"f")
        assert not walks.again(7)
        await (b.rename("/u/g", "/u/f") if replaced else b.unlink("/u/f"))
        assert (await c.a.fs.setattr_fid(stat.fid, mode=0o600)).nlink == 0
        await asyncio.sleep(2 * KEPT_S)
        with refused(errno.ENOENT):
            await c.a.fs.stat_fid(stat.fid)
        walks.stale(7)
        if replaced:
            assert (await walks.find(7, place, b"f")).fid == (await b.stat("/u/f")).fid
        else:
            with refused(errno.ENOENT):
                await walks.find(7, place, b"f")


async def test_rmtree_removes_nothing_through_a_symlink_that_was_put_there_meanwhile(cluster: Any) -> None:
    """CVE-2013-4235: it went by path, so who could write below could have anything removed that its caller may remove."""
    async with two_mounts(cluster) as (c, a, b):
        names = ("one", "two", "three")
        for top in ("/u/tree", "/u/safe"):
            for name in names:
                await b.makedirs(f"{top}/{name}")
                await b.create(f"{top}/{name}/f")
        *later, _ = await a.readdir("/u/tree")  # the last one goes first
        removal = c.net.hold(Unlink, source=c.a, times=1)
        removing = soon(a.rmtree("/u/tree"))
        await c.until(lambda: removal.matched)
        for name in later:
            await b.rename(f"/u/tree/{name}", f"/u/{name}")
            await b.symlink(f"/u/safe/{name}", f"/u/tree/{name}")
        removal.release()
        with refused(errno.ENOTDIR):
            await removing
        for name in names:
            assert await b.names(f"/u/safe/{name}") == ["f"]
