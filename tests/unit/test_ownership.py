"""Exactly one process has a target, until it is dead."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lustrelite.target.ownership import OWNER_FILE, Owned, Owner, Ownership

ME = Owner("mds1", os.getpid(), 3, "127.0.0.1:988@tcp")
OTHER = Owner("mds2", 4242, 4, "127.0.0.1:989@tcp")

RACER = """
import os, sys
from lustrelite.target.ownership import Owner, Ownership
ownership = Ownership(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
won = ownership.try_acquire(Owner("racer", os.getpid(), 1, "x@sim"))
print("won" if won else "lost", flush=True)
sys.stdin.readline()
"""


def start(directory: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RACER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_one_of_many_racing_processes_wins(tmp_path: Path) -> None:
    racers = [start(tmp_path) for _ in range(6)]
    try:
        for racer in racers:
            go(racer)
        results = [said(racer) for racer in racers]
        assert sorted(results) == ["lost"] * 5 + ["won"]
        owner = Ownership(tmp_path).owner()
        assert owner is not None and owner.pid == racers[results.index("won")].pid
    finally:
        for racer in racers:
            kill(racer)


def test_a_stopped_owner_keeps_the_target_and_a_killed_one_loses_it(tmp_path: Path) -> None:
    racer = start(tmp_path)
    go(racer)
    assert said(racer) == "won"
    standby = Ownership(tmp_path)
    os.kill(racer.pid, signal.SIGSTOP)
    assert not standby.try_acquire(ME)
    kill(racer)
    assert standby.try_acquire(ME)
    assert standby.owner() == ME
    standby.release()


def test_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    first.acquire(ME)
    with pytest.raises(Owned) as caught:
        second.acquire(OTHER)
    assert caught.value.errno == errno.EBUSY and caught.value.owner == ME
    for word in (str(tmp_path), "mds1", str(ME.pid), ME.nid):
        assert word in str(caught.value)
    assert first.owner() == ME and not second.held


def test_a_released_target_is_free_and_says_nothing(tmp_path: Path) -> None:
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    first.acquire(ME)
    first.release()
    assert first.owner() is None and not first.held
    second.acquire(OTHER)
    assert second.owner() == OTHER


def test_an_abandoned_target_is_free_and_still_names_its_last_owner(tmp_path: Path) -> None:
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    first.acquire(ME)
    first.abandon()
    assert second.owner() == ME
    assert second.try_acquire(OTHER)
    assert second.owner() == OTHER


def test_the_owner_may_say_more_later(tmp_path: Path) -> None:
    ownership = Ownership(tmp_path)
    ownership.acquire(ME)
    ownership.update(ME._replace(nid="", instance=9))  # shorter: nothing of the old text may be left
    assert ownership.owner() == ME._replace(nid="", instance=9)


def test_reading_the_record_does_not_lose_the_lock(tmp_path: Path) -> None:
    """A POSIX lock would be lost when any descriptor of the file is closed."""
    first = Ownership(tmp_path)
    first.acquire(ME)
    first.owner()
    assert not Ownership(tmp_path).try_acquire(OTHER)


def test_a_record_that_cannot_be_read_is_no_owner(tmp_path: Path) -> None:
    ownership = Ownership(tmp_path)
    assert ownership.owner() is None
    for text in (b"", b"{", b"[]", b"\xff", b'{"node": "a", "pid": "b"}'):
        (tmp_path / OWNER_FILE).write_bytes(text)
        assert ownership.owner() is None
    assert "another process" in str(Owned(str(tmp_path), None))


def test_flock_takes_over_where_there_are_no_ofd_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_ofd(*_: object) -> None:
        raise OSError(errno.EINVAL, "no OFD locks")

    monkeypatch.setattr(fcntl, "fcntl", no_ofd)
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    assert first.try_acquire(ME)
    assert not second.try_acquire(OTHER)
    first.release()
    assert second.try_acquire(OTHER)


def test_a_full_disk_keeps_nobody_from_his_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record has lost its block when its predecessor left; what it says is for people."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        mine = Ownership(tmp_path)
        assert mine.try_acquire(Owner("n", 1, 0, ""))
        mine.update(Owner("n", 1, 2, "n@sim"))
    assert mine.owner() is None and not Ownership(tmp_path).try_acquire(Owner("other", 2, 0, ""))
    mine.update(Owner("n", 1, 2, "n@sim"))
    assert mine.owner() == Owner("n", 1, 2, "n@sim")
    mine.release()
