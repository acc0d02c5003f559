"""What goes wrong in a run of the swarm: a few acts of violence, drawn from the seed, between a run's operations.

An act does its harm at once; most put it right themselves after a while (restart, heal, resume), as machines and their
administrators do. What is still wrong at the end of the operations, `Cluster.recover` puts right.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from lustrelite.sim.cluster import Cluster
from lustrelite.sim.net import Rule
from lustrelite.sim.oracle import OK
from lustrelite.sim.processes import NodeDied, SimClient, SimProcess, SimServer

MESSAGES = (
    "Create", "Open", "Close", "Reopen", "Closes", "Unlink", "Rename", "Link", "Setattr", "Setxattr", "Lookup", "Getattr", "Write", "Read",
    "Punch", "Destroy", "OstCreate", "Connect", "Ping", "Readdir", "ConfigRead", "TargetRegister", "AllocateSequence",
)  # fmt: skip
CHANGES = ("Create", "Open", "Close", "Reopen", "Closes", "Unlink", "Rename", "Link", "Setattr", "Setxattr", "Write", "Punch", "Destroy")
CHANGES_ONCE = ("Unlink", "Rename", "Link", "Open", "Create")  # doing them twice gives another answer
SLOW_POINTS = ("target.execute", "target.connect", "target.replay", "client.replay", "client.replay_done")


class Act(NamedTuple):
    """One kind of violence."""

    name: str
    weight: int
    perform: Callable[[Nemesis], Awaitable[None]]


class Nemesis:
    """Performs acts on a cluster."""

    def __init__(self, cluster: Cluster, rng: random.Random, acts: Sequence[Act] = ()) -> None:
        self.acts = acts or ACTS
        self.cluster = cluster
        self.random = rng
        self.performed: list[str] = []
        self.client_killed = False
        self._tasks: list[asyncio.Task[None]] = []

    async def act(self) -> None:
        """Do one thing."""
        acts = [act for act in self.acts if not (self.client_killed and act.name.startswith("kill client"))]
        act = self.random.choices(acts, [act.weight for act in acts])[0]
        self.performed.append(act.name)
        self.cluster.note("nemesis.acted", act=act.name)
        await act.perform(self)

    async def finish(self) -> None:
        """Wait until what was begun has been put right."""
        for task in self._tasks:
            await task

    def later(self, delay_s: float, put_right: Callable[[], Awaitable[None] | None]) -> None:
        """Put something right after a while."""

        async def wait() -> None:
            await asyncio.sleep(delay_s)
            pending = put_right()
            if pending is not None:
                await pending

        self._tasks.append(self.cluster.loop.create_task(wait(), name="nemesis"))

    def pause_s(self) -> float:
        """A while: mostly short, sometimes longer than timeouts."""
        return self.random.choice((0.0, 0.05, 0.3, 1.0, 3.0, 8.0, 25.0)) * self.random.uniform(0.5, 1.0)

    def server(self) -> SimServer:
        """A server with a target that recovers."""
        return self.random.choice([self.cluster.mds, self.cluster.mds, *self.cluster.oss])

    def client(self) -> SimClient | None:
        """A living client."""
        alive = [client for client in self.cluster.clients.values() if client.alive]
        return self.random.choice(alive) if alive else None

    def process(self) -> SimProcess:
        """Anything."""
        return self.random.choice(
            [*self.cluster.servers, *[c for c in self.cluster.clients.values() if c.alive]]
        )

    async def restart(self, server: SimServer) -> None:
        """Start it, unless somebody did. Who kills it meanwhile starts it again."""
        if not server.alive:
            with suppress(NodeDied):
                await server.start()


async def kill_server(n: Nemesis) -> None:
    server = n.server()
    server.kill(silent=n.random.random() < 0.2)
    n.later(n.pause_s(), lambda: n.restart(server))


async def _hold_and_kill(n: Nemesis) -> None:
    server = n.random.choice([n.cluster.mds, n.cluster.mds, *n.cluster.oss])
    server.hold_commits()

    async def kill() -> None:
        server.kill()
        await asyncio.sleep(n.pause_s())
        await n.restart(server)

    n.later(n.random.uniform(0.001, 0.1), kill)


async def _kill_twice(n: Nemesis) -> None:
    """The second time in the middle of recovery."""
    server = n.server()
    server.kill()

    async def again() -> None:
        await n.restart(server)
        await asyncio.sleep(n.random.uniform(0.0, 0.5))
        server.kill()
        await asyncio.sleep(n.pause_s())
        await n.restart(server)

    n.later(n.random.uniform(0.0, 1.0), again)


async def _kill_mgs(n: Nemesis) -> None:
    n.cluster.mgs.kill()
    n.later(n.pause_s(), lambda: n.restart(n.cluster.mgs))


async def kill_everything(n: Nemesis) -> None:
    servers = [n.cluster.mds, *n.cluster.oss]
    for server in servers:
        server.kill()
    for server in servers:
        n.later(n.random.uniform(0.0, 3.0), lambda server=server: n.restart(server))  # type: ignore[misc]


async def _power_cut(n: Nemesis) -> None:
    server = n.random.choice(n.cluster.oss)
    server.power_cut()
    n.later(n.pause_s(), lambda: n.restart(server))


async def restart_in_order(n: Nemesis) -> None:
    server = n.server()

    async def restart() -> None:
        """Takes a while: clients write back and give their locks back."""
        if server.alive and server.node is not None and not server.node.paused:
            try:
                await server.stop()
            except NodeDied:
                return  # whoever killed it restarts it
            await asyncio.sleep(n.pause_s())
            await n.restart(server)

    n.later(0.0, restart)


async def kill_client(n: Nemesis) -> None:
    client = n.client()
    if client is not None:
        n.client_killed = True
        client.kill(silent=n.random.random() < 0.3)


async def kill_client_and_server(n: Nemesis) -> None:
    """What the client did is lost as far as it was not durable, and what depends on it must go with it."""
    server = n.server()
    if n.random.random() < 0.8:
        server.hold_commits()

    async def kill() -> None:
        client = n.client()
        if client is not None and not n.client_killed:
            n.client_killed = True
            client.kill()
        if server in n.cluster.oss and n.random.random() < 0.7:
            server.power_cut()
        else:
            server.kill()
        await asyncio.sleep(n.pause_s())
        await n.restart(server)

    n.later(n.random.uniform(0.001, n.random.choice((0.1, 1.0))), kill)


async def _kill_what_others_stand_on(n: Nemesis) -> None:
    """A client dies with the MDS while others have built on what it did and what is not durable."""
    server = n.cluster.mds
    server.hold_commits()
    ops = n.cluster.oracle.ops
    begun = len(ops)

    def depended_on() -> str:
        made: dict[str, str] = {}
        for op in ops[begun:]:
            if op.outcome == OK and op.name in ("create", "mkdir", "rename") and op.client not in n.cluster.oracle.gone:
                for path in op.args[:2]:
                    if path in made and made[path] != op.client:
                        return made[path]
                if op.name != "rename":
                    made[op.args[0]] = op.client
        return ""

    async def kill() -> None:
        for _ in range(400):
            if depended_on():
                break
            await asyncio.sleep(0.005)
        name = depended_on()
        victim = next((c for c in n.cluster.clients.values() if c.alive and c.life == name), None)
        if victim is not None and not n.client_killed:
            n.client_killed = True
            victim.kill()
        server.kill()
        await asyncio.sleep(n.pause_s())
        await n.restart(server)

    n.later(0.0, kill)


async def lose_reply_and_kill(n: Nemesis) -> None:
    """The change is durable, but its client does not know of it, and the server that does dies."""
    server = n.server()
    changes = CHANGES_ONCE if server is n.cluster.mds else ("Write", "WriteMany", "Punch")
    what = n.random.choice((*changes, None)) if n.random.random() < 0.8 else n.random.choice(CHANGES)
    lost = n.cluster.net.drop(what, reply=True, source=server, times=n.random.choice((1, 2, 3)))
    kill_after(n, server, lost)


def kill_after(n: Nemesis, server: SimServer, lost: Rule) -> None:
    """Kill `server` when an answer was `lost`, mostly when what it answered is durable."""

    async def kill() -> None:
        try:
            async with asyncio.timeout(5.0):
                await lost.caught()
        except TimeoutError:
            pass
        if n.random.random() < 0.7 and server.alive and server.node is not None and not server.node.paused:
            try:
                await server.commit()
            except NodeDied:
                return
        else:
            await asyncio.sleep(n.random.uniform(0.0, 2.0))
        server.kill()
        await asyncio.sleep(n.pause_s())
        await n.restart(server)

    n.later(0.0, kill)


async def _cut(n: Nemesis) -> None:
    x, y = n.process(), n.process()
    n.cluster.net.cut(x, y, one_way=n.random.random() < 0.4)
    n.later(n.pause_s(), n.cluster.net.heal)


async def break_links(n: Nemesis) -> None:
    n.cluster.net.break_links(n.process())


async def _lose_messages(n: Nemesis) -> None:
    what = n.random.choice(CHANGES if n.random.random() < 0.7 else MESSAGES)
    n.cluster.net.drop(what, reply=n.random.random() < 0.75, times=n.random.choice((1, 1, 2)))


async def _lose_any(n: Nemesis) -> None:
    n.cluster.net.drop(None, reply=n.random.random() < 0.5, times=1, skip=n.random.randrange(20), to=n.process())


async def _double_messages(n: Nemesis) -> None:
    n.cluster.net.double(
        n.random.choice(MESSAGES), reply=n.random.random() < 0.2, times=n.random.choice((1, 2, 5)),
        delay_s=n.random.choice((0.0, 0.001, 0.01, 0.5, 7.0)),
    )  # fmt: skip


async def _slow_messages(n: Nemesis) -> None:
    n.cluster.net.slow(
        n.random.choice(MESSAGES), reply=n.random.random() < 0.5, times=n.random.choice((1, 3)),
        delay_s=n.random.choice((0.01, 0.5, 5.0, 7.0, 14.0)),
    )  # fmt: skip


async def _corrupt(n: Nemesis) -> None:
    n.cluster.net.corrupt("Write", times=2)
    n.cluster.net.corrupt("WriteMany", times=2)
    n.cluster.net.corrupt("Read", reply=True, times=2)
    n.cluster.net.corrupt("ReadMany", reply=True, times=2)


async def _pause(n: Nemesis) -> None:
    process = n.process()
    process.pause()
    n.later(n.pause_s(), process.resume)


async def _set_clock(n: Nemesis) -> None:
    n.process().set_clock(n.random.choice((-86400.0, -10.0, 0.5, 3600.0)))


async def _evict(n: Nemesis) -> None:
    client = n.client()
    if client is not None:
        await n.cluster.evict(client, n.server())


async def abort_recovery(n: Nemesis) -> None:
    server = n.server()
    server.kill()

    async def abort() -> None:
        await n.restart(server)
        await asyncio.sleep(n.random.uniform(0.0, 0.3))
        server.abort_recovery()

    n.later(n.random.uniform(0.0, 1.0), abort)


async def _slow_point(n: Nemesis) -> None:
    n.cluster.faults.arm(
        n.random.choice(SLOW_POINTS), "delay", keep=True, times=n.random.choice((1, 3)),
        delay_s=n.random.choice((0.01, 1.0, 7.0)), skip=n.random.randrange(5),
    )  # fmt: skip


ACTS = (
    Act("kill server", 6, kill_server),
    Act("hold and kill", 8, _hold_and_kill),
    Act("kill twice", 4, _kill_twice),
    Act("kill MGS", 1, _kill_mgs),
    Act("kill everything", 2, kill_everything),
    Act("power cut", 4, _power_cut),
    Act("restart in order", 2, restart_in_order),
    Act("kill client", 2, kill_client),
    Act("kill client and server", 6, kill_client_and_server),
    Act("kill client others stand on", 5, _kill_what_others_stand_on),
    Act("lose reply and kill", 6, lose_reply_and_kill),
    Act("cut", 5, _cut),
    Act("break links", 3, break_links),
    Act("lose messages", 9, _lose_messages),
    Act("lose any", 3, _lose_any),
    Act("double messages", 4, _double_messages),
    Act("slow messages", 4, _slow_messages),
    Act("corrupt", 1, _corrupt),
    Act("pause", 3, _pause),
    Act("set clock", 2, _set_clock),
    Act("evict", 2, _evict),
    Act("abort recovery", 1, abort_recovery),
    Act("slow point", 2, _slow_point),
)

# ------------------------------------------------------------------- against clients that cache (coherence_swarm.py)

LOCK_MESSAGES = (
    "Enqueue", "Cancel", "Convert", "BlockingCallback", "BlockingCallback", "CompletionCallback", "GlimpseCallback",
    "Read", "ReadMany", "Write", "WriteMany", "Punch", "Lookup", "Getattr", "Open", "Reopen", "Closes", "Setattrs", "Readdir",
)  # fmt: skip


async def _freeze_client(n: Nemesis) -> None:
    """A client stands still, sometimes for longer than anybody waits for a lock."""
    client = n.client()
    if client is not None:
        client.pause()
        n.later(n.random.choice((0.1, 3.0, 7.0, 9.0, 14.0, 30.0)) * n.random.uniform(0.8, 1.2), client.resume)


async def freeze_server(n: Nemesis) -> None:
    """An MDS or OSS stands still, sometimes for longer than its clients' leases last; it may be killed as it wakes."""
    server = n.random.choice([n.cluster.mds, *n.cluster.oss])
    if server.node is None or server.node.paused:
        return
    server.pause()

    async def wake() -> None:
        server.resume()
        if n.random.random() < 0.3:
            await asyncio.sleep(n.random.choice((0.0, 0.001, 0.1, 1.0)))
            server.kill()
            await asyncio.sleep(n.random.uniform(0.0, 3.0))
            await n.restart(server)

    n.later(n.random.choice((0.5, 4.0, 7.0, 13.0, 20.0)) * n.random.uniform(0.8, 1.2), wake)


