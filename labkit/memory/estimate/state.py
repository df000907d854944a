"""What a simulated step sets for the whole process, put back when it has run.

A step may choose torch's default type and device, turn gradients off, ask for deterministic
operators, seed generators, or set environment variables. The real step, or another estimate, begins
as the simulated one did.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

# How torch's settings are read and set; a setting is what the second function takes.
SETTINGS: tuple[tuple[Callable[[], tuple[Any, ...]], Callable[..., object]], ...] = (
    (lambda: (torch.get_default_dtype(),), torch.set_default_dtype),
    (lambda: (torch.is_grad_enabled(),), torch.set_grad_enabled),
    (lambda: (torch.get_num_threads(),), torch.set_num_threads),
    (lambda: (torch.get_float32_matmul_precision(),), torch.set_float32_matmul_precision),
    (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda mode, warns: torch.use_deterministic_algorithms(mode, warn_only=warns),
    ),
    (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        torch.set_anomaly_enabled,
    ),
    (lambda: (random.getstate(),), random.setstate),
)
FLAGS: tuple[tuple[Any, str], ...] = (
    (torch.backends.cudnn, "benchmark"),
    (torch.backends.cudnn, "deterministic"),
    (torch.backends.cudnn, "enabled"),
)


@contextlib.contextmanager
def keep_state() -> Iterator[None]:
    """Puts back, on exit, what the block set for the whole process."""
    settings = [(read(), put, read) for read, put in SETTINGS]
    flags = [(owner, name, getattr(owner, name)) for owner, name in FLAGS]
    device, variables = _find_default_device(), dict(os.environ)
    numpy = sys.modules.get("numpy.random")
    drawn = None if numpy is None else numpy.get_state()
    try:
        yield
    finally:
        for values, put, read in settings:
            if read() != values:
                put(*values)
        for owner, name, value in flags:
            if getattr(owner, name) != value:
                setattr(owner, name, value)
        if _find_default_device() != device:
            torch.set_default_device(device)
        if dict(os.environ) != variables:
            _put_variables(variables)
        if numpy is not None:
            numpy.set_state(drawn)


def _find_default_device() -> torch.device | None:
    """The device that ``torch.set_default_device`` was called with; None if it was not."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _put_variables(variables: dict[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
