"""The processes of a simulated cluster: servers with their targets, and clients with their recorded operations."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from lustrelite.client.attributes import Stat
from lustrelite.client.fs import FileSystem
from lustrelite.daemon import Daemon
from lustrelite.errors import Deactivated, Evicted, OpError
from lustrelite.faults import Fault
from lustrelite.format import TargetConfig
from lustrelite.ids import Nid
from lustrelite.rpc.client_import import ClientImport
from lustrelite.sim.disk import MAP_BYTES, SimDisks, SimObjectFiles
from lustrelite.sim.model import BY_CLOCK
from lustrelite.sim.node import SimNode
from lustrelite.store.kv import Store
from lustrelite.target.ownership import Owner, Ownership
from lustrelite.target.target import Target
from lustrelite.wire.mdt import RENAME_EXCHANGE

if TYPE_CHECKING:
    from lustrelite.sim.cluster import Cluster

_T = TypeVar("_T")

FSNAME = "lustre"
MGS_NID = Nid("mgs@sim")
CLOCK_NS = range(10**18, 3 * 10**18)  # what clocks show here and on real machines, years 2001 to 2065


class NodeDied(Exception):
    """The process that was to do it was killed."""


class _Done:
    """An act that is over already; may be awaited for the sake of worlds where it takes time."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


DONE = _Done()


class ProcessDisk:
    """daemon.Disk over the simulated disks, as one process sees them: what it has open ends with it."""

    def __init__(self, disks: SimDisks, configs: dict[str, TargetConfig]) -> None:
        self.disks = disks
        self.configs = configs  # by directory
        self.opened: list[Callable[[], None]] = []  # how to close each

    def abort(self) -> None:
        """The process is dead."""
        for close in self.opened:
            close()

    def config(self, directory: str) -> TargetConfig:
        """See daemon.Disk."""
        return self.configs[directory]

    def own(self, directory: str, record: Owner) -> Any:
        """See daemon.Disk."""
        ownership = Ownership(directory)
        if not ownership.try_acquire(record):
            return None
        self.opened.append(ownership.abandon)
        return ownership

    def store(self, directory: str, kind: str) -> Store:
        """See daemon.Disk."""
        store = Store.open(directory, kind, durable=False, map_bytes=MAP_BYTES)
        self.opened.append(store.abort)
        return store

    def files(self, directory: str) -> Any:
        """See daemon.Disk."""
        files = SimObjectFiles(self.disks.object_disk(self.configs[directory].name))
        self.opened.append(files.close)
        return files

    def owner(self, directory: str) -> tuple[int, int]:
        """See daemon.Disk."""
        return 0, 0


class SimProcess:
    """What servers and clients have in common."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.node: SimNode | None = None
        self.boots = 0
        self.skew_ns = 0  # of the clock, from the next start on; `set_clock` for now
        self.kept_faults: list[tuple[str, Fault]] = []  # survive a restart
        self.tunables: dict[str, Any] = {}  # that are not the cluster's, from the next start on

    @property
    def alive(self) -> bool:
        """Is it running?"""
        return self.node is not None and not self.node.dead

    def _boot(self) -> SimNode:
        assert not self.alive, f"{self.name} is running"
        cluster = self.cluster
        self.boots += 1
        node = SimNode(
            cluster.loop, cluster.net, self.name, seed=cluster.seed, boot=self.boots,
            tunables=replace(cluster.tunables, **self.tunables), skew_ns=self.skew_ns,
        )  # fmt: skip
        node.events.sinks.append(cluster.record)
        node.on_crash = lambda why: self._crashed(node)
        for point, fault in self.kept_faults:
            if fault.times:
                node.faults.arm(point, fault)
        self.node = node
        return node

    def _crashed(self, node: SimNode) -> None:
        self.cluster.failures.extend((self.name, why, trace) for why, trace in node.failures)
        self._kill(node, silent=False)

    def _kill(self, node: SimNode, silent: bool) -> None:
        node.kill(silent=silent)
        self.cluster.dead_nodes.append(node)

    def kill(self, *, silent: bool = False) -> Awaitable[None]:
        """`kill -9`; with `silent` its whole machine goes without closing a connection."""
        if self.alive:
            assert self.node is not None
            self._kill(self.node, silent)
        return DONE

    def pause(self) -> Awaitable[None]:
        """SIGSTOP."""
        assert self.node is not None
        self.node.pause()
        return DONE

    def resume(self) -> Awaitable[None]:
        """SIGCONT."""
        if self.node is not None and self.node.paused:
            self.node.resume()
            self.cluster.note_trouble(self.name)
        return DONE

    def set_clock(self, skew_s: float) -> None:
        """Set its wall clock this far ahead of the world's, now and after a restart."""
        self.skew_ns = int(skew_s * 1e9)
        self.cluster.oracle.clocks_differ |= bool(self.skew_ns)
        if self.node is not None:
            self.node.skew_ns = self.skew_ns


