"""Follows the operators of a simulated step: their results, scratch memory and what they assume."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Container, Iterator
from typing import Any

import torch
from torch._C import _functorch as functions
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from labkit.memory.balance.read import is_leaf
from labkit.memory.estimate.allocator import round_request
from labkit.memory.estimate.copies import is_fake
from labkit.memory.estimate.cuda import (
    FakeMode,
    find_number,
    hide_device,
    replace_attributes,
)
from labkit.memory.estimate.kernels import refuse_dtype
from labkit.memory.estimate.layouts import lay_out
from labkit.memory.estimate.limits import Limits, find_limits, join_limits
from labkit.memory.estimate.loading import is_loading
from labkit.memory.estimate.measured import (
    CONVOLUTIONS,
    PRODUCTS,
    calls_library,
    measure_scratch,
    needs_measuring,
)
from labkit.memory.estimate.model import EstimateObstacle
from labkit.memory.estimate.obstacles import UNKNOWN, RealTensorError
from labkit.memory.estimate.operators import (
    CONVERTING,
    CPU_SCRATCH,
    SCRATCH,
    TURNING,
    count_converted,
    count_promoted,
    count_turned,
)
from labkit.memory.estimate.replaced import (
    ATEN,
    BORROWED,
    CHANGED,
    DRAWN,
    FEW,
    FOLLOWED,
    LIMITED_ALONE,
    PRODUCTS_OF_ALL,
    REPLACED,
    SAMPLES,
    SEEDS,
    change,
    find_numbers,
    find_reader,
    mark_borrowed,
    writes_in_place,
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
from labkit.memory.estimate.rewritten import RewrittenViews, is_strided
from labkit.memory.estimate.selecting import (
    SCATTERED,
    assume_shape,
    count_distinct,
    count_scattered,
    count_selecting,
    count_true,
    count_values,
    selects_by_known,
)
from labkit.memory.estimate.strides import count_copies, count_cuda_copies, find_name
from labkit.memory.estimate.updates import WholeUpdates
from labkit.memory.estimate.values import (
    KNOWN_ELEMENTS,
    READ_VALUE,
    Assumptions,
    KnownValues,
    is_constant,
    is_real,
    is_view,
    may_be_known,
    pack_padded,
    repeats_known,
    shape_ctc,
)
from labkit.memory.estimate.whole import RECURRENT, WholeCalls, is_called_by_engine
from labkit.memory.track.frames import Frame, find_user_frames
from labkit.memory.track.model import Storage
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
COUNTED = "has at least as many results as its minlength, and more if a value is higher"
CONVERGENCE = "assumes that L-BFGS does not converge: it evaluates as often as it may"
SHARDED = "FSDP2 and DTensor: simulated in one process, whose step may need less"
PRODUCT = "prod: its backward pass is simulated as if a value were zero, which needs more"
UNKNOWN_SCRATCH = "takes scratch memory of unknown size"
CONVOLUTION = (
    "what cuDNN's convolutions take while they run is not included: cuDNN chooses it on the GPU"
)
JOINING = find_numbers((ATEN.cat.default, ATEN.stack.default))
# Sums of numbers that may be any are many, in backward.
SUMS = find_numbers((ATEN.sum.default, ATEN.sum.dim_IntList))
# Categories of arguments beside which others are a model's inputs.
READING = {"parameters", "activations"}
# What runs for LIFT where its result is not repeated.
LIFTING = REPLACED[find_number(LIFT)]
# A name of this module is found faster than torch's.
_find_node, _is_inference = torch._C._current_autograd_node, torch.is_inference_mode_enabled
_is_grad_enabled = torch.is_grad_enabled
DEVICE = torch.ops.prim.device.default
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# What runs an operator of functions, such as attention with a function of scores, uncompiled.
EAGER = torch._C.DispatchKey.CompositeExplicitAutograd
NOTED = PRODUCTS | set(CONVOLUTIONS)


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
        self.cublas: set[object] = set()
        self._assumptions, self._note_words = assumptions, note
        self._losses = 0.0
        self.whole = WholeCalls(self, mode, _make_recorder)
        self.updates = WholeUpdates(self, mode)
        self._call_frames: tuple[Frame, ...] = ()
        # By their numbers: the tensors of which the step has copies, and others that it reads.
        self.copied: dict[int, Any] = {}
        self._guarded: dict[int, tuple[Any, Any]] = {}
        # The numbers of real tensors that were there before the step, as far as they are known, and
        # the fake ones in their places, which torch itself only remembers weakly.
        self.lasting: Container[int] = ()
        self._fakes: dict[int, tuple[Any, Any]] = {}
        # Those of the step's own real tensors, as long as each exists.
        self._own = WeakTensorKeyDictionary()
        self._drop = self._dead.append
        # Once the step has written into a view.
        self._rewritten: RewrittenViews | None = None

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

    def __torch_dispatch__(  # noqa: PLR0911, PLR0912  # each call would cost time
        self,
        operator: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        """Traces the operator; returns a substitute for a value that torch's own code reads."""
        if operator is DEVICE:
            return hide_device(arguments[0])
        rewritten = self._rewritten
        if rewritten is not None and rewritten.follows:
            return rewritten.run(self, operator, types, arguments, named)
        named = named or {}
        if self.whole.pending is not None:
            met = self.whole.meet(operator, arguments, writes_in_place)
            if met is not NotImplemented:
                return met
        run = operator
        facts: Facts = operator.__dict__.get(FACTS) or find_facts(operator)
        if facts.parts or _is_inference():
            run_parts = self._find_parts(operator)
            if run_parts is not None:
                with _entered(self):
                    return run_parts(*arguments, **named)
        if facts.mutates and _is_grad_enabled() and _is_view(arguments[0]):
            self._rewritten = self._rewritten or RewrittenViews()
            self._rewritten.write(arguments[0])
        if facts.changed:
            number = find_number(operator)
            if number in PRODUCTS_OF_ALL and arguments[0].requires_grad:
                self._note_product(arguments[0])
            run = change(number, operator, arguments)
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
        if known and facts.subset and not call.valued:
            self.values.hand_on(call.tensors[0], result)
        elif known or facts.like or facts.lifts or facts.followed or not call.tensors:
            self._follow_values(operator, arguments, named, call.tensors, result)
        return result

    def count_freed(self, freed: int, tensors: list[Any]) -> None:
        """Counts what is freed again before anything else is allocated."""
        self._count_scratch(freed, tensors)

    def enter_again(self) -> contextlib.AbstractContextManager[None]:
        """Has operators that this one's dispatch calls come back to it."""
        return _entered(self)

    def _note_draw(self, tensor: Any) -> None:
        """Has the step simulated both ways where it reads a number of a drawn order."""
        limits = self.values.find_limits(tensor)
        if limits is not None and limits.drawn:
            self._assumptions.decide(drawn=True)

    def _find_parts(self, operator: Any) -> Callable[..., Any] | None:
        """What runs the operator by its parts, which in inference mode comes here whole."""
        if find_number(operator) in PROFILING:
            return functools.partial(_run_unseen, operator)
        if find_number(operator) in WHOLE and self._mode.placement == "cpu":
            return functools.partial(self.whole.call, operator)
        if isinstance(operator, torch._ops.HigherOrderOperator):
            kernel = operator.py_kernels.get(EAGER)
            return None if kernel is None else functools.partial(_run_eagerly, kernel)
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
        if self._mode.placement == "cpu":
            refuse_dtype(operator, arguments, named, taken)
        before = [] if call.key is None else measure(taken)
        if run is operator:
            run = lay_out(operator)
        try:
            result = super().__torch_dispatch__(run, types, arguments, named)
        except tuple(UNKNOWN):
            result = self._substitute(operator, arguments, named)
            if result is None:
                raise
            find = self.values.find_limits, self.values.find_ends
            for fake, one in find_limits(operator, arguments, named, result, *find):
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
            keep_recipe(call, result, before, freed, named.get("out"))
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
        watch = self._watch
        if operator is LIFT:  # its result is the new storage
            return watch.name_forward(taken, ("other",)), frames, False
        known = self.find_storages(taken, collects=call.collects)
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
                and is_leaf(one)
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
        doubts = self._assumptions
        return self.obstacle, self.trouble, doubts.asked, doubts.copied.total()

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
        number = find_number(operator)
        if not known and number in SUMS and tensors[0].is_floating_point():
            return
        known = known or number in LIMITED_ALONE
        if number in DRAWN and self._choose_samples(operator, arguments, result):
            return
        if facts.lifts and not is_fake(tensors[0]):
            self.values.copy(result, tensors[0])
            return
        if not known and (tensors or not is_constant(operator)):
            return
        made, values = list_tensors(result), self.values
        find = values.find_limits, values.find_ends
        found = find_limits(operator, arguments, named, result, *find)
        if number in JOINING:
            joined = join_limits(map(values.find_ends, tensors))
            found = [] if joined is None else [(result, joined)]
        real: list[Any] = []
        few = sum([one.numel() for one in made]) <= KNOWN_ELEMENTS
        # A view of what is known has no elements of its own.
        if few or is_view(operator) or (not facts.like and any(map(repeats_known, tensors))):
            real = list_tensors(values.compute(operator, tensors, arguments, named))
            for fake, value in zip(made, real, strict=False):
                ends = next((one for each, one in found if each is fake), None)
                values.keep(fake, value, ends)
        for fake, one in [] if real else found:
            values.limit(fake, one)

    def _choose_samples(self, operator: Any, arguments: Any, result: Any) -> bool:
        """Keeps numbers that choose samples: which ones a loader draws does not matter.

        An order that the step itself draws is one of two.
        """
        loads = is_loading()
        if not (loads or (find_number(operator) in SEEDS and result.numel() <= KNOWN_ELEMENTS)):
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
            self._count_scratch(count_selecting(find_name(operator), arguments, fakes), tensors)
            if isinstance(value, torch.Tensor):
                return fakes[0]
            return type(value)(fakes) if isinstance(value, list | tuple) else value
        if operator is READ_VALUE or operator._schema.name in YES_OR_NO:
            return self._answer(operator, arguments[0])
        frames, backward = self._find_frames()
        everything, find = self._assumptions.selects, self.values.find
        made = shape_ctc(operator, arguments, self.values)
        if made is None:
            made = pack_padded(operator, arguments, self.values, longest=everything)
            if made is not None and find(arguments[1]) is None:
                self._assumptions.decide(counts=True)
        if made is None:
            made = count_values(operator, arguments, named, self._count_up_to)
        if made is None:
            made = assume_shape(
                operator, arguments, named, count=self._make_count(operator, tensors[0]), find=find
            )
            if made is not None and not selects_by_known(operator, arguments, find):
                self._assumptions.choose(made)
        if made is not None:
            for one in list_tensors(made):
                self._add_new(one, "activations", frames, backward=backward)
            self._count_scratch(count_selecting(find_name(operator), arguments, made), tensors)
            if operator is ATEN.nonzero.default and tensors[0].numel() <= KNOWN_ELEMENTS:
                # What is selected is known then: a loop over it, such as of experts, can go on.
                with _disable_current_modes():
                    self.values.keep(made, self._assumptions.fill(tensors[0].shape).nonzero())
            if find_name(operator) == "_unique2":
                self._keep_distinct(tensors[0], made[0])
        return made

    def _count_up_to(self, values: Any, least: int) -> int | None:
        """How many different numbers there are from 0 to the highest value, or None."""
        limits = self.values.find_ends(values)
        if limits is not None:
            within = limits.high < least or not values.numel()
            return least if within else max(least, int(limits.choose(self._assumptions)) + 1)
        if not least:
            return None
        self.note_obstacle(EstimateObstacle("bincount", COUNTED))
        return least

    def _make_count(self, operator: Any, tensor: Any) -> Callable[[torch.Size], int]:
        """What counts the elements that an operator selects, of different ones all that can be."""
        count = self._assumptions.count_chosen
        limits = self.values.find_limits(tensor) if find_name(operator) == "_unique2" else None
        most = count_distinct(tensor, limits)
        return count if most is None else lambda shape: min(count(shape), most)

    def _keep_distinct(self, tensor: Any, made: Any) -> None:
        """Keeps the lowest of the different whole numbers that there can be."""
        limits = self.values.find_limits(tensor)
        if limits is not None and count_distinct(tensor, limits) and made.numel() <= KNOWN_ELEMENTS:
            with _disable_current_modes():
                numbers = torch.arange(made.numel()) + int(limits.low)
                self.values.keep(made, numbers.to(made.dtype))

    def _add_like(self, value: Any, tensor: Any) -> Any:
        fake = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=tensor.device
        )
        if isinstance(value, torch.Tensor) and tensor.device.type == "cpu":
            # Of the place for all values, `unique_consecutive` returns what it has filled.
            fake.untyped_storage().resize_(value.untyped_storage().nbytes())
        self._add_new(fake, "other", find_user_frames())
        self.values.keep(fake, value)
        return fake

    def _answer(self, operator: Any, tensor: Any) -> Any:
        file, line = find_reader()
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
        name = find_name(operator)
        tensors = list_tensors(arguments)
        # What sparse operators take depends on values; their tensors are an obstacle already.
        if not tensors or any(one.layout is not torch.strided for one in tensors):
            return 0
        if name == SCATTERED:
            gradient, mask = arguments[:2]
            repeats = gradient.numel() // max(1, mask.numel())
            return count_scattered(arguments, self._count_chosen(mask) * repeats)
        if tensors[0].device.type == "cuda":
            self._note_libraries(name)
            count = SCRATCH.get(name)
            copied, doubtful = count_cuda_copies(operator, arguments, tensors)
            own = copied + count(arguments) if count else copied
            return self._doubt_copies(operator, tensors, round_request(own), doubtful)
        if needs_measuring(operator, tensors):
            return self._measure_scratch(operator, arguments, named, result)
        return self._count_on_cpu(operator, arguments, tensors, result)

    def _count_on_cpu(
        self, operator: Any, arguments: Any, tensors: list[Any], result: Any
    ) -> int | None:
        """The bytes by the tables of operators; None if the values decide."""
        name = find_name(operator)
        if name in CONVERTING and isinstance(result, torch.Tensor):
            return count_converted(name, tensors[0], result)
        node = torch._C._current_autograd_node()
        if name == "where" and node is not None and node.name().startswith("MaskedFill"):
            self.note_obstacle(EstimateObstacle("masked_fill's backward pass", UNKNOWN_SCRATCH))
            return None
        if name in TURNING:
            return count_turned(name, arguments, result)
        count = CPU_SCRATCH.get(name)
        own = count(arguments) if count else 0
        return own + count_promoted(operator, arguments, tensors, result)

    def _count_chosen(self, mask: Any) -> int:
        """How many elements a mask selects, known or assumed."""
        value = self.values.find(mask)
        if value is None:
            self._assumptions.choose()
            return self._assumptions.count_chosen(mask.shape)
        return count_true(value, value.shape)

    def _note_libraries(self, name: str) -> None:
        if name in CONVOLUTIONS:
            self._note_words(CONVOLUTION)
        if name in PRODUCTS:
            self.cublas.add(self._name_workspace(torch._C._current_autograd_node() is not None))

    def _name_workspace(self, backward: bool) -> object:
        """What has the place of the thread that uses cuBLAS now."""
        return backward

    def follow_others(self, follows_this: Callable[[], bool]) -> None:
        """Follows the modules and optimizers of other threads, where ``follows_this()``."""
        self._watch.follows_this = follows_this

    def is_alone(self) -> bool:
        """True in the step's thread, if it has no other one."""
        return threading.get_ident() == self._thread

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
        measured = measure_scratch(operator, arguments, named, result)
        tensors = list_tensors(arguments)
        if measured is None and not calls_library(operator, tensors):
            own = self._count_on_cpu(operator, arguments, tensors, result)
            return self._doubt_copies(operator, tensors, own, count_copies(tensors))
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

    def _doubt_copies(
        self, operator: Any, tensors: list[Any], own: int | None, copied: int
    ) -> int | None:
        """Counts copies of what is not contiguous one way, and none the other way.

        None, so that no call repeats this one, where the answer matters.
        """
        if own is None or not copied:
            return own
        if self._assumptions.copies(find_name(operator)):
            own += copied
        self._count_scratch(own, tensors)
        return None

    def follow_size(self, source: Any) -> None:
        """Counts the size that a call of its own, and no operator, has given to a storage."""
        self._bury()
        held = self._live.get(source._cdata)
        if held is not None:
            count = int(source.nbytes())
            on_cuda = held.storage.device.startswith("cuda")
            self._recount(held, round_request(count) if on_cuda else count, find_user_frames())

    def _measure(self, tensor: Any) -> int:
        if hasattr(tensor.untyped_storage(), BORROWED):
            return 0
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
        if asked and is_leaf(tensor):
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
        if tensor.requires_grad and is_leaf(tensor) and not all(map(is_fake, list_parts(tensor))):
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
        if not (type(tensor) is torch.nn.Parameter or find_number(tensor) in self.lasting):
            return self._find_own(tensor)
        made = self._fakes.get(find_number(tensor))
        if made is None and tensor.device.type == "cpu":
            made = self._fakes[find_number(tensor)] = tensor, self._mode.from_tensor(tensor)
        return tensor if made is None else made[1]

    def _find_own(self, tensor: Any) -> Any:
        """The same for a real tensor of the step's own, such as one of an array."""
        wrapped = functions.is_functorch_wrapped_tensor(tensor)
        if tensor.device.type != "cpu" or is_fake(tensor) or wrapped:
            return tensor
        made = self._own.get(tensor)
        if made is None:
            made = self._own[tensor] = mark_borrowed(tensor, self._mode.from_tensor(tensor))
        return made

    def _take_in(
        self, operator: Any, arguments: tuple[Any, ...], taken: list[Any]
    ) -> tuple[str, tuple[Frame, ...], bool]:
        if operator is not LIFTING:
            return super()._take_in(operator, arguments, taken)
        # Its result is in the place of the real tensor.
        self._bury()
        frames, backward = self._find_frames()
        return self._watch.name_result(taken, ("other",)), frames, backward

    def _guard_parameter(self, tensor: Any) -> None:
        """Lets the step read a real parameter, such as a teacher's, and not train it."""
        if find_number(tensor) in self.copied:
            raise RealTensorError(find_number(tensor), True)
        if find_number(tensor) not in self._guarded:
            refuse = functools.partial(_refuse_gradient, find_number(tensor))
            self._guarded[find_number(tensor)] = tensor, tensor.register_hook(refuse)

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
        """Keeps the first obstacle, with the user's line that runs if it has none."""
        if self.obstacle is None:
            frames = find_user_frames()
            self.obstacle = obstacle._replace(
                frame=obstacle.frame or (frames[0] if frames else None)
            )


