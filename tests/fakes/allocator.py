"""A small caching allocator that keeps the books itself, and writes snapshots as torch's does.

It is what the tests compare with: after each event it counts by hand what is live and reserved,
and which ranges are free.
"""

from __future__ import annotations

from typing import NamedTuple

MIB = 2**20
ROUNDING = 512
PAGE = 2 * MIB
SEGMENT = 4 * MIB
BASE = 0x7F00_0000_0000


class Books(NamedTuple):
    """What is true after an event; ``live`` has the size asked for at each address."""

    live: dict[int, int]
    reserved_bytes: int
    gaps: tuple[tuple[int, int], ...]

    @property
    def live_bytes(self):
        return sum(self.live.values())


class FakeAllocator:
    """One device's allocator and its recorder, which keeps the last ``max_entries`` events."""

    def __init__(self, *, device=0, expandable=False, max_entries=None):
        self.device, self.expandable, self.max_entries = device, expandable, max_entries
        self.events: list[dict] = []
        self.segments: dict[int, int] = {}
        self.blocks: dict[int, dict] = {}
        self.free_address = BASE + device * 2**40
        self.clock_us = 1_700_000_000_000_000
        self.recording = False
        self.books: list[Books] = []

    def start(self):
        """Begins to record; what is there by then has neither an event nor a stack."""
        self.recording = True
        self.books = [self.take_books()]
        for block in self.blocks.values():
            block["frames"] = []
        return self

    def alloc(self, size, frames=(), stream=0):
        """Gives the address of a new block, in the first gap that is large enough."""
        rounded = max(1, -(-size // ROUNDING)) * ROUNDING
        address = next((at for at, room in self.find_gaps() if room >= rounded), None)
        if address is None:
            address = self.grow(rounded)
        self.blocks[address] = {
            "size": rounded,
            "requested_size": size,
            "state": "active_allocated",
            "frames": list(frames) if self.recording else [],
        }
        self.note("alloc", addr=address, size=size, frames=list(frames), stream=stream)
        return address

    def free(self, address, *, later=False):
        """Asks for a block to be freed; ``later``: another stream still uses it."""
        block = self.blocks[address]
        facts = {"size": block["requested_size"], "frames": block["frames"]}
        self.note("free_requested", addr=address, **facts)
        if later:
            self.blocks[address]["state"] = "active_pending_free"
        else:
            self.complete(address)

    def complete(self, address):
        """The other stream is done with a block."""
        block = self.blocks.pop(address)
        facts = {"size": block["requested_size"], "frames": block["frames"]}
        self.note("free_completed", addr=address, **facts)

    def empty_cache(self):
        """Gives back segments that are free; of an expandable one the pages at its end."""
        for address, size in list(self.segments.items()):
            inside = [at + block["size"] for at, block in self.blocks.items()]
            ends = [end for end in inside if address < end <= address + size]
            if self.expandable:
                keep = -(-(max(ends, default=address) - address) // PAGE) * PAGE
                if keep < size:
                    self.segments[address] = keep
                    if not keep:
                        del self.segments[address]
                    self.note("segment_unmap", addr=address + keep, size=size - keep)
            elif not ends:
                del self.segments[address]
                self.note("segment_free", addr=address, size=size)

    def fail(self, size, *, free=0, frames=()):
        """Asks in vain."""
        self.note("oom", size=size, device_free=free, frames=list(frames))

    def grow(self, rounded):
        """Reserves room for a block that fits nowhere, and gives the place for it."""
        if not self.expandable:
            address, size = self.free_address, max(SEGMENT, -(-rounded // PAGE) * PAGE)
            self.free_address += size + PAGE
            self.segments[address] = size
            self.note("segment_alloc", addr=address, size=size)
            return address
        address = next(iter(self.segments), self.free_address)
        end = address + self.segments.get(address, 0)
        used = max((at + block["size"] for at, block in self.blocks.items()), default=address)
        more = -(-(used + rounded - end) // PAGE) * PAGE
        self.segments[address] = end - address + more
        self.note("segment_map", addr=end, size=more)
        return used

    def find_gaps(self):
        """The free ranges, as pairs of address and size."""
        gaps = []
        for address, size in sorted(self.segments.items()):
            at = address
            for place, block in sorted(self.blocks.items()):
                if address <= place < address + size:
                    if place > at:
                        gaps.append((at, place - at))
                    at = place + block["size"]
            if at < address + size:
                gaps.append((at, address + size - at))
        return gaps

    def take_books(self):
        live = {at: block["requested_size"] for at, block in self.blocks.items()}
        return Books(live, sum(self.segments.values()), tuple(self.find_gaps()))

    def note(self, action, *, stream=0, **facts):
        """Records an event, if it is recording, and counts anew."""
        self.clock_us += 1000
        if self.recording:
            self.events.append(
                {"action": action, "stream": stream, "time_us": self.clock_us, **facts}
            )
            self.books.append(self.take_books())

    @property
    def kept(self):
        """The events that the recorder still has."""
        return self.events[-self.max_entries :] if self.max_entries else self.events

    def list_segments(self):
        return [
            {
                "device": self.device,
                "address": address,
                "total_size": size,
                "stream": 0,
                "segment_type": "large",
                "segment_pool_id": (0, 0),
                "is_expandable": self.expandable,
                "frames": [],
                "blocks": self.list_blocks(address, size),
            }
            for address, size in sorted(self.segments.items())
        ]

    def list_blocks(self, address, size):
        inside = [
            {"address": at, **block}
            for at, block in self.blocks.items()
            if address <= at < address + size
        ]
        gaps = [
            {"address": at, "size": room, "requested_size": 0, "state": "inactive", "frames": []}
            for at, room in self.find_gaps()
            if address <= at < address + size
        ]
        return sorted([*inside, *gaps], key=lambda block: block["address"])


def take_snapshot(*allocators, **own):
    """What torch.cuda.memory._snapshot() would give; ``own`` is what labkit adds."""
    count = 1 + max((one.device for one in allocators), default=-1)
    traces = [[] for _ in range(count)]
    for one in allocators:
        traces[one.device] = one.kept
    snapshot = {
        "segments": [segment for one in allocators for segment in one.list_segments()],
        "device_traces": traces,
        "allocator_settings": {
            "expandable_segments": any(one.expandable for one in allocators),
            "garbage_collection_threshold": 0.0,
        },
        "external_annotations": [],
    }
    return {**snapshot, "labkit": own} if own else snapshot


def frame(file, line, name="<module>"):
    """A frame as torch writes it."""
    return {"filename": file, "line": line, "name": name}


TORCH = "/opt/venv/lib/python3.12/site-packages/torch/nn/modules/linear.py"
PACKAGE = "/opt/venv/lib/python3.12/site-packages/resnet/blocks.py"
MAIN = frame("/home/ada/train.py", 40)


def stack_of(line, name="forward"):
    """A stack of the user's train.py, with torch's frames above the line."""
    return [frame(TORCH, 134, "forward"), frame("/home/ada/train.py", line, name), MAIN]


def make_training(**facts):
    """A device after two steps of training that end in memory running out."""
    allocator = FakeAllocator(**facts)
    old = allocator.alloc(MIB)
    allocator.start()
    weights = allocator.alloc(3 * MIB, stack_of(12, "__init__"))
    for _ in range(2):
        hidden = [allocator.alloc(MIB, stack_of(20)) for _ in range(4)]
        gradient = allocator.alloc(MIB, ())
        for address in hidden[::2]:
            allocator.free(address)
        for address in (*hidden[1::2], gradient):
            allocator.free(address)
    hidden = [allocator.alloc(MIB, stack_of(20)) for _ in range(6)]
    for address in hidden[::2]:
        allocator.free(address)
    allocator.fail(3 * MIB, free=MIB // 2, frames=stack_of(21))
    allocator.free(old)
    assert weights in allocator.blocks
    return allocator
