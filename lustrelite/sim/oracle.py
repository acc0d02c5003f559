"""What must be true of the file system after everything: the oracle.

It keeps the history of the clients' operations: invoked, acknowledged with a result, refused with an errno, or of
unknown outcome (the client died or was evicted while it waited). At the end it is given the whole tree as a fresh
client sees it, and looks for an order of operations that explains history and tree, where

- an operation takes effect once, between its invocation and its answer, with the answer that was given;
- one of unknown outcome takes effect once or never;
- an acknowledged one of a client that is gone (killed, evicted) may be lost, if its server died before it was durable:
  then with all that this client did there afterwards in the life of that server.

Anything else has to be there: an acknowledged operation of a client that is not gone survives exactly once. This is the
search of Wing and Gong (as in Knossos, Porcupine) over a model tree. It stays small because operations are divided into
areas that share no name (the first component of their paths, unless an operation joins two), and because most areas
have one client, whose operations have one order.

`common` directories are there from the start and belong to every area.

Not judged: times, except those set explicitly; sizes and blocks of directories; the data of files for which a write is
of unknown outcome (such a file is fuzzy until it is truncated to nothing and rewritten).
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PENDING, OK, ERROR, UNKNOWN = "pending", "ok", "error", "unknown"
STEPS_MAX = 200_000  # of the search in one area


class Refused(Exception):
    """The model's answer is an errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


class Seen(NamedTuple):
    """One path of a tree, in the model or as a client sees it."""

    kind: str  # dir, file, symlink, other
    mode: int  # permission bits
    nlink: int
    content: bytes | None  # of a file; the target of a symlink; None is "anything"
    xattrs: tuple[tuple[str, bytes], ...]


Tree = dict[str, Seen]


# ---------------------------------------------------------------------------------------------------- the model


@dataclass
class Node:
    """An inode of the model. Never changed once it is in a tree: replaced."""

    kind: str
    mode: int
    content: bytes = b""
    fuzzy: bool = False
    xattrs: tuple[tuple[str, bytes], ...] = ()


