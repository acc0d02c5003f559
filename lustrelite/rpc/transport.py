"""Links over TCP and Unix sockets. The only socket code of the protocol (control.py and metrics.py have their own).

A link is one control connection and N bulk connections, bound together by the HELLO that opens each of them:

    caller                                         listener
    HELLO(link, 0, name, bulk wanted)      ->      a new link, or the connection is cut
                                           <-      HELLO(link, 0, name, bulk granted)
    HELLO(link, i, ...) for i in 1..granted  ->    bound to that link
                                           <-      HELLO(link, i, ...); with the last one `accept` is called

A frame whose bulk is larger than limits.bulk_inline_bytes_max takes a bulk connection, prefix and header included, so
that a pipe full of data never holds up a ping or a cancel. The rest goes over the control connection, in order.

Rules kept here:

- The connections of a link live and die together: half a link would lose replies silently. The receiver hears
  `link_lost` once, from a turn of the loop of its own, never from inside `send` or `close`.
- Nothing is allocated on a peer's word before its length was bounded, and nothing is looked at before the header's
  checksum matched. Whoever breaks a rule loses its connection, and with it its own link, nobody else's.
- A bulk that does not match its checksum is no such breach: the frame is delivered with CORRUPT in place of the bulk
  and the peer sends it again.
- Bulk is received into the memory that the receiver names: only what came in one read with the header is copied.
- What a peer does not read is kept for it up to `unsent_bytes_max`, then the link is dropped.

Not here: timeouts of requests, pings and reconnecting (client_import), authentication (there is none: loopback only
unless told otherwise; the link id is a name, not a secret).

Chosen by measurement (`python -m bench` has the numbers of today): BufferedProtocol, inline dispatch, one write per
turn, no SO_SNDBUF for TCP, 4 MiB for Unix. uvloop is never imported: whoever starts the loop chooses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import random
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any, cast

from lustrelite.errors import LinkLost, OtherVersion, ProtocolError
from lustrelite.events import EventLog
from lustrelite.ids import Nid
from lustrelite.rpc.node import CORRUPT, Link, Receiver
from lustrelite.rpc.spinner import Spinner
from lustrelite.tunables import limits
from lustrelite.wire.frame import HELLO, PREFIX_BYTES, REFUSAL, crc32c, pack_prefix, unpack_prefix
from lustrelite.wire.message import checker, pack, unpack
from lustrelite.wire.session import Hello

CONTROL_BUFFER_BYTES = 64 << 10  # many frames in one wake-up
HEAD_BUFFER_BYTES = 4 << 10  # of a bulk connection, and of any before its HELLO: the bulk shall not land here
HELLO_BYTES_MAX = 1 << 10
PEER_NAME_CHARS_MAX = 255
JOIN_BYTES_MAX = 16 << 10  # copying this much is cheaper than another entry in the transport's queue
QUEUE_PARTS_MAX = 16  # eight frames
REST_BUFFER_BYTES = 16 << 10  # for a frame that came in part
NOTHING = memoryview(bytearray())
NO_FRAME: tuple[int, Any, memoryview, int] = (0, None, CORRUPT, 0)  # kind, header, whole bulk, its CRC
UNIX_SEND_BUFFER_BYTES = 4 << 20
SO_SNDBUFFORCE = 32  # asm-generic/socket.h; not in Python's socket module
BACKLOG = 1024
FOLLOW_S = 5.0  # how often it is asked where a name that is listened at is

_check_hello = checker(Hello)


class SocketNetwork:
    """node.Network over sockets: NIDs are HOST:PORT@tcp and /PATH@unix.

    `name` is what peers call this process in their messages. `links_max`, `hello_wait_s` and `unsent_bytes_max` bound
    what strangers can make a process hold; `unsent_bytes_max` must exceed what honest peers have in flight on one link
    (RPCs in flight x bytes per RPC x targets in the process), or a slow one would be dropped for ever.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        name: str = "",
        events: EventLog | None = None,
        allow_remote: bool = False,
        bulk_connections_max: int = 4,
        links_max: int = limits.links_per_service_max,
        hello_wait_s: float = 5.0,
        unsent_bytes_max: int = 256 << 20,
    ) -> None:
        self.random = rng
        self.name = name
        self.events = events  # the node's; may be set later
        self.allow_remote = allow_remote
        self.bulk_connections_max = bulk_connections_max
        self.links_max = links_max
        self.hello_wait_s = hello_wait_s
        self.unsent_bytes_max = unsent_bytes_max
        self.spinner: Spinner | None = None  # this process's, if it looks for what comes next
        # Where every connection reads to: a read and what is done with it happen in one turn of the loop, so only an
        # unfinished frame needs memory of its own, and an idle connection has none.
        self.scratch = memoryview(bytearray(CONTROL_BUFFER_BYTES))

    async def connect(self, nid: Nid, receiver: Receiver, *, bulk_connections: int = 1) -> Link:
        """A link to whoever listens at `nid`; LinkLost if nobody does, or does not say HELLO in time; OtherVersion.

        A receiver whose connect failed hears no `link_lost`. A server that speaks first may be heard before `connect`
        returns.
        """
        link = SocketLink(self, nid, self.random.getrandbits(64))
        link.receiver = receiver
        try:
            async with asyncio.timeout(self.hello_wait_s):
                answer = await self._dial(link, 0, bulk_connections)
                link.peer = answer.peer
                if not 0 <= answer.bulk_connections <= bulk_connections:
                    raise LinkLost(f"{nid} granted {answer.bulk_connections} bulk connections")
                for index in range(1, answer.bulk_connections + 1):
                    await self._dial(link, index, answer.bulk_connections)
            if link.closed:  # between the last HELLO and this turn
                raise LinkLost(link.why)
            link.whole = True
        except (OSError, UnicodeError, ValueError) as error:  # OSError covers TimeoutError
            raise LinkLost(f"cannot connect to {nid}: {str(error) or 'no HELLO in time'}") from None
        finally:
            if not link.whole:  # also when our caller was cancelled
                link.drop("connect failed")
        return link

    async def _dial(self, link: SocketLink, index: int, bulk_connections: int) -> Hello:
        if link.closed:
            raise LinkLost(link.why)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Hello] = loop.create_future()
        link.waiter = answered

        def hello(connection: Connection, answer: Hello) -> None:
            if answered.cancelled():  # in this turn: who dials has been stopped, and is about to hang up
                return
            if answer.link != link.id or answer.index != index or answered.done():
                raise ProtocolError("the HELLO answers another one")
            answered.set_result(answer)

        connection = Connection(self, hello)
        link.attach(index, connection)
        host, port, path = _parse(link.nid)
        if path:
            await loop.create_unix_connection(lambda: connection, path)
        else:
            await loop.create_connection(lambda: connection, host, port)
        connection.say_hello(Hello(link.id, index, self.name, bulk_connections))
        return await answered

    async def listen(self, nid: Nid, accept: Callable[[Link], Receiver]) -> SocketListener:
        """Listen at `nid`; `accept` is called with each whole link. Port 0 chooses one.

        ValueError for a NID that cannot be listened at, OSError if somebody else does already.
        """
        host, port, path = _parse(nid)
        listener = SocketListener(self, nid, accept)
        loop = asyncio.get_running_loop()
        if path:
            sock = _bind_unix(path)
            listener.inode = os.stat(path).st_ino
            listener.path = path
            listener.server = await loop.create_unix_server(listener.made, sock=sock, backlog=BACKLOG)
        else:
            if not self.allow_remote and not _is_loopback(host):
                raise ValueError(
                    f"will not listen at {nid}: peers are not authenticated, so only loopback addresses are served; "
                    "use 127.0.0.1, or allow remote peers explicitly (allow_remote) on a network you trust"
                )
            listener.server = await loop.create_server(listener.made, host, port, backlog=BACKLOG)
            port = listener.server.sockets[0].getsockname()[1]
            listener.nid = Nid(f"{nid.rpartition(':')[0]}:{port}@tcp")
            if self.allow_remote and _address(host) is None:
                listener.follow(host, port)
        return listener

    def refused(self, who: str, why: str) -> None:
        """Say that `who` lost a connection because it broke the rules."""
        if self.events is not None:
            self.events.emit("link.refused", level="warning", peer=who, why=why)


