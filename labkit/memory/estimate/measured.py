"""What operators of the CPU take for themselves, measured by running each of them once.

oneDNN copies convolutions' and recurrent networks' tensors into layouts of its own, which depend on
the processor, the number of threads and the sizes; no table has them. ``measure_scratch`` runs the
operator on zeros of the same shapes under torch's profiler, in some milliseconds, and remembers
the result. A large convolution is measured on two small batches: what it takes is linear in the
batch.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.balance.model import MIB
from labkit.memory.estimate.operators import HALF
from labkit.memory.track.counters import TensorCounter, is_profiling
from labkit.memory.track.storages import list_tensors

CONVOLUTIONS = ("convolution", "convolution_backward")
RECURRENT = ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward")
# Products in 16 bits, for which oneDNN reorders a matrix.
PRODUCTS = frozenset("mm addmm bmm baddbmm addbmm addmv mv dot _addmm_activation".split())  # noqa: SIM905
# Operators that copy what is not contiguous.
COPYING = frozenset(
    """native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
    native_batch_norm_backward gelu_backward _softmax _softmax_backward_data _log_softmax
    _log_softmax_backward_data roll upsample_bilinear2d upsample_nearest2d
    upsample_bicubic2d upsample_nearest2d_backward avg_pool2d
    max_pool2d_with_indices max_pool2d_with_indices_backward avg_pool2d_backward
    fractional_max_pool2d_backward""".split()  # noqa: SIM905
)
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
# Larger arguments are not created: the estimate is to take no memory.
MOST_BYTES = 32 * MIB


class Scratch(NamedTuple):
    """Bytes that an operator frees before it returns, and those of each storage that it returns."""

    freed_bytes: int
    result_bytes: tuple[int, ...]


_measured: dict[Any, Scratch | None] = {}


def needs_measuring(name: str, tensors: list[Any]) -> bool:
    """True for an operator of the CPU whose own memory is not in the table of ``operators.py``."""
    if name in CONVOLUTIONS or name in RECURRENT or name in OTHERS:
        return True
    if name.startswith(LIBRARIES):
        return name not in CHEAP
    if name in PRODUCTS:
        return tensors[0].dtype in HALF
    return name in COPYING and not all(one.is_contiguous() for one in tensors)


def measure_scratch(operator: Any, arguments: Any, named: Any) -> Scratch | None:
    """What the operator takes for itself.

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
        with _disable_current_modes(), contextlib.suppress(RuntimeError):
            _measured[key] = _measure(operator, arguments, named)
    return _measured[key]


def _describe(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(map(_describe, value)) if isinstance(value, list | tuple) else value


def _measure(operator: Any, arguments: Any, named: Any) -> Scratch | None:
    total = sum(one.numel() * one.element_size() for one in list_tensors(arguments))
    if total <= MOST_BYTES:
        return _run(operator, arguments, named)
    name = operator._schema.name.partition("::")[2]
    batch = arguments[0].size(0)
    larger = max(4, batch * MOST_BYTES // total)
    if name not in CONVOLUTIONS or batch <= larger:
        return None
    smaller = larger // 2
    low, high = (_run(operator, arguments, named, batch=size) for size in (smaller, larger))
    each = (high.freed_bytes - low.freed_bytes) / (larger - smaller)
    return Scratch(round(high.freed_bytes + each * (batch - larger)), ())


def _run(operator: Any, arguments: Any, named: Any, batch: int | None = None) -> Scratch:
    """Runs it on zeros; with ``batch``, on that many samples of the images."""
    images = operator._schema.name.endswith("_backward") + 1
    given = [
        _make_zeros(one, batch if place < images else None) for place, one in enumerate(arguments)
    ]
    if operator is RNN_BACKWARD:
        given = _run_forward(given)
    counter = TensorCounter()
    counter.reset()
    try:
        result = operator(*given, **named)
    finally:
        reading = counter.read()
    sizes = tuple(one.untyped_storage().nbytes() for one in list_tensors(result))
    freed = 0 if reading is None else (reading.peak_bytes or 0) - reading.level_bytes
    return Scratch(freed, sizes)


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


def _make_zeros(value: Any, batch: int | None = None) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_make_zeros(one) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    shape = list(value.shape)
    if batch is not None:
        shape[0] = batch
    made = torch.empty_strided(shape, value.stride(), dtype=value.dtype)
    return made.zero_()
