"""Making a file, directory, symlink or device.

The client chose the FID, so making it again in a replay makes the same; the objects of the first execution come with
the replay (mdt/layout.py). What costs time here is paid for every file in the system: three gets and five puts.
Source: mdt_reint_create(), mdt/mdt_reint.c; mdd_create(), mdd/mdd_dir.c
"""

from __future__ import annotations

import errno
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import TYPE_CHECKING, cast

from lustrelite import acl
from lustrelite.errors import OpError
from lustrelite.ids import FID_BYTES, SEQ_NORMAL, Fid, make_fid
from lustrelite.mdt import access, namespace
from lustrelite.mdt.access import EXECUTE, PROJECT_INHERITED, WRITE
from lustrelite.mdt.layout import Wish, check_hint, wish_of
from lustrelite.mdt.ost_log import own
from lustrelite.recovery.versions import ABSENT
from lustrelite.store.schema import (
    INODES,
    LINKS,
    NAMES,
    ORPHANS,
    Inode,
    link_key,
    name_key,
    pack_entry,
    pack_inode,
    unpack_entry,
    unpack_inode,
)
from lustrelite.tunables import limits
from lustrelite.wire.mdt import Attr, Create, Layout, StripeHint
from lustrelite.wire.message import REPLAY

if TYPE_CHECKING:
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.rpc.export import Call
    from lustrelite.target.transaction import Transaction

KINDS = frozenset((S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK))
FIRST_FID = make_fid(SEQ_NORMAL, 1)  # clients are given sequences from here on


def wish_of_create(call: Call, req: Create) -> Wish | None:
    """The objects to wait for, if a regular file is to be made."""
    if req.mode & 0o170000 != S_IFREG or call.header.flags & REPLAY:
        return None
    return wish_to_wait_for(call, req.parent, req.name, req.hint)


def wish_to_wait_for(call: Call, parent: Fid, name: bytes, hint: StripeHint | None) -> Wish | None:
    """None if a new file `name` in `parent` can have its objects at once (or will fail anyway), else what it needs."""
    mdt: Mdt = call.target
    allocator = mdt.allocator
    if allocator.all_ready:
        return None
    directory = namespace.find_inode(mdt.store, parent)
    if directory is None or mdt.store.get(NAMES, name_key(parent, name)) is not None:
        return None
    try:
        wish = wish_of(mdt.node, hint, directory.hint)
        return None if allocator.stripes_now(wish) else wish
    except OpError:
        return None  # the handler will say the same


def create(txn: Transaction, req: Create) -> Attr:
    """Create.  Errors: see wire.mdt.Create."""
    mdt = cast("Mdt", txn.target)
    parent_fid, name, fid, mode = req.parent, req.name, req.fid, req.mode
    namespace.check_name(name, errno.EEXIST)
    parent = namespace.get_directory(txn, parent_fid)
    entry = txn.get(NAMES, name_key(parent_fid, name))
    found = txn.get(INODES, fid)
    if entry is not None or found is not None:
        return _exists(txn, parent, fid, entry, found)
    txn.check(0, parent.version)
    txn.check(1, ABSENT)
    txn.check(2, ABSENT)
    kind = mode & 0o170000
    if kind not in KINDS or mode > 0o177777:
        raise OpError(errno.EINVAL)
    access.require(parent, txn.cred, WRITE | EXECUTE)
    if txn.cred[0] and (kind == S_IFBLK or (kind == S_IFCHR and req.rdev)):  # 0: a whiteout, since Linux 5.8 (vfs_mknod())
        raise OpError(errno.EPERM)
    if kind == S_IFLNK:
        if not req.target:
            raise OpError(errno.ENOENT)
        if len(req.target) > limits.symlink_bytes_max:
            raise OpError(errno.ENAMETOOLONG)
    inode = make_child(
        mdt, txn, parent_fid, parent, name, fid, mode, req.time, rdev=req.rdev, target=req.target, hint=req.hint,
        layout=req.layout, umask=req.umask,
    )  # fmt: skip
    return namespace.attr_of(fid, inode)


