"""What this client changes in directories that it knows: it goes on knowing them, because it is told how that went.

Before a name is made, removed or moved, the MDT takes back what others hold of the directory. The author keeps his own
UPDATE lock: nobody else has changed anything under it, and what he has changed himself follows from his request and its
answer. So a client that fills a directory asks for the directory's attributes once, and never whether a name is there.

While a change is on its way nobody can say whether it has happened, so what it touches is not believed: `going`. An
answer to a question that was on its way at the same time may be older or newer than the change: `overlaps`. Of such
an answer nothing is kept that the change touches. A caller who gives up waiting changes nothing of this: `ended` is
called when the answer comes, whoever waits for it. Answers may pass each other; their transnos tell: after one that
comes too late a directory is asked for again. So it is if the lock went while the change was on its way, and another one came:
the answer may have waited for a commit, and others have changed the same again since (`_unbroken`).
Source: mdt/locks.py for the other side.  Lustre's clients give the lock back and ask again (ll_prep_inode())
"""

from __future__ import annotations

from collections.abc import Callable
from stat import S_ISDIR
from typing import TYPE_CHECKING, Any

from lustrelite.ids import NO_FID, Fid
from lustrelite.wire.ldlm import LOOKUP, PERM, UPDATE
from lustrelite.wire.mdt import DISP_OPEN_CREATE, SET_VERSIONED, ClosedFile, OpenReply, Setattr

if TYPE_CHECKING:
    from lustrelite.client.attr_cache import AttrCache
    from lustrelite.client.known import Known, Question

Ended = Callable[[Any, int], None]  # of a change: its reply's body and transno; None and 0 if it was refused
Begun = dict[Fid, tuple["Known | None", int, int]]  # what is about to be changed: what is known of it, locks held, and lost so far
SETTABLE = UPDATE | PERM  # what they change of a file
ENDED_MAX = 1024  # inodes whose last change is remembered


