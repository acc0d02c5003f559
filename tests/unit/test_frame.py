"""The 20 bytes before every header."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lustrelite.errors import ProtocolError
from lustrelite.tunables import limits
from lustrelite.wire import frame


def test_prefix_bytes_are_pinned():
    header = b"\x91\x01"
    assert frame.pack_prefix(frame.REQUEST, header, 5, 0xDEADBEEF).hex() == "4c4c0f020000000200000005d4ae67dedeadbeef"


def test_crc32c_is_castagnoli():
    """Source: RFC 3720, B.4: 32 bytes of zeros, of ones, ascending."""
    assert frame.crc32c(bytes(32)) == 0x8A9136AA
    assert frame.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert frame.crc32c(bytes(range(32))) == 0x46DD794E


@given(
    kind=st.sampled_from(sorted(frame.KINDS)),
    header=st.binary(min_size=1, max_size=300),
    bulk_bytes=st.integers(0, limits.brw_bytes_max),
    bulk_crc=st.integers(0, 2**32 - 1),
    before=st.binary(max_size=8),
)
def test_a_prefix_comes_back(kind, header, bulk_bytes, bulk_crc, before):
    data = before + frame.pack_prefix(kind, header, bulk_bytes, bulk_crc)
    assert len(data) - len(before) == frame.PREFIX_BYTES
    assert frame.unpack_prefix(data, len(before)) == (kind, len(header), bulk_bytes, frame.crc32c(header), bulk_crc)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ((0x4C4D, 15, 2, 9, 0), "magic"),
        ((0x4C4C, 0, 2, 9, 0), "version"),
        ((0x4C4C, 16, 2, 9, 0), "version 16 .* this program 15"),
        ((0x4C4C, 15, 0, 9, 0), "kind"),
        ((0x4C4C, 15, 7, 9, 0), "kind"),
        ((0x4C4C, 15, 2, 0, 0), "header of 0"),
        ((0x4C4C, 15, 2, limits.header_bytes_max + 1, 0), "header of"),
        ((0x4C4C, 15, 2, 2**32 - 1, 0), "header of"),
        ((0x4C4C, 15, 2, 9, limits.brw_bytes_max + 1), "bulk of"),
        ((0x4C4C, 15, 2, 9, 2**32 - 1), "bulk of"),
    ],
)
def test_a_bad_prefix_is_refused(fields, why):
    with pytest.raises(ProtocolError, match=why):
        frame.unpack_prefix(struct.pack(">HBBIIII", *fields, 0, 0))


def test_the_largest_frame_is_accepted():
    data = struct.pack(">HBBIIII", 0x4C4C, 15, 2, limits.header_bytes_max, limits.brw_bytes_max, 0, 0)
    assert frame.unpack_prefix(data)[1:3] == (limits.header_bytes_max, limits.brw_bytes_max)


@given(st.binary(min_size=frame.PREFIX_BYTES, max_size=frame.PREFIX_BYTES))
def test_any_20_bytes_are_a_bounded_prefix_or_a_protocol_error(data):
    try:
        prefix = frame.unpack_prefix(data)
    except ProtocolError:
        return
    assert prefix.kind in frame.KINDS
    assert 0 < prefix.header_bytes <= limits.header_bytes_max
    assert prefix.bulk_bytes <= limits.brw_bytes_max
