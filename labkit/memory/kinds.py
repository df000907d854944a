"""What a storage is for, told by torch itself while a program runs.

torch's own hooks, for every module and every optimizer, say when a forward pass or an optimizer's
step goes on, which tensors a module holds, and when a gradient has been collected. They are there
while the watch is open and gone after it; they see the thread that opened it alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.modules import module as modules
from torch.nn.parameter import is_lazy
from torch.optim import optimizer as optimizers

# These are known by what holds the tensor, not by where it was made: nothing overrules them.
CERTAIN = ("parameters", "gradients", "optimizer")


class KindWatch:
    """Follows modules, optimizers and gradients, and calls ``mark(tensor, kind)``."""

    def __init__(self, mark: Callable[[Any, str], None]) -> None:
        self._mark = mark
        self._thread = threading.get_ident()
        self._depth = self._steps = 0
        self._handles: list[Any] = []
        # By id, without a reference of any kind: torch will not swap a tensor that has a weak one.
        self._watched: dict[int, Any] = {}

    def open(self) -> None:
        """Begins to follow; ``close`` must come after it."""
        self._thread = threading.get_ident()
        self._handles = [
            modules.register_module_forward_pre_hook(self._begin_forward),
            modules.register_module_forward_hook(self._end_forward, always_call=True),
            optimizers.register_optimizer_step_pre_hook(self._begin_step),
            optimizers.register_optimizer_step_post_hook(self._end_step),
        ]

    def close(self) -> None:
        """Takes every hook out again."""
        for handle in [*self._handles, *self._watched.values()]:
            handle.remove()
        self._handles, self._watched = [], {}
        self._depth = self._steps = 0

    def name_birth(self, arguments: Iterable[Any], kinds: Iterable[str]) -> str:
        """The kind of what an operator makes now, from its arguments and their kinds."""
        if self._depth or torch._C._current_autograd_node() is not None:
            return "activations"
        if self._steps:
            return "optimizer"
        if "activations" in kinds:
            return "activations"
        tracked = torch.is_grad_enabled() and any(one.requires_grad for one in arguments)
        return "activations" if tracked else "other"

    def reads_inputs(self) -> bool:
        """True while what an operator reads beside parameters is the model's input."""
        return not self._steps and torch._C._current_autograd_node() is None

    def watch_parameter(self, tensor: Any) -> None:
        """Marks a parameter or another leaf, its gradient, and each one that it will collect."""
        self._mark(tensor, "parameters")
        # A lazy module's has no size and takes no hooks; its first forward pass makes it one.
        if is_lazy(tensor) or self._is_watched(tensor):
            return
        if tensor.grad is not None:
            self._mark(tensor.grad, "gradients")
        if tensor.requires_grad:
            handle = tensor.register_post_accumulate_grad_hook(self._end_gradient)
            self._watched[id(tensor)] = handle

    def _is_watched(self, tensor: Any) -> bool:
        handle = self._watched.get(id(tensor))
        # The id can be another tensor's by now: the handle knows the hooks that it is among.
        return handle is not None and handle.hooks_dict_ref() is tensor._post_accumulate_grad_hooks

    def _end_gradient(self, tensor: Any) -> None:
        if tensor.grad is not None:
            self._mark(tensor.grad, "gradients")

    def _is_elsewhere(self) -> bool:
        return threading.get_ident() != self._thread

    def _begin_forward(self, module: Any, arguments: Any) -> None:
        if self._is_elsewhere():
            return
        self._depth += 1
        for held in module._parameters.values():
            if held is not None and held.is_leaf:
                self.watch_parameter(held)
        for held in module._buffers.values():
            if held is not None:
                self._mark(held, "parameters")
        if self._depth == 1:
            for one in list_tensors(arguments):
                self._mark(one, "inputs")

    def _end_forward(self, module: Any, arguments: Any, result: Any) -> None:
        if not self._is_elsewhere():
            self._depth = max(0, self._depth - 1)

    def _begin_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
        if not self._is_elsewhere():
            self._steps += 1
            self._mark_state(optimizer)

    def _end_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
        if not self._is_elsewhere():
            self._steps = max(0, self._steps - 1)
            self._mark_state(optimizer)

    def _mark_state(self, optimizer: Any) -> None:
        for state in optimizer.state.values():
            for one in list_tensors(state):
                self._mark(one, "optimizer")


def list_tensors(value: Any) -> list[Any]:
    """The tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in list_tensors(part)]
