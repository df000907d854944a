"""What torch's CUDA allocator would keep for a sequence of storages, without a GPU.

The rules of the native allocator in its default setting, on one stream: small requests are cut
from segments of 2 MiB, middle ones from 20 MiB, large ones get a segment of their own; the
smallest free block that is large enough is taken, what is left of it is cut off where it is worth
it, and free neighbours are joined. Nothing is given back to the driver: a real allocator does that
before it gives up, so more than it can have may still be enough.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from labkit.memory.storage_levels import Storage

MIB = 2**20
SMALLEST_BLOCK, SMALL_REQUEST = 512, MIB
SMALL_SEGMENT, MIDDLE_SEGMENT, SEGMENT_STEP = 2 * MIB, 20 * MIB, 2 * MIB
LARGE_REQUEST = 10 * MIB


def round_request(count: int) -> int:
    """Bytes of the block for a request: the next multiple of 512; nothing for nothing.

    >>> round_request(0), round_request(1), round_request(512), round_request(513)
    (0, 512, 512, 1024)
    """
    return -(-count // SMALLEST_BLOCK) * SMALLEST_BLOCK


class Block:
    """A stretch of a segment, and its neighbours in it."""

    __slots__ = ("bytes", "following", "free", "number", "previous", "small")

    def __init__(self, number: int, count: int, *, small: bool) -> None:
        self.number, self.bytes, self.small = number, count, small
        self.free = True
        self.previous: Block | None = None
        self.following: Block | None = None


class CachingAllocator:
    """Plays the allocator to the storages of one kind of device; an observer of the tracer."""

    def __init__(self, device: str = "cpu") -> None:
        self.reserved_bytes = self.allocated_bytes = self.peak_allocated_bytes = 0
        self._device = device
        self._numbers = 0
        self._used: dict[int, Block] = {}
        # Free blocks of the small and the large pool, by size and then by age.
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._by_number: dict[int, Block] = {}

    def allocate(self, storage: Storage) -> None:
        """Gives the storage a block, from a new segment where none is large enough."""
        size = round_request(storage.bytes)
        if storage.device != self._device or not size:
            return
        block = self._take_free(size) or self._add_segment(size)
        self._split(block, size)
        block.free = False
        self._used[storage.serial] = block
        self.allocated_bytes += block.bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def free(self, storage: Storage) -> None:
        """Takes the storage's block back and joins it with its free neighbours."""
        block = self._used.pop(storage.serial, None)
        if block is None:
            return
        self.allocated_bytes -= block.bytes
        for neighbour in (block.previous, block.following):
            if neighbour is not None and neighbour.free:
                self._withdraw(neighbour)
                self._join(block, neighbour)
        self._offer(block)

    def _take_free(self, size: int) -> Block | None:
        pool = self._free[size <= SMALL_REQUEST]
        place = bisect_left(pool, (size, 0))
        return self._by_number[pool.pop(place)[1]] if place < len(pool) else None

    def _add_segment(self, size: int) -> Block:
        small = size <= SMALL_REQUEST
        if small:
            count = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            count = MIDDLE_SEGMENT
        else:
            count = -(-size // SEGMENT_STEP) * SEGMENT_STEP
        self.reserved_bytes += count
        return self._make_block(count, small=small)

    def _make_block(self, count: int, *, small: bool) -> Block:
        self._numbers += 1
        block = Block(self._numbers, count, small=small)
        self._by_number[block.number] = block
        return block

    def _split(self, block: Block, size: int) -> None:
        left = block.bytes - size
        if left < SMALLEST_BLOCK if block.small else left <= SMALL_REQUEST:
            return
        rest = self._make_block(left, small=block.small)
        rest.previous, rest.following = block, block.following
        if rest.following is not None:
            rest.following.previous = rest
        block.bytes, block.following = size, rest
        self._offer(rest)

    def _join(self, kept: Block, gone: Block) -> None:
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

    def _offer(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.bytes, block.number))

    def _withdraw(self, block: Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.bytes, block.number))]
