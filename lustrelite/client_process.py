"""A client as a process of its own: it holds a mount, shows its connections, and can be told to copy files.

With --stdin it takes one JSON object a line and answers with lines of the same `id`:

    {"id": 1, "cmd": "put", "files": [[local, path], ...], "parallel": 8}    copy in, with modes and times
        -> {"id": 1, "done": path, "bytes": n} for each, as it is done;  {"id": 1, "failed": path, "error": ...}
        -> {"id": 1, "end": true, "done": n, "failed": n}
    {"id": 2, "cmd": "mkdir", "paths": [...]}    -> {"id": 2, "end": true}
    {"id": 3, "cmd": "counts"}                   -> {"id": 3, "end": true, "replayed": n, "resent": n, "evicted": n ...}

The end of stdin unmounts and ends it. Without --stdin it stays until it is stopped.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Any

from prometheus_client.core import Metric

from lustrelite.cli import transfer
from lustrelite.client.data_cache import DataCache
from lustrelite.client.fs import FileSystem
from lustrelite.client.locked_io import LockedIo
from lustrelite.errors import OpError
from lustrelite.ldlm.lock_cache import LockCache
from lustrelite.params import Param, component, number_text, parse_like
from lustrelite.process import Process
from lustrelite.rpc.client_import import ClientImport
from lustrelite.server_metrics import import_metrics
from lustrelite.server_params import import_params
from lustrelite.tunables import PARALLEL, Tunables, check

LINE_BYTES_MAX = 64 << 20


class MountProcess:
    """One mount."""

    def __init__(self, process: Process, fs: FileSystem) -> None:
        self.process = process
        self.fs = fs
        process.tree.add_source(self._params)
        process.metrics.sources.append(self._metrics)
        process.commands["devices"] = lambda _: self._devices()
        process.commands["dump_locks"] = self._dump_locks
        process.commands["rpcs"] = lambda _: self.rpcs()
        process.status = self._status

    def imports(self) -> list[tuple[str, str, ClientImport]]:
        """(type, device name, import) of every connection."""
        suffix = self.fs.connections.uuid[:8]
        found = []
        for name, imp in self.fs.connections.imports.items():
            kind = "osc" if "-OST" in name else "mdc"
            found.append((kind, f"{name}-{kind}-{suffix}", imp))
        return found

    def _mgc(self) -> list[tuple[str, str, ClientImport]]:
        """The connection to the MGS: a device like others, but nothing that the file system waits for."""
        config = self.fs.connections.config
        return [("mgc", f"MGC{config.mgs.nids[0]}", config.mgs)] if config is not None else []

    def _params(self) -> Iterable[Param]:
        yield Param("health_check", self._health)
        for kind, name, imp in self._mgc():
            yield from import_params(f"{kind}/{component(name)}", name, imp)
        for kind, name, imp in self.imports():
            yield from import_params(f"{kind}/{name}", name, imp)
            yield Param(f"{kind}/{name}/stats", functools.partial(_stats, imp))
            if imp.locks is not None:
                yield from _lock_params(f"ldlm/namespaces/{name}", imp.locks)
        connections = self.fs.connections
        for osc in connections.lov.oscs.values():
            if osc.data is not None:
                yield from _data_params(f"osc/{osc.name}-osc-{connections.uuid[:8]}", osc.data)
        if connections.lov.locked is not None:
            yield from _cache_params(f"llite/{connections.fsname}-{connections.uuid[:8]}", connections.lov.locked)

    def _dump_locks(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The locks of one import as lines, by resource; of the MDT's also the record locks."""
        imp = next((imp for _, name, imp in self.imports() if name == request["target"]), None)
        if imp is None:
            raise ValueError(f"no connection {request['target']!r}")
        rows: list[dict[str, Any]] = imp.locks.describe() if imp.locks is not None else []
        wanted = str(request.get("resource") or "").strip("[]").replace(":", "").lower()
        found: dict[str, list[str]] = {}
        for row in rows:
            what = row.get("bits") or row.get("extent")
            asked = ", asked for" if row.get("asked") else ""
            found.setdefault(row["resource"], []).append(
                f"  {row['holding'].lower()} {row['mode']} {what} handle {row['handle']:#x}, {row['users']} users{asked}"
            )
        for holder in self.fs.connections.flocks.describe() if imp is self.fs.connections.mdc.imp else ():
            found.setdefault(holder["fid"], []).append(
                f"  {holder['kind']} {holder['records']} of owner {holder['owner']}, {holder['waiting']} waiting"
            )
        return [
            {"lines": [f"resource {resource}", *lines]} for resource, lines in found.items() if wanted in resource
        ]

    def _health(self) -> str:
        bad = [f"{name}: {imp.state}" for _, name, imp in self.imports() if str(imp.state) not in ("FULL", "IDLE")]
        return "\n".join(["NOT HEALTHY", *bad]) if bad else "healthy"

    def _metrics(self) -> Iterable[Metric]:
        return import_metrics([(name, imp) for _, name, imp in self.imports()])

    def _devices(self) -> list[dict[str, Any]]:
        return [
            {"status": "IN" if imp.inactive else "UP", "type": kind, "name": name, "uuid": imp.client_uuid,
             "refs": len(imp.sending), "state": str(imp.state)}
            for kind, name, imp in (*self._mgc(), *self.imports())
        ]  # fmt: skip

    def _status(self) -> dict[str, Any]:
        return {
            "client": self.fs.connections.uuid,
            "fsname": self.fs.connections.fsname,
            "imports": {name: str(imp.state) for _, name, imp in self.imports()},
        }

    # commands from stdin --------------------------------------------------------------------------------------------

    async def obey(self, lines: AsyncIterator[bytes]) -> None:
        """Do what the lines say, one after the other."""
        async for line in lines:
            request = json.loads(line)
            number, cmd = request["id"], request["cmd"]
            if cmd == "put":
                await self._put(number, request["files"], int(request.get("parallel", PARALLEL)))
            elif cmd == "mkdir":
                for path in request["paths"]:
                    await self.fs.makedirs(path)
                _answer(id=number, end=True)
            elif cmd == "counts":
                _answer(id=number, end=True, **self.counts())
            else:
                _answer(id=number, end=True, error=f"no command {cmd!r}")

    async def _put(self, number: int, files: list[list[str]], parallel: int) -> None:
        done = failed = 0
        putter = transfer.Putter(self.fs)

        async def one(item: transfer.Item) -> None:
            nonlocal done, failed
            try:
                await putter.put(item)
            except OpError as error:
                failed += 1
                _answer(id=number, failed=item.target, error=str(error))
            else:
                done += 1
                _answer(id=number, done=item.target, bytes=item.bytes)

        items = [item for source, target in files for item in transfer.local_items(source, target)]
        await transfer.in_parallel(items, one, parallel)
        _answer(id=number, end=True, counts={"done": done, "failed": failed})

    def rpcs(self) -> dict[str, int]:
        """Requests so far (a resend is none) by kind of server and message, of all servers of a kind together."""
        total: dict[str, int] = {}
        for kind, _, imp in self.imports():
            for name, count in imp.calls.items():
                total[f"{kind}.{name}"] = total.get(f"{kind}.{name}", 0) + count
        return total

    def counts(self) -> dict[str, int]:
        """What the connections went through, summed."""
        total: dict[str, int] = {}
        for _, _, imp in self.imports():
            for name, count in imp.counts.items():
                total[name] = total.get(name, 0) + count
        return total


