"""One `emit(name, **fields)` is the log line, the metric, the test's mark and the transcript line.

A process (or a simulated node) owns one EventLog: a bounded ring, a counter per name, and any number of sinks
(JSON lines on disk, metrics, the simulator's transcript). Names are `area.what_happened`, fields are JSON values;
a field `message` is what Lustre's console would say.
Levels: info, warning (an operator may care), error (something was lost or broken), and debug: what happens too often to
be written to the log files, unless `tunables.debug` is set; it is in the ring all the same.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Event(NamedTuple):
    """One event. `time` is the owner's clock in seconds."""

    time: float
    node: str
    name: str
    level: str
    fields: dict[str, Any]

    def line(self) -> str:
        """The event as one JSON line."""
        head = {"t": round(self.time, 6), "node": self.node, "event": self.name}
        if self.level not in ("info", "debug"):
            head["level"] = self.level
        return json.dumps({**head, **self.fields}, default=str)


Sink = Callable[[Event], None]


class EventLog:
    """The events of one process: the newest `ring_max` are kept in memory."""

    def __init__(self, node: str, clock: Callable[[], float], ring_max: int = 4096) -> None:
        self.node = node
        self.clock = clock
        self.ring: deque[Event] = deque(maxlen=ring_max)
        self.counts: Counter[str] = Counter()
        self.sinks: list[Sink] = []

    def emit(self, name: str, *, level: str = "info", **fields: Any) -> None:
        """Record the event `name`."""
        event = Event(self.clock(), self.node, name, level, fields)
        self.ring.append(event)
        self.counts[name] += 1
        for sink in self.sinks:
            try:
                sink(event)
            except OSError:  # a full disk, a terminal that is gone: what happens goes on without its log
                pass

    def select(self, name: str, **fields: Any) -> Iterator[Event]:
        """The kept events called `name` whose fields have these values."""
        for event in self.ring:
            if event.name == name and all(event.fields.get(k) == v for k, v in fields.items()):
                yield event
