"""The least that a create and a cold stat can cost through a FUSE server in Python: nothing cached, locked or recovered.

    python -m bench.bare_mount keep SOCKET DIRECTORY     a server that puts names and inodes into LMDB
    python -m bench.bare_mount serve SOCKET POINT        a mount that asks it, one request after the other
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys
import time
from typing import Any

import lmdb
import msgpack

from lustrelite.fuse import attach, kernel
from lustrelite.fuse.kernel import HEADER, OUT_HEADER, op

ROOT = 1
KEPT_S = 3600.0  # attributes; names are looked up each time
COMMIT_EVERY = 1000  # creates
REQUEST_BYTES_MAX = (1 << 20) + 4096
_LENGTH = struct.Struct(">I")
_CREATE = kernel.SHAPES[op.CREATE].fields


def send(peer: socket.socket, value: object) -> None:
    """One frame."""
    body: bytes = msgpack.packb(value)
    peer.sendall(_LENGTH.pack(len(body)) + body)


def receive(peer: socket.socket) -> list[Any]:
    """One frame; both sides have one in flight at most.  EOFError"""
    data = peer.recv(1 << 16)
    if not data:
        raise EOFError
    found: list[Any] = msgpack.unpackb(data[_LENGTH.size :])
    return found


def keep(path: str, directory: str) -> None:
    """Serve one mount: [parent, name, mode, uid, gid] is answered by the attributes."""
    env = lmdb.open(directory, map_size=1 << 30, max_dbs=2, sync=False)
    names, inodes = env.open_db(b"names"), env.open_db(b"inodes")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(1)
        peer, _ = listening.accept()
    number, txn = ROOT, env.begin(write=True)
    while True:
        try:
            parent, name, mode, uid, gid = receive(peer)
        except EOFError:
            txn.commit()
            return
        number += 1
        now = time.time_ns()
        attr = (number, 0, 0, now, now, now, mode, 1, uid, gid, 0)
        key = _LENGTH.pack(number)
        txn.put(_LENGTH.pack(parent) + name, key, db=names, overwrite=False)
        txn.put(key, msgpack.packb(attr), db=inodes)
        send(peer, attr)
        if number % COMMIT_EVERY == 0:
            txn.commit()
            txn = env.begin(write=True)


def serve(path: str, point: str) -> None:
    """Mount, and answer until it is unmounted."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(path)
    fd = attach.attach("bare", point, 0, allow_other=False)
    now = time.time_ns()
    top = kernel.Attributes(ROOT, 0, 0, now, now, now, stat.S_IFDIR | 0o755, 2, os.getuid(), os.getgid(), 0)
    known: dict[int, kernel.Attributes] = {ROOT: top}
    names: dict[tuple[int, bytes], int] = {}
    while True:
        try:
            data = os.read(fd, REQUEST_BYTES_MAX)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        _, opcode, unique, node, uid, gid, _, _, _ = HEADER.unpack_from(data)
        body = data[HEADER.size :]
        answer: bytes = b""
        number = 0
        if opcode == op.LOOKUP:
            found = names.get((node, body[:-1]))
            if found is None:
                number = errno.ENOENT
            else:
                answer = kernel.entry_out(found, 0, KEPT_S, known[found])
        elif opcode == op.CREATE:
            _, mode, _, _ = _CREATE.unpack_from(body)
            name = body[_CREATE.size : -1]
            send(peer, (node, name, mode, uid, gid))
            attr = kernel.Attributes(*receive(peer))
            known[attr.ino], names[node, name] = attr, attr.ino
            answer = kernel.entry_out(attr.ino, 0, KEPT_S, attr) + kernel.open_out(attr.ino, 0)
        elif opcode == op.GETATTR:
            answer = kernel.attr_out(KEPT_S, known[node])
        elif opcode == op.INIT:
            (_, minor, readahead, _), _, _ = kernel.decode(op.INIT, body)
            answer = kernel.init_out(min(minor, kernel.MINOR), 0, readahead, 64)
        elif opcode in (op.FORGET, op.BATCH_FORGET):
            continue
        elif opcode not in (op.FLUSH, op.RELEASE):
            number = errno.ENOSYS
        os.write(fd, OUT_HEADER.pack(OUT_HEADER.size + len(answer), -number, unique) + answer)


if __name__ == "__main__":
    {"keep": keep, "serve": serve}[sys.argv[1]](*sys.argv[2:])
