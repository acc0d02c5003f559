"""Clients that cache names, attributes and listings: nothing is asked twice, and what one changes all others see at once.

Source: lustre/tests/sanityn.sh 1 to 12, 24, 44; sanity.sh 120 (early lock cancel), 123 (statahead); protocol-facts 5.5
"""

from __future__ import annotations

import asyncio
import errno
import random
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mounts import Asked
from steps import EVICTION, refused, soon

from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError
from lustrelite.ids import ROOT_FID
from lustrelite.wire.mdt import RENAME_EXCHANGE, Rename, Setattr, Unlink


def mdt_locks(client: Any) -> int:
    return int(next(imp for imp in client.imports if "MDT" in imp.target).locks.lock_count)


async def names_of(fs: FileSystem, path: str, **how: Any) -> list[str]:
    return sorted([entry.name.decode() async for entry in fs.scandir(path, **how)])


# nothing is asked twice -----------------------------------------------------------------------------------------


async def test_what_is_known_is_not_asked_again(cluster: Any) -> None:
    async with cluster(mds=1, oss=1, clients=1, caching=1) as c:
        fs, do = c.a.fs, c.a.unrecorded
        await c.a.mkdir("/d")
        await c.a.write("/d/f", b"data")
        await c.a.symlink("d/f", "/link")
        await asyncio.sleep(2)  # directories are at rest

        async def all_of_it() -> None:
            f = await fs.stat("/d/f")
            assert f.is_file and f == await fs.stat_at((await fs.stat("/d")).fid, b"f") == await fs.stat_fid(f.fid)
            assert (await fs.stat("/d/../d/./f")).fid == f.fid and (await fs.stat("/link")).fid == f.fid
            assert await fs.readlink("/link") == "d/f" and (await fs.lstat("/link")).is_symlink
            assert not await fs.exists("/nothing") and not await fs.exists("/d/nothing/x")
            assert await fs.readdir("/d") == ["f"] and await names_of(fs, "/") == ["d", "link"]
            assert (await fs.stat("/")).fid == ROOT_FID

        await do(all_of_it())
        with Asked(c.a) as asked:
            await do(all_of_it())
        assert asked == {}


async def test_other_users_of_the_mount_are_answered_from_the_cache_as_far_as_they_may(cluster: Any) -> None:
    async with cluster(mds=1, oss=1, clients=1, caching=1) as c:
        fs, do = c.a.fs, c.a.unrecorded
        await c.a.mkdir("/open")
        await c.a.mkdir("/closed", 0o700)
        for name in ("/open/f", "/closed/f"):
            await c.a.create(name)
        alice = fs.as_user(1000, 1000)
        assert (await do(alice.stat("/open/f"))).is_file
        with refused(errno.EACCES):
            await do(alice.stat("/closed/f"))
        await do(fs.stat("/closed/f"))
        with Asked(c.a) as asked:
            assert (await do(alice.stat("/open/f"))).is_file
            with refused(errno.EACCES):
                await do(alice.stat("/closed/f"))
            assert (await do(fs.stat("/closed/f"))).is_file
        assert asked == {}


async def test_creating_in_a_directory_takes_no_lock_of_it(cluster: Any) -> None:
    """Else two clients that fill one directory would take it from each other all the time (shared_dir)."""
    async with cluster(mds=1, oss=1, clients=2, caching=1) as c:
        await c.a.mkdir("/d")
        for client in (c.a, c.b):
            await client.create(f"/d/{client.name}")
            await client.unrecorded(client.fs.exists("/d/nothing"))  # who looks first gets none either
        before = c.mds.target().node.events.counts["lock.asked"]
        with Asked(c.a) as asked:
            for number in range(20):
                await c.a.create(f"/d/a{number}")
                await c.b.create(f"/d/b{number}")
        assert asked == {"Create": 20} and c.mds.target().node.events.counts["lock.asked"] == before


