"""Simulates a recurrent layer or cell of the CPU as one call: torch computes it in many small ones.

A layer of 128 steps is some 6,000 operators with their backward pass. ``record_forward`` and
``record_backward`` run such a call once on fake tensors of their own and keep what it allocates and
frees, in order; ``WholeCalls`` repeats that for each call that is alike, with one node for
autograd. What a layer's steps repeat is found in three short sequences: the third one must be as
the first two foretell.

Backward's memory depends on what autograd does with each gradient that it is given: it keeps it,
adds it to another one, in place or not, or adds it to a parameter's. That is seen right after the
call, so its memory is counted then. A step that needs the parts of a call (such as a backward pass
of a backward pass) raises NeedsPartsError, and is simulated without whole calls.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch._C import _functorch as functions
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.memory.balance.read import is_leaf
from labkit.memory.estimate.cuda import CPU, FakeMode, find_number
from labkit.memory.estimate.results import (
    HELD,
    LAYOUT,
    Call,
    Facts,
    Made,
    find_attributes,
    find_facts,
    make_tensor,
    number_layout,
)
from labkit.memory.track.model import Storage
from labkit.memory.track.storages import StorageReference, list_tensors

ATEN = torch.ops.aten
ADD, ADD_IN_PLACE = ATEN.add.Tensor, ATEN.add_.Tensor
CELLS = tuple(
    getattr(ATEN, name).default for name in ("gru_cell", "lstm_cell", "rnn_tanh_cell",
    "rnn_relu_cell")
)  # fmt: skip
LAYERS = tuple(getattr(ATEN, name).input for name in ("gru", "lstm", "rnn_tanh", "rnn_relu"))
RECURRENT = frozenset((*CELLS, *LAYERS))
# The steps of the shortest sequence that is recorded of a layer.
STEPS = 5
# The kinds of events: bytes allocated, bytes freed, and a tensor from outside that is let go. From
# RETURNED on: bytes allocated for the result, or the gradient, of this place.
ALLOCATED, FREED, RELEASED, RETURNED = range(4)
Event = tuple[int, int]
# What autograd does with a gradient that it is given.
KEPT, ADDED, ADDED_APART, ACCUMULATED = range(4)
# How often a storage is held that one tensor has: by it, and by Python's object for it.
ALONE = 2
# As high as autograd numbers the nodes that add up parameters' gradients, which run at once.
AT_ONCE = 1 << 62
MOST_PLANS = 2_000
# How many events must follow a repeated part as they follow it in a shorter sequence.
FOLLOWING = 3
# What saves tensors in its own way, such as a checkpoint; torch 2.6 cannot say.
FIND_HOOKS = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
OWN_PACKAGE = f"{__package__}."


class NeedsPartsError(BaseException):
    """The step does with a whole call what only the operators of its parts can show."""


class TensorLayout(NamedTuple):
    """A tensor's shape, strides and type, and the bytes of its storage."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    storage_bytes: int

    def make(self, mode: FakeMode) -> Any:
        """A fake tensor like this, which is not counted."""
        part = _describe_result(self)
        made = make_tensor(part, None, mode)
        if LAYOUT not in part.attributes:
            part.attributes[LAYOUT] = number_layout(made)
        return made


@functools.lru_cache(maxsize=2_000)
def _describe_result(layout: TensorLayout) -> Made:
    """A new tensor of this layout, for ``make_tensor``."""
    shape, strides, dtype, count = layout
    last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    usual = 0 if 0 in shape else (last + 1) * dtype.itemsize
    attributes = dict(_find_attributes())
    return Made(
        torch.Size(shape), strides, 0, dtype, CPU, None, count, count != usual, attributes, "cpu",
        False,
    )  # fmt: skip


def is_alone(tensor: Any) -> bool:
    """True if no other tensor shares the tensor's storage."""
    return bool(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) <= ALONE)


def share_storage(tensor: Any) -> None:
    """Makes the tensor share its storage, as a view does that holds its base."""
    with torch._C._DisableTorchDispatch():
        base = torch.empty(0, dtype=tensor.dtype, device="meta").set_(tensor.untyped_storage())
    tensor.__dict__["labkit_base"] = base


def find_layout(tensor: Any) -> TensorLayout:
    """The tensor's layout."""
    count = tensor.untyped_storage().nbytes()
    return TensorLayout(tuple(tensor.shape), tensor.stride(), tensor.dtype, count)


class Given(NamedTuple):
    """A gradient: its layout, and whether it has its storage for itself.

    Autograd adds to another one out of place. A view, such as a weight's gradient, holds its base.
    """

    layout: TensorLayout
    alone: bool


