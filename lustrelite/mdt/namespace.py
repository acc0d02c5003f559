"""Inodes, names and link back-pointers: the steps of which the operations on a name space are made.

An inode is kept under its FID, a name under (parent, hash of the name, name), and beside every name stands a
back-pointer (child, parent, name), so that the paths of a file can be found and a rename knows what it moves. All three
change in one transaction, as does the parent: its times, and its nlink if the child is a directory ("." and ".." are
not stored: nlink is 2 + subdirectories, and the parent of a directory is in its inode). A touch of a parent is no
version change: clients may work in one directory without depending on each other (protocol-facts 3.7).

Times come from the client, so that a replay makes the same; a parent's times never go back, because clients' clocks
differ. An inode without names is an orphan while somebody has it open (mdt/open.py), else it is destroyed here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from stat import S_IFDIR, S_IFMT, S_ISDIR
from typing import TYPE_CHECKING, Protocol, cast

from lustrelite import acl
from lustrelite.errors import OpError
from lustrelite.ids import NO_FID, ROOT_FID, Fid
from lustrelite.mdt import xattr_rows
from lustrelite.mdt.access import PROJECT_INHERITED
from lustrelite.mdt.ost_log import condemn
from lustrelite.permission import CAPABILITY
from lustrelite.recovery.versions import ABSENT
from lustrelite.store.schema import (
    INODES,
    LINKS,
    NAMES,
    ORPHANS,
    Inode,
    Owner,
    link_key,
    name_key,
    pack_entry,
    pack_inode,
    split_link_key,
    unpack_entry,
    unpack_inode,
)
from lustrelite.tunables import limits
from lustrelite.wire.mdt import Attr, Layout, StripeHint

if TYPE_CHECKING:
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.target.transaction import Transaction

DIRECTORY_BYTES = 4096  # the size that stat() shows of a directory
PATHS_MAX = 1000  # that fid2path lists
STRIPES_AT_ONCE = 64  # of a file that are destroyed in one transaction: a full MDT has room for that
_DEPTH_MAX = limits.path_bytes_max // 2  # no path is deeper
_DOTS = (b".", b"..")


class Rows(Protocol):
    """Where rows are read: the store, or a transaction with its own changes."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of `key`."""

    def scan(self, table: str, after: bytes = b"", *, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows in key order."""


# ---------------------------------------------------------------- looking


def check_name(name: bytes, reserved: int = errno.EINVAL) -> None:
    """A component of a path that may be made or removed; "." and ".." raise OpError(reserved)."""
    if not name or b"/" in name or b"\0" in name:
        raise OpError(errno.EINVAL)
    if len(name) > limits.name_bytes_max:
        raise OpError(errno.ENAMETOOLONG)
    if name in _DOTS:
        raise OpError(reserved)


def find_inode(rows: Rows, fid: Fid) -> Inode | None:
    """The inode `fid`, or None."""
    data = rows.get(INODES, fid)
    return None if data is None else unpack_inode(data)


def get_inode(rows: Rows, fid: Fid) -> Inode:
    """The inode `fid`; ENOENT."""
    data = rows.get(INODES, fid)
    if data is None:
        raise OpError(errno.ENOENT)
    return unpack_inode(data)


def get_directory(rows: Rows, fid: Fid) -> Inode:
    """The directory `fid`; ENOENT, ENOTDIR."""
    data = rows.get(INODES, fid)
    if data is None:
        raise OpError(errno.ENOENT)
    inode = unpack_inode(data)
    if not S_ISDIR(inode.mode):
        raise OpError(errno.ENOTDIR)
    return inode


def find_name(rows: Rows, parent: Fid, name: bytes) -> Fid | None:
    """Whose name `name` in `parent` is, or None."""
    entry = rows.get(NAMES, name_key(parent, name))
    return None if entry is None else unpack_entry(entry)[0]


def owner_of(inode: Inode) -> Owner:
    """For whom the file's objects are counted."""
    return Owner(inode.uid, inode.gid, inode.projid)


def check_project(directory: Inode, inode: Inode) -> None:
    """EXDEV if a file of another project must not come into `directory`.

    Source: mdd_rename_sanity_check(), mdd_dir.c
    """
    if directory.flags & PROJECT_INHERITED and directory.projid != inode.projid:
        raise OpError(errno.EXDEV)


def version_of(inode: Inode | None) -> int:
    """What a version check compares: ABSENT if there is nothing."""
    return ABSENT if inode is None else inode.version


def is_empty(rows: Rows, directory: Fid) -> bool:
    """Has `directory` no names?"""
    return next(iter(rows.scan(NAMES, prefix=directory)), None) is None


def is_below(txn: Transaction, fid: Fid, ancestor: Fid) -> bool:
    """Is directory `fid` the directory `ancestor`, or in its subtree? The answer depends on who has moved those above it."""
    seen: set[Fid] = set()  # a circle, which only damage makes, must not hold everybody up
    while fid not in seen:
        if fid == ancestor:
            return True
        if fid in (ROOT_FID, NO_FID):
            return False
        inode = find_inode(txn, fid)
        if inode is None:
            return False
        txn.depends(inode.version)
        seen.add(fid)
        fid = inode.parent
    raise OpError(errno.ELOOP)


def attr_of(fid: Fid, inode: Inode) -> Attr:
    """The attributes that a client sees."""
    (
        mode, uid, gid, nlink, rdev, flags, size, blocks, atime, mtime, ctime, btime, version, layout, _, _, parent, projid,
        listed, default_acl, xattrs, mtime_set, _,
    ) = inode  # fmt: skip
    if default_acl:
        xattrs += len(acl.DEFAULT) + 1
    return Attr(
        fid, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, btime, version, flags, layout,
        parent, projid, listed, xattrs, mtime_set,
    )  # fmt: skip


def vanished_attr(fid: Fid) -> Attr:
    """What a rebuilt reply says of an object that is gone: nlink 0 and nothing else.  Source: LU-5285"""
    return Attr(fid, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, NO_FID)


def paths_of(rows: Rows, fid: Fid) -> list[bytes]:
    """Every path of `fid` from the root (at most PATHS_MAX), by back-pointers. An orphan has none."""
    if fid == ROOT_FID:
        return [b"/"]
    paths = []
    for key, _ in rows.scan(LINKS, prefix=fid):
        _, parent, name = split_link_key(key)
        parts = [name]
        while parent != ROOT_FID and len(parts) < _DEPTH_MAX:
            step = next(iter(rows.scan(LINKS, prefix=parent)), None)
            if step is None:
                break
            _, parent, name = split_link_key(step[0])
            parts.append(name)
        if parent == ROOT_FID:
            paths.append(b"/" + b"/".join(reversed(parts)))
        if len(paths) == PATHS_MAX:
            break
    return paths


# ---------------------------------------------------------------- changing


def put_inode(txn: Transaction, fid: Fid, inode: Inode) -> None:
    """Write `inode` as `fid`."""
    txn.put(INODES, fid, pack_inode(inode))


def new_inode(
    mode: int, uid: int, gid: int, rdev: int, time: int, version: int, layout: Layout | None, hint: StripeHint | None,
    target: bytes, parent: Fid, listed: bytes = b"", default_acl: bytes = b"",
) -> Inode:  # fmt: skip
    """An inode with its first name; `parent` counts for a directory only."""
    if S_ISDIR(mode):
        return Inode(
            mode, uid, gid, 2, 0, 0, DIRECTORY_BYTES, 8, time, time, time, time, version, None, hint, b"", parent, 0,
            listed, default_acl,
        )  # fmt: skip
    return Inode(
        mode, uid, gid, 1, rdev, 0, len(target), 0, time, time, time, time, version, layout, hint, target, NO_FID, 0, listed
    )


def without_capability(txn: Transaction, fid: Fid, inode: Inode) -> Inode:
    """The inode of a file that is written or changes hands: what its program may do beyond its caller's rights goes.

    Source: security_inode_killpriv(), security/commoncap.c
    """
    if has_capability(txn, fid, inode):
        xattr_rows.delete(txn, fid, CAPABILITY)
        return inode._replace(xattrs=inode.xattrs - len(CAPABILITY) - 1)
    return inode


def has_capability(rows: Rows, fid: Fid, inode: Inode) -> bool:
    """Are there capabilities to lose?"""
    return bool(inode.xattrs) and xattr_rows.get(rows, fid, CAPABILITY) is not None


def touched(inode: Inode, time: int, nlink: int = 0) -> Inode:
    """A directory whose names changed at `time`; `nlink` subdirectories came."""
    (
        mode, uid, gid, count, rdev, flags, size, blocks, atime, mtime, ctime, btime, version, layout, hint, target, up,
        projid, listed, default_acl, xattrs, mtime_set, atime_set,
    ) = inode  # fmt: skip
    if mtime_set or time > mtime:
        mtime, mtime_set = time, 0
    if time > ctime:
        ctime = time
    return Inode(
        mode, uid, gid, count + nlink, rdev, flags, size, blocks, atime, mtime, ctime, btime, version, layout, hint,
        target, up, projid, listed, default_acl, xattrs, mtime_set, atime_set,
    )  # fmt: skip


def written(inode: Inode, time: int) -> Inode:
    """A file that was changed at `time`, after its times were set if they were, as its mtime tells it."""
    return inode._replace(mtime=time, mtime_set=0) if inode.mtime_set or time > inode.mtime else inode


def touch_parent(txn: Transaction, fid: Fid, inode: Inode, time: int, nlink: int = 0) -> None:
    """Write the directory `inode` as `touched`: no version change."""
    txn.put(INODES, fid, pack_inode(touched(inode, time, nlink)))


def add_name(txn: Transaction, parent: Fid, name: bytes, child: Fid, mode: int) -> None:
    """Enter `name` and its back-pointer. There must be none."""
    txn.put(NAMES, name_key(parent, name), pack_entry(child, S_IFMT(mode)))
    txn.put(LINKS, link_key(child, parent, name), b"")


def remove_name(txn: Transaction, parent: Fid, name: bytes, child: Fid) -> None:
    """Take out `name` and its back-pointer."""
    txn.delete(NAMES, name_key(parent, name))
    txn.delete(LINKS, link_key(child, parent, name))


def drop_link(txn: Transaction, fid: Fid, inode: Inode, time: int, *, keep: bool) -> tuple[int, bool]:
    """`inode` lost a name: (nlink left, orphan). `keep`: it is open, or may be as long as recovery goes on.

    A link count is no version change (protocol-facts 3.7: unlink sets no version).
    """
    nlink = 0 if S_ISDIR(inode.mode) else inode.nlink - 1
    assert nlink >= 0, (fid, inode)
    if nlink or keep:
        txn.put(INODES, fid, pack_inode(inode._replace(nlink=nlink, ctime=max(inode.ctime, time))))
        if not nlink:
            txn.put(ORPHANS, fid, b"")
        return nlink, not nlink
    destroy(txn, fid, inode)
    return 0, False


def destroy(txn: Transaction, fid: Fid, inode: Inode) -> bool:
    """Remove the inode, its attributes and its objects: these go to the log of their OSTs.

    A full MDT has no room for very many at once. True: what is left is an orphan, to be destroyed next.
    """
    layout = inode.layout
    if layout is not None:
        for ost, oid in layout.stripes[-STRIPES_AT_ONCE:]:
            condemn(txn, ost, oid)
        if len(layout.stripes) > STRIPES_AT_ONCE:
            left = layout._replace(stripes=layout.stripes[:-STRIPES_AT_ONCE])
            put_inode(txn, fid, inode._replace(nlink=0, layout=left))
            txn.put(ORPHANS, fid, b"")
            if txn.call is not None:
                txn.then = lambda: cast("Mdt", txn.target).destroy_unused([fid])
            return True
    txn.delete(INODES, fid)
    if inode.xattrs:
        xattr_rows.delete_all(txn, fid)
    return False


def make_root(txn: Transaction, owner: tuple[int, int] = (0, 0), time: int = 0) -> None:
    """Make the root directory, if there is none."""
    if txn.get(INODES, ROOT_FID) is None:
        root = new_inode(S_IFDIR | 0o755, *owner, 0, time, txn.transno, None, None, b"", ROOT_FID)
        put_inode(txn, ROOT_FID, root)
