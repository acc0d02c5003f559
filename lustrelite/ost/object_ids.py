"""Which object ids an OST has granted to the MDT, and what a crash may take of that.

A grant puts a blank record for each id and moves `last_id`, in a transaction that is answered before it is durable. A
crash may thus take the records of objects that are in layouts already, and have been written to. Who brings them back:

    the MDT replays its OstCreate     it is a client like any other; the replays of those who wrote come after it, by transno
    a replayed change names one       the MDT did not come back in time: it is made, and all below it (`recreate`)
    the MDT's next orphan pass        says which ids are in use: what is missing of them is made, blank (`settle`)

Until that pass nobody can tell an id that was lost from one that was never granted, so for who is not replaying an
object above `last_id` is neither there nor missing: "come again" (`may_be_lost`, LU-11765).

No id is granted twice, lost or not: its file may be there still, and a client that the MDT has forgotten may have dirty
data for it. `limit` is a number that no grant has passed; it is durable before one comes near. A grant beyond it waits
for the commit; as it is raised long before, few do. The first orphan pass after a start goes on above the limit of the
last incarnation. The pass itself is answered when it is durable: the MDT remembers that all between is gone.

Lustre writes LAST_ID with the objects, asynchronously, and may grant an id again that a crash took from all three.
Source: ofd_create_hdl(), ofd_dev.c; ofd_precreate_objects(), ofd_objects.c; ofd_preprw_write(), ofd_io.c; LU-8367,
LU-8972; protocol-facts 7.2
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from lustrelite.errors import OpError
from lustrelite.ids import NO_FID
from lustrelite.ost.replacement import REPLACES
from lustrelite.recovery.versions import ABSENT
from lustrelite.store import schema
from lustrelite.store.schema import META, OBJECTS, ObjectRecord
from lustrelite.tunables import limits

if TYPE_CHECKING:
    from lustrelite.ost.ost import Ost
    from lustrelite.rpc.export import Export
    from lustrelite.target.transaction import Transaction

LAST_ID = schema.meta_key("last_id")
ID_LIMIT = schema.meta_key("id_limit")

GRANT_JUMP_MAX = 100_000  # ids in one OstCreate; more above last_id means that one side lost its memory
# Objects that one orphan pass destroys; with more the MDT's last_used is not to be trusted. It may have one and a half of the
# largest batches left over, and lose what it used of them since its last commit.
ORPHANS_MAX = 2 * limits.precreate_max
RECREATE_MAX = 20_000  # with more than GRANT_JUMP_MAX missing, only the newest are made again, and those with data
INODES_AMPLE = 20_000  # free ones: nobody counts how many objects have no file yet
AHEAD = 4  # the limit is raised to so many grants ahead, when only half of that is left

BLANK = ObjectRecord(0, 0, 0, 0, 0, ABSENT, NO_FID, 0)
_BLANK = schema.pack_object(BLANK)


class ObjectIds:
    """The ids of one OST. What changes them does it in the transaction of its caller, whole or not at all."""

    def __init__(self, ost: Ost) -> None:
        self.ost = ost
        self.known = False  # the MDT has said since the start which ids it has used
        self.granted_before = 0  # ids up to here may have been granted by an earlier incarnation
        self.durable_limit = 0

    def load(self) -> None:
        """The store is open."""
        self.granted_before = self.durable_limit = max(self._meta(ID_LIMIT), self.last_id)

    def _meta(self, key: bytes) -> int:
        value = self.ost.store.get(META, key)
        return int(schema.unpack_meta(value)) if value is not None else 0

    @property
    def replaces(self) -> bool:
        """Was this OST formatted in the place of one that is lost, and has not heard of the MDT yet?"""
        return self.ost.store.get(META, REPLACES) is not None

    @property
    def last_id(self) -> int:
        """The highest id that was ever granted, as far as we know."""
        return self._meta(LAST_ID)

    def may_be_lost(self, oid: int) -> bool:
        """Can nobody know whether there should be an object `oid`, which is not there?"""
        return not self.known and oid > self.last_id

    # ------------------------------------------------------------ granting

    def grow(self, txn: Transaction, upto: int) -> int:
        """Grant ids up to `upto`, or fewer; what is there already is not made again (LU-5648). Returns the last id.

        Errors: EINVAL, more than GRANT_JUMP_MAX at once; ENOSPC, data could not be written to them anyway
        """
        last = self.last_id
        if upto > last and not txn.replay:
            if not self.ost.has_space:
                raise OpError(errno.ENOSPC, f"{self.ost.name} is full")
            upto = min(upto, last + self._files_that_fit(upto - last))
            if upto <= last:
                raise OpError(errno.ENOSPC, f"{self.ost.name} has no free inodes")
        if upto - last > GRANT_JUMP_MAX:
            self.ost.say("ost.create_refused", "warning", last_id=last, upto=upto)
            raise OpError(errno.EINVAL, f"{self.ost.name}: ids up to {upto} wanted, last is {last}")
        if upto > last:
            self._make(txn, last, upto)
            self._keep_limit_above(txn, upto, upto - last)
        return max(last, upto)

    def _files_that_fit(self, wanted: int) -> int:
        """How many of so many more objects can have files, when those that are granted have theirs; `wanted` if there is plenty.

        A file is made by the first write, which a client may have answered long before. Of much older objects without one
        it is supposed that they stay so: they belong to files that are empty.
        """
        free = self.ost.files.statfs().files_free
        if free > INODES_AMPLE + wanted:
            return wanted
        newest = schema.object_key(max(self.last_id - free - wanted, 0))
        unmade = sum(schema.unpack_object(row).owner == NO_FID for _, row in self.ost.store.scan(OBJECTS, newest))
        return min(wanted, free - unmade)

    def beyond_limit(self, upto: int) -> bool:
        """Could an id up to `upto` be granted once more after a crash?"""
        return upto > self.durable_limit

    def _keep_limit_above(self, txn: Transaction, upto: int, count: int) -> None:
        if self._meta(ID_LIMIT) < upto + count * AHEAD // 2:
            limit = upto + count * AHEAD
            txn.put(META, ID_LIMIT, schema.pack_meta(limit))
            txn.when_committed(lambda: self._limit_is_durable(limit))

    def _limit_is_durable(self, limit: int) -> None:
        self.durable_limit = max(self.durable_limit, limit)

    def _make(self, txn: Transaction, after: int, upto: int) -> None:
        assert upto > after >= self.last_id
        for oid in range(after + 1, upto + 1):
            txn.put(OBJECTS, schema.object_key(oid), _BLANK)
        txn.put(META, LAST_ID, schema.pack_meta(upto))

    # ------------------------------------------------------------ what was lost

    def recreate(self, txn: Transaction, oid: int) -> ObjectRecord:
        """A replay names an object above last_id: the OST has lost it, and all between. Make them.

        Errors: ENOENT, too far above to be believed.  Source: ofd_preprw_write(), ofd_io.c; protocol-facts 7.2
        """
        value = txn.get(META, LAST_ID)  # it may name several
        last = int(schema.unpack_meta(value)) if value is not None else 0
        if oid - last > GRANT_JUMP_MAX:
            raise OpError(errno.ENOENT, f"object {oid}")
        if oid > last:
            self._make_again(txn, last, oid, last)
        return BLANK

    def _make_again(self, txn: Transaction, after: int, upto: int, last: int) -> None:
        """What a crash took, or, which is a reason to worry, what no incarnation can have granted: an older disk."""
        level = "info" if upto <= self.granted_before else "warning"
        self.ost.say("ost.objects_recreated", level, last_id=last, upto=upto, made=upto - after)
        self._make(txn, after, upto)

    def settle(self, txn: Transaction, used: int) -> int:
        """The MDT has used ids up to `used` and no others: make what is missing of them, destroy what is above (SKIP_ORPHAN).

        Returns the last id, above which the MDT goes on. With more than ORPHANS_MAX to destroy, or objects with data at
        its first start, the MDT has lost its memory rather than its clients: nothing is destroyed. With more than
        GRANT_JUMP_MAX missing this must be another disk, or an old copy of the database: the newest are made, and those
        that have data.

        Errors: ENODEV, this is not the OST that the MDT has used
        """
        last = self.last_id
        if used and not last and not self._meta(ID_LIMIT) and not self.replaces:
            self.ost.say("ost.formatted_anew", "warning", used=used, why="its objects are not here: mkfs.lustrelite --replace")
            raise OpError(errno.ENODEV, f"{self.ost.name} was formatted anew")
        if self.replaces:
            txn.delete(META, REPLACES)
        if used > last:
            first = last if used - last <= GRANT_JUMP_MAX else used - RECREATE_MAX
            self._make_again(txn, first, used, last)
            if first > last:  # else the sweep would take their files for strays
                for oid in self.ost.files.ids():
                    if last < oid <= first:
                        txn.put(OBJECTS, schema.object_key(oid), _BLANK)
        elif (orphans := self._orphans(used, txn.export)) is None:
            self.ost.say("ost.orphans_kept", "warning", used=used, last_id=last)
        else:
            self.ost.destroy(txn, orphans)
            self.ost.say("ost.orphans_destroyed", used=used, last_id=last, count=len(orphans))
        go_on = max(last, used, self.granted_before)
        if go_on > last:
            txn.put(META, LAST_ID, schema.pack_meta(go_on))
        if not self.known:
            self.known = True
            txn.undo(self._unknown_again)
            txn.when_committed(self.ost.sweep)
        return go_on

    def _unknown_again(self) -> None:
        self.known = False

    def destroy_most(self, used: int, mdt: Export) -> None:
        """Destroy what `settle` would, but for a few, without its answer.  Errors: see Ost.destroy_most"""
        self.ost.destroy_most(self._orphans(used, mdt) or [])

    def _orphans(self, used: int, mdt: Export | None) -> list[int] | None:
        """The objects above `used`; None: so many, or such, that they are to be kept."""
        new = not used and mdt is not None and mdt.incarnation == 1
        orphans: list[int] = []
        for key, value in self.ost.store.scan(OBJECTS, schema.object_key(used)):
            orphans.append(schema.split_object_key(key))
            stranger = new and schema.unpack_object(value).owner != NO_FID
            if stranger or len(orphans) > ORPHANS_MAX:
                return None
        return orphans
