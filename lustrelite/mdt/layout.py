"""Which objects a new file gets: the wish, the choice among OSTs, and the same objects again in a replay.

Object ids are granted by the OSTs ahead of time (mdt/osp.py) and taken here without waiting. Each taken id raises the
pool's `last_used` in the transaction of the layout, so a crash loses both or neither and no id is used twice. A pool
that is empty in spite of `prepare` raises NotReady: nothing was changed, the request waits and is tried again.

A replay brings its layout. Ids that it jumps over were given to a client that has not come back (or belong to a replay
that is still to come): they are condemned in the same transaction, and pardoned if their replay does come. Their OSTs
hear nothing until recovery is over. Source: osp_declare_create() with an explicit fid; protocol-facts 7.2; replay-dual
14b.

A create takes what can serve now. Whether an OST is down, full, switched off, or slow to grant more ids: as long as
another has some, nobody waits, and a file that should have more stripes gets fewer. Only when no OST has any does a
create wait, for as long as it takes, like any I/O to an OST that is away: it is held here for a moment, then its client
is told to come again, who knows whether he wants to (failout). ENOSPC is the answer when none can be expected to have
any. Among those that have, files go round, or by free space (qos.py).

Not handled: pools of OSTs, more than one component.
"""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from lustrelite.errors import OpError
from lustrelite.mdt.ost_log import condemn, pardon
from lustrelite.mdt.qos import Qos, interleaved
from lustrelite.recovery.import_fsm import State
from lustrelite.store.schema import (
    POOLS,
    PoolRecord,
    pack_pool,
    pool_key,
    split_pool_key,
    unpack_pool,
)
from lustrelite.target.handlers import NotReady
from lustrelite.tunables import limits
from lustrelite.wire.mdt import Layout, StripeHint

if TYPE_CHECKING:
    from lustrelite.mdt.namespace import Rows
    from lustrelite.mdt.osp import Osp
    from lustrelite.rpc.node import Node
    from lustrelite.target.transaction import Transaction

STRIPE_BYTES_MAX = (1 << 32) - limits.stripe_bytes_min
HOLD_S = 5.0  # a create that finds no OST waits here so long, then comes again
OTHERS_S = 0.2  # after a wait the first OST that can serve gives the others so long
GAP_MAX = 100_000  # ids condemned at most at once: more is not a gap but another OST


def check_hint(hint: StripeHint) -> None:
    """EINVAL unless the hint could be honoured by some set of OSTs."""
    count, size, offset = hint
    if not -1 <= count <= limits.stripes_max or not -1 <= offset <= 0xFFFF:
        raise OpError(errno.EINVAL)
    if size and (size % limits.stripe_bytes_min or not 0 < size <= STRIPE_BYTES_MAX):
        raise OpError(errno.EINVAL)


def check_layout(layout: Layout) -> None:
    """EINVAL unless this can be a layout that we once answered: replays come from clients."""
    size, _, pool, stripes = layout
    if not 0 < size <= STRIPE_BYTES_MAX or size % limits.stripe_bytes_min or pool:
        raise OpError(errno.EINVAL)
    if not 0 < len(stripes) <= limits.stripes_max or len({ost for ost, _ in stripes}) != len(stripes):
        raise OpError(errno.EINVAL)
    for ost, oid in stripes:
        if not 0 <= ost <= 0xFFFF or not 0 < oid < 1 << 63:
            raise OpError(errno.EINVAL)


class Wish(NamedTuple):
    """What a new file shall be: the request's hint, else its directory's, else the default."""

    stripe_count: int  # -1 is every OST that can serve now
    size: int
    offset: int


def wish_of(node: Node, hint: StripeHint | None, inherited: StripeHint | None) -> Wish:
    """The wish of a request with `hint` in a directory with the default `inherited`; EINVAL."""
    if hint is not None:
        check_hint(hint)
    else:
        hint = inherited
    tunables = node.tunables
    if hint is None:
        return Wish(tunables.stripe_count or 1, tunables.stripe_size, -1)
    count, size, offset = hint
    return Wish(count or tunables.stripe_count or 1, size or tunables.stripe_size, offset)


