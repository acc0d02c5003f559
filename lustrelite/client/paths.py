"""Paths as POSIX reads them: bytes, cut into components. Pure; who walks them is client/fs.py.

A path is absolute in the file system. `.` is dropped except at the end, where it means something ("rmdir a/." fails);
`..` is looked up like any name, since only the MDT knows what is above a directory now. A slash at the end says that
the path means a directory, and follows a symlink there.
"""

from __future__ import annotations

import errno
import os
from typing import TypeVar

from lustrelite.errors import OpError
from lustrelite.tunables import limits

Path = str | bytes
AnyPath = TypeVar("AnyPath", str, bytes)

_SPECIAL = frozenset((b"", b".", b".."))
_SHORT = limits.name_bytes_max // 4  # characters: however they are written, no part is too long then
SYMLINKS_MAX = 40  # MAXSYMLINKS: more than these on one path are taken for a loop


def encode(path: Path, what: str = "a path") -> bytes:
    """`path` as bytes (str by UTF-8, surrogateescape).  TypeError, or ValueError for a NUL in it."""
    if isinstance(path, str):
        path = path.encode("utf-8", "surrogateescape")
    elif not isinstance(path, bytes):
        raise TypeError(f"{what} is str or bytes, not {type(path).__name__}")
    if b"\0" in path:
        raise ValueError(f"{what} may not contain a NUL byte: {path!r}")
    return path


def like(value: bytes, model: AnyPath) -> AnyPath:
    """`value` as the type of `model`: names come back as the caller wrote his path."""
    return os.fsdecode(value) if isinstance(model, str) else value


def split(path: bytes) -> tuple[list[bytes], bool]:
    """(components, does it have to be a directory).  ENOENT if empty, ENAMETOOLONG."""
    if not path:
        raise OpError(errno.ENOENT, "the path is empty")
    if len(path) >= limits.path_bytes_max:
        raise OpError(errno.ENAMETOOLONG, f"a path of {len(path)} bytes")
    parts = [part for part in path.split(b"/") if part]
    last = len(parts) - 1
    parts = [part for i, part in enumerate(parts) if part != b"." or i == last]
    for part in parts:
        check_length(part)
    return parts, path.endswith(b"/") or (bool(parts) and parts[-1] in (b".", b".."))


def split_absolute(path: Path) -> tuple[list[bytes], bool]:
    """`split` for a path from a caller.  ValueError unless it starts with a slash."""
    if type(path) is str and len(path) <= _SHORT:  # as almost all paths are
        raw = path.encode("utf-8", "surrogateescape")
        parts = raw[1:].split(b"/")
        if raw[:1] == b"/" and b"\0" not in raw and _SPECIAL.isdisjoint(parts):
            return parts, False
    raw = encode(path)
    if raw and not raw.startswith(b"/"):
        raise ValueError(f"the path must be absolute in the file system: {path!r}")
    return split(raw)


def check_length(name: bytes) -> None:
    """ENAMETOOLONG for a component of more than 255 bytes."""
    if len(name) > limits.name_bytes_max:
        raise OpError(errno.ENAMETOOLONG, f"a name of {len(name)} bytes")


def check_name(name: bytes) -> bytes:
    """`name` if it can be made: one component, not "." or "..".  EEXIST, ENAMETOOLONG; ValueError for a slash in it."""
    if not isinstance(name, bytes):
        raise TypeError(f"a name is bytes, not {type(name).__name__}")
    check_length(name)
    if not name or b"/" in name or b"\0" in name:
        raise ValueError(f"not one component of a path: {name!r}")
    if name in (b".", b".."):
        raise OpError(errno.EEXIST)
    return name
