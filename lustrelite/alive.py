"""Is that process still there? A number alone does not say: it may be another's by now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def start_ticks(pid: int) -> int:
    """When the process `pid` started, in the kernel's ticks; 0 if it does not run. With the pid it names a process.

    It runs until its last thread has ended: one that waits for a disk has its files open still, though the first is a zombie.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat[stat.rindex(")") + 2 :].split()
    state, threads, ticks = fields[0], int(fields[17]), int(fields[19])  # proc_pid_stat(5): 3, 20 and 22
    return 0 if state in "ZX" and threads <= 1 else ticks


def runs(record: Mapping[str, Any]) -> bool:
    """Is the process there that has written this record of itself (process.py)?"""
    ticks = start_ticks(int(record["pid"]))
    return ticks > 0 and ticks == record["start_ticks"]
