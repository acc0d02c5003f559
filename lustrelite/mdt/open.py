"""Open files: who has what open, what an open makes, and files that live on without a name.

An open handle is the xid of its open request: both sides know it even if the reply is lost, and a replay brings it
back. Handles are in memory only. After a restart clients replay their opens, also those committed long ago, by FID.
Until recovery is over nobody can say that a file without a name is not open, so it is kept; then those that nobody
reopened are destroyed. An orphan (nlink 0, in the `orphans` table) lives until its last close, or until the last client
that has it open is evicted, on a full disk a little longer (Mdt.destroy_unused); its objects enter the destroy log in the
transaction that destroys it.
Source: mdt/mdt_open.c, mdd/mdd_orphans.c; protocol-facts 8.2, 8.3.
"""

from __future__ import annotations

import errno
from stat import S_IFREG, S_ISDIR, S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, NamedTuple, cast

from lustrelite.errors import OpError
from lustrelite.ids import Fid, fid_text
from lustrelite.mdt import access, namespace
from lustrelite.mdt.access import EXECUTE, READ, WRITE
from lustrelite.mdt.create import make_child, wish_to_wait_for
from lustrelite.mdt.layout import Wish
from lustrelite.permission import APPEND_ONLY
from lustrelite.recovery.versions import ABSENT
from lustrelite.store.schema import NAMES, ORPHANS, Inode, ReplyRecord, name_key, unpack_entry
from lustrelite.target.handlers import EMPTY
from lustrelite.wire.mdt import (
    DISP_LOOKUP_NEG,
    DISP_LOOKUP_POS,
    DISP_OPEN_CREATE,
    DISP_OPEN_OPEN,
    OPEN_APPEND,
    OPEN_BY_FID,
    OPEN_CREATE,
    OPEN_DIRECTORY,
    OPEN_EXCL,
    OPEN_EXEC,
    OPEN_READ,
    OPEN_REPLAY_CREATED,
    OPEN_TMPFILE,
    OPEN_TRUNC,
    OPEN_WRITE,
    Close,
    Closes,
    Open,
    OpenReply,
    Reopen,
)
from lustrelite.wire.message import REPLAY, Cred
from lustrelite.wire.session import Empty

if TYPE_CHECKING:
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.rpc.export import Call, Export
    from lustrelite.target.transaction import Transaction

FOUND = DISP_LOOKUP_POS | DISP_OPEN_OPEN
CREATED = DISP_LOOKUP_NEG | DISP_OPEN_CREATE | DISP_OPEN_OPEN
ATIMES_SET_MAX = 10_000  # files; clients tell of what they have read within a second or so


class OpenFile(NamedTuple):
    """One open of one client."""

    fid: Fid
    flags: int
    cred: Cred


class OpenFiles:
    """How often each file is open. The handles themselves are in `export.opens`."""

    def __init__(self, since: int) -> None:
        self.since = since  # when it began to know of them
        self.counts: dict[Fid, int] = {}
        self.mtimes_set: dict[Fid, int] = {}  # when utimes() last set the mtime of a file while it was open
        self.atimes_set: dict[Fid, int] = {}  # when it lately set the access time of a file, open or not

    def add(self, export: Export, handle: int, file: OpenFile) -> None:
        """`export` has opened `file`; a handle that is known (a replay that came twice) is kept as it is."""
        if handle not in export.opens:
            export.keep_open(handle, file)
            self.counts[file.fid] = self.counts.get(file.fid, 0) + 1

    def remove(self, export: Export, handle: int) -> None:
        """`export` has closed `handle`."""
        file: OpenFile = export.drop_open(handle)
        left = self.counts[file.fid] - 1
        assert left >= 0, file
        if left:
            self.counts[file.fid] = left
        else:
            del self.counts[file.fid]
            self.mtimes_set.pop(file.fid, None)

    def is_open(self, fid: Fid) -> bool:
        """Has anybody `fid` open?"""
        return fid in self.counts

    def times_set(self, txn: Transaction, fid: Fid, time: int, *, mtime: bool, atime: bool) -> None:
        """utimes() has set times of a file: what was done before `time` and is told later counts no more."""
        if mtime and fid in self.counts:
            _set_until_failed(txn, self.mtimes_set, fid, time)
        if atime:
            _set_until_failed(txn, self.atimes_set, fid, time)
            if len(self.atimes_set) > ATIMES_SET_MAX:
                del self.atimes_set[next(iter(self.atimes_set))]

    def is_last_write(self, fid: Fid, inode: Inode, mtime: int) -> bool:
        """Is `mtime`, at which somebody says to have written to a file, later than what its mtime is from?

        That is the last write that we have heard of, or utimes(), whatever it has set. What was written before we came up
        may have been written before a utimes() of which only the inode knows. Else the inode's word does not count: who
        opened the file after that may have a clock that is behind.
        """
        set_at = self.mtimes_set.get(fid, inode.mtime_set if mtime < self.since else 0)
        return mtime > set_at and (bool(inode.mtime_set) or mtime > inode.mtime)

    def atime_set_at(self, fid: Fid, inode: Inode, atime: int) -> int:
        """When utimes() set its access time, for who says to have read it at `atime`; the inode's word counts as above."""
        return self.atimes_set.get(fid, inode.atime_set if atime < self.since else 0)


