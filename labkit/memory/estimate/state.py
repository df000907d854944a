"""What a simulated step sets for the whole process, put back when it has run.

A step may choose torch's default type and device, turn gradients off, ask for deterministic
operators, seed generators, set environment variables, or leave a profiler on. The real step, or
another estimate, begins as the simulated one did.

Each entry of the tables below says how a setting is read and how it is put back. Nothing is put
back that has not changed: another thread may have set it meanwhile. Python's context variables,
such as NumPy's and ``decimal``'s, need no entry: the step runs in a copy of the context.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import faulthandler
import functools
import gc
import locale
import logging
import operator
import os
import random
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.overrides import _get_current_function_mode_stack

from labkit.memory.estimate.cuda import replace_attributes
from labkit.memory.estimate.signals import FIND_HANDLER
from labkit.memory.track.frames import USER, judge_file
from labkit.text import first_line

BACKENDS = torch.backends
# Each of torch's precisions is inherited from those before it.
PRECISIONS = (
    ("generic", "all"),
    *(("cuda", one) for one in ("all", "matmul", "conv", "rnn")),
    *(("mkldnn", one) for one in ("all", "matmul", "conv", "rnn")),
)
AUTOCAST = ("cpu", "cuda")


class Setting(NamedTuple):
    """How a setting is read, and put back: ``put`` takes what ``read`` returned."""

    name: str
    read: Callable[[], Any]
    put: Callable[[Any], object]


def _spread(put: Callable[..., object]) -> Callable[[Any], object]:
    return lambda values: put(*values)


# Owner, and its functions that read a setting and set it.
CALLS: tuple[tuple[Any, str, str], ...] = (
    (torch, "get_default_dtype", "set_default_dtype"),
    (torch, "is_grad_enabled", "set_grad_enabled"),
    (torch, "get_num_threads", "set_num_threads"),
    (torch, "get_float32_matmul_precision", "set_float32_matmul_precision"),
    (torch, "is_warn_always_enabled", "set_warn_always"),
    (torch, "is_autocast_cache_enabled", "set_autocast_cache_enabled"),
    (torch._C, "_get_cublas_allow_tf32", "_set_cublas_allow_tf32"),
    (torch._C, "_get_cudnn_allow_tf32", "_set_cudnn_allow_tf32"),
    (torch._C, "_get_mkldnn_enabled", "_set_mkldnn_enabled"),
    (torch._C, "_get_mkldnn_deterministic", "_set_mkldnn_deterministic"),
    (torch._C, "_get_nnpack_enabled", "_set_nnpack_enabled"),
    (torch._C, "_get_flash_sdp_enabled", "_set_sdp_use_flash"),
    (torch._C, "_get_mem_efficient_sdp_enabled", "_set_sdp_use_mem_efficient"),
    (torch._C, "_get_math_sdp_enabled", "_set_sdp_use_math"),
    (torch._C, "_get_cudnn_sdp_enabled", "_set_sdp_use_cudnn"),
    (torch._C, "_get_overrideable_sdp_enabled", "_set_sdp_use_overrideable"),
    (torch._C, "_get_math_sdp_allow_fp16_bf16_reduction",
     "_set_math_sdp_allow_fp16_bf16_reduction"),
    (torch._C, "_get_sdp_priority_order", "_set_sdp_priority_order"),
    (torch._C, "_get_linalg_preferred_backend", "_set_linalg_preferred_backend"),
    (torch._C, "_get_blas_preferred_backend", "_set_blas_preferred_backend"),
    (torch._C, "_get_cublas_allow_fp16_accumulation", "_set_cublas_allow_fp16_accumulation"),
    (torch._C, "_get_qengine", "_set_qengine"),
    (torch._C, "_is_view_replay_enabled", "_set_view_replay_enabled"),
    (torch._C, "_get_graph_executor_optimize", "_set_graph_executor_optimize"),
    (torch._C, "_check_sparse_tensor_invariants", "_set_check_sparse_tensor_invariants"),
    (sys, "getrecursionlimit", "setrecursionlimit"),
    (sys, "getswitchinterval", "setswitchinterval"),
    (sys, "get_int_max_str_digits", "set_int_max_str_digits"),
    (sys, "gettrace", "settrace"),
    (sys, "getprofile", "setprofile"),
    (gc, "get_debug", "set_debug"),
    (random, "getstate", "setstate"),
    (locale, "setlocale", "setlocale"),
)  # fmt: skip


def _list_calls() -> Iterator[Setting]:
    """Settings that have a function to read and one to set them."""
    for owner, read, put in CALLS:
        if hasattr(owner, read) and hasattr(owner, put):
            arguments = (locale.LC_ALL,) if owner is locale else ()
            yield Setting(
                put,
                functools.partial(getattr(owner, read), *arguments),
                functools.partial(getattr(owner, put), *arguments),
            )
    yield Setting("gc.set_threshold", gc.get_threshold, _spread(gc.set_threshold))
    yield Setting(
        "set_anomaly_enabled",
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        _spread(torch.set_anomaly_enabled),
    )
    yield Setting(
        "use_deterministic_algorithms",
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda values: torch.use_deterministic_algorithms(values[0], warn_only=values[1]),
    )
    for kind in ("fp16", "bf16"):
        name = f"cublas_allow_{kind}_reduced_precision_reduction"
        set_pair = _spread(getattr(torch._C, f"_set_{name}"))
        yield Setting(name, functools.partial(_read_pair, f"_get_{name}"), set_pair)


def _read_pair(name: str) -> tuple[Any, ...]:
    found = getattr(torch._C, name)()
    return found if isinstance(found, tuple) else (found,)  # one value before torch 2.10


def _list_families() -> Iterator[Setting]:
    """Torch's settings of which there is one for each device or library."""
    for kind in AUTOCAST:
        yield Setting(
            "set_autocast_enabled",
            functools.partial(torch.is_autocast_enabled, kind),
            functools.partial(torch.set_autocast_enabled, kind),
        )
        yield Setting(
            "set_autocast_dtype",
            functools.partial(torch.get_autocast_dtype, kind),
            functools.partial(torch.set_autocast_dtype, kind),
        )
    if not hasattr(torch._C, "_get_fp32_precision_getter"):  # before torch 2.9
        return
    read = torch._C._get_fp32_precision_getter
    for place in PRECISIONS:
        put = functools.partial(torch._C._set_fp32_precision_setter, *place)
        yield Setting("fp32_precision", functools.partial(read, *place), put)


