"""Targets register with the MGS: whom it refuses, what it does without, and what nobody else's target may do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from steps import refused, soon

from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError
from lustrelite.format import TargetConfig
from lustrelite.ids import mdt_client_uuid
from lustrelite.ost.replacement import replace_lost
from lustrelite.recovery.import_fsm import State
from lustrelite.sim.processes import MGS_NID, SimServer
from lustrelite.store.kv import Store
from lustrelite.store.schema import PARAMS
from lustrelite.target.addresses import set_addresses
from lustrelite.wire.mgs import SetParam, TargetRegister

OST0 = "lustre-OST0000"


def stranger(c: Any, kind: str, *, fsname: str = "lustre", index: int = 0) -> Any:
    """A server with a target that was formatted by somebody else."""
    config = TargetConfig(kind, fsname, index, "another stamp", (str(MGS_NID),))
    if kind == "OST":
        c.disks.object_disk(config.name)
    c.format(config)
    return SimServer(c, f"{fsname}-{kind}-{index}".lower(), [config])


@contextlib.asynccontextmanager
async def beside(c: Any, server: Any) -> AsyncIterator[Any]:
    """It runs for a while."""
    await server.start()
    yield server
    server.kill(silent=False)


@pytest.mark.parametrize("kind", ["MDT", "OST"])
async def test_a_name_that_is_taken_is_refused_and_the_process_lives_on(cluster: Any, kind: str) -> None:
    async with cluster(oss=2, clients=1) as c:
        c.expect("target.refused")
        await c.a.write("/f", b"x" * 100_000)
        other = SimServer(c, "other", [TargetConfig(kind, "lustre", 0, "another stamp", (str(MGS_NID),))])
        theirs = c.disks.root
        c.disks.root = theirs / "elsewhere"
        c.disks.root.mkdir()
        c.format(other.configs[0])
        await other.start()
        await c.until_saw("target.refused", on=other)
        await c.until(lambda: not other.daemon.targets)
        assert other.alive
        other.kill(silent=False)
        c.disks.root = theirs
        assert await c.a.read("/f") == b"x" * 100_000
        c.never_saw("ost.orphans_destroyed", count=1)


async def test_a_file_system_whose_name_begins_another_ones_keeps_its_own_targets(cluster: Any) -> None:
    async with cluster(oss=1, clients=1) as c:
        await c.a.write("/f", b"x")
        ours = {"lustre-MDT0000", OST0}
        async with beside(c, stranger(c, "OST", fsname="lustre-x", index=0)), beside(c, stranger(c, "MDT", fsname="lustre-x")):
            await c.until(lambda: len(c.mgs.target().of("lustre-x")) == 2)
            await c.settle()
            assert {r.info.name for r in c.mgs.target().of("lustre")} == ours
            assert {t.name for t in c.mgs.target().config("lustre", 0).targets} == ours
            assert list(c.mds.target().allocator.osps) == [0]
            assert mdt_client_uuid("lustre-x-MDT0000") not in c.oss[0].target().exports
        assert await c.a.read("/f") == b"x"


async def test_a_mount_that_is_patient_waits_for_the_file_system_to_be_made(cluster: Any) -> None:
    """All containers of a new cluster are started at once, and the client's is often the first."""
    async with cluster(oss=1, clients=1) as c:
        node = c.a.node
        with refused(errno.ENOENT):
            await FileSystem.mount(node, [MGS_NID], "lustre-x")
        mounting = soon(FileSystem.mount(node, [MGS_NID], "lustre-x", patient=True))
        await c.until_saw("config.awaited", on=c.a, fsname="lustre-x")
        async with beside(c, stranger(c, "OST", fsname="lustre-x")), beside(c, stranger(c, "MDT", fsname="lustre-x")):
            fs = await mounting
            await fs.mkdir("/d")
            await fs.unmount()
            c.saw("config.awaited", times=1)


