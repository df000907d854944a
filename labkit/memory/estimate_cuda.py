"""How CUDA would run what fake tensors run on the CPU, where that changes the memory it takes.

There are no fake CUDA tensors in a torch that was built without CUDA, so a step is played on fake
CPU tensors. CUDA's own ways are followed by rule: ``"cuda"`` is taken for the CPU, dropout keeps a
mask of one byte an element, attention without a mask never keeps its weights, torch's optimizers
work on all parameters at once, and ``torch.autocast("cuda")`` gives the types that it would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from labkit.memory.balance import MIB

# What the context, the kernels and cuBLAS's and cuDNN's libraries and workspaces take beside
# tensors. It differs by card, driver and library; on most it is between these two.
CONTEXT_BYTES = (300 * MIB, 800 * MIB)

AUTOCAST = "torch.autocast('cuda') is played on the CPU, by its lists of types: close, not exact"
# What autocast computes in float32 on CUDA and in the given type on the CPU, by torch's own list.
FLOAT32 = frozenset(
    """
    acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss cosine_similarity
    cross_entropy cumprod cumsum dist erfinv exp expm1 group_norm hinge_embedding_loss kl_div
    l1_loss layer_norm log log10 log1p log2 log_softmax margin_ranking_loss mse_loss
    multi_margin_loss multilabel_margin_loss nll_loss norm normalize pdist poisson_nll_loss pow
    prod reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softmax softmin softplus
    sum tan triplet_margin_loss __pow__ __rpow__
    """.split()  # noqa: SIM905
)
CASTABLE = (torch.float16, torch.bfloat16, torch.float32)


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
        if self._follow and torch.is_autocast_enabled("cpu"):
            arguments, named = _cast_arguments(function, arguments, named)
        if self._follow and function is functional.dropout:
            return _drop_out(*arguments, **named)
        if self._follow and function is functional.scaled_dot_product_attention:
            return _attend(*arguments, **named)
        return function(*arguments, **named)


@contextlib.contextmanager
def play_autocast(tell: Callable[[], object]) -> Iterator[None]:
    """Makes ``torch.autocast("cuda")`` the CPU's, with CUDA's type; ``tell`` is called for each."""
    kind = torch.amp.autocast_mode.autocast
    original = kind.__init__

    def begin(self: Any, device_type: str, dtype: Any = None, *others: Any, **named: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.get_autocast_dtype("cuda")
            tell()
        original(self, device_type, dtype, *others, **named)

    kind.__init__ = begin
    try:
        yield
    finally:
        kind.__init__ = original


def choose_foreach(optimizer: Any, arguments: Any, named: Any) -> None:
    """Lets an optimizer that has the choice work on all parameters at once: CUDA's default."""
    for group in optimizer.param_groups:
        undecided = "foreach" in group and group["foreach"] is None
        if undecided and not group.get("fused") and not group.get("differentiable"):
            group["foreach"] = True


def _cast_arguments(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in the type in which CUDA's autocast computes the function."""
    if function is functional.scaled_dot_product_attention:
        wanted = torch.get_autocast_dtype("cpu")
    elif getattr(function, "__name__", "") in FLOAT32:
        wanted = torch.float32
    else:
        return arguments, named

    def cast(value: Any) -> Any:
        small = (torch.float16, torch.bfloat16, torch.float32)
        return (
            value.to(wanted) if isinstance(value, torch.Tensor) and value.dtype in small else value
        )

    return tuple(map(cast, arguments)), {name: cast(one) for name, one in named.items()}


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
