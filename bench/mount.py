"""What an operation costs through the mount, by count and beside the least it can cost: mount_rpcs, mount_floor."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.harness import bench, cluster, cpu_seconds, result, scratch
from lustrelite import control
from lustrelite.cli.cluster import Cluster, child_environment
from lustrelite.fuse import attach

FILES = 2000
SMALL_BYTES = 4096


class Mounted:
    """A mount of a cluster, in a process of its own."""

    def __init__(self, made: Cluster) -> None:
        self.made = made
        self.top = scratch()
        self.point = self.top / "m"
        self.point.mkdir()
        self.run_dir = self.top / "run"
        self.mount()

    def _call(self, program: str, *arguments: str) -> None:
        entry = f"from lustrelite.cli.mount_helper import {program}_main as main; main()"
        command = [sys.executable, "-c", entry, *arguments, "--run-dir", str(self.run_dir)]
        subprocess.run(command, env=child_environment(), check=True)

    def mount(self) -> None:
        """Mount it."""
        source = f"{','.join(self.made.mgs_nids)}:/{self.made.fsname}"
        settings = [part for setting in os.environ.get("BENCH_SET", "").split() for part in ("--set", setting)]
        self._call("mount", source, str(self.point), *settings)

    def umount(self) -> None:
        """Unmount it."""
        self._call("umount", str(self.point))

    def again(self) -> None:
        """What a cold cache is."""
        self.umount()
        self.mount()

    def _record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(next(self.run_dir.glob("mount*.json")).read_text())
        return found

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """(requests of the kernel by operation, RPCs by server and message) so far."""
        path = Path(self._record()["control"])
        return control.call(path, "fuse")["requests"], control.call(path, "rpcs")

    def pids(self) -> dict[str, int]:
        """The processes at work."""
        servers = {name: int(self.made.record(name)["pid"]) for name in self.made.members}
        return {"mount": int(self._record()["pid"]), **servers}

    def close(self) -> None:
        """Gone."""
        with contextlib.suppress(subprocess.CalledProcessError):
            if attach.device_of(str(self.point)):
                self.umount()
        shutil.rmtree(self.top, ignore_errors=True)


@contextlib.contextmanager
def kernel_mount(made: Cluster) -> Iterator[Mounted]:
    """A mount of `made`."""
    mounted = Mounted(made)
    try:
        yield mounted
    finally:
        mounted.close()


def _create(path: Path, size: int = 0) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    if size:
        os.write(fd, bytes(size))
    os.close(fd)


def timed(pids: dict[str, int], count: int, work: Callable[[], None]) -> tuple[int, dict[str, int]]:
    """(operations per second, CPU microseconds of each process for one) of `work`, which is `count` operations."""
    cpu, began = {name: cpu_seconds(pid) for name, pid in pids.items()}, time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    time.sleep(0.3)  # what nobody waits for is done by then
    return round(count / seconds), {name: round((cpu_seconds(pid) - cpu[name]) / count * 1e6) for name, pid in pids.items()}


def over(work: Callable[[Path], Any], of: list[Path]) -> Callable[[], None]:
    """`work` on each path."""

    def run() -> None:
        for path in of:
            work(path)

    return run


def measured(mounted: Mounted, count: int, work: Callable[[], None]) -> dict[str, Any]:
    """`work`, which is `count` operations: per operation what the kernel asked, what was asked of servers, CPU by process."""
    before = mounted.counts()
    rate, used = timed(mounted.pids(), count, work)
    after = mounted.counts()

    def each(new: dict[str, int], old: dict[str, int]) -> dict[str, float]:
        found = {name: round((number - old.get(name, 0)) / count, 3) for name, number in new.items()}
        return {name: number for name, number in sorted(found.items()) if number >= 0.005}

    fuse, rpcs = each(after[0], before[0]), each(after[1], before[1])
    return {
        "rate": rate, "fuse": round(sum(fuse.values()), 2), "rpcs": round(sum(rpcs.values()), 2),
        "cpu_us": {name: number for name, number in used.items() if number}, "by_request": fuse, "by_rpc": rpcs,
    }  # fmt: skip


def phases(mounted: Mounted, count: int) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """(name, operations, work) one after the other; each finds what those before it have left."""
    top = mounted.point / "rpcs"
    top.mkdir()
    flat, small, tree = top / "flat", top / "small", top / "tree"
    flat.mkdir()
    small.mkdir()
    tree.mkdir()
    paths = [flat / f"f{number}" for number in range(count)]

    def files_of_a_tree() -> None:
        """As tar makes them: directories of twenty, each file with its content, mode and time."""
        for number in range(count // 20):
            directory = tree / f"d{number}"
            directory.mkdir()
            for each in range(20):
                path = directory / f"f{each}"
                fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                os.write(fd, bytes(SMALL_BYTES))
                os.utime(fd, ns=(10**18, 10**18))
                os.fchmod(fd, 0o644)
                os.close(fd)

    def read_by_tar() -> None:
        with subprocess.Popen(["tar", "cf", "-", str(tree)], stdout=subprocess.PIPE) as tar:  # to /dev/null it reads nothing
            assert tar.stdout is not None
            while tar.stdout.read(1 << 20):
                pass

    yield "mkdir", count // 5, over(os.mkdir, [top / f"d{number}" for number in range(count // 5)])
    yield "rmdir", count // 5, over(os.rmdir, [top / f"d{number}" for number in range(count // 5)])
    yield "create", count, over(_create, paths)
    yield "stat_warm", count, over(os.stat, paths)
    yield "open_close", count, over(lambda path: os.close(os.open(path, os.O_RDONLY)), paths)
    yield "chmod", count, over(lambda path: os.chmod(path, 0o600), paths)
    yield "small_files", count, over(lambda path: _create(path, SMALL_BYTES), [small / path.name for path in paths])
    yield "untarred_files", count // 20 * 20, files_of_a_tree
    mounted.again()
    shuffled = list(paths)
    random.Random(1).shuffle(shuffled)
    yield "stat_cold", count, over(os.stat, shuffled)
    mounted.again()
    yield "small_read_cold", count, over(Path.read_bytes, [small / path.name for path in paths])
    mounted.again()
    yield "tar_read_cold", count // 20 * 20, read_by_tar
    mounted.again()
    yield "ls_l_cold", count, lambda: subprocess.run(["ls", "-lU", str(flat)], stdout=subprocess.DEVNULL, check=True) and None
    yield "rename", count, over(lambda path: os.rename(path, f"{path}n"), paths)
    yield "unlink", count, over(lambda path: os.unlink(f"{path}n"), paths)
    yield "rm_rf", count * 21 // 20, lambda: shutil.rmtree(tree)


@bench
def mount_rpcs() -> dict[str, Any]:
    """Requests of the kernel and RPCs for each operation through a mount, with CPU microseconds by process."""
    with cluster() as made, kernel_mount(made) as mounted:
        found = {name: measured(mounted, count, work) for name, count, work in phases(mounted, FILES)}
    create = found["create"]
    return result("mount_rpcs", create["rpcs"], "RPCs a create", "requests of the kernel", create["fuse"], operations=found)


@contextlib.contextmanager
def bare_mount() -> Iterator[tuple[Path, dict[str, int]]]:
    """(point, pids) of a mount by bare_mount.py."""
    top = scratch()
    point, database, path = top / "m", top / "db", top / "socket"
    point.mkdir()
    database.mkdir()
    command = [sys.executable, "-m", "bench.bare_mount"]
    keeper = subprocess.Popen([*command, "keep", str(path), str(database)], env=child_environment())
    try:
        while not path.exists():
            time.sleep(0.02)
        mount = subprocess.Popen([*command, "serve", str(path), str(point)], env=child_environment())
        try:
            while not os.path.ismount(point):
                time.sleep(0.02)
            yield point, {"mount": mount.pid, "keeper": keeper.pid}
        finally:
            attach.detach(str(point))
            mount.wait()
    finally:
        keeper.wait()
        shutil.rmtree(top, ignore_errors=True)


def creates_and_stats(point: Path, pids: dict[str, int], again: Callable[[], dict[str, int]]) -> dict[str, Any]:
    """Rates, and CPU microseconds of all processes for each operation; `again` makes it cold and returns the pids."""
    paths = [point / f"f{number}" for number in range(FILES)]

    def each(pids: dict[str, int], work: Callable[[Path], Any]) -> dict[str, int]:
        rate, used = timed(pids, FILES, over(work, paths))
        return {"rate": rate, "cpu_us": sum(used.values())}

    created = each(pids, _create)
    random.Random(1).shuffle(paths)
    return {"create": created, "stat_cold": each(again(), os.stat)}


@bench
def mount_floor() -> dict[str, Any]:
    """Creates and cold stats through a mount, beside a FUSE server in Python that only answers (bare_mount.py)."""
    with bare_mount() as (point, pids):
        bare = creates_and_stats(point, pids, lambda: pids)
    with cluster() as made, kernel_mount(made) as mounted:
        directory = mounted.point / "d"
        directory.mkdir()

        def again() -> dict[str, int]:
            mounted.again()
            return mounted.pids()

        ours = creates_and_stats(directory, mounted.pids(), again)
    return result(
        "mount_floor", ours["create"]["rate"], "creates/s", "bare creates/s", bare["create"]["rate"], ours=ours, bare=bare
    )