class SimServer(SimProcess):
    """An MGS, MDS or OSS."""

    def __init__(self, cluster: Cluster, name: str, configs: Sequence[TargetConfig]) -> None:
        super().__init__(cluster, name)
        self.nid = Nid(f"{name}@sim")
        self.configs = list(configs)
        self.daemon: Daemon | None = None
        self.partner: SimServer | None = None  # the other one of a failover pair: whoever comes second waits

    @property
    def targets(self) -> Sequence[str]:
        """Names of its targets, running or not."""
        return [config.name for config in self.configs]

    @property
    def waits(self) -> bool:
        """Is it a standby, all of whose targets the other one runs?"""
        return self.alive and not self.running and self.partner is not None

    @property
    def running(self) -> list[Target]:
        """Its targets, if it is alive."""
        return list(self.daemon.targets.values()) if self.alive and self.daemon is not None else []

    def target(self, name: str = "") -> Any:
        """One of its targets (by default the first)."""
        assert self.daemon is not None
        return self.daemon.targets[name or self.configs[0].name]

    async def start(self, *, abort_recovery: bool = False) -> None:
        """Start the process and its targets; of a pair, return when each of these runs, or waits for its owner's death."""
        node = self._boot()
        disk = ProcessDisk(self.cluster.disks, self.cluster.configs)
        self.daemon = daemon = Daemon(node, disk=disk, mgs_nids=[MGS_NID], pid=self.boots)
        node.on_kill.append(lambda: self._abort(daemon, disk))

        async def boot() -> None:
            await daemon.listen(self.nid)
            await daemon.start_targets(
                [str(self.cluster.disks.directory(config.name)) for config in self.configs],
                wait=self.partner is not None, abort_recovery=abort_recovery,
                on_wait=lambda config: settled.append(config.name), on_start=started,
            )  # fmt: skip

        def started(target: Target) -> None:
            settled.append(target.name)
            self.cluster.started(target)

        settled: list[str] = []
        if self.partner is None:
            try:
                await self.cluster.finish(node, boot(), "boot")
            except asyncio.CancelledError:
                self.kill(silent=False)  # nobody goes on with it
                raise
        else:
            node.spawn(boot(), "boot")
            await self.cluster.until(lambda: node.dead or set(settled) == set(self.targets))

    def _abort(self, daemon: Daemon, disk: ProcessDisk) -> None:
        self.cluster.died(self)
        daemon.kill()
        disk.abort()

    async def stop(self) -> None:
        """Stop in good order."""
        if not self.alive:
            return
        assert self.node is not None and self.daemon is not None
        node = self.node
        await self.cluster.finish(node, self.daemon.stop(), "stop")
        self._kill(node, silent=False)

    async def prepare_power_cuts(self) -> None:
        """See world.Server: these disks always know."""

    def power_cut(self) -> Awaitable[None]:
        """The machine loses its power: what the disks had not made durable is gone."""
        self.kill(silent=True)
        theirs = [target.name for target in self.partner.running] if self.partner is not None else []
        for config in self.configs:
            if config.kind == "OST" and config.name not in theirs:
                lost = self.cluster.disks.object_disk(config.name).power_cut(self.cluster.random)
                self.cluster.note("power.cut", target=config.name, lost=lost)
        return DONE

    def slow_disk(self, seconds: float) -> None:
        """From now on, until the next start, what this process asks of its disks takes up to so long; 0: no more."""
        if self.node is not None:
            if self.node.slow_s:
                self.cluster.note_trouble(self.name)
            self.node.slow_s = seconds

    def hold_commits(self, target: str = "", *, except_for: str = "") -> Awaitable[None]:
        """Commit nothing from now on (replay_barrier)."""
        for running in self.running:
            if not target or running.name == target:
                running.committer.hold()
        return DONE

    def release_commits(self, target: str = "") -> Awaitable[None]:
        """Commit again."""
        for running in self.running:
            if not target or running.name == target:
                running.committer.release()
        return DONE

    async def commit(self, target: str = "") -> None:
        """Everything executed so far is durable when this returns."""
        assert self.node is not None
        for running in self.running:
            if not target or running.name == target:
                await self.cluster.finish(self.node, running.committed(), "commit")

    def abort_recovery(self) -> Awaitable[None]:
        """As `llctl abort_recovery`, on all its targets."""
        for running in self.running:
            running.abort_recovery()
        return DONE

    async def status(self) -> Mapping[str, Mapping[str, Any]]:
        """See world.Server."""
        return {
            target.name: {
                "instance": target.instance,
                "last_transno": target.last_transno,
                "last_committed": target.last_committed,
                "recovering": target.recovering,
                "clients": list(target.exports),
                "recovery": target.recovery.status() if target.recovery is not None else None,
            }
            for target in self.running
        }


