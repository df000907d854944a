"""How kernels lay out their results, where torch's fake tensors lay them out in another way.

The stride of a size of one reaches no element, but it decides whether a tensor counts as channels
last, and so what convolutions and concatenations further on copy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._prims_common import make_contiguous_strides_for, suggest_memory_format
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.estimate.strides import LAST, find_name, is_last

Strides = tuple[int, ...]
# Batch norm on the CPU: its result is contiguous, or channels last.
NORMS = frozenset(
    """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    _batch_norm_with_update _batch_norm_no_update""".split()  # noqa: SIM905
)
NORMS_BACKWARD = frozenset({"batch_norm_backward", "native_batch_norm_backward"})
# Operators of single elements without torch's tag for them, and others that go the same way.
UNTAGGED = frozenset(
    """complex elu_backward floor_divide hardsigmoid_backward hardswish hardswish_backward
    hardtanh_backward leaky_relu_backward mish_backward polar softplus_backward
    threshold_backward""".split()  # noqa: SIM905
)
# Operators whose result is channels last where their input counts as that, else contiguous; and
# backward passes, whose input is the second argument.
FORMED = frozenset(
    """channel_shuffle max_unpool2d native_group_norm reflection_pad2d reflection_pad3d
    replication_pad2d replication_pad3d
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d _upsample_nearest_exact2d
    """.split()  # noqa: SIM905
)
FORMED_BACKWARD = frozenset(
    """native_group_norm_backward reflection_pad2d_backward replication_pad2d_backward
    """.split()  # noqa: SIM905
)
# Operators whose results are contiguous: most are LEGACY_CONTIGUOUS_MEMORY_FORMAT in ATen.
CONTIGUOUS = frozenset(
    """_ctc_loss_backward huber_loss_backward isin log_sigmoid_forward _log_softmax
    _log_softmax_backward_data masked_fill mse_loss_backward mvlgamma native_layer_norm
    native_layer_norm_backward normal poisson rrelu_with_noise smooth_l1_loss_backward
    _standard_gamma""".split()  # noqa: SIM905
)
# Operators whose results are as `empty_like` makes them of the argument at this place.
LIKE = {
    "binary_cross_entropy_backward": 1,
    "log_sigmoid_backward": 0,
    "native_dropout": 0,
    "soft_margin_loss_backward": 2,  # it takes the negative of the targets
    "uniform": 0,
}
# Operators whose result has the strides of an input that leaves nothing out.
KEPT = frozenset(
    """empty_like flip full_like ones_like _prelu_kernel rand_like randn_like sort zeros_like
    """.split()  # noqa: SIM905
)
# Views whose fake version finds the strides in Python, in another way than C++.
VIEWS = frozenset({"view", "_unsafe_view"})
# Operators of single elements that make a tensor of a number, or another way out of the loop that
# makes contiguous results of contiguous tensors; and those that take a number into that loop.
OTHERWISE = frozenset(
    """clone conj_physical _conj_physical deg2rad hardtanh nan_to_num positive rad2deg
    relu6""".split()  # noqa: SIM905
)
TAKING = frozenset({"lerp", "pow"})
# Operators whose loop has the arguments in another order.
TURNED = {
    "leaky_relu_backward": [1, 0],
    "_prelu_kernel_backward": [1, 2, 0],
    "threshold_backward": [1, 0],
}
# Operators whose loop takes each argument in its own type.
UNCAST = frozenset({"complex", "polar", "where"})


@functools.cache
def lay_out(operator: Any, run: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The operator, if need be with a result that is laid out as the kernel does it.

    ``run`` is what computes the result in its place, if anything does.
    """
    simulate = run or operator
    find = _choose(operator)
    if find is None:
        return simulate  # type: ignore[no-any-return]

    @functools.wraps(operator)
    def compute(*arguments: Any, **named: Any) -> Any:
        result = simulate(*arguments, **named)
        form = named.get("memory_format", torch.preserve_format)
        if form not in {None, torch.preserve_format}:
            return result
        if isinstance(result, torch.Tensor):
            return _lay_one(find, arguments, result)
        if find is _find_first:
            return _lay_one(find, arguments, result[0]), *result[1:]
        return tuple([_lay_one(find, arguments, one) for one in result])

    return compute


