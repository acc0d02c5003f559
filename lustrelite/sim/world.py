"""What a scenario may do to a cluster, whether it is simulated (sim/cluster.py) or made of processes (tests/processes).

    async with world(mds=1, oss=2, clients=2) as c:
        await c.mds.hold_commits()                  # Lustre's replay_barrier
        await c.a.write("/f", b"x")
        await c.mds.kill()
        await c.mds.start()
        assert await c.b.read("/f") == b"x"
        c.saw("import.replayed", client=c.a)

Leaving the `with` is a test too: everything is started and healed, every acknowledged operation must be there (the
oracle's judgement), fsck finds nothing, and nothing is left running.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from lustrelite.events import Event


class File(Protocol):
    """An open file of a client."""

    async def pread(self, size: int = -1, offset: int = 0) -> bytes: ...
    async def pwrite(self, data: bytes, offset: int = 0) -> None: ...
    async def fsync(self) -> None: ...
    async def close(self) -> None: ...


class Process(Protocol):
    """Anything that can be killed and started."""

    name: str

    @property
    def alive(self) -> bool: ...
    def kill(self) -> Awaitable[None]: ...
    async def start(self) -> None: ...
    def pause(self) -> Awaitable[None]: ...
    def resume(self) -> Awaitable[None]: ...


class Server(Process, Protocol):
    """An MDS, OSS or MGS with its targets. `target` of "" is all of them."""

    @property
    def targets(self) -> Sequence[str]: ...
    async def stop(self) -> None:
        """In good order."""

    async def prepare_power_cuts(self) -> None:
        """Before anything that shall be lost (on processes: it is restarted)."""

    def power_cut(self) -> Awaitable[None]:
        """Kill it, and of what its disks hold leave no more than was durable."""

    def hold_commits(self, target: str = "") -> Awaitable[None]: ...
    def release_commits(self, target: str = "") -> Awaitable[None]: ...
    async def commit(self, target: str = "") -> None:
        """Everything executed so far is durable when this returns."""

    def abort_recovery(self) -> Awaitable[None]: ...
    async def status(self) -> Mapping[str, Mapping[str, Any]]:
        """By target: instance, last_transno, last_committed, recovering, clients, recovery (a mapping or None)."""


class Client(Process, Protocol):
    """A mount. Its operations by path are recorded for the oracle; `fs` is the FileSystem itself, unrecorded."""

    fs: Any

    @property
    def uuid(self) -> str: ...
    async def unmount(self) -> None: ...
    async def mkdir(self, path: str, mode: int = 0o755) -> None: ...
    async def rmdir(self, path: str) -> None: ...
    async def create(self, path: str, mode: int = 0o644) -> None:
        """Make an empty file that must not exist yet."""

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Make or truncate the file and write it whole."""

    async def write_at(self, path: str, offset: int, data: bytes) -> None: ...
    async def truncate(self, path: str, size: int) -> None: ...
    async def read(self, path: str) -> bytes: ...
    async def unlink(self, path: str) -> None: ...
    async def rename(self, old: str, new: str) -> None: ...
    async def link(self, path: str, new: str) -> None: ...
    async def symlink(self, target: str, path: str) -> None: ...
    async def readlink(self, path: str) -> str: ...
    async def chmod(self, path: str, mode: int) -> None: ...

    async def utime(self, path: str, mtime: int, *, atime: int = 1) -> None:
        """Set the times, in nanoseconds: that of the last change to something that no clock shows (CLOCK_NS)."""

    async def setxattr(self, path: str, name: str, value: bytes) -> None: ...
    async def removexattr(self, path: str, name: str) -> None: ...
    async def getxattr(self, path: str, name: str) -> bytes: ...
    async def stat(self, path: str) -> Any: ...
    async def exists(self, path: str) -> bool: ...
    async def listdir(self, path: str) -> list[str]: ...
    async def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing."""


class Rule(Protocol):
    """What happens to some messages."""

    def lift(self) -> None:
        """No more."""

    def release(self) -> None:
        """Let held messages go, and catch no more."""

    async def caught(self, count: int = 1) -> None:
        """Wait until that many were matched."""


class Net(Protocol):
    """The network. `to` and `source` are handles; `reply` means the replies to these messages."""

    def drop(self, what: Any = None, *, to: Any = None, source: Any = None, reply: bool = False, times: int = 1) -> Rule: ...
    def hold(self, what: Any = None, *, to: Any = None, source: Any = None, reply: bool = False, times: int = -1) -> Rule: ...
    def slow(
        self, what: Any = None, *, delay_s: float, to: Any = None, source: Any = None, reply: bool = False, times: int = 1
    ) -> Rule: ...
    def double(self, what: Any = None, *, to: Any = None, source: Any = None, reply: bool = False, times: int = 1) -> Rule: ...
    def corrupt(self, what: Any = None, *, to: Any = None, source: Any = None, reply: bool = False, times: int = 1) -> Rule: ...
    def cut(self, x: Any, y: Any, *, one_way: bool = False) -> None: ...
    def heal(self) -> None: ...


class Faults(Protocol):
    """Named fault points (lustrelite/faults.py), armed at one process or at all of a kind."""

    def arm(self, point: str, action: str, *, on: Any = None, keep: bool = False, **how: Any) -> None:
        """Arm `point` with `action` at the handle `on` (default: every process); `keep` it over restarts."""

    def clear(self) -> None: ...


class World(Protocol):
    """A cluster: `c.mds`, `c.oss[i]`, clients `c.a`, `c.b` ... (also in `c.clients`), `c.net`, `c.faults`."""

    seed: int
    mgs: Server
    mds: Server
    oss: Sequence[Server]
    clients: Mapping[str, Client]
    net: Net
    faults: Faults

    def __getattr__(self, name: str) -> Client: ...  # c.a
    async def settle(self, timeout_s: float = 300.0) -> None:
        """Wait until every import of every living client and MDT is FULL and nothing is under way."""

    async def add_client(self, name: str = "") -> Client:
        """Mount once more."""

    def saw(self, event: str, *, times: int | None = None, **fields: Any) -> list[Event]:
        """Assert that the event happened (`times` times exactly) with these fields, and return them.

        A value may be a handle: `client=c.a` (its UUID, or events of its own), `target=c.mds`, `on=c.oss[0]`.
        """

    def never_saw(self, event: str, **fields: Any) -> None:
        """Assert that it did not happen."""

    async def until_saw(self, event: str, *, timeout_s: float = 300.0, **fields: Any) -> None:
        """Wait until the event has happened with these fields."""

    def expect(self, *events: str) -> None:
        """Warnings that this test causes: any other one fails it."""

    def transcript(self, *areas: str) -> str:
        """All events so far, one per line; only those whose names begin with one of `areas`."""

    # the words of Lustre's own test framework

    async def replay_barrier(self, server: Server) -> None:
        """From here on `server` commits nothing."""

    async def fail(self, server: Server) -> None:
        """Kill it, start it, and wait until everybody has recovered."""

    async def fail_abort(self, server: Server) -> None:
        """Kill it and start it without recovery: all its clients are evicted."""

    def drop_request(self, what: Any, times: int = 1) -> Rule: ...
    def drop_reply(self, what: Any, times: int = 1) -> Rule: ...
    async def evict(self, client: Client, server: Server | None = None) -> None:
        """By the administrator of `server` (default: the MDS)."""


def match(event: Event, fields: Mapping[str, Any]) -> bool:
    """Has the event these fields? Values may be handles of servers and clients."""
    for key, wanted in fields.items():
        if key == "on":
            if event.node != getattr(wanted, "name", wanted):
                return False
            continue
        value = event.fields.get(key)
        if isinstance(wanted, str | int | float | bool | bytes | tuple | list | None):
            if value != wanted:
                return False
        elif key == "target":
            if value not in wanted.targets:
                return False
        elif value not in (wanted.name, getattr(wanted, "uuid", None)) and not (value is None and event.node == wanted.name):
            return False
    return True


def lines(events: Iterable[Event], areas: Sequence[str]) -> str:
    """Events as text."""
    return "\n".join(
        f"{event.time:12.6f} {event.node:6} {event.name} "
        + " ".join(f"{key}={value}" for key, value in event.fields.items() if key != "message")
        for event in events
        if not areas or event.name.startswith(tuple(areas))
    )
