"""What a target does with Enqueue, Convert and Cancel: the same for MDT and OST. The locks are in ldlm/namespace.py.

They are `reading`: no transaction, no reply record. A second copy finds the first one's locks by their handles.
Source: ldlm_handle_enqueue(), ldlm_handle_convert(), ldlm_handle_cancel(), ldlm/ldlm_lockd.c
"""

from __future__ import annotations

import errno
from typing import Any

from lustrelite.errors import OpError
from lustrelite.ldlm.namespace import Namespace
from lustrelite.rpc.export import Call
from lustrelite.target.handlers import EMPTY, LATER, Handler, reading
from lustrelite.wire.ldlm import FLOCK, GLIMPSE, PROMISED, REPLAYED, Granted, Want
from lustrelite.wire.locks import Cancel, Convert, Enqueue, EnqueueReply
from lustrelite.wire.session import Empty

WANTS_MAX = 4096  # in one Enqueue


def is_lock_replay(body: Any) -> bool:
    """Does a client say, after a restart of the server, what it holds?"""
    return type(body) is Enqueue and bool(body.wants) and bool(body.wants[0].flags & REPLAYED)


def enqueue(call: Call, body: Enqueue) -> Any:
    """Take locks; each stands for itself. Answered at once, unless somebody must be asked what he knows (glimpse)."""
    export = call.export
    namespace: Namespace = call.target.namespace
    replays = sum(1 for want in body.wants if want.flags & REPLAYED)
    if len(body.wants) > WANTS_MAX or replays not in (0, len(body.wants)):
        raise OpError(errno.EINVAL, f"{len(body.wants)} wants, {replays} of them replayed")
    if body.cancels:
        namespace.cancel(export, body.cancels)
    if namespace.draining:
        raise OpError(errno.EAGAIN, "the target stops")
    if replays:
        return EnqueueReply(tuple([namespace.replay(export, want) for want in body.wants]))
    if any(
        call.target.may_turn_up(want.resource) or (not want.flags & PROMISED and call.target.is_promised(want.resource))
        for want in body.wants
    ):
        raise OpError(errno.EINPROGRESS, "perhaps it is there, or somebody's")
    if not any(want.flags & GLIMPSE for want in body.wants):
        if body.wants and body.wants[0].type == FLOCK:
            return _take_flocks(call, body, namespace)
        return _shown(call, EnqueueReply(tuple([_take(call, want) for want in body.wants])))
    return _Glimpsing(call, body).start()


def _take(call: Call, want: Want) -> Granted:
    export = call.export
    namespace: Namespace = call.target.namespace
    if not want.flags & PROMISED:
        return namespace.take(export, want)
    known = namespace.table.find(export, want.handle) is not None
    granted = namespace.take(export, want)
    lock = namespace.table.find(export, want.handle)
    if lock is not None:
        if not known and call.target.promises_count(export):
            lock.flags |= PROMISED
        granted = granted._replace(flags=granted.flags | lock.flags & PROMISED)  # the same in each copy's answer
    return granted


def _take_flocks(call: Call, body: Enqueue, namespace: Namespace) -> EnqueueReply:
    """Record locks. Nobody asks for one back: the client must hear of each that it gets, so every copy has one answer."""
    export = call.export
    if export.callbacks is not None:
        export.callbacks.flush()  # what was granted before is told before: the client keeps an owner's map by our order
    reply: EnqueueReply | None = export.flock_answer(call.xid)
    if reply is None or any(namespace.flocks.waits_for(export, want.handle) for want in body.wants):
        reply = EnqueueReply(tuple([namespace.take(export, want) for want in body.wants]))
        export.keep_flock_answer(call.xid, reply)
    return reply


def _shown(call: Call, reply: EnqueueReply) -> Any:
    """The reply; LATER if it grants what shows something that a crash could take back.  Source: `Ost.unsettled`"""
    target, export = call.target, call.export
    transno = max((target.unsettled(export, said.resource) for said in reply.granted if said.lvb and said.mode), default=0)
    if not transno:
        return reply
    target.committer.after(transno, lambda: target.reply(call, 0, reply))
    return LATER


class _Glimpsing:
    """An enqueue of which some wants are glimpses: answered when all of them are."""

    def __init__(self, call: Call, body: Enqueue) -> None:
        self._call = call
        self._wants = body.wants
        self._answers: list[Granted | None] = [None] * len(body.wants)
        self._open = len(body.wants)
        self._waits = False

    def start(self) -> Any:
        """The reply, or LATER."""
        namespace: Namespace = self._call.target.namespace
        for place, want in enumerate(self._wants):
            if want.flags & GLIMPSE:
                namespace.glimpse(self._call.export, want, lambda granted, place=place: self._answered(place, granted))  # type: ignore[misc]
            else:
                self._answered(place, namespace.take(self._call.export, want))
        if self._open:
            self._waits = True
            return LATER
        return _shown(self._call, self._reply())

    def _answered(self, place: int, granted: Granted) -> None:
        self._answers[place] = granted
        self._open -= 1
        if self._waits and not self._open and (reply := _shown(self._call, self._reply())) is not LATER:
            self._call.target.reply(self._call, 0, reply)

    def _reply(self) -> EnqueueReply:
        return EnqueueReply(tuple([granted for granted in self._answers if granted is not None]))


def convert(call: Call, body: Convert) -> Empty:
    """Give back some bits of locks."""
    for handle, drop_bits in body.locks:
        call.target.namespace.convert(call.export, handle, drop_bits)
    return EMPTY


def cancel(call: Call, body: Cancel) -> Empty:
    """Give back locks, or give up waiting. Who was granted one just before hears that first."""
    call.target.namespace.cancel(call.export, body.handles)
    if call.export.callbacks is not None:
        call.export.callbacks.flush()
    return EMPTY


LOCK_HANDLERS: dict[type, Handler] = {
    Enqueue: reading(enqueue),
    Convert: reading(convert),
    Cancel: reading(cancel),
}
