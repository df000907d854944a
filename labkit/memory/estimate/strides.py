"""Copies that operators make of tensors that are not contiguous, such as an expanded gradient.

Many kernels read their arguments in one piece and copy those that are not: permuted ones, those in
``channels_last``, and gradients of ``sum()`` or ``mean()``, which are one number in each place. On
the CPU ``measured.py`` runs each such operator once; ``STRIDED`` lists those that need no copy, so
that they need not be run. On CUDA nothing can be run: ``CUDA_COPIED`` has what the kernels' sources
say, and of all others each copy may be made or not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch

# Operators of the CPU that take no more for arguments in any layout, beside those of single
# elements and views: tests/test_estimate_strides.py measures each of them.
STRIDED = frozenset(
    """_euclidean_dist _prelu_kernel _prelu_kernel_backward _to_copy _unsafe_view addr alias_copy
    all amax amin any baddbmm batch_norm_backward bmm cat complex constant_pad_nd copy_
    count_nonzero cummax cummin cumprod cumsum diag_embed diagonal_backward empty_like fill_ flip
    floor_divide full_like gather glu glu_backward index linalg_cross linalg_vector_norm
    masked_fill_ mean new_empty new_empty_strided new_full new_ones new_zeros ones_like scatter
    scatter_ scatter_add scatter_add_ select_backward select_scatter slice_backward slice_scatter
    sort split_with_sizes stack std_mean sum topk unsafe_split var var_mean zero_
    zeros_like""".split()  # noqa: SIM905
)
# An operator of single elements that copies all the same.
COPYING = frozenset({"gelu_backward"})
# Those that take memory for themselves whatever the layout, in ways that have no table.
SPENDING = frozenset(
    """_chunk_cat _unsafe_masked_index _unsafe_masked_index_put_accumulate cholesky
    cholesky_inverse geqrf lu_unpack ormqr renorm roll scatter_reduce""".split()  # noqa: SIM905
)
# Operators whose table in ``operators.py`` has the copies already, and those whose memory depends
# on values: run on zeros, they select nothing.
COUNTED = frozenset(
    """mm addmm _cdist_backward index_put index_put_ _index_put_impl_ masked_scatter_backward
    masked_select multinomial _ctc_loss _ctc_loss_backward nonzero count_nonzero
    repeat_interleave bincount _unique2 unique_dim unique_consecutive set_ resize_
    _local_scalar_dense equal""".split()  # noqa: SIM905
)
# CUDA's kernels, by their sources (aten/src/ATen/native/cuda): those that go by strides,
CUDA_STRIDED = frozenset(
    """_to_copy _unsafe_view addr all amax amin any cat complex constant_pad_nd copy_ count_nonzero
    embedding empty_like fill_ flip full_like gather grid_sampler_2d grid_sampler_2d_backward
    grid_sampler_3d grid_sampler_3d_backward index index_put index_put_ _index_put_impl_
    index_select linalg_vector_norm masked_fill_ max mean min new_empty new_empty_strided new_full
    new_ones new_zeros ones_like roll scatter scatter_ scatter_add scatter_add_ select_backward
    select_scatter slice_backward slice_scatter split_with_sizes stack std_mean sum unsafe_split
    var var_mean zero_ zeros_like""".split()  # noqa: SIM905
)
# those that copy the arguments at these places,
CUDA_COPIED = {
    **dict.fromkeys(("_softmax", "_log_softmax", "native_layer_norm"), (0,)),
    **dict.fromkeys(("_softmax_backward_data", "_log_softmax_backward_data"), (0, 1)),
    "embedding_dense_backward": (0,),
    "upsample_bilinear2d_backward": (0,),
    **dict.fromkeys(("upsample_nearest2d", "upsample_nearest2d_backward"), (0,)),
}
# those that take channels last too,
CUDA_LAST = frozenset(
    """native_batch_norm native_batch_norm_backward cudnn_batch_norm cudnn_batch_norm_backward
    batch_norm_backward _native_batch_norm_legit _batch_norm_with_update max_pool2d_with_indices
    max_pool2d_with_indices_backward avg_pool2d avg_pool2d_backward _adaptive_avg_pool2d
    _adaptive_avg_pool2d_backward upsample_bilinear2d upsample_bilinear2d_backward
    upsample_nearest2d upsample_nearest2d_backward""".split()  # noqa: SIM905
)
# and those whose table in ``operators.py`` has the copies. Attention goes by strides.
CUDA_COUNTED = frozenset(
    """convolution convolution_backward mm addmm bmm baddbmm im2col col2im masked_scatter
    masked_scatter_""".split()  # noqa: SIM905
)
FEWEST_CHANNELS = 4
# Channels last, by the number of dimensions.
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
ATTENTION = ("_scaled_dot_product_", "_efficient_attention_", "_flash_attention_")
# Operators of many tensors at once, which optimizers call with parameters in any layout.
MANY = ("_foreach_", "_fused_", "_amp_")


def find_name(operator: Any) -> str:
    """The operator's name without its namespace and its overload."""
    return str(operator._schema.name.partition("::")[2])


