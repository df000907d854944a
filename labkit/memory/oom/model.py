"""The facts of an out-of-memory error, and the measures that would help.

The facts come from the exception's text (the moment of the error), the allocator's segments, the
balance, and the live tensors with the names that hold them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from labkit.memory.balance.model import MIB, Balance
from labkit.render import Displayed
from labkit.text import format_bytes

# The second is cudaMallocAsync's.
TEXT = re.compile(r"\b(CUDA|HIP) (error: )?out of memory|would exceed allowed memory")
AMOUNT = r"(\d+(?:\.\d+)?) (bytes|B|KiB|MiB|GiB|TiB)\b"
UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "TiB": 2**40}
EXPANDABLE = "PYTORCH_ALLOC_CONF=expandable_segments:True"
RAISE_LIMIT = "raise torch.cuda.set_per_process_memory_fraction(...)"
CHAIN_LENGTH = 16
NAMES_SHOWN = 3


class AllocationFailure(NamedTuple):
    """The figures in the exception's text, in bytes; None if missing.

    ``allowed_bytes`` is the limit of ``set_per_process_memory_fraction``. ``pooled_bytes`` are
    free in private pools (of CUDA graphs, of ``MemPool``), which no other tensor can use.
    """

    device: str | None = None
    asked_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    allowed_bytes: int | None = None
    allocated_bytes: int | None = None
    cached_bytes: int | None = None
    pooled_bytes: int | None = None

    @property
    def over_limit_bytes(self) -> int:
        """By how much the request exceeds the memory fraction; 0 if it does not, or is unknown."""
        if self.asked_bytes is None or self.allowed_bytes is None or self.allocated_bytes is None:
            return 0
        reserved = self.allocated_bytes + (self.cached_bytes or 0) + (self.pooled_bytes or 0)
        return max(0, reserved + self.asked_bytes - self.allowed_bytes)

    @property
    def short_bytes(self) -> int | None:
        """How much must be freed, if it is freed in one piece; None if unknown."""
        if self.asked_bytes is None or self.free_bytes is None:
            return None
        return max(0, self.asked_bytes - self.free_bytes, self.over_limit_bytes)


class AllocatorBlocks(NamedTuple):
    """The allocator's blocks on a device, in bytes.

    ``largest_bytes`` is its largest free block for the current stream, ``other_stream_bytes`` for
    another stream; the private pools are left out. ``requested_bytes``: the live blocks before
    the allocator's rounding. ``expandable``: expandable segments are on.
    """

    largest_bytes: int
    other_stream_bytes: int = 0
    requested_bytes: int | None = None
    expandable: bool = False


class Holder(NamedTuple):
    """A name that keeps a tensor alive; kind is "user", "output" (IPython's) or "frame"."""

    kind: str
    words: str


class LiveTensor(NamedTuple):
    """One storage on the device, with the names that hold it; ``in_graph``: it has a grad_fn."""

    held_bytes: int
    shape: tuple[int, ...]
    dtype: str
    holders: tuple[Holder, ...] = ()
    in_graph: bool = False


class LiveTensors(NamedTuple):
    """The storages that Python's tensors hold, biggest first; complete unless time ran out.

    ``pools`` are the names of CUDA graphs and memory pools.
    """

    tensors: tuple[LiveTensor, ...] = ()
    complete: bool = True
    pools: tuple[str, ...] = ()


class Measure(NamedTuple):
    """A measure that would help, and the bytes that it frees; None if unknown."""

    words: str
    frees_bytes: int | None = None


@dataclass(frozen=True, repr=False)
class OutOfMemoryPage(
    Displayed, view="labkit.memory.oom.view", text="format_page", html="render_page"
):
    """All known facts about one out-of-memory error."""

    failure: AllocationFailure
    balance: Balance | None = None
    cache: AllocatorBlocks | None = None
    live: LiveTensors = field(default_factory=LiveTensors)

    @property
    def rounding_bytes(self) -> int:
        """What the allocator adds to the requested bytes of the live blocks; 0 if unknown."""
        allocated = self.balance.this_process.allocated_bytes if self.balance else None
        requested = self.cache.requested_bytes if self.cache else None
        return 0 if allocated is None or requested is None else max(0, allocated - requested)

    @property
    def unheld_bytes(self) -> int | None:
        """Allocated bytes that no Python object holds, such as tensors saved for backward."""
        allocated = self.balance.this_process.allocated_bytes if self.balance else None
        if allocated is None or not self.live.complete:
            return None
        held = sum(one.held_bytes for one in self.live.tensors)
        return max(0, allocated - self.rounding_bytes - held)


def find_out_of_memory(error: BaseException | None) -> BaseException | None:
    """The out-of-memory error of a GPU: this exception, or one that led to it; None if neither."""
    return next((one for one in walk_chain(error) if _is_out_of_memory(one)), None)


def _is_out_of_memory(error: BaseException) -> bool:
    cls = type(error)
    of_torch = cls.__name__ == "OutOfMemoryError" and cls.__module__.partition(".")[0] == "torch"
    return of_torch or bool(TEXT.search(str(error)))


def walk_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it, each once, as a traceback shows them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen and len(seen) < CHAIN_LENGTH:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def read_failure(text: str) -> AllocationFailure:
    """The figures in an OutOfMemoryError's text, in bytes.

    >>> read_failure("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has").asked_bytes
    2147483648
    """
    number = re.search(r"\b(?:GPU|device) (\d+)", text)
    allocated = _read_amount(
        rf"{AMOUNT} is allocated by PyTorch|Currently allocated *: {AMOUNT}", text
    )
    # Torch adds what is free in private pools to what is allocated.
    pooled = _read_amount(rf"{AMOUNT} allocated in private pools", text)
    total = _read_amount(rf"total capacity of {AMOUNT}|Device limit *: {AMOUNT}", text)
    allowed = _read_amount(rf"{AMOUNT} allowed|memory fraction\)\s*: {AMOUNT}", text)
    return AllocationFailure(
        device=f"cuda:{number[1]}" if number else None,
        asked_bytes=_read_amount(rf"[Tt]ried to allocate {AMOUNT}|Requested *: {AMOUNT}", text),
        total_bytes=total,
        free_bytes=_read_amount(rf"of which {AMOUNT} is free|Free \(\S+ to \w+\): {AMOUNT}", text),
        # Without a limit, cudaMallocAsync prints an enormous one.
        allowed_bytes=None if allowed and total and allowed > total else allowed,
        allocated_bytes=allocated and max(0, allocated - (pooled or 0)),
        cached_bytes=_read_amount(rf"{AMOUNT} is reserved by PyTorch but unallocated", text),
        pooled_bytes=pooled,
    )


def read_cache(cuda: Any, device: str) -> AllocatorBlocks | None:
    """The blocks of the allocator on a device; None if unknown.

    Reads the segments of ``torch.cuda.memory_snapshot()`` without the history, which can be long.
    """
    index = int(device.partition(":")[2])
    try:
        segments = cuda.memory_snapshot(include_traces=False)
        stream = cuda.current_stream(index).cuda_stream
    except (RuntimeError, TypeError):
        return None  # a custom allocator, or a torch that cannot leave out the history
    segments = [one for one in segments if one["device"] == index]
    free = {True: 0, False: 0}
    for one in segments:
        if not any(one.get("segment_pool_id", ())):
            sizes = (block["size"] for block in one["blocks"] if block["state"] == "inactive")
            mine = one.get("stream", stream) == stream
            free[mine] = max(free[mine], max(sizes, default=0))
    live = [b for one in segments for b in one["blocks"] if b["state"] == "active_allocated"]
    return AllocatorBlocks(
        largest_bytes=free[True],
        other_stream_bytes=free[False],
        requested_bytes=sum(block.get("requested_size", block["size"]) for block in live),
        expandable=any(one.get("is_expandable") for one in segments),
    )


def list_measures(page: OutOfMemoryPage) -> list[Measure]:
    """What would help: measures that free enough come first; in each group, the cheapest first."""
    failure = page.failure
    asked, short = failure.asked_bytes, failure.short_bytes
    smaller = Measure("a smaller batch, a smaller type (torch.autocast), or a part at a time")
    limit = failure.allowed_bytes or failure.total_bytes
    if asked is not None and limit is not None and asked > limit:
        can_have = f"{format_bytes(asked)} is more than the {format_bytes(limit)} it can have"
        fraction = [Measure(RAISE_LIMIT)] if asked <= (failure.total_bytes or 0) else []
        return [Measure(f"{can_have}: no freeing helps"), *fraction, smaller]
    found = [*_measure_cache(page), *_measure_leftovers(page), *_measure_others(page)]

    def comes_later(measure: Measure) -> bool:
        return short is None or measure.frees_bytes is None or measure.frees_bytes < short

    first = [Measure(RAISE_LIMIT)] if failure.over_limit_bytes else []
    return [*first, *sorted(found, key=comes_later), *_measure_use(page), smaller]


def _measure_cache(page: OutOfMemoryPage) -> Iterator[Measure]:
    """Memory that the allocator has and cannot give: in pieces, or reserved for another use."""
    asked, cached = page.failure.asked_bytes, page.failure.cached_bytes
    cache = page.cache or AllocatorBlocks(0)
    if asked and max(cache.largest_bytes, cache.other_stream_bytes) >= asked:
        held = max(cache.largest_bytes, cache.other_stream_bytes)
        yield Measure(
            "a free block is large enough, but a block is only used on its own stream: allocate on"
            " that stream, or del the tensors that were",
            held,
        )
    elif asked and cached and cached >= asked:
        pieces = "enough is cached, but in smaller pieces"
        if cache.expandable:
            yield Measure(
                f"{pieces} although expandable segments are on: allocate the largest tensors first"
            )
        else:
            yield Measure(f"{pieces}: start the kernel with {EXPANDABLE}", cached)
    if page.failure.pooled_bytes:
        named = ", ".join(page.live.pools[:NAMES_SHOWN]) or "CUDAGraph, MemPool"
        yield Measure(
            f"private pools keep some of it for CUDA graphs: del what is not replayed any more"
            f" ({named}); after torch.compile, torch.compiler.reset()",
            page.failure.pooled_bytes,
        )


def _measure_leftovers(page: OutOfMemoryPage) -> Iterator[Measure]:
    """Tensors that only IPython or the traceback holds: no code uses them."""
    outputs = [one for one in page.live.tensors if _list_holder_kinds(one) == {"output"}]
    if outputs:
        # Unlike %reset out, %xdel clears the name _ everywhere that IPython stores it.
        named = dict.fromkeys(_name_output(one) for one in outputs)
        lines = ", ".join(f"%xdel {name}" for name in list(named)[:NAMES_SHOWN])
        yield Measure(
            f"only IPython's outputs hold some of it: {lines}",
            sum(one.held_bytes for one in outputs),
        )
    frames = sum(
        one.held_bytes
        for one in page.live.tensors
        if "frame" in _list_holder_kinds(one) and "user" not in _list_holder_kinds(one)
    )
    if frames:
        yield Measure(
            "only this error's traceback holds some of it: run a cell with 1/0, which replaces it",
            frames,
        )


def _measure_others(page: OutOfMemoryPage) -> Iterator[Measure]:
    failure, others = page.failure, page.balance.other_processes_bytes if page.balance else None
    # With enough free memory on the device, the limit of this process is the cause.
    limited = failure.over_limit_bytes and (failure.free_bytes or 0) >= (failure.asked_bytes or 0)
    if others and page.balance and not page.balance.shared and not limited:
        yield Measure("end other processes on this device, such as idle kernels", others)


def _measure_use(page: OutOfMemoryPage) -> Iterator[Measure]:
    named = [one for one in page.live.tensors if "user" in _list_holder_kinds(one)]
    if named:
        names = ", ".join(_first_user_name(one) for one in named[:NAMES_SHOWN])
        yield Measure(f"del what is not needed any more, the biggest first: {names}")
    graph = sum(one.held_bytes for one in named if one.in_graph)
    if graph:
        yield Measure("detach() or item() what is only kept to look at: it holds its graph", graph)
    if graph or (page.unheld_bytes or 0) >= MIB:
        yield Measure("torch.no_grad() where no gradient is needed; else activation checkpointing")


def _list_holder_kinds(tensor: LiveTensor) -> set[str]:
    return {holder.kind for holder in tensor.holders}


def _name_output(tensor: LiveTensor) -> str:
    """IPython's variable for an output: ``_7`` for ``Out[7]``; ``_`` if it has no number."""
    numbers = (re.match(r"(?:Out\[|_)(\d+)", holder.words) for holder in tensor.holders)
    return next((f"_{number[1]}" for number in numbers if number), "_")


def _first_user_name(tensor: LiveTensor) -> str:
    return next(holder.words for holder in tensor.holders if holder.kind == "user")


def _read_amount(pattern: str, text: str) -> int | None:
    """The bytes that the pattern's one filled pair of groups has, a number and its unit."""
    found = re.search(pattern, text)
    if found is None:
        return None
    number, unit = (group for group in found.groups() if group)
    return round(float(number) * UNITS[unit])
