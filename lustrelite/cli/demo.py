"""lustrelite demo: the main job. A real directory tree goes in while the MDS, an OSS and a client are killed.

Several client processes copy the running Python's standard library into a fresh cluster. On the way the MDS is killed
with `kill -9` while files are being created, and started again; some of its replies are lost; an OSS is killed while
it is written to, and started again; one client is killed for good. Afterwards a new client compares every file that
the surviving clients wrote with its source, byte for byte, with names, modes and times. What the killed client had in
its cache died with it: its files may be there, whole, in part or not. Then fsck, on the running cluster and on the
stopped.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from lustrelite.alive import start_ticks
from lustrelite.cli import transfer
from lustrelite.cli.check import check_mounted, check_stopped, summary
from lustrelite.cli.cluster import Cluster, child_environment, module_command
from lustrelite.cli.context import where
from lustrelite.cli.errors import Refused
from lustrelite.cli.interrupts import Interrupts
from lustrelite.cli.mount import mount, new_node
from lustrelite.client.attributes import DirEntry
from lustrelite.client.fs import FileSystem
from lustrelite.errors import OpError
from lustrelite.ids import Nid
from lustrelite.real_node import loop_factory
from lustrelite.tunables import PARALLEL

TOP = "/python"
# What happens when so much of the work is done.
KILL_MDS_AT, LOSE_REPLIES_AT, KILL_OSS_AT, KILL_CLIENT_AT = 0.15, 0.30, 0.45, 0.65
REPLIES_LOST = 6
COPY_WAIT_S = 150.0
LEAVE_S = 150.0  # for a client, to have its data written: longer than a recovery may take
LEFT_OUT = ("site-packages", "dist-packages")


class Source(NamedTuple):
    """A local file as it was before the copy: one that changes meanwhile cannot be compared."""

    item: transfer.Item
    mode: int
    mtime: int


class Copier:
    """A client process that copies its share."""

    def __init__(self, name: str, share: list[Source]) -> None:
        self.name = name
        self.share = share
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.killed = False
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, cluster: Cluster) -> None:
        """Start it and wait for its mount."""
        command = [
            *module_command("client"), "--name", self.name, "--mgsnode", ",".join(cluster.mgs_nids), "--fsname",
            cluster.fsname, "--run-dir", str(cluster.run_dir), "--log-dir", str(cluster.log_dir), "--stdin",
        ]  # fmt: skip
        with open(cluster.log_dir / f"{self.name}.log", "ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                env=child_environment() | {"PYTHONDONTWRITEBYTECODE": "1"}, start_new_session=True, limit=1 << 22,
            )  # fmt: skip
        if "ready" not in await self._answer():
            raise Refused(f"{self.name} did not start: see {cluster.log_dir / self.name}.log")

    async def _answer(self) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        return answer

    def _ask(self, **fields: Any) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": 1, **fields}).encode() + b"\n")

    async def mkdir(self, paths: list[str]) -> None:
        """Make directories."""
        self._ask(cmd="mkdir", paths=paths)
        await self._answer()

    async def copy(self, progress: Callable[[], None]) -> None:
        """Copy the share; returns when it is done, or the client is dead."""
        files = [[source.item.source, source.item.target] for source in self.share]
        self._ask(cmd="put", files=files, parallel=PARALLEL)
        while answer := await self._answer():
            if "done" in answer:
                self.done.add(answer["done"])
                progress()
            elif "failed" in answer:
                self.failed[answer["failed"]] = answer["error"]
                progress()
            else:
                self._ask(cmd="counts")
                self.counts.update({k: v for k, v in (await self._answer()).items() if isinstance(v, int)})
                return
        if not self.killed:
            raise Refused(f"{self.name} ended before its work was done")

    def kill(self) -> int:
        """kill -9, for good."""
        assert self.process is not None
        self.killed = True
        self.process.kill()
        return self.process.pid

    async def leave(self) -> str:
        """Unmount and end; returns what went wrong. What was not written yet is: that may have to wait for a recovery."""
        assert self.process is not None
        if self.process.returncode is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                await asyncio.wait_for(self.process.wait(), LEAVE_S)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
                return f"{self.name} had not left after {LEAVE_S:g} s"
        status = await self.process.wait()
        return f"{self.name} ended with status {status}" if status and not self.killed else ""


class Demo:
    """One run."""

    def __init__(self, cluster: Cluster, source: str, clients: int, say: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.source = source
        self.began = time.monotonic()
        self.say_line = say
        self.directories, self.sources = survey(source)
        shares: list[list[Source]] = [self.sources[number::clients] for number in range(clients)]
        self.copiers = [Copier(f"client{number + 1}", share) for number, share in enumerate(shares)]
        self.finished = 0
        self._moved = asyncio.Event()
        self.report: dict[str, Any] = {}
        self.problems: list[str] = []

    def say(self, text: str) -> None:
        """One line of the story."""
        self.say_line(f"[{time.monotonic() - self.began:6.2f} s] {text}")

    async def run(self) -> None:
        """Everything but taking the cluster down."""
        total = sum(source.item.bytes for source in self.sources)
        self.say(f"source: {self.source}: {len(self.sources):,} files, {total:,} bytes")
        await asyncio.to_thread(self.cluster.up)
        await asyncio.to_thread(self.cluster.wait_healthy)
        self.say(f"cluster: {', '.join(self.cluster.members)} in {self.cluster.state_dir}")
        await asyncio.gather(*(copier.start(self.cluster) for copier in self.copiers))
        await self.copiers[0].mkdir([item.target for item in self.directories])
        self.say(f"{len(self.copiers)} clients copy, {PARALLEL} files each at a time")
        began = time.monotonic()
        trouble = asyncio.ensure_future(self._trouble())
        try:
            async with asyncio.timeout(COPY_WAIT_S):
                await asyncio.gather(*(copier.copy(self._progress) for copier in self.copiers))
                await trouble
        except TimeoutError:
            raise Refused(f"the copy did not end in {COPY_WAIT_S:g} s: see {self.cluster.log_dir}") from None
        finally:
            trouble.cancel()
        self.report["copy_s"] = round(time.monotonic() - began, 2)
        self.say(f"copied in {self.report['copy_s']} s")
        self.problems += filter(None, await asyncio.gather(*(copier.leave() for copier in self.copiers)))
        await self._verify()

    def _progress(self) -> None:
        self.finished += 1
        self._moved.set()

    async def _until(self, share: float) -> None:
        while self.finished < share * len(self.sources):
            self._moved.clear()
            await self._moved.wait()

    async def _trouble(self) -> None:
        await self._until(KILL_MDS_AT)
        await self._kill_and_start("mds1", "while files are being created")
        await self._until(LOSE_REPLIES_AT)
        await asyncio.to_thread(
            self.cluster.call, "mds1", "set_param", pattern="fault", value=f"reply Open drop times={REPLIES_LOST}"
        )
        self.say(f"the next {REPLIES_LOST} replies of the MDS to an open are lost")
        await self._until(KILL_OSS_AT)
        await self._kill_and_start("oss1", "while it is written to")
        await self._until(KILL_CLIENT_AT)
        victim = self.copiers[-1]
        pid = victim.kill()
        self.report["killed_client"] = victim.name
        self.say(f"kill -9 {victim.name} (process {pid}) for good; it had finished {len(victim.done)} files")

    async def _kill_and_start(self, name: str, when: str) -> None:
        before = self.finished
        pid = await asyncio.to_thread(self.cluster.kill, name)
        killed = time.monotonic()
        self.say(f"kill -9 {name} (process {pid}) {when}: {before:,} files are finished")
        await asyncio.to_thread(self.cluster.start, name)
        started = time.monotonic()
        self.say(f"{name} is started again")
        self.report.setdefault("outages", []).append({"process": name, "down_s": round(started - killed, 3)})

    # afterwards -----------------------------------------------------------------------------------------------------

    async def _verify(self) -> None:
        survivors = [copier for copier in self.copiers if not copier.killed]
        for copier in survivors:
            self.problems += [f"{copier.name}: {path}: {error}" for path, error in copier.failed.items()]
        node = new_node("verifier")
        fs = await mount(node, [Nid(nid) for nid in self.cluster.mgs_nids], self.cluster.fsname)
        try:
            for item in reversed(self.directories):
                await transfer.put_attributes(fs, item)
            began = time.monotonic()
            found = await self._compare(fs)
            lost = len(self.problems)
            self.say(f"compared {found['files']:,} files, {found['bytes']:,} bytes in {time.monotonic() - began:.2f} s")
            report = await check_mounted(fs)
            self.say(f"fsck, running: {summary(report)}")
            self.problems += [f"fsck: {p.kind}: {p.subject}: {p.detail}" for p in report.errors]
        finally:
            await fs.unmount()
            await node.stop_tasks()
        self.report.update(found, lost=lost, clients=len(self.copiers), survivors=len(survivors))

    async def _compare(self, fs: FileSystem) -> Counter[str]:
        """Compare every directory: what must be there, nothing that nobody put there, and what is in it."""
        counts: Counter[str] = Counter()
        must: dict[str, dict[bytes, Source]] = {item.target: {} for item in self.directories}
        may: dict[str, set[bytes]] = {item.target: set() for item in self.directories}
        for copier in self.copiers:
            for source in copier.share:
                directory, name = os.path.split(source.item.target)
                if copier.killed:
                    may[directory].add(os.fsencode(name))
                    counts["finished_by_killed_client"] += source.item.target in copier.done
                else:
                    must[directory][os.fsencode(name)] = source
        below = {os.fsencode(item.target) for item in self.directories}
        work: list[tuple[Source, DirEntry]] = []
        for item in self.directories:
            entries = {entry.name: entry async for entry in fs.scandir(item.target)}
            missing = [os.fsdecode(raw) for raw in must[item.target] if raw not in entries]
            self.problems += [f"{item.target}: {name} is missing" for name in missing]
            for raw, entry in entries.items():
                if raw in must[item.target]:
                    work.append((must[item.target][raw], entry))
                elif raw not in may[item.target] and os.fsencode(f"{item.target}/") + raw not in below:
                    self.problems.append(f"{item.target}: {os.fsdecode(raw)} was never put there")
            there, info = await fs.stat(item.target), os.stat(item.source)
            if (there.mode, there.mtime) != (info.st_mode, info.st_mtime_ns):
                self.problems.append(f"{item.target}: mode or time differs")
        by_item = {source.item: (source, entry) for source, entry in work}

        async def one(item: transfer.Item) -> None:
            try:
                wrong = await difference(fs, *by_item[item])
            except OpError as error:
                wrong = str(error)
            if wrong is None:
                counts["source_changed"] += 1
                return
            counts["files"] += 1
            counts["bytes"] += item.bytes
            if wrong:
                self.problems.append(f"{item.target}: {wrong}")

        await transfer.in_parallel(list(by_item), one, 16)
        return counts

    def finish(self) -> None:
        """Stop the cluster, examine what is on its disks, and add up what its processes said."""
        self.cluster.down()
        offline = check_stopped(self.cluster.targets())
        self.say(f"fsck, stopped: {summary(offline)}")
        self.problems += [f"fsck: {p.kind}: {p.subject}: {p.detail}" for p in offline.errors]
        counts: Counter[str] = Counter()
        recoveries = []
        for event in logged_events(self.cluster.log_dir):
            counts[event["event"]] += 1
            if event["event"] == "recovery.over":
                recoveries.append({k: event[k] for k in ("target", "duration_s", "completed", "evicted", "replayed")})
        counts["resent"] = sum(copier.counts["resent"] for copier in self.copiers)
        self.report.update(
            replayed=counts["import.replayed"], resent=counts["resent"], reconstructed=counts["reply.reconstructed"],
            recoveries=recoveries, fsck="clean" if offline.clean else summary(offline),
            problems=len(self.problems), total_s=round(time.monotonic() - self.began, 2),
        )  # fmt: skip


def survey(top: str) -> tuple[list[transfer.Item], list[Source]]:
    """(directories, files and symlinks) of the tree `top`, without installed packages."""
    directories: list[transfer.Item] = []
    sources: list[Source] = []

    def walk(local: str, target: str) -> None:
        directories.append(transfer.Item(local, target, True, 0))
        with os.scandir(local) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            info = entry.stat(follow_symlinks=False)
            there = f"{target}/{entry.name}"
            if stat.S_ISDIR(info.st_mode):
                if entry.name not in LEFT_OUT:
                    walk(entry.path, there)
            elif (stat.S_ISREG(info.st_mode) and os.access(entry.path, os.R_OK)) or stat.S_ISLNK(info.st_mode):
                item = transfer.Item(entry.path, there, False, info.st_size)
                sources.append(Source(item, info.st_mode, info.st_mtime_ns))

    walk(top, TOP)
    return directories, sources


async def difference(fs: FileSystem, source: Source, entry: DirEntry) -> str | None:
    """What is different in the file system: "" nothing, None if the source itself has changed meanwhile."""
    info, found = os.lstat(source.item.source), entry.stat
    if (info.st_size, info.st_mtime_ns, info.st_mode) != (source.item.bytes, source.mtime, source.mode):
        return None
    if found is None:
        return "it vanished"
    if stat.S_IFMT(found.mode) != stat.S_IFMT(source.mode):
        return "another type of file"
    if found.is_symlink:
        target = await fs.readlink_fid(entry.fid)
        return "" if target == os.fsencode(os.readlink(source.item.source)) else "another target"
    if found.mode != source.mode:
        return f"mode {found.mode:o}, not {source.mode:o}"
    if found.mtime != source.mtime:
        return f"mtime {found.mtime}, not {source.mtime}"
    if found.size != source.item.bytes:
        return f"{found.size} bytes, not {source.item.bytes}"
    with open(source.item.source, "rb", buffering=0) as local:
        async with await fs.open_fid(entry.fid, os.O_RDONLY | os.O_NOATIME) as remote:
            offset = 0
            while offset < found.size:
                piece = min(found.size - offset, 4 << 20)
                if await remote.pread(piece, offset) != local.read(piece):
                    return f"other bytes after offset {offset}"
                offset += piece
    return ""


def logged_events(log_dir: Path) -> Iterator[dict[str, Any]]:
    """Every event that a process of the cluster wrote."""
    for path in sorted(log_dir.glob("*.events.jsonl*")):
        for line in path.read_text(errors="replace").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # cut off by a kill


def demo(clients: int, source: str | None, osts: int, *, keep: bool, as_json: bool) -> None:
    """Run the demo in a cluster of its own, and tell the result: exit status 1 if something is different."""
    tree = source or sysconfig.get_paths()["stdlib"]
    for old in where().state_dir.glob("demo-*"):
        remove_old(old)
    cluster = Cluster(where().state_dir / f"demo-{os.getpid()}")
    console = Console(highlight=False, stderr=as_json, soft_wrap=True)
    cluster.create(osts=osts, oss=min(2, osts), params={"tunables.rpc_timeout_s": "3"})

    def say(line: str) -> None:
        console.print(line, markup=False)

    async def main() -> Demo:
        run = Demo(cluster, os.path.realpath(tree), clients, say)
        try:
            await run.run()
        finally:
            for copier in run.copiers:
                if copier.process is not None and copier.process.returncode is None:
                    copier.process.kill()
        return run

    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            run = runner.run(main())
        run.finish()
    except BaseException:
        with Interrupts("the cluster is stopped first"):
            cluster.down()
        say(f"the cluster's directory is left for inspection: {cluster.state_dir}")
        raise
    if as_json:
        click.echo(json.dumps(run.report | {"differences": run.problems[:50]}))
    else:
        _print(run, console)
    if run.problems:
        say(f"the cluster's directory is left for inspection: {cluster.state_dir}")
        raise click.exceptions.Exit(1)
    if not keep:
        shutil.rmtree(cluster.state_dir)


def remove_old(state_dir: Path) -> None:
    """Remove what an earlier demo left, unless it still runs."""
    pid = state_dir.name.rpartition("-")[2]
    if pid.isdigit() and not start_ticks(int(pid)):
        cluster = Cluster(state_dir)
        for path in cluster.run_dir.glob("client*.json"):
            if client := cluster.record(path.stem):  # it waits for servers to take what it has written
                os.kill(int(client["pid"]), signal.SIGKILL)
        cluster.down()
        shutil.rmtree(state_dir)


def _print(run: Demo, console: Console) -> None:
    report = run.report
    table = Table(title="lustrelite demo", title_justify="left", show_header=False)
    table.add_row("files", f"{report['files']:,} compared, of the {report['survivors']} clients of {report['clients']} that survived")
    table.add_row("", f"{report['finished_by_killed_client']:,} others were finished by the killed client: its cache died with it")
    table.add_row("bytes", f"{report['bytes']:,}")
    table.add_row("time", f"{report['copy_s']} s copying, {report['total_s']} s in all")
    for outage in report["outages"]:
        table.add_row("kill -9", f"{outage['process']}, back after {outage['down_s']} s")
    table.add_row("", f"{report['killed_client']}, for good")
    for recovery in report["recoveries"]:
        table.add_row(
            "recovery",
            f"{recovery['target']}: {recovery['duration_s']} s, {recovery['completed']} clients, "
            f"{recovery['replayed']} replayed, {recovery['evicted']} evicted",
        )
    table.add_row("operations", f"{report['replayed']} replayed, {report['resent']} resent, {report['reconstructed']} reconstructed")
    table.add_row("fsck", report["fsck"])
    if report.get("source_changed"):
        table.add_row("left out", f"{report['source_changed']} files whose source changed meanwhile")
    table.add_row("lost", str(report["lost"]))
    console.print(table)
    for problem in run.problems[:20]:
        console.print(f"DIFFERENT: {problem}", markup=False)
    if not run.problems:
        console.print("Every byte, name, mode and time is there.")


