"""Files of a directory are asked for in any order: then their neighbours are fetched with them, many in one request.

A listing is in the order of its names' cookies, and a cookie is a hash that depends on nothing but the name
(wire.mdt.name_cookie). So whoever is asked for a name can fetch the part of the listing that begins with it, with
attributes, locks and sizes, without knowing any of the rest. How much, is earned: EARNED entries by each question that
had to be asked, PROVED by each that found for the first time what was fetched. A program that looks at everything soon
meets nothing but what is there; one that looks at a few files of a large directory makes each of its questions a little
more expensive, and no more.

Ranges that were fetched are remembered, so that the next part ends where one begins. Pure; who fetches is by_fid.py.
Source: Lustre's statahead knows only the order of a listing, or of numbers in names (llite/statahead.c)
"""

from __future__ import annotations

from bisect import bisect_right

from lustrelite.ids import Fid

QUESTIONS_MIN = 8  # before anything is fetched
EARNED = 8
PROVED = 128
AGAIN_MIN, AGAIN_PART = 64, 8  # when so many are asked for again it begins anew: more than that and a part of the fetched
PART_MIN = 16  # entries: less is not worth a request that is not a Lookup
DIRECTORIES_MAX = 256


class Walk:
    """What was asked of one directory, and what was fetched of it."""

    __slots__ = ("asked_again", "busy", "earned", "ends", "entries", "questions", "span", "starts")

    def __init__(self) -> None:
        self.questions = 0  # about names that are there
        self.earned = 0  # entries
        self.busy = False  # something is being fetched
        self._forget()

    def _forget(self) -> None:
        self.entries = 0  # fetched
        self.span = 0  # of cookies, in which these were
        self.starts: list[int] = []  # of ranges of cookies that were fetched, in order; they do not touch each other
        self.ends: list[int] = []  # the last cookie of each
        self.asked_again = 0  # questions about what was fetched: it is not known any more

    def part(self, cookie: int, part_max: int) -> int:
        """How many entries to fetch from `cookie` on; 0: none."""
        place = bisect_right(self.starts, cookie)
        if place and cookie <= self.ends[place - 1]:
            self.asked_again += 1
            if self.asked_again > AGAIN_MIN + self.entries // AGAIN_PART:
                self.questions = self.earned = 0
                self._forget()
            return 0
        count = min(self.earned - self.entries, part_max)
        if count < PART_MIN:
            return 0
        if self.span and place < len(self.starts):
            expected = (self.starts[place] - cookie) * self.entries // self.span
            count = min(count, expected + expected // 8 + 2)
        return count

    def fetched(self, first: int, last: int, entries: int) -> None:
        """All that is between these cookies was fetched: so many entries."""
        self.entries += entries
        self.span += last - first + 1
        starts, ends = self.starts, self.ends
        place = bisect_right(starts, first)
        if place and ends[place - 1] >= first - 1:
            place -= 1
            first = starts[place]
        stop = place
        while stop < len(starts) and starts[stop] <= last + 1:
            last = max(last, ends[stop])
            stop += 1
        starts[place:stop], ends[place:stop] = [first], [last]


class Scattered:
    """The directories of one client in which questions are counted."""

    def __init__(self, part_max: int) -> None:
        self.part_max = part_max  # entries in one request; 0: never
        self.walks: dict[Fid, Walk] = {}

    def used(self, parent: Fid) -> None:
        """What was known of a file in `parent` was asked for the first time."""
        walk = self.walks.get(parent)
        if walk is not None:
            walk.questions += 1
            walk.earned += PROVED

    def found(self, parent: Fid) -> None:
        """A name in `parent` was asked for that was not known, and is there."""
        walk = self.walks.get(parent)
        if walk is None:
            if len(self.walks) >= DIRECTORIES_MAX:
                del self.walks[next(iter(self.walks))]
            walk = self.walks[parent] = Walk()
        walk.questions += 1
        walk.earned += EARNED

    def part(self, parent: Fid, cookie: int) -> tuple[Walk, int] | None:
        """A name that is not known is asked for: how many entries shall be fetched instead, from its cookie on?"""
        walk = self.walks.get(parent)
        if walk is None or walk.busy or walk.questions < QUESTIONS_MIN:
            return None
        count = walk.part(cookie, self.part_max)
        return (walk, count) if count else None
