"""The connection to the kernel: requests come from /dev/fuse, answers and notifications go there.

Requests are read in the loop, several in a turn. Each is begun at once, in that turn; if it waits for nothing it is
answered in it, without a task. One that waits goes on in a task of the node, so nobody waits for anybody else. When a
signal comes for its caller the kernel says so. A wait for a record lock then ends (the task is cancelled, the answer is
EINTR); everything else goes on, as on a disk, until the signal is one that the caller dies of: programs take EINTR of
an fsync for a broken disk. Data of a WRITE is received where it stays until the write is over.

An answer or a notification that finds nobody is no error. A connection that the kernel has ended (unmounted: ENODEV;
aborted, `umount -f`: ECONNABORTED) ends the session: `ended` says which.

`notify` returns at once. `invalidate` may wait for pages that are being read or written, so it runs in threads that are
here for nothing else; who waits for it must be prepared for an answer that needs the loop (inodes.py). Such a thread keeps
the device open, and cannot be killed before that request is answered: `close` fails all that is asked until it is back, and
of a process that is killed meanwhile only `umount -f` takes the mount away. So nobody invalidates what he knows to be busy.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CoroutineType
from typing import Any

from lustrelite.errors import OpError
from lustrelite.fuse import kernel
from lustrelite.fuse.kernel import HEADER, HEADER_BYTES, OUT_HEADER, WRITE_HEAD_BYTES, init, op
from lustrelite.rpc.buffers import BufferPool
from lustrelite.rpc.node import Node

TURN_REQUESTS = 16  # read in one turn of the loop
INVALIDATORS = 32  # threads that may wait for the kernel
SIGNAL_LOOK_S = 0.1  # has the signalled caller of a request got one that it dies of?
STILL_LOOK_S, STILL_LOOKS = 0.001, 1000  # so often it is looked whether one of them waits for a page
REFUSE_LOOK_S = 0.005  # so often it is looked, when we hang up, whether one of them is still on its way
PIECES_MAX = 512  # of one answer: IOV_MAX is 1024
BACKGROUND = 64  # reads ahead and the like that the kernel may have on their way

_UNANSWERED = (op.FORGET, op.BATCH_FORGET, op.INTERRUPT)

Buffer = bytes | bytearray | memoryview
Answer = bytes | memoryview | Sequence[memoryview] | None  # several pieces; None: an empty one
Later = Coroutine[Any, Any, Answer]
Handler = Callable[["Request", memoryview], Answer | Later]  # one that need not wait may answer without a coroutine


class Request:
    """One request of the kernel."""

    __slots__ = ("data", "gid", "interrupted", "node", "opcode", "pid", "task", "uid", "unique")

    def __init__(self, opcode: int, unique: int, node: int, uid: int, gid: int, pid: int) -> None:
        self.opcode = opcode
        self.unique = unique
        self.node = node  # number of the inode that it is about
        self.uid = uid
        self.gid = gid
        self.pid = pid
        self.data: memoryview | None = None  # of a WRITE
        self.task: asyncio.Task[None] | None = None  # if it waits
        self.interrupted = False

    def __repr__(self) -> str:
        return f"{kernel.OP_NAMES.get(self.opcode, self.opcode)} {self.unique} of node {self.node}"


class _Rest:
    """What is left of a coroutine that was begun outside of a task and waits for `first`: to be awaited in one."""

    def __init__(self, coro: Coroutine[Any, Any, Answer], first: Any) -> None:
        self.coro = coro
        self.first = first
        self.throw = coro.throw

    def __await__(self) -> Generator[Any, Any, Answer]:
        return self  # type: ignore[return-value]

    def __iter__(self) -> _Rest:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """What it waits for next."""
        if self.first is not _BEGUN:
            first, self.first = self.first, _BEGUN
            return first
        return self.coro.send(value)


_BEGUN = object()


class Session:
    """One mounted connection."""

    def __init__(self, node: Node, fd: int) -> None:
        self.node = node
        self.fd = fd
        self.handlers: dict[int, Handler] = {}
        self.silent: dict[int, Callable[[memoryview, Request], None]] = {}  # operations that are not answered
        self.in_task: dict[int, None] = {}  # operations that must be begun in a task
        self.on_stale: Callable[[int], None] = lambda pid: None  # a thread is about to hear ESTALE
        self.wanted_flags = 0
        self.minor = 0
        self.flags = 0
        loop = asyncio.get_running_loop()
        self.initialised: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()  # errno
        self.closed: asyncio.Future[None] = loop.create_future()
        self.pending: dict[int, Request] = {}  # those that wait, by unique
        self.counts: dict[int, int] = {}  # requests by operation
        self.waited = 0  # requests that needed a task
        self.seconds: dict[int, float] = {}  # that those have taken, by operation
        self.notified = 0
        self._loop = loop
        self._pool = BufferPool()
        self._head = bytearray(WRITE_HEAD_BYTES)
        self._data = self._pool.take(kernel.WRITE_BYTES_MAX)
        self._threads = ThreadPoolExecutor(INVALIDATORS, thread_name_prefix="fuse")
        self._telling: dict[asyncio.Future[None], None] = {}  # what they are at
        self._closing = False

    def start(self) -> None:
        """Begin to listen."""
        os.set_blocking(self.fd, False)
        self._loop.add_reader(self.fd, self._readable)

    # requests -----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self.node.spinner is not None:
            self.node.spinner.received()
        self.receive()

    def receive(self) -> None:
        """Begin what the kernel has asked by now."""
        for _ in range(TURN_REQUESTS):
            try:
                length = os.readv(self.fd, (self._head, self._data))
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno == errno.ENOENT:  # taken back before we saw it
                    continue
                self._end(error.errno or errno.EIO)
                return
            self._received(length)
            if self.ended.done():
                return

    def _received(self, length: int) -> None:
        head = bytes(self._head)
        told, opcode, unique, node, uid, gid, pid, _, _ = HEADER.unpack_from(head)
        if length < HEADER_BYTES or told != length:
            self.node.events.emit("fuse.malformed", level="warning", why=f"{length} bytes: {head[:length].hex()}")
            return
        self.counts[opcode] = self.counts.get(opcode, 0) + 1
        request = Request(opcode, unique, node, uid, gid, pid)
        if opcode == op.WRITE:
            request.data = self._data[: max(length - WRITE_HEAD_BYTES, 0)]
            body = memoryview(head)[HEADER_BYTES : min(length, WRITE_HEAD_BYTES)]
        elif length <= WRITE_HEAD_BYTES:
            body = memoryview(head)[HEADER_BYTES:length]
        else:
            body = memoryview(head[HEADER_BYTES:] + self._data[: length - WRITE_HEAD_BYTES])
        try:
            self._begin(request, body)
        except kernel.Malformed as error:
            self.node.events.emit("fuse.malformed", level="warning", why=str(error))
            self.fail(request, errno.EINVAL)
        if opcode == op.WRITE:
            del request, body
            self._data = memoryview(b"")
            self._data = self._pool.take(kernel.WRITE_BYTES_MAX)  # the same, if nobody looks at it any more

    def _begin(self, request: Request, body: memoryview) -> None:
        opcode = request.opcode
        handler = self.handlers.get(opcode)
        if handler is None:
            silent = self.silent.get(opcode)
            if silent is not None:
                silent(body, request)
            elif opcode == op.INTERRUPT:
                self._interrupt(kernel.decode(opcode, body)[0][0])
            elif opcode == op.INIT:
                self._init(request, body)
            else:
                self.fail(request, errno.ENOSYS)
            return
        try:
            answer = handler(request, body)
            if type(answer) is not CoroutineType:
                self.answer(request, answer)  # type: ignore[arg-type]
                return
            if opcode in self.in_task:
                self._wait(request, answer)
                return
            waiting = answer.send(None)
        except StopIteration as done:
            self.answer(request, done.value)
        except OpError as error:
            self.fail(request, error.errno)
        else:
            self._wait(request, _Rest(answer, waiting))

    def _wait(self, request: Request, rest: Any) -> None:
        self.waited += 1
        self.pending[request.unique] = request
        request.task = self.node.spawn(self._finish(request, rest), "fuse")

    async def _finish(self, request: Request, rest: Any) -> None:
        began = self._loop.time()
        try:
            answer = await rest
        except OpError as error:
            self.fail(request, error.errno)
        except kernel.Malformed as error:
            self.node.events.emit("fuse.malformed", level="warning", why=str(error))
            self.fail(request, errno.EINVAL)
        except asyncio.CancelledError:
            self.fail(request, errno.EINTR)
            if not request.interrupted:
                raise
        else:
            self.answer(request, answer)
        finally:
            self.pending.pop(request.unique, None)
            took = self._loop.time() - began
            self.seconds[request.opcode] = self.seconds.get(request.opcode, 0.0) + took

    def _interrupt(self, unique: int) -> None:
        """The caller of a request has got a signal. If it is answered already, that is that."""
        request = self.pending.get(unique)
        if request is None or request.task is None or request.interrupted:
            return
        if request.opcode == op.SETLKW or _dies(request.pid):
            request.interrupted = True
            self._loop.call_soon(request.task.cancel)  # not before its first step: nobody would answer
        else:
            self._loop.call_later(SIGNAL_LOOK_S, self._interrupt, unique)  # the kernel does not tell of the next one

    def _init(self, request: Request, body: memoryview) -> None:
        (major, minor, readahead, flags), _, rest = kernel.decode(op.INIT, body)
        if major != kernel.VERSION or minor < kernel.MINOR_LEAST:
            self.fail(request, errno.EPROTO)
            if not self.initialised.done():
                why = f"the kernel speaks FUSE {major}.{minor}, {kernel.VERSION}.{kernel.MINOR_LEAST} is needed"
                self.initialised.set_exception(OpError(errno.EPROTO, why))
            return
        self.minor = min(minor, kernel.MINOR)
        offered = kernel.init_flags(flags, rest)
        self.flags = self.wanted_flags & offered
        self.answer(request, kernel.init_out(self.minor, self.flags, readahead, BACKGROUND))
        if not self.initialised.done():
            self.initialised.set_result(None)

    # answers ------------------------------------------------------------------------------------------------------

    def answer(self, request: Request, answer: Answer) -> None:
        """It is done."""
        if answer is None:
            self._write((OUT_HEADER.pack(16, 0, request.unique),))
        elif isinstance(answer, bytes | memoryview):
            self._write((OUT_HEADER.pack(16 + len(answer), 0, request.unique), answer))
        else:
            if len(answer) >= PIECES_MAX:
                answer = (memoryview(b"".join(answer)),)
            self._write((OUT_HEADER.pack(16 + sum(map(len, answer)), 0, request.unique), *answer))

    def fail(self, request: Request, number: int) -> None:
        """It is refused: errno."""
        if number == errno.ESTALE:
            self.on_stale(request.pid)
        self._write((OUT_HEADER.pack(16, -number, request.unique),))

    def _write(self, parts: Sequence[Buffer]) -> None:
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            if error.errno != errno.ENOENT and not self.ended.done():  # ENOENT: nobody waits for it any more
                if error.errno in (errno.EINVAL, errno.E2BIG):
                    raise
                self._end(error.errno or errno.EIO)

    # telling the kernel -------------------------------------------------------------------------------------------

    def notify(self, message: bytes) -> bool:
        """Tell it something that it does at once; False if it does not know the inode."""
        if self.ended.done():
            return True
        self.notified += 1
        try:
            os.write(self.fd, message)
        except OSError as error:
            return error.errno != errno.ENOENT
        return True

    def invalidate(self, messages: Sequence[bytes]) -> asyncio.Future[None]:
        """Tell it to forget pages, one range after the other; done when it has."""
        self.notified += len(messages)
        return self._in_thread(_tell_all, self.fd, messages)

    def _in_thread(self, tell: Callable[..., None], *args: Any) -> asyncio.Future[None]:
        if self.ended.done():
            nothing: asyncio.Future[None] = self._loop.create_future()
            nothing.set_result(None)
            return nothing
        work = self._loop.run_in_executor(self._threads, tell, *args)
        self._telling[work] = None
        work.add_done_callback(self._telling.pop)
        return work

    async def begin_to_invalidate(self, message: bytes) -> asyncio.Future[None]:
        """The same of one range, but it is done, or waits for a page that is being read or written, when this returns."""
        thread: list[int] = []
        work = self._in_thread(_tell, self.fd, message, thread)
        for _ in range(STILL_LOOKS):
            await asyncio.wait([work], timeout=STILL_LOOK_S)
            if work.done() or (thread and _stands_still(thread[0])):
                break
        return work

    # the end ------------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Does the kernel still ask?"""
        return not self.ended.done()

    def _end(self, number: int) -> None:
        if self.ended.done():
            return
        self._loop.remove_reader(self.fd)
        self.ended.set_result(number)
        if not self.initialised.done():
            self.initialised.set_exception(OpError(errno.ENODEV, "unmounted before it was usable"))
            self.initialised.exception()  # seen: perhaps nobody waits
        for request in list(self.pending.values()):
            if request.task is not None:
                request.interrupted = True
                request.task.cancel()

    def close(self) -> None:
        """Hang up: whatever the kernel still waits for fails. It is `closed` when no thread needs the device any more."""
        self._end(errno.ENODEV)
        if self._closing:
            return
        self._closing = True
        for request in list(self.pending.values()):
            self.fail(request, errno.ECONNABORTED)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._hang_up()

    def _hang_up(self) -> None:
        self._refuse()
        if self._telling:
            self._loop.call_later(REFUSE_LOOK_S, self._hang_up)
            return
        os.close(self.fd)
        self.fd = -1
        self.closed.set_result(None)

    def _refuse(self) -> None:
        """Fail what the kernel has asked meanwhile, as it does itself when the device is closed."""
        for _ in range(TURN_REQUESTS):
            try:
                length = os.readv(self.fd, (self._head, self._data))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue
                return
            if length < HEADER_BYTES:
                return
            _, opcode, unique, *_ = HEADER.unpack_from(self._head)
            if opcode not in _UNANSWERED:
                self._write((OUT_HEADER.pack(16, -errno.ECONNABORTED, unique),))


