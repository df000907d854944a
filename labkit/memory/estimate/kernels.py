"""Whether the CPU's kernel of an operator takes tensors of a dtype: the fake one takes any.

The real operator is asked once, with small tensors of the same dtypes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_unflatten

# Dtypes that many kernels do not take.
RARE = frozenset(
    getattr(torch, name)
    for name in (
        "uint16", "uint32", "uint64", "complex32", "complex64", "complex128", "float8_e4m3fn",
        "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    )
    if hasattr(torch, name)
)  # fmt: skip
SAID = ("not implemented for", "does not support complex")
# Operators that have another kernel for large tensors.
BY_SIZE = frozenset((torch.ops.aten.isin.Tensor_Tensor,))
# A tensor's size in each dimension, and the largest number that is no size of a large result.
SIZE, LARGEST = 4, 64
# By operator, dtypes and dimensions: what it raises, or None.
_asked: dict[Any, Exception | None] = {}


def refuse_dtype(operator: Any, arguments: Any, named: Any, tensors: list[Any]) -> None:
    """Raises what the real operator raises for a dtype that its kernel of the CPU does not take."""
    is_rare = not RARE.isdisjoint([one.dtype for one in tensors])
    if not is_rare or operator.namespace != "aten" or operator.is_view or operator in BY_SIZE:
        return
    key = operator, *((one.dtype, one.dim()) for one in tensors)
    if key not in _asked:
        _asked[key] = _ask(operator, arguments, named)
    error = _asked[key]
    if error is not None:
        raise type(error)(*error.args)


def _ask(operator: Any, arguments: Any, named: Any) -> Exception | None:
    values, shape = tree_flatten((arguments, named))
    if any(type(one) is int and abs(one) > LARGEST for one in values):
        return None
    if any(isinstance(one, torch.Tensor) and one.layout is not torch.strided for one in values):
        return None
    try:
        with _disable_current_modes(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            made = [_make_small(one) if isinstance(one, torch.Tensor) else one for one in values]
            given, options = tree_unflatten(made, shape)
            operator(*given, **options)
    except (RuntimeError, NotImplementedError) as error:
        if any(words in str(error) for words in SAID):
            return error.with_traceback(None)
    except Exception:  # of small tensors alone, such as an index
        return None
    return None


def _make_small(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ones([SIZE] * tensor.dim(), dtype=tensor.dtype)
