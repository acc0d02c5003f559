"""One line for every failure that a user can do something about; anything else is a bug and shows its traceback."""

from __future__ import annotations

import io
import os
import sys

import click

from lustrelite.cli import interrupts
from lustrelite.control import ControlFailed
from lustrelite.errors import FormatRefused, LinkLost, OpError, StoreFailed

STATUS_SIGPIPE = 141  # of who is ended by it


class Refused(click.ClickException):
    """The command cannot be done; the text says what to do."""


def named(error: OpError, path: str) -> OpError:
    """The error with the path it is about."""
    return OpError(error.errno, error.what if path in error.what else f"{path}" + (f" ({error.what})" if error.what else ""))


def run(command: click.Command, program: str) -> None:
    """Run `command` as the program `program`."""
    interrupts.take_all()
    _open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files are bytes; Python does so in the locale C only
    try:
        status = command.main(prog_name=program, standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _say(program, error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say(program, "interrupted", interrupts.exit_status())
    except SystemExit as error:
        # `lustrelite ls | head`: nobody reads on. Click ends with 1 then, which is "corrected" for fsck.
        sys.exit(STATUS_SIGPIPE if error.code == 1 else error.code)
    except OpError as error:
        _say(program, os.strerror(error.errno) + (f": {error.what}" if error.what else ""), 1)
    except (LinkLost, FormatRefused, StoreFailed, ControlFailed, ValueError) as error:
        _say(program, str(error), 1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _say(program, f"{error.strerror or error}{where}", 1)
    else:
        sys.exit(status if isinstance(status, int) else 0)  # what click.exceptions.Exit said


def _open_closed() -> None:
    """Where the standard streams were closed (`>&-`), nothing else shall be: a socket or a file would be written to.

    What is written to standard output fails, then, as of other commands.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest number that is free
    if sys.stdout is None:
        raw = open(1, "wb", buffering=0, closefd=False)  # noqa: SIM115
        sys.stdout = io.TextIOWrapper(raw, write_through=True)  # it keeps nothing for later
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _say(program: str, text: str, status: int) -> None:
    click.echo(f"{program}: {text}", err=True)
    sys.exit(status)
