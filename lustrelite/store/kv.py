"""The database of a target: one running batch of changes, committed later and as a whole.

A server answers before it commits. All requests since the last commit share one batch; `kill -9` loses the running
batch and nothing else, which is the bargain that replay repairs. One request's writes come gathered (`apply`), so a
request that fails leaves nothing behind.

The running batch *is* LMDB's open write transaction, and it is a dict besides. A commit takes three steps:

- `seal` (loop): the transaction takes no more, its dict is frozen. From now on changes go into the next dict only.
  The caller makes the data files that the batch counts on durable, if there are any.
- `commit` (any thread): LMDB makes the transaction durable. Meanwhile nobody may look into it, so a reader sees the
  running dict over the frozen one over a snapshot of the last commit.
- `reopen` (loop): the next transaction begins, the frozen dict goes, and what was applied meanwhile is put in a chunk
  at a time, for the loop has other things to do. The running dict says what is true of a key until its turn comes.

A small batch that somebody waits for need not be committed to be durable: `log` (small_log.py) writes what was applied
since, and the batch goes on.

    txn:      open ------- seal  . . . commit . . . reopen -- chunk -- chunk -- open
    readers:  running, txn | running, frozen, snapshot | running, new txn     | running, txn

What must never happen is that state is served which a failed commit took back: after any failure of LMDB every call
raises StoreFailed and the process must die. That a full disk is no such failure is room.py's business.

LMDB runs without its own locks (lock=False): a commit may then run in another thread, and no mutex in a shared file is
left behind by a killed process. In return we keep the rules ourselves: a file lock admits one writing process (or any
number of offline readers), and no read transaction lives across two commits: the snapshot lives from `seal` to
`reopen`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self, cast

import lmdb

from lustrelite.errors import FormatRefused, OpError, StoreFailed
from lustrelite.store import disk, pages, schema
from lustrelite.store.delta import MISSING, Delta, beyond, overlay
from lustrelite.store.room import DELETION, ESSENTIAL, LARGE_BYTES, ORDINARY, PAGE, Load, Room
from lustrelite.store.small_log import Change, Data, SmallLog

if TYPE_CHECKING:
    from lustrelite.store.objects import ObjectFiles

Writes = Mapping[tuple[str, bytes], bytes | None]
Row = tuple[bytes, bytes]

MAP_BYTES = 1 << 40  # sparse: address space, not disk
TABLES_MAX = 32
SCAN_ROWS_MIN, SCAN_ROWS_MAX = 64, 1024
REOPEN_RECORDS = 500  # put in one turn of the loop: half a millisecond
LOGGED_APPLIES_MAX = 64  # requests that one append to the log may have
DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.PanicError, lmdb.BadTxnError)
WAITING_RECORDS_MAX = 250_000  # applied while a commit is under way; with more the disk is too slow for us


class Batch(NamedTuple):
    """A sealed batch: what the next commit makes durable."""

    number: int
    dirty: int  # records
    size: int  # bytes of keys and values


class Store:
    """One LMDB environment in `directory`/lmdb, of a target of `kind`. `open` makes one; see the module."""

    def __init__(self, directory: str, kind: str, env: lmdb.Environment, lock_fd: int, map_bytes: int) -> None:
        self.directory = directory
        self.kind = kind
        self.dirty = 0  # records that are not durable, nor sealed
        self.running = 0  # records applied since the last seal
        self.logged_data: list[Data] = []  # of objects, found in the log when the store was opened: see `put_back`
        self._log = SmallLog(os.path.join(directory, "lmdb"))
        self._fresh: list[Writes] | None = []  # applied and not durable; None: too much for the log
        self._env = env
        self._lock_fd = lock_fd
        self._dbs: dict[str, Any] = {}
        # lmdb.Transaction; what it returns is bytes, as buffers=False
        self._txn: Any = None  # to read: the open transaction, or the snapshot while a batch is sealed
        self._open: Any = None  # to write; None while a batch is sealed
        self._sealed: Any = None  # from `seal` until it is durable
        self._running = Delta()  # all changes since the last seal
        self._frozen: Delta | None = None  # those of the sealed batch, until `reopen`
        self._over: tuple[Delta, ...] = ()  # which of the two a reader lays over `_txn`, newer first
        self._behind: dict[tuple[str, bytes], bytes | None] = {}  # changes in `_running` that no transaction has yet
        self._guard = threading.Lock()  # a commit in a thread against abort
        self._failed = ""
        self._lost: list[Any] = []
        self._closed = False
        self._readonly = False
        self._batches = 0
        self._room = Room(directory, map_bytes)
        self._bytes = 0  # of keys and values since the last seal
        self._large = 0  # bytes of the pages of values that need several, side by side
        self._dirty_checked = -1  # there is room up to here
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
        """The store of a target of `kind` ("MDT", "OST", "MGS").

        `create` makes a new one. `durable=False` leaves out every fsync (simulator: a kill loses no more than before,
        a power cut would). `readonly` is for an offline reader: nobody else may write meanwhile, and what a crash left
        in the log must have been taken up by one who may (EROFS). Who writes an OST has to `put_back` first.
        Errors: FormatRefused (no target, another kind, another format, a file cut short), StoreFailed it is damaged,
        OpError(EBUSY) somebody has it open, OpError of the disk.
        """
        tables = schema.tables_of(kind)
        path = os.path.join(directory, "lmdb")
        if not create:
            pages.check_there(directory)
        try:
            if create:
                os.makedirs(path, exist_ok=True)
                disk.overwrite_in_place(path)
            lock_fd = _lock(path, readonly)
        except OSError as error:
            raise OpError(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
        try:
            if not create:
                pages.check_end(directory)
            map_bytes = disk.mappable(pages.data_path(directory), map_bytes)
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
        except FormatRefused:
            os.close(lock_fd)
            raise
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
            store._running = Delta(store._dbs)
            store._log.open(durable=durable, readonly=readonly)
            store._begin()
            store._take_up()
            opened = True
        except lmdb.Error as error:
            raise pages.damaged(directory, error) from None
        except OSError as error:
            raise OpError(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
        finally:
            if not opened:
                store._shut()
        return store

    def _open_for_writing(self, tables: tuple[str, ...], create: bool, durable: bool, path: str) -> None:
        if not create:
            self._check_format()
        elif (found := self._format()) is not None:
            raise FormatRefused(f"{self.directory} already holds a LustreLite {found[1]} (format {found[0]})")
        self._open_tables(tables, create=create)
        if create:
            with self._env.begin(write=True) as txn:  # the last act of formatting
                value = schema.pack_meta((schema.FORMAT_VERSION, self.kind))
                txn.put(schema.FORMAT_KEY, value, db=self._dbs[schema.META])
            if durable:
                disk.sync_directory(path)
                disk.sync_directory(self.directory)
        if durable:
            self._room.allocate_for(pages.data_path(self.directory))

    def _take_up(self) -> None:
        """Take into the first batch what the log has beyond the last commit."""
        for entry in self._log.entries(self._env.info()["last_txnid"]):
            self.apply({(table, key): value for table, key, value in entry.changes}, kind=ESSENTIAL)
            self.logged_data += entry.data
            self._fresh = None

    def _open_tables(self, tables: tuple[str, ...], *, create: bool) -> None:
        try:
            for name in tables:
                if name not in self._dbs:
                    self._dbs[name] = self._env.open_db(name.encode(), create=create)
        except lmdb.NotFoundError as error:
            raise FormatRefused(f"{self.directory} is no complete LustreLite {self.kind} ({error}): restore it from a backup") from None

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
            raise pages.no_format(self.directory)
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
        """Commit everything and close; no commit is under way, the data of an OST's objects is durable by now."""
        if not self._readonly and not self.logged_data:
            self.flush()
        self.abort()

    def _shut(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._refuse(self._failed or f"the store of {self.directory} is closed")
        self._env.close()  # aborts what is open
        self._log.close()
        self._room.close()
        os.close(self._lock_fd)

    def _fail(self, error: BaseException) -> NoReturn:
        failed = f"the store of {self.directory} failed: {type(error).__name__}: {error}"
        self._failed = str(pages.damaged(self.directory, error)) if isinstance(error, DAMAGE) else failed
        self._refuse(self._failed)
        raise StoreFailed(self._failed) from error

    def _refuse(self, why: str) -> None:
        """Let every further call raise StoreFailed, at no cost to those before."""
        self._lost.append(self._txn)  # not aborted here: the loop may be reading from it while a commit fails
        self._txn = self._running = cast(Any, _Gone(why))
        self._over = ()
        self._dirty_checked = -1  # sends `apply` to `_make_room`, which says no

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

    def _make_room(self, records: int, size: int, large: int, kind: int) -> None:
        """Let the batch grow to `records`, `size` and `large`, or raise OpError(ENOSPC, EAGAIN)."""
        self._check_alive()
        if self._readonly:
            raise OpError(errno.EROFS, f"{self.directory} is open for reading only")
        if records > WAITING_RECORDS_MAX and self._frozen is not None and kind == ORDINARY:
            raise OpError(errno.EAGAIN, f"the disk of {self.directory} is slow")
        more = Load(records - self.running, size - self._bytes, large - self._large)
        try:
            checked = self._room.make(Load(records, size, large), more=more, kind=kind)
        except OSError as error:
            self._fail(error)
        self._dirty_checked, self._bytes_checked = checked

    # ------------------------------------------------------------ reading

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of `key`, committed or not."""
        for delta in self._over:
            value = delta.tables[table].get(key, MISSING)
            if value is not MISSING:
                return cast(bytes | None, value)
        try:
            found: bytes | None = self._txn.get(key, None, self._dbs[table])
        except lmdb.Error as error:
            self._fail(error)
        return found

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

    def _rows(self, table: str, start: bytes, prefix: bytes, rows_max: int) -> tuple[list[Row], bytes | None]:
        """About `rows_max` rows from `start` on, and the key to go on after if there may be more."""
        try:
            rows = _read(self._txn, self._dbs[table], start, prefix, rows_max)
        except lmdb.Error as error:
            self._fail(error)
        deltas = self._over
        if not deltas:
            return rows, rows[-1][0] if len(rows) == rows_max else None
        parts = [delta.range(table, start, prefix, rows_max) for delta in deltas]
        merged: dict[bytes, bytes | None] = dict(rows)
        parts.append(list(merged))
        more = min((keys[-1] for keys in parts if len(keys) == rows_max), default=None)
        for key in chain(*parts[:-1]):
            merged[key] = overlay(deltas, table, key)
        seen = sorted(merged.items())
        return [(key, value) for key, value in seen if value is not None and (more is None or key <= more)], more

    def last(self, table: str, prefix: bytes = b"") -> Row | None:
        """The last row of `table` whose key begins with `prefix`."""
        deltas = self._over
        db = self._dbs[table]
        try:
            best = _last(self._txn, db, prefix)
            while best is not None and any(best[0] in delta.tables[table] for delta in deltas):
                best = _last(self._txn, db, prefix, below=best[0])
        except lmdb.Error as error:
            self._fail(error)
        for delta in deltas:
            for key in reversed(delta.range(table, prefix, prefix)):
                if best is not None and key <= best[0]:
                    break
                value = overlay(deltas, table, key)
                if value is not None:
                    best = (key, value)
                    break
        return best

    def count(self, table: str) -> int:
        """Number of rows of `table`."""
        deltas = self._over
        db = self._dbs[table]
        try:
            rows = int(self._txn.stat(db)["entries"])
            for key in dict.fromkeys(key for delta in deltas for key in delta.tables[table]):
                rows += (overlay(deltas, table, key) is not None) - (self._txn.get(key, None, db) is not None)
        except lmdb.Error as error:
            self._fail(error)
        return rows

    # ------------------------------------------------------------ changing

    def apply(self, writes: Writes, *, kind: int = ORDINARY, reckoned: bool = False) -> None:
        """Put one request's writes into the running batch, all or nothing; None deletes.

        `kind` says how much of the space that is kept back they may use (store/room.py): ESSENTIAL are replays (they were
        acknowledged), evictions, clean-up, OWED what must come through later if not now. Writes that delete something are
        a DELETION anyway. `reckoned`: with every batch is reckoned that these come, few and small.
        Errors: OpError(ENOSPC), OpError(EAGAIN) there will be room after a commit, or OWED; nothing was changed. StoreFailed
        """
        size, large = self._bytes, self._large
        for (_, key), value in writes.items():
            if value is None:
                kind = max(kind, DELETION)
            else:
                size += len(key) + len(value)
                if len(value) > LARGE_BYTES:
                    large += (len(value) + 15) // PAGE * PAGE + PAGE
        records = self.running + len(writes)
        if reckoned:
            self._check_alive()
        elif records > self._dirty_checked or size > self._bytes_checked or large > self._large:
            self._make_room(records, size, large, kind)
        behind = self._behind
        try:
            if self._open is not None:
                self._put(writes)
                if behind:
                    for change in writes:
                        behind.pop(change, None)
            else:
                running = self._running.tables
                for (table, key), value in writes.items():
                    running[table][key] = value
                behind.update(writes)
        except (lmdb.Error, KeyError, TypeError) as error:  # half a request is in the batch
            self._fail(error)
        self.running = records
        self.dirty += len(writes)
        self._bytes, self._large = size, large
        if self._fresh is not None:
            self._fresh.append(writes)
            if len(self._fresh) > LOGGED_APPLIES_MAX:
                self._fresh = None

    def _put(self, writes: Writes) -> None:
        running, txn, dbs = self._running.tables, self._open, self._dbs
        put = txn.put
        for (table, key), value in writes.items():
            running[table][key] = value
            if value is not None:
                put(key, value, True, True, False, dbs[table])
            else:
                txn.delete(key, b"", dbs[table])

    # ------------------------------------------------------------ committing

    def _begin(self) -> None:
        self._txn = self._env.begin(write=not self._readonly)
        if not self._readonly:
            self._open = self._txn
            self._log.begin(self._env.info()["last_txnid"])
        self._room.measure(self._env, self._txn, self._dbs.values())
        self._dirty_checked = -1

    def seal(self) -> Batch:
        """Freeze the running batch; a new one starts."""
        self._check_alive()
        assert self._frozen is None, "only one batch is sealed at a time"
        if self.logged_data:
            raise StoreFailed(f"data that was in the log of {self.directory} is not in its files")
        self._catch_up(len(self._behind))
        snapshot = self._env.begin()  # of the last commit
        self._sealed, self._open, self._txn = self._open, None, snapshot
        self._frozen, self._running = self._running, Delta(self._dbs)
        self._over = self._running, self._frozen
        self._batches += 1
        batch = Batch(self._batches, self.running, self._bytes)
        self._room.set_aside(Load(self.running, self._bytes, self._large))
        self.dirty = self.running = self._bytes = self._large = 0
        self._fresh = []
        self._dirty_checked = -1
        return batch

    def commit(self, batch: Batch) -> None:
        """Make `batch`, the one that is sealed, durable; in any thread, and nothing else is. `reopen` must follow.

        StoreFailed: the process must end, nothing may be answered.
        """
        with self._guard:
            self._check_alive()
            assert batch.number == self._batches and self._sealed is not None, "not the sealed batch"
            try:
                self._sealed.commit()
            except (lmdb.Error, OSError) as error:
                self._fail(error)
            self._sealed = None

    def reopen(self) -> bool:
        """Go on after `commit`: put a chunk of what was applied meanwhile into the next transaction. Call it again
        (other calls may come in between) until it says True: all is in."""
        self._check_alive()
        if self._frozen is not None:
            assert self._sealed is None, "the batch is not committed"
            try:
                self._txn.abort()
                self._begin()
            except (lmdb.Error, OSError) as error:
                self._fail(error)
            self._over = (self._running,)
            self._frozen = None
        self._catch_up(min(REOPEN_RECORDS, len(self._behind)))
        if not self._behind:
            self._over = ()
        return not self._over

    def _catch_up(self, records: int) -> None:
        popitem = self._behind.popitem
        try:
            self._put(dict(popitem() for _ in range(records)))
        except lmdb.Error as error:
            self._fail(error)

    def log(self, data: Sequence[Data] = ()) -> bool:
        """Make what was applied, and the object data that it counts on, durable in the log. False: that takes a commit.

        StoreFailed, as from `commit`.
        """
        self._check_alive()
        if self._fresh is None or self._frozen is not None:
            return False
        changes: list[Change] = [
            (table, key, value) for writes in self._fresh for (table, key), value in writes.items()
        ]  # fmt: skip
        try:
            if not self._log.append(changes, data):
                return False
        except OSError as error:
            self._fail(error)
        self._fresh = []
        self.dirty = 0
        return True

    def unlog(self, oid: int) -> bool:
        """What the log has of the data of `oid` is durable in its file by now: it must not be put back.

        False: no room.
        """
        self._check_alive()
        try:
            return self._log.append((), ((oid, 0, None),))
        except OSError as error:
            self._fail(error)

    def put_back(self, files: ObjectFiles) -> None:
        """Write into `files`, durably, the object data that was found in the log. Before the first commit."""
        parts: dict[int, list[tuple[int, bytes]]] = {}
        for oid, offset, content in self.logged_data:
            if content is None:
                parts.pop(oid, None)
            elif self.get(schema.OBJECTS, schema.object_key(oid)) is not None:
                parts.setdefault(oid, []).append((offset, content))
        for oid, contents in parts.items():
            for offset, content in contents:
                files.write(oid, offset, content, promised=True)
        files.sync(parts)
        self.logged_data = []

    def flush(self) -> None:
        """Make everything durable on the spot."""
        self.commit(self.seal())
        self.reopen()


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
    """At most `rows_max` rows from `start` on. No cursor outlives the call.  lmdb.CorruptedError: keys out of order"""
    rows: list[Row] = []
    least = start
    with txn.cursor(db) as cursor:
        if cursor.set_range(start):
            for row in cursor.iternext(True, True):
                key = row[0]
                if key < least or (key == least and rows):
                    raise lmdb.CorruptedError("keys out of order")
                if not key.startswith(prefix):
                    break
                least = key
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
