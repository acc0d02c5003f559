"""Layouts against the objects of one OST, in both directions, and the counters of both sides."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lustrelite.errors import StoreFailed
from lustrelite.fsck.readers import Cursor, Reader
from lustrelite.fsck.report import Report
from lustrelite.ids import FID_BYTES, NO_FID, Fid, fid_text
from lustrelite.ost.handlers import FILES
from lustrelite.store import schema


class Claims:
    """Which object of one OST belongs to which stripe of which file, by what the layouts say."""

    def __init__(self) -> None:
        self._oids = array("Q")
        self._stripes = array("I")
        self._fids = bytearray()
        self._owners = array("I")  # numbers of `owners`
        self.owners: dict[tuple[int, int, int], int] = {}  # (user, group, project), of which there are few

    def add(self, oid: int, fid: Fid, stripe: int, owner: tuple[int, int, int]) -> None:
        """The layout of `fid`, which is of `owner`, names `oid` as its stripe."""
        self._oids.append(oid)
        self._stripes.append(stripe)
        self._owners.append(self.owners.setdefault(owner, len(self.owners)))
        self._fids += fid

    def in_order(self) -> Iterator[tuple[int, Fid, int, tuple[int, int, int]]]:
        """(object id, file, stripe, the file's owner) by object id."""
        owners = list(self.owners)
        for at in sorted(range(len(self._oids)), key=self._oids.__getitem__):
            fid = Fid(bytes(self._fids[at * FID_BYTES : (at + 1) * FID_BYTES]))
            yield self._oids[at], fid, self._stripes[at], owners[self._owners[at]]


async def examine_ost(report: Report, mdt: Reader, index: int, ost: Reader, claims: Claims) -> None:
    """Layouts against the objects of one OST, in both directions, and the counters of both sides."""
    name = f"OST{index:04x}"
    last_id = await _last_id(report, index, ost)
    last_used = await _last_used(report, mdt, index)
    condemned, changing = await _log(report, mdt, index)
    objects = await Cursor(ost.rows(schema.OBJECTS)).start()
    files = await Cursor(ost.rows(FILES)).start()
    totals: Counter[str] = Counter()

    def text(oid: int) -> str:
        return f"{name}:{oid}"

    async def look(
        row: tuple[bytes, bytes], owner: Fid | None, stripe: int, user: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        """One object record; `owner` is None if no layout names it, and else of `user`."""
        key = row[0]
        if not schema.is_object_key(key):
            report.add("record-unreadable", f"{name}:{key.hex()}", "no key of an object", (index, schema.OBJECTS, key))
            return
        oid = schema.split_object_key(key)
        totals["objects"] += 1
        if files.behind(key):
            await no_record(key)
        data = await files.of(key)
        size = schema.unpack_u64(data[0][1]) if data else 0
        totals["data files"] += len(data)
        totals["bytes"] += size
        if oid > last_id:
            report.add("last-id", text(oid), f"last_id is {last_id}", (index, oid))
        try:
            record = sound_object(row[1])
        except StoreFailed as error:
            report.add("record-unreadable", text(oid), f"object: {error}", (index, schema.OBJECTS, key))
            return
        if record.owner != NO_FID and not data:
            report.add("data-missing", text(oid), f"written for {fid_text(record.owner)}", (index, oid))
        if owner is None:
            if oid <= last_used and oid not in condemned:
                detail = f"{size} bytes, last owner {fid_text(record.owner)}"
                report.add("object-orphan", text(oid), detail, (index, oid, size))
        elif record.owner != NO_FID and (record.owner, record.stripe) != (owner, stripe):
            detail = f"says stripe {record.stripe} of {fid_text(record.owner)}, is stripe {stripe} of {fid_text(owner)}"
            report.add("object-owner", text(oid), detail, (index, oid, owner, stripe))
        if owner is not None and oid not in changing and (record.uid, record.gid, record.projid) != user:
            of = (record.uid, record.gid, record.projid)
            detail = f"is counted for {of}, {_what(owner, stripe)} is of {user}"
            report.add("object-user", text(oid), detail, (index, oid, user))

    async def no_record(key: bytes | None) -> None:
        async for stray, size in files.before(key):
            oid, length = schema.split_object_key(stray), schema.unpack_u64(size)
            report.add("data-orphan", text(oid), f"{length} bytes", (index, oid, length))

    previous: tuple[int, Fid, int] | None = None
    for oid, fid, stripe, user in claims.in_order():
        if previous is not None and previous[0] == oid:
            detail = f"{_what(fid, stripe)} and {_what(previous[1], previous[2])}"
            report.add("object-shared", text(oid), detail, (index, oid, fid, stripe, previous[1], previous[2]))
            continue
        previous = (oid, fid, stripe)
        if oid > last_used:
            report.add("last-used", text(oid), f"{_what(fid, stripe)}, last_used is {last_used}", (index, oid))
        if oid in condemned:
            report.add("object-condemned", text(oid), _what(fid, stripe), (index, oid))
        key = schema.object_key(oid)
        if objects.behind(key):
            async for row in objects.before(key):
                await look(row, None, 0)
        claimed = await objects.of(key)
        for row in claimed:
            await look(row, fid, stripe, user)
        if not claimed:
            report.add("object-missing", text(oid), _what(fid, stripe), (index, oid, fid, stripe))
    async for row in objects.before(None):
        await look(row, None, 0)
    await no_record(None)
    if last_used > last_id:
        report.add("last-used", name, f"last_used is {last_used}, the OST's last_id {last_id}", (index, 0))
    for what, total in totals.items():
        report.counts[what] = report.counts.get(what, 0) + total
    report.counts["destroy log"] = report.counts.get("destroy log", 0) + len(condemned)


def sound_object(data: bytes) -> schema.ObjectRecord:
    """The record in `data`.  StoreFailed: it cannot be unpacked, or its fields are not what they should be."""
    record = schema.unpack_object(data)
    numbers = [field for name, field in record._asdict().items() if name != "owner"]
    if not all(isinstance(field, int) for field in numbers) or not isinstance(record.owner, bytes) or len(record.owner) != FID_BYTES:
        raise StoreFailed(f"not an object: {data[:64]!r}")
    return record


def _what(fid: Fid, stripe: int) -> str:
    return f"stripe {stripe} of {fid_text(fid)}"


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise StoreFailed(f"not a number: {value!r}")
    return value


async def _last_id(report: Report, index: int, ost: Reader) -> int:
    async for key, value in ost.rows(schema.META):
        if key == schema.meta_key("last_id"):
            try:
                return _number(schema.unpack_meta(value))
            except StoreFailed as error:
                where = (index, schema.META, key)
                report.add("record-unreadable", f"OST{index:04x}:last_id", f"last_id: {error}", where)
    return 0


async def _last_used(report: Report, mdt: Reader, index: int) -> int:
    async for key, value in mdt.rows(schema.POOLS):
        if key == schema.pool_key(index):
            try:
                return _number(schema.unpack_pool(value).last_used)
            except StoreFailed as error:
                where = (None, schema.POOLS, key)
                report.add("record-unreadable", f"OST{index:04x}:last_used", f"pool: {error}", where)
    return 0


async def _log(report: Report, mdt: Reader, index: int) -> tuple[set[int], set[int]]:
    """Objects of one OST that the MDT's log says shall be destroyed, and that shall change owners (never iterated)."""
    destroys: set[int] = set()
    owners: set[int] = set()
    prefix = schema.pool_key(index)
    async for key, value in mdt.rows(schema.OST_LOG):
        if not key.startswith(prefix):
            continue
        try:
            transno, owner = schema.unpack_log(value)
            for number in (transno, *(owner or ())):
                _number(number)
            if len(key) != len(schema.log_key(0, 0)):
                raise StoreFailed("not a key of the log")
            (destroys if owner is None else owners).add(schema.split_log_key(key)[1])
        except StoreFailed as error:
            where = (None, schema.OST_LOG, key)
            report.add("record-unreadable", f"OST{index:04x}:{key.hex()}", f"log: {error}", where)
    return destroys, owners
