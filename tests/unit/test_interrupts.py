"""A command that is ended takes back what it has begun, and says so: by Ctrl-C, SIGTERM, or SIGHUP of a closed terminal."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lustrelite.cli import mount as cli_mount
from lustrelite.cli.cluster import child_environment

COMMAND = """
import asyncio, click, time
from lustrelite.cli.errors import run

async def wait():
    click.echo("begun")
    await asyncio.sleep(60)

@click.command()
@click.argument("kind")
def command(kind):
    try:
        if kind == "plain":
            click.echo("begun")
            time.sleep(60)
        else:
            with asyncio.Runner() as runner:
                runner.run(wait())
    finally:
        click.echo("taken back")

run(command, "command")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kind", ["plain", "loop"])
@pytest.mark.parametrize("sigint", [signal.default_int_handler, signal.SIG_IGN])
def test_an_ended_command_takes_back_what_it_has_begun(number: int, kind: str, sigint: Any) -> None:
    """SIGTERM and SIGHUP left servers of a demo, and what a restore had unpacked.  A shell's job in the background has SIGINT ignored."""
    if sigint is signal.SIG_IGN and number == signal.SIGINT:
        return
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, kind], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, sigint),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    said, complaint = process.communicate(timeout=30)
    assert said == "taken back\n"
    assert complaint.strip() == "command: interrupted" and process.returncode == 128 + number


def test_who_ignores_hangups_goes_on() -> None:
    """nohup(1)"""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.replace("time.sleep(60)", "time.sleep(0.2)"), "plain"], stdout=subprocess.PIPE, text=True,
        env=child_environment(), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 0


class Leaver:
    """A mount that servers keep from leaving."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    async def unmount(self) -> None:
        self.steps.append("unmount")
        await asyncio.Event().wait()

    async def give_up(self) -> None:
        self.steps.append("give up")


@pytest.mark.parametrize("again", [False, True])
async def test_who_is_interrupted_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], again: bool
) -> None:
    """`cp` to an OST that was away did not end by Ctrl-C, and did not say why."""
    monkeypatch.setattr(cli_mount, "LEAVE_QUIETLY_S", 0.01)
    monkeypatch.setattr(cli_mount, "LEAVE_S", 60.0 if again else 0.01)
    fs: Any = Leaver()
    leave: Callable[[Any], Awaitable[None]] = cli_mount._leave_soon
    leaving = asyncio.ensure_future(leave(fs))
    if again:
        async with asyncio.timeout(10):
            while "waiting for them" not in capsys.readouterr().err:
                await asyncio.sleep(0)
        leaving.cancel()
    await asyncio.wait([leaving], timeout=10)
    assert leaving.cancelled() == again and fs.steps == ["unmount", "give up"]
