"""Closes for which nobody waits: the MDT hears of many at once, a little later.

The kernel does not wait for its RELEASE. So what it closes is gathered for up to a second and told in one message
(Closes), with when each file was written and read last; also for files that were open here alone (local_opens.py) and of which
there is nothing to tell but that they were read. Until the MDT has answered, this client shows the times from here
(OpenFiles.pending_times). Of a file whose attributes it knows it goes on knowing them. A utimes() in between wins: here it
is forgotten, and as long as it is not restarted the MDT knows when it has set the times of what is open or was read
(OpenFiles.times_set(), mdt/open.py).
Who waits for his close, in the library, waits for the MDT (File.close()). The end of the mount waits for all; a client
that dies takes them along, and is evicted with what it has open.
Source: Lustre's MDT is told at close, and writes an access time down only if it is a minute newer (mdd.*.atime_diff)
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lustrelite.client.tasks import Later
from lustrelite.ids import Fid
from lustrelite.wire.mdt import ClosedFile

if TYPE_CHECKING:
    from lustrelite.client.connections import Connections

TOLD_AFTER_S = 1.0
ROWS_MAX = 128  # more are sent at once

Times = tuple[int, int]  # (mtime, atime), 0: none


class LateCloses:
    """Those that the MDT has not heard of."""

    def __init__(self, connections: Connections) -> None:
        self.pending: dict[Fid, Times] = {}
        self._connections = connections
        self._closed: list[ClosedFile] = []  # not on their way yet
        self._read: dict[Fid, int] = {}  # nor these, which had no handle: when they were read last
        self._later = Later(connections.tasks, TOLD_AFTER_S, self._tell, "late closes")

    def closed(self, handle: int, fid: Fid, mtime: int, atime: int) -> None:
        """A file was closed."""
        self._closed.append(ClosedFile(handle, fid, atime, mtime))
        if mtime or atime:
            self._add(fid, mtime, atime)
        self._soon()

    def read(self, fid: Fid, atime: int) -> None:
        """A file of which the MDT has never heard that it was open was read, at `atime` last."""
        self._read[fid] = max(atime, self._read.get(fid, 0))
        self._add(fid, 0, atime)
        self._soon()

    def _add(self, fid: Fid, mtime: int, atime: int) -> None:
        wrote, read = self.pending.get(fid, (0, 0))
        self.pending[fid] = (max(mtime, wrote), max(atime, read))

    def _soon(self) -> None:
        if not self._later.want() and self.waiting >= ROWS_MAX:
            self.hurry()

    def forget(self, fid: Fid, *, mtime: bool, atime: bool) -> None:
        """Times of a file were set: what was done before counts no more."""
        wrote, read = self.pending.get(fid, (0, 0))
        self._keep(fid, 0 if mtime else wrote, 0 if atime else read)
        for at, row in enumerate(self._closed):
            if row.fid == fid:
                self._closed[at] = row._replace(mtime=0 if mtime else row.mtime, atime=0 if atime else row.atime)
        if atime:
            self._read.pop(fid, None)

    def _keep(self, fid: Fid, mtime: int, atime: int) -> None:
        if mtime or atime:
            self.pending[fid] = (mtime, atime)
        else:
            self.pending.pop(fid, None)

    @property
    def waiting(self) -> int:
        """How many are not on their way yet."""
        return len(self._closed) + len(self._read)

    def hurry(self) -> None:
        """Tell them now."""
        self._later.hurry()

    async def tell(self) -> None:
        """The same; done when the MDT has answered."""
        if self._later.task is not None:
            self.hurry()
            await asyncio.wait([self._later.task])

    async def _tell(self) -> None:
        rows = (*self._closed, *(ClosedFile(0, fid, atime, 0) for fid, atime in self._read.items()))
        self._closed.clear()
        self._read.clear()
        if not rows:
            return
        try:
            await self._connections.mdc.close_all(rows, self.pending)
        finally:
            for row in rows:
                wrote, read = self.pending.get(row.fid, (0, 0))
                self._keep(row.fid, wrote if wrote > row.mtime else 0, read if read > row.atime else 0)
