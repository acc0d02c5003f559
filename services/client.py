"""A client: a process that holds a mount of the file system, until it is stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lustrelite.client_process import serve
from lustrelite.process import arguments, nids, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; returns the exit status."""
    parser = arguments("lustrelite-client", "LustreLite client")
    parser.add_argument("--mgsnode", type=nids, required=True, metavar="NID[,NID]", help="the MGS")
    parser.add_argument("--fsname", default="lustre", help="name of the file system")
    parser.add_argument("--stdin", action="store_true", help="take commands from the standard input, as JSON lines")
    options = parser.parse_args(argv)
    return run("client", options, serve)


if __name__ == "__main__":
    sys.exit(main())
