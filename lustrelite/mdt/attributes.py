"""Setattr, extended attributes and default striping.

Version-relevant are mode, owner, group, project and flags, extended attributes and striping; times and the permission
to truncate are not (protocol-facts 3.7).  Source: mdt_reint_setattr(), mdt_reint_setxattr(); the rules: mdt/access.py
"""

from __future__ import annotations

import errno
from stat import S_ISDIR, S_ISGID, S_ISREG
from typing import TYPE_CHECKING, cast

from lustrelite import acl
from lustrelite.errors import OpError
from lustrelite.mdt import access, namespace, xattr_rows
from lustrelite.mdt.layout import check_hint
from lustrelite.mdt.ost_log import own
from lustrelite.permission import require_xattr, sees_xattr
from lustrelite.store.schema import Inode, ReplyRecord
from lustrelite.target.handlers import EMPTY
from lustrelite.tunables import limits
from lustrelite.wire.mdt import (
    ID_MAX,
    OPEN_WRITE,
    SET_ATIME,
    SET_FLAGS,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_PROJID,
    SET_SIZE,
    SET_TIMES_EXPLICIT,
    SET_UID,
    SET_VERSIONED,
    SETATTRS_VALID,
    XATTR_CREATE,
    XATTR_REPLACE,
    Attr,
    Bytes,
    Create,
    DirStripeReply,
    GetDirStripe,
    Getxattr,
    Getxattrs,
    Listxattr,
    Names,
    Setattr,
    Setattrs,
    SetDirStripe,
    Setxattr,
    StripeHint,
    Xattr,
    Xattrs,
)
from lustrelite.wire.session import Empty

if TYPE_CHECKING:
    from lustrelite.ids import Fid
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.mdt.open import OpenFile
    from lustrelite.rpc.export import Call
    from lustrelite.target.transaction import Transaction

OWNERSHIP = SET_UID | SET_GID | SET_PROJID
KNOWN = SET_VERSIONED | SET_ATIME | SET_MTIME | SET_SIZE | SET_TIMES_EXPLICIT
ALL_BYTES_MAX = 4096  # of names and values in one answer to Getxattrs: clients keep them for each of 100,000 files
XATTRS_BYTES_MAX = limits.xattr_bytes_max  # names of one file, so that listxattr(2) can return them


def setattr_(txn: Transaction, req: Setattr) -> Attr:
    """Setattr.  Errors: see wire.mdt.Setattr."""
    fid, valid = req.fid, req.valid
    inode = namespace.find_inode(txn, fid)
    if valid & SET_VERSIONED:
        txn.check(0, namespace.version_of(inode))
    else:  # a replay will do without its version, but not without the file
        txn.depends(namespace.version_of(inode))
    if inode is None:
        raise OpError(errno.ENOENT)
    if valid & ~KNOWN or not (0 <= req.uid <= ID_MAX and 0 <= req.gid <= ID_MAX and 0 <= req.projid <= ID_MAX):
        raise OpError(errno.EINVAL)
    writable = _open_for_writing(txn, fid, req.handle)
    access.require_setattr(inode, valid, req.uid, req.gid, req.flags, txn.cred, writable)
    if valid & SET_SIZE and not S_ISREG(inode.mode):
        raise OpError(errno.EISDIR if S_ISDIR(inode.mode) else errno.EINVAL)
    return namespace.attr_of(fid, _change(txn, inode, req))


def setattr_many(txn: Transaction, req: Setattrs) -> Empty:
    """Setattrs. It waits for no lock: under SOLE nobody else has one, and whoever wants one waits for this.  Errors: EINVAL"""
    for row in req.rows:
        if row.valid & ~SETATTRS_VALID or not (0 <= row.uid <= ID_MAX and 0 <= row.gid <= ID_MAX):
            raise OpError(errno.EINVAL)
    for row in req.rows:
        inode = namespace.find_inode(txn, row.fid)
        if inode is not None:
            _change(txn, inode, row)
    return EMPTY


def _change(txn: Transaction, inode: Inode, req: Setattr) -> Inode:
    valid = req.valid
    changed = _changed(txn, inode, req)
    if changed is not inode:
        namespace.put_inode(txn, req.fid, changed)
    if valid & OWNERSHIP:
        own(txn, changed.layout, namespace.owner_of(changed))
    if valid & SET_TIMES_EXPLICIT:
        cast("Mdt", txn.target).open_files.times_set(
            txn, req.fid, req.time, mtime=bool(valid & SET_MTIME), atime=bool(valid & SET_ATIME)
        )
    return changed


