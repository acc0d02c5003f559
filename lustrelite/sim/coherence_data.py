"""Is the data of a file coherent, and its size? Part of coherence.py, which has the rules.

Data: the file is cut at every boundary of an operation; between two cuts every operation treats all bytes alike, so
each piece is one register. A truncation writes zeros behind its size. Where an append went is known from what was read
of it. Registers in which zeros come from one source are judged by zones, the others by search.

Size: one object for each stripe, because without one lock over all of them nobody sees more. Its state is how far the
file reaches in that stripe, as bounds, for of what a client has in its cache any part may be lost with it: (least,
most, what it may fall back to with each client). A size that was seen is equal to the reach of the stripe that has its
last byte, and not below the reach of the others.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lustrelite.sim.coherence_history import CELL, ERROR, GARBAGE, ZERO, Data, File, Gone, History, Op, Run
from lustrelite.sim.coherence_search import NEVER, Call, search, zones

KINDS = ("write", "append", "truncate", "read", "size")
WRITES = ("write", "append")
FAR = 1 << 62  # the end of every file, and a size that may be anything


def check(history: History, name: str, file: File) -> list[str]:
    """What is wrong with the data and the size of one file."""
    ops = [op for op in history.ops if op.target == name and op.kind in KINDS and op.outcome != ERROR]
    found = _Placed(ops)
    if found.problems:
        return [_told(history, name, found.problems, ops)]
    kept = {op.index: _Losses(history, file, op) for op in ops}
    problems = dict.fromkeys([*_check_data(history, file, found, kept), *_check_appends(ops, found, kept)])
    for stripe in range(len(file.targets)):
        if why := _check_size(history, file, stripe, ops, found, kept):
            problems[f"size, stripe {stripe}: {why}"] = None
    return [_told(history, name, list(problems), ops)] if problems else []


def _told(history: History, name: str, problems: Sequence[str], ops: list[Op]) -> str:
    return f"file {name}: " + "\n  and ".join(problems) + f"\n    {history.describe(ops)}"


class _Placed:
    """Where each write is, as far as anybody saw, and who read what of it."""

    def __init__(self, ops: Sequence[Op]) -> None:
        self.problems: list[str] = []
        self.writes = {op.args[-1]: op for op in ops if op.kind in WRITES}  # by tag
        self.offset: dict[int, int] = {tag: op.args[0] for tag, op in self.writes.items() if op.kind == "write"}
        self.length: dict[int, int] = {tag: op.args[-2] for tag, op in self.writes.items()}
        self.reads: list[tuple[Op, Run]] = []
        self.truncates = [op for op in ops if op.kind == "truncate"]
        for op in ops:
            if op.kind == "read" and op.ok:
                for run in op.result.runs:
                    self._place(op, run)

    def _place(self, op: Op, run: Run) -> None:
        self.reads.append((op, run))
        if run.tag == ZERO:
            return
        write = self.writes.get(run.tag)
        if run.tag == GARBAGE or write is None:
            self.problems.append(f"{op}: what is at {run.start} was never written here")
            return
        offset = run.start - run.cell * CELL
        if run.cell * CELL + run.end - run.start > self.length[run.tag] or offset < 0:
            self.problems.append(f"{op}: more than {write} wrote")
        elif self.offset.setdefault(run.tag, offset) != offset:
            self.problems.append(f"{op}: {write} is at {offset}, and at {self.offset[run.tag]}")


class _Losses:
    """What may be lost of an operation because its client is gone, by target."""

    def __init__(self, history: History, file: File, op: Op) -> None:
        self.ends: dict[str, Gone] = {}
        self.cached: dict[str, bool] = {}  # a write: may it have been in the client's cache only when that was lost?
        self.undone: dict[str, int] = {}  # the target died before it was durable: until when what was seen does not count
        self.excused: dict[str, bool] = {}  # a read that may be old
        for target in dict.fromkeys(file.targets):
            end = history.end_of(op, target)
            caches = op.client in history.caching
            death = history.rolled_back(op, target)
            # Locks keep others away until there is an answer; a write without is answered when it is durable. If the
            # target dies first it is sent again: until its answer nothing says when it is done for the last time. Of a
            # truncation the other targets may answer later: then this one's part is lost with who does not live to replay it.
            never_again = end is not None and op.kind == "truncate" and end.lost < history.seen_until(death)
            if death is not None and (not caches or never_again if op.done > death.when else op.kind == "truncate"):
                again = op.done if op.done != NEVER else 0
                self.undone[target] = max(history.seen_until(death), again)
            if end is None and caches:
                end = history.end_of_promises(op)
            if end is None:
                continue
            self.ends[target] = end
            if op.kind in WRITES:
                self.cached[target] = caches and not (op.ok and history.synced(op, end))
            elif op.kind != "truncate" and op.ok:
                self.excused[target] = history.excused(op, end.target)


# ------------------------------------------------------------------------------------------------------------- data


def _check_data(history: History, file: File, found: _Placed, losses: dict[int, _Losses]) -> Iterator[str]:
    seen: set[tuple[tuple[int, int], ...]] = set()
    for start, end in _pieces(file, found):
        writes = [
            (tag, op) for tag, op in found.writes.items()
            if tag in found.offset and found.offset[tag] <= start and end <= found.offset[tag] + found.length[tag]
        ]  # fmt: skip
        reads = [(op, run.tag) for op, run in found.reads if run.start <= start and end <= run.end]
        if not reads:
            continue
        truncates = [op for op in found.truncates if op.args[0] <= start]
        target = file.targets[file.stripe(start)]
        key = ((file.stripe(start), 0), *((op.index, tag) for op, tag in reads), *((op.index, tag) for tag, op in writes),
               *((op.index, ZERO) for op in truncates))  # fmt: skip
        if key in seen:
            continue
        seen.add(key)
        why = _check_register(history, target, writes, truncates, reads, losses)
        if why:
            yield f"bytes [{start}, {end}) on {target}: {why}"


def _pieces(file: File, found: _Placed) -> Iterator[tuple[int, int]]:
    cuts: dict[int, None] = {}
    for _, run in found.reads:
        cuts[run.start] = cuts[run.end] = None
    for tag, offset in found.offset.items():
        cuts[offset] = cuts[offset + found.length[tag]] = None
    for op in found.truncates:
        cuts[op.args[0]] = None
    if len(file.targets) > 1 and cuts:
        for cut in range(0, max(cuts), file.stripe_size):
            cuts[cut] = None
    ordered = sorted(cuts)
    return itertools.pairwise(ordered)


def _check_register(
    history: History, target: str, writes: list[tuple[int, Op]], truncates: list[Op], reads: list[tuple[Op, int]],
    losses: dict[int, _Losses],
) -> str:  # fmt: skip
    everybody = [op for _, op in writes] + truncates + [op for op, _ in reads]
    undone = max((losses[op.index].undone.get(target, 0) for op in [*truncates, *(op for _, op in writes)]), default=0)
    reads = [(op, tag) for op, tag in reads if op.done >= undone and not losses[op.index].excused.get(target)]
    kept: dict[int, Call] = {}
    for tag, op in writes:
        end = losses[op.index].ends.get(target)
        mine = [read for read, seen in reads if seen == tag and end is not None and _same_cache(read, op, end)]
        others = any(seen == tag and read not in mine for read, seen in reads)
        if not others and (_may_vanish(op, target, losses, everybody) or (not op.ok and not mine)):
            reads = [(read, seen) for read, seen in reads if read not in mine or seen != tag]
            continue
        done = op.done
        if not op.ok and end is not None and target in end.over:
            done = end.over[target]
        kept[tag] = Call(op.invoked, done, (True, tag), op=op)
    seen = [Call(op.invoked, op.done, (False, tag), True, op=op) for op, tag in reads]
    if not truncates:
        start = Call(-2, -1, (True, ZERO))
        return zones({ZERO: start, **kept}, [(call.effect[1], call) for call in seen])
    zeros = [
        Call(op.invoked, op.done, (True, ZERO), optional=_may_be_undone(op, target, losses[op.index]), op=op)
        for op in truncates
    ]
    # A write without an answer that was seen did happen, but nothing says until when.
    data = [call._replace(optional=True) if call.done == NEVER else call for call in kept.values()]
    return search([*zeros, *data, *seen], ZERO, _register_step)


def _may_be_undone(op: Op, target: str, loss: _Losses) -> bool:
    return not op.ok or (bool(loss.undone.get(target)) and target in loss.ends)


def _same_cache(read: Op, write: Op, end: Gone) -> bool:
    """May the read have come from the cache in which the write was, and with which it may have been lost?"""
    return read.client == write.client and read.invoked <= end.lost


def _may_vanish(op: Op, target: str, losses: dict[int, _Losses], everybody: list[Op]) -> bool:
    """May the write, of which nobody else saw anything, have been lost in its client's cache?

    Not if somebody else did anything here in between: then the client had to give the lock back, and write back first.
    """
    mine = losses[op.index]
    if not mine.cached.get(target):
        return False
    end = mine.ends[target]
    return not any(
        other.client != op.client and other.ok and op.done < other.invoked and other.done < end.lost
        and not losses[other.index].excused.get(target)
        for other in everybody
    )  # fmt: skip


def _register_step(state: int, effect: tuple[bool, int]) -> Sequence[int]:
    writes, value = effect
    return (value,) if writes or value == state else ()


def _check_appends(ops: Sequence[Op], found: _Placed, losses: dict[int, _Losses]) -> Iterator[str]:
    """In a file that is only appended to, a read of everything finds every append that came before."""
    if found.truncates or not all(op.kind == "append" for op in found.writes.values()):
        return
    for tag, op in found.writes.items():
        if tag in found.offset or not op.ok or any(losses[op.index].cached.values()):
            continue
        for read in ops:
            whole = read.kind == "read" and read.ok and read.args[0] == 0 and read.result.length < read.args[1]
            if whole and op.done < read.invoked and not any(losses[read.index].excused.values()):
                yield f"{op} is nowhere in {read}"
                break


# ------------------------------------------------------------------------------------------------------------- size


class Reach(NamedTuple):
    """How far a file reaches in one stripe: at least, at most; and at least if a client's cache is lost, by life."""

    least: int
    most: int
    without: tuple[tuple[int, int], ...]  # (which life, how far at least)


