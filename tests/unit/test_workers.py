"""Threads for calls that block (rpc/workers.py)."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from lustrelite.rpc.workers import Workers


async def test_results_and_errors_come_back_to_who_asked():
    workers = Workers(3)
    calls = [workers.run(divmod, 7, number) for number in range(20)]
    with pytest.raises(ZeroDivisionError):
        await calls[0]
    assert await asyncio.gather(*calls[1:]) == [divmod(7, number) for number in range(1, 20)]
    workers.stop()


async def test_as_many_calls_run_at_once_as_there_are_threads_and_no_more():
    workers, gate, running = Workers(2), threading.Event(), threading.Semaphore(0)

    def hold() -> int:
        running.release()
        gate.wait(10)
        return threading.get_ident()

    calls = [workers.run(hold) for _ in range(4)]
    assert await asyncio.to_thread(lambda: running.acquire(timeout=10) and running.acquire(timeout=10))
    assert not running.acquire(blocking=False)
    gate.set()
    assert len(set(await asyncio.gather(*calls))) == 2
    workers.stop()


async def test_a_thread_is_used_again_before_another_is_made():
    workers = Workers(8)
    assert len({await workers.run(threading.get_ident) for _ in range(10)}) == 1
    workers.stop()


async def test_what_was_cancelled_before_its_turn_is_not_called():
    workers, gate = Workers(1), threading.Event()
    done: list[str] = []
    first = workers.run(gate.wait, 10)
    second, third = workers.run(done.append, "second"), workers.run(done.append, "third")
    second.cancel()
    gate.set()
    await asyncio.gather(first, third)
    assert done == ["third"] and second.cancelled()
    workers.stop()


async def test_a_call_that_was_cancelled_late_runs_and_nobody_hears():
    workers, gate, began = Workers(1), threading.Event(), threading.Event()

    def fail() -> None:
        began.set()
        gate.wait(10)
        raise OSError("nobody waits")

    call = workers.run(fail)
    await asyncio.to_thread(began.wait, 10)
    call.cancel()
    gate.set()
    assert await workers.run(int, "7") == 7
    workers.stop(10)
    assert not any(thread.is_alive() for thread in workers._threads)


async def test_an_idle_thread_keeps_nothing_alive():
    class Memory:
        pass

    workers, memory = Workers(1), Memory()
    seen = weakref.ref(memory)
    await workers.run(id, memory)
    del memory
    await workers.run(int)  # the thread has come round
    gc.collect()
    assert seen() is None
    workers.stop()
