"""Who made what is not committed yet: by it a change knows that it depends on another client's.

With commit on share the reply to such a change waits for the commit of both. So no client ever has a change to replay
that depends on an uncommitted one of another client, and a client that is lost takes nobody else along (chapter 30.5).
A change whose own reply waits for its commit (a write) belongs to nobody until then: whoever depends on it, its author
too, waits with it, commit on share or not. A crash would lose it without anybody to replay it.
Dependence shows in two ways: a version that another client's uncommitted transaction has set, and a record (a name)
that it has removed. Different names in one directory share neither, so they force no commit.
Source: mdt_object_cos_check() and LCK_COS in Lustre; protocol-facts 5.11
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lustrelite.rpc.export import Export
    from lustrelite.target.transaction import Transaction

_PREFIX = 16  # bytes: a FID; names begin with their parent's


class Sharing:
    """The uncommitted transactions of a target and their authors."""

    def __init__(self) -> None:
        self.authors: dict[int, Export | None] = {}  # by transno; None: its reply waits for the commit
        self.removed: dict[tuple[str, bytes], dict[bytes, tuple[int, Export | None]]] = {}  # by table and key prefix
        self.commits = 0  # replies that had to wait

    def changed(self, txn: Transaction, *, answered: bool) -> None:
        """`txn` was applied; `answered`: its client hears of it before it is durable."""
        author = txn.export if answered else None
        self.authors[txn.transno] = author
        for table, key in txn.removals:
            self.removed.setdefault((table, key[:_PREFIX]), {})[key] = (txn.transno, author)

    def was_removed(self, table: str, key: bytes, reader: Export | None) -> bool:
        """Did somebody else remove this record, uncommitted?"""
        there = self.removed.get((table, key[:_PREFIX]))
        if there is None:
            return False
        found = there.get(key)
        return found is not None and found[1] is not reader

    def removed_below(self, table: str, prefix: bytes, reader: Export | None) -> bool:
        """Did somebody else remove a record whose key begins with `prefix` (a FID), uncommitted?"""
        there = self.removed.get((table, prefix[:_PREFIX]), {})
        return any(author is not reader for _, author in there.values())

    def committed(self, upto: int) -> None:
        """Everything up to transno `upto` is durable."""
        if not self.authors or next(reversed(self.authors)) <= upto:  # they came in this order
            self.authors.clear()
            self.removed.clear()
            return
        self.authors = {transno: author for transno, author in self.authors.items() if transno > upto}
        for place in list(self.removed):
            left = {key: entry for key, entry in self.removed[place].items() if entry[0] > upto}
            if left:
                self.removed[place] = left
            else:
                del self.removed[place]
