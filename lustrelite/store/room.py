"""How much may go into the running batch: a full disk or map is met before the batch is in danger.

LMDB cannot undo half a request, and a batch that does not fit kills every request in it. So it is reckoned, before
anything is touched, how many pages the batch may need at worst, and refused with ENOSPC while it still fits:

- pages inside the file that are free already, plus blocks allocated ahead of its end (fallocate: they are ours, object
  data on the same disk cannot take them), plus what statvfs leaves above the reserve;
- large values need pages side by side; LMDB does not say whether there are such among the free ones, so these count behind
  the file's end (what may be large and many is therefore cut into pieces: mdt/xattr_rows.py);
- what a sealed batch may need is set aside until it is durable, for the pages that it frees come back even later;
- the last `kept` bytes are for deletions, for answers that are all that is written (an open of what is there), for what
  programs were told is done (closes, times), and for essential writes (replays, evictions, clean-up), or a full target
  could never be emptied; a quarter of them for the essential ones alone, which cannot be put off. Who meets his bound sets
  `pressed`: a commit gives back what the reckoning was too careful about, and the pages that the batch before it freed. Who
  would fit but for the others, or with those pages, is told to come again after it; who brings what was acknowledged is
  told so in any case.

Between checks stand at most CHECK_RECORDS records, so the common case is a comparison in the store.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from lustrelite.errors import OpError
from lustrelite.store import disk
from lustrelite.tunables import Tunables

PAGE = 4096
CHECK_RECORDS = 256
CHECK_BYTES = 1 << 20
FIXED_BYTES = 64 * PAGE  # of any commit: roots, list of free pages
KEPT_BYTES = 16 << 20  # less in a small map and on a small disk
ALLOCATE_BYTES = 4 << 20

EXTENTS_BYTES = 16 * PAGE  # at most, of a file's blocks, with what the file system writes down where the others are

LARGE_BYTES = PAGE - 16  # a value beyond that has several pages, side by side, with one header (OVPAGES(), mdb.c)

ORDINARY, DELETION, OWED, ESSENTIAL = range(4)  # how much of what is kept a write may use: nothing, most, most, all


class Load(NamedTuple):
    """What is in a batch."""

    records: int
    size: int  # bytes of keys and values
    large: int  # of the pages that large values need side by side


class Room:
    """The room of one database."""

    def __init__(self, directory: str, map_bytes: int) -> None:
        self.directory = directory
        self.reserved_permille = Tunables.reserved_permille
        self.pressed = False
        self._map_bytes = map_bytes
        self._data_fd = -1
        self._kept = max(2 * FIXED_BYTES, min(KEPT_BYTES, map_bytes // 8, disk.space(directory).total // 64))
        self._file_end = 0
        self._allocated = 0
        self._reusable = 0
        self._tree_bytes = 0
        self._aside = FIXED_BYTES
        self._aside_large = 0
        self._comes_back = 0  # pages that the last commit freed, for which one more is needed

    def allocate_for(self, path: str) -> None:
        """From now on allocate the blocks of the file `path` before they are needed.

        What a predecessor allocated behind the file's end is there: without it nothing could start on a disk that was
        filled since.
        """
        self._data_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._allocated = max(0, os.fstat(self._data_fd).st_blocks * 512 - EXTENTS_BYTES)

    def close(self) -> None:
        """Allocate no more."""
        if self._data_fd >= 0:
            os.close(self._data_fd)
            self._data_fd = -1

    def set_aside(self, load: Load) -> None:
        """A batch is sealed: what comes now is of the next one."""
        self._aside, self._aside_large = self.need(load), load.large
        self._comes_back = 0
        self.pressed = False

    def measure(self, env: Any, txn: Any, dbs: Iterable[Any]) -> None:
        """See how large file and trees are after the sealed batch was committed, whose freed pages cannot be used
        again before the next commit (LMDB keeps the last state whole)."""
        self._file_end = (env.info()["last_pgno"] + 1) * PAGE
        freed, self._aside, self._aside_large = self._aside, 0, 0
        used = 0
        for db in dbs:
            stat = txn.stat(db)
            used += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        self._tree_bytes = used * PAGE
        self._reusable = max(0, self._file_end - self._tree_bytes - freed)
        self._comes_back = max(0, freed - self.need(Load(8, PAGE, 0)))  # less what the commit itself takes and frees
        self._allocated = max(self._allocated, self._file_end)

    def need(self, load: Load) -> int:
        """Bytes of pages that a batch takes at worst.

        Each record copies at most one leaf and splits it (two pages, one more for a value with pages of its own), with
        branches shared; or every page of the trees is copied once and new ones are at least a third full."""
        tree_bytes = self._tree_bytes + self._aside  # the sealed batch may let it grow so much
        return FIXED_BYTES + min(3 * PAGE * load.records + load.size, tree_bytes + 3 * load.size)

    def make(self, load: Load, *, more: Load, kind: int) -> tuple[int, int]:
        """Let the batch grow to `load`, of which `more` is new, by a write of `kind`.

        Returns the records and the size up to which nobody with an ordinary write, and no large value, needs to ask again.
        Errors: OpError(ENOSPC); OpError(EAGAIN), it would fit if the rest were committed"""
        need = self.need(load)
        space = disk.space(self.directory)
        reserved = space.total * self.reserved_permille // 1000 if kind == ORDINARY else 0
        on_disk = self._allocated - self._file_end + max(0, space.available - reserved)
        behind = min(on_disk, self._map_bytes - self._file_end)
        room = self._reusable + behind - self._aside
        bound = room - (self._kept, self._kept // 4, self._kept // 4, 0)[kind]
        if need > room - self._kept and load.records > more.records:
            self.pressed = True
        if need <= bound and (not more.large or self._aside_large + load.large <= behind):
            ahead = self.need(Load(load.records + CHECK_RECORDS, load.size + CHECK_BYTES, load.large))
            if kind == ORDINARY and ahead <= bound and self._allocate(ahead + self._kept, load.large):
                return load.records + CHECK_RECORDS, load.size + CHECK_BYTES
            if self._allocate(need + self._kept if kind == ORDINARY else need, load.large):
                return (load.records, load.size) if kind == ORDINARY else (-1, 0)
        elif kind != ESSENTIAL and more.large <= behind and self.need(more) <= bound + self._aside + self._comes_back:
            self.pressed = True
            raise OpError(errno.EAGAIN, f"{self.directory} has no room before the next commit")
        raise OpError(errno.EAGAIN if kind == OWED else errno.ENOSPC, f"{self.directory} is full")

    def _allocate(self, batch_bytes: int, large: int) -> bool:
        """Have disk blocks behind the file's end for a batch of that size. False if the disk is full."""
        end = self._file_end + max(self._aside + batch_bytes - self._reusable, self._aside_large + large)
        if end <= self._allocated or self._data_fd < 0:
            return True
        need = end - self._allocated
        try:
            size = disk.fallocate_first(
                self._data_fd, disk.FALLOC_KEEP_SIZE, self._allocated, (max(need, ALLOCATE_BYTES), need)
            )
        except OSError as error:
            if error.errno not in disk.NO_FALLOCATE:
                raise
            self.close()  # statvfs has to do
            return True
        self._allocated += size
        return size > 0