def _exists(txn: Transaction, parent: Inode, fid: Fid, entry: bytes | None, found: bytes | None) -> Attr:
    inode = None if found is None else unpack_inode(found)
    named = None if entry is None else unpack_entry(entry)[0]
    if inode is not None and named == fid and (txn.resent or txn.replay):
        return namespace.attr_of(fid, inode)  # our own, made by the first copy (LU-15107)
    txn.check(0, parent.version)
    txn.check(1, ABSENT if named is None else namespace.version_of(namespace.find_inode(txn, named)))
    txn.check(2, namespace.version_of(inode))
    if txn.cred[0]:
        access.require(parent, txn.cred, EXECUTE)
    raise OpError(errno.EEXIST)


def make_child(
    mdt: Mdt, txn: Transaction, parent_fid: Fid, parent: Inode, name: bytes, fid: Fid, mode: int, time: int, *,
    rdev: int = 0, target: bytes = b"", hint: StripeHint | None, layout: Layout | None, umask: int = 0,
) -> Inode:  # fmt: skip
    """Make the inode with its name, objects and back-pointer. Caller, name and kind are checked; the rest is here.

    Without a `name` it is an orphan, which its maker has open.  Errors: ENOENT the parent was removed, EMLINK, EINVAL,
    ENOSPC; NotReady.
    """
    if not parent.nlink:
        raise OpError(errno.ENOENT)
    if fid < FIRST_FID or fid[FID_BYTES - 4 :] != b"\0\0\0\0":
        raise OpError(errno.EINVAL)
    if mdt.node.faults.any:
        mdt.fault_sync("mdt.create", txn.call)
    kind = mode & 0o170000
    mode, gid = access.new_owner(parent, mode, txn.cred)
    listed = default_acl = b""
    if kind != S_IFLNK:
        if parent.default_acl:
            mode, listed, default_acl = acl.inherited(parent.default_acl, mode)
        else:
            mode &= ~(umask & 0o777)
    subdirectories = 0
    objects: Layout | None = None
    default: StripeHint | None = None
    if kind == S_IFREG:
        if txn.replay:
            # None: it was removed before its maker had the answer (rebuild_attr), and the replay will remove it again.
            if layout is not None:
                mdt.allocator.claim(txn, layout)
            objects = layout
        else:
            wish = wish_of(mdt.node, hint, parent.hint)
            if mdt.node.faults.any:
                mdt.fault_sync("mdt.layout", txn.call)
            objects = mdt.allocator.allocate(txn, wish)
    elif kind == S_IFDIR:
        if parent.nlink >= limits.links_max:
            raise OpError(errno.EMLINK)
        if hint is not None:
            check_hint(hint)
        default = hint or parent.hint
        subdirectories = 1
    inode = namespace.new_inode(
        mode, txn.cred[0], gid, rdev if kind in (S_IFCHR, S_IFBLK) else 0, time, txn.transno, objects, default,
        target if kind == S_IFLNK else b"", parent_fid, listed, default_acl,
    )  # fmt: skip
    if parent.flags & PROJECT_INHERITED:
        inode = inode._replace(projid=parent.projid, flags=PROJECT_INHERITED if kind == S_IFDIR else 0)
    if objects is not None and (txn.cred[0] or gid or inode.projid):
        own(txn, objects, namespace.owner_of(inode))
    writes = txn.writes  # this is `put` five times, without the calls
    if not name:
        inode = inode._replace(nlink=0)
        writes[INODES, fid] = pack_inode(inode)
        writes[ORPHANS, fid] = b""
        return inode
    writes[INODES, fid] = pack_inode(inode)
    writes[NAMES, name_key(parent_fid, name)] = pack_entry(fid, S_IFMT(mode))
    writes[LINKS, link_key(fid, parent_fid, name)] = b""
    writes[INODES, parent_fid] = pack_inode(namespace.touched(parent, time, subdirectories))
    return inode
