"""Whether a process still runs."""

from __future__ import annotations

import subprocess
import sys
import time

from lustrelite.alive import start_ticks

FIRST_THREAD_ENDS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_runs_until_its_last_thread_has_ended() -> None:
    """A server that ends while one of its threads waits for the disk has its files open: nobody can unmount that, or have its lock."""
    with subprocess.Popen([sys.executable, "-c", FIRST_THREAD_ENDS], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        while state_of(process.pid) != "Z":
            time.sleep(0.01)
        started = start_ticks(process.pid)
        assert started > 0
        process.stdin.close()
        while start_ticks(process.pid) == started:
            time.sleep(0.01)
        assert start_ticks(process.pid) == 0
        process.wait()


def state_of(pid: int) -> str:
    """As ps(1) shows it."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]
