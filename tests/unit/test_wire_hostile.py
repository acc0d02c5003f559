"""Whoever sends garbage loses its own connection and nothing else: real sockets, on asyncio and on uvloop.

The listener's receivers decode requests as a service does. Beside each attack a good link stays open and must still be
answered afterwards; the listener must hold nothing of the attacker's.
"""

from __future__ import annotations

import asyncio
import random
import struct
from typing import Any

import pytest
from loopback import MIB, TCP, WAIT_S, Raw, World, nid, run

from lustrelite.ids import make_fid
from lustrelite.rpc.node import CORRUPT
from lustrelite.tunables import limits
from lustrelite.wire import mdt, ost, session
from lustrelite.wire.frame import HELLO, KINDS, REPLY, REQUEST, WIRE_VERSION, crc32c, pack_prefix
from lustrelite.wire.message import RequestHeader, decode_request, encode_request, pack

assert nid and run  # fixtures


def serve(link: Any, kind: int, header: Any, bulk: Any) -> None:
    """What rpc/service.py does first with a request."""
    if kind == REQUEST:
        request, _ = decode_request(header)
        link.send(REPLY, pack((request.xid, bulk is CORRUPT)))


def prefix(
    kind: int = REQUEST,
    header_bytes: int = 10,
    bulk_bytes: int = 0,
    crc: int = 0,
    magic: int = 0x4C4C,
    version: int = WIRE_VERSION,
) -> bytes:
    return struct.pack(">HBBIIII", magic, version, kind, header_bytes, bulk_bytes, crc, 0)


def framed(header: bytes, kind: int = REQUEST) -> bytes:
    return pack_prefix(kind, header) + header


def request(**change: Any) -> RequestHeader:
    good = RequestHeader(7, 33, 1, 1, 0, 0, 6, 0, (), 6000, (0, 0), "", None, mdt.Getattr(make_fid(1, 2)))
    return good._replace(**change)


def bent(**change: Any) -> bytes:
    return framed(encode_request(request(**change)))


def miscounted(header: bytes, kind: int = REQUEST) -> bytes:
    """A good frame but for one bit of its checksum."""
    data = bytearray(framed(header, kind))
    data[12] ^= 1
    return bytes(data)


HELLO_FRAME = framed(pack(session.Hello(5, 0, "evil", 0)), HELLO)

FIRST = {
    "nothing but text": b"GET / HTTP/1.1\r\nHost: mds1\r\n\r\n",
    "zeros": bytes(200),
    "a request": bent(),
    "a HELLO of another version": prefix(HELLO, version=2) + bytes(10),
    "a HELLO of a MiB": prefix(HELLO, MIB),
    "a HELLO with bulk": pack_prefix(HELLO, pack(session.Hello(5, 0, "evil", 0)), 10) + HELLO_FRAME[20:] + bytes(10),
    "a HELLO with a bad checksum": miscounted(HELLO_FRAME[20:], HELLO),
    "a HELLO in a request": framed(HELLO_FRAME[20:], REQUEST),
    "a HELLO that is no array": framed(pack(5), HELLO),
    "a HELLO that is a map": framed(b"\x84\x01\x01\x02\x02\x03\x03\x04\x04", HELLO),
    "a HELLO that is too short": framed(pack((5, 0, "evil")), HELLO),
    "a HELLO of wrong types": framed(pack((5, "0", "evil", 0)), HELLO),
    "a HELLO with bool for int": framed(pack((5, False, "evil", 0)), HELLO),
    "a negative link": framed(pack((-5, 0, "evil", 0)), HELLO),
    "a negative index": framed(pack((5, -1, "evil", 0)), HELLO),
    "a negative count of bulk connections": framed(pack((5, 0, "evil", -1)), HELLO),
    "a name without end": framed(pack((5, 0, "e" * 300, 0)), HELLO),
    "a bulk connection of an unknown link": framed(pack((5, 1, "evil", 1)), HELLO),
}