class Model:
    """A file tree: absolute paths to inode numbers, inode numbers to nodes. A copy is cheap."""

    def __init__(self, directories: tuple[str, ...] = ()) -> None:
        self.names: dict[str, int] = {"/": 1}
        self.nodes: dict[int, Node] = {1: Node("dir", 0o755)}
        self.handles: dict[int, int] = {}  # open handle -> inode
        self._next = 2
        for path in directories:
            self.mkdir(path)

    def copy(self) -> Model:
        """An independent copy."""
        other = Model.__new__(Model)
        other.names = dict(self.names)
        other.nodes = dict(self.nodes)
        other.handles = dict(self.handles)
        other._next = self._next
        return other

    def key(self) -> tuple[Any, ...]:
        """Equal for equal trees; inode numbers count, which only makes more of them."""
        return (
            tuple(sorted(self.names.items())),
            tuple((n, node.mode, node.content, node.fuzzy, node.xattrs) for n, node in sorted(self.nodes.items())),
            tuple(sorted(self.handles.items())),
        )

    # -- looking

    def find(self, path: str) -> int:
        """The inode at `path`; Refused(ENOENT), Refused(ENOTDIR)."""
        number = self.names.get(path)
        if number is None:
            self._parent(path)
            raise Refused(errno.ENOENT)
        return number

    def _parent(self, path: str) -> None:
        """Refuse unless the directory of `path` is there."""
        upper = parent(path)
        number = self.names.get(upper)
        if number is None:
            self._parent(upper)
            raise Refused(errno.ENOENT)
        if self.nodes[number].kind != "dir":
            raise Refused(errno.ENOTDIR)

    def children(self, path: str) -> list[str]:
        """Paths of what is in the directory `path`."""
        prefix = "/" if path == "/" else path + "/"
        return [p for p in self.names if p.startswith(prefix) and p != "/" and "/" not in p[len(prefix) :]]

    def _nlink(self, number: int) -> int:
        if self.nodes[number].kind == "dir":
            path = next(p for p, n in self.names.items() if n == number)
            return 2 + sum(self.nodes[self.names[p]].kind == "dir" for p in self.children(path))
        return sum(n == number for n in self.names.values())

    def tree(self) -> Tree:
        """Everything but the root."""
        subdirs: dict[str, int] = {}
        links: dict[int, int] = {}
        for path, number in self.names.items():
            links[number] = links.get(number, 0) + 1
            if self.nodes[number].kind == "dir" and path != "/":
                upper = parent(path)
                subdirs[upper] = subdirs.get(upper, 0) + 1
        tree = {}
        for path, number in self.names.items():
            if path == "/":
                continue
            node = self.nodes[number]
            nlink = 2 + subdirs.get(path, 0) if node.kind == "dir" else links[number]
            content = None if node.fuzzy or node.kind == "dir" else node.content
            tree[path] = Seen(node.kind, node.mode, nlink, content, node.xattrs)
        return tree

    def seen(self, path: str) -> Seen:
        """What stat and read say of `path`."""
        number = self.find(path)
        node = self.nodes[number]
        content = None if node.fuzzy or node.kind == "dir" else node.content
        return Seen(node.kind, node.mode, self._nlink(number), content, node.xattrs)

    # -- changing: each raises Refused before it changes anything

    def _make(self, path: str, node: Node) -> int:
        self._parent(path)
        if path in self.names:
            raise Refused(errno.EEXIST)
        number = self._next
        self._next += 1
        self.names[path] = number
        self.nodes[number] = node
        return number

    def _drop(self, number: int) -> None:
        if number not in self.names.values() and number not in self.handles.values():
            del self.nodes[number]

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._make(path, Node("dir", mode))

    def create(self, path: str, mode: int = 0o644) -> None:
        """open(O_CREAT | O_EXCL), close."""
        self._make(path, Node("file", mode))

    def symlink(self, target: str, path: str) -> None:
        self._make(path, Node("symlink", 0o777, target.encode()))

    def link(self, path: str, new: str) -> None:
        number = self.find(path)
        self._parent(new)
        if new in self.names:
            raise Refused(errno.EEXIST)
        if self.nodes[number].kind == "dir":
            raise Refused(errno.EPERM)
        self.names[new] = number

    def unlink(self, path: str) -> None:
        number = self.find(path)
        if self.nodes[number].kind == "dir":
            raise Refused(errno.EISDIR)
        del self.names[path]
        self._drop(number)

    def rmdir(self, path: str) -> None:
        number = self.find(path)
        if self.nodes[number].kind != "dir":
            raise Refused(errno.ENOTDIR)
        if self.children(path):
            raise Refused(errno.ENOTEMPTY)
        del self.names[path]
        del self.nodes[number]

    def rename(self, old: str, new: str) -> None:
        number = self.find(old)
        self._parent(new)
        if new.startswith(old + "/"):
            raise Refused(errno.EINVAL)
        there = self.names.get(new)
        if there == number:
            return
        is_dir = self.nodes[number].kind == "dir"
        if there is not None:
            if old.startswith(new + "/"):
                raise Refused(errno.ENOTEMPTY)
            if is_dir and self.nodes[there].kind != "dir":
                raise Refused(errno.ENOTDIR)
            if not is_dir and self.nodes[there].kind == "dir":
                raise Refused(errno.EISDIR)
            if is_dir and self.children(new):
                raise Refused(errno.ENOTEMPTY)
        del self.names[old]
        self.names[new] = number
        if there is not None:
            self._drop(there)
        if is_dir:
            prefix = old + "/"
            for path in [p for p in self.names if p.startswith(prefix)]:
                self.names[new + path[len(old) :]] = self.names.pop(path)

    def chmod(self, path: str, mode: int) -> None:
        self._replace(self.find(path), mode=mode)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        number = self.find(path)
        xattrs = {**dict(self.nodes[number].xattrs), name: value}
        self._replace(number, xattrs=tuple(sorted(xattrs.items())))

    def removexattr(self, path: str, name: str) -> None:
        number = self.find(path)
        xattrs = dict(self.nodes[number].xattrs)
        if name not in xattrs:
            raise Refused(errno.ENODATA)
        del xattrs[name]
        self._replace(number, xattrs=tuple(sorted(xattrs.items())))

    def _replace(self, number: int, **fields: Any) -> None:
        node = self.nodes[number]
        values = {"kind": node.kind, "mode": node.mode, "content": node.content, "fuzzy": node.fuzzy}
        self.nodes[number] = Node(**{**values, "xattrs": node.xattrs, **fields})

    def _file(self, path: str) -> int:
        number = self.find(path)
        if self.nodes[number].kind == "dir":
            raise Refused(errno.EISDIR)
        return number

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """open(O_CREAT | O_TRUNC), write, close."""
        if path not in self.names:
            self._make(path, Node("file", mode, data))
        else:
            self._replace(self._file(path), content=data, fuzzy=False)

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """open, pwrite, close."""
        self._splice(self._file(path), offset, data)

    def _splice(self, number: int, offset: int, data: bytes) -> None:
        if not data:
            return  # a write of nothing does not even extend the file
        content = self.nodes[number].content.ljust(offset, b"\0")
        self._replace(number, content=content[:offset] + data + content[offset + len(data) :])

    def truncate(self, path: str, size: int) -> None:
        number = self._file(path)
        content = self.nodes[number].content[:size].ljust(size, b"\0")
        self._replace(number, content=content, fuzzy=self.nodes[number].fuzzy and size > 0)

    def open(self, path: str, create: bool, handle: int) -> None:
        """An open for reading and writing, known as `handle`."""
        if create and path not in self.names:
            number = self._make(path, Node("file", 0o644))
        else:
            number = self._file(path)
        self.handles[handle] = number

    def pwrite(self, handle: int, offset: int, data: bytes) -> None:
        self._splice(self.handles[handle], offset, data)

    def close(self, handle: int) -> None:
        number = self.handles.pop(handle)
        self._drop(number)

    # -- looking, as operations

    def read(self, path: str) -> bytes | None:
        node = self.nodes[self._file(path)]
        return None if node.fuzzy else node.content

    def pread(self, handle: int) -> bytes | None:
        node = self.nodes[self.handles[handle]]
        return None if node.fuzzy else node.content

    def stat(self, path: str) -> tuple[str, int, int]:
        """(kind, permissions, link count)."""
        seen = self.seen(path)
        return seen.kind, seen.mode, seen.nlink

    def exists(self, path: str) -> bool:
        return path in self.names

    def readlink(self, path: str) -> str:
        node = self.nodes[self.find(path)]
        if node.kind != "symlink":
            raise Refused(errno.EINVAL)
        return node.content.decode()

    def listdir(self, path: str) -> tuple[str, ...]:
        if self.nodes[self.find(path)].kind != "dir":
            raise Refused(errno.ENOTDIR)
        return tuple(sorted(p.rpartition("/")[2] for p in self.children(path)))

    def getxattr(self, path: str, name: str) -> bytes:
        value = dict(self.nodes[self.find(path)].xattrs).get(name)
        if value is None:
            raise Refused(errno.ENODATA)
        return value

    # -- what is left of an operation that went halfway

    def smear(self, op: Op) -> None:
        """The data of the file that `op` writes may be anything from now on."""
        args = op.args
        if op.name in ("pwrite", "close"):
            number = self.handles.get(args[0])
        else:
            number = self.names.get(args[0])
        if number is not None and self.nodes[number].kind == "file":
            self._replace(number, fuzzy=True)


    def smear_all(self) -> None:
        """The data of every file may be anything."""
        for number, node in self.nodes.items():
            if node.kind == "file":
                self._replace(number, fuzzy=True)


