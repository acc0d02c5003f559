"""Room on a disk that is kept for what was promised to clients: blocks of a file to which nobody ever writes.

What is free belongs to nobody: the other OSTs of the disk, and any program, take of it what they like (`lustrelite up` puts
all targets on one disk, and so does a container engine with its volumes). So who promises room takes it first, and frees
of it what a write that was promised room does not find. A kill leaves the file to the successor, whose clients have
accepted data in the faith of it; after an orderly stop there is none, for clients have written back (not in a recovery).

What was freed is anybody's, too, until the write has it. So the last of the disk is never promised, and who promises
most stops there: writes find room in it, and afterwards what was kept for them is freed and makes up for that. Only where
others fill the disk to its last block a write has to wait until the room it was promised is free (`lend`).

Where a file system cannot allocate (EOPNOTSUPP) nothing is kept.
Source: none in Lustre, whose OSTs have a disk each
"""

from __future__ import annotations

import contextlib
import os
import threading

from lustrelite.store import disk

PIECE_BYTES = 1 << 20  # allocated by one call: btrfs frees that only as a whole
STEP_BYTES_MAX = 16 << 20  # taken and freed at once, less of a small disk
SPARE_BYTES_MAX = 64 << 20  # of the disk never promised, less of a small one: what several OSTs write at the same time
LENT_BYTES = 8 << 10  # freed beside what a write needs: its blocks need not begin where it does, and the file system has its own


class KeptRoom:
    """The file at `path`. Several threads may use it. Errors of all methods but `free`: OSError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._can = True
        total = disk.space(os.path.dirname(path)).total
        self._step = min(STEP_BYTES_MAX, total // 1024)
        self.spare = min(SPARE_BYTES_MAX, total // 12)  # bytes
        self.size = 0  # bytes
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(path)
            self.size = min(found.st_size, found.st_blocks * 512)

    def keep(self, wanted: int, *, at_least: bool = False) -> int:
        """Have `wanted` bytes, or what there is; returns how many that are. More are kept for a while, so that this is rare.

        `at_least`: what is more is not freed.
        """
        size = self.size
        if size - 2 * self._step <= wanted <= size or not self._can:
            return wanted
        with self._lock:
            if wanted > self.size:
                self._grow(wanted)
            elif self.size - 2 * self._step > wanted and not at_least:
                self._cut(wanted + self._step)
            return min(wanted, self.size) if self._can else wanted

    def _grow(self, wanted: int) -> None:
        end, most = self.size, wanted + self._step
        try:
            with self._open() as fd:
                while end < most:
                    length = min(PIECE_BYTES - end % PIECE_BYTES, most - end)
                    if not disk.fallocate_first(fd, 0, end, (length,)):
                        break
                    end += length
        except OSError as error:
            if error.errno not in disk.NO_FALLOCATE:
                raise
            self._can = False
            return
        if end >= wanted:
            self.size = end
        if end < most:  # of what there was no room for some may have been found
            self._cut(self.size)

    def lend(self, length: int) -> bool:
        """Free room for a write of `length` bytes that was promised it; False: nothing is kept."""
        with self._lock:
            if not self.size:
                return False
            self._cut(max(0, self.size - length - LENT_BYTES), durable=True)
            return True

    def free(self) -> None:
        """Nothing is promised any more."""
        with self._lock, contextlib.suppress(OSError):
            os.unlink(self._path)
            self.size = 0

    def _cut(self, size: int, *, durable: bool = False) -> None:
        with self._open() as fd:
            os.ftruncate(fd, size)
            if durable:  # with a journal, what was freed is free when that is durable
                os.fsync(fd)
        self.size = size

    def _open(self) -> contextlib.AbstractContextManager[int]:
        return disk.opened(self._path, os.O_RDWR | os.O_CREAT)
