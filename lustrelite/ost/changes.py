"""What changes the data of objects: writes, one or many, holes, truncations, room.

Each has two halves. The first (`prepare`) takes the byte range, checks that the object is there and, if much is to be
done, does it to the file in a worker thread. The second is the sync handler: it does the little that was not worth a
thread, declares versions, and stages the record. Between the two nothing else runs, and the range is given back after
the second, so overlapping requests have their transnos in the order of their data.

The file is thus changed before the transaction exists. That is sound because nothing is answered before the record is
staged, because a repeated write is the same write, and because the rest of D4 holds for the record.

A replay does everything in the handler: its versions must be checked before its data may touch the file.

A WriteMany is a Write of each of its parts, in one transaction. It never waits for another request, so nobody who
holds one range waits for the next: what cannot be done at once is refused.

Which version rules: protocol-facts 3.7 (setattr and punch declare the object's version, a write only sets it).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from lustrelite.errors import OpError
from lustrelite.ids import NO_FID
from lustrelite.ldlm.policy import WRITERS
from lustrelite.ost import lockless
from lustrelite.ost.grant import cost_of
from lustrelite.recovery.versions import ABSENT
from lustrelite.store.schema import ObjectRecord
from lustrelite.target.handlers import NotReady
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import PW
from lustrelite.wire.message import REPLAY
from lustrelite.wire.ost import (
    FALLOC_KEEP_SIZE,
    FALLOC_ZERO_RANGE,
    OBJECT_ATIME,
    OBJECT_EOF,
    OBJECT_GID,
    OBJECT_MTIME,
    OBJECT_UID,
    WRITE_MANY_MAX,
    Fallocate,
    ObjectAttr,
    ObjectSeek,
    ObjectSetattr,
    Punch,
    Read,
    Write,
    WriteMany,
    WriteManyReply,
    WriteReply,
    grant_bytes,
    resource_of,
)

if TYPE_CHECKING:
    from lustrelite.ldlm.local_locks import LocalLock
    from lustrelite.ldlm.lock import Lock
    from lustrelite.ost.ost import Ost
    from lustrelite.ost.ranges import Hold
    from lustrelite.rpc.export import Call
    from lustrelite.target.transaction import Transaction

INLINE_BYTES_MAX = limits.bulk_inline_bytes_max  # more goes to a worker thread
INLINE_PARTS_MAX = 16  # so do more files than this
PUNCH_INLINE_BYTES_MAX = 16 << 20  # freeing more blocks than this takes long

Change = Write | Punch | Fallocate  # of an object's data
Parts = list[tuple[Write, memoryview]]


class Prepared(NamedTuple):
    """What `prepare` leaves for the handler of one call."""

    holds: list[Hold]
    locks: list[LocalLock]  # of the target itself, for a client that has none
    done: bool  # the files are changed


def _ost(owner: Any) -> Ost:
    return cast("Ost", owner.target)


# ---------------------------------------------------------------- locks


def check_lock(ost: Ost, call: Call, body: Change | Read | ObjectSeek, start: int, end: int, modes: int) -> None:
    """If the client says under which lock it works: it gets more time to give that back.

    Errors: ESTALE, it has no such lock on [start, end). Its cache is not what it thinks: nothing of it may be written.
    Not for replays, which come before the locks are.  Source: tgt_brw_lock(), ldlm_lock_prolong_one(); protocol-facts
    5.4
    """
    if not body.lock:
        return
    lock = lock_on(ost, call, body.lock, body.object, start, end, modes)
    if lock is None:
        raise OpError(errno.ESTALE, f"object {body.object}: {call.spec.name} without its lock {body.lock:#x}")
    ost.namespace.deadlines.prolong(lock)


def lock_on(ost: Ost, call: Call, handle: int, oid: int, start: int, end: int, modes: int) -> Lock | None:
    """The client's lock of that name, if it is one of `modes` on [start, end) of the object."""
    lock = ost.namespace.holds(call.export, handle, resource_of(oid))
    return lock if lock is not None and lock.mode & modes and lock.start <= start and end - 1 <= lock.end else None


# ---------------------------------------------------------------- both halves


