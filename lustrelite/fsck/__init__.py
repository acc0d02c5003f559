"""fsck: does what the MDT says agree with itself and with the OSTs?

The same examination reads the stores of a stopped cluster (StoreReader) and those of a running one through IndexRead
(RpcReader). It streams every table once, in key order, and joins them by merging: what stays in memory is a 64-bit
print of every name (about 70 bytes in a set), 28 bytes for every object in a layout, and the directories: some 20 us
and 100 to 150 bytes a file, a million files in under half a minute.

A running system changes while it is read, so `check_running` reads again what looked wrong: a problem counts only if
it is found in every one of three readings with a pause between them. A stopped one must be clean at once.

The repair (repair.py) makes its changes in memory over the stores, examines those again, and writes only then.

Not checked here: the bytes of the files (nobody else knows them), locks, and what only a client knows.
Source of the idea: e2fsck, LFSCK (namespace and layout); the kinds below are its inconsistency types in our words.
"""

from __future__ import annotations

from lustrelite.fsck.examine import check, check_running, examine
from lustrelite.fsck.readers import Reader, RpcReader, StoreReader
from lustrelite.fsck.report import ERROR, KINDS, PROBLEMS_MAX, WARNING, Problem, Report

__all__ = [
    "ERROR", "KINDS", "PROBLEMS_MAX", "WARNING", "Problem", "Reader", "Report", "RpcReader", "StoreReader", "check",
    "check_running", "examine",
]  # fmt: skip
