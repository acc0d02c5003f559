"""What must be true of the file system after everything: the oracle.

It keeps the history of the clients' operations: invoked, acknowledged with a result, refused with an errno, or of
unknown outcome (the client died or was evicted while it waited). At the end it is given the whole tree as a fresh
client sees it, and looks for an order of operations that explains history and tree, where

- an operation takes effect once, between its invocation and its answer, with the answer that was given;
- one of unknown outcome takes effect once or never;
- one that had no answer when its server died may have been seen before, and then not for a while;
- an acknowledged one of a client that is gone (killed, evicted) may be lost, if its server died before it was durable:
  then with all that this client did there afterwards in the life of that server. So may a change of attributes that a
  client which caches has not told of yet.

Anything else has to be there: an acknowledged operation of a client that is not gone survives exactly once. This is the
search of Wing and Gong (as in Knossos, Porcupine) over a model tree. It stays small because operations are divided into
areas that share no name (the first component of their paths, unless an operation joins two), and because most areas
have one client, whose operations have one order.

`common` directories are there from the start and belong to every area.

A client that caches loses with its life what it had not written back: then the data of its area is not judged. What it
reads between its eviction and its hearing of it may be old: coherence.py judges that. What it says from its cache of
something that is then lost (its own change, say) it may say until the server has recovered and it has heard of its end. Until
it has heard, it also writes to the objects of a file that it had made: these have no name any more.

Of times is judged whether that of a file's change, and of access, is the one that was set last, or one by the clock. Who has
read something says so later: others hear of it in time for the end, but not if he is gone (or, if clocks differ, when).

Not judged: sizes and blocks of directories; the data of files for which a write is of unknown outcome (such a file is fuzzy until it is
truncated to nothing and rewritten).
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lustrelite.sim.access_lists import ACCESS
from lustrelite.sim.model import BY_HANDLE, READS, READS_DATA, WRITES_DATA, Model, Refused, Tree, difference, short

PENDING, OK, ERROR, UNKNOWN, UNDONE = "pending", "ok", "error", "unknown", "undone"
NEVER = 1 << 62
STEPS_MAX = 40_000  # of the search in one area


# ---------------------------------------------------------------------------------------------------- the history


# By target: how often it was started, and its last transno; that of an operation which is over is not greater.
Marks = dict[str, tuple[int, int]]


class Death(NamedTuple):
    """A target's life ended."""

    target: str
    life: int
    last: int  # transno
    committed: int
    when: int  # in the count of everything that happened


@dataclass
class Op:
    """One operation of one client."""

    index: int
    client: str
    name: str
    args: tuple[Any, ...]
    invoked: int  # a count of everything that happened
    done: int | None = None
    outcome: str = PENDING
    result: Any = None
    errno: int = 0
    marks: Marks = field(default_factory=dict)  # when it was acknowledged
    late: bool = False  # a change of attributes that the client may have told later: those of each file by themselves
    at_risk: int = 0  # when the MDT died before it was durable, as a count
    redone: int = 0  # when a server died before the answer came, likewise: it was perhaps executed twice
    data_at_risk: bool = False  # an OST did

    def __str__(self) -> str:
        args = ", ".join(short(a) for a in self.args)
        end = {OK: f"= {short(self.result)}", ERROR: f"! {errno.errorcode.get(self.errno, self.errno)}"}
        done = "" if self.done is None else str(self.done)
        return f"{self.invoked}..{done} {self.client}.{self.name}({args}) {end.get(self.outcome, self.outcome)}"


@dataclass
class _Area:
    ops: list[Op] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


