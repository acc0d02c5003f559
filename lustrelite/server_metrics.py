"""What Prometheus sees of a server: targets, their clients and recovery, RPCs by name, its own connections."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lustrelite.daemon import Daemon
from lustrelite.recovery.import_fsm import State
from lustrelite.rpc.client_import import ClientImport
from lustrelite.server_params import server_imports


def collect(daemon: Daemon) -> Iterable[Metric]:
    """All families."""
    yield from _targets(daemon)
    rpcs = CounterMetricFamily("lustrelite_rpcs", "Requests received, by message", labels=["operation"])
    for name in sorted(daemon.service.counts):
        rpcs.add_metric([name], daemon.service.counts[name])
    yield rpcs
    refused = CounterMetricFamily("lustrelite_rpcs_refused", "Requests refused because the queue was full")
    refused.add_metric([], daemon.service.refused)
    yield refused
    waiting = GaugeMetricFamily("lustrelite_rpcs_waiting", "Requests that wait for something")
    waiting.add_metric([], len(daemon.service.waiting))
    yield waiting
    yield from import_metrics([(name, imp) for _, name, imp in server_imports(daemon)])


def _targets(daemon: Daemon) -> Iterable[Metric]:
    label = ["target"]
    last_transno = GaugeMetricFamily("lustrelite_last_transno", "Newest transaction executed", labels=label)
    last_committed = GaugeMetricFamily("lustrelite_last_committed", "Newest transaction that is durable", labels=label)
    uncommitted = GaugeMetricFamily("lustrelite_uncommitted", "Transactions a crash would leave to replay", labels=label)
    exports = GaugeMetricFamily("lustre_num_exports", "Clients of the target", labels=label)
    instance = GaugeMetricFamily("lustrelite_instance", "Mount count of the target", labels=label)
    recovery = GaugeMetricFamily("lustre_recovery_status", "1 while the target is in recovery", labels=label)
    left = GaugeMetricFamily("lustre_recovery_time_remaining", "Seconds until clients are evicted", labels=label)
    missing = GaugeMetricFamily("lustrelite_recovery_missing", "Clients that recovery still waits for", labels=label)
    replayed = CounterMetricFamily("lustrelite_replayed", "Requests replayed in the last recovery", labels=label)
    evictions = CounterMetricFamily("lustrelite_evictions", "Clients evicted since the start", labels=label)
    garbled = CounterMetricFamily("lustrelite_checksum_errors", "Data received that did not match its checksum", labels=label)
    rebuilt = CounterMetricFamily("lustrelite_reconstructed", "Replies rebuilt for resent requests", labels=label)
    commits = CounterMetricFamily("lustrelite_commits", "Commits since the start", labels=label)
    seconds = GaugeMetricFamily("lustrelite_commit_seconds", "Duration of the last commit", labels=label)
    waits = CounterMetricFamily("lustrelite_create_waits", "Creates that found no OST with an object id", labels=label)
    for target in daemon.targets.values():
        name = [target.name]
        allocator = getattr(target, "allocator", None)
        if allocator is not None:
            waits.add_metric(name, allocator.waits)
        last_transno.add_metric(name, target.last_transno)
        last_committed.add_metric(name, target.last_committed)
        uncommitted.add_metric(name, target.uncommitted())
        exports.add_metric(name, len(target.exports))
        instance.add_metric(name, target.instance)
        recovery.add_metric(name, int(target.recovering))
        evictions.add_metric(name, target.evictions)
        rebuilt.add_metric(name, target.reconstructed)
        garbled.add_metric(name, target.checksum_errors)
        commits.add_metric(name, target.committer.commits)
        seconds.add_metric(name, target.committer.last_seconds)
        if target.recovery is not None:
            status = target.recovery.status()
            left.add_metric(name, float(status["time_remaining"] or 0) if target.recovering else 0)
            missing.add_metric(name, len(status["stale"]))
            replayed.add_metric(name, status["replayed"])
    yield from (
        last_transno, last_committed, uncommitted, exports, instance, recovery, left, missing, replayed, evictions,
        rebuilt, garbled, commits, seconds, waits,
    )  # fmt: skip


def import_metrics(imports: list[tuple[str, ClientImport]]) -> Iterable[Metric]:
    """State and counters of connections to servers."""
    state = GaugeMetricFamily("lustrelite_import_state", "1 for the state the import is in", labels=["import", "state"])
    replays = GaugeMetricFamily("lustrelite_import_uncommitted", "Requests kept for replay", labels=["import"])
    names = ("requests", "replayed", "resent", "timeouts", "evicted", "reconnects", "checksum_errors")
    counters = {
        name: CounterMetricFamily(f"lustrelite_import_{name}", f"{name} of the import", labels=["import"])
        for name in names
    }
    for device, imp in imports:
        for each in State:
            state.add_metric([device, str(each)], int(imp.state is each))
        replays.add_metric([device], len(imp.replays.uncommitted))
        for name, counter in counters.items():
            counter.add_metric([device], imp.counts[name])
    yield state
    yield replays
    yield from counters.values()
