"""The process behind a mount: it connects, mounts, serves until it is unmounted, and leaves in good order.

It is a client process like others (client_process.py): control socket, metrics, log. Its record has `mountpoint`.

Unmounted (umount(8)): what is dirty is written back, what is open is closed, the servers are told. Who unmounts with
`umount.lustrelite` waits for that, and hears if something is lost that nobody was told of (`lost` in the record, which then
stays behind). SIGTERM and SIGHUP unmount; if the mount is in use it is taken out of the tree at once and served until its last
user is gone, or BUSY_S are over: whoever is left fails, and what was written goes to the servers. Aborted (`umount -f`): the
kernel has failed everything already; servers that do not answer are not waited for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import itertools
from collections.abc import Callable
from typing import Any

from lustrelite.claim import NameTaken
from lustrelite.client.connections import Connections
from lustrelite.client.fs import FileSystem
from lustrelite.client_process import MountProcess
from lustrelite.errors import FormatRefused, LinkLost, OpError
from lustrelite.events import Event
from lustrelite.fuse import attach, kernel
from lustrelite.fuse.mount import Mount, Options
from lustrelite.fuse.session import Session
from lustrelite.params import Param
from lustrelite.process import EXIT_REFUSED, Process
from lustrelite.real_node import loop_factory
from lustrelite.rpc.node import Node
from lustrelite.wire.message import ROOT_CRED

READAHEAD_KIB = 4096
FORCED_S = 3.0  # to say goodbye after an abort
GOODBYE_S = 5.0  # of the time that a process has to stop: for servers that answer, when others have been waited for
BUSY_S = 8.0  # that users of a mount which is to stop have to go away; of the time for stopping the rest is for the goodbye


class Refused(Exception):
    """The mount cannot be made; the text says why and what to do."""


async def connect(node: Node, options: argparse.Namespace) -> FileSystem:
    """The file system, not mounted yet.  Refused: who does not answer"""
    connections = Connections(node, options.fsname)
    where = ", ".join(options.mgsnode)
    try:
        async with asyncio.timeout(options.wait_s):
            await connections.connect(options.mgsnode)
    except TimeoutError:
        imports = connections.imports
        mgs = [connections.config.mgs] if connections.config is not None else []
        misfits = [f"{imp.target} cannot be used: {imp.misfit}" for imp in (*mgs, *imports.values()) if imp.misfit]
        connections.stop()
        if misfits:
            raise Refused(misfits[0]) from None
        silent = [name for name, imp in imports.items() if "-MDT" in name]
        if silent:
            raise Refused(f"{silent[0]} does not answer in {options.wait_s:g} s: is its server up?") from None
        raise Refused(
            f"the MGS at {where} does not answer, or knows no MDT of {options.fsname!r}, in {options.wait_s:g} s: is it up?"
        ) from None
    except OpError as error:
        connections.stop()
        if error.errno == errno.ENOENT:
            raise Refused(f"the MGS at {where} knows no file system {options.fsname!r}") from None
        raise Refused(f"connect to {options.fsname!r} at {where}: {error}") from None
    return FileSystem(connections, ROOT_CRED)


class FuseProcess(MountProcess):
    """A client process with a mount in the kernel."""

    mount: Mount

    def __init__(self, process: Process, fs: FileSystem) -> None:
        super().__init__(process, fs)
        self.forced = False

    def add_mount(self, mount: Mount) -> None:
        """It is in the kernel: show it, and let it be told."""
        self.mount = mount
        process = self.process
        process.tree.add_source(self._fuse_params)
        process.commands["fuse"] = lambda _: self.fuse_counts()
        process.commands["options"] = lambda _: self._fixed_options()
        process.commands["remount"] = self._remount
        process.commands["forced"] = self._will_be_forced
        process.commands["abort"] = lambda _: mount.session.close()

    def _will_be_forced(self, request: dict[str, Any]) -> None:
        """Does `umount -f` follow? Without fusectl the kernel does not tell it from any other end."""
        self.forced = bool(request["forced"])

    def _fixed_options(self) -> dict[str, bool]:
        """The options of the mount that a remount cannot change."""
        options = self.process.options
        return {"nocache": not self.fs.connections.caching, "allow_other": options.allow_other, "allow_remote": options.allow_remote}

    async def _remount(self, request: dict[str, Any]) -> None:
        """Parameters, all or none, and when access times are told: that counts for files that are opened from now on."""
        await self.process.tree.set_all([(str(name), str(value)) for name, value in request["params"]])
        self.mount.options = Options(noatime=bool(request["noatime"]), strictatime=bool(request["strictatime"]))

    def fuse_counts(self) -> dict[str, Any]:
        """What went over the connection to the kernel."""
        session = self.mount.session
        return {
            "requests": {kernel.OP_NAMES.get(number, str(number)): n for number, n in sorted(session.counts.items())},
            "waited": session.waited, "notified": session.notified, "pending": len(session.pending),
            "inodes": len(self.mount.inodes.numbers), "open": len(self.mount.files.handles),
            "epoch": self.mount.inodes.epoch, "alive": session.alive,
            "seconds": {kernel.OP_NAMES[number]: round(took, 6) for number, took in session.seconds.items()},
        }  # fmt: skip

    def _fuse_params(self) -> list[Param]:
        prefix = f"llite/{self.fs.connections.fsname}-{self.fs.connections.uuid[:8]}/fuse"

        def lines() -> str:
            found = self.fuse_counts()
            rows = [f"{key}: {value}" for key, value in found.items() if key not in ("requests", "seconds")]
            for name, count in found["requests"].items():
                rows.append(f"{name}: {count} samples, {found['seconds'].get(name, 0.0):.6f} s waited")
            return "\n".join(rows)

        return [Param(f"{prefix}/stats", lines)]


async def serve(process: Process, tell: Callable[[], None], hint: Callable[[str], None]) -> None:
    """The life of the process; `tell` is called when the mount can be used, `hint` with what it waits for until then."""
    options = process.options
    loop = asyncio.get_running_loop()
    stopped = asyncio.ensure_future(process.stopping.wait())
    connecting = asyncio.ensure_future(connect(process.node, options))

    def say(event: Event) -> None:
        if event.name == "import.silent":
            hint(str(event.fields["message"]))

    process.node.events.sinks.append(say)
    await asyncio.wait({connecting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    process.node.events.sinks.remove(say)
    if not connecting.done():
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        raise Refused("stopped before it was mounted")
    fs = connecting.result()
    session: Session | None = None
    served = FuseProcess(process, fs)
    device = ""
    try:
        await process.devices_are_there()
        try:
            fd, device = await loop.run_in_executor(None, _attach, options)
        except OpError as error:
            raise Refused(error.what if error.errno == errno.EPERM else f"{error.what}: {error}") from None
        session = Session(process.node, fd)
        mount = Mount(fs, session, Options(noatime=options.noatime, strictatime=options.strictatime))
        served.add_mount(mount)
        mount.start()
        await session.initialised
        attach.set_readahead(device, READAHEAD_KIB)
        if fs.connections.config is not None:
            process.follow_params(fs.connections.config)
        process.ready(client=fs.connections.uuid, fsname=options.fsname, device=device)
        tell()
        ends: list[asyncio.Future[Any]] = [session.ended, stopped]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if session.alive:
            await _detach(process, device)
            await asyncio.wait({session.ended}, timeout=BUSY_S)
        process.node.events.emit("fuse.unmounted", mountpoint=options.mountpoint, **_flat(served.fuse_counts()))
    finally:
        aborted = session is not None and session.ended.done() and session.ended.result() == errno.ECONNABORTED
        forced = aborted or served.forced
        if session is not None:
            if session.alive:  # it cannot be served (any longer)
                await _detach(process, device)
            session.close()
            await asyncio.wait({session.closed}, timeout=BUSY_S)
        stopped.cancel()
        await _leave(process, fs, forced)
        if (lost := len(fs.connections.open_files.untold)) and not forced:
            process.write_record(lost=lost)


def _flat(counts: dict[str, Any]) -> dict[str, Any]:
    return {**counts["requests"], **{key: value for key, value in counts.items() if key not in ("requests", "seconds")}}


def _attach(options: argparse.Namespace) -> tuple[int, str]:
    if attach.device_of(options.mountpoint):
        raise Refused(f"{options.mountpoint}: somebody else has just mounted a file system there")
    fd = attach.attach(options.source, options.mountpoint, options.flags, allow_other=options.allow_other)
    return fd, attach.device_of(options.mountpoint)


async def _detach(process: Process, device: str) -> None:
    """Take the file system out of the tree, wherever it is by now: another one may be mounted where it was."""
    loop = asyncio.get_running_loop()
    tried: set[str] = set()
    while (point := next((point for point in attach.points_of(device) if point not in tried), None)) is not None:
        tried.add(point)
        for flags in (0, attach.MNT_DETACH):
            try:
                await loop.run_in_executor(None, attach.detach, point, flags)
                break
            except OpError as error:
                if error.errno not in (errno.EBUSY, errno.EPERM):
                    process.node.events.emit("fuse.not_unmounted", level="warning", why=str(error))
                    break


async def _leave(process: Process, fs: FileSystem, forced: bool) -> None:
    """Servers that are away are waited for, but not by a process that was told to stop: then what they have not got is lost."""
    leaving, stopped = asyncio.ensure_future(fs.unmount()), asyncio.ensure_future(process.stopping.wait())
    if not forced:
        await asyncio.wait({leaving, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not leaving.done():
        left = FORCED_S if forced else process.stop_by - asyncio.get_running_loop().time() - GOODBYE_S
        await asyncio.wait({leaving}, timeout=max(left, 0))
    if leaving.done():
        leaving.result()
        return
    leaving.cancel()
    await asyncio.wait({leaving})
    await fs.give_up()


def _named(options: argparse.Namespace) -> Process:
    """Who is still leaving this mount point has its name, or who has one that looks alike (a-b, a/b): then it is another one."""
    wanted: str = options.name
    for number in itertools.count(2):
        with contextlib.suppress(NameTaken):
            return Process("client", options)
        options.name = f"{wanted}.{number}"
    raise AssertionError


def run(
    options: argparse.Namespace, tell: Callable[[], None], complain: Callable[[str], None], hint: Callable[[str], None]
) -> int:
    """Mount and serve until it is unmounted; returns the exit status."""

    async def main() -> None:
        process = _named(options)
        process.record["mountpoint"] = options.mountpoint
        await process.live(lambda _: serve(process, tell, hint))

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(main())
    except (Refused, FormatRefused, OpError, ValueError, LinkLost, OSError) as error:
        complain(str(error))
        return EXIT_REFUSED
    return 0
