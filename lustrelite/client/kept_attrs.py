"""Changes of attributes of which the MDT has not heard.

Nobody else sees the attributes of a file whose author holds SOLE of it: who asks the MDT waits until that is given back
(docs/locks.md). So the author may set mode, owner and times without asking, as everybody does who unpacks or copies a tree,
once the file is written and before it is closed. The MDT is told with the close (Closes), each change as it was made; also
before a lock of the file goes, before this client asks the MDT for anything else of the file, at an fsync, and after a second
(late_closes.py sends it). What the file looks like meanwhile is in the AttrCache: nothing that comes from the MDT replaces
what is known there.

What is kept goes when its author does, like data that he has not written back, and an open file that he still has says so at
the next fsync. So that is not kept which takes a right from anybody: else data could arrive and its protection not.
Source: no such thing in Lustre; delegated timestamps (RFC 9754) are the same idea
"""

from __future__ import annotations

import asyncio
from stat import S_IRWXG, S_IRWXO, S_ISREG
from typing import TYPE_CHECKING, Protocol

from lustrelite.ids import Fid
from lustrelite.wire.ldlm import LOOKUP, PERM, SOLE, UPDATE
from lustrelite.wire.mdt import SET_ATIME, SET_GID, SET_MODE, SET_MTIME, SET_TIMES_EXPLICIT, SET_UID, Attr, Setattr
from lustrelite.wire.message import Cred

if TYPE_CHECKING:
    from lustrelite.client.attr_cache import AttrCache, Known

NEEDED = LOOKUP | PERM | UPDATE | SOLE  # the lock under which a change is kept
CHANGES_MAX = 16  # of one file
_PERMISSIONS = 0o777
_ID_MAX = (1 << 32) - 2


class Teller(Protocol):
    """What is needed of client.late_closes.LateCloses."""

    def kept(self) -> None:
        """There is something to be told within a second."""

    def hurry(self) -> None:
        """Tell it now."""


class _Changes:
    """Those of one file, the oldest first."""

    __slots__ = ("before", "going", "made", "not_sole", "over")

    def __init__(self, before: Attr) -> None:
        self.before = before  # as the MDT has them
        self.made: list[Setattr] = []
        self.going = False  # on their way
        self.not_sole = False  # SOLE is to go afterwards
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class KeptAttrs:
    """Those of one MDT's files."""

    def __init__(self, cache: AttrCache) -> None:
        self.teller: Teller | None = None  # without one nothing is kept
        self._cache = cache
        self._of: dict[Fid, _Changes] = {}

    def __contains__(self, fid: Fid) -> bool:
        return fid in self._of

    def __len__(self) -> int:
        return len(self._of)

    def keep(self, body: Setattr, cred: Cred) -> Attr | None:
        """Make a change here, and return what the file looks like now; None: the MDT must do it."""
        cache, fid = self._cache, body.fid
        changes = self._of.get(fid)
        known = cache.find(fid, NEEDED & ~SOLE)
        if known is None or self.teller is None or not known.places or not _lasts(known):
            return None  # without a place: it could be asked for under a name of which we do not know that it is this file
        before = changes.before if changes is not None else known.attr
        if not _harmless(before, known.attr, body, cred):
            return None
        if changes is None:
            changes = self._of[fid] = _Changes(before)
        elif changes.going or len(changes.made) >= CHANGES_MAX:
            return None
        changes.made.append(body)
        known.attr = _changed(known.attr, body)
        known.merged = None
        cache.own.kept(fid)
        self.teller.kept()
        return known.attr

    def going(self) -> tuple[Setattr, ...]:
        """All that is not on its way yet is now; `told` is called with it afterwards."""
        found: list[Setattr] = []
        for changes in self._of.values():
            if not changes.going:
                changes.going = True
                found += changes.made
        return tuple(found)

    def told(self, setattrs: tuple[Setattr, ...], *, made: bool) -> None:
        """The MDT has made them, or it will not."""
        cache = self._cache
        for fid in dict.fromkeys(body.fid for body in setattrs):
            changes = self._of.pop(fid, None)
            if changes is None:  # lost meanwhile
                continue
            changes.over.set_result(None)
            if not made:
                cache.lost_attrs(fid)
            elif changes.not_sole:
                cache.not_sole(fid)

    async def until_told(self, *fids: Fid | None) -> None:
        """Return when the MDT knows all of these files, or never will."""
        for fid in fids:
            while fid is not None and (changes := self._of.get(fid)) is not None:
                assert self.teller is not None
                self.teller.hurry()
                await asyncio.shield(changes.over)

    async def until_gone(self, *fids: Fid) -> None:
        """Return when nothing of these files is on its way: what is sent now comes after it."""
        for fid in fids:
            changes = self._of.get(fid)
            if changes is not None and changes.going:
                await asyncio.shield(changes.over)

    async def until_all_told(self) -> None:
        """The same of all that are kept now."""
        await self.until_told(*list(self._of))

    def then_not_sole(self, fid: Fid) -> bool:
        """Shall SOLE of it go when the MDT has been told? False: there is nothing to be told."""
        changes = self._of.get(fid)
        if changes is not None:
            changes.not_sole = True
        return changes is not None

    def lose(self, fid: Fid) -> None:
        """We are evicted: nobody will hear of them."""
        changes = self._of.pop(fid, None)
        if changes is not None:
            changes.over.set_result(None)
            self._cache.lost_attrs(fid)


def _lasts(known: Known) -> bool:
    """Is there a lock under which changes may be kept, and does nobody ask for it?"""
    return any(not NEEDED & ~lock.bits and lock.ready and lock.asked is None for lock in known.locks)


def _harmless(before: Attr, now: Attr, body: Setattr, cred: Cred) -> bool:
    """May the caller do that for certain, and is nobody worse off if it is lost? `before` is what the MDT has."""
    valid = body.valid
    if valid & ~(SET_MODE | SET_UID | SET_GID | SET_ATIME | SET_MTIME | SET_TIMES_EXPLICIT):
        return False
    if not S_ISREG(now.mode) or now.nlink != 1 or now.flags or now.acl or now.xattrs:
        return False
    if cred[0] and (cred[0] != now.uid or valid & (SET_UID | SET_GID)):
        return False
    if not valid & (SET_MODE | SET_UID | SET_GID):
        return True
    mode = body.mode if valid & SET_MODE else now.mode & 0o7777
    gid = body.gid if valid & SET_GID else now.gid
    if (mode | now.mode & 0o7777) & ~_PERMISSIONS or not (0 <= body.uid <= _ID_MAX and 0 <= body.gid <= _ID_MAX):
        return False
    of_others = before.mode & (S_IRWXG | S_IRWXO)
    return not of_others & ~mode and (gid == before.gid or not of_others & S_IRWXG)


def _changed(attr: Attr, body: Setattr) -> Attr:
    """As the MDT will do it (mdt/attributes.py)."""
    valid = body.valid
    return attr._replace(
        mode=attr.mode & ~_PERMISSIONS | body.mode if valid & SET_MODE else attr.mode,
        uid=body.uid if valid & SET_UID else attr.uid,
        gid=body.gid if valid & SET_GID else attr.gid,
        atime=body.atime if valid & SET_ATIME else attr.atime,
        mtime=body.mtime if valid & SET_MTIME else attr.mtime,
        ctime=max(attr.ctime, body.time),
    )
