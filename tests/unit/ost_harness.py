"""An OST on real stores behind the real service, and clients that speak to it frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack

from lustrelite.errors import OpError
from lustrelite.ids import Fid, Nid, make_fid
from lustrelite.ost.ost import Ost
from lustrelite.rpc.node import Link, Listener, Network, Node, Receiver
from lustrelite.rpc.service import Service
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.tunables import Tunables
from lustrelite.wire import frame
from lustrelite.wire.ldlm import Granted, Ride
from lustrelite.wire.locks import CallbackHeader, decode_callback
from lustrelite.wire.message import BY_CLASS, REPLAY, REQ_REPLAY_DONE, ROOT_CRED, RequestHeader, pack
from lustrelite.wire.ost import OstCreate
from lustrelite.wire.session import CONNECT_INITIAL, CONNECT_TRANSNO, FEATURE_SERVER, Connect, ConnectReply, Ping

FILE: Fid = make_fid(0x200000401, 7)


class NoNetwork(Network):
    """Nobody dials anybody here."""

    async def connect(self, nid: Nid, receiver: Receiver, *, bulk_connections: int = 1) -> Link:
        raise AssertionError("no network")

    async def listen(self, nid: Nid, accept: Callable[[Link], Receiver]) -> Listener:
        raise AssertionError("no network")


class Answer:
    """A reply as it came."""

    def __init__(self, raw: Any, bulk: bytes | None) -> None:
        self.status: int = raw[1]
        self.transno: int = raw[3]
        self.last_committed: int = raw[4]
        self.pre_versions: tuple[int, ...] = tuple(raw[5])
        self.granted = tuple(Granted(*row) for row in raw[9])
        self.callback: int = raw[10]
        self.body = raw[11]
        self.bulk = bulk


class Client:
    """One client: a link of its own, requests with slots, everything by hand."""

    def __init__(self, service: Service, uuid: str, features: int = 0) -> None:
        self.service = service
        self.uuid = uuid
        self.incarnation = 1
        self.features = features
        self.peer = uuid
        self.nid = Nid(f"{uuid}@sim")
        self.closed = False
        self.conn_cnt = 0
        self.handle = 0
        self.xid = 1000
        self.waiting: dict[int, asyncio.Future[Answer]] = {}
        self.callbacks: list[CallbackHeader] = []  # as they came
        self.says: Callable[[Any, int], Any] | None = _yes  # (item, number) -> its answer; None: no answer at all
        self.receiver = self.service._accept(self)

    def link_to(self, service: Service) -> None:
        """A new link, to the next incarnation of the server."""
        self.service = service
        self.closed = False
        self.handle = 0
        self.receiver = service._accept(self)

    # the link, as the server sees it

    def send(self, kind: int, header: bytes, bulk: Any = None) -> None:
        raw = msgpack.unpackb(header, use_list=False)
        if kind == frame.CALLBACK:
            self._called_back(raw)
            return
        if kind == frame.EARLY_REPLY:
            return
        future = self.waiting.pop(raw[0], None)
        if future is not None and not future.done():
            future.set_result(Answer(raw, None if bulk is None else bytes(bulk)))

    def _called_back(self, raw: Any) -> None:
        callback, _ = decode_callback(raw)
        self.callbacks.append(callback)
        if self.says is not None:
            answers = tuple(self.says(item, callback.number) for item in callback.body[0])
            asyncio.get_running_loop().call_soon(self.reply_to, callback, 0, (answers,))

    def reply_to(self, callback: CallbackHeader, status: int, body: Any) -> None:
        """Answer a callback."""
        raw = msgpack.unpackb(pack((callback.number, callback.handle, status, body)), use_list=False)
        self.receiver.frame_received(self, frame.CALLBACK_REPLY, raw, None)

    def heard(self, kind: type) -> list[Any]:
        """All items of the callbacks of this kind, in their order."""
        return [item for callback in self.callbacks if type(callback.body) is kind for item in callback.body[0]]

    def close(self, why: str = "") -> None:
        self.closed = True
        self.receiver.link_lost(self, why)

    # the client

    def start(
        self, body: Any, bulk: bytes | None = None, *, flags: int = 0, tag: int = 0, transno: int = 0,
        pre_versions: tuple[int, ...] = (), xid: int = 0, cred: tuple[int, ...] = ROOT_CRED,
        ride: Ride | None = None,
    ) -> asyncio.Future[Answer]:
        spec = BY_CLASS[type(body)]
        if not xid:
            self.xid += 1
            xid = self.xid
        if spec.mutates and not tag:
            tag = 1 + xid % 8
        header = RequestHeader(
            xid, spec.opcode, self.handle, self.conn_cnt, flags, tag, 0, transno, pre_versions, 6000, cred, "", ride, body
        )
        self.waiting[xid] = future = asyncio.get_running_loop().create_future()
        raw = msgpack.unpackb(pack(header), use_list=False)
        self.receiver.frame_received(self, frame.REQUEST, raw, None if bulk is None else memoryview(bulk))
        return future

    async def ask(self, body: Any, bulk: bytes | None = None, **options: Any) -> Answer:
        return await asyncio.wait_for(self.start(body, bulk, **options), 10)

    async def call(self, body: Any, bulk: bytes | None = None, **options: Any) -> Any:
        """The reply's body; OpError if it is an error."""
        answer = await self.ask(body, bulk, **options)
        if answer.status:
            raise OpError(-answer.status)
        return BY_CLASS[type(body)].check_reply(answer.body)

    async def connect(self, target: str, *, first_transno: int = 0) -> ConnectReply:
        self.conn_cnt += 1
        flags = CONNECT_INITIAL | (CONNECT_TRANSNO if first_transno else 0)
        body = Connect(target, self.uuid, self.incarnation, self.handle, flags, first_transno, 0, 0, self.features, self.nid, 0)
        reply: ConnectReply = await self.call(body)
        self.handle = reply.handle
        return reply

    async def replay(self, body: Any, bulk: bytes | None, answer: Answer, xid: int) -> Answer:
        """`body` again, as its answer says it was executed."""
        return await self.ask(
            body, bulk, flags=REPLAY, transno=answer.transno, pre_versions=answer.pre_versions, xid=xid
        )

    async def replay_done(self) -> None:
        await self.call(Ping(), flags=REQ_REPLAY_DONE)


