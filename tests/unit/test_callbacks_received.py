"""Callbacks at the client: which are counted, answered, executed; and the replay of locks as far as it is refused."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_servers import FakeNode

from lustrelite.errors import LinkLost
from lustrelite.faults import Fault
from lustrelite.rpc.callbacks_received import CallbacksReceived
from lustrelite.rpc.lock_replay import replay_locks
from lustrelite.wire import frame
from lustrelite.wire.ldlm import EX, FLOCK, PW, REPLAYED, UPDATE, Granted, Lvb, Want
from lustrelite.wire.locks import (
    Ask,
    BlockingCallback,
    CompletionCallback,
    EnqueueReply,
    GlimpseCallback,
    Known,
    check_callback_reply,
    decode_callback,
)
from lustrelite.wire.message import BY_CLASS, pack, unpack

pytestmark = pytest.mark.simulated

LVB = Lvb(1, 2, 3, 4, 5)
ASK = Ask(7, 0, EX, UPDATE, 0, 0)
GRANTED = Granted(8, 0, b"f", PW, 0, 0, 0, 9, 0, None)


class Link:
    """What is answered."""

    def __init__(self) -> None:
        self.link = self
        self.answers: list[tuple[Any, ...]] = []

    def send(self, kind: int, header: bytes, bulk: Any = None) -> None:
        assert kind == frame.CALLBACK_REPLY
        self.answers.append(check_callback_reply(unpack(header)))


class Locks:
    """Knows lock 7, waits for 8."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def blocked(self, ask: Ask, again: bool) -> int:
        self.log.append(("blocked", ask.handle, again))
        return 0 if ask.handle == 7 else -errno.EINVAL

    def completed(self, granted: Granted) -> int:
        self.log.append(("completed", granted.handle))
        return 0 if granted.handle == 8 else -errno.EINVAL

    def glimpsed(self, handle: int) -> Known | None:
        return Known(LVB, 0) if handle == 7 else None


class World:
    """An import over a link."""

    def __init__(self) -> None:
        self.node = FakeNode()
        self.link = Link()
        self.locks: Locks | None = Locks()
        self.records: Locks | None = None
        self.fsm = SimpleNamespace(conn_cnt=3)
        self.target = "OST0000"
        self.callbacks = CallbacksReceived(cast(Any, self))

    def tell(self, number: int, body: Any, *, conn_cnt: int = 3, link: Any = None) -> Any:
        """A callback comes; returns what was answered, or None."""
        raw = unpack(pack((number, BY_CLASS[type(body)].opcode, 99, conn_cnt, 0, body)))
        header, spec = decode_callback(raw)
        before = len(self.link.answers)
        self.callbacks.received(cast(Any, link or self.link), header, spec)
        if len(self.link.answers) == before:
            return None
        seen, handle, status, answer = self.link.answers[-1]
        assert (seen, handle, status) == (number, 99, 0)
        return spec.check_reply(answer)[0]


async def test_each_kind_is_answered_at_once() -> None:
    world = World()
    assert world.tell(1, BlockingCallback((ASK, ASK._replace(handle=9)))) == (0, -errno.EINVAL)
    assert world.tell(2, CompletionCallback((GRANTED, GRANTED._replace(handle=9)))) == (0, -errno.EINVAL)
    assert world.tell(3, GlimpseCallback((7, 9))) == (Known(LVB, 0), None)
    assert world.callbacks.seen == 3


async def test_a_client_without_locks_says_so() -> None:
    world = World()
    world.locks = None
    assert world.tell(1, BlockingCallback((ASK,))) == (-errno.EINVAL,)
    assert world.tell(2, GlimpseCallback((7,))) == (None,)
    world.records = Locks()
    assert world.tell(3, CompletionCallback((GRANTED,))) == (0,)


async def test_a_second_copy_is_answered_without_effect() -> None:
    world = World()
    assert world.locks is not None
    for _ in range(2):
        assert world.tell(2, CompletionCallback((GRANTED,))) == (0,)
    assert world.locks.log == [("completed", 8)]
    for _ in range(2):
        assert world.tell(1, BlockingCallback((ASK,))) == (0,)
    assert world.locks.log[1:] == [("blocked", 7, False), ("blocked", 7, True)]


async def test_what_was_seen_ends_at_the_first_gap() -> None:
    world = World()
    for number, seen in ((1, 1), (3, 1), (5, 1), (2, 3), (2, 3), (4, 5)):
        world.tell(number, GlimpseCallback(()))
        assert world.callbacks.seen == seen
    world.callbacks.restart()
    assert world.callbacks.seen == 0
    world.tell(1, GlimpseCallback(()))
    assert world.callbacks.seen == 1


async def test_a_callback_of_another_connection_is_ignored() -> None:
    world = World()
    assert world.tell(1, BlockingCallback((ASK,)), conn_cnt=2) is None
    assert world.tell(1, BlockingCallback((ASK,)), link=Link()) is None
    assert world.callbacks.seen == 0


async def test_a_callback_may_be_lost_or_late() -> None:
    world = World()
    world.node.faults.on_message("receive", "BlockingCallback", Fault("drop"))
    world.node.faults.on_message("receive", "BlockingCallback", Fault("delay", delay_s=0.01))
    assert world.tell(1, BlockingCallback((ASK,))) is None
    assert world.tell(1, BlockingCallback((ASK,))) is None and world.callbacks.seen == 0
    await asyncio.sleep(0.02)
    assert world.callbacks.seen == 1 and len(world.link.answers) == 1


# lock replay ------------------------------------------------------------------------------------------------------


def _want(handle: int) -> Want:
    return Want(handle, FLOCK, b"f", PW, REPLAYED, 0, 0, 0, 9, 1, 0)


class Replaying:
    """An import in the stage REPLAY_LOCKS."""

    def __init__(self, count: int) -> None:
        self.node = FakeNode()
        self.target = "OST0000"
        self.locks = None
        self.records = SimpleNamespace(wants_to_replay=lambda: [_want(n + 1) for n in range(count)])
        self.messages: list[int] = []
        self.in_flight = self.in_flight_max = 0
        self.refused: dict[int, int] = {}
        self.lost = 0

    async def exchange(self, body: Any, *, timeout_s: float, resend_s: float) -> Any:
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        self.messages.append(len(body.wants))
        await asyncio.sleep(0.001)
        self.in_flight -= 1
        granted = tuple(GRANTED._replace(handle=w.handle, status=self.refused.get(w.handle, 0)) for w in body.wants)
        return SimpleNamespace(reply=EnqueueReply(granted[self.lost :]))


async def test_many_locks_are_many_messages_and_some_of_them_at_once() -> None:
    imp = Replaying(6200)
    await replay_locks(cast(Any, imp))
    assert sorted(imp.messages) == [200, *[500] * 12] and imp.in_flight_max == 8
    nothing = Replaying(0)
    await replay_locks(cast(Any, nothing))
    assert not nothing.messages


@pytest.mark.parametrize(("refused", "lost"), [({5001: -errno.EINVAL}, 0), ({}, 1)])
async def test_what_is_refused_or_not_answered_begins_the_recovery_again(refused: dict[int, int], lost: int) -> None:
    imp = Replaying(10_000)
    imp.refused, imp.lost = refused, lost
    with pytest.raises(LinkLost):
        await replay_locks(cast(Any, imp))
    assert len(imp.messages) < 20
    await asyncio.sleep(0.01)
