"""The codec of /dev/fuse: sizes as the kernel's header file has them, and requests that are cut short or made up."""

from __future__ import annotations

import os
import random
import struct

import pytest

from lustrelite.fuse import kernel
from lustrelite.fuse.kernel import Attributes, op

# sizeof() of the structures in <linux/fuse.h> that an operation begins with
SIZES = {
    op.FORGET: 8, op.GETATTR: 16, op.SETATTR: 88, op.MKNOD: 16, op.MKDIR: 8, op.RENAME: 8, op.RENAME2: 16, op.LINK: 8,
    op.OPEN: 8, op.READ: 40, op.WRITE: 40, op.RELEASE: 24, op.FSYNC: 16, op.SETXATTR: 16, op.GETXATTR: 8, op.FLUSH: 24,
    op.INIT: 16, op.GETLK: 48, op.SETLK: 48, op.SETLKW: 48, op.CREATE: 16, op.INTERRUPT: 8, op.BATCH_FORGET: 8,
    op.FALLOCATE: 32, op.LSEEK: 24, op.COPY_FILE_RANGE: 56, op.STATX: 24, op.TMPFILE: 16, op.ACCESS: 8, op.IOCTL: 32,
}  # fmt: skip
ATTR = Attributes(7, 4097, 16, 1_500_000_001, -1, 3 * 10**9 + 5, 0o100644, 2, 1, 2, os.makedev(259, 70000))


@pytest.mark.parametrize("opcode", SIZES)
def test_a_request_begins_with_the_structure_of_the_kernel(opcode: int) -> None:
    assert kernel.SHAPES[opcode].fields.size == SIZES[opcode], kernel.OP_NAMES[opcode]


def test_answers_have_the_sizes_of_the_kernel() -> None:
    assert len(kernel.entry_out(1, 0, 0, ATTR)) == 128
    assert len(kernel.attr_out(0, ATTR)) == 104
    assert len(kernel.open_out(1, 0)) == 16
    assert len(kernel.write_out(1)) == 8
    assert len(kernel.statfs_out(1, 1, 1, 1, 1, 255)) == 80
    assert len(kernel.lock_out(0, 1, 0, 1)) == 24
    assert len(kernel.statx_out(0, 0xFFF, ATTR, 1)) == 288
    assert len(kernel.init_out(45, 0, 0, 64)) == 64
    assert len(kernel.inval_inode(1, 0, 0)) == 40
    assert len(kernel.inc_epoch()) == 16


def test_attributes_stand_where_the_kernel_looks() -> None:
    raw = kernel.attr_out(1.5, ATTR)
    assert struct.unpack_from("<QI", raw) == (1, 500_000_000)
    ino, size, blocks, *seconds = struct.unpack_from("<3Q3q", raw, 16)
    assert (ino, size, blocks, seconds) == (7, 4097, 16, [1, -1, 3])
    atime, mtime, ctime, mode, links, uid, gid, rdev = struct.unpack_from("<8I", raw, 64)
    assert (atime, mtime, ctime) == (500_000_001, 999_999_999, 5)  # a time before 1970 counts up to the second
    assert (mode, links, uid, gid) == (0o100644, 2, 1, 2)
    assert kernel.device_in(rdev) == ATTR.rdev


@pytest.mark.parametrize("device", [(0, 0), (1, 3), (8, 17), (259, 70000), (4095, 1048575)])
def test_devices_travel_both_ways(device: tuple[int, int]) -> None:
    assert kernel.device_in(kernel.device_out(os.makedev(*device))) == os.makedev(*device)


def test_names_follow_the_structure() -> None:
    fields, names, rest = kernel.decode(op.RENAME2, struct.pack("<QII", 5, 1, 0) + b"a\0b\xff\0")
    assert (fields, names, bytes(rest)) == ((5, 1, 0), [b"a", b"b\xff"], b"")
    fields, names, rest = kernel.decode(op.SETXATTR, struct.pack("<IIII", 3, 0, 0, 0) + b"user.a\0v\0w")
    assert (names, bytes(rest)) == ([b"user.a"], b"v\0w")
    fields, names, rest = kernel.decode(op.SETXATTR, struct.pack("<II", 3, 1) + b"user.a\0v\0w", kernel.SETXATTR_SHORT)
    assert (fields, names, bytes(rest)) == ((3, 1), [b"user.a"], b"v\0w")


@pytest.mark.parametrize("opcode", kernel.SHAPES)
def test_what_is_cut_short_is_refused(opcode: int) -> None:
    shape = kernel.SHAPES[opcode]
    whole = bytes(shape.fields.size) + b"name\0" * shape.names
    kernel.decode(opcode, whole)
    for length in range(len(whole)):
        with pytest.raises(kernel.Malformed):
            kernel.decode(opcode, whole[:length])


@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_is_made_up_does_anything_else(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        opcode = rng.choice(list(kernel.SHAPES))
        raw = rng.randbytes(rng.choice((0, 1, 7, 8, 40, 41, 90, 300)))
        try:
            fields, names, _ = kernel.decode(opcode, raw)
            kernel.forgets(fields[0] if fields else 0, raw)
        except kernel.Malformed:
            continue
        assert all(b"\0" not in name for name in names)


def test_more_forgotten_than_sent_is_refused() -> None:
    assert kernel.forgets(2, struct.pack("<4Q", 5, 1, 6, 2)) == [(5, 1), (6, 2)]
    with pytest.raises(kernel.Malformed):
        kernel.forgets(3, struct.pack("<4Q", 5, 1, 6, 2))
    with pytest.raises(kernel.Malformed):
        kernel.forgets(1 << 31, b"")


def test_entries_of_a_directory_are_padded_and_typed() -> None:
    raw = kernel.dirent(9, 77, b"abc", 0o040000)
    assert len(raw) == 32 and struct.unpack_from("<QQII", raw) == (9, 77, 3, 4) and raw[24:] == b"abc" + bytes(5)


def test_flags_beyond_32_bits() -> None:
    assert kernel.init_flags(kernel.init.INIT_EXT, struct.pack("<I", 3)) == kernel.init.INIT_EXT | 3 << 32
    assert kernel.init_flags(0, struct.pack("<I", 3)) == 0
