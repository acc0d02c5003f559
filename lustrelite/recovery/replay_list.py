"""What a client keeps in case the server loses it: answered, uncommitted requests, and the opens of open files.

A request leaves when `last_committed` reaches its transno; an open stays, committed or not, until its close is
committed: dropped earlier, a replayed close would find no handle; kept longer, it would leak an open file.
Source: ptlrpc_free_committed(), ptlrpc/client.c; chapter 30.2.4; protocol-facts 8.1, 8.2.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar


class Replayable(Protocol):
    """What the list must know of a request."""

    xid: int
    transno: int
    keeps_open: bool  # an open that succeeded: stays until closed
    closes: tuple[int, ...]  # of a close: the xids of the opens
    bulk: Any  # data that it carries


R = TypeVar("R", bound=Replayable)

DROP_AT_ONCE = 64  # thousands may be committed together, and to free one takes a microsecond
DROP_PER_ADD = 4


class ReplayList(Generic[R]):
    """Uncommitted requests in transno order and committed opens that are still open."""

    def __init__(self) -> None:
        self._queue: deque[R] = deque()  # with those that are committed and not yet forgotten
        self.open: dict[int, R] = {}  # committed opens by xid
        self.last_committed = 0

    @property
    def uncommitted(self) -> deque[R]:
        """Requests that a crash of the server would lose, by transno."""
        self._drop(len(self._queue))
        return self._queue

    def __len__(self) -> int:
        return len(self.uncommitted) + len(self.open)

    def add(self, request: R) -> None:
        """Keep an answered request; its transno is set."""
        assert request.transno > 0
        if request.transno <= self.last_committed:
            if request.closes:  # its opens are committed, too, and perhaps not yet where they would be looked for
                self._drop(len(self._queue))
            self._committed(request)
            return
        self._drop(DROP_PER_ADD)
        queue = self._queue
        if not queue or queue[-1].transno < request.transno:
            queue.append(request)
            return
        # replies of requests in flight together may pass each other; the place is near the end
        place = len(queue)
        while place and queue[place - 1].transno > request.transno:
            place -= 1
        assert place == 0 or queue[place - 1].transno != request.transno, "one transno, two requests"
        queue.insert(place, request)

    def drop_committed(self, last_committed: int) -> int:
        """Nothing up to `last_committed` is replayed any more; an open stays until its close commits.

        Returns how many were forgotten at once: those with data. The rest go a few at a time, or all when somebody
        looks.
        """
        if last_committed <= self.last_committed:  # replies may pass each other: the mark never goes back
            return 0
        self.last_committed = last_committed
        return self._drop(DROP_AT_ONCE)

    def _drop(self, at_most: int) -> int:
        queue, last_committed, dropped = self._queue, self.last_committed, 0
        while queue and queue[0].transno <= last_committed and (dropped < at_most or queue[0].bulk is not None):
            self._committed(queue.popleft())
            dropped += 1
        return dropped

    def _committed(self, request: R) -> None:
        if request.keeps_open:
            self.open[request.xid] = request
        else:
            for xid in request.closes:
                self.open.pop(xid, None)

    def forget_open(self, xid: int) -> None:
        """The open `xid` is closed for good (the server does not know the handle)."""
        uncommitted = self.uncommitted  # first: it may move the open
        self.open.pop(xid, None)
        for request in uncommitted:
            if request.xid == xid:
                request.keeps_open = False

    def in_replay_order(self) -> list[R]:
        """Committed opens first, then everything else by transno.  Source: chapter 30.2.6"""
        uncommitted = list(self.uncommitted)
        return sorted(self.open.values(), key=lambda r: r.transno) + uncommitted

    def first_transno(self) -> int:
        """Lowest uncommitted transno, or 0."""
        return self.uncommitted[0].transno if self.uncommitted else 0

    def __iter__(self) -> Iterator[R]:
        return iter(self.in_replay_order())

    def clear(self) -> None:
        """Evicted: nothing can be replayed."""
        self._queue.clear()
        self.open.clear()