# Attributes of modules, and of classes of theirs, that steps set, by the names of the modules.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "torch.backends.cudnn": ("benchmark", "deterministic", "enabled", "benchmark_limit"),
    "torch.backends.opt_einsum": ("enabled", "strategy"),
    "torch.utils.deterministic": ("fill_uninitialized_memory",),
    "torch.utils.checkpoint": ("_enable_checkpoint_early_stop", "_checkpoint_debug_enabled"),
    "torch.__future__": (
        "_overwrite_module_params_on_conversion", "_swap_module_params_on_conversion"),
    "torch.hub": ("_hub_dir",),
    "torch.multiprocessing": ("_sharing_strategy",),
    "torch.distributions.distribution": ("Distribution._validate_args",),
    "torch._tensor_str": (
        "PRINT_OPTS.precision", "PRINT_OPTS.threshold", "PRINT_OPTS.edgeitems",
        "PRINT_OPTS.linewidth", "PRINT_OPTS.sci_mode"),
    "multiprocessing.context": ("_default_context._actual_context",),
    "sys": ("stdin", "stdout", "stderr", "excepthook", "displayhook", "unraisablehook"),
    "threading": ("excepthook",),
    "warnings": ("showwarning", "formatwarning"),
    "tempfile": ("tempdir",),
    "logging.root.manager": ("disable",),
}  # fmt: skip
# Lists and dictionaries whose items steps add, remove and replace.
CONTENTS: dict[str, tuple[str, ...]] = {
    "sys": ("path", "argv"),
    "gc": ("callbacks",),
    "torch._logging._internal.log_state": ("log_qname_to_level", "artifact_names"),
    "torch.cuda": ("_queued_calls",),
    "torch.optim.optimizer": (
        "_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"),
    "torch.nn.modules.module": (
        "_global_buffer_registration_hooks", "_global_module_registration_hooks",
        "_global_parameter_registration_hooks", "_global_forward_hooks",
        "_global_forward_pre_hooks", "_global_forward_hooks_with_kwargs",
        "_global_forward_hooks_always_called", "_global_backward_hooks",
        "_global_backward_pre_hooks"),
}  # fmt: skip
# Modules and classes whose functions code replaces by its own; what is added there stays.
NAMESPACES = ("builtins", "torch.nn.functional", "torch.nn.init", "torch.nn.modules.module.Module")


