"""Clients that cache data: nobody reads anything old, what was accepted finds room, and what a crash takes is reported.

Source: lustre/tests/sanityn.sh 1, 2, 5, 9, 10, 15, 16, 26, 39, 103, 105; recovery-small.sh 18, 24; protocol-facts 5.5,
5.6
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from file_model import FileModel
from steps import EVICTION, refused, soon

from lustrelite.client.file import File
from lustrelite.wire.mdt import StripeHint

LOST = (*EVICTION, "client.data_lost")
KIB = 1024
MIB = 1 << 20


@contextlib.asynccontextmanager
async def caching(cluster: Any, **options: Any) -> AsyncIterator[Any]:
    """A cluster whose clients cache. What these scenarios write is theirs to check, not the oracle's: it is removed."""
    async with cluster(caching=1, **options) as c:
        yield c
        await c.settle()
        for client in c.clients.values():
            for file in list(client.fs.connections.open_files.all()) if client.alive else ():
                await client.unrecorded(file.close())
        client = next(client for client in c.clients.values() if client.alive)
        for name in await client.unrecorded(client.fs.readdir("/")):
            await client.unrecorded(client.fs.unlink("/" + name))


async def put(client: Any, path: str, data: bytes) -> None:
    await client.unrecorded(client.fs.write_file(path, data))


async def put_at(client: Any, path: str, offset: int, data: bytes) -> None:
    file = await opened(client, path)
    await client.unrecorded(file.pwrite(data, offset))
    await client.unrecorded(file.close())


async def get(client: Any, path: str) -> bytes:
    return bytes(await client.unrecorded(client.fs.read_file(path)))


class Sent:
    """What a client sends to the OSTs inside the `with`."""

    def __init__(self, client: Any, *names: str) -> None:
        self.imports = [imp for imp in client.imports if "-OST" in imp.target]
        self.wanted = names or ("Read", "Write", "Punch", "Enqueue", "OstSync")
        self.names: dict[str, int] = {}

    def __enter__(self) -> Mapping[str, int]:
        self.before = [dict(imp.calls) for imp in self.imports]
        return self.names

    def __exit__(self, *_: object) -> None:
        for imp, before in zip(self.imports, self.before, strict=True):
            for name, count in imp.calls.items():
                more = count - before.get(name, 0)
                if more and name in self.wanted:
                    self.names[name] = self.names.get(name, 0) + more


async def opened(client: Any, path: str, flags: int = os.O_RDWR | os.O_CREAT, stripes: int = 1) -> File:
    file = await client.unrecorded(client.fs.open(path, flags, 0o644, StripeHint(stripes, 64 * KIB, -1)))
    assert isinstance(file, File)
    return file


def on_disk(c: Any, file: File) -> bytes:
    """What the OST has of a file with one object."""
    assert file.layout is not None
    ((index, obj),) = file.layout.stripes
    return bytes(c.disks.object_disk(f"lustre-OST{index:04x}").files.get(obj, b""))


def ost_of(c: Any, file: File) -> Any:
    assert file.layout is not None
    return c.oss[file.layout.stripes[0][0]]


# ---------------------------------------------------------------------------------------------------- coherence


async def test_what_one_client_wrote_another_reads_and_only_then_it_is_written_back(cluster: Any) -> None:
    async with caching(cluster, write_back_after_s=1000.0) as c:
        file = await opened(c.a, "/f")
        with Sent(c.a) as sent:
            for number in range(100):
                await c.a.unrecorded(file.pwrite(bytes([number]) * 1000, 1000 * number))
        assert sent == {} and on_disk(c, file) == b""
        other = await opened(c.b, "/f")
        assert await c.b.unrecorded(other.pread(1000, 42_000)) == bytes([42]) * 1000
        assert len(on_disk(c, file)) == 100_000, "all that the lock covered"
        await c.b.unrecorded(other.pwrite(b"mine", 10))
        assert await c.a.unrecorded(file.pread(20, 0)) == bytes(10) + b"mine" + bytes(6)


