"""Locks of the MDT: what clients know of an inode goes before it changes, and comes with what their operations find.

A handler runs in one turn (D4), so the MDT needs no locks against itself. A client that caches holds PR locks, and an
operation takes local EX locks of the same bits: the blocking callbacks make the clients forget. What is said here of a
request is found again when they have been granted, because names and links may change in the wait; then the handler
runs in the same turn, and the locks go with its end.

    create, link                    parent UPDATE; the file that is linked UPDATE
    open                            parent UPDATE if it makes the file; O_TRUNC: the file UPDATE
    unlink, rename                  parents UPDATE; moved and removed LOOKUP and UPDATE; all bits with the last name
    setattr, chown                  UPDATE; with mode or owner also PERM; XATTR if a capability goes
    setxattr, default striping      UPDATE and XATTR; an access list also PERM
    close                           UPDATE if it sets times; all bits if it destroys the file

Almost always nobody is in the way: that must cost about a microsecond, so the more expensive questions (whose name is it,
is it the last) come after the cheap one (does anybody hold anything). In recovery there are no local locks: replays
were granted theirs before (LU-8979). The target's own changes (evictions, orphans) touch what has no name any more.
Source: mdt_reint_*(), mdt/mdt_reint.c; mdt_object_lock(), mdt/mdt_handler.c; docs/locks.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from stat import S_ISDIR, S_ISGID, S_ISUID
from typing import TYPE_CHECKING, Any

from lustrelite import acl
from lustrelite.ids import Fid
from lustrelite.mdt import namespace
from lustrelite.mdt.layout import Wish
from lustrelite.mdt.open import OpenFile, with_times
from lustrelite.store.schema import ORPHANS
from lustrelite.wire.ldlm import BITS_ALL, IBITS, LAYOUT, LOOKUP, PERM, PR, REPLACE_EACH, UPDATE, XATTR, Granted, Want
from lustrelite.wire.mdt import (
    OPEN_BY_FID,
    OPEN_CREATE,
    OPEN_TMPFILE,
    OPEN_TRUNC,
    RENAME_EXCHANGE,
    SET_GID,
    SET_MODE,
    SET_SIZE,
    SET_TIMES_EXPLICIT,
    SET_UID,
    Attr,
    Close,
    Create,
    DirPage,
    Link,
    Lookup,
    Open,
    OpenReply,
    Readdir,
    Rename,
    Setattr,
    SetDirStripe,
    Setxattr,
    Unlink,
    Xattrs,
)
from lustrelite.wire.message import REPLAY

if TYPE_CHECKING:
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.rpc.export import Call

Wants = Iterable[tuple[Fid, int]]  # (inode, bits)
WantsOf = Callable[["Call", Any], Wants]
WishOf = Callable[["Call", Any], Wish | None]
NOTHING: Wants = ()


def prepared(wants_of: WantsOf, wish_of: WishOf | None = None) -> Callable[[Call, Any], Awaitable[None] | None]:
    """The `prepare` of a handler: None if nothing is in the way, else the wait for it, and for objects if it needs some."""

    def prepare(call: Call, req: Any) -> Awaitable[None] | None:
        mdt: Mdt = call.target
        if wish_of is not None and wish_of(call, req) is not None:
            return _clear(call, req, wants_of, wish_of)
        locks = mdt.namespace
        if not locks.lock_count or mdt.recovering or call.header.flags & REPLAY:
            return None
        for fid, bits in wants_of(call, req):
            if locks.busy(fid, bits):
                return _clear(call, req, wants_of, wish_of)
        return None

    return prepare


async def _clear(call: Call, req: Any, wants_of: WantsOf, wish_of: WishOf | None) -> None:
    """Return in a turn in which all that `req` will change is free, and its objects are there."""
    mdt: Mdt = call.target
    locks = mdt.namespace
    while True:
        wish = wish_of(call, req) if wish_of is not None else None
        if wish is not None:
            await mdt.allocator.wait_for(wish)
            continue
        if mdt.recovering or call.header.flags & REPLAY:
            return
        taken: dict[Fid, int] = {}
        for fid, bits in wants_of(call, req):
            taken[fid] = taken.get(fid, 0) | bits
        if not any(locks.busy(fid, bits) for fid, bits in taken.items()):
            return
        held = await locks.wait_local(list(taken.items()))
        if (wish_of is None or wish_of(call, req) is None) and not _uncovered(call, req, wants_of, taken):
            # The handler runs as soon as this returns, before anything else; those who wait behind us come after it.
            asyncio.get_running_loop().call_soon(locks.release, held)
            return
        locks.release(held)


def _uncovered(call: Call, req: Any, wants_of: WantsOf, taken: dict[Fid, int]) -> bool:
    """Is something in the way that `taken` does not cover: did another file get the name meanwhile?"""
    locks = call.target.namespace
    for fid, bits in wants_of(call, req):
        rest = bits & ~taken.get(fid, 0)
        if rest and locks.busy(fid, rest):
            return True
    return False


# with what is found ---------------------------------------------------------------------------------------------

RESTLESS_NS = 1_000_000_000  # so long after a change nobody gets UPDATE of a directory for a name that is missing there


def ride(call: Call, body: Any, want: Want) -> None:
    """Take the locks that a client wants of what its operation found (`body`; None: an error), as far as they are free."""
    mdt: Mdt = call.target
    request = call.body
    if type(body) is DirPage:
        _ride_page(call, request, body, want)
    elif type(body) is Xattrs:
        mdt.namespace.ride(call, request.fid, want)
    elif body is None:
        if type(request) is Lookup and _is_missing(mdt, request):
            mdt.namespace.ride(call, request.parent, want._replace(bits=UPDATE, try_bits=0))
    else:
        attr = body.attr if type(body) is OpenReply else body
        if type(attr) is Attr and attr.mode:  # 0: vanished_attr
            mdt.namespace.ride(call, attr.fid, want)


def _is_missing(mdt: Mdt, request: Lookup) -> bool:
    """Shall the client hold on to it that there is no such name?

    Not while files are being made there: who looks before he creates would be in the way of all others.
    """
    directory = namespace.find_inode(mdt.store, request.parent)
    if directory is None or not S_ISDIR(directory.mode) or mdt.node.wall_ns() < directory.mtime + RESTLESS_NS:
        return False
    return namespace.find_name(mdt.store, request.parent, request.name) is None


def _ride_page(call: Call, request: Readdir, page: DirPage, want: Want) -> None:
    """The directory if the want names it; with REPLACE_EACH every entry, under the handles that follow."""
    locks = call.target.namespace
    taken: list[Granted] = []
    if not want.flags & REPLACE_EACH or want.resource:
        locks.ride(call, request.fid, want._replace(flags=0))
        taken += call.granted
    if want.flags & REPLACE_EACH:
        for handle, entry in enumerate(page.entries, want.handle + 1):
            if entry.attr is not None:
                call.granted = ()
                locks.ride(call, entry.fid, Want(handle, IBITS, b"", PR, 0, LOOKUP | PERM | UPDATE, LAYOUT | XATTR, 0, 0, 0, 0))
                taken += call.granted
    call.granted = tuple(taken)


# which ----------------------------------------------------------------------------------------------------------


def create_wants(call: Call, req: Create) -> Wants:
    """Of a create, the most frequent of all. One that will find the name taken disturbs nobody."""
    mdt: Mdt = call.target
    if not mdt.namespace.busy(req.parent, UPDATE) or namespace.find_name(mdt.store, req.parent, req.name) is not None:
        return NOTHING
    return ((req.parent, UPDATE),)


def open_wants(call: Call, req: Open) -> Wants:
    """Of an open."""
    mdt: Mdt = call.target
    flags = req.flags
    if not flags & (OPEN_CREATE | OPEN_TRUNC) or flags & OPEN_TMPFILE:
        return NOTHING
    fid: Fid | None = req.fid
    if not flags & OPEN_BY_FID:
        if not flags & OPEN_TRUNC and not mdt.namespace.busy(req.parent, UPDATE):
            return NOTHING
        fid = namespace.find_name(mdt.store, req.parent, req.name)
    if fid is None:
        return ((req.parent, UPDATE),) if flags & OPEN_CREATE else NOTHING
    return ((fid, _truncation_bits(call, fid)),) if flags & OPEN_TRUNC else NOTHING


def _truncation_bits(call: Call, fid: Fid) -> int:
    """A truncation takes capabilities, and by others than root set-id bits."""
    mdt: Mdt = call.target
    bits = UPDATE
    if mdt.namespace.busy(fid, PERM | XATTR):
        inode = namespace.find_inode(mdt.store, fid)
        if inode is not None:
            if call.cred[0] and inode.mode & (S_ISUID | S_ISGID):
                bits |= PERM
            if namespace.has_capability(mdt.store, fid, inode):
                bits |= XATTR
    return bits


def link_wants(call: Call, req: Link) -> Wants:
    """Of a hard link."""
    return ((req.parent, UPDATE), (req.fid, UPDATE))


def unlink_wants(call: Call, req: Unlink) -> Wants:
    """Of an unlink or rmdir."""
    mdt: Mdt = call.target
    fid = namespace.find_name(mdt.store, req.parent, req.name)
    if fid is None:
        return NOTHING
    return ((req.parent, UPDATE), (fid, _removal_bits(mdt, fid)))


def _removal_bits(mdt: Mdt, fid: Fid) -> int:
    """A file loses a name. With its last one everything goes."""
    if mdt.namespace.busy(fid, BITS_ALL):
        inode = namespace.find_inode(mdt.store, fid)
        if inode is not None and (S_ISDIR(inode.mode) or inode.nlink <= 1):
            return BITS_ALL
    return LOOKUP | UPDATE


def rename_wants(call: Call, req: Rename) -> Wants:
    """Of a rename."""
    mdt: Mdt = call.target
    moved = namespace.find_name(mdt.store, req.source, req.source_name)
    if moved is None:
        return NOTHING
    victim = namespace.find_name(mdt.store, req.target, req.target_name)
    parents = ((req.source, UPDATE), (req.target, UPDATE), (moved, LOOKUP | UPDATE))
    if victim is None or victim == moved:
        return parents
    return (*parents, (victim, LOOKUP | UPDATE if req.flags & RENAME_EXCHANGE else _removal_bits(mdt, victim)))


def setattr_wants(call: Call, req: Setattr) -> Wants:
    """Of a setattr."""
    valid = req.valid
    if not valid & ~SET_TIMES_EXPLICIT:
        return NOTHING
    bits = UPDATE
    if valid & (SET_UID | SET_GID | SET_SIZE):
        bits |= _truncation_bits(call, req.fid)
    if valid & (SET_MODE | SET_UID | SET_GID):
        bits |= PERM
    return ((req.fid, bits),)


def setxattr_wants(call: Call, req: Setxattr | SetDirStripe) -> Wants:
    """Of a change of extended attributes, or of a directory's default striping (which is one in Lustre)."""
    bits = UPDATE | XATTR | PERM if type(req) is Setxattr and req.name == acl.ACCESS else UPDATE | XATTR
    return ((req.fid, bits),)


def close_wants(call: Call, req: Close) -> Wants:
    """Of a close. The file is that of the handle."""
    mdt: Mdt = call.target
    file: OpenFile | None = call.export.opens.get(req.handle)
    if file is None or not mdt.namespace.busy(file.fid, BITS_ALL):
        return NOTHING
    if mdt.open_files.counts[file.fid] == 1 and mdt.store.get(ORPHANS, file.fid) is not None:
        return ((file.fid, BITS_ALL),)
    if with_times(mdt, mdt.store, file, req.mtime, req.atime) is not None:
        return ((file.fid, UPDATE),)
    return NOTHING
