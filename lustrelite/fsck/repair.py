"""fsck --repair: makes a damaged file system of a stopped cluster whole again, losing nothing that can be kept.

First everything is done in memory, on drafts laid over the stores: examine, mend the problems of the first stage that
has any, examine again, until nothing is found or nothing more can be done (STAGES says in which order, so that a mend
may count on what the stages before it have put right). Only then is anything written.

Writing is one transaction per target: OSTs first, then the MDT, at last data files that nobody needs are removed. That
order makes a kill in the middle harmless: an OST may have an object too many, never a layout an object too few, and
what is left half done is found and finished by the next run. A second run finds nothing.

What is kept: a file or directory without a name gets one in lost+found; so does an object that holds data and belongs
to no file, as a file of its own (`orphans="destroy"` destroys them). Numbers that must never come twice (ids of
objects, FIDs) only go forward. What cannot be known again is made empty, and said so.

A client that was cut off by the crash may still replay what it did after the repair: ids that were granted and never
used are therefore condemned in the destroy log, as recovery does it, and pardoned by a replay that claims them.
Source of the ideas: e2fsck(8), LFSCK; mdt/layout.py claim()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lustrelite.fsck.changes import Changes, Mended, Options
from lustrelite.fsck.draft import Draft
from lustrelite.fsck.examine import at_once
from lustrelite.fsck.mend_names import NAME_MENDS
from lustrelite.fsck.mend_objects import OBJECT_MENDS
from lustrelite.fsck.readers import StoreReader
from lustrelite.fsck.report import Problem, Report
from lustrelite.store.kv import Store
from lustrelite.store.objects import ObjectFiles
from lustrelite.store.room import ESSENTIAL

ROUNDS_MAX = 60
LISTED_MAX = 1 << 22  # problems of one round

# The exit status, as e2fsck's: a sum of these.
CORRECTED, LEFT, FAILED = 1, 4, 8

STAGES: tuple[tuple[str, ...], ...] = (
    ("record-unreadable", "root-missing"),
    ("root-named", "name-cookie"),
    ("name-in-no-directory",),
    ("name-without-inode",),
    ("directory-names",),
    ("name-without-link", "link-without-name", "xattr-without-inode", "orphan-without-inode"),
    ("orphan-linked", "inode-without-name"),
    ("directory-unreachable",),
    ("directory-parent", "name-type"),
    ("link-count", "xattr-bytes"),
    ("ost-unknown", "object-shared"),
    ("object-missing", "object-condemned"),
    ("object-owner", "object-user", "data-missing", "last-id", "last-used"),
    ("object-orphan", "data-orphan"),
)


@dataclass
class Outcome:
    """The end of a repair: what was found, what was done about it, what is left."""

    found: Report
    left: Report
    mended: list[Mended] = field(default_factory=list)
    dry_run: bool = False

    @property
    def status(self) -> int:
        """Exit status: 0 clean, 1 corrected, 4 something is left."""
        if self.dry_run:
            return LEFT if self.found.found else 0
        return (CORRECTED if self.mended else 0) + (LEFT if self.left.found else 0)

    def as_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return {
            **self.found.as_json(), "mended": [one._asdict() for one in self.mended],
            "left": [problem.as_json() for problem in self.left.problems], "dry_run": self.dry_run, "status": self.status,
        }  # fmt: skip


MENDS = {**NAME_MENDS, **OBJECT_MENDS}


class Repair:
    """Plans a repair on drafts (`plan`), then writes it (`apply`). The stores stand still meanwhile."""

    def __init__(
        self, mdt: Store, osts: Mapping[int, tuple[Store, ObjectFiles]], *, now_ns: int, options: Options | None = None
    ) -> None:
        self.changes = Changes(mdt, osts, now_ns=now_ns, options=options)
        self._stores = mdt, osts
        self._stuck: dict[tuple[str, str], None] = {}  # problems about which nothing could be done

    def plan(self) -> Outcome:
        """Make all changes on the drafts."""
        found = report = self._examine()
        for _ in range(ROUNDS_MAX):
            problems = self._next_stage(report)
            if not problems:
                break
            before = len(self.changes.mended)
            by_kind: dict[str, list[Problem]] = {}
            for problem in problems:
                by_kind.setdefault(problem.kind, []).append(problem)
            for kind, these in by_kind.items():
                MENDS[kind](self.changes, these)
            if len(self.changes.mended) == before:
                self._stuck.update(dict.fromkeys((problem.kind, problem.subject) for problem in problems))
            report = self._examine()
        return Outcome(found, report, self.changes.mended)

    def _examine(self) -> Report:
        osts = {index: StoreReader(ost.rows, ost.files) for index, ost in self.changes.osts.items()}
        return at_once(StoreReader(self.changes.mdt), osts, LISTED_MAX)

    def _next_stage(self, report: Report) -> list[Problem]:
        for stage in STAGES:
            problems = [p for p in report.problems if p.kind in stage and (p.kind, p.subject) not in self._stuck]
            if problems:
                return problems
        return []

    def apply(self) -> None:
        """Write what was planned.  Errors: OpError(ENOSPC), StoreFailed; a second run finds what is left to do"""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[str]:
        """`apply`, with a stop after each thing that is durable."""
        mdt, osts = self._stores
        for index, ost in self.changes.osts.items():
            if ost.rows.writes:
                _write(osts[index][0], ost.rows)
                yield f"OST{index:04x}"
        if self.changes.mdt.writes:
            _write(mdt, self.changes.mdt)
            yield "MDT"
        for index, ost in self.changes.osts.items():
            for oid in ost.files.removed:
                osts[index][1].remove(oid)
                yield f"OST{index:04x}:{oid}"


def _write(store: Store, draft: Draft) -> None:
    store.apply(draft.writes, kind=ESSENTIAL)
    store.flush()
