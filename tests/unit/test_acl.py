"""Access control lists: what is one, whom it lets in, and what chmod and create make of it.

Source of the expectations: acl(5), and what ext4 answers.
"""

from __future__ import annotations

import errno
import stat

import pytest

from lustrelite import acl
from lustrelite.acl import GROUP, GROUP_OBJ, MASK, NO_ID, OTHER, USER, USER_OBJ, Acl, Entry
from lustrelite.errors import OpError

HEAD = b"\2\0\0\0"


def full(owner: int = 6, user: int = 4, group: int = 4, named: int = 6, mask: int = 6, other: int = 0) -> Acl:
    return (
        Entry(USER_OBJ, owner), Entry(USER, user, 1001), Entry(GROUP_OBJ, group), Entry(GROUP, named, 2000),
        Entry(MASK, mask), Entry(OTHER, other),
    )  # fmt: skip


def test_a_list_is_the_bytes_that_linux_writes() -> None:
    made = acl.pack((Entry(USER_OBJ, 6), Entry(USER, 4, 1001), Entry(GROUP_OBJ, 4), Entry(MASK, 4), Entry(OTHER, 0)))
    # setfacl -m u:1001:r; getfattr -e hex -n system.posix_acl_access
    assert made.hex() == "0200000001000600ffffffff02000400e903000004000400ffffffff10000400ffffffff20000000ffffffff"
    assert acl.pack(acl.parse(made)) == made
    assert acl.parse(b"") == acl.parse(HEAD) == () and acl.pack(()) == b""


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (errno.EINVAL, HEAD[:3]),
        (errno.EINVAL, HEAD + b"x" * 7),
        (errno.ENOTSUP, b"\1\0\0\0"),
        (errno.EINVAL, acl.pack((Entry(USER_OBJ, 6),))),
        (errno.EINVAL, acl.pack((Entry(USER_OBJ, 6), Entry(GROUP_OBJ, 6)))),
        (errno.EINVAL, acl.pack((Entry(GROUP_OBJ, 6), Entry(USER_OBJ, 6), Entry(OTHER, 6)))),
        (errno.EINVAL, acl.pack((Entry(USER_OBJ, 8), Entry(GROUP_OBJ, 6), Entry(OTHER, 6)))),
        (errno.EINVAL, acl.pack((Entry(USER_OBJ, 7), Entry(USER, 7, 5), Entry(GROUP_OBJ, 6), Entry(OTHER, 6)))),
        (errno.EINVAL, acl.pack((Entry(USER_OBJ, 7), Entry(USER, 7, NO_ID), Entry(GROUP_OBJ, 6), Entry(MASK, 6), Entry(OTHER, 6)))),
        (errno.EINVAL, acl.pack((*full(), Entry(OTHER, 6)))),
        (errno.EINVAL, acl.pack((Entry(64, 6),))),
        (errno.ENOSPC, acl.pack((Entry(USER_OBJ, 6),) + (Entry(USER, 6, 5),) * 600)),
    ],
)
def test_what_is_no_list(number: int, data: bytes) -> None:
    with pytest.raises(OpError) as caught:
        acl.parse(data)
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("who", "want", "allowed", "change"),
    [
        ((1000, 7), 6, True, {}),  # the owner: no mask
        ((1000, 7), 6, True, {"mask": 0}),
        ((1000, 2000), 1, False, {}),  # nor his groups
        ((1001, 7), 4, True, {}),  # a named user
        ((1001, 7), 2, False, {}),
        ((1001, 2000), 2, False, {}),  # his groups do not help him
        ((1001, 7), 4, False, {"mask": 2}),
        ((1002, 100), 4, True, {}),  # the group
        ((1002, 100), 2, False, {}),
        ((1002, 7, 2000), 6, True, {}),  # a named group
        ((1002, 100, 2000), 6, True, {}),  # one of his groups allows all of it
        ((1002, 100, 2000), 2, False, {"mask": 4}),
        ((1002, 100, 2000), 7, False, {"mask": 7}),
        ((1002, 7), 4, False, {}),  # others
        ((1002, 7), 4, True, {"other": 4, "mask": 0}),
        ((1002, 7, 2000), 4, False, {"other": 7, "named": 0, "group": 0}),  # who is in a group is not others
    ],
)
def test_whom_it_lets_in(who: tuple[int, ...], want: int, allowed: bool, change: dict[str, int]) -> None:
    assert acl.permits(acl.pack(full(**change)), 1000, 100, who, want) is allowed


def test_mode_and_list_say_the_same() -> None:
    plain = (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5), Entry(OTHER, 1))
    assert acl.mode_of(plain, stat.S_IFREG | 0o4000) == (stat.S_IFREG | 0o4751, True)
    assert acl.mode_of(full(mask=2), 0o100777) == (0o100620, False)
    changed = acl.parse(acl.with_mode(acl.pack(full()), 0o100531))
    assert changed == full(owner=5, mask=3, other=1)
    assert acl.parse(acl.with_mode(acl.pack(plain), 0o640)) == (Entry(USER_OBJ, 6), Entry(GROUP_OBJ, 4), Entry(OTHER, 0))


def test_what_is_inherited() -> None:
    default = acl.pack(full(owner=7, user=7, group=5, named=7, mask=7, other=5))
    mode, access, below = acl.inherited(default, stat.S_IFREG | 0o640)
    assert mode == stat.S_IFREG | 0o640 and below == b""
    assert acl.parse(access) == full(owner=6, user=7, group=5, named=7, mask=4, other=0)
    mode, access, below = acl.inherited(default, stat.S_IFDIR | 0o777)
    assert mode == stat.S_IFDIR | 0o775 and access == below == default
    plain = acl.pack((Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 5), Entry(OTHER, 0)))
    assert acl.inherited(plain, stat.S_IFREG | 0o666) == (stat.S_IFREG | 0o640, b"", b"")
