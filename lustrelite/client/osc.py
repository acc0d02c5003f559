"""The client's side of one OST: objects by number, a bounded number of data RPCs in flight.

Data is given as pieces, because one object's share of a file's range is scattered over the caller's buffer when stripe
units are short. One piece travels without a copy; several are joined for the RPC, inside the bound, so that the memory
for it is bounded too. Buffers may not change, nor be used for anything else, until the call has returned.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lustrelite.errors import OpError
from lustrelite.ids import Fid
from lustrelite.recovery.import_fsm import State
from lustrelite.rpc.node import Node
from lustrelite.tunables import limits
from lustrelite.wire import ost
from lustrelite.wire.mdt import StatfsReply
from lustrelite.wire.message import ROOT_CRED, Cred
from lustrelite.wire.ost import ObjectAttr

if TYPE_CHECKING:
    from lustrelite.client.data_cache import DataCache
    from lustrelite.ldlm.client_lock import ClientLock
    from lustrelite.ldlm.lock_cache import LockCache


class DataImport(Protocol):
    """What is needed of rpc.client_import.ClientImport."""

    max_bytes_per_rpc: int

    async def call(
        self, body: Any, *, cred: Cred = ROOT_CRED, timeout_s: float | None = None,
        ended: Callable[[Any, int], None] | None = None,
    ) -> Any:  # fmt: skip
        """Send `body`, return the reply's body; `ended` gets it in the turn in which it comes."""

    async def call_bulk(
        self, body: Any, *, bulk: Any = None, sink: memoryview | None = None, cred: Cred = ROOT_CRED
    ) -> tuple[Any, memoryview | None]:
        """The same with data out of `bulk` or into the beginning of `sink`."""

    def xid_of(self, body: Any) -> int:
        """The XID under which `body` was sent; 0: it was not sent yet, or is answered."""


