"""Simulates a GPU for fake tensors: where tensors are, and what CUDA's operators keep.

A torch build without CUDA cannot compute with fake CUDA tensors, because its C++ code asks for a
CUDA device. ``FakeMode`` hides the device from C++, so the same step runs on any build, without a
GPU and without starting CUDA, and Python sees ``cuda``. What C++ code decides by the device,
``operators.CudaOperators`` decides.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Set
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from labkit.memory.balance.model import MIB
from labkit.memory.estimate.model import Target
from labkit.memory.track.frames import list_thread_frames

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
HIDDEN, META = torch.device("cpu:0"), torch.device("meta")


class NamesCudaError(BaseException):
    """The code names a CUDA device: what it puts nowhere stays on the host."""


# What has the place of modules' attributes now: by its number, it and the attributes by name.
_STANDING_IN: dict[int, tuple[Any, dict[str, Any]]] = {}


class Replacement:
    """Attributes of torch that are replaced, until ``close`` or the end of a ``with`` block."""

    # An estimate replaces hundreds: an ExitStack for each would take most of the time.
    __slots__ = ("_owner", "_replaced")

    def __init__(self, owner: Any, values: dict[str, object]) -> None:
        self._owner = owner
        self._replaced: list[tuple[str, Any, Any]] = []
        names, is_module = vars(owner), isinstance(owner, ModuleType)
        for name, value in values.items():
            original = names.get(name, INHERITED)
            stands_in = is_module and original is not INHERITED and callable(value)
            if stands_in:
                number = find_number(value)
                _STANDING_IN.setdefault(number, (value, {}))[1][name] = original
            self._replaced.append((name, original, value if stands_in else None))
            setattr(owner, name, value)

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the attributes their values back, the last first; raises the first error then."""
        failures, owner = [], self._owner
        while self._replaced:
            name, original, value = self._replaced.pop()
            try:
                if original is INHERITED:
                    delattr(owner, name)
                else:
                    if value is not None:
                        _STANDING_IN.pop(find_number(value), None)
                    setattr(owner, name, original)
            except Exception as error:  # what the owner's class raises
                failures.append(error)
        if failures:
            raise failures[0]


INHERITED = object()
# Threads that were there before, and work for the step now.
LENT: set[int] = set()
# A number of an object, which no other living one has. Python tells each audit hook that ``id()``
# is called, and an estimate's hook stays.
find_number = object.__hash__


def replace_attributes(owner: Any, **values: object) -> Replacement:
    """Replaces attributes of torch until exit; then an inherited one is inherited again."""
    return Replacement(owner, values)


class MadeReplacements:
    """Replacements that are made once: making some hundred takes as long as a small step.

    ``make`` lists owners and what replaces which of their attributes. They are made again when
    another module of ``modules`` is loaded, or something else has replaced one of the originals.
    """

    def __init__(
        self, make: Callable[[], Iterator[tuple[Any, dict[str, Any]]]], modules: tuple[str, ...]
    ) -> None:
        self._make, self._modules = make, modules
        self._loaded: list[Any] = []
        self._made: list[tuple[Any, dict[str, Any]]] = []
        self._originals: list[Any] = []

    def find(self) -> list[tuple[Any, dict[str, Any]]]:
        """The owners and their attributes, for ``Replacement``."""
        loaded = [sys.modules.get(one) for one in self._modules]
        same = self._loaded == loaded and self._originals == self._list_originals()
        if not (self._made and same):
            self._made, self._loaded = list(self._make()), loaded
            self._originals = self._list_originals()
        return self._made

    def _list_originals(self) -> list[Any]:
        return [one for owner, names in self._made for one in map(vars(owner).get, names)]


@contextlib.contextmanager
def mend_imported() -> Iterator[None]:
    """Gives the modules that are imported meanwhile, on exit, what they import without an estimate.

    A library that loads its parts when they are first used would keep what is replaced now.
    """
    before = list(sys.modules)
    try:
        yield
    finally:
        # Most estimates import nothing, and lists are compared faster than sets are made.
        now = list(sys.modules)
        for key in () if now == before else {*now}.difference(before):
            module = sys.modules[key]
            names = vars(module) if type(module) is ModuleType else {}
            for name, value in list(names.items()):
                names[name] = _find_original(name, value)


def _find_original(name: str, value: Any) -> Any:
    """What the value stands in for, if it does; ``name`` decides where that is several things."""
    while find_number(value) in _STANDING_IN:
        originals = _STANDING_IN[find_number(value)][1]
        if len(originals) > 1 and name not in originals:
            break
        value = originals.get(name, next(iter(originals.values())))
    return value