def _set_until_failed(txn: Transaction, times: dict[Fid, int], fid: Fid, time: int) -> None:
    """`fid` is the last one of `times`; if `txn` fails it has what it had."""
    before = times.pop(fid, None)
    times[fid] = time

    def undo() -> None:
        times.pop(fid, None)
        if before is not None:
            times[fid] = before

    txn.undo(undo)


# ---------------------------------------------------------------- open


def wish_of_open(call: Call, req: Open) -> Wish | None:
    """The objects to wait for, if the open may make a file."""
    if not req.flags & OPEN_CREATE or req.flags & OPEN_BY_FID or call.header.flags & REPLAY:
        return None
    return wish_to_wait_for(call, req.parent, req.name, req.hint)


def open_file(txn: Transaction, req: Open) -> OpenReply:
    """Open.  Errors: see wire.mdt.Open."""
    mdt = cast("Mdt", txn.target)
    if mdt.node.faults.any:
        mdt.fault_sync("mdt.open", txn.call)
    export = txn.export
    assert export is not None
    if txn.replay:
        fid, inode, disposition = _replay(mdt, txn, req)
    elif req.flags & OPEN_TMPFILE:
        fid, disposition = req.fid, CREATED
        inode = _open_nameless(mdt, txn, req)
    elif req.flags & OPEN_BY_FID:
        fid, disposition = req.fid, FOUND
        inode = _open_found(txn, req, fid, namespace.get_inode(txn, fid))
    else:
        fid, inode, disposition = _open_name(mdt, txn, req)
    txn.data = disposition
    if mdt.node.faults.any:
        mdt.fault_sync("mdt.open_result", txn.call)
    _keep(mdt, txn, export, OpenFile(fid, req.flags, txn.cred))
    return OpenReply(disposition, namespace.attr_of(fid, inode))


def _keep(mdt: Mdt, txn: Transaction, export: Export, file: OpenFile) -> None:
    """The client has `file` open from now on, unless a copy of the request has opened it already."""
    if txn.xid not in export.opens:
        mdt.open_files.add(export, txn.xid, file)
        txn.undo(lambda: mdt.open_files.remove(export, txn.xid))


def _open_name(mdt: Mdt, txn: Transaction, req: Open) -> tuple[Fid, Inode, int]:
    parent = namespace.get_directory(txn, req.parent)
    name, flags = req.name, req.flags
    if txn.cred[0]:
        access.require(parent, txn.cred, EXECUTE)
    if name in (b".", b".."):
        fid = parent.parent if name == b".." else req.parent
    else:
        namespace.check_name(name)
        key = name_key(req.parent, name)
        entry = txn.get(NAMES, key)
        if entry is None:
            if not flags & OPEN_CREATE:
                raise OpError(errno.ENOENT)
            if flags & OPEN_DIRECTORY:
                raise OpError(errno.EINVAL)
            return req.fid, _create(mdt, txn, req, parent), CREATED
        fid = unpack_entry(entry)[0]
    inode = namespace.get_inode(txn, fid)
    if flags & OPEN_CREATE and flags & OPEN_EXCL:
        if txn.resent and fid == req.fid:  # our own, made by the first copy (LU-15107)
            return fid, inode, CREATED
        raise OpError(errno.EEXIST)
    return fid, _open_found(txn, req, fid, inode), FOUND


