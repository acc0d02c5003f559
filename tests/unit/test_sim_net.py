"""The simulator's network does what TCP does, and no more."""

from __future__ import annotations

import asyncio
import contextvars
import random

import pytest

from lustrelite.errors import LinkLost, ProtocolError
from lustrelite.events import EventLog
from lustrelite.rpc.node import CORRUPT
from lustrelite.sim.loop import SimLoop, run
from lustrelite.sim.net import Latency, SimNetwork
from lustrelite.wire.frame import CALLBACK, CALLBACK_REPLY, REPLY, REQUEST
from lustrelite.wire.locks import BlockingCallback
from lustrelite.wire.message import BY_CLASS, RESENT, ROOT_CRED, pack
from lustrelite.wire.session import Disconnect, Ping

MIB = 1 << 20


class Station:
    """A node, as far as the network knows one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.context = contextvars.copy_context()
        self.events = EventLog(name, lambda: 0.0)


class End:
    """A receiver that writes down what it hears; a server's answers every request."""

    def __init__(self, answer: bool = False) -> None:
        self.answer = answer
        self.heard: list = []
        self.lost: list[str] = []
        self.link = None

    def frame_received(self, link, kind, header, bulk):
        if header == ("bad",):
            raise ProtocolError("bad frame")
        self.heard.append((kind, header, bulk if bulk is None or bulk is CORRUPT else bytes(bulk)))
        if self.answer and kind == REQUEST:
            link.send(REPLY, pack((header[0], 0)))

    def bulk_buffer(self, link, kind, header, length):
        return memoryview(bytearray(length))

    def link_lost(self, link, why):
        self.lost.append(why)

    @property
    def xids(self):
        return [header[0] for _, header, _ in self.heard]


def request(xid, body=Ping):
    return pack((xid, 400 if body is Ping else 9, 0, 0, 0, 0, 0, 0, (), 1000, ROOT_CRED, "", None, ()))


class World:
    def __init__(self, seed: int = 1, latency: Latency | None = None) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        self.net = SimNetwork(loop, random.Random(seed), latency)
        self.client, self.server = Station("a"), Station("s")
        self.here, self.there = End(), End(answer=True)

    async def link(self, bulk_connections: int = 1):
        def accept(link):
            self.there.link = link
            return self.there

        if "s@sim" not in self.net.listeners:
            endpoint = self.net.endpoint()
            endpoint.station = self.server
            await endpoint.listen("s@sim", accept)
        self.here.link = await self.net.connect(self.client, "s@sim", self.here, bulk_connections)
        return self.here.link


async def chatter(seed: int) -> int:
    """Much traffic with faults; returns the digest of it."""
    w = World(seed, Latency(slow_permille=100))
    links = [await w.link() for _ in range(3)]
    w.net.double("Ping", times=5, skip=3)
    w.net.slow("Ping", times=3, delay_s=0.2)
    for xid in range(200):
        links[xid % 3].send(REQUEST, request(xid), bytes(xid * 1000))
        if xid % 17 == 0:
            await asyncio.sleep(0.01)
        if xid == 100:
            w.net.cut(w.client, w.server, one_way=True)
        if xid == 150:
            w.net.heal()
    await asyncio.sleep(5)
    import zlib

    return zlib.crc32(repr([(k, h) for k, h, _ in w.there.heard + w.here.heard]).encode(), w.net.digest)


async def test_control_frames_keep_their_order_and_bulk_travels_beside(sim):
    w = World(latency=Latency(slow_permille=200))
    link = await w.link()
    link.send(REQUEST, request(0), bytes(4 * MIB))
    for xid in range(1, 50):
        link.send(REQUEST, request(xid), b"inline")
    await asyncio.sleep(1)
    assert [x for x in w.there.xids if x] == list(range(1, 50))
    assert w.there.xids.index(0) > 0, "4 MiB do not hold up what comes behind them"
    assert w.here.xids[-1] == w.there.xids[-1]


async def test_nobody_listens(sim):
    w = World()
    with pytest.raises(LinkLost, match="refused"):
        await w.net.connect(w.client, "nowhere@sim", w.here, 1)


async def test_a_closed_link_is_heard_of_on_both_sides_once(sim):
    w = World()
    link = await w.link()
    link.close("enough")
    link.close()
    assert w.here.lost == []  # never from inside close
    await asyncio.sleep(1)
    assert w.here.lost == ["enough"] and w.there.lost == ["closed by a"]
    link.send(REQUEST, request(1))
    await asyncio.sleep(1)
    assert w.there.heard == [] and not w.net.links


async def test_a_cut_holds_frames_until_it_is_healed(sim):
    w = World()
    link = await w.link()
    w.net.cut(w.client, w.server, one_way=True)
    link.send(REQUEST, request(1))
    w.there.link.send(REPLY, pack((99, 0)))
    await asyncio.sleep(60)
    assert w.there.xids == [] and w.here.xids == [99] and not w.here.lost
    w.net.heal(broken_permille=0)
    await asyncio.sleep(1)
    assert w.there.xids == [1]


