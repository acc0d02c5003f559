"""The judge: it accepts every history that a correct file system can make, and finds each kind of loss."""

from __future__ import annotations

import errno

import pytest

from lustrelite.sim.model import Model, Refused, Tree
from lustrelite.sim.oracle import Op, Oracle


class History:
    """Writes a history down in order."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self.life, self.transno = 1, 0
        self.oracle.mark = lambda: {"x-MDT0000": (self.life, self.transno)}

    def did(self, client: str, name: str, *args, result=None) -> None:
        op = self.oracle.begin(client, name, *args)
        self.transno += 1
        self.oracle.ok(op, result)

    def refused(self, client: str, name: str, *args, number: int) -> None:
        self.oracle.error(self.oracle.begin(client, name, *args), number)

    def hung(self, client: str, name: str, *args) -> Op:
        op = self.oracle.begin(client, name, *args)
        self.oracle.unknown(op)
        return op

    def crash(self, committed: int) -> None:
        self.oracle.target_died("x-MDT0000", self.life, self.transno, committed)
        self.life += 1

    def problems(self, tree: Tree) -> list[str]:
        return self.oracle.check(tree)


def tree_of(*acts) -> Tree:
    model = Model()
    for name, *args in acts:
        getattr(model, name)(*args)
    return model.tree()


def test_a_plain_history_has_one_end():
    h = History()
    h.did("a", "mkdir", "/d")
    h.did("a", "write", "/d/f", b"x")
    h.did("b", "read", "/d/f", result=b"x")
    h.refused("b", "mkdir", "/d", number=errno.EEXIST)
    h.did("b", "rename", "/d/f", "/d/g")
    h.did("a", "listdir", "/d", result=("g",))
    whole = tree_of(("mkdir", "/d"), ("write", "/d/g", b"x"))
    assert h.problems(whole) == []
    assert "missing" in h.problems({})[0]
    assert "content" in h.problems(tree_of(("mkdir", "/d"), ("write", "/d/g", b"y")))[0]
    assert "mode" in h.problems(tree_of(("mkdir", "/d"), ("write", "/d/g", b"x", 0o600)))[0]
    twice = tree_of(("mkdir", "/d"), ("write", "/d/g", b"x"), ("write", "/d/f", b"x"))
    assert "/d/f is there" in h.problems(twice)[0]
    alien = tree_of(("mkdir", "/d"), ("write", "/d/g", b"x"), ("mkdir", "/e"))
    assert "/e is there" in h.problems(alien)[0]


def test_a_wrong_answer_is_found():
    h = History()
    h.did("a", "write", "/f", b"x")
    h.did("b", "read", "/f", result=b"")
    assert "should have said b'x'" in h.problems(tree_of(("write", "/f", b"x")))[0]
    h = History()
    h.refused("a", "unlink", "/f", number=errno.EEXIST)
    assert "ENOENT" in h.problems({})[0]


def test_concurrent_operations_may_have_either_order():
    for first, last in ((b"1", b"2"), (b"2", b"1")):
        h = History()
        one = h.oracle.begin("a", "write", "/f", b"1")
        two = h.oracle.begin("b", "write", "/f", b"2")
        h.oracle.ok(one)
        h.oracle.ok(two)
        assert h.problems(tree_of(("write", "/f", first), ("write", "/f", last))) == []
    h = History()
    one = h.oracle.begin("a", "create", "/f")
    two = h.oracle.begin("b", "create", "/f")
    h.oracle.ok(one)
    h.oracle.ok(two)
    assert h.problems(tree_of(("create", "/f"))), "two exclusive creates cannot both succeed"


def test_an_unknown_operation_happens_once_or_never():
    for tree in ({}, tree_of(("mkdir", "/d"))):
        h = History()
        h.hung("a", "mkdir", "/d")
        assert h.problems(tree) == []
    h = History()
    h.hung("a", "mkdir", "/d")
    h.did("b", "exists", "/d", result=True)
    assert h.problems({}), "what was seen stays"
    assert h.problems(tree_of(("mkdir", "/d"))) == []
    h = History()
    h.did("a", "write", "/f", b"old")
    h.hung("a", "write", "/f", b"new")
    assert h.problems(tree_of(("write", "/f", b"nld"))) == [], "its data may be half written"
    assert h.problems({}), "but its name is there"


def test_only_clients_that_are_gone_may_lose_and_only_what_was_not_durable():
    def history() -> History:
        h = History()
        h.did("a", "mkdir", "/d")  # 1
        h.did("a", "mkdir", "/d/1")  # 2
        h.did("b", "mkdir", "/e")  # 3
        h.did("a", "mkdir", "/d/2")  # 4
        h.crash(committed=1)
        return h

    everything = tree_of(("mkdir", "/d"), ("mkdir", "/d/1"), ("mkdir", "/d/2"), ("mkdir", "/e"))
    lost = tree_of(("mkdir", "/d"), ("mkdir", "/e"))
    part = tree_of(("mkdir", "/d"), ("mkdir", "/d/1"), ("mkdir", "/e"))
    gap = tree_of(("mkdir", "/d"), ("mkdir", "/d/2"), ("mkdir", "/e"))
    h = history()
    assert h.problems(everything) == [] and h.problems(lost) and h.problems(part)
    h = history()
    h.oracle.client_gone("a", "killed")
    assert h.problems(everything) == [] and h.problems(lost) == [] and h.problems(part) == []
    assert h.problems(gap), "what is lost is a last part"
    assert h.problems(tree_of(("mkdir", "/d"))), "b is not gone"
    assert h.problems(tree_of(("mkdir", "/e"))), "the first was durable"


def test_a_client_that_caches_loses_its_data_with_its_life_but_not_its_names():
    for caching, killed, wrong in ((True, True, False), (True, False, True), (False, True, True)):
        h = History()
        if caching:
            h.oracle.caching["a"] = None
        h.did("a", "write", "/f", b"old")
        h.did("a", "write_at", "/f", 0, b"new")
        if killed:
            h.oracle.client_gone("a", "killed")
        assert bool(h.problems(tree_of(("write", "/f", b"old")))) == wrong
        assert h.problems({}), "the name is there"


def test_what_an_evicted_client_reads_from_its_cache_is_not_judged_here():
    for caching, wrong in ((True, False), (False, True)):
        h = History()
        if caching:
            h.oracle.caching["a"] = None
        h.did("b", "create", "/f")
        h.oracle.client_doubted("a", "x-MDT0000")
        h.did("b", "unlink", "/f")
        h.did("a", "exists", "/f", result=True)
        assert bool(h.problems({})) == wrong


def test_who_was_evicted_may_find_an_open_file_destroyed_before_he_knows_it():
    """Seed 9400012 of the recovery swarm."""
    for evicted_by, wrong in (("x-MDT0000", False), ("x-OST0000", True), ("", True)):
        h = History()
        h.did("a", "open", "/f", True, 1)
        h.did("a", "unlink", "/f")
        if evicted_by:
            h.oracle.client_doubted("a", evicted_by)
        h.refused("a", "pwrite", 1, 0, b"data", number=errno.ESTALE)
        assert bool(h.problems({})) == wrong


def test_areas_are_joined_by_operations_that_touch_two():
    h = History()
    h.did("a", "mkdir", "/d")
    h.did("a", "mkdir", "/e")
    h.did("a", "write", "/d/f", b"x")
    h.did("a", "rename", "/d/f", "/e/g")
    h.did("b", "listdir", "/", result=("d", "e"))
    h.did("a", "link", "/e/g", "/h")
    good = tree_of(("mkdir", "/d"), ("mkdir", "/e"), ("write", "/e/g", b"x"), ("link", "/e/g", "/h"))
    assert h.problems(good) == []
    assert good["/h"].nlink == 2


def test_an_open_file_lives_on_without_a_name():
    h = History()
    h.did("a", "open", "/f", True, 7)
    h.did("a", "pwrite", 7, 2, b"x")
    h.did("b", "unlink", "/f")
    h.did("a", "pread", 7, result=b"\0\0x")
    h.did("a", "close", 7)
    assert h.problems({}) == []


@pytest.mark.parametrize(
    ("acts", "refused", "number"),
    [
        ([], ("mkdir", "/a/b"), errno.ENOENT),
        ([("create", "/a")], ("mkdir", "/a/b"), errno.ENOTDIR),
        ([("mkdir", "/a"), ("create", "/a/b")], ("rmdir", "/a"), errno.ENOTEMPTY),
        ([("mkdir", "/a")], ("unlink", "/a"), errno.EISDIR),
        ([("create", "/a")], ("rmdir", "/a"), errno.ENOTDIR),
        ([("mkdir", "/a")], ("rename", "/a", "/a/b"), errno.EINVAL),
        ([("mkdir", "/a"), ("create", "/b")], ("rename", "/b", "/a"), errno.EISDIR),
        ([("mkdir", "/a"), ("create", "/b")], ("rename", "/a", "/b"), errno.ENOTDIR),
        ([("mkdir", "/a"), ("mkdir", "/b"), ("create", "/b/c")], ("rename", "/a", "/b"), errno.ENOTEMPTY),
        ([("mkdir", "/a")], ("link", "/a", "/b"), errno.EPERM),
        ([("create", "/a")], ("removexattr", "/a", "user.x"), errno.ENODATA),
        ([("create", "/a")], ("readlink", "/a"), errno.EINVAL),
    ],
)
def test_the_model_refuses_as_posix_does(acts, refused, number):
    model = Model()
    for name, *args in acts:
        getattr(model, name)(*args)
    before = model.tree()
    with pytest.raises(Refused) as raised:
        getattr(model, refused[0])(*refused[1:])
    assert raised.value.errno == number and model.tree() == before


def test_a_renamed_directory_takes_its_contents_along():
    tree = tree_of(
        ("mkdir", "/a"), ("mkdir", "/a/b"), ("write", "/a/b/c", b"x"), ("mkdir", "/e"), ("rename", "/a", "/e/f")
    )
    assert sorted(tree) == ["/e", "/e/f", "/e/f/b", "/e/f/b/c"] and tree["/e"].nlink == 3


def test_who_caches_speaks_of_what_was_lost_until_he_has_heard_of_it():
    """Its own rmdir is lost with the MDT; it goes on saying what follows from it.  Source: seed 951"""

    def history(caching: bool, when: str) -> History:
        h = History()
        if caching:
            h.oracle.caching["a"] = None
        h.did("a", "mkdir", "/d")
        h.did("a", "rmdir", "/d")
        h.crash(committed=1)
        if when == "before":
            h.refused("a", "create", "/d/f", 0o644, number=errno.ENOENT)
        h.oracle.client_gone("a", "evicted", "x-MDT0000")
        h.oracle.target_back("x-MDT0000")
        h.oracle.client_noticed("a")
        if when == "after":
            h.refused("a", "create", "/d/f", 0o644, number=errno.ENOENT)
        return h

    there = tree_of(("mkdir", "/d"))
    assert history(True, "before").problems(there) == []
    assert history(True, "after").problems(there) != []
    assert history(False, "before").problems(there) != [], "it has no cache: the new MDT has said so"
    h = history(True, "before")
    h.oracle.gone.clear()
    assert h.problems(there) != [], "it lives: its rmdir is replayed"


@pytest.mark.parametrize(
    "there, evicted, heard, accepted",
    [(False, True, False, True), (False, True, True, False), (False, False, False, False), (True, True, False, False)],
)
def test_who_does_not_know_that_the_file_he_made_is_lost_writes_to_it(there, evicted, heard, accepted):
    """Its objects take the data, and nothing names them. Data for a file that was there have to be in it.  Source: seed 10550260"""
    h = History()
    if there:
        h.did("b", "create", "/f", 0o644)
    h.did("a", "open", "/f", True, 1)
    h.crash(committed=1 if there else 0)
    if heard:
        h.oracle.client_noticed("a")
    h.did("a", "pwrite", 1, 0, b"x")
    if evicted:
        h.oracle.client_gone("a", "evicted", "x-MDT0000")
        h.oracle.client_noticed("a")
    assert (h.problems(tree_of(("create", "/f", 0o644)) if there else {}) == []) is accepted


@pytest.mark.parametrize("crashes", [True, False])
def test_what_had_no_answer_in_a_crash_may_have_been_seen_and_is_gone_for_a_while(crashes):
    """It was executed, others ran into it, and then it was not yet done again when one of them came anew. Seed 5433"""
    history = History()
    creating = history.oracle.begin("a", "create", "/d/p", 0o644)
    history.refused("b", "mkdir", "/d/p", 0o755, number=errno.EEXIST)
    if crashes:
        history.crash(history.transno)
    history.did("b", "mkdir", "/d/p", 0o755)
    history.oracle.error(creating, errno.EEXIST)
    tree = tree_of(("mkdir", "/d", 0o755), ("mkdir", "/d/p", 0o755))
    history.oracle.common = ("/d",)
    assert bool(history.problems({"/d/p": tree["/d/p"], "/d": tree["/d"]})) is not crashes


def test_an_access_time_is_the_one_that_was_set_or_that_of_a_later_read():
    begun = [("write", "/f", b"x"), ("utime", "/f", 5, 6)]
    untouched, read = tree_of(*begun), tree_of(*begun, ("read", "/f"))
    for reader, ends, accepted in (
        ("a", (), [read]), ("a", ("a",), [untouched, read]), ("", (), [untouched]),
    ):  # fmt: skip
        for tree in (untouched, read):
            h = History()
            for name, *args in begun:
                h.did("b", name, *args)
            if reader:
                h.did(reader, "read", "/f", result=b"x")
            for client in ends:
                h.oracle.client_gone(client, "killed")
            assert bool(h.problems(tree)) == (tree not in accepted), (reader, ends)


def test_what_is_read_through_an_open_file_is_told_when_it_is_closed():
    model = Model()
    model.write("/f", b"x")
    model.utime("/f", 5, 6)
    model.open("/f", False, 1)
    model.pread(1)
    assert model.stat("/f")[3:] == (5, None)
    model.utime("/f", 5, 7)
    model.close(1)
    assert model.stat("/f")[3:] == (5, 7)
    model.open("/f", False, 2)
    model.pread(2)
    model.close(2)
    assert model.stat("/f")[3:] == (5, 0)


@pytest.mark.parametrize(("caches", "made"), [(True, True), (True, False), (False, True)])
def test_an_author_who_is_gone_may_take_changes_of_attributes_along(caches, made):
    h = History()
    if caches:
        h.oracle.caching["a"] = None
    h.did("b", "create", "/f")
    h.did("b", "unlink", "/f")
    h.did("a" if made else "b", "open", "/f", True, 1)
    h.did("a", "chmod", "/f", 0o777)
    h.oracle.client_gone("a", "killed")
    assert bool(h.problems(tree_of(("create", "/f")))) != (caches and made)
