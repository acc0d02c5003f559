"""A node on a real machine: its sockets, and the event loop that it runs on."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable

from lustrelite.rpc.node import Node
from lustrelite.rpc.spinner import Spinner
from lustrelite.rpc.transport import SocketNetwork
from lustrelite.rpc.workers import Workers


def socket_node(name: str, *, workers: Workers | None = None, allow_remote: bool = False) -> Node:
    """A node of this process, on sockets."""
    rng = random.Random()
    network = SocketNetwork(rng, name=name, allow_remote=allow_remote)
    node = Node(name, network, workers=workers, seed=rng.getrandbits(64))
    network.events = node.events
    node.spinner = network.spinner = Spinner(node.tunables, node.workers)
    return node


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one, unless LUSTRELITE_LOOP=asyncio."""
    if os.environ.get("LUSTRELITE_LOOP") == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
