"""Limits (fixed, checked everywhere) and tunables (settable per process with `llctl set_param`).

Every queue has a limit; a full one answers EBUSY. Units stand last in the name.
"""

from __future__ import annotations

from dataclasses import dataclass


class limits:
    """Hard bounds; none of them can be raised at run time."""

    header_bytes_max = 1 << 20  # a directory page is the largest header
    brw_bytes_max = 4 << 20  # bulk in one RPC
    bulk_inline_bytes_max = 64 << 10  # more travels on the bulk connection
    name_bytes_max = 255
    path_bytes_max = 4096
    symlink_bytes_max = 4095
    xattr_bytes_max = 64 << 10
    acl_entries_max = 511  # as many as are kept in an inode: 4 KiB
    stripes_max = 2000
    stripe_bytes_min = 64 << 10
    file_bytes_max = (1 << 63) - 1
    object_bytes_max = (16 << 40) - 4096  # the largest file of ext4: what is taken into a cache must find a place there
    links_max = 65000
    groups_max = 64
    mod_rpcs_max = 32  # modifying requests in flight per client and target
    mod_rpcs_spare = 2  # more of them, each for one request on which others may wait: a Close; a Reopen or a Setattrs
    pre_versions_max = 4
    precreate_max = 20_000  # objects that an OST makes ahead at once, as many as with Lustre (OST_MAX_PRECREATE)
    links_per_service_max = 4096
    requests_per_service_max = 4096
    requests_reserved_max = 1024  # of them, for connect, ping, close, cancel, resends, recovery
    state_history_max = 16
    unix_path_bytes_max = 100
    param_name_bytes_max = 255  # of a permanent parameter; it is part of a key of the MGS's database
    param_value_bytes_max = 4096


CHOICES = {  # tunables that are one of a few words
    "failover_mode": ("", "failover", "failout"),
    "sync_lock_cancel": ("always", "blocking", "never"),
}
KEEP, DESTROY = "keep", "destroy"  # what fsck does with orphans
PARALLEL = 8  # files that a copy has under way
FAILOVER_MODE = "failover.mode"  # a parameter that every target has for itself: the configuration says NAME.failover.mode


_SECONDS = (0.001, 1e9)  # what would be asked without a pause, or over before it began, if it were 0
_SWITCH = (0, 1)
BOUNDS: dict[str, tuple[float, float]] = {  # least and most; of others 0 and what can be stored
    **dict.fromkeys(
        ("rpc_timeout_s", "at_history_s", "connect_timeout_s", "reconnect_pause_s", "reconnect_pause_max_s",
         "ping_interval_s", "uncommitted_ping_s", "evict_silent_s", "recovery_time_soft_s", "recovery_time_hard_s",
         "replay_timeout_s", "lock_callback_s", "qos_maxage_s"), _SECONDS,
    ),
    **dict.fromkeys(("commit_on_sharing", "debug", "caching", "grant_shrink", "sync_journal"), _SWITCH),
    "max_mod_rpcs": (1, limits.mod_rpcs_max),
    "max_rpcs_in_flight": (1, 256),
    "max_bytes_per_rpc": (4 << 10, limits.brw_bytes_max),
    "precreate_min": (0, limits.precreate_max),  # 0: 1
    "precreate_max": (0, limits.precreate_max),
    "qos_threshold_rr": (0, 100),
    "qos_prio_free": (0, 100),
    "stripe_count": (-1, limits.stripes_max),  # -1: all; 0: 1
    "stripe_size": (limits.stripe_bytes_min, (1 << 32) - limits.stripe_bytes_min),
    "spin_us": (0, 1_000_000),
    "bulk_connections": (0, 16),
    "reserved_permille": (0, 1000),
}  # fmt: skip
MULTIPLES = {"stripe_size": limits.stripe_bytes_min}


def check_param(name: str, value: str) -> None:
    """ValueError if the MGS could not keep a parameter of this name and value."""
    for what, text, bytes_max in (("name", name, limits.param_name_bytes_max), ("value", value, limits.param_value_bytes_max)):
        try:
            length = len(text.encode())
        except UnicodeEncodeError:
            raise ValueError(f"the {what} of a parameter is text, not {text!r}") from None
        if length > bytes_max:
            raise ValueError(f"the {what} of a parameter has up to {bytes_max} bytes, not {length}")


