"""Values of any kind, compared and put into words; torch is looked at only where it is loaded."""

from __future__ import annotations

import functools
import math
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

# What stands for the value it gives; a class, a dtype or a module is a value itself.
PLAIN_FUNCTIONS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
)
LONGEST_TEXT = 160
LONGEST_BLOCK = 600
MOST_SHOWN_VALUES = 24


def loaded_torch() -> types.ModuleType | None:
    """The torch module where this process has imported it; None where no value can be a tensor."""
    return sys.modules.get("torch")


def is_tensor(value: object) -> bool:
    """True for a torch tensor, without importing torch to find out."""
    torch = loaded_torch()
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: object) -> bool:
    """True for a NumPy array, without importing NumPy to find out."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def same_value(seen: object, expected: object, within: float | None = None) -> bool:
    """True where ``seen`` is ``expected``: tensors and arrays by shape and values, the rest by ==.

    Dtype, device and layout of memory do not count; nan equals nan. ``within`` is an absolute
    tolerance.
    """
    if is_tensor(seen) or is_tensor(expected):
        return _same_tensor(seen, expected, within)
    if is_array(seen) or is_array(expected):
        return _same_array(seen, expected, within)
    if isinstance(expected, Mapping):
        return isinstance(seen, Mapping) and _same_mapping(seen, expected, within)
    if _is_list(seen) and _is_list(expected):
        return _same_list(seen, expected, within)  # type: ignore[arg-type]
    return _same_scalar(seen, expected, within)


def format_value(value: object) -> str:
    """The value in at most two hundred characters or so; large tensors by shape and dtype.

    >>> format_value((3, 4)), format_value("text")
    ('(3, 4)', "'text'")
    """
    if is_tensor(value):
        return _format_tensor(value)
    if is_array(value):
        return _format_array(value)
    if isinstance(value, tuple | list) and any(is_tensor(item) for item in value):
        inner = ", ".join(format_value(item) for item in value)
        return shorten(f"({inner})" if isinstance(value, tuple) else f"[{inner}]")
    if isinstance(value, type):
        return value.__name__
    return shorten(repr(value))


def format_block(value: object) -> str:
    """The value as ``format_value`` has it, but a tensor's rows under each other, as torch prints.

    For where there is room for several lines.
    """
    if is_tensor(value) and value.numel() <= MOST_SHOWN_VALUES and not value.is_sparse:  # type: ignore[attr-defined]
        return shorten(repr(value.detach()), LONGEST_BLOCK)  # type: ignore[attr-defined]
    return format_value(value)


def shorten(text: str, limit: int = LONGEST_TEXT) -> str:
    """The text, cut at ``limit`` characters with a mark that shows the cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _same_tensor(seen: Any, expected: Any, within: float | None) -> bool:
    torch: Any = loaded_torch()
    try:
        left, right = (torch.as_tensor(value).detach() for value in (seen, expected))
    except (TypeError, ValueError, RuntimeError):
        return False
    if left.shape != right.shape:
        return False
    if left.is_meta or right.is_meta:  # shapes are all that is kept there
        return bool(left.is_meta and right.is_meta)
    right = right.to(left.device)
    both_nan = left.isnan() & right.isnan()
    if within is None:
        near = left == right
    else:
        wide = torch.complex128 if left.is_complex() or right.is_complex() else torch.float64
        if left.device.type == "mps":
            left, right = left.cpu(), right.cpu()
            both_nan = both_nan.cpu()
        left, right = left.to(wide), right.to(wide)
        near = ((left - right).abs() <= within) | (left == right)
    return bool((near | both_nan).all())


def _same_array(seen: Any, expected: Any, within: float | None) -> bool:
    numpy: Any = sys.modules["numpy"]
    left, right = numpy.asarray(seen), numpy.asarray(expected)
    if left.shape != right.shape:
        return False
    if within is not None:
        return bool(numpy.allclose(left, right, rtol=0, atol=within, equal_nan=True))
    numeric = all(side.dtype.kind in "fc" for side in (left, right))
    return bool(numpy.array_equal(left, right, equal_nan=numeric))


def _same_mapping(
    seen: Mapping[Any, object], expected: Mapping[Any, object], within: float | None
) -> bool:
    return seen.keys() == expected.keys() and all(
        same_value(seen[key], expected[key], within) for key in expected
    )


def _same_list(seen: Sequence[object], expected: Sequence[object], within: float | None) -> bool:
    return len(seen) == len(expected) and all(
        same_value(one, other, within) for one, other in zip(seen, expected, strict=True)
    )


def _same_scalar(seen: Any, expected: Any, within: float | None) -> bool:
    if isinstance(seen, float) and isinstance(expected, float) and math.isnan(seen):
        return math.isnan(expected)
    if within is not None and seen != expected:
        try:
            return bool(abs(seen - expected) <= within)
        except TypeError:
            return False
    return bool(seen == expected)


def _format_tensor(value: Any) -> str:
    if value.numel() <= MOST_SHOWN_VALUES and not value.is_sparse:
        return shorten(" ".join(repr(value.detach()).split()))
    dtype = str(value.dtype).removeprefix("torch.")
    return f"tensor of shape {tuple(value.shape)}, {dtype}"


def _format_array(value: Any) -> str:
    if value.size <= MOST_SHOWN_VALUES:
        return shorten(" ".join(repr(value).split()))
    return f"array of shape {value.shape}, {value.dtype}"
