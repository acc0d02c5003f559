"""mkfs and tunefs: what a target's directory says of it, and who may change it."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lustrelite.cli.mkfs import mkfs_command, tunefs_command
from lustrelite.errors import FormatRefused, OpError
from lustrelite.format import TargetConfig, check_config, claim, format_target, read_target
from lustrelite.ids import epoch_of, parse_nid
from lustrelite.ost.replacement import REPLACES
from lustrelite.store.kv import Store
from lustrelite.store.schema import (
    FORMAT_VERSION,
    META,
    PARAMS,
    TARGETS,
    TargetRecord,
    meta_key,
    pack_meta,
    pack_target,
    unpack_meta,
)
from lustrelite.target.addresses import KNOWN_OSTS
from lustrelite.wire.mgs import TargetInfo

MGS = "127.0.0.1:988@tcp"
OST = TargetConfig("OST", "lustre", 1, "stamp", (MGS,))


def mkfs(*arguments: str | Path) -> Result:
    return CliRunner().invoke(mkfs_command, [str(a) for a in arguments])


def tunefs(*arguments: str | Path) -> Result:
    return CliRunner().invoke(tunefs_command, [str(a) for a in arguments])


@pytest.mark.parametrize("kind", ["MGS", "MDT", "OST"])
def test_what_mkfs_makes_can_be_opened(tmp_path: Path, kind: str) -> None:
    config = TargetConfig(kind, "" if kind == "MGS" else "lustre", 0, "s", () if kind == "MGS" else (MGS,))
    format_target(tmp_path / "t", config)
    assert read_target(tmp_path / "t") == config
    Store.open(tmp_path / "t", kind).close()


def test_names_and_uuids_are_lustres(tmp_path: Path) -> None:
    assert (OST.name, OST.uuid) == ("lustre-OST0001", "lustre-OST0001_UUID")
    assert TargetConfig("MGS", "", 0, "s").name == "MGS"


def test_a_target_is_not_overwritten_without_reformat(tmp_path: Path) -> None:
    format_target(tmp_path, OST)
    with pytest.raises(OpError, match="--reformat") as error:
        format_target(tmp_path, OST._replace(stamp="other"))
    assert error.value.errno == errno.EEXIST
    assert read_target(tmp_path).stamp == "stamp"
    format_target(tmp_path, OST._replace(stamp="other"), reformat=True)
    assert read_target(tmp_path).stamp == "other"


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(OpError) as error:
        format_target(tmp_path, OST, reformat=True)
    assert error.value.errno == errno.ENOTEMPTY
    assert (tmp_path / "thesis.txt").read_text() == "important"


def test_a_running_target_is_never_reformatted_or_tuned(tmp_path: Path) -> None:
    format_target(tmp_path, OST)
    owner = claim(tmp_path)
    with pytest.raises(OpError, match="belongs to process"):
        format_target(tmp_path, OST, reformat=True)
    result = tunefs("--param", "a=b", tmp_path)
    assert isinstance(result.exception, OpError)
    owner.release()
    assert read_target(tmp_path).params == ()


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (OST._replace(fsname="toolongname"), "1 to 8 characters"),
        (OST._replace(kind="XXX"), "bad kind"),
        (OST._replace(index=0x10000), "bad index"),
        (OST._replace(mgsnodes=()), "--mgsnode"),
        (OST._replace(failnodes=("nowhere",)), "bad NID"),
    ],
)
def test_what_makes_no_sense_is_refused(bad: TargetConfig, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_config(bad)


def test_another_format_version_is_refused_with_a_clear_word(tmp_path: Path) -> None:
    format_target(tmp_path, OST)
    raw = json.loads((tmp_path / "target.json").read_text())
    for version, word in ((FORMAT_VERSION + 1, "newer"), (FORMAT_VERSION - 1, "older")):
        (tmp_path / "target.json").write_text(json.dumps(raw | {"format": version}))
        with pytest.raises(FormatRefused, match=word):
            read_target(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', "null"])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "target.json").write_text(text)
    with pytest.raises(FormatRefused, match="damaged"):
        read_target(tmp_path)


def test_no_target_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FormatRefused, match=r"mkfs\.lustrelite"):
        read_target(tmp_path)


def test_failover_mode_is_checked(tmp_path: Path) -> None:
    words = ("--fsname=testfs", "--index=2", f"--mgsnode={MGS}")
    assert "failover or, on an OST, failout" in str(
        mkfs("--ost", *words, "--param=failover.mode=sometimes", tmp_path / "o").exception
    )
    assert mkfs("--mdt", *words, "--param=failover.mode=failout", tmp_path / "m").exception is not None
    assert mkfs("--ost", *words, "--param=failover.mode=failout", tmp_path / "o").exit_code == 0
    assert read_target(tmp_path / "o").params == (("failover.mode", "failout"),)


def test_mkfs_takes_the_words_of_lustre(tmp_path: Path) -> None:
    place = tmp_path / "ost"
    result = mkfs("--ost", "--fsname=testfs", "--index=2", f"--mgsnode={MGS}", "--servicenode=127.0.0.1:1@tcp",
                  "--failnode=127.0.0.1:2@tcp", "--param", "sys.timeout=20", "--backfstype=ldiskfs", place)  # fmt: skip
    assert result.exit_code == 0, result.output
    config = read_target(place)
    assert (config.name, config.mgsnodes) == ("testfs-OST0002", (MGS,))
    assert set(config.failnodes) == {"127.0.0.1:1@tcp", "127.0.0.1:2@tcp"}
    assert config.params == (("sys.timeout", "20"),)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    result = mkfs("--mgs", "--dryrun", tmp_path / "mgs")
    assert result.exit_code == 0
    assert "dry run" in result.output
    assert not (tmp_path / "mgs").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--fsname=x"], "--mgs, --mdt or --ost"), (["--ost", f"--mgsnode={MGS}"], "--index"), (["--mgs", "--param=x"], "NAME=VALUE")],
)
def test_mkfs_says_what_is_missing(tmp_path: Path, arguments: list[str], word: str) -> None:
    result = mkfs(*arguments, tmp_path / "t")
    assert result.exit_code == 1
    assert word in result.output


@pytest.mark.parametrize("kinds", [("--mgs", "--mdt"), ("--mdt", "--mgs"), ("--mgs", "--mdt", "--ost")])
def test_mkfs_makes_no_combined_target(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    result = mkfs(*kinds, "--index=0", f"--mgsnode={MGS}", tmp_path / "t")
    assert result.exit_code == 2 and "one target of one kind" in result.output and not (tmp_path / "t").exists()


def test_mkfs_replace_makes_an_ost_that_is_above_all_that_the_lost_one_can_have_been(tmp_path: Path) -> None:
    before = int(time.time())
    mkfs_ost = functools.partial(mkfs, "--ost", "--index=3", f"--mgsnode={MGS}")
    assert mkfs_ost("--replace", tmp_path / "new").exit_code == 0
    assert mkfs_ost(tmp_path / "other").exit_code == 0
    for name, replaces in (("new", True), ("other", False)):
        with contextlib.closing(Store.open(tmp_path / name, "OST")) as store:
            assert (store.get(META, REPLACES) is not None) == replaces
            instance, transno = (store.get(META, meta_key(key)) for key in ("instance", "last_transno"))
            if replaces:
                assert instance and transno and unpack_meta(instance) >= before and epoch_of(unpack_meta(transno)) >= before
            else:
                assert instance is None and transno is None
    refused = mkfs("--mdt", "--replace", f"--mgsnode={MGS}", tmp_path / "mdt")
    assert refused.exit_code == 1 and "restore a lost MDT from a backup" in refused.output


def test_tunefs_changes_what_it_is_told(tmp_path: Path) -> None:
    format_target(tmp_path, OST._replace(params=(("a", "1"), ("b", "2"))))
    assert tunefs("--erase-param=a", "--param=c=3", "--mgsnode=127.0.0.1:7@tcp", tmp_path).exit_code == 0
    config = read_target(tmp_path)
    assert (config.params, config.mgsnodes) == ((("b", "2"), ("c", "3")), ("127.0.0.1:7@tcp",))
    assert config.stamp == OST.stamp
    assert tunefs("--erase-params", "--dryrun", tmp_path).exit_code == 0
    assert read_target(tmp_path) == config
    assert "has no parameter" in tunefs("--erase-param=zzz", tmp_path).output


def test_tunefs_says_nothing_of_a_change_that_it_may_not_make(tmp_path: Path) -> None:
    format_target(tmp_path, OST)
    ownership = claim(tmp_path)
    try:
        refused = tunefs("--param=a.b=3", tmp_path)
        assert isinstance(refused.exception, OpError) and refused.exception.errno == errno.EBUSY and refused.output == ""
        assert OST.name in tunefs(tmp_path).output and "a.b=3" in tunefs("--param=a.b=3", "--dryrun", tmp_path).output
    finally:
        ownership.release()


def test_tunefs_writeconf_makes_an_mdt_forget_where_osts_are(tmp_path: Path) -> None:
    assert mkfs("--mdt", "--fsname", "lustre", "--index", "0", "--mgsnode", MGS, tmp_path).exit_code == 0
    with contextlib.closing(Store.open(tmp_path, "MDT")) as store:
        store.apply({(META, meta_key(KNOWN_OSTS)): pack_meta([]), (META, meta_key("epoch")): pack_meta(3)})
    assert tunefs("--writeconf", tmp_path).exit_code == 0
    with contextlib.closing(Store.open(tmp_path, "MDT", readonly=True)) as store:
        assert store.get(META, meta_key(KNOWN_OSTS)) is None and store.get(META, meta_key("epoch")) is not None


def test_tunefs_writeconf_makes_an_mgs_forget_where_targets_are(tmp_path: Path) -> None:
    assert mkfs("--mgs", tmp_path).exit_code == 0
    info = TargetInfo("lustre-OST0001", "OST", 1, "u", ("127.0.0.1:7@tcp",), 3, 1)
    rows = {
        (TARGETS, b"lustre-OST0001"): pack_target(TargetRecord(info, "stamp")),
        (PARAMS, b"lustre\0a.b"): b"c",
    }
    with contextlib.closing(Store.open(tmp_path, "MGS")) as store:
        store.apply(rows)
    for arguments, left in ((("--writeconf", "--dryrun"), 1), (("--param=x=1",), 1), (("--writeconf",), 0)):
        assert tunefs(*arguments, tmp_path).exit_code == 0
        with contextlib.closing(Store.open(tmp_path, "MGS", readonly=True)) as store:
            assert (store.count(TARGETS), store.count(PARAMS)) == (left, 1)


def test_a_parameter_that_cannot_be_is_not_written(tmp_path: Path) -> None:
    made = mkfs("--ost", "--index", 1, "--mgsnode", MGS, "--param", "stripe_size=3", tmp_path / "t")
    assert made.exit_code == 1 and "--param stripe_size=3: stripe_size cannot be 3" in made.output and not (tmp_path / "t").exists()
    format_target(tmp_path, OST)
    changed = tunefs("--param", "obdfilter.sync_journal=7", tmp_path)
    assert changed.exit_code == 1 and "sync_journal cannot be 7" in changed.output and read_target(tmp_path) == OST


@pytest.mark.parametrize("nid", ["1.2.3.4:99999@tcp", "host:65536@tcp"])
def test_a_port_that_cannot_be_is_refused(tmp_path: Path, nid: str) -> None:
    with pytest.raises(ValueError, match="a port is a number up to 65535"):
        parse_nid(nid)
    assert "a port is a number" in str(mkfs("--ost", "--index", 1, "--mgsnode", nid, tmp_path / "t").exception)
    assert parse_nid("1.2.3.4:65535@tcp") == "1.2.3.4:65535@tcp" and parse_nid("[::1]:0@tcp") == "[::1]:0@tcp"


def test_a_target_is_its_owners_alone(tmp_path: Path) -> None:
    assert mkfs("--mgs", tmp_path / "a" / "t").exit_code == 0
    assert (tmp_path / "a" / "t").stat().st_mode & 0o777 == 0o700
