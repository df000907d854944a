"""Runs a step on fake tensors, which have torch's shapes and storages but no data and memory.

If a step reads a value that nobody knows, an ``EstimateObstacle`` says which operator read it, in
which line, and why the run stops there, unless an assumption can answer (``values.py``).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import itertools
import linecache
import logging
import re
import sys
import warnings
import weakref
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch._prims_common import suggest_memory_format
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from labkit.errors import UsageError
from labkit.memory.estimate.allocator import CachingAllocator, round_request
from labkit.memory.estimate.cuda import (
    WORKSPACE_BYTES,
    FakeMode,
    hide_device,
    move_tensors,
    replace_attributes,
    replace_in_thread,
    simulate_calls,
)
from labkit.memory.estimate.draws import Draws
from labkit.memory.estimate.iterators import CopyError, LiveLoaders, copy_iterators, name_uncopied
from labkit.memory.estimate.limits import LIMITED, Limits, find_limits, join_limits
from labkit.memory.estimate.loading import Order, is_loading, load_here, make_iterator
from labkit.memory.estimate.measured import (
    CONVOLUTIONS,
    MOST_BYTES,
    PRODUCTS,
    measure_scratch,
    needs_measuring,
)
from labkit.memory.estimate.model import EstimateObstacle, Target
from labkit.memory.estimate.objects import name_holders
from labkit.memory.estimate.operators import (
    CONVERTING,
    CPU_SCRATCH,
    SCATTERED,
    SCRATCH,
    BackwardOrder,
    CudaOperators,
    allow_foreach,
    compute_gru,
    count_converted,
    count_promoted,
    count_scattered,
    count_selecting,
    reverse_batch_norm,
    reverse_ctc,
    reverse_gru,
    reverse_products,
)
from labkit.memory.estimate.results import (
    FACTS,
    HELD,
    Call,
    Facts,
    Made,
    Recipe,
    find_facts,
    find_recipe,
    forget_layout,
    keep_recipe,
    mark_operators,
    measure,
)
from labkit.memory.estimate.saved import Checkpoints
from labkit.memory.estimate.state import keep_modes, keep_state
from labkit.memory.estimate.uncopied import (
    MOST_KINDS,
    SHARED_NOTE,
    share_held,
    share_uncopied,
)
from labkit.memory.estimate.updates import WholeUpdates
from labkit.memory.estimate.values import (
    KNOWN_ELEMENTS,
    READ_VALUE,
    Assumptions,
    KnownValues,
    allow_unknown_items,
    assume_shape,
    count_up,
    count_values,
    is_constant,
    is_real,
    make_array,
    make_lister,
    make_unpacking,
    may_be_known,
    pack_padded,
    selects_by_known,
    shape_ctc,
)
from labkit.memory.estimate.whole import RECURRENT, WholeCalls, is_called_by_engine
from labkit.memory.track.frames import Frame, find_user_frames, is_user_file, list_error_frames
from labkit.memory.track.model import Level, Storage
from labkit.memory.track.storages import (
    LIFT,
    UNANSWERED,
    StorageReference,
    StorageTracer,
    collects_gradients,
    list_parts,
    list_tensors,
)

# Values that torch's own code reads, which change how it computes and not how much memory it
# takes: the number of optimizer steps, whether a gradient has overflowed (assumed not), whether a
# drawn weight is to be drawn again, whether the parameters of a distribution are valid.
OWN_ANSWERS = {"optim/": 1, "amp/": 0, "nn/utils/": 0, "nn/init.py": 0, "distributions/": 1}
OVERFLOW = "assumes that no gradient overflows: the scaler never skips a step"
CONVERGENCE = "assumes that L-BFGS does not converge: it evaluates as often as it may"
DDP = "DistributedDataParallel is simulated as its module and its gradient buckets, in one process"
SHARDED = "FSDP2 and DTensor: simulated in one process, whose step may need less"
PRODUCT = "prod: its backward pass is simulated as if a value were zero, which needs more"
LEFT = "fake tensors of the simulation are left in {}: a real step that reads them fails"
COMPILED = "torch.compile: simulated without the compiler, which often needs less"
EXPORTED = (
    "torch.export: what it makes to trace the model counts too, which the real one often drops"
)
# What is assumed of unknown numbers that an array is to hold: they are below, or above.
LARGE = 1e4
READ_ARRAY, ASSUMED = "numpy()", "reads whole numbers, which are assumed: they may decide sizes"
UNKNOWN_SCRATCH = "takes scratch memory of unknown size"
RNN = EstimateObstacle("cuDNN's recurrent network", UNKNOWN_SCRATCH)
PADDED = EstimateObstacle(
    "nn.TransformerEncoder's nested tensor", "is simulated as a padded one: it needs more copies"
)
CONVOLUTION = (
    "what cuDNN's convolutions take while they run is not included: cuDNN chooses it on the GPU"
)

FOLDER = str(Path(torch.__file__).parent) + "/"
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


def _find_ids(operators: Iterable[Any]) -> frozenset[int]:
    """The operators by their ids: torch computes a hash of them in Python."""
    return frozenset(map(id, operators))


ADD = ATEN.add.Tensor
# What a loader draws: an order of samples, and a seed; and samples that may come again.
SEEDS = _find_ids((ATEN.randperm.default, ATEN.randperm.generator, ATEN.random_.default))
SAMPLES = _find_ids((
    ATEN.multinomial.default, ATEN.randint.default, ATEN.randint.generator, ATEN.randint.low,
    ATEN.randint.low_generator,
))  # fmt: skip
DRAWN, LIMITED_ALONE = SEEDS | SAMPLES, _find_ids(LIMITED)
FOLLOWED = DRAWN | LIMITED_ALONE
JOINING = _find_ids((ATEN.cat.default, ATEN.stack.default))
# Sums of numbers that may be any are many, in backward.
SUMS = _find_ids((ATEN.sum.default, ATEN.sum.dim_IntList))
# Products whose backward pass depends on zeros, where there are more elements than few.
PRODUCTS_OF_ALL, FEW = _find_ids((ATEN.prod.default, ATEN.prod.dim_int)), 10_000
# A linear layer adds its bias in place, but for subclasses of tensors it makes another.
ADD_BIAS = ATEN.add_.Tensor
# Backward writes these into a tensor of its own, but for subclasses of tensors it makes another.
IN_PLACE = {
    id(one): other
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
OUT_OF_PLACE = ("ScatterReduce", "IndexReduce")
ADDING = (
    "VarMean", "StdMean", "LinalgCholesky", "Cholesky", "LinalgLu", "LinalgPinv", "LinalgSvd",
    "LinalgQr", "LinalgLstsq", "TriangularSolve",
)  # fmt: skip
CLAMPING = _find_ids((ATEN.logical_and.default, ATEN.logical_or.default))
# So does the backward pass of the binary cross entropy of logits, and of no other loss.
LOGITS = "BinaryCrossEntropyWithLogits"
OF_LOGITS = {id(ATEN.sub.Tensor): ATEN.sub_.Tensor, id(ATEN.mul.Tensor): ATEN.mul_.Tensor}
# Categories of arguments beside which others are a model's inputs.
READING = {"parameters", "activations"}
# A name of this module is found faster than torch's.
_find_node, _is_inference = torch._C._current_autograd_node, torch.is_inference_mode_enabled
_is_grad_enabled = torch.is_grad_enabled
# How often a storage is held that only one tensor has: by it, and by Python's object for it.
ALONE = 2
DEVICE = torch.ops.prim.device.default
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# Since torch 2.7.
GROUPED = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)
# Warnings that come from the simulation, not from the user's code.
HARMLESS = (
    "Accessing the data pointer of FakeTensor",
    "Using `torch.compile.module.` when there",
    "PyTorch was compiled without cuDNN",
    "Warning only once for all operators,  other operators may also be overridden",
    # A scheduler from outside of the step has the real optimizer, whose step is not simulated.
    "Detected call of `lr_scheduler.step",
)
NOTED = PRODUCTS | set(CONVOLUTIONS)
# The exceptions for an operator that torch cannot fake, and the reasons.
UNKNOWN = {
    fake_tensor.DataDependentOutputException: "reads a value, but fake tensors have none",
    fake_tensor.DynamicOutputShapeException: "has a result whose size depends on values",
    fake_tensor.UnsupportedOperatorException: "has no fake version",
}
# Files of torch in the stack between the code that reads a value and the dispatcher.
PASSAGES = ("_ops.py", "_compile.py", "_tensor.py", "_dynamo/", "_subclasses/", "utils/")


class FakeTracer(StorageTracer):
    """Traces fake storages, and records the first obstacle, which makes the memory unknown.

    ``note`` is called with a sentence about what is assumed.
    """

    def __init__(
        self, observer: Any, mode: FakeMode, assumptions: Assumptions, note: Callable[[str], object]
    ) -> None:
        super().__init__(observer)
        self.obstacle: EstimateObstacle | None = None
        self.values = KnownValues()
        # Storages that something holds after the block, such as a cache.
        self.left: list[StorageReference] = []
        self._mode = mode
        # Whether forward (False) and backward (True), which has its own thread, use cuBLAS.
        self.cublas: set[bool] = set()
        self._assumptions, self._note_words = assumptions, note
        self._losses = 0.0
        self.whole = WholeCalls(self, mode, _make_recorder)
        self.updates = WholeUpdates(self, mode)
        self._call_frames: tuple[Frame, ...] = ()
        # The tensors of which the step has copies, and those of others that it reads, by their ids.
        self.copied: dict[int, Any] = {}
        self._guarded: dict[int, tuple[Any, Any]] = {}
        # The ids of real tensors that were there before the step, as far as they are known, and
        # the fake ones in their places, which torch itself only remembers weakly.
        self.lasting: Container[int] = ()
        self._fakes: dict[int, tuple[Any, Any]] = {}
        self._drop = self._dead.append

    def __exit__(self, *error: Any) -> None:
        for _, hook in self._guarded.values():
            hook.remove()
        self._fakes.clear()
        try:
            self._bury()
            self.left = list(self._live.values())
        finally:
            super().__exit__(*error)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Dynamo does not run inside the block; torch's guard against it costs more than a call.
        return False

    def __torch_dispatch__(
        self,
        operator: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        """Traces the operator; returns a substitute for a value that torch's own code reads."""
        if operator is DEVICE:
            return hide_device(arguments[0])
        named = named or {}
        if self.whole.pending is not None:
            met = self.whole.meet(operator, arguments, _writes_in_place)
            if met is not NotImplemented:
                return met
        run = operator
        facts: Facts = operator.__dict__.get(FACTS) or find_facts(operator)
        if facts.parts or _is_inference():
            run_parts = self._find_parts(operator)
            if run_parts is not None:
                with _entered(self):
                    return run_parts(*arguments, **named)
        if facts.changed:
            number = id(operator)
            if number in PRODUCTS_OF_ALL and arguments[0].requires_grad:
                self._note_product(arguments[0])
            run = _change(number, operator, arguments)
            if run is not operator and number not in REPLACED:
                facts = find_facts(run)
        call = Call(facts, arguments, named, self._mode.placement)
        if operator is READ_VALUE and _is_variable(arguments[0]):
            return self._read(operator, arguments, call)
        recipe = None if call.key is None else find_recipe(call.key)
        if recipe is None:
            return self._compute(operator, run, types, arguments, named, call)
        result = self._repeat(recipe, operator, facts.name, call)
        known = call.known and (call.valued or facts.carries)
        if known or facts.like or facts.lifts or facts.followed or not call.tensors:
            self._follow_values(operator, arguments, named, call.tensors, result)
        return result

    def _note_draw(self, tensor: Any) -> None:
        """Has the step simulated both ways where it reads a number of a drawn order."""
        limits = self.values.find_limits(tensor)
        if limits is not None and limits.drawn:
            self._assumptions.decide(drawn=True)

    def _find_parts(self, operator: Any) -> Callable[..., Any] | None:
        """What runs the operator by its parts, which in inference mode comes here whole."""
        if id(operator) in PROFILING:
            return functools.partial(_run_unseen, operator)
        if id(operator) in WHOLE and self._mode.placement == "cpu":
            return functools.partial(self.whole.call, operator)
        if torch.is_inference_mode_enabled() and _is_composite(operator):
            return functools.partial(operator._op_dk, COMPOSITE)
        return None

    def _read(self, operator: Any, arguments: Any, call: Call) -> Any:
        """The known or assumed value in a fake tensor, without torch's fake mode, which is slow."""
        value = self.values.read(arguments[0]) if call.known else None
        if value is not None:
            self._note_draw(arguments[0])
        self._attempt(self._take_in, operator, arguments, call.tensors)
        if value is None:
            value = self._substitute(operator, arguments, {})
        if value is None:
            raise fake_tensor.DataDependentOutputException(operator)
        return value

    def _compute(  # noqa: PLR0917
        self, operator: Any, run: Any, types: Any, arguments: Any, named: Any, call: Call
    ) -> Any:
        """The results by torch's fake mode, kept for further calls that are alike."""
        taken = call.tensors
        before = [] if call.key is None else measure(taken)
        try:
            result = super().__torch_dispatch__(run, types, arguments, named)
        except tuple(UNKNOWN):
            result = self._substitute(operator, arguments, named)
            if result is None:
                raise
            find = self.values.find_limits
            for fake, one in find_limits(operator, arguments, named, result, find):
                if self.values.find(fake) is None:
                    self.values.limit(fake, one)
            return result
        finally:
            if getattr(getattr(run, "_schema", None), "is_mutable", True):
                forget_layout(taken)
        self._follow_values(operator, arguments, named, taken, result)
        if call.key is None or any(one.layout is not torch.strided for one in list_tensors(result)):
            self._count_scratch(self._follow_libraries(operator, arguments, named, result), taken)
            return result
        made = measure(list_tensors(result))
        freed = self._follow_libraries(operator, arguments, named, result)
        self._count_scratch(freed, taken)
        # What a library was measured to return is recorded in another way than what is new.
        if freed is not None and made == measure(list_tensors(result)):
            keep_recipe(call, result, before, freed)
        return result

    def _repeat(self, recipe: Recipe, operator: Any, name: str, call: Call) -> Any:
        """The results of a call as before, traced."""
        taken, whole = call.tensors, self.whole
        if self._dead or whole.pending is not None or whole.dropped:
            self._bury()
        try:
            found = self._trace_repeated(operator, call, recipe.allocates)
        except UNANSWERED as error:
            self._note_trouble(error)
            found = ("other", (), False)
        result = recipe.make(call, self._mode, self._add_made, found)
        if name in NOTED and taken and taken[0].fake_device.type == "cuda":
            self._note_libraries(name)
        if recipe.freed_bytes:
            self._count_scratch(recipe.freed_bytes, taken)
        return result

    def _add_made(self, made: Any, part: Made, found: tuple[str, tuple[Frame, ...], bool]) -> None:
        """What ``_add`` does, for a new storage whose size is known."""
        count = round_request(part.storage_bytes) if part.on_cuda else part.storage_bytes
        category, frames, backward = found
        place, source = part.place, made.untyped_storage()
        storage = Storage(next(self._serials), count, place, category, frames, False, backward)
        reference = StorageReference(source, self._drop)
        key = reference.key = source._cdata
        reference.storage = storage
        self._live[key] = made.__dict__[HELD] = reference
        if place in self.levels and not self._observer:
            self.levels[place].add(storage)
        else:
            self._count(storage)

    def mark(self, tensor: Any, category: str) -> None:
        """Sets the category; a whole call's gradients have it from when they are counted."""
        if self.whole.pending is None and type(tensor) is fake_tensor.FakeTensor:
            held = self._find_held(tensor)
            if held is not None and held.storage.category == category:
                return
        if not self.whole.defer(tensor, category):
            super().mark(self._find_stand_in(tensor), category)

    def _bury(self) -> None:
        if self.whole.pending is not None:
            self.whole.settle()
        if self._dead:
            super()._bury()
        if self.whole.dropped:
            self.whole.bury()

    def look_at_call(self, tensors: Any) -> tuple[str, tuple[Frame, ...], bool]:
        """What is known of a whole call's storages: their category, their lines, backward."""
        self._bury()
        frames, backward = self._find_frames()
        known = self.find_storages(tensors)
        categories = {one.category for one in known}
        if not backward and not categories.isdisjoint(READING) and self._watch.reads_inputs():
            self._take_inputs(None, known)
        self._call_frames = frames
        return self._watch.name_result(tensors, categories), frames, backward

    def name_node(self) -> None:
        """Keeps the lines of a whole call for its node, which is the last one."""
        self._node_frames[torch._C._autograd._get_sequence_nr() - 1] = self._call_frames

    def _trace_repeated(
        self, operator: Any, call: Call, allocates: bool
    ) -> tuple[str, tuple[Frame, ...], bool]:
        """What ``_take_in`` does, for plain fake tensors; lines only where they are needed."""
        node, taken = _find_node(), call.tensors
        if node is not None:
            frames = self._find_backward_frames(node)
            self.find_storages(taken, collects=call.collects)
            return "activations", frames, True
        # Above are this function, _repeat and __torch_dispatch__.
        needed = allocates or _is_grad_enabled()
        frames = self._find_forward_frames(3) if needed else ()
        if operator is LIFT:
            self._add_new(taken[0], "other", frames)
        known, watch = self.find_storages(taken, collects=call.collects), self._watch
        if watch._depth and len(known) < 2:  # the usual case
            return "activations", frames, False
        categories = {one.category for one in known}
        if "other" in categories and not watch.steps and not categories.isdisjoint(READING):
            self._take_inputs(operator, known)
        return watch.name_forward(taken, categories), frames, False

    def find_storages(self, tensors: list[Any], *, collects: bool = True) -> list[Storage]:
        """The storages of plain fake tensors, which are found at their first use.

        ``collects``: one of them may be a leaf that gets a gradient.
        """
        known, live = [], self._live
        for one in tensors:
            # What _look_at_fake does, without a call for most tensors.
            kept = one.__dict__
            held: StorageReference | None = kept.get(HELD)
            if held is None or live.get(held.key) is not held:
                known.append(self._look_at_fake(one))
                continue
            known.append(held.storage)
            if (
                collects
                and ("_is_param" in kept or one.requires_grad)
                and one.is_leaf
                and not self._watch.is_known(one, held.storage)
            ):
                self._look_at_fake(one)
        return known

    def settle(self) -> None:
        """Counts all that was allocated and freed until now."""
        self._bury()

    def is_updating(self) -> bool:
        """True in an optimizer's step, outside of modules and of backward."""
        return self._watch.is_updating()

    def find_doubts(self) -> tuple[Any, ...]:
        """What an operator may have left open so far."""
        return self.obstacle, self.trouble, self._assumptions.asked

    def _follow_values(
        self, operator: Any, arguments: Any, named: Any, tensors: list[Any], result: Any
    ) -> None:
        facts, known = find_facts(operator), _has_known(tensors)
        if facts.like:
            if known and self._watch.steps:
                known = any(map(may_be_known, tensors))
            if not known:
                # Masks; the states of optimizers are many.
                known = isinstance(result, torch.Tensor) and not result.is_floating_point()
        if not known and tensors and not (facts.followed or facts.lifts):
            return
        number = id(operator)
        if not known and number in SUMS and tensors[0].is_floating_point():
            return
        known = known or number in LIMITED_ALONE
        if number in DRAWN and self._choose_samples(operator, arguments, result):
            return
        if facts.lifts and not _is_fake(tensors[0]):
            self.values.copy(result, tensors[0])
            return
        if not known and (tensors or not is_constant(operator)):
            return
        made, values = list_tensors(result), self.values
        found = find_limits(operator, arguments, named, result, values.find_limits)
        if number in JOINING:
            ends = join_limits(map(values.find_ends, tensors))
            found = [] if ends is None else [(result, ends)]
        limits = {id(fake): one for fake, one in found}
        real: list[Any] = []
        if sum(one.numel() for one in made) <= KNOWN_ELEMENTS:
            real = list_tensors(values.compute(operator, tensors, arguments, named))
            for fake, value in zip(made, real, strict=False):
                values.keep(fake, value, limits.get(id(fake)))
        for fake, one in [] if real else found:
            values.limit(fake, one)

    def _choose_samples(self, operator: Any, arguments: Any, result: Any) -> bool:
        """Keeps numbers that choose samples: which ones a loader draws does not matter.

        An order that the step itself draws is one of two.
        """
        loads = is_loading()
        if not (loads or (id(operator) in SEEDS and result.numel() <= KNOWN_ELEMENTS)):
            return False
        with _disable_current_modes():
            numbers = torch.arange(result.numel())
            if not (loads or self._assumptions.answer):
                numbers = numbers.flip(0)
            numbers = numbers.view(result.shape) % _count_samples(operator, arguments)
        drawn = Limits(0, max(0, result.numel() - 1), drawn=True)
        self.values.keep(result, numbers, None if loads else drawn)
        return True

    def _substitute(self, operator: Any, arguments: Any, named: Any) -> Any:
        """The value or the shape that the operator would have read, known or assumed."""
        tensors = list_tensors(arguments) + list_tensors(named)
        value = self.values.compute(operator, tensors, arguments, named)
        if value is not None:
            fakes = [self._add_like(one, tensors[0]) for one in list_tensors(value)]
            if isinstance(value, torch.Tensor):
                return fakes[0]
            return type(value)(fakes) if isinstance(value, list | tuple) else value
        if operator is READ_VALUE or operator._schema.name in YES_OR_NO:
            return self._answer(operator, arguments[0])
        frames, backward = self._find_frames()
        everything, find = self._assumptions.answer, self.values.find
        made = shape_ctc(operator, arguments, self.values)
        if made is None:
            made = pack_padded(operator, arguments, self.values, longest=everything)
            if made is not None and find(arguments[1]) is None:
                self._assumptions.decide()
        if made is None:
            made = count_values(operator, arguments, named, self.values.find_ends)
        if made is None:
            made = assume_shape(operator, arguments, named, everything=everything, find=find)
            if made is not None and not selects_by_known(operator, arguments, find):
                self._assumptions.decide()
        if made is not None:
            for one in list_tensors(made):
                self._add_new(one, "activations", frames, backward=backward)
            self._count_scratch(
                count_selecting(operator._schema.name[6:], arguments, made), tensors
            )
            if operator is ATEN.nonzero.default and tensors[0].numel() <= KNOWN_ELEMENTS:
                # What is selected is known then: a loop over it, such as of experts, can go on.
                with _disable_current_modes():
                    chosen = torch.full(tensors[0].shape, self._assumptions.answer)
                    self.values.keep(made, chosen.nonzero())
        return made

    def _add_like(self, value: Any, tensor: Any) -> Any:
        fake = torch.empty(value.shape, dtype=value.dtype, device=tensor.device)
        self._add_new(fake, "other", find_user_frames())
        self.values.keep(fake, value)
        return fake

    def _answer(self, operator: Any, tensor: Any) -> Any:
        file, line = _find_reader()
        if file.startswith("optim/lbfgs"):
            self._note_words(CONVERGENCE)
            if tensor.dtype is torch.bool:
                return line.startswith("if ys >")  # the step goes into the history
            self._losses -= 1  # the loss falls with each evaluation
            return self._losses
        for folder, answer in OWN_ANSWERS.items():
            if file.startswith(folder):
                if folder == "amp/":
                    self._note_words(OVERFLOW)
                return answer
        if _checks_anomaly(tensor):
            return False
        if operator is not READ_VALUE or tensor.dtype is torch.bool:
            return self._assumptions.decide()
        limits = None if self.values.reads_unknown else self.values.find_limits(tensor)
        # C++ code reads a number, such as an index.
        return None if limits is None else limits.choose(self._assumptions)

    def _follow_libraries(
        self, operator: Any, arguments: Any, named: Any, result: Any
    ) -> int | None:
        """The bytes that the operator takes for itself and frees; None if they are an obstacle."""
        name = operator._schema.name.partition("::")[2]
        tensors = list_tensors(arguments)
        # What sparse operators take depends on values; their tensors are an obstacle already.
        if not tensors or any(one.layout is not torch.strided for one in tensors):
            return 0
        if tensors[0].device.type == "cuda":
            self._note_libraries(name)
            count = SCRATCH.get(name)
            return round_request(count(arguments)) if count else 0
        if needs_measuring(name, tensors):
            return self._measure_scratch(operator, arguments, named, result)
        return self._count_on_cpu(operator, arguments, tensors, result)

    def _count_on_cpu(
        self, operator: Any, arguments: Any, tensors: list[Any], result: Any
    ) -> int | None:
        """The bytes by the tables of operators; None if the values decide."""
        name = operator._schema.name.partition("::")[2]
        if name in CONVERTING and isinstance(result, torch.Tensor):
            return count_converted(name, tensors[0], result)
        node = torch._C._current_autograd_node()
        if name == "where" and node is not None and node.name().startswith("MaskedFill"):
            self.note_obstacle(EstimateObstacle("masked_fill's backward pass", UNKNOWN_SCRATCH))
            return None
        if name == SCATTERED:
            return count_scattered(arguments, self._count_chosen(arguments[1]))
        count = CPU_SCRATCH.get(name)
        own = count(arguments) if count else 0
        return own + count_promoted(operator, arguments, tensors, result)

    def _count_chosen(self, mask: Any) -> int:
        """How many elements a mask selects, known or assumed."""
        value = self.values.find(mask)
        if value is None:
            return int(mask.numel() * self._assumptions.decide())
        with _disable_current_modes():
            return int(value.sum())

    def _note_libraries(self, name: str) -> None:
        if name in CONVOLUTIONS:
            self._note_words(CONVOLUTION)
        if name in PRODUCTS:
            self.cublas.add(torch._C._current_autograd_node() is not None)

    def _count_scratch(self, freed: int | None, tensors: list[Any]) -> None:
        if freed:
            frames, backward = self._find_frames()
            serial, device = next(self._serials), str(tensors[0].device)
            spent = Storage(serial, freed, device, "activations", frames, backward=backward)
            self._count(spent)
            self._discount(spent)

    def _measure_scratch(
        self, operator: Any, arguments: Any, named: Any, result: Any
    ) -> int | None:
        """What a library takes meanwhile; what it returns gets the measured size."""
        measured = measure_scratch(operator, arguments, named)
        if measured is None:
            self.note_obstacle(EstimateObstacle(str(operator), UNKNOWN_SCRATCH))
            return None
        made = list_tensors(result)
        for one, count in zip(made, measured.result_bytes, strict=False):
            storage = one.untyped_storage()
            if storage.nbytes() < count:
                storage.resize_(count)
        self._resize(made, find_user_frames())
        return measured.freed_bytes

    def _measure(self, tensor: Any) -> int:
        count = super()._measure(tensor)
        return round_request(count) if tensor.device.type == "cuda" else count

    def _look_at(self, tensors: Any) -> Any:
        found = []
        for one in tensors:
            if type(one) is fake_tensor.FakeTensor and one.layout is torch.strided:
                found.append(self._look_at_fake(one))
            else:
                found += self._look_at_other(one)
        return found

    def _look_at_fake(self, tensor: Any) -> Storage:
        """The storage of a plain fake tensor; what ``_look_at`` does, for the usual case."""
        held = self._find_held(tensor)
        storage = self._add(tensor, "other", (), before=True) if held is None else held.storage
        # Most tensors take no gradient, which is faster to ask than whether they are leaves.
        asked = "_is_param" in tensor.__dict__ or (
            tensor.requires_grad and collects_gradients(tensor)
        )
        if asked and tensor.is_leaf:
            self._watch.watch_parameter(tensor, known=storage.category == "parameters")
        return storage

    def _find_held(self, tensor: Any) -> StorageReference | None:
        """The record of a fake tensor's storage, which the tensor keeps; None for a new storage."""
        kept = tensor.__dict__
        held: StorageReference | None = kept.get(HELD)
        # It may be of another tracer.
        if held is None or self._live.get(held.key) is not held:
            held = kept[HELD] = self._live.get(tensor.untyped_storage()._cdata)
        return held

    def _look_at_other(self, tensor: Any) -> Any:
        if tensor.requires_grad and tensor.is_leaf and not all(map(_is_fake, list_parts(tensor))):
            self._guard_parameter(tensor)
        if type(tensor).__name__ == "DTensor":
            self._note_words(SHARDED)
        if tensor.layout not in {torch.strided, torch.jagged}:  # the latter is made of its parts
            self.note_layout(tensor)
        made = self._find_stand_in(tensor)
        return super()._look_at([tensor]) if made is tensor else [self._look_at_fake(made)]

    def _find_stand_in(self, tensor: Any) -> Any:
        """What operators get in the place of a real tensor, whose views have that one's storage."""
        if type(tensor) not in PLAIN or tensor.layout is not torch.strided:
            return tensor
        if not (type(tensor) is torch.nn.Parameter or id(tensor) in self.lasting):
            return tensor  # the step's own, such as one of an array
        made = self._fakes.get(id(tensor))
        if made is None and tensor.device.type == "cpu":
            made = self._fakes[id(tensor)] = tensor, self._mode.from_tensor(tensor)
        return tensor if made is None else made[1]

    def _guard_parameter(self, tensor: Any) -> None:
        """Lets the step read a real parameter, such as a teacher's, and not train it."""
        if id(tensor) in self.copied:
            raise RealTensorError
        if id(tensor) not in self._guarded:
            self._guarded[id(tensor)] = tensor, tensor.register_hook(_refuse_gradient)

    def note_layout(self, tensor: Any) -> None:
        """Keeps the obstacle that a sparse tensor is."""
        self.note_obstacle(
            EstimateObstacle(f"a {tensor.layout} tensor", "has a size that depends on values")
        )

    def find_serial(self, tensor: Any) -> int | None:
        """The number of the tensor's storage, which no other one has; None if it is not traced."""
        held = self._live.get(tensor.untyped_storage()._cdata)
        return None if held is None else held.storage.serial

    def _note_product(self, tensor: Any) -> None:
        if tensor.numel() > FEW:
            self._note_words(PRODUCT)

    def note_obstacle(self, obstacle: EstimateObstacle) -> None:
        """Keeps the first obstacle, with the user's line."""
        if self.obstacle is None:
            frames = find_user_frames()
            self.obstacle = obstacle._replace(frame=frames[0] if frames else None)