def _check_size(
    history: History, file: File, stripe: int, ops: list[Op], found: _Placed, losses: dict[int, _Losses]
) -> str:
    target = file.targets[stripe]
    calls: list[Call] = []
    lives = {id(gone): number for number, gone in enumerate(history.gone)}
    undone = max((losses[op.index].undone.get(target, 0) for op in ops), default=0)
    counted = [(read, run) for read, run in found.reads if not losses[read.index].excused.get(target)]
    for op in ops:
        loss = losses[op.index]
        gone = loss.ends.get(target)
        if op.kind in WRITES:
            life = lives[id(gone)] if gone is not None and loss.cached.get(target) else -1
            calls += _growth(history, op, file, stripe, life, found, counted, gone)
        elif op.kind == "truncate":
            optional = _may_be_undone(op, target, loss)
            calls.append(Call(op.invoked, op.done, ("set", file.reach(stripe, op.args[0])), optional=optional, op=op))
        elif op.ok and not loss.excused.get(target) and not _beside_a_refusal(op, ops):
            calls += [Call(op.invoked, op.done, effect, True, op=op) for effect in _seen(op, file, stripe)]
    for life in dict.fromkeys(call.effect[3] for call in calls if call.effect[0] == "cached"):
        calls.append(Call(history.gone[life].lost, NEVER, ("lose", life), optional=True))
    calls = [call for call in calls if not call.reads or call.done >= undone]
    return search(calls, Reach(0, 0, ()), _size_step)