SECOND = {
    "a bad magic": prefix(magic=0x4C4D),
    "an unknown kind": prefix(kind=99),
    "an empty header": prefix(header_bytes=0),
    "a header of 4 GiB": prefix(header_bytes=2**32 - 1),
    "a header above the limit": prefix(header_bytes=limits.header_bytes_max + 1),
    "a bulk of 4 GiB": prefix(bulk_bytes=2**32 - 1),
    "a bulk above the limit": prefix(bulk_bytes=limits.brw_bytes_max + 1),
    "a bad header checksum": miscounted(encode_request(request())),
    "a second HELLO": HELLO_FRAME,
    "a HELLO for another link": framed(pack(session.Hello(6, 0, "evil", 0)), HELLO),
    "msgpack that is none": framed(b"\xc1"),
    "msgpack cut short": framed(b"\x9d\x01"),
    "two values": framed(b"\x01\x02"),
    "a map": framed(b"\x81\x01\x02"),
    "a map of 4 Gi": framed(b"\xdf\xff\xff\xff\xff"),
    "an array of 4 Gi": framed(b"\xdd\xff\xff\xff\xff"),
    "an extension": framed(b"\xd4\x01\x00"),
    "a timestamp": framed(b"\xd6\xff\x00\x00\x00\x00"),
    "deep nesting": framed(b"\x91" * 100_000 + b"\x00"),
    "deep and wide": framed(b"\xdd\x00\x00\x7f\xff" * 3000),
    "bad utf-8": framed(pack(request()).replace(b"\xa0", b"\xa2\xff\xfe", 1)),
    "a number": framed(b"\x05"),
    "nil": framed(b"\xc0"),
    "an unknown opcode": bent(opcode=4711),
    "a huge opcode": bent(opcode=2**64 - 1),
    "a negative xid": bent(xid=-(2**63)),
    "a slot out of range": bent(tag=10**6),
    "a body of another message": bent(body=ost.Read(1, 2, 3)),
    "no body": bent(body=None),
    "a body as a map": bent(body={"fid": 1}),
    "a FID of 15 bytes": bent(body=(bytes(15),)),
    "a FID as text": bent(body=("x" * 16,)),
    "a float": bent(body=(1.5,)),
    "no credentials": bent(cred=()),
    "a thousand groups": bent(cred=(0,) * 1000),
}


async def still_served(link: Any, receiver: Any) -> None:
    count = len(receiver.frames)
    link.send(REQUEST, encode_request(request(xid=count)))
    link.send(REQUEST, encode_request(request(xid=count + 1, opcode=4, body=ost.Write(1, 2, make_fid(1, 2), 0, 0))), bytes(MIB))
    await receiver.until(frames=count + 2)
    assert sorted(header for _, header, _ in receiver.frames[count:]) == [(count, False), (count + 1, False)]


async def attack(world: World, data: bytes) -> None:
    """Send `data`, be cut off, and see that it hurt nobody else."""
    link, receiver = await world.connect()
    async with await Raw.dial(world.nid) as raw:
        raw.send(data)
        assert await raw.cut()
    assert [e.fields["why"] != "no HELLO in time" for e in world.events.select("link.refused")] == [True]
    assert world.listener.whole == 1 and not world.listener.links and not world.listener.strangers
    for served, heard in world.served[1:]:
        await heard.until(lost=1)
        assert served.closed
    await still_served(link, receiver)


@pytest.mark.parametrize("name", FIRST)
def test_a_bad_first_frame_costs_only_its_connection(run, nid, name):
    async def scenario():
        async with World(nid, answer=serve) as world:
            await attack(world, FIRST[name])

    run(scenario())


@pytest.mark.parametrize("name", SECOND)
def test_a_bad_frame_costs_only_its_link(run, name):
    async def scenario():
        async with World(TCP, answer=serve) as world:
            await attack(world, HELLO_FRAME + bent() + SECOND[name] + bent())
            assert len(world.served[1][1].frames) <= 2  # the good one before, perhaps the bad one, nothing after

    run(scenario())


