"""What an administrator types to throw a client out, and what he sees of it, on real processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from lustrelite.cli.cluster import child_environment

pytestmark = pytest.mark.processes

EVICTION = ("client.evicted", "import.evicted")


async def llctl(c: Any, *words: str, status: int = 0) -> str:
    """Run llctl on the cluster of this world: its output, after it ended with `status`."""
    command = [sys.executable, "-m", "lustrelite.cli.llctl", "--state-dir", str(c.cluster.state_dir), *words]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=child_environment()
    )
    assert done.returncode == status, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


@pytest.mark.lustre("SM 146")
@pytest.mark.processes
async def test_a_client_is_evicted_by_its_uuid_or_by_where_it_is_and_that_is_counted(world: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_146"""
    async with world(clients=2, oss=1, apart=True, caching=1) as c:
        c.expect(*EVICTION)
        mdt, ost = c.mds.targets[0], c.oss[0].targets[0]
        await c.a.write("/f", b"x")
        await c.a.fs.sync()

        async def count(param: str) -> int:
            return int(await llctl(c, "get_param", "-n", param))

        async def evicted(server: Any, times: int) -> None:
            await c.until_saw("import.evicted", on=c.a, target=server)
            await c.settle()
            c.saw("client.evicted", client=c.a, on=server, why="by the administrator", times=times)
            c.never_saw("client.evicted", client=c.b)
            assert await c.a.read("/f") == await c.b.read("/f") == b"x"

        assert await count(f"mdt.{mdt}.eviction_count") == await count(f"obdfilter.{ost}.eviction_count") == 0
        await llctl(c, "set_param", f"mdt.{mdt}.evict_client={c.a.uuid}")
        await evicted(c.mds, 1)
        assert await count(f"mdt.{mdt}.eviction_count") == 1
        (nid,) = [
            name.split(".")[3] for name, uuids in (await c.oss[0].params(f"obdfilter.{ost}.exports.*.uuid")).items()
            if c.a.uuid in uuids
        ]  # fmt: skip
        await llctl(c, "set_param", f"obdfilter.{ost}.evict_client=nid:{nid}")
        await evicted(c.oss[0], 1)
        assert await count(f"obdfilter.{ost}.eviction_count") == 1
        assert await count(f"mdt.{mdt}.eviction_count") == 1
        assert "has no client" in await llctl(c, "set_param", f"mdt.{mdt}.evict_client=nid:nobody", status=1)
