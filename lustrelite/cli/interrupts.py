"""Ctrl-C, SIGTERM and SIGHUP (of a terminal that is closed) all end a command as KeyboardInterrupt.

So whatever ends one, it takes back what it has begun, or says what it leaves. Where that would leave a cluster half
started or half stopped, `Interrupts` has them wait. Who ignores them (nohup(1), a shell's job in the background) is let be.
"""

from __future__ import annotations

import signal
from typing import Self

import click

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_last: int = signal.SIGINT


def exit_status() -> int:
    """Of a command that one of them has ended: 128 and the last one's number."""
    return 128 + _last


def take_all() -> None:
    """SIGTERM and SIGHUP do what SIGINT does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    global _last
    _last = number
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, None)  # asyncio's, while it runs: it cancels what runs


class Interrupts:
    """They end what runs in here, but not before it lets them in; who sends one meanwhile is told `waits_for`."""

    def __init__(self, waits_for: str) -> None:
        self.waits_for = waits_for

    def __enter__(self) -> Self:
        self.came = False
        self.waiting = True
        self.before = {n: signal.signal(n, self._take) for n in _NUMBERS if signal.getsignal(n) is not signal.SIG_IGN}
        return self

    def _take(self, number: int, frame: object) -> None:
        global _last
        _last = number
        if not self.came and self.waiting:
            click.echo(f"lustrelite: interrupted; {self.waits_for}", err=True)
        self.came = True
        if not self.waiting:
            raise KeyboardInterrupt

    def let_in(self) -> None:
        """From now on they end it at once.  KeyboardInterrupt: one was waiting"""
        self.waiting = False
        if self.came:
            raise KeyboardInterrupt

    def keep_out(self) -> None:
        """From now on they wait."""
        self.waiting = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.came and kind is None:
            raise KeyboardInterrupt
