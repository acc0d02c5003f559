"""A server process: the daemon, its targets, and what the control socket can do with them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from lustrelite import server_metrics, server_params
from lustrelite.daemon import Daemon
from lustrelite.errors import FormatRefused
from lustrelite.format import TargetConfig, read_target
from lustrelite.ids import Nid
from lustrelite.process import Process
from lustrelite.rpc.config import ConfigFollower
from lustrelite.target.target import Target

DECISION_S = 1.0  # for an MGS to say that it takes a target: who starts us waits for that


class Server:
    """The targets of one process."""

    def __init__(self, process: Process, kind: str) -> None:
        self.process = process
        self.kind = kind
        self.configs: dict[str, tuple[Path, TargetConfig]] = {}  # by target name
        for directory in process.options.target:
            self.add(Path(directory).resolve())
        mgsnode: list[Nid] = getattr(process.options, "mgsnode", [])
        self.daemon = Daemon(process.node, mgs_nids=mgsnode)
        process.tree.add_source(lambda: server_params.parameters(self.daemon))
        process.metrics.sources.append(lambda: server_metrics.collect(self.daemon))
        process.status = self.status
        process.commands.update(
            {
                "devices": lambda _: server_params.devices(self.daemon),
                "start_target": self.start_target,
                "stop_target": self.stop_target,
                "abort_recovery": lambda request: self._do(request, "abort_recovery"),
                "hold_commits": lambda request: self._do(request, "hold_commits"),
                "release_commits": lambda request: self._do(request, "release_commits"),
                "commit": self.commit,
                "dump_locks": lambda request: server_params.dump_locks(
                    self._target(request), str(request.get("resource") or "")
                ),
            }
        )

    def add(self, directory: Path) -> str:
        """Take in the target in `directory`; returns its name."""
        config = read_target(directory)
        allowed = {"MDT": ("MDT", "MGS")}.get(self.kind, (self.kind,))
        if config.kind not in allowed:
            raise FormatRefused(f"{directory} holds {config.name}, this process serves {self.kind}s")
        self.configs[config.name] = (directory, config)
        return config.name

    # life -----------------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Listen, start every target, and serve until we are told to stop."""
        process = self.process
        nids = [await self.daemon.listen(nid) for nid in process.options.listen]
        targets = [{"name": name, "directory": str(path)} for name, (path, _) in self.configs.items()]
        process.write_record(nids=nids, targets=targets)
        self.daemon.on_follower = self._follow
        self.daemon.on_devices = process.devices_changed
        starting = asyncio.ensure_future(self._start_all())
        stopped = asyncio.ensure_future(process.stopping.wait())
        nothing_left = asyncio.ensure_future(self._nothing_left(starting))
        try:
            done, _ = await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if starting in done:
                starting.result()
                await asyncio.wait({stopped, asyncio.ensure_future(self.daemon.decided(DECISION_S))}, return_when=asyncio.FIRST_COMPLETED)
                if self.daemon.refused and not self.daemon.targets:
                    await nothing_left
                process.ready()
                done, _ = await asyncio.wait({stopped, nothing_left}, return_when=asyncio.FIRST_COMPLETED)
                if nothing_left in done:
                    nothing_left.result()
        finally:
            for task in (starting, stopped, nothing_left):
                task.cancel()
            await asyncio.gather(starting, stopped, nothing_left, return_exceptions=True)
            await self.daemon.stop()

    def _follow(self, follower: ConfigFollower) -> None:
        self.process.follow_params(follower)
        self.process.node.spawn(follower.load_when_known(), f"parameters of {follower.fsname}")

    async def _nothing_left(self, starting: asyncio.Future[None]) -> None:
        """Raise FormatRefused when the MGS has refused every target that was started here."""
        refusals: asyncio.Queue[str] = asyncio.Queue()
        self.daemon.on_refused = refusals.put_nowait
        await asyncio.wait({starting})
        while True:
            why = await refusals.get()
            if not self.daemon.targets:
                raise FormatRefused(why)

    async def _start_all(self) -> None:
        directories = [str(directory) for directory, _ in self.configs.values()]
        await self.daemon.start_targets(directories, wait=self.process.options.wait, on_wait=self._standby)

    def _standby(self, config: TargetConfig) -> None:
        self.process.write_record(state="standby")

    # commands ---------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `lustrelite status` shows of us."""
        rows = {row["name"]: row for row in server_params.target_rows(self.daemon)}
        absent = "STANDBY" if self.process.record["state"] == "standby" else "DOWN"
        return {
            "targets": [
                {"name": name, "directory": str(path), **rows.get(name, {"state": absent, **self._refusal(name)})}
                for name, (path, _) in self.configs.items()
            ]
        }

    def _refusal(self, name: str) -> dict[str, str]:
        return {"refused": self.daemon.refused[name]} if name in self.daemon.refused else {}

    def _target(self, request: dict[str, Any]) -> Target:
        name = str(request.get("target"))
        target: Target | None = self.daemon.targets.get(name)
        if target is None:
            raise ValueError(f"{name} is not running here; running: {', '.join(self.daemon.targets) or 'none'}")
        return target

    async def start_target(self, request: dict[str, Any]) -> str:
        """Start a target of ours that was stopped, or the one in `directory`."""
        if request.get("directory"):
            name = self.add(Path(request["directory"]).resolve())
        else:
            name = str(request.get("target"))
        if name not in self.configs:
            raise ValueError(f"no target {name} here; there are: {', '.join(self.configs) or 'none'}")
        if name in self.daemon.targets:
            return f"{name} runs already"
        await self.daemon.start_target(str(self.configs[name][0]))
        await self.daemon.decided(DECISION_S)
        if name in self.daemon.refused:
            raise ValueError(f"{name}: {self.daemon.refused[name]}")
        return f"started {name}"

    async def stop_target(self, request: dict[str, Any]) -> str:
        """Stop one target in good order; the others go on."""
        name = str(request.get("target"))
        if name not in self.daemon.targets:
            return f"{name} was not running"
        await self.daemon.stop_target(name)
        return f"stopped {name}"

    def _do(self, request: dict[str, Any], what: str) -> str:
        target = self._target(request)
        if what == "abort_recovery":
            if not target.recovering:
                return f"{target.name} is not in recovery"
            target.abort_recovery()
        elif what == "hold_commits":
            target.committer.hold()
        else:
            target.committer.release()
        return f"{target.name}: {what}"

    async def commit(self, request: dict[str, Any]) -> str:
        """Make everything durable that was executed so far."""
        target = self._target(request)
        await target.committed()
        return f"{target.name}: committed up to {target.last_committed}"


async def serve(process: Process, kind: str) -> None:
    """The life of a server process of `kind`."""
    await Server(process, kind).serve()
