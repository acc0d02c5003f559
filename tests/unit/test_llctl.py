"""llctl against processes that only have control sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lustrelite import control
from lustrelite.cli.llctl import llctl
from lustrelite.control import unix_socket
from lustrelite.control_server import Command, ControlServer


async def invoked(run_dir: Path, processes: dict[str, dict[str, Command]], *words: str) -> Result:
    """What llctl says to `words` where `processes` run: their commands by name."""
    servers = [ControlServer(run_dir / f"{name}.sock", commands) for name, commands in processes.items()]
    for server in servers:
        await server.start()
    try:
        return await asyncio.to_thread(CliRunner().invoke, llctl, ["--run-dir", str(run_dir), *words])
    finally:
        for server in servers:
            await server.close()


def follower(state: str, asked: list[str], refusal: str = "") -> dict[str, Command]:
    """A process whose connection to the MGS is in `state`, and which notes what it is asked to set."""

    def set_permanent(request: dict[str, Any]) -> None:
        asked.append(f"{state} {request['pattern']}={request['value']}")
        if refusal:
            raise TimeoutError(refusal)

    commands: dict[str, Callable[[dict[str, Any]], Any]] = {"mgs": lambda _: {"state": state}, "set_permanent": set_permanent}
    return commands


async def test_one_process_asks_the_mgs(tmp_path: Path) -> None:
    asked: list[str] = []
    processes = {"a": {}, "b": follower("DISCONN", asked), "c": follower("FULL", asked), "d": follower("FULL", asked)}
    done = await invoked(tmp_path, processes, "set_param", "-P", "tunables.spin_us=7")
    assert not done.exit_code and asked == ["FULL tunables.spin_us=7"], done.output


async def test_what_the_mgs_does_not_hear_no_other_process_tells_it(tmp_path: Path) -> None:
    asked: list[str] = []
    (tmp_path / "mgs.sock").touch()  # of one that was killed
    why = "the MGS does not answer in 8 s; nothing is changed"
    processes = {"a": follower("DISCONN", asked, why), "b": follower("DISCONN", asked, why)}
    done = await invoked(tmp_path, processes, "set_param", "-P", "tunables.spin_us=7")
    assert done.exit_code == 1 and done.output == f"Error: tunables.spin_us=7: {why}\n" and len(asked) == 1
    done = await invoked(tmp_path, {"a": {}}, "set_param", "-P", "tunables.spin_us=7")
    assert done.exit_code == 1 and "no process that knows an MGS runs in" in done.output


async def test_who_was_killed_is_no_reason(tmp_path: Path) -> None:
    """After `kill -9` of one server `set_param` of a wrong name asked whether that server runs, and a wrong value did, too."""
    with unix_socket(tmp_path / "b.sock", connect=False):
        pass  # nobody listens there any more

    def refusing(why: str) -> dict[str, Command]:
        def refuse(_: dict[str, Any]) -> None:
            raise ValueError(why)

        return {"set_param": refuse}

    processes = {"a": refusing("no parameter matches 'x'"), "c": refusing("no parameter matches 'x'")}
    done = await invoked(tmp_path, processes, "set_param", "x=1")
    assert done.exit_code == 1 and done.output == "Error: no parameter matches 'x'\n"
    done = await invoked(tmp_path, {**processes, "c": refusing("x is read only")}, "set_param", "x=1")
    assert done.exit_code == 1 and done.output == "Error: x is read only\n"
    done = await invoked(tmp_path, {}, "set_param", "x=1")
    assert done.exit_code == 1 and "is the process running?" in done.output


async def test_who_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "call", partial(control.call, timeout_s=0.05))

    async def get_param(request: dict[str, Any]) -> dict[str, str]:
        await asyncio.sleep(0.5)
        return {}

    stands = "stands has not answered get_param in 0.05 s: it is stopped"
    done = await invoked(tmp_path, {"stands": {"get_param": get_param}, "well": {"get_param": lambda _: {}}}, "get_param", "x")
    assert not done.exit_code and done.stderr.startswith(f"llctl: {stands}")
    done = await invoked(tmp_path, {"stands": {"get_param": get_param}}, "get_param", "x")
    assert done.exit_code == 1 and done.stderr.startswith(f"Error: {stands}")
