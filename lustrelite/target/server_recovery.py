"""The recovery of one target at work: recovery/window.py decides, this file executes, answers and keeps the time.

The messages are those that Lustre writes to the console, for scripts that look for them.
Source: target_recovery_thread(), target_queue_recovery_request(), ldlm/ldlm_lib.c; chapter 30.2.5 to 30.2.8
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Any

from lustrelite.recovery.window import Stage, Window
from lustrelite.rpc.export import Call, Export
from lustrelite.target.handlers import EMPTY
from lustrelite.wire.session import Connect

if TYPE_CHECKING:
    from lustrelite.target.target import Target

_SAID = {
    "recovery aborted": "recovery is aborted, evict exports in recovery",
    "version mismatch during replay": "evict exports whose versions did not match",
}  # what the console says when it is not the time that is up


class ServerRecovery:
    """From the start of a target with clients on record until everybody is in step again."""

    def __init__(self, target: Target, clients: list[str]) -> None:
        self.target = target
        self.node = target.node
        tunables = target.node.tunables
        self.window: Window[Call] = Window(
            clients, target.last_committed, tunables.recovery_time_soft_s, tunables.recovery_time_hard_s
        )
        self.known = dict.fromkeys(clients)
        self.denied: dict[str, None] = {}
        self.replayed: dict[str, int] = {}  # by client: the transno of the last replay that came
        self.ended_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._waiting = False  # a replay is being executed and has not ended
        self.node.events.emit(
            "recovery.started", target=target.name, clients=len(clients), last_committed=target.last_committed,
            message=f"{target.name}: Will be in recovery for at least {int(tunables.recovery_time_soft_s) // 60}:"
            f"{int(tunables.recovery_time_soft_s) % 60:02d}, or until {len(clients)} client(s) reconnect",
        )  # fmt: skip

    def client_connected(self, export: Export, body: Connect) -> None:
        """A known client is back."""
        self.window.connected(export.uuid, body.waited_ms / 1000, self.node.now())
        self.step_soon()

    def client_gone(self, export: Export) -> None:
        """A client was evicted, or left, during recovery."""
        for call in self.window.gone(export.uuid):
            self.target.reply(call, -errno.ENOTCONN, None)
        self.step_soon()

    def client_restarted(self, export: Export) -> None:
        """A client's process was restarted during recovery: nobody waits for what the former one has sent."""
        export.replay_done = False
        self.replayed.pop(export.uuid, None)
        if export.uuid in self.known:
            for call in self.window.restarted(export.uuid):
                self.target.abandon(call)

    def deny(self, client: str) -> None:
        """A new client must wait."""
        if client not in self.denied:
            self.denied[client] = None
            window = self.window
            self.node.events.emit(
                "recovery.denied", target=self.target.name, client=client,
                message=f"{self.target.name}: Denying connection for new client {client}, waiting for "
                f"{window.max_clients} known clients ({len(window.final)} recovered, "
                f"{window.max_clients - len(window.missing) - len(window.evicted) - len(window.final)} in progress, "
                f"and {len(window.evicted)} evicted)",
            )  # fmt: skip

    def in_turn(self, call: Call) -> bool:
        """Is this replay the client's next one, or the last one again? What was before that has had its answer, and a
        copy that is late must not be executed: an open would stay open, although its close has been replayed.
        """
        transno, uuid = call.header.transno, call.export.uuid
        if transno < self.replayed.get(uuid, 0):
            return False
        self.replayed[uuid] = transno
        return True

    def queue(self, call: Call) -> None:
        """A replay: executed at once if it is below what is next (an open that is committed), else in its turn."""
        transno = call.header.transno
        export = call.export
        # The next one may get lost and come only after a timeout: that is no reason to give the client up.
        self.window.extend(self.node.now(), 2 * self.node.tunables.rpc_timeout_s)
        if transno < self.window.next_transno:
            self.target.serving.execute(call)
            return
        old = self.window.enqueue(export.uuid, transno, call)
        if old is call:
            self.target.node.events.emit("replay.conflict", level="warning", target=self.target.name, transno=transno)
            call.answered = True
            return
        export.enter(call)
        if old is not None and old is not call:
            self.target.service.dropped(old)
        self.step_soon()

    def queue_locks(self, call: Call) -> None:
        """A client says what locks it has: it is through with its requests. Executed when everybody is."""
        self.window.extend(self.node.now(), 2 * self.node.tunables.rpc_timeout_s)
        self.window.enqueue_locks(call.export.uuid, call)
        call.export.enter(call)
        self.step_soon()

    def final_ping(self, call: Call) -> None:
        """This client is through; its answer waits for everybody's."""
        call.export.replay_done = True
        old = self.window.locks_done(call.export.uuid, call)
        if old is not None and old is not call:
            self.target.service.dropped(old)
            call.still_working()
        self.step_soon()

    def abort(self) -> None:
        """The administrator has had enough."""
        self.node.events.emit("recovery.aborted", level="warning", target=self.target.name)
        self.window.abort()
        self.step_soon()

    def halt(self) -> None:
        """The target is stopped or given up: nothing more is decided."""
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()

    def step_soon(self) -> None:
        """Decide again, in a turn of its own."""
        if self._soon is None and self.target.recovering:
            self._soon = asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        self._soon = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self.target.recovering and not self._waiting and not self.node.dead:
            stage = self.window.stage
            decision = self.window.step(self.node.now())
            if self.window.stage is not stage:
                self.node.events.emit("recovery.stage", target=self.target.name, stage=str(self.window.stage))
            if decision.execute is not None:
                if decision.gap is not None:
                    self._say_gap(decision.gap)
                self._replay(decision.execute)
            elif decision.evict:
                self._evict(decision.evict, decision.why)
            elif decision.finish:
                self._finish()
                return
            else:
                if decision.wake is not None:
                    delay = max(0.0, decision.wake - self.node.now()) + 0.001
                    self._timer = asyncio.get_running_loop().call_later(delay, self._step)
                return

    def _replay(self, call: Call) -> None:
        if self.node.faults.any:
            point = "target.replay" if call.spec.mutates else "ldlm.replay"
            fault = self.node.faults.hit(point, call.export.uuid)
            if fault is not None and fault.action == "delay":
                self._waiting = True
                asyncio.get_running_loop().call_later(fault.delay_s, self._replay_now, call)
                return
            if fault is not None and fault.action == "crash":
                self.node.crash(f"fault at {point}")
                return
            if fault is not None:  # swallowed (TGT_REPLAY_DROP)
                self.target.abandon(call)
                return
        self._replay_now(call)

    def _replay_now(self, call: Call) -> None:
        self._waiting = False
        if call.spec.mutates:
            self.node.events.emit(
                "replay.executed", target=self.target.name, client=call.export.uuid, op=call.spec.name,
                transno=call.header.transno,
            )  # fmt: skip
        else:
            self.node.events.emit(
                "lock.replayed", target=self.target.name, client=call.export.uuid, count=len(call.body.wants)
            )
        self.target.serving.execute(call)
        self.step_soon()

    def _say_gap(self, gap: tuple[int, int]) -> None:
        window = self.window
        self.node.events.emit(
            "recovery.gap", target=self.target.name, expected=gap[0], found=gap[1],
            message=f"{self.target.name}: waking for gap in transno, VBR is ON (skip: {gap[1] - gap[0]}, "
            f"ql: {len(window.queue) + 1}, comp: {len(window.final)}, "
            f"conn: {window.max_clients - len(window.missing) - len(window.evicted)}, next: {gap[0]}, "
            f"next_in_queue: {gap[1]}, last_committed: {self.target.last_committed})",
        )  # fmt: skip

    def _evict(self, clients: tuple[str, ...], why: str) -> None:
        self.node.events.emit(
            "recovery.evicting", level="warning", target=self.target.name, clients=len(clients), why=why,
            message=f"{self.target.name}: {_SAID.get(why, 'recovery is timed out, evict stale exports')}",
        )  # fmt: skip
        for uuid in clients:
            export = self.target.exports.get(uuid)
            if export is None:
                self.window.gone(uuid)
            else:
                self.target.evict(export, why)

    def _finish(self) -> None:
        self.target.spawn(self._finish_now(), f"end of recovery {self.target.name}")

    async def _finish_now(self) -> None:
        await self.target.fault("target.recovery_end")
        window = self.window
        self.ended_at = self.node.now()
        completed = len(window.final)
        began = window.started_at if window.started_at is not None else self.ended_at
        await self.target.finish_recovery()
        self.node.events.emit(
            "recovery.over", target=self.target.name, duration_s=round(self.ended_at - began, 3),
            completed=completed, evicted=len(window.evicted), replayed=window.replayed, gaps=window.gaps,
            message=f"{self.target.name}: Recovery over after {int(self.ended_at - began) // 60}:"
            f"{int(self.ended_at - began) % 60:02d}, of {window.max_clients} clients {completed} recovered and "
            f"{len(window.evicted)} were evicted.",
        )  # fmt: skip
        for call in list(window.final.values()):
            self.target.reply(call, 0, EMPTY)

    def status(self) -> dict[str, Any]:
        """What `recovery_status` shows."""
        window = self.window
        now = self.node.now()
        return {
            "stage": str(window.stage),
            "running": self.target.recovering,
            "waiting": window.stage is Stage.WAITING,
            "started": window.started_at,
            "ended": self.ended_at,
            "time_remaining": max(0.0, window.deadline - now) if window.started_at is not None else None,
            "max_clients": window.max_clients,
            "connected": window.max_clients - len(window.missing) - len(window.evicted),
            "req_replay": len(window.replaying),
            "lock_replay": len(window.locking),
            "completed": len(window.final),
            "evicted": len(window.evicted),
            "replayed": window.replayed,
            "queued": len(window.queue),
            "next_transno": window.next_transno,
            "stale": list(window.missing),
        }
