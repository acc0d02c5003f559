"""Links over real loopback sockets, on asyncio and on uvloop."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from loopback import MIB, TCP, WAIT_S, Raw, Recorder, World, echo, nid, run

from lustrelite.errors import LinkLost, ProtocolError
from lustrelite.fuse import process as fuse_process
from lustrelite.ids import Nid
from lustrelite.rpc import transport
from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.links import LinkPool
from lustrelite.rpc.node import CORRUPT, Node
from lustrelite.rpc.request import Xids
from lustrelite.rpc.transport import SocketNetwork
from lustrelite.tunables import Tunables, limits
from lustrelite.wire.frame import HELLO, PREFIX_BYTES, REPLY, REQUEST, WIRE_VERSION, crc32c, pack_prefix
from lustrelite.wire.message import pack
from lustrelite.wire.session import Hello

assert nid and run  # fixtures


# frames


def test_frames_go_both_ways_in_order(run, nid):
    async def scenario():
        async with World(nid) as world:
            link, receiver = await world.connect()
            for i in range(1000):
                link.send(REQUEST, pack((i, b"x" * i)))
            await receiver.until(frames=1000)
            assert receiver.frames == [(REPLY, (i, b"x" * i), None) for i in range(1000)]
            assert link.peer == "server" and link.nid == world.nid
            served = world.served[0][0]
            assert served.peer == "caller" and served.nid.rpartition("@")[2] == nid.rpartition("@")[2]

    run(scenario())


def test_what_comes_quickly_is_worth_looking_for_and_data_is_not(run):
    """A frame without data is answered at once; for data there are disks and the other processors."""

    async def scenario():
        async with World(TCP) as world:
            seen = []
            link, receiver = await world.connect(bulk_connections=1)
            world.caller.spinner = SimpleNamespace(sent=lambda: seen.append("sent"), received=lambda: seen.append("received"))
            for number, (bulk, expected) in enumerate([(None, ["sent", "received"]), (memoryview(bytes(MIB)), [])]):
                link.send(REQUEST, pack((number,)), bulk)
                await receiver.until(frames=number + 1)
                assert seen == expected
                seen.clear()

    run(scenario())


@pytest.mark.parametrize("bulk_connections", [0, 1, 3])
@pytest.mark.parametrize("size", [1, 4096, limits.bulk_inline_bytes_max, limits.bulk_inline_bytes_max + 1, 4 * MIB])
def test_bulk_lands_in_the_memory_that_the_receiver_named(run, nid, size, bulk_connections):
    async def scenario():
        async with World(nid) as world:
            link, receiver = await world.connect(bulk_connections=bulk_connections)
            data = random.Random(size).randbytes(size)
            for i in range(4):
                link.send(REQUEST, pack((i,)), memoryview(data))
            await receiver.until(frames=4)
            assert sorted(header for _, header, _ in receiver.frames) == [(i,) for i in range(4)]
            server = world.served[0][1]
            for side in (receiver, server):
                for _, _, bulk in side.frames:
                    assert bulk == data
                    assert any(bulk.obj is memory.obj for memory in side.memory)  # no copy was made of it
                assert all(memory == data and memory.obj[size:] == bytes(10) for memory in side.memory)

    run(scenario())


def test_memory_that_is_withdrawn_is_its_owners_again(run):
    """A bulk that has landed by half goes on elsewhere, and arrives whole."""

    async def scenario():
        async with World(TCP) as world:
            async with await Raw.dial(world.nid) as raw:
                await raw.hello(5)
                header, bulk = pack((1,)), b"a" * 500 + b"b" * 500
                frame = pack_prefix(REQUEST, header, len(bulk), crc32c(bulk)) + header + bulk
                raw.send(frame[:-400])
                link, receiver = world.served[0]
                while not receiver.memory or link.connections[0]._bulk is None:
                    await asyncio.sleep(0)
                (memory,) = receiver.memory
                link.withdraw(memoryview(memory))  # another view of it is not what was given
                assert link.connections[0]._frame[2] is memory
                link.withdraw(memory)
                memory[:] = bytes(1000)
                raw.send(frame[-400:])
                assert await raw.receive() == (REPLY, (1,), bulk)
                assert memory == bytes(1000)
                link.withdraw(memory)

    run(scenario())


def test_an_empty_bulk_is_none(run):
    async def scenario():
        async with World(TCP) as world:
            link, receiver = await world.connect()
            link.send(REQUEST, pack(1), b"")
            await receiver.until(frames=1)
            assert receiver.frames == [(REPLY, 1, None)]
            assert receiver.memory == []

    run(scenario())


def test_a_ping_overtakes_bulk(run, nid):
    async def scenario():
        async with World(nid, answer=None) as world:
            link, _ = await world.connect()
            data = bytes(4 * MIB)
            for i in range(12):
                link.send(REQUEST, pack(i), data)
            link.send(REQUEST, pack("ping"))
            server = world.served[0][1]
            await server.until(frames=13)
            assert [h for _, h, _ in server.frames].index("ping") < 12

    run(scenario())


def test_large_headers_pass_and_small_ones_after_them(run, nid):
    async def scenario():
        async with World(nid) as world:
            link, receiver = await world.connect()
            sizes = [10, limits.header_bytes_max - 5, 1, 70_000, 65_516, 65_517, 3] * 2
            for size in sizes:
                link.send(REQUEST, pack(bytes(size)))
            await receiver.until(frames=len(sizes))
            assert [len(h) for _, h, _ in receiver.frames] == sizes
            for side in (link, world.served[0][0]):  # and the memory for the large one is given back
                assert len(side.connections[0]._view) == 0

    run(scenario())


@pytest.mark.parametrize("step", [1, 7, 19, 20, 21, 50])
def test_frames_arrive_in_any_pieces(run, step):
    async def scenario():
        async with World(TCP) as world:
            async with await Raw.dial(world.nid) as raw:
                await raw.hello(5)
                data = b""
                for i, bulk in enumerate([b"", b"a" * 45, b"", b"b" * 3]):
                    header = pack((i, "x" * i * 9))
                    data += pack_prefix(REQUEST, header, len(bulk), crc32c(bulk)) + header + bulk
                for start in range(0, len(data), step):
                    raw.send(data[start : start + step])
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                answers = [await raw.receive() for _ in range(4)]
                assert [(h[0], b) for _, h, b in answers] == [(0, b""), (1, b"a" * 45), (2, b""), (3, b"bbb")]

    run(scenario())


def test_frames_of_one_turn_leave_in_few_writes(run):
    async def scenario():
        async with World(TCP, answer=None) as world:
            link, _ = await world.connect()
            written: list[int | list[int]] = []
            inner = link.connections[0].transport

            class Counting:
                def write(self, data):
                    written.append(len(data))
                    inner.write(data)

                def writelines(self, parts):
                    written.append([len(part) for part in parts])
                    inner.writelines(parts)

                def __getattr__(self, name):
                    return getattr(inner, name)

            link.connections[0].transport = Counting()
            for i in range(5):
                link.send(REQUEST, pack(i), b"x" * 10)
            assert written == []
            server = world.served[0][1]
            await server.until(frames=5)
            assert len(written) == 1
            written.clear()
            for i in range(45):  # many leave a few at a time, so that the peer can begin
                link.send(REQUEST, pack(i), b"x" * 10)
            assert 1 < len(written) < 10
            await server.until(frames=50)
            assert len(written) < 12
            written.clear()
            big = memoryview(bytes(60_000))  # goes as it is, between what was before and after it
            link.send(REQUEST, pack(1))
            link.send(REQUEST, pack(2), big)
            link.send(REQUEST, pack(3))
            await server.until(frames=53)
            assert len(written) == 1 and written[0][1] == 60_000 and len(written[0]) == 3
            assert [h for _, h, _ in server.frames[50:]] == [1, 2, 3]

    run(scenario())


def test_a_corrupt_bulk_is_delivered_as_such_and_the_link_lives(run, nid):
    async def scenario():
        async with World(nid, answer=lambda link, kind, header, bulk: link.send(REPLY, pack(bulk is CORRUPT))) as world:
            async with await Raw.dial(world.nid) as raw:
                await raw.hello(5)
                for size in (100, 60_000):
                    header = pack(size)
                    raw.send(pack_prefix(REQUEST, header, size, 12345), header, bytes(size))
                    assert (await raw.receive())[1] is True
                    raw.frame(REQUEST, size, bytes(size))
                    assert (await raw.receive())[1] is False
            assert world.events.counts["bulk.corrupt"] == 2
            assert not world.events.counts["link.refused"]

    run(scenario())


# the end of a link


def test_close_is_heard_once_and_later_on_both_sides(run, nid):
    async def scenario():
        async with World(nid) as world:
            link, receiver = await world.connect(bulk_connections=2)
            served, server = world.served[0]
            link.close("enough")
            link.close("again")
            assert link.closed and receiver.lost == []  # not from inside close
            link.send(REQUEST, pack(1))  # nothing happens
            await receiver.until(lost=1)
            await server.until(lost=1)
            for _ in range(5):
                await asyncio.sleep(0)
            assert receiver.lost == ["enough"]
            assert len(server.lost) == 1 and served.closed
            assert world.listener.links == {} and not world.listener.whole
            assert receiver.frames == server.frames == []

    run(scenario())


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_link_dies_with_any_of_its_connections(run, nid, index):
    async def scenario():
        async with World(nid) as world:
            link, receiver = await world.connect(bulk_connections=2)
            served, server = world.served[0]
            served.connections[index].transport.abort()
            await receiver.until(lost=1)
            await server.until(lost=1)
            assert link.closed and served.closed
            assert len(receiver.lost) == len(server.lost) == 1

    run(scenario())


def test_after_close_no_frame_of_the_same_read_is_delivered(run):
    async def scenario():
        def close_on_two(link, kind, header, bulk):
            if header == 2:
                link.close("two")

        async with World(TCP, answer=close_on_two) as world:
            link, receiver = await world.connect()
            for i in range(5):
                link.send(REQUEST, pack(i))
            await receiver.until(lost=1)
            server = world.served[0][1]
            assert [h for _, h, _ in server.frames] == [0, 1, 2]
            assert server.lost == ["two"]

    run(scenario())


@pytest.mark.parametrize("where", ["frame_received", "bulk_buffer"])
def test_a_receiver_that_finds_a_breach_costs_the_peer_its_link(run, where):
    async def scenario():
        async with World(TCP, answer=None) as world:
            link, receiver = await world.connect()
            other, answers = await world.connect()

            def refuse(*_):
                raise ProtocolError("not like that")

            setattr(world.served[0][1], where, refuse)
            world.served[1][1].answer = echo
            link.send(REQUEST, pack(1), b"bulk")
            await receiver.until(lost=1)
            assert world.served[0][1].lost == ["not like that"]
            assert [e.fields for e in world.events.select("link.refused")] == [{"peer": "caller", "why": "not like that"}]
            other.send(REQUEST, pack(1))
            await answers.until(frames=1)

    run(scenario())


def test_a_peer_that_does_not_read_loses_its_link(run, nid):
    async def scenario():
        async with World(nid, unsent_bytes_max=8 * MIB) as world:
            async with await Raw.dial(world.nid) as raw:
                raw.writer.transport.pause_reading()
                raw.frame(HELLO, Hello(5, 0, "raw", 0))
                while not world.served:
                    await asyncio.sleep(0)
                link, server = world.served[0]
                sent = 0
                while not link.closed and sent < 200:
                    link.send(REPLY, pack(sent), bytes(MIB))
                    assert server.lost == []  # never from inside send
                    sent += 1
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                await server.until(lost=1)
                assert "does not read" in server.lost[0]
                assert 8 <= sent < 30

    run(scenario())


def test_a_slow_peer_that_reads_keeps_its_link(run):
    async def scenario():
        async with World(TCP, answer=None, unsent_bytes_max=2 * MIB) as world:
            link, receiver = await world.connect()
            served = world.served[0][0]
            for i in range(40):
                served.send(REPLY, pack(i), bytes(MIB))
                await receiver.until(frames=i + 1)
            assert not link.closed

    run(scenario())


# making a link


@pytest.mark.parametrize("address", ["127.0.0.1:1@tcp", "/nowhere/at/all@unix", "mds1@sim", "127.0.0.1:99999@tcp", "x@tcp"])
def test_nobody_there_is_link_lost(run, address):
    async def scenario():
        receiver = Recorder()
        with pytest.raises(LinkLost, match="cannot connect"):
            await SocketNetwork(random.Random(1)).connect(Nid(address), receiver)
        assert receiver.lost == []

    run(scenario())


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (None, "no HELLO in time"),
        (b"", "closed by the peer|lost"),
        (b"SSH-2.0-OpenSSH_9.2\r\n" * 2, "bad magic"),
    ],
)
def test_a_server_that_says_no_hello_is_link_lost(run, says, why):
    async def scenario():
        async def serve(reader, writer):
            if says is not None:
                writer.write(says)
                await reader.read(PREFIX_BYTES)
                writer.close()
            else:
                await reader.read()
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        receiver = Recorder()
        network = SocketNetwork(random.Random(1), hello_wait_s=0.2)
        with pytest.raises(LinkLost, match=why):
            await network.connect(Nid(f"127.0.0.1:{server.sockets[0].getsockname()[1]}@tcp"), receiver)
        assert receiver.lost == []
        server.close()
        await asyncio.sleep(0.01)

    run(scenario())


def older(kind: int, value: Any) -> bytes:
    """A frame as a program of the version before ours sends it."""
    header = pack(value)
    frame = bytearray(pack_prefix(kind, header) + header)
    frame[2] = WIRE_VERSION - 1
    return bytes(frame)


def test_a_program_of_another_version_is_refused_and_told_ours(run, nid):
    async def scenario():
        async with World(nid) as world, await Raw.dial(world.nid) as raw:
            raw.send(older(HELLO, Hello(5, 0, "raw", 0)))
            async with asyncio.timeout(WAIT_S):
                assert (await raw.reader.readexactly(PREFIX_BYTES))[:3] == bytes((0x4C, 0x4C, WIRE_VERSION))
            assert await raw.cut()
            said = [event.fields["why"] for event in world.events.select("link.refused")]
            assert said == [f"the other side speaks version {WIRE_VERSION - 1} of the wire protocol, this program {WIRE_VERSION}"]
            assert not world.listener.strangers and not world.listener.links

    run(scenario())


def test_who_is_stopped_in_the_turn_of_the_answer_has_met_no_liar(run, monkeypatch):
    """Seen once when a client was killed: a warning that the HELLO answered another one."""

    async def scenario():
        heard = asyncio.Event()
        dialled = []
        attach = transport.SocketLink.attach

        def watch(link, index, connection):
            dialled.append((link, connection))
            attach(link, index, connection)

        monkeypatch.setattr(transport.SocketLink, "attach", watch)

        async def serve(reader, writer):
            await reader.read(PREFIX_BYTES)
            heard.set()
            while await reader.read(4096):
                pass
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        network = SocketNetwork(random.Random(1), name="caller")
        calling = asyncio.ensure_future(network.connect(Nid(f"127.0.0.1:{port}@tcp"), Recorder()))
        await asyncio.wait_for(heard.wait(), WAIT_S)
        ((link, connection),) = dialled
        calling.cancel()
        connection._on_hello(connection, Hello(link.id, 0, "server", 0))
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert link.closed
        server.close()
        await asyncio.sleep(0.01)

    run(scenario())


@asynccontextmanager
async def server_of_before(answer: str) -> AsyncIterator[tuple[Nid, list[float]]]:
    """A server of the version before ours: where it is, and when it was called."""
    calls: list[float] = []

    async def serve(reader, writer):
        calls.append(asyncio.get_running_loop().time())
        await reader.read(PREFIX_BYTES)
        hello = older(HELLO, Hello(5, 0, "old", 0))
        writer.write(hello if answer == "hello" else hello[:4] + bytes(PREFIX_BYTES - 4))
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield Nid(f"127.0.0.1:{server.sockets[0].getsockname()[1]}@tcp"), calls
    server.close()


def test_a_mount_says_that_the_server_is_of_another_version(run):
    """And not that it does not answer."""

    async def scenario():
        async with server_of_before("hello") as (where, _):
            node = Node("client", SocketNetwork(random.Random(1)), tunables=Tunables(reconnect_pause_s=0.001), seed=1)
            options = argparse.Namespace(fsname="lustre", mgsnode=[where], wait_s=0.3)
            with pytest.raises(fuse_process.Refused) as caught:
                await fuse_process.connect(node, options)
            assert str(caught.value) == (
                f"MGS cannot be used: {where}: the other side speaks version {WIRE_VERSION - 1} of the wire protocol, "
                f"this program {WIRE_VERSION}"
            )
            await node.stop_tasks()

    run(scenario())


@pytest.mark.parametrize("answer", ["refusal", "hello"])
def test_a_client_of_another_version_says_so_once_and_does_not_hurry(run, answer):
    """One line that names both versions, however often it tries; and then it waits as long as it ever does."""

    async def scenario():
        async with server_of_before(answer) as (where, calls):
            tunables = Tunables(reconnect_pause_s=0.001, reconnect_pause_max_s=0.2)
            node = Node("client", SocketNetwork(random.Random(1)), tunables=tunables, seed=1)
            imp = ClientImport(
                node, LinkPool(node), target_uuid="MGS_UUID", nids=[where], client_uuid="c", incarnation=1, xids=Xids(node)
            )
            imp.start()
            async with asyncio.timeout(WAIT_S):
                while len(calls) < 3:
                    await asyncio.sleep(0.01)
            imp.stop()
            (said,) = node.events.select("import.other_version")
            assert said.fields["message"] == (
                f"MGS cannot be used: {where}: the other side speaks version {WIRE_VERSION - 1} of the wire protocol, "
                f"this program {WIRE_VERSION}"
            )
            assert min(later - sooner for sooner, later in pairwise(calls)) > 0.75 * 0.2 - 0.01
            await asyncio.sleep(0.01)

    run(scenario())


def test_a_cancelled_connect_leaves_nothing_behind(run):
    async def scenario():
        async with World(TCP, hello_wait_s=5.0) as world:
            for turns in range(12):
                receiver = Recorder()
                task = asyncio.ensure_future(world.caller.connect(world.nid, receiver, bulk_connections=2))
                for _ in range(turns):
                    await asyncio.sleep(0)
                done = task.done()
                task.cancel()
                try:
                    (await task).close()
                    assert done
                except asyncio.CancelledError:
                    assert receiver.lost == []
            async with asyncio.timeout(WAIT_S):
                while world.listener.whole or world.listener.links or world.listener.strangers:
                    await asyncio.sleep(0.001)

    run(scenario())


def test_a_link_lost_in_the_turn_of_its_last_hello_is_link_lost(run):
    async def scenario():
        async with World(TCP) as world:
            dial = world.caller._dial

            async def dial_and_lose(link, *args):
                answer = await dial(link, *args)
                link.drop("just now")
                return answer

            world.caller._dial = dial_and_lose
            for bulk_connections in (0, 1):
                receiver = Recorder()
                with pytest.raises(LinkLost, match="just now"):
                    await world.caller.connect(world.nid, receiver, bulk_connections=bulk_connections)
                assert receiver.lost == []

    run(scenario())


def test_a_connection_made_after_its_link_went_is_cut(run):
    async def scenario():
        async with World(TCP) as world:
            connection = transport.Connection(world.caller, lambda *_: None)
            connection.abort()  # the link was dropped while this one was dialled
            host, port, _ = transport._parse(world.nid)
            made, _ = await asyncio.get_running_loop().create_connection(lambda: connection, host, port)
            assert made.is_closing()

    run(scenario())


def test_a_whole_link_outlives_the_time_for_hello(run):
    async def scenario():
        async with World(TCP, hello_wait_s=0.05) as world:
            link, receiver = await world.connect(bulk_connections=1)
            await asyncio.sleep(0.15)
            link.send(REQUEST, pack(1), bytes(MIB))
            await receiver.until(frames=1)

    run(scenario())


def test_a_listener_grants_as_many_bulk_connections_as_it_will(run, nid):
    async def scenario():
        async with World(nid, bulk_connections_max=1) as world:
            link, receiver = await world.connect(bulk_connections=4)
            assert len(link.connections) == 2
            link.send(REQUEST, pack(1), bytes(MIB))
            await receiver.until(frames=1)

    run(scenario())


def test_a_server_may_speak_first(run):
    async def scenario():
        async with World(TCP) as world:
            inner = world._accept

            def accept(link):
                link.send(REQUEST, pack("first"))
                return inner(link)

            world.listener.accept = accept
            _, receiver = await world.connect(echo)
            await receiver.until(frames=1)
            await world.served[0][1].until(frames=1)

    run(scenario())


def test_links_are_bounded(run):
    async def scenario():
        async with World(TCP, links_max=3) as world:
            links = [(await world.connect())[0] for _ in range(3)]
            with pytest.raises(LinkLost):
                await world.connect()
            assert world.listener.whole == 3
            links[0].close()
            await world.served[0][1].until(lost=1)
            await world.connect()

    run(scenario())


def test_strangers_are_bounded(run):
    async def scenario():
        async with World(TCP, links_max=3) as world:
            raws = [await Raw.dial(world.nid) for _ in range(4)]
            assert await raws[3].cut()
            assert len(world.listener.strangers) == 3
            for raw in raws:
                raw.writer.transport.abort()

    run(scenario())


def test_half_a_link_does_not_stay(run):
    async def scenario():
        async with World(TCP, hello_wait_s=0.1) as world:
            async with await Raw.dial(world.nid) as raw:
                assert (await raw.hello(5, 0, 1)).bulk_connections == 1
                assert await raw.cut()
            assert world.listener.links == {} and not world.listener.whole and world.served == []

    run(scenario())


# listening


def test_only_loopback_is_served_unless_told_otherwise(run):
    async def scenario():
        network = SocketNetwork(random.Random(1))
        for address in ("0.0.0.0:0@tcp", "192.0.2.1:0@tcp", "mds1:988@tcp", "[::]:0@tcp"):
            with pytest.raises(ValueError, match="allow_remote"):
                await network.listen(Nid(address), Recorder)
        for address in ("127.0.0.1:0@tcp", "127.0.0.2:0@tcp", "localhost:0@tcp"):
            (await network.listen(Nid(address), Recorder)).close()
        listener = await SocketNetwork(random.Random(1), allow_remote=True).listen(Nid("0.0.0.0:0@tcp"), Recorder)
        assert not listener.nid.endswith(":0@tcp")
        listener.close()

    run(scenario())


def test_a_name_is_listened_at_where_it_is(run, monkeypatch):
    """A container that came back to its network with another address was reached by nobody, until it was started anew."""
    places: list[set[str]] = [{"127.0.0.1"}, {"192.0.2.1"}, {"127.0.0.2"}, {"127.0.0.2"}]
    looked = asyncio.Event()

    async def addresses(host: str, port: int) -> set[str]:
        assert host == "localhost"
        if len(places) == 1:
            looked.set()
        return places.pop(0) if len(places) > 1 else places[0]

    async def scenario():
        monkeypatch.setattr(transport, "FOLLOW_S", 0.0)
        monkeypatch.setattr(transport, "_addresses", addresses)
        network = SocketNetwork(random.Random(1), allow_remote=True)
        listener = await network.listen(Nid("localhost:0@tcp"), Recorder)
        port = listener.nid.rpartition(":")[2]
        async with asyncio.timeout(WAIT_S):
            await looked.wait()
            link = await network.connect(Nid(f"127.0.0.2:{port}"), Recorder())
            with pytest.raises(LinkLost):
                await network.connect(Nid(f"127.0.0.1:{port}"), Recorder())
        link.close()
        listener.close()

    run(scenario())


def test_addresses_that_cannot_be_listened_at(run):
    async def scenario():
        network = SocketNetwork(random.Random(1))
        for address in ("mds1@sim", "127.0.0.1:x@tcp", "127.0.0.1:65536@tcp", "relative@unix", f"/{'x' * 101}@unix", ""):
            with pytest.raises(ValueError):
                await network.listen(Nid(address), Recorder)

    run(scenario())


def test_a_port_that_is_taken_is_an_oserror(run):
    async def scenario():
        async with World(TCP) as world:
            with pytest.raises(OSError):
                await world.network.listen(world.nid, Recorder)

    run(scenario())


def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(run, tmp_path):
    path = f"{tmp_path}/s"

    async def scenario():
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        async with World(Nid(f"{path}@unix")) as world:
            with pytest.raises(OSError, match="somebody listens there"):
                await world.network.listen(world.nid, Recorder)
            link, receiver = await world.connect()  # and the live one was not hurt
            link.send(REQUEST, pack(1))
            await receiver.until(frames=1)
        assert not os.path.exists(path)

    run(scenario())


def test_a_file_in_the_way_is_not_removed(run, tmp_path):
    async def scenario():
        (tmp_path / "s").write_text("precious")
        with pytest.raises(OSError, match="no socket"):
            await SocketNetwork(random.Random(1)).listen(Nid(f"{tmp_path}/s@unix"), Recorder)
        assert (tmp_path / "s").read_text() == "precious"

    run(scenario())


def test_closing_a_listener_leaves_its_successors_socket(run, tmp_path):
    async def scenario():
        nid = Nid(f"{tmp_path}/s@unix")
        network = SocketNetwork(random.Random(1))
        old = await network.listen(nid, Recorder)
        os.rename(f"{tmp_path}/s", f"{tmp_path}/old")
        new = await network.listen(nid, Recorder)
        old.close()
        assert os.path.exists(f"{tmp_path}/s")
        new.close()
        new.close()
        assert not os.path.exists(f"{tmp_path}/s")

    run(scenario())


def test_a_closed_listener_takes_nobody_and_drops_nobody(run, nid):
    async def scenario():
        async with World(nid) as world:
            link, receiver = await world.connect()
            stranger = await Raw.dial(world.nid)
            while not world.listener.strangers:
                await asyncio.sleep(0)
            world.listener.close()
            with pytest.raises(LinkLost):
                await world.connect()
            assert await stranger.cut()
            stranger.writer.transport.abort()
            link.send(REQUEST, pack(1), bytes(MIB))
            await receiver.until(frames=1)

    run(scenario())


def test_transport_does_not_choose_the_loop():
    assert "uvloop" not in vars(transport)
