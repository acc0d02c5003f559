"""The parameter tree: everything an operator reads and sets, under Lustre's dotted names.

A parameter is a getter and perhaps a setter, both of text. Things that come and go (targets, exports, imports) are
given by sources, asked anew at every look-up, so nothing has to be taken out of the tree when they leave.

Between components stands a slash inside and a dot outside: a component may contain dots (a NID does), so a pattern's
dot matches either, and its `*` and `?` stay within one component, as they do in `lctl get_param`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from lustrelite import __version__
from lustrelite.control import NO_MATCH
from lustrelite.fail_loc import FailLoc
from lustrelite.faults import Faults, parse_fault
from lustrelite.ids import parse_target_name
from lustrelite.rpc.node import Node
from lustrelite.tunables import FAILOVER_MODE, Tunables, check, check_param, limits

Getter = Callable[[], str]
Setter = Callable[[str], Awaitable[None] | None]


class Param(NamedTuple):
    """One parameter; `name` has its components parted by slashes."""

    name: str
    get: Getter | None
    set: Setter | None = None

    @property
    def dotted(self) -> str:
        """The name as it is printed."""
        return self.name.replace("/", ".")

    @property
    def access(self) -> str:
        """"r", "w" or "rw"."""
        return ("r" if self.get else "") + ("w" if self.set else "")


Source = Callable[[], Iterable[Param]]


def component(text: str) -> str:
    """`text` as one component: a Unix NID has slashes."""
    return text.replace("/", "|")


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """What `pattern` matches: `*`, `?`, `[abc]` and `{a,b}` within components; ValueError if it is malformed."""
    out, depth, i = [], 0, 0
    while i < len(pattern):
        char = pattern[i]
        if char == "*":
            out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char in "./":
            out.append("[./]")
        elif char == "{":
            depth += 1
            out.append("(?:")
        elif char == "}" and depth:
            depth -= 1
            out.append(")")
        elif char == "," and depth:
            out.append("|")
        elif char == "[" and (end := pattern.find("]", i + 2)) > 0:
            inner = pattern[i + 1 : end].replace("\\", "\\\\")
            out.append(f"[{'^' + inner[1:] if inner[0] in '!^' else inner}]")
            i = end
        else:
            out.append(re.escape(char))
        i += 1
    try:
        return re.compile("".join(out) + r"\Z")
    except re.error as error:
        raise ValueError(f"bad pattern {pattern!r}: {error}") from None


class ParamTree:
    """All parameters of one process."""

    def __init__(self) -> None:
        self.fixed: dict[str, Param] = {}
        self.sources: list[Source] = []

    def add(self, name: str, get: Getter | None, set: Setter | None = None) -> None:  # noqa: A002
        """Register a parameter that lives as long as the process."""
        assert name not in self.fixed, name
        assert get or set
        self.fixed[name] = Param(name, get, set)

    def add_source(self, source: Source) -> None:
        """Register a source of parameters that come and go."""
        self.sources.append(source)

    def find(self, pattern: str = "**") -> list[Param]:
        """The parameters that match `pattern`, by name; `**` is all."""
        found = dict(self.fixed)
        for source in self.sources:
            found.update((param.name, param) for param in source())
        if pattern == "**":
            return [found[name] for name in sorted(found)]
        matches = pattern_regex(pattern).match
        return [found[name] for name in sorted(found) if matches(name)]

    def get(self, pattern: str) -> dict[str, str]:
        """Values by dotted name; KeyError if nothing matches."""
        params = self.find(pattern)
        if not params:
            raise KeyError(f"{NO_MATCH} {pattern!r}; `llctl list_param '*'` names the first level")
        return {param.dotted: param.get() for param in params if param.get is not None}

    async def set(self, pattern: str, value: str, among: Collection[str] | None = None) -> list[str]:
        """Set every settable parameter that matches, or those `among` these names, and return their names; KeyError if there is none."""
        params = [param for param in self.find(pattern) if among is None or param.name in among]
        settable = [param for param in params if param.set is not None]
        if not settable:
            raise KeyError(f"{params[0].dotted} is read only" if params else f"{NO_MATCH} {pattern!r}")
        check_text(pattern, value)  # of all that are meant, before the first one changes
        for param in settable:
            assert param.set is not None
            waiting = param.set(value)
            if waiting is not None:
                await waiting
        return [param.dotted for param in settable]

    async def set_all(self, assignments: Sequence[tuple[str, str]]) -> None:
        """Set them all, or none: KeyError or ValueError, as of `set`."""
        before: dict[str, str] = {}
        try:
            for pattern, value in assignments:
                before = {**self.get(pattern), **before}
                await self.set(pattern, value)
        except (KeyError, ValueError):
            for name, value in before.items():
                with contextlib.suppress(KeyError, ValueError):  # read only, or of those that are only written
                    await self.set(name, value)
            raise

    def settable(self) -> frozenset[str]:
        """The names of those that can be set."""
        return frozenset(param.name for param in self.find() if param.set is not None)

    async def apply(self, params: Mapping[str, str], among: Collection[str] | None = None) -> list[str]:
        """Set the permanent parameters that are about this process, or about those `among` these names; returns complaints."""
        complaints = []
        for pattern, value in params.items():
            try:
                if any(param.set is not None and (among is None or param.name in among) for param in self.find(pattern)):
                    await self.set(pattern, value, among)
            except ValueError as error:
                complaints.append(f"{pattern}: {error}")
        return complaints

    def level(self, pattern: str, *, below: bool = False) -> dict[str, str]:
        """What `list_param` prints: names that match `pattern`, each with its access, and perhaps everything below them.

        A dot stands behind names that go on.
        """
        depth = len(re.split(r"[./]", re.sub(r"\{[^}]*\}", "x", pattern)))
        matches = pattern_regex(pattern).match
        names: dict[str, str] = {}
        for param in self.find():
            parts = param.name.split("/")
            # A component with dots counts as one here and as several in the pattern: try every length.
            first = next((end for end in range(1, min(depth, len(parts)) + 1) if matches("/".join(parts[:end]))), 0)
            for end in range(first, (len(parts) if below else first) + 1) if first else ():
                inner = end < len(parts)
                names[".".join(parts[:end]) + ("." if inner else "")] = "" if inner else param.access
        return names


# the parameters that every process has -------------------------------------------------------------------------------

# Lustre's name -> ours
_GLOBAL = {
    "timeout": "rpc_timeout_s",
    "ping_interval": "ping_interval_s",
}

# Lustre's name for a tunable, as the last component of a parameter of a device -> (ours, unit)
_OF_DEVICES = {
    "commit_on_sharing": ("commit_on_sharing", 1),
    "recovery_time_soft": ("recovery_time_soft_s", 1),
    "recovery_time_hard": ("recovery_time_hard_s", 1),
    "sync_journal": ("sync_journal", 1),
    "sync_lock_cancel": ("sync_lock_cancel", 1),
    "qos_threshold_rr": ("qos_threshold_rr", 1),
    "qos_prio_free": ("qos_prio_free", 1),
    "qos_maxage": ("qos_maxage_s", 1),
    "grant_shrink": ("grant_shrink", 1),
    "grant_shrink_interval": ("grant_shrink_interval_s", 1),
    "max_rpcs_in_flight": ("max_rpcs_in_flight", 1),
    "max_dirty_mb": ("max_dirty_bytes", 1 << 20),
    "max_cached_mb": ("max_cached_bytes", 1 << 20),
    "max_read_ahead_mb": ("max_read_ahead_bytes", 1 << 20),
}

# What can be set of devices: the first component of the name -> what the last one may be
_SETTABLE = {
    "mdt": ("commit_on_sharing", "recovery_time_soft", "recovery_time_hard"),
    "obdfilter": ("commit_on_sharing", "recovery_time_soft", "recovery_time_hard", "sync_journal", "sync_lock_cancel"),
    "lod": ("qos_threshold_rr", "qos_prio_free", "qos_maxage"),
    "lov": ("qos_threshold_rr", "qos_prio_free", "qos_maxage"),
    "osp": ("active", "create_count", "max_create_count"),
    "osc": ("active", "cur_grant_bytes", "grant_shrink", "grant_shrink_interval", "max_dirty_mb", "max_rpcs_in_flight"),
    "mdc": ("active",),
    "mgc": ("active",),
    "llite": ("max_cached_mb", "max_read_ahead_mb"),
    "ldlm": ("lru_size", "lru_max_age"),
}
NO_FAULT = ("", "0", "clear")
_FAULTS = ("fail_loc", "fail_val", "fault")
_READ_ONLY = ("version", "node", "health_check")
_OF_TARGETS = ("osc.active", FAILOVER_MODE)  # what `conf_param` sets: TARGET.osc.active
_COUNTS = {"create_count": (1, limits.precreate_max), "max_create_count": (0, limits.precreate_max)}


def parse_like(old: object, text: str) -> bool | int | float | str:
    """`text` as a value of the type of `old`; ValueError says what was expected."""
    text = text.strip()
    if isinstance(old, bool):
        if text not in ("0", "1"):
            raise ValueError(f"0 or 1 expected, not {text!r}")
        return text == "1"
    if isinstance(old, int):
        scale = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
        digits = text[:-1] if scale > 1 else text
        if not re.fullmatch(r"-?\d+", digits):
            raise ValueError(f"a whole number expected, not {text!r}")
        return int(digits) * scale
    if isinstance(old, float):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < 1e9:
            raise ValueError(f"seconds expected, not {text!r}")
        return value
    return text


def check_text(pattern: str, text: str) -> None:
    """ValueError if no process would take the value `text` for what `pattern` means; of some parameters only they know.

    Who stores a value for later asks here first.
    """
    check_param(pattern, text)
    matches = pattern_regex(pattern).match
    last = re.split(r"[./]", pattern)[-1]
    meant = {field.name: 1 for field in dataclasses.fields(Tunables) if matches(f"tunables/{field.name}")}
    meant.update((ours, 1) for theirs, ours in _GLOBAL.items() if matches(theirs))
    if last in _OF_DEVICES and last != pattern:
        ours, unit = _OF_DEVICES[last]
        meant.setdefault(ours, unit)
    for name, unit in meant.items():
        value = parse_like(getattr(Tunables, name), text.strip().removesuffix("%") if name.startswith("qos_") else text)
        check(name, value if isinstance(value, str) else value * unit)


def check_count(name: str, text: str) -> int:
    """The number of objects that `text` is.  ValueError if `name` cannot be that"""
    count = int(parse_like(0, text))
    least, most = _COUNTS[name]
    if not least <= count <= most:
        raise ValueError(f"{name} cannot be {count}: a number from {least} to {most} expected")
    return count


def check_permanent(pattern: str, text: str) -> None:
    """`check_text` of what the MGS is to keep; also ValueError if no process whatsoever has such a parameter to set."""
    if setting := next((each for each in _OF_TARGETS if pattern.endswith(f".{each}")), ""):
        target = pattern.removesuffix(f".{setting}")
        if parse_target_name(target)[1] != "OST":
            raise ValueError(f"{target} is no OST")
        if setting == FAILOVER_MODE:
            check("failover_mode", text)
        else:
            parse_like(False, text)
        return
    matches = pattern_regex(pattern).match
    parts = re.split(r"[./]", pattern)
    first, last = pattern_regex(parts[0]).match, pattern_regex(parts[-1]).match
    of_devices = [name for tree, names in _SETTABLE.items() if first(tree) for name in names if last(name)] if len(parts) > 2 else []
    of_processes = (*(f"tunables/{field.name}" for field in dataclasses.fields(Tunables)), *_GLOBAL, *_FAULTS)
    if not of_devices and not any(map(matches, of_processes)):
        if any(map(matches, _READ_ONLY)):
            raise ValueError(f"{pattern} is read only")
        raise ValueError(f"no parameter that can be set matches {pattern!r}; `llctl list_param -FR '*'` marks them with =")
    check_text(pattern, text)
    for name in of_devices:
        if name == "active":
            parse_like(False, text)
        elif name in _COUNTS:
            check_count(name, text)
    if pattern in _FAULTS:
        _check_fault(pattern, text)


def _check_fault(name: str, text: str) -> None:
    if name == "fail_loc":
        _of_number(FailLoc(Faults()).set)(text)
    elif name == "fail_val":
        _of_number(FailLoc(Faults()).set_value)(text)
    elif text.strip() not in NO_FAULT:
        parse_fault(text)


def number_text(value: object) -> str:
    """A value as text: 6.0 seconds are "6"."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(int(value)) if isinstance(value, bool) else str(value)


