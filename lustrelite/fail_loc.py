"""Lustre's fault numbers on our named points and message rules, so that its recipes can be typed as they are.

    llctl set_param fail_loc=0x80000119        drop the reply of one modifying request, once

Only numbers with a counterpart here are known; another is refused with the list. Modifiers: 0x80000000 once,
0x20000000 skip the first fail_val, 0x10000000 at most fail_val times.
Source: OBD_FAIL_* and CFS_FAIL_*, include/obd_support.h and libcfs_fail.h
"""

from __future__ import annotations

from lustrelite.faults import Fault, Faults
from lustrelite.wire import mdt, mgs, ost, session  # noqa: F401  (declares the messages)
from lustrelite.wire.message import BY_NAME

ONCE = 0x80000000
SKIP = 0x20000000
SOME = 0x10000000
KNOWN_MODIFIERS = ONCE | SKIP | SOME
NUMBER = 0xFFFF

REINT = ("Create", "Link", "Unlink", "Rename", "Setattr", "Setxattr", "SetDirStripe")

# number -> (direction, messages, action), or (point, (), action)
NUMBERS: dict[int, tuple[str, tuple[str, ...], str]] = {
    0x104: ("request", ("Readdir",), "drop"),
    0x106: ("reply", ("Readdir",), "drop"),
    0x107: ("request", REINT, "drop"),
    0x114: ("mdt.open", (), "error"),
    0x115: ("request", ("Close", "Closes"), "drop"),
    0x119: ("reply", REINT, "drop"),
    0x122: ("reply", ("*",), "drop"),
    0x123: ("request", ("*",), "drop"),
    0x128: ("mdt.layout", (), "error"),
    0x129: ("mdt.open", (), "delay"),
    0x12F: ("target.client_new", (), "error"),
    0x13B: ("reply", ("Close", "Closes"), "drop"),
    0x157: ("reply", ("Enqueue",), "drop"),
    0x159: ("request", REINT, "drop"),
    0x15A: ("reply", REINT, "drop"),
    0x165: ("mdt.orphan_destroy", (), "error"),
    0x16E: ("mdt.delorphan", (), "delay"),
    0x187: ("mdt.create", (), "error"),
    0x204: ("request", ("OstCreate",), "drop"),
    0x211: ("reply", ("*",), "drop"),
    0x213: ("reply", ("Enqueue",), "drop"),
    0x214: ("ost.write", (), "delay"),
    0x215: ("ost.write", (), "error"),
    0x216: ("ost.create", (), "error"),
    0x21D: ("ost.write", (), "drop"),
    0x224: ("ost.write_done", (), "delay"),
    0x225: ("reply", ("Connect",), "drop"),
    0x227: ("ost.write_done", (), "delay"),
    0x230: ("ost.write", (), "error"),
    0x231: ("ost.statfs", (), "error"),
    0x236: ("ost.punch", (), "delay"),
    0x254: ("ost.create", (), "delay"),
    0x304: ("request", ("Cancel",), "drop"),
    0x305: ("receive", ("BlockingCallback",), "drop"),
    0x324: ("ldlm.bl_callback", (), "drop"),
    0x325: ("ldlm.cp_callback", (), "drop"),
    0x32D: ("ldlm.replay", (), "drop"),
    0x408: ("receive", ("Read", "ReadMany"), "corrupt"),
    0x409: ("request", ("Write", "WriteMany"), "corrupt"),
    0x414: ("send", ("Write", "WriteMany"), "delay"),
    0x503: ("request", ("Write", "WriteMany"), "drop"),
    0x504: ("reply", ("Read", "ReadMany"), "drop"),
    0x505: ("send", ("*",), "drop"),
    0x514: ("client.replay_done", (), "drop"),
    0x536: ("client.replay", (), "delay"),
    0x537: ("client.lock_replay", (), "drop"),
    0x709: ("target.replay", (), "delay"),
    0x714: ("target.replay", (), "delay"),
    0x715: ("target.recovery_end", (), "delay"),
}

# errno of an "error" point: what the real one answers
ERRNO = {0x114: 12, 0x128: 12, 0x12F: 75, 0x165: 5, 0x187: 115, 0x215: 28, 0x216: 30, 0x230: 115, 0x231: 115}


class FailLoc:
    """The pair fail_loc and fail_val of one process."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.location = 0
        self.value = 0

    def get(self) -> str:
        """fail_loc as Lustre prints it."""
        return f"{self.location:#x}" if self.location else "0"

    def get_value(self) -> str:
        """fail_val."""
        return str(self.value)

    def set_value(self, text: str) -> None:
        """Seconds of a delay, or the count for the modifiers SKIP and SOME; set it before fail_loc."""
        self.value = int(text, 0)

    def set(self, text: str) -> None:
        """Arm `text`, replacing what fail_loc armed before; 0 disarms.  ValueError if the number is not known."""
        location = int(text, 0)
        number = location & NUMBER
        if number and number not in NUMBERS:
            known = ", ".join(f"{n:#x}" for n in sorted(NUMBERS))
            raise ValueError(f"fail_loc {number:#x} has no counterpart here; known are {known}; see also `fault`")
        if location & ~(NUMBER | KNOWN_MODIFIERS):
            raise ValueError(f"unknown modifier in {location:#x}")
        self.faults.clear()
        self.location = location
        if not number:
            return
        where, messages, action = NUMBERS[number]
        times = 1 if location & ONCE else max(self.value, 1) if location & SOME else -1
        fault = Fault(
            action,
            times=times,
            delay_s=float(self.value or 2),
            errno=ERRNO.get(number, 5),
            skip=self.value if location & SKIP else 0,
        )
        if not messages:
            self.faults.arm(where, fault)
        for name in messages:
            assert name == "*" or name in BY_NAME, name
            self.faults.on_message(where, name, fault)  # one fault for all: `times` counts over them together
