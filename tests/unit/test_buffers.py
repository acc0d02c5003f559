"""Memory for bulk data: aligned, bounded, and never given out while somebody looks at it."""

from __future__ import annotations

import ctypes
import gc
import mmap

import pytest

from lustrelite.rpc.buffers import BufferPool


def address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 100_000, 1 << 20, (4 << 20) - 1, 4 << 20])
def test_a_buffer_begins_at_a_page_and_has_its_length(length: int) -> None:
    view = BufferPool().take(length)
    assert len(view) == length and not view.readonly
    assert address(view) % mmap.PAGESIZE == 0


def test_a_buffer_is_used_again_when_nobody_sees_it() -> None:
    pool = BufferPool()
    first = pool.take(1 << 20)
    where = address(first)
    part = first[100:200]  # a slice is enough to keep it
    del first
    gc.collect()
    assert address(pool.take(1 << 20)) != where
    del part
    assert address(pool.take(1 << 20)) == where


def test_no_two_holders_share_memory() -> None:
    pool = BufferPool()
    views = [pool.take(100_000) for _ in range(20)]
    for number, view in enumerate(views):
        view[:] = bytes([number]) * len(view)
    assert all(bytes(view) == bytes([number]) * 100_000 for number, view in enumerate(views))


def test_what_is_kept_is_bounded() -> None:
    pool = BufferPool(bytes_max=1 << 20)
    views = [pool.take(256 << 10) for _ in range(10)]
    assert pool.bytes_kept <= 1 << 20 and pool.free_bytes() == 0
    del views
    assert pool.free_bytes() == pool.bytes_kept
    pool.take(1 << 20)
    assert pool.bytes_kept <= 1 << 20
