"""The live tensors on a device and the names that hold them, found within a limit of CPU time.

The search runs none of the user's code: it reads attributes from ``__dict__`` and containers
through the methods of the built-in types, and compares and prints only keys that are strings or
integers.
"""

from __future__ import annotations

import gc
import math
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any, NamedTuple

from labkit.memory.balance.read import find_storage, is_leaf
from labkit.memory.oom.model import Holder, LiveTensor, LiveTensors, walk_chain

SEARCH_SECONDS = 1.0
# Reading the clock costs as much as visiting an object, so it is read once per this many steps.
STRIDE = 256
DEPTH = 8
ELEMENTS = 10_000
NAMES_KEPT = 20

# IPython's names for results (_, __, ___, _12). The entries of Out are separate roots.
OUTPUT_NAME = re.compile(r"_{1,3}|_\d+")
OWN_PACKAGES = {"IPython", "ipykernel", "traitlets", "labkit"}
ATOMS = (str, bytes, int, float, complex, bool, type(None), type)
SEQUENCES = (list, tuple, deque, set, frozenset)
# They keep a private pool of the allocator.
POOL_OWNERS = {"CUDAGraph", "MemPool"}
CLOSED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


class Root(NamedTuple):
    """A start of the search: what holds the value, and its name (``{}``: the path)."""

    kind: str
    words: str
    value: object


class Budget:
    """A limit for the search in seconds of CPU time: on a busy machine it finds as much."""

    def __init__(
        self, seconds: float = SEARCH_SECONDS, clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._ends = clock() + seconds
        self._steps = 0
        self.spent = False

    def has_ended(self) -> bool:
        """True once the time is up; counts a step."""
        self._steps += 1
        if self._steps % STRIDE == 1:
            self.spent = self.spent or self._clock() >= self._ends
        return self.spent


def find_live_tensors(
    device: str, roots: Iterable[Root], budget: Budget | None = None
) -> LiveTensors:
    """The storages that Python's tensors hold on the device, biggest first, with their names.

    Tensors that share a storage count once. Empty if torch is not loaded. Tensors that only
    torch's graph holds are not found.
    """
    torch: Any = sys.modules.get("torch")
    if getattr(torch, "Tensor", None) is None:
        return LiveTensors()
    budget = budget or Budget()
    # A subclass of Tensor can run its own code for every attribute.
    with torch._C.DisableTorchFunctionSubclass():
        found = _list_storages(torch, device, budget)
        pools: list[str] = []
        names = _find_names(torch, roots, found, budget, pools)
    named = (one._replace(holders=tuple(names.get(address, ()))) for address, one in found.items())
    ordered = sorted(named, key=lambda one: -one.held_bytes)
    return LiveTensors(tuple(ordered), not budget.spent, tuple(pools))


def list_roots(
    namespace: Mapping[str, object], error: BaseException | None = None
) -> Iterator[Root]:
    """All that can hold a tensor in a notebook: names, IPython's outputs, an error's frames."""
    for name, value in list(namespace.items()):
        if name == "Out" and isinstance(value, dict):
            yield from (Root("output", f"Out[{key}]", held) for key, held in list(value.items()))
        elif name != "_oh":
            kind = "output" if OUTPUT_NAME.fullmatch(name) else "user"
            yield Root(kind, name, value)
    for one in walk_chain(error):
        yield from _list_frames(one.__traceback__, namespace)


def _list_frames(trace: TracebackType | None, namespace: Mapping[str, object]) -> Iterator[Root]:
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        # The locals of a cell's frame are the notebook's names.
        if frame.f_locals is namespace or package in OWN_PACKAGES:
            continue
        for name, value in list(frame.f_locals.items()):
            yield Root("frame", f"{name}{{}} in {frame.f_code.co_name}()", value)


def _list_storages(torch: Any, device: str, budget: Budget) -> dict[int, LiveTensor]:
    found: dict[int, LiveTensor] = {}
    for held in gc.get_objects():
        if budget.has_ended():
            break
        if issubclass(type(held), torch.Tensor):
            _add_tensor(held, device, found)
    return found


def _add_tensor(tensor: Any, device: str, found: dict[int, LiveTensor]) -> None:
    place, address, held = find_storage(tensor) or ("", 0, 0)
    if place != device or not held:
        return
    dtype = str(tensor.dtype).removeprefix("torch.")
    in_graph = tensor.requires_grad and not is_leaf(tensor)
    seen = LiveTensor(held, tuple(tensor.shape), dtype, in_graph=in_graph)
    before = found.get(address, seen)
    widest = max(before, seen, key=lambda one: math.prod(one.shape))
    found[address] = widest._replace(in_graph=before.in_graph or seen.in_graph)


def _find_names(
    torch: Any,
    roots: Iterable[Root],
    found: Mapping[int, LiveTensor],
    budget: Budget,
    pools: list[str],
) -> dict[int, list[Holder]]:
    """The names of each storage, the shortest path first: a breadth-first search from the roots.

    The names of CUDA graphs and memory pools are appended to ``pools``.
    """
    names: dict[int, list[Holder]] = {}
    queue = deque((root, "", root.value, 0) for root in roots)
    seen: set[int] = set()
    while queue and not budget.has_ended():
        root, path, value, depth = queue.popleft()
        if issubclass(type(value), torch.Tensor):
            address = (find_storage(value) or ("", 0, 0))[1]
            if address in found:
                _note_name(names, address, Holder(root.kind, _join(root, path)))
        if id(value) in seen or depth >= DEPTH:
            continue
        seen.add(id(value))
        if type(value).__name__ in POOL_OWNERS and root.kind == "user":
            pools.append(_join(root, path))
        for step, child in _list_children(torch, value):
            if not isinstance(child, ATOMS):
                queue.append((root, path + step, child, depth + 1))
    return names


def _note_name(names: dict[int, list[Holder]], address: int, holder: Holder) -> None:
    known = names.setdefault(address, [])
    if len(known) < NAMES_KEPT and holder not in known:
        known.append(holder)


def _join(root: Root, path: str) -> str:
    return root.words.replace("{}", path) if "{}" in root.words else root.words + path


def _list_children(torch: Any, value: Any) -> Iterator[tuple[str, object]]:
    """The objects in a value, each with its access path in Python's syntax."""
    cls = type(value)
    if issubclass(cls, torch.Tensor):
        # Asking a tensor that is not a leaf for its gradient warns.
        if is_leaf(value) and value.grad is not None:
            yield ".grad", value.grad
    elif issubclass(cls, dict):
        for key, held in list(islice(dict.items(value), ELEMENTS)):
            yield (f"[{key!r}]" if type(key) in (str, int) else "[…]"), held
    elif issubclass(cls, SEQUENCES):
        base = next(one for one in SEQUENCES if issubclass(cls, one))
        held_now = list(islice(base.__iter__(value), ELEMENTS))
        yield from ((f"[{place}]", held) for place, held in enumerate(held_now))
    elif not issubclass(cls, CLOSED) and cls.__module__.partition(".")[0] not in OWN_PACKAGES:
        yield from _list_attributes(value)


def _list_attributes(value: object) -> Iterator[tuple[str, object]]:
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return
    if not isinstance(attributes, dict):
        return
    for name, held in list(attributes.items()):
        # torch.nn.Module keeps these attributes in its own dicts.
        if name in ("_parameters", "_buffers", "_modules") and isinstance(held, dict):
            yield from ((f".{part}", inner) for part, inner in list(held.items()))
        else:
            yield f".{name}", held
