"""The MDS: a process that serves one metadata target (MDT) or more."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lustrelite.process import arguments, nids, run, server_arguments
from lustrelite.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; returns the exit status."""
    parser = server_arguments(arguments("lustrelite-mds", "LustreLite metadata server"))
    parser.add_argument("--mgsnode", type=nids, default=[], metavar="NID[,NID]", help="the MGS (default: as formatted)")
    options = parser.parse_args(argv)
    return run("mds", options, lambda process: serve(process, "MDT"))


if __name__ == "__main__":
    sys.exit(main())
