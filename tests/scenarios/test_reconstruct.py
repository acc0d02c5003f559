"""The server did it and the answer got lost: the resend gets the same answer, and nothing is done twice."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from steps import refused, soon

from lustrelite.wire.mdt import Create, Link, Lookup, Open, Rename, Setattr, Unlink

Act = Callable[[Any], Coroutine[Any, Any, Any]]


async def open_for_reading(client: Any) -> None:
    """Open, look, close."""
    file = await client.open("/old")
    assert await file.pread() == b"old"
    await file.close()


ACTS: list[tuple[str, type, Act]] = [
    ("SM 1", Create, lambda a: a.create("/new")),
    ("SM 1", Create, lambda a: a.mkdir("/new")),
    ("SM 1", Setattr, lambda a: a.chmod("/old", 0o600)),
    ("SM 1", Lookup, lambda a: a.stat("/old")),
    ("SM 4", Open, open_for_reading),
    ("SM 5", Rename, lambda a: a.rename("/old", "/new")),
    ("SM 6", Link, lambda a: a.link("/old", "/new")),
    ("SM 6", Unlink, lambda a: a.unlink("/old")),
    ("SM 8", Setattr, lambda a: a.utime("/old", 2, atime=1)),
]


@pytest.mark.parametrize("lost", ["request", "reply"])
@pytest.mark.parametrize(
    ("message", "act"),
    [pytest.param(m, act, marks=pytest.mark.lustre(i), id=f"{i} {m.__name__}") for i, m, act in ACTS],
)
async def test_an_operation_works_although_a_message_is_lost(world: Any, lost: str, message: type, act: Act) -> None:
    """Source: lustre/tests/recovery-small.sh test_1, test_4, test_5, test_6, test_8"""
    async with world(clients=1) as c:
        await c.a.write("/old", b"old")
        rule = c.net.drop(message, reply=lost == "reply")
        await act(c.a)
        await rule.caught()
        c.saw("import.resent", op=message.__name__, times=1)
        if lost == "reply" and message is not Lookup:
            c.saw("reply.reconstructed", op=message.__name__, times=1)


@pytest.mark.lustre("RS 55")
async def test_a_resend_gets_the_first_error(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_55"""
    async with world(clients=1) as c:
        c.faults.arm("mdt.open_result", "error", on=c.mds, errno=errno.EPERM)
        rule = c.drop_reply(Open)
        with refused(errno.EPERM):
            await c.a.fs.open("/f", os.O_CREAT | os.O_RDWR)
        await rule.caught()
        c.saw("reply.reconstructed", op="Open", status=-errno.EPERM, times=1)
        assert not await c.a.exists("/f")


@pytest.mark.parametrize(
    ("old", "committed"),
    [
        pytest.param(True, False, marks=pytest.mark.lustre("SM 53a"), id="SM 53a"),
        pytest.param(True, True, marks=pytest.mark.lustre("SM 53b"), id="SM 53b"),
        pytest.param(False, False, marks=pytest.mark.lustre("SM 53c"), id="SM 53c"),
    ],
)
async def test_a_resent_open_finds_its_own_open(world: Any, old: bool, committed: bool) -> None:
    """Source: lustre/tests/recovery-small.sh test_53a, test_53b, test_53c"""
    async with world(clients=1) as c:
        if old:
            await c.a.create("/f")
        lost = c.drop_reply(Open)
        opening = soon(c.a.open("/f", create=True))
        await lost.caught()
        if committed:
            await c.mds.commit()
        file = await opening
        c.saw("reply.reconstructed", op="Open", times=1)
        assert len(list(c.mds.target().open_handles())) == 1
        await file.pwrite(b"once")
        await file.close()
        assert not list(c.mds.target().open_handles())


@pytest.mark.lustre("RD 8")
async def test_a_create_that_was_resent_and_then_lost_makes_one_file(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_8"""
    async with world(clients=2) as c:
        await c.replay_barrier(c.mds)
        lost = c.drop_reply(Create)
        await c.a.create("/f")
        await lost.caught()
        c.saw("reply.reconstructed", op="Create", times=1)
        await c.fail(c.mds)
        assert await c.b.listdir("/") == ["f"]


@pytest.mark.lustre("RD 24")
async def test_the_answer_about_a_file_that_has_gone_is_made_up(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_24"""
    async with world(clients=2, caching=0) as c:
        await c.a.write("/f", b"x" * 100)
        fid = (await c.a.fs.lstat("/f")).fid
        lost = c.drop_reply(Setattr)
        changing = soon(c.a.fs.change_fid(fid, mode=0o600))
        await lost.caught()
        await c.b.unlink("/f")
        assert (await changing).nlink == 0
        c.saw("reply.reconstructed", op="Setattr", times=1)


@pytest.mark.lustre("RD 24")
async def test_a_truncate_whose_file_has_gone_before_it_was_answered(world: Any) -> None:
    """Source: lustre/tests/replay-dual.sh test_24"""
    async with world(clients=2, caching=0) as c:
        await c.a.write("/f", b"x" * 100)
        lost = c.drop_reply(Setattr)
        truncating = soon(c.a.fs.truncate("/f", 10))
        await lost.caught()
        await c.b.unlink("/f")
        with refused(errno.ENOENT):
            await truncating
        c.saw("reply.reconstructed", op="Setattr", times=1)


async def test_a_create_whose_file_had_gone_is_replayed_for_those_that_saw_it(world: Any) -> None:
    """The made-up answer has no layout; the removal by somebody else must find the name again."""
    async with world(clients=2, area_of=lambda path: path[:1]) as c:
        await c.replay_barrier(c.mds)
        lost = c.drop_reply(Create)
        creating = soon(c.a.fs.create("/f"))
        await lost.caught()
        await c.b.fs.unlink("/f")
        await creating
        c.saw("reply.reconstructed", op="Create", times=1)
        await c.fail(c.mds)
        c.never_saw("import.evicted")
        assert not await c.b.exists("/f")


async def test_a_rebuilt_open_does_not_open_what_is_forbidden(world: Any) -> None:
    """After a failover the name of a file that was opened may be that of another one."""
    async with world(clients=2, oss=1, area_of=lambda path: path[:1]) as c:
        await c.a.write("/f", b"public", mode=0o644)
        await c.a.write("/secret", b"secret", mode=0o600)
        lost = c.drop_reply(Open)
        opening = soon(c.a.fs.as_user(1000, 1000).open("/f"))
        await lost.caught()
        await c.mds.commit()
        await c.mds.kill()
        held = c.net.hold(Open, source=c.a)
        await c.mds.start()
        await held.caught()
        await c.b.rename("/secret", "/f")
        held.release()
        with refused(errno.EACCES):
            await opening
