"""Objects, their files and the logs about them. Found by seeds of the OST swarm, and kept."""

from __future__ import annotations

import asyncio


async def test_an_unlink_during_a_commit_is_carried_out_by_the_next_one(cluster):
    """The destroy log gets a record while the batch before is on its way to a slow disk. That commit is over soon and
    makes the destroyer look, too early; nobody made it look again. That the log is empty is checked on leaving.

    Source: seeds 128, 145
    """
    async with cluster(clients=1, caching=0, commit_interval_s=0.05) as c:
        await c.a.write("/f", b"data")
        await c.a.write("/g", b"data")
        await c.mds.commit()
        c.mds.slow_disk(2.0)
        await c.a.chmod("/g", 0o600)
        await asyncio.sleep(0.1)  # its commit is under way
        await c.a.unlink("/f")
