"""The database of a target: one running batch of changes, committed later and as a whole.

A server answers before it commits. All requests since the last commit share one batch; `kill -9` loses the running
batch and nothing else, which is the bargain that replay repairs. One request's writes come gathered (`apply`), so a
request that fails leaves nothing behind. Two stores keep this rule:

- OpenTxnStore (MDT, MGS): the batch *is* LMDB's open write transaction. `get` and `scan` read inside it.
- StagedStore (OST): the batch is a dict. `seal` freezes it, the caller makes the data files it names durable, `commit`
  puts it into LMDB; requests meanwhile fill the next one. Readers look at staged, then frozen, then LMDB. Only one
  batch is frozen at a time. `commit` alone may run in another thread; everything else belongs to the loop's.

What must never happen is that state is served which a failed commit took back: after any failure of LMDB every call
raises StoreFailed and the process must die. That a full disk is no such failure is room.py's business.

LMDB runs without its own locks (lock=False): a commit may then run in another thread, and no mutex in a shared file is
left behind by a killed process. In return we keep the rules ourselves: a file lock admits one writing process (or any
number of offline readers), and no read transaction lives across two commits.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Self, cast

import lmdb

from lustrelite.errors import FormatRefused, OpError, StoreFailed
from lustrelite.store import disk, schema
from lustrelite.store.delta import MISSING, Delta, beyond, overlay
from lustrelite.store.room import Room

Writes = Mapping[tuple[str, bytes], bytes | None]
Row = tuple[bytes, bytes]

MAP_BYTES = 1 << 40  # sparse: address space, not disk
TABLES_MAX = 32
SCAN_ROWS_MIN, SCAN_ROWS_MAX = 64, 1024


class Batch:
    """A sealed batch: what the next commit makes durable."""

    __slots__ = ("delta", "dirty", "number", "size")

    def __init__(self, number: int, dirty: int, size: int, delta: Delta | None = None) -> None:
        self.number = number
        self.dirty = dirty  # records
        self.size = size  # bytes of keys and values
        self.delta = delta

    def keys(self, table: str) -> list[bytes]:
        """Keys of `table` that this batch changes, deletions included. StagedStore only: an OST asks for its objects."""
        assert self.delta is not None, "an open transaction does not know its keys"
        return self.delta.sorted_keys(table)


class Store:
    """One LMDB environment in `directory`/lmdb, of a target of `kind`. `open` makes one; see the module."""

    def __init__(self, directory: str, kind: str, env: lmdb.Environment, lock_fd: int, map_bytes: int) -> None:
        self.directory = directory
        self.kind = kind
        self.dirty = 0  # records applied since the last seal
        self._env = env
        self._lock_fd = lock_fd
        self._dbs: dict[str, Any] = {}
        self._txn: Any = None  # lmdb.Transaction; what it returns is bytes, as buffers=False
        self._guard = threading.Lock()  # a commit in a thread against abort
        self._failed = ""
        self._lost: list[Any] = []
        self._closed = False
        self._readonly = False
        self._batches = 0
        self._room = Room(directory, map_bytes)
        self._records = 0  # in the running batch and a frozen one
        self._bytes = 0
        self._records_checked = -1  # there is room up to here
        self._bytes_checked = 0

    # ------------------------------------------------------------ open and close

    @classmethod
    def open(
        cls,
        directory: str | Path,
        kind: str,
        *,
        create: bool = False,
        durable: bool = True,
        readonly: bool = False,
        map_bytes: int = MAP_BYTES,
    ) -> Self:
        """The store of a target of `kind` ("MDT", "OST", "MGS"); of `Store` itself, the class that suits the kind.

        `create` makes a new one. `durable=False` leaves out every fsync (simulator: a kill loses no more than before,
        a power cut would). `readonly` is for an offline reader: nobody else may write meanwhile.
        Errors: FormatRefused (no target, another kind, another format), OpError(EBUSY) somebody has it open,
        OpError of the disk.
        """
        if cls is Store:
            cls = cast(type[Self], StagedStore if kind == "OST" else OpenTxnStore)
        tables = schema.tables_of(kind)
        path = os.path.join(directory, "lmdb")
        exists = os.path.exists(os.path.join(path, "data.mdb"))
        if not exists and not create:
            raise FormatRefused(f"there is no LustreLite target in {directory}: format one first (llctl mkfs)")
        try:
            if create:
                os.makedirs(path, exist_ok=True)
            lock_fd = _lock(path, readonly)
        except OSError as error:
            raise OpError(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
        try:
            env = lmdb.open(
                path,
                map_size=map_bytes,
                max_dbs=TABLES_MAX,
                subdir=True,
                create=create,
                readonly=readonly,
                lock=False,
                sync=durable,
                metasync=durable,
                max_spare_txns=2,
            )
        except (lmdb.Error, OSError) as error:
            os.close(lock_fd)
            raise FormatRefused(f"{path} cannot be opened as a LustreLite database: {error}") from None
        store = cls(str(directory), kind, env, lock_fd, map_bytes)
        opened = False
        try:
            store._readonly = readonly
            if readonly:
                store._check_format()
                store._open_tables(tables, create=False)
            else:
                store._open_for_writing(tables, create, durable, path)
            store._begin()
            opened = True
        finally:
            if not opened:
                store._shut()
        return store

    def _open_for_writing(self, tables: tuple[str, ...], create: bool, durable: bool, path: str) -> None:
        if not create:
            self._check_format()
        elif (found := self._format()) is not None:
            raise FormatRefused(f"{self.directory} already holds a LustreLite {found[1]} (format {found[0]})")
        self._open_tables(tables, create=True)
        if create:
            with self._env.begin(write=True) as txn:  # the last act of formatting
                value = schema.pack_meta((schema.FORMAT_VERSION, self.kind))
                txn.put(schema.FORMAT_KEY, value, db=self._dbs[schema.META])
            if durable:
                disk.sync_directory(path)
                disk.sync_directory(self.directory)
        if durable:
            self._room.allocate_for(os.path.join(path, "data.mdb"))

    def _open_tables(self, tables: tuple[str, ...], *, create: bool) -> None:
        try:
            for name in tables:
                if name not in self._dbs:
                    self._dbs[name] = self._env.open_db(name.encode(), create=create)
        except lmdb.NotFoundError as error:
            raise FormatRefused(f"{self.directory} is no complete LustreLite {self.kind}: {error}") from None

    def _format(self) -> tuple[int, str] | None:
        """(format version, kind) of what is there, None if nothing is or formatting was not finished."""
        try:
            meta = self._env.open_db(schema.META.encode(), create=False)
        except (lmdb.NotFoundError, lmdb.ReadonlyError):
            return None
        with self._env.begin() as txn:
            value = txn.get(schema.FORMAT_KEY, None, meta)
        return None if value is None else tuple(schema.unpack_meta(value))

    def _check_format(self) -> None:
        found = self._format()
        if found is None:
            raise FormatRefused(f"formatting {self.directory} was not finished: format it again")
        version, kind = found
        ours = schema.FORMAT_VERSION
        if version > ours:
            raise FormatRefused(
                f"{self.directory} was written by a newer LustreLite (format {version}); this one reads format {ours}:"
                " start the newer version"
            )
        if version < ours:
            raise FormatRefused(
                f"{self.directory} was written by an older LustreLite (format {version}); this one reads format {ours}:"
                " start the older version, or copy the files over into a new file system"
            )
        if kind != self.kind:
            raise FormatRefused(f"{self.directory} holds a LustreLite {kind}, not an {self.kind}")

    def abort(self) -> None:
        """What `kill -9` does: everything that is not committed is lost, and the store is closed."""
        with self._guard:
            self._shut()

    def close(self) -> None:
        """Commit everything and close. StagedStore: the data of its objects must be durable by now."""
        if not self._readonly:
            self.commit(self.seal())
        self.abort()

    def _shut(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._refuse(self._failed or f"the store of {self.directory} is closed")
        self._env.close()  # aborts what is open
        self._room.close()
        os.close(self._lock_fd)

    def _fail(self, error: BaseException) -> NoReturn:
        self._failed = f"the store of {self.directory} failed: {type(error).__name__}: {error}"
        self._refuse(self._failed)
        raise StoreFailed(self._failed) from error

    def _refuse(self, why: str) -> None:
        """Let every further call raise StoreFailed, at no cost to those before."""
        self._lost.append(self._txn)  # not aborted here: the loop may be reading from it while a commit fails
        self._txn = _Gone(why)
        self._records_checked = -1  # sends `apply` to `_make_room`, which says no

    def _check_alive(self) -> None:
        if self._failed or self._closed:
            raise StoreFailed(self._failed or f"the store of {self.directory} is closed")

    # ------------------------------------------------------------ room

    @property
    def pressed(self) -> bool:
        """Space is short and the running batch ties some up: commit it at once."""
        return self._room.pressed

    @property
    def reserved_permille(self) -> int:
        """How much of the disk is kept free; ENOSPC before it."""
        return self._room.reserved_permille

    @reserved_permille.setter
    def reserved_permille(self, value: int) -> None:
        self._room.reserved_permille = value

    def _measure(self, records: int, size: int) -> None:
        """After a commit of `records` and `size`: see what room there is."""
        self._room.measure(self._env, self._txn, self._dbs.values(), records, size)
        self._records_checked = -1

    def _make_room(self, records: int, size: int, essential: bool) -> None:
        """Let the batch grow to `records` and `size`, or raise OpError(ENOSPC)."""
        self._check_alive()
        if self._readonly:
            raise OpError(errno.EROFS, f"{self.directory} is open for reading only")
        more = records - self._records
        try:
            checked = self._room.make(records, size, more=more, essential=essential)
        except OSError as error:
            self._fail(error)
        self._records_checked, self._bytes_checked = checked

    # ------------------------------------------------------------ what the two stores do differently

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of `key`, committed or not."""
        raise NotImplementedError

    def scan(self, table: str, after: bytes = b"", *, prefix: bytes = b"") -> Iterator[Row]:
        """Rows of `table` in key order, strictly after `after`, whose keys begin with `prefix`.

        The store may change, and commit, while it is read: each row is as it was at some time since the scan began."""
        more: bytes | None = after
        rows_max = SCAN_ROWS_MIN
        while more is not None:
            start = max(more + b"\0", prefix) if more else prefix
            rows, more = self._rows(table, start, prefix, rows_max)
            yield from rows
            rows_max = min(2 * rows_max, SCAN_ROWS_MAX)

    def last(self, table: str, prefix: bytes = b"") -> Row | None:
        """The last row of `table` whose key begins with `prefix`."""
        raise NotImplementedError

    def count(self, table: str) -> int:
        """Number of rows of `table`."""
        raise NotImplementedError

    def apply(self, writes: Writes, *, essential: bool = False) -> None:
        """Put one request's writes into the running batch, all or nothing; None deletes.

        `essential` may use the space that is kept back: replays (they were acknowledged), evictions, clean-up. Writes
        that delete something may do so anyway.  Errors: OpError(ENOSPC), nothing was changed; StoreFailed
        """
        raise NotImplementedError

    def seal(self) -> Batch:
        """Freeze the running batch; a new one starts."""
        raise NotImplementedError

    def commit(self, batch: Batch) -> None:
        """Make `batch`, the last one sealed, durable. StoreFailed: the process must end, nothing may be answered."""
        raise NotImplementedError

    def _begin(self) -> None:
        raise NotImplementedError

    def _rows(self, table: str, start: bytes, prefix: bytes, rows_max: int) -> tuple[list[Row], bytes | None]:
        """About `rows_max` rows from `start` on, and the key to go on after if there may be more."""
        raise NotImplementedError

    def _sealed(self, delta: Delta | None) -> Batch:
        self._check_alive()
        self._batches += 1
        batch = Batch(self._batches, self.dirty, self._bytes, delta)
        self.dirty = 0
        self._room.pressed = False
        return batch