class Forward(NamedTuple):
    """A forward pass: its events, its results, and the arguments and results that it keeps."""

    events: tuple[Event, ...]
    results: tuple[TensorLayout, ...]
    kept: tuple[int, ...]


class Backward(NamedTuple):
    """A backward pass: its events, and the gradients of the arguments."""

    events: tuple[Event, ...]
    gradients: tuple[Given | None, ...]


class CallRecorder:
    """Observes the storages of a recorded call; ``roles`` are those of tensors from outside."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.roles: dict[int, int] = {}
        # Which event a storage is of, by its serial.
        self._places: dict[int, int] = {}

    def allocate(self, storage: Storage) -> None:
        """Keeps the event."""
        if not storage.before:
            self._places[storage.serial] = len(self.events)
            self.events.append((ALLOCATED, storage.bytes))

    def clear(self) -> None:
        """Forgets the events so far."""
        self.events.clear()
        self._places.clear()

    def name(self, storage: Storage, place: int) -> None:
        """Marks the event of a storage as that of a result."""
        event = self._places.get(storage.serial)
        if event is not None:
            self.events[event] = (RETURNED + place, storage.bytes)

    def free(self, storage: Storage) -> None:
        """Keeps the event."""
        role = self.roles.pop(storage.serial, None)
        if role is None:
            self.events.append((FREED, storage.bytes))
        elif role >= 0:
            self.events.append((RELEASED, role))


class CallRecording:
    """One run of a call on fake tensors of its own, in a thread without torch's modes."""

    def __init__(self, plan: CallPlan, layouts: tuple[TensorLayout, ...], make_tracer: Any) -> None:
        self.plan, self.layouts = plan, layouts
        self.recorder = CallRecorder()
        self.mode = FakeMode("cpu")
        self.tracer = make_tracer(self.recorder, self.mode)
        self.found: dict[int, Any] = {}
        self.inputs: list[Any] = []
        self.results: list[Any] = []

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The modes of the recording; the call is made, forward."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(self.mode)
            TorchDispatchMode.__enter__(self.tracer)
            stack.callback(TorchDispatchMode.__exit__, self.tracer, None, None, None)
            stack.enter_context(torch.set_grad_enabled(self.plan.traces))
            anchor = torch.zeros((), requires_grad=True, device=CPU)
            for place, layout in enumerate(self.layouts):
                needed = self.plan.needed[place]
                make = functools.partial(self.make, layout, place)
                made = _Source.apply(anchor, make, self.found, place) if needed else make()
                # Even without gradients, this decides how torch multiplies matrices.
                self.inputs.append(made if needed else made.requires_grad_(self.plan.leaves[place]))
            self.recorder.clear()
            self.results = list_tensors(self.plan.run(self.inputs))
            self.tracer._bury()
            yield

    def make(self, layout: TensorLayout, role: int) -> Any:
        """A new tensor from outside of the call, in its role."""
        made = torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device=CPU)
        made.untyped_storage().resize_(layout.storage_bytes)
        self.tracer._resize([made], ())  # a resized storage counts as another one
        self.adopt(made, role)
        return made

    def adopt(self, tensor: Any, role: int) -> None:
        """Gives the tensor's storage a role."""
        self.recorder.roles[self.find(tensor).serial] = role

    def find(self, tensor: Any) -> Storage:
        """The record of the tensor's storage."""
        found: Storage = self.tracer._live[tensor.untyped_storage()._cdata].storage
        return found

    def record_forward(self) -> Forward | None:
        """The forward pass; None if its results share storages with its arguments."""
        with self.open():
            for place, one in enumerate(self.results):
                self.recorder.name(self.find(one), place)
            events = tuple(self.recorder.events)
            layouts = tuple(map(find_layout, self.results))
            count = len(self.inputs)
            storages = [one.untyped_storage()._cdata for one in (*self.inputs, *self.results)]
            if len(set(storages)) < len(storages):
                return None
            for place, one in enumerate(self.results):
                self.adopt(one, count + place)
            nodes = [made.grad_fn for made in self.results]
            del one
            self.recorder.clear()
            self.inputs.clear()
            self.results.clear()
            self.tracer._bury()
            gone = {role for _, role in self.recorder.events}
            kept = tuple(role for role in range(len(storages)) if role not in gone)
            del nodes
            return Forward(events, layouts, kept if self.plan.traces else ())

    def record_backward(self, given: tuple[Given | bool, ...], fates: tuple[int, ...]) -> Backward:
        """The backward pass for these gradients of the results, and fates of the arguments'."""
        count = len(self.layouts)
        with self.open():
            for place, one in enumerate(self.results):
                self.adopt(one, count + place)
            for place, fate in enumerate(fates):
                if fate == ACCUMULATED:
                    self.inputs[place].grad_fn._set_sequence_nr(AT_ONCE)
            pairs = [*zip(self.results, given, strict=True)]
            used = [one for one, gradient in pairs if isinstance(gradient, Given)]
            # The step may still hold a result that it does not use.
            unused = [one for one, gradient in pairs if gradient is True]
            pairs.clear()
            self.tracer._bury()
            ends = [_Sink.apply(functools.partial(self._make_given, given), *used)]
            for place, fate in enumerate(fates):
                if fate in {ADDED, ADDED_APART}:
                    role = count + 2 * len(given) + place
                    fill = functools.partial(self._make_buffer, place, fate, role)
                    ends.append(_Sink.apply(fill, self.inputs[place]))
            starts = [torch.zeros((), device=CPU) for _ in ends]
            for one in (*ends, *starts):
                self.adopt(one, -1)
            self.inputs.clear()
            self.results.clear()
            del used, one
            for place, fate in enumerate(fates):
                if fate == ACCUMULATED:
                    self.found[place] = None  # dropped as soon as it is there
            torch.autograd.backward(ends, starts)
            self.tracer._bury()
            del unused
            for place, one in self.found.items():
                if one is not None:
                    self.recorder.name(self.find(one[0]), place)
            events = tuple(self.recorder.events)
            found = (self.found.get(place) for place in range(count))
            gradients = tuple(one and Given(find_layout(one[0]), one[1]) for one in found)
            return Backward(events, gradients)

    def _make_given(self, given: tuple[Given | bool, ...]) -> tuple[Any, ...]:
        """The gradients of the results, from which on events count."""
        made, first = [], len(self.layouts) + len(given)
        for place, one in enumerate(given):
            if isinstance(one, Given):
                made.append(self.make(one.layout, first + place))
                if not one.alone:
                    share_storage(made[-1])
        self.recorder.clear()
        return tuple(made)

    def _make_buffer(self, place: int, fate: int, role: int) -> tuple[Any]:
        """A gradient that an argument has already got."""
        layout = self.layouts[place]
        contiguous = torch.empty(layout.shape, dtype=layout.dtype, device="meta")
        # What is part of a larger storage is not added to in place.
        size = contiguous.untyped_storage().nbytes() + (fate == ADDED_APART)
        made = TensorLayout(layout.shape, contiguous.stride(), layout.dtype, size)
        return (self.make(made, role),)


