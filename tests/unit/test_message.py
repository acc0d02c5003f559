"""The checks of what arrives: a body comes back equal or not at all, and nothing but ProtocolError comes out."""

from __future__ import annotations

import types
import typing
from typing import Any, NamedTuple, get_args, get_origin

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lustrelite.errors import ProtocolError
from lustrelite.ids import Fid, make_fid
from lustrelite.tunables import limits
from lustrelite.wire import locks, mdt, message, mgs, ost, session
from lustrelite.wire.ldlm import Ride

assert locks and mgs and ost and session  # their messages are registered
SPECS = sorted(message.BY_OPCODE.values(), key=lambda spec: spec.opcode)
ANNOTATIONS = list(dict.fromkeys([*(s.cls for s in SPECS), *(s.reply for s in SPECS), session.Hello]))
by_name = pytest.mark.parametrize("cls", ANNOTATIONS, ids=lambda cls: cls.__name__)

INTS = st.integers(-(2**63), 2**64 - 1)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of `annotation`."""
    if annotation is Fid:
        return st.binary(min_size=16, max_size=16)
    if isinstance(annotation, typing.NewType):
        return values(annotation.__supertype__)
    simple = {int: INTS, bool: st.booleans(), bytes: st.binary(max_size=20), str: st.text(max_size=20)}
    if annotation in simple:
        return simple[annotation]
    if annotation is type(None):
        return st.none()
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, args))
    if origin is tuple and args[-1] is Ellipsis:
        return st.lists(values(args[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values, args))
    hints = typing.get_type_hints(annotation)
    return st.builds(annotation, *(values(hints[name]) for name in annotation._fields))


# Whatever msgpack can say, with the types of the wire in front so that some of it nearly fits.
ANYTHING = st.recursive(
    st.one_of(INTS, st.none(), st.booleans(), st.binary(max_size=17), st.text(max_size=5), st.floats(), st.just(bytes(16))),
    lambda inner: st.one_of(st.lists(inner, max_size=17), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=20,
)

HEADERS = st.builds(
    lambda *fields: fields,
    st.integers(0, 2**64 - 1),  # xid; the opcode is put in
    INTS,
    INTS,
    st.integers(0, 2**32),
    st.integers(0, limits.mod_rpcs_max + 1),
    INTS,
    st.integers(0, 2**63 - 1),  # transno
    st.lists(INTS, max_size=limits.pre_versions_max).map(tuple),
    INTS,
    st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=5).map(tuple),
    st.text(max_size=10),
    st.none() | values(Ride),
)


def same_types(a: Any, b: Any) -> bool:
    """Equality of NamedTuples ignores their type, and True == 1."""
    if type(a) is not type(b):
        return False
    return not isinstance(a, tuple) or all(map(same_types, a, b))


@by_name
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_body_comes_back_equal_and_of_its_type(cls, data):
    value = data.draw(values(cls))
    back = message.checker(cls)(message.unpack(message.pack(value)))
    assert back == value
    assert same_types(back, value)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@settings(max_examples=15, deadline=None)
@given(fields=HEADERS, data=st.data())
def test_a_request_comes_back_equal(spec, fields, data):
    header = message.RequestHeader(fields[0], spec.opcode, *fields[1:], data.draw(values(spec.cls)))
    back, found = message.decode_request(message.unpack(message.encode_request(header)))
    assert found is spec
    assert back == header
    assert same_types(back, header)


@by_name
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_one_field_of_another_type_is_refused(cls, data):
    value = data.draw(values(cls))
    if not value:
        return
    i = data.draw(st.integers(0, len(value) - 1))
    wrong = data.draw(st.sampled_from([1.5, {}, True if type(value[i]) is not bool else 1, object()]))
    with pytest.raises(ProtocolError):
        message.checker(cls)((*value[:i], wrong, *value[i + 1 :]))


@by_name
def test_a_field_too_many_or_too_few_is_refused(cls):
    size = len(cls._fields)
    for count in {0, size - 1, size + 1} - {size, -1}:
        with pytest.raises(ProtocolError, match="fields expected"):
            message.checker(cls)((0,) * count)


@given(st.binary(max_size=200))
def test_any_bytes_unpack_or_are_a_protocol_error(data):
    try:
        message.unpack(data)
    except ProtocolError:
        pass


@settings(max_examples=300)
@given(ANYTHING)
def test_any_value_is_refused_with_a_protocol_error(value):
    """...or accepted: no other exception ever comes out of a peer's bytes."""
    try:
        raw = message.unpack(msgpack.packb(value))
    except ProtocolError:
        return
    for check in (message.decode_request, message.check_reply, *(message.checker(cls) for cls in ANNOTATIONS)):
        try:
            check(raw)
        except ProtocolError:
            pass