@pytest.mark.parametrize("mgs_says_no", [True, False])
async def test_another_mdt_destroys_nothing(cluster: Any, mgs_says_no: bool) -> None:
    """It knows of no object: what it takes for orphans are files of others."""
    async with cluster(oss=1, clients=1) as c:
        c.expect("target.refused", "import.connect_failed")
        await c.a.write("/f", b"x" * 1000)
        await c.a.unrecorded(c.a.fs.sync())
        await c.settle()
        ost = c.oss[0].target()
        before = sorted(ost.files.disk.files)
        assert before
        other = stranger(c, "MDT", index=1)
        if not mgs_says_no:
            other.configs = [other.configs[0]._replace(fsname="other", index=0)]
            c.format(other.configs[0])
        async with beside(c, other):
            if mgs_says_no:
                await c.until_saw("target.refused", on=other)
            else:
                await c.until(lambda: other.running)
                other.target().set_ost(c.mgs.target().entries[OST0].info)
            await asyncio.sleep(10)
            c.never_saw("ost.orphans_destroyed", used=0, count=1)
            assert [uuid for uuid in ost.exports if "MDT" in uuid] == [mdt_client_uuid("lustre-MDT0000")]
        assert sorted(ost.files.disk.files) == before
        assert await c.a.read("/f") == b"x" * 1000


async def test_an_old_copy_is_refused_however_often_it_is_started(cluster: Any) -> None:
    async with cluster(oss=1, clients=1) as c:
        c.expect("target.refused", "ost.objects_recreated", "import.zombie")
        directory = c.disks.directory(OST0)
        await c.oss[0].stop()
        old, new = directory.with_name("old"), directory.with_name("new")
        shutil.copytree(directory, old)
        for _ in range(2):
            await c.oss[0].start()
            await c.settle()
            await c.oss[0].stop()
        directory.rename(new)
        shutil.copytree(old, directory)
        for times in range(3):
            await c.oss[0].start()
            await c.until(lambda: not c.oss[0].daemon.targets)
            c.saw("target.refused", on=c.oss[0], times=times + 1)
            c.oss[0].kill(silent=False)
        shutil.rmtree(directory)
        new.rename(directory)
        await c.oss[0].start()
        await c.a.write("/f", b"x")


