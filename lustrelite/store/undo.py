"""A disk that can lose its power although the machine does not: what was not made durable can be taken back.

For tests on real processes. `kill -9` leaves in the kernel's memory what was written, and who comes next sees it; a
power cut does not. If the target's directory has a directory `undo`, then before object data changes its old content is
put there, one file for each change, and removed when `sync` has made the object durable. `power_cut`, when the process
is dead, puts back what is still there, the newest first: the object files are then what the disk was told to keep. (Of
the database a kill takes the running batch, as a power cut does: what LMDB has committed it has synced.)

An image is complete before the change begins, so a kill at any moment leaves the means to undo; one that is not
complete had no change after it. Changes come one at a time, so that the images have an order.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lustrelite.store.objects import SUBDIRECTORIES, Buffer, ObjectFiles

UNDO = "undo"
_HEAD = struct.Struct("<QqQQ")  # object, size (-1: there was no file), where the image belongs, its length


class UndoFiles(ObjectFiles):
    """ObjectFiles that keep old content until the new one is durable."""

    def __init__(self, directory: str | Path) -> None:
        super().__init__(directory)
        self._undo = Path(directory, UNDO)
        self._change = threading.Lock()
        self._number = max((int(path.name) for path in self._undo.iterdir()), default=0)
        self._images: dict[int, list[Path]] = {}  # by object, oldest first
        for path in sorted(self._undo.iterdir()):
            head = path.read_bytes()[: _HEAD.size]
            if len(head) == _HEAD.size:
                self._images.setdefault(_HEAD.unpack(head)[0], []).append(path)

    @contextmanager
    def _kept(self, oid: int, start: int, end: int) -> Iterator[None]:
        """Keep what [start, end) of the object is, and change it."""
        with self._change:
            there = os.path.exists(self._path(oid))
            size = self.size(oid) if there else -1
            image = bytearray(max(min(end, size) - start, 0))
            self.read_into(oid, start, image)
            self._number += 1
            path = self._undo / f"{self._number:012d}"
            path.write_bytes(_HEAD.pack(oid, size, start, len(image)) + image)
            self._images.setdefault(oid, []).append(path)
            yield

    def write(self, oid: int, offset: int, data: Buffer, *, promised: bool = False) -> None:
        """See ObjectFiles.write."""
        with self._kept(oid, offset, offset + len(memoryview(data).cast("B"))):
            super().write(oid, offset, data, promised=promised)

    def punch(self, oid: int, start: int, end: int) -> None:
        """See ObjectFiles.punch."""
        with self._kept(oid, start, end):
            super().punch(oid, start, end)

    def allocate(self, oid: int, start: int, end: int, mode: int) -> None:
        """See ObjectFiles.allocate."""
        with self._kept(oid, start, end):
            super().allocate(oid, start, end, mode)

    def remove(self, oid: int) -> bool:
        """See ObjectFiles.remove."""
        with self._kept(oid, 0, self.size(oid)):
            return super().remove(oid)

    def sync(self, oids: Iterable[int] | None) -> None:
        """See ObjectFiles.sync."""
        wanted = None if oids is None else list(dict.fromkeys(oids))
        with self._change:  # what is changed meanwhile is not durable afterwards
            durable = [(oid, list(self._images.get(oid, ()))) for oid in (self._images if wanted is None else wanted)]
        super().sync(wanted)
        for oid, images in durable:
            with self._change:
                del self._images.get(oid, [])[: len(images)]
            for path in images:  # oldest first: what is left can be undone at any moment
                path.unlink()


def power_cut(directory: str | Path) -> int:
    """Take back what was done to the objects under `directory`, of which the process is dead; how many changes."""
    count = 0
    for path in sorted(Path(directory, UNDO).iterdir(), reverse=True):
        record = path.read_bytes()
        image = record[_HEAD.size :]
        if len(record) >= _HEAD.size:
            oid, size, start, length = _HEAD.unpack_from(record)
            if len(image) == length:
                _put_back(directory, oid, size, start, image)
                count += 1
        path.unlink()
    return count


def _put_back(directory: str | Path, oid: int, size: int, start: int, image: bytes) -> None:
    path = Path(directory, "O", f"d{oid % SUBDIRECTORIES}", str(oid))
    if size < 0:
        path.unlink(missing_ok=True)
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(fd, size)
        os.pwrite(fd, image, start)
        os.fsync(fd)
    finally:
        os.close(fd)
