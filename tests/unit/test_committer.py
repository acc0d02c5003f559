"""Who waits for a commit is answered by one that holds his change, also if another one is under way."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lustrelite.errors import StoreFailed
from lustrelite.rpc.node import Node
from lustrelite.store import kv, schema
from lustrelite.store.kv import Batch, Store
from lustrelite.store.small_log import SmallLog
from lustrelite.target.target import Target
from lustrelite.target.transaction import Transaction
from lustrelite.tunables import Tunables

KEY = b"key"


class SlowDisk(Target):
    """A target whose commits take until somebody says so."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.slow = False
        self.began = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.error: Exception | None = None
        self.crashes: list[str] = []
        self.node.on_crash = self.crashes.append

    def store_commit(self, batch: Batch) -> None:
        if self.slow:
            self.began.release()
            assert self.go_on.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        super().store_commit(batch)

    def change(self, count: int = 1) -> int:
        def change(txn: Transaction) -> None:
            for number in range(count):
                txn.put(schema.REPLIES, b"%d-%d" % (txn.transno, number), b"")
            txn.put(schema.REPLIES, KEY, b"%d" % txn.transno)

        self.run(change)
        return self.last_transno

    async def commit_begins(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.began.acquire)


def open_target(directory: Path, *, create: bool = False, **tunables: Any) -> SlowDisk:
    node = Node("mds", None, tunables=Tunables(**{"commit_interval_s": 60.0, "commit_log_s": 0, **tunables}))  # type: ignore[arg-type]
    store = Store.open(directory, "MDT", create=create, durable=False)
    return SlowDisk(node, store, name="lustre-MDT0000")


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[SlowDisk]:
    made = open_target(tmp_path, create=True)
    await made.start()
    await made.committed()
    yield made
    made.slow = False
    for _ in range(100):
        made.go_on.release()
    made.kill()
    await made.node.stop_tasks()


def durable(directory: Path) -> tuple[bytes | None, int]:
    """(value of KEY, last transno) after the process has died."""
    store = Store.open(directory, "MDT", durable=False)
    value = store.get(schema.REPLIES, KEY)
    last = int(schema.unpack_meta(store.get(schema.META, schema.meta_key("last_transno")) or b"\0"))
    store.abort()
    return value, last


async def test_a_change_made_during_a_commit_is_in_the_next_one(target: SlowDisk, tmp_path: Path) -> None:
    target.slow = True
    first = target.change()
    waits = [asyncio.ensure_future(target.committed(first))]
    await target.commit_begins()
    second = target.change()
    waits.append(asyncio.ensure_future(target.committed(second)))
    waits.append(asyncio.ensure_future(target.committed()))  # everything so far
    await asyncio.sleep(0)
    target.go_on.release()
    await target.commit_begins()  # the next one, at once
    assert [one.done() for one in waits] == [True, False, False]
    assert target.last_committed == first and target.store.get(schema.REPLIES, KEY) == b"%d" % second
    target.go_on.release()
    await asyncio.gather(*waits)
    assert target.last_committed == second
    target.kill()
    assert durable(tmp_path) == (b"%d" % second, second)


async def test_a_kill_during_a_commit_is_no_crash(target: SlowDisk, tmp_path: Path) -> None:
    """The thread may still commit; nothing that came later is in it, and nobody is told."""
    before = target.last_committed
    target.slow = True
    first = target.change()
    wait = asyncio.ensure_future(target.committed(first))
    await target.commit_begins()
    target.change()
    target.committer.close()
    target.go_on.release()
    while target.committer._busy:
        await asyncio.sleep(0.001)
    assert not wait.done() and target.last_committed == before
    target.kill()
    assert durable(tmp_path) == (b"%d" % first, first)
    wait.cancel()
    assert not target.crashes


async def test_a_commit_that_finds_its_store_gone_says_nothing(target: SlowDisk, tmp_path: Path) -> None:
    before = target.last_committed
    target.slow = True
    first = target.change()
    wait = asyncio.ensure_future(target.committed(first))
    await target.commit_begins()
    target.kill()
    target.go_on.release()
    await asyncio.sleep(0.01)
    assert not wait.done() and not target.crashes
    wait.cancel()
    assert durable(tmp_path) == (None, before)


async def test_a_commit_that_fails_ends_the_process(target: SlowDisk) -> None:
    target.error = StoreFailed("no")
    before = target.last_committed
    wait = asyncio.ensure_future(target.committed(target.change()))
    while not target.crashes:
        await asyncio.sleep(0.001)
    assert not wait.done() and target.last_committed == before
    wait.cancel()


async def test_in_recovery_a_wait_for_an_old_transno_sees_the_commit_under_way(target: SlowDisk) -> None:
    """The target's own changes take no transno in recovery: the number says nothing, the batch does."""
    target.recovering = True
    target.slow = True
    upto = target.change()
    assert upto == target.last_committed
    target.committer.demand()
    await target.commit_begins()
    assert not target.store.dirty
    done: list[bool] = []
    target.committer.after(upto, lambda: done.append(True))
    assert not done
    target.go_on.release()
    await target.commit_begins()
    target.go_on.release()
    while not done:
        await asyncio.sleep(0.001)


async def test_a_demand_during_a_commit_is_met_right_after_it(target: SlowDisk) -> None:
    """An eviction wants its commit soon and does not wait for it."""
    target.slow = True
    target.change()
    target.committer.demand()
    await target.commit_begins()
    target.change()
    target.committer.demand()
    await asyncio.sleep(0)
    target.go_on.release()
    await target.commit_begins()
    target.go_on.release()


