"""Every storage that tensors take while a block runs: its bytes, its kind, the line it is from.

``StorageTracer`` is a context manager around the code of one thread. It sees each operator of
torch on its way, on real tensors of any device and, opened inside a ``FakeTensorMode``, on fake
ones, which take no memory:

    with StorageTracer() as tracer:
        step()
    level = tracer.levels["cpu"]
    level.peak_bytes, sum_kinds(level.list_at_peak()), sum_lines(level.list_at_peak(), 5)

A storage that was there before is found when the block first uses it, and counted from the
beginning; a view of it is not taken for a new one. What an operator takes and gives back within
itself is not seen. Compiled functions run eagerly meanwhile, in every thread.
``round_up`` makes of a storage's bytes what the device's allocator gives out for it.

**Events.** ``StorageTracer(observer=one, depth=8)`` calls ``one.allocate(storage)`` and
``one.free(storage)`` for each storage, in order and in the block's thread. ``storage.serial`` is
like an address, but never used twice; ``bytes``, ``device``, ``kind`` (as far as it is known at
that time: a gradient is told from other storages only after it was made) and ``frames`` (up to
``depth`` of the user's lines, innermost first) are the rest. ``storage.before`` marks those that
were there already. What is still live at the end gets no ``free``. An observer must not compute
with tensors.

What a storage is for, told by torch itself while a program runs.

torch's own hooks, for every module and every optimizer, say when a forward pass or an optimizer's
step goes on, which tensors a module holds, and when a gradient has been collected. They are there
while the watch is open and gone after it; they see the thread that opened it alone.
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
from torch.nn.modules import module as modules
from torch.nn.parameter import is_lazy
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.errors import LabkitError
from labkit.memory.track.frames import Frame, find_user_frames
from labkit.memory.track.model import Level, Storage

# Nodes of the graph whose forward line is kept; a loop that runs on for hours has many more.
NODES_KEPT = 200_000
# torch.tensor(...) makes its storage unseen, and hands it to this operator.
LIFT = torch.ops.aten.lift_fresh.default


class StorageObserver(Protocol):
    """Who is told of every storage that comes and goes."""

    def allocate(self, storage: Storage) -> None:
        """A storage is there from now on; ``storage.before``: it has been all along."""
        ...

    def free(self, storage: Storage) -> None:
        """A storage has gone."""
        ...


class StorageReference(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to torch's storage that knows what was written down about it."""

    __slots__ = ("key", "storage")

    key: int
    storage: Storage


