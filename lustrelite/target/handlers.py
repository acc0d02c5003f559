"""The entry of a handler table: how a message is served.

    mutating(fn)   fn(txn, body) -> reply body; sync, validates first and changes after; gets a transno and a reply record
    reading(fn)    fn(call, body) -> reply body; sync, changes nothing
    waiting(fn)    async fn(call, body) -> reply body; for what must wait and is idempotent

`prepare` comes before a mutating handler and may return an awaitable; the request is admitted once more after it.
`rebuild` makes the reply of a request that was executed before, from its record and the state of today.
Source of the form: mdt_tgt_handlers[], lustre/mdt/mdt_handler.c; docs/architecture.md D4.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from lustrelite.store.room import ORDINARY
from lustrelite.wire.session import Empty

EMPTY = Empty()
LATER: Any = object()  # what a reading handler returns if it will reply itself, when somebody has told it something


class NotReady(Exception):
    """A mutating handler lacks what `prepare` should have reserved (somebody else took it): prepare again."""


class Dropped(Exception):
    """A fault point says: this request gets no answer."""


class Handler(NamedTuple):
    """How one message is served."""

    execute: Callable[[Any, Any], Any]
    kind: str  # "mutating", "reading", "waiting"
    prepare: Callable[[Any, Any], Awaitable[None] | None] | None = None
    rebuild: Callable[[Any, Any, Any], Any] | None = None
    sync: Callable[[Any], bool] | None = None  # of the body: the reply waits until the transaction is durable
    room: int = ORDINARY  # of the space kept in reserve: how much it may use (store/room.py)


def generic_rebuild(call: Any, body: Any, record: Any) -> Any:
    """Status and transno say it all."""
    return EMPTY


def mutating(
    execute: Callable[[Any, Any], Any],
    *,
    prepare: Callable[[Any, Any], Awaitable[None] | None] | None = None,
    rebuild: Callable[[Any, Any, Any], Any] = generic_rebuild,
    sync: Callable[[Any], bool] | None = None,
    room: int = ORDINARY,
) -> Handler:
    """A handler that changes something."""
    return Handler(execute, "mutating", prepare, rebuild, sync, room)


def reading(execute: Callable[[Any, Any], Any]) -> Handler:
    """A handler that only looks."""
    return Handler(execute, "reading")


def waiting(execute: Callable[[Any, Any], Awaitable[Any]]) -> Handler:
    """A handler that waits."""
    return Handler(execute, "waiting")