def _nobody_there(ost: Ost, body: Change, start: int, end: int) -> bool:
    """May the range be changed in this turn?"""
    return ost.ranges.free(body.object, (start, end)) and not (
        body.lock == 0 and lockless.in_the_way(ost, body.object, start, end, PW)
    )


async def _hold(ost: Ost, body: Change, start: int, end: int) -> tuple[Hold, list[LocalLock]]:
    """The range for a change. First the lock: whoever gives it back writes to the range."""
    locks = [] if body.lock else await lockless.take(ost, body.object, start, end, PW)
    try:
        return await ost.ranges.hold(body.object, (start, end)), locks
    except BaseException:
        ost.namespace.local.release(locks)
        raise


def _leave(ost: Ost, call: Call, holds: list[Hold], locks: list[LocalLock], done: bool) -> None:
    """Leave the ranges to the handler, which comes at once if it comes at all: give them back after this turn."""
    ost.prepared[call] = Prepared(holds, locks, done)
    asyncio.get_running_loop().call_soon(_give_back, ost, call)


def _give_back(ost: Ost, call: Call) -> None:
    prepared = ost.prepared.pop(call, None)
    if prepared is not None:
        for hold in prepared.holds:
            ost.ranges.release(hold)
        ost.namespace.local.release(prepared.locks)


def _is_done(ost: Ost, txn: Transaction, call: Call, ranges: list[tuple[Change, int, int]]) -> bool:
    """Whether `prepare` has changed the files. If it has not, the handler may do so now: nobody is in the way."""
    prepared = ost.prepared.get(call)
    if prepared is not None:
        return prepared.done
    if not txn.replay and not all(_nobody_there(ost, body, start, end) for body, start, end in ranges):
        raise NotReady
    return False


def _written(txn: Transaction, record: ObjectRecord, body: Change) -> ObjectRecord:
    owner, stripe = (body.owner, body.stripe) if record.owner == NO_FID else (record.owner, record.stripe)
    if body.time >= record.ctime:
        record = record._replace(mtime=body.time, ctime=body.time)
    return record._replace(version=txn.transno, owner=owner, stripe=stripe)


# ---------------------------------------------------------------- write


def prepare_write(call: Call, body: Write) -> Awaitable[None] | None:
    """A small write that meets nobody, and a replay, are left to the handler."""
    ost = _ost(call)
    end = body.offset + (len(call.bulk) if call.bulk is not None else 0)
    if call.header.flags & REPLAY:
        return ost.fault("ost.write", call) if ost.node.faults.any else None
    check_lock(ost, call, body, body.offset, end, WRITERS)
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


async def _write_data(ost: Ost, call: Call, body: Write) -> None:
    data, end = _check_write(body, call.bulk)
    await ost.fault("ost.write", call)
    hold, locks = await _hold(ost, body, body.offset, end)
    done = False
    try:
        if call.still_valid and (len(data) > INLINE_BYTES_MAX or ost.node.faults.any):
            ost.record(body.object)
            check_lock(ost, call, body, body.offset, end, WRITERS)
            promised = ost.make_room(call.export, (body, data))
            await ost.node.run_blocking(partial(ost.files.write, body.object, body.offset, data, promised=promised))
            done = True
            await ost.fault("ost.write_done", call)
    finally:
        _leave(ost, call, [hold], locks, done)


def write(txn: Transaction, body: Write) -> WriteReply:
    """Write data, stage the record. `owner` and `stripe` count at the first write only.

    Times never go back behind a newer setattr or write: the newest ctime wins (the idea of tgt_fmd.c).
    Errors: ENOENT, ENOSPC, EFBIG, EIO.  Source: ofd_commitrw_write(), ofd_io.c
    """
    ost, call = _ost(txn), txn.call
    assert call is not None
    data, end = _check_write(body, call.bulk)
    record = ost.record_for(txn, body.object)
    if not _is_done(ost, txn, call, [(body, body.offset, end)]):
        promised = txn.replay or ost.make_room(call.export, (body, data))  # of a replay room was found once
        ost.files.write(body.object, body.offset, data, promised=promised)
    attr = ost.stage(txn, body.object, _written(txn, record, body), data=False)
    ost.written(body.object, body.offset, data)
    ost.prolong(call.export, body.lock)
    if body.release and not txn.replay:
        txn.then = lambda: ost.release(call.export, body.lock)
    return WriteReply(attr, _granted(ost, txn, call, body.undirty, [(body, data)]))