class Oracle:
    """The history of one world, and the judge of its end."""

    def __init__(self, area_of: Callable[[str], str] | None = None, common: tuple[str, ...] = ()) -> None:
        self.common = common
        self.ops: list[Op] = []
        self.gone: dict[str, str] = {}  # client -> why: killed, or evicted by the MDT
        self.gone_data: dict[str, str] = {}  # client -> why: killed, or evicted by an OST
        self.caching: dict[str, None] = {}  # clients that write data later than they say
        self.doubted: dict[str, int] = {}  # clients that cache -> since when they are evicted from somewhere
        self.handles_lost: dict[str, None] = {}  # clients that an MDT has evicted: what they had open may be destroyed
        self.deaths: list[Death] = []
        self.noticed: dict[str, int] = {}  # clients that were told of an eviction -> when first
        self._ended: dict[str, int] = {}  # when those of `gone` were gone
        self._backs: list[int] = []  # when an MDT served again
        # Data operations that are answered before they are durable (a write to new bytes is not, so far).
        self.unsynced = frozenset({"write", "truncate", "fallocate"})
        self._risks: dict[str, dict[int, None]] = {}  # by client: the deaths that may have cost it something
        self.clocks_differ = False
        self.area_of = area_of or first_component
        self.mark: Callable[[], Marks] = dict
        self._count = 0
        self._handle_paths: dict[int, str] = {}

    def begin(self, client: str, name: str, *args: Any) -> Op:
        """`client` is about to do `name`."""
        assert hasattr(Model, name), name
        self._count += 1
        op = Op(len(self.ops), client, name, args, self._count)
        self.ops.append(op)
        return op

    def _end(self, op: Op, outcome: str) -> None:
        assert op.outcome == PENDING, op
        self._count += 1
        op.done = self._count
        op.outcome = outcome
        op.marks = self.mark()

    def ok(self, op: Op, result: Any = None) -> None:
        """It was acknowledged."""
        op.result = result
        self._end(op, OK)

    def error(self, op: Op, number: int) -> None:
        """It was refused: nothing was changed. What may be half done counts as unknown.

        A change of metadata that found no space has changed nothing either, whatever it would have answered.
        """
        op.errno = number
        if number == errno.ENOSPC and op.name not in (*READS, *WRITES_DATA):
            self._end(op, UNDONE)
            return
        if (number == errno.ESTALE and (op.client in self.gone or op.client in self.handles_lost)) or (number in (errno.ENOSPC, errno.EDQUOT, errno.EIO) and op.name not in READS):
            self.unknown(op)
        else:
            self._end(op, ERROR)

    def unknown(self, op: Op) -> None:
        """Nobody knows: it takes effect once or never, now or later."""
        if op.outcome == PENDING:
            op.outcome = UNKNOWN
            op.done = None

    def client_gone(self, client: str, why: str, target: str = "") -> None:
        """`client` was killed, or evicted by `target`: what it has under way, and what was not durable, may be lost."""
        if not target or "-MDT" in target:
            self._count += 1
            self._ended.setdefault(client, self._count)
            self.gone.setdefault(client, why)
        if not target or "-OST" in target:
            self.gone_data.setdefault(client, why)

    def client_doubted(self, client: str, target: str) -> None:
        """`target` has thrown `client` out, which does not know it yet."""
        if "-MDT" in target:
            self.handles_lost[client] = None
        if client in self.caching:
            self._count += 1
            self.doubted.setdefault(client, self._count)

    def client_noticed(self, client: str) -> None:
        """`client` has heard that it was evicted."""
        self._count += 1
        self.noticed.setdefault(client, self._count)

    def target_back(self, target: str) -> None:
        """`target` serves again, or for the first time."""
        if "-MDT" in target:
            self._count += 1
            self._backs.append(self._count)

    def _believed_until(self, client: str, death: int) -> int:
        """Until when `client` may speak of what was lost in the death at `death`."""
        if client not in self.caching:
            return death
        until = min((back for back in self._backs if back > death), default=NEVER)
        return max(until, self.noticed.get(client, NEVER)) if client in self.gone else until

    def target_died(self, target: str, life: int, last: int, committed: int) -> None:
        """Life number `life` of `target` ended: of its transnos up to `last` those up to `committed` were durable."""
        self._count += 1
        self.deaths.append(Death(target, life, last, committed, self._count))

    def _find_risks(self) -> None:
        """Which acknowledged operations were not durable when a target died that may have executed them?"""
        for op in self.ops:
            if op.client in self.caching and op.client in self.gone_data and op.name in WRITES_DATA:
                op.data_at_risk = True
        for death in self.deaths:
            for op in self.ops:
                if op.done is not None and op.invoked < death.when < op.done and op.name not in READS:
                    op.redone = death.when
                if op.outcome != OK or op.name in READS or op.invoked > death.when:
                    continue
                assert op.done is not None
                if op.done < death.when:
                    life, transno = op.marks.get(death.target, (0, 0))
                    risk = 0 < life <= death.life and transno > death.committed
                else:  # its answer was still on its way
                    risk = death.last > death.committed
                if risk and "-MDT" in death.target:
                    op.at_risk = death.when
                    self._risks.setdefault(op.client, {})[death.when] = None
                elif risk and op.name in self.unsynced:
                    op.data_at_risk = True

        for op in self._told_late():
            op.late = True
            op.at_risk = max(op.at_risk, self._ended[op.client])
            self._risks.setdefault(op.client, {})[op.at_risk] = None

    def _told_late(self) -> Iterator[Op]:
        """Changes of attributes that a client may have taken along: of files that it has made by an open.

        Source: client/kept_attrs.py
        """
        made: dict[tuple[str, str], None] = {}
        for op in self.ops:
            if op.client not in self.caching or op.client not in self.gone or op.name in BY_HANDLE:
                continue
            path = (op.client, op.args[0])
            if op.name == "open" and op.args[1]:
                made[path] = None
            elif op.name in ("rename", "exchange") and path in made:
                made[op.client, op.args[1]] = None
            elif path in made and op.outcome == OK:
                if op.name in ("chmod", "utime") or (op.name == "setxattr" and op.args[1] == ACCESS):
                    yield op

    # -- judging

    def check(self, observed: Tree) -> list[str]:
        """What is wrong with the tree `observed`, given the history: one text per area; none is best."""
        problems = []
        for op in self.ops:
            if op.outcome == PENDING or (op.name in READS and (op.done or 0) > self.doubted.get(op.client, op.done or 0)):
                op.outcome, op.done = UNKNOWN, None
        self._find_risks()
        areas = self._areas()
        problems += [f"{path} is missing" for path in self.common if path not in observed]
        observed = {path: seen for path, seen in observed.items() if path not in self.common}
        for path in observed:
            areas.setdefault(self._area_key(path), _Area())
        merged = self._by_area(observed)
        for key, area in areas.items():
            text = self._check_area(key, area, merged.get(key, {}))
            if text:
                problems.append(text)
        return problems

    def _area_key(self, path: str) -> str:
        key = self.area_of(path)
        return self._union.get(key, key)

    def _areas(self) -> dict[str, _Area]:
        """Operations by area; areas that an operation joins are one."""
        self._union: dict[str, str] = {}
        everything = False
        keys_of: list[list[str]] = []
        for op in self.ops:
            keys = [self.area_of(p) for p in self._paths(op)]
            if "" in keys and op.name == "listdir" and op.outcome == OK:
                everything = True
            keys_of.append(keys)
        find = self._find
        for keys in keys_of:
            for key in keys[1:]:
                a, b = find(keys[0]), find(key)
                if a != b:
                    self._union[b] = a
        if everything:
            for key in dict.fromkeys(k for keys in keys_of for k in keys):
                if find(key) != find(""):
                    self._union[find(key)] = find("")
        for key in list(self._union):
            self._union[key] = find(key)
        areas: dict[str, _Area] = {}
        for op, keys in zip(self.ops, keys_of, strict=True):
            areas.setdefault(find(keys[0]), _Area()).ops.append(op)
        return areas

    def _find(self, key: str) -> str:
        while key in self._union:
            key = self._union[key]
        return key

    def _paths(self, op: Op) -> list[str]:
        if op.name in BY_HANDLE:
            return [self._handle_paths[op.args[0]]]
        if op.name == "symlink":
            return [op.args[1]]
        if op.name == "open":
            self._handle_paths[op.args[2]] = op.args[0]
        if op.name in ("rename", "exchange", "link"):
            return [op.args[0], op.args[1]]
        return [op.args[0]]

    def _by_area(self, observed: Tree) -> dict[str, Tree]:
        found: dict[str, Tree] = {}
        for path, seen in observed.items():
            found.setdefault(self._area_key(path), {})[path] = seen
        return found

    def _check_area(self, key: str, area: _Area, observed: Tree) -> str:
        torn = any(op.data_at_risk and op.client in self.gone_data for op in area.ops)
        search = _Search(area.ops, observed, self.common, torn, self._believed_until)
        search.unaware = {op.index for op in area.ops if op.name in BY_HANDLE and self._is_unaware(op)}
        search.handle_paths = self._handle_paths
        search.shared = len({op.client for op in area.ops}) > 1
        search.judges_mtimes = not (search.shared and self.clocks_differ)
        search.judges_atimes = search.judges_mtimes and not self._may_have_lost_reads(area.ops)
        for lost in self._losses(area.ops):
            if search.explains(lost):
                return ""
            if search.steps > STEPS_MAX:
                break
        # Seldom: a client lost changes in several deaths, or in the middle, where versions did not match, or of one of its files.
        ragged = frozenset(
            op.index for op in area.ops
            if self._may_be_lost(op) and (op.late or self.gone[op.client] == "evicted" or len(self._risks[op.client]) > 1)
        )  # fmt: skip
        for lost in self._losses([op for op in area.ops if op.index not in ragged]) if ragged else ():
            if search.steps > STEPS_MAX:
                break
            if search.explains(lost, ragged):
                return ""
        # What had no answer when its server died was perhaps executed, and seen, and executed once more after recovery.
        redone = max((op.redone for op in area.ops), default=0)
        for lost in self._losses(area.ops) if redone else ():
            if search.steps > STEPS_MAX:
                break
            if search.explains(lost, seen_until=redone):
                return ""
        if search.steps > STEPS_MAX:
            return f"area {key!r}: gave up after {search.steps} steps, {len(area.ops)} operations"
        history = "\n    ".join(str(op) + (" (at risk)" if self._may_be_lost(op) else "") for op in area.ops)
        return f"area {key!r}: {search.why}\n    {history}"

    def _may_have_lost_reads(self, ops: list[Op]) -> bool:
        """Who reads says so later: his end takes that along, and so do times that he sets and the MDT has no room for."""
        return any(
            (op.name in READS_DATA and (op.outcome == UNKNOWN or op.client in self.gone or op.client in self.gone_data))
            or (op.name == "utime" and op.outcome == UNDONE)
            for op in ops
        )

    def _is_unaware(self, op: Op) -> bool:
        return op.client in self.gone and op.invoked < self.noticed.get(op.client, NEVER)

    def _may_be_lost(self, op: Op) -> bool:
        return bool(op.at_risk) and op.client in self.gone

    def _losses(self, ops: list[Op]) -> Iterator[frozenset[int]]:
        """Sets of acknowledged operations that may be lost, likely ones first: per client and life a last part."""
        groups: dict[tuple[str, int], list[int]] = {}  # by client and death
        for op in ops:
            if self._may_be_lost(op):
                groups.setdefault((op.client, op.at_risk), []).append(op.index)
        choices: list[list[list[int]]] = []
        for group in groups.values():
            cuts = [[], group] + [group[i:] for i in range(1, len(group))]
            choices.append(cuts)
        for chosen in itertools.product(*choices):
            yield frozenset(index for part in chosen for index in part)