def _of_number(put: Callable[[str], None]) -> Setter:
    """A setter that is given nothing but numbers, decimal or hexadecimal."""

    def put_number(text: str) -> None:
        try:
            int(text, 0)
        except ValueError:
            raise ValueError(f"a number such as 0x123 expected, not {text!r}") from None
        put(text)

    return put_number


def add_node_params(tree: ParamTree, node: Node) -> None:
    """Version, limits, tunables and faults."""
    tunables = node.tunables

    def tunable(name: str) -> tuple[Getter, Setter]:
        def put(text: str) -> None:
            value = parse_like(getattr(tunables, name), text)
            setattr(tunables, name, value)
            node.events.emit("param.changed", param=name, value=number_text(getattr(tunables, name)))

        return (lambda: number_text(getattr(tunables, name))), put

    for field in dataclasses.fields(tunables):
        tree.add(f"tunables/{field.name}", *tunable(field.name))
    for theirs, ours in _GLOBAL.items():
        tree.add(theirs, *tunable(ours))
    tree.add("version", lambda: f"lustrelite: {__version__}")
    tree.add("node", lambda: node.name)

    fail_loc = FailLoc(node.faults)
    tree.add("fail_loc", fail_loc.get, _of_number(fail_loc.set))
    tree.add("fail_val", fail_loc.get_value, _of_number(fail_loc.set_value))

    def arm(text: str) -> None:
        if text.strip() in NO_FAULT:
            node.faults.clear()
            return
        where, opname, fault = parse_fault(text)
        if opname:
            node.faults.on_message(where, opname, fault)
        else:
            node.faults.arm(where, fault)

    tree.add("fault", lambda: "\n".join(node.faults.log), arm)
