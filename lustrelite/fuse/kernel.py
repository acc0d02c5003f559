"""What travels over /dev/fuse: numbers and structures of the Linux FUSE protocol, version 7.45, as bytes.

A request is a header, a structure of the operation, and names that end in NUL; an answer is a header and a structure.
`decode` turns a request's bytes into (fields, names, rest) and refuses what is cut short; the functions at the end make
answers. All is little-endian as the machine: the kernel speaks the machine's order, and we run on nothing else.
Pure: no file is touched here.  Source: include/uapi/linux/fuse.h of Linux 6.18
"""

from __future__ import annotations

import os
from struct import Struct
from typing import NamedTuple

from lustrelite.errors import ProtocolError

VERSION = 7
MINOR = 45  # that we know of
MINOR_LEAST = 31  # with less (before Linux 5.4) a mount is refused
MINOR_EPOCH = 44  # NOTIFY_INC_EPOCH
ROOT_ID = 1
PAGE_BYTES = 4096
WRITE_BYTES_MAX = 1 << 20
NAME_BYTES_MAX = 1024  # in a request; whether it is too long for us is the file system's to say


class op:
    """Operations."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


OP_NAMES = {number: name for name, number in vars(op).items() if not name.startswith("_")}


class init:
    """Flags of INIT; from 1 << 32 on they travel in flags2."""

    ASYNC_READ = 1 << 0
    POSIX_LOCKS = 1 << 1
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    FLOCK_LOCKS = 1 << 10
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30
    DIRECT_IO_ALLOW_MMAP = 1 << 36


class fattr:
    """SETATTR: which fields count."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    KILL_SUIDGID = 1 << 11


