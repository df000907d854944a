"""Between which numbers a value is that nobody knows: what a draw, a count or a place can be.

A step that takes a window at a drawn place, or divides the count of right answers by another,
uses whole numbers. Their lowest and their highest are known without any value.
"""

from __future__ import annotations

import math
import operator as operators
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from labkit.memory.estimate.strides import find_name

ALMOST_ONE = 1 - 2**-53


class Limits(NamedTuple):
    """The lowest and the highest number; ``drawn`` where torch's generators decide.

    ``distinct`` where no two elements are the same, as in an order.
    """

    low: float
    high: float
    drawn: bool = False
    distinct: bool = False

    def choose(self, assumptions: Any) -> float:
        """The number that the assumptions take: of draws the lowest first, of counts the highest.

        What is selected is everything first, so its count is the highest.
        """
        answer = assumptions.decide(drawn=self.drawn, counts=not self.drawn)
        return self.low if answer == self.drawn else self.high


Find = Callable[[Any], "Limits | None"]
# Whose results have no other numbers than the first argument.
SUBSETS = frozenset((
    "alias", "amax", "amin", "clone", "contiguous", "detach", "expand", "flatten", "flip", "gather",
    "index", "index_select", "lift_fresh", "max", "mean", "min", "permute", "reshape", "select",
    "slice", "squeeze", "t", "transpose", "unbind", "unsqueeze", "_to_copy", "_unsafe_view", "view",
))  # fmt: skip
# Whose second result are places along a dimension, and where that is named.
PLACES = {"topk": 2, "sort": 1, "max": 1, "min": 1, "kthvalue": 2, "median": 1, "cummax": 1}
# Whose first result has no other numbers than the first argument.
DISTINCT = frozenset(("_unique2", "unique_consecutive", "unique_dim"))
MONOTONE: dict[str, Callable[[Any, Any], Any]] = {
    "add": operators.add, "sub": operators.sub, "mul": operators.mul, "div": operators.truediv,
    "floor_divide": operators.floordiv, "rsub": lambda one, other: other - one,
}  # fmt: skip
ROUNDING: dict[str, Callable[[Any], Any]] = {"floor": math.floor, "ceil": math.ceil, "round": round}


def find_limits(  # noqa: PLR0917
    operator: Any, arguments: Any, named: Any, result: Any, find: Find, find_ends: Find
) -> list[tuple[Any, Limits]]:
    """Of which results of the operator the limits are known; ``find`` returns an argument's.

    ``find_ends`` returns those of an argument that may have known values, too.
    """
    name = find_name(operator)
    if name in PLACES and isinstance(result, list | tuple):
        place = PLACES[name]
        dim = arguments[place] if len(arguments) > place else named.get("dim", -1)
        distinct = name in {"sort", "topk"}
        return [(result[1], Limits(0, _count(arguments[0], dim) - 1, distinct=distinct))]
    if name in DISTINCT and isinstance(result, list | tuple):
        known = find(arguments[0])
        return [] if known is None else [(result[0], known._replace(distinct=name == "_unique2"))]
    make = MAKERS.get(name)
    limits = None if make is None else make(arguments, named, result)
    if limits is None and arguments and isinstance(arguments[0], torch.Tensor):
        one, other = find(arguments[0]), arguments[1] if len(arguments) > 1 else None
        if isinstance(other, torch.Tensor):
            found = find(other)
            if name in MONOTONE and (one is None) is not (found is None):
                one, found = one or find_ends(arguments[0]), found or find_ends(other)
            other = found
        limits = _convert(name, one, arguments[0], other, named, result)
    made = result if isinstance(result, list | tuple) else [result]
    return [(one, limits) for one in made] if limits is not None else []


