"""An OST that is away, or taken out of use: who waits, who gets EIO, and how a caller gets out.

Source: chapter 30.1.4: the OSC enters recovery and I/O waits; marked inactive it fails with EIO; otherwise "the
application waits until the OST has recovered or the client process is interrupted".
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mounts import Mount
from steps import refused, soon

from lustrelite.wire.mgs import SetParam

KIB = 1 << 10
PLACE = "/u"
LOST = ("client.data_lost", "import.failed_out", "lock.flush_failed")


def ost_import(client: Any, index: int = 0) -> Any:
    """A client's connection to an OST."""
    return client.fs.connections.imports[f"lustre-OST{index:04x}"]


@contextlib.asynccontextmanager
async def place(world: Any) -> AsyncIterator[Any]:
    """The world, with a directory whose files are no business of the oracle's."""
    async with world as c:
        await c.a.unrecorded(c.a.fs.mkdir(PLACE))
        yield c
        await c.settle()
        await c.a.unrecorded(c.a.fs.rmtree(PLACE))


async def on_ost(client: Any, index: int) -> str:
    """The path of a new file on that OST, written and durable, of which the client knows nothing any more."""
    path = f"{PLACE}/on{index}.{client.cluster.new_handle()}"
    await client.unrecorded(client.fs.setstripe(path, 1, 64 * KIB, index))
    await client.unrecorded(client.fs.write_file(path, b"x" * 1000))
    await client.unrecorded(client.fs.sync())
    forget(client)
    await client.cluster.settle()
    return path


def works_on(client: Any, path: str) -> dict[str, Any]:
    """What needs the object of the file at `path`, each a coroutine function."""
    user = Mount(client)

    async def opened(flags: int, what: str, *args: Any) -> Any:
        file = await user.open(path, flags)
        try:
            return await getattr(file, what)(*args)
        finally:
            await asyncio.shield(soon(file.close()))

    return {
        "read": lambda: user.read_file(path),
        "read past the cache": lambda: opened(os.O_RDONLY | os.O_DIRECT, "pread", 100, 0),
        "write through": lambda: opened(os.O_RDWR | os.O_DSYNC, "pwrite", b"y" * 10, 0),
        "write": lambda: opened(os.O_RDWR, "pwrite", b"y" * 10, 0),
        "append": lambda: opened(os.O_RDWR | os.O_APPEND, "pwrite", b"y" * 10, 0),
        "truncate": lambda: user.truncate(path, 5),
        "fsync": lambda: opened(os.O_RDWR, "fsync"),
        "stat": lambda: user.stat(path),
        "sync": lambda: user.sync(),
    }


WORKS = ["read", "read past the cache", "write through", "write", "append", "truncate", "fsync", "stat", "sync"]
caches = pytest.mark.parametrize("caching", [1, 0], ids=["cached", "uncached"])


def forget(client: Any) -> None:
    """Give back every lock, so that nothing is known."""
    for imp in client.imports:
        if imp.locks is not None:
            imp.locks.clear_unused()


# ------------------------------------------------------------------------------------------------ administratively inactive


@pytest.mark.parametrize("alive", [1, 0], ids=["alive", "dead"])
@pytest.mark.parametrize("what", WORKS)
@caches
async def test_an_inactive_osts_objects_answer_eio_at_once(cluster: Any, caching: int, what: str, alive: int) -> None:
    """Whether it is there or not; files on others work; nothing new is put there by this client's wish alone."""
    async with place(cluster(caching=caching)) as c:
        path, doomed, other = await on_ost(c.a, 0), await on_ost(c.a, 0), await on_ost(c.a, 1)
        if not alive:
            await c.oss[0].kill()
        ost_import(c.a).deactivate()
        began = c.loop.time()
        if what == "sync":  # has nothing to do there
            await works_on(c.a, path)[what]()
        else:
            with refused(errno.EIO):
                await works_on(c.a, path)[what]()
        assert c.loop.time() - began < 1
        await Mount(c.a).unlink(doomed)  # the MDT's business; the object goes when the MDS reaches the OST
        assert await Mount(c.a).read_file(other) == b"x" * 1000
        if not alive:
            await c.oss[0].start()
        ost_import(c.a).activate()
        await works_on(c.a, path)[what]()
        c.never_saw("import.evicted")


