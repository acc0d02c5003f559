"""Messages to the MDT. The client chooses FIDs, open handles and times, so that a replay makes the same thing again."""

from __future__ import annotations

from typing import Any, NamedTuple

from xxhash import xxh64_intdigest

from lustrelite.ids import Fid
from lustrelite.wire.message import CLASS_CLOSE, message
from lustrelite.wire.session import Empty

# Open.flags
OPEN_READ = 0x1
OPEN_WRITE = 0x2
OPEN_CREATE = 0x4
OPEN_EXCL = 0x8
OPEN_TRUNC = 0x10  # needs write permission; the client punches the objects
OPEN_APPEND = 0x20
OPEN_DIRECTORY = 0x40
OPEN_EXEC = 0x80
OPEN_BY_FID = 0x100  # `fid` is the file itself; parent and name are not looked at
OPEN_REPLAY_CREATED = 0x200  # set in the saved request: this open made the file
OPEN_TMPFILE = 0x400  # with OPEN_CREATE: a file without a name in the directory `parent`; OPEN_EXCL: it never gets one

# OpenReply.disposition (DISP_*)
DISP_LOOKUP_NEG = 0x4
DISP_LOOKUP_POS = 0x8
DISP_OPEN_CREATE = 0x10
DISP_OPEN_OPEN = 0x20

# Setattr.valid
SET_MODE = 0x1
SET_UID = 0x2
SET_GID = 0x4
SET_ATIME = 0x8
SET_MTIME = 0x10
SET_SIZE = 0x20  # permission check and suid clearing only: the objects hold the size
SET_FLAGS = 0x40
SET_TIMES_EXPLICIT = 0x80  # utimes() with given times: only the owner may
SET_PROJID = 0x100
SET_VERSIONED = SET_MODE | SET_UID | SET_GID | SET_PROJID | SET_FLAGS  # these give the inode another version
SETATTRS_VALID = SET_MODE | SET_UID | SET_GID | SET_ATIME | SET_MTIME | SET_TIMES_EXPLICIT  # all that Setattrs can change
ID_MAX = (1 << 32) - 2  # of users, groups, projects: -1 is nobody

# Rename.flags (RENAME_* of linux/fs.h)
RENAME_NOREPLACE = 0x1
RENAME_EXCHANGE = 0x2

# Unlink.flags
UNLINK_RMDIR = 0x1

# Setxattr.flags (XATTR_* of sys/xattr.h)
XATTR_CREATE = 0x1
XATTR_REPLACE = 0x2

# StatfsReply.state (OS_STATFS_*)
STATFS_READ_ONLY = 0x2
STATFS_NO_SPACE = 0x4


class Layout(NamedTuple):
    """Where a file's data is (LOV EA, raid0): stripe i is object stripes[i] = (ost index, object id)."""

    stripe_size: int  # bytes
    generation: int
    pool: str
    stripes: tuple[tuple[int, int], ...]


class StripeHint(NamedTuple):
    """What the user asked for; -1 and 0 mean the default. Also the default of a directory."""

    stripe_count: int  # -1 is all OSTs
    stripe_size: int  # bytes, a multiple of 64 KiB
    stripe_offset: int  # index of the first OST, -1 is any


class Attr(NamedTuple):
    """Attributes of an inode. Size and blocks of a striped file are the objects' business: here they are 0."""

    fid: Fid
    mode: int  # S_IFMT | permissions
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int  # bytes
    blocks: int  # of 512 bytes
    atime: int  # ns since the epoch, as all times
    mtime: int
    ctime: int
    btime: int
    version: int  # transno of the last version-relevant change
    flags: int
    layout: Layout | None
    parent: Fid  # of a directory; NO_FID else
    projid: int = 0
    acl: bytes = b""  # access control list, as much part of the permissions as the mode
    xattrs: int = 0  # 0: it has no other extended attributes
    mtime_set: int = 0  # when utimes() set the mtime, 0: it is the time of a write, or of a change of names


def _with_layout(body: Any, reply: Any) -> Any:
    return body._replace(layout=reply.layout) if reply.layout is not None else body


@message(op=36, reply=Attr, mutates=True, replay_form=_with_layout)
class Create(NamedTuple):
    """Make `name` in `parent` as object `fid`, which the client chose so that a replay makes it again.

    Regular file, directory, symlink (`target`), device, fifo or socket, by S_IFMT of `mode`, which `umask` takes bits
    from, unless `parent` has a default access control list: then that does.
    Errors: EEXIST, ENOENT, ENOTDIR, EACCES, ENOSPC, ENAMETOOLONG.  Source: mdt_reint_create(), mdt/mdt_reint.c
    """

    parent: Fid
    name: bytes  # one component, 1..255 bytes
    fid: Fid
    mode: int
    rdev: int
    target: bytes
    time: int
    hint: StripeHint | None
    layout: Layout | None  # replay: the objects the first execution chose
    umask: int = 0


class OpenReply(NamedTuple):
    """Result of an open. The handle is the xid of the open request."""

    disposition: int
    attr: Attr


