"""What a file must contain, for tests that do at random to a file and to this what may be done to files."""

from __future__ import annotations


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

    def punch(self, start: int, end: int) -> None:
        """Zeros, as far as it goes: it does not become longer."""
        end = min(end, len(self))
        self[start:end] = bytes(max(end - start, 0))