@caches
async def test_who_waits_for_an_ost_that_is_made_inactive_gets_eio(cluster: Any, caching: int) -> None:
    async with place(cluster(caching=caching)) as c:
        path = await on_ost(c.a, 0)
        await c.oss[0].kill()
        waiting = {what: soon(work()) for what, work in works_on(c.a, path).items()}
        await asyncio.sleep(5.0)
        assert [what for what, task in waiting.items() if task.done()] == []
        ost_import(c.a).deactivate()
        await asyncio.sleep(0.5)
        for what, task in waiting.items():
            assert task.done(), what
            with refused(errno.EIO):
                task.result()
        await c.oss[0].start()
        ost_import(c.a).activate()
        await c.settle()
        await works_on(c.a, path)["read"]()


async def test_what_was_answered_before_an_ost_was_made_inactive_is_replayed(cluster: Any) -> None:
    """Inactive keeps callers away, not recovery: the data was acknowledged."""
    async with cluster(oss=1) as c:
        await c.replay_barrier(c.oss[0])
        await c.a.write("/f", b"kept" * 1000)
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        await c.settle()
        ost_import(c.a).deactivate()
        await c.oss[0].kill()
        await c.oss[0].start()
        await c.until_saw("recovery.over", target=c.oss[0])
        c.saw("import.replayed", client=c.a, op="Write", times=1)
        assert await c.b.read("/f") == b"kept" * 1000
        ost_import(c.a).activate()


async def test_df_knows_who_is_inactive_and_does_not_wait(cluster: Any) -> None:
    async with cluster(clients=1) as c:
        ost_import(c.a, 1).deactivate()
        began = c.loop.time()
        _, space = await c.a.unrecorded(c.a.fs.statfs_targets())
        assert [(index, answer is not None) for index, answer in space] == [(0, True), (1, False)]
        assert c.loop.time() - began < 1
        ost_import(c.a, 1).activate()
        _, space = await c.a.unrecorded(c.a.fs.statfs_targets())
        assert all(answer is not None for _, answer in space)


@pytest.mark.parametrize("caching", [0, 1])
@pytest.mark.parametrize("why", ["dead", "inactive", "lost"])
async def test_a_directory_is_listed_whatever_became_of_one_files_objects(cluster: Any, caching: int, why: str) -> None:
    """Without that file's attributes: who asks for those waits, or hears of the error."""
    async with place(cluster(oss=2, clients=2, caching=caching)) as c:
        paths = [await on_ost(c.a, index) for index in (0, 1)]
        if why == "dead":
            await c.oss[0].kill()
            await c.until(lambda: ost_import(c.b).state != "FULL")
        elif why == "inactive":
            ost_import(c.b).deactivate()
        else:
            target = c.oss[0].target()
            (oid,) = [row[1] for row in (await c.a.unrecorded(c.a.fs.getstripe(paths[0]))).stripes]
            target.run(target.destroy, [oid])
            await c.settle()
        fid = (await c.b.unrecorded(c.b.fs.stat(PLACE))).fid
        began = c.loop.time()
        entries, end = await c.b.unrecorded(c.b.fs.readdir_page(fid, 0, patient=False))
        assert end and c.loop.time() - began < 0.5
        sizes = {f"{PLACE}/{entry.name.decode()}": entry.stat and entry.stat.size for entry in entries}
        assert sizes == {paths[0]: None, paths[1]: 1000}
        if why == "dead":
            await c.oss[0].start()
            assert (await c.b.unrecorded(c.b.fs.stat(paths[0]))).size == 1000
        else:
            with refused(errno.EIO):
                await c.b.unrecorded(c.b.fs.stat(paths[0]))
        if why == "inactive":
            ost_import(c.b).activate()


async def test_an_ost_that_the_configuration_makes_inactive_is_used_by_nobody(cluster: Any) -> None:
    """llctl conf_param lustre-OST0000.osc.active=0: all clients, those that come later, and the MDS."""
    async with place(cluster(clients=2)) as c:
        path = await on_ost(c.a, 0)
        await c.a.unrecorded(c.a.fs.connections.config.mgs.call(SetParam("lustre", "lustre-OST0000.osc.active", "0")))
        await c.until(lambda: all(ost_import(client).inactive for client in (c.a, c.b)))
        osps = c.mds.target().allocator.osps
        await c.until(lambda: osps[0].imp.inactive)
        late = await c.add_client("c")
        for client in (c.a, c.b, late):
            with refused(errno.EIO):
                await client.unrecorded(client.fs.read_file(path))
        for number in range(6):
            file = await c.a.open(f"/new{number}", create=True)
            assert [index for index, _ in file.file.layout.stripes] == [1]
            await file.close()
        await c.a.unrecorded(c.a.fs.connections.config.mgs.call(SetParam("lustre", "lustre-OST0000.osc.active", "")))
        await c.until(lambda: not any(ost_import(client).inactive for client in (c.a, c.b, late)))
        assert await Mount(late).read_file(path) == b"x" * 1000


