"""flock(2) and fcntl(2) between clients: kept by the MDT, through closes, cancellations, restarts and evictions."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Callable, Coroutine
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN
from typing import Any

import pytest
from steps import EVICTION, refused, soon

from lustrelite.errors import Evicted, OpError
from lustrelite.ldlm.policy import EOF
from lustrelite.sim.cluster import Cluster
from lustrelite.tunables import Tunables
from lustrelite.wire.ldlm import PR, PW
from lustrelite.wire.locks import Enqueue


async def flock(file: Any, operation: int) -> None:
    """flock(2), on the client that has the file open."""
    await file.client.unrecorded(file.file.flock(operation))


async def lockf(file: Any, operation: int, start: int = 0, length: int = 0, **who: Any) -> None:
    """A record lock of fcntl(2)."""
    await file.client.unrecorded(file.file.lockf(operation, start, length, **who))


async def getlk(file: Any, operation: int, start: int = 0, length: int = 0, **who: Any) -> Any:
    """F_GETLK."""
    return await file.client.unrecorded(file.file.getlk(operation, start, length, **who))


def held(c: Any, *, bsd: bool) -> dict[str, list[tuple[int, int, int]]]:
    """What the MDT has: by client and owner number, the ranges."""
    names = {uuid: name for name, client in c.clients.items() for uuid in client.uuids}
    return {
        f"{names[owner[0].uuid]}{owner[1]}": [tuple(record) for record in records]
        for resource in c.mds.target().namespace.flocks.resources.values()
        if resource.bsd == bsd
        for owner, records in resource.records.items()
    }


def waiting(c: Any) -> int:
    """How many requests wait at the MDT."""
    return sum(len(resource.waiting) for resource in c.mds.target().namespace.flocks.resources.values())


async def still_waits(c: Any, task: asyncio.Task[Any]) -> None:
    """The MDT has put the request of `task` aside."""
    await c.until(lambda: waiting(c) > 0)
    assert not task.done()


async def two_files(c: Any) -> tuple[Any, Any]:
    """One file, open at both clients."""
    await c.a.create("/f")
    return await c.a.open("/f"), await c.b.open("/f")


async def one_waits(c: Any, lock: Callable[[Any, int], Coroutine[Any, Any, None]]) -> tuple[Any, Any, asyncio.Task[Any]]:
    """One file, open at both clients: a has locked all of it, b waits for that."""
    of_a, of_b = await two_files(c)
    await lock(of_a, LOCK_EX)
    wish = soon(lock(of_b, LOCK_EX))
    await still_waits(c, wish)
    return of_a, of_b, wish


async def test_readers_share_a_file_and_a_writer_has_it_alone(cluster: Any) -> None:
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await flock(of_a, LOCK_SH)
        await flock(of_b, LOCK_SH | LOCK_NB)
        with refused(errno.EWOULDBLOCK):
            await flock(of_b, LOCK_EX | LOCK_NB)
        # flock(2): the change of a lock is no atomic one, the old lock is gone
        assert held(c, bsd=True) == {"a1": [(0, EOF, PR)]}
        await c.fail(c.mds)
        await c.settle()
        assert held(c, bsd=True) == {"a1": [(0, EOF, PR)]}  # nor is it replayed
        await flock(of_a, LOCK_UN)
        await flock(of_b, LOCK_EX | LOCK_NB)
        with refused(errno.EWOULDBLOCK):
            await flock(of_a, LOCK_SH | LOCK_NB)
        await flock(of_b, LOCK_UN)
        assert not held(c, bsd=True)
        await of_a.close()
        await of_b.close()


async def test_who_waits_is_granted_when_the_holder_closes(cluster: Any) -> None:
    async with cluster() as c:
        of_a, of_b, wish = await one_waits(c, flock)
        await of_a.close()
        await wish
        assert held(c, bsd=True) == {"b1": [(0, EOF, PW)]}
        await of_b.close()
        assert not held(c, bsd=True)


async def test_two_open_files_of_one_client_are_two_owners_of_flock(cluster: Any) -> None:
    async with cluster(clients=1) as c:
        await c.a.create("/f")
        first, second = await c.a.open("/f"), await c.a.open("/f")
        await flock(first, LOCK_EX)
        with refused(errno.EWOULDBLOCK):
            await flock(second, LOCK_SH | LOCK_NB)
        wish = soon(flock(second, LOCK_SH))
        await still_waits(c, wish)
        await flock(first, LOCK_UN)
        await wish
        await first.close()
        assert held(c, bsd=True) == {"a2": [(0, EOF, PR)]}
        await second.close()


async def test_records_are_cut_joined_and_shown(cluster: Any) -> None:
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await lockf(of_a, LOCK_EX, 0, 100, pid=7)
        await lockf(of_a, LOCK_UN, 40, 20)
        assert held(c, bsd=False) == {"a0": [(0, 39, PW), (60, 99, PW)]}
        await lockf(of_b, LOCK_EX | LOCK_NB, 40, 20)
        with refused(errno.EAGAIN):
            await lockf(of_b, LOCK_SH | LOCK_NB, 30, 20)
        found = await getlk(of_b, LOCK_SH, 50)
        assert found == (PW, 60, 99, 7)
        assert await getlk(of_b, LOCK_EX, 100) is None
        assert await getlk(of_a, LOCK_EX, 0, 39) is None  # his own is not in his way
        await lockf(of_b, LOCK_UN)
        await lockf(of_a, LOCK_SH, 20, 60)
        assert held(c, bsd=False) == {"a0": [(0, 19, PW), (20, 79, PR), (80, 99, PW)]}
        await of_a.close()
        assert not held(c, bsd=False)
        await of_b.close()


async def test_any_close_of_the_file_ends_the_records_of_its_owner(cluster: Any) -> None:
    """fcntl(2)'s well-known trap; but only of that owner."""
    async with cluster(clients=1) as c:
        await c.a.create("/f")
        first, second, third = [await c.a.open("/f") for _ in range(3)]
        third.file.lock_owner = 9
        await lockf(first, LOCK_EX, 0, 10)
        await lockf(third, LOCK_EX, 10, 10)
        await second.close()
        assert held(c, bsd=False) == {"a9": [(10, 19, PW)]}
        await third.close()
        assert not held(c, bsd=False)
        await first.close()