class _Source(torch.autograd.Function):  # type: ignore[misc]
    """An argument of a recorded call; keeps its gradient, unless there is a None for it."""

    @staticmethod
    def forward(ctx: Any, anchor: Any, make: Any, found: dict[int, Any], place: int) -> Any:
        ctx.found, ctx.place = found, place
        return make()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        if ctx.place not in ctx.found:
            ctx.found[ctx.place] = gradient, is_alone(gradient)
        return None, None, None, None


class _Sink(torch.autograd.Function):  # type: ignore[misc]
    """Takes tensors, whose gradients are those that ``answer`` makes."""

    @staticmethod
    def forward(ctx: Any, answer: Any, *tensors: Any) -> Any:
        ctx.answer = answer
        return torch.zeros((), device=CPU)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return None, *ctx.answer()


def _run_apart(compute: Callable[[], Any]) -> Any:
    """The result of a function that runs in a thread of its own, whose state of torch is fresh."""
    found: list[Any] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            found.append(compute())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0] if found else None


@functools.cache
def _find_attributes() -> dict[str, Any]:
    """What Python's object of a new fake tensor has, beside its mode."""

    def find() -> Any:
        with FakeMode("cpu"):
            return torch.empty(0, device=CPU).__dict__

    attributes: dict[str, Any] = _run_apart(find)
    return find_attributes(attributes)