# The owner's path of each, and its name.
PLACES = tuple(
    f"{module}.{name}".rpartition(".")[::2]
    for module, names in ATTRIBUTES.items()
    for name in names
)


def _list_attributes() -> Iterator[Setting]:
    for path, name in PLACES:
        owner = _find(path)
        if hasattr(owner, name):
            yield Setting(
                name,
                functools.partial(getattr, owner, name),
                functools.partial(setattr, owner, name),
            )


def _list_contents() -> Iterator[Setting]:
    for module, names in CONTENTS.items():
        for name in names:
            container = getattr(_find(module), name, None)
            if container is not None:
                put = functools.partial(fill_container, container)
                yield Setting(name, container.copy, put)


def fill_container(container: Any, items: Any) -> None:
    """Gives a list, a dictionary or a set these items again."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(items)


def _find(path: str) -> Any:
    """The loaded module, or the object in it, that has this name; None if there is none."""
    found: Any = sys.modules.get(path)
    if found is None and "." in path:
        parent, _, name = path.rpartition(".")
        found = getattr(_find(parent), name, None)
    return found


def _list_namespaces() -> Iterator[Setting]:
    for path in NAMESPACES:
        owner = _find(path)
        read = functools.partial(lambda one: dict(vars(one)), owner)
        yield Setting(path, read, functools.partial(_put_names, owner))


def _put_names(owner: Any, names: dict[str, Any]) -> None:
    for name, value in names.items():
        if vars(owner).get(name) is not value:
            setattr(owner, name, value)
    if isinstance(owner, ModuleType) and owner.__name__ == "builtins":
        for name in vars(owner).keys() - names.keys():
            delattr(owner, name)


def _list_system() -> Iterator[Setting]:
    """What the operating system keeps for the process."""
    yield Setting("umask", _read_umask, os.umask)
    yield Setting("chdir", os.getcwd, os.chdir)
    yield Setting("environ", read_variables, _put_variables)
    if hasattr(os, "sched_getaffinity"):
        yield Setting(
            "affinity",
            lambda: os.sched_getaffinity(0),
            lambda cores: os.sched_setaffinity(0, cores),
        )
    limits: Any = import_optional("resource")
    for name in ("RLIMIT_NOFILE", "RLIMIT_AS", "RLIMIT_STACK", "RLIMIT_CORE") if limits else ():
        kind = getattr(limits, name)
        yield Setting(
            name,
            functools.partial(limits.getrlimit, kind),
            functools.partial(limits.setrlimit, kind),
        )
    if hasattr(signal, "setitimer"):
        yield Setting("alarm", _read_alarm, _set_alarm)
        for which in (signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            read, put = functools.partial(_read_timer, which), functools.partial(_put_timer, which)
            yield Setting("setitimer", read, put)
    yield Setting("signals", _read_signals, _put_signals)
    if hasattr(signal, "pthread_sigmask"):
        yield Setting(
            "signal.pthread_sigmask",
            lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            functools.partial(signal.pthread_sigmask, signal.SIG_SETMASK),
        )


def import_optional(name: str) -> ModuleType | None:
    """A module of Python's that some systems do not have."""
    with contextlib.suppress(ImportError):
        return __import__(name)
    return None


STATUS = "/proc/thread-self/status"
OPEN, CLOSE = os.open, os.close


