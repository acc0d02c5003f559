"""A directory for what is half done. It is gone in the end; what a killed command has left of one, the next command removes.

Whoever makes one holds a lock on a file in it, which the kernel ends with its process. So a directory of ours that has the file,
and nobody who holds the lock, is nobody's: it is emptied, the file last. Others of such a name stay: they are somebody else's,
or where there are no locks to tell.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lustrelite.store import disk

OWNED = ".lustrelite-scratch"  # the file


@contextlib.contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory in `parent`.  OSError"""
    remove_left(parent, prefix)
    path, owned = _make(parent, prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(owned)


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        owned = os.open(path / OWNED, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if disk.try_lock(owned) and (path / OWNED).exists():
                return path, owned
        except OSError:
            (path / OWNED).unlink()  # no locks here: nobody shall think that it is nobody's
            return path, owned
        os.close(owned)  # another command came in between, and took it for one that was left


def remove_left(parent: Path, prefix: str) -> None:
    """Remove what killed commands have left in `parent`, if it is there."""
    for path in sorted(parent.glob(f"{prefix}*")):
        with contextlib.suppress(OSError):  # no directory of ours, or another command has just removed it
            _remove_left(path)


def _remove_left(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(directory).st_uid != os.geteuid():
            return
        owned = os.open(OWNED, os.O_RDWR | os.O_NOFOLLOW, dir_fd=directory)
        try:
            if not disk.try_lock(owned):
                return
            for name in os.listdir(directory):
                if name != OWNED:
                    _remove(name, directory)
            os.unlink(OWNED, dir_fd=directory)
        finally:
            os.close(owned)
    finally:
        os.close(directory)
    path.rmdir()


def _remove(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=directory)
