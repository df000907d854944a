"""``track_memory()``: the exact peak of a block of code, its net change, and its seconds."""

from __future__ import annotations

import copy
import functools
import inspect
import re
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from labkit.errors import LabkitError, UsageError
from labkit.memory.balance.read import read_rank
from labkit.memory.sample.model import Opened, begin_spans, end_spans
from labkit.memory.track.counters import OPEN_BLOCKS, OpenBlocks, TrackedBlock
from labkit.memory.track.model import (
    BlockSpan,
    Breakdown,
    Level,
    LineUse,
    MemoryUse,
    split_rest,
    sum_categories,
    sum_lines,
)
from labkit.text import first_line

if TYPE_CHECKING:
    import torch

    from labkit.memory.track.storages import StorageTracer

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


# What torch 2.6 says where newer ones let a dispatch mode see higher-order operators.
REFUSED = ("no rule registered for HOP", "Unexpectedly found a <class 'torch.Tensor'>")


def _read_version() -> str:
    import torch

    return str(torch.__version__)


class MemoryTracker:
    """Measures one block; ``use`` has its figures after the block, even after an exception.

    As a decorator it measures every call with a new tracker; ``function.last_use`` has the
    figures of the call that ended last. ``annotated=False`` leaves the block out of samplers'
    timelines. ``kinds`` requests categories.
    """

    def __init__(
        self,
        device: str | None = None,
        *,
        tensors: bool = False,
        synchronize: bool = False,
        kinds: bool = False,
        lines: int = 0,
        open_blocks: OpenBlocks = OPEN_BLOCKS,
        annotated: bool = True,
    ) -> None:
        self.use: MemoryUse | None = None
        self._device, self._tensors, self._synchronize = device, tensors, synchronize
        self._kinds, self._lines = kinds, lines
        self._open_blocks = open_blocks
        self._tracer: StorageTracer | None = None
        self._block: TrackedBlock | None = None
        self._name: str | None = None
        self._annotated, self._spans = annotated, Opened()
        self._started = 0.0

    @property
    def peak_bytes(self) -> int | None:
        """The highest level of the first span: torch's device, else tensors, else the process."""
        return self.use.spans[0].peak_bytes if self.use and self.use.spans else None

    @property
    def change_bytes(self) -> int | None:
        """The net change of the same span."""
        return self.use.spans[0].change_bytes if self.use and self.use.spans else None

    @property
    def kinds(self) -> dict[str, int] | None:
        """Bytes by category at the peak of the first device's tensors; None if not asked for."""
        return self.use.breakdowns[0].categories if self.use and self.use.breakdowns else None

    @property
    def lines(self) -> tuple[LineUse, ...] | None:
        """The lines that allocated most of that peak; None if not asked for."""
        return self.use.breakdowns[0].lines if self.use and self.use.breakdowns else None

    @property
    def seconds(self) -> float | None:
        """How long the block took; None while it is open."""
        return self.use.seconds if self.use else None

    def __enter__(self) -> MemoryTracker:
        if self._block is not None:
            raise LabkitError(
                "this tracker is already measuring a block",
                cause="a tracker measures one block at a time",
                fix="a new track_memory() for each block and each thread",
            )
        self.use = None
        self._wait_for_devices()
        tracer = self._make_tracer()
        self._block = self._open_blocks.open_block(self._wants)
        if tracer is not None:
            self._open_tracer(tracer, self._block)
        if self._annotated:
            self._spans = begin_spans("block", self._name)
        self._started = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        block = self._block
        if block is None:
            return
        try:
            if error is None:
                self._wait_for_devices()  # after an error, waiting could raise another one
        finally:
            seconds = time.perf_counter() - self._started
            self._block, tracer, self._tracer = None, self._tracer, None
            end_spans(self._spans)
            if tracer is not None:
                tracer.__exit__(kind, error, trace)
            spans = self._open_blocks.close_block(block)
            parts = self._break_down(tracer, spans) if tracer else ()
            self.use = MemoryUse(seconds, _keep_touched(spans), parts, read_rank())
        if tracer is not None and any(words in str(error) for words in REFUSED):
            raise LabkitError(
                f"kinds and lines need a newer torch here: {first_line(str(error))}",
                cause=f"torch {_read_version()} does not let it follow flex_attention and"
                " torch.export",
                fix="track_memory() without kinds and lines",
            ) from error

    def __call__(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The function, measured at every call."""
        runs_later = (
            inspect.iscoroutinefunction,
            inspect.isgeneratorfunction,
            inspect.isasyncgenfunction,
        )
        if any(is_one(function) for is_one in runs_later):
            raise UsageError(
                f"track_memory() cannot decorate {getattr(function, '__name__', function)}",
                cause="calling a coroutine or a generator function does not run its body",
                fix="with track_memory(): ... inside of it",
            )

        @functools.wraps(function)
        def measured(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            tracker = copy.copy(self)
            tracker.use = tracker._block = tracker._tracer = None
            tracker._name = getattr(function, "__name__", None)
            try:
                with tracker:
                    return function(*arguments, **named)
            finally:
                measured.last_use = tracker.use  # type: ignore[attr-defined]

        measured.last_use = None  # type: ignore[attr-defined]
        return measured

    def __repr__(self) -> str:
        return repr(self.use) if self.use else "memory: not measured yet"

    def _wants(self, name: str) -> bool:
        if name == "tensors":
            return self._tensors
        if self._device is None:
            return True
        if self._device == "cpu":
            return name == "process"
        return name == self._device or (self._device == "cuda" and name.startswith("cuda:"))

    def _make_tracer(self) -> StorageTracer | None:
        if not self._kinds and not self._lines:
            return None
        from labkit.memory.track.storages import StorageTracer

        return StorageTracer()

    def _open_tracer(self, tracer: StorageTracer, block: TrackedBlock) -> None:
        """Opens the tracer after the counters; if it fails, closes them.

        In the opposite order, the counters' profiler would record the tracer.
        """
        try:
            self._tracer = tracer.__enter__()
        except LabkitError:
            self._block = None
            self._open_blocks.close_block(block)
            raise

    def _break_down(
        self, tracer: StorageTracer, spans: tuple[BlockSpan, ...]
    ) -> tuple[Breakdown, ...]:
        """Each device's peak by category and line: GPUs first, as in the spans."""
        names = [name for name in tracer.levels if self._device in (None, name.split(":")[0], name)]
        names.sort(key=lambda name: (name == "cpu", name))
        found = [(name, tracer.levels[name]) for name in names]
        counted = {span.where: span for span in spans}
        return tuple(
            Breakdown(
                name,
                level.peak_bytes,
                sum_categories(level.list_at_peak()),
                sum_lines(level.list_at_peak(), self._lines),
                *split_rest(level, counted.get("tensors" if name == "cpu" else name)),
                trouble=tracer.trouble,
            )
            for name, level in found or [(self._device or "cpu", Level())]
        )

    def _wait_for_devices(self) -> None:
        torch = sys.modules.get("torch")
        if self._synchronize and torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()


def track_memory(
    device: str | torch.device | None = None,
    *,
    tensors: bool = False,
    synchronize: bool = False,
    kinds: bool = False,
    lines: int = 0,
) -> MemoryTracker:
    """Measures a block or a function: exact peak and net change in bytes, and seconds.

    On CUDA it counts the tensors of every device, by the allocator's statistics; on the CPU the
    whole process, by the kernel's high-water mark. ``device`` limits it to ``"cuda"``,
    ``"cuda:1"`` or ``"cpu"``. ``tensors=True`` adds the CPU tensors made in this thread, through
    torch.profiler, which makes small operators about six times slower. ``synchronize=True``
    waits for the current CUDA device at both ends, so that the seconds include its work.

    ``kinds=True`` splits the peak by category (``tracked.kinds``: parameters with buffers,
    gradients, optimizer, buckets that DDP and FSDP exchange, activations, inputs, other), and
    ``lines=5`` names the lines of your code that allocated most of it (``tracked.lines``), on any
    device; memory of backward counts for its forward line. On CUDA, and with ``tensors=True``, the
    rest of what was counted is shown beside them: tensors that the block did not use, and what
    libraries and operators take for themselves. Both trace every operator of this thread: each
    takes about 50 us more, compiled functions run eagerly, and no other thread can open such a
    block.

    The figures include what other threads allocate during the block. The allocator's peak is
    reset, and with it ``torch.cuda.max_memory_allocated()``. Nothing else changes: no cache is
    emptied, and compiled functions stay compiled.

    >>> with track_memory("cpu") as tracked:
    ...     held = bytearray(1000)
    >>> [span.where for span in tracked.use.spans]
    ['process']
    """
    if callable(device):
        raise UsageError("@track_memory has no parentheses", fix="@track_memory()")
    name = None if device is None else str(device)
    if name is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(
            f"cannot track the memory of {name!r}",
            cause="the devices with exact peaks are cpu, cuda, and cuda with a number",
            fix='track_memory("cuda:0")',
        )
    if type(lines) is not int or lines < 0:
        raise UsageError(f"invalid number of lines: lines={lines!r}", fix="track_memory(lines=5)")
    return MemoryTracker(name, tensors=tensors, synchronize=synchronize, kinds=kinds, lines=lines)


def _keep_touched(spans: tuple[BlockSpan, ...]) -> tuple[BlockSpan, ...]:
    """The spans, except those of GPUs that held nothing during the block."""
    return tuple(
        span
        for span in spans
        if not span.where.startswith("cuda:") or span.peak_bytes != 0 or span.before_bytes
    )
