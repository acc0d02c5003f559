"""Commands whose output goes into a pipe: who reads no further ends them as SIGPIPE would, without a word."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lustrelite.cli.cluster import child_environment

FSCK = """
from lustrelite.cli import check, main
from lustrelite.fsck import Report
check.targets_in = lambda _: {"lustre-MDT0000": None}
check.check_stopped = lambda _: Report()
main.main()
"""


@pytest.mark.parametrize(
    "words", [["-m", "lustrelite.cli.main", "--help"], ["-m", "lustrelite.cli.llctl", "--help"], ["-c", FSCK, "fsck"],
              ["-c", FSCK, "fsck", "--json"]]
)  # fmt: skip
def test_who_reads_no_further_ends_a_command(words: list[str]) -> None:
    """`lustrelite fsck | head` ended with 1, which says that something was corrected, or said `Broken pipe`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, *words], stdout=writer, stderr=subprocess.PIPE, text=True, env=child_environment())
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_status_1_is_status_1() -> None:
    code = "import click, sys\nfrom lustrelite.cli.errors import run\n@click.command()\ndef c(): raise click.exceptions.Exit(1)\nrun(c, 'c')"
    assert subprocess.run([sys.executable, "-c", code], env=child_environment()).returncode == 1


def test_a_name_that_is_no_text_is_told_as_it_is() -> None:
    """`ls` of a directory with such a name failed, but in the locale C."""
    code = "import click, os\nfrom lustrelite.cli.errors import run\n@click.command()\ndef c(): click.echo(os.fsdecode(b'l\\xe4'))\nrun(c, 'c')"
    env = {**child_environment(), "PYTHONIOENCODING": "utf-8:strict"}  # as in en_US.UTF-8
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"l\xe4\n", b"")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_stream_that_is_closed_is_nobody_elses(closed: str) -> None:
    """A socket of the event loop was standard output: uvloop ended the command with SIGABRT; `status` showed a traceback."""
    code = """
import click, os, sys
from lustrelite.cli.errors import run
@click.command()
def c():
    assert os.open("/", os.O_RDONLY) > 2 and not sys.stdout.isatty()
    click.echo("x")
run(c, "c")
"""
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, env=child_environment())
    wanted = (1, "", "c: Bad file descriptor\n" if "2" not in closed else "") if "1" in closed else (0, "x\n", "")
    assert (done.returncode, done.stdout, done.stderr) == wanted
