"""What is promised has its room on the disk, whoever else fills it: on a small file system of the test's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lustrelite.errors import OpError
from lustrelite.store import disk, schema
from lustrelite.store.kept_room import LENT_BYTES, STEP_BYTES_MAX, KeptRoom
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.store.room import ESSENTIAL
from tests.small_disk import fill, left, small_disk

MIB = 1 << 20
DISK_BYTES = 32 * MIB
STEP = DISK_BYTES // 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory with so many bytes."""
    place = tmp_path / "small"
    place.mkdir()
    with small_disk(place, DISK_BYTES):
        yield place


def test_what_is_kept_is_not_there_for_others(small: Path) -> None:
    room = KeptRoom(str(small / "kept"))
    free = left(small)
    assert room.keep(4 * MIB) == 4 * MIB
    assert free - left(small) == room.size == 4 * MIB + STEP
    assert room.keep(4 * MIB + STEP) == 4 * MIB + STEP and room.size == 4 * MIB + STEP, "taken ahead"
    assert room.keep(3 * MIB) == 3 * MIB and left(small) == free - 3 * MIB - STEP
    assert room.keep(3 * MIB - STEP) and room.size == 3 * MIB + STEP, "given back by and by"
    room.free()
    assert left(small) == free and not room.size
    room.free()


def test_no_more_is_kept_than_there_is(small: Path) -> None:
    room = KeptRoom(str(small / "kept"))
    room.keep(MIB)
    fill(small, but=2 * MIB)
    assert room.keep(2 * MIB) == 2 * MIB
    before = room.size
    assert room.keep(8 * MIB) == before == room.size, "what there was"
    assert left(small) == 3 * MIB + STEP - before, "and what was found in vain is free"


def test_a_successor_finds_what_was_kept(small: Path) -> None:
    KeptRoom(str(small / "kept")).keep(2 * MIB)
    fill(small)
    room = KeptRoom(str(small / "kept"))
    assert room.size == 2 * MIB + STEP and room.keep(2 * MIB) == 2 * MIB
    assert room.keep(5 * MIB) == 2 * MIB + STEP
    assert room.keep(MIB, at_least=True) == MIB and room.size == 2 * MIB + STEP, "others may have been promised that"
    assert room.keep(MIB) == MIB and room.size == MIB + STEP


def test_a_write_that_was_promised_room_finds_it_on_a_full_disk(small: Path) -> None:
    files = ObjectFiles(small)
    free = files.statfs().available
    assert files.keep(4 * MIB) == 4 * MIB
    assert files.statfs().available == free, "what is kept here is free, but for others"
    fill(small)
    with pytest.raises(OpError) as caught:
        files.write(1, 0, bytes(MIB))
    assert caught.value.errno == errno.ENOSPC
    data = os.urandom(100_000)
    for number in range(30):
        files.write(1, number * len(data), data, promised=True)
        fill(small)  # whatever is free for a moment
    back = bytearray(30 * len(data))
    assert files.read_into(1, 0, back) == len(back) and back == data * 30
    with pytest.raises(OpError):
        files.write(2, 0, bytes(4 * MIB), promised=True)
    assert not files._kept_room.size, "all of it was lent"
    files.keep_nothing()
    files.close()


def test_a_quota_is_no_less_full_than_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ObjectFiles(tmp_path)
    assert files.keep(2 * MIB) == 2 * MIB
    kept, write = tmp_path / "O" / "kept", os.pwritev

    def pwritev(fd: int, pieces: Any, offset: int) -> int:
        if kept.stat().st_blocks * 512 > MIB:
            raise OSError(errno.EDQUOT, "the user's quota")
        return write(fd, pieces, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    with pytest.raises(OpError, match="EDQUOT"):
        files.write(1, 0, bytes(2 * MIB))
    files.write(1, 0, bytes(2 * MIB), promised=True)
    assert files.stat(1)[0] == 2 * MIB
    files.close()


def test_where_nothing_can_be_allocated_promises_are_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*args: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "on this file system")

    monkeypatch.setattr(disk, "fallocate", cannot)
    room = KeptRoom(str(tmp_path / "kept"))
    assert room.keep(1 << 50) == 1 << 50 and room.keep(5) == 5
    assert not room.size and not room.lend(1)


def test_room_is_taken_in_pieces_that_can_be_freed_alone(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """btrfs keeps what one call has allocated as long as any of it is kept."""
    calls: list[tuple[int, int]] = []
    real = disk.fallocate

    def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
        calls.append((offset, offset + length))
        real(fd, mode, offset, length)

    monkeypatch.setattr(disk, "fallocate", fallocate)
    room = KeptRoom(str(small / "kept"))
    room.keep(3 * MIB + 5)
    room.keep(5 * MIB)
    assert [end for _, end in calls] == [start for start, _ in calls[1:]] + [room.size], "side by side"
    assert calls[0][0] == 0 and all((end - 1) // MIB == start // MIB for start, end in calls)


def test_on_a_broken_disk_nothing_changes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = KeptRoom(str(small / "kept"))
    room.keep(MIB)

    def broken(*args: Any) -> None:
        raise OSError(errno.EIO, "broken")

    for module, name in ((os, "ftruncate"), (disk, "fallocate")):
        monkeypatch.setattr(module, name, broken)
    for act in (lambda: room.keep(0), lambda: room.keep(2 * MIB), lambda: room.lend(1)):
        with pytest.raises(OSError, match="broken"):
            act()
        assert room.size == MIB + STEP


def test_little_is_kept_ahead_on_a_large_disk(tmp_path: Path) -> None:
    room = KeptRoom(str(tmp_path / "kept"))
    room.keep(MIB)
    if room.size:  # else the file system cannot
        assert room.size <= MIB + STEP_BYTES_MAX
        assert room.lend(MIB // 2) and room.size == (tmp_path / "kept").stat().st_size
        assert room.size <= MIB + STEP_BYTES_MAX - MIB // 2 - LENT_BYTES
    room.free()


@pytest.mark.parametrize("kind", ["MDT", "OST"])
def test_a_killed_target_starts_on_a_disk_that_others_have_filled_since(small: Path, kind: str) -> None:
    """It has allocated ahead what its database needs."""
    store = Store.open(small, kind, create=True)
    store.apply({(schema.META, b"a"): b"1"})
    store.flush()
    fill(small)
    store.abort()
    for value in (b"2", b"3"):
        again = Store.open(small, kind)
        again.apply({(schema.META, b"a"): value}, kind=ESSENTIAL)
        again.flush()
        again.abort()
    assert not left(small)
