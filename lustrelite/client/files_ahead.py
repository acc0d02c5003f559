"""Small files of a directory are read one after the other: then their neighbours are read with them, many in one request.

Who unpacks, greps, compiles or copies a tree reads every file of a directory, mostly in the order of its listing, and each
costs him a round trip to an OST. Their attributes, sizes and locks have come many at once by then (statahead, scattered.py).
So who reads a small file whose size is known from a lock, and finds nothing of it here, reads others of the directory along,
of which the same is known: as many as he has read of it so far, from where he is in the listing on. A few files of a large
directory cost little more than themselves, and of a thousand a handful is waited for. Who has used what was read along of one
directory begins with as many in the next.

What comes so is read under locks that are held, like any read-ahead, and within its bound (max_read_ahead_bytes).
Source: no such thing in Lustre; what comes nearest is Data on MDT, where the open of a small file brings its data
"""

from __future__ import annotations

import asyncio
from stat import S_ISREG
from typing import TYPE_CHECKING

from lustrelite.ids import Fid
from lustrelite.wire.message import Cred
from lustrelite.wire.ost import READ_MANY_MAX

if TYPE_CHECKING:
    from lustrelite.client.connections import Connections
    from lustrelite.client.data_cache import DataCache
    from lustrelite.client.known import Known

SMALL_BYTES = 64 << 10  # larger files are read by themselves
ALONE_MIN = 3  # files that are read by themselves before others are read along
FILES_MAX = READ_MANY_MAX  # at once
BYTES_MAX = 1 << 20  # of one OST
UNUSED_MAX, UNUSED_PART = FILES_MAX, 16  # so many, and so many for each that was asked for, may be read in vain
ALONG_MAX = 10_000  # that are remembered
REST_MAX = 1000  # names that are looked at from one place on
LOOKS_MAX = 4 * FILES_MAX  # at once
DIRECTORIES_MAX = 256


class _Walk:
    """What was read of one directory."""

    __slots__ = ("alone", "along", "rest", "skip", "used", "vain")

    def __init__(self, alone: int) -> None:
        self.alone = alone  # files that were asked for and not there
        self.along = 0  # files that were read with these
        self.used = 0  # of them, those that were asked for
        self.rest: list[Fid] = []  # those that may come next, the last first
        self.skip = 0  # so many times nobody looks for more of them,
        self.vain = 0  # because nothing was found the last time


class FilesAhead:
    """The directories of one mount whose files are read."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._walks: dict[Fid, _Walk] = {}  # the longest unused first
        self._along: dict[Fid, _Walk] = {}  # files that were read along and not asked for, the oldest first
        self._last = _Walk(0)

    def found(self, fid: Fid) -> None:
        """The beginning of a file was read, and was here."""
        walk = self._along.pop(fid, None)
        if walk is not None:
            walk.used += 1

    def missed(self, fid: Fid, cred: Cred) -> None:
        """The beginning of a file is about to be read, and nothing of it is here: read its neighbours, too."""
        if fid in self._along:  # it is on its way
            self.found(fid)
            return
        names = self._connections.names
        known = names.files.get(fid) if names is not None else None
        if known is None or names is None or not names.listings.ahead_max or not known.places or self._whole(known) is None:
            return
        directory = known.places[0][0].fid
        walk = self._walks.pop(directory, None)
        if walk is None:
            walk = _Walk(self._last.used if self._last.along <= 2 * self._last.used else 0)
        self._walks[directory] = self._last = walk
        if len(self._walks) > DIRECTORIES_MAX:
            del self._walks[next(iter(self._walks))]
        walk.alone += 1
        if walk.alone >= ALONE_MIN and walk.along - walk.used <= UNUSED_MAX + UNUSED_PART * (walk.alone + walk.used):
            asyncio.get_running_loop().call_soon(self._read, walk, known, cred)  # his own read comes first

    def _whole(self, known: Known) -> tuple[DataCache, int, int] | None:
        """(its OST's cache, object, bytes) of a small file of which nothing is here."""
        names, locked = self._connections.names, self._connections.lov.locked
        if names is None or locked is None or not known.fresh or not names.locks.lease_valid or not S_ISREG(known.attr.mode):
            return None
        layout = known.attr.layout
        if layout is None or len(layout.stripes) != 1:
            return None
        ((index, obj),) = layout.stripes
        data = locked.caches.get(index)
        size = data.whole_to_read(obj, SMALL_BYTES) if data is not None else 0
        return (data, obj, size) if data is not None and size else None

    def _read(self, walk: _Walk, known: Known, cred: Cred) -> None:
        names, locked = self._connections.names, self._connections.lov.locked
        if names is None or locked is None or self._connections.closed:
            return
        tunables = self._connections.node.tunables
        room = min(tunables.max_read_ahead_bytes, tunables.max_cached_bytes // 4) - locked.shared.ahead
        count = min(walk.alone + walk.used, FILES_MAX)
        chosen: dict[DataCache, dict[int, int]] = {}  # {object: bytes} of each OST
        left: dict[DataCache, int] = {}
        for _ in range(LOOKS_MAX):
            if not count or (not walk.rest and not self._look_on(walk, known)):
                break
            other = names.files.get(walk.rest.pop())
            found = self._whole(other) if other is not None and other is not known else None
            if other is None or found is None:
                continue
            data, obj, size = found
            if data not in left:
                left[data] = min(BYTES_MAX, data.osc.bytes_max) if data.may_read_many() else 0
            if left[data] < size or room < size:
                walk.rest.append(other.fid)
                break
            chosen.setdefault(data, {})[obj] = size
            left[data] -= size
            room -= size
            count -= 1
            self._along[other.fid] = walk
            walk.along += 1
        while len(self._along) > ALONG_MAX:
            del self._along[next(iter(self._along))]
        if chosen:
            walk.vain = walk.skip = 0
        for data, objects in chosen.items():
            data.read_many(objects, cred)

    @staticmethod
    def _look_on(walk: _Walk, known: Known) -> bool:
        """Have what is known of the directory behind `known`, and then from its beginning on. Seldom, if it was in vain."""
        if walk.skip:
            walk.skip -= 1
            return False
        walk.vain = min(2 * walk.vain + 1, FILES_MAX)
        walk.skip = walk.vain
        if not known.places:
            return False
        files = list(known.places[0][0].names.values())
        place = files.index(known) + 1
        part = (files[place : place + REST_MAX] + files[:place])[:REST_MAX]
        walk.rest = [each.fid for each in reversed(part)]
        return bool(walk.rest)
