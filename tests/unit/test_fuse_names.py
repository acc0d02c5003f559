"""What the kernel asks about attributes, and in which order it is answered."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from stat import S_IFDIR, S_IFLNK, S_IFREG
from types import SimpleNamespace
from typing import Any

import pytest

from lustrelite.client.attributes import DirEntry, ObjectsAttr, Stat, merge
from lustrelite.errors import OpError
from lustrelite.fuse import kernel
from lustrelite.fuse.inodes import Inodes, attributes
from lustrelite.fuse.names import Names
from lustrelite.fuse.session import Request, _Rest
from lustrelite.fuse.walks import KEPT_S, Walks
from lustrelite.ids import NO_FID, ROOT_FID, SEQ_NORMAL, make_fid
from lustrelite.mdt.namespace import vanished_attr
from lustrelite.wire.ldlm import LOOKUP
from lustrelite.wire.mdt import Attr

pytestmark = pytest.mark.simulated
INODE = Attr(ROOT_FID, S_IFREG | 0o644, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, None, NO_FID)


def of_size(size: int) -> Stat:
    return merge(INODE, ObjectsAttr(size, 0, 1, 1))


class Asked:
    """A mount of which nothing is known without asking the servers."""

    def __init__(self) -> None:
        self.questions: list[asyncio.Future[Stat]] = []
        self.queued: list[Callable[[], Any]] = []  # what the kernel has asked and nobody has read
        view: Any = SimpleNamespace(
            root=ROOT_FID, known_stat=lambda _: None, stat_fid=self.ask, connections=SimpleNamespace(names=None)
        )
        session: Any = SimpleNamespace(receive=self.receive)
        mount: Any = SimpleNamespace(fs=view, session=session, inodes=Inodes(view, session))
        self.names = Names(mount)

    async def ask(self, _: Any) -> Stat:
        self.questions.append(asyncio.get_running_loop().create_future())
        return await self.questions[-1]

    def receive(self) -> None:
        while self.queued:
            self.queued.pop()()

    def getattr(self) -> asyncio.Future[Any]:
        """Begun at once, as the session does it."""
        later: Any = self.names.getattr(Request(kernel.op.GETATTR, 1, kernel.ROOT_ID, 0, 0, 1), memoryview(b""))
        waiting = later.send(None)

        async def rest() -> Any:
            return await _Rest(later, waiting)

        return asyncio.ensure_future(rest())

    async def answer(self, number: int, size: int) -> None:
        await asyncio.sleep(0.01)
        assert len(self.questions) == number + 1
        self.questions[number].set_result(of_size(size))
        await asyncio.sleep(0.01)


def told(size: int) -> bytes:
    return kernel.attr_out(0.0, attributes(of_size(size)))


async def test_nobody_is_told_older_attributes_than_another_waits_for() -> None:
    """Of answers that are on their way Linux takes the first: a read would end at the size that somebody's stat has found."""
    mount = Asked()
    looks = mount.getattr()
    reads = mount.getattr()  # after another node's append has returned
    await mount.answer(0, 0)
    assert not looks.done() and not reads.done()
    await mount.answer(1, 10)
    assert await looks == await reads == told(10)


async def test_a_question_that_waits_in_the_kernel_counts() -> None:
    mount = Asked()
    looks = mount.getattr()
    late: list[asyncio.Future[Any]] = []
    mount.queued.append(lambda: late.append(mount.getattr()))
    await mount.answer(0, 0)
    assert not looks.done()
    await mount.answer(1, 10)
    assert await looks == await late[0] == told(10)


async def test_who_gives_up_leaves_the_question_to_the_others() -> None:
    mount = Asked()
    first = mount.getattr()
    await asyncio.sleep(0.01)
    others = [mount.getattr() for _ in range(3)]
    await asyncio.sleep(0.01)
    for gone in (others[0], first):
        gone.cancel()
        await asyncio.sleep(0.01)
    await mount.answer(1, 5)
    await mount.answer(2, 10)
    assert [await other for other in others[1:]] == [told(10)] * 2