def check(name: str, value: object) -> None:
    """ValueError, which says what is possible, unless the tunable `name` can have `value`."""
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise ValueError(f"{name} cannot be {value!r}: {', '.join(filter(None, CHOICES[name]))} expected")
        return
    assert isinstance(value, int | float), name
    least, most = BOUNDS.get(name, (0, 1e9 if name.endswith("_s") else limits.file_bytes_max))
    multiple = MULTIPLES.get(name, 0)
    if not least <= value <= most or (multiple and value % multiple):  # NaN is in no range
        what = f"a multiple of {multiple}" if multiple else "a number"
        raise ValueError(f"{name} cannot be {_text(value)}: {what} from {_text(least)} to {_text(most)} expected")


def _text(value: float) -> str:
    return str(int(value)) if isinstance(value, int) else f"{value:g}"


@dataclass
class Tunables:
    """What an administrator may change. Seconds unless the name says otherwise.

    Nothing else than what `check` lets through is ever in here, whoever sets it.  ValueError
    """

    def __setattr__(self, name: str, value: object) -> None:
        """Set the tunable `name`, unless it cannot have `value`."""
        check(name, value)
        super().__setattr__(name, value)

    rpc_timeout_s: float = 4.0  # then resend on the same connection; at the second expiry disconnect
    at_max_s: float = 60.0  # the most that measured service times add to rpc_timeout_s; 0: nothing
    at_history_s: float = 120.0  # what was measured counts this long
    connect_timeout_s: float = 3.0
    reconnect_pause_s: float = 0.1  # between attempts, doubled up to the maximum
    reconnect_pause_max_s: float = 1.0
    ping_interval_s: float = 4.0
    uncommitted_ping_s: float = 1.5  # with replays to prune, ask this soon
    evict_silent_s: float = 60.0  # a client that is silent this long while others talk
    # longer than a client needs to notice a silent death: ping_interval_s + 2 * rpc_timeout_s + connect_timeout_s
    failover_mode: str = ""  # of this client's OSTs: failover (wait for them), failout (EIO); "": as each OST says
    failout_after_s: float = 10.0  # so long an OST must be away
    recovery_time_soft_s: float = 20.0
    recovery_time_hard_s: float = 90.0
    replay_timeout_s: float = 10.0  # how long a server may be silent in recovery; well below recovery_time_soft_s
    commit_interval_s: float = 1.0
    commit_dirty_max: int = 2_000  # records in a batch before it is committed at once: what is large holds others up
    commit_bytes_max: int = 64 << 20  # data in a batch of an OST: what clients must keep until it is durable
    commit_log_s: float = 0.004  # small batches go to the log while an append takes less than this; 0: never
    commit_wait_warn_s: float = 5.0  # commits held (hold_commits) this long while somebody waits: say so
    commit_on_sharing: int = 1
    lock_callback_s: float = 8.0  # to give back a lock that was asked for, then eviction; work under it gives more time
    lock_lease_margin_s: float = 2.0  # a client trusts its locks this much shorter than lock_callback_s without news
    debug: int = 0  # 1: the way of every single lock goes to the log files, too
    lru_size: int = 40_000  # unused locks kept, per target: 2 KiB each here, with what is known under it
    lru_max_age_s: float = 3900.0
    caching: int = 1  # of this client: names, attributes and data under locks; 0: every call goes to the servers
    max_cached_bytes: int = 256 << 20  # data pages of a mount
    max_dirty_bytes: int = 32 << 20  # per OST
    grant_shrink: int = 1  # idle clients give back grants of space
    grant_shrink_interval_s: float = 1200.0
    write_back_after_s: float = 3.0  # dirty data that has become so old
    max_read_ahead_bytes: int = 64 << 20  # of a mount
    read_past_cache_bytes: int = 8 << 20  # under way by one reader of a file: what is not cached goes to him directly
    spin_us: int = 500  # a process looks so long for what comes next before it sleeps; adapts itself downwards; 0: never
    statahead_max: int = 128  # attributes asked for ahead of a listing
    sync_journal: int = 0  # OST: 1 answers changes when they are durable
    sync_lock_cancel: str = "blocking"  # OST: data durable before an asked-for lock goes: always, blocking, never
    max_mod_rpcs: int = 32
    max_rpcs_in_flight: int = 8  # data RPCs per OST
    max_bytes_per_rpc: int = 1 << 20
    precreate_min: int = 64
    precreate_max: int = 8192
    qos_threshold_rr: int = 17  # percent that the free space of OSTs may differ before it counts which has more
    qos_prio_free: int = 91  # percent: how much free space counts then, the rest spreads
    qos_maxage_s: float = 5.0  # between looks at the space of OSTs
    stripe_count: int = 1
    stripe_size: int = 1 << 20
    bulk_connections: int = 1
    reserved_permille: int = 2  # of the disk kept free on a target, ENOSPC before it; databases read it at their start
