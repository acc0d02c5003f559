"""What fsck can find, what it has found, and what the repair has done about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PROBLEMS_MAX = 1000  # listed; more are only counted

ERROR = "error"  # something a user can lose or see wrongly
WARNING = "warning"  # space or a record too much; harmless, and mostly mended by the next start

KINDS: dict[str, tuple[str, str]] = {
    "root-missing": (ERROR, "there is no root directory"),
    "record-unreadable": (ERROR, "a row does not decode"),
    "root-named": (ERROR, "a name leads to the root directory"),
    "name-without-inode": (ERROR, "a name points to an inode that does not exist"),
    "name-in-no-directory": (ERROR, "a name's parent is not a directory"),
    "name-without-link": (ERROR, "a name has no back-pointer at its inode"),
    "link-without-name": (ERROR, "a back-pointer names a name that is not there"),
    "name-type": (ERROR, "the type beside the name is not the inode's"),
    "name-cookie": (ERROR, "the name is filed under another name's hash"),
    "inode-without-name": (ERROR, "an inode that is no orphan has no name"),
    "link-count": (ERROR, "nlink is not the number of names (directories: 2 + subdirectories)"),
    "directory-parent": (ERROR, "a directory's parent pointer is not the directory that names it"),
    "directory-names": (ERROR, "a directory has more than one name"),
    "directory-unreachable": (ERROR, "no path from the root leads to a directory"),
    "orphan-linked": (ERROR, "an entry of the orphans table has names or nlink above 0"),
    "orphan-without-inode": (WARNING, "an entry of the orphans table has no inode"),
    "xattr-bytes": (ERROR, "an inode does not know which extended attributes it has"),
    "xattr-without-inode": (WARNING, "an extended attribute of an inode that does not exist"),
    "ost-unknown": (ERROR, "a layout names an OST that is not there"),
    "object-missing": (ERROR, "a layout names an object that the OST does not have"),
    "object-shared": (ERROR, "two layouts name one object"),
    "object-owner": (ERROR, "an object's back-pointer is not the layout that names it"),
    "object-user": (WARNING, "an object is counted for another user, group or project than its file's"),
    "object-condemned": (ERROR, "an object of a layout stands in the destroy log"),
    "object-orphan": (WARNING, "an object that no layout names, below last_used and not in the destroy log"),
    "data-missing": (ERROR, "an object was written but its data file is not there"),
    "data-orphan": (WARNING, "a data file without a record"),
    "last-id": (ERROR, "an object's id is above the OST's last_id"),
    "last-used": (ERROR, "last_used of the MDT is below an object in use or above the OST's last_id"),
}


@dataclass(frozen=True)
class Problem:
    """One finding. `kind` is a key of KINDS; `subject` is what it is about and, with the kind, its identity."""

    kind: str
    subject: str
    detail: str
    severity: str
    where: tuple[Any, ...] = field(default=(), repr=False)  # the same for the repair: keys, FIDs, numbers

    def as_json(self) -> dict[str, str]:
        """The finding as JSON values."""
        return {"kind": self.kind, "subject": self.subject, "detail": self.detail, "severity": self.severity}


@dataclass
class Report:
    """What was read and what was found.

    `found` counts all of it by kind; the list is cut at `listed_max` errors, and as many warnings: those hide no error.
    """

    counts: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    passes: int = 1
    listed_max: int = PROBLEMS_MAX

    @property
    def clean(self) -> bool:
        """Nothing was found."""
        return not self.found

    @property
    def errors(self) -> list[Problem]:
        """The problems that are more than wasted space."""
        return [problem for problem in self.problems if problem.severity == ERROR]

    def add(self, kind: str, subject: str, detail: str = "", where: tuple[Any, ...] = ()) -> None:
        """Note a problem of `kind` about `subject`."""
        severity, meaning = KINDS[kind]
        self.found[kind] = self.found.get(kind, 0) + 1
        if sum(count for each, count in self.found.items() if KINDS[each][0] == severity) <= self.listed_max:
            self.problems.append(Problem(kind, subject, detail or meaning, severity, where))

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "clean": self.clean, "counts": self.counts, "found": self.found, "passes": self.passes,
            "problems": [problem.as_json() for problem in self.problems],
        }  # fmt: skip
