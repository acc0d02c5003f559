"""An enqueue that waits for what others know of an object: each holder of a lock to write is asked, and answers in time.

Source: ldlm_glimpse_ast(), ofd_intent_policy(); coherence seed 2200252
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lustrelite.ldlm.deadlines import STOOD_STILL_S
from lustrelite.ldlm.lock import Lock, LockState
from lustrelite.ldlm.wants import refused
from lustrelite.wire.ldlm import Granted, Lvb, Want

if TYPE_CHECKING:
    from lustrelite.ldlm.namespace import Namespace


class Glimpsed:
    """`answer` is called when all owners of `asked` have answered, or are gone."""

    __slots__ = ("_answer", "_asked", "_known", "_namespace", "_open", "_timer", "_want")

    def __init__(
        self, namespace: Namespace, want: Want, lvb: Lvb, asked: list[Lock], answer: Callable[[Granted], None]
    ) -> None:
        self._namespace = namespace
        self._want = want
        self._known = [lvb]
        self._open = dict.fromkeys(asked)
        self._asked = dict.fromkeys(asked)
        self._answer = answer
        self._set_timer(namespace.node.now() + namespace.node.tunables.lock_callback_s)

    def _set_timer(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._late, when)

    def ask_again(self, lock: Lock) -> None:
        """The owner has given `lock` back. He may have written under others, of which we do not know."""
        granted = lock.resource.granted
        other = granted.writer(lock.owner, self._asked) if granted is not None else None
        if other is not None and lock in self._open:
            self._open[other] = self._asked[other] = None
            self._timer.cancel()
            self._set_timer(self._namespace.node.now() + self._namespace.node.tunables.lock_callback_s)
            self._namespace.ask_glimpse(other, self)

    def answered(self, lock: Lock, lvb: Lvb | None) -> None:
        """The owner of `lock` has answered, or is gone. If its lock is gone we know ourselves what it knew under that."""
        if lock not in self._open:
            return
        del self._open[lock]
        if lvb is not None and lock.state is LockState.GRANTED:
            self._known.append(lvb)
        if self._open:
            return
        self._timer.cancel()
        known = self._namespace.lvb(self._want.resource, *self._known[1:])
        self._answer(refused(self._want, -errno.EWOULDBLOCK if known is not None else -errno.ENOENT, known))

    def _late(self, when: float) -> None:
        namespace = self._namespace
        if namespace.node.dead:
            return
        now = namespace.node.now()
        if now > when + STOOD_STILL_S:
            self._set_timer(now + STOOD_STILL_S / 2)
            return
        for lock in list(self._open):
            owner: Any = lock.owner
            if lock.state is LockState.GRANTED:
                namespace.evict(owner, f"it did not say what it knows under {lock!r}")
            else:
                self.ask_again(lock)
            self.answered(lock, None)
