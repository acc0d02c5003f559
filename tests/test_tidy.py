"""The rules of the tree, read from its syntax: layers, seams, exceptions, names and sizes.

A rule that has an exception names it here, with the reason beside it.
"""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Imports go downwards only. The longest prefix that matches a module gives its layer.
LAYERS = {
    "lustrelite": 0,  # __version__ only
    "lustrelite.ids": 0,
    "lustrelite.errors": 0,
    "lustrelite.tunables": 0,
    "lustrelite.events": 0,
    "lustrelite.faults": 0,
    "lustrelite.wire": 1,
    "lustrelite.recovery": 1,
    "lustrelite.acl": 1,
    "lustrelite.permission": 1,
    "lustrelite.ldlm": 1,
    "lustrelite.ldlm.deadlines": 2,
    "lustrelite.ldlm.glimpsed": 2,
    "lustrelite.ldlm.local_locks": 2,
    "lustrelite.ldlm.namespace": 2,
    "lustrelite.ldlm.wants": 2,
    "lustrelite.ldlm.lock_cache": 2,
    "lustrelite.ldlm.held_locks": 2,
    "lustrelite.ldlm.locks_in_use": 2,
    "lustrelite.ldlm.client_lock": 2,
    "lustrelite.ldlm.cancels": 2,
    "lustrelite.ldlm.promised": 2,
    "lustrelite.rpc": 2,
    "lustrelite.store": 2,
    "lustrelite.target": 3,
    "lustrelite.mgs": 4,
    "lustrelite.mdt": 4,
    "lustrelite.ost": 4,
    "lustrelite.client": 4,
    "lustrelite.format": 5,
    "lustrelite.daemon": 5,
    "lustrelite.params": 5,
    "lustrelite.metrics": 5,
    "lustrelite.control": 5,
    "lustrelite.control_server": 5,
    "lustrelite.stream_server": 5,
    "lustrelite.alive": 5,
    "lustrelite.claim": 5,
    "lustrelite.real_node": 5,
    "lustrelite.event_file": 5,
    "lustrelite.process": 5,
    "lustrelite.collector": 5,
    "lustrelite.client_process": 5,
    "lustrelite.server": 5,
    "lustrelite.server_params": 5,
    "lustrelite.server_metrics": 5,
    "lustrelite.status_text": 5,
    "lustrelite.fail_loc": 5,
    "lustrelite.fsck": 5,
    "lustrelite.fuse": 5,
    "lustrelite.cli": 5,
    "lustrelite.sim": 6,
    "lustrelite.services": 7,
    "services": 7,
}

# Names of a higher layer that appear in annotations only.
UPWARD_TYPES = {("lustrelite.rpc.export", "lustrelite.target.target")}

# Packages that must not know of each other although their layers would allow it.
STRANGERS = [
    ("lustrelite.mdt", "lustrelite.ost"),
    ("lustrelite.mdt", "lustrelite.client"),
    ("lustrelite.ost", "lustrelite.mdt"),
    ("lustrelite.ost", "lustrelite.client"),
    ("lustrelite.mgs", "lustrelite.mdt"),
    ("lustrelite.mgs", "lustrelite.ost"),
    ("lustrelite.mgs", "lustrelite.client"),
    ("lustrelite.client", "lustrelite.mdt"),
    ("lustrelite.client", "lustrelite.ost"),
    ("lustrelite.client", "lustrelite.mgs"),
    ("lustrelite.client", "lustrelite.target"),
    ("lustrelite.client", "lustrelite.store"),
]

# Only the `sim` command may import the simulator.
SIM_USERS = {"lustrelite.cli.sim"}

# What L0 and L1 may not import: they are pure. (errors.py turns an errno into words with os.strerror.)
IMPURE = {"asyncio", "lmdb", "os", "random", "select", "signal", "socket", "subprocess", "threading", "time"}
IMPURE_ALLOWED = {("lustrelite.errors", "os")}

# The seams: who may import what up to L4. Above it (L5: processes, command line) only randomness stays forbidden.
SEAM_MODULES = {"_thread", "concurrent.futures", "multiprocessing", "random", "secrets", "select", "selectors",
                "socket", "subprocess", "threading", "time", "uvloop"}
SEAM_ALLOWED = {
    ("lustrelite.rpc.node", "random"),  # the seam itself: node.random, node.wall_ns, run_blocking
    ("lustrelite.rpc.node", "time"),
    ("lustrelite.rpc.spinner", "time"),  # how long a processor is kept awake: no simulated process has one
    ("lustrelite.rpc.workers", "threading"),  # run_blocking's threads
    ("lustrelite.rpc.transport", "socket"),  # the only socket code
    ("lustrelite.rpc.transport", "random"),  # the type of the generator that is handed in
    ("lustrelite.store.kv", "threading"),  # locks only: commits and file I/O run in the node's worker threads
    ("lustrelite.store.kept_room", "threading"),
    ("lustrelite.store.objects", "threading"),
    ("lustrelite.store.undo", "threading"),
}
SEAM_CALLS = {"os.urandom", "os.getrandom", "asyncio.create_task", "asyncio.ensure_future", "asyncio.TaskGroup",
              "asyncio.to_thread", "asyncio.start_server", "asyncio.start_unix_server", "asyncio.open_connection",
              "asyncio.open_unix_connection", "datetime.now", "datetime.utcnow", "datetime.datetime.now",
              "uuid.uuid1", "uuid.uuid4"}
SEAM_CALLS_ALLOWED = {("lustrelite.client.tree", "asyncio.ensure_future")}  # of a worker thread's future: no task
SEAM_LAYER_MAX = 4

