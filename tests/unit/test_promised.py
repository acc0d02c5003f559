"""Promised locks against a lock server in memory: served, told of, refused, forsaken, replayed, lost."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest
from lock_server import DELAY_S, LVB, FakeImport, LockServer

from lustrelite.errors import Evicted, OpError
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.lru import Holding
from lustrelite.ldlm.policy import EOF
from lustrelite.ldlm.promised import TOGETHER_MAX
from lustrelite.wire.ldlm import BLOCK_GRANTED, PR, PROMISED, PW, REPLAYED, UNTOUCHED
from lustrelite.wire.locks import Cancel, Enqueue


def obj(number: int) -> bytes:
    return number.to_bytes(8, "big")


async def quiet() -> None:
    """Everything that is on its way has arrived."""
    await asyncio.sleep(50 * DELAY_S)


class Bench:
    """A client with its hooks recorded."""

    def __init__(self) -> None:
        self.server = LockServer()
        self.server.lvb = UNTOUCHED
        self.a, self.b = self.server.add(), self.server.add()
        self.locks, self.promised = self.a.locks, self.a.locks.promised
        self.ground = True
        self.promised.ground = lambda: self.ground
        self.heard: list[int] = []
        self.pointless: list[int] = []
        self.dropped: list[tuple[int, bool]] = []
        self.promised.heard = lambda lock: self.heard.append(lock.handle)
        self.promised.pointless = lambda lock: self.pointless.append(lock.handle)
        self.locks.drop = lambda lock, lost: self.dropped.append((lock.handle, lost))

    def make(self, number: int = 1) -> ClientLock:
        """A promised lock, unused."""
        lock = self.promised.make(obj(number))
        self.locks.release(lock)
        return lock


async def test_a_promise_serves_without_a_word(sim: Any) -> None:
    bench = Bench()
    lock = bench.make()
    assert lock.lvb == UNTOUCHED
    for mode in (PR, PW):
        assert bench.locks.match_extent(obj(1), 10, 20, mode) is lock
    assert bench.promised.of(obj(1)) is lock and bench.promised.of(obj(2)) is None
    await quiet()
    assert not bench.server.calls and not bench.server.holds(bench.a)


async def test_who_asks_for_one_takes_the_oldest_others_along(sim: Any) -> None:
    bench = Bench()
    locks = [bench.make(number) for number in range(1, TOGETHER_MAX + 11)]
    await bench.promised.redeem(locks[-1].handle)
    assert bench.server.count(Enqueue) == 1
    told = [*locks[: TOGETHER_MAX - 1], locks[-1]]
    assert sorted(bench.heard) == sorted(lock.handle for lock in told) == sorted(bench.server.holds(bench.a))
    await bench.promised.redeem(locks[0].handle)  # it has been
    assert bench.server.count(Enqueue) == 1
    bench.promised.redeem_soon(lock.handle for lock in locks)
    await quiet()
    assert not bench.promised.unheard and bench.server.count(Enqueue) == 2


async def test_two_who_wait_for_one_ask_once(sim: Any) -> None:
    bench = Bench()
    lock = bench.make()
    await asyncio.gather(*[bench.promised.redeem(lock.handle) for _ in range(2)])
    assert bench.server.count(Enqueue) == 1


async def test_without_its_ground_it_is_told_before_it_serves(sim: Any) -> None:
    bench = Bench()
    lock = bench.make()
    bench.ground = False
    assert bench.locks.match_extent(obj(1), 0, 9, PR) is None and not bench.locks.serves(lock)
    assert await bench.locks.take_extent(obj(1), 0, 9, PR) is lock
    assert bench.locks.serves(lock) and bench.heard == [lock.handle]


async def test_a_glimpse_of_its_object_tells_of_it_first(sim: Any) -> None:
    bench = Bench()
    bench.make()
    await bench.locks.glimpse([obj(1), obj(2)])
    assert bench.heard and not bench.promised.unheard
    assert isinstance(bench.server.calls[0], Enqueue) and len(bench.server.calls[0].wants) == 1


async def test_an_object_that_is_gone_makes_it_pointless(sim: Any) -> None:
    bench = Bench()
    lock = bench.make()
    bench.server.missing.add(obj(1))
    with pytest.raises(OpError) as caught:
        await bench.promised.redeem(lock.handle)
    assert caught.value.errno == errno.ENOENT
    assert bench.pointless == [lock.handle] and bench.dropped == [(lock.handle, True)]
    assert lock.holding is Holding.CANCELLED and not bench.locks.lock_count


async def test_somebody_in_the_way_is_like_an_eviction(sim: Any) -> None:
    """We do not wait for him: he may have seen, and changed, what was ours."""
    bench = Bench()
    lock = bench.make()
    other = await bench.b.locks.take_extent(obj(1), 0, EOF, PR)
    with pytest.raises(Evicted):
        await bench.promised.redeem(lock.handle)
    assert bench.dropped == [(lock.handle, True)] and not bench.pointless
    bench.b.locks.release(other)
    bench.b.locks.cancel(other)
    await quiet()
    assert not bench.server.holds(bench.a)


async def test_who_takes_it_when_it_is_lost_gets_another_one(sim: Any) -> None:
    bench = Bench()
    lock = bench.make()
    bench.ground = False
    other = await bench.b.locks.take_extent(obj(1), 0, EOF, PR)
    bench.b.locks.release(other)
    found = await bench.locks.take_extent(obj(1), 0, 9, PW)
    assert found is not lock and found.handle not in bench.promised.unheard
    assert bench.dropped == [(lock.handle, True)]


async def test_one_that_is_forsaken_is_lost_when_it_is_told_and_kept_when_it_is_replayed(sim: Any) -> None:
    bench = Bench()
    told, replayed = bench.make(1), bench.make(2)
    for lock in (told, replayed):
        bench.promised.forsake(lock)
        assert bench.locks.match_extent(lock.resource, 0, 9, PR) is None
        bench.locks.use(lock)  # else it is dropped before a replay
    wants = [want for want in bench.locks.wants_to_replay() if want.handle == replayed.handle]
    assert [want.flags for want in wants] == [REPLAYED | BLOCK_GRANTED | PROMISED]
    bench.promised.replayed([replayed.handle])
    assert not bench.locks.serves(replayed)
    await quiet()
    assert bench.heard == [replayed.handle] and bench.locks.serves(replayed)  # the other one has gone along
    assert bench.dropped == [(told.handle, True)] and told.handle not in bench.server.holds(bench.a)


@pytest.mark.parametrize("in_time", [True, False])
@pytest.mark.parametrize("already", [True, False])
async def test_what_is_lost_with_sole_is_salvaged_within_the_lease(sim: Any, in_time: bool, already: bool) -> None:
    bench = Bench()
    lock = bench.make()
    if already:
        bench.promised.redeem_soon([lock.handle])
    bench.a.block()
    bench.promised.salvage(lock, asyncio.get_running_loop().time() + 5)
    assert bench.locks.serves(lock)
    await asyncio.sleep(1 if in_time else 6)
    assert bench.locks.serves(lock) is in_time
    bench.a.unblock()
    await quiet()
    assert (bench.dropped == []) is in_time and (lock.handle in bench.server.holds(bench.a)) is in_time
    await asyncio.sleep(10)
    assert (bench.dropped == []) is in_time


async def test_what_is_lost_with_sole_after_the_lease_is_lost(sim: Any) -> None:
    bench = Bench()
    lock = bench.make()
    bench.promised.salvage(lock, 0)
    await quiet()
    assert bench.dropped == [(lock.handle, True)] and not bench.server.holds(bench.a)


async def test_it_is_given_back_before_or_while_it_is_told(sim: Any) -> None:
    bench = Bench()
    early, late = bench.make(1), bench.make(2)
    bench.locks.cancel(early)
    assert early.handle not in bench.promised.unheard
    waiting = asyncio.ensure_future(bench.promised.redeem(late.handle))
    await asyncio.sleep(0)
    bench.locks.cancel(late)
    with pytest.raises(Evicted):
        await waiting
    await quiet()
    assert not bench.server.holds(bench.a) and bench.server.count(Cancel) >= 1


async def test_an_eviction_takes_them_all(sim: Any) -> None:
    bench = Bench()
    locks = [bench.make(number) for number in (1, 2)]
    bench.server.evict(bench.a)
    assert not bench.promised.unheard and bench.dropped == [(lock.handle, True) for lock in locks]


async def test_a_server_that_refuses_the_request_leaves_the_promise(sim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be asked again: only who needed it now is told."""
    bench = Bench()
    lock = bench.make()

    async def refuse(_: Any, what: Any, **__: Any) -> Any:
        raise OpError(errno.EIO, "away")

    with monkeypatch.context() as patch:
        patch.setattr(FakeImport, "call", refuse)
        with pytest.raises(OpError):
            await bench.promised.redeem(lock.handle)
    assert bench.promised.of(obj(1)) is lock and bench.locks.match_extent(obj(1), 0, 1, PW) is lock
    await bench.promised.redeem(lock.handle)
    assert bench.heard == [lock.handle]


@pytest.mark.parametrize("forsaken", [True, False])
async def test_an_object_that_somebody_has_written_to_breaks_it(sim: Any, forsaken: bool) -> None:
    """He has gone again: his lock is not in the way any more, but what he wrote is there."""
    bench = Bench()
    bench.server.lvb = LVB
    lock = bench.make()
    if forsaken:
        bench.promised.forsake(lock)
        bench.promised.replayed([lock.handle])
    with pytest.raises(Evicted):
        await bench.promised.redeem(lock.handle)
    await quiet()
    assert bench.dropped == [(lock.handle, True)] and not bench.server.holds(bench.a)
