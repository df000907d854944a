"""Traces every storage of tensors while a block runs: its bytes, its category, and its line.

``StorageTracer`` is a context manager around the code of one thread. It sees each operator of
torch, on real tensors of any device and, inside a ``FakeTensorMode``, on fake ones, which take no
memory:

    with StorageTracer() as tracer:
        step()
    level = tracer.levels["cpu"]
    level.peak_bytes, sum_categories(level.list_at_peak()), sum_lines(level.list_at_peak(), 5)

A storage from before the block is found when the block first uses it, and is counted from the
block's start; a view is not a new storage. Memory that an operator allocates and frees internally
is not traced. Compiled functions run eagerly in all threads during the block.

``CategoryWatch`` finds the category of a storage with torch's hooks for modules and optimizers.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

import torch
from torch._C import _functorch as functions
from torch.nn.modules import module as modules
from torch.nn.parameter import is_lazy
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from labkit.errors import LabkitError
from labkit.memory.balance.read import is_leaf
from labkit.memory.track.frames import Frame, find_user_frames
from labkit.memory.track.model import Level, Storage
from labkit.text import first_line

# The most graph nodes whose forward lines are kept; a long loop creates many more.
NODES_KEPT = 200_000
# An estimate puts nodes before others by a higher bit of their numbers.
NODE_NUMBER = (1 << 40) - 1
# torch.tensor(...) allocates outside of operators, and passes the tensor to this one.
LIFT = torch.ops.aten.lift_fresh.default
# What torch and subclasses of Tensor raise for a question that they cannot answer.
UNANSWERED = (RuntimeError, AttributeError, TypeError, LookupError, ValueError)


class StorageObserver(Protocol):
    """Receives every storage that is allocated or freed, in order and in the block's thread.

    ``storage.category`` is the category known at that time: a gradient is recognized only after it
    was created. A storage that is live at the end is not freed. An observer must not compute with
    tensors.
    """

    def allocate(self, storage: Storage) -> None:
        """A new storage, or with ``storage.before`` one that existed before the block."""
        ...

    def free(self, storage: Storage) -> None:
        """The storage is freed."""
        ...


class StorageReference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to one of torch's storages, with its record."""

    __slots__ = ("key", "storage")

    key: int
    storage: Storage


