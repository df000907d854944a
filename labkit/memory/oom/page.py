"""Running out of a GPU's memory, explained: what was asked, where the memory is, what would help.

The facts come from the exception's own text (the moment itself), the allocator's segments, and
the balance. Who finds the live tensors and their names hands them in: this module judges and
shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

from labkit.memory.balance.model import MIB, Balance
from labkit.memory.balance.read import Snapshot
from labkit.text import format_bytes

TEXT = re.compile(r"\b(CUDA|HIP) (error: )?out of memory")
AMOUNT = r"(\d+(?:\.\d+)?) (bytes|B|KiB|MiB|GiB|TiB)\b"
UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "TiB": 2**40}
EXPANDABLE = "PYTORCH_ALLOC_CONF=expandable_segments:True"
CHAIN_LENGTH = 16
NAMES_SHOWN = 3


class AllocationFailure(NamedTuple):
    """What the exception's text says of its moment, in bytes; what it does not say is None."""

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
    """Something to do, and the bytes that it frees where that can be told."""

    words: str
    frees_bytes: int | None = None


class OutOfMemoryPage(NamedTuple):
    """Everything known of one shortage; it shows itself as text and html."""

    shortage: AllocationFailure
    balance: Balance | None = None
    largest_block_bytes: int | None = None
    live: LiveTensors = LiveTensors()

    @property
    def unheld_bytes(self) -> int | None:
        """Allocated bytes that no Python object holds, such as what is saved for backward."""
        allocated = self.balance.this_process.allocated_bytes if self.balance else None
        if allocated is None or not self.live.complete:
            return None
        return max(0, allocated - sum(one.held_bytes for one in self.live.tensors))

    def __repr__(self) -> str:
        rows = [f"  {words:<34}{figure:>12}" for words, figure in list_figures(self)]
        parts = ["\n".join([_title(self), *rows])]
        tensors = [f"  {figure:>10}  {words}" for figure, words in list_tensors(self)]
        if tensors:
            parts.append("\n".join(["the biggest live tensors", *tensors]))
        measures = [f"  {place}. {one}" for place, one in enumerate(_say_measures(self), start=1)]
        parts.append("\n".join(["what would help, in order", *measures]))
        if self.balance:
            parts.append(f"the balance after the error\n{Snapshot((self.balance,))!r}")
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        from labkit.memory.balance.view import INLINE_STYLE, draw_balance

        figures = _draw_table(list_figures(self), "left", "right")
        tensors = _draw_table(list_tensors(self), "right", "left")
        measures = "".join(f"<li>{escape(one)}</li>" for one in _say_measures(self))
        parts = [
            f"<b>{escape(_title(self))}</b>{figures}",
            f"<b>the biggest live tensors</b>{tensors}" if tensors else "",
            f'<b>what would help, in order</b><ol style="margin:2px 0 10px">{measures}</ol>',
        ]
        if self.balance:
            parts.append(f"<b>the balance after the error</b>{draw_balance(self.balance)}")
        return f'<div class="labkit-oom" style="{INLINE_STYLE}">{"".join(parts)}</div>'


def find_out_of_memory(error: BaseException | None) -> BaseException | None:
    """The exception that says a GPU's memory ran out: this one, or one that led to it."""
    return next((one for one in walk_chain(error) if TEXT.search(str(one))), None)


def walk_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it, each once, as a traceback tells them."""
    told: set[int] = set()
    while error is not None and id(error) not in told and len(told) < CHAIN_LENGTH:
        told.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def read_failure(text: str) -> AllocationFailure:
    """What an OutOfMemoryError's text says, in bytes.

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
    """Bytes of the largest block in the allocator's cache that can be given out; None if unknown.

    From the segments of ``torch.cuda.memory_snapshot()``; without its history, which can be long.
    """
    try:
        segments = cuda.memory_snapshot(include_traces=False)
    except (RuntimeError, TypeError):
        return None  # an allocator of the user's own, or a torch that would copy its history too
    index = int(device.partition(":")[2])
    free = (
        block["size"]
        for segment in segments
        if segment["device"] == index
        for block in segment["blocks"]
        if block["state"] == "inactive"
    )
    return max(free, default=0)


def list_figures(page: OutOfMemoryPage) -> list[tuple[str, str]]:
    """The moment of the error side by side: words and figure; what is not known is left out."""
    shortage = page.shortage
    rows = [
        ("asked for", shortage.asked_bytes),
        ("free on the device", shortage.free_bytes),
        ("tensors of this process", shortage.allocated_bytes),
        ("cached by the allocator", shortage.cached_bytes),
        ("largest free block of the cache", page.largest_block_bytes),
        ("allowed for this process", shortage.allowed_bytes),
        ("total", shortage.total_bytes),
    ]
    return [(words, format_bytes(count)) for words, count in rows if count is not None]


