"""The events of a process, and who writes them down."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lustrelite.event_file import EventFile, RotatingFile
from lustrelite.events import Event, EventLog
from lustrelite.rpc.node import Node


def full(_: Event) -> None:
    raise OSError(errno.ENOSPC, "the disk is full")


def test_a_log_that_cannot_be_written_disturbs_nobody() -> None:
    log, seen = EventLog("n", lambda: 0.0), []
    log.sinks += [full, lambda event: seen.append(event.name)]
    log.emit("first")
    assert seen == ["first"] and log.counts["first"] == 1 and [event.name for event in log.ring] == ["first"]


def test_a_process_ends_when_it_crashes_whatever_its_log_says() -> None:
    def broken(_: Event) -> None:
        raise ValueError("a fault in the log")

    log, ended = EventLog("n", lambda: 0.0), []
    log.sinks.append(broken)
    node: Any = SimpleNamespace(dead=False, events=log, on_crash=ended.append)
    with pytest.raises(ValueError, match="a fault in the log"):
        Node.crash(node, "why")
    assert ended == ["why"]


def test_a_log_goes_on_after_a_line_that_could_not_be_written(tmp_path: Path) -> None:
    file = RotatingFile(tmp_path / "log")
    file.write("one")
    file.close()  # as a rotation does that fails half way
    file.write("two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    file.close()


def test_a_log_may_be_moved_removed_or_truncated(tmp_path: Path) -> None:
    """logrotate renames files, and by default tells nobody; with copytruncate it cuts them."""
    path, moved = tmp_path / "log", tmp_path / "log.1"
    file = RotatingFile(path, bytes_max=8)
    file.write("one")
    path.rename(moved)
    file.write("two")
    assert (moved.read_text(), path.read_text()) == ("one\n", "two\n")
    path.unlink()
    file.write("three")
    assert path.read_text() == "three\n"
    file.write("six")
    os.truncate(path, 0)
    file.write("four")  # is not rotated for what was there before
    assert path.read_text() == "four\n" and moved.read_text() == "one\n"
    file.close()


def test_names_that_are_no_text_are_written(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "log")
    log = EventLog("n", lambda: 0.0)
    log.sinks.append(events)
    log.emit("mounted", point="\udcff")
    events.close()
    assert '"event": "mounted"' in (tmp_path / "log").read_text()
