"""Planted bugs in what object servers and their clients do about crashes: the OST swarm must find each within 200 runs.

The same kind of list as mutations.py: what it says is also what the swarm is known to guard.
"""

from __future__ import annotations

from typing import Any

import mutations
from mutations import Mutation, Plant

from lustrelite.mdt.ost_log import OstLog
from lustrelite.ost.handlers import HANDLERS
from lustrelite.ost.ost import Ost
from lustrelite.recovery.replay_list import ReplayList
from lustrelite.target.handlers import EMPTY
from lustrelite.wire.ost import OstSync, Punch, Write
from lustrelite.wire.session import Empty

OST_MUTATIONS: list[Mutation] = []


def mutation(plant: Plant) -> Plant:
    """Enter a mutation under its function's name."""
    OST_MUTATIONS.append(Mutation(plant.__name__.replace("_", " "), plant))
    return plant


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
def ids_are_granted_before_they_are_durable(patch):
    async def hasty(self: Any, *args: Any, **options: Any) -> None:
        pass

    patch.setattr(Ost, "committed", hasty)


@mutation
def data_is_not_made_durable_before_its_record(patch):
    patch.setattr(Ost, "_sync", lambda self, oids: None)


@mutation
def files_of_destroyed_objects_are_forgotten_in_a_crash(patch):
    patch.setattr(Ost, "recovery_over", lambda self: None)
