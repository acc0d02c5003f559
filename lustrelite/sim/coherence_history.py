"""What clients did and saw, in one order of beginnings and ends, and who was thrown out when: the checker's evidence.

Everything that happens gets the next number of one count; an operation that ended before another began is before it.
Data is written in cells of CELL bytes that name their write and their place in it, so that whatever a read returns says
where it comes from, also after an append, whose place only the servers know. Offsets, sizes and lengths are multiples
of CELL.

A client may be gone to a target several times: it was killed (then to all of them), or evicted. From `lost` on others
may be given what it had locked, until `noticed` it knew nothing of it. An operation belongs to the life that ends with
the first of these of which the client had not heard when it began.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lustrelite.client import striping
from lustrelite.sim.coherence_search import NEVER
from lustrelite.tunables import limits

CELL = 64
_PATTERN = struct.Struct("<QQ")  # tag, number of the cell in its write
COPIES = CELL // _PATTERN.size - 1  # more of it in a cell
_CELL = struct.Struct("<" + "QQ" * (1 + COPIES))
PENDING, OK, ERROR, UNKNOWN = "pending", "ok", "error", "unknown"
ZERO, GARBAGE = 0, -1  # tags of cells that nobody wrote, and of cells that make no sense
# Evictions for which the server waited until the client's lease was over. After any other the client may be in good
# faith for as long as its lease lasts.
LEASE_IS_OVER = ("lock callback timer", "silent for")

Marks = dict[str, tuple[int, int]]  # by target: which life, and its last transno


def fill(tag: int, length: int) -> bytes:
    """What the write `tag` of so many bytes writes."""
    assert tag > 0 and length % CELL == 0
    return b"".join(_PATTERN.pack(tag, cell) * (1 + COPIES) for cell in range(length // CELL))


class Run(NamedTuple):
    """Bytes [start, end) of a file as read: cells of one write, from its `cell` on."""

    start: int
    end: int
    tag: int
    cell: int


def parse(data: bytes, offset: int) -> tuple[Run, ...]:
    """Whose cells are in `data`, which was read at `offset`?"""
    runs: list[Run] = []
    whole = len(data) // CELL * CELL
    start = at = offset
    last_tag = first = following = -2  # of the run that begins at `start`: its first cell, and which would go on with it
    for tag, cell, *more in _CELL.iter_unpack(memoryview(data)[:whole]):
        if more != [tag, cell] * COPIES or (not tag and cell):
            tag = GARBAGE
        if tag != last_tag or (tag > 0 and cell != following):
            if at > start:
                runs.append(Run(start, at, last_tag, first))
            start, last_tag, first, following = at, tag, cell if tag > 0 else 0, cell
        following += 1
        at += CELL
    if at > start:
        runs.append(Run(start, at, last_tag, first))
    if whole < len(data):
        runs.append(Run(at, offset + len(data), GARBAGE, 0))
    return tuple(runs)


class Data(NamedTuple):
    """The result of a read."""

    length: int
    runs: tuple[Run, ...]


@dataclass(eq=False)
class Op:
    """One operation. `target` is a file (its FID) or a name; which, and what `args` and `result` are: coherence.py."""

    index: int
    client: str
    kind: str
    target: str
    args: tuple[Any, ...]
    invoked: int
    at: float  # virtual time
    handle: int = 0  # the open file by which it was done
    done: int = NEVER
    failed: int = NEVER  # when its client was told that nobody knows what came of it
    outcome: str = PENDING
    result: Any = None
    errno: int = 0
    marks: Marks = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Was it acknowledged?"""
        return self.outcome == OK

    def __str__(self) -> str:
        args = ", ".join(map(str, (self.target, *self.args)))
        end = {OK: f"= {show(self.result)}", ERROR: f"! {errno.errorcode.get(self.errno, self.errno)}"}
        done = "" if self.done == NEVER else str(self.done)
        return f"{self.invoked}..{done} {self.at:.3f} {self.client}.{self.kind}({args}) {end.get(self.outcome, self.outcome)}"


def show(result: Any) -> str:
    """A result as text."""
    if isinstance(result, Data):
        return f"{result.length}: " + " ".join(
            f"[{run.start},{run.end})" + {ZERO: "0", GARBAGE: "garbage"}.get(run.tag, f"w{run.tag}+{run.cell}")
            for run in result.runs
        )
    return "" if result is None else str(result)


@dataclass(eq=False)
class Gone:
    """A client's end at a target ("": at all of them)."""

    client: str
    target: str
    lost: int
    noticed: int = NEVER
    forsaken: bool = False  # not an eviction (yet): a promised lock has lost its ground
    stale_until: float = 0.0  # virtual time: what it reads before it notices, and before this, may be old
    over: dict[str, int] = field(default_factory=dict)  # killed: from when on a target executes nothing of it any more


class Death(NamedTuple):
    """The end of one life of a target: its transnos up to `committed` were durable."""

    target: str
    life: int
    last: int
    committed: int
    when: int
    at: float