class CallPlan:
    """What is known of calls that are alike; ``needed`` are the arguments that take gradients.

    ``leaves`` are those that would take gradients where these are on.

    ``time`` is the dimension of the steps in the first argument and result; None for a cell.
    """

    def __init__(self, operator: Any, arguments: Any, call: Call, make_tracer: Any) -> None:
        self.operator, self._make_tracer = operator, make_tracer
        self._arguments = arguments
        self.layouts = tuple(map(find_layout, call.tensors))
        grad = torch.is_grad_enabled()
        self.leaves = tuple(one.requires_grad for one in call.tensors)
        self.needed = tuple(grad and one for one in self.leaves)
        self.traces = any(self.needed)
        self.time = None
        if operator in LAYERS:
            self.time = 1 if arguments[-1] else 0
        # Only shapes and numbers stay, no tensor.
        self._arguments = _replace(arguments, iter(range(len(call.tensors))))
        self._backwards: dict[Any, Backward | None] = {}
        self.forward: Forward | None = self._record_forward()

    def run(self, tensors: list[Any]) -> Any:
        """Calls the operator's parts on these tensors."""
        return run_parts(self.operator, *_fill(self._arguments, tensors))

    def find_backward(
        self, given: tuple[Given | bool, ...], fates: tuple[int, ...]
    ) -> Backward | None:
        """The backward pass; None if it cannot be foretold."""
        key = given, fates
        if key not in self._backwards:
            self._backwards[key] = self._record_backward(given, fates)
        return self._backwards[key]

    @property
    def _steps(self) -> int:
        return 0 if self.time is None else self.layouts[0].shape[self.time]

    def _list_lengths(self) -> tuple[int, ...]:
        """The lengths of the sequences to record."""
        return (STEPS, STEPS + 1, STEPS + 2) if self._steps > STEPS + 2 else (self._steps,)

    def _record(self, layouts: Any) -> CallRecording:
        return CallRecording(self, layouts, self._make_tracer)

    def _shorten(self, layout: TensorLayout, length: int) -> TensorLayout | None:
        if self.time is None or length == self._steps:
            return layout
        return shorten_layout(layout, self.time, length)

    def _record_forward(self) -> Forward | None:
        made = []
        for length in self._list_lengths():
            first = self._shorten(self.layouts[0], length)
            if first is None:
                return None
            layouts = (first, *self.layouts[1:])
            made.append(_run_apart(lambda: self._record(layouts).record_forward()))  # noqa: B023
        if len(made) == 1 or None in made:
            return None if None in made else made[0]
        events = foretell([one.events for one in made], self._steps)
        results = _foretell_layouts([one.results for one in made], self._steps)
        alike = all(one.kept == made[0].kept for one in made)
        return Forward(events, results, made[0].kept) if alike and events and results else None

    def _record_backward(
        self, given: tuple[Given | bool, ...], fates: tuple[int, ...]
    ) -> Backward | None:
        made = []
        for length in self._list_lengths():
            first = self._shorten(self.layouts[0], length)
            shorter = list(given)
            if isinstance(given[0], Given):
                layout = self._shorten(given[0].layout, length)
                if layout is None:
                    return None
                shorter[0] = given[0]._replace(layout=layout)
            layouts = (first, *self.layouts[1:])
            made.append(
                _run_apart(
                    lambda: self._record(layouts).record_backward(tuple(shorter), fates)  # noqa: B023
                )
            )
        if len(made) == 1 or None in made:
            return None if None in made else made[0]
        events = foretell([one.events for one in made], self._steps)
        found = [one.gradients for one in made]
        expected = _foretell_layouts(
            [[one and one.layout for one in gradients] for gradients in found], self._steps
        )
        if events is None or expected is None:
            return None
        changed = (
            None if one is None else one._replace(layout=layout)
            for one, layout in zip(found[0], expected, strict=True)
        )
        return Backward(events, tuple(changed))


def _replace(value: Any, places: Iterator[int]) -> Any:
    """The arguments with a place instead of each tensor."""
    if isinstance(value, torch.Tensor):
        return _TensorPlace(next(places))
    if isinstance(value, list | tuple):
        return [_replace(one, places) for one in value]
    return value


class _TensorPlace(NamedTuple):
    number: int


def _fill(value: Any, tensors: list[Any]) -> Any:
    if type(value) is _TensorPlace:
        return tensors[value.number]
    return [_fill(one, tensors) for one in value] if isinstance(value, list) else value


def shorten_layout(layout: TensorLayout, time: int, length: int) -> TensorLayout | None:
    """The layout of a sequence of another length; None if its strides do not show it.

    >>> shorten_layout(TensorLayout((128, 2, 8), (16, 8, 1), torch.float32, 8192), 0, 4)
    TensorLayout(shape=(4, 2, 8), strides=(16, 8, 1), dtype=torch.float32, storage_bytes=256)
    """
    steps, step = layout.shape[time], layout.strides[time]
    strides = list(layout.strides)
    for place, stride in enumerate(strides):
        if place == time or not step or stride <= step:
            continue
        if stride % (steps * step):
            return None
        strides[place] = stride // steps * length
    shape = tuple(length if place == time else one for place, one in enumerate(layout.shape))

    def count(sizes: tuple[int, ...], steps: Any) -> int:
        last = sum((size - 1) * one for size, one in zip(sizes, steps, strict=True))
        return int((last + 1) * layout.dtype.itemsize)

    # More bytes than the tensor has are a larger storage, of which it is a part.
    rest = max(0, layout.storage_bytes - count(layout.shape, layout.strides))
    return TensorLayout(shape, tuple(strides), layout.dtype, count(shape, strides) + min(rest, 1))