@contextlib.contextmanager
def _entered(mode: Any) -> Iterator[None]:
    """Puts the mode back above the operators that its dispatch function calls."""
    TorchDispatchMode.__enter__(mode)
    try:
        yield
    finally:
        TorchDispatchMode.__exit__(mode, None, None, None)


def _run_unseen(operator: Any, *arguments: Any, **named: Any) -> Any:
    """The result of an operator without tensors, which no mode sees."""
    with torch._C._DisableTorchDispatch():
        return operator(*arguments, **named)


@functools.cache
def _is_composite(operator: Any) -> bool:
    """True for an operator that torch makes of others."""
    known = isinstance(operator, torch._ops.OpOverload)
    return known and torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), COMPOSITE)


PLAIN = (torch.Tensor, torch.nn.Parameter)


def _is_fake(tensor: Any) -> bool:
    return isinstance(tensor, fake_tensor.FakeTensor)


def _refuse_gradient(gradient: Any) -> None:
    raise RealTensorError


def _has_known(tensors: list[Any]) -> bool:
    """True if anything is known of the values of one of the tensors."""
    # A generator would take longer than most lists.
    for one in tensors:  # noqa: SIM110
        if "labkit_value" in one.__dict__ or is_real(one):
            return True
    return False


def _writes_in_place(operator: Any, arguments: Any) -> bool:
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
    elif id(operator) in CLAMPING:
        may_write = name.startswith("Clamp")
    else:
        may_write = not name.startswith(OUT_OF_PLACE)
    if not may_write or written.layout is not torch.strided or not is_called_by_engine():
        return False
    storage = written.untyped_storage()
    whole = storage.nbytes() == written.numel() * written.element_size()
    return bool(whole and torch._C._storage_Use_Count(storage._cdata) <= ALONE)


