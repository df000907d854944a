"""What is run in place of torch's operators, whose fake results differ from real ones."""

from __future__ import annotations

import dis
import functools
import linecache
import re
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch._C import _functorch as functions

from labkit.memory.estimate.copies import is_fake
from labkit.memory.estimate.cuda import find_number
from labkit.memory.estimate.layouts import lay_out
from labkit.memory.estimate.limits import LIMITED
from labkit.memory.estimate.obstacles import FOLDER
from labkit.memory.estimate.operators import (
    compute_gru,
    reverse_batch_norm,
    reverse_ctc,
    reverse_gru,
)
from labkit.memory.estimate.rewritten import owns_storage
from labkit.memory.estimate.whole import is_called_by_engine
from labkit.memory.track.frames import is_user_file

# Torch computes these losses element by element into their result, which keeps this storage when
# it is reduced to one number; the storage of the fake result has one number only. The table of
# tests/test_estimate_operators.py compares all operators of torch's own test database.
KEEP_STORAGE = (
    torch.ops.aten.mse_loss.default,
    torch.ops.aten.smooth_l1_loss.default,
    torch.ops.aten.soft_margin_loss.default,
    torch.ops.aten.binary_cross_entropy.default,
)
ATEN = torch.ops.aten
# The attribute of a fake storage whose elements are in the memory of an array.
BORROWED = "labkit_borrowed"


def find_numbers(operators: Iterable[Any]) -> frozenset[int]:
    """The operators by their numbers: torch computes a hash of them in Python."""
    return frozenset(map(find_number, operators))


ADD = ATEN.add.Tensor
# What a loader draws: an order of samples, and a seed; and samples that may come again.
SEEDS = find_numbers((ATEN.randperm.default, ATEN.randperm.generator, ATEN.random_.default))
SAMPLES = find_numbers((
    ATEN.multinomial.default, ATEN.randint.default, ATEN.randint.generator, ATEN.randint.low,
    ATEN.randint.low_generator,
))  # fmt: skip
DRAWN, LIMITED_ALONE = SEEDS | SAMPLES, find_numbers(LIMITED)
FOLLOWED = DRAWN | LIMITED_ALONE
# Products whose backward pass depends on zeros, where there are more elements than few.
PRODUCTS_OF_ALL, FEW = find_numbers((ATEN.prod.default, ATEN.prod.dim_int)), 10_000
# A linear layer adds its bias in place, but for subclasses of tensors it makes another.
ADD_BIAS = ATEN.add_.Tensor
# Backward writes these into a tensor of its own, but for subclasses of tensors it makes another.
IN_PLACE = {
    find_number(one): other
    for one, other in {
        ADD: ATEN.add_.Tensor,
        ATEN.scatter.src: ATEN.scatter_.src,
        ATEN.scatter.value: ATEN.scatter_.value,
        ATEN.scatter_add.default: ATEN.scatter_add_.default,
        ATEN.index_add.default: ATEN.index_add_.default,
        ATEN.index_put.default: ATEN.index_put_.default,
        ATEN.index_fill.int_Scalar: ATEN.index_fill_.int_Scalar,
        ATEN.masked_scatter.default: ATEN.masked_scatter_.default,
        ATEN.put.default: ATEN.put_.default,
        ATEN.logical_and.default: ATEN.logical_and_.default,
        ATEN.logical_or.default: ATEN.logical_or_.default,
    }.items()
}
# Nodes whose formulas never write in place, whose own sums do not, and the only ones that combine
# masks in place.
SLICES = "torch::autograd::CopySlices"  # the node of any write into a view
OUT_OF_PLACE = ("Scatter", "IndexReduce", "IndexPut", "IndexFill", "IndexCopy", "Put", SLICES)
ADDING = (
    "VarMean", "StdMean", "LinalgCholesky", "Cholesky", "LinalgLu", "LinalgPinv", "LinalgSvd",
    "LinalgQr", "LinalgLstsq", "TriangularSolve",
)  # fmt: skip
CLAMPING = find_numbers((ATEN.logical_and.default, ATEN.logical_or.default))
# So does the backward pass of the binary cross entropy of logits, and of no other loss.
LOGITS = "BinaryCrossEntropyWithLogits"
OF_LOGITS = {
    find_number(ATEN.sub.Tensor): ATEN.sub_.Tensor,
    find_number(ATEN.mul.Tensor): ATEN.mul_.Tensor,
}
# Since torch 2.7.
GROUPED = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)
# Files of torch in the stack between the code that reads a value and the dispatcher.
LINEAR = re.compile(r"\blinear\(")
PASSAGES = ("_ops.py", "_compile.py", "_tensor.py", "_dynamo/", "_subclasses/", "utils/")


