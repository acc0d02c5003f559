"""Where fsck reads the rows of a target: its store, or the running target by IndexRead; and tables read side by side."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from lustrelite.ost.handlers import FILES
from lustrelite.store import schema
from lustrelite.wire.session import IndexPage, IndexRead

PAGE_ROWS = 2000


class Reader(Protocol):
    """The rows of one target."""

    def rows(self, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """Every row of `table` in key order. `files` on an OST is the list of data files: object id -> size u64."""


class Rows(Protocol):
    """A store, or what the repair lays over one."""

    def scan(self, table: str, after: bytes = b"", *, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows in key order."""


class Files(Protocol):
    """The data files of an OST."""

    def ids(self) -> Iterator[int]:
        """Every object that has one."""

    def size(self, oid: int) -> int:
        """In bytes."""


class StoreReader:
    """Reads an open store (and the data files of an OST) directly. Never suspends."""

    def __init__(self, store: Rows, files: Files | None = None) -> None:
        self.store = store
        self.files = files

    async def rows(self, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """See Reader."""
        if table != FILES:
            for row in self.store.scan(table):
                yield row
        elif self.files is not None:
            for oid in array("Q", sorted(self.files.ids())):
                yield schema.object_key(oid), schema.pack_u64(self.files.size(oid))


class Caller(Protocol):
    """What an RpcReader needs of an import."""

    async def call(self, body: Any) -> Any:
        """The reply to `body`; raises OpError."""


class RpcReader:
    """Reads a running target through IndexRead."""

    def __init__(self, target: Caller, page_rows: int = PAGE_ROWS) -> None:
        self.target = target
        self.page_rows = page_rows

    async def rows(self, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """See Reader."""
        after = b""
        while True:
            page: IndexPage = await self.target.call(IndexRead(table, after, self.page_rows))
            for row in page.rows:
                yield row
            if not page.more:
                return
            after = page.rows[-1][0]


class Cursor:
    """A sorted table beside another: hands out what belongs to the keys that the other one has reached."""

    def __init__(self, rows: AsyncIterator[tuple[bytes, bytes]]) -> None:
        self.rows = rows
        self.row: tuple[bytes, bytes] | None = None

    async def start(self) -> Cursor:
        """Stand at the first row."""
        await self.step()
        return self

    async def step(self) -> None:
        """Go on by one row; `row` is None at the end."""
        self.row = await anext(self.rows, None)

    def behind(self, prefix: bytes) -> bool:
        """Whether there are rows before those of `prefix`."""
        return self.row is not None and self.row[0] < prefix and not self.row[0].startswith(prefix)

    async def count(self, prefix: bytes) -> int:
        """How many rows of `prefix` there are at which the cursor stands, stepping over them."""
        found = 0
        while self.row is not None and self.row[0].startswith(prefix):
            found += 1
            self.row = await anext(self.rows, None)
        return found

    async def before(self, prefix: bytes | None) -> AsyncIterator[tuple[bytes, bytes]]:
        """The rows before those of `prefix`, or all that are left, stepping over them."""
        width = len(prefix or b"")
        while self.row is not None and (prefix is None or self.row[0][:width] < prefix):
            row = self.row
            await self.step()
            yield row

    async def of(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """The rows of `prefix` at which the cursor stands, stepping over them."""
        taken = []
        while self.row is not None and self.row[0].startswith(prefix):
            taken.append(self.row)
            await self.step()
        return taken