@settings(max_examples=300)
@given(spec=st.sampled_from(SPECS), fields=HEADERS, body=ANYTHING)
def test_any_body_behind_a_good_header_is_refused_with_a_protocol_error(spec, fields, body):
    try:
        raw = message.unpack(msgpack.packb((fields[0], spec.opcode, *fields[1:], body)))
        header, _ = message.decode_request(raw)
    except ProtocolError:
        return
    assert type(header.body) is spec.cls


GOOD = message.RequestHeader(7, 33, 1, 1, 0, 0, 6, 0, (), 6000, (0, 0), "", None, (make_fid(1, 2),))


@pytest.mark.parametrize(
    "change",
    [
        {"xid": -1},
        {"xid": True},
        {"opcode": 99999},
        {"opcode": "33"},
        {"flags": -1},
        {"transno": -1},
        {"transno": 1 << 63},
        {"tag": -1},
        {"tag": limits.mod_rpcs_max + limits.mod_rpcs_spare + 1},
        {"pre_versions": (1,) * (limits.pre_versions_max + 1)},
        {"pre_versions": (None,)},
        {"cred": ()},
        {"cred": (0,)},
        {"cred": (0, -1)},
        {"cred": (0, 1 << 32)},
        {"cred": (0, True)},
        {"cred": (0,) * (limits.groups_max + 3)},
        {"jobid": b""},
        {"body": None},
        {"body": ()},
        {"body": (bytes(15),)},
        {"body": (bytes(17),)},
        {"body": ("x" * 16,)},
    ],
    ids=str,
)
def test_a_header_out_of_bounds_is_refused(change):
    message.decode_request(tuple(GOOD))
    with pytest.raises(ProtocolError):
        message.decode_request(tuple(GOOD._replace(**change)))


def test_a_reply_header_is_checked():
    good = (1, 0, 0, 5, 4, (1, 2), 1, 1, 0, (), 0, None)
    assert message.check_reply(good) == good
    for bad in ((), good[:9], (*good, 0), (*good[:5], (None,), *good[6:]), (*good[:5], (1,) * 5, *good[6:]), (True, *good[1:])):
        with pytest.raises(ProtocolError):
            message.check_reply(bad)


def test_rows_are_checked_to_the_last_cell():
    check = message.checker(mdt.Layout)
    stripes = tuple((i, i) for i in range(limits.stripes_max))
    good = (1 << 20, 0, "", stripes)
    assert check(good) == mdt.Layout(*good)
    assert check(good).stripes is stripes  # nothing is rebuilt
    for row in ((1,), (1, 2, 3), (1, "2"), (1, True), 5, None, "ab"):
        with pytest.raises(ProtocolError):
            check((1 << 20, 0, "", (*stripes, row)))


@pytest.mark.parametrize("item", ["2", None, True, (3,)])
def test_arrays_are_checked_to_the_last_item(item):
    check = message.checker(ost.Destroy)
    assert check(((1, 2),)) == ost.Destroy((1, 2))
    with pytest.raises(ProtocolError):
        check(((1, 2, item),))


def test_errors_name_the_field():
    with pytest.raises(ProtocolError, match=r"Attr: nlink may not be str"):
        message.checker(mdt.Attr)((make_fid(1, 2), 0, "1", *(0,) * 11, None, make_fid(1, 2), 0, b"", 0, 0))
    with pytest.raises(ProtocolError, match=r"Dirent: 5 fields expected, got 1"):
        message.checker(mdt.DirPage)((((1,),), True))


@pytest.mark.parametrize("annotation", [dict[str, int], list[int], float, tuple[int, ...] | tuple[str, ...], int | Any])
def test_what_cannot_be_checked_is_refused_where_it_is_declared(annotation):
    with pytest.raises((TypeError, AssertionError)):
        message.checker(annotation)


def test_an_opcode_or_a_name_is_used_once():
    class Getattr2(NamedTuple):
        """Nothing."""

    with pytest.raises(AssertionError):
        message.message(op=33, reply=session.Empty)(Getattr2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",  # never used by msgpack
        b"\x80",  # an empty map is let through by msgpack, but nothing accepts one
        b"\x81\x01\x02",  # a map
        b"\xd4\x01\x00",  # an extension
        b"\xd9\x02\xff\xfe",  # bad utf-8
        b"\x01\x01",  # two values
        b"\x92\x01",  # cut short
        b"\xdd\xff\xff\xff\xff",  # 4 Gi items
        b"\xdd\x00\x02\x00\x00",
        b"\xc6\xff\xff\xff\xff",  # 4 GiB of bytes
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 5000 + b"\x00",  # deep nesting
        b"\xdd\x00\x00\x7f\xff" * 2000,  # deep and wide
    ],
    ids=lambda data: data[:8].hex() or "empty",
)
def test_hostile_msgpack_is_refused(data):
    with pytest.raises(ProtocolError):
        message.decode_request(message.unpack(data))