def _open_replay(body: Any, reply: OpenReply) -> Any:
    made = OPEN_REPLAY_CREATED if reply.disposition & DISP_OPEN_CREATE else 0
    return body._replace(fid=reply.attr.fid, layout=reply.attr.layout, flags=body.flags | made)


@message(op=45, reply=OpenReply, mutates=True, replay_form=_open_replay)
class Open(NamedTuple):
    """Open `name` in `parent` (or `fid` itself with OPEN_BY_FID), making it as `fid` with OPEN_CREATE.

    The open handle is this request's xid (`handle` in a replay carries it too): unique per client for ever, known to
    both sides even if the reply is lost. Kept for replay until its close commits.
    Errors: those of Create and Lookup, EISDIR, ELOOP for a symlink.  Source: mdt_reint_open(), mdt/mdt_open.c
    """

    parent: Fid
    name: bytes
    fid: Fid
    flags: int
    mode: int
    time: int
    hint: StripeHint | None
    layout: Layout | None
    umask: int = 0  # as of Create


@message(op=40, reply=Attr, mutates=True)
class Setattr(NamedTuple):
    """Change the attributes in `valid`.  Errors: EPERM, EACCES, ENOENT.  Source: mdt_reint_setattr()"""

    fid: Fid
    valid: int
    mode: int
    uid: int
    gid: int
    atime: int
    mtime: int
    time: int  # the new ctime
    flags: int
    handle: int  # of an open file, whose mode then counts instead of permissions; 0 none
    projid: int = 0


@message(op=58, reply=Empty, mutates=True, klass=CLASS_CLOSE)
class Setattrs(NamedTuple):
    """All of these, in their order: of files of which the client holds SOLE. It has checked that they may be made.

    Files that are not there are passed over. Errors: EINVAL, one cannot be made this way; then none is.
    See client/kept_attrs.py
    """

    rows: tuple[Setattr, ...]


@message(op=35, reply=Empty, mutates=True, klass=CLASS_CLOSE)
class Close(NamedTuple):
    """Close the open whose xid was `handle`. The last close of an unlinked file destroys it.

    `mtime` and `atime` are 0 where this handle wrote or read nothing.
    Errors: ESTALE, the handle is not known (the client was evicted).  Source: mdt_close()
    """

    handle: int
    fid: Fid
    atime: int
    mtime: int
    size: int  # the client's idea of the size, for lazy size on MDS: nothing reads it yet
    blocks: int  # nor this

    @property
    def handles(self) -> tuple[int, ...]:
        """All that it closes."""
        return (self.handle,)


@message(op=56, reply=Empty, mutates=True, klass=CLASS_CLOSE)
class Reopen(NamedTuple):
    """`fid` is open to be read: a client has opened it by itself, under a lock of the file that is to go now.

    The handle is this request's xid, as of an Open, and is kept for replay like one. It waits for nothing: who wants the
    lock waits for it.  Errors: ESTALE, there is no such file.  See client/local_opens.py
    """

    fid: Fid


class ClosedFile(NamedTuple):
    """As of a Close. A `handle` of 0 is an open to be read of which the MDT has not heard: only its `atime` counts."""

    handle: int
    fid: Fid
    atime: int
    mtime: int


@message(op=57, reply=Empty, mutates=True, klass=CLASS_CLOSE)
class Closes(NamedTuple):
    """Close all of these. Handles that are not known, and files that are not there, are passed over.

    See client/late_closes.py
    """

    rows: tuple[ClosedFile, ...]

    @property
    def handles(self) -> tuple[int, ...]:
        """All that it closes."""
        return tuple(row.handle for row in self.rows if row.handle)


@message(op=37, reply=Empty, mutates=True)
class Link(NamedTuple):
    """Make `name` in `parent` another name of `fid`.  Errors: EEXIST, EMLINK, EPERM for a directory, ENOENT

    A file that was opened with OPEN_TMPFILE by this client gets its first name.
    """

    fid: Fid
    parent: Fid
    name: bytes
    time: int


class UnlinkReply(NamedTuple):
    """What became of the victim: `nlink` left; `orphan` if it is still open somewhere."""

    fid: Fid
    nlink: int
    orphan: bool


@message(op=38, reply=UnlinkReply, mutates=True)
class Unlink(NamedTuple):
    """Remove `name` from `parent`; a directory only with UNLINK_RMDIR.

    Its objects are written to the destroy log in the same transaction.
    Errors: ENOENT, EISDIR, ENOTDIR, ENOTEMPTY, EACCES, EPERM (sticky).  Source: mdt_reint_unlink()
    """

    parent: Fid
    name: bytes
    flags: int
    time: int


class RenameReply(NamedTuple):
    """What became of the victim, as in UnlinkReply, and which file has moved: NO_FID, two names of one file did not.

    When it is rebuilt, `fid` is that of the file that moved if there was a victim, and `moved` NO_FID if nobody knows it any more.
    """

    fid: Fid
    nlink: int
    orphan: bool
    moved: Fid