def _read_umask() -> int:
    """The mask of new files' permissions, without the moment in which another one holds."""
    with contextlib.suppress(OSError):
        number = OPEN(STATUS, os.O_RDONLY)
        try:
            _, found, rest = os.read(number, 4096).partition(b"\nUmask:")
        finally:
            CLOSE(number)
        if found:
            return int(rest.split(None, 1)[0], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read_variables() -> dict[Any, Any]:
    """The environment's variables, as Python keeps them: encoded, where the system has bytes."""
    return dict(getattr(os.environ, "_data", os.environ))


def _put_variables(kept: dict[Any, Any]) -> None:
    read, variables = os.environ, kept
    if hasattr(read, "_data"):
        variables = {read.decodekey(name): read.decodevalue(one) for name, one in kept.items()}
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)
    if hasattr(time, "tzset"):
        time.tzset()


def _read_alarm() -> tuple[int, float]:
    """When the process's timer ends, in whole seconds, or 0; and its interval."""
    seconds, interval = signal.getitimer(signal.ITIMER_REAL)
    return round(time.monotonic() + seconds) if seconds else 0, interval


def _set_alarm(alarm: tuple[int, float]) -> None:
    end, interval = alarm
    left = max(0.0, end - time.monotonic())
    if left or not end:  # else it has ended meanwhile
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def _read_timer(which: int) -> tuple[bool, float]:
    """Whether a timer of the process's own seconds runs, and its interval."""
    seconds, interval = signal.getitimer(which)
    return seconds > 0, interval


def _put_timer(which: int, timer: tuple[bool, float]) -> None:
    runs, interval = timer
    signal.setitimer(which, (interval or 1.0) if runs else 0.0, interval)


SIGNALS = tuple(map(int, signal.Signals))


def _read_signals() -> dict[int, Any]:
    # One of C's own cannot be put back.
    found = zip(SIGNALS, map(FIND_HANDLER, SIGNALS), strict=True)
    return {number: one for number, one in found if one is not None}