async def test_what_is_cached_is_read_without_the_ost_until_somebody_writes(cluster: Any) -> None:
    async with caching(cluster) as c:
        data = os.urandom(300 * KIB)
        await put(c.a, "/f", data)
        readers = [await opened(client, "/f") for client in (c.a, c.b)]
        for client, file in zip((c.a, c.b), readers, strict=True):
            assert await client.unrecorded(file.read()) == data
            with Sent(client) as sent:
                for place in range(0, 300 * KIB, 5000):
                    assert await client.unrecorded(file.pread(4096, place)) == data[place : place + 4096]
            assert sent == {}, "both have it cached at the same time"
        await put_at(c.b, "/f", 5, b"new")
        assert await c.a.unrecorded(readers[0].pread(10, 0)) == data[:5] + b"new" + data[8:10]


@pytest.mark.parametrize("stripes", [1, 2])
async def test_two_clients_writing_between_each_others_bytes(cluster: Any, stripes: int) -> None:
    """Writes smaller than a page of neighbouring ranges.  Source: sanityn.sh test_10a, 10b, 16a (fsx on two mounts)"""
    async with caching(cluster) as c:
        rng = random.Random(c.seed)
        model = FileModel()
        files = [await opened(client, "/f", stripes=stripes) for client in (c.a, c.b)]
        for _ in range(120):
            number = rng.randrange(2)
            client, file = (c.a, c.b)[number], files[number]
            offset, size = rng.randrange(200 * KIB), rng.choice((1, 100, 5000, 70_000))
            kind = rng.randrange(5)
            if kind < 2:
                data = rng.randbytes(size)
                await client.unrecorded(file.pwrite(data, offset))
                model.write(offset, data)
            elif kind == 2:
                await client.unrecorded(file.truncate(offset))
                model.truncate(offset)
            elif kind == 3:
                await client.unrecorded(file.punch(offset, offset + size))
                model.punch(offset, offset + size)
            else:
                assert (await client.unrecorded(file.fstat())).size == len(model)
            assert await client.unrecorded(file.pread(size, offset)) == model[offset : offset + size]
        for client, file in zip((c.a, c.b), files, strict=True):
            assert await client.unrecorded(file.read()) == model


async def test_a_client_without_a_cache_sees_what_others_have_dirty(cluster: Any) -> None:
    async with caching(cluster, clients=1, write_back_after_s=1000.0) as c:
        c.tunables.caching = 0
        plain = await c.add_client("plain")
        assert plain.fs.connections.lov.locked is None
        file = await opened(c.a, "/f")
        await c.a.unrecorded(file.pwrite(b"dirty", 0))
        assert (await plain.unrecorded(plain.fs.stat("/f"))).size == 5
        assert await get(plain, "/f") == b"dirty"
        await put_at(plain, "/f", 1, b"XX")
        assert await c.a.unrecorded(file.read()) == b"dXXty"


@pytest.mark.parametrize("direct", [0, 1], ids=["cached reader", "direct reader"])
async def test_direct_io_and_cached_io_of_two_mounts(cluster: Any, direct: int) -> None:
    """Source: sanityn.sh test_16d, 16e"""
    async with caching(cluster) as c:
        file = await opened(c.a, "/f")
        other = await opened(c.b, "/f", os.O_RDWR | os.O_DIRECT)
        for number in range(20):
            writer, reader = ((c.a, file), (c.b, other))[:: 1 if direct else -1]
            data = bytes([number]) * 8192
            await writer[0].unrecorded(writer[1].pwrite(data, 4096 * number))
            assert await reader[0].unrecorded(reader[1].pread(8192, 4096 * number)) == data
        with Sent(c.b) as sent:
            await c.b.unrecorded(other.pread(4096, 0))
            await c.b.unrecorded(other.pread(4096, 0))
        assert sent["Read"] == 2, "never from a cache"