def replace_in_thread(owner: Any, **values: Any) -> Replacement:
    """Replaces attributes until exit, except for the threads that run already.

    Those may compute for real meanwhile. A thread that the step starts is the step's own.
    """
    others = list_thread_frames().keys() - {threading.get_ident()}
    if others:
        values = {
            name: _spare(getattr(owner, name, None), value, others)
            for name, value in values.items()
        }
    return Replacement(owner, values)


def _spare(original: Any, made: Any, others: Set[int]) -> Any:
    """What is ``made`` for all threads but the others, for which it is the original."""
    if isinstance(made, type):
        names = {"labkit_original": original, "labkit_others": others, "__slots__": ()}
        kinds = _ByThread, type(made)
        metaclass = _ByThread if kinds[1] is type else type("_ByThread", kinds, {})
        return metaclass(made.__name__, (made,), names)
    if isinstance(made, property):
        read = _spare(original.__get__, made.fget, others)
        return property(read)
    if not callable(made) or original is None:
        return made

    @functools.wraps(made)
    def choose(*arguments: Any, **named: Any) -> Any:
        number = threading.get_ident()
        chosen = original if number in others and number not in LENT else made
        return chosen(*arguments, **named)

    return choose


class _ByThread(type):
    """A class that makes objects of the original one for some threads."""

    labkit_original: Any
    labkit_others: Set[int]

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        number = threading.get_ident()
        if number in cls.labkit_others and number not in LENT:
            return cls.labkit_original(*arguments, **named)
        return super().__call__(*arguments, **named)

    def __instancecheck__(cls, one: Any) -> bool:
        return super().__instancecheck__(one) or isinstance(one, cls.labkit_original)


class PlacingConverter(fake_tensor.FakeTensorConverter):  # type: ignore[misc]
    """Makes fake tensors of real ones, a view on the device on which its placement puts it.

    Torch gives the fake tensor of a view the view's own device.
    """

    def from_real_tensor(self, fake_mode: Any, t: Any, *others: Any, **named: Any) -> Any:
        """The fake tensor."""
        made = super().from_real_tensor(fake_mode, t, *others, **named)
        if fake_mode.placement == "gpu" and t._is_view():
            made.fake_device = fake_mode.place(made.fake_device)
        return made


class _NoLines:
    """Stands for Python's ``traceback`` while torch makes a mode."""

    extract_stack = format_list = staticmethod(lambda *_: [])


class FakeMode(fake_tensor.FakeTensorMode):  # type: ignore[misc]
    """Torch's fake mode with a simulated GPU that C++ does not see.

    ``placement`` is "cpu": everything is on the CPU, a named GPU too; "gpu": everything is on the
    GPU, and naming one raises NamesCudaError; "named": as the code names it.
    """

    def __init__(self, placement: str) -> None:
        # Torch would keep the lines that run now, and read their files for it.
        with replace_attributes(fake_tensor, traceback=_NoLines):
            super().__init__(allow_non_fake_inputs=True)
        # Torch's own cache forgets how large the storage is that a view is part of, such as that
        # of a periodic window; results.py remembers what is alike.
        self.cache_enabled = False
        self.fake_tensor_converter = PlacingConverter()
        self.placement = placement
        self.gpu = UNNAMED if placement == "gpu" else NAMED

    def __deepcopy__(self, memo: Any) -> FakeMode:
        return self

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator, on the device that the placement gives it."""
        if func is torch.ops.prim.device.default:
            return hide_device(args[0])
        if not types and args and func._schema.is_mutable and isinstance(args[0], torch.Tensor):
            # Torch would compute with real tensors and a number for real, and write to them.
            args = (self.from_tensor(args[0]), *args[1:])
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

    def own_tensors(self) -> contextlib.AbstractContextManager[Any]:
        """Puts each new fake tensor on the GPU, if everything is to be there."""
        if self.placement != "gpu":
            return contextlib.nullcontext()
        original = fake_tensor.FakeTensor.__new__

        def make(cls: Any, mode: Any, elem: Any, device: Any, *others: Any, **named: Any) -> Any:
            if mode is self:
                device = self.place(device)
            return original(cls, mode, elem, device, *others, **named)

        return replace_attributes(fake_tensor.FakeTensor, __new__=staticmethod(make))


def hide_device(tensor: Any) -> torch.device:
    """The device of a fake tensor as C++ code is to see it."""
    # C++ code asks twice for each operator: the attributes themselves are found faster.
    kept = tensor.__dict__
    if kept["fake_mode"].in_kernel_invocation:
        return META
    device: torch.device = kept.get("_fake_device") or tensor.fake_device
    return HIDDEN if device.type == "cuda" else device


def _is_optimizing() -> bool:
    """True in torch's optimizers, which keep their counts of steps on the CPU."""
    running: Any = sys._getframe(2)
    for _ in range(12):
        if running is None:
            return False
        if "/torch/optim/" in running.f_code.co_filename:
            return True
        running = running.f_back
    return False