class SocketListener:
    """An open port and the links that came in through it."""

    def __init__(self, network: SocketNetwork, nid: Nid, accept: Callable[[Link], Receiver]) -> None:
        self.network = network
        self.nid = nid
        self.accept = accept
        self.path = ""
        self.inode = 0
        self.server: Any = None  # asyncio.Server, or that of another loop
        self.links: dict[int, SocketLink] = {}  # those that are not whole yet
        self.whole = 0
        self.strangers: dict[Connection, None] = {}  # have not said HELLO yet
        self._timer: asyncio.TimerHandle | None = None
        self._moving: asyncio.Task[None] | None = None

    def follow(self, host: str, port: int) -> None:
        """Listen where `host` is, also when that changes: a container may come back to its network with another address."""
        self._timer = asyncio.get_running_loop().call_later(FOLLOW_S, self._look, host, port)

    def _look(self, host: str, port: int) -> None:
        self._moving = asyncio.get_running_loop().create_task(self._move(host, port), name=f"where is {host}")

    async def _move(self, host: str, port: int) -> None:
        with contextlib.suppress(OSError):  # nobody knows the name now, or the address is not here yet
            where = await _addresses(host, port)
            if where.isdisjoint(sock.getsockname()[0] for sock in self.server.sockets):
                server = await asyncio.get_running_loop().create_server(self.made, sorted(where), port, backlog=BACKLOG)
                self.server.close()
                self.server = server
                if self.network.events is not None:
                    self.network.events.emit("listener.moved", nid=self.nid, address=", ".join(sorted(where)))
        self.follow(host, port)

    def close(self) -> None:
        """Accept no more links; the whole ones live on."""
        if self.server is None:
            return
        for following in (self._timer, self._moving):
            if following is not None:
                following.cancel()
        self.server.close()
        self.server = None
        for connection in list(self.strangers):
            connection.abort()
        for link in list(self.links.values()):
            link.drop("the listener was closed")
        if self.path:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == self.inode:  # a successor may have put its own there
                    os.unlink(self.path)

    def made(self) -> Connection:
        """The protocol object of a connection that is being accepted."""
        return Connection(self.network, self._hello, self)

    def dropped(self, link: SocketLink) -> None:
        """`link` is over."""
        if link.whole:
            self.whole -= 1
        else:
            del self.links[link.id]

    def admit(self, connection: Connection) -> None:
        """Take in a stranger, or refuse it when there are too many."""
        if self.server is None:
            connection.abort()
        elif len(self.strangers) >= self.network.links_max:
            connection.refuse("too many connections without HELLO")
        else:
            self.strangers[connection] = None

    def _hello(self, connection: Connection, hello: Hello) -> None:
        network, link = self.network, self.links.get(hello.link)
        if hello.index == 0:
            if link is not None:
                raise ProtocolError("a HELLO for a link that exists")
            if len(self.links) + self.whole >= network.links_max:
                raise ProtocolError(f"too many links: {network.links_max}")
            link = SocketLink(network, self.nid, hello.link)
            link.peer = hello.peer or connection.called_from(self.path)
            link.bulk_granted = min(hello.bulk_connections, network.bulk_connections_max)
            link.listener = self
            link.timer = asyncio.get_running_loop().call_later(network.hello_wait_s, link.drop, "bulk connections did not come")
            self.links[hello.link] = link
        elif link is None or not 1 <= hello.index <= link.bulk_granted or hello.index != len(link.connections):
            raise ProtocolError(f"a HELLO for bulk connection {hello.index} of a link that does not wait for it")
        self.strangers.pop(connection, None)
        link.attach(hello.index, connection)
        connection.say_hello(Hello(hello.link, hello.index, network.name, link.bulk_granted))
        if len(link.connections) == 1 + link.bulk_granted:
            assert link.timer is not None
            link.timer.cancel()
            link.timer = None
            link.whole = True
            del self.links[hello.link]
            link.id = 0  # it is bound: nobody asks for it by number
            self.whole += 1
            link.receiver = self.accept(link)


