"""What the kernel knows of inodes, and how it forgets in time.

The kernel may believe a name, attributes or pages exactly as long as this client may: under the lock, and within the
lease. It is told how long when it is told what; that alone is enough when we are cut off, or stopped. When a lock goes
earlier, the kernel is told to forget before the lock is given back:

    attributes   INVAL_INODE without pages: returns at once
    names        INC_EPOCH: no name is true any more. It returns at once; every name is then asked for again, and mostly
                 known here. (INVAL_ENTRY would wait for a mkdir in that directory, which may wait for this lock.)
    no such name never kept by the kernel: the daemon knows it (client/attr_cache.py)
    listings     pages of a directory, which the kernel drops when it finds another mtime. A change may leave the mtime as it
                 was (utime(2) by who unpacks a tree), so they are dropped when it asks for attributes that no lock has
                 vouched for all the time; nobody holds such a page for long, so that returns at once
    pages        INVAL_INODE with a range, in a thread: it waits for pages that are being read or written. Such a
                 request may itself wait for a lock that we hold up, so nobody waits for it: what is being read is
                 not there yet, and will be read under another lock.

A request that reads or writes is therefore `busy` with its range as long as it is not answered, and looks before it
answers whether what it has was overtaken (`overtaken`).

Mapped pages change without a word. They are written before they are dropped, under the lock that goes; and once a file
was written to through a mapping, whoever has it open for writing reads it under locks to write (`Node.mapped`).
  Source: fuse_reverse_inval_inode(), fuse_dentry_revalidate(),
fs/fuse of Linux 6.18.  An inode number of the protocol (node) is ours, and never used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from stat import S_ISDIR
from typing import TYPE_CHECKING

from lustrelite.client.attributes import Stat
from lustrelite.client.intervals import Intervals
from lustrelite.fuse import kernel
from lustrelite.fuse.kernel import PAGE_BYTES, Attributes
from lustrelite.fuse.session import Session
from lustrelite.ids import Fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import LOOKUP, OPEN, PERM, UPDATE
from lustrelite.wire.mdt import Attr, Layout
from lustrelite.wire.ost import OBJECT_EOF

if TYPE_CHECKING:
    from lustrelite.client.by_fid import FidOperations

STAT = LOOKUP | PERM | UPDATE
BLOCKED_S = 0.01  # an invalidation that lasts longer while something is being read is taken to wait for that
ASKED_S, ASKED_TURNS = 0.005, 20  # so often it is looked whether attributes that the kernel has asked for are answered
BELIEVED_S_MAX = 3600.0
TOLD_MAX = 8  # threads that are told apart
ANYBODY = -1  # or of another PID namespace, where they have no number


class Node:
    """An inode that the kernel knows."""

    __slots__ = (
        "access", "arrived", "asked", "attr_until", "busy", "changes", "doubted", "epoch", "fid", "gone", "latest", "leaving",
        "listed", "lookups", "mapped", "misplaced", "name_until", "number", "objects", "opens", "pages", "started", "told",
        "withdrawn",
    )  # fmt: skip

    def __init__(self, number: int, fid: Fid) -> None:
        self.number = number
        self.fid = fid
        self.lookups = 0  # how often the kernel was told of it
        self.opens = 0
        self.name_until = 0.0  # until then the kernel believes a name of it,
        self.epoch = -1  # if it was told in the present epoch
        self.attr_until = 0.0
        self.told: dict[int, None] = {}  # threads that were told of a directory's attributes, and have perhaps not seen the answer
        self.changes = 0  # requests of the kernel that change what is in the directory
        self.listed = False  # the kernel may have a listing of it,
        self.doubted = False  # that a change from elsewhere may have made untrue
        self.access: tuple[int, int, int] | None = None  # mode, user, group, as it was told of them before it drops the listing
        self.gone: Attr | None = None  # what it was when its last name was removed from here; no regular file
        self.latest: Stat | None = None  # what was last told of a directory, which somebody may be in when it is removed elsewhere
        self.pages = False  # the kernel may have some of its data
        self.mapped = False  # it was written to through a mapping
        self.leaving: dict[ClientLock, None] = {}  # locks on its data that go as soon as the kernel has dropped its pages
        self.objects: tuple[tuple[int, int], ...] = ()  # (OST, object): under which it is found
        self.busy: dict[object, tuple[int, int]] = {}  # ranges of requests that are not answered
        self.misplaced: asyncio.Future[None] | None = None  # pages that are being dropped because they were written elsewhere
        self.asked = 0  # GETATTRs that are not answered
        self.arrived: asyncio.Future[None] | None = None  # for who waits for one more of them
        self.withdrawn = 0  # how often a lock on its data went, or began to go
        self.started = 0  # how many of these have begun to drop pages

    def begin(self, request: object, start: int, end: int) -> int:
        """A request reads or writes [start, end); returns what `overtaken` wants to know."""
        self.pages = True
        self.busy[request] = start, end
        if self.arrived is not None and not self.arrived.done():
            self.arrived.set_result(None)
        return self.withdrawn

    def end(self, request: object) -> None:
        """It is answered."""
        self.busy.pop(request, None)

    def overtaken(self, withdrawn: int) -> bool:
        """Were pages dropped since, so that those of this request were passed over?"""
        return self.started > withdrawn


class Inodes:
    """All of them."""

    def __init__(self, view: FidOperations, session: Session) -> None:
        self.view = view
        self.session = session
        self.epoch = 0
        self.numbers: dict[int, Node] = {}
        self.fids: dict[Fid, Node] = {}
        self.objects: dict[tuple[int, int], Node] = {}
        self.dropping = 0  # pages are being dropped for so many locks
        self.root = Node(kernel.ROOT_ID, view.root)
        self.root.lookups = 1
        self._last = kernel.ROOT_ID
        self.numbers[kernel.ROOT_ID] = self.fids[self.root.fid] = self.root
        self._now = asyncio.get_running_loop().time

    def of(self, fid: Fid) -> Node:
        """The node of `fid`, made if need be."""
        node = self.fids.get(fid)
        if node is None:
            self._last += 1
            node = self.numbers[self._last] = self.fids[fid] = Node(self._last, fid)
        return node

    def forget(self, number: int, lookups: int) -> None:
        """The kernel has forgotten so many of the answers that told it of a node."""
        node = self.numbers.get(number)
        if node is not None and node is not self.root:
            node.lookups -= lookups
            self.tidy(node)

    def tidy(self, node: Node) -> None:
        """Is it needed any longer?"""
        if node.lookups <= 0 and not node.opens and not node.busy and self.numbers.get(node.number) is node:
            del self.numbers[node.number]
            del self.fids[node.fid]
            for key in node.objects:
                self.objects.pop(key, None)

    # telling ------------------------------------------------------------------------------------------------------

    def _metadata_until(self) -> float:
        until: float = self.view.connections.mdc.imp.lease_until  # type: ignore[attr-defined]
        return until

    def newest(self, node: Node, stat: Stat, pid: int, *, known: bool = False) -> tuple[float, Stat]:
        """How long the kernel may believe what, which it hears in thread `pid`.

        What locks vouch for now, or else `stat`, for no time at all.

        `known`: `stat` is what they vouch for.
        """
        newest = stat if known else self.view.known_stat(node.fid)
        if S_ISDIR(stat.mode):
            node.latest = newest or stat
        if node.listed and (node.doubted or newest is None):
            latest = newest if newest is not None else stat
            access = latest.mode, latest.uid, latest.gid
            if node.access != access:  # it would throw away what it asked before pages go: first it hears who may do what
                node.access = access
                return 0.0, latest
            node.listed = node.doubted = False
            node.access = None
            self.session.notify(kernel.inval_inode(node.number, 0, 0))
        if newest is None:
            if stat.layout is not None:
                self.watch(node, stat.layout)
            return 0.0, stat
        until = self._metadata_until()
        layout = newest.layout
        if layout is not None:
            self.watch(node, layout)
            oscs = self.view.connections.lov.oscs
            for index, _ in layout.stripes:
                until = min(until, oscs[index].imp.lease_until)  # type: ignore[attr-defined]
        now = self._now()
        left = min(until - now, BELIEVED_S_MAX)
        if left <= 0:
            return 0.0, stat
        node.attr_until = max(node.attr_until, now + left)
        if S_ISDIR(newest.mode):
            node.told[pid if pid and len(node.told) < TOLD_MAX else ANYBODY] = None
        return left, newest

    def name_s(self, node: Node, parent: Fid, name: bytes) -> float:
        """How long the kernel may believe that `name` in `parent` leads to `node`."""
        names = self.view.connections.names
        if names is None or self.session.minor < kernel.MINOR_EPOCH:
            return 0.0
        directory = names.files.get(parent)
        known = directory.names.get(name) if directory is not None else None
        if known is None or known.fid != node.fid:
            return 0.0
        left = min(self._metadata_until() - self._now(), BELIEVED_S_MAX)
        if left <= 0:
            return 0.0
        if node.epoch != self.epoch:
            node.epoch, node.name_until = self.epoch, 0.0
        node.name_until = max(node.name_until, self._now() + left)
        return left

    def watch(self, node: Node, layout: Layout) -> None:
        """Locks on these objects vouch for what the kernel knows of the node."""
        if node.objects is not layout.stripes and node.objects != layout.stripes:
            for key in node.objects:
                self.objects.pop(key, None)
            node.objects = layout.stripes
            for key in layout.stripes:
                self.objects[key] = node

    # forgetting ---------------------------------------------------------------------------------------------------

    def lost(self, fid: Fid, bits: int) -> None:
        """AttrCache's hook: these bits of an inode are not locked any more."""
        node = self.fids.get(fid)
        if node is None:
            return
        if bits & LOOKUP and node.epoch == self.epoch and node.name_until > self._now():
            self.forget_names()
        if bits & (STAT | OPEN):
            self.forget_attr(node)
        if bits & UPDATE:
            node.doubted = node.listed

    def forget_names(self) -> None:
        """The kernel believes no name any more."""
        self.epoch += 1
        self.session.notify(kernel.inc_epoch())

    def forget_attr(self, node: Node) -> None:
        """The kernel believes no attributes of the node any more."""
        node.told.clear()
        if node.attr_until > self._now():
            node.attr_until = 0.0
            if not self.session.notify(kernel.inval_inode(node.number, -1, 0)):
                # It has not got hold of the inode yet that an answer on its way will make it know: by the name.
                self.forget_names()

    def change_begins(self, node: Node, pid: int) -> None:
        """The kernel asks, in thread `pid`, for a change of what is in a directory.

        When it has the answer it forgets the directory's attributes, so it need not be told to: unless an earlier answer may
        still be on its way to another thread, which would make it believe in older ones.
        Source: fuse_dir_changed(), fuse_change_attributes(), fs/fuse of Linux
        """
        node.told.pop(pid, None)
        node.changes += 1

    def change_ends(self, node: Node, done: bool) -> None:
        """It is about to be answered; if it was not done the kernel makes nothing of it."""
        node.changes -= 1
        if not done:
            self.forget_attr(node)

    def changing(self, fid: Fid) -> None:
        """AttrCache's hook: an inode is about to be changed from here."""
        node = self.fids.get(fid)
        if node is not None and (node.told or not node.changes):
            self.forget_attr(node)

    def trust(self, node: Node) -> bool:
        """The only name of the node is about to be removed through the kernel, which will know: spare the others.

        Was it believed?  If it is not removed after all, `forget_names`.
        """
        believed = node.epoch == self.epoch
        node.epoch = -1
        return believed

    def withdraw(self, index: int, lock: ClientLock) -> Awaitable[None] | None:
        """LockCache's hook: a lock on an object of an OST goes; it is kept until what is returned is done."""
        node = self.objects.get((index, int.from_bytes(lock.resource, "big")))
        if node is None:
            return None
        node.withdrawn += 1
        if not node.pages or not self.session.alive:
            self.forget_attr(node)
            node.started = node.withdrawn
            return None
        start, end = lock.start, lock.end + 1
        if len(node.objects) > 1:
            start, end = 0, OBJECT_EOF + 1
        node.leaving[lock] = None
        return self._drop(node, lock, start, min(end, limits.file_bytes_max), node.withdrawn)

    def believes(self, index: int, lock: ClientLock) -> bool:
        """Does the kernel keep anything that this lock on an object vouches for?"""
        node = self.objects.get((index, int.from_bytes(lock.resource, "big")))
        return node is not None and (node.pages or node.attr_until > self._now())

    def lost_data(self, index: int, obj: int) -> None:
        """A lock on an object is gone, by force."""
        node = self.objects.get((index, obj))
        if node is None:
            return
        self.forget_attr(node)
        node.withdrawn += 1
        node.started = node.withdrawn
        if node.pages and self.session.alive:  # who is reading is overtaken, and reads again: he may wait for another server
            self.session.invalidate([_inval(node, low, high) for low, high in self._idle_ranges(node, 0, limits.file_bytes_max)])

    def drop_later(self, node: Node, start: int, end: int) -> None:
        """Drop pages that nothing vouches for any more."""
        self.session.invalidate([_inval(node, start, end)])

    async def drop_with_answer(self, node: Node, start: int, end: int) -> None:
        """Something else was changed in [start, end) than the kernel will think when it has our answer: drop its pages then.

        It is told before: what it asks of the attributes once it has heard of that, as after our answer, is not thrown away.
        """
        work = await self.session.begin_to_invalidate(_inval(node, start, end))

        def dropped(_: asyncio.Future[None]) -> None:
            if node.misplaced is work:
                node.misplaced = None

        node.misplaced = work
        work.add_done_callback(dropped)

    async def _drop(self, node: Node, lock: ClientLock, start: int, end: int, number: int) -> None:
        # Who was done under the lock answers in this turn or in the next one: his pages are there then, and are dropped.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        node.started = max(node.started, number)
        for _ in range(ASKED_TURNS):  # Linux throws away what it asked before pages go, and reads by the size it knew
            if not node.asked:
                break
            await asyncio.sleep(ASKED_S)
        self.forget_attr(node)
        self.dropping += 1
        try:
            while self.session.alive:
                arrived = node.arrived
                if arrived is None or arrived.done():  # several locks may be on their way at the same time
                    arrived = node.arrived = asyncio.get_running_loop().create_future()
                ranges = self._idle_ranges(node, start, end)
                if not node.busy and (start, end) == (0, limits.file_bytes_max):
                    node.pages = False
                work = self.session.invalidate([_inval(node, low, high) for low, high in ranges])
                await asyncio.wait([work, arrived], return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    await asyncio.wait([work], timeout=BLOCKED_S)
                if work.done():
                    return
                # It waits for a page that somebody reads, or writes: go on with the others.
        finally:
            self.dropping -= 1
            del node.leaving[lock]

    @staticmethod
    def _idle_ranges(node: Node, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) no request is busy with."""
        if not node.busy:
            return [(start, end)]
        busy = Intervals()
        for low, high in node.busy.values():
            busy.add(low // PAGE_BYTES * PAGE_BYTES, -(-high // PAGE_BYTES) * PAGE_BYTES)
        return list(busy.gaps(start, end))


def _inval(node: Node, start: int, end: int) -> bytes:
    length = end - start
    return kernel.inval_inode(node.number, start, 0 if end >= limits.file_bytes_max else length)


def attributes(stat: Stat) -> Attributes:
    """What the kernel keeps of `stat`."""
    return Attributes(
        stat.ino, stat.size, stat.blocks, stat.atime, stat.mtime, stat.ctime, stat.mode, stat.nlink, stat.uid, stat.gid,
        stat.rdev,
    )  # fmt: skip