async def test_a_stalled_link_may_be_found_broken(sim):
    w = World()
    link = await w.link()
    w.net.cut(w.client, w.server)
    link.send(REQUEST, request(1))
    w.net.heal(broken_permille=1000)
    await asyncio.sleep(1)
    assert w.there.xids == [] and w.here.lost and w.there.lost


async def test_connect_across_a_cut_ends_when_it_is_healed_or_in_time(sim):
    w = World()
    await w.link()
    w.net.cut("a", "s")
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(LinkLost, match="no HELLO in time"):
        await w.link()
    assert loop.time() - began == pytest.approx(5)
    loop.call_later(2, w.net.heal)
    await w.link()


async def test_a_killed_process_is_heard_of_by_its_peers_only(sim):
    w = World()
    link = await w.link()
    link.send(REQUEST, request(1))
    w.net.unplug(w.client)
    await asyncio.sleep(1)
    assert not w.here.lost and len(w.there.lost) == 1 and not w.net.links


async def test_a_cut_hides_a_death(sim):
    w = World()
    await w.link()
    w.net.cut("a", "s")
    w.net.unplug(w.server)
    await asyncio.sleep(100)
    assert not w.here.lost
    w.net.heal()
    await asyncio.sleep(1)
    assert len(w.here.lost) == 1


async def test_a_machine_without_power_is_found_out_by_its_next_peer_frame_when_it_is_back(sim):
    w = World()
    link = await w.link()
    w.net.unplug(w.server, silent=True)
    link.send(REQUEST, request(1))
    await asyncio.sleep(100)
    assert not w.here.lost
    w.server = Station("s")
    await w.link()
    link.send(REQUEST, request(2))
    await asyncio.sleep(1)
    assert w.here.lost == ["connection reset"]


async def test_what_was_sent_before_a_close_arrives_or_is_lost_as_the_seed_will_have_it(sim):
    seen = set()
    for seed in range(20):
        w = World(seed)
        link = await w.link()
        buffer = bytearray(b"x" * 100_000)
        link.send(REQUEST, request(1), buffer)
        link.close()
        buffer[:] = bytes(100_000)  # ours again
        await asyncio.sleep(1)
        seen.add(tuple(bulk for _, _, bulk in w.there.heard))
        assert len(w.there.lost) == 1
    assert seen == {(), (b"x" * 100_000,)}


async def test_rules_lose_hold_delay_double_and_garble_single_messages(sim):
    w = World()
    link = await w.link()
    lost = w.net.drop(Ping, to=w.server, times=2)
    held = w.net.hold(Disconnect, times=1)
    for xid in range(4):
        link.send(REQUEST, request(xid))
    link.send(REQUEST, request(10, Disconnect))
    link.send(REQUEST, request(11))
    await held.caught()
    await asyncio.sleep(1)
    assert w.there.xids == [2, 3, 11] and lost.matched == 2
    held.release()
    await asyncio.sleep(1)
    assert w.there.xids == [2, 3, 11, 10]
    w.net.drop(Ping, reply=True)
    link.send(REQUEST, request(20))
    link.send(REQUEST, request(21))
    await asyncio.sleep(1)
    assert w.there.xids[-2:] == [20, 21] and w.here.xids[-1] == 21 and 20 not in w.here.xids
    w.net.double(Ping, times=2)
    link.send(REQUEST, request(30))
    link.send(REQUEST, request(31))
    await asyncio.sleep(1)
    assert sorted(w.there.xids[-4:]) == [30, 30, 31, 31]
    assert sum(header[4] == RESENT for _, header, _ in w.there.heard) == 1
    w.net.slow(Ping, delay_s=1.0)
    link.send(REQUEST, request(40))
    link.send(REQUEST, request(41))
    await asyncio.sleep(2)
    assert w.there.xids[-2:] == [41, 40]
    w.net.corrupt(Ping)
    link.send(REQUEST, request(50), bytes(100))
    await asyncio.sleep(1)
    assert w.there.heard[-1][2] is CORRUPT


async def test_rules_know_callbacks_and_their_answers(sim):
    w = World()
    await w.link()
    ask = BY_CLASS[BlockingCallback].opcode

    def callback(number):
        w.there.link.send(CALLBACK, pack((number, ask, 1, 1, 0, ())))

    w.net.drop("BlockingCallback", to=w.client)
    w.net.drop("CompletionCallback", to=w.client)
    callback(1)
    callback(2)
    await asyncio.sleep(1)
    assert w.here.xids == [2]
    w.net.drop("BlockingCallback", reply=True)
    for number in (2, 3):
        w.here.link.send(CALLBACK_REPLY, pack((number, 1, 0, ())))
        callback(3)
    await asyncio.sleep(1)
    assert w.there.xids == [3]


async def test_a_bad_frame_costs_the_link(sim):
    w = World()
    link = await w.link()
    link.send(REQUEST, pack(("bad",)))
    await asyncio.sleep(1)
    assert w.there.lost == ["bad frame"] and len(w.here.lost) == 1


def test_a_buffer_that_changes_before_the_answer_is_found_out():
    async def main():
        w = World()
        link = await w.link()
        data = bytearray(1000)
        link.send(REQUEST, request(1), data)
        data[5] = 1
        await asyncio.sleep(1)

    with pytest.raises(Exception, match="changed the bulk"):
        run(main)
