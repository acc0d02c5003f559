"""fsck finds every kind of damage that is planted, and nothing in a clean tree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from damaged_cluster import ABSENT, HARD, LINK, PLANTED, S_LNK, S_REG, DamagedCluster, object_missing

from lustrelite import fsck
from lustrelite.cli.check import _tell_report, summary
from lustrelite.ids import ROOT_FID
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.wire.session import IndexPage, IndexRead


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DamagedCluster]:
    made = DamagedCluster(tmp_path)
    yield made
    made.close()


def test_a_clean_tree_has_no_problem(cluster: DamagedCluster) -> None:
    report = cluster.check()
    assert report.problems == []
    assert report.clean
    assert report.counts == {
        "names": 6, "links": 6, "inodes": 7, "directories": 3, "orphans": 1, "objects": 12, "data files": 4,
        "bytes": 16, "destroy log": 1,
    }  # fmt: skip
    assert json.loads(json.dumps(report.as_json()))["clean"] is True


@pytest.mark.parametrize(("damage", "expected"), PLANTED, ids=[damage.__name__ for damage, _ in PLANTED])
def test_damage_is_found(cluster: DamagedCluster, damage: Any, expected: set[tuple[str, str]]) -> None:
    damage(cluster)
    report = cluster.check()
    found = {(problem.kind, problem.subject) for problem in report.problems}
    assert found == expected
    assert not report.clean
    assert sum(report.found.values()) == len(report.problems)
    assert all(problem.severity == fsck.KINDS[problem.kind][0] and problem.detail for problem in report.problems)
    json.dumps(report.as_json())


def test_every_kind_is_planted() -> None:
    assert {kind for _, expected in PLANTED for kind, _ in expected} == set(fsck.KINDS)


class Served:
    """A target that answers IndexRead."""

    def __init__(self, store: Store, files: ObjectFiles | None = None) -> None:
        self.reader = fsck.StoreReader(store, files)

    async def call(self, body: IndexRead) -> IndexPage:
        rows = [row async for row in self.reader.rows(body.table) if row[0] > body.after]
        return IndexPage(tuple(rows[: body.count]), len(rows) > body.count)


def served(c: DamagedCluster, page_rows: int) -> tuple[fsck.RpcReader, dict[int, fsck.RpcReader]]:
    osts = {i: fsck.RpcReader(Served(store, files), page_rows) for i, (store, files) in c.osts.items()}
    return fsck.RpcReader(Served(c.mdt), page_rows), osts


@pytest.mark.parametrize("page_rows", [1, 3, 2000])
async def test_a_running_cluster_is_read_in_pages(cluster: DamagedCluster, page_rows: int) -> None:
    async def pause() -> None:
        raise AssertionError("there is nothing to settle")

    mdt, osts = served(cluster, page_rows)
    report = await fsck.check_running(mdt, osts, pause)
    assert report.clean
    assert report.counts == cluster.check().counts


async def test_what_settles_is_no_problem_and_what_stays_is(cluster: DamagedCluster) -> None:
    """A create in flight (name without inode) is complete at the second reading; a lost object stays lost."""
    object_missing(cluster)
    cluster.name(ROOT_FID, b"new", ABSENT, S_REG)
    pauses = []

    async def pause() -> None:
        pauses.append(1)
        cluster.inode(ABSENT, S_REG, 1)

    mdt, osts = served(cluster, 100)
    report = await fsck.check_running(mdt, osts, pause)
    assert [(problem.kind, problem.subject) for problem in report.problems] == [("object-missing", "OST0000:2")]
    assert report.found == {"object-missing": 1}
    assert len(pauses) == 2
    assert report.passes == 3


async def test_problems_that_come_and_go_are_none(cluster: DamagedCluster) -> None:
    cluster.inode(HARD, S_REG, 3, stripes=((0, 2),))

    async def pause() -> None:
        cluster.inode(HARD, S_REG, 2, stripes=((0, 2),))
        cluster.inode(LINK, S_LNK, 4)

    mdt, osts = served(cluster, 100)
    report = await fsck.check_running(mdt, osts, pause)
    assert report.clean
    assert report.passes == 2


def test_the_list_is_bounded_and_the_count_is_not() -> None:
    report = fsck.Report()
    for number in range(fsck.PROBLEMS_MAX + 5):
        report.add("object-orphan", f"OST0000:{number}")
    assert len(report.problems) == fsck.PROBLEMS_MAX
    assert report.found == {"object-orphan": fsck.PROBLEMS_MAX + 5}
    assert report.errors == []


def test_no_number_of_warnings_hides_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Behind 1000 orphan objects an error was not listed, and the exit status of fsck and of restore was 0."""
    report = fsck.Report()
    for number in range(fsck.PROBLEMS_MAX):
        report.add("object-orphan", f"OST0000:{number}")
    assert summary(report).startswith(f"no errors, only warnings: {fsck.PROBLEMS_MAX} object-orphan (")
    report.add("object-missing", "/f")
    assert [problem.subject for problem in report.errors] == ["/f"]
    assert summary(report).startswith("NOT CLEAN: ")
    _tell_report(report, as_json=False)
    assert capsys.readouterr().out.startswith("error: object-missing: /f: ")
