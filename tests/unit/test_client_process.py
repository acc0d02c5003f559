"""What a client process shows of its locks, and lets be set."""

from __future__ import annotations

import fcntl
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lustrelite import server_params
from lustrelite.client_process import MountProcess
from lustrelite.params import ParamTree, check_permanent


def process_of(client: Any) -> SimpleNamespace:
    """A process around the mount of a simulated client."""
    process = SimpleNamespace(tree=ParamTree(), metrics=SimpleNamespace(sources=[]), commands={}, status=None)
    MountProcess(cast(Any, process), client.fs)
    return process


async def test_locks_are_shown_and_cleared_under_lustres_names(cluster: Any) -> None:
    async with cluster(clients=1, caching=1, lru_size=100) as c:
        for n in range(10):
            await c.a.create(f"/f{n}")
            await c.a.stat(f"/f{n}")
        process = process_of(c.a)
        mdc = f"ldlm.namespaces.lustre-MDT0000-mdc-{c.a.uuid[:8]}"
        locks = c.a.fs.connections.imports["lustre-MDT0000"].locks
        values = process.tree.get(f"{mdc}.*")
        assert values == {
            f"{mdc}.lock_count": str(locks.lock_count), f"{mdc}.lock_unused_count": str(len(locks.lru)),
            f"{mdc}.lru_size": "100", f"{mdc}.lru_max_age": "3900",
        }  # fmt: skip
        assert len(locks.lru) >= 10
        await process.tree.set(f"{mdc}.lru_max_age", "60")
        await process.tree.set(f"{mdc}.lru_size", "4")
        assert (locks.lru.max_count, locks.lru.max_age_s) == (4, 60.0)
        await c.until(lambda: len(locks.lru) == 4)
        await process.tree.set("ldlm.namespaces.*.lru_size", "clear")
        assert locks.lock_count == 0
        await c.until(lambda: c.mds.target().namespace.lock_count == 0)
        for bad in ("-1", "many"):
            with pytest.raises(ValueError, match=bad):
                await process.tree.set(f"{mdc}.lru_size", bad)


async def test_a_dump_names_locks_and_record_locks(cluster: Any) -> None:
    async with cluster(clients=1, caching=1) as c:
        await c.a.create("/f")
        file = await c.a.open("/f")
        await c.a.unrecorded(file.file.flock(fcntl.LOCK_EX))
        dump = process_of(c.a).commands["dump_locks"]
        target = f"lustre-MDT0000-mdc-{c.a.uuid[:8]}"
        fid = file.file.fid.hex()
        (found,) = dump({"target": target, "resource": fid[:20]})
        assert found["lines"][0] == f"resource {fid}"
        assert any("granted PR" in line and "LOOKUP" in line for line in found["lines"])
        assert any("flock [" in line for line in found["lines"])
        assert len(dump({"target": target})) >= 1
        with pytest.raises(ValueError, match="no connection"):
            dump({"target": "nobody"})
        await file.close()


async def test_without_a_cache_there_is_nothing_to_show(cluster: Any) -> None:
    async with cluster(clients=1, caching=0) as c:
        with pytest.raises(KeyError):
            process_of(c.a).tree.get("ldlm.namespaces.*.lock_count")


async def test_dirty_data_and_grants_are_shown_under_lustres_names(cluster: Any) -> None:
    async with cluster(clients=1, caching=1, oss=1) as c:
        process = process_of(c.a)
        osc = f"osc.lustre-OST0000-osc-{c.a.uuid[:8]}"
        granted = int(process.tree.get(f"{osc}.cur_grant_bytes")[f"{osc}.cur_grant_bytes"])
        assert granted > 0
        file = await c.a.open("/f", create=True)
        await file.pwrite(b"x" * 5000)
        values = process.tree.get(f"{osc}.*")
        assert values[f"{osc}.cur_dirty_bytes"] == "8192" and values[f"{osc}.cur_grant_bytes"] == str(granted - 8192)
        assert values[f"{osc}.max_dirty_mb"] == "32" and values[f"{osc}.max_rpcs_in_flight"] == "8"
        llite = f"llite.lustre-{c.a.uuid[:8]}"
        assert process.tree.get(f"{llite}.*")[f"{llite}.cached_bytes"] == "16384"
        await process.tree.set(f"{osc}.max_dirty_mb", "1")
        await process.tree.set(f"{llite}.max_cached_mb", "64")
        tunables = c.a.fs.connections.node.tunables
        assert (tunables.max_dirty_bytes, tunables.max_cached_bytes) == (1 << 20, 64 << 20)
        with pytest.raises(ValueError, match="-1"):
            await process.tree.set(f"{osc}.max_dirty_mb", "-1")
        await file.fsync()
        assert process.tree.get(f"{osc}.cur_dirty_bytes")[f"{osc}.cur_dirty_bytes"] == "0"
        await file.close()


async def test_the_connection_to_the_mgs_is_a_device(cluster: Any) -> None:
    async with cluster(clients=1, oss=1) as c:
        process = process_of(c.a)
        name = f"MGC{c.a.fs.connections.config.mgs.nids[0]}"

        def state() -> str:
            return str(next(row["state"] for row in process.commands["devices"](None) if row["type"] == "mgc" and row["name"] == name))

        assert state() == "FULL" and f"mgc.{name}.import" in process.tree.get("mgc.*.import")
        await c.mgs.kill()
        await c.until(lambda: state() != "FULL")
        assert process.tree.get("health_check") == {"health_check": "healthy"}, "everything goes on without it"
        await c.mgs.start()


async def test_everything_that_can_be_set_may_be_set_for_good(cluster: Any) -> None:
    """Of clients and servers; but not what is a command rather than a value."""
    async with cluster(clients=1, oss=1, caching=1) as c:
        trees = [process_of(c.a).tree]
        for server in c.servers:
            tree = ParamTree()
            tree.add_source(lambda daemon=server.daemon: server_params.parameters(daemon))
            trees.append(tree)
        settable = [param for tree in trees for param in tree.find() if param.set is not None and not param.name.endswith("/evict_client")]
        assert {param.name.partition("/")[0] for param in settable} == {
            "lod", "lov", "ldlm", "llite", "mdc", "mdt", "mgc", "obdfilter", "osc", "osp"
        }  # fmt: skip
        for param in settable:
            assert param.get is not None
            check_permanent(param.dotted, param.get())
