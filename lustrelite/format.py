"""What mkfs.lustrelite writes: a target's directory and its `target.json`, which says what the target is.

    DIR/target.json   this file
    DIR/lmdb/         the database (store/kv.py)
    DIR/O/            object data, on an OST (store/objects.py)
    DIR/owner         who runs it (target/ownership.py)

The file is small, text, and replaced in one step. `stamp` is made at format time: two targets that were formatted with
one index differ there, so the MGS can refuse the second. A directory that a running process owns is never changed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from lustrelite.errors import FormatRefused, OpError
from lustrelite.ids import check_fsname, parse_nid, target_name, target_uuid
from lustrelite.store.schema import FORMAT_VERSION, TARGET_FILE
from lustrelite.target.ownership import Owner, Ownership
from lustrelite.tunables import FAILOVER_MODE

KINDS = ("MGS", "MDT", "OST")
INDEX_MAX = 0xFFFF


class TargetConfig(NamedTuple):
    """What a target's directory says of it."""

    kind: str  # MGS, MDT or OST
    fsname: str  # "" for the MGS
    index: int  # type: ignore[assignment]  # tuple has a method of that name
    stamp: str
    mgsnodes: tuple[str, ...] = ()  # NIDs of the MGS, tried in turn; none for the MGS itself
    failnodes: tuple[str, ...] = ()  # NIDs of other servers that may run it
    params: tuple[tuple[str, str], ...] = ()
    format: int = FORMAT_VERSION

    @property
    def name(self) -> str:
        """`lustre-OST0001`, or `MGS`."""
        return target_name(self.fsname, self.kind, self.index)

    @property
    def uuid(self) -> str:
        """By which clients connect."""
        return target_uuid(self.name)

    def text(self) -> str:
        """The contents of target.json."""
        fields = {"name": self.name, "uuid": self.uuid, **self._asdict(), "params": dict(self.params)}
        return json.dumps(fields, indent=2) + "\n"


def check_config(config: TargetConfig) -> TargetConfig:
    """`config` if it makes sense; ValueError says what does not."""
    if config.kind not in KINDS:
        raise ValueError(f"bad kind {config.kind!r}: one of {', '.join(KINDS)}")
    if config.kind != "MGS":
        check_fsname(config.fsname)
        if not config.mgsnodes:
            raise ValueError(f"an {config.kind} needs --mgsnode: the NID of the MGS")
    if not 0 <= config.index <= INDEX_MAX:
        raise ValueError(f"bad index {config.index}: 0 to {INDEX_MAX}")
    if config.kind == "MDT" and config.index:
        raise ValueError(f"bad index {config.index} of an MDT: there is one, with index 0, for the whole tree")
    for nid in (*config.mgsnodes, *config.failnodes):
        parse_nid(nid)
    mode = dict(config.params).get(FAILOVER_MODE, "failover")
    if mode not in ("failover", "failout") or (mode == "failout" and config.kind != "OST"):
        raise ValueError(f"bad {FAILOVER_MODE} {mode!r} of an {config.kind}: failover or, on an OST, failout")
    return config


def parse_config(text: str, where: str = TARGET_FILE) -> TargetConfig:
    """The configuration in `text`; FormatRefused if it is none or another version's."""
    try:
        raw: dict[str, Any] = json.loads(text)
        version = int(raw["format"])
        if version != FORMAT_VERSION:
            word = "newer" if version > FORMAT_VERSION else "older"
            raise FormatRefused(
                f"{where} has format version {version}, {word} than this program's {FORMAT_VERSION}: "
                "use the program that made it"
            )
        return check_config(
            TargetConfig(
                str(raw["kind"]), str(raw["fsname"]), int(raw["index"]), str(raw["stamp"]),
                tuple(map(str, raw["mgsnodes"])), tuple(map(str, raw["failnodes"])),
                tuple((str(k), str(v)) for k, v in raw["params"].items()), version,
            )
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatRefused(f"{where} is damaged ({error}): restore it from a backup") from None


def read_target(directory: str | Path) -> TargetConfig:
    """What the target in `directory` is; FormatRefused if there is none or it cannot be used."""
    path = Path(directory) / TARGET_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise _no_target(Path(directory)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatRefused(f"cannot read {path}: {error}") from None
    return parse_config(text, str(path))


def _no_target(directory: Path) -> FormatRefused:
    if not directory.is_dir():
        return FormatRefused(f"there is no directory {directory}: is its disk mounted? mkfs.lustrelite makes a new target")
    if any((directory / name).exists() for name in ("lmdb/data.mdb", "O")):
        return FormatRefused(
            f"{directory / TARGET_FILE} is missing: restore it from a backup; do not format {directory}, the data of a target is there"
        )
    return FormatRefused(f"{directory} holds no target: format it with mkfs.lustrelite first")


def write_target(directory: str | Path, config: TargetConfig) -> None:
    """Replace target.json in one step."""
    path = Path(directory) / TARGET_FILE
    fresh = path.with_name(TARGET_FILE + ".new")
    with open(fresh, "w") as file:
        file.write(check_config(config).text())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def claim(directory: str | Path) -> Ownership:
    """Ownership of a stopped target, for a tool; OpError(EBUSY) if it is running."""
    ownership = Ownership(directory)
    ownership.acquire(Owner("tool", os.getpid(), 0, ""))
    return ownership


def format_target(
    directory: str | Path, config: TargetConfig, *, reformat: bool = False, replace: bool = False, durable: bool = True
) -> None:
    """Make the target `config` in `directory`, with an empty store of the right schema.

    `replace`: an OST in the place of one that is lost (ost/replacement.py).

    Errors: EEXIST there is a target (`reformat` replaces it), ENOTEMPTY there are other files, EBUSY it is running.
    """
    from lustrelite.store.kv import Store

    path = Path(directory)
    check_config(config)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)  # who may read it may read every file
    if (path / TARGET_FILE).exists():
        if not reformat:
            raise OpError(errno.EEXIST, f"{path} already holds a target; --reformat destroys it and makes a new one")
    elif any(path.iterdir()):
        raise OpError(errno.ENOTEMPTY, f"{path} is not empty and no target: choose an empty directory")
    ownership = claim(path)
    try:
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "owner":
                entry.unlink()
        with contextlib.closing(Store.open(path, config.kind, create=True, durable=durable)) as store:
            if replace:
                from lustrelite.ost.replacement import replace_lost

                replace_lost(store, int(time.time()))
        write_target(path, config)
    finally:
        ownership.release()
