"""A batch of changes as a dict: what a reader sees over a transaction that does not have them yet."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import islice
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
        keys = self._sorted.setdefault(table, [])
        fresh = len(values) - len(keys)
        if fresh:  # the newest of the dict
            keys.extend(islice(reversed(values), fresh))
            keys.sort()
        return keys

    def range(self, table: str, start: bytes, prefix: bytes, keys_max: int | None = None) -> list[bytes]:
        """At most `keys_max` keys from `start` on that begin with `prefix`."""
        if not self.tables[table]:
            return []
        keys = self.sorted_keys(table)
        first = bisect_left(keys, start)
        limit = beyond(prefix)
        stop = len(keys) if limit is None else bisect_left(keys, limit, first)
        return keys[first : stop if keys_max is None else min(stop, first + keys_max)]


def overlay(deltas: Iterable[Delta], table: str, key: bytes) -> bytes | None:
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
