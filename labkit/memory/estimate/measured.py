"""What operators of the CPU take for themselves, measured by running each of them once.

oneDNN copies convolutions' and recurrent networks' tensors into layouts of its own, which depend on
the processor, the number of threads and the sizes; no table has them. ``measure_scratch`` runs the
operator on zeros of the same shapes under torch's profiler, in some milliseconds, and remembers
the result. Other operators copy what is not contiguous (``strides.py``); so they are run too, where
an argument is not. What is too large to be run is measured on two small batches: what it takes is
linear in the batch.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.balance.model import MIB
from labkit.memory.estimate.operators import HALF
from labkit.memory.estimate.strides import find_name, may_copy
from labkit.memory.track.counters import TensorCounter, is_profiling
from labkit.memory.track.storages import list_tensors

CONVOLUTIONS = ("convolution", "convolution_backward")
RECURRENT = ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward")
# Products in 16 bits, for which oneDNN reorders a matrix.
PRODUCTS = frozenset("mm addmm bmm baddbmm addbmm addmv mv dot _addmm_activation".split())  # noqa: SIM905
# Other operators that take memory for themselves, in ways that depend on their arguments.
OTHERS = frozenset(
    """_safe_softmax _trilinear _upsample_bilinear2d_aa _upsample_bicubic2d_aa histc isin
    index_reduce mvlgamma cholesky_solve _embedding_bag_per_sample_weights_backward
    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_tensor_affine
    _fake_quantize_learnable_per_channel_affine_backward
    _fake_quantize_learnable_per_tensor_affine_backward""".split()  # noqa: SIM905
)
LIBRARIES = ("_fft_", "linalg_", "_linalg_")
# Those of them that need nothing, or what CPU_SCRATCH says: zeros have no valid pivots.
CHEAP = frozenset({"linalg_vector_norm", "linalg_lu_solve"})
# How many products a matrix exponential keeps depends on the values.
BY_VALUES = "linalg_matrix_exp"
RNN_BACKWARD = torch.ops.aten.mkldnn_rnn_layer_backward.default
# What an operator raises for arguments that it cannot be run with.
INVALID = (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError)
# Larger arguments are not created: the estimate is to take no memory.
MOST_BYTES = 32 * MIB


class Scratch(NamedTuple):
    """Bytes that an operator frees before it returns, and those of each storage that it returns."""

    freed_bytes: int
    result_bytes: tuple[int, ...]


_measured: dict[Any, Scratch | None] = {}


def needs_measuring(operator: Any, tensors: list[Any]) -> bool:
    """True for an operator of the CPU whose own memory is not in the table of ``operators.py``."""
    return calls_library(operator, tensors) or may_copy(operator, tensors)


def calls_library(operator: Any, tensors: list[Any]) -> bool:
    """True for an operator that takes memory for itself whatever the layout of its arguments."""
    name = find_name(operator)
    if name in CONVOLUTIONS or name in RECURRENT or name in OTHERS:
        return True
    if name.startswith(LIBRARIES):
        return name not in CHEAP
    return name in PRODUCTS and tensors[0].dtype in HALF


def measure_scratch(operator: Any, arguments: Any, named: Any, result: Any) -> Scratch | None:
    """What the operator takes for itself, beside its result.

    None if it is too large, if that depends on values, or if another profiler runs.
    """
    if operator._schema.name == f"aten::{BY_VALUES}":
        return None
    given = [*arguments, *(word for item in sorted(named.items()) for word in item)]
    # A recurrent layer keeps its workspace only where gradients are recorded.
    state = torch.get_num_threads(), torch._C._get_mkldnn_enabled(), torch.is_grad_enabled()
    key = (operator, *state, *map(_describe, given))
    if key not in _measured:
        if is_profiling():
            return None
        _measured[key] = None
        # Zeros are no valid lengths, places or types for some.
        with _disable_current_modes(), contextlib.suppress(*INVALID):
            _measured[key] = _measure(operator, arguments, named, result)
    return _measured[key]


def _describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_describe, value)) if isinstance(value, list | tuple) else value


def _measure(operator: Any, arguments: Any, named: Any, result: Any) -> Scratch | None:
    tensors = list_tensors(arguments)
    library = calls_library(operator, tensors)
    total = _count_bytes(tensors) + (0 if library else _count_bytes(list_tensors(result)))
    if total <= MOST_BYTES:
        return _run(operator, arguments, named)
    name = find_name(operator)
    if library and name not in CONVOLUTIONS:
        return None
    largest = arguments[0] if library else max(tensors, key=torch.Tensor.numel)
    batch = largest.size(0) if largest.dim() else 0
    larger = max(4 if library else 2, batch * MOST_BYTES // total)
    if batch <= larger:
        return None
    smaller = larger // 2
    # A convolution's weight may have as many channels as there are samples.
    images = (name.endswith("_backward") + 1) if library else len(arguments)
    low, high = (
        _run(operator, _shrink_all(arguments, images, batch, size), named, result)
        for size in (smaller, larger)
    )
    each = (high.freed_bytes - low.freed_bytes) / (larger - smaller)
    return Scratch(round(high.freed_bytes + each * (batch - larger)), ())


def _count_bytes(tensors: list[Any]) -> int:
    return sum(int(one.numel() * one.element_size()) for one in tensors)


def _run(operator: Any, arguments: Any, named: Any, whole: Any = None) -> Scratch:
    """Runs it on zeros; raises ValueError for results that are not those of fewer samples.

    ``whole`` are the results for all samples.
    """
    given = _make_zeros(list(arguments))
    if operator is RNN_BACKWARD:
        given = _run_forward(given)
    words = {name: _make_zeros(one) for name, one in named.items()}
    counter = TensorCounter()
    counter.reset()
    try:
        result = operator(*given, **words)
    finally:
        reading = counter.read()
    made = list_tensors(result)
    if whole is not None:
        for one, other in zip(made, list_tensors(whole), strict=True):
            if one.shape[1:] != other.shape[1:]:
                raise ValueError("another shape")
    sizes = tuple(one.untyped_storage().nbytes() for one in made)
    freed = 0 if reading is None else (reading.peak_bytes or 0) - reading.level_bytes
    return Scratch(freed, sizes)


def _shrink_all(arguments: Any, images: int, batch: int, size: int) -> list[Any]:
    """The arguments for ``size`` of the ``batch`` samples; ``images``: how many have samples."""
    return [
        _shrink(one, batch, size) if place < images else one for place, one in enumerate(arguments)
    ]


def _shrink(value: Any, batch: int, size: int) -> Any:
    """A tensor on the meta device, or sizes, with fewer samples and otherwise the same layout."""
    if isinstance(value, list | tuple) and value and value[0] == batch and type(value[0]) is int:
        return [size, *value[1:]]
    if not isinstance(value, torch.Tensor) or not value.dim() or value.size(0) != batch:
        return value
    first = value.stride(0)
    strides = [one * size // batch if one > first > 0 else one for one in value.stride()]
    return torch.empty_strided((size, *value.shape[1:]), strides, dtype=value.dtype, device="meta")


def _run_forward(given: list[Any]) -> list[Any]:
    """The arguments of a recurrent layer's backward, with a workspace that its forward wrote.

    A workspace of zeros ends the process.
    """
    names = [one.name for one in RNN_BACKWARD._schema.arguments]
    by_name = dict(zip(names, given, strict=True))
    places = "input weight1 weight2 weight3 weight4 hx_ cx_tmp reverse batch_sizes mode hidden_size"
    places += " num_layers has_biases bidirectional batch_first train"
    with torch.enable_grad():  # else there is no workspace
        made = torch.ops.aten.mkldnn_rnn_layer(*(by_name[name] for name in places.split()))
    by_name["output"], by_name["workspace"] = made[0], made[3]
    return list(by_name.values())


def _make_zeros(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_make_zeros(one) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    # Some kernels read an expanded tensor as if it were contiguous: there are zeros for all of it.
    pairs = zip(value.shape, value.stride(), strict=True)
    reached = 1 + sum((size - 1) * step for size, step in pairs)
    elements = max(value.numel(), reached if value.numel() else 0)
    return torch.zeros(elements, dtype=value.dtype).as_strided(value.shape, value.stride())
