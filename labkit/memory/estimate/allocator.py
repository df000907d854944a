"""Simulates the caching allocator of torch for CUDA.

``CachingAllocator`` computes the bytes that torch's allocator would take from the driver. It
follows the native allocator with default settings, on one stream. Small requests are cut from
segments of 2 MiB, medium ones from 20 MiB, and large ones get their own segment. The smallest
free block that is large enough is used, its rest is split off if it is large enough, and adjacent
free blocks are joined. Nothing is returned to the driver. A real allocator does that before it
fails, so a smaller capacity may still be enough.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from labkit.memory.balance.model import MIB
from labkit.memory.track.model import Storage

SMALLEST_BLOCK, SMALL_REQUEST = 512, MIB
SMALL_SEGMENT, MIDDLE_SEGMENT, SEGMENT_STEP = 2 * MIB, 20 * MIB, 2 * MIB
LARGE_REQUEST = 10 * MIB


def round_request(count: int) -> int:
    """Bytes of the block for a request: the next multiple of 512; 0 for 0.

    >>> round_request(0), round_request(1), round_request(512), round_request(513)
    (0, 512, 512, 1024)
    """
    return -(-count // SMALLEST_BLOCK) * SMALLEST_BLOCK


class CachedBlock:
    """A block of a segment, and its neighbors in it."""

    __slots__ = ("bytes", "following", "free", "number", "previous", "small")

    def __init__(self, number: int, count: int, *, small: bool) -> None:
        self.number, self.bytes, self.small = number, count, small
        self.free = True
        self.previous: CachedBlock | None = None
        self.following: CachedBlock | None = None


class CachingAllocator:
    """Simulates the allocator for the storages of one device; an observer of StorageTracer."""

    def __init__(self) -> None:
        self.reserved_bytes = self.allocated_bytes = self.peak_allocated_bytes = 0
        self._numbers = 0
        self._used: dict[int, CachedBlock] = {}
        # Free blocks of the small pool (True) and the large one, by size and then by age.
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._by_number: dict[int, CachedBlock] = {}

    def allocate(self, storage: Storage) -> None:
        """Gives the storage a block, from a new segment if no free block is large enough."""
        size = round_request(storage.bytes)
        if not size:
            return
        block = self._take_free(size) or self._add_segment(size)
        self._split(block, size)
        block.free = False
        self._used[storage.serial] = block
        self.allocated_bytes += block.bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def free(self, storage: Storage) -> None:
        """Frees the storage's block and joins it with its free neighbors."""
        block = self._used.pop(storage.serial, None)
        if block is None:
            return
        self.allocated_bytes -= block.bytes
        for neighbour in (block.previous, block.following):
            if neighbour is not None and neighbour.free:
                self._withdraw(neighbour)
                self._join(block, neighbour)
        self._offer(block)

    def _take_free(self, size: int) -> CachedBlock | None:
        pool = self._free[size <= SMALL_REQUEST]
        place = bisect_left(pool, (size, 0))
        return self._by_number[pool.pop(place)[1]] if place < len(pool) else None

    def _add_segment(self, size: int) -> CachedBlock:
        small = size <= SMALL_REQUEST
        if small:
            count = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            count = MIDDLE_SEGMENT
        else:
            count = -(-size // SEGMENT_STEP) * SEGMENT_STEP
        self.reserved_bytes += count
        return self._make_block(count, small=small)

    def _make_block(self, count: int, *, small: bool) -> CachedBlock:
        self._numbers += 1
        block = CachedBlock(self._numbers, count, small=small)
        self._by_number[block.number] = block
        return block

    def _split(self, block: CachedBlock, size: int) -> None:
        left = block.bytes - size
        if left < SMALLEST_BLOCK if block.small else left <= SMALL_REQUEST:
            return
        rest = self._make_block(left, small=block.small)
        rest.previous, rest.following = block, block.following
        if rest.following is not None:
            rest.following.previous = rest
        block.bytes, block.following = size, rest
        self._offer(rest)

    def _join(self, kept: CachedBlock, gone: CachedBlock) -> None:
        kept.bytes += gone.bytes
        if gone is kept.previous:
            kept.previous = gone.previous
            if kept.previous is not None:
                kept.previous.following = kept
        else:
            kept.following = gone.following
            if kept.following is not None:
                kept.following.previous = kept
        del self._by_number[gone.number]

    def _offer(self, block: CachedBlock) -> None:
        block.free = True
        insort(self._free[block.small], (block.bytes, block.number))

    def _withdraw(self, block: CachedBlock) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.bytes, block.number))]
