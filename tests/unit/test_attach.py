"""What other mounts of this machine are called is no business of ours."""

from __future__ import annotations

import os
from pathlib import Path

from lustrelite.fuse import attach

LINES = (
    rb"24 1 0:22 / /mnt/a\040b\134c rw,nosuid,relatime shared:1 - fuse.lustrelite mgs@unix:/lustre rw,user_id=0,sync",
    "25 1 0:23 / /mnt/x\x0cy\u2028z\u00a0\udcff rw - tmpfs none rw".encode("utf-8", "surrogateescape"),
    rb"26 1 0:24 /sub /mnt/d ro - fuse.lustrelite mgs:/x ro",
    b"",
)


def test_mount_points_are_bytes(tmp_path: Path) -> None:
    path = tmp_path / "mountinfo"
    path.write_bytes(b"\n".join(LINES))
    first, other, last = attach.mountinfo(path)
    assert (first.point, first.root, first.device, first.kind) == ("/mnt/a b\\c", "/", "0:22", attach.TYPE)
    assert first.options == ["rw", "nosuid", "relatime", "rw", "user_id=0", "sync"]
    assert os.fsencode(other.point) == b"/mnt/x\x0cy\xe2\x80\xa8z\xc2\xa0\xff"
    assert (last.point, last.root, last.source, last.options) == ("/mnt/d", "/sub", "mgs:/x", ["ro", "ro"])


def test_options_change_the_flags_that_are_there() -> None:
    there = attach.MS_NOSUID | attach.MS_RELATIME
    assert attach.parse_flags(["ro", "noatime", "x"], there) == (attach.MS_NOSUID | attach.MS_RDONLY | attach.MS_NOATIME, ["x"])
    assert attach.parse_flags(["rw"], attach.MS_RDONLY) == (0, [])


def test_a_mount_point_is_a_path_without_symlinks(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert attach.resolved(f"{tmp_path}/link/../link/") == str(tmp_path / "real")
