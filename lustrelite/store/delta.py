"""Changes that are not in the database yet: what StagedStore lays over it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Any, cast

MISSING: Any = object()


class Delta:
    """Changes by table and key. A key that was changed once stays, as a deletion if need be: so a sorted list of the
    keys is good as long as it has as many."""

    __slots__ = ("_sorted", "tables")

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.tables: dict[str, dict[bytes, bytes | None]] = {name: {} for name in names}
        self._sorted: dict[str, list[bytes]] = {}

    def sorted_keys(self, table: str) -> list[bytes]:
        """Keys of `table` in order."""
        values = self.tables[table]
        keys = self._sorted.get(table)
        if keys is None or len(keys) != len(values):
            keys = self._sorted[table] = sorted(values)
        return keys

    def range(self, table: str, start: bytes, prefix: bytes, end: bytes | None) -> list[bytes]:
        """Keys from `start` that begin with `prefix`, not beyond `end`."""
        if not self.tables[table]:
            return []
        keys = self.sorted_keys(table)
        stop = len(keys) if end is None else bisect_right(keys, end)
        limit = beyond(prefix)
        if limit is not None:
            stop = min(stop, bisect_left(keys, limit))
        return keys[bisect_left(keys, start) : stop]


def overlay(deltas: list[Delta], table: str, key: bytes) -> bytes | None:
    """What the newest of `deltas` that changed `key` says of it."""
    for delta in deltas:
        value = delta.tables[table].get(key, MISSING)
        if value is not MISSING:
            return cast(bytes | None, value)
    raise AssertionError("no change of this key")


def beyond(prefix: bytes) -> bytes | None:
    """The least key greater than all that begin with `prefix`, None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None