class Osc:
    """One OST."""

    def __init__(self, node: Node, imp: DataImport, index: int) -> None:
        self.node = node
        self.imp = imp
        self.index = index
        self.locks: LockCache | None = getattr(imp, "locks", None)  # None: this client does not cache
        self.data: DataCache | None = None  # if it does
        self._limit = 0
        self._slots = asyncio.Semaphore(0)

    @property
    def bytes_max(self) -> int:
        """The most data that one RPC may carry."""
        return min(self.imp.max_bytes_per_rpc, limits.brw_bytes_max)

    @property
    def name(self) -> str:
        """The target's name, for messages."""
        return getattr(self.imp, "target", f"OST{self.index:04x}")

    @property
    def inactive(self) -> bool:
        """Is it switched off by the administrator?"""
        return getattr(self.imp, "inactive", False)

    @property
    def reachable(self) -> bool:
        """Is it connected, and in use?"""
        return getattr(self.imp, "state", State.FULL) is State.FULL and not self.inactive

    @property
    def last_committed(self) -> int:
        """Everything up to this transno is durable on the OST."""
        return getattr(self.imp, "last_committed", 0)

    @property
    def connection(self) -> int:
        """Number of the present connection, 0 if there is none."""
        return getattr(self.imp, "connection", 0)

    def slots(self) -> asyncio.Semaphore:
        """Who moves data takes one: so many RPCs may be in flight."""
        # A changed limit starts a new semaphore; who waits on the old one is served by it.
        if self._limit != self.node.tunables.max_rpcs_in_flight:
            self._limit = self.node.tunables.max_rpcs_in_flight
            self._slots = asyncio.Semaphore(max(self._limit, 1))
        return self._slots

    def forget(self, lock: ClientLock) -> None:
        """What is believed under the lock may be wrong: it goes as soon as nobody uses it."""
        assert self.locks is not None
        self.locks.cancel(lock)

    def is_promised(self, handle: int) -> bool:
        """Has the OST not heard of this lock yet?"""
        return self.locks is not None and handle in self.locks.promised.unheard

    def redeem_soon(self, handles: Sequence[int]) -> None:
        """Let it hear of those that it has not heard of."""
        if self.locks is not None:
            self.locks.promised.redeem_soon(handles)

    async def redeem(self, handle: int) -> None:
        """Return when the OST knows of a lock that it is about to be told of.  Errors: ENOENT, Evicted"""
        if self.locks is not None:
            await self.locks.promised.redeem(handle)

    async def read(
        self, obj: int, offset: int, pieces: list[memoryview], *, cred: Cred, lock: int = 0
    ) -> tuple[int, int]:
        """Read into `pieces` in turn and return (bytes read, the object's size): fewer only at the object's end.

        What is not read stays as it was.  ENOENT; ESTALE, there is no such `lock`
        """
        length = sum(map(len, pieces))
        assert 0 < length <= limits.brw_bytes_max
        async with self.slots():
            sink = pieces[0] if len(pieces) == 1 else memoryview(bytearray(length))
            done = size = 0
            while done < length:
                rest = sink[done:]
                reply, data = await self.imp.call_bulk(
                    ost.Read(obj, offset + done, len(rest), lock), sink=rest, cred=cred
                )
                got: int = reply.length
                assert got == (0 if data is None else len(data)) and got <= len(rest), "the OST counts its bytes right"
                if data is not None and data.obj is not rest.obj:
                    rest[:got] = data
                size = reply.size
                done += got
                if not got or offset + done >= size:
                    break
            if len(pieces) > 1:
                _scatter(sink[:done], pieces)
            return done, size

    async def read_many(
        self, rows: list[tuple[int, int, int]], *, cred: Cred
    ) -> tuple[tuple[tuple[int, int], ...], memoryview]:  # fmt: skip
        """See ost.ReadMany: ((length or -1, size) of each, their data one after the other).  EPROTO"""
        async with self.slots():
            sink = memoryview(bytearray(sum(length for _, length, _ in rows)))
            reply, data = await self.imp.call_bulk(ost.ReadMany(tuple(rows)), sink=sink, cred=cred)
            answers: tuple[tuple[int, int], ...] = reply.rows
            data = data if data is not None else sink[:0]
            if len(answers) != len(rows) or sum(max(length, 0) for length, _ in answers) != len(data):
                raise OpError(errno.EPROTO, f"{self.name} does not say whose data that is")
            return answers, data

    async def write(
        self, obj: int, offset: int, pieces: list[memoryview], *, owner: Fid, stripe: int, time: int, cred: Cred
    ) -> ObjectAttr:
        """Write `pieces` in turn at `offset`.  ENOENT, ENOSPC, EFBIG, EIO"""
        async with self.slots():
            bulk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            assert 0 < len(bulk) <= limits.brw_bytes_max
            reply, _ = await self.imp.call_bulk(ost.Write(obj, offset, owner, stripe, time, sync=True), bulk=bulk, cred=cred)
            return reply.attr  # type: ignore[no-any-return]

    async def change(self, body: ost.Punch | ost.Fallocate, *, cred: Cred) -> ObjectAttr:
        """A hole, a truncation, or room for data.  ENOENT, ENOSPC, EFBIG, EOPNOTSUPP"""
        return await self.imp.call(body, cred=cred)  # type: ignore[no-any-return]

    async def seek(self, obj: int, offset: int, whence: int, *, cred: Cred, lock: int = 0) -> ost.SeekReply:
        """The next data or hole from `offset` on, and the object's size.  ENOENT; ESTALE, there is no such `lock`"""
        return await self.imp.call(ost.ObjectSeek(obj, offset, whence, lock), cred=cred)  # type: ignore[no-any-return]

    async def getattr(self, obj: int, *, cred: Cred) -> ObjectAttr:
        """Attributes of an object.  ENOENT"""
        return await self.imp.call(ost.ObjectGetattr(obj), cred=cred)  # type: ignore[no-any-return]

    async def sync(self, obj: int = 0) -> None:
        """Return when everything executed so far is durable; of one object, or of all with 0."""
        await self.imp.call(ost.OstSync(obj))

    async def statfs(self) -> StatfsReply:
        """Space of the OST."""
        return await self.imp.call(ost.OstStatfs())  # type: ignore[no-any-return]


def _scatter(data: memoryview, pieces: list[memoryview]) -> None:
    start = 0
    for piece in pieces:
        part = data[start : start + len(piece)]
        piece[: len(part)] = part
        start += len(piece)