def _granted(ost: Ost, txn: Transaction, call: Call, undirty: int, parts: Parts) -> int:
    """What was written is counted against the client's grant; returns what it gets on top, also later (`rebuild`)."""
    if not txn.replay:  # of a replay the client has counted the answer
        export, grants = call.export, ost.grants
        held = grants.held.get(export, 0)
        txn.undo(lambda: grants.restore(export, held))
        txn.data = grants.written(export, _from_grant(parts), undirty)
    return txn.data


def _from_grant(parts: Parts) -> int:
    """How much of its grant the client took for these."""
    return sum([cost_of(body, len(data)) for body, data in parts])


def rebuild_write(call: Call, body: Write, record: Any) -> WriteReply:
    """See rebuild_attr. The lock goes with it this time, too: a restart since may have brought it back."""
    grant = _granted_before(call, [(body, call.bulk or memoryview(b""))], record)
    if body.release and not call.header.flags & REPLAY:
        _ost(call).release(call.export, body.lock)
    return WriteReply(rebuild_attr(call, body, record), grant)


def _granted_before(call: Call, parts: Parts, record: Any) -> int:
    if call.header.flags & REPLAY:
        return 0
    return _ost(call).grants.written_before(call.export, _from_grant(parts), record)


# ---------------------------------------------------------------- many writes


def _parts(body: WriteMany, bulk: memoryview | None) -> Parts:
    """Each of its writes with its data.  Errors: EINVAL, EFBIG"""
    parts: Parts = []
    ends: dict[int, int] = {}  # of each object: what comes next of it lies behind that
    at, bulk = 0, bulk if bulk is not None else memoryview(b"")
    for oid, offset, length, owner, stripe, time, lock in body.parts:
        part = Write(oid, offset, owner, stripe, time, lock, from_grant=True)
        data = bulk[at : at + max(length, 0)]
        if len(data) != length or not lock or offset < ends.get(oid, 0):
            raise OpError(errno.EINVAL, f"{length} of {len(bulk)} bytes for object {oid} at {offset}")
        _, ends[oid] = _check_write(part, data)
        parts.append((part, data))
        at += length
    if at != len(bulk) or not 0 < len(parts) <= WRITE_MANY_MAX:
        raise OpError(errno.EINVAL, f"write of {len(bulk)} bytes in {len(parts)} parts")
    return parts


def prepare_write_many(call: Call, body: WriteMany) -> Awaitable[None] | None:
    """As prepare_write."""
    ost = _ost(call)
    if call.header.flags & REPLAY:
        return ost.fault("ost.write", call) if ost.node.faults.any else None
    parts = _parts(body, call.bulk)
    _check_many(ost, call, parts)
    small = len(parts) <= INLINE_PARTS_MAX and len(call.bulk or b"") <= INLINE_BYTES_MAX
    if small and not ost.node.faults.any:
        return None
    return _write_data_many(ost, call, parts)


def _check_many(ost: Ost, call: Call, parts: Parts) -> dict[int, list[tuple[int, int]]]:
    """The ranges of each object.  ESTALE: a lock is not there, or there is something that one of them would have to wait for"""
    objects: dict[int, list[tuple[int, int]]] = {}
    for part, data in parts:
        start, end = part.offset, part.offset + len(data)
        check_lock(ost, call, part, start, end, WRITERS)
        objects.setdefault(part.object, []).append((start, end))
    for oid, ranges in objects.items():
        if not ost.ranges.free(oid, *ranges) or ost.may_turn_up(resource_of(oid)):
            raise OpError(errno.ESTALE, f"object {oid} is not to be had now")
    return objects


async def _write_data_many(ost: Ost, call: Call, parts: Parts) -> None:
    await ost.fault("ost.write", call)
    if not call.still_valid:
        return
    objects = _check_many(ost, call, parts)
    for oid in objects:
        ost.record(oid)
    promised = ost.make_room(call.export, *parts)
    holds: list[Hold] = []
    done = False
    try:
        for oid, ranges in objects.items():  # all in this turn
            holds.append(await ost.ranges.hold(oid, *ranges))
        await ost.node.run_blocking(_write_files, ost, parts, promised)
        done = True
        await ost.fault("ost.write_done", call)
    finally:
        _leave(ost, call, holds, [], done)


