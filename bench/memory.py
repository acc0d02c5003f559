"""What the MDS keeps in memory for each open file, client, reply record, uncommitted operation and file at rest."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from bench.harness import bench, closed_loop, cluster, memory_bytes, mounted, result, run
from lustrelite.cli.mount import new_node
from lustrelite.ids import ROOT_FID, Nid, make_fid, target_uuid
from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.links import LinkPool
from lustrelite.rpc.request import Xids
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.wire.mdt import OPEN_BY_FID, OPEN_WRITE, Layout, Open

OPENS = 20_000
CLIENTS = 500
SLOTS = 32
VISITORS = 1500
WRONG = OPEN_BY_FID | OPEN_WRITE  # a directory cannot be opened for writing: an error is recorded like a result
OPERATIONS = 20_000
FILES_AT_REST = 1_000_000
LIMIT_BYTES = 2048


def _fill(directory: str, files: int) -> None:
    """Put `files` inodes, names and back-pointers into a stopped MDT, as creates would have."""
    store = Store.open(directory, "MDT")
    root = schema.unpack_inode(store.get(schema.INODES, ROOT_FID) or b"")
    pack_inode, name_key = schema.pack_inode, schema.name_key
    writes: dict[tuple[str, bytes], bytes | None] = {}
    for number in range(files):
        fid = make_fid(0x300000000 + (number >> 16), (number & 0xFFFF) + 1)
        name = b"rest%07d" % number
        inode = root._replace(mode=0o100644, nlink=1, layout=Layout(1 << 20, 0, "", ((0, 1 << 40 | number),)), version=2)
        writes[schema.INODES, fid] = pack_inode(inode)
        writes[schema.NAMES, name_key(ROOT_FID, name)] = schema.pack_entry(fid, 0o100000)
        writes[schema.LINKS, schema.link_key(fid, ROOT_FID, name)] = b""
        if len(writes) > 30_000:
            store.apply(writes)
            store.flush()
            writes.clear()
    store.apply(writes)
    store.close()


@bench
def server_memory() -> dict[str, Any]:
    """Bytes of anonymous memory of the MDS per thing it has to remember; `value` is the largest."""
    # What is in the log is in memory, too, until the next commit: that is counted as uncommitted operations, once.
    with cluster(params={"tunables.commit_interval_s": "600", "tunables.commit_log_s": "0"}) as made:
        mds = int(made.record("mds1")["pid"])

        async def main() -> dict[str, float]:
            found: dict[str, float] = {}
            node = new_node("many")
            info = f"{made.fsname}-MDT0000"
            nids = [Nid(nid) for nid in made.member("mds1").nids]

            async def connect(number: int) -> ClientImport:
                imp = ClientImport(
                    node, LinkPool(node), target_uuid=target_uuid(info), nids=nids, client_uuid=f"many-{number}",
                    incarnation=1, xids=Xids(node),
                )  # fmt: skip
                imp.start()
                await imp.wait_full()
                return imp

            for number in range(VISITORS):  # fills the ring of events, which is bounded and not per client
                visitor = await connect(-number - 1)
                await visitor.disconnect()
                visitor.links.close()
            before = memory_bytes(mds)
            imports = [await connect(number) for number in range(CLIENTS)]
            found["client"] = (memory_bytes(mds) - before) / CLIENTS
            before = memory_bytes(mds)
            for imp in imports:
                await asyncio.gather(*[imp.call(Open(ROOT_FID, b"", ROOT_FID, WRONG, 0, 0, None, None)) for _ in range(SLOTS)],
                                     return_exceptions=True)
            found["reply_record"] = (memory_bytes(mds) - before) / (CLIENTS * SLOTS)
            async with mounted(made) as fs:
                parent = (await fs.mkdir("/warm")).fid
                await closed_loop(32, 5000, lambda w, n: fs.create_at(parent, b"w%d" % n, 0o644))
                await fs.mkdir("/open")
                before = memory_bytes(mds)
                files = []

                async def open_one(worker: int, number: int) -> None:
                    files.append(await fs.open(f"/open/f{number}", os.O_CREAT | os.O_RDWR, 0o644))

                await closed_loop(32, OPENS, open_one)
                found["open_file"] = (memory_bytes(mds) - before) / OPENS
                parent = (await fs.mkdir("/ops")).fid
                before = memory_bytes(mds)
                await closed_loop(32, OPERATIONS, lambda w, n: fs.create_at(parent, b"o%d" % n, 0o644))
                found["uncommitted_operation"] = (memory_bytes(mds) - before) / OPERATIONS
                await closed_loop(32, OPENS, lambda w, n: files[n].close())
            for imp in imports:
                imp.stop()
                imp.links.close()
            return found

        found = run(main)
        made.stop("mds1")
        target = made.member("mds1").targets[0]
        made.start("mds1")
        empty = memory_bytes(int(made.record("mds1")["pid"]))
        made.stop("mds1")
        _fill(str(made.target_dir(target)), FILES_AT_REST)
        made.start("mds1")
        time.sleep(1)
        found["file_at_rest"] = (memory_bytes(int(made.record("mds1")["pid"])) - empty) / FILES_AT_REST
    per = {key: round(value, 1) for key, value in found.items()}
    return result("server_memory", max(found.values()), "bytes", "limit", LIMIT_BYTES, **per)
