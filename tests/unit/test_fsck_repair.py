"""fsck --repair: every kind of damage, alone and together, ends in a clean tree; what was sound stays as it was."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damaged_cluster import (
    ABSENT,
    DIR,
    FILE,
    HARD,
    LINK,
    ORPHAN,
    PLANTED,
    SUB,
    DamagedCluster,
    data_orphan,
    drop_inode,
    implausible_object_id,
    last_used_ahead,
    last_used_behind,
    lost_directory_inode,
    lost_file_inode,
    lost_inode,
    lost_record_with_data,
    object_missing,
    object_orphan,
    object_shared,
    orphan_with_data,
    ost_unknown,
    two_directory_names,
    unreadable_object,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lustrelite.errors import StoreFailed
from lustrelite.fsck import KINDS
from lustrelite.fsck.changes import Options
from lustrelite.fsck.repair import CORRECTED, LEFT, MENDS, STAGES, Outcome, Repair
from lustrelite.ids import ROOT_FID, Fid
from lustrelite.store import schema
from lustrelite.tunables import DESTROY

NOW = 1_800_000_000_000_000_000
ALL = Options(replace_lost_osts=True)
DAMAGES = [damage for damage, _ in PLANTED]
EVERY_DAMAGE = pytest.mark.parametrize("damage", DAMAGES, ids=[damage.__name__ for damage in DAMAGES])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DamagedCluster]:
    made = DamagedCluster(tmp_path)
    yield made
    made.close()


def planned(c: DamagedCluster, options: Options = ALL) -> tuple[Repair, Outcome]:
    """A repair that is ready to be written."""
    repair = Repair(c.mdt, c.osts, now_ns=NOW, options=options)
    return repair, repair.plan()


def repaired(c: DamagedCluster, options: Options = ALL) -> Outcome:
    """Repair, and see that a second run has nothing to do."""
    repair, outcome = planned(c, options)
    repair.apply()
    assert (CORRECTED if outcome.mended else 0) | (LEFT if outcome.left.found else 0) == outcome.status
    if not outcome.left.found:
        assert c.check().problems == []
    _, again = planned(c, options)
    assert again.mended == [] and again.left.found == outcome.left.found
    json.dumps(outcome.as_json())
    return outcome


def names(c: DamagedCluster, directory: Fid) -> dict[bytes, Fid]:
    """What is in a directory."""
    rows = c.mdt.scan(schema.NAMES, prefix=directory)
    return {schema.split_name_key(key)[2]: schema.unpack_entry(value)[0] for key, value in rows}


def lost_and_found(c: DamagedCluster) -> dict[str, Fid]:
    """What is in lost+found."""
    found = names(c, ROOT_FID).get(b"lost+found")
    return {name.decode(): fid for name, fid in names(c, found).items()} if found is not None else {}


def stripes(c: DamagedCluster, fid: Fid) -> tuple[tuple[int, int], ...]:
    value = c.mdt.get(schema.INODES, fid)
    assert value is not None
    layout = schema.unpack_inode(value).layout
    return tuple((ost, oid) for ost, oid in layout.stripes) if layout is not None else ()


def data(c: DamagedCluster, fid: Fid) -> list[bytes]:
    """The bytes of each object of a file."""
    found = []
    for ost, oid in stripes(c, fid):
        files = c.osts[ost][1]
        buffer = bytearray(files.size(oid))
        files.read_into(oid, 0, buffer)
        found.append(bytes(buffer))
    return found


def sound_files(c: DamagedCluster) -> dict[Fid, Any]:
    """Inode and objects, as they are, of every file that can be read whole and has its objects for itself."""
    claims: dict[tuple[int, int], int] = {}
    inodes = {}
    for key, value in c.mdt.scan(schema.INODES):
        try:
            inode = schema.unpack_inode(value)
            pairs = [(ost, oid) for ost, oid in inode.layout.stripes] if inode.layout is not None else []
        except (StoreFailed, TypeError, ValueError):
            continue
        if pairs and len(key) == 16:
            inodes[Fid(key)] = pairs
            for pair in pairs:
                claims[pair] = claims.get(pair, 0) + 1
    found = {}
    for fid, pairs in inodes.items():
        if all(claims[pair] == 1 and pair[0] in c.osts and pair[1] < 1 << 40 for pair in pairs):
            objects = [c.osts[ost][0].get(schema.OBJECTS, schema.object_key(oid)) for ost, oid in pairs]
            if all(value is not None for value in objects):
                found[fid] = (pairs, data(c, fid))
    return found


def disk(top: Path) -> dict[str, str]:
    """A hash of every file on disk."""
    return {str(p.relative_to(top)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(top.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------------------------------------- one damage


def test_every_kind_has_a_mend_and_a_stage() -> None:
    staged = [kind for stage in STAGES for kind in stage]
    assert sorted(staged) == sorted(MENDS) == sorted(KINDS)


def test_there_is_nothing_to_do_in_a_clean_tree(cluster: DamagedCluster) -> None:
    repair, outcome = planned(cluster)
    assert outcome.status == 0 and outcome.mended == [] and list(repair.steps()) == []


@EVERY_DAMAGE
def test_damage_is_mended_and_nothing_else_changes(cluster: DamagedCluster, damage: Any) -> None:
    damage(cluster)
    sound = sound_files(cluster)
    outcome = repaired(cluster)
    assert outcome.status == CORRECTED and outcome.found.found and outcome.mended
    after = sound_files(cluster)
    assert {fid: after.get(fid) for fid in sound} == sound


@EVERY_DAMAGE
def test_orphans_may_be_destroyed(cluster: DamagedCluster, damage: Any) -> None:
    damage(cluster)
    assert repaired(cluster, Options(DESTROY, replace_lost_osts=True)).status == CORRECTED
    lost = [fid for fid in lost_and_found(cluster).values() if stripes(cluster, fid)]
    assert lost == []


@EVERY_DAMAGE
def test_a_dry_run_changes_nothing(cluster: DamagedCluster, tmp_path: Path, damage: Any) -> None:
    damage(cluster)
    cluster.mdt.flush()
    for store, _ in cluster.osts.values():
        store.flush()
    before = disk(tmp_path)
    _, outcome = planned(cluster)
    outcome.dry_run = True
    assert outcome.status == LEFT and outcome.mended
    assert disk(tmp_path) == before
    assert not cluster.check().clean


@EVERY_DAMAGE
def test_killed_at_any_step_a_second_run_ends_it(tmp_path: Path, damage: Any) -> None:
    steps = 1
    number = 0
    while number < steps:
        c = DamagedCluster(tmp_path / str(number))
        damage(c)
        repair, _ = planned(c)
        for step, _ in enumerate(repair.steps()):
            if step == number:
                break
            steps = max(steps, step + 2)
        outcome = repaired(c)
        assert outcome.left.clean
        c.close()
        number += 1


# ------------------------------------------------------------------------------------------------- what becomes of it


def test_a_file_without_a_name_is_found_again(cluster: DamagedCluster) -> None:
    lost_inode(cluster)
    repaired(cluster)
    assert lost_and_found(cluster) == {"0x200000401:0x5:0x0": LINK}


def test_a_name_that_leads_nowhere_goes(cluster: DamagedCluster) -> None:
    drop_inode(cluster)
    repaired(cluster)
    assert set(names(cluster, ROOT_FID)) == {b"d", b"h1"}


def test_a_lost_directory_is_made_again_with_what_was_in_it(cluster: DamagedCluster) -> None:
    lost_directory_inode(cluster)
    repaired(cluster)
    assert names(cluster, DIR) == {b"sub": SUB} and names(cluster, SUB) == {b"f": FILE, b"h2": HARD}


def test_a_lost_file_is_made_again_around_its_one_object(cluster: DamagedCluster) -> None:
    lost_file_inode(cluster)
    repaired(cluster)
    assert data(cluster, HARD) == [b"hard"] and names(cluster, ROOT_FID)[b"h1"] == names(cluster, SUB)[b"h2"] == HARD


def test_the_name_of_a_directory_that_its_parent_pointer_means_stays(cluster: DamagedCluster) -> None:
    two_directory_names(cluster)
    cluster.name(ROOT_FID, b"third", SUB, 0o040755)
    repaired(cluster)
    assert names(cluster, DIR) == {b"sub": SUB} or names(cluster, DIR) == {b"again": SUB}
    assert b"third" not in names(cluster, ROOT_FID)


def test_objects_without_a_file_become_files(cluster: DamagedCluster) -> None:
    orphan_with_data(cluster)
    repaired(cluster)
    found = lost_and_found(cluster)
    assert sorted(found) == [
        "OST0001-2-stripe0-of-0x200000401:0x63:0x0", "OST0001-3-stripe1-of-0x200000401:0x63:0x0",
        "OST0001-4-stripe0-of-0x200000401:0x3:0x0",
    ]  # fmt: skip
    assert [data(cluster, found[name]) for name in sorted(found)] == [
        [b"first stripe"], [b"second stripe"], [b"of a file that has others"],
    ]  # fmt: skip
    assert found["OST0001-2-stripe0-of-0x200000401:0x63:0x0"] == ABSENT and len(set(found.values())) == 3


def test_an_orphan_object_is_destroyed_if_that_is_wanted(cluster: DamagedCluster) -> None:
    object_orphan(cluster)
    repaired(cluster, Options(DESTROY))
    assert cluster.osts[0][0].get(schema.OBJECTS, schema.object_key(4)) is None
    assert 4 not in cluster.osts[0][1].ids() and lost_and_found(cluster) == {}


def test_a_missing_object_is_empty_and_its_report_says_so(cluster: DamagedCluster) -> None:
    object_missing(cluster)
    outcome = repaired(cluster)
    assert data(cluster, HARD) == [b""] and "EMPTY" in outcome.mended[0].did


def test_a_missing_record_comes_back_with_its_data(cluster: DamagedCluster) -> None:
    lost_record_with_data(cluster)
    repaired(cluster)
    assert data(cluster, FILE) == [b"data", b"data"]


def test_a_shared_object_stays_with_the_file_it_points_back_to(cluster: DamagedCluster) -> None:
    object_shared(cluster)
    repaired(cluster)
    assert stripes(cluster, FILE) == ((0, 1), (1, 1)) and stripes(cluster, HARD) == ((0, 2), (1, 7))
    assert data(cluster, FILE) == [b"data", b"data"]


def test_ids_only_go_forward(cluster: DamagedCluster) -> None:
    for damage in (last_used_behind, last_used_ahead, implausible_object_id, unreadable_object):
        pools = {i: schema.unpack_pool(v) for i in (0, 1) if (v := cluster.mdt.get(schema.POOLS, schema.pool_key(i)))}
        damage(cluster)
        repaired(cluster)
        for index, before in pools.items():
            value = cluster.mdt.get(schema.POOLS, schema.pool_key(index))
            last_id = cluster.osts[index][0].get(schema.META, schema.meta_key("last_id"))
            assert value is not None and last_id is not None
            after = schema.unpack_pool(value)
            assert schema.unpack_meta(last_id) >= after.last_used
            if damage is not last_used_behind or index == 0:
                assert after >= before
        assert max(oid for oid, _ in [(oid, 0) for _, oid in stripes(cluster, HARD)]) < 100


def test_what_was_granted_and_perhaps_used_is_condemned_and_not_destroyed(cluster: DamagedCluster) -> None:
    """A client may still replay the create of a file with these: then they are pardoned (mdt/layout.py)."""
    last_used_behind(cluster)
    cluster.inode(HARD, 0o100644, 2, stripes=((0, 2), (1, 4)))
    repaired(cluster)
    condemned = [schema.split_log_key(key) for key, _ in cluster.mdt.scan(schema.OST_LOG)]
    assert condemned == [(0, 4), (1, 2), (1, 3)]
    assert all(cluster.osts[1][0].get(schema.OBJECTS, schema.object_key(oid)) for oid in range(1, 7))


def test_data_above_the_last_id_is_kept_and_below_it_is_the_rest_of_a_destroyed_object(cluster: DamagedCluster) -> None:
    data_orphan(cluster)  # 99
    cluster.ost_put(1, schema.OBJECTS, schema.object_key(5), None)
    cluster.osts[1][1].write(5, 0, b"destroyed")
    repaired(cluster)
    found = lost_and_found(cluster)
    assert [data(cluster, fid) for fid in found.values()] == [[b"left over"]] and list(found) == ["OST0001-99"]
    assert 5 not in cluster.osts[1][1].ids()


def test_an_ost_that_is_away_is_left_alone(cluster: DamagedCluster) -> None:
    ost_unknown(cluster)
    outcome = repaired(cluster, Options())
    assert outcome.status == LEFT and stripes(cluster, HARD) == ((7, 2),)
    assert repaired(cluster).status == CORRECTED
    assert stripes(cluster, HARD)[0][0] in cluster.osts


def test_a_name_that_is_taken_in_lost_and_found(cluster: DamagedCluster) -> None:
    """lost+found is there already, as is a file of that name; and the root has a file called lost+found before that."""
    cluster.name(ROOT_FID, b"lost+found", HARD, 0o100644)
    cluster.inode(HARD, 0o100644, 3, stripes=((0, 2),))
    lost_inode(cluster)
    repaired(cluster)
    directory = names(cluster, ROOT_FID)[b"lost+found.1"]
    cluster.no_name(directory, b"0x200000401:0x5:0x0", LINK)
    cluster.name(directory, b"0x200000401:0x5:0x0", ABSENT, 0o100644)
    cluster.inode(ABSENT, 0o100644, 1)
    repaired(cluster)
    assert names(cluster, directory) == {b"0x200000401:0x5:0x0": ABSENT, b"0x200000401:0x5:0x0-2": LINK}


def test_fids_of_new_files_are_never_those_of_clients(cluster: DamagedCluster) -> None:
    key = schema.meta_key("next_sequence")
    cluster.put(schema.META, key, schema.pack_meta(0x200000900))
    lost_inode(cluster)
    repaired(cluster)
    value = cluster.mdt.get(schema.META, key)
    assert value is not None and schema.unpack_meta(value) == 0x200000901
    assert names(cluster, ROOT_FID)[b"lost+found"][:8] == (0x200000900).to_bytes(8, "big")


# ------------------------------------------------------------------------------------------------- several at once


def corrupt(c: DamagedCluster, rng: random.Random) -> None:
    """One random row of one random table is lost, garbled, or has another row's value; or a data file is lost."""
    index = rng.choice((None, None, None, 0, 1))
    store = c.mdt if index is None else c.osts[index][0]
    tables = (
        (schema.INODES, schema.NAMES, schema.LINKS, schema.ORPHANS, schema.XATTRS, schema.POOLS, schema.OST_LOG)
        if index is None
        else (schema.OBJECTS,)
    )
    table = rng.choice(tables)
    rows = list(store.scan(table))
    if index is not None and rng.random() < 0.3:
        c.osts[index][1].remove(rng.randrange(1, 7))
        return
    if not rows:
        return
    key, value = rng.choice(rows)
    act = rng.randrange(4)
    if act == 0:
        store.apply({(table, key): None})
    elif act == 1:
        store.apply({(table, key): rng.randbytes(len(value))})
    elif act == 2:
        store.apply({(table, key): rng.choice(rows)[1]})
    else:
        broken = bytearray(key)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        store.apply({(table, key): None, (table, bytes(broken)): value})


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(chosen=st.lists(st.sampled_from(DAMAGES), max_size=5), seed=st.integers(0, 1 << 32), times=st.integers(0, 4))
def test_any_damage_ends_in_a_clean_tree(chosen: list[Any], seed: int, times: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as top:
        c = DamagedCluster(Path(top))
        try:
            for damage in chosen:
                damage(c)
            for _ in range(times):
                corrupt(c, rng)
            sound = sound_files(c)
            outcome = repaired(c)
            assert outcome.left.problems == [], outcome.left.problems
            after = sound_files(c)
            missing = [fid for fid in sound if after.get(fid) != sound[fid]]
            assert missing == []
        finally:
            c.close()


@pytest.mark.parametrize("oid", [0, 1 << 63 | 3])
def test_a_record_of_an_object_that_cannot_be_makes_no_file(cluster: DamagedCluster, oid: int) -> None:
    """A bit of its key has flipped, and the inode of which it says that it is its own is lost, too."""
    value = cluster.osts[0][0].get(schema.OBJECTS, schema.object_key(3))
    cluster.ost_put(0, schema.OBJECTS, schema.object_key(3), None)
    cluster.ost_put(0, schema.OBJECTS, schema.object_key(oid), value)
    cluster.name(DIR, b"o", ORPHAN, 0o100644)
    cluster.put(schema.INODES, ORPHAN, None)
    assert "record-unreadable" in {problem.kind for problem in cluster.check().problems}
    outcome = repaired(cluster)
    assert outcome.left.problems == [] and cluster.osts[0][0].get(schema.OBJECTS, schema.object_key(oid)) is None


def test_an_orphan_that_somebody_may_have_open_stays_one(cluster: DamagedCluster) -> None:
    cluster.inode(ORPHAN, 0o100644, 1, stripes=((0, 3),))
    repaired(cluster)
    assert cluster.mdt.get(schema.ORPHANS, ORPHAN) is not None and data(cluster, ORPHAN) == [b"data"]
