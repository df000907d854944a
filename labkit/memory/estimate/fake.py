"""A number that nobody knows: what ``loss.item()`` gives where the loss is a fake tensor.

Most training steps ask for the loss to print it or to add it up. That changes no size, so it goes
through; to compare it, to branch on it or to make an integer of it does, and raises.

Running a step on fake tensors: all of torch's shapes and storages, and none of the memory.

Where a step asks for a value, there is none: an ``Obstacle`` says which operator asked, in which
line, and why it stops there.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn

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
    play_autocast,
    round_request,
)
from labkit.memory.track.frames import Frame, find_user_frames, is_user_file
from labkit.memory.track.storages import StorageTracer

# What torch's own code asks of values decides how it computes, never how much memory it takes:
# how often an optimizer has stepped, and whether a gradient has overflowed (it has not).
OWN_ANSWERS = {"optim/": 1, "amp/": 0, "nn/utils/": 0}
# Their scratch memory is made by a library whose sizes fake tensors do not know.
UNKNOWN_SCRATCH = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")
FOLDER = str(Path(torch.__file__).parent) + "/"
# Said because of how a step is played, and true of nothing that its owner does.
HARMLESS = ("Accessing the data pointer of FakeTensor", "Using `torch.compile.module.` when there")
# What torch raises for an operator that it cannot fake, and why that is.
UNKNOWN = {
    fake_tensor.DataDependentOutputException: "asks for a value, and fake tensors have none",
    fake_tensor.DynamicOutputShapeException: "gives as many elements as the values say",
    fake_tensor.UnsupportedOperatorException: "has no fake version",
}
# Between the code that asks for a value and the one that answers.
PASSAGES = ("_ops.py", "_compile.py", "_tensor.py", "_dynamo/", "_subclasses/", "utils/")


class EstimateObstacle(NamedTuple):
    """Where fake tensors do not know: the operator, why not, and the user's line."""

    operator: str
    reason: str
    frame: Frame | None = None

    def __str__(self) -> str:
        where = f" at {self.frame.where}" if self.frame else ""
        return f"{self.operator}{where} {self.reason}"


class FakeMode(fake_tensor.FakeTensorMode):  # type: ignore[misc]
    """Torch's fake tensors; a deep copy of one belongs to the same mode."""

    def __deepcopy__(self, memo: Any) -> FakeMode:
        return self


class FakeTracer(StorageTracer):
    """Traces fake storages, and takes down what cannot be known of them."""

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
        """Traces the operator; a value that torch itself asks for is answered."""
        try:
            result = super().__torch_dispatch__(operator, types, arguments, named)
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
                    EstimateObstacle(f"a {one.layout} tensor", "has as much as its values say")
                )
        return super()._look_at(tensors)

    def _note(self, obstacle: EstimateObstacle) -> None:
        if self.obstacle is None:
            frames = find_user_frames()
            self.obstacle = obstacle._replace(frame=frames[0] if frames else None)


class RealTensorError(Exception):
    """A parameter that was made outside takes part."""


class LazyTensorError(Exception):
    """A parameter of a lazy module, which has no size before its module has run."""


class FakeStep:
    """Fake tensors around whatever runs in it, traced; ``cuda`` as CUDA would take memory."""

    def __init__(self, *, cuda: bool) -> None:
        self._cuda = cuda
        self.allocator = CachingAllocator() if cuda else None
        self._fake = FakeMode(allow_non_fake_inputs=True)
        self.tracer = FakeTracer(self.allocator, round_request if cuda else int)
        self.notes: list[str] = []

    @contextlib.contextmanager
    def play(self) -> Iterator[None]:
        """The context to run in; torch is as it was before when it ends."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            for message in HARMLESS:
                warnings.filterwarnings("ignore", message=message)
            stack.enter_context(_hush(logging.getLogger(fake_tensor.__name__)))
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(_swap_by_data())
            stack.enter_context(pass_unknown_items(self._note_unknown))
            if self._cuda:
                stack.enter_context(play_autocast(self._note_autocast))
                stack.callback(register_optimizer_step_pre_hook(choose_foreach).remove)
            stack.enter_context(self._fake)
            stack.enter_context(self.tracer)
            yield

    @property
    def names_cuda(self) -> bool:
        """True where the code names cuda: for autocast, or for tensors that cannot be used then."""
        on_cuda = any(name.startswith("cuda") for name in self.tracer.levels)
        return on_cuda or AUTOCAST in self.notes

    def copy_fake(self, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments with fake tensors for real ones; what they share, they still share."""
        with _copy_by(self._make_fake):
            return copy.deepcopy(arguments)

    def _make_fake(self, tensor: Any) -> Any:
        if torch.nn.parameter.is_lazy(tensor):
            raise LazyTensorError(type(tensor).__name__)
        made = self._stand_in(tensor)
        # It takes memory whether or not the step looks at it.
        self.tracer.mark(made, "parameters" if isinstance(made, torch.nn.Parameter) else "other")
        return made

    def _stand_in(self, tensor: Any) -> Any:
        if tensor.device.type == "cpu":
            return self._fake.from_tensor(tensor)
        # What is on a GPU, or on the meta device, is played on the CPU too.
        stand_in = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(stand_in, requires_grad=tensor.requires_grad)
        return stand_in.requires_grad_(tensor.requires_grad)

    def follow_cuda(self, *, wanted: bool = True) -> contextlib.AbstractContextManager[Any]:
        """The context in which code for CUDA runs on the CPU; in CUDA's ways, if it is for CUDA."""
        return CudaBehavior(follow=self._cuda) if wanted else contextlib.nullcontext()

    def _note_unknown(self) -> None:
        frames = find_user_frames()
        where = f" at {frames[0].where}" if frames else ""
        self._note(f"the value of item(){where} is not known; it was only passed on")

    def _note_autocast(self) -> None:
        self._note(AUTOCAST)

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)


