"""Changes of attributes of which the MDT has not heard.

Nobody else sees the attributes of a file whose author holds SOLE of it: who asks the MDT waits until that is given back
(docs/locks.md). So the author may set mode, owner and times without asking, as everybody does who unpacks or copies a tree,
once the file is written and before it is closed. The MDT is told of many at once, each change as it was made (Setattrs): before
the close, before a lock of the file goes, before this client asks the MDT for anything else of the file, at an fsync, and after a
second. A Setattrs waits for nobody, as a Reopen: everybody may be waiting for the lock that goes when it is answered.
What the file looks like meanwhile is in the AttrCache: nothing that comes from the MDT replaces what is known there.

What is kept goes when its author does, like data that he has not written back; if he lives, each open file says so once, at
fsync or close. So that is not kept which takes a right from anybody: else data could arrive and its protection not.
Source: no such thing in Lustre; delegated timestamps (RFC 9754) are the same idea
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from stat import S_ISREG
from typing import TYPE_CHECKING

from lustrelite.client.tasks import Later, Tasks
from lustrelite.errors import OpError
from lustrelite.ids import Fid
from lustrelite.wire.ldlm import LOOKUP, PERM, SOLE, UPDATE
from lustrelite.wire.mdt import (
    ID_MAX,
    SET_ATIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_TIMES_EXPLICIT,
    SET_UID,
    SETATTRS_VALID,
    Attr,
    Setattr,
    Setattrs,
)
from lustrelite.wire.message import Cred

if TYPE_CHECKING:
    from lustrelite.client.attr_cache import AttrCache
    from lustrelite.client.known import Known
    from lustrelite.client.mdc import MetadataImport

NEEDED = LOOKUP | PERM | UPDATE | SOLE  # the lock under which a change is kept
TOLD_AFTER_S = 1.0
FILE_MAX = 16  # changes of one file
TOGETHER_MAX = 128  # files and objects in one message, or a file more: a full MDT has room for that
FILES_MAX = 128  # more are told at once
_PERMISSIONS = 0o777


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
        self._cache = cache
        self._of: dict[Fid, _Changes] = {}
        self._later: Later | None = None  # without one nothing is kept

    def tell_by(self, imp: MetadataImport, tasks: Tasks) -> None:
        """The MDT is told through `imp`."""
        self._later = Later(tasks, TOLD_AFTER_S, lambda: self._tell(imp), "kept attributes")

    def __contains__(self, fid: Fid) -> bool:
        return fid in self._of

    def __len__(self) -> int:
        return len(self._of)

    def keep(self, body: Setattr, cred: Cred) -> Attr | None:
        """Make a change here, and return what the file looks like now; None: the MDT must do it."""
        cache, fid = self._cache, body.fid
        changes = self._of.get(fid)
        known = cache.find(fid, NEEDED & ~SOLE)
        if known is None or self._later is None or not known.places or not _lasts(known):
            return None  # without a place: it could be asked for under a name of which we do not know that it is this file
        before = changes.before if changes is not None else known.attr
        if not _certain(known.attr, body, cred):
            return None
        changed = _changed(known.attr, body)
        if _takes_rights(before, changed):
            return None
        if changes is None:
            changes = self._of[fid] = _Changes(before)
        elif changes.going or len(changes.made) >= FILE_MAX:
            return None
        changes.made.append(body)
        known.attr = changed
        known.merged = None
        cache.own.kept(fid)
        if not self._later.want() and len(self._of) >= FILES_MAX:
            self.hurry()
        return changed

    # telling ------------------------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Tell the MDT now."""
        if self._later is not None:
            self._later.hurry()

    async def _tell(self, imp: MetadataImport) -> None:
        while rows := self._going():
            try:
                await imp.call(Setattrs(rows), ended=self._cache.own.telling(rows))
            except OpError:
                pass  # `told` has heard of it

    def _going(self) -> tuple[Setattr, ...]:
        """What is told next."""
        found: list[Setattr] = []
        records = 0
        for changes in self._of.values():
            if records >= TOGETHER_MAX:
                break
            if not changes.going:
                changes.going = True
                found += changes.made
                records += 1 + _objects_told(changes)
        return tuple(found)

    def told(self, rows: tuple[Setattr, ...], *, made: bool) -> None:
        """The MDT has made them, or it will not."""
        cache = self._cache
        for fid in dict.fromkeys(row.fid for row in rows):
            changes = self._of.get(fid)
            if changes is None or not changes.going:  # lost meanwhile
                continue
            del self._of[fid]
            changes.over.set_result(None)
            if not made:
                cache.lost_attrs(fid)
            if changes.not_sole:
                cache.not_sole(fid)

    async def until_told(self, fids: Callable[[], Iterable[Fid | None]]) -> None:
        """Return when the MDT knows all that was changed of `fids()`, in the turn in which that is so, or never will."""
        while self._of:
            waiting = [changes for fid in fids() if fid is not None and (changes := self._of.get(fid)) is not None]
            if not waiting:
                break
            self.hurry()
            await asyncio.shield(waiting[0].over)

    async def until_all_told(self) -> None:
        """The same of all that were changed until now."""
        fids = list(self._of)
        await self.until_told(lambda: fids)

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