def _open_nameless(mdt: Mdt, txn: Transaction, req: Open) -> Inode:
    """A file without a name.  Errors: EINVAL not for writing; those of a create.  Source: vfs_tmpfile(), fs/namei.c"""
    if not req.flags & OPEN_CREATE or not req.flags & OPEN_WRITE or req.name:
        raise OpError(errno.EINVAL)
    return _create(mdt, txn, req, namespace.get_directory(txn, req.parent))


def _create(mdt: Mdt, txn: Transaction, req: Open, parent: Inode) -> Inode:
    txn.check(0, parent.version)
    txn.check(1, ABSENT)
    if namespace.find_inode(txn, req.fid) is not None:
        raise OpError(errno.EEXIST)
    access.require(parent, txn.cred, WRITE | EXECUTE)
    mode = (req.mode & access.PERMISSION_BITS) | S_IFREG
    return make_child(
        mdt, txn, req.parent, parent, req.name, req.fid, mode, req.time, hint=req.hint, layout=req.layout, umask=req.umask
    )  # fmt: skip


def _open_found(txn: Transaction, req: Open, fid: Fid, inode: Inode) -> Inode:
    """Check whether the caller may open what is there; truncation takes set-id bits."""
    txn.check(1, inode.version)
    _check_open(inode, req.flags, txn.cred)
    if req.flags & OPEN_TRUNC and S_ISREG(inode.mode):
        return _truncated(txn, fid, inode, req.time)
    return inode


def _check_open(inode: Inode, flags: int, cred: Cred) -> None:
    mode = inode.mode
    if S_ISLNK(mode):
        raise OpError(errno.ELOOP)
    if S_ISDIR(mode):
        if flags & (OPEN_WRITE | OPEN_TRUNC | OPEN_CREATE | OPEN_APPEND):
            raise OpError(errno.EISDIR)
    elif flags & OPEN_DIRECTORY:
        raise OpError(errno.ENOTDIR)
    want = 0
    if flags & OPEN_READ:
        want = READ
    if flags & (OPEN_WRITE | OPEN_TRUNC):
        want |= WRITE
    if flags & OPEN_EXEC:
        if not S_ISREG(mode):
            raise OpError(errno.EACCES)
        want |= EXECUTE
    if want:
        access.require(inode, cred, want)
    if inode.flags & APPEND_ONLY and want & WRITE and (flags & OPEN_TRUNC or not flags & OPEN_APPEND):
        raise OpError(errno.EPERM)


def _truncated(txn: Transaction, fid: Fid, inode: Inode, time: int) -> Inode:
    mode = access.without_set_id(inode, txn.cred) if txn.cred[0] else inode.mode
    inode = namespace.without_capability(txn, fid, inode)
    inode = namespace.written(inode, time)._replace(mode=mode, ctime=max(inode.ctime, time))
    namespace.put_inode(txn, fid, inode)
    return inode