def _changed(txn: Transaction, inode: Inode, req: Setattr) -> Inode:
    valid = req.valid
    if not valid & ~SET_TIMES_EXPLICIT:
        return inode
    if valid & (SET_UID | SET_GID | SET_SIZE) and not S_ISDIR(inode.mode):
        inode = namespace.without_capability(txn, req.fid, inode)
    if valid & SET_MTIME:
        inode = inode._replace(mtime=req.mtime, mtime_set=req.time if valid & SET_TIMES_EXPLICIT else 0)
    elif valid & SET_SIZE:
        inode = namespace.written(inode, req.time)
    mode = access.changed_mode(inode, valid, req.mode, req.gid, txn.cred)
    return inode._replace(
        mode=mode,
        acl=acl.with_mode(inode.acl, mode) if inode.acl and valid & SET_MODE else inode.acl,
        uid=req.uid if valid & SET_UID else inode.uid,
        gid=req.gid if valid & SET_GID else inode.gid,
        flags=req.flags if valid & SET_FLAGS else inode.flags,
        atime=req.atime if valid & SET_ATIME else inode.atime,
        atime_set=inode.atime_set if not valid & SET_ATIME else req.time if valid & SET_TIMES_EXPLICIT else 0,
        ctime=max(inode.ctime, req.time),
        version=txn.transno if valid & SET_VERSIONED else inode.version,
        projid=req.projid if valid & SET_PROJID else inode.projid,
    )


def _open_for_writing(txn: Transaction, fid: Fid, handle: int) -> bool:
    if not handle or txn.export is None:
        return False
    file: OpenFile | None = txn.export.opens.get(handle)
    return file is not None and file.fid == fid and bool(file.flags & OPEN_WRITE)


def rebuild_attr(call: Call, req: Create | Setattr, record: ReplyRecord) -> Attr:
    """Of a create or setattr that was executed: the attributes of today; made up if the file is gone (LU-5285)."""
    inode = namespace.find_inode(call.target.store, req.fid)
    return namespace.vanished_attr(req.fid) if inode is None else namespace.attr_of(req.fid, inode)


# ---------------------------------------------------------------- extended attributes


def setxattr(txn: Transaction, req: Setxattr) -> Empty:
    """Setxattr and removexattr.  Errors: see wire.mdt.Setxattr."""
    inode = namespace.find_inode(txn, req.fid)
    txn.check(0, namespace.version_of(inode))
    if inode is None:
        raise OpError(errno.ENOENT)
    access.require_changeable(inode)
    require_xattr(inode, req.name, txn.cred, write=True, remove=req.value is None)
    if req.flags & ~(XATTR_CREATE | XATTR_REPLACE):
        raise OpError(errno.EINVAL)
    if req.name in (acl.ACCESS, acl.DEFAULT):
        changed = _with_acl(txn, inode, req)
    else:
        changed = inode._replace(xattrs=inode.xattrs + _put_xattr(txn, inode, req))
    changed = changed._replace(ctime=max(inode.ctime, req.time), version=txn.transno)
    namespace.put_inode(txn, req.fid, changed)
    return EMPTY


def _with_acl(txn: Transaction, inode: Inode, req: Setxattr) -> Inode:
    """The inode with another access control list.  Errors: EPERM; EACCES a default list of what is no directory

    Source: set_posix_acl(), posix_acl_update_mode(), fs/posix_acl.c
    """
    entries = acl.parse(req.value or b"")
    default = req.name == acl.DEFAULT
    if default and not S_ISDIR(inode.mode):
        if entries:
            raise OpError(errno.EACCES)
        return inode
    if not access.owns(inode, txn.cred):
        raise OpError(errno.EPERM)
    if default:
        return inode._replace(default_acl=acl.pack(entries))
    if not entries:
        return inode._replace(acl=b"")
    mode, minimal = acl.mode_of(entries, inode.mode)
    if txn.cred[0] and not access.in_group(txn.cred, inode.gid):
        mode &= ~S_ISGID
    return inode._replace(mode=mode, acl=b"" if minimal else acl.pack(entries))


