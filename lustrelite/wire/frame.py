"""The fixed prefix before every header: what kind of frame, how long, which checksums.

    magic u16 | version u8 | kind u8 | header length u32 | bulk length u32 | header CRC32C u32 | bulk CRC32C u32

Big-endian, 20 bytes, then the msgpack header, then the bulk bytes, which stay outside msgpack so that they can be
received straight into their final buffer. Lengths are bounded here, before anything is allocated.

The version is that of everything that follows the prefix (the log in message.py). A HELLO of another one is answered
with a prefix alone, `REFUSAL`, so that both sides can say which versions do not fit. The prefix itself never changes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import crc32c as _crc32c

from lustrelite.errors import OtherVersion, ProtocolError
from lustrelite.tunables import limits

_PREFIX = struct.Struct(">HBBIIII")
PREFIX_BYTES = _PREFIX.size
MAGIC = 0x4C4C
WIRE_VERSION = 15  # the last line of the log in message.py

# kinds
HELLO = 1  # first frame of a connection, both ways
REQUEST = 2  # client -> server
REPLY = 3
CALLBACK = 4  # server -> client: a lock callback (AST), numbered by the server
CALLBACK_REPLY = 5
EARLY_REPLY = 6  # "still working": the request's new deadline
KINDS = frozenset({HELLO, REQUEST, REPLY, CALLBACK, CALLBACK_REPLY, EARLY_REPLY})


class Prefix(NamedTuple):
    """A decoded prefix."""

    kind: int
    header_bytes: int
    bulk_bytes: int
    header_crc: int
    bulk_crc: int


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC32C of `data` (hardware where there is any)."""
    return _crc32c.crc32c(data)


def pack_prefix(kind: int, header: bytes, bulk_bytes: int = 0, bulk_crc: int = 0) -> bytes:
    """The prefix of a frame of `header` and `bulk_bytes` of bulk."""
    assert kind in KINDS and bulk_bytes <= limits.brw_bytes_max
    return _PREFIX.pack(MAGIC, WIRE_VERSION, kind, len(header), bulk_bytes, crc32c(header), bulk_crc)


def unpack_prefix(data: bytes | bytearray | memoryview, offset: int = 0) -> Prefix:
    """The prefix at `offset`; ProtocolError if it is none or asks for too much, OtherVersion if it is of another version."""
    magic, version, kind, header_bytes, bulk_bytes, header_crc, bulk_crc = _PREFIX.unpack_from(data, offset)
    if magic != MAGIC:
        raise ProtocolError(f"bad magic {magic:#06x}")
    if version != WIRE_VERSION:
        raise OtherVersion(f"the other side speaks version {version} of the wire protocol, this program {WIRE_VERSION}")
    if kind not in KINDS:
        raise ProtocolError(f"unknown frame kind {kind}")
    if header_bytes > limits.header_bytes_max or header_bytes == 0:
        raise ProtocolError(f"header of {header_bytes} bytes")
    if bulk_bytes > limits.brw_bytes_max:
        raise ProtocolError(f"bulk of {bulk_bytes} bytes")
    return Prefix(kind, header_bytes, bulk_bytes, header_crc, bulk_crc)


REFUSAL = _PREFIX.pack(MAGIC, WIRE_VERSION, HELLO, 0, 0, 0, 0)  # no frame: a header is never empty
