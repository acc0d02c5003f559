"""What a client knows, and when it no longer does: names, attributes, missing names, listings, sequences of stats."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from lustrelite.client.attr_cache import ABSENT_MAX, STAT, AttrCache
from lustrelite.errors import OpError
from lustrelite.ids import NO_FID, ROOT_FID, Fid, make_fid
from lustrelite.ldlm.client_lock import ClientLock
from lustrelite.ldlm.lru import Holding
from lustrelite.wire.ldlm import (
    BITS_ALL,
    IBITS,
    LAYOUT,
    LOOKUP,
    OPEN,
    PERM,
    PR,
    REPLACE_EACH,
    UPDATE,
    XATTR,
    Ride,
    Want,
)
from lustrelite.wire.locks import Ask
from lustrelite.wire.mdt import DISP_OPEN_CREATE, Attr, Dirent, DirPage, Layout, OpenReply, RenameReply
from lustrelite.wire.message import ROOT_CRED

ALICE = (1000, 1000)
DIRECTORY = stat.S_IFDIR | 0o755


class FakeLocks:
    """A lock cache whose server is the test."""

    def __init__(self) -> None:
        self.drop: Any = None
        self.lease_valid = True
        self.held: dict[int, ClientLock] = {}
        self.last = 0
        self.wants: list[Want] = []

    def ride(
        self, fid: bytes, bits: int, mode: int = PR, try_bits: int = 0, cancels: tuple[int, ...] = (), *, flags: int = 0,
        count: int = 1, converts: tuple[tuple[int, int], ...] = (),
    ) -> Ride:  # fmt: skip
        want = Want(self.last + 1, IBITS, fid, mode, flags, bits, try_bits, 0, 0, 0, 0)
        self.last += count
        self.wants.append(want)
        return Ride(cancels, want, converts)

    def grant(self, handle: int, fid: Fid, bits: int) -> ClientLock:
        lock = ClientLock(handle, IBITS, fid, PR, bits=bits)
        lock.holding, lock.ready = Holding.GRANTED, True
        self.held[handle] = lock
        return lock

    def ridden(self, ride: Ride) -> ClientLock | None:
        return self.held.get(ride.want.handle) if ride.want is not None else None

    def ridden_each(self, ride: Ride, count: int) -> list[ClientLock]:
        assert ride.want is not None
        return [self.held[n] for n in range(ride.want.handle, ride.want.handle + count) if n in self.held]

    def take_back(self, fid: Fid, bits: int, *, lost: bool = False) -> None:
        """The server asks for `bits`; the locks go as far as they are wanted."""
        for lock in [lock for lock in self.held.values() if lock.resource == fid and lock.bits & bits]:
            lock.asked = None if lost else Ask(lock.handle, 0, 0, bits, 0, 0)
            self.drop(lock, lost)
            lock.bits &= ~(BITS_ALL if lost else bits)
            lock.asked = None
            if not lock.bits:
                del self.held[lock.handle]

    def cancels_for(self, fid: bytes, bits: int) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
        handles = tuple(lock.handle for lock in self.held.values() if lock.resource == fid and lock.bits & bits)
        self.take_back(Fid(fid), bits)
        return handles, ()


class Bench:
    """A cache, and answers of an MDT."""

    def __init__(self, **options: Any) -> None:
        self.locks = FakeLocks()
        self.cache = AttrCache(self.locks, **options)
        self._oid = 0
        self.learn(ROOT_FID, mode=DIRECTORY)

    def fid(self) -> Fid:
        self._oid += 1
        return make_fid(0x200000400, self._oid)

    def attr(self, fid: Fid, mode: int = stat.S_IFREG | 0o644, **fields: Any) -> Attr:
        return Attr(fid, mode, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, None, NO_FID)._replace(**fields)

    def learn(self, fid: Fid, bits: int = STAT, **fields: Any) -> None:
        """The answer to a Getattr, with a lock."""
        question = self.cache.question(fid, STAT)
        if question.ride is not None and question.ride.want is not None and bits:
            self.locks.grant(question.ride.want.handle, fid, bits)
        self.cache.found(question, self.attr(fid, **fields))

    def enter(self, directory: Fid, name: bytes, fid: Fid, bits: int = STAT, **fields: Any) -> None:
        """The answer to a Lookup, with a lock."""
        question = self.cache.question_name(directory, name, STAT)
        if question.ride is not None and question.ride.want is not None and bits:
            self.locks.grant(question.ride.want.handle, fid, bits)
        self.cache.found(question, self.attr(fid, **fields))

    def miss(self, parent: Fid, name: bytes, bits: int = UPDATE) -> None:
        """The answer to a Lookup of a name that is not there."""
        question = self.cache.question_name(parent, name, LOOKUP)
        assert question.ride is not None and question.ride.want is not None
        if bits:
            self.locks.grant(question.ride.want.handle, parent, bits)
        self.cache.found_nothing(question)

    def list(self, fid: Fid, names: list[bytes], *, cookie: int = 0, end: bool = True, grant: bool = True) -> None:
        """The answer to a Readdir without attributes; the cookies count up."""
        question = self.cache.question_page(fid, 0)
        if grant and question.ride is not None and question.ride.want is not None:
            self.locks.grant(question.ride.want.handle, fid, UPDATE)
        entries = tuple(Dirent(cookie + i, name, self.fid(), stat.S_IFREG, None) for i, name in enumerate(names, 1))
        self.cache.found_page(question, fid, cookie, DirPage(entries, end))

    def look(self, parent: Fid, name: bytes, need: int = LOOKUP, cred: Any = ROOT_CRED) -> Fid | None:
        known = self.cache.look(parent, name, cred, need)
        return known.fid if known is not None else None

    def walk(self, *names: bytes, cred: Any = ROOT_CRED) -> Fid | None:
        known = self.cache.walk(names, cred)
        return known.fid if known is not None else None


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    check(made.cache)
    for fid in list(made.cache.files):
        made.locks.take_back(fid, BITS_ALL, lost=True)
    assert list(made.cache.files) == [ROOT_FID] and not made.cache.listings.entries and not made.cache.listings._directories


def check(cache: AttrCache) -> None:
    """The graph agrees with the locks."""
    entries = 0
    for fid, known in cache.files.items():
        assert known.fid == fid and (known.locks or known.names or known is cache.root)
        bits = 0
        for lock in known.locks:
            assert lock.data is known
            bits |= lock.bits
        assert known.bits == bits and not known.fresh & ~bits
        assert bits & LOOKUP or not known.places
        assert bits & UPDATE or (known.absent is None and known.listing is None)
        for directory, name in known.places:
            assert directory.names[name] is known and cache.files[directory.fid] is directory
        for name, child in known.names.items():
            assert (known, name) in child.places and cache.files[child.fid] is child
        entries += len(known.listing.entries) + len(known.listing.added) if known.listing is not None else 0
    assert entries == cache.listings.entries <= cache.listings.entries_max


def refused(bench: Bench, *args: Any, **kwargs: Any) -> int:
    with pytest.raises(OpError) as caught:
        bench.look(*args, **kwargs)
    return caught.value.errno


# names ----------------------------------------------------------------------------------------------------------


def test_a_path_is_walked_through_known_names(bench: Bench) -> None:
    d, f = bench.fid(), bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=DIRECTORY)
    assert bench.walk() == ROOT_FID and bench.walk(b"d") == d and bench.walk(b"d", b"f") is None
    bench.enter(d, b"f", f)
    assert bench.walk(b"d", b"f") == f and bench.walk(b"d", b"f", b"x") is None
    assert bench.look(d, b"f") == f and bench.look(d, b"g") is None and bench.look(f, b"x") is None
    bench.locks.lease_valid = False
    assert bench.walk(b"d", b"f") is None and bench.look(d, b"f") is None and bench.cache.find(f, STAT) is None


def test_a_name_goes_with_the_lookup_bit_of_its_file(bench: Bench) -> None:
    f = bench.fid()
    bench.enter(ROOT_FID, b"f", f)
    bench.enter(ROOT_FID, b"link", f)
    bench.locks.take_back(f, UPDATE)
    assert bench.look(ROOT_FID, b"f") == bench.look(ROOT_FID, b"link") == f and bench.look(ROOT_FID, b"f", STAT) is None
    bench.locks.take_back(f, LOOKUP)
    assert bench.walk(b"f") is None and bench.look(ROOT_FID, b"link") is None
    bench.learn(f)  # by its FID: that says nothing of its names
    assert bench.cache.find(f, STAT) and bench.walk(b"f") is None


def test_names_in_a_directory_outlive_its_own_locks(bench: Bench) -> None:
    d, f = bench.fid(), bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=DIRECTORY)
    bench.enter(d, b"f", f)
    bench.locks.take_back(d, BITS_ALL)
    assert bench.walk(b"d") is None and bench.look(d, b"f") == f
    bench.enter(ROOT_FID, b"elsewhere", d, mode=DIRECTORY)
    assert bench.walk(b"elsewhere", b"f") == f


def test_an_answer_without_a_lock_is_not_kept(bench: Bench) -> None:
    f = bench.fid()
    bench.enter(ROOT_FID, b"f", f, bits=0)
    bench.learn(f, bits=0)
    assert f not in bench.cache.files
    bench.enter(ROOT_FID, b"f", f, bits=UPDATE)  # attributes, but not the name
    assert bench.walk(b"f") is None and bench.cache.holds(f, UPDATE) and not bench.cache.holds(f, LOOKUP)


def test_a_lock_on_another_file_than_the_answers_counts_for_nothing(bench: Bench) -> None:
    f, g = bench.fid(), bench.fid()
    question = bench.cache.question_name(ROOT_FID, b"f", STAT)
    assert question.ride is not None and question.ride.want is not None
    bench.locks.grant(question.ride.want.handle, g, STAT)  # a resend found another file
    bench.cache.found(question, bench.attr(f))
    assert bench.walk(b"f") is None and f not in bench.cache.files


def test_dots_lead_to_the_directory_and_its_parent(bench: Bench) -> None:
    d = bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=DIRECTORY, parent=ROOT_FID)
    assert bench.look(d, b".") == d and bench.look(d, b"..") == ROOT_FID
    bench.locks.take_back(d, LOOKUP)  # it is being moved
    assert bench.look(d, b"..") is None and bench.look(d, b".", LOOKUP) is None


# attributes -----------------------------------------------------------------------------------------------------


def test_parts_of_the_attributes_go_with_their_bits(bench: Bench) -> None:
    f = bench.fid()
    bench.enter(ROOT_FID, b"f", f)
    for bits, left in ((UPDATE, LOOKUP | PERM), (PERM, LOOKUP), (LOOKUP, 0)):
        assert bench.cache.holds(f, bits)
        bench.locks.take_back(f, bits)
        assert not bench.cache.holds(f, bits) and bench.cache.holds(f, left) == bool(left)


def test_only_what_is_missing_is_asked_for(bench: Bench) -> None:
    f = bench.fid()
    bench.enter(ROOT_FID, b"f", f)
    assert bench.locks.wants[-1][5:7] == (LOOKUP | PERM, bench.locks.wants[-1].try_bits)
    assert bench.locks.wants[-1].try_bits & UPDATE
    assert bench.cache.question(f, STAT).ride is None
    bench.locks.take_back(f, UPDATE)
    bench.cache.question_name(ROOT_FID, b"f", STAT)
    assert bench.locks.wants[-1].bits == UPDATE
    assert bench.cache.question_name(ROOT_FID, b"f", LOOKUP).ride is None
    bench.cache.question_name(ROOT_FID, b"g", LOOKUP)
    assert bench.locks.wants[-1].bits == LOOKUP | PERM and not bench.locks.wants[-1].try_bits & UPDATE
    bench.cache.question_name(ROOT_FID, b"g", LOOKUP | LAYOUT)
    assert bench.locks.wants[-1].bits == LOOKUP | PERM | LAYOUT


def test_the_old_copy_of_what_is_held_is_kept(bench: Bench) -> None:
    """A late answer to an older question is no news; what it says of the rest is."""
    f = bench.fid()
    question = bench.cache.question(f, STAT)
    assert question.ride is not None and question.ride.want is not None
    bench.learn(f, UPDATE, mtime=7, mode=stat.S_IFREG | 0o600)
    bench.locks.grant(question.ride.want.handle, f, PERM | LOOKUP)
    bench.cache.found(question, bench.attr(f, mtime=6, mode=stat.S_IFREG | 0o640, uid=5))
    known = bench.cache.find(f, STAT)
    assert known is not None and (known.attr.mtime, known.attr.mode & 0o777, known.attr.uid) == (7, 0o640, 5)
    bench.locks.take_back(f, UPDATE)
    bench.learn(f, UPDATE, mtime=9, uid=6, mode=stat.S_IFREG)
    assert (known.attr.mtime, known.attr.mode & 0o777, known.attr.uid) == (9, 0o640, 5)


def test_an_answer_is_kept_under_a_lock_that_was_held_all_the_time(bench: Bench) -> None:
    f = bench.fid()
    bench.miss(ROOT_FID, b"x", bits=0)
    lock = bench.locks.grant(99, f, STAT)
    bench.cache._hold(f, lock)  # of it nothing is known yet
    held, lost = bench.cache.question(f, STAT), bench.cache.question(f, STAT)
    assert held.ride is None
    bench.cache.found(held, bench.attr(f))
    assert bench.cache.find(f, STAT)
    bench.locks.take_back(f, UPDATE)
    bench.cache.found(lost, bench.attr(f, mtime=3))
    assert not bench.cache.holds(f, UPDATE), "somebody has changed it between question and answer"


def test_what_is_about_to_be_changed_is_forgotten_at_once(bench: Bench) -> None:
    d, f = bench.fid(), bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=DIRECTORY)
    bench.enter(d, b"f", f)
    gone = bench.cache.give_up((d, UPDATE), (None, UPDATE), (bench.fid(), BITS_ALL), (f, BITS_ALL))
    assert gone is not None and len(gone.cancels) == 2 and gone.want is None
    assert bench.walk(b"d") == d and bench.walk(b"d", b"f") is None and not bench.cache.holds(d, UPDATE)
    assert bench.cache.give_up((d, UPDATE)) is None


def test_the_target_of_a_symlink_is_known_as_long_as_anything_of_it(bench: Bench) -> None:
    f = bench.fid()
    bench.cache.found_target(f, b"unknown")
    assert bench.cache.target_of(f) is None
    bench.enter(ROOT_FID, b"l", f, mode=stat.S_IFLNK | 0o777)
    bench.cache.found_target(f, b"target")
    assert bench.cache.target_of(f) == b"target"
    bench.locks.take_back(f, UPDATE)
    assert bench.cache.target_of(f) == b"target"
    bench.locks.take_back(f, BITS_ALL)
    assert bench.cache.target_of(f) is None


# permissions ----------------------------------------------------------------------------------------------------


def test_others_than_root_walk_only_where_they_may(bench: Bench) -> None:
    d, f = bench.fid(), bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=stat.S_IFDIR | 0o750)
    bench.enter(d, b"f", f)
    assert bench.walk(b"d", cred=ALICE) == d
    assert bench.walk(b"d", b"f", cred=ALICE) is None and refused(bench, d, b"f", cred=ALICE) == errno.EACCES
    assert bench.walk(b"d", b"f", cred=(1000, 0)) == f == bench.look(d, b"f", cred=(1000, 0))
    bench.locks.take_back(d, PERM)  # somebody changes the mode
    assert bench.walk(b"d", b"f", cred=(1000, 0)) is None and bench.look(d, b"f", cred=ALICE) is None
    assert bench.walk(b"d", b"f") == f, "root needs no permission"


def test_a_listing_is_for_those_who_may_read_it(bench: Bench) -> None:
    d = bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=stat.S_IFDIR | 0o711)
    bench.list(d, [b"a"])
    assert bench.cache.page(d, 0, 10, ROOT_CRED) is not None and bench.cache.page(d, 0, 10, ALICE) is None


# missing names --------------------------------------------------------------------------------------------------


def test_a_missing_name_is_known_under_the_update_bit_of_its_directory(bench: Bench) -> None:
    bench.locks.take_back(ROOT_FID, BITS_ALL)
    bench.miss(ROOT_FID, b"a", bits=0)
    assert bench.look(ROOT_FID, b"a") is None
    bench.miss(ROOT_FID, b"a")
    assert refused(bench, ROOT_FID, b"a") == errno.ENOENT and bench.walk(b"a") is None
    bench.miss(ROOT_FID, b"b", bits=0)  # UPDATE is held already: it needs no other lock
    assert refused(bench, ROOT_FID, b"b") == errno.ENOENT
    assert bench.look(ROOT_FID, b"c") is None
    bench.locks.take_back(ROOT_FID, UPDATE)
    assert bench.look(ROOT_FID, b"a") is None and bench.look(ROOT_FID, b"b") is None


def test_a_miss_counts_only_if_the_directory_did_not_change_meanwhile(bench: Bench) -> None:
    question = bench.cache.question_name(ROOT_FID, b"a", LOOKUP)
    bench.locks.take_back(ROOT_FID, UPDATE)
    bench.learn(ROOT_FID, UPDATE, mode=DIRECTORY)
    bench.cache.found_nothing(question)
    assert bench.look(ROOT_FID, b"a") is None


@pytest.mark.parametrize("goes", [True, False])
def test_attributes_count_only_if_they_were_locked_all_the_time(bench: Bench, goes: bool) -> None:
    """Others may have changed them since, also if there is a lock again when the answer comes."""
    d = bench.fid()
    bench.learn(d, mode=DIRECTORY)
    bench.cache.own.doubt_attr(d)  # asked for again under the same lock
    late = bench.cache.question(d, UPDATE)
    if goes:
        bench.locks.take_back(d, UPDATE)
        bench.miss(d, b"a")  # the new lock comes without them
    bench.cache.found(late, bench.attr(d, DIRECTORY))
    assert (bench.cache.find(d, UPDATE) is None) == goes


@pytest.mark.parametrize("goes", [True, False])
def test_extended_attributes_count_only_if_they_were_locked_all_the_time(bench: Bench, goes: bool) -> None:
    fid = bench.fid()
    bench.learn(fid, STAT | XATTR)
    late = bench.cache.question(fid, XATTR)
    if goes:
        bench.locks.take_back(fid, XATTR)
        ride = bench.cache.question(fid, XATTR).ride
        assert ride is not None and ride.want is not None
        again = bench.locks.grant(ride.want.handle, fid, XATTR)
        bench.cache._hold(fid, again)
    bench.cache.found_xattrs(late, fid, {b"user.a": b"old"})
    assert bench.cache.files[fid].xattrs == (None if goes else {b"user.a": b"old"})


def test_nothing_is_known_when_the_lease_is_over(bench: Bench) -> None:
    d, link = bench.fid(), bench.fid()
    bench.list(d, [b"a", b"b"])
    bench.learn(link, mode=stat.S_IFLNK | 0o777)
    bench.cache.found_target(link, b"target")
    for valid in (True, False):
        bench.locks.lease_valid = valid
        known = bench.cache.page(d, 0, 2, ROOT_CRED), bench.cache.target_of(link), bench.cache.find(link, STAT)
        assert [one is not None for one in known] == [valid] * 3


def test_missing_names_are_bounded(bench: Bench) -> None:
    for number in range(ABSENT_MAX + 3):
        bench.miss(ROOT_FID, b"%d" % number)
    assert bench.cache.root.absent is not None and len(bench.cache.root.absent) == ABSENT_MAX
    assert bench.look(ROOT_FID, b"2") is None and refused(bench, ROOT_FID, b"3") == errno.ENOENT


# listings -------------------------------------------------------------------------------------------------------


def names(page: DirPage | None) -> list[bytes] | None:
    return None if page is None else [entry.name for entry in page.entries]


def test_a_listing_is_answered_as_far_as_it_was_read(bench: Bench) -> None:
    d = bench.fid()
    bench.list(d, [b"a", b"b", b"c"], end=False)
    page = bench.cache.page(d, 0, 2, ROOT_CRED)
    assert page is not None and names(page) == [b"a", b"b"] and not page.end
    assert names(bench.cache.page(d, 2, 10, ROOT_CRED)) == [b"c"]
    assert bench.cache.page(d, 3, 10, ROOT_CRED) is None, "nobody knows what comes then"
    assert bench.look(d, b"x") is None
    bench.list(d, [b"late"], cookie=7)
    bench.list(d, [b"d"], cookie=3)
    page = bench.cache.page(d, 2, 10, ROOT_CRED)
    assert page is not None and names(page) == [b"c", b"d"] and page.end
    assert bench.cache.page(d, 4, 10, ROOT_CRED) == DirPage((), True)
    assert refused(bench, d, b"x") == errno.ENOENT, "a whole listing knows what is missing"
    assert bench.look(d, b"a") is None, "but not what its entries are"
    bench.locks.take_back(d, UPDATE)
    assert bench.cache.page(d, 0, 2, ROOT_CRED) is None and bench.look(d, b"x") is None


def test_a_later_page_counts_only_under_the_lock_of_the_first(bench: Bench) -> None:
    d = bench.fid()
    bench.list(d, [b"a"], end=False)
    question = bench.cache.question_page(d, 0)
    assert question.ride is None
    bench.locks.take_back(d, UPDATE)
    bench.list(d, [b"a"], end=False)
    bench.cache.found_page(question, d, 1, DirPage((Dirent(2, b"b", bench.fid(), stat.S_IFREG, None),), True))
    assert names(bench.cache.page(d, 0, 10, ROOT_CRED)) == [b"a"]
    bench.locks.take_back(d, UPDATE)
    bench.list(d, [b"a"], grant=False)
    assert bench.cache.page(d, 0, 10, ROOT_CRED) is None


def test_names_of_one_hash_stay_together(bench: Bench) -> None:
    d = bench.fid()
    question = bench.cache.question_page(d, 0)
    assert question.ride is not None and question.ride.want is not None
    bench.locks.grant(question.ride.want.handle, d, UPDATE)
    entries = [Dirent(cookie, b"%d" % i, bench.fid(), 0, None) for i, cookie in enumerate((5, 6, 6, 7))]
    bench.cache.found_page(question, d, 0, DirPage(tuple(entries), True))
    page = bench.cache.page(d, 0, 2, ROOT_CRED)
    assert page is not None and names(page) == [b"0", b"1", b"2"]
    assert names(bench.cache.page(d, 6, 2, ROOT_CRED)) == [b"3"]


def test_listings_are_bounded_the_one_longest_unread_goes() -> None:
    bench = Bench(entries_max=5)
    a, b, c = bench.fid(), bench.fid(), bench.fid()
    bench.list(a, [b"1", b"2"])
    bench.list(b, [b"1", b"2"])
    assert bench.cache.page(a, 0, 9, ROOT_CRED)
    bench.list(c, [b"1", b"2"])
    assert bench.cache.page(b, 0, 9, ROOT_CRED) is None and bench.cache.page(a, 0, 9, ROOT_CRED) and bench.cache.listings.entries == 4
    bench.list(c, [b"x"])  # whole already: no news
    assert bench.cache.listings.entries == 4
    check(bench.cache)
    bench.list(bench.fid(), [b"%d" % i for i in range(6)])
    assert bench.cache.listings.entries == 0
    check(bench.cache)


def test_a_page_with_attributes_brings_a_lock_for_each(bench: Bench) -> None:
    d = bench.fid()
    question = bench.cache.question_page(d, 10)
    assert question.ride is not None and question.ride.want is not None
    want = question.ride.want
    assert want.flags == REPLACE_EACH and want.resource == d and want.bits == UPDATE and bench.locks.last == want.handle + 10
    fids = [bench.fid() for _ in range(4)]
    bench.locks.grant(want.handle, d, UPDATE | PERM)
    bench.locks.grant(want.handle + 1, fids[0], STAT)
    bench.locks.grant(want.handle + 2, fids[1], PERM | UPDATE)  # without LOOKUP: no name
    bench.locks.grant(want.handle + 4, fids[3], STAT)
    attrs = [bench.attr(fid) for fid in fids]
    entries = [Dirent(i, b"%d" % i, fid, stat.S_IFREG, attr) for i, (fid, attr) in enumerate(zip(fids, attrs, strict=True), 1)]
    entries[3] = entries[3]._replace(attr=None)
    bench.cache.found_page(question, d, 0, DirPage(tuple(entries), True))
    assert bench.look(d, b"1", STAT) == fids[0] and bench.look(d, b"2") is None and bench.look(d, b"3") is None
    assert bench.cache.holds(fids[1], UPDATE) and fids[2] not in bench.cache.files and fids[3] not in bench.cache.files
    page = bench.cache.page(d, 0, 9, ROOT_CRED)
    assert page is not None and len(page.entries) == 4 and not any(entry.attr for entry in page.entries)
    again = bench.cache.question_page(d, 3)
    assert again.ride is not None and again.ride.want is not None and again.ride.want.resource == b"", "the directory is held"


# statahead ------------------------------------------------------------------------------------------------------


def ahead(bench: Bench, directory: Fid, name: bytes) -> Any:
    return bench.cache.listings.ahead(bench.cache.files.get(directory), name)


def test_files_asked_for_in_the_order_of_a_listing_are_fetched_ahead() -> None:
    bench = Bench(ahead_max=10)
    d = bench.fid()
    order = [b"%02d" % i for i in range(30)]
    bench.list(d, order)
    assert ahead(bench, ROOT_FID, b"00") is None and ahead(bench, d, b"00") is None
    assert ahead(bench, d, b"01") is None
    found = ahead(bench, d, b"03")
    assert found is not None and found[1:] == (2, 10), "from cookie 2 on: with 02, which somebody beside us will ask for"
    for name in (b"02", b"07", b"11"):
        within = ahead(bench, d, name)
        assert within is not None and within[2] == 0 and within[0] is found[0], "it is being fetched"
    found = ahead(bench, d, b"13")
    assert found is not None and found[1:] == (12, 10)
    found = ahead(bench, d, b"22")
    assert found is not None and found[1:] == (22, 8)
    assert ahead(bench, d, b"00") is None and ahead(bench, d, b"01") is None, "once more from the start"
    assert ahead(bench, d, b"20") is None, "not the next"
    assert ahead(bench, d, b"02") is None, "a sequence begins anew"
    off = Bench(ahead_max=0)
    off.list(d, order)
    assert all(ahead(off, d, name) is None for name in order)


# bounded memory -------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_files_whose_locks_went(bench: Bench) -> None:
    d = bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=DIRECTORY)
    fids = [bench.fid() for _ in range(100)]
    for number, fid in enumerate(fids):
        bench.enter(d, b"%d" % number, fid)
        bench.enter(d, b"link%d" % number, fid)
    assert len(bench.cache.files) == 102
    for fid in fids:
        bench.locks.take_back(fid, BITS_ALL, lost=True)
    assert len(bench.cache.files) == 2 and not bench.cache.files[d].names
    bench.locks.take_back(d, BITS_ALL)
    assert list(bench.cache.files) == [ROOT_FID] and not bench.cache.root.names


# own changes ----------------------------------------------------------------------------------------------------------


def making(bench: Bench, parent: Fid, name: bytes, time: int, mode: int = stat.S_IFREG | 0o644) -> tuple[Any, Fid]:
    """A create is sent; what is to be done when its answer comes, and the file that it makes."""
    question = bench.cache.question_name(parent, name, STAT | OPEN)
    ended = bench.cache.own.making(question, time, directory=stat.S_ISDIR(mode))
    fid = bench.fid()

    def answered(bits: int = STAT | OPEN, transno: int = 9) -> None:
        assert question.ride is not None and question.ride.want is not None
        if bits:
            bench.locks.grant(question.ride.want.handle, fid, bits)
        ended(bench.attr(fid, mode), transno)

    return answered, fid


def test_who_makes_a_directory_knows_what_is_in_it(bench: Bench) -> None:
    answered, d = making(bench, ROOT_FID, b"d", 50, DIRECTORY)
    answered()
    assert bench.look(ROOT_FID, b"d") == d and refused(bench, d, b"f") == errno.ENOENT
    root = bench.cache.find(ROOT_FID, STAT)
    assert root is not None and (root.attr.mtime, root.attr.ctime, root.attr.nlink) == (50, 50, 2)
    answered, f = making(bench, d, b"f", 60)
    assert bench.look(d, b"f") is None, "nobody can say, it is being made"
    assert bench.cache.find(d, STAT) is None and bench.cache.find(d, PERM) is not None
    answered()
    found = bench.cache.find(d, STAT)
    assert bench.look(d, b"f") == f and found is not None and found.attr.mtime == 60 and found.attr.nlink == 1
    assert refused(bench, d, b"g") == errno.ENOENT and bench.cache.page(d, 0, 9, ROOT_CRED) is None
    bench.locks.take_back(f, LOOKUP)
    assert bench.look(d, b"f") is None, "it is there, but what it leads to must be asked"
    ended = bench.cache.own.removing(d, b"f", 70)
    assert bench.look(d, b"f") is None
    ended(object(), 9)
    assert refused(bench, d, b"f") == errno.ENOENT
    bench.locks.take_back(d, UPDATE)
    assert bench.look(d, b"f") is None


def test_a_change_that_is_refused_has_changed_nothing(bench: Bench) -> None:
    bench.list(ROOT_FID, [b"a"])
    ended = bench.cache.own.removing(ROOT_FID, b"a", 50)
    ended(None, 0)
    assert bench.look(ROOT_FID, b"a") is None and refused(bench, ROOT_FID, b"b") == errno.ENOENT
    assert bench.cache.page(ROOT_FID, 0, 9, ROOT_CRED) is not None
    root = bench.cache.find(ROOT_FID, STAT)
    assert root is not None and root.attr.mtime == 1


def test_a_listing_that_changed_from_here_is_read_again(bench: Bench) -> None:
    bench.list(ROOT_FID, [b"a", b"b"])
    bench.cache.own.removing(ROOT_FID, b"a", 50)(object(), 9)
    making(bench, ROOT_FID, b"c", 60)[0](0)
    assert bench.cache.page(ROOT_FID, 0, 9, ROOT_CRED) is None
    assert refused(bench, ROOT_FID, b"a") == errno.ENOENT and bench.look(ROOT_FID, b"c") is None
    bench.list(ROOT_FID, [b"b", b"c"], grant=False)
    page = bench.cache.page(ROOT_FID, 0, 9, ROOT_CRED)
    assert page is not None and [entry.name for entry in page.entries] == [b"b", b"c"] and page.end
    bench.list(ROOT_FID, [b"x"], end=False)  # complete as it is: nothing is added
    assert refused(bench, ROOT_FID, b"x") == errno.ENOENT
    part = bench.fid()
    bench.learn(part, mode=DIRECTORY)
    bench.list(part, [b"a"], end=False)
    making(bench, part, b"z", 60)[0](0)
    assert bench.cache.page(part, 0, 9, ROOT_CRED) is None, "a part does not say where it belongs"


def test_an_answer_that_overlaps_a_change_says_nothing(bench: Bench) -> None:
    cache = bench.cache
    before = cache.question(ROOT_FID, STAT)
    missing = cache.question_name(ROOT_FID, b"f", LOOKUP)
    pages = cache.question_page(ROOT_FID, 0)
    answered, f = making(bench, ROOT_FID, b"f", 50)
    during = cache.question_name(ROOT_FID, b"f", LOOKUP)
    answered()
    cache.found(before, bench.attr(ROOT_FID, DIRECTORY))
    for question in (missing, during):
        cache.found_nothing(question)
    cache.found_page(pages, ROOT_FID, 0, DirPage((), True))
    assert bench.look(ROOT_FID, b"f") == f
    root = cache.find(ROOT_FID, STAT)
    assert root is not None and root.attr.mtime == 50
    after = cache.question_name(ROOT_FID, b"g", LOOKUP)
    cache.found_nothing(after)
    assert refused(bench, ROOT_FID, b"g") == errno.ENOENT


def test_a_file_that_is_moved_keeps_its_lock(bench: Bench) -> None:
    d, f, victim = bench.fid(), bench.fid(), bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=DIRECTORY)
    bench.list(d, [])
    bench.enter(ROOT_FID, b"f", f)
    old = bench.cache.question_name(ROOT_FID, b"f", STAT)
    ended = bench.cache.own.moving(ROOT_FID, b"f", d, b"g", 50, exchange=False)
    assert bench.look(ROOT_FID, b"f") is None and bench.look(d, b"g") is None and bench.cache.find(f, STAT) is None
    ended(RenameReply(NO_FID, 0, False, f), 9)
    bench.cache.found(old, bench.attr(f))
    assert bench.look(d, b"g") == f and refused(bench, ROOT_FID, b"f") == errno.ENOENT
    found = bench.cache.find(f, STAT)
    assert found is not None and (found.attr.ctime, found.attr.mtime, found.attr.version) == (50, 1, 9)
    bench.enter(ROOT_FID, b"v", victim)
    ended = bench.cache.own.moving(d, b"g", ROOT_FID, b"v", 60, exchange=False)
    bench.locks.take_back(victim, BITS_ALL)  # its last name: it goes with the request
    ended(RenameReply(victim, 0, False, f), 9)
    assert bench.look(ROOT_FID, b"v") == f and refused(bench, d, b"g") == errno.ENOENT
    ended = bench.cache.own.moving(ROOT_FID, b"v", d, b"w", 70, exchange=True)
    ended(RenameReply(NO_FID, 0, False, f), 9)
    assert bench.look(d, b"g") is None and bench.cache.find(d, STAT) is None


@pytest.mark.parametrize("exchange", [False, True])
def test_a_name_that_was_made_and_moved_at_once_is_not_there_any_more(bench: Bench, exchange: bool) -> None:
    """Found by the coherence swarm, seed 1300953: nothing else was known of the directory."""
    answered, f = making(bench, ROOT_FID, b"a", 50)
    ended = bench.cache.own.moving(ROOT_FID, b"a", ROOT_FID, b"b", 51, exchange=exchange)
    answered(transno=8)
    ended(RenameReply(NO_FID, 0, False, f), 9)
    assert bench.cache.child(ROOT_FID, b"a") is None
    assert bench.cache.child(ROOT_FID, b"b") is None, "its lock is younger than the request: others may have moved it on"


def test_after_answers_in_the_wrong_order_everything_is_asked_for_again(bench: Bench) -> None:
    """It was made, and then it was removed, or moved."""
    bench.list(ROOT_FID, [])
    answered, _ = making(bench, ROOT_FID, b"a", 50)
    bench.cache.own.removing(ROOT_FID, b"a", 51)(object(), 9)
    answered(transno=8)
    assert bench.look(ROOT_FID, b"a") is None and bench.look(ROOT_FID, b"z") is None
    assert bench.cache.find(ROOT_FID, STAT) is None and bench.cache.find(ROOT_FID, PERM) is not None
    d = bench.fid()
    bench.enter(ROOT_FID, b"d", d, mode=DIRECTORY)
    answered, f = making(bench, d, b"a", 50)
    ended = bench.cache.own.moving(d, b"b", d, b"c", 52, exchange=False)
    bench.cache.own.moving(d, b"a", d, b"b", 51, exchange=False)(RenameReply(NO_FID, 0, False, f), 11)
    answered(transno=10)
    ended(RenameReply(NO_FID, 0, False, f), 12)
    assert bench.look(d, b"a") is None and refused(bench, d, b"b") == errno.ENOENT and bench.look(d, b"c") is None
    bench.enter(d, b"c", f)
    assert bench.look(d, b"c") == f
    bench.cache.own.moving(d, b"y", d, b"c", 53, exchange=False)(RenameReply(NO_FID, 0, False, bench.fid()), 9)
    assert bench.look(d, b"c") is None, "what there was when, nobody knows"


def test_an_answer_in_the_wrong_order_says_nothing_of_attributes(bench: Bench) -> None:
    f = bench.fid()
    bench.learn(f)
    first = bench.cache.own.setting(bench.cache.question(f, STAT), f)
    bench.cache.own.setting(bench.cache.question(f, STAT), f)(bench.attr(f, mode=stat.S_IFREG | 0o600), 9)
    first(bench.attr(f, mode=stat.S_IFREG | 0o644), 8)
    assert bench.cache.find(f, PERM) is None and bench.cache.find(f, LOOKUP) is not None


def test_a_directory_that_is_moved_counts_for_its_parents(bench: Bench) -> None:
    a, b, moved = bench.fid(), bench.fid(), bench.fid()
    for name, fid in ((b"a", a), (b"b", b)):
        bench.enter(ROOT_FID, name, fid, mode=DIRECTORY, nlink=3)
    bench.enter(a, b"m", moved, mode=DIRECTORY, parent=a)
    bench.cache.own.moving(a, b"m", b, b"n", 50, exchange=False)(RenameReply(NO_FID, 0, False, moved), 9)
    assert [known.attr.nlink for fid in (a, b) if (known := bench.cache.find(fid, STAT))] == [2, 4]
    assert bench.look(moved, b"..") == b
    unknown = bench.fid()
    bench.cache.own.moving(b, b"x", a, b"y", 60, exchange=False)(RenameReply(NO_FID, 0, False, unknown), 9)
    assert bench.cache.find(a, STAT) is None and bench.cache.find(a, PERM) is not None, "was it a directory?"


def test_what_is_set_is_known_from_the_answer(bench: Bench) -> None:
    f = bench.fid()
    bench.learn(f)
    question = bench.cache.question(f, STAT)
    ended = bench.cache.own.setting(question, f)
    asked = bench.cache.question(f, STAT)
    assert bench.cache.find(f, PERM) is None and bench.cache.find(f, LOOKUP) is not None
    ended(bench.attr(f, stat.S_IFREG | 0o600, ctime=50), 9)
    bench.cache.found(asked, bench.attr(f))  # older
    found = bench.cache.find(f, STAT)
    assert found is not None and stat.S_IMODE(found.attr.mode) == 0o600 and found.attr.ctime == 50


def test_objects_are_unwritten_as_long_as_open_is_held(bench: Bench) -> None:
    said: list[Any] = []
    bench.cache.objects = SimpleNamespace(unwritten=lambda layout, so: said.append((layout, so)))  # type: ignore[assignment]
    layout = Layout(1 << 20, 0, "", ((0, 7),))
    question = bench.cache.question_name(ROOT_FID, b"f", STAT | OPEN)
    ended, f = bench.cache.own.making(question, 50), bench.fid()
    assert question.ride is not None and question.ride.want is not None and question.ride.want.try_bits & OPEN
    bench.locks.grant(question.ride.want.handle, f, STAT | OPEN)
    ended(OpenReply(DISP_OPEN_CREATE, bench.attr(f, layout=layout)), 9)
    bench.locks.take_back(f, UPDATE)
    assert said == [(layout, True)]
    bench.locks.take_back(f, OPEN)
    assert said == [(layout, True), (layout, False)]


def test_where_a_directory_is_said_to_be_may_be_older_than_its_move(bench: Bench) -> None:
    """The Getattr was answered before the Rename was executed, and is believed after it has ended: ".." led to the old place."""
    old, new, d = bench.fid(), bench.fid(), bench.fid()
    bench.enter(ROOT_FID, b"old", old, mode=DIRECTORY)
    bench.enter(ROOT_FID, b"new", new, mode=DIRECTORY)
    question = bench.cache.question(d, STAT)
    assert question.ride is not None and question.ride.want is not None
    answer = bench.attr(d, mode=DIRECTORY, parent=old)
    ended = bench.cache.own.moving(old, b"d", new, b"d", 50, exchange=False)
    bench.locks.grant(question.ride.want.handle, d, STAT)
    ended(RenameReply(NO_FID, 0, False, d), 9)
    bench.cache.found(question, answer)
    assert bench.look(d, b"..") in (None, new)
    bench.learn(d, mode=DIRECTORY, parent=new)
    assert bench.look(d, b"..") == new
