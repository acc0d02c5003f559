"""What a file must contain, for tests that do at random to a file and to this what may be done to files."""

from __future__ import annotations

from lustrelite.wire.ost import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE


class FileModel(bytearray):
    """Bytes that are written, cut and punched as those of a file are."""

    def write(self, offset: int, data: bytes) -> None:
        """pwrite: no data does not lengthen it."""
        if data:
            self.extend(bytes(max(offset - len(self), 0)))
            self[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        del self[size:]
        self.extend(bytes(size - len(self)))

    def fallocate(self, mode: int, start: int, end: int) -> None:
        """fallocate(2): FALLOC_ZERO_RANGE makes zeros, and without FALLOC_KEEP_SIZE it becomes longer."""
        if mode & (FALLOC_ZERO_RANGE | FALLOC_PUNCH_HOLE):
            self.punch(start, end)
        if not mode & FALLOC_KEEP_SIZE:
            self.extend(bytes(max(end - len(self), 0)))

    def find(self, start: int, *, data: bool) -> int:
        """The next byte that is zero, or, `data`, that is not; -1: none, the end of the file is zero."""
        found = next((at for at in range(start, len(self)) if bool(self[at]) == data), -1)
        return len(self) if found < 0 and not data and start < len(self) else found

    def punch(self, start: int, end: int) -> None:
        """Zeros, as far as it goes: it does not become longer."""
        end = min(end, len(self))
        self[start:end] = bytes(max(end - start, 0))