READS = frozenset({"read", "pread", "stat", "exists", "readlink", "listdir", "getxattr"})
WRITES_DATA = frozenset({"write", "write_at", "truncate", "pwrite"})


def parent(path: str) -> str:
    """The directory of `path`."""
    return path.rpartition("/")[0] or "/"


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
    at_risk: int = 0  # when the MDT died before it was durable, as a count
    data_at_risk: bool = False  # an OST did

    def __str__(self) -> str:
        args = ", ".join(_short(a) for a in self.args)
        end = {OK: f"= {_short(self.result)}", ERROR: f"! {errno.errorcode.get(self.errno, self.errno)}"}
        done = "" if self.done is None else str(self.done)
        return f"{self.invoked}..{done} {self.client}.{self.name}({args}) {end.get(self.outcome, self.outcome)}"


def _short(value: Any) -> str:
    if isinstance(value, bytes) and len(value) > 24:
        return f"{value[:12]!r}..{len(value)} bytes"
    return repr(value)


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
        self.deaths: list[Death] = []
        # Data operations that are answered before they are durable (a write to new bytes is not, so far).
        self.unsynced = frozenset({"write", "truncate"})
        self._risks: dict[str, dict[int, None]] = {}  # by client: the deaths that may have cost it something
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
        """It was refused: nothing was changed. What may be half done (no space) counts as unknown."""
        op.errno = number
        if number == errno.ESTALE and op.client in self.gone:
            self.unknown(op)  # it has lost its handles
        elif number in (errno.ENOSPC, errno.EDQUOT, errno.EIO) and op.name not in READS:
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
            self.gone.setdefault(client, why)
        if not target or "-OST" in target:
            self.gone_data.setdefault(client, why)

    def target_died(self, target: str, life: int, last: int, committed: int) -> None:
        """Life number `life` of `target` ended: of its transnos up to `last` those up to `committed` were durable."""
        self._count += 1
        self.deaths.append(Death(target, life, last, committed, self._count))

    def _find_risks(self) -> None:
        """Which acknowledged operations were not durable when a target died that may have executed them?"""
        for death in self.deaths:
            for op in self.ops:
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

    # -- judging

    def check(self, observed: Tree) -> list[str]:
        """What is wrong with the tree `observed`, given the history: one text per area; none is best."""
        problems = []
        for op in self.ops:
            if op.outcome == PENDING:
                self.unknown(op)
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
        if op.name in ("pwrite", "pread", "close"):
            return [self._handle_paths[op.args[0]]]
        if op.name == "symlink":
            return [op.args[1]]
        if op.name == "open":
            self._handle_paths[op.args[2]] = op.args[0]
        if op.name in ("rename", "link"):
            return [op.args[0], op.args[1]]
        return [op.args[0]]

    def _by_area(self, observed: Tree) -> dict[str, Tree]:
        found: dict[str, Tree] = {}
        for path, seen in observed.items():
            found.setdefault(self._area_key(path), {})[path] = seen
        return found

    def _check_area(self, key: str, area: _Area, observed: Tree) -> str:
        torn = any(op.data_at_risk and op.client in self.gone_data for op in area.ops)
        search = _Search(area.ops, observed, self.common, torn)
        for lost in self._losses(area.ops):
            if search.explains(lost):
                return ""
            if search.steps > STEPS_MAX:
                break
        # Seldom: a client lost changes in several deaths, or in the middle, where versions did not match.
        ragged = frozenset(
            op.index for op in area.ops
            if self._may_be_lost(op) and (self.gone[op.client] == "evicted" or len(self._risks[op.client]) > 1)
        )  # fmt: skip
        for lost in self._losses([op for op in area.ops if op.index not in ragged]) if ragged else ():
            if search.steps > STEPS_MAX:
                break
            if search.explains(lost, ragged):
                return ""
        if search.steps > STEPS_MAX:
            return f"area {key!r}: gave up after {search.steps} steps, {len(area.ops)} operations"
        history = "\n    ".join(str(op) + (" (at risk)" if self._may_be_lost(op) else "") for op in area.ops)
        return f"area {key!r}: {search.why}\n    {history}"

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

    def __init__(self, ops: list[Op], observed: Tree, common: tuple[str, ...], torn: bool) -> None:
        self.ops = ops
        self.torn = torn  # data may be lost
        self.optional: frozenset[int] = frozenset()  # operations that may or may not be lost
        self.failed: set[tuple[Any, ...]] = set()  # what was left to do, and in which state: no way out
        self.common = common
        self.observed = observed
        self.steps = 0
        self.why = ""

    def explains(self, lost: frozenset[int], optional: frozenset[int] = frozenset()) -> bool:
        """Is there an order without the operations `lost`, and with any of those that are `optional`?"""
        missing = lost | optional
        lost_until = max((op.at_risk for op in self.ops if op.index in missing), default=0)
        kept = []
        for op in self.ops:
            if op.index in lost:
                continue
            if op.outcome == UNKNOWN and op.name in READS:
                continue
            if self.torn and op.name in ("read", "pread"):
                continue
            if lost_until and (op.name in READS or op.outcome == ERROR) and (op.done or 0) < lost_until:
                continue  # what was seen then is gone now
            kept.append(op)
        self.optional = optional
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
        if state in self.failed:
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
        if smeared:
            model.smear_all()
        expected = model.tree()
        for path in self.common:
            expected.pop(path, None)
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
            if op.name == "close":
                return True  # its open was lost: as good as closed
            self._explain(op, "should have been refused: the file is not open")
            return False
        except Refused as refused:
            if op.outcome == ERROR and op.errno == refused.errno:
                return True
            self._explain(op, f"should have been refused with {errno.errorcode[refused.errno]}")
            return False
        if op.outcome != OK:
            self._explain(op, f"should have succeeded ({_short(result)})")
            return False
        if op.name in READS and result is not None and result != op.result:
            self._explain(op, f"should have said {_short(result)}")
            return False
        return True

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
            whole.smear(op)
        yield whole


def difference(expected: Tree, observed: Tree) -> str:
    """What of `observed` is not as expected; "" if nothing."""
    lines = []
    for path in sorted(expected.keys() | observed.keys()):
        want, have = expected.get(path), observed.get(path)
        if want is None or have is None:
            lines.append(f"{path} is {'missing' if have is None else f'there ({have.kind})'}")
            continue
        for name, a, b in zip(Seen._fields, want, have, strict=True):
            if a != b and not (name == "content" and a is None):
                lines.append(f"{path}: {name} is {_short(b)}, should be {_short(a)}")
    return "; ".join(lines[:6]) + (f"; and {len(lines) - 6} more" if lines[6:] else "")


def describe(ops: Iterable[Op]) -> str:
    """The history as text."""
    return "\n".join(str(op) for op in ops)
