"""Simulates on the CPU how the memory of a step differs on CUDA.

A torch build without CUDA has no fake CUDA tensors, so a step runs on fake CPU tensors.
``CudaBehavior`` imitates CUDA with rules: ``"cuda"`` means the CPU, dropout keeps a mask of one
byte per element, attention without a mask never keeps its weights, torch's optimizers update all
parameters at once, and ``torch.autocast("cuda")`` gives the same dtypes as on CUDA.

``CachingAllocator`` computes the bytes that torch's allocator would take from the driver. It
follows the native allocator with default settings, on one stream. Small requests are cut from
segments of 2 MiB, medium ones from 20 MiB, and large ones get their own segment. The smallest
free block that is large enough is used, its rest is split off if it is large enough, and adjacent
free blocks are joined. Nothing is returned to the driver. A real allocator does that before it
fails, so a smaller capacity may still be enough.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from labkit.memory.balance.model import MIB
from labkit.memory.track.model import Storage

# CUDA's memory besides tensors: context, kernels, libraries and workspaces of cuBLAS and cuDNN.
# It depends on GPU, driver and library, and is mostly between these two.
CONTEXT_BYTES = (300 * MIB, 800 * MIB)

AUTOCAST = (
    "torch.autocast('cuda') is simulated on the CPU, by torch's list of types: close, not exact"
)
# Functions that autocast runs in float32 on CUDA, but in the given dtype on the CPU (torch's list).
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


class CudaBehavior(TorchFunctionMode):  # type: ignore[misc]
    """Treats ``"cuda"`` as the CPU; with ``follow``, functions keep the same memory as on CUDA."""

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
        """The function's result, on the CPU for any named device."""
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
def replace_attribute(owner: Any, name: str, value: object) -> Iterator[None]:
    """Replaces an attribute of torch until exit; then an inherited one is inherited again."""
    own, original = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def simulate_autocast(note: Callable[[], object]) -> contextlib.AbstractContextManager[None]:
    """Runs ``torch.autocast("cuda")`` as the CPU's, with CUDA's dtype; calls ``note`` each time."""
    autocast = torch.amp.autocast_mode.autocast
    original = autocast.__init__

    def begin(self: Any, device_type: str, dtype: Any = None, *others: Any, **named: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.get_autocast_dtype("cuda")
            note()
        original(self, device_type, dtype, *others, **named)

    return replace_attribute(autocast, "__init__", begin)


def choose_foreach(optimizer: Any, arguments: Any, named: Any) -> None:
    """Sets ``foreach`` if it is unset: an update of all parameters at once, CUDA's default."""
    for group in optimizer.param_groups:
        undecided = "foreach" in group and group["foreach"] is None
        if undecided and not group.get("fused") and not group.get("differentiable"):
            group["foreach"] = True


def _cast_arguments(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments in the dtype in which CUDA's autocast computes the function."""
    if function is functional.scaled_dot_product_attention:
        wanted = torch.get_autocast_dtype("cpu")
    elif getattr(function, "__name__", "") in FLOAT32:
        wanted = torch.float32
    else:
        return arguments, named

    def cast(value: Any) -> Any:
        castable = isinstance(value, torch.Tensor) and value.dtype in CASTABLE
        return value.to(wanted) if castable else value

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


SMALLEST_BLOCK, SMALL_REQUEST = 512, MIB
SMALL_SEGMENT, MIDDLE_SEGMENT, SEGMENT_STEP = 2 * MIB, 20 * MIB, 2 * MIB
LARGE_REQUEST = 10 * MIB


def round_request(count: int) -> int:
    """Bytes of the block for a request: the next multiple of 512; 0 for 0.

    >>> round_request(0), round_request(1), round_request(512), round_request(513)
    (0, 512, 512, 1024)
    """
    return -(-count // SMALLEST_BLOCK) * SMALLEST_BLOCK


class CachedBlock:
    """A block of a segment, and its neighbors in it."""

    __slots__ = ("bytes", "following", "free", "number", "previous", "small")

    def __init__(self, number: int, count: int, *, small: bool) -> None:
        self.number, self.bytes, self.small = number, count, small
        self.free = True
        self.previous: CachedBlock | None = None
        self.following: CachedBlock | None = None


class CachingAllocator:
    """Simulates the allocator for the storages of one device; an observer of StorageTracer."""

    def __init__(self, device: str = "cpu") -> None:
        self.reserved_bytes = self.allocated_bytes = self.peak_allocated_bytes = 0
        self._device = device
        self._numbers = 0
        self._used: dict[int, CachedBlock] = {}
        # Free blocks of the small pool (True) and the large one, by size and then by age.
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._by_number: dict[int, CachedBlock] = {}

    def allocate(self, storage: Storage) -> None:
        """Gives the storage a block, from a new segment if no free block is large enough."""
        size = round_request(storage.bytes)
        if storage.device != self._device or not size:
            return
        block = self._take_free(size) or self._add_segment(size)
        self._split(block, size)
        block.free = False
        self._used[storage.serial] = block
        self.allocated_bytes += block.bytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)

    def free(self, storage: Storage) -> None:
        """Frees the storage's block and joins it with its free neighbors."""
        block = self._used.pop(storage.serial, None)
        if block is None:
            return
        self.allocated_bytes -= block.bytes
        for neighbour in (block.previous, block.following):
            if neighbour is not None and neighbour.free:
                self._withdraw(neighbour)
                self._join(block, neighbour)
        self._offer(block)

    def _take_free(self, size: int) -> CachedBlock | None:
        pool = self._free[size <= SMALL_REQUEST]
        place = bisect_left(pool, (size, 0))
        return self._by_number[pool.pop(place)[1]] if place < len(pool) else None

    def _add_segment(self, size: int) -> CachedBlock:
        small = size <= SMALL_REQUEST
        if small:
            count = SMALL_SEGMENT
        elif size < LARGE_REQUEST:
            count = MIDDLE_SEGMENT
        else:
            count = -(-size // SEGMENT_STEP) * SEGMENT_STEP
        self.reserved_bytes += count
        return self._make_block(count, small=small)

    def _make_block(self, count: int, *, small: bool) -> CachedBlock:
        self._numbers += 1
        block = CachedBlock(self._numbers, count, small=small)
        self._by_number[block.number] = block
        return block

    def _split(self, block: CachedBlock, size: int) -> None:
        left = block.bytes - size
        if left < SMALLEST_BLOCK if block.small else left <= SMALL_REQUEST:
            return
        rest = self._make_block(left, small=block.small)
        rest.previous, rest.following = block, block.following
        if rest.following is not None:
            rest.following.previous = rest
        block.bytes, block.following = size, rest
        self._offer(rest)

    def _join(self, kept: CachedBlock, gone: CachedBlock) -> None:
        kept.bytes += gone.bytes
        if gone is kept.previous:
            kept.previous = gone.previous
            if kept.previous is not None:
                kept.previous.following = kept
        else:
            kept.following = gone.following
            if kept.following is not None:
                kept.following.previous = kept
        del self._by_number[gone.number]

    def _offer(self, block: CachedBlock) -> None:
        block.free = True
        insort(self._free[block.small], (block.bytes, block.number))

    def _withdraw(self, block: CachedBlock) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.bytes, block.number))]
