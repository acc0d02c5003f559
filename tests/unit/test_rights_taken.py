"""Which changes of attributes take a right from somebody (client/kept_attrs.py), against all users that there could be."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest

from lustrelite.client.kept_attrs import _takes_rights

IDS = (0, 1, 2)
GIDS = (1, 2)
MODES = [owner << 6 | group << 3 | other for owner, group, other in itertools.product((0, 4), repeat=3)]
USERS = [(uid, groups) for uid in (1, 2, 3) for count in range(3) for groups in itertools.combinations(GIDS, count)]


class Owned(NamedTuple):
    mode: int
    uid: int
    gid: int


def may_read(file: Owned, uid: int, groups: tuple[int, ...]) -> bool:
    if uid == file.uid:
        return bool(file.mode >> 6 & 4)
    if file.gid in groups:
        return bool(file.mode >> 3 & 4)
    return bool(file.mode & 4)


FILES = [Owned(*each) for each in itertools.product(MODES, IDS, GIDS)]


@pytest.mark.parametrize("before", FILES, ids=lambda file: f"{file.mode:03o}-{file.uid}-{file.gid}")
def test_nobody_loses_a_right_by_what_is_kept(before: Owned) -> None:
    for after in FILES:
        loses = [user for user in USERS if may_read(before, *user) and not may_read(after, *user)]
        assert not loses or _takes_rights(before, after), (before, after, loses)  # type: ignore[arg-type]


def test_what_tar_and_cp_do_is_kept() -> None:
    made = Owned(0o600, 0, 0)
    for after in (Owned(0o644, 0, 0), Owned(0o600, 1000, 1001), Owned(0o755, 1000, 1001)):
        assert not _takes_rights(made, after)  # type: ignore[arg-type]
    assert not _takes_rights(Owned(0o600, 7, 7), Owned(0o644, 7, 7))  # type: ignore[arg-type]
