"""``estimate_memory()``: will this step fit, said beforehand, without a GPU and without memory."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabkitError, UsageError
from labkit.memory.estimate.target import Target, find_target
from labkit.memory.track.model import LineUse

if TYPE_CHECKING:
    import torch

    from labkit.memory.estimate.fake import EstimateObstacle, FakeStep

ITERATIONS = 2  # an optimizer makes its state in the first step; the second one has it beside it
LINES_SHOWN = 8
BATCH_NAMES = ("batch", "batch_size")
MOST_TRIES = 24
FORWARD_ALONE = "the forward pass alone: a training step is a function that calls backward() too"


class Estimate(NamedTuple):
    """What a step takes at its peak, in bytes, and whether its target has that.

    ``kinds`` splits ``peak_bytes`` (parameters with buffers, gradients, the optimizer with what
    its step takes meanwhile, activations with what backward takes meanwhile, inputs, other) and
    adds up to it. ``reserved_bytes`` is what CUDA's allocator would have from the driver, and
    ``context_bytes`` the least and the most that CUDA itself takes; None where the target is the
    CPU. With an ``obstacle`` the figures are a lower bound. ``largest_batch`` is the one that
    surely fits where ``batch`` does not; 0 where not even 1 does, None where it was not looked for.
    """

    name: str
    target: Target
    peak_bytes: int
    kinds: dict[str, int]
    lines: tuple[LineUse, ...] = ()
    batch: int | None = None
    inference: bool = False
    reserved_bytes: int | None = None
    context_bytes: tuple[int, int] | None = None
    obstacle: EstimateObstacle | None = None
    largest_batch: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def least_bytes(self) -> int:
        """What is needed at least: the tensors, and the smallest context."""
        return self.peak_bytes + (self.context_bytes or (0, 0))[0]

    @property
    def most_bytes(self) -> int:
        """What surely suffices: all that the allocator would have, and the largest context."""
        held = max(self.peak_bytes, self.reserved_bytes or 0)
        return held + (self.context_bytes or (0, 0))[1]

    @property
    def fits(self) -> bool | None:
        """True or False where it is certain; None where it is close, or not known."""
        capacity = self.target.capacity_bytes
        if capacity is None:
            return None
        if self.least_bytes > capacity:
            return False
        return True if self.most_bytes <= capacity and self.obstacle is None else None

    @property
    def spare_bytes(self) -> int | None:
        """What is left of the target at least; below zero, what it lacks at least."""
        capacity = self.target.capacity_bytes
        if capacity is None:
            return None
        return capacity - (self.least_bytes if self.fits is False else self.most_bytes)

    def __repr__(self) -> str:
        from labkit.memory.estimate.view import format_estimate

        return format_estimate(self)

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        from labkit.memory.estimate.view import draw_estimate

        return draw_estimate(self)


def estimate_memory(
    step: Callable[..., object],
    *arguments: object,
    batch: int | None = None,
    device: str | int | torch.device | None = None,
    inference: bool = False,
    say: Callable[[str], object] | None = None,
) -> Estimate:
    """The peak of a training or inference step in bytes, found without running it for real.

    ``step`` runs on fake tensors: shapes and storages without data or memory. Two ways:

    - ``estimate_memory(train_step, model, optimizer, inputs)``: the step and what it takes, real
      or not; fake copies of it are used, and it stays as it is. A model is a step too, of its
      forward pass: ``estimate_memory(model, inputs, inference=True)``.
    - ``estimate_memory(make_step, batch=32)``: ``make_step(batch)`` makes model, optimizer and
      inputs and returns the step, a function without arguments. A parameter named ``batch`` with
      a default needs no ``batch=``.

    The step is run twice, so that what an optimizer makes in its first step counts. ``device`` is
    what it is to fit: a size ("24 GiB"), a GPU's name ("H100"), "cuda:0" or "cpu" of this
    machine; where it does not fit and there is a batch size, the largest that does is looked for,
    taking it that more samples never need less. ``inference=True`` runs the step without gradients.
    ``say`` is told of each batch size that is tried.

    For a GPU the allocator's rounding and cache are counted, and CUDA's context as a range; what
    cuDNN takes while it computes is not known. Where fake tensors do not know (a value that is
    branched on, an operator without a fake version), the estimate says where, and is a lower
    bound. ``loss.item()`` that is only shown or added up goes through, and is noted.

    Raises UsageError where the step fails by itself, LabkitError where another thread traces.

    >>> import torch
    >>> layer = torch.nn.Linear(1000, 1000, bias=False)
    >>> estimate_memory(lambda layer: None, layer, inference=True).peak_bytes
    4000000
    """
    target = find_target(device)
    work = make_work(step, arguments, batch, inference=inference)
    estimate = _estimate(work, target)
    if not (estimate.peak_bytes or arguments or estimate.obstacle):
        raise UsageError(
            f"{work.name} makes no tensors: there is nothing to estimate",
            cause="without arguments, it is to make model and inputs and to return the step",
            fix="labkit estimate --help",
        )
    judged = target.capacity_bytes is not None and estimate.obstacle is None
    if not judged or estimate.fits is True or work.batch is None:
        return estimate
    if (estimate.context_bytes or (0, 0))[1] > (target.capacity_bytes or 0):
        return estimate._replace(largest_batch=0)  # CUDA's context alone may be too much

    def measure(size: int) -> int | None:
        if say:
            say(f"tries batch {size}")
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what it prints was seen once
                found = _estimate(work._replace(batch=size), target)
        except UsageError:
            return None  # some models cannot run a batch of one
        return found.most_bytes if found.obstacle is None else None

    capacity = target.capacity_bytes or 0
    found = find_largest_batch(measure, capacity, work.batch, estimate.most_bytes)
    return estimate._replace(largest_batch=found)


class Work(NamedTuple):
    """What is to be estimated: the function, what it is called with, and how."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    batch: int | None
    inference: bool

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return getattr(self.function, "__name__", type(self.function).__name__)


