"""Attributes of new files that are changed before anybody else has seen them: the MDT hears with the close (client/kept_attrs.py)."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mounts import Asked, Mount, drop_locks, mounts, two_mounts
from steps import EVICTION, refused, soon

from lustrelite import acl
from lustrelite.errors import OpError
from lustrelite.store.room import ORDINARY, OWED
from lustrelite.wire.mdt import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Closes,
    Lookup,
    Open,
    Readdir,
    Rename,
    Reopen,
    Setattr,
    Setattrs,
)

NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR
PATH = "/u/f"
LOOKS = (0o100644, 1000, 1001, 5, 6)


@asynccontextmanager
async def changed_by_a(cluster: Any, **topology: Any) -> Any:
    """(the cluster, mounts a and b, a's open file): a has made it for itself alone, written it and changed it to LOOKS."""
    async with cluster(caching=1, clients=2, **topology) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        await c.settle()
        with Asked(c.a) as asked:
            file = await a.open(PATH, NEW, 0o600)
            await file.pwrite(b"data", 0)
            await a.utimes(PATH, 5, 6)
            await a.chown(PATH, 1000, 1001)
            await a.chmod(PATH, 0o644)
        assert asked == {"Open": 1} and kept(c) == 1
        assert await looks(a) == LOOKS
        yield c, a, b, file
        await file.close()
        await c.settle()
        assert kept(c) == 0
        await b.rmtree("/u")


def kept(c: Any) -> int:
    """Of how many files a has changed what the MDT has not heard of."""
    return len(c.a.fs.connections.names.kept)  # type: ignore[no-any-return]


def shown(st: Any) -> tuple[int, int, int, int, int]:
    return st.mode, st.uid, st.gid, st.atime, st.mtime


async def looks(mount: Mount, path: str = PATH) -> tuple[int, int, int, int, int]:
    return shown(await mount.stat(path))


async def test_the_mdt_hears_of_many_with_their_closes(cluster: Any) -> None:
    async with two_mounts(cluster) as (c, a, b):
        with Asked(c.a) as asked:
            for number in range(50):
                file = await a.open(f"/u/f{number}", NEW, 0o600)
                await file.pwrite(b"data", 0)
                await a.utimes(f"/u/f{number}", 5, 6)
                await a.chmod(f"/u/f{number}", 0o644)
                file.what.close_later()
            await asyncio.sleep(5)
        assert asked == {"Open": 50, "Setattrs": 1, "Closes": 1}
        await drop_locks(c, c.a)
        for number in range(50):
            assert (await looks(b, f"/u/f{number}")) == (0o100644, 0, 0, 5, 6)


def access_list(mode: int, *, named: int = 0) -> bytes:
    entries = [acl.Entry(acl.USER_OBJ, mode >> 6 & 7), acl.Entry(acl.GROUP_OBJ, mode >> 3 & 7), acl.Entry(acl.OTHER, mode & 7)]
    if named:
        entries[1:1] = [acl.Entry(acl.USER, 7, named)]
        entries[3:3] = [acl.Entry(acl.MASK, mode >> 3 & 7)]
    return acl.pack(tuple(entries))


@pytest.mark.parametrize(("named", "asks"), [(0, {}), (2000, {"Setattrs": 1, "Setxattr": 1})])
async def test_an_access_list_that_is_a_mode_is_one(cluster: Any, named: int, asks: dict[str, int]) -> None:
    """Not one that names somebody."""
    async with changed_by_a(cluster) as (c, a, b, file):
        wanted = access_list(0o664, named=named)
        with Asked(c.a) as asked:
            await a.setxattr(PATH, acl.ACCESS.decode(), wanted)
        assert asked == asks
        for mount in (a, b):
            assert (await looks(mount)) == (0o100664, *LOOKS[1:])
            if named:
                assert await mount.getxattr(PATH, acl.ACCESS.decode()) == wanted
            else:
                with refused(errno.ENODATA):
                    await mount.getxattr(PATH, acl.ACCESS.decode())
        assert shown(await file.fstat()) == (0o100664, *LOOKS[1:])


@pytest.mark.parametrize("how", ["stat", "open", "list", "by number", "chmod", "link", "rename", "rename over", "xattr"])
async def test_who_comes_finds_what_was_changed(cluster: Any, how: str) -> None:
    async with changed_by_a(cluster) as (c, _, b, file):
        fid, path, wanted = file.what.fid, PATH, LOOKS
        fs = b.client.fs
        if how == "stat":
            assert await looks(b) == LOOKS
        elif how == "open":
            opened = await b.open(PATH, os.O_RDONLY)
            assert shown(await opened.fstat()) == LOOKS
            await opened.close()
        elif how == "list":
            (entry,) = await b.client.unrecorded(_entries(fs, "/u"))
            assert shown(entry.stat) == LOOKS
        elif how == "by number":
            assert shown(await b.client.unrecorded(fs.stat_fid(fid))) == LOOKS
        elif how == "chmod":
            await b.chmod(PATH, 0o640)
            wanted = (0o100640, *LOOKS[1:])
        elif how == "link":
            await b.client.unrecorded(fs.link_at(fid, (await b.stat("/u")).fid, b"other"))
            path = "/u/other"
        elif how == "rename":
            await b.rename(PATH, "/u/other")
            path = "/u/other"
        elif how == "rename over":
            await b.write_file("/u/new", b"new")
            await b.rename("/u/new", PATH)
            assert shown(await file.fstat()) == LOOKS
        elif how == "xattr":
            await b.client.unrecorded(fs.setxattr_fid(fid, b"user.a", b"1"))
        assert kept(c) == 0
        if how != "rename over":
            assert await looks(b, path) == wanted == shown(await file.fstat())
        c.never_saw("client.evicted")


async def _entries(fs: Any, path: str) -> list[Any]:
    return [entry async for entry in fs.scandir(path)]


async def test_what_others_see_of_a_listing_its_author_sees(cluster: Any) -> None:
    async with changed_by_a(cluster) as (c, a, _, file):
        for name in range(20):
            await a.write_file(f"/u/other{name}", b"")
        fs = c.a.fs
        fid = (await a.stat("/u")).fid
        page, _ = await c.a.unrecorded(fs.readdir_page(fid, 0, ask=True))
        found = {entry.name: entry.stat for entry in page}
        assert shown(found[b"f"]) == LOOKS == shown(await file.fstat())


@pytest.mark.parametrize("how", ["link", "rename", "unlink", "xattr", "truncate", "open", "acl"])
async def test_its_author_goes_on_from_there(cluster: Any, how: str) -> None:
    """Whatever else he asks the MDT of the file comes after it."""
    async with changed_by_a(cluster) as (c, a, b, file):
        path, wanted = PATH, LOOKS
        owner = Mount(c.a, c.a.fs.as_user(1000, 1001))
        if how == "link":
            await a.link(PATH, "/u/other")
        elif how == "rename":
            await a.rename(PATH, path := "/u/other")
        elif how == "unlink":
            await a.unlink(PATH)
            assert shown(await file.fstat()) == LOOKS
        elif how == "xattr":
            await owner.setxattr(PATH, "user.a", b"1")
        elif how == "truncate":
            await owner.truncate(PATH, 1)
            wanted = (*LOOKS[:4], (await a.stat(PATH)).mtime)
        elif how == "open":
            opened = await owner.open(PATH, os.O_RDWR)  # the MDT asks to whom it belongs
            await opened.close()
            with refused(errno.EACCES):
                await Mount(c.a, c.a.fs.as_user(7, 7)).open(PATH, os.O_RDWR)
        else:
            await a.chmod(PATH, 0o4755)  # more than is kept
            wanted = (0o104755, *LOOKS[1:])
        if how != "unlink":
            assert await looks(a, path) == wanted
            assert await looks(b, path) == wanted
        c.never_saw("client.evicted")


Change = Callable[[Mount], Any]
NOT_KEPT: dict[str, tuple[int, Change]] = {
    "it takes a right away": (0o644, lambda m: m.chmod(PATH, 0o600)),
    "it takes what a group may do away": (0o640, lambda m: m.chown(PATH, -1, 7)),
    "set-id": (0o600, lambda m: m.chmod(PATH, 0o4700)),
    "size": (0o600, lambda m: m.truncate(PATH, 3)),
    "project": (0o600, lambda m: m.chproj(PATH, 3)),
}


@pytest.mark.parametrize("why", NOT_KEPT)
async def test_the_mdt_hears_at_once(cluster: Any, why: str) -> None:
    mode, change = NOT_KEPT[why]
    async with two_mounts(cluster) as (c, a, b):
        file = await a.open(PATH, NEW, mode)
        with Asked(c.a) as asked:
            await change(a)
        assert asked == {"Setattr": 1} and kept(c) == 0
        assert await looks(a) == await looks(b)
        await file.close()


async def test_a_right_that_was_given_and_is_taken_again(cluster: Any) -> None:
    """What counts is what the MDT knows, not what was kept meanwhile; and it hears of all in their order."""
    async with changed_by_a(cluster) as (c, a, b, _):
        with Asked(c.a) as asked:
            await a.chmod(PATH, 0o600)
            await a.utimes(PATH, 7, 8)
        assert not asked and kept(c) == 1
        assert await looks(b) == (0o100600, 1000, 1001, 7, 8)


async def test_who_may_not_is_told_so(cluster: Any) -> None:
    async with cluster(caching=1) as c:
        root, user = Mount(c.a), Mount(c.a, c.a.fs.as_user(7, 7))
        await root.mkdir("/u", 0o777)
        await c.settle()
        file = await user.open(PATH, NEW, 0o600)
        with Asked(c.a) as asked:
            await user.chmod(PATH, 0o640)
            await user.utimes(PATH, 5, 6)
            await user.utimes(PATH)
        assert not asked and kept(c) == 1
        for change in (user.chown(PATH, 8), user.chown(PATH, -1, 8), Mount(c.a, c.a.fs.as_user(8, 8)).chmod(PATH, 0o666)):
            with refused(errno.EPERM):
                await change
        assert kept(c) == 0
        assert stat.S_IMODE((await looks(root))[0]) == 0o640
        await file.close()
        await root.rmtree("/u")


async def test_the_order_of_writes_and_times(cluster: Any) -> None:
    """The last that was done to a time counts, whether the MDT hears of it in a change or in a close."""
    async with two_mounts(cluster) as (c, a, b):
        files = {}
        for name in ("w", "tw", "wt", "wtw", "wm", "wmt", "tm", "tr"):
            file = files[name] = await a.open(f"/u/{name}", NEW, 0o600)
            for step in name:
                if step == "w":
                    await file.pwrite(b"data", 0)
                elif step == "t":
                    await a.utimes(f"/u/{name}", 5, 6)
                elif step == "m":
                    await a.chmod(f"/u/{name}", 0o640)
                else:
                    await file.pwrite(b"data", 0)
                    await a.utimes(f"/u/{name}", 5, 6)
                    await file.pread(4, 0)
        mine = {name: shown(await a.stat(f"/u/{name}")) for name in files}
        for file in files.values():
            file.what.close_later()
        await asyncio.sleep(3)
        assert {name: shown(await a.stat(f"/u/{name}")) for name in files} == mine
        await drop_locks(c, c.a)
        assert {name: shown(await b.stat(f"/u/{name}")) for name in files} == mine
        assert mine["wt"][3:] == mine["wmt"][3:] == mine["tm"][3:] == (5, 6) and mine["tr"][4] == 6
        assert min(mine[name][4] for name in ("w", "tw", "wtw", "wm")) > 6


async def test_it_is_told_after_a_second_also_of_an_open_file(cluster: Any) -> None:
    async with changed_by_a(cluster) as (c, _, _, _):
        with Asked(c.a) as asked:
            await asyncio.sleep(2)
        assert asked == {"Setattrs": 1} and kept(c) == 0


async def test_it_is_durable_after_fsync(cluster: Any) -> None:
    async with changed_by_a(cluster) as (c, _, b, file):
        c.expect(*EVICTION)
        await file.fsync()
        await c.a.kill()
        await c.fail(c.mds)
        assert await looks(b) == LOOKS
        await c.a.start()
        file.what.closed = True


async def test_who_dies_takes_it_along(cluster: Any) -> None:
    """Nobody may do more with the file than before."""
    async with changed_by_a(cluster) as (c, _, b, file):
        c.expect(*EVICTION, "lock.expired")
        await c.a.kill()
        found = await b.stat(PATH)
        assert (found.mode, found.uid, found.gid) == (0o100600, 0, 0)
        await c.a.start()
        file.what.closed = True


@pytest.mark.parametrize("when", ["kept", "under way", "answered"])
async def test_the_mds_dies(cluster: Any, when: str) -> None:
    async with changed_by_a(cluster) as (c, _, b, file):
        held = c.net.hold(Setattrs, to=c.mds) if when == "under way" else None
        await c.replay_barrier(c.mds)
        if when != "kept":
            file.what.close_later()
            await (held.caught() if held is not None else asyncio.sleep(2))
        c.mds.kill()
        looking = soon(b.stat(PATH))
        if held is not None:
            held.lift()
        await c.mds.start()
        assert shown(await looking) == LOOKS
        await c.settle()
        assert await looks(b) == LOOKS
        c.never_saw("import.evicted")


async def test_who_is_evicted_is_told_at_fsync(cluster: Any) -> None:
    async with changed_by_a(cluster) as (c, a, b, file):
        c.expect(*EVICTION, "client.data_lost")
        await c.evict(c.a, c.mds)
        await c.until(lambda: kept(c) == 0)
        with refused(errno.EIO):
            await file.fsync()
        assert await looks(b) == await looks(a)
        assert (await looks(b))[:3] == (0o100600, 0, 0)


async def test_a_change_waits_for_those_under_way(cluster: Any) -> None:
    """They could pass each other."""
    async with changed_by_a(cluster) as (c, a, b, file):
        held = c.net.hold(Setattrs, to=c.mds, times=1)
        await held.caught()
        later = soon(a.utimes(PATH, 7, 8))
        file.what.close_later()
        await asyncio.sleep(3)
        assert not later.done()
        held.release()
        await later
        assert await looks(b) == (*LOOKS[:3], 7, 8) == await looks(a)


async def test_without_a_lease_it_is_not_kept(cluster: Any) -> None:
    async with cluster(caching=1, clients=2) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        file = await a.open(PATH, NEW, 0o600)
        c.mds.kill()
        await asyncio.sleep(10)
        changing = soon(a.chmod(PATH, 0o644))
        await asyncio.sleep(1)
        assert kept(c) == 0 and not changing.done()
        await c.mds.start()
        await changing
        assert (await looks(b))[0] == 0o100644
        await file.close()
        await b.rmtree("/u")


async def test_who_asks_while_the_author_is_told_waits(cluster: Any) -> None:
    """The answer to a lookup is older than nothing that its author has been told is done."""
    async with changed_by_a(cluster) as (c, a, b, _):
        held = c.net.hold(Lookup, to=c.mds, source=c.b)
        looking = soon(b.stat(PATH))
        await held.caught()
        await a.utimes(PATH, 9, 10)
        held.release()
        assert shown(await looking) == (*LOOKS[:3], 9, 10)


async def test_a_mount_that_ends_tells(cluster: Any) -> None:
    async with changed_by_a(cluster) as (c, _, b, file):
        await c.a.unmount()
        assert await looks(b) == LOOKS
        await c.a.start()
        file.what.closed = True


async def test_the_mdt_refuses_what_cannot_be_told_so(cluster: Any) -> None:
    async with changed_by_a(cluster) as (c, _, b, file):
        imp = next(imp for imp in c.a.imports if "MDT" in imp.target)
        fid = file.what.fid
        with refused(errno.EINVAL):
            await c.a.unrecorded(imp.call(Setattrs((Setattr(fid, 0x20, 0, 0, 0, 0, 0, 1, 0, 0),))))
        assert await looks(b) == LOOKS


# what a review found ------------------------------------------------------------------------------------------------


async def read_and_written(a: Mount) -> tuple[Mount, Mount]:
    """a's late close of /u/x has times to tell, and /u/f was changed for itself alone: (x, f)."""
    x = await a.open("/u/x", os.O_RDWR)
    await x.pwrite(b"news", 0)
    return x, await a.open(PATH, NEW, 0o600)


async def test_a_dead_bystander_keeps_nobody_from_telling(cluster: Any) -> None:
    """The close of another file waits for him; what is kept does not."""
    async with cluster(caching=1, clients=3) as c:
        c.expect(*EVICTION, "lock.expired")
        (a, b), third = mounts(c), Mount(c.c)
        await a.mkdir("/u")
        await a.write_file("/u/x", b"data")
        await c.settle()
        await third.stat("/u/x")
        x, file = await read_and_written(a)
        x.what.close_later()
        await a.chmod(PATH, 0o644)
        await c.c.kill()
        assert (await looks(b))[0] == 0o100644
        await asyncio.sleep(5)
        c.never_saw("import.evicted")
        await c.c.start()
        await file.close()
        await b.rmtree("/u")


async def test_who_renames_over_it_waits_for_no_close_of_another(cluster: Any) -> None:
    """b, who has the other file open to be read, is a little slower than a."""
    async with cluster(caching=1, clients=3) as c:
        (a, b), third = mounts(c), Mount(c.c)
        await a.mkdir("/u")
        await a.write_file("/u/x", b"data")
        await c.settle()
        x, file = await read_and_written(a)
        await (await b.open("/u/x", os.O_RDONLY)).close()
        opened = await b.open("/u/x", os.O_RDONLY)
        x.what.close_later()
        await a.chmod(PATH, 0o644)
        held = c.net.hold(Reopen, to=c.mds)
        renaming = soon(third.rename("/u/x", PATH))
        await held.caught()
        await asyncio.sleep(0.01)
        held.release()
        await asyncio.sleep(0.5)
        assert renaming.done()
        await renaming
        c.never_saw("client.evicted")
        await file.close()
        await opened.close()
        await b.rmtree("/u")


@pytest.mark.parametrize("flags", [RENAME_EXCHANGE, RENAME_NOREPLACE])
async def test_one_is_changed_again_while_the_other_is_told(cluster: Any, flags: int) -> None:
    async with two_mounts(cluster) as (c, a, _):
        f, g = await a.open("/u/f", NEW, 0o600), await a.open("/u/g", NEW, 0o600)
        await a.chmod("/u/f", 0o644)
        one = c.net.hold(Setattrs, to=c.mds, times=1)
        await one.caught()
        await a.chmod("/u/g", 0o644)
        two = c.net.hold(Setattrs, to=c.mds, times=1)
        renaming = soon(a.rename("/u/f", "/u/g", flags))
        await two.caught()
        one.release()
        await asyncio.sleep(0.1)
        await a.chmod("/u/f", 0o666)
        assert kept(c) == 2
        two.release()
        if flags == RENAME_NOREPLACE:
            with refused(errno.EEXIST):
                await renaming
        else:
            await renaming
        assert (await looks(a, "/u/f"))[0] == (0o100666 if flags == RENAME_NOREPLACE else 0o100644)
        await f.close()
        await g.close()


RIGHTS: dict[str, tuple[int, Change]] = {
    "to another owner": (0o600, lambda m: m.chown(PATH, 0, 0)),
    "of the owner": (0o600, lambda m: m.chmod(PATH, 0)),
    "to a group that may less than others": (0o604, lambda m: m.chown(PATH, -1, 5)),
    "to an owner who may less than others": (0o077, lambda m: m.chown(PATH, 5, -1)),
}


@pytest.mark.parametrize("whose", RIGHTS)
async def test_what_takes_a_right_from_somebody_is_not_kept(cluster: Any, whose: str) -> None:
    mode, change = RIGHTS[whose]
    async with cluster(caching=1) as c:
        root, user = Mount(c.a), Mount(c.a, c.a.fs.as_user(7, 7))
        await root.mkdir("/u", 0o777)
        await c.settle()
        file = await (root if mode == 0o077 else user).open(PATH, NEW, mode)
        with Asked(c.a) as asked:
            await change(root)
        assert asked == {"Setattr": 1}
        await file.close()
        await root.rmtree("/u")


async def test_who_did_not_write_hears_of_it_too(cluster: Any) -> None:
    async with cluster(caching=1, clients=2) as c:
        c.expect(*EVICTION)
        a, b = mounts(c)
        await a.mkdir("/u")
        await c.settle()
        file = await a.open(PATH, NEW, 0o600)
        await a.chmod(PATH, 0o644)
        await c.evict(c.a, c.mds)
        await c.until(lambda: kept(c) == 0)
        with refused(errno.EIO):
            await file.fsync()
        assert (await looks(b))[0] == 0o100600
        await file.close()
        await b.rmtree("/u")


async def test_an_answer_that_comes_late_is_old(cluster: Any) -> None:
    """A listing is asked for after the change, and answered after the MDT has been told."""
    async with changed_by_a(cluster) as (c, a, _, _):
        fid = (await a.stat("/u")).fid
        held = c.net.hold(Readdir, source=c.mds, reply=True)
        listing = soon(c.a.unrecorded(c.a.fs.readdir_page(fid, 0, ask=True)))
        await held.caught()
        await asyncio.sleep(2)
        assert kept(c) == 0
        held.release()
        page, _ = await listing
        assert {entry.name: shown(entry.stat) for entry in page}[b"f"] == LOOKS


async def test_its_author_finds_it_under_a_name_of_which_he_has_not_heard(cluster: Any) -> None:
    """It was renamed while its open was under way: he changes what has moved, and looks there. Coherence seed 3051"""
    async with two_mounts(cluster) as (c, a, _):
        opened = c.net.hold(Open, reply=True, source=c.mds, times=1)
        opening = asyncio.create_task(a.open(PATH, NEW, 0o600))
        await opened.caught()
        renamed = c.net.hold(Rename, reply=True, source=c.mds, times=1)
        renaming = asyncio.create_task(a.rename(PATH, "/u/g"))
        await renamed.caught()
        opened.release()
        file = await opening
        await c.a.unrecorded(c.a.fs.change_fid(file.what.fid, mode=0o644))
        assert kept(c) == 1
        assert (await a.stat("/u/g")).mode == 0o100644
        renamed.release()
        await renaming
        await file.close()


async def test_what_is_doubted_does_not_become_old(cluster: Any) -> None:
    """A close tells of times that may be older than what is kept; then a listing brings what the MDT has."""
    async with two_mounts(cluster) as (c, a, b):
        top = (await a.stat("/u")).fid
        file = await a.open(PATH, NEW, 0o600)
        await file.pwrite(b"data", 0)
        reader = await a.open(PATH, os.O_RDONLY)
        held = c.net.hold(Closes, to=c.mds, times=1)
        file.what.close_later()
        await held.caught()
        await a.utimes(PATH, 5, None)
        held.release()
        await asyncio.sleep(0.1)
        await c.a.unrecorded(c.a.fs.readdir_page(top, 0, ask=True))
        await asyncio.sleep(2)
        assert await looks(a) == await looks(b)
        assert (await looks(a))[3] == 5
        await reader.close()


async def test_very_many(cluster: Any) -> None:
    """More than one message may carry, in one turn."""
    async with cluster(caching=1) as c:
        a = Mount(c.a)
        await a.mkdir("/u")
        await c.settle()
        files = [await a.open(f"/u/f{number}", NEW, 0o600) for number in range(300)]

        async def change() -> None:
            for file in files:
                for _ in range(16):
                    await c.a.fs.change_fid(file.what.fid, atime=1 << 60, mtime=1 << 60)

        await asyncio.sleep(2)
        with Asked(c.a) as asked:
            await c.a.unrecorded(change())
            await asyncio.sleep(3)
        assert kept(c) == 0 and asked == {"Setattrs": 3}
        for file in files:
            await file.close()
        await a.rmtree("/u")


async def test_a_full_mdt_has_room_for_what_is_told_together(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new owner is a record for each object as well. Who waits for one of the files would wait for ever, and then its author go."""
    async with cluster(caching=1, clients=2) as c:
        a, b = mounts(c)
        await a.mkdir("/u")
        files = [await a.open(f"/u/f{number}", NEW, 0o600) for number in range(300)]
        store = c.mds.target().store
        apply = store.apply

        def full(writes: Any, *, kind: int = ORDINARY, **how: Any) -> None:
            if kind == OWED and len(writes) > 256:
                raise OpError(errno.EAGAIN)
            apply(writes, kind=kind, **how)

        monkeypatch.setattr(store, "apply", full)

        async def change() -> None:
            for file in files:
                await c.a.fs.change_fid(file.what.fid, uid=1000, gid=1001)

        await c.a.unrecorded(change())
        assert kept(c) == 300
        assert (await b.stat("/u/f299")).uid == 1000
        for file in files:
            await file.close()
        await a.rmtree("/u")


@pytest.mark.parametrize("keeps", [True, False])
async def test_a_time_that_no_inode_can_hold(cluster: Any, keeps: bool) -> None:
    """The nearest is taken, as by Linux."""
    async with changed_by_a(cluster) as (c, a, b, _):
        if not keeps:
            await b.stat(PATH)
        await a.utimes(PATH, 1 << 65, -(1 << 65))
        assert kept(c) == keeps
        assert await looks(b) == (*LOOKS[:3], (1 << 63) - 1, -(1 << 63)) == await looks(a)


async def test_the_author_knows_the_version(cluster: Any) -> None:
    async with changed_by_a(cluster) as (_, a, b, _):
        await asyncio.sleep(2)
        assert (await a.stat(PATH)).version == (await b.stat(PATH)).version