async def test_a_forced_commit_goes_through_a_hold(target: SlowDisk) -> None:
    """The end of recovery must be durable, whatever the administrator holds; also if a commit is under way."""
    target.slow = True
    target.change()
    target.committer.demand()
    await target.commit_begins()
    target.committer.hold()
    last = target.change()
    held = asyncio.ensure_future(target.committed(last))
    forced = asyncio.ensure_future(target.committer.wait(forced=True))
    await asyncio.sleep(0)
    target.go_on.release()
    await target.commit_begins()
    assert not forced.done()
    target.go_on.release()
    await asyncio.gather(held, forced)
    target.slow = False
    target.change()
    await asyncio.sleep(0.01)
    assert target.store.dirty  # held again


async def test_a_stop_leaves_nothing_under_way(target: SlowDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the commit that ran, nor the one that catches up after it, nor changes that come with the last commit."""
    monkeypatch.setattr(kv, "REOPEN_RECORDS", 5)
    target.slow = True
    target.change()
    target.committer.demand()
    await target.commit_begins()
    target.change(100)
    target.slow = False
    left = 3

    def once_more() -> None:
        nonlocal left
        if left:
            left -= 1
            target.change(100)

    monkeypatch.setattr(target, "after_commit", once_more)
    stopping = asyncio.ensure_future(target.stop())
    await asyncio.sleep(0)
    target.go_on.release()
    await stopping
    assert not target.committer._busy and not left
    assert durable(tmp_path) == (b"%d" % target.last_transno, target.last_transno)
    assert not target.crashes


async def test_requests_go_on_while_the_store_catches_up(target: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv, "REOPEN_RECORDS", 5)
    target.slow = True
    first = target.change()
    wait = asyncio.ensure_future(target.committed(first))
    await target.commit_begins()
    target.change(100)
    target.go_on.release()
    await wait  # answered before it has caught up
    assert target.committer._busy
    turns = 0
    while target.committer._busy:
        target.change()
        turns += 1
        assert target.store.get(schema.REPLIES, KEY) == b"%d" % target.last_transno
        await asyncio.sleep(0)
    assert 15 <= turns <= 25


async def test_a_large_batch_is_committed_before_its_time(tmp_path: Path) -> None:
    made = open_target(tmp_path, create=True, commit_dirty_max=50)
    await made.start()
    made.slow = True
    made.change(10)
    await asyncio.sleep(0)
    assert not made.committer._busy
    made.change(60)
    await made.commit_begins()
    made.change(60)  # and the next as soon as this one is done
    made.go_on.release()
    await made.commit_begins()
    made.slow = False
    made.go_on.release()
    await made.stop()
    await made.node.stop_tasks()


@pytest.mark.parametrize(
    ("changes", "disk_s", "logged"), [(1, 0.0, True), (30, 0.0, True), (100, 0.0, False), (1, 0.4, False)]
)
async def test_a_small_batch_that_somebody_waits_for_goes_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: int, disk_s: float, logged: bool
) -> None:
    """Not a large one, and not on a slow disk: it would hold up the others."""
    append = SmallLog.append
    monkeypatch.setattr(SmallLog, "append", lambda *args: (time.sleep(disk_s), append(*args))[1])
    target = open_target(tmp_path, create=True, commit_log_s=0.01)
    await target.start()
    for _ in range(3):  # it learns how quick the disk is
        target.change()
        await target.committed()
    commits, before = target.committer.commits, target.committer.logged
    for _ in range(changes):
        target.change()
    await asyncio.gather(target.committed(), target.committed())
    assert (target.committer.commits, target.committer.logged) == (commits + 1, before + logged)
    assert target.store.running == 0 or logged
    target.kill()
    await target.node.stop_tasks()
    assert durable(tmp_path)[1] == target.last_committed == target.last_transno


async def test_the_database_follows_the_log_at_the_interval(tmp_path: Path) -> None:
    target = open_target(tmp_path, create=True, commit_log_s=1.0, commit_interval_s=0.01)
    await target.start()
    await target.committed()
    logged = target.committer.logged
    target.change()
    await target.committed()
    logged += 1
    assert target.committer.logged == logged and target.store.running and not target.store.dirty
    async with asyncio.timeout(5):
        while target.store.running:
            await asyncio.sleep(0.005)
    assert target.committer.logged == logged
    target.kill()
    await target.node.stop_tasks()


async def test_a_slow_disk_is_tried_again(tmp_path: Path) -> None:
    target = open_target(tmp_path, create=True, commit_log_s=0.01)
    await target.start()
    target.committer._log_s = 0.1
    before, logged = target.committer.commits, target.committer.logged
    async with asyncio.timeout(20):
        while target.committer.logged == logged:
            target.change()
            await target.committed()
    assert target.committer.commits > before + 10
    target.kill()
    await target.node.stop_tasks()


async def test_commits_that_are_held_are_not_logged_either(target: SlowDisk) -> None:
    target.node.tunables.commit_log_s = 1.0
    target.committer.hold()
    target.change()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(target.committed(), 0.05)
    assert not target.committer.logged and target.last_committed < target.last_transno


async def test_a_log_that_fails_ends_the_process(target: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> bool:
        raise OSError(errno.EIO, "no disk")

    monkeypatch.setattr(SmallLog, "append", fail)
    target.node.tunables.commit_log_s = 1.0
    target.change()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(target.committed(), 0.2)
    assert target.crashes and target.last_committed < target.last_transno