# --------------------------------------------------------------------------------------------------------- getting out


async def test_an_mds_that_comes_up_without_the_mgs_uses_no_inactive_ost(cluster: Any) -> None:
    async with place(cluster()) as c:
        set_param = c.a.fs.connections.config.mgs.call
        await c.a.unrecorded(set_param(SetParam("lustre", "lustre-OST0000.osc.active", "0")))
        await c.until(lambda: c.mds.target().allocator.osps[0].imp.inactive)
        await c.settle()
        await c.mgs.kill()
        await c.mds.kill()
        await c.mds.start()
        await asyncio.sleep(2 * c.tunables.connect_timeout_s)
        osps = c.mds.target().allocator.osps
        assert [osps[index].imp.inactive for index in (0, 1)] == [True, False]
        await c.mgs.start()
        await c.a.unrecorded(set_param(SetParam("lustre", "lustre-OST0000.osc.active", "")))
        await c.until(lambda: not osps[0].imp.inactive)
        await c.settle()


@pytest.mark.parametrize("what", WORKS)
@caches
async def test_a_caller_who_is_interrupted_gets_out_of_every_wait(cluster: Any, caching: int, what: str) -> None:
    """While the OST is dead; afterwards everything is as before, or as the caller wanted it."""
    async with place(cluster(caching=caching)) as c:
        path = await on_ost(c.a, 0)
        await c.oss[0].kill()
        waiting = soon(works_on(c.a, path)[what]())
        await asyncio.sleep(3.0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.sleep(0.5)
        assert waiting.cancelled()
        await c.oss[0].start()
        await c.settle()
        whole = await c.b.unrecorded(c.b.fs.read_file(path))
        allowed = {
            "truncate": (b"x" * 1000, b"x" * 5), "append": (b"x" * 1000, b"x" * 1000 + b"y" * 10),
            "write": (b"x" * 1000, b"y" * 10 + b"x" * 990), "write through": (b"x" * 1000, b"y" * 10 + b"x" * 990),
        }  # fmt: skip
        assert whole in allowed.get(what, (b"x" * 1000,))
        await Mount(c.a).write_file(path, b"after")
        assert await Mount(c.b).read_file(path) == b"after"


CALLS: dict[str, tuple[Any, ...]] = {
    "create": ("create", "/u/new"), "mkdir": ("mkdir", "/u/new"), "symlink": ("symlink", "x", "/u/new"),
    "link": ("link", "/u/f", "/u/new"), "rename": ("rename", "/u/f", "/u/new"), "unlink": ("unlink", "/u/f"),
    "chmod": ("chmod", "/u/f", 0o600), "setxattr": ("setxattr", "/u/f", "user.x", b"y"), "stat": ("stat", "/u/f"),
    "list": ("readdir", "/u"), "open": ("open", "/u/f", os.O_RDWR), "open to create": ("open", "/u/new", os.O_RDWR | os.O_CREAT),
    "statfs": ("statfs",),
}  # fmt: skip


@pytest.mark.parametrize("what", CALLS)
@caches
async def test_a_caller_who_is_interrupted_gets_out_of_every_wait_for_the_mds(
    cluster: Any, caching: int, what: str
) -> None:
    """What he had sent may still be done; a file that was opened for nobody is closed again (fsck looks)."""
    async with place(cluster(caching=caching)) as c:
        user = Mount(c.a)
        await user.create("/u/f")
        forget(c.a)
        await c.settle()
        await c.mds.kill()
        waiting = soon(getattr(user, CALLS[what][0])(*CALLS[what][1:]))
        await asyncio.sleep(3.0)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.sleep(0.5)
        assert waiting.cancelled()
        await c.mds.start()
        await c.settle()
        assert set(await Mount(c.b).names("/u")) in ({"f"}, {"f", "new"}, {"new"}, set())
        await user.create("/u/after")


# -------------------------------------------------------------------------------------------------------------- failout


@pytest.mark.parametrize("what", WORKS)
@caches
async def test_in_failout_mode_who_waits_too_long_gets_eio(cluster: Any, caching: int, what: str) -> None:
    """And in failover mode, on the other mount, waits until the OST is back."""
    world = cluster(caching=caching)
    world.clients["a"].tunables["failover_mode"] = "failout"
    async with place(world) as c:
        c.expect(*LOST)
        path = await on_ost(c.a, 0)
        other = await on_ost(c.b, 0)
        await c.oss[0].kill()
        began = c.loop.time()
        patient = soon(works_on(c.b, other)["read"]())
        with refused(errno.EIO):
            await works_on(c.a, path)[what]()
        waited = c.loop.time() - began
        assert c.tunables.failout_after_s <= waited < c.tunables.failout_after_s + 2
        with refused(errno.EIO):  # and from now on at once
            await works_on(c.a, path)["read"]()
        assert c.loop.time() - began - waited < 0.5
        assert not patient.done()
        await c.oss[0].start()
        await c.settle()
        await works_on(c.a, path)[what]()
        assert await patient == b"x" * 1000
        c.saw("import.failed_out", client=c.a, times=1)
        c.never_saw("import.evicted")


async def test_failout_of_one_target_comes_from_its_own_configuration(cluster: Any) -> None:
    """mkfs --param failover.mode=failout; a mount that says failover waits all the same."""
    world = cluster(clients=2)
    world.oss[0].configs[0] = world.oss[0].configs[0]._replace(params=(("failover.mode", "failout"),))
    world.clients["b"].tunables["failover_mode"] = "failover"
    async with place(world) as c:
        c.expect(*LOST)
        mine, other = await on_ost(c.a, 0), await on_ost(c.a, 1)
        for oss in c.oss:
            await oss.kill()
        patient = [soon(c.b.unrecorded(c.b.fs.read_file(mine))), soon(c.a.unrecorded(c.a.fs.read_file(other)))]
        with refused(errno.EIO):
            await c.a.unrecorded(c.a.fs.read_file(mine))
        assert not any(task.done() for task in patient)
        for oss in c.oss:
            await oss.start()
        for task in patient:
            assert await task == b"x" * 1000


async def test_in_failout_mode_dirty_data_is_lost_once_its_writer_is_told_and_answered_data_is_not(cluster: Any) -> None:
    world = cluster(oss=1, write_back_after_s=1000.0)
    world.clients["a"].tunables["failover_mode"] = "failout"
    async with world as c:
        c.expect(*LOST)
        await c.replay_barrier(c.oss[0])
        file = await c.a.unrecorded(c.a.fs.open("/f", os.O_CREAT | os.O_RDWR, 0o644))
        await c.a.unrecorded(file.pwrite(b"answered" * 1000, 0))
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        await c.a.unrecorded(file.pwrite(b"dirty", 100_000))
        await c.oss[0].kill()
        with refused(errno.EIO):
            await c.a.unrecorded(file.fsync())
        await c.oss[0].start()
        await c.settle()
        await c.a.unrecorded(file.fsync())
        assert await c.b.unrecorded(c.b.fs.read_file("/f")) == b"answered" * 1000
        await c.a.unrecorded(file.close())
        await c.a.unrecorded(c.a.fs.unlink("/f"))


async def test_in_failout_mode_who_waits_for_a_lock_of_a_dead_ost_gets_eio(cluster: Any) -> None:
    """The lock was asked for and not granted when the OST died."""
    world = cluster(clients=2, oss=1, lock_callback_s=60.0)
    world.clients["a"].tunables["failover_mode"] = "failout"
    async with world as c:
        c.expect(*LOST)
        await c.b.write("/f", b"x" * 1000)
        held = c.net.drop("Cancel", to=c.oss[0], source=c.b, times=-1)
        dropped = c.net.drop("Write", to=c.oss[0], source=c.b, times=-1)
        reading = soon(c.a.unrecorded(c.a.fs.read_file("/f")))
        await c.until(lambda: c.oss[0].target().namespace.waiting_count > 0)
        await c.oss[0].kill()
        with refused(errno.EIO):
            await reading
        held.lift()
        dropped.lift()
        await c.oss[0].start()
        await c.settle()
        assert await c.a.read("/f") == b"x" * 1000
        c.never_saw("import.evicted")


async def test_the_mode_of_a_mount_can_be_changed_while_an_ost_is_away(cluster: Any) -> None:
    async with place(cluster(oss=1, clients=1)) as c:
        c.expect(*LOST)
        path = await on_ost(c.a, 0)
        await c.oss[0].kill()
        first = soon(c.a.unrecorded(c.a.fs.read_file(path)))
        await asyncio.sleep(2 * c.tunables.failout_after_s)
        assert not first.done()
        c.a.node.tunables.failover_mode = "failout"
        with refused(errno.EIO):
            await first
        c.a.node.tunables.failover_mode = ""
        second = soon(c.a.unrecorded(c.a.fs.read_file(path)))
        await asyncio.sleep(2 * c.tunables.failout_after_s)
        assert not second.done()
        await c.oss[0].start()
        assert await second == b"x" * 1000
