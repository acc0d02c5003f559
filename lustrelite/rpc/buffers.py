"""Memory for bulk data: page-aligned, and used again as soon as nobody looks at it any more.

Why not a fresh bytearray each time: filling it with zeros and the page faults of fresh memory cost more than receiving
the data, and direct I/O wants pages.

Nobody gives a buffer back. Whoever can still see one holds a reference to its mapping: a view or a slice of it, a
thread inside pwrite(), a transport that has not sent everything, a request that waits to be replayed, a connection that
still receives into it. So a buffer is free when the pool's own reference is the only one left, and no error, eviction
or cancellation on the way can free it too early; one that is never let go of is only lost to the pool. This counts on
CPython's reference counts (`_is_free`), and on `take` being called by one thread.

The first free buffer in the order of their making is taken, so what circulates stays small and in the CPU's cache. Of
the memory here at most `bytes_max` is kept; beyond it buffers are made for one use.
"""

from __future__ import annotations

import mmap
from sys import getrefcount

KEPT_BYTES_MAX = 64 << 20


class BufferPool:
    """The buffers of one process."""

    def __init__(self, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.bytes_kept = 0
        self._sizes: dict[int, list[mmap.mmap]] = {}  # by power of two

    def take(self, length: int) -> memoryview:
        """A writable view of `length` bytes that starts at a page. What is in it is undefined."""
        assert length > 0
        size = max(1 << (length - 1).bit_length(), mmap.PAGESIZE)
        buffers = self._sizes.setdefault(size, [])
        for number in range(len(buffers)):
            if _is_free(buffers, number):
                return memoryview(buffers[number])[:length]
        buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if self.bytes_kept + size <= self.bytes_max or self._drop_free(size):
            buffers.append(buffer)
            self.bytes_kept += size
        return memoryview(buffer)[:length]

    def _drop_free(self, size: int) -> bool:
        """Drop free buffers of other sizes for a new one of `size`; False if that does not make the room."""
        for other, buffers in self._sizes.items():
            for number in range(len(buffers) - 1, -1, -1):
                if self.bytes_kept + size <= self.bytes_max:
                    return True
                if other != size and _is_free(buffers, number):
                    del buffers[number]
                    self.bytes_kept -= other
        return self.bytes_kept + size <= self.bytes_max

    def free_bytes(self) -> int:
        """How much of what is kept nobody uses."""
        return sum(
            size * sum(_is_free(buffers, number) for number in range(len(buffers)))
            for size, buffers in self._sizes.items()
        )


def _holders(buffers: list[mmap.mmap], number: int) -> int:
    return getrefcount(buffers[number])


_ALONE = _holders([mmap.mmap(-1, mmap.PAGESIZE)], 0)  # only the list; plus what getrefcount itself holds


def _is_free(buffers: list[mmap.mmap], number: int) -> bool:
    return _holders(buffers, number) == _ALONE
