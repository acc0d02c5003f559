"""Extended attributes as rows of the store: a value is cut into pieces, none of which needs more than one page.

The database keeps what is larger than a page in pages side by side, and whether a full target still has such nobody can
say (store/room.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lustrelite.store.schema import XATTRS, split_xattr_key, xattr_key, xattr_prefix

if TYPE_CHECKING:
    from lustrelite.ids import Fid
    from lustrelite.mdt.namespace import Rows
    from lustrelite.target.transaction import Transaction

PIECE_BYTES = 4000


def get(rows: Rows, fid: Fid, name: bytes) -> bytes | None:
    """The value of the attribute `name`, None if there is none."""
    first = rows.get(XATTRS, xattr_key(fid, name))
    if first is None or len(first) < PIECE_BYTES:
        return first
    return b"".join(value for _, value in rows.scan(XATTRS, prefix=xattr_prefix(fid, name)))


def put(txn: Transaction, fid: Fid, name: bytes, value: bytes) -> None:
    """Set the attribute, which is `delete`d if it was there."""
    for piece, start in enumerate(range(0, max(1, len(value)), PIECE_BYTES)):
        txn.put(XATTRS, xattr_key(fid, name, piece), value[start : start + PIECE_BYTES])


def delete(txn: Transaction, fid: Fid, name: bytes) -> None:
    """Take the attribute out."""
    _delete(txn, xattr_prefix(fid, name))


def delete_all(txn: Transaction, fid: Fid) -> None:
    """Take out all of `fid`."""
    _delete(txn, fid)


def _delete(txn: Transaction, prefix: bytes) -> None:
    for key, _ in list(txn.scan(XATTRS, prefix=prefix)):
        txn.delete(XATTRS, key)


def pieces(rows: Rows, fid: Fid) -> Iterator[tuple[bytes, int, bytes]]:
    """(name, number of the piece, piece) of all attributes of `fid`."""
    for key, value in rows.scan(XATTRS, prefix=fid):
        _, name, piece = split_xattr_key(key)
        yield name, piece, value


def names(rows: Rows, fid: Fid) -> list[bytes]:
    """Of all attributes of `fid`."""
    return [name for name, piece, _ in pieces(rows, fid) if not piece]