def _yes(item: Any, number: int) -> Any:
    """Everything is fine; of an object nothing is known."""
    return None if type(item) is int else 0


@asynccontextmanager
async def running(top: Path) -> AsyncIterator[Rig]:
    """A new OST with both its clients; no task of it crashes."""
    rig = Rig(top)
    await rig.start(create=True)
    await rig.connect()
    yield rig
    await rig.kill()
    assert rig.crashes == []


class Rig:
    """One OST in a directory; `restart` is a kill and a new start."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        tunables = Tunables(commit_interval_s=30.0, recovery_time_soft_s=3.0, recovery_time_hard_s=5.0)
        self.node = Node("oss", NoNetwork(), tunables=tunables, seed=1)
        self.crashes: list[str] = []
        self.node.on_crash = self.crashes.append
        self.ost: Ost
        self.service: Service
        self.mdt: Client
        self.client: Client

    async def start(self, *, create: bool = False) -> Ost:
        store = Store.open(self.directory, "OST", create=create, durable=False)
        self.ost = Ost(self.node, store, ObjectFiles(self.directory), name="test-OST0000")
        self.service = Service(self.node)
        self.service.add_target(self.ost)
        await self.ost.start()
        return self.ost

    async def connect(self) -> None:
        self.mdt = Client(self.service, "test-MDT0000-mdtlov_UUID", FEATURE_SERVER)
        self.client = Client(self.service, "client_UUID")
        await self.mdt.connect(self.ost.uuid)
        await self.client.connect(self.ost.uuid)

    async def reconnect(self, first_transno: int, *, of_mdt: int = 0) -> None:
        """After a restart: the client has something to replay from there on, the MDT nothing, or from `of_mdt` on."""
        for client in (self.mdt, self.client):
            client.link_to(self.service)
        await self.mdt.connect(self.ost.uuid, first_transno=of_mdt)
        await self.client.connect(self.ost.uuid, first_transno=first_transno)

    async def grant(self, upto: int) -> None:
        assert (await self.mdt.call(OstCreate(upto, 0))).last_id == upto

    async def commit(self) -> None:
        await self.ost.committed()

    async def kill(self) -> None:
        self.ost.kill()
        self.service.close()
        for task in list(self.node._tasks):
            task.cancel()
        await asyncio.gather(*self.node._tasks, return_exceptions=True)

    def files(self) -> list[int]:
        return sorted(self.ost.files.ids())

    async def settle(self) -> None:
        """Until no task but the evictor is left."""
        for _ in range(2000):
            unlinking = any(":sweep " in task.get_name() or ":unlink " in task.get_name() for task in self.ost._at_work)
            if not unlinking and not self.ost.prepared and not len(self.ost.ranges) and not self.ost.committer._busy:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("it does not settle")