def test_the_samples_are_bad_for_the_reason_that_they_name(run):
    """The good request in front of them all is answered, so it is the bad one that costs the link."""

    async def scenario():
        async with World(TCP, answer=serve) as world:
            async with await Raw.dial(world.nid) as raw:
                raw.send(HELLO_FRAME, bent(), bent(xid=8))
                assert [(await raw.receive())[0] for _ in range(3)] == [HELLO, REPLY, REPLY]

    run(scenario())


@pytest.mark.parametrize("kind", sorted(KINDS - {HELLO, REQUEST}))
def test_kinds_are_the_receivers_business(run, kind):
    async def scenario():
        async with World(TCP, answer=serve) as world:
            async with await Raw.dial(world.nid) as raw:
                raw.send(HELLO_FRAME, framed(b"\x01", kind), bent())
                assert (await raw.receive())[0] == HELLO
                assert (await raw.receive())[0] == REPLY

    run(scenario())


def test_a_link_with_the_id_of_another_is_one_of_its_own(run, nid):
    """The id binds connections until the link is whole; after that it says nothing."""

    async def scenario():
        async with World(nid, answer=serve) as world:
            link, receiver = await world.connect()
            async with await Raw.dial(world.nid) as raw:
                await raw.hello(link.id, 0, 0)
                assert world.listener.whole == 2
            await still_served(link, receiver)

    run(scenario())


@pytest.mark.parametrize("index", [1, 2, 2**63])
def test_a_strangers_hello_does_not_touch_a_whole_link(run, nid, index):
    """A HELLO replayed with the id of somebody else's link: the stranger is cut, the link lives."""

    async def scenario():
        async with World(nid, answer=serve) as world:
            link, receiver = await world.connect()
            async with await Raw.dial(world.nid) as raw:
                raw.frame(HELLO, session.Hello(link.id, index, "evil", 2))
                assert await raw.cut()
            await still_served(link, receiver)
            assert world.events.counts["link.refused"] == 1

    run(scenario())


def test_a_bulk_connection_is_bound_once(run):
    async def scenario():
        async with World(TCP, answer=serve) as world:
            async with await Raw.dial(world.nid) as control, await Raw.dial(world.nid) as bulk, await Raw.dial(world.nid) as twin:
                assert (await control.hello(5, 0, 2)).bulk_connections == 2
                await bulk.hello(5, 1, 2)
                twin.frame(HELLO, session.Hello(5, 1, "evil", 2))
                assert await twin.cut()
                async with await Raw.dial(world.nid) as last:
                    await last.hello(5, 2, 2)  # the twin cost the link nothing
                    control.send(bent())
                    assert (await control.receive())[0] == REPLY

    run(scenario())


def test_frames_before_the_link_is_whole_are_refused(run):
    async def scenario():
        async with World(TCP, answer=serve) as world:
            async with await Raw.dial(world.nid) as raw:
                await raw.hello(5, 0, 1)
                raw.send(bent())
                assert await raw.cut()
            assert world.listener.links == {} and not world.listener.whole and world.served == []

    run(scenario())


@pytest.mark.parametrize("sent", [b"", HELLO_FRAME[:3], HELLO_FRAME[:-1]])
def test_who_says_no_hello_is_cut_after_a_while(run, sent):
    async def scenario():
        async with World(TCP, answer=serve, hello_wait_s=0.1) as world:
            async with await Raw.dial(world.nid) as raw:
                raw.send(sent)
                assert await raw.cut()
            assert [e.fields["why"] for e in world.events.select("link.refused")] == ["no HELLO in time"]

    run(scenario())


def test_a_visitor_that_says_nothing_and_leaves_is_no_event(run):
    """A health check of a load balancer."""

    async def scenario():
        async with World(TCP, answer=serve) as world:
            async with await Raw.dial(world.nid):
                while not world.listener.strangers:
                    await asyncio.sleep(0)
            while world.listener.strangers:
                await asyncio.sleep(0)
            assert not world.events.counts

    run(scenario())


