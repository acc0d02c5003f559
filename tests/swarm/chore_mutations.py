"""Planted bugs that show only with failover pairs, clocks that differ, and what administrators do (sim/chores.py).

The same kind of list as mutations.py; each says which swarm finds it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mutations import Mutation, entered

from lustrelite.ldlm.held_locks import HeldLocks
from lustrelite.ldlm.locks_in_use import LocksInUse
from lustrelite.mdt.osp import Osp
from lustrelite.ost.grant import Grants
from lustrelite.ost.ost import Ost
from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.import_recovery import ImportRecovery
from lustrelite.sim.swarm import COHERENCE, OST, RECOVERY
from lustrelite.store.room import ORDINARY
from lustrelite.target import serving

CHORE_MUTATIONS: list[Mutation] = []
mutation = partial(entered, CHORE_MUTATIONS)  # of a plan


@mutation(COHERENCE)
def a_server_has_one_address(patch):
    patch.setattr(ClientImport, "set_nids", lambda self, nids, instance=None: None)
    patch.setattr(ImportRecovery, "_choose_nid", lambda self, same: self.imp.nids[0])


@mutation(COHERENCE)
def a_lease_is_counted_by_the_wall_clock(patch):
    def valid(self: Any) -> bool:
        return self._now() + self.node.skew_ns / 1e9 < self.imp.lease_until

    patch.setattr(HeldLocks, "lease_valid", property(valid))


@mutation(RECOVERY)
def the_record_of_an_answer_needs_room(patch):
    patch.setattr(serving, "DELETION", ORDINARY)


@mutation(OST)
def who_was_promised_nothing_takes_what_is_promised(patch):
    patch.setattr(Grants, "take", lambda self, length: True)


@mutation(OST)
def a_hole_is_taken_for_what_is_there(patch):
    patch.setattr(Ost, "_takes_room", lambda self, oid, start, end: end > self.files.size(oid))


@mutation(COHERENCE)
def unused_locks_go_with_their_dirty_data(patch):
    def hasty(self: Any) -> None:
        self._trimming = False
        for lock in self.lru.surplus(self._now(), lambda lock: False):
            self.lru.used(lock)
            self._let_go(lock)

    patch.setattr(LocksInUse, "_trim", hasty)


@mutation(OST)
def an_ost_that_is_active_again_gives_ids_once_more(patch):
    switched = Osp._switched

    def anew(self: Any) -> None:
        if not self.imp.inactive:
            self.next = max(1, self.next - 2)
        switched(self)

    patch.setattr(Osp, "_switched", anew)
