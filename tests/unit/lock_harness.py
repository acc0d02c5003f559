"""A Namespace with real exports on links of paper, on the simulator's loop: what it sends is read here, answered or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self

import msgpack
from ost_harness import NoNetwork

from lustrelite.ldlm.namespace import Namespace
from lustrelite.rpc.export import Call, Export, ServerLink
from lustrelite.rpc.node import Node
from lustrelite.tunables import Tunables
from lustrelite.wire.ldlm import EXTENT, FLOCK, IBITS, PR, PW, Granted, Lvb, Want
from lustrelite.wire.locks import CallbackHeader, decode_callback
from lustrelite.wire.message import BY_CLASS, RequestHeader, pack, unpack
from lustrelite.wire.ost import OBJECT_EOF
from lustrelite.wire.session import Ping

RES = b"\0" * 7 + b"\1"
FID = b"f" * 16


class Target:
    """As much of a target as locks need."""

    recoverable = True

    def __init__(self, node: Node, *, frozen: bool = False) -> None:
        self.node = node
        self.name = "test-OST0000"
        self.last_committed = 7
        self.values: dict[bytes, Lvb] = {}
        self.evicted: list[tuple[str, str]] = []
        self.lease_left_s = 0.0
        self.namespace = Namespace(node, self.name, evict=self.evict, frozen=frozen, lvb=self.values.get)

    def evict(self, export: Export, why: str) -> None:
        export.failed = True
        self.evicted.append((export.uuid, why))
        self.namespace.owner_evicted(export, self.lease_left_s)


class Peer:
    """A client: its export, and what it is told. `says` answers a callback's items; None: it is silent."""

    def __init__(self, target: Any, uuid: str) -> None:
        self.target = target
        self.export = Export(target, uuid, 0, 1, 1, target.node.now())
        self.peer = uuid
        self.heard: list[CallbackHeader] = []
        self.says: Callable[[Any], Any] | None = lambda item: None if type(item) is int else 0
        self.connect()

    def connect(self) -> None:
        self.export.link = ServerLink(None, self)  # type: ignore[arg-type]

    def cut(self) -> None:
        self.export.link = None

    def send(self, kind: int, header: bytes, bulk: Any = None) -> None:
        callback, _ = decode_callback(msgpack.unpackb(header, use_list=False))
        self.heard.append(callback)
        if self.says is not None:
            self.answer(callback, 0, (tuple(self.says(item) for item in callback.body[0]),))

    def answer(self, callback: CallbackHeader, status: int, body: Any) -> None:
        raw = unpack(pack(body))

        def now() -> None:
            if self.export.callbacks is not None:
                self.export.callbacks.answered(callback.number, status, raw)

        asyncio.get_running_loop().call_soon(now)

    def items(self, kind: type) -> list[Any]:
        return [item for callback in self.heard if type(callback.body) is kind for item in callback.body[0]]

    # requests

    def take(self, handle: int, mode: int = PW, start: int = 0, end: int = OBJECT_EOF, **more: Any) -> Granted:
        return self.target.namespace.take(self.export, extent(handle, mode, start, end, **more))  # type: ignore[no-any-return]

    def take_bits(self, handle: int, bits: int, mode: int = PR, **more: Any) -> Granted:
        return self.target.namespace.take(self.export, inode(handle, bits, mode, **more))  # type: ignore[no-any-return]

    def flock(self, handle: int, mode: int, start: int = 0, end: int = OBJECT_EOF, *, owner: int = 1, flags: int = 0) -> Granted:
        want = Want(handle, FLOCK, FID, mode, flags, 0, 0, start, end, owner, 100 + owner)
        return self.target.namespace.take(self.export, want)  # type: ignore[no-any-return]

    def cancel(self, *handles: int) -> None:
        self.target.namespace.cancel(self.export, handles)

    def call(self) -> Call:
        header = RequestHeader(1, 400, 1, 1, 0, 0, 0, 0, (), 1000, (0, 0), "", None, Ping())
        call = Call(ServerLink(None, self), header, BY_CLASS[Ping], None, 0.0)  # type: ignore[arg-type]
        call.export, call.target = self.export, self.target
        return call


def extent(handle: int, mode: int, start: int = 0, end: int = OBJECT_EOF, *, flags: int = 0, gid: int = 0) -> Want:
    return Want(handle, EXTENT, RES, mode, flags, 0, 0, start, end, gid, 0)


def inode(handle: int, bits: int, mode: int = PR, *, fid: bytes = FID, flags: int = 0, try_bits: int = 0) -> Want:
    return Want(handle, IBITS, fid, mode, flags, bits, try_bits, 0, 0, 0, 0)


class Bench:
    """A namespace and three clients."""

    def __init__(self, **tunables: Any) -> None:
        self.node = Node("oss", NoNetwork(), tunables=Tunables(**tunables), seed=1)
        self.target = Target(self.node)
        self.target.values[RES] = Lvb(100, 8, 1, 2, 3)
        self.locks = self.target.namespace
        self.a, self.b, self.c = (Peer(self.target, name) for name in "abc")

    @classmethod
    def disputed(cls, **tunables: Any) -> Self:
        """A bench whose a has the lock of RES, as 1, and b wants it, as 2: in the next turn a is asked."""
        bench = cls(**tunables)
        bench.a.take(1)
        bench.b.take(2)
        return bench

    def saw(self, name: str) -> int:
        return self.node.events.counts[name]


async def turn() -> None:
    """Until what was said in this turn was sent and answered."""
    for _ in range(4):
        await asyncio.sleep(0)
