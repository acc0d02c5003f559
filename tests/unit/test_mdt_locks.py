"""Which locks of clients an operation of the MDT takes back before it happens, and which it brings to who asked."""

from __future__ import annotations

import asyncio
import errno
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from mdt_fixture import ALICE, ROOT, World

from lustrelite.ids import Fid
from lustrelite.ldlm.lock import LOCAL
from lustrelite.rpc.export import Call
from lustrelite.wire import mdt as wire
from lustrelite.wire.ldlm import (
    BITS_ALL,
    BLOCK_GRANTED,
    IBITS,
    LAYOUT,
    LOOKUP,
    OPEN,
    PERM,
    PR,
    REPLACE_EACH,
    UPDATE,
    XATTR,
    Granted,
    Ride,
    Want,
)
from lustrelite.wire.mdt import Attr
from lustrelite.wire.message import REPLAY

BITS = (LOOKUP, UPDATE, OPEN, LAYOUT, PERM, XATTR)


class Replies:
    """The link of a client that remembers its answers."""

    peer = "test"

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, kind: int, header: bytes, bulk: Any = None) -> None:
        self.sent.append(header)


class Tree(World):
    """/d with f, a second name of it, g, an empty directory e and a full one; b holds what the test says."""

    last_handle = 0

    async def start(self, *, recovering: bool = False) -> None:
        await super().start(recovering=recovering)
        if self.last_fid:
            return
        self.fids: dict[str, Fid] = {"/": ROOT}
        for name in ("d", "other"):
            self.fids[name] = self.mkdir(ROOT, name.encode())
        d = self.fids["d"]
        self.fids["f"] = self.make(d, b"f")
        self.fids["twice"] = self.make(d, b"twice")
        self.link(self.fids["twice"], d, b"second")
        self.fids["e"] = self.mkdir(d, b"e")
        self.fids["set"] = self.make(d, b"set", stat.S_IFREG | 0o4777)

    def hold(self, fid: Fid, bits: int, client: str = "b") -> int:
        self.last_handle += 1
        granted = self.mdt.namespace.take(self.export(client), want(self.last_handle, bits, fid))
        assert granted.flags & BLOCK_GRANTED and granted.bits == bits
        return self.last_handle

    def give_back(self, handle: int, client: str = "b") -> None:
        self.mdt.namespace.cancel(self.export(client), (handle,))

    def waits(self, body: Any, **more: Any) -> bool:
        call = self.call(body, **more)
        waiting = self.mdt.handlers[type(body)].prepare(call, body)  # type: ignore[misc]
        if waiting is not None:
            waiting.close()  # type: ignore[attr-defined]
        return waiting is not None

    def begin(self, body: Any, **more: Any) -> Call:
        """Execute as a target does, with waiting and answer."""
        call = self.call(body, **more)
        call.link.link = Replies()  # type: ignore[assignment]
        call.arrived = self.node.now()
        self.commit()  # else it would be answered after what it depends on is durable
        self.mdt.serving.execute(call)
        return call

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    def asked(self, client: str = "b") -> dict[Fid, int]:
        """What a client is asked to give back: bits by inode."""
        result: dict[Fid, int] = {}
        for lock in self.mdt.namespace.table.locks():
            if lock.owner is self.export(client) and lock.asked:
                result[Fid(lock.resource.id)] = lock.bits
        return result

    def riding(self, body: Any, *, bits: int = LOOKUP | PERM, try_bits: int = 0, fid: bytes = b"", flags: int = 0, **more: Any) -> Call:
        self.last_handle += 1000
        return self.begin(body, ride=Ride((), want(self.last_handle, bits, fid, try_bits=try_bits, flags=flags)), **more)

    def granted(self, call: Call) -> list[tuple[bytes, int]]:
        return [(g.resource, g.bits) for g in call.granted]


def want(handle: int, bits: int, fid: bytes = b"", *, try_bits: int = 0, flags: int = 0) -> Want:
    return Want(handle, IBITS, fid, PR, flags, bits, try_bits, 0, 0, 0, 0)


