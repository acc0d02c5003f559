"""The command line on real processes: what an operator types, and what it says."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lustrelite import control
from lustrelite.alive import start_ticks
from lustrelite.cli.archive import _belongs_here
from lustrelite.cli.cluster import Cluster, child_environment, module_command
from lustrelite.cli.mkfs import mkfs_command

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]  # a busy disk makes every commit slow


class Shell:
    """Runs commands on one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def run(self, *words: object, program: str = "main", status: int = 0) -> str:
        """Run `lustrelite WORDS` (or llctl): its output, after it ended with `status`."""
        done = subprocess.run(
            [sys.executable, "-m", f"lustrelite.cli.{program}", "--state-dir", str(self.state_dir), *map(str, words)],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, env=child_environment(), timeout=200,
        )  # fmt: skip
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def llctl(self, *words: object, status: int = 0) -> str:
        return self.run(*words, program="llctl", status=status)

    def llfs(self, *words: object, status: int = 0) -> str:
        return self.run(*words, program="llfs", status=status)

    def status(self, well: bool = True) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "--json", status=0 if well else 3))
        return found

    def pids(self) -> dict[str, int]:
        return {process["name"]: process["pid"] for process in self.status()["processes"]}

    def settled(self) -> None:
        """Wait until everything is well: `up` does, and starts nothing that runs."""
        self.run("up")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("c") / "s")
    shell.run("up", "--osts", 3, "--oss", 2, "--set", "tunables.rpc_timeout_s=2")
    yield shell
    shell.run("down")


def test_up_twice_is_harmless(shell: Shell) -> None:
    before = shell.pids()
    assert "started" not in shell.run("up")
    assert shell.pids() == before


