"""Named fault points and message rules, armed by tests, by `llctl set_param fault=...` and by the simulator.

A point is named once in POINTS; arming an unknown name fails at once. A message rule matches by opcode name and
direction at one process: `request` (before the server looks at it) and `reply` (after it was executed, before it is
sent) on the server side, `send` and `receive` on the client side. That covers every drop_request / drop_reply of
Lustre's suites (protocol-facts, scenarios 3: class G).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

POINTS: dict[str, str] = {
    "target.connect": "a connect request was checked, the reply is not made",
    "target.connect_flags": "a connect reply is made; an error there makes it say wrongly that recovery goes on",
    "target.client_new": "before the record of a new client is written",
    "target.execute": "a request was admitted and is about to be executed",
    "target.replay": "a replayed request is about to be executed in recovery",
    "target.recovery_end": "before the last stage of recovery",
    "mdt.create": "an inode is about to be made",
    "mdt.open": "an open was admitted, nothing is changed",
    "mdt.open_result": "an open has its result, the reply record is not written",
    "mdt.layout": "objects are about to be allocated",
    "mdt.orphan_destroy": "an open-unlinked file is about to be destroyed; after an error it stays until the next start",
    "mdt.delorphan": "orphan cleanup is about to be sent to an OST",
    "ost.create": "object ids are about to be granted",
    "ost.write": "a write arrived, nothing is changed",
    "ost.punch": "a truncation or a hole was admitted, nothing is changed",
    "ost.write_done": "the data is in the file, the record is not in the batch",
    "ost.read": "a read was admitted",
    "ost.statfs": "statfs is about to be answered",
    "ost.destroy": "objects are about to be destroyed",
    "ldlm.bl_callback": "a client is about to be asked for its locks",
    "ldlm.cp_callback": "a client is about to hear that its locks are granted",
    "ldlm.gl_callback": "a client is about to be asked what it knows of objects",
    "ldlm.replay": "replayed locks are about to be taken in",
    "client.replay": "a request is about to be replayed",
    "client.lock_replay": "a message of the lock replay is about to be sent",
    "client.replay_done": "the ping that ends replay is about to be sent",
}

# what can happen to a message, by direction
MESSAGE_ACTIONS = {
    "request": ("drop", "delay", "error", "duplicate", "corrupt"),
    "reply": ("drop", "delay"),
    "send": ("drop", "delay"),
    "receive": ("drop", "delay", "corrupt"),
}
# what can happen at a point; where nothing can wait, a delay does nothing, and only a request can be dropped
POINT_ACTIONS = ("drop", "delay", "error", "crash")
LOG_MAX = 1000  # faults that happened, for `llctl get_param fault`


@dataclass
class Fault:
    """What happens at an armed point or to a matched message."""

    action: str  # of POINT_ACTIONS or MESSAGE_ACTIONS
    times: int = 1  # how often; -1 is for ever
    delay_s: float = 0.0
    errno: int = 5
    skip: int = 0  # matches to let pass first
    peer: str = ""  # substring of the other side's name, "" is anyone


class Faults:
    """The armed faults of one process. `any` is False while nothing is armed, so the product pays one test."""

    def __init__(self) -> None:
        self.any = False
        self._points: dict[str, list[Fault]] = {}
        self._messages: dict[tuple[str, str], list[Fault]] = {}
        self.log: deque[str] = deque(maxlen=LOG_MAX)

    def arm(self, point: str, fault: Fault) -> Fault:
        """Arm `point`; KeyError if there is no such point, ValueError if nothing of the kind can happen there."""
        if point not in POINTS:
            raise KeyError(f"no fault point {point!r}; there are: {', '.join(sorted(POINTS))}")
        _check_action(fault.action, point, POINT_ACTIONS)
        self._points.setdefault(point, []).append(fault)
        self.any = True
        return fault

    def on_message(self, direction: str, opname: str, fault: Fault) -> Fault:
        """Apply `fault` to messages called `opname` ("*" is any) in `direction`.  KeyError, ValueError as in `arm`"""
        if direction not in MESSAGE_ACTIONS:
            raise KeyError(f"no direction {direction!r}; there are: {', '.join(MESSAGE_ACTIONS)}")
        _check_action(fault.action, direction, MESSAGE_ACTIONS[direction])
        self._messages.setdefault((direction, opname), []).append(fault)
        self.any = True
        return fault

    def clear(self) -> None:
        """Disarm everything."""
        self._points.clear()
        self._messages.clear()
        self.any = False

    def hit(self, point: str, peer: str = "") -> Fault | None:
        """The fault armed at `point` for `peer`, which it uses up once, or None."""
        if not self.any:
            return None
        assert point in POINTS, point
        return self._take(self._points.get(point), point, peer)

    def message(self, direction: str, opname: str, peer: str = "") -> Fault | None:
        """The fault for a message, which it uses up once, or None."""
        if not self.any:
            return None
        for key in ((direction, opname), (direction, "*")):
            fault = self._take(self._messages.get(key), f"{direction} {opname}", peer)
            if fault is not None:
                return fault
        return None

    def _take(self, armed: list[Fault] | None, what: str, peer: str) -> Fault | None:
        for fault in armed or ():
            if fault.times == 0 or (fault.peer and fault.peer not in peer):
                continue
            if fault.skip:
                fault.skip -= 1
                return None
            if fault.times > 0:
                fault.times -= 1
            self.log.append(f"{fault.action} {what}")
            return fault
        return None


def _check_action(action: str, where: str, known: tuple[str, ...]) -> None:
    if action not in known:
        raise ValueError(f"bad fault action {action!r} at {where}: one of {', '.join(known)}")


def parse_fault(text: str) -> tuple[str, str, Fault]:
    """(point or direction, opcode name or "", fault) of a line such as `reply Create drop times=2 peer=a`.

    ValueError says what is wrong with the line. Source of the idea: lctl set_param fail_loc.
    """
    words = text.split()
    plain = [w for w in words if "=" not in w]
    options: dict[str, Any] = dict(w.split("=", 1) for w in words if "=" in w)
    if len(plain) == 3 and plain[0] in MESSAGE_ACTIONS:
        where, opname, action = plain
    elif len(plain) == 2 and plain[0] in POINTS:
        (where, action), opname = plain, ""
    else:
        raise ValueError(f"bad fault {text!r}: expected POINT ACTION or DIRECTION MESSAGE ACTION [times=N delay_s=S errno=N skip=N peer=NAME]")
    _check_action(action, where, MESSAGE_ACTIONS.get(where, POINT_ACTIONS))
    kinds: dict[str, Any] = {"times": int, "delay_s": float, "errno": int, "skip": int, "peer": str}
    for key in options:
        if key not in kinds:
            raise ValueError(f"unknown fault option {key!r}")
    return where, opname, Fault(action, **{k: kinds[k](v) for k, v in options.items()})