def _reuses_logits(arguments: Any) -> bool:
    """True where LOGITS' backward pass writes into what it has just made."""
    node = torch._C._current_autograd_node()
    if node is None or not node.name().startswith(LOGITS) or torch.is_grad_enabled():
        return False
    written, other = arguments[:2]
    return bool(torch.broadcast_shapes(written.shape, other.shape) == written.shape)


def _change(number: int, operator: Any, arguments: Any) -> Any:
    """What is run for an operator of CHANGED, whose id is ``number``."""
    if not isinstance(arguments[0], torch.Tensor):  # torch.add(0.5, tensor)
        return REPLACED.get(number, operator)
    if number in IN_PLACE and _writes_in_place(operator, arguments):
        return IN_PLACE[number]
    if number in OF_LOGITS and _reuses_logits(arguments):
        return OF_LOGITS[number]
    if operator is ADD and _may_add_bias(arguments):
        return ADD_BIAS
    return REPLACED.get(number, operator)


def _checks_anomaly(tensor: Any) -> bool:
    """True where torch asks whether a gradient has a NaN: the real step would end there."""
    asks = tensor.dtype is torch.bool and torch.is_anomaly_check_nan_enabled()
    return asks and torch._C._current_graph_task_id() != -1 and is_called_by_engine()


