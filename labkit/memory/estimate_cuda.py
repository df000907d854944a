"""How CUDA would run what fake tensors run on the CPU, where that changes the memory it takes.

There are no fake CUDA tensors in a torch that was built without CUDA, so a step is played on fake
CPU tensors. CUDA's own ways are followed by rule: ``"cuda"`` is taken for the CPU, dropout keeps a
mask of one byte an element, attention without a mask never keeps its weights, and torch's
optimizers work on all parameters at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from labkit.memory.balance import MIB

# What the context, the kernels and cuBLAS's and cuDNN's libraries and workspaces take beside
# tensors. It differs by card, driver and library; on most it is between these two.
CONTEXT_BYTES = (300 * MIB, 800 * MIB)


class CudaWays(TorchFunctionMode):  # type: ignore[misc]
    """Takes ``"cuda"`` for the CPU; ``follow`` runs what CUDA does differently in its way."""

    def __init__(self, *, follow: bool) -> None:
        super().__init__()
        self._follow = follow

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        """The function's result, on the CPU whatever device was named."""
        arguments = tuple(_take_cpu(one) for one in arguments)
        named = {name: _take_cpu(one) for name, one in (named or {}).items()}
        if function is torch.Tensor.cuda:
            return arguments[0]
        if self._follow and function is functional.dropout:
            return _drop_out(*arguments, **named)
        if self._follow and function is functional.scaled_dot_product_attention:
            return _attend(*arguments, **named)
        return function(*arguments, **named)


def choose_foreach(optimizer: Any, arguments: Any, named: Any) -> None:
    """Lets an optimizer that has the choice work on all parameters at once: CUDA's default."""
    for group in optimizer.param_groups:
        undecided = "foreach" in group and group["foreach"] is None
        if undecided and not group.get("fused") and not group.get("differentiable"):
            group["foreach"] = True


def _take_cpu(value: Any) -> Any:
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


def _drop_out(values: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if inplace or not training or not 0 < p < 1:
        return functional.dropout(values, p, training, inplace)
    return torch.native_dropout(values, p, training)[0]


def _attend(  # noqa: PLR0917
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **named: Any,
) -> Any:
    if attn_mask is not None or named.get("enable_gqa") or query.dim() != 4:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, **named
        )
    keeps = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, None, keeps, dropout_p, is_causal, scale=named.get("scale"))[0]