async def test_a_record_lock_needs_the_file_open_for_it(cluster: Any) -> None:
    async with cluster(clients=1) as c:
        await c.a.create("/f")
        file = await c.a.unrecorded(c.a.fs.open("/f"))
        await c.a.unrecorded(file.lockf(LOCK_SH))
        with refused(errno.EBADF):
            await c.a.unrecorded(file.lockf(LOCK_EX))
        for bad in (0, LOCK_SH | LOCK_EX):
            with refused(errno.EINVAL):
                await c.a.unrecorded(file.flock(bad))
        for start, length in ((-1, 1), (0, -1), (EOF, 2)):
            with refused(errno.EINVAL):
                await c.a.unrecorded(file.lockf(LOCK_SH, start, length))
        await c.a.unrecorded(file.close())
        with refused(errno.EBADF):
            await c.a.unrecorded(file.flock(LOCK_SH))


@pytest.mark.lustre("SN 74")
async def test_a_deadlock_between_two_clients_is_refused(cluster: Any) -> None:
    """Source: lustre/tests/sanityn.sh test_74"""
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await lockf(of_a, LOCK_EX, 0, 10)
        await lockf(of_b, LOCK_EX, 10, 10)
        wish = soon(lockf(of_a, LOCK_EX, 10, 10))
        await still_waits(c, wish)
        with refused(errno.EDEADLK):
            await lockf(of_b, LOCK_EX, 0, 10)
        await lockf(of_b, LOCK_UN, 10, 10)
        await wish
        assert held(c, bsd=False) == {"a0": [(0, 19, PW)]}
        await of_a.close()
        await of_b.close()


