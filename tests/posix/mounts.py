"""A real mount of a cluster of processes, as a test holds it: the process behind it can be stopped and killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from lustrelite import control
from lustrelite.cli.cluster import child_environment
from lustrelite.cli.mounts import record_of
from lustrelite.fuse import attach
from tests.processes.world import ProcessWorld

_T = TypeVar("_T")
WAIT_S = 60.0


def missing() -> str:
    """Why nothing can be mounted here; "" if it can."""
    if not os.path.exists(attach.DEVICE):
        return "/dev/fuse is missing: no FUSE in this kernel or container"
    if os.geteuid() != 0:
        return "only root mounts in these tests"
    try:
        os.close(os.open(attach.DEVICE, os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return ""


def when(true: Callable[[], bool]) -> Callable[[], Any]:
    """What a world's `eventually` waits for."""

    async def look() -> bool:
        return true()

    return look


class Mounted:
    """One mount; an async context manager that unmounts."""

    prelude = ""  # what its process does first

    def __init__(self, world: ProcessWorld, name: str = "m1", *arguments: str) -> None:
        self.world = world
        self.path = world.directory / name
        self.run_dir = world.directory / "mounts"
        self.arguments = arguments

    def command(self, program: str, *arguments: str) -> list[str]:
        """How to call mount.lustrelite or umount.lustrelite."""
        entry = f"{self.prelude}from lustrelite.cli.mount_helper import {program}_main as main; main()"
        return [sys.executable, "-c", entry, *arguments, "--run-dir", str(self.run_dir)]

    async def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call it."""
        return await self.call(
            subprocess.run, self.command(program, *arguments), env=child_environment(), capture_output=True, text=True,
            timeout=WAIT_S, check=False,
        )  # type: ignore[return-value]  # fmt: skip

    async def run_long(self, command: list[str]) -> str:
        """Run a test suite in the mount, however long it takes: what it says."""
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await process.communicate()
        return said.decode(errors="replace")

    @property
    def source(self) -> str:
        """What is mounted."""
        return f"{','.join(self.world.cluster.mgs_nids)}:/{self.world.cluster.fsname}"

    async def start(self) -> None:
        """Mount it."""
        self.path.mkdir(exist_ok=True)
        params = [f"tunables.{name}={value}" for name, value in _params(self.world).items()]
        settings = [part for param in params for part in ("--set", param)]
        done = await self.run(
            "mount", self.source, str(self.path), "--log-dir", str(self.world.cluster.log_dir), *settings, *self.arguments
        )
        assert not done.returncode, done.stderr

    @property
    def record(self) -> dict[str, Any]:
        """What the process says of itself; empty if it does not run."""
        return record_of(str(self.path), [self.run_dir])

    @property
    def alive(self) -> bool:
        """Does the process run?"""
        return bool(self.record)

    def tell(self, cmd: str, **fields: Any) -> Any:
        """A command to its control socket."""
        return control.call(Path(self.record["control"]), cmd, **fields)

    def signal(self, number: int) -> None:
        """A signal to the process."""
        os.kill(self.record["pid"], number)

    async def umount(self, *arguments: str) -> None:
        """Unmount it, and wait for the clean end."""
        done = await self.run("umount", str(self.path), *arguments)
        assert not done.returncode, done.stderr

    async def call(self, function: Callable[..., _T], *arguments: Any, **keywords: Any) -> _T:
        """Run something that blocks in a thread; a mount that hangs fails the test instead of hanging it."""
        return await asyncio.wait_for(asyncio.to_thread(function, *arguments, **keywords), WAIT_S)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None and attach.device_of(str(self.path)):
                await self.umount()
        finally:
            self.destroy()

    def destroy(self) -> None:
        """Whatever is left of it goes."""
        device = attach.device_of(str(self.path))
        if device:
            attach.abort(device)
            attach.detach(str(self.path), attach.MNT_FORCE | attach.MNT_DETACH)  # abort needs fusectl
        if self.alive:
            self.signal(signal.SIGKILL)


class MountedByOldKernel(Mounted):
    """By one that speaks FUSE as Linux 5.10 does: it has no flags beyond the first 28, and knows no epochs."""

    prelude = "from lustrelite.fuse import kernel, session; kernel.MINOR = 32; session.WANTED_FLAGS &= (1 << 28) - 1\n"


KERNELS = pytest.mark.parametrize("mounted", [Mounted, MountedByOldKernel], ids=["", "by an old kernel"])


def _params(world: ProcessWorld) -> dict[str, Any]:
    """What the servers got, too."""
    prefix = "tunables."
    return {name.removeprefix(prefix): value for name, value in world.cluster.params.items() if name.startswith(prefix)}


def llfs(m: Mounted, *words: object) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "lustrelite.cli.llfs", *map(str, words)], capture_output=True, text=True, check=False,
        env={**child_environment(), "LUSTRELITE_RUN_DIR": str(m.run_dir)}, timeout=60,
    )  # fmt: skip
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout
