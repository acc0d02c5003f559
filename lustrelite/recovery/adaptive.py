"""How long a server takes, as both ends use it for their deadlines (adaptive timeouts).

The server measures how long requests waited for their answer and says the worst of the recent past in every reply. A
client gives a request `rpc_timeout_s` and a quarter more than that on top. The past is kept in a few bins, so that the
estimate forgets, and a rise counts at once.

Source: at_measured(), ptlrpc/import.c; est2timeout(), lustre_import.h; protocol-facts 6.2
"""

from __future__ import annotations

BINS = 4


class ServiceEstimate:
    """The worst service time of the last `history_s` seconds, to a bin (a quarter of that) exactly."""

    def __init__(self, history_s: float, most_s: float) -> None:
        self.history_s = history_s
        self.most_s = most_s
        self.value_ms = 0
        self._bins = [0.0] * BINS  # the present one first
        self._bin = 0  # number of the present one, counted from time 0

    def add(self, seconds: float, now: float) -> None:
        """Something took `seconds`."""
        self.forget(now)
        if seconds > self._bins[0]:
            self._bins[0] = seconds
            self.value_ms = int(min(max(self._bins), self.most_s) * 1000)

    def forget(self, now: float) -> None:
        """Let go of what is too long ago."""
        present = int(now * BINS / self.history_s)
        gone = min(present - self._bin, BINS)
        if gone <= 0:
            return
        self._bins = [0.0] * gone + self._bins[: BINS - gone]
        self._bin = present
        self.value_ms = int(min(max(self._bins), self.most_s) * 1000)


def timeout_for(base_s: float, estimate_ms: int) -> float:
    """Seconds that a request is given: the base, and what the server is known to need with a quarter to spare."""
    return base_s + 1.25 * estimate_ms / 1000
