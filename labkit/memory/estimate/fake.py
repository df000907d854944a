"""Runs a step on fake tensors, which have torch's shapes and storages but no data and memory.

Fake tensors have no values. If a step reads one, an ``EstimateObstacle`` says which operator read
it, in which line, and why the run stops there. ``loss.item()`` is an exception, because most
training steps print the loss or add it up, which changes no size. It returns an
``UnknownNumber``, which raises only when it is compared, branched on or converted to an integer.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.optim.optimizer import register_optimizer_step_pre_hook

from labkit.errors import UsageError
from labkit.memory.estimate.cuda import (
    AUTOCAST,
    CachingAllocator,
    CudaBehavior,
    choose_foreach,
    replace_attribute,
    round_request,
    simulate_autocast,
)
from labkit.memory.estimate.model import EstimateObstacle
from labkit.memory.track.frames import find_user_frames, is_user_file, list_error_frames
from labkit.memory.track.storages import StorageTracer

# Values that torch's own code reads affect how it computes, not how much memory it takes: the
# number of optimizer steps, and whether a gradient has overflowed (assumed not).
OWN_ANSWERS = {"optim/": 1, "amp/": 0, "nn/utils/": 0}
# Operators with scratch memory that a library allocates; fake tensors do not know its size.
UNKNOWN_SCRATCH = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")
FOLDER = str(Path(torch.__file__).parent) + "/"
# Torch computes these losses element by element into their result, which keeps this storage when
# it is reduced to one number; the storage of the fake result has one number only. No other operator
# of torch's own test database (torch 2.13) differs.
KEEP_STORAGE = (
    torch.ops.aten.mse_loss.default,
    torch.ops.aten.smooth_l1_loss.default,
    torch.ops.aten.soft_margin_loss.default,
    torch.ops.aten.binary_cross_entropy.default,
)
# Warnings that come from the simulation, not from the user's code.
HARMLESS = ("Accessing the data pointer of FakeTensor", "Using `torch.compile.module.` when there")
# The exceptions for an operator that torch cannot fake, and the reasons.
UNKNOWN = {
    fake_tensor.DataDependentOutputException: "reads a value, but fake tensors have none",
    fake_tensor.DynamicOutputShapeException: "has a result whose size depends on values",
    fake_tensor.UnsupportedOperatorException: "has no fake version",
}
# Files of torch in the stack between the code that reads a value and the dispatcher.
PASSAGES = ("_ops.py", "_compile.py", "_tensor.py", "_dynamo/", "_subclasses/", "utils/")


class FakeMode(fake_tensor.FakeTensorMode):  # type: ignore[misc]
    """Torch's fake mode; a deep copy of a fake tensor stays in the same mode."""

    def __deepcopy__(self, memo: Any) -> FakeMode:
        return self