class OpenTxnStore(Store):
    """The running batch is the open write transaction. `commit` belongs to the loop's thread, as everything else.

    Writes applied between `seal` and `commit` get durable with them: earlier than promised, which harms nobody.
    """

    def _begin(self) -> None:
        self._txn = self._env.begin(write=not self._readonly)
        self._measure(self._records, self._bytes)
        self._records = self._bytes = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        value: bytes | None = self._txn.get(key, None, self._dbs[table])
        return value

    def apply(self, writes: Writes, *, essential: bool = False) -> None:
        size = self._bytes
        for (_, key), value in writes.items():
            if value is None:
                essential = True
            else:
                size += len(key) + len(value)
        records = self._records + len(writes)
        if records > self._records_checked or size > self._bytes_checked:
            self._make_room(records, size, essential)
        dbs, txn = self._dbs, self._txn
        try:
            put = txn.put
            for (table, key), value in writes.items():
                if value is not None:
                    put(key, value, True, True, False, dbs[table])
                else:
                    txn.delete(key, b"", dbs[table])
        except (lmdb.Error, KeyError, TypeError) as error:  # half a request is in the batch
            self._fail(error)
        self._records = records
        self._bytes = size
        self.dirty += len(writes)

    def last(self, table: str, prefix: bytes = b"") -> Row | None:
        return _last(self._txn, self._dbs[table], prefix)

    def count(self, table: str) -> int:
        return int(self._txn.stat(self._dbs[table])["entries"])

    def _rows(self, table: str, start: bytes, prefix: bytes, rows_max: int) -> tuple[list[Row], bytes | None]:
        rows = _read(self._txn, self._dbs[table], start, prefix, rows_max)
        return rows, rows[-1][0] if len(rows) == rows_max else None

    def seal(self) -> Batch:
        return self._sealed(None)

    def commit(self, batch: Batch) -> None:
        self._check_alive()
        assert batch.number == self._batches, "only the last sealed batch can be committed"
        try:
            self._txn.commit()
            self._begin()
        except (lmdb.Error, OSError) as error:
            self._fail(error)