class SimFile:
    """An open file of a client; what is done with it is recorded."""

    def __init__(self, client: SimClient, file: Any, handle: int, path: str) -> None:
        self.client = client
        self.file = file
        self.handle = handle
        self.path = path

    async def pread(self, size: int = -1, offset: int = 0) -> bytes:
        """Read; the whole file is checked by the oracle, a part is not."""
        if size < 0 and not offset:
            return bytes(await self.client.do("pread", (self.handle,), lambda fs: self.file.pread(-1, 0), bytes))
        return bytes(await self.client.unrecorded(self.file.pread(size, offset)))

    async def pwrite(self, data: bytes, offset: int = 0) -> None:
        """Write at `offset`."""
        await self.client.do("pwrite", (self.handle, offset, bytes(data)), lambda fs: self.file.pwrite(data, offset))

    async def fsync(self) -> None:
        """Return when data and name are durable."""
        await self.client.unrecorded(self.file.fsync())

    async def close(self, *, late: bool = False) -> None:
        """Close it; `late`: as the kernel does, which does not wait for it."""
        await self.client.do("close", (self.handle,), lambda fs: close_late(self.file) if late else self.file.close())
        if self in self.client.files:
            self.client.files.remove(self)


async def close_late(file: Any) -> None:
    """What a mount does at RELEASE."""
    file.close_later()