async def test_own_changes_cost_one_request_and_leave_the_name_known(cluster: Any) -> None:
    """The locks in the way go with the request, and only as far as they are in the way (sanity 120)."""
    async with cluster(mds=1, oss=1, clients=1, caching=1) as c:
        fs, do = c.a.fs, c.a.unrecorded
        await c.a.mkdir("/d")
        await c.a.create("/d/f")
        await do(fs.stat("/d"))
        await do(fs.stat("/d/f"))
        for change, name, back in (
            (lambda: c.a.create("/d/g"), "Create", {"Lookup": 1}),
            (lambda: c.a.chmod("/d/f", 0o600), "Setattr", {"Lookup": 1}),
            (lambda: c.a.setxattr("/d/f", "user.x", b"1"), "Setxattr", {"Lookup": 2}),
            (lambda: c.a.link("/d/f", "/d/h"), "Link", {"Lookup": 2}),
        ):
            with Asked(c.a) as asked:
                await change()
            assert asked == {name: 1}
            with Asked(c.a) as asked:
                assert await do(fs.exists("/d/f"))
            assert asked == {}
            with Asked(c.a) as asked:
                await do(fs.stat("/d"))
                await do(fs.stat("/d/f"))
            assert sum(asked.values()) <= sum(back.values()), (name, asked)
        c.never_saw("lock.asked")


# what one changes, others see at once ---------------------------------------------------------------------------

Change = Callable[[Any], Awaitable[Any]]


async def make_tree(client: Any) -> None:
    await client.mkdir("/d")
    await client.mkdir("/d/sub")
    await client.mkdir("/other")
    for name in ("/d/f", "/d/g", "/d/sub/deep"):
        await client.write(name, name.encode())
    await client.link("/d/f", "/d/second")


PATHS = ("/", "/d", "/d/f", "/d/g", "/d/second", "/d/new", "/d/sub", "/d/sub/deep", "/other", "/other/f", "/other/sub/deep")


async def whole_view(fs: FileSystem) -> dict[str, Any]:
    """All that a client sees."""
    seen: dict[str, Any] = {}
    for path in PATHS:
        try:
            seen[path] = await fs.stat(path)
        except OpError as error:
            seen[path] = error.errno
    for path in ("/", "/d", "/d/sub", "/other", "/other/sub"):
        try:
            seen["names " + path] = await fs.readdir(path)
            seen["list " + path] = sorted([(e.name, e.stat) async for e in fs.scandir(path)])
        except OpError as error:
            seen["list " + path] = error.errno
    return seen


def fs_of(client: Any, call: Callable[[FileSystem], Awaitable[Any]]) -> Any:
    return client.unrecorded(call(client.fs))


async def remove_sub(client: Any) -> None:
    await client.unlink("/d/sub/deep")
    await client.rmdir("/d/sub")


