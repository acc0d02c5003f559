"""Pages of directories on their way to the kernel, which takes them in pieces.

The rest of the page that was read last is kept, and who has begun to read on finds the next one on its way: while a page
is handed over, MDT and OSTs make the next. What is kept is for those who read on. Who begins a listing, or begins it
anew, sees what is there now. (A name that comes or goes meanwhile may be in a listing or not: POSIX, readdir().)
"""

from __future__ import annotations

import asyncio

from lustrelite.client.attributes import DirEntry
from lustrelite.client.by_fid import FidOperations
from lustrelite.errors import OpError
from lustrelite.fuse.inodes import Node

PAGES_MAX = 64  # directories that are being read

Entries = tuple[list[DirEntry], bool]  # and whether they are the last


class _Page:
    """Entries that follow a cookie."""

    def __init__(self, entries: list[DirEntry], end: bool, plus: bool) -> None:
        self.entries = entries
        self.end = end
        self.plus = plus
        self.places = {entry.cookie: place for place, entry in enumerate(entries, 1)}
        self.next: asyncio.Task[Entries | OpError] | None = None


class Listings:
    """Of one mount."""

    def __init__(self, fs: FidOperations) -> None:
        self._fs = fs
        self._pages: dict[int, _Page] = {}  # by node

    async def after(self, node: Node, cookie: int, *, plus: bool) -> Entries:
        """What follows `cookie` (0: from the beginning), `plus` attributes, as far as it is at hand.  ENOENT and those of `readdir`"""
        page = self._pages.get(node.number)
        found: Entries | OpError | None = None
        if page is not None and page.plus >= plus and (at := page.places.get(cookie)) is not None:
            if page.next is None and not page.end:
                page.next = self._begin(node, page)
            if at < len(page.entries) or page.end:
                return page.entries[at:], page.end
            if page.next is not None:
                found = await asyncio.shield(page.next)
                plus = page.plus
        if found is None or isinstance(found, OpError):
            found = await self._read(node, cookie, plus)
        entries, end = found
        self._pages.pop(node.number, None)
        if len(self._pages) >= PAGES_MAX:
            del self._pages[next(iter(self._pages))]
        self._pages[node.number] = page = _Page(entries, end, plus)
        if cookie and not end:
            page.next = self._begin(node, page)
        return found

    def _begin(self, node: Node, page: _Page) -> asyncio.Task[Entries | OpError]:
        return self._fs.connections.tasks.spawn(self._read(node, page.entries[-1].cookie, page.plus), "read on")

    async def _read(self, node: Node, cookie: int, plus: bool) -> Entries:
        return await self._fs.readdir_page(node.fid, cookie, plus=plus, sizes=plus, patient=False)