class StorageTracer(TorchDispatchMode):  # type: ignore[misc]
    """Counts the storages of a block by device, category and line.

    ``observer`` receives each storage; ``depth`` is the number of user lines that each keeps.
    Raises LabkitError if a tracer is open in another thread, because torch's hooks are
    process-wide.
    """

    _open: list[StorageTracer] = []  # noqa: RUF012
    _stance: Any = None
    # Such as flex_attention; torch refuses them to a mode that does not say so.
    supports_higher_order_operators = True

    def __init__(
        self,
        observer: StorageObserver | None = None,
        *,
        depth: int = 1,
    ) -> None:
        super().__init__()
        self.levels: dict[str, Level] = {}
        self.trouble: str | None = None
        self._observer, self._depth = observer, depth
        self._used = False
        self._watch = CategoryWatch(self.mark, self._attempt)
        self._thread = threading.get_ident()
        self._serials = itertools.count(1)
        self._live: dict[int, StorageReference] = {}
        # Python appends to it when it frees a storage, at any time; _bury() reads it.
        self._dead: deque[StorageReference] = deque()
        self._node_frames: dict[int, tuple[Frame, ...]] = {}
        # The number of the node of backward that ran last, whose leaves are watched.
        self._last_node = -1

    def __enter__(self) -> StorageTracer:
        self._thread = threading.get_ident()
        if any(one._thread != self._thread for one in self._open):
            raise LabkitError(
                "cannot trace tensors in two threads at once",
                cause="torch's hooks for modules and optimizers are for the whole process, and"
                " another thread's block is open",
                fix="track_memory() without kinds or lines: the process's peak covers all threads",
            )
        if self._used:
            raise LabkitError(
                "this tracer has already traced a block",
                cause="it does not know what was freed since then",
                fix="a new StorageTracer() for each block",
            )
        self._used = True
        if not self._open:
            # A mode makes compiled functions run eagerly anyway, but dynamo would keep this
            # permanently; with a stance it ends with the block.
            StorageTracer._stance = torch.compiler.set_stance("force_eager")
        self._open.append(self)
        self._watch.open()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Torch removes the mode entered last, so modes entered after this one are put back.
        later = self._open[self._open.index(self) + 1 :]
        for one in [*reversed(later), self]:
            TorchDispatchMode.__exit__(one, kind, error, trace)
        for one in later:
            TorchDispatchMode.__enter__(one)
        self._watch.close()
        self._open.remove(self)
        if not self._open:
            self._stance.__exit__(None, None, None)
        self._bury()
        self._live.clear()
        self._node_frames.clear()

    def __torch_dispatch__(
        self,
        operator: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the operator, and counts the new storages in its results."""
        named = named or {}
        taken = [*list_tensors(arguments), *list_tensors(named)]
        if any(
            type(one) is not torch.Tensor and is_traceable_wrapper_subclass(one) for one in taken
        ):
            self._attempt(self._look_at, taken)
            return NotImplemented  # torch then asks the subclass
        found = self._attempt(self._take_in, operator, arguments, taken)
        result = operator(*arguments, **named)
        self._attempt(self._give_out, taken, result, found or ("other", (), False))
        return result

    def _take_in(
        self, operator: Any, arguments: tuple[Any, ...], taken: list[Any]
    ) -> tuple[str, tuple[Frame, ...], bool]:
        """Looks at an operator's arguments; the category of its results, its lines, backward."""
        self._bury()
        frames, backward = self._find_frames()
        if isinstance(operator, torch._ops.HigherOrderOperator):
            self.trouble = self.trouble or f"memory inside of {operator.name()} is not counted"
        if operator is LIFT:
            self._add_new(arguments[0], "other", frames)
        known = self._look_at(taken)
        self._watch.name_buckets(operator, known)
        categories = {one.category for one in known}
        if categories & {"parameters", "activations"} and self._watch.reads_inputs():
            self._take_inputs(operator, known)
        return self._watch.name_result(taken, categories), frames, backward

    def _give_out(
        self, taken: list[Any], result: Any, found: tuple[str, tuple[Frame, ...], bool]
    ) -> None:
        """Counts the new storages in an operator's results."""
        category, frames, backward = found
        self._bury()
        self._resize(taken, frames)
        for tensor in list_tensors(result):
            self._add_new(tensor, category, frames, backward=backward)

    def _attempt(self, follow: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a part of the tracing; None if it fails, because the block must go on."""
        try:
            return follow(*arguments)
        except UNANSWERED as error:
            self._note_trouble(error)
            return None

    def _note_trouble(self, error: Exception) -> None:
        said = first_line(str(error)) or type(error).__name__
        self.trouble = self.trouble or f"some tensors could not be followed: {said}"

    def mark(self, tensor: Any, category: str) -> None:
        """Sets the category of a tensor's storage; an unknown storage is from before the block."""
        self._bury()
        for part in list_parts(tensor):
            held = self._live.get(part.untyped_storage()._cdata)
            storage = held.storage if held else self._add(part, category, (), before=True)
            certain = category in CERTAIN and storage.category not in CERTAIN
            if storage.category == "other" or certain:
                storage.category = category

    def count_live(self) -> int:
        """The bytes of all storages that are live now."""
        self._bury()
        return sum(level.now_bytes for level in self.levels.values())

    def _look_at(self, tensors: Iterable[Any]) -> list[Storage]:
        """The storages of an operator's arguments; unknown ones are from before the block."""
        found = []
        for tensor in tensors:
            for part in list_parts(tensor):
                held = self._live.get(part.untyped_storage()._cdata)
                found.append(held.storage if held else self._add(part, "other", (), before=True))
            if is_leaf(tensor) and (_is_parameter(tensor) or collects_gradients(tensor)):
                self._watch.watch_parameter(tensor)
        return found

    def _take_inputs(self, operator: Any, known: Iterable[Storage]) -> None:
        # Filling a parameter in place, as when a checkpoint is loaded, reads no input.
        if getattr(getattr(operator, "_schema", None), "is_mutable", False):
            return
        for one in known:
            if one.category == "other":
                one.category = "inputs"

    def _add_new(
        self, tensor: Any, category: str, frames: tuple[Frame, ...], *, backward: bool = False
    ) -> None:
        for part in list_parts(tensor):
            if part.untyped_storage()._cdata not in self._live:
                self._add(part, category, frames, backward=backward)

    def _add(
        self,
        tensor: Any,
        category: str,
        frames: tuple[Frame, ...],
        *,
        before: bool = False,
        backward: bool = False,
    ) -> Storage:
        storage = Storage(
            next(self._serials),
            self._measure(tensor),
            str(tensor.device),
            category,
            frames,
            before=before,
            backward=backward,
        )
        self._follow(tensor.untyped_storage(), storage)
        return storage

    def _follow(self, source: Any, storage: Storage) -> StorageReference:
        """Counts a storage of torch's until Python frees it."""
        reference = StorageReference(source, self._dead.append)
        reference.key, reference.storage = source._cdata, storage
        self._live[reference.key] = reference
        self._count(storage)
        return reference

    def _measure(self, tensor: Any) -> int:
        """The bytes that the device's allocator takes for the tensor's storage."""
        return int(tensor.untyped_storage().nbytes())

    def _count(self, storage: Storage) -> None:
        level = self.levels.get(storage.device)
        if level is None:
            level = self.levels[storage.device] = Level()
        level.add(storage)
        if self._observer:
            self._observer.allocate(storage)

    def _discount(self, storage: Storage) -> None:
        self.levels[storage.device].remove(storage)
        if self._observer:
            self._observer.free(storage)

    def _bury(self) -> None:
        """Subtracts the storages that Python has freed since the last call."""
        while self._dead:
            reference = self._dead.popleft()
            if self._live.get(reference.key) is reference:
                del self._live[reference.key]
                self._discount(reference.storage)

    def _resize(self, tensors: Iterable[Any], frames: tuple[Frame, ...]) -> None:
        """Replaces the records of storages that an operator has resized in place."""
        for tensor in tensors:
            for part in list_parts(tensor):
                held = self._live.get(part.untyped_storage()._cdata)
                if held is not None:
                    self._recount(held, self._measure(part), frames)

    def _recount(self, held: StorageReference, count: int, frames: tuple[Frame, ...]) -> None:
        """Replaces the record of a storage that has another size."""
        old = held.storage
        if count != old.bytes:
            self._discount(old)
            serial = next(self._serials)
            held.storage = Storage(serial, count, old.device, old.category, frames)
            self._count(held.storage)

    def _find_frames(self) -> tuple[tuple[Frame, ...], bool]:
        """The user's lines that allocate now, and whether backward allocates."""
        node = torch._C._current_autograd_node()
        if node is not None:
            return self._find_backward_frames(node), True
        return self._find_forward_frames(), False

    def _find_forward_frames(self, skipped: int = 0) -> tuple[Frame, ...]:
        """The user's lines that run outside of backward, kept for the node that they make.

        ``skipped`` is a number of labkit's own frames above.
        """
        frames = find_user_frames(self._depth, skipped + 1)
        if torch.is_grad_enabled():
            if len(self._node_frames) > NODES_KEPT:
                self._node_frames.clear()
            # Autograd has just created this operator's node, so it has the last number.
            number = torch._C._autograd._get_sequence_nr() - 1
            self._node_frames.setdefault(number, frames)
        return frames

    def _find_backward_frames(self, node: Any) -> tuple[Frame, ...]:
        """The user's lines of the forward operator of backward's running node."""
        number = node._sequence_nr()
        if number != self._last_node:
            self._last_node = number
            self._watch.watch_leaves(node)
        return self._node_frames.get(number & NODE_NUMBER) or find_user_frames(self._depth)


def list_parts(tensor: Any) -> list[Any]:
    """The tensors whose storages hold the data: the tensor itself, or the parts of a sparse one.

    A tensor inside ``torch.func.grad`` or ``vmap`` is a wrapper of another one.
    """
    while functions.is_functorch_wrapped_tensor(tensor):
        tensor = functions.get_unwrapped(tensor)
    if tensor.layout is torch.strided:
        inner = getattr(tensor, "__tensor_flatten__", None)
        if inner is None:
            return [] if is_lazy(tensor) else [tensor]  # a lazy one has no data yet
        # DTensor lists its DeviceMesh too.
        held = (getattr(tensor, name) for name in inner()[0])
        return [part for one in held if isinstance(one, torch.Tensor) for part in list_parts(one)]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []  # mkldnn's own layout: another library holds its memory


def _is_parameter(tensor: Any) -> bool:
    return type(tensor) is torch.nn.Parameter or getattr(tensor, "_is_param", False)


def collects_gradients(leaf: Any) -> bool:
    """True for a leaf that gets a gradient."""
    # During backward, views of tensors that forward saved look like leaves too.
    return leaf.requires_grad and torch.is_grad_enabled() and not leaf._is_view()


# Known from what holds the tensor, not from its origin, so no other category replaces these.
CERTAIN = ("parameters", "gradients", "optimizer")


# From how many watched tensors on those that are gone are looked for.
LEAST_PRUNED = 1_000


class CategoryWatch:
    """Follows modules, optimizers and gradients, and calls ``mark(tensor, category)``.

    The hooks are installed while it is open, and only affect the thread that opened it and those
    that ``follows_this`` is true in.
    """

    def __init__(
        self, mark: Callable[[Any, str], None], attempt: Callable[..., Any] = lambda f, *a: f(*a)
    ) -> None:
        self._mark, self._attempt = mark, attempt
        self._thread = threading.get_ident()
        # Whether the running thread, another one than this, is followed as well.
        self.follows_this: Callable[[], bool] = lambda: False
        self._depth = self._steps = 0
        self._handles: list[Any] = []
        # By the numbers of the tensors' hooks, which a watched tensor has: torch refuses to swap
        # tensors with weak references.
        self._watched: dict[int, Any] = {}
        self._most_watched = LEAST_PRUNED

    def open(self) -> None:
        """Installs the hooks; ``close`` must follow."""
        self._thread = threading.get_ident()
        self._handles = [
            modules.register_module_forward_pre_hook(self._guard(self._begin_forward)),
            modules.register_module_forward_hook(self._guard(self._end_forward), always_call=True),
            optimizers.register_optimizer_step_pre_hook(self._guard(self._begin_step)),
            optimizers.register_optimizer_step_post_hook(self._guard(self._end_step)),
        ]

    def close(self) -> None:
        """Removes every hook."""
        for handle in [*self._handles, *self._watched.values()]:
            handle.remove()
        self._handles, self._watched = [], {}
        self._depth = self._steps = 0

    def name_result(self, arguments: Iterable[Any], categories: Iterable[str]) -> str:
        """The category of an operator's results, from its arguments and their categories."""
        if torch._C._current_autograd_node() is not None:
            return "activations"
        return self.name_forward(arguments, categories)

    def name_forward(self, arguments: Iterable[Any], categories: Iterable[str]) -> str:
        """The category of results outside of backward."""
        if self._depth:
            return "activations"
        if self._steps:
            return "optimizer"
        if "activations" in categories:
            return "activations"
        tracked = torch.is_grad_enabled() and any(one.requires_grad for one in arguments)
        return "activations" if tracked else "other"

    def name_buckets(self, operator: Any, known: Iterable[Storage]) -> None:
        """Renames what DDP and FSDP exchange: the arguments of collectives that they call.

        A collective of the user's own code, outside of a module and of backward, keeps its
        tensors' categories.
        """
        if getattr(operator, "namespace", "") not in ("c10d", "fsdp"):
            return
        if self._depth or torch._C._current_graph_task_id() != -1:
            for one in known:
                if one.category not in CERTAIN:
                    one.category = "buckets"

    def reads_inputs(self) -> bool:
        """True while tensors that an operator reads, except parameters, are the model's inputs."""
        return not self._steps and torch._C._current_autograd_node() is None

    @property
    def steps(self) -> int:
        """How many steps of optimizers are running."""
        return self._steps

    def is_updating(self) -> bool:
        """True in an optimizer's step, outside of modules and of backward."""
        inside = self._depth or torch._C._current_autograd_node() is not None
        return bool(self._steps) and not inside

    def watch_parameter(self, tensor: Any, *, known: bool = False) -> None:
        """Marks a parameter or another leaf, its gradient, and each later gradient.

        ``known``: its storage has the category already.
        """
        if not known:
            self._mark(tensor, "parameters")
        elif self._is_watched(tensor):
            return
        # A lazy parameter has no size and takes no hooks until the first forward pass; a wrapper
        # of torch.func lives only as long as the transform.
        if self._is_watched(tensor):
            return
        if functions.is_functorch_wrapped_tensor(tensor) or is_lazy(tensor):
            return
        if tensor.grad is not None:
            self._mark(tensor.grad, "gradients")
        if tensor.requires_grad:
            handle = tensor.register_post_accumulate_grad_hook(self._end_gradient)
            self._watched[handle.id] = handle
            if len(self._watched) > self._most_watched:
                self._prune_watched()

    def is_known(self, parameter: Any, storage: Storage) -> bool:
        """True for a parameter that is marked and watched already."""
        return storage.category == "parameters" and self._is_watched(parameter)

    def watch_leaves(self, node: Any) -> None:
        """Watches the leaves that get gradients from the node that backward is running.

        Usually the forward pass finds them, but it may have run before the block.
        """
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)  # AccumulateGrad has one
            if leaf is not None and not self._is_watched(leaf):
                self.watch_parameter(leaf)

    def _is_watched(self, tensor: Any) -> bool:
        hooks = tensor._post_accumulate_grad_hooks
        return hooks is not None and not self._watched.keys().isdisjoint(hooks)

    def _prune_watched(self) -> None:
        """Forgets the tensors that are gone: a loop may make a leaf in each round."""
        pairs = self._watched.items()
        self._watched = {number: one for number, one in pairs if one.hooks_dict_ref() is not None}
        self._most_watched = max(LEAST_PRUNED, 2 * len(self._watched))

    def _end_gradient(self, tensor: Any) -> None:
        if tensor.grad is not None:
            self._attempt(self._mark, tensor.grad, "gradients")

    def _guard(self, follow: Callable[..., None]) -> Callable[..., None]:
        """A hook that calls ``follow`` in the threads of this watch, and never fails."""

        def hook(*arguments: Any) -> None:
            # torch.export traces hooks too, and must find nothing here.
            here = threading.get_ident() == self._thread or self.follows_this()
            if here and not torch.compiler.is_compiling():
                self._attempt(follow, *arguments)

        return hook

    def _begin_forward(self, module: Any, arguments: Any) -> None:
        self._depth += 1
        for held in module._parameters.values():
            if held is not None and held.is_leaf:
                self.watch_parameter(held)
        for held in module._buffers.values():
            if held is not None:
                self._mark(held, "parameters")
        if self._depth == 1:
            for one in list_tensors(arguments):
                self._mark(one, "inputs")

    def _end_forward(self, module: Any, arguments: Any, result: Any) -> None:
        self._depth = max(0, self._depth - 1)

    def _begin_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
        self._steps += 1
        self._mark_state(optimizer)
        for group in optimizer.param_groups:
            for held in group["params"]:
                if held.grad is not None:  # FSDP sets it without the hook of a parameter
                    self._mark(held.grad, "gradients")

    def _end_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
        self._steps = max(0, self._steps - 1)
        self._mark_state(optimizer)

    def _mark_state(self, optimizer: Any) -> None:
        for state in optimizer.state.values():
            for one in list_tensors(state):
                self._mark(one, "optimizer")


def list_tensors(value: Any) -> list[Any]:
    """The tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [tensor for part in value for tensor in list_tensors(part)]
