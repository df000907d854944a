"""CUDA's allocator, played: what it has from the driver for a sequence of storages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.memory.estimate.cuda import CachingAllocator
from labkit.memory.track.model import Storage

MIB = 2**20


def hold(serial, count):
    return Storage(serial, count, "cpu", "other")


@pytest.mark.parametrize(
    ("count", "allocated", "reserved"),
    [
        pytest.param(0, 0, 0, id="nothing"),
        pytest.param(1, 512, 2 * MIB, id="one byte"),
        pytest.param(MIB, MIB, 2 * MIB, id="the largest small one"),
        pytest.param(MIB + 1, MIB + 512, 20 * MIB, id="a middle one"),
        pytest.param(10 * MIB, 10 * MIB, 10 * MIB, id="a large one"),
        pytest.param(11 * MIB + 1, 12 * MIB, 12 * MIB, id="a rest too small to cut off"),
        pytest.param(21 * MIB // 2, 21 * MIB // 2, 12 * MIB, id="a rest that is cut off"),
    ],
)
def test_one_request(count, allocated, reserved):
    allocator = CachingAllocator()
    allocator.allocate(hold(1, count))
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (allocated, reserved)


def test_a_freed_block_is_used_again():
    allocator = CachingAllocator()
    for serial in range(5):
        one = hold(serial, 15 * MIB)
        allocator.allocate(one)
        allocator.free(one)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 16 * MIB)
    assert allocator.peak_allocated_bytes == 16 * MIB


def test_small_ones_share_a_segment():
    allocator = CachingAllocator()
    for serial in range(4):
        allocator.allocate(hold(serial, MIB // 2))
    assert allocator.reserved_bytes == 2 * MIB
    allocator.allocate(hold(9, 1))
    assert allocator.reserved_bytes == 4 * MIB


def test_neighbours_are_joined_when_they_are_free():
    allocator = CachingAllocator()
    parts = [hold(serial, 5 * MIB) for serial in range(4)]
    for one in parts:
        allocator.allocate(one)
    assert allocator.reserved_bytes == 20 * MIB
    for place in (0, 2, 1):
        allocator.free(parts[place])
    allocator.allocate(hold(9, 15 * MIB))
    assert allocator.reserved_bytes == 20 * MIB


def test_what_is_split_in_pieces_does_not_serve_a_large_one():
    allocator = CachingAllocator()
    parts = [hold(serial, 5 * MIB) for serial in range(4)]
    for one in parts:
        allocator.allocate(one)
    allocator.free(parts[0])
    allocator.free(parts[2])
    allocator.allocate(hold(9, 9 * MIB))
    assert allocator.reserved_bytes == 40 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken():
    allocator = CachingAllocator()
    large, small = hold(1, 40 * MIB), hold(2, 20 * MIB)
    for one in (large, small):
        allocator.allocate(one)
    for one in (large, small):
        allocator.free(one)
    allocator.allocate(hold(3, 20 * MIB))
    allocator.allocate(hold(4, 40 * MIB))
    assert allocator.reserved_bytes == 60 * MIB


def test_other_devices_are_not_its_own():
    allocator = CachingAllocator("cuda:0")
    one = hold(1, MIB)
    allocator.allocate(one)
    allocator.free(one)
    assert allocator.reserved_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30 * MIB)), max_size=80))
def test_all_that_is_freed_is_joined_again(moves):
    allocator, held = CachingAllocator(), {}
    for serial, (place, count) in enumerate(moves):
        if place in held:
            allocator.free(held.pop(place))
        else:
            held[place] = hold(serial, count)
            allocator.allocate(held[place])
        assert allocator.allocated_bytes <= allocator.reserved_bytes
    for one in held.values():
        allocator.free(one)
    assert allocator.allocated_bytes == 0
    free = [size for pool in allocator._free.values() for size, _ in pool]
    assert sum(free) == allocator.reserved_bytes
    assert all(block.previous is block.following is None for block in allocator._by_number.values())
