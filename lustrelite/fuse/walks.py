"""Who was told ESTALE walks his path once more, and what he then finds is kept for him.

A path leads to an inode, and the kernel then asks for something to be done with that. In between another mount may remove
the file, or rename another one over it. The kernel is told ESTALE, asks for every name of the path anew, and comes again,
once (retry_estale(), LOOKUP_REVAL, include/linux/namei.h of Linux). If names change all the time, that fails, too, and
ESTALE is what the program sees; on a local disk an inode that was found stays until it was used. So does what is found by the
second walk: it is opened, for a moment, and a file that is open does not go with its name.

It costs an open and a close where there was a race, and nothing elsewhere. What cannot be opened (a FIFO, a directory) is not
kept.
"""

from __future__ import annotations

import asyncio
import errno
import stat as modes
from typing import TYPE_CHECKING

from lustrelite.client.attributes import Stat
from lustrelite.errors import OpError
from lustrelite.ids import Fid

if TYPE_CHECKING:
    from lustrelite.client.fs import FileSystem

WALK_S = 5.0  # who has not walked again by then, does not
KEPT_S = 1.0  # what is found is kept so long: the kernel uses it at once
WALKERS_MAX = 64  # whom we remember


class Walks:
    """Of one mount."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._walkers: dict[int, float] = {}  # threads that were told ESTALE: until when they may walk again
        self._loop = asyncio.get_running_loop()

    def stale(self, pid: int) -> None:
        """This thread was told ESTALE."""
        self._walkers.pop(pid, None)
        if len(self._walkers) >= WALKERS_MAX:
            del self._walkers[next(iter(self._walkers))]
        self._walkers[pid] = self._loop.time() + WALK_S

    def again(self, pid: int) -> bool:
        """Does it walk once more?"""
        until = self._walkers.get(pid)
        return until is not None and until >= self._loop.time()

    async def find(self, pid: int, parent: Fid, name: bytes) -> Stat:
        """`stat_at`; if a file is found it stays for a while, also if it loses its name.  ENOENT"""
        while True:
            stat = await self._fs.stat_at(parent, name)
            if not modes.S_ISREG(stat.mode):
                return stat
            try:
                file = await self._fs.open_fid(stat.fid)
            except OpError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
                continue  # it has lost the name meanwhile: who has it now?
            self._walkers.pop(pid, None)
            self._loop.call_later(KEPT_S, file.close_later)
            return stat
