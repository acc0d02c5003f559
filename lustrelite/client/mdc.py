"""The client's side of one MDT: one method per operation, FIDs in and out.

A client that caches (`cache`, attr_cache.py) sends with its questions which lock it wants of what is found, and with
its changes which of its locks these will need gone. Methods always ask the MDT; who looks into the cache first is
by_fid.py.

The client chooses the FIDs of what it makes, from sequences that nobody else ever gets, so that a replay makes the
same object. The next sequence is asked for long before the current one is used up, because the answer waits for a
commit. Times are the caller's (nanoseconds). Every method raises OpError with the operation's errno.
Source: mdc/mdc_reint.c, mdc/mdc_locks.c; FIDs: seq_client_alloc_fid(), fid/fid_request.c
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from stat import S_ISDIR, S_ISREG
from typing import Any, Protocol

from lustrelite import acl
from lustrelite.client.attr_cache import STAT, AttrCache
from lustrelite.client.known import Question
from lustrelite.client.own_changes import Ended
from lustrelite.client.tasks import Tasks
from lustrelite.errors import OpError
from lustrelite.ids import Fid, make_fid
from lustrelite.wire import mdt
from lustrelite.wire.ldlm import BITS_ALL, LAYOUT, LOOKUP, OPEN, PERM, SOLE, UPDATE, XATTR, Ride
from lustrelite.wire.mdt import Attr, ClosedFile, DirPage, OpenReply, RenameReply, StatfsReply, StripeHint, UnlinkReply
from lustrelite.wire.message import ROOT_CRED, Cred

MADE = STAT | XATTR | LAYOUT | OPEN | SOLE  # what is wanted of a file that is made: all, and to hear when others open it to write
_PREFETCH_DIVISOR = 4  # the next sequence is asked for when this part of the current one is left


class MetadataImport(Protocol):
    """What is needed of rpc.client_import.ClientImport."""

    async def call(
        self, body: Any, *, cred: Cred = ROOT_CRED, timeout_s: float | None = None, ride: Ride | None = None,
        ended: Ended | None = None,
    ) -> Any:  # fmt: skip
        """Send `body`, return the reply's body. `ended` is called when it comes: see own_changes.Ended."""

    async def call_open(
        self, body: mdt.Open | mdt.Reopen, *, cred: Cred = ROOT_CRED, ride: Ride | None = None, ended: Ended | None = None,
        unclaimed: Callable[[int, Any], None] | None = None,
    ) -> tuple[int, Any]:  # fmt: skip
        """The same for an open: (its xid, which is the handle; the reply).

        `unclaimed` gets them if the caller is gone.
        """