@contextlib.contextmanager
def _entered(mode: Any) -> Iterator[None]:
    """Puts the mode back above the operators that its dispatch function calls."""
    TorchDispatchMode.__enter__(mode)
    try:
        yield
    finally:
        TorchDispatchMode.__exit__(mode, None, None, None)


def _run_eagerly(kernel: Any, *arguments: Any, **named: Any) -> Any:
    """What an operator of functions does uncompiled; some refuse to be called under a mode."""
    asked = "_get_current_dispatch_mode"
    with contextlib.ExitStack() as stack:
        if asked in kernel.__globals__:
            module = sys.modules[kernel.__module__]
            stack.enter_context(replace_attributes(module, **{asked: lambda: None}))
        return kernel(*arguments, **named)


def _is_view(value: Any) -> bool:
    return is_strided(value) and value._is_view()  # type: ignore[no-any-return]


def _run_unseen(operator: Any, *arguments: Any, **named: Any) -> Any:
    """The result of an operator without tensors, which no mode sees."""
    with torch._C._DisableTorchDispatch():
        return operator(*arguments, **named)


@functools.cache
def _is_composite(operator: Any) -> bool:
    """True for an operator that torch makes of others."""
    known = isinstance(operator, torch._ops.OpOverload)
    return known and torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), COMPOSITE)


