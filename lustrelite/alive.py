"""Is that process still there? A number alone does not say: it may be another's by now. And who has a name."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from lustrelite.errors import OpError

DYING_S = 30.0  # one that was killed has its name as long as a thread of it still waits for a disk
POLL_S = 0.02


class NameTaken(OpError):
    """A process of this name runs."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(errno.EBUSY, f"{path.stem} runs already in {path.parent}, as process {pid or 'that has just begun'}")


def start_ticks(pid: int) -> int:
    """When the process `pid` started, in the kernel's ticks; 0 if it does not run. With the pid it names a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat[stat.rindex(")") + 2 :].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def claim(path: Path) -> int:
    """Be the one process whose number is in the file `path`, as long as the descriptor is open that is returned.  NameTaken"""
    deadline = time.monotonic() + DYING_S
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 20).decode().strip()
            os.close(fd)
            if (pid and start_ticks(int(pid))) or time.monotonic() > deadline:
                raise NameTaken(path, pid) from None
            time.sleep(POLL_S)
            continue
        if _leads_to(path, fd):
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
            return fd
        os.close(fd)  # its owner has just removed it


def _leads_to(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
