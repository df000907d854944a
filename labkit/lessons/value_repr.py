"""Compares values of any type, and describes them and their differences in text.

``find_difference`` says how an answer differs from the expected value: in type, shape, dtype or
values.
"""

from __future__ import annotations

import cmath
import functools
import math
import re
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from labkit.lessons.exercises import WRONG_DTYPE, WRONG_SHAPE, WRONG_TYPE, WRONG_VALUES
from labkit.text import shorten

if TYPE_CHECKING:
    import torch

# Callables that are called for their value; a class, a dtype or a module is a value itself.
PLAIN_FUNCTIONS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")
LONGEST_TEXT = 160
FORGOTTEN = "does every path of the function end in `return`?"
MOST_SHOWN_VALUES = 24
# The most values of a tensor that a difference shows.
EXCERPT = 6


def loaded_torch() -> types.ModuleType | None:
    """The torch module if this process has imported it, else None: no value can be a tensor."""
    return sys.modules.get("torch")


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """True for a torch tensor; does not import torch."""
    torch = loaded_torch()
    return torch is not None and isinstance(value, torch.Tensor)


def is_array(value: object) -> bool:
    """True for a NumPy array; does not import NumPy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def same_value(seen: object, expected: object, within: float | None = None) -> bool:
    """True if ``seen`` equals ``expected``: tensors and arrays by shape and values, others by ==.

    Dtype, device and memory layout are not compared; nan equals nan. ``within`` is an absolute
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
    """The value in about two hundred characters at most; large tensors by shape and dtype.

    >>> format_value((3, 4)), format_value("text")
    ('(3, 4)', "'text'")
    """
    if is_tensor(value):
        return _format_tensor(value)
    if is_array(value):
        return _format_array(value)
    if isinstance(value, tuple | list) and any(is_tensor(item) for item in value):
        inner = ", ".join(format_value(item) for item in value)
        return shorten(f"({inner})" if isinstance(value, tuple) else f"[{inner}]", LONGEST_TEXT)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key!r}: {format_value(item)}" for key, item in value.items())
        return shorten(f"{{{inner}}}", LONGEST_TEXT)
    if isinstance(value, type):
        return value.__name__
    return shorten(_ADDRESS.sub("", repr(value)), LONGEST_TEXT)


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
    if left.is_meta or right.is_meta:  # a meta tensor has a shape and no values
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
        return shorten(" ".join(repr(value.detach()).split()), LONGEST_TEXT)
    dtype = str(value.dtype).removeprefix("torch.")
    return f"tensor of shape {tuple(value.shape)}, {dtype}"


def _format_array(value: Any) -> str:
    if value.size <= MOST_SHOWN_VALUES:
        return shorten(" ".join(repr(value).split()), LONGEST_TEXT)
    return f"array of shape {value.shape}, {value.dtype}"


@dataclass(frozen=True)
class Tolerance:
    """How far values may differ; None means torch.testing's tolerance for the dtype."""

    rtol: float | None = None
    atol: float | None = None


@dataclass(frozen=True)
class Difference:
    """A verdict's status and the sentence that says what differs.

    ``expected`` and ``got`` are excerpts of the two values: the place where they differ.
    """

    status: str
    message: str
    expected: str | None = None
    got: str | None = None


def find_difference(
    got: Any, expected: Any, tolerance: Tolerance = Tolerance(), place: str = "the answer"
) -> Difference | None:
    """The first difference between ``got`` and ``expected``, or None if they agree.

    Devices are not compared: the expected tensor is moved to the answer's device.
    """
    if is_tensor(expected):
        return _compare_tensors(got, expected, tolerance, place)
    if isinstance(expected, Mapping):
        return _compare_mappings(got, expected, tolerance, place)
    if isinstance(expected, tuple | list):
        return _compare_lists(got, expected, tolerance, place)
    if isinstance(expected, float | complex | int) and not isinstance(expected, bool):
        return _compare_numbers(got, expected, tolerance, place)
    return _compare_plain(got, expected, place)


def describe_type(value: object) -> str:
    """The type of a value, in words for a learner.

    >>> import torch
    >>> describe_type(None), describe_type(2.0), describe_type(torch.zeros(2, 3))
    ('None', 'a float', 'a tensor of shape (2, 3)')
    """
    if value is None:
        return "None"
    if isinstance(value, PLAIN_FUNCTIONS):
        return "a function"
    if is_tensor(value):
        return f"a tensor of shape {tuple(value.shape)}"
    if is_array(value):
        return "a NumPy array"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _compare_plain(got: object, expected: object, place: str) -> Difference | None:
    if type(got) is not type(expected):
        return _wrong_type(got, expected, place)
    if got != expected:
        return _differ(WRONG_VALUES, f"{place} is not the expected value", got, expected)
    return None


def _differ(status: str, text: str, got: object, expected: object) -> Difference:
    return Difference(status, text, format_value(expected), format_value(got))


def _wrong_type(got: object, expected: object, place: str) -> Difference:
    if got is None:
        text = f"{place} is None: {FORGOTTEN}"
    elif got is ...:
        text = f"{place} is `...`: the function still returns the placeholder"
    else:
        text = f"{place} must be {describe_type(expected)}, but is {describe_type(got)}"
        text += ": is a call missing, as in `f(x)`?" if isinstance(got, PLAIN_FUNCTIONS) else ""
    return _differ(WRONG_TYPE, text, got, expected)


