"""The names of things: FIDs, object ids, NIDs, UUIDs, transaction numbers and XIDs.

A FID is 16 bytes on the wire, in memory and as a database key, so it is never converted on the way of a request:
sequence (8 bytes), object in the sequence (4), version (4, always 0), big-endian, so that byte order is FID order.
Source: struct lu_fid, lustre_idl.h; protocol-facts 7.1.
"""

from __future__ import annotations

import re
import struct
from typing import NewType

Fid = NewType("Fid", bytes)  # 16 bytes
ObjectId = NewType("ObjectId", int)  # u64, unique on one OST for ever
Nid = NewType("Nid", str)  # "127.0.0.1:988@tcp", "/path/to/socket@unix", "mds1@sim"
Xid = NewType("Xid", int)  # client-unique, grows with every new request
Transno = NewType("Transno", int)  # target-wide, high 32 bits are the epoch

_FID = struct.Struct(">QII")
_FID_TEXT = re.compile(r"^\[?0x([0-9a-fA-F]+):0x([0-9a-fA-F]+):0x([0-9a-fA-F]+)\]?$")

FID_BYTES = 16
PORT_MAX = 0xFFFF
EPOCH_BITS = 32  # LR_EPOCH_BITS
TRANSNO_END = 1 << 63  # no client has a higher one to replay: the epochs after it must fit in 64 bits
SEQ_ROOT = 0x200000007
SEQ_NORMAL = 0x200000400  # the first sequence that is granted to clients
SEQ_WIDTH = 0x20000  # FIDs in one granted sequence (LUSTRE_METADATA_SEQ_MAX_WIDTH)
NO_FID = Fid(bytes(FID_BYTES))


def make_fid(seq: int, oid: int, ver: int = 0) -> Fid:
    """The FID of object `oid` in sequence `seq`."""
    return Fid(_FID.pack(seq, oid, ver))


ROOT_FID = make_fid(SEQ_ROOT, 1)


def fid_text(fid: bytes) -> str:
    """`fid` as Lustre prints it: `[0x200000401:0x1:0x0]`."""
    seq, oid, ver = _FID.unpack(fid)
    return f"[{seq:#x}:{oid:#x}:{ver:#x}]"


def parse_fid(text: str) -> Fid:
    """The FID written as `[0x200000401:0x1:0x0]` or without brackets; ValueError if it is none."""
    match = _FID_TEXT.match(text.strip())
    if not match:
        raise ValueError(f"not a FID: {text!r} (expected [0xSEQ:0xOID:0xVER])")
    try:
        return make_fid(*(int(part, 16) for part in match.groups()))
    except struct.error:
        raise ValueError(f"not a FID: {text!r} (a number is out of range)") from None


def fid_inode(fid: Fid) -> int:
    """A 64-bit inode number for `fid`, stable over restarts (fid_flatten(), lustre/include/lustre_fid.h)."""
    seq, oid, _ = _FID.unpack(fid)
    if fid == ROOT_FID:
        return 1
    return int(((seq << 24) ^ (seq >> 40)) + oid) & 0xFFFFFFFFFFFFFFFF


def epoch_of(transno: int) -> int:
    """The recovery epoch of `transno`."""
    return transno >> EPOCH_BITS


def first_transno(epoch: int) -> int:
    """The number before the first transaction of `epoch`."""
    return epoch << EPOCH_BITS


_FSNAME = re.compile(r"^[-_a-zA-Z0-9]{1,8}$")
_TARGET = re.compile(r"^([-_a-zA-Z0-9]{1,8})-(MDT|OST)([0-9a-fA-F]{4})$")


def check_fsname(fsname: str) -> str:
    """`fsname` if it is 1 to 8 characters of [-_a-zA-Z0-9]; ValueError otherwise."""
    if not _FSNAME.match(fsname):
        raise ValueError(f"bad file system name {fsname!r}: 1 to 8 characters of [-_a-zA-Z0-9]")
    return fsname


def target_name(fsname: str, kind: str, index: int) -> str:
    """`lustre-OST0001` for ("lustre", "OST", 1); the MGS is just `MGS`."""
    return "MGS" if kind == "MGS" else f"{fsname}-{kind}{index:04x}"


def parse_target_name(name: str) -> tuple[str, str, int]:
    """(fsname, kind, index) of a target's name; ValueError if it is none."""
    if name == "MGS":
        return "", "MGS", 0
    match = _TARGET.match(name)
    if not match:
        raise ValueError(f"not a target name: {name!r} (expected FSNAME-MDT0000 or FSNAME-OST0000)")
    return match.group(1), match.group(2), int(match.group(3), 16)


def mdt_client_uuid(name: str) -> str:
    """The UUID as which the MDT `name` is a client of its OSTs."""
    return f"{name}-mdtlov_UUID"


def target_uuid(name: str) -> str:
    """The UUID by which clients connect to the target `name`."""
    return f"{name}_UUID"


def parse_nid(text: str) -> Nid:
    """`text` as a NID: HOST:PORT@tcp, /PATH@unix, NAME@sim; ValueError if it is none."""
    address, at, net = text.strip().rpartition("@")
    if at and address:
        if net == "tcp" and (match := re.match(r"^.+:(\d{1,5})$", address)):
            if int(match.group(1)) > PORT_MAX:
                raise ValueError(f"bad NID {text!r}: a port is a number up to {PORT_MAX}")
            return Nid(f"{address}@tcp")
        if net == "unix" and address.startswith("/"):
            return Nid(f"{address}@unix")
        if net == "sim":
            return Nid(f"{address}@sim")
    raise ValueError(f"bad NID {text!r}: expected HOST:PORT@tcp or /PATH@unix")
