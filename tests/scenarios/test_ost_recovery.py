"""OSTs that restart: data that was answered and not durable, I/O that was under way, who is waited for and who is refused.

Where nothing else is said an OST is killed, and the clients cache.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest
from steps import ABORT, EVICTION, contents, refused, soon, touch

from lustrelite.errors import Evicted
from lustrelite.wire.ost import Destroy, Read, Write
from lustrelite.wire.session import Connect

MIB = 1 << 20
PLACES = 4


def data(size: int, salt: int = 0) -> bytes:
    """Bytes that say where they are."""
    return b"".join((at + salt).to_bytes(8, "big") for at in range(0, size, 8))[:size]


def dirty_bytes(client: Any) -> int:
    """What the client has not written back."""
    return sum(osc.data.grant.reserved for osc in client.fs.connections.lov.oscs.values() if osc.data is not None)


@pytest.mark.lustre("OST 0b")
async def test_an_ost_restarts_with_nothing_to_replay(world: Any) -> None:
    """Source: lustre/tests/replay-ost-single.sh test_0b"""
    async with world(clients=1, oss=1) as c:
        await c.fail(c.oss[0])
        await c.a.write("/f", data(300_000))
        await c.fail(c.oss[0])
        assert await c.a.read("/f") == data(300_000)
        c.saw("recovery.over", target=c.oss[0], evicted=0, times=2)


@pytest.mark.lustre("OST 3")
async def test_an_ost_fails_in_the_middle_of_a_long_write(world: Any) -> None:
    """What it had answered is replayed, the rest is resent.  Source: lustre/tests/replay-ost-single.sh test_3"""
    async with world(clients=2, oss=1) as c:
        await c.replay_barrier(c.oss[0])
        file = await c.a.open("/f", create=True)
        slow = c.net.slow(Write, to=c.oss[0], delay_s=0.2, times=-1)
        for at in range(0, 5 * MIB, MIB // 2):
            await file.pwrite(data(MIB // 2, at), at)
        await slow.caught(2)
        syncing = soon(file.fsync())
        await c.oss[0].kill()
        await c.oss[0].start()
        await syncing
        assert await c.b.read("/f") == data(5 * MIB)
        await file.close()
        c.never_saw("import.evicted")


@pytest.mark.lustre("OST 4")
async def test_an_ost_fails_in_the_middle_of_a_long_read(world: Any) -> None:
    """Source: lustre/tests/replay-ost-single.sh test_4"""
    async with world(clients=2, oss=1) as c:
        await c.a.write("/f", data(5 * MIB))
        slow = c.net.slow(Read, to=c.oss[0], delay_s=0.2, times=-1)
        reading = soon(c.b.read("/f"))
        await slow.caught(2)
        await c.oss[0].kill()
        await c.oss[0].start()
        assert await reading == data(5 * MIB)
        c.never_saw("import.evicted")


async def restart_again_and_again(c: Any) -> None:
    """What was answered meanwhile is not durable each time."""
    for _ in range(4):
        await c.replay_barrier(c.oss[0])
        await asyncio.sleep(0.7)
        await c.oss[0].kill()
        await c.oss[0].start()
        await asyncio.sleep(0.3)


@pytest.mark.lustre("OST 5")
async def test_an_ost_fails_again_and_again_under_writes_rewrites_and_reads(world: Any) -> None:
    """As under iozone.  Source: lustre/tests/replay-ost-single.sh test_5"""
    async with world(clients=2, oss=1) as c:
        stop = False
        rounds = dict.fromkeys("ab", 0)

        async def work(name: str) -> None:
            client = c.clients[name]
            while not stop or rounds[name] < 3:
                salt = rounds[name]
                for start, size in ((0, 300_000), (MIB // 2, 150_000), (100, 77)):
                    await client.write(f"/{name}{salt % PLACES}", data(size, start))
                    await client.write_at(f"/{name}{salt % PLACES}", size // 2, data(size // 3, salt))
                    whole = bytearray(data(size, start))
                    whole[size // 2 : size // 2 + size // 3] = data(size // 3, salt)
                    assert await client.read(f"/{name}{salt % PLACES}") == whole
                rounds[name] += 1
                await asyncio.sleep(0.2)

        working = [soon(work(name)) for name in "ab"]
        await restart_again_and_again(c)
        stop = True
        await asyncio.gather(*working)
        c.never_saw("import.evicted")


@pytest.mark.lustre("RS 70f")
@pytest.mark.parametrize("direct", [0, 1], ids=["cached", "direct"])
async def test_clients_check_each_others_files_while_an_ost_restarts(world: Any, direct: int) -> None:
    """Source: lustre/tests/replay-single.sh test_70f"""
    async with world(clients=2, oss=1) as c:
        stop = False
        flag = os.O_DIRECT if direct else 0

        async def work(name: str, other: str) -> None:
            number = 0
            while not stop or number < 2:
                number += 1
                fs, peer = c.clients[name].fs, c.clients[other].fs
                file = await c.clients[name].unrecorded(fs.open(f"/{name}", os.O_CREAT | os.O_RDWR | flag, 0o644))
                await c.clients[name].unrecorded(file.pwrite(data(64 * 4096, number), 0))
                await c.clients[name].unrecorded(file.close())
                file = await c.clients[other].unrecorded(peer.open(f"/{name}", os.O_RDONLY | flag))
                assert await c.clients[other].unrecorded(file.pread(-1, 0)) == data(64 * 4096, number)
                await c.clients[other].unrecorded(file.close())
                await asyncio.sleep(0.05)

        working = [soon(work("a", "b")), soon(work("b", "a"))]
        await restart_again_and_again(c)
        stop = True
        await asyncio.gather(*working)
        c.never_saw("import.evicted")
        for name in "ab":
            await c.clients[name].unrecorded(c.clients[name].fs.unlink(f"/{name}"))


@pytest.mark.lustre("RS 87b")
async def test_data_that_was_written_twice_is_replayed_as_it_was_last(world: Any) -> None:
    """The second write overlaps the first, and both are replayed.  Source: lustre/tests/replay-single.sh test_87b"""
    async with world(clients=2, oss=1) as c:
        await c.replay_barrier(c.oss[0])
        file = await c.a.open("/f", create=True)
        await file.pwrite(data(8 * MIB // 4), 0)
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        await file.pwrite(b"new" * 5000, MIB - 700)
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        await c.fail(c.oss[0])
        c.saw("import.replayed", op="Write", times=4)
        await file.close()
        whole = bytearray(data(2 * MIB))
        whole[MIB - 700 : MIB - 700 + 15000] = b"new" * 5000
        assert await c.b.read("/f") == whole


@pytest.mark.lustre("RS 61a")
async def test_many_removals_behind_a_barrier_of_an_ost_that_restarts_twice(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_61a"""
    async with world(clients=1, oss=1) as c:
        await c.a.mkdir("/d")
        fs = c.a.fs
        for number in range(0, 800, 50):
            writes = [c.a.unrecorded(fs.write_file(f"/d/{i}", b"x")) for i in range(number, number + 50)]
            await asyncio.gather(*writes)
        await c.replay_barrier(c.oss[0])
        for number in range(0, 800, 50):
            await asyncio.gather(*[c.a.unrecorded(fs.unlink(f"/d/{i}")) for i in range(number, number + 50)])
        await c.fail(c.oss[0])
        await c.fail(c.oss[0])
        assert await c.a.listdir("/d") == []


