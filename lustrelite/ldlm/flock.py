"""flock(2) and fcntl(2) locks of all clients: cluster-wide, blocking or not, with deadlocks found.

They differ from the other locks in kind. They are the application's: nobody is ever asked to give one back and nobody
is evicted for holding one. What an owner holds is not a set of locks but a map of byte ranges, which a new request
cuts, joins and replaces (policy.set_range); both ends keep that map, and a client replays it range by range. Only
waiting requests have handles. A request is checked against what others hold, never against who waits: an owner who
raises his own lock would wait for those who wait for him. Waiting requests are granted in order of arrival.

A request that is sent twice is executed twice: it sets, so it comes to the same, provided that a client has only one
request of an owner and file on its way (waiting ones aside). So no reply records are needed.

Deadlock (POSIX only; flock(2) has no EDEADLK): an owner waits for every owner that holds what is in its way. A request
that would close a circle is refused, and so is a waiting one when a grant closes a circle (an owner with threads can
wait and hold at once). Each walk visits an owner once.

Two kinds of resources never meet: POSIX and BSD locks of one file are different resources, as on Linux.
Source: ldlm_process_flock_lock(), ldlm_flock_deadlock(), ldlm/ldlm_flock.c 192-; protocol-facts 5.10.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterator
from typing import Any, NamedTuple

from lustrelite.ldlm.extents import Extents
from lustrelite.ldlm.lock import Owner
from lustrelite.ldlm.policy import EOF, Record, mode_text, set_range
from lustrelite.wire.ldlm import NL, PR, PW

FlockOwner = tuple[Owner, int]  # the export, and the owner's number on that client


class FlockRequest:
    """A request that waits. `handle` is the client's name for it."""

    __slots__ = ("end", "handle", "mode", "number", "owner", "parked_on", "pid", "resource", "start")

    def __init__(self, owner: FlockOwner, handle: int, pid: int, mode: int, start: int, end: int):
        self.owner = owner
        self.handle = handle
        self.pid = pid
        self.mode = mode
        self.start = start
        self.end = end
        self.number = 0
        self.resource: FlockResource = None  # type: ignore[assignment]  # set when it waits
        self.parked_on: _Range | None = None  # one that is in the way; when it changes, look again

    @property
    def behind(self) -> FlockOwner | None:
        """An owner it waits for, perhaps among others; None during lock replay."""
        return None if self.parked_on is None else self.parked_on.owner

    def __repr__(self) -> str:
        return f"FlockRequest({self.owner} {mode_text(self.mode)} [{self.start}, {self.end}])"


class FlockGranted(NamedTuple):
    """The range is set (or unlocked). `waited`: tell by a completion; else in the reply."""

    request: FlockRequest
    waited: bool


class FlockWait(NamedTuple):
    """It waits for `behind`, perhaps among others; a completion will follow."""

    request: FlockRequest
    behind: FlockOwner


class FlockDenied(NamedTuple):
    """Refused with EWOULDBLOCK or EDEADLK. `waited`: tell by a completion; else in the reply."""

    request: FlockRequest
    errno: int
    waited: bool


FlockEffect = FlockGranted | FlockWait | FlockDenied


class _Range:
    """A Record of somebody, in the index of all, with those who wait for it."""

    __slots__ = ("end", "number", "owner", "parked", "start")

    def __init__(self, owner: FlockOwner, record: Record, number: int):
        self.owner = owner
        self.start = record.start
        self.end = record.end
        self.number = number
        self.parked: dict[FlockRequest, None] | None = None


class FlockResource:
    """The record locks of one file, of one kind."""

    __slots__ = ("bsd", "id", "indexes", "pids", "ranges", "records", "waiting")

    def __init__(self, resource_id: bytes, bsd: bool):
        self.id = resource_id
        self.bsd = bsd
        self.records: dict[FlockOwner, list[Record]] = {}
        self.pids: dict[FlockOwner, int] = {}
        self.ranges: dict[tuple[FlockOwner, int], _Range] = {}  # by owner and start
        self.indexes: dict[int, Extents[_Range]] = {PR: Extents(), PW: Extents()}
        self.waiting: dict[FlockRequest, None] = {}  # in order of arrival

    @property
    def empty(self) -> bool:
        """Nobody holds anything or waits."""
        return not self.records and not self.waiting

    def in_the_way(self, request: FlockRequest) -> Iterator[_Range]:
        """The ranges of others that conflict with `request`."""
        for mode in (PW,) if request.mode == PR else (PW, PR) if request.mode == PW else ():
            for found in self.indexes[mode].overlapping(request.start, request.end):
                if found.owner != request.owner:
                    yield found


