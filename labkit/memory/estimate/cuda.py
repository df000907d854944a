"""Simulates a GPU for fake tensors: where tensors are, and what CUDA's operators keep.

A torch build without CUDA cannot compute with fake CUDA tensors, because its C++ code asks for a
CUDA device. ``FakeMode`` hides the device from C++, so the same step runs on any build, without a
GPU and without starting CUDA, and Python sees ``cuda``. Torch then chooses CUDA's code itself:
autocast's list of types, updates of all parameters at once, errors for mixed devices. Attention
and dropout ask C++ for the device; ``CudaOperators`` replaces them.

``CachingAllocator`` computes the bytes that torch's allocator would take from the driver. It
follows the native allocator with default settings, on one stream. Small requests are cut from
segments of 2 MiB, medium ones from 20 MiB, and large ones get their own segment. The smallest
free block that is large enough is used, its rest is split off if it is large enough, and adjacent
free blocks are joined. Nothing is returned to the driver. A real allocator does that before it
fails, so a smaller capacity may still be enough.
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_left, insort
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses import fake_tensor

from labkit.memory.balance.model import MIB
from labkit.memory.estimate.model import Target
from labkit.memory.track.model import Storage
from labkit.memory.track.storages import list_tensors

# CUDA's memory besides torch's allocator: context, kernels and libraries. It depends on GPU,
# driver and library, and is mostly between these two.
CONTEXT_BYTES = (300 * MIB, 800 * MIB)
# cuBLAS's workspace, for each thread that multiplies matrices: torch's default, and on Hopper.
WORKSPACE_BYTES = {False: 8_519_680, True: 32 * MIB}

CPU, NAMED = torch.device("cpu"), torch.device("cuda:0")
# The GPU of code that names no device; another index shows when the code does name one.
UNNAMED = torch.device("cuda:63")
# What C++ code is answered for a tensor of a GPU. Torch's code names the CPU without an index, so
# this one in a call means "the device of that tensor".
HIDDEN = torch.device("cpu:0")
HALF = (torch.float16, torch.bfloat16)


class NamesCudaError(BaseException):
    """The code names a CUDA device: what it puts nowhere stays on the host."""


def replace_attributes(owner: Any, **values: object) -> contextlib.ExitStack:
    """Replaces attributes of torch until exit; then an inherited one is inherited again."""
    stack = contextlib.ExitStack()
    for name, value in values.items():
        if name in vars(owner):
            stack.callback(setattr, owner, name, vars(owner)[name])
        else:
            stack.callback(delattr, owner, name)
        setattr(owner, name, value)
    return stack


class FakeMode(fake_tensor.FakeTensorMode):  # type: ignore[misc]
    """Torch's fake mode with a simulated GPU that C++ does not see.

    ``placement`` is "cpu": everything is on the CPU, a named GPU too; "gpu": everything is on the
    GPU, and naming one raises NamesCudaError; "named": as the code names it.
    """

    def __init__(self, placement: str) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.placement = placement
        self.gpu = UNNAMED if placement == "gpu" else NAMED

    def __deepcopy__(self, memo: Any) -> FakeMode:
        return self

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator, on the device that the placement gives it."""
        if func is torch.ops.prim.device.default:
            return hide_device(args[0])
        device = kwargs.get("device") if kwargs else None
        if device is not None:
            kwargs = {**kwargs, "device": self.place(device)}
        return super().dispatch(func, types, args, kwargs)

    def place(self, device: Any) -> torch.device:
        """The simulated device for a named one; raises NamesCudaError."""
        device = torch.device("cuda", device) if type(device) is int else torch.device(device)
        if device == HIDDEN:
            return self.gpu
        if device.type == "cpu" and self.placement == "gpu" and not _is_optimizing():
            return self.gpu
        if device.type != "cuda":
            return device
        if self.placement == "cpu":
            return CPU
        if self.placement == "gpu" and device != UNNAMED:
            raise NamesCudaError
        return NAMED if device.index is None else device

    def own_tensors(self) -> contextlib.ExitStack:
        """Puts each new fake tensor on the GPU, if everything is to be there."""
        if self.placement != "gpu":
            return contextlib.ExitStack()
        original = fake_tensor.FakeTensor.__new__

        def make(cls: Any, mode: Any, elem: Any, device: Any, *others: Any, **named: Any) -> Any:
            if mode is self:
                device = self.place(device)
            return original(cls, mode, elem, device, *others, **named)

        return replace_attributes(fake_tensor.FakeTensor, __new__=staticmethod(make))


