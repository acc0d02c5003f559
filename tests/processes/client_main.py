"""A client of the tests that is a process of its own, so that it can be stopped (SIGSTOP) and killed.

It mounts, and then does what it is told over its standard input, all at once; the answers go to its standard output.
Both are pickles behind their lengths (4 bytes):

    (number, object, method, args, kwargs)      the object: FS the FileSystem, PROCESS this process, else an open file
    (number, outcome, value, marks)             the outcome: DONE, FILE (the value is its number) or FAILED (an error)

`marks` are what the oracle wants to know: by target its instance and the last transno that this client has seen. The
end of the input unmounts. Other side: client_process.py.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
import sys
from collections.abc import Sequence
from typing import Any

from lustrelite.client.file import File
from lustrelite.client.fs import FileSystem
from lustrelite.errors import Deactivated, Evicted, OpError
from lustrelite.process import Process, arguments, nids, run
from lustrelite.rpc.client_import import ClientImport
from lustrelite.sim.cluster import import_busy
from lustrelite.sim.grants import Counted, counted_by

LENGTH = struct.Struct("<I")
FS, PROCESS = "fs", "process"
DONE, FILE, FAILED = "done", "file", "failed"

Marks = dict[str, tuple[int, int]]


def packed(value: Any) -> bytes:
    """A message."""
    body = pickle.dumps(value)
    return LENGTH.pack(len(body)) + body


async def received(reader: asyncio.StreamReader) -> Any:
    """The next message; None at the end."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return pickle.loads(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None


def error_as_data(error: OpError) -> tuple[str, Any]:
    """For a pickle: its classes are built from other arguments than they keep."""
    if isinstance(error, Evicted | Deactivated):
        return type(error).__name__, error.what
    return "OpError", (error.errno, error.what)


def error_of(kind: str, value: Any) -> OpError:
    """The other way round."""
    if kind == "OpError":
        return OpError(*value)
    error: OpError = Evicted("") if kind == "Evicted" else Deactivated("")
    error.what = value
    return error


def marks_of(imports: Sequence[ClientImport]) -> Marks:
    """What this client has been told of each target: which life it is in, and its last transno."""
    return {
        imp.target: (imp.instance, imp.replays.uncommitted[-1].transno if imp.replays.uncommitted else committed)
        for imp in imports
        for committed in [imp.last_committed]
    }


def unsettled(name: str, imports: Sequence[ClientImport], instances: dict[str, int]) -> list[str]:
    """What of a client's connections is not at rest, given which life each target is in."""
    busy = []
    for imp in imports:
        if why := import_busy(imp):
            busy.append(f"{name}: {why}")
        elif imp.instance != instances.get(imp.target, imp.instance):
            busy.append(f"{name}: the import of {imp.target} has not noticed its restart")
    return busy


class Servant:
    """Does what it is told with one mount."""

    def __init__(self, fs: FileSystem, process: Process) -> None:
        self.fs = fs
        self.process = process
        self.files: dict[int, File] = {}
        self.tasks: dict[asyncio.Task[None], None] = {}

    @property
    def imports(self) -> list[ClientImport]:
        """Its connections to the targets."""
        return list(self.fs.connections.imports.values())

    async def unsettled(self, instances: dict[str, int]) -> list[str]:
        """See above."""
        return unsettled(self.process.name, self.imports, instances)

    async def grants(self) -> list[Counted]:
        """What it counts of its grants."""
        return counted_by(self.fs)

    async def obey(self, reader: asyncio.StreamReader) -> None:
        """Until the end of the input."""
        while (request := await received(reader)) is not None:
            task = asyncio.ensure_future(self._do(*request))
            self.tasks[task] = None
            task.add_done_callback(self._ended)
        await asyncio.gather(*self.tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self.tasks[task]
        if (error := task.exception()) is not None:
            self.process.node.crash(repr(error), error)

    async def _do(self, number: int, what: str | int, method: str, args: Any, kwargs: Any) -> None:
        thing: Any = self.fs if what == FS else self if what == PROCESS else self.files[int(what)]
        try:
            outcome, value = DONE, await getattr(thing, method)(*args, **kwargs)
        except OpError as error:
            outcome, value = FAILED, error_as_data(error)
        if isinstance(value, File):
            self.files[number] = value
            outcome, value = FILE, number
        sys.stdout.buffer.write(packed((number, outcome, value, marks_of(self.imports))))
        sys.stdout.buffer.flush()


async def serve(process: Process) -> None:
    """The life of the client."""
    options = process.options
    fs = await FileSystem.mount(process.node, options.mgsnode, options.fsname)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    process.ready()
    sys.stdout.buffer.write(packed((0, DONE, (fs.connections.uuid, os.getpid()), {})))
    sys.stdout.buffer.flush()
    await Servant(fs, process).obey(reader)
    await fs.unmount()


def main() -> int:
    """Run until the end of the input; returns the exit status."""
    parser = arguments("client", __doc__.splitlines()[0])
    parser.add_argument("--mgsnode", type=nids, required=True)
    parser.add_argument("--fsname", required=True)
    parser.set_defaults(stdin=True)  # the standard output is for answers
    return run("client", parser.parse_args(), serve)


if __name__ == "__main__":
    sys.exit(main())