async def test_a_deadlock_closed_by_a_grant_is_told_to_who_waits(cluster: Any) -> None:
    """An owner with two threads waits and holds at once: its second grant closes the circle."""
    async with cluster(clients=2) as c:
        of_a, of_b = await two_files(c)
        await lockf(of_b, LOCK_EX, 0, 10)
        first = soon(lockf(of_a, LOCK_EX, 0, 10))  # a waits for b
        await still_waits(c, first)
        third = await c.a.open("/f")
        third.file.lock_owner = 5
        await lockf(third, LOCK_EX, 20, 10)
        second = soon(lockf(of_a, LOCK_EX, 20, 10))  # a waits for a's other owner, too
        await c.until(lambda: waiting(c) == 2)
        wish = soon(lockf(of_b, LOCK_EX, 20, 10))  # b waits for that owner
        await c.until(lambda: waiting(c) == 3)
        await lockf(third, LOCK_UN)  # a gets it: b waits for a, who waits for b
        await second
        with refused(errno.EDEADLK):
            await wish
        await lockf(of_b, LOCK_UN)
        await first
        for file in (of_a, of_b, third):
            await file.close()


# giving up ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_wish_leaves_nothing_behind(cluster: Any) -> None:
    async with cluster() as c:
        of_a, of_b, wish = await one_waits(c, lockf)
        wish.cancel()
        await c.until(lambda: not waiting(c))
        await lockf(of_a, LOCK_UN)
        await lockf(of_a, LOCK_EX | LOCK_NB)
        await of_a.close()
        await of_b.close()


@pytest.mark.parametrize("step", range(12))
async def test_a_wish_cancelled_while_it_is_granted_changes_nothing(cluster: Any, step: int) -> None:
    """Whichever comes first at the MDT, the cancel or the grant: what the owner had before is what he has."""
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await lockf(of_a, LOCK_SH, 0, 20)
        await lockf(of_b, LOCK_SH, 0, 10)
        wish = soon(lockf(of_b, LOCK_EX, 0, 30))
        await still_waits(c, wish)
        unlock = soon(lockf(of_a, LOCK_UN))
        await asyncio.sleep(step * 0.00003)
        wish.cancel()
        await unlock
        await asyncio.gather(wish, return_exceptions=True)
        await c.settle()
        assert held(c, bsd=False) == {"b0": [(0, 9, PR)] if wish.cancelled() else [(0, 29, PW)]}
        assert not waiting(c)
        await of_a.close()
        await of_b.close()


