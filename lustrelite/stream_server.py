"""Who answers on streams, and hangs up on everybody when it closes: the frame of control_server.py and metrics.py."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


class StreamServer:
    """Talks to each that connects, in a task."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._talks: dict[asyncio.Task[Any], None] = {}

    async def close(self) -> None:
        """Listen no more, and hang up."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody has connected."""
        task = asyncio.current_task()
        assert task is not None
        self._talks[task] = None
        task.add_done_callback(lambda done: self._talks.pop(done, None))
        try:
            await self.talk(reader, writer)
        except (ConnectionError, ValueError, TimeoutError):
            pass  # the other went away, or said what nobody understands: a line without an end, no HTTP
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All that is said."""
        raise NotImplementedError
