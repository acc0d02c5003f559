"""The network of the simulator: node.Network in memory, with every trouble that TCP between two machines can make.

A link keeps the order of its control frames; each bulk connection has an order of its own, so a big frame arrives
before or after what was sent around it. Delays come from the seed. What TCP does is done here too:

- a cut holds the frames (TCP sends them again) until `heal`, then the link goes on or, by chance, is found broken;
  one-way cuts hold one direction;
- a closed link, or a killed process, is heard of by the peer after a delay, behind what was sent before or instead of
  it (a reset destroys what is on its way), and across a cut only after the cut is healed: then RPC timeouts decide;
- a machine that loses power says nothing; its peers learn it from their own timeouts, or from the reset that answers
  their next frame when the machine is back;
- bulk is received into the memory that the receiver names, in two steps, and is read from the sender's memory as late
  as it arrives: who changes a buffer before the answer is found out (SimCrash).

Rules lose, hold, delay, double or garble single messages, by class and direction, as a server that drops a request
would (Lustre's fail_loc). `digest` sums up every frame ever sent: two runs of a seed must agree in it.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol

from lustrelite.errors import LinkLost, ProtocolError
from lustrelite.events import EventLog
from lustrelite.ids import Nid
from lustrelite.rpc.node import CORRUPT, Link, Receiver
from lustrelite.sim.loop import SimError, SimLoop
from lustrelite.tunables import limits
from lustrelite.wire.frame import CALLBACK, CALLBACK_REPLY, EARLY_REPLY, HELLO, REPLY, REQUEST, crc32c
from lustrelite.wire.locks import CallbackHeader
from lustrelite.wire.message import BY_OPCODE, RESENT, RequestHeader, unpack

CONNECT_S_MAX = 5.0  # as SocketNetwork.hello_wait_s
SYN_AGAIN_S = 0.5
REQUEST_FIELDS = len(RequestHeader._fields)
CALLBACK_FIELDS = len(CallbackHeader._fields)
ASKED_MAX = 4096  # xids per link whose opcode is remembered, to know replies by class


class Station(Protocol):
    """What the network must know of a node."""

    name: str
    dead: bool
    context: Context
    events: EventLog


@dataclass
class Latency:
    """How slow the network is. Seconds."""

    min_s: float = 40e-6
    max_s: float = 300e-6
    slow_permille: int = 5  # of the frames take up to slow_s
    slow_s: float = 20e-3
    bytes_per_s: float = 1e9


@dataclass
class Rule:
    """What happens to messages called `name` ("" is any) on their way `to` / `source` (names of nodes, "" is any)."""

    action: str  # drop, hold, delay, double, corrupt
    name: str = ""
    reply: bool = False
    to: str = ""
    source: str = ""
    times: int = 1  # -1 is for ever
    skip: int = 0
    delay_s: float = 0.0
    matched: int = 0
    held: list[tuple[SimLink, Frame]] = field(default_factory=list)
    network: SimNetwork | None = None
    _waiter: asyncio.Future[None] | None = None

    def release(self) -> None:
        """Let the held frames go, in order, and catch no more."""
        self.times = 0
        held, self.held = self.held, []
        assert self.network is not None
        for link, frame in held:
            self.network.transmit(link, frame)

    def lift(self) -> None:
        """The rule applies no more; what it held is lost."""
        self.times = 0
        self.held.clear()

    async def caught(self, count: int = 1) -> None:
        """Wait until the rule has matched `count` messages."""
        while self.matched < count:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def matches(self, link: SimLink, name: str, reply: bool) -> bool:
        """Is this a message for the rule? If so it is used up once."""
        if self.times == 0 or reply is not self.reply or (self.name and self.name != name):
            return False
        if (self.to and self.to != link.other.station.name) or (self.source and self.source != link.station.name):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times > 0:
            self.times -= 1
        self.matched += 1
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return True


class Frame:
    """A frame under way. `raw` is the unpacked header, None if that is no array."""

    __slots__ = ("corrupt", "crc", "data", "kind", "raw")

    def __init__(self, kind: int, raw: tuple[Any, ...] | None, data: memoryview | None, crc: int) -> None:
        self.kind = kind
        self.raw = raw
        self.data = data
        self.crc = crc
        self.corrupt = False


class SimLink:
    """One side of a connection. `other` is the peer's side."""

    def __init__(self, network: SimNetwork, number: int, station: Station, nid: Nid, bulk_connections: int) -> None:
        self.network = network
        self.number = number
        self.station = station
        self.nid = nid
        self.peer = ""
        self.closed = False
        self.other: SimLink
        self.receiver: Receiver | None = None
        self.reset = False  # what this side sent and did not arrive yet is lost
        self.whole = False  # connect() has returned it: its receiver has a right to hear link_lost
        self.silent = False  # the machine went without a word
        self.asked: dict[int, int] = {}  # xid -> opcode of requests sent from here
        self.called: dict[int, int] = {}  # number -> opcode of callbacks sent from here
        self.stalled: list[Frame] = []  # by a cut
        self.landing: dict[Frame, memoryview] = {}  # where the rest of frames goes that came in part
        self.flying: dict[Frame, None] = {}  # frames with bulk that did not arrive yet
        self.due = [0.0] * (1 + bulk_connections)  # when the last frame of each connection arrives at the other side
        self._turn = 0

    def __repr__(self) -> str:
        return f"<link {self.number} {self.station.name} -> {self.peer}{' closed' if self.closed else ''}>"

    def send(self, kind: int, header: bytes, bulk: bytes | bytearray | memoryview | None = None) -> None:
        """See node.Link.send."""
        if self.closed:
            return
        assert kind != HELLO and 0 < len(header) <= limits.header_bytes_max
        network = self.network
        network.digest = zlib.crc32(header, network.digest)
        network.frames += 1
        raw = _unpack(header)
        data = memoryview(bulk).cast("B") if bulk else None
        crc = 0
        if data is not None:
            assert len(data) <= limits.brw_bytes_max
            if kind != REQUEST:  # nothing says when a reply's buffer may be used again: it was written to the socket
                data = memoryview(bytes(data))
            crc = crc32c(data)
        frame = Frame(kind, raw, data, crc)
        if kind == REQUEST and raw is not None and len(raw) == REQUEST_FIELDS:
            self.asked[raw[0]] = raw[1]
            if len(self.asked) > ASKED_MAX:
                for xid in list(self.asked)[: ASKED_MAX // 2]:
                    del self.asked[xid]
        elif kind == CALLBACK and raw is not None and len(raw) == CALLBACK_FIELDS:
            self.called[raw[0]] = raw[1]  # exports have their own numbers: their callbacks may be mixed up
        if network.rules and network.ruled(self, frame):
            return
        network.transmit(self, frame)

    def close(self, why: str = "") -> None:
        """See node.Link.close."""
        self.drop(why or "closed here")

    def drop(self, why: str) -> None:
        """This side closes: its receiver hears of it in a later turn, the peer after a delay."""
        if self.closed:
            return
        self.closed = True
        if self.whole:
            assert self.receiver is not None
            self.network.loop.call_soon(self.receiver.link_lost, self, why, context=self.station.context)
        self.network.closing(self)

    def channel(self, data: memoryview | None) -> int:
        """The connection on which a frame with this bulk travels."""
        if data is None or len(data) <= limits.bulk_inline_bytes_max or len(self.due) == 1:
            return 0
        self._turn = self._turn % (len(self.due) - 1) + 1
        return self._turn

    def arrive(self, frame: Frame) -> None:
        """A frame from the other side is here (first half of it, if it has much bulk)."""
        sender = self.other
        if frame.data is not None:
            sender.flying.pop(frame, None)
        if sender.reset:
            return
        if self.closed:
            if self.silent:
                self.network.answer_reset(self)
            return
        if frame.raw is None:
            self._refuse("bad header")
            return
        receiver = self.receiver
        assert receiver is not None
        try:
            if frame.data is None:
                receiver.frame_received(self, frame.kind, frame.raw, None)
                return
            if crc32c(frame.data) != frame.crc:
                raise SimError(f"{sender.station.name} changed the bulk of {frame.raw!r:.200} before it was answered")
            size = len(frame.data)
            memory = receiver.bulk_buffer(self, frame.kind, frame.raw, size)
            assert len(memory) == size and not memory.readonly
            if size <= limits.bulk_inline_bytes_max:
                self._complete(frame, memory)
                return
        except ProtocolError as error:
            self._refuse(str(error))
            return
        memory[: size // 2] = frame.data[: size // 2]
        frame.data = memoryview(bytes(frame.data))
        took = size / self.network.latency.bytes_per_s
        self.landing[frame] = memory
        self.network.loop.call_later(took, self._rest, frame, context=self.station.context)

    def withdraw(self, memory: memoryview) -> None:
        """See node.Link.withdraw."""
        for frame, landing in self.landing.items():
            if landing is memory:
                self.landing[frame] = memoryview(bytearray(memory))

    def _rest(self, frame: Frame) -> None:
        memory = self.landing.pop(frame)
        if self.closed or self.other.reset:
            return
        try:
            self._complete(frame, memory)
        except ProtocolError as error:
            self._refuse(str(error))

    def _complete(self, frame: Frame, memory: memoryview) -> None:
        assert self.receiver is not None and frame.data is not None
        memory[:] = frame.data
        if frame.corrupt:
            memory[0] ^= 0xFF
            self.station.events.emit("bulk.corrupt", level="warning", peer=self.peer, bytes=len(memory))
            memory = CORRUPT
        self.receiver.frame_received(self, frame.kind, frame.raw, memory)

    def _refuse(self, why: str) -> None:
        self.station.events.emit("link.refused", level="warning", peer=self.peer, why=why)
        self.drop(why)

    def lost(self, why: str) -> None:
        """The other side is gone and this one hears of it now."""
        if self.closed:
            return
        self.closed = True
        if self.whole:
            assert self.receiver is not None
            self.receiver.link_lost(self, why)


class SimListener:
    """An open port."""

    def __init__(self, network: SimNetwork, station: Station, nid: Nid, accept: Callable[[Link], Receiver]) -> None:
        self.network = network
        self.station = station
        self.nid = nid
        self.accept = accept

    def close(self) -> None:
        """Accept no more links."""
        if self.network.listeners.get(self.nid) is self:
            del self.network.listeners[self.nid]


class SimEndpoint:
    """node.Network of one node."""

    def __init__(self, network: SimNetwork) -> None:
        self.network = network
        self.station: Station  # set by the node

    async def connect(self, nid: Nid, receiver: Receiver, *, bulk_connections: int = 1) -> Link:
        """See node.Network.connect."""
        return await self.network.connect(self.station, nid, receiver, bulk_connections)

    async def listen(self, nid: Nid, accept: Callable[[Link], Receiver]) -> SimListener:
        """See node.Network.listen."""
        if nid in self.network.listeners:
            raise OSError(98, f"somebody listens at {nid}")
        if nid.startswith(("0@", ":0@")) or not nid.endswith("@sim"):
            raise ValueError(f"cannot listen at {nid}: a simulated NID is NAME@sim")
        listener = SimListener(self.network, self.station, nid, accept)
        self.network.listeners[nid] = listener
        return listener


def node_name(who: Any) -> str:
    """The name of a node, given the name, the node or a handle of it; "" for None."""
    return "" if who is None else who if isinstance(who, str) else str(who.name)


def message_name(what: Any) -> str:
    """The name of a message, given the class or the name; "" for None, which is any."""
    return "" if what is None else what if isinstance(what, str) else str(what.__name__)


class SimNetwork:
    """All links of one simulated world."""

    def __init__(self, loop: SimLoop, rng: random.Random, latency: Latency | None = None) -> None:
        self.loop = loop
        self.random = rng
        self.latency = latency or Latency()
        self.listeners: dict[Nid, SimListener] = {}
        self.links: dict[int, SimLink] = {}  # both sides of every connection that is not over, by number
        self.rules: list[Rule] = []
        self.digest = 0
        self.frames = 0
        self._cuts: dict[tuple[str, str], None] = {}  # (from, to)
        self._unheard: list[tuple[SimLink, str]] = []  # sides that would hear of a close, were it not for a cut
        self._numbers = 0
        self.on_trouble: Callable[[str, str, float], None] = _nothing
        """Something goes wrong between two nodes, now or until then."""

    def endpoint(self) -> SimEndpoint:
        """A Network for a node."""
        return SimEndpoint(self)

    # -- links

    def delay(self) -> float:
        """How long the next frame takes."""
        latency, draw = self.latency, self.random.random()
        slow = latency.slow_permille / 1000
        if draw < slow:
            return latency.max_s + draw / slow * latency.slow_s
        return latency.min_s + draw * (latency.max_s - latency.min_s)

    async def connect(self, station: Station, nid: Nid, receiver: Receiver, bulk_connections: int) -> Link:
        """A link from `station` to whoever listens at `nid`."""
        link: SimLink | None = None
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                link = await self._dial(station, nid, receiver, bulk_connections)
        except TimeoutError:
            raise LinkLost(f"cannot connect to {nid}: no HELLO in time") from None
        return link

    async def _dial(self, station: Station, nid: Nid, receiver: Receiver, bulk_connections: int) -> SimLink:
        await asyncio.sleep(self.delay())
        while True:
            listener = self.listeners.get(nid)
            if listener is None:
                if self._is_cut_off(station.name, nid):
                    await asyncio.sleep(SYN_AGAIN_S)
                    continue
                raise LinkLost(f"cannot connect to {nid}: refused")
            there = listener.station
            if not (self.is_cut(station.name, there.name) or self.is_cut(there.name, station.name)):
                break
            await asyncio.sleep(SYN_AGAIN_S)
        left = SimLink(self, self._number(), station, nid, bulk_connections)
        right = SimLink(self, self._number(), there, Nid(f"{station.name}:{left.number}@sim"), bulk_connections)
        left.other, right.other = right, left
        left.peer, right.peer = there.name, station.name
        left.receiver = receiver
        accepted: asyncio.Future[None] = self.loop.create_future()
        self.loop.call_soon(self._accept, listener, left, right, accepted, context=there.context)
        try:
            await accepted
        except asyncio.CancelledError:
            if right.number in self.links:  # accepted a moment before we gave up
                left.closed = True
                self.closing(left)
            raise
        if left.closed:
            raise LinkLost(f"cannot connect to {nid}: closed by the peer")
        left.whole = True
        return left

    def _accept(self, listener: SimListener, left: SimLink, right: SimLink, accepted: asyncio.Future[None]) -> None:
        """The listener's process takes the link in; the caller hears of it one way later."""
        if accepted.done():
            return  # the caller has given up
        if self.listeners.get(listener.nid) is not listener:
            accepted.set_exception(LinkLost(f"cannot connect to {listener.nid}: refused"))
            return
        self.links[left.number] = left
        self.links[right.number] = right
        right.whole = True
        took = self.delay()
        self.loop.call_later(took, _set_result, accepted, context=left.station.context)
        right.due = [self.loop.time() + took] * len(right.due)
        right.receiver = listener.accept(right)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _is_cut_off(self, name: str, nid: Nid) -> bool:
        there = nid.partition("@")[0]
        return self.is_cut(name, there) or self.is_cut(there, name)

    def transmit(self, link: SimLink, frame: Frame, delay_s: float = 0.0) -> None:
        """Put `frame` on its way to the other side of `link`."""
        other = link.other
        if self._cuts and (link.station.name, other.station.name) in self._cuts:
            link.stalled.append(frame)
            return
        channel = link.channel(frame.data)
        when = self.loop.time() + self.delay()
        if delay_s:
            when += delay_s  # a message that was delayed by a rule does not keep the others waiting
        else:
            when = max(when, link.due[channel])
            link.due[channel] = when
        if frame.data is not None:
            link.flying[frame] = None
            if channel:
                link.due[channel] = max(link.due[channel], when + len(frame.data) / self.latency.bytes_per_s)
        self.loop.call_at(when, other.arrive, frame, context=other.station.context)

    def closing(self, link: SimLink, *, silent: bool = False) -> None:
        """`link` was closed on this side: decide what becomes of the frames under way, and when the peer hears."""
        other = link.other
        self.links.pop(link.number, None)
        link.stalled.clear()
        link.silent = silent
        if silent or self.random.random() < 0.5:
            link.reset = True
        for frame in link.flying:
            assert frame.data is not None
            frame.data = memoryview(bytes(frame.data))  # the sender's memory is its own again
        link.flying.clear()
        if silent or other.closed:
            return
        self._tell(other, f"closed by {link.station.name}")

    def _tell(self, side: SimLink, why: str) -> None:
        """Let `side` hear that its peer is gone."""
        if self.is_cut(side.other.station.name, side.station.name):
            self._unheard.append((side, why))
            return
        when = self.loop.time() + self.delay()
        if not side.other.reset:
            when = max(when, max(side.other.due) + 1e-6)  # behind the last byte
        self.loop.call_at(when, self._lost, side, why, context=side.station.context)

    def _lost(self, side: SimLink, why: str) -> None:
        self.links.pop(side.number, None)
        side.lost(why)

    def answer_reset(self, side: SimLink) -> None:
        """A frame reached a machine that has forgotten the link: if it is up again it answers with a reset."""
        if any(listener.station.name == side.station.name for listener in self.listeners.values()):
            side.silent = False
            self._tell(side.other, "connection reset")

    def unplug(self, station: Station, *, silent: bool = False) -> None:
        """Every link and port of `station` is gone; it hears nothing more itself."""
        for nid in [nid for nid, listener in self.listeners.items() if listener.station is station]:
            del self.listeners[nid]
        for link in [link for link in self.links.values() if link.station is station]:
            link.closed = True
            self.closing(link, silent=silent)

    def break_links(self, x: Any, y: Any = None) -> int:
        """Break the links between two nodes (of one node with all), as a router that restarts would; how many."""
        x, y = node_name(x), node_name(y)
        broken = 0
        for link in list(self.links.values()):
            if not link.closed and link.station.name == x and (not y or link.other.station.name == y):
                broken += 1
                self.on_trouble(x, link.other.station.name, 0.0)
                link.drop("connection reset")
        return broken

    # -- cuts

    def is_cut(self, source: str, target: str) -> bool:
        """Does nothing get from `source` to `target`?"""
        return (source, target) in self._cuts

    def cut(self, x: Any, y: Any, *, one_way: bool = False) -> None:
        """Nothing gets from `x` to `y` (nodes or groups of them), nor back unless `one_way`."""
        for here in _group(x):
            for there in _group(y):
                if here != there:
                    self._cuts[(here, there)] = None
                    if not one_way:
                        self._cuts[(there, here)] = None

    def heal(self, *, broken_permille: int = 300) -> None:
        """No more cuts and no more rules. Stalled links go on, or are found broken with this probability."""
        for x, y in self._cuts:
            self.on_trouble(x, y, 0.0)
        self._cuts.clear()
        rules, self.rules = self.rules, []
        for rule in rules:
            rule.lift()
        unheard, self._unheard = self._unheard, []
        for side, why in unheard:
            if not side.closed:
                self._tell(side, why)
        for link in [link for link in self.links.values() if link.stalled]:
            if link.closed:
                continue
            if self.random.random() * 1000 < broken_permille:
                link.drop("connection timed out")
                continue
            stalled, link.stalled = link.stalled, []
            for frame in stalled:
                self.transmit(link, frame)

    def in_trouble(self, x: str, y: str) -> bool:
        """Is it cut between two nodes, or something held?"""
        held = any({link.station.name, link.other.station.name} == {x, y} for rule in self.rules for link, _ in rule.held)
        return held or self.is_cut(x, y) or self.is_cut(y, x)

    # -- rules

    def ruled(self, link: SimLink, frame: Frame) -> bool:
        """Apply the first rule that matches; True if the frame needs no more care."""
        if not frame.raw:
            return False
        if frame.kind == REQUEST and len(frame.raw) == REQUEST_FIELDS:
            opcode, reply = frame.raw[1], False
        elif frame.kind in (REPLY, EARLY_REPLY):
            opcode, reply = link.other.asked.get(frame.raw[0], -1), True
        elif frame.kind == CALLBACK and len(frame.raw) == CALLBACK_FIELDS:
            opcode, reply = frame.raw[1], False
        elif frame.kind == CALLBACK_REPLY:
            opcode, reply = link.other.called.get(frame.raw[0], -1), True
        else:
            return False
        spec = BY_OPCODE.get(opcode)
        name = spec.name if spec is not None else "?"
        rule = next((rule for rule in self.rules if rule.matches(link, name, reply)), None)
        if rule is None:
            return False
        self.on_trouble(link.station.name, link.other.station.name, self.loop.time() + rule.delay_s)
        if rule.action == "drop":
            return True
        if rule.action == "hold":
            if frame.data is not None:
                frame.data = memoryview(bytes(frame.data))
            rule.held.append((link, frame))
            return True
        if rule.action == "delay":
            self.transmit(link, frame, rule.delay_s)
            return True
        if rule.action == "double":
            self.transmit(link, frame)
            data = None if frame.data is None else memoryview(bytes(frame.data))
            raw = frame.raw
            if frame.kind == REQUEST and rule.matched % 2:  # every other one looks like a client that sent it again
                raw = (*raw[:4], raw[4] | RESENT, *raw[5:])
            self.transmit(link, Frame(frame.kind, raw, data, frame.crc), rule.delay_s or self.delay())
            return True
        assert rule.action == "corrupt", rule.action
        frame.corrupt = True
        return False

    def rule(
        self,
        action: str,
        what: Any = None,
        *,
        reply: bool = False,
        to: Any = None,
        source: Any = None,
        times: int = 1,
        skip: int = 0,
        delay_s: float = 0.0,
    ) -> Rule:
        """Add a rule for messages `what` (class, name, None is any), or for the replies to them."""
        rule = Rule(
            action, message_name(what), reply, node_name(to), node_name(source), times, skip, delay_s, network=self
        )
        self.rules.append(rule)
        return rule

    def drop(self, what: Any = None, **where: Any) -> Rule:
        """Lose messages."""
        return self.rule("drop", what, **where)

    def hold(self, what: Any = None, *, times: int = -1, **where: Any) -> Rule:
        """Keep messages until `release`; later ones pass them by."""
        return self.rule("hold", what, times=times, **where)

    def slow(self, what: Any = None, **where: Any) -> Rule:
        """Let messages arrive `delay_s` later; later ones pass them by."""
        return self.rule("delay", what, **where)

    def double(self, what: Any = None, **where: Any) -> Rule:
        """Let messages arrive twice; every other second copy bears the RESENT flag."""
        return self.rule("double", what, **where)

    def corrupt(self, what: Any = None, **where: Any) -> Rule:
        """Change a byte of the bulk on its way."""
        return self.rule("corrupt", what, **where)


def _unpack(header: bytes) -> tuple[Any, ...] | None:
    try:
        raw = unpack(header)
    except ProtocolError:
        return None
    return raw if type(raw) is tuple else None


def _group(who: Any) -> list[str]:
    if isinstance(who, Iterable) and not isinstance(who, str):
        return [node_name(one) for one in who]
    return [node_name(who)]


def _nothing(x: str, y: str, until: float) -> None:
    """Nobody wants to know."""


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
