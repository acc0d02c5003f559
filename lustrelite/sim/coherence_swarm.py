"""Many small runs against the coherence checker: 2 to 8 clients on a few shared files and names, under fire.

    python -m lustrelite.sim.swarm --coherence --seed 1 --runs 5000

A run: 1 MDS, 2 OSTs, 2 to 8 clients of which all, none or some cache, about 120 operations, 1 to 4 faults. Files /d/...
are there from the start: two for everything, one that is only appended to. In /n names come and go, also of open files.
What everybody did and saw goes to coherence.History, and at the end, when all is healed, everybody who lives looks at
everything once more, writes back, and somebody new looks at it, too. The same seed gives the same history to the last
bit.

A client that does not cache takes no locks, so its appends are not atomic: it makes none, except if nobody caches, and
then one client alone appends to one file.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ClassVar, NamedTuple

from lustrelite.errors import OpError
from lustrelite.events import Event
from lustrelite.ids import ROOT_FID, Fid, fid_text, target_name
from lustrelite.sim import coherence
from lustrelite.sim.cluster import TUNABLES, Cluster, Violation
from lustrelite.sim.coherence_history import Data, File, History, Op, fill, parse
from lustrelite.sim.nemesis import CACHE_ACTS, SILENCE_ACTS
from lustrelite.sim.processes import FSNAME, NodeDied, SimClient, SimServer, close_late
from lustrelite.sim.runs import (
    LATE,
    Budget,
    Run,
    contend,
    draw_budget,
    draw_caching,
    draw_clocks,
    draw_cluster,
    draw_disks,
    recorded,
)
from lustrelite.wire.mdt import StripeHint

OPERATIONS = 120
STRIPE_SIZE = 65536
MDT = target_name(FSNAME, "MDT", 0)
FILES, LOG = ("/d/0", "/d/1"), "/d/log"
NAMES = tuple("abcde")
OFFSETS = (0, 64, 4032, 4096, 8192, 20032, STRIPE_SIZE - 128, STRIPE_SIZE, 2 * STRIPE_SIZE - 64)
LENGTHS = (64, 64, 128, 4096, 4096, 8192, 20032)
LOCK_OWNERS, LAST_BYTE = 1000, (1 << 63) - 1
NEEDS_ROOM = ("write", "append", "truncate", "create", "mkdir", "rename", "link", "chmod")
WATCHES_MAX, WATCHED_BYTES = 200, 24576
READ_BYTES = 4 * STRIPE_SIZE  # more than any of these files has


class Theme(NamedTuple):
    """What a run's workers do, and how fast."""

    files: tuple[str, ...]
    names: tuple[str, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    pace: int  # how long pauses are: some runs last longer than leases


BROAD = Theme((FILES[0], *FILES, LOG), NAMES, OFFSETS, LENGTHS, 1)
FOCUSED = Theme((FILES[0],), NAMES[:2], (0, 64, 4032), (64, 128, 4096), 1)  # so that everybody meets everybody


class CoherenceCluster(Cluster):
    """A cluster whose history is the coherence checker's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        lease_s = self.tunables.lock_callback_s - self.tunables.lock_lease_margin_s
        self.names_fid: Fid = ROOT_FID  # of the directory /n
        self.history = History(self.loop.time, lease_s=lease_s, mark=self._mark)
        self.history.rpc_bytes = self.tunables.max_bytes_per_rpc

    def draw_caching(self, seed: int, caching: int, drawn: Sequence[int]) -> None:
        """Which clients cache (runs.draw_caching); the history knows it too."""
        draw_caching(self, seed, caching, drawn)
        for client in self.clients.values():
            if client.tunables["caching"]:
                self.history.caching[client.life] = None

    async def prepare(self, stripe_counts: Sequence[int]) -> None:
        """Make the directories and files that are there from the start."""
        first = self.clients["a"]
        await first.unrecorded(first.fs.mkdir("/d", 0o755))
        self.names_fid = (await first.unrecorded(first.fs.mkdir("/n", 0o755))).fid
        for number, path in enumerate((*FILES, LOG)):
            hint = StripeHint(stripe_counts[number], STRIPE_SIZE, number % 2)
            await first.unrecorded(first.fs.create(path, 0o644, hint))
        await first.unrecorded(first.fs.sync())

    def record(self, event: Event) -> None:
        """Sink of every node's events."""
        super().record(event)
        if str(event.fields.get("target", "")).startswith("MGS"):
            return
        if event.name == "client.evicted":
            for client in self.clients.values():
                if event.fields["client"] in client.uuids:
                    self.history.evicted(
                        client.life, event.fields["target"], str(event.fields["why"]), bool(event.fields["recovering"])
                    )
        elif event.name == "import.evicted" and event.node in self.clients:
            self.history.noticed(self.clients[event.node].life, event.fields["target"])
        elif event.name == "lock.forsaken":
            self.history.forsaken(self.clients[event.node].life, event.fields["target"])
        elif event.name.startswith("lock.forsaken_"):
            kept = event.name == "lock.forsaken_kept"
            self.history.forsaken_no_more(self.clients[event.node].life, event.fields["target"], kept=kept)
        elif event.name == "recovery.over" or (event.name == "target.started" and not event.fields["clients"]):
            self.history.is_back(event.fields["target"])
        elif event.name == "node.killed" and event.node in self.clients:
            self.history.killed(self.clients[event.node].life)

    def died(self, server: SimServer) -> None:
        """A server runs no more."""
        for target in list(self._running.values()):
            if target.node is server.node:
                self.history.died(target.name, target.instance, target.last_transno, target.last_committed)
        super().died(server)

    async def conclude(self) -> None:
        """Heal everything, look at everything, then judge."""
        await self.recover()
        await self.settle()
        living = [client for client in self.clients.values() if client.alive]
        for client in living:
            await Inspector(self, client).look_at_everything()
        for client in living:
            await Recorder(self, client).call([], client.fs.sync())
        await self.bury()
        await self.settle()
        self.check_crashes()
        reader = await self.add_client("reader")
        await Inspector(self, reader).look_at_everything()
        problems = coherence.check(self.history, mdt=MDT, names=NAMES)
        if problems:
            raise Violation(f"seed {self.seed}: not coherent:\n  " + "\n  ".join(problems))
        for client in [*living, reader]:
            for file in list(client.fs.connections.open_files.all()):
                await Recorder(self, client).call([], file.close())
        await self.check_disks()
        if self.orderly:
            await self.leave()
        self.check_crashes()


class Handle:
    """An open file."""

    def __init__(self, number: int, file: Any, path: str) -> None:
        self.number = number
        self.file = file
        self.path = path
        self.fid = fid_text(file.fid)
        self.writable = file.writable


class Recorder:
    """Does one client's operations and writes them down."""

    def __init__(self, cluster: CoherenceCluster, client: SimClient) -> None:
        self.cluster = cluster
        self.history = cluster.history
        self.client = client

    async def call(
        self, ops: Sequence[Op], coro: Coroutine[Any, Any, Any], results: Callable[[Any], Sequence[Any]] = lambda _: (),
        refusals: Sequence[int] = (),
    ) -> Any:  # fmt: skip
        """Do what `ops` speak of by `coro`; `results` makes one of each from what it returns. None if it failed."""
        history = self.history
        assert self.client.node is not None
        try:
            found = await self.cluster.finish(self.client.node, coro, ops[0].kind if ops else "call")
        except OpError as error:
            for op in ops:
                if error.errno in refusals:
                    history.refused(op, error.errno)
                else:
                    history.failed(op, error.errno)
            if error.errno == errno.ENOSPC and self.cluster.short_of_space and ops and _needs_room(ops[0]):
                return None
            if error.errno in refusals or self._gone() or self._vanished(ops, error.errno):  # it is forgotten, or gone
                return None
            what = ops[0] if ops else "call"
            raise Violation(f"{self.client.name}: {what}: {error}, without an eviction") from None
        except BaseException:
            for op in ops:
                history.failed(op)
            raise
        answers = results(found)
        for number, op in enumerate(ops):
            history.succeeded(op, answers[number] if answers else None)
        return found if found is not None else True

    def _vanished(self, ops: Sequence[Op], number: int) -> bool:
        """The file is gone with the MDS.

        An open was executed and its answer lost; until it came again, others had removed the file. Or it was open here, and
        whoever had made it died with the MDS before that was durable.
        Source: mdt_reconstruct_open(), which evicts the client for it; rebuild_open(), mdt/open.py; seeds 2014, 3814, 2610389
        """
        if number != errno.ESTALE or not ops:
            return False
        since = ops[0].invoked
        if ops[0].kind != "open":
            gone = {gone.client for gone in self.history.gone}
            made = [op.invoked for op in self.history.ops if op.result == ops[0].target and op.client in gone]
            if not made:
                return False
            since = min(made)
        return any(death.target == MDT and death.when > since for death in self.history.deaths)

    def _gone(self) -> bool:
        return any(gone.client == self.client.life for gone in self.history.gone)

    def begin(self, kind: str, target: str, *args: Any, handle: int = 0) -> Op:
        """See History.begin."""
        return self.history.begin(self.client.life, kind, target, *args, handle=handle)

    async def open(self, path: str, flags: int, name: str = "") -> Handle | None:
        """Open a file; `name` if it is one of those that come and go."""
        ops = [self.begin("open", name, bool(flags & os.O_CREAT))] if name else []
        file = await self.call(
            ops, self.client.fs.open(path, flags, 0o600), lambda file: [fid_text(file.fid)] if ops else [],
            (errno.ENOENT, errno.EISDIR) if ops else (),
        )  # fmt: skip
        if file is None:
            return None
        handle = Handle(self.cluster.new_handle(), file, path)
        if handle.fid not in self.history.files and file.layout is not None:
            stripes = tuple(target_name(FSNAME, "OST", index) for index, _ in file.layout.stripes)
            self.history.files[handle.fid] = File(file.layout.stripe_size, stripes)
        return handle

    async def pread(self, handle: Handle, offset: int, length: int) -> Any:
        op = self.begin("read", handle.fid, offset, length, handle=handle.number)
        return await self.call(
            [op], handle.file.pread(length, offset), lambda data: [Data(len(data), parse(bytes(data), offset))]
        )

    async def pwrite(self, handle: Handle, offset: int, length: int, *, append: bool = False) -> Any:
        tag = self.history.new_tag()
        if append:
            op = self.begin("append", handle.fid, length, tag, handle=handle.number)
        else:
            op = self.begin("write", handle.fid, offset, length, tag, handle=handle.number)
        return await self.call([op], handle.file.pwrite(fill(tag, length), offset))

    async def truncate(self, handle: Handle, size: int) -> Any:
        op = self.begin("truncate", handle.fid, size, handle=handle.number)
        return await self.call([op], handle.file.truncate(size))

    async def fsync(self, handle: Handle) -> Any:
        return await self.call([self.begin("fsync", handle.fid, handle=handle.number)], handle.file.fsync())

    async def size(self, handle: Handle) -> Any:
        op = self.begin("size", handle.fid, handle=handle.number)
        return await self.call([op], handle.file.fstat(), lambda st: [st.size])

    async def stat(self, name: str) -> Any:
        """A look at a name, and at what it leads to: several operations that begin and end together."""
        op = self.begin("lookup", name)

        def seen(st: Any) -> list[str]:
            fid = fid_text(st.fid)
            if stat.S_ISDIR(st.mode):
                self.history.directories[fid] = None
            also = [("links", st.nlink), ("mode", stat.S_IMODE(st.mode))]
            if fid in self.history.files:
                also.append(("size", st.size))
            for kind, found in also:
                self.history.succeeded(self.history.also(op, kind, fid), found)
            return [fid]

        return await self.call([op], self.client.fs.lstat(f"/n/{name}"), seen, (errno.ENOENT,))


def _needs_room(op: Op) -> bool:
    return op.args[0] is True if op.kind == "open" else op.kind in NEEDS_ROOM


class Inspector(Recorder):
    """Looks at everything, at the end."""

    async def look_at_everything(self) -> None:
        """As a client that lives, or as a new one."""
        for path in (*FILES, LOG):
            handle = await self.open(path, os.O_RDONLY)
            if handle is None:  # it was evicted and did not know; now it does
                handle = await self.open(path, os.O_RDONLY)
            assert handle is not None, path
            await self.look_at(handle)
            await self.call([], handle.file.close())
        for name in NAMES:
            st = await self.stat(name)
            if st is not None and stat.S_ISREG(st.mode):
                handle = await self.open(f"/n/{name}", os.O_RDONLY, name)
                if handle is not None:
                    await self.look_at(handle)
                    await self.call([], handle.file.close())

    async def look_at(self, handle: Handle) -> None:
        """At the data and size of a file."""
        await self.pread(handle, 0, READ_BYTES)
        await self.size(handle)


class Worker(Recorder):
    """One line of operations of one client."""

    DATA_ACTS: ClassVar[dict[str, int]] = {
        "read": 30, "read all": 10, "size": 12, "fsync": 5, "lock": 6, "write": 30, "truncate": 7, "append": 8,
    }  # fmt: skip
    NAME_ACTS: ClassVar[dict[str, int]] = {
        "stat": 24, "list": 8, "create": 18, "mkdir": 4, "unlink": 12, "rmdir": 4, "rename": 14, "link": 6,
        "open": 12, "chmod": 6,
    }  # fmt: skip
    READS_ONLY = 0.4  # of the opens of a name
    CHMODS = 0.5  # of the files that are made

    def __init__(
        self, cluster: CoherenceCluster, client: SimClient, number: int, rng: random.Random, budget: Budget, theme: Theme
    ) -> None:
        super().__init__(cluster, client)
        self.name = f"{client.name}{number}"
        self.random = rng
        self.budget = budget
        self.theme = theme
        # Without locks an append is not atomic: if nobody caches, one client alone appends, to the log.
        self.appends = client.life in self.history.caching
        self.appends_to_log = self.appends or (not self.history.caching and client.name == "a")
        self.handles: dict[tuple[str, bool], Handle] = {}  # by path, or FID in /n, and whether it appends
        self.locked: Handle | None = None  # where it has record locks

    async def work(self) -> None:
        """Until the budget is used up or the client is no more."""
        try:
            while self.budget.take(self.client.name):
                await self.step()
                if self.random.random() < 0.4:
                    await asyncio.sleep(self.theme.pace * self.random.choice((0.001, 0.01, 0.2, 1.5)))
            await self.unlock()
        except NodeDied:
            return

    async def step(self) -> None:
        """One operation."""
        if self.random.random() < self.budget.contest_weight / 100:
            await self.do_names()
        else:
            await self.do_data(await self.data_handle())

    # -- data

    async def data_handle(self, append: bool = False, path: str = "") -> Handle | None:
        """An open file of /d, or of /n."""
        if not path:
            there = [h for (key, appends), h in self.handles.items() if key.startswith("[") and not appends]
            if there and self.random.random() < 0.2:
                return self.random.choice(there)
            path = self.random.choice(self.theme.files)
        handle = self.handles.get((path, append))
        if handle is None:
            handle = await self.open(path, os.O_RDWR | (os.O_APPEND if append else 0))
            if handle is not None:
                self.handles[path, append] = handle
        return handle

    async def do_data(self, handle: Handle | None) -> None:
        """Something with an open file."""
        if handle is None:
            return
        log = handle.path == LOG
        mine = self.appends_to_log if log else self.appends
        weights = dict(self.DATA_ACTS)
        if log:
            weights |= {"write": 0, "truncate": 0, "append": self.DATA_ACTS["write"]}
        if not mine:
            weights["append"] = 0
        if not handle.writable:
            weights |= dict.fromkeys(("write", "truncate", "append", "lock"), 0)
        choices: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "read": lambda: self.pread(handle, *self.extent()),
            "read all": lambda: self.pread(handle, 0, READ_BYTES),
            "size": lambda: self.size(handle),
            "fsync": lambda: self.fsync(handle),
            "lock": lambda: self.unlock() if self.locked else self.lock(handle),
            "write": lambda: self.pwrite(handle, *self.extent()),
            "truncate": lambda: self.truncate(handle, self.extent()[0]),
            "append": lambda: self.append(handle),
        }
        act = self.random.choices(list(weights), list(weights.values()))[0]
        if await choices[act]() is None:
            await self.drop(handle)

    def extent(self) -> tuple[int, int]:
        """(offset, length), such that others meet it."""
        return self.random.choice(self.theme.offsets), self.random.choice(self.theme.lengths)

    async def append(self, handle: Handle) -> Any:
        if handle.path.startswith("/n"):
            return True  # its name may lead to another file by now
        opened = await self.data_handle(True, handle.path)
        if opened is None:
            return True
        done = await self.pwrite(opened, 0, min(self.random.choice(self.theme.lengths), 8192), append=True)
        if done is None:
            await self.drop(opened)
        return True

    async def lock(self, handle: Handle) -> Any:
        """A record lock, for this worker."""
        exclusive, waits = self.random.random() < 0.6, self.random.random() < 0.5
        start, length = self.random.choice((0, 0, 10)), self.random.choice((10, 20))
        how = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if waits else fcntl.LOCK_NB)
        op = self.begin("flock", handle.fid, self.name, exclusive, start, start + length - 1, waits, handle=handle.number)
        lock = handle.file.lockf(how, start, length, owner=LOCK_OWNERS + int(self.name[1:]))
        if await self.call([op], lock, refusals=(errno.EWOULDBLOCK, errno.EDEADLK)):
            self.locked = handle
        return True

    async def unlock(self) -> Any:
        """Give it back, and all that a lock without an answer may have left."""
        handle, self.locked = self.locked, None
        if handle is not None:
            op = self.begin("flock", handle.fid, self.name, None, 0, LAST_BYTE, False, handle=handle.number)
            await self.call([op], handle.file.lockf(fcntl.LOCK_UN, owner=LOCK_OWNERS + int(self.name[1:])))
        return True

    async def drop(self, handle: Handle) -> None:
        """It is of no use any more."""
        if handle is self.locked:
            await self.unlock()
        for key, known in list(self.handles.items()):
            if known is handle:
                del self.handles[key]
        op = self.begin("close", handle.fid, handle=handle.number)
        late = self.random.random() < LATE
        await self.call([op], close_late(handle.file) if late else handle.file.close())

    # -- names

    async def do_names(self) -> None:
        """Something in /n."""
        fs, name, other = self.client.fs, *self.random.choices(self.theme.names, k=2)
        path = f"/n/{name}"
        act = self.random.choices(list(self.NAME_ACTS), list(self.NAME_ACTS.values()))[0]
        if act == "stat":
            await self.stat(name)
        elif act == "list":
            await self.call([self.begin("list", "/n")], self._list(), lambda found: [found])
        elif act in ("create", "mkdir"):
            op = self.begin(act, name)
            make = fs.create(path, 0o644) if act == "create" else fs.mkdir(path, 0o755)
            made = await self.call([op], make, lambda st: [fid_text(st.fid)], (errno.EEXIST,))
            if made is not None and act == "mkdir":
                self.history.directories[fid_text(made.fid)] = None
        elif act == "unlink":
            await self.call([self.begin(act, name)], fs.unlink(path), refusals=(errno.ENOENT, errno.EISDIR))
        elif act == "rmdir":
            await self.call([self.begin(act, name)], fs.rmdir(path), refusals=(errno.ENOENT, errno.ENOTDIR))
        elif act == "rename":
            refusals = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
            await self.call([self.begin(act, name, other)], fs.rename(path, f"/n/{other}"), refusals=refusals)
        elif act == "open":
            await self.open_name(name)
        else:
            await self.with_fid(act, name, other)

    async def _list(self) -> dict[str, str]:
        found = {}
        async for entry in self.client.fs.scandir("/n", sizes=False):
            found[os.fsdecode(entry.name)] = fid_text(entry.fid)
        return found

    async def open_name(self, name: str) -> None:
        """Open it, perhaps make it, and keep it open."""
        how = self.random.random()
        if how < self.READS_ONLY:
            handle = await self.open_seen(name)
        else:
            create = how < (1 + self.READS_ONLY) / 2
            handle = await self.open(f"/n/{name}", os.O_RDWR | (os.O_CREAT if create else 0), name)
            if create and handle is not None and self.CHMODS and self.random.random() < self.CHMODS:  # nobody else may have seen it
                await self.chmod(handle.fid, handle.file.fid)
        if handle is None:
            return
        old = self.handles.get((handle.fid, False))
        self.handles[handle.fid, False] = handle
        if old is not None:
            await self.drop(old)

    async def open_seen(self, name: str) -> Handle | None:
        """Open what is seen there, to be read: the MDT need not hear of that."""
        st = await self.stat(name)
        if st is None or not stat.S_ISREG(st.mode):
            return None
        file = await self.call([], self.client.fs.open_fid(st.fid), refusals=(errno.ENOENT, errno.ESTALE))
        return Handle(self.cluster.new_handle(), file, f"/n/{name}") if file is not None else None

    async def with_fid(self, act: str, name: str, other: str) -> None:
        """A link, or a chmod, of what a name leads to: that is seen first."""
        st = await self.stat(name)
        if st is None or not stat.S_ISREG(st.mode):
            return
        if act == "link":
            link = self.client.fs.link_at(st.fid, self.cluster.names_fid, other.encode())
            await self.call([self.begin("link", other, fid_text(st.fid))], link, refusals=(errno.EEXIST, errno.ENOENT))
            return
        await self.chmod(fid_text(st.fid), st.fid)

    async def chmod(self, target: str, fid: Fid) -> None:
        """Change its permissions."""
        mode = self.history.new_mode()
        op = self.begin("chmod", target, mode)
        await self.call([op], self.client.fs.change_fid(fid, mode=mode), refusals=(errno.ENOENT,))


