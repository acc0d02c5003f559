"""Data, sizes and times of files that two mounts write and read: one file, whoever caches.

Source: lustre/tests/sanityn.sh; the numbers are its tests.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import stat
from collections.abc import AsyncIterator
from typing import Any

import pytest
from file_model import FileModel
from mounts import Mount, clear_unused, drop_locks, mounts, some_cache, two_mounts, who_caches
from steps import soon

from lustrelite.errors import OpError
from lustrelite.mdt import namespace
from lustrelite.wire.ost import Punch, Read

UNIT = 65536  # the stripe size of most files here
YEAR_NS = 365 * 86_400 * 10**9
CREATE = os.O_RDWR | os.O_CREAT


def same(found: bytes, expected: bytes, *where: Any) -> None:
    """Equal, or say where not, and not all of it."""
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        at = next((place for place, (x, y) in pairs if x != y), min(len(found), len(expected)))
        lengths = f"{len(found)} bytes, not {len(expected)}"
        raise AssertionError(f"{where}: {lengths}; from {at} on {found[at : at + 16]!r}, not {expected[at : at + 16]!r}")


async def same_everywhere(c: Any, path: str, expected: bytes) -> None:
    """Both mounts read it, know its size, and so does one that has nothing cached."""
    for mount in (*mounts(c), Mount(await c.add_client())):
        same(await mount.content(path), expected, mount)
        assert (await mount.stat(path)).size == len(expected)


# sizes and data -------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 2g")
@who_caches
async def test_blocks_of_a_synchronous_write_are_the_same_on_both_mounts(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        file = await a.open("/u/f", CREATE | os.O_SYNC)
        for number in range(2):
            await file.pwrite(bytes(1 << 20), number << 20)
        await file.close()
        blocks = (await a.stat("/u/f")).blocks
        await drop_locks(c, c.a, kind="OST")
        assert (await b.stat("/u/f")).blocks == (await a.stat("/u/f")).blocks == blocks == (2 << 20) // 512


@pytest.mark.lustre("SN 4")
@who_caches
async def test_fstat_says_the_same_on_both_mounts(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        of_a = await a.open("/u/f", CREATE)
        of_b = await b.open("/u/f")
        for number in range(3):
            assert (await of_a.fstat()).size == (await of_b.fstat()).size == 5 * number
            await asyncio.sleep(1)
            await of_a.pwrite(b"hello", 5 * number)
            one, other = await of_a.fstat(), await of_b.fstat()
            assert (one.size, one.mtime, one.blocks) == (other.size, other.mtime, other.blocks)
            assert one.size == 5 * (number + 1)
        await of_a.close()
        await of_b.close()


@pytest.mark.lustre("SN 5")
@who_caches
async def test_a_file_made_on_one_mount_is_truncated_on_the_other(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.create("/u/f")
        assert (await a.stat("/u/f")).size == 0
        await b.truncate("/u/f", 100)
        assert (await a.stat("/u/f")).size == 100
        await same_everywhere(c, "/u/f", bytes(100))
        await a.write_at("/u/f", 50, b"x" * 100)
        await b.truncate("/u/f", 60)
        await a.truncate("/u/f", 70)
        await same_everywhere(c, "/u/f", bytes(50) + b"x" * 10 + bytes(10))


@pytest.mark.lustre("SN 9a")
@who_caches
async def test_appends_by_turns(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, *_):
        both = mounts(c)
        await both[1].write_file("/u/f", b"")
        for number, letter in enumerate("abcdefghijkl"):
            await both[number % 2].write_at("/u/f", 0, letter.encode(), os.O_WRONLY | os.O_APPEND)
        await same_everywhere(c, "/u/f", b"abcdefghijkl")


@pytest.mark.lustre("SN 9a")
@pytest.mark.parametrize("stripes", [1, 2])
async def test_appends_of_both_mounts_at_once_leave_no_hole(cluster: Any, stripes: int) -> None:
    """They cache: without locks nobody keeps others from the end of the file."""
    async with two_mounts(cluster) as (c, a, b):
        await a.setstripe("/u/f", stripes, UNIT)
        record = 9_000

        async def append(mount: Mount, letter: bytes) -> None:
            file = await mount.open("/u/f", os.O_WRONLY | os.O_APPEND)
            for number in range(30):
                await file.pwrite(letter + b"%02d" % number + letter * (record - 3), 0)
                if number % 7 == 0:
                    await asyncio.sleep(0.001)
            await file.close()

        await asyncio.gather(append(a, b"a"), append(b, b"b"))
        data = await a.content("/u/f")
        records = [data[at : at + record] for at in range(0, len(data), record)]
        assert len(data) == 60 * record and all(each.count(each[:1]) == record - 2 for each in records)
        heads = [each[:3] for each in records]
        for letter in (b"a", b"b"):
            assert [head for head in heads if head[:1] == letter] == [letter + b"%02d" % number for number in range(30)]
        await same_everywhere(c, "/u/f", data)


@pytest.mark.lustre("SN 9b")
@who_caches
async def test_an_append_to_a_sparse_striped_file_finds_its_end(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.setstripe("/u/f", 2, UNIT)
        append = os.O_WRONLY | os.O_APPEND
        await a.write_at("/u/f", 0, b"foo\n", append)
        await b.write_at("/u/f", UNIT, bytes(UNIT), os.O_WRONLY)
        await a.write_at("/u/f", 0, b"foo\n", append)
        file = await b.open("/u/f")
        assert await file.pread(3, 2 * UNIT) == b"foo"
        await file.close()
        await same_everywhere(c, "/u/f", b"foo\n" + bytes(2 * UNIT - 4) + b"foo\n")


@pytest.mark.lustre("SN 10a")
@who_caches
async def test_bytes_of_one_page_are_written_by_turns(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        of_a = await a.open("/u/f", CREATE)
        of_b = await b.open("/u/f", os.O_RDWR)
        for number, letter in enumerate(b"abcdefghijkl"):
            await (of_b if number % 2 else of_a).pwrite(bytes([letter]), number)
        await of_a.close()
        await of_b.close()
        await same_everywhere(c, "/u/f", b"abcdefghijkl")


@pytest.mark.lustre("SN 10b")
@who_caches
async def test_a_page_that_is_written_in_part_and_lengthened_is_zero_behind(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        data = b"R\n" * 1536
        await a.write_file("/u/f", data)
        await a.truncate("/u/f", 4096)
        same(await b.content("/u/f"), data + bytes(1024))
        await same_everywhere(c, "/u/f", data + bytes(1024))


@pytest.mark.lustre("SN 121")
@who_caches
async def test_an_append_meets_a_truncation_that_is_under_way(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        first, second = b"y\n" * 10_240, b"n\n" * 10_240
        await a.write_file("/u/f", first)
        held = c.net.hold(Punch, source=c.a)
        cutting = soon(a.truncate("/u/f", 51_200))
        await held.caught()
        appending = soon(b.write_at("/u/f", 0, second, os.O_WRONLY | os.O_APPEND))
        await asyncio.sleep(1)
        assert not cutting.done()
        if mix == "ab":
            assert not appending.done(), "the end of the file is a's"
        held.release()
        await cutting
        await appending
        cut_first = first + bytes(51_200 - len(first)) + second
        appended_first = (first + second).ljust(51_200, b"\0")
        data = await a.content("/u/f")
        assert len(data) == len(cut_first) or (mix != "ab" and len(data) == len(appended_first))
        await same_everywhere(c, "/u/f", cut_first if len(data) == len(cut_first) else appended_first)


@pytest.mark.lustre("SN 16i")
@who_caches
async def test_both_mounts_read_the_same_before_and_after_a_truncation(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        data = bytes(range(256)) * 700
        await a.write_file("/u/f", data)
        for size in (len(data), len(data) // 2, len(data) // 3, 10):
            await a.truncate("/u/f", size)
            for mount in (a, b):
                file = await mount.open("/u/f")
                same(await file.pread(len(data), 0), data[:size], mount)
                assert await file.pread(10, size) == b""
                await file.close()


# fsx ------------------------------------------------------------------------------------------------------------


KINDS = {"write": 30, "read": 35, "truncate": 8, "punch": 6, "end": 6, "stat": 10, "reopen": 5}  # and how often


async def fsx(
    c: Any, path: str, seed: str, steps: int, *, size_max: int, length_max: int, align: int = 1,
    flags: tuple[int, int] = (0, 0),
) -> bytes:  # fmt: skip
    """Random reads, writes, truncations and holes of one file through both mounts, against a copy in memory."""
    chance = random.Random(f"fsx {seed}")
    both = mounts(c)
    files = [await mount.open(path, os.O_RDWR | more) for mount, more in zip(both, flags, strict=True)]
    model = FileModel()
    for step in range(steps):
        which = chance.randrange(2)
        file = files[which]
        start = chance.randrange(size_max) // align * align
        length = max(chance.randrange(min(length_max, size_max - start) + 1) // align * align, 1 if align == 1 else 0)
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "write" or (kind == "end" and len(model) + length <= size_max):
            if kind == "end":
                start = len(model) // align * align
            data = chance.randbytes(length)
            await file.pwrite(data, start)
            model.write(start, data)
        elif kind == "read":
            same(await file.pread(length, start), bytes(model[start : start + length]), seed, step, both[which], start)
        elif kind == "truncate":
            await file.truncate(start)
            model.truncate(start)
        elif kind == "punch":
            await file.punch(start, start + length)
            model.punch(start, start + length)
        elif kind == "stat":
            assert (await file.fstat()).size == len(model), (seed, step, both[which])
        elif kind == "reopen":
            await file.close()
            files[which] = await both[which].open(path, os.O_RDWR | flags[which])
    for number, file in enumerate(files):
        same(await file.pread(size_max, 0), bytes(model), seed, "end", both[number])
        await file.close()
    return bytes(model)


@pytest.mark.lustre("SN 16a")
@pytest.mark.parametrize("flags", [(0, 0), (os.O_DIRECT, 0), (os.O_DIRECT, os.O_DIRECT), (os.O_SYNC, 0)])
@who_caches
async def test_random_work_of_two_mounts_on_one_file(cluster: Any, mix: str, flags: tuple[int, int]) -> None:
    async with two_mounts(cluster, mix) as (c, a, _):
        await a.setstripe("/u/f", -1, UNIT)
        align = 4096 if os.O_DIRECT in flags else 1
        data = await fsx(c, "/u/f", f"{c.seed}", 250, size_max=12 * UNIT, length_max=3 * UNIT, align=align, flags=flags)
        await same_everywhere(c, "/u/f", data)


@pytest.mark.lustre("SN 16b")
@pytest.mark.parametrize("write_back_after_s", [0.002, 3.0])
@who_caches
async def test_random_work_in_small_pieces(cluster: Any, mix: str, write_back_after_s: float) -> None:
    async with two_mounts(cluster, mix, write_back_after_s=write_back_after_s) as (c, a, _):
        await a.setstripe("/u/f", -1, UNIT)
        data = await fsx(c, "/u/f", f"{c.seed} small", 250, size_max=3 * UNIT, length_max=8192)
        await same_everywhere(c, "/u/f", data)


@pytest.mark.lustre("SN 16k")
@some_cache
async def test_random_work_on_several_files_while_the_caches_are_emptied(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix, max_cached_bytes=4 * UNIT) as (c, a, _):
        paths = [f"/u/f{number}" for number in range(5)]
        for number, path in enumerate(paths):
            await a.setstripe(path, 1 + number % 2, UNIT)
        working = soon(
            asyncio.gather(
                *[fsx(c, path, f"{c.seed} {path}", 60, size_max=6 * UNIT, length_max=UNIT) for path in paths]
            )
        )
        while not working.done():
            clear_unused(c.a, c.b)
            await asyncio.sleep(0.003)
        for path, data in zip(paths, await working, strict=True):
            await same_everywhere(c, path, data)


# the cache and those who go past it -----------------------------------------------------------------------------


@pytest.mark.lustre("SN 16d")
@pytest.mark.parametrize("reads", [0, os.O_DIRECT], ids=["cached read", "direct read"])
@pytest.mark.parametrize("writes", [0, os.O_DIRECT], ids=["cached write", "direct write"])
@who_caches
async def test_what_is_written_past_or_into_the_cache_is_read_on_the_other_mount(
    cluster: Any, mix: str, writes: int, reads: int
) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.setstripe("/u/f", -1, UNIT)
        for number in range(3):  # from the second round on the reader has something cached
            data = random.Random(f"{c.seed} {number}").randbytes(9 * UNIT)
            file = await a.open("/u/f", os.O_RDWR | writes)
            for at in range(0, len(data), 2 * UNIT):
                await file.pwrite(data[at : at + 2 * UNIT], at)
            await file.close()
            same(await b.content("/u/f", reads), data, number)
            same(await b.content("/u/f"), data, number)


@pytest.mark.lustre("SN 16e")
@some_cache
async def test_a_direct_write_lengthens_a_file_whose_beginning_the_other_mount_has_locked(
    cluster: Any, mix: str
) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.write_file("/u/f", bytes(10 * UNIT))
        await drop_locks(c, c.a, kind="OST")
        await a.write_at("/u/f", 0, b"x" * UNIT)  # what it knows of the object is older than what follows
        await b.write_at("/u/f", 20 * UNIT, b"y" * UNIT, os.O_RDWR | os.O_DIRECT)
        assert (await b.stat("/u/f")).size == (await a.stat("/u/f")).size == 21 * UNIT
        await same_everywhere(c, "/u/f", b"x" * UNIT + bytes(19 * UNIT) + b"y" * UNIT)


@pytest.mark.lustre("SN 16f")
@who_caches
async def test_a_reader_never_sees_an_older_value_after_a_newer_one_while_caches_are_emptied(
    cluster: Any, mix: str
) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.write_file("/u/f", bytes(8))
        begun, acknowledged, seen = 0, 0, [0]

        async def write(mount: Mount) -> None:
            nonlocal begun, acknowledged
            file = await mount.open("/u/f", os.O_RDWR)
            while begun < 300:
                begun += 1
                await file.pwrite(begun.to_bytes(8, "big"), 0)
                acknowledged = begun
                if begun % 3 == 0:
                    await asyncio.sleep(0.0003)
            await file.close()

        async def read(mount: Mount) -> None:
            file = await mount.open("/u/f")
            while acknowledged < 300:
                least = acknowledged
                value = int.from_bytes(await file.pread(8, 0), "big")
                assert least <= value <= begun and value >= seen[-1], (least, value, begun, seen[-1])
                seen.append(value)
                if len(seen) % 4 == 0:
                    await asyncio.sleep(0.0002)
            await file.close()

        async def empty() -> None:
            while acknowledged < 300:
                clear_unused(c.a, c.b)
                await asyncio.sleep(0.001)

        await asyncio.gather(write(a), read(b), empty())
        assert len(set(seen)) > 10


@pytest.mark.lustre("SN 16j")
@pytest.mark.parametrize("size", [1024, 4095, UNIT - 1, UNIT, 3 * UNIT // 2, 4 * UNIT + 1])
async def test_both_mounts_copy_the_same_past_and_through_the_cache(cluster: Any, size: int) -> None:
    async with two_mounts(cluster) as (c, a, b):
        data = random.Random(c.seed).randbytes(25 * UNIT if size > 4096 else 2 * UNIT)
        for name in ("source", "target"):
            await a.setstripe(f"/u/{name}", 2, UNIT)
        await a.write_at("/u/source", 0, data)

        async def copy(mount: Mount, flags: int, piece: int) -> None:
            source, target = await mount.open("/u/source", flags), await mount.open("/u/target", os.O_RDWR | flags)
            at = 0
            while got := await source.pread(piece, at):
                await target.pwrite(got, at)
                at += len(got)
            await source.close()
            await target.close()

        await asyncio.gather(
            copy(a, os.O_DIRECT, 2 * size), copy(a, 0, 2 * size), copy(b, os.O_DIRECT, size), copy(b, 0, 2 * size)
        )
        await same_everywhere(c, "/u/target", data)


@pytest.mark.lustre("SN 19")
@who_caches
async def test_both_mounts_read_the_same_file_at_once_with_nothing_cached(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.setstripe("/u/f", -1, UNIT)
        data = random.Random(c.seed).randbytes(16 * UNIT)
        await a.write_at("/u/f", 0, data)
        for _ in range(5):
            await drop_locks(c, c.a, c.b, kind="OST")
            for found in await asyncio.gather(a.read_file("/u/f"), b.read_file("/u/f")):
                same(found, data)


@pytest.mark.lustre("SN 20")
@some_cache
async def test_nothing_is_left_in_the_cache_without_a_lock(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.write_at("/u/f", 0, b"a" * 8190, CREATE)
        await b.write_at("/u/f", 8194, b"b" * 8190, os.O_RDWR)
        for mount in (a, b):
            file = await mount.open("/u/f")
            assert await file.pread(8190, 0) == b"a" * 8190
            await file.close()
        cached = [client.fs.connections.lov.locked for client in (c.a, c.b) if client.name in mix]
        assert any(locked.shared.pages.bytes for locked in cached)
        await drop_locks(c, c.a, c.b, kind="OST")
        assert not any(locked.shared.pages.bytes or locked.shared.dirty for locked in cached)
        assert not any(data.objects for locked in cached for data in locked.caches.values())
        await same_everywhere(c, "/u/f", b"a" * 8190 + bytes(4) + b"b" * 8190)


@pytest.mark.lustre("SN 95a")
@who_caches
async def test_a_page_is_read_while_the_other_mount_writes_it(cluster: Any, mix: str) -> None:
    """The read is under way when the write comes, and again when the page has just gone."""
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.setstripe("/u/f", -1, UNIT)
        await b.write_at("/u/f", 0, b"0" * 4 * UNIT)
        file = await a.open("/u/f")
        for old, new in ((b"0", b"1"), (b"1", b"2")):
            await drop_locks(c, c.a, c.b, kind="OST")
            held = c.net.hold(Read, reply=True)
            reading = soon(file.pread(2 * UNIT, UNIT - 4096))
            await held.caught()
            writing = soon(b.write_at("/u/f", 0, new * 4 * UNIT))
            await asyncio.sleep(0.2)
            assert not reading.done()
            held.release()
            data = await reading
            assert set(data) <= {old[0], new[0]} and len(data) == 2 * UNIT
            if mix == "ab":
                assert data == old * 2 * UNIT
            again = soon(file.pread(2 * UNIT, UNIT - 4096))  # its lock is going, or has just gone
            await writing
            assert len(await again) == 2 * UNIT
            same(await file.pread(2 * UNIT, UNIT - 4096), new * 2 * UNIT)
        await file.close()


@pytest.mark.lustre("SN 95b")
@some_cache
async def test_a_page_that_is_dropped_for_want_of_room_is_read_again(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix, max_cached_bytes=2 * UNIT) as (c, a, b):
        data = random.Random(c.seed).randbytes(12 * UNIT)
        await a.write_file("/u/f", data)
        file = await b.open("/u/f")

        async def read(seed: int) -> None:
            chance = random.Random(f"{c.seed} {seed}")
            for _ in range(40):
                at = chance.randrange(12) * UNIT
                same(await file.pread(UNIT, at), data[at : at + UNIT], at)

        await asyncio.gather(*[read(seed) for seed in range(4)])
        await file.close()


# space ----------------------------------------------------------------------------------------------------------


@pytest.mark.lustre("SN 15")
@who_caches
async def test_two_writers_fill_the_disks(cluster: Any, mix: str) -> None:
    """Whoever gets no space is told by the write that gets none; what was accepted is there."""
    async with two_mounts(cluster, mix, disk_bytes=80 * UNIT) as (c, a, b):
        free = (await a.statfs()).bytes_available
        piece = b"12345678" * 2048

        async def fill(mount: Mount, path: str) -> int:
            await mount.setstripe(path, -1, UNIT)
            file = await mount.open(path, os.O_RDWR)
            written = 0
            with pytest.raises(OpError) as caught:
                while True:
                    await file.pwrite(piece, written)
                    written += len(piece)
            assert caught.value.errno == errno.ENOSPC
            await file.fsync()
            await file.close()
            return written

        written = await asyncio.gather(fill(a, "/u/one"), fill(b, "/u/two"))
        assert sum(written) >= free * 9 // 10
        for path, size in zip(("/u/one", "/u/two"), written, strict=True):
            for mount in (a, b):
                found = await mount.content(path)
                same(found[:size], piece * (size // len(piece)), mount)
                assert len(found) <= size + len(piece)
        await a.unlink("/u/one")
        await c.until(lambda: not any(target.store.count("ost_log") for target in c.mds.running))
        await b.write_file("/u/three", piece * 8)
        same(await a.content("/u/three"), piece * 8)


@pytest.mark.lustre("SN 36")
@who_caches
async def test_a_file_that_is_removed_while_the_other_mount_reads_it_leaves_no_space_behind(
    cluster: Any, mix: str
) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        before = (await a.statfs()).bytes_free
        for number in range(4):
            await a.setstripe("/u/f", -1, UNIT)
            await a.write_at("/u/f", 0, bytes([number]) * 20 * UNIT)
            await a.sync()
            full = (await a.statfs()).bytes_free
            assert full <= before - 20 * UNIT
            file = await b.open("/u/f")
            reading = soon(file.pread(20 * UNIT, 0))
            await a.unlink("/u/f")
            same(await reading, bytes([number]) * 20 * UNIT)
            assert await file.pread(1, 0) == bytes([number])
            await file.close()
            await a.sync()
            async with asyncio.timeout(60):
                while (await a.statfs()).bytes_free < before:
                    await asyncio.sleep(0.2)


# times ----------------------------------------------------------------------------------------------------------


async def times(mount: Mount, path: str) -> tuple[int, int]:
    found = await mount.stat(path)
    return found.atime, found.mtime


async def mtimes(c: Any, path: str) -> AsyncIterator[int]:
    """As both mounts see it, and again after they have dropped their locks of the data, and all their locks."""
    for kind in ("", "OST", "lustre"):
        if kind:
            await drop_locks(c, c.a, c.b, kind=kind)
        for mount in mounts(c):
            yield (await mount.stat(path)).mtime


@pytest.mark.lustre("SN 23")
@who_caches
async def test_the_other_mount_sees_when_a_file_was_read(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.write_file("/u/f", b"atime should be updated")
        old = (await times(b, "/u/f"))[0]
        await asyncio.sleep(61)
        began = c.a.node.wall_ns()
        file = await a.open("/u/f")
        assert await file.pread(20, 0) == b"atime should be upda"
        assert (await times(a, "/u/f"))[0] >= began > old
        await file.close()
        assert (await times(b, "/u/f"))[0] == (await times(a, "/u/f"))[0] >= began


@pytest.mark.lustre("SN 26a")
@who_caches
async def test_times_may_be_set_to_the_past(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (_, a, b):
        await a.write_file("/u/f", b"data")
        for mount, other, time in ((a, b, 3 * YEAR_NS), (b, a, 2 * YEAR_NS), (a, b, YEAR_NS)):
            await mount.utimes("/u/f", time + 1, time)
            assert await times(other, "/u/f") == await times(mount, "/u/f") == (time + 1, time)


@pytest.mark.lustre("SN 26b")
@who_caches
async def test_a_chmod_does_not_hide_the_time_of_a_write(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.create("/u/f")
        await asyncio.sleep(1)
        began = c.a.node.wall_ns()
        await a.write_at("/u/f", 0, b"aaa\n", os.O_WRONLY | os.O_APPEND)
        ended = c.a.node.wall_ns()
        await asyncio.sleep(1)
        await b.chmod("/u/f", 0o755)
        seen = [mtime async for mtime in mtimes(c, "/u/f")]
        assert len(set(seen)) == 1 and began <= seen[0] <= ended


@pytest.mark.lustre("SN 26c")
@pytest.mark.parametrize("before", ["nothing", "read", "written"])
@who_caches
async def test_a_close_does_not_undo_times_that_were_set_meanwhile(cluster: Any, mix: str, before: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        file = await a.open("/u/f", CREATE)
        if before == "written":
            await file.pwrite(b"data", 0)
        elif before == "read":
            await file.pread(10, 0)
        await asyncio.sleep(1)
        await b.utimes("/u/f", YEAR_NS, YEAR_NS)
        assert await times(b, "/u/f") == (YEAR_NS, YEAR_NS)
        await file.close()
        await asyncio.sleep(1)
        for mount in (a, b):
            assert await times(mount, "/u/f") == (YEAR_NS, YEAR_NS)
        await drop_locks(c, c.a, c.b)
        for mount in (a, b):
            assert await times(mount, "/u/f") == (YEAR_NS, YEAR_NS)


@pytest.mark.lustre("SN 39a")
@who_caches
async def test_the_time_of_a_write_outlives_a_rename(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.create("/u/f")
        await a.utimes("/u/f", None, YEAR_NS)
        assert (await b.stat("/u/f")).mtime == YEAR_NS
        began = c.a.node.wall_ns()
        await a.write_at("/u/f", 0, b"hello", os.O_WRONLY | os.O_APPEND)
        ended = c.a.node.wall_ns()
        written = (await b.stat("/u/f")).mtime
        assert began <= written <= ended
        await a.rename("/u/f", "/u/g")
        assert {mtime async for mtime in mtimes(c, "/u/g")} == {written}


@pytest.mark.lustre("SN 39b")
@who_caches
async def test_a_time_in_the_past_is_the_same_with_and_without_locks(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.write_file("/u/f", b"data")
        assert (await a.stat("/u/f")).mtime == (await b.stat("/u/f")).mtime
        await asyncio.sleep(1)
        await a.utimes("/u/f", None, YEAR_NS)
        assert {mtime async for mtime in mtimes(c, "/u/f")} == {YEAR_NS}


@pytest.mark.lustre("SN 39c")
@who_caches
async def test_a_truncation_sets_the_time(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.write_file("/u/f", b"hello")
        written = (await a.stat("/u/f")).mtime
        assert (await b.stat("/u/f")).mtime == written
        await asyncio.sleep(1)
        await a.truncate("/u/f", 1)
        seen = {mtime async for mtime in mtimes(c, "/u/f")}
        assert len(seen) == 1 and min(seen) > written


@pytest.mark.lustre("SN 39d")
@who_caches
async def test_a_synchronous_write_sets_the_time(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):
        await a.create("/u/f")
        await a.utimes("/u/f", None, YEAR_NS)
        assert (await b.stat("/u/f")).mtime == YEAR_NS
        file = await a.open("/u/f", os.O_WRONLY | os.O_SYNC)
        began = c.a.node.wall_ns()
        await file.pwrite(b"hello\n", 0)
        ended = c.a.node.wall_ns()
        await drop_locks(c, c.a, kind="OST")
        assert began <= (await b.stat("/u/f")).mtime <= ended
        await file.close()
        assert began <= (await b.stat("/u/f")).mtime <= ended


@pytest.mark.lustre("SN 104")
@who_caches
async def test_the_mdt_has_the_times_when_a_file_is_closed(cluster: Any, mix: str) -> None:
    async with two_mounts(cluster, mix) as (c, a, b):

        async def check() -> None:
            for mount in (a, b):
                found = await mount.stat("/u/f")
                inode = namespace.find_inode(c.mds.target().store, found.fid)
                assert inode is not None
                assert (inode.atime, inode.mtime, inode.ctime) == (found.atime, found.mtime, found.ctime), mount

        for _ in range(2):
            await a.write_at("/u/f", 0, bytes(1024), CREATE)
            await check()
            await asyncio.sleep(2)
        file = await b.open("/u/f", os.O_RDWR)
        await file.pwrite(bytes(8192), 8192)
        await asyncio.sleep(2)
        await a.write_at("/u/f", 0, bytes(1024), os.O_WRONLY)  # it closes first, and has the later time
        await asyncio.sleep(2)
        await file.close()
        await check()
        before = await a.stat("/u/f")
        await (await a.open("/u/f", os.O_RDWR)).close()  # nothing was written
        await check()
        assert (await b.stat("/u/f"))[:11] == before[:11]
        file = await a.open("/u/f")
        await asyncio.sleep(2)
        await a.setattr_fid(file.fid, mode=stat.S_IMODE(before.mode) ^ 0o111)
        await file.close()
        await check()
        assert (await b.stat("/u/f")).mtime == before.mtime < (await b.stat("/u/f")).ctime
