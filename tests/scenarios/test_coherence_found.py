"""What several clients see of one file at the same time. Found by seeds of the coherence swarm, and kept."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from mounts import drop_locks

from lustrelite.sim.processes import SimClient
from lustrelite.wire.ldlm import NO_EXPANSION, PW
from lustrelite.wire.ost import resource_of


async def add_caching_client(c: Any, name: str) -> Any:
    """A mount that caches beside those that do not."""
    client = c.clients[name] = SimClient(c, name)
    client.tunables["caching"] = 1
    await client.start()
    return client


async def test_a_name_that_is_renamed_over_is_never_missing(cluster):
    """The file that a stat has found loses its last name before its objects are asked: there is another one by now.

    Source: retry_estale() in Linux; seeds 114, 213, 1285
    """
    for caching in (0, 1):
        async with cluster(clients=2, caching=caching) as c:
            await c.a.write("/x", b"old")
            await c.a.write("/y", b"newer")
            asked = c.net.hold("Enqueue" if caching else "ObjectGetattr", source=c.b, times=1)
            stat = asyncio.get_running_loop().create_task(c.b.unrecorded(c.b.fs.stat("/x")))
            await asked.caught()
            await c.a.rename("/y", "/x")
            await c.mds.commit()
            await asyncio.sleep(2.0)  # the old file's objects are destroyed
            asked.release()
            assert (await stat).size == 5


async def test_a_read_without_cache_sees_that_the_file_goes_on_in_a_cache(cluster):
    """The OST has less of the file than somebody else has in his cache: the hole before that is no end of the file.

    Source: seed 1147
    """
    for stripes in (1, 2):
        async with cluster(clients=1, oss=2, stripe_count=stripes, stripe_size=65536) as c:
            b = await add_caching_client(c, "b")
            await c.a.write("/f", b"start")
            file = await b.open("/f")
            if stripes == 2:
                await c.a.write_at("/f", 65530, b"filled")
            await write_behind(b, file, 131072 * stripes, 131072)
            if stripes == 1:
                assert await c.a.unrecorded(read_at(c.a.fs, "/f", 0, 8)) == b"start" + bytes(3)
            else:  # of the first object there is all that was asked for, of the second one nothing
                assert await c.a.unrecorded(read_at(c.a.fs, "/f", 65530, 100)) == b"filled" + bytes(94)
            await file.close()


async def write_behind(client: Any, file: Any, offset: int, object_offset: int) -> None:
    """Write into the cache, under a lock that reaches no further, so that nobody meets it who reads elsewhere."""
    index, obj = file.file.layout.stripes[0]
    locks = next(imp for imp in client.imports if imp.target.endswith(f"OST{index:04x}")).locks
    resource, end = resource_of(obj), object_offset + 4095
    locks.release(await client.unrecorded(locks.take_extent(resource, object_offset, end, PW, flags=NO_EXPANSION)))
    await file.pwrite(b"behind", offset)


async def read_at(fs: Any, path: str, offset: int, size: int) -> bytes:
    async with await fs.open(path) as file:
        return bytes(await file.pread(size, offset))


async def test_a_size_that_is_seen_while_a_truncation_is_under_way_is_the_old_or_the_new_one(cluster):
    """Not what the OST has, which is older than either: the end of the file was in the cache of who cuts it off.

    Source: seed 30
    """
    async with cluster(clients=2, caching=1) as c:
        await c.a.write("/f", bytes(1000))
        await c.a.unrecorded(c.a.fs.sync())
        file = await c.b.unrecorded(c.b.fs.open("/f", os.O_RDWR))
        await c.b.unrecorded(file.pwrite(bytes(1000), 1000))
        c.net.slow("Punch", delay_s=2.0)
        cut = asyncio.get_running_loop().create_task(c.b.unrecorded(file.truncate(100)))
        await asyncio.sleep(1.0)
        assert (await c.a.unrecorded(c.a.fs.stat("/f"))).size in (100, 2000)
        await cut
        assert (await c.a.unrecorded(c.a.fs.stat("/f"))).size == 100
        await c.b.unrecorded(file.close())
        await c.b.truncate("/f", 0)
        await c.b.write("/f", b"known")


async def test_what_a_lock_has_shown_survives_its_author_and_the_server(cluster):
    """A truncation is answered and its lock given back, unasked, before it is durable: who looks next waits until it is.

    Source: sync_lock_cancel, protocol-facts 5.11; seed 202057
    """
    for caching in (0, 1):
        async with cluster(clients=2, caching=caching, stripe_count=1) as c:
            c.expect("recovery.evicting", "client.evicted")
            await c.a.write("/f", b"x" * 100)
            await c.a.unrecorded(c.a.fs.sync())
            (index, _), *_ = (await c.a.unrecorded(c.a.fs.getstripe("/f"))).stripes
            ost = c.oss[index]
            await ost.hold_commits()
            await c.a.truncate("/f", 50)
            await drop_locks(c, c.a, kind="OST")
            look = asyncio.get_running_loop().create_task(c.b.unrecorded(read_at(c.b.fs, "/f", 0, 200)))
            await asyncio.sleep(1.0)
            assert not look.done()
            await ost.release_commits()
            assert await look == b"x" * 50
            await c.a.kill()
            await ost.kill()
            await ost.start()
            assert await c.b.unrecorded(read_at(c.b.fs, "/f", 0, 200)) == b"x" * 50


async def test_what_a_truncation_has_shown_stays_while_its_author_waits_for_the_answer(cluster):
    """The OST has cut the file off, the author has not heard of it, and is asked for the size: he says the old one.

    Source: seed 803500
    """
    async with cluster(clients=2, caching=1, stripe_count=1) as c:
        file = await c.a.unrecorded(c.a.fs.open("/f", os.O_CREAT | os.O_RDWR, 0o644))
        await c.a.unrecorded(file.pwrite(b"x" * 9000, 0))
        for reply in (False, True):
            held = c.net.hold("Punch", reply=reply, times=1)
            cut = asyncio.get_running_loop().create_task(c.a.unrecorded(file.truncate(50)))
            await held.caught()
            for _ in range(3):
                assert (await c.b.unrecorded(c.b.fs.stat("/f"))).size == (50 if reply else 9000)
                await asyncio.sleep(0.1)
            held.release()
            await cut
            assert (await c.b.unrecorded(c.b.fs.stat("/f"))).size == 50
            await c.a.unrecorded(file.pwrite(b"x" * 9000, 0))
        await c.a.unrecorded(file.close())
        await c.a.unrecorded(c.a.fs.unlink("/f"))


async def test_what_left_with_its_lock_is_not_believed_after_a_restart(cluster):
    """The answer to the write with which a lock went is lost with the server: its author replays the lock, and is asked.

    Others have had locks since. Source: coherence seed 30083
    """
    async with cluster(clients=2, caching=1, stripe_count=1) as c:
        await c.a.write("/f", b"known")
        file = await c.a.unrecorded(c.a.fs.open("/f", os.O_RDWR))
        await c.a.unrecorded(file.pwrite(b"x" * 9000, 0))
        (index, _), *_ = (await c.a.unrecorded(c.a.fs.getstripe("/f"))).stripes
        c.net.drop("Write", reply=True, times=1)
        await c.b.unrecorded(c.b.fs.truncate("/f", 50))
        held = c.net.hold("Write", source=c.a, times=1)
        await c.oss[index].kill()
        await c.oss[index].start()
        await held.caught()
        await drop_locks(c, c.b, kind="OST")
        assert (await c.b.unrecorded(c.b.fs.stat("/f"))).size == 50
        held.release()
        await c.a.unrecorded(file.close())
        await c.b.truncate("/f", 0)
        await c.b.write("/f", b"known")


async def test_a_glimpse_under_a_lock_that_has_left_asks_under_the_others(cluster):
    """The write with which one lock goes is executed, not durable yet: what its author says under that lock is old, and was
    all that he was asked. What he had written under another lock was not seen.  Source: coherence seeds 60286, 60429
    """
    async with cluster(clients=2, oss=1, caching=1, stripe_count=1, commit_interval_s=1000.0, sync_lock_cancel="always") as c:
        await c.a.write("/f", b"start" * 100)
        await c.a.unrecorded(c.a.fs.sync())
        await drop_locks(c, c.a, kind="OST")
        file = await c.b.open("/f")
        await write_behind(c.b, file, 65536, 65536)
        locks = c.b.fs.connections.lov.oscs[0].locks
        resource = resource_of(file.file.layout.stripes[0][1])
        locks.release(await c.b.unrecorded(locks.take_extent(resource, 0, 4095, PW, flags=NO_EXPANSION)))
        await file.pwrite(b"again", 0)
        await c.replay_barrier(c.oss[0])
        written = c.net.hold("Write", reply=True, times=1)
        reading = asyncio.get_running_loop().create_task(c.a.unrecorded(read_at(c.a.fs, "/f", 0, 10)))
        await written.caught()
        assert (await c.a.unrecorded(c.a.fs.stat("/f"))).size == 65536 + len("behind")
        written.release()
        c.oss[0].release_commits()
        assert await reading == b"againstart"
        await file.close()
