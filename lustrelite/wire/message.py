"""The message registry and the header codec.

A message is a NamedTuple declared once with `@message`; field order is wire order, positional arrays, never maps.
A body that arrives is checked field by field against the annotations (int, bool, bytes, str, Fid, tuples, nested
NamedTuples, `X | None`) before anybody sees it: a bad one is a ProtocolError, which costs its sender the connection.

VERSION log (a change of any message adds a line here and pins its bytes anew in tests/unit/test_wire_bytes.py):
    1  2026-11-20  first.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import msgpack

from lustrelite.errors import ProtocolError
from lustrelite.ids import FID_BYTES, Fid
from lustrelite.tunables import limits

# header flags, requests (MSG_* of lustre_idl.h)
RESENT = 0x2
REPLAY = 0x4
REQ_REPLAY_DONE = 0x40
LOCK_REPLAY_DONE = 0x80

# request classes with reserved capacity: the first three never wait behind one that takes locks
CLASS_CONNECT = 0  # connect, disconnect, ping
CLASS_CLOSE = 1  # close, lock cancel
CLASS_CALLBACK = 2  # lock callbacks
CLASS_NORMAL = 3  # everything else; resends and recovery have their own reserve, by flag

Cred = tuple[int, ...]  # (uid, gid, supplementary groups...)
ROOT_CRED: Cred = (0, 0)


class RequestHeader(NamedTuple):
    """Every request. `body` is a message; the rest is struct ptlrpc_body (protocol-facts 2)."""

    xid: int
    opcode: int
    handle: int  # export handle from the connect reply, 0 in a connect
    conn_cnt: int
    flags: int
    tag: int  # reply slot 1..mod_rpcs_max of a modifying request, 0 of any other
    last_xid: int  # every xid up to this one has been answered
    transno: int  # of a replay: the original one
    pre_versions: tuple[int, ...]  # of a replay: from the original reply
    timeout_ms: int  # how long the client will wait
    cred: Cred
    jobid: str
    body: Any


class ReplyHeader(NamedTuple):
    """Every reply. `status` is 0 or a negative errno; then `body` is None."""

    xid: int
    status: int
    flags: int
    transno: int
    last_committed: int
    pre_versions: tuple[int, ...]
    instance: int
    conn_cnt: int
    estimate_ms: int  # the server's service time estimate
    body: Any


class Spec(NamedTuple):
    """What is known of a message class."""

    cls: type
    name: str
    opcode: int
    reply: type
    mutates: bool  # gets a transno, a reply record, a slot; is kept for replay
    klass: int
    check: Callable[[Any], Any]
    check_reply: Callable[[Any], Any]
    replay_form: Callable[[Any, Any], Any] | None  # (request body, reply body) -> body to replay
    bulk_in: bool  # the request may carry bulk
    bulk_out: bool  # the reply may carry bulk


BY_OPCODE: dict[int, Spec] = {}
BY_CLASS: dict[type, Spec] = {}
BY_NAME: dict[str, Spec] = {}

_T = TypeVar("_T", bound=type)


def message(
    *,
    op: int,
    reply: type,
    mutates: bool = False,
    klass: int = CLASS_NORMAL,
    replay_form: Callable[[Any, Any], Any] | None = None,
    bulk_in: bool = False,
    bulk_out: bool = False,
) -> Callable[[_T], _T]:
    """Register a request body under opcode `op`, answered by `reply`."""

    def register(cls: _T) -> _T:
        assert op not in BY_OPCODE, f"opcode {op} is used twice"
        assert cls.__name__ not in BY_NAME, cls.__name__
        spec = Spec(
            cls, cls.__name__, op, reply, mutates, klass, checker(cls), checker(reply), replay_form, bulk_in, bulk_out
        )
        BY_OPCODE[op] = BY_CLASS[cls] = BY_NAME[cls.__name__] = spec
        return cls

    return register


def checker(annotation: Any) -> Callable[[Any], Any]:
    """A function that returns its argument converted to `annotation` or raises ProtocolError."""
    if annotation is Fid:
        return _check_fid
    if annotation is Any:
        return lambda value: value
    if isinstance(annotation, typing.NewType):
        return checker(annotation.__supertype__)
    if annotation is None or annotation is type(None):
        return _check_none
    if annotation in (int, bool, bytes, str):
        return _scalar_checker(annotation)
    origin = get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        assert len(inner) == 1, f"only X | None: {annotation}"
        return _optional_checker(checker(inner[0]))
    if origin is tuple:
        args = get_args(annotation)
        if len(args) == 2 and args[1] is Ellipsis:
            return _sequence_checker(checker(args[0]), args[0] if args[0] in (int, bytes, str) else None)
        return _fixed_checker(tuple(checker(a) for a in args))
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return _tuple_checker(annotation)
    raise TypeError(f"no wire type for {annotation!r}")


def _check_fid(value: Any) -> Any:
    if type(value) is not bytes or len(value) != FID_BYTES:
        raise ProtocolError("a FID is 16 bytes")
    return value


def _check_none(value: Any) -> Any:
    if value is not None:
        raise ProtocolError("nothing expected")
    return None


def _scalar_checker(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise ProtocolError(f"{kind.__name__} expected, got {type(value).__name__}")
        return value

    return check


def _optional_checker(inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else inner(value)


def _sequence_checker(inner: Callable[[Any], Any], scalar: type | None) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not tuple:
            raise ProtocolError("an array expected")
        if scalar is not None:
            for item in value:
                if type(item) is not scalar:
                    raise ProtocolError(f"{scalar.__name__} expected in an array")
            return value
        return tuple([inner(item) for item in value])

    return check


def _fixed_checker(inner: tuple[Callable[[Any], Any], ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not tuple or len(value) != len(inner):
            raise ProtocolError(f"an array of {len(inner)} expected")
        return tuple([f(item) for f, item in zip(inner, value, strict=True)])

    return check


def _tuple_checker(cls: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(cls)
    checks = tuple(checker(hints[name]) for name in cls._fields)
    fast = tuple(int if hints[n] is int or getattr(hints[n], "__supertype__", None) is int else None for n in cls._fields)
    plan = [(i, f) for i, f in enumerate(checks) if fast[i] is None]
    ints = [i for i, kind in enumerate(fast) if kind is int]
    count, make, name = len(checks), cls._make, cls.__name__

    def check(value: Any) -> Any:
        if type(value) is not tuple or len(value) != count:
            raise ProtocolError(f"{name}: an array of {count} expected")
        for i in ints:
            if type(value[i]) is not int:
                raise ProtocolError(f"{name}.{cls._fields[i]}: int expected")
        changed = None
        for i, f in plan:
            old = value[i]
            new = f(old)
            if new is not old:
                if changed is None:
                    changed = list(value)
                changed[i] = new
        return make(value if changed is None else changed)

    return check


_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def pack(value: Any) -> bytes:
    """msgpack of tuples, ints, bytes, str, None."""
    return _pack(value)  # type: ignore[no-any-return]


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """The value in `data`, arrays as tuples; ProtocolError if it is not one well-formed value of bounded size."""
    try:
        return msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=limits.header_bytes_max,
            max_bin_len=limits.header_bytes_max,
            max_array_len=1 << 17,
        )
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError(f"bad msgpack: {error!r}") from None


_REQUEST_TYPES = (int, int, int, int, int, int, int, int, tuple, int, tuple, str)
_REPLY_TYPES = (int, int, int, int, int, tuple, int, int, int)


def encode_request(header: RequestHeader) -> bytes:
    """The msgpack header of a request."""
    return _pack(header)  # type: ignore[no-any-return]


def decode_request(raw: Any) -> tuple[RequestHeader, Spec]:
    """A request from its unpacked header; ProtocolError if anything about it is wrong."""
    if type(raw) is not tuple or len(raw) != 13 or tuple(map(type, raw[:12])) != _REQUEST_TYPES:
        raise ProtocolError("not a request header")
    spec = BY_OPCODE.get(raw[1])
    if spec is None:
        raise ProtocolError(f"unknown opcode {raw[1]}")
    if raw[0] < 0 or raw[4] < 0 or len(raw[8]) > limits.pre_versions_max or len(raw[10]) > limits.groups_max + 2:
        raise ProtocolError("request header out of bounds")
    if raw[5] < 0 or raw[5] > limits.mod_rpcs_max + 1:  # one CLOSE may go above the limit
        raise ProtocolError(f"reply slot {raw[5]}")
    for version in raw[8]:
        if type(version) is not int:
            raise ProtocolError("a version is an int")
    for number in raw[10]:
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise ProtocolError("bad credential")
    if len(raw[10]) < 2:
        raise ProtocolError("a credential has uid and gid")
    return RequestHeader(*raw[:12], spec.check(raw[12])), spec


def encode_reply(header: ReplyHeader) -> bytes:
    """The msgpack header of a reply."""
    return _pack(header)  # type: ignore[no-any-return]


def check_reply(raw: Any) -> Any:
    """`raw` if it has the shape of a reply; its body is checked by `Spec.check_reply` once the request is known."""
    if type(raw) is not tuple or len(raw) != 10 or tuple(map(type, raw[:9])) != _REPLY_TYPES:
        raise ProtocolError("not a reply header")
    return raw