@pytest.mark.lustre("RS 74")
async def test_an_ost_that_was_down_while_the_mds_failed_over_returns(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_74"""
    async with world(clients=2) as c:
        for client in (c.a, c.b):
            await client.unmount()
        await c.oss[0].stop()
        await c.mds.kill()
        await c.mds.start()
        for client in (c.a, c.b):
            await client.start()
        await c.oss[0].start()
        await c.settle()
        for number in range(6):
            await c.a.write(f"/f{number}", b"x")
            await c.b.unlink(f"/f{number}")
        c.never_saw("import.evicted")


@pytest.mark.lustre("RS 93a")
async def test_clients_stay_while_the_last_stage_of_an_osts_recovery_is_held(world: Any) -> None:
    """For 40 s.  Source: lustre/tests/replay-single.sh test_93a"""
    async with world(clients=2, oss=1) as c:
        await c.replay_barrier(c.oss[0])
        await c.a.write("/a", data(100_000))
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        await c.oss[0].kill()
        c.faults.arm("target.recovery_end", "delay", on=c.oss[0], keep=True, delay_s=40.0)
        c.expect("client.evicted")  # of the MGS: the OSS that was killed
        await c.oss[0].start()
        await c.settle()
        assert await c.b.read("/a") == data(100_000)
        c.never_saw("import.evicted")


@pytest.mark.lustre("RS 135")
async def test_an_ost_whose_lock_replay_fails_is_restarted_and_dirty_data_is_synced(world: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_135"""
    async with world(clients=1, oss=1, write_back_after_s=1000.0) as c:
        file = await c.a.open("/f", create=True)
        await file.pwrite(data(20 * 4096), 0)
        c.faults.arm("ldlm.replay", "drop", on=c.oss[0], keep=True, times=-1)
        await c.oss[0].kill()
        await c.oss[0].start()
        await asyncio.sleep(3.0)
        c.never_saw("recovery.over", target=c.oss[0], evicted=0, completed=2)
        c.faults.clear()
        await c.fail(c.oss[0])
        await file.fsync()
        assert await file.pread() == data(20 * 4096)
        await file.close()
        c.never_saw("import.evicted")


@pytest.mark.lustre("RS 41")
async def test_a_client_reads_of_one_ost_while_the_mds_does_without_another(cluster: Any) -> None:
    """Source: lustre/tests/replay-single.sh test_41"""
    async with cluster(clients=1) as c:
        paths: dict[int, str] = {}
        while len(paths) < 2:
            file = await c.a.open(path := f"/f{c.a._handles}", create=True)
            await file.pwrite(b"x" * 4096)
            await file.close()
            paths[file.file.layout.stripes[0][0]] = path
        osps = c.mds.target().allocator.osps
        osps[1].imp.deactivate()
        assert await c.a.read(paths[0]) == b"x" * 4096
        for number in range(6):  # nothing is put there
            file = await c.a.open(f"/new{number}", create=True)
            assert file.file.layout.stripes[0][0] == 0
            await file.close()
        osps[1].imp.activate()
        await c.settle()


@pytest.mark.lustre("OST 8b")
async def test_a_write_waits_while_the_ost_says_in_progress_and_through_its_failure(world: Any) -> None:
    """Source: lustre/tests/replay-ost-single.sh test_8a, test_8b"""
    async with world(clients=1, oss=1) as c:
        c.faults.arm("ost.write", "error", on=c.oss[0], keep=True, errno=errno.EINPROGRESS, times=-1)
        writing = soon(c.a.write("/f", data(200_000)))
        await writing
        syncing = soon(c.a.unrecorded(c.a.fs.sync()))
        await asyncio.sleep(6.0)
        assert not syncing.done()
        await c.oss[0].kill()
        await c.oss[0].start()
        await asyncio.sleep(2.0)
        assert not syncing.done()
        c.faults.clear()
        await syncing
        assert await c.a.read("/f") == data(200_000)
        c.never_saw("import.evicted")


@pytest.mark.lustre("OST 9")
async def test_replays_and_resends_bear_with_a_slow_recovery(world: Any) -> None:
    """Each replay takes longer than an answer normally may.  Source: lustre/tests/replay-ost-single.sh test_9"""
    async with world(clients=2, oss=1) as c:
        await c.replay_barrier(c.oss[0])
        await c.a.write("/a", data(MIB))
        await c.b.write("/b", data(MIB, 5))
        for client in (c.a, c.b):
            await client.unrecorded(client.fs.connections.lov.locked.flush_all())
        unanswered = soon(c.a.write("/more", data(MIB, 9)))
        slow_s = 1.2 * c.tunables.rpc_timeout_s
        await c.oss[0].kill()
        c.faults.arm("target.replay", "delay", on=c.oss[0], keep=True, times=2, delay_s=slow_s)
        await c.oss[0].start()
        await c.settle()
        await unanswered
        assert await contents(c.b, ["/a", "/b", "/more"]) == [data(MIB), data(MIB, 5), data(MIB, 9)]
        c.never_saw("import.evicted")
        c.never_saw("import.lost", why="Write timed out")


@pytest.mark.lustre("SM 16", "SM 17a")
@pytest.mark.parametrize("what", [Read, Write], ids=["read", "write"])
@pytest.mark.parametrize("reply", [False, True], ids=["request", "reply"])
async def test_lost_bulk_is_sent_again(world: Any, what: type, reply: bool) -> None:
    """Here data travels with its message: both are lost.  Source: lustre/tests/recovery-small.sh test_16, test_17a"""
    async with world(clients=2, oss=1) as c:
        lost = c.net.drop(what, reply=reply)
        await c.a.write("/f", data(MIB))
        assert await c.b.read("/f") == data(MIB)
        await lost.caught()
        await c.settle()
        c.never_saw("client.evicted")


@pytest.mark.lustre("SM 112a")
async def test_a_write_that_takes_so_long_that_it_is_sent_again_is_done_once(world: Any) -> None:
    """Source: lustre/tests/recovery-small.sh test_112a"""
    async with world(clients=2, oss=1) as c:
        c.faults.arm("ost.write", "delay", on=c.oss[0], delay_s=3 * c.tunables.rpc_timeout_s)
        await c.a.write("/f", data(300_000))
        await c.a.unrecorded(c.a.fs.sync())
        assert await c.b.read("/f") == data(300_000)
        c.never_saw("import.evicted")


@pytest.mark.lustre("SM 148")
@pytest.mark.parametrize("connection", ["stays", "breaks"])
async def test_a_write_that_comes_late_does_not_undo_a_newer_one(cluster: Any, connection: str) -> None:
    """The first copy is held until the second was answered and newer data written.

    Source: recovery-small.sh test_148
    """
    async with cluster(clients=2, oss=1, caching=0) as c:
        await c.a.write("/f", b"old" * 1000)
        held = c.net.hold(Write, to=c.oss[0], times=1)
        writing = soon(c.a.write_at("/f", 0, b"one" * 1000))
        await held.caught()
        if connection == "breaks":
            imp = c.a.fs.connections.imports["lustre-OST0000"]
            imp.connection_failed(0, "test")
        await writing
        await c.a.write_at("/f", 0, b"two" * 1000)
        held.release()
        await asyncio.sleep(1.0)
        assert await c.b.read("/f") == b"two" * 1000
        assert await c.a.read("/f") == b"two" * 1000


@pytest.mark.lustre("SM 156")
async def test_a_client_that_misses_the_hard_limit_takes_its_grant_along(cluster: Any) -> None:
    """The OST's sum of promises is what its clients have.  Source: lustre/tests/recovery-small.sh test_156"""
    async with cluster(clients=2, oss=1, recovery_time_hard_s=30.0) as c:
        c.expect(*EVICTION, "client.data_lost", "import.replay_failed")
        await c.replay_barrier(c.oss[0])
        file = await c.a.open("/f", create=True)
        await file.pwrite(data(MIB))
        await c.a.unrecorded(c.a.fs.connections.lov.locked.flush_all())
        c.faults.arm("client.replay", "delay", on=c.a, delay_s=45.0)
        await c.oss[0].kill()
        await c.oss[0].start()
        await c.settle()
        c.saw("client.evicted", target=c.oss[0], client=c.a.uuid)
        grants = c.oss[0].target().grants
        assert grants.promised == sum(grants.held.values())
        with refused(errno.EIO):
            await file.fsync()
        await file.close()
        await c.settle()
        ours = sum(osc.data.grant.total for osc in _oscs(c))
        assert grants.promised == sum(grants.held.values()) == ours


def _oscs(c: Any) -> list[Any]:
    return [osc for client in c.clients.values() for osc in client.fs.connections.lov.oscs.values()]


# -------------------------------------------------------------------------------------------- chapter 30.1.4, by sentence


async def test_a_plain_stop_of_an_ost_is_recovered_from(world: Any) -> None:
    """To force a recovery stop the target and start it: "If the OST was connected to clients before ..."."""
    async with world(clients=2, oss=1) as c:
        await c.a.write("/f", data(MIB))
        await c.oss[0].stop()
        reading = soon(c.b.read("/f"))
        await c.oss[0].start()
        assert await reading == data(MIB)
        await c.settle()
        c.saw("recovery.started", target=c.oss[0], clients=3)
        c.saw("recovery.over", target=c.oss[0], completed=3, evicted=0)


async def test_an_ost_that_everybody_has_left_starts_without_recovery(world: Any) -> None:
    async with world(clients=1, oss=1) as c:
        await c.a.write("/f", b"x")
        await c.a.unmount()
        await c.mds.stop()  # a server keeps its clients' records, but is itself a client that takes its leave
        await c.oss[0].stop()
        await c.oss[0].start()
        status = (await c.oss[0].status())["lustre-OST0000"]
        assert status["recovery"] is None and not status["recovering"]
        await c.mds.start()
        await c.a.start()
        assert await c.a.read("/f") == b"x"


async def test_new_clients_are_refused_while_an_ost_recovers_and_get_in_afterwards(world: Any) -> None:
    """"When the OST is in recovery mode, all new client connections are refused until the recovery finishes."."""
    async with world(clients=2, oss=1) as c:
        c.expect(*EVICTION)
        await c.a.write("/f", b"x")
        await c.b.kill()
        await c.oss[0].kill()
        await c.oss[0].start()
        late = await c.add_client("late")
        reading = soon(late.read("/f"))
        await c.until_saw("recovery.denied", target=c.oss[0], client=late.uuid)
        assert not reading.done()
        assert await reading == b"x"  # b's time is over
        c.saw("recovery.over", target=c.oss[0], completed=2, evicted=1)


async def test_the_recovery_of_an_ost_is_aborted_by_hand(world: Any) -> None:
    """"If you know an OST will not recover a previously-connected client ..." """
    async with world(clients=2, oss=1) as c:
        c.expect(*ABORT)
        await c.a.write("/f", b"x")
        await c.a.unrecorded(c.a.fs.sync())
        await c.b.kill()
        await c.oss[0].kill()
        await c.oss[0].start()
        await c.until_saw("client.connected", target=c.oss[0], client=c.a.uuid, recovering=True)
        await c.oss[0].abort_recovery()
        await c.settle()
        c.saw("recovery.aborted", target=c.oss[0])
        await c.a.write("/g", b"y")
        assert await c.a.read("/g") == b"y"


async def test_who_does_not_come_back_in_time_loses_and_the_others_do_not(world: Any) -> None:
    """Both had answers that the OST has forgotten; one of them is gone. The other's data is there, whole."""
    async with world(clients=2, oss=1) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.oss[0])
        for name in "ab":
            client = c.clients[name]
            await client.write(f"/{name}", data(MIB))
            await client.unrecorded(client.fs.connections.lov.locked.flush_all())
        await c.b.kill()
        await c.fail(c.oss[0])
        assert await c.a.read("/a") == data(MIB)
        c.saw("recovery.over", target=c.oss[0], completed=2, evicted=1)
        c.never_saw("import.evicted", client=c.a)


