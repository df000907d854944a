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
import logging
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import _disable_current_modes

from labkit.memory.estimate.allocator import CachingAllocator
from labkit.memory.estimate.copies import (
    DATA,
    copy_by,
    copy_tensor,
    follow_subclasses,
    give_class,
    is_fake,
    make_plain,
    set_data,
    swap_data,
    swap_fakes,
)
from labkit.memory.estimate.cuda import (
    WORKSPACE_BYTES,
    FakeMode,
    find_number,
    move_tensors,
    replace_attributes,
    replace_in_thread,
    simulate_calls,
)
from labkit.memory.estimate.draws import Draws
from labkit.memory.estimate.imports import IMPORTS
from labkit.memory.estimate.iterators import CopyError, LiveLoaders, copy_iterators, name_uncopied
from labkit.memory.estimate.loading import Order, load_here, make_iterator
from labkit.memory.estimate.measured import MOST_BYTES
from labkit.memory.estimate.model import EstimateObstacle, Target
from labkit.memory.estimate.objects import name_holders
from labkit.memory.estimate.obstacles import FOLDER, LazyTensorError, read_obstacle
from labkit.memory.estimate.operators import (
    BackwardOrder,
    CudaOperators,
    allow_foreach,
    reverse_products,
)
from labkit.memory.estimate.raw import hold_memory
from labkit.memory.estimate.results import borrow_attributes
from labkit.memory.estimate.saved import Checkpoints
from labkit.memory.estimate.state import keep_modes, keep_state
from labkit.memory.estimate.threads import PlayedThreads
from labkit.memory.estimate.tracer import (
    CONVERGENCE,
    PLAIN,
    UNKNOWN_SCRATCH,
    FakeTracer,
    hasten_dispatch,
)
from labkit.memory.estimate.uncopied import MOST_KINDS, SHARED_NOTE, share_held, share_uncopied
from labkit.memory.estimate.values import (
    KNOWN_ELEMENTS,
    Assumptions,
    KnownValues,
    allow_unknown_items,
    count_up,
    make_array,
    make_lister,
    make_unpacking,
)
from labkit.memory.track.frames import find_user_frames
from labkit.memory.track.model import Level, Storage

DDP = "DistributedDataParallel is simulated as its module and its gradient buckets, in one process"
LEFT = "fake tensors of the simulation are left in {}: a real step that reads them fails"
COMPILED = "torch.compile: simulated without the compiler, which often needs less"
EXPORTED = (
    "torch.export: what it makes to trace the model counts too, which the real one often drops"
)
# What is assumed of unknown numbers that an array is to hold: they are below, or above.
LARGE = 1e4
READ_ARRAY, ASSUMED = "numpy()", "reads whole numbers, which are assumed: they may decide sizes"
RNN = EstimateObstacle("cuDNN's recurrent network", UNKNOWN_SCRATCH)
PADDED = EstimateObstacle(
    "nn.TransformerEncoder's nested tensor", "is simulated as a padded one: it needs more copies"
)
# Warnings that come from the simulation, not from the user's code.
HARMLESS = (
    "Accessing the data pointer of FakeTensor",
    "Using `torch.compile.module.` when there",
    "PyTorch was compiled without cuDNN",
    "Warning only once for all operators,  other operators may also be overridden",
    # A scheduler from outside of the step has the real optimizer, whose step is not simulated.
    "Detected call of `lr_scheduler.step",
    # Python 3.12 counts the thread that looks at the step, too.
    r"This process \(pid=\d+\) is multi-threaded, use of fork",
)


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

    stack = contextlib.ExitStack()
    stack.enter_context(replace_in_thread(torch.UntypedStorage, data_ptr=find_storage))
    stack.enter_context(replace_attributes(fake_tensor.FakeTensor, data_ptr=find_tensor))
    return stack