class Watcher(Worker):
    """Looks at one thing again and again: what a cache is good for, also while its client is cut off."""

    async def work(self) -> None:
        """As long as others work."""
        path, name = self.theme.files[-2 % len(self.theme.files)], self.theme.names[0]
        what = self.random.choice(("read", "read", "size", "stat"))
        try:
            for _ in range(WATCHES_MAX):
                await asyncio.sleep(self.random.choice((0.02, 0.3, 1.0)))
                if not self.budget.left or self.budget.leaves(self.client.name):
                    break
                if what == "stat":
                    await self.stat(name)
                    continue
                handle = await self.data_handle(path=path)
                if handle is None:
                    continue
                look = self.pread(handle, 0, WATCHED_BYTES) if what == "read" else self.size(handle)
                if await look is None:
                    await self.drop(handle)
        except NodeDied:
            return


async def simulate(record: Run, operations: int = OPERATIONS, caching: int = -1) -> None:
    """Run `record.seed` and fill `record` in.

    Raises what went wrong. `caching`: 0 nobody, 1 all, 2 some, -1 by chance.
    """
    rng = random.Random(f"coherence {record.seed}")
    count = rng.choice((2, 2, 3, 3, 4, 5, 6, 8))
    cluster = CoherenceCluster(
        oss=2, clients=count, tunables=TUNABLES, **draw_cluster(rng, record.seed), stripe_count=1, stripe_size=STRIPE_SIZE,
        commit_on_sharing=rng.randrange(2),
    )  # fmt: skip
    cluster.draw_caching(record.seed, caching, (0, 1, 1, 1, 1, 2))
    draw_clocks(cluster, record.seed)
    draw_disks(cluster, record.seed)
    with recorded(record, cluster, cluster.history.ops):
        async with cluster as c:
            await c.prepare([rng.choice((1, 1, 2)) for _ in range(3)])
            budget = draw_budget(c, rng, record.seed, operations, range(1, 5), (10, 35, 35, 80))
            theme = rng.choice((BROAD, BROAD, FOCUSED))._replace(pace=rng.choice((1, 4, 8)))
            workers = [
                Worker(c, client, number, random.Random(f"worker {record.seed} {client.name}{number}"), budget, theme)
                for client in c.clients.values()
                for number in range(rng.choice((1, 1, 2)))
            ]
            if theme.files == FOCUSED.files or rng.random() < 0.5:
                workers += [
                    Watcher(c, client, 9, random.Random(f"watcher {record.seed} {client.name}"), budget, theme)
                    for client in c.clients.values()
                ]
            acts = SILENCE_ACTS if theme.files == FOCUSED.files and rng.random() < 0.6 else CACHE_ACTS
            await contend(record, c, workers, budget, acts)
