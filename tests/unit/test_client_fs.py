"""The POSIX face of the client over fake servers: paths, symlinks, open files, times, cancellation."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from fake_servers import World

from lustrelite.cli.mount import new_node
from lustrelite.client.fs import NOW, FileSystem
from lustrelite.client.paths import split
from lustrelite.errors import OpError
from lustrelite.wire import mdt
from lustrelite.wire.mdt import Layout, StripeHint


async def refused(operation: Awaitable[Any]) -> str:
    """The name of the errno that `operation` ends with."""
    with pytest.raises(OpError) as caught:
        await operation
    return errno.errorcode[caught.value.errno]


@pytest.mark.parametrize("nids", [["mgs1"], "127.0.0.1:988@tcp", ["/run/mgs@unix", ""]])
async def test_what_is_no_nid_is_not_waited_for(nids: Any) -> None:
    """A mount waited for ever for `mgs1`, or for every letter of a NID that was no list."""
    node = new_node("a")
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="bad NID"):
            await FileSystem.mount(node, nids)
        await node.stop_tasks()


# paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "names", "directory"),
    [
        (b"/", [], True),
        (b"//a///b", [b"a", b"b"], False),
        (b"/a/./b/", [b"a", b"b"], True),
        (b"/a/.", [b"a", b"."], True),
        (b"/./a/..", [b"a", b".."], True),
        (b"x", [b"x"], False),
    ],
)
def test_a_path_is_cut_into_names(path: bytes, names: list[bytes], directory: bool) -> None:
    assert split(path) == (names, directory)


async def test_wrong_arguments_are_told_in_clear_sentences() -> None:
    async with World() as world:
        fs = world.fs
        with pytest.raises(ValueError, match="absolute"):
            await fs.stat("a/b")
        with pytest.raises(ValueError, match="NUL"):
            await fs.stat("/a\0b")
        with pytest.raises(TypeError, match="str or bytes"):
            await fs.stat(7)  # type: ignore[arg-type]
        assert await refused(fs.stat("")) == "ENOENT"
        assert await refused(fs.stat("/" + "n" * 256)) == "ENAMETOOLONG"
        assert await refused(fs.mkdir(b"/" + b"n" * 300)) == "ENAMETOOLONG"
        assert await refused(fs.stat("/a" * 2048)) == "ENAMETOOLONG"
        assert await refused(fs.symlink("t" * 4096, "/l")) == "ENAMETOOLONG"
        assert world.mdt.calls == []
        with pytest.raises(ValueError, match="64 groups"):
            fs.as_user(1, 1, range(65))
        with pytest.raises(ValueError, match="number"):
            fs.as_user(-1, 0)
        async with await fs.open("/f", os.O_RDWR | os.O_CREAT) as file:
            with pytest.raises(TypeError, match="encode"):
                await file.write("text")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="read-only"):
                await file.pread_into(b"xx", 0)
            assert await refused(file.pwrite(b"x", -1)) == "EINVAL"
            assert await refused(file.seek(-1)) == "EINVAL"


async def test_names_of_any_bytes_come_back_as_the_type_of_the_path() -> None:
    async with World() as world:
        await world.fs.create(b"/\xff\n\x01")
        assert await world.fs.readdir(b"/") == [b"\xff\n\x01"]
        assert await world.fs.readdir("/") == ["\udcff\n\x01"]
        assert (await world.fs.stat("/\udcff\n\x01")).is_file


async def test_paths_are_walked_through_dots_and_symlinks() -> None:
    async with World() as world:
        fs = world.fs
        await fs.makedirs("/a/b/c")
        await fs.write_file("/a/b/f", b"data")
        await fs.symlink("b/../b/./f", "/a/relative")
        await fs.symlink("/a/b", "/absolute")
        await fs.symlink("/absolute/", "/chain")
        for path in ("/a/relative", "/absolute/f", "/chain/f", "/chain/c/../f", "//a//b/./f", "/../a/b/f"):
            assert await fs.read_file(path) == b"data", path
        assert (await fs.stat("/chain")).is_dir
        assert (await fs.stat("/chain", follow=False)).is_symlink
        assert (await fs.lstat("/chain/")).is_dir
        assert await fs.readlink("/absolute") == "/a/b"
        assert await fs.readlink(b"/absolute") == b"/a/b"
        assert (await fs.stat("/")).fid == fs.root
        assert await refused(fs.stat("/a/b/f/")) == "ENOTDIR"
        assert await refused(fs.stat("/a/b/f/x")) == "ENOTDIR"
        assert await refused(fs.stat("/a/nothing/x")) == "ENOENT"
        assert await refused(fs.readlink("/a")) == "EINVAL"


async def test_forty_symlinks_are_followed_and_no_more() -> None:
    async with World() as world:
        fs = world.fs
        await fs.create("/l0")
        for i in range(41):
            await fs.symlink(f"l{i}", f"/l{i + 1}")
        assert (await fs.stat("/l40")).is_file
        assert await refused(fs.stat("/l41")) == "ELOOP"
        await fs.symlink("loop", "/loop")
        for operation in (fs.stat("/loop"), fs.open("/loop"), fs.mkdir("/loop/x"), fs.open("/loop", os.O_CREAT)):
            assert await refused(operation) == "ELOOP"


async def test_open_follows_symlinks_unless_told_not_to() -> None:
    async with World() as world:
        fs = world.fs
        await fs.mkdir("/d")
        await fs.symlink("d/new", "/dangling")
        assert not await fs.exists("/dangling")
        assert await refused(fs.open("/dangling")) == "ENOENT"
        assert await refused(fs.open("/dangling", os.O_CREAT | os.O_EXCL)) == "EEXIST"
        assert await refused(fs.open("/dangling", os.O_NOFOLLOW)) == "ELOOP"
        await fs.write_file("/dangling", b"through")
        assert await fs.read_file("/d/new") == b"through"
        await fs.symlink("d", "/to_d")
        for path, flags in (("/to_d", os.O_DIRECTORY), ("/to_d/", os.O_RDONLY), ("/to_d/.", os.O_RDONLY)):
            async with await fs.open(path, flags) as directory:
                assert (await directory.fstat()).is_dir
                assert await refused(directory.pread(1, 0)) == "EISDIR"
        assert await refused(fs.open("/d/new", os.O_DIRECTORY)) == "ENOTDIR"
        assert await refused(fs.open("/d/new/")) == "ENOTDIR"
        assert await refused(fs.open("/d/x/", os.O_CREAT)) == "EISDIR"
        assert await refused(fs.open("/", os.O_CREAT)) == "EISDIR"
        assert await refused(fs.open("/d", os.O_WRONLY)) == "EISDIR"
        assert await refused(fs.open("/d", os.O_ACCMODE)) == "EISDIR"


async def test_names_that_cannot_be_made_or_removed() -> None:
    async with World() as world:
        fs = world.fs
        await fs.mkdir("/d/")
        await fs.create("/f")
        expected = [
            (fs.mkdir("/"), "EEXIST"), (fs.mkdir("/d/."), "EEXIST"), (fs.mkdir("/d/.."), "EEXIST"),
            (fs.create("/x/"), "ENOENT"), (fs.create("/f"), "EEXIST"), (fs.mknod("/x", stat.S_IFDIR), "EINVAL"),
            (fs.unlink("/"), "EISDIR"), (fs.unlink("/d"), "EISDIR"), (fs.unlink("/d/"), "EISDIR"),
            (fs.unlink("/f/"), "ENOTDIR"), (fs.unlink("/d/.."), "EISDIR"), (fs.unlink("/x"), "ENOENT"),
            (fs.rmdir("/"), "EBUSY"), (fs.rmdir("/d/."), "EINVAL"), (fs.rmdir("/d/.."), "ENOTEMPTY"),
            (fs.rmdir("/f"), "ENOTDIR"), (fs.rename("/", "/x"), "EBUSY"), (fs.rename("/d", "/d/.."), "EBUSY"),
            (fs.rename("/f", "/x/"), "ENOTDIR"), (fs.rename("/f/", "/x"), "ENOTDIR"),
            (fs.rename("/f", "/x", 8), "EINVAL"), (fs.rename("/f", "/x", 3), "EINVAL"),
            (fs.link("/f", "/d"), "EEXIST"), (fs.symlink("", "/x"), "ENOENT"), (fs.stat_at(fs.root, b"x"), "ENOENT"),
        ]  # fmt: skip
        for i, (operation, name) in enumerate(expected):
            assert await refused(operation) == name, i
        with pytest.raises(ValueError, match="one component"):
            await fs.create_at(fs.root, b"a/b")
        await fs.rename("/d/", "/e/")
        await fs.rmdir("/e/")
        assert await fs.readdir("/") == ["f"]


async def test_create_is_one_request_and_opens_nothing() -> None:
    async with World() as world:
        await world.fs.create("/first")
        world.mdt.calls.clear()
        made = await world.fs.create("/second", 0o640, StripeHint(1, 1 << 17, -1))
        assert [type(call).__name__ for call in world.mdt.calls] == ["Create"]
        assert (made.mode, made.size) == (stat.S_IFREG | 0o640, 0)
        assert made.layout is not None and made.layout.stripe_size == 1 << 17
        assert all(server.calls == [] for server in world.osts)


# open files -----------------------------------------------------------------------------------------------------


async def test_reads_writes_and_the_position() -> None:
    async with World() as world:
        async with await world.fs.open("/f", os.O_RDWR | os.O_CREAT) as file:
            assert await file.write(b"hello ") == 6
            assert await file.write(bytearray(b"world")) == 5
            assert file.tell() == 11
            assert await file.seek(0) == 0
            assert await file.read(5) == b"hello"
            assert await file.read() == b" world"
            assert await file.read(10) == b""
            assert await file.seek(-5, os.SEEK_END) == 6
            assert await file.seek(-6, os.SEEK_CUR) == 0
            assert await file.pwrite(memoryview(b"J"), 0) == 1
            buffer = bytearray(20)
            assert await file.pread_into(buffer, 0) == 11
            assert buffer[:11] == b"Jello world"
            assert await file.pwrite(b"", 1 << 40) == 0
            assert (await file.fstat()).size == 11
            await file.truncate(3)
            assert await file.pread(-1, 0) == b"Jel"
            await file.truncate(1 << 17)
            assert await file.pread((1 << 17) + 5, 0) == b"Jel" + bytes((1 << 17) - 3)
            await file.punch(1, 2)
            assert await file.pread(3, 0) == b"J\0l"
            await file.fsync()
        await file.close()
        assert await refused(file.read()) == "EBADF"
        assert world.mdt.count(mdt.Close) == 1


async def test_a_handle_does_only_what_it_was_opened_for() -> None:
    async with World() as world:
        await world.fs.create("/f")
        async with await world.fs.open("/f") as reader, await world.fs.open("/f", os.O_WRONLY) as writer:
            assert await refused(reader.write(b"x")) == "EBADF"
            assert await refused(reader.truncate(0)) == "EBADF"
            assert await refused(writer.read(1)) == "EBADF"


async def test_appends_of_one_client_never_overlap() -> None:
    async with World() as world:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        files = [await world.fs.open("/log", flags) for _ in range(4)]
        await asyncio.gather(*(file.write(bytes([65 + i]) * 10) for i, file in enumerate(files) for _ in range(5)))
        for file in files:
            await file.close()
        content = await world.fs.read_file("/log")
        assert len(content) == 200
        assert all(len(set(content[i : i + 10])) == 1 for i in range(0, 200, 10))


async def test_open_with_trunc_punches_objects_but_not_those_of_a_new_file() -> None:
    async with World() as world:
        await world.fs.write_file("/f", b"old content")
        assert sum(server.names().count("Punch") for server in world.osts) == 0
        await world.fs.write_file("/f", b"new")
        assert await world.fs.read_file("/f") == b"new"
        await world.fs.truncate("/f", 1)
        assert (await world.fs.stat("/f")).size == 1
        assert await refused(world.fs.truncate("/f", -1)) == "EINVAL"


async def test_a_failed_truncation_at_open_leaves_no_handle() -> None:
    async with World() as world:
        await world.fs.write_file("/f", b"old")
        for obj in range(1, 3):
            for server in world.osts:
                server.destroyed.add(obj)
        assert await refused(world.fs.open("/f", os.O_WRONLY | os.O_TRUNC)) == "ESTALE"
        await world.connections.tasks.idle()
        assert world.mdt.opens == {}


async def test_a_cancelled_open_is_closed_when_its_answer_comes() -> None:
    async with World() as world:
        await world.fs.create("/f")
        world.mdt.gate = asyncio.Event()
        opening = asyncio.get_running_loop().create_task(world.fs.open("/f"))
        while not world.mdt.count(mdt.Open):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert world.mdt.opens == {}
        world.mdt.gate.set()
        while not world.mdt.opens:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await world.connections.tasks.idle()
        assert world.mdt.count(mdt.Close) == 1 and world.mdt.opens == {}


async def test_an_open_cancelled_at_any_moment_leaves_no_handle() -> None:
    for turns in range(14):
        async with World() as world:
            await world.fs.write_file("/f", b"x")
            flags = os.O_WRONLY | os.O_TRUNC
            opening = asyncio.get_running_loop().create_task(world.fs.open("/f", flags))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            try:
                await (await opening).close()
            except asyncio.CancelledError:
                pass
            for _ in range(20):  # an answer may be on its way, to nobody
                await asyncio.sleep(0)
            while world.connections.tasks._running:
                await world.connections.tasks.idle()
                await asyncio.sleep(0)
            assert world.mdt.opens == {}, turns


async def test_a_cancelled_close_still_closes() -> None:
    async with World() as world:
        file = await world.fs.open("/f", os.O_RDWR | os.O_CREAT)
        world.mdt.gate = asyncio.Event()
        closing = asyncio.get_running_loop().create_task(file.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        world.mdt.gate.set()
        await world.connections.tasks.idle()
        assert world.mdt.opens == {}


async def test_a_close_that_the_mdt_does_not_know_is_a_close() -> None:
    async with World() as world:
        file = await world.fs.open("/f", os.O_RDWR | os.O_CREAT)
        world.mdt.opens.clear()
        await file.close()


async def test_unmount_closes_what_is_open_and_stop_does_not() -> None:
    world = World()
    await world.fs.open("/f", os.O_RDWR | os.O_CREAT)
    await world.fs.unmount()
    assert world.mdt.opens == {}
    world = World()
    await world.fs.open("/f", os.O_RDWR | os.O_CREAT)
    world.fs.stop()
    assert len(world.mdt.opens) == 1


async def test_a_writer_who_is_not_root_takes_the_set_id_bits_away() -> None:
    async with World() as world:
        await world.fs.create("/tool", 0o4755)
        async with await world.fs.as_user(5, 5).open("/tool", os.O_WRONLY) as file:
            await file.write(b"a")
            await file.write(b"b")
        sent = [call for call in world.mdt.calls if isinstance(call, mdt.Setattr)]
        assert [(call.valid, call.handle) for call in sent] == [(mdt.SET_SIZE, file.handle)]


# attributes -----------------------------------------------------------------------------------------------------


async def test_times_follow_the_last_change_wherever_it_was_made() -> None:
    async with World() as world:
        fs, node = world.fs, world.node
        node.wall = 10_000
        await fs.create("/f")
        node.wall = 20_000
        file = await fs.open("/f", os.O_RDWR)
        await file.write(b"x")
        assert (await fs.stat("/f")).mtime == 20_001
        node.wall = 30_000
        await fs.chmod("/f", 0o600)  # a later ctime must not hide the write
        found = await fs.stat("/f")
        assert (found.mtime, found.ctime, found.mode & 0o777) == (20_001, 30_000, 0o600)
        node.wall = 40_000
        await fs.utimes("/f", 111, 222)
        found = await fs.stat("/f")
        assert (found.atime, found.mtime, found.ctime) == (111, 222, 40_000)
        await file.close()  # tells nothing that is older than the utimes
        assert world.mdt.calls[-1].mtime == 0 or (await fs.stat("/f")).mtime == 222
        node.wall = 50_000
        await fs.truncate("/f", 0)
        assert (await fs.stat("/f")).mtime == 50_000
        await fs.setattr_fid(found.fid, size=7, mtime=333)
        assert (await fs.stat("/f"))[6:10:3] == (7, 333)


async def test_a_close_tells_when_it_was_read_and_written() -> None:
    async with World() as world:
        async with await world.fs.open("/f", os.O_RDWR | os.O_CREAT):
            pass
        assert world.mdt.calls[-1][2:5] == (0, 0, 0)
        world.node.wall = 5_000_000
        async with await world.fs.open("/f", os.O_RDWR) as file:
            await file.write(b"abc")
            await file.pread(1, 0)
        close = world.mdt.calls[-1]
        assert isinstance(close, mdt.Close)
        assert close.mtime > 5_000_000 and close.atime > close.mtime and close.size == 3


async def test_no_two_times_of_a_client_are_equal() -> None:
    async with World() as world:
        times = [world.connections.time() for _ in range(5)]
        world.node.wall -= 500
        times.append(world.connections.time())
        assert sorted(set(times)) == times


async def test_setattr_says_what_kind_of_time_it_sets() -> None:
    async with World() as world:
        await world.fs.create("/f")
        both = mdt.SET_ATIME | mdt.SET_MTIME
        for arguments, valid in (
            ((NOW, NOW), both),
            ((1, 2), both | mdt.SET_TIMES_EXPLICIT),
            ((NOW, None), mdt.SET_ATIME | mdt.SET_TIMES_EXPLICIT),
            ((None, 5), mdt.SET_MTIME | mdt.SET_TIMES_EXPLICIT),
        ):
            await world.fs.utimes("/f", *arguments)
            assert world.mdt.calls[-1].valid == valid
        assert all(server.calls == [] for server in world.osts), "the objects are not asked"
        world.mdt.calls.clear()
        await world.fs.chown("/f", -1, -1)
        assert world.mdt.count(mdt.Setattr) == 0
        await world.fs.chown("/f", 7, -1)
        assert (await world.fs.stat("/f")).uid == 7


async def test_a_file_that_vanishes_between_mdt_and_ost_is_not_there() -> None:
    async with World() as world:
        made = await world.fs.create("/f")
        assert made.layout is not None
        for index, obj in made.layout.stripes:
            world.osts[index].destroyed.add(obj)
        assert await refused(world.fs.stat("/f")) == "EIO"  # still named, its data lost
        entries = world.fs.scandir("/")
        assert await refused(anext(entries)) == "EIO"
        lookup = world.mdt.on_Lookup

        def removed_after(body: mdt.Lookup) -> Any:
            reply = lookup(body)
            world.mdt.inodes.pop(made.fid, None)
            return reply

        world.mdt.on_Lookup = removed_after  # type: ignore[method-assign]
        assert await refused(world.fs.stat("/f")) == "ENOENT"


# directories and trees ------------------------------------------------------------------------------------------


async def test_a_directory_is_listed_page_by_page_with_true_sizes() -> None:
    async with World() as world:
        world.mdt.page = 3
        names = [f"f{i}" for i in range(10)]
        for i, name in enumerate(names):
            await world.fs.write_file("/" + name, bytes(i))
        await world.fs.mkdir("/d")
        sizes = {e.name: e.stat.size async for e in world.fs.scandir("/") if e.stat is not None}
        assert sizes == {b"d": 0} | {name.encode(): i for i, name in enumerate(names)}
        assert world.mdt.count(mdt.Readdir) == 4
        bare = [entry async for entry in world.fs.scandir("/", sizes=False)]
        assert all(entry.stat is not None and entry.stat.size == 0 for entry in bare)


async def test_trees_are_made_walked_and_removed() -> None:
    async with World() as world:
        fs = world.fs
        await fs.makedirs("/a/b/c")
        await fs.makedirs("/a/b/c")
        assert await refused(fs.makedirs("/a/b", exist_ok=False)) == "EEXIST"
        await fs.write_file("/a/f", b"1")
        await fs.symlink("/a", "/a/b/up")
        assert await refused(fs.makedirs("/a/f/x")) == "ENOTDIR"
        assert await refused(fs.makedirs("/a/f")) == "EEXIST"
        found = [step async for step in fs.walk("/a")]
        assert found == [("/a", ["b"], ["f"]), ("/a/b", ["c"], ["up"]), ("/a/b/c", [], [])]
        await fs.rmtree("/a")
        assert await fs.readdir("/") == []


async def test_files_are_copied_in_within_and_out(tmp_path: Path) -> None:
    async with World() as world:
        data = bytes(range(256)) * 1000
        source = tmp_path / "source"
        source.write_bytes(data)
        source.chmod(0o751)
        os.utime(source, ns=(1_000_000_001, 2_000_000_003))
        (tmp_path / "link").symlink_to("source")
        await world.fs.copy_in(str(source), "/one")
        await world.fs.copy_in(os.fsencode(tmp_path / "link"), "/link")
        await world.fs.copy("/one", "/two")
        await world.fs.copy_out("/two", str(tmp_path / "back"))
        await world.fs.copy_out("/link", str(tmp_path / "link2"))
        back = (tmp_path / "back").stat()
        assert (tmp_path / "back").read_bytes() == data == await world.fs.read_file("/one")
        assert (stat.S_IMODE(back.st_mode), back.st_mtime_ns) == (0o751, 2_000_000_003)
        assert os.readlink(tmp_path / "link2") == "source" == await world.fs.readlink("/link")


@pytest.mark.parametrize("target", ["/file", b"/d/../file", "/hard", "/soft"])
async def test_a_file_is_not_copied_onto_itself(target: str | bytes) -> None:
    async with World() as world:
        await world.fs.mkdir("/d")
        await world.fs.write_file("/file", b"data")
        await world.fs.link("/file", "/hard")
        await world.fs.symlink("file", "/soft")
        with pytest.raises(OpError, match="the same file") as caught:
            await world.fs.copy("/file", target)
        assert caught.value.errno == errno.EINVAL
        assert await world.fs.read_file("/file") == b"data"


# the rest -------------------------------------------------------------------------------------------------------


async def test_xattrs_striping_and_fids() -> None:
    async with World() as world:
        fs = world.fs
        await fs.mkdir("/d")
        await fs.create("/f")
        await fs.setxattr("/f", "user.x", b"1")
        assert await fs.getxattr("/f", b"user.x") == b"1"
        assert await fs.listxattr("/f") == ["user.x"]
        assert await refused(fs.setxattr("/f", "user.y", bytes(70_000))) == "E2BIG"
        assert await refused(fs.getxattr("/f", "")) == "ERANGE"
        await fs.removexattr("/f", "user.x")
        assert await refused(fs.getxattr("/f", "user.x")) == "ENODATA"

        await fs.setstripe("/d", 2, 1 << 17)
        assert await fs.getstripe("/d") == StripeHint(2, 1 << 17, -1)
        await fs.setstripe("/new", 1, 1 << 16)
        found = await fs.getstripe("/new")
        assert isinstance(found, Layout) and len(found.stripes) == 1
        assert await refused(fs.setstripe("/f", 1)) == "EEXIST"
        assert await refused(fs.setstripe("/d", 1, 1000)) == "EINVAL"
        assert await refused(fs.setstripe("/d", -2)) == "EINVAL"

        fid = await fs.path2fid("/f")
        assert await fs.fid2path(fid) == [b"/f"]
        with pytest.raises(ValueError, match="not a FID"):
            await fs.fid2path("nonsense")
        await fs.sync()


async def test_a_view_acts_with_its_own_credential() -> None:
    async with World() as world:
        await world.fs.as_user(7, 8, [9]).mkdir("/d")
        assert world.mdt.creds[-1] == (7, 8, 9)
        await world.fs.mkdir("/e")
        assert world.mdt.creds[-1] == (0, 0)


async def test_a_file_without_objects_is_empty_until_it_gets_some() -> None:
    async with World(osts=0) as world:
        made = await world.fs.create("/f")
        assert made.layout is None and (await world.fs.stat("/f")).size == 0
        async with await world.fs.open("/f", os.O_RDWR) as file:
            assert await file.pread(10, 0) == b""
            assert await refused(file.write(b"x")) == "EIO"
        await world.fs.truncate("/f", 0)
        assert await refused(world.fs.truncate("/f", 5)) == "EIO"
