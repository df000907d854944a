"""CUDA's operators on fake tensors: what they choose, what they keep, and what they need meanwhile.

``CudaOperators`` replaces the operators that ask C++ for the device: dropout, attention, recurrent
networks, and what autocast casts. ``SCRATCH`` has the bytes that operators allocate beside their
results and free before they return, which fake tensors do not show.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer
from torch.utils import _foreach_utils

from labkit.memory.balance.read import is_leaf
from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.track.storages import NODE_NUMBER, list_tensors

HALF = (torch.float16, torch.bfloat16)
# at::internal::GRAIN_SIZE: from here on the CPU's operators share their work among threads.
PARALLEL_ELEMENTS = 32_768
# Memory-efficient attention takes fewer heads of keys than of queries.
GROUPS_HEADS = torch.__version__ >= (2, 14)
NO_ZERO = "assumes that cumprod meets no zero: its backward pass needs more then"
# What a sum of these adds up in, in bytes.
SUM_BYTES = {torch.float64: 8, torch.complex64: 8, torch.complex128: 16}


@contextlib.contextmanager
def allow_foreach() -> Iterator[None]:
    """Lets torch update all parameters at once, CUDA's default, for fake parameters too.

    Torch decides by the type of the tensors, here and in ``clip_grad_norm_``.
    """
    lists = optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types
    for one in lists:
        one.append(FakeTensor)
    try:
        yield
    finally:
        for one in lists:
            one.remove(FakeTensor)


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
        kept = is_leaf(value) and value.requires_grad and dtype in HALF
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
        library.impl("lstm_cell", step_lstm, "AutogradCUDA")
        library.impl("gru_cell", step_gru, "AutogradCUDA")
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


@contextlib.contextmanager
def reverse_products(note: Callable[[str], object]) -> Iterator[None]:
    """Makes cumprod's backward pass that of values without a zero, until exit.

    Torch's way for fake tensors needs more. ``note`` is called with what is assumed.
    """

    def reverse(gradient: Any, values: Any, dim: int, products: Any) -> Any:
        if values.numel() <= 1:
            return gradient
        note(NO_ZERO)
        weighted, zero = products.conj() * gradient, values == 0
        zero.any()
        turned = weighted.flip(dim)
        sums = turned.cumsum(dim)  # in C++ all three live until the last one is there
        made = sums.flip(dim)
        del turned, sums
        return made.div(values.conj())

    library = torch.library.Library("aten", "IMPL")
    try:
        for key in ("AutogradCPU", "AutogradCUDA"):
            library.impl("cumprod_backward", reverse, key)
        yield
    finally:
        library._destroy()


class BackwardOrder:
    """The order in which CUDA runs a backward pass of a backward pass, in a ``with`` block.

    torch runs a graph's newest node first, by numbers that each thread counts for itself. On CUDA
    backward has a thread of its own, so what ``create_graph=True`` makes there comes after the
    forward pass's nodes or among them: it depends on what the process has run before.
    ``forward_first`` puts it after all of them, as in a long training; else it comes first.
    """

    def __init__(self, note: Callable[[], object], *, forward_first: bool) -> None:
        self._note, self._forward_first = note, forward_first
        self._made: list[range] = []  # the numbers of nodes that a backward pass made
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> None:
        run, count = torch.autograd._engine_run_backward, torch._C._autograd._get_sequence_nr

        def run_in_order(*arguments: Any, **named: Any) -> Any:
            if self._made:
                self._note()
                if self._forward_first:
                    self._raise_forward(arguments[0])
            first, creates_graph = count(), arguments[3]
            try:
                return run(*arguments, **named)
            finally:
                if creates_graph:
                    self._made.append(range(first, count()))

        self._exits.enter_context(
            replace_attributes(torch.autograd, _engine_run_backward=run_in_order)
        )

    def __exit__(self, *error: Any) -> None:
        self._exits.close()

    def _raise_forward(self, outputs: Any) -> None:
        """Gives the forward pass's nodes higher numbers than all others."""
        left = [one.node if hasattr(one, "node") else one.grad_fn for one in outputs]
        seen = set()
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            number = node._sequence_nr()
            if number <= NODE_NUMBER and not any(number in made for made in self._made):
                node._set_sequence_nr(number + NODE_NUMBER + 1)
            left.extend(following for following, _ in node.next_functions)


