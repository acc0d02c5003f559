"""Messages to the MGS: targets register, everybody reads the configuration and waits for its changes."""

from __future__ import annotations

from typing import NamedTuple

from lustrelite.wire.message import message
from lustrelite.wire.session import Empty


class TargetInfo(NamedTuple):
    """A registered target (one entry of the NID table; protocol-facts 9.1)."""

    name: str
    kind: str  # MDT or OST
    index: int  # type: ignore[assignment]  # tuple has a method of that name
    uuid: str
    nids: tuple[str, ...]  # current server first, then the others that may serve it
    instance: int  # mount count of the target at the last registration
    version: int  # configuration version at which this entry last changed


@message(op=253, reply=TargetInfo)
class TargetRegister(NamedTuple):
    """A target started at `nids[0]`. Index -1 asks for a free one. Answered after the commit.

    Errors: EADDRINUSE the index belongs to another target (other UUID stamp), EINVAL.  Source: MGS_TARGET_REG
    """

    fsname: str
    kind: str
    index: int  # type: ignore[assignment]  # tuple has a method of that name
    stamp: str  # made at format time: two targets formatted with one index differ here
    nids: tuple[str, ...]
    failover_nids: tuple[str, ...]
    instance: int
    params: tuple[tuple[str, str], ...]
    replaces: bool  # the one that has registered under this name is lost for good


class Config(NamedTuple):
    """The configuration of a file system at `version`; `targets` are the entries newer than was asked for."""

    version: int
    targets: tuple[TargetInfo, ...]
    params: tuple[tuple[str, str], ...]


def config_resource(fsname: str) -> bytes:
    """What the lock on a file system's configuration is on."""
    return fsname.encode()


@message(op=256, reply=Config)
class ConfigRead(NamedTuple):
    """Entries newer than `since`. A PLAIN lock, held by who has read it, says that nothing has changed since.

    Errors: ENOENT no such file system
    """

    fsname: str
    since: int


@message(op=257, reply=Empty)
class SetParam(NamedTuple):
    """Set a permanent parameter (lctl conf_param, set_param -P), or remove it with an empty value."""

    fsname: str
    name: str
    value: str
