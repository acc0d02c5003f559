"""The listings that a client knows, as far as they were read; each is true under UPDATE of its directory.

They are bounded together: the one that was not looked at for longest goes first. A listing also tells what a stat is
part of: one after the other, as `ls -l` does it, and then the following files are asked for before anybody wants them.
Source: ll_dir_read(), llite/dir.c; llite/statahead.c
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from lustrelite.client.known import touch
from lustrelite.wire.mdt import Dirent, DirPage

if TYPE_CHECKING:
    from lustrelite.client.known import Known

SEQUENCE_MIN = 2  # files of a listing asked for one after the other, before those that follow are fetched, too
SEQUENCE_REACH = 8  # entries that may be passed over between two of them


class Listing:
    """The first entries of a directory, or all of them."""

    __slots__ = ("added", "ahead_until", "changed", "complete", "cookies", "entries", "fetch", "hits", "index", "next")

    def __init__(self) -> None:
        self.entries: list[Dirent] = []  # without attributes
        self.cookies: list[int] = []
        self.complete = False
        self.index: dict[bytes, int] | None = None  # name -> place; made when it is complete and a name is asked for
        self.added: dict[bytes, None] = {}  # names that were made from here since
        self.changed = False  # from here, since it was complete: it says what is not there, but cannot be shown
        self.next = 0  # where a sequence of stats would go on
        self.hits = 0
        self.ahead_until = 0  # up to here they were fetched ahead
        self.fetch: Any = None  # the task that does it

    def places(self) -> dict[bytes, int]:
        """Where each name is; reckoned once."""
        if self.index is None:
            self.index = {entry.name: place for place, entry in enumerate(self.entries)}
        return self.index


class KnownListings:
    """Those of one MDT."""

    def __init__(self, entries_max: int, ahead_max: int) -> None:
        self.entries_max = entries_max
        self.ahead_max = ahead_max
        self.entries = 0  # in all of them
        self._directories: dict[Known, None] = {}  # the longest unread first

    def page(self, known: Known, cookie: int, count: int) -> DirPage | None:
        """About `count` entries behind `cookie`, without attributes; None: ask."""
        listing = known.listing
        if listing is None or listing.changed:
            return None
        first = bisect_right(listing.cookies, cookie)
        size = len(listing.cookies)
        if first == size:
            return DirPage((), True) if listing.complete else None
        end = min(first + max(count, 1), size)
        while end < size and listing.cookies[end] == listing.cookies[end - 1]:  # equal hashes are never parted
            end += 1
        self._directories[known] = self._directories.pop(known)
        touch(known)
        return DirPage(tuple(listing.entries[first:end]), listing.complete and end == size)

    def begin(self, known: Known, *, complete: bool = False) -> Listing:
        """That of a directory of which nothing was listed yet."""
        listing = known.listing = Listing()
        listing.complete = complete
        self._directories[known] = None
        return listing

    def append(self, known: Known, cookie: int, page: DirPage) -> None:
        """`page` was read behind `cookie`: it is of use if it goes on with what is known."""
        if known.listing is not None and known.listing.changed and not cookie:
            self.forget(known)
        listing = known.listing
        if listing is None:
            if cookie:
                return
            listing = self.begin(known)
        elif listing.complete or (listing.cookies[-1] if listing.cookies else 0) != cookie:
            return
        listing.entries += [Dirent(e.cookie, e.name, e.fid, e.type, None) for e in page.entries]
        listing.cookies += [entry.cookie for entry in page.entries]
        listing.complete = page.end
        self.entries += len(page.entries)
        self._directories[known] = self._directories.pop(known)
        self._trim()

    def _trim(self) -> None:
        while self.entries > self.entries_max:
            self.forget(next(iter(self._directories)))

    def changed(self, known: Known, name: bytes, *, there: bool) -> None:
        """`name` was made in a directory from here, or removed: one of which all names are known stays so."""
        listing = known.listing
        if listing is None:
            return
        if not listing.complete:
            self.forget(known)
            return
        listing.changed = True
        if there:
            if name not in listing.added and name not in listing.places():
                listing.added[name] = None
                self.entries += 1
                self._trim()
        elif name in listing.added:
            del listing.added[name]
            self.entries -= 1
        else:
            listing.places().pop(name, None)

    def forget(self, known: Known) -> None:
        """Its names must be asked for again."""
        if known.listing is not None:
            self.entries -= len(known.listing.entries) + len(known.listing.added)
            known.listing = None
            del self._directories[known]

    def ahead(self, directory: Known | None, name: bytes) -> tuple[Listing, int, int] | None:
        """Is a listing being gone through file by file? Then (listing, cookie, count) of what is to be fetched, with `name`.

        A count of 0: it was fetched already, or `listing.fetch` is at it. Several may go through it side by side.
        Source: ll_statahead_one(), is_first_dirent(), llite/statahead.c
        """
        listing = directory.listing if directory is not None else None
        if listing is None or not self.ahead_max:
            return None
        entries, following = listing.entries, listing.next
        first = min(max(0, following - SEQUENCE_REACH), max(0, listing.ahead_until - self.ahead_max))
        for place in range(first, min(following + SEQUENCE_REACH, len(entries))):
            if entries[place].name == name:
                break
        else:
            listing.hits = 0
            if entries and entries[0].name == name:  # once more from the start
                listing.next, listing.hits, listing.ahead_until = 1, 1, 0
            return None
        if place < listing.ahead_until:
            return listing, 0, 0
        listing.hits += 1
        if listing.hits <= SEQUENCE_MIN or place < following:
            listing.next = max(following, place + 1)
            return None
        count = min(self.ahead_max, len(entries) - following)
        listing.next = listing.ahead_until = following + count
        return listing, listing.cookies[following - 1] if following else 0, count
