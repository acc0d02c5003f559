"""A server process put together: a service, its targets, their directories. The same on a real machine and simulated.

    Daemon.start_targets(directories), each:
        own the directory (a standby waits) -> open the store -> start the target -> serve it -> register with the MGS

A target is served before it is registered: the MGS only tells clients where to look.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from lustrelite.errors import OpError
from lustrelite.format import TargetConfig, read_target
from lustrelite.ids import Nid
from lustrelite.mdt.mdt import Mdt
from lustrelite.mgs.mgs import Mgs
from lustrelite.ost.ost import Ost
from lustrelite.params import parse_like
from lustrelite.rpc.config import ConfigFollower
from lustrelite.rpc.links import LinkPool
from lustrelite.rpc.node import Node
from lustrelite.rpc.request import Xids
from lustrelite.rpc.service import Service
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.store.undo import UNDO, UndoFiles
from lustrelite.target.ownership import Owner, Ownership
from lustrelite.target.target import Target
from lustrelite.tunables import FAILOVER_MODE
from lustrelite.wire.mgs import TargetInfo, TargetRegister

OWNER_POLL_S = 0.2
_REFUSALS = {  # of a registration, by errno
    errno.EADDRINUSE: "another target has registered under this name; if that is lost for good, format this one with --replace",
    errno.ESTALE: "a newer incarnation of it has registered: is this an old copy?",
    errno.EINVAL: "the MGS does not take such a target",
}


class Disk(Protocol):
    """Where targets live: the directory tree of this machine, or the simulator's."""

    def config(self, directory: str) -> TargetConfig:
        """What the target in `directory` is."""

    def own(self, directory: str, record: Owner) -> Any:
        """Own the directory (an Ownership), or None if somebody else does."""

    def store(self, directory: str, kind: str) -> Store:
        """Open the store."""

    def files(self, directory: str) -> ObjectFiles:
        """Open the object files of an OST."""

    def owner(self, directory: str) -> tuple[int, int]:
        """User and group whose the directory is: a new file system's root is theirs."""


class RealDisk:
    """This machine's file systems."""

    def config(self, directory: str) -> TargetConfig:
        """What the target in `directory` is."""
        return read_target(directory)

    def own(self, directory: str, record: Owner) -> Ownership | None:
        """Own the directory, or None if somebody else does."""
        ownership = Ownership(directory)
        return ownership if ownership.try_acquire(record) else None

    def store(self, directory: str, kind: str) -> Store:
        """Open the store."""
        return Store.open(directory, kind)

    def files(self, directory: str) -> ObjectFiles:
        """Open the object files of an OST."""
        return UndoFiles(directory) if os.path.isdir(os.path.join(directory, UNDO)) else ObjectFiles(directory)

    def owner(self, directory: str) -> tuple[int, int]:
        """User and group whose the directory is."""
        found = os.stat(directory)
        return found.st_uid, found.st_gid


