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

from collections.abc import Iterator
from stat import S_ISREG
from typing import TYPE_CHECKING

from lustrelite.ids import Fid
from lustrelite.wire.message import Cred

if TYPE_CHECKING:
    from lustrelite.client.attr_cache import Known
    from lustrelite.client.connections import Connections

SMALL_BYTES = 64 << 10  # larger files are read by themselves
ALONE_MIN = 3  # files that are read by themselves before others are read along
FILES_MAX = 64  # in one request
BYTES_MAX = 1 << 20  # of one OST
UNUSED_MAX, UNUSED_PART = FILES_MAX, 16  # so many, and so many for each that was asked for, may be read in vain
ALONG_MAX = 10_000  # that are remembered
DIRECTORIES_MAX = 256


class _Walk:
    """What was read of one directory."""

    __slots__ = ("alone", "along", "directory", "rest", "size", "used")

    def __init__(self, directory: Known) -> None:
        self.directory = directory
        self.alone = 0  # files that were asked for and not there
        self.along = 0  # files that were read with these
        self.used = 0  # of them, those that were asked for
        self.rest: Iterator[Known] = iter(())  # those that may come next
        self.size = 0  # how many names were known when `rest` was made


class FilesAhead:
    """The directories of one mount whose files are read."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._walks: dict[Fid, _Walk] = {}  # the longest unused first
        self._along: dict[Fid, _Walk] = {}  # files that were read along and not asked for, the oldest first
        self._last: _Walk | None = None

    def found(self, fid: Fid) -> None:
        """The beginning of a file was read, and was here."""
        walk = self._along.pop(fid, None)
        if walk is not None:
            walk.used += 1

    def missed(self, fid: Fid, cred: Cred) -> None:
        """The beginning of a file is about to be read, and nothing of it is here: read its neighbours, too."""
        connections = self._connections
        names, locked = connections.names, connections.lov.locked
        known = names.files.get(fid) if names is not None else None
        if known is None or locked is None or names is None or not names.ahead_max or not known.places:
            return
        if self._size(known, names.locks.lease_valid) is None:
            return
        directory = known.places[0][0]
        walk = self._walks.pop(directory.fid, None)
        if walk is None or walk.directory is not directory:
            walk = _Walk(directory)
            if self._last is not None and self._last.along <= 2 * self._last.used:
                walk.alone = self._last.used
        self._walks[directory.fid] = self._last = walk
        if len(self._walks) > DIRECTORIES_MAX:
            del self._walks[next(iter(self._walks))]
        walk.alone += 1
        if walk.alone >= ALONE_MIN and walk.along - walk.used <= UNUSED_MAX + UNUSED_PART * (walk.alone + walk.used):
            self._read(walk, known, cred)

    def _size(self, known: Known, leased: bool) -> tuple[int, int, int] | None:
        """(OST index, object, bytes) of a small file of which nothing is here."""
        layout = known.attr.layout if known.fresh and leased else None
        if layout is None or len(layout.stripes) != 1 or not S_ISREG(known.attr.mode):
            return None
        ((index, obj),) = layout.stripes
        locked = self._connections.lov.locked
        data = locked.caches.get(index) if locked is not None else None
        size = data.whole_to_read(obj, SMALL_BYTES) if data is not None else 0
        return (index, obj, size) if size else None

    def _read(self, walk: _Walk, known: Known, cred: Cred) -> None:
        connections = self._connections
        locked, names = connections.lov.locked, connections.names
        assert locked is not None and names is not None
        leased = names.locks.lease_valid
        tunables = connections.node.tunables
        room = min(tunables.max_read_ahead_bytes, tunables.max_cached_bytes // 4) - locked.shared.ahead
        count = min(walk.alone + walk.used, FILES_MAX)
        chosen: dict[int, dict[int, int]] = {}  # by OST index: {object: bytes}
        left: dict[int, int] = {}
        while count and room > 0:
            other = next(walk.rest, None)
            if other is None:
                if walk.size == len(walk.directory.names):
                    break
                walk.rest = self._from(walk, known)
                continue
            found = self._size(other, leased) if other is not known else None
            if found is None:
                continue
            index, obj, size = found
            if left.setdefault(index, min(BYTES_MAX, locked.caches[index].osc.bytes_max)) < size:
                break
            chosen.setdefault(index, {})[obj] = size
            self._along[other.fid] = walk
            walk.along += 1
            left[index] -= size
            room -= size
            count -= 1
        while len(self._along) > ALONG_MAX:
            del self._along[next(iter(self._along))]
        for index, objects in chosen.items():
            locked.caches[index].read_many(objects, cred)

    @staticmethod
    def _from(walk: _Walk, known: Known) -> Iterator[Known]:
        """All files of the directory of which anything is known, those behind `known` first."""
        files = list(walk.directory.names.values())
        walk.size = len(files)
        place = next((number for number, each in enumerate(files) if each is known), -1) + 1
        return iter(files[place:] + files[:place])
