"""Do clients and OSTs agree on what space was promised?

Asked of a world at rest: what each side counts, and the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lustrelite.client.fs import FileSystem
from lustrelite.ost.ost import Ost
from lustrelite.recovery.import_fsm import State
from lustrelite.wire.session import Ping


class Promised(NamedTuple):
    """What one OST counts."""

    ost: str
    total: int
    by_client: dict[str, int]  # by UUID, of those that are connected; 0: nothing


class Counted(NamedTuple):
    """What one client counts of one OST, in bytes."""

    client: str
    ost: str
    available: int
    reserved: int
    dirty: int  # what its dirty pages need


def promised_by(ost: Ost) -> Promised:
    """The OST's side."""
    held = ost.grants.held
    return Promised(ost.name, ost.grants.promised, {uuid: held.get(export, 0) for uuid, export in ost.exports.items()})


def counted_by(fs: FileSystem) -> list[Counted]:
    """A mount's side, of the connections that are at rest and have a cache. A ping moves nothing."""
    found = []
    for osc in fs.connections.lov.oscs.values():
        imp = fs.connections.imports[osc.name]
        moving = imp.delayed or any(request.spec.cls is not Ping for request in imp.sending.values())
        if osc.data is None or imp.state is not State.FULL or moving:
            continue
        grant = osc.data.grant
        dirty = sum(cached.pages.cost for cached in osc.data.objects.values())
        found.append(Counted(fs.connections.uuid, osc.name, grant.available, grant.reserved, dirty))
    return found


def grant_problems(osts: Iterable[Promised], clients: Iterable[Counted]) -> list[str]:
    """What is wrong, in words: the sum of an OST, what is dirty without a promise, and any difference between two sides.

    A client that an OST does not know, or the other way round, is compared with nobody.
    """
    problems = []
    promises = {promised.ost: promised for promised in osts}
    for ost, total, by_client in promises.values():
        if total != sum(by_client.values()):
            problems.append(f"{ost} has promised {total} bytes, to its clients {sum(by_client.values())}")
    for client, ost, available, reserved, dirty in clients:
        held = promises[ost].by_client.get(client) if ost in promises else None
        who = f"{client} on {ost}"
        if reserved != dirty:
            problems.append(f"{who} has {dirty} bytes dirty and counts {reserved}")
        if held is None:
            continue
        if available + reserved != held:
            problems.append(f"{who} counts {available} + {reserved} bytes, the OST {held}")
        if available < 0:
            problems.append(f"{who} has {reserved} bytes dirty within a grant of {held}")
    return problems
