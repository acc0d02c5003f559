"""Events on disk: one JSON line each, and the same as a log a person reads; both files rotate.

Written line by line, so that a kill loses at most the line being written. Before each line we look at its path: whoever
moves, removes or truncates a file (logrotate) need not tell us, and a mount has no signal left for that (SIGHUP unmounts).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import IO

from lustrelite.events import Event

FILE_BYTES_MAX = 16 << 20
FILES_KEPT = 3


class RotatingFile:
    """A text file that becomes NAME.1 (and NAME.1 NAME.2 ...) when it is full."""

    def __init__(self, path: Path, bytes_max: int = FILE_BYTES_MAX, kept: int = FILES_KEPT, std: tuple[int, ...] = ()) -> None:
        self.path = path
        self.bytes_max = bytes_max
        self.kept = kept
        self.std = std  # descriptors that follow (1, 2): a traceback belongs into the log
        self._open()

    def _open(self) -> None:
        self.file: IO[str] = open(self.path, "a", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        for descriptor in self.std:
            os.dup2(self.file.fileno(), descriptor)

    def write(self, line: str) -> None:
        """Append `line`, which has no newline.  OSError; the next line is tried anew"""
        size = self._size()
        if size is None:
            self.file.close()
            self._open()
        elif size > self.bytes_max:
            self.rotate()
        self.file.write(line + "\n")

    def _size(self) -> int | None:
        """Of the file at our path; None if it is not the one that we write to."""
        if self.file.closed:
            return None
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_size if os.path.samestat(found, os.fstat(self.file.fileno())) else None

    def rotate(self) -> None:
        """Start a new file now."""
        self.file.close()
        for number in range(self.kept - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            if older.exists():
                older.replace(self.path.with_name(f"{self.path.name}.{number + 1}"))
        self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        self._open()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class EventFile:
    """A sink that writes JSON lines. The event's own time is the loop's; `wall` is the calendar's."""

    def __init__(self, path: Path, bytes_max: int = FILE_BYTES_MAX) -> None:
        self.out = RotatingFile(path, bytes_max)

    def __call__(self, event: Event) -> None:
        line = event.line()
        self.out.write(f'{{"wall": {time.time():.6f}, {line[1:]}')

    def close(self) -> None:
        """Close the file."""
        self.out.close()


def log_line(event: Event) -> str:
    """The event as a line for people: `2026-11-20 21:44:01.123 mds1 WARNING recovery.timed_out clients=2`."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
    level = "" if event.level in ("info", "debug") else event.level.upper() + " "
    fields = " ".join(f"{key}={value}" for key, value in event.fields.items())
    return f"{stamp}.{int(now * 1000) % 1000:03d} {event.node} {level}{event.name} {fields}".rstrip()
