"""Who makes a request: user, group and supplementary groups, as the views of the file system that act for them.

The kernel says user and group; the other groups are read from /proc/PID/status, and believed for a second. Root needs
none. A process that is gone meanwhile has none.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from lustrelite.client.by_fid import FidOperations
from lustrelite.client.fs import FileSystem
from lustrelite.fuse.session import Request
from lustrelite.tunables import limits

GROUPS_S = 1.0
KEPT_MAX = 1024  # processes, and views


class Callers:
    """The views of one mount."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self._views: dict[tuple[int, ...], FidOperations] = {}
        self._groups: dict[int, tuple[float, int, tuple[int, ...]]] = {}  # by process: until, user, groups
        self._now = asyncio.get_running_loop().time

    def view(self, request: Request) -> FidOperations:
        """The file system as the caller may use it."""
        uid, gid = request.uid, request.gid
        cred = (uid, gid) if not uid else (uid, gid, *self._groups_of(request))
        view = self._views.get(cred)
        if view is None:
            if len(self._views) >= KEPT_MAX:
                self._views.clear()
            view = self._views[cred] = self.fs.as_user(uid, gid, cred[2:])
        return view

    def _groups_of(self, request: Request) -> tuple[int, ...]:
        pid, now = request.pid, self._now()
        known = self._groups.get(pid)
        if known is not None and now < known[0] and known[1] == request.uid:
            return known[2]
        groups = read_groups(pid)
        if len(self._groups) >= KEPT_MAX:
            self._groups.clear()
        self._groups[pid] = now + GROUPS_S, request.uid, groups
        return groups


def read_groups(pid: int) -> tuple[int, ...]:
    """Supplementary groups of a process, at most as many as a credential has."""
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return ()
    at = text.find(b"\nGroups:")
    line = text[at + 8 : text.index(b"\n", at + 1)] if at >= 0 else b""
    return tuple(map(int, line.split()))[: limits.groups_max]
