"""The open files of one mount, by FID: what several handles of one file share."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lustrelite.client.late_closes import LateCloses
from lustrelite.ids import Fid

if TYPE_CHECKING:
    from lustrelite.client.file import File


class OpenInode:
    """A file that is open at least once here."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}  # by handle
        self.append_lock = asyncio.Lock()  # one appender at a time; other clients are kept out by locks, if we cache


class OpenFiles:
    """All of them."""

    def __init__(self, late: LateCloses) -> None:
        self._inodes: dict[Fid, OpenInode] = {}
        self._late = late
        self.untold: dict[Fid, int] = {}  # of which something was lost, errno, and it may be that nobody hears of it

    def add(self, file: File) -> OpenInode:
        """`file` was opened."""
        inode = self._inodes.get(file.fid)
        if inode is None:
            inode = self._inodes[file.fid] = OpenInode()
        assert file.handle not in inode.files, "a handle is opened once"
        inode.files[file.handle] = file
        if self.untold and (number := self.untold.get(file.fid)):
            file.write_failed(number)
        return inode

    def remove(self, file: File) -> None:
        """`file` is being closed."""
        inode = self._inodes[file.fid]
        del inode.files[file.handle]
        if not inode.files:
            del self._inodes[file.fid]

    def of(self, fid: Fid) -> list[File]:
        """The open files of `fid`."""
        inode = self._inodes.get(fid)
        return list(inode.files.values()) if inode is not None else []

    def pending_times(self, fid: Fid) -> tuple[int, int]:
        """(mtime, atime) of what was written and read here, which the MDT will hear at close or soon after; 0 is none."""
        mtime, atime = self._late.pending.get(fid, (0, 0))
        inode = self._inodes.get(fid)
        if inode is None:
            return mtime, atime
        files = inode.files.values()
        return max(mtime, max(file.mtime for file in files)), max(atime, max(file.atime for file in files))

    def forget_times(self, fid: Fid, *, mtime: bool, atime: bool) -> None:
        """Times of `fid` were set: what was done before counts no more."""
        for file in self.of(fid):
            file.mtime = 0 if mtime else file.mtime
            file.atime = 0 if atime else file.atime
        self._late.forget(fid, mtime=mtime, atime=atime)

    def write_failed(self, fid: Fid, number: int) -> None:
        """Data that was written to `fid` and answered is lost: each open file says so once.

        If none of them has written, who opens it next hears it, too, until somebody was told.  Source: errseq_t
        """
        told = [file.write_failed(number) for file in self.of(fid)]
        if not any(told):
            self.untold[fid] = number

    def attrs_lost(self, fid: Fid) -> None:
        """Attributes of `fid` that were changed here are lost: every open file says so once."""
        files = self.of(fid)
        for file in files:
            file.attrs_lost(errno.EIO)
        if not files:
            self.untold[fid] = errno.EIO

    def all(self) -> Iterator[File]:
        """Every open file, oldest inode first."""
        for inode in list(self._inodes.values()):
            yield from list(inode.files.values())
