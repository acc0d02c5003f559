"""The disks of the simulator: they survive a kill whole, and a power cut as far as they were synced.

A target has a real directory, in memory where there is a tmpfs, for what the product keeps there itself (LMDB without
fsync, the owner's lock): LMDB's commit is what makes it durable, so a kill loses the running batch and a power cut no
more than that. The data of objects lives here, in SimObjectFiles: each file has what was made durable and a journal of
what was done since. A power cut keeps of the journal nothing, or, given a source of chance, any of its entries: disks
write in what order they like. Removals are journalled too: a file whose removal is lost is back.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from lustrelite.errors import OpError, StoreFailed
from lustrelite.store import disk
from lustrelite.wire.ost import OBJECT_EOF

BLOCK_BYTES = 4096
ZEROS = bytes(BLOCK_BYTES)
CAPACITY_BYTES = 64 << 30
FILES_MAX = 1 << 24
MAP_BYTES = 64 << 20  # of a simulated target's database

Buffer = bytes | bytearray | memoryview
Entry = tuple[str, int, int, bytes]  # (write | punch | allocate | remove, start, end, data; a mode for allocate)


class ObjectDisk:
    """The data disk of one OST: what lasts when its process is gone."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes
        self._own_bytes = 0  # what that is without the others, while these have filled it
        self.sparse = False  # holes take no room: blocks of zeros, so nobody may write zeros and mean to fill it
        self.files: dict[int, bytearray] = {}  # as processes see them
        self.durable: dict[int, bytearray] = {}
        self.journal: dict[int, list[Entry]] = {}  # since the last sync
        self.broken = 0  # errno of every write and sync from now on, and of whatever else does not work
        self.unwritable = 0  # of every write: bad sectors are where it goes, and nowhere else
        self.unreadable = 0  # of every read
        self.unsyncable = 0  # of every sync: what was written is lost by a power cut

    def change(self, oid: int, entry: Entry) -> None:
        """Do it, and remember it until it is durable."""
        _apply(self.files, oid, entry)
        self.journal.setdefault(oid, []).append(entry)

    def settle(self, oids: Iterable[int]) -> None:
        """What was done to `oids` is durable."""
        for oid in oids:
            for entry in self.journal.pop(oid, ()):
                _apply(self.durable, oid, entry)

    def power_cut(self, rng: random.Random | None = None) -> int:
        """Only what is durable is left (and what `rng` lets the disk have written anyway); how many changes are lost."""
        lost = 0
        for oid, entries in self.journal.items():
            for entry in entries:
                if rng is not None and rng.random() < 0.5:
                    _apply(self.durable, oid, entry)
                else:
                    lost += 1
        self.journal.clear()
        self.files = {oid: bytearray(data) for oid, data in self.durable.items()}
        return lost

    def fill(self, left: int, *, reserved_permille: int) -> None:
        """Others have filled the disk, until it is `emptied`: `left` bytes are free beyond the reserve, if there were so many."""
        self.sparse = True
        filled_bytes = (self.used_bytes() + left + BLOCK_BYTES) * 1000 // (1000 - reserved_permille)
        self._own_bytes = self._own_bytes or self.capacity_bytes
        self.capacity_bytes = min(self._own_bytes, filled_bytes)

    def emptied(self) -> None:
        """Others have what they took no more."""
        self.capacity_bytes, self._own_bytes = self._own_bytes or self.capacity_bytes, 0

    def used_bytes(self) -> int:
        """Bytes in whole blocks, without holes if it is `sparse`.

        Then blocks that were freed are free when that is durable, as with any file system that has a journal.
        """
        if self.sparse:
            return sum(len(self._blocks_kept(oid)) for oid in {**self.files, **self.durable}) * BLOCK_BYTES
        return sum(map(self.blocks_of, self.files.values())) * BLOCK_BYTES

    def _blocks_kept(self, oid: int) -> dict[int, None]:
        both = (self.files.get(oid, b""), self.durable.get(oid, b""))
        kept = {block: None for data in both for block in range(0, len(data), BLOCK_BYTES) if _full(data, block)}
        for kind, start, end, _ in self.journal.get(oid, ()):
            if kind == "write":
                kept.update(dict.fromkeys(range(start - start % BLOCK_BYTES, end, BLOCK_BYTES)))
        return kept

    def blocks_of(self, data: bytes | bytearray) -> int:
        """Blocks that a file takes."""
        if self.sparse:
            return sum(_full(data, at) for at in range(0, len(data), BLOCK_BYTES))
        return -(-len(data) // BLOCK_BYTES)


def _full(data: bytes | bytearray, block: int) -> bool:
    """Is there anything in the block that begins at `block`?"""
    return data[block : block + BLOCK_BYTES] != ZEROS[: len(data) - block]


def _apply(files: dict[int, bytearray], oid: int, entry: Entry) -> None:
    kind, start, end, data = entry
    if kind == "remove":
        files.pop(oid, None)
        return
    file = files.get(oid)
    if kind == "write":
        if file is None:
            file = files[oid] = bytearray()
        if len(file) < start:
            file.extend(bytes(start - len(file)))
        file[start:end] = data
    elif kind == "allocate":
        if file is None:
            file = files[oid] = bytearray()
        (mode,) = data
        if mode & disk.FALLOC_ZERO_RANGE:
            zeroed = min(end, len(file)) - start
            if zeroed > 0:
                file[start : start + zeroed] = bytes(zeroed)
        if not mode & disk.FALLOC_KEEP_SIZE and len(file) < end:
            file.extend(bytes(end - len(file)))
    elif end >= OBJECT_EOF:
        if file is None:
            if not start:
                return
            file = files[oid] = bytearray()
        del file[start:]
        if len(file) < start:
            file.extend(bytes(start - len(file)))
    elif file is not None:
        end = min(end, len(file))
        if start < end:
            file[start:end] = bytes(end - start)


class SimObjectFiles:
    """store.objects.ObjectFiles over an ObjectDisk. A process that is killed leaves what it wrote to its successor."""

    in_use = False  # there are no threads

    def __init__(self, disk: ObjectDisk) -> None:
        self.disk = disk
        self.closed = False

    def _check(self, *, writes: bool = False) -> None:
        assert not self.closed, "the files are closed: their process is dead"
        if writes:
            self._refuse(self.disk.broken)

    def _refuse(self, number: int) -> None:
        """With this error of the disk, if it is one: see ObjectFiles."""
        if self.disk.broken in disk.BROKEN and number in disk.BROKEN:
            raise StoreFailed(f"the disk is broken: {os.strerror(number)}")
        if number:
            raise OpError(number, "the disk says so")

    def keep(self, size: int, *, at_least: bool = False) -> int:
        """See ObjectFiles.keep. Nobody else takes room of this disk."""
        return size

    def keep_nothing(self) -> None:
        """See ObjectFiles.keep_nothing."""

    def write(self, oid: int, offset: int, data: Buffer, *, promised: bool = False) -> None:
        """See ObjectFiles.write."""
        self._check(writes=True)
        self._refuse(self.disk.unwritable)
        view = memoryview(data).cast("B")
        if self.disk.used_bytes() + self._new_bytes(oid, offset, len(view)) > self.disk.capacity_bytes:
            raise OpError(errno.ENOSPC, f"cannot write object {oid}")
        self.disk.change(oid, ("write", offset, offset + len(view), bytes(view)))

    def _new_bytes(self, oid: int, offset: int, length: int) -> int:
        """What a write takes of the disk: the blocks that are not there yet."""
        if not self.disk.sparse:
            return length
        data = self.disk.files.get(oid, b"")
        first, end = offset // BLOCK_BYTES * BLOCK_BYTES, offset + length
        return sum(not _full(data, block) for block in range(first, end, BLOCK_BYTES)) * BLOCK_BYTES

    def read_into(self, oid: int, offset: int, buffer: Buffer) -> int:
        """See ObjectFiles.read_into."""
        self._check()
        self._refuse(self.disk.unreadable)
        view = memoryview(buffer).cast("B")
        data = self.disk.files.get(oid, b"")[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)

    def punch(self, oid: int, start: int, end: int) -> None:
        """See ObjectFiles.punch."""
        self._check(writes=True)
        assert 0 <= start <= end, (start, end)
        self.disk.change(oid, ("punch", start, end, b""))

    def allocate(self, oid: int, start: int, end: int, mode: int) -> None:
        """See ObjectFiles.allocate. Only what a file grows by takes room."""
        self._check(writes=True)
        grows = 0 if mode & disk.FALLOC_KEEP_SIZE else max(0, end - self.size(oid))
        if self.disk.used_bytes() + grows > self.disk.capacity_bytes:
            raise OpError(errno.ENOSPC, f"cannot allocate object {oid}")
        self.disk.change(oid, ("allocate", start, end, bytes([mode])))

    def seek(self, oid: int, offset: int, whence: int) -> int:
        """See ObjectFiles.seek. A block of zeros is a hole."""
        self._check()
        data = self.disk.files.get(oid, b"")
        while offset < len(data):
            block = offset // BLOCK_BYTES * BLOCK_BYTES
            if any(data[block : block + BLOCK_BYTES]) == (whence == os.SEEK_DATA):
                return offset
            offset = min(block + BLOCK_BYTES, len(data))
        return -1 if whence == os.SEEK_DATA else offset

    def remove(self, oid: int) -> bool:
        """See ObjectFiles.remove."""
        self._check(writes=True)
        there = oid in self.disk.files
        if there:
            self.disk.change(oid, ("remove", 0, 0, b""))
        return there

    def stat(self, oid: int) -> tuple[int, int]:
        """See ObjectFiles.stat."""
        self._check()
        data = self.disk.files.get(oid, b"")
        return len(data), self.disk.blocks_of(data) * (BLOCK_BYTES // 512)

    def size(self, oid: int) -> int:
        """See ObjectFiles.size."""
        return self.stat(oid)[0]

    def blocks(self, oid: int) -> int:
        """See ObjectFiles.blocks."""
        return self.stat(oid)[1]

    def statfs(self) -> disk.Space:
        """See ObjectFiles.statfs."""
        self._check()
        free = max(0, self.disk.capacity_bytes - self.disk.used_bytes())
        return disk.Space(self.disk.capacity_bytes, free, free, FILES_MAX, FILES_MAX - len(self.disk.files))

    def ids(self) -> Iterator[int]:
        """See ObjectFiles.ids."""
        self._check()
        yield from sorted(self.disk.files, key=lambda oid: (oid % 32, oid))

    def sync(self, oids: Iterable[int] | None) -> None:
        """See ObjectFiles.sync."""
        self._check(writes=True)
        if self.disk.unsyncable:
            raise OpError(self.disk.unsyncable, "cannot sync")
        self.disk.settle(list(self.disk.journal if oids is None else oids))

    def close(self) -> None:
        """See ObjectFiles.close."""
        self.closed = True


class SimDisks:
    """All disks of one world: a directory per target under one temporary one."""

    def __init__(self) -> None:
        where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="ll-sim-", dir=where))
        self.objects: dict[str, ObjectDisk] = {}

    def directory(self, name: str) -> Path:
        """The directory of target `name`."""
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path

    def object_disk(self, name: str) -> ObjectDisk:
        """The data disk of OST `name`."""
        found = self.objects.get(name)
        if found is None:
            found = self.objects[name] = ObjectDisk()
        return found

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root, ignore_errors=True)
