"""lustrelite fsck --repair on the stores of real processes: damaged, repaired, started again, and read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cluster_commands import Shell

from lustrelite.cli.cluster import Cluster
from lustrelite.ids import ROOT_FID, Fid
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles

pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

SOUND = {f"f{number}": os.urandom(100_000 + number) for number in range(8)}


class Damaged:
    """A stopped cluster's targets, written to directly."""

    def __init__(self, state_dir: Path) -> None:
        self.cluster = Cluster(state_dir)
        names = dict.fromkeys(t for m in self.cluster.members.values() for t in m.targets)
        self.stores = {
            name: Store.open(self.cluster.target_dir(name), "MDT" if "-MDT" in name else "OST")
            for name in names
            if name != "MGS"
        }
        self.mdt = next(store for name, store in self.stores.items() if "-MDT" in name)

    def ost(self, index: int) -> Store:
        return next(store for name, store in self.stores.items() if name.endswith(f"-OST{index:04x}"))

    def find(self, *path: str) -> Fid:
        fid = ROOT_FID
        for name in path:
            value = self.mdt.get(schema.NAMES, schema.name_key(fid, name.encode()))
            assert value is not None, path
            fid = schema.unpack_entry(value)[0]
        return fid

    def inode(self, *path: str) -> schema.Inode:
        value = self.mdt.get(schema.INODES, self.find(*path))
        assert value is not None
        return schema.unpack_inode(value)

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("fsck") / "s")
    shell.run("up", "--osts", 2, "--oss", 2)
    yield shell
    shell.run("down")


def disk(state_dir: Path) -> dict[str, str]:
    """A hash of all that is stored."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(state_dir.rglob("*"))
        if path.is_file() and ("/lmdb/" in str(path) or "/O/" in str(path))
    }


def damage(state_dir: Path) -> None:
    """One of each of what users can see: see the test."""
    d = Damaged(state_dir)
    # a directory whose inode is gone; a file whose name is gone; a file whose inode is gone; a wrong link count
    d.mdt.apply({(schema.INODES, d.find("t", "lost")): None})
    nameless = d.find("t", "nameless")
    parent = d.find("t")
    d.mdt.apply(
        {
            (schema.NAMES, schema.name_key(parent, b"nameless")): None,
            (schema.LINKS, schema.link_key(nameless, parent, b"nameless")): None,
            (schema.INODES, d.find("t", "headless")): None,
            (schema.INODES, d.find("t", "f0")): schema.pack_inode(d.inode("t", "f0")._replace(nlink=7)),
        }
    )
    # an object record that is gone while its data is there; an object that is gone with its data
    layout = d.inode("t", "f1").layout
    assert layout is not None
    (index, oid), *_ = layout.stripes
    d.ost(index).apply({(schema.OBJECTS, schema.object_key(oid)): None})
    layout = d.inode("t", "gone").layout
    assert layout is not None
    (index, oid), *_ = layout.stripes
    d.ost(index).apply({(schema.OBJECTS, schema.object_key(oid)): None})
    files = ObjectFiles(next(d.cluster.target_dir(n) for n in d.stores if n.endswith(f"-OST{index:04x}")))
    files.remove(oid)
    files.close()
    d.close()


def test_a_damaged_cluster_is_repaired_and_goes_on(shell: Shell, tmp_path: Path) -> None:
    tree = tmp_path / "t"
    (tree / "lost").mkdir(parents=True)
    for name, data in SOUND.items():
        (tree / name).write_bytes(data)
    for name in ("lost/in", "nameless", "headless", "gone"):
        (tree / name).write_bytes(name.encode() * 1000)
    shell.run("cp", "-r", tree, "lustre:/t")
    refused = shell.run("fsck", "--repair", status=8)
    assert "the cluster is running" in refused and "lustrelite down" in refused
    shell.run("down")
    assert shell.run("fsck", "--repair").startswith("clean")
    damage(shell.state_dir)
    before = disk(shell.state_dir)
    assert "NOT CLEAN" in shell.run("fsck", status=4)
    said = shell.run("fsck", "--dry-run", status=4)
    assert "would mend: name-without-inode" in said and "would be: clean" in said
    assert disk(shell.state_dir) == before
    outcome = json.loads(shell.run("fsck", "--repair", "--json", status=1))
    assert outcome["left"] == [] and not outcome["dry_run"] and outcome["status"] == 1
    assert any("EMPTY" in one["did"] for one in outcome["mended"])
    assert shell.run("fsck", "--repair").startswith("clean")
    shell.run("up")
    back = tmp_path / "back"
    shell.run("cp", "-r", "lustre:/t", back)
    for name, data in SOUND.items():
        assert (back / name).read_bytes() == data
    assert (back / "lost" / "in").read_bytes() == b"lost/in" * 1000
    assert (back / "headless").read_bytes() == b"headless" * 1000
    assert (back / "gone").read_bytes() == b""
    found = shell.run("ls", "/lost+found").split()
    assert len(found) == 1 and shell.run("cat", f"/lost+found/{found[0]}") == "nameless" * 1000
    shell.run("cp", "-r", tree, "lustre:/again")
    shell.run("rm", "-r", "/t", "/again", "/lost+found")
    shell.run("down")
    assert "clean" in shell.run("fsck")
    shell.run("up")
