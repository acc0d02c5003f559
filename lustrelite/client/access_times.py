"""Access times of files that were open here alone (local_opens.py): the MDT is told of many at once, a little later.

Until it has answered, this client shows them from here (OpenFiles.pending_times). Of a file whose attributes it knows it
goes on knowing them. A utimes() in between wins: here it is forgotten, and the MDT remembers for a while when it set the
times of what (OpenFiles.times_set(), mdt/open.py). Who waits for his close waits for that (File.close()); the kernel does
not, and of what it closes the MDT hears within a second, or at the end of the mount. A client that dies before takes it along.
Source: Lustre's MDT is told at close, and writes it down only if it is a minute newer (mdd.*.atime_diff)
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lustrelite.ids import Fid
from lustrelite.wire.mdt import AccessTime

if TYPE_CHECKING:
    from lustrelite.client.mdc import Mdc
    from lustrelite.client.tasks import Tasks

TOLD_AFTER_S = 1.0
ROWS_MAX = 128  # in one message, which is sent at once


class AccessTimes:
    """Those that the MDT has not heard of."""

    def __init__(self, tasks: Tasks) -> None:
        self.pending: dict[Fid, int] = {}
        self._tasks = tasks
        self._new: dict[Fid, None] = {}  # those of `pending` that are not on their way
        self._due: asyncio.Event | None = None  # `_telling` tells them soon, or when this is set
        self._telling: asyncio.Task[Any] | None = None

    def read(self, mdc: Mdc, fid: Fid, atime: int) -> None:
        """A file was read, at `atime` last."""
        self.pending[fid] = max(atime, self.pending.get(fid, 0))
        self._new[fid] = None
        if self._due is None:
            self._due = asyncio.Event()
            self._telling = self._tasks.spawn(self._tell(mdc, self._due), "access times")
        elif len(self._new) >= ROWS_MAX:
            self.hurry()

    def forget(self, fid: Fid) -> None:
        """utimes() has set the times of a file."""
        self.pending.pop(fid, None)
        self._new.pop(fid, None)

    def hurry(self) -> None:
        """Tell them now."""
        if self._due is not None:
            self._due.set()

    async def tell(self) -> None:
        """The same; done when the MDT has answered."""
        if self._telling is not None:
            self.hurry()
            await asyncio.wait([self._telling])

    async def _tell(self, mdc: Mdc, due: asyncio.Event) -> None:
        try:
            await asyncio.wait_for(due.wait(), TOLD_AFTER_S)
        except TimeoutError:
            pass
        self._due = None
        rows = tuple(AccessTime(fid, self.pending[fid]) for fid in self._new)
        self._new.clear()
        if rows:
            try:
                await mdc.tell_access_times(rows, self.pending)
            finally:
                for fid, atime in rows:
                    if self.pending.get(fid) == atime:
                        del self.pending[fid]
