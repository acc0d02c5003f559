"""What a server process shows and lets be set: its targets, their clients, its own connections; under Lustre's names."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from lustrelite import status_text
from lustrelite.daemon import Daemon
from lustrelite.ids import parse_fid, parse_target_name
from lustrelite.mgs.mgs import Mgs
from lustrelite.params import Param, check_count, component, number_text, parse_like
from lustrelite.recovery.import_fsm import State
from lustrelite.rpc.client_import import ClientImport
from lustrelite.rpc.export import Export
from lustrelite.target.target import Target
from lustrelite.wire.ost import resource_of

_TREES = {"MDT": "mdt", "OST": "obdfilter", "MGS": "mgs"}


def server_imports(daemon: Daemon) -> list[tuple[str, str, ClientImport]]:
    """(type, device name, import) of every connection that this server has to others."""
    found: list[tuple[str, str, ClientImport]] = []
    for fsname, follower in daemon.followers.items():
        found.append(("mgc", f"{fsname}-MGC", follower.mgs))
    for target in daemon.targets.values():
        allocator: Any = getattr(target, "allocator", None)
        if allocator is not None:
            for osp in allocator.osps.values():
                found.append(("osp", f"{osp.name}-osc-{target.name.rpartition('-')[2]}", osp.imp))
    return found


def health(daemon: Daemon) -> str:
    """`healthy`, or NOT HEALTHY and why: one line for each reason.  Read by resource agents."""
    reasons = []
    for target in daemon.targets.values():
        if target.recovering and not (target.recovery and target.recovery.status()["waiting"]):
            reasons.append(f"{target.name} is in recovery")  # one that waits for its first client is well
        if target.committer.held:
            reasons.append(f"{target.name} holds its commits")
        allocator: Any = getattr(target, "allocator", None)
        if allocator is not None and not target.recovering:
            if not allocator.osps:
                reasons.append(f"{target.name} knows no OST yet")
            reasons += [
                f"{osp.name} is not ready: {osp.imp.state}"
                for osp in allocator.osps.values()
                if not osp.imp.inactive and not osp.ready and not osp.full
            ]
    return "healthy" if not reasons else "\n".join(["NOT HEALTHY", *reasons])


def devices(daemon: Daemon) -> list[dict[str, Any]]:
    """The rows of `llctl dl`."""
    rows = []
    for target in daemon.targets.values():
        kind = _TREES[target.kind]
        status = "ST" if target.stopping else "UP"
        rows.append(
            {"status": status, "type": kind, "name": target.name, "uuid": target.uuid, "refs": len(target.exports)}
        )
    for kind, name, imp in server_imports(daemon):
        status = "IN" if imp.inactive else "UP"
        rows.append({"status": status, "type": kind, "name": name, "uuid": imp.client_uuid, "refs": len(imp.sending)})
    return rows


def dump_locks(target: Target, text: str) -> list[dict[str, Any]]:
    """The queues of one object or file; without a name those of all on which somebody waits.  ValueError"""
    namespace = target.namespace
    if not text:
        return [namespace.describe(resource) for resource in namespace.contended()]
    if target.kind == "OST":
        return [namespace.describe(resource_of(int(text, 0)))]
    return [namespace.describe(parse_fid(text))]


def target_rows(daemon: Daemon) -> list[dict[str, Any]]:
    """The targets as `lustrelite status` shows them."""
    rows = []
    for target in daemon.targets.values():
        recovery = target.recovery.status() if target.recovery is not None else None
        rows.append(
            {
                "name": target.name,
                "state": "STOPPING" if target.stopping else "RECOVERING" if target.recovering else "UP",
                "instance": target.instance,
                "clients": len(target.exports),
                "last_transno": target.last_transno,
                "last_committed": target.last_committed,
                "uncommitted": target.uncommitted(),
                "recovery": recovery,
            }
        )
    return rows


def parameters(daemon: Daemon) -> Iterable[Param]:
    """Every parameter of the server now."""
    yield Param("health_check", lambda: health(daemon))
    for target in daemon.targets.values():
        yield from _of_target(target)
        if isinstance(target, Mgs):
            yield from _of_mgs(target)
    for kind, name, imp in server_imports(daemon):
        yield from import_params(f"{kind}/{name}", name, imp)
    for target in daemon.targets.values():
        allocator: Any = getattr(target, "allocator", None)
        if allocator is None:
            continue
        yield from _of_allocator(target, allocator)
        for osp in allocator.osps.values():
            yield from _of_osp(f"osp/{osp.name}-osc-{target.name.rpartition('-')[2]}", osp)


def _of_mgs(mgs: Mgs) -> Iterable[Param]:
    """What it keeps of each file system: targets, and the parameters that set_param -P and conf_param have set."""
    for fsname in sorted({*(parse_target_name(name)[0] for name in mgs.entries), *mgs.params}):
        yield Param(f"mgs/{mgs.name}/live/{fsname}", functools.partial(_live, mgs, fsname))


def _live(mgs: Mgs, fsname: str) -> str:
    """Source: mgs_live_seq_show(), whose parameters are in logs of their own (llog_print)."""
    config = mgs.config(fsname, 0)
    lines = [f"fsname: {fsname}", f"gen: {config.version}", "targets:"]
    lines += [f"    {info.name}: [ {', '.join(info.nids)} ]" for info in config.targets]
    return "\n".join([*lines, "params:", *(f"    {name}={value}" for name, value in config.params)])


def import_params(prefix: str, name: str, imp: ClientImport) -> Iterable[Param]:
    """`PREFIX.import`, `.state` and the switch `.active`."""

    def activate(text: str) -> None:
        if parse_like(False, text):
            imp.activate()
        else:
            imp.deactivate()

    yield Param(f"{prefix}/import", lambda: status_text.import_text(imp, name))
    yield Param(f"{prefix}/state", lambda: status_text.state_text(imp))
    yield Param(f"{prefix}/active", lambda: str(int(not imp.inactive)), activate)
    yield Param(f"{prefix}/uuid", lambda: imp.client_uuid)
    yield Param(f"{prefix}/checksum_errors", lambda: str(imp.counts["checksum_errors"]))


def _of_target(target: Target) -> Iterable[Param]:
    prefix = f"{_TREES[target.kind]}/{target.name}"
    tunables = target.node.tunables

    def of_tunable(name: str, ours: str) -> Param:
        def put(text: str) -> None:
            setattr(tunables, ours, parse_like(getattr(tunables, ours), text))

        return Param(f"{prefix}/{name}", lambda: number_text(getattr(tunables, ours)), put)

    yield Param(f"{prefix}/uuid", lambda: target.uuid)
    yield Param(f"{prefix}/instance", lambda: str(target.instance))
    yield Param(f"{prefix}/num_exports", lambda: str(len(target.exports)))
    yield Param(f"{prefix}/last_transno", lambda: str(target.last_transno))
    yield Param(f"{prefix}/last_committed", lambda: str(target.last_committed))
    yield Param(f"{prefix}/uncommitted", lambda: str(target.uncommitted()))
    yield Param(f"{prefix}/commits", lambda: str(target.committer.commits))
    if not target.recoverable:
        return
    yield Param(f"{prefix}/recovery_status", lambda: status_text.recovery_status(target))
    yield Param(f"{prefix}/recovery_stale_clients", lambda: _stale(target))
    yield of_tunable("recovery_time_soft", "recovery_time_soft_s")
    yield of_tunable("recovery_time_hard", "recovery_time_hard_s")
    yield Param(f"{prefix}/eviction_count", lambda: str(target.evictions))
    yield Param(f"{prefix}/evict_client", None, lambda text: evict_client(target, text))
    yield of_tunable("commit_on_sharing", "commit_on_sharing")
    yield Param(f"{prefix}/reconstructed", lambda: str(target.reconstructed))
    yield Param(f"{prefix}/checksum_errors", lambda: str(target.checksum_errors))
    files = getattr(target, "last_id", None)
    if isinstance(files, int):
        yield Param(f"{prefix}/last_id", lambda: str(files))
    grants: Any = getattr(target, "grants", None)
    if grants is not None:
        yield Param(f"{prefix}/tot_granted", lambda: str(grants.promised))
        yield of_tunable("sync_journal", "sync_journal")
        yield of_tunable("sync_lock_cancel", "sync_lock_cancel")
    yield from _exports(prefix, target)
    namespace = target.namespace
    locks = f"ldlm/namespaces/{target.name}"
    yield Param(f"{locks}/lock_count", lambda: str(namespace.lock_count))
    yield Param(f"{locks}/resource_count", lambda: str(namespace.resource_count))
    yield Param(f"{locks}/waiting_count", lambda: str(namespace.waiting_count))


def _stale(target: Target) -> str:
    if target.recovery is None or not target.recovering:
        return ""
    return "\n".join(target.recovery.status()["stale"])


def _exports(prefix: str, target: Target) -> Iterable[Param]:
    by_nid: dict[str, list[Export]] = {}
    for export in target.exports.values():
        by_nid.setdefault(component(export.nid or "unknown"), []).append(export)
    for nid, exports in by_nid.items():

        def block(show: Any, exports: list[Export] = exports) -> str:
            return "\n".join(show(export) for export in exports)

        yield Param(f"{prefix}/exports/{nid}/uuid", lambda block=block: block(lambda e: e.uuid))  # type: ignore[misc]
        yield Param(f"{prefix}/exports/{nid}/export", lambda block=block: block(status_text.export_text))  # type: ignore[misc]
        yield Param(
            f"{prefix}/exports/{nid}/reply_data",
            lambda block=block: block(status_text.reply_data_text),  # type: ignore[misc]
        )
        grants: Any = getattr(target, "grants", None)
        if grants is not None:
            yield Param(
                f"{prefix}/exports/{nid}/grant",
                lambda block=block, held=grants.held: block(lambda e: f"{e.uuid}: {held.get(e, 0)}"),  # type: ignore[misc]
            )
        if target.kind == "MDT":
            yield Param(
                f"{prefix}/exports/{nid}/open_files",
                lambda block=block: block(lambda e: f"{e.uuid}: {len(e.opens)}"),  # type: ignore[misc]
            )


def evict_client(target: Target, text: str) -> None:
    """`UUID`, `uuid:UUID` or `nid:NID`.  ValueError if nobody is meant."""
    text = text.strip()
    if not target.clients.evict_matching(text):
        raise ValueError(f"{target.name} has no client {text!r}: see {_TREES[target.kind]}.{target.name}.exports.*.uuid")


def _of_allocator(target: Target, allocator: Any) -> Iterable[Param]:
    """How objects are placed: under `lod`, and under `lov`, its older name."""
    tunables = target.node.tunables

    def percent(name: str) -> tuple[Any, Any]:
        def put(text: str) -> None:
            setattr(tunables, name, parse_like(0, text.strip().removesuffix("%")))
            allocator.refresh()

        return (lambda: f"{getattr(tunables, name)}%"), put

    def set_maxage(text: str) -> None:
        tunables.qos_maxage_s = float(parse_like(0.0, text))

    for tree in ("lod", "lov"):
        prefix = f"{tree}/{target.name}-mdtlov"
        yield Param(f"{prefix}/qos_threshold_rr", *percent("qos_threshold_rr"))
        yield Param(f"{prefix}/qos_prio_free", *percent("qos_prio_free"))
        yield Param(f"{prefix}/qos_maxage", lambda: number_text(tunables.qos_maxage_s), set_maxage)
        yield Param(f"{prefix}/numobd", lambda: str(len(allocator.osps)))
        yield Param(f"{prefix}/activeobd", lambda: str(len(allocator.ready)))
    yield Param(f"mdt/{target.name}/create_waits", lambda: str(allocator.waits))


def _of_osp(prefix: str, osp: Any) -> Iterable[Param]:
    tunables = osp.node.tunables

    def create_count(text: str) -> None:
        osp.batch = check_count("create_count", text)

    yield Param(f"{prefix}/prealloc_last_id", lambda: str(osp.granted))
    yield Param(f"{prefix}/prealloc_next_id", lambda: str(osp.next))
    yield Param(f"{prefix}/prealloc_reserved", lambda: "0")
    yield Param(f"{prefix}/prealloc_ran_dry", lambda: str(osp.ran_dry))
    yield Param(f"{prefix}/prealloc_status", lambda: "0" if osp.imp.state is State.FULL and not osp.refusing else "-5")
    yield Param(f"{prefix}/create_count", lambda: str(osp.batch), create_count)

    def max_create_count(text: str) -> None:
        osp.limit_batch(check_count("max_create_count", text))

    yield Param(
        f"{prefix}/max_create_count",
        lambda: str(tunables.precreate_max if osp.batch_max is None else osp.batch_max), max_create_count,
    )  # fmt: skip
    yield Param(f"{prefix}/destroyed", lambda: str(osp.log.destroyed))
    yield Param(f"{prefix}/sync_in_progress", lambda: str(len(osp.log.sent)))
    yield Param(f"{prefix}/sync_changes", lambda: str(osp.log.length()))
