"""How layouts, objects and their numbers are put right: one function for each kind of problem."""

from __future__ import annotations

import stat

from lustrelite.fsck.changes import ONE_STRIPE, Changes, Mend
from lustrelite.fsck.report import Problem
from lustrelite.ids import NO_FID, Fid, fid_text
from lustrelite.ost.object_ids import GRANT_JUMP_MAX, ID_LIMIT, LAST_ID
from lustrelite.recovery.versions import ABSENT
from lustrelite.store import schema
from lustrelite.store.schema import META, OBJECTS, OST_LOG, POOLS, Inode, ObjectRecord, Owner, PoolRecord
from lustrelite.tunables import DESTROY
from lustrelite.wire.mdt import Layout

# ---------------------------------------------------------------- numbers, records


def _last_id(changes: Changes, index: int, key: bytes = LAST_ID) -> int:
    value = changes.osts[index].rows.get(META, key)
    return int(schema.unpack_meta(value)) if value is not None else 0


def _raise_last_id(changes: Changes, index: int, oid: int) -> None:
    if oid > _last_id(changes, index):
        changes.osts[index].rows.put(META, LAST_ID, schema.pack_meta(oid))


def _pool(changes: Changes, index: int) -> PoolRecord:
    value = changes.mdt.get(POOLS, schema.pool_key(index))
    return PoolRecord(0, 0) if value is None else schema.unpack_pool(value)


def _raise_last_used(changes: Changes, index: int, oid: int) -> None:
    """What is skipped was granted and not used, as far as we know: see `ownerless`."""
    used, granted = _pool(changes, index)
    if oid > used:
        changes.raised.setdefault(index, used)
        changes.mdt.put(POOLS, schema.pool_key(index), schema.pack_pool(PoolRecord(oid, max(granted, oid))))


def _object(changes: Changes, index: int, oid: int) -> ObjectRecord | None:
    value = changes.osts[index].rows.get(OBJECTS, schema.object_key(oid))
    return None if value is None else schema.unpack_object(value)


def _put_object(changes: Changes, index: int, oid: int, record: ObjectRecord) -> None:
    changes.osts[index].rows.put(OBJECTS, schema.object_key(oid), schema.pack_object(record))


def _empty(inode: Inode) -> ObjectRecord:
    """The record of an object of the file that has no data (yet)."""
    return ObjectRecord(inode.uid, inode.gid, inode.atime, inode.mtime, inode.ctime, ABSENT, NO_FID, 0, inode.projid)


def _has_data(changes: Changes, index: int, oid: int) -> bool:
    return changes.osts[index].files.has(oid)


def _new_object(changes: Changes, index: int, fid: Fid) -> int:
    """A fresh, empty object with an id that was never used, not even by a grant that a crash took."""
    oid = max(_last_id(changes, index), _last_id(changes, index, ID_LIMIT), _pool(changes, index).granted) + 1
    while _has_data(changes, index, oid):
        oid += 1
    inode = changes.inode(fid)
    assert inode is not None
    _put_object(changes, index, oid, _empty(inode))
    _raise_last_id(changes, index, oid)
    _raise_last_used(changes, index, oid)
    return oid


def _set_stripe(changes: Changes, fid: Fid, stripe: int, index: int, oid: int) -> None:
    inode = changes.inode(fid)
    assert inode is not None and inode.layout is not None
    stripes = list(inode.layout.stripes)
    stripes[stripe] = (index, oid)
    changes.put_inode(fid, inode._replace(layout=inode.layout._replace(stripes=tuple(stripes))))


def _names(changes: Changes, fid: Fid, stripe: int, index: int, oid: int) -> bool:
    """Does this layout still name this object?"""
    inode = changes.inode(fid)
    layout = inode.layout if inode is not None else None
    return layout is not None and stripe < len(layout.stripes) and tuple(layout.stripes[stripe]) == (index, oid)


# ---------------------------------------------------------------- layouts


