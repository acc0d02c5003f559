"""The parameter tree: names, patterns, values."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lustrelite.fail_loc import NUMBERS, FailLoc
from lustrelite.faults import POINTS, Faults
from lustrelite.params import (
    Param,
    ParamTree,
    add_node_params,
    check_permanent,
    check_text,
    component,
    parse_like,
    pattern_regex,
)
from lustrelite.rpc.node import Node
from lustrelite.tunables import BOUNDS, CHOICES, MULTIPLES, Tunables, limits
from lustrelite.wire.message import BY_NAME


@pytest.fixture
def tree() -> ParamTree:
    values = {"commit_on_sharing": "1"}
    tree = ParamTree()
    tree.add("version", lambda: "9")
    tree.add(
        "mdt/fs-MDT0000/commit_on_sharing",
        lambda: values["commit_on_sharing"],
        lambda text: values.update(commit_on_sharing=text),
    )
    tree.add_source(
        lambda: [
            Param("mdt/fs-MDT0000/exports/10.0.0.7:5@tcp/uuid", lambda: "u1"),
            Param(f"mdt/fs-MDT0000/exports/{component('/run/a.nid@unix')}/uuid", lambda: "u2"),
            Param("obdfilter/fs-OST0000/num_exports", lambda: "3"),
            Param("obdfilter/fs-OST0001/num_exports", lambda: "4"),
            Param("mdt/fs-MDT0000/evict_client", None, lambda text: None),
        ]
    )
    return tree


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("version", ["version"]),
        ("mdt.*.commit_on_sharing", ["mdt.fs-MDT0000.commit_on_sharing"]),
        ("mdt/*/commit_on_sharing", ["mdt.fs-MDT0000.commit_on_sharing"]),
        ("{mdt,obdfilter}.*.num_exports", ["obdfilter.fs-OST0000.num_exports", "obdfilter.fs-OST0001.num_exports"]),
        ("obdfilter.fs-OST000[1-9].num_exports", ["obdfilter.fs-OST0001.num_exports"]),
        ("obdfilter.fs-OST000[!1].num_exports", ["obdfilter.fs-OST0000.num_exports"]),
        ("obdfilter.fs-OST000?.num_exports", ["obdfilter.fs-OST0000.num_exports", "obdfilter.fs-OST0001.num_exports"]),
        ("mdt.*.exports.10.0.0.7:5@tcp.uuid", ["mdt.fs-MDT0000.exports.10.0.0.7:5@tcp.uuid"]),
        (
            "mdt.*.exports.*.uuid",
            ["mdt.fs-MDT0000.exports.10.0.0.7:5@tcp.uuid", "mdt.fs-MDT0000.exports.|run|a.nid@unix.uuid"],
        ),
        ("mdt.*", []),
        ("*.num_exports", []),
    ],
)
def test_a_star_stays_within_one_component(tree: ParamTree, pattern: str, found: list[str]) -> None:
    assert [param.dotted for param in tree.find(pattern)] == found


def test_a_malformed_pattern_is_said_so() -> None:
    with pytest.raises(ValueError, match="bad pattern"):
        pattern_regex("a{b")


async def test_values_are_read_and_set(tree: ParamTree) -> None:
    assert tree.get("mdt.*.commit_on_sharing") == {"mdt.fs-MDT0000.commit_on_sharing": "1"}
    assert await tree.set("mdt.*.commit_on_sharing", "0") == ["mdt.fs-MDT0000.commit_on_sharing"]
    assert tree.get("mdt.*.commit_on_sharing") == {"mdt.fs-MDT0000.commit_on_sharing": "0"}


async def test_what_cannot_be_set_or_found_is_said_so(tree: ParamTree) -> None:
    with pytest.raises(KeyError, match="read only"):
        await tree.set("version", "1")
    with pytest.raises(KeyError, match="no parameter matches"):
        await tree.set("nothing", "1")
    with pytest.raises(KeyError, match="no parameter matches"):
        tree.get("nothing")
    assert tree.get("mdt.*.evict_client") == {}  # write only


async def test_several_values_are_set_all_or_none(node_tree: tuple[ParamTree, Tunables]) -> None:
    tree, tunables = node_tree
    tree.add("late", lambda: "1", lambda text: parse_like(0, text) and None)  # only its setter knows what it can be
    for bad, error in ((("late", "x"), ValueError), (("nope", "1"), KeyError), (("version", "1"), KeyError)):
        with pytest.raises(error):
            await tree.set_all([("tunables.spin_us", "7"), ("tunables.spin_us", "8"), bad])
        assert tunables == Tunables()
    await tree.set_all([("tunables.spin_us", "7"), ("late", "2")])
    assert tunables.spin_us == 7


def test_list_param_shows_one_level(tree: ParamTree) -> None:
    assert tree.level("*") == {"mdt.": "", "obdfilter.": "", "version": "r"}
    assert tree.level("mdt") == {"mdt.": ""}
    assert list(tree.level("obdfilter.*")) == ["obdfilter.fs-OST0000.", "obdfilter.fs-OST0001."]
    assert tree.level("version") == {"version": "r"}
    assert tree.level("mdt.*.*") == {
        "mdt.fs-MDT0000.commit_on_sharing": "rw", "mdt.fs-MDT0000.evict_client": "w", "mdt.fs-MDT0000.exports.": ""
    }  # fmt: skip
    assert tree.level("nothing") == tree.level("version.*") == {}


@pytest.mark.parametrize("pattern", ["obdfilter", "obdfilter.*", "{obdfilter,osc}", "obd*"])
def test_list_param_shows_everything_below(tree: ParamTree, pattern: str) -> None:
    below = [name for ost in ("fs-OST0000", "fs-OST0001") for name in (f"obdfilter.{ost}.", f"obdfilter.{ost}.num_exports")]
    assert list(tree.level(pattern, below=True)) == (below if "." in pattern else ["obdfilter.", *below])


def test_list_param_shows_everything(tree: ParamTree) -> None:
    assert {name for name in tree.level("*", below=True) if not name.endswith(".")} == {param.dotted for param in tree.find()}
    assert tree.level("version", below=True) == {"version": "r"}
    assert "mdt.fs-MDT0000.exports.10.0.0.7:5@tcp.uuid" in tree.level("mdt.*.exports.10.0.0.7:5@tcp", below=True)


@pytest.mark.parametrize(
    ("old", "text", "new"), [(6.0, "2.5", 2.5), (3, "7", 7), (3, "4k", 4096), (3, "1M", 1 << 20), (True, "0", False)]
)
def test_a_value_keeps_its_type(old: object, text: str, new: object) -> None:
    assert parse_like(old, text) == new


@pytest.mark.parametrize(("old", "text"), [(6.0, "x"), (6.0, "-1"), (6.0, "nan"), (3, "2.5"), (True, "2")])
def test_a_wrong_value_is_refused(old: object, text: str) -> None:
    with pytest.raises(ValueError):
        parse_like(old, text)


def test_every_fail_loc_names_what_exists() -> None:
    for number, (where, messages, _) in NUMBERS.items():
        assert messages or where in POINTS, hex(number)
        assert all(name == "*" or name in BY_NAME for name in messages), hex(number)


def test_fail_loc_once_drops_one_reply_of_any_modifying_request() -> None:
    faults = Faults()
    FailLoc(faults).set("0x80000119")
    first = faults.message("reply", "Unlink")
    assert first is not None
    assert first.action == "drop"
    assert faults.message("reply", "Create") is None


def test_fail_loc_skip_and_some_count_with_fail_val() -> None:
    faults = Faults()
    fail = FailLoc(faults)
    fail.set_value("2")
    fail.set("0x20000115")
    assert [bool(faults.message("request", "Close")) for _ in range(4)] == [False, False, True, True]
    fail.set("0x10000115")
    assert [bool(faults.message("request", "Close")) for _ in range(4)] == [True, True, False, False]
    fail.set("0")
    assert not faults.any


def test_an_unknown_fail_loc_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="known are 0x104"):
        FailLoc(Faults()).set("0x999")


# what a tunable can be -----------------------------------------------------------------------------------------------

IMPOSSIBLE = [
    ("stripe_size", 0), ("stripe_size", 3), ("stripe_size", -65536), ("stripe_size", 1 << 32),
    ("stripe_count", -7), ("stripe_count", -2), ("stripe_count", limits.stripes_max + 1),
    ("max_dirty_bytes", -5), ("rpc_timeout_s", 0.0), ("rpc_timeout_s", math.nan), ("commit_interval_s", math.inf),
    ("ping_interval_s", 0.0), ("lock_callback_s", 0.0), ("max_mod_rpcs", 0), ("max_mod_rpcs", limits.mod_rpcs_max + 1),
    ("precreate_max", -1), ("precreate_min", 20_001), ("commit_on_sharing", 2), ("caching", -1), ("qos_prio_free", 101), ("max_bytes_per_rpc", 0),
    ("lru_size", 1 << 63), ("failover_mode", "x"), ("sync_lock_cancel", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_a_tunable_is_never_what_it_cannot_be(name: str, value: object) -> None:
    tunables = Tunables()
    with pytest.raises(ValueError, match=rf"{name} cannot be .* expected"):
        setattr(tunables, name, value)
    assert tunables == Tunables()
    with pytest.raises(ValueError, match=name):
        Tunables(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("stripe_size", 65536), ("stripe_size", (1 << 32) - 65536), ("stripe_count", -1), ("stripe_count", 0),
     ("stripe_count", 2000), ("at_max_s", 0.0), ("commit_log_s", 0), ("commit_interval_s", 0.0), ("max_mod_rpcs", 1),
     ("precreate_max", 0), ("lru_size", 0), ("grant_shrink_interval_s", 1e6), ("reconnect_pause_s", 0.001), ("failover_mode", "")],
)  # fmt: skip
def test_what_a_tunable_can_be(name: str, value: object) -> None:
    tunables = Tunables()
    setattr(tunables, name, value)
    assert getattr(tunables, name) == value


def test_bounds_are_those_of_tunables() -> None:
    names = {field.name for field in dataclasses.fields(Tunables)}
    assert {*BOUNDS, *CHOICES, *MULTIPLES} <= names and not {*BOUNDS} & {*CHOICES}


@pytest.fixture
def node_tree() -> tuple[ParamTree, Tunables]:
    tree, node = ParamTree(), Node("n", None)  # type: ignore[arg-type]
    add_node_params(tree, node)
    return tree, node.tunables


async def test_a_value_that_cannot_be_changes_nothing(node_tree: tuple[ParamTree, Tunables]) -> None:
    tree, tunables = node_tree
    for pattern, value in [("tunables.stripe_size", "3"), ("timeout", "0"), ("tunables.*", "5"), ("tunables.rpc_timeout_s", "inf")]:
        with pytest.raises(ValueError, match="expected"):
            await tree.set(pattern, value)
        assert tunables == Tunables(), pattern
    assert await tree.set("tunables.stripe_size", "4M") == ["tunables.stripe_size"]
    assert tunables.stripe_size == 4 << 20


async def test_a_permanent_value_that_cannot_be_is_left_out(node_tree: tuple[ParamTree, Tunables]) -> None:
    """An older program may have stored it."""
    tree, tunables = node_tree
    (complaint,) = await tree.apply({"tunables.stripe_count": "-7", "tunables.spin_us": "1"})
    assert complaint.startswith("tunables.stripe_count: stripe_count cannot be -7: a number from -1 to 2000")
    assert (tunables.stripe_count, tunables.spin_us) == (1, 1)


@pytest.mark.parametrize("pattern", ["{", "tunables.{spin_us", "[z-a]"])
async def test_a_permanent_name_that_is_none_ends_nobody(node_tree: tuple[ParamTree, Tunables], pattern: str) -> None:
    """The MGS keeps what it is told; every process that heard of it died, and its successor."""
    tree, tunables = node_tree
    (complaint,) = await tree.apply({pattern: "7", "tunables.spin_us": "1"})
    assert complaint.startswith(f"{pattern}: bad pattern") and tunables.spin_us == 1


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("tunables.stripe_size", "3"), ("tunables/stripe_s*", "0"), ("timeout", "0"), ("tunables.spin_us", "x"),
     ("mdt.*.commit_on_sharing", "2"), ("lod.*.qos_threshold_rr", "101%"), ("osc.*.max_dirty_mb", "-1"),
     ("obdfilter.lustre-OST0000.sync_lock_cancel", "x"), ("ping_interval", "nan")],
)  # fmt: skip
def test_what_is_to_be_stored_is_checked_before(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_text(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("tunables.stripe_size", "1M"), ("lod.*.qos_threshold_rr", "17%"), ("osc.*.max_dirty_mb", "64"), ("spin_us", "x"),
     ("ldlm.namespaces.*.lru_size", "clear"), ("lustre-OST0001.osc.active", "0"), ("nobody.knows", "this")],
)  # fmt: skip
def test_what_can_be_or_is_not_known_may_be_stored(pattern: str, text: str) -> None:
    check_text(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text", "said"),
    [("version", "1", "version is read only"), ("nothing.there", "1", "no parameter that can be set matches 'nothing.there'"),
     ("nobody.*.active", "1", "no parameter"), ("osc.*.nothing", "1", "no parameter"), ("osc.active", "1", "no parameter"),
     ("osc.*.active", "7", "0 or 1 expected"), ("{osc,mdc}.*.act*", "7", "0 or 1 expected"), ("osp.*.create_count", "0", "from 1 to"),
     ("osc.*.max_dirty_mb", "-1", "expected"), ("mdt.*.evict_client", "nid:x", "no parameter"), ("mdt.*.uuid", "1", "no parameter"),
     ("tunables.stripe_size", "3", "expected"), ("tunables.nothing", "3", "no parameter"), ("timeout", "0", "expected"),
     ("lustre-OST0001.osc.active", "2", "0 or 1"), ("lustre-OST0001.failover.mode", "x", "expected"),
     ("lustre-MDT0000.osc.active", "1", "is no OST"), ("nothing.osc.active", "1", "nothing"), ("fail_loc", "0x1", "fail_loc 0x1"),
     ("fail_val", "x", "a number such as"), ("fault", "x", "bad fault"), ("a{b.c", "1", "bad pattern")],
)  # fmt: skip
def test_what_nobody_has_or_takes_is_not_stored(pattern: str, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_permanent(pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("tunables.stripe_size", "1M"), ("lod.*.qos_threshold_rr", "17%"), ("osc.*.max_dirty_mb", "64"), ("timeout", "5"),
     ("osc/*/active", "0"), ("{osc,mdc}.lustre-*.active", "1"), ("ldlm.namespaces.*.lru_size", "clear"), ("fault", "clear"),
     ("lustre-OST0001.osc.active", "0"), ("lustre-OST0001.failover.mode", "failout"), ("osp.*.max_create_count", "0"),
     ("mdt.*.commit_on_sharing", "0"), ("fail_loc", "0x80000119")],
)  # fmt: skip
def test_what_somebody_has_is_stored(pattern: str, text: str) -> None:
    check_permanent(pattern, text)


async def test_fail_loc_is_a_number(node_tree: tuple[ParamTree, Tunables]) -> None:
    tree, _ = node_tree
    for name in ("fail_loc", "fail_val"):
        with pytest.raises(ValueError, match="a number such as 0x123 expected, not 'zzz'"):
            await tree.set(name, "zzz")
    await tree.set("fail_loc", "0x80000119")
    assert tree.get("fail_loc") == {"fail_loc": "0x80000119"}
