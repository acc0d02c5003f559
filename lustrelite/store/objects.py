"""The data of an OST's objects: one plain file each, O/d<id mod 32>/<id>, made at its first write.

An object exists because its record is in the database, not because of its file: an object without a file is empty. The
size is the file's size. Writes, punches and removals change the file at once; the record follows with its batch. So:

- before a batch is committed that names an object, `sync` makes its data (and a new file's name) durable;
- a write or punch that is replayed after a crash does the same again, harmlessly;
- a file is removed only after the batch that destroys its object is durable, else a lost batch would leave a record
  whose data is gone.

A kill does not undo a write here, only a power cut does. The simulator has a stand-in for this class with power cuts.

What the disk refuses is the operation's own error (OpError) if another block can be written durably: one sector is bad, or
the disk is full. Else the disk is broken (StoreFailed): the process must end, and what was accepted waits for a successor.

All methods block and may be called from several threads at once. Descriptors are kept open, the longest unused is
closed first; one that is in use is closed by its last user. The OSTs of a process share half of what it may open.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lustrelite.errors import OpError, StoreFailed
from lustrelite.store import disk
from lustrelite.store.kept_room import KeptRoom
from lustrelite.wire.ost import OBJECT_EOF

SUBDIRECTORIES = 32
OPEN_FILES_MAX = 512
OPEN_FILES_MIN = 8
SYNC_EACH_MAX = 32  # more files than this are cheaper with one syncfs: 0.3 ms each against 30 ms for 3,000
ZERO_BYTES = 1 << 20
DIRECT_BYTES_MIN = 128 << 10  # less goes through the page cache
BLOCK_BYTES = 4096


Buffer = bytes | bytearray | memoryview


class _File:
    """An open file; `users` threads work with it."""

    __slots__ = ("direct", "dropped", "fd", "users")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.direct: int | None = None
        self.users = 0
        self.dropped = False  # not in the cache any more

    def close(self) -> None:
        os.close(self.fd)
        if self.direct is not None and self.direct >= 0:
            os.close(self.direct)


class _Share:
    """How many files each OST of this process keeps open: with two descriptors each, half of those that it may have."""

    def __init__(self) -> None:
        self._osts = 0
        self.files_max = OPEN_FILES_MAX

    def changes(self, by: int) -> None:
        """There are so many OSTs more."""
        self._osts += by
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit != resource.RLIM_INFINITY:
            self.files_max = max(OPEN_FILES_MIN, min(OPEN_FILES_MAX, limit // 4 // max(self._osts, 1)))


class ObjectFiles:
    """The data files under `directory`/O. `durable=False` makes `sync` do nothing (simulator)."""

    _share = _Share()

    def __init__(self, directory: str | Path, *, durable: bool = True) -> None:
        self.durable = durable
        self._top = os.path.join(directory, "O")
        self._files: dict[int, _File] = {}  # longest unused first
        self._new: dict[int, None] = {}  # made since their directory was made durable
        self._lock = threading.Lock()
        self._users = 0  # of all files together
        with self._errors("make the directories of"):
            self._make_directories()
            self._top_fd = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._kept_room = KeptRoom(os.path.join(self._top, "kept"))
        self._share.changes(+1)

    def _make_directories(self) -> None:
        if os.path.isdir(os.path.join(self._top, f"d{SUBDIRECTORIES - 1}")):
            return
        for number in range(SUBDIRECTORIES):
            os.makedirs(os.path.join(self._top, f"d{number}"), exist_ok=True)
        if self.durable:
            disk.sync_directory(self._top)
            disk.sync_directory(os.path.dirname(self._top))

    def _path(self, oid: int) -> str:
        return f"{self._top}/d{oid % SUBDIRECTORIES}/{oid}"

    # ------------------------------------------------------------ open files

    def _take(self, oid: int, create: bool) -> _File | None:
        """A descriptor of the file of `oid`, None if there is no file; `_give` it back."""
        with self._lock:
            file = self._files.pop(oid, None) or self._open(oid, create)
            if file is not None:
                self._files[oid] = file
                file.users += 1
                self._users += 1
                while len(self._files) > self._share.files_max:
                    self._drop(next(iter(self._files)))
        return file

    def _give(self, file: _File) -> None:
        with self._lock:
            file.users -= 1
            self._users -= 1
            if file.dropped and not file.users:
                file.close()

    @property
    def in_use(self) -> bool:
        """Do threads work with files?"""
        return self._users > 0

    @contextmanager
    def _opened(self, oid: int, create: bool) -> Iterator[_File | None]:
        """The same as a context."""
        file = self._take(oid, create)
        try:
            yield file
        finally:
            if file is not None:
                self._give(file)

    def _open(self, oid: int, create: bool) -> _File | None:
        path = self._path(oid)
        try:
            return _File(self._descriptor(path, os.O_RDWR))
        except FileNotFoundError:
            if not create:
                return None
        file = _File(self._descriptor(path, os.O_RDWR | os.O_CREAT))
        self._new[oid] = None
        return file

    def _descriptor(self, path: str, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                raise
        for oid in list(self._files):  # clients have so many
            self._drop(oid)
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def _drop(self, oid: int) -> None:
        file = self._files.pop(oid, None)
        if file is not None:
            file.dropped = True
            if not file.users:
                file.close()

    # ------------------------------------------------------------ data

    def write(self, oid: int, offset: int, data: Buffer, *, promised: bool = False) -> None:
        """Write all of `data` at `offset`; if room was `promised` for it, into what is kept of it.

        Errors: ENOSPC, EDQUOT, EFBIG, EIO; part of it may be written then
        """
        view = memoryview(data).cast("B")
        while True:
            try:
                file = self._take(oid, create=True)
                assert file is not None
                try:
                    self._move(os.pwritev, file, oid, offset, view)
                finally:
                    self._give(file)
            except OSError as error:
                if error.errno not in disk.NO_ROOM or not promised or not self._lend(len(view)):
                    raise self._failed("write", oid, error) from error
            else:
                return

    def _lend(self, length: int) -> bool:
        with self._errors("free room for"):
            return self._kept_room.lend(length)

    def keep(self, size: int, *, at_least: bool = False) -> int:
        """See KeptRoom.keep: for what is promised."""
        try:
            return self._kept_room.keep(size, at_least=at_least)
        except OSError as error:
            self._suspect(error)
            return min(size, self._kept_room.size)

    def keep_nothing(self) -> None:
        """Nothing is promised any more."""
        self._kept_room.free()

    def read_into(self, oid: int, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` from `offset` and return how many bytes there were: fewer only at the end of the object."""
        try:
            file = self._take(oid, create=False)
            if file is None:
                return 0
            try:
                return self._move(os.preadv, file, oid, offset, memoryview(buffer).cast("B"))
            finally:
                self._give(file)
        except OSError as error:
            raise self._failed("read", oid, error) from error

    def _move(self, call: Any, file: _File, oid: int, offset: int, view: memoryview) -> int:
        """preadv or pwritev as far as it goes, and how far that is.

        Much data goes past the page cache, as far as it lies in whole blocks of file and memory (EINVAL says that it
        does not, or that the file system cannot): then a commit finds nothing to write but the file's own size. The
        rest goes through the cache; the kernel keeps the two coherent.
        """
        done = 0
        direct = self._direct(file, oid) if len(view) >= DIRECT_BYTES_MIN and not offset % BLOCK_BYTES else -1
        while done < len(view):
            fd, part = file.fd, view[done:]
            whole = len(part) - len(part) % BLOCK_BYTES
            if direct >= 0 and whole:
                fd, part = direct, part[:whole]
            try:
                count = call(fd, (part,), offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or fd == file.fd:
                    raise
                direct = -1
                continue
            if not count:
                break
            done += count
            if count % BLOCK_BYTES:
                direct = -1
        return done

    def _direct(self, file: _File, oid: int) -> int:
        """The descriptor for direct I/O, -1 if there is none."""
        if file.direct is None:
            with self._lock:
                if file.direct is None:
                    try:
                        file.direct = os.open(self._path(oid), os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
                    except OSError:
                        file.direct = -1
        return file.direct

    def punch(self, oid: int, start: int, end: int) -> None:
        """Free [start, end): it reads as zeros. An `end` of OBJECT_EOF truncates to `start`, or extends to it."""
        assert 0 <= start <= end, (start, end)
        whole = end >= OBJECT_EOF
        with self._errors("punch", oid), self._opened(oid, create=whole and start > 0) as file:
            if file is None:
                return
            fd = file.fd
            if whole:
                os.ftruncate(fd, start)
                return
            end = min(end, os.fstat(fd).st_size)
            if start < end:
                self._punch_hole(fd, start, end)

    @staticmethod
    def _punch_hole(fd: int, start: int, end: int) -> None:
        try:
            disk.fallocate(fd, disk.FALLOC_PUNCH_HOLE | disk.FALLOC_KEEP_SIZE, start, end - start)
            return
        except OSError as error:
            if error.errno not in disk.NO_FALLOCATE:
                raise
        zeros = bytes(min(ZERO_BYTES, end - start))
        while start < end:
            start += os.pwrite(fd, memoryview(zeros)[: end - start], start)

    def allocate(self, oid: int, start: int, end: int, mode: int) -> None:
        """Find room for [start, end), and grow to `end` unless FALLOC_KEEP_SIZE; FALLOC_ZERO_RANGE: it reads as zeros.

        Errors: ENOSPC, EFBIG, EOPNOTSUPP: the file system cannot.
        """
        assert 0 <= start < end and not mode & ~(disk.FALLOC_KEEP_SIZE | disk.FALLOC_ZERO_RANGE), (start, end, mode)
        with self._errors("allocate", oid), self._opened(oid, create=True) as file:
            assert file is not None
            try:
                disk.fallocate(file.fd, mode, start, end - start)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP or not mode & disk.FALLOC_ZERO_RANGE:
                    raise
                self._punch_hole(file.fd, start, end)
                disk.fallocate(file.fd, mode & ~disk.FALLOC_ZERO_RANGE, start, end - start)

    def seek(self, oid: int, offset: int, whence: int) -> int:
        """Where from `offset` on is the next data (os.SEEK_DATA), or hole (os.SEEK_HOLE)? -1: there is no more data."""
        with self._errors("seek in", oid), self._opened(oid, create=False) as file:
            try:
                if file is not None:
                    return os.lseek(file.fd, offset, whence)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
            return -1 if whence == os.SEEK_DATA else offset

    def remove(self, oid: int) -> bool:
        """Remove the data of `oid`; False if there was none, which is no error."""
        with self._errors("remove", oid), self._lock:
            self._drop(oid)
            self._new.pop(oid, None)
            try:
                os.unlink(self._path(oid))
            except FileNotFoundError:
                return False
            return True

    # ------------------------------------------------------------ attributes

    def stat(self, oid: int) -> tuple[int, int]:
        """(size in bytes, blocks of 512 bytes); (0, 0) if nothing was ever written."""
        try:
            with self._lock:
                file = self._files.get(oid)
                found = os.stat(self._path(oid)) if file is None else os.fstat(file.fd)
        except FileNotFoundError:
            return 0, 0
        except OSError as error:
            raise self._failed("stat", oid, error) from error
        return found.st_size, found.st_blocks

    def size(self, oid: int) -> int:
        """Size in bytes."""
        return self.stat(oid)[0]

    def blocks(self, oid: int) -> int:
        """Blocks of 512 bytes that the data takes."""
        return self.stat(oid)[1]

    def statfs(self) -> disk.Space:
        """(total, free, available, files_total, files_free) of the disk; what is kept here is free, what is spare not available."""
        with self._errors("statfs"):
            space, kept = disk.space(self._top), self._kept_room
            return space._replace(free=space.free + kept.size, available=space.available + kept.size - kept.spare)

    def ids(self) -> Iterator[int]:
        """Every object that has a file, directory by directory, ascending in each."""
        for number in range(SUBDIRECTORIES):
            with self._errors("list"):
                names = os.listdir(os.path.join(self._top, f"d{number}"))
            yield from sorted(int(name) for name in names if name.isdecimal())

    # ------------------------------------------------------------ errors

    @contextmanager
    def _errors(self, act: str, oid: int | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(act, oid, error) from error

    def _failed(self, act: str, oid: int | None, error: OSError) -> OpError:
        """What the disk's error is for who asked.  StoreFailed: it is not the trouble of one place on the disk"""
        self._suspect(error)
        return OpError(error.errno or errno.EIO, f"cannot {act} {'objects' if oid is None else f'object {oid}'}")

    def _suspect(self, why: OSError) -> None:
        if why.errno not in disk.BROKEN:
            return
        path = os.path.join(self._top, "probe")
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(bytes(BLOCK_BYTES))
                os.fsync(file)
            os.unlink(path)
        except FileNotFoundError:
            pass  # two threads had the same thought
        except OSError as error:
            if error.errno not in disk.NO_ROOM:
                raise StoreFailed(f"the disk of {self._top} is broken: {why}") from error

    # ------------------------------------------------------------ durability

    def sync(self, oids: Iterable[int] | None) -> None:
        """Make everything written to `oids` before the call durable, with the names of new files.

        None: everything that is in the files, whoever wrote it. Objects without a file are passed over. StoreFailed if
        the disk lost something: what a failed fsync left behind is unknown, so the batch that counts on it must not be
        committed.
        """
        if not self.durable:
            return
        wanted = None if oids is None else list(dict.fromkeys(oids))
        try:
            if wanted is None or len(wanted) > SYNC_EACH_MAX:
                with self._lock:
                    new = list(self._new)
                disk.syncfs(self._top_fd)
            else:
                new = self._sync_each(wanted)
        except OSError as error:
            raise StoreFailed(f"the data under {self._top} could not be made durable: {error}") from error
        with self._lock:
            for oid in new:
                self._new.pop(oid, None)

    def _sync_each(self, oids: list[int]) -> list[int]:
        with self._lock:
            new = [oid for oid in oids if oid in self._new]
        for oid in oids:
            with self._opened(oid, create=False) as file:
                if file is not None:
                    os.fdatasync(file.fd)
        for number in dict.fromkeys(oid % SUBDIRECTORIES for oid in new):
            disk.sync_directory(os.path.join(self._top, f"d{number}"))
        return new

    def close(self) -> None:
        """Close the files. Nobody may be using them."""
        with self._lock:
            for oid in list(self._files):
                self._drop(oid)
            if self._top_fd >= 0:
                os.close(self._top_fd)
                self._top_fd = -1
                self._share.changes(-1)
