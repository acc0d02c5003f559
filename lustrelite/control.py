"""The side socket of a process: JSON lines over a Unix socket, beside the protocol, so that it answers when that hangs.

A request is one line `{"id": 1, "cmd": "get_param", ...}`, the answer one line `{"id": 1, "ok": true, "result": ...}`
or `{"id": 1, "ok": false, "error": "what to do"}`. Whoever may open the socket (its directory is private to the user)
may do everything. Requests of one connection are answered in order.

A path longer than the kernel's 108 bytes is reached through /proc/self/fd, so a deep state directory works as well.

This is the side that asks. Who answers is control_server.py, which brings asyncio: commands need not wait for that.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any, Self

LINE_BYTES_MAX = 4 << 20
NO_MATCH = "no parameter matches"  # how a refusal begins of somebody who is not meant


def unix_socket(path: Path, connect: bool) -> socket.socket:
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


class ControlFailed(Exception):
    """The process does not answer, or refuses; the text says what to do."""


class NotThere(ControlFailed):
    """It does not run, or its socket is not ours to open."""


class NoAnswer(ControlFailed):
    """It runs and does not answer."""


class ControlClient:
    """A blocking connection to a process's side socket, for the command line."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        try:
            self._socket = unix_socket(path, connect=True)
        except OSError as error:
            raise NotThere(f"nobody answers at {path} ({error.strerror}): is the process running?") from None
        self._name = path.stem
        self._socket.settimeout(timeout_s)
        self._answers = self._socket.makefile("rb")

    def call(self, cmd: str, **fields: Any) -> Any:
        """The result of `cmd`; ControlFailed if it was refused or there was no answer."""
        try:
            self._socket.sendall(json.dumps({"id": 1, "cmd": cmd, **fields}).encode() + b"\n")
            line = self._answers.readline(LINE_BYTES_MAX)
        except TimeoutError:
            waited = f"{self._name} has not answered {cmd} in {self._socket.gettimeout():g} s"
            raise NoAnswer(f"{waited}: it is stopped (SIGSTOP, a frozen container), or waits for its disk") from None
        except OSError as error:
            raise ControlFailed(f"{cmd}: {error}") from None
        if not line.endswith(b"\n"):
            raise ControlFailed(f"the process ended during {cmd}")
        answer = json.loads(line)
        if not answer["ok"]:
            raise ControlFailed(str(answer["error"]))
        return answer["result"]

    def close(self) -> None:
        """Hang up."""
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def call(path: Path, cmd: str, timeout_s: float = 10.0, **fields: Any) -> Any:
    """One command over a connection of its own."""
    with ControlClient(path, timeout_s) as client:
        return client.call(cmd, **fields)
