"""llfs without servers: which file system a path means, and what is printed."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lustrelite.alive import start_ticks
from lustrelite.cli import llfs, mounts
from lustrelite.cli.context import Where
from lustrelite.cli.errors import Refused
from lustrelite.cli.examples import EXAMPLES
from lustrelite.cli.llctl import llctl
from lustrelite.cli.main import lustrelite
from lustrelite.client.attributes import Stat
from lustrelite.ids import NO_FID, Nid, make_fid
from lustrelite.wire.mdt import Layout, StatfsReply, StripeHint

FID = make_fid(0x200000401, 1)
INFO = Stat(FID, 0o100644, 1, 0, 0, 0, 5, 8, 1, 1, 1, 1, 0, 0, None, NO_FID)
LAYOUT = Layout(1 << 20, 0, "", ((1, 18), (0, 300)))
MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:44 / /mnt/lustre rw - fuse.lustrelite 10.0.0.1:1988@tcp,mgs2:/lustre rw
41 22 0:45 /sub/dir /mnt/lustre/a\\040b rw - fuse.lustrelite /tmp/run/mgs.nid@unix:/other rw
42 22 0:46 / /mnt/strange rw - fuse.lustrelite what rw
43 22 0:47 / /proc rw - proc proc rw
"""


@pytest.fixture(autouse=True)
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two mounts, one within the other, and a command that runs."""
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTINFO", path)
    with click.Context(llfs.llfs, obj=Where(tmp_path, "mgs@sim", "lustre")):
        yield


def test_mounts_are_found_without_touching_them() -> None:
    first, second = mounts.mounts()
    assert first == ("/mnt/lustre", "/", (Nid("10.0.0.1:1988@tcp"), Nid("mgs2:988@tcp")), "lustre")
    assert second == ("/mnt/lustre/a b", "/sub/dir", (Nid("/tmp/run/mgs.nid@unix"),), "other")
    assert mounts.mount_of("/mnt/lustre/x") == mounts.mount_of("/mnt/lustre") == first
    assert mounts.mount_of("/mnt/lustre/a b/c") == second and mounts.mount_of("/mnt/lustrex") is None


@pytest.mark.parametrize(
    ("text", "fsname", "path", "shown"),
    [
        ("/mnt/lustre/d/f", "lustre", "/d/f", "/mnt/lustre/d/f"),
        ("/mnt/lustre", "lustre", "/", "/mnt/lustre"),
        ("/mnt/lustre/a b/c/../x", "other", "/sub/dir/x", "/mnt/lustre/a b/x"),
        ("/mnt/lustre/a b", "other", "/sub/dir", "/mnt/lustre/a b"),
        ("lustre:/d", "lustre", "/d", "/d"),
        ("lustre:/", "lustre", "/", "/"),
    ],
)
def test_a_path_means_a_file_system(text: str, fsname: str, path: str, shown: str) -> None:
    place = mounts.place_of(text)
    assert (place.fsname, place.path, place.shown(path)) == (fsname, path, shown)


def test_a_name_in_the_current_directory_that_is_mounted_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cd /mnt; llfs df m`; what is called as a file system is wins only if it is on a mount."""
    line = "40 22 0:44 / {} rw - fuse.lustrelite mgs2:/away rw\n"
    points = [tmp_path / "m_c2", tmp_path / "lustre", tmp_path / "in"]
    (tmp_path / "mountinfo").write_text("".join(line.format(point) for point in points))
    for directory in (*points, tmp_path / "in" / "lustre", tmp_path / "away"):
        directory.mkdir()
    (tmp_path / "link").symlink_to("m_c2")
    monkeypatch.chdir(tmp_path)

    def found(text: str) -> tuple[str, str, str]:
        place = llfs._file_system(text)
        return place.fsname, place.path, place.prefix

    with click.Context(llfs.llfs, obj=Where(tmp_path, "mgs@sim", "lustre")) as context:
        context.meta[llfs._CHOSEN] = True
        assert found("m_c2") == found("link") == found("./m_c2") == ("away", "/", str(tmp_path / "m_c2"))
        assert found("lustre") == ("away", "/", str(tmp_path / "lustre"))
        monkeypatch.chdir(tmp_path / "in")
        assert found("lustre") == ("away", "/lustre", str(tmp_path / "in")) and found(".") == ("away", "/", str(tmp_path / "in"))
        (tmp_path / "in" / "lustre").rmdir()
        assert found("lustre") == ("lustre", "/", "")
        context.meta[llfs._CHOSEN] = False
        monkeypatch.chdir(tmp_path)
        assert found("away") == ("away", "/", str(tmp_path / "in")), "a directory of that name, but on no mount"


@pytest.mark.parametrize(
    ("text", "path", "shown"),
    [
        ("lustre", "/", "lustre"),
        ("lustre", "/f", "lustre/f"),
        ("lustre/d/", "/d", "lustre/d/"),
        ("lustre/d/", "/d/e/f", "lustre/d/e/f"),
        ("./lustre/a b/x", "/sub/dir/x/y", "./lustre/a b/x/y"),
        ("/mnt/lustre", "/f", "/mnt/lustre/f"),
        ("lustre:/d", "/d/f", "/d/f"),
    ],
)
def test_what_is_below_a_path_is_shown_below_it(monkeypatch: pytest.MonkeyPatch, text: str, path: str, shown: str) -> None:
    """`llfs getstripe d` named d as d, and what is in it by absolute paths; lfs prints d/f."""
    monkeypatch.setattr(os, "getcwd", lambda: "/mnt")
    assert llfs._beneath(text, mounts.place_of(text), path) == shown


