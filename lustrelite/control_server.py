"""The side socket of a process: who answers there (control.py says what travels)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lustrelite.control import LINE_BYTES_MAX, unix_socket
from lustrelite.errors import OpError
from lustrelite.stream_server import StreamServer

Command = Callable[[dict[str, Any]], Awaitable[Any] | Any]


class ControlServer(StreamServer):
    """Answers the commands in `commands` at `path`."""

    def __init__(self, path: Path, commands: dict[str, Command]) -> None:
        super().__init__()
        self.path = path
        self.commands = commands

    async def start(self) -> None:
        """Listen; a socket file that a killed process left is replaced."""
        self.path.unlink(missing_ok=True)
        sock = unix_socket(self.path, connect=False)
        sock.setblocking(False)
        os.chmod(self.path, 0o600)
        self._server = await asyncio.start_unix_server(self.accept, sock=sock, limit=LINE_BYTES_MAX)

    async def close(self) -> None:
        """Listen no more, and hang up."""
        if self._server is not None:
            self.path.unlink(missing_ok=True)
        await super().close()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A line, an answer."""
        while line := await reader.readline():
            answer = await self._answer(line)
            writer.write(json.dumps(answer, default=str).encode() + b"\n")
            await writer.drain()

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
        except (OpError, ValueError, TypeError, ArithmeticError, RecursionError, OSError) as error:
            return {"id": number, "ok": False, "error": str(error) or type(error).__name__}
