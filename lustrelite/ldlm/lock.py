"""One lock as the server keeps it, and what is to be done about locks: the effects."""

from __future__ import annotations

from collections.abc import Hashable
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from lustrelite.ldlm.policy import EOF, bits_text, mode_text
from lustrelite.wire.ldlm import EXTENT, GROUP, IBITS, NO_EXPANSION, NO_TIMEOUT

if TYPE_CHECKING:
    from lustrelite.ldlm.resource import Resource

Owner = Hashable  # who holds a lock: an export, or LOCAL
LOCAL = "local"  # the target itself

KEPT_FLAGS = NO_EXPANSION | NO_TIMEOUT


class LockState(IntEnum):
    """Where a lock is."""

    NEW = 0
    WAITING = 1
    GRANTED = 2
    GONE = 3  # cancelled or refused


class Lock:
    """A lock on a resource, waiting or granted. There may be millions: no field more than needed."""

    __slots__ = (
        "asked", "bits", "client", "deadline", "end", "flags", "gid", "handle", "mode", "number", "owner", "parked",
        "parked_on", "resource", "since", "start", "state", "try_bits",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, handle: int, mode: int, *, bits: int = 0, try_bits: int = 0, start: int = 0, end: int = EOF,
        gid: int = 0, flags: int = 0, client: Owner | None = None,
    ):  # fmt: skip
        self.owner = owner
        self.handle = handle  # the owner's name for it
        self.mode = mode
        self.bits = bits
        self.try_bits = try_bits
        self.start = start
        self.end = end
        self.gid = gid  # GROUP
        self.flags = flags & KEPT_FLAGS  # and PROMISED: that it was promised counts, say so to each copy of the question
        self.client: Owner = owner if client is None else client  # on whose behalf a server's own lock is
        self.state = LockState.NEW
        self.asked = False  # a blocking callback was sent
        self.number = 0  # order of arrival
        self.since = 0.0  # it is waiting, or granted
        self.deadline: float | None = None  # asked for: when the owner must have given it back
        self.resource: Resource = None  # type: ignore[assignment]  # set when it is enqueued
        self.parked_on: Lock | None = None  # of a waiter: one lock it cannot be granted beside
        self.parked: dict[Lock, None] | None = None  # the waiters that look again when this one goes or gets weaker

    @property
    def timed(self) -> bool:
        """Must its owner give it back in bounded time when asked?"""
        return self.owner is not LOCAL and self.mode != GROUP and not self.flags & NO_TIMEOUT

    def __repr__(self) -> str:
        kind = self.resource.type if self.resource is not None else 0
        what = ""
        if kind == IBITS:
            what = f" {bits_text(self.bits)}"
        elif kind == EXTENT:
            what = f" [{self.start}, {'EOF' if self.end == EOF else self.end}]"
        asked = " asked" if self.asked else ""
        return f"Lock({self.owner}:{self.handle:#x} {mode_text(self.mode)}{what} {self.state.name}{asked})"


class Grant(NamedTuple):
    """The enqueue is granted at once: say so in the reply."""

    lock: Lock


class Wait(NamedTuple):
    """The enqueue waits; `behind` is one of the reasons. Say so in the reply, a Completion will follow."""

    lock: Lock
    behind: Lock


class Deny(NamedTuple):
    """The enqueue is refused with `errno`: there is no lock."""

    lock: Lock
    errno: int


class Blocking(NamedTuple):
    """Ask the owner of the granted `lock` to give it back, because `waiter` waits for it."""

    lock: Lock
    waiter: Lock


class Completion(NamedTuple):
    """Tell the owner that his waiting `lock` is granted; if `asked` also that somebody waits for it already."""

    lock: Lock
    asked: bool


class Glimpse(NamedTuple):
    """Ask the owner of `lock` what he knows of the object; he keeps the lock."""

    lock: Lock


Effect = Grant | Wait | Deny | Blocking | Completion | Glimpse
