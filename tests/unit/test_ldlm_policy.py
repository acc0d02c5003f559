"""Modes, bits, growth of extents and record maps: each against the table in Lustre's documents or a map of bytes."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.ldlm import policy
from lustrelite.ldlm.lock import Lock
from lustrelite.ldlm.policy import EOF, MODES, PAGE, Record, Surroundings, grown, set_range, size_known_after
from lustrelite.wire.ldlm import COS, CR, CW, EX, GROUP, NL, PR, PW, TXN

# rows: wanted, columns: held; protocol-facts 5.1 (g: the same group id)
MATRIX = """
       EX PW PR CW CR NL GROUP COS TXN
EX     -  -  -  -  -  +  -     -   -
PW     -  -  -  -  +  +  -     -   -
PR     -  -  +  -  +  +  -     -   +
CW     -  -  -  +  +  +  -     -   -
CR     -  +  +  +  +  +  -     -   +
NL     +  +  +  +  +  +  +     +   +
GROUP  -  -  -  -  -  +  g     -   -
COS    -  -  -  -  -  +  -     +   -
TXN    -  -  +  -  +  +  -     -   +
"""
NAMES = {name: mode for mode, name in policy.MODE_NAMES.items()}


def table() -> dict[tuple[int, int], str]:
    head, *rows = [line.split() for line in MATRIX.strip().splitlines()]
    return {(NAMES[row[0]], NAMES[held]): cell for row in rows for held, cell in zip(head, row[1:], strict=True)}


def lock(mode: int, *, owner: str = "a", gid: int = 0, client: str | None = None, **of: int) -> Lock:
    return Lock(owner, 1, mode, gid=gid, client=client, **of)


@pytest.mark.parametrize(("wanted", "held"), list(product(MODES, MODES)))
def test_modes_are_compatible_as_in_the_matrix(wanted: int, held: int) -> None:
    cell = table()[wanted, held]
    same = policy.modes_conflict(lock(held, owner="a", gid=7), lock(wanted, owner="b", gid=7))
    other = policy.modes_conflict(lock(held, owner="a", gid=7), lock(wanted, owner="b", gid=8))
    assert same == (cell == "-") and other == (cell in "-g")


def test_the_matrix_is_symmetric_and_total() -> None:
    cells = table()
    assert len(cells) == 81
    assert all(cells[a, b] == cells[b, a] for a, b in cells)


@pytest.mark.parametrize(("held", "wanted"), list(product((COS, TXN), MODES)))
def test_a_lock_kept_for_others_does_not_stop_its_own_client(held: int, wanted: int) -> None:
    kept = lock(held, owner="local", client="a")
    assert not policy.modes_conflict(kept, lock(wanted, owner="a"))
    assert policy.modes_conflict(kept, lock(wanted, owner="b")) == (table()[wanted, held] == "-")


@pytest.mark.parametrize("bits", range(1, 64))
def test_bits_conflict_only_where_they_meet(bits: int) -> None:
    for other in range(1, 64):
        assert policy.bits_conflict(lock(PW, bits=bits), lock(PR, bits=other)) == bool(bits & other)
        assert not policy.bits_conflict(lock(PR, bits=bits), lock(PR, bits=other))


def test_extents_conflict_only_where_they_share_a_byte() -> None:
    for a, b, c, d in product(range(4), repeat=4):
        if a <= b and c <= d:
            meet = bool(set(range(a, b + 1)) & set(range(c, d + 1)))
            assert policy.extents_conflict(lock(PW, start=a, end=b), lock(PR, start=c, end=d)) == meet


def test_a_downgrade_never_makes_a_new_conflict_but_cos_beside_cr() -> None:
    for old, weaker in policy.DOWNGRADES.items():
        for new in MODES:
            if new & weaker:
                lost = policy.COMPATIBLE[old] & ~policy.COMPATIBLE[new]
                assert lost in (0, CR if new == COS else 0), (old, new)


# growth


ALONE = Surroundings(0, EOF + 1, 0, -1, EOF + 1)


def test_alone_it_gets_everything() -> None:
    assert grown(PW, 8192, 12287, ALONE) == (0, EOF)


def test_with_others_it_grows_upwards_only_and_up_to_the_next() -> None:
    assert grown(PW, 8192, 12287, ALONE._replace(granted=1)) == (8192, EOF)
    assert grown(PW, 8192, 12287, ALONE._replace(granted=1, granted_above=1 << 20)) == (8192, (1 << 20) - 1)


def test_it_does_not_grow_into_those_who_wait() -> None:
    around = ALONE._replace(waiting=2, waiting_below=4095, waiting_above=1 << 20)
    assert grown(PR, 8192, 12287, around) == (4096, (1 << 20) - 1)
    assert grown(PR, 8192, 12287, around._replace(waiting=5)) == (8192, (1 << 20) - 1)


def test_in_a_crowd_writers_get_little() -> None:
    """Source: LDLM_MAX_GROWN_EXTENT"""
    crowd = ALONE._replace(granted=33)
    assert grown(PW, 1 << 20, (1 << 20) + 4095, crowd) == (1 << 20, (1 << 20) + (32 << 20) - 1)
    assert grown(PR, 1 << 20, (1 << 20) + 4095, crowd) == (1 << 20, EOF)
    assert grown(PW, 0, (64 << 20) - 1, crowd) == (0, (64 << 20) - 1), "never less than it asked for"
    assert grown(PW, 1 << 20, (1 << 20) + 4095, ALONE._replace(granted=32)) == (1 << 20, EOF)


@settings(deadline=None)
@given(st.data())
def test_growth_contains_the_request_and_stays_between_the_neighbours(data: st.DataObject) -> None:
    number = st.integers(0, 1 << 20) | st.integers(0, EOF)
    unit = data.draw(st.sampled_from([1, PAGE, 1 << 16]))
    start, end = sorted((data.draw(number) // unit * unit, data.draw(number) // unit * unit))
    end = min(EOF, end + unit - 1)
    above = data.draw(st.integers(end + 1, EOF + 1))
    waiting_above = data.draw(st.integers(end + 1, EOF + 1))
    below = data.draw(st.integers(-1, start - 1))
    around = Surroundings(data.draw(st.integers(0, 40)), above, data.draw(st.integers(0, 8)), below, waiting_above)
    low, high = grown(data.draw(st.sampled_from([PW, PR, CW, EX])), start, end, around)
    assert 0 <= low <= start <= end <= high <= EOF
    if around.granted:
        assert low == start and high < above
    if around.waiting:
        assert low > below and high < waiting_above
    if unit == PAGE:  # what was whole pages stays whole pages
        assert low % PAGE == 0 and (high == EOF or (high + 1) % PAGE == 0)


@settings(deadline=None)
@given(st.integers(0, 40), st.lists(st.integers(0, 40)), st.integers(0, 40))
def test_the_known_size_shrinks_to_what_the_other_locks_cover(size: int, kept: list[int], gone: int) -> None:
    known = size_known_after(size, lock(PW, start=0, end=gone), kept)
    if gone + 1 < size or any(end + 1 >= size for end in kept):
        assert known == size
    else:
        assert known == max((end + 1 for end in kept), default=0)


# record maps

BYTES = 24
step = st.tuples(st.integers(0, BYTES - 1), st.integers(0, BYTES - 1), st.sampled_from([PR, PW, NL]))


@settings(deadline=None)
@given(st.lists(step, max_size=30))
def test_record_map_is_a_map_of_bytes(steps: list[tuple[int, int, int]]) -> None:
    records: list[Record] = []
    model = [NL] * BYTES
    for a, b, mode in steps:
        start, end = min(a, b), max(a, b)
        before = list(records)
        went, came = set_range(records, start, end, mode)
        model[start : end + 1] = [mode] * (end + 1 - start)
        shown = [NL] * BYTES
        for record in records:
            assert record.mode != NL and record.start <= record.end
            assert shown[record.start : record.end + 1] == [NL] * (record.end + 1 - record.start), "disjoint"
            shown[record.start : record.end + 1] = [record.mode] * (record.end + 1 - record.start)
        assert shown == model
        assert records == sorted(records)
        for left, right in pairwise(records):
            assert left.mode != right.mode or left.end + 1 < right.start, "equal neighbours merge"
        assert sorted([r for r in before if r not in went] + came) == records


def test_record_map_at_the_end_of_the_world() -> None:
    records: list[Record] = []
    set_range(records, 0, EOF, PW)
    set_range(records, EOF, EOF, NL)
    assert records == [Record(0, EOF - 1, PW)]
    set_range(records, 10, EOF, PR)
    assert records == [Record(0, 9, PW), Record(10, EOF, PR)]


def test_texts() -> None:
    assert policy.bits_text(3) == "LOOKUP|UPDATE" and policy.bits_text(0) == "0"
    assert policy.mode_text(CW) == "CW" and policy.mode_text(3) == "3"
    assert {CW, GROUP, TXN} <= set(MODES)
