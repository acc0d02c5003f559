"""The blocks that operators' scripts read: recovery_status, import, state, exports; Lustre's fields, letter by letter.

`lock_repay_clients` is misspelt in Lustre too, and scripts look for it.
Source: lprocfs_recovery_status_seq_show(), lprocfs_rd_import(), obdclass/lprocfs_status*.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lustrelite.wire.ost import OBJECT_EOF
from lustrelite.wire.session import FEATURE_GRANT, FEATURE_MULTIMOD, FEATURE_SERVER, FEATURE_SOM

if TYPE_CHECKING:
    from lustrelite.rpc.client_import import ClientImport
    from lustrelite.rpc.export import Export
    from lustrelite.rpc.node import Node
    from lustrelite.target.target import Target

_FEATURES = {FEATURE_SERVER: "mds_mds", FEATURE_MULTIMOD: "multi_mod_rpcs", FEATURE_SOM: "som", FEATURE_GRANT: "grant"}


def wall_seconds(node: Node, loop_time: float) -> int:
    """The calendar's seconds at `loop_time` of the node's clock."""
    return int(node.wall_ns() / 1e9 - (node.now() - loop_time))


def recovery_status(target: Target) -> str:
    """`mdt.*.recovery_status`: INACTIVE, WAITING_FOR_CLIENTS, RECOVERING or COMPLETE with what belongs to it."""
    if target.recovery is None:
        return "status: INACTIVE"
    s: dict[str, Any] = target.recovery.status()
    if s["waiting"]:
        return "status: WAITING_FOR_CLIENTS"
    start = wall_seconds(target.node, s["started"]) if s["started"] is not None else 0
    clients = s["max_clients"]
    if s["running"]:
        rows = [
            ("status", "RECOVERING"),
            ("recovery_start", start),
            ("time_remaining", int(s["time_remaining"] or 0)),
            ("connected_clients", f"{s['connected']}/{clients}"),
            ("req_replay_clients", s["req_replay"]),
            ("lock_repay_clients", s["lock_replay"]),
            ("completed_clients", s["completed"]),
            ("evicted_clients", s["evicted"]),
            ("replayed_requests", s["replayed"]),
            ("queued_requests", s["queued"]),
            ("next_transno", s["next_transno"]),
        ]
    else:
        duration = s["ended"] - s["started"] if s["ended"] is not None and s["started"] is not None else 0
        rows = [
            ("status", "COMPLETE"),
            ("recovery_start", start),
            ("recovery_duration", int(duration)),
            ("completed_clients", f"{s['completed']}/{clients}"),
            ("replayed_requests", s["replayed"]),
            ("last_transno", s["next_transno"] - 1),
            ("VBR", "ENABLED"),
            ("IR", "ENABLED"),
        ]
    return "\n".join(f"{name}: {value}" for name, value in rows)


def import_text(imp: ClientImport, name: str) -> str:
    """`osc.*.import`: state, where it is connected, what it waits for."""
    d = imp.describe()
    flags = ["replayable", "pingable"]
    flags += ["deactive"] if imp.inactive else []
    flags += ["vbr_failed"] if imp.fsm.vbr_failed else []
    flags += ["connect_tried"] if imp.fsm.conn_cnt else []
    nids = ", ".join(f'"{nid}"' for nid in d["failover_nids"])
    return "\n".join(
        [
            "import:",
            f"    name: {name}",
            f"    target: {d['target']}",
            f"    state: {d['state']}",
            f"    connect_flags: [ {', '.join(feature_names(imp.features))} ]",
            "    connect_data:",
            f"       instance: {d['instance']}",
            f"       target_index: {imp.index}",
            f"       max_brw_size: {imp.max_bytes_per_rpc}",
            f"    import_flags: [ {', '.join(flags)} ]",
            "    connection:",
            f"       failover_nids: [ {nids} ]",
            f'       current_connection: "{d["current_connection"]}"',
            f"       connection_attempts: {d['connection_attempts']}",
            f"       generation: {d['generation']}",
            "       in-progress_invalidations: 0",
            "    rpcs:",
            f"       inflight: {d['inflight']}",
            f"       delayed: {d['delayed']}",
            f"       timeouts: {d['timeouts']}",
            "    transactions:",
            f"       peer_committed: {d['peer_committed']}",
            f"       uncommitted: {d['replay_list']}",
            f"       open: {d['open_list']}",
        ]
    )


def state_text(imp: ClientImport) -> str:
    """`osc.*.state`: the present state and the last ones with their times."""
    lines = [f"current_state: {imp.state}", "state_history:"]
    lines += [f" - [ {wall_seconds(imp.node, time)}, {state} ]" for time, state in imp.fsm.history]
    return "\n".join(lines)


def feature_names(features: int) -> list[str]:
    """Connect features by name."""
    return [name for bit, name in _FEATURES.items() if features & bit]


def export_text(export: Export) -> str:
    """`exports.*.export`."""
    flags = ["connected"] if export.connected else []
    flags += ["failed"] if export.failed else []
    flags += ["in_recovery"] if export.in_recovery else []
    flags += ["vbr_failed"] if export.vbr_failed else []
    return "\n".join(
        [
            f"{export.uuid}:",
            f"    name: {export.target.name}",
            f"    client: {export.nid}",
            f"    connect_flags: [ {', '.join(feature_names(export.features))} ]",
            f"    connection: {export.conn_cnt}",
            f"    export_flags: [ {', '.join(flags)} ]",
        ]
    )


def reply_data_text(export: Export) -> str:
    """`exports.*.reply_data`: what is kept to answer resends."""
    lines = [f"{export.uuid}:", f"    lcd_idx: {export.client_index}", f"    reply_cnt: {len(export.replies)}"]
    for tag, record in sorted(export.replies.items()):
        lines.append(f"    - {{ tag: {tag}, xid: {record.xid}, transno: {record.transno}, status: {record.status} }}")
    return "\n".join(lines)


def lock_lines(found: dict[str, Any]) -> list[str]:
    """The queues of one resource (Namespace.describe) for people: who holds what, who waits, and for whom."""
    lines = [f"resource {found['resource']}"]
    if found.get("lvb"):
        lines[0] += f" size={found['lvb']['size']} mtime={found['lvb']['mtime']}"
    for queue in ("granted", "waiting"):
        for lock in found[queue]:
            start, end = lock.get("extent", (0, 0))
            what = lock.get("bits") or f"[{start}, {_end(end)}]"
            line = f"  {queue} {lock['mode']} {what} of {lock['owner']} handle {lock['handle']:#x} for {lock['age_s']:.1f} s"
            if lock.get("asked"):
                left = lock["time_left_s"]
                line += ", asked for" + (f", {left:.1f} s left" if left is not None else "")
            if "behind" in lock:
                line += f", behind {lock['behind']['owner']} handle {lock['behind']['handle']:#x}"
            lines.append(line)
    for kind in ("posix", "bsd"):
        for queue in ("granted", "waiting"):
            for lock in found[kind][queue]:
                line = f"  {kind} {queue} {lock['mode']} [{lock['range'][0]}, {_end(lock['range'][1])}] of {lock['owner']} pid {lock['pid']}"
                lines.append(line + (f", behind {lock['behind']}" if "behind" in lock else ""))
    return lines


def _end(end: int) -> str:
    return "EOF" if end == OBJECT_EOF else str(end)