class fopen:
    """What an OPEN is answered with."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    PARALLEL_DIRECT_WRITES = 1 << 6


WRITE_CACHE = 1 << 0  # WRITE: of mapped pages, by whoever
WRITE_KILL_SUIDGID = 1 << 2
LK_FLOCK = 1 << 0
FSYNC_FDATASYNC = 1 << 0

INVAL_INODE = 2  # notifications
INC_EPOCH = 8

HEADER = Struct("<IIQQIIIHH")  # length, operation, unique, node, uid, gid, pid, length of extensions / 8, 0
OUT_HEADER = Struct("<IiQ")  # length, -errno, unique
HEADER_BYTES = HEADER.size
WRITE_HEAD_BYTES = HEADER.size + 40  # after it a WRITE's data begins
READ_BYTES_MIN = WRITE_HEAD_BYTES + WRITE_BYTES_MAX  # a read from the device must offer so much

_FORGET_ONE = Struct("<QQ")
_ATTR = Struct("<3Q3q10I")  # ino, size, blocks, times (s), their ns, mode, nlink, uid, gid, rdev, block size, flags
_ENTRY = Struct("<4QII3Q3q10I")  # node, generation, entry and attr validity (s, ns), attr
_ATTR_OUT = Struct("<QII3Q3q10I")
_OPEN_OUT = Struct("<QiI")
_WRITE_OUT = Struct("<II")
_STATFS_OUT = Struct("<5Q3I7I")
_XATTR_OUT = Struct("<II")
_LK_OUT = Struct("<QQII")
_LSEEK_OUT = Struct("<Q")
_DIRENT = Struct("<QQII")
_INIT_OUT = Struct("<IIIIHHIIHHIHH6I")
_INVAL_INODE = Struct("<Qqq")
_STATX_OUT = Struct("<QIIQQ" + "IIQIIIHHQQQQ" + "qIi" * 4 + "IIII14Q")


class Shape(NamedTuple):
    """Of a request: its structure, how many names follow, and whether other bytes may."""

    fields: Struct
    names: int = 0
    rest: bool = False


_NONE = Struct("<")
SHAPES: dict[int, Shape] = {
    op.LOOKUP: Shape(_NONE, 1),
    op.FORGET: Shape(Struct("<Q")),  # lookups
    op.GETATTR: Shape(Struct("<IIQ")),  # flags, 0, handle
    op.SETATTR: Shape(Struct("<IIQQQqqqIIIIIIII")),
    op.READLINK: Shape(_NONE),
    op.SYMLINK: Shape(_NONE, 2),  # name, target
    op.MKNOD: Shape(Struct("<IIII"), 1),  # mode, rdev, umask, 0
    op.MKDIR: Shape(Struct("<II"), 1),  # mode, umask
    op.UNLINK: Shape(_NONE, 1),
    op.RMDIR: Shape(_NONE, 1),
    op.RENAME: Shape(Struct("<Q"), 2),  # new directory
    op.RENAME2: Shape(Struct("<QII"), 2),  # new directory, flags, 0
    op.LINK: Shape(Struct("<Q"), 1),  # node
    op.OPEN: Shape(Struct("<II")),  # O_*, open flags
    op.READ: Shape(Struct("<QQIIQII")),  # handle, offset, size, flags, lock owner, O_*, 0
    op.WRITE: Shape(Struct("<QQIIQII"), rest=True),
    op.STATFS: Shape(_NONE),
    op.RELEASE: Shape(Struct("<QIIQ")),  # handle, O_*, flags, lock owner
    op.FSYNC: Shape(Struct("<QII")),  # handle, flags, 0
    op.SETXATTR: Shape(Struct("<IIII"), 1, rest=True),  # size, XATTR_*, flags, 0; name, value
    op.GETXATTR: Shape(Struct("<II"), 1),  # size, 0
    op.LISTXATTR: Shape(Struct("<II")),
    op.REMOVEXATTR: Shape(_NONE, 1),
    op.FLUSH: Shape(Struct("<QIIQ")),  # handle, 0, 0, lock owner
    op.INIT: Shape(Struct("<IIII"), rest=True),  # major, minor, max readahead, flags; flags2 ...
    op.OPENDIR: Shape(Struct("<II")),
    op.READDIR: Shape(Struct("<QQIIQII")),
    op.READDIRPLUS: Shape(Struct("<QQIIQII")),
    op.RELEASEDIR: Shape(Struct("<QIIQ")),
    op.FSYNCDIR: Shape(Struct("<QII")),
    op.GETLK: Shape(Struct("<QQQQIIII")),  # handle, owner, start, end, type, pid, flags, 0
    op.SETLK: Shape(Struct("<QQQQIIII")),
    op.SETLKW: Shape(Struct("<QQQQIIII")),
    op.ACCESS: Shape(Struct("<II")),
    op.CREATE: Shape(Struct("<IIII"), 1),  # O_*, mode, umask, open flags
    op.INTERRUPT: Shape(Struct("<Q")),  # unique
    op.BATCH_FORGET: Shape(Struct("<II"), rest=True),  # count, 0
    op.FALLOCATE: Shape(Struct("<QQQII")),  # handle, offset, length, mode, 0
    op.LSEEK: Shape(Struct("<QQII")),  # handle, offset, whence, 0
    op.COPY_FILE_RANGE: Shape(Struct("<QQQQQQQ")),  # handle, offset, node, handle, offset, length, flags
    op.COPY_FILE_RANGE_64: Shape(Struct("<QQQQQQQ")),
    op.STATX: Shape(Struct("<IIQII")),  # getattr flags, 0, handle, statx flags, mask
    op.TMPFILE: Shape(Struct("<IIII"), 1),
    op.IOCTL: Shape(Struct("<QIIQII"), rest=True),
}


SETXATTR_SHORT = Shape(Struct("<II"), 1, rest=True)  # without SETXATTR_EXT, so before Linux 5.12


class Malformed(ProtocolError):
    """A request that the kernel cannot have sent."""


def decode(
    opcode: int, body: bytes | memoryview, shape: Shape | None = None
) -> tuple[tuple[int, ...], list[bytes], bytes | memoryview]:
    """(fields, names, rest) of what follows a request's header.  Malformed"""
    shape = shape or SHAPES[opcode]
    at = shape.fields.size
    if len(body) < at:
        raise Malformed(f"{OP_NAMES[opcode]} of {len(body)} bytes")
    fields = shape.fields.unpack_from(body)
    rest: bytes | memoryview = body[at:]
    if not shape.names:
        return fields, [], rest
    names = bytes(rest).split(b"\0", shape.names)
    left = names.pop()
    if len(names) != shape.names:
        raise Malformed(f"a name of {OP_NAMES[opcode]} does not end")
    return fields, names, left


def name_of(body: bytes | memoryview) -> bytes:
    """The one name that follows the header of LOOKUP, UNLINK and others.  Malformed"""
    raw = bytes(body)
    end = raw.find(b"\0")
    if end < 0:
        raise Malformed("a name does not end")
    return raw[:end]


def forgets(count: int, rest: bytes | memoryview) -> list[tuple[int, int]]:
    """(node, lookups) of BATCH_FORGET.  Malformed"""
    if len(rest) < count * _FORGET_ONE.size:
        raise Malformed(f"BATCH_FORGET of {count} in {len(rest)} bytes")
    return list(_FORGET_ONE.iter_unpack(rest[: count * _FORGET_ONE.size]))


def init_flags(flags: int, rest: bytes | memoryview) -> int:
    """All flags of INIT."""
    if flags & init.INIT_EXT and len(rest) >= 4:
        flags |= int.from_bytes(rest[:4], "little") << 32
    return flags


# times and devices --------------------------------------------------------------------------------------------------

_NS = 1_000_000_000


