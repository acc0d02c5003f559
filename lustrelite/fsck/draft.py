"""Changes that the repair wants, over a store that it only reads: what is examined before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lustrelite.fsck.readers import Files
from lustrelite.store import schema
from lustrelite.store.delta import Delta
from lustrelite.store.kv import Row, Store


class Draft:
    """A store as it would be."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._delta = Delta(schema.tables_of(store.kind))

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of `key`."""
        changed = self._delta.tables[table]
        return changed[key] if key in changed else self.store.get(table, key)

    def put(self, table: str, key: bytes, value: bytes | None) -> None:
        """Change a row; None deletes it."""
        self._delta.tables[table][key] = value

    def delete(self, table: str, key: bytes) -> None:
        """Delete a row."""
        self.put(table, key, None)

    def scan(self, table: str, after: bytes = b"", *, prefix: bytes = b"") -> Iterator[Row]:
        """Rows in key order, strictly after `after`, as they were when the scan began."""
        start = max(after + b"\0", prefix) if after else prefix
        rows = self._delta.tables[table]
        changed = {key: rows[key] for key in self._delta.range(table, start, prefix)}
        keys = iter(changed)
        key = next(keys, None)
        for row in self.store.scan(table, after, prefix=prefix):
            while key is not None and key <= row[0]:
                value = changed[key]
                if value is not None:
                    yield key, value
                key = next(keys, None)
            if row[0] not in changed:
                yield row
        while key is not None:
            value = changed[key]
            if value is not None:
                yield key, value
            key = next(keys, None)

    @property
    def writes(self) -> Mapping[tuple[str, bytes], bytes | None]:
        """What is to be written."""
        return {(table, key): value for table, rows in self._delta.tables.items() for key, value in rows.items()}


class DraftFiles:
    """The data files of an OST without those that are to be removed."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.removed: dict[int, None] = {}
        self._there: set[int] | None = None  # never iterated

    def ids(self) -> Iterator[int]:
        """See Files."""
        return (oid for oid in self.files.ids() if oid not in self.removed)

    def size(self, oid: int) -> int:
        """See Files."""
        return self.files.size(oid)

    def has(self, oid: int) -> bool:
        """Is there a file, and may it stay?"""
        if self._there is None:
            self._there = set(self.files.ids())
        return oid in self._there and oid not in self.removed