def _dies(pid: int) -> bool:
    """Is the process (a thread) about to die of a signal, or gone?

    Source: complete_signal(): every thread gets a SIGKILL
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return True  # or in a namespace that we do not see: it can be killed, at the price of other signals' EINTR
    pending = status[status.find(b"\nSigPnd:") + 8 :].split(None, 1)[0]
    return bool(int(pending, 16) & 1 << signal.SIGKILL - 1)


def is_exiting(pid: int) -> bool:
    """Is the process (a thread) in exit(2), where no signal reaches it any more, or gone?

    Source: PF_EXITING, include/linux/sched.h; proc_pid_stat(5)
    """
    try:
        return bool(int(_stat(pid)[6]) & 0x4)
    except OSError:
        return True  # or in a namespace that we do not see: his close(2) waits for nobody


def _stands_still(thread: int) -> bool:
    """Does a thread of this process wait in the kernel for a page?

    Source: folio_lock(), TASK_UNINTERRUPTIBLE; proc_pid_stat(5)
    """
    return _stat(thread)[0] == b"D"


def _stat(pid: int) -> list[bytes]:
    """What the kernel says of a process (a thread), from its state on."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _tell(fd: int, message: bytes, thread: list[int]) -> None:
    thread.append(threading.get_native_id())
    _tell_all(fd, (message,))


def _tell_all(fd: int, messages: Sequence[bytes]) -> None:
    for message in messages:
        try:
            os.write(fd, message)
        except OSError:
            pass  # an inode that it does not know, or a connection that is gone: nothing is kept there


WANTED_FLAGS = (
    init.ASYNC_READ | init.POSIX_LOCKS | init.ATOMIC_O_TRUNC | init.BIG_WRITES | init.FLOCK_LOCKS | init.AUTO_INVAL_DATA
    | init.DO_READDIRPLUS | init.READDIRPLUS_AUTO | init.ASYNC_DIO | init.PARALLEL_DIROPS | init.ABORT_ERROR
    | init.MAX_PAGES | init.CACHE_SYMLINKS | init.NO_OPENDIR_SUPPORT | init.HANDLE_KILLPRIV_V2 | init.SETXATTR_EXT
    | init.INIT_EXT | init.POSIX_ACL | init.DONT_MASK | init.DIRECT_IO_ALLOW_MMAP
)  # fmt: skip