def hide_device(tensor: Any) -> torch.device:
    """The device of a fake tensor as C++ code is to see it."""
    if tensor.fake_mode.in_kernel_invocation:
        return torch.device("meta")
    return HIDDEN if tensor.fake_device.type == "cuda" else tensor.fake_device


def _is_optimizing() -> bool:
    """True in torch's optimizers, which keep their counts of steps on the CPU."""
    import sys

    running: Any = sys._getframe(2)
    for _ in range(12):
        if running is None:
            return False
        if "/torch/optim/" in running.f_code.co_filename:
            return True
        running = running.f_back
    return False


def move_tensors(mode: FakeMode) -> contextlib.ExitStack:
    """Makes the methods of tensors that move them or name their device follow the placement."""
    to, cpu, new_tensor = torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.new_tensor

    def move(tensor: Any, *arguments: Any, **named: Any) -> Any:
        device, dtype = named.pop("device", None), named.pop("dtype", None)
        for one in arguments:
            if isinstance(one, torch.Tensor):
                device, dtype = one.device, one.dtype
            elif isinstance(one, str | torch.device) or type(one) is int:
                device = one
            elif isinstance(one, torch.dtype):
                dtype = one
        dtype = tensor.dtype if dtype is None else dtype
        named.pop("non_blocking", None)
        device = tensor.device if device is None else mode.place(device)
        if device == tensor.device or {device.type, tensor.device.type} == {"cpu"}:
            return to(tensor, dtype, **named)
        named.pop("copy", None)
        return torch.ops.aten._to_copy(tensor, dtype=dtype, device=device, **named)

    return replace_attributes(
        torch.Tensor,
        to=move,
        cuda=lambda tensor, device=None, *_, **__: move(
            tensor, "cuda" if device is None else device
        ),
        cpu=lambda tensor, *arguments, **named: (
            move(tensor, CPU) if tensor.device.type == "cuda" else cpu(tensor, *arguments, **named)
        ),
        pin_memory=lambda tensor, *_: tensor.clone(),
        is_pinned=lambda tensor, *_: False,
        new_tensor=lambda tensor, *one, **named: move(
            new_tensor(tensor, *one, **named), tensor.device
        ),
        is_cuda=property(lambda tensor: tensor.device.type == "cuda"),
        get_device=lambda tensor: -1 if tensor.device.index is None else tensor.device.index,
    )  # fmt: skip


class _Idle:
    """A CUDA event or stream: it waits for nothing and takes no time."""

    cuda_stream, device = 0, NAMED

    def __init__(self, *others: Any, **named: Any) -> None: ...

    def __enter__(self) -> _Idle:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 1.0

    def _pass(self, *others: Any, **named: Any) -> _Idle:
        return self

    record = record_event = wait = wait_event = wait_stream = synchronize = _pass


# Functions of torch.cuda that return nothing and change no tensor.
CALLS = """synchronize empty_cache set_device ipc_collect init _lazy_init manual_seed
    manual_seed_all seed reset_peak_memory_stats reset_max_memory_allocated set_stream
    set_per_process_memory_fraction"""


