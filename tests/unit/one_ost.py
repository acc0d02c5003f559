"""An MDT with one OST that is a fake behind an import: what it grants, destroys, refuses and commits is the test's to say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from mdt_fixture import FakeImport, World

from lustrelite.errors import OpError
from lustrelite.mdt import osp, ost_log
from lustrelite.mdt.osp import Osp
from lustrelite.wire import mdt as wire
from lustrelite.wire.ost import Destroy, OstCreate, OstCreateReply, OstStatfs, SetOwners


class FakeOst(FakeImport):
    """An OST behind an import: grants, forgets, destroys, refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.last_id = 0
        self.transno = 0
        self.last_committed = 0
        self.durable = True  # what it executes is committed at once
        self.on_committed: list[Any] = []
        self.calls: list[Any] = []
        self.destroyed: list[int] = []
        self.owners: dict[int, tuple[int, ...]] = {}
        self.errors: list[OpError] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def call(self, body: Any) -> Any:
        self.calls.append(body)
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        if isinstance(body, OstCreate):
            if not body.flags or body.upto > self.last_id:
                self.last_id = max(self.last_id, body.upto)
            return OstCreateReply(self.last_id)
        assert isinstance(body, OstStatfs)
        return wire.StatfsReply(1, 1, 1, 1, 1, 0)

    async def call_change(self, body: Any) -> int:
        """See ClientImport.call_change."""
        self.calls.append(body)
        await asyncio.sleep(0)
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        if isinstance(body, Destroy):
            self.destroyed += body.objects
        else:
            assert isinstance(body, SetOwners)
            self.owners.update({oid: tuple(owner) for oid, *owner in body.owners})
        self.transno += 1
        if self.durable:
            self.commit()
        return self.transno

    def commit(self) -> None:
        """Commit, and let the MDT hear of it."""
        self.last_committed = self.transno
        for callback in self.on_committed:
            callback()


class One:
    """An MDT with one OST whose loops run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.far = FakeOst()
        self.osp: Osp

    def start(self) -> None:
        """As Osp.start and a connect."""
        self.osp = Osp(self.world.mdt, 0, [])
        self.osp.imp = self.far  # type: ignore[assignment]
        self.far.on_committed = [self.osp.log.cross_off]
        self.world.mdt.allocator.add(self.osp)
        spawn = self.world.node.spawn
        self.osp._tasks = [spawn(self.osp._keep_ids(), "ids"), spawn(self.osp.log.keep_sending(), "log")]
        self.osp._connected()

    async def crash(self, *, recovering: bool = True) -> None:
        self.far.calls.clear()
        await self.world.crash(recovering=recovering)
        self.start()


@contextlib.asynccontextmanager
async def one_ost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[One]:
    """It runs, and takes refusals for 10 ms."""
    monkeypatch.setattr(osp, "RETRY_S", 0.01)
    monkeypatch.setattr(ost_log, "RETRY_S", 0.01)
    world = World(tmp_path, osts=0)
    await world.start()
    pair = One(world)
    pair.start()
    await settle()
    yield pair
    await world.stop()


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)
