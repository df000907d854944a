"""Operators that select by values: the size that their results have, and what they take for it.

The figures of the CPU are those of its kernels (aten/src/ATen/native: ``Unique.cpp``,
``TensorAdvancedIndexing.cpp``); tests/test_estimate_selecting.py measures each of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.estimate.operators import PARALLEL_ELEMENTS
from labkit.memory.estimate.strides import find_name
from labkit.memory.track.storages import list_tensors

# The operator that `count_scattered` is for: what it takes depends on values, known or assumed.
SCATTERED = "masked_scatter_backward"


def count_selecting(name: str, arguments: Any, result: Any) -> int:
    """The bytes that the operator takes for itself, beside ``result``, and frees."""
    count = SELECTING.get(name)
    return count(arguments, list_tensors(result)) if count else 0


def _count_copy(tensor: Any) -> int:
    """A contiguous copy of what is not contiguous."""
    return 0 if tensor.is_contiguous() else int(tensor.numel() * tensor.element_size())


def _count_unique(arguments: Any, results: list[Any]) -> int:
    """``unique`` sorts; then it marks where each value begins, if it is to count them."""
    tensor, (values, inverse, counts) = arguments[0], results
    elements, copied = tensor.numel(), _count_copy(tensor)
    if tensor.device.type == "cuda":
        return int(elements * (8 + tensor.element_size()))
    if tensor.dtype is torch.bool:
        return copied
    counted = counts.numel()
    made = values.nbytes + inverse.nbytes + counts.nbytes
    ends = 8 * (counted + 1) if counted else 0
    sorted_bytes = elements * tensor.element_size()
    return int(copied + sorted_bytes + max(16 * elements - made, 8 * elements + ends))


def _count_consecutive(arguments: Any, results: list[Any]) -> int:
    """``unique_consecutive`` of elements, or of the parts along a dimension."""
    dim = arguments[3] if len(arguments) > 3 else None
    return _count_copy(arguments[0] if dim is None else arguments[0].movedim(dim, 0))


def _count_unique_parts(arguments: Any, results: list[Any]) -> int:
    """``unique`` along a dimension: its parts in order."""
    tensor, dim = arguments[:2]
    return int(_count_copy(tensor.movedim(dim, 0)) + tensor.numel() * tensor.element_size())


def _count_masked_select(arguments: Any, results: list[Any]) -> int:
    (tensor, mask), made = arguments[:2], results[0]
    return _count_masked(tensor, mask, made.numel()) - int(made.numel() * made.element_size())


def _count_masked(tensor: Any, mask: Any, chosen: int) -> int:
    """The most that ``masked_select`` takes at a time, with the ``chosen`` elements of its result.

    The CPU counts what is selected in 64 bits first. Where several threads write, or where a tensor
    is not contiguous, it takes the mask in 64 bits and its sums meanwhile. CUDA takes the places.
    """
    whole = torch.broadcast_shapes(tensor.shape, mask.shape)
    made, elements = int(chosen * tensor.element_size()), int(whole.numel())
    if tensor.device.type == "cuda":
        return made + 8 * max(1, len(whole)) * chosen
    dense = all(one.is_contiguous() and one.numel() == elements for one in (tensor, mask))
    alone = torch.get_num_threads() == 1 or elements < PARALLEL_ELEMENTS
    counted = 8 * elements + 8
    return max(made, counted) if (dense and alone) or not chosen else made + 16 * elements


def count_scattered(arguments: Any, chosen: int) -> int:
    """Backward of ``masked_scatter``: what the mask selects, then zeros for the source's rest."""
    gradient, mask, sizes = arguments[:3]
    made = math.prod(sizes)
    chosen = min(chosen, made)  # the forward pass has refused a source that is too short
    made_bytes = made * gradient.element_size()
    joined = 2 * made_bytes if chosen < made else made_bytes
    return int(max(_count_masked(gradient, mask, chosen), joined) - made_bytes)