def simulate_calls(target: Target, levels: Callable[[], Any]) -> contextlib.ExitStack:
    """Makes ``torch.cuda`` answer as on the target; ``levels()`` is the GPU's Level."""
    capacity = target.capacity_bytes or 80 * 1024 * MIB
    major, minor = (9, 0) if target.is_hopper else (8, 0)
    facts = SimpleNamespace(
        name=target.name, total_memory=capacity, major=major, minor=minor,
        multi_processor_count=132, is_integrated=False, warp_size=32,
    )  # fmt: skip

    def do_nothing(*arguments: Any, **named: Any) -> None: ...

    def answer(value: Any) -> Callable[..., Any]:
        return lambda *arguments, **named: value

    def tell_free(*device: Any) -> tuple[int, int]:
        return capacity - levels().now_bytes, capacity

    generator = torch.Generator
    stack = contextlib.ExitStack()
    stack.enter_context(
        replace_attributes(
            torch.cuda,
            **dict.fromkeys(
                CALLS.split(),
                do_nothing,
            ),
            **dict.fromkeys(("Event", "Stream", "device", "device_of", "stream"), _Idle),
            _initialized=False,
            is_available=answer(True),
            is_initialized=answer(True),
            is_bf16_supported=answer(True),
            is_current_stream_capturing=answer(False),
            device_count=answer(1),
            current_device=answer(0),
            current_stream=_Idle,
            default_stream=_Idle,
            get_device_name=answer(target.name),
            get_device_capability=answer((major, minor)),
            get_device_properties=answer(facts),
            cudart=lambda: SimpleNamespace(cudaMemGetInfo=tell_free),
            mem_get_info=tell_free,
            memory_allocated=lambda *_: levels().now_bytes,
            memory_reserved=lambda *_: levels().now_bytes,
            max_memory_allocated=lambda *_: levels().peak_bytes,
            max_memory_reserved=lambda *_: levels().peak_bytes,
        )
    )
    stack.enter_context(replace_attributes(torch, Generator=lambda *_, **__: generator()))
    # A script may have imported the functions that call these.
    inner = ("_cuda_synchronize", "_cuda_setDevice", "_cuda_emptyCache")
    stack.enter_context(replace_attributes(torch._C, **dict.fromkeys(inner, do_nothing)))
    return stack


def choose_foreach(optimizer: Any, arguments: Any, named: Any) -> None:
    """Sets ``foreach`` if it is unset: an update of all parameters at once, CUDA's default.

    Torch decides by the type of the parameters, and fake ones have another.
    """
    for group in optimizer.param_groups:
        undecided = "foreach" in group and group["foreach"] is None
        on_cuda = all(one.device.type == "cuda" for one in group["params"])
        if undecided and on_cuda and not group.get("fused") and not group.get("differentiable"):
            group["foreach"] = True


# What autocast on CUDA computes in its own dtype, in float32, with a result in float32, and in the
# widest dtype of the arguments (torch's lists, aten/src/ATen/autocast_mode.h).
AUTOCAST_LOWER = """_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d
    conv_transpose3d convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear
    addbmm baddbmm bmm chain_matmul linalg_multi_dot lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    scaled_dot_product_attention"""
AUTOCAST_FLOAT32 = """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan
    pow softplus layer_norm native_layer_norm group_norm frobenius_norm nuclear_norm norm
    cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d
    hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
    multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
    binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp"""
AUTOCAST_RESULT = """prod softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm
    sum"""
AUTOCAST_WIDEST = """addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot
    scatter_add cat stack"""
AUTOCAST_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


