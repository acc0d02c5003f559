"""lustrelite status for people: a table of the processes and their targets."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_STATES = {"ready": "green", "standby": "cyan", "starting": "yellow", "stopping": "yellow", "stopped": "red"}


def print_status(found: dict[str, Any]) -> None:
    """`found` (Cluster.status) as a table."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    table = Table(title=f"{found['fsname']} in {found['state_dir']}", title_justify="left")
    for column in ("process", "state", "pid", "target", "state", "NID"):
        table.add_column(column, overflow="fold" if column == "NID" else "ellipsis")
    for process in found["processes"]:
        colour = _STATES.get(process["state"], "red")
        cells = [process["name"], f"[{colour}]{process['state']}[/]", str(process["pid"] or "-")]
        for number, target in enumerate(process["targets"]):
            row = cells if number == 0 else ["", "", ""]
            nid = process["nid"].removeprefix(found["state_dir"] + "/") if number == 0 else ""
            table.add_row(*row, target["name"], target["state"], nid)
    console.print(table)
