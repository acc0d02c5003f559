"""A lock as the client keeps it, and which locks serve which wish.

A lock serves only while it is `ready`: granted, and not asked for. Modes serve weaker ones: what is read under PR may
be read under PW, too.  Source: ldlm_lock_match(), ldlm/ldlm_lock.c
"""

from __future__ import annotations

import asyncio
from typing import Any

from lustrelite.errors import OpError
from lustrelite.ldlm.lru import Holding
from lustrelite.ldlm.policy import EOF, bits_text, mode_text
from lustrelite.wire.ldlm import (
    CR,
    CW,
    EX,
    EXTENT,
    GROUP,
    IBITS,
    NL,
    NO_EXPANSION,
    NO_TIMEOUT,
    PR,
    PW,
    Granted,
    Lvb,
    Want,
)
from lustrelite.wire.locks import Ask

# wanted mode -> the modes under which that may be done
SERVED_BY: dict[int, int] = {
    EX: EX,
    PW: EX | PW,
    PR: EX | PW | PR,
    CW: EX | PW | CW,
    CR: EX | PW | PR | CW | CR,
    NL: EX | PW | PR | CW | CR | NL,
    GROUP: GROUP,  # and the group id must be the same
}
REPLAYED_FLAGS = NO_EXPANSION | NO_TIMEOUT


class ClientLock:
    """A lock of this client, wanted or held. There may be 100,000: no field more than needed."""

    __slots__ = (
        "asked", "bits", "data", "end", "flags", "future", "gid", "handle", "holding", "lvb", "mode", "ready",
        "resource", "served_until", "start", "touched", "try_bits", "type", "unused_since", "users",
    )  # fmt: skip

    def __init__(
        self, handle: int, kind: int, resource: bytes, mode: int, *, bits: int = 0, try_bits: int = 0, start: int = 0,
        end: int = EOF, gid: int = 0, flags: int = 0,
    ):  # fmt: skip
        self.handle = handle
        self.type = kind
        self.resource = resource
        self.mode = mode
        self.bits = bits
        self.try_bits = try_bits
        self.start = start
        self.end = end
        self.gid = gid
        self.flags = flags
        self.users = 0  # who works under it, or waits for it
        self.holding = Holding.ENQUEUED
        self.ready = False  # it serves: granted, and not asked for
        self.asked: Ask | None = None  # somebody waits for this part of it
        self.served_until = float("inf")  # asked for: nothing cached under it is true after this
        self.lvb: Lvb | None = None  # as the grant brought it
        self.data: Any = None  # what the cache above keeps under it
        self.touched = False  # matched since the LRU looked last
        self.unused_since = 0.0
        self.future: asyncio.Future[None] | None = None  # of those who wait for it

    def want(self, flags: int = 0) -> Want:
        """What is said of it in an Enqueue."""
        return Want(
            self.handle, self.type, self.resource, self.mode, self.flags | flags, self.bits, self.try_bits, self.start,
            self.end, self.gid, 0,
        )  # fmt: skip

    @property
    def going_bits(self) -> int:
        """IBITS, in `drop`: the bits that go now. Others are kept if the lock was asked for in part."""
        return self.bits if self.asked is None else self.bits & self.asked.bits

    @property
    def resolved(self) -> bool:
        """Is it known what became of the wish?"""
        return self.holding is not Holding.ENQUEUED and self.holding is not Holding.WAITING

    def covers(self, kind: int, mode: int, bits: int, start: int, end: int, gid: int) -> bool:
        """Does it serve, as far as its mode and its place go?"""
        return (
            self.type == kind
            and bool(self.mode & SERVED_BY[mode])
            and self.bits & bits == bits
            and self.start <= start
            and end <= self.end
            and (mode != GROUP or self.gid == gid)
        )

    def take_over(self, granted: Granted) -> None:
        """It is granted, perhaps with more than was wanted."""
        self.mode = granted.mode
        self.bits = granted.bits
        self.try_bits = 0
        if self.type == EXTENT:
            self.start, self.end = granted.start, granted.end
        self.lvb = granted.lvb
        self.flags &= REPLAYED_FLAGS
        self.holding = Holding.GRANTED
        self.ready = self.asked is None

    def fail(self, error: OpError) -> None:
        """There will be no lock: tell those who wait for it."""
        if self.future is not None and not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen: perhaps nobody waits

    def ask(self, ask: Ask, served_until: float) -> None:
        """Somebody waits for it; perhaps for more than was asked before."""
        if self.asked is None:
            self.served_until = served_until
            self.asked = ask
        else:
            self.asked = self.asked._replace(bits=self.asked.bits | ask.bits, flags=self.asked.flags | ask.flags)
        self.ready = False

    def forget_ask(self) -> None:
        """What was asked is done, or the server that asked is gone."""
        self.asked = None
        self.served_until = float("inf")
        self.ready = self.holding is Holding.GRANTED

    def describe(self) -> dict[str, Any]:
        """The lock as data."""
        row: dict[str, Any] = {
            "handle": self.handle,
            "resource": self.resource.hex(),
            "mode": mode_text(self.mode),
            "holding": self.holding.name,
            "users": self.users,
        }
        if self.type == IBITS:
            row["bits"] = bits_text(self.bits)
        elif self.type == EXTENT:
            row["extent"] = [self.start, self.end]
        if self.asked is not None:
            row["asked"] = True
        return row

    def __repr__(self) -> str:
        what = f" {bits_text(self.bits)}" if self.type == IBITS else f" [{self.start}, {self.end}]"
        asked = " asked" if self.asked is not None else ""
        return f"ClientLock({self.handle:#x} {mode_text(self.mode)}{what} {self.holding.name} users={self.users}{asked})"
