"""A request of a client, and the numbers that requests get."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lustrelite.ids import Xid
from lustrelite.rpc.node import Link, Node
from lustrelite.wire.ldlm import Ride
from lustrelite.wire.message import Cred, Spec

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport


class Xids:
    """XIDs of one client: they start from the clock and only grow.  Source: protocol-facts 2"""

    def __init__(self, node: Node) -> None:
        # Fine enough that a process restarted at once begins above its predecessor: this is its incarnation, too.
        self.last = (node.wall_ns() // 1_000) << 10

    def next(self) -> Xid:
        """A number that this client has not used."""
        self.last += 1
        return Xid(self.last)

    def raise_above(self, xid: int) -> None:
        """A server has seen `xid` under our UUID already (our clock was set back)."""
        self.last = max(self.last, xid)


class Request:
    """One request from its call to the end of its replay."""

    __slots__ = (
        "body", "bulk", "closes", "conn_cnt", "cred", "deadline", "direct", "ended", "flags", "future", "generation",
        "keeps_open", "landing", "owner", "pauses", "pre_versions", "replayed_at", "reply", "reply_bulk", "reply_raw", "ride", "sent_at",
        "sink", "spec", "tag", "timeout_s", "transno", "unclaimed", "working_at", "xid",
    )  # fmt: skip

    def __init__(self, owner: ClientImport, spec: Spec, body: Any, cred: Cred, timeout_s: float) -> None:
        self.owner = owner
        self.spec = spec
        self.body = body
        self.cred = cred
        self.timeout_s = timeout_s
        self.xid = 0
        self.tag = 0
        self.flags = 0
        self.transno = 0
        self.pre_versions: tuple[int, ...] = ()
        self.bulk: Any = None
        self.sink: memoryview | None = None
        self.landing: tuple[Link, memoryview] | None = None  # who may put the data of a reply there
        self.ended: Callable[[Any, int], None] | None = None  # what is called with the answer, whoever waits for it
        self.unclaimed: Callable[[int, Any], None] | None = None  # gets xid and answer if nobody waits for it any more
        self.ride: Ride | None = None  # locks that go with it; a replay carries none
        self.reply: Any = None
        self.reply_bulk: memoryview | None = None
        self.reply_raw: tuple[Any, ...] = ()
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.deadline = 0.0
        self.sent_at = 0.0  # when it was first sent over the present connection
        self.working_at = 0.0  # when the server last said that it is at it
        self.generation = 0
        self.conn_cnt = 0
        self.direct = False  # belongs to recovery itself: fails with LinkLost instead of waiting
        self.keeps_open = False
        self.closes: tuple[int, ...] = ()
        self.pauses = 0
        self.replayed_at = 0  # instance of the target that has executed the replay


def end(request: Request, reply: Any = None, transno: int = 0) -> None:
    """It is answered; without `reply` refused, never sent, or there will be no answer."""
    ended, request.ended = request.ended, None
    if ended is not None:
        ended(reply, transno)


def withdraw(request: Request) -> None:
    """Nothing more lands in the sink, which is its owner's again: the caller is gone, or has his data from elsewhere."""
    if request.landing is not None:
        link, memory = request.landing
        if request.reply_bulk is not memory:
            link.withdraw(memory)


def fail(request: Request, error: Exception) -> None:
    """End a request with `error`, whether anybody still waits for it or not."""
    if not request.future.done():
        request.future.set_exception(error)
        request.future.exception()  # seen: a caller that was cancelled meanwhile will not look at it