class FlockTable:
    """All record locks of one target."""

    def __init__(self, frozen: bool = False) -> None:
        self.resources: dict[tuple[bytes, bool], FlockResource] = {}
        self.frozen = frozen
        self.waits: dict[FlockOwner, dict[FlockRequest, None]] = {}  # POSIX requests that wait
        self.handles: dict[Owner, dict[int, FlockRequest]] = {}  # of waiting requests, by export
        self.holds: dict[Owner, dict[tuple[FlockOwner, FlockResource], None]] = {}  # by export
        self._number = 0

    # what happens -----------------------------------------------------------------------------------------------

    def request(self, resource_id: bytes, bsd: bool, request: FlockRequest, wait: bool) -> list[FlockEffect]:
        """Lock, change or (NL) unlock a range. A second copy of a request that waits answers with the first.

        A BSD lock that is changed is dropped first, even if the new one is then refused, as flock(2) says.
        """
        assert not self.frozen and request.mode in (PR, PW, NL)
        twin = self.handles.get(request.owner[0], {}).get(request.handle)
        if twin is not None:
            assert twin.behind is not None
            return [FlockWait(twin, twin.behind)]
        resource = self._resource(resource_id, bsd)
        request.resource = resource
        woken: list[FlockRequest] = []
        if bsd and request.mode != NL and resource.records.get(request.owner):
            if resource.records[request.owner][0].mode == request.mode:
                return [FlockGranted(request, False)]
            woken += self._set(request, NL)
        effects: list[FlockEffect] = []
        in_the_way = next(resource.in_the_way(request), None)
        if in_the_way is None:
            woken += self._set(request, request.mode)
            effects.append(FlockGranted(request, False))
            effects += self._circles_closed_by(resource, request)
        elif not wait:
            effects.append(FlockDenied(request, errno.EWOULDBLOCK, False))
        elif not bsd and self._deadlocks(request):
            effects.append(FlockDenied(request, errno.EDEADLK, False))
        else:
            self._wait(request)
            _park(request, in_the_way)
            effects.append(FlockWait(request, in_the_way.owner))
        if woken:
            effects += self._look_again(resource, woken)
        self._forget_if_empty(resource)
        return effects

    def waits_for(self, export: Owner, handle: int) -> bool:
        """Does the request with this handle wait?"""
        return handle in self.handles.get(export, ())

    def test(self, resource_id: bytes, request: FlockRequest) -> tuple[Record, int] | None:
        """F_GETLK: a range that is in the way, and its owner's pid; None if there is none."""
        resource = self.resources.get((resource_id, False))
        found = min(resource.in_the_way(request), key=lambda found: found.start, default=None) if resource is not None else None
        if resource is None or found is None:
            return None
        mode = PW if any(found is other for other in resource.indexes[PW].overlapping(found.start, found.start)) else PR
        return Record(found.start, found.end, mode), resource.pids.get(found.owner, 0)

    def cancel(self, export: Owner, handle: int) -> bool:
        """A waiting request is given up (a signal). False if it does not wait (any more)."""
        request = self.handles.get(export, {}).get(handle)
        if request is None:
            return False
        self._wait_no_more(request)
        self._forget_if_empty(request.resource)
        return True

    def owner_gone(self, export: Owner) -> list[FlockEffect]:
        """Evicted or left: all its owners' ranges and requests go, and the others go on."""
        touched: dict[FlockResource, list[FlockRequest]] = {}
        for request in list(self.handles.get(export, {}).values()):
            self._wait_no_more(request)
            touched.setdefault(request.resource, [])
        for owner, resource in list(self.holds.get(export, {})):
            everything = FlockRequest(owner, 0, 0, NL, 0, EOF)
            everything.resource = resource
            touched.setdefault(resource, []).extend(self._set(everything, NL))
        effects: list[FlockEffect] = []
        for resource, woken in touched.items():
            effects += self._look_again(resource, woken)
            self._forget_if_empty(resource)
        return effects

    def replay(self, resource_id: bytes, bsd: bool, request: FlockRequest, granted: bool) -> None:
        """A client says that it holds the range, or waits for it. Taken at its word."""
        assert self.frozen
        request.resource = self._resource(resource_id, bsd)
        if granted:
            self._set(request, request.mode)
        elif request.handle not in self.handles.get(request.owner[0], {}):
            self._wait(request)

    def thaw(self) -> list[FlockEffect]:
        """Recovery is over: grant who can be."""
        assert self.frozen
        self.frozen = False
        effects: list[FlockEffect] = []
        for resource in list(self.resources.values()):
            effects += self._look_again(resource, list(resource.waiting))
        return effects

    # how --------------------------------------------------------------------------------------------------------

    def _resource(self, resource_id: bytes, bsd: bool) -> FlockResource:
        resource = self.resources.get((resource_id, bsd))
        if resource is None:
            resource = self.resources[resource_id, bsd] = FlockResource(resource_id, bsd)
        return resource

    def _forget_if_empty(self, resource: FlockResource) -> None:
        if resource.empty:
            self.resources.pop((resource.id, resource.bsd), None)

    def _set(self, request: FlockRequest, mode: int) -> list[FlockRequest]:
        """Set the range of `request` to `mode`; returns who waited for a range that went by it, or changed."""
        resource, owner = request.resource, request.owner
        records = resource.records.setdefault(owner, [])
        went, came = set_range(records, request.start, request.end, mode)
        woken: list[FlockRequest] = []
        for record in went:
            item = resource.ranges.pop((owner, record.start))
            resource.indexes[record.mode].remove(item)
            woken.extend(item.parked or ())
        for record in came:
            self._number += 1
            item = resource.ranges[owner, record.start] = _Range(owner, record, self._number)
            resource.indexes[record.mode].add(item)
        held = self.holds.setdefault(owner[0], {})
        if records:
            held[owner, resource] = None
            if mode != NL:
                resource.pids[owner] = request.pid
        else:
            del resource.records[owner]
            resource.pids.pop(owner, None)
            held.pop((owner, resource), None)
            if not held:
                del self.holds[owner[0]]
        return woken

    def _wait(self, request: FlockRequest) -> None:
        self._number += 1
        request.number = self._number
        request.resource.waiting[request] = None
        self.handles.setdefault(request.owner[0], {})[request.handle] = request
        if not request.resource.bsd:
            self.waits.setdefault(request.owner, {})[request] = None

    def _wait_no_more(self, request: FlockRequest) -> None:
        del request.resource.waiting[request]
        _park(request, None)
        export = request.owner[0]
        del self.handles[export][request.handle]
        if not self.handles[export]:
            del self.handles[export]
        if not request.resource.bsd:
            del self.waits[request.owner][request]
            if not self.waits[request.owner]:
                del self.waits[request.owner]

    def _look_again(self, resource: FlockResource, woken: list[FlockRequest]) -> list[FlockEffect]:
        """Grant those of `woken` who can be, in order of arrival."""
        effects: list[FlockEffect] = []
        queue = [(request.number, request) for request in woken]
        heapq.heapify(queue)
        while queue and not self.frozen:
            _, request = heapq.heappop(queue)
            if request not in resource.waiting:
                continue
            in_the_way = next(resource.in_the_way(request), None)
            if in_the_way is not None:
                _park(request, in_the_way)
                continue
            self._wait_no_more(request)
            for other in self._set(request, request.mode):  # it may have made its own lock weaker
                heapq.heappush(queue, (other.number, other))
            effects.append(FlockGranted(request, True))
            effects += self._circles_closed_by(resource, request)
        return effects

    def _circles_closed_by(self, resource: FlockResource, granted: FlockRequest) -> list[FlockEffect]:
        """Its owner holds more now. If he waits elsewhere, those who wait for him here may wait for themselves."""
        effects: list[FlockEffect] = []
        if granted.owner in self.waits and not resource.bsd:
            for request in list(resource.waiting):
                if request.owner != granted.owner and self._deadlocks(request):
                    self._wait_no_more(request)
                    effects.append(FlockDenied(request, errno.EDEADLK, True))
        return effects

    def _deadlocks(self, request: FlockRequest) -> bool:
        """Does the owner of `request` wait, by way of those in its way, for himself?"""
        seen: dict[FlockOwner, None] = {}
        open_requests = [request]
        while open_requests:
            waiting = open_requests.pop()
            for found in waiting.resource.in_the_way(waiting):
                if found.owner == request.owner:
                    return True
                if found.owner not in seen:
                    seen[found.owner] = None
                    open_requests += self.waits.get(found.owner, ())
        return False

    def describe(self, resource_id: bytes, bsd: bool) -> dict[str, Any]:
        """The ranges and waiting requests of one file as data."""
        resource = self.resources.get((resource_id, bsd))
        if resource is None:
            return {"granted": [], "waiting": []}
        return {
            "granted": [
                {"owner": str(owner), "pid": resource.pids.get(owner, 0), "mode": mode_text(r.mode),
                 "range": [r.start, r.end]}
                for owner, records in resource.records.items() for r in records
            ],
            "waiting": [
                {"owner": str(r.owner), "pid": r.pid, "mode": mode_text(r.mode), "range": [r.start, r.end],
                 "behind": str(r.behind)}
                for r in resource.waiting
            ],
        }  # fmt: skip


def _park(request: FlockRequest, in_the_way: _Range | None) -> None:
    """`request` looks again when `in_the_way` changes; None: it waits no more."""
    old, request.parked_on = request.parked_on, in_the_way
    if old is not None and old.parked is not None:
        old.parked.pop(request, None)
    if in_the_way is not None:
        if in_the_way.parked is None:
            in_the_way.parked = {}
        in_the_way.parked[request] = None
