"""When was something wrong between a client and a target? What excuses a promised lock that is forsaken.

A client forsakes a promise (`lock.forsaken`, ldlm/promised.py) if SOLE has to go and the OST does not answer, or if the MDT
has evicted it. An OST answers at once unless it, the client or the network between them is in trouble: dead, in recovery,
standing still, with a slow disk, cut off, or a message was lost or late. Without any of these in as long as a lock may
be asked for (`lock_callback_s`) nothing may be forsaken, for what is under it may be lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lustrelite.events import Event
    from lustrelite.sim.cluster import Cluster


class Troubles:
    """Of one cluster: when each process, target, or pair of processes was in trouble last."""

    def __init__(self, cluster: Cluster) -> None:
        self.unjust: list[Event] = []  # promises that were forsaken without a reason
        self.anywhere = False  # a fault point is armed: nobody knows when it will be hit
        self._cluster = cluster
        self._last: dict[str, float] = {}
        self._known: dict[str, None] = {}  # targets that were started
        cluster.net.on_trouble = lambda x, y, until: self.note(_pair(x, y), until)

    def note(self, what: str, until: float = 0.0) -> None:
        """It is in trouble now, or `until` then."""
        self._last[what] = max(self._last.get(what, 0.0), until, self._cluster.loop.time())

    def record(self, event: Event) -> None:
        """What the nodes say of themselves."""
        if event.name == "import.evicted":
            self.note(event.node)
        elif event.name in ("target.started", "recovery.over"):
            target = str(event.fields["target"])
            if target in self._known:
                self.note(target)
            self._known[target] = None
        elif event.name == "lock.forsaken" and not self._excuses(event.node, str(event.fields["target"])):
            self.unjust.append(event)

    def _excuses(self, client: str, target: str) -> bool:
        cluster, net = self._cluster, self._cluster.net
        serving = [server for server in cluster.servers if any(one.name == target for one in server.running)]
        if self.anywhere or not serving:
            return True
        server = serving[0]
        nodes = [node for node in (server.node, cluster.clients[client].node) if node is not None]
        if any(node.paused or node.slow_s for node in nodes) or server.target(target).recovering:
            return True
        if net.in_trouble(client, server.name):
            return True
        since = cluster.loop.time() - cluster.tunables.lock_callback_s
        names = (client, target, server.name, _pair(client, server.name))
        return any(self._last.get(name, -1.0) >= since for name in names)


def _pair(x: str, y: str) -> str:
    return " ".join(sorted((x, y)))