CHANGES: dict[str, Change] = {
    "create": lambda b: b.create("/d/new"),
    "mkdir": lambda b: b.mkdir("/d/new"),
    "symlink": lambda b: b.symlink("f", "/d/new"),
    "link": lambda b: b.link("/d/f", "/d/new"),
    "write": lambda b: b.write("/d/f", b"longer than before"),
    "write of a new file": lambda b: b.write("/d/new", b"new"),
    "truncate": lambda b: b.truncate("/d/f", 1),
    "unlink": lambda b: b.unlink("/d/g"),
    "unlink of one of two names": lambda b: b.unlink("/d/second"),
    "rename": lambda b: b.rename("/d/f", "/d/new"),
    "rename over": lambda b: b.rename("/d/f", "/d/g"),
    "rename across": lambda b: b.rename("/d/f", "/other/f"),
    "rename of a directory": lambda b: b.rename("/d/sub", "/other/sub"),
    "chmod": lambda b: b.chmod("/d/f", 0o600),
    "chmod of a directory": lambda b: b.chmod("/d", 0o700),
    "setxattr": lambda b: b.setxattr("/d/f", "user.x", b"1"),
    "chown": lambda b: fs_of(b, lambda fs: fs.chown("/d/f", 7, 8)),
    "utimes": lambda b: b.utime("/d/f", 2, atime=1),
    "read": lambda b: b.read("/d/f"),
    "stripe": lambda b: fs_of(b, lambda fs: fs.setstripe("/d", 1)),
    "rmdir": lambda b: remove_sub(b),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_of_one_client_is_seen_by_the_other_at_once(cluster: Any, name: str) -> None:
    """sanityn 1 to 12"""
    async with cluster(mds=1, oss=2, clients=2, caching=1) as c:
        await make_tree(c.b)
        await asyncio.sleep(2)
        before = await c.a.unrecorded(whole_view(c.a.fs))
        with Asked(c.a) as asked:
            assert await c.a.unrecorded(whole_view(c.a.fs)) == before
        assert asked == {}
        await CHANGES[name](c.b)
        plain = await c.add_client()  # nothing cached: the truth
        truth = await plain.unrecorded(whole_view(plain.fs))
        seen = await c.a.unrecorded(whole_view(c.a.fs))
        assert seen == truth and seen != before
        assert await c.b.unrecorded(whole_view(c.b.fs)) == truth


@pytest.mark.parametrize("name", CHANGES)
async def test_a_client_sees_its_own_changes(cluster: Any, name: str) -> None:
    async with cluster(mds=1, oss=2, clients=2, caching=1) as c:
        await make_tree(c.a)
        before = await c.a.unrecorded(whole_view(c.a.fs))
        await CHANGES[name](c.a)
        seen = await c.a.unrecorded(whole_view(c.a.fs))
        assert seen != before
        assert await c.b.unrecorded(whole_view(c.b.fs)) == seen


async def test_an_exchange_is_seen_at_once(cluster: Any) -> None:
    async with cluster(mds=1, oss=2, clients=2, caching=1) as c:
        await make_tree(c.a)
        before = [await client.unrecorded(whole_view(client.fs)) for client in (c.a, c.b)]
        await c.b.unrecorded(c.b.fs.rename("/d/f", "/d/sub", RENAME_EXCHANGE))
        seen = [await client.unrecorded(whole_view(client.fs)) for client in (c.a, c.b)]
        assert seen[0] == seen[1] and seen[0]["/d/f"].is_dir and not before[0]["/d/f"].is_dir
        await c.a.unrecorded(c.a.fs.rename("/d/f", "/d/sub", RENAME_EXCHANGE))  # the oracle knows nothing of it
        for client in (c.b, c.a):
            again = await client.unrecorded(whole_view(client.fs))
            assert again["/d/f"].is_file and again["/d/sub"].is_dir and again["names /d"] == before[0]["names /d"]


async def test_write_times_of_an_open_file_are_seen_here_at_once_and_there_after_the_close(cluster: Any) -> None:
    async with cluster(mds=1, oss=1, clients=2, caching=1) as c:
        await c.a.create("/f")
        old = [(await client.unrecorded(client.fs.stat("/f"))).mtime for client in (c.a, c.b)]
        await asyncio.sleep(1)
        file = await c.a.open("/f")
        await file.pwrite(b"x")
        written = (await c.a.unrecorded(c.a.fs.stat("/f"))).mtime
        assert written > old[0] == old[1]
        await file.close()
        for client in (c.a, c.b):
            assert (await client.unrecorded(client.fs.stat("/f"))).mtime == written


async def test_who_loses_access_loses_it_at_once(cluster: Any) -> None:
    """sanityn 24: a cached permission is asked back with PERM."""
    async with cluster(mds=1, oss=1, clients=2, caching=1) as c:
        await c.b.mkdir("/d")
        await c.b.create("/d/f")
        await c.b.chmod("/d", 0o755)
        alice = c.a.fs.as_user(1000, 1000)
        assert (await c.a.unrecorded(alice.stat("/d/f"))).is_file
        await c.b.chmod("/d", 0o700)
        for call in (lambda: alice.stat("/d/f"), lambda: alice.readdir("/d"), lambda: alice.open("/d/f")):
            with refused(errno.EACCES):
                await c.a.unrecorded(call())
        await c.b.unrecorded(c.b.fs.chown("/d", 1000, 1000))
        assert (await c.a.unrecorded(alice.stat("/d/f"))).is_file


# listings -------------------------------------------------------------------------------------------------------


async def fill(client: Any, count: int, *, recorded: bool = True) -> list[str]:
    """/d with so many files."""
    names = [f"f{number:04}" for number in range(count)]
    await (client.mkdir("/d") if recorded else client.unrecorded(client.fs.mkdir("/d")))

    async def some(part: list[str]) -> None:
        for name in part:
            await (client.create(f"/d/{name}") if recorded else client.unrecorded(client.fs.create(f"/d/{name}")))

    await asyncio.gather(*[some(names[start::16]) for start in range(16)])
    return names


async def _listed(fs: FileSystem) -> dict[bytes, Any]:
    return {entry.name: entry.stat async for entry in fs.scandir("/d")}


async def test_a_listing_with_attributes_is_one_request_a_thousand_and_then_none(cluster: Any) -> None:
    async with cluster(mds=1, oss=2, clients=2, caching=1) as c:
        names = await fill(c.b, 2500, recorded=False)
        with Asked(c.a) as asked:
            assert await c.a.unrecorded(names_of(c.a.fs, "/d")) == names
        assert asked == {"Lookup": 1, "Readdir": 3} and mdt_locks(c.a) >= 2500
        with Asked(c.a) as asked:
            assert await c.a.unrecorded(names_of(c.a.fs, "/d")) == names
            for name in names[::100]:
                assert (await c.a.unrecorded(c.a.fs.stat(f"/d/{name}"))).is_file
        assert asked == {}
        await c.b.unrecorded(c.b.fs.chmod("/d/f0007", 0o600))
        await c.b.unrecorded(c.b.fs.unlink("/d/f0008"))
        with Asked(c.a) as asked:
            found = await c.a.unrecorded(_listed(c.a.fs))
        assert found[b"f0007"].mode & 0o777 == 0o600 and b"f0008" not in found and len(found) == 2499
        assert asked == {"Readdir": 3}
        await c.b.unrecorded(c.b.fs.rmtree("/d"))


async def test_a_change_of_one_entry_costs_the_next_listing_one_request(cluster: Any) -> None:
    async with cluster(mds=1, oss=2, clients=2, caching=1) as c:
        names = await fill(c.b, 300)
        await c.a.unrecorded(_listed(c.a.fs))
        await c.b.chmod("/d/f0007", 0o600)
        with Asked(c.a) as asked:
            found = await c.a.unrecorded(_listed(c.a.fs))
        assert asked == {"Getattr": 1} and len(found) == len(names) and found[b"f0007"].mode & 0o777 == 0o600


async def test_stats_in_the_order_of_a_listing_are_fetched_ahead(cluster: Any) -> None:
    """sanity 123"""
    async with cluster(mds=1, oss=2, clients=2, caching=1, statahead_max=64) as c:
        await fill(c.b, 500)
        do = c.a.unrecorded
        order = await do(c.a.fs.readdir("/d"))
        with Asked(c.a) as asked:
            for name in order:
                assert (await do(c.a.fs.stat(f"/d/{name}"))).is_file
        assert asked == {"Lookup": 2, "Readdir": 8}

        other = await c.add_client()
        order = await other.unrecorded(other.fs.readdir("/d"))
        shuffled = sorted(order, key=lambda name: int(name[1:]) * 7919 % 500)
        with Asked(other) as asked:
            for name in shuffled:
                await other.unrecorded(other.fs.stat(f"/d/{name}"))
        assert sum(asked.values()) < 150, "in any other order parts are fetched that are not so large at first"


async def test_several_that_go_through_one_listing_share_what_is_fetched(cluster: Any) -> None:
    async with cluster(mds=1, oss=1, clients=2, caching=1, statahead_max=50) as c:
        await fill(c.b, 200)
        order = await c.a.unrecorded(c.a.fs.readdir("/d"))

        async def look(part: list[str]) -> None:
            for name in part:
                assert (await c.a.fs.stat(f"/d/{name}")).is_file

        with Asked(c.a) as asked:
            await c.a.unrecorded(look(order[:3]))
            await asyncio.gather(*[c.a.unrecorded(look(order[3 + i :: 4])) for i in range(4)])
        assert asked["Readdir"] <= 6 and asked.get("Lookup", 0) <= 30


# bounded, and lost ----------------------------------------------------------------------------------------------


async def test_what_is_known_is_bounded_by_the_locks(cluster: Any) -> None:
    async with cluster(mds=1, oss=1, clients=2, caching=1, lru_size=100) as c:
        await fill(c.b, 400)
        await c.a.unrecorded(_listed(c.a.fs))
        for number in range(400):
            await c.a.unrecorded(c.a.fs.stat(f"/d/f{number:04}"))
        await asyncio.sleep(1)
        cache = c.a.fs.connections.names
        assert mdt_locks(c.a) <= 102 and len(cache.files) <= 105 and cache.listings.entries <= 100
        assert (await c.a.unrecorded(c.a.fs.stat("/d/f0001"))).is_file


async def test_listing_a_directory_that_changes_leaves_one_lock_a_file(cluster: Any) -> None:
    async with cluster(mds=1, oss=1, clients=2, caching=1) as c:
        names = await fill(c.b, 50)
        await c.a.unrecorded(_listed(c.a.fs))
        held = mdt_locks(c.a)
        for number in range(10):
            await c.b.chmod("/d/f0007", 0o600 + number)  # leaves a part of the lock
            await c.b.create(f"/d/new{number}")
            found = await c.a.unrecorded(_listed(c.a.fs))
            assert len(found) == len(names) + number + 1 and found[b"f0007"].mode & 0o777 == 0o600 + number
            await c.settle()
            assert mdt_locks(c.a) <= held + number + 1
        with Asked(c.a) as asked:
            for name in names:
                assert (await c.a.unrecorded(c.a.fs.stat(f"/d/{name}"))).is_file
        assert asked == {}


async def test_a_client_that_is_gone_holds_up_nobody_for_long(cluster: Any) -> None:
    """It is evicted when it has had its time; when it is back it believes in nothing that it knew."""
    async with cluster(mds=1, oss=1, clients=2, caching=1) as c:
        c.expect(*EVICTION, "lock.expired")
        await c.a.create("/f")
        await c.a.unrecorded(c.a.fs.stat("/f"))
        c.net.cut(c.a, c.mds)
        began = asyncio.get_running_loop().time()
        await c.b.chmod("/f", 0o600)
        assert asyncio.get_running_loop().time() - began <= c.tunables.lock_callback_s + 1
        stale = soon(c.a.unrecorded(c.a.fs.stat("/f")))
        await asyncio.sleep(1)
        assert not stale.done(), "its lease is over: it must ask"
        c.net.heal()
        await asyncio.wait([stale])
        assert stale.exception() is not None or stale.result().mode & 0o777 == 0o600
        await c.settle()
        assert (await c.a.unrecorded(c.a.fs.stat("/f"))).mode & 0o777 == 0o600


async def test_after_a_restart_of_the_mds_nothing_stale_is_left(cluster: Any) -> None:
    async with cluster(mds=1, oss=1, clients=2, caching=1) as c:
        await make_tree(c.b)
        await asyncio.sleep(2)
        await c.a.unrecorded(whole_view(c.a.fs))
        await c.fail(c.mds)
        await c.b.chmod("/d/f", 0o600)
        await c.b.rename("/d/g", "/d/new")
        truth = await c.b.unrecorded(whole_view(c.b.fs))
        assert await c.a.unrecorded(whole_view(c.a.fs)) == truth


async def test_a_change_that_its_maker_lost_is_unknown_to_those_who_had_seen_it(cluster: Any) -> None:
    """A chmod is answered, seen by another client, and lost with the MDS and its maker: what was seen goes, too."""
    async with cluster(mds=1, oss=1, clients=2, caching=1) as c:
        c.expect(*EVICTION, "recovery.evicting")
        await c.a.create("/f")
        await c.mds.commit()
        c.mds.hold_commits()
        await c.b.chmod("/f", 0o600)
        assert (await c.a.unrecorded(c.a.fs.stat("/f"))).mode & 0o777 == 0o600
        c.b.kill()
        await c.mds.kill()
        await c.mds.start()
        await c.settle()
        assert (await c.a.unrecorded(c.a.fs.stat("/f"))).mode & 0o777 == 0o644


async def test_an_operation_that_is_held_up_is_answered_once(cluster: Any) -> None:
    """It waits longer than its timeout for a lock: its copies join it (docs/locks.md)."""
    async with cluster(mds=1, oss=1, clients=2, caching=1, rpc_timeout_s=1.0) as c:
        c.expect(*EVICTION, "lock.expired")
        await c.a.create("/f")
        await c.a.unrecorded(c.a.fs.stat("/f"))
        c.a.pause()
        await c.b.unlink("/f")
        c.a.resume()
        assert not await c.b.exists("/f")
        await c.settle()
        assert not await c.a.unrecorded(c.a.fs.exists("/f"))


@pytest.mark.parametrize("message", [Setattr, Unlink])
async def test_a_lost_answer_to_a_change_leaves_no_old_view(cluster: Any, message: type) -> None:
    async with cluster(mds=1, oss=1, clients=1, caching=1) as c:
        await c.a.create("/f")
        await c.a.unrecorded(c.a.fs.stat("/f"))
        c.drop_reply(message)
        if message is Setattr:
            await c.a.chmod("/f", 0o600)
            assert (await c.a.unrecorded(c.a.fs.stat("/f"))).mode & 0o777 == 0o600
        else:
            await c.a.unlink("/f")
            assert not await c.a.unrecorded(c.a.fs.exists("/f"))
        c.saw("reply.reconstructed", times=1)


async def links_of(client: Any, *paths: str) -> list[int]:
    return [(await client.unrecorded(client.fs.stat(path))).nlink for path in paths]


@pytest.mark.parametrize("across", [True, False])
async def test_a_lost_answer_to_a_rename_that_replaced_a_directory(cluster: Any, across: bool) -> None:
    """The rebuilt one has forgotten which, but not that there was one: the parent's link count shows it."""
    async with cluster(mds=1, oss=1, clients=1, caching=1) as c:
        for path in ("/d", "/e", "/d/new", "/e/new", "/e/old"):
            await c.a.mkdir(path)
        await links_of(c.a, "/d", "/e", "/d/new", "/e/new", "/e/old")
        c.drop_reply(Rename)
        await c.a.rename("/d/new" if across else "/e/new", "/e/old")
        assert await links_of(c.a, "/d", "/e") == ([2, 4] if across else [3, 3])
        c.saw("reply.reconstructed", times=1)


async def test_a_lost_answer_to_a_rename_of_what_is_gone_since(cluster: Any) -> None:
    """Nobody can say any more what has moved; that something has is known."""
    async with cluster(mds=1, oss=1, clients=1, caching=1) as c:
        for path in ("/d", "/e", "/d/f"):
            await c.a.mkdir(path)
        await links_of(c.a, "/d", "/e", "/d/f")
        rule = c.drop_reply(Rename)
        renaming = soon(c.a.rename("/d/f", "/e/g"))
        await rule.caught()
        await c.a.rmdir("/e/g")
        await renaming
        assert await links_of(c.a, "/d", "/e") == [2, 2]
        c.saw("reply.reconstructed", times=1)


async def test_without_caching_every_call_goes_to_the_servers(cluster: Any) -> None:
    async with cluster(mds=1, oss=1, clients=1, caching=0) as c:
        await c.a.create("/f")
        for _ in range(2):
            with Asked(c.a) as asked:
                assert stat.S_ISREG((await c.a.unrecorded(c.a.fs.stat("/f"))).mode)
            assert asked == {"Lookup": 1}
        assert c.a.fs.connections.names is None and c.mds.target().namespace.lock_count == 0


async def test_files_that_are_asked_for_in_any_order_come_in_parts(cluster: Any) -> None:
    async with cluster(mds=1, oss=2, clients=2, caching=1) as c:
        await c.b.mkdir("/d")
        names = [f"f{number}" for number in range(300)]
        for name in names:
            await c.b.write(f"/d/{name}", name.encode())
        order = random.Random(c.seed).sample(names, len(names))
        sizes = {name: (await c.b.unrecorded(c.b.fs.stat(f"/d/{name}"))).size for name in names}
        directory = (await c.a.unrecorded(c.a.fs.stat("/d"))).fid
        with Asked(c.a) as asked:
            for name in order:
                found = await c.a.unrecorded(c.a.fs.stat_at(directory, name.encode()))
                assert found.size == sizes[name]
            with refused(errno.ENOENT):
                await c.a.unrecorded(c.a.fs.stat_at(directory, b"nothing"))
        assert sum(asked.values()) < len(names) / 3, asked