def device_in(number: int) -> int:
    """A device number as the kernel packs it in 32 bits, as os.makedev has it."""
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def device_out(number: int) -> int:
    """The other way."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | ((major & 0xFFF) << 8) | ((minor & 0xFFF00) << 12)


class Attributes(NamedTuple):
    """What the kernel keeps of an inode. Times are nanoseconds."""

    ino: int
    size: int
    blocks: int  # of 512 bytes
    atime: int
    mtime: int
    ctime: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int


def _flat(attr: Attributes) -> tuple[int, ...]:
    ino, size, blocks, atime, mtime, ctime, mode, nlink, uid, gid, rdev = attr
    return (
        ino, size, blocks, atime // _NS, mtime // _NS, ctime // _NS, atime % _NS, mtime % _NS, ctime % _NS, mode, nlink,
        uid, gid, device_out(rdev) if rdev else 0, PAGE_BYTES, 0,
    )  # fmt: skip


# answers ------------------------------------------------------------------------------------------------------------


def entry_out(node: int, entry_s: float, attr_s: float, attr: Attributes) -> bytes:
    """A name leads to `node`; both are true for so many seconds."""
    entry_ns, attr_ns = int(entry_s * _NS), int(attr_s * _NS)
    return _ENTRY.pack(node, 0, entry_ns // _NS, attr_ns // _NS, entry_ns % _NS, attr_ns % _NS, *_flat(attr))


def attr_out(attr_s: float, attr: Attributes) -> bytes:
    """Attributes that are true for so many seconds."""
    ns = int(attr_s * _NS)
    return _ATTR_OUT.pack(ns // _NS, ns % _NS, 0, *_flat(attr))


def open_out(handle: int, flags: int) -> bytes:
    """An open file."""
    return _OPEN_OUT.pack(handle, flags, 0)


def write_out(size: int) -> bytes:
    """So much was written."""
    return _WRITE_OUT.pack(size, 0)


def statfs_out(
    bytes_total: int, bytes_free: int, bytes_available: int, files_total: int, files_free: int, name_bytes_max: int
) -> bytes:
    """Space, in blocks of a page."""
    unit = PAGE_BYTES
    return _STATFS_OUT.pack(
        bytes_total // unit, bytes_free // unit, bytes_available // unit, files_total, files_free, unit, name_bytes_max,
        unit, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def xattr_size_out(size: int) -> bytes:
    """How large an extended attribute, or their list, is."""
    return _XATTR_OUT.pack(size, 0)


def lock_out(start: int, end: int, kind: int, pid: int) -> bytes:
    """A record lock that is in the way, or F_UNLCK."""
    return _LK_OUT.pack(start, end, kind, pid)


def offset_out(offset: int) -> bytes:
    """LSEEK."""
    return _LSEEK_OUT.pack(offset)


def statx_out(attr_s: float, mask: int, attr: Attributes, btime: int) -> bytes:
    """STATX: the attributes with the time of birth."""
    ns = int(attr_s * _NS)
    times: list[int] = []
    for time in (attr.atime, btime, attr.ctime, attr.mtime):
        times += (time // _NS, time % _NS, 0)
    return _STATX_OUT.pack(
        ns // _NS, ns % _NS, 0, 0, 0, mask, PAGE_BYTES, 0, attr.nlink, attr.uid, attr.gid, attr.mode, 0, attr.ino,
        attr.size, attr.blocks, 0, *times, os.major(attr.rdev), os.minor(attr.rdev), *([0] * 16),
    )  # fmt: skip


def dirent(ino: int, cookie: int, name: bytes, kind: int) -> bytes:
    """An entry of READDIR; `kind` is S_IFMT bits, `cookie` goes on after it."""
    size = _DIRENT.size + len(name)
    return _DIRENT.pack(ino, cookie, len(name), kind >> 12) + name + bytes(-size % 8)


def init_out(minor: int, flags: int, readahead: int, background: int) -> bytes:
    """INIT."""
    return _INIT_OUT.pack(
        VERSION, minor, readahead, flags & 0xFFFFFFFF, background, background * 3 // 4, WRITE_BYTES_MAX, 1,
        WRITE_BYTES_MAX // PAGE_BYTES, 0, flags >> 32, 0, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def inval_inode(node: int, offset: int, length: int) -> bytes:
    """Notification: forget the attributes and, unless `offset` is negative, the pages; length 0 is to the end."""
    return OUT_HEADER.pack(OUT_HEADER.size + _INVAL_INODE.size, INVAL_INODE, 0) + _INVAL_INODE.pack(node, offset, length)


def inc_epoch() -> bytes:
    """Notification: no name is true any more."""
    return OUT_HEADER.pack(OUT_HEADER.size, INC_EPOCH, 0)


assert HEADER.size == 40 and OUT_HEADER.size == 16 and _ENTRY.size == 128 and _ATTR_OUT.size == 104
assert _ATTR.size == 88 and _STATFS_OUT.size == 80 and _INIT_OUT.size == 64 and SHAPES[op.SETATTR].fields.size == 88