class Daemon:
    """One server process: `listen`, then `start_target` for each directory."""

    def __init__(self, node: Node, *, disk: Disk | None = None, mgs_nids: Sequence[Nid] = (), pid: int = 0) -> None:
        self.node = node
        self.disk: Disk = disk or RealDisk()
        self.mgs_nids = tuple(mgs_nids)  # overrides what the targets were formatted with
        self.pid = pid or os.getpid()
        self.service = Service(node)
        self.targets: dict[str, Target] = {}
        self.nids: list[Nid] = []
        self.links = LinkPool(node)
        self.xids = Xids(node)
        self.followers: dict[str, ConfigFollower] = {}  # by file system
        self.on_follower: Callable[[ConfigFollower], None] = lambda _: None  # the configuration of another file system is followed
        self.on_devices: Callable[[], None] = lambda: None  # targets, or connections to OSTs, came or went
        self.on_refused: Callable[[str], None] | None = None  # the MGS takes no target of ours into a file system: why
        self.refused: dict[str, str] = {}  # by target name: why the MGS does not take it
        self._deciding: dict[str, asyncio.Future[None]] = {}  # by target name: has the MGS taken or refused it?
        self._owned: dict[str, Any] = {}  # by target name
        self._configs: dict[str, TargetConfig] = {}
        self._registered: dict[str, tuple[Target, TargetRegister]] = {}  # by target name: whom the MGS knows, and how

    async def listen(self, nid: Nid) -> Nid:
        """Accept clients at `nid`; returns the real address."""
        real = await self.service.listen(nid)
        self.nids.append(real)
        return real

    async def start_targets(
        self, directories: Sequence[str], *, wait: bool = False, abort_recovery: bool = False,
        on_wait: Callable[[TargetConfig], None] | None = None, on_start: Callable[[Target], None] | None = None,
    ) -> None:  # fmt: skip
        """Own, open and serve the targets in `directories`.

        With `wait` those that another process owns are waited for (a standby), each for itself, and taken over when
        that is dead. Errors: FormatRefused, Owned, OpError of the disk; EADDRINUSE from the MGS.
        """
        left = {directory: self.disk.config(directory) for directory in directories}
        said: dict[str, None] = {}
        while left:
            for directory, config in list(left.items()):
                ownership = self._own(directory, wait)
                if ownership is not None:
                    del left[directory]
                    target = await self._start(directory, config, ownership, abort_recovery)
                    if on_start is not None:
                        on_start(target)
                elif directory not in said:
                    said[directory] = None
                    self.node.events.emit("target.standby", target=config.name, directory=directory)
                    if on_wait is not None:
                        on_wait(config)
            if left:
                await asyncio.sleep(OWNER_POLL_S)

    async def start_target(self, directory: str) -> Target:
        """One of them, at once.  Errors: as above"""
        await self.start_targets([directory])
        return self.targets[self.disk.config(directory).name]

    def _own(self, directory: str, wait: bool) -> Any:
        """Ownership of `directory`; None to `wait`, else Owned, if another process has it."""
        ownership = self.disk.own(directory, self._owner(0))
        if ownership is None and not wait:
            ownership = Ownership(directory)
            ownership.acquire(self._owner(0))  # raises Owned with the owner's name; or it has just gone
        return ownership

    async def _start(self, directory: str, config: TargetConfig, ownership: Any, abort_recovery: bool) -> Target:
        name = config.name
        try:
            target = self._open(directory, config)
        except BaseException:
            ownership.release()
            raise
        self._owned[name] = ownership
        self._configs[name] = config
        self.targets[name] = target
        try:
            self._set_params(config)
            await target.start(abort_recovery=abort_recovery)
            ownership.update(self._owner(target.instance))
            self.service.add_target(target)
            if config.kind != "MGS":
                self.refused.pop(name, None)
                self._deciding[name] = asyncio.get_running_loop().create_future()
                target.spawn(self._register(target, config), f"register {name}")
            self.on_devices()
        except BaseException:  # as it is found there, so it is left
            if name in self.targets:  # else the whole process was killed meanwhile
                self.targets.pop(name).kill()
                self._owned.pop(name).release()
            raise
        return target

    def _owner(self, instance: int) -> Owner:
        return Owner(self.node.name, self.pid, instance, str(self.nids[0]) if self.nids else "")

    def _open(self, directory: str, config: TargetConfig) -> Target:
        store = self.disk.store(directory, config.kind)
        if config.kind == "MGS":
            return Mgs(self.node, store)
        if config.kind == "MDT":
            return Mdt(
                self.node, store, name=config.name, links=self.links, xids=self.xids, index=config.index,
                root_owner=self.disk.owner(directory),
            )  # fmt: skip
        return Ost(self.node, store, self.disk.files(directory), name=config.name, index=config.index)

    def _set_params(self, config: TargetConfig) -> None:
        for name, value in config.params:
            key = name.rpartition(".")[2]
            current = getattr(self.node.tunables, key, None)
            if name == FAILOVER_MODE:  # for the clients: the MGS tells them
                continue
            if current is None:
                self.node.events.emit("param.unknown", level="warning", target=config.name, param=name)
                continue
            try:
                setattr(self.node.tunables, key, parse_like(current, value))
            except ValueError as error:
                self.node.events.emit("param.refused", level="warning", target=config.name, why=str(error))

    async def _register(self, target: Target, config: TargetConfig) -> None:
        """Tell the MGS where the target runs; an MDT also learns where its OSTs are."""
        follower = self._follower(config)
        place = TargetRegister(
            config.fsname, config.kind, config.index, config.stamp, tuple(map(str, self.nids)), config.failnodes,
            target.instance, config.params, isinstance(target, Ost) and target.ids.replaces,
        )  # fmt: skip
        if isinstance(target, Mdt):
            target.spawn(self._do_without_mgs(target), f"without MGS {target.name}")
        while True:
            try:
                info = await follower.register(place)
                break
            except OpError as error:
                if error.errno in _REFUSALS:
                    self.node.spawn(self._refused(target, _REFUSALS[error.errno]), f"refuse {target.name}")
                    return
                self.node.events.emit("target.not_registered", level="warning", target=target.name, why=str(error))
                await asyncio.sleep(self.node.tunables.connect_timeout_s)
        self._registered[target.name] = target, place
        self._decided(target.name)
        self.node.events.emit("target.registered", target=info.name, nids=list(info.nids))
        if isinstance(target, Mdt):
            await follower.load_when_known()
            if target.stopping:
                return
            target.configure(follower.params)
            for known in follower.targets.values():
                if known.kind == "OST":
                    target.set_ost(known)
            self.on_devices()

    def _known(self, fsname: str) -> list[tuple[Target, TargetRegister]]:
        """The registered targets of a file system; not those about to stop, which may have no store any more."""
        return [row for row in self._registered.values() if row[1].fsname == fsname and not row[0].stopping]

    def _mdts(self, fsname: str) -> list[Mdt]:
        return [target for target, _ in self._known(fsname) if isinstance(target, Mdt)]

    def _target_changed(self, fsname: str, changed: TargetInfo) -> None:
        if changed.kind == "OST":
            for mdt in self._mdts(fsname):
                mdt.set_ost(changed)

    def _params_changed(self, fsname: str, params: dict[str, str]) -> None:
        for mdt in self._mdts(fsname):
            mdt.configure(params)

    async def _refused(self, target: Target, why: str) -> None:
        """The MGS does not want it: it is served no longer."""
        self.node.events.emit("target.refused", level="warning", target=target.name, why=why)
        if self.targets.get(target.name) is not target or target.stopping:
            return
        del self.targets[target.name]
        await target.give_up()
        self._owned.pop(target.name).release()
        self.refused[target.name] = why
        self._decided(target.name)
        if self.on_refused is not None:
            self.on_refused(f"{target.name}: {why}")

    def _decided(self, name: str) -> None:
        deciding = self._deciding.pop(name, None)
        if deciding is not None:
            deciding.set_result(None)

    async def decided(self, wait_s: float) -> None:
        """Wait until the MGS has taken or refused every target that was started, if it is there to say so."""
        if self._deciding:
            await asyncio.wait(self._deciding.values(), timeout=wait_s)

    def _register_again(self, follower: ConfigFollower) -> None:
        """We have found the MGS again, which may have forgotten us.  Source: server_notify_target(), obd_mount_server.c"""
        for target, place in self._known(follower.fsname):
            target.spawn(self._tell_again(target, follower, place), f"register {target.name} again")

    async def _tell_again(self, target: Target, follower: ConfigFollower, place: TargetRegister) -> None:
        try:
            await follower.register(place)
        except OpError as error:
            self.node.events.emit("target.not_registered", level="warning", target=target.name, why=str(error))

    async def _do_without_mgs(self, mdt: Mdt) -> None:
        """Source: the copy of its configuration log that a Lustre server keeps"""
        await asyncio.sleep(self.node.tunables.connect_timeout_s)
        if self.targets.get(mdt.name) is mdt and not mdt.stopping:
            mdt.go_by_memory()
            self.on_devices()

    def _follower(self, config: TargetConfig) -> ConfigFollower:
        follower = self.followers.get(config.fsname)
        if follower is None:
            mgs_nids = self.mgs_nids or tuple(map(Nid, config.mgsnodes))
            # A new UUID at each start: there is nothing to recover, and clocks may go back between two of them.
            uuid = f"{self.node.name}-mgc-{self.node.random.getrandbits(64):016x}"
            follower = ConfigFollower(
                self.node, self.links, mgs_nids, config.fsname, client_uuid=uuid, xids=self.xids
            )
            self.followers[config.fsname] = follower
            follower.mgs.on_full.append(partial(self._register_again, follower))
            follower.on_change(partial(self._target_changed, config.fsname))
            follower.on_params(partial(self._params_changed, config.fsname))
            follower.start()
            self.on_follower(follower)
        return follower

    async def stop_target(self, name: str) -> None:
        """Stop one target in good order; clients keep their places on record."""
        target = self.targets.pop(name, None)
        if target is not None:
            await target.stop()
        self._registered.pop(name, None)
        self.on_devices()
        self._decided(name)  # nobody need wait for it any more
        ownership = self._owned.pop(name, None)
        if ownership is not None:
            ownership.release()

    async def stop(self) -> None:
        """Stop everything in good order."""
        for name in reversed(list(self.targets)):
            await self.stop_target(name)
        await asyncio.gather(*[follower.disconnect() for follower in self.followers.values()])
        self.service.close()
        self.links.close()

    def kill(self) -> None:
        """What `kill -9` does to the targets; links and tasks are the node's."""
        for target in self.targets.values():
            target.kill()
        for ownership in self._owned.values():
            ownership.abandon()
        self.targets.clear()
        self._registered.clear()
        self._owned.clear()
