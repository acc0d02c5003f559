"""Is the file of an LMDB database whole? Its pages are read here as bytes, before LMDB believes what they say.

LMDB has no checksums and trusts what it maps: a page number, a size or an offset that a disk has changed makes it find the
wrong row or none, write over pages that are in use, or read beyond the end of the file, which ends the process with
SIGBUS. `check_end` is cheap, for whoever opens the database; `check` reads every page in use once (fsck, backup).

What holds of every page in use: it is in the file, used once, says its own number, and its kind is right; its nodes lie
within it; its keys ascend, and lie between those that lead to it. Every tree has as many pages and rows as its record
says, and no free page is in use. What no page can say is whether the bytes of a value are the ones that were written.
The format is that of LMDB 0.9, of a machine of our byte order (mdb.c: MDB_page, MDB_node, MDB_db, MDB_meta).
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from operator import ge, gt
from pathlib import Path
from typing import Any, NamedTuple

from lustrelite.errors import FormatRefused, StoreFailed
from lustrelite.store import schema

MAGIC = 0xBEEFC0DE
BRANCH, LEAF, OVERFLOW, META = 0x01, 0x02, 0x04, 0x08
LARGE, SUBTREE = 0x01, 0x02  # of a node: its value has pages of its own, is a tree
INTEGER_KEYS = 0x08  # of a tree: the one of free pages
KEY_BYTES_MAX = 511
PAGE_BYTES_MAX = 1 << 16
_PAGE = struct.Struct("=QHHHH")  # number, pad, kind, end of the offsets, begin of the nodes
_LARGE = struct.Struct("=QHHI")  # number, pad, kind, pages
_NODE = struct.Struct("=HHHH")  # size (of a branch: page number), low and high; flags; length of the key
_TREE = struct.Struct("=IHHQQQQQ")
_META = struct.Struct("=IIQQ")  # before the records of the two trees
_TAIL = struct.Struct("=QQ")  # after them
_META_BYTES = _PAGE.size + _META.size + 2 * _TREE.size + _TAIL.size


class _Damaged(Exception):
    """What is wrong, for people."""


class _Tree(NamedTuple):
    """MDB_db."""

    page_bytes: int  # in the first tree of a meta page
    flags: int
    depth: int
    branches: int
    leaves: int
    larges: int
    rows: int
    root: int  # all ones: the tree is empty


class _State(NamedTuple):
    """What a meta page says."""

    free: _Tree
    main: _Tree
    last_page: int
    commit: int


def check_there(directory: str | Path) -> None:
    """FormatRefused if `directory` has no database: what to do about it depends on what else is there."""
    if os.path.exists(data_path(directory)):
        return
    if _was_made(directory):
        raise _lost(directory, "lmdb/data.mdb is missing")
    raise FormatRefused(f"there is no LustreLite target in {directory}: format one with mkfs.lustrelite first")


def check_end(directory: str | Path) -> None:
    """FormatRefused if the database in `directory` is shorter than it should.  OSError"""
    with open(data_path(directory), "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise no_format(directory)
        try:
            pages = _Pages(file.fileno())
            # LMDB may end with free pages that were never written, so the size alone proves nothing.
            if (pages.state.last_page + 1) * pages.page_bytes > pages.size:
                pages.check()
        except _Damaged as error:
            raise FormatRefused(
                f"the database of {directory} is truncated or damaged ({error}): restore the target from a backup"
            ) from None


def check(directory: str | Path) -> None:
    """StoreFailed if a page of the database in `directory` is not what it must be, else as `check_there`, `check_end`."""
    check_there(directory)
    check_end(directory)
    with open(data_path(directory), "rb") as file:
        try:
            _Pages(file.fileno()).check()
        except _Damaged as error:
            raise damaged(directory, error) from None


def damaged(directory: str | Path, why: object) -> StoreFailed:
    """The error of who finds the database of the target in `directory` damaged."""
    return StoreFailed(f"the database of {directory} is damaged ({why}): restore the target from a backup")


def no_format(directory: str | Path) -> FormatRefused:
    """The error of who finds nothing in the database of `directory`: was its formatting interrupted, or is it lost?"""
    if _was_made(directory):
        return _lost(directory, "there is nothing in lmdb/data.mdb")
    return FormatRefused(f"formatting {directory} was not finished: format it again")


def data_path(directory: str | Path) -> str:
    """The file that LMDB keeps everything in."""
    return os.path.join(directory, "lmdb", "data.mdb")


def _was_made(directory: str | Path) -> bool:
    """Formatting ends with target.json; an OST makes O/ later."""
    return any(os.path.exists(os.path.join(directory, name)) for name in (schema.TARGET_FILE, "O"))


def _lost(directory: str | Path, why: str) -> FormatRefused:
    return FormatRefused(
        f"the database of {directory} is lost ({why}): restore the target from a backup; do not format it, what is left"
        " there would be destroyed"
    )


class _Pages:
    """The pages of one database file, and which of them were seen."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self.page_bytes = 0
        self._seen: set[int] = set()  # never iterated
        self.state = self._newest()

    def _newest(self) -> _State:
        """The state of the last commit. LMDB takes it from the meta page that counts more commits, and so do we."""
        first = self._meta(0)
        self.page_bytes = first.free.page_bytes
        if not 512 <= self.page_bytes <= PAGE_BYTES_MAX or self.page_bytes & (self.page_bytes - 1):
            raise _Damaged(f"pages of {self.page_bytes} bytes")
        second = self._meta(self.page_bytes)
        state = max(first, second, key=lambda meta: meta.commit)
        if state.free.page_bytes != self.page_bytes:
            raise _Damaged("its two meta pages disagree")
        return state

    def _meta(self, offset: int) -> _State:
        page = os.pread(self._fd, _META_BYTES, offset)
        if len(page) < _META_BYTES:
            raise _Damaged("it ends within its meta pages")
        kind = _PAGE.unpack_from(page)[2]
        magic, version, _, _ = _META.unpack_from(page, _PAGE.size)
        if (kind, magic, version) != (META, MAGIC, 1):
            raise _Damaged("not a meta page of LMDB")
        at = _PAGE.size + _META.size
        free, main = (_Tree(*_TREE.unpack_from(page, at + number * _TREE.size)) for number in (0, 1))
        last_page, commit = _TAIL.unpack_from(page, at + 2 * _TREE.size)
        return _State(free, main, last_page, commit)

    def check(self) -> None:
        """Read every page in use."""
        tables: dict[bytes, _Tree] = {}
        freed: list[bytes] = []

        def table(key: bytes, value: bytes) -> None:
            tables[key] = _Tree(*_TREE.unpack(value))

        _Walk(self, "the list of tables", self.state.main, table, kinds=(SUBTREE,)).walk()
        for name, tree in tables.items():
            _Walk(self, f"table {name.decode(errors='backslashreplace')}", tree).walk()
        _Walk(self, "the list of free pages", self.state.free, lambda _, value: freed.append(value), flags=INTEGER_KEYS).walk()
        for value in freed:
            self._check_free(value)

    def _check_free(self, value: bytes) -> None:
        if len(value) < 8 or len(value) < 8 * (1 + int.from_bytes(value[:8], sys.byteorder)):
            raise _Damaged("a list of free pages is cut short")
        for number in struct.unpack_from(f"={int.from_bytes(value[:8], sys.byteorder)}Q", value, 8):
            self._see(number, "the list of free pages")

    def _see(self, number: int, where: str) -> None:
        if not 2 <= number <= self.state.last_page:
            raise _Damaged(f"{where} names page {number}, the last is {self.state.last_page}")
        if number in self._seen:
            raise _Damaged(f"page {number}, of {where}, is in use twice")
        self._seen.add(number)

    def _bytes(self, number: int, count: int, where: str) -> bytes:
        data = os.pread(self._fd, count, number * self.page_bytes)
        if len(data) < count:
            raise _Damaged(f"it ends before page {number}, of {where}")
        return data

    def page(self, number: int, where: str) -> bytes:
        """The page of `where`, whose number and bounds are right."""
        self._see(number, where)
        page = self._bytes(number, self.page_bytes, where)
        own, _, _, low, high = _PAGE.unpack_from(page)
        if own != number or not _PAGE.size <= low <= high <= self.page_bytes or low & 1:
            raise _Damaged(f"page {number}, of {where}, is no page of a tree")
        return page

    def large(self, number: int, size: int, where: str) -> tuple[int, bytes]:
        """How many pages the value of `size` bytes has that begins on page `number`, and the value."""
        own, _, kind, pages = _LARGE.unpack(self._bytes(number, _LARGE.size, where))
        if own != number or kind != OVERFLOW or not _LARGE.size + size <= pages * self.page_bytes <= self.size:
            raise _Damaged(f"page {number}, of {where}, does not begin a large value")
        for each in range(number, number + pages):
            self._see(each, where)
        return pages, self._bytes(number, _LARGE.size + size, where)[_LARGE.size :]


