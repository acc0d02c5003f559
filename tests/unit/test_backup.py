"""Backups of a cluster that was never started: from one file system to another, and archives that are not whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lustrelite.cli.archive import copy_sparse

MIB = 1 << 20


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
@pytest.mark.parametrize("before", [0, 1])
def test_a_file_goes_to_another_file_system_with_its_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, before: int
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with open(source, "wb") as file:
        file.write(b"begin" * 1000)
        file.seek(20 * MIB)
        file.write(os.urandom(9 * MIB))
        file.truncate(60 * MIB)
    calls: list[int] = []

    def refuse(reader: int, writer: int, count: int, start: int, to: int) -> int:
        calls.append(start)
        if len(calls) > before:
            raise OSError(number, os.strerror(number))
        return os.pwrite(writer, os.pread(reader, min(count, 100), start), to)

    monkeypatch.setattr(os, "copy_file_range", refuse)
    copy_sparse(source, target)
    assert calls and target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 16


def test_a_full_disk_is_not_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "source").write_bytes(b"1")
    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        copy_sparse(tmp_path / "source", tmp_path / "target")