def first_component(path: str) -> str:
    """The first name of `path`, "" for the root."""
    return path.split("/", 2)[1]


class _Search:
    """Looks for an order of operations that explains their answers and the tree at the end."""

    def __init__(
        self, ops: list[Op], observed: Tree, common: tuple[str, ...], torn: bool, believed_until: Callable[[str, int], int]
    ) -> None:
        self.ops = ops
        self.believed_until = believed_until
        self.torn = torn  # data may be lost
        self.shared = False  # by several clients: when one of them has read something the others hear later
        self.judges_mtimes = True  # unless clients say when in the time of different clocks
        self.judges_atimes = True
        self.atimes = True  # as far as what was read counts, too
        self.optional: frozenset[int] = frozenset()  # operations that may or may not be lost
        self.missing: frozenset[int] = frozenset()  # those, and the ones that are
        self.unaware: set[int] = set()  # operations by handle of one who had not heard that he is evicted
        self.handle_paths: dict[int, str] = {}
        self.failed: set[tuple[Any, ...]] = set()  # what was left to do, and in which state: no way out
        self.common = common
        self.observed = observed
        self.steps = 0
        self.why = ""

    def explains(self, lost: frozenset[int], optional: frozenset[int] = frozenset(), seen_until: int = 0) -> bool:
        """Is there an order without the operations `lost`, and with any of those that are `optional`?

        What was seen before `seen_until` does not count.
        """
        missing = lost | optional
        lost_until = max((op.at_risk for op in self.ops if op.index in missing), default=seen_until)
        kept = []
        self.atimes = self.judges_atimes
        for op in self.ops:
            if op.index in lost or op.outcome == UNDONE:
                continue
            if op.outcome == UNKNOWN and op.name in READS:
                continue
            if self.torn and op.name in READS_DATA:
                self.atimes = False
                continue
            looks = op.name in READS or op.outcome == ERROR
            if lost_until and looks and op.invoked < self.believed_until(op.client, lost_until):
                self.atimes = self.atimes and op.name not in READS_DATA
                continue  # what was seen then is gone now; the answer may have come later
            kept.append(op)
        self.optional, self.missing = optional, missing
        self.failed.clear()
        # A lost write may have left its data, in a file whose name then was lost as well.
        smeared = self.torn or any(
            op.name in WRITES_DATA and (op.index in missing or (missing and op.outcome == UNKNOWN)) for op in self.ops
        )
        return self._search(Model(self.common), kept, smeared)

    def _search(self, model: Model, ops: list[Op], smeared: bool) -> bool:
        """Depth first; iterative while there is only one way to go on."""
        while True:
            certain = [op for op in ops if op.done is not None]
            if not certain:
                return self._finish(model, ops, smeared)
            horizon = min(op.done for op in certain if op.done is not None)
            ways = [op for op in ops if op.invoked < horizon]
            if len(ways) > 1 or ways[0].index in self.optional:
                break
            if not self._apply(model, ways[0]):
                return False
            ops = ops[1:] if ops[0] is ways[0] else [op for op in ops if op is not ways[0]]
        state = (tuple(op.index for op in ops), model.key())
        self.steps += 1
        if state in self.failed or self.steps > STEPS_MAX:
            return False
        for op in ways:
            rest = [other for other in ops if other is not op]
            if op.outcome == UNKNOWN:
                for after in self._half_done(model, op):
                    if self._search(after, rest, smeared):
                        return True
            else:
                after = model.copy()
                if self._apply(after, op) and self._search(after, rest, smeared):
                    return True
            if (op.outcome == UNKNOWN or op.index in self.optional) and self._search(model.copy(), rest, smeared):
                return True  # it never happened
            if self.steps > STEPS_MAX:
                return False
        self.failed.add(state)
        return False

    def _finish(self, model: Model, unknown: list[Op], smeared: bool) -> bool:
        """Only operations of unknown outcome are left: each may take effect, in any order, or not."""
        state = (tuple(op.index for op in unknown), model.key())
        if state in self.failed or self.steps > STEPS_MAX:
            return False
        self.steps += 1
        self.failed.add(state)  # if there is a way out of it, nobody asks again
        if smeared:
            model.smear_all()
        expected = model.tree()
        for path in self.common:
            expected.pop(path, None)
        if not self.atimes:
            expected = {path: seen._replace(atime=None) for path, seen in expected.items()}
        if not self.judges_mtimes:
            expected = {path: seen._replace(mtime=None) for path, seen in expected.items()}
        why = difference(expected, self.observed)
        if not why:
            return True
        if not self.why:
            self.why = why
        for op in unknown:
            for after in self._half_done(model, op):
                if self._finish(after, [other for other in unknown if other is not op], smeared):
                    return True
        return False

    def _apply(self, model: Model, op: Op) -> bool:
        """Do `op` in the model; True if it gives the answer that was given."""
        self.steps += 1
        try:
            result = getattr(model, op.name)(*op.args)
        except KeyError:
            if op.name == "close" or self._goes_nowhere(model, op):
                return True  # its open was lost: as good as closed
            self._explain(op, "should have been refused: the file is not open")
            return False
        except Refused as refused:
            if op.outcome == ERROR and op.errno == refused.errno:
                return True
            self._explain(op, f"should have been refused with {errno.errorcode[refused.errno]}")
            return False
        if op.outcome != OK:
            self._explain(op, f"should have succeeded ({short(result)})")
            return False
        if op.name == "stat" and op.result is not None:
            mtime, atime = op.result[3:]
            if self.judges_mtimes and not self.torn and result[3] is not None:
                mtime = result[3]
            if self.atimes and not self.shared and result[4] is not None:
                atime = result[4]
            result = (*result[:3], mtime, atime)
        if op.name in READS and result is not None and result != op.result:
            self._explain(op, f"should have said {short(result)}")
            return False
        return True

    def _goes_nowhere(self, model: Model, op: Op) -> bool:
        """Was the file of `op` lost, with the open that made it, and its client did not know?"""
        lost = any(other.name == "open" and other.args[2] == op.args[0] for other in self.ops if other.index in self.missing)
        return lost and op.index in self.unaware and not model.exists(self.handle_paths[op.args[0]])

    def _explain(self, op: Op, why: str) -> None:
        if not self.why:
            self.why = f"{op}: {why}"

    def _half_done(self, model: Model, op: Op) -> Iterator[Model]:
        """What the model may look like after `op` of unknown outcome took effect, wholly or in part."""
        self.steps += 1
        whole = model.copy()
        try:
            getattr(whole, op.name)(*op.args)
        except (Refused, KeyError):
            return
        if op.name in WRITES_DATA:
            # the data is anything; the name, if it made one, is there
            whole.smear(op.name, op.args)
        yield whole


def describe(ops: Iterable[Op]) -> str:
    """The history as text."""
    return "\n".join(str(op) for op in ops)
