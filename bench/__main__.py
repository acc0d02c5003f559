"""`python -m bench [NAME...]`: run these benchmarks, one JSON line each; `all` runs every one."""

from __future__ import annotations

import sys

from bench import cached_data, data, locks, memory, metadata, mount, mount_data, names, object_files, recovery  # noqa: F401  they register themselves
from bench.harness import BENCHES, show


def main(wanted: list[str]) -> int:
    """Run the benchmarks `wanted`; returns the exit status."""
    if not wanted:
        for name, function in BENCHES.items():
            print(f"{name:16} {(function.__doc__ or '').splitlines()[0]}")  # noqa: T201
        return 0
    unknown = [name for name in wanted if name not in BENCHES and name != "all"]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHES)}", file=sys.stderr)  # noqa: T201
        return 2
    for name in BENCHES if "all" in wanted else wanted:
        show(BENCHES[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
