"""How much of a directory is fetched with a file that is asked for, if files are asked for in any order."""

from __future__ import annotations

import random

from lustrelite.client.scattered import EARNED, PROVED, QUESTIONS_MIN, Scattered, Walk
from lustrelite.ids import ROOT_FID
from lustrelite.wire.mdt import COOKIE_MAX, name_cookie

PART_MAX = 1000


def ask(scattered: Scattered, cookies: list[int], cookie: int, known: set[int], used: set[int]) -> int:
    """A question about a file of the directory; returns how many requests it costs."""
    if cookie in known:
        if cookie not in used:
            scattered.used(ROOT_FID)
        used.add(cookie)
        return 0
    used.add(cookie)
    part = scattered.part(ROOT_FID, cookie)
    if part is None:
        known.add(cookie)
        scattered.found(ROOT_FID)
        return 1
    walk, count = part
    first = cookies.index(cookie)
    page = cookies[first : first + count]
    known.update(page)
    walk.fetched(cookie, page[-1] if len(page) == count else COOKIE_MAX, len(page))
    walk.earned += EARNED
    return 1


def test_who_looks_at_everything_in_any_order_asks_for_little() -> None:
    rng = random.Random(7)
    cookies = sorted(name_cookie(b"f%d" % number) for number in range(10_000))
    order = rng.sample(cookies, len(cookies))
    scattered, known, used = Scattered(PART_MAX), set[int](), set[int]()
    requests = [ask(scattered, cookies, cookie, known, used) for cookie in order]
    walk = scattered.walks[ROOT_FID]
    assert sum(requests[:QUESTIONS_MIN]) == QUESTIONS_MIN and sum(requests) < 500
    assert walk.entries < 1.2 * len(cookies), "little is fetched twice"
    assert sum(requests[5000:]) < 100


def test_who_looks_at_a_few_files_of_many_fetches_no_more_than_he_has_earned() -> None:
    rng = random.Random(7)
    cookies = sorted(name_cookie(b"f%d" % number) for number in range(100_000))
    scattered, known, used = Scattered(PART_MAX), set[int](), set[int]()
    for cookie in rng.sample(cookies, 200):
        ask(scattered, cookies, cookie, known, used)
    assert 0 < scattered.walks[ROOT_FID].entries <= EARNED * 200 + PROVED * 10, "now and then he meets what is there"


def test_ranges_that_meet_are_one() -> None:
    walk = Walk()
    for first, last in ((10, 19), (40, 49), (20, 29), (5, 9), (60, 60), (45, 61)):
        walk.fetched(first, last, 1)
    assert (walk.starts, walk.ends) == ([5, 40], [29, 61])
    walk.fetched(1, 100, 1)
    assert (walk.starts, walk.ends) == ([1], [100])
    walk.earned = 10_000
    assert not walk.part(50, PART_MAX) and walk.part(101, PART_MAX) == PART_MAX


def test_what_was_lost_is_fetched_again() -> None:
    scattered = Scattered(PART_MAX)
    for _ in range(100):
        scattered.found(ROOT_FID)
    walk = scattered.walks[ROOT_FID]
    walk.fetched(0, COOKIE_MAX, 100)
    asked = 0
    while walk.starts:
        assert scattered.part(ROOT_FID, 5) is None
        asked += 1
    assert asked < 100 and not walk.earned
    assert Scattered(0).part(ROOT_FID, 5) is None
