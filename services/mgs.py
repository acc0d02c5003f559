"""The MGS: it knows which target runs where, and every parameter. Clients and servers ask it and follow its changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lustrelite.process import arguments, run, server_arguments
from lustrelite.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; returns the exit status."""
    parser = server_arguments(arguments("lustrelite-mgs", "LustreLite management server"))
    options = parser.parse_args(argv)
    return run("mgs", options, lambda process: serve(process, "MGS"))


if __name__ == "__main__":
    sys.exit(main())