class SocketLink:
    """node.Link over sockets."""

    __slots__ = (
        "_turn", "bulk_granted", "closed", "connections", "id", "listener", "nid", "peer", "receiver",
        "timer", "waiter", "whole", "why",
    )  # fmt: skip

    def __init__(self, network: SocketNetwork, nid: Nid, link_id: int) -> None:
        self.nid = nid
        self.id = link_id
        self.peer = ""
        self.closed = False
        self.why = ""
        self.whole = False  # every connection said HELLO: the receiver has a right to hear link_lost
        self.receiver: Receiver | None = None
        self.connections: tuple[Connection, ...] = ()  # the control connection, then those for bulk
        self.bulk_granted = 0
        self.listener: SocketListener | None = None  # of the accepting side
        self.timer: asyncio.TimerHandle | None = None
        self.waiter: asyncio.Future[Hello] | None = None  # of the connecting side, until it is whole
        self._turn = 0  # of the bulk connections

    def __repr__(self) -> str:
        return f"<link {self.id:#x} {self.peer} {self.nid}{' closed' if self.closed else ''}>"

    def send(self, kind: int, header: bytes, bulk: bytes | bytearray | memoryview | None = None) -> None:
        """See node.Link.send. An empty bulk is none."""
        if self.closed:
            return
        assert kind != HELLO and 0 < len(header) <= limits.header_bytes_max
        if not bulk:
            self.connections[0].queue(pack_prefix(kind, header), header)
            return
        data = memoryview(bulk).cast("B")
        index = 0
        if len(data) > limits.bulk_inline_bytes_max and len(self.connections) > 1:
            self._turn = index = self._turn % (len(self.connections) - 1) + 1
        self.connections[index].queue(pack_prefix(kind, header, len(data), crc32c(data)), header, data)

    def withdraw(self, memory: memoryview) -> None:
        """See node.Link.withdraw."""
        for connection in self.connections:
            connection.withdraw(memory)

    def close(self, why: str = "") -> None:
        """Drop the link at once, unsent frames with it; the receiver hears `link_lost` in a later turn."""
        self.drop(why or "closed here")

    def attach(self, index: int, connection: Connection) -> None:
        """Make `connection` a part of this link."""
        assert index == len(self.connections) and not self.closed
        self.connections += (connection,)
        connection.bind(self, index)

    def drop(self, why: str) -> None:
        """The link is over, on every connection; the first reason counts."""
        if self.closed:
            return
        self.closed = True
        self.why = why
        if self.timer is not None:
            self.timer.cancel()
        if self.listener is not None:
            self.listener.dropped(self)
        for connection in self.connections:
            connection.abort()
        if self.whole:
            assert self.receiver is not None
            asyncio.get_running_loop().call_soon(self.receiver.link_lost, self, why)
        elif self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(LinkLost(f"{self.nid}: {why}"))
            self.waiter.exception()  # the waiter may have been cancelled: no "never retrieved"


