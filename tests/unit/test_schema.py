"""Keys order as what they name, values come back as they went in."""

from __future__ import annotations

import stat

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lustrelite.errors import StoreFailed
from lustrelite.ids import NO_FID, ROOT_FID, make_fid
from lustrelite.store import schema
from lustrelite.store.schema import (
    ClientRecord,
    Inode,
    ObjectRecord,
    PoolRecord,
    ReplyRecord,
    TargetRecord,
)
from lustrelite.wire import mdt as wire
from lustrelite.wire.mdt import Layout, StripeHint
from lustrelite.wire.mgs import TargetInfo

FID = make_fid(0x200000401, 7)
INODE = Inode(
    stat.S_IFREG | 0o644,
    1000,
    100,
    1,
    0,
    0,
    0,
    0,
    10**18,
    10**18 + 1,
    10**18 + 2,
    10**18,
    5 << 32,
    None,
    None,
    b"",
    NO_FID,
)
PINNED = (
    "dc0017cd81a4cd03e8640100000000cf0de0b6b3a7640000cf0de0b6b3a7640001cf0de0b6b3a7640002cf0de0b6b3a7640000cf0000"
    "00050000000094ce0010000003a4666173749292004d9201cf0000010000000000c0c400c4100000000000000000000000000000000000c400c400000000"
)
LAYOUT = Layout(1 << 20, 3, "fast", ((0, 77), (1, 1 << 40)))
HINT = StripeHint(-1, 1 << 20, 2)


@pytest.mark.parametrize("layout", [None, LAYOUT])
@pytest.mark.parametrize("hint", [None, HINT])
def test_an_inode_comes_back_with_its_named_tuples(layout: Layout | None, hint: StripeHint | None) -> None:
    inode = INODE._replace(layout=layout, hint=hint, target=b"../\xff", parent=ROOT_FID)
    found = schema.unpack_inode(schema.pack_inode(inode))
    assert found == inode
    assert type(found) is Inode
    assert type(found.layout) is type(layout)  # equality of tuples ignores the type
    assert type(found.hint) is type(hint)


def test_every_record_comes_back() -> None:
    records = [
        (schema.pack_object, schema.unpack_object, ObjectRecord(1, 2, 3, 4, 5, 6, FID, 1)),
        (schema.pack_client, schema.unpack_client, ClientRecord("uuid", 1, 2, 3, "a@sim")),
        (schema.pack_reply, schema.unpack_reply, ReplyRecord(1, 2, -17, 0x30, (1, 5 << 32), 4)),
        (schema.pack_pool, schema.unpack_pool, PoolRecord(9, 73)),
    ]
    for pack, unpack, record in records:
        found = unpack(pack(record))  # type: ignore[operator]
        assert found == record and type(found) is type(record)
    target = TargetRecord(TargetInfo("lustre-OST0001", "OST", 1, "u", ("a@sim", "b@sim"), 3, 9), "stamp")
    again = schema.unpack_target(schema.pack_target(target))
    assert again == target and type(again.info) is TargetInfo


def test_bytes_of_an_inode_are_pinned() -> None:
    """A change here is a change of the format: raise FORMAT_VERSION, say so in its log, then pin anew."""
    packed = schema.pack_inode(INODE._replace(layout=LAYOUT))
    assert (schema.FORMAT_VERSION, packed.hex()) == (5, PINNED)


def test_a_broken_record_stops_the_store_and_not_a_connection() -> None:
    good = schema.pack_inode(INODE)
    for bad in (b"", good[:-1], good + b"x", msgpack.packb(7), msgpack.packb((1, 2, 3))):
        with pytest.raises(StoreFailed):
            schema.unpack_inode(bad)
        with pytest.raises(StoreFailed):
            schema.unpack_object(bad)
        with pytest.raises(StoreFailed):
            schema.unpack_target(bad)


names = st.binary(min_size=1, max_size=255)


@given(st.lists(names, min_size=2, max_size=30, unique=True))
def test_name_keys_order_by_cookie_then_name(some: list[bytes]) -> None:
    keys = sorted(schema.name_key(FID, name) for name in some)
    split = [schema.split_name_key(key) for key in keys]
    assert [(cookie, name) for _, cookie, name in split] == sorted((schema.name_cookie(name), name) for name in some)
    assert all(parent == FID for parent, _, _ in split)


