"""mount.lustrelite and umount.lustrelite: a file system in the tree of this machine, as mount(8) and people call it.

`mount.lustrelite SOURCE DIR` returns when the mount can be used, or says in one line why not; a process stays behind
(fuse/process.py). `umount.lustrelite DIR` returns when that process has written back everything and is gone.

SOURCE is MGSNID[,MGSNID...]:/FSNAME; a bare HOST is HOST:988@tcp.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import math
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from lustrelite import control
from lustrelite.alive import runs
from lustrelite.cli.errors import Refused, run
from lustrelite.cli.mounts import check_sockets, default_run_dir, forget_dead, forget_unmounted, parse_source, record_of
from lustrelite.errors import OpError
from lustrelite.fuse import attach
from lustrelite.ids import Nid

WAIT_S = 60.0  # for the servers, at the mount
LEAVE_S = 100.0  # for the process, at the unmount: longer than a recovery may take
KILL_S = 10.0  # for it to be gone when it is killed
FORCE_S = 2.0  # for it to hear that it is not to wait for servers
POLL_S = 0.01
PIPE_BYTES = 1 << 16
HINT_ENDS = b"\0"  # what follows the last one is the last word
NAME_BYTES_MAX = 80  # sockets are called by it, whose names may have 108 bytes (control.py)
# options of fstab(5) that are other programs' business
IGNORED = ("auto", "noauto", "_netdev", "nofail", "group", "owner", "dev", "suid", "default_permissions", "allow_root",
           "user_id", "group_id", "rootmode", "fd", "max_read", "blksize", "lazytime", "nolazytime", "diratime", "silent", "loud")  # fmt: skip
AS_IT_IS = ("flock", "acl", "user_xattr", "checksum", "always_ping")  # of mount.lustre(8): so it is here in any case
FIXED = {  # what is decided at the mount for as long as it lasts: option -> (name, value)
    "nocache": ("nocache", True), "allow_other": ("allow_other", True), "noallow_other": ("allow_other", False),
    "allow_remote": ("allow_remote", True),
}  # fmt: skip


def options_of(source: str, mgsnode: list[Nid], fsname: str, point: str, text: str, run_dir: Path, log_dir: Path | None,
               settings: tuple[str, ...] = ()) -> argparse.Namespace:
    """What the process is told; `text` is of -o.  Refused: an unknown option"""
    texts = [option for option in text.split(",") if option]
    flags, left = attach.parse_flags(texts, attach.flags_of(point) if "remount" in texts else 0)
    options = argparse.Namespace(
        name=_name_of(point), run_dir=run_dir, log_dir=log_dir, metrics_port=0,
        metrics_host="127.0.0.1", allow_remote=False, set=list(settings), source=source, mgsnode=mgsnode, fsname=fsname,
        mountpoint=point, flags=flags, allow_other=os.geteuid() == 0, wait_s=WAIT_S,
        noatime=bool(flags & attach.MS_NOATIME), strictatime=bool(flags & attach.MS_STRICTATIME), fixed={},
    )  # fmt: skip
    for option in left:
        name, _, value = option.partition("=")
        if name in FIXED:
            options.fixed.update([FIXED[name]])
        elif option in ("failout", "failover"):
            options.set.append(f"tunables.failover_mode={option}")
        elif name == "wait":
            options.wait_s = _seconds(value)
        elif name == "param":
            options.set.append(value.replace(":", "=", 1))
        elif not (name in IGNORED or option in AS_IT_IS or name.startswith(("x-", "comment", "user", "uhelper", "helper", "X-"))):
            raise Refused(f"unknown mount option {option!r} (see `mount.lustrelite --help`)")
    options.allow_other = options.fixed.get("allow_other", options.allow_other)
    options.allow_remote = options.fixed.get("allow_remote", False)
    if options.fixed.get("nocache") and not flags & attach.MS_REMOUNT:
        options.set.append("tunables.caching=0")
    return options


def _name_of(point: str) -> str:
    """Of its process: it stands in file names and in what clients tell servers."""
    name = "mount" + point.replace("/", "-")
    if len(os.fsencode(name)) <= NAME_BYTES_MAX and name.isprintable():
        return name
    return f"mount-{hashlib.sha256(os.fsencode(point)).hexdigest()[:16]}"


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise Refused(f"wait={text}: for how many seconds?")
    return found


def mount(options: argparse.Namespace, *, foreground: bool = False) -> int:
    """Mount; in the foreground until it is unmounted, else until it can be used. Returns the exit status.  Refused"""
    point = options.mountpoint
    if options.flags & attach.MS_REMOUNT:
        return _remount(options)
    if attach.device_of(point):  # before anything is asked of it: its servers may be away
        raise Refused(f"{point}: a file system of ours is mounted there already; unmount it first (umount {point})")
    if not os.path.isdir(point):
        raise Refused(f"{point} is no directory: make it first (mkdir)")
    check_sockets(options.mgsnode)
    forget_dead(options.run_dir)
    # The client and all it needs: for nothing else here is it imported.
    from lustrelite.fuse import process as fuse_process

    if foreground:
        return fuse_process.run(options, lambda: None, _complain, lambda _: None)  # its log says that, too
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        _stay_behind(options, theirs, fuse_process.run)
    os.close(theirs)
    try:
        said = _last_word(ours)
    except BaseException:  # Ctrl-C: nothing stays behind
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
    if said != "ready":
        raise Refused(said or f"the process of the mount died; see {options.log_dir or 'its log'}")
    return 0


def _last_word(pipe: int) -> str:
    """What the process says in the end, "ready" or why not; what it waits for meanwhile is passed on."""
    left = b""
    with open(pipe, "rb", buffering=0) as file:
        while data := file.read(PIPE_BYTES):
            *hints, left = (left + data).split(HINT_ENDS)
            for hint in hints:
                _complain(hint.decode(errors="replace"))
    return left.decode(errors="replace")


def _remount(options: argparse.Namespace) -> int:
    """Change what can be changed of a mount: all that is asked for, or nothing.  Refused

    The flags are the kernel's; access times and parameters are those of the process behind it.
    """
    point = options.mountpoint
    mounted = attach.mounted_at(point)
    if mounted is None:
        raise Refused(f"{point}: nothing of ours is mounted there")
    if parse_source(options.source) != parse_source(mounted.source):
        raise Refused(f"{point}: {mounted.source} is mounted there, not {options.source}: a remount cannot change that")
    assignments = [assignment.partition("=") for assignment in options.set]
    if bad := next(("".join(parts) for parts in assignments if not parts[1]), ""):
        raise Refused(f"parameter {bad!r}: which value shall it have?")
    record = record_of(point, [options.run_dir])
    if assignments and not record:
        raise Refused(f"{point}: its process is gone, or not known here (another user's, or another --run-dir): no parameter can be set")
    now: dict[str, bool] = {"allow_other": "allow_other" in mounted.options}
    if record:
        now.update(control.call(Path(str(record["control"])), "options"))
    if fixed := [name for name, (key, value) in FIXED.items() if key in options.fixed and options.fixed[key] == value != now.get(key)]:
        raise Refused(f"{point}: {', '.join(fixed)}: a remount cannot change that; unmount it and mount it anew")
    flags = attach.flags_of(point)
    try:
        attach.remount(point, options.flags)
    except OpError as error:
        what = "files on it are open for writing" if error.errno == errno.EBUSY else os.strerror(error.errno)
        raise Refused(f"{point}: {what}") from None
    if record:
        try:
            control.call(
                Path(str(record["control"])), "remount", noatime=options.noatime, strictatime=options.strictatime,
                params=[(name, value) for name, _, value in assignments],
            )  # fmt: skip
        except control.ControlFailed as error:
            attach.remount(point, flags)
            raise Refused(f"{point}: {error}") from None
    return 0


def _stay_behind(options: argparse.Namespace, pipe: int, serve: Callable[..., int]) -> NoReturn:
    """The child: a process without a terminal."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)

    def say(text: str) -> None:
        nonlocal pipe
        if pipe >= 0:
            os.write(pipe, text.encode(errors="backslashreplace"))
            os.close(pipe)
            pipe = -1

    def hint(text: str) -> None:
        if pipe >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, text.encode(errors="backslashreplace") + HINT_ENDS)

    status = 70
    try:
        status = serve(options, lambda: say("ready"), say, hint)
    except BaseException as error:
        say(f"crashed: {error!r}")
        raise
    finally:
        os._exit(status)