def _make_ctc_loss(move: Callable[..., Any]) -> Callable[..., Any]:
    """CTC's loss with its lengths on the GPU: torch's fake version refuses those on the CPU."""
    ctc_loss = torch.ctc_loss

    def score(log_probs: Any, targets: Any, *others: Any, **named: Any) -> Any:
        def meet(value: Any) -> Any:
            return move(value, log_probs.device) if isinstance(value, torch.Tensor) else value

        named = {name: meet(one) for name, one in named.items()}
        return ctc_loss(log_probs, targets, *map(meet, others), **named)

    return score


def _find_default_gpu() -> Any:
    """The GPU on which code puts tensors by default; None if it names none, or another device."""
    if not torch._C._len_torch_function_stack():
        return None
    for one in reversed(_get_current_function_mode_stack()):
        if isinstance(one, DeviceContext):
            return one.device if one.device.type == "cuda" else None
    return None


def _make_move(mode: FakeMode) -> Callable[..., Any]:
    """``Tensor.to``, which follows the placement."""
    to = torch.Tensor.to

    def move(self: Any, *arguments: Any, **named: Any) -> Any:
        device, dtype = named.pop("device", None), named.pop("dtype", None)
        flags = [one for one in arguments if type(one) is bool]  # non_blocking, copy
        if len(flags) > 1:
            named["copy"] = flags[1]
        for one in (*arguments, named.pop("tensor", None)):
            if isinstance(one, torch.Tensor):
                device, dtype = one.device, one.dtype
            elif isinstance(one, str | torch.device) or type(one) is int:
                device = one
            elif isinstance(one, torch.dtype):
                dtype = one
        dtype = self.dtype if dtype is None else dtype
        named.pop("non_blocking", None)
        device = self.device if device is None else mode.place(device)
        if device == self.device or {device.type, self.device.type} == {"cpu"}:
            return to(self, dtype, **named)
        named.pop("copy", None)
        return torch.ops.aten._to_copy(self, dtype=dtype, device=device, **named)

    return move


def _put_numbers(value: Any, unknown: list[Any]) -> Any:
    """What ``torch.tensor`` takes, with numbers for fake tensors; ``unknown`` gets those."""
    if type(value) in {list, tuple}:
        return [_put_numbers(one, unknown) for one in value]
    if type(value) is fake_tensor.FakeTensor:
        unknown.append(value)
        return _fill_list(list(value.shape), 0.0 if value.is_floating_point() else 0)
    if type(value).__name__ == "UnknownNumber":
        unknown.append(value)
        return 0 if value.whole else value
    return value


def _fill_list(shape: list[int], number: float) -> Any:
    return [_fill_list(shape[1:], number) for _ in range(shape[0])] if shape else number


def _make_creator(create: Callable[..., Any], move: Callable[..., Any]) -> Callable[..., Any]:
    """A function such as ``torch.tensor``, which makes a tensor on the CPU and moves it.

    C++ code would ask for the named device, and for memory that only CUDA can pin.
    """

    def make(*data: Any, device: Any = None, requires_grad: bool = False, **named: Any) -> Any:
        named.pop("pin_memory", None)
        if device is None and (device := _find_default_gpu()) is not None:
            named["device"] = CPU
        unknown: list[Any] = []
        if data and type(data[0]) in {list, tuple}:
            data = (_put_numbers(data[0], unknown), *data[1:])
        if unknown and type(unknown[0]) is fake_tensor.FakeTensor:
            named.setdefault("dtype", unknown[0].dtype)
        made = create(*data, **named)
        if unknown:
            made.__dict__.pop("labkit_value", None)
        made = made if device is None else move(made, device)
        return made.requires_grad_() if requires_grad else made

    return make