@given(names)
def test_a_cookie_is_a_positive_63_bit_number_and_depends_on_the_name_only(name: bytes) -> None:
    cookie = schema.name_cookie(name)
    assert 0 < cookie < 1 << 63
    assert schema.split_name_key(schema.name_key(FID, name))[1] == cookie
    assert schema.name_key(ROOT_FID, name)[16:] == schema.name_key(FID, name)[16:]


def test_a_hash_of_zero_is_no_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0, 1 << 63):
        for module in (schema, wire):
            monkeypatch.setattr(module, "xxh64_intdigest", lambda name, value=value: value)
        assert schema.name_cookie(b"x") == 1
        assert schema.split_name_key(schema.name_key(FID, b"x"))[1] == 1


def test_cookies_are_pinned() -> None:
    """They are on disk and in clients' hands: another hash would be another format. XXH64 of "abc", seed 0."""
    assert schema.name_cookie(b"abc") == 0x44BC2CF5AD770999 & schema.COOKIE_MAX


@given(names, st.integers(0, schema.COOKIE_MAX))
def test_a_listing_goes_on_after_a_cookie(name: bytes, cookie: int) -> None:
    after = schema.names_after(FID, cookie)
    assert (schema.name_key(FID, name) > after) == (schema.name_cookie(name) > cookie)


numbers32, numbers64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)


@given(numbers32, numbers64, numbers32, numbers64)
def test_number_keys_order_as_numbers(a: int, b: int, c: int, d: int) -> None:
    assert (schema.log_key(a, b) < schema.log_key(c, d)) == ((a, b) < (c, d))
    assert (schema.object_key(b) < schema.object_key(d)) == (b < d)
    assert (schema.reply_key(a, b & 0xFFFF) < schema.reply_key(c, d & 0xFFFF)) == ((a, b & 0xFFFF) < (c, d & 0xFFFF))
    assert schema.split_log_key(schema.log_key(a, b)) == (a, b)
    assert schema.split_object_key(schema.object_key(b)) == b
    assert schema.split_reply_key(schema.reply_key(a, b & 0xFFFF)) == (a, b & 0xFFFF)
    assert schema.split_client_key(schema.client_key(a)) == a
    assert schema.split_pool_key(schema.pool_key(a)) == a
    assert schema.unpack_u64(schema.pack_u64(b)) == b
    assert schema.reply_key(a, 1).startswith(schema.client_key(a))
    assert schema.log_key(a, b).startswith(schema.pool_key(a))


def test_the_other_keys_come_apart_again() -> None:
    assert schema.split_link_key(schema.link_key(FID, ROOT_FID, b"n")) == (FID, ROOT_FID, b"n")
    assert schema.split_xattr_key(schema.xattr_key(FID, b"user.x", 7)) == (FID, b"user.x", 7)
    assert schema.xattr_key(FID, b"user.x").startswith(schema.xattr_prefix(FID, b"user.x"))
    assert schema.split_param_key(schema.param_key("lustre", "a.b")) == ("lustre", "a.b")
    assert schema.param_key("lustre", "a.b").startswith(schema.param_key("lustre", ""))
    assert schema.unpack_entry(schema.pack_entry(FID, stat.S_IFDIR)) == (FID, stat.S_IFDIR)


def test_the_longest_keys_fit_in_lmdb() -> None:
    longest = b"n" * 255
    for key in (schema.name_key(FID, longest), schema.link_key(FID, FID, longest), schema.xattr_key(FID, longest)):
        assert len(key) <= 511


def test_every_kind_has_the_common_tables() -> None:
    for kind in schema.KINDS:
        assert {schema.META, schema.CLIENTS, schema.REPLIES} <= set(schema.tables_of(kind))
    assert schema.INODES not in schema.tables_of("OST") and schema.OBJECTS not in schema.tables_of("MDT")
    with pytest.raises(AssertionError):
        schema.tables_of("OSS")
