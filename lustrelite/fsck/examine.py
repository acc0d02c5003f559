"""The examination: every table of every target once, in key order, joined by merging; and of a running system again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from lustrelite.fsck.names import Namespace
from lustrelite.fsck.objects import Claims, examine_ost
from lustrelite.fsck.readers import Reader, StoreReader
from lustrelite.fsck.report import PROBLEMS_MAX, Report
from lustrelite.ids import fid_text
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles

PASSES = 3  # readings of a running system


def check(mdt: Store, osts: Mapping[int, tuple[Store, ObjectFiles]]) -> Report:
    """Examine the stores of a stopped cluster (or of one that stands still). Changes nothing."""
    readers = {index: StoreReader(store, files) for index, (store, files) in osts.items()}
    return at_once(StoreReader(mdt), readers)


def at_once(mdt: StoreReader, osts: Mapping[int, StoreReader], listed_max: int = PROBLEMS_MAX) -> Report:
    """`examine` for readers that never suspend."""
    work = examine(mdt, osts, listed_max)
    try:
        work.send(None)
    except StopIteration as done:
        report: Report = done.value
        return report
    raise AssertionError("a StoreReader suspended")


async def check_running(
    mdt: Reader, osts: Mapping[int, Reader], pause: Callable[[], Awaitable[None]], passes: int = PASSES
) -> Report:
    """Examine a running cluster: what is found in each of `passes` readings, with a `pause()` before every new one."""
    report = await examine(mdt, osts)
    while report.found and report.passes < passes:
        await pause()
        again = await examine(mdt, osts)
        before = {(problem.kind, problem.subject) for problem in report.problems}
        settled = Report(again.counts, passes=report.passes + 1)
        for problem in again.problems:
            if (problem.kind, problem.subject) in before:
                settled.add(problem.kind, problem.subject, problem.detail)
        report = settled
    return report


async def examine(mdt: Reader, osts: Mapping[int, Reader], listed_max: int = PROBLEMS_MAX) -> Report:
    """One reading of everything."""
    namespace = Namespace(mdt, Report(listed_max=listed_max))
    await namespace.examine()
    for index in sorted(osts.keys() | namespace.claims.keys()):
        claims = namespace.claims.get(index) or Claims()
        if index in osts:
            await examine_ost(namespace.report, mdt, index, osts[index], claims)
        else:
            for oid, fid, stripe, _ in claims.in_order():
                subject, detail = f"OST{index:04x}:{oid}", f"stripe {stripe} of {fid_text(fid)}"
                namespace.report.add("ost-unknown", subject, detail, (index, oid, fid, stripe))
    return namespace.report
