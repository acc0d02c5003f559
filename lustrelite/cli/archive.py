"""lustrelite backup and restore: everything that a cluster stores, as a directory or a tar archive.

    backup.json           what was saved: the plan, every target's target.json, a checksum of every file
    targets/NAME/lmdb/    the database, compacted
    targets/NAME/...      the data files of an OST

All targets must be of one moment, so a running cluster is stopped for the copy and started again; its clients wait
and go on. Restoring checks every file, gives the cluster the NIDs of its new place, and leaves it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import lmdb
import xxhash

from lustrelite import __version__
from lustrelite import format as target_format
from lustrelite.cli.check import check_stopped, settle, summary
from lustrelite.cli.cluster import Cluster
from lustrelite.cli.context import where
from lustrelite.cli.errors import Refused
from lustrelite.cli.interrupts import Interrupts
from lustrelite.cli.scratch import remove_left, scratch
from lustrelite.target.ownership import OWNER_FILE

MANIFEST = "backup.json"
BACKUP_VERSION = 1
CHUNK = 4 << 20
UNPACKED = ".restore-"  # begins the name of a directory of what is in an archive
AGAIN_FIRST = "the cluster is started again first"


def backup(destination: Path) -> None:
    """Save the cluster that the command is about to `destination`.  Refused"""
    cluster = where().cluster().need()
    if destination.exists():
        raise Refused(f"{destination} exists already: choose a new name")
    with _place_beside(destination) as place, cluster.locked(), Interrupts(AGAIN_FIRST) as interrupts:
        running = cluster.down()
        try:
            interrupts.let_in()
            saved = _save(cluster, destination, place)
        finally:
            interrupts.keep_out()
            if running:
                cluster.up()
    if running:
        cluster.wait_healthy()
    size = sum(entry["bytes"] for entry in saved["files"].values())
    click.echo(f"saved {cluster.fsname}: {len(saved['files'])} files, {size:,} bytes in {destination}")


def _is_archive(path: Path) -> bool:
    return path.name.endswith((".tar", ".tar.gz", ".tgz"))


@contextlib.contextmanager
def _place_beside(destination: Path) -> Iterator[Path]:
    """A directory that is gone in the end, from which `destination` is reached by a rename.  Refused"""
    parent = destination.absolute().parent
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(scratch(parent, ".backup-"))
        except OSError as error:
            raise Refused(f"nothing can be written to {parent} ({error.strerror}): choose another place for the backup") from None
        yield place


def _save(cluster: Cluster, destination: Path, place: Path) -> dict[str, Any]:
    """What is at `destination` is whole, or not there; until it is whole it is in `place`."""
    tree, archive = place / "tree", place / "archive"
    manifest = _save_tree(cluster, tree)
    tree.chmod(0o700)  # as the state directory: who may read it may read every file
    if not _is_archive(destination):
        tree.rename(destination)
        return manifest
    with tarfile.open(archive, "w:gz" if destination.name.endswith("gz") else "w") as file:
        file.add(tree, arcname=".")
    archive.chmod(0o600)
    archive.rename(destination)
    return manifest


def _save_tree(cluster: Cluster, top: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = {
        "version": BACKUP_VERSION,
        "program": __version__,
        "fsname": cluster.fsname,
        "made": int(time.time()),
        "plan": json.loads(cluster.plan_path.read_text()),
    }
    targets = cluster.targets()
    settle(targets)
    for name, source in targets.items():
        target = top / "targets" / name
        target.mkdir(parents=True)
        ownership = target_format.claim(source)
        try:
            (target / "lmdb").mkdir()
            env = lmdb.open(str(source / "lmdb"), readonly=True, lock=False, max_dbs=0)
            try:
                env.copy(str(target / "lmdb"), compact=True)
            finally:
                env.close()
            for path in sorted(source.iterdir()):
                if path.name in ("lmdb", OWNER_FILE):
                    continue
                if path.is_dir():
                    _copy_tree(path, target / path.name)
                else:
                    shutil.copy2(path, target / path.name)
        finally:
            ownership.release()
    manifest["files"] = {name: entry for name, entry in _checksums(top)}  # noqa: C416
    (top / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            _copy_tree(path, target / path.name)
        else:
            copy_sparse(path, target / path.name)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file with its holes."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(reader.fileno(), offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # only a hole is left
            offset = _copy_range(reader.fileno(), writer.fileno(), offset, os.lseek(reader.fileno(), offset, os.SEEK_HOLE))
    shutil.copystat(source, target)


def _copy_range(reader: int, writer: int, offset: int, end: int) -> int:
    """Copy the bytes from `offset` up to `end`, by the kernel if the two file systems let it; returns how far it came."""
    try:
        while offset < end and (done := os.copy_file_range(reader, writer, end - offset, offset, offset)):
            offset += done
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        while offset < end and (data := os.pread(reader, min(CHUNK, end - offset), offset)):
            offset += os.pwrite(writer, data, offset)
    return offset


def _checksums(top: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for directory, _, names in os.walk(top):
        for name in sorted(names):
            path = Path(directory) / name
            if path.name != MANIFEST:
                yield str(path.relative_to(top)), {"bytes": path.stat().st_size, "xxh3": _checksum(path)}


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def restore(source: Path) -> None:
    """Make the cluster of the backup `source`, and check it: exit status 4 if something is wrong.  Refused"""
    cluster = where().cluster()
    if cluster.exists:
        raise Refused(f"{cluster.state_dir} holds a cluster already: choose another --state-dir")
    remove_left(cluster.state_dir, UNPACKED)
    with contextlib.ExitStack() as stack:
        top = source
        if not source.is_dir():
            cluster.state_dir.mkdir(parents=True, exist_ok=True)
            top = stack.enter_context(scratch(cluster.state_dir, UNPACKED))
            _unpack(source, top)
        manifest = _read_manifest(top, source)
        with cluster.locked():
            if cluster.exists:
                raise Refused(f"{cluster.state_dir} holds a cluster by now: choose another --state-dir")
            cluster.adopt(manifest["plan"], lambda name, target: _restore_target(top, name, target))
            try:
                report = check_stopped(cluster.targets())
            except KeyboardInterrupt:
                cluster.forget()  # it is restored when that has been said
                raise
    click.echo(f"restored {cluster.fsname} in {cluster.state_dir}: {summary(report)}")
    if report.errors:
        raise click.exceptions.Exit(4)


def _unpack(source: Path, top: Path) -> None:
    """Unpack the archive `source` into `top`.  Refused"""
    try:
        archive = tarfile.open(source)  # noqa: SIM115
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise Refused(f"{source} is no backup, or a damaged one: {error}") from None
    with archive:
        try:
            if not all(_belongs_here(member) for member in archive):
                raise Refused(f"{source} is no backup: it wants to be elsewhere, or has more than files")
            # The first Pythons of 3.11 (Debian 12 has 3.11.2) do not have it.
            how: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(top, **how)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Refused(f"{source} is damaged or incomplete ({error}): use another backup") from None


def _restore_target(top: Path, name: str, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    _copy_tree(top / "targets" / name, target)


def _belongs_here(member: tarfile.TarInfo) -> bool:
    path = Path(member.name)
    return (member.isfile() or member.isdir()) and not path.is_absolute() and ".." not in path.parts


def _read_manifest(top: Path, source: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((top / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise Refused(f"{source} is no backup: {error}") from None
    if not isinstance(manifest, dict) or not {"version", "files", "plan"} <= manifest.keys():
        raise Refused(f"{source} is no backup: its {MANIFEST} is another program's")
    if manifest["version"] != BACKUP_VERSION:
        raise Refused(f"{source} has version {manifest['version']}, this program reads {BACKUP_VERSION}")
    found = dict(_checksums(top))
    wrong = [name for name, entry in manifest["files"].items() if found.get(name) != entry]
    if wrong:
        raise Refused(f"{source} is damaged: {len(wrong)} files are missing or changed, first {wrong[0]}")
    return manifest
