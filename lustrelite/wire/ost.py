"""Messages to an OST. Objects are named by a number that is never used twice."""

from __future__ import annotations

from typing import NamedTuple

from lustrelite.ids import Fid
from lustrelite.wire.mdt import StatfsReply
from lustrelite.wire.message import message
from lustrelite.wire.session import Empty

# OstCreate.flags
CREATE_DELORPHAN = 0x4  # destroy what was granted above `upto` but never used

# ObjectSetattr.valid
OBJECT_UID = 0x2
OBJECT_GID = 0x4
OBJECT_ATIME = 0x8
OBJECT_MTIME = 0x10

OBJECT_EOF = (1 << 63) - 1

# Fallocate.mode, and that of client/file.py's fallocate (linux/falloc.h)
FALLOC_KEEP_SIZE = 0x1
FALLOC_PUNCH_HOLE = 0x2
FALLOC_ZERO_RANGE = 0x10

SEEK_DATA, SEEK_HOLE = 3, 4  # ObjectSeek.whence (unistd.h)

GRANT_BLOCK_BYTES = 4096  # space is promised and used in blocks of so many bytes


def grant_blocks(start: int, end: int) -> tuple[int, int]:
    """[start, end), rounded to whole blocks."""
    return start // GRANT_BLOCK_BYTES * GRANT_BLOCK_BYTES, -(-end // GRANT_BLOCK_BYTES) * GRANT_BLOCK_BYTES


def grant_bytes(start: int, end: int) -> int:
    """How much of its grant a write of [start, end) takes: every block it touches."""
    low, high = grant_blocks(start, end)
    return high - low


def resource_of(oid: int) -> bytes:
    """What locks call object `oid`."""
    return (oid & ((1 << 64) - 1)).to_bytes(8, "big")


class ObjectAttr(NamedTuple):
    """Attributes of an object, which are those of its file's part."""

    size: int  # bytes
    blocks: int  # of 512 bytes
    atime: int
    mtime: int
    ctime: int
    version: int


class OstCreateReply(NamedTuple):
    """Ids up to `last_id` are never granted again."""

    last_id: int


@message(op=5, reply=OstCreateReply, mutates=True)
class OstCreate(NamedTuple):
    """Grant object ids up to `upto` to the MDT; with CREATE_DELORPHAN destroy all above `upto` and say where to go on.

    A grant is a change like any other: it may be lost and is replayed. With the flag the answer comes after the commit.
    Errors: ESTALE an older connection's request, EROFS, ENOSPC.  Source: ofd_create_hdl(); protocol-facts 7.2
    """

    upto: int
    flags: int


class WriteReply(NamedTuple):
    """`grant` is what the client may cache dirty beyond what it was granted before."""

    attr: ObjectAttr
    grant: int  # bytes


@message(op=4, reply=WriteReply, mutates=True, bulk_in=True)
class Write(NamedTuple):
    """Write the bulk at `offset`. `owner` and `stripe` say which file the object belongs to (back-pointer).

    Errors: ENOENT, ENOSPC, EFBIG, EIO, ESTALE `lock` is not held (never executed then).
    Source: ofd_commitrw_write(); grants: tgt_grant_prepare_write()
    """

    object: int
    offset: int
    owner: Fid
    stripe: int
    time: int  # new mtime and ctime
    lock: int = 0  # handle of the lock it is written under, 0: none
    from_grant: bool = False  # space was promised for it: it cannot end with ENOSPC
    undirty: int = 0  # bytes of grant the client would like to have
    release: bool = False  # the lock goes back when this is done: the cancel travels with the flush
    sync: bool = False  # answer when it is durable; else the client keeps the data until last_committed passes it


WRITE_MANY_MAX = 64  # parts


class Part(NamedTuple):
    """What of the bulk belongs to one place in one object, and the rest of a Write of it."""

    object: int
    offset: int
    length: int
    owner: Fid
    stripe: int
    time: int
    lock: int


class WriteManyReply(NamedTuple):
    """`attrs` of the objects, in the order of the parts; `grant` as in WriteReply."""

    attrs: tuple[ObjectAttr, ...]
    grant: int


@message(op=25, reply=WriteManyReply, mutates=True, bulk_in=True)
class WriteMany(NamedTuple):
    """Write to several places, with one part of the bulk after the other: one change, one transno.

    Parts of one object come in the order of their offsets, and do not overlap. Each is written under a lock that the
    client has, and out of its grant. If one cannot be written, or would have to wait, none is (but for data in files,
    which a Write may leave behind an error, too): the client sends them one by one and hears of each how it went.
    Errors: EINVAL too much, or overlapping; ESTALE a lock is not held, or one would have to wait; those of Write
    """

    parts: tuple[Part, ...]
    undirty: int  # as in Write

    @property
    def under(self) -> tuple[int, ...]:
        """All locks that it names."""
        return tuple([part.lock for part in self.parts])