class Autocast:
    """Autocast on CUDA for fake tensors, which torch's own does not take for tensors of a GPU.

    A parameter that was cast stays until the outermost autocast ends, as in torch.
    """

    def __init__(self) -> None:
        self._cast: dict[int, tuple[Any, Any]] = {}

    def register(self, library: Any) -> None:
        """Registers the operators of torch's lists."""
        ways = (
            (AUTOCAST_LOWER, lambda tensors: torch.get_autocast_dtype("cuda")),
            (AUTOCAST_FLOAT32, lambda tensors: torch.float32),
            (AUTOCAST_RESULT, None),
            (AUTOCAST_WIDEST, _find_widest),
        )
        for names, choose in ways:
            for name in names.split():
                packet = getattr(torch.ops.aten, name, None)
                for form in packet.overloads() if packet else ():
                    operator = getattr(packet, form)
                    if (
                        "out" in form
                        or operator._schema.is_mutable
                        or "Dimname" in str(operator._schema)
                    ):
                        continue
                    full = name if form == "default" else f"{name}.{form}"
                    library.impl(full, self._wrap(operator, choose), "AutocastCUDA")

    def clear(self) -> None:
        """Forgets the parameters that were cast."""
        self._cast.clear()

    def _wrap(self, operator: Any, choose: Any) -> Callable[..., Any]:
        takes_dtype = any(one.name == "dtype" for one in operator._schema.arguments)

        def run(*arguments: Any, **named: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(AUTOCAST_KEY):
                if choose is not None:
                    dtype = choose((arguments, named))
                    arguments = self._convert(arguments, dtype)
                    return operator(*arguments, **self._convert(named, dtype))
                if takes_dtype and named.get("dtype") is None and _is_castable(arguments[0]):
                    places = [one.name for one in operator._schema.arguments]
                    arguments = arguments[: places.index("dtype")]
                    named["dtype"] = torch.float32
                return operator(*arguments, **named)

        return run

    def _convert(self, value: Any, dtype: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._convert(one, dtype) for one in value)
        if isinstance(value, dict):
            return {name: self._convert(one, dtype) for name, one in value.items()}
        if not _is_castable(value) or value.dtype is dtype:
            return value
        kept = value.is_leaf and value.requires_grad and dtype in HALF
        if not kept or not torch.is_autocast_cache_enabled():
            return value.to(dtype)
        if id(value) not in self._cast:
            self._cast[id(value)] = (value, value.to(dtype))
        return self._cast[id(value)][1]


def _is_castable(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.device.type == "cuda"
        and value.is_floating_point()
        and value.dtype is not torch.float64
    )


def _find_widest(values: Any) -> Any:
    dtypes = {one.dtype for one in list_tensors(values) if _is_castable(one)}
    return torch.float32 if torch.float32 in dtypes else next(iter(dtypes), torch.float32)


class CudaOperators:
    """Replaces torch's operators that choose other code for CUDA, in a ``with`` block.

    They are registered for autograd and autocast on CUDA only, so tensors of the CPU are not
    affected.
    """

    def __init__(self, note_rnn: Callable[[], object]) -> None:
        self._note_rnn = note_rnn
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> None:
        library = torch.library.Library("aten", "IMPL")
        self._exits.callback(library._destroy)
        library.impl("dropout", drop_out, "AutogradCUDA")
        library.impl("scaled_dot_product_attention", attend, "AutogradCUDA")
        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            for form in ("input", "data"):
                library.impl(f"{name}.{form}", self._make_rnn(name, form), "AutogradCUDA")
        autocast, clear = Autocast(), torch.clear_autocast_cache
        autocast.register(library)

        def clear_both() -> None:
            clear()
            autocast.clear()

        self._exits.enter_context(replace_attributes(torch, clear_autocast_cache=clear_both))

    def __exit__(self, *error: Any) -> None:
        self._exits.close()

    def _make_rnn(self, name: str, form: str) -> Callable[..., Any]:
        operator = getattr(getattr(torch.ops.aten, name), form)

        def run(*arguments: Any, **named: Any) -> Any:
            self._note_rnn()
            return operator.decompose(*arguments, **named)

        return run


def drop_out(values: Any, p: float, train: bool) -> Any:
    """Dropout as on CUDA, which keeps a mask of one byte per element."""
    if not train or p in {0, 1} or not values.numel():
        return torch.ops.aten.dropout.default.decompose(values, p, train)
    return torch.native_dropout(values, p, train)[0]


def attend(  # noqa: PLR0917
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention by the kernel that torch chooses on Ampere and later GPUs."""
    tensors = (query, key, value)
    keeps = torch.is_grad_enabled() and any(one.requires_grad for one in tensors)
    plain = all(one.dim() == 4 for one in tensors) and query.numel() and key.numel()
    grouped = enable_gqa and query.size(1) != key.size(1)
    masked = attn_mask is not None
    cuda, size = torch.backends.cuda, query.size(-1)
    scale = scale or 1 / math.sqrt(size)
    if (
        cuda.flash_sdp_enabled() and plain and not masked and query.dtype in HALF and size <= 256
        and value.size(-1) == size
    ):  # fmt: skip
        padded = [
            torch.nn.functional.pad(one, (0, -size % 8)) if size % 8 else one for one in tensors
        ]
        attended = torch.ops.aten._scaled_dot_product_flash_attention(
            *padded, dropout_p, is_causal, scale=scale
        )[0]
        return attended[..., :size] if size % 8 else attended
    aligned = size % (8 if query.dtype in HALF else 4) == 0
    if (
        cuda.mem_efficient_sdp_enabled() and plain and aligned and not grouped
        and query.dtype in (*HALF, torch.float32) and not (masked and attn_mask.requires_grad)
    ):  # fmt: skip
        bias = _make_bias(attn_mask, query, key) if masked else None
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, keeps, dropout_p, is_causal, scale=scale
        )[0]
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _make_bias(mask: Any, query: Any, key: Any) -> Any:
    """The mask as the memory-efficient kernel takes it: numbers, padded to 16 bytes a row."""
    if mask.dtype is torch.bool:
        mask = torch.where(mask.logical_not(), -math.inf, torch.zeros_like(mask, dtype=query.dtype))
    length = key.size(-2)
    if mask.size(-1) == length and length % 16:
        mask = torch.nn.functional.pad(mask, (0, -length % 16))[..., :length]
    return mask.expand(query.size(0), query.size(1), query.size(2), length)


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


# Bytes that CUDA's operators allocate beside their results and free before they return, from the
# operator's arguments. Measured with torch 2.11 (H100) and 2.14; the kernels' sources explain them.


def _count_copy(gradient: Any) -> int:
    """The attended values' gradient, (batch, heads, length, size), as the kernels want it."""
    if gradient.transpose(1, 2).is_contiguous():
        return 0
    return int(gradient.numel() * gradient.element_size())


def _count_efficient(arguments: Any) -> int:
    """Backward of memory-efficient attention: gradients that several blocks add up, in float32."""
    query, key, out, sums = arguments[1], arguments[2], arguments[5], arguments[6]
    batch, heads, length, size = query.shape
    delta = 4 * batch * heads * length + _count_copy(arguments[0])
    workspace = 4 * batch * heads * _round_up(length, 64) * _round_up(size, 64)
    if out.dtype is torch.float32:
        return max(delta + workspace, 4 * out.numel() + 4 * sums.numel() + delta)
    if size > 128:  # the output does not fit into registers
        keys = _round_up(key.size(2), 128) * _round_up(size, 128)
        workspace += 2 * 4 * batch * heads * keys
    return delta + workspace


def _count_efficient_forward(arguments: Any) -> int:
    query = arguments[0]
    return 4 * query.numel() if query.dtype in HALF and query.size(-1) > 128 else 0


def _count_flash(arguments: Any) -> int:
    """Backward of flash attention: the query's gradient in float32, and the softmax's sums."""
    batch, heads, length, size = arguments[1].shape
    return 4 * batch * heads * _round_up(length, 128) * (_round_up(size, 32) + 1)


def _count_encoder(arguments: Any) -> int:
    """The fast path of nn.TransformerEncoderLayer: its hidden layer, or query, key and value."""
    source, width, hidden = arguments[0], arguments[1], arguments[14].size(0)
    return source.numel() // width * source.element_size() * max(hidden + width, 4 * width)


def _count_softmax(arguments: Any) -> int:
    """Backward of softmax: the product of the output and its gradient."""
    return arguments[1].numel() * arguments[1].element_size()


def _count_sum(arguments: Any) -> int:
    """A sum over all but the last dimensions, as of a bias's gradient, adds up in many blocks."""
    tensor, dims = arguments[0], arguments[1] if len(arguments) > 1 else None
    kept = tensor.dim() - len(dims or ())
    if not dims or not kept or sorted(one % tensor.dim() for one in dims) != list(range(len(dims))):
        return 0
    columns = math.prod(tensor.shape[-kept:])
    rows = tensor.numel() // max(1, columns)
    wide = next(count for count in (4, 2, 1) if columns % count == 0)
    threads, across = 512 // wide, max(1, columns // wide)
    width = min(1 << (across.bit_length() - 1), 32)
    height = min(1 << (max(1, rows).bit_length() - 1), threads // width)
    width = min(1 << (across.bit_length() - 1), threads // height)
    each = -(-rows // height)  # the values of a thread
    grid = -(-across // width)
    target = 132 * (2048 // (width * height))  # the blocks that run at once on an H100
    if rows < min(height * 16, 256) or each < 256 or grid > target:
        return 0
    blocks = max(min(-(-target // grid), -(-each // 16)), -(-each // 256))
    return 4 * columns * blocks * width * wide if blocks > 1 else 0


def _split_attention(query: Any, key: Any) -> tuple[int, int]:
    """The rows of query and key that a thread of the CPU's flash attention works on."""
    length = query.size(2)
    rows = 256 if length >= 768 else 64 if length >= 192 else 32
    return min(rows, length), min(512, key.size(2))


def _count_cpu_flash(arguments: Any) -> int:
    """Flash attention on the CPU: each thread's part of the weights and of the output."""
    query = arguments[0]
    rows, columns = _split_attention(query, arguments[1])
    each = 4 * rows * (columns + 2 + query.size(3))
    return torch.get_num_threads() * (each + 2 * rows * columns * (query.dtype in HALF))


def _count_cpu_flash_backward(arguments: Any) -> int:
    """Its backward: each thread's part of the weights and of their gradient."""
    query = arguments[1]
    rows, columns = _split_attention(query, arguments[2])
    each = 4 * 2 * rows * columns + 2 * 2 * rows * columns * (query.dtype in HALF)
    return torch.get_num_threads() * each + 4 * rows + _count_copy(arguments[0])


def _count_cpu_encoder(arguments: Any) -> int:
    """nn.TransformerEncoderLayer's fast path: all weights of attention, query, key and value."""
    source, width, heads, hidden = *arguments[:3], arguments[14].size(0)
    rows, size = source.numel() // width, source.element_size()
    weights = rows * heads * source.size(1)
    # The three parts with the weights, before there is a result; or the hidden layer, beside it.
    return size * max(2 * rows * width + weights, rows * (hidden + width))


def _count_cpu_heads(arguments: Any) -> int:
    """nn.MultiheadAttention's fast path."""
    source, width, heads = arguments[0], arguments[3], arguments[4]
    rows = source.numel() // width
    return source.element_size() * rows * (2 * width + heads * source.size(1))


CPU_SCRATCH: dict[str, Callable[[Any], int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _count_cpu_flash,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _count_cpu_flash_backward,
    "_transformer_encoder_layer_fwd": _count_cpu_encoder,
    "_native_multi_head_attention": _count_cpu_heads,
}
SCRATCH: dict[str, Callable[[Any], int]] = {
    "_scaled_dot_product_efficient_attention": _count_efficient_forward,
    "_scaled_dot_product_efficient_attention_backward": _count_efficient,
    "_scaled_dot_product_flash_attention_backward": _count_flash,
    "_softmax_backward_data": _count_softmax,
    "_transformer_encoder_layer_fwd": _count_encoder,
    "sum": _count_sum,
    "mean": _count_sum,
}


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

    def __init__(self) -> None:
        self.reserved_bytes = self.allocated_bytes = self.peak_allocated_bytes = 0
        self._numbers = 0
        self._used: dict[int, CachedBlock] = {}
        # Free blocks of the small pool (True) and the large one, by size and then by age.
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._by_number: dict[int, CachedBlock] = {}

    def allocate(self, storage: Storage) -> None:
        """Gives the storage a block, from a new segment if no free block is large enough."""
        size = round_request(storage.bytes)
        if not size:
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
