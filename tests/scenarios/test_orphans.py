"""Files without a name that somebody has open, and objects without a file: kept as long as needed, then gone for good.

That nothing is left is checked on leaving each world: fsck finds an orphan that nobody has open, and an object that
belongs to no file.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from steps import EVICTION, contents, refused, soon, touch

from lustrelite.store import schema
from lustrelite.wire.mdt import Open
from lustrelite.wire.ost import OstCreate

#          id        before the barrier       between barrier and crash       after recovery
NAMELESS = [
    ("RS 12",  "make x; open x; rm x",        "close x",                      ""),
    ("RS 14",  "open x; rm x",                "close x",                      ""),
    ("RS 15",  "open x; rm x; make y",        "close x",                      "make z"),
    ("RS 18",  "",                            "open x; rm x; make y; close x", "make z; rm y; rm z"),
    ("RS 20a", "",                            "open x; rm x",                 "close x"),
    ("RS 21",  "",                            "open x; rm x; make y",         "close x; make z"),
    ("RS 23",  "open x",                      "rm x; make y",                 "close x; make z"),
    ("RS 24",  "open x",                      "",                             "rm x; close x"),
    ("RS 25",  "open x; rm x",                "",                             "close x"),
    ("RS 26",  "",                            "open x; open y; rm x; rm y; close x", "close y"),
    ("RS 27",  "",                            "open x; open y; rm x; rm y",   "close x; close y"),
    ("RS 28",  "open x; open y",              "rm x; rm y; close x",          "close y"),
    ("RS 29",  "open x; open y",              "rm x; rm y",                   "close x; close y"),
    ("RS 30",  "open x; open y; rm x; rm y",  "",                             "close x; close y"),
    ("RS 31",  "open x; open y; rm x",        "rm y",                         "close x; close y"),
    ("RD 5",   "make x; open x by b; rm x",   "close x by b",                 ""),
    ("RD 6",   "open x; open x by b; rm x",   "close x",                      "close x by b"),
]  # fmt: skip


class Script:
    """Runs steps such as `open x by b`; whoever opens a file writes its name into it and finds that at the end."""

    def __init__(self, c: Any) -> None:
        self.c = c
        self.files: dict[tuple[str, str], Any] = {}
        self.made: dict[str, None] = {}

    async def run(self, text: str) -> None:
        """All steps of `text`."""
        for step in filter(None, text.split("; ")):
            what, name, *by = step.split()
            await self.step(what, name, by[1] if by else "a")

    async def step(self, what: str, name: str, who: str) -> None:
        """One step."""
        client, path = self.c.clients[who], f"/{name}"
        if what == "make":
            await touch(client, path)
            self.made[name] = None
        elif what == "rm":
            await client.unlink(path)
            self.made.pop(name, None)
        elif what == "open":
            self.files[name, who] = file = await client.open(path, create=True)
            await file.pwrite(name.encode())
            self.made[name] = None
        else:
            assert what == "close", what
            file = self.files.pop((name, who))
            assert await file.pread() == name.encode()
            await file.close()


async def nameless(world: Any, before: str, between: str, after: str) -> None:
    """Run a row of the table."""
    async with world(clients=2) as c:
        script = Script(c)
        await script.run(before)
        await c.replay_barrier(c.mds)
        await script.run(between)
        await c.fail(c.mds)
        await script.run(after)
        assert not script.files, "the row closes what it opens"
        assert await c.b.listdir("/") == sorted(script.made)


@pytest.mark.parametrize(
    ("before", "between", "after"),
    [pytest.param(*steps, marks=pytest.mark.lustre(name), id=name) for name, *steps in NAMELESS],
)
async def test_an_open_file_without_a_name_lives_until_its_last_close(
    world: Any, before: str, between: str, after: str
) -> None:
    """Source: lustre/tests/replay-single.sh test_12 to test_31, replay-dual.sh test_5, test_6"""
    await nameless(world, before, between, after)


@pytest.mark.lustre("RS 34")
async def test_a_nameless_file_goes_when_recovery_is_aborted(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_34"""
    async with world(clients=1) as c:
        c.expect(*EVICTION)
        file = await c.a.open("/f", create=True)
        await c.a.unlink("/f")
        await c.replay_barrier(c.mds)
        await c.fail_abort(c.mds)
        await file.close()
        assert not await c.a.exists("/f")
        c.saw("mdt.orphans_destroyed", count=1)