async def test_a_full_mgs_costs_no_server_its_life_and_refuses_what_it_cannot_keep(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(oss=1, clients=1) as c:
        c.expect("target.not_registered")
        mgs = c.mgs.target()
        version, params = mgs.version, dict(mgs.params)

        def full(*_: Any, **__: Any) -> None:
            raise OpError(errno.ENOSPC)

        monkeypatch.setattr(mgs.store, "apply", full)
        with refused(errno.ENOSPC):
            await c.a.unrecorded(c.a.fs.connections.config.mgs.call(SetParam("lustre", f"{OST0}.osc.active", "0")))
        assert (mgs.version, mgs.params) == (version, params)
        await c.oss[0].kill()
        await c.oss[0].start()
        await c.until_saw("target.not_registered", on=c.oss[0])
        assert mgs.version == version
        await c.a.write("/f", b"x")
        monkeypatch.undo()
        await c.until(lambda: mgs.version > version)


@pytest.mark.parametrize("name", ["tunables.{spin_us" + ",a" * 300 + "}", "tunables.{spin_us,\udcff}"], ids=["long", "no text"])
async def test_a_parameter_that_the_mgs_cannot_keep_is_refused_and_everybody_lives_on(cluster: Any, name: str) -> None:
    """A key of the database has 511 bytes at most, and is text: the MGS, or who asked it, died of others."""
    async with cluster(oss=1, clients=1) as c:
        with pytest.raises(ValueError, match="of a parameter"):
            await c.a.fs.connections.config.set_param(name, "1")
        if name.isascii():
            for fsname in ("lustre", "l" * 600):  # of somebody who does not look himself
                with refused(errno.EINVAL):
                    await c.a.unrecorded(c.a.fs.connections.config.mgs.call(SetParam(fsname, name, "1")))
        assert c.mgs.target().params == {}
        await c.a.unrecorded(c.a.fs.connections.config.set_param("tunables.spin_us", "1"))
        assert c.mgs.target().params == {"lustre": {"tunables.spin_us": "1"}}


async def test_an_mgs_that_has_forgotten_everything_hears_of_all_targets_again(cluster: Any) -> None:
    """tunefs.lustrelite --writeconf.  Source: server_notify_target()"""
    async with cluster(oss=2, clients=1) as c:
        await c.mgs.stop()
        with contextlib.closing(Store.open(c.disks.directory("MGS"), "MGS", durable=False)) as store:
            set_addresses(store, "MGS", {})
        await c.mgs.start()
        assert not c.mgs.target().entries
        await c.until(lambda: len(c.mgs.target().entries) == len(c.targets) - 1)
        b = await c.add_client("b2")
        await b.write("/f", b"x")


async def test_who_hears_of_a_restart_as_he_tries_to_connect_tries_at_once_again(cluster: Any) -> None:
    """The attempt may have gone to the one that died. It was given up, and the next one came after a pause."""
    async with cluster(oss=1, clients=1, reconnect_pause_s=1.0, reconnect_pause_max_s=100.0) as c:
        (imp,) = [imp for imp in c.a.imports if "OST" in imp.target]
        c.net.cut(c.a, c.oss[0])
        await c.oss[0].kill()
        await asyncio.sleep(40)  # by now it waits for long
        await c.until(lambda: imp.state is State.CONNECTING)
        c.net.heal()
        await c.oss[0].start()
        began = c.loop.time()
        await c.until(lambda: imp.state is State.FULL)
        assert c.loop.time() - began < 2.0


async def test_parameters_that_a_target_was_formatted_with_come_and_go_with_it(cluster: Any) -> None:
    """mkfs.lustrelite --param, tunefs.lustrelite --erase-param; what an administrator has set since stays."""
    async with cluster(oss=1, clients=1) as c:
        directory = str(c.disks.directory(OST0))
        formatted = c.configs[directory]
        mode, lot = f"{OST0}.failover.mode", "tunables.spin_us"

        async def with_params(params: dict[str, str]) -> dict[str, str]:
            await c.oss[0].stop()
            c.configs[directory] = formatted._replace(params=tuple(params.items()))
            await c.oss[0].start()
            await c.until(lambda: c.mgs.target().entries[OST0].info.instance == c.oss[0].target().instance)
            await c.settle()
            return dict(c.mgs.target().params.get("lustre", {}))

        assert await with_params({"failover.mode": "failout", lot: "1"}) == {mode: "failout", lot: "1"}
        await c.a.unrecorded(c.a.fs.connections.config.mgs.call(SetParam("lustre", lot, "2")))
        assert await with_params({"failover.mode": "failout", lot: "1"}) == {mode: "failout", lot: "2"}
        await c.mgs.stop()
        await c.mgs.start()
        assert await with_params({lot: "3"}) == {lot: "3"}
        assert await with_params({}) == {}


async def test_a_full_mgs_takes_a_target_with_its_parameters_or_not_at_all(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took the entry, had no room for the parameters, and answered the next attempt as one that brings nothing new."""
    async with cluster(oss=1, clients=1) as c:
        c.expect("target.not_registered")
        mgs = c.mgs.target()
        directory, before, version = str(c.disks.directory(OST0)), mgs.entries[OST0], mgs.version
        apply = mgs.store.apply

        def nearly_full(writes: Any, **options: Any) -> None:
            if any(table == PARAMS for table, _ in writes):
                raise OpError(errno.ENOSPC)
            apply(writes, **options)

        monkeypatch.setattr(mgs.store, "apply", nearly_full)
        await c.oss[0].stop()
        c.configs[directory] = c.configs[directory]._replace(params=(("tunables.spin_us", "7"), ("failover.mode", "failout")))
        await c.oss[0].start()
        await c.until_saw("target.not_registered", on=c.oss[0])
        assert mgs.entries[OST0] == before and mgs.version == version
        monkeypatch.undo()
        await c.until(lambda: mgs.version > version)
        assert mgs.params == {"lustre": {"tunables.spin_us": "7", f"{OST0}.failover.mode": "failout"}}
        await c.until(lambda: c.a.fs.connections.config.params == mgs.params["lustre"])


async def test_a_failover_target_that_is_elsewhere_at_each_start_does_not_pile_up_addresses(cluster: Any) -> None:
    """Who looks for it tries them all; the last ones may be those of its standbys."""
    async with cluster(oss=1, clients=1) as c:
        config = c.a.fs.connections.config
        target = TargetRegister("other", "OST", 7, "a stamp", (), ("standby@sim",), 1, (), False)
        for start in range(100):
            place = target._replace(nids=(f"n{start}@sim",), instance=start + 1)
            info = await c.a.unrecorded(config.mgs.call(place))
        assert info.nids[:4] == ("n99@sim", "standby@sim", "n98@sim", "n97@sim") and len(info.nids) == 16


@pytest.mark.parametrize("who", ["mgs", "mds"])
async def test_a_client_says_once_for_whom_it_waits(cluster: Any, who: str) -> None:
    async with cluster(oss=1, clients=1) as c:
        await c.a.unmount()
        server = getattr(c, who)
        await server.kill()
        coming = asyncio.get_running_loop().create_task(c.a.start())
        await asyncio.sleep(2.5)
        c.never_saw("import.silent", on=c.a)
        await asyncio.sleep(20.0)
        c.saw("import.silent", on=c.a, times=1)
        await server.start()
        await coming
        await server.kill()
        await asyncio.sleep(20.0)
        await server.start()
        await c.settle()
        c.saw("import.silent", on=c.a, times=1)


@pytest.mark.parametrize("mgs_dies", [True, False])
async def test_who_has_not_heard_of_a_new_ost_waits_for_the_mgs(cluster: Any, mgs_dies: bool) -> None:
    """Others have files there already. It was EIO after 4 s.  Source: coherence seed 60387"""
    async with cluster(oss=1, clients=2) as c:
        c.expect("client.evicted", "import.evicted")
        c.net.cut(c.b, c.mgs)
        await c.add_oss(1)
        await c.until(lambda: len(c.mds.target().allocator.ready) == 2)
        await c.a.unrecorded(c.a.fs.setstripe("/f", 1, 1 << 16, 1))
        await c.a.write("/f", b"there")
        if mgs_dies:
            await c.mgs.kill()
        reading = asyncio.get_running_loop().create_task(c.b.read("/f"))
        await asyncio.sleep(30.0)
        assert not reading.done()
        c.net.heal()
        if mgs_dies:
            await c.mgs.start()
        assert await reading == b"there"


def format_anew(c: Any, *, replace: bool) -> Callable[[], None]:
    """The only OST's disk is lost, and it is formatted with the same name; what is returned puts the old one back."""
    directory, disk = c.disks.directory(OST0), c.disks.object_disk(OST0)
    away, data = directory.with_name("away"), (disk.files, disk.durable, disk.journal)
    directory.rename(away)
    disk.files, disk.durable, disk.journal = {}, {}, {}
    old = c.configs[str(directory)]
    c.format(old._replace(stamp="anew"))
    if replace:
        with contextlib.closing(Store.open(directory, "OST", durable=False)) as store:
            replace_lost(store, 1_800_000_000)

    def put_back() -> None:
        shutil.rmtree(directory)
        away.rename(directory)
        disk.files, disk.durable, disk.journal = data
        c.configs[str(directory)] = old

    return put_back


async def forget_targets(c: Any) -> None:
    """tunefs.lustrelite --writeconf"""
    await c.mgs.stop()
    with contextlib.closing(Store.open(c.disks.directory("MGS"), "MGS", durable=False)) as store:
        set_addresses(store, "MGS", {})
    await c.mgs.start()


@pytest.mark.parametrize("mgs_forgets", [False, True])
async def test_an_ost_that_was_formatted_anew_is_not_taken_for_the_old_one(cluster: Any, mgs_forgets: bool) -> None:
    """All that lay there would be empty files; perhaps its disk was only not mounted."""
    async with cluster(oss=1, clients=1) as c:
        c.expect("target.refused", "ost.formatted_anew", "osp.refused", "import.zombie")
        await c.a.write("/f", b"x" * 1000)
        if mgs_forgets:  # who lives on takes it for a zombie
            await c.a.unmount()
        await c.oss[0].stop()
        put_back = format_anew(c, replace=False)
        if mgs_forgets:
            await forget_targets(c)
            await c.mds.kill()
            await c.mds.start()
        await c.oss[0].start()
        await c.until_saw("ost.formatted_anew" if mgs_forgets else "target.refused", on=c.oss[0])
        c.never_saw("ost.objects_recreated")
        await c.oss[0].kill()
        put_back()
        if mgs_forgets:
            await forget_targets(c)
        await c.oss[0].start()
        if mgs_forgets:
            await c.until(lambda: len(c.mgs.target().entries) == 2)
            await c.a.start()
        await c.settle()
        assert await c.a.read("/f") == b"x" * 1000


async def test_an_ost_takes_the_place_of_one_that_is_lost(cluster: Any) -> None:
    """mkfs.lustrelite --replace, while clients and MDS live on.  Source: mkfs.lustre --replace"""
    async with cluster(oss=1, clients=1) as c:
        c.expect("target.refused", "ost.objects_recreated", "import.evicted", "client.evicted", "import.zombie")
        await c.a.unrecorded(c.a.fs.write_file("/lost", b"x" * 1000))
        await c.settle()
        await c.oss[0].stop()
        put_back = format_anew(c, replace=True)
        await c.oss[0].start()
        await c.settle()
        assert await c.a.unrecorded(c.a.fs.read_file("/lost")) == b""
        await c.a.unrecorded(c.a.fs.unlink("/lost"))
        await c.a.write("/f", b"y" * 100_000)
        await c.oss[0].kill()
        await c.oss[0].start()
        assert await c.a.read("/f") == b"y" * 100_000
        await c.settle()
        await c.oss[0].stop()
        directory, disk = c.disks.directory(OST0), c.disks.object_disk(OST0)
        new, data, config = directory.with_name("new"), (disk.files, disk.durable, disk.journal), c.configs[str(directory)]
        shutil.copytree(directory, new)
        put_back()  # the old one was found
        await c.oss[0].start()
        await c.until_saw("target.refused", on=c.oss[0])
        await c.oss[0].kill()
        shutil.rmtree(directory)
        new.rename(directory)
        disk.files, disk.durable, disk.journal = data
        c.configs[str(directory)] = config
        await c.oss[0].start()
        assert await c.a.read("/f") == b"y" * 100_000


@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("what", ["backup", "new"])
async def test_an_mgs_that_came_from_a_backup_or_is_new_is_believed(cluster: Any, what: str, restarts: int) -> None:
    """Clients and the MDT took it for an old one, or what it said for old news, until they were started anew."""
    async with cluster(oss=1, clients=1) as c:
        directory = c.disks.directory("MGS")
        await c.mgs.stop()
        shutil.copytree(directory, c.disks.root / "backup")
        await c.mgs.start()
        for _ in range(restarts):
            await c.mgs.stop()
            await c.mgs.start()
        await c.settle()
        for value in "23456":
            await c.a.fs.connections.config.set_param("tunables.spin_us", value)
        await c.oss[0].kill()
        await c.oss[0].start()
        await c.settle()
        await c.mgs.stop()
        shutil.rmtree(directory)
        if what == "backup":
            shutil.copytree(c.disks.root / "backup", directory)
        else:
            c.format(c.mgs.configs[0])
        await c.mgs.start()
        await c.settle()
        await c.oss[0].stop()
        c.oss[0] = SimServer(c, "elsewhere", c.oss[0].configs)
        await c.oss[0].start()
        await c.settle()
        async with asyncio.timeout(60):
            await c.a.write("/f", b"x")
        assert c.a.fs.connections.config.params == {}
