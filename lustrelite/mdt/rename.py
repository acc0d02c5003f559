"""Rename, with all that POSIX and renameat2(2) say.

In Linux's order: names, NOREPLACE, subtrees, the same file, permissions, kinds, emptiness, link counts. Versions are
checked before any of it, so that a replay fails for its version and not for what a missing client changed.
Source: mdt_reint_rename(), mdt/mdt_reint.c; vfs_rename() and do_renameat2(), fs/namei.c
"""

from __future__ import annotations

import errno
from stat import S_ISDIR
from typing import TYPE_CHECKING, NamedTuple

from lustrelite.errors import OpError
from lustrelite.ids import NO_FID, Fid
from lustrelite.mdt import access, namespace
from lustrelite.mdt.access import EXECUTE, WRITE
from lustrelite.mdt.link import remove_victim
from lustrelite.store.schema import Inode, ReplyRecord
from lustrelite.tunables import limits
from lustrelite.wire.mdt import RENAME_EXCHANGE, RENAME_NOREPLACE, Rename, RenameReply

if TYPE_CHECKING:
    from lustrelite.rpc.export import Call
    from lustrelite.target.transaction import Transaction

NOTHING = RenameReply(NO_FID, 0, False, NO_FID)
MOVED = 1 << 40  # in the reply record, beside what an unlink's has
REPLACED = 1 << 41  # the same: there was a victim


class _Place(NamedTuple):
    """A directory and the name in it."""

    fid: Fid
    name: bytes
    directory: Inode


class _File(NamedTuple):
    """What a name belongs to."""

    fid: Fid
    inode: Inode


def rename(txn: Transaction, req: Rename) -> RenameReply:
    """Rename.  Errors: see wire.mdt.Rename."""
    namespace.check_name(req.source_name)
    namespace.check_name(req.target_name)
    if req.flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or req.flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
        raise OpError(errno.EINVAL)
    same_directory = req.source == req.target
    directory = namespace.get_directory(txn, req.source)
    source = _Place(req.source, req.source_name, directory)
    target = _Place(
        req.target, req.target_name, directory if same_directory else namespace.get_directory(txn, req.target)
    )
    moved, victim = _find(txn, source), _find(txn, target)
    txn.check(0, source.directory.version)
    txn.check(1, target.directory.version)
    txn.check(2, namespace.version_of(moved and moved.inode))
    txn.check(3, namespace.version_of(victim and victim.inode))
    access.require(source.directory, txn.cred, EXECUTE)
    access.require(target.directory, txn.cred, EXECUTE)
    if moved is None:
        raise OpError(errno.ENOENT)
    if victim is None and req.flags & RENAME_EXCHANGE:
        raise OpError(errno.ENOENT)
    if victim is not None and req.flags & RENAME_NOREPLACE:
        raise OpError(errno.EEXIST)
    if not same_directory:
        _check_subtrees(txn, source, target, moved, victim, bool(req.flags & RENAME_EXCHANGE))
    if victim is not None and moved.fid == victim.fid:
        return NOTHING  # two names of one file: nothing happens
    _check_access(txn, source, target, moved, victim, bool(req.flags & RENAME_EXCHANGE))
    if req.flags & RENAME_EXCHANGE:
        assert victim is not None
        reply = _exchange(txn, source, target, moved, victim, req.time)
    else:
        reply = _move(txn, source, target, moved, victim, req.time)
        if victim is not None:
            txn.data |= REPLACED
    txn.data |= MOVED
    return reply


def rebuild_rename(call: Call, req: Rename, record: ReplyRecord) -> RenameReply:
    """What the record still knows.

    The victim's FID is forgotten: that there was one is said by the FID of the file that moved. That is the one that has the
    name, as long as nothing else has happened to either.
    """
    if not record.data & MOVED:
        return NOTHING
    data = record.data & (MOVED - 1)
    store = call.target.store
    moved = namespace.find_name(store, req.target, req.target_name)
    if moved is None or namespace.version_of(namespace.find_inode(store, moved)) != record.transno:
        moved = NO_FID
    return RenameReply(moved if record.data & REPLACED else NO_FID, data >> 1, bool(data & 1), moved)


def _find(txn: Transaction, place: _Place) -> _File | None:
    fid = namespace.find_name(txn, place.fid, place.name)
    return None if fid is None else _File(fid, namespace.get_inode(txn, fid))


