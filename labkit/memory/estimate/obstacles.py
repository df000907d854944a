"""What stops a simulated step: an obstacle, an error of the step, or a tensor that is real."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch._subclasses import fake_tensor

from labkit.errors import UsageError
from labkit.memory.estimate.cuda import find_number
from labkit.memory.estimate.model import EstimateObstacle
from labkit.memory.estimate.stalls import LOCK, LOOP, LOOP_LOCK, OWN_LOCK
from labkit.memory.track.frames import USER, judge_file, list_error_frames

MINIMUM = ": with minlength= it is estimated"
FOLDER = str(Path(torch.__file__).parent) + "/"
# The exceptions for an operator that torch cannot fake, and the reasons.
UNKNOWN = {
    fake_tensor.DataDependentOutputException: "reads a value, but fake tensors have none",
    fake_tensor.DynamicOutputShapeException: "has a result whose size depends on values",
    fake_tensor.UnsupportedOperatorException: "has no fake version",
}


class RealTensorError(Exception):
    """The step trains a real parameter of another place, or uses one beside its copy.

    Its arguments are the parameter's number, and whether the step has a copy of it.
    """


class StoppedThread(SystemExit):
    """Ends a thread that the step has left running."""


class StalledStepError(BaseException):
    """The step waits, and nothing of it goes on.

    Its arguments are the line, or "", what a thread of it waits at in C, or "", and in which line.
    The step's own ``except Exception`` does not catch it.
    """


class LazyTensorError(Exception):
    """A parameter of a lazy module, which has no size until its module has run."""


# What torch's own errors say.
INTERNAL = ("INTERNAL ASSERT FAILED", "NestedTensorImpl")


def read_obstacle(error: BaseException) -> EstimateObstacle | None:
    """The obstacle that stopped a step on fake tensors; None for the step's own errors."""
    frame = next(iter(list_error_frames(error)), None)
    found = _name_obstacle(error)
    return None if found is None else EstimateObstacle(*found, frame)


def _name_obstacle(error: BaseException) -> tuple[str, str] | None:
    """The operator that torch cannot fake, and why."""
    text = str(error)
    for kind, reason in UNKNOWN.items():
        if isinstance(error, kind):
            name = str(getattr(error, "func", ""))
            return name, reason + (MINIMUM if "bincount" in name else "")
    unavailable = re.search(
        r"Could not run '(.+?)' with arguments from the '\w*Meta' backend", text
    )
    missing = re.search(r"(\S+): attempted to run this operator with Meta tensors", text)
    unregistered = re.search(r"no fake impl registered for <CustomOpDef\((.+?)\)>", text)
    found: tuple[str, str] | None = None
    if isinstance(error, fake_tensor.UnsupportedFakeTensorException):
        found = ("a tensor", f"has no fake version ({error})")
    elif unavailable:
        found = (unavailable[1], "has no fake version")
    elif missing:
        found = (missing[1], "has no fake version")
    elif unregistered:
        found = (unregistered[1], "has no fake version")
    elif "UnknownNumber" in text and isinstance(error, TypeError | IndexError):
        found = ("item()", UNKNOWN[fake_tensor.DataDependentOutputException])
    elif type(error).__name__ == "SafetensorError":
        found = ("safetensors", UNKNOWN[fake_tensor.DataDependentOutputException])
    elif ".numpy() is not supported" in text:
        found = ("numpy()", "reads values, but fake tensors have none")
    # What torch itself cannot do with fake tensors, such as nested ones, is not the step's error.
    elif any(one in text for one in INTERNAL) or _raised_in_simulation(error):
        found = ("an operator", "fails on fake tensors")
    return found