def move_tensors(mode: FakeMode) -> contextlib.ExitStack:
    """Makes the methods of tensors that move them or name their device follow the placement."""
    move, cpu, new_tensor = _make_move(mode), torch.Tensor.cpu, torch.Tensor.new_tensor

    def make_like(tensor: Any, data: Any, **named: Any) -> Any:
        if tensor.device.type != "cuda" and named.get("device") is None:
            return new_tensor(tensor, data, **named)
        taken = {name: one for name, one in named.items() if name == "requires_grad"}
        dtype, device = named.get("dtype") or tensor.dtype, named.get("device")
        device = tensor.device if device is None else device
        return torch.tensor(data, dtype=dtype, device=device, **taken)

    created = replace_in_thread(
        torch,
        ctc_loss=_make_ctc_loss(move),
        tensor=_make_creator(torch.tensor, move),
        as_tensor=_make_creator(torch.as_tensor, move),
        asarray=_make_creator(torch.asarray, move),
    )
    replaced = replace_in_thread(
        torch.Tensor,
        to=move,
        cuda=lambda tensor, device=None, *_, **__: move(
            tensor, "cuda" if device is None else device
        ),
        cpu=lambda tensor, *arguments, **named: (
            move(tensor, CPU) if tensor.device.type == "cuda" else cpu(tensor, *arguments, **named)
        ),
        pin_memory=lambda tensor, *_, **__: tensor.clone(),
        is_pinned=lambda tensor, *_, **__: False,
        new_tensor=make_like,
        record_stream=lambda tensor, stream: None,
        is_cuda=property(lambda tensor: tensor.device.type == "cuda"),
        get_device=lambda tensor: -1 if tensor.device.index is None else tensor.device.index,
    )  # fmt: skip
    stack = contextlib.ExitStack()
    stack.enter_context(created)
    stack.enter_context(replaced)
    return stack


class _Idle:
    """A CUDA event or stream: it waits for nothing and takes no time."""

    cuda_stream, device, device_index, stream_id = 0, NAMED, 0, 0

    def __init__(self, *others: Any, **named: Any) -> None: ...

    def __enter__(self) -> _Idle:
        return self

    def __exit__(self, *error: Any) -> None: ...

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def elapsed_time(self, other: Any) -> float:
        return 1.0

    def _pass(self, *others: Any, **named: Any) -> _Idle:
        return self

    record = record_event = wait = wait_event = wait_stream = synchronize = _pass


class HostGenerator(torch.Generator):  # type: ignore[misc]
    """A generator of the CPU, for any device; a class, as ``torch.Generator | None`` needs one."""

    def __new__(cls, *device: Any, **named: Any) -> HostGenerator:
        """A generator whose device is the CPU."""
        return super().__new__(cls)  # type: ignore[no-any-return]


# Functions of torch.cuda that return nothing and change no tensor.
CALLS = """synchronize empty_cache set_device ipc_collect init _lazy_init manual_seed
    manual_seed_all seed reset_peak_memory_stats reset_max_memory_allocated set_stream
    set_per_process_memory_fraction set_rng_state set_rng_state_all
    reset_accumulated_memory_stats"""


# What a GPU has tensors of.
DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip


def _list_statistics(level: Any) -> Counter[str]:
    """What ``torch.cuda.memory_stats`` returns; 0 for what is not followed."""
    counts = Counter[str]()
    for name in ("allocated", "reserved", "active"):
        counts[f"{name}_bytes.all.current"] = level.now_bytes
        counts[f"{name}_bytes.all.peak"] = level.peak_bytes
    return counts


def _scatter(tensor: Any, devices: Any, sizes: Any, dim: int, streams: Any) -> list[Any]:
    """Parts of a tensor, each on its GPU."""
    parts = tensor.split(sizes, dim) if sizes else tensor.chunk(len(devices), dim)
    return [
        part.to(torch.device("cuda", number)) for part, number in zip(parts, devices, strict=False)
    ]


def _move_first(scatter: Callable[..., Any]) -> Callable[..., Any]:
    """``Scatter.forward``: it names a GPU by its number alone, which torch refuses without one."""

    def forward(ctx: Any, devices: Any, sizes: Any, dim: int, given: Any) -> Any:
        is_here = given.device.type != "cuda"
        found = scatter(ctx, devices, sizes, dim, given.to("cuda") if is_here else given)
        ctx.input_device = -1 if is_here else ctx.input_device
        return found

    return forward


def _gather(tensors: Any, dim: int, destination: int | None) -> Any:
    """The tensors in one, on a GPU; -1 is the CPU."""
    device = torch.device("cuda", destination or 0) if destination != -1 else CPU
    return torch.cat([one.to(device) for one in tensors], dim)


def _broadcast(tensors: Any, devices: Any, *size: int) -> list[list[Any]]:
    """The tensors on each of the GPUs; those that are there already are no copies."""
    return [[one.to(torch.device("cuda", number)) for one in tensors] for number in devices]