def foretell(recorded: list[tuple[Event, ...]], steps: int) -> tuple[Event, ...] | None:
    """The events of a sequence of this length; None if the third sequence is not as foretold.

    ``recorded`` are those of sequences of STEPS, one more, and two more.

    >>> loop = [(ALLOCATED, 8), (FREED, 8)]
    >>> made = [((0, 4 * n), *(loop * n), (1, 4 * n)) for n in (STEPS, STEPS + 1, STEPS + 2)]
    >>> foretell(made, 9) == ((0, 36), *(loop * 9), (1, 36))
    True
    """
    short, middle, long = recorded
    pairs = _align(short, middle)
    if pairs is None or _repeat(pairs, 2) != long:
        return None
    return _repeat(pairs, steps - STEPS)


# Events of a sequence: those of the short one with the bytes that a step adds, and repeated ones.
Aligned = list[tuple[Event, int] | tuple[Event, ...]]


def _repeat(aligned: list[Any], times: int) -> tuple[Event, ...]:
    made: list[Event] = []
    for one, more in aligned:
        if more is None:
            made.extend(one * times)
        else:
            made.append((one[0], one[1] + more * times))
    return tuple(made)


def _align(short: tuple[Event, ...], middle: tuple[Event, ...]) -> list[Any] | None:
    """Which events of the longer sequence are the shorter one's, and which repeat others."""
    made: list[Any] = []
    one = other = 0
    while other < len(middle):
        if one < len(short) and _is_alike(short[one], middle[other]):
            made.append((short[one], middle[other][1] - short[one][1]))
            one, other = one + 1, other + 1
            continue
        size = _find_period(short[one:], middle, other)
        if not size:
            return None
        made.append((middle[other : other + size], None))
        other += size
    return made if one == len(short) else None


def _is_alike(one: Event, other: Event) -> bool:
    if one[0] != other[0] or one[0] == RELEASED:
        return one == other
    return one[1] == other[1] or one[1] * (STEPS + 1) == other[1] * STEPS


def _find_period(rest: tuple[Event, ...], middle: tuple[Event, ...], place: int) -> int:
    """How many events from this place on repeat those before it, so that the rest follows; or 0."""
    for size in range(1, min(place, len(middle) - place) + 1):
        after = middle[place + size :]
        if (
            middle[place : place + size] == middle[place - size : place]
            and len(after) >= min(len(rest), FOLLOWING)
            and all(map(_is_alike, rest[:FOLLOWING], after))
        ):
            return size
    return 0


def _foretell_layouts(recorded: list[Any], steps: int) -> tuple[Any, ...] | None:
    found: list[TensorLayout | None] = []
    for short, middle, long in zip(*recorded, strict=True):
        if short is None:
            found.append(None)
            continue
        numbers = [(*one.shape, *one.strides, one.storage_bytes) for one in (short, middle, long)]
        if any(len(one) != len(numbers[0]) for one in numbers):
            return None
        if any(c - b != b - a for a, b, c in zip(*numbers, strict=True)):
            return None
        *made, count = (a + (b - a) * (steps - STEPS) for a, b, _ in zip(*numbers, strict=True))
        half = len(short.shape)
        found.append(TensorLayout(tuple(made[:half]), tuple(made[half:]), short.dtype, count))
    return tuple(found)


_plans: dict[Any, CallPlan] = {}
# By the numbers of RECURRENT's operators, whose hash torch computes in Python.
_call_facts: dict[int, Facts] = {}


def _find_call_facts(operator: Any) -> Facts | None:
    """The facts of a whole call, whose arguments may be anywhere in their storages."""
    number = find_number(operator)
    facts = _call_facts.get(number)
    if facts is None and operator in RECURRENT:
        facts = _call_facts[number] = find_facts(operator)._replace(anywhere=True)
    return facts


class _Held:
    """The storages that a graph holds for a whole call, until backward or until it is dropped."""

    def __init__(self, pool: Any, dropped: list[Any]) -> None:
        self.pool, self._dropped = pool, dropped

    def __del__(self) -> None:
        if self.pool is not None:
            self._dropped.append(self.pool)