def writes_in_place(operator: Any, arguments: Any) -> bool:
    """True where backward, without a mode, would write into the first argument.

    Torch adds to a gradient between two nodes, and its own nodes fill tensors, that nothing else
    holds; a dispatch mode or fake tensors prevent this.
    """
    if torch._C._current_graph_task_id() == -1 or torch.is_grad_enabled():
        return False
    written, other = arguments[0], arguments[1]
    node = torch._C._current_autograd_node()
    name = "" if node is None else node.name()
    if operator is ADD:
        alike = isinstance(other, torch.Tensor) and written.shape == other.shape
        may_write = alike and not name.startswith(ADDING)
    elif find_number(operator) in CLAMPING:
        may_write = name.startswith(("Clamp", SLICES))
    else:
        may_write = not name.startswith(OUT_OF_PLACE)
    if not may_write or written.layout is not torch.strided or not is_called_by_engine():
        return False
    return owns_storage(written)


def _reuses_logits(arguments: Any) -> bool:
    """True where LOGITS' backward pass writes into what it has just made."""
    node = torch._C._current_autograd_node()
    if node is None or not node.name().startswith(LOGITS) or torch.is_grad_enabled():
        return False
    written, other = arguments[:2]
    return bool(torch.broadcast_shapes(written.shape, other.shape) == written.shape)


def change(number: int, operator: Any, arguments: Any) -> Any:
    """What is run for an operator of CHANGED, whose number is ``number``."""
    if not isinstance(arguments[0], torch.Tensor):  # torch.add(0.5, tensor)
        return REPLACED.get(number, operator)
    if number in IN_PLACE and writes_in_place(operator, arguments):
        return IN_PLACE[number]
    if number in OF_LOGITS and _reuses_logits(arguments):
        return OF_LOGITS[number]
    if operator is ADD and _may_add_bias(arguments):
        return ADD_BIAS
    return REPLACED.get(number, operator)


def _may_add_bias(arguments: Any) -> bool:
    product, other = arguments[:2]
    # The other way round it is what forward-mode differentiation adds.
    vector = isinstance(other, torch.Tensor) and product.dim() > other.dim() == 1
    return vector and _is_in_linear()


def _is_in_linear() -> bool:
    """True in a call of ``linear``, which adds its bias in place, and not in a sum with its result.

    Both are called from the same line where a program adds the bias by hand.
    """
    running = find_caller(3)
    if running is None:
        return False
    line = linecache.getline(running.f_code.co_filename, running.f_lineno, running.f_globals)
    if not LINEAR.search(line):
        return False
    return not dis.opname[running.f_code.co_code[running.f_lasti]].startswith("BINARY_")


def find_caller(depth: int) -> FrameType | None:
    """The innermost frame that calls an operator, of a program or of torch's own modules.

    ``depth`` is how many frames above this one the search begins.
    """
    running: FrameType | None = sys._getframe(depth)
    while running is not None:
        file = running.f_code.co_filename
        if file.startswith(FOLDER):
            if not file.removeprefix(FOLDER).startswith(PASSAGES):
                return running
        elif is_user_file(file):
            return running
        running = running.f_back
    return None


def find_reader() -> tuple[str, str]:
    """The file of torch, without its folder, and its line that read a value; else ("", "")."""
    running = find_caller(3)
    file = "" if running is None else running.f_code.co_filename
    if running is None or not file.startswith(FOLDER):
        return "", ""
    return file.removeprefix(FOLDER), linecache.getline(file, running.f_lineno).strip()