def _list_accelerator(
    memory: Callable[..., tuple[int, int]], levels: Callable[[], Any]
) -> dict[str, Callable[..., Any]]:
    """What answers ``torch.accelerator``, by the names of C's functions; some torch lacks some."""
    nothing = (
        "setDeviceIndex setStream synchronizeDevice maybeExchangeDevice emptyCache emptyHostCache"
        " resetAccumulatedStats resetPeakStats"
    )
    answers: dict[str, Callable[..., Any]] = dict.fromkeys(nothing.split(), lambda *_: None)
    answers |= {
        "getAccelerator": lambda: torch.device("cuda"),
        "getDeviceIndex": lambda: 0,
        "exchangeDevice": lambda *_: 0,
        "getStream": _Idle,
        "isAllocatorInitialized": lambda: True,
        "getDeviceStats": lambda *_: dict(_list_statistics(levels())),
        "getMemoryInfo": memory,
        "getDeviceCapability": lambda *_: {"supported_dtypes": {*DTYPES}},
    }
    found = {f"_accelerator_{name}": one for name, one in answers.items()}
    return {name: one for name, one in found.items() if hasattr(torch._C, name)}


def _do_nothing(*arguments: Any, **named: Any) -> None: ...


def _list_cuda(
    target: Target, capacity: int, tell_free: Callable[..., Any], levels: Callable[[], Any]
) -> dict[str, Any]:
    """What ``torch.cuda`` has on the target, by name; a few functions do nothing."""
    major, minor = (9, 0) if target.is_hopper else (8, 0)
    facts = SimpleNamespace(
        name=target.name, total_memory=capacity, major=major, minor=minor,
        multi_processor_count=132, is_integrated=False, warp_size=32,
    )  # fmt: skip

    def answer(value: Any) -> Callable[..., Any]:
        return lambda *arguments, **named: value

    return {
        **dict.fromkeys(CALLS.split(), _do_nothing),
        **dict.fromkeys(("Event", "Stream", "device", "device_of", "stream"), _Idle),
        "_initialized": False,
        "is_available": answer(True),
        "is_initialized": answer(True),
        "is_bf16_supported": answer(True),
        "is_current_stream_capturing": answer(False),
        "device_count": answer(1),
        "current_device": answer(0),
        "current_stream": _Idle,
        "default_stream": _Idle,
        "get_device_name": answer(target.name),
        "get_device_capability": answer((major, minor)),
        "get_device_properties": answer(facts),
        "cudart": lambda: SimpleNamespace(cudaMemGetInfo=tell_free),
        "mem_get_info": tell_free,
        "memory_stats": lambda *_, **__: _list_statistics(levels()),
        "memory_summary": answer(""),
        "memory_snapshot": answer([]),
        "utilization": answer(0),
        "can_device_access_peer": answer(False),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "memory_allocated": lambda *_, **__: levels().now_bytes,
        "memory_reserved": lambda *_, **__: levels().now_bytes,
        "max_memory_allocated": lambda *_, **__: levels().peak_bytes,
        "max_memory_reserved": lambda *_, **__: levels().peak_bytes,
    }


def simulate_calls(target: Target, levels: Callable[[], Any]) -> contextlib.ExitStack:
    """Makes ``torch.cuda`` answer as on the target; ``levels()`` is the GPU's Level."""
    capacity = target.capacity_bytes or 80 * 1024 * MIB

    def tell_free(*device: Any, **named: Any) -> tuple[int, int]:
        return capacity - levels().now_bytes, capacity

    stack = contextlib.ExitStack()
    answers = _list_cuda(target, capacity, tell_free, levels)
    stack.enter_context(replace_in_thread(torch.cuda, **answers))
    stack.enter_context(
        replace_in_thread(torch, Generator=HostGenerator, Stream=_Idle, Event=_Idle)
    )
    kind = torch.nn.parallel._functions.Scatter
    forward = staticmethod(_move_first(kind.forward))
    stack.enter_context(replace_in_thread(kind, forward=forward))
    # A script may have imported the functions that call these.
    names = ("_cuda_synchronize", "_cuda_setDevice", "_cuda_emptyCache")
    inner: dict[str, Callable[..., Any]] = dict.fromkeys(names, _do_nothing)
    inner |= _list_accelerator(tell_free, levels)
    # What nn.parallel calls; a build without CUDA does not have them.
    inner |= {"_scatter": _scatter, "_gather": _gather, "_broadcast_coalesced": _broadcast}
    stack.enter_context(replace_in_thread(torch._C, **inner))
    return stack
