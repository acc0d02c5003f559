"""Which file system a path is about: one that is mounted on this machine, or FSNAME:/path of a cluster.

A mounted one is found in /proc/self/mountinfo, never by looking at the path: whoever asks may do so because the mount
hangs. The command then is a client of its own beside the mount; locks keep the two coherent.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from lustrelite.cli.context import where
from lustrelite.cli.errors import Refused
from lustrelite.cli.files import remote
from lustrelite.cli.mount_helper import default_run_dir, parse_source, record_of
from lustrelite.fuse.attach import TYPE
from lustrelite.ids import Nid

MOUNTINFO = Path("/proc/self/mountinfo")


class Mounted(NamedTuple):
    """A file system mounted on this machine."""

    point: str
    root: str  # what of it is mounted: "/" is all
    nids: tuple[Nid, ...]  # of the MGS
    fsname: str


class Place(NamedTuple):
    """What a command is about."""

    nids: tuple[Nid, ...]
    fsname: str
    path: str  # in the file system
    prefix: str  # what stands before paths of the file system, as the user sees them: a mount point or ""
    root: str = "/"  # what of it the mount shows

    def shown(self, path: str) -> str:
        """A path of the file system, as the user would write it."""
        if self.root != "/":
            if path != self.root and not path.startswith(f"{self.root}/"):
                return path
            path = path[len(self.root) :] or "/"
        return f"{self.prefix}{path}" if path != "/" or not self.prefix else self.prefix


def mounts() -> list[Mounted]:
    """Every mount of ours, the last one made last."""
    found = []
    for line in MOUNTINFO.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, source = rest.split()[:2]
        if kind != TYPE:
            continue
        root, point = (_plain(field) for field in fields.split()[3:5])
        try:
            nids, fsname = parse_source(_plain(source))
        except Refused:
            continue
        found.append(Mounted(point, root, tuple(nids), fsname))
    return found


def _plain(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def mount_of(path: str) -> Mounted | None:
    """The mount that the absolute `path` is in."""
    best: Mounted | None = None
    for mount in mounts():
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def place_of(text: str) -> Place:
    """Where `text` is: FSNAME:/path, or a path on this machine below a mount.  Refused"""
    if re.match(r"^[-_a-zA-Z0-9]{1,8}:/", text):
        path = remote(text)
        assert path is not None
        nids, fsname = where().mgs()
        return Place(tuple(nids), fsname, path, "")
    local = os.path.abspath(text)
    mount = mount_of(local)
    if mount is None:
        local = os.path.realpath(local)
        mount = mount_of(local)
    if mount is None:
        raise Refused(f"{text} is on no lustrelite mount of this machine; of a cluster write FSNAME:/path, as in lustre:/dir")
    below = local[len(mount.point.rstrip("/")) :] or "/"
    path = below if mount.root == "/" else mount.root + ("" if below == "/" else below)
    return Place(mount.nids, mount.fsname, path, mount.point.rstrip("/"), mount.root)


def control_socket(point: str) -> Path | None:
    """The control socket of the process behind the mount at `point`, if this user may know it."""
    record = record_of(point, [default_run_dir(), where().state_dir / "run"])
    return Path(str(record["control"])) if record else None