def _keep_storage(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the loss so that its result has a storage of the real size."""

    @functools.wraps(loss)
    def compute(*arguments: Any, **named: Any) -> Any:
        result = loss(*arguments, **named)
        count = torch.broadcast_shapes(arguments[0].shape, arguments[1].shape).numel()
        storage = result.untyped_storage()
        storage.resize_(max(storage.nbytes(), count * result.element_size()))
        return result

    return compute


def _multiply_groups(one: Any, other: Any, offs: Any = None, *others: Any, **named: Any) -> Any:
    """``grouped_mm`` for any dtype; torch's fake version takes bfloat16 alone."""
    if one.dim() == 2 and other.dim() == 2:
        return one.new_empty(offs.size(0), one.size(0), other.size(1))
    rows = one.size(0) if one.dim() == 2 else other.size(1)
    return one.new_empty(*one.shape[:-1], other.size(-1)) if rows else one.new_empty(0)


def _draw_alike(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a draw, or its backward pass, that torch can fake on the CPU alone."""

    @functools.wraps(draw)
    def compute(values: Any, *others: Any, **named: Any) -> Any:
        if values.fake_device.type == "cuda":
            return torch.empty_like(values)
        return draw(values, *others, **named)

    return compute


def _allow_nothing(reverse: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a loss's backward pass, which torch's fake version divides by no elements."""

    @functools.wraps(reverse)
    def compute(gradient: Any, values: Any, *others: Any, **named: Any) -> Any:
        if not values.numel():
            return torch.empty_like(values)
        return reverse(gradient, values, *others, **named)

    return compute


def _keep_columns(fold: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps ``col2im``, whose result keeps a storage as large as its input, where it begins."""

    @functools.wraps(fold)
    def compute(columns: Any, *others: Any, **named: Any) -> Any:
        result = fold(columns, *others, **named)
        storage = result.untyped_storage()
        storage.resize_(max(storage.nbytes(), columns.numel() * columns.element_size()))
        return result

    return compute


def _make_zeros(*arguments: Any, **named: Any) -> Any:
    """The zeros that forward-mode differentiation starts from, which take no memory."""
    result = ATEN._efficientzerotensor.default(*arguments, **named)
    result.untyped_storage().resize_(0)
    return result


def mark_borrowed(real: Any, fake: Any) -> Any:
    """The fake tensor of a real one; what is an array's memory counts as none of torch's."""
    if functions.is_functorch_wrapped_tensor(real):
        return fake  # what it wraps is fake
    if not real.untyped_storage().resizable():
        setattr(fake.untyped_storage(), BORROWED, True)
    return fake


def _lift(real: Any) -> Any:
    made = ATEN.lift_fresh.default(real)
    return made if is_fake(real) else mark_borrowed(real, made)


DRAWN_ALIKE = (
    ATEN._sample_dirichlet.default,
    ATEN._dirichlet_grad.default,
    ATEN._standard_gamma.default,
    ATEN._standard_gamma_grad.default,
    ATEN.binomial.default,
)
LOSSES_BACKWARD = (
    ATEN.mse_loss_backward.default,
    ATEN.smooth_l1_loss_backward.default,
    ATEN.huber_loss_backward.default,
)
# By the operators' numbers.
REPLACED: dict[int, Callable[..., Any]] = {}
_COMPUTED: dict[Any, Callable[..., Any]] = {
    **{one: _keep_storage(one) for one in KEEP_STORAGE},
    **{one: _draw_alike(one) for one in DRAWN_ALIKE},
    **{one: _allow_nothing(one) for one in LOSSES_BACKWARD},
    ATEN._efficientzerotensor.default: _make_zeros,
    ATEN.lift_fresh.default: _lift,
    ATEN.col2im.default: _keep_columns(ATEN.col2im.default),
    GROUPED: _multiply_groups,
    ATEN._thnn_fused_gru_cell.default: compute_gru,
    ATEN._thnn_fused_gru_cell_backward.default: reverse_gru,
    ATEN._ctc_loss_backward.default: reverse_ctc,
    ATEN._ctc_loss_backward.Tensor: reverse_ctc,
    ATEN.native_batch_norm_backward.default: reverse_batch_norm,
}
for _operator, _compute in _COMPUTED.items():
    if _operator is not None:
        REPLACED[find_number(_operator)] = lay_out(_operator, functools.wraps(_operator)(_compute))
# Operators for which another function may run, or which need a note.
CHANGED = frozenset((*REPLACED, *IN_PLACE, *OF_LOGITS, *PRODUCTS_OF_ALL))