def _complain(text: str) -> None:
    click.echo(f"mount.lustrelite: {text}", err=True)


def unmount(point: str, run_dirs: list[Path], *, force: bool = False, lazy: bool = False) -> None:
    """Unmount, and wait for the clean end of the process behind it.  Refused"""
    record = record_of(point, run_dirs)
    device = attach.device_of(point)
    if not device:
        if record and force and record["state"] != "starting":
            _end(point, record)
            return
        if record:
            what = "is still mounting it" if record["state"] == "starting" else "had it mounted and is still leaving"
            raise Refused(f"{point} is not mounted, but process {record['pid']} {what}: wait for it, or end it (kill {record['pid']})")
        raise Refused(f"{point}: nothing of ours is mounted there")

    def tell(cmd: str, **fields: bool) -> None:
        if record and force:
            _tell(record, cmd, **fields)

    tell("forced", forced=True)
    try:
        if force:
            attach.abort(device)
        attach.detach(point, (attach.MNT_FORCE if force else 0) | (attach.MNT_DETACH if lazy or force else 0))
    except OpError as error:
        tell("forced", forced=False)
        why = error.what if error.errno == errno.EPERM else os.strerror(error.errno)
        if error.errno == errno.EBUSY:
            why = f"somebody works there (`fuser -vm {point}` shows who), or take it away with umount -l"
        raise Refused(f"{point}: {why}") from None
    tell("abort")  # where there is no fusectl, or it is not ours to use, its process hangs up
    if lazy:
        return
    if (elsewhere := attach.points_of(device)) and not force:
        click.echo(f"umount.lustrelite: {point} is unmounted; its file system is still mounted on {', '.join(elsewhere)}", err=True)
        return
    if not record:
        forget_unmounted(point, run_dirs)
        why = "is gone, or not known here (another user's, or another --run-dir)"
        click.echo(f"umount.lustrelite: {point} is unmounted; nobody waits for its process, which {why}", err=True)
        return
    if not _wait_gone(record, LEAVE_S):
        raise Refused(f"{point} is unmounted, but process {record['pid']} {_why_it_stays(record)}")
    _expect_good_end(point, record)


