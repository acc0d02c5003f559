"""The server loses what it answered; its clients bring it back."""

from __future__ import annotations

import asyncio
import errno
import stat
from typing import Any

import pytest
from steps import contents, refused, touch

from lustrelite.wire.mdt import Create


@pytest.mark.lustre("RS 1")
async def test_created_names_survive_an_mds_crash_before_commit(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_1"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/file", 0o640)
        await c.a.mkdir("/directory", 0o750)
        await c.a.symlink("file", "/symlink")
        await c.fail(c.mds)
        assert [(await c.a.stat(f"/{name}")).mode for name in ("file", "directory", "symlink")] == [
            stat.S_IFREG | 0o640, stat.S_IFDIR | 0o750, stat.S_IFLNK | 0o777
        ]  # fmt: skip
        c.saw("import.replayed", client=c.a, op="Create", times=3)


@pytest.mark.lustre("RS 1")
async def test_a_special_file_keeps_its_type_over_a_crash(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_1"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.fs.mknod("/fifo", stat.S_IFIFO | 0o600)
        await c.a.fs.mknod("/null", stat.S_IFCHR | 0o666, rdev=0x103)
        await c.fail(c.mds)
        assert stat.S_ISFIFO((await c.a.fs.lstat("/fifo")).mode)
        null = await c.a.fs.lstat("/null")
        assert stat.S_ISCHR(null.mode) and null.rdev == 0x103
        await c.a.fs.unlink("/fifo")
        await c.a.fs.unlink("/null")


@pytest.mark.lustre("RS 2b")
async def test_times_set_before_a_crash_are_kept(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_2b"""
    async with world(clients=1) as c:
        await c.a.create("/f")
        await c.replay_barrier(c.mds)
        await c.a.utime("/f", 2_000_000_000, atime=1_000_000_000)
        await c.fail(c.mds)
        found = await c.a.fs.lstat("/f")
        assert (found.atime, found.mtime) == (1_000_000_000, 2_000_000_000)
        c.saw("import.replayed", op="Setattr", times=1)


@pytest.mark.lustre("RS 4a")
async def test_ten_written_files_survive_a_crash(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_4a"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        paths = [f"/f{i}" for i in range(10)]
        for path in paths:
            await c.a.write(path, f"content of {path}".encode())
        await c.fail(c.mds)
        assert await contents(c.a, paths) == [f"content of {path}".encode() for path in paths]


@pytest.mark.lustre("RS 4b")
async def test_removed_files_stay_removed(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_4b"""
    async with world(clients=1) as c:
        paths = [f"/f{i}" for i in range(10)]
        for path in paths:
            await c.a.write(path, b"x")
        await c.replay_barrier(c.mds)
        for path in paths:
            await c.a.unlink(path)
        await c.fail(c.mds)
        assert await c.a.listdir("/") == []
        c.saw("import.replayed", op="Unlink", times=10)


@pytest.mark.lustre("RS 5")
async def test_more_files_than_are_precreated_survive_with_their_content(world: Any) -> None:
    """220 files: several batches of object ids per OST.  Source: lustre/tests/replay-single.sh test_5"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        paths = [f"/f{i}" for i in range(220)]
        for path in paths:
            await c.a.write(path, path.encode())
        await c.fail(c.mds)
        assert await contents(c.a, paths) == [path.encode() for path in paths]


@pytest.mark.lustre("RS 6b")
async def test_a_removed_directory_stays_removed(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_6b"""
    async with world(clients=1) as c:
        await c.a.mkdir("/d")
        await c.replay_barrier(c.mds)
        await c.a.rmdir("/d")
        await c.fail(c.mds)
        assert not await c.a.exists("/d")


@pytest.mark.lustre("RS 9")
async def test_a_replayed_create_makes_the_same_inode_number(world: Any) -> None:
    """The client chose the FID.  Source: lustre/tests/replay-single.sh test_9"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        before = (await c.a.stat("/f")).ino
        await c.fail(c.mds)
        assert (await c.a.stat("/f")).ino == before


@pytest.mark.lustre("RS 10")
async def test_a_rename_and_the_unlink_of_the_old_name_survive(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_10"""
    async with world(clients=1) as c:
        await c.a.create("/old")
        await c.replay_barrier(c.mds)
        await c.a.rename("/old", "/new")
        with refused(errno.ENOENT):
            await c.a.unlink("/old")
        await c.fail(c.mds)
        assert await c.a.listdir("/") == ["new"]


@pytest.mark.lustre("RS 11")
async def test_a_new_file_under_the_old_name_of_a_renamed_one(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_11"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.write("/f", b"first")
        await c.a.rename("/f", "/g")
        await c.a.write("/f", b"second")
        await c.fail(c.mds)
        assert await contents(c.a, ["/g", "/f"]) == [b"first", b"second"]


@pytest.mark.lustre("RS 16")
async def test_a_file_made_and_removed_between_others_stays_away(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_16"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/first")
        await c.a.unlink("/first")
        await c.a.create("/second")
        await c.fail(c.mds)
        assert await c.a.listdir("/") == ["second"]


@pytest.mark.lustre("RS 19")
async def test_a_written_and_renamed_file_has_its_data_under_the_new_name(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_19"""
    async with world(clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.create("/f")
        await c.a.write("/f", b"data")
        await c.a.rename("/f", "/g")
        await c.fail(c.mds)
        assert not await c.a.exists("/f")
        assert await c.a.read("/g") == b"data"


@pytest.mark.lustre("RS 58b")
@pytest.mark.parametrize("size", [1, 256, 4096, 65536])
async def test_extended_attributes_up_to_the_largest_survive(world: Any, size: int) -> None:
    """Source: lustre/tests/replay-single.sh test_58b"""
    async with world(clients=2) as c:
        await c.a.create("/f")
        await c.replay_barrier(c.mds)
        value = bytes(range(1, 251)) * (size // 250 + 1)
        await c.a.setxattr("/f", "trusted.foo", value[:size])
        await c.fail(c.mds)
        assert await c.b.getxattr("/f", "trusted.foo") == value[:size]


@pytest.mark.lustre("RS 70a")
async def test_clients_read_what_their_neighbours_wrote(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_70a"""
    async with world(clients=3) as c:
        clients = [c.a, c.b, c.clients["c"]]
        await asyncio.gather(*(client.write(f"/{client.name}", client.name.encode() * 1000) for client in clients))
        for client, neighbour in zip(clients, clients[1:] + clients[:1], strict=True):
            assert await client.read(f"/{neighbour.name}") == neighbour.name.encode() * 1000


@pytest.mark.lustre("RS 90")
async def test_layouts_can_be_read_while_an_ost_is_down(world: Any) -> None:
    """The tools name exactly the files that are on it.  Source: lustre/tests/replay-single.sh test_90"""
    async with world(oss=2, clients=1) as c:
        await c.a.mkdir("/d")
        for name, count, offset in (("zero", 1, 0), ("one", 1, 1), ("both", 2, 0)):
            await c.a.mkdir(f"/d/{name}")
            await c.a.fs.setstripe(f"/d/{name}", count, 0, offset)
            await c.a.create(f"/d/{name}/f")
        await c.oss[1].kill()
        on_one = []
        async for directory, _, files in c.a.fs.walk("/d"):
            for name in files:
                layout = await c.a.fs.getstripe(f"{directory}/{name}")
                if any(ost == 1 for ost, _ in layout.stripes):
                    on_one.append(f"{directory}/{name}")
        assert sorted(on_one) == ["/d/both/f", "/d/one/f"]


@pytest.mark.lustre("RD 2")
async def test_a_directory_made_by_one_client_can_be_removed_by_the_other(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_2"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        await c.a.mkdir("/d")
        await c.fail(c.mds)
        assert await c.b.exists("/d")
        await c.b.rmdir("/d")


@pytest.mark.lustre("RD 3")
async def test_replays_of_two_clients_keep_their_order(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_3"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        await c.a.mkdir("/d")
        await c.b.mkdir("/d/e")
        await c.a.write("/d/e/f", b"deep")
        await c.fail(c.mds)
        assert await c.b.read("/d/e/f") == b"deep"
        assert await c.a.listdir("/d") == ["e"]


@pytest.mark.lustre("SM 54")
async def test_a_failed_operation_does_not_make_the_server_seem_older(world: Any) -> None:
    """It has transno 0 in its record.  Source: lustre/tests/recovery-small.sh test_54"""
    async with world(clients=1) as c:
        await c.a.create("/f")
        with refused(errno.EEXIST):
            await c.a.create("/f")
        await c.mds.commit()
        await c.fail(c.mds)
        await touch(c.a, "/g")
        c.never_saw("import.time_went_back")
        c.never_saw("import.evicted")


@pytest.mark.lustre("RS 102c")
async def test_what_was_done_in_all_slots_and_not_answered_is_done_again(world: Any) -> None:
    """There is no reply data on disk.  Source: lustre/tests/replay-single.sh test_102c"""
    async with world(clients=1) as c:
        await c.a.mkdir("/d")
        await c.replay_barrier(c.mds)
        rule = c.drop_reply(Create, times=8)
        creates = [asyncio.ensure_future(c.a.create(f"/d/{i}")) for i in range(8)]
        await rule.caught(8)
        await c.fail(c.mds)
        await asyncio.gather(*creates)
        assert await c.a.listdir("/d") == [str(i) for i in range(8)]
        c.never_saw("reply.reconstructed")
