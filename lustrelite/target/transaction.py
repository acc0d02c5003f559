"""One change: the only door to a target's store.

A transaction has its transno from the start, gathers its writes in Python and is applied whole, or not at all: an
OpError on the way leaves no trace. With it go the versions of what it changed (stamped with the transno), the reply
record and whatever logs it wrote: one batch holds all of them or none.

`check` declares the versions the change depends on: remembered for the reply, compared on a replay. A version that
another client has made and that is not committed makes this change dependent: with commit on share its reply waits
until both are durable, so that the loss of one client never takes another one's work along (chapter 30.5).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lustrelite.errors import OpError
from lustrelite.recovery.versions import UNCHECKED
from lustrelite.wire.message import ROOT_CRED, Cred

if TYPE_CHECKING:
    from lustrelite.rpc.export import Call, Export
    from lustrelite.target.target import Target

_MISSING: Any = object()


class Transaction:
    """A change of one target, of a client's request or of the target's own."""

    __slots__ = (
        "_get", "_pre", "call", "cred", "data", "dependent", "export", "on_unanswered", "removals", "replay", "resent", "target", "then", "transno", "undo_list",
        "when_committed_list", "writes", "xid",
    )  # fmt: skip

    def __init__(self, target: Target, call: Call | None, transno: int, *, replay: bool = False, resent: bool = False):
        self.target = target
        self.call = call
        self.export: Export | None = call.export if call is not None else None
        self.cred: Cred = call.cred if call is not None else ROOT_CRED
        self.xid = call.xid if call is not None else 0
        self.transno = transno
        self.replay = replay
        self.resent = resent
        self.removals: list[tuple[str, bytes]] = []
        self.dependent = False  # on another client's uncommitted change
        self.on_unanswered = False  # on a change that nobody was told of yet
        self.data = 0  # for the reply record: the disposition of an open
        self.writes: dict[tuple[str, bytes], bytes | None] = {}
        self.when_committed_list: list[Callable[[], None]] = []
        self.undo_list: list[Callable[[], None]] = []
        self.then: Callable[[], object] | None = None  # called in the turn in which it is applied
        self._pre: list[int] = []
        self._get = target.store.get

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of `key`, this transaction's own writes included."""
        if self.writes:
            value = self.writes.get((table, key), _MISSING)
            if value is not _MISSING:
                return value  # type: ignore[no-any-return]
        value = self._get(table, key)
        if value is None and self.target.sharing.removed:
            self.dependent |= self.target.sharing.was_removed(table, key, self.export)
        return value  # type: ignore[no-any-return]

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set `key`."""
        self.writes[table, key] = value

    def delete(self, table: str, key: bytes) -> None:
        """Remove `key`, if it is there."""
        self.writes[table, key] = None
        self.removals.append((table, key))

    def scan(self, table: str, after: bytes = b"", *, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows in key order, strictly after `after`, this transaction's own writes included."""
        if self.target.sharing.removed and prefix:
            self.dependent |= self.target.sharing.removed_below(table, prefix, self.export)
        own = sorted(k for t, k in self.writes if t == table and k.startswith(prefix) and k > after)
        if not own:
            yield from self.target.store.scan(table, after, prefix=prefix)
            return
        place = 0
        for key, value in self.target.store.scan(table, after, prefix=prefix):
            while place < len(own) and own[place] < key:
                mine = self.writes[table, own[place]]
                if mine is not None:
                    yield own[place], mine
                place += 1
            if place < len(own) and own[place] == key:
                mine = self.writes[table, key]
                if mine is not None:
                    yield key, mine
                place += 1
                continue
            yield key, value
        for key in own[place:]:
            mine = self.writes[table, key]
            if mine is not None:
                yield key, mine

    def check(self, slot: int, version: int) -> None:
        """This change depends on `version` (ABSENT: on nothing being there) in slot 0..3.

        On a replay it must be the version of the first execution; OpError(EOVERFLOW) otherwise.
        Source: mdt_version_check(), mdt/mdt_reint.c; protocol-facts 3.7
        """
        pre = self._pre
        while len(pre) <= slot:
            pre.append(UNCHECKED)
        pre[slot] = version
        self.depends(version)
        if self.replay:
            assert self.call is not None
            expected = self.call.header.pre_versions
            if version != UNCHECKED and (slot >= len(expected) or expected[slot] != version):
                self.target.version_mismatch(self, slot, expected, version)
                raise OpError(errno.EOVERFLOW, "Version mismatch during replay")

    def depends(self, version: int) -> None:
        """This change was possible because of what has set `version`: no slot, so a replay does not compare it."""
        target = self.target
        if version > target.last_committed:
            author = target.sharing.authors.get(version)
            self.dependent |= author is not self.export
            self.on_unanswered |= author is None

    @property
    def pre_versions(self) -> tuple[int, ...]:
        """The declared versions, in their slots."""
        return tuple(self._pre)

    def when_committed(self, callback: Callable[[], None]) -> None:
        """Call back once this change is durable (not at all if it fails or the target is killed)."""
        self.when_committed_list.append(callback)

    def undo(self, callback: Callable[[], None]) -> None:
        """Call back if this change fails after all: for what the handler changed in memory."""
        self.undo_list.append(callback)

    def failed(self) -> None:
        """It was not applied: take back what was changed in memory, the last change first."""
        for callback in reversed(self.undo_list):
            callback()