class OwnChanges:
    """Of one client, in what one AttrCache knows."""

    def __init__(self, cache: AttrCache) -> None:
        self.cache = cache
        self.clock = 0  # counts ends of changes
        self.moved = 0  # what it showed when something had last been moved
        self.going: dict[Fid, int] = {}  # how many changes of an inode are on their way
        self._ended: dict[Fid, tuple[int, int]] = {}  # the clock at the last end, and the highest transno
        self._forgotten = (0, 0)  # of those that are not in `_ended` they are not higher

    def overlaps(self, fid: Fid, since: int) -> bool:
        """Was `fid` changed from here since the clock showed `since`, or is being changed?"""
        if since == self.clock and not self.going:
            return False
        return fid in self.going or self._ended.get(fid, self._forgotten)[0] > since

    def _begin(self, *fids: Fid) -> Begun:
        on_change, files = self.cache.on_change, self.cache.files
        begun: Begun = {}
        for fid in fids:
            known = files.get(fid)
            begun[fid] = (known, known.bits, known.drops) if known is not None else (None, 0, 0)
            self.going[fid] = self.going.get(fid, 0) + 1
            if on_change is not None:
                on_change(fid)
        return begun

    def _end(self, begun: Begun, *, changed: bool, transno: int) -> bool:
        """False: what is known now may be of later: an answer to what was done later was here before, or a lock is younger."""
        for fid in begun:
            left = self.going[fid] - 1
            if left:
                self.going[fid] = left
            else:
                del self.going[fid]
        if not changed:
            return True
        self.clock += 1
        in_order = True
        for fid, before in begun.items():
            in_order = self._mark(fid, transno) and self._unbroken(fid, *before) and in_order
        return in_order

    def _unbroken(self, fid: Fid, known: Known | None, bits: int, drops: int) -> bool:
        """Were the locks of `fid` that are held now, held when the change began, and all the time since?"""
        now = self.cache.files.get(fid)
        held = now.bits & (SETTABLE | LOOKUP) if now is not None else 0
        return not held or (known is not None and known is now and not held & ~bits and known.drops == drops)

    def _mark(self, fid: Fid, transno: int) -> bool:
        _, newest = self._ended.pop(fid, self._forgotten)
        self._ended[fid] = (self.clock, max(newest, transno))
        if len(self._ended) > ENDED_MAX:
            clock, highest = self._ended.pop(next(iter(self._ended)))
            self._forgotten = (clock, max(highest, self._forgotten[1]))
        return transno >= newest

    def kept(self, fid: Fid) -> None:
        """Attributes of `fid` were changed here, and the MDT will hear of it: an answer that is on its way is older."""
        self.clock += 1
        self._mark(fid, 0)
        if self.cache.on_change is not None:
            self.cache.on_change(fid)

    # the changes: each returns what is to be called with its answer ----------------------------------------------------

    def making(self, question: Question, time: int, *, directory: bool = False) -> Ended:
        """A name is about to be made, by a create or by an open that may find it; `question` asks for locks of the file."""
        parent, name = question.parent, question.name
        begun = self._begin(parent)

        def ended(reply: Any, transno: int) -> None:
            opened = type(reply) is OpenReply
            made = reply is not None and not (opened and not reply.disposition & DISP_OPEN_CREATE)
            in_order = self._end(begun, changed=made, transno=transno)
            if made:
                self._made(parent, name, time, int(directory), in_order)
                self.cache.made(question, reply.attr if opened else reply, named=in_order)
            elif opened:
                self.cache.found(question, reply.attr)

        return ended

    def linking(self, parent: Fid, name: bytes, time: int) -> Ended:
        """A file that is there is about to get another name."""
        begun = self._begin(parent)

        def ended(reply: Any, transno: int) -> None:
            in_order = self._end(begun, changed=reply is not None, transno=transno)
            if reply is not None:
                self._made(parent, name, time, 0, in_order)

        return ended

    def removing(self, parent: Fid, name: bytes, time: int, *, directory: bool = False) -> Ended:
        """`name` is about to be removed from `parent`."""
        begun = self._begin(parent)

        def ended(reply: Any, transno: int) -> None:
            in_order = self._end(begun, changed=reply is not None, transno=transno)
            if reply is None:
                return
            self.cache.leave(parent, name)
            known = self._touch(parent, time, -int(directory))
            if not in_order:
                self._doubt(parent)
            elif known is not None:
                self._went(known, name)

        return ended

    def moving(self, source: Fid, name: bytes, target: Fid, new_name: bytes, time: int, *, exchange: bool) -> Ended:
        """`name` in `source` is about to become `new_name` in `target`, or to change places with it."""
        child = self.cache.child(source, name)
        begun = self._begin(*dict.fromkeys((source, target, child) if child is not None else (source, target)))
        self.cache.leave(source, name)

        def ended(reply: Any, transno: int) -> None:
            in_order = self._end(begun, changed=reply is not None, transno=transno)
            if reply is None:
                return
            moved: Fid = reply.moved
            if moved != NO_FID:  # else nothing has moved, or the MDT does not know any more what has
                self._mark(moved, transno)
            self.moved = self.clock
            self.cache.leave(source, name)  # whoever was told of it meanwhile
            self.cache.leave(target, new_name)
            if exchange or not in_order or moved == NO_FID:
                for fid in (source, target):
                    self._doubt(fid)
                self.doubt_attr(child if child is not None and moved == NO_FID else moved, UPDATE | LOOKUP)
            else:
                if moved not in begun:  # we did not know that the name led there: its locks may be younger
                    self.doubt_attr(moved, UPDATE | LOOKUP)
                self._moved(moved, source, name, target, new_name, time, transno, replaced=reply.fid != NO_FID)

        return ended

    def setting(self, question: Question, fid: Fid) -> Ended:
        """Attributes of `fid` are about to be changed."""
        begun = self._begin(fid)
        self.doubt_attr(fid, SETTABLE)

        def ended(reply: Any, transno: int) -> None:
            in_order = self._end(begun, changed=reply is not None, transno=transno)
            if reply is not None:
                self.cache.changed(question, reply)
                if not in_order:
                    self.doubt_attr(fid, SETTABLE | LOOKUP if self.moved > question.clock else SETTABLE)

        return ended

    def telling(self, rows: tuple[Setattr, ...]) -> Ended:
        """The MDT is about to be told of what was changed here."""

        def ended(reply: Any, transno: int) -> None:
            self.clock += 1
            self.cache.kept.told(rows, made=reply is not None)
            for row in rows:
                self._mark(row.fid, transno)
                known = self.cache.files.get(row.fid)
                if reply is not None and known is not None and known.fresh & UPDATE and row.valid & SET_VERSIONED:
                    known.attr = known.attr._replace(version=transno)
                    known.merged = None

        return ended

    def closing(self, rows: tuple[ClosedFile, ...], pending: dict[Fid, tuple[int, int]]) -> Ended:
        """Files are about to be closed, and it is told when they were written and read.

        Until that has ended `pending` has the times that count: (mtime, atime).
        """
        files = self.cache.files
        before = [
            (known, mtime, atime)
            for _, fid, atime, mtime in rows
            if (mtime or atime) and (known := files.get(fid)) is not None
        ]

        def ended(reply: Any, transno: int) -> None:
            if reply is None:
                return
            self.clock += 1
            for known, mtime, atime in before:
                self._mark(known.fid, transno)
                counts = pending.get(known.fid, (0, 0))
                if known.fresh & UPDATE:
                    self._told(known, min(mtime, counts[0]), min(atime, counts[1]))

        return ended

    def _told(self, known: Known, mtime: int, atime: int) -> None:
        """The MDT has heard of these times: its own they became, unless it had been given others after them."""
        attr = known.attr
        if 0 < mtime <= attr.mtime_set or attr.atime < atime <= attr.ctime:  # perhaps before a utimes()
            self.doubt_attr(known.fid)
            return
        if mtime > (attr.mtime_set or attr.mtime):
            attr = attr._replace(mtime=mtime, ctime=max(mtime, attr.ctime), mtime_set=0)
        elif atime <= attr.atime:
            return
        known.attr = attr._replace(atime=max(atime, attr.atime))
        known.merged = None

    def _moved(
        self, fid: Fid, source: Fid, name: bytes, target: Fid, new_name: bytes, time: int, transno: int, *, replaced: bool
    ) -> None:
        cache = self.cache
        moved = cache.files.get(fid)
        directory = moved is not None and bool(moved.fresh) and S_ISDIR(moved.attr.mode)
        links = int(directory and source != target)
        if moved is None or not moved.fresh or (directory and replaced):
            links = 0
            if source != target or replaced:  # perhaps a directory: the link counts are not known
                for each in (source, target):
                    self.doubt_attr(each)
        old, new = self._touch(source, time, -links), self._touch(target, time, links)
        if moved is not None and moved.fresh & UPDATE:
            moved.attr = moved.attr._replace(ctime=max(moved.attr.ctime, time), version=transno)
            moved.merged = None
        if directory and moved is not None and moved.fresh & LOOKUP:
            moved.attr = moved.attr._replace(parent=target)
            moved.merged = None
        if old is not None:
            self._went(old, name)
        if new is not None:
            self._came(new, new_name)
        if moved is not None and moved.fresh & LOOKUP:
            cache.enter(cache.file(target), new_name, moved)

    def _made(self, parent: Fid, name: bytes, time: int, links: int, in_order: bool) -> None:
        known = self._touch(parent, time, links)
        if not in_order:
            self._doubt(parent)
        elif known is not None:
            self._came(known, name)

    # what follows from them -------------------------------------------------------------------------------------------

    def _touch(self, fid: Fid, time: int, links: int) -> Known | None:
        """The directory if its content is known, with its new times and link count."""
        known = self.cache.files.get(fid)
        if known is None or not known.bits & UPDATE:
            return None
        if known.fresh & UPDATE:
            attr = known.attr
            mtime = time if attr.mtime_set else max(attr.mtime, time)
            known.attr = attr._replace(mtime=mtime, ctime=max(attr.ctime, time), nlink=attr.nlink + links, mtime_set=0)
            known.merged = None
        return known

    def _came(self, directory: Known, name: bytes) -> None:
        if directory.absent is not None:
            directory.absent.pop(name, None)
        self.cache.listings.changed(directory, name, there=True)

    def _went(self, directory: Known, name: bytes) -> None:
        self.cache.listings.changed(directory, name, there=False)
        if directory.listing is None:
            self.cache.miss(directory, name)

    def doubt_attr(self, fid: Fid, bits: int = UPDATE) -> None:
        """These of its attributes must be asked for again."""
        known = self.cache.files.get(fid)
        if known is not None:
            known.fresh &= ~bits
            known.merged = None

    def _doubt(self, fid: Fid) -> None:
        """Whatever is known of a directory's content must be asked for again."""
        known = self.cache.files.get(fid)
        if known is not None:
            self.doubt_attr(fid)
            known.absent = None
            self.cache.listings.forget(known)