@functools.cache
def takes_strides(operator: Any) -> bool:
    """True for an operator that makes no copy of an argument for its layout, or is known to count.

    One that draws random numbers is not run either, because that would change what follows.
    """
    name = find_name(operator)
    if name in COPYING:
        return False
    if operator.namespace != "aten" or name in STRIDED or name in COUNTED:
        return True
    return name.startswith(MANY) or _is_strided(operator)


def _is_strided(operator: Any) -> bool:
    tags = operator.tags
    return (
        operator.is_view
        or torch.Tag.pointwise in tags
        or torch.Tag.nondeterministic_seeded in tags
        or torch.Tag.inplace_view in tags
    )


def may_copy(operator: Any, tensors: Iterable[Any]) -> bool:
    """True if the operator may take memory for itself, such as a copy of what is not contiguous."""
    if find_name(operator) in SPENDING:
        return True
    scattered = any(not one.is_contiguous() for one in tensors)
    return scattered and not takes_strides(operator)


def count_copies(tensors: Iterable[Any]) -> int:
    """The bytes of a contiguous copy of each tensor that is not contiguous."""
    copied = (one for one in tensors if not one.is_contiguous())
    return sum(int(one.numel() * one.element_size()) for one in copied)


def count_cuda_copies(operator: Any, arguments: Any, tensors: list[Any]) -> tuple[int, int]:
    """The bytes of copies that an operator of CUDA makes, and of those that it may make or not."""
    scattered = [one for one in tensors if not one.is_contiguous()]
    if not scattered:
        return 0, 0
    name = find_name(operator)
    if name in CUDA_LAST:
        scattered = [one for one in scattered if not _is_taken_last(one)]
    if name in CUDA_COPIED:
        chosen = [arguments[place] for place in CUDA_COPIED[name]]
        return count_copies(one for one in chosen if any(one is other for other in scattered)), 0
    return 0, 0 if _takes_strides_on_cuda(operator) else count_copies(scattered)


@functools.cache
def _takes_strides_on_cuda(operator: Any) -> bool:
    name = find_name(operator)
    if operator.namespace != "aten" or name in CUDA_STRIDED or name in CUDA_COUNTED:
        return True
    return name.startswith((*MANY, *ATTENTION)) or _is_strided(operator)


def _is_taken_last(tensor: Any) -> bool:
    """True for channels last; with fewer than four, some kernels copy them after all."""
    return is_last(tensor) and tensor.size(1) >= FEWEST_CHANNELS


def is_last(tensor: Any) -> bool:
    """True for a tensor without gaps whose channels are innermost in memory."""
    form = LAST.get(tensor.dim())
    return form is not None and bool(tensor.is_contiguous(memory_format=form))