class SimClient(SimProcess):
    """A mount. Operations run in its node's context and end with it; each is recorded in the oracle's history."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name)
        self.fs: FileSystem
        self.uuids: dict[str, None] = {}  # of all its mounts
        self.files: list[SimFile] = []  # open ones
        self.life = name  # as the oracle knows this mount: a client that was started again is somebody else
        self._handles = 0

    @property
    def uuid(self) -> str:
        """The mount's UUID."""
        return self.fs.connections.uuid

    @property
    def imports(self) -> list[ClientImport]:
        """Its connections to the targets."""
        return list(self.fs.connections.imports.values()) if self.alive and hasattr(self, "fs") else []

    async def start(self) -> None:
        """Mount."""
        node = self._boot()
        self.life = self.name if self.boots == 1 else f"{self.name}{self.boots}"
        if node.tunables.caching:
            self.cluster.oracle.caching[self.life] = None
        self.fs = await self.cluster.finish(node, FileSystem.mount(node, [MGS_NID], FSNAME), "mount")
        self.uuids[self.uuid] = None
        self.files.clear()

    def _kill(self, node: SimNode, silent: bool) -> None:
        self.cluster.oracle.client_gone(self.life, "killed")
        super()._kill(node, silent)

    async def unmount(self) -> None:
        """Leave in good order."""
        assert self.node is not None
        node = self.node
        await self.cluster.finish(node, self.fs.unmount(), "unmount")
        SimProcess._kill(self, node, False)

    async def unrecorded(self, coro: Coroutine[Any, Any, _T]) -> _T:
        """Run something of this client that the oracle need not know."""
        assert self.node is not None
        return await self.cluster.finish(self.node, coro, "call")

    async def do(
        self, name: str, args: tuple[Any, ...], call: Callable[[FileSystem], Coroutine[Any, Any, Any]],
        result_of: Callable[[Any], Any] = lambda result: None,
    ) -> Any:  # fmt: skip
        """Record the operation `name` and do it by `call`; returns what `call` returns."""
        assert self.node is not None, f"{self.name} is not mounted"
        oracle = self.cluster.oracle
        op = oracle.begin(self.life, name, *args)
        try:
            result = await self.cluster.finish(self.node, call(self.fs), name)
        except (Evicted, Deactivated):
            oracle.unknown(op)
            raise
        except OpError as error:
            oracle.error(op, error.errno)
            raise
        except BaseException:
            oracle.unknown(op)
            raise
        oracle.ok(op, result_of(result))
        return result

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        await self.do("mkdir", (path, mode), lambda fs: fs.mkdir(path, mode))

    async def rmdir(self, path: str) -> None:
        await self.do("rmdir", (path,), lambda fs: fs.rmdir(path))

    async def create(self, path: str, mode: int = 0o644) -> None:
        await self.do("create", (path, mode), lambda fs: fs.create(path, mode))

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        await self.do("write", (path, bytes(data), mode), lambda fs: fs.write_file(path, data, mode))

    async def write_at(self, path: str, offset: int, data: bytes) -> None:
        async def write_at(fs: FileSystem) -> None:
            async with await fs.open(path, os.O_RDWR) as file:
                await file.pwrite(data, offset)

        await self.do("write_at", (path, offset, bytes(data)), write_at)

    async def truncate(self, path: str, size: int) -> None:
        await self.do("truncate", (path, size), lambda fs: fs.truncate(path, size))

    async def fallocate(self, path: str, mode: int, start: int, length: int) -> None:
        async def fallocate(fs: FileSystem) -> None:
            async with await fs.open(path, os.O_RDWR) as file:
                await file.fallocate(mode, start, length)

        await self.do("fallocate", (path, mode, start, length), fallocate)

    async def read(self, path: str) -> bytes:
        return bytes(await self.do("read", (path,), lambda fs: fs.read_file(path), bytes))

    async def unlink(self, path: str) -> None:
        await self.do("unlink", (path,), lambda fs: fs.unlink(path))

    async def rename(self, old: str, new: str) -> None:
        await self.do("rename", (old, new), lambda fs: fs.rename(old, new))

    async def exchange(self, old: str, new: str) -> None:
        await self.do("exchange", (old, new), lambda fs: fs.rename(old, new, RENAME_EXCHANGE))

    async def link(self, path: str, new: str) -> None:
        await self.do("link", (path, new), lambda fs: fs.link(path, new))

    async def symlink(self, target: str, path: str) -> None:
        await self.do("symlink", (target, path), lambda fs: fs.symlink(target, path))

    async def readlink(self, path: str) -> str:
        return str(await self.do("readlink", (path,), lambda fs: fs.readlink(path), str))

    async def chmod(self, path: str, mode: int) -> None:
        await self.do("chmod", (path, mode), lambda fs: fs.chmod(path, mode))

    async def utime(self, path: str, mtime: int, *, atime: int = 1) -> None:
        await self.do("utime", (path, mtime, atime), lambda fs: fs.utimes(path, atime, mtime))

    async def setxattr(self, path: str, name: str, value: bytes, flags: int = 0) -> None:
        await self.do("setxattr", (path, name, value, flags), lambda fs: fs.setxattr(path, name, value, flags))

    async def removexattr(self, path: str, name: str) -> None:
        await self.do("removexattr", (path, name), lambda fs: fs.removexattr(path, name))

    async def getxattr(self, path: str, name: str) -> bytes:
        return bytes(await self.do("getxattr", (path, name), lambda fs: fs.getxattr(path, name), bytes))

    async def listxattr(self, path: str) -> list[str]:
        names = await self.do("listxattr", (path,), lambda fs: fs.listxattr(path), lambda names: tuple(sorted(names)))
        return sorted(names)

    async def stat(self, path: str) -> Any:
        return await self.do(
            "stat", (path,), lambda fs: fs.lstat(path),
            lambda st: (kind_of(st.mode), stat.S_IMODE(st.mode), st.nlink, time_of(st, st.mtime), time_of(st, st.atime)),
        )  # fmt: skip

    async def exists(self, path: str) -> bool:
        async def exists(fs: FileSystem) -> bool:
            try:
                await fs.lstat(path)
            except OpError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    return False
                raise
            return True

        return bool(await self.do("exists", (path,), exists, bool))

    async def listdir(self, path: str) -> list[str]:
        names = await self.do("listdir", (path,), lambda fs: fs.readdir(path), lambda names: tuple(sorted(names)))
        return sorted(names)

    async def open(self, path: str, *, create: bool = False, read_only: bool = False) -> SimFile:
        self._handles += 1
        handle = self.cluster.new_handle()
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | (os.O_CREAT if create else 0)
        file = await self.do("open", (path, create, handle), lambda fs: fs.open(path, flags, 0o644))
        self.files.append(SimFile(self, file, handle, path))
        return self.files[-1]


def kind_of(mode: int) -> str:
    """The model's word for a file type."""
    if stat.S_ISDIR(mode):
        return "dir"
    return "file" if stat.S_ISREG(mode) else "symlink" if stat.S_ISLNK(mode) else "other"


def time_of(st: Stat, time: int) -> int | None:
    """The model's word for a file's time of change or access: one that no clock shows was set."""
    if not stat.S_ISREG(st.mode):
        return None
    return BY_CLOCK if time in CLOCK_NS else time