def unknown_ost(changes: Changes, problems: list[Problem]) -> None:
    """The OST may only be away: nothing is done, unless the administrator has said that it will not come back."""
    if not changes.options.replace_lost_osts:
        return
    for problem in problems:
        _, _, fid, stripe = problem.where
        inode = changes.inode(fid)
        assert inode is not None and inode.layout is not None
        taken = {index for index, _ in inode.layout.stripes}
        free = [index for index in changes.osts if index not in taken]
        if free:
            oid = _new_object(changes, free[0], fid)
            _set_stripe(changes, fid, stripe, free[0], oid)
            changes.did(problem, f"stripe {stripe} of {fid_text(fid)} is now object {oid} of OST{free[0]:04x}, empty: its data is lost")


def shared(changes: Changes, problems: list[Problem]) -> None:
    """An object belongs to the file it points back to, or the first that names it; the other gets an empty one."""
    for problem in problems:
        index, oid, fid, stripe, first, first_stripe = problem.where
        if not _names(changes, fid, stripe, index, oid) or not _names(changes, first, first_stripe, index, oid):
            continue
        record = _object(changes, index, oid)
        if record is not None and (record.owner, record.stripe) == (fid, stripe):
            fid, stripe, first, first_stripe = first, first_stripe, fid, stripe
        fresh = _new_object(changes, index, fid)
        _set_stripe(changes, fid, stripe, index, fresh)
        changes.did(
            problem,
            f"it belongs to stripe {first_stripe} of {fid_text(first)}; stripe {stripe} of {fid_text(fid)} is now object"
            f" {fresh}, empty",
        )


def missing(changes: Changes, problems: list[Problem]) -> None:
    """The record is written again. If the data file is there, so is the data; else the object is empty."""
    for problem in problems:
        index, oid, fid, stripe = problem.where
        if _object(changes, index, oid) is not None:
            continue
        inode = changes.inode(fid)
        assert inode is not None
        if oid > max(_last_id(changes, index), _pool(changes, index).granted) + GRANT_JUMP_MAX:
            fresh = _new_object(changes, index, fid)
            _set_stripe(changes, fid, stripe, index, fresh)
            changes.did(problem, f"no such id was ever granted: stripe {stripe} of {fid_text(fid)} is now object {fresh}, empty")
            continue
        data = _has_data(changes, index, oid)
        record = _empty(inode)
        _put_object(changes, index, oid, record._replace(owner=fid, stripe=stripe) if data else record)
        _raise_last_id(changes, index, oid)
        size = changes.osts[index].files.size(oid) if data else 0
        changes.did(problem, f"record made again, with the {size} bytes of its file" if data else "made again, EMPTY: its data is lost")


def condemned(changes: Changes, problems: list[Problem]) -> None:
    """An object of a file is not to be destroyed."""
    for problem in problems:
        changes.mdt.delete(OST_LOG, schema.log_key(*problem.where))
        changes.did(problem, "taken out of the destroy log")


def owner(changes: Changes, problems: list[Problem]) -> None:
    """The back-pointer follows the layout."""
    for problem in problems:
        index, oid, fid, stripe = problem.where
        record = _object(changes, index, oid)
        assert record is not None
        _put_object(changes, index, oid, record._replace(owner=fid, stripe=stripe))
        changes.did(problem, f"points back to stripe {stripe} of {fid_text(fid)}")


def user(changes: Changes, problems: list[Problem]) -> None:
    """The object is counted for whom its file is."""
    for problem in problems:
        index, oid, (uid, gid, projid) = problem.where
        record = _object(changes, index, oid)
        assert record is not None
        _put_object(changes, index, oid, record._replace(uid=uid, gid=gid, projid=projid))
        changes.did(problem, f"is counted for {(uid, gid, projid)}")


def no_data(changes: Changes, problems: list[Problem]) -> None:
    """An object without a file is an empty one."""
    for problem in problems:
        index, oid = problem.where
        record = _object(changes, index, oid)
        assert record is not None
        _put_object(changes, index, oid, record._replace(owner=NO_FID, stripe=0))
        changes.did(problem, "EMPTY now: its data is lost")


