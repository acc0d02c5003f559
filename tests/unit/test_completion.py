"""What a shell is told to complete arguments with."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from lustrelite.cli import mounts
from lustrelite.cli.cluster import Cluster
from lustrelite.cli.llctl import llctl
from lustrelite.cli.llfs import llfs
from lustrelite.cli.main import lustrelite
from lustrelite.control_server import ControlServer


def told(program: click.Command, *words: str) -> list[str]:
    """The names for the last of `words`, or what the shell shall find itself: <file>, <dir>."""
    found = ShellComplete(program, {}, "program", "_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [item.value if item.type == "plain" else f"<{item.type}>" for item in found]


@pytest.fixture
def state_dir(tmp_path: Path) -> str:
    Cluster(tmp_path / "s").create(osts=2)
    return str(tmp_path / "s")


@pytest.mark.parametrize(
    ("words", "names"),
    [(["start", "lustre-O"], ["lustre-OST0000", "lustre-OST0001"]), (["stop", "m"], ["mgs", "mds1"]), (["kill", "o"], ["oss1", "oss2"]),
     (["kill", "lustre"], []), (["events", "md"], ["mds1"])],
)  # fmt: skip
def test_names_of_a_cluster(state_dir: str, words: list[str], names: list[str]) -> None:
    assert told(lustrelite, "--state-dir", state_dir, *words) == names
    assert told(lustrelite, "--state-dir", f"{state_dir}/none", *words) == []


def test_targets_for_llctl(state_dir: str) -> None:
    assert told(llctl, "--state-dir", state_dir, "dump_locks", "lustre-M") == ["lustre-MDT0000"]


def test_a_damaged_plan_is_no_names(state_dir: str) -> None:
    Path(state_dir, "cluster.json").write_text("{")
    assert told(lustrelite, "--state-dir", state_dir, "start", "m") == []


@pytest.mark.parametrize(
    ("program", "words"),
    [(lustrelite, ["cp", "-r", "/et"]), (lustrelite, ["cp", "a", "/et"]), (lustrelite, ["restore", "/et"]), (llfs, ["getstripe", "/et"]),
     (llfs, ["setstripe", "-c", "2", "/et"]), (llfs, ["df", "/et"])],
)  # fmt: skip
def test_files_of_this_machine_are_the_shells_business(program: click.Command, words: list[str]) -> None:
    """Nothing at all was completed: less than without the completion."""
    assert told(program, *words) == ["<file>"]


def test_mount_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mountinfo").write_text("40 22 0:44 / /mnt/lustre rw - fuse.lustrelite mgs:/lustre rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "mountinfo")
    assert told(lustrelite, "umount", "/m") == ["/mnt/lustre"]
    assert told(lustrelite, "umount", "/x") == told(lustrelite, "mount", "/m") == ["<dir>"]


async def test_what_processes_know(tmp_path: Path) -> None:
    devices = [{"type": "mdt", "name": "lustre-MDT0000"}, {"type": "osc", "name": "lustre-OST0000-osc-1"}]
    params = [["mdt.lustre-MDT0000.stats", "r"], ["version", "r"]]
    server = ControlServer(tmp_path / "mds1.sock", {"devices": lambda _: devices, "list_param": lambda _: params})
    await server.start()
    (tmp_path / "dead.sock").touch()
    here = ("--run-dir", str(tmp_path))
    try:
        assert await in_thread(llctl, *here, "--device", "l") == ["lustre-MDT0000", "lustre-OST0000-osc-1"]
        assert await in_thread(llctl, *here, "--state-dir", os.devnull, "dump_locks", "l") == ["lustre-MDT0000"]
        assert await in_thread(llctl, *here, "get_param", "mdt.") == ["mdt.lustre-MDT0000.stats"]
        assert await in_thread(llctl, *here, "--node", "") == ["dead", "mds1"]
    finally:
        await server.close()


async def in_thread(program: click.Command, *words: str) -> list[str]:
    """`told`, while this loop answers."""
    return await asyncio.to_thread(told, program, *words)