@pytest.fixture
async def mdt(tmp_path: Path) -> AsyncIterator[Tree]:
    world = Tree(tmp_path)
    await world.start()
    yield world
    for export in world.exports.values():
        world.mdt.namespace.owner_gone(export)
    await world.settle()
    assert not world.mdt.namespace.lock_count, "no lock of the MDT's own is left"
    await world.stop()


# what an operation needs gone -----------------------------------------------------------------------------------

Operation = Callable[[Tree], Any]


def unlink(name: bytes, flags: int = 0) -> Operation:
    return lambda t: wire.Unlink(t.fids["d"], name, flags, 9)


def rename(name: bytes, target: str, new: bytes, flags: int = 0) -> Operation:
    return lambda t: wire.Rename(t.fids["d"], name, t.fids[target], new, flags, 9)


def setting(name: str, **values: int) -> Operation:
    return lambda t: t.setting(t.fids[name], **values)


def opening(name: bytes, flags: int) -> Operation:
    return lambda t: wire.Open(t.fids["d"], name, t.fid(), flags, 0o644, 9, None, None)


NOBODY: dict[str, int] = {}
TABLE: list[tuple[str, Operation, dict[str, int]]] = [
    ("create", lambda t: t.new(t.fids["d"], b"new"), {"d": UPDATE}),
    ("mkdir", lambda t: t.new(t.fids["d"], b"new", stat.S_IFDIR | 0o755), {"d": UPDATE}),
    ("create of what is there", lambda t: t.new(t.fids["d"], b"f"), NOBODY),
    ("open", opening(b"f", wire.OPEN_READ), NOBODY),
    ("open to write", opening(b"f", wire.OPEN_READ | wire.OPEN_WRITE), {"f": OPEN}),
    ("open of nothing", opening(b"nothing", wire.OPEN_READ), NOBODY),
    ("open that finds", opening(b"f", wire.OPEN_READ | wire.OPEN_CREATE), NOBODY),
    ("open that makes", opening(b"new", wire.OPEN_WRITE | wire.OPEN_CREATE), {"d": UPDATE}),
    ("open that truncates", opening(b"f", wire.OPEN_WRITE | wire.OPEN_TRUNC), {"f": UPDATE | OPEN}),
    ("open that truncates or makes", opening(b"f", wire.OPEN_WRITE | wire.OPEN_CREATE | wire.OPEN_TRUNC), {"f": UPDATE | OPEN}),
    ("link", lambda t: wire.Link(t.fids["f"], t.fids["other"], b"l", 9), {"f": UPDATE, "other": UPDATE}),
    ("unlink of the last name", unlink(b"f"), {"d": UPDATE, "f": BITS_ALL}),
    ("unlink of a name", unlink(b"twice"), {"d": UPDATE, "twice": LOOKUP | UPDATE}),
    ("unlink of nothing", unlink(b"nothing"), NOBODY),
    ("rmdir", unlink(b"e", wire.UNLINK_RMDIR), {"d": UPDATE, "e": BITS_ALL}),
    ("rename", rename(b"f", "d", b"new"), {"d": UPDATE, "f": LOOKUP | UPDATE}),
    ("rename across", rename(b"f", "other", b"f"), {"d": UPDATE, "other": UPDATE, "f": LOOKUP | UPDATE}),
    ("rename over", rename(b"f", "d", b"set"), {"d": UPDATE, "f": LOOKUP | UPDATE, "set": BITS_ALL}),
    ("rename over one name of two", rename(b"f", "d", b"second"), {"d": UPDATE, "f": LOOKUP | UPDATE, "twice": LOOKUP | UPDATE}),
    ("rename of nothing", rename(b"nothing", "other", b"f"), NOBODY),
    ("exchange", rename(b"f", "d", b"e", wire.RENAME_EXCHANGE), {"d": UPDATE, "f": LOOKUP | UPDATE, "e": LOOKUP | UPDATE}),
    ("chmod", setting("f", mode=0o600), {"f": UPDATE | PERM}),
    ("chown", setting("f", uid=7), {"f": UPDATE | PERM}),
    ("utimes", setting("f", atime=7, mtime=7), {"f": UPDATE}),
    ("truncate", setting("f", size=7), {"f": UPDATE | OPEN}),
    ("setattr of nothing", setting("f"), NOBODY),
    ("setxattr", lambda t: wire.Setxattr(t.fids["f"], b"user.a", b"", 0, 9), {"f": UPDATE | XATTR}),
    ("setstripe", lambda t: wire.SetDirStripe(t.fids["d"], None, 9), {"d": UPDATE | XATTR}),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "gone"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
async def test_what_is_cached_of_what_changes_goes_first_and_nothing_else(
    mdt: Tree, operation: Operation, gone: dict[str, int]
) -> None:
    for name, fid in mdt.fids.items():
        for bit in BITS:
            handle = mdt.hold(fid, bit)
            assert mdt.waits(operation(mdt)) == bool(gone.get(name, 0) & bit), (name, bit)
            mdt.give_back(handle)
    handles = [mdt.hold(mdt.fids[name], bits) for name, bits in gone.items()]
    call = mdt.begin(operation(mdt))
    assert call.answered == (not gone)
    await mdt.settle()
    assert mdt.asked() == {mdt.fids[name]: bits for name, bits in gone.items()}
    for handle in handles:
        assert not call.answered
        mdt.give_back(handle)
        await mdt.settle()
    assert call.answered


async def test_a_truncation_takes_set_id_bits_and_so_the_permissions(mdt: Tree) -> None:
    mdt.hold(mdt.fids["set"], PERM)
    for cred, waits in (((0, 0), False), (ALICE, True)):
        assert mdt.waits(mdt.setting(mdt.fids["set"], size=0), cred=cred) == waits
        assert mdt.waits(opening(b"set", wire.OPEN_TRUNC | wire.OPEN_WRITE)(mdt), cred=cred) == waits
    mdt.hold(mdt.fids["f"], PERM)
    assert not mdt.waits(mdt.setting(mdt.fids["f"], size=0), cred=ALICE)


async def test_a_close_takes_back_what_it_changes(mdt: Tree) -> None:
    f = mdt.fids["f"]
    handle, _ = mdt.open(mdt.fids["d"], b"f")
    held = mdt.hold(f, UPDATE)
    assert not mdt.waits(wire.Close(handle, f, 0, 0, 0, 0)), "it read and wrote nothing"
    assert not mdt.waits(wire.Close(handle, f, 1, 1, 0, 0)), "old times are no news"
    assert not mdt.waits(wire.Close(handle + 1, f, 10**6, 10**6, 0, 0)), "no such handle"
    closing = wire.Close(handle, f, 0, 10**6, 0, 0)
    assert mdt.waits(closing)
    call = mdt.begin(closing)
    await mdt.settle()
    assert not call.answered and handle in mdt.export("a").opens and mdt.asked() == {f: UPDATE}
    mdt.give_back(held)
    await mdt.settle()
    assert call.answered and not mdt.export("a").opens and mdt.inode(f).mtime == 10**6


async def test_the_last_close_of_an_orphan_takes_all_of_it(mdt: Tree) -> None:
    f = mdt.fids["f"]
    first, _ = mdt.open(mdt.fids["d"], b"f")
    second, _ = mdt.open(mdt.fids["d"], b"f", client="c")
    mdt.unlink(mdt.fids["d"], b"f")
    held = mdt.hold(f, LAYOUT)
    assert not mdt.waits(wire.Close(first, f, 0, 0, 0, 0))
    mdt.close(first, f)
    closing = mdt.begin(wire.Close(second, f, 0, 0, 0, 0), client="c")
    await mdt.settle()
    assert not closing.answered
    mdt.give_back(held)
    await mdt.settle()
    assert closing.answered and not mdt.exists(f)


async def test_many_closes_take_back_what_they_change_but_from_the_closer(mdt: Tree) -> None:
    f, other = mdt.fids["f"], mdt.fids["set"]
    handle, _ = mdt.open(mdt.fids["d"], b"f")
    own = mdt.hold(other, UPDATE, client="a")
    held = mdt.hold(f, UPDATE)
    news, none = wire.ClosedFile(handle, f, 0, 10**6), wire.ClosedFile(0, other, 10**6, 0)
    assert not mdt.waits(wire.Closes((none, none._replace(atime=1), news._replace(handle=handle + 1), news._replace(mtime=1))))
    call = mdt.begin(wire.Closes((none, news)))
    await mdt.settle()
    assert not call.answered and mdt.asked() == {f: UPDATE}
    mdt.give_back(held)
    await mdt.settle()
    assert call.answered and not mdt.export("a").opens and (mdt.inode(f).mtime, mdt.inode(other).atime) == (10**6, 10**6)
    mdt.give_back(own)


async def test_the_last_closes_of_an_orphan_in_one_message_take_all_of_it(mdt: Tree) -> None:
    f = mdt.fids["f"]
    handles = [mdt.open(mdt.fids["d"], b"f")[0] for _ in range(2)]
    mdt.unlink(mdt.fids["d"], b"f")
    held = mdt.hold(f, LAYOUT)
    rows = tuple(wire.ClosedFile(handle, f, 0, 0) for handle in handles)
    assert not mdt.waits(wire.Closes(rows[:1]))
    call = mdt.begin(wire.Closes(rows))
    await mdt.settle()
    assert not call.answered
    mdt.give_back(held)
    await mdt.settle()
    assert call.answered and not mdt.exists(f)


# the wait -------------------------------------------------------------------------------------------------------


async def test_whose_name_it_is_is_found_again_after_the_wait(mdt: Tree) -> None:
    """The name belongs to another file when the lock of the directory has come back: that one's locks go, too."""
    d, f, other = (mdt.fids[name] for name in ("d", "f", "set"))
    first, second = mdt.hold(d, UPDATE), mdt.hold(other, PERM)
    call = mdt.begin(wire.Unlink(d, b"f", 0, 9))
    await mdt.settle()
    assert mdt.asked() == {d: UPDATE}
    mdt.give_back(first)
    mdt.rename(d, b"set", d, b"f")  # in the turn before the unlink goes on
    mdt.commit()
    await mdt.settle()
    assert not call.answered and mdt.asked() == {other: PERM} and not mdt.exists(f)
    mdt.give_back(second)
    await mdt.settle()
    assert call.answered and mdt.find(d, b"f") is None and not mdt.exists(other)


async def test_who_waits_takes_nothing_from_who_does_not(mdt: Tree) -> None:
    """An operation that waits holds nobody up but those who want what it waits for."""
    d, f = mdt.fids["d"], mdt.fids["f"]
    held = mdt.hold(f, LOOKUP)
    waiting = mdt.begin(wire.Unlink(d, b"f", 0, 9))
    await mdt.settle()
    assert not waiting.answered
    assert mdt.make(d, b"new") and mdt.find(d, b"new"), "the directory is free"
    assert mdt.waits(wire.Rename(d, b"f", d, b"x", 0, 9))
    mdt.give_back(held)
    await mdt.settle()
    assert waiting.answered


async def test_two_that_want_the_same_go_one_after_the_other(mdt: Tree) -> None:
    d, f = mdt.fids["d"], mdt.fids["f"]
    held = mdt.hold(f, BITS_ALL)
    calls = [
        mdt.begin(wire.Rename(d, b"f", d, b"g", 0, 9), tag=1),
        mdt.begin(wire.Rename(d, b"f", d, b"h", 0, 9), tag=2),
        mdt.begin(wire.Unlink(d, b"g", 0, 9), tag=3),
    ]
    await mdt.settle()
    assert [call.answered for call in calls] == [False, False, True], "there is no g yet"
    mdt.give_back(held)
    await mdt.settle()
    assert all(call.answered for call in calls) and mdt.find(d, b"g") == f and mdt.find(d, b"h") is None


async def test_a_client_that_is_evicted_in_the_wait_changes_nothing(mdt: Tree) -> None:
    d, f = mdt.fids["d"], mdt.fids["f"]
    held = mdt.hold(f, LOOKUP)
    call = mdt.begin(wire.Unlink(d, b"f", 0, 9))
    await mdt.settle()
    call.export.failed = True
    mdt.give_back(held)
    await mdt.settle()
    assert mdt.find(d, b"f") == f and not mdt.mdt.namespace.table.owners.get(LOCAL)


async def test_own_locks_that_go_with_the_request_are_not_in_the_way(mdt: Tree) -> None:
    d, f = mdt.fids["d"], mdt.fids["f"]
    whole, part = mdt.hold(d, UPDATE, "a"), mdt.hold(f, BITS_ALL, "a")
    call = mdt.begin(wire.Rename(d, b"f", d, b"g", 0, 9), ride=Ride((whole,), None, ((part, LOOKUP | UPDATE),)))
    assert call.answered and mdt.find(d, b"g") == f
    left = list(mdt.mdt.namespace.table.locks())
    assert [(lock.handle, lock.bits) for lock in left] == [(part, BITS_ALL & ~(LOOKUP | UPDATE))]


KEPT: list[tuple[str, Operation, dict[str, int]]] = [
    ("create", lambda t: t.new(t.fids["d"], b"new"), {"d": UPDATE}),
    ("open that makes", opening(b"new", wire.OPEN_WRITE | wire.OPEN_CREATE), {"d": UPDATE}),
    ("open to write", opening(b"f", wire.OPEN_WRITE), {"f": OPEN | UPDATE}),
    ("link", lambda t: wire.Link(t.fids["f"], t.fids["other"], b"l", 9), {"other": UPDATE}),
    ("unlink", unlink(b"f"), {"d": UPDATE}),
    ("rename", rename(b"f", "other", b"g"), {"d": UPDATE, "other": UPDATE, "f": LOOKUP | UPDATE}),
    ("exchange", rename(b"f", "d", b"e", wire.RENAME_EXCHANGE), {"d": UPDATE}),
    ("chmod", setting("f", mode=0o600), {"f": UPDATE | PERM}),
    ("truncate", setting("f", size=7), {"f": UPDATE | OPEN}),
]  # fmt: skip


@pytest.mark.parametrize(("operation", "kept"), [row[1:] for row in KEPT], ids=[row[0] for row in KEPT])
async def test_what_the_author_learns_from_the_answer_he_keeps(
    mdt: Tree, operation: Operation, kept: dict[str, int]
) -> None:
    for name, bits in kept.items():
        mdt.hold(mdt.fids[name], bits, "a")
    assert mdt.begin(operation(mdt)).answered and mdt.asked("a") == {}


async def test_other_locks_of_the_author_are_asked_for_as_anybodys(mdt: Tree) -> None:
    held = mdt.hold(mdt.fids["f"], LOOKUP, "a")
    call = mdt.begin(unlink(b"f")(mdt))
    await mdt.settle()
    assert not call.answered and mdt.asked("a") == {mdt.fids["f"]: LOOKUP}
    mdt.give_back(held, "a")
    await mdt.settle()
    assert call.answered


async def test_who_makes_a_file_hears_when_another_opens_it_to_write(mdt: Tree) -> None:
    d = mdt.fids["d"]
    made = mdt.riding(mdt.new(d, b"new"), try_bits=UPDATE | OPEN)
    assert mdt.granted(made) == [(made.body.fid, LOOKUP | PERM | UPDATE | OPEN)]
    found = mdt.riding(opening(b"new", wire.OPEN_WRITE | wire.OPEN_CREATE)(mdt), try_bits=UPDATE | OPEN, client="a")
    assert mdt.granted(found) == [(made.body.fid, LOOKUP | PERM)], "a promise of this kind is made to the maker"
    assert mdt.waits(opening(b"new", wire.OPEN_WRITE)(mdt), client="b")
    assert not mdt.waits(opening(b"new", wire.OPEN_READ)(mdt), client="b")


async def test_objects_and_locks_are_waited_for_both(mdt: Tree) -> None:
    d = mdt.fids["d"]
    osps = list(mdt.mdt.allocator.osps.values())
    for osp in osps:
        osp.synced = False
    mdt.mdt.allocator.refresh()
    call = mdt.begin(mdt.new(d, b"new"))
    await mdt.settle()
    held = mdt.hold(d, UPDATE)
    for osp in osps:
        osp.synced = True
    mdt.mdt.allocator.refresh()
    await mdt.settle()
    assert not call.answered and mdt.asked() == {d: UPDATE}
    mdt.give_back(held)
    await mdt.settle()
    assert call.answered and mdt.find(d, b"new") is not None


async def test_replays_take_no_locks(mdt: Tree) -> None:
    mdt.hold(mdt.fids["d"], UPDATE)
    body = mdt.new(mdt.fids["d"], b"new")
    assert mdt.waits(body) and not mdt.waits(body, flags=REPLAY)
    mdt.mdt.recovering = True
    assert not mdt.waits(body)
    mdt.mdt.recovering = False


# what an operation brings ---------------------------------------------------------------------------------------


async def test_the_lock_is_on_what_was_found(mdt: Tree) -> None:
    d, f = mdt.fids["d"], mdt.fids["f"]
    for body in (
        wire.Lookup(d, b"f"), wire.Getattr(f), mdt.setting(f, mode=0o640), opening(b"f", wire.OPEN_READ)(mdt),
        wire.Open(d, b"", f, wire.OPEN_READ | wire.OPEN_BY_FID, 0, 9, None, None),
    ):  # fmt: skip
        assert mdt.granted(mdt.riding(body, try_bits=UPDATE, client="c")) == [(f, LOOKUP | PERM | UPDATE)], body
        mdt.mdt.namespace.owner_gone(mdt.export("c"))
    made = opening(b"new", wire.OPEN_WRITE | wire.OPEN_CREATE)(mdt)
    assert mdt.granted(mdt.riding(made)) == [(made.fid, LOOKUP | PERM)]
    assert mdt.granted(mdt.riding(wire.Unlink(d, b"new", 0, 9))) == []
    assert mdt.granted(mdt.riding(wire.Getattr(mdt.fid()))) == []


async def test_no_lock_comes_if_somebody_waits_for_what_it_is_on(mdt: Tree) -> None:
    d, f = mdt.fids["d"], mdt.fids["f"]
    mdt.hold(f, UPDATE)
    call = mdt.begin(mdt.setting(f, atime=7))
    await mdt.settle()
    assert not call.answered
    assert mdt.granted(mdt.riding(wire.Lookup(d, b"f"), try_bits=UPDATE, client="c")) == [(f, LOOKUP | PERM)]
    assert mdt.granted(mdt.riding(wire.Getattr(f), bits=UPDATE, client="c")) == []


async def test_a_missing_name_brings_the_directory_unless_clients_meet_there(mdt: Tree) -> None:
    d = mdt.fids["d"]
    assert mdt.granted(mdt.riding(wire.Lookup(d, b"nothing"))) == [(d, UPDATE)]
    assert mdt.granted(mdt.riding(wire.Lookup(d, b"f"), cred=ALICE)) == [(mdt.fids["f"], LOOKUP | PERM)]
    assert mdt.granted(mdt.riding(wire.Lookup(mdt.fid(), b"nothing"))) == [], "no directory"
    assert mdt.granted(mdt.riding(wire.Lookup(mdt.fids["f"], b"nothing"))) == [], "no directory"
    other = mdt.begin(mdt.new(d, b"new"), client="b")
    await mdt.settle()
    assert not other.answered and mdt.asked("a") == {d: UPDATE}
    mdt.mdt.namespace.owner_gone(mdt.export("a"))
    await mdt.settle()
    assert other.answered
    assert mdt.granted(mdt.riding(wire.Lookup(d, b"nothing"))) == [], "two make files there"
    assert mdt.granted(mdt.riding(wire.Getattr(d), try_bits=UPDATE)) == [(d, LOOKUP | PERM)]
    assert mdt.granted(mdt.riding(wire.Getattr(mdt.fids["other"]), try_bits=UPDATE)) == [
        (mdt.fids["other"], LOOKUP | PERM | UPDATE)
    ]


async def test_a_page_brings_the_directory_and_each_entry_that_is_free(mdt: Tree) -> None:
    d = mdt.fids["d"]
    mdt.hold(mdt.fids["f"], UPDATE)
    waiting = mdt.begin(mdt.setting(mdt.fids["f"], atime=7))
    await mdt.settle()
    call = mdt.riding(wire.Readdir(d, 0, 100, True), bits=UPDATE, fid=d, flags=REPLACE_EACH, client="c")
    page = mdt.mdt.handlers[wire.Readdir].execute(call, call.body)
    first = call.header.ride.want.handle  # type: ignore[union-attr]
    expected = [(first, d, UPDATE)]
    for handle, entry in enumerate(page.entries, first + 1):
        if entry.fid != mdt.fids["f"]:
            expected.append((handle, entry.fid, LOOKUP | UPDATE | PERM | LAYOUT | XATTR))
    assert [(g.handle, g.resource, g.bits) for g in call.granted] == expected and len(expected) == len(page.entries)
    assert all(type(granted) is Granted and not granted.status for granted in call.granted)
    assert not waiting.answered
    without = mdt.riding(wire.Readdir(d, 0, 100, True), bits=UPDATE, flags=REPLACE_EACH, client="c")
    assert d not in [g.resource for g in without.granted] and len(without.granted) == len(page.entries) - 1
    names = mdt.riding(wire.Readdir(d, 0, 100, False), bits=UPDATE, flags=REPLACE_EACH, client="c", fid=d)
    assert mdt.granted(names) == [(d, UPDATE)], "without attributes there is nothing to lock"
    plain = mdt.riding(wire.Readdir(d, 0, 100, True), bits=UPDATE, try_bits=PERM, fid=d, client="c")
    assert mdt.granted(plain) == [(d, UPDATE | PERM)]
    assert mdt.granted(mdt.riding(wire.Readdir(mdt.fids["f"], 0, 9, True), bits=UPDATE, fid=d, client="c")) == []


async def test_a_rebuilt_answer_about_what_is_gone_brings_nothing(mdt: Tree) -> None:
    """It is made up (LU-5285)."""
    gone = mdt.fid()
    call = mdt.call(mdt.setting(gone, mode=0o600), ride=Ride((), want(1, LOOKUP)))
    body = mdt.mdt.handlers[wire.Setattr].rebuild(call, call.body, None)  # type: ignore[misc]
    assert type(body) is Attr and body.fid == gone
    mdt.mdt.ride(call, body, want(1, LOOKUP))
    assert call.granted == ()


async def test_an_operation_that_fails_brings_nothing(mdt: Tree) -> None:
    d = mdt.fids["d"]
    call = mdt.riding(opening(b"nothing", wire.OPEN_READ)(mdt))
    assert call.answered and mdt.granted(call) == []
    mdt.setattr(d, mode=0o700)
    call = mdt.riding(wire.Lookup(d, b"f"), cred=ALICE)
    assert mdt.granted(call) == [], errno.errorcode[errno.EACCES]
