"""A lock in its three shapes: what a client wants (Want), what the core works with, what its owner hears of it (Granted).

Source: struct ldlm_request, struct ldlm_reply
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lustrelite.ldlm.flock import FlockRequest
from lustrelite.ldlm.lock import LOCAL, Lock
from lustrelite.wire.ldlm import Granted, Lvb, Want

if TYPE_CHECKING:
    from lustrelite.rpc.export import Export


def refused(want: Want, status: int, lvb: Lvb | None = None) -> Granted:
    """There is no lock."""
    return Granted(want.handle, status, want.resource, 0, 0, 0, 0, 0, 0, lvb)


def lock_of(export: Export, want: Want) -> Lock:
    """A lock as `export` wants it, not yet in any queue."""
    return Lock(
        export, want.handle, want.mode, bits=want.bits, try_bits=want.try_bits, start=want.start, end=want.end,
        gid=want.owner, flags=want.flags,
    )  # fmt: skip


def flock_of(export: Export, want: Want) -> FlockRequest:
    """A record lock as `export` wants it."""
    return FlockRequest((export, want.owner), want.handle, want.pid, want.mode, want.start, want.end)


def said_of_flock(request: FlockRequest, status: int, flags: int) -> Granted:
    """What its owner hears of a record lock: `flags`, or with a `status` that there is none."""
    return Granted(
        request.handle, status, request.resource.id, request.mode, flags if not status else 0, 0, request.start,
        request.end, request.pid, None,
    )  # fmt: skip


def owner_name(owner: Any) -> str:
    """For messages: the client's UUID."""
    return owner if owner is LOCAL else owner.uuid
