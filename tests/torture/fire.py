"""Mounts under fire: servers die by `kill -9` and come back, one after the other, while programs use the mounts.

TORTURE=1 (`make torture`) runs everything, and the programs at full length; without it they run as long as a test may.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from lustrelite.tunables import Tunables
from tests.posix.mounts import Mounted, missing
from tests.processes.world import ProcessWorld

FULL = bool(os.environ.get("TORTURE"))
KILL_EVERY_S = 5.0 if FULL else 3.0
SAID_BYTES = 6000  # of what a program said, when it fails


def size(bounded: int, full: int) -> int:
    """So many steps of something: in `make test`, in `make torture`."""
    return full if FULL else bounded


def program(variable: str, *names: str) -> str:
    """Where a program is: what the environment names, or what PATH finds; "" if it is not here."""
    return os.environ.get(variable) or next((found for name in names if (found := shutil.which(name))), "")


def needs(path: str, word: str) -> pytest.MarkDecorator:
    """Skip the test without a mount, or without the program at `path`."""
    why = missing() or ("" if path else word)
    return pytest.mark.skipif(bool(why), reason=why)


class Fire:
    """An async context manager under which MDS and OSSs are killed and started again, in turn."""

    def __init__(self, world: ProcessWorld, every_s: float) -> None:
        self.world = world
        self.every_s = every_s
        self.deaths = 0
        self._over = asyncio.Event()

    async def _burn(self) -> None:
        servers = [self.world.mds, *self.world.oss]
        while not await self._waited():
            victim = servers[self.deaths % len(servers)]
            await victim.kill()
            self.deaths += 1
            self.died(victim.targets)
            await victim.start()
            await self.world.eventually(victim.recovered, f"{victim.name} recovers")
            self.is_back(victim.targets)

    async def _waited(self) -> bool:
        """Is it over? A server that was killed is started again before it is: two would be started else."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), self.every_s)
        return self._over.is_set()

    def died(self, targets: Sequence[str]) -> None:
        """These have been killed."""

    def is_back(self, targets: Sequence[str]) -> None:
        """These have recovered."""

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._burn())
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        self._over.set()
        await self._task  # raises: a server that did not come back


class Place:
    """A cluster with mounts on which programs run."""

    def __init__(self, world: ProcessWorld, mounts: Sequence[Mounted]) -> None:
        self.world = world
        self.mounts = list(mounts)

    @property
    def first(self) -> Path:
        """Where the first mount is."""
        return self.mounts[0].path

    async def run(
        self, *command: str | Path, cwd: Path | None = None, timeout_s: float, env: Mapping[str, str] | None = None,
        user: int | None = None, quiet: bool = False,
    ) -> str:  # fmt: skip
        """Run a program; what it said (`quiet`: nobody listens).

        The test fails if the program does, or is not done in time.
        """
        become: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        process = await asyncio.create_subprocess_exec(
            *map(str, command), cwd=cwd or self.first, stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})}, start_new_session=True, **become,
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                raw, _ = await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{command[0]} is not done after {timeout_s:.0f} s") from None
        said = (raw or b"").decode(errors="replace")
        assert not process.returncode, f"{command} ended with {process.returncode}:\n{said[-SAID_BYTES:]}"
        return said

    async def clear(self) -> None:
        """Remove everything."""
        await self.run("find", self.first, "-mindepth", "1", "-delete", timeout_s=300)


@asynccontextmanager
async def place(world: Any, *, mounts: int = 1, kills: bool) -> AsyncIterator[Place]:
    """A cluster with its mounts, under fire or not; at the end all is removed, unmounted and examined."""
    async with world(oss=2, clients=0, tunables=Tunables()) as w, contextlib.AsyncExitStack() as stack:
        os.chmod(w.directory, 0o755)
        found = [await stack.enter_async_context(Mounted(w, f"m{number}")) for number in range(1, mounts + 1)]
        os.chmod(found[0].path, 0o755)
        here = Place(w, found)
        if kills:
            async with Fire(w, KILL_EVERY_S) as fire:
                yield here
            w.note("fire", deaths=fire.deaths)
        else:
            yield here
        await w.settle()
        await here.clear()
