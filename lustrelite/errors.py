"""Errors by who must react. Everything else is a bug and ends the process.

A class exists only because some caller does something different for it.
"""

from __future__ import annotations

import errno
import os


class OpError(Exception):
    """The operation's own answer (a positive errno). Travels in the reply as a negative status; not a fault."""

    def __init__(self, number: int, what: str = "") -> None:
        super().__init__(number, what)
        self.errno = number
        self.what = what

    def __str__(self) -> str:
        text = f"{errno.errorcode.get(self.errno, self.errno)}: {os.strerror(self.errno)}"
        return f"{text}: {self.what}" if self.what else text


class LinkLost(Exception):
    """The connection is gone, the outcome unknown. Keep the request, reconnect, resend."""


class Evicted(OpError):
    """The target dropped us: locks, handles and uncommitted work are gone. EIO upwards."""

    def __init__(self, target: str, why: str = "") -> None:
        super().__init__(errno.EIO, f"evicted by {target}" + (f" ({why})" if why else ""))
        self.target = target


class Deactivated(OpError):
    """The import is switched off by the administrator or closed: fails at once. EIO upwards."""

    def __init__(self, target: str) -> None:
        super().__init__(errno.EIO, f"the connection to {target} is closed or inactive")


class ProtocolError(Exception):
    """The peer broke the rules. Close this connection; serve the others."""


class OtherVersion(ProtocolError, LinkLost):
    """The peer speaks another version of the wire protocol: trying again soon does not help."""


class StoreFailed(Exception):
    """A commit or the disk failed: the process must end, its successor gets the replays."""


class FormatRefused(Exception):
    """The directory was written by another format version, or is no target: says which and what to do."""