def test_a_daemon_that_is_started_by_hand_once_more_leaves_the_first_alone(shell: Shell) -> None:
    before = shell.pids()
    record = json.loads((shell.state_dir / "run" / "mds1.json").read_text())
    command = Path(f"/proc/{before['mds1']}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), timeout=100)
    assert done.returncode == 2 and f"mds1 runs already in {shell.state_dir / 'run'}, as process {before['mds1']}" in done.stderr
    assert shell.pids() == before and json.loads((shell.state_dir / "run" / "mds1.json").read_text()) == record
    assert control.call(Path(record["control"]), "ping") == "pong"


def test_a_copy_of_a_living_cluster_does_not_take_its_processes_for_its_own(shell: Shell, tmp_path: Path) -> None:
    before = shell.pids()
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("targets", "*.nid", "*.sock")
    shutil.copytree(shell.state_dir, copy, ignore=ignored)
    assert "nothing was running" in Shell(copy).run("down")
    assert shell.pids() == before


def test_a_backup_touches_nothing_that_is_there(shell: Shell, tmp_path: Path) -> None:
    mine = tmp_path / "b.part" / "mine"
    mine.parent.mkdir()
    mine.write_text("precious")
    shell.run("backup", tmp_path / "b")
    shell.settled()
    assert mine.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["b", "b.part"]


def test_two_that_make_one_cluster(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "s")
    command = [sys.executable, "-m", "lustrelite.cli.main", "--state-dir", str(shell.state_dir), "up", "--osts", "1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environment()) for _ in range(2)]
    try:
        said = sorted(process.communicate(timeout=100)[0] for process in both)
        assert [process.returncode for process in both] == [0, 0]
        assert said[0] == f"lustre is up in {shell.state_dir}\n" and "(started mgs, mds1, oss1)" in said[1]
    finally:
        shell.run("down")


def test_a_different_shape_is_refused(shell: Shell) -> None:
    assert "has OSTs 3, not 5" in shell.run("up", "--osts", 5, status=1)


def test_status_names_everything(shell: Shell) -> None:
    found = shell.status()
    assert found["healthy"]
    assert [p["name"] for p in found["processes"]] == ["mgs", "mds1", "oss1", "oss2"]
    targets = [t for p in found["processes"] for t in p["targets"]]
    assert {t["name"] for t in targets} == {
        "MGS", "lustre-MDT0000", "lustre-OST0000", "lustre-OST0001", "lustre-OST0002"
    }  # fmt: skip
    assert {t["state"] for t in targets} == {"UP"}
    for process in found["processes"]:
        assert process["nid"].endswith("@unix")
        assert Path(process["control"]).is_socket()
        with urllib.request.urlopen(f"http://127.0.0.1:{process['metrics_port']}/metrics") as page:
            assert b"lustrelite_last_committed" in page.read()
    table = shell.run("status")
    assert "lustre-OST0002" in table


def test_daemons_are_detached_and_private(shell: Shell) -> None:
    assert shell.state_dir.stat().st_mode & 0o777 == 0o700
    for pid in shell.pids().values():
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_files_go_in_and_come_out(shell: Shell, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.bin").write_bytes(os.urandom(3_000_000))
    (tree / "sub" / "empty").touch()
    (tree / "sub" / "link").symlink_to("../a.bin")
    (tree / "a.bin").chmod(0o640)
    os.utime(tree / "a.bin", ns=(1, 1_234_567_890_123_456_789))
    shell.run("cp", "-r", tree, "lustre:/tree")
    assert shell.run("ls", "/tree").split() == ["a.bin", "sub"]
    long = shell.run("ls", "-l", "/tree/sub")
    assert "link -> ../a.bin" in long
    shell.run("cp", "-r", "lustre:/tree", tmp_path / "back")
    back = tmp_path / "back"
    assert (back / "a.bin").read_bytes() == (tree / "a.bin").read_bytes()
    assert (back / "a.bin").stat().st_mode == (tree / "a.bin").stat().st_mode
    assert (back / "a.bin").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert os.readlink(back / "sub" / "link") == "../a.bin"
    assert "OST000" in shell.run("stat", "/tree/a.bin")
    shell.run("mkdir", "-p", "/x/y")
    shell.run("mv", "/tree/sub", "/x/y")
    assert shell.run("cat", "/x/y/sub/empty") == ""
    shell.run("cp", "-r", "lustre:/tree", "lustre:/copy")
    assert shell.run("ls", "/copy").split() == ["a.bin"]
    shell.run("rm", "-r", "/x", "/copy", "lustre:/tree")
    assert shell.run("ls", "/").split() == []
    assert "clean" in shell.run("fsck")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cat", "/nope"], "No such file or directory: /nope"),
        (["ls", "relative"], "start with a slash"),
        (["mkdir", "/a/b/c"], "No such file or directory: /a/b/c"),
        (["cp", "x", "y"], "one side must be in the file system"),
        (["cp", "/etc", "lustre:/etc"], "copy it with -r"),
        (["cp", "/etc/hosts", "other:/x"], "is called 'lustre'"),
        (["kill", "mds7"], "there are: mgs, mds1"),
        (["restore", "/etc/hosts"], "holds a cluster already"),
        (["mkdir", "-m", "-1", "/m"], "bad mode '-1'"),
        (["mkdir", "-m", "77777", "/m"], "bad mode '77777'"),
    ],
)
def test_an_error_is_one_line_that_helps(shell: Shell, words: list[str], said: str) -> None:
    output = shell.run(*words, status=1)
    assert said in output
    assert output.count("\n") == 1


def test_no_cluster_is_said_so(tmp_path: Path) -> None:
    assert "lustrelite up" in Shell(tmp_path).run("ls", status=1)
    (tmp_path / "loop").symlink_to("loop")
    assert Shell(tmp_path / "loop").run("status", status=1).count("\n") == 1


def test_a_killed_server_loses_nothing(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"kept" * 1000)
    shell.run("cp", tmp_path / "f", "lustre:/kept")
    for name in ("mds1", "oss1", "oss2", "mgs"):
        shell.run("kill", name)
        found = shell.status(well=False)
        assert next(p for p in found["processes"] if p["name"] == name)["state"] == "stopped"
        assert name in shell.run("start", name)
    assert shell.run("kill", "oss1", "oss2").count("killed") == 2
    assert shell.run("start", "lustre-OST0000", "oss1", "oss2", "mgs") == "started oss1\nstarted oss2\nmgs runs already\n"
    shell.settled()
    assert shell.run("cat", "/kept") == "kept" * 1000
    shell.run("rm", "/kept")


def test_a_server_that_stands_still_is_named(shell: Shell) -> None:
    pid = shell.pids()["oss1"]
    os.kill(pid, signal.SIGSTOP)
    try:
        found = next(p for p in shell.status(well=False)["processes"] if p["name"] == "oss1")
        assert found["state"] == "silent" and {t["state"] for t in found["targets"]} == {"UNKNOWN"}
        assert "UNKNOWN" in shell.run("status", status=3)
        assert "oss1 has not answered devices in 10 s" in shell.llctl("dl")
    finally:
        os.kill(pid, signal.SIGCONT)
    shell.settled()


def test_a_server_may_open_as_many_files_as_the_system_lets_it(shell: Shell) -> None:
    """The usual 1024 were used up by some 500 objects."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        shell.run("kill", "oss2")
        shell.run("start", "oss2")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    shell.settled()
    assert resource.prlimit(shell.pids()["oss2"], resource.RLIMIT_NOFILE) == (hard, hard)


def test_one_target_stops_and_starts_alone(shell: Shell) -> None:
    pids = shell.pids()
    shell.run("stop", "lustre-OST0002")
    rows = {t["name"]: t["state"] for p in shell.status(well=False)["processes"] for t in p["targets"]}
    assert rows["lustre-OST0002"] == "DOWN"
    assert rows["lustre-OST0000"] == "UP"
    shell.run("start", "lustre-OST0002")
    shell.settled()
    assert shell.pids() == pids


def test_parameters_are_read_and_set(shell: Shell) -> None:
    assert shell.llctl("get_param", "mdt.*.commit_on_sharing") == "mdt.lustre-MDT0000.commit_on_sharing=1\n"
    shell.llctl("set_param", "mdt.*.commit_on_sharing=0")
    assert shell.llctl("get_param", "-n", "mdt.*.commit_on_sharing") == "0\n"
    shell.llctl("set_param", "mdt.*.commit_on_sharing=1")
    assert "state: FULL" in shell.llctl("get_param", "osp.lustre-OST0000-*.import")
    assert "status:" in shell.llctl("get_param", "{mdt,obdfilter}.*.recovery_status")
    names = shell.llctl("list_param", "obdfilter.lustre-OST0000.*").split()
    assert "obdfilter.lustre-OST0000.evict_client" in names
    assert shell.llctl("list_param", "mdt", "mdt.*").split() == ["mdt", "mdt.lustre-MDT0000"]
    assert {"mdt", "mdt.lustre-MDT0000", "mdt.lustre-MDT0000.uuid"} <= set(shell.llctl("list_param", "-R", "mdt").split())
    assert "obdfilter.lustre-OST0000.num_exports" in shell.llctl("list_param", "-R", "obdfilter.*").split()
    assert {"tunables.", "tunables.spin_us="} <= set(shell.llctl("list_param", "-FR", "tunables").split())
    assert "tunables.spin_us=" in shell.llctl("list_param", "-F", "tunables.*").split()
    assert "read only" in shell.llctl("set_param", "version=1", status=1)
    assert "no parameter matches" in shell.llctl("get_param", "nothing", status=1)
    assert shell.llctl("get_param", "-n", "health_check").split() == ["healthy"] * 4


def test_a_permanent_parameter_survives_a_restart(shell: Shell) -> None:
    def values() -> list[str]:
        return shell.llctl("get_param", "-n", "tunables.max_rpcs_in_flight").split()

    shell.llctl("set_param", "-P", "tunables.max_rpcs_in_flight=5")
    deadline = time.monotonic() + 60
    while values().count("5") < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    shell.run("kill", "oss1")
    shell.run("start", "oss1")
    while values().count("5") < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert values().count("5") == 3  # all that follow the MGS, which itself does not
    shell.llctl("set_param", "-P", "-d", "tunables.max_rpcs_in_flight")
    shell.settled()


def test_permanent_parameters_are_of_devices_that_come_later_too(tmp_path: Path) -> None:
    """The MDT's connections to OSTs are made anew by each start; a standby may serve one target and wait for another."""
    shell = Shell(tmp_path / "s")

    def until(name: str, values: str) -> None:
        deadline = time.monotonic() + 30
        while (found := shell.llctl("get_param", "-n", name)).split() != values.split():
            assert time.monotonic() < deadline, found
            time.sleep(0.1)

    shell.run("up", "--oss", 1, "--oss-failover")
    try:
        shell.run("stop", "lustre-OST0001")
        until("obdfilter.*.recovery_time_hard", "90 90")
        shell.llctl("set_param", "-P", "osp.*.create_count=99")
        shell.llctl("set_param", "-P", "obdfilter.*.recovery_time_hard=77")
        until("obdfilter.*.recovery_time_hard", "77 77")
        until("osp.*.create_count", "99 99")
        shell.llctl("set_param", "osp.lustre-OST0001*.create_count=98")
        shell.run("kill", "mds1")
        shell.run("start", "mds1")
        until("osp.*.create_count", "99 99")
        shell.llctl("set_param", "osp.lustre-OST0001*.create_count=98")
        shell.run("stop", "lustre-OST0000")
        until("obdfilter.*.recovery_time_hard", "77 77")
        until("osp.*.create_count", "99 98")
        shell.run("stop", "lustre-MDT0000")
        shell.run("start", "lustre-MDT0000")
        until("osp.*.create_count", "99 99")
    finally:
        shell.run("down")


def test_a_permanent_parameter_is_not_set_when_the_mgs_is_away(shell: Shell) -> None:
    shell.run("kill", "mgs")
    for words in (("set_param", "-P", "tunables.statahead_max=5"), ("conf_param", "lustre-OST0001.failover.mode=failout")):
        said = shell.llctl(*words, status=1)
        assert f"{words[-1]}: the MGS does not answer in 8 s; nothing is changed" in said and said.count("\n") == 1
    shell.settled()
    shell.llctl("set_param", "-P", "tunables.statahead_max=64")  # what had been asked for before would be there by now
    assert "5" not in shell.llctl("get_param", "-n", "tunables.statahead_max").split()
    shell.llctl("set_param", "-P", "-d", "tunables.statahead_max")


def test_what_the_mgs_keeps_can_be_read(shell: Shell) -> None:
    shell.llctl("set_param", "-P", "osc.*.max_dirty_mb=48")
    shell.llctl("conf_param", "lustre-OST0001.osc.active=1")
    shown = shell.llctl("get_param", "mgs.MGS.live.*")
    assert shown.startswith("mgs.MGS.live.lustre=\nfsname: lustre\n") and "    lustre-OST0001: [ " in shown
    assert "    lustre-OST0001.osc.active=1\n    osc.*.max_dirty_mb=48\n" in shown
    for name in ("osc.*.max_dirty_mb", "lustre-OST0001.osc.active"):
        shell.llctl("set_param", "-P", "-d", name)
    assert "max_dirty_mb" not in shell.llctl("get_param", "mgs.MGS.live.*")


def test_devices_are_listed_as_lctl_does(shell: Shell) -> None:
    lines = shell.llctl("dl").splitlines()
    assert lines[0].split()[:4] == ["0", "UP", "mdt", "lustre-MDT0000"]
    assert any(line.split()[2:4] == ["osp", "lustre-OST0001-osc-MDT0000"] for line in lines)
    assert len(shell.llctl("list_nids").split()) == 4


def test_commits_can_be_held_and_recovery_aborted(shell: Shell) -> None:
    shell.llctl("hold_commits", "lustre-MDT0000")
    assert "holds its commits" in shell.llctl("get_param", "--", "health_check")
    shell.llctl("release_commits", "lustre-MDT0000")
    shell.llctl("commit", "lustre-MDT0000")
    assert "not in recovery" in shell.llctl("--device", "lustre-MDT0000", "abort_recovery")
    assert "no device" in shell.llctl("--device", "lustre-MDT0009", "abort_recovery", status=1)
    osp = "lustre-OST0000-osc-MDT0000"  # of a client's connection it said which commands the control socket has
    assert f"{osp} of mds1 is a connection (osp), no target" in shell.llctl("--device", osp, "abort_recovery", status=1)
    assert "no target" in shell.llctl("commit", osp, status=1)
    assert "has no client" in shell.llctl("set_param", "mdt.*.evict_client=nobody", status=1)


def test_locks_can_be_looked_at(shell: Shell) -> None:
    assert "ldlm.namespaces.lustre-OST0000.lock_count=0" in shell.llctl("get_param", "ldlm.namespaces.*.lock_count")
    (line,) = shell.llctl("dump_locks", "lustre-OST0000", "1").splitlines()  # what is known of the object, and no lock
    assert line.split()[:2] == ["resource", "0000000000000001"]
    assert shell.llctl("dump_locks", "lustre-MDT0000") == ""
    assert "FID" in shell.llctl("dump_locks", "lustre-MDT0000", "nonsense", status=1)


def test_an_ost_is_taken_out_of_use_and_back(shell: Shell, tmp_path: Path) -> None:
    """By one client alone, and by the configuration for all."""
    run_dir = shell.state_dir / "run"
    command = [*module_command("client"), "--name", "c", "--run-dir", run_dir, "--mgsnode", shell.status()["mgs"][0], "--stdin"]
    with subprocess.Popen(
        list(map(str, command)), env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdout is not None and client.stdin is not None
        assert json.loads(client.stdout.readline())["ready"]
        rows = [line.split() for line in shell.llctl("--node", "c", "dl").splitlines()]
        device = next(row[3] for row in rows if row[3].startswith("lustre-OST0001-osc-"))
        assert "inactive" in shell.llctl("--device", device, "deactivate")
        assert f"osc.{device}.active=0" in shell.llctl("get_param", "osc.*.active")
        rows = [line.split() for line in shell.llctl("--node", "c", "dl").splitlines()]
        assert [row[1] for row in rows if row[3] == device] == ["IN"]
        assert "is active" in shell.llctl("--device", device, "activate")
        assert f"osc.{device}.active=1" in shell.llctl("get_param", "osc.*.active")
        assert "no connection that can be switched off" in shell.llctl("--device", "lustre-MDT0000", "deactivate", status=1)
        client.stdin.close()
        client.wait()
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    shell.run("mkdir", "/some")
    shell.llfs("setstripe", "-c", 1, "-i", 1, "lustre:/some/away")
    shell.llfs("setstripe", "-c", 1, "-i", 0, "lustre:/some/here")
    shell.llctl("conf_param", "lustre-OST0001.osc.active=0")
    assert "lustre-OST0001_UUID: inactive device" in shell.llfs("df", "lustre:/")
    assert [line.split()[:2] for line in shell.run("ls", "-l", "/some", status=1).splitlines()] == [
        ["??????????", "away"], ["-rw-r--r--", "1"]
    ]  # fmt: skip
    assert shell.llfs("check", "mgts", "lustre:/") == f"MGC{shell.status()['mgs'][0]} active.\n"
    for number in range(4):
        shell.run("cp", tmp_path / "f", f"lustre:/active{number}")
        assert "OST0001" not in shell.run("stat", f"/active{number}")
    shell.llctl("set_param", "-P", "-d", "lustre-OST0001.osc.active")
    lines = [line.split() for line in shell.llfs("df", "-h", "lustre:/").splitlines()]
    assert [line[0] for line in lines if line] == [
        "UUID", "lustre-MDT0000_UUID", *[f"lustre-OST000{n}_UUID" for n in range(3)], "filesystem_summary:"
    ]  # fmt: skip
    for number in range(4):
        shell.run("rm", f"/active{number}")
    shell.run("rm", "-r", "/some")
    assert "expected" in shell.llctl("conf_param", "lustre-OST0001.osc.active=maybe", status=1)
    assert "is no OST" in shell.llctl("conf_param", "lustre-MDT0000.osc.active=0", status=1)
    shell.settled()


def test_commands_give_up_on_an_ost_in_failout_mode(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    for number in range(6):
        shell.run("cp", tmp_path / "f", f"lustre:/failout{number}")
    shell.llctl("conf_param", "lustre-OST0001.failover.mode=failout")
    path = next(f"/failout{n}" for n in range(6) if "OST0001" in shell.run("stat", f"/failout{n}"))
    shell.run("stop", "lustre-OST0001")
    began = time.monotonic()
    assert "failover.mode=failout" in shell.run("cat", path, status=1)
    assert time.monotonic() - began < 60
    assert "lustre-OST0001_UUID: inactive device" in shell.llfs("df", "lustre:/")
    shell.run("start", "lustre-OST0001")
    assert shell.run("cat", path) == "x" * 100_000
    shell.llctl("set_param", "-P", "-d", "lustre-OST0001.failover.mode")
    for number in range(6):
        shell.run("rm", f"/failout{number}")
    shell.settled()


def test_ping_reaches_a_process(shell: Shell) -> None:
    nid = shell.status()["processes"][1]["nid"]
    assert "mds1 is there" in shell.llctl("ping", nid)
    assert "cannot connect" in shell.llctl("ping", "/nowhere/x@unix", status=1)


def test_events_are_told_in_order(shell: Shell) -> None:
    lines = [json.loads(line) for line in shell.run("events", "-n", 200).splitlines()]
    assert [line["wall"] for line in lines] == sorted(line["wall"] for line in lines)
    assert all(line["node"] == "mgs" for line in map(json.loads, shell.run("events", "mgs").splitlines()))
    assert shell.run("events", "-n", 0) == shell.llctl("events", "-n", 0) == "", "not all of them"
    assert len(shell.llctl("--node", "mgs", "events", "-n", 2).splitlines()) == 2


def test_down_is_clean_and_what_was_stored_stays(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "s")
    shell.run("up")
    shell.run("mkdir", "/stays")
    pids = shell.pids()
    began = time.monotonic()
    shell.run("down")
    assert time.monotonic() - began < 120
    assert not any(start_ticks(pid) for pid in pids.values())
    assert not list((tmp_path / "s" / "run").iterdir())
    assert "nothing was running" in shell.run("down")
    assert "stopped" in shell.run("status", status=3)
    assert "clean" in shell.run("fsck")
    shell.run("up")
    assert shell.run("ls", "/").split() == ["stays"]
    shell.run("down")


def test_a_state_directory_can_be_copied_and_moved(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "s")
    shell.run("up", "--osts", 1)
    data = os.urandom(100_000)
    (tmp_path / "a").write_bytes(data)
    shell.run("cp", tmp_path / "a", "lustre:/a")
    shell.run("down")
    shutil.copytree(shell.state_dir, tmp_path / "copy")
    shell.run("up")
    copy = Shell(tmp_path / "copy")
    copy.run("up")  # beside the one it comes from
    copy.run("mkdir", "/only-here")
    for each, names in ((shell, ["a"]), (copy, ["a", "only-here"])):
        assert each.run("ls", "/").split() == names
        each.run("cp", "lustre:/a", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == data
        (tmp_path / "back").unlink()
    copy.run("down")
    shell.run("down")
    shutil.rmtree(shell.state_dir)
    moved = Shell((tmp_path / "copy").rename(tmp_path / "moved"))
    (tmp_path / "link").symlink_to(moved.state_dir)
    moved.run("start", "mgs")
    plan = (moved.state_dir / "cluster.json").read_bytes()
    assert str(moved.state_dir / "run").encode() in plan and b"copy" not in plan
    Shell(tmp_path / "link").run("up")  # by another path
    assert (moved.state_dir / "cluster.json").read_bytes() == plan
    moved.run("rm", "-r", "/only-here")
    moved.run("down")
    assert "clean" in moved.run("fsck")


@pytest.mark.parametrize("way", ["copied", "restored"])
def test_a_copy_never_meets_the_servers_of_the_other(tmp_path: Path, way: str) -> None:
    """It would destroy as orphans what the other has used since; its own server of objects is late."""
    shell, copy = Shell(tmp_path / "s"), Shell(tmp_path / "copy")
    shell.run("up", "--osts", 1)
    if way == "copied":
        shell.run("down")
        shutil.copytree(shell.state_dir, copy.state_dir)
    else:
        shell.run("backup", tmp_path / "backup")
        copy.run("restore", tmp_path / "backup")
    shell.run("up")
    (tmp_path / "files").mkdir()
    for number in range(20):
        (tmp_path / "files" / str(number)).write_bytes(os.urandom(5_000))
    shell.run("cp", "-r", tmp_path / "files", "lustre:/files")
    copy.run("start", "mgs")
    copy.run("start", "mds1")
    places = re.findall(r"\S+@unix", copy.llctl("get_param", "osp.*.import"))
    assert places and all(str(copy.state_dir) in place for place in places)
    copy.run("up")
    copy.run("cp", "-r", tmp_path / "files", "lustre:/only-here")
    shell.run("cp", "-r", "lustre:/files", tmp_path / "back")
    for number in range(20):
        name = str(number)
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()
    for each in (copy, shell):
        each.run("down")
        assert "clean" in each.run("fsck")


def test_a_value_that_cannot_be_is_refused_wherever_it_can_be_set(shell: Shell) -> None:
    before = shell.llctl("get_param", "tunables.*", "mdt.*.commit_on_sharing")
    for words, said in (
        (("tunables.stripe_size=3",), "tunables.stripe_size=3: stripe_size cannot be 3: a multiple of 65536"),
        (("timeout=0",), "timeout=0: rpc_timeout_s cannot be 0: a number from 0.001"),
        (("-P", "tunables.stripe_count=-7"), "stripe_count cannot be -7: a number from -1 to 2000"),
        (("-P", "tunables.spin_us=7", "mdt.*.commit_on_sharing=2"), "commit_on_sharing cannot be 2"),
        (("-P", "tunables.spin_us=7", "osc.*.active=7"), "osc.*.active=7: 0 or 1 expected"),
        (("-P", "tunables.spin_us=7", "version=1"), "version is read only"),
        (("-P", "tunables.spin_us=7", "nothing.there=1"), "no parameter that can be set matches 'nothing.there'"),
        (("osp.*.create_count=-1",), "create_count cannot be -1"),
        (("fail_loc=zzz",), "fail_loc=zzz: a number such as 0x123 expected"),
        (("-P", "tunables.{spin_us" + ",a" * 300 + "}=7"), "the name of a parameter has up to 255 bytes, not 618"),
        (("-P", b"tunables.{spin_us,\xff}=7".decode(errors="surrogateescape")), "the name of a parameter is text, not"),
    ):
        refused = shell.llctl("set_param", *words, status=1)
        assert said in refused and refused.count("\n") == 1, refused
    assert shell.llctl("get_param", "tunables.*", "mdt.*.commit_on_sharing") == before


def test_what_is_not_there_is_said_so(shell: Shell) -> None:
    for command in ("list_param", "get_param"):
        assert "no parameter matches 'nope'; `llctl list_param" in shell.llctl(command, "nope", status=1)
    said = shell.llctl("list_param", "nope", "version", status=1)
    assert said.startswith("version\n") and "'nope'" in said
    said = shell.llctl("conf_param", "lustre-OST0009.osc.active=0", status=1)
    assert "no OST 'lustre-OST0009' is known here; there are: lustre-OST0000, lustre-OST0001, lustre-OST0002" in said


def test_a_backup_that_cannot_be_written_stops_nobody(shell: Shell) -> None:
    before = shell.pids()
    for place in ("/proc/x", "/nowhere/at/all"):
        assert f"nothing can be written to {Path(place).parent}" in shell.run("backup", place, status=1)
    assert shell.pids() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}', '{"version": 1, "fsname": "f", "params": [], "processes": []}'])
def test_a_damaged_plan_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    for command in ("up", "status", "down"):
        said = Shell(tmp_path).run(command, status=1)
        assert f"{tmp_path / 'cluster.json'} is damaged (" in said and "restore it from a backup" in said


def test_a_plan_with_a_parameter_that_cannot_be_starts_without_it(tmp_path: Path) -> None:
    """An older program checked only the type."""
    shell = Shell(tmp_path / "s")
    assert "--set tunables.stripe_size=3: stripe_size cannot be 3" in shell.run("up", "--set", "tunables.stripe_size=3", status=1)
    assert "no cluster" in shell.run("status", status=1)
    shell.run("up", "--osts", 1)
    shell.run("down")
    plan = shell.state_dir / "cluster.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "params": {"tunables.stripe_size": "3", "tunables.spin_us": "1"}}))
    assert f"left out of {plan}: stripe_size cannot be 3" in shell.run("up")
    try:
        values = shell.llctl("--node", "mds1", "get_param", "-n", "tunables.stripe_size", "tunables.spin_us").split()
        assert values == ["1048576", "1"]
    finally:
        shell.run("down")


def test_a_first_start_that_fails_binds_nobody(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "s")
    assert "no parameter matches 'spin_us'" in shell.run("up", "--set", "spin_us=1", status=1)
    assert "no cluster" in shell.run("status", status=1)
    shell.run("up", "--osts", 1, "--set", "tunables.spin_us=1")
    assert "was made with tunables.spin_us=1, not 2" in shell.run("up", "--set", "tunables.spin_us=2", status=1)
    assert "with tunables.stripe_count=its default" in shell.run("up", "--set", "tunables.stripe_count=2", status=1)
    shell.run("up", "--set", "tunables.spin_us=1")
    shell.run("down")


def test_a_client_that_died_does_not_keep_the_cluster_down(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "s")
    shell.run("up", "--set", "tunables.recovery_time_soft_s=1")
    try:
        command = [*module_command("client"), "--name", "c", "--mgsnode", shell.status()["mgs"][0], "--stdin"]
        with subprocess.Popen(
            command, env=child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as client:
            assert client.stdout is not None
            assert json.loads(client.stdout.readline())["ready"]
            client.kill()
        shell.run("down")
        assert "lustre-MDT0000 waits for 1 client(s)" in shell.run("up")
        shell.run("mkdir", "/x")
        assert "evicted_clients" not in shell.llctl("get_param", "mdt.*.recovery_status")
    finally:
        shell.run("down")


def test_a_standby_mds_takes_over(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "s")
    shell.run("up", "--mds-failover")
    try:
        shell.run("mkdir", "/before")
        shell.run("kill", "mds1")
        shell.run("mkdir", "/after")
        assert shell.run("ls", "/").split() == ["after", "before"]
        states = {p["name"]: p["state"] for p in shell.status(well=False)["processes"]}
        assert (states["mds1"], states["mds2"]) == ("stopped", "ready")
        shell.run("up")  # mds1 comes back as the standby
        states = {p["name"]: p["state"] for p in shell.status()["processes"]}
        assert (states["mds1"], states["mds2"]) == ("standby", "ready")
    finally:
        shell.run("down")


def test_a_standby_oss_takes_over(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "s")
    shell.run("up", "--oss-failover")
    (tmp_path / "f").write_bytes(b"kept" * 500_000)
    try:
        for number in range(4):
            shell.run("cp", tmp_path / "f", f"lustre:/f{number}")
        shell.run("kill", "oss1")
        for number in range(4):
            assert shell.run("cat", f"/f{number}") == "kept" * 500_000
        shell.run("cp", tmp_path / "f", "lustre:/after")
        states = {p["name"]: p["state"] for p in shell.status(well=False)["processes"]}
        assert (states["oss1"], states["oss1b"], states["oss2b"]) == ("stopped", "ready", "standby")
        assert "clean" in shell.run("fsck")
        shell.run("up")  # oss1 comes back as the standby
        states = {p["name"]: p["state"] for p in shell.status()["processes"]}
        assert (states["oss1"], states["oss1b"]) == ("standby", "ready")
        shell.run("stop", "lustre-OST0000")  # the administrator gives it back
        assert shell.run("cat", "/after") == "kept" * 500_000
        shell.run("down")
        assert "clean" in shell.run("fsck")
        shell.run("up")
        assert shell.run("cat", "/after") == "kept" * 500_000
    finally:
        shell.run("down")


@pytest.mark.parametrize("name", ["d" * 120, "a,b"])
def test_a_state_directory_whose_path_makes_no_nid_uses_loopback_ports(tmp_path: Path, name: str) -> None:
    """One that is too long for the kernel, or has a comma, as lists of NIDs do."""
    shell = Shell(tmp_path / name / "s")
    shell.run("up", "--osts", 1)
    try:
        assert all(p["nid"].startswith("127.0.0.1:") for p in shell.status()["processes"])
        shell.run("mkdir", "/x")
    finally:
        shell.run("down")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "link"])
def test_an_archive_that_wants_to_be_elsewhere_is_no_backup(tmp_path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = (tarfile.SYMTYPE, "/") if name == "link" else (tarfile.REGTYPE, "")
    assert not _belongs_here(member), "also where Python has no filter that would say so"
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.addfile(member)
    assert "is no backup" in Shell(tmp_path / "s").run("restore", tmp_path / "b.tar", status=1)
    assert not (tmp_path / "s" / "evil").exists()


@pytest.mark.parametrize("kind", ["directory", "archive.tar.gz"])
def test_a_backup_is_a_whole_cluster(tmp_path: Path, kind: str) -> None:
    shell = Shell(tmp_path / "s")
    shell.run("up")
    (tmp_path / "f").write_bytes(b"precious" * 50_000)
    shell.run("cp", tmp_path / "f", "lustre:/f")
    pids = shell.pids()
    assert "saved lustre" in shell.run("backup", tmp_path / kind)
    assert shell.pids().keys() == pids.keys()  # it runs again
    shell.run("rm", "/f")
    assert "exists already" in shell.run("backup", tmp_path / kind, status=1)
    shell.run("down")
    other = Shell(tmp_path / "other")
    assert "clean" in other.run("restore", tmp_path / kind)
    other.run("up")
    try:
        assert other.run("cat", "/f") == "precious" * 50_000
    finally:
        other.run("down")
    if kind == "directory":
        victim = next((tmp_path / kind / "targets").glob("*/lmdb/data.mdb"))
        with open(victim, "r+b") as file:
            file.write(b"\xff")
        assert "damaged" in Shell(tmp_path / "third").run("restore", tmp_path / kind, status=1)


def test_the_demo_on_a_small_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(400):
        path = tree / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 37))
    shell = Shell(tmp_path / "s")
    output = shell.run("demo", "--json", "--source", tree)
    report = json.loads(output[output.index("{") : output.rindex("}") + 1])
    assert (report["lost"], report["problems"], report["fsck"]) == (0, 0, "clean")
    assert report["files"] >= 300
    assert not list((tmp_path / "s").glob("demo-*"))


def test_a_pid_that_belongs_to_another_process_is_left_alone(tmp_path: Path) -> None:
    """A record whose process is gone must not make `down` kill whoever has its pid now."""
    shell = Shell(tmp_path / "s")
    shell.run("up")
    shell.run("down")
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        cluster = Cluster(tmp_path / "s")
        record = {"name": "mgs", "role": "mgs", "pid": bystander.pid, "start_ticks": 1, "state": "ready"}
        (cluster.run_dir / "mgs.json").write_text(json.dumps(record))
        shell.run("down")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_llfs_says_where_data_is_and_what_space_there_is(shell: Shell) -> None:
    shell.run("mkdir", "/striped")
    shell.llfs("setstripe", "-c", -1, "-S", "128K", "lustre:/striped")
    assert "stripe_count:  -1 stripe_size:   131072 pattern:       raid0 stripe_offset: -1" in shell.llfs(
        "getstripe", "-d", "lustre:/striped"
    )
    shell.llfs("setstripe", "-c", 2, "-i", 1, "lustre:/striped/f")
    assert shell.llfs("getstripe", "-c", "lustre:/striped/f") == "2\n"
    text = shell.llfs("getstripe", "lustre:/striped")
    assert "/striped/f\nlmm_stripe_count:  2\nlmm_stripe_size:   1048576\n" in text and "lmm_stripe_offset: 1\n" in text
    assert "fixed when it is made" in shell.llfs("setstripe", "-c", 1, "lustre:/striped/f", status=1)
    fid = shell.llfs("path2fid", "lustre:/striped/f").strip()
    assert shell.llfs("fid2path", "lustre", fid) == "/striped/f\n"
    lines = shell.llfs("df", "lustre:/").splitlines()
    assert [line.split()[0] for line in lines[1:5]] == [
        "lustre-MDT0000_UUID", "lustre-OST0000_UUID", "lustre-OST0001_UUID", "lustre-OST0002_UUID"
    ]  # fmt: skip
    assert lines[0].split()[:2] == ["UUID", "1K-blocks"] and lines[6].startswith("filesystem_summary: ")
    assert shell.llfs("check", "osts").count(" active.") == 3
    assert "no lustrelite mount" in shell.llfs("path2fid", "/", status=1)
    shell.run("rm", "-r", "/striped")


def test_who_starts_a_target_that_the_mgs_refuses_hears_it(shell: Shell) -> None:
    """`start` said that it was started, and `up` that the MDS was not healthy after 30 s."""
    mgs = shell.status()["mgs"][0]
    for process, target in (("oss2", "lustre-OST0001"), ("oss1", "lustre-OST0002")):
        shell.run("stop", process)
        directory = shell.state_dir / "targets" / target
        own = directory.rename(shell.state_dir / "own")
        make = ["--ost", "--index", str(int(target[-4:], 16)), "--mgsnode", mgs, str(directory)]
        assert CliRunner().invoke(mkfs_command, make).exit_code == 0
        assert f"{target}: another target has registered under this name" in shell.run("start", process, status=1)
        if process == "oss1":  # it serves another one, which is taken
            assert "another target has registered" in shell.run("start", target, status=1)
        shell.run("stop", process)
        assert f"{target} was not running" in shell.run("stop", target)
        shutil.rmtree(directory)
        own.rename(directory)
    shell.run("up")
    shell.settled()


def test_what_is_about_a_state_directory_takes_no_mgsnode(shell: Shell, tmp_path: Path) -> None:
    """`lustrelite --mgsnode NID up` made a cluster here, and `down` looked for one."""
    mgs = shell.status()["mgs"][0]
    elsewhere = Shell(tmp_path / "x")
    for words in (["up"], ["down"], ["status"], ["backup", str(tmp_path / "b")]):
        assert f"`{words[0]}` is about the cluster of a state directory" in elsewhere.run("--mgsnode", mgs, *words, status=1)
    assert not os.listdir(tmp_path)
    assert "/" in elsewhere.run("--mgsnode", mgs, "stat", "/")


def test_a_file_system_that_the_mgs_does_not_know_is_named(shell: Shell, tmp_path: Path) -> None:
    """`lustrelite --mgsnode NID ls /` said "No such file or directory: ConfigRead on MGS" if the name is not lustre."""
    mgs = shell.status()["mgs"][0]
    said = Shell(tmp_path / "x").run("--mgsnode", mgs, "--fsname", "other", "ls", "/", status=1)
    assert f"the MGS at {mgs} knows no file system 'other'" in said


def test_a_directory_is_not_copied_over_a_file(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "f").write_text("f")
    shell.run("cp", tmp_path / "f", "lustre:/over")
    assert "lustre:/over is no directory" in shell.run("cp", "-r", tmp_path / "d", "lustre:/over", status=1)
    shell.run("cp", "-r", tmp_path / "d", "lustre:/tree")
    assert "f is no directory" in shell.run("cp", "-r", "lustre:/tree", tmp_path / "f", status=1)


def test_what_cannot_be_copied_changes_nothing(shell: Shell, tmp_path: Path) -> None:
    """Two files of one name were written into each other, one onto itself was empty then, a pipe was left out without a word."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    os.mkfifo(tmp_path / "pipe")
    shell.run("mkdir", "/into", "/other")
    shell.run("cp", tmp_path / "a" / "f", "lustre:/into")
    shell.run("cp", tmp_path / "b" / "f", "lustre:/other")
    for words, said in (
        ((tmp_path / "a" / "f", tmp_path / "b" / "f", "lustre:/into"), "b/f would both become /into/f"),
        (("-r", tmp_path / "b", f"{tmp_path}/b/./f", tmp_path / "a" / ".." / "b", "lustre:/into"), "would both become /into/b/f"),
        (("lustre:/into/f", "lustre:/other/f", tmp_path), "would both become"),
        (("lustre:/into/f", "lustre:/into/../into/f"), "are the same file"),
        ((tmp_path / "pipe", "lustre:/into/p"), "pipe is neither a file nor a directory nor a symlink"),
    ):
        refused = shell.run("cp", *words, status=1)
        assert said in refused and refused.count("\n") == 1, refused
    assert shell.run("cat", "/into/f") == "a" and shell.run("ls", "/into") == "f\n"


@pytest.mark.parametrize("path", ["/", "lustre:/", "/kept/..", "/kept/.", "/kept/../"])
def test_what_cannot_be_removed_keeps_what_is_in_it(shell: Shell, path: str) -> None:
    """`rm -r /` removed every file, and said then that the directory is busy."""
    shell.run("mkdir", "-p", "/kept/e")
    refused = shell.run("rm", "-r", path, status=1)
    assert "cannot be removed" in refused and refused.count("\n") == 1, refused
    assert shell.run("ls", "/kept") == "e\n"


def test_a_state_directory_whose_path_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "needs a path that is text" in Shell(tmp_path / "\udcff").run("up", status=1)


def test_a_new_file_system_belongs_to_whom_its_mdt_belongs(tmp_path: Path) -> None:
    """Its root was root's, so that who made a cluster of his own could write nothing there."""
    shell = Shell(tmp_path / "s")
    cluster = Cluster(shell.state_dir)
    cluster.create(osts=1, oss=1)
    owner = (os.getuid(), os.getgid())
    if not owner[0]:
        owner = (1234, 1235)
        os.chown(cluster.target_dir("lustre-MDT0000"), *owner)
    shell.run("up")
    try:
        assert f"Uid: {owner[0]}  Gid: {owner[1]}\n" in shell.run("stat", "/")
    finally:
        shell.run("down")
