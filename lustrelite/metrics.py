"""Numbers of one process in Prometheus' text format, at http://127.0.0.1:PORT/metrics.

The page is made in the process's own loop, when somebody asks: a scrape in a thread would read tables while they
change. Sources give metric families from live objects, so nothing is counted twice and nothing on the way of a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.process_collector import ProcessCollector

from lustrelite import __version__
from lustrelite.rpc.node import Node
from lustrelite.stream_server import StreamServer

MetricSource = Callable[[], Iterable[Metric]]
_REQUEST_WAIT_S = 5.0


class Metrics:
    """The metrics of one process: a registry over `sources`."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sources: list[MetricSource] = [self._of_node]
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """Every family of every source (prometheus-client's Collector)."""
        for source in self.sources:
            yield from source()

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: the names are the sources'."""
        return ()

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)

    def _of_node(self) -> Iterable[Metric]:
        info = GaugeMetricFamily("lustrelite_info", "The running program", labels=["node", "version"])
        info.add_metric([self.node.name, __version__], 1)
        events = CounterMetricFamily(
            "lustrelite_events", "Events by name: replays, resends, evictions ...", labels=["event"]
        )
        for name in sorted(self.node.events.counts):
            events.add_metric([name], self.node.events.counts[name])
        return info, events


class MetricsServer(StreamServer):
    """A minimal HTTP server for one page."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self.metrics = metrics
        self.port = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 chooses one (see `port`)."""
        self._server = await asyncio.start_server(self.accept, host, port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A request, the page."""
        async with asyncio.timeout(_REQUEST_WAIT_S):
            line = await reader.readline()
            while (await reader.readline()).strip():
                pass  # headers: nothing depends on them
        words = line.split()
        if len(words) < 2 or words[0] not in (b"GET", b"HEAD"):
            status, kind, page = "405 Method Not Allowed", "text/plain", b"GET only\n"
        elif words[1].split(b"?")[0] not in (b"/metrics", b"/"):
            status, kind, page = "404 Not Found", "text/plain", b"see /metrics\n"
        else:
            status, kind, page = "200 OK", CONTENT_TYPE_LATEST, self.metrics.text()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + (page if words[:1] != [b"HEAD"] else b""))
        await writer.drain()
