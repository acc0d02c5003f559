"""The client side of links: one per server address, shared by all imports that talk to targets there.

When a link dies, every import on it hears so and recovers for itself (chapter 30.1).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lustrelite.errors import LinkLost, OtherVersion, ProtocolError
from lustrelite.ids import Nid
from lustrelite.rpc.node import Link, Node
from lustrelite.wire import frame
from lustrelite.wire.locks import decode_callback
from lustrelite.wire.message import check_reply

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport
    from lustrelite.rpc.request import Request


class ClientLink:
    """A link with its unanswered requests: the Receiver of what the server sends."""

    def __init__(self, pool: LinkPool, nid: Nid) -> None:
        self.pool = pool
        self.nid = nid
        self.link: Link | None = None
        self.waiting: dict[int, Request] = {}  # by xid
        self.imports: dict[ClientImport, None] = {}
        self.closed = False
        self.heard_at = pool.node.now()

    def frame_received(self, link: Link, kind: int, header: Any, bulk: memoryview | None) -> None:
        """A reply finds its request by xid; one that nobody waits for is late and ignored."""
        self.heard_at = self.pool.node.now()
        try:
            if kind == frame.REPLY:
                raw = check_reply(header)
                request = self.waiting.get(raw[0])
                if request is not None:
                    request.owner.reply_received(request, raw, bulk)
            elif kind == frame.EARLY_REPLY:
                raw = check_reply(header)
                request = self.waiting.get(raw[0])
                if request is not None:
                    request.owner.early_reply_received(request, raw)
            elif kind == frame.CALLBACK:
                self._callback(header)
            else:
                raise ProtocolError(f"frame kind {kind} from a server")
        except ProtocolError as error:
            self.pool.node.events.emit("link.protocol_error", level="warning", peer=str(self.nid), why=str(error))
            link.close(str(error))

    def _callback(self, raw: Any) -> None:
        """A callback finds its import by the export it is meant for; one for nobody here is ignored."""
        header, spec = decode_callback(raw)
        for owner in self.imports:
            if owner.fsm.handle == header.handle:
                owner.callbacks.received(self, header, spec)
                return

    def bulk_buffer(self, link: Link, kind: int, header: Any, length: int) -> memoryview:
        """Read data goes straight to where the caller wants it; a second answer, which may differ, does not."""
        if kind == frame.REPLY and type(header) is tuple and header:
            request = self.waiting.get(header[0])
            if request is not None and request.landing is None and request.sink is not None and len(request.sink) >= length:
                memory = request.sink[:length]
                request.landing = (link, memory)
                return memory
        return memoryview(bytearray(length))

    def link_lost(self, link: Link, why: str) -> None:
        """Every import on the link fails, each then recovers for itself."""
        if self.closed:
            return
        self.closed = True
        self.waiting.clear()
        self.pool.forget(self)
        for owner in list(self.imports):
            owner.link_lost(self, why)

    def send(self, header: bytes, bulk: Any = None) -> None:
        """Send a request frame."""
        assert self.link is not None
        self.link.send(frame.REQUEST, header, bulk)


class LinkPool:
    """The links of one client."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.links: dict[Nid, ClientLink] = {}
        self._opening: dict[Nid, asyncio.Task[ClientLink]] = {}

    async def get(self, nid: Nid, bulk_connections: int = 0) -> ClientLink:
        """The living link to `nid`, opened if need be; LinkLost if nobody answers; OtherVersion.

        `bulk_connections` counts when the link is opened: whoever comes later shares what the first one asked for.
        """
        link = self.links.get(nid)
        if link is not None and not link.closed:
            return link
        task = self._opening.get(nid)
        if task is None:
            task = self.node.spawn(self._open(nid, bulk_connections), f"link {nid}")
            self._opening[nid] = task
            task.add_done_callback(lambda _: self._opening.pop(nid, None))
        found = await asyncio.shield(task)
        if isinstance(found, ClientLink):
            if found.closed:  # since then: it has told those that were on it
                raise LinkLost(f"{nid}: closed at once")
            return found
        raise OtherVersion(str(found)) if isinstance(found, OtherVersion) else LinkLost(found)

    async def _open(self, nid: Nid, bulk_connections: int) -> Any:
        """A ClientLink, or why there is none: text or OtherVersion.

        (An exception in a task of the node would be a crash.)
        """
        link = ClientLink(self, nid)
        try:
            link.link = await asyncio.wait_for(
                self.node.network.connect(nid, link, bulk_connections=bulk_connections),
                self.node.tunables.connect_timeout_s,
            )
        except OtherVersion as error:
            return error
        except (LinkLost, OSError, TimeoutError, ProtocolError) as error:
            return f"{nid}: {error or type(error).__name__}"
        if link.closed:
            return f"{nid}: closed at once"
        self.links[nid] = link
        return link

    def forget(self, link: ClientLink) -> None:
        """The link is dead; the next `get` opens a new one."""
        if self.links.get(link.nid) is link:
            del self.links[link.nid]

    def close(self) -> None:
        """Drop every link without a word."""
        for link in list(self.links.values()):
            if link.link is not None:
                link.link.close("closed by us")
        self.links.clear()