def _put_xattr(txn: Transaction, inode: Inode, req: Setxattr) -> int:
    """Write or remove the row; returns by how much the inode's count of their names grows."""
    old = xattr_rows.get(txn, req.fid, req.name)
    size = len(req.name) + 1
    if req.value is None:
        if old is None:
            raise OpError(errno.ENODATA)
        xattr_rows.delete(txn, req.fid, req.name)
        return -size
    if old is None and req.flags & XATTR_REPLACE:
        raise OpError(errno.ENODATA)
    if old is not None and req.flags & XATTR_CREATE:
        raise OpError(errno.EEXIST)
    if len(req.value) > limits.xattr_bytes_max:
        raise OpError(errno.E2BIG)
    if old is None and inode.xattrs + size > XATTRS_BYTES_MAX:
        raise OpError(errno.ENOSPC)
    if old is not None:
        xattr_rows.delete(txn, req.fid, req.name)
    xattr_rows.put(txn, req.fid, req.name, req.value)
    return size if old is None else 0


def getxattr(call: Call, req: Getxattr) -> Bytes:
    """Getxattr.  Errors: ENODATA, ENOTSUP, EACCES, ENOENT."""
    store = call.target.store
    inode = namespace.get_inode(store, req.fid)
    require_xattr(inode, req.name, call.cred, write=False)
    value: bytes | None
    if req.name == acl.ACCESS:
        value = inode.acl or None
    elif req.name == acl.DEFAULT:
        value = inode.default_acl or None
    else:
        value = xattr_rows.get(store, req.fid, req.name)
    if value is None:
        raise OpError(errno.ENODATA)
    return Bytes(value)


def getxattrs(call: Call, req: Getxattrs) -> Xattrs:
    """All of them but the access list, which is among the attributes.  Errors: ENOENT."""
    store = call.target.store
    inode = namespace.get_inode(store, req.fid)
    rows = [Xattr(acl.DEFAULT, inode.default_acl)] if inode.default_acl else []
    size = 0
    for name, piece, value in xattr_rows.pieces(store, req.fid) if inode.xattrs else ():
        size += len(name) + len(value)
        if size > ALL_BYTES_MAX or piece:
            return Xattrs((), False)
        rows.append(Xattr(name, value))
    return Xattrs(tuple(rows), True)


def listxattr(call: Call, req: Listxattr) -> Names:
    """Names that the caller may see.  Errors: ENOENT."""
    store = call.target.store
    inode = namespace.get_inode(store, req.fid)
    names = [name for name, found in ((acl.ACCESS, inode.acl), (acl.DEFAULT, inode.default_acl)) if found]
    if inode.xattrs:
        names += xattr_rows.names(store, req.fid)
    return Names(tuple([name for name in names if sees_xattr(name, call.cred)]))


# ---------------------------------------------------------------- default striping


def set_dir_stripe(txn: Transaction, req: SetDirStripe) -> Empty:
    """Set the striping of files made in a directory from now on.  Errors: EINVAL, ENOTDIR, EPERM, ENOENT."""
    inode = namespace.find_inode(txn, req.fid)
    txn.check(0, namespace.version_of(inode))
    if inode is None:
        raise OpError(errno.ENOENT)
    if not S_ISDIR(inode.mode):
        raise OpError(errno.ENOTDIR)
    access.require_changeable(inode)
    if not access.owns(inode, txn.cred):
        raise OpError(errno.EPERM)
    hint: StripeHint | None = req.hint
    if hint is not None:
        check_hint(hint)
        if hint == (0, 0, -1):
            hint = None  # all defaults: as if never set
    changed = inode._replace(hint=hint, ctime=max(inode.ctime, req.time), version=txn.transno)
    namespace.put_inode(txn, req.fid, changed)
    return EMPTY


def get_dir_stripe(call: Call, req: GetDirStripe) -> DirStripeReply:
    """The striping of files made in a directory; None is the file system's default.  Errors: ENOTDIR, ENOENT."""
    tunables = call.target.node.tunables
    default = StripeHint(tunables.stripe_count, tunables.stripe_size, -1)
    return DirStripeReply(namespace.get_directory(call.target.store, req.fid).hint, default)
