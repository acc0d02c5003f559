"""Locks of the MDT: what clients know of an inode goes before it changes, and comes with what their operations find.

A handler runs in one turn (D4), so the MDT needs no locks against itself. A client that caches holds PR locks, and an
operation takes local EX locks of the same bits: the blocking callbacks make the clients forget. What is said here of a
request is found again when they have been granted, because names and links may change in the wait; then the handler
runs in the same turn, and the locks go with its end.

    create, link                    parent UPDATE*; the file that is linked UPDATE
    open                            parent UPDATE* if it makes the file; else SOLE*; to write: OPEN*; O_TRUNC: UPDATE as well
    unlink, rename                  parents UPDATE*; moved LOOKUP* and UPDATE*; removed the same, all bits with the last name
    setattr, chown                  UPDATE*, SOLE*; with mode or owner also PERM*; with a size OPEN*; XATTR if a capability goes
    setxattr, default striping      UPDATE and XATTR; an access list also PERM
    close                           UPDATE if it sets times; all bits if it destroys the file
    getattr, lookup                 SOLE*; a listing leaves out the attributes instead

* What the caller holds of it he keeps: his request and its answer tell him what has changed (client/own_changes.py).
OPEN is held by who has made a file, and says that nobody else has opened it to write; SOLE, that nobody else has been told
which objects it has: there are locks on them then of which the OSTs have not heard (ldlm/promised.py).

Almost always nobody is in the way: that must cost about a microsecond, so the more expensive questions (whose name is
it, is it the last) come after the cheap one (does anybody hold anything). In recovery there are no local locks: replays
were granted theirs before (LU-8979). The target's own changes (evictions, orphans) touch what has no name any more.
Source: mdt_reint_*(), mdt/mdt_reint.c; mdt_object_lock(), mdt/mdt_handler.c; docs/locks.md
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from stat import S_ISDIR, S_ISGID, S_ISUID
from typing import TYPE_CHECKING, Any

from lustrelite import acl
from lustrelite.ids import Fid
from lustrelite.mdt import namespace
from lustrelite.mdt.layout import Wish
from lustrelite.mdt.open import OpenFile, times_of_close, times_of_read
from lustrelite.store.schema import ORPHANS
from lustrelite.target.handlers import LATER
from lustrelite.wire.ldlm import (
    BITS_ALL,
    IBITS,
    LAYOUT,
    LOOKUP,
    OPEN,
    PERM,
    PR,
    REPLACE_EACH,
    SOLE,
    UPDATE,
    XATTR,
    Granted,
    Want,
)
from lustrelite.wire.mdt import (
    DISP_OPEN_CREATE,
    OPEN_BY_FID,
    OPEN_CREATE,
    OPEN_TMPFILE,
    OPEN_TRUNC,
    OPEN_WRITE,
    RENAME_EXCHANGE,
    SET_GID,
    SET_MODE,
    SET_SIZE,
    SET_TIMES_EXPLICIT,
    SET_UID,
    Attr,
    Close,
    Closes,
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
from lustrelite.wire.message import REPLAY, RESENT

if TYPE_CHECKING:
    from lustrelite.mdt.mdt import Mdt
    from lustrelite.rpc.export import Call
    from lustrelite.rpc.node import Node

Wants = Iterable[tuple[Fid, int, int]]  # (inode, bits, those of them that the caller himself may go on holding)
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
        export = call.export
        for fid, bits, own in wants_of(call, req):
            if locks.local.busy(fid, bits, export, own):
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
        busy = False
        for fid, bits, own in wants_of(call, req):
            in_the_way = locks.local.busy(fid, bits, call.export, own)
            if in_the_way:
                busy = True
                mdt.contention.met(fid)
            if in_the_way or not locks.local.busy(fid, bits):  # else it is the caller's own, which may stay
                taken[fid] = taken.get(fid, 0) | bits
        if not busy:
            return
        held = await locks.local.wait(list(taken.items()))
        if (wish_of is None or wish_of(call, req) is None) and not _uncovered(call, req, wants_of, taken):
            # The handler runs as soon as this returns, before anything else; those who wait behind us come after it.
            asyncio.get_running_loop().call_soon(locks.local.release, held)
            return
        locks.local.release(held)


def _uncovered(call: Call, req: Any, wants_of: WantsOf, taken: dict[Fid, int]) -> bool:
    """Is something in the way that `taken` does not cover: did another file get the name meanwhile?"""
    locks = call.target.namespace
    for fid, bits, own in wants_of(call, req):
        rest = bits & ~taken.get(fid, 0)
        if rest and locks.local.busy(fid, rest, call.export, own):
            return True
    return False


def told(look: Callable[[Call, Any], Attr]) -> Callable[[Call, Any], Any]:
    """A reading handler that tells which objects a file has: first whoever has made it hears of that."""

    def handle(call: Call, req: Any) -> Any:
        attr = look(call, req)
        target = call.target
        locks = target.namespace
        if not locks.lock_count or target.recovering or not locks.local.busy(attr.fid, SOLE, call.export, SOLE):
            return attr
        target.serving.again_after(call, locks.local.wait([(attr.fid, SOLE)]))
        return LATER

    return handle


# with what is found ---------------------------------------------------------------------------------------------

RESTLESS_S = 1.0  # so long after one client was in another's way nobody gets UPDATE of a directory in passing
RESTLESS_MAX = 1000  # directories


class Contention:
    """Where clients meet: directories in which one wanted to change what another had locked."""

    def __init__(self, node: Node) -> None:
        self._now = node.now
        self._until: dict[Fid, float] = {}

    def met(self, fid: Fid) -> None:
        """It has just happened."""
        self._until.pop(fid, None)
        self._until[fid] = self._now() + RESTLESS_S
        while len(self._until) > RESTLESS_MAX:
            del self._until[next(iter(self._until))]

    def recent(self, fid: Fid) -> bool:
        """Has it happened of late?"""
        until = self._until.get(fid)
        if until is None:
            return False
        if self._now() < until:
            return True
        del self._until[fid]
        return False


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
        opened = type(body) is OpenReply
        attr = body.attr if opened else body
        if type(attr) is not Attr or not attr.mode:  # 0: vanished_attr
            return
        made = body.disposition & DISP_OPEN_CREATE if opened else type(request) is Create
        not_now = 0
        if not made or call.header.flags & RESENT:  # others may write it already, or have been told of what a first copy has made
            not_now = OPEN | SOLE
        elif not opened:  # no close would give it back
            not_now = SOLE
        if opened and not made and request.flags & (OPEN_WRITE | OPEN_TRUNC):  # who writes it would have to give that back
            not_now |= UPDATE
        if mdt.contention.recent(attr.fid):
            not_now |= UPDATE
        if (want.bits | want.try_bits) & not_now:
            want = want._replace(bits=want.bits & ~not_now, try_bits=want.try_bits & ~not_now)
        if want.bits:
            mdt.namespace.ride(call, attr.fid, want)


def _is_missing(mdt: Mdt, request: Lookup) -> bool:
    """Shall the client hold on to it that there is no such name?

    Not where several make files: who looks before he creates would be in the way of all others.
    """
    directory = namespace.find_inode(mdt.store, request.parent)
    if directory is None or not S_ISDIR(directory.mode) or mdt.contention.recent(request.parent):
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
    if not mdt.namespace.local.busy(req.parent, UPDATE, call.export, UPDATE):
        return NOTHING
    if namespace.find_name(mdt.store, req.parent, req.name) is not None:
        return NOTHING
    return ((req.parent, UPDATE, UPDATE),)


def open_wants(call: Call, req: Open) -> Wants:
    """Of an open."""
    mdt: Mdt = call.target
    flags = req.flags
    if flags & OPEN_TMPFILE:
        return NOTHING
    fid: Fid | None = req.fid
    if not flags & OPEN_BY_FID:
        fid = namespace.find_name(mdt.store, req.parent, req.name)
    if fid is None:
        return ((req.parent, UPDATE, UPDATE),) if flags & OPEN_CREATE else NOTHING
    if flags & OPEN_TRUNC:
        return ((fid, _truncation_bits(call, fid) | OPEN | SOLE, OPEN | SOLE),)
    return ((fid, OPEN | SOLE, OPEN | SOLE),) if flags & OPEN_WRITE else ((fid, SOLE, SOLE),)


def _truncation_bits(call: Call, fid: Fid) -> int:
    """A truncation takes capabilities, and by others than root set-id bits."""
    mdt: Mdt = call.target
    bits = UPDATE
    if mdt.namespace.local.busy(fid, PERM | XATTR):
        inode = namespace.find_inode(mdt.store, fid)
        if inode is not None:
            if call.cred[0] and inode.mode & (S_ISUID | S_ISGID):
                bits |= PERM
            if namespace.has_capability(mdt.store, fid, inode):
                bits |= XATTR
    return bits


def link_wants(call: Call, req: Link) -> Wants:
    """Of a hard link."""
    return ((req.parent, UPDATE, UPDATE), (req.fid, UPDATE, 0))


def unlink_wants(call: Call, req: Unlink) -> Wants:
    """Of an unlink or rmdir."""
    mdt: Mdt = call.target
    fid = namespace.find_name(mdt.store, req.parent, req.name)
    if fid is None:
        return NOTHING
    return ((req.parent, UPDATE, UPDATE), (fid, _removal_bits(mdt, fid), 0))


def _removal_bits(mdt: Mdt, fid: Fid) -> int:
    """A file loses a name. With its last one everything goes."""
    if mdt.namespace.local.busy(fid, BITS_ALL):
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
    exchange = req.flags & RENAME_EXCHANGE
    parents = ((req.source, UPDATE, UPDATE), (req.target, UPDATE, UPDATE))
    if victim is None or victim == moved:
        return (*parents, (moved, LOOKUP | UPDATE, LOOKUP | UPDATE))
    if exchange:
        return (*parents, (moved, LOOKUP | UPDATE, 0), (victim, LOOKUP | UPDATE, 0))
    return (*parents, (moved, LOOKUP | UPDATE, LOOKUP | UPDATE), (victim, _removal_bits(mdt, victim), 0))


def setattr_wants(call: Call, req: Setattr) -> Wants:
    """Of a setattr."""
    valid = req.valid
    if not valid & ~SET_TIMES_EXPLICIT:
        return ((req.fid, SOLE, SOLE),)
    bits = UPDATE | SOLE
    if valid & (SET_UID | SET_GID | SET_SIZE):
        bits |= _truncation_bits(call, req.fid)
    if valid & (SET_MODE | SET_UID | SET_GID):
        bits |= PERM
    if valid & SET_SIZE:
        bits |= OPEN
    return ((req.fid, bits, UPDATE | PERM | OPEN | SOLE),)


def setxattr_wants(call: Call, req: Setxattr | SetDirStripe) -> Wants:
    """Of a change of extended attributes, or of a directory's default striping (which is one in Lustre)."""
    bits = UPDATE | XATTR | PERM if type(req) is Setxattr and req.name == acl.ACCESS else UPDATE | XATTR
    return ((req.fid, bits, 0),)


