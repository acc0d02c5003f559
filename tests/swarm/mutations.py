"""Planted bugs: each breaks one rule of recovery, and the swarm must find it within 200 runs.

A mutation replaces attributes of the product while it is planted. It says in a few words what it breaks; the words are
also what a reader may take as a list of the rules that the swarm is known to guard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from lustrelite.mdt import open as mdt_open
from lustrelite.mdt import ost_log
from lustrelite.mdt.mdt import Mdt
from lustrelite.mdt.ost_log import OstLog
from lustrelite.ost.object_ids import ObjectIds
from lustrelite.ost.ost import Ost
from lustrelite.recovery.admit import Admit
from lustrelite.recovery.import_fsm import ImportFsm
from lustrelite.recovery.replay_list import ReplayList
from lustrelite.recovery.window import Window
from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.export import Call
from lustrelite.rpc.import_recovery import ImportRecovery
from lustrelite.sim.swarm import RECOVERY, Plan
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.room import ESSENTIAL
from lustrelite.store.small_log import SmallLog
from lustrelite.target import serving
from lustrelite.target.committer import Committer
from lustrelite.target.serving import Serving
from lustrelite.target.target import Target
from lustrelite.target.transaction import Transaction
from lustrelite.wire.mdt import Create, Open
from lustrelite.wire.message import BY_CLASS, BY_NAME, BY_OPCODE

Plant = Callable[[pytest.MonkeyPatch], None]


class Mutation(NamedTuple):
    """A planted bug."""

    name: str
    plant: Plant
    plan: Plan = RECOVERY  # which runs find it


MUTATIONS: list[Mutation] = []
RARE_MUTATIONS: list[Mutation] = []


def entered(mutations: list[Mutation], plan: Plan = RECOVERY) -> Callable[[Plant], Plant]:
    """What enters a mutation under its function's name."""

    def enter(plant: Plant) -> Plant:
        mutations.append(Mutation(plant.__name__.replace("_", " "), plant, plan))
        return plant

    return enter


mutation = entered(MUTATIONS)
rare = entered(RARE_MUTATIONS)  # one that needs more luck than a swarm has in 300 runs: a scenario finds it


@contextlib.contextmanager
def planted(one: Mutation) -> Iterator[None]:
    """The product with this bug."""
    with pytest.MonkeyPatch.context() as patch:
        one.plant(patch)
        yield


