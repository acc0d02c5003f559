"""What only looks: attributes, lookups, listings, paths, space; and the two that wait (sync, FID sequences).

Nothing here takes a transno. What is seen may be uncommitted: that is the bargain of answering before the commit.
Source: mdt_getattr(), mdt_getattr_name(), mdt_readpage(), mdt_fid2path(), mdt/mdt_handler.c
"""

from __future__ import annotations

import errno
from stat import S_ISLNK
from typing import TYPE_CHECKING

from lustrelite.errors import OpError
from lustrelite.ids import NO_FID, ROOT_FID, SEQ_NORMAL, SEQ_WIDTH, Fid
from lustrelite.mdt import access, namespace
from lustrelite.mdt.access import EXECUTE, READ
from lustrelite.store import disk
from lustrelite.store.room import ESSENTIAL
from lustrelite.store.schema import (
    COOKIE_MAX,
    META,
    NAMES,
    meta_key,
    names_after,
    pack_meta,
    split_name_key,
    unpack_entry,
)
from lustrelite.target.handlers import EMPTY
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import SOLE
from lustrelite.wire.mdt import (
    STATFS_NO_SPACE,
    AllocateSequence,
    Attr,
    Bytes,
    Dirent,
    DirPage,
    FidToPath,
    Getattr,
    GetRoot,
    Lookup,
    Names,
    Readdir,
    Readlink,
    RootReply,
    SequenceReply,
    Statfs,
    StatfsReply,
    Sync,
)
from lustrelite.wire.session import Empty

if TYPE_CHECKING:
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.rpc.export import Call

ENTRIES_MAX = 4096  # in one page, and as many more as have the last one's cookie
PAGE_BYTES_MAX = limits.header_bytes_max // 2
NEXT_SEQUENCE = "next_sequence"  # in META: all before it may have been given
SEQUENCES_AHEAD = 1000  # reserved at once


def getattr_(call: Call, req: Getattr) -> Attr:
    """Getattr.  Errors: ENOENT."""
    return namespace.attr_of(req.fid, namespace.get_inode(call.target.store, req.fid))


def lookup(call: Call, req: Lookup) -> Attr:
    """Lookup; "." and ".." work.  Errors: ENOENT, ENOTDIR, EACCES, ENAMETOOLONG."""
    store = call.target.store
    parent = namespace.get_directory(store, req.parent)
    if call.cred[0]:
        access.require(parent, call.cred, EXECUTE)
    name = req.name
    if name == b".":
        return namespace.attr_of(req.parent, parent)
    if name == b"..":
        fid = parent.parent
    else:
        namespace.check_name(name)
        found = namespace.find_name(store, req.parent, name)
        if found is None:
            raise OpError(errno.ENOENT)
        fid = found
    return namespace.attr_of(fid, namespace.get_inode(store, fid))


def get_root(call: Call, req: GetRoot) -> RootReply:
    """The root directory."""
    return RootReply(namespace.attr_of(ROOT_FID, namespace.get_inode(call.target.store, ROOT_FID)), call.target.fsname)


def readdir(call: Call, req: Readdir) -> DirPage:
    """A page of names.  Errors: ENOENT, ENOTDIR, EACCES, EINVAL."""
    store, locks = call.target.store, call.target.namespace
    directory = namespace.get_directory(store, req.fid)
    if call.cred[0] and not access.permits(directory, call.cred, READ) and not _has_open(call, req.fid):
        raise OpError(errno.EACCES)
    if not 0 <= req.cookie <= COOKIE_MAX:
        raise OpError(errno.EINVAL)
    count = min(max(req.count, 1), ENTRIES_MAX)
    entries: list[Dirent] = []
    size, last = 0, -1
    for key, value in store.scan(NAMES, names_after(req.fid, req.cookie), prefix=req.fid):
        _, cookie, name = split_name_key(key)
        if (len(entries) >= count or size >= PAGE_BYTES_MAX) and cookie != last:
            return DirPage(tuple(entries), False)
        fid, kind = unpack_entry(value)
        attr = None
        size += len(name) + 40
        if req.plus:
            inode = namespace.find_inode(store, fid)
            if inode is not None and not locks.local.busy(fid, SOLE, call.export, SOLE):  # else he must ask, and wait
                attr = namespace.attr_of(fid, inode)
                size += 120 + len(attr.acl) + (0 if inode.layout is None else 14 * len(inode.layout.stripes))
        entries.append(Dirent(cookie, name, fid, kind, attr))
        last = cookie
    return DirPage(tuple(entries), True)


def _has_open(call: Call, fid: Fid) -> bool:
    """Did the client open it when it was allowed to? Then the listing may go on."""
    return any(file.fid == fid for file in call.export.opens.values())


def readlink(call: Call, req: Readlink) -> Bytes:
    """Target of a symlink.  Errors: EINVAL, ENOENT."""
    inode = namespace.get_inode(call.target.store, req.fid)
    if not S_ISLNK(inode.mode):
        raise OpError(errno.EINVAL)
    return Bytes(inode.target)


def fid_to_path(call: Call, req: FidToPath) -> Names:
    """All paths of a file.  Errors: ENOENT (an orphan has none, too)."""
    store = call.target.store
    namespace.get_inode(store, req.fid)
    paths = namespace.paths_of(store, req.fid)
    if not paths or req.fid == NO_FID:
        raise OpError(errno.ENOENT)
    return Names(tuple(paths))


def statfs(call: Call, req: Statfs) -> StatfsReply:
    """Space of the file system that holds the MDT: bytes of metadata, inodes that fit."""
    store = call.target.store
    total, free, available, files_total, files_free = disk.space(store.directory)
    reserved = total * store.reserved_permille // 1000
    available = max(0, available - reserved)
    return StatfsReply(total, free, available, files_total, files_free, 0 if available else STATFS_NO_SPACE)


async def sync(call: Call, req: Sync) -> Empty:
    """Answered when everything executed so far is durable."""
    await call.target.committed()
    return EMPTY


class Sequences:
    """FID sequences for clients, from a range that is durable before any of it is given: a crash wastes the rest of it.

    So giving one waits for no commit, also while commits are held.  Source: seq_server_alloc_meta(), fid_handler.c
    """

    def __init__(self, mdt: Mdt) -> None:
        self._mdt = mdt
        self._next = self._end = 0  # of what may be given

    def load(self) -> None:
        """Reserve the first range; it becomes durable with the mount count."""
        self._next = self._mdt.get_meta(NEXT_SEQUENCE, SEQ_NORMAL)
        self._end = self._reserve(self._next)

    def _reserve(self, start: int) -> int:
        # No transaction: a transno taken here might belong to a replay that is still to come.
        end = start + SEQUENCES_AHEAD
        self._mdt.store.apply({(META, meta_key(NEXT_SEQUENCE)): pack_meta(end)}, kind=ESSENTIAL)
        return end

    async def take(self) -> int:
        """A sequence that nobody has had."""
        while self._next >= self._end:
            end = self._reserve(self._end)
            await self._mdt.committed()
            self._end = end
        self._next += 1
        return self._next - 1


async def allocate_sequence(call: Call, req: AllocateSequence) -> SequenceReply:
    """FIDs for a client."""
    mdt: Mdt = call.target
    return SequenceReply(await mdt.sequences.take(), SEQ_WIDTH)
