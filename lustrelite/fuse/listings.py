"""Pages of directories on their way to the kernel, which takes them in pieces.

The rest of the page that was read last is kept, and who has begun to read on finds the next ones on their way: while a page
is handed over, OSTs make the next one whole and the MDT the one after it. What is kept is for those who read on. Who begins
a listing, or begins it anew, sees what is there now. (A name that comes or goes meanwhile may be in a listing or not:
POSIX, readdir().)
"""

from __future__ import annotations

import asyncio

from lustrelite.client.attributes import DirEntry
from lustrelite.client.by_fid import FidOperations
from lustrelite.errors import OpError
from lustrelite.fuse.inodes import Node

COUNT = 500  # names of a page
PAGES_MAX = 64  # directories that are being read

Entries = tuple[list[DirEntry], bool]  # and whether they are the last


class _Coming:
    """A page on its way."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Entries | OpError]
        self.next: _Coming | None = None
        self.last = 0  # the cookie after which the next page begins: its names are there, and are not the last
        self.leads = False  # the next page may be begun


class _Page:
    """Entries that follow a cookie."""

    def __init__(self, entries: list[DirEntry], end: bool, plus: bool, following: _Coming | None) -> None:
        self.entries = entries
        self.end = end
        self.plus = plus
        self.places = {entry.cookie: place for place, entry in enumerate(entries, 1)}
        self.next = following


class Listings:
    """Of one mount."""

    def __init__(self, fs: FidOperations) -> None:
        self._fs = fs
        self._pages: dict[int, _Page] = {}  # by node

    async def after(self, node: Node, cookie: int, *, plus: bool) -> Entries:
        """What follows `cookie` (0: from the beginning), `plus` attributes, as far as it is at hand.  ENOENT and those of `readdir`"""
        page = self._pages.get(node.number)
        coming: _Coming  # what `found` is of
        found: Entries | OpError | None = None
        if page is not None and page.plus >= plus and (at := page.places.get(cookie)) is not None:
            following = self._read_on(node, page) if not page.end else None
            if at < len(page.entries) or following is None:
                return page.entries[at:], page.end
            coming, plus = following, page.plus
            found = await asyncio.shield(coming.task)
        if found is None or isinstance(found, OpError):
            coming = _Coming()
            found = await self._read(node, cookie, plus, coming)
        entries, end = found
        self._pages.pop(node.number, None)
        if len(self._pages) >= PAGES_MAX:
            del self._pages[next(iter(self._pages))]
        self._pages[node.number] = page = _Page(entries, end, plus, coming.next)
        if cookie and not end:
            self._read_on(node, page)
        return found

    def _read_on(self, node: Node, page: _Page) -> _Coming:
        """The page that follows, and may now lead to the next."""
        if page.next is None:
            page.next = self._begin(node, page.entries[-1].cookie, page.plus)
        if not page.next.leads:
            page.next.leads = True
            self._lead(node, page.next, page.plus)
        return page.next

    def _begin(self, node: Node, cookie: int, plus: bool) -> _Coming:
        coming = _Coming()
        coming.task = self._fs.connections.tasks.spawn(self._read(node, cookie, plus, coming), "read on")
        return coming

    def _lead(self, node: Node, coming: _Coming, plus: bool) -> None:
        if coming.leads and coming.last and coming.next is None:
            coming.next = self._begin(node, coming.last, plus)

    async def _read(self, node: Node, cookie: int, plus: bool, coming: _Coming) -> Entries:
        page = await self._fs.names_page(node.fid, cookie, COUNT, plus=plus)
        end = page.end or not page.entries
        if not end:
            coming.last = page.entries[-1].cookie
            self._lead(node, coming, plus)
        return await self._fs.with_stats(page, sizes=plus, patient=False), end
