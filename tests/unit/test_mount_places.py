"""Where the process of a mount keeps its records and logs, and what a container does so that it may."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lustrelite.cli import mount_helper, mounts
from lustrelite.cli.errors import Refused
from lustrelite.cli.main import lustrelite
from lustrelite.ids import Nid

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


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory into which everybody may look; pytest's are its own."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
@pytest.mark.parametrize(
    ("directory", "socket", "allowed"), [(0o700, 0o777, False), (0o755, 0o755, False), (0o755, 0o777, True), (0o755, None, True)]
)
def test_who_may_not_ask_the_mgs_hears_it_at_once(open_path: Path, directory: int, socket: int | None, allowed: bool) -> None:
    """`llfs getstripe` in a mount of root's waited for 30 s, a mount for 60, and then asked whether the MGS was up."""
    run_dir = open_path / "run"
    run_dir.mkdir()
    if socket is not None:
        (run_dir / "mgs.nid").touch()
        (run_dir / "mgs.nid").chmod(socket)
    run_dir.chmod(directory)
    nids = [Nid(f"{run_dir}/mgs.nid@unix")]
    mounts.check_sockets(nids)  # root may
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            mounts.check_sockets([*nids, Nid("127.0.0.1:988@tcp")])  # somewhere it may
            mounts.check_sockets(nids)
        except Refused as error:
            os._exit(1 if "no permission" in error.message else 3)
        finally:
            os._exit(2 if sys.exception() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (0 if allowed else 1)