class ModelCall:
    """A model's forward pass as a step, which takes the model like any other argument."""

    def __init__(self, model: object) -> None:
        self.__name__ = type(model).__name__

    def __call__(self, model: Callable[..., object], *inputs: object) -> object:
        """What the model gives for the inputs."""
        return model(*inputs)


def make_work(
    step: object, arguments: tuple[object, ...], batch: int | None, *, inference: bool
) -> Work:
    """The work that was handed in; UsageError where it is none."""
    import torch

    if isinstance(step, torch.nn.Module):
        if not arguments:
            raise UsageError(
                f"{type(step).__name__} is a model, and not a step",
                cause="a model cannot be run without its inputs",
                fix="estimate_memory(model, inputs, inference=True)",
            )
        arguments, step = (step, *arguments), ModelCall(step)
    if not callable(step):
        raise UsageError(
            f"{step!r} is no step to estimate",
            cause="a step is a function",
            fix="estimate_memory(train_step, model, optimizer, inputs)",
        )
    return Work(step, arguments, _find_batch(step, arguments, batch), inference)


def find_largest_batch(
    measure: Callable[[int], int | None], capacity_bytes: int, too_large: int, needed_bytes: int
) -> int:
    """The largest batch below ``too_large`` whose measured bytes the capacity holds; 0 for none.

    Goes by straight lines between what is known, as memory mostly grows with the batch, and
    checks its answer; ``measure`` gives None for a batch that cannot run.

    >>> find_largest_batch(lambda size: 100 + 10 * size, 205, 64, 740)
    10
    """
    below, below_bytes, above, above_bytes = 0, None, too_large, needed_bytes
    for turn in range(MOST_TRIES):
        if above - below <= 1:
            break
        guess = (below + above) // 2
        # By a line, a little below it and a little above in turn, to have it between the two: the
        # allocator's segments make stairs of it. Near the end halves are as good.
        if below_bytes is not None and above - below > 0.03 * below:
            share = (capacity_bytes - below_bytes) / (above_bytes - below_bytes)
            aim = (below + share * (above - below)) * (1.01 if turn % 2 else 0.99)
            guess = min(max(int(aim), below + 1), above - 1)
        found = measure(guess)
        if found is not None and found <= capacity_bytes:
            below, below_bytes = guess, found
        else:
            above, above_bytes = guess, found if found is not None else above_bytes
    return below


def _find_batch(
    step: Callable[..., object], arguments: tuple[object, ...], batch: int | None
) -> int | None:
    """The batch size that was given, or the default of the parameter of that name."""
    found: object = batch
    if batch is None and not arguments:
        with contextlib.suppress(TypeError, ValueError):  # it has no signature
            first = next(iter(inspect.signature(step).parameters.values()), None)
            if first is not None and first.name in BATCH_NAMES and type(first.default) is int:
                found = first.default
    if found is None:
        return None
    if type(found) is not int or found < 1:
        raise UsageError(f"a batch of {found!r} samples", fix="a batch of 1 or more")
    return found


