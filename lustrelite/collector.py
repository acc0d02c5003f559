"""Python's garbage collector, told when to run: most of what we drop is no cycle and goes at once.

What is left are cycles of exceptions, tasks and links. The collector looks for them whenever the heap has grown by a
quarter, through all of it, and stops the process meanwhile: 100 ms with the locks and attributes of 50,000 files, which
every caller of a client and every client of a server waits for. So the young are looked through often and in little
pieces, and all of the heap when the process has nothing to do, or has had something to do for long.
Source: `gc` in the Python documentation; Lib/test/test_gc.py for what the thresholds mean
"""

from __future__ import annotations

import asyncio
import gc
import time

YOUNG, MIDDLE = 1_500, 5  # objects made, collections of the young: 0.5 to 2 ms each
NEVER = 1 << 30
LOOK_S = 5.0
IDLE_SHARE = 0.02  # of a core
LONG_S = 600.0


def calm() -> None:
    """From now on only the young are collected. What is there by now is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)


async def collect_when_idle() -> None:
    """Collect all of the heap, if anything has become old in it, when the process is idle, or after LONG_S."""
    collected = time.monotonic()
    while True:
        used = time.process_time()
        await asyncio.sleep(LOOK_S)
        idle = time.process_time() - used < IDLE_SHARE * LOOK_S
        aged = gc.get_count()[2]  # collections of the middle since the last of all
        if aged and (idle or time.monotonic() - collected > LONG_S):
            gc.collect()
            collected = time.monotonic()
