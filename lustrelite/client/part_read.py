"""One object's part of a read: out of the cache, or from the OST into the caller's buffer.

A read brings what is missing into the cache and then, in one turn with those of the other objects, is copied out of it.
If anything of it was forgotten meanwhile, because it changes past the cache, it is read again: not there, it looks like a hole.

The copy, and the memory for it, costs more than all the rest of a large read. So somebody who has so much under way
that reading ahead would not help him (client/file.py) gets what is not cached straight into his buffer, RPC by RPC. It
is as true as if it had been cached: it is read under the lock, and a Watch on its range says whether anything changed
there before the whole read was done; then it is read again, through the cache.

What was read so once and is wanted again under the same lock comes into the cache, if all of it would find room there.
Source: ll_use_fast_io(), hybrid I/O of llite/file.c (the idea)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lustrelite.client import striping
from lustrelite.client.data_cache import copy_out, zero
from lustrelite.client.striping import Extent
from lustrelite.wire.message import Cred

if TYPE_CHECKING:
    from lustrelite.client.grip import Held
    from lustrelite.client.page_cache import Watch


_NO_BUFFER = memoryview(b"")


class PartRead:
    """What lies in one object of what an operation reads. `end` it."""

    def __init__(self, one: Held, buffer: memoryview | None, cred: Cred, *, past: bool) -> None:
        assert buffer is not None or not past
        self.one = one
        self.buffer = buffer if buffer is not None else _NO_BUFFER  # None: nothing is copied
        self.cred = cred
        self._cached: list[Extent] = []  # comes out of the cache
        self._watched: list[tuple[Extent, Watch]] = []  # lands in the buffer
        for part in striping.parts(one.extent, one.data.osc.bytes_max) if past else ():
            watch = one.cached.pages.watch(part.offset, part.offset + part.length)
            if watch is None:
                self._cached.append(part)
            else:
                self._watched.append((part, watch))
        if not self._watched:
            self._cached = [one.extent]
        self._pins = [one.cached.pages.pin(part.offset, part.offset + part.length) for part in self._cached]

    async def bring(self) -> None:
        """Have it all here.  Errors: EIO, ENOENT"""
        data, cached, lock = self.one.data, self.one.cached, self.one.lock
        fills = [data.fill(cached, lock, pin.start, pin.end, self.cred) for pin in self._pins]
        reads = [_read_part(self.one, part, self.buffer, self.cred) for part, _ in self._watched]
        await data.shared.tasks.gather([*fills, *reads], "read")

    @property
    def changed(self) -> bool:
        """Was there a change since, where it landed in the buffer, or past the cache, where it comes out of that?"""
        return any(watch.changed for _, watch in self._watched) or any(pin.broken for pin in self._pins)

    def copy(self, length: int) -> None:
        """Out of the cache, as far as it lies within the first `length` bytes of the buffer."""
        for part in self._cached:
            copy_out(self.one.cached, part.offset, pieces_of(part, self.buffer, length))

    def end(self) -> None:
        """It is over, whatever came of it."""
        pages = self.one.cached.pages
        for pin in self._pins:
            pages.unpin(pin)
        for _, watch in self._watched:
            pages.end_watch(watch)


async def read_past(one: Held, buffer: memoryview, cred: Cred) -> None:
    """What the OST has of it, when everything dirty is written back.  Errors: EIO, ENOENT"""
    extent, data = one.extent, one.data
    parts = striping.parts(extent, data.osc.bytes_max)
    await data.writeback.flush(one.cached, extent.offset, extent.offset + extent.length)
    await data.shared.tasks.gather([_read_part(one, part, buffer, cred) for part in parts], "read")


async def _read_part(one: Held, part: Extent, buffer: memoryview, cred: Cred) -> None:
    pieces = [buffer[start : start + length] for start, length in part.pieces]
    done = await one.data.read(one.cached, one.lock, part.offset, pieces, cred)
    for piece in pieces:
        zero(piece[min(done, len(piece)) :])
        done = max(done - len(piece), 0)


def pieces_of(extent: Extent, buffer: memoryview, length: int) -> Sequence[memoryview]:
    """Where the extent lies in the buffer, of which `length` bytes count."""
    return [buffer[start : min(start + size, length)] for start, size in extent.pieces if start < length]
