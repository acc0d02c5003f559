"""Planted bugs in what object servers and their clients do about crashes: the OST swarm must find each within 300 runs.

The same kind of list as mutations.py: what it says is also what the swarm is known to guard.
"""

from __future__ import annotations

import asyncio
from typing import Any

import mutations
from mutations import Mutation, entered, rare

from lustrelite.client.lov import Lov
from lustrelite.mdt.ost_log import OstLog
from lustrelite.ost.handlers import HANDLERS
from lustrelite.ost.object_ids import LAST_ID, ObjectIds
from lustrelite.ost.ost import Ost
from lustrelite.recovery.replay_list import ReplayList
from lustrelite.sim.swarm import OST
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.target.handlers import EMPTY
from lustrelite.target.target import Target
from lustrelite.wire.ost import OstCreate, OstSync, Punch, Write
from lustrelite.wire.session import Empty

OST_MUTATIONS: list[Mutation] = []
mutation = entered(OST_MUTATIONS, OST)


# ------------------------------------------------------------------------------------------------- the client's side


def _replays_no(message: type, patch: Any) -> None:
    add = ReplayList.add

    def forgetful(self: Any, request: Any) -> None:
        if not isinstance(request.body, message):
            add(self, request)

    patch.setattr(ReplayList, "add", forgetful)


@mutation
def data_is_let_go_at_the_answer_and_not_at_the_commit(patch):
    _replays_no(Write, patch)


@mutation
def truncations_are_not_replayed(patch):
    _replays_no(Punch, patch)


@mutation
def replays_go_backwards_and_the_server_does_not_sort(patch):
    mutations.replays_go_in_the_wrong_order_and_the_server_does_not_sort(patch)


# ------------------------------------------------------------------------------------------------- the server's side


@mutation
def what_is_owed_to_objects_is_crossed_off_at_the_answer(patch):
    send = OstLog._send

    async def hasty(self: Any, body: Any, records: Any) -> None:
        await send(self, body, records)
        while self.answered:
            self.answered[0] = (0, self.answered[0][1])
            self.cross_off()

    patch.setattr(OstLog, "_send", hasty)


@mutation
def fsync_does_not_wait_for_the_commit(patch):
    async def hasty(call: Any, body: OstSync) -> Empty:
        return EMPTY

    patch.setitem(HANDLERS, OstSync, HANDLERS[OstSync]._replace(execute=hasty))


@mutation
def orphan_cleanup_goes_one_id_too_far(patch):
    mutations.orphan_cleanup_destroys_one_too_many(patch)


@mutation
def orphan_objects_are_never_destroyed(patch):
    mutations.orphan_objects_are_never_destroyed(patch)


@mutation
def what_may_be_lost_is_said_to_be_missing(patch):
    patch.setattr(ObjectIds, "may_be_lost", lambda self, oid: False)


@mutation
def lost_objects_are_not_made_again(patch):
    def only_counted(self: Any, txn: Any, after: int, upto: int, last: int) -> None:
        txn.put(schema.META, LAST_ID, schema.pack_meta(upto))

    patch.setattr(ObjectIds, "_make_again", only_counted)


@mutation
def an_orphan_pass_is_answered_before_it_is_durable(patch):
    patch.setattr(Ost, "answers_when_durable", Target.answers_when_durable)


@mutation
def data_is_not_made_durable_before_its_record(patch):
    patch.setattr(Ost, "_sync", lambda self, oids: None)


@mutation
def files_of_destroyed_objects_are_forgotten_in_a_crash(patch):
    patch.setattr(Ost, "sweep", lambda self: None)


@mutation
def data_in_the_log_is_not_put_back(patch):
    patch.setattr(Store, "put_back", lambda self, files: setattr(self, "logged_data", []))


@mutation
def a_truncation_is_durable_by_its_record(patch):
    stage = Ost.stage

    def hasty(self: Any, *args: Any, **options: Any) -> Any:
        fresh = self._fresh
        attr = stage(self, *args, **options)
        self._fresh = fresh
        return attr

    patch.setattr(Ost, "stage", hasty)


# ------------------------------------------------------ rarer than 300 runs: each has its scenario (test_mutations.py)


@rare
def a_replay_makes_no_lost_object_again(patch):
    patch.setattr(Ost, "record_for", lambda self, txn, oid: self.record(oid))


@rare
def an_id_that_a_crash_took_is_granted_again(patch):
    settle = ObjectIds.settle

    def forgetful(self: Any, txn: Any, used: int) -> int:
        go_on = max(self.last_id, used)
        settle(self, txn, used)
        txn.put(schema.META, LAST_ID, schema.pack_meta(go_on))
        return go_on

    patch.setattr(ObjectIds, "settle", forgetful)


@rare
def destroys_are_sent_before_the_orphan_pass(patch):
    sweep = OstLog._sweep

    class Synced:
        synced = True

        def __init__(self, osp: Any) -> None:
            self.osp = osp

        def __getattr__(self, name: str) -> Any:
            return getattr(self.osp, name)

    async def hasty(self: Any) -> None:
        osp, self.osp = self.osp, self.osp if isinstance(self.osp, Synced) else Synced(self.osp)
        try:
            await sweep(self)
        finally:
            self.osp = osp

    patch.setattr(OstLog, "_sweep", hasty)


@rare
def grants_of_ids_are_not_replayed(patch):
    add = ReplayList.add

    def forgetful(self: Any, request: Any) -> None:
        if not isinstance(request.body, OstCreate):
            add(self, request)

    patch.setattr(ReplayList, "add", forgetful)


@mutation
def promises_are_forsaken_instead_of_redeemed(patch):
    async def faithless(self: Any, layout: Any, until: float) -> None:
        for promised, promise in self.promises(layout):
            promised.forsake(promise)

    patch.setattr(Lov, "redeem", faithless)


@mutation
def promises_are_forsaken_before_the_server_has_had_time(patch):
    redeem = Lov.redeem

    async def hasty(self: Any, layout: Any, until: float) -> None:
        task = self._tasks.spawn(redeem(self, layout, until), "redeem")
        await asyncio.sleep(0.001)
        for promised, promise in self.promises(layout):
            promised.forsake(promise)
        await task

    patch.setattr(Lov, "redeem", hasty)