def _put_signals(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if FIND_HANDLER(number) is not handler:
            signal.signal(number, handler)


def _list_switches() -> Iterator[Setting]:
    """What is on or off."""
    for name, read, start, stop in (
        ("gc.disable", gc.isenabled, gc.enable, gc.disable),
        ("gc.freeze", lambda: gc.get_freeze_count() > 0, _do_nothing, gc.unfreeze),
        ("faulthandler", faulthandler.is_enabled, faulthandler.enable, faulthandler.disable),
        ("tracemalloc", tracemalloc.is_tracing, tracemalloc.start, tracemalloc.stop),
        ("profiler", torch.autograd._profiler_enabled, _do_nothing, _stop_profiler),
        ("init_process_group", _is_distributed, _do_nothing, _leave_group),
    ):
        yield Setting(name, read, functools.partial(_switch, start, stop))


def _switch(start: Callable[[], object], stop: Callable[[], object], is_on: bool) -> None:
    (start if is_on else stop)()


def _do_nothing() -> None: ...


def _stop_profiler() -> None:
    torch.autograd._disable_profiler()
    torch.autograd.profiler._run_on_profiler_stop()


def _is_distributed() -> bool:
    return torch.distributed.is_available() and bool(torch.distributed.is_initialized())


def _leave_group() -> None:
    torch.distributed.destroy_process_group()


def _list_others() -> Iterator[Setting]:
    """Settings with a way of their own."""
    yield Setting("set_default_device", _find_default_device, torch.set_default_device)
    yield Setting(
        "function modes", lambda: len(_get_current_function_mode_stack()), _leave_functions
    )
    yield Setting("saved_tensors_hooks", _find_hooks, _pop_hooks)
    yield Setting("set_flush_denormal", _flushes, torch.set_flush_denormal)
    yield Setting("configurations", _read_configurations, _put_configurations)
    yield Setting("loggers", _read_loggers, _put_loggers)
    yield Setting("thread names", _read_threads, _put_threads)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        yield Setting("numpy.random", _read_numpy, _put_numpy)
        # Context variables since NumPy 2.
        yield Setting("seterr", numpy.geterr, lambda values: numpy.seterr(**values))
        yield Setting("seterrcall", numpy.geterrcall, numpy.seterrcall)
    if "decimal" in sys.modules:
        # The copy of a context variable has the same context of decimal's.
        yield Setting("decimal", _read_decimal, _put_decimal)
    sockets: Any = sys.modules.get("socket")
    if sockets is not None:
        yield Setting("setdefaulttimeout", sockets.getdefaulttimeout, sockets.setdefaulttimeout)


def _find_default_device() -> torch.device | None:
    """The device that ``torch.set_default_device`` was called with; None if it was not."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _leave_functions(count: int) -> None:
    """Leaves the modes that the step has entered, such as ``torch.device("meta")``."""
    while len(_get_current_function_mode_stack()) > count:
        torch._C._pop_torch_function_stack()


@contextlib.contextmanager
def keep_modes() -> Iterator[None]:
    """Leaves, on exit, the dispatch modes that the block has entered and not left."""
    count = torch._C._len_torch_dispatch_stack()
    try:
        yield
    finally:
        while torch._C._len_torch_dispatch_stack() > count:
            torch._C._pop_torch_dispatch_stack(None)


def _find_hooks() -> Any:
    find = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return find(True) if find else None


def _pop_hooks(before: Any) -> None:
    while (found := _find_hooks()) is not None and found != before:
        torch._C._autograd._pop_saved_tensors_default_hooks()


TINY = 1e-310


def _flushes() -> bool:
    # The processor's own setting, which Python's numbers follow too.
    return TINY * len(".") == 0


def _read_configurations() -> dict[Any, Any]:
    """The settings of torch's compiler, by their entries; context variables since torch 2.13."""
    found = {}
    for name in ("torch._dynamo", "torch._inductor", "torch._functorch"):
        module = sys.modules.get(f"{name}.config")
        for entry in getattr(module, "_config", {}).values():
            value = getattr(entry, "user_override", None)
            if isinstance(value, contextvars.ContextVar):
                return {}
            found[id(entry)] = module, entry, value
    return found


def _put_configurations(entries: dict[Any, Any]) -> None:
    for module, entry, value in entries.values():
        if getattr(entry, "user_override", None) is not value:
            entry.user_override, module._is_dirty = value, True


def _read_threads() -> dict[Any, str]:
    return {one: one._name for one in threading.enumerate()}  # type: ignore[attr-defined]


def _put_threads(names: dict[Any, str]) -> None:
    for one, name in names.items():
        if one.name != name:
            one.name = name


# Torch alone has some hundred loggers: what few of them have is kept by their places.
Loggers = tuple[list[Any], list[tuple[Any, ...]], dict[int, tuple[list[Any], list[Any]]]]
READ_LOGGER = operator.attrgetter("level", "disabled", "propagate")


def _read_loggers() -> Loggers:
    known = [logging.root, *list(logging.root.manager.loggerDict.values())]
    loggers = [one for one in known if isinstance(one, logging.Logger)]
    lists = {
        place: (one.handlers[:], one.filters[:])
        for place, one in enumerate(loggers)
        if one.handlers or one.filters
    }
    return loggers, [*map(READ_LOGGER, loggers)], lists


def _put_loggers(kept: Loggers) -> None:
    for place, (logger, values) in enumerate(zip(*kept[:2], strict=True)):
        level, disabled, propagate = values
        handlers, filters = kept[2].get(place, ([], []))
        if logger.level != level:
            logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate
        for one in set(logger.handlers) - set(handlers):
            one.close()
        if logger.handlers != handlers:
            logger.handlers[:] = handlers
        if logger.filters != filters:
            logger.filters[:] = filters


def list_handlers() -> list[logging.Handler]:
    """All handlers of logging."""
    found = (one() for one in list(logging._handlerList))  # type: ignore[attr-defined]
    return [one for one in found if one is not None]


ARITHMETIC = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def read_arithmetic(context: Any) -> list[Any]:
    """The settings of a context of decimal's, and what has happened in it."""
    signals = dict(context.flags), dict(context.traps)
    return [*(getattr(context, name) for name in ARITHMETIC), *signals]


def put_arithmetic(context: Any, values: list[Any]) -> None:
    """Gives a context of decimal's these."""
    for name, value in zip((*ARITHMETIC, "flags", "traps"), values, strict=True):
        setattr(context, name, value)


def _read_decimal() -> list[Any]:
    return read_arithmetic(sys.modules["decimal"].getcontext())


def _put_decimal(values: list[Any]) -> None:
    put_arithmetic(sys.modules["decimal"].getcontext(), values)


def _read_numpy() -> Any:
    name, words, *others = sys.modules["numpy"].random.get_state()
    return name, words.dtype.str, words.tobytes(), *others


def _put_numpy(state: Any) -> None:
    name, kind, words, *others = state
    numpy = sys.modules["numpy"]
    numpy.random.set_state((name, numpy.frombuffer(words, kind), *others))


LISTS = (
    _list_calls, _list_families, _list_attributes, _list_contents, _list_namespaces, _list_system,
    _list_switches, _list_others,
)  # fmt: skip
# Modules that have settings once something has imported them.
IMPORTED = ("numpy", "decimal", "socket")
UNKNOWN = object()


def _list_owners() -> list[Any]:
    """What has the settings now: functions, modules, classes and containers."""
    return [
        *(getattr(owner, name, None) for owner, *pair in CALLS for name in pair),
        *(_find(path) for path, _ in PLACES),
        *(getattr(_find(module), name, None) for module, names in CONTENTS.items()
          for name in names),
        *map(_find, NAMESPACES),
        *map(sys.modules.get, IMPORTED),
    ]  # fmt: skip


# The owners of then, and their settings: making some hundred takes as long as reading them.
_listed: list[tuple[list[Any], list[Setting]]] = []


def _list_settings() -> list[Setting]:
    """All settings; those of before, as long as the same objects have them."""
    owners = _list_owners()
    for known, settings in _listed:
        if all(map(operator.is_, owners, known)):
            return settings
    _listed[:] = [(owners, [one for list_some in LISTS for one in list_some()])]
    return _listed[0][1]


def _read(setting: Setting) -> Any:
    try:
        return setting.read()
    # Torch refuses to name a precision that was set in two ways.
    except (RuntimeError, AttributeError, ValueError, OSError):
        return UNKNOWN


def _differ(one: Any, other: Any) -> bool:
    try:
        return bool(one != other)
    except Exception:  # what the user's objects raise
        return True


@contextlib.contextmanager
def keep_state(note: Callable[[str], object]) -> Iterator[None]:
    """Puts back, on exit, what the block set for the whole process.

    ``note`` takes a sentence about what could not be put back.
    """
    kept = [(one, _read(one)) for one in _list_settings()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices), _hold_exits():
        try:
            yield
        finally:
            for setting, value in kept:
                if value is not UNKNOWN and _differ(_read(setting), value):
                    _put(setting, value, note)
            # In a block of autocast, its cache keeps what the step's parameters were cast to.
            torch.clear_autocast_cache()


def _put(setting: Setting, value: Any, note: Callable[[str], object]) -> None:
    try:
        setting.put(value)
    except Exception as error:
        said = first_line(str(error)) or type(error).__name__
        note(f"what the step set for the process stays set: {setting.name} ({said})")


@contextlib.contextmanager
def _hold_exits() -> Iterator[None]:
    """Registers nothing for the end of the process that the step's own lines register."""
    register = atexit.register

    def hold(function: Any, /, *arguments: Any, **named: Any) -> Any:
        if judge_file(sys._getframe(1).f_code.co_filename) == USER:
            return function
        return register(function, *arguments, **named)

    with replace_attributes(atexit, register=hold):
        yield


# What each running keep_variables() puts back.
_variables: list[dict[Any, Any]] = []


@contextlib.contextmanager
def keep_variables() -> Iterator[None]:
    """Puts back, on exit, what the block set in the environment; torch sets some as it starts."""
    variables = read_variables()
    _variables.append(variables)
    try:
        yield
    finally:
        _variables.remove(variables)
        if read_variables() != variables:
            _put_variables(variables)


@contextlib.contextmanager
def let_variables() -> Iterator[None]:
    """Lets what the block sets in the environment be, where keep_variables() would put it back."""
    before = read_variables()
    try:
        yield
    finally:
        now = read_variables()
        for kept in _variables if now != before else ():
            for name in before.keys() - now.keys():
                kept.pop(name, None)
            kept |= {name: now[name] for name in now if now[name] != before.get(name)}