class FakeTracer(StorageTracer):
    """Traces fake storages, and records the first obstacle, which makes the memory unknown."""

    def __init__(self, observer: Any, round_up: Callable[[int], int]) -> None:
        super().__init__(observer, round_up=round_up)
        self.obstacle: EstimateObstacle | None = None

    def __torch_dispatch__(
        self,
        operator: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        """Traces the operator; returns a substitute for a value that torch's own code reads."""
        run = _keep_storage(operator) if operator in KEEP_STORAGE else operator
        try:
            result = super().__torch_dispatch__(run, types, arguments, named)
        except fake_tensor.DataDependentOutputException:
            answer = _answer_torch() if operator is READ_VALUE else None
            if answer is None:
                raise
            return answer
        name = operator._schema.name.partition("::")[2]  # type: ignore[attr-defined]
        if name in UNKNOWN_SCRATCH:
            self._note(EstimateObstacle(str(operator), "takes scratch memory of unknown size"))
        return result

    def _look_at(self, tensors: Any) -> Any:
        for one in tensors:
            if one.requires_grad and one.is_leaf and not isinstance(one, fake_tensor.FakeTensor):
                raise RealTensorError
            if one.layout is not torch.strided:
                self._note(
                    EstimateObstacle(f"a {one.layout} tensor", "has a size that depends on values")
                )
        return super()._look_at(tensors)

    def _note(self, obstacle: EstimateObstacle) -> None:
        if self.obstacle is None:
            frames = find_user_frames()
            self.obstacle = obstacle._replace(frame=frames[0] if frames else None)


def _keep_storage(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the loss so that its result has a storage of the real size."""

    @functools.wraps(loss)
    def compute(*arguments: Any, **named: Any) -> Any:
        result = loss(*arguments, **named)
        count = torch.broadcast_shapes(arguments[0].shape, arguments[1].shape).numel()
        storage = result.untyped_storage()
        storage.resize_(max(storage.nbytes(), count * result.element_size()))
        return result

    return compute


class RealTensorError(Exception):
    """The step uses a real parameter, which was created outside of it."""


class LazyTensorError(Exception):
    """A parameter of a lazy module, which has no size until its module has run."""


class Simulation:
    """Runs code with traced fake tensors; with ``cuda``, as on a GPU."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = cuda
        self.allocator = CachingAllocator() if cuda else None
        self._fake = FakeMode(allow_non_fake_inputs=True)
        self.tracer = FakeTracer(self.allocator, round_request if cuda else int)
        self.notes: list[str] = []
        self.growth_bytes = 0

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The context in which the step runs; restores torch's state on exit."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            for message in HARMLESS:
                warnings.filterwarnings("ignore", message=message)
            # Fake tensors log the traceback of each error that they raise.
            logger = logging.getLogger(fake_tensor.__name__)
            stack.enter_context(replace_attribute(logger, "disabled", True))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(replace_attribute(torch.utils, "swap_tensors", _swap_data))
            stack.enter_context(allow_unknown_items(self._note_unknown))
            if self._cuda:
                stack.enter_context(simulate_autocast(self._note_autocast))
                stack.callback(register_optimizer_step_pre_hook(choose_foreach).remove)
            stack.enter_context(self._fake)
            stack.enter_context(self.tracer)
            yield

    @property
    def names_cuda(self) -> bool:
        """True if the code uses the device cuda, for autocast or for tensors."""
        on_cuda = any(name.startswith("cuda") for name in self.tracer.levels)
        return on_cuda or AUTOCAST in self.notes

    def copy_fake(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Copies of the arguments with fake tensors, which share storages like the real ones."""
        with _copy_by(self._make_fake):
            return copy.deepcopy(arguments)

    def _make_fake(self, tensor: Any) -> Any:
        if torch.nn.parameter.is_lazy(tensor):
            raise LazyTensorError(type(tensor).__name__)
        made = self._replace_tensor(tensor)
        # It takes memory even if the step does not use it.
        self.tracer.mark(made, "parameters" if isinstance(made, torch.nn.Parameter) else "other")
        return made

    def _replace_tensor(self, tensor: Any) -> Any:
        if tensor.device.type == "cpu":
            return self._fake.from_tensor(tensor)
        # Tensors on a GPU or on the meta device are simulated on the CPU too.
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad)

    def measure_growth(self, run_step: Callable[[], object]) -> None:
        """Runs the second step and, if it keeps more memory than the first, a third.

        An optimizer creates its state in the first step, and the second step has everything. If
        only the second keeps more memory, this is not growth; the third step decides.
        """
        before = self.tracer.count_live()
        run_step()
        if self.tracer.count_live() <= before:
            return
        gc.collect()  # objects kept only by reference cycles are not growth
        before = self.tracer.count_live()
        run_step()
        gc.collect()
        self.growth_bytes = max(0, self.tracer.count_live() - before)

    def follow_cuda(self, *, wanted: bool = True) -> contextlib.AbstractContextManager[Any]:
        """The context in which code for CUDA runs on the CPU, with CUDA's behavior for a GPU."""
        return CudaBehavior(follow=self._cuda) if wanted else contextlib.nullcontext()

    def _note_unknown(self) -> None:
        frames = find_user_frames()
        where = f" at {frames[0].where}" if frames else ""
        self._note(f"the value of item(){where} is unknown; it was only printed or added up")

    def _note_autocast(self) -> None:
        self._note(AUTOCAST)

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)


def read_obstacle(error: BaseException) -> EstimateObstacle | None:
    """The obstacle that stopped a step on fake tensors; None for the step's own errors."""
    frame = next(iter(list_error_frames(error)), None)
    for kind, reason in UNKNOWN.items():
        if isinstance(error, kind):
            return EstimateObstacle(str(getattr(error, "func", "")), reason, frame)
    if isinstance(error, fake_tensor.UnsupportedFakeTensorException):
        return EstimateObstacle("a tensor", f"has no fake version ({error})", frame)
    unregistered = re.search(r"no fake impl registered for <CustomOpDef\((.+?)\)>", str(error))
    if unregistered:
        return EstimateObstacle(unregistered[1], "has no fake version", frame)
    if ".numpy() is not supported" in str(error):
        return EstimateObstacle("numpy()", "reads values, but fake tensors have none", frame)
    return None


def refuse_lazy(name: str) -> UsageError:
    """The error for a step whose model has lazy modules that have not run yet."""
    return UsageError(
        f"{name} has a lazy module, whose parameters have no size yet",
        cause="torch cannot make fake tensors of them",
        fix="run the model once on a small batch, then estimate_memory(step, model, ...)",
    )


def refuse_real(name: str, *, inference: bool) -> UsageError:
    """The error for a step that uses a parameter created outside of it."""
    cause = "the real parameter would get fake gradients, and the model would be unusable"
    if inference:
        cause = "the parameter would count twice: the real one, and its fake copy"
    return UsageError(
        f"{name} {'reads' if inference else 'trains'} a parameter that was made outside of it",
        cause=cause,
        fix="estimate_memory(step, model, ...) with the model as an argument, or made inside",
    )


@contextlib.contextmanager
def _copy_by(convert: Callable[[Any], Any]) -> Iterator[None]:
    """Makes ``copy.deepcopy`` replace each tensor by ``convert(tensor)``."""

    def copy_tensor(tensor: Any, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(tensor), convert(tensor))

    # Each of these has its own __deepcopy__.
    with contextlib.ExitStack() as stack:
        for cls in (torch.Tensor, torch.nn.Parameter, torch.nn.UninitializedParameter):
            stack.enter_context(replace_attribute(cls, "__deepcopy__", copy_tensor))
        yield


def _swap_data(one: Any, other: Any) -> None:
    """For ``Module.to``: torch's own swap refuses fake parameters."""
    one.data = other.data


def _answer_torch() -> int | None:
    """A substitute for a value that torch's own code reads; None if the user's code reads it."""
    running: FrameType | None = sys._getframe(2)
    while running is not None:
        file = running.f_code.co_filename
        running = running.f_back
        if file.startswith(FOLDER):
            path = file.removeprefix(FOLDER)
            if not path.startswith(PASSAGES):
                answers = (OWN_ANSWERS[one] for one in OWN_ANSWERS if path.startswith(one))
                return next(answers, None)
        elif is_user_file(file):
            return None
    return None


READ_VALUE = torch.ops.aten._local_scalar_dense.default


class UnknownNumber(float):
    """A number without a value; it supports only arithmetic and printing (as ``?``)."""

    def __repr__(self) -> str:
        return "?"

    __str__ = __repr__

    def __format__(self, form: str) -> str:
        return "?"

    def _pass_on(self, *others: Any) -> UnknownNumber:
        return UnknownNumber(1.0)

    def _refuse(self, *others: Any) -> NoReturn:
        raise DataDependentOutputException(READ_VALUE)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _pass_on
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _pass_on
    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _refuse  # type: ignore[assignment]
    __int__ = __trunc__ = __floor__ = __ceil__ = __floordiv__ = __rfloordiv__ = _refuse
    __mod__ = __rmod__ = __divmod__ = __rdivmod__ = __hash__ = _refuse  # type: ignore[assignment]

    def __round__(self, digits: Any = None) -> Any:
        return self._refuse() if digits is None else self._pass_on()


def allow_unknown_items(note: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Makes ``tensor.item()`` return an UnknownNumber if there is no value, until exit.

    ``note`` is called each time.
    """
    original = torch.Tensor.item

    def read(tensor: Any) -> Any:
        try:
            return original(tensor)
        except DataDependentOutputException:
            if not tensor.is_floating_point():
                raise  # an integer is usually used as a size or index
            note()
            return UnknownNumber(1.0)

    return replace_attribute(torch.Tensor, "item", read)
