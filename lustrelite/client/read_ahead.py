"""What an open file will be asked for next: sequential and strided reads are recognised, and read ahead.  Pure.

A read that begins where the last one ended is sequential; so is the first one, if it begins the file. The window ahead
of the reader starts small and doubles as long as he goes on; when he has come through half of it, the next part is
asked for, so that he never waits for it. Reads of one length at one distance are strided: the next few of them are
asked for, more each time. Anything else is random, and nothing is read ahead of it.
Source: ras_update(), ll_readahead(), llite/rw.c
"""

from __future__ import annotations

START_BYTES = 64 << 10
WHOLE_BYTES = 1 << 20  # a large window ends at a multiple of this, so that RPCs are full
STRIDES_ALIKE = 2  # that many equal distances make a stride
STRIDES_MAX = 64


class ReadAhead:
    """Of one open file."""

    __slots__ = (
        "_alike", "_last", "_size", "_stride", "_strides", "_upto", "expected", "strided", "trigger", "window"
    )  # fmt: skip

    def __init__(self) -> None:
        self.expected = 0  # where a sequential read would begin
        self.trigger = 0  # a sequential read that comes past this must be told to `observe`; the others need not
        self.strided = False  # now every read must be told
        self.window = 0
        self._upto = 0  # asked for so far
        self._last = -1
        self._size = 0
        self._stride = 0
        self._alike = 0
        self._strides = 0

    def observe(self, offset: int, size: int, bytes_max: int) -> list[tuple[int, int]]:
        """Somebody reads [offset, offset + size): the ranges [start, end) to read now, `bytes_max` ahead of him at most."""
        end = offset + size
        if offset == self.expected:
            self._alike, self.strided = 0, False
            ranges = self._sequential(end, size, bytes_max)
        else:
            self.window = self._upto = self.trigger = 0
            ranges = self._strided(offset, size, bytes_max)
        self.expected = end
        self._last, self._size = offset, size
        return ranges

    def _sequential(self, end: int, size: int, bytes_max: int) -> list[tuple[int, int]]:
        if end < self.trigger:
            return []
        self.window = min(max(2 * self.window, 2 * size, START_BYTES), bytes_max)
        upto = end + self.window
        if self.window >= WHOLE_BYTES:
            upto = -(-upto // WHOLE_BYTES) * WHOLE_BYTES
        start, self._upto = max(self._upto, end), max(self._upto, upto)
        self.trigger = self._upto - self.window // 2
        return [(start, self._upto)] if start < self._upto else []

    def _strided(self, offset: int, size: int, bytes_max: int) -> list[tuple[int, int]]:
        stride = offset - self._last
        if self._last < 0 or stride != self._stride or size != self._size or abs(stride) <= size:
            self._stride, self._alike, self._strides, self.strided = stride, 0, 0, False
            return []
        self._alike += 1
        if self._alike < STRIDES_ALIKE:
            return []
        self.strided = True
        # `_strides` places ahead are asked for already; this read has used one of them.
        ahead = max(self._strides - 1, 0)
        self._strides = min(2 * self._alike, STRIDES_MAX, max(bytes_max // size, 0))
        places = [offset + stride * number for number in range(ahead + 1, self._strides + 1)]
        return [(place, place + size) for place in places if place >= 0]
