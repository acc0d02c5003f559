"""Who has a name: one process of a run directory, until it ends. What it leaves there would else be taken over by another.

Who has the file of a name locked while nobody else has is its owner or, if that is dead, may remove what it has left. The lock
tells that also of a process in another PID namespace, of which /proc knows nothing.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from lustrelite.alive import start_ticks
from lustrelite.errors import OpError
from lustrelite.store import disk

DYING_S = 30.0  # one that was killed has its name as long as a thread of it still waits for a disk
POLL_S = 0.02


class NameTaken(OpError):
    """A process of this name runs."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(errno.EBUSY, f"{path.stem} runs already in {path.parent}, as process {pid or 'that has just begun'}")


def claim(path: Path) -> int:
    """Be the one process whose number is in the file `path`, as long as the descriptor is open that is returned.  NameTaken"""
    deadline = time.monotonic() + DYING_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if disk.try_lock(fd):
            if _leads_to(path, fd):
                os.ftruncate(fd, 0)
                os.write(fd, f"{os.getpid()}\n".encode())
                return fd
            os.close(fd)  # its owner has just removed it
            continue
        pid = os.read(fd, 20).decode().strip()
        os.close(fd)
        if (pid and start_ticks(int(pid))) or time.monotonic() > deadline:
            raise NameTaken(path, pid)
        time.sleep(POLL_S)


def _leads_to(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


LEFT = (".json", ".json.new", ".sock", ".dead", ".pid")  # the lock last: until then nobody else has the name


def bury(path: Path, seen_s: float = 0.0) -> None:
    """Remove what the process of the name in the file `path` has left, if it is dead, and was seen dead `seen_s` ago or longer.  OSError

    Whoever had seen it alive may be waiting to read how it ended. NAME.dead was written when it was first seen dead.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # one that had something to say took only its name with it
    try:
        if not disk.try_lock(fd) or not _leads_to(path, fd):
            return
        mark = path.with_suffix(".dead")
        seen = mark.stat().st_mtime if mark.exists() else 0.0
        if seen_s and seen < os.fstat(fd).st_mtime:  # none, or of an earlier process of this name
            mark.touch()
        elif time.time() - seen >= seen_s:
            for suffix in LEFT:
                path.with_suffix(suffix).unlink(missing_ok=True)
    finally:
        os.close(fd)
