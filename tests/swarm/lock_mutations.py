"""Planted bugs in the locks and the caches under them: the coherence swarm must find each within 300 runs.

The same kind of list as mutations.py: what it says is also what the swarm is known to guard.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any

from mutations import Mutation, entered, rare

from lustrelite.client.attr_cache import AttrCache
from lustrelite.client.cached_object import CachedObject
from lustrelite.client.data_cache import DataCache
from lustrelite.client.locked_io import LockedIo
from lustrelite.ldlm.held_locks import HeldLocks
from lustrelite.ldlm.local_locks import LocalLocks
from lustrelite.ldlm.lock import LOCAL
from lustrelite.ldlm.lock_cache import LockCache
from lustrelite.ldlm.namespace import Namespace
from lustrelite.ldlm.wants import refused
from lustrelite.ost import changes as ost_changes
from lustrelite.ost.ost import Ost
from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.export import Call
from lustrelite.sim.swarm import COHERENCE
from lustrelite.wire.ldlm import LOOKUP, PERM, UPDATE
from lustrelite.wire.locks import Ask

LOCK_MUTATIONS: list[Mutation] = []
mutation = entered(LOCK_MUTATIONS, COHERENCE)


# ------------------------------------------------------------------------------------------------- the server's side


@mutation
def a_callback_is_not_awaited_before_the_grant(patch):
    ask = Namespace._ask

    def hasty(self: Any, lock: Any, *args: Any) -> None:
        ask(self, lock, *args)
        if lock.owner is not LOCAL:
            asyncio.get_running_loop().call_soon(self.cancel, lock.owner, (lock.handle,))

    patch.setattr(Namespace, "_ask", hasty)


@mutation
def changes_of_metadata_do_not_revoke_locks(patch):
    patch.setattr(LocalLocks, "busy", lambda *args: False)


@mutation
def uncached_io_minds_no_locks(patch):
    patch.setattr(LocalLocks, "extent_busy", lambda *args: False)

    async def nothing(*args: Any) -> list[Any]:
        return []

    patch.setattr(LocalLocks, "wait_extent", nothing)


@mutation
def a_glimpse_asks_nobody(patch):
    def alone(self: Any, export: Any, want: Any, answer: Any) -> None:
        lvb = self.lvb(want.resource)
        answer(refused(want, -errno.ENOENT if lvb is None else -errno.EWOULDBLOCK, lvb))

    patch.setattr(Namespace, "glimpse", alone)


@rare
def a_lock_goes_before_its_data_is_durable(patch):
    patch.setattr(Ost, "_cancel_waits", lambda self, lock, with_change, cancel: False)


@mutation
def replies_do_not_say_which_callbacks_were_sent(patch):
    """So a client that lost one trusts its locks on and on."""
    reply = Call.reply

    def silent(self: Any, *args: Any, **fields: Any) -> None:
        if self.export is None:
            reply(self, *args, **fields)
            return
        last, self.export.last_callback = self.export.last_callback, 0
        try:
            reply(self, *args, **fields)
        finally:
            self.export.last_callback = last

    patch.setattr(Call, "reply", silent)


@mutation
def locks_are_not_replayed(patch):
    patch.setattr(HeldLocks, "wants_to_replay", lambda self: [])


# ------------------------------------------------------------------------------------------------- the client's side


def cancel_before_the_flush(patch: Any) -> None:
    flush = LockCache._flush_and_let_go

    async def cancel_first(self: Any, lock: Any, *args: Any) -> None:
        self._cancels.add((lock.handle,))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await flush(self, lock, *args)

    patch.setattr(LockCache, "_flush_and_let_go", cancel_first)


@mutation
def a_cancel_overtakes_its_flush(patch):
    cancel_before_the_flush(patch)
    patch.setattr(ost_changes, "check_lock", lambda *args: None)  # the second defence


@mutation
def a_cancel_overtakes_its_flush_and_the_OST_refuses_the_data(patch):
    cancel_before_the_flush(patch)


@mutation
def the_cached_size_is_kept_after_a_revoke(patch):
    leave, drop, adopted = DataCache._leave, DataCache._drop, DataCache._adopted

    def keep(self: Any, cached: Any) -> None:
        if isinstance(cached, CachedObject):
            self.__dict__.setdefault("sizes", {})[cached.obj] = cached.size

    def leave_it(self: Any, cached: Any, lock: Any) -> None:
        keep(self, cached)
        leave(self, cached, lock)

    def drop_it(self: Any, lock: Any, lost: bool) -> None:
        keep(self, lock.data)
        drop(self, lock, lost)

    def remembered(self: Any, obj: int, lock: Any) -> Any:
        cached = adopted(self, obj, lock)
        cached.grow(self.__dict__.get("sizes", {}).get(obj, 0))
        return cached

    patch.setattr(DataCache, "_leave", leave_it)
    patch.setattr(DataCache, "_drop", drop_it)
    patch.setattr(DataCache, "_adopted", remembered)


@mutation
def cached_pages_are_kept_after_a_revoke(patch):
    abandon = CachedObject.abandon

    def keep(self: Any, lock: Any) -> list[tuple[int, int]]:
        abandon(self, lock)
        return []

    patch.setattr(CachedObject, "abandon", keep)
    patch.setattr(DataCache, "_forget", lambda self, cached, lost=False: None)


@mutation
def attributes_are_kept_after_a_revoke(patch):
    forget = AttrCache._forget

    def keep(self: Any, known: Any, gone: int, lost: bool) -> None:
        forget(self, known, gone, lost)
        known.fresh |= gone & (UPDATE | PERM)

    patch.setattr(AttrCache, "_forget", keep)


@mutation
def names_are_kept_after_a_revoke(patch):
    forget = AttrCache._forget

    def keep(self: Any, known: Any, gone: int, lost: bool) -> None:
        forget(self, known, gone & ~LOOKUP, lost)
        known.fresh &= ~gone | LOOKUP

    patch.setattr(AttrCache, "_forget", keep)


@mutation
def missing_names_and_listings_are_kept_after_a_revoke(patch):
    forget = AttrCache._forget

    def keep(self: Any, known: Any, gone: int, lost: bool) -> None:
        forget(self, known, gone & ~UPDATE, lost)
        known.fresh &= ~gone
        known.bits |= gone & UPDATE

    patch.setattr(AttrCache, "_forget", keep)


@mutation
def sole_goes_before_the_osts_have_heard(patch):
    patch.setattr(AttrCache, "_withdraw", lambda self, lock: None)


@mutation
def the_lease_is_ignored(patch):
    forever = property(lambda self: float("inf"), lambda self, until: None)
    patch.setattr(ClientImport, "lease_until", forever, raising=False)


@mutation
def a_glimpse_is_not_told_of_dirty_data(patch):
    patch.setattr(DataCache, "_glimpse_of", lambda self, lock: None)


@mutation
def an_append_looks_for_the_end_before_it_has_its_locks(patch):
    async def early(self: Any, layout: Any, owner: Any, buffer: Any, time: int, cred: Any, **how: Any) -> int:
        offset = (await self.getattr(layout)).size
        await self.write(layout, owner, buffer, offset, time, cred, **how)
        return offset

    patch.setattr(LockedIo, "append", early)


@mutation
def nothing_is_written_back_when_a_lock_is_asked_for(patch):
    async def nothing(self: Any, lock: Any, ask: Ask | None) -> None:
        pass

    patch.setattr(DataCache, "_flush", nothing)