@pytest.mark.parametrize(
    "directory",
    [
        pytest.param(False, marks=pytest.mark.lustre("VBR 8b"), id="mknod"),
        pytest.param(True, marks=pytest.mark.lustre("VBR 8c"), id="mkdir"),
    ],
)
async def test_a_name_is_used_again_while_its_old_file_is_open(world: Any, directory: bool) -> None:
    """Source: lustre/tests/replay-vbr.sh test_8b, test_8c"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        await c.replay_barrier(c.mds)
        await c.a.unlink("/f")
        await (c.a.mkdir("/f") if directory else c.a.create("/f"))
        await file.close()
        await c.fail(c.mds)
        assert await c.a.exists("/f")
        c.never_saw("import.evicted")


@pytest.mark.lustre("SM 142")
async def test_an_orphan_that_could_not_be_destroyed_goes_at_the_next_start(world: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_142"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        await c.a.unlink("/f")
        c.faults.arm("mdt.orphan_destroy", "error", on=c.mds)
        await file.close()
        assert c.mds.target().store.count(schema.ORPHANS) == 1
        await c.fail(c.mds)
        assert c.mds.target().store.count(schema.ORPHANS) == 0


@pytest.mark.lustre("SM 143")
@pytest.mark.parametrize("alive", [False, True], ids=["nothing", "a living file"])
async def test_a_foreign_entry_among_the_orphans_does_no_harm(world: Any, alive: bool) -> None:
    """Source: lustre/tests/recovery-small.sh test_143"""
    async with world(clients=2, caching=0) as c:
        await c.a.write("/f", b"alive")
        file = await c.a.open("/g", create=True)
        await c.a.unlink("/g")
        fid = (await c.a.fs.lstat("/f")).fid if alive else b"\1" * 16
        c.mds.target().store.apply({(schema.ORPHANS, bytes(fid)): b""})
        await c.mds.commit()
        c.expect("mdt.not_an_orphan")
        await c.a.kill()
        c.expect(*EVICTION)
        await c.fail(c.mds)
        assert c.mds.target().store.count(schema.ORPHANS) == 0
        assert file
        assert await c.b.read("/f") == b"alive"


# ---------------------------------------------------------------- objects without a file


@pytest.mark.lustre("RS 0b")
async def test_precreation_survives_a_restart_of_the_ost(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_0b"""
    async with world(oss=1, clients=1) as c:
        await c.fail(c.oss[0])
        for i in range(20):
            await c.a.write(f"/f{i}", b"x")
        for i in range(20):
            await c.a.unlink(f"/f{i}")
        assert await c.a.listdir("/") == []