def step_lstm(  # noqa: PLR0917
    values: Any, state: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Any:
    """One step of an LSTM, by the kernel that CUDA has for all that follows the products."""
    hidden, cell = state
    products = torch.matmul(values, w_ih.t()), torch.matmul(hidden, w_hh.t())
    return torch.ops.aten._thnn_fused_lstm_cell(*products, cell, b_ih, b_hh)[:2]


def step_gru(  # noqa: PLR0917
    values: Any, hidden: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None
) -> Any:
    """One step of a GRU, by the kernel that CUDA has for all that follows the products."""
    products = torch.matmul(values, w_ih.t()), torch.matmul(hidden, w_hh.t())
    return torch.ops.aten._thnn_fused_gru_cell(*products, hidden, b_ih, b_hh)[0]


def compute_gru(gates: Any, other_gates: Any, hidden: Any, *biases: Any) -> tuple[Any, Any]:
    """``_thnn_fused_gru_cell``, which torch cannot fake: the hidden state, and what it keeps."""
    return torch.empty_like(hidden), hidden.new_empty(hidden.size(0), 5 * hidden.size(1))


def reverse_gru(gradient: Any, kept: Any, has_bias: bool) -> tuple[Any, ...]:
    """``_thnn_fused_gru_cell_backward``: the gradients of the products, the state, the biases."""
    gates, other_gates = (gradient.new_empty(gradient.size(0), 3 * gradient.size(1)) for _ in "ih")
    biases = (gates.new_empty(gates.size(1)) for _ in "ih") if has_bias else (None, None)
    return gates, other_gates, torch.empty_like(gradient), *biases


def reverse_ctc(gradient: Any, scores: Any, *others: Any) -> Any:
    """``_ctc_loss_backward``, which torch cannot fake: the gradient of the scores."""
    return torch.empty_like(scores)


def drop_out(values: Any, p: float, train: bool) -> Any:
    """Dropout as on CUDA, which keeps a mask of one byte per element."""
    # Not by torch's decomposition, which up to 2.13 copies what it does not drop.
    if not train or p == 0 or not values.numel():
        return values
    if p == 1:
        return values * values.new_zeros(())
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
        cuda.mem_efficient_sdp_enabled() and plain and aligned
        and (GROUPS_HEADS or not grouped)
        and query.dtype in (*HALF, torch.float32)
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
        return int(max(delta + workspace, 4 * out.numel() + 4 * sums.numel() + delta))
    if size > 128:  # the output does not fit into registers
        keys = _round_up(key.size(2), 128) * _round_up(size, 128)
        workspace += 2 * 4 * batch * heads * keys
    return int(delta + workspace)


def _count_efficient_forward(arguments: Any) -> int:
    query = arguments[0]
    return 4 * int(query.numel()) if query.dtype in HALF and query.size(-1) > 128 else 0


def _count_flash(arguments: Any) -> int:
    """Backward of flash attention: the query's gradient in float32, and the softmax's sums."""
    batch, heads, length, size = arguments[1].shape
    return int(4 * batch * heads * _round_up(length, 128) * (_round_up(size, 32) + 1))


def _count_encoder(arguments: Any) -> int:
    """The fast path of nn.TransformerEncoderLayer: its hidden layer, or query, key and value.

    With a mask it has all weights of attention, as the CPU always does.
    """
    source, width, hidden = arguments[0], arguments[1], arguments[14].size(0)
    plain = source.numel() // width * source.element_size() * max(hidden + width, 4 * width)
    masked = len(arguments) > 18 and arguments[18] is not None
    return max(int(plain), _count_cpu_encoder(arguments) if masked else 0)


def _count_softmax(arguments: Any) -> int:
    """Backward of softmax: the product of the output and its gradient."""
    return int(arguments[1].numel() * arguments[1].element_size())


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
    each = SUM_BYTES.get(tensor.dtype, 4 if tensor.is_floating_point() else 8)
    return each * columns * blocks * width * wide if blocks > 1 else 0


def _count_distance(arguments: Any) -> int:
    """Euclidean distances by a product: both matrices, with two columns more."""
    rows = sum(one.numel() // one.size(-1) for one in arguments[:2] if one.numel())
    return int(rows * (arguments[0].size(-1) + 2) * arguments[0].element_size())


def _count_distance_backward(arguments: Any) -> int:
    """Other distances' gradient: each pair's part of it, before they are added up."""
    first, second, p = arguments[1:4]
    return int(first.numel() * second.size(-2) * first.element_size()) if p else 0


def _count_convolution(arguments: Any) -> int:
    """Copies of what has no layout that the library takes: a convolution's own backward pass."""
    tensors = [one for one in arguments[:3] if isinstance(one, torch.Tensor) and one.dim() > 2]
    formats: dict[int, list[Any]] = {3: [], 4: [torch.channels_last], 5: [torch.channels_last_3d]}
    return sum(
        int(one.numel() * one.element_size())
        for one in tensors
        if not any(
            one.is_contiguous(memory_format=form)
            for form in (torch.contiguous_format, *formats.get(one.dim(), []))
        )
    )


def _count_ctc(arguments: Any) -> int:
    """Backward of CTC's loss: a second table as large as the one of forward."""
    return int(arguments[6].numel() * arguments[6].element_size())


def _count_cuda_ctc(arguments: Any) -> int:
    """On CUDA a large loss adds up the blanks' part, which is every other column, beforehand.

    "Large" is as torch decides it, in aten/src/ATen/native/cuda/LossCTC.cu.
    """
    scores, table = arguments[1], arguments[6]
    frames, batch, labels = scores.shape
    counted = 0
    if 2 * frames + 24 * batch // 10 + 2 * labels // 10 > 450:
        blanks = (table.size(-1) + 1) // 2
        # Two tables of the blanks (their sum, and its exponential), and two of their maxima.
        counted = 2 * batch * frames * (blanks + 1)
    return _count_ctc(arguments) + int(counted * table.element_size())


def _count_logits(arguments: Any) -> int:
    """Binary cross entropy of logits: two tensors, one of which is the result without reduction."""
    whole = len(arguments) > 4 and arguments[4] == 0
    return int(arguments[0].numel() * arguments[0].element_size()) * (1 if whole else 2)


def _count_complex(arguments: Any) -> int:
    """abs() and angle() of complex numbers: first, complex results."""
    tensor = arguments[0]
    return int(tensor.numel() * tensor.element_size()) if tensor.is_complex() else 0


def _count_segments(indices: int, rows: int, width: int) -> int:
    """The gradient of an embedding's rows, from sorted indices: parts of 10 of a row's, in float32.

    ``indices`` refer to a table of (rows, width).
    """
    kept = min(indices, rows)
    parts = indices // 10 + kept
    return 8 * (3 * indices + 2 * kept + parts) + 4 * parts * width


def _count_embedding(arguments: Any) -> int:
    """Backward of an embedding, which up to 3,072 indices does not sort them."""
    gradient, indices, rows, _, scaled = arguments[:5]
    if indices.numel() <= 3072 and not scaled:
        return 0
    return _count_segments(indices.numel(), rows, gradient.size(-1))


def _count_bag(arguments: Any) -> int:
    """Backward of nn.EmbeddingBag; its mode 2, the largest, needs nothing."""
    gradient, indices, rows, mode = arguments[0], arguments[1], arguments[6], arguments[8]
    if mode == 2:
        return 0
    return _count_segments(indices.numel(), rows, gradient.size(-1))


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
    return int(torch.get_num_threads() * (each + 2 * rows * columns * (query.dtype in HALF)))


def _count_cpu_flash_backward(arguments: Any) -> int:
    """Its backward: each thread's part of the weights and of their gradient."""
    query = arguments[1]
    rows, columns = _split_attention(query, arguments[2])
    each = 4 * 2 * rows * columns + 2 * 2 * rows * columns * (query.dtype in HALF)
    return int(torch.get_num_threads() * each + 4 * rows + _count_copy(arguments[0]))


def _count_cpu_encoder(arguments: Any) -> int:
    """nn.TransformerEncoderLayer's fast path: its attention, or its hidden layer.

    A layer that normalizes first keeps both its normalized and its plain input.
    """
    source, width, heads = arguments[:3]
    rows, hidden = source.numel() // width, arguments[14].size(0)
    attention = _count_attention(rows, width, heads * source.size(1), arguments[18:20])
    most = max(attention, rows * (hidden + 2 * width)) + rows * width * arguments[8]
    return int(source.element_size() * (most - rows * width))


def _count_cpu_heads(arguments: Any) -> int:
    """nn.MultiheadAttention's fast path, beside its result and the weights that it returns."""
    source, width, heads = arguments[0], arguments[3], arguments[4]
    rows, length = source.numel() // width, source.size(1)
    most = _count_attention(rows, width, heads * length, (arguments[9:10] + arguments[12:13]))
    result = rows * width
    if arguments[10:11] != (False,):
        weights = rows * heads * length
        returned = weights if arguments[11:12] == (False,) else rows * length
        most = max(most, 5 * result + weights, 4 * result + weights + returned % weights)
        result += returned
    return int(source.element_size() * (most - result))


def _count_attention(rows: int, width: int, columns: int, mask: Any) -> int:
    """The most elements of attention: the three parts twice, or once with the weights.

    ``mask`` is () or (mask, kind). A masked softmax makes other weights, and of a mask of kind 2,
    which is not for padding alone, one byte for each weight.
    """
    weights = rows * columns
    if mask and mask[0] is not None:
        weights = weights * 2 + (weights // 4 if mask[1:] == (2,) else 0)
    return max(6 * rows * width, 3 * rows * width + weights)


def _count_cpu_bag(arguments: Any) -> int:
    """Backward of nn.EmbeddingBag: the sorted indices, their order, and each one's bag.

    Its mode 2, the largest: the bags that are not empty, with the places in them.
    """
    gradient = arguments[0]
    if arguments[8] == 2:
        return 8 * int(gradient.size(0) + gradient.numel()) + _count_first(arguments)
    return 3 * 8 * int(arguments[1].numel())


def _count_first(arguments: Any) -> int:
    """One tensor of the first argument's size."""
    return int(arguments[0].numel() * arguments[0].element_size())


def _count_lu_solve(arguments: Any) -> int:
    """A copy of the factors, if they are not laid out by columns, as LAPACK takes them."""
    return 0 if arguments[0].mT.is_contiguous() else _count_first(arguments)


# Points of the input that each dimension of an upsampled one takes, by the operator.
UPSAMPLED = {
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), 2),
    "upsample_bicubic2d": 4,
    **dict.fromkeys((f"upsample_nearest{n}d" for n in (1, 2, 3)), 1),
    **dict.fromkeys((f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)), 1),
}
# Up to this sum of height and width, torch upsamples by the kernel for channels last.
SMALL_UPSAMPLED = 128


