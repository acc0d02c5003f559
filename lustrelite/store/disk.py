"""System calls that Python lacks: fallocate, syncfs, and a file lock that dies with the process.

The lock is an OFD lock: held by the open file, so closing another descriptor of the same file does not drop it (as a
POSIX lock would be), and two opens within one process exclude each other. The kernel drops it when the last process
that shares the descriptor is dead, and not before; a forked child shares it, an exec'ed one does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

FALLOC_KEEP_SIZE = 0x1
FALLOC_PUNCH_HOLE = 0x2
FALLOC_ZERO_RANGE = 0x10
NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS)  # this file system cannot
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
BYTES_PER_FILE = 4096  # where a file system has no table of inodes
GROWS_BY = 32 << 20  # a file that is mapped, however small the address space
GETFLAGS, SETFLAGS, NOCOW = 0x80086601, 0x40086602, 0x00800000  # FS_IOC_*, FS_NOCOW_FL
BROKEN = (errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.EUCLEAN, errno.EBADMSG)  # the disk, or just this place on it

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.syncfs.argtypes = (ctypes.c_int,)


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """A descriptor of the file or directory at `path`."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); OSError, EOPNOTSUPP where the file system cannot."""
    while _libc.fallocate(fd, mode, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def fallocate_first(fd: int, mode: int, offset: int, lengths: Iterable[int]) -> int:
    """Allocate the first of these `lengths` that there is room for, and return it; 0: there is none.  OSError, as of fallocate"""
    for length in lengths:
        try:
            fallocate(fd, mode, offset, length)
        except OSError as error:
            if error.errno not in (*NO_ROOM, errno.EFBIG):
                raise
        else:
            return length
    return 0


def syncfs(fd: int) -> None:
    """Make everything on the file system of `fd` durable: syncfs(2), which reports lost writes since Linux 5.8."""
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_directory(path: str) -> None:
    """Make the names in `path` durable."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


class Space(NamedTuple):
    """Of a file system, in bytes and counts; `available` is what an ordinary user may take."""

    total: int
    free: int
    available: int
    files_total: int
    files_free: int


def space(path: str) -> Space:
    """The space of the file system of `path`. One that makes inodes as it needs them (btrfs) counts none: it has room for so many."""
    v = os.statvfs(path)
    total, free, available = v.f_blocks * v.f_frsize, v.f_bfree * v.f_frsize, v.f_bavail * v.f_frsize
    if v.f_files:
        return Space(total, free, available, v.f_files, v.f_favail)
    return Space(total, free, available, total // BYTES_PER_FILE, available // BYTES_PER_FILE)


def overwrite_in_place(directory: str) -> None:
    """Have files that are made in `directory` keep their blocks where they are overwritten, if its file system does that otherwise.

    btrfs writes everything elsewhere, for which a full disk has no room, however much was allocated. Source: chattr(1), C
    """
    with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd, contextlib.suppress(OSError):  # most have no such flag, nor need of it
        flags = bytearray(8)
        fcntl.ioctl(fd, GETFLAGS, flags)
        struct.pack_into("l", flags, 0, struct.unpack_from("l", flags)[0] | NOCOW)
        fcntl.ioctl(fd, SETFLAGS, flags)


def mappable(path: str, most: int) -> int:
    """How many bytes the file `path` and what it grows by may take of the address space (`ulimit -v`), up to `most`.

    Several targets share a process, with all its threads.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return most
    size = os.path.getsize(path) if os.path.exists(path) else 0
    return min(most, max(limit // 16, size + GROWS_BY) & -resource.getpagesize())


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Lock the file of `fd` until the descriptor is closed; False if somebody else has it."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    request = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return _try_flock(fd, shared)
    return True


def _try_flock(fd: int, shared: bool) -> bool:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