def _check_subtrees(
    txn: Transaction, source: _Place, target: _Place, moved: _File, victim: _File | None, exchange: bool
) -> None:
    """No directory goes below itself."""
    if S_ISDIR(moved.inode.mode) and namespace.is_below(txn, target.fid, moved.fid):
        raise OpError(errno.EINVAL)
    if victim is not None and S_ISDIR(victim.inode.mode) and namespace.is_below(txn, source.fid, victim.fid):
        raise OpError(errno.EINVAL if exchange else errno.ENOTEMPTY)


def _check_access(
    txn: Transaction, source: _Place, target: _Place, moved: _File, victim: _File | None, exchange: bool
) -> None:
    cred = txn.cred
    access.require_removable(source.directory, moved.inode, cred)
    namespace.check_project(target.directory, moved.inode)
    if exchange and victim is not None:
        namespace.check_project(source.directory, victim.inode)
    if not target.directory.nlink:
        raise OpError(errno.ENOENT)
    moves_directory = S_ISDIR(moved.inode.mode)
    if victim is None:
        access.require(target.directory, cred, WRITE | EXECUTE)
    else:
        access.require_removable(target.directory, victim.inode, cred)
        replaces_directory = S_ISDIR(victim.inode.mode)
        if not exchange and moves_directory != replaces_directory:
            raise OpError(errno.ENOTDIR if moves_directory else errno.EISDIR)
    if source.fid != target.fid:
        if moves_directory:
            access.require(moved.inode, cred, WRITE)  # its ".." changes
        if exchange and victim is not None and S_ISDIR(victim.inode.mode):
            access.require(victim.inode, cred, WRITE)


def _move(
    txn: Transaction, source: _Place, target: _Place, moved: _File, victim: _File | None, time: int
) -> RenameReply:
    is_directory = S_ISDIR(moved.inode.mode)
    across = source.fid != target.fid
    if is_directory and victim is not None and not namespace.is_empty(txn, victim.fid):
        raise OpError(errno.ENOTEMPTY)
    if is_directory and across and victim is None and target.directory.nlink >= limits.links_max:
        raise OpError(errno.EMLINK)

    namespace.remove_name(txn, source.fid, source.name, moved.fid)
    reply = RenameReply(NO_FID, 0, False, moved.fid)
    if victim is not None:
        namespace.remove_name(txn, target.fid, target.name, victim.fid)
        reply = RenameReply(*remove_victim(txn, victim.fid, victim.inode, time), moved.fid)
    namespace.add_name(txn, target.fid, target.name, moved.fid, moved.inode.mode)
    _put_moved(txn, moved, target.fid, time)
    gone = 1 if is_directory else 0  # subdirectories that the source lost
    came = gone - (1 if is_directory and victim is not None else 0)
    _touch_both(txn, source, target, -gone, came, time)
    return reply


def _exchange(
    txn: Transaction, source: _Place, target: _Place, moved: _File, victim: _File, time: int
) -> RenameReply:
    delta = int(S_ISDIR(moved.inode.mode)) - int(S_ISDIR(victim.inode.mode))
    if source.fid != target.fid:
        for place, more in ((target, delta), (source, -delta)):
            if more > 0 and place.directory.nlink >= limits.links_max:
                raise OpError(errno.EMLINK)
    namespace.remove_name(txn, source.fid, source.name, moved.fid)
    namespace.remove_name(txn, target.fid, target.name, victim.fid)
    namespace.add_name(txn, target.fid, target.name, moved.fid, moved.inode.mode)
    namespace.add_name(txn, source.fid, source.name, victim.fid, victim.inode.mode)
    _put_moved(txn, moved, target.fid, time)
    _put_moved(txn, victim, source.fid, time)
    _touch_both(txn, source, target, -delta, delta, time)
    return RenameReply(NO_FID, 0, False, moved.fid)


def _put_moved(txn: Transaction, file: _File, parent: Fid, time: int) -> None:
    inode = file.inode
    namespace.put_inode(
        txn,
        file.fid,
        inode._replace(
            ctime=max(inode.ctime, time),
            version=txn.transno,
            parent=parent if S_ISDIR(inode.mode) else NO_FID,
        ),
    )


def _touch_both(txn: Transaction, source: _Place, target: _Place, source_nlink: int, target_nlink: int, time: int) -> None:
    if source.fid == target.fid:
        namespace.touch_parent(txn, source.fid, source.directory, time, source_nlink + target_nlink)
    else:
        namespace.touch_parent(txn, source.fid, source.directory, time, source_nlink)
        namespace.touch_parent(txn, target.fid, target.directory, time, target_nlink)