def _count_upsampled(points: int, arguments: Any) -> int:
    """Upsampling on the CPU: a table of places and weights of each dimension, or two copies.

    As torch decides it, in aten/src/ATen/native/cpu/UpSampleKernel.cpp.
    """
    tensor, sizes = arguments[:2]
    size = tensor.element_size()
    image = tensor.size(1) == 3 and points == 2 and torch.get_num_threads() == 1
    if len(sizes) == 2 and points < 4 and (image or sum(sizes) <= SMALL_UPSAMPLED):
        samples = tensor.size(0) * tensor.size(1)
        copied = tensor.size(1) > 1 and tensor.is_contiguous()
        return int((tensor.numel() + samples * math.prod(sizes)) * size) if copied else 0
    return int(sum(sizes) * points * (8 + size))


def _count_unfold(arguments: Any) -> int:
    """``im2col``: a tensor of the input's size, which the result replaces, and a copy."""
    return _count_first(arguments) + _count_copied(arguments)


def _count_copied(arguments: Any) -> int:
    """A copy of the first argument, if it is not contiguous."""
    return 0 if arguments[0].is_contiguous() else _count_first(arguments)


def _count_median(arguments: Any) -> int:
    """The median of all elements, or along another dimension than the last, sorts a copy."""
    tensor = arguments[0]
    in_place = len(arguments) > 1 and arguments[1] % max(1, tensor.dim()) == tensor.dim() - 1
    return 0 if in_place else _count_first(arguments)


