"""An OST whose disk refuses one call, for one place on it: who is told, and what goes on."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ost_harness import FILE, Rig, running

from lustrelite.errors import OpError
from lustrelite.wire.message import REQ_REPLAY_DONE
from lustrelite.wire.ost import CREATE_DELORPHAN, Destroy, OstCreate, Part, Read, Write, WriteMany
from lustrelite.wire.session import Ping

S = 1_000_000_000


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with running(tmp_path) as made:
        yield made


def refusing(call: Callable[..., Any], number: int, oid: int) -> Callable[..., Any]:
    """`call` for every object but `oid`."""

    def refuse(which: int, *args: Any, **options: Any) -> Any:
        if which == oid:
            raise OpError(number, f"object {oid}")
        return call(which, *args, **options)

    return refuse


WRITE = Write(1, 0, FILE, 0, S)
MANY = WriteMany((Part(1, 0, 4, FILE, 0, S, 5),), 0)


@pytest.mark.parametrize("body", [WRITE, MANY], ids=["one", "many"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_client_whose_replayed_write_the_disk_refuses_is_told(rig: Rig, body: Any, number: int) -> None:
    """It was answered, and is lost: who is not thrown out would be told by fsync that all is well."""
    await rig.grant(2)
    await rig.commit()
    rig.ost.committer.hold()
    answer = await rig.client.ask(WRITE, b"data", xid=7001)
    assert not answer.status
    await rig.kill()
    await rig.start()
    await rig.reconnect(answer.transno)
    rig.ost.files.write = refusing(rig.ost.files.write, number, 1)  # type: ignore[method-assign]
    assert (await rig.client.replay(body, b"data", answer, 7001)).status == -number
    for client in (rig.client, rig.mdt):
        client.start(Ping(), flags=REQ_REPLAY_DONE)
    await asyncio.sleep(0.01)
    assert [event.fields["client"] for event in rig.node.events.select("client.evicted")] == [rig.client.uuid]


async def test_a_replayed_write_to_an_object_that_is_gone_is_no_loss(rig: Rig) -> None:
    """Its file was removed after it was written."""
    await rig.grant(2)
    answer = await rig.client.ask(WRITE, b"data", xid=7001)
    await rig.mdt.call(Destroy((1,)))
    await rig.commit()
    await rig.kill()
    await rig.start()
    await rig.reconnect(answer.transno + 2)
    answer.transno += 2
    assert (await rig.client.replay(WRITE, b"data", answer, 7001)).status == -errno.ENOENT
    await asyncio.gather(rig.client.replay_done(), rig.mdt.replay_done())
    assert not list(rig.node.events.select("client.evicted"))


async def test_one_file_that_cannot_be_unlinked_leaves_no_other(rig: Rig) -> None:
    await rig.grant(4)
    for oid in (1, 2, 3):
        await rig.client.call(WRITE._replace(object=oid), b"data")
    rig.ost.files.remove = refusing(rig.ost.files.remove, errno.EIO, 1)  # type: ignore[method-assign]
    await rig.mdt.call(Destroy((1, 2, 3)))
    await rig.commit()
    await rig.settle()
    assert rig.files() == [1]
    assert len(list(rig.node.events.select("ost.unlink_failed"))) == 1


async def test_a_directory_that_cannot_be_listed_ends_no_server(rig: Rig) -> None:
    """It would end every successor, too: each looks for strays once the MDT has been there."""
    await rig.grant(4)

    def ids() -> Any:
        raise OpError(errno.EIO, "cannot list objects")
        yield

    rig.ost.files.ids = ids  # type: ignore[method-assign]
    await rig.mdt.call(OstCreate(4, CREATE_DELORPHAN))
    await rig.settle()
    assert rig.crashes == []
    assert len(list(rig.node.events.select("ost.sweep_failed"))) == 1


async def test_nobody_waits_for_a_change_that_was_not_made(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data was in the file already when the database had no room for the record."""
    await rig.grant(2)
    await rig.client.call(WRITE, b"before")
    await rig.commit()

    def full(*args: Any, **options: Any) -> None:
        raise OpError(errno.ENOSPC)

    with monkeypatch.context() as patch:
        patch.setattr(rig.ost.store, "apply", full)
        assert (await rig.client.ask(WRITE, b"refused")).status == -errno.ENOSPC
    async with asyncio.timeout(2):
        assert (await rig.mdt.ask(Read(1, 0, 10))).status == 0
    assert not rig.ost.unsynced
