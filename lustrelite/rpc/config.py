"""Following the configuration that the MGS keeps: which targets there are and where.

Loaded once at mount, under a PLAIN lock: when the MGS asks for it back something has changed, and it is read again.
While the MGS is down everything goes on with what is known.  Source: mgc/mgc_request.c; protocol-facts 9.1, 9.2
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lustrelite.errors import OpError
from lustrelite.ids import Nid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.lock_cache import LockCache
from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.links import LinkPool
from lustrelite.rpc.node import Node
from lustrelite.rpc.request import Xids
from lustrelite.tunables import check_param
from lustrelite.wire.ldlm import CR
from lustrelite.wire.mgs import Config, ConfigRead, SetParam, TargetInfo, TargetRegister, config_resource

SET_PARAM_S = 8.0  # somebody sits in front of it


class ConfigFollower:
    """The configuration of one file system, kept up to date."""

    def __init__(
        self, node: Node, links: LinkPool, mgs_nids: Sequence[Nid], fsname: str, *, client_uuid: str, xids: Xids
    ) -> None:
        self.node = node
        self.fsname = fsname
        self.version = 0
        self.targets: dict[str, TargetInfo] = {}
        self.params: dict[str, str] = {}
        self.mgs = ClientImport(
            node, links, target_uuid="MGS_UUID", nids=mgs_nids, client_uuid=client_uuid, incarnation=xids.last, xids=xids
        )
        self.locks = self.mgs.locks = LockCache(self.mgs)
        self.locks.drop = self._lock_gone
        self._stale = asyncio.Event()  # the lock is gone: there may be something new
        self._listeners: list[Callable[[TargetInfo], None]] = []
        self._params_listeners: list[Callable[[dict[str, str]], None]] = []
        self._export = 0  # our handle at the MGS that has told us all
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect to the MGS."""
        self.mgs.start()

    async def load(self) -> dict[str, TargetInfo]:
        """Read the configuration and follow it from now on.  Errors: ENOENT no such file system."""
        await self._read(0)
        if self._task is None:
            self._export = self.mgs.fsm.handle
            self._task = self.node.spawn(self._follow(), f"config {self.fsname}")
        return self.targets

    async def load_when_known(self) -> dict[str, TargetInfo]:
        """`load`, for servers, and mounts that may come before them: waits until the MGS knows the file system."""
        told = False
        while True:
            try:
                return await self.load()
            except OpError as error:
                if not told:
                    self.node.events.emit("config.awaited", fsname=self.fsname, message=f"{error}; waiting for it")
                told = True
                await asyncio.sleep(self.node.tunables.reconnect_pause_max_s)

    async def read_again(self) -> None:
        """Return when the MGS has said what is new, however long it is away; at once if we have left it."""
        while self.mgs.state != "CLOSED":
            try:
                await self._read(self.version)
                return
            except OpError:
                await asyncio.sleep(self.node.tunables.reconnect_pause_max_s)

    async def register(self, body: TargetRegister) -> TargetInfo:
        """Tell the MGS that a target runs here."""
        info: TargetInfo = await self.mgs.call(body)
        return info

    async def set_param(self, name: str, value: str) -> None:
        """Have the MGS keep a parameter for good; an empty value is forgotten.  TimeoutError: it does not answer

        What it has not heard until then it is not told later.  ValueError: no MGS could keep it
        """
        check_param(name, value)
        body = SetParam(self.fsname, name, value)
        asking = self.node.spawn(self._refusal(body), f"set {name}")
        try:
            await asyncio.wait([asking], timeout=SET_PARAM_S)
            if not asking.done():
                heard = "it may have heard: look again later" if self.mgs.xid_of(body) else "nothing is changed"
                raise TimeoutError(f"the MGS does not answer in {SET_PARAM_S:g} s; {heard}")
            refusal = asking.result()
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        if refusal is not None:
            raise refusal

    async def _refusal(self, body: SetParam) -> OpError | None:
        try:
            await self.mgs.call(body)
        except OpError as error:
            return error
        return None

    def on_change(self, listener: Callable[[TargetInfo], None]) -> None:
        """Call `listener` for every entry that is new or has changed."""
        self._listeners.append(listener)

    def on_params(self, listener: Callable[[dict[str, str]], None]) -> None:
        """Call `listener` with all permanent parameters when they change."""
        self._params_listeners.append(listener)

    async def disconnect(self) -> None:
        """Follow no longer, and say so: the MGS asks nobody for the lock of a client that has gone."""
        if self._task is not None:
            self._task.cancel()
        await self.mgs.disconnect(patient=False)

    def stop(self) -> None:
        """Follow no longer."""
        if self._task is not None:
            self._task.cancel()
        self.mgs.stop()

    async def _read(self, since: int) -> None:
        """What is newer than version `since`."""
        self._take(await self.mgs.call(ConfigRead(self.fsname, since)))

    def _forget_versions(self) -> None:
        """Another MGS answers, perhaps one that was formatted anew or came from a backup: its versions may have been used before."""
        self.version = 0
        self.targets = {name: info._replace(version=0) for name, info in self.targets.items()}

    def _take(self, config: Config) -> None:
        self.version = max(self.version, config.version)
        for info in config.targets:
            known = self.targets.get(info.name)
            if known is not None and known.version >= info.version:
                continue
            self.targets[info.name] = info
            if known is not None and known == info._replace(version=known.version):
                continue
            if known is not None:
                self.node.events.emit(
                    "config.changed", target=info.name, nids=list(info.nids), instance=info.instance
                )
            for listener in self._listeners:
                listener(info)
        params = dict(config.params)
        if params != self.params:
            self.params = params
            for params_listener in self._params_listeners:
                params_listener(params)

    def _lock_gone(self, lock: ClientLock, lost: bool) -> None:
        self._stale.set()

    async def _follow(self) -> None:
        while True:
            try:
                self._stale.clear()
                self.locks.release(await self.locks.take_plain(config_resource(self.fsname), CR))
                if self._export != self.mgs.fsm.handle:
                    self._export = self.mgs.fsm.handle
                    self._forget_versions()
                await self._read(self.version)
                await self._stale.wait()
            except OpError:
                if self.mgs.state == "CLOSED":
                    return
                await asyncio.sleep(self.node.tunables.reconnect_pause_max_s)
