"""Simulates an optimizer's update of all its parameters as one call.

On the CPU, torch's optimizers call some ten small operators for each parameter: half of what many
steps consist of. What such an update allocates and frees follows from the layouts of its tensors
and its options. ``WholeUpdates`` keeps it from the first update, and repeats it for those alike.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import increment_version
from torch.optim import adadelta, adagrad, adam, adamax, rmsprop, sgd

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.results import Call, Facts, number_layout
from labkit.memory.track.frames import find_user_frames
from labkit.memory.track.model import Storage

# Functions that compute each element alone and write into their arguments; none of them decides by
# a tensor's value, as those of RAdam and ASGD do.
UPDATES = tuple(
    (module, name)
    for module, name in (
        *((adam, "_single_tensor_adam"), (sgd, "_single_tensor_sgd")),
        *((rmsprop, "_single_tensor_rmsprop"), (adagrad, "_single_tensor_adagrad")),
        *((adamax, "_single_tensor_adamax"), (adadelta, "_single_tensor_adadelta")),
    )
    if hasattr(module, name)
)
# Options whose value decides nothing: a scheduler changes it from step to step.
FREE = "lr"
MOST_PLANS = 500
# What is known of a tensor's values: nothing, the values themselves, or less.
UNKNOWN, KNOWN, LIMITED = range(3)
# An event is the number of bytes that are allocated, or the number of a storage that is freed.
Event = tuple[bool, int]


class UpdatePlan(NamedTuple):
    """What an update does, by the places of its tensors.

    ``most_bytes`` is the highest sum of its own storages, all of which it frees. ``counted`` are
    tensors of one known number, to which it adds 1, ``written`` those into which it wrote unknown
    values, and ``changed`` those into which it wrote.
    """

    events: tuple[Event, ...]
    most_bytes: int
    counted: tuple[int, ...]
    written: tuple[int, ...]
    changed: tuple[int, ...]


class UpdateRecorder:
    """Observes the storages of an update; ``fails`` if it does more than a plan can say."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._numbers: dict[int, int] = {}
        self.fails = False

    def allocate(self, storage: Storage) -> None:
        """Keeps the event."""
        if storage.before:  # an argument that is seen for the first time
            return
        self.fails = self.fails or storage.device != "cpu"
        self._numbers[storage.serial] = len(self.events)
        self.events.append((True, storage.bytes))

    def free(self, storage: Storage) -> None:
        """Keeps the event; what is older than the update is freed by something else."""
        number = self._numbers.pop(storage.serial, None)
        self.fails = self.fails or number is None
        self.events.append((False, number or 0))

    @property
    def keeps(self) -> bool:
        """True while a storage of the update is live."""
        return bool(self._numbers)


class _TensorLook(NamedTuple):
    """A tensor before or after an update; ``number`` is its value, if that is one known number."""

    layout: tuple[Any, ...]
    version: int
    writes: int
    label: Any
    number: float | None


# By their keys; None for what is no plan.
_plans: dict[Any, UpdatePlan | None] = {}
_FACTS = Facts(1, "", False, False, False, False, True, False, False, True)


