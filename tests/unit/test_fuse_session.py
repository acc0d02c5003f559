"""The session with the kernel, which is here the other end of a socket that keeps messages apart."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import struct
import threading
from collections.abc import AsyncIterator

import pytest

from lustrelite.errors import OpError
from lustrelite.fuse import kernel, session
from lustrelite.fuse.kernel import HEADER, init, op
from lustrelite.fuse.session import SIGNAL_LOOK_S, WANTED_FLAGS, Answer, Request, Session
from lustrelite.rpc.node import Node
from lustrelite.rpc.spinner import Spinner
from lustrelite.rpc.transport import SocketNetwork

NOBODY = 0  # no such process


class FakeKernel:
    """What is on the other side of /dev/fuse."""

    def __init__(self) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.ours.setblocking(False)
        self.node = Node("fuse", SocketNetwork(random.Random(1), name="fuse"))
        self.events: list[str] = []
        self.node.events.sinks.append(lambda event: self.events.append(event.name))
        self.session = Session(self.node, os.dup(theirs.fileno()))
        theirs.close()
        self.session.wanted_flags = WANTED_FLAGS

    def send(self, opcode: int, body: bytes = b"", *, unique: int = 1, node: int = 1, length: int | None = None, pid: int = 1) -> None:
        length = HEADER.size + len(body) if length is None else length
        self.ours.send(HEADER.pack(length, opcode, unique, node, 0, 0, pid, 0, 0) + body)

    async def answer(self) -> tuple[int, int, bytes]:
        """(unique, errno, body)"""
        raw = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.ours, 2 << 20), 5)
        length, error, unique = struct.unpack_from("<IiQ", raw)
        assert length == len(raw)
        return unique, -error, raw[16:]


@pytest.fixture
async def fake() -> AsyncIterator[FakeKernel]:
    found = FakeKernel()
    found.session.start()
    yield found
    found.session.close()
    found.ours.close()
    await found.node.stop_tasks()


def init_body(minor: int, flags: int) -> bytes:
    return struct.pack("<IIIII", 7, minor, 131072, flags & 0xFFFFFFFF, flags >> 32) + bytes(44)


async def test_init_agrees_on_what_both_know(fake: FakeKernel) -> None:
    fake.send(op.INIT, init_body(99, init.INIT_EXT | init.FLOCK_LOCKS | init.WRITEBACK_CACHE))
    _, error, body = await fake.answer()
    major, minor, _, flags = struct.unpack_from("<IIII", body)
    assert (error, major, minor, flags) == (0, 7, kernel.MINOR, init.INIT_EXT | init.FLOCK_LOCKS)
    await fake.session.initialised


async def test_an_old_kernel_is_refused(fake: FakeKernel) -> None:
    fake.send(op.INIT, init_body(20, 0))
    assert (await fake.answer())[1] == errno.EPROTO
    with pytest.raises(OpError, match=r"FUSE 7\.20"):
        await fake.session.initialised


async def test_what_waits_for_nothing_needs_no_task(fake: FakeKernel) -> None:
    async def lookup(request: Request, body: memoryview) -> Answer:
        return b"=" + kernel.name_of(body)

    fake.session.handlers[op.LOOKUP] = lookup
    fake.send(op.LOOKUP, b"abc\0", unique=5)
    assert await fake.answer() == (5, 0, b"=abc")
    assert fake.session.waited == 0


async def test_an_answer_that_is_there_needs_no_coroutine(fake: FakeKernel) -> None:
    def lookup(request: Request, body: memoryview) -> Answer:
        if kernel.name_of(body) == b"none":
            raise OpError(errno.ENOENT)
        return b"=" + kernel.name_of(body)

    fake.session.handlers[op.LOOKUP] = lookup
    fake.send(op.LOOKUP, b"abc\0", unique=5)
    assert await fake.answer() == (5, 0, b"=abc")
    fake.send(op.LOOKUP, b"none\0", unique=6)
    assert await fake.answer() == (6, errno.ENOENT, b"")


async def test_requests_are_worth_looking_for_more(fake: FakeKernel) -> None:
    spinner = fake.node.spinner = Spinner(fake.node.tunables, fake.node.workers)
    received: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spinner, "received", lambda: received.append(1))
        fake.session.handlers[op.LOOKUP] = lambda request, body: b""
        for unique in (5, 6):
            fake.send(op.LOOKUP, b"x\0", unique=unique)
            assert (await fake.answer())[0] == unique
    assert len(received) == 2


async def test_one_that_waits_holds_up_nobody_and_can_be_interrupted(fake: FakeKernel) -> None:
    gate = asyncio.get_running_loop().create_future()
    trail: list[str] = []

    async def read(request: Request, body: memoryview) -> Answer:
        try:
            await asyncio.sleep(0)
            await asyncio.shield(gate)
            return b"late"
        finally:
            trail.append("over")

    async def lookup(request: Request, body: memoryview) -> Answer:
        raise OpError(errno.ENOENT)

    fake.session.handlers = {op.READ: read, op.LOOKUP: lookup}
    fake.send(op.READ, bytes(40), unique=2, pid=NOBODY)
    fake.send(op.READ, bytes(40), unique=4)
    fake.send(op.LOOKUP, b"x\0", unique=6)
    assert await fake.answer() == (6, errno.ENOENT, b"")
    fake.send(op.INTERRUPT, struct.pack("<Q", 2), unique=3)
    fake.send(op.INTERRUPT, struct.pack("<Q", 77), unique=5)  # answered long ago
    assert await fake.answer() == (2, errno.EINTR, b"")
    assert trail == ["over"]
    gate.set_result(None)
    assert await fake.answer() == (4, 0, b"late")
    assert not fake.session.pending


async def test_only_a_deadly_signal_interrupts_what_is_no_wait_for_a_lock(fake: FakeKernel) -> None:
    """A program that gets a timer's signal in its fsync would believe EINTR to be a broken disk."""
    gate = asyncio.get_running_loop().create_future()

    async def wait(request: Request, body: memoryview) -> Answer:
        await asyncio.shield(gate)
        return b"done"

    fake.session.handlers = {op.FSYNC: wait, op.SETLKW: wait}
    process = await asyncio.create_subprocess_exec("sleep", "60")
    for opcode, unique, pid in ((op.SETLKW, 2, 1), (op.FSYNC, 4, 1), (op.FSYNC, 6, process.pid)):
        fake.send(opcode, bytes(48), unique=unique, pid=pid)
        fake.send(op.INTERRUPT, struct.pack("<Q", unique), unique=unique + 1)  # in the same turn: it has only begun
    assert await fake.answer() == (2, errno.EINTR, b"")
    await asyncio.sleep(2 * SIGNAL_LOOK_S)
    assert list(fake.session.pending) == [4, 6]
    process.kill()
    await process.wait()
    assert await fake.answer() == (6, errno.EINTR, b"")
    gate.set_result(None)
    assert await fake.answer() == (4, 0, b"done")
    assert not fake.session.pending