async def cut_server(n: Nemesis) -> None:
    """Nobody reaches an OSS, or all but one do not."""
    server = n.random.choice(n.cluster.oss)
    others = [n.cluster.mds, *n.cluster.clients.values()]
    n.cluster.net.cut(server, n.random.sample(others, len(others) - n.random.choice((0, 0, 1))))
    n.later(n.random.choice((4.0, 8.0, 12.0, 20.0)) * n.random.uniform(0.8, 1.2), n.cluster.net.heal)


async def cut_client(n: Nemesis) -> None:
    """A client and one server, or all, do not hear of each other, or one does not."""
    client = n.client()
    if client is not None:
        servers = n.random.choice([[n.cluster.mds], n.cluster.oss, [n.cluster.mds, *n.cluster.oss]])
        x, y = n.random.choice(((client, servers), (servers, client)))
        n.cluster.net.cut(x, y, one_way=n.random.random() < 0.5)
        n.later(n.random.choice((0.3, 4.0, 12.0, 20.0, 30.0)) * n.random.uniform(0.8, 1.2), n.cluster.net.heal)


async def _disturb_locks(n: Nemesis) -> None:
    """Messages about locks and what they protect are lost or late."""
    for _ in range(n.random.choice((1, 3, 6))):
        what, reply = n.random.choice(LOCK_MESSAGES), n.random.random() < 0.5
        if n.random.random() < 0.5:
            n.cluster.net.drop(what, reply=reply, times=1, skip=n.random.randrange(6))
        else:
            delay_s = n.random.choice((0.01, 0.5, 3.0, 7.0))
            n.cluster.net.slow(what, reply=reply, times=n.random.choice((1, 3)), delay_s=delay_s)