def close_wants(call: Call, req: Close) -> Wants:
    """Of a close. The file is that of the handle."""
    file = call.export.opens.get(req.handle)
    return _close_wants(call.target, file, 1, req.mtime, req.atime, 0) if file is not None else NOTHING


def closes_wants(call: Call, req: Closes) -> Wants:
    """Of many closes. Who says when he wrote and read may go on believing what he knows: nothing else changes."""
    mdt: Mdt = call.target
    opens = call.export.opens
    going = Counter(opens[row.handle].fid for row in req.rows if row.handle in opens)
    wants: list[tuple[Fid, int, int]] = []
    for handle, fid, atime, mtime in req.rows:
        file = opens.get(handle)
        if file is not None:
            wants += _close_wants(mdt, file, going[file.fid], mtime, atime, UPDATE)
        elif not handle and times_of_read(mdt, mdt.store, fid, atime) is not None:
            wants.append((fid, UPDATE, UPDATE))
    return wants


def _close_wants(mdt: Mdt, file: OpenFile, going: int, mtime: int, atime: int, own: int) -> Wants:
    """So many handles of the file go; what of it is in the way."""
    if not mdt.namespace.local.busy(file.fid, BITS_ALL):
        return NOTHING
    if mdt.open_files.counts[file.fid] <= going and mdt.store.get(ORPHANS, file.fid) is not None:
        return ((file.fid, BITS_ALL, 0),)
    if times_of_close(mdt, mdt.store, file, mtime, atime) is not None:
        return ((file.fid, UPDATE, own),)
    return NOTHING