def test_what_a_mount_does_not_show_keeps_its_own_path() -> None:
    assert mounts.place_of("/mnt/lustre/a b").shown("/elsewhere") == "/elsewhere"


@pytest.mark.parametrize("text", ["/usr", "lustre2:/d"])
def test_what_is_nothing_of_ours(text: str) -> None:
    with pytest.raises(Refused):
        mounts.place_of(text)


def test_the_process_behind_a_mount_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUSTRELITE_RUN_DIR", str(tmp_path))
    record = {"mountpoint": "/mnt/lustre", "state": "ready", "pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "control": "/run/m.sock"}
    (tmp_path / "mount-mnt.json").write_text(json.dumps(record))
    (tmp_path / "mount-broken.json").write_text("{")
    assert mounts.control_socket("/mnt/lustre") == Path("/run/m.sock")
    assert mounts.control_socket("/mnt/other") is None
    (tmp_path / "mount-mnt.json").write_text(json.dumps({**record, "start_ticks": 1}))
    assert mounts.control_socket("/mnt/lustre") is None  # another process has its number


def test_a_layout_reads_as_lfs_prints_it() -> None:
    assert llfs.file_text("/f", INFO, LAYOUT) == (
        "/f\nlmm_stripe_count:  2\nlmm_stripe_size:   1048576\nlmm_pattern:       raid0\nlmm_layout_gen:    0\n"
        "lmm_stripe_offset: 1\n\tobdidx\t\t objid\t\t objid\t\t group\n"
        "\t     1\t            18\t         0x12\t             0\n\t     0\t           300\t        0x12c\t             0\n\n"
    )
    assert llfs.file_text("/f", INFO, LAYOUT._replace(pool="p"), quiet=True).count("\n") == 5
    assert "lmm_fid:           [0x200000401:0x1:0x0]\n" in llfs.file_text("/f", INFO, LAYOUT, verbose=True)
    assert "lmm_pool:          p\nlmm_objects:\n      - l_ost_idx: 1\n" in llfs.file_text(
        "/f", INFO, LAYOUT._replace(pool="p"), yaml=True
    )
    fields = ("count", "size", "index", "fid", "layout", "generation")
    assert [llfs.file_text("/f", INFO, LAYOUT, field).strip() for field in fields] == [
        "2", "1048576", "1", "[0x200000401:0x1:0x0]", "raid0", "0"
    ]  # fmt: skip
    assert llfs._directory_text("/d", StripeHint(2, 65536, -1), "count") == "2\n"
    assert llfs._directory_text("/d", StripeHint(2, 65536, -1), "fid") == ""


def test_space_reads_as_lfs_prints_it() -> None:
    rows: list[tuple[str, StatfsReply | None, str]] = [
        ("lustre-MDT0000_UUID", StatfsReply(8 << 20, 6 << 20, 5 << 20, 1000, 900, 0), "/m[MDT:0]"),
        ("lustre-OST0000_UUID", StatfsReply(2 << 30, 1 << 30, 1 << 30, 50, 40, 0), "/m[OST:0]"),
        ("lustre-OST0001_UUID", None, "/m[OST:1]"),
    ]
    assert llfs.df_text(rows, "/m").splitlines() == [
        "UUID                   1K-blocks        Used   Available Use% Mounted on",
        "lustre-MDT0000_UUID         8192        2048        5120  29% /m[MDT:0]",
        "lustre-OST0000_UUID      2097152     1048576     1048576  50% /m[OST:0]",
        "lustre-OST0001_UUID: inactive device",
        "",
        "filesystem_summary:      2097152     1048576     1048576  50% /m",
        "",
    ]
    assert llfs.df_text(rows, "/m", human=True).splitlines()[2].split()[1:5] == ["2.0G", "1.0G", "1.0G", "50%"]
    inodes = llfs.df_text(rows, "/m", inodes=True).splitlines()
    assert inodes[1].split()[1:5] == ["1000", "100", "900", "10%"] and inodes[5].split()[1] == "1000"


def test_wrong_arguments_and_help() -> None:
    runner = CliRunner()
    for words, said in (
        (["setstripe", "-S", "1X", "lustre:/f"], "is no size"),
        (["setstripe", "-S", "1000", "lustre:/f"], "a multiple of 64K"),
        (["setstripe", "-d", "-c", "1", "lustre:/f"], "-d goes without other options"),
        (["fid2path", "lustre", "17"], ""),
    ):
        result = runner.invoke(llfs.llfs, ["--mgsnode", "mgs@sim", *words])
        assert result.exit_code and said in result.output, result.output
    for group, program in ((llfs.llfs, "llfs"), (lustrelite, "lustrelite"), (llctl, "llctl")):
        for name in group.commands:
            if name != "sim":  # whose help is the simulator's own
                assert f"  {program} " in runner.invoke(group, [name, "--help"]).output.partition("Usage:")[2].partition("\n")[2], name
    for shell in ("bash", "zsh", "fish"):
        result = runner.invoke(lustrelite, ["completion", shell])
        assert result.exit_code == 0 and "_LLFS_COMPLETE" in result.output


@pytest.mark.parametrize(("group", "program"), [(lustrelite, "lustrelite"), (llctl, "llctl")])
def test_examples_are_what_the_commands_understand(
    group: click.Group, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, context: value)  # the files are not here
    assert EXAMPLES[program].keys() == group.commands.keys() - {"completion"}
    for name, lines in EXAMPLES[program].items():
        for line in lines:
            words = shlex.split(line)
            assert words[0] == program
            with group.make_context(program, words[1:]) as context:
                found, command, rest = group.resolve_command(context, context._protected_args + context.args)
                assert found == name and command is not None
                command.make_context(name, rest, parent=context)
