"""Commands start quickly: what only helps, completes words or asks a process imports nothing that takes long."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from lustrelite.alive import start_ticks
from lustrelite.cli.cluster import child_environment
from lustrelite.control_server import ControlServer

# Packages and modules, each with everything in it, that take long to import.
SERVERS = {"lustrelite.daemon", "lustrelite.fsck", "lustrelite.fuse.process", "lustrelite.mdt", "lustrelite.mgs", "lustrelite.ost",
           "lustrelite.process", "lustrelite.sim", "lustrelite.store", "lustrelite.target", "http", "lmdb", "prometheus_client",
           "rich"}  # fmt: skip
CLIENT = {"lustrelite.client", "lustrelite.ldlm", "lustrelite.rpc", "lustrelite.wire", "asyncio", "crc32c", "msgpack", "ssl",
          "uvloop", "xxhash"}  # fmt: skip
MAINS = {
    "llctl": "lustrelite.cli.llctl:main", "llfs": "lustrelite.cli.llfs:main", "lustrelite": "lustrelite.cli.main:main",
    "mount.lustrelite": "lustrelite.cli.mount_helper:mount_main",
    "umount.lustrelite": "lustrelite.cli.mount_helper:umount_main",
}  # fmt: skip


async def run(code: str, *words: str, **environment: str) -> tuple[str, set[str]]:
    """(what `code` prints, the modules that are imported in the end); `words` are its arguments."""
    tell = "import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", tell + code, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=child_environment() | environment,
    )  # fmt: skip
    said, modules = await process.communicate()
    assert process.returncode == 0, modules.decode()
    return said.decode(), set(modules.decode().split())


def main_of(program: str) -> str:
    """Code that runs `program`."""
    module, main = MAINS[program].split(":")
    return f"from {module} import {main}\n{main}()"


def slow(modules: set[str], packages: set[str]) -> list[str]:
    """Those of `modules` that are in `packages`."""
    return sorted(name for name in modules if any(name == each or name.startswith(f"{each}.") for each in packages))


@pytest.mark.parametrize("program", MAINS)
async def test_help_imports_neither_client_nor_servers(program: str) -> None:
    said, modules = await run(main_of(program), "--help")
    assert "Usage:" in said and not slow(modules, SERVERS | CLIENT)


@pytest.mark.parametrize(("program", "word"), [("llctl", "dl"), ("llfs", "df"), ("lustrelite", "status")])
async def test_completion_imports_neither_client_nor_servers(program: str, word: str) -> None:
    asked = {f"_{program.upper()}_COMPLETE": "bash_complete", "COMP_WORDS": f"{program} {word}", "COMP_CWORD": "1"}
    said, modules = await run(main_of(program), **asked)
    assert f"plain,{word}" in said.splitlines() and not slow(modules, SERVERS | CLIENT)


async def test_who_only_asks_a_process_imports_neither_client_nor_servers(tmp_path: Path) -> None:
    device = {"name": "lustre-OST0000-osc-1", "status": "UP", "type": "osc", "uuid": "u", "refs": 1, "state": "FULL"}
    point = {"mountpoint": "/mnt/lustre", "state": "ready", "pid": os.getpid(), "start_ticks": start_ticks(os.getpid())}
    (tmp_path / "mount.json").write_text(json.dumps({**point, "control": str(tmp_path / "mount.sock")}))
    (tmp_path / "mountinfo").write_text("40 22 0:44 / /mnt/lustre rw - fuse.lustrelite mgs:/lustre rw\n")
    mounted = f"from pathlib import Path\nfrom lustrelite.cli import mounts\nmounts.MOUNTINFO = Path({str(tmp_path / 'mountinfo')!r})\n"
    commands = {"devices": lambda _: [device]}
    server = ControlServer(tmp_path / "mount.sock", commands)
    await server.start()
    try:
        listed, of_llctl = await run(main_of("llctl"), "--run-dir", str(tmp_path), "dl")
        checked, of_llfs = await run(mounted + main_of("llfs"), "check", "all", LUSTRELITE_RUN_DIR=str(tmp_path))
    finally:
        await server.close()
    assert "UP osc lustre-OST0000-osc-1" in listed and not slow(of_llctl, SERVERS | CLIENT)
    assert checked == "lustre-OST0000-osc-1 active.\n" and not slow(of_llfs, SERVERS | CLIENT)


async def test_a_command_that_is_a_client_imports_no_servers() -> None:
    _, modules = await run("import lustrelite.cli.mount, lustrelite.cli.transfer")
    assert "lustrelite.client.fs" in modules and not slow(modules, SERVERS)