class StagedStore(Store):
    """The running batch is a dict; a sealed one is frozen until `commit` has put it into LMDB."""

    def __init__(self, directory: str, kind: str, env: lmdb.Environment, lock_fd: int, map_bytes: int) -> None:
        super().__init__(directory, kind, env, lock_fd, map_bytes)
        self._staged = Delta()
        self._frozen: Delta | None = None
        self._committed: Batch | None = None  # by a thread; settled by the loop's

    def _begin(self) -> None:
        self._staged = Delta(self._dbs)
        self._txn = self._env.begin()
        self._measure(0, 0)

    def _refuse(self, why: str) -> None:
        super()._refuse(why)
        self._staged = cast(Delta, _Gone(why))

    def _settle(self) -> Any:
        """The read transaction, renewed if there was a commit. Never runs beside a commit: see `seal`."""
        batch = self._committed
        if batch is not None:
            self._check_alive()  # nothing may begin in a closed environment
            self._committed = None
            self._txn.abort()
            self._txn = self._env.begin()
            self._records -= batch.dirty
            self._bytes -= batch.size
            self._measure(batch.dirty, batch.size)
        return self._txn

    def get(self, table: str, key: bytes) -> bytes | None:
        value = self._staged.tables[table].get(key, MISSING)
        if value is MISSING:
            frozen = self._frozen  # looked at before LMDB: a commit lets go of it only when LMDB has it
            if frozen is not None:
                value = frozen.tables[table].get(key, MISSING)
            if value is MISSING:
                txn = self._txn if self._committed is None else self._settle()
                value = txn.get(key, None, self._dbs[table])
        return cast(bytes | None, value)

    def apply(self, writes: Writes, *, essential: bool = False) -> None:
        if self._committed is not None:
            self._settle()
        size = self._bytes
        for (table, key), value in writes.items():
            if value is None:
                essential = True
            else:
                size += len(key) + len(value)
            if table not in self._dbs:
                raise KeyError(table)
        records = self._records + len(writes)
        if records > self._records_checked or size > self._bytes_checked:
            self._make_room(records, size, essential)
        tables = self._staged.tables
        for (table, key), value in writes.items():
            tables[table][key] = value
        self._records = records
        self._bytes = size
        self.dirty += len(writes)

    def seal(self) -> Batch:
        self._check_alive()
        assert self._frozen is None, "only one batch is frozen at a time"
        self._settle()  # now, so that no read transaction begins beside the commit
        batch = self._sealed(self._staged)
        self._frozen = self._staged
        self._staged = Delta(self._dbs)
        return batch

    def commit(self, batch: Batch) -> None:
        with self._guard:
            self._check_alive()
            assert batch.delta is self._frozen and batch.delta is not None, "not the frozen batch"
            try:
                with self._env.begin(write=True) as txn:
                    for table, values in batch.delta.tables.items():
                        _put_sorted(txn, self._dbs[table], batch.delta.sorted_keys(table), values)
            except (lmdb.Error, OSError) as error:
                self._fail(error)
            self._committed = batch
            self._frozen = None

    def last(self, table: str, prefix: bytes = b"") -> Row | None:
        deltas = self._deltas()
        txn, db = self._settle(), self._dbs[table]
        row = _last(txn, db, prefix)
        while row is not None and any(row[0] in delta.tables[table] for delta in deltas):
            row = _last(txn, db, prefix, below=row[0])
        best = row
        for delta in deltas:
            for key in reversed(delta.range(table, prefix, prefix, None)):
                if best is not None and key <= best[0]:
                    break
                value = overlay(deltas, table, key)
                if value is not None:
                    best = (key, value)
                    break
        return best

    def count(self, table: str) -> int:
        deltas = self._deltas()
        txn, db = self._settle(), self._dbs[table]
        rows = int(txn.stat(db)["entries"])
        for key in dict.fromkeys(key for delta in deltas for key in delta.tables[table]):
            rows += (overlay(deltas, table, key) is not None) - (txn.get(key, None, db) is not None)
        return rows

    def _deltas(self) -> list[Delta]:
        """Newer first. To be taken before LMDB is read, as in `get`."""
        frozen = self._frozen
        return [self._staged] if frozen is None else [self._staged, frozen]

    def _rows(self, table: str, start: bytes, prefix: bytes, rows_max: int) -> tuple[list[Row], bytes | None]:
        deltas = self._deltas()
        rows = _read(self._settle(), self._dbs[table], start, prefix, rows_max)
        more = rows[-1][0] if len(rows) == rows_max else None
        changed = [key for delta in deltas for key in delta.range(table, start, prefix, more)]
        if not changed:
            return rows, more
        merged: dict[bytes, bytes | None] = dict(rows)
        for key in changed:
            merged[key] = overlay(deltas, table, key)
        return [(key, value) for key, value in sorted(merged.items()) if value is not None], more