def list_tensors(page: OutOfMemoryPage, shown: int = 8) -> list[tuple[str, str]]:
    """The biggest live tensors, each with its bytes and names; then what is left, in sums."""
    tensors = page.live.tensors
    rows = [
        (format_bytes(one.held_bytes), f"{one.shape} {one.dtype}  {_say_names(one.holders)}")
        for one in tensors[:shown]
    ]
    rest = tensors[shown:]
    if rest:
        count = "1 more tensor" if len(rest) == 1 else f"{len(rest):,} more tensors"
        rows.append((format_bytes(sum(one.held_bytes for one in rest)), f"in {count}"))
    unheld = page.unheld_bytes
    if unheld and unheld >= MIB:
        rows.append((format_bytes(unheld), "held by no Python object: mostly saved for backward"))
    if not page.live.complete:
        rows.append(("", "the search was stopped for time: there can be more"))
    return rows


def list_measures(page: OutOfMemoryPage) -> list[Measure]:
    """What would help: first what frees enough, then the rest; the cheaper one first in each."""
    shortage = page.shortage
    asked, free = shortage.asked_bytes, shortage.free_bytes
    short = None if asked is None or free is None else max(0, asked - free)
    smaller = Measure("a smaller batch, a smaller type (torch.autocast), or a part at a time")
    limit = shortage.allowed_bytes or shortage.total_bytes
    if asked is not None and limit is not None and asked > limit:
        can_have = f"{format_bytes(asked)} is more than the {format_bytes(limit)} it can have"
        return [Measure(f"{can_have}: no freeing helps"), smaller]
    found = [*_measure_allocator(page), *_measure_leftovers(page), *_measure_others(page)]

    def comes_later(measure: Measure) -> bool:
        return short is None or measure.frees_bytes is None or measure.frees_bytes < short

    return [*sorted(found, key=comes_later), *_measure_use(page), smaller]


def _measure_allocator(page: OutOfMemoryPage) -> Iterator[Measure]:
    asked, cached = page.shortage.asked_bytes, page.shortage.cached_bytes
    block = page.largest_block_bytes
    if asked and cached and cached >= asked and (block is None or block < asked):
        yield Measure(
            f"enough is cached, but in smaller pieces: start the kernel with {EXPANDABLE}", cached
        )


def _measure_leftovers(page: OutOfMemoryPage) -> Iterator[Measure]:
    """What only IPython or the traceback keeps: nobody misses it."""
    outputs = [one for one in page.live.tensors if _list_kinds(one) == {"output"}]
    if outputs:
        # Unlike %reset out, this clears the name _ in every place where IPython keeps it.
        named = dict.fromkeys(_name_output(one) for one in outputs)
        lines = ", ".join(f"%xdel {name}" for name in list(named)[:NAMES_SHOWN])
        yield Measure(
            f"only IPython's outputs hold some of it: {lines}",
            sum(one.held_bytes for one in outputs),
        )
    frames = sum(
        one.held_bytes
        for one in page.live.tensors
        if "frame" in _list_kinds(one) and "user" not in _list_kinds(one)
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
    named = [one for one in page.live.tensors if "user" in _list_kinds(one)]
    if named:
        names = ", ".join(_first_user_name(one) for one in named[:NAMES_SHOWN])
        yield Measure(f"del what is not needed any more, the biggest first: {names}")
    if page.shortage.allowed_bytes:
        yield Measure("raise torch.cuda.set_per_process_memory_fraction(...)")
    graph = sum(one.held_bytes for one in named if one.in_graph)
    if graph:
        yield Measure("detach() or item() what is only kept to look at: it holds its graph", graph)
    if graph or (page.unheld_bytes or 0) >= MIB:
        yield Measure("torch.no_grad() where no gradient is needed; else activation checkpointing")


def _say_measures(page: OutOfMemoryPage) -> list[str]:
    return [
        one.words + (f" ({format_bytes(one.frees_bytes)})" if one.frees_bytes else "")
        for one in list_measures(page)
    ]


def _title(page: OutOfMemoryPage) -> str:
    return f"out of memory on {page.shortage.device or 'the GPU'}"


def _say_names(holders: Sequence[Holder]) -> str:
    if not holders:
        return "no name found"
    more = len(holders) - NAMES_SHOWN
    names = ", ".join(holder.words for holder in holders[:NAMES_SHOWN])
    return f"{names} and {more} more" if more > 0 else names


def _list_kinds(tensor: LiveTensor) -> set[str]:
    return {holder.kind for holder in tensor.holders}


def _name_output(tensor: LiveTensor) -> str:
    """IPython's variable for an output: ``_7`` for what is in ``Out[7]``; ``_`` without one."""
    numbers = (re.match(r"(?:Out\[|_)(\d+)", holder.words) for holder in tensor.holders)
    return next((f"_{number[1]}" for number in numbers if number), "_")


def _first_user_name(tensor: LiveTensor) -> str:
    return next(holder.words for holder in tensor.holders if holder.kind == "user")


def _draw_table(rows: Iterable[tuple[str, str]], *sides: str) -> str:
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:{side};padding:1px 12px 1px 0">{escape(text)}</td>'
            for side, text in zip(sides, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    style = "margin:2px 0 10px;border-collapse:collapse;background:none"
    return f'<table style="{style}">{lines}</table>' if lines else ""


def _read_amount(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return round(float(found[1]) * UNITS[found[2]]) if found else None