# ---------------------------------------------------------------- numbers


def last_id(changes: Changes, problems: list[Problem]) -> None:
    """Ids were given out up to here at least."""
    for problem in problems:
        index, oid = problem.where
        before, after = _last_id(changes, index), max(oid, _pool(changes, index).granted)
        if after > before:
            _raise_last_id(changes, index, after)
            changes.did(problem, f"last_id {before} -> {after}")


def last_used(changes: Changes, problems: list[Problem]) -> None:
    """Ids are used up to here at least, and the OST has given out what is used."""
    for problem in problems:
        index, oid = problem.where
        used, last = _pool(changes, index).last_used, _last_id(changes, index)
        if oid > used:
            _raise_last_used(changes, index, oid)
            changes.did(problem, f"last_used {used} -> {oid}")
        elif used > last:
            _raise_last_id(changes, index, used)
            changes.did(problem, f"last_id of the OST {last} -> {used}")


# ---------------------------------------------------------------- what belongs to nobody


def ownerless(changes: Changes, problems: list[Problem]) -> None:
    """With data it becomes a file in lost+found, else it goes.

    One that was perhaps never used is condemned: see repair.py
    """
    for problem in problems:
        index, oid, size = problem.where
        if index in changes.raised and oid > changes.raised[index]:
            changes.condemn(index, oid)
            changes.did(problem, "condemned: the next start destroys it, unless a replay claims it")
        elif size and changes.options.orphans != DESTROY:
            changes.did(problem, f"its {size} bytes are now {_found(changes, index, oid)}")
        else:
            changes.osts[index].rows.delete(OBJECTS, schema.object_key(oid))
            if _has_data(changes, index, oid):
                changes.osts[index].files.removed[oid] = None
            changes.did(problem, "destroyed")


def recordless(changes: Changes, problems: list[Problem]) -> None:
    """A file up to last_id is the rest of a destroyed object.

    Above it the database has lost its memory: a file of its own.
    """
    for problem in problems:
        index, oid, size = problem.where
        if _object(changes, index, oid) is not None:
            continue
        if oid <= _last_id(changes, index) or not size or changes.options.orphans == DESTROY or oid > schema.OBJECT_ID_MAX:
            changes.osts[index].files.removed[oid] = None
            changes.did(problem, "removed: the rest of a destroyed object")
            continue
        now = changes.now_ns
        _put_object(changes, index, oid, ObjectRecord(0, 0, now, now, now, ABSENT, NO_FID, 0))
        _raise_last_id(changes, index, oid)
        _raise_last_used(changes, index, oid)
        changes.did(problem, f"its {size} bytes are now {_found(changes, index, oid)}")


def _found(changes: Changes, index: int, oid: int) -> str:
    """Make a file in lost+found of one object; returns its path."""
    record = _object(changes, index, oid)
    assert record is not None
    name, fid = f"OST{index:04x}-{oid}", record.owner
    if fid != NO_FID:
        name += f"-stripe{record.stripe}-of-{fid_text(fid).strip('[]')}"
    if fid == NO_FID or changes.inode(fid) is not None:
        fid = changes.new_fid()
    _put_object(changes, index, oid, record._replace(owner=fid, stripe=0))
    times = (record.atime, record.mtime, record.ctime)
    layout, owned_by = Layout(ONE_STRIPE, 0, "", ((index, oid),)), Owner(record.uid, record.gid, record.projid)
    inode = changes.new_inode(stat.S_IFREG | 0o600, nlink=1, layout=layout, owner=owned_by, times=times)
    changes.put_inode(fid, inode)
    return changes.lose_to(name, fid, stat.S_IFREG)


OBJECT_MENDS: dict[str, Mend] = {
    "ost-unknown": unknown_ost,
    "object-missing": missing,
    "object-shared": shared,
    "object-owner": owner,
    "object-user": user,
    "object-condemned": condemned,
    "object-orphan": ownerless,
    "data-missing": no_data,
    "data-orphan": recordless,
    "last-id": last_id,
    "last-used": last_used,
}