def _stats(imp: ClientImport) -> str:
    """Requests of one connection, a line for each message."""
    return "\n".join(f"{name.lower()} {count} samples [reqs]" for name, count in sorted(imp.calls.items()))


def _lock_params(prefix: str, locks: LockCache) -> Iterable[Param]:
    """The locks of one connection under Lustre's names. `lru_size=clear` gives back all that are unused."""
    lru = locks.lru

    def set_size(text: str) -> None:
        if text.strip() == "clear":
            locks.clear_unused()
        else:
            size = int(parse_like(0, text))
            check("lru_size", size)
            locks.resize(size)

    def set_age(text: str) -> None:
        lru.max_age_s = parse_like(0.0, text)  # type: ignore[assignment]

    yield Param(f"{prefix}/lock_count", lambda: str(locks.lock_count))
    yield Param(f"{prefix}/lock_unused_count", lambda: str(len(lru)))
    yield Param(f"{prefix}/lru_size", lambda: str(lru.max_count), set_size)
    yield Param(f"{prefix}/lru_max_age", lambda: number_text(lru.max_age_s), set_age)


def _of_tunable(name: str, tunables: Tunables, ours: str, unit: int = 1) -> Param:
    """A tunable of this process in another unit; it is no other connection's for that (Lustre's would be)."""

    def put(text: str) -> None:
        setattr(tunables, ours, int(parse_like(0, text)) * unit)

    return Param(name, lambda: str(getattr(tunables, ours) // unit), put)


def _data_params(prefix: str, data: DataCache) -> Iterable[Param]:
    """The dirty data of one OST under Lustre's names."""
    tunables = data.osc.node.tunables

    def shrink(text: str) -> None:
        data.shrinker.shrink(max(int(parse_like(0, text)), 0))

    def set_interval(text: str) -> None:
        tunables.grant_shrink_interval_s = float(parse_like(0.0, text))
        data.shrinker.arm()

    yield Param(f"{prefix}/cur_grant_bytes", lambda: str(data.grant.available), shrink)
    yield _of_tunable(f"{prefix}/grant_shrink", tunables, "grant_shrink")
    yield Param(f"{prefix}/grant_shrink_interval", lambda: number_text(tunables.grant_shrink_interval_s), set_interval)
    yield Param(f"{prefix}/cur_dirty_bytes", lambda: str(data.grant.reserved))
    yield _of_tunable(f"{prefix}/max_dirty_mb", tunables, "max_dirty_bytes", 1 << 20)
    yield _of_tunable(f"{prefix}/max_rpcs_in_flight", tunables, "max_rpcs_in_flight")


def _cache_params(prefix: str, locked: LockedIo) -> Iterable[Param]:
    """The pages of the mount."""
    pages, tunables = locked.shared.pages, locked.shared.node.tunables
    yield Param(f"{prefix}/cached_bytes", lambda: str(pages.bytes))
    yield _of_tunable(f"{prefix}/max_cached_mb", tunables, "max_cached_bytes", 1 << 20)
    yield _of_tunable(f"{prefix}/max_read_ahead_mb", tunables, "max_read_ahead_bytes", 1 << 20)


def _answer(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def _stdin_lines() -> AsyncIterator[bytes]:
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line


async def serve(process: Process) -> None:
    """The life of a client process."""
    options = process.options
    patient = not options.stdin  # nobody waits for us: all containers of a new cluster are started at once
    mounting = asyncio.ensure_future(FileSystem.mount(process.node, options.mgsnode, options.fsname, patient=patient))
    stopped = asyncio.ensure_future(process.stopping.wait())
    await asyncio.wait({mounting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not mounting.done():
        mounting.cancel()
        await asyncio.gather(mounting, return_exceptions=True)
        return
    fs = mounting.result()
    mounted = MountProcess(process, fs)
    try:
        await process.devices_are_there()
    except ValueError:
        await fs.unmount()
        raise
    if fs.connections.config is not None:
        process.follow_params(fs.connections.config)
    process.ready(client=fs.connections.uuid, fsname=options.fsname)
    work = asyncio.ensure_future(mounted.obey(_stdin_lines())) if options.stdin else stopped
    if options.stdin:
        _answer(ready=True, client=fs.connections.uuid, pid=process.record["pid"])
    done, _ = await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if work not in done:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    stopped.cancel()
    await fs.unmount()
    if work in done and not work.cancelled():
        work.result()
