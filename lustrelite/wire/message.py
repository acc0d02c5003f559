"""The message registry and the header codec.

A message is a NamedTuple declared once with `@message`; field order is wire order, positional arrays, never maps.
A body that arrives is checked field by field against the annotations (int, bool, bytes, str, Fid, tuples, nested
NamedTuples, `X | None`) before anybody sees it: a bad one is a ProtocolError, which costs its sender the connection.

VERSION log (a change of any message adds a line here, raises frame.WIRE_VERSION and pins its bytes anew in
tests/unit/test_wire_bytes.py; programs of different versions refuse each other at the HELLO):
    1  2026-11-20  first.
    2  2026-11-20  wire/ldlm.py: Enqueue, Convert, Cancel and the three callbacks (nothing older changed).
    3  2026-11-21  headers: ride (cancels, want, converts), granted, callback; Read, Write and Punch name a lock; grants; the lease
                   in ConnectReply; ConfigRead does not wait.
    4  2026-11-21  SetOwners; GrantShrink; projid in Attr and Setattr; access control lists and the presence of extended
                   attributes in Attr; umask in Create and Open; Getxattrs, Fallocate, ObjectSeek; the default in DirStripeReply.
    5  2026-11-21  the answer to Rename says which file has moved; that to GlimpseCallback which truncation it may not know of.
    6  2026-11-21  Reopen; a Close without a handle.
    7  2026-11-21  Closes; a Close always has a handle.
    8  2026-11-21  the bit SOLE of inode locks; PROMISED in lock replays (nothing older changed).
    9  2026-11-22  Setattrs; ReadMany.
    10 2026-11-22  WriteMany (nothing older changed).
    11 2026-11-22  the bit SET_MTIME_WRITTEN of Setattr (nothing older changed).
    12 2026-11-22  PROMISED in Enqueue and its answer (nothing older changed).
    13 2026-11-22  mtime_set in Attr; no SET_MTIME_WRITTEN.
    14 2026-11-23  WriteMany: several parts of one object (nothing older changed).
    15 2026-11-23  TargetRegister: replaces.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from itertools import chain, product
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import msgpack

from lustrelite.errors import ProtocolError
from lustrelite.ids import FID_BYTES, TRANSNO_END, Fid
from lustrelite.tunables import limits
from lustrelite.wire.ldlm import Granted, Ride

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
    ride: Ride | None  # locks that go back before the operation, and one that is wanted of what it finds
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
    granted: tuple[Granted, ...]  # what became of the ride's wants; empty: no lock
    callback: int  # number of the last callback that was sent to this client: the lease counts if it has seen it
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


# How a body is checked. An annotation becomes a table from the exact type of a value that may stand there to what is
# left to do with it: nothing (None) for an int, a function for a FID or a nested message. A message is then checked
# by one look at the types of all its fields at once: they are a key of a table of its shapes (one per combination
# of optional fields), which says which fields still need a function. Comparing types exactly keeps bool out of int.

Check = Callable[[Any], Any]  # returns its argument, converted, or raises ProtocolError

SHAPES_MAX = 16  # four optional fields
_new: Any = tuple.__new__  # makes a NamedTuple without its Python-level constructor


def checker(annotation: Any) -> Check:
    """A function that returns its argument converted to `annotation` or raises ProtocolError."""
    accepted = _accepted(annotation)
    wanted = " or ".join(kind.__name__ for kind in accepted)

    def check(value: Any) -> Any:
        if type(value) not in accepted:
            raise ProtocolError(f"{wanted} expected, got {type(value).__name__}")
        then = accepted[type(value)]
        return value if then is None else then(value)

    if len(accepted) == 1 and tuple in accepted:  # it looks at the type itself
        return accepted[tuple] or check
    return check


def _accepted(annotation: Any) -> dict[type, Check | None]:
    """The types that may stand where `annotation` is declared, each with what is left to check."""
    if annotation is Fid:
        return {bytes: _check_fid}
    if isinstance(annotation, typing.NewType):
        return _accepted(annotation.__supertype__)
    if annotation is None:
        return {type(None): None}
    if annotation in (int, bool, bytes, str, type(None)):
        return {annotation: None}
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        accepted: dict[type, Check | None] = {}
        for arg in args:
            for kind, then in _accepted(arg).items():
                assert kind not in accepted, f"{annotation}: two alternatives look alike on the wire"
                accepted[kind] = then
        return accepted
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return {tuple: _sequence_checker(args[0])}
    if origin is tuple:
        return {tuple: _fields_checker(tuple, "an array", tuple(str(i) for i in range(len(args))), args)}
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        hints = typing.get_type_hints(annotation)
        names: tuple[str, ...] = annotation._fields
        return {tuple: _fields_checker(annotation, annotation.__name__, names, tuple(hints[name] for name in names))}
    raise TypeError(f"no wire type for {annotation!r}")


def _check_fid(value: Any) -> Any:
    if len(value) != FID_BYTES:
        raise ProtocolError("a FID is 16 bytes")
    return value


def _sequence_checker(item: Any) -> Check:
    """For `tuple[item, ...]`."""
    check = checker(item)
    kinds = {kind for kind, then in _accepted(item).items() if then is None}

    def check_sequence(value: Any) -> Any:
        if type(value) is not tuple:
            raise ProtocolError(f"an array expected, got {type(value).__name__}")
        if kinds and kinds.issuperset(map(type, value)):
            return value
        return tuple([check(item) for item in value])

    row = get_args(item)
    if get_origin(item) is not tuple or len(set(row)) != 1 or row[0] not in (int, bytes, str):
        return check_sequence

    # Rows of one plain type, such as stripes: all of them at once, and nothing is rebuilt.
    rows, widths, cells = {tuple}, {len(row)}, {row[0]}

    def check_rows(value: Any) -> Any:
        if (
            type(value) is tuple
            and rows.issuperset(map(type, value))
            and widths.issuperset(map(len, value))
            and cells.issuperset(map(type, chain.from_iterable(value)))
        ):
            return value
        return check_sequence(value)  # says what is wrong

    return check_rows


def _fields_checker(cls: type, name: str, names: tuple[str, ...], annotations: tuple[Any, ...]) -> Check:
    """For a NamedTuple, or a bare tuple of fixed length."""
    fields = [_accepted(annotation) for annotation in annotations]
    shapes: dict[tuple[type, ...], list[tuple[int, Check]]] = {
        shape: [(i, then) for i, kind in enumerate(shape) if (then := fields[i][kind]) is not None]
        for shape in product(*fields)
    }
    assert len(shapes) <= SHAPES_MAX, f"{name} has too many optional fields"

    def check_fields(value: Any) -> Any:
        if type(value) is not tuple:
            raise ProtocolError(f"{name}: an array expected, got {type(value).__name__}")
        todo = shapes.get(tuple(map(type, value)))
        if todo is None:
            raise ProtocolError(f"{name}: {_misfit(value, names, fields)}")
        changed = None
        for i, then in todo:
            old = value[i]
            new = then(old)
            if new is not old:
                if changed is None:
                    changed = list(value)
                changed[i] = new
        return _new(cls, value if changed is None else changed)

    return check_fields


def _misfit(value: tuple[Any, ...], names: tuple[str, ...], fields: list[dict[type, Check | None]]) -> str:
    """What is wrong with the types of `value`."""
    if len(value) != len(names):
        return f"{len(names)} fields expected, got {len(value)}"
    for name, accepted, item in zip(names, fields, value, strict=True):
        if type(item) not in accepted:
            return f"{name} may not be {type(item).__name__}"
    raise AssertionError("it fits")


# msgpack makes room for an array when it reads its length, 1024 levels deep: this is what bounds a liar's memory.
ARRAY_ITEMS_MAX = 1 << 15

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
            max_array_len=ARRAY_ITEMS_MAX,
        )
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError(f"bad msgpack: {error!r}") from None


_REQUEST_TYPES = (int, int, int, int, int, int, int, int, tuple, int, tuple, str, type(None), tuple)
_RIDE_AT = _REQUEST_TYPES.index(type(None))
_REQUEST_RIDE_TYPES = (*_REQUEST_TYPES[:_RIDE_AT], tuple, tuple)
_REPLY_TYPES = (int, int, int, int, int, tuple, int, int, int, tuple, int)
_check_ride = checker(Ride)
_check_granted = checker(tuple[Granted, ...])


def encode_request(header: RequestHeader) -> bytes:
    """The msgpack header of a request (for tests: ClientImport.send packs the fields without making a RequestHeader)."""
    return _pack(header)  # type: ignore[no-any-return]


def decode_request(raw: Any) -> tuple[RequestHeader, Spec]:
    """A request from its unpacked header; ProtocolError if anything about it is wrong."""
    if type(raw) is not tuple or ((kinds := tuple(map(type, raw))) != _REQUEST_TYPES and kinds != _REQUEST_RIDE_TYPES):
        raise ProtocolError("not a request header")
    xid, opcode, _, _, flags, tag, _, transno, pre_versions, _, cred, _, ride, body = raw
    spec = BY_OPCODE.get(opcode)
    if spec is None:
        raise ProtocolError(f"unknown opcode {opcode}")
    if xid < 0 or flags < 0 or not 0 <= transno < TRANSNO_END:
        raise ProtocolError("request header out of bounds")
    if not 0 <= tag <= limits.mod_rpcs_max + limits.mod_rpcs_spare:
        raise ProtocolError(f"reply slot {tag}")
    if pre_versions:
        _check_pre_versions(pre_versions)
    if not 2 <= len(cred) <= limits.groups_max + 2:
        raise ProtocolError("a credential has uid, gid and a bounded number of groups")
    for number in cred:
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise ProtocolError("bad credential")
    if ride is not None:
        ride = _check_ride(ride)
    return _new(RequestHeader, raw[:_RIDE_AT] + (ride, spec.check(body))), spec


def _check_pre_versions(versions: tuple[Any, ...]) -> None:
    if len(versions) > limits.pre_versions_max or any(type(version) is not int for version in versions):
        raise ProtocolError("bad pre-versions")


def check_reply(raw: Any) -> Any:
    """`raw` if it has the shape of a reply; its body is checked by `Spec.check_reply` once the request is known."""
    if type(raw) is not tuple or len(raw) != 12 or tuple(map(type, raw[:11])) != _REPLY_TYPES:
        raise ProtocolError("not a reply header")
    if raw[5]:
        _check_pre_versions(raw[5])
    if raw[9]:
        raw = (*raw[:9], _check_granted(raw[9]), *raw[10:])
    return raw
