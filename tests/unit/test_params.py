"""The parameter tree: names, patterns, values."""

from __future__ import annotations

import pytest

from lustrelite.fail_loc import NUMBERS, FailLoc
from lustrelite.faults import POINTS, Faults
from lustrelite.params import Param, ParamTree, component, parse_like, pattern_regex
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


def test_list_param_shows_one_level(tree: ParamTree) -> None:
    assert tree.level("*") == ["mdt.", "obdfilter.", "version"]
    assert tree.level("obdfilter.*") == ["obdfilter.fs-OST0000.", "obdfilter.fs-OST0001."]
    assert tree.level("version") == ["version"]


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
