"""The least that an RPC can cost here: length-prefixed frames of the same size, no msgpack, no protocol.

    python -m bench.bare_echo SOCKET     a server that sends every frame back
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time

from lustrelite.real_node import loop_factory

FRAME_BYTES = 100
_LENGTH = struct.Struct(">I")


class Echo(asyncio.Protocol):
    """Frames in, the same frames out, one write per wake-up."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data
        whole = len(data) // FRAME_BYTES * FRAME_BYTES
        self.transport.write(data[:whole])  # type: ignore[attr-defined]
        self.buffer = data[whole:]


class Caller(asyncio.Protocol):
    """Keeps futures for frames in flight, as a client must."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[None]] = {}
        self.number = 0
        self.out: list[bytes] = []
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def call(self) -> asyncio.Future[None]:
        """One round trip."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self.number += 1
        self.waiting[self.number] = future
        if not self.out:
            loop.call_soon(self.flush)
        self.out.append(_LENGTH.pack(self.number) + bytes(FRAME_BYTES - 4))
        return future

    def flush(self) -> None:
        self.transport.write(b"".join(self.out))  # type: ignore[attr-defined]
        self.out.clear()

    def data_received(self, data: bytes) -> None:
        data = self.buffer + data
        at = 0
        while len(data) - at >= FRAME_BYTES:
            self.waiting.pop(_LENGTH.unpack_from(data, at)[0]).set_result(None)
            at += FRAME_BYTES
        self.buffer = data[at:]


async def rate(path: str, in_flight: int, count: int) -> float:
    """Round trips per second to the echo server at `path`."""
    _, caller = await asyncio.get_running_loop().create_unix_connection(Caller, path)

    async def worker() -> None:
        for _ in range(count // in_flight):
            await caller.call()

    began = time.perf_counter()
    await asyncio.gather(*[worker() for _ in range(in_flight)])
    return count / (time.perf_counter() - began)


async def serve(path: str) -> None:
    """Echo until killed."""
    await asyncio.get_running_loop().create_unix_server(Echo, path)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(sys.argv[1]))