CATCH_ALL_ALLOWED = {
    "lustrelite.rpc.workers",  # what a call in a thread raises is for who waits for it
    "lustrelite.rpc.service",  # a handler's bug ends the process, in one place
    "lustrelite.sim.loop",  # an event loop catches what callbacks raise
    "lustrelite.sim.swarm",  # a run that broke is a finding, with its seed
}

NAMES_BANNED = {"utils", "util", "common", "manager", "helper", "helpers", "base", "misc", "shared"}
LINES_WARN = 600
LINES_MAX = 1000


class Module(NamedTuple):
    """One source file."""

    name: str
    path: Path
    tree: ast.Module
    lines: int


@cache
def modules() -> tuple[Module, ...]:
    found = []
    for top in ("lustrelite", "services"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            source = path.read_text()
            found.append(Module(name, path, ast.parse(source, str(path)), source.count("\n")))
    return tuple(found)


def layer_of(module: str) -> int | None:
    """The layer of `module`; None if it is not ours."""
    parts = module.split(".")
    if parts[0] not in ("lustrelite", "services"):
        return None
    for end in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:end])) in LAYERS and (prefix != "lustrelite" or len(parts) == 1):
            return LAYERS[prefix]
    return -1


def imports_of(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that `module` imports, also inside functions."""
    known = {m.name for m in modules()}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}:{node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in known else node.module


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def names_type_checking(module: Module) -> set[int]:
    """Lines under `if TYPE_CHECKING:`, which bind nothing at run time."""
    lines: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for inner in node.body:
                lines.update(range(inner.lineno, (inner.end_lineno or inner.lineno) + 1))
    return lines


def test_every_module_has_a_layer() -> None:
    assert not [m.name for m in modules() if layer_of(m.name) == -1]


def test_imports_go_downwards() -> None:
    wrong = []
    for module in modules():
        mine = layer_of(module.name)
        assert mine is not None
        annotations = names_type_checking(module)
        for line, name in imports_of(module):
            theirs = layer_of(name)
            if line in annotations and (module.name, name) in UPWARD_TYPES:
                continue
            if theirs is not None and theirs > mine and not (module.name in SIM_USERS and within(name, "lustrelite.sim")):
                wrong.append(f"{module.path}:{line}: {module.name} (L{mine}) imports {name} (L{theirs})")
    assert not wrong, "\n".join(wrong)


def test_strangers_stay_strangers() -> None:
    wrong = []
    for module in modules():
        forbidden = [package for user, package in STRANGERS if within(module.name, user)]
        if not within(module.name, "lustrelite.sim") and module.name not in SIM_USERS:
            forbidden.append("lustrelite.sim")
        for line, name in imports_of(module):
            wrong += [f"{module.path}:{line}: {module.name} imports {name}" for p in forbidden if within(name, p)]
    assert not wrong, "\n".join(wrong)


def test_words_and_wire_are_pure() -> None:
    wrong = []
    for module in modules():
        if layer_of(module.name) in (0, 1):
            for line, name in imports_of(module):
                if name.split(".")[0] in IMPURE and (module.name, name) not in IMPURE_ALLOWED:
                    wrong.append(f"{module.path}:{line}: {module.name} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_clocks_sockets_threads_and_randomness_come_through_the_seams() -> None:
    wrong = []
    for module in modules():
        if (layer_of(module.name) or 0) > SEAM_LAYER_MAX:
            continue
        quiet = names_type_checking(module)
        for line, name in imports_of(module):
            banned = name in SEAM_MODULES or name.split(".")[0] in SEAM_MODULES
            if banned and (module.name, name) not in SEAM_ALLOWED and line not in quiet:
                wrong.append(f"{module.path}:{line}: {module.name} imports {name}")
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in SEAM_CALLS and (module.name, called) not in SEAM_CALLS_ALLOWED:
                wrong.append(f"{module.path}:{node.lineno}: {module.name} calls {called}()")
    assert not wrong, "\n".join(wrong)


def test_nobody_catches_everything() -> None:
    wrong = []
    for module in modules():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {"" if kind is None else ast.unparse(kind) for kind in kinds}
            broad = names & {"", "Exception", "BaseException"}
            cleans_up = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None  # and lets it go on
            if broad and not cleans_up and module.name not in CATCH_ALL_ALLOWED:
                wrong.append(f"{module.path}:{node.lineno}: except {', '.join(sorted(broad))}")
    assert not wrong, "\n".join(wrong)


def test_module_names_say_something() -> None:
    assert not [m.name for m in modules() if m.name.rsplit(".", 1)[-1] in NAMES_BANNED]


def test_every_module_opens_with_a_docstring() -> None:
    assert not [str(m.path) for m in modules() if m.tree.body and not ast.get_docstring(m.tree)]


@pytest.mark.filterwarnings("default::UserWarning")
def test_modules_are_short() -> None:
    for module in modules():
        assert module.lines <= LINES_MAX, f"{module.path}: {module.lines} lines; split it (limit {LINES_MAX})"
        if module.lines > LINES_WARN:
            warnings.warn(f"{module.path}: {module.lines} lines: past {LINES_WARN}, wants a second look", stacklevel=1)


def test_the_package_list_is_the_tree() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"]) - {"lustrelite.services"}
    packages = {m.name for m in modules() if m.path.name == "__init__.py"} - {"services"}
    assert listed == packages


def test_the_map_names_every_module_and_nothing_else() -> None:
    """docs/architecture.md ends with a row for each module: its path, and what its docstring says first."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    there = {
        str(path.relative_to(ROOT / "lustrelite"))
        for path in (ROOT / "lustrelite").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert rows == there, f"not in the map: {sorted(there - rows)}; not there: {sorted(rows - there)}"


def test_no_two_test_modules_have_one_name() -> None:
    """pytest would leave out the second one."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
