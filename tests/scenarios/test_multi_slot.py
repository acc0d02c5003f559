"""Several changing requests of one client in flight: each has its slot, each is done once.

What is lost is told as a table: of the close of one file and the create of another, in flight together, the request or
the reply, or nothing, of each.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from steps import soon

from lustrelite.errors import Deactivated
from lustrelite.wire.mdt import Close, Create, Rename, Unlink

#        id         close      create
LOST = [
    ("RS 53a", "request", ""),
    ("RS 53b", "", "request"),
    ("RS 53c", "request", "request"),
    ("RS 53d", "reply", ""),
    ("RS 53e", "", "reply"),
    ("RS 53f", "reply", "reply"),
    ("RS 53g", "request", "reply"),
    ("RS 53h", "reply", "request"),
]  # fmt: skip

#         id         close      create
RESENT = [
    ("SM 21c", "request", "request"),
    ("SM 21e", "", "reply"),
    ("SM 21f", "reply", "reply"),
    ("SM 21g", "request", "reply"),
]  # fmt: skip


def cases(table: list[tuple[str, str, str]]) -> list[Any]:
    """The rows as parameters, each with its marker."""
    return [pytest.param(*what, marks=pytest.mark.lustre(name), id=name) for name, *what in table]


async def begin(c: Any, close: str, create: str) -> tuple[asyncio.Task[Any], asyncio.Task[Any]]:
    """Close one file and create another with what is to be lost lost; what is not lost is done."""
    file = await c.a.open("/closed", create=True)
    await c.mds.commit()
    rules = [c.net.drop(Close, reply=close == "reply")] if close else []
    closing = soon(file.close())
    rules += [c.net.drop(Create, reply=create == "reply")] if create else []
    creating = soon(c.a.create("/created"))
    for rule in rules:
        await rule.caught()
    if not close:
        await closing
    if not create:
        await creating
    return closing, creating


@pytest.mark.parametrize("committed", [False, True], ids=["lost", "committed"])
@pytest.mark.parametrize(("close", "create"), cases(LOST))
async def test_two_requests_in_flight_meet_an_mds_crash(world: Any, close: str, create: str, committed: bool) -> None:
    """What was executed and committed is answered from its record; everything else is done after the crash.

    Source: lustre/tests/replay-single.sh test_53a to test_53h
    """
    async with world(clients=1) as c:
        closing, creating = await begin(c, close, create)
        if committed:
            await c.mds.commit()
        await c.fail(c.mds)
        await closing
        await creating
        assert await c.a.listdir("/") == ["closed", "created"]
        assert not list(c.mds.target().open_handles())
        saved = [name for name, lost in (("Close", close), ("Create", create)) if lost == "reply" and committed]
        assert sorted(e.fields["op"] for e in c.events if e.name == "reply.reconstructed") == saved


@pytest.mark.parametrize(("close", "create"), cases(RESENT))
async def test_two_requests_in_flight_are_both_sent_again(world: Any, close: str, create: str) -> None:
    """Source: lustre/tests/recovery-small.sh test_21c to test_21g"""
    async with world(clients=1) as c:
        closing, creating = await begin(c, close, create)
        await closing
        await creating
        assert await c.a.listdir("/") == ["closed", "created"]
        saved = [name for name, lost in (("Close", close), ("Create", create)) if lost == "reply"]
        assert sorted(e.fields["op"] for e in c.events if e.name == "reply.reconstructed") == saved


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(False, marks=pytest.mark.lustre("SM 21a"), id="SM 21a"),
        pytest.param(True, marks=pytest.mark.lustre("SM 21d"), id="SM 21d"),
    ],
)
async def test_an_open_held_in_the_server_and_a_lost_close(world: Any, reply: bool) -> None:
    """Source: lustre/tests/recovery-small.sh test_21a, test_21d"""
    async with world(clients=1) as c:
        closed = await c.a.open("/closed", create=True)
        c.faults.arm("target.execute", "delay", on=c.mds, delay_s=1.5)
        opening = soon(c.a.open("/opened", create=True))
        await asyncio.sleep(0.5)
        lost = c.net.drop(Close, reply=reply)
        closing = soon(closed.close())
        await lost.caught()
        opened = await opening
        assert not closing.done()
        await closing
        await opened.close()
        assert await c.a.listdir("/") == ["closed", "opened"]


@pytest.mark.lustre("RS 102b")
async def test_the_reply_of_every_slot_is_rebuilt(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_102b"""
    async with world(clients=1) as c:
        lost = c.drop_reply(Create, times=32)
        await asyncio.gather(*(c.a.create(f"/{i}") for i in range(32)))
        await lost.caught(32)
        c.saw("reply.reconstructed", op="Create", times=32)
        assert len(await c.a.listdir("/")) == 32


