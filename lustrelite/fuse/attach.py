"""Mounting and unmounting: mount(2) for root, fusermount3 for everybody else.

Nothing here looks at the mount point through the file system that is being mounted: who answers that is us.
Source: mount_fusefs(8) of libfuse for the socket of fusermount3; fs/fuse/inode.c for the options of mount(2)
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lustrelite.errors import OpError

DEVICE = "/dev/fuse"
TYPE = "fuse.lustrelite"
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_REMOUNT = 1, 2, 4, 8, 16, 32
MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME, MS_RELATIME, MS_STRICTATIME = 128, 1024, 2048, 1 << 21, 1 << 24
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8
FUSERMOUNT = ("fusermount3", "fusermount")
_ATIMES = MS_NOATIME | MS_RELATIME | MS_STRICTATIME

# option of mount(8) -> (flags that it sets, flags that it clears)
FLAGS: dict[str, tuple[int, int]] = {
    "ro": (MS_RDONLY, 0), "rw": (0, MS_RDONLY), "nosuid": (MS_NOSUID, 0), "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0), "dev": (0, MS_NODEV), "noexec": (MS_NOEXEC, 0), "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0), "async": (0, MS_SYNCHRONOUS), "dirsync": (MS_DIRSYNC, 0),
    "noatime": (MS_NOATIME, _ATIMES), "atime": (0, MS_NOATIME), "nodiratime": (MS_NODIRATIME, 0),
    "relatime": (MS_RELATIME, _ATIMES), "strictatime": (MS_STRICTATIME, _ATIMES), "remount": (MS_REMOUNT, 0),
    "user": (MS_NOSUID | MS_NODEV, 0), "users": (MS_NOSUID | MS_NODEV, 0), "nouser": (0, 0), "defaults": (0, 0),
}  # fmt: skip


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _refused(what: str) -> OpError:
    number = ctypes.get_errno()
    return OpError(number, what)


def attach(source: str, point: str, flags: int, *, allow_other: bool) -> int:
    """Mount `source` on the directory `point`; returns the descriptor of the connection.  OpError"""
    if not os.path.exists(DEVICE):
        raise OpError(errno.ENODEV, f"{DEVICE} is missing: the kernel has no FUSE, or `modprobe fuse` was not run")
    if os.geteuid() == 0:
        return _attach_as_root(source, point, flags, allow_other)
    return _attach_as_user(source, point, flags, allow_other)


def _attach_as_root(source: str, point: str, flags: int, allow_other: bool) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    if allow_other:
        options += ",allow_other"
    if _libc().mount(source.encode(), os.fsencode(point), TYPE.encode(), ctypes.c_ulong(flags), options.encode()):
        os.close(fd)
        raise _refused(f"mount on {point}")
    return fd


def _attach_as_user(source: str, point: str, flags: int, allow_other: bool) -> int:
    program = next((found for name in FUSERMOUNT if (found := shutil.which(name))), None)
    if program is None:
        raise OpError(errno.ENOENT, "fusermount3 is not installed (package fuse3): only root can mount without it")
    options = [f"fsname={source.replace(',', chr(92) + ',')}", "subtype=lustrelite", "default_permissions"]
    options += ["allow_other"] if allow_other else []
    options += ["ro"] if flags & MS_RDONLY else []
    options += ["noexec"] if flags & MS_NOEXEC else []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = subprocess.run(
            [program, "-o", ",".join(options), "--", point], pass_fds=[theirs.fileno()], check=False,
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise OpError(errno.EPERM, done.stderr.strip() or f"{program} failed")
        theirs.close()
        fds = array.array("i")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(fds.itemsize))
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: fds.itemsize])
    if not fds:
        raise OpError(errno.EPROTO, f"{program} handed over no connection")
    os.set_inheritable(fds[0], False)
    return fds[0]


def remount(point: str, flags: int) -> None:
    """Change the flags of a mount.  OpError"""
    if _libc().mount(b"none", os.fsencode(point), None, ctypes.c_ulong(flags | MS_REMOUNT), None):
        raise _refused(f"remount of {point}")


def detach(point: str, flags: int = 0) -> None:
    """Unmount; `flags` are MNT_FORCE, MNT_DETACH. May wait for whoever serves the mount.  OpError: EBUSY, EINVAL"""
    if os.geteuid() == 0:
        if _libc().umount2(os.fsencode(point), flags | UMOUNT_NOFOLLOW):
            raise _refused(f"unmount of {point}")
        return
    program = next((found for name in FUSERMOUNT if (found := shutil.which(name))), None)
    if program is None:
        raise OpError(errno.ENOENT, "fusermount3 is not installed (package fuse3)")
    arguments = ["-u", *(["-z"] if flags & MNT_DETACH else [])]
    done = subprocess.run([program, *arguments, "--", point], check=False, capture_output=True, text=True)
    if done.returncode:
        raise OpError(errno.EBUSY if "busy" in done.stderr else errno.EPERM, done.stderr.strip())


class Line(NamedTuple):
    """A mount of this machine."""

    point: str
    root: str  # what of the file system is mounted there
    device: str  # MAJOR:MINOR
    options: list[str]  # of the mount and of the file system
    kind: str
    source: str


def mountinfo(path: Path = Path("/proc/self/mountinfo")) -> list[Line]:
    """All mounts, the newest last. Paths are bytes, of which only blanks and newlines mean anything (proc(5))."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        left, _, right = line.partition(b" - ")
        fields, rest = left.split(b" "), right.split(b" ")
        if len(fields) >= 6 and len(rest) >= 2:
            options = b",".join([fields[5], *rest[2:3]]).decode(errors="replace").split(",")
            found.append(Line(_plain(fields[4]), _plain(fields[3]), fields[2].decode(), options, rest[0].decode(), _plain(rest[1])))
    return found