class ReadReply(NamedTuple):
    """`length` bytes of bulk follow; fewer than asked for at the end of the object."""

    length: int
    size: int  # of the object


@message(op=3, reply=ReadReply, bulk_out=True)
class Read(NamedTuple):
    """Read up to `length` bytes at `offset`.  Errors: ENOENT"""

    object: int
    offset: int
    length: int
    lock: int = 0  # handle of the lock it is read under, 0: none


READ_MANY_MAX = 64  # objects


class ReadManyReply(NamedTuple):
    """For each row how many bytes of the bulk are its own, one after the other (-1: not now, ask for it alone), and its size."""

    rows: tuple[tuple[int, int], ...]


@message(op=24, reply=ReadManyReply, bulk_out=True)
class ReadMany(NamedTuple):
    """Read the beginnings of several objects, each under a lock that the client has.

    Nothing waits for another: what cannot be read at once is left out.  Errors: EINVAL too much
    """

    rows: tuple[tuple[int, int, int], ...]  # (object, length, lock)

    @property
    def under(self) -> tuple[int, ...]:
        """All locks that it names."""
        return tuple([lock for _, _, lock in self.rows])


@message(op=10, reply=ObjectAttr, mutates=True)
class Punch(NamedTuple):
    """Free [start, end); an `end` of OBJECT_EOF truncates to `start` (or extends to it)."""

    object: int
    start: int
    end: int
    owner: Fid
    stripe: int
    time: int
    lock: int = 0  # as in Write


@message(op=22, reply=ObjectAttr, mutates=True)
class Fallocate(NamedTuple):
    """Find room for [start, end), so that writes there need none; the object grows to `end`.

    With FALLOC_KEEP_SIZE it does not; with FALLOC_ZERO_RANGE the range reads as zeros. (A hole is a Punch.)
    Errors: ENOENT, ENOSPC, EFBIG, EOPNOTSUPP, ESTALE as of Write.  Source: ofd_fallocate_hdl()
    """

    object: int
    start: int
    end: int
    mode: int
    owner: Fid
    stripe: int
    time: int
    lock: int = 0  # as in Write


class SeekReply(NamedTuple):
    """`offset` in the object, -1: there is no more data; and the object's size."""

    offset: int
    size: int


@message(op=23, reply=SeekReply)
class ObjectSeek(NamedTuple):
    """Where from `offset` on is the next data (SEEK_DATA), or hole (SEEK_HOLE)? Behind the object's end all is hole.

    Errors: ENOENT, EINVAL, ESTALE.  Source: ofd_lseek()
    """

    object: int
    offset: int
    whence: int
    lock: int = 0  # as in Read


@message(op=2, reply=ObjectAttr, mutates=True)
class ObjectSetattr(NamedTuple):
    """Change owner or times of an object."""

    object: int
    valid: int
    uid: int
    gid: int
    atime: int
    mtime: int
    time: int


@message(op=1, reply=ObjectAttr)
class ObjectGetattr(NamedTuple):
    """Attributes of an object.  Errors: ENOENT"""

    object: int


@message(op=6, reply=Empty, mutates=True)
class Destroy(NamedTuple):
    """Destroy these objects; one that is not there is no error: a destroy may be repeated.  Of a server only."""

    objects: tuple[int, ...]


@message(op=18, reply=Empty, mutates=True)
class SetOwners(NamedTuple):
    """Count these objects for the user, group and project of their files; one that is not there is no error.

    Of a server only, and of its log: it says what is so, may be repeated, and touches neither versions nor times.
    (Lustre sends an OST_SETATTR for each.)  Source: osp_sync_new_setattr_job(), osp_sync.c
    """

    owners: tuple[tuple[int, int, int, int], ...]  # (object, uid, gid, project id)


@message(op=17, reply=Empty, mutates=True)
class GrantShrink(NamedTuple):
    """`amount` bytes of grant go back. Counts on connection `connection` only: a Connect says what the client has then.

    Source: osc_shrink_grant_to_target(), osc/osc_request.c (there an OST_SET_INFO)
    """

    connection: int  # conn_cnt
    amount: int


@message(op=13, reply=StatfsReply)
class OstStatfs(NamedTuple):
    """Space of the OST."""


@message(op=16, reply=Empty)
class OstSync(NamedTuple):
    """Answered when everything executed so far is durable (OST_SYNC): all objects, whichever `object` names."""

    object: int