async def test_a_wish_cancelled_in_the_turn_of_its_grant_leaves_what_was_before(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has written down what was granted, and nobody was told of it."""
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await lockf(of_a, LOCK_SH, 0, 20)
        await lockf(of_b, LOCK_SH, 0, 10)
        wish = soon(lockf(of_b, LOCK_EX, 0, 30))
        await still_waits(c, wish)
        flocks = c.b.fs.connections.flocks
        completed = flocks.completed

        def completed_and_cancelled(granted: Any) -> Any:
            status = completed(granted)
            wish.cancel()
            return status

        monkeypatch.setattr(flocks, "completed", completed_and_cancelled)
        await lockf(of_a, LOCK_UN)
        await asyncio.wait([wish])
        assert wish.cancelled()
        await c.settle()
        assert held(c, bsd=False) == {"b0": [(0, 9, PR)]}
        await of_a.close()
        await of_b.close()


@pytest.mark.parametrize("step", range(1, 12))
@pytest.mark.parametrize(("before", "after"), [(LOCK_SH, LOCK_EX), (LOCK_EX, LOCK_SH)])
async def test_a_change_cancelled_on_its_way_is_made_or_not(cluster: Any, before: int, after: int, step: int) -> None:
    """What the owner had, or what he asked for: never less, and the MDT has what the client believes that he has.

    A lock that was made weaker is perhaps shared with somebody else before it can be made stronger again.
    """
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await lockf(of_a, before, 0, 10)
        wish = soon(lockf(of_b, LOCK_SH, 0, 5)) if before == LOCK_EX else None
        if wish is not None:
            await still_waits(c, wish)
        change = soon(lockf(of_a, after, 0, 20))
        await asyncio.sleep(step * 0.00003)
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)
        await c.settle()
        found = held(c, bsd=False)["a0"]
        modes = {LOCK_SH: PR, LOCK_EX: PW}
        assert found in ([(0, 9, modes[before])], [(0, 19, modes[after])], [(0, 9, modes[after])])
        assert [d["records"] for d in c.a.fs.connections.flocks.describe()] == [found]
        await of_a.close()
        if wish is not None:
            await wish
        await of_b.close()
        assert held(c, bsd=False) == {}


async def test_a_wish_ends_when_its_file_is_closed(cluster: Any) -> None:
    async with cluster() as c:
        of_a, of_b, wish = await one_waits(c, flock)
        await of_b.close()
        with refused(errno.EBADF):
            await wish
        assert not waiting(c)
        await of_a.close()


async def test_who_closes_a_file_holds_nothing_for_who_locks_it_then(cluster: Any) -> None:
    """Although the MDT hears of the release later than of the new lock: its message was lost."""
    async with cluster(clients=1) as c:
        await c.a.create("/f")
        first, second = await c.a.open("/f"), await c.a.open("/f")
        await flock(first, LOCK_EX)
        lost = c.drop_request(Enqueue)
        closing = soon(first.close())
        await lost.caught()
        await flock(second, LOCK_EX | LOCK_NB)
        await closing
        await second.close()


# failures -------------------------------------------------------------------------------------------------------


async def test_a_lost_answer_to_a_lock_is_asked_for_again(cluster: Any) -> None:
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        c.drop_reply(Enqueue)
        await lockf(of_a, LOCK_EX, 0, 10)
        c.drop_request(Enqueue)
        await lockf(of_a, LOCK_UN, 5, 5)
        c.saw("import.resent", client=c.a, times=2)
        assert held(c, bsd=False) == {"a0": [(0, 4, PW)]}
        await of_a.close()
        await of_b.close()


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_lost_completion_comes_again(cluster: Any, lost: int) -> None:
    async with cluster() as c:
        of_a, of_b, wish = await one_waits(c, flock)
        c.faults.arm("ldlm.cp_callback", "drop", on=c.mds, times=lost)
        await flock(of_a, LOCK_UN)
        await wish
        c.saw("callback.resent", times=lost)
        await of_a.close()
        await of_b.close()


async def test_locks_and_wishes_survive_a_restart_of_the_mds(cluster: Any) -> None:
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await flock(of_a, LOCK_EX)
        await lockf(of_a, LOCK_SH, 0, 10)
        await lockf(of_a, LOCK_EX, 10, 10)
        await lockf(of_b, LOCK_SH, 5, 5)
        whole, part = soon(flock(of_b, LOCK_EX)), soon(lockf(of_b, LOCK_EX, 15, 10))
        await c.until(lambda: waiting(c) == 2)
        before = held(c, bsd=True), held(c, bsd=False)
        await c.fail(c.mds)
        await c.settle()
        assert (held(c, bsd=True), held(c, bsd=False)) == before
        assert waiting(c) == 2 and not whole.done() and not part.done()
        with refused(errno.EWOULDBLOCK):
            await lockf(of_a, LOCK_EX | LOCK_NB, 0, 10)
        await flock(of_a, LOCK_UN)
        await whole
        await lockf(of_a, LOCK_UN)
        await part
        assert held(c, bsd=False) == {"b0": [(5, 9, PR), (15, 24, PW)]}
        await of_a.close()
        await of_b.close()


@pytest.mark.parametrize("operation", [LOCK_EX, LOCK_UN])
async def test_a_change_that_was_on_its_way_when_the_mds_died_is_made(cluster: Any, operation: int) -> None:
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await lockf(of_a, LOCK_SH, 0, 10)
        lost = c.drop_reply(Enqueue)
        change = soon(lockf(of_a, operation, 5, 10))
        await lost.caught()
        await c.fail(c.mds)
        await change
        changed = [(0, 4, PR)] + ([(5, 14, PW)] if operation == LOCK_EX else [])
        assert held(c, bsd=False) == {"a0": changed}
        await of_a.close()
        await of_b.close()


async def test_a_grant_that_was_lost_with_the_mds_is_made_by_the_next_one(cluster: Any) -> None:
    """The unlock was executed, the waiter never heard of his grant: he is replayed as waiting, the other as nothing."""
    async with cluster() as c:
        of_a, of_b, wish = await one_waits(c, flock)
        c.faults.arm("ldlm.cp_callback", "drop", on=c.mds)
        await flock(of_a, LOCK_UN)
        assert not wish.done()
        await c.fail(c.mds)
        await wish
        assert held(c, bsd=True) == {"b1": [(0, EOF, PW)]}
        await of_a.close()
        await of_b.close()


async def test_the_locks_of_an_evicted_client_go_to_who_waits(cluster: Any) -> None:
    async with cluster(clients=3) as c:
        c.expect(*EVICTION)
        of_a, of_b = await two_files(c)
        of_c = await c.c.open("/f")
        await lockf(of_a, LOCK_EX, 0, 10)
        await lockf(of_c, LOCK_EX, 20, 10)
        wish, lost = soon(lockf(of_b, LOCK_EX, 0, 10)), soon(lockf(of_a, LOCK_EX, 20, 10))
        await c.until(lambda: waiting(c) == 2)
        await c.evict(c.a)
        await wish
        with pytest.raises(Evicted):
            await lost
        assert held(c, bsd=False) == {"b0": [(0, 9, PW)], "c0": [(20, 29, PW)]}
        await c.settle()
        with refused(errno.EAGAIN):  # it has nothing any more, and is one among others
            await lockf(of_a, LOCK_EX | LOCK_NB, 0, 10)
        await lockf(of_b, LOCK_UN)
        await lockf(of_a, LOCK_EX, 0, 10)
        for file in (of_a, of_b, of_c):
            await file.close()


async def test_an_unmount_gives_back_what_is_held_and_waited_for(cluster: Any) -> None:
    async with cluster() as c:
        of_a, of_b = await two_files(c)
        await flock(of_a, LOCK_EX)
        await lockf(of_b, LOCK_EX)
        wish = soon(flock(of_b, LOCK_EX))
        await still_waits(c, wish)
        await c.b.unmount()
        await asyncio.gather(wish, return_exceptions=True)
        assert held(c, bsd=True) == {"a1": [(0, EOF, PW)]} and not held(c, bsd=False)
        await of_a.close()


@pytest.mark.parametrize("seed", range(12))
async def test_what_a_client_believes_to_hold_is_what_the_mds_has(sim: Any, seed: int) -> None:
    """Several owners of two clients lock, change, unlock, wait and give up at random, through lost messages and restarts.

    Whoever holds a range exclusively has it alone; at the end both ends agree range by range.
    """
    draw = random.Random(seed)
    async with Cluster(seed=seed, clients=2) as c:
        await c.a.create("/f")
        files = [await client.open("/f") for client in (c.a, c.b) for _ in range(2)]
        exclusive: dict[int, int] = {}  # byte -> owner who has it for himself

        async def owner(number: int) -> None:
            file = files[number % len(files)]
            for _ in range(40):
                operation = draw.choice((LOCK_SH, LOCK_EX, LOCK_EX, LOCK_UN, LOCK_UN)) | draw.choice((0, LOCK_NB))
                start, length = draw.randrange(12), draw.randrange(1, 8)
                if operation & LOCK_UN and draw.random() < 0.7:
                    start, length = 0, 20
                touched = range(start, start + length)
                mine = [byte for byte in touched if exclusive.get(byte) == number]
                if operation & ~LOCK_NB != LOCK_EX:
                    for byte in mine:
                        del exclusive[byte]
                try:
                    async with asyncio.timeout(draw.choice((0.001, 0.02, 1.0, 5.0))):
                        await lockf(file, operation, start, length, owner=number)
                except (TimeoutError, OpError) as error:
                    assert isinstance(error, TimeoutError) or error.errno in (errno.EAGAIN, errno.EDEADLK)
                    continue
                if operation & ~LOCK_NB == LOCK_EX:
                    for byte in touched:
                        assert exclusive.setdefault(byte, number) == number, f"{byte} has two owners"
                await asyncio.sleep(draw.random() * 0.02)

        async def trouble() -> None:
            for _ in range(4):
                await asyncio.sleep(draw.random())
                act = draw.randrange(4)
                if act == 0:
                    await c.fail(c.mds)
                elif act == 1:
                    c.drop_reply(Enqueue)
                elif act == 2:
                    c.drop_request(Enqueue)
                else:
                    c.faults.arm("ldlm.cp_callback", "drop", on=c.mds)

        await asyncio.gather(trouble(), *[owner(number) for number in range(6)])
        await c.settle()
        believed = {
            f"{client.name}{holder['owner']}": holder["records"]
            for client in (c.a, c.b)
            for holder in client.fs.connections.flocks.describe()
        }
        assert held(c, bsd=False) == believed and not waiting(c)
        for number in range(6):
            await lockf(files[number % 4], LOCK_UN, owner=number)
        assert not held(c, bsd=False)
        assert not [holder for client in (c.a, c.b) for holder in client.fs.connections.flocks.describe()]
        for file in files:
            await file.close()


@pytest.mark.parametrize("late", ["first", "second"])
async def test_a_second_copy_of_a_request_gets_no_lock_that_nobody_knows_of(cluster: Any, late: str) -> None:
    """Refused, it would be granted when its other copy comes; the client has its answer. Source: coherence seed 1501762

    Either copy may be the late one: the first, on its way, or the second, to a server that was slow to answer.
    """
    async with cluster(clients=2, caching=1) as c:
        a, b = await two_files(c)
        await lockf(a, LOCK_EX)
        copy = c.net.hold(Enqueue, source=c.b, to=c.mds, times=1, skip=int(late == "second"))
        if late == "second":
            c.net.slow(Enqueue, source=c.mds, to=c.b, reply=True, delay_s=1.4 * Tunables().rpc_timeout_s)
        with refused(errno.EWOULDBLOCK):
            await lockf(b, LOCK_EX | LOCK_NB)
        await lockf(a, LOCK_UN)
        assert copy.held
        copy.release()
        await asyncio.sleep(1.0)
        assert held(c, bsd=False) == {}
        await lockf(a, LOCK_EX | LOCK_NB)


async def test_a_late_copy_of_a_request_that_was_answered_long_ago_locks_nothing(cluster: Any) -> None:
    """The client has said that it has the answer, so it is kept no longer; and the lock has been released."""
    async with cluster(clients=2) as c:
        a, b = await two_files(c)
        c.net.double(Enqueue, source=c.a, to=c.mds, delay_s=2.0)
        await lockf(a, LOCK_EX)
        await lockf(a, LOCK_UN)
        await asyncio.sleep(2.5)
        assert held(c, bsd=False) == {}
        await lockf(b, LOCK_EX | LOCK_NB)
        c.saw("request.dropped", op="Enqueue", why="answered long ago")