def read_obstacle(error: BaseException) -> EstimateObstacle | None:
    """What stopped a step on fake tensors; None where the error is the step's own."""
    frame = find_raising_frame(error)
    for kind, reason in UNKNOWN.items():
        if isinstance(error, kind):
            return EstimateObstacle(str(getattr(error, "func", "")), reason, frame)
    if isinstance(error, fake_tensor.UnsupportedFakeTensorException):
        return EstimateObstacle("a tensor", f"has no fake version ({error})", frame)
    unregistered = re.search(r"no fake impl registered for <CustomOpDef\((.+?)\)>", str(error))
    if unregistered:
        return EstimateObstacle(unregistered[1], "has no fake version", frame)
    if ".numpy() is not supported" in str(error):
        return EstimateObstacle("numpy()", "asks for values, and fake tensors have none", frame)
    return None


def find_raising_frame(error: BaseException) -> Frame | None:
    """The innermost line of the user's own code on the way to an error."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        if is_user_file(frame.f_code.co_filename):
            found = Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
    return found


def refuse_lazy(name: str) -> UsageError:
    """The error for a step whose model has lazy modules that have not run yet."""
    return UsageError(
        f"{name} has a lazy module, whose parameters have no size yet",
        cause="torch's fake tensors cannot stand in for them",
        fix="run the model once on a small batch, then estimate_memory(step, model, ...)",
    )


def refuse_real(name: str, *, inference: bool) -> UsageError:
    """The error for a step with parameters which were made outside of it."""
    cause = "its gradients would be fake ones: the model would be spoilt"
    if inference:
        cause = "it would count twice: as it is, and as the fake one that is made of it"
    return UsageError(
        f"{name} {'reads' if inference else 'trains'} a parameter that was made outside of it",
        cause=cause,
        fix="estimate_memory(step, model, ...) with the model as an argument, or made inside",
    )


@contextlib.contextmanager
def _hush(logger: logging.Logger) -> Iterator[None]:
    """Keeps the tracebacks back that fake tensors log on the way to raising the same error."""
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _copy_by(convert: Callable[[Any], Any]) -> Iterator[None]:
    """Lets ``copy.deepcopy`` put ``convert(tensor)`` wherever the original has the tensor."""

    def copy_tensor(tensor: Any, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(tensor), convert(tensor))

    # Each of these has a way of its own.
    kinds = (torch.Tensor, torch.nn.Parameter, torch.nn.UninitializedParameter)
    originals = [kind.__deepcopy__ for kind in kinds]
    for kind in kinds:
        kind.__deepcopy__ = copy_tensor
    try:
        yield
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.__deepcopy__ = original


@contextlib.contextmanager
def _swap_by_data() -> Iterator[None]:
    """Lets ``Module.to`` exchange fake parameters, which torch's own exchange refuses."""

    def exchange(one: Any, other: Any) -> None:
        one.data = other.data

    original = torch.utils.swap_tensors
    torch.utils.swap_tensors = exchange
    try:
        yield
    finally:
        torch.utils.swap_tensors = original


def _answer_torch() -> int | None:
    """The answer to a value that torch's own code asks for; None where the user's asks."""
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
    """A number without a value: it can be reckoned with and shown, as ``?``, and no more."""

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


@contextlib.contextmanager
def pass_unknown_items(tell: Callable[[], object]) -> Iterator[None]:
    """While it is open, ``tensor.item()`` gives an UnknownNumber where there is no value.

    ``tell`` is called each time that it does.
    """
    own = "item" in vars(torch.Tensor)
    original = torch.Tensor.item

    def read(tensor: Any) -> Any:
        try:
            return original(tensor)
        except DataDependentOutputException:
            if not tensor.is_floating_point():
                raise  # a count: it is asked for to be used
            tell()
            return UnknownNumber(1.0)

    torch.Tensor.item = read
    try:
        yield
    finally:
        if own:
            torch.Tensor.item = original
        else:
            del torch.Tensor.item