def without(table: str, *, kind: str, deletes: bool = False) -> Plant:
    """Writes to `table` never reach the store of a target of this kind."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        apply = Store.apply

        def lossy(self: Any, writes: Any, **options: Any) -> None:
            if self.kind == kind:
                writes = {k: v for k, v in writes.items() if k[0] != table or (v is None) is not deletes}
            apply(self, writes, **options)

        patch.setattr(Store, "apply", lossy)

    return plant


# ------------------------------------------------------------------------------------------------- the client's side


@mutation
def replay_list_is_pruned_one_transno_too_far(patch):
    drop = ReplayList.drop_committed
    patch.setattr(ReplayList, "drop_committed", lambda self, last: drop(self, last + 1 if last else last))


@mutation
def newest_request_is_never_replayed(patch):
    order = ReplayList.in_replay_order
    patch.setattr(ReplayList, "in_replay_order", lambda self: order(self)[:-1])


@mutation
def replays_go_in_the_wrong_order_and_the_server_does_not_sort(patch):
    order = ReplayList.in_replay_order
    patch.setattr(ReplayList, "in_replay_order", lambda self: order(self)[::-1])
    execute = Window._execute

    def first_come(self: Any, gap: Any = None) -> Any:
        self.next_transno = 0
        return execute(self, gap)

    patch.setattr(Window, "_execute", first_come)


@mutation
def a_resend_gets_a_new_xid(patch):
    resend = ClientImport.resend

    def renumbered(self: Any, request: Any) -> None:
        self.forget(request)
        request.xid = 0
        resend(self, request)

    patch.setattr(ClientImport, "resend", renumbered)


@mutation
def a_resend_is_not_marked(patch):
    def unmarked(self: Any, request: Any) -> None:
        self.send(request)

    patch.setattr(ClientImport, "resend", unmarked)


@mutation
def what_was_in_flight_is_not_resent_after_recovery(patch):
    recover = ImportRecovery._recover

    async def forgetful(self: Any) -> None:
        sending, self.imp.sending = self.imp.sending, {}
        await recover(self)
        self.imp.sending.update(sending)

    patch.setattr(ImportRecovery, "_recover", forgetful)


@mutation
def a_replayed_create_chooses_new_objects(patch):
    _without_replay_form(patch, Create)


@mutation
def a_replayed_open_chooses_new_objects(patch):
    _without_replay_form(patch, Open)


def _without_replay_form(patch: Any, cls: type) -> None:
    spec = BY_CLASS[cls]._replace(replay_form=None)
    patch.setitem(BY_CLASS, cls, spec)
    patch.setitem(BY_NAME, spec.name, spec)
    patch.setitem(BY_OPCODE, spec.opcode, spec)


@mutation
def opens_are_forgotten_when_they_are_committed(patch):
    def dropped(self: Any, request: Any) -> None:
        pass

    patch.setattr(ReplayList, "_committed", dropped)


@mutation
def a_new_instance_is_taken_for_the_old_one(patch):
    reply = ImportFsm.on_connect_reply

    def blind(self: Any, body: Any, now: float) -> Any:
        return reply(self, body._replace(flags=body.flags & ~0x1), now)

    patch.setattr(ImportFsm, "on_connect_reply", blind)


# ------------------------------------------------------------------------------------------------- the server's side


@mutation
def reply_records_are_not_saved(patch):
    without(schema.REPLIES, kind="MDT")(patch)


@mutation
def reply_records_are_saved_in_a_later_batch(patch):
    apply, commit = Store.apply, Store.commit

    def late(self: Any, writes: Any, **options: Any) -> None:
        mine = {k: v for k, v in writes.items() if k[0] == schema.REPLIES}
        self.__dict__.setdefault("late", {}).update(mine)
        apply(self, {k: v for k, v in writes.items() if k[0] != schema.REPLIES}, **options)

    def commit_late(self: Any, batch: Any) -> None:
        commit(self, batch)
        writes = self.__dict__.pop("late", {})
        if writes:
            apply(self, writes, kind=ESSENTIAL)

    patch.setattr(Store, "apply", late)
    patch.setattr(Store, "commit", commit_late)


@mutation
def a_resent_request_is_executed_again(patch):
    admit = serving.admit

    def careless(*facts: bool) -> Admit:
        verdict = admit(*facts)
        return Admit.EXECUTE if verdict is Admit.RECONSTRUCT and not facts[0] else verdict

    patch.setattr(serving, "admit", careless)


@mutation
def last_committed_runs_ahead_of_the_disk(patch):
    reply = Call.reply

    def boast(self: Any, *args: Any, **fields: Any) -> None:
        if self.target is not None and fields.get("last_committed"):
            fields["last_committed"] = self.target.last_transno
        reply(self, *args, **fields)

    patch.setattr(Call, "reply", boast)


@mutation
def commits_are_reported_but_not_made(patch):
    commit, reopen = Store.commit, Store.reopen

    def sometimes(self: Any, batch: Any) -> None:
        if self.kind == "MDT" and batch.number % 5 == 4:
            self._check_alive()
        else:
            commit(self, batch)

    def go_on(self: Any) -> bool:
        if self._sealed is not None:  # with the transaction that should be on disk
            self._txn.abort()
            self._txn = self._open = self._sealed
            self._sealed = self._frozen = None
        return reopen(self)

    patch.setattr(Store, "commit", sometimes)
    patch.setattr(Store, "reopen", go_on)


@mutation
def what_came_during_a_commit_is_lost(patch):
    reopen = Store.reopen

    def forgetful(self: Any) -> bool:
        self._behind.clear()
        return reopen(self)

    patch.setattr(Store, "reopen", forgetful)


@mutation
def recovery_does_not_wait_for_anybody(patch):
    start = Target.start

    async def hasty(self: Any, *, abort_recovery: bool = False) -> None:
        await start(self)
        if self.recovery is not None:
            self.recovery.window.missing.clear()

    patch.setattr(Target, "start", hasty)


@mutation
def versions_are_not_compared_on_replay(patch):
    def check(self: Any, slot: int, version: int) -> None:
        while len(self._pre) <= slot:
            self._pre.append(0)
        self._pre[slot] = version

    patch.setattr(Transaction, "check", check)
    # the second defence: a replay that cannot be done evicts its client as well
    patch.setattr(Serving, "_replay_failed", lambda self, call, error: None)


@mutation
def transnos_go_on_where_the_committed_ones_end(patch):
    finish = Target.finish_recovery

    async def no_epoch(self: Any) -> None:
        last = self.get_meta("last_transno", self.last_transno)
        await finish(self)
        if self.recoverable:
            self.last_transno = max(last, 1 << 32)

    patch.setattr(Target, "finish_recovery", no_epoch)


@mutation
def client_records_are_not_saved(patch):
    without(schema.CLIENTS, kind="MDT")(patch)


@mutation
def a_client_that_leaves_waits_for_nobody(patch):
    patch.setattr(ClientImport, "owed", property(lambda self: False))


@mutation
def eviction_leaves_the_files_of_the_client_open(patch):
    patch.setattr(Mdt, "export_gone", lambda self, export: None)


@mutation
def synchronous_replies_do_not_wait_for_the_commit(patch):
    patch.setattr(Committer, "after", lambda self, transno, callback: callback())


# ------------------------------------------------------------------------------------------------------ MDT and OSTs


@mutation
def the_destroy_log_is_not_written(patch):
    without(schema.OST_LOG, kind="MDT")(patch)


@mutation
def destroys_are_sent_before_they_are_durable(patch):
    due, put = OstLog._due, ost_log._put

    def eager(self: Any, after: bytes) -> Any:
        committed, self.mdt.last_committed = self.mdt.last_committed, 1 << 62
        try:
            return due(self, after)
        finally:
            self.mdt.last_committed = committed

    def put_and_wake(txn: Any, ost: int, oid: int, record: bytes) -> None:
        put(txn, ost, oid, record)
        txn.target.allocator.osps[ost].log.wake()

    patch.setattr(OstLog, "_due", eager)
    patch.setattr(ost_log, "_put", put_and_wake)


@mutation
def last_used_ids_are_not_saved(patch):
    without(schema.POOLS, kind="MDT")(patch)


@mutation
def orphan_cleanup_destroys_one_too_many(patch):
    orphans = ObjectIds._orphans
    patch.setattr(ObjectIds, "_orphans", lambda self, used, mdt: orphans(self, max(0, used - 1), mdt))


@mutation
def orphan_objects_are_never_destroyed(patch):
    patch.setattr(ObjectIds, "_orphans", lambda self, used, mdt: [])


@mutation
def open_unlinked_files_are_forgotten_in_recovery(patch):
    patch.setattr(Mdt, "recovery_over", lambda self: [osp.wake() for osp in self.allocator.osps.values()])


@mutation
def unlink_destroys_a_file_that_is_open(patch):
    patch.setattr(mdt_open.OpenFiles, "is_open", lambda self, fid: False)


@mutation
def data_is_not_made_durable_before_its_record(patch):
    patch.setattr(Ost, "_sync", lambda self, oids: None)


@mutation
def the_ost_forgets_its_last_id(patch):
    apply = Store.apply
    key = (schema.META, schema.meta_key("last_id"))

    def lossy(self: Any, writes: Any, **options: Any) -> None:
        once = self.__dict__.setdefault("once", {})
        apply(self, {k: v for k, v in writes.items() if k != key or k not in once}, **options)
        once[key] = None

    patch.setattr(Store, "apply", lossy)


@mutation
def the_log_of_small_batches_is_not_read(patch):
    patch.setattr(SmallLog, "entries", lambda self, commit: [])


@mutation
def a_commit_does_not_void_the_log(patch):
    patch.setattr(SmallLog, "begin", lambda self, commit: setattr(self, "_after", commit))
