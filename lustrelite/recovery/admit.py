"""What a server does with a request, as a table over what it knows of it.

    recovering  the target is in recovery
    replay      the request carries REPLAY
    resent      it carries RESENT
    saved       its reply record is at hand (of a replay: made by this incarnation of the server)
    twin        the same request is being executed, or queued, right now
    done        this client has already declared its replay done to this incarnation

Before the table come the checks that need no choice: unknown handle (ENOTCONN), older conn_cnt and xid at or below
the client's own last_xid (dropped in silence).  Source: ptlrpc_check_req(), tgt_request_handle(); facts 1.5, 3.5, 4.1.
"""

from __future__ import annotations

from enum import Enum
from itertools import product


class Admit(Enum):
    """The verdict."""

    EXECUTE = "execute"
    RECONSTRUCT = "rebuild the reply from the record"
    QUEUE = "keep until its turn in recovery"
    JOIN = "the twin's reply serves this one too"
    DROP = "a late duplicate: no answer"
    AGAIN = "answer EAGAIN: recovery first"
    EVICT = "a replay outside recovery: the client is not in step with us"


_: bool | None = None
T, F = True, False

#   recovering, replay, resent, saved, twin, done
ADMIT: list[tuple[tuple[bool | None, ...], Admit]] = [
    ((_, _, _, _, T, _), Admit.JOIN),
    ((F, F, F, F, F, _), Admit.EXECUTE),
    ((F, F, T, F, F, _), Admit.EXECUTE),  # the first copy never arrived
    ((F, F, T, T, F, _), Admit.RECONSTRUCT),
    ((F, F, F, T, F, _), Admit.DROP),  # answered already, the copy was late
    ((F, T, _, _, F, T), Admit.DROP),  # a replay that was late (LU-6655)
    ((F, T, _, _, F, F), Admit.EVICT),  # LU-178
    ((T, T, _, T, F, F), Admit.RECONSTRUCT),  # executed in this recovery, the reply was lost
    ((T, T, _, F, F, F), Admit.QUEUE),
    ((T, T, _, _, F, T), Admit.DROP),
    ((T, F, _, _, F, _), Admit.AGAIN),
]


def _look_up(case: tuple[bool, ...]) -> Admit:
    for row, verdict in ADMIT:
        if all(want is None or want == have for want, have in zip(row, case, strict=True)):
            return verdict
    raise AssertionError(case)


_VERDICTS = {case: _look_up(case) for case in product((F, T), repeat=6)}


def admit(recovering: bool, replay: bool, resent: bool, saved: bool, twin: bool, done: bool) -> Admit:
    """The verdict on a request."""
    return _VERDICTS[recovering, replay, resent, saved, twin, done]