class File(NamedTuple):
    """How a file is striped: which target has each stripe."""

    stripe_size: int
    targets: tuple[str, ...]

    def stripe(self, offset: int) -> int:
        """The stripe that has the byte at `offset`."""
        return offset // self.stripe_size % len(self.targets)

    def reach(self, stripe: int, end: int) -> int:
        """How far a file of `end` bytes reaches in this stripe: behind its last byte there, 0 if there is none."""
        if end <= 0:
            return 0
        if self.stripe(end - 1) == stripe:
            return end
        unit = (end - 1) // self.stripe_size
        last = unit - (unit - stripe) % len(self.targets)
        return (last + 1) * self.stripe_size if last >= 0 else 0


class History:
    """Written while a run goes on, read by the checkers when it is over."""

    def __init__(self, now: Callable[[], float], *, lease_s: float = 0.0, mark: Callable[[], Marks] = dict) -> None:
        self.ops: list[Op] = []
        self.gone: list[Gone] = []
        self.deaths: list[Death] = []
        self.recovered: list[tuple[int, str]] = []  # (when, target): it serves again
        self.files: dict[str, File] = {}
        self.directories: dict[str, None] = {}  # FIDs
        self.caching: dict[str, None] = {}  # clients that do
        self.rpc_bytes = limits.brw_bytes_max  # what the others write is cut into RPCs of so many bytes
        self.lease_s = lease_s
        self._now = now
        self._mark = mark
        self._count = 0
        self._tags = 0
        self._modes = 0

    def _next(self) -> int:
        self._count += 1
        return self._count

    def new_tag(self) -> int:
        """For a write."""
        self._tags += 1
        return self._tags

    def new_mode(self) -> int:
        """For a chmod."""
        self._modes = self._modes % 0o777 + 1
        return self._modes

    # -- operations

    def begin(self, client: str, kind: str, target: str, *args: Any, handle: int = 0) -> Op:
        """`client` is about to do this."""
        op = Op(len(self.ops), client, kind, target, args, self._next(), self._now(), handle)
        self.ops.append(op)
        return op

    def also(self, op: Op, kind: str, target: str) -> Op:
        """Something more that is done at the same time as `op`, which has just begun or is not over."""
        other = Op(len(self.ops), op.client, kind, target, (), op.invoked, op.at, op.handle)
        self.ops.append(other)
        return other

    def _end(self, op: Op, outcome: str) -> None:
        assert op.outcome == PENDING, op
        op.done = self._next()
        op.outcome = outcome
        op.marks = self._mark()

    def succeeded(self, op: Op, result: Any = None) -> None:
        """It was acknowledged."""
        op.result = result
        self._end(op, OK)

    def refused(self, op: Op, number: int) -> None:
        """Nothing was done, and this is why."""
        op.errno = number
        self._end(op, ERROR)

    def failed(self, op: Op, number: int = 0) -> None:
        """Nobody knows what came of it; the client was told so now."""
        op.errno = number
        self._end(op, UNKNOWN)
        op.done, op.failed = NEVER, op.done

    # -- what happened to clients and targets

    def forsaken(self, client: str, target: str) -> None:
        """Somebody else may come before `target` hears of a lock that was promised: like an eviction, if it is lost."""
        self.gone.append(Gone(client, target, self._next(), forsaken=True))

    def forsaken_no_more(self, client: str, target: str, *, kept: bool) -> None:
        """The oldest of these is lost, or was replayed first.

        What it is kept by after a crash is a replay: nobody knows any more who has looked at the object, and seen nothing,
        before the crash. To lose what was written for his sake would be worse.
        """
        gone = next(gone for gone in self.gone if gone.forsaken and (gone.client, gone.target) == (client, target))
        gone.forsaken = False
        if kept and not any(death.target == target and death.when > gone.lost for death in self.deaths):
            self.gone.remove(gone)
        elif gone.noticed == NEVER:
            gone.noticed = self._next()

    def killed(self, client: str) -> None:
        """All of it is gone at once.

        An eviction of which it had not heard is where its life ended there, all the same.
        """
        now = self._next()
        for gone in self.gone:
            if gone.client == client and gone.noticed == NEVER:
                gone.noticed = now
        self.gone.append(Gone(client, "", now, now))

    def evicted(self, client: str, target: str, why: str, recovering: bool = False) -> None:
        """`target` has thrown `client` out."""
        count = self._next()
        for gone in self.gone:
            if gone.client == client and not gone.target:
                gone.over[target] = count
                return
        stale_until = 0.0
        if recovering:
            stale_until = max((d.at for d in self.deaths if d.target == target), default=0.0) + self.lease_s
        elif not why.startswith(LEASE_IS_OVER):
            stale_until = self._now() + self.lease_s
        self.gone.append(Gone(client, target, count, stale_until=stale_until))

    def noticed(self, client: str, target: str) -> None:
        """`client` has heard that it is nobody to `target` any more."""
        now = self._next()
        open_ = [g for g in self.gone if g.client == client and g.target == target and g.noticed == NEVER]
        if not open_:  # forgotten rather than evicted: when it came back after a crash
            death = max((d for d in self.deaths if d.target == target), key=lambda d: d.when, default=None)
            lost, at = (death.when, death.at) if death else (0, 0.0)
            open_ = [Gone(client, target, lost, stale_until=at + self.lease_s)]
            self.gone += open_
        for gone in open_:
            gone.noticed = now

    def died(self, target: str, life: int, last: int, committed: int) -> None:
        """A life of `target` has ended."""
        self.deaths.append(Death(target, life, last, committed, self._next(), self._now()))

    def is_back(self, target: str) -> None:
        """`target` has recovered from its last death."""
        self.recovered.append((self._next(), target))

    # -- what follows

    def end_of(self, op: Op, target: str) -> Gone | None:
        """How the life of its client to which `op` belongs ended at `target`, None if it did not."""
        ends = [
            gone for gone in self.gone
            if gone.client == op.client and gone.target in ("", target) and gone.noticed >= op.invoked
        ]  # fmt: skip
        return min(ends, key=lambda gone: gone.noticed, default=None)

    def end_of_promises(self, op: Op) -> Gone | None:
        """How the life of its client ended at the MDT, if it has made the file and may have told the OSTs of no lock.

        Source: ldlm/promised.py
        """
        mdts = dict.fromkeys(gone.target for gone in self.gone if "-MDT" in gone.target)
        ends = [end for mdt in mdts if (end := self.end_of(op, mdt)) is not None]
        return min(ends, key=lambda gone: gone.noticed) if ends and self.is_of_author(op) else None

    def is_of_author(self, op: Op) -> bool:
        """Has its client opened the file so that it may have been made by that?"""
        return any(
            other.kind == "open" and other.client == op.client and other.args == (True,) and other.result == op.target
            for other in self.ops
        )

    def excused(self, op: Op, target: str) -> bool:
        """May this read be old? The client is evicted, has not heard of it, and its lease is not over."""
        return any(
            gone.client == op.client and gone.target == target
            and gone.lost < op.done and op.invoked <= gone.noticed and op.at <= gone.stale_until
            for gone in self.gone
        )  # fmt: skip

    def steps(self, op: Op, file: File, stripe: int, offset: int, length: int) -> list[int]:
        """How far the file reaches in `stripe` after each part of a write that is executed for itself; ascending, not empty.

        Under the lock of a client that caches nobody sees the parts.
        """
        whole = file.reach(stripe, offset + length)
        if op.client in self.caching:
            return [whole]
        unit, count = file.stripe_size, len(file.targets)
        extents = striping.split(offset, length, unit, count, self.rpc_bytes)
        ends = [striping.reach(stripe, part.offset + part.length, unit, count) for part in extents if part.stripe == stripe]
        assert ends and max(ends) == whole
        return sorted(ends)

    def rolled_back(self, op: Op, target: str) -> Death | None:
        """The last death of `target` in which `op` may have been undone, because it was not durable yet.

        It is undone for good only if its client is gone: others replay what was acknowledged, and send again what was
        not. But what was not is done again after recovery, so for a while nobody sees it any more.
        """
        found = None
        gone = self.end_of(op, target) is not None
        for death in self.deaths:
            if death.target != target or op.invoked > death.when:
                continue
            life, transno = op.marks.get(target, (0, 0))
            if op.done > death.when:
                found = death if death.last > death.committed else found
            elif gone and 0 < life <= death.life and transno > death.committed:
                found = death
        return found

    def seen_until(self, death: Death | None) -> int:
        """Until when others may have seen what was undone in a death: from their caches until the target had recovered."""
        if death is None:
            return 0
        return min((when for when, target in self.recovered if target == death.target and when > death.when), default=NEVER)

    def synced(self, op: Op, gone: Gone) -> bool:
        """Was a write made durable, as far as its client was told, before the client was gone?

        A page that was lost is reported by the next write, fsync or close of each open file, once: an fsync after that
        means only what was written since.
        """
        for sync in self.ops:
            if sync.kind != "fsync" or not sync.ok or sync.target != op.target or sync.client != op.client:
                continue
            if op.done < sync.invoked and (sync.done < gone.lost or (sync.handle == op.handle and not self._told(op, sync))):
                return True
        return False

    def _told(self, op: Op, sync: Op) -> bool:
        return any(
            other.handle == sync.handle and other.errno == errno.EIO and op.invoked < other.invoked < sync.invoked
            for other in self.ops
        )

    def describe(self, ops: list[Op]) -> str:
        """These operations, with the ends of their clients, as text."""
        clients = dict.fromkeys(op.client for op in ops)
        rows = [(op.invoked, str(op)) for op in ops]
        rows += [
            (g.lost, f"{g.lost}..{'' if g.noticed == NEVER else g.noticed} {g.client} is gone to {g.target or 'all'}")
            for g in self.gone if g.client in clients
        ]  # fmt: skip
        rows += [(d.when, f"{d.when} {d.at:.3f} {d.target} dies, {d.last - d.committed} not durable") for d in self.deaths]
        return "\n    ".join(text for _, text in sorted(rows))
