"""What an OST does with each message: one table at the end.

A write, punch or fallocate has two halves. The first (`prepare`) takes the byte range, checks that the object is there
and, if much is to be done, does it to the file in a worker thread. The second is the sync handler: it does the little
that was not worth a thread, declares versions, and stages the record. Between the two nothing else runs, and the range
is given back after the second, so overlapping requests have their transnos in the order of their data.

The file is thus changed before the transaction exists. That is sound because nothing is answered before the record is
staged, because a repeated write is the same write, and because the rest of D4 holds for the record.

A replay does everything in the handler: its versions must be checked before its data may touch the file.

Which version rules: protocol-facts 3.7 (setattr and punch declare the object's version, a write only sets it).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lustrelite.errors import OpError
from lustrelite.ids import NO_FID
from lustrelite.ldlm.policy import WRITERS
from lustrelite.ost import lockless
from lustrelite.recovery.versions import ABSENT
from lustrelite.store.schema import ObjectRecord
from lustrelite.target.handlers import EMPTY, LATER, Handler, NotReady, mutating, reading, waiting
from lustrelite.target.target import INDEX_READ_MAX, index_read
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import DISCARD_DATA, PR, PW, Granted
from lustrelite.wire.mdt import StatfsReply
from lustrelite.wire.message import REPLAY
from lustrelite.wire.ost import (
    CREATE_DELORPHAN,
    FALLOC_KEEP_SIZE,
    FALLOC_ZERO_RANGE,
    OBJECT_ATIME,
    OBJECT_EOF,
    OBJECT_GID,
    OBJECT_MTIME,
    OBJECT_UID,
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
    WriteReply,
    resource_of,
)
from lustrelite.wire.session import FEATURE_SERVER, Empty, IndexPage, IndexRead

if TYPE_CHECKING:
    from lustrelite.ldlm.lock import Lock
    from lustrelite.ldlm.namespace import LocalLock
    from lustrelite.ost.ost import Ost
    from lustrelite.ost.ranges import Hold
    from lustrelite.rpc.export import Call
    from lustrelite.target.transaction import Transaction

FILES = "files"  # a table for IndexRead only: object id -> size of its data file
OBJECT_ID_MAX = (1 << 63) - 1
INLINE_BYTES_MAX = limits.bulk_inline_bytes_max  # more goes to a worker thread
ANY_MODE = -1  # of a lock to read under
PUNCH_INLINE_BYTES_MAX = 16 << 20  # freeing more blocks than this takes long


Change = Write | Punch | Fallocate  # of an object's data


class Prepared(NamedTuple):
    """What `prepare` leaves for the handler of one call."""

    hold: Hold
    locks: list[LocalLock]  # of the target itself, for a client that has none
    done: bool  # the file is changed


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


# ---------------------------------------------------------------- locks


def _check_lock(ost: Ost, call: Call, body: Change | Read | ObjectSeek, start: int, end: int, modes: int) -> None:
    """If the client says under which lock it works: it gets more time to give that back.

    Errors: ESTALE, it has no such lock on [start, end). Its cache is not what it thinks: nothing of it may be written.
    Not for replays, which come before the locks are.  Source: tgt_brw_lock(), ldlm_lock_prolong_one(); protocol-facts
    5.4
    """
    if not body.lock:
        return
    lock = _lock_on(ost, call, body.lock, body.object, start, end, modes)
    if lock is None:
        raise OpError(errno.ESTALE, f"object {body.object}: {call.spec.name} without its lock {body.lock:#x}")
    ost.namespace.prolong(lock)


def _lock_on(ost: Ost, call: Call, handle: int, oid: int, start: int, end: int, modes: int) -> Lock | None:
    lock = ost.namespace.holds(call.export, handle, resource_of(oid))
    return lock if lock is not None and lock.mode & modes and lock.start <= start and end - 1 <= lock.end else None


# ---------------------------------------------------------------- ids


def prepare_create(call: Call, body: OstCreate) -> Awaitable[None] | None:
    """The fault point."""
    return _ost(call).fault("ost.create", call) if call.target.node.faults.any else None


def create(txn: Transaction, body: OstCreate) -> OstCreateReply:
    """Grant ids; or hear which of them are in use, and go on above them (object_ids.py).

    Source: ofd_create_hdl(), ofd_dev.c; protocol-facts 7.2
    """
    ost, call = _ost(txn), txn.call
    assert call is not None
    _check_server(call)
    if not 0 <= body.upto <= OBJECT_ID_MAX:
        raise OpError(errno.EINVAL, f"object id {body.upto}")
    if call.conn_cnt < call.export.conn_cnt:
        raise OpError(errno.ESTALE, "of an older connection")
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
    """The fault point."""
    return _ost(call).fault("ost.destroy", call) if call.target.node.faults.any else None


# ---------------------------------------------------------------- write


def prepare_write(call: Call, body: Write) -> Awaitable[None] | None:
    """A small write that meets nobody, and a replay, are left to the handler."""
    ost = _ost(call)
    end = body.offset + (len(call.bulk) if call.bulk is not None else 0)
    if call.header.flags & REPLAY:
        return ost.fault("ost.write", call) if ost.node.faults.any else None
    _check_lock(ost, call, body, body.offset, end, WRITERS)
    small = end - body.offset <= INLINE_BYTES_MAX
    if small and not ost.node.faults.any and _nobody_there(ost, body, body.offset, end):
        return None
    return _write_data(ost, call, body)


def _check_write(body: Write, bulk: memoryview | None) -> tuple[memoryview, int]:
    """(data, end offset)."""
    if bulk is None or body.offset < 0 or body.stripe < 0 or not 0 < len(bulk) <= limits.brw_bytes_max:
        raise OpError(errno.EINVAL, f"write of {len(bulk or b'')} bytes at {body.offset}")
    if body.offset + len(bulk) > limits.object_bytes_max:
        raise OpError(errno.EFBIG)
    return bulk, body.offset + len(bulk)


def _nobody_there(ost: Ost, body: Change, start: int, end: int) -> bool:
    """May the range be changed in this turn?"""
    return ost.ranges.free(body.object, start, end) and not (
        body.lock == 0 and lockless.in_the_way(ost, body.object, start, end, PW)
    )


async def _hold(ost: Ost, body: Change, start: int, end: int) -> tuple[Hold, list[LocalLock]]:
    """The range for a change. First the lock: whoever gives it back writes to the range."""
    locks = [] if body.lock else await lockless.take(ost, body.object, start, end, PW)
    try:
        return await ost.ranges.hold(body.object, start, end), locks
    except BaseException:
        ost.namespace.release(locks)
        raise


async def _write_data(ost: Ost, call: Call, body: Write) -> None:
    data, end = _check_write(body, call.bulk)
    await ost.fault("ost.write", call)
    hold, locks = await _hold(ost, body, body.offset, end)
    done = False
    try:
        if call.still_valid and (len(data) > INLINE_BYTES_MAX or ost.node.faults.any):
            ost.record(body.object)
            _check_lock(ost, call, body, body.offset, end, WRITERS)
            ost.make_room(call.export, body, len(data))
            await ost.node.run_blocking(ost.files.write, body.object, body.offset, data)
            done = True
            await ost.fault("ost.write_done", call)
    finally:
        _leave(ost, call, hold, locks, done)


def _leave(ost: Ost, call: Call, hold: Hold, locks: list[LocalLock], done: bool) -> None:
    """Leave the range to the handler, which comes at once if it comes at all: give it back after this turn."""
    ost.prepared[call] = Prepared(hold, locks, done)
    asyncio.get_running_loop().call_soon(_give_back, ost, call)


def _give_back(ost: Ost, call: Call) -> None:
    prepared = ost.prepared.pop(call, None)
    if prepared is not None:
        ost.ranges.release(prepared.hold)
        ost.namespace.release(prepared.locks)


def write(txn: Transaction, body: Write) -> WriteReply:
    """Write data, stage the record. `owner` and `stripe` count at the first write only.

    Times never go back behind a newer setattr or write: the newest ctime wins (the idea of tgt_fmd.c).
    Errors: ENOENT, ENOSPC, EFBIG, EIO.  Source: ofd_commitrw_write(), ofd_io.c
    """
    ost, call = _ost(txn), txn.call
    assert call is not None
    data, end = _check_write(body, call.bulk)
    record = ost.record_for(txn, body.object)
    if not _is_done(ost, txn, call, body, body.offset, end):
        if not txn.replay:  # its space was found once
            ost.make_room(call.export, body, len(data))
        ost.files.write(body.object, body.offset, data)
    attr = ost.stage(txn, body.object, _written(txn, record, body), data=False)
    ost.written(body.object, body.offset, data)
    ost.prolong(call.export, body.lock)
    if body.release and not txn.replay:
        txn.then = lambda: ost.release(call.export, body.lock)
    if not txn.replay:  # of a replay the client has counted the answer
        export, grants = call.export, ost.grants
        held = grants.held.get(export, 0)
        txn.undo(lambda: grants.restore(export, held))
        txn.data = grants.written(export, body, len(data))
    return WriteReply(attr, txn.data)


def _is_done(ost: Ost, txn: Transaction, call: Call, body: Change, start: int, end: int) -> bool:
    """Whether `prepare` has changed the file. If it has not, the handler may do so now: nobody is in the way."""
    prepared = ost.prepared.get(call)
    if prepared is not None:
        return prepared.done
    if not txn.replay and not _nobody_there(ost, body, start, end):
        raise NotReady
    return False


def _written(txn: Transaction, record: ObjectRecord, body: Change) -> ObjectRecord:
    owner, stripe = (body.owner, body.stripe) if record.owner == NO_FID else (record.owner, record.stripe)
    if body.time >= record.ctime:
        record = record._replace(mtime=body.time, ctime=body.time)
    return record._replace(version=txn.transno, owner=owner, stripe=stripe)


# ---------------------------------------------------------------- punch, fallocate, setattr


def prepare_punch(call: Call, body: Punch | Fallocate) -> Awaitable[None] | None:
    """One that has little to do and meets nobody, and a replay, are left to the handler."""
    ost = _ost(call)
    if not call.header.flags & REPLAY:
        _check_lock(ost, call, body, body.start, body.end, WRITERS)
    if call.header.flags & REPLAY:
        return None
    alone = body.object not in ost.logged and _nobody_there(ost, body, body.start, body.end)
    if alone and not ost.node.faults.any and _is_short(ost, body):
        return None
    return _punch_data(ost, call, body)


def _check_punch(body: Punch | Fallocate) -> None:
    if not 0 <= body.start <= body.end or body.stripe < 0:
        raise OpError(errno.EINVAL, f"[{body.start}, {body.end})")
    if type(body) is Fallocate:
        if body.mode & ~(FALLOC_KEEP_SIZE | FALLOC_ZERO_RANGE):
            raise OpError(errno.EOPNOTSUPP, f"fallocate mode {body.mode:#x}")
        if body.start == body.end:
            raise OpError(errno.EINVAL, "nothing to allocate")
        if body.end > limits.object_bytes_max:
            raise OpError(errno.EFBIG)
    elif body.end >= OBJECT_EOF and body.start > limits.object_bytes_max:
        raise OpError(errno.EFBIG)


def _is_short(ost: Ost, body: Punch | Fallocate) -> bool:
    if type(body) is Fallocate:
        return body.end - body.start <= PUNCH_INLINE_BYTES_MAX
    try:
        return min(ost.files.size(body.object), body.end) - body.start <= PUNCH_INLINE_BYTES_MAX
    except OpError:
        return True  # the handler meets it again, and answers it


def _punch_file(ost: Ost, body: Punch | Fallocate) -> None:
    if type(body) is Fallocate:
        ost.files.allocate(body.object, body.start, body.end, body.mode)
    else:
        ost.files.punch(body.object, body.start, body.end)


async def _punch_data(ost: Ost, call: Call, body: Punch | Fallocate) -> None:
    _check_punch(body)
    await ost.fault("ost.punch", call)
    hold, locks = await _hold(ost, body, body.start, body.end)
    done = False
    try:
        if call.still_valid and (body.object in ost.logged or not _is_short(ost, body)):
            ost.record(body.object)
            _check_lock(ost, call, body, body.start, body.end, WRITERS)
            _make_room(ost, body)
            await ost.cut(body.object)
            await ost.node.run_blocking(_punch_file, ost, body)
            done = True
    finally:
        _leave(ost, call, hold, locks, done)


def _make_room(ost: Ost, body: Punch | Fallocate) -> None:
    """What is allocated may not be what was promised to others.  Errors: ENOSPC"""
    if type(body) is Fallocate and not ost.grants.take(body.end - body.start):
        raise OpError(errno.ENOSPC, f"{ost.name} is full")


def punch(txn: Transaction, body: Punch | Fallocate) -> ObjectAttr:
    """Free a range, truncate or extend; or find room for a range.  Errors: ENOENT, EOVERFLOW, ENOSPC, EFBIG, EOPNOTSUPP

    Source: ofd_object_punch(), ofd_object_fallocate(), ofd_objects.c
    """
    ost, call = _ost(txn), txn.call
    assert call is not None
    _check_punch(body)
    record = _checked(txn, ost, body.object)
    if not _is_done(ost, txn, call, body, body.start, body.end):
        if not txn.replay:
            _make_room(ost, body)
        _punch_file(ost, body)
    changed = _written(txn, record, body)
    if record.owner == NO_FID and not ost.files.size(body.object):  # still without a file: fsck tells by the owner
        changed = changed._replace(owner=NO_FID, stripe=0)
    attr = ost.stage(txn, body.object, changed, data=True)
    ost.prolong(call.export, body.lock)
    return attr


def _checked(txn: Transaction, ost: Ost, oid: int) -> ObjectRecord:
    """The record, whose version the change depends on."""
    if txn.replay and not ost.exists(oid):
        txn.check(0, ABSENT)
    record = ost.record_for(txn, oid)
    txn.check(0, record.version)
    return record


def setattr_(txn: Transaction, body: ObjectSetattr) -> ObjectAttr:
    """Change owner or times.  Errors: ENOENT, EOVERFLOW.  Source: ofd_attr_set(), ofd_objects.c"""
    ost = _ost(txn)
    record = _checked(txn, ost, body.object)
    record = record._replace(
        uid=body.uid if body.valid & OBJECT_UID else record.uid,
        gid=body.gid if body.valid & OBJECT_GID else record.gid,
        atime=body.atime if body.valid & OBJECT_ATIME else record.atime,
        mtime=body.mtime if body.valid & OBJECT_MTIME else record.mtime,
        ctime=max(record.ctime, body.time),
        version=txn.transno,
    )
    return ost.stage(txn, body.object, record, data=False)


def rebuild_write(call: Call, body: Write, record: Any) -> WriteReply:
    """See rebuild_attr. The lock goes with it this time, too: a restart since may have brought it back."""
    length = len(call.bulk) if call.bulk is not None else 0
    grant = 0
    if not call.header.flags & REPLAY:
        grant = _ost(call).grants.written_before(call.export, body, length, record)
        if body.release:
            _ost(call).release(call.export, body.lock)
    return WriteReply(rebuild_attr(call, body, record), grant)


def rebuild_attr(call: Call, body: Change | ObjectSetattr, record: Any) -> ObjectAttr:
    """The answer to what was done before: the attributes of today, none if the object was destroyed since."""
    ost = _ost(call)
    if not ost.exists(body.object):
        return ObjectAttr(0, 0, 0, 0, 0, record.transno)
    return ost.attr(body.object, ost.record(body.object))


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
    _check_lock(ost, call, body, body.offset, end, ANY_MODE)
    locks = [] if body.lock else await lockless.take(ost, body.object, body.offset, end, PR)
    hold = None
    try:
        if locks and ost.files.size(body.object) < end and lockless.in_the_way(ost, body.object, end, OBJECT_EOF, PR):
            # Perhaps it does not end here: somebody writes behind it.
            ost.namespace.release(locks)
            locks = []
            locks = await lockless.take(ost, body.object, body.offset, OBJECT_EOF, PR)
        hold = await ost.ranges.hold(body.object, body.offset, end, shared=True)
        _check_valid(call)
        ost.record(body.object)
        _check_lock(ost, call, body, body.offset, end, ANY_MODE)
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
        ost.namespace.release(locks)
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
            lock = _lock_on(ost, call, handle, oid, 0, length, ANY_MODE)
            if lock is None or not ost.exists(oid) or not ost.ranges.free(oid, 0, length):
                rows.append(None)
                continue
            ost.namespace.prolong(lock)
            rows.append((oid, length, await ost.ranges.hold(oid, 0, length, shared=True)))  # which is free
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
    _check_lock(ost, call, body, body.offset, OBJECT_EOF, ANY_MODE)
    locks = [] if body.lock else await lockless.take(ost, body.object, body.offset, OBJECT_EOF, PR)
    hold = None
    try:
        hold = await ost.ranges.hold(body.object, body.offset, OBJECT_EOF, shared=True)
        _check_valid(call)
        ost.record(body.object)
        return SeekReply(ost.files.seek(body.object, body.offset, body.whence), ost.files.size(body.object))
    finally:
        if hold is not None:
            ost.ranges.release(hold)
        ost.namespace.release(locks)


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
        _ost(txn).grants.given_back(call.export, body.amount)
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
    OstCreate: mutating(create, prepare=prepare_create, rebuild=rebuild_create, essential=True),
    Write: mutating(write, prepare=prepare_write, rebuild=rebuild_write, sync=lambda body: body.sync),
    Read: waiting(read),
    ReadMany: waiting(read_many),
    Punch: mutating(punch, prepare=prepare_punch, rebuild=rebuild_attr),
    Fallocate: mutating(punch, prepare=prepare_punch, rebuild=rebuild_attr),
    ObjectSeek: waiting(seek),
    ObjectSetattr: mutating(setattr_, rebuild=rebuild_attr),
    ObjectGetattr: reading(getattr_),
    Destroy: mutating(destroy, prepare=prepare_destroy, essential=True),
    SetOwners: mutating(set_owners),
    GrantShrink: mutating(shrink_grant, essential=True),
    OstStatfs: waiting(statfs),
    OstSync: waiting(sync),
    IndexRead: waiting(read_index),
}