def _objects_told(changes: _Changes) -> int:
    """To how many objects of the file the MDT passes its changes on (mdt/ost_log.py)."""
    layout = changes.before.layout
    if layout is None or not any(body.valid & (SET_UID | SET_GID) for body in changes.made):
        return 0
    return len(layout.stripes)


def _lasts(known: Known) -> bool:
    """Is there a lock under which changes may be kept, and does nobody ask for it?"""
    return any(not NEEDED & ~lock.bits and lock.ready for lock in known.locks)


def _certain(now: Attr, body: Setattr, cred: Cred) -> bool:
    """Would the MDT make this change for certain, and nothing else with it?"""
    valid = body.valid
    if valid & ~SETATTRS_VALID:
        return False
    if not S_ISREG(now.mode) or now.nlink != 1 or now.flags or now.acl or now.xattrs:
        return False
    if cred[0] and (cred[0] != now.uid or valid & (SET_UID | SET_GID)):
        return False
    if (now.mode & 0o7777 | (body.mode if valid & SET_MODE else 0)) & ~_PERMISSIONS and valid & (SET_MODE | SET_UID | SET_GID):
        return False
    return 0 <= body.uid <= ID_MAX and 0 <= body.gid <= ID_MAX


def _takes_rights(before: Attr, after: Attr) -> bool:
    """May there be somebody, other than root, who may do less afterwards?"""
    owner, group, other = before.mode >> 6 & 7, before.mode >> 3 & 7, before.mode & 7
    by_owner, by_group, by_other = after.mode >> 6 & 7, after.mode >> 3 & 7, after.mode & 7
    taken = other & ~by_other
    if after.uid != before.uid:
        if before.uid:
            return True  # an owner may do more than his bits say
        taken |= (group | other) & ~by_owner  # the new owner was one of these
    elif before.uid:
        taken |= owner & ~by_owner
    if after.gid != before.gid:
        taken |= (group | other) & ~(by_group & by_other)  # each may be in either group, or in both
    else:
        taken |= group & ~by_group
    return bool(taken)


def _changed(attr: Attr, body: Setattr) -> Attr:
    """As the MDT will do it (mdt/attributes.py)."""
    valid = body.valid
    return attr._replace(
        mode=attr.mode & ~_PERMISSIONS | body.mode if valid & SET_MODE else attr.mode,
        uid=body.uid if valid & SET_UID else attr.uid,
        gid=body.gid if valid & SET_GID else attr.gid,
        atime=body.atime if valid & SET_ATIME else attr.atime,
        mtime=body.mtime if valid & SET_MTIME else attr.mtime,
        mtime_set=attr.mtime_set if not valid & SET_MTIME else body.time if valid & SET_TIMES_EXPLICIT else 0,
        ctime=max(attr.ctime, body.time),
    )
