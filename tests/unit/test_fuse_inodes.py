"""What the kernel is told to forget, and when, with a kernel that only writes down what it hears."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from stat import S_IFDIR
from types import SimpleNamespace
from typing import Any

import pytest

from lustrelite.fuse.inodes import Inodes
from lustrelite.fuse.kernel import OUT_HEADER, PAGE_BYTES
from lustrelite.ids import ROOT_FID
from lustrelite.wire.ost import OBJECT_EOF

pytestmark = pytest.mark.simulated


class Heard:
    """A session."""

    alive = True

    def __init__(self) -> None:
        self.told: list[str] = []
        self.ranges: list[tuple[int, int]] = []  # of pages
        self.blocked = False  # a page is locked for a request that has not arrived

    def notify(self, message: bytes) -> bool:
        self.told.append("attributes")
        return True

    def invalidate(self, messages: Sequence[bytes]) -> asyncio.Future[None]:
        self.told.append("pages")
        self.ranges += [struct.unpack_from("<qq", message, OUT_HEADER.size + 8) for message in messages]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.blocked:
            done.set_result(None)
        return done


class Lock:
    """On a whole object."""

    resource = (7).to_bytes(8, "big")
    start, end = 0, OBJECT_EOF


async def test_attributes_that_the_kernel_has_asked_for_come_before_pages_go() -> None:
    """Linux throws the answer to a GETATTR away if pages were invalidated meanwhile: a read would end at the old size."""
    session: Any = Heard()
    view: Any = SimpleNamespace(root=ROOT_FID)
    lock: Any = Lock()
    inodes = Inodes(view, session)
    node = inodes.root
    inodes.watch(node, SimpleNamespace(stripes=((0, 7),)))  # type: ignore[arg-type]
    node.pages, node.asked, node.attr_until = True, 1, asyncio.get_running_loop().time() + 100
    going = inodes.withdraw(0, lock)
    assert going is not None
    task = asyncio.ensure_future(going)
    await asyncio.sleep(0.03)
    assert session.told == []
    node.asked = 0
    await task
    assert session.told == ["attributes", "pages"] and not node.leaving
    node.pages, node.asked = True, 1  # one that is not answered, perhaps because its server is away, holds up nobody for long
    await asyncio.wait_for(asyncio.ensure_future(inodes.withdraw(0, lock)), 5)  # type: ignore[arg-type]
    assert session.told[-1] == "pages"


async def test_locks_that_go_at_the_same_time_all_hear_of_a_request_that_is_in_their_way() -> None:
    """The kernel has locked a page for a READ that is still in its queue: who drops pages waits for it, and it for the locks."""
    session: Any = Heard()
    view: Any = SimpleNamespace(root=ROOT_FID)
    locks: list[Any] = [Lock(), Lock()]
    inodes = Inodes(view, session)
    node = inodes.root
    inodes.watch(node, SimpleNamespace(stripes=((0, 7),)))  # type: ignore[arg-type]
    node.pages, session.blocked = True, True
    going = [asyncio.ensure_future(inodes.withdraw(0, lock)) for lock in locks]  # type: ignore[arg-type]
    while len(session.told) < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in going)
    session.blocked = False
    node.begin(object(), 0, 4096)  # here it is: the others go on without that page
    await asyncio.wait_for(asyncio.gather(*going), 5)
    assert not node.leaving


async def test_pages_under_a_lock_that_is_lost_go_but_not_those_that_somebody_waits_for() -> None:
    """He may wait for another server. If this process were killed while a thread waits for him both would stay for ever."""
    session: Any = Heard()
    view: Any = SimpleNamespace(root=ROOT_FID)
    inodes = Inodes(view, session)
    node = inodes.root
    inodes.watch(node, SimpleNamespace(stripes=((0, 7),)))  # type: ignore[arg-type]
    withdrawn = node.begin(object(), 100, PAGE_BYTES + 1)
    inodes.lost_data(0, 7)
    assert session.ranges == [(2 * PAGE_BYTES, 0)]
    assert node.overtaken(withdrawn), "he reads again before he answers"


def changes(*, told_to: tuple[int, ...], by: int, kernel: bool = True, done: bool = True) -> list[str]:
    """What the kernel hears of a directory that is changed, whose attributes these threads were told of."""
    session: Any = Heard()
    view: Any = SimpleNamespace(root=ROOT_FID, connections=SimpleNamespace(mdc=SimpleNamespace(imp=SimpleNamespace(lease_until=1e18))))
    inodes = Inodes(view, session)
    node, stat = inodes.root, SimpleNamespace(mode=S_IFDIR, layout=None)
    for pid in told_to:
        left, _ = inodes.newest(node, stat, pid, known=True)  # type: ignore[arg-type]
        assert left > 0
    if kernel:
        inodes.change_begins(node, by)
    inodes.changing(node.fid)
    assert inodes.root.changes == int(kernel)
    if kernel:
        inodes.change_ends(node, done)
    inodes.changing(b"x" * 16)  # type: ignore[arg-type]  # it has never heard of that one
    told: list[str] = session.told
    return told


@pytest.mark.parametrize(
    ("told_to", "by", "how", "hears"),
    [
        ((1,), 1, {}, False),  # who asks for it has seen the answer before
        ((1, 1), 1, {}, False),
        ((), 1, {}, False),
        ((2,), 1, {}, True),  # it may still be on its way to that one
        ((1, 2), 1, {}, True),
        ((0,), 0, {}, True),  # of another PID namespace: anybody
        (tuple(range(1, 40)), 39, {}, True),
        ((1,), 1, {"kernel": False}, True),  # by a tool
        ((1,), 1, {"done": False}, True),  # the kernel makes nothing of a refusal; perhaps it was done after all
    ],
)
async def test_the_kernel_is_told_of_a_change_unless_it_asked_for_it(told_to: Any, by: int, how: Any, hears: bool) -> None:
    assert bool(changes(told_to=told_to, by=by, **how)) is hears
