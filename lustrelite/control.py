"""The side socket of a process: JSON lines over a Unix socket, beside the protocol, so that it answers when that hangs.

A request is one line `{"id": 1, "cmd": "get_param", ...}`, the answer one line `{"id": 1, "ok": true, "result": ...}`
or `{"id": 1, "ok": false, "error": "what to do"}`. Whoever may open the socket (its directory is private to the user)
may do everything. Requests of one connection are answered in order.

A path longer than the kernel's 108 bytes is reached through /proc/self/fd, so a deep state directory works as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

from lustrelite.errors import OpError

LINE_BYTES_MAX = 4 << 20
Command = Callable[[dict[str, Any]], Awaitable[Any] | Any]


def _bound(path: Path, connect: bool) -> socket.socket:
    """A Unix socket connected to `path` or listening there, however long the path is."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        address = f"/proc/self/fd/{directory}/{path.name}"
        if connect:
            sock.connect(address)
        else:
            sock.bind(address)
            sock.listen(16)
    except OSError:
        sock.close()
        raise
    finally:
        os.close(directory)
    return sock


class ControlServer:
    """Answers the commands in `commands` at `path`."""

    def __init__(self, path: Path, commands: dict[str, Command]) -> None:
        self.path = path
        self.commands = commands
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def start(self) -> None:
        """Listen; a socket file that a killed process left is replaced."""
        self.path.unlink(missing_ok=True)
        sock = _bound(self.path, connect=False)
        sock.setblocking(False)
        os.chmod(self.path, 0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=LINE_BYTES_MAX)

    async def close(self) -> None:
        """Listen no more, and hang up."""
        if self._server is None:
            return
        self._server.close()
        self.path.unlink(missing_ok=True)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        task.add_done_callback(lambda done: self._connections.pop(done, None))
        try:
            while line := await reader.readline():
                answer = await self._answer(line)
                writer.write(json.dumps(answer, default=str).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.LimitOverrunError):
            pass  # the operator's terminal went away, or the line had no end
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        number = None
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("a JSON object per line expected")
            number = request.get("id")
            command = self.commands.get(str(request.get("cmd")))
            if command is None:
                raise ValueError(f"no command {request.get('cmd')!r}; there are: {', '.join(sorted(self.commands))}")
            result = command(request)
            if isinstance(result, Awaitable):
                result = await result
            return {"id": number, "ok": True, "result": result}
        except KeyError as error:
            return {"id": number, "ok": False, "error": str(error.args[0]) if error.args else "missing"}
        except (OpError, ValueError, TypeError, RecursionError, OSError) as error:
            return {"id": number, "ok": False, "error": str(error) or type(error).__name__}


class ControlFailed(Exception):
    """The process does not answer, or refuses; the text says what to do."""


class ControlClient:
    """A blocking connection to a process's side socket, for the command line."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        try:
            self._socket = _bound(path, connect=True)
        except OSError as error:
            raise ControlFailed(f"nobody answers at {path} ({error.strerror}): is the process running?") from None
        self._socket.settimeout(timeout_s)
        self._file = self._socket.makefile("rwb")

    def call(self, cmd: str, **fields: Any) -> Any:
        """The result of `cmd`; ControlFailed if it was refused or there was no answer."""
        try:
            self._file.write(json.dumps({"id": 1, "cmd": cmd, **fields}).encode() + b"\n")
            self._file.flush()
            line = self._file.readline(LINE_BYTES_MAX)
        except TimeoutError:
            raise ControlFailed(f"no answer to {cmd} in time") from None
        except OSError as error:
            raise ControlFailed(f"{cmd}: {error}") from None
        if not line:
            raise ControlFailed(f"the process ended during {cmd}")
        answer = json.loads(line)
        if not answer["ok"]:
            raise ControlFailed(str(answer["error"]))
        return answer["result"]

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def call(path: Path, cmd: str, timeout_s: float = 10.0, **fields: Any) -> Any:
    """One command over a connection of its own."""
    with ControlClient(path, timeout_s) as client:
        return client.call(cmd, **fields)
