"""The simulator's disk: a kill loses nothing, a power cut all that was not synced, or any part of it."""

from __future__ import annotations

import errno
import os
import random

import pytest

from lustrelite.errors import OpError, StoreFailed
from lustrelite.sim.disk import ObjectDisk, SimObjectFiles
from lustrelite.store.objects import ObjectFiles
from lustrelite.wire.ost import OBJECT_EOF


def contents(files, oid):
    buffer = bytearray(100_000)
    return bytes(buffer[: files.read_into(oid, 0, buffer)])


def test_it_does_what_object_files_do(tmp_path):
    rng = random.Random(7)
    real, simulated = ObjectFiles(tmp_path), SimObjectFiles(ObjectDisk())
    for _ in range(400):
        oid, start = rng.randrange(1, 5), rng.randrange(50_000)
        act = rng.choice(["write", "write", "punch", "truncate", "allocate", "remove", "sync"])
        mode = rng.choice((0, 0x1, 0x10, 0x11))
        for files in (real, simulated):
            if act == "write":
                files.write(oid, start, bytes([oid]) * (start % 3000))
            elif act == "punch":
                files.punch(oid, start, start + 5000)
            elif act == "truncate":
                files.punch(oid, start, OBJECT_EOF)
            elif act == "allocate":
                files.allocate(oid, start, start + 7000, mode)
            elif act == "remove":
                files.remove(oid)
            else:
                files.sync([oid])
        assert contents(real, oid) == contents(simulated, oid)
        assert real.size(oid) == simulated.size(oid)
    assert list(real.ids()) == list(simulated.ids())
    real.close()


def test_blocks_of_zeros_are_holes():
    files = SimObjectFiles(ObjectDisk())
    files.write(1, 10_000, b"x" * 10)
    assert [files.seek(1, at, os.SEEK_DATA) for at in (0, 8192, 9000, 10_009, 10_010, 50_000)] == [8192, 8192, 9000, 10_009, -1, -1]
    assert [files.seek(1, at, os.SEEK_HOLE) for at in (0, 9000, 10_010, 50_000)] == [0, 10_010, 10_010, 50_000]


def test_a_power_cut_takes_what_was_not_synced():
    disk = ObjectDisk()
    files = SimObjectFiles(disk)
    files.write(1, 0, b"old")
    files.write(2, 0, b"two")
    files.sync([1, 2, 3])
    files.write(1, 1, b"NEW")
    files.remove(2)
    files.write(3, 0, b"three")
    files.close()
    successor = SimObjectFiles(disk)  # a kill: all is there
    assert [contents(successor, oid) for oid in (1, 2, 3)] == [b"oNEW", b"", b"three"]
    assert disk.power_cut() == 3
    assert [contents(successor, oid) for oid in (1, 2, 3)] == [b"old", b"two", b""]
    assert list(successor.ids()) == [1, 2]


def test_a_power_cut_may_have_written_any_part():
    seen = set()
    for seed in range(30):
        disk = ObjectDisk()
        files = SimObjectFiles(disk)
        files.write(1, 0, b"a")
        files.write(1, 1, b"b")
        disk.power_cut(random.Random(seed))
        seen.add(contents(files, 1))
    assert seen == {b"", b"a", b"\0b", b"ab"}


def test_a_full_or_broken_disk_says_so():
    disk = ObjectDisk(capacity_bytes=8192)
    files = SimObjectFiles(disk)
    files.write(1, 0, bytes(8192))
    with pytest.raises(OpError) as raised:
        files.write(2, 0, b"x")
    assert raised.value.errno == errno.ENOSPC
    assert files.statfs().free == 0
    disk.unwritable = errno.EIO
    with pytest.raises(OpError):
        files.write(1, 0, b"x")
    files.sync([1])
    disk.broken = errno.EIO
    with pytest.raises(StoreFailed):
        files.sync([1])


def test_a_disk_that_others_fill_gets_no_larger_and_is_what_it_was_when_they_are_gone():
    disk = ObjectDisk(capacity_bytes=8192)
    disk.fill(1 << 20, reserved_permille=0)
    assert disk.capacity_bytes == 8192
    disk.fill(0, reserved_permille=0)
    disk.fill(100, reserved_permille=0)  # by somebody else, before that is over
    assert disk.capacity_bytes == 4196
    for _ in range(2):
        disk.emptied()
        assert disk.capacity_bytes == 8192
