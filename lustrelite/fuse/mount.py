"""A file system mounted in the kernel: FileSystem, a session with the kernel, and what connects them."""

from __future__ import annotations

from typing import NamedTuple

from lustrelite.client.fs import FileSystem
from lustrelite.fuse import kernel
from lustrelite.fuse.caller import Callers
from lustrelite.fuse.files import Files
from lustrelite.fuse.flags import Flags
from lustrelite.fuse.inodes import Inodes
from lustrelite.fuse.kernel import init, op
from lustrelite.fuse.names import Names
from lustrelite.fuse.session import WANTED_FLAGS, Request, Session


class Options(NamedTuple):
    """Of a mount, as far as they are not the kernel's."""

    noatime: bool = False
    strictatime: bool = False


class Mount:
    """One mount."""

    def __init__(self, fs: FileSystem, session: Session, options: Options) -> None:
        self.fs = fs
        self.session = session
        self.options = options
        self.caches = fs.connections.caching  # may the kernel keep anything?
        self.inodes = Inodes(fs, session)
        self.callers = Callers(fs)
        self.names = Names(self)
        self.files = Files(self)
        session.handlers = {**self.names.handlers, **self.files.handlers, **Flags(self).handlers}
        session.silent = {op.FORGET: self._forget, op.BATCH_FORGET: self._forget_many}
        session.in_task = {op.STATFS: None}
        # A shared mapping of what is opened DIRECT_IO is pages of the kernel all the same: not without locks.
        session.wanted_flags = WANTED_FLAGS if self.caches else WANTED_FLAGS & ~init.DIRECT_IO_ALLOW_MMAP
        self._follow()

    def _follow(self) -> None:
        """Hear of every lock that goes."""
        connections = self.fs.connections
        if connections.names is not None:
            connections.names.on_lost, connections.names.on_change = self.inodes.lost, self.inodes.changing
        lov = connections.lov
        if self.caches:
            lov.on_withdraw, lov.on_lost, lov.believed = self.inodes.withdraw, self.inodes.lost_data, self.inodes.believes

    def start(self) -> None:
        """Begin to serve."""
        self.session.start()

    def _forget(self, body: memoryview, request: Request) -> None:
        (lookups,), _, _ = kernel.decode(op.FORGET, body)
        self.inodes.forget(request.node, lookups)

    def _forget_many(self, body: memoryview, request: Request) -> None:
        (count, _), _, rest = kernel.decode(op.BATCH_FORGET, body)
        for each in kernel.forgets(count, rest):
            self.inodes.forget(*each)
