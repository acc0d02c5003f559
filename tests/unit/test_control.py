"""The side socket, the metrics page, the files that events are written to."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lustrelite.control import ControlClient, ControlFailed, call, unix_socket
from lustrelite.control_server import ControlServer
from lustrelite.event_file import EventFile, RotatingFile, log_line
from lustrelite.events import Event, EventLog
from lustrelite.metrics import Metrics, MetricsServer


async def served(path: Path, commands: dict[str, Any], work: Any) -> Any:
    """Run the blocking `work` in a thread while the server answers."""
    server = ControlServer(path, commands)
    await server.start()
    try:
        return await asyncio.to_thread(work)
    finally:
        await server.close()


async def test_commands_are_answered_in_order(tmp_path: Path) -> None:
    async def slow(request: dict[str, Any]) -> int:
        await asyncio.sleep(0)
        return int(request["n"]) + 1

    def work() -> list[Any]:
        with ControlClient(tmp_path / "a.sock") as client:
            return [client.call("slow", n=1), client.call("now"), client.call("slow", n=2)]

    assert await served(tmp_path / "a.sock", {"slow": slow, "now": lambda _: "x"}, work) == [2, "x", 3]


async def test_a_path_too_long_for_the_kernel_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    assert len(str(deep)) > 108
    assert await served(deep / "a.sock", {"ping": lambda _: "pong"}, lambda: call(deep / "a.sock", "ping")) == "pong"


async def test_a_socket_left_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    first = ControlServer(path, {})
    await first.start()
    assert await served(path, {"ping": lambda _: "pong"}, lambda: call(path, "ping")) == "pong"
    await first.close()


async def test_only_its_owner_may_connect(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "a.sock", {})
    await server.start()
    assert (tmp_path / "a.sock").stat().st_mode & 0o777 == 0o600
    await server.close()
    assert not (tmp_path / "a.sock").exists()


async def test_refusals_are_one_line_and_the_connection_lives_on(tmp_path: Path) -> None:
    def refuse(request: dict[str, Any]) -> None:
        raise ValueError("no: do this instead")

    def work() -> None:
        with ControlClient(tmp_path / "a.sock") as client:
            with pytest.raises(ControlFailed, match="do this instead"):
                client.call("refuse")
            with pytest.raises(ControlFailed, match="no command 'nope'; there are: ping, refuse"):
                client.call("nope")
            assert client.call("ping") == "pong"

    await served(tmp_path / "a.sock", {"refuse": refuse, "ping": lambda _: "pong"}, work)


async def test_a_number_that_is_too_large_is_refused_and_the_connection_lives_on(tmp_path: Path) -> None:
    """JSON has Infinity, as Python writes it: it ended the process."""

    def work() -> None:
        with ControlClient(tmp_path / "a.sock") as client:
            with pytest.raises(ControlFailed, match="infinity"):
                client.call("events", count=float("inf"))
            assert client.call("ping") == "pong"

    await served(tmp_path / "a.sock", {"events": lambda request: int(request["count"]), "ping": lambda _: "pong"}, work)


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{\n", b"\xff\xfe\n", b'{"cmd": 3}\n', b"[" * 100_000 + b"\n"])
async def test_garbage_is_answered_with_an_error(tmp_path: Path, line: bytes) -> None:
    server = ControlServer(tmp_path / "a.sock", {})
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "a.sock"))
    writer.write(line)
    answer = json.loads(await reader.readline())
    assert not answer["ok"]
    writer.close()
    await writer.wait_closed()
    await server.close()


@pytest.mark.parametrize("end", ["before it is asked", "within its answer"])
def test_a_process_that_ends_is_said_to_have_ended(tmp_path: Path, end: str) -> None:
    """The commands that look at it say so in one line; what could not be sent, and half an answer, are no tracebacks."""
    with unix_socket(tmp_path / "a.sock", connect=False) as listening, pytest.raises(ControlFailed, match="status"):
        with ControlClient(tmp_path / "a.sock") as client:
            with listening.accept()[0] as process:
                if end == "within its answer":
                    process.sendall(b'{"id": 1, "ok": tr')
                    process.shutdown(socket.SHUT_WR)
                else:
                    process.close()
                client.call("status")


def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ControlFailed, match="is the process running"):
        call(tmp_path / "a.sock", "ping")


class FakeNode:
    """What Metrics needs of a node."""

    def __init__(self) -> None:
        self.name = "n1"
        self.events = EventLog("n1", lambda: 0.0)


async def test_metrics_are_served_on_a_chosen_port() -> None:
    node = FakeNode()
    node.events.emit("import.replayed")
    server = MetricsServer(Metrics(node))  # type: ignore[arg-type]
    await server.start()

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as answer:
            text: str = answer.read().decode()
            return text

    page = await asyncio.to_thread(get, "/metrics")
    assert 'lustrelite_events_total{event="import.replayed"} 1.0' in page
    assert 'lustrelite_info{node="n1"' in page
    assert "process_resident_memory_bytes" in page
    with pytest.raises(urllib.error.HTTPError, match="404") as error:
        await asyncio.to_thread(get, "/nothing")
    error.value.close()
    await server.close()


def test_events_are_written_as_lines_and_files_rotate(tmp_path: Path) -> None:
    sink = EventFile(tmp_path / "a.events.jsonl", bytes_max=400)
    for number in range(20):
        sink(Event(float(number), "n1", "test.done", "info", {"number": number}))
    sink.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["a.events.jsonl", "a.events.jsonl.1", "a.events.jsonl.2", "a.events.jsonl.3"]
    newest = (tmp_path / "a.events.jsonl").read_text().splitlines()
    last = json.loads(newest[-1])
    assert (last["event"], last["number"], last["node"]) == ("test.done", 19, "n1")
    assert last["wall"] > 1e9


def test_a_file_that_exists_is_continued(tmp_path: Path) -> None:
    for word in ("one", "two"):
        file = RotatingFile(tmp_path / "a.log")
        file.write(word)
        file.close()
    assert (tmp_path / "a.log").read_text() == "one\ntwo\n"


def test_a_log_line_is_for_people() -> None:
    line = log_line(Event(1.0, "mds1", "recovery.over", "warning", {"evicted": 2}))
    assert line.endswith("mds1 WARNING recovery.over evicted=2")