def _is_variable(tensor: Any) -> bool:
    """True for a fake tensor whose value torch does not keep as a constant."""
    return type(tensor) is fake_tensor.FakeTensor and tensor.constant is None


YES_OR_NO = ("aten::equal", "aten::is_nonzero", "aten::allclose")


def _may_add_bias(arguments: Any) -> bool:
    product, other = arguments[:2]
    # The other way round it is what forward-mode differentiation adds.
    vector = isinstance(other, torch.Tensor) and product.dim() > other.dim() == 1
    return vector and _find_reader()[0] == "nn/modules/linear.py"


def _find_reader() -> tuple[str, str]:
    """The file of torch, without its folder, and its line that read a value; else ("", "")."""
    running: FrameType | None = sys._getframe(3)
    while running is not None:
        file = running.f_code.co_filename
        if file.startswith(FOLDER):
            path = file.removeprefix(FOLDER)
            if not path.startswith(PASSAGES):
                return path, linecache.getline(file, running.f_lineno).strip()
        elif is_user_file(file):
            break
        running = running.f_back
    return "", ""


def _count_samples(operator: Any, arguments: Any) -> int:
    """From how many samples a loader draws."""
    if operator is ATEN.multinomial.default:
        return int(arguments[0].size(-1))
    numbers = itertools.takewhile(lambda one: isinstance(one, int), arguments)
    return max((1, *numbers)) if id(operator) in SAMPLES else KNOWN_ELEMENTS


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


