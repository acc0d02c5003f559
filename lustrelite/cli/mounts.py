"""Which file system a path is about: one that is mounted on this machine, or FSNAME:/path of a cluster.

A mounted one is found in /proc/self/mountinfo, never by looking at the path: whoever asks may do so because the mount
hangs. The command then is a client of its own beside the mount; locks keep the two coherent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lustrelite.alive import runs
from lustrelite.cli.context import where
from lustrelite.cli.errors import Refused
from lustrelite.fuse.attach import TYPE, mountinfo
from lustrelite.ids import Nid, check_fsname, parse_nid

MOUNTINFO = Path("/proc/self/mountinfo")
PORT = 988
FORGET_S = 600.0  # longer than anybody waits for the end of a mount's process, and then reads how that was
_FSNAME = re.compile(r"^[-_a-zA-Z0-9]{1,8}$")
_REMOTE = re.compile(r"^([-_a-zA-Z0-9]{1,8}):(/.*|)$")


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


def parse_source(source: str) -> tuple[list[Nid], str]:
    """(NIDs of the MGS, name of the file system) of `mgs:/lustre`.  Refused"""
    servers, colon, fsname = source.rpartition(":/")
    if not colon or not servers:
        raise Refused(f"{source!r}: what is to be mounted is MGSNID:/FSNAME, as in mgs1:988@tcp:/lustre")
    try:
        return [_nid(part) for part in servers.split(",")], check_fsname(fsname)
    except ValueError as error:
        raise Refused(str(error)) from None


def _nid(text: str) -> Nid:
    address, at, net = text.rpartition("@")
    if not at:
        address, net = text, "tcp"
    if net == "tcp" and ":" not in address:
        address = f"{address}:{PORT}"
    return parse_nid(f"{address}@{net}")


def check_sockets(nids: Sequence[Nid]) -> None:
    """Refused if all are sockets that only somebody else may connect to: waiting would not help."""
    if nids and all(_is_private(nid) for nid in nids):
        raise Refused(f"no permission to connect to the MGS at {', '.join(nids)}: it is another user's")


def _is_private(nid: Nid) -> bool:
    path, _, net = nid.rpartition("@")
    if net != "unix":
        return False
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, PermissionError)  # its directory; another error: it is not there yet
    return not os.access(path, os.W_OK)


def default_run_dir() -> Path:
    """Where the processes of mounts have their records and control sockets."""
    given = os.environ.get("LUSTRELITE_RUN_DIR")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/run/lustrelite")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "lustrelite" if runtime else Path(f"/tmp/lustrelite-{os.geteuid()}")


def mounts() -> list[Mounted]:
    """Every mount of ours, the last one made last."""
    found = []
    for line in mountinfo(MOUNTINFO):
        if line.kind != TYPE:
            continue
        try:
            nids, fsname = parse_source(line.source)
        except Refused:
            continue
        found.append(Mounted(line.point, line.root, tuple(nids), fsname))
    return found


def mount_of(path: str) -> Mounted | None:
    """The mount that the absolute `path` is in."""
    best: Mounted | None = None
    for mount in mounts():
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def on_mount(name: str) -> bool:
    """Is `name`, seen from the current directory, a mount or something on one? Else it may be that of a file system.

    What can be no file system's name, and what is a mount itself, is not looked at.
    """
    for local in (os.path.abspath(name), os.path.realpath(name)):
        mount = mount_of(local)
        if mount is not None:
            return local == mount.point or not _FSNAME.match(name) or os.path.lexists(local)
    return False


def remote(text: str) -> str | None:
    """The path in the file system of `FSNAME:/path` (or `lustre:/path`), None for a local one."""
    match = _REMOTE.match(text)
    if not match:
        return None
    name, fsname = match.group(1), where().mgs()[1]
    if name not in (fsname, "lustre"):
        raise Refused(f"{text}: the file system is called {fsname!r}")
    return match.group(2) or "/"


def inside(text: str) -> str:
    """An argument that can only be a path in the file system."""
    path = remote(text) or text
    if not path.startswith("/"):
        raise Refused(f"{text}: paths in the file system start with a slash")
    return path


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


def record_of(point: str, run_dirs: list[Path]) -> dict[str, Any]:
    """What the process of a mount says of itself; empty if there is none.

    Who is still leaving an earlier mount there is not meant, nor who has not mounted yet while somebody has.
    """
    found = [record for _, record in _records(point, run_dirs) if runs(record)]
    return max(found, key=lambda record: (record["state"] != "starting", int(record["start_ticks"])), default={})


def _records(point: str, run_dirs: list[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What the processes of mounts there, also of dead ones, have written, and where."""
    for directory in run_dirs:
        for path in sorted(directory.glob("mount*.json")):
            with contextlib.suppress(OSError, ValueError):
                record = json.loads(path.read_text())
                if record.get("mountpoint") == point:
                    yield path, record


def forget_dead(run_dir: Path) -> None:
    """Remove records and control sockets of mounts whose processes were killed, and were seen dead before by a command like this."""
    from lustrelite.claim import bury

    left = [*run_dir.glob("mount*.pid"), *run_dir.glob("mount*.json")]
    for path in sorted({path.with_suffix(".pid") for path in left}):
        with contextlib.suppress(OSError):
            bury(path, FORGET_S)


def forget_unmounted(point: str, run_dirs: list[Path]) -> None:
    """The same, at once, of those whose mount point has just been unmounted although nobody served it any more."""
    from lustrelite.claim import bury

    for path, _ in _records(point, run_dirs):
        with contextlib.suppress(OSError):
            bury(path.with_suffix(".pid"))


def control_socket(point: str) -> Path | None:
    """The control socket of the process behind the mount at `point`, if this user may know it."""
    record = record_of(point, [default_run_dir(), where().state_dir / "run"])
    return Path(str(record["control"])) if record else None
