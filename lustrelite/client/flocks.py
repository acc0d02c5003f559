"""Record locks of this mount: flock(2) and fcntl(2), kept by the MDT, mirrored here for close and for replay.

The MDT decides; nothing is cached. What an owner holds on a file is a map of ranges (ldlm/policy.py `set_range`), which
this end mirrors from the answers, so that a restarted MDT can be told and a close knows whether there is anything to
release. An owner is, on that file, an open file (flock) or whoever the caller says (fcntl: a process).

One request of an owner and file is on its way at a time; one that waits for others is aside and holds up nothing. A
request that is sent twice is executed twice and comes to the same (ldlm/flock.py).

A caller that is cancelled gives up: his request is taken back, and because it may have been granted a moment before,
the MDT is told once more what the mirror says of that range.
Source: ll_file_flock(), llite/file.c; ldlm_flock_completion_ast(), ldlm/ldlm_flock.c; protocol-facts 5.10
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any, NamedTuple

from lustrelite.errors import Evicted, OpError
from lustrelite.ids import Fid
from lustrelite.ldlm.policy import EOF, Record, set_range
from lustrelite.wire.ldlm import (
    BLOCK_GRANTED,
    BLOCK_NOWAIT,
    BLOCK_WAIT,
    FLOCK,
    FLOCK_BSD,
    FLOCK_TEST,
    NL,
    REPLAYED,
    Granted,
    Want,
)
from lustrelite.wire.locks import Cancel, Enqueue

if TYPE_CHECKING:
    from lustrelite.client.connections import Connections


class FileLock(NamedTuple):
    """A record lock in the way (F_GETLK)."""

    mode: int  # PR or PW
    start: int
    end: int  # last byte; EOF is the end of all files
    pid: int


class _Holder:
    """An owner on a file."""

    __slots__ = ("bsd", "fid", "owner", "pid", "records", "requests", "sending")

    def __init__(self, fid: Fid, bsd: bool, owner: int) -> None:
        self.fid = fid
        self.bsd = bsd
        self.owner = owner
        self.pid = 0
        self.records: list[Record] = []
        self.requests: dict[_Request, None] = {}  # not over yet
        self.sending = asyncio.Lock()


class _Request:
    """Lock, change or (NL) unlock a range."""

    __slots__ = (
        "end", "future", "given_up", "handle", "holder", "mode", "replaced", "sent", "start", "wait", "waiting",
    )  # fmt: skip

    def __init__(self, holder: _Holder, handle: int, mode: int, start: int, end: int, wait: bool) -> None:
        self.holder = holder
        self.handle = handle
        self.mode = mode
        self.start = start
        self.end = end
        self.wait = wait
        self.sent = False
        self.waiting = False  # so said the MDT
        self.given_up = False
        self.replaced: list[Record] | None = None  # what the mirror had of the range, once it has what was granted
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def want(self, flags: int) -> Want:
        """What the MDT is asked."""
        return _want(self.holder, self.handle, self.mode, self.start, self.end, flags)


class Flocks:
    """All record locks of a mount."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._holders: dict[tuple[Fid, bool, int], _Holder] = {}
        self._requests: dict[int, _Request] = {}  # by handle
        self._leaving: dict[Fid, dict[asyncio.Task[Any], None]] = {}  # owners who have closed the file, and still release
        self._last_owner = 0
        self._known: Any = None  # the import that we are registered with

    def new_owner(self) -> int:
        """A number for an open file."""
        self._last_owner += 1
        return self._last_owner

    @property
    def _imp(self) -> Any:
        """The MDT's import. It hands us completions, and asks what to replay, from the first use on."""
        imp: Any = self._connections.mdc.imp
        if self._known is not imp:
            self._known = imp
            imp.records = self
            imp.on_evicted.append(self.lost_all)
        return imp

    # what callers want ------------------------------------------------------------------------------------------

    async def lock(
        self, fid: Fid, owner: int, mode: int, start: int, end: int, *, bsd: bool, wait: bool, pid: int = 0
    ) -> None:
        """Set [start, end] to PR, PW or (unlock) NL.  Errors: EWOULDBLOCK, EDEADLK, EBADF closed meanwhile, Evicted"""
        if mode != NL:
            await self._until_left(fid)
        imp = self._imp
        holder = self._holders.get((fid, bsd, owner))
        if holder is None:
            if mode == NL:
                return
            holder = self._holders[fid, bsd, owner] = _Holder(fid, bsd, owner)
        elif mode == NL and not holder.requests and not holder.records:
            return
        if mode != NL:
            holder.pid = pid
        request = _Request(holder, imp.lock_handles(1), mode, start, end, wait)
        holder.requests[request] = None
        self._requests[request.handle] = request
        tasks = self._connections.tasks
        tasks.spawn(self._ask(request), "flock")
        try:
            await asyncio.shield(request.future)
        except asyncio.CancelledError:
            request.given_up = True
            tasks.spawn(self._give_up(request), "give up flock")
            raise

    async def test(
        self, fid: Fid, owner: int, mode: int, start: int, end: int, *, pid: int = 0
    ) -> FileLock | None:
        """F_GETLK: a lock of somebody else that is in the way, or None."""
        await self._until_left(fid)
        imp = self._imp
        want = Want(imp.lock_handles(1), FLOCK, fid, mode, FLOCK_TEST, 0, 0, start, end, owner, pid)
        granted = await self._enqueue(want)
        if granted.status:
            raise OpError(-granted.status)
        return None if granted.mode == NL else FileLock(granted.mode, granted.start, granted.end, granted.pid)

    def holds(self, fid: Fid, owner: int, *, bsd: bool) -> bool:
        """Has the owner anything to release?"""
        return (fid, bsd, owner) in self._holders

    def release(self, fid: Fid, owner: int, *, bsd: bool) -> asyncio.Task[Any]:
        """The owner has closed the file: all he holds on it goes, and he waits for nothing.

        Begun now: whoever wants a lock on the file from now on does not find it held by him.
        """
        leaving = self._leaving.setdefault(fid, {})
        task = self._connections.tasks.spawn(self._release(fid, owner, bsd), "release flock")
        leaving[task] = None

        def left(_: object) -> None:
            del leaving[task]
            if not leaving and self._leaving.get(fid) is leaving:
                del self._leaving[fid]

        task.add_done_callback(left)
        return task

    async def _until_left(self, fid: Fid) -> None:
        while leaving := self._leaving.get(fid):
            await asyncio.wait(list(leaving))

    async def _release(self, fid: Fid, owner: int, bsd: bool) -> None:
        holder = self._holders.get((fid, bsd, owner))
        if holder is None:
            return
        for request in list(holder.requests):
            request.given_up = True
            self._over(request, OpError(errno.EBADF, "the file was closed"))
            await self._give_up(request)
        try:
            await self.lock(fid, owner, NL, 0, EOF, bsd=bsd, wait=False)
        except OpError:
            pass  # evicted, or closed: the MDT has forgotten it, or will

    # requests ---------------------------------------------------------------------------------------------------

    async def _enqueue(self, want: Want) -> Granted:
        reply = await self._imp.call(Enqueue((want,), ()))
        if len(reply.granted) != 1:
            raise OpError(errno.EPROTO, "one answer to one request")
        granted: Granted = reply.granted[0]
        return granted

    async def _ask(self, request: _Request) -> None:
        holder = request.holder
        async with holder.sending:
            if request.given_up or request.future.done():
                return
            request.sent = True
            try:
                granted = await self._enqueue(request.want(0 if request.wait else BLOCK_NOWAIT))
            except OpError as error:
                self._over(request, error)
                return
            waits = not granted.status and bool(granted.flags & BLOCK_WAIT)
            request.waiting = waits
            if request.future.done():
                return  # a completion was faster than the answer; or it is given up, or lost
            if holder.bsd and request.mode != NL and (granted.status or waits):
                holder.records.clear()  # flock(2) gives up the old lock before it asks for another one
            if granted.status:
                self._over(request, OpError(-granted.status))
            elif not waits:
                self._granted(request)

    def _granted(self, request: _Request) -> None:
        if not request.given_up:
            request.replaced, _ = set_range(request.holder.records, request.start, request.end, request.mode)
        self._over(request, None)

    def _over(self, request: _Request, error: OpError | None) -> None:
        """It is known what became of the request. One that was given up stays until it is undone."""
        if not request.future.done():
            if error is None:
                request.future.set_result(None)
            else:
                request.future.set_exception(error)
                request.future.exception()  # seen: perhaps nobody waits
        self._requests.pop(request.handle, None)
        if not request.given_up:
            self._leave(request)

    def _leave(self, request: _Request) -> None:
        holder = request.holder
        holder.requests.pop(request, None)
        key = (holder.fid, holder.bsd, holder.owner)
        if not holder.records and not holder.requests and self._holders.get(key) is holder:
            del self._holders[key]

    async def _give_up(self, request: _Request) -> None:
        """Take the request back, and whatever it has done."""
        holder = request.holder
        async with holder.sending:
            self._undo(request)  # it may have been granted in the moment in which its caller gave up
            self._over(request, OpError(errno.EINTR))
            if request.sent and self._holders.get((holder.fid, holder.bsd, holder.owner)) is holder:  # else evicted
                try:
                    if request.waiting:
                        await self._imp.call(Cancel((request.handle,)))
                    await self._restore(request)
                except OpError:
                    pass  # evicted, or closed: there is nothing to take back
            self._leave(request)

    @staticmethod
    def _undo(request: _Request) -> None:
        records, start, end = request.holder.records, request.start, request.end
        if request.replaced is None:
            return  # the mirror has not heard of it
        set_range(records, start, end, NL)
        for old in request.replaced:
            if old.start <= end and start <= old.end:
                set_range(records, max(old.start, start), min(old.end, end), old.mode)

    async def _restore(self, request: _Request) -> None:
        """Tell the MDT what the mirror says of the range of a request that was given up.

        What others have got a part of since the request made it weaker stays as weak.
        """
        holder, start, end = request.holder, request.start, request.end
        wants = []
        at = start
        for record in [*holder.records, Record(EOF + 1, EOF + 1, NL)]:
            if record.end < start:
                continue
            if at < min(record.start, end + 1):
                wants.append((NL, at, min(record.start - 1, end)))
            if record.start > end:
                break
            wants.append((record.mode, max(record.start, start), min(record.end, end)))
            at = record.end + 1
        first = self._imp.lock_handles(len(wants))
        reply = await self._imp.call(
            Enqueue(
                tuple(
                    _want(holder, first + place, mode, low, high, BLOCK_NOWAIT)
                    for place, (mode, low, high) in enumerate(wants)
                ),
                (),
            )
        )
        for granted, (_, low, high) in zip(reply.granted, wants, strict=False):
            if granted.status:
                set_range(holder.records, low, high, NL if holder.bsd else request.mode)  # a BSD lock was dropped first

    # what the import tells us -----------------------------------------------------------------------------------

    def completed(self, granted: Granted) -> int:
        """A waiting request is granted, or refused after all (EDEADLK). 0, or -EINVAL: nobody waits."""
        request = self._requests.get(granted.handle)
        if request is None or request.future.done():
            return -errno.EINVAL
        if granted.status:
            self._over(request, OpError(-granted.status))
        else:
            self._granted(request)
        return 0

    def wants_to_replay(self) -> list[Want]:
        """What is held, and what is waited for. What is on its way is sent again by the import."""
        wants = []
        for holder in self._holders.values():
            for record in holder.records:
                handle = self._imp.lock_handles(1)
                wants.append(_want(holder, handle, record.mode, record.start, record.end, REPLAYED | BLOCK_GRANTED))
        for request in self._requests.values():
            if request.waiting and not request.given_up:
                wants.append(request.want(REPLAYED | BLOCK_WAIT))
        return wants

    def lost_all(self, error: OpError | None = None) -> None:
        """Evicted (or closed): nobody here holds anything, who waits fails."""
        failure = error or Evicted(self._known.target)
        holders, self._holders = self._holders, {}
        for request in list(self._requests.values()):
            self._over(request, failure)
        for holder in holders.values():
            holder.records.clear()

    def describe(self) -> list[dict[str, Any]]:
        """Every owner's locks as data."""
        return [
            {
                "fid": holder.fid.hex(),
                "kind": "flock" if holder.bsd else "posix",
                "owner": holder.owner,
                "records": [tuple(record) for record in holder.records],
                "waiting": sum(request.waiting for request in holder.requests),
            }
            for holder in self._holders.values()
        ]


def _want(holder: _Holder, handle: int, mode: int, start: int, end: int, flags: int) -> Want:
    flags |= FLOCK_BSD if holder.bsd else 0
    return Want(handle, FLOCK, holder.fid, mode, flags, 0, 0, start, end, holder.owner, holder.pid)