def _count_logsumexp(arguments: Any) -> int:
    """The exponentials of all values, and the maxima."""
    tensor = arguments[0]
    rest = math.prod(tensor.size(one) for one in arguments[1]) if tensor.dim() else 1
    return int((tensor.numel() + tensor.numel() // max(1, rest)) * tensor.element_size())


def _count_difference(arguments: Any) -> int:
    """As much as the difference of both tensors, as in ``torch.dist``."""
    count = torch.broadcast_shapes(arguments[0].shape, arguments[1].shape).numel()
    return int(count * arguments[0].element_size())


def _count_kth(arguments: Any) -> int:
    """``kthvalue``: a copy of the values, and their indices."""
    return int(arguments[0].numel() * (arguments[0].element_size() + 8))


def _count_sort(arguments: Any) -> int:
    """Sorting: the indices of one row."""
    tensor, named = arguments[0], [one for one in arguments[1:] if type(one) is int]
    return 8 * int(tensor.size(named[0] if named else -1)) if tensor.dim() else 0


# Operators that convert their argument to the type of their result beforehand.
CONVERTING = frozenset("sum mean prod nansum cumsum cumprod linalg_vector_norm".split())  # noqa: SIM905


# Operators that copy, and the size of the block in which they turn a matrix (``Copy.cpp``).
TURNING, TURNED_ELEMENTS = frozenset({"clone", "copy_"}), 60 * 60
# Elementwise operators that compare, and those that read another type than they return.
COMPARING = frozenset(
    "eq ne lt le gt ge logical_and logical_or logical_xor".split()  # noqa: SIM905
)
UNPROMOTED = frozenset(
    "abs angle isnan isinf isfinite signbit real imag masked_fill masked_fill_ bernoulli".split()  # noqa: SIM905
)

# Backward of these spreads the gradient over equal values. Torch makes the result before it counts
# them by a mask; for fake tensors afterwards, with two masks more.
SPREADING = ("MaxBackward1", "MinBackward1", "MedianBackward0", "NanmedianBackward0")


def spreads_gradient() -> bool:
    """True in the backward pass of an operator of SPREADING."""
    node = torch._C._current_autograd_node()
    return node is not None and node.name() in SPREADING


def count_converted(name: str, tensor: Any, result: Any) -> int:
    """The bytes of the copy in which the CPU adds up, such as of a mask in 64 bits."""
    if tensor.is_complex():
        return 0
    if name == "mean" and tensor.dtype in HALF:
        return 4 * int(tensor.numel())
    if tensor.dtype is result.dtype:
        return 0
    early = tensor.dtype is torch.bool and spreads_gradient()
    return int(tensor.numel() * (result.element_size() + 2 * early))


def count_turned(name: str, arguments: Any, result: Any) -> int:
    """The bytes of the block by which the CPU turns a matrix as it copies it."""
    source = arguments[name == "copy_"]
    turned = (
        source.dim() == 2
        and source.stride() == (1, source.size(0))
        and source.numel() >= TURNED_ELEMENTS
        and source.shape == result.shape
        and source.dtype is result.dtype
        and result.is_contiguous()
    )
    return TURNED_ELEMENTS * int(source.element_size()) if turned else 0


def count_promoted(operator: Any, arguments: Any, tensors: list[Any], result: Any) -> int:
    """The bytes of the copies of the CPU's elementwise operators, which compute in one type.

    So does ``values * mask``, or ``images / 255`` where the images are integers.
    """
    if torch.Tag.pointwise not in operator.tags or not isinstance(result, torch.Tensor):
        return 0
    if spreads_gradient():
        return 0
    name = operator._schema.name.removeprefix("aten::")
    if name in UNPROMOTED or (len(arguments) == 1 and result.dtype is torch.bool):
        return 0
    common = result.dtype
    if name in COMPARING or name.endswith("_"):
        common = functools.reduce(_find_common, arguments[:2], tensors[0].dtype)
        common = functools.reduce(torch.promote_types, (one.dtype for one in tensors), common)
    copied = [one for one in tensors[name == "where" :] if one.dtype is not common and one.dim()]
    if name.endswith("_") and result.dtype is not common:
        copied.append(result)
    return sum(int(one.numel() * common.itemsize) for one in copied)


def _find_common(dtype: Any, other: Any) -> Any:
    """The type in which a tensor is compared with a number."""
    if dtype is torch.bool and type(other) is int:
        return torch.int64
    if not dtype.is_floating_point and not dtype.is_complex and isinstance(other, float):
        return torch.get_default_dtype()
    return dtype


def _count_put(arguments: Any) -> int:
    """``index_put`` with masks: the places, except of a single value, which fills."""
    tensor, indices, values = arguments[:3]
    masks = [one for one in indices if one is not None and one.dtype is torch.bool]
    if not masks or not tensor.numel() or (values.numel() == 1 and not any(arguments[3:4])):
        return 0
    return sum(
        8 * one.dim() * min(one.numel(), values.numel() * one.numel() // tensor.numel())
        for one in masks
    )


def _count_cuda_scatter(arguments: Any) -> int:
    """``masked_scatter`` of CUDA: sums of the mask in 64 bits, copies of what is not contiguous."""
    tensor, mask, source = arguments[:3]
    elements = tensor.numel()
    repeated = mask.numel() != elements or not mask.is_contiguous()
    copied = 0 if source.is_contiguous() else source.numel() * source.element_size()
    return int((8 + repeated) * elements + copied)


def _count_nonzero(arguments: Any) -> int:
    """The mask, and its copy in 64 bits; nothing for all elements."""
    each = 8 + (arguments[0].dtype is not torch.bool)
    return each * int(arguments[0].numel()) if len(arguments) > 1 and arguments[1] else 0


def _count_multinomial(arguments: Any) -> int:
    """Random numbers for all elements, except of several samples with replacement."""
    several = arguments[1] > 1 and any(arguments[2:3])
    return 0 if several else _count_first(arguments)


def _count_mask(arguments: Any) -> int:
    """``any`` and ``all``: which elements are true."""
    return 0 if arguments[0].dtype is torch.bool else int(arguments[0].numel())


def _count_reduced(arguments: Any) -> int:
    """Losses that compute each element before they add up; their storage is counted elsewhere."""
    reduces = len(arguments) < 3 or arguments[2] != 0
    return _count_difference(arguments) if reduces else 0


def _count_soft_margin(arguments: Any) -> int:
    """Backward of ``soft_margin_loss``: two tensors as large as its values."""
    return 2 * int(arguments[1].numel() * arguments[1].element_size())


def _count_cpu_distance_backward(arguments: Any) -> int:
    """Gradients of distances other than Euclidean ones: copies of what is not contiguous."""
    tensors = [one for one in arguments if isinstance(one, torch.Tensor)]
    copied = (one for one in tensors if not one.is_contiguous())
    return sum(int(one.numel() * one.element_size()) for one in copied)


def _count_matrices(arguments: Any) -> int:
    """Products of matrices: copies of those that BLAS cannot read, such as expanded gradients."""
    matrices = [one for one in arguments[-2:] if isinstance(one, torch.Tensor)]
    return sum(_count_first([one]) for one in matrices if not _is_for_blas(one) or _is_turned(one))


def _is_turned(matrix: Any) -> bool:
    """True for conjugates by rows: BLAS conjugates only what it transposes too."""
    return bool(matrix.is_conj() and matrix.stride(-1) == 1 and matrix.size(-1) > 1)


def _count_batches(arguments: Any) -> int:
    """Products of batches: copies of one matrix at a time."""
    items = [one[0] for one in arguments[-2:] if one.size(0)]
    return sum(_count_first([one]) for one in items if not _is_for_blas(one) or _is_turned(one))


def _count_cuda_products(arguments: Any) -> int:
    """cuBLAS: whole copies of matrices that it cannot read, in batches too."""
    matrices = [one for one in arguments[-2:] if one.numel()]
    return sum(_count_first([one]) for one in matrices if not _is_for_blas(one))


def _is_for_blas(matrix: Any) -> bool:
    """True if the rows, or the columns, of a matrix are each in one piece and do not overlap."""
    (rows, columns), (down, right) = matrix.shape[-2:], matrix.stride()[-2:]
    return bool((right == 1 and down >= max(1, columns)) or (down == 1 and right >= max(1, rows)))


def _count_batch_norm_backward(arguments: Any) -> int:
    """The gradient of the input, which is made twice."""
    return _count_first(arguments[1:]) if arguments[9][0] else 0


def _count_group_norm_backward(arguments: Any) -> int:
    """Two sums for each sample and channel."""
    return 2 * int(arguments[5] * arguments[6] * arguments[1].element_size())


def reverse_batch_norm(*arguments: Any) -> Any:
    """Backward of batch norm, which for fake tensors makes gradients that nobody asks for, too."""
    made = torch.ops.aten.native_batch_norm_backward(*arguments)
    return tuple(one if wanted else None for one, wanted in zip(made, arguments[9], strict=True))


CPU_SCRATCH: dict[str, Callable[[Any], int]] = {
    **{name: functools.partial(_count_upsampled, points) for name, points in UPSAMPLED.items()},
    "mm": _count_matrices,
    "addmm": _count_matrices,
    "bmm": _count_batches,
    "native_batch_norm_backward": _count_batch_norm_backward,
    "native_group_norm_backward": _count_group_norm_backward,
    "logsumexp": _count_logsumexp,
    "dist": _count_difference,
    "kthvalue": _count_kth,
    "median": _count_median,
    "nanmedian": _count_median,
    "sort": _count_sort,
    "any": _count_mask,
    "all": _count_mask,
    "count_nonzero": _count_nonzero,
    "multinomial": _count_multinomial,
    "index_put": _count_put,
    "index_put_": _count_put,
    "_index_put_impl_": _count_put,
    "mse_loss": _count_reduced,
    "smooth_l1_loss": _count_reduced,
    "huber_loss": _count_reduced,
    "soft_margin_loss_backward": _count_soft_margin,
    "native_dropout": lambda arguments: _count_first(arguments) if arguments[2] else 0,
    "native_dropout_backward": _count_first,
    "linalg_lu_solve": _count_lu_solve,
    "im2col": _count_unfold,
    "col2im": _count_copied,
    "_cdist_backward": _count_cpu_distance_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _count_cpu_flash,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _count_cpu_flash_backward,
    "_transformer_encoder_layer_fwd": _count_cpu_encoder,
    "_native_multi_head_attention": _count_cpu_heads,
    "_euclidean_dist": _count_distance,
    "_embedding_bag_backward": _count_cpu_bag,
    "_ctc_loss_backward": _count_ctc,
    "binary_cross_entropy_with_logits": _count_logits,
    "abs": _count_complex,
    "angle": _count_complex,
}
SCRATCH: dict[str, Callable[[Any], int]] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _count_cuda_products),
    "multinomial": _count_multinomial,
    "index_put": _count_put,
    "index_put_": _count_put,
    "masked_scatter": _count_cuda_scatter,
    "masked_scatter_": _count_cuda_scatter,
    "im2col": _count_unfold,
    "col2im": _count_copied,
    "binary_cross_entropy_with_logits": _count_logits,
    "_ctc_loss_backward": _count_cuda_ctc,
    "_cdist_backward": _count_distance_backward,
    "convolution": _count_convolution,
    "convolution_backward": _count_convolution,
    "_scaled_dot_product_efficient_attention": _count_efficient_forward,
    "_scaled_dot_product_efficient_attention_backward": _count_efficient,
    "_scaled_dot_product_flash_attention_backward": _count_flash,
    "_softmax_backward_data": _count_softmax,
    "_euclidean_dist": _count_distance,
    "abs": _count_complex,
    "angle": _count_complex,
    "embedding_dense_backward": _count_embedding,
    "_embedding_bag_backward": _count_bag,
    "_transformer_encoder_layer_fwd": _count_encoder,
    "sum": _count_sum,
    "mean": _count_sum,
}
