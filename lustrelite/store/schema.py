"""What is on a target's disk: every table, its key, its value, and how both are packed.

Keys are big-endian, so that byte order is the order of the numbers in them and a scan of a prefix is a listing.
Values are msgpack arrays of a NamedTuple's fields in their order (as on the wire, but never checked field by field:
we wrote them ourselves and LMDB gives back what was committed; what cannot be unpacked is a StoreFailed). A change of
anything here raises FORMAT_VERSION: a program that meets another version in a directory refuses it.

Names are found by (parent, hash of the name, name). The hash is the readdir cookie: it depends on nothing but the name,
so a listing can go on after a crash, on the failover server, while names come and go. Names with equal hashes are
neighbours, told apart by the name that ends the key.

FORMAT log:
    1  2026-11-20  first.
    2  2026-11-21  table ost_log in place of destroys; projid of inodes and objects; inodes have access control lists, and know
                   how many extended attributes they have.
    3  2026-11-21  a log of small batches beside the database (small_log.py).
    4  2026-11-22  extended attributes in pieces (mdt/xattr_rows.py); an inode knows when its mtime was set, the MGS which
                   parameters came with a target.
    5  2026-11-23  an inode knows when its atime was set.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
from xxhash import xxh64_intdigest

from lustrelite.errors import StoreFailed
from lustrelite.ids import FID_BYTES, Fid
from lustrelite.wire.mdt import COOKIE_MAX as COOKIE_MAX
from lustrelite.wire.mdt import Layout, StripeHint
from lustrelite.wire.mdt import name_cookie as name_cookie
from lustrelite.wire.mgs import TargetInfo

FORMAT_VERSION = 5
TARGET_FILE = "target.json"  # format.py

COOKIE_BYTES = 8
OBJECT_ID_MAX = (1 << 63) - 1

# tables of every target
META = "meta"
CLIENTS = "clients"
REPLIES = "replies"
# of an MDT
INODES = "inodes"
NAMES = "names"
LINKS = "links"
XATTRS = "xattrs"
ORPHANS = "orphans"
POOLS = "pools"
OST_LOG = "ost_log"
# of an OST
OBJECTS = "objects"
# of the MGS
TARGETS = "targets"
PARAMS = "params"

FORMAT_KEY = b"format"  # in META: (FORMAT_VERSION, kind)

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")
_REPLY_KEY = struct.Struct(">IH")
_LOG_KEY = struct.Struct(">IQ")
_ENTRY = struct.Struct(f">{FID_BYTES}sI")
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def _unpack(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, use_list=False, raw=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise StoreFailed(f"a record cannot be unpacked: {error!r}: {data[:64]!r}") from None


# ---------------------------------------------------------------- records


class Inode(NamedTuple):
    """A file, directory, symlink or device of an MDT (key: its FID). Times in ns, sizes in bytes."""

    mode: int  # S_IFMT | permissions
    uid: int
    gid: int
    nlink: int
    rdev: int
    flags: int
    size: int  # of what is on the MDT only: the objects hold a striped file's
    blocks: int  # of 512 bytes
    atime: int
    mtime: int
    ctime: int
    btime: int
    version: int  # transno of the last version-relevant change (recovery/versions.py)
    layout: Layout | None
    hint: StripeHint | None  # of a file without objects yet, or a directory's default
    target: bytes  # of a symlink
    parent: Fid  # of a directory; NO_FID else
    projid: int = 0
    acl: bytes = b""  # access control list (acl.py), b"" if the mode says it all
    default_acl: bytes = b""  # of a directory: what is made in it begins with this
    xattrs: int = 0  # bytes that the names of its rows in `xattrs` take, each with a NUL
    mtime_set: int = 0  # when utimes() set its mtime, 0: it is the time of a write, or of a change of names
    atime_set: int = 0  # when utimes() last set its atime, 0: never, or to that moment


class ObjectRecord(NamedTuple):
    """An object of an OST (key: its id). Its size is its file's size; `owner` and `stripe` point back to the file."""

    uid: int
    gid: int
    atime: int
    mtime: int
    ctime: int
    version: int
    owner: Fid
    stripe: int
    projid: int = 0


class Owner(NamedTuple):
    """For whom a file's objects are counted."""

    uid: int
    gid: int
    projid: int


class OstLogRecord(NamedTuple):
    """What an object of an OST shall be (key: OST and object), since the MDT's change `transno`: see mdt/ost_log.py."""

    transno: int
    owner: Owner | None  # None: gone


class ClientRecord(NamedTuple):
    """A client that the target waits for after a restart (last_rcvd; struct lsd_client_data)."""

    uuid: str
    incarnation: int
    generation: int  # of this slot of the table: reply records of another one are a predecessor's
    last_epoch: int
    nid: str