class Allocator:
    """The pools of all OSTs.

    `ready` are those that can give an id at once, in the order of their indices; `round` are the same from server to
    server, or None: draw by free space.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.osps: dict[int, Osp] = {}  # by OST index, ascending
        self.ready: list[Osp] = []
        self.round: list[Osp] | None = []
        self.qos = Qos(node)
        self.waits = 0  # creates that found no OST with an id
        self.all_ready = False  # every known OST is: no prepare has to look closer
        self.last_used: dict[int, int] = {}  # by OST index, uncommitted allocations included
        self._turn = 0
        self._waiters: dict[asyncio.Future[None], None] = {}

    def load(self, rows: Rows) -> None:
        """Read `last_used` of every pool from the store."""
        for key, value in rows.scan(POOLS):
            self.last_used[split_pool_key(key)] = unpack_pool(value).last_used

    def add(self, osp: Osp) -> None:
        """Allocate on `osp`, too."""
        self.osps[osp.index] = osp
        self.osps = dict(sorted(self.osps.items()))
        self.refresh()

    def refresh(self) -> None:
        """Look again which OSTs can serve, and wake who waits for one."""
        self.ready = [osp for osp in self.osps.values() if osp.ready]
        self.all_ready = bool(self.ready) and len(self.ready) == len(self.osps)
        if self.qos.uneven([osp.index for osp in self.ready]):
            self.round = None
        else:
            servers: dict[str, list[Osp]] = {}
            for osp in self.ready:
                servers.setdefault(str(osp.imp.current_nid), []).append(osp)
            self.round = interleaved(list(servers.values()))
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # ------------------------------------------------------------ choosing

    def stripes_now(self, wish: Wish) -> int:
        """How many stripes a file can have at once; 0: wait, an OST may come back. ENOSPC: waiting will not help.

        Source: lod_ost_alloc_rr(): at least one stripe
        """
        ready = len(self.ready)
        if ready:
            return ready if wish.stripe_count == -1 else min(wish.stripe_count, ready)
        if not self.osps or any(osp.hopeful for osp in self.osps.values()):
            return 0
        raise OpError(errno.ENOSPC)

    async def wait_for(self, wish: Wish) -> None:
        """Return when `stripes_now` has an answer.  Errors: EINPROGRESS, not after HOLD_S; ENOSPC

        Who has to wait at all gives the other OSTs a moment too, if he wants more stripes: after a restart of the MDT
        they come one after another, and a layout is for ever.
        """
        self.waits += 1
        self.node.events.emit("mdt.waits_for_objects", wish=wish._asdict())
        deadline = self.node.now() + HOLD_S
        while not self.stripes_now(wish):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters[waiter] = None
            try:
                async with asyncio.timeout(max(0.0, deadline - self.node.now())):
                    await waiter
            except TimeoutError:
                raise OpError(errno.EINPROGRESS, "no OST can serve now") from None
            finally:
                self._waiters.pop(waiter, None)
        if wish.stripe_count != 1 and any(osp.hopeful and not osp.ready for osp in self.osps.values()):
            await asyncio.sleep(OTHERS_S)

    def allocate(self, txn: Transaction, wish: Wish) -> Layout:
        """Take objects for a new file; nothing may fail in the handler after this. NotReady, ENOSPC."""
        order = self.round
        if order and wish.stripe_count == 1 and wish.offset < 0:  # the common file
            self._turn = turn = self._turn + 1
            osp = order[turn % len(order)]
            if osp.imp.state is State.FULL:
                return Layout(wish.size, 0, "", ((osp.index, self._take(txn, osp)),))
        if any(osp.imp.state is not State.FULL for osp in self.ready):
            self.refresh()
        count = self.stripes_now(wish)
        if not count:
            raise NotReady
        if wish.offset >= 0:
            chosen = self._beginning_at(wish.offset, count)
        elif self.round is None:
            chosen = [self.osps[index] for index in self.qos.draw([osp.index for osp in self.ready], count)]
        else:
            chosen = self._in_turn(self.round, count)
        return Layout(wish.size, 0, "", tuple([(osp.index, self._take(txn, osp)) for osp in chosen]))

    def _beginning_at(self, offset: int, count: int) -> list[Osp]:
        if offset not in self.osps:
            raise OpError(errno.EINVAL, f"there is no OST {offset}")
        later = [osp for osp in self.ready if osp.index >= offset]
        return (later + self.ready)[:count]

    def _in_turn(self, order: list[Osp], count: int) -> list[Osp]:
        # One further after a full round, else every file would begin on the same OST.
        self._turn += count if count % len(order) else count + 1
        return [order[(self._turn + i) % len(order)] for i in range(count)]

    def _take(self, txn: Transaction, osp: Osp) -> int:
        oid = osp.take()
        before = self.last_used.get(osp.index, 0)
        assert oid > before, (osp.index, oid)
        self.last_used[osp.index] = oid
        txn.put(POOLS, osp.pool_key, pack_pool(PoolRecord(oid, osp.granted)))
        txn.undo(lambda: self._give_back(osp, oid, before))
        return oid

    def _give_back(self, osp: Osp, oid: int, before: int) -> None:
        osp.give_back(oid)
        self.last_used[osp.index] = before

    # ------------------------------------------------------------ replay

    def claim(self, txn: Transaction, layout: Layout) -> None:
        """Use the objects of a replayed `layout` again (see the module). EINVAL for one that cannot be ours."""
        check_layout(layout)
        for ost, oid in layout.stripes:
            key = pool_key(ost)
            value = txn.get(POOLS, key)
            used, granted = (0, 0) if value is None else unpack_pool(value)
            if oid > used:
                for lost in range(max(used + 1, oid - GAP_MAX), oid):
                    condemn(txn, ost, lost)
                txn.put(POOLS, key, pack_pool(PoolRecord(oid, max(granted, oid))))
                before = self.last_used.get(ost, 0)
                self.last_used[ost] = max(oid, before)
                txn.undo(partial(self.last_used.__setitem__, ost, before))
            else:
                pardon(txn, ost, oid)


def raise_last_used(txn: Transaction, ost: int, last_used: int) -> None:
    """Ids up to `last_used` of OST `ost` are gone: used, or destroyed by orphan cleanup."""
    txn.put(POOLS, pool_key(ost), pack_pool(PoolRecord(last_used, last_used)))