class Mdc:
    """One MDT."""

    def __init__(self, tasks: Tasks, imp: MetadataImport) -> None:
        self.imp = imp
        self._tasks = tasks
        self._seq = 0
        self._next_oid = 1
        self._last_oid = 0
        self._prefetch_at = 0
        self._allocation: asyncio.Task[mdt.SequenceReply | OpError] | None = None
        locks = getattr(imp, "locks", None)  # None: this client does not cache
        tunables = tasks.node.tunables
        self.cache: AttrCache | None = None
        if locks is not None:
            self.cache = AttrCache(locks, entries_max=tunables.lru_size, ahead_max=tunables.statahead_max)
            self.cache.kept.tell_by(imp, tasks)

    # FIDs -------------------------------------------------------------------------------------------------------

    async def new_fid(self) -> Fid:
        """A FID that was never used. Waits only when a sequence is used up faster than the next one comes."""
        while self._next_oid > self._last_oid:
            await self._next_sequence()
        oid = self._next_oid
        self._next_oid += 1
        if oid == self._prefetch_at and self._allocation is None:
            self._allocation = self._allocate()
        return make_fid(self._seq, oid)

    def _allocate(self) -> asyncio.Task[mdt.SequenceReply | OpError]:
        return self._tasks.spawn(self.imp.call(mdt.AllocateSequence()), "allocate sequence")

    async def _next_sequence(self) -> None:
        task = self._allocation
        if task is None or (task.done() and isinstance(task.result(), OpError)):  # refused when nobody needed it yet
            task = self._allocation = self._allocate()
        reply = await asyncio.shield(task)
        if self._allocation is not task:
            return  # another waiter was first
        self._allocation = None
        if isinstance(reply, OpError):
            raise reply
        self._seq, self._next_oid, self._last_oid = reply.seq, 1, reply.width
        self._prefetch_at = max(reply.width - reply.width // _PREFETCH_DIVISOR, 1)

    # what it has not heard of -----------------------------------------------------------------------------------

    async def _until_told(self, *fids: Fid | None) -> None:
        """Before it is asked for anything of these files."""
        if self.cache is not None:
            await self.cache.kept.until_told(lambda: fids)

    async def _until_named_told(self, *places: tuple[Fid, bytes]) -> None:
        """The same of those to which these names lead by then."""
        if self.cache is not None:
            await self.cache.kept.until_told(lambda: [self._child(*place) for place in places])

    # names ------------------------------------------------------------------------------------------------------

    async def get_root(self) -> mdt.RootReply:
        """The root directory and the file system's name."""
        return await self.imp.call(mdt.GetRoot())  # type: ignore[no-any-return]

    async def lookup(self, parent: Fid, name: bytes, *, cred: Cred, need: int = STAT) -> Attr:
        """Attributes of `name` in `parent`; `need` is what shall be known of it afterwards.  ENOENT, ENOTDIR, EACCES"""
        body = mdt.Lookup(parent, name)
        cache = self.cache
        if cache is None:
            return await self.imp.call(body, cred=cred)  # type: ignore[no-any-return]
        if cred[0] and not cache.holds(parent, PERM):
            await self._learn_permissions(parent, cred)
        await self._until_named_told((parent, name))
        question = cache.question_name(parent, name, need)
        try:
            attr: Attr = await self.imp.call(body, cred=cred, ride=question.ride)
        except OpError as error:
            if error.errno == errno.ENOENT:
                cache.found_nothing(question)
            raise
        cache.found(question, attr)
        if S_ISREG(attr.mode) and cache.is_old(attr.fid, question):  # we did not know that the name led there
            return await self.getattr(attr.fid, cred=cred, need=need)
        return attr

    async def _learn_permissions(self, directory: Fid, cred: Cred) -> None:
        """Else no name in it could be found without the MDT, who is asked for the names only."""
        try:
            await self.getattr(directory, cred=cred, need=PERM)
        except OpError as error:
            if error.errno != errno.ENOENT:  # the lookup will say the same
                raise

    async def create(
        self, parent: Fid, name: bytes, mode: int, time: int, *, cred: Cred,
        rdev: int = 0, target: bytes = b"", hint: StripeHint | None = None, umask: int = 0,
    ) -> Attr:  # fmt: skip
        """Make `name` in `parent`: what, says S_IFMT of `mode`.  EEXIST, ENOENT, ENOTDIR, EACCES, ENOSPC"""
        fid = await self.new_fid()
        body = mdt.Create(parent, name, fid, mode, rdev, target, time, hint, None, umask)
        cache = self.cache
        if cache is None:
            return await self.imp.call(body, cred=cred)  # type: ignore[no-any-return]
        question = cache.question_name(parent, name, MADE)
        ended = cache.own.making(question, time, directory=S_ISDIR(mode))
        return await self.imp.call(body, cred=cred, ride=question.ride, ended=ended)  # type: ignore[no-any-return]

    async def link(self, fid: Fid, parent: Fid, name: bytes, time: int, *, cred: Cred) -> None:
        """Make `name` in `parent` another name of `fid`.  EEXIST, EMLINK, EPERM"""
        await self._until_told(fid)
        ended = self.cache.own.linking(parent, name, time) if self.cache is not None else None
        await self._change(mdt.Link(fid, parent, name, time), cred, (fid, UPDATE), ended=ended)

    async def unlink(self, parent: Fid, name: bytes, time: int, *, cred: Cred, directory: bool = False) -> UnlinkReply:
        """Remove a name, a directory's only if `directory`.  ENOENT, EISDIR, ENOTDIR, ENOTEMPTY, EACCES, EPERM"""
        body = mdt.Unlink(parent, name, mdt.UNLINK_RMDIR if directory else 0, time)
        await self._until_named_told((parent, name))
        ended = self.cache.own.removing(parent, name, time, directory=directory) if self.cache is not None else None
        return await self._change(body, cred, (self._child(parent, name), BITS_ALL), ended=ended)  # type: ignore[no-any-return]

    async def rename(
        self, source: Fid, source_name: bytes, target: Fid, target_name: bytes, flags: int, time: int, *, cred: Cred
    ) -> RenameReply:
        """Move a name; the reply says what it replaced.  The errors of unlink, EINVAL, EEXIST"""
        body = mdt.Rename(source, source_name, target, target_name, flags, time)
        cache = self.cache
        if cache is None:
            return await self.imp.call(body, cred=cred)  # type: ignore[no-any-return]
        await self._until_named_told((source, source_name), (target, target_name))
        exchange = bool(flags & mdt.RENAME_EXCHANGE)
        moved, victim = cache.child(source, source_name), cache.child(target, target_name)
        ended = cache.own.moving(source, source_name, target, target_name, time, exchange=exchange)
        wants = [(victim, BITS_ALL)] if victim != moved else []
        if exchange:
            wants = [(moved, LOOKUP | UPDATE), (victim, LOOKUP | UPDATE)]
        return await self._change(body, cred, *wants, ended=ended)  # type: ignore[no-any-return]

    def _child(self, parent: Fid, name: bytes) -> Fid | None:
        return self.cache.child(parent, name) if self.cache is not None else None

    async def _change(
        self, body: Any, cred: Cred, *wants: tuple[Fid | None, int], ended: Ended | None = None
    ) -> Any:
        """An operation before which own locks on `wants` go."""
        if self.cache is None:
            return await self.imp.call(body, cred=cred)
        return await self.imp.call(body, cred=cred, ride=self.cache.give_up(*wants), ended=ended)

    async def readdir(self, fid: Fid, cookie: int, count: int, *, cred: Cred, plus: bool) -> DirPage:
        """About `count` names after `cookie`, with attributes if `plus`.  ENOTDIR, EACCES"""
        body = mdt.Readdir(fid, cookie, count, plus)
        cache = self.cache
        if cache is None:
            return await self.imp.call(body, cred=cred)  # type: ignore[no-any-return]
        question = cache.question_page(fid, count if plus else 0)
        page: DirPage = await self.imp.call(body, cred=cred, ride=question.ride)
        cache.found_page(question, fid, cookie, page)
        if plus and (len(cache.kept) or cache.own.clock != question.clock):  # who wants these asks for them one by one
            page = page._replace(
                entries=tuple([e._replace(attr=None) if cache.is_old(e.fid, question) else e for e in page.entries])
            )
        return page

    async def readlink(self, fid: Fid, *, cred: Cred) -> bytes:
        """Target of a symlink.  EINVAL"""
        target: bytes = (await self.imp.call(mdt.Readlink(fid), cred=cred)).value
        if self.cache is not None:
            self.cache.found_target(fid, target)
        return target

    async def fid_to_path(self, fid: Fid, *, cred: Cred) -> tuple[bytes, ...]:
        """All paths of `fid`.  ENOENT"""
        return (await self.imp.call(mdt.FidToPath(fid), cred=cred)).names  # type: ignore[no-any-return]

    # files ------------------------------------------------------------------------------------------------------

    async def open(
        self, parent: Fid, name: bytes, fid: Fid, flags: int, mode: int, time: int, *, cred: Cred,
        hint: StripeHint | None = None, umask: int = 0, unclaimed: Callable[[int, OpenReply], None] | None = None,
    ) -> tuple[int, OpenReply]:  # fmt: skip
        """(handle, reply), which go to `unclaimed` if the caller is cancelled before they come.

        `flags` are OPEN_*; `fid` is the file with OPEN_BY_FID, else it is chosen here if needed.
        """
        by_fid = bool(flags & mdt.OPEN_BY_FID)
        if flags & mdt.OPEN_CREATE and not by_fid:
            fid = await self.new_fid()
        body = mdt.Open(parent, name, fid, flags, mode, time, hint, None, umask)
        cache = self.cache
        if cache is None:
            return await self.imp.call_open(body, cred=cred, unclaimed=unclaimed)
        await (self._until_told(fid) if by_fid else self._until_named_told((parent, name)))
        question = self._question_open(cache, body, by_fid)
        if flags & mdt.OPEN_CREATE and not by_fid and not flags & mdt.OPEN_TMPFILE:
            return await self.imp.call_open(
                body, cred=cred, ride=question.ride, ended=cache.own.making(question, time), unclaimed=unclaimed
            )
        handle, reply = await self.imp.call_open(body, cred=cred, ride=question.ride, unclaimed=unclaimed)
        cache.found(question, reply.attr)
        return handle, reply

    @staticmethod
    def _question_open(cache: AttrCache, body: mdt.Open, by_fid: bool) -> Question:
        flags = body.flags
        found = body.fid if by_fid else cache.child(body.parent, body.name)
        gone: Ride | None = None
        if flags & mdt.OPEN_TRUNC and found is not None:
            gone = cache.give_up((found, UPDATE))
        need = LOOKUP | PERM | LAYOUT | XATTR  # who writes is asked for capabilities that go
        if flags & mdt.OPEN_CREATE and found is None:
            need |= MADE  # the MDT gives no more than what is below if the file is there
        if not flags & (mdt.OPEN_WRITE | mdt.OPEN_TRUNC):
            need |= UPDATE  # who writes will change it, and would have to give it back
        if by_fid:
            return cache.question(body.fid, need, gone)
        return cache.question_name(body.parent, body.name, need, gone)

    async def reopen(self, fid: Fid) -> int:
        """Tell of an open to be read that was made here; returns its handle.  ESTALE"""
        handle, _ = await self.imp.call_open(mdt.Reopen(fid))
        return handle

    async def close(self, handle: int, fid: Fid, atime: int, mtime: int, size: int, *, cred: Cred) -> None:
        """Give an open handle back. `atime` and `mtime` are 0 where nothing was read or written.  ESTALE"""
        body = mdt.Close(handle, fid, atime, mtime, size, 0)
        await self._until_told(fid)
        if self.cache is not None:
            self.cache.not_sole(fid)
        await self._change(body, cred, (fid if atime or mtime else None, UPDATE))

    async def close_all(self, rows: tuple[ClosedFile, ...], pending: dict[Fid, tuple[int, int]]) -> None:
        """Give many handles back. Times that are not in `pending` any more when the answer comes were set since."""
        cache = self.cache
        if cache is None:
            await self.imp.call(mdt.Closes(rows))
            return
        await self._until_told(*[row.fid for row in rows])
        for row in rows:
            cache.not_sole(row.fid)
        await self.imp.call(mdt.Closes(rows), ended=cache.own.closing(rows, pending))

    async def getattr(self, fid: Fid, *, cred: Cred, need: int = STAT) -> Attr:
        """Attributes of `fid`; `need` is what shall be known of it afterwards.  ENOENT"""
        body = mdt.Getattr(fid)
        cache = self.cache
        if cache is None:
            return await self.imp.call(body, cred=cred)  # type: ignore[no-any-return]
        await self._until_told(fid)
        question = cache.question(fid, need)
        attr: Attr = await self.imp.call(body, cred=cred, ride=question.ride)
        cache.found(question, attr)
        return attr

    async def setattr(
        self, fid: Fid, valid: int, time: int, *, cred: Cred, mode: int = 0, uid: int = 0, gid: int = 0,
        atime: int = 0, mtime: int = 0, flags: int = 0, projid: int = 0, handle: int = 0,
    ) -> Attr:  # fmt: skip
        """Change the attributes that `valid` (SET_*) names; `time` is the new ctime.  EPERM, EACCES, ENOENT

        Of a new file, that nobody else has seen, the MDT may hear later (kept_attrs.py).
        """
        body = mdt.Setattr(fid, valid, mode, uid, gid, atime, mtime, time, flags, handle, projid)
        cache = self.cache
        if cache is None:
            return await self.imp.call(body, cred=cred)  # type: ignore[no-any-return]
        kept = cache.kept.keep(body, cred)
        if kept is not None:
            return kept
        await self._until_told(fid)
        question = cache.question(fid, STAT) if fid in cache.files else Question(None, None, 0)
        ended = cache.own.setting(question, fid)
        return await self.imp.call(body, cred=cred, ride=question.ride, ended=ended)  # type: ignore[no-any-return]

    async def getxattr(self, fid: Fid, name: bytes, *, cred: Cred) -> bytes:
        """Value of an extended attribute.  ENODATA"""
        await self._until_told(fid)
        return (await self.imp.call(mdt.Getxattr(fid, name), cred=cred)).value  # type: ignore[no-any-return]

    async def setxattr(
        self, fid: Fid, name: bytes, value: bytes | None, flags: int, time: int, *, cred: Cred
    ) -> None:
        """Set an extended attribute, or remove it with None.  EEXIST, ENODATA, ENOTSUP, E2BIG, EPERM

        An access list that says no more than the mode, with which cp(1) keeps it, may be a `setattr` of which the MDT hears later.
        """
        if self.cache is not None and name == acl.ACCESS and value:
            mode, minimal = acl.mode_of(acl.parse(value), 0)
            if minimal and self.cache.kept.keep(mdt.Setattr(fid, mdt.SET_MODE, mode, 0, 0, 0, 0, time, 0, 0), cred) is not None:
                return
        bits = UPDATE | XATTR | PERM if name == acl.ACCESS else UPDATE | XATTR
        await self._until_told(fid)
        await self._change(mdt.Setxattr(fid, name, value, flags, time), cred, (fid, bits))

    async def fetch_xattrs(self, fid: Fid, *, cred: Cred) -> None:
        """Ask for all extended attributes of `fid` but the access list: the cache knows them then, if they are not too many."""
        assert self.cache is not None
        question = self.cache.question(fid, XATTR)
        reply: mdt.Xattrs = await self.imp.call(mdt.Getxattrs(fid), cred=cred, ride=question.ride)
        self.cache.found_xattrs(question, fid, dict(reply.rows) if reply.complete else None)

    async def listxattr(self, fid: Fid, *, cred: Cred) -> tuple[bytes, ...]:
        """Names of the extended attributes that the caller may see."""
        return (await self.imp.call(mdt.Listxattr(fid), cred=cred)).names  # type: ignore[no-any-return]

    async def get_dir_stripe(self, fid: Fid, *, cred: Cred) -> mdt.DirStripeReply:
        """Default striping of a directory, and of the file system.  ENOTDIR"""
        return await self.imp.call(mdt.GetDirStripe(fid), cred=cred)  # type: ignore[no-any-return]

    async def set_dir_stripe(self, fid: Fid, hint: StripeHint | None, time: int, *, cred: Cred) -> None:
        """Set the default striping of a directory, or remove it with None.  ENOTDIR, EPERM"""
        await self._change(mdt.SetDirStripe(fid, hint, time), cred, (fid, UPDATE | XATTR))

    async def statfs(self) -> StatfsReply:
        """Space and inodes of the MDT."""
        return await self.imp.call(mdt.Statfs())  # type: ignore[no-any-return]

    @property
    def settled(self) -> bool:
        """Is all that this client has changed on the MDT known to be durable?"""
        replays = getattr(self.imp, "replays", None)
        return replays is not None and not replays.uncommitted and not (self.cache is not None and len(self.cache.kept))

    async def sync(self) -> None:
        """Return when everything done so far is durable on the MDT."""
        if self.cache is not None:
            await self.cache.kept.until_all_told()
        await self.imp.call(mdt.Sync())