def _replay(mdt: Mdt, txn: Transaction, req: Open) -> tuple[Fid, Inode, int]:
    """The saved request names the file itself: it is opened without any check if it is there (protocol-facts 3.7)."""
    fid, created = req.fid, req.flags & OPEN_REPLAY_CREATED
    inode = namespace.find_inode(txn, fid)
    if inode is None:
        if not created or txn.transno <= mdt.boot_committed:
            # Made, closed and removed, all of it committed; only the answer to the close did not arrive.
            raise OpError(errno.ESTALE)
        parent = namespace.find_inode(txn, req.parent)
        entry = txn.get(NAMES, name_key(req.parent, req.name)) if req.name else None
        txn.check(0, namespace.version_of(parent))
        txn.check(1, ABSENT if entry is None else namespace.get_inode(txn, unpack_entry(entry)[0]).version)
        if parent is None or entry is not None:
            raise OpError(errno.ESTALE)
        return fid, _create(mdt, txn, req, parent), CREATED
    if req.flags & OPEN_TRUNC and not created and S_ISREG(inode.mode) and txn.transno > mdt.boot_committed:
        inode = _truncated(txn, fid, inode, req.time)
    return fid, inode, CREATED if created else FOUND


def rebuild_open(call: Call, req: Open, record: ReplyRecord) -> OpenReply:
    """The reply of an open that was executed: its handle, or after a failover the file opened anew.  ESTALE

    By name that is whatever has it today, so it must be allowed today.
    Source: mdt_reconstruct_open(); protocol-facts 4.3
    """
    mdt = cast("Mdt", call.target)
    anew = False
    file: OpenFile | None = call.export.opens.get(call.xid)
    if file is not None:
        fid = file.fid
    elif req.flags & OPEN_BY_FID or record.data & DISP_OPEN_CREATE:
        fid = req.fid
    else:
        parent = namespace.find_inode(mdt.store, req.parent)
        found = namespace.find_name(mdt.store, req.parent, req.name)
        if parent is None or found is None:
            raise OpError(errno.ESTALE)
        fid, anew = found, True
        access.require(parent, call.cred, EXECUTE)
    inode = namespace.find_inode(mdt.store, fid)
    if inode is None:
        raise OpError(errno.ESTALE)
    if anew:
        _check_open(inode, req.flags, call.cred)
    mdt.open_files.add(call.export, call.xid, OpenFile(fid, req.flags, call.cred))
    return OpenReply(record.data, namespace.attr_of(fid, inode))


def reopen(txn: Transaction, req: Reopen) -> Empty:
    """An open that a client has made under a lock of the file.  Errors: ESTALE"""
    mdt = cast("Mdt", txn.target)
    export = txn.export
    assert export is not None
    inode = namespace.find_inode(txn, req.fid)
    if inode is None:
        raise OpError(errno.ESTALE)
    txn.depends(inode.version)
    _keep(mdt, txn, export, OpenFile(req.fid, OPEN_READ, txn.cred))
    return EMPTY


def rebuild_reopen(call: Call, req: Reopen, record: ReplyRecord) -> Empty:
    """It was executed; after a failover the file must be opened anew.  ESTALE"""
    mdt = cast("Mdt", call.target)
    if namespace.find_inode(mdt.store, req.fid) is None:
        raise OpError(errno.ESTALE)
    mdt.open_files.add(call.export, call.xid, OpenFile(req.fid, OPEN_READ, call.cred))
    return EMPTY


# ---------------------------------------------------------------- close


def close(txn: Transaction, req: Close) -> Empty:
    """Close.  Errors: ESTALE, there is no such handle."""
    mdt = cast("Mdt", txn.target)
    export = txn.export
    assert export is not None
    file: OpenFile | None = export.opens.get(req.handle)
    if file is None:
        raise OpError(errno.ESTALE)
    if _is_last(mdt, txn, file.fid):
        _destroy_orphan(txn, file.fid)
    _close(mdt, txn, export, req.handle, file, req.mtime, req.atime)
    return EMPTY


def close_many(txn: Transaction, req: Closes) -> Empty:
    """Close, of all that are open. Files that go are destroyed after it: in one change a full MDT has no room for many."""
    mdt = cast("Mdt", txn.target)
    export = txn.export
    assert export is not None
    unused: list[Fid] = []
    for handle, fid, atime, mtime in req.rows:
        file: OpenFile | None = export.opens.get(handle)
        if file is not None:
            if _is_last(mdt, txn, file.fid):
                unused.append(file.fid)
                mtime = atime = 0
            _close(mdt, txn, export, handle, file, mtime, atime)
        elif not handle:
            changed = times_of_read(mdt, txn, fid, atime)
            if changed is not None:
                namespace.put_inode(txn, fid, changed)
    if unused:
        txn.then = lambda: mdt.destroy_unused(unused)
    return EMPTY