class HiddenFakeTensor(metaclass=_AskingTorch):
    """Stands for torch's FakeTensor while the step runs."""


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
        self.target, self._moves_arguments = target, moves_arguments
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
        self._played = PlayedThreads(self.tracer, self._fake)
        self.checkpoints.threads.player, self.draws.is_played = self._played, self._played.is_here
        self._operators = CudaOperators(lambda: self.tracer.note_obstacle(RNN))
        self._order = BackwardOrder(self._note_order, forward_first=assumptions.answer)
        self.growth_bytes, self.steps = 0, 2
        # What is called before each simulated step.
        self.begin_step: Callable[[], object] = lambda: None
        # What torch makes for a module's own backward hooks, at each call.
        self._hooks: list[weakref.ref[Any]] = []
        # Open files and the like that the arguments hold, of which the step gets no copies.
        self.held: list[Any] = []
        # What the step has for a lock of its arguments.
        self.find_lock: Callable[[Any], Any] = lambda one: one
        # Whether scripted code runs: torch changes how it runs after each of its first two calls.
        self.scripted = False
        # By the number of a function of torch that code may have imported: what replaces it.
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
        return len(self.tracer.cublas) * WORKSPACE_BYTES[self.target.is_hopper]

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
            find_number(getattr(owner, name)): made
            for owner, names in self.checkpoints.list_functions().items()
            for name, made in names.items()
        }
        with contextlib.ExitStack() as stack:
            stack.enter_context(IMPORTS.hold(self._played.is_here, self.checkpoints.has_written))
            stack.enter_context(keep_state(self.note))
            stack.enter_context(borrow_attributes())
            stack.enter_context(warnings.catch_warnings())
            for message in HARMLESS:
                warnings.filterwarnings("ignore", message=message)
            # Fake tensors log the traceback of each error that they raise.
            logger = logging.getLogger(fake_tensor.__name__)
            # Backward runs in this thread, for a GPU too: there is no thread for the simulated one.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            for patched in (replace_attributes(logger, disabled=True), *self._list_patches()):
                stack.enter_context(patched)
            if self.target.kind == "cuda":
                stack.enter_context(simulate_calls(self.target, self._find_level))
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

    @contextlib.contextmanager
    def hold_threads(self) -> Iterator[None]:
        """Waits, on exit, for the threads that the step has started; raises what has ended one."""
        fails_itself = True
        try:
            yield
        except BaseException as error:
            # An error of the step's own follows from what has ended a thread of it.
            fails_itself = isinstance(error, Exception)
            raise
        finally:
            self.checkpoints.threads.leave(self.note, self.tracer.note_obstacle)
            if fails_itself:
                self._played.raise_failure()

    def _list_patches(self) -> list[contextlib.AbstractContextManager[Any]]:
        """What of torch and transformers is replaced while the step runs, in this order."""
        return [
            replace_attributes(torch.utils, swap_tensors=swap_data),
            replace_attributes(torch.nn.Module, _apply=swap_fakes(torch.nn.Module._apply)),
            replace_attributes(torch.Tensor, __deepcopy__=copy_tensor),
            follow_subclasses(),
            replace_attributes(fake_tensor.FakeTensor, data=property(DATA.__get__, set_data)),
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
            self._played.refuse_others(self.checkpoints.is_step),
            hasten_dispatch(),
        ]

    def _list_values(self) -> list[contextlib.AbstractContextManager[Any]]:
        """What answers for values, sizes and checkpoints, which fake tensors do not have."""

        def pad(*_: Any) -> bool:
            self.tracer.note_obstacle(PADDED)
            return False

        values = self.tracer.values
        return [
            self.checkpoints.open(self.note),
            give_addresses(),
            hold_memory(self.tracer.note_obstacle, self.tracer.follow_size),
            simulate_lazy(),
            replace_attributes(
                fake_tensor.FakeTensor,
                get_nested_int=_count_ragged,
                tolist=make_lister(self.assumptions, values),
            ),
            replace_attributes(torch, _nested_tensor_from_mask_left_aligned=pad),
            allow_unknown_items(self.assumptions, self.note_unknown, values),
            replace_attributes(torch.Tensor, numpy=_answer_numpy(self)),
            replace_attributes(torch.utils.hooks.BackwardHook, __init__=self._follow_hooks()),
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
            stack.enter_context(copy_by(self._make_fake))
            stack.enter_context(copy_iterators(self.loaders))
            stack.enter_context(share_held(self.held, self.find_lock))
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
        self.tracer.copied[find_number(tensor)] = tensor
        given, tensor = tensor, make_plain(tensor)
        made = self._replace_tensor(tensor)
        if type(given) not in PLAIN and type(made) is fake_tensor.FakeTensor:
            give_class(made, type(given), vars(given))
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
        self._cut_graphs()
        fakes = self._list_left()
        names = name_holders(fakes) if fakes else []
        if names:
            self.note(LEFT.format(", ".join(names)))

    def _cut_graphs(self) -> None:
        """Frees what only the graphs of fake tensors hold, by what their hooks keep.

        A module that keeps what its own hook gets is held by the graph of that, into which the
        garbage collector does not see.
        """
        for one in self._list_left():
            with contextlib.suppress(RuntimeError):  # a view
                one.detach_()
        for find in self._hooks:
            hook = find()
            if hook is not None:
                hook.user_hooks, hook.user_pre_hooks, hook.module = [], [], None
        gc.collect()

    def _follow_hooks(self) -> Callable[..., None]:
        begin = torch.utils.hooks.BackwardHook.__init__

        @functools.wraps(begin)
        def answer(one: Any, *given: Any) -> None:
            self._hooks.append(weakref.ref(one))
            begin(one, *given)

        return answer

    def _list_left(self) -> list[Any]:
        return [
            one
            for one in gc.get_objects()
            if type(one) is fake_tensor.FakeTensor and one.fake_mode is self._fake
        ]

    def note(self, words: str) -> None:
        """Adds a note, once."""
        if words not in self.notes:
            self.notes.append(words)

    def _find_level(self) -> Level:
        return self.tracer.levels.get(self.device, Level())

    def note_unknown(self, function: str) -> None:
        """Adds a note about a function whose value is unknown, with the user's line.

        C calls ``float()``, and torch ``item()``, for what the line itself calls otherwise.
        """
        frames = find_user_frames()
        is_named = frames and function.removesuffix(")") in frames[0].source
        shown = function if is_named else "a tensor"
        where = f" at {frames[0].where}" if frames else ""
        self.note(
            f"the value of {shown}{where} is unknown: what is printed or decided by it is no result"
        )

    def _note_order(self) -> None:
        self.assumptions.reorders = True

    def _loads_ahead(self) -> bool:
        # For a GPU, what is not moved to it yet does not count.
        return self.target.kind == "cpu" and self.assumptions.loads_ahead()

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
    if any(is_fake(one) and one.fake_device.type == "cuda" for one in arguments):
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
    left, seen = [cache], {find_number(cache)}
    while left:
        for one in gc.get_referents(left.pop()):
            kind = type(one)
            if kind.__name__ in CONTAINERS:
                if find_number(one) not in seen:
                    seen.add(find_number(one))
                    left.append(one)
            elif issubclass(kind, fake_tensor.FakeTensor):
                return True
    return False


# What a cache keeps its results in, or a result is.
CONTAINERS = frozenset(("dict", "tuple", "list", "_lru_list_elem"))


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


def _keep_data(mode: FakeMode) -> property:
    """``tensor.data``, which gives other data to the fake tensor in the place of a real one."""

    def put(tensor: Any, data: Any) -> None:
        simulates = is_fake(data) or torch._C._len_torch_dispatch_stack()
        if not simulates or tensor.device.type == "meta":  # of another thread, or of torch's own
            DATA.__set__(tensor, data)
            return
        set_data(tensor if is_fake(tensor) else mode.from_tensor(tensor), data)

    return property(DATA.__get__, put)
