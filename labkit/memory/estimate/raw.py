"""Ways to a tensor's memory beside torch's operators: its storage, DLPack, functions of elements.

A real tensor from outside the step has its memory during a simulation, and keeps what is in it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.estimate.copies import is_fake
from labkit.memory.estimate.cuda import replace_in_thread
from labkit.memory.estimate.model import EstimateObstacle
from labkit.memory.estimate.obstacles import FOLDER
from labkit.memory.estimate.replaced import find_caller

OUTSIDE = "changes the memory of a tensor from outside the step"
# What writes into a storage: its size stays, and no operator sees it.
WRITING = ("fill_", "copy_", "__setitem__", "byteswap")
STORAGES = (torch.UntypedStorage, torch.TypedStorage)
OWN_FOLDER = __file__.removesuffix("raw.py")
# What calls a replacement where threads run that are spared.
SPARING = replace_in_thread.__code__.co_filename
# What calls a function of Python for each element.
BY_ELEMENT = ("apply_", "map_", "map2_")


def hold_memory(
    note_obstacle: Callable[[EstimateObstacle], object], follow_size: Callable[[Any], object]
) -> contextlib.ExitStack:
    """Has the step's own ways to the memory of tensors leave it as it is, until exit.

    ``follow_size`` is called with each storage of the simulation that is resized.
    """
    stack = contextlib.ExitStack()
    for kind in STORAGES:
        made = {name: _ignore(getattr(kind, name)) for name in WRITING if hasattr(kind, name)}
        stack.enter_context(replace_in_thread(kind, **made))
    kind = torch.UntypedStorage
    resize, share = _hold_size(kind.resize_, note_obstacle, follow_size), _stay(kind.share_memory_)
    stack.enter_context(replace_in_thread(kind, resize_=resize, share_memory_=share))
    made = {name: _draw(getattr(torch.Tensor, name)) for name in BY_ELEMENT}
    made["__dlpack__"] = _share_copy(torch.Tensor.__dlpack__)
    stack.enter_context(replace_in_thread(torch.Tensor, **made))
    return stack


def _is_simulating() -> bool:
    return bool(torch._C._len_torch_dispatch_stack())


def _is_labkits() -> bool:
    """Whether labkit's own code, which counts for itself, calls what has this function's caller."""
    running = sys._getframe(2)
    if running.f_code.co_filename == SPARING and running.f_back is not None:
        running = running.f_back
    return running.f_code.co_filename.startswith(OWN_FOLDER)


def _ignore(write: Callable[..., Any]) -> Callable[..., Any]:
    """Numbers matter to no figure; torch's own code writes into storages that it makes."""

    @functools.wraps(write)
    def answer(storage: Any, *given: Any, **named: Any) -> Any:
        if not _is_simulating():
            return write(storage, *given, **named)
        caller = find_caller(2)
        is_torchs = caller is not None and caller.f_code.co_filename.startswith(FOLDER)
        if storage.device.type == "meta" or not is_torchs:
            return storage
        with _disable_current_modes():
            return write(storage, *given, **named)

    return answer


def _stay(share: Callable[..., Any]) -> Callable[..., Any]:
    """A storage that the step moves into shared memory stays where it is."""

    @functools.wraps(share)
    def answer(storage: Any, *given: Any, **named: Any) -> Any:
        return storage if _is_simulating() else share(storage, *given, **named)

    return answer


def _hold_size(
    resize: Callable[..., Any],
    note_obstacle: Callable[[EstimateObstacle], object],
    follow_size: Callable[[Any], object],
) -> Callable[..., Any]:
    """Resizes the storages of fake tensors alone."""

    @functools.wraps(resize)
    def answer(storage: Any, *given: Any, **named: Any) -> Any:
        if not _is_simulating():
            return resize(storage, *given, **named)
        if storage.device.type == "meta":
            made = resize(storage, *given, **named)
            if not _is_labkits():
                follow_size(storage)
            return made
        note_obstacle(EstimateObstacle("UntypedStorage.resize_()", OUTSIDE))
        return storage

    return answer


def _draw(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Gives the tensor numbers that nobody knows; the function of elements is not called."""

    @functools.wraps(apply)
    def answer(tensor: Any, *given: Any, **named: Any) -> Any:
        if not _is_simulating():
            return apply(tensor, *given, **named)
        with torch.no_grad():
            return tensor.random_()

    return answer


def _share_copy(share: Callable[..., Any]) -> Callable[..., Any]:
    """For a real tensor, what another library gets is a copy."""

    @functools.wraps(share)
    def answer(tensor: Any, *given: Any, **named: Any) -> Any:
        if is_fake(tensor) or not _is_simulating():
            return share(tensor, *given, **named)
        with _disable_current_modes():
            return share(tensor.detach().clone(), *given, **named)

    return answer
