"""What an operation through a mount may cost, counted: requests of the kernel and RPCs.

`python -m bench mount_rpcs` has more.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lustrelite import acl
from lustrelite.fuse.names import SELINUX
from tests.posix.mounts import Mounted, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
FILES = 100
SLACK = 0.2  # an operation: pings, sequences of FIDs, leases that were renewed


def create(path: Path, size: int = 0) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    if size:
        os.write(fd, bytes(size))
    os.close(fd)


def read(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    assert os.read(fd, 4096) == bytes(4096)
    os.close(fd)


def write_and_set(path: Path) -> None:
    """As tar does."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(fd, bytes(4096))
    os.utime(fd, ns=(10**18, 10**18))
    os.fchmod(fd, 0o644)
    os.close(fd)


def copy_mode(path: Path) -> None:
    """As cp -p does."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.write(fd, bytes(4096))
    os.utime(fd, ns=(10**18, 10**18))
    entries = acl.Entry(acl.USER_OBJ, 6), acl.Entry(acl.GROUP_OBJ, 4), acl.Entry(acl.OTHER, 4)
    os.setxattr(fd, acl.ACCESS.decode(), acl.pack(entries))
    os.close(fd)
    assert path.stat().st_mode & 0o777 == 0o644


# what, requests of the kernel (but LOOKUP and GETATTR: their number depends on how long leases are), RPCs to the MDT, to OSTs
Row = tuple[str, Callable[[Path], Any], float, dict[str, int], float]
ROWS: list[Row] = [
    ("mkdir", lambda top: os.mkdir(top / "d"), 1, {"Create": 1}, 0),
    ("rmdir", lambda top: os.rmdir(top / "d"), 1, {"Unlink": 1}, 0),
    ("create", lambda top: create(top / "f"), 3, {"Open": 1}, 0),
    ("stat", lambda top: os.stat(top / "f"), 0, {}, 0),
    ("open", lambda top: os.close(os.open(top / "f", os.O_RDONLY)), 3, {}, 0),
    ("chmod", lambda top: os.chmod(top / "f", 0o600), 1, {"Setattr": 1}, 0),
    ("link", lambda top: os.link(top / "f", top / "l"), 1, {"Link": 1, "Getattr": 1}, 0),
    ("rename", lambda top: os.rename(top / "f", top / "g"), 1, {"Rename": 1}, 0),
    ("rename over", lambda top: os.rename(top / "l", top / "g"), 1, {"Rename": 1, "Lookup": 1}, 1),
    ("unlink", lambda top: os.unlink(top / "g"), 1, {"Unlink": 1}, 0),
    ("a small file", lambda top: create(top / "s", 4096), 5, {"Open": 1}, 1),
    ("read what was written", lambda top: read(top / "s"), 4, {}, 0),
    ("read it again", lambda top: read(top / "s"), 3, {}, 0),  # the kernel has it
    ("a copy", lambda top: copy_mode(top / "c"), 7, {"Open": 1}, 1),
    ("a file of a tar", lambda top: write_and_set(top / "t"), 7, {"Open": 1}, 1),
]
FREE = ("LOOKUP", "GETATTR", "FORGET", "BATCH_FORGET")


@pytest.mark.processes
async def test_operations_cost_no_more_than_they_must(world: Any) -> None:
    """One directory per operation, in which nothing was known before; a name that is not there costs no question."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        tops = [m.path / str(number) for number in range(FILES)]
        await m.call(lambda: [top.mkdir() for top in tops])
        for name, work, requests, rpcs, to_osts in ROWS:
            if name == "rename over":  # two names of one file would stay
                await m.call(lambda: [(os.unlink(top / "l"), create(top / "l")) for top in tops])
                await m.call(time.sleep, 0.3)
            before = m.tell("fuse")["requests"], m.tell("rpcs")
            await m.call(lambda work=work: [work(top) for top in tops])
            await m.call(time.sleep, 0.3)  # what nobody waits for
            after = m.tell("fuse")["requests"], m.tell("rpcs")
            asked, sent = (
                {key: more for key, count in new.items() if (more := count - old.get(key, 0)) and key not in FREE}
                for new, old in zip(after, before, strict=True)
            )
            assert sum(asked.values()) <= (requests + SLACK) * FILES, (name, asked)
            for key, count in sent.items():
                kind, _, message = key.partition(".")
                if kind == "mdc":
                    assert count <= (rpcs.get(message, 0) + SLACK) * FILES, (name, sent)
            osts = sum(count for key, count in sent.items() if key.startswith("osc."))
            assert osts <= (to_osts + SLACK) * FILES, (name, sent)
        await m.call(lambda: [shutil.rmtree(top) for top in tops])


@pytest.mark.processes
@pytest.mark.skipif(SELINUX.is_dir(), reason="this kernel has labels, and ls shows them")
async def test_ls_asks_once_a_file_for_lists_or_labels_and_no_server(world: Any) -> None:
    """Until coreutils 9.5 it wants the label and the access list: that there are no labels here it is told once. Later ones
    want the names of all attributes, and that is all if there are none."""
    async with world(oss=1, clients=0) as w, Mounted(w) as m:
        top = m.path / "d"
        await m.call(top.mkdir)
        await m.call(lambda: [create(top / f"f{number}") for number in range(FILES)])

        def told() -> tuple[int, int]:
            requests, rpcs = m.tell("fuse")["requests"], m.tell("rpcs")
            asked = requests.get("GETXATTR", 0) + requests.get("LISTXATTR", 0)
            return asked, sum(count for key, count in rpcs.items() if "xattr" in key.lower())

        def listed() -> int:
            before, sent = told()
            subprocess.run(["ls", "-l", top], stdout=subprocess.DEVNULL, check=True)
            after, now_sent = told()
            assert now_sent == sent
            return after - before

        assert FILES <= await m.call(listed) <= (1 + SLACK) * FILES
        os.setxattr(top / "f0", "security.selinux", b"a_label")
        assert os.getxattr(top / "f0", "security.selinux") == b"a_label"
        for name, why in (("security.selinux", errno.EOPNOTSUPP), ("security.capability", errno.ENODATA)):
            with pytest.raises(OSError) as failed:
                os.getxattr(top / "f1", name)
            assert failed.value.errno == why
        await m.call(shutil.rmtree, top)