def _close(mdt: Mdt, txn: Transaction, export: Export, handle: int, file: OpenFile, mtime: int, atime: int) -> None:
    changed = times_of_close(mdt, txn, file, mtime, atime)
    if changed is not None:
        namespace.put_inode(txn, file.fid, changed)
    set_at = mdt.open_files.mtimes_set.get(file.fid)
    mdt.open_files.remove(export, handle)

    def undo() -> None:
        mdt.open_files.add(export, handle, file)
        if set_at is not None:
            mdt.open_files.mtimes_set[file.fid] = set_at

    txn.undo(undo)


def rebuild_close(call: Call, req: Close | Closes, record: ReplyRecord) -> Empty:
    """It was closed, but then a failover opened it again from the replay of its open: that one is closed now."""
    mdt = cast("Mdt", call.target)
    export = call.export
    mdt.close_files(export, [handle for handle in req.handles if handle in export.opens])
    return EMPTY


def close_handles(mdt: Mdt, export: Export, handles: list[int]) -> list[Fid]:
    """These are closed, in memory, where they are. Returns the orphans that nobody has open any more."""
    closed = dict.fromkeys(export.opens[handle].fid for handle in handles)
    for handle in handles:
        mdt.open_files.remove(export, handle)
    return [fid for fid in closed if not mdt.open_files.is_open(fid) and mdt.store.get(ORPHANS, fid) is not None]


def destroy_orphan(txn: Transaction, fid: Fid) -> bool:
    """Destroy an orphan, unless somebody has opened it again. True: part of it."""
    return not cast("Mdt", txn.target).open_files.is_open(fid) and _destroy_orphan(txn, fid)


def _is_last(mdt: Mdt, txn: Transaction, fid: Fid) -> bool:
    """One open less: was it the last of an orphan? In recovery others may still reopen it."""
    if mdt.open_files.counts[fid] > 1 or mdt.recovering or txn.get(ORPHANS, fid) is None:
        return False
    if mdt.node.faults.any:
        try:
            mdt.fault_sync("mdt.orphan_destroy", txn.call)
        except OpError:
            return False  # it stays until the next start
    return True


def _destroy_orphan(txn: Transaction, fid: Fid) -> bool:
    txn.delete(ORPHANS, fid)
    inode = namespace.find_inode(txn, fid)
    if inode is not None and inode.nlink:
        txn.target.node.events.emit("mdt.not_an_orphan", level="warning", target=txn.target.name, fid=fid_text(fid))
    elif inode is not None:
        return namespace.destroy(txn, fid, inode)
    return False


def times_of_close(mdt: Mdt, rows: namespace.Rows, file: OpenFile, mtime: int, atime: int) -> Inode | None:
    """The inode with the times of what a handle wrote and read, or None if they are no news."""
    return _with_times(mdt, rows, file.fid, mtime if file.flags & OPEN_WRITE else 0, atime)


def times_of_read(mdt: Mdt, rows: namespace.Rows, fid: Fid, atime: int) -> Inode | None:
    """The inode with the time at which it was read, or None if that is no news."""
    return _with_times(mdt, rows, fid, 0, atime)


def _with_times(mdt: Mdt, rows: namespace.Rows, fid: Fid, mtime: int, atime: int) -> Inode | None:
    if not mtime and not atime:
        return None
    inode = namespace.find_inode(rows, fid)
    if inode is None or not S_ISREG(inode.mode):
        return None
    wrote = mdt.open_files.is_last_write(fid, inode, mtime)
    read = atime > max(inode.atime, mdt.open_files.atime_set_at(fid, inode, atime))
    if not wrote and not read:
        return None
    if wrote:
        inode = namespace.written(inode, mtime)._replace(ctime=max(mtime, inode.ctime))
    return inode._replace(atime=atime) if read else inode
