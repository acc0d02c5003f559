"""A database whose file a disk has changed or cut short is refused with a sentence, before LMDB stumbles over it."""

from __future__ import annotations

import contextlib
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lustrelite.errors import FormatRefused, StoreFailed
from lustrelite.store import pages, schema
from lustrelite.store.kv import Store
from lustrelite.store.pages import BRANCH, LEAF, OVERFLOW

PAGE = 4096
T, U = schema.REPLIES, schema.CLIENTS
ROWS = {f"{number:06}".encode() * 3: bytes(number % 300) for number in range(2000)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The file of a database with branches, values of several pages and free pages."""
    store = Store.open(tmp_path, "MDT", create=True, durable=False)
    store.apply({(T, key): value for key, value in ROWS.items()})
    store.apply({(U, b"large"): bytes(3 * PAGE), (U, b"small"): b"1"})
    store.flush()
    store.apply({(T, key): None for key in list(ROWS)[:600]})
    store.flush()
    store.apply({(U, b"other"): b"2"})
    store.close()
    return tmp_path / "lmdb" / "data.mdb"


def found(data: Path, kind: int, least: int = 2) -> int:
    """The offset of a page of `kind` that is in use and has at least so many rows."""
    content = data.read_bytes()
    for at in range(2 * PAGE, len(content), PAGE):
        own, _, is_kind, low, _ = struct.unpack_from("=QHHHH", content, at)
        if is_kind == kind and own == at // PAGE and (kind == OVERFLOW or low >= 16 + 2 * least):
            write(data, at, b"\xff" * 8)
            try:
                pages.check(data.parent.parent)
            except StoreFailed:
                return at
            finally:
                data.write_bytes(content)
    raise AssertionError("no such page")


def write(data: Path, at: int, what: bytes) -> None:
    with open(data, "r+b") as file:
        file.seek(at)
        file.write(what)


def swap_rows(data: Path) -> None:
    """The first two rows of a leaf change places."""
    at = found(data, LEAF, 50) + 16
    first = data.read_bytes()[at : at + 4]
    write(data, at, first[2:] + first[:2])


def lose_child(data: Path) -> None:
    """A branch leads to a page that is not there."""
    at = found(data, BRANCH)
    write(data, at + int.from_bytes(data.read_bytes()[at + 16 : at + 18], sys.byteorder), b"\xff\xff\xff")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "its number": lambda data: write(data, found(data, LEAF), b"\x01"),
    "its kind": lambda data: write(data, found(data, LEAF) + 10, b"\x04"),
    "the end of its offsets": lambda data: write(data, found(data, LEAF) + 12, b"\xff\xff"),
    "the place of a row": lambda data: write(data, found(data, LEAF) + 16, b"\xff\xff"),
    "two rows in one place": lambda data: write(data, (at := found(data, LEAF)) + 16, data.read_bytes()[at + 18 : at + 20]),
    "the order of rows": swap_rows,
    "the number of a child": lose_child,
    "a child that is a brother": lambda data: write(data, (at := found(data, BRANCH)) + 16, data.read_bytes()[at + 18 : at + 20]),
    "the length of a large value": lambda data: write(data, found(data, OVERFLOW) + 12, b"\x01\0\0\0"),
    "the meta pages": lambda data: write(data, 16, b"\0" * 4),
}  # fmt: skip


def test_a_sound_database_is_whole(tmp_path: Path, data: Path) -> None:
    pages.check(tmp_path)
    assert found(data, LEAF) and found(data, BRANCH) and found(data, OVERFLOW)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_stored_is_whole(tmp_path: Path, seed: int) -> None:
    """Also a file that ends before its last page: LMDB does not write pages that are free again at the commit."""
    draw = random.Random(seed)
    store = Store.open(tmp_path, "MDT", create=True, durable=False)
    for _ in range(30):
        for _ in range(draw.randrange(60)):
            key = bytes(draw.choices(b"ab\0\xff", k=draw.choice((1, 5, 60, 511))))
            value = None if draw.random() < 0.5 else bytes(draw.choice((0, 30, 900, 5000, 70_000)))
            store.apply({(draw.choice((T, U)), key): value})
        store.flush()
        pages.check(tmp_path)
        pages.check_end(tmp_path)
    store.close()


def test_free_pages_at_the_end_need_not_be_there(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "MDT", create=True, durable=False)
    store.apply({(T, b"large"): bytes(100 * PAGE)})
    store.apply({(T, b"large"): None, (T, b"a"): b"1"})
    store.flush()
    last_page = store._env.info()["last_pgno"]
    store.close()
    assert (tmp_path / "lmdb" / "data.mdb").stat().st_size <= last_page * PAGE
    pages.check(tmp_path)
    with contextlib.closing(Store.open(tmp_path, "MDT")) as store:
        assert store.get(T, b"a") == b"1"


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_damage_of_a_page_is_found(tmp_path: Path, data: Path, damage: Callable[[Path], None]) -> None:
    damage(data)
    with pytest.raises((StoreFailed, FormatRefused), match="damaged") as caught:
        pages.check(tmp_path)
    assert str(tmp_path) in str(caught.value) and "restore the target from a backup" in str(caught.value)


def test_what_is_not_found_can_be_read(tmp_path: Path, data: Path) -> None:
    """Any byte may be wrong: either the database is refused, or all of it can be read."""
    sound, draw, refused = data.read_bytes(), random.Random(1), 0
    for _ in range(200):
        at = draw.randrange(len(sound) // PAGE) * PAGE + draw.randrange(draw.choice((64, PAGE)))
        data.write_bytes(sound)
        write(data, at, bytes((sound[at] ^ draw.randrange(1, 256),)))
        try:
            pages.check(tmp_path)
        except (StoreFailed, FormatRefused):
            refused += 1
            continue
        with contextlib.suppress(StoreFailed, FormatRefused), contextlib.closing(Store.open(tmp_path, "MDT")) as store:
            for table in (T, U):
                for key, value in store.scan(table):
                    assert store.get(table, key) == value
            store.apply({(T, bytes((n, n))): bytes(100) for n in range(100)})
    assert refused > 20


@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, data: Path, readonly: bool) -> None:
    size = data.stat().st_size
    for end in range(1000, size - PAGE, 3 * PAGE):
        whole = data.read_bytes()
        with open(data, "r+b") as file:
            file.truncate(end)
        with pytest.raises(FormatRefused, match="truncated or damaged") as caught:
            Store.open(tmp_path, "MDT", readonly=readonly)
        assert str(tmp_path) in str(caught.value)
        data.write_bytes(whole)
    Store.open(tmp_path, "MDT", readonly=readonly).close()


def test_rows_out_of_order_end_the_store(tmp_path: Path, data: Path) -> None:
    swap_rows(data)
    store = Store.open(tmp_path, "MDT")
    with pytest.raises(StoreFailed, match=r"damaged .keys out of order"):
        list(store.scan(T))
    with pytest.raises(StoreFailed, match="restore the target from a backup"):
        store.get(T, b"a")
    store.abort()


@pytest.mark.parametrize(
    "read",
    [lambda s: [s.get(T, key) for key in ROWS], lambda s: list(s.scan(T)), lambda s: [s.last(T, key) for key in ROWS]],
    ids=["get", "scan", "last"],
)
def test_what_lmdb_cannot_read_ends_the_store(tmp_path: Path, data: Path, read: Callable[[Store], object]) -> None:
    lose_child(data)
    store = Store.open(tmp_path, "MDT")
    with pytest.raises(StoreFailed, match=r"the database of .* is damaged .*: restore the target from a backup"):
        read(store)
    store.abort()


@pytest.mark.parametrize(("name", "made"), [("target.json", True), ("O", True), ("owner", False)])
@pytest.mark.parametrize("readonly", [False, True])
def test_a_lost_database_is_not_to_be_formatted(tmp_path: Path, data: Path, name: str, made: bool, readonly: bool) -> None:
    (tmp_path / name).mkdir()
    data.write_bytes(b"")
    with pytest.raises(FormatRefused, match="do not format it" if made else "format it again"):
        Store.open(tmp_path, "MDT", readonly=readonly)
    data.unlink()
    with pytest.raises(FormatRefused, match="do not format it" if made else r"format one with mkfs\.lustrelite"):
        Store.open(tmp_path, "MDT", readonly=readonly)
    assert not data.exists()


def test_a_lost_table_is_not_made_anew(tmp_path: Path, data: Path) -> None:
    content = data.read_bytes()
    for at in range(2 * PAGE, len(content), 1):
        if content.startswith(T.encode(), at):
            write(data, at, T.upper().encode())
    with pytest.raises((FormatRefused, StoreFailed), match="restore"):
        Store.open(tmp_path, "MDT")
