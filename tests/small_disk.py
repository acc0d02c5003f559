"""A small disk of a test's own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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


def fill(place: Path) -> Path:
    """Take the last block of the disk, as any program could; the file that did."""
    filler = place / "filler"
    size = 16 * MIB
    with open(filler, "wb", buffering=0) as file:
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2
    return filler
