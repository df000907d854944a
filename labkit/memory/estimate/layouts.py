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

from labkit.memory.estimate.strides import find_name

Strides = tuple[int, ...]
# Batch norm on the CPU: its result is contiguous, or channels last.
NORMS = frozenset(
    """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    _batch_norm_with_update _batch_norm_no_update""".split()  # noqa: SIM905
)
# Operators of single elements without torch's tag for them, and others that go the same way.
UNTAGGED = frozenset(
    """elu_backward hardswish hardswish_backward leaky_relu_backward mish_backward
    _log_softmax_backward_data""".split()  # noqa: SIM905
)
# Operators whose result is channels last where their input counts as that, else contiguous; and
# backward passes, whose input is the second argument.
FORMED = frozenset(
    """native_group_norm reflection_pad2d reflection_pad3d replication_pad2d replication_pad3d
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d _upsample_nearest_exact2d
    """.split()  # noqa: SIM905
)
FORMED_BACKWARD = frozenset(
    """native_group_norm_backward reflection_pad2d_backward replication_pad2d_backward
    """.split()  # noqa: SIM905
)
# Operators whose result is contiguous.
CONTIGUOUS = frozenset({"native_layer_norm", "_log_softmax", "masked_fill"})
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
    """clone conj_physical deg2rad hardtanh nan_to_num positive rad2deg
    relu6""".split()  # noqa: SIM905
)
TAKING = frozenset({"lerp", "pow"})


@functools.cache
def lay_out(operator: Any) -> Callable[..., Any]:
    """The operator, if need be with a result that is laid out as the kernel does it."""
    find = _choose(operator)
    if find is None:
        return operator  # type: ignore[no-any-return]

    @functools.wraps(operator)
    def compute(*arguments: Any, **named: Any) -> Any:
        result = operator(*arguments, **named)
        first = result if isinstance(result, torch.Tensor) else result[0]
        form = named.get("memory_format", torch.preserve_format)
        if first.layout is not torch.strided or form not in {None, torch.preserve_format}:
            return result
        strides = find(arguments, first)
        if strides is None or strides == first.stride():
            return result
        if find is _find_view:
            return result.as_strided(result.shape, strides, result.storage_offset())
        laid = first.new_empty_strided(first.shape, strides)
        return laid if first is result else (laid, *result[1:])

    return compute


def _choose(operator: Any) -> Callable[[Any, Any], Strides | None] | None:
    """What finds the strides of the operator's first result."""
    if operator.namespace != "aten" or operator._schema.is_mutable:
        return None
    name = find_name(operator)
    makes_tensor = "scalar" in operator._overloadname.lower() and name not in TAKING
    is_pointwise = torch.Tag.pointwise in operator.tags or name in UNTAGGED
    if name in FINDERS or not is_pointwise or makes_tensor or name in OTHERWISE:
        return FINDERS.get(name)
    places = [
        place
        for place, one in enumerate(operator._schema.arguments)
        if str(one.type) in {"Tensor", "Optional[Tensor]"}
    ]
    return functools.partial(_find_elements, places)


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
    forms = {4: torch.channels_last, 5: torch.channels_last_3d}
    form = forms.get(values.dim(), torch.contiguous_format)
    if values.is_contiguous():
        return _lay(result)
    if values.is_contiguous(memory_format=form):
        return _lay(result, form)
    return _find_form(0, arguments, result)


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


def _find_kept(arguments: Any, result: Any) -> Strides | None:
    given = arguments[0]
    kept = given.shape == result.shape and _is_dense(given)
    return given.stride() if kept else None


def _find_rolled(arguments: Any, result: Any) -> Strides | None:
    return (_find_contiguous if arguments[0].is_contiguous() else _find_kept)(arguments, result)


def _find_elements(places: list[int], arguments: Any, result: Any) -> Strides | None:
    """The strides of all arguments, where they are laid out alike and none is repeated."""
    given = [arguments[one] for one in places if one < len(arguments)]
    given = [one for one in given if one is not None]
    if not given or any(
        not isinstance(one, torch.Tensor) or one.shape != result.shape for one in given
    ):
        return None
    if all(one.is_contiguous() for one in given):
        return _find_contiguous(arguments, result)
    first = given[0]
    if len({one.stride() for one in given}) > 1 or not _is_dense(first):
        return None
    last = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last)
    return _lay(result, torch.channels_last) if last else tuple(first.stride())


FINDERS: dict[str, Callable[[Any, Any], Strides | None]] = {
    **dict.fromkeys(VIEWS, _find_view),
    **dict.fromkeys(NORMS, _find_norm),
    **dict.fromkeys(KEPT, _find_kept),
    **dict.fromkeys(CONTIGUOUS, _find_contiguous),
    **dict.fromkeys(FORMED, functools.partial(_find_form, 0)),
    **dict.fromkeys(FORMED_BACKWARD, functools.partial(_find_form, 1)),
    "roll": _find_rolled,
}