def _write_files(ost: Ost, parts: Parts, promised: bool) -> None:
    for part, data in parts:
        ost.files.write(part.object, part.offset, data, promised=promised)


def write_many(txn: Transaction, body: WriteMany) -> WriteManyReply:
    """See `write`. An object that is gone is no error of a replay: its file was deleted after that."""
    ost, call = _ost(txn), txn.call
    assert call is not None
    parts = _parts(body, call.bulk)
    records: dict[int, ObjectRecord | None] = {}
    for part, _ in parts:
        if part.object not in records:
            try:
                records[part.object] = ost.record_for(txn, part.object)
            except OpError as error:
                if error.errno != errno.ENOENT or not txn.replay:
                    raise
                records[part.object] = None
    if not _is_done(ost, txn, call, [(part, part.offset, part.offset + len(data)) for part, data in parts]):
        promised = txn.replay or ost.make_room(call.export, *parts)
        _write_files(ost, [(part, data) for part, data in parts if records[part.object] is not None], promised)
    for part, data in parts:
        record = records[part.object]
        if record is not None:
            records[part.object] = _written(txn, record, part)
            ost.written(part.object, part.offset, data)
        ost.prolong(call.export, part.lock)
    attrs = {
        oid: _gone(txn.transno) if record is None else ost.stage(txn, oid, record, data=False)
        for oid, record in records.items()
    }
    return WriteManyReply(
        tuple([attrs[part.object] for part, _ in parts]), _granted(ost, txn, call, body.undirty, parts)
    )


def rebuild_write_many(call: Call, body: WriteMany, record: Any) -> WriteManyReply:
    """See rebuild_attr."""
    parts = _parts(body, call.bulk)
    attrs = tuple([rebuild_attr(call, part, record) for part, _ in parts])
    return WriteManyReply(attrs, _granted_before(call, parts, record))


# ---------------------------------------------------------------- punch, fallocate, setattr


def prepare_punch(call: Call, body: Punch | Fallocate) -> Awaitable[None] | None:
    """One that has little to do and meets nobody, and a replay, are left to the handler."""
    ost = _ost(call)
    if not call.header.flags & REPLAY:
        check_lock(ost, call, body, body.start, body.end, WRITERS)
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
            check_lock(ost, call, body, body.start, body.end, WRITERS)
            _make_room(ost, body)
            await ost.cut(body.object)
            await ost.node.run_blocking(_punch_file, ost, body)
            done = True
    finally:
        _leave(ost, call, [hold], locks, done)


def _make_room(ost: Ost, body: Punch | Fallocate) -> None:
    """What is allocated may not be what was promised to others.  Errors: ENOSPC"""
    if type(body) is Fallocate and not ost.grants.take(grant_bytes(body.start, body.end)):
        raise OpError(errno.ENOSPC, f"{ost.name} is full")


def punch(txn: Transaction, body: Punch | Fallocate) -> ObjectAttr:
    """Free a range, truncate or extend; or find room for a range.  Errors: ENOENT, EOVERFLOW, ENOSPC, EFBIG, EOPNOTSUPP

    Source: ofd_object_punch(), ofd_object_fallocate(), ofd_objects.c
    """
    ost, call = _ost(txn), txn.call
    assert call is not None
    _check_punch(body)
    record = _checked(txn, ost, body.object)
    if not _is_done(ost, txn, call, [(body, body.start, body.end)]):
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


def rebuild_attr(call: Call, body: Change | ObjectSetattr, record: Any) -> ObjectAttr:
    """The answer to what was done before: the attributes of today, none if the object was destroyed since."""
    ost = _ost(call)
    if not ost.exists(body.object):
        return _gone(record.transno)
    return ost.attr(body.object, ost.record(body.object))


def _gone(transno: int) -> ObjectAttr:
    """What is said of an object that there is no more."""
    return ObjectAttr(0, 0, 0, 0, 0, transno)
