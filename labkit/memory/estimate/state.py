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
import codecs
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

from labkit.memory.estimate.cuda import find_number, replace_attributes
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
AUTOCAST = ("cpu", "cuda", "xpu", "mps", "hpu", "mtia", "privateuseone")


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
    (torch._C, "_jit_texpr_fuser_enabled", "_jit_set_texpr_fuser_enabled"),
    (torch._C, "_check_sparse_tensor_invariants", "_set_check_sparse_tensor_invariants"),
    (sys, "getrecursionlimit", "setrecursionlimit"),
    (sys, "getswitchinterval", "setswitchinterval"),
    (sys, "get_int_max_str_digits", "set_int_max_str_digits"),
    (sys, "gettrace", "settrace"),
    (sys, "getprofile", "setprofile"),
    (sys, "get_coroutine_origin_tracking_depth", "set_coroutine_origin_tracking_depth"),
    (threading, "gettrace", "settrace"),
    (threading, "getprofile", "setprofile"),
    (gc, "get_debug", "set_debug"),
    (random, "getstate", "setstate"),
    (locale, "setlocale", "setlocale"),
)  # fmt: skip


def _list_calls() -> Iterator[Setting]:
    """Settings that have a function to read and one to set them."""
    line: Any = sys.modules.get("readline")
    typed = (line, "get_completer", "set_completer")
    for owner, read, put in (*CALLS, typed):
        if hasattr(owner, read) and hasattr(owner, put):
            arguments = (locale.LC_ALL,) if owner is locale else ()
            yield Setting(
                put,
                functools.partial(getattr(owner, read), *arguments),
                functools.partial(getattr(owner, put), *arguments),
            )
    yield Setting("gc.set_threshold", gc.get_threshold, _spread(gc.set_threshold))
    yield Setting("set_asyncgen_hooks", sys.get_asyncgen_hooks, _spread(sys.set_asyncgen_hooks))
    yield Setting("threading.stack_size", threading.stack_size, threading.stack_size)
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
    "torch.backends.mha": ("_is_fastpath_enabled",),
    "torch.jit._state": ("_enabled.enabled",),
    "torch.hub": ("_hub_dir",),
    "torch.multiprocessing": ("_sharing_strategy",),
    "torch.distributions.distribution": ("Distribution._validate_args",),
    "torch._tensor_str": (
        "PRINT_OPTS.precision", "PRINT_OPTS.threshold", "PRINT_OPTS.edgeitems",
        "PRINT_OPTS.linewidth", "PRINT_OPTS.sci_mode"),
    "multiprocessing.context": ("_default_context._actual_context",),
    "multiprocessing.process": ("_current_process._name",),
    "sys": (
        "stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__", "excepthook",
        "displayhook", "unraisablehook", "breakpointhook", "ps1", "ps2", "tracebacklimit",
        "pycache_prefix"),
    "os": ("environ",),
    "threading": ("excepthook",),
    "warnings": ("showwarning", "formatwarning"),
    "tempfile": ("tempdir",),
    "mimetypes": ("_db", "inited"),
    "urllib.request": ("_opener",),
    "ssl": ("_create_default_https_context",),
    "reprlib.aRepr": ("maxlevel", "maxdict", "maxlist", "maxtuple", "maxset", "maxstring"),
    "logging": ("lastResort", "raiseExceptions"),
    "logging.root.manager": ("disable",),
}  # fmt: skip
# Lists and dictionaries whose items steps add, remove and replace, or that they replace.
CONTENTS: dict[str, tuple[str, ...]] = {
    "sys": ("path", "argv", "orig_argv", "warnoptions", "meta_path", "path_hooks"),
    "gc": ("callbacks",),
    "warnings": ("onceregistry",),
    "logging": ("_levelToName", "_nameToLevel"),
    "locale": ("_override_localeconv",),
    "encodings.aliases": ("aliases",),
    "mimetypes": ("types_map", "common_types", "encodings_map", "suffix_map"),
    "shutil": ("_ARCHIVE_FORMATS", "_UNPACK_FORMATS"),
    "sqlite3": ("adapters", "converters"),
    "webbrowser": ("_browsers", "_tryorder"),
    "doctest": ("OPTIONFLAGS_BY_NAME",),
    "xml.etree.ElementTree": ("_namespace_map",),
    "copyreg": ("_extension_registry", "_inverted_registry"),
    "unittest.mock": ("_patch._active_patches",),
    "multiprocessing.process": ("_current_process._config",),
    "torch.serialization": ("_package_registry",),
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
# The same, to which torch and Python add too as they import: what is theirs stays.
REGISTRIES: dict[str, tuple[str, ...]] = {
    "sys": ("path_importer_cache",),
    "copy": ("_deepcopy_dispatch", "_copy_dispatch"),
    "copyreg": ("dispatch_table",),
    "pprint": ("PrettyPrinter._dispatch",),
    "multiprocessing.reduction": ("ForkingPickler._extra_reducers",),
    "torch._weights_only_unpickler": ("_marked_safe_globals_set",),
    "torch.distributions.kl": ("_KL_REGISTRY", "_KL_MEMOIZE"),
    "torch.distributions.constraint_registry": ("biject_to._registry", "transform_to._registry"),
    "torch.utils._pytree": (
        "SUPPORTED_NODES", "SUPPORTED_SERIALIZED_TYPES", "SERIALIZED_TYPE_TO_PYTHON_TYPE",
        "CONSTANT_NODES"),
}  # fmt: skip
# Modules and classes whose functions code replaces by its own; what is added there stays.
NAMESPACES = ("builtins", "torch.nn.functional", "torch.nn.init", "torch.nn.modules.module.Module")


# Modules of which a simulation leaves nothing behind, and that it may import itself.
OWN_MODULES = frozenset((*sys.stdlib_module_names, "labkit", "torch")) - {"__main__"}
UNSET = object()
# The owner's path of each, and its name.
PLACES = tuple(
    f"{module}.{name}".rpartition(".")[::2]
    for module, names in ATTRIBUTES.items()
    for name in names
)


def _list_attributes() -> Iterator[Setting]:
    for path, name in PLACES:
        owner = _find(path)
        if owner is not None:
            yield Setting(
                name,
                functools.partial(_read_attribute, owner, name),
                functools.partial(_put_attribute, owner, name),
            )


def _read_attribute(owner: Any, name: str) -> tuple[int, Any]:
    """The number of a value, and itself: another one may be equal."""
    value = getattr(owner, name, UNSET)
    return find_number(value), value


def _put_attribute(owner: Any, name: str, kept: tuple[int, Any]) -> None:
    _, value = kept
    if value is not UNSET:
        setattr(owner, name, value)
    elif name in vars(owner):
        delattr(owner, name)


def _list_containers(table: dict[str, tuple[str, ...]]) -> Iterator[tuple[Any, str]]:
    """What has the containers of a table, and their names there."""
    for module, names in table.items():
        for one in names:
            path, _, name = f"{module}.{one}".rpartition(".")
            owner = _find(path)
            if getattr(owner, name, None) is not None:
                yield owner, name


def _list_contents() -> Iterator[Setting]:
    for table, put in ((CONTENTS, _put_container), (REGISTRIES, _put_registry)):
        for owner, name in _list_containers(table):
            read = functools.partial(_read_container, owner, name)
            yield Setting(name, read, functools.partial(put, owner, name))


def _read_container(owner: Any, name: str) -> tuple[int, Any, Any]:
    """The number of a container, itself, and its items."""
    found = getattr(owner, name)
    return find_number(found), found, found.copy()


def _put_container(owner: Any, name: str, kept: tuple[int, Any, Any]) -> None:
    _, container, items = kept
    if getattr(owner, name) is not container:
        setattr(owner, name, container)
    if _differ(container, items):
        fill_container(container, items)


def fill_container(container: Any, items: Any) -> None:
    """Gives a list, a dictionary or a set these items again."""
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(items)


def _put_registry(owner: Any, name: str, kept: tuple[int, Any, Any]) -> None:
    """Puts a container back, but for what modules of Python and torch have added to it."""
    number, container, before = kept
    now = getattr(owner, name).copy()
    items = dict.fromkeys(before) if isinstance(before, set) else dict(before)
    found = dict.fromkeys(now) if isinstance(now, set) else dict(now)
    added = {key: one for key, one in found.items() if key not in items and _is_own(key, one)}
    _put_container(owner, name, (number, container, type(before)({**items, **added})))


def _is_own(*parts: Any) -> bool:
    """True for what is made of nothing but Python's and torch's functions and classes."""
    flat = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
    names = [getattr(one, "__module__", None) or type(one).__module__ for one in flat]
    return all(name.partition(".")[0] in OWN_MODULES for name in names)


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
        first = sys.modules["decimal"].DefaultContext
        read = functools.partial(read_arithmetic, first)
        yield Setting("DefaultContext", read, functools.partial(put_arithmetic, first))
    tables: Any = sys.modules.get("csv")
    if tables is not None:
        yield Setting("field_size_limit", tables.field_size_limit, tables.field_size_limit)
        yield Setting("register_dialect", _read_dialects, _put_dialects)
    if "asyncio.events" in sys.modules:
        yield Setting("set_event_loop", _find_loop, _put_loop)
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


def _read_threads() -> tuple[dict[Any, str], frozenset[str]]:
    """The names of all threads, and the attributes that this one has been given."""
    names = {one: one._name for one in threading.enumerate()}  # type: ignore[attr-defined]
    return names, frozenset(vars(threading.current_thread()))


def _put_threads(kept: tuple[dict[Any, str], frozenset[str]]) -> None:
    names, attributes = kept
    for one, name in names.items():
        if one.name != name:
            one.name = name
    this = threading.current_thread()
    for name in vars(this).keys() - attributes:
        delattr(this, name)


def _read_dialects() -> dict[str, Any]:
    """The formats that the module csv knows by name."""
    tables = sys.modules["csv"]
    return {name: tables.get_dialect(name) for name in tables.list_dialects()}


def _put_dialects(kept: dict[str, Any]) -> None:
    tables, now = sys.modules["csv"], _read_dialects()
    for name in now.keys() - kept.keys():
        tables.unregister_dialect(name)
    for name, one in kept.items():
        if now.get(name) is not one:
            tables.register_dialect(name, one)


def _find_loop() -> tuple[Any, Any]:
    """What makes event loops, and the one that this thread has been given; None without them."""
    policy = getattr(sys.modules["asyncio.events"], "_event_loop_policy", None)
    return policy, getattr(getattr(policy, "_local", None), "_loop", None)


def _put_loop(before: tuple[Any, Any]) -> None:
    """Gives the thread its event loop again, and closes the step's."""
    policy, loop = before
    _, made = _find_loop()
    if made is not None and made is not loop and not made.is_running():
        made.close()
    vars(sys.modules["asyncio.events"])["_event_loop_policy"] = policy
    if policy is not None:
        policy._local._loop = loop
        policy._local._set_called = loop is not None


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
    _clear_loggers({*map(find_number, kept[0])})
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


def _clear_loggers(known: set[int]) -> None:
    """Has the loggers that the step has made be as new ones are; Python's and torch's stay."""
    for name, one in list(logging.root.manager.loggerDict.items()):
        own = name.partition(".")[0] in OWN_MODULES
        if isinstance(one, logging.Logger) and find_number(one) not in known and not own:
            one.setLevel(logging.NOTSET)
            one.disabled, one.propagate = False, True
            for handler in one.handlers:
                handler.close()
            one.handlers.clear()
            one.filters.clear()


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
IMPORTED = ("numpy", "decimal", "socket", "csv", "readline", "asyncio.events")
UNKNOWN = object()


def _list_owners() -> list[Any]:
    """What has the settings now: functions, modules, classes and containers."""
    return [
        *(getattr(owner, name, None) for owner, *pair in CALLS for name in pair),
        *(_find(path) for path, _ in PLACES),
        *(owner for table in (CONTENTS, REGISTRIES) for owner, _ in _list_containers(table)),
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
    with torch.random.fork_rng(devices=devices), contextlib.ExitStack() as stack:
        for held in (*_hold_lasting(), _take_back()):
            stack.enter_context(held)
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


def _answer_nothing(*_: Any, **__: Any) -> None: ...


# What stays for the process's life, or shows nothing of what it has: the step's own lines do none
# of it. By its place, what they get instead.
LASTING: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (atexit, "register", lambda function, *_, **__: function),
    (sys, "addaudithook", _answer_nothing),
    (os, "register_at_fork", _answer_nothing),
    (faulthandler, "register", _answer_nothing),
    (faulthandler, "dump_traceback_later", _answer_nothing),
)


def _hold_lasting() -> Iterator[contextlib.AbstractContextManager[Any]]:
    """What replaces the functions of LASTING."""
    for owner, name, answer in LASTING:
        if hasattr(owner, name):
            yield replace_attributes(owner, **{name: _choose(getattr(owner, name), answer)})


def _choose(act: Callable[..., Any], answer: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(act)
    def hold(*arguments: Any, **named: Any) -> Any:
        is_users = judge_file(sys._getframe(1).f_code.co_filename) == USER
        return (answer if is_users else act)(*arguments, **named)

    return hold


@contextlib.contextmanager
def _take_back() -> Iterator[None]:
    """Takes back, on exit, what the block has registered where nothing lists it."""
    abstract: Any = sys.modules["abc"]
    join, search = abstract._abc_register, codecs.register
    joined: dict[Any, list[Any]] = {}
    searched: list[Any] = []

    def note_class(kind: Any, other: Any) -> Any:
        known = any(one() is other for one in abstract._get_dump(kind)[0])
        if not known and not _is_own(kind, other):
            joined.setdefault(kind, []).append(other)
        return join(kind, other)

    def note_search(function: Any) -> None:
        searched.append(function)
        search(function)

    try:
        with (
            replace_attributes(abstract, _abc_register=note_class),
            replace_attributes(codecs, register=note_search),
        ):
            yield
    finally:
        for one in searched:
            codecs.unregister(one)
        for kind, added in joined.items():
            _remove_classes(kind, added)


def _remove_classes(kind: Any, added: list[Any]) -> None:
    """Has an abstract class forget some that were registered for it."""
    abstract: Any = sys.modules["abc"]
    kept = [one() for one in abstract._get_dump(kind)[0]]
    abstract._reset_registry(kind)
    abstract._reset_caches(kind)
    for one in kept:
        if one is not None and one not in added:
            kind.register(one)


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