def _end(point: str, record: dict[str, Any]) -> None:
    """End the process that is still leaving: it is told not to wait for servers, and killed if it goes on.  Refused"""
    pid = int(record["pid"])
    if any(line.kind == attach.TYPE and line.point == point for line in attach.mountinfo(Path(f"/proc/{pid}/mountinfo"))):
        raise Refused(f"{point} is mounted in another mount namespace, that of process {pid}: unmount it there (nsenter -m -t {pid})")
    _tell(record, "forced", forced=True)
    _tell(record, "abort")
    if not _wait_gone(record, FORCE_S):
        if runs(record):  # else the number is another one's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not _wait_gone(record, KILL_S):
            raise Refused(f"{point}: process {pid} was killed and does not end: the kernel holds it (/proc/{pid}/stack says where)")
    _take_record(record)
    click.echo(f"umount.lustrelite: process {pid}, which was still leaving {point}, is ended: what it had not written back is lost", err=True)


def _tell(record: dict[str, Any], cmd: str, **fields: bool) -> None:
    with contextlib.suppress(control.ControlFailed, OSError):
        control.call(Path(str(record["control"])), cmd, FORCE_S, **fields)


def _wait_gone(record: dict[str, Any], wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while runs(record):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _why_it_stays(record: dict[str, Any]) -> str:
    try:
        alive = control.call(Path(str(record["control"])), "fuse", FORCE_S)["alive"]
    except (control.ControlFailed, OSError):
        return "does not answer: is it stopped (kill -CONT)?"
    if alive:
        return "still serves it: it is mounted in another mount namespace (of a container, or of unshare)"
    return "still waits for servers to take what was written: start them, or kill it and lose that"


def _expect_good_end(point: str, record: dict[str, Any]) -> None:
    """Who ends in good order and has lost nothing takes his record with him.  Refused"""
    last = _take_record(record)
    if not last:
        return
    if "lost" in last:
        raise Refused(f"{point} is unmounted, but of what was written to {last['lost']} file(s) something is lost; see its log")
    raise Refused(f"{point} is unmounted, but process {record['pid']} died before everything was written back; see its log")


def _take_record(record: dict[str, Any]) -> dict[str, Any]:
    """The last record that the process of `record` left behind, which is removed; empty if it took it with it."""
    path = Path(str(record["control"])).with_name(f"{record['name']}.json")
    try:
        last: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if (last["pid"], last["start_ticks"]) != (record["pid"], record["start_ticks"]):
        return {}  # somebody else's by now
    path.unlink(missing_ok=True)
    return last


def own_run_dir() -> Path:
    """Made by us, for us alone: in one of somebody else he could have us write over any file of ours.  Refused"""
    directory = default_run_dir()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        whose = "belongs to somebody else, or others may write to it"
        raise Refused(f"{directory} {whose}: remove it, or name another (LUSTRELITE_RUN_DIR)")
    return directory


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("directory")
@click.option("-o", "texts", multiple=True, metavar="OPTION[,OPTION]", help="mount options, see below")
@click.option("-f", "--foreground", is_flag=True, help="stay, and log to the terminal")
@click.option("--run-dir", type=click.Path(path_type=Path), help="record and control socket go here [/run/lustrelite]")
@click.option("--log-dir", type=click.Path(path_type=Path), help="log files go here [RUN_DIR/log]")
@click.option("--set", "settings", multiple=True, metavar="PARAM=VALUE", help="set a parameter of this client")
@click.option("-s", is_flag=True, hidden=True)
@click.option("-n", is_flag=True, hidden=True)
@click.option("-v", is_flag=True, hidden=True)
@click.option("-N", "namespace", hidden=True)
@click.option("-t", "kind", hidden=True)
def mount_command(
    source: str, directory: str, texts: tuple[str, ...], foreground: bool, run_dir: Path | None, log_dir: Path | None,
    settings: tuple[str, ...], **_: object,
) -> None:  # fmt: skip
    """Mount the file system SOURCE (MGSNID[,MGSNID]:/FSNAME) on DIRECTORY.

    \b
    mount.lustrelite 10.0.0.1:988@tcp:/lustre /mnt/lustre
    mount -t lustrelite mgs:/lustre /mnt/lustre -o ro
    mgs:/lustre  /mnt/lustre  fuse.lustrelite  _netdev,noatime  0 0      (a line of /etc/fstab)

    \b
    Options: ro, noatime, strictatime, nosuid, nodev, noexec, sync, remount; noallow_other (only for who mounts; for
    others than root allow_other needs user_allow_other in /etc/fuse.conf); nocache (every call goes to the servers);
    failout (calls to an OST that is away for long fail with EIO) or failover (they wait for it), whatever the OSTs say;
    wait=SECONDS for the servers; param=NAME:VALUE, as in osc.*.max_dirty_mb:64; allow_remote (servers on other than
    loopback addresses). flock, acl, user_xattr, checksum and always_ping, as in a line for mount.lustre, change nothing: file
    locks hold on all clients, access control lists and attributes of users are there, data is checked on its way.
    A remount changes flags (ro to sync), failout or failover, and parameters, and refuses to change anything else.
    """
    mgsnode, fsname = parse_source(source)
    directory = attach.resolved(directory)
    where = run_dir or own_run_dir()
    where.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = None if foreground else log_dir or where / "log"
    options = options_of(source, mgsnode, fsname, directory, ",".join(texts), where, log, settings)
    raise click.exceptions.Exit(mount(options, foreground=foreground))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("directory")
@click.option("-f", "--force", is_flag=True, help="at once: whatever waits for it fails, what was not written back is lost")
@click.option("-l", "--lazy", is_flag=True, help="take it out of the tree now; it ends when nobody uses it any more")
@click.option("--run-dir", type=click.Path(path_type=Path), help="where the mount has its record [/run/lustrelite]")
@click.option("-n", is_flag=True, hidden=True)
@click.option("-r", is_flag=True, hidden=True)
@click.option("-v", is_flag=True, hidden=True)
@click.option("-N", "namespace", hidden=True)
@click.option("-t", "kind", hidden=True)
def umount_command(directory: str, force: bool, lazy: bool, run_dir: Path | None, **_: object) -> None:
    """Unmount DIRECTORY, and return when everything is written back and the servers are told."""
    unmount(attach.resolved(directory), [run_dir] if run_dir else [default_run_dir()], force=force, lazy=lazy)


def mount_main() -> None:
    """Entry point of mount.lustrelite."""
    run(mount_command, "mount.lustrelite")


def umount_main() -> None:
    """Entry point of umount.lustrelite."""
    run(umount_command, "umount.lustrelite")


if __name__ == "__main__":
    (umount_main if os.path.basename(sys.argv[0]).startswith("umount") else mount_main)()
