"""Are the names of a directory coherent, link counts, permissions, and record locks? Part of coherence.py.

Names are judged together, because renames and links join them: the state is which name leads to which FID. A listing is
one look at each name, not at all of them at once, as POSIX has it; likewise a stat is a look at the name and a look at
the link count.

Permissions are a register for each FID; no two chmods of a run set the same.

Record locks: a lock is held for certain from its answer to the beginning of what ends it, and perhaps from its
beginning to the end of that. No two owners may hold for certain what conflicts, and a refusal needs somebody who
perhaps held what was in the way.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lustrelite.sim.coherence_history import ERROR, OK, PENDING, UNKNOWN, History, Op
from lustrelite.sim.coherence_search import NEVER, Call, search, zones

CHANGES = ("create", "mkdir", "open", "unlink", "rmdir", "rename", "link")
LOOKS = ("lookup", "links", "list")
NOBODY_SAW, NOBODY_SAW_DIR = "?", "?dir"  # a FID, of a file or a directory
State = tuple[tuple[str, str], ...]  # (name, FID), sorted


def check(history: History, target: str, names: Sequence[str]) -> list[str]:
    """What is wrong with these names, which the MDT `target` keeps in one directory."""
    ops = [op for op in history.ops if op.kind in CHANGES or op.kind in LOOKS]
    why = search(_Names(history, target, names).calls(ops), (), step)
    return [f"names: {why}\n    {history.describe(ops)}"] if why else []


class Change(NamedTuple):
    """What an operation does or sees. `makes`: FIDs that may be its own; `number`: how it was refused."""

    kind: str
    name: str
    other: str = ""  # rename: the new name; open: not empty if it creates
    fid: str = ""
    makes: tuple[str, ...] = ()
    number: int = 0
    directories: frozenset[str] = frozenset()


class _Names:
    """Turns operations into calls."""

    def __init__(self, history: History, target: str, names: Sequence[str]) -> None:
        self.history = history
        self.target = target
        self.names = names
        self.directories = frozenset(history.directories)

    def calls(self, ops: Sequence[Op]) -> Iterator[Call]:
        """All of them, except what does not count."""
        undone = {op.index: self.history.rolled_back(op, self.target) for op in ops if op.kind in CHANGES}
        seen_until = max(map(self.history.seen_until, undone.values()), default=0)
        makers = self._makers(ops)
        for op in ops:
            found = op.kind == "open" and op.ok and op.index not in makers  # it changed nothing
            sees = op.kind in LOOKS or op.outcome == ERROR or found
            if sees and (op.outcome in (UNKNOWN, PENDING) or op.invoked < seen_until or self.history.excused(op, self.target)):
                continue  # what was seen before something was undone is gone as well, and who asked then may answer later
            gone = undone.get(op.index) is not None and self.history.end_of(op, self.target) is not None
            optional = op.kind in CHANGES and (op.outcome in (UNKNOWN, PENDING) or gone)
            for effect in self._effects(op, makers):
                yield Call(op.invoked, op.done, effect, sees, optional, op)

    def _makers(self, ops: Sequence[Op]) -> dict[int, tuple[str, ...]]:
        """The FIDs that each operation may have made."""
        makers: dict[int, tuple[str, ...]] = {}
        seen: dict[str, int] = {}  # FID -> when somebody had it at the earliest
        for op in ops:
            for fid in _fids(op):
                seen[fid] = min(op.done, seen.get(fid, NEVER))
        known = {op.result for op in ops if op.kind in ("create", "mkdir") and op.ok}
        for op in ops:
            if op.kind not in ("create", "mkdir", "open") or op.outcome == ERROR or (op.kind == "open" and not op.args[0]):
                continue
            if not op.ok:
                unseen = f"{NOBODY_SAW_DIR if op.kind == 'mkdir' else NOBODY_SAW}{op.index}"
                makers[op.index] = (*(fid for fid in seen if fid not in known and op.invoked < seen[fid]), unseen)
            elif op.kind != "open" or (op.result not in known and op.invoked < seen[op.result]):
                makers[op.index] = (op.result,)
        return makers

    def _effects(self, op: Op, makers: dict[int, tuple[str, ...]]) -> Iterator[Change]:
        if op.kind == "list":
            for name in self.names:
                yield Change("lookup", name, fid=op.result.get(name, ""))
            return
        other = op.args[0] if op.kind == "rename" else "create" if op.kind == "open" and op.args[0] else ""
        fid = op.args[0] if op.kind == "link" else op.result if op.kind in ("lookup", "open", "links") and op.ok else ""
        number = op.errno if op.outcome == ERROR else 0
        if op.kind == "lookup" and number:
            yield Change("lookup", op.target)
        elif op.kind == "links":
            if op.target not in self.directories:
                yield Change("links", op.target, fid=str(op.result))
        else:
            yield Change(op.kind, op.target, other, fid, makers.get(op.index, ()), number, self.directories)


def _fids(op: Op) -> tuple[str, ...]:
    if not op.ok:
        return ()
    if op.kind == "list":
        return tuple(op.result.values())
    return (op.result,) if op.kind in ("create", "mkdir", "open", "lookup") else ()


def step(state: State, change: Change) -> Sequence[State]:
    """What `state` may be after `change`."""
    there = dict(state)
    kind, name, number = change.kind, change.name, change.number
    fid = there.get(name, "")
    if kind == "lookup":
        return (state,) if fid == change.fid and not number else ()
    if kind == "links":
        return (state,) if str(sum(found == name for found in there.values())) == change.fid else ()
    is_dir = _is_dir(fid, change)
    if kind in ("create", "mkdir", "open"):
        if number == errno.ENOENT:
            return (state,) if kind == "open" and not fid and not change.other else ()
        if number:
            return (state,) if fid and number == (errno.EEXIST if kind != "open" else errno.EISDIR if is_dir else 0) else ()
        if fid:
            return (state,) if kind == "open" and change.fid in (fid, "") else ()
        return tuple(_with(there, name, made) for made in change.makes if made not in there.values())
    if kind == "link":
        exists = change.fid in there.values()
        if number:
            return (state,) if (number == errno.EEXIST and fid) or (number == errno.ENOENT and not exists) else ()
        return (_with(there, name, change.fid),) if exists and not fid else ()
    if kind in ("unlink", "rmdir"):
        why = errno.ENOENT if not fid else 0 if is_dir == (kind == "rmdir") else errno.EISDIR if is_dir else errno.ENOTDIR
        if number or why:
            return (state,) if number == why else ()
        del there[name]
        return (tuple(sorted(there.items())),)
    assert kind == "rename", kind
    target = there.get(change.other, "")
    why = errno.ENOENT if not fid else 0
    if fid and target and fid != target and is_dir != _is_dir(target, change):
        why = errno.ENOTDIR if is_dir else errno.EISDIR
    if number or why:
        return (state,) if number == why else ()
    if fid == target:
        return (state,)
    del there[name]
    return (_with(there, change.other, fid),)


def _is_dir(fid: str, change: Change) -> bool:
    return fid in change.directories or fid.startswith(NOBODY_SAW_DIR)


def _with(there: dict[str, str], name: str, fid: str) -> State:
    return tuple(sorted({**there, name: fid}.items()))


# ------------------------------------------------------------------------------------------------------ permissions


def check_modes(history: History, target: str) -> list[str]:
    """What is wrong with the permissions of any file."""
    files: dict[str, list[Op]] = {}
    for op in history.ops:
        if op.kind == "chmod" or (op.kind == "mode" and op.outcome != ERROR):
            files.setdefault(op.target, []).append(op)
    problems = []
    for fid, ops in files.items():
        undone = {op.index: history.rolled_back(op, target) for op in ops if op.kind == "chmod"}
        lost = _perhaps_lost(history, target, ops)
        for op in lost:  # the MDT may have heard of it later
            deaths = [death for death in history.deaths if death.target == target and death.when > op.invoked]
            undone[op.index] = max(deaths, key=lambda death: death.when, default=None)
        seen_until = max(map(history.seen_until, undone.values()), default=0)
        reads = [
            (op.result, Call(op.invoked, op.done, op.result, True, op=op)) for op in ops
            if op.kind == "mode" and op.ok and op.invoked >= seen_until and not history.excused(op, target)
        ]  # fmt: skip
        for op in lost:
            if all(read.op is not None and read.op.client == op.client for mode, read in reads if mode == op.args[0]):
                reads = [(mode, read) for mode, read in reads if mode != op.args[0]]
        seen = {mode for mode, _ in reads}
        writes = {}
        for op in ops:
            if op.kind == "chmod" and op.outcome != ERROR:  # one that was refused may have been undone before
                doubtful = not op.ok or op in lost or (undone[op.index] is not None and history.end_of(op, target) is not None)
                if not doubtful or op.args[0] in seen:
                    writes[op.args[0]] = Call(op.invoked, op.done, op.args[0], op=op)
        if unset := seen - writes.keys():
            writes[min(unset)] = Call(-2, -1, min(unset))  # what it was made with
        if why := zones(writes, reads):
            problems.append(f"permissions of {fid}: {why}\n    {history.describe(ops)}")
    return problems


def _perhaps_lost(history: History, target: str, ops: Sequence[Op]) -> list[Op]:
    """The changes that the author of a file may have kept for himself, and taken along when his life ended.

    Source: client/kept_attrs.py
    """
    found = []
    for op in ops:
        end = history.end_of(op, target) if op.kind == "chmod" and op.ok else None
        if end is not None and history.is_of_author(op) and not history.synced(op, end):
            found.append(op)
    return found


# ------------------------------------------------------------------------------------------------------ record locks


class Held(NamedTuple):
    """What an owner held, for certain or perhaps: from one moment to another."""

    owner: str
    exclusive: bool
    start: int
    end: int
    since: int
    until: int
    op: Op


def check_locks(history: History, target: str) -> list[str]:
    """What is wrong with record locks: kind `flock`, args (owner, exclusive or None to unlock, start, end, waits)."""
    files: dict[str, list[Op]] = {}
    for op in history.ops:
        if op.kind == "flock":
            files.setdefault(op.target, []).append(op)
    problems = []
    for name, ops in files.items():
        for why in _check_file_locks(history, target, ops):
            problems.append(f"record locks of {name}: {why}\n    {history.describe(ops)}")
    return problems


def _check_file_locks(history: History, target: str, ops: Sequence[Op]) -> Iterator[str]:
    certain: list[Held] = []
    perhaps: list[Held] = []
    for number, op in enumerate(ops):
        owner, exclusive, start, end, _ = op.args
        if exclusive is None or op.outcome == ERROR:
            continue
        gone = history.end_of(op, target)
        # Parts of the range may be given back one after the other: the first ends the certainty, the last the doubt.
        enders = [
            other for other in ops[number + 1 :]
            if other.args[0] == owner and other.args[2] <= end and start <= other.args[3] and other.outcome != ERROR
        ]  # fmt: skip
        until = min([other.invoked for other in enders] + ([gone.lost] if gone else []), default=NEVER)
        covered = [other.done for other in enders if other.ok and other.args[2] <= start and end <= other.args[3]]
        if op.outcome == OK and op.done < until:
            certain.append(Held(owner, exclusive, start, end, op.done, until, op))
        perhaps.append(Held(owner, exclusive, start, end, op.invoked, min(covered, default=NEVER), op))
    for number, one in enumerate(certain):
        for other in certain[number + 1 :]:
            if _conflict(one, other) and one.since < other.until and other.since < one.until:
                yield f"{one.op} and {other.op} hold it at the same time"
    for op in ops:
        owner, exclusive, start, end, _ = op.args
        if op.outcome == ERROR and op.errno in (errno.EWOULDBLOCK, errno.EDEADLK) and exclusive is not None:
            wanted = Held(owner, exclusive, start, end, op.invoked, op.done, op)
            if not any(_conflict(wanted, held) and held.since < op.done and op.invoked < held.until for held in perhaps):
                yield f"{op} was refused though nobody held it"


def _conflict(one: Held, other: Held) -> bool:
    return (
        one.owner != other.owner and (one.exclusive or other.exclusive) and one.start <= other.end and other.start <= one.end
    )