@message(op=39, reply=RenameReply, mutates=True)
class Rename(NamedTuple):
    """Move `source_name` to `target_name`, replacing what is there as POSIX says; the reply names the victim or NO_FID.

    Errors: those of Unlink, EINVAL into its own subtree, EEXIST with RENAME_NOREPLACE.  Source: mdt_reint_rename()
    """

    source: Fid
    source_name: bytes
    target: Fid
    target_name: bytes
    flags: int
    time: int


@message(op=41, reply=Empty, mutates=True)
class Setxattr(NamedTuple):
    """Set (`value`) or remove (None) an extended attribute.  Errors: EEXIST, ENODATA, ENOTSUP, E2BIG, EPERM."""

    fid: Fid
    name: bytes
    value: bytes | None
    flags: int
    time: int


@message(op=42, reply=Empty, mutates=True)
class SetDirStripe(NamedTuple):
    """Set the default striping of directory `fid`, or remove it with None.  Source: lfs setstripe on a directory"""

    fid: Fid
    hint: StripeHint | None
    time: int


@message(op=33, reply=Attr)
class Getattr(NamedTuple):
    """Attributes of `fid`.  Errors: ENOENT"""

    fid: Fid


@message(op=34, reply=Attr)
class Lookup(NamedTuple):
    """Attributes of `name` in `parent`; "." and ".." work.  Errors: ENOENT, ENOTDIR, EACCES.  Source: IT_LOOKUP"""

    parent: Fid
    name: bytes


class RootReply(NamedTuple):
    """The root, and what a client must know of the MDT."""

    attr: Attr
    fsname: str


@message(op=46, reply=RootReply)
class GetRoot(NamedTuple):
    """The root directory (MDS_GET_ROOT)."""


COOKIE_MAX = (1 << 63) - 1


def name_cookie(name: bytes) -> int:
    """Where `name` stands in a directory: 63 bits of its XXH64, never 0 (which means the start of a listing)."""
    return (xxh64_intdigest(name) & COOKIE_MAX) or 1


class Dirent(NamedTuple):
    """One name. `cookie` continues a listing after it: a hash of the name, never a counter."""

    cookie: int  # 63 bits
    name: bytes
    fid: Fid
    type: int  # S_IFMT bits of the mode
    attr: Attr | None  # readdir-plus


class DirPage(NamedTuple):
    """Part of a directory in cookie order; names of equal hash are never parted."""

    entries: tuple[Dirent, ...]
    end: bool


@message(op=47, reply=DirPage)
class Readdir(NamedTuple):
    """Names in `fid` whose cookie is greater than `cookie` (0: from the start), about `count` of them."""

    fid: Fid
    cookie: int
    count: int  # type: ignore[assignment]  # tuple has a method of that name
    plus: bool


class Bytes(NamedTuple):
    """A string of bytes."""

    value: bytes


class Names(NamedTuple):
    """Several strings of bytes."""

    names: tuple[bytes, ...]


@message(op=49, reply=Bytes)
class Getxattr(NamedTuple):
    """Value of an extended attribute.  Errors: ENODATA"""

    fid: Fid
    name: bytes


class Xattr(NamedTuple):
    """One extended attribute."""

    name: bytes
    value: bytes


class Xattrs(NamedTuple):
    """All extended attributes of a file, whoever may see them; none if they are more than fit in a message."""

    rows: tuple[Xattr, ...]
    complete: bool


@message(op=55, reply=Xattrs)
class Getxattrs(NamedTuple):
    """All extended attributes of `fid` but the access list, for a client that caches them.

    Source: OBD_MD_FLXATTRALL
    """

    fid: Fid


@message(op=50, reply=Names)
class Listxattr(NamedTuple):
    """Names of the extended attributes that the caller may see."""

    fid: Fid


class DirStripeReply(NamedTuple):
    """The default striping of a directory, its own or inherited (None: neither), and that of the file system."""

    hint: StripeHint | None
    default: StripeHint


@message(op=51, reply=DirStripeReply)
class GetDirStripe(NamedTuple):
    """Default striping of directory `fid`."""

    fid: Fid


@message(op=52, reply=Bytes)
class Readlink(NamedTuple):
    """Target of the symlink `fid`.  Errors: EINVAL"""

    fid: Fid


@message(op=53, reply=Names)
class FidToPath(NamedTuple):
    """All paths of `fid` from the root, by link back-pointers."""

    fid: Fid


class StatfsReply(NamedTuple):
    """Space and files of one target, in bytes and counts."""

    bytes_total: int
    bytes_free: int
    bytes_available: int
    files_total: int
    files_free: int
    state: int  # STATFS_*, 0 is fine


@message(op=54, reply=StatfsReply)
class Statfs(NamedTuple):
    """Space of the target."""


@message(op=44, reply=Empty)
class Sync(NamedTuple):
    """Answered when everything executed so far is durable (MDS_SYNC)."""


class SequenceReply(NamedTuple):
    """A range of FIDs that nobody else will ever get: [seq:1] to [seq:width]."""

    seq: int
    width: int


@message(op=700, reply=SequenceReply)
class AllocateSequence(NamedTuple):
    """A new FID sequence, committed before the answer (SEQ_QUERY). A lost answer only wastes a number."""
