"""Old content comes back as far as the new one was not made durable; whenever the process was killed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lustrelite.store import disk
from lustrelite.store.objects import ObjectFiles
from lustrelite.store.undo import UNDO, UndoFiles, power_cut
from lustrelite.wire.ost import OBJECT_EOF


def state(files: ObjectFiles) -> dict[int, bytes]:
    found = {}
    for oid in files.ids():
        data = bytearray(files.size(oid))
        files.read_into(oid, 0, data)
        found[oid] = bytes(data)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_after_a_power_cut_the_files_are_as_they_were_synced(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    (tmp_path / UNDO).mkdir()
    files = UndoFiles(tmp_path)
    durable: dict[int, bytes] = {}
    removed: dict[int, None] = {}
    for step in range(150):
        oid = rng.choice([oid for oid in range(1, 40) if oid not in removed])
        kind = rng.choice(("write", "write", "write", "punch", "allocate", "cut", "sync", "remove", "kill", "restart"))
        start = rng.randrange(10_000)
        if kind == "write":
            files.write(oid, start, rng.randbytes(rng.choice((10, 5000, 200_000))))
        elif kind == "punch":
            files.punch(oid, start, start + rng.randrange(5000))
        elif kind == "allocate":
            files.allocate(oid, start, start + 1 + rng.randrange(5000), rng.choice((0, disk.FALLOC_ZERO_RANGE)))
        elif kind == "cut":
            files.punch(oid, start, OBJECT_EOF)
        elif kind == "sync":
            oids = rng.sample(range(1, 40), 10)
            files.sync(oids)
            now = state(files)
            for synced in oids:
                durable.pop(synced, None)
                durable.update({synced: now[synced]} if synced in now else {})
        elif kind == "remove" and rng.random() < 0.2:
            files.remove(oid)
            removed[oid] = None
        elif kind == "restart":  # killed, and the machine lives on
            before = state(files)
            files.close()
            files = UndoFiles(tmp_path)
            assert state(files) == before
        elif kind == "kill" and step > 20:
            files.close()
            torn = tmp_path / UNDO / "999999999999"
            torn.write_bytes(rng.randbytes(rng.randrange(20)))  # was about to be kept when the end came
            power_cut(tmp_path)
            files = UndoFiles(tmp_path)
            assert state(files) == durable
            assert not list((tmp_path / UNDO).iterdir())
            removed.clear()
    files.close()
