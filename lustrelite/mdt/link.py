"""Hard links and the removal of names.

Unlink and rmdir take the name; what that means for the file is namespace.drop_link's: one name less, or an orphan while
it is open, or destroyed with its objects in the destroy log.
Source: mdt_reint_link(), mdt_reint_unlink(), mdt/mdt_reint.c
"""

from __future__ import annotations

import errno
from stat import S_ISDIR
from typing import TYPE_CHECKING, cast

from lustrelite.errors import OpError
from lustrelite.ids import NO_FID
from lustrelite.mdt import access, namespace
from lustrelite.mdt.access import EXECUTE, WRITE
from lustrelite.recovery.versions import ABSENT
from lustrelite.store.schema import ORPHANS, Inode, ReplyRecord
from lustrelite.target.handlers import EMPTY
from lustrelite.tunables import limits
from lustrelite.wire.mdt import OPEN_EXCL, OPEN_TMPFILE, UNLINK_RMDIR, Link, Unlink, UnlinkReply
from lustrelite.wire.session import Empty

if TYPE_CHECKING:
    from lustrelite.ids import Fid
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.rpc.export import Call
    from lustrelite.target.transaction import Transaction


def link(txn: Transaction, req: Link) -> Empty:
    """Link.  Errors: see wire.mdt.Link."""
    namespace.check_name(req.name, errno.EEXIST)
    parent = namespace.get_directory(txn, req.parent)
    source = namespace.find_inode(txn, req.fid)
    taken = namespace.find_name(txn, req.parent, req.name)
    txn.check(0, parent.version)
    txn.check(1, namespace.version_of(source))
    txn.check(2, ABSENT if taken is None else namespace.version_of(namespace.find_inode(txn, taken)))
    access.require(parent, txn.cred, EXECUTE)
    if source is None or not parent.nlink or not (source.nlink or _may_get_a_name(txn, req.fid)):
        raise OpError(errno.ENOENT)
    if taken is not None:
        raise OpError(errno.EEXIST)
    access.require(parent, txn.cred, WRITE | EXECUTE)
    if S_ISDIR(source.mode):
        raise OpError(errno.EPERM)
    access.require_changeable(source)
    namespace.check_project(parent, source)
    if source.nlink >= limits.links_max:
        raise OpError(errno.EMLINK)
    namespace.put_inode(
        txn,
        req.fid,
        source._replace(nlink=source.nlink + 1, ctime=max(source.ctime, req.time), version=txn.transno),
    )
    if not source.nlink:
        txn.delete(ORPHANS, req.fid)
    namespace.add_name(txn, req.parent, req.name, req.fid, source.mode)
    namespace.touch_parent(txn, req.parent, parent, req.time)
    return EMPTY


def _may_get_a_name(txn: Transaction, fid: Fid) -> bool:
    """Was it made without a name, by the same client, who has it open still? What lost its last name gets none."""
    opens = txn.export.opens.values() if txn.export is not None else ()
    return any(file.fid == fid and file.flags & (OPEN_TMPFILE | OPEN_EXCL) == OPEN_TMPFILE for file in opens)


def unlink(txn: Transaction, req: Unlink) -> UnlinkReply:
    """Unlink and rmdir.  Errors: see wire.mdt.Unlink."""
    if req.name == b".." and req.flags & UNLINK_RMDIR:
        raise OpError(errno.ENOTEMPTY)
    namespace.check_name(req.name)
    parent = namespace.get_directory(txn, req.parent)
    fid = namespace.find_name(txn, req.parent, req.name)
    victim = None if fid is None else namespace.get_inode(txn, fid)
    txn.check(0, parent.version)
    txn.check(1, namespace.version_of(victim))
    if fid is None or victim is None:
        access.require(parent, txn.cred, EXECUTE)
        raise OpError(errno.ENOENT)
    access.require_removable(parent, victim, txn.cred)
    require_kind(victim, directory=bool(req.flags & UNLINK_RMDIR))
    is_directory = S_ISDIR(victim.mode)
    if is_directory and not namespace.is_empty(txn, fid):
        raise OpError(errno.ENOTEMPTY)
    namespace.remove_name(txn, req.parent, req.name, fid)
    namespace.touch_parent(txn, req.parent, parent, req.time, -1 if is_directory else 0)
    return remove_victim(txn, fid, victim, req.time)


def require_kind(victim: Inode, *, directory: bool) -> None:
    """ENOTDIR or EISDIR unless `victim` is (or is not) a directory."""
    if directory != S_ISDIR(victim.mode):
        raise OpError(errno.ENOTDIR if directory else errno.EISDIR)


def remove_victim(txn: Transaction, fid: Fid, victim: Inode, time: int) -> UnlinkReply:
    """What lost its name to an unlink or a rename. In recovery any file may still be reopened by a replay."""
    mdt = cast("Mdt", txn.target)
    nlink, orphan = namespace.drop_link(
        txn, fid, victim, time, keep=mdt.recovering or mdt.open_files.is_open(fid)
    )  # fmt: skip
    txn.data = nlink << 1 | orphan
    return UnlinkReply(fid, nlink, orphan)


def rebuild_unlink(call: Call, req: object, record: ReplyRecord) -> UnlinkReply:
    """What the record still knows: who the victim was is forgotten."""
    return UnlinkReply(NO_FID, record.data >> 1, bool(record.data & 1))
