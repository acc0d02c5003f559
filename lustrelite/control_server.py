"""The side socket of a process: who answers there (control.py says what travels)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lustrelite.control import LINE_BYTES_MAX, unix_socket
from lustrelite.errors import OpError

Command = Callable[[dict[str, Any]], Awaitable[Any] | Any]


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
        sock = unix_socket(self.path, connect=False)
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