@pytest.mark.lustre("RS 43")
async def test_an_ost_loses_a_request_for_ids_while_the_mds_recovers(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_43"""
    async with world(oss=2, clients=1) as c:
        await c.replay_barrier(c.mds)
        await c.a.write("/before", b"1")
        await c.mds.kill()
        lost = c.drop_request(OstCreate)
        await c.mds.start()
        await lost.caught()
        await c.settle()
        await c.a.write("/after", b"2")
        assert await contents(c.a, ["/before", "/after"]) == [b"1", b"2"]


@pytest.mark.lustre("RS 47")
async def test_creates_go_on_after_a_lost_request_for_ids(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_47"""
    async with world(oss=1, clients=1) as c:
        lost = c.drop_request(OstCreate)
        await c.oss[0].kill()
        await c.oss[0].start()
        await lost.caught()
        paths = [f"/f{i}" for i in range(20)]
        for path in paths:
            await c.a.write(path, path.encode())
        assert await contents(c.a, paths) == [path.encode() for path in paths]


@pytest.mark.lustre("RS 48")
async def test_creates_work_again_after_an_ost_was_read_only(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_48"""
    async with world(oss=2, clients=1) as c:
        c.expect("osp.refused")
        await c.replay_barrier(c.mds)
        for i in range(20):
            await c.a.write(f"/f{i}", b"before")
        c.faults.arm("ost.create", "error", on=c.oss[0], errno=errno.EROFS, times=2)
        await c.fail(c.mds)
        for i in range(20, 40):
            await c.a.write(f"/f{i}", b"after")
        for i in range(40):
            await c.a.unlink(f"/f{i}")
        c.saw("osp.refused")


@pytest.mark.lustre("RS 88")
async def test_no_object_is_given_to_two_files_when_mds_and_ost_fail_together(world: Any) -> None:
    """All ids are used up, and more are wanted.  Source: lustre/tests/replay-single.sh test_88"""
    async with world(oss=1, clients=1) as c:
        c.expect("commit.waiting")
        await c.a.write("/first", b"first")
        await c.replay_barrier(c.oss[0])
        await c.replay_barrier(c.mds)
        paths = [f"/f{i}" for i in range(100)]
        creates = [soon(c.a.create(path)) for path in paths]
        await asyncio.sleep(2.0)
        assert any(task.done() for task in creates) and not all(task.done() for task in creates)
        await c.oss[0].kill()
        await c.mds.kill()
        await c.mds.start()
        await c.oss[0].start()
        await asyncio.gather(*creates)
        objects = [(await c.a.fs.getstripe(path)).stripes for path in ["/first", *paths]]
        assert len(set(objects)) == len(objects)
        for path in paths:
            await c.a.write(path, path.encode())
        assert await contents(c.a, paths) == [path.encode() for path in paths]


@pytest.mark.lustre("RD 14b")
async def test_the_object_of_a_lost_file_is_destroyed_and_the_others_are_replayed(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_14b"""
    async with world(oss=1, clients=2) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        await c.a.write("/a1", b"1")
        await c.b.write("/b", b"x" * (5 << 20))
        lost = (await c.b.fs.getstripe("/b")).stripes[0][1]
        await c.a.write("/a2", b"2")
        await c.b.kill()
        await c.fail(c.mds)
        assert await c.a.listdir("/") == ["a1", "a2"]
        assert await contents(c.a, ["/a1", "/a2"]) == [b"1", b"2"]
        c.never_saw("import.evicted")
        await c.mds.commit()
        await asyncio.sleep(1.0)
        assert c.oss[0].target().files.size(lost) == 0
        assert lost not in list(c.oss[0].target().files.ids())


@pytest.mark.lustre("RD 15c")
async def test_the_objects_of_many_lost_files_are_cleaned_up(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_15c"""
    async with world(oss=2, clients=2) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.mds)
        for i in range(200):
            await c.b.write(f"/b{i}", b"lost")
        await c.b.kill()
        await c.fail(c.mds)
        mounted = await c.add_client()
        assert await mounted.listdir("/") == []
        await asyncio.sleep(1.0)
        assert not any(list(server.target().files.ids()) for server in c.oss)


@pytest.mark.lustre("OST 12b")
async def test_the_last_file_can_be_written_while_orphan_cleanup_is_held(world: Any) -> None:
    """Source: lustre/tests/replay-ost-single.sh test_12b"""
    async with world(oss=1, clients=1) as c:
        await c.replay_barrier(c.oss[0])
        for i in range(6):
            await c.a.create(f"/f{i}")
        c.faults.arm("mdt.delorphan", "delay", on=c.mds, delay_s=20.0)
        cleaned = len(c.saw("osp.orphans_cleaned"))
        await c.oss[0].kill()
        await c.oss[0].start()
        await c.a.write("/f5", b"written")
        c.saw("osp.orphans_cleaned", times=cleaned)
        await c.settle()
        assert await c.a.read("/f5") == b"written"


@pytest.mark.lustre("SM 144c")
async def test_orphan_cleanup_that_is_cut_off_does_not_lose_the_last_id(world: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_144c"""
    async with world(oss=1, clients=1) as c:
        paths = [f"/f{i}" for i in range(90)]
        for path in paths[:60]:
            await c.a.create(path)
        c.faults.arm("ost.create", "delay", on=c.oss[0], keep=True, delay_s=20.0)
        await c.fail(c.oss[0])
        await asyncio.sleep(1.0)
        c.net.cut(c.mds, c.oss[0])
        await asyncio.sleep(15.0)
        c.net.heal()
        for path in paths[60:]:
            await c.a.create(path)
        for path in paths:
            await c.a.write(path, path.encode())
        assert await contents(c.a, paths) == [path.encode() for path in paths]


@pytest.mark.lustre("RS 12")
async def test_a_removed_open_file_is_not_found_by_its_number_after_its_close(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_12"""
    async with world(clients=1) as c:
        file = await c.a.open("/f", create=True)
        fid = (await c.a.fs.lstat("/f")).fid
        await c.a.unlink("/f")
        await c.replay_barrier(c.mds)
        await c.fail(c.mds)
        assert (await c.a.fs.stat_fid(fid)).nlink == 0
        await file.close()
        with refused(errno.ENOENT):
            await c.a.fs.stat_fid(fid)


@pytest.mark.parametrize("durable", [False, True])
async def test_a_file_without_a_name_whose_answer_was_lost_with_the_mds_is_made_again(world: Any, durable: bool) -> None:
    """It is durable and nobody reopens it, so it is destroyed at the end of recovery; then its maker asks for it once more."""
    async with world(clients=1, strict=False) as c:
        lost = c.drop_reply(Open)
        opening = asyncio.ensure_future(c.a.fs.open_tmpfile(c.a.fs.root))
        await lost.caught()
        if durable:
            await c.mds.commit()
        await c.fail(c.mds)
        await (await opening).close()
