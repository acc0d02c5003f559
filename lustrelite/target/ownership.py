"""A target belongs to one process at a time (docs/architecture.md, on disk).

The proof is a lock on the file `owner` in the target's directory, which the kernel keeps until the process is dead: no
clock, no lease, no heartbeat can be wrong about it. The text in that file is for people: who it is. It may be there
without the lock (after a crash) and then means nothing.

There is no takeover without death. A standby waits for the lock; if the owner is alive but silent, something must kill
it first (STONITH, `docker kill`): two writers on one database are never safe. On a file system shared by several hosts
the lock is as good as that file system's locks.

The lock lives in the open file: a forked child would share it, so a server that holds a target does not fork
(processes it starts by exec lose the descriptor).
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import NamedTuple

from lustrelite.errors import OpError
from lustrelite.store import disk

OWNER_FILE = "owner"
_RECORD_BYTES_MAX = 4096


class Owner(NamedTuple):
    """Who runs a target."""

    node: str
    pid: int
    instance: int  # mount count of the target, 0 while it is not known yet
    nid: str


class Owned(OpError):
    """Another process has the target; `owner` is what it says of itself, None if it has not said yet."""

    def __init__(self, directory: str, owner: Owner | None) -> None:
        who = f"process {owner.pid} on {owner.node} ({owner.nid or 'no address yet'})" if owner else "another process"
        super().__init__(errno.EBUSY, f"{directory} belongs to {who}; it is taken over only when that process is dead")
        self.owner = owner


class Ownership:
    """This process's claim on the target in `directory`."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = str(directory)
        self._path = os.path.join(self.directory, OWNER_FILE)
        self._fd = -1

    @property
    def held(self) -> bool:
        """True from a successful acquire to release."""
        return self._fd >= 0

    def try_acquire(self, record: Owner) -> bool:
        """Take the target, or return False if another process (or another part of this one) has it.

        A standby calls it again and again: nothing changes for the owner."""
        assert self._fd < 0, f"{self.directory} is already ours"
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not disk.try_lock(fd):
                return False
            os.ftruncate(fd, 0)  # what the predecessor wrote must not be taken for ours
            self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)
        self.update(record)
        return True

    def acquire(self, record: Owner) -> None:
        """Take the target; Owned if another process has it."""
        if not self.try_acquire(record):
            raise Owned(self.directory, self.owner())

    def update(self, record: Owner) -> None:
        """Say anew who we are: the address and instance are known only later. A full disk may have no room for that."""
        assert self._fd >= 0, "only the owner may say who it is"
        text = json.dumps(record._asdict()).encode() + b"\n"
        try:
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))
        except OSError as error:
            if error.errno not in disk.NO_ROOM:
                raise

    def owner(self) -> Owner | None:
        """What the present or last owner wrote; None if there is nothing that can be read."""
        try:
            with open(self._path, "rb") as file:
                fields = json.loads(file.read(_RECORD_BYTES_MAX))
            return Owner(str(fields["node"]), int(fields["pid"]), int(fields["instance"]), str(fields["nid"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def release(self) -> None:
        """Give the target up in good order. Its database must be closed by now."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            self.abandon()

    def abandon(self) -> None:
        """Lose the lock as a killed process does: the record stays behind."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
