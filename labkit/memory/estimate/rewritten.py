"""Views into which a step writes, and what their backward pass takes.

Torch gives such a view another node once it is used. For a real tensor this is
``AsStridedBackward0``, which copies the gradient into one as large as the base; for a fake one
torch runs the view again, and the gradient stays as it is.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch._C._autograd import _get_sequence_nr

from labkit.memory.estimate.whole import ALONE, is_alone

ATEN = torch.ops.aten


class RewrittenViews:
    """Follows the operators of a step from the first write into a view on.

    A view that torch runs again is dead at the next operator, unlike one that the step uses.
    """

    def __init__(self) -> None:
        self.follows = True
        self._bases: set[int] = set()
        self._last: tuple[weakref.ref[Any], int] | None = None
        self._again: set[int] = set()

    def write(self, view: Any) -> None:
        """Keeps into which storage the step writes."""
        self._bases.add(view.untyped_storage()._cdata)

    def run(self, tracer: Any, operator: Any, types: Any, arguments: Any, named: Any) -> Any:
        """The operator's result by the tracer, in backward with the copies of real tensors."""
        if self._last is not None:
            view, number = self._last
            self._last = None
            if view() is None:
                self._again.add(number)
        self.follows = False
        sees = getattr(operator, "is_view", False) and is_strided(arguments[0])
        alone = sees and _is_freed(arguments[0])
        try:
            result = tracer.__torch_dispatch__(operator, types, arguments, named)
            if not sees or not isinstance(result, torch.Tensor):
                return result
            node = torch._C._current_autograd_node()
            if node is None:
                if torch.is_grad_enabled() and self._is_of_base(arguments[0]):
                    # The newest node is that of this view.
                    self._last = weakref.ref(result), _get_sequence_nr() - 1
            elif node._sequence_nr() in self._again:
                if alone:  # it is freed once it is copied
                    tracer.count_freed(result.nbytes, [result])
                    return result
                with tracer.enter_again():
                    return ATEN.clone.default(result, memory_format=torch.contiguous_format)
            return result
        finally:
            self.follows = True

    def _is_of_base(self, tensor: Any) -> bool:
        return tensor.untyped_storage()._cdata in self._bases


def is_strided(value: Any) -> bool:
    """True for a tensor that has a storage."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def _is_freed(gradient: Any) -> bool:
    """True for a gradient that nothing needs once it is copied, also for a view of such a one."""
    if not gradient._is_view():
        return owns_storage(gradient)
    # The view has the storage too.
    uses = torch._C._storage_Use_Count(gradient.untyped_storage()._cdata)
    return _is_whole(gradient) and bool(uses <= ALONE + 1)


def owns_storage(tensor: Any) -> bool:
    """True for a tensor that nothing else holds, and that is all of its storage."""
    return _is_whole(tensor) and is_alone(tensor)


def _is_whole(tensor: Any) -> bool:
    return bool(tensor.untyped_storage().nbytes() == tensor.nbytes)
