"""`lustrelite fsck` on the disks of a stopped cluster: what it cannot do ends with 8 and a sentence, never as if all were well."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lustrelite.cli.cluster import Cluster
from lustrelite.cli.main import lustrelite
from lustrelite.fsck.repair import CORRECTED, FAILED, LEFT, Repair
from lustrelite.ids import ROOT_FID, make_fid
from lustrelite.store import schema
from lustrelite.store.kv import Store

OST = "lustre-OST0000"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A cluster that was never started, with a root directory."""
    made = Cluster(tmp_path / "s")
    made.create(osts=1, oss=1)
    root = schema.Inode(stat.S_IFDIR | 0o755, 0, 0, 2, 0, 0, 0, 0, 1, 1, 1, 1, 5, None, None, b"", ROOT_FID)
    put(made, schema.INODES, ROOT_FID, schema.pack_inode(root))
    assert fsck(made).exit_code == 0
    return made


def put(cluster: Cluster, table: str, key: bytes, value: bytes) -> None:
    with closing(Store.open(cluster.target_dir("lustre-MDT0000"), "MDT")) as store:
        store.apply({(table, key): value})


def plant(cluster: Cluster) -> None:
    """A back-pointer to nothing."""
    put(cluster, schema.LINKS, schema.link_key(make_fid(0x200000401, 1), ROOT_FID, b"gone"), b"")


def fsck(cluster: Cluster, *words: str) -> Result:
    return CliRunner().invoke(lustrelite, ["--state-dir", str(cluster.state_dir), "fsck", *words])


def refused(cluster: Cluster, *expected: str) -> None:
    """fsck in all its forms."""
    for words in ((), ("--dry-run",), ("--repair",)):
        result = fsck(cluster, *words)
        assert result.exit_code == FAILED, result.output
        assert isinstance(result.exception, SystemExit) and "clean" not in result.output
        for text in expected:
            assert text in result.output


def garble(path: Path) -> None:
    path.write_text("{")


@pytest.mark.parametrize("target", ["MGS", "lustre-MDT0000", OST])
@pytest.mark.parametrize(("damage", "said"), [(Path.unlink, "is missing: restore it"), (garble, "is damaged")])
def test_a_target_that_cannot_start_is_not_clean(
    cluster: Cluster, target: str, damage: Callable[[Path], None], said: str
) -> None:
    path = cluster.target_dir(target) / "target.json"
    damage(path)
    refused(cluster, str(path), said)


def test_a_target_in_the_place_of_another_is_said_so(cluster: Cluster) -> None:
    path = cluster.target_dir(OST) / "target.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "index": 7}))
    refused(cluster, f"{path} is that of lustre-OST0007: restore the one of {OST}")


def test_a_target_that_is_not_there_is_said_so(cluster: Cluster) -> None:
    shutil.rmtree(cluster.target_dir(OST))
    refused(cluster, f"there is no directory {cluster.target_dir(OST)}")


@pytest.mark.parametrize("target", ["MGS", "lustre-MDT0000", OST])
def test_a_damaged_database_is_said_so(cluster: Cluster, target: str) -> None:
    data = cluster.target_dir(target) / "lmdb" / "data.mdb"
    content = data.read_bytes()
    data.write_bytes(content[:8192] + bytes(len(content) - 8192))
    refused(cluster, f"the database of {cluster.target_dir(target)} is damaged", "restore the target from a backup")
    data.write_bytes(content[: 8192 + 100])
    refused(cluster, f"the database of {cluster.target_dir(target)} is truncated", "restore the target from a backup")
    data.write_bytes(b"")
    refused(cluster, f"the database of {cluster.target_dir(target)} is lost", "do not format it")


def test_clean_is_said_of_what_is_there(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair that was planned and did not take is no repair."""
    plant(cluster)
    with monkeypatch.context() as patch:
        patch.setattr(Repair, "apply", lambda _: None)
        result = fsck(cluster, "--repair")
    assert result.exit_code & LEFT and "now: NOT CLEAN" in result.output and "left:" in result.output
    result = fsck(cluster, "--repair")
    assert result.exit_code == 1 and "now: clean" in result.output
    assert fsck(cluster).exit_code == 0


def test_targets_without_a_state_directory_are_checked_and_repaired(cluster: Cluster, tmp_path: Path) -> None:
    plant(cluster)
    places = [str(path.rename(tmp_path / name)) for name, path in cluster.targets().items()]  # the MGS's does no harm
    shutil.rmtree(cluster.state_dir)
    every = [word for place in places for word in ("--target", place)]
    assert fsck(cluster, *every).exit_code == LEFT
    assert "would mend" in fsck(cluster, *every, "--dry-run").output
    assert fsck(cluster, *every, "--repair").exit_code == CORRECTED
    assert fsck(cluster, *every).exit_code == 0


def test_targets_that_are_not_one_file_system_are_refused(cluster: Cluster) -> None:
    ost, mdt = (str(cluster.target_dir(name)) for name in (OST, "lustre-MDT0000"))
    for words, said in (((ost,), "its MDT among them"), ((mdt, ost, ost), f"holds {OST}, and so does")):
        result = fsck(cluster, *(word for place in words for word in ("--target", place)), "--repair")
        assert result.exit_code == FAILED and said in result.output