class _Walk:
    """One tree, read from its root in key order. `visit` is shown the rows; their nodes are of `kinds`."""

    def __init__(
        self, pages: _Pages, name: str, tree: _Tree, visit: Callable[[bytes, bytes], None] | None = None, *,
        kinds: tuple[int, ...] = (0, LARGE), flags: int = 0,
    ) -> None:  # fmt: skip
        self._pages, self._name, self._tree, self._visit, self._kinds = pages, name, tree, visit, kinds
        self._flags = flags
        self._branches = self._leaves = self._larges = self._rows = 0

    def walk(self) -> None:
        """Read the tree, and count it."""
        tree = self._tree
        if tree.flags != self._flags:
            raise _Damaged(f"{self._name} has keys of another kind")
        if tree.root != (1 << 64) - 1:
            self._descend(tree.root, 1, None, None)
        if (self._branches, self._leaves, self._larges, self._rows) != (tree.branches, tree.leaves, tree.larges, tree.rows):
            raise _Damaged(f"{self._name} has {self._rows} rows, should have {tree.rows}, or other pages than it should")

    def _descend(self, number: int, level: int, low: Any, high: Any) -> None:
        """Read the page and what is below it, whose keys are from `low` up to `high`; None: no bound."""
        page = self._pages.page(number, self._name)
        kind = _PAGE.unpack_from(page)[2]
        if kind != (LEAF if level == self._tree.depth else BRANCH) or level > self._tree.depth:
            raise _Damaged(f"page {number}, of {self._name}, is of another kind")
        raw, rows = self._nodes(number, page, leaf=kind == LEAF)
        keys: list[Any] = raw if not self._flags else [int.from_bytes(key, sys.byteorder) for key in raw]
        ends = keys[kind == BRANCH :]  # LMDB does not look at the first key of a branch
        inside = not ends or ((low is None or low <= ends[0]) and (high is None or ends[-1] < high))
        if not inside or any(map(ge, ends, ends[1:])):
            raise _Damaged(f"the keys of page {number}, of {self._name}, are out of order")
        if kind == LEAF:
            self._leaves += 1
            self._rows += len(rows)
            if self._visit is not None or any(flags for flags, _, _ in rows):
                for key, (flags, size, at) in zip(raw, rows, strict=True):
                    self._leaf(number, key, flags, size, page[at : at + (8 if flags & LARGE else size)])
        else:
            self._branches += 1
            for (_, child, _), start, end in zip(rows, [low, *ends], [*ends, high], strict=True):
                self._descend(child, level + 1, start, end)

    def _nodes(self, number: int, page: bytes, *, leaf: bool) -> tuple[list[bytes], list[tuple[int, int, int]]]:
        """The keys of a page, and for each (flags, size of the value, where it is); of a branch (0, page number, -)."""
        _, _, _, low, high = _PAGE.unpack_from(page)
        offsets = struct.unpack_from(f"={(low - _PAGE.size) // 2}H", page, _PAGE.size)
        unpack, last, length_min = _NODE.unpack_from, len(page) - _NODE.size, int(leaf)
        keys, rows, ends = [], [], []
        for at in offsets:
            if not high <= at <= last or at & 1:
                raise _Damaged(f"a row of page {number}, of {self._name}, is not on the page")
            size, upper, flags, length = unpack(page, at)
            size |= upper << 16
            begin = at + 8
            middle = end = begin + length
            if leaf:
                end += 8 if flags & LARGE else size
            else:
                size, flags = size | flags << 32, 0
            if end > len(page) or not length_min <= length <= KEY_BYTES_MAX:
                raise _Damaged(f"a row of page {number}, of {self._name}, is not on the page")
            keys.append(page[begin:middle])
            rows.append((flags, size, middle))
            ends.append(end)
        if not keys or any(map(gt, sorted(ends), sorted(offsets)[1:])):
            raise _Damaged(f"rows of page {number}, of {self._name}, lie in each other")
        return keys, rows

    def _leaf(self, number: int, key: bytes, flags: int, size: int, value: bytes) -> None:
        if flags not in self._kinds or (flags == SUBTREE and size != _TREE.size):
            raise _Damaged(f"a row of page {number}, of {self._name}, is of another kind")
        if flags == LARGE:
            pages, value = self._pages.large(int.from_bytes(value, sys.byteorder), size, self._name)
            self._larges += pages
        if self._visit is not None:
            self._visit(key, value)