async def _lose_callbacks(n: Nemesis) -> None:
    """A client hears everything but that its locks are wanted."""
    client = n.client()
    if client is not None:
        n.cluster.net.drop("BlockingCallback", to=client, times=n.random.choice((1, 3, 8)))


async def evict_everywhere(n: Nemesis) -> None:
    client = n.client()
    if client is not None:
        for server in n.random.sample([n.cluster.mds, *n.cluster.oss], n.random.choice((1, 2))):
            await n.cluster.evict(client, server)


CACHE_ACTS = (
    Act("kill server", 5, kill_server),
    Act("hold and kill", 4, _hold_and_kill),
    Act("kill twice", 2, _kill_twice),
    Act("power cut", 3, _power_cut),
    Act("restart in order", 2, restart_in_order),
    Act("kill client", 3, kill_client),
    Act("kill client and server", 4, kill_client_and_server),
    Act("lose reply and kill", 2, lose_reply_and_kill),
    Act("cut", 2, _cut),
    Act("cut client", 12, cut_client),
    Act("freeze client", 8, _freeze_client),
    Act("freeze server", 4, freeze_server),
    Act("cut server", 4, cut_server),
    Act("break links", 3, break_links),
    Act("disturb locks", 8, _disturb_locks),
    Act("lose callbacks", 3, _lose_callbacks),
    Act("lose any", 3, _lose_any),
    Act("double messages", 2, _double_messages),
    Act("slow messages", 2, _slow_messages),
    Act("evict", 4, evict_everywhere),
    Act("abort recovery", 1, abort_recovery),
)
SILENCE_ACTS = (
    Act("cut client", 6, cut_client),
    Act("freeze client", 2, _freeze_client),
    Act("lose callbacks", 3, _lose_callbacks),
    Act("disturb locks", 1, _disturb_locks),
    Act("kill server", 1, kill_server),
)