class _Pending(NamedTuple):
    """A backward pass whose memory is counted as soon as its gradients' fates are known."""

    plan: CallPlan
    given: tuple[Given | bool, ...]
    first: Backward
    pool: Any
    frames: Any
    # The places of the gradients, by the keys of their storages, and the references to these.
    places: dict[int, int]
    references: dict[int, StorageReference]
    # What from outside may be let go, by its role.
    outside: dict[int, Any]
    fates: list[int]
    marks: list[tuple[int, str]]
    leaves: tuple[int, ...]
    # Weak references to the results without a gradient.
    results: list[Any]
    node: Any


class WholeCalls:
    """Simulates cells and layers as whole calls, in a ``with`` block, for a tracer."""

    def __init__(self, tracer: Any, mode: FakeMode, make_tracer: Any) -> None:
        self._tracer, self._mode, self._make_tracer = tracer, mode, make_tracer
        self.pending: _Pending | None = None
        self.dropped: list[Any] = []
        # The running backward pass, and the leaves whose gradients it adds up in place, by number:
        # no further gradient need be made for these.
        self._task, self._sums = -1, set[int]()
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> None:
        library = torch.library.Library("aten", "IMPL")
        self._exits.callback(library._destroy)
        for operator in (*CELLS, *LAYERS):
            name = operator._schema.name + (
                f".{operator._overloadname}" if operator in LAYERS else ""
            )
            library.impl(
                name.removeprefix("aten::"), functools.partial(self.call, operator), "AutogradCPU"
            )

    def __exit__(self, *error: Any) -> None:
        self._exits.close()

    def call(self, operator: Any, *arguments: Any, **named: Any) -> Any:
        """The operator's results, as a whole if that is possible."""
        plan, call = None, None
        facts = None if named else _find_call_facts(operator)
        if facts is not None and self._is_open():
            call = Call(facts, arguments, {}, self._mode.placement)
            if call.key is not None and _is_plain(operator, arguments, call):
                plan = self._find_plan(operator, arguments, call)
        if plan is None or call is None:
            return run_parts(operator, *arguments, **named)
        if not plan.traces:
            made, _ = self.play_forward(plan, call.tensors)
        else:
            made = _Whole.apply(self, plan, *call.tensors)
            self._tracer.name_node()
        return made if len(made) > 1 else made[0]

    def _is_open(self) -> bool:
        tracer = self._tracer
        return (
            tracer.is_alone()
            and torch._C._len_torch_dispatch_stack() > 0
            and not torch.is_autocast_enabled("cpu")
            and functions.peek_interpreter_stack() is None
            and FIND_HOOKS is not None
            and FIND_HOOKS(True) is None
            and forward_ad._current_level < 0
        )

    def _find_plan(self, operator: Any, arguments: Any, call: Call) -> CallPlan | None:
        plan = _plans.get(call.key)
        if plan is None:
            if len(_plans) >= MOST_PLANS:
                _plans.clear()
            plan = _plans[call.key] = CallPlan(operator, arguments, call, self._make_tracer)
        return None if plan.forward is None else plan

    def play_forward(self, plan: CallPlan, tensors: Any) -> tuple[tuple[Any, ...], Any]:
        """The results, and the storages that stay beside them."""
        tracer, forward = self._tracer, plan.forward
        assert forward is not None
        category, frames, backward = tracer.look_at_call(tensors)
        pool: Any = defaultdict(list)
        returned = self._play(forward.events, pool, category, frames, backward, {})
        made = []
        for place, layout in enumerate(forward.results):
            one = layout.make(self._mode)
            storage = one.untyped_storage()
            reference = StorageReference(storage, tracer._dead.append)
            self._follow(reference, storage._cdata, returned[place])
            made.append(one)
        return tuple(made), pool

    def reverse(self, ctx: Any, gradients: Any) -> tuple[Any, ...]:
        """The gradients of a call's arguments; their memory is counted later."""
        tracer, plan = self._tracer, ctx.plan
        if torch.is_grad_enabled() or ctx.held.pool is None or not _is_whole_task(ctx):
            raise NeedsPartsError
        tracer._bury()
        frames = tracer._find_frames()[0]
        given = tuple(
            result() is not None if one is None else _look_at(one)
            for one, result in zip(gradients, ctx.results, strict=True)
        )
        if any(one is not None and type(one).__name__ != "FakeTensor" for one in gradients):
            raise NeedsPartsError
        first = plan.find_backward(given, (KEPT,) * len(plan.needed))
        if first is None:
            raise NeedsPartsError
        live, count = tracer._live, len(plan.layouts)
        outside = {role: live.get(one._cdata) for role, one in ctx.kept.items()}
        for place, one in enumerate(gradients):
            if one is not None:
                role = count + len(gradients) + place
                outside[role] = live.get(one.untyped_storage()._cdata)
        pool, ctx.held.pool = ctx.held.pool, None
        ctx.kept = {}
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self._sums = task, set()
        fates = [ADDED if leaf in self._sums else KEPT for leaf in ctx.leaves]
        self.pending = _Pending(
            plan, given, first, pool, frames, {}, {}, outside, fates, [], ctx.leaves,
            [one for one, held in zip(ctx.results, given, strict=True) if held is True], ctx,
        )  # fmt: skip
        made = []
        for place, one in enumerate(first.gradients):
            gives = one is not None and fates[place] == KEPT
            made.append(self._make_gradient(place, one) if gives else None)
        return tuple(made)

    def _make_gradient(self, place: int, given: Given) -> Any:
        assert self.pending is not None
        one = given.layout.make(self._mode)
        if not given.alone:
            share_storage(one)
        storage = one.untyped_storage()
        self.pending.places[storage._cdata] = place
        self.pending.references[place] = StorageReference(storage, self._tracer._dead.append)
        self.pending.references[place].key = storage._cdata
        return one

    def meet(self, operator: Any, arguments: Any, writes: Callable[..., bool]) -> Any:
        """What autograd makes of a gradient of the last call by adding it; else NotImplemented."""
        pending = self.pending
        if pending is None or (operator is not ADD and operator is not ADD_IN_PLACE):
            self.settle()
            return NotImplemented
        sum_, added = arguments[:2]
        place = None
        if isinstance(added, torch.Tensor):
            place = pending.places.get(added.untyped_storage()._cdata)
        node = torch._C._current_autograd_node()
        own = node is pending.node  # and not another node that hands the gradient on
        if operator is ADD_IN_PLACE:
            own = node is not None and node.name().endswith("AccumulateGrad")
        if (
            not own or place is None or pending.fates[place] or sum_.shape != added.shape
            or sum_.untyped_storage()._cdata in pending.places or not is_called_by_engine()
        ):  # fmt: skip
            self.settle()
            return NotImplemented
        if operator is ADD_IN_PLACE:
            pending.fates[place] = ACCUMULATED
            return sum_
        if writes(operator, arguments):
            pending.fates[place] = ADDED
            return sum_
        pending.fates[place] = ADDED_APART
        role = len(pending.plan.layouts) + 2 * len(pending.given) + place
        pending.outside[role] = self._tracer._live.get(sum_.untyped_storage()._cdata)
        layout = find_layout(added)
        if sum_.stride() != added.stride():
            layout = layout._replace(
                strides=torch._prims_common.make_contiguous_strides_for(layout.shape)
            )
        return self._make_gradient(place, Given(layout, alone=True))

    def defer(self, tensor: Any, category: str) -> bool:
        """Keeps the category of a gradient whose memory is not counted yet; False for another."""
        if self.pending is None or type(tensor).__name__ != "FakeTensor":
            return False
        key = tensor.untyped_storage()._cdata
        place = self.pending.places.get(key)
        if place is None:
            held = self._tracer._live.get(key)
            return held is not None and held.storage.category == category
        if self.pending.fates[place] == KEPT or self.pending.fates[place] == ADDED_APART:
            self.pending.marks.append((place, category))
        return True

    def settle(self) -> None:
        """Counts what the last backward pass took, now that the gradients' fates are known."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        backward: Backward | None = pending.first
        if any(pending.fates):
            backward = pending.plan.find_backward(pending.given, tuple(pending.fates))
        if backward is None:
            raise NeedsPartsError
        pool = pending.pool
        self._sums.update(
            leaf
            for leaf, fate in zip(pending.leaves, pending.fates, strict=True)
            if leaf and fate == ADDED
        )
        returned = self._play(
            backward.events, pool, "activations", pending.frames, True, pending.outside
        )
        for place, one in returned.items():
            reference = pending.references[place]
            self._follow(reference, reference.key, one)
        for place, category in pending.marks:
            pending.references[place].storage.category = category
        left = _Held(pool, self.dropped)
        for result in pending.results:
            one = result()
            if one is not None:  # what only another result needs is there as long as that
                one.__dict__["labkit_held"] = left

    def bury(self) -> None:
        """Subtracts what dropped graphs held."""
        while self.dropped:
            for storages in self.dropped.pop().values():
                for one in storages:
                    self._tracer._discount(one)

    def _follow(self, reference: StorageReference, key: int, storage: Storage) -> None:
        reference.key, reference.storage = key, storage
        self._tracer._live[key] = reference

    def _play(  # noqa: PLR0917
        self, events: Any, pool: Any, category: str, frames: Any, backward: bool, outside: Any
    ) -> dict[int, Storage]:
        tracer, returned = self._tracer, {}
        serials, count, discount = tracer._serials, tracer._count, tracer._discount
        for kind, number in events:
            if kind == ALLOCATED:
                one = Storage(next(serials), number, "cpu", category, frames, False, backward)
                pool[number].append(one)
                count(one)
            elif kind == FREED:
                discount(pool[number].pop())
            elif kind == RELEASED:
                self._release(outside.get(number))
            else:
                one = Storage(next(serials), number, "cpu", category, frames, False, backward)
                returned[kind - RETURNED] = one
                count(one)
        return returned

    def _release(self, reference: Any) -> None:
        """Subtracts a storage from outside, unless something else holds it."""
        tracer = self._tracer
        if reference is not None and reference in tracer._dead:
            tracer._dead.remove(reference)
            if tracer._live.get(reference.key) is reference:
                del tracer._live[reference.key]
                tracer._discount(reference.storage)


class _Whole(torch.autograd.Function):  # type: ignore[misc]
    """The node of a whole call."""

    @staticmethod
    def forward(ctx: Any, calls: WholeCalls, plan: CallPlan, *tensors: Any) -> Any:
        made, pool = calls.play_forward(plan, tensors)
        ctx.calls, ctx.plan, ctx.held = calls, plan, _Held(pool, calls.dropped)
        ctx.results = [weakref.ref(one) for one in made]
        # Autograd holds the leaves, so their numbers stay theirs.
        ctx.leaves = tuple(
            find_number(one) if one.requires_grad and is_leaf(one) else 0 for one in tensors
        )
        everything = (*tensors, *made)
        assert plan.forward is not None
        # Storages, not tensors: a node that holds its own result is never freed.
        ctx.kept = {role: everything[role].untyped_storage() for role in plan.forward.kept}
        ctx.set_materialize_grads(False)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, None, *ctx.calls.reverse(ctx, gradients)


def run_parts(operator: Any, *arguments: Any, **named: Any) -> Any:
    """Calls the operator as C++ does; ``OpOverload.decompose`` runs Python's version of some."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return operator._op_dk(key, *arguments, **named)