def _compare_tensors(
    got: Any, expected: torch.Tensor, tolerance: Tolerance, place: str
) -> Difference | None:
    if not is_tensor(got):
        return _wrong_type(got, expected, place)
    if got.shape != expected.shape:
        shapes = f"{tuple(expected.shape)}, but has {tuple(got.shape)}"
        return _differ(WRONG_SHAPE, f"{place} must have the shape {shapes}", got, expected)
    if got.dtype != expected.dtype:
        dtypes = f"{expected.dtype}, but has {got.dtype}"
        text = f"{place} must have the dtype {dtypes}"
        # Not the values: two dtypes mostly look the same.
        return Difference(WRONG_DTYPE, text, str(expected.dtype), str(got.dtype))
    return _compare_values(got.detach(), expected.detach(), tolerance, place)


def _compare_values(
    got: torch.Tensor, expected: torch.Tensor, tolerance: Tolerance, place: str
) -> Difference | None:
    import torch

    expected = expected.to(got.device)
    rtol, atol = _tolerances(got.dtype, tolerance)
    near = torch.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    if bool(near.all()):
        return None
    off = (~near).nonzero()
    apart = _distance(got, expected)
    # nan counts as the largest distance, so that a finite one does not hide it.
    ranked = torch.where(near, -1.0, apart.nan_to_num(nan=float("inf")))
    worst = tuple(int(index) for index in torch.unravel_index(ranked.argmax(), ranked.shape))
    count = f"{len(off)} of {got.numel()} values differ" if got.numel() > 1 else "the value differs"
    at = f" at {list(worst)}" if worst else ""
    wanted, seen = _number(expected[worst]), _number(got[worst])
    excerpts = _excerpt(expected, worst), _excerpt(got, worst)
    if wanted == seen:  # they differ in later digits, which an excerpt does not show
        excerpts = wanted, seen = str(expected[worst].item()), str(got[worst].item())
    return Difference(
        WRONG_VALUES,
        f"{_of(place)}{count}; largest difference{at}: expected {wanted}, got {seen}, "
        f"off by {_number(apart[worst])}",
        *excerpts,
    )


def _excerpt(values: torch.Tensor, place: tuple[int, ...]) -> str:
    """A small tensor whole; of a larger one, the neighbors of a place along the last dimension."""
    if not values.dim():
        return _number(values)
    if values.numel() <= EXCERPT:
        return format_value(values)
    *row, at = place
    first = max(0, min(at - EXCERPT // 2, values.shape[-1] - EXCERPT))
    shown = values[tuple(row)][first : first + EXCERPT]
    index = ", ".join([*map(str, row), f"{first}:{first + len(shown)}"])
    return f"at [{index}]: {', '.join(map(_number, shown))}"


def _of(place: str) -> str:
    return "" if place == "the answer" else f"in {place}, "


def _tolerances(dtype: torch.dtype, tolerance: Tolerance) -> tuple[float, float]:
    import torch

    default = torch.testing._comparison.default_tolerances(dtype)
    rtol = default[0] if tolerance.rtol is None else tolerance.rtol
    atol = default[1] if tolerance.atol is None else tolerance.atol
    return rtol, atol


def _distance(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    if got.dtype.is_complex:
        return (got.cpu() - expected.cpu()).abs().double()
    return (got.cpu().double() - expected.cpu().double()).abs()


def _number(value: torch.Tensor) -> str:
    plain = value.item()
    return f"{plain:.6g}" if isinstance(plain, float) else str(plain)


def _short(number: object) -> str:
    return str(float(f"{number:.6g}") if isinstance(number, float) else number)


def _compare_mappings(
    got: Any, expected: Mapping[Any, Any], tolerance: Tolerance, place: str
) -> Difference | None:
    if not isinstance(got, Mapping):
        return _wrong_type(got, expected, place)
    if set(got) != set(expected):
        keys = f"{sorted(map(str, expected))}, but has {sorted(map(str, got))}"
        return _differ(WRONG_VALUES, f"{place} must have the keys {keys}", got, expected)
    return _first(
        find_difference(got[key], expected[key], tolerance, f"{place}[{key!r}]") for key in expected
    )


def _compare_lists(
    got: Any, expected: tuple[Any, ...] | list[Any], tolerance: Tolerance, place: str
) -> Difference | None:
    if not isinstance(got, tuple | list):
        return _wrong_type(got, expected, place)
    if len(got) != len(expected):
        lengths = f"{len(expected)} values, but has {len(got)}"
        return _differ(WRONG_SHAPE, f"{place} must have {lengths}", got, expected)
    return _first(
        find_difference(one, other, tolerance, f"{place}[{index}]")
        for index, (one, other) in enumerate(zip(got, expected, strict=True))
    )


def _first(differences: Any) -> Difference | None:
    return next((found for found in differences if found is not None), None)


def _compare_numbers(
    got: Any, expected: float | complex, tolerance: Tolerance, place: str
) -> Difference | None:
    allowed = (int,) if isinstance(expected, int) else (int, type(expected), float)
    if not isinstance(got, allowed) or isinstance(got, bool):
        return _wrong_type(got, expected, place)
    if got == expected or (cmath.isnan(got) and cmath.isnan(expected)):
        return None
    apart = abs(got - expected)
    if not isinstance(expected, int):
        rtol = 1e-6 if tolerance.rtol is None else tolerance.rtol
        atol = 1e-9 if tolerance.atol is None else tolerance.atol
        if apart <= atol + rtol * abs(expected):
            return None
    elif tolerance.atol is not None and apart <= tolerance.atol:
        return None
    text = f"expected {_short(expected)}, got {_short(got)}, off by {apart:.6g}"
    text = f"{_of(place)}the value differs: {text}"
    return Difference(WRONG_VALUES, text, _short(expected), _short(got))