class _DispatchEntry:
    """What torch's registry has of an operator, with a way to its rules that is fast."""

    __slots__ = ("_entry", "torch_dispatch_rules")

    def __init__(self, entry: Any) -> None:
        self._entry = entry
        self.torch_dispatch_rules: Any = _DispatchRules(entry.torch_dispatch_rules)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entry, name)


class _DispatchRules:
    __slots__ = ("_rules", "find")

    def __init__(self, rules: Any) -> None:
        self._rules, self.find = rules, rules._data.get

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rules, name)


class _DispatchEntries(dict[str, Any]):
    """The registry's entries, by the operators' names."""

    def __missing__(self, name: str) -> _DispatchEntry:
        made = self[name] = _DispatchEntry(_find_entry(REGISTRY, name))
        return made


REGISTRY: Any = torch._library.simple_registry.singleton
_find_entry = type(REGISTRY).find
_entries = _DispatchEntries()


def hasten_dispatch() -> contextlib.AbstractContextManager[Any]:
    """Has torch's registry find rules for a mode without two calls of Python's, until exit.

    C++ asks it for each operator, and each time that it asks for a fake tensor's device.
    """
    if not hasattr(torch._library.simple_registry, "find_torch_dispatch_rule"):
        return contextlib.nullcontext()
    return replace_attributes(REGISTRY, find=_entries.__getitem__)