class ReplyRecord(NamedTuple):
    """The newest answer in one slot of a client (reply_data; struct lsd_reply_data)."""

    xid: int
    transno: int
    status: int  # 0 or a negative errno
    data: int  # the disposition of an open; the grant that a write brought
    pre_versions: tuple[int, ...]
    generation: int  # of the client's record


class PoolRecord(NamedTuple):
    """Objects of one OST that an MDT may use: ids up to `last_used` are in layouts, up to `granted` they are ours."""

    last_used: int
    granted: int


class TargetRecord(NamedTuple):
    """A registered target. `stamp` was made when it was formatted, so that two targets of one index are told apart."""

    info: TargetInfo
    stamp: str
    params: tuple[tuple[str, str], ...] = ()  # permanent parameters that it was formatted with


_LAYOUT = Inode._fields.index("layout")
_HINT = Inode._fields.index("hint")


def _make(cls: Any) -> Callable[[bytes], Any]:
    make = cls._make

    def unpack(data: bytes) -> Any:
        try:
            return make(_unpack(data))
        except TypeError as error:
            raise StoreFailed(f"not a {cls.__name__}: {error}: {data[:64]!r}") from None

    return unpack


pack_inode: Callable[[Inode], bytes] = _pack
pack_object: Callable[[ObjectRecord], bytes] = _pack
pack_client: Callable[[ClientRecord], bytes] = _pack
pack_reply: Callable[[ReplyRecord], bytes] = _pack
pack_pool: Callable[[PoolRecord], bytes] = _pack
pack_log: Callable[[OstLogRecord], bytes] = _pack
pack_target: Callable[[TargetRecord], bytes] = _pack
pack_meta: Callable[[Any], bytes] = _pack

unpack_object: Callable[[bytes], ObjectRecord] = _make(ObjectRecord)
unpack_client: Callable[[bytes], ClientRecord] = _make(ClientRecord)
unpack_reply: Callable[[bytes], ReplyRecord] = _make(ReplyRecord)
unpack_pool: Callable[[bytes], PoolRecord] = _make(PoolRecord)
unpack_meta: Callable[[bytes], Any] = _unpack


def unpack_inode(data: bytes) -> Inode:
    """The inode in `data`."""
    values = _unpack(data)
    try:
        if values[_LAYOUT] is None and values[_HINT] is None:
            return Inode._make(values)
        layout, hint = values[_LAYOUT], values[_HINT]
        return Inode._make(
            (
                *values[:_LAYOUT],
                None if layout is None else Layout._make(layout),
                None if hint is None else StripeHint._make(hint),
                *values[_HINT + 1 :],
            )
        )
    except (TypeError, IndexError) as error:
        raise StoreFailed(f"not an Inode: {error}: {data[:64]!r}") from None


def unpack_target(data: bytes) -> TargetRecord:
    """The registered target in `data`."""
    try:
        info, stamp, params = _unpack(data)
        return TargetRecord(TargetInfo._make(info), stamp, params)
    except (TypeError, ValueError) as error:
        raise StoreFailed(f"not a TargetRecord: {error}: {data[:64]!r}") from None


def unpack_log(data: bytes) -> OstLogRecord:
    """The record of the log towards an OST in `data`."""
    try:
        transno, owner = _unpack(data)
        return OstLogRecord(transno, None if owner is None else Owner._make(owner))
    except (TypeError, ValueError) as error:
        raise StoreFailed(f"not an OstLogRecord: {error}: {data[:64]!r}") from None


# ---------------------------------------------------------------- keys


def meta_key(name: str) -> bytes:
    """Key of one of the target's own facts (uuid, instance, last transno ...)."""
    return name.encode()


def client_key(index: int) -> bytes:
    """Key of a client's record; also the prefix of its reply records."""
    return _U32.pack(index)


def split_client_key(key: bytes) -> int:
    """The index in a client's key."""
    return int.from_bytes(key, "big")


def reply_key(index: int, tag: int) -> bytes:
    """Key of the reply record of client `index` in slot `tag`."""
    return _REPLY_KEY.pack(index, tag)


def split_reply_key(key: bytes) -> tuple[int, int]:
    """(client index, tag)."""
    return _REPLY_KEY.unpack(key)


def name_key(parent: Fid, name: bytes) -> bytes:
    """Key of `name` in `parent`."""
    return parent + ((xxh64_intdigest(name) & COOKIE_MAX) or 1).to_bytes(COOKIE_BYTES, "big") + name


def names_after(parent: Fid, cookie: int) -> bytes:
    """The `after` of a scan that goes on with the first name of `parent` whose cookie is greater than `cookie`."""
    return parent + (cookie + 1).to_bytes(COOKIE_BYTES, "big")  # no name is empty, so no key equals this


def split_name_key(key: bytes) -> tuple[Fid, int, bytes]:
    """(parent, cookie, name)."""
    return Fid(key[:FID_BYTES]), int.from_bytes(key[FID_BYTES : FID_BYTES + 8], "big"), key[FID_BYTES + 8 :]