class WholeUpdates:
    """Simulates updates as whole calls, for a tracer and its known values."""

    def __init__(self, tracer: Any, mode: Any) -> None:
        self._tracer, self._mode = tracer, mode

    def open(self) -> contextlib.ExitStack:
        """Replaces torch's functions until exit."""
        stack = contextlib.ExitStack()
        for module, name in UPDATES:
            wrapped = functools.partial(self._update, getattr(module, name))
            stack.enter_context(replace_attributes(module, **{name: wrapped}))
        return stack

    def _update(self, function: Callable[..., None], *arguments: Any, **named: Any) -> None:
        call = self._describe(arguments, named) if self._is_open(named) else None
        if call is None or call.key is None:
            function(*arguments, **named)
            return
        states = [self._find_state(one) for one in call.tensors]
        key = (function, *states, *call.key)
        if key not in _plans:
            if len(_plans) >= MOST_PLANS:
                _plans.clear()
            # An update that fails has no plan.
            _plans[key] = None
            run = functools.partial(function, *arguments, **named)
            _plans[key] = self._record(run, call.tensors, states)
            return
        plan = _plans[key]
        if plan is None:
            function(*arguments, **named)
        else:
            self._repeat(plan, call.tensors)

    def _is_open(self, named: Any) -> bool:
        """True where nothing but the tracer sees the operators, and they are an optimizer's."""
        tracer = self._tracer
        return (
            tracer.is_alone()
            and tracer.is_updating()
            and torch._C._len_torch_dispatch_stack() == 2  # the mode and the tracer
            and torch._C._len_torch_function_stack() == 0
            and not torch.is_grad_enabled()
            and not torch.is_inference_mode_enabled()
            and type(named.get(FREE)) is float
        )

    def _describe(self, arguments: Any, named: Any) -> Call | None:
        call = Call(_FACTS, arguments, {**named, FREE: None}, self._mode.placement)
        # Complex tensors take views, which replace the arguments.
        usual = all(
            type(one) is FakeTensor
            and one.is_floating_point()
            and one.fake_device.type == "cpu"
            and one.fake_mode is self._mode
            for one in call.tensors
        )
        return call if usual and call.tensors else None

    def _find_state(self, tensor: Any) -> int:
        label = tensor.__dict__.get("labkit_value")
        if label is None:
            return UNKNOWN
        # Values with limits are those of a draw.
        known = label[2] is None and self._tracer.values.find(tensor) is not None
        return KNOWN if known else LIMITED

    def _record(
        self, run: Callable[[], None], tensors: list[Any], states: list[int]
    ) -> UpdatePlan | None:
        """Runs the update by its parts; returns None if it does more than a plan can say."""
        tracer, recorder = self._tracer, UpdateRecorder()
        tracer.settle()
        doubts = tracer.find_doubts()
        before = list(map(self._look_at, tensors, states))
        with replace_attributes(tracer, _observer=recorder):
            run()
            tracer.settle()
        if recorder.fails or recorder.keeps or tracer.find_doubts() != doubts:
            return None
        after = list(map(self._look_at, tensors, states))
        counts = list(map(self._counts_up, tensors, before, after, states))
        if None in counts:
            return None
        level = most = 0
        for allocates, number in recorder.events:
            level += number if allocates else -recorder.events[number][1]
            most = max(most, level)
        places = range(len(tensors))
        return UpdatePlan(
            tuple(recorder.events),
            most,
            tuple(place for place in places if counts[place]),
            tuple(place for place in places if before[place].writes != after[place].writes),
            tuple(place for place in places if before[place].version != after[place].version),
        )

    def _look_at(self, tensor: Any, state: int) -> _TensorLook:
        values, storage = self._tracer.values, tensor.untyped_storage()
        return _TensorLook(
            (number_layout(tensor), storage._cdata, storage.nbytes(), tensor.storage_offset()),
            tensor._version,
            values.count_writes(tensor),
            tensor.__dict__.get("labkit_value"),
            values.read(tensor) if state == KNOWN and tensor.numel() == 1 else None,
        )

    def _counts_up(
        self, tensor: Any, old: _TensorLook, new: _TensorLook, state: int
    ) -> bool | None:
        """True for a known number that counts up; None if a plan cannot say what is known now."""
        if old.layout != new.layout:
            return None
        if old.writes != new.writes:
            # What it wrote last is not known, either.
            return None if self._tracer.values.is_labelled(tensor) else False
        if old.version == new.version or state != KNOWN:
            return False if old.label is new.label else None
        counts = old.number is not None and new.number == old.number + 1
        return True if counts and new.label[2] is None else None

    def _repeat(self, plan: UpdatePlan, tensors: list[Any]) -> None:
        tracer, values = self._tracer, self._tracer.values
        tracer.settle()
        tracer.find_storages(tensors)
        level = tracer.levels["cpu"]
        # Below the peak, what is freed again changes nothing.
        if tracer._observer or level.now_bytes + plan.most_bytes > level.peak_bytes:
            self._play(plan.events)
        counts = [values.find(tensors[place]) for place in plan.counted]
        if counts:
            with torch._C._DisableTorchDispatch():
                torch._foreach_add_(counts, 1)
        for place in plan.written:
            values.forget(tensors[place])
        increment_version([tensors[place] for place in plan.changed])

    def _play(self, events: tuple[Event, ...]) -> None:
        tracer, frames = self._tracer, find_user_frames()
        made: dict[int, Storage] = {}
        for place, (allocates, number) in enumerate(events):
            if allocates:
                one = Storage(next(tracer._serials), number, "cpu", "optimizer", frames)
                made[place] = one
                tracer._count(one)
            else:
                tracer._discount(made.pop(number))