async def test_a_write_is_answered_after_who_waits_for_attributes() -> None:
    """Linux would throw these away, and a read would not find what another node has appended."""
    mount = Asked()
    order: list[str] = []
    await mount.names.until_told(ROOT_FID)  # nobody
    looks = [mount.getattr() for _ in range(2)]
    for look in looks:
        look.add_done_callback(lambda _: order.append("attributes"))
    written = asyncio.ensure_future(mount.names.until_told(ROOT_FID))
    written.add_done_callback(lambda _: order.append("write"))
    await mount.answer(0, 0)
    assert not order
    await mount.answer(1, 10)
    assert order == ["attributes", "attributes", "write"]
    look = mount.getattr()
    await asyncio.wait_for(mount.names.until_told(ROOT_FID), 1)  # a server is away: that does not stop who writes
    await mount.answer(2, 10)
    assert await look == told(10)


@pytest.mark.parametrize("how", ["error", "interrupt"])
async def test_a_listing_that_fails_in_the_middle_has_told_the_kernel_of_nothing(how: str) -> None:
    """It never forgets what it has not heard of: the nodes would stay for ever."""
    mount = Asked()
    names = mount.names
    attr = INODE._replace(fid=make_fid(SEQ_NORMAL, 7))
    more: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    pages = [([DirEntry(b"f", attr.fid, S_IFREG, 100, merge(attr, None))], False)]

    async def after(*_: Any, **__: Any) -> Any:
        return pages.pop() if pages else await more

    names._listings.after = after  # type: ignore[method-assign]
    body = kernel.SHAPES[kernel.op.READDIRPLUS].fields.pack(0, 2, 4096, 0, 0, 0, 0)
    listing = asyncio.ensure_future(names.readdirplus(Request(kernel.op.READDIRPLUS, 1, kernel.ROOT_ID, 0, 0, 1), memoryview(body)))
    await asyncio.sleep(0.01)
    if how == "error":
        more.set_exception(OpError(errno.EIO))
    else:
        listing.cancel()
    with pytest.raises((OpError, asyncio.CancelledError)):
        await listing
    assert list(names.inodes.numbers) == [kernel.ROOT_ID]


async def test_what_is_gone_when_a_lost_answer_comes_again_is_stale_and_no_broken_inode() -> None:
    """Linux makes an inode bad (EIO, for ever) if it hears of another type than it knows, as that of nothing is."""
    mount = Asked()
    names = mount.names
    gone = merge(vanished_attr(ROOT_FID), None)

    async def changed(*_: Any, **__: Any) -> Stat:
        return gone

    view: Any = SimpleNamespace(setattr_fid=changed, mkdir_at=changed)
    names.mount.callers = SimpleNamespace(view=lambda _: view)  # type: ignore[assignment]
    names.mount.files = SimpleNamespace(handles={})  # type: ignore[assignment]
    names.mount.session.flags = kernel.init.HANDLE_KILLPRIV_V2
    names.inodes.change_begins = names.inodes.change_ends = lambda *_: None  # type: ignore[method-assign,assignment]
    chmod = kernel.SHAPES[kernel.op.SETATTR].fields.pack(kernel.fattr.MODE, *([0] * 10), 0o600, 0, 0, 0, 0)
    mkdir = kernel.SHAPES[kernel.op.MKDIR].fields.pack(0o755, 0) + b"d\0"
    for opcode, handler, body in ((kernel.op.SETATTR, names.setattr, chmod), (kernel.op.MKDIR, names.mkdir, mkdir)):
        with pytest.raises(OpError) as caught:
            await handler(Request(opcode, 1, kernel.ROOT_ID, 0, 0, 1), memoryview(body))
        assert caught.value.errno == errno.ESTALE


async def gone(*_: Any, **__: Any) -> Any:
    """What the servers say of what is not there."""
    await asyncio.sleep(0)
    raise OpError(errno.ENOENT)


async def refused(later: Any) -> int:
    with pytest.raises(OpError) as caught:
        await later
    return caught.value.errno


