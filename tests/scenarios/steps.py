"""Words that several scenarios share, on top of the World's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from lustrelite.errors import OpError

EVICTION = ("client.evicted", "recovery.evicting", "import.evicted")  # what a client that goes, or is thrown out, causes
MISMATCH = (*EVICTION, "replay.version_mismatch", "import.replay_failed", "import.vbr_failed")
ABORT = (*EVICTION, "recovery.aborted")


def soon(coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Begin `coro`; the scenario goes on and awaits the task later."""
    return asyncio.ensure_future(coro)


async def touch(client: Any, path: str) -> None:
    """open(O_CREAT) and close, as touch(1) makes a file."""
    await (await client.open(path, create=True)).close()


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """What is inside must fail with this errno."""
    with pytest.raises(OpError) as caught:
        yield
    assert caught.value.errno == number, f"{caught.value}, not {errno.errorcode[number]}"


async def contents(client: Any, paths: list[str]) -> list[bytes]:
    """What is in these files."""
    return [await client.read(path) for path in paths]