def _estimate(work: Work, target: Target) -> Estimate:
    from labkit.memory.estimate.cuda import CONTEXT_BYTES
    from labkit.memory.track.model import Level, sum_categories, sum_lines

    on_cuda = target.kind == "cuda"
    forward_alone = isinstance(work.function, ModelCall) and not work.inference
    pretence, obstacle = _play_out(work, cuda=on_cuda)
    level = pretence.tracer.levels.get("cpu", Level())
    held = level.list_at_peak()
    return Estimate(
        name=work.name,
        target=target,
        peak_bytes=level.peak_bytes,
        kinds=sum_categories(held),
        lines=sum_lines(held, LINES_SHOWN),
        batch=work.batch,
        inference=work.inference,
        reserved_bytes=pretence.allocator.reserved_bytes if pretence.allocator else None,
        context_bytes=CONTEXT_BYTES if on_cuda else None,
        obstacle=obstacle or pretence.tracer.obstacle,
        notes=(*([FORWARD_ALONE] if forward_alone else []), *pretence.notes),
    )


def _play_out(work: Work, *, cuda: bool) -> tuple[FakeStep, EstimateObstacle | None]:
    """Plays the work in the way that is closest to how it would really run."""
    from labkit.memory.estimate.fake import FakeStep

    pretence = FakeStep(cuda=cuda)
    if not work.inference:
        return pretence, _play(work, pretence, follow=True)
    # An encoder has a faster way for inference, which it does not take while functions are
    # followed; and nothing else differs on CUDA then. Only code that names cuda needs it.
    try:
        obstacle = _play(work, pretence, follow=False)
    except UsageError as error:
        if "cuda" not in error.what.lower():
            raise
    else:
        if not pretence.names_cuda:
            return pretence, obstacle
    pretence = FakeStep(cuda=cuda)
    return pretence, _play(work, pretence, follow=True)


def _play(work: Work, pretence: FakeStep, *, follow: bool) -> EstimateObstacle | None:
    """Runs the work in the pretence; gives what stopped it where fake tensors did not know."""
    from labkit.memory.estimate.fake import (
        LazyTensorError,
        RealTensorError,
        read_obstacle,
        refuse_lazy,
        refuse_real,
    )

    try:
        with pretence.play():
            _run(work, pretence, follow=follow)
    except RealTensorError as error:
        raise refuse_real(work.name, inference=work.inference) from error
    except LazyTensorError as error:
        raise refuse_lazy(work.name) from error
    except LabkitError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        if "UninitializedParameter" in str(error):
            raise refuse_lazy(work.name) from error
        obstacle = read_obstacle(error)
        if obstacle is None:
            raise explain_failure(work.name, error) from error
        return obstacle
    return None


def _run(work: Work, pretence: FakeStep, *, follow: bool) -> None:
    arguments = pretence.copy_fake(work.arguments)
    given = arguments if work.batch is None else (work.batch, *arguments)
    # With arguments, to call the function is to take the first step.
    first = work.inference and bool(arguments)
    with pretence.follow_cuda(wanted=follow or not first), _keep_gradients(off=first):
        made = work.function(*given)
    step = made if callable(made) else None
    _refuse_no_step(made, work.name)
    del made  # what a step returns is gone before the next one, as in a loop
    if step is None and not arguments:
        return
    with pretence.follow_cuda(wanted=follow), _keep_gradients(off=work.inference):
        for _ in range(ITERATIONS if step else ITERATIONS - 1):
            (step or (lambda: work.function(*given)))()


def _keep_gradients(*, off: bool) -> contextlib.AbstractContextManager[Any]:
    import torch

    return torch.no_grad() if off else contextlib.nullcontext()


def _refuse_no_step(made: object, name: str) -> None:
    import torch

    if isinstance(made, torch.nn.Module):
        raise UsageError(
            f"{name} returned a model, and not a step",
            cause="a model cannot be run without its inputs",
            fix=f"let {name} return a function without arguments that runs the model once",
        )
    if inspect.isawaitable(made) or inspect.isgenerator(made):
        raise UsageError(
            f"{name} returned {type(made).__name__} {name!r}, which has not run",
            cause="calling a coroutine or a generator function does not run its body",
            fix="a plain function",
        )


def explain_failure(name: str, error: BaseException) -> UsageError:
    """The user's own error as one: what was raised, in which line, and how to see all of it."""
    from labkit.memory.estimate.fake import find_raising_frame

    frame = find_raising_frame(error)
    where = f"{frame.where}: {frame.source}" if frame else "in no line of its own"
    said = (str(error).strip().splitlines() or ["without a word"])[0]
    return UsageError(
        f"{name} raised {type(error).__name__}: {said}",
        cause=where,
        fix="run it once for real with a small batch; --debug shows the traceback",
    )