@pytest.mark.lustre("RS 102d")
async def test_the_reply_of_every_slot_is_rebuilt_after_a_crash(world: Any) -> None:
    """From the reply data on disk.  Source: lustre/tests/replay-single.sh test_102d"""
    async with world(clients=1) as c:
        lost = c.drop_reply(Create, times=32)
        creates = [soon(c.a.create(f"/{i}")) for i in range(32)]
        await lost.caught(32)
        await c.mds.commit()
        await c.fail(c.mds)
        await asyncio.gather(*creates)
        c.saw("reply.reconstructed", op="Create", times=32)
        assert len(await c.a.listdir("/")) == 32


async def test_no_slot_is_given_out_twice_after_a_deactivation(world: Any) -> None:
    """What was sent keeps its slot until the late answer comes."""
    async with world(clients=1) as c:
        mdt = c.a.fs.connections.imports["lustre-MDT0000"]
        late = c.net.slow(Create, reply=True, delay_s=1.0)
        creating = soon(c.a.create("/f"))
        await late.caught()
        mdt.deactivate()
        with pytest.raises(Deactivated):
            await creating
        mdt.activate()
        await asyncio.sleep(2)
        lost = c.drop_reply(Create, times=32)
        await asyncio.gather(*(c.a.create(f"/{i}") for i in range(32)))
        await lost.caught(32)
        c.saw("reply.reconstructed", op="Create", times=32)


async def test_a_late_copy_of_a_removal_does_not_remove_what_was_made_since(cluster: Any) -> None:
    """Its slot was used again. The client has not said that it had the answer, because it still waits for an older one."""
    async with cluster(clients=1, caching=0) as c:
        await c.a.create("/f")
        older = c.net.hold(Create, to=c.a, source=c.mds, reply=True, times=1)
        creating = soon(c.a.create("/older"))
        await older.caught()
        c.net.double(Unlink, delay_s=2.0)
        await c.a.unlink("/f")
        await c.a.create("/f")
        await asyncio.sleep(2.5)
        assert await c.a.listdir("/") == ["f", "older"]
        c.saw("request.dropped", op="Unlink", why="its slot was used again")
        older.release()
        await creating


async def test_the_replay_of_an_open_whose_file_is_gone_leaves_the_slot_to_who_had_it_since(world: Any) -> None:
    """Open and close are committed, only the answer to the close was lost: the replay is refused, and that is no answer to the rename."""
    async with world(clients=1) as c:
        await c.a.create("/old")
        file = await c.a.open("/f", create=True)
        await c.a.unlink("/f")
        rename = c.drop_reply(Rename)
        renaming = soon(c.a.rename("/old", "/new"))  # in the slot that the open had
        await rename.caught()
        close = c.drop_reply(Close)
        closing = soon(file.close())
        await close.caught()
        await c.mds.commit()
        await c.fail(c.mds)
        await renaming
        await closing
        c.saw("import.replay_failed", op="Open")
        c.saw("reply.reconstructed", op="Rename")
        assert await c.a.listdir("/") == ["new"]
