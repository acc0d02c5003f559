"""Where the process of a mount keeps its records and logs, and what a container does so that it may."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from lustrelite.cli import mount_helper
from lustrelite.cli.main import lustrelite

ENTRYPOINT = Path(__file__).parents[2] / "deploy" / "entrypoint.sh"


def test_a_mount_of_servers_elsewhere_logs_into_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the one beside: /run/log of root, and /tmp/log, where anybody can be first, of others."""
    asked: list[argparse.Namespace] = []
    monkeypatch.setattr(mount_helper, "mount", lambda options, **_: asked.append(options) or 0)
    monkeypatch.setenv("LUSTRELITE_RUN_DIR", str(tmp_path / "run"))
    result = CliRunner().invoke(lustrelite, ["--mgsnode", "127.0.0.1:988@tcp", "mount", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (asked[0].run_dir, asked[0].log_dir) == (tmp_path / "run", tmp_path / "run" / "log")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives directories away")
def test_who_is_root_in_a_container_can_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image gives the directory to the user of the servers: a mount refused to keep its records there."""
    run_dir, programs = tmp_path / "run", tmp_path / "bin"
    run_dir.mkdir()
    os.chown(run_dir, 988, 988)
    programs.mkdir()
    (programs / "lustrelite-client").symlink_to("/bin/true")
    path = f"{programs}:{os.environ['PATH']}"
    subprocess.run(["sh", ENTRYPOINT, "client"], env={"PATH": path, "LUSTRELITE_RUN_DIR": str(run_dir)}, check=True)
    monkeypatch.setenv("LUSTRELITE_RUN_DIR", str(run_dir))
    assert mount_helper.own_run_dir() == run_dir