@pytest.mark.parametrize("after_s", [0.0, 0.3, 2.0, 6.0])
async def test_an_ost_fails_again_in_its_recovery(world: Any, after_s: float) -> None:
    async with world(clients=3, oss=1) as c:
        c.expect(*EVICTION)
        await c.replay_barrier(c.oss[0])
        for name in "ab":
            client = c.clients[name]
            await client.write(f"/{name}", data(3 * MIB))
            await client.unrecorded(client.fs.connections.lov.locked.flush_all())
        await c.c.kill()
        await c.oss[0].kill()
        await c.oss[0].start()
        await asyncio.sleep(after_s)
        await c.fail(c.oss[0])
        assert await contents(c.b, ["/a", "/b"]) == [data(3 * MIB)] * 2
        c.never_saw("import.evicted", client=c.a)
        c.never_saw("import.evicted", client=c.b)


async def test_truncations_holes_and_writes_are_replayed_in_their_order(world: Any) -> None:
    async with world(clients=2, oss=1) as c:
        await c.replay_barrier(c.oss[0])
        file = await c.a.open("/f", create=True)
        flush = c.a.fs.connections.lov.locked.flush_all
        await file.pwrite(b"1" * 300_000, 0)
        await c.a.unrecorded(flush())
        await c.a.truncate("/f", 100_000)
        await file.pwrite(b"2" * 1000, 150_000)
        await c.a.unrecorded(flush())
        await c.a.truncate("/f", 150_500)
        await c.fail(c.oss[0])
        await file.close()
        assert await c.b.read("/f") == b"1" * 100_000 + bytes(50_000) + b"2" * 500


