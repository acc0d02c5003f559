"""The MGS: targets register, everybody reads the configuration and waits for its changes.

It keeps one entry per target with a version; the version of the configuration is the highest of them. It has no client
records: its clients lose nothing when it restarts. Source: mgs/mgs_nids.c; protocol-facts 9
"""

from __future__ import annotations

import errno
from collections.abc import Mapping

from lustrelite.errors import OpError
from lustrelite.ids import check_fsname, parse_nid, parse_target_name, target_name, target_uuid
from lustrelite.rpc.export import Call
from lustrelite.rpc.node import Node
from lustrelite.store import schema
from lustrelite.store.kv import Store
from lustrelite.store.schema import TargetRecord
from lustrelite.target.handlers import EMPTY, Handler, reading, waiting
from lustrelite.target.lock_handlers import LOCK_HANDLERS
from lustrelite.target.target import Target
from lustrelite.target.transaction import Transaction
from lustrelite.tunables import FAILOVER_MODE, check_param
from lustrelite.wire.ldlm import PLAIN
from lustrelite.wire.mgs import (
    Config,
    ConfigRead,
    SetParam,
    TargetInfo,
    TargetRegister,
    config_resource,
)
from lustrelite.wire.session import Empty

_INDEX_MAX = 0xFFFF
_NIDS_MAX = 16  # of a target, with those where it was before


class Mgs(Target):
    """The registry of one or more file systems."""

    recoverable = False
    kind = "MGS"
    lock_types = (PLAIN,)

    def __init__(self, node: Node, store: Store) -> None:
        super().__init__(node, store, name="MGS", handlers=HANDLERS)
        self.entries: dict[str, TargetRecord] = {}
        self.params: dict[str, dict[str, str]] = {}  # by file system
        self.version = 0

    def load(self) -> None:
        """Read all entries: there are few."""
        self.version = self.get_meta("config_version", 0)
        for key, value in self.store.scan(schema.TARGETS):
            self.entries[key.decode()] = schema.unpack_target(value)
        for key, value in self.store.scan(schema.PARAMS):
            fsname, _, name = key.decode().partition("\0")
            self.params.setdefault(fsname, {})[name] = value.decode()

    def of(self, fsname: str) -> list[TargetRecord]:
        """The targets of a file system, whose name may be the beginning of another's."""
        return [record for name, record in self.entries.items() if parse_target_name(name)[0] == fsname]

    def config(self, fsname: str, since: int) -> Config:
        """What changed after version `since`."""
        targets = tuple(r.info for r in self.of(fsname) if r.info.version > since)
        return Config(self.version, targets, tuple(sorted(self.params.get(fsname, {}).items())))

    def write(self, txn: Transaction, fsname: str, params: Mapping[str, str], record: TargetRecord | None = None) -> None:
        """Store permanent parameters, or remove those without a value, and an entry, under the next version."""
        version = self.version + 1
        txn.writes.update(self.meta_write("config_version", version))
        if record is not None:
            record = record._replace(info=record.info._replace(version=version))
            txn.put(schema.TARGETS, record.info.name.encode(), schema.pack_target(record))
        for name, value in params.items():
            key = f"{fsname}\0{name}".encode()
            if value:
                txn.put(schema.PARAMS, key, value.encode())
            else:
                txn.delete(schema.PARAMS, key)

        def applied() -> None:
            self.version = version
            if record is not None:
                self.entries[record.info.name] = record
            if params:
                now = {**self.params.get(fsname, {}), **params}
                self.params[fsname] = {name: value for name, value in now.items() if value}

        txn.then = applied

    def notify(self, fsname: str) -> None:
        """The configuration has changed: whoever holds a lock on it is to read it again.  Source: mgs_revoke_lock()"""
        self.namespace.revoke(config_resource(fsname))


def _free_index(mgs: Mgs, fsname: str, kind: str) -> int:
    used = {r.info.index for r in mgs.of(fsname) if r.info.kind == kind}
    return next(i for i in range(_INDEX_MAX + 1) if i not in used)