def _raised_in_simulation(error: BaseException) -> bool:
    """True for a failed assertion in torch's code of fake tensors."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename if trace else ""
    return isinstance(error, AssertionError) and file.startswith(f"{FOLDER}_subclasses/")


def refuse_lazy(name: str) -> UsageError:
    """The error for a step whose model has lazy modules that have not run yet."""
    return UsageError(
        f"{name} has a lazy module, whose parameters have no size yet",
        cause="torch cannot make fake tensors of them",
        fix="run the model once on a small batch, then estimate_memory(step, model, ...)",
    )


# What waits in C: the cause, and the fix.
STALLS = {
    LOCK: (
        "the lock{} stays locked: the step has acquired it, in this call or in the one before, and"
        " not released it, or a thread from before has it",
        "release it before it is acquired again (with lock: ...), use threading.RLock where one"
        " thread acquires it twice, or leave it out of the step",
    ),
    OWN_LOCK: (
        "the lock or semaphore{} stays locked: the step has acquired it, in this call or in the one"
        " before, and not released it",
        "release it before it is acquired again (with lock: ...)",
    ),
    LOOP_LOCK: (
        "the lock or semaphore of asyncio's{} stays locked: the step has acquired it, in this call"
        " or in the one before, and not released it",
        "release it before it is acquired again (async with lock: ...)",
    ),
    LOOP: (
        "the event loop{} has nothing left to run: no task, timer or thread of the step is to"
        " wake it up",
        "set or finish what is awaited inside of the step, or await it with a timeout"
        " (asyncio.wait_for)",
    ),
}


def refuse_stalled(name: str, where: str, kind: str = "", place: str = "") -> UsageError:
    """The error for a step that waits for what does not come."""
    cause = (
        "no thread of the step has gone on for some seconds, and threads from before see"
        " nothing of what it puts, sets or releases"
    )
    fix = (
        "let the step start the thread that answers, give its work to a ThreadPoolExecutor,"
        " or leave the waiting out of the step"
    )
    cause, fix = STALLS.get(kind, (cause, fix))
    return UsageError(
        f"{name} waits without end{where and f' at {where}'}",
        cause=cause.format(place and f" at {place}"),
        fix=fix,
    )


def refuse_real(
    step: Callable[..., object],
    name: str,
    error: RealTensorError,
    *,
    has_arguments: bool,
    inference: bool,
) -> UsageError:
    """The error for a step that uses a parameter created outside of it."""
    number, has_copy = error.args
    owner, path = find_name(step, number)
    shown = f": {path}" if path else ""
    if has_copy:
        return UsageError(
            f"{name} {'reads' if inference else 'uses'} a parameter that was made outside of it,"
            f" beside its copy among the arguments{shown}",
            cause="it would count twice: the real one, and the copy that is simulated",
            fix=f"use the argument of {name} everywhere in it, not {owner or 'the variable'}",
        )
    one = owner or "teacher"
    given = f"estimate_memory({name}, model, {one}, ...) with {owner or 'its model'} as an argument"
    if not has_arguments:
        given = f"make {one} inside of {name}, or estimate_memory(step, {one}, ...)"
    return UsageError(
        f"{name} trains a parameter that was made outside of it{shown}",
        cause="the real parameter would get fake gradients, and the model would be unusable",
        fix=f"{given}; or, where it is not to be trained, {one}.requires_grad_(False), or use"
        f" {one} under torch.no_grad()",
    )


# How far a parameter is looked for from the step, and through how many objects.
DEEPEST_NAME, MOST_NAMED = 4, 20_000


def find_name(step: Any, number: int) -> tuple[str, str]:
    """What the step calls the model of a parameter with this number, and the parameter, or "".

    >>> step = functools.partial(print, teacher=torch.nn.Sequential(torch.nn.Linear(2, 2)))
    >>> find_name(step, find_number(step.keywords["teacher"][0].bias))
    ('teacher', 'teacher.0.bias')
    """
    level, seen = [("", step)], {id(step)}
    for _ in range(DEEPEST_NAME + 1):
        further: list[tuple[str, Any]] = []
        for path, one in level:
            if find_number(one) == number:
                return path, path
            if isinstance(one, torch.nn.Module):
                names = [
                    name for name, each in one.named_parameters() if find_number(each) == number
                ]
                if names:
                    return path, f"{path}.{names[0]}" if path else names[0]
            for name, part in _list_named(path, one):
                if id(part) not in seen and len(seen) < MOST_NAMED:
                    seen.add(id(part))
                    further.append((name, part))
        level = further
    return "", ""


def _list_named(path: str, one: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds, as the user's code calls it."""
    start = f"{path}." if path else ""
    if isinstance(one, MethodType):
        yield "self", one.__self__
        yield path, one.__func__
    elif isinstance(one, functools.partial):
        yield path, one.func
        yield from ((f"argument {place}", part) for place, part in enumerate(one.args, start=1))
        yield from one.keywords.items()
    elif isinstance(one, FunctionType):
        if judge_file(one.__code__.co_filename) == USER:
            found = inspect.getclosurevars(one)
            yield from {**found.nonlocals, **found.globals}.items()
            values = inspect.signature(one).parameters.values()
            yield from ((each.name, each.default) for each in values)
    elif isinstance(one, Mapping):
        yield from ((f"{path}[{key!r}]", part) for key, part in list(one.items()))
    elif isinstance(one, list | tuple):
        yield from ((f"{path}[{place}]", part) for place, part in enumerate(one))
    elif not isinstance(one, torch.Tensor | type | ModuleType):
        yield from ((f"{start}{key}", part) for key, part in getattr(one, "__dict__", {}).items())