def pack_entry(fid: Fid, kind: int) -> bytes:
    """Value of a name: whose it is, and its S_IFMT bits."""
    return fid + kind.to_bytes(4, "big")


def unpack_entry(data: bytes) -> tuple[Fid, int]:
    """(FID, S_IFMT bits) of a name's value."""
    return _ENTRY.unpack(data)


def link_key(child: Fid, parent: Fid, name: bytes) -> bytes:
    """Back-pointer from `child` to one of its names; `child` is the prefix of all of them."""
    return child + parent + name


def split_link_key(key: bytes) -> tuple[Fid, Fid, bytes]:
    """(child, parent, name)."""
    return Fid(key[:FID_BYTES]), Fid(key[FID_BYTES : 2 * FID_BYTES]), key[2 * FID_BYTES :]


def xattr_key(fid: Fid, name: bytes, piece: int = 0) -> bytes:
    """Key of a piece (less than 256) of an extended attribute; `fid` is the prefix of all of them."""
    return fid + name + b"\0" + piece.to_bytes(1, "big")


def xattr_prefix(fid: Fid, name: bytes) -> bytes:
    """The prefix of the pieces of one: no name has a NUL."""
    return fid + name + b"\0"


def split_xattr_key(key: bytes) -> tuple[Fid, bytes, int]:
    """(fid, name, piece)."""
    return Fid(key[:FID_BYTES]), key[FID_BYTES:-2], key[-1]


def pool_key(ost: int) -> bytes:
    """Key of the pool of objects of OST `ost`."""
    return _U32.pack(ost)


def split_pool_key(key: bytes) -> int:
    """The OST index in a pool's key."""
    return int.from_bytes(key, "big")


def log_key(ost: int, oid: int) -> bytes:
    """Key of an object in the log towards OSTs; `pool_key(ost)` is the prefix of one OST's."""
    return _LOG_KEY.pack(ost, oid)


def split_log_key(key: bytes) -> tuple[int, int]:
    """(OST index, object id)."""
    return _LOG_KEY.unpack(key)


def object_key(oid: int) -> bytes:
    """Key of an object of an OST."""
    return _U64.pack(oid)


def split_object_key(key: bytes) -> int:
    """The object id in an object's key."""
    return int.from_bytes(key, "big")


def is_object_key(key: bytes) -> bool:
    """May it be that of an object?"""
    return len(key) == _U64.size and 0 < split_object_key(key) <= OBJECT_ID_MAX


def param_key(fsname: str, name: str) -> bytes:
    """Key of a permanent parameter; `param_key(fsname, "")` is the prefix of a file system's."""
    return f"{fsname}\0{name}".encode()


def split_param_key(key: bytes) -> tuple[str, str]:
    """(fsname, name)."""
    fsname, _, name = key.decode().partition("\0")
    return fsname, name


def pack_u64(value: int) -> bytes:
    """A number as a value."""
    return _U64.pack(value)


def unpack_u64(data: bytes) -> int:
    """The number in a value made by `pack_u64`."""
    return int.from_bytes(data, "big")


# ---------------------------------------------------------------- tables


class Table(NamedTuple):
    """One table. `split` and `unpack` turn a raw row into something to print: fsck, `llctl dump`."""

    name: str
    kinds: tuple[str, ...]
    split: Callable[[bytes], Any]
    unpack: Callable[[bytes], Any]


KINDS = ("MDT", "OST", "MGS")
_EVERY = KINDS


def _raw(data: bytes) -> bytes:
    return data


_ALL = (
    Table(META, _EVERY, bytes.decode, unpack_meta),
    Table(CLIENTS, _EVERY, split_client_key, unpack_client),
    Table(REPLIES, _EVERY, split_reply_key, unpack_reply),
    Table(INODES, ("MDT",), Fid, unpack_inode),
    Table(NAMES, ("MDT",), split_name_key, unpack_entry),
    Table(LINKS, ("MDT",), split_link_key, _raw),
    Table(XATTRS, ("MDT",), split_xattr_key, _raw),
    Table(ORPHANS, ("MDT",), Fid, _raw),
    Table(POOLS, ("MDT",), split_pool_key, unpack_pool),
    Table(OST_LOG, ("MDT",), split_log_key, unpack_log),
    Table(OBJECTS, ("OST",), split_object_key, unpack_object),
    Table(TARGETS, ("MGS",), bytes.decode, unpack_target),
    Table(PARAMS, ("MGS",), split_param_key, bytes.decode),
)


def tables_of(kind: str) -> tuple[str, ...]:
    """Names of the tables of a target of `kind`."""
    assert kind in KINDS, kind
    return tuple(table.name for table in _ALL if kind in table.kinds)