def _beside_a_refusal(look: Op, ops: list[Op]) -> bool:
    """Was it made while a write was under way that found no room? The writer counts its end as the file's until he hears that."""
    return any(op.errno == errno.ENOSPC and op.invoked < look.done and look.invoked < op.failed for op in ops)


def _growth(
    history: History, op: Op, file: File, stripe: int, life: int, found: _Placed, reads: list[tuple[Op, Run]],
    gone: Gone | None,
) -> Iterator[Call]:  # fmt: skip
    """What a write or an append does to the reach of a stripe. An append begins where the file ends.

    Without a lock each of its RPCs is executed for itself: the size grows in steps, in any order.
    """
    tag, length = op.args[-1], op.args[-2]
    offset = found.offset.get(tag)
    kept = end = 0
    if offset is not None:
        end = file.reach(stripe, offset + length)
        seen = [run.end for read, run in reads if run.tag == tag and not (gone and _same_cache(read, op, gone))]
        kept = file.reach(stripe, max(seen, default=0))
        end, kept = (reach if reach > offset else 0 for reach in (end, kept))
        if not end and op.kind == "write":
            return
    effect: tuple[Any, ...]
    if life >= 0:
        least, most = (0, FAR) if offset is None else (end if op.ok else kept, end)
        effect = ("cached", least, most, life, kept)
    elif not op.ok:
        effect = ("perhaps", FAR if offset is None else end)
    elif offset is not None:
        *steps, end = history.steps(op, file, stripe, offset, length) if end else [0]
        at_end = ("append", offset, not offset or file.stripe(offset - 1) == stripe)
        if steps and op.kind == "append":
            yield Call(op.invoked, op.done, (*at_end, 0), op=op)
        for step in steps:
            yield Call(op.invoked, op.done, ("grow", step), op=op)
        effect = ("grow", end) if op.kind == "write" or steps else (*at_end, end)
    else:  # nobody ever saw it: it was cut off or written over
        effect = ("more", length) if len(file.targets) == 1 else ("perhaps", FAR)
    yield Call(op.invoked, op.done, effect, optional=not op.ok, op=op)


