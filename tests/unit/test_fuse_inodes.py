"""What the kernel is told to forget, and when, with a kernel that only writes down what it hears."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from stat import S_IFDIR, S_IFREG
from types import SimpleNamespace
from typing import Any

import pytest

from lustrelite.fuse.inodes import Inodes, Node
from lustrelite.fuse.kernel import MINOR_EPOCH, OUT_HEADER, PAGE_BYTES, inc_epoch
from lustrelite.ids import ROOT_FID, SEQ_NORMAL, make_fid
from lustrelite.wire.ldlm import LOOKUP, OPEN, UPDATE, XATTR
from lustrelite.wire.ost import OBJECT_EOF

pytestmark = pytest.mark.simulated


class Heard:
    """A session."""

    alive = True
    minor = MINOR_EPOCH

    def __init__(self) -> None:
        self.known = True  # the kernel has the inode already
        self.told: list[str] = []
        self.ranges: list[tuple[int, int]] = []  # of pages
        self.blocked = False  # a page is locked for a request that has not arrived

    def notify(self, message: bytes) -> bool:
        if message == inc_epoch():
            self.told.append("names")
            return True
        start, _ = struct.unpack_from("<qq", message, OUT_HEADER.size + 8)
        self.told.append("attributes" if start < 0 else "listing")
        return self.known

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


FILE, OTHER = make_fid(SEQ_NORMAL, 7), make_fid(SEQ_NORMAL, 8)


class Believing:
    """A kernel that was told of a file of two objects: its attributes, and its name `f` in the root."""

    def __init__(self, *, mdt_s: float = 100, ost_s: float = 100) -> None:
        def leased(left: float) -> Any:
            return SimpleNamespace(imp=SimpleNamespace(lease_until=asyncio.get_running_loop().time() + left))

        self.root = SimpleNamespace(names={b"f": SimpleNamespace(fid=FILE)})
        self.stat = SimpleNamespace(mode=S_IFREG, uid=0, gid=0, layout=SimpleNamespace(stripes=((0, 7), (1, 8))))
        self.session: Any = Heard()
        connections = SimpleNamespace(
            mdc=leased(mdt_s), lov=SimpleNamespace(oscs=[leased(mdt_s), leased(ost_s)]),
            names=SimpleNamespace(files={ROOT_FID: self.root}),
        )  # fmt: skip
        view: Any = SimpleNamespace(root=ROOT_FID, connections=connections, known_stat=lambda _: self.stat)
        self.inodes = Inodes(view, self.session)
        self.node = self.inodes.of(FILE)
        self.attr_s, _ = self.newest(self.node)
        self.name_s = self.inodes.name_s(self.node, ROOT_FID, b"f")

    def newest(self, node: Node) -> tuple[float, Any]:
        return self.inodes.newest(node, self.stat, 1)  # type: ignore[arg-type]

    def hears(self) -> list[str]:
        """Since it was asked last."""
        told, self.session.told = self.session.told, []
        return told  # type: ignore[no-any-return]


@pytest.mark.parametrize(("mdt_s", "ost_s", "attr_s", "name_s"), [(100, 7, 7, 100), (7, 100, 7, 7), (100, -1, 0, 100), (-1, 100, 0, 0)])
async def test_the_kernel_believes_nothing_for_longer_than_the_leases(mdt_s: float, ost_s: float, attr_s: float, name_s: float) -> None:
    kernel = Believing(mdt_s=mdt_s, ost_s=ost_s)
    assert (kernel.attr_s, kernel.name_s) == (attr_s, name_s)


async def test_the_kernel_is_told_when_a_lock_of_an_inode_goes() -> None:
    kernel = Believing()
    inodes = kernel.inodes
    inodes.lost(FILE, XATTR)  # of which it keeps nothing
    inodes.lost(OTHER, LOOKUP | UPDATE)  # it has never heard of that one
    assert kernel.hears() == []
    inodes.lost(FILE, OPEN)  # the size may change
    assert kernel.hears() == ["attributes"]
    inodes.lost(FILE, UPDATE)
    assert kernel.hears() == [], "it believes in no attributes any more"
    inodes.lost(FILE, LOOKUP)
    assert kernel.hears() == ["names"]
    inodes.lost(FILE, LOOKUP)
    assert kernel.hears() == [], "it believes in no name any more"


async def test_attributes_on_their_way_of_an_inode_that_the_kernel_does_not_know_yet_go_with_the_names() -> None:
    """Between our answer and its making the inode it says that there is none, and would believe the answer afterwards."""
    kernel = Believing()
    kernel.session.known = False
    kernel.inodes.lost(FILE, UPDATE)
    assert kernel.hears() == ["attributes", "names"]


async def test_only_a_name_that_locks_vouch_for_is_believed() -> None:
    kernel = Believing()
    inodes = kernel.inodes
    kernel.root.names[b"f"] = SimpleNamespace(fid=OTHER)  # renamed since the question
    assert inodes.name_s(kernel.node, ROOT_FID, b"f") == 0
    assert inodes.name_s(kernel.node, ROOT_FID, b"g") == 0
    kernel.root.names[b"f"] = SimpleNamespace(fid=FILE)
    kernel.session.minor = MINOR_EPOCH - 1  # it could not be told to forget it
    assert inodes.name_s(kernel.node, ROOT_FID, b"f") == 0


async def test_a_listing_goes_when_the_kernel_has_heard_of_the_directory_anew() -> None:
    """A change from elsewhere may leave the mtime as it was."""
    kernel = Believing()
    kernel.stat.mode = S_IFDIR
    kernel.node.listed = True
    kernel.inodes.lost(FILE, UPDATE)
    kernel.hears()
    assert kernel.newest(kernel.node)[0] == 0 and kernel.hears() == []  # first it hears who may do what
    assert kernel.newest(kernel.node)[0] > 0 and kernel.hears() == ["listing"]
    assert kernel.newest(kernel.node)[0] > 0 and kernel.hears() == []


async def test_the_kernel_is_told_when_a_lock_on_data_goes() -> None:
    kernel = Believing()
    inodes, node = kernel.inodes, kernel.node
    lock: Any = Lock()
    lock.resource, lock.end = (8).to_bytes(8, "big"), PAGE_BYTES - 1
    assert inodes.believes(1, lock), "attributes"
    withdrawn = node.withdrawn
    assert inodes.withdraw(1, lock) is None  # there are no pages
    assert kernel.hears() == ["attributes"] and not inodes.believes(1, lock)
    assert node.overtaken(withdrawn), "who is reading has perhaps read under that lock"
    withdrawn = node.begin("read", 0, PAGE_BYTES)
    assert inodes.believes(1, lock), "pages"
    going = inodes.withdraw(1, lock)
    assert going is not None and not node.overtaken(withdrawn), "he may answer yet"
    await going  # type: ignore[misc]
    assert node.overtaken(withdrawn)
    assert kernel.session.ranges == [(PAGE_BYTES, 0)], "a range of an object may be anywhere in a striped file, and he is busy"


async def test_attributes_are_forgotten_when_a_lock_on_data_is_lost() -> None:
    kernel = Believing()
    kernel.inodes.lost_data(0, 7)
    assert kernel.hears() == ["attributes"]


async def test_a_node_lives_as_long_as_anybody_needs_it() -> None:
    kernel = Believing()
    inodes, node = kernel.inodes, kernel.node
    node.lookups, node.opens = 1, 1
    inodes.forget(node.number, 1)
    assert inodes.fids[FILE] is node, "it is open"
    node.begin("read", 0, 1)
    node.opens = 0
    inodes.tidy(node)
    assert inodes.fids[FILE] is node, "a request is not answered"
    node.end("read")
    inodes.tidy(node)
    assert FILE not in inodes.fids and node.number not in inodes.numbers and not inodes.objects


async def test_locks_on_objects_that_a_file_has_no_more_are_not_its_own() -> None:
    kernel = Believing()
    kernel.inodes.watch(kernel.node, SimpleNamespace(stripes=((1, 9),)))  # type: ignore[arg-type]
    kernel.inodes.lost_data(0, 7)
    assert kernel.hears() == []
    kernel.inodes.lost_data(1, 9)
    assert kernel.hears() == ["attributes"]
