"""Backups of a cluster that was never started: from one file system to another, and archives that are not whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from lustrelite.cli import archive
from lustrelite.cli.archive import copy_sparse
from lustrelite.cli.cluster import Cluster
from lustrelite.cli.main import lustrelite
from lustrelite.cli.scratch import OWNED, scratch
from lustrelite.store import disk

MIB = 1 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path / "s")
    made.create(osts=1, oss=1)
    objects = made.target_dir("lustre-OST0000") / "O" / "d1"
    objects.mkdir(parents=True)
    (objects / "1").write_bytes(os.urandom(100_000))
    return made


def run(state_dir: Path, *words: object) -> Result:
    return CliRunner().invoke(lustrelite, ["--state-dir", str(state_dir), *map(str, words)])


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


@pytest.mark.parametrize("name", ["backup.tar", "backup.tar.gz"])
def test_an_archive_that_is_cut_short_is_said_so(cluster: Cluster, tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    saved = run(cluster.state_dir, "backup", archive)
    assert saved.exit_code == 0, saved.output
    whole = archive.read_bytes()
    for end in (3, 700, len(whole) // 2, len(whole) - 20_000):
        archive.write_bytes(whole[:end])
        result = run(tmp_path / "other", "restore", archive)
        assert result.exit_code == 1 and f"{archive} is " in result.output and "damaged" in result.output, (end, result.output)
    assert not Cluster(tmp_path / "other").exists
    archive.write_bytes(whole)
    result = run(tmp_path / "other", "restore", archive)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "restored lustre" in result.output


def test_a_compressed_archive_with_wrong_bytes_is_damaged(cluster: Cluster, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar.gz"
    assert run(cluster.state_dir, "backup", archive).exit_code == 0
    whole = archive.read_bytes()
    for at in range(200, len(whole) - 8, len(whole) // 12):
        archive.write_bytes(whole[:at] + bytes(byte ^ 0xFF for byte in whole[at : at + 8]) + whole[at + 8 :])
        result = run(tmp_path / "other", "restore", archive)
        assert result.exit_code == 1 and f"{archive} is " in result.output and "Traceback" not in result.output
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert "is no backup" in run(tmp_path / "other", "restore", tmp_path / "empty.tar").output


@pytest.mark.parametrize("name", ["b", "b.tar.gz"])
def test_a_backup_can_be_read_by_its_owner_only(cluster: Cluster, tmp_path: Path, name: str) -> None:
    assert run(cluster.state_dir, "backup", tmp_path / name).exit_code == 0
    assert not (tmp_path / name).stat().st_mode & 0o077


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["down", "settle", "up"])
def test_an_interrupted_backup_starts_the_cluster_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, when: str
) -> None:
    """Ctrl-C while the cluster was being stopped, or started again, left it stopped, with all its clients waiting."""
    steps: list[str] = []

    def step(name: str) -> None:
        steps.append(f"{name} begins")
        if name == when:
            os.kill(os.getpid(), number)
        steps.append(f"{name} ends")

    monkeypatch.setattr(Cluster, "down", lambda _: step("down") or ["mgs"])
    monkeypatch.setattr(Cluster, "up", lambda _: step("up"))
    monkeypatch.setattr(archive, "settle", lambda _: step("settle"))
    result = run(cluster.state_dir, "backup", tmp_path / "b")
    assert result.exit_code == 1 and "Aborted" in result.output  # of click's runner; `errors.run` says 130
    assert steps[:2] == ["down begins", "down ends"] and steps[-2:] == ["up begins", "up ends"]
    assert (tmp_path / "b").exists() == (when == "up")
    assert not list(tmp_path.glob(".backup-*"))


@pytest.mark.parametrize("manifest", ["{}", "[]", "7", '{"version": 1}'])
def test_what_has_another_manifest_is_no_backup(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "backup.json").write_text(manifest)
    result = run(tmp_path / "s", "restore", tmp_path / "b")
    assert result.exit_code == 1 and "b is no backup: its backup.json" in result.output


def test_a_restore_that_is_interrupted_while_it_checks_is_made_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one said that there was a cluster already, of which nobody had said what it is worth."""
    assert run(cluster.state_dir, "backup", tmp_path / "b").exit_code == 0

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archive, "check_stopped", interrupted)
        assert run(tmp_path / "other", "restore", tmp_path / "b").exit_code == 1
    assert "restored lustre" in run(tmp_path / "other", "restore", tmp_path / "b").output


@pytest.mark.parametrize(("command", "place", "kind"), [("restore", "other", ".tar"), ("restore", "other", ""), ("backup", ".", "")])
def test_what_a_killed_command_has_left_the_next_one_removes(
    cluster: Cluster, tmp_path: Path, command: str, place: str, kind: str
) -> None:
    """It stayed for good, as large as all that is stored."""
    assert run(cluster.state_dir, "backup", tmp_path / f"b{kind}").exit_code == 0
    parent = tmp_path / place
    parent.mkdir(exist_ok=True)
    prefix = f".{command}-"
    with scratch(parent, prefix) as used, scratch(parent, prefix) as left, scratch(parent, prefix) as older:
        for path in (used, left, older):
            (path / "targets").mkdir()
            (path / "targets" / "data").write_bytes(b"data")
        shutil.copytree(left, parent / f"{prefix}left")  # as if who made it were dead
        shutil.copytree(left, parent / f"{prefix}theirs", ignore=shutil.ignore_patterns(OWNED))
        (parent / f"{prefix}link").symlink_to(parent / f"{prefix}theirs")
        (parent / f"{prefix}going").mkdir()
        shutil.copy(left / OWNED, parent / f"{prefix}going")  # killed while it was removed
        if command == "restore":
            assert "restored lustre" in run(parent, "restore", tmp_path / f"b{kind}").output
        else:
            assert run(cluster.state_dir, "backup", parent / "again").exit_code == 0
        names = {path.name for path in parent.glob(f"{prefix}*")}
        assert names == {used.name, left.name, older.name, f"{prefix}theirs", f"{prefix}link"}
        assert (used / "targets" / "data").exists() and (parent / f"{prefix}theirs" / "targets" / "data").exists()


def test_a_new_place_that_is_taken_for_one_that_was_left_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another command looks before it is locked."""
    try_lock, found = disk.try_lock, []

    def overtaken(fd: int) -> bool:
        if not found:
            found.append(next(tmp_path.iterdir()))
            shutil.rmtree(found[0])
        return try_lock(fd)

    monkeypatch.setattr(disk, "try_lock", overtaken)
    with scratch(tmp_path, ".x-") as path:
        assert path.exists() and path != found[0]
    assert not list(tmp_path.iterdir())
