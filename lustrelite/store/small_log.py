"""Small batches that somebody waits for, made durable with one flush.

A commit of the database costs two flushes, its pages and then its root, and one more for each file whose data the batch
counts on, however little was changed. So a batch of a few records is appended to a log instead, together with the data
that it counts on, and stays what it was besides: part of the database's open transaction. The next commit makes the log
void; a process that dies before leaves the log to its successor, which puts the changes into its first batch.

The file is written around once when it is made, so that an append changes no metadata of the file system. Nothing is
erased: a record says which commit of the database it follows (LMDB's own number), and its place among those that do.
Reading ends with the first that follows another commit, is out of its place, or does not match its checksum: it was
never written whole, so nobody was told that it is durable.
Source: ARIES (ACM TODS 17, 1992) for the idea of a log; ldiskfs' journal does this for Lustre.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import crc32c
import msgpack

from lustrelite.store import disk

LOG_BYTES = 1 << 20
RECORD_BYTES_MAX = 128 << 10
LAST_BYTES = 64 << 10  # for records without changes, which say something of those before
SECTOR_BYTES = 512  # a record begins at one: what an append overwrites was never part of another
_HEAD = struct.Struct("<QQII")  # the commit that it follows, its place, length and checksum of what comes

Change = tuple[str, bytes, bytes | None]  # table, key, value; None deletes
Data = tuple[int, int, bytes | None]  # object, offset, bytes; None: what came before is durable in the object's file


class Entry(NamedTuple):
    """What one append made durable."""

    changes: list[Change]
    data: list[Data]


class SmallLog:
    """The log beside the database in `directory`, once it is open. Errors of all methods: OSError."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._fd = -1
        self._after = 0
        self._place = 0
        self._end = 0

    def open(self, *, durable: bool, readonly: bool) -> None:
        """Open the file, and make it first if there is none.

        `durable=False`: an append waits for no disk (simulator).
        """
        path = os.path.join(self.directory, "log")
        flags = os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT | (os.O_DSYNC if durable else 0)
        try:
            self._fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return  # to be read only: it is empty
        if durable and not readonly and os.fstat(self._fd).st_size < LOG_BYTES:
            os.pwrite(self._fd, bytes(LOG_BYTES), 0)
            disk.sync_directory(self.directory)

    def begin(self, commit: int) -> None:
        """The database has committed, for the time `commit`: what is in the log is void."""
        self._after, self._place, self._end = commit, 0, 0

    def entries(self, commit: int) -> list[Entry]:
        """What was appended after `commit`."""
        found: list[Entry] = []
        content = os.pread(self._fd, LOG_BYTES, 0) if self._fd >= 0 else b""
        at = 0
        while at + _HEAD.size <= len(content):
            after, place, length, checksum = _HEAD.unpack_from(content, at)
            body = content[at + _HEAD.size : at + _HEAD.size + length]
            if (after, place) != (commit, len(found)) or len(body) < length or _checksum(after, place, body) != checksum:
                break
            changes, data = msgpack.unpackb(body, use_list=False)
            found.append(Entry(list(changes), list(data)))
            at += _padded(_HEAD.size + length)
        return found

    def append(self, changes: Sequence[Change], data: Sequence[Data]) -> bool:
        """Make them durable; False if they are too much, or the log is full."""
        body: Any = msgpack.packb((changes, data))
        size = _HEAD.size + len(body)
        if size > RECORD_BYTES_MAX or self._end + size > LOG_BYTES - (LAST_BYTES if changes else 0):
            return False
        head = _HEAD.pack(self._after, self._place, len(body), _checksum(self._after, self._place, body))
        if os.pwritev(self._fd, (head, body), self._end) != size:
            raise OSError(errno.EIO, "the log was not written whole")
        self._place += 1
        self._end += _padded(size)
        return True

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _padded(size: int) -> int:
    return -(-size // SECTOR_BYTES) * SECTOR_BYTES


def _checksum(after: int, place: int, body: bytes) -> int:
    return crc32c.crc32c(body, crc32c.crc32c(struct.pack("<QQ", after, place)))