def _lay_out(norm: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps batch norm so that its result has the CPU's layout, which torch's fake version has not.

    The CPU's result is contiguous, or channels last; the fake one has the strides of the input.
    """

    @functools.wraps(norm)
    def compute(values: Any, *others: Any, **named: Any) -> Any:
        result = norm(values, *others, **named)
        form = suggest_memory_format(values)
        first = result if isinstance(result, torch.Tensor) else result[0]
        if values.device.type != "cpu" or first.is_contiguous(memory_format=form):
            return result
        laid = torch.empty_like(first, memory_format=form)
        return laid if isinstance(result, torch.Tensor) else (laid, *result[1:])

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


LAID_OUT = (
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten._native_batch_norm_legit.default,
    torch.ops.aten._native_batch_norm_legit.no_stats,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
    torch.ops.aten._batch_norm_with_update.default,
    torch.ops.aten._batch_norm_no_update.default,
)
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
# By the operators' ids.
REPLACED: dict[int, Callable[..., Any]] = {
    id(one): make(one)
    for make, operators in (
        (_keep_storage, KEEP_STORAGE),
        (_lay_out, LAID_OUT),
        (_draw_alike, DRAWN_ALIKE),
        (_allow_nothing, LOSSES_BACKWARD),
    )
    for one in operators
}
_COMPUTED: dict[Any, Callable[..., Any]] = {
    ATEN._efficientzerotensor.default: _make_zeros,
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
        REPLACED[id(_operator)] = functools.wraps(_operator)(_compute)
# Operators for which another function may run, or which need a note.
CHANGED = frozenset((*REPLACED, *IN_PLACE, *OF_LOGITS, *PRODUCTS_OF_ALL))
WHOLE = _find_ids(RECURRENT)
# What torch's optimizers note for a profiler: no tensors, but the fake mode takes long for them.
PROFILING = _find_ids(
    getattr(packet, form)
    for name in ("_record_function_enter_new", "_record_function_exit")
    if (packet := getattr(torch.ops.profiler, name, None)) is not None
    for form in packet.overloads()
)
# Those, and others that take a way of their own.
mark_operators(parts=WHOLE | PROFILING, changed=CHANGED, followed=FOLLOWED)


def _make_recorder(observer: Any, mode: FakeMode) -> FakeTracer:
    """The tracer of a whole call's recording."""
    return FakeTracer(observer, mode, Assumptions(answer=True), lambda words: None)


class _AskingTorch(type):
    """Only torch's own code sees that a tensor is fake."""

    def __instancecheck__(cls, instance: Any) -> bool:
        inside = sys._getframe(1).f_code.co_filename.startswith(FOLDER)
        return inside and isinstance(instance, fake_tensor.FakeTensor)


def _is_torchs(file: str) -> bool:
    return file.startswith(FOLDER) and not file.endswith("/storage.py")


def give_addresses() -> contextlib.ExitStack:
    """Gives fake storages an address each, by which libraries find shared tensors, until exit.

    Torch's own code sees that they have none.
    """
    find = torch.UntypedStorage.data_ptr

    def find_storage(storage: Any) -> int:
        if storage.device.type != "meta" or _is_torchs(sys._getframe(1).f_code.co_filename):
            return int(find(storage))
        return int(storage._cdata) << 40  # they do not overlap

    def find_tensor(tensor: Any) -> int:
        if _is_torchs(sys._getframe(1).f_code.co_filename):
            return 0
        start = int(tensor.untyped_storage()._cdata) << 40
        return start + int(tensor.storage_offset()) * int(tensor.element_size())

    stack = replace_in_thread(torch.UntypedStorage, data_ptr=find_storage)
    stack.enter_context(replace_attributes(fake_tensor.FakeTensor, data_ptr=find_tensor))
    return stack


class HiddenFakeTensor(metaclass=_AskingTorch):
    """Stands for torch's FakeTensor while the step runs."""


class RealTensorError(Exception):
    """The step trains a real parameter of another place, or uses one beside its copy."""


class LazyTensorError(Exception):
    """A parameter of a lazy module, which has no size until its module has run."""


class Simulation:
    """Runs code with traced fake tensors on the simulated target.

    ``placement`` is FakeMode's. With ``moves_arguments`` the arguments are on the GPU, wherever
    they are; with ``by_parts`` no call is simulated as a whole.
    """

    def __init__(
        self,
        target: Target,
        assumptions: Assumptions,
        *,
        placement: str,
        moves_arguments: bool = False,
        by_parts: bool = False,
    ) -> None:
        self._target, self._moves_arguments = target, moves_arguments
        self._by_parts = by_parts
        self.allocators: dict[str, CachingAllocator] = {}
        self.assumptions, self.draws = assumptions, Draws(assumptions, self.note)
        self.notes: list[str] = []
        self._samples = Order(lambda: assumptions.steps)
        self.loaders = LiveLoaders(make_iterator, self._samples.watch, self.note)
        self._fake = FakeMode(placement)
        # The CPU has no caching allocator to tell.
        observer = self if target.kind == "cuda" else None
        self.tracer = FakeTracer(observer, self._fake, self.assumptions, self.note)
        self.checkpoints = Checkpoints(self.tracer.values, self.tracer.find_serial)
        self._operators = CudaOperators(lambda: self.tracer.note_obstacle(RNN))
        self._order = BackwardOrder(self._note_order, forward_first=assumptions.answer)
        self.growth_bytes, self.steps = 0, 2
        # Open files and the like that the arguments hold, of which the step gets no copies.
        self.held: list[Any] = []
        # Whether scripted code runs: torch changes how it runs after each of its first two calls.
        self.scripted = False
        # By the id of a function of torch that code may have imported: what replaces it.
        self.replaced: dict[int, Any] = {}

    @property
    def device(self) -> str:
        """The device to judge: the GPU whose tensors need most, else the CPU."""
        levels = self.tracer.levels
        gpus = [name for name in levels if name.startswith("cuda")]
        return max(gpus, key=lambda name: levels[name].peak_bytes) if gpus else "cpu"

    @property
    def workspace_bytes(self) -> int:
        """What cuBLAS keeps for the threads of forward and backward."""
        return len(self.tracer.cublas) * WORKSPACE_BYTES[self._target.is_hopper]

    def allocate(self, storage: Storage) -> None:
        """Passes the storage on to its GPU's allocator."""
        if storage.device.startswith("cuda"):
            allocator = self.allocators.setdefault(storage.device, CachingAllocator())
            allocator.allocate(storage)

    def free(self, storage: Storage) -> None:
        """Frees the storage in its GPU's allocator."""
        if storage.device in self.allocators:
            self.allocators[storage.device].free(storage)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The context in which the step runs; restores torch's state on exit."""
        self.replaced = {
            id(getattr(owner, name)): made
            for owner, names in self.checkpoints.list_functions().items()
            for name, made in names.items()
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(keep_state(self.note))
            stack.enter_context(warnings.catch_warnings())
            for message in HARMLESS:
                warnings.filterwarnings("ignore", message=message)
            # Fake tensors log the traceback of each error that they raise.
            logger = logging.getLogger(fake_tensor.__name__)
            # Backward runs in this thread, for a GPU too: there is no thread for the simulated one.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            for patched in (
                replace_attributes(logger, disabled=True),
                replace_attributes(torch.utils, swap_tensors=_swap_data),
                replace_attributes(torch.nn.Module, _apply=_swap_fakes(torch.nn.Module._apply)),
                replace_attributes(torch.Tensor, __deepcopy__=_copy_tensor),
                replace_attributes(fake_tensor.FakeTensor, data=property(DATA.__get__, _set_data)),
                replace_attributes(torch.Tensor, data=_keep_data(self._fake)),
                # Torch's own constants would be computed on the named device: values.py has them.
                replace_attributes(
                    fake_tensor, init_gpu_context=lambda *_: None, CONSTANT_NUMEL_LIMIT=-1
                ),
                replace_attributes(fake_tensor, run_fallback_kernel=_run_fallback),
                replace_attributes(torch, compile=self._note_compile(torch.compile)),
                replace_attributes(torch.export, export=self._note_export(torch.export.export)),
                replace_attributes(torch.jit.ScriptModule, forward=property(self._note_script)),
                *self._list_values(),
                # transformers asks whether a tensor is fake, to take the path of an export.
                replace_attributes(torch._subclasses, FakeTensor=HiddenFakeTensor),
                # An assertion that holds in the real step does not read a value.
                replace_attributes(torch, _check_tensor_all_with=lambda *_: None),
                replace_attributes(
                    torch.nn.parallel.DistributedDataParallel,
                    __init__=functools.partialmethod(_wrap_module, self),
                    forward=lambda wrapper, *inputs, **named: wrapper.module(*inputs, **named),
                ),
                reverse_products(self.note),
                load_here(self._loads_ahead),
                self.loaders.open(),
                move_tensors(self._fake),
                self._fake.own_tensors(),
            ):
                stack.enter_context(patched)
            if self._target.kind == "cuda":
                stack.enter_context(simulate_calls(self._target, self._find_level))
                stack.enter_context(self._operators)
                stack.enter_context(self._order)
                stack.enter_context(allow_foreach())
            else:
                stack.enter_context(self.tracer.updates.open())
                if not self._by_parts:
                    stack.enter_context(self.tracer.whole)
            stack.callback(lambda: _forget_fakes() if self.tracer.left else None)
            with self._fake, self.tracer, keep_modes():
                yield
            for words in self._samples.describe():
                self.note(words)

    def _list_values(self) -> list[contextlib.AbstractContextManager[Any]]:
        """What answers for values, sizes and checkpoints, which fake tensors do not have."""

        def pad(*_: Any) -> bool:
            self.tracer.note_obstacle(PADDED)
            return False

        values = self.tracer.values
        return [
            self.checkpoints.open(self.note),
            give_addresses(),
            simulate_lazy(),
            replace_attributes(
                fake_tensor.FakeTensor,
                get_nested_int=_count_ragged,
                tolist=make_lister(self.assumptions, values),
            ),
            replace_attributes(torch, _nested_tensor_from_mask_left_aligned=pad),
            allow_unknown_items(self.assumptions, self.note_unknown, values),
            replace_attributes(torch.Tensor, numpy=_answer_numpy(self)),
            replace_attributes(torch.nested, **_refuse_jagged(self._fake.placement)),
            replace_attributes(torch._VF, _pad_packed_sequence=make_unpacking(values)),
            replace_attributes(
                torch.nn.AdaptiveLogSoftmaxWithLoss,
                forward=_assume_cluster(values, self.assumptions),
            ),
        ]

    def copy_fake(
        self, arguments: tuple[Any, ...], take: Callable[[dict[int, Any]], object] | None = None
    ) -> tuple[Any, ...]:
        """Copies of the arguments with fake tensors, which share storages like the real ones.

        ``take`` is called with all copies, by the ids of what they were made of.
        """
        for one in arguments:
            if isinstance(one, torch.nn.Module) and any(map(_is_compiled, one.modules())):
                self.note(COMPILED)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_copy_by(self._make_fake))
            stack.enter_context(copy_iterators(self.loaders))
            stack.enter_context(share_held(self.held))
            for _ in range(MOST_KINDS):
                copies: dict[int, Any] = {}
                try:
                    made = copy.deepcopy(arguments, copies)
                    if take:
                        take(copies)
                    return made
                except (TypeError, RuntimeError, AssertionError, KeyError) as error:
                    if read_obstacle(error) is not None:
                        raise
                    kind = share_uncopied(stack, error)
                    if kind is None:
                        raise CopyError(name_uncopied(arguments, error)) from error
                    if kind:
                        self.note(SHARED_NOTE.format(kind))
        raise CopyError(SHARED_NOTE.format("too much"))

    def _make_fake(self, tensor: Any) -> Any:
        if torch.nn.parameter.is_lazy(tensor):
            raise LazyTensorError(type(tensor).__name__)
        self.tracer.copied[id(tensor)] = tensor
        made = self._replace_tensor(tensor)
        whole = not (made.is_floating_point() or made.is_complex())
        if whole and tensor.device.type == "cpu" and made.numel() <= KNOWN_ELEMENTS:
            self.tracer.values.copy(made, tensor)
        if made.layout not in {torch.strided, torch.jagged}:
            self.tracer.note_layout(made)
            return made
        # It takes memory even if the step does not use it.
        self.tracer.mark(made, "parameters" if isinstance(made, torch.nn.Parameter) else "other")
        return made

    def _replace_tensor(self, tensor: Any) -> Any:
        if tensor.device.type == "cpu" and not self._moves_arguments:
            return self._fake.from_tensor(tensor)
        # Tensors on a GPU or on the meta device are on the target.
        device = self._fake.place(self._fake.gpu)
        made = torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
        )
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad)

    def measure_growth(self, run_step: Callable[[], object]) -> None:
        """Runs the second step and, if it keeps more memory than the first, further ones.

        An optimizer creates its state in the first step, and the second step has everything. If
        only the second keeps more memory, this is not growth; the third step decides. The history
        of L-BFGS fills in several steps.
        """
        before = self.tracer.count_live()
        run_step()
        if self.tracer.count_live() <= before:
            return
        gc.collect()  # objects kept only by reference cycles are not growth
        for _ in range(HISTORY_STEPS if CONVERGENCE in self.notes else 1):
            before = self.tracer.count_live()
            run_step()
            self.steps += 1
            gc.collect()
            self.growth_bytes = max(0, self.tracer.count_live() - before)
            if not self.growth_bytes:
                return

    def note_left(self) -> None:
        """Adds a note with what still holds fake tensors when the step has run."""
        if all(one() is None for one in self.tracer.left):
            return
        gc.collect()  # what only reference cycles hold
        if all(one() is None for one in self.tracer.left):
            return
        fakes = [
            one
            for one in gc.get_objects()
            if type(one) is fake_tensor.FakeTensor and one.fake_mode is self._fake
        ]
        if fakes:
            self.note(LEFT.format(", ".join(name_holders(fakes))))

    def note(self, words: str) -> None:
        """Adds a note, once."""
        if words not in self.notes:
            self.notes.append(words)

    def _find_level(self) -> Level:
        return self.tracer.levels.get(self.device, Level())

    def note_unknown(self, function: str) -> None:
        """Adds a note about a function whose value is unknown, with the user's line."""
        frames = find_user_frames()
        where = f" at {frames[0].where}" if frames else ""
        self.note(
            f"the value of {function}{where} is unknown:"
            " what is printed or decided by it is no result"
        )

    def _note_order(self) -> None:
        self.assumptions.reorders = True

    def _loads_ahead(self) -> bool:
        # For a GPU, what is not moved to it yet does not count.
        return self._target.kind == "cpu" and not self.assumptions.decide(drawn=True)

    def _note_script(self, module: Any) -> Any:
        self.scripted = True
        raise AttributeError(name="forward", obj=module)  # as torch's does: __getattr__ has it

    def _note_export(self, export: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(export)
        def export_and_note(*arguments: Any, **named: Any) -> Any:
            self.note(EXPORTED)
            return export(*arguments, **named)

        return export_and_note

    def _note_compile(self, compile_: Callable[..., Any]) -> Callable[..., Any]:
        def compile_and_note(*arguments: Any, **named: Any) -> Any:
            self.note(COMPILED)
            kept = {name: one for name, one in named.items() if name in {"model", "disable"}}
            return compile_(*arguments, backend="eager", **kept)

        return compile_and_note


RUN_FALLBACK = fake_tensor.run_fallback_kernel


def _run_fallback(mode: Any, operator: Any, arguments: Any, spec: Any, error: Exception) -> Any:
    """Torch runs what it cannot fake on zeros: on the GPU that would start CUDA and take memory."""
    if any(_is_fake(one) and one.fake_device.type == "cuda" for one in arguments):
        raise fake_tensor.UnsupportedOperatorException(operator) from error
    return RUN_FALLBACK(mode, operator, arguments, spec, error)


RAGGED = itertools.count(1 << 40)


def _count_ragged(offsets: Any, *, coeff: int = 1) -> Any:
    """The size of a ragged dimension with these offsets; torch's own is a symbol for a compiler."""
    number = offsets.__dict__.setdefault("labkit_ragged", None)
    if number is None:
        number = offsets.labkit_ragged = next(RAGGED)
    return torch._C._get_nested_int(number, coeff)


def simulate_lazy() -> contextlib.ExitStack:
    """Makes parameters of lazy modules real and empty, and fake when their size is known.

    Torch cannot make an uninitialized parameter of a fake tensor.
    """
    kinds = torch.nn.parameter.UninitializedParameter, torch.nn.parameter.UninitializedBuffer

    def wrap(make: Callable[..., Any]) -> Callable[..., Any]:
        def create(kind: Any, *arguments: Any, device: Any = None, **named: Any) -> Any:
            with _disable_current_modes():
                made = make(kind, *arguments, **named)
            made.labkit_device = device
            return made

        return create

    def materialize(lazy: Any, shape: Any, device: Any = None, dtype: Any = None) -> None:
        device = lazy.labkit_device if device is None else device
        made = torch.empty(shape, device=device, dtype=dtype or lazy.dtype)
        if isinstance(lazy, kinds[0]):
            made = torch.nn.Parameter(made, lazy.requires_grad)
        # Called by a method of the module that has it.
        module = sys._getframe(1).f_locals["self"]
        for names in (module._parameters, module._buffers):
            for name in [name for name, one in names.items() if one is lazy]:
                names[name] = made

    stack = contextlib.ExitStack()
    for kind in kinds:
        made = {"__new__": wrap(kind.__new__), "materialize": materialize}
        stack.enter_context(replace_attributes(kind, **made))
    return stack


LRU_CACHE = type(functools.lru_cache(len))


def _forget_fakes() -> None:
    """Clears the caches of functions that hold fake tensors: a real step would get them.

    transformers keeps tables of positions so, for a model that may have had the same address.
    """
    for one in gc.get_referrers(LRU_CACHE):
        if type(one) is LRU_CACHE and one.cache_info().currsize and _holds_fake(one):
            one.cache_clear()


def _holds_fake(cache: Any) -> bool:
    looked, seen = [cache], {id(cache)}
    while looked:
        for one in gc.get_referents(looked.pop()):
            if _is_fake(one):
                return True
            if id(one) not in seen and type(one).__name__ in CONTAINERS:
                seen.add(id(one))
                looked.append(one)
    return False


# What a cache keeps its results in, or a result is.
CONTAINERS = ("dict", "tuple", "list", "_lru_list_elem")


def _wrap_module(
    wrapper: Any, simulation: Simulation, module: Any, *others: Any, **named: Any
) -> None:
    """For DistributedDataParallel: the module, and buckets of the size of its gradients."""
    torch.nn.Module.__init__(wrapper)
    wrapper.module, wrapper.require_backward_grad_sync = module, True
    simulation.note(DDP)
    if not named.get("gradient_as_bucket_view"):
        trained = [one for one in module.parameters() if one.requires_grad]
        wrapper.gradient_buckets = [torch.empty_like(one) for one in trained]
        for one in wrapper.gradient_buckets:
            simulation.tracer.mark(one, "buckets")


def _refuse_jagged(placement: str) -> dict[str, Callable[..., Any]]:
    """What replaces the makers of jagged tensors where torch would end the process.

    A build without CUDA aborts as it makes one on a GPU.
    """
    if placement != "gpu" or torch.backends.cuda.is_built():
        return {}

    def wrap(make: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*arguments: Any, **named: Any) -> Any:
            if make is from_jagged or named.get("layout") is torch.jagged:
                raise fake_tensor.UnsupportedFakeTensorException(
                    "a jagged one on a GPU, in a build of torch without CUDA"
                )
            return make(*arguments, **named)

        return answer

    from_jagged = torch.nested.nested_tensor_from_jagged
    names = ("nested_tensor", "as_nested_tensor", "nested_tensor_from_jagged")
    return {name: wrap(getattr(torch.nested, name)) for name in names}


def _answer_numpy(simulation: Simulation) -> Callable[..., Any]:
    """``Tensor.numpy``, for fake tensors with known or assumed values."""
    convert, tracer = torch.Tensor.numpy, simulation.tracer
    # Arrays of real tensors: what the step writes into one must not be in the tensor.
    copies: dict[int, tuple[Any, Any]] = {}

    def answer(tensor: Any, *, force: bool = False) -> Any:
        if type(tensor) is not fake_tensor.FakeTensor:
            if not torch._C._len_torch_dispatch_stack():
                return convert(tensor, force=force)
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor, convert(tensor, force=force).copy()
            return copies[id(tensor)][1]
        value = tracer.values.find(tensor)
        if value is None and tensor.numel() * tensor.element_size() > MOST_BYTES:
            raise fake_tensor.DataDependentOutputException(READ_ARRAY)
        limits = tracer.values.find_limits(tensor) if value is None else None
        if limits is not None and not (limits.distinct and tensor.numel() > 1):
            if not limits.drawn:
                simulation.note_unknown(READ_ARRAY)
            return make_array(tensor, limits.choose(simulation.assumptions), force=force)
        if value is None and (tensor.is_floating_point() or tensor.dtype is torch.bool):
            simulation.note_unknown(READ_ARRAY)
            high = simulation.assumptions.decide()
            value = high if tensor.dtype is torch.bool else LARGE if high else -LARGE
        elif value is None:
            value = count_up(tensor.shape, tensor.dtype)
            tracer.note_obstacle(EstimateObstacle(READ_ARRAY, ASSUMED))
        return make_array(tensor, value, force=force)

    return answer


def _assume_cluster(values: KnownValues, assumptions: Assumptions) -> Callable[..., Any]:
    """The adaptive softmax, whose unknown targets are all in its first or all in its last cluster.

    Torch refuses targets that are in several clusters or in none.
    """
    compute = torch.nn.AdaptiveLogSoftmaxWithLoss.forward

    def forward(module: Any, inputs: Any, targets: Any) -> Any:
        if isinstance(targets, fake_tensor.FakeTensor) and values.find(targets) is None:
            place = module.cutoffs[-2] if assumptions.decide() and len(module.cutoffs) > 1 else 0
            with _disable_current_modes():
                values.keep(targets, torch.full(targets.shape, place))
        return compute(module, inputs, targets)

    return forward


# L-BFGS keeps 100 steps by default, and makes up to 20 in each step of the training.
HISTORY_STEPS = 8


def _is_compiled(module: Any) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


# What torch's own errors say.
INTERNAL = ("INTERNAL ASSERT FAILED", "NestedTensorImpl")


def read_obstacle(error: BaseException) -> EstimateObstacle | None:
    """The obstacle that stopped a step on fake tensors; None for the step's own errors."""
    frame = next(iter(list_error_frames(error)), None)
    found = _name_obstacle(error)
    return None if found is None else EstimateObstacle(*found, frame)


def _name_obstacle(error: BaseException) -> tuple[str, str] | None:
    """The operator that torch cannot fake, and why."""
    text = str(error)
    for kind, reason in UNKNOWN.items():
        if isinstance(error, kind):
            return str(getattr(error, "func", "")), reason
    unavailable = re.search(
        r"Could not run '(.+?)' with arguments from the '\w*Meta' backend", text
    )
    missing = re.search(r"(\S+): attempted to run this operator with Meta tensors", text)
    unregistered = re.search(r"no fake impl registered for <CustomOpDef\((.+?)\)>", text)
    found: tuple[str, str] | None = None
    if isinstance(error, fake_tensor.UnsupportedFakeTensorException):
        found = ("a tensor", f"has no fake version ({error})")
    elif unavailable:
        found = (unavailable[1], "has no fake version")
    elif missing:
        found = (missing[1], "has no fake version")
    elif unregistered:
        found = (unregistered[1], "has no fake version")
    elif "UnknownNumber" in text and isinstance(error, TypeError):
        found = ("item()", UNKNOWN[fake_tensor.DataDependentOutputException])
    elif type(error).__name__ == "SafetensorError":
        found = ("safetensors", UNKNOWN[fake_tensor.DataDependentOutputException])
    elif ".numpy() is not supported" in text:
        found = ("numpy()", "reads values, but fake tensors have none")
    # What torch itself cannot do with fake tensors, such as nested ones, is not the step's error.
    elif any(one in text for one in INTERNAL) or _raised_in_simulation(error):
        found = ("an operator", "fails on fake tensors")
    return found


def _raised_in_simulation(error: BaseException) -> bool:
    """True for a failed assertion in torch's code of fake tensors."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename if trace else ""
    return isinstance(error, AssertionError) and file.startswith(f"{FOLDER}_subclasses/")


def refuse_lazy(name: str) -> UsageError:
    """The error for a step whose model has lazy modules that have not run yet."""
    return UsageError(
        f"{name} has a lazy module, whose parameters have no size yet",
        cause="torch cannot make fake tensors of them",
        fix="run the model once on a small batch, then estimate_memory(step, model, ...)",
    )


def refuse_real(name: str, *, inference: bool) -> UsageError:
    """The error for a step that uses a parameter created outside of it."""
    cause = "the real parameter would get fake gradients, and the model would be unusable"
    if inference:
        cause = "the parameter would count twice: the real one, and its fake copy"
    return UsageError(
        f"{name} {'reads' if inference else 'trains'} a parameter that was made outside of it",
        cause=cause,
        fix="estimate_memory(step, model, ...) with the model as an argument, or made inside",
    )


@contextlib.contextmanager
def _copy_by(convert: Callable[[Any], Any]) -> Iterator[None]:
    """Makes ``copy.deepcopy`` replace each tensor by ``convert(tensor)``."""

    def copy_tensor(tensor: Any, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(tensor), convert(tensor))

    # Each of these has its own __deepcopy__.
    with contextlib.ExitStack() as stack:
        for cls in (torch.Tensor, torch.nn.Parameter, torch.nn.UninitializedParameter):
            stack.enter_context(replace_in_thread(cls, __deepcopy__=copy_tensor))
        for owner, copier in (
            (torch.optim.Optimizer, _copy_optimizer),
            (torch.jit.RecursiveScriptModule, _copy_script),
        ):
            stack.enter_context(replace_in_thread(owner, __deepcopy__=copier))
        copiers = copy._deepcopy_dispatch  # type: ignore[attr-defined]
        own = {torch.Generator: _copy_generator, torch.jit.ScriptFunction: lambda one, _: one}
        for kind in own:
            stack.callback(copiers.pop, kind)
        copiers.update(own)
        yield


def _copy_script(module: Any, memo: dict[int, Any]) -> Any:
    """A copy of a scripted, traced or loaded module, whose C++ object would copy real tensors."""
    made = torch.jit._recursive.wrap_cpp_module(_copy_script_object(module._c, memo))
    return memo.setdefault(id(module), made)


def _copy_script_object(source: Any, memo: dict[int, Any]) -> Any:
    made = source.__copy__()
    for kind in (torch._C.ParameterDict, torch._C.BufferDict):
        for name, tensor in kind(source).items():
            made.setattr(name, copy.deepcopy(tensor, memo))
    for name, part in torch._C.ModuleDict(source).items():
        made.setattr(name, _copy_script_object(part, memo))
    return made


def _copy_optimizer(optimizer: Any, memo: dict[int, Any]) -> Any:
    """A deep copy with the attributes that torch's leaves out, such as L-BFGS's parameters."""
    kind: Any = type(optimizer)
    made = memo[id(optimizer)] = kind.__new__(kind)
    made.__setstate__(copy.deepcopy(optimizer.__getstate__(), memo))
    for name, value in vars(optimizer).items():
        # A scheduler puts a function in place of the optimizer's step.
        if name not in vars(made) and not callable(value):
            setattr(made, name, copy.deepcopy(value, memo))
        elif getattr(value, "_wrapped_by_lr_sched", False):
            made.step = _wrap_step(made)
    return made


def _wrap_step(optimizer: Any) -> Callable[..., Any]:
    """The optimizer's step as a scheduler wraps it: it notes that it was called.

    The scheduler's own wrapper would call the step of the optimizer that was copied.
    """
    step, find = type(optimizer).step, weakref.ref(optimizer)

    @functools.wraps(step)
    def run(*arguments: Any, **named: Any) -> Any:
        optimizer = find()
        optimizer._opt_called = True  # type: ignore[union-attr]
        return step(optimizer, *arguments, **named)

    run._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return run


def _copy_generator(generator: Any, memo: dict[int, Any]) -> Any:
    """A copy, which torch's fake mode does not let it make itself."""
    with _disable_current_modes():
        made = memo[id(generator)] = torch.Generator(generator.device)
        made.set_state(generator.get_state())
    return made


COPY_TENSOR = torch.Tensor.__deepcopy__


def _copy_tensor(tensor: Any, memo: dict[int, Any]) -> Any:
    """A deep copy; torch's own refuses fake tensors that are not parameters."""
    if not isinstance(tensor, fake_tensor.FakeTensor) or not tensor.is_leaf:
        return COPY_TENSOR(tensor, memo)
    copied = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    if isinstance(tensor, torch.nn.Parameter):
        copied._is_param = True
    return memo.setdefault(id(tensor), copied)


DATA = torch.Tensor.data


def _set_data(tensor: Any, data: Any) -> None:
    """``tensor.data = data``, which gives the tensor another layout and storage."""
    DATA.__set__(tensor, data)
    forget_layout([tensor])


def _keep_data(mode: FakeMode) -> property:
    """``tensor.data``, which gives other data to the fake tensor in the place of a real one."""

    def put(tensor: Any, data: Any) -> None:
        simulates = _is_fake(data) or torch._C._len_torch_dispatch_stack()
        if not simulates or tensor.device.type == "meta":  # of another thread, or of torch's own
            DATA.__set__(tensor, data)
            return
        _set_data(tensor if _is_fake(tensor) else mode.from_tensor(tensor), data)

    return property(DATA.__get__, put)


def _swap_fakes(apply: Callable[..., Any]) -> Callable[..., Any]:
    """``Module._apply`` that swaps fake parameters, as newer releases than torch 2.6 do.

    Else they would get the moved data, and keep the device that they had.
    """

    @functools.wraps(apply)
    def run(module: Any, *arguments: Any, **named: Any) -> Any:
        known = torch.__future__.get_swap_module_params_on_conversion()
        swaps = known or any(map(_is_fake, module._parameters.values()))
        with replace_attributes(torch.__future__, _swap_module_params_on_conversion=swaps):
            return apply(module, *arguments, **named)

    # Those ask for themselves.
    return apply if "FakeTensor" in apply.__code__.co_names else run


def _swap_data(one: Any, other: Any) -> None:
    """For ``Module.to``: torch's own swap refuses fake parameters."""
    if other.device.type == "meta" != one.device.type:
        torch._C._swap_tensor_impl(one, other)
        one.__dict__, other.__dict__ = other.__dict__, one.__dict__
        return
    one.data = other.data
    one.fake_device = other.fake_device
