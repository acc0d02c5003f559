"""Data files: what was written is read, what was punched is zeros, and the disk's errors are answers."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lustrelite.errors import OpError, StoreFailed
from lustrelite.rpc.buffers import BufferPool
from lustrelite.store import disk, objects
from lustrelite.store.objects import ObjectFiles
from lustrelite.tunables import limits
from lustrelite.wire.ost import OBJECT_EOF


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ObjectFiles]:
    found = ObjectFiles(tmp_path)
    yield found
    found.close()


def read(files: ObjectFiles, oid: int, offset: int = 0, length: int = 1 << 20) -> bytes:
    buffer = bytearray(length)
    return bytes(buffer[: files.read_into(oid, offset, buffer)])


def test_an_object_that_was_never_written_is_empty_and_has_no_file(files: ObjectFiles) -> None:
    assert read(files, 5) == b"" and files.stat(5) == (0, 0)
    files.punch(5, 0, OBJECT_EOF)
    files.punch(5, 10, 20)
    files.sync([5])
    assert not files.remove(5)
    assert list(files.ids()) == []


def test_written_bytes_are_read_with_a_hole_before_them(files: ObjectFiles) -> None:
    files.write(7, 100, b"abc")
    files.write(7, 1 << 20, memoryview(b"xyz"))
    assert files.size(7) == (1 << 20) + 3
    assert read(files, 7, 98, 7) == b"\0\0abc\0\0"
    assert read(files, 7, 1 << 20) == b"xyz"
    assert read(files, 7, 2 << 20) == b""
    assert 0 < files.blocks(7) * 512 < 1 << 20


def test_a_file_is_there_after_a_restart(tmp_path: Path) -> None:
    files = ObjectFiles(tmp_path)
    for oid in (1, 33, 2):
        files.write(oid, 0, b"%d" % oid)
    files.sync([1, 33, 2])
    files.close()
    again = ObjectFiles(tmp_path)
    assert list(again.ids()) == [1, 33, 2]  # directory by directory
    assert read(again, 33) == b"33"
    assert again.size(33) == 2
    again.close()


class Model:
    """What a file is: bytes."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, offset: int, data: bytes) -> None:
        if data:
            self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
            self.data[offset : offset + len(data)] = data

    def punch(self, start: int, end: int) -> None:
        if end == OBJECT_EOF:
            del self.data[start:]
            self.data.extend(bytes(start - len(self.data)))
        else:
            end = min(end, len(self.data))
            if start < end:
                self.data[start:end] = bytes(end - start)


    def allocate(self, start: int, end: int, mode: int) -> None:
        if mode & disk.FALLOC_ZERO_RANGE:
            self.punch(start, end)
        if not mode & disk.FALLOC_KEEP_SIZE:
            self.data.extend(bytes(max(0, end - len(self.data))))


offsets = st.integers(0, 20000)
steps = st.one_of(
    st.tuples(st.just("write"), offsets, st.binary(max_size=6000)),
    st.tuples(st.just("punch"), offsets, st.one_of(offsets, st.just(OBJECT_EOF))),
    st.tuples(st.just("allocate"), offsets, st.tuples(offsets, st.sampled_from((0, 0x1, 0x10, 0x11)))),
    st.tuples(st.just("sync"), offsets, st.none()),
)


