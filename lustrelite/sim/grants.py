"""Do clients and OSTs agree on what space was promised? Asked of a world at rest, in one turn."""

from __future__ import annotations

from collections.abc import Iterable

from lustrelite.client.fs import FileSystem
from lustrelite.ost.ost import Ost
from lustrelite.recovery.import_fsm import State


def grant_problems(osts: Iterable[Ost], mounts: Iterable[FileSystem]) -> list[str]:
    """What is wrong, in words: the sum of an OST, what is dirty without a promise, and any difference between two sides.

    Of connections that are not at rest only the OST's own sum is looked at.
    """
    problems = []
    mounted = list(mounts)
    for ost in osts:
        grants = ost.grants
        if grants.promised != sum(grants.held.values()):
            problems.append(f"{ost.name} has promised {grants.promised} bytes, to its clients {sum(grants.held.values())}")
        for fs in mounted:
            imp = fs.connections.imports.get(ost.name)
            osc = fs.connections.lov.oscs.get(ost.index)
            export = ost.exports.get(fs.connections.uuid)
            if imp is None or osc is None or osc.data is None or export is None:
                continue
            if imp.state is not State.FULL or imp.sending or imp.delayed or imp.fsm.handle != export.handle:
                continue
            ours, held = osc.data.grant, grants.held.get(export, 0)
            dirty = sum(cached.pages.cost for cached in osc.data.objects.values())
            who = f"{fs.connections.uuid} on {ost.name}"
            if ours.available + ours.reserved != held:
                problems.append(f"{who} counts {ours.available} + {ours.reserved} bytes, the OST {held}")
            if ours.reserved != dirty:
                problems.append(f"{who} has {dirty} bytes dirty and counts {ours.reserved}")
            if ours.available < 0:
                problems.append(f"{who} has {ours.reserved} bytes dirty within a grant of {held}")
    return problems
