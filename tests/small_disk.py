"""A small disk of a test's own."""

from __future__ import annotations

import errno
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lustrelite.store import disk

MIB = 1 << 20


@contextmanager
def small_disk(place: Path, size_bytes: int, kind: str = "tmpfs") -> Iterator[Path]:
    """A file system of that size in the directory `place`, tmpfs or ext4; without it the test is skipped."""
    if kind == "tmpfs":
        with _mounted(place, "-t", "tmpfs", "-o", f"size={size_bytes}", "none"):
            yield place
        return
    with tempfile.NamedTemporaryFile(prefix="lldisk") as image:
        image.truncate(size_bytes)
        make_ext4(Path(image.name))
        with _mounted(place, "-o", "loop", image.name):
            yield place


def make_ext4(image: Path) -> None:
    """Make a file system in a file, without blocks that are root's alone; skip the test where that cannot be done."""
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ext4 here: {getattr(error, 'stderr', '') or error}")


@contextmanager
def _mounted(place: Path, *how: str) -> Iterator[None]:
    done = subprocess.run(["mount", *how, str(place)], capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        pytest.skip(f"only root may mount a small file system: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=60)


def left(place: Path) -> int:
    """How many bytes are free."""
    return disk.space(str(place)).available


def fill(place: Path, but: int = 0) -> Path:
    """Take all that is free, to the last block, as any program could; returns the file that has it."""
    others = place / "others"
    size = 16 * MIB
    with open(others, "ab", buffering=0) as file:
        while size and left(place) > but:
            try:
                file.write(bytes(min(size, left(place) - but)))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                size //= 2
    return others