class Connection(asyncio.BufferedProtocol):
    """One socket: bytes to frames and back.

    Receiving has two states. In the first, frames come into the network's scratch memory, and what is there of an
    unfinished one collects in `_view[:_end]`; in the second, `_bulk` is the rest of the receiver's memory that is still
    to be filled, for the frame kept in `_frame`.
    """

    __slots__ = (
        "_bulk", "_end", "_frame", "_listener", "_on_hello", "_over", "_queue", "_share", "_timer",
        "_view", "_wide", "link", "network", "transport",
    )  # fmt: skip

    def __init__(
        self, network: SocketNetwork, on_hello: Callable[[Connection, Hello], None], listener: SocketListener | None = None
    ) -> None:
        self.network = network
        self.transport: asyncio.Transport | None = None
        self.link: SocketLink | None = None
        self._on_hello: Callable[[Connection, Hello], None] | None = on_hello  # until the other side said it
        self._listener = listener
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self._view = NOTHING  # an unfinished frame, and room for the rest of it
        self._wide = False  # carries bulk
        self._share = HEAD_BUFFER_BYTES  # how much of the network's scratch memory one read may fill
        self._end = 0
        self._bulk: memoryview | None = None
        self._frame = NO_FRAME
        self._queue: list[bytes | memoryview] | None = None

    # life

    def bind(self, link: SocketLink, index: int) -> None:
        """From now on frames belong to `link`."""
        self.link = link
        if index == 0:
            self._share = CONTROL_BUFFER_BYTES
        else:
            self._wide = True
            self._widen()

    def _widen(self) -> None:
        """Let a bulk connection of a Unix socket take much at once. A control connection does without."""
        if self.transport is None or not self._wide:
            return
        sock = self.transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, UNIX_SEND_BUFFER_BYTES)
            except OSError:  # without CAP_NET_ADMIN: up to net.core.wmem_max
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_SEND_BUFFER_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._widen()
        if self._over:  # the link went while this connection was being made
            self.transport.abort()
        elif self._listener is not None:
            self._timer = asyncio.get_running_loop().call_later(self.network.hello_wait_s, self.refuse, "no HELLO in time")
            self._listener.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.abort()
        if self.link is not None:
            self.link.drop(f"connection lost: {exc}" if exc else "closed by the peer")

    def abort(self, last_word: bytes = b"") -> None:
        """Cut this connection; nothing more is received or sent on it, but for `last_word`."""
        self._over = True
        self._bulk = None  # the memory is its owner's again
        self._frame = NO_FRAME
        self._queue = None
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.strangers.pop(self, None)
        if self.transport is None:
            return
        if last_word:
            self.transport.write(last_word)
            self.transport.close()
        else:
            self.transport.abort()

    def refuse(self, why: str) -> None:
        """The peer broke a rule: it loses this connection and the link that it belongs to."""
        if self._over:
            return
        if self.link is not None:
            self.network.refused(self.link.peer, why)
            self.link.drop(why)
        else:
            self.network.refused(self.called_from(""), why)
            self.abort()

    def _refuse_version(self, error: OtherVersion) -> None:
        """The peer is another program: who called it is told, and a caller is told by us."""
        if self.link is None:
            self.network.refused(self.called_from(""), str(error))
            self.abort(REFUSAL)
            return
        waiter = self.link.waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(OtherVersion(f"{self.link.nid}: {error}"))
            waiter.exception()  # the waiter may have been cancelled
        self.refuse(str(error))

    def called_from(self, path: str) -> Nid:
        """The caller's address; of a Unix socket, the path that it called and its process id."""
        assert self.transport is not None
        sock = self.transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            pid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return Nid(f"{path or '/'}:{pid}@unix")
        host, port = (self.transport.get_extra_info("peername") or ("?", 0))[:2]
        return Nid(f"[{host}]:{port}@tcp" if ":" in host else f"{host}:{port}@tcp")

    # sending

    def say_hello(self, hello: Hello) -> None:
        """Send the first frame."""
        header = pack(hello)
        self.queue(pack_prefix(HELLO, header), header)

    def queue(self, *parts: bytes | memoryview) -> None:
        """Send `parts` at the end of this turn of the loop."""
        queue = self._queue
        if queue is None:
            asyncio.get_running_loop().call_soon(self._flush)
            queue = self._queue = list(parts)
        else:
            queue.extend(parts)
        if len(queue) >= QUEUE_PARTS_MAX:  # let the peer begin while we go on
            self._flush()

    def _flush(self) -> None:
        parts, self._queue = self._queue, None
        if self._over or parts is None:
            return
        assert self.transport is not None
        # What was there before this turn counts: a burst is the callers' memory, a growing rest is a peer that
        # does not read.
        unsent = self.transport.get_write_buffer_size()
        if unsent > self.network.unsent_bytes_max and self.link is not None:
            self.refuse(f"does not read: {unsent} bytes unsent")
            return
        joined: list[bytes | memoryview] = []
        small: list[bytes | memoryview] = []
        for part in parts:
            if len(part) <= JOIN_BYTES_MAX:
                small.append(part)
                continue
            if small:
                joined.append(b"".join(small))
                small.clear()
            joined.append(part)
        if small:
            joined.append(b"".join(small))
        if len(joined) == 1:
            if self.network.spinner is not None:
                self.network.spinner.sent()
            self.transport.write(joined[0])
        else:  # one system call: the peer is not woken for a header whose bulk is not there
            self.transport.writelines(joined)

    # receiving

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._bulk is not None:
            return self._bulk
        return self._view[self._end :] if self._end else self.network.scratch[: self._share]

    def buffer_updated(self, nbytes: int) -> None:
        if self._over:
            return
        try:
            if self._bulk is None:
                view = self._view if self._end else self.network.scratch
                self._take_frames(view, self._end + nbytes)
                if self._bulk is None and self.network.spinner is not None:
                    self.network.spinner.received()  # data is another matter: it takes disks, and every processor
            elif nbytes < len(self._bulk):
                self._bulk = self._bulk[nbytes:]
            else:
                self._bulk = None
                self._deliver_bulk()
        except OtherVersion as error:
            self._refuse_version(error)
        except ProtocolError as error:
            self.refuse(str(error))

    def withdraw(self, memory: memoryview) -> None:
        """If a bulk is landing in `memory`, let it land elsewhere."""
        kind, header, landing, crc = self._frame
        if landing is memory and self._bulk is not None:
            own = memoryview(bytearray(landing))
            self._frame = (kind, header, own, crc)
            self._bulk = own[len(own) - len(self._bulk) :]

    def _take_frames(self, view: memoryview, end: int) -> None:
        """Deliver every whole frame in `view[:end]` and keep the rest."""
        start, wanted = 0, 0
        while end - start >= PREFIX_BYTES:
            kind, header_bytes, bulk_bytes, header_crc, bulk_crc = unpack_prefix(view, start)
            body = start + PREFIX_BYTES
            stop = body + header_bytes
            if self._on_hello is not None and (kind != HELLO or header_bytes > HELLO_BYTES_MAX or bulk_bytes):
                raise ProtocolError("the first frame is no HELLO")
            if stop > end:
                wanted = PREFIX_BYTES + header_bytes
                break
            header = view[body:stop]
            if crc32c(header) != header_crc:
                raise ProtocolError("bad header checksum")
            value = unpack(header)
            start = stop
            if self._on_hello is not None:
                self._take_hello(value)
            else:
                link = self.link
                assert link is not None
                receiver = link.receiver
                if kind == HELLO:
                    raise ProtocolError("a second HELLO")
                if receiver is None:
                    raise ProtocolError("a frame before the link is whole")
                if not bulk_bytes:
                    receiver.frame_received(link, kind, value, None)
                else:
                    memory = receiver.bulk_buffer(link, kind, value, bulk_bytes)
                    assert len(memory) == bulk_bytes and not memory.readonly
                    have = min(bulk_bytes, end - start)
                    memory[:have] = view[start : start + have]
                    start += have
                    self._frame = (kind, value, memory, bulk_crc)
                    if have < bulk_bytes:
                        self._bulk = memory[have:]
                        break
                    self._deliver_bulk()
            if self._over:  # the receiver closed the link
                return
        self._keep(view[start:end], wanted)

    def _keep(self, rest: memoryview, wanted: int) -> None:
        """Keep the unfinished frame `rest` in memory of its own that can hold its `wanted` bytes."""
        if rest and (rest.obj is not self._view.obj or len(self._view) < max(wanted, REST_BUFFER_BYTES)):
            self._view = memoryview(bytearray(max(wanted, REST_BUFFER_BYTES)))
        elif not rest:
            self._view = NOTHING
        self._view[: len(rest)] = rest
        self._end = len(rest)

    def _take_hello(self, value: Any) -> None:
        hello: Hello = _check_hello(value)
        if not (0 <= hello.link < 1 << 64) or hello.index < 0 or hello.bulk_connections < 0:
            raise ProtocolError("HELLO out of bounds")
        if len(hello.peer) > PEER_NAME_CHARS_MAX:
            raise ProtocolError("the peer's name is too long")
        assert self._on_hello is not None
        self._on_hello(self, hello)
        self._on_hello = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _deliver_bulk(self) -> None:
        (kind, header, memory, bulk_crc), self._frame = self._frame, NO_FRAME
        link = self.link
        assert link is not None and link.receiver is not None
        if crc32c(memory) != bulk_crc:
            if self.network.events is not None:
                self.network.events.emit("bulk.corrupt", level="warning", peer=link.peer, bytes=len(memory))
            memory = CORRUPT
        link.receiver.frame_received(link, kind, header, memory)


def _parse(nid: str) -> tuple[str, int, str]:
    """(host, port, "") or ("", 0, path) of a NID; ValueError if it names no socket."""
    address, _, net = nid.rpartition("@")
    if net == "unix" and address.startswith("/"):
        if len(os.fsencode(address)) > limits.unix_path_bytes_max:
            raise ValueError(f"the path of {nid} is longer than {limits.unix_path_bytes_max} bytes")
        return "", 0, address
    host, _, port = address.rpartition(":")
    if net != "tcp" or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"no socket address: {nid!r} (expected HOST:PORT@tcp or /PATH@unix)")
    return host.removeprefix("[").removesuffix("]"), int(port), ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None: it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


async def _addresses(host: str, port: int) -> set[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {str(address[0]) for *_, address in found}


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _bind_unix(path: str) -> socket.socket:
    """A socket bound to `path`; what a dead process left there is removed, what is alive is an OSError.

    Two processes that start at the same moment could both find it dead; a target's owner is settled elsewhere.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "in the way, and no socket", path)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)  # a full backlog is EAGAIN: somebody is there
            found = probe.connect_ex(path)
        if found != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "somebody listens there", path)
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, path) from None
    return sock