def _convert(  # noqa: PLR0917
    name: str, limits: Limits | None, tensor: Any, other: Any, named: Any, result: Any
) -> Limits | None:
    """The limits of what is computed from a tensor with limits, and from another or a number."""
    if limits is None or name in SUBSETS:
        return limits
    found = None
    if name == "sum":
        found = combine(operators.mul, limits, _share(tensor, result))
    elif name in ROUNDING:
        found = Limits(ROUNDING[name](limits.low), ROUNDING[name](limits.high), limits.drawn)
    elif name == "remainder" and isinstance(other, int) and other > 0:
        found = Limits(0, other - 1, limits.drawn)
    elif name in MONOTONE and isinstance(other, int | float | Limits) and not named:
        found = combine(MONOTONE[name], limits, other)
    return found


def join_limits(limits: Iterable[Limits | None]) -> Limits | None:
    """The limits of tensors that are put together; None if those of one are unknown."""
    known = list(limits)
    found = [one for one in known if one is not None]
    if not found or len(found) < len(known):
        return None
    drawn = any(one.drawn for one in found)
    return Limits(min(one.low for one in found), max(one.high for one in found), drawn)


def combine(operate: Callable[[Any, Any], Any], one: Any, other: Any) -> Limits | None:
    """The limits of an operation that grows or falls with each of its two numbers."""
    pair = [each if isinstance(each, Limits) else Limits(each, each) for each in (one, other)]
    try:
        ends = [operate(first, second) for first in pair[0][:2] for second in pair[1][:2]]
    except (ArithmeticError, ValueError):
        return None
    if any(isinstance(end, complex) for end in ends):
        return None
    return Limits(min(ends), max(ends), pair[0].drawn or pair[1].drawn)


def _count(tensor: Any, dim: Any) -> int:
    """The size of a dimension, at least 1; of the whole tensor where it is None."""
    whole = dim is None or not tensor.dim()
    return max(1, int(tensor.numel() if whole else tensor.size(dim)))


def _share(tensor: Any, result: Any) -> int:
    """How many elements of a tensor each element of a sum has."""
    return int(tensor.numel()) // max(1, int(result.numel()))


def _limit_integers(arguments: Any, named: Any, result: Any) -> Limits:
    first, second = arguments[0], arguments[1]
    low, high = (first, second) if isinstance(second, int) else (0, first)
    return Limits(low, high - 1, drawn=True)


def _limit_uniform(arguments: Any, named: Any, result: Any) -> Limits:
    low = arguments[1] if len(arguments) > 1 else named.get("from", 0.0)
    high = arguments[2] if len(arguments) > 2 else named.get("to", 1.0)
    return Limits(low, high, drawn=True)


def _limit_place(arguments: Any, named: Any, result: Any) -> Limits:
    dim = arguments[1] if len(arguments) > 1 else named.get("dim")
    return Limits(0, _count(arguments[0], dim) - 1)


def _limit_count(arguments: Any, named: Any, result: Any) -> Limits | None:
    known = arguments[0].dtype is torch.bool
    return Limits(0, _share(arguments[0], result)) if known else None


# The limits of what these operators make, by their arguments.
MAKERS: dict[str, Callable[[Any, Any, Any], Limits | None]] = {
    "randint": _limit_integers,
    "rand": lambda *_: Limits(0.0, ALMOST_ONE, drawn=True),
    "rand_like": lambda *_: Limits(0.0, ALMOST_ONE, drawn=True),
    "uniform_": _limit_uniform,
    "multinomial": lambda arguments, *_: Limits(0, arguments[0].size(-1) - 1, drawn=True),
    "argmax": _limit_place,
    "argmin": _limit_place,
    "sum": _limit_count,
    "count_nonzero": lambda arguments, _, result: Limits(0, _share(arguments[0], result)),
    "searchsorted": lambda arguments, *_: Limits(0, arguments[0].size(-1)),
    "bucketize": lambda arguments, *_: Limits(0, arguments[1].numel()),
}
_NAMES = {*MAKERS, *PLACES}
# The operators whose results have limits without any of their arguments having them.
LIMITED = frozenset(
    getattr(packet, overload)
    for packet in (getattr(torch.ops.aten, name) for name in _NAMES)
    for overload in packet.overloads()
)
# The operators whose results may have limits that follow from their arguments'.
CARRYING = frozenset({*_NAMES, *SUBSETS, *MONOTONE, *ROUNDING, "remainder", "sum", "cat", "stack"})
