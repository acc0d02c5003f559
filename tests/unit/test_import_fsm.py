"""The import's states: legal edges only, and every answer of a server leads where the facts say."""

from __future__ import annotations

import pytest

from lustrelite.recovery.import_fsm import LEGAL, ImportFsm, State
from lustrelite.wire.session import (
    CONNECT_RECONNECT,
    CONNECT_RECOVERING,
    CONNECT_REPLAYABLE,
    ConnectReply,
)

RP, RC, RE = CONNECT_REPLAYABLE, CONNECT_RECONNECT, CONNECT_RECOVERING


def reply(handle: int, flags: int = 0, instance: int = 1) -> ConnectReply:
    return ConnectReply(handle, flags | RP, 0, instance, 8, 1 << 20, 0, 0, 0)


def full() -> ImportFsm:
    fsm = ImportFsm("lustre-MDT0000", 0.0)
    fsm.connecting(0.0)
    assert fsm.on_connect_reply(reply(7), 0.0) is State.FULL
    return fsm


def reconnect(fsm: ImportFsm, answer: ConnectReply) -> State:
    assert fsm.lost(0, 1.0)
    fsm.connecting(2.0)
    return fsm.on_connect_reply(answer, 3.0)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (reply(7, RC), State.RECOVER),  # our export is alive: resend only
        (reply(8, RC), State.EVICTED),  # a new export: we were evicted
        (reply(8, RE, 2), State.REPLAY),  # a new incarnation that has our record
        (reply(8, RC | RE, 2), State.REPLAY),  # it restarted twice
        (reply(7, RC | RE), State.REPLAY),
        (reply(8, 0, 2), State.EVICTED),  # it does not know us
    ],
)
def test_a_reconnect_is_read_as_lustre_reads_it(answer: ConnectReply, state: State) -> None:
    assert reconnect(full(), answer) is state


def test_a_server_without_client_records_evicts_nobody() -> None:
    answer = ConnectReply(9, 0, 0, 2, 8, 0, 0, 0, 0)
    assert reconnect(full(), answer) is State.RECOVER


def test_recovery_goes_on_at_the_stage_it_reached() -> None:
    """Source: LU-5651"""
    fsm = full()
    assert reconnect(fsm, reply(8, RE, 2)) is State.REPLAY
    assert reconnect(fsm, reply(8, RC | RE, 2)) is State.REPLAY
    fsm.to(State.REPLAY_LOCKS, 4.0)
    fsm.to(State.REPLAY_WAIT, 5.0)
    assert reconnect(fsm, reply(8, RC | RE, 2)) is State.REPLAY_LOCKS
    assert reconnect(fsm, reply(9, RE, 3)) is State.REPLAY, "a new incarnation begins anew"


def test_late_news_of_an_older_connection_tears_nothing_down() -> None:
    fsm = full()
    reconnect(fsm, reply(7, RC))
    fsm.to(State.FULL, 4.0)
    assert not fsm.lost(1, 5.0)
    assert fsm.state is State.FULL
    assert fsm.lost(2, 6.0)
    assert not fsm.lost(2, 7.0), "once is enough"


def test_an_older_incarnation_is_refused() -> None:
    fsm = full()
    reconnect(fsm, reply(8, RE, 3))
    assert fsm.refuses(reply(9, RE, 2)) and not fsm.refuses(reply(9, RE, 3))


def test_closed_is_sticky() -> None:
    assert LEGAL[State.CLOSED] == frozenset()
    fsm = full()
    fsm.to(State.CLOSED, 1.0)
    with pytest.raises(AssertionError):
        fsm.to(State.CONNECTING, 2.0)
    assert not fsm.lost(0, 3.0)


def test_history_keeps_the_last_sixteen() -> None:
    fsm = full()
    for _ in range(20):
        reconnect(fsm, reply(7, RC))
        fsm.to(State.FULL, 4.0)
    assert len(fsm.history) == 16 and fsm.history[-1][1] is State.FULL
