"""Locks that clients have promised themselves while nobody could reach this OST: they come before others are served.

A client may have given SOLE of a new file back because it got no answer from us (ldlm/promised.py): then others are told
of the object, and come here. If we have served somebody meanwhile the promise is broken. But if nobody was heard at all,
because this process stood still or the network did, nobody was served: who was heard until then is given a moment to
redeem what he has promised himself, and hears that it counts; who wants an object that is still as it was made comes again.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from lustrelite.errors import OpError
from lustrelite.rpc.service import Absence
from lustrelite.wire.ldlm import UNTOUCHED
from lustrelite.wire.ost import resource_of

if TYPE_CHECKING:
    from lustrelite.ost.ost import Ost
    from lustrelite.rpc.export import Export


class PromisedToOthers:
    """Of one OST."""

    def __init__(self, ost: Ost) -> None:
        self._ost = ost

    def _absence(self) -> Absence | None:
        """That of which we have just come back."""
        ost = self._ost
        absence = ost.service.absence if ost.service is not None else None
        if absence is None or absence.since < ost.started_at or ost.recovering:
            return None
        return absence if ost.node.now() < absence.over else None

    def count(self, export: Export) -> bool:
        """Has nobody been served since this client could last redeem what it promised itself?"""
        absence = self._absence()
        return absence is not None and export not in absence.cut_off

    def awaited(self, resource_id: bytes) -> bool:
        """May somebody have promised himself this object and not have had the time to say so?"""
        if self._absence() is None:
            return False
        resource = self._ost.namespace.table.resources.get(resource_id)
        return (resource is None or not resource.granted) and self._ost.namespace.lvb(resource_id) == UNTOUCHED

    def give_way(self, oid: int) -> None:
        """Somebody comes without a lock.  EINPROGRESS: he is to come again"""
        if self.awaited(resource_of(oid)):
            raise OpError(errno.EINPROGRESS, f"object {oid}: its author may not have been heard")