class StorageTracer(TorchDispatchMode):  # type: ignore[misc]
    """Counts the storages of the block it is around, by device, kind and line.

    Raises LabkitError where one is open in another thread: what says whether a module or an
    optimizer is running is the process's.
    """

    _open: list[StorageTracer] = []  # noqa: RUF012
    _stance: Any = None

    def __init__(
        self,
        observer: StorageObserver | None = None,
        *,
        depth: int = 1,
        round_up: Callable[[int], int] = int,
    ) -> None:
        super().__init__()
        self.levels: dict[str, Level] = {}
        self._observer, self._depth, self._round_up = observer, depth, round_up
        self._used = False
        self._kinds = CategoryWatch(self.mark)
        self._thread = threading.get_ident()
        self._serials = itertools.count(1)
        self._live: dict[int, StorageReference] = {}
        # Filled when Python collects a storage, at any moment; looked into at chosen ones.
        self._dead: deque[StorageReference] = deque()
        self._node_frames: dict[int, tuple[Frame, ...]] = {}

    def __enter__(self) -> StorageTracer:
        self._thread = threading.get_ident()
        if any(one._thread != self._thread for one in self._open):
            raise LabkitError(
                "cannot trace tensors in two threads at once",
                cause="torch tells of its modules and optimizers for all threads together,"
                " and another thread's block is open",
                fix="track_memory() without kinds or lines: the process's peak holds every thread",
            )
        if self._used:
            raise LabkitError(
                "this tracer has traced a block already",
                cause="what was freed since then is not known to it",
                fix="a StorageTracer() of its own for each block",
            )
        self._used = True
        if not self._open:
            # A mode makes compiled functions eager anyhow, but dynamo would remember that of each
            # for ever: told beforehand, it forgets it with the block.
            StorageTracer._stance = torch.compiler.set_stance("force_eager")
        self._open.append(self)
        self._kinds.open()
        super().__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Torch takes out whichever mode came last: those opened within this one go back in.
        later = self._open[self._open.index(self) + 1 :]
        for one in [*reversed(later), self]:
            TorchDispatchMode.__exit__(one, kind, error, trace)
        for one in later:
            TorchDispatchMode.__enter__(one)
        self._kinds.close()
        self._open.remove(self)
        if not self._open:
            self._stance.__exit__(None, None, None)
        self._bury()
        # From here on nothing is counted: what goes after the block is none of its business.
        self._live.clear()
        self._node_frames.clear()

    def __torch_dispatch__(
        self,
        operator: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the operator, and counts the storages in its results that were not there."""
        named = named or {}
        self._bury()
        frames, backward = self._find_frames()
        taken = [*list_tensors(arguments), *list_tensors(named)]
        if operator is LIFT:
            self._add_new(arguments[0], "other", frames)
        known = self._look_at(taken)
        kinds = {one.kind for one in known}
        if kinds & {"parameters", "activations"} and self._kinds.reads_inputs():
            self._take_inputs(operator, known)
        result = operator(*arguments, **named)
        self._bury()
        self._resize(taken, frames)
        birth = self._kinds.name_birth(taken, kinds)
        for tensor in list_tensors(result):
            self._add_new(tensor, birth, frames, backward=backward)
        return result

    def mark(self, tensor: Any, kind: str) -> None:
        """Says what a tensor's storage is for; one that is not known was there before."""
        self._bury()
        for part in list_parts(tensor):
            held = self._live.get(part.untyped_storage()._cdata)
            storage = held.storage if held else self._add(part, kind, (), before=True)
            if storage.kind == "other" or (kind in CERTAIN and storage.kind not in CERTAIN):
                storage.kind = kind

    def _look_at(self, tensors: Iterable[Any]) -> list[Storage]:
        """The storages of an operator's arguments; those not known yet were there before."""
        found = []
        for tensor in tensors:
            for part in list_parts(tensor):
                held = self._live.get(part.untyped_storage()._cdata)
                found.append(held.storage if held else self._add(part, "other", (), before=True))
            if tensor.is_leaf and (_is_parameter(tensor) or _collects_gradients(tensor)):
                self._kinds.watch_parameter(tensor)
        return found

    def _take_inputs(self, operator: Any, known: Iterable[Storage]) -> None:
        # To fill a parameter in place (as loading a checkpoint does) is not to read an input.
        if operator._schema.is_mutable:
            return
        for one in known:
            if one.kind == "other":
                one.kind = "inputs"

    def _add_new(
        self, tensor: Any, kind: str, frames: tuple[Frame, ...], *, backward: bool = False
    ) -> None:
        for part in list_parts(tensor):
            if part.untyped_storage()._cdata not in self._live:
                self._add(part, kind, frames, backward=backward)

    def _add(
        self,
        tensor: Any,
        kind: str,
        frames: tuple[Frame, ...],
        *,
        before: bool = False,
        backward: bool = False,
    ) -> Storage:
        source = tensor.untyped_storage()
        storage = Storage(
            next(self._serials),
            self._round_up(source.nbytes()),
            str(tensor.device),
            kind,
            frames,
            before=before,
            backward=backward,
        )
        reference = StorageReference(source, self._dead.append)
        reference.key, reference.storage = source._cdata, storage
        self._live[reference.key] = reference
        self._count(storage)
        return storage

    def _count(self, storage: Storage) -> None:
        self.levels.setdefault(storage.device, Level()).add(storage)
        if self._observer:
            self._observer.allocate(storage)

    def _discount(self, storage: Storage) -> None:
        self.levels[storage.device].remove(storage)
        if self._observer:
            self._observer.free(storage)

    def _bury(self) -> None:
        """Counts out the storages that have gone since the last look."""
        while self._dead:
            reference = self._dead.popleft()
            if self._live.get(reference.key) is reference:
                del self._live[reference.key]
                self._discount(reference.storage)

    def _resize(self, tensors: Iterable[Any], frames: tuple[Frame, ...]) -> None:
        """Counts anew the storages that an operator has made larger or smaller in place."""
        for tensor in tensors:
            for part in list_parts(tensor):
                source = part.untyped_storage()
                held = self._live.get(source._cdata)
                count = self._round_up(source.nbytes())
                if held is not None and count != held.storage.bytes:
                    old = held.storage
                    self._discount(old)
                    held.storage = Storage(next(self._serials), count, old.device, old.kind, frames)
                    self._count(held.storage)

    def _find_frames(self) -> tuple[tuple[Frame, ...], bool]:
        """The user's lines for what is made now, and whether backward makes it."""
        node = torch._C._current_autograd_node()
        if node is not None:
            forward = self._node_frames.get(node._sequence_nr())
            return (forward or find_user_frames(self._depth)), True
        frames = find_user_frames(self._depth)
        if torch.is_grad_enabled():
            if len(self._node_frames) > NODES_KEPT:
                self._node_frames.clear()
            # The node of this operator was made just before: its number is the last one given.
            number = torch._C._autograd._get_sequence_nr() - 1
            self._node_frames.setdefault(number, frames)
        return frames, False


def list_parts(tensor: Any) -> list[Any]:
    """The tensors whose storages hold a tensor's data: itself, or the parts of a sparse one."""
    if tensor.layout is torch.strided:
        inner = getattr(tensor, "__tensor_flatten__", None)
        if inner is None:
            return [] if is_lazy(tensor) else [tensor]  # its module has not run yet
        return [part for name in inner()[0] for part in list_parts(getattr(tensor, name))]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return []  # mkldnn's own layout: its memory belongs to another library


def _is_parameter(tensor: Any) -> bool:
    return type(tensor) is torch.nn.Parameter or getattr(tensor, "_is_param", False)


def _collects_gradients(leaf: Any) -> bool:
    # While backward runs, views of what forward saved look like leaves too.
    return leaf.requires_grad and torch.is_grad_enabled() and not leaf._is_view()


# These are known by what holds the tensor, not by where it was made: nothing overrules them.
CERTAIN = ("parameters", "gradients", "optimizer")


class CategoryWatch:
    """Follows modules, optimizers and gradients, and calls ``mark(tensor, kind)``."""

    def __init__(self, mark: Callable[[Any, str], None]) -> None:
        self._mark = mark
        self._thread = threading.get_ident()
        self._depth = self._steps = 0
        self._handles: list[Any] = []
        # By id, without a reference of any kind: torch will not swap a tensor that has a weak one.
        self._watched: dict[int, Any] = {}

    def open(self) -> None:
        """Begins to follow; ``close`` must come after it."""
        self._thread = threading.get_ident()
        self._handles = [
            modules.register_module_forward_pre_hook(self._begin_forward),
            modules.register_module_forward_hook(self._end_forward, always_call=True),
            optimizers.register_optimizer_step_pre_hook(self._begin_step),
            optimizers.register_optimizer_step_post_hook(self._end_step),
        ]

    def close(self) -> None:
        """Takes every hook out again."""
        for handle in [*self._handles, *self._watched.values()]:
            handle.remove()
        self._handles, self._watched = [], {}
        self._depth = self._steps = 0

    def name_birth(self, arguments: Iterable[Any], kinds: Iterable[str]) -> str:
        """The kind of what an operator makes now, from its arguments and their kinds."""
        if self._depth or torch._C._current_autograd_node() is not None:
            return "activations"
        if self._steps:
            return "optimizer"
        if "activations" in kinds:
            return "activations"
        tracked = torch.is_grad_enabled() and any(one.requires_grad for one in arguments)
        return "activations" if tracked else "other"

    def reads_inputs(self) -> bool:
        """True while what an operator reads beside parameters is the model's input."""
        return not self._steps and torch._C._current_autograd_node() is None

    def watch_parameter(self, tensor: Any) -> None:
        """Marks a parameter or another leaf, its gradient, and each one that it will collect."""
        self._mark(tensor, "parameters")
        # A lazy module's has no size and takes no hooks; its first forward pass makes it one.
        if is_lazy(tensor) or self._is_watched(tensor):
            return
        if tensor.grad is not None:
            self._mark(tensor.grad, "gradients")
        if tensor.requires_grad:
            handle = tensor.register_post_accumulate_grad_hook(self._end_gradient)
            self._watched[id(tensor)] = handle

    def _is_watched(self, tensor: Any) -> bool:
        handle = self._watched.get(id(tensor))
        # The id can be another tensor's by now: the handle knows the hooks that it is among.
        return handle is not None and handle.hooks_dict_ref() is tensor._post_accumulate_grad_hooks

    def _end_gradient(self, tensor: Any) -> None:
        if tensor.grad is not None:
            self._mark(tensor.grad, "gradients")

    def _is_elsewhere(self) -> bool:
        return threading.get_ident() != self._thread

    def _begin_forward(self, module: Any, arguments: Any) -> None:
        if self._is_elsewhere():
            return
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
        if not self._is_elsewhere():
            self._depth = max(0, self._depth - 1)

    def _begin_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
        if not self._is_elsewhere():
            self._steps += 1
            self._mark_state(optimizer)

    def _end_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
        if not self._is_elsewhere():
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