@pytest.mark.parametrize("keep", [5, 19, 20, 25, 40, 60, 100])
def test_a_peer_that_dies_in_the_middle_of_a_frame(run, nid, keep):
    async def scenario():
        async with World(nid, answer=serve) as world:
            link, receiver = await world.connect()
            async with await Raw.dial(world.nid) as raw:
                await raw.hello(5)
                header = encode_request(request(opcode=4, body=ost.Write(1, 2, make_fid(1, 2), 0, 0)))
                raw.send((pack_prefix(REQUEST, header, 5000, 0) + header + bytes(5000))[:keep])
                await raw.writer.drain()
                raw.writer.close()
                await world.served[1][1].until(lost=1)
            assert world.served[1][1].frames == []
            await still_served(link, receiver)

    run(scenario())


def test_fuzz_mutated_frames_against_a_live_listener(run, nid):
    """Some thousand damaged frames: each costs at most its own link, and nothing of it stays."""
    rng = random.Random(8411)
    bodies = [
        (33, mdt.Getattr(make_fid(1, 2))),
        (36, mdt.Create(make_fid(1, 2), b"name", make_fid(1, 3), 0o644, 0, b"", 1, None, mdt.Layout(65536, 0, "", ((0, 1), (1, 2))))),
        (4, ost.Write(1, 2, make_fid(1, 2), 0, 0)),
        (400, session.Ping()),
        (8, session.Connect("t", "c", 1, 0, 0, 0, 0, 0, 0, "n", 0)),
    ]

    def valid() -> bytearray:
        opcode, body = rng.choice(bodies)
        header = encode_request(request(opcode=opcode, body=body, xid=rng.getrandbits(60)))
        bulk = rng.randbytes(rng.choice((0, 0, 1, 3000)))
        return bytearray(pack_prefix(REQUEST, header, len(bulk), crc32c(bulk)) + header + bulk)

    def mutated() -> bytes:
        frame = valid()
        for _ in range(rng.randint(1, 3)):
            how, at = rng.randrange(5), rng.randrange(len(frame))
            if how == 0:
                frame[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                frame[at] = rng.choice((0, 0x7F, 0x80, 0xC0, 0xC1, 0xDD, 0xDF, 0xFF))
            elif how == 2:
                del frame[at : at + rng.randint(1, 8)]
            elif how == 3:
                frame[at:at] = rng.randbytes(rng.randint(1, 8))
            else:
                frame[at : at + 4] = struct.pack(">I", rng.choice((0, 1, 2**31, 2**32 - 1, limits.brw_bytes_max)))
            if len(frame) < 24:
                return bytes(frame)
        if rng.random() < 0.7:  # let it past the checksum, to the decoder
            bulk_bytes = int.from_bytes(frame[8:12], "big")
            header = bytes(frame[20 : max(21, len(frame) - bulk_bytes)])
            frame[4:8], frame[12:16] = struct.pack(">I", len(header)), struct.pack(">I", crc32c(header))
        return bytes(frame)

    async def scenario():
        async with World(nid, answer=serve) as world:
            link, receiver = await world.connect()
            frames = 0
            for i in range(300):
                burst = [bytes(valid()) if rng.random() < 0.3 else mutated() for _ in range(rng.randint(1, 20))]
                frames += len(burst)
                async with await Raw.dial(world.nid) as raw:
                    if rng.random() < 0.9:
                        raw.send(framed(pack(session.Hello(1000 + i, 0, "evil", 0)), HELLO))
                    raw.send(*burst)
                    raw.writer.write_eof()
                    assert await raw.cut()
            async with asyncio.timeout(WAIT_S):
                while world.listener.whole > 1 or world.listener.links or world.listener.strangers:
                    await asyncio.sleep(0.001)
            assert frames > 2000
            assert world.events.counts["link.refused"] > 100
            assert sum(len(heard.frames) for _, heard in world.served) > 100  # it got past the framing
            assert not link.closed
            await still_served(link, receiver)

    run(scenario())