def _is_whole_task(node: Any) -> bool:
    """True if the running backward pass frees its graph, and wants every gradient of the node."""
    if torch._C._autograd._get_current_graph_task_keep_graph():
        return False
    following = [one for one, _ in node.next_functions if one is not None]
    try:
        return all(map(torch._C._will_engine_execute_node, following))
    except RuntimeError:  # a leaf of torch.autograd.grad
        return False


def _look_at(gradient: Any) -> Given:
    layout = find_layout(gradient)
    whole = layout.storage_bytes == gradient.numel() * layout.dtype.itemsize
    last = sum((size - 1) * step for size, step in zip(layout.shape, layout.strides, strict=True))
    least = (last + 1) * layout.dtype.itemsize if gradient.numel() else 0
    # A part of a larger storage is one, however large that is.
    return Given(
        layout._replace(storage_bytes=least + (not whole and layout.storage_bytes > least)),
        is_alone(gradient),
    )


def _is_plain(operator: Any, arguments: Any, call: Call) -> bool:
    """True for a call that can be simulated as a whole."""
    tensors = call.tensors
    first = tensors[0]
    if first.dtype not in {torch.float32, torch.float64} or not first.numel():
        return False
    if operator is ATEN.lstm.input:
        hidden, cell = arguments[1]
        by_library = first.dtype is torch.float32 and torch._C._get_mkldnn_enabled()
        if by_library and hidden.size(2) == cell.size(2):
            return False
    keys = set()
    for one in tensors:
        kept = one.__dict__
        if (kept.get("_fake_device") or one.fake_device).type != "cpu":
            return False
        if one.requires_grad:
            held = kept.get(HELD)
            # Of a record that is no longer live the storage tells itself.
            live = held is not None and held() is not None
            key = held.key if live else one.untyped_storage()._cdata
            hooked = is_leaf(one) and len(one._post_accumulate_grad_hooks or ()) > 1
            if hooked or one._backward_hooks or key in keys:
                return False
            keys.add(key)
    return True


def is_called_by_engine() -> bool:
    """True in backward's C++ code, False in a backward function or a hook in Python."""
    running: Any = sys._getframe(1)
    # By the names of modules: Python tells each audit hook that a frame's code is read.
    while running is not None and running.f_globals.get("__name__", "").startswith(OWN_PACKAGE):
        running = running.f_back
    return running is not None and running.f_code.co_name == "_engine_run_backward"