def _lay_one(find: Callable[[Any, Any], Strides | None], arguments: Any, made: Any) -> Any:
    if not isinstance(made, torch.Tensor) or made.layout is not torch.strided:
        return made
    strides = find(arguments, made)
    if strides is None or strides == made.stride():
        return made
    if find is _find_view:
        return made.as_strided(made.shape, strides, made.storage_offset())
    return made.new_empty_strided(made.shape, strides)


def _choose(operator: Any) -> Callable[[Any, Any], Strides | None] | None:
    """What finds the strides of each of the operator's results."""
    if operator.namespace != "aten" or operator._schema.is_mutable:
        return None
    name = find_name(operator)
    is_pointwise = torch.Tag.pointwise in operator.tags or name in UNTAGGED
    if name in FINDERS or operator in ONLY or not is_pointwise or name in OTHERWISE:
        return ONLY.get(operator) or FINDERS.get(name)
    takes = {"Tensor", "Optional[Tensor]"}
    if "scalar" in operator._overloadname.lower() and name not in TAKING:
        takes.add("number")  # ATen makes a tensor of it
    schema = enumerate(operator._schema.arguments)
    places = [place for place, one in schema if str(one.type) in takes]
    return functools.partial(_find_elements, places, casts=name not in UNCAST)


def _find_view(arguments: Any, result: Any) -> Strides | None:
    source = arguments[0]
    with _disable_current_modes():
        bare = torch.empty_strided(source.shape, source.stride(), dtype=source.dtype, device="meta")
        found: Strides | None = bare.view(result.shape).stride() if bare.numel() else None
    return found


def _find_norm(arguments: Any, result: Any) -> Strides | None:
    values = arguments[0]
    if values.device.type != "cpu":
        return None
    if result.dim() != values.dim():
        return None
    if values.is_contiguous():
        return _lay(result)
    if is_last(values):
        return _lay(result, LAST[values.dim()])
    return _find_form(0, arguments, result)


def _find_norm_backward(arguments: Any, result: Any) -> Strides | None:
    """Contiguous for contiguous values, if the gradient is laid out as they are."""
    gradient, values = arguments[:2]
    if values.device.type == "cpu" and values.is_contiguous() and result.dim() == values.dim():
        packed = gradient.is_contiguous() or is_last(gradient)
        if packed and suggest_memory_format(gradient) is suggest_memory_format(values):
            return _lay(result)
    return _find_form(1, arguments, result)


def _lay(result: Any, form: torch.memory_format = torch.contiguous_format) -> Strides:
    return torch.empty_like(result, memory_format=form).stride()  # type: ignore[no-any-return]


def _find_form(place: int, arguments: Any, result: Any) -> Strides | None:
    given = arguments[place]
    return _lay(result, suggest_memory_format(given)) if result.dim() == given.dim() else None


def _find_contiguous(arguments: Any, result: Any) -> Strides:
    return make_contiguous_strides_for(result.shape)  # type: ignore[no-any-return]


def _is_dense(tensor: Any) -> bool:
    """Whether the elements lie in one piece, in any order, and none twice."""
    reached = 1
    sizes = [(step, size) for size, step in zip(tensor.shape, tensor.stride(), strict=True)]
    for step, size in sorted(one for one in sizes if one[1] != 1):
        if step != reached:
            return False
        reached *= size
    return True


def _find_like(place: int, arguments: Any, result: Any) -> Strides | None:
    given = arguments[place]
    if given.shape != result.shape:
        return None
    return iterate(result, [given])


def _find_first(arguments: Any, result: Any) -> Strides:
    """Those of the first result alone, which is contiguous."""
    return _find_contiguous(arguments, result)


def _find_rectified(arguments: Any, result: Any) -> Strides | None:
    """The product of noise and gradient; without training, what ``leaky_relu_backward`` makes."""
    lower, upper, trains = arguments[3:6]
    draws = trains and upper - lower > 1e-6
    return _find_elements([2, 0] if draws else [1, 0], arguments, result)


def _find_kept(arguments: Any, result: Any) -> Strides | None:
    given = arguments[0]
    kept = given.shape == result.shape and _is_dense(given)
    return given.stride() if kept else None


def _find_rolled(arguments: Any, result: Any) -> Strides | None:
    """The strides of a concatenation of slices, or of a sequence of all elements."""
    along = len(arguments) > 2 and arguments[2]
    return _find_form(0, arguments, result) if along else _find_contiguous(arguments, result)