async def test_what_has_lost_its_last_name_elsewhere_is_stale_and_a_name_is_just_not_there() -> None:
    """On ESTALE Linux walks the path once more; a program that hears ENOENT of what it has in its hands is misled."""
    mount = Asked()
    names, fs = mount.names, mount.names.fs
    fs.stat_at = fs.readlink_fid = fs.stat_fid = gone  # type: ignore[method-assign]

    def lookup(name: bytes) -> Any:
        return names.lookup(Request(kernel.op.LOOKUP, 1, kernel.ROOT_ID, 0, 0, 1), memoryview(name + b"\0"))

    fs.stat_at_now = lambda *_: None  # type: ignore[method-assign]
    assert await refused(lookup(b"f")) == errno.ENOENT
    assert [await refused(lookup(name)) for name in (b".", b"..")] == [errno.ESTALE] * 2
    request = Request(kernel.op.READLINK, 1, kernel.ROOT_ID, 0, 0, 1)
    assert await refused(names.readlink(request, memoryview(b""))) == errno.ESTALE
    assert await refused(mount.getattr()) == errno.ESTALE
    names.inodes.root.gone = INODE  # removed from here: somebody has it open
    assert await refused(names.readlink(request, memoryview(b""))) == errno.ENOENT


@pytest.mark.parametrize("how", ["removed from here", "removed elsewhere"])
async def test_who_is_in_what_was_removed_sees_it_without_links(how: str) -> None:
    mount = Asked()
    node = mount.names.inodes.root
    mount.names.fs.stat_fid = gone  # type: ignore[method-assign]
    attr = INODE._replace(mode=(S_IFLNK if how == "removed from here" else S_IFDIR) | 0o755, nlink=2)
    if how == "removed from here":
        node.gone = attr
    else:
        node.latest = merge(attr, None)
    assert await mount.getattr() == kernel.attr_out(0.0, attributes(merge(attr, None)._replace(nlink=0)))


@pytest.mark.parametrize(("nlink", "done", "told"), [(1, True, 0), (1, False, 1), (2, True, 1)])
async def test_a_removal_spares_other_names_if_it_takes_the_only_one_and_succeeds(nlink: int, done: bool, told: int) -> None:
    """The kernel drops that one itself; `told` is how often it hears that all are doubtful."""
    mount = Asked()
    names, heard = mount.names, []
    fid = make_fid(SEQ_NORMAL, 7)
    node = names.inodes.of(fid)
    node.epoch, node.name_until = names.inodes.epoch, asyncio.get_running_loop().time() + 100
    known = SimpleNamespace(attr=INODE._replace(fid=fid, nlink=nlink))
    names.fs.connections.names = SimpleNamespace(files={ROOT_FID: SimpleNamespace(names={b"f": known})})  # type: ignore[assignment]
    names.inodes.session.notify = lambda message: heard.append(message) or True  # type: ignore[method-assign,func-returns-value]
    names.inodes.session.alive = True

    async def unlink(*_: Any) -> None:
        names.inodes.lost(fid, LOOKUP)  # our own lock goes with the request
        if not done:
            raise OpError(errno.EACCES)

    names.mount.callers = SimpleNamespace(view=lambda _: SimpleNamespace(unlink_at=unlink))  # type: ignore[assignment]
    removing = names.unlink(Request(kernel.op.UNLINK, 1, kernel.ROOT_ID, 0, 0, 1), memoryview(b"f\0"))
    if done:
        await removing
    else:
        assert await refused(removing) == errno.EACCES
    assert heard == [kernel.inc_epoch()] * told


async def test_what_is_found_by_who_walks_once_more_stays_for_a_while() -> None:
    """It is opened; who could not be, because it has lost the name meanwhile, is looked for again."""
    files, closed = [make_fid(SEQ_NORMAL, number) for number in (7, 8)], []
    found = iter(files)

    async def stat_at(*_: Any) -> Stat:
        return merge(INODE._replace(fid=next(found)), None)

    async def open_fid(fid: Any) -> Any:
        if fid == files[0]:
            raise OpError(errno.ENOENT)
        return SimpleNamespace(close_later=lambda: closed.append(fid))

    walks = Walks(SimpleNamespace(stat_at=stat_at, open_fid=open_fid))  # type: ignore[arg-type]
    assert not walks.again(1)
    walks.stale(1)
    assert walks.again(1) and not walks.again(2)
    assert (await walks.find(1, ROOT_FID, b"f")).fid == files[1]
    assert not walks.again(1) and not closed
    await asyncio.sleep(KEPT_S + 0.1)
    assert closed == [files[1]]
    walks.stale(1)
    await asyncio.sleep(10)
    assert not walks.again(1), "that was something else"