async def test_data_of_a_write_stays_while_it_waits(fake: FakeKernel) -> None:
    gates = [asyncio.get_running_loop().create_future() for _ in range(2)]
    seen: list[bytes] = []

    async def write(request: Request, body: memoryview) -> Answer:
        handle = kernel.decode(op.WRITE, body)[0][0]
        assert request.data is not None
        await gates[handle]
        seen.append(bytes(request.data))
        return None

    fake.session.handlers[op.WRITE] = write
    first, second = b"a" * 5000, b"b" * 70000
    for number, data in enumerate((first, second)):
        fake.send(op.WRITE, struct.pack("<QQIIQII", number, 0, len(data), 0, 0, 0, 0) + data, unique=number + 2)
    await asyncio.sleep(0.05)
    gates[1].set_result(None)
    await fake.answer()
    gates[0].set_result(None)
    await fake.answer()
    assert seen == [second, first]


async def test_garbage_is_answered_or_passed_over(fake: FakeKernel) -> None:
    async def getattr_(request: Request, body: memoryview) -> Answer:
        kernel.decode(op.GETATTR, body)
        return b"ok"

    fake.session.handlers[op.GETATTR] = getattr_
    fake.send(op.GETATTR, b"short", unique=2)
    assert (await fake.answer())[:2] == (2, errno.EINVAL)
    fake.send(9999, b"what", unique=3)
    assert (await fake.answer())[:2] == (3, errno.ENOSYS)
    fake.send(op.GETATTR, bytes(16), unique=4, length=17)  # says another length than it has: nobody to answer
    fake.ours.send(b"\0" * 8)
    fake.send(op.INTERRUPT, b"", unique=5)
    await fake.answer()
    fake.send(op.GETATTR, bytes(16), unique=6)
    assert await fake.answer() == (6, 0, b"ok")
    assert fake.events.count("fuse.malformed") == 4


async def test_the_end_of_the_connection_ends_what_waits(fake: FakeKernel) -> None:
    ended = asyncio.get_running_loop().create_future()

    async def read(request: Request, body: memoryview) -> Answer:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set_result(None)
        return None

    fake.session.handlers[op.READ] = read
    fake.send(op.READ, bytes(40))
    await asyncio.sleep(0.05)
    assert fake.session.pending
    fake.session.close()
    await asyncio.wait_for(ended, 5)
    assert not fake.session.alive


async def test_what_is_asked_fails_until_no_thread_needs_the_device_any_more(fake: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread waits for a page of a READ: only an answer frees it, for closing the device aborts nothing while it is in there."""
    answered = threading.Event()
    monkeypatch.setattr(session, "_tell_all", lambda fd, messages: answered.wait(10))

    async def read(request: Request, body: memoryview) -> Answer:
        return await asyncio.get_running_loop().create_future()

    fake.session.handlers[op.READ] = read
    fake.send(op.READ, bytes(40), unique=1)
    await asyncio.sleep(0.05)
    telling = fake.session.invalidate([b""])
    fake.send(op.READ, bytes(40), unique=2)
    fake.send(op.FORGET, bytes(8), unique=3)
    fake.send(op.READ, bytes(40), unique=4)
    fake.session.close()
    failed = [await fake.answer() for _ in range(3)]
    assert sorted(failed) == [(1, errno.ECONNABORTED, b""), (2, errno.ECONNABORTED, b""), (4, errno.ECONNABORTED, b"")]
    fake.send(op.GETATTR, bytes(16), unique=5)
    while (late := await fake.answer())[0] == 1:  # its task has ended, too
        pass
    assert late == (5, errno.ECONNABORTED, b"") and not fake.session.closed.done()
    answered.set()
    await asyncio.wait_for(fake.session.closed, 5)
    assert telling.done() and fake.session.fd < 0
    await fake.session.invalidate([b""])
