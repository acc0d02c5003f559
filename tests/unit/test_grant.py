"""Grants on both sides: the client's count, the OST's promises, and that no write within a grant meets a full disk."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lustrelite.client.grant import Grant
from lustrelite.ids import make_fid
from lustrelite.ost import grant as ost_grant
from lustrelite.ost.grant import Grants, cost_of
from lustrelite.store.schema import ReplyRecord
from lustrelite.wire.ost import GRANT_BLOCK_BYTES as BLOCK
from lustrelite.wire.ost import Write, grant_bytes
from lustrelite.wire.session import FEATURE_GRANT, Connect

FILE = make_fid(0x200000401, 7)
GIB = 1 << 30


class FakeExport:
    def __init__(self, features: int) -> None:
        self.features = features


def export(features: int = FEATURE_GRANT) -> Any:
    return FakeExport(features)


def connect(claim: int = 0) -> Connect:
    return Connect("ost", "client", 1, 0, 0, 0, 0, 0, FEATURE_GRANT, "here", claim)


def write(offset: int, *, promised: bool = True) -> Write:
    return Write(1, offset, FILE, 0, 1, 0, promised)


# ---------------------------------------------------------------------------------------------------- the client


def test_what_is_dirty_is_reserved_until_it_is_written_or_forgotten() -> None:
    grant = Grant()
    assert not grant.reserve(BLOCK), "nothing was promised yet"
    grant.connected(4 * BLOCK)
    assert grant.reserve(3 * BLOCK) and not grant.reserve(2 * BLOCK)
    assert (grant.available, grant.reserved, grant.total) == (BLOCK, 3 * BLOCK, 4 * BLOCK)
    grant.used(2 * BLOCK, 0)  # written
    grant.change(-BLOCK)  # truncated
    assert (grant.available, grant.reserved) == (2 * BLOCK, 0)
    grant.used(0, 5 * BLOCK)
    assert grant.available == 7 * BLOCK
    assert grant.wish(10 * BLOCK) == 3 * BLOCK and grant.wish(BLOCK) == 0


def test_joining_dirty_ranges_needs_no_grant_even_if_there_is_none() -> None:
    grant = Grant()
    grant.connected(2 * BLOCK)
    assert grant.reserve(2 * BLOCK)
    grant.available = -BLOCK
    assert grant.reserve(0) and grant.reserve(-BLOCK)
    assert grant.available == 0


def test_a_reconnect_counts_what_is_dirty() -> None:
    grant = Grant()
    grant.connected(10 * BLOCK)
    assert grant.reserve(6 * BLOCK)
    assert grant.total == 10 * BLOCK, "what a Connect says"
    grant.connected(8 * BLOCK)
    assert grant.available == 2 * BLOCK
    grant.connected(0)  # evicted: it knows us no more. What was dirty is lost
    grant.change(-6 * BLOCK)
    assert grant.total == 0


def test_a_client_keeps_what_it_is_told_to_and_gives_back_the_rest() -> None:
    grant = Grant()
    grant.connected(10 * BLOCK)
    assert grant.reserve(3 * BLOCK)
    assert grant.give_back(4 * BLOCK) == 3 * BLOCK and grant.give_back(4 * BLOCK) == 0
    assert (grant.available, grant.reserved, grant.total) == (4 * BLOCK, 3 * BLOCK, 7 * BLOCK)


# ---------------------------------------------------------------------------------------------------- the OST


def test_a_new_client_gets_a_part_of_what_is_left_and_who_wants_none_gets_none() -> None:
    grants = Grants(lambda: 64 * GIB, int)
    assert grants.connected(export(), connect(claim=GIB), 0, known=False) == ost_grant.FIRST_BYTES
    assert grants.connected(export(0), connect(), 0, known=False) == 0
    full = Grants(lambda: 64 << 20, int)
    assert full.connected(export(), connect(), 0, known=False) == 1 << 20
    assert Grants(lambda: -5, int).connected(export(), connect(), 0, known=False) == 0


def test_a_write_uses_its_grant_up_and_brings_more() -> None:
    grants, client = Grants(lambda: 64 * GIB, int), export()
    first = grants.connected(client, connect(), 0, known=False)
    assert grants.covers(client, cost_of(write(100), 5000))
    assert cost_of(write(100), 5000) == 2 * BLOCK and cost_of(write(0, promised=False), 1 << 20) == 0
    given = grants.written(client, 2 * BLOCK, 1 << 20)
    assert given == 1 << 20
    assert grants.held[client] == grants.promised == first - 2 * BLOCK + given
    assert grants.written(client, 0, 0) == 0
    assert grants.held[client] == first - 2 * BLOCK + given, "a write through takes nothing of the grant"


def record(xid: int, transno: int, grant: int = 0) -> ReplyRecord:
    return ReplyRecord(xid, transno, 0, grant, (), 1)


def test_a_write_is_counted_once_however_often_it_is_answered() -> None:
    """Its cost and what it brought are the same on both sides, whether the answer or the connection was lost."""
    grants, client = Grants(lambda: 64 * GIB, int), export()
    grants.connected(client, connect(), 0, known=False)
    grants.connected(client, connect(claim=10 * BLOCK), 50, known=True)
    given = grants.written(client, BLOCK, 3 * BLOCK)
    assert given == 3 * BLOCK and grants.held[client] == 12 * BLOCK
    assert grants.written_before(client, BLOCK, record(7, 51, given)) == given, "only the answer was lost"
    assert grants.held[client] == 12 * BLOCK
    # The connection is lost with the answer: the client still counts the block, and knows nothing of what it was given.
    grants.connected(client, connect(claim=10 * BLOCK), 51, known=True)
    for _ in range(3):
        assert grants.written_before(client, BLOCK, record(7, 51, given)) == 0
        assert grants.held[client] == 9 * BLOCK
    assert grants.written_before(client, 0, record(8, 51)) == 0
    assert grants.held[client] == 9 * BLOCK
    grants.check()


def test_what_is_given_back_is_promised_to_nobody() -> None:
    grants, client = Grants(lambda: 64 * GIB, int), export()
    grants.connected(client, connect(claim=10 * BLOCK), 0, known=True)
    grants.given_back(client, 4 * BLOCK)
    assert grants.promised == grants.held[client] == 6 * BLOCK
    grants.given_back(client, 100 * BLOCK)
    grants.given_back(client, -5)
    assert not grants.promised and not grants.held
    grants.check()


def test_no_more_is_promised_than_is_kept() -> None:
    """Others on the same disk are faster."""
    room, wishes = 3 * BLOCK, list[int]()

    def keep(size: int) -> int:
        wishes.append(size)
        return min(size, room)

    grants, client, other = Grants(lambda: 64 * GIB, keep), export(), export()
    assert grants.connected(client, connect(), 0, known=False) == 3 * BLOCK
    assert grants.written(client, 0, 10 * BLOCK) == 0
    room = 5 * BLOCK
    assert grants.written(client, BLOCK, 10 * BLOCK) == 3 * BLOCK and grants.promised == 5 * BLOCK
    assert grants.connected(other, connect(7 * BLOCK), 1, known=True) == 7 * BLOCK, "he has accepted data"
    assert wishes[-1] == 12 * BLOCK
    grants.given_back(other, 7 * BLOCK)
    assert wishes[-1] == 5 * BLOCK
    grants.gone(client)
    assert wishes[-1] == 0


def test_nobody_gets_more_than_a_share_nor_more_than_the_bound() -> None:
    grants, client = Grants(lambda: 100 << 20, int), export()
    grants.connected(client, connect(), 0, known=False)
    before = grants.left
    assert grants.written(client, 0, 90 << 20) == before // 8 // BLOCK * BLOCK
    rich, greedy = Grants(lambda: 1000 * GIB, int), export()
    for _ in range(100):
        rich.written(greedy, 0, 100 * GIB)
    assert rich.held[greedy] == ost_grant.EXPORT_BYTES_MAX


def test_others_may_not_write_into_what_is_promised() -> None:
    space = 10 << 20
    grants, client = Grants(lambda: space, int), export()
    grants.connected(client, connect(claim=9 << 20), 0, known=True)
    assert grants.left == 1 << 20
    assert grants.take(1 << 20) and not grants.take((1 << 20) + 1)
    assert grants.covers(client, 9 << 20)
    assert not grants.covers(client, 10 << 20) and not grants.covers(client, cost_of(write(0, promised=False), 1))
    assert not grants.covers(export(), BLOCK), "who was promised nothing"
    grants.gone(client)
    assert grants.take(10 << 20), "what an evicted client was promised is free"
    assert not grants.promised and not grants.held


def test_a_client_is_believed_after_a_restart() -> None:
    grants, client = Grants(lambda: 1 << 20, int), export()
    assert grants.connected(client, connect(claim=50 << 20), 0, known=True) == 50 << 20
    assert grants.left < 0, "its data is accepted, whoever has filled the disk"
    assert not grants.take(1)
    assert grants.written(client, 1 << 20, 1 << 20) == 0
    assert grants.covers(client, 1 << 20)
    assert grants.connected(client, connect(claim=0), 0, known=True) == 0 and not grants.promised


@pytest.mark.parametrize("seed", range(60))
def test_what_a_client_accepts_always_finds_room(seed: int) -> None:
    """Several clients and one disk, lost answers, reconnects and a restart of the OST: ENOSPC only for writes through."""
    rng = random.Random(seed)
    disk = [rng.choice((4, 40, 400)) << 20]  # free bytes
    grants = Grants(lambda: disk[0], int)
    clients = [(export(), Grant()) for _ in range(3)]
    dirty: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    for who, grant in clients:
        grant.connected(grants.connected(who, connect(), 0, known=False))
    place = 0
    for _ in range(300):
        number = rng.randrange(3)
        who, grant = clients[number]
        kind = rng.choice(("dirty", "dirty", "flush", "flush", "through", "reconnect", "restart"))
        length = rng.choice((1, 5000, 100_000, 1 << 20))
        if kind == "dirty":
            if grant.reserve(grant_bytes(place, place + length)):
                dirty[number].append((place, length))
            place += length + rng.randrange(9000)
        elif kind == "flush" and dirty[number]:
            count = rng.choice((1, 1, 3))
            together, dirty[number] = dirty[number][:count], dirty[number][count:]
            cost = 0
            for offset, length in together:  # of one request
                cost += cost_of(write(offset), length)
            assert not cost or grants.covers(who, cost)
            disk[0] -= cost
            assert disk[0] >= 0, "what was accepted found no room"
            given = grants.written(who, cost, grant.wish(32 << 20))
            if rng.random() < 0.1:  # the answer is lost; what it gave is, too, until the next connect
                given = 0
            grant.used(cost, given)
        elif kind == "through":
            if grants.take(grant_bytes(place, place + length)):
                disk[0] -= grant_bytes(place, place + length)
                assert disk[0] >= grants.promised
                grants.written(who, 0, 0)
                place += length + 1
        elif kind == "reconnect" and rng.random() < 0.3:
            grant.connected(grants.connected(who, connect(grant.total), 0, known=True))
        elif kind == "restart" and rng.random() < 0.1:
            grants = Grants(lambda: disk[0], int)
            for other, theirs in clients:
                theirs.connected(grants.connected(other, connect(theirs.total), 0, known=True))
        assert grants.promised == sum(grants.held.values())
        for other, theirs in clients:
            assert grants.held.get(other, 0) >= theirs.total, "the OST keeps at least what the client counts on"
