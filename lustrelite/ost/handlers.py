"""What an OST does with each message: one table at the end.

What changes the data of objects is in changes.py.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

from lustrelite.errors import OpError
from lustrelite.ost import changes, lockless
from lustrelite.ost.changes import INLINE_BYTES_MAX, check_lock, lock_on
from lustrelite.store.room import DELETION, OWED
from lustrelite.store.schema import OBJECT_ID_MAX
from lustrelite.target.handlers import EMPTY, LATER, Handler, mutating, reading, waiting
from lustrelite.target.target import INDEX_READ_MAX, index_read
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import DISCARD_DATA, PR, Granted
from lustrelite.wire.mdt import StatfsReply
from lustrelite.wire.message import REPLAY
from lustrelite.wire.ost import (
    CREATE_DELORPHAN,
    OBJECT_EOF,
    READ_MANY_MAX,
    SEEK_DATA,
    SEEK_HOLE,
    Destroy,
    Fallocate,
    GrantShrink,
    ObjectAttr,
    ObjectGetattr,
    ObjectSeek,
    ObjectSetattr,
    OstCreate,
    OstCreateReply,
    OstStatfs,
    OstSync,
    Punch,
    Read,
    ReadMany,
    ReadManyReply,
    ReadReply,
    SeekReply,
    SetOwners,
    Write,
    WriteMany,
    resource_of,
)
from lustrelite.wire.session import FEATURE_SERVER, Empty, IndexPage, IndexRead

if TYPE_CHECKING:
    from lustrelite.ost.ost import Ost
    from lustrelite.ost.ranges import Hold
    from lustrelite.rpc.export import Call
    from lustrelite.target.transaction import Transaction

FILES = "files"  # a table for IndexRead only: object id -> size of its data file
ANY_MODE = -1  # of a lock to read under


def _ost(owner: Any) -> Ost:
    return cast("Ost", owner.target)


def _check_valid(call: Call) -> None:
    """After every wait.  Errors: ENOTCONN, the client was evicted meanwhile: nothing may be done for it any more

    (A `prepare` just ends: the target looks for itself before it goes on.)
    """
    if not call.still_valid:
        raise OpError(errno.ENOTCONN, "evicted")


def _check_server(call: Call) -> None:
    if not call.export.features & FEATURE_SERVER:
        raise OpError(errno.EPERM, f"{call.spec.name} is for servers")


# ---------------------------------------------------------------- ids


def prepare_create(call: Call, body: OstCreate) -> Awaitable[None] | None:
    """Orphans go before the others are settled, and the fault point."""
    if body.flags & CREATE_DELORPHAN and not call.header.flags & REPLAY:
        _check_create(call, body)
        _ost(call).ids.destroy_most(body.upto, call.export)
    return _ost(call).fault("ost.create", call) if call.target.node.faults.any else None


def _check_create(call: Call, body: OstCreate) -> None:
    _check_server(call)
    if not 0 <= body.upto <= OBJECT_ID_MAX:
        raise OpError(errno.EINVAL, f"object id {body.upto}")
    if call.conn_cnt < call.export.conn_cnt:
        raise OpError(errno.ESTALE, "of an older connection")


def create(txn: Transaction, body: OstCreate) -> OstCreateReply:
    """Grant ids; or hear which of them are in use, and go on above them (object_ids.py).

    Source: ofd_create_hdl(), ofd_dev.c; protocol-facts 7.2
    """
    ost, call = _ost(txn), txn.call
    assert call is not None
    _check_create(call, body)
    txn.data = (ost.ids.settle if body.flags & CREATE_DELORPHAN else ost.ids.grow)(txn, body.upto)
    return OstCreateReply(txn.data)


def rebuild_create(call: Call, body: OstCreate, record: Any) -> OstCreateReply:
    """What was granted then."""
    return OstCreateReply(record.data)


def destroy(txn: Transaction, body: Destroy) -> Empty:
    """Destroy objects; those that are not there were destroyed before.

    The MDT crosses them off its log when this is durable; their files go at the same time.
    Source: ofd_destroy_hdl(), ofd_dev.c; protocol-facts 7.3
    """
    assert txn.call is not None
    _check_server(txn.call)
    ost = _ost(txn)
    ost.destroy(txn, body.objects)
    if not ost.recovering:
        txn.then = lambda: _discard(ost, body.objects)
    return EMPTY


def _discard(ost: Ost, oids: tuple[int, ...]) -> None:
    """Who caches what is gone need not write it.  Source: LDLM_FL_DISCARD_DATA, ofd_destroy_by_fid()"""
    for oid in oids:
        ost.namespace.revoke(resource_of(oid), DISCARD_DATA)


def set_owners(txn: Transaction, body: SetOwners) -> Empty:
    """For whom objects are counted; those that are not there were destroyed since. Nothing else of them changes."""
    assert txn.call is not None
    _check_server(txn.call)
    _ost(txn).own(txn, body.owners)
    return EMPTY


def prepare_destroy(call: Call, body: Destroy) -> Awaitable[None] | None:
    """Most of many objects go, and the fault point."""
    _check_server(call)
    if not call.header.flags & REPLAY:
        _ost(call).destroy_most(body.objects)
    return _ost(call).fault("ost.destroy", call) if call.target.node.faults.any else None


# ---------------------------------------------------------------- read


async def read(call: Call, body: Read) -> ReadReply:
    """Read up to `length` bytes; fewer at the end of the object, none of an object that was never written.

    Errors: ENOENT, EINVAL, EIO.  Source: ofd_preprw_read(), ofd_io.c
    """
    ost = _ost(call)
    if not 0 <= body.offset <= OBJECT_EOF or not 0 <= body.length <= limits.brw_bytes_max:
        raise OpError(errno.EINVAL, f"read of {body.length} bytes at {body.offset}")
    if ost.node.faults.any:
        await ost.fault("ost.read", call)
    end = body.offset + body.length
    check_lock(ost, call, body, body.offset, end, ANY_MODE)
    locks = [] if body.lock else await lockless.take(ost, body.object, body.offset, end, PR)
    hold = None
    try:
        if locks and ost.files.size(body.object) < end and lockless.in_the_way(ost, body.object, end, OBJECT_EOF, PR):
            # Perhaps it does not end here: somebody writes behind it.
            ost.namespace.local.release(locks)
            locks = []
            locks = await lockless.take(ost, body.object, body.offset, OBJECT_EOF, PR)
        hold = await ost.ranges.hold(body.object, (body.offset, end), shared=True)
        _check_valid(call)
        ost.record(body.object)
        check_lock(ost, call, body, body.offset, end, ANY_MODE)
        size = ost.files.size(body.object)
        length = max(0, min(body.length, size - body.offset))
        large = length > INLINE_BYTES_MAX
        buffer = ost.service.buffers.take(length) if large else memoryview(bytearray(length))
        if large:
            length = await ost.node.run_blocking(ost.files.read_into, body.object, body.offset, buffer)
            _check_valid(call)
        elif length:
            length = ost.files.read_into(body.object, body.offset, buffer)
    finally:
        if hold is not None:
            ost.ranges.release(hold)
        ost.namespace.local.release(locks)
    if not body.lock and (transno := ost.unsettled(call.export, resource_of(body.object))):
        await ost.committed(transno)
        _check_valid(call)
    ost.prolong(call.export, body.lock)
    call.reply_bulk = buffer[:length]
    return ReadReply(length, size)


async def read_many(call: Call, body: ReadMany) -> ReadManyReply:
    """Read the beginnings of several objects.  Errors: EINVAL"""
    ost = _ost(call)
    total = sum(max(length, 0) for _, length, _ in body.rows)
    if len(body.rows) > READ_MANY_MAX or total > limits.brw_bytes_max or any(length <= 0 for _, length, _ in body.rows):
        raise OpError(errno.EINVAL, f"read of {len(body.rows)} objects, {total} bytes")
    if ost.node.faults.any:
        await ost.fault("ost.read", call)
    rows: list[tuple[int, int, Hold] | None] = []
    buffer = memoryview(bytearray(total))
    try:
        for oid, length, handle in body.rows:
            lock = lock_on(ost, call, handle, oid, 0, length, ANY_MODE)
            if lock is None or not ost.exists(oid) or not ost.ranges.free(oid, (0, length)):
                rows.append(None)
                continue
            ost.namespace.deadlines.prolong(lock)
            rows.append((oid, length, await ost.ranges.hold(oid, (0, length), shared=True)))  # which is free
        if total > INLINE_BYTES_MAX:
            found = await ost.node.run_blocking(_read_rows, ost, rows, buffer)
            _check_valid(call)
            for handle in body.under:
                ost.prolong(call.export, handle)
        else:
            found = _read_rows(ost, rows, buffer)
    finally:
        for row in rows:
            if row is not None:
                ost.ranges.release(row[2])
    call.reply_bulk = buffer[: sum(max(length, 0) for length, _ in found)]
    return ReadManyReply(tuple(found))


def _read_rows(ost: Ost, rows: list[tuple[int, int, Hold] | None], buffer: memoryview) -> list[tuple[int, int]]:
    """Put one after the other into `buffer`; (length, the object's size) of each."""
    found = []
    at = 0
    for row in rows:
        length, size = -1, 0
        if row is not None:
            try:
                size = ost.files.size(row[0])
                length = ost.files.read_into(row[0], 0, buffer[at : at + min(row[1], size)]) if size else 0
                at += length
            except OpError:  # who asks for it alone will hear of it
                length = -1
        found.append((length, size))
    return found


async def seek(call: Call, body: ObjectSeek) -> SeekReply:
    """The next data, or the next hole.  Errors: ENOENT, EINVAL, EIO.  Source: ofd_lseek(), ofd_obd.c"""
    ost = _ost(call)
    if not 0 <= body.offset <= OBJECT_EOF or body.whence not in (SEEK_DATA, SEEK_HOLE):
        raise OpError(errno.EINVAL, f"seek to {body.offset}, whence {body.whence}")
    check_lock(ost, call, body, body.offset, OBJECT_EOF, ANY_MODE)
    locks = [] if body.lock else await lockless.take(ost, body.object, body.offset, OBJECT_EOF, PR)
    hold = None
    try:
        hold = await ost.ranges.hold(body.object, (body.offset, OBJECT_EOF), shared=True)
        _check_valid(call)
        ost.record(body.object)
        return SeekReply(ost.files.seek(body.object, body.offset, body.whence), ost.files.size(body.object))
    finally:
        if hold is not None:
            ost.ranges.release(hold)
        ost.namespace.local.release(locks)


def getattr_(call: Call, body: ObjectGetattr) -> Any:
    """Attributes of an object, with what those know who write to it."""
    ost = _ost(call)
    record = ost.record(body.object)
    if not lockless.in_the_way(ost, body.object, 0, OBJECT_EOF, PR):
        return ost.attr(body.object, record)

    def answered(granted: Granted) -> None:
        if granted.lvb is None:
            ost.reply(call, granted.status or -errno.ENOENT, None)
        else:
            ost.reply(call, 0, ObjectAttr(*granted.lvb, record.version))

    lockless.glimpse(ost, call, body.object, answered)
    return LATER


def shrink_grant(txn: Transaction, body: GrantShrink) -> Empty:
    """A client gives back some of its grant, once: not in a replay, nor late over another connection."""
    call = txn.call
    assert call is not None
    if not txn.replay and body.connection == call.export.conn_cnt:
        txn.then = lambda: _ost(txn).grants.given_back(call.export, body.amount)
    return EMPTY


async def statfs(call: Call, body: OstStatfs) -> StatfsReply:
    """Space of the OST."""
    ost = _ost(call)
    if ost.node.faults.any:
        await ost.fault("ost.statfs", call)
    return ost.statfs()


async def sync(call: Call, body: OstSync) -> Empty:
    """Everything that was executed until now is durable."""
    await _ost(call).committed()
    return EMPTY


async def read_index(call: Call, body: IndexRead) -> IndexPage:
    """The tables of every target, and `files`: what data files there are, which the database does not know."""
    if body.table != FILES:
        return index_read(call, body)
    if call.cred[0] != 0:
        raise OpError(errno.EPERM, "only root reads tables")
    ost = _ost(call)
    count = min(max(body.count, 1), INDEX_READ_MAX)
    rows, more = await ost.node.run_blocking(ost.list_files, int.from_bytes(body.after[:8], "big"), count)
    return IndexPage(tuple(rows), more)


HANDLERS: dict[type, Handler] = {
    OstCreate: mutating(create, prepare=prepare_create, rebuild=rebuild_create, room=DELETION),
    Write: mutating(changes.write, prepare=changes.prepare_write, rebuild=changes.rebuild_write, sync=lambda body: body.sync),
    WriteMany: mutating(changes.write_many, prepare=changes.prepare_write_many, rebuild=changes.rebuild_write_many),
    Read: waiting(read),
    ReadMany: waiting(read_many),
    Punch: mutating(changes.punch, prepare=changes.prepare_punch, rebuild=changes.rebuild_attr),
    Fallocate: mutating(changes.punch, prepare=changes.prepare_punch, rebuild=changes.rebuild_attr),
    ObjectSeek: waiting(seek),
    ObjectSetattr: mutating(changes.setattr_, rebuild=changes.rebuild_attr),
    ObjectGetattr: reading(getattr_),
    Destroy: mutating(destroy, prepare=prepare_destroy, room=DELETION),
    SetOwners: mutating(set_owners),
    GrantShrink: mutating(shrink_grant, room=OWED),
    OstStatfs: waiting(statfs),
    OstSync: waiting(sync),
    IndexRead: waiting(read_index),
}
