"""Space that is promised to clients, so that what they have accepted from a program is sure to find room here later.

A client may keep data back only within its grant; a write that it takes from there is executed however full the disk
is. For that the promises of all clients together are never more than what the disk has beyond its reserve, and a write
without a grant may not eat into them: it gets ENOSPC at once, while the program that wrote can still be told.

A promise is used in blocks (wire/ost.grant_bytes, on both sides), ends with its client, and is not on disk: after a
restart a client says what it had, and is believed, for its data is already accepted. What a client gets is a part of
what is left, so that the last bytes go round; who is idle gives back (wire.ost.GrantShrink).

Both sides count the same to the byte, or space would be lost with every broken connection. What a client says when it
connects includes what it has sent and heard no answer of. If such a write was executed before, its repetition is when
it is counted; if its answer got lost without a new connection, the repetition brings the same grant as the answer did.
Source: tgt_grant.c: tgt_grant_alloc(), tgt_grant_prepare_write(), tgt_grant_shrink(); protocol-facts 11 (LU-2679)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lustrelite.rpc.export import Export
from lustrelite.store.schema import ReplyRecord
from lustrelite.wire.ost import GRANT_BLOCK_BYTES, Write, grant_bytes
from lustrelite.wire.session import FEATURE_GRANT, Connect

FIRST_BYTES = 8 << 20  # what a new client gets, if there is 64 times as much
SHARE = 8  # one in so many bytes of what is left is given at once
EXPORT_BYTES_MAX = 1 << 30  # one client holds no more
BUDGET_BYTES_MAX = 16 << 20  # taken of the disk ahead: written or promised before it is asked again how full it is


def cost_of(body: Write, length: int) -> int:
    """Bytes of grant that a write of `length` bytes takes."""
    return grant_bytes(body.offset, body.offset + length) if body.from_grant else 0


class _Claim(NamedTuple):
    """What a client said when it connected is counted up to here."""

    transno: int  # the target's last: changes up to it were executed before
    counted: dict[int, None]  # XIDs of those among them that were answered again since


class Grants:
    """The promises of one OST. `space` says how many bytes the disk has beyond the reserve, promised or not.

    `keep` takes so many bytes of the disk before others on it can, and says how many it has got.
    """

    def __init__(self, space: Callable[[], int], keep: Callable[[int], int]) -> None:
        self.space = space
        self.keep = keep
        self.promised = 0
        self.held: dict[Export, int] = {}
        self._claims: dict[Export, _Claim] = {}
        self._budget = 0  # kept beside what is promised: what may be written or promised before the disk is asked again

    @property
    def left(self) -> int:
        """Bytes that are free and promised to nobody; negative if others have filled the disk."""
        return self.space() - self.promised

    def connected(self, export: Export, body: Connect, last_transno: int, *, known: bool) -> int:
        """A client connects, or a `known` one does again; returns what it is promised in all."""
        if not export.features & FEATURE_GRANT:
            return 0
        if known:
            self._claims[export] = _Claim(last_transno, {})
            self._set(export, min(max(body.grant, 0), EXPORT_BYTES_MAX))
            self.look_again()
            self.keep_promised()
        else:
            self.gone(export)
            self._give(export, min(FIRST_BYTES, max(self.left, 0) // 64))
        return self.held.get(export, 0)

    def gone(self, export: Export) -> None:
        """The client is gone, evicted, or begins anew: what it was promised is free."""
        self.promised -= self.held.pop(export, 0)
        self.keep_promised()
        self._claims.pop(export, None)
        assert self.promised >= 0

    def covers(self, export: Export, cost: int) -> bool:
        """Is what takes `cost` bytes within the client's grant? Then it may not be refused for want of space."""
        # Where two locks of the client meet inside a block, its dirty data is cut, but grant was counted once: at each end.
        return cost > 0 and self.held.get(export, 0) >= max(cost - 2 * GRANT_BLOCK_BYTES, 1)

    def look_again(self) -> None:
        """Ask the disk how full it is before anything else is written or promised."""
        self._budget = 0

    def keep_promised(self) -> None:
        """Take of the disk what is promised, and what may be before it is asked again; others may have the rest."""
        self.keep(self.promised + self._budget)

    def take(self, length: int) -> bool:
        """`length` bytes, in whole blocks, are about to be written that nobody was promised: is there room for them?"""
        if length > self._budget:
            self._take_ahead(length)
        if length > self._budget:
            return False
        self._budget -= length
        return True

    def _take_ahead(self, wanted: int) -> None:
        """Look how full the disk is, and have a part of what is left; more, if so much is `wanted`."""
        left = max(self.left, 0)
        budget = max(min(left // SHARE, BUDGET_BYTES_MAX), wanted if wanted <= left else 0)
        self._budget = max(0, self.keep(self.promised + budget) - self.promised)

    def written(self, export: Export, cost: int, undirty: int) -> int:
        """What took `cost` bytes of grant was written. Returns what the client, who would like `undirty`, gets on top."""
        if not export.features & FEATURE_GRANT:
            return 0
        held = self.held.get(export, 0)
        if cost:
            held -= min(held, cost)
            self._set(export, held)
        wanted = min(undirty, EXPORT_BYTES_MAX - held)
        return self._give(export, wanted) if wanted > 0 else 0

    def written_before(self, export: Export, cost: int, record: ReplyRecord) -> int:
        """What was executed as `record` says is answered again: what the client shall add to its grant."""
        claim = self._claims.get(export)
        if claim is None or record.transno > claim.transno:
            return record.data
        if cost and record.xid not in claim.counted:
            claim.counted[record.xid] = None
            held = self.held.get(export, 0)
            self._set(export, held - min(held, cost))
        return 0

    def given_back(self, export: Export, amount: int) -> None:
        """The client needs `amount` of its grant no more."""
        held = self.held.get(export, 0)
        self._set(export, held - min(max(amount, 0), held))
        self.keep_promised()

    def restore(self, export: Export, held: int) -> None:
        """A write failed after all: the client is promised what it was before."""
        self._set(export, held)

    def check(self) -> None:
        """What must hold at any time."""
        assert self.promised == sum(self.held.values()) >= 0, (self.promised, self.held)
        assert all(0 < held <= EXPORT_BYTES_MAX for held in self.held.values()), self.held

    def _give(self, export: Export, wanted: int) -> int:
        given = wanted // GRANT_BLOCK_BYTES * GRANT_BLOCK_BYTES
        if given > self._budget:
            self._take_ahead(0)
            given = min(given, self._budget // GRANT_BLOCK_BYTES * GRANT_BLOCK_BYTES)
        self._budget -= given
        self._set(export, self.held.get(export, 0) + given)
        return given

    def _set(self, export: Export, amount: int) -> None:
        self.promised += amount - self.held.get(export, 0)
        if amount:
            self.held[export] = amount
        else:
            self.held.pop(export, None)