async def test_appends_of_many_clients_never_overlap_and_leave_no_hole(cluster: Any) -> None:
    """Source: sanityn.sh test_9a, 9b"""
    async with caching(cluster, clients=4) as c:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        record = 700

        async def append(client: Any, number: int) -> None:
            file = await opened(client, "/log", flags, stripes=2)
            for step in range(25):
                await client.unrecorded(file.pwrite(bytes([number, step]) * (record // 2), 0))
            await client.unrecorded(file.close())

        await asyncio.gather(*(append(client, number) for number, client in enumerate(c.clients.values())))
        data = bytes(await get(c.a, "/log"))
        records = [data[place : place + record] for place in range(0, len(data), record)]
        assert len(data) == 100 * record and all(found == found[:2] * (record // 2) for found in records)
        for number in range(4):
            assert [found[1] for found in records if found[0] == number] == list(range(25)), "each in its order"


# ---------------------------------------------------------------------------------------------------- sizes and times


async def test_others_see_size_blocks_and_times_of_what_is_only_cached(cluster: Any) -> None:
    """Source: sanityn.sh test_1, 2, 4; 103"""
    async with caching(cluster, write_back_after_s=1000.0) as c:
        file = await opened(c.a, "/f", stripes=2)
        await c.a.unrecorded(file.pwrite(b"x" * 100_000, 50_000))
        mine = await c.a.unrecorded(file.fstat())
        with Sent(c.a, "Write") as written:
            found = await c.b.unrecorded(c.b.fs.stat("/f"))
        assert (found.size, found.blocks, found.mtime, found.ctime) == (150_000, mine.blocks, mine.mtime, mine.mtime)
        assert written == {}, "asking is no reason to write back"
        c.saw("lock.glimpsed")
        await c.a.unrecorded(file.pwrite(b"y", 200_000))
        assert (await c.b.unrecorded(c.b.fs.stat("/f"))).size == 200_001
        await c.a.unrecorded(file.truncate(10))
        assert (await c.b.unrecorded(c.b.fs.stat("/f"))).size == 10
        with Sent(c.b) as asked:
            await c.b.unrecorded(c.b.fs.stat("/f"))
            await c.b.unrecorded(c.b.fs.stat("/f"))
        assert asked == {"Enqueue": 4}, "each OST each time, as long as somebody else may write"


async def test_the_size_of_a_file_that_nobody_writes_is_asked_once(cluster: Any) -> None:
    async with caching(cluster) as c:
        await put(c.a, "/f", b"x" * 1000)
        await c.a.unrecorded(c.a.fs.sync())
        await asyncio.sleep(15)  # a write lock that lies about is given back when it is asked for
        await c.b.unrecorded(c.b.fs.stat("/f"))
        await asyncio.sleep(1)
        with Sent(c.b) as first:
            assert (await c.b.unrecorded(c.b.fs.stat("/f"))).size == 1000
        with Sent(c.b) as again:
            assert (await c.b.unrecorded(c.b.fs.stat("/f"))).size == 1000
            assert await get(c.b, "/f") == b"x" * 1000
            assert await get(c.b, "/f") == b"x" * 1000
        assert first.get("Enqueue", 0) <= 1 and again == {"Read": 1}, "with the size came the lock"


async def test_times_that_were_set_stand_against_older_data_that_comes_later(cluster: Any) -> None:
    """Source: sanityn.sh test_26b, 39b"""
    async with caching(cluster, write_back_after_s=1000.0) as c:
        file = await opened(c.a, "/f")
        await c.a.unrecorded(file.pwrite(b"x" * 100, 0))
        await c.b.unrecorded(c.b.fs.utimes("/f", 5_000_000_000, 6_000_000_000))
        assert (await c.b.unrecorded(c.b.fs.stat("/f"))).mtime == 6_000_000_000
        await c.a.unrecorded(file.fsync())
        await c.a.unrecorded(file.close())
        for client in (c.a, c.b):
            assert (await client.unrecorded(client.fs.stat("/f"))).mtime == 6_000_000_000
        again = await opened(c.a, "/f")
        await c.a.unrecorded(again.pwrite(b"y", 0))
        assert (await c.b.unrecorded(c.b.fs.stat("/f"))).mtime == again.mtime > 6_000_000_000


# ---------------------------------------------------------------------------------------------------- durability


async def test_what_was_not_synced_dies_with_its_client_and_what_was_survives_everything(cluster: Any) -> None:
    async with caching(cluster, write_back_after_s=1000.0, commit_interval_s=1000.0) as c:
        synced, lost = await opened(c.a, "/synced"), await opened(c.a, "/lost")
        await c.a.unrecorded(synced.pwrite(b"s" * 100_000, 0))
        await c.a.unrecorded(lost.pwrite(b"l" * 100_000, 0))
        await c.a.unrecorded(synced.fsync())
        await c.mds.commit()
        c.a.kill(silent=True)
        for server in c.oss:
            server.power_cut()
            await server.start()
        c.expect(*EVICTION, "lock.expired")
        assert await get(c.b, "/synced") == b"s" * 100_000
        assert await get(c.b, "/lost") == b""


async def test_written_back_data_that_the_ost_loses_is_replayed(cluster: Any) -> None:
    """It was answered before it was durable: the client keeps a copy as long as that."""
    async with caching(cluster) as c:
        files = [await opened(c.a, f"/f{n}") for n in range(8)]
        for server in c.oss:
            await c.replay_barrier(server)
        for number, file in enumerate(files):
            await c.a.unrecorded(file.pwrite(bytes([number]) * 200_000, number))
        for number in range(8):
            assert await c.b.unrecorded(c.b.fs.stat(f"/f{number}"))
        await asyncio.sleep(c.tunables.write_back_after_s + 1)
        for file in files:
            assert len(on_disk(c, file)) > 200_000 - 1
        for server in c.oss:
            server.kill()
            c.disks.object_disk(server.targets[0]).power_cut()
        assert all(not on_disk(c, file) for file in files)
        for server in c.oss:
            await server.start()
        await c.settle()
        c.saw("import.replayed", client=c.a, op="Write")
        for number, file in enumerate(files):
            assert on_disk(c, file) == bytes(number) + bytes([number]) * 200_000
            assert await get(c.b, f"/f{number}") == bytes(number) + bytes([number]) * 200_000


async def test_a_lock_goes_to_the_next_when_what_was_written_under_it_is_durable(cluster: Any) -> None:
    """Its author may not have heard that it was written: after a crash he sends it again, behind what the next has written.

    Source: sync_lock_cancel, protocol-facts 5.11
    """
    async with caching(cluster, oss=1, write_back_after_s=1000.0) as c:
        c.expect("commit.waiting")
        first, second = await opened(c.a, "/f"), await opened(c.b, "/f")
        await c.a.unrecorded(first.pwrite(b"old" * 100, 0))
        await c.oss[0].hold_commits()
        lost = c.net.drop("Write", reply=True, source=c.oss[0], times=1)
        writing = asyncio.ensure_future(c.b.unrecorded(second.pwrite(b"new", 0)))
        await lost.caught()
        await asyncio.sleep(0.5)
        assert not writing.done()
        c.oss[0].power_cut()
        await c.oss[0].start()
        await writing
        await c.b.unrecorded(second.fsync())
        assert on_disk(c, first) == b"new" + b"old" * 99


async def test_dirty_data_and_its_grant_live_through_a_restart_of_the_ost(cluster: Any) -> None:
    async with caching(cluster, oss=1, write_back_after_s=1000.0) as c:
        file = await opened(c.a, "/f")
        data = os.urandom(500_000)
        await c.a.unrecorded(file.pwrite(data, 0))
        grants = c.oss[0].target().grants
        (export,) = [export for export in grants.held if export.uuid == c.a.uuid]
        held = grants.held[export]
        await c.fail(c.oss[0])
        grants = c.oss[0].target().grants
        (export,) = [export for export in grants.held if export.uuid == c.a.uuid]
        assert grants.held[export] == held == c.a.fs.connections.lov.oscs[0].data.grant.total
        assert await get(c.b, "/f") == data
        c.never_saw("client.evicted")


async def test_an_unmount_writes_everything_back(cluster: Any) -> None:
    async with caching(cluster, write_back_after_s=1000.0) as c:
        for number in range(10):
            await put(c.a, f"/f{number}", bytes([number]) * 50_000)
        await c.a.unmount()
        for number in range(10):
            assert await get(c.b, f"/f{number}") == bytes([number]) * 50_000
        c.never_saw("client.evicted")


async def test_dirty_data_is_written_back_by_and_by(cluster: Any) -> None:
    async with caching(cluster) as c:
        file = await opened(c.a, "/f")
        await c.a.unrecorded(file.pwrite(b"x" * 1000, 0))
        await asyncio.sleep(c.tunables.write_back_after_s - 1)
        assert on_disk(c, file) == b""
        await asyncio.sleep(2)
        assert on_disk(c, file) == b"x" * 1000


# ---------------------------------------------------------------------------------------------------- space


async def test_two_writers_fill_an_ost_and_each_learns_it_at_the_write(cluster: Any) -> None:
    """What was accepted is there in the end, to the last byte.  Source: sanityn.sh test_15"""
    async with caching(cluster, oss=1) as c:
        c.disks.object_disk("lustre-OST0000").capacity_bytes = 24 * MIB
        for server in c.oss:
            await c.fail(server)  # it sees how large its disk is now

        async def fill(client: Any, path: str) -> int:
            file = await opened(client, path)
            written = 0
            with refused(errno.ENOSPC):
                while True:
                    await client.unrecorded(file.pwrite(bytes([1 + written % 250]) * 50_000, 50_000 * written))
                    written += 1
            await client.unrecorded(file.fsync())
            await client.unrecorded(file.close())
            return written

        counts = await asyncio.gather(fill(c.a, "/a"), fill(c.b, "/b"))
        assert 18 * MIB < sum(counts) * 50_000 <= 24 * MIB
        for path, written in zip(("/a", "/b"), counts, strict=True):
            data = await get(c.b, path)
            for number in range(written):
                assert data[50_000 * number : 50_000 * (number + 1)] == bytes([1 + number % 250]) * 50_000
        await c.a.unrecorded(c.a.fs.unlink("/a"))
        await c.b.unrecorded(c.b.fs.unlink("/b"))
        await asyncio.sleep(5)
        assert not c.disks.object_disk("lustre-OST0000").files


async def test_what_a_client_was_promised_is_free_again_when_it_is_gone(cluster: Any) -> None:
    async with caching(cluster, oss=1, clients=3) as c:
        grants = c.oss[0].target().grants
        assert len(grants.held) == 3
        await c.a.unmount()
        assert len(grants.held) == 2
        c.expect(*EVICTION)
        await c.evict(c.b, c.oss[0])
        assert len(grants.held) == 1
        assert grants.promised == sum(grants.held.values())
        await asyncio.sleep(2 * c.tunables.ping_interval_s)
        await put(c.b, "/f", b"x" * 100_000)
        assert len(grants.held) == 2, "it came back as somebody new"


# ---------------------------------------------------------------------------------------------------- eviction


async def test_an_evicted_client_forgets_clean_pages_and_reports_dirty_ones(cluster: Any) -> None:
    """Source: recovery-small.sh test_18b, 24a"""
    async with caching(cluster, oss=1, write_back_after_s=1000.0) as c:
        c.expect(*LOST)
        await put(c.a, "/clean", b"old" * 1000)
        await c.a.unrecorded(c.a.fs.sync())
        clean = await opened(c.a, "/clean")
        assert await c.a.unrecorded(clean.read()) == b"old" * 1000
        dirty = await opened(c.a, "/dirty")
        await c.a.unrecorded(dirty.pwrite(b"x" * 5000, 0))
        await c.evict(c.a, c.oss[0])
        await put(c.b, "/clean", b"new")
        with refused(errno.EIO):
            await c.a.unrecorded(dirty.fsync())
        await c.a.unrecorded(dirty.fsync())
        assert await c.a.unrecorded(clean.read(100)) == b"" and await c.a.unrecorded(clean.pread(10, 0)) == b"new"
        assert await get(c.b, "/dirty") == b""
        c.saw("client.data_lost", bytes=5000)
        await c.a.unrecorded(dirty.pwrite(b"again", 0))
        await c.a.unrecorded(dirty.fsync())
        assert await get(c.b, "/dirty") == b"again"


@pytest.mark.parametrize("writer", ["open", "closed"])
async def test_a_loss_is_told_to_whoever_asks_for_the_file_to_be_durable(cluster: Any, writer: str) -> None:
    """fsync through another open file; if its writer has gone, through one that is opened later.  Source: errseq_t"""
    async with caching(cluster, oss=1, write_back_after_s=1000.0) as c:
        c.expect(*LOST)
        await put(c.a, "/f", b"old")
        await c.a.unrecorded(c.a.fs.sync())
        other = await opened(c.a, "/f")
        file = await opened(c.a, "/f")
        await c.a.unrecorded(file.pwrite(b"new", 0))
        if writer == "closed":
            await c.a.unrecorded(file.close())
            await c.a.unrecorded(other.close())
        await c.evict(c.a, c.oss[0])
        await put(c.b, "/g", b"")
        await c.until_saw("client.data_lost", on=c.a)
        untold = c.a.fs.connections.open_files.untold
        assert len(untold) == (writer == "closed")
        if writer == "closed":
            looks = await opened(c.a, "/f")
            await c.a.unrecorded(looks.pwrite(b"n", 0))
            await c.a.unrecorded(looks.close())  # who has not asked is not told
            file, other = await opened(c.a, "/f"), await opened(c.a, "/f")
        for loser in (other, file):
            with refused(errno.EIO):
                await c.a.unrecorded(loser.fsync())
            await c.a.unrecorded(loser.fsync())
        assert not untold
        later = await opened(c.a, "/f")
        await c.a.unrecorded(later.fsync())
        for each in (later, other, file):
            await c.a.unrecorded(each.close())


async def test_a_client_whose_ost_is_switched_off_serves_nothing_of_it(cluster: Any) -> None:
    """Source: recovery-small.sh test_18a"""
    async with caching(cluster, oss=1) as c:
        await put(c.a, "/f", b"x" * 1000)
        await c.a.unrecorded(c.a.fs.sync())
        file = await opened(c.a, "/f")
        assert await c.a.unrecorded(file.pread(10, 0)) == b"x" * 10
        (imp,) = [imp for imp in c.a.imports if "-OST" in imp.target]
        imp.deactivate()
        await asyncio.sleep(c.tunables.lock_callback_s)
        with refused(errno.EIO):
            await c.a.unrecorded(file.pread(10, 0))
        imp.activate()
        await c.settle()
        assert await c.a.unrecorded(file.pread(10, 0)) == b"x" * 10


async def test_a_stuck_write_back_costs_its_client_and_not_who_waits_for_the_lock(cluster: Any) -> None:
    async with caching(cluster, oss=1, write_back_after_s=1000.0) as c:
        c.expect(*LOST, "lock.expired")
        file = await opened(c.a, "/f")
        await c.a.unrecorded(file.pwrite(b"x" * 1000, 0))
        rule = c.net.drop("Write", to=c.oss[0], source=c.a, times=-1)
        reading = soon(get(c.b, "/f"))
        began = c.loop.time()
        assert await reading == b""
        assert c.loop.time() - began < 3 * c.tunables.lock_callback_s + 10
        rule.lift()
        await c.settle()
        with refused(errno.EIO):
            await c.a.unrecorded(file.fsync())


@pytest.mark.parametrize("what", ["read", "read past the cache", "write", "write through", "truncate", "append", "size"])
async def test_who_waits_for_a_dead_ost_gives_the_locks_of_others_back(cluster: Any, what: str) -> None:
    """The OST that lives must not evict him for it."""
    async with caching(cluster, write_back_after_s=1000.0) as c:
        unit = 64 * KIB
        await c.a.unrecorded(c.a.fs.setstripe("/f", 2, unit, 0))
        flags = os.O_APPEND if what == "append" else os.O_DSYNC if what == "write through" else 0
        flags |= os.O_DIRECT if what == "read past the cache" else 0
        file = await opened(c.a, "/f", os.O_RDWR | flags)
        await put_at(c.b, "/f", 0, b"o" * 2 * unit)
        await c.b.unrecorded(c.b.fs.sync())
        other = await opened(c.b, "/f")
        if what != "append":
            await c.a.unrecorded(file.pread(2 * unit, 0))  # the locks are there
        c.oss[1].kill()
        works = {
            "read": lambda: file.pread(2 * unit, 0),
            "read past the cache": lambda: file.pread(2 * unit, 0),
            "write": lambda: file.pwrite(b"n" * 2 * unit, 0),
            "write through": lambda: file.pwrite(b"n" * 2 * unit, 0),
            "truncate": lambda: file.truncate(10),
            "append": lambda: file.pwrite(b"n" * 2 * unit, 0),
            "size": lambda: file.read(-1),
        }
        locked = c.a.fs.connections.lov.locked
        for data in locked.caches.values():  # nothing is cached any more, and all of it must be asked for
            for cached in data.objects.values():
                cached.pages.cut(0, 1 << 40)
        doing = soon(c.a.unrecorded(works[what]()))
        await asyncio.sleep(0.5)
        writing = soon(c.b.unrecorded(other.pwrite(b"w", 0)))
        await asyncio.sleep(3 * c.tunables.lock_callback_s)
        c.never_saw("client.evicted")
        await c.oss[1].start()
        result = await doing
        await writing
        whole = await get(c.b, "/f")
        rest = b"o" * (2 * unit - 1)
        if what in ("read", "read past the cache", "size"):
            assert result[1:] == rest and whole == b"w" + rest
        elif what == "append":
            assert whole == b"w" + rest + b"n" * 2 * unit
        elif what == "truncate":
            assert whole in (b"w" + b"o" * 9, b"o" * 10)
        else:
            assert whole[1:] == b"n" * (2 * unit - 1)
        c.never_saw("client.evicted")


# ---------------------------------------------------------------------------------------------------- how much is sent


async def test_a_file_is_read_ahead_and_written_in_large_rpcs(cluster: Any) -> None:
    async with caching(cluster) as c:
        file = await opened(c.a, "/f", stripes=2)
        data = os.urandom(4 * MIB)
        with Sent(c.a) as sent:
            for place in range(0, len(data), 16 * KIB):
                await c.a.unrecorded(file.pwrite(data[place : place + 16 * KIB], place))
            await c.a.unrecorded(file.fsync())
        assert sent["Write"] == 4 and sent["Enqueue"] == 2
        other = await opened(c.b, "/f")
        with Sent(c.b) as sent:
            for place in range(0, len(data), 16 * KIB):
                assert await c.b.unrecorded(other.pread(16 * KIB, place)) == data[place : place + 16 * KIB]
        assert sent["Read"] < 40 and sent["Enqueue"] <= 4


async def test_the_buffer_of_a_cancelled_read_is_the_callers_again(cluster: Any) -> None:
    """Half of the data has landed in it when the caller gives up; the rest arrives when he uses it for something else."""
    async with cluster(clients=1, oss=1) as c:
        await c.a.write("/f", b"x" * MIB)
        async with await c.a.fs.open("/f", os.O_RDONLY | os.O_DIRECT) as file:
            buffer = bytearray(MIB)
            reading = soon(file.pread_into(buffer, 0))
            while buffer[0] != ord("x"):
                await asyncio.sleep(1e-6)
            assert buffer[-1] == 0, "not all of it"
            reading.cancel()
            await asyncio.wait([reading])
            buffer[:] = b"y" * MIB
            await asyncio.sleep(5.0)
            assert buffer == b"y" * MIB
            assert await file.pread(MIB, 0) == b"x" * MIB