@pytest.mark.parametrize("holes", [True, False])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(steps, max_size=12))
def test_files_behave_as_bytes(
    tmp_path_factory: pytest.TempPathFactory, holes: bool, some: list[tuple[str, int, Any]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not holes:
            patch.setattr(disk, "fallocate", refuse(errno.EOPNOTSUPP))
            patch.setattr(objects, "ZERO_BYTES", 1000)
        files, model = ObjectFiles(tmp_path_factory.mktemp("o"), durable=False), Model()
        for act, a, b in some:
            if act == "write":
                files.write(3, a, b)
                model.write(a, b)
            elif act == "punch":
                start, end = (a, b) if a <= b else (b, a)
                files.punch(3, start, end)
                model.punch(start, end)
            elif act == "allocate" and holes:
                files.allocate(3, a, a + b[0] + 1, b[1])
                model.allocate(a, a + b[0] + 1, b[1])
            assert files.size(3) == len(model.data)
        assert read(files, 3) == bytes(model.data)
        files.close()


def refuse(number: int) -> Any:
    def act(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return act


def test_a_write_goes_on_where_the_kernel_stopped(files: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    files.write(1, 3, b"0123456789" * 5)
    assert read(files, 1) == b"\0\0\0" + b"0123456789" * 5


def test_a_punch_frees_blocks_and_keeps_the_size(files: ObjectFiles) -> None:
    files.write(1, 0, os.urandom(1 << 20))
    files.sync([1])
    before = files.blocks(1)
    files.punch(1, 4096, (1 << 20) - 4096)
    files.sync([1])
    assert files.size(1) == 1 << 20
    assert files.blocks(1) < before / 4


def test_room_is_found_and_zeroed_where_the_disk_can(files: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.allocate(1, 0, 1 << 20, disk.FALLOC_KEEP_SIZE)
    assert files.size(1) == 0 and files.blocks(1) * 512 >= 1 << 20
    files.write(1, 0, b"x" * 100)
    really = disk.fallocate

    def no_zero_range(fd: int, mode: int, offset: int, length: int) -> None:
        if mode & disk.FALLOC_ZERO_RANGE:
            raise OSError(errno.EOPNOTSUPP, "as on tmpfs")
        really(fd, mode, offset, length)

    monkeypatch.setattr(disk, "fallocate", no_zero_range)
    files.allocate(1, 10, 200, disk.FALLOC_ZERO_RANGE)
    assert read(files, 1) == b"x" * 10 + bytes(190)
    monkeypatch.setattr(disk, "fallocate", refuse(errno.EOPNOTSUPP))
    for mode in (0, disk.FALLOC_ZERO_RANGE):
        with pytest.raises(OpError) as caught:
            files.allocate(2, 0, 10, mode)
        assert caught.value.errno == errno.EOPNOTSUPP


def test_data_and_holes_of_a_file_of_16_tib(files: ObjectFiles) -> None:
    end = limits.object_bytes_max
    files.write(1, end - 5, b"12345")
    assert files.size(1) == end and files.blocks(1) <= 64
    assert files.seek(1, 0, os.SEEK_HOLE) == 0
    assert end - 4096 <= files.seek(1, 0, os.SEEK_DATA) <= end - 5
    assert files.seek(1, end - 5, os.SEEK_HOLE) == files.seek(1, end, os.SEEK_HOLE) == end
    assert files.seek(1, end, os.SEEK_DATA) == files.seek(7, 0, os.SEEK_DATA) == -1
    assert files.seek(7, 3, os.SEEK_HOLE) == 3
    with pytest.raises(OpError) as caught:
        files.seek(1, 0, 99)
    assert caught.value.errno == errno.EINVAL


def test_removed_data_is_gone_and_removing_again_is_no_error(files: ObjectFiles) -> None:
    files.write(9, 0, b"x")
    assert files.remove(9)
    assert not files.remove(9)
    assert read(files, 9) == b"" and files.size(9) == 0


def test_the_disks_errors_are_answers(files: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (errno.ENOSPC, errno.EIO):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwritev", refuse(number))
            with pytest.raises(OpError) as caught:
                files.write(1, 0, b"x")
            assert caught.value.errno == number
    files.write(1, 0, b"x")
    monkeypatch.setattr(os, "preadv", refuse(errno.EIO))
    with pytest.raises(OpError):
        read(files, 1)
    assert files.statfs().free and not os.path.exists(os.path.join(files._top, "probe"))


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_a_disk_that_takes_nothing_elsewhere_either_is_broken(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    files.write(1, 0, b"x")
    acts: list[tuple[Any, str, Callable[[], Any]]] = [
        (os, "pwritev", lambda: files.write(1, 0, b"y")), (os, "preadv", lambda: read(files, 1)), (os, "fstat", lambda: files.stat(1)),
        (os, "ftruncate", lambda: files.punch(1, 5, OBJECT_EOF)), (disk, "fallocate", lambda: files.allocate(1, 0, 9, 0)),
        (os, "lseek", lambda: files.seek(1, 0, os.SEEK_HOLE)), (disk, "fallocate", lambda: files.keep(1 << 20)),
        (os, "unlink", lambda: files.remove(1)), (disk, "space", files.statfs), (os, "listdir", lambda: list(files.ids())),
    ]  # fmt: skip
    for module, name, act in acts:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse(number))
            patch.setattr(os, "fsync", refuse(errno.EIO))
            with pytest.raises(StoreFailed, match="is broken"):
                act()


@pytest.mark.parametrize("count", [1, objects.SYNC_EACH_MAX + 1])
def test_a_failed_sync_fails_the_store(files: ObjectFiles, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for oid in range(count):
        files.write(oid, 0, b"x")
    monkeypatch.setattr(os, "fdatasync", refuse(errno.EIO))
    monkeypatch.setattr(disk, "syncfs", refuse(errno.EIO))
    with pytest.raises(StoreFailed):
        files.sync(range(count))


@pytest.mark.parametrize("count", [1, objects.SYNC_EACH_MAX + 1])
def test_sync_makes_data_and_new_names_durable_once(
    files: ObjectFiles, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("data"))
    monkeypatch.setattr(disk, "sync_directory", lambda path: calls.append(os.path.basename(path)))
    monkeypatch.setattr(disk, "syncfs", lambda fd: calls.append("all"))
    for oid in range(count):
        files.write(oid, 0, b"x")
    files.sync(range(count))
    assert calls == (["data", "d0"] if count == 1 else ["all"])
    calls.clear()
    files.sync([0])
    assert calls == ["data"]  # the name is durable already


def test_few_descriptors_serve_many_objects_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectFiles._share, "files_max", 4)
    monkeypatch.setattr(ObjectFiles._share, "changes", lambda by: None)
    files = ObjectFiles(tmp_path, durable=False)
    before = len(os.listdir("/proc/self/fd"))
    failures: list[str] = []

    def work(seed: int) -> None:
        for turn in range(300):
            oid = (seed * 7 + turn * 13) % 40
            files.write(oid, seed * 100, bytes((seed,)) * 100)
            if read(files, oid, seed * 100, 100) != bytes((seed,)) * 100:
                failures.append(f"thread {seed} turn {turn}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(os.listdir("/proc/self/fd")) - before <= 4
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


WITH_FEW = """
import os, resource, sys
from lustrelite.store.objects import ObjectFiles
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
osts = [ObjectFiles(os.path.join(sys.argv[1], name)) for name in "ab"]
taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(int(sys.argv[2]))]
most = 0
for oid in range(1, 100):
    for files in osts:
        files.write(oid, 0, bytes(200_000))
        files.read_into(oid, 0, bytearray(200_000))
        most = max(most, sum(len(each._files) for each in osts))
for files in osts:
    files.sync(range(1, 100))
    files.sync(range(1, 10))
print(most)
"""


@pytest.mark.parametrize("others", [20, 45], ids=["", "and clients have most"])
def test_the_osts_of_a_process_get_by_with_the_descriptors_that_it_may_have(tmp_path: Path, others: int) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WITH_FEW, str(tmp_path), str(others)], capture_output=True, text=True, check=False, timeout=60
    )
    assert 0 < int(done.stdout or 0) <= 16, f"no more than half are for files of up to two: {done.stdout} {done.stderr}"


def test_a_file_that_is_removed_while_it_is_read_closes_later(files: ObjectFiles) -> None:
    files.write(1, 0, b"x")
    before = len(os.listdir("/proc/self/fd"))
    with files._opened(1, create=False) as file:
        assert file is not None
        files.remove(1)
        assert os.pread(file.fd, 1, 0) == b"x"
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_files_are_overwritten_in_place_where_that_has_to_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.overwrite_in_place(str(tmp_path))  # no error, whether there is such a flag or not
    said: list[int] = []

    def ioctl(fd: int, request: int, flags: bytearray) -> None:
        if request == 0x40086602:
            said.append(int.from_bytes(flags, "little"))
        else:
            flags[0] = 0x10

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    disk.overwrite_in_place(str(tmp_path))
    assert said == [0x00800010], "what it had, and FS_NOCOW_FL"


def test_a_file_system_without_a_table_of_inodes_has_as_many_as_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """btrfs: f_files and f_ffree are 0, and every create was refused."""
    found = list(os.statvfs(tmp_path))
    found[5:8] = (0, 0, 0)
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(found))
    space = disk.space(str(tmp_path))
    assert space.files_total == space.total // 4096 >= space.files_free == space.available // 4096 > 0


def test_statfs_counts_bytes_and_files(files: ObjectFiles) -> None:
    total, free, available, files_total, files_free = files.statfs()
    assert total >= free >= available > 0 and files_total >= files_free > 0


@pytest.mark.parametrize("without", ["", "open", "I/O"])
@pytest.mark.parametrize("seed", range(8))
def test_direct_and_buffered_io_mix(
    files: ObjectFiles, seed: int, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole blocks of aligned memory go past the page cache, everything else through it: one file all the same.

    So it is on file systems that do not open files for direct I/O, or open them and then refuse it.
    """
    refused = 0

    def refuse(real: Any, fd: int, *args: Any) -> Any:
        nonlocal refused
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused += 1
            raise OSError(errno.EINVAL, "no direct I/O")
        return real(fd, *args)

    def open_file(path: str, flags: int, *args: Any, real: Any = os.open) -> int:
        nonlocal refused
        if flags & os.O_DIRECT:
            refused += 1
            raise OSError(errno.EINVAL, "no direct I/O")
        return int(real(path, flags, *args))

    if without == "open":
        monkeypatch.setattr(os, "open", open_file)
    elif without:
        monkeypatch.setattr(os, "pwritev", functools.partial(refuse, os.pwritev))
        monkeypatch.setattr(os, "preadv", functools.partial(refuse, os.preadv))
    rng = random.Random(seed)
    pool = BufferPool()
    model = bytearray()
    for _ in range(40):
        length = rng.choice((1, 4096, 5000, objects.DIRECT_BYTES_MIN, objects.DIRECT_BYTES_MIN + 1, 300_000, 512 << 10))
        offset = rng.choice((0, 4096, 8192, 100, 131072, 200_000, len(model)))
        if rng.random() < 0.6:
            data = pool.take(length) if rng.random() < 0.7 else memoryview(bytearray(length))
            data[:] = rng.randbytes(length)
            files.write(7, offset, data)
            if len(model) < offset + length:
                model.extend(bytes(offset + length - len(model)))
            model[offset : offset + length] = data
        else:
            buffer = pool.take(length)
            count = files.read_into(7, offset, buffer)
            assert buffer[:count] == model[offset : offset + length]
        assert files.size(7) == len(model)
        if rng.random() < 0.1:
            files.sync([7])
    assert bool(refused) == bool(without)


def test_large_aligned_writes_are_direct(files: ObjectFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written directly is on the disk: no page of it is dirty."""
    data = BufferPool().take(1 << 20)
    files.write(1, 0, data)
    with files._opened(1, create=False) as file:
        assert file is not None
        if file.direct is None or file.direct < 0:
            pytest.skip("this file system has no direct I/O")
        assert fcntl.fcntl(file.direct, fcntl.F_GETFL) & os.O_DIRECT
