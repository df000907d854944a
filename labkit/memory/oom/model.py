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

TEXT = re.compile(r"\b(CUDA|HIP) (error: )?out of memory")
AMOUNT = r"(\d+(?:\.\d+)?) (bytes|B|KiB|MiB|GiB|TiB)\b"
UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "TiB": 2**40}
EXPANDABLE = "PYTORCH_ALLOC_CONF=expandable_segments:True"
CHAIN_LENGTH = 16
NAMES_SHOWN = 3


class AllocationFailure(NamedTuple):
    """The figures in the exception's text, in bytes; None if missing."""

    device: str | None = None
    asked_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    allowed_bytes: int | None = None
    allocated_bytes: int | None = None
    cached_bytes: int | None = None


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
    """The storages that Python's tensors hold, biggest first; complete unless time ran out."""

    tensors: tuple[LiveTensor, ...] = ()
    complete: bool = True


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
    largest_block_bytes: int | None = None
    live: LiveTensors = field(default_factory=LiveTensors)

    @property
    def unheld_bytes(self) -> int | None:
        """Allocated bytes that no Python object holds, such as tensors saved for backward."""
        allocated = self.balance.this_process.allocated_bytes if self.balance else None
        if allocated is None or not self.live.complete:
            return None
        return max(0, allocated - sum(one.held_bytes for one in self.live.tensors))


def find_out_of_memory(error: BaseException | None) -> BaseException | None:
    """The out-of-memory error of a GPU: this exception, or one that led to it; None if neither."""
    return next((one for one in walk_chain(error) if TEXT.search(str(one))), None)


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
    number = re.search(r"\bGPU (\d+)", text)
    return AllocationFailure(
        device=f"cuda:{number[1]}" if number else None,
        asked_bytes=_read_amount(rf"[Tt]ried to allocate {AMOUNT}", text),
        total_bytes=_read_amount(rf"total capacity of {AMOUNT}", text),
        free_bytes=_read_amount(rf"of which {AMOUNT} is free", text),
        allowed_bytes=_read_amount(rf"{AMOUNT} allowed", text),
        allocated_bytes=_read_amount(rf"{AMOUNT} is allocated by PyTorch", text),
        cached_bytes=_read_amount(rf"{AMOUNT} is reserved by PyTorch but unallocated", text),
    )


def read_largest_block(cuda: Any, device: str) -> int | None:
    """Bytes of the largest free block in the allocator's cache; None if unknown.

    Reads the segments of ``torch.cuda.memory_snapshot()`` without the history, which can be long.
    """
    try:
        segments = cuda.memory_snapshot(include_traces=False)
    except (RuntimeError, TypeError):
        return None  # a custom allocator, or a torch that cannot leave out the history
    index = int(device.partition(":")[2])
    free = (
        block["size"]
        for segment in segments
        if segment["device"] == index
        for block in segment["blocks"]
        if block["state"] == "inactive"
    )
    return max(free, default=0)


def list_measures(page: OutOfMemoryPage) -> list[Measure]:
    """What would help: measures that free enough come first; in each group, the cheapest first."""
    failure = page.failure
    asked, free = failure.asked_bytes, failure.free_bytes
    short = None if asked is None or free is None else max(0, asked - free)
    smaller = Measure("a smaller batch, a smaller type (torch.autocast), or a part at a time")
    limit = failure.allowed_bytes or failure.total_bytes
    if asked is not None and limit is not None and asked > limit:
        can_have = f"{format_bytes(asked)} is more than the {format_bytes(limit)} it can have"
        return [Measure(f"{can_have}: no freeing helps"), smaller]
    found = [*_measure_allocator(page), *_measure_leftovers(page), *_measure_others(page)]

    def comes_later(measure: Measure) -> bool:
        return short is None or measure.frees_bytes is None or measure.frees_bytes < short

    return [*sorted(found, key=comes_later), *_measure_use(page), smaller]


def _measure_allocator(page: OutOfMemoryPage) -> Iterator[Measure]:
    asked, cached = page.failure.asked_bytes, page.failure.cached_bytes
    block = page.largest_block_bytes
    if asked and cached and cached >= asked and (block is None or block < asked):
        yield Measure(
            f"enough is cached, but in smaller pieces: start the kernel with {EXPANDABLE}", cached
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
    others = page.balance.other_processes_bytes if page.balance else None
    if others and page.balance and not page.balance.shared:
        yield Measure("end other processes on this device, such as idle kernels", others)


def _measure_use(page: OutOfMemoryPage) -> Iterator[Measure]:
    named = [one for one in page.live.tensors if "user" in _list_holder_kinds(one)]
    if named:
        names = ", ".join(_first_user_name(one) for one in named[:NAMES_SHOWN])
        yield Measure(f"del what is not needed any more, the biggest first: {names}")
    if page.failure.allowed_bytes:
        yield Measure("raise torch.cuda.set_per_process_memory_fraction(...)")
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
    found = re.search(pattern, text)
    return round(float(found[1]) * UNITS[found[2]]) if found else None
