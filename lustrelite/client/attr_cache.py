"""Names, attributes and listings that this client knows to be true, because it holds the locks under which they are.

    name -> file          LOOKUP of the file (the name of the file may not change)
    mode, owner, list     PERM of the file
    extended attributes   XATTR of the file (its attributes say whether there are any)
    all else of it        UPDATE of the file
    nobody else writes    OPEN of the file, if it was made from here
    no such name          UPDATE of the directory (which this client's own changes leave: own_changes.py)
    listing               UPDATE of the directory; from its start on, as far as it was read

Everything known goes with its lock, so the LRU of the lock cache bounds this cache as well; what one lock may hold any
amount of (missing names, listings) has a bound of its own. The files known are a graph: a walk goes from one to the
next by its name and looks at no lock, because whoever loses LOOKUP is taken out of its directory at once. Only the
lease is asked, once in a walk.

What an answer says may be kept only if it was true under a lock all the time since: under one that came with it, or
one that was held when the question was sent and still is. `Question` remembers that. Of what is known already the old
copy is kept: answers can overtake each other, and under a lock nothing changes.

Sync throughout; who asks the MDT is mdc.py.  Source: ll_update_inode(), ll_revalidate_dentry(), llite/; docs/locks.md
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable, Sequence
from stat import S_ISDIR
from typing import Any, Protocol

from lustrelite.client.kept_attrs import KeptAttrs
from lustrelite.client.known import NO_NAMES, TOO_MANY, Known, Question, touch
from lustrelite.client.known_listings import KnownListings
from lustrelite.client.own_changes import SETTABLE, OwnChanges
from lustrelite.client.scattered import Scattered
from lustrelite.errors import OpError
from lustrelite.ids import ROOT_FID, Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.permission import EXECUTE, READ, permits
from lustrelite.wire.ldlm import LAYOUT, LOOKUP, OPEN, PERM, PR, REPLACE_EACH, SOLE, UPDATE, XATTR, Ride
from lustrelite.wire.mdt import Attr, DirPage, Layout
from lustrelite.wire.message import Cred

STAT = LOOKUP | PERM | UPDATE  # all of what stat() shows
_ALL = STAT | XATTR  # all of what attributes say
PART_MAX = 1000  # entries that are fetched at once with one of them
ABSENT_MAX = 4096  # names known to be missing in one directory


class Locks(Protocol):
    """What is needed of ldlm.lock_cache.LockCache."""

    drop: Any
    wanted: Any
    withdraw: Any
    stays: Any
    replayed: Any

    @property
    def lease_valid(self) -> bool:
        """May locks be believed in?"""

    def ride(
        self, fid: bytes, bits: int, mode: int = PR, try_bits: int = 0, cancels: tuple[int, ...] = (), *, flags: int = 0,
        count: int = 1, converts: tuple[tuple[int, int], ...] = (),
    ) -> Ride:  # fmt: skip
        """See LockCache."""

    def ridden(self, ride: Ride) -> ClientLock | None:
        """See LockCache."""

    def ridden_each(self, ride: Ride, count: int) -> list[ClientLock]:
        """See LockCache."""

    def cancels_for(self, fid: bytes, bits: int) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        """See LockCache."""

    def give_up_bits(self, fid: bytes, bits: int) -> None:
        """See LockCache."""

    def use(self, lock: ClientLock) -> None:
        """See LockCache."""

    def release(self, lock: ClientLock) -> None:
        """See LockCache."""

    def cancel(self, lock: ClientLock) -> None:
        """See LockCache."""


class Objects(Protocol):
    """What is needed of client.lov.Lov."""

    def unwritten(self, layout: Layout, so: bool) -> None:
        """See Lov."""

    def sole(self, layout: Layout, so: bool, lost: bool = False) -> None:
        """See Lov."""

    def promises(self, layout: Layout) -> Sequence[Any]:
        """See Lov."""

    def redeem_soon(self, layout: Layout) -> None:
        """See Lov."""

    async def redeem(self, layout: Layout, until: float) -> None:
        """See Lov."""


class AttrCache:
    """What one client knows of one MDT's files. It has the lock cache's `drop` hook."""

    def __init__(self, locks: Locks, *, root: Fid = ROOT_FID, entries_max: int = 100_000, ahead_max: int = 128) -> None:
        self.locks = locks
        self.root = Known(root)
        self.files: dict[Fid, Known] = {root: self.root}
        self.on_lost: Callable[[Fid, int], None] | None = None  # these bits of a file are not locked any more
        self.on_change: Callable[[Fid], None] | None = None  # it is about to be changed from here
        self.objects: Objects | None = None  # of files: what OPEN and SOLE say of them
        self.on_attrs_lost: Callable[[Fid], None] | None = None  # of a file, that were changed from here
        self.own = OwnChanges(self)
        self.kept = KeptAttrs(self)
        self.scattered = Scattered(PART_MAX if ahead_max else 0)
        self.listings = KnownListings(entries_max, ahead_max)
        locks.drop = self.dropped
        locks.withdraw = self._withdraw
        locks.stays = self._stays
        locks.replayed = self._replayed

    # looking ----------------------------------------------------------------------------------------------------

    def walk(self, names: Iterable[bytes], cred: Cred) -> Known | None:
        """What a path leads to from the root, if every step is known and allowed; None: ask."""
        if not self.locks.lease_valid:
            return None
        known = self.root
        if cred[0]:
            for name in names:
                if not known.fresh & PERM or not permits(known.attr, cred, EXECUTE):
                    return None
                found = known.names.get(name)
                if found is None:
                    return None
                known = found
        else:
            for name in names:
                found = known.names.get(name)
                if found is None:
                    return None
                known = found
        return known

    def find(self, fid: Fid, need: int) -> Known | None:
        """A file of which `need` is known; None: ask."""
        known = self.files.get(fid)
        return known if known is not None and self.locks.lease_valid and self._knows(known, need) else None

    def _knows(self, known: Known, need: int) -> bool:
        return not need & ~known.fresh and not (need & UPDATE and known.fid in self.own.going)

    def look(self, parent: Fid, name: bytes, cred: Cred, need: int) -> Known | None:
        """`name` in `parent`, if `need` of it is known; None: ask.  ENOENT, EACCES"""
        directory = self.files.get(parent)
        if directory is None or not self.locks.lease_valid:
            return None
        if cred[0]:
            if not directory.fresh & PERM:
                return None
            if not permits(directory.attr, cred, EXECUTE):
                raise OpError(errno.EACCES)
        known = directory.names.get(name)
        if known is None:
            if name == b".":
                known = directory
            elif name == b"..":
                known = self.files.get(directory.attr.parent) if directory.fresh & LOOKUP else None
            elif self._is_absent(directory, name):
                raise OpError(errno.ENOENT)
        if known is None or not self._knows(known, need):
            return None
        touch(known)
        return known

    def child(self, parent: Fid, name: bytes) -> Fid | None:
        """Whose name that is, as far as is known: for what an operation will need gone, never as an answer."""
        directory = self.files.get(parent)
        known = directory.names.get(name) if directory is not None else None
        return known.fid if known is not None else None

    def holds(self, fid: Fid, need: int) -> bool:
        """Is `need` of the file known?"""
        known = self.files.get(fid)
        return known is not None and not need & ~known.fresh

    def target_of(self, fid: Fid) -> bytes | None:
        """Target of a symlink of which anything is known."""
        known = self.files.get(fid)
        return known.target if known is not None and known.locks and self.locks.lease_valid else None

    def _is_absent(self, directory: Known, name: bytes) -> bool:
        if not directory.bits & UPDATE or directory.fid in self.own.going:
            return False
        if directory.absent is not None and name in directory.absent:
            return True
        listing = directory.listing
        if listing is None or not listing.complete:
            return False
        return name not in listing.places() and name not in listing.added and name not in (b".", b"..")

    def page(self, fid: Fid, cookie: int, count: int, cred: Cred) -> DirPage | None:
        """Entries of a directory without their attributes; None: ask."""
        known = self.files.get(fid)
        if known is None or known.listing is None or not self.locks.lease_valid:
            return None
        assert known.bits & UPDATE
        if cred[0] and not (known.fresh & PERM and permits(known.attr, cred, READ)):
            return None
        return self.listings.page(known, cookie, count) if fid not in self.own.going else None

    # asking -----------------------------------------------------------------------------------------------------

    def question(self, fid: Fid, need: int, gone: Ride | None = None) -> Question:
        """Attributes of `fid` are about to be asked for (or changed: `gone` of `give_up`), to know `need` of them."""
        known = self.files.get(fid)
        return Question(known, self._wish(known, fid, need, gone), self.own.clock)

    def question_name(self, parent: Fid, name: bytes, need: int, gone: Ride | None = None) -> Question:
        """`name` in `parent` is about to be looked up, or opened."""
        directory = self.files.get(parent)
        known = directory.names.get(name) if directory is not None else None
        return Question(known, self._wish(known, b"", need, gone), self.own.clock).by_name(parent, name, directory)

    def question_page(self, fid: Fid, each: int) -> Question:
        """A page of a directory is about to be asked for; `each`: with attributes, and locks of up to so many entries."""
        known = self.files.get(fid)
        held = known.bits if known is not None else 0
        bits, more = UPDATE & ~held, (LOOKUP | PERM) & ~held
        ride: Ride | None = None
        if each:  # the first handle is the directory's, if that is named
            resource = fid if bits else b""
            ride = self.locks.ride(resource, UPDATE, try_bits=more, flags=REPLACE_EACH, count=each + 1)
        elif bits:
            ride = self.locks.ride(fid, bits, try_bits=more)
        return Question(known, ride, self.own.clock)

    def _wish(self, known: Known | None, fid: bytes, need: int, gone: Ride | None) -> Ride | None:
        """The locks that are missing. What is not asked for is for others to change."""
        missing = ~known.bits if known is not None else -1
        bits = (LOOKUP | PERM | need & LAYOUT) & missing
        more = (UPDATE | XATTR | LAYOUT | need & (OPEN | SOLE) if need & UPDATE else need & XATTR) & ~bits & missing
        if not bits:
            bits, more = more & UPDATE, more & ~UPDATE
        if not bits:
            bits, more = more & need & XATTR, more & ~XATTR
        if not bits:
            return gone
        if gone is None:
            return self.locks.ride(fid, bits, try_bits=more)
        return self.locks.ride(fid, bits, try_bits=more, cancels=gone.cancels, converts=gone.converts)

    # answers ----------------------------------------------------------------------------------------------------

    def found(self, question: Question, attr: Attr) -> None:
        """The answer to a question, or to an operation that carried one."""
        known = self.files.get(attr.fid)
        lock = self._ridden(question, attr.fid)
        true = lock.bits if lock is not None else 0
        if known is not None and known is question.known and known.drops == question.drops:
            true |= question.bits
        if not true:
            return
        overlaps, since = self.own.overlaps, question.clock
        known = self._put(attr, lock, self._not_older(attr, true, question))
        if question.name and true & LOOKUP and question.name not in (b".", b".."):
            if not overlaps(question.parent, since):
                self.enter(self.file(question.parent), question.name, known)

    def is_old(self, fid: Fid, question: Question) -> bool:
        """May what the answer says of a file be older than what was changed of it here?"""
        return fid in self.kept or self.own.overlaps(fid, question.clock)

    def _not_older(self, attr: Attr, true: int, question: Question) -> int:
        """What is left of `true` where the answer may be older than what was changed here."""
        if not self.is_old(attr.fid, question):
            return true
        if S_ISDIR(attr.mode) and question.clock < self.own.moved:  # it says from where it was moved, perhaps
            return true & ~(SETTABLE | LOOKUP)
        return true & ~SETTABLE

    def made(self, question: Question, attr: Attr, *, named: bool) -> None:
        """The answer to a create, or to an open that has made the file, in the turn in which it came.

        `named`: as far as is known the name still leads there.
        """
        lock = self._ridden(question, attr.fid)
        if lock is None:
            return
        known = self._put(attr, lock, lock.bits)
        if attr.layout is not None and self.objects is not None:
            if lock.bits & OPEN:
                self.objects.unwritten(attr.layout, True)
            if lock.bits & SOLE:
                self.objects.sole(attr.layout, True)
        if S_ISDIR(attr.mode) and lock.bits & UPDATE and known.listing is None:
            self.listings.begin(known, complete=True)  # nothing is in it yet
        if lock.bits & LOOKUP and named:
            self.enter(self.file(question.parent), question.name, known)

    def changed(self, question: Question, attr: Attr) -> None:
        """The answer to a change of attributes, in the turn in which it came: whatever of them is locked is this now."""
        known = self.files.get(attr.fid)
        if known is not None:
            known.fresh &= ~SETTABLE
        lock = self._ridden(question, attr.fid)
        if known is not None or lock is not None:
            held = known.bits & SETTABLE if known is not None else 0
            self._put(attr, lock, held | lock.bits if lock is not None else held)

    def found_nothing(self, question: Question) -> None:
        """There is no such name (ENOENT)."""
        lock = self._ridden(question, question.parent)
        directory = self.files.get(question.parent)
        if lock is not None:
            directory = self._hold(question.parent, lock)
        elif directory is None or directory is not question.parent_known or directory.drops != question.parent_drops:
            return
        if not directory.bits & UPDATE or (lock is None and not question.parent_bits & UPDATE):
            return
        if not self.own.overlaps(question.parent, question.clock):
            self.miss(directory, question.name)

    def miss(self, directory: Known, name: bytes) -> None:
        """There is no `name` in a directory whose content is locked."""
        if directory.absent is None:
            directory.absent = {}
        elif len(directory.absent) >= ABSENT_MAX:
            del directory.absent[next(iter(directory.absent))]
        directory.absent[name] = None

    def found_page(self, question: Question, fid: Fid, cookie: int, page: DirPage) -> None:
        """The answer to `question_page`."""
        ride = question.ride
        known = self.files.get(fid)
        true = 0
        if known is not None and known is question.known and known.drops == question.drops:
            true = question.bits
        lock = self._ridden(question, fid)
        if lock is not None:
            known = self._hold(fid, lock)
            true |= lock.bits
        overlaps, since = self.own.overlaps, question.clock
        overlapped = overlaps(fid, since)
        if known is not None and true & UPDATE and not overlapped:
            self.listings.append(known, cookie, page)
        if ride is None or ride.want is None or not ride.want.flags & REPLACE_EACH:
            return
        directory: Known | None = None
        first = ride.want.handle + 1
        entries = page.entries
        for each in self.locks.ridden_each(ride, len(entries) + 1):
            place = each.handle - first
            attr = entries[place].attr if place >= 0 else None
            if attr is None or each.data is not None or each.resource != attr.fid:
                continue
            true = self._not_older(attr, each.bits, question)
            if self._is_one_more(each, attr.fid):
                found = self._put(attr, None, true)
                self.locks.cancel(each)
            else:
                found = self._put(attr, each, true)
            if each.bits & LOOKUP and not overlapped:
                directory = directory or self.file(fid)
                self.enter(directory, entries[place].name, found)

    def _is_one_more(self, lock: ClientLock, fid: Fid) -> bool:
        """Is all that the new lock of `fid` vouches for vouched for by another? Unused ones that it makes superfluous go."""
        known = self.files.get(fid)
        if known is None:
            return False
        for held in list(known.locks):
            if held.ready and not lock.bits & ~held.bits:
                return True
            if held.ready and not held.users and not held.bits & ~lock.bits:
                known.locks.remove(held)
                held.data = None  # what is known under it stays
                self.locks.cancel(held)
        return False

    def found_target(self, fid: Fid, target: bytes) -> None:
        """Target of a symlink."""
        known = self.files.get(fid)
        if known is not None and known.locks:
            known.target = target

    def found_xattrs(self, question: Question, fid: Fid, xattrs: dict[bytes, bytes] | None) -> None:
        """The answer to a question about extended attributes; None: they are more than are kept."""
        known = self.files.get(fid)
        true = question.bits if known is not None and known is question.known and known.drops == question.drops else 0
        lock = self._ridden(question, fid)
        if lock is not None:
            known = self._hold(fid, lock)
            true |= lock.bits
        if known is not None and true & XATTR and known.bits & XATTR and known.xattrs is None:
            known.xattrs = xattrs if xattrs is not None else TOO_MANY

    def _ridden(self, question: Question, fid: Fid) -> ClientLock | None:
        """The lock that came with the answer, if it did, and is on that file."""
        lock = self.locks.ridden(question.ride) if question.ride is not None else None
        return lock if lock is not None and lock.resource == fid else None

    def file(self, fid: Fid) -> Known:
        """What is known of `fid`, from now on something."""
        known = self.files.get(fid)
        if known is None:
            known = self.files[fid] = Known(fid)
        return known

    def _hold(self, fid: Fid, lock: ClientLock) -> Known:
        """`lock` of `fid` is held."""
        known = self.file(fid)
        if lock.data is None:
            lock.data = known
            known.locks.append(lock)
            known.bits |= lock.bits
        return known

    def _put(self, attr: Attr, lock: ClientLock | None, true: int) -> Known:
        """`attr` is true as far as `true` goes."""
        known = self._hold(attr.fid, lock) if lock is not None else self.files[attr.fid]
        kept = known.fresh
        if kept & _ALL == _ALL:
            return known
        if not kept:
            known.attr = attr
        else:
            old = known.attr
            owner = old if kept & PERM else attr
            known.attr = (old if kept & UPDATE else attr)._replace(
                mode=owner.mode, uid=owner.uid, gid=owner.gid, acl=owner.acl,
                parent=(old if kept & LOOKUP else attr).parent, xattrs=(old if kept & XATTR else attr).xattrs,
            )  # fmt: skip
        known.fresh = kept | true & known.bits
        known.merged = None
        return known

    def enter(self, directory: Known, name: bytes, known: Known) -> None:
        """`name` in `directory` leads to `known`, as long as its LOOKUP is held."""
        old = directory.names.get(name)
        if old is known:
            return
        if old is not None:
            old.places = tuple([place for place in old.places if place != (directory, name)])
        if directory.names is NO_NAMES:
            directory.names = {}
        directory.names[name] = known
        known.places = (*known.places, (directory, name))

    def leave(self, parent: Fid, name: bytes) -> None:
        """It does so no more."""
        directory = self.files.get(parent)
        known = directory.names.get(name) if directory is not None else None
        if directory is not None and known is not None:
            del directory.names[name]
            known.places = tuple([place for place in known.places if place != (directory, name)])
            self._tidy(directory)

    # changing ---------------------------------------------------------------------------------------------------

    def give_up(self, *wants: tuple[Fid | None, int]) -> Ride | None:
        """Own locks in the way of what is about to be changed go with it; what they covered is forgotten here and now."""
        cancels: tuple[int, ...] = ()
        converts: tuple[tuple[int, int], ...] = ()
        for fid, bits in wants:
            if fid is not None:
                if bits & SOLE and self._promises(self.files.get(fid)):
                    bits &= ~SOLE  # the MDT asks for it, if it must go
                whole, parts = self.locks.cancels_for(fid, bits)
                cancels += whole
                converts += parts
        return Ride(cancels, None, converts) if cancels or converts else None

    def dropped(self, lock: ClientLock, lost: bool) -> None:
        """The lock cache's hook: a lock goes, or some of its bits."""
        known: Known | None = lock.data
        if known is None:
            return
        kept = lock.bits & ~lock.going_bits
        if not kept:
            known.locks.remove(lock)
            lock.data = None
        for other in known.locks:
            if other is not lock:
                kept |= other.bits
        gone = known.bits & ~kept
        known.bits = kept
        known.drops += 1
        if gone:
            self._forget(known, gone, lost)
            if self.on_lost is not None:
                self.on_lost(known.fid, gone)

    def _promises(self, known: Known | None) -> Layout | None:
        """The objects of a file, if locks of them are promised on the ground that we hold SOLE."""
        if self.objects is None or known is None or not known.bits & SOLE or known.attr.layout is None:
            return None
        return known.attr.layout if self.objects.promises(known.attr.layout) else None

    def _stays(self, lock: ClientLock) -> bool:
        """The lock cache's hook: is there more under it than what may be asked for again?"""
        known = lock.data
        return bool(lock.bits & SOLE) and known is not None and (known.fid in self.kept or self._promises(known) is not None)

    def _replayed(self, lock: ClientLock) -> None:
        """The lock cache's hook: a lock stays because it is in use. What is known under it is of a server that is gone."""
        known: Known | None = lock.data
        if known is None or known.fid in self.kept:  # under SOLE there is nothing but what we have done
            return
        known.drops += 1
        self._forget(known, lock.bits & ~(OPEN | SOLE), False)
        if self.on_lost is not None:
            self.on_lost(known.fid, lock.bits)

    def _withdraw(self, lock: ClientLock) -> Awaitable[None] | None:
        """The lock cache's hook: a lock is about to go, or some of its bits."""
        known = lock.data
        if known is None:
            return None
        redeemed: Awaitable[None] | None = None
        if lock.going_bits & SOLE and self.objects is not None and (layout := known.attr.layout) is not None:
            self.objects.sole(layout, False)  # there will be no more of them
            if self.objects.promises(layout):
                redeemed = self.objects.redeem(layout, lock.served_until)
        if known.fid in self.kept and lock.going_bits & (STAT | SOLE):
            return self._told_and(known.fid, redeemed)
        return redeemed

    async def _told_and(self, fid: Fid, other: Awaitable[None] | None) -> None:
        if other is not None:
            await other
        await self.kept.until_told(lambda: (fid,))

    def not_sole(self, fid: Fid) -> None:
        """Others may hear of the file, as soon as the OSTs have heard of all our locks on it and the MDT of all our changes."""
        known = self.files.get(fid)
        if known is None or not known.bits & SOLE or self.objects is None or self.kept.then_not_sole(fid):
            return
        promised = self._promises(known)
        if promised is not None:
            self.objects.redeem_soon(promised)  # then we are called again
        else:
            self.locks.give_up_bits(fid, SOLE)

    def lost_attrs(self, fid: Fid) -> None:
        """What was changed of a file from here is lost."""
        self.own.doubt_attr(fid, SETTABLE)
        if self.on_change is not None:
            self.on_change(fid)
        if self.on_attrs_lost is not None:
            self.on_attrs_lost(fid)

    def _forget(self, known: Known, gone: int, lost: bool) -> None:
        if gone & (STAT | SOLE) and known.fid in self.kept:
            assert lost, known.fid
            self.kept.lose(known.fid)
        known.fresh &= ~gone
        known.merged = None
        if gone & LOOKUP:
            for directory, name in known.places:
                del directory.names[name]
                self._tidy(directory)
            known.places = ()
        if gone & (OPEN | SOLE) and known.attr.layout is not None and self.objects is not None:
            if gone & OPEN:
                self.objects.unwritten(known.attr.layout, False)
            if gone & SOLE:
                self.objects.sole(known.attr.layout, False, lost)
        if gone & XATTR:
            known.xattrs = None
        if gone & UPDATE:
            known.absent = None
            self.listings.forget(known)
        self._tidy(known)

    def _tidy(self, known: Known) -> None:
        """Is anything left of it?"""
        if not known.locks and not known.names and known is not self.root and self.files.get(known.fid) is known:
            del self.files[known.fid]
