"""A name belongs to one process, until it ends."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lustrelite import claim as claim_module
from lustrelite.alive import start_ticks
from lustrelite.claim import NameTaken, bury, claim


def test_a_name_is_taken_until_it_is_let_go(tmp_path: Path) -> None:
    path = tmp_path / "mds1.pid"
    path.write_text("123456789\n")  # of one that was killed
    held = claim(path)
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(NameTaken, match=f"mds1 runs already in {tmp_path}, as process {os.getpid()}"):
        claim(path)
    os.close(held)
    os.close(claim(path))


def test_a_name_whose_owner_is_dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, but a thread of it still waits for a disk: its successor waits for that, though not for ever."""
    path = tmp_path / "mds1.pid"
    dying = claim(path)
    path.write_text(f"{1 << 30}\n")
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            os.close(dying)

    monkeypatch.setattr(claim_module.time, "sleep", nap)
    held = claim(path)
    assert len(naps) == 3 and path.read_text() == f"{os.getpid()}\n"
    path.write_text(f"{1 << 30}\n")
    monkeypatch.setattr(claim_module, "DYING_S", 0.0)
    with pytest.raises(NameTaken):
        claim(path)
    os.close(held)


def test_a_name_whose_owner_removes_it_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is gone between our open and our lock: what we have locked is nobody's name."""
    path = tmp_path / "mds1.pid"
    real, opened = os.open, []

    def too_early(*arguments: object) -> int:
        fd = real(*arguments)  # type: ignore[arg-type]
        if not opened:
            path.unlink()
        opened.append(fd)
        return fd

    monkeypatch.setattr(os, "open", too_early)
    held = claim(path)
    assert len(opened) == 2
    with pytest.raises(NameTaken):
        claim(path)
    os.close(held)


def test_a_process_is_known_by_when_it_started() -> None:
    assert start_ticks(os.getpid()) > 0
    assert start_ticks(1 << 30) == 0


def test_what_a_dead_process_has_left_goes_when_nobody_can_be_waiting_for_it(tmp_path: Path) -> None:
    path = tmp_path / "mount-x.pid"

    def left() -> set[str]:
        return {path.suffix for path in tmp_path.iterdir()}

    def leave() -> None:
        path.write_text("1")
        for suffix in (".json", ".sock"):
            path.with_suffix(suffix).touch()

    def age(suffix: str, seconds: float) -> None:
        os.utime(path.with_suffix(suffix), (time.time() - seconds,) * 2)

    leave()
    held = claim(path)
    age(".pid", 1000)
    bury(path)
    bury(path, 60)
    assert left() == {".pid", ".json", ".sock"}  # it lives
    os.close(held)
    bury(path, 60)
    bury(path, 60)
    assert left() == {".pid", ".json", ".sock", ".dead"}  # seen dead, for the first time just now
    age(".dead", 100)
    os.close(claim(path))
    bury(path, 60)
    assert ".json" in left()  # that was an earlier one
    age(".dead", 100)
    age(".pid", 200)
    bury(path, 60)
    assert not left()
    leave()
    bury(path)
    assert not left()
    path.with_suffix(".json").touch()  # of one that has lost data: it gave its name back
    bury(path, 60)
    age(".pid", 200)
    age(".dead", 100)
    bury(path, 60)
    assert not left()