def _plain(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match.group(1), 8)]), field))


def mounted_at(point: str) -> Line | None:
    """The mount of ours on the absolute path `point`, which is not looked at: whoever serves it may hang."""
    return next((line for line in reversed(mountinfo()) if line.kind == TYPE and line.point == point), None)


def device_of(point: str) -> str:
    """MAJOR:MINOR of the mount on `point`, "" if there is none."""
    found = mounted_at(point)
    return found.device if found is not None else ""


def points_of(device: str) -> list[str]:
    """Where the file system of ours with that device number is mounted and not hidden by another mount, the newest first."""
    lines = mountinfo()
    top = {line.point: line.device for line in lines}
    return [line.point for line in reversed(lines) if line.kind == TYPE and line.device == device and top[line.point] == device]


def resolved(point: str) -> str:
    """The path of a mount point without symlinks, as the kernel has it; a mount of ours is not looked at."""
    path = os.path.abspath(point)
    beside = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    ours = {line.point for line in mountinfo() if line.kind == TYPE}
    return next((one for one in (path, beside) if one in ours), None) or os.path.realpath(path)


def flags_of(point: str) -> int:
    """The flags with which it is mounted."""
    found = mounted_at(point)
    options = found.options if found is not None else []
    flags, _ = parse_flags(["rw", *(option for option in options if option != "rw")])
    return flags if flags & (MS_NOATIME | MS_RELATIME) else flags | MS_STRICTATIME


def set_readahead(device: str, kib: int) -> bool:
    """How far the kernel reads ahead on the mount; its own default is 128 KiB. False without the right to."""
    try:
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(kib))
    except OSError:
        return False
    return True


def abort(device: str) -> bool:
    """Have the kernel fail everything that waits for the mount. False without the right to, or without fusectl."""
    minor = device.partition(":")[2]
    try:
        Path(f"/sys/fs/fuse/connections/{minor}/abort").write_text("1")
    except OSError:
        return False
    return True


def parse_flags(options: Sequence[str], flags: int = 0) -> tuple[int, list[str]]:
    """(flags of mount(2), what is left) of -o options, which change `flags`."""
    left = []
    for option in options:
        if option in FLAGS:
            put, clear = FLAGS[option]
            flags = flags & ~clear | put
        else:
            left.append(option)
    return flags, left