async def test_a_sync_waits_for_what_is_on_its_way_already(cluster: Any) -> None:
    """What it has returned for outlives the client and a power cut."""
    async with cluster(clients=2, oss=1) as c:
        c.expect(*EVICTION)
        slow = c.net.slow(Write, to=c.oss[0], delay_s=0.5, times=-1)
        await c.a.write("/f", data(MIB))
        await slow.caught()
        await c.a.unrecorded(c.a.fs.sync())
        await c.a.kill()
        await c.oss[0].power_cut()
        await c.oss[0].start()
        assert await c.b.read("/f") == data(MIB)


async def test_destroys_that_an_ost_has_lost_come_again(world: Any) -> None:
    async with world(clients=1, oss=1) as c:
        await c.a.write("/f", data(MIB))
        await c.replay_barrier(c.oss[0])
        sent = c.net.slow(Destroy, to=c.oss[0], delay_s=0.01)
        await c.a.unlink("/f")
        await sent.caught()
        await c.fail(c.oss[0])
        assert await c.a.listdir("/") == []


async def test_an_evicted_client_of_an_ost_is_told_at_once_and_goes_on(world: Any) -> None:
    """A recovery that fails for one client: 30.1.6."""
    async with world(clients=2, oss=1) as c:
        c.expect(*EVICTION)
        await touch(c.a, "/f")
        lost = c.net.drop(Connect, source=c.a, to=c.oss[0], times=-1)
        await c.oss[0].kill()
        await c.oss[0].start()
        await c.until_saw("recovery.over", target=c.oss[0])
        lost.lift()
        try:
            await c.a.write("/f", b"mine")
        except Evicted:
            await c.a.write("/f", b"mine")
        assert await c.b.read("/f") == b"mine"
