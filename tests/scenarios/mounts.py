"""Two mounts of one file system, as sanityn.sh has them. Who caches is the parameter of most of its scenarios.

What goes through a `Mount` is not recorded for the oracle: it is done below PLACE, which is removed at the end.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lustrelite.client.file import File

PLACE = "/u"
who_caches = pytest.mark.parametrize("mix", ["ab", "a", "b", "-"])
some_cache = pytest.mark.parametrize("mix", ["ab", "a", "b"])


LOCKS = ("Cancel", "Convert", "Ping", "Enqueue", "AllocateSequence")


class Asked:
    """What a client asks the MDT inside the `with`, but for locks on their way back."""

    def __init__(self, client: Any) -> None:
        self.imp = next(imp for imp in client.imports if "MDT" in imp.target)
        self.names: dict[str, int] = {}

    def __enter__(self) -> dict[str, int]:
        self.before = dict(self.imp.calls)
        return self.names

    def __exit__(self, *_: object) -> None:
        for name, count in self.imp.calls.items():
            if name not in LOCKS and count != self.before.get(name, 0):
                self.names[name] = count - self.before.get(name, 0)


@contextlib.asynccontextmanager
async def two_mounts(
    cluster: Any, mix: str = "ab", *, disk_bytes: int = 0, **topology: Any
) -> AsyncIterator[tuple[Any, Mount, Mount]]:
    """A cluster and its first two mounts; each of its two OSTs has `disk_bytes`, 0 for many.

    Its clients cache if they are named in `mix`.
    """
    world = cluster(caching=1, **topology)
    for number in range(2 if disk_bytes else 0):
        world.disks.object_disk(f"lustre-OST000{number}").capacity_bytes = disk_bytes
    for client in world.clients.values():
        client.tunables["caching"] = int(client.name in mix)
    async with world as c:
        a, b = mounts(c)
        await a.mkdir(PLACE)
        yield c, a, b
        await c.settle()
        await a.rmtree(PLACE)


class Mount:
    """The methods of a client's FileSystem, or of one of its open files, each run as the client's own."""

    def __init__(self, client: Any, what: Any = None) -> None:
        self.client = client
        self.what = what

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.what if self.what is not None else self.client.fs, name)
        if not inspect.iscoroutinefunction(member):
            return member

        async def call(*args: Any, **how: Any) -> Any:
            result = await self.client.unrecorded(member(*args, **how))
            return Mount(self.client, result) if isinstance(result, File) else result

        return call

    def __repr__(self) -> str:
        return f"<mount {self.client.name}>"

    async def names(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(await self.readdir(path))

    async def content(self, path: str, flags: int = 0) -> bytes:
        """The whole file, through an open file with these flags."""
        file = await self.open(path, flags)
        try:
            return bytes(await file.pread(-1, 0))
        finally:
            await file.close()

    async def write_at(self, path: str, offset: int, data: bytes, flags: int = os.O_RDWR) -> None:
        """open, pwrite, close."""
        file = await self.open(path, flags)
        try:
            await file.pwrite(data, offset)
        finally:
            await file.close()


def mounts(c: Any) -> tuple[Mount, Mount]:
    """Both."""
    return Mount(c.a), Mount(c.b)


def clear_unused(*clients: Any, kind: str = "") -> list[Any]:
    """cancel_lru_locks: clients begin to give back every lock that they do not use. Returns what they have them in."""
    caches = [imp.locks for client in clients for imp in client.imports if kind in imp.target and imp.locks is not None]
    for locks in caches:
        locks.clear_unused()
    return caches


async def drop_locks(c: Any, *clients: Any, kind: str = "") -> None:
    """The same, until all their locks are gone, with what was cached under them."""
    caches = clear_unused(*clients, kind=kind)
    await c.until(lambda: not any(locks.lock_count for locks in caches))