PLAIN = (torch.Tensor, torch.nn.Parameter)


def _refuse_gradient(number: int, gradient: Any) -> None:
    raise RealTensorError(number, False)


def _has_known(tensors: list[Any]) -> bool:
    """True if anything is known of the values of one of the tensors."""
    # A generator would take longer than most lists.
    for one in tensors:  # noqa: SIM110
        if "labkit_value" in one.__dict__ or is_real(one):
            return True
    return False


def _checks_anomaly(tensor: Any) -> bool:
    """True where torch asks whether a gradient has a NaN: the real step would end there."""
    asks = tensor.dtype is torch.bool and torch.is_anomaly_check_nan_enabled()
    return asks and torch._C._current_graph_task_id() != -1 and is_called_by_engine()


def _is_variable(tensor: Any) -> bool:
    """True for a fake tensor whose value torch does not keep as a constant."""
    return type(tensor) is fake_tensor.FakeTensor and tensor.constant is None


YES_OR_NO = ("aten::equal", "aten::is_nonzero", "aten::allclose")


def _count_samples(operator: Any, arguments: Any) -> int:
    """From how many samples a loader draws."""
    if operator is ATEN.multinomial.default:
        return int(arguments[0].size(-1))
    numbers = itertools.takewhile(lambda one: isinstance(one, int), arguments)
    return max((1, *numbers)) if find_number(operator) in SAMPLES else KNOWN_ELEMENTS


WHOLE = find_numbers(RECURRENT)
# What torch's optimizers note for a profiler: no tensors, but the fake mode takes long for them.
PROFILING = find_numbers(
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