def _new_params(mgs: Mgs, body: TargetRegister, name: str, before: dict[str, str]) -> dict[str, str]:
    """What a target was formatted with counts until somebody sets it otherwise; what tunefs has changed or erased since is news."""
    now, new = dict(body.params), {}
    for key in {**before, **now}:
        value = now.get(key, "")
        full = f"{name}.{key}" if key == FAILOVER_MODE else key
        if value != before.get(key, "") and value != mgs.params.get(body.fsname, {}).get(full, ""):
            new[full] = value
    return new


async def target_register(call: Call, body: TargetRegister) -> TargetInfo:
    """A target started.  Source: mgs_target_reg(), mgs/mgs_handler.c"""
    mgs: Mgs = call.target
    try:
        check_fsname(body.fsname)
        nids = tuple(dict.fromkeys(str(parse_nid(n)) for n in (*body.nids, *body.failover_nids)))
        for param in body.params:
            check_param(*param)
    except ValueError as error:
        raise OpError(errno.EINVAL, str(error)) from None
    if body.kind not in ("MDT", "OST") or not -1 <= body.index <= _INDEX_MAX or not body.nids or not body.stamp:
        raise OpError(errno.EINVAL, "bad registration")
    index = body.index
    if index < 0:
        mine = [r.info.index for r in mgs.of(body.fsname) if r.stamp == body.stamp]
        index = mine[0] if mine else _free_index(mgs, body.fsname, body.kind)
    if body.kind == "MDT" and index:
        raise OpError(errno.EINVAL, "one MDT, with index 0, serves the whole tree")
    name = target_name(body.fsname, body.kind, index)
    known = mgs.entries.get(name)
    if known is not None and known.stamp != body.stamp and not body.replaces:
        raise OpError(errno.EADDRINUSE, f"{name} is registered by another target")
    if known is not None and known.info.instance > body.instance:
        raise OpError(errno.ESTALE, f"{name} runs elsewhere as a newer incarnation")
    if known is not None and known.stamp == body.stamp:
        # the standby's address stays known when it is not the one that serves
        before = known.info.nids if body.failover_nids else ()
        nids = tuple(dict.fromkeys((*nids, *before)))[: max(_NIDS_MAX, len(nids))]
    info = TargetInfo(name, body.kind, index, target_uuid(name), nids, body.instance, 0)
    if known is None or known != TargetRecord(info._replace(version=known.info.version), body.stamp, body.params):
        params = _new_params(mgs, body, name, dict(known.params) if known is not None else {})
        mgs.run(mgs.write, body.fsname, params, TargetRecord(info, body.stamp, body.params))
        mgs.node.events.emit("mgs.registered", target=name, nids=list(nids), instance=body.instance)
        await mgs.committed()
        mgs.notify(body.fsname)
    return mgs.entries[name].info


def config_read(call: Call, body: ConfigRead) -> Config:
    """The configuration, or what is new in it.  Source: MGS_CONFIG_READ"""
    mgs: Mgs = call.target
    if not mgs.of(body.fsname):
        raise OpError(errno.ENOENT, f"no file system {body.fsname!r} here")
    if body.since > mgs.version:  # the MGS was replaced: start over
        return mgs.config(body.fsname, 0)
    return mgs.config(body.fsname, body.since)


async def set_param(call: Call, body: SetParam) -> Empty:
    """Permanent parameters (lctl conf_param)."""
    mgs: Mgs = call.target
    if call.cred[0] != 0:
        raise OpError(errno.EPERM, "only root sets parameters")
    try:
        check_fsname(body.fsname)
        check_param(body.name, body.value)
    except ValueError as error:
        raise OpError(errno.EINVAL, str(error)) from None
    mgs.run(mgs.write, body.fsname, {body.name: body.value})
    await mgs.committed()
    mgs.notify(body.fsname)
    return EMPTY


HANDLERS: dict[type, Handler] = {
    **LOCK_HANDLERS,
    TargetRegister: waiting(target_register),
    ConfigRead: reading(config_read),
    SetParam: waiting(set_param),
}
