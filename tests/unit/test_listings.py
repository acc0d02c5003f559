"""Directories read by the kernel in pieces: what is kept for who reads on, and never for who begins (fuse/listings.py)."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from fake_servers import FakeNode

from lustrelite.client.attributes import DirEntry
from lustrelite.client.tasks import Tasks
from lustrelite.errors import OpError
from lustrelite.fuse.inodes import Node
from lustrelite.fuse.listings import PAGES_MAX, Listings
from lustrelite.ids import make_fid
from lustrelite.wire.mdt import Dirent, DirPage

pytestmark = pytest.mark.simulated

PAGE = 10
FID = make_fid(1, 1)


class FakeDirectory:
    """Its names are numbers, which are their cookies, too."""

    def __init__(self, count: int) -> None:
        self.numbers = list(range(1, count + 1))
        self.asked: list[int] = []
        self.errors: list[OpError] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.sizes = asyncio.Event()  # the OSTs answer
        self.sizes.set()
        self.connections = self  # where its tasks are
        self.tasks = Tasks(FakeNode())

    async def names_page(self, fid: Any, cookie: int, count: int, *, plus: bool) -> DirPage:
        self.asked.append(cookie)
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        following = [number for number in self.numbers if number > cookie]
        return DirPage(tuple(Dirent(number, b"%d" % number, FID, 0, None) for number in following[:PAGE]), len(following) <= PAGE)

    async def with_stats(self, page: DirPage, *, sizes: bool, patient: bool) -> list[DirEntry]:
        await self.sizes.wait()
        return [DirEntry(entry.name, entry.fid, entry.type, entry.cookie, None) for entry in page.entries]


def setting(count: int) -> tuple[FakeDirectory, Any, Node]:
    directory = FakeDirectory(count)
    return directory, Listings(directory), Node(2, FID)  # type: ignore[arg-type]


async def numbers_after(listings: Listings, node: Node, cookie: int, piece: int, *, plus: bool = True) -> list[int]:
    """As the kernel reads: `piece` names at a time."""
    found: list[int] = []
    while True:
        entries, end = await listings.after(node, cookie, plus=plus)
        taken = entries[:piece]
        found += [int(entry.name) for entry in taken]
        if end and len(taken) == len(entries):
            return found
        cookie = taken[-1].cookie


@pytest.mark.parametrize("count", [0, 1, PAGE, PAGE + 1, 5 * PAGE, 57])
@pytest.mark.parametrize("piece", [1, 3, PAGE, 100])
async def test_every_name_once_and_every_page_once(count: int, piece: int) -> None:
    directory, listings, node = setting(count)
    assert await numbers_after(listings, node, 0, piece) == directory.numbers
    pages = max(-(-count // PAGE), 1)
    assert directory.asked == [PAGE * number for number in range(pages)]


async def test_the_next_pages_are_on_their_way_once_somebody_reads_on() -> None:
    directory, listings, node = setting(50)
    await listings.after(node, 0, plus=True)
    await asyncio.sleep(0.01)
    assert directory.asked == [0], "perhaps he does not"
    await listings.after(node, 3, plus=True)
    await asyncio.sleep(0.01)
    assert directory.asked == [0, 10, 20]
    entries, end = await listings.after(node, 10, plus=True)
    assert [entry.cookie for entry in entries] == list(range(11, 21)) and not end
    await asyncio.sleep(0.01)
    assert directory.asked == [0, 10, 20, 30], "and so on"


async def test_the_names_of_the_page_after_the_next_do_not_wait_for_the_sizes_of_the_next() -> None:
    directory, listings, node = setting(50)
    await listings.after(node, 0, plus=True)
    directory.sizes.clear()
    reading = asyncio.ensure_future(listings.after(node, 10, plus=True))
    await asyncio.sleep(0.01)
    assert directory.asked == [0, 10, 20] and not reading.done(), "no further: he is not there yet"
    directory.sizes.set()
    assert [entry.cookie for entry in (await reading)[0]] == list(range(11, 21))
    await asyncio.sleep(0.01)
    assert directory.asked == [0, 10, 20, 30]


async def test_two_who_want_the_same_next_page_share_it() -> None:
    directory, listings, node = setting(50)
    await listings.after(node, 0, plus=True)
    directory.gate.clear()
    reading = [asyncio.ensure_future(listings.after(node, 10, plus=True)) for _ in range(3)]
    await asyncio.sleep(0.01)
    directory.gate.set()
    assert [[entry.cookie for entry in (await each)[0]] for each in reading] == [list(range(11, 21))] * 3
    assert directory.asked.count(10) == 1


async def test_who_begins_sees_what_is_there_now() -> None:
    directory, listings, node = setting(35)
    await listings.after(node, 0, plus=True)
    await listings.after(node, 4, plus=True)
    directory.numbers.remove(2)
    directory.numbers.append(99)
    assert await numbers_after(listings, node, 0, 7) == directory.numbers
    directory.numbers.remove(99)
    assert await numbers_after(listings, node, 0, 7) == directory.numbers


async def test_an_error_on_the_way_is_for_who_asks() -> None:
    directory, listings, node = setting(50)
    await listings.after(node, 0, plus=True)
    directory.errors.append(OpError(errno.EIO))
    await listings.after(node, 3, plus=True)
    await asyncio.sleep(0.01)
    assert await numbers_after(listings, node, 3, 4) == directory.numbers[3:], "nobody had asked for that page"
    directory.errors.append(OpError(errno.EIO))
    with pytest.raises(OpError):
        await listings.after(node, 0, plus=True)


async def test_a_reader_who_is_gone_takes_nothing_along() -> None:
    directory, listings, node = setting(50)
    await listings.after(node, 0, plus=True)
    directory.gate.clear()
    gone, stays = (asyncio.ensure_future(listings.after(node, 10, plus=True)) for _ in range(2))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.sleep(0.01)
    directory.gate.set()
    assert [entry.cookie for entry in (await stays)[0]] == list(range(11, 21))


async def test_who_wants_attributes_does_not_get_a_page_without() -> None:
    directory, listings, node = setting(50)
    await listings.after(node, 0, plus=False)
    await listings.after(node, 3, plus=False)
    await listings.after(node, 3, plus=True)
    assert directory.asked.count(3) == 1
    await listings.after(node, 5, plus=False)
    assert 5 not in directory.asked


async def test_a_few_directories_are_remembered() -> None:
    directory, listings, _ = setting(50)
    nodes = [Node(number, FID) for number in range(2, 2 * PAGES_MAX)]
    for node in nodes:
        await listings.after(node, 0, plus=True)
    assert len(listings._pages) == PAGES_MAX
    for node in nodes:
        assert await numbers_after(listings, node, 3, 7) == directory.numbers[3:]
