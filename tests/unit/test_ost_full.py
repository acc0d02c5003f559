"""An OST whose database is full: what makes room must go on, and come to an end."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mdt_fixture import make_maps_small
from ost_harness import Rig, running

from lustrelite.errors import OpError
from lustrelite.store import schema
from lustrelite.store.schema import OBJECTS
from lustrelite.tunables import limits
from lustrelite.wire.ost import CREATE_DELORPHAN, Destroy, OstCreate


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """An OST with a database of 8 MiB that is full of objects."""
    make_maps_small(monkeypatch, 8 << 20)
    async with running(tmp_path) as rig:
        step = 4000
        while step >= 100:
            try:
                await rig.grant(rig.ost.last_id + step)
                await rig.commit()
            except OpError as error:
                assert error.errno in (errno.ENOSPC, errno.EAGAIN)
                await rig.commit()
                step //= 2
        yield rig


async def again_and_again(rig: Rig, body: Any) -> Any:
    """As an import sends what is to be sent again; each time something must have become of it."""
    for _ in range(200):
        before = len(list(rig.ost.store.scan(OBJECTS)))
        try:
            return await rig.mdt.call(body)
        except OpError as error:
            assert error.errno == errno.EAGAIN and len(list(rig.ost.store.scan(OBJECTS))) < before
        await rig.commit()
    raise AssertionError("it comes to no end")


async def test_a_full_ost_destroys_many_objects(rig: Rig) -> None:
    """They were refused for want of room, always the same: it could not be emptied."""
    await again_and_again(rig, Destroy(tuple(range(1, 1001))))
    assert not any(rig.ost.exists(oid) for oid in range(1, 1001)) and rig.ost.exists(1001)


async def test_a_full_ost_destroys_many_orphans(rig: Rig) -> None:
    """Without that pass the MDT destroys nothing there, and makes no file."""
    used = rig.ost.last_id - 3000
    assert (await again_and_again(rig, OstCreate(used, CREATE_DELORPHAN))).last_id == used + 3000
    assert rig.ost.exists(used) and not any(rig.ost.exists(oid) for oid in range(used + 1, used + 3001))


async def test_the_most_that_an_mdt_can_have_left_over_is_destroyed(tmp_path: Path) -> None:
    """With the largest batches it asks for the next one when half of the last is left. That was taken for a loss of memory."""
    async with running(tmp_path) as rig:
        batch = limits.precreate_max
        await rig.grant(batch)
        await rig.grant(2 * batch)
        used = batch // 2 + 1
        assert (await rig.mdt.call(OstCreate(used, CREATE_DELORPHAN))).last_id == 2 * batch
        assert [schema.split_object_key(key) for key, _ in rig.ost.store.scan(OBJECTS)] == list(range(1, used + 1))