class _Gone:
    """Stands in for a transaction or a batch that is no more."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        raise StoreFailed(self._why)


def _lock(path: str, shared: bool) -> int:
    """A descriptor that holds the database's lock; OpError(EBUSY) if somebody else does."""
    fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if disk.try_lock(fd, shared=shared):
        return fd
    os.close(fd)
    raise OpError(errno.EBUSY, f"{path} is open in another process")


def _read(txn: Any, db: Any, start: bytes, prefix: bytes, rows_max: int) -> list[Row]:
    """At most `rows_max` rows from `start` on. No cursor outlives the call."""
    rows: list[Row] = []
    with txn.cursor(db) as cursor:
        if cursor.set_range(start):
            for row in cursor.iternext(True, True):
                if not row[0].startswith(prefix):
                    break
                rows.append(row)
                if len(rows) == rows_max:
                    break
    return rows


def _last(txn: Any, db: Any, prefix: bytes, below: bytes | None = None) -> Row | None:
    """The last row whose key begins with `prefix` and is less than `below`."""
    end = beyond(prefix) if below is None else below
    with txn.cursor(db) as cursor:
        found = cursor.prev() if end is not None and cursor.set_range(end) else cursor.last()
        if not found or not cursor.key().startswith(prefix):
            return None
        row: Row = cursor.item()
        return row


def _put_sorted(txn: Any, db: Any, keys: list[bytes], values: dict[bytes, bytes | None]) -> None:
    rows = [(key, value) for key in keys if (value := values[key]) is not None]
    with txn.cursor(db) as cursor:
        cursor.putmulti(rows, dupdata=False, overwrite=True)
    if len(rows) < len(keys):
        for key in keys:
            if values[key] is None:
                txn.delete(key, b"", db)
