"""A client inside the command: mount, do something, leave in good order."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from lustrelite.cli.errors import Refused
from lustrelite.cli.mounts import check_sockets
from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError
from lustrelite.events import Event
from lustrelite.ids import Nid
from lustrelite.real_node import loop_factory, socket_node
from lustrelite.rpc.node import Node

_T = TypeVar("_T")
MOUNT_WAIT_S = 30.0
LEAVE_QUIETLY_S = 1.0
LEAVE_S = 15.0  # when interrupted


def new_node(name: str) -> Node:
    """A node for a client in this process."""
    return socket_node(name)


def caller() -> tuple[int, ...]:
    """The credential of who runs the command."""
    groups = [group for group in os.getgroups() if group != os.getgid()]
    return (os.getuid(), os.getgid(), *groups)


async def mount(node: Node, nids: Sequence[Nid], fsname: str, wait_s: float = MOUNT_WAIT_S) -> FileSystem:
    """The mounted file system; Refused if nobody answers, nobody there knows it, or this user may not ask."""
    check_sockets(nids)
    try:
        async with asyncio.timeout(wait_s):
            return await FileSystem.mount(node, nids, fsname, caller())
    except TimeoutError:
        raise Refused(f"no answer from {fsname} at {', '.join(nids)} in {wait_s:g} s: is it up? (`lustrelite status`)") from None
    except OpError as error:
        if error.errno == errno.ENOENT:
            raise Refused(f"the MGS at {', '.join(nids)} knows no file system {fsname!r}: --fsname says which one is meant") from None
        raise


def on_file_system(nids: Sequence[Nid], fsname: str, work: Callable[[FileSystem], Awaitable[_T]]) -> _T:
    """Mount `fsname`, and run `work` on it."""

    async def main() -> _T:
        node = new_node(f"cli-{os.getpid()}")
        node.events.sinks.append(_say)
        fs = await mount(node, nids, fsname)
        try:
            result = await work(fs)
        except asyncio.CancelledError:
            await _leave_soon(fs)
            raise
        except BaseException:
            await fs.unmount()
            raise
        else:
            await fs.unmount()
        finally:
            await node.stop_tasks()
        return result

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(main())


async def _leave_soon(fs: FileSystem) -> None:
    """Who was interrupted waits for servers that are away only so long, and for none if he is interrupted again."""
    leaving = asyncio.ensure_future(fs.unmount())
    try:
        await asyncio.wait([leaving], timeout=LEAVE_QUIETLY_S)
        if not leaving.done():
            print("lustrelite: interrupted; servers have not got all that was written yet: waiting for them", file=sys.stderr)
            await asyncio.wait([leaving], timeout=LEAVE_S)
    finally:
        if not leaving.done():
            leaving.cancel()
            await asyncio.wait([leaving])
            await fs.give_up()


def _say(event: Event) -> None:
    message = event.fields.get("message")
    if message and event.name.startswith("import."):
        print(f"lustrelite: {message}", file=sys.stderr)
