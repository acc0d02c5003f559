"""Python's garbage collector, told when to run: most of what we drop is no cycle and goes at once.

What is left are cycles of exceptions, tasks and links. Left to itself the collector stops the process at bad times:

- it looks through all of the heap whenever that has grown by a quarter: 100 ms with the locks and attributes of 50,000
  files, which every caller of a client and every client of a server waits for. Here that is done when the process has
  nothing to do, or has had something to do for long;
- it looks through the young when so many more objects were made than dropped. A cache that is full drops as many as it
  takes in, and tens of thousands become young before that is due: 10 ms. Here the young are looked through as often as
  it takes to find few of them.

Source: `gc` in the Python documentation; Lib/test/test_gc.py for what the thresholds mean
"""

from __future__ import annotations

import asyncio
import gc
import time

YOUNG = 1_000  # objects to be looked through at once: 0.2 ms
MIDDLE = 5  # after so many times those that were left each time once more
GUARD = 4 * YOUNG  # so many more made than dropped are too many if the loop does not get round to it
NEVER = 1 << 30
PAUSE_MIN_S, PAUSE_MAX_S = 0.005, 0.25
LOOK_S = 5.0
IDLE_SHARE = 0.02  # of a core
LONG_S = 600.0


def calm() -> None:
    """From now on only the young are collected. What is there by now is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GUARD, 2 * MIDDLE, NEVER)


async def collect() -> None:
    """Collect the young, a few at a time, and all of the heap if that is worth it and there is time."""
    pause, times = PAUSE_MAX_S, 0
    aged = 0  # objects that may have become old since all of the heap was looked through
    collected = looked = time.monotonic()
    used = time.process_time()
    while True:
        await asyncio.sleep(pause)
        young = len(gc.get_objects(generation=0))
        times += 1
        gc.collect(0 if times % MIDDLE else 1)
        aged += young
        pause = min(max(pause * YOUNG / (young + 1), PAUSE_MIN_S), PAUSE_MAX_S)
        now = time.monotonic()
        if now - looked < LOOK_S:
            continue
        idle = time.process_time() - used < IDLE_SHARE * (now - looked)
        if aged > YOUNG and (idle or now - collected > LONG_S):
            gc.collect()
            collected, aged = now, 0
        looked, used = now, time.process_time()