def _seen(op: Op, file: File, stripe: int) -> Iterator[tuple[Any, ...]]:
    """What a size, or a read that was cut short by the end of the file, says of a stripe."""
    if op.kind == "size":
        size = op.result
    else:
        assert isinstance(op.result, Data)
        offset, length = op.args
        if op.result.length == length:
            if len(file.targets) == 1 and length:
                yield ("at least", offset + length)
            return
        size = offset + op.result.length
        if not op.result.length:
            yield ("at most", offset)
            return
    yield ("equal" if size and file.stripe(size - 1) == stripe else "at most", size)


def _size_step(state: Reach, effect: tuple[Any, ...]) -> Sequence[Reach]:
    kind, value = effect[:2]
    least, most, without = state
    if kind == "equal":
        return (Reach(value, value, without),) if least <= value <= most else ()
    if kind == "at most":
        return (Reach(least, min(most, value), without),) if least <= value else ()
    if kind == "at least":
        return (Reach(max(least, value), most, without),) if value <= most else ()
    if kind == "set":
        return (Reach(value, value, ()),)
    if kind == "grow":
        return (Reach(max(least, value), max(most, value), tuple((life, max(low, value)) for life, low in without)),)
    if kind == "perhaps":
        return (Reach(least, max(most, value), without),)
    if kind == "more":
        return (Reach(least + value, most + value, ()),)
    if kind == "append":
        _, offset, exact, end = effect
        if least > offset or (exact and most < offset):
            return ()
        return (Reach(max(offset if exact else least, end), max(min(most, offset), end), ()),)
    if kind == "cached":
        _, low, high, mine, kept = effect
        falls = {life: max(fall, kept) for life, fall in without}
        falls.setdefault(mine, max(least, kept))
        return (Reach(max(least, low), max(most, high), tuple(sorted(falls.items()))),)
    assert kind == "lose", kind
    rest = tuple((life, fall) for life, fall in without if life != value)
    return tuple(Reach(min(least, fall), most, rest) for life, fall in without if life == value)