def _count_places(arguments: Any, results: list[Any]) -> int:
    """The places of what masks select as indices."""
    tensor, chosen = arguments[0], results[0]
    if not tensor.numel():
        return 0
    masks = [one for one in arguments[1] if one is not None and one.dtype is torch.bool]
    return sum(8 * one.dim() * (chosen.numel() * one.numel() // tensor.numel()) for one in masks)


def collapse(value: Any) -> Any:
    """A view of a real tensor with one element along each dimension that repeats it.

    >>> collapse(torch.ones(3, 1).expand(3, 1000)).shape
    torch.Size([3, 1])
    """
    for dim, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        if not stride and size > 1:
            value = value.narrow(dim, 0, 1)
    return value


def count_true(mask: Any, shape: Any) -> int:
    """How many elements of a tensor of this shape a real mask selects; repeated ones are not read.

    >>> count_true(torch.tensor([[True], [False]]), (2, 1000))
    1000
    """
    with _disable_current_modes():
        whole = mask.expand(shape)
        once = collapse(whole)
        repeats = int(whole.numel()) // max(1, int(once.numel()))
        return int((once != 0).sum()) * repeats


def count_distinct(tensor: Any, limits: Any) -> int | None:
    """How many different values a tensor of whole numbers between these limits has at most."""
    if limits is None or tensor.is_floating_point() or tensor.is_complex():
        return None
    return int(min(tensor.numel(), limits.high - limits.low + 1))


def join_sizes(sizes: Iterable[int]) -> list[int]:
    """The places at which parts of these sizes are cut.

    >>> join_sizes([2, 3, 4])
    [2, 5]
    """
    return list(itertools.accumulate(sizes))[:-1]


SELECTING: dict[str, Callable[[Any, list[Any]], int]] = {
    "_unique2": _count_unique,
    "unique_consecutive": _count_consecutive,
    "unique_dim": _count_unique_parts,
    "masked_select": _count_masked_select,
    "index": _count_places,
}


def _list_masks(operator: Any, arguments: Any) -> list[Any]:
    """The masks by which an index, ``masked_select`` or ``nonzero`` selects."""
    if operator._schema.name == "aten::masked_select":
        return [arguments[1]]
    if operator._schema.name == "aten::nonzero":
        return [arguments[0]]
    if operator._schema.name != "aten::index":
        return []
    return [one for one in arguments[1] if one is not None and one.dtype is torch.bool]


def selects_by_known(operator: Any, arguments: Any, find: Callable[[Any], Any]) -> bool:
    """True where all masks that select have known values; ``find`` returns them, or None."""
    masks = _list_masks(operator, arguments)
    return bool(masks) and all(find(one) is not None for one in masks)


def count_values(
    operator: Any, arguments: Any, named: Any, count: Callable[[Any, int], int | None]
) -> Any:
    """The result of ``bincount``, whose length ``count`` returns for its values and least length.

    None for another operator, and where the length is not known.
    """
    if operator._schema.name != "aten::bincount":
        return None
    values, weights = arguments[0], arguments[1] if len(arguments) > 1 else named.get("weights")
    size = count(values, arguments[2] if len(arguments) > 2 else named.get("minlength", 0))
    if size is None:
        return None
    single = weights is not None and weights.dtype is torch.float32
    other = torch.float32 if single else torch.float64
    return values.new_empty(size, dtype=torch.int64 if weights is None else other)


def _assume_unique(tensor: Any, size: int, inverse: bool = False, counts: bool = False) -> Any:
    """What ``unique`` returns of ``size`` values."""
    places = tensor.new_empty(tensor.shape if inverse else 0, dtype=torch.int64)
    return tensor.new_empty(size), places, tensor.new_empty(size * counts, dtype=torch.int64)


def _assume_consecutive(tensor: Any, size: int, inverse: bool = False, counts: bool = False) -> Any:
    """What ``unique_consecutive`` returns of ``size`` values: the beginning of place for all."""
    places = tensor.new_empty(tensor.shape if inverse else 0, dtype=torch.int64)
    whole = tensor.new_empty(tensor.numel() * counts, dtype=torch.int64)
    return tensor.new_empty(tensor.numel())[:size], places, whole[: size * counts]


def _make_strides(shape: Sequence[int], order: Iterable[int]) -> list[int]:
    """The strides of a tensor without gaps, whose dimensions lie in this order, outermost first."""
    strides, reached = [0] * len(shape), 1
    for dim in reversed(list(order)):
        strides[dim] = reached
        reached *= max(1, shape[dim])
    return strides


def _assume_parts(tensor: Any, dim: int, count: Callable[[torch.Size], int]) -> Any:
    """What ``unique`` returns of the parts along a dimension, always with places and counts."""
    shape = list(tensor.shape)
    rows = shape[dim]
    size = shape[dim] = max(1, count(torch.Size([rows])))
    places = tensor.new_empty(rows, dtype=torch.int64)
    # The kernel stacks the parts and moves their dimension back.
    order = [dim % len(shape), *(one for one in range(len(shape)) if one != dim % len(shape))]
    made = tensor.new_empty_strided(shape, _make_strides(shape, order))
    return made, places, tensor.new_empty(rows, dtype=torch.int64)[:size]


def _assume_distinct(
    name: str, tensor: Any, arguments: Any, count: Callable[[torch.Size], int]
) -> Any:
    if name == "_unique2":
        return _assume_unique(tensor, max(1, count(tensor.shape)), *arguments[2:4])
    parts = name == "unique_dim"
    whole = name == "unique_consecutive" and len(arguments) < 4
    if not (parts or whole) or tensor.device.type != "cpu":
        return None
    if parts:
        return _assume_parts(tensor, arguments[1], count)
    return _assume_consecutive(tensor, max(1, count(tensor.shape)), *arguments[1:3])


def assume_shape(
    operator: Any,
    arguments: Any,
    named: Any,
    *,
    count: Callable[[torch.Size], int],
    find: Callable[[Any], Any],
) -> Any:
    """The result of an operator whose size depends on values.

    ``count`` returns how many elements are selected of those of a shape. ``find`` returns the
    values of a mask, None if they are unknown: what an index selects by known values has the real
    size. Returns None for an operator that is not known here.
    """
    tensor, name = arguments[0], find_name(operator)
    if name == "nonzero":
        value, dims = find(tensor), tensor.dim()
        size = count(tensor.shape) if value is None else count_true(value, tensor.shape)
        return tensor.new_empty_strided((size, dims), (1, size), dtype=torch.int64)
    if name == "masked_select":
        shape = torch.broadcast_shapes(tensor.shape, arguments[1].shape)
        value = find(arguments[1])
        return tensor.new_empty(count(shape) if value is None else count_true(value, shape))
    if name == "index":
        places: list[Any] = []
        for one in arguments[1]:
            if one is None or one.dtype is not torch.bool:
                places.append(one)
            else:
                value = find(one)
                size = count(one.shape) if value is None else count_true(value, one.shape)
                chosen = one.new_zeros(size, dtype=torch.int64)
                places += [chosen] * one.dim()
        return operator(tensor, places, **named)
    return _assume_distinct(name, tensor, arguments, count)