def _find_elements(
    places: list[int], arguments: Any, result: Any, *, casts: bool = True
) -> Strides | None:
    """What the loop over single elements makes of the arguments at these places."""
    given = [arguments[one] for one in places if one < len(arguments)]
    given = [one for one in given if one is not None]
    tensors = [one for one in given if isinstance(one, torch.Tensor)]
    if not tensors or any(one.layout is not torch.strided for one in tensors):
        return None
    return iterate(result, tensors, alone=len(tensors) == len(given), casts=casts)


def iterate(result: Any, tensors: list[Any], *, alone: bool = True, casts: bool = True) -> Strides:
    """The strides that ATen's TensorIterator gives to a new result of these inputs.

    ``alone`` is False where a number is an input too, which counts as one without dimensions;
    ``casts`` is True where inputs of another type are converted first.
    """
    shape = result.shape
    if alone and all(one.shape == shape for one in tensors):
        # TensorIterator's fast_set_up, for inputs that are laid out alike.
        if all(one.is_contiguous() for one in tensors):
            return make_contiguous_strides_for(shape)  # type: ignore[no-any-return]
        if len(shape) == 4:
            last = torch.channels_last
            if all(one.is_contiguous(memory_format=last) for one in tensors):
                return _lay(result, last)
    steps = [_find_steps(one, result.dtype, casts=casts) for one in tensors]
    if alone and all(one.shape == shape and _is_dense(one) for one in tensors):
        first = steps[0]
        if all(one == first for one in steps):
            return first
    spread = [_spread(*one, shape) for one in zip(tensors, steps, strict=True)]
    return _pack(shape, spread)


def _pack(shape: torch.Size, inputs: list[Any]) -> Strides:
    """Strides without gaps, in the order of the inputs' dimensions."""
    strides, reached = [0] * len(shape), 1
    for dim in _sort_dimensions(shape, inputs):
        strides[dim] = reached
        reached *= shape[dim]
    return tuple(strides)


def _find_steps(tensor: Any, dtype: torch.dtype, *, casts: bool) -> Strides:
    """An input's strides; on the CPU, those of its copy of the type that all are computed in."""
    if (
        not casts
        or tensor.dtype is dtype
        or torch.promote_types(tensor.dtype, dtype) is not dtype
        or tensor.device.type != "cpu"
        or _is_dense(tensor)
    ):
        return tuple(tensor.stride())
    return _pack(tensor.shape, [tensor.stride()])


def _spread(tensor: Any, steps: Strides, shape: torch.Size) -> list[int]:
    """An input's strides in the dimensions of the result: 0 where it is repeated."""
    missing = len(shape) - tensor.dim()
    sizes = zip(tensor.shape, steps, shape[missing:], strict=True)
    return [0] * missing + [0 if size == 1 != whole else step for size, step, whole in sizes]


def _sort_dimensions(shape: torch.Size, inputs: list[Any]) -> list[int]:
    """The order of the dimensions in memory, the innermost first: reorder_dimensions()."""

    def compare(inner: int, outer: int) -> int:
        for steps in inputs:
            one, other = steps[inner], steps[outer]
            if not one or not other:
                continue
            if one != other:
                return -1 if one < other else 1
            if shape[inner] > shape[outer]:
                return 1
        return 0

    order = list(range(len(shape)))[::-1]
    for place in range(1, len(order)):
        moved = place
        for before in range(place - 1, -1, -1):
            found = compare(order[before], order[moved])
            if found > 0:
                order[before], order[moved] = order[moved], order[before]
                moved = before
            elif found < 0:
                break
    return order


FINDERS: dict[str, Callable[[Any, Any], Strides | None]] = {
    **dict.fromkeys(VIEWS, _find_view),
    **dict.fromkeys(NORMS, _find_norm),
    **dict.fromkeys(NORMS_BACKWARD, _find_norm_backward),
    **dict.fromkeys(KEPT, _find_kept),
    **dict.fromkeys(CONTIGUOUS, _find_contiguous),
    **dict.fromkeys(FORMED, functools.partial(_find_form, 0)),
    **dict.fromkeys(FORMED_BACKWARD, functools.partial(_find_form, 1)),
    **{name: functools.partial(_find_elements, places) for name, places in TURNED.items()},
    **{name: functools.partial(_find_like, place) for name, place in LIKE.items()},
    "roll": _find_rolled,
    "rrelu_with_noise_backward": _find_rectified,
    "_weight_norm_interface": _find_first,
}
# Single overloads that do it otherwise than the others of their name.
ONLY: dict[Any, Callable[[Any, Any], Strides | None]] = {
    torch.ops.aten.pow.Scalar: _find_contiguous,
}
