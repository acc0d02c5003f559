"""Is that process still there? A number alone does not say: it may be another's by now."""

from __future__ import annotations

from pathlib import Path


def start_ticks(pid: int) -> int:
    """When the process `pid` started, in the kernel's ticks; 0 if it does not run. With the pid it names a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat[stat.rindex(")") + 2 :].split()
    return 0 if fields[0] in "ZX" else int(fields[19])
