"""What stops a simulated step: an obstacle, an error of the step, or a tensor that is real."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch._subclasses import fake_tensor

from labkit.errors import UsageError
from labkit.memory.estimate.model import EstimateObstacle
from labkit.memory.track.frames import list_error_frames

FOLDER = str(Path(torch.__file__).parent) + "/"
# The exceptions for an operator that torch cannot fake, and the reasons.
UNKNOWN = {
    fake_tensor.DataDependentOutputException: "reads a value, but fake tensors have none",
    fake_tensor.DynamicOutputShapeException: "has a result whose size depends on values",
    fake_tensor.UnsupportedOperatorException: "has no fake version",
}


class RealTensorError(Exception):
    """The step trains a real parameter of another place, or uses one beside its copy."""


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
            return str(getattr(error, "func", "")), reason
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
    elif "UnknownNumber" in text and isinstance(error, TypeError):
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
