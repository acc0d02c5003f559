"""Links over real loopback sockets: a listener with what to take down, receivers that record, peers that are only bytes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Self

import pytest
import uvloop

from lustrelite.events import EventLog
from lustrelite.ids import Nid
from lustrelite.rpc import transport
from lustrelite.rpc.transport import SocketNetwork
from lustrelite.wire.frame import HELLO, PREFIX_BYTES, REPLY, crc32c, pack_prefix, unpack_prefix
from lustrelite.wire.message import pack, unpack
from lustrelite.wire.session import Hello

WAIT_S = 10.0  # a bound for what should happen at once
MIB = 1 << 20
TCP = Nid("127.0.0.1:0@tcp")

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on either loop; whatever the loop complains about fails the test."""
    complaints: list[dict[str, Any]] = []

    async def bounded(coro: Coroutine[Any, Any, None]) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with asyncio.timeout(30):
            await coro
        for _ in range(3):  # let aborted transports close
            await asyncio.sleep(0)

    def go(coro: Coroutine[Any, Any, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.SelectorEventLoop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded(coro))
        assert not complaints

    yield go


@pytest.fixture(params=["tcp", "unix"])
def nid(request: pytest.FixtureRequest, tmp_path: Any) -> Nid:
    return Nid("127.0.0.1:0@tcp" if request.param == "tcp" else f"{tmp_path}/s@unix")


class Recorder:
    """A receiver that keeps what it hears; `answer` is called with each frame."""

    def __init__(self, answer: Callable[[Any, int, Any, Any], None] | None = None) -> None:
        self.frames: list[tuple[int, Any, Any]] = []
        self.lost: list[str] = []
        self.memory: list[memoryview] = []
        self.answer = answer
        self._changed = asyncio.Event()

    def frame_received(self, link: Any, kind: int, header: Any, bulk: memoryview | None) -> None:
        assert not self.lost, "a frame after link_lost"
        self.frames.append((kind, header, bulk))
        self._changed.set()
        if self.answer is not None:
            self.answer(link, kind, header, bulk)

    def bulk_buffer(self, link: Any, kind: int, header: Any, length: int) -> memoryview:
        self.memory.append(memoryview(bytearray(length + 10))[:length])  # part of something larger, as a caller's may be
        return self.memory[-1]

    def link_lost(self, link: Any, why: str) -> None:
        assert link.closed
        self.lost.append(why)
        self._changed.set()

    async def until(self, *, frames: int = 0, lost: int = 0) -> None:
        """Wait for so many frames and losses."""
        async with asyncio.timeout(WAIT_S):
            while len(self.frames) < frames or len(self.lost) < lost:
                self._changed.clear()
                await self._changed.wait()


def echo(link: Any, kind: int, header: Any, bulk: Any) -> None:
    link.send(REPLY, pack(header), bulk)


class World:
    """A listener that answers, and everything to take down at the end."""

    def __init__(self, nid: Nid, answer: Any = echo, **bounds: Any) -> None:
        self.nid, self.answer = nid, answer
        self.events = EventLog("server", lambda: 0.0)
        self.network = SocketNetwork(random.Random(1), name="server", events=self.events, **bounds)
        self.caller = SocketNetwork(random.Random(2), name="caller")
        self.served: list[tuple[Any, Recorder]] = []  # accepted links and their receivers
        self.links: list[Any] = []

    async def __aenter__(self) -> Self:
        self.listener = await self.network.listen(self.nid, self._accept)
        self.nid = self.listener.nid
        return self

    def _accept(self, link: Any) -> Recorder:
        self.served.append((link, Recorder(self.answer)))
        return self.served[-1][1]

    async def connect(self, answer: Any = None, **options: Any) -> tuple[Any, Recorder]:
        receiver = Recorder(answer)
        link = await self.caller.connect(self.nid, receiver, **options)
        self.links.append(link)
        return link, receiver

    async def __aexit__(self, *_: object) -> None:
        self.listener.close()
        for link in [*self.links, *(link for link, _ in self.served)]:
            link.close("the test is over")
        await asyncio.sleep(0)
        for _, receiver in self.served:
            assert len(receiver.lost) == 1


class Raw:
    """A peer that is only bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(cls, nid: Nid) -> Raw:
        host, port, path = transport._parse(nid)
        return cls(*await (asyncio.open_unix_connection(path) if path else asyncio.open_connection(host, port)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    def frame(self, kind: int, value: Any, bulk: bytes = b"") -> None:
        header = pack(value)
        self.send(pack_prefix(kind, header, len(bulk), crc32c(bulk)), header, bulk)

    async def hello(self, link: int, index: int = 0, bulk_connections: int = 0) -> Hello:
        self.frame(HELLO, Hello(link, index, "raw", bulk_connections))
        kind, header, _ = await self.receive()
        assert kind == HELLO
        return Hello(*header)

    async def receive(self) -> tuple[int, Any, bytes]:
        async with asyncio.timeout(WAIT_S):
            prefix = unpack_prefix(await self.reader.readexactly(PREFIX_BYTES))
            header = unpack(await self.reader.readexactly(prefix.header_bytes))
            return prefix.kind, header, await self.reader.readexactly(prefix.bulk_bytes)

    async def cut(self) -> bool:
        """Wait until the other side has cut us off."""
        async with asyncio.timeout(WAIT_S):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
            return True
